//! TCG boot logs (TCG PC Client Platform Firmware Profile, section 10), as Windows keeps them (WBCL).
//!
//! Both forms: plain SHA-1 (TCG 1.2) and crypto-agile (a Spec ID header, then events with one digest
//! per bank). Keeps every byte, so what was parsed encodes to the same bytes. Judges nothing: which
//! events may be believed is decided where a log is replayed against a TPM.

mod builder;
mod record;

use std::collections::BTreeMap;

pub use self::{
    builder::BootLogBuilder,
    record::{Bank, Event, EventType, PcrIndex},
};
use super::cursor::{Cursor, length32};

/// The Spec ID event that opens a crypto-agile log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecId {
    /// PCR field of the header record; 0 but for confidential-computing logs.
    pub pcr: u32,
    /// Digest field of the header record; zeros.
    pub digest: [u8; 20],
    /// 0 client, 1 server.
    pub platform_class: u32,
    /// Specification version: minor, major, errata.
    pub version: [u8; 3],
    /// Size of UINTN in 32-bit words: 1 or 2.
    pub uintn_size: u8,
    /// Banks of the log with their digest sizes in bytes.
    pub algorithms: Vec<(Bank, u16)>,
    /// Size that the header announces for its vendor information.
    pub vendor_size: u8,
    /// What stands where vendor information belongs.
    pub vendor_info: Vec<u8>,
}

/// Which of the two record forms a log has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// TCG 1.2: one SHA-1 digest per record, no header.
    Sha1,
    /// TCG 2: a header, then records with a list of digests.
    CryptoAgile(SpecId),
}

/// Filler after the last record, as firmware leaves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Padding {
    /// 0x00 or 0xFF.
    pub byte: u8,
    /// How many.
    pub length: usize,
}

/// Why bytes are not a boot log. Offsets count from the log's first byte.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BootLogError {
    /// No record at all.
    #[error("the log is empty")]
    Empty,
    /// A record runs past the end.
    #[error("the log is cut off in the record at byte {at}")]
    Truncated {
        /// Where that record begins.
        at: usize,
    },
    /// The Spec ID event does not have its layout.
    #[error("the Spec ID header of the log is malformed")]
    Header,
    /// The Spec ID event announces more or less vendor information than it holds.
    #[error("the Spec ID header announces {announced} bytes of vendor information and holds {held}")]
    VendorInfo {
        /// Announced length.
        announced: u8,
        /// Length present.
        held: usize,
    },
    /// A measured record names a PCR that does not exist.
    #[error("the record at byte {at} is measured into PCR {pcr}, which does not exist")]
    Pcr {
        /// Where the record begins.
        at: usize,
        /// The number it names.
        pcr: u32,
    },
    /// A record carries a digest of an algorithm that the header does not announce.
    #[error("the record at byte {at} has a digest of algorithm 0x{algorithm:04x}, which the header does not announce")]
    Algorithm {
        /// Where the record begins.
        at: usize,
        /// The algorithm.
        algorithm: u16,
    },
    /// A record carries two digests of one algorithm, or more digests than the header has algorithms.
    #[error("the record at byte {at} has more digests than the log has banks")]
    Digests {
        /// Where the record begins.
        at: usize,
    },
}

/// A parsed boot log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootLog {
    format: Format,
    events: Vec<Event>,
    padding: Option<Padding>,
}

/// What could be read of a log: the records up to the first one that cannot be read.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The readable part. Never proof of anything when `error` is set.
    pub log: BootLog,
    /// What is wrong, if anything is.
    pub error: Option<BootLogError>,
    /// Bytes after the last readable record that are not padding.
    pub unread: usize,
}

impl BootLog {
    /// The whole of `bytes` as a log: records, then nothing but padding (0x00 or 0xFF).
    pub fn parse(bytes: &[u8]) -> Result<BootLog, BootLogError> {
        let reading = BootLog::read(bytes);
        match reading.error {
            None => Ok(reading.log),
            Some(error) => Err(error),
        }
    }

