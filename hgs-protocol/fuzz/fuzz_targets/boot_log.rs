//! Boot logs: what parses encodes to the same bytes, and explaining any bytes never panics.
#![no_main]

use attestation::{baseline::TpmBaseline, inspect::Explanation};
use hgs_protocol::wire::boot_log::BootLog;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(log) = BootLog::parse(bytes) {
        let encoded = log.encode();
        assert_eq!(encoded, bytes);
        assert_eq!(BootLog::parse(&encoded).as_ref(), Ok(&log));
        let _ = TpmBaseline::from_log("fuzzed", bytes);
    }
    let _ = Explanation::of(bytes).text("fuzzed");
});
