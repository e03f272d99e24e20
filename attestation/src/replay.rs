//! Decides which records of a boot log may be believed: the log must replay to the PCR values that
//! the TPM reported, and keep the rules of separators and caps (TCG PFP; `wbcl.h`).
//!
//! The event type is in no digest, so a host can relabel a record: separators are known by their
//! digest, and a record is read only where its digest is the hash of its data. Decides no policy.

use std::collections::BTreeMap;

use hgs_protocol::{
    crypto,
    wire::{
        boot_log::{Bank, BootLog, BootLogError, Event, EventType, PcrIndex, WBCL_SEPARATOR},
        sipa::{self, Tag, TagError},
        uefi::{self, UefiVariable},
    },
};

/// The PCRs that an attestation reads and that a log must replay to: 0-7 and 11-14.
pub const ATTESTED_PCRS: [u8; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 14];

/// PCR values of the SHA-256 bank that a TPM reported under an authenticated session: every one of
/// [`ATTESTED_PCRS`]. Only the RTPM exchange makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PcrReadout {
    values: BTreeMap<u8, [u8; 32]>,
}

impl PcrReadout {
    /// From values whose response HMACs were verified. None when one of [`ATTESTED_PCRS`] is missing.
    pub(crate) fn authenticated(values: BTreeMap<u8, [u8; 32]>) -> Option<PcrReadout> {
        let complete = ATTESTED_PCRS.iter().all(|pcr| values.contains_key(pcr));
        complete.then_some(PcrReadout { values })
    }

    /// The value of one PCR; none for a PCR outside [`ATTESTED_PCRS`].
    pub fn value(&self, pcr: u8) -> Option<&[u8; 32]> {
        self.values.get(&pcr)
    }
}

/// Why a boot log proves nothing (TcgLogValidationErrorReply, MS-HGSA 2.2.2.20). Offsets count bytes of the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TcgLogError {
    /// It does not parse.
    #[error(transparent)]
    Unreadable(#[from] BootLogError),
    /// It has no SHA-256 bank.
    #[error("the log has no SHA-256 bank; enable it in the TPM's firmware settings")]
    NoSha256Bank,
    /// A measured record has no digest in the bank.
    #[error("the record at byte {at}, measured into PCR {pcr}, has no digest in the bank that is read")]
    DigestMissing {
        /// The PCR.
        pcr: u8,
        /// Where the record begins.
        at: usize,
    },
    /// A record whose data is the measured input has another digest than its data's hash.
    #[error(
        "the digest of the {event_type} record at byte {at} (PCR {pcr}) is not the hash of its data, so the data proves nothing"
    )]
    DigestNotOfData {
        /// The PCR.
        pcr: u8,
        /// Where the record begins.
        at: usize,
        /// Its type.
        event_type: EventType,
    },
    /// The log's record of a PCR is not what the TPM holds.
    #[error("the log does not replay to PCR {pcr}: the TPM holds {read}, the log gives {replayed}")]
    PcrDiffers {
        /// The PCR.
        pcr: u8,
        /// What the TPM reported, hex.
        read: String,
        /// What the log replays to, hex.
        replayed: String,
    },
    /// PCR 7 never ends its firmware phase.
    #[error("PCR 7 has no separator, so nothing in it is known to come from the firmware")]
    SeparatorMissing,
    /// A second record of one Secure Boot variable.
    #[error("PCR 7 has a second record of the variable {name}, at byte {at}")]
    VariableTwice {
        /// Its name.
        name: String,
        /// Where the second record begins.
        at: usize,
    },
    /// A Secure Boot variable's record does not have its layout.
    #[error("the variable record at byte {at} of PCR 7 is malformed")]
    VariableMalformed {
        /// Where the record begins.
        at: usize,
    },
    /// The loader did not cap one of PCR 12, 13, 14.
    #[error("PCR {pcr} is not capped by a WBCL separator, so software may have extended it after the boot")]
    CapMissing {
        /// The PCR.
        pcr: u8,
    },
    /// Something was measured after the cap.
    #[error("the record at byte {at} stands after the cap of PCR {pcr}: it was measured after the boot had ended")]
    AfterCap {
        /// The PCR.
        pcr: u8,
        /// Where the record begins.
        at: usize,
    },
    /// A record of PCR 12-14 is neither a tagged event nor the cap.
    #[error("the record at byte {at} (PCR {pcr}) is {event_type}; only tagged events belong there")]
    ForeignType {
        /// The PCR.
        pcr: u8,
        /// Where the record begins.
        at: usize,
        /// Its type.
        event_type: EventType,
    },
    /// Tagged events that do not parse.
    #[error("the tagged events at byte {at} (PCR {pcr}) are malformed: {cause}")]
    Tags {
        /// The PCR.
        pcr: u8,
        /// Where the record begins.
        at: usize,
        /// What is wrong.
        cause: TagError,
    },
}

impl TcgLogError {
    /// Whether another attempt can help: yes, unless the log does not even parse.
    pub fn is_retryable(&self) -> bool {
        !matches!(self, TcgLogError::Unreadable(_))
    }
}