    /// As much of `bytes` as can be read, for explaining a damaged log. Not for deciding anything.
    pub fn read(bytes: &[u8]) -> Reading {
        let mut cursor = Cursor::new(bytes);
        let mut log = BootLog {
            format: Format::Sha1,
            events: Vec::new(),
            padding: None,
        };
        let mut error = bytes.is_empty().then_some(BootLogError::Empty);
        // Where the run of equal filler bytes at the end begins: a record that starts there is none.
        let filled_from = |byte: u8| bytes.len() - bytes.iter().rev().take_while(|b| **b == byte).count();
        let (zeros_from, ones_from) = (filled_from(0x00), filled_from(0xFF));
        let mut first = true;
        while !cursor.is_empty() {
            let at = cursor.offset();
            let padding = [(0x00, zeros_from), (0xFF, ones_from)]
                .into_iter()
                .find(|(_, from)| at >= *from)
                .map(|(byte, _)| byte);
            if let (Some(byte), false) = (padding, first) {
                log.padding = Some(Padding {
                    byte,
                    length: cursor.rest().len(),
                });
                return Reading { log, error, unread: 0 };
            }
            let mut ahead = cursor.clone();
            let record = match &log.format {
                Format::Sha1 => sha1_record(&mut ahead),
                Format::CryptoAgile(spec) => agile_record(&mut ahead, spec),
            };
            let record = match record {
                Ok(record) => record,
                Err(found) => {
                    return Reading {
                        unread: cursor.rest().len(),
                        error: error.or(Some(found)),
                        log,
                    };
                }
            };
            if first && !record.is_measured() && record.data.starts_with(SPEC_ID) {
                match spec_id(&record) {
                    Ok(spec) => {
                        if usize::from(spec.vendor_size) != spec.vendor_info.len() {
                            error = Some(BootLogError::VendorInfo {
                                announced: spec.vendor_size,
                                held: spec.vendor_info.len(),
                            });
                        }
                        log.format = Format::CryptoAgile(spec);
                    }
                    Err(found) => {
                        return Reading {
                            unread: cursor.rest().len(),
                            error: Some(found),
                            log,
                        };
                    }
                }
            } else {
                log.events.push(record);
            }
            first = false;
            cursor = ahead;
        }
        Reading { log, error, unread: 0 }
    }

    /// The bytes of the log. A parsed log encodes to what it was parsed from.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if let Format::CryptoAgile(spec) = &self.format {
            let data = spec.encode();
            put_sha1_record(&mut out, spec.pcr, EventType::NO_ACTION, &spec.digest, &data);
        }
        for event in &self.events {
            match &self.format {
                Format::Sha1 => {
                    let digest = event.digest(Bank::Sha1).unwrap_or(&[0; 20]);
                    put_sha1_record(&mut out, event.pcr, event.event_type, digest, &event.data);
                }
                Format::CryptoAgile(_) => {
                    out.extend_from_slice(&event.pcr.to_le_bytes());
                    out.extend_from_slice(&event.event_type.0.to_le_bytes());
                    out.extend_from_slice(&length32(event.digests.len()));
                    for (bank, digest) in &event.digests {
                        out.extend_from_slice(&bank.algorithm().to_le_bytes());
                        out.extend_from_slice(digest);
                    }
                    out.extend_from_slice(&length32(event.data.len()));
                    out.extend_from_slice(&event.data);
                }
            }
        }
        if let Some(padding) = self.padding {
            out.resize(out.len() + padding.length, padding.byte);
        }
        out
    }

    /// Which form the records have, with the header where there is one.
    pub fn format(&self) -> &Format {
        &self.format
    }

    /// The records in order. The Spec ID header is not among them.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// Filler after the last record.
    pub fn padding(&self) -> Option<Padding> {
        self.padding
    }

    /// The banks that the log announces, in its order.
    pub fn banks(&self) -> Vec<Bank> {
        match &self.format {
            Format::Sha1 => vec![Bank::Sha1],
            Format::CryptoAgile(spec) => spec.algorithms.iter().map(|(bank, _)| *bank).collect(),
        }
    }

    /// Measured records that carry no digest of `bank`: where there are any, a replay of that bank is incomplete.
    pub fn without_digest(&self, bank: Bank) -> usize {
        let lacking = |event: &&Event| event.is_measured() && event.digest(bank).is_none();
        self.events.iter().filter(lacking).count()
    }

    /// The locality that PCR 0 starts from: that of the first StartupLocality record that stands
    /// before anything was extended into PCR 0.
    pub fn startup_locality(&self) -> Option<u8> {
        let extends_pcr0 = |event: &&Event| event.is_measured() && event.pcr == 0;
        self.events
            .iter()
            .take_while(|event| !extends_pcr0(event))
            .find_map(Event::startup_locality)
    }

    /// The value that each PCR has after the log, for PCRs with at least one record in this bank.
    ///
    /// PCRs start from zeros, 17 to 22 from ones, PCR 0 from the startup locality in its last byte.
    pub fn replay(&self, bank: Bank) -> BTreeMap<PcrIndex, Vec<u8>> {
        let mut pcrs = BTreeMap::new();
        let Some(size) = bank.digest_size() else {
            return pcrs;
        };
        let start = |pcr: PcrIndex| vec![if (17..=22).contains(&pcr.get()) { 0xFF } else { 0 }; size];
        if let (Some(locality), true) = (self.startup_locality(), self.banks().contains(&bank)) {
            let mut value = start(PcrIndex::ZERO);
            if let Some(last) = value.last_mut() {
                *last = locality;
            }
            pcrs.insert(PcrIndex::ZERO, value);
        }
        for event in self.events.iter().filter(|event| event.is_measured()) {
            let (Some(pcr), Some(digest)) = (event.pcr_index(), event.digest(bank)) else {
                continue;
            };
            let value = pcrs.entry(pcr).or_insert_with(|| start(pcr));
            if let Some(extended) = bank.digest(&[value, digest]) {
                *value = extended;
            }
        }
        pcrs
    }
}

