//! Key protectors: any bytes, and any bytes put over a part of a good protector. What reads can be
//! written and read again; nothing panics.
#![no_main]

use std::sync::OnceLock;

use hgs_protocol::{
    env::{SeededRandom, UnixTime},
    protector::{GuardianKeys, KeyProtector, fuzz_protector},
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    static GOOD: OnceLock<Vec<u8>> = OnceLock::new();
    let good = GOOD.get_or_init(|| {
        let rng = &mut SeededRandom::new(1);
        let keys = GuardianKeys::generate("fuzzed", UnixTime(1_800_000_000), rng).expect("keys");
        KeyProtector::create(&keys, &[], rng).expect("a protector").0.to_xml()
    });
    fuzz_protector(bytes);
    if let Some((place, junk)) = bytes.split_first_chunk::<2>() {
        let start = usize::from(u16::from_le_bytes(*place)) % good.len();
        let mut changed = good.clone();
        changed.splice(start..(start + junk.len()).min(good.len()), junk.iter().copied());
        fuzz_protector(&changed);
    }
});
