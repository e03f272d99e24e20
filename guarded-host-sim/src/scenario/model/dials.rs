//! A host's dials as a scenario file sets them: those that it names, in words a person writes. A test
//! holds the names against [`Dials`].

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::machine::{
    dials::{Dials, Skew},
    ek_certificate::EkCertificate,
};

/// What is otherwise; a dial that is not named stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DialChanges {
    /// Version of the firmware.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firmware: Option<String>,
    /// UEFI Secure Boot is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secure_boot: Option<bool>,
    /// Which list of revoked signatures (dbx) the firmware holds, by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dbx: Option<String>,
    /// Who signed the boot manager, as PCR 7 records it; `Microsoft` on a healthy host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_authority: Option<String>,
    /// Kernel debugging is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uefi_debug: Option<bool>,
    /// Boot debugging is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_debugging: Option<bool>,
    /// Hypervisor debugging is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hypervisor_debug: Option<bool>,
    /// Test-signed code is accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_signing: Option<bool>,
    /// Virtual secure mode runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsm: Option<bool>,
    /// The hypervisor enforces code integrity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hvci: Option<bool>,
    /// Text that stands for the code-integrity policy; empty for a host without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ci_policy: Option<String>,
    /// VBS requires DMA protection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iommu: Option<bool>,
    /// BitLocker protects the system volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bitlocker: Option<bool>,
    /// The page file is encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pagefile_encryption: Option<bool>,
    /// Hibernation is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hibernation_disabled: Option<bool>,
    /// Memory dumps are off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dumps_disabled: Option<bool>,
    /// Memory dumps are encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dump_encryption: Option<bool>,
    /// Text that stands for the public key to which dumps are encrypted; empty for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dump_encryption_key: Option<String>,
    /// A full start, not a resume from hibernation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_boot: Option<bool>,
    /// Which EK certificate the host shows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ek_certificate: Option<ShownEkCertificate>,
    /// By how much the host's clock is wrong from then on: `9h` ahead, `-15m` behind. A lab's own moves come on top.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("pattern" = "^-?[0-9]+[smhd]$"))]
    pub clock_skew: Option<Skew>,
    /// What the machine leaves out of log and PCRs, by name: `SecureBoot`, `OSKERNELDEBUG`. No real machine does so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub omit: Option<BTreeSet<String>>,
}

/// Which EK certificate a host shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ShownEkCertificate {
    /// The one that the TPM's maker issued.
    Issued,
    /// One of the same maker that ended in 2020.
    Expired,
    /// One of a maker that no administrator has heard of.
    UnknownVendor,
    /// None.
    Missing,
}

impl DialChanges {
    /// True when nothing is otherwise.
    pub fn is_empty(&self) -> bool {
        *self == DialChanges::default()
    }

    /// `dials` with these changes.
    pub fn apply(&self, mut dials: Dials) -> Dials {
        let flags = [
            (&mut dials.secure_boot, self.secure_boot),
            (&mut dials.uefi_debug, self.uefi_debug),
            (&mut dials.boot_debugging, self.boot_debugging),
            (&mut dials.hypervisor_debug, self.hypervisor_debug),
            (&mut dials.test_signing, self.test_signing),
            (&mut dials.vsm, self.vsm),
            (&mut dials.hvci, self.hvci),
            (&mut dials.iommu, self.iommu),
            (&mut dials.bitlocker, self.bitlocker),
            (&mut dials.pagefile_encryption, self.pagefile_encryption),
            (&mut dials.hibernation_disabled, self.hibernation_disabled),
            (&mut dials.dumps_disabled, self.dumps_disabled),
            (&mut dials.dump_encryption, self.dump_encryption),
            (&mut dials.full_boot, self.full_boot),
        ];
        for (dial, change) in flags {
            *dial = change.unwrap_or(*dial);
        }
        let bytes = |text: &String| (!text.is_empty()).then(|| text.clone().into_bytes());
        let names = [
            (&mut dials.firmware, &self.firmware),
            (&mut dials.dbx, &self.dbx),
            (&mut dials.boot_authority, &self.boot_authority),
        ];
        for (dial, change) in names {
            if let Some(change) = change {
                dial.clone_from(change);
            }
        }
        dials.clock_skew = self.clock_skew.unwrap_or(dials.clock_skew);
        if let Some(policy) = &self.ci_policy {
            dials.ci_policy = bytes(policy);
        }
        if let Some(key) = &self.dump_encryption_key {
            dials.dump_encryption_key = bytes(key);
        }
        if let Some(names) = &self.omit {
            dials.omit.clone_from(names);
        }
        if let Some(shown) = self.ek_certificate {
            dials.ek_certificate = match shown {
                ShownEkCertificate::Issued => EkCertificate::Issued,
                ShownEkCertificate::Expired => EkCertificate::Expired,
                ShownEkCertificate::UnknownVendor => EkCertificate::UnknownVendor,
                ShownEkCertificate::Missing => EkCertificate::Missing,
            };
        }
        dials
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// Every dial, each away from a healthy host's.
    const ALL: &str = r#"
        firmware = "2.0"
        secure_boot = false
        dbx = "another"
        boot_authority = "Contoso"
        uefi_debug = true
        boot_debugging = true
        hypervisor_debug = true
        test_signing = true
        vsm = false
        hvci = false
        ci_policy = "another"
        iommu = false
        bitlocker = false
        pagefile_encryption = false
        hibernation_disabled = false
        dumps_disabled = false
        dump_encryption = true
        dump_encryption_key = "key"
        full_boot = false
        ek_certificate = "missing"
        clock_skew = "-9h"
        omit = ["SecureBoot"]
    "#;

    #[test]
    fn every_dial_of_a_host_can_be_set_and_does_something() {
        let changes: DialChanges = toml::from_str(ALL).unwrap();
        let (before, after) = (Dials::default(), changes.apply(Dials::default()));
        let as_map = |dials: &Dials| match serde_json::to_value(dials).unwrap() {
            Value::Object(map) => map,
            other => panic!("{other}"),
        };
        let (before, after) = (as_map(&before), as_map(&after));
        for (name, value) in &after {
            assert_ne!(before.get(name), Some(value), "{name} was not changed");
        }
        let written = serde_json::to_value(&changes).unwrap();
        assert_eq!(
            written.as_object().unwrap().keys().collect::<BTreeSet<_>>(),
            after.keys().collect::<BTreeSet<_>>()
        );
    }

    #[test]
    fn what_is_not_named_stays() {
        let changes: DialChanges = toml::from_str("ci_policy = \"\"").unwrap();
        let healthy = Dials {
            secure_boot: false,
            ..Dials::default()
        };
        let after = changes.apply(healthy);
        assert_eq!((after.secure_boot, after.ci_policy), (false, None));
        assert!(DialChanges::default().is_empty() && !changes.is_empty());
    }
}