impl SpecId {
    fn encode(&self) -> Vec<u8> {
        let mut out = SPEC_ID.to_vec();
        out.extend_from_slice(&self.platform_class.to_le_bytes());
        out.extend_from_slice(&self.version);
        out.push(self.uintn_size);
        out.extend_from_slice(&length32(self.algorithms.len()));
        for (bank, size) in &self.algorithms {
            out.extend_from_slice(&bank.algorithm().to_le_bytes());
            out.extend_from_slice(&size.to_le_bytes());
        }
        out.push(self.vendor_size);
        out.extend_from_slice(&self.vendor_info);
        out
    }
}

fn sha1_record(cursor: &mut Cursor<'_>) -> Result<Event, BootLogError> {
    let at = cursor.offset();
    let read = |cursor: &mut Cursor<'_>| {
        Some(Event {
            pcr: cursor.u32()?,
            event_type: EventType(cursor.u32()?),
            digests: vec![(Bank::Sha1, cursor.take(20)?.to_vec())],
            data: cursor.block32()?.to_vec(),
            offset: at,
        })
    };
    checked(read(cursor).ok_or(BootLogError::Truncated { at })?)
}

fn agile_record(cursor: &mut Cursor<'_>, spec: &SpecId) -> Result<Event, BootLogError> {
    let at = cursor.offset();
    let cut = BootLogError::Truncated { at };
    let pcr = cursor.u32().ok_or(cut.clone())?;
    let event_type = EventType(cursor.u32().ok_or(cut.clone())?);
    let count = cursor.u32().ok_or(cut.clone())?;
    if usize::try_from(count).map_or(true, |count| count > spec.algorithms.len()) {
        return Err(BootLogError::Digests { at });
    }
    let mut digests: Vec<(Bank, Vec<u8>)> = Vec::new();
    for _ in 0..count {
        let algorithm = cursor.u16().ok_or(cut.clone())?;
        let bank = Bank::from_algorithm(algorithm);
        let size = spec.algorithms.iter().find(|(b, _)| *b == bank).map(|(_, size)| *size);
        let size = size.ok_or(BootLogError::Algorithm { at, algorithm })?;
        if digests.iter().any(|(b, _)| *b == bank) {
            return Err(BootLogError::Digests { at });
        }
        let digest = cursor.take(usize::from(size)).ok_or(cut.clone())?;
        digests.push((bank, digest.to_vec()));
    }
    let data = cursor.block32().ok_or(cut)?.to_vec();
    checked(Event {
        pcr,
        event_type,
        digests,
        data,
        offset: at,
    })
}

fn checked(event: Event) -> Result<Event, BootLogError> {
    match event.is_measured() && event.pcr_index().is_none() {
        true => Err(BootLogError::Pcr {
            at: event.offset,
            pcr: event.pcr,
        }),
        false => Ok(event),
    }
}

fn spec_id(record: &Event) -> Result<SpecId, BootLogError> {
    let read = || {
        let mut cursor = Cursor::new(record.data.strip_prefix(SPEC_ID)?);
        let platform_class = cursor.u32()?;
        let version = [cursor.u8()?, cursor.u8()?, cursor.u8()?];
        let uintn_size = cursor.u8()?;
        let count = cursor.u32().filter(|count| (1..=MAX_BANKS).contains(count))?;
        let mut algorithms: Vec<(Bank, u16)> = Vec::new();
        for _ in 0..count {
            let bank = Bank::from_algorithm(cursor.u16()?);
            let size = cursor.u16()?;
            let known = bank.digest_size().is_none_or(|right| right == usize::from(size));
            if !known || size == 0 || algorithms.iter().any(|(b, _)| *b == bank) {
                return None;
            }
            algorithms.push((bank, size));
        }
        Some(SpecId {
            pcr: record.pcr,
            digest: record.digest(Bank::Sha1)?.try_into().ok()?,
            platform_class,
            version,
            uintn_size,
            algorithms,
            vendor_size: cursor.u8()?,
            vendor_info: cursor.rest().to_vec(),
        })
    };
    read().ok_or(BootLogError::Header)
}

fn put_sha1_record(out: &mut Vec<u8>, pcr: u32, event_type: EventType, digest: &[u8], data: &[u8]) {
    out.extend_from_slice(&pcr.to_le_bytes());
    out.extend_from_slice(&event_type.0.to_le_bytes());
    out.extend_from_slice(digest);
    out.extend_from_slice(&length32(data.len()));
    out.extend_from_slice(data);
}

/// Data of the separator that caps PCR 12, 13 and 14.
pub const WBCL_SEPARATOR: &[u8; 4] = b"WBCL";
/// Data of the compact hash with which the boot ends PCR 11.
pub const PCR11_CAP: [u8; 4] = [0xFF, 0xFF, 0, 0];

const SPEC_ID: &[u8] = b"Spec ID Event03\0";
const STARTUP_LOCALITY: &[u8] = b"StartupLocality\0";
const MAX_BANKS: u32 = 16;

#[cfg(test)]
mod tests;
