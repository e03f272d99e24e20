//! Boot logs: what parses encodes to the same bytes, and nothing that facts are read with panics.
#![no_main]

use hgs_protocol::wire::{
    boot_log::BootLog,
    sipa::{self, SiPolicy},
    uefi::UefiVariable,
    vsm,
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(log) = BootLog::parse(bytes) {
        let encoded = log.encode();
        assert_eq!(encoded, bytes);
        assert_eq!(BootLog::parse(&encoded).as_ref(), Ok(&log));
    }
    // A damaged log is read as far as it goes, too.
    let log = BootLog::read(bytes).log;
    for bank in log.banks() {
        let _ = (log.replay(bank), log.without_digest(bank));
    }
    for event in log.events() {
        if let Some(variable) = UefiVariable::parse(&event.data) {
            assert_eq!(UefiVariable::parse(&variable.encode()), Some(variable));
        }
        for tag in sipa::measured_leaves(&event.data).into_iter().flatten() {
            let _ = (tag.integer(), vsm::parse_idk_info(&tag.data), SiPolicy::parse(&tag.data));
        }
    }
});
