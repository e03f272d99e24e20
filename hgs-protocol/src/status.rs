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
    /// Every status.
    pub const ALL: [AttestationStatus; 8] = [
        AttestationStatus::NotConfigured,
        AttestationStatus::Unknown,
        AttestationStatus::Passed,
        AttestationStatus::Expired,
        AttestationStatus::TransientError,
        AttestationStatus::UnauthorizedHost,
        AttestationStatus::TpmError,
        AttestationStatus::InsecureHostConfiguration,
    ];

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

/// One bit of AttestationSubstatus. The names are the product's. It documents the numbers 1, 2 and 4; the others are
/// ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SubstatusFlag {
    /// Secure Boot is off, or does not use the Microsoft template.
    SecureBoot,
    /// A debugger or test signing is allowed.
    DebugMode,
    /// No code-integrity policy, or one that the service does not know.
    CodeIntegrityPolicy,
    /// What Secure Boot measured matches no registered TPM baseline.
    SecureBootSettings,
    /// The host was resumed from sleep or hibernation.
    FullBoot,
    /// Virtualization-based security does not run, or its key is not measured.
    VirtualSecureMode,
    /// Virtualization-based security does not require DMA protection.
    Iommu,
    /// The system volume is not encrypted.
    BitLocker,
    /// The page file is not encrypted.
    PagefileEncryption,
    /// The hypervisor does not enforce code integrity.
    HypervisorEnforcedCodeIntegrityPolicy,
    /// Hibernation is possible.
    HibernationEnabled,
    /// Memory dumps are allowed.
    DumpsEnabled,
    /// Memory dumps are allowed and not encrypted.
    DumpEncryption,
    /// Memory dumps are encrypted to a key that the service does not know.
    DumpEncryptionKey,
    /// The boot log is missing, or does not replay to the PCRs.
    TcgLogVerification,
}

impl SubstatusFlag {
    /// Every flag.
    pub const ALL: [SubstatusFlag; 15] = [
        SubstatusFlag::SecureBoot,
        SubstatusFlag::DebugMode,
        SubstatusFlag::CodeIntegrityPolicy,
        SubstatusFlag::SecureBootSettings,
        SubstatusFlag::FullBoot,
        SubstatusFlag::VirtualSecureMode,
        SubstatusFlag::Iommu,
        SubstatusFlag::BitLocker,
        SubstatusFlag::PagefileEncryption,
        SubstatusFlag::HypervisorEnforcedCodeIntegrityPolicy,
        SubstatusFlag::HibernationEnabled,
        SubstatusFlag::DumpsEnabled,
        SubstatusFlag::DumpEncryption,
        SubstatusFlag::DumpEncryptionKey,
        SubstatusFlag::TcgLogVerification,
    ];