/// A log that was proven against a TPM and keeps every rule. The only source of [`crate::facts::BootFacts`].
#[derive(Clone, Debug)]
pub struct ReplayedLog {
    measured: MeasuredLog,
}

impl ReplayedLog {
    /// Replays `log` to every PCR of `readout`, then checks separators, caps and recomputed digests.
    pub fn replay(log: &BootLog, readout: &PcrReadout) -> Result<ReplayedLog, TcgLogError> {
        if !log.banks().contains(&Bank::Sha256) {
            return Err(TcgLogError::NoSha256Bank);
        }
        let replayed = log.replay(Bank::Sha256);
        for (pcr, read) in &readout.values {
            let value = PcrIndex::new(*pcr).and_then(|index| replayed.get(&index));
            // A PCR without records stays at its start value.
            let value = value.map_or([0; 32].as_slice(), Vec::as_slice);
            if !crypto::same(value, read) {
                return Err(TcgLogError::PcrDiffers {
                    pcr: *pcr,
                    read: hex::encode(read),
                    replayed: hex::encode(value),
                });
            }
        }
        let mut measured = MeasuredLog::read(log, Bank::Sha256);
        match measured.violations.is_empty() {
            true => Ok(ReplayedLog { measured }),
            false => Err(measured.violations.swap_remove(0)),
        }
    }

    pub(crate) fn measured(&self) -> &MeasuredLog {
        &self.measured
    }
}

/// What a log says where it keeps the rules, and where it breaks them. Proven against nothing.
#[derive(Clone, Debug)]
pub(crate) struct MeasuredLog {
    pub(crate) pcr7: Pcr7,
    /// Tagged events of PCR 12-14 before the caps, containers opened, in log order.
    pub(crate) tags: Vec<(u8, Tag)>,
    pub(crate) violations: Vec<TcgLogError>,
}

/// PCR 7: who may start this machine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pcr7 {
    /// Secure Boot variables measured before the separator.
    pub(crate) variables: Vec<UefiVariable>,
    /// Digests of every record, in order.
    pub(crate) sequence: Vec<Vec<u8>>,
    /// Digests of every record that is neither such a variable nor the separator, in order. Whatever
    /// a host relabels lands here, so the list can only differ from a baseline's, never come to match it.
    pub(crate) authorities: Vec<Vec<u8>>,
}

impl MeasuredLog {
    pub(crate) fn read(log: &BootLog, bank: Bank) -> MeasuredLog {
        let mut violations = Vec::new();
        for (pcr, event) in measured_events(log).filter(|(pcr, _)| ATTESTED_PCRS.contains(pcr)) {
            let at = event.offset;
            if event.digest(bank).is_none() {
                violations.push(TcgLogError::DigestMissing { pcr, at });
            } else if is_input(event.event_type) && !event.digest_is_of_data(bank) {
                let event_type = event.event_type;
                violations.push(TcgLogError::DigestNotOfData { pcr, at, event_type });
            }
        }
        let pcr7 = Pcr7::read(log, bank, &mut violations);
        let cap = bank.digest(&[WBCL_SEPARATOR]);
        let mut tags = Vec::new();
        for pcr in 12..=14 {
            read_loader_pcr(log, bank, pcr, cap.as_deref(), &mut tags, &mut violations);
        }
        tags.sort_by_key(|(at, _, _)| *at);
        MeasuredLog {
            pcr7,
            tags: tags.into_iter().map(|(_, pcr, tag)| (pcr, tag)).collect(),
            violations,
        }
    }
}

impl Pcr7 {
    fn read(log: &BootLog, bank: Bank, violations: &mut Vec<TcgLogError>) -> Pcr7 {
        let separators = [[0; 4], [0xFF; 4]].map(|data| bank.digest(&[&data]));
        let mut pcr7 = Pcr7::default();
        let mut ended = false;
        for (_, event) in measured_events(log).filter(|(pcr, _)| *pcr == 7) {
            let Some(digest) = event.digest(bank) else { continue };
            pcr7.sequence.push(digest.to_vec());
            if !ended && separators.iter().flatten().any(|separator| separator == digest) {
                ended = true;
                continue;
            }
            match secure_boot_variable(event) {
                Some(Err(error)) => violations.push(error),
                Some(Ok(variable)) if event.digest_is_of_data(bank) => {
                    let same = |v: &UefiVariable| v.guid == variable.guid && v.name == variable.name;
                    if pcr7.variables.iter().any(same) {
                        let (name, at) = (variable.name, event.offset);
                        violations.push(TcgLogError::VariableTwice { name, at });
                    } else if !ended {
                        pcr7.variables.push(variable);
                        continue;
                    }
                }
                _ => {}
            }
            pcr7.authorities.push(digest.to_vec());
        }
        if !ended {
            violations.push(TcgLogError::SeparatorMissing);
        }
        pcr7
    }
}

