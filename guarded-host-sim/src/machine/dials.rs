//! What a lab can set on a machine before it boots: each dial ends in an event of the boot log,
//! and thus in a PCR. Nothing else distinguishes two machines of the same model.

use std::{collections::BTreeSet, fmt, path::PathBuf, str::FromStr};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::ek_certificate::EkCertificate;

/// The configuration of a machine; the default is a host that passes every policy whose baseline
/// is registered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dials {
    /// Version of the firmware. Another one is another machine to whoever sealed to PCR 0; no baseline holds it.
    pub firmware: String,
    /// UEFI Secure Boot is on.
    pub secure_boot: bool,
    /// Which list of revoked signatures (dbx) the firmware holds, by name.
    pub dbx: String,
    /// Who signed the boot manager, as PCR 7 records it: `Microsoft` or a name of one's own.
    pub boot_authority: String,
    /// Kernel debugging is on.
    pub uefi_debug: bool,
    /// Boot debugging is on.
    pub boot_debugging: bool,
    /// Hypervisor debugging is on.
    pub hypervisor_debug: bool,
    /// Test-signed code is accepted.
    pub test_signing: bool,
    /// Virtual secure mode runs. Without it there is no VBS store.
    pub vsm: bool,
    /// The hypervisor enforces code integrity.
    pub hvci: bool,
    /// The code-integrity policy in force, if any (base64).
    #[serde(serialize_with = "write_base64", deserialize_with = "read_base64")]
    pub ci_policy: Option<Vec<u8>>,
    /// VBS requires DMA protection.
    pub iommu: bool,
    /// BitLocker protects the system volume and the TPM unlocked it.
    pub bitlocker: bool,
    /// The page file is encrypted.
    pub pagefile_encryption: bool,
    /// Hibernation is off.
    pub hibernation_disabled: bool,
    /// Memory dumps are off.
    pub dumps_disabled: bool,
    /// Memory dumps are encrypted.
    pub dump_encryption: bool,
    /// Public key to which dumps are encrypted, if any (base64).
    #[serde(serialize_with = "write_base64", deserialize_with = "read_base64")]
    pub dump_encryption_key: Option<Vec<u8>>,
    /// A full start, not a resume from hibernation.
    pub full_boot: bool,
    /// Which EK certificate the host shows.
    pub ek_certificate: EkCertificate,
    /// By how much the host's clock is wrong: the time that its agent goes by. Nothing measures it.
    pub clock_skew: Skew,
    /// What the machine leaves out of log and PCRs, though it happened: Secure Boot variables
    /// (`SecureBoot`, `PK`, `KEK`, `db`, `dbx`) and tagged events (`OSKERNELDEBUG`, ...) by name. No
    /// real machine does so; a lab sees with it what a check makes of something never measured.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub omit: BTreeSet<String>,
    /// The machine has the shape of a real one: this is its boot log. Such a host has new VSM keys at
    /// each boot, since what its store could be sealed to depends on the order of that log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<TemplateDial>,
}

/// A real machine's boot log as the shape of this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplateDial {
    /// The log; a path that is not there is looked for below the directory in `LAB_CORPUS`.
    pub file: PathBuf,
    /// Which of the other dials change it.
    #[serde(default)]
    pub dials: AppliedDials,
}

/// Which dials are applied to a template.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum AppliedDials {
    /// Those that differ from a healthy host's; everything else is as the machine measured it.
    #[default]
    Changed,
    /// All: what the machine measured otherwise is overwritten, what it did not measure is added.
    All,
}

impl Default for Dials {
    fn default() -> Dials {
        Dials {
            firmware: "HGS-SIM-1.0".to_owned(),
            secure_boot: true,
            dbx: "the lab's year".to_owned(),
            boot_authority: "Microsoft".to_owned(),
            uefi_debug: false,
            boot_debugging: false,
            hypervisor_debug: false,
            test_signing: false,
            vsm: true,
            hvci: true,
            ci_policy: Some(DEFAULT_CI_POLICY.to_vec()),
            iommu: true,
            bitlocker: true,
            pagefile_encryption: true,
            hibernation_disabled: true,
            dumps_disabled: true,
            dump_encryption: false,
            dump_encryption_key: None,
            full_boot: true,
            ek_certificate: EkCertificate::Issued,
            clock_skew: Skew::default(),
            omit: BTreeSet::new(),
            template: None,
        }
    }
}

/// By how much a clock is wrong, written `9h`, `-15m`, `2d`, `90s` or `0s`; before zero it is behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skew(pub i64);

/// Why a text is no [`Skew`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a clock is wrong by a number with s, m, h or d behind it, and - before it when the clock is behind: 9h, -15m")]
pub struct NoSkew;

impl FromStr for Skew {
    type Err = NoSkew;

    fn from_str(text: &str) -> Result<Skew, NoSkew> {
        let (number, of) = UNITS
            .iter()
            .find_map(|(unit, of)| Some((text.strip_suffix(unit)?, *of)))
            .ok_or(NoSkew)?;
        let number: i64 = number.parse().map_err(|_| NoSkew)?;
        number.checked_mul(of).map(Skew).ok_or(NoSkew)
    }
}

impl fmt::Display for Skew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = UNITS.iter().find(|(_, of)| self.0 != 0 && self.0 % of == 0);
        let (unit, of) = whole.copied().unwrap_or(("s", 1));
        write!(f, "{}{unit}", self.0 / of)
    }
}

impl Serialize for Skew {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Skew {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Skew, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

fn write_base64<S: Serializer>(bytes: &Option<Vec<u8>>, to: S) -> Result<S::Ok, S::Error> {
    bytes.as_ref().map(|b| BASE64_STANDARD.encode(b)).serialize(to)
}

fn read_base64<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<u8>>, D::Error> {
    let decode = |text: String| BASE64_STANDARD.decode(text).map_err(D::Error::custom);
    Option::<String>::deserialize(from)?.map(decode).transpose()
}

/// Units of a [`Skew`] with their seconds, the largest first.
const UNITS: [(&str, i64); 4] = [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];
/// Stands for the policy that a lab's hosts share until it sets another.
const DEFAULT_CI_POLICY: &[u8] = b"simulated code-integrity policy of the lab, version 1";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dials_are_written_and_read_and_unknown_ones_refused() {
        let dials = Dials {
            secure_boot: false,
            dump_encryption_key: Some(vec![1, 2]),
            ..Dials::default()
        };
        let json = serde_json::to_string(&dials).unwrap();
        assert_eq!(serde_json::from_str::<Dials>(&json).unwrap(), dials);
        assert_eq!(serde_json::from_str::<Dials>("{}").unwrap(), Dials::default());
        assert!(serde_json::from_str::<Dials>(r#"{"secure_boat":true}"#).is_err());
    }

    #[test]
    fn a_skew_is_written_as_people_write_it() {
        for (text, seconds) in [("0s", 0), ("90s", 90), ("15m", 900), ("-9h", -32_400), ("2d", 172_800)] {
            assert_eq!(text.parse(), Ok(Skew(seconds)), "{text}");
            assert_eq!(Skew(seconds).to_string(), text);
        }
        for text in ["", "9", "h", "1.5h", "--1h", "9223372036854775807d", "1w"] {
            assert_eq!(text.parse::<Skew>(), Err(NoSkew), "{text}");
        }
    }
}