    /// The product's name.
    pub const fn name(self) -> &'static str {
        match self {
            SubstatusFlag::SecureBoot => "SecureBoot",
            SubstatusFlag::DebugMode => "DebugMode",
            SubstatusFlag::CodeIntegrityPolicy => "CodeIntegrityPolicy",
            SubstatusFlag::SecureBootSettings => "SecureBootSettings",
            SubstatusFlag::FullBoot => "FullBoot",
            SubstatusFlag::VirtualSecureMode => "VirtualSecureMode",
            SubstatusFlag::Iommu => "Iommu",
            SubstatusFlag::BitLocker => "BitLocker",
            SubstatusFlag::PagefileEncryption => "PagefileEncryption",
            SubstatusFlag::HypervisorEnforcedCodeIntegrityPolicy => "HypervisorEnforcedCodeIntegrityPolicy",
            SubstatusFlag::HibernationEnabled => "HibernationEnabled",
            SubstatusFlag::DumpsEnabled => "DumpsEnabled",
            SubstatusFlag::DumpEncryption => "DumpEncryption",
            SubstatusFlag::DumpEncryptionKey => "DumpEncryptionKey",
            SubstatusFlag::TcgLogVerification => "TcgLogVerification",
        }
    }

    /// Its bit in the field that WMI shows.
    pub const fn number(self) -> u64 {
        match self {
            SubstatusFlag::SecureBoot => 0x1,
            SubstatusFlag::DebugMode => 0x2,
            SubstatusFlag::CodeIntegrityPolicy => 0x4,
            SubstatusFlag::SecureBootSettings => 0x8,
            SubstatusFlag::FullBoot => 0x10,
            SubstatusFlag::VirtualSecureMode => 0x20,
            SubstatusFlag::Iommu => 0x40,
            SubstatusFlag::BitLocker => 0x80,
            SubstatusFlag::PagefileEncryption => 0x100,
            SubstatusFlag::HypervisorEnforcedCodeIntegrityPolicy => 0x200,
            SubstatusFlag::HibernationEnabled => 0x400,
            SubstatusFlag::DumpsEnabled => 0x800,
            SubstatusFlag::DumpEncryption => 0x1000,
            SubstatusFlag::DumpEncryptionKey => 0x2000,
            SubstatusFlag::TcgLogVerification => 0x4000,
        }
    }

    /// Whether the product documents the number; the others were chosen here.
    pub const fn is_number_documented(self) -> bool {
        self.number() <= 4
    }

    /// What an administrator does about it.
    pub const fn remedy(self) -> &'static str {
        match self {
            SubstatusFlag::SecureBoot => "Turn Secure Boot on, with the Microsoft template, and restart.",
            SubstatusFlag::DebugMode => "Turn debugging and test signing off and restart.",
            SubstatusFlag::CodeIntegrityPolicy => {
                "Apply a code-integrity policy, restart, and register the policy with the service."
            }
            SubstatusFlag::SecureBootSettings => "Capture a TPM baseline on this host and register it.",
            SubstatusFlag::FullBoot => "Restart the host.",
            SubstatusFlag::VirtualSecureMode => "Turn virtualization-based security on and restart.",
            SubstatusFlag::Iommu => {
                "Require DMA protection (it needs an IOMMU) and restart, or disable Hgs_IommuEnabled for all hosts."
            }
            SubstatusFlag::BitLocker => "Turn BitLocker on, or disable Hgs_BitLockerEnabled for all hosts.",
            SubstatusFlag::PagefileEncryption => {
                "Encrypt the page file (fsutil behavior set encryptpagingfile 1) and restart."
            }
            SubstatusFlag::HypervisorEnforcedCodeIntegrityPolicy => {
                "Turn hypervisor-enforced code integrity on and restart."
            }
            SubstatusFlag::HibernationEnabled => "Turn hibernation off and restart.",
            SubstatusFlag::DumpsEnabled => {
                "Turn memory dumps off, or disable Hgs_NoDumps for all hosts and encrypt dumps."
            }
            SubstatusFlag::DumpEncryption => "Turn memory dumps off, or encrypt them.",
            SubstatusFlag::DumpEncryptionKey => "Register the dump key with the service, or use a registered one.",
            SubstatusFlag::TcgLogVerification => {
                "Update the firmware, or the boot program of a network boot, and restart."
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
    /// The substatus that its failure sets.
    pub substatus: SubstatusFlag,
}

const fn row(id: Uuid, name: &'static str, substatus: SubstatusFlag) -> PolicyName {
    PolicyName { id, name, substatus }
}

/// The fifteen policies of MS-HGSA 2.2.2.13 with the substatus that each failure sets.
pub const POLICIES: [PolicyName; 15] = [
    row(
        uuid!("6a460ee1-62ea-416f-ae6c-04e29634506d"),
        "SecureBootEnabled",
        SubstatusFlag::SecureBoot,
    ),
    row(
        uuid!("756dc455-9528-479a-a86a-c646417316c9"),
        "SecureBootSettings",
        SubstatusFlag::SecureBootSettings,
    ),
    row(
        uuid!("20188fda-d40b-460d-b078-2e7898a42ae9"),
        "DebugModeUefi",
        SubstatusFlag::DebugMode,
    ),
    row(
        uuid!("81f110ba-53c5-4064-9d64-51029fa24f49"),
        "SystemIntegrityCiKnownGood",
        SubstatusFlag::CodeIntegrityPolicy,
    ),
    row(
        uuid!("75ad09c9-7254-4d00-96f3-3b09d0aaac54"),
        "FullBoot",
        SubstatusFlag::FullBoot,
    ),
    row(
        uuid!("75d595de-12f5-41e9-a61e-469d3205ecca"),
        "VsmIdkPresent",
        SubstatusFlag::VirtualSecureMode,
    ),
    row(
        uuid!("6c0a6d29-5bcb-4f28-bafb-f71eb60fdae0"),
        "VsmRunning",
        SubstatusFlag::VirtualSecureMode,
    ),
    row(
        uuid!("da0776e5-6570-44b3-9a17-7e95b4fc7779"),
        "IommuEnabled",
        SubstatusFlag::Iommu,
    ),
    row(
        uuid!("347da547-d266-4939-bf3d-9ec73a90bdbc"),
        "BitLockerEnabled",
        SubstatusFlag::BitLocker,
    ),
    row(
        uuid!("12df0ee9-b38e-4086-90f8-703d9e7cb878"),
        "PagefileEncryptionEnabled",
        SubstatusFlag::PagefileEncryption,
    ),
    row(
        uuid!("5408bd30-3250-4ac1-a150-c410af756699"),
        "HypervisorEnforcedCiPolicy",
        SubstatusFlag::HypervisorEnforcedCodeIntegrityPolicy,
    ),
    row(
        uuid!("a32022c6-dccd-4bf5-be76-3b5ca1542559"),
        "NoHibernation",
        SubstatusFlag::HibernationEnabled,
    ),
    row(
        uuid!("2a796e36-e918-454f-b610-60f086e8d334"),
        "NoDumps",
        SubstatusFlag::DumpsEnabled,
    ),
    row(
        uuid!("6f390a71-753c-43aa-a326-74e30aedcd9d"),
        "DumpEncryption",
        SubstatusFlag::DumpEncryption,
    ),
    row(
        uuid!("85dac0a4-8ba9-4a7f-a342-211862ce0be8"),
        "DumpEncryptionKey",
        SubstatusFlag::DumpEncryptionKey,
    ),
];

/// AttestationSubstatus: everything that failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Substatus {
    /// What failed, in the order in which it was told; empty for NoInformation.
    pub flags: Vec<SubstatusFlag>,
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
                            out.add(policy.substatus);
                        }
                        None => out.failed_policies.push(reason.reason.to_string()),
                    }
                }
            }
            ErrorKind::TcgLogValidation => out.add(SubstatusFlag::TcgLogVerification),
            ErrorKind::VirtualSecureMode | ErrorKind::VsmReportValidation => out.add(SubstatusFlag::VirtualSecureMode),
            _ => {}
        }
        out
    }

    /// The names joined as the product prints them; `NoInformation` for none.
    pub fn text(&self) -> String {
        match self.flags.is_empty() {
            true => "NoInformation".to_owned(),
            false => self.flags.iter().map(|flag| flag.name()).collect::<Vec<_>>().join(", "),
        }
    }

    /// The bit field that WMI shows.
    pub fn bits(&self) -> u64 {
        self.flags.iter().fold(0, |bits, flag| bits | flag.number())
    }

    fn add(&mut self, flag: SubstatusFlag) {
        if !self.flags.contains(&flag) {
            self.flags.push(flag);
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
        assert_eq!(substatus.text(), "SecureBoot, VirtualSecureMode");
        assert_eq!(substatus.bits(), 0x21);
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
    fn every_flag_has_a_bit_and_a_name_of_its_own() {
        let together = SubstatusFlag::ALL.iter().fold(0, |bits: u64, flag| {
            assert_eq!(flag.number().count_ones(), 1, "{}", flag.name());
            assert_eq!(format!("{flag:?}"), flag.name());
            bits | flag.number()
        });
        assert_eq!(together.count_ones() as usize, SubstatusFlag::ALL.len());
        let documented = SubstatusFlag::ALL.iter().filter(|flag| flag.is_number_documented());
        assert_eq!(documented.map(|flag| flag.number()).sum::<u64>(), 7);
    }

    #[test]
    fn every_policy_has_its_own_id() {
        for (i, one) in POLICIES.iter().enumerate() {
            assert!(POLICIES.iter().skip(i + 1).all(|two| two.id != one.id));
        }
    }
}
