//! The attestation service: decides whether a host is healthy and certifies its keys (MS-HGSA).

pub mod baseline;
pub mod facts;
pub mod inspect;
pub mod policy;
pub mod replay;
