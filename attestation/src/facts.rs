//! Reads what a boot log proves about a host: every fact with the PCR and event it comes from, three-valued.
//!
//! A fact counts only from the PCR its event belongs to, before the cap, from a record whose digest is
//! the hash of its data; [`crate::replay`] sees to that. Decides no policy.

use std::fmt;

use hgs_protocol::{
    crypto::RsaPublicKey,
    wire::{
        sipa::{SiPolicy, Tag, id, transfer, unlock},
        vsm,
    },
};

use crate::replay::{MeasuredLog, ReplayedLog};

/// One fact: what was expected where, and what was seen at each boot stage that measures it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// The PCR that the event belongs to.
    pub pcr: u8,
    /// The event, by its name in the log.
    pub event: &'static str,
    /// What makes the fact true.
    pub expected: &'static str,
    /// One entry per stage, in boot order.
    pub seen: Vec<Seen>,
}

/// What one boot stage measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The value, for people.
    pub value: String,
    /// Whether it is as expected.
    pub holds: bool,
}

impl Fact {
    /// True when every stage measured what is expected, false when one did not, none when none measured it.
    pub fn value(&self) -> Option<bool> {
        match self.seen.is_empty() {
            true => None,
            false => Some(self.seen.iter().all(|seen| seen.holds)),
        }
    }

    /// What was seen, for people.
    pub fn seen_text(&self) -> String {
        let values: Vec<&str> = self.seen.iter().map(|seen| seen.value.as_str()).collect();
        match values.is_empty() {
            true => "not measured".to_owned(),
            false => values.join(", then "),
        }
    }
}

/// Facts of a host whose log was proven against its TPM. Made only from a [`ReplayedLog`].
#[derive(Clone, Debug)]
pub struct BootFacts(Facts);

impl BootFacts {
    /// Reads the facts of a proven log.
    pub fn read(log: &ReplayedLog) -> BootFacts {
        BootFacts(Facts::read(log.measured()))
    }
}

impl std::ops::Deref for BootFacts {
    type Target = Facts;

    fn deref(&self) -> &Facts {
        &self.0
    }
}

/// Facts as a log states them. Proven only inside [`BootFacts`].
#[derive(Clone, Debug)]
pub struct Facts {
    /// SecureBoot variable is 01 (PCR 7).
    pub secure_boot: Fact,
    /// How many of SecureBoot, PK, KEK, db, dbx were measured.
    pub secure_boot_variables: usize,
    /// Digests of all PCR 7 records in order.
    pub pcr7_sequence: Vec<Vec<u8>>,
    /// Digests of the PCR 7 records that decide who could write PCR 11-14.
    pub pcr7_authorities: Vec<Vec<u8>>,
    /// Boot debugging is off.
    pub boot_debugging_off: Fact,
    /// Kernel debugging is off.
    pub kernel_debugging_off: Fact,
    /// Test signing is off.
    pub test_signing_off: Fact,
    /// Hypervisor debugging is off.
    pub hypervisor_debugging_off: Fact,
    /// The hypervisor was launched.
    pub hypervisor_launched: Fact,
    /// Control went to the loader, never to a resumed system.
    pub full_boot: Fact,
    /// VSM was launched.
    pub vsm_launched: Fact,
    /// VBS requires an IOMMU.
    pub iommu_required: Fact,
    /// Hypervisor-enforced code integrity is on.
    pub hypervisor_enforced_ci: Fact,
    /// Hibernation is disabled.
    pub hibernation_disabled: Fact,
    /// Memory dumps are disabled.
    pub dumps_disabled: Fact,
    /// Memory dumps are encrypted.
    pub dumps_encrypted: Fact,
    /// The page file is encrypted.
    pub page_file_encrypted: Fact,
    /// The TPM unlocked the OS volume.
    pub unlocked_by_tpm: Fact,
    /// Digests of dump encryption keys.
    pub dump_keys: Vec<Vec<u8>>,
    /// Code-integrity policies in force (PCR 13), in order, repeats kept.
    pub ci_policies: Vec<MeasuredPolicy>,
    /// True when the log has any tagged event of Windows in PCR 12-14.
    pub is_windows: bool,
    encryption_keys: Vec<Vec<u8>>,
    signing_keys: Vec<Vec<u8>>,
}

/// A measured code-integrity policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeasuredPolicy {
    /// File name; whoever installed the policy chose it, so it identifies nothing.
    pub name: String,
    /// SHA-256 of the policy; none when the event is malformed or of another algorithm.
    pub sha256: Option<[u8; 32]>,
}

