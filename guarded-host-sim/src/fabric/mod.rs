//! A guarded fabric on loopback: real service and host processes, and the ways to reach them.

pub mod service;
