//! Bytes to types and back: `parse` and `encode`, nothing decided.
//!
//! Every parser here takes hostile bytes: it never panics, never allocates more than its input
//! allows, and names what is wrong.

#![warn(clippy::indexing_slicing)]

pub mod boot_log;
mod cursor;
pub mod hgsa;
pub mod kps;
pub mod rtpm;
pub mod sipa;
pub mod uefi;
pub mod vbs_report;
pub mod vsm;
