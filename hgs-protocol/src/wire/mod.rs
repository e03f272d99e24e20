//! Messages as bytes: `parse` and `encode`, no decisions.

pub mod kps;
