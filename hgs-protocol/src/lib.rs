//! The protocol core of a guarded fabric: what attestation, key protection and hosts must agree on.
//!
//! No sockets, no runtime, no database. Parsers turn bytes into types and back; stories take time
//! and randomness as values. Specifications: MS-HGSA (attestation), MS-KPS (key protection).

mod certify;
pub mod crypto;
pub mod env;
pub mod health;
pub mod oid;
pub mod protector;
pub mod secret;
pub mod status;
pub mod tpm;
pub mod wire;
pub mod xml;
