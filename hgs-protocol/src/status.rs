//! What an error reply means for a host, in the words of Get-HgsClientConfiguration: the host shows it and
//! the attestation service records it, so both read this one table. Substatus numbers above 4 are ours:
//! the product documents only 1, 2 and 4.

use serde::{Deserialize, Serialize};
use uuid::{Uuid, uuid};

use crate::wire::hgsa::ErrorKind;

/// AttestationStatus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AttestationStatus {
    /// 0: no attestation service is configured.
    NotConfigured,
    /// 1: no attempt yet.
    Unknown,
    /// 100: passed, and the certificate is valid.
    Passed,
    /// 200: passed before; the certificate has expired.
    Expired,
    /// 300: try again: network or service.
    TransientError,
    /// 301: the host's identity is not known to the service.
    UnauthorizedHost,
    /// 302: the TPM.
    TpmError,
    /// 303: policies failed; see the substatus.
    InsecureHostConfiguration,
}

impl AttestationStatus {
    /// The number that WMI shows.
    pub fn code(self) -> u16 {
        match self {
            AttestationStatus::NotConfigured => 0,
            AttestationStatus::Unknown => 1,
            AttestationStatus::Passed => 100,
            AttestationStatus::Expired => 200,
            AttestationStatus::TransientError => 300,
            AttestationStatus::UnauthorizedHost => 301,
            AttestationStatus::TpmError => 302,
            AttestationStatus::InsecureHostConfiguration => 303,
        }
    }

    /// What an administrator does about it.
    pub fn remedy(self) -> &'static str {
        match self {
            AttestationStatus::NotConfigured => "Set the URLs with Set-HgsClientConfiguration.",
            AttestationStatus::Unknown => "Let the host attest.",
            AttestationStatus::Passed => "",
            AttestationStatus::Expired => "Compare the clocks of host and service, then let the host attest again.",
            AttestationStatus::TransientError => "Try again; check name resolution, route and operation mode.",
            AttestationStatus::UnauthorizedHost => {
                "Register the host: its endorsement key in TPM mode, its host key in host-key mode."
            }
            AttestationStatus::TpmError => "Read the TPM's log; clearing the TPM may help (suspend BitLocker first).",
            AttestationStatus::InsecureHostConfiguration => "See the substatus and the failed policies.",
        }
    }

    /// The status that an error reply means for the host.
    pub fn of_error(kind: &ErrorKind) -> AttestationStatus {
        match kind {
            ErrorKind::Unauthorized => AttestationStatus::UnauthorizedHost,
            ErrorKind::Rtpm => AttestationStatus::TpmError,
            ErrorKind::PolicyEvaluation(_)
            | ErrorKind::TcgLogValidation
            | ErrorKind::VirtualSecureMode
            | ErrorKind::VsmReportValidation => AttestationStatus::InsecureHostConfiguration,
            ErrorKind::Other | ErrorKind::OperationMode(_) | ErrorKind::Payload | ErrorKind::Unavailable => {
                AttestationStatus::TransientError
            }
        }
    }
}

/// A policy as the wire, the specification and the host's substatus know it.
#[derive(Debug)]
pub struct PolicyName {
    /// Its GUID on the wire.
    pub id: Uuid,
    /// Its name in the specification.
    pub name: &'static str,
    /// The name of the substatus that its failure sets.
    pub substatus: &'static str,
    /// The bit of that substatus.
    pub bit: u64,
}

const fn row(id: Uuid, name: &'static str, substatus: &'static str, bit: u64) -> PolicyName {
    PolicyName {
        id,
        name,
        substatus,
        bit,
    }
}

