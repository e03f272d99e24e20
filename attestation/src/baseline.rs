//! What an administrator registered and hosts are held against: TPM baselines, code-integrity
//! policies, dump keys; and which built-in policies are switched off. Judges no host.

use std::collections::BTreeSet;

use hgs_protocol::{
    crypto,
    wire::boot_log::{Bank, BootLog},
};
use serde::{Deserialize, Serialize};

use crate::{
    facts::Facts,
    policy::SWITCHES,
    replay::{MeasuredLog, TcgLogError},
};

/// A TPM baseline: PCR 7 of a class of machines, from the `.tcglog` file of one of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TpmBaseline {
    /// The administrator's name for it.
    pub name: String,
    #[serde(with = "hex_list")]
    sequence: Vec<Vec<u8>>,
    #[serde(with = "hex_list")]
    authorities: Vec<Vec<u8>>,
    #[serde(with = "hex_list")]
    block_lists: Vec<Vec<u8>>,
}

impl TpmBaseline {
    /// From a boot log (`.tcglog`, SHA-256 bank). The log is trusted as the administrator's own capture:
    /// it is not proven against a TPM, but must keep the rules of [`crate::replay`].
    pub fn from_log(name: impl Into<String>, bytes: &[u8]) -> Result<TpmBaseline, TcgLogError> {
        let log = BootLog::parse(bytes)?;
        if !log.banks().contains(&Bank::Sha256) {
            return Err(TcgLogError::NoSha256Bank);
        }
        let mut measured = MeasuredLog::read(&log, Bank::Sha256);
        if !measured.violations.is_empty() {
            return Err(measured.violations.swap_remove(0));
        }
        let facts = Facts::read(&measured);
        // Windows installs its driver block list beside any policy of the administrator. It only
        // forbids, so it may be in force next to a registered policy but never stands for one.
        let block_lists = facts
            .ci_policies
            .iter()
            .filter(|policy| policy.name.eq_ignore_ascii_case(BLOCK_LIST));
        Ok(TpmBaseline {
            name: name.into(),
            block_lists: block_lists.filter_map(|policy| policy.sha256.map(Vec::from)).collect(),
            sequence: facts.pcr7_sequence,
            authorities: facts.pcr7_authorities,
        })
    }

    /// SHA-256 over the PCR 7 digests in order: equal for baselines that accept the same hosts.
    pub fn digest(&self) -> [u8; 32] {
        crypto::sha256(&self.sequence.concat())
    }
}

/// A registered code-integrity policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CiPolicy {
    /// The administrator's name for it.
    pub name: String,
    /// SHA-256 of the policy, as SI_POLICY events measure it.
    #[serde(with = "hex_digest")]
    pub sha256: [u8; 32],
}

impl CiPolicy {
    /// From the bytes of an unsigned policy file (`.p7b`, `.bin`).
    pub fn from_file(name: impl Into<String>, bytes: &[u8]) -> CiPolicy {
        let sha256 = crypto::sha256(bytes);
        CiPolicy {
            name: name.into(),
            sha256,
        }
    }
}

/// A registered dump encryption key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpKey {
    /// The administrator's name for it.
    pub name: String,
    /// SHA-256 of the public key.
    #[serde(with = "hex_digest")]
    pub sha256: [u8; 32],
}

/// Everything registered that policies compare with.
#[derive(Clone, Debug, Default)]
pub struct Baselines {
    /// TPM baselines.
    pub tpm: Vec<TpmBaseline>,
    /// Code-integrity policies.
    pub ci_policies: Vec<CiPolicy>,
    /// Dump encryption keys.
    pub dump_keys: Vec<DumpKey>,
}

impl Baselines {
    /// The baseline whose whole PCR 7 sequence is that of `facts`.
    pub fn matching_pcr7(&self, facts: &Facts) -> Option<&TpmBaseline> {
        self.tpm
            .iter()
            .find(|baseline| baseline.sequence == facts.pcr7_sequence)
    }

    /// The first baseline with the same authorities. A host without any authority matches none: nothing
    /// says which boot manager wrote its PCR 11-14.
    pub fn matching_authorities(&self, facts: &Facts) -> Option<&TpmBaseline> {
        let some = !facts.pcr7_authorities.is_empty();
        let same = |baseline: &&TpmBaseline| some && baseline.authorities == facts.pcr7_authorities;
        self.tpm.iter().find(same)
    }

    /// True when a baseline's machine had this block list in force.
    pub(crate) fn is_block_list(&self, sha256: &[u8; 32]) -> bool {
        let has = |baseline: &TpmBaseline| baseline.block_lists.iter().any(|digest| digest == sha256);
        self.tpm.iter().any(has)
    }
}

/// Which built-in policies are enabled. All but BitLocker at first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switches {
    disabled: BTreeSet<&'static str>,
}

impl Default for Switches {
    fn default() -> Switches {
        let off = SWITCHES.iter().filter(|switch| !switch.enabled_at_first);
        Switches {
            disabled: off.map(|switch| switch.name).collect(),
        }
    }
}

/// Why a switch cannot be moved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SwitchError {
    /// No such policy.
    #[error("there is no built-in policy named {0}")]
    Unknown(String),
    /// Locked policies stay enabled.
    #[error("{0} is locked and cannot be disabled")]
    Locked(&'static str),
}

impl Switches {
    /// Enables or disables one `Hgs_*` policy; names compare without case, as cmdlets do.
    pub fn set(&mut self, name: &str, enabled: bool) -> Result<(), SwitchError> {
        let switch = SWITCHES.iter().find(|switch| switch.name.eq_ignore_ascii_case(name));
        let switch = switch.ok_or_else(|| SwitchError::Unknown(name.to_owned()))?;
        match enabled {
            true => self.disabled.remove(switch.name),
            false if switch.locked => return Err(SwitchError::Locked(switch.name)),
            false => self.disabled.insert(switch.name),
        };
        Ok(())
    }

    /// Whether a policy is enabled, by the exact name.
    pub fn is_enabled(&self, name: &str) -> bool {
        !self.disabled.contains(name)
    }

    /// The names that are disabled.
    pub fn disabled(&self) -> impl Iterator<Item = &'static str> {
        self.disabled.iter().copied()
    }
}

mod hex_digest {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(digest: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(digest))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let mut digest = [0; 32];
        let text = String::deserialize(deserializer)?;
        hex::decode_to_slice(text, &mut digest).map_err(D::Error::custom)?;
        Ok(digest)
    }
}

mod hex_list {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(list: &[Vec<u8>], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(list.iter().map(hex::encode))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Vec<u8>>, D::Error> {
        let list: Vec<String> = Vec::deserialize(deserializer)?;
        list.iter()
            .map(|text| hex::decode(text).map_err(D::Error::custom))
            .collect()
    }
}

/// File name of the driver block list that Windows brings.
const BLOCK_LIST: &str = "DriverSiPolicy.p7b";
