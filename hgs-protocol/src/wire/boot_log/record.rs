//! The parts of a record: PCR, type, bank, digests, data.

use std::fmt;

use sha1::Sha1;
use sha2::{Sha256, Sha384, Sha512};

use super::STARTUP_LOCALITY;

/// Index of a platform configuration register, 0..=23.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PcrIndex(u8);

impl PcrIndex {
    pub(super) const ZERO: PcrIndex = PcrIndex(0);

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
