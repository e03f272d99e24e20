//! TCG boot logs (TCG PC Client Platform Firmware Profile, section 10), as Windows keeps them (WBCL).
//!
//! Both forms: plain SHA-1 (TCG 1.2) and crypto-agile (a Spec ID header, then events with one digest
//! per bank). Keeps every byte, so what was parsed encodes to the same bytes. Judges nothing: which
//! events may be believed is decided where a log is replayed against a TPM.

use std::{collections::BTreeMap, fmt};

use sha1::Sha1;
use sha2::{Sha256, Sha384, Sha512};

use super::{
    cursor::{Cursor, length32},
    sipa::{self, Tag},
};

/// Index of a platform configuration register, 0..=23.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PcrIndex(u8);

impl PcrIndex {
    /// The index, when it is one of 0..=23.
    pub const fn new(index: u8) -> Option<PcrIndex> {
        if index < 24 { Some(PcrIndex(index)) } else { None }
    }

    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl fmt::Display for PcrIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl TryFrom<u32> for PcrIndex {
    type Error = u32;

    fn try_from(index: u32) -> Result<PcrIndex, u32> {
        u8::try_from(index).ok().and_then(PcrIndex::new).ok_or(index)
    }
}

/// Type of an event. It is part of no digest: a host can relabel a record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventType(pub u32);

macro_rules! event_types {
    ($($name:ident = $value:literal, $doc:literal;)*) => {
        impl EventType {
            $(#[doc = $doc] pub const $name: EventType = EventType($value);)*

            /// The name in the TCG specification, for people.
            pub fn name(self) -> Option<&'static str> {
                match self {
                    $(EventType::$name => Some(concat!("EV_", stringify!($name))),)*
                    _ => None,
                }
            }
        }
    };
}

event_types! {
    PREBOOT_CERT = 0x0, "Reserved.";
    POST_CODE = 0x1, "Firmware code.";
    UNUSED = 0x2, "Reserved.";
    NO_ACTION = 0x3, "Informative, never extended, proves nothing.";
    SEPARATOR = 0x4, "End of a phase.";
    ACTION = 0x5, "A string that names an action.";
    EVENT_TAG = 0x6, "Tagged events; Windows uses them for everything it measures.";
    S_CRTM_CONTENTS = 0x7, "Contents of the static root of trust.";
    S_CRTM_VERSION = 0x8, "Version of the static root of trust.";
    CPU_MICROCODE = 0x9, "Microcode.";
    PLATFORM_CONFIG_FLAGS = 0xA, "Platform configuration.";
    TABLE_OF_DEVICES = 0xB, "Devices.";
    COMPACT_HASH = 0xC, "A hash whose event is a short value.";
    IPL = 0xD, "Initial program loader.";
    IPL_PARTITION_DATA = 0xE, "Loader's partition data.";
    NONHOST_CODE = 0xF, "Code of a non-host processor.";
    NONHOST_CONFIG = 0x10, "Configuration of a non-host processor.";
    NONHOST_INFO = 0x11, "Presence of a non-host processor.";
    OMIT_BOOT_DEVICE_EVENTS = 0x12, "Boot device events are left out.";
    EFI_VARIABLE_DRIVER_CONFIG = 0x8000_0001, "A UEFI variable that configures; Secure Boot variables in PCR 7.";
    EFI_VARIABLE_BOOT = 0x8000_0002, "A boot variable, older form.";
    EFI_BOOT_SERVICES_APPLICATION = 0x8000_0003, "A boot application; the digest is its Authenticode hash.";
    EFI_BOOT_SERVICES_DRIVER = 0x8000_0004, "A boot driver.";
    EFI_RUNTIME_SERVICES_DRIVER = 0x8000_0005, "A runtime driver.";
    EFI_GPT_EVENT = 0x8000_0006, "The partition table.";
    EFI_ACTION = 0x8000_0007, "A string that names an action.";
    EFI_PLATFORM_FIRMWARE_BLOB = 0x8000_0008, "A firmware volume.";
    EFI_HANDOFF_TABLES = 0x8000_0009, "Tables handed to the system.";
    EFI_PLATFORM_FIRMWARE_BLOB2 = 0x8000_000A, "A firmware volume, with a name.";
    EFI_HANDOFF_TABLES2 = 0x8000_000B, "Tables handed to the system, with a name.";
    EFI_VARIABLE_BOOT2 = 0x8000_000C, "A boot variable.";
    EFI_HCRTM_EVENT = 0x8000_0010, "Start by a hardware root of trust.";
    EFI_VARIABLE_AUTHORITY = 0x8000_00E0, "The authority that vouched for a loaded image.";
    EFI_SPDM_FIRMWARE_BLOB = 0x8000_00E1, "Firmware of a device, by SPDM.";
    EFI_SPDM_FIRMWARE_CONFIG = 0x8000_00E2, "Configuration of a device, by SPDM.";
}

impl fmt::Debug for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "0x{:08X}", self.0),
        }
    }
}

