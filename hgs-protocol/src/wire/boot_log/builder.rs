//! Writes the log of a machine while it boots.

use super::{
    BootLog, Format, PCR11_CAP, STARTUP_LOCALITY, SpecId, WBCL_SEPARATOR,
    record::{Bank, Event, EventType, PcrIndex},
};
use crate::wire::sipa::{self, Tag};

/// Writes a crypto-agile log with a SHA-256 bank while a machine boots.
///
/// Each call answers the digest that the caller extends into its TPM. Call order is boot order.
#[derive(Clone, Debug)]
pub struct BootLogBuilder {
    pub(super) log: BootLog,
}

impl BootLogBuilder {
    /// A log that opens with its header and a StartupLocality record.
    pub fn new(startup_locality: u8) -> BootLogBuilder {
        let spec = SpecId {
            pcr: 0,
            digest: [0; 20],
            platform_class: 0,
            version: [0, 2, 0],
            uintn_size: 2,
            algorithms: vec![(Bank::Sha256, 32)],
            vendor_size: 0,
            vendor_info: Vec::new(),
        };
        let mut builder = BootLogBuilder {
            log: BootLog {
                format: Format::CryptoAgile(spec),
                events: Vec::new(),
                padding: None,
            },
        };
        builder.note(PcrIndex::ZERO, [STARTUP_LOCALITY, &[startup_locality]].concat());
        builder
    }

    /// Records an event whose digest is the SHA-256 of its data. Extend what is answered.
    pub fn measure(&mut self, pcr: PcrIndex, event_type: EventType, data: impl Into<Vec<u8>>) -> [u8; 32] {
        let data = data.into();
        let digest = crate::crypto::sha256(&data);
        self.measure_digest(pcr, event_type, digest, data)
    }

    /// Records an event whose digest is of something else than its data (an image, say). Extend what is answered.
    pub fn measure_digest(
        &mut self,
        pcr: PcrIndex,
        event_type: EventType,
        digest: [u8; 32],
        data: impl Into<Vec<u8>>,
    ) -> [u8; 32] {
        self.push(pcr, event_type, digest, data.into());
        digest
    }

    /// Records tagged events (EV_EVENT_TAG). Extend what is answered.
    pub fn tagged(&mut self, pcr: PcrIndex, tags: impl AsRef<[Tag]>) -> [u8; 32] {
        self.measure(pcr, EventType::EVENT_TAG, sipa::encode_tags(tags.as_ref()))
    }

    /// Records the end of a phase: zeros in PCR 0-7, `WBCL` in PCR 12-14, the compact hash that caps
    /// PCR 11. Extend what is answered.
    pub fn separator(&mut self, pcr: PcrIndex) -> [u8; 32] {
        match pcr.get() {
            11 => self.measure(pcr, EventType::COMPACT_HASH, PCR11_CAP),
            12..=14 => self.measure(pcr, EventType::SEPARATOR, WBCL_SEPARATOR),
            _ => self.measure(pcr, EventType::SEPARATOR, [0; 4]),
        }
    }

    /// Records something that is not measured (EV_NO_ACTION). Nothing to extend.
    pub fn note(&mut self, pcr: PcrIndex, data: impl Into<Vec<u8>>) {
        self.push(pcr, EventType::NO_ACTION, [0; 32], data.into());
    }

    /// The log so far.
    pub fn log(&self) -> &BootLog {
        &self.log
    }

    /// The bytes of the log.
    pub fn finish(&self) -> Vec<u8> {
        self.log.encode()
    }

    fn push(&mut self, pcr: PcrIndex, event_type: EventType, digest: [u8; 32], data: Vec<u8>) {
        self.log.events.push(Event {
            pcr: u32::from(pcr.get()),
            event_type,
            digests: vec![(Bank::Sha256, digest.to_vec())],
            data,
            offset: 0,
        });
    }
}
