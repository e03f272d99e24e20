//! A shielded VM: its files on the shared volume, its vTPM, its disk and its guest.
//!
//! Nothing here talks to a service. The agent moves the files, the VBS store opens them; a
//! transport key appears only in functions that the store (or the owner) calls.

pub mod checkpoint;
pub(crate) mod client;
pub mod command;
pub mod disk;
mod envelope;
pub mod fields;
pub mod guest;
pub mod layout;
pub mod memory;
pub mod offline;
pub mod operation;
pub mod package;
pub mod recovery;
pub mod rekey;
pub mod request;
pub mod security;
pub mod shielded;
pub mod started;
pub mod state;
pub mod view;
pub mod volume;
pub mod vtpm;

use std::fmt;

use hgs_protocol::env::Random;

/// The GUID of a VM. Every sealed blob of the VM carries it in its authenticated header.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct VmId(pub uuid::Uuid);

impl VmId {
    /// A fresh id.
    pub fn random(rng: &mut dyn Random) -> VmId {
        VmId(uuid::Builder::from_random_bytes(rng.bytes()).into_uuid())
    }

    /// The 16 bytes as they stand in headers and key-derivation contexts.
    pub fn bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of a VM, which is also the name of its folder: 1 to 63 of `a-z 0-9 -`, not starting with `-`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmName(String);

/// The text is no VM name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no VM name: use 1 to 63 of a-z, 0-9 and '-', not starting with '-'")]
pub struct VmNameError(String);

impl VmName {
    /// Checks the rule of the type; a name can therefore never leave the volume's folder.
    pub fn parse(text: &str) -> Result<VmName, VmNameError> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if (1..=63).contains(&text.len()) && text.chars().all(allowed) && !text.starts_with('-') {
            Ok(VmName(text.to_owned()))
        } else {
            Err(VmNameError(text.chars().take(80).collect()))
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for VmName {
    type Error = VmNameError;
    fn try_from(text: String) -> Result<VmName, VmNameError> {
        VmName::parse(&text)
    }
}

impl std::str::FromStr for VmName {
    type Err = VmNameError;
    fn from_str(text: &str) -> Result<VmName, VmNameError> {
        VmName::parse(text)
    }
}

impl From<VmName> for String {
    fn from(name: VmName) -> String {
        name.0
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_name_cannot_leave_its_folder() {
        for bad in ["", ".", "..", "a/b", "-x", "A", "a\0", &"a".repeat(64)] {
            assert!(VmName::parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(VmName::parse("payroll-01").unwrap().as_str(), "payroll-01");
        assert!(serde_json::from_str::<VmName>("\"../x\"").is_err());
    }
}