/// Why no VSM key can be certified (VirtualSecureModeErrorReply, MS-HGSA 2.2.2.23).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VsmIdentityError {
    /// The log holds none.
    #[error("the log holds no VSM identity key of this kind; enable virtualization-based security")]
    Absent,
    /// It does not parse or is too small.
    #[error(transparent)]
    Key(#[from] vsm::VsmKeyError),
    /// Two different ones.
    #[error("the log holds two different VSM identity keys of one kind")]
    Two,
}

impl Facts {
    pub(crate) fn read(log: &MeasuredLog) -> Facts {
        let tags = |pcr: u8, id: u32| {
            let of = move |(at, tag): &&(u8, Tag)| *at == pcr && tag.id == id;
            log.tags.iter().filter(of).map(|(_, tag)| tag)
        };
        let fact = |id: u32, event: &'static str, expected: &'static str, holds: fn(u64) -> bool| Fact {
            pcr: BOOT_EVENTS,
            event,
            expected,
            seen: tags(BOOT_EVENTS, id).map(|tag| Seen::read(tag, holds)).collect(),
        };
        let on = |id, event| fact(id, event, "true", |value| value == 1);
        let off = |id, event| fact(id, event, "false", |value| value == 0);
        let launched = |id, event| fact(id, event, "not 0", |value| value != 0);
        let bytes = |id: u32| tags(BOOT_EVENTS, id).map(|tag| tag.data.clone()).collect::<Vec<_>>();
        let secure_boot = log
            .pcr7
            .variables
            .iter()
            .filter(|variable| variable.name == "SecureBoot");
        Facts {
            secure_boot: Fact {
                pcr: 7,
                event: "SecureBoot variable",
                expected: "01",
                seen: secure_boot
                    .map(|variable| Seen {
                        value: match variable.data.is_empty() {
                            true => "empty".to_owned(),
                            false => hex::encode(&variable.data),
                        },
                        holds: variable.data == [1],
                    })
                    .collect(),
            },
            secure_boot_variables: log.pcr7.variables.len(),
            pcr7_sequence: log.pcr7.sequence.clone(),
            pcr7_authorities: log.pcr7.authorities.clone(),
            boot_debugging_off: off(id::BOOTDEBUGGING, "BOOTDEBUGGING"),
            kernel_debugging_off: off(id::OSKERNELDEBUG, "OSKERNELDEBUG"),
            test_signing_off: off(id::TESTSIGNING, "TESTSIGNING"),
            hypervisor_debugging_off: off(id::HYPERVISOR_DEBUG, "HYPERVISOR_DEBUG"),
            hypervisor_launched: launched(id::HYPERVISOR_LAUNCH_TYPE, "HYPERVISOR_LAUNCH_TYPE"),
            full_boot: full_boot(fact(
                id::TRANSFER_CONTROL,
                "TRANSFER_CONTROL",
                "1 (loader), then at most 5 (hypervisor)",
                |value| value == transfer::OS_LOADER || value == transfer::HYPERVISOR,
            )),
            vsm_launched: launched(id::VSM_LAUNCH_TYPE, "VSM_LAUNCH_TYPE"),
            iommu_required: on(id::VBS_IOMMU_REQUIRED, "VBS_IOMMU_REQUIRED"),
            hypervisor_enforced_ci: launched(id::VBS_HVCI_POLICY, "VBS_HVCI_POLICY"),
            hibernation_disabled: on(id::HIBERNATION_DISABLED, "HIBERNATION_DISABLED"),
            dumps_disabled: on(id::DUMPS_DISABLED, "DUMPS_DISABLED"),
            dumps_encrypted: on(id::DUMP_ENCRYPTION_ENABLED, "DUMP_ENCRYPTION_ENABLED"),
            page_file_encrypted: on(id::PAGEFILE_ENCRYPTION_ENABLED, "PAGEFILE_ENCRYPTION_ENABLED"),
            unlocked_by_tpm: unlocked_by_tpm(fact(
                id::BITLOCKER_UNLOCK,
                "BITLOCKER_UNLOCK",
                "the TPM flag (0x4), with at most a PIN, at a stage; other stages the same or a cached key (0x1)",
                |flags| {
                    flags & !(unlock::TPM | unlock::PIN | unlock::CACHED) == 0
                        && flags & (unlock::TPM | unlock::CACHED) != 0
                },
            )),
            dump_keys: bytes(id::DUMP_ENCRYPTION_KEY_DIGEST),
            ci_policies: tags(LOADED_MODULES, id::SI_POLICY).map(MeasuredPolicy::read).collect(),
            is_windows: !log.tags.is_empty(),
            encryption_keys: bytes(id::VSM_IDK_INFO),
            signing_keys: bytes(id::VSM_IDKS_INFO),
        }
    }

