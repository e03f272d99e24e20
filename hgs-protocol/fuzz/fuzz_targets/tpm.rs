//! TPM commands, responses and public areas: nothing panics, and no response passes without the session's key.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hgs_protocol::tpm::fuzz(bytes));