/// A PCR bank, by TPM algorithm identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bank {
    /// TPM_ALG_SHA1, 0x0004.
    Sha1,
    /// TPM_ALG_SHA256, 0x000B.
    Sha256,
    /// TPM_ALG_SHA384, 0x000C.
    Sha384,
    /// TPM_ALG_SHA512, 0x000D.
    Sha512,
    /// Any other algorithm. Its digests are kept; nothing is computed in it.
    Other(u16),
}

impl Bank {
    /// From the TPM algorithm identifier.
    pub fn from_algorithm(algorithm: u16) -> Bank {
        match algorithm {
            0x0004 => Bank::Sha1,
            0x000B => Bank::Sha256,
            0x000C => Bank::Sha384,
            0x000D => Bank::Sha512,
            other => Bank::Other(other),
        }
    }

    /// The TPM algorithm identifier.
    pub fn algorithm(self) -> u16 {
        match self {
            Bank::Sha1 => 0x0004,
            Bank::Sha256 => 0x000B,
            Bank::Sha384 => 0x000C,
            Bank::Sha512 => 0x000D,
            Bank::Other(other) => other,
        }
    }

    /// Digest length in bytes, where the algorithm is known here.
    pub fn digest_size(self) -> Option<usize> {
        match self {
            Bank::Sha1 => Some(20),
            Bank::Sha256 => Some(32),
            Bank::Sha384 => Some(48),
            Bank::Sha512 => Some(64),
            Bank::Other(_) => None,
        }
    }

    /// The hash of the concatenated parts; nothing for an algorithm that is not known here.
    pub fn digest(self, parts: &[&[u8]]) -> Option<Vec<u8>> {
        fn hash<D: sha2::Digest>(parts: &[&[u8]]) -> Option<Vec<u8>> {
            let mut hash = D::new();
            for part in parts {
                hash.update(part);
            }
            Some(hash.finalize().to_vec())
        }
        match self {
            Bank::Sha1 => hash::<Sha1>(parts),
            Bank::Sha256 => hash::<Sha256>(parts),
            Bank::Sha384 => hash::<Sha384>(parts),
            Bank::Sha512 => hash::<Sha512>(parts),
            Bank::Other(_) => None,
        }
    }
}

impl fmt::Display for Bank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bank::Sha1 => f.write_str("sha1"),
            Bank::Sha256 => f.write_str("sha256"),
            Bank::Sha384 => f.write_str("sha384"),
            Bank::Sha512 => f.write_str("sha512"),
            Bank::Other(other) => write!(f, "0x{other:04x}"),
        }
    }
}

/// One record of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The PCR as written. Above 23 only in records that are not extended (trust points use 0xFFFFFFFF).
    pub pcr: u32,
    /// The type as written.
    pub event_type: EventType,
    /// Digests in the order of the log, at most one per bank.
    pub digests: Vec<(Bank, Vec<u8>)>,
    /// The event's data.
    pub data: Vec<u8>,
    /// Where the record begins in the log that was parsed; 0 for a record that was built.
    pub offset: usize,
}