fn read_loader_pcr(
    log: &BootLog,
    bank: Bank,
    pcr: u8,
    cap: Option<&[u8]>,
    tags: &mut Vec<(usize, u8, Tag)>,
    violations: &mut Vec<TcgLogError>,
) {
    let mut capped = false;
    for (_, event) in measured_events(log).filter(|(index, _)| *index == pcr) {
        let (at, event_type) = (event.offset, event.event_type);
        if capped {
            violations.push(TcgLogError::AfterCap { pcr, at });
        } else if event.digest(bank).is_some() && event.digest(bank) == cap {
            capped = true;
        } else if event_type != EventType::EVENT_TAG {
            violations.push(TcgLogError::ForeignType { pcr, at, event_type });
        } else if event.digest_is_of_data(bank) {
            match sipa::measured_leaves(&event.data) {
                Ok(leaves) => tags.extend(leaves.into_iter().map(|tag| (at, pcr, tag))),
                Err(cause) => violations.push(TcgLogError::Tags { pcr, at, cause }),
            }
        }
    }
    if !capped {
        violations.push(TcgLogError::CapMissing { pcr });
    }
}

fn measured_events(log: &BootLog) -> impl Iterator<Item = (u8, &Event)> {
    let measured = log.events().iter().filter(|event| event.is_measured());
    measured.filter_map(|event| Some((event.pcr_index()?.get(), event)))
}

/// Types whose data is the measured input, so that the digest can be recomputed.
fn is_input(event_type: EventType) -> bool {
    matches!(
        event_type,
        EventType::SEPARATOR
            | EventType::EVENT_TAG
            | EventType::EFI_VARIABLE_DRIVER_CONFIG
            | EventType::EFI_VARIABLE_AUTHORITY
    )
}

/// The variable of a configuration record, when it is one of SecureBoot, PK, KEK, db, dbx.
fn secure_boot_variable(event: &Event) -> Option<Result<UefiVariable, TcgLogError>> {
    if event.event_type != EventType::EFI_VARIABLE_DRIVER_CONFIG {
        return None;
    }
    let Some(variable) = UefiVariable::parse(&event.data) else {
        return Some(Err(TcgLogError::VariableMalformed { at: event.offset }));
    };
    let known = match variable.guid {
        uefi::GLOBAL_VARIABLE => ["SecureBoot", "PK", "KEK"].contains(&variable.name.as_str()),
        uefi::IMAGE_SECURITY_DATABASE => ["db", "dbx"].contains(&variable.name.as_str()),
        _ => false,
    };
    known.then_some(Ok(variable))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use base64::{Engine as _, prelude::BASE64_STANDARD};
    use serde_json::Value;

    use super::*;

    /// Logs of real machines against the PCR values that their TPMs reported at the time.
    #[test]
    fn real_logs_replay_to_their_tpms_or_name_the_pcr_that_differs() {
        let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/corpus");
        let root = std::env::var_os("LAB_CORPUS").map_or_else(|| PathBuf::from(beside), PathBuf::from);
        let Ok(expectations) = fs::read(root.join("expectations.json")) else {
            println!("SKIPPED: replay against TPMs: no corpus of real logs (set LAB_CORPUS)");
            return;
        };
        let expectations: serde_json::Map<String, Value> = serde_json::from_slice(&expectations).unwrap();
        let mut proven = 0;
        for (path, evidence) in expectations.iter().filter(|(path, _)| path.ends_with(".evidence.json")) {
            let values: Value = serde_json::from_slice(&fs::read(root.join(path)).unwrap()).unwrap();
            let Some(readout) = readout(&values["allpcrs_b64"]["11"]) else {
                println!("SKIPPED: {path}: no full readout of the SHA-256 bank");
                continue;
            };
            let folder = path.split('/').next().unwrap();
            for log in evidence["logs"].as_array().unwrap() {
                let name = format!("{folder}/{}", log.as_str().unwrap());
                let expected = &expectations[&name]["pcrComparisonWithTpm"]["sha256"]["mismatch"];
                let differing: Vec<u64> = expected.as_array().unwrap().iter().filter_map(Value::as_u64).collect();
                let log = BootLog::parse(&fs::read(root.join(&name)).unwrap()).unwrap();
                match ReplayedLog::replay(&log, &readout) {
                    Ok(_) => {
                        assert_eq!((differing.as_slice(), folder), ([].as_slice(), "windows"), "{name}");
                        proven += 1;
                    }
                    Err(TcgLogError::PcrDiffers { pcr, .. }) => {
                        assert!(differing.contains(&u64::from(pcr)), "{name}: PCR {pcr}");
                    }
                    // A Linux host's log is true to its TPM and yet has no caps.
                    Err(TcgLogError::CapMissing { .. }) => assert_eq!(folder, "uefi", "{name}"),
                    Err(other) => panic!("{name}: {other}"),
                }
            }
        }
        assert!(proven > 0, "no log of the corpus was proven");
    }

    fn readout(bank: &Value) -> Option<PcrReadout> {
        let value = |pcr: u8| {
            let text = bank.get(pcr.to_string())?.as_str()?;
            Some((pcr, BASE64_STANDARD.decode(text).ok()?.try_into().ok()?))
        };
        PcrReadout::authenticated(ATTESTED_PCRS.iter().map(|pcr| value(*pcr)).collect::<Option<_>>()?)
    }
}