    /// True when a VSM_IDK_INFO event was measured, whatever it holds.
    pub fn has_vsm_identity_key(&self) -> bool {
        !self.encryption_keys.is_empty()
    }

    /// Whether a debugger or test signing was off at every stage that measured it; none when nothing was measured.
    pub fn debugging_off(&self) -> Option<bool> {
        let values: Vec<bool> = self.debug_facts().iter().filter_map(|fact| fact.value()).collect();
        match values.is_empty() {
            true => None,
            false => Some(values.iter().all(|off| *off)),
        }
    }

    /// The four facts about debuggers and test signing.
    pub fn debug_facts(&self) -> [&Fact; 4] {
        [
            &self.boot_debugging_off,
            &self.kernel_debugging_off,
            &self.test_signing_off,
            &self.hypervisor_debugging_off,
        ]
    }

    pub(crate) fn encryption_key(&self) -> Result<RsaPublicKey, VsmIdentityError> {
        one_key(&self.encryption_keys)
    }

    pub(crate) fn signing_key(&self) -> Result<RsaPublicKey, VsmIdentityError> {
        one_key(&self.signing_keys)
    }
}

impl Seen {
    fn read(tag: &Tag, holds: fn(u64) -> bool) -> Seen {
        match tag.integer() {
            Some(value) => Seen {
                value: match (tag.data.len(), value) {
                    (1, 0) => "false".to_owned(),
                    (1, 1) => "true".to_owned(),
                    _ => format!("0x{value:x}"),
                },
                // A truth value other than 0 and 1 holds for nobody: it is neither on nor off.
                holds: holds(value),
            },
            None => Seen {
                value: format!("malformed ({})", hex::encode(tag.data.get(..16).unwrap_or(&tag.data))),
                holds: false,
            },
        }
    }
}

impl MeasuredPolicy {
    fn read(tag: &Tag) -> MeasuredPolicy {
        match SiPolicy::parse(&tag.data) {
            Some(policy) => MeasuredPolicy {
                sha256: match policy.algorithm == SHA256 {
                    true => policy.digest.try_into().ok(),
                    false => None,
                },
                name: policy.name,
            },
            None => MeasuredPolicy {
                name: "malformed SI_POLICY event".to_owned(),
                sha256: None,
            },
        }
    }
}

impl fmt::Display for MeasuredPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.sha256 {
            Some(digest) => write!(f, "{} (SHA-256 {})", self.name, hex::encode(digest)),
            None => write!(f, "{} (no SHA-256 digest)", self.name),
        }
    }
}

/// A log that shows only the step to the hypervisor does not say how the system was started.
fn full_boot(mut fact: Fact) -> Fact {
    let loader = fact.seen.iter().any(|seen| seen.value == "0x1");
    if fact.value() == Some(true) && !loader {
        fact.seen.clear();
    }
    fact
}

/// Cached keys alone do not say where they came from.
fn unlocked_by_tpm(mut fact: Fact) -> Fact {
    let by_tpm = |seen: &Seen| matches!(seen.value.as_str(), "0x4" | "0x5" | "0x14" | "0x15");
    if !fact.seen.iter().any(by_tpm) {
        fact.seen.iter_mut().for_each(|seen| seen.holds = false);
    }
    fact
}

fn one_key(events: &[Vec<u8>]) -> Result<RsaPublicKey, VsmIdentityError> {
    let mut keys = events.iter().map(|data| vsm::parse_idk_info(data));
    let first = keys.next().ok_or(VsmIdentityError::Absent)??;
    for key in keys {
        if key? != first {
            return Err(VsmIdentityError::Two);
        }
    }
    Ok(first)
}

/// PCR 12: boot events.
const BOOT_EVENTS: u8 = 12;
/// PCR 13: loaded modules and the policies that admit them.
const LOADED_MODULES: u8 = 13;
/// TPM_ALG_SHA256.
const SHA256: u16 = 0x000B;