impl Event {
    /// The PCR, when it is one.
    pub fn pcr_index(&self) -> Option<PcrIndex> {
        PcrIndex::try_from(self.pcr).ok()
    }

    /// True for records that a TPM extends: all but EV_NO_ACTION.
    pub fn is_measured(&self) -> bool {
        self.event_type != EventType::NO_ACTION
    }

    /// The digest of this record in `bank`.
    pub fn digest(&self, bank: Bank) -> Option<&[u8]> {
        let found = self.digests.iter().find(|(b, _)| *b == bank)?;
        Some(&found.1)
    }

    /// True when the digest in `bank` is the hash of exactly this record's data.
    pub fn digest_is_of_data(&self, bank: Bank) -> bool {
        self.digest(bank)
            .is_some_and(|digest| bank.digest(&[&self.data]).is_some_and(|hash| hash == digest))
    }

    /// The locality of a StartupLocality record (EV_NO_ACTION, PCR 0).
    pub fn startup_locality(&self) -> Option<u8> {
        if self.is_measured() || self.pcr != 0 {
            return None;
        }
        match self.data.strip_prefix(STARTUP_LOCALITY) {
            Some([locality]) => Some(*locality),
            _ => None,
        }
    }
}

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
            let mut value = start(PcrIndex(0));
            if let Some(last) = value.last_mut() {
                *last = locality;
            }
            pcrs.insert(PcrIndex(0), value);
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

/// Writes a crypto-agile log with a SHA-256 bank while a machine boots.
///
/// Each call answers the digest that the caller extends into its TPM. Call order is boot order.
#[derive(Clone, Debug)]
pub struct BootLogBuilder {
    log: BootLog,
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
        builder.note(PcrIndex(0), [STARTUP_LOCALITY, &[startup_locality]].concat());
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pcr(index: u8) -> PcrIndex {
        PcrIndex::new(index).unwrap()
    }

    fn event(format_is_sha1: bool) -> impl Strategy<Value = Event> {
        let digests = match format_is_sha1 {
            true => proptest::collection::vec(any::<u8>(), 20)
                .prop_map(|d| vec![(Bank::Sha1, d)])
                .boxed(),
            false => (
                proptest::option::of(proptest::collection::vec(any::<u8>(), 20)),
                proptest::option::of(proptest::collection::vec(any::<u8>(), 32)),
            )
                .prop_map(|(a, b)| {
                    let a = a.map(|d| (Bank::Sha1, d));
                    let b = b.map(|d| (Bank::Sha256, d));
                    a.into_iter().chain(b).collect()
                })
                .boxed(),
        };
        let kind = prop_oneof![Just(3u32), Just(4), Just(6), Just(0x8000_0001), any::<u32>()];
        let data = proptest::collection::vec(any::<u8>(), 0..40);
        (0u32..24, kind, digests, data).prop_map(|(pcr, kind, digests, data)| Event {
            pcr,
            event_type: EventType(kind),
            digests,
            data,
            offset: 0,
        })
    }

    fn log() -> impl Strategy<Value = BootLog> {
        let agile = proptest::collection::vec(event(false), 0..6).prop_map(|events| {
            let mut log = BootLogBuilder::new(0).log;
            if let Format::CryptoAgile(spec) = &mut log.format {
                spec.algorithms = vec![(Bank::Sha1, 20), (Bank::Sha256, 32)];
            }
            log.events = events;
            log
        });
        let plain = proptest::collection::vec(event(true), 1..6).prop_map(|events| BootLog {
            format: Format::Sha1,
            events,
            padding: None,
        });
        prop_oneof![agile, plain]
    }

