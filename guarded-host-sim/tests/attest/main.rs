//! Hosts on TPMs in software against the attestation service itself, over HTTP.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod ca_trustlet;
mod configuration;
mod dials;
mod forgery;
mod gallery;
mod lab;
mod log_attacks;
mod policies;
