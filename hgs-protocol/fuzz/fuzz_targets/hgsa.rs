//! JSON messages of attestation: what parses encodes and parses to the same, and nothing panics.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hgs_protocol::wire::hgsa::fuzz(bytes));