    proptest! {
        #[test]
        fn what_is_encoded_parses_to_the_same_log(log in log()) {
            let bytes = log.encode();
            let mut again = BootLog::parse(&bytes).unwrap();
            prop_assert_eq!(again.encode(), bytes);
            for event in &mut again.events {
                event.offset = 0;
            }
            // A last record of nothing but zeros is indistinguishable from padding.
            if again.padding.is_none() {
                prop_assert_eq!(again, log);
            }
        }

        #[test]
        fn bytes_that_parse_encode_to_themselves(log in log(), at in any::<prop::sample::Index>(), value in any::<u8>()) {
            let mut bytes = log.encode();
            let at = at.index(bytes.len());
            bytes[at] = value;
            if let Ok(log) = BootLog::parse(&bytes) {
                prop_assert_eq!(log.encode(), bytes);
            }
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let reading = BootLog::read(&bytes);
            let _ = reading.log.replay(Bank::Sha256);
            let mut headed = BootLogBuilder::new(3).finish();
            headed.extend_from_slice(&bytes);
            let _ = BootLog::read(&headed);
        }

        #[test]
        fn a_cut_log_is_refused_or_shorter(log in log(), at in any::<prop::sample::Index>()) {
            let bytes = log.encode();
            let at = at.index(bytes.len());
            if let Ok(cut) = BootLog::parse(&bytes[..at]) {
                prop_assert!(cut.events.len() <= log.events.len());
            }
        }
    }

    #[test]
    fn a_built_log_replays_to_what_was_extended() {
        let mut builder = BootLogBuilder::new(3);
        let a = builder.measure(pcr(0), EventType::POST_CODE, *b"firmware");
        let b = builder.separator(pcr(0));
        let log = BootLog::parse(&builder.finish()).unwrap();
        let mut value = [0; 32];
        value[31] = 3;
        for digest in [a, b] {
            value = crate::crypto::sha256(&[value, digest].concat());
        }
        assert_eq!(log.replay(Bank::Sha256)[&pcr(0)], value);
        assert_eq!(log.startup_locality(), Some(3));
    }

    #[test]
    fn padding_of_zeros_or_ones_is_kept_apart() {
        let mut builder = BootLogBuilder::new(0);
        builder.separator(pcr(7));
        for byte in [0x00, 0xFF] {
            let mut bytes = builder.finish();
            let length = bytes.len();
            bytes.resize(length + 77, byte);
            let log = BootLog::parse(&bytes).unwrap();
            assert_eq!(log.padding(), Some(Padding { byte, length: 77 }));
            assert_eq!(log.events().len(), 2);
            bytes.push(1);
            assert!(BootLog::parse(&bytes).is_err());
        }
    }

    #[test]
    fn a_locality_named_late_does_not_count() {
        let mut builder = BootLogBuilder::new(0);
        builder.log.events.clear();
        builder.separator(pcr(0));
        builder.note(pcr(0), [STARTUP_LOCALITY, &[3]].concat());
        assert_eq!(builder.log.startup_locality(), None);
    }

    #[test]
    fn digests_of_an_unannounced_or_repeated_bank_are_refused() {
        let mut builder = BootLogBuilder::new(0);
        builder.separator(pcr(7));
        let good = builder.log.clone();
        builder.log.events[1].digests = vec![(Bank::Sha384, vec![0; 48])];
        assert!(matches!(
            BootLog::parse(&builder.finish()),
            Err(BootLogError::Algorithm { .. })
        ));
        builder.log = good;
        builder.log.events[1].digests.push((Bank::Sha256, vec![0; 32]));
        assert!(matches!(
            BootLog::parse(&builder.finish()),
            Err(BootLogError::Digests { .. })
        ));
    }

    #[test]
    fn a_measured_record_needs_a_pcr_that_exists() {
        let mut builder = BootLogBuilder::new(0);
        builder.separator(pcr(7));
        builder.log.events[1].pcr = 24;
        assert!(matches!(
            BootLog::parse(&builder.finish()),
            Err(BootLogError::Pcr { pcr: 24, .. })
        ));
        builder.log.events[1].event_type = EventType::NO_ACTION;
        assert!(BootLog::parse(&builder.finish()).is_ok());
    }
}
