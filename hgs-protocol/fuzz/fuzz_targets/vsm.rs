//! VSM keys and VBS reports: what parses encodes to the same bytes, and nothing panics.
#![no_main]

use hgs_protocol::{
    crypto::PublicKey,
    wire::{vbs_report, vsm},
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    vbs_report::fuzz(bytes);
    match vsm::parse_vsm_key(bytes) {
        Ok(PublicKey::Rsa(key)) => assert_eq!(vsm::encode_rsa1(&key), bytes),
        Ok(PublicKey::P256(key)) => assert!(vsm::encode_ecs1(&key) == bytes || vsm::encode_eck1(&key) == bytes),
        Err(_) => {}
    }
});
