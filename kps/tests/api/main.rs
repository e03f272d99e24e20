//! The service over real HTTP, as a host, an owner and an administrator see it.

mod admin;
mod fabric;
mod metadata;
mod refusals;
mod release;