/// The fifteen policies of MS-HGSA 2.2.2.13 with the substatus that each failure sets.
pub const POLICIES: [PolicyName; 15] = [
    row(
        uuid!("6a460ee1-62ea-416f-ae6c-04e29634506d"),
        "SecureBootEnabled",
        "SecureBoot",
        0x1,
    ),
    row(
        uuid!("756dc455-9528-479a-a86a-c646417316c9"),
        "SecureBootSettings",
        "SecureBootSettings",
        0x8,
    ),
    row(
        uuid!("20188fda-d40b-460d-b078-2e7898a42ae9"),
        "DebugModeUefi",
        "DebugMode",
        0x2,
    ),
    row(
        uuid!("81f110ba-53c5-4064-9d64-51029fa24f49"),
        "SystemIntegrityCiKnownGood",
        "CodeIntegrityPolicy",
        0x4,
    ),
    row(
        uuid!("75ad09c9-7254-4d00-96f3-3b09d0aaac54"),
        "FullBoot",
        "FullBoot",
        0x10,
    ),
    row(
        uuid!("75d595de-12f5-41e9-a61e-469d3205ecca"),
        "VsmIdkPresent",
        "VirtualSecureMode",
        0x20,
    ),
    row(
        uuid!("6c0a6d29-5bcb-4f28-bafb-f71eb60fdae0"),
        "VsmRunning",
        "VirtualSecureMode",
        0x20,
    ),
    row(
        uuid!("da0776e5-6570-44b3-9a17-7e95b4fc7779"),
        "IommuEnabled",
        "Iommu",
        0x40,
    ),
    row(
        uuid!("347da547-d266-4939-bf3d-9ec73a90bdbc"),
        "BitLockerEnabled",
        "BitLocker",
        0x80,
    ),
    row(
        uuid!("12df0ee9-b38e-4086-90f8-703d9e7cb878"),
        "PagefileEncryptionEnabled",
        "PagefileEncryption",
        0x100,
    ),
    row(
        uuid!("5408bd30-3250-4ac1-a150-c410af756699"),
        "HypervisorEnforcedCiPolicy",
        "HypervisorEnforcedCodeIntegrityPolicy",
        0x200,
    ),
    row(
        uuid!("a32022c6-dccd-4bf5-be76-3b5ca1542559"),
        "NoHibernation",
        "HibernationEnabled",
        0x400,
    ),
    row(
        uuid!("2a796e36-e918-454f-b610-60f086e8d334"),
        "NoDumps",
        "DumpsEnabled",
        0x800,
    ),
    row(
        uuid!("6f390a71-753c-43aa-a326-74e30aedcd9d"),
        "DumpEncryption",
        "DumpEncryption",
        0x1000,
    ),
    row(
        uuid!("85dac0a4-8ba9-4a7f-a342-211862ce0be8"),
        "DumpEncryptionKey",
        "DumpEncryptionKey",
        0x2000,
    ),
];

const TCG_LOG: (&str, u64) = ("TcgLogVerification", 0x4000);
const VSM: (&str, u64) = ("VirtualSecureMode", 0x20);

/// AttestationSubstatus: names and bits of everything that failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Substatus {
    /// Names; empty for NoInformation.
    pub names: Vec<String>,
    /// The bit field.
    pub bits: u64,
    /// The failed policies under the specification's names.
    pub failed_policies: Vec<String>,
}

impl Substatus {
    /// What an error reply says about the host.
    pub fn of_error(kind: &ErrorKind) -> Substatus {
        let mut out = Substatus::default();
        match kind {
            ErrorKind::PolicyEvaluation(reasons) => {
                for reason in reasons.iter().filter(|r| !r.result) {
                    match POLICIES.iter().find(|p| p.id == reason.reason) {
                        Some(policy) => {
                            out.failed_policies.push(policy.name.to_owned());
                            out.add((policy.substatus, policy.bit));
                        }
                        None => out.failed_policies.push(reason.reason.to_string()),
                    }
                }
            }
            ErrorKind::TcgLogValidation => out.add(TCG_LOG),
            ErrorKind::VirtualSecureMode | ErrorKind::VsmReportValidation => out.add(VSM),
            _ => {}
        }
        out
    }

    /// The names joined as WMI shows them; `NoInformation` for none.
    pub fn text(&self) -> String {
        match self.names.is_empty() {
            true => "NoInformation".to_owned(),
            false => self.names.join(", "),
        }
    }

    fn add(&mut self, (name, bit): (&str, u64)) {
        self.bits |= bit;
        if !self.names.iter().any(|n| n == name) {
            self.names.push(name.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::wire::hgsa::EvaluationLog;

    use super::*;

    #[test]
    fn failed_policies_become_the_substatus() {
        let reasons = [0, 5, 6]
            .map(|i: usize| EvaluationLog {
                reason: POLICIES[i].id,
                result: false,
            })
            .to_vec();
        let kind = ErrorKind::PolicyEvaluation(reasons);
        let substatus = Substatus::of_error(&kind);
        assert_eq!(substatus.names, ["SecureBoot", "VirtualSecureMode"]);
        assert_eq!(substatus.bits, 0x21);
        assert_eq!(
            substatus.failed_policies,
            ["SecureBootEnabled", "VsmIdkPresent", "VsmRunning"]
        );
        assert_eq!(
            AttestationStatus::of_error(&kind),
            AttestationStatus::InsecureHostConfiguration
        );
    }

    #[test]
    fn every_policy_has_its_own_id() {
        for (i, one) in POLICIES.iter().enumerate() {
            assert!(POLICIES.iter().skip(i + 1).all(|two| two.id != one.id));
        }
    }
}
