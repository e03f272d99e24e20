//! What each dial of the machine costs, and what an agent gains who measures events of its own.

use std::fs;

use guarded_host_sim::{machine::dials::Dials, tpm_channel::TpmChannel};
use hgs_protocol::{
    tpm::command,
    wire::{
        boot_log::{BootLog, BootLogBuilder, PcrIndex},
        sipa::{Tag, id},
    },
};
use serde_json::{Value, json};

use crate::lab::Lab;

#[actix_web::test]
async fn each_dial_fails_exactly_its_own_policies() {
    let Some(lab) = Lab::new("each_dial_fails_exactly_its_own_policies", "v2.0").await else {
        return;
    };
    assert_eq!(lab.attest().await["AttestationStatus"], "UnauthorizedHost");
    lab.register().await;
    let passed = lab.attest().await;
    assert_eq!(passed["AttestationStatus"], "Passed", "{passed}");
    assert!(passed["certificate"]["serial"].is_string());

    type Change = fn(&mut Dials);
    let cases: [(Change, &[&str], &str); 13] = [
        (
            |d| d.secure_boot = false,
            &["SecureBootEnabled", "SecureBootSettings"],
            "SecureBoot, SecureBootSettings",
        ),
        (
            |d| d.dbx = "the year after".to_owned(),
            &["SecureBootSettings"],
            "SecureBootSettings",
        ),
        (|d| d.uefi_debug = true, &["DebugModeUefi"], "DebugMode"),
        (|d| d.hypervisor_debug = true, &["DebugModeUefi"], "DebugMode"),
        (|d| d.test_signing = true, &["DebugModeUefi"], "DebugMode"),
        (
            |d| d.ci_policy = Some(vec![1]),
            &["SystemIntegrityCiKnownGood"],
            "CodeIntegrityPolicy",
        ),
        (
            |d| d.hvci = false,
            &["HypervisorEnforcedCiPolicy"],
            "HypervisorEnforcedCodeIntegrityPolicy",
        ),
        (|d| d.iommu = false, &["IommuEnabled"], "Iommu"),
        (
            |d| d.vsm = false,
            &[
                "VsmIdkPresent",
                "VsmRunning",
                "IommuEnabled",
                "HypervisorEnforcedCiPolicy",
            ],
            "VirtualSecureMode, Iommu, HypervisorEnforcedCodeIntegrityPolicy",
        ),
        (
            |d| d.pagefile_encryption = false,
            &["PagefileEncryptionEnabled"],
            "PagefileEncryption",
        ),
        (
            |d| d.hibernation_disabled = false,
            &["NoHibernation"],
            "HibernationEnabled",
        ),
        (
            |d| (d.dumps_disabled, d.dump_encryption) = (false, true),
            &["NoDumps", "DumpEncryptionKey"],
            "DumpsEnabled, DumpEncryptionKey",
        ),
        (|d| d.full_boot = false, &["FullBoot"], "FullBoot"),
    ];
    for (change, policies, substatus) in cases {
        let mut dials = Dials::default();
        change(&mut dials);
        lab.reboot(&dials);
        let refused = lab.attest().await;
        assert_eq!(refused["error"], "PolicyEvaluationErrorReply", "{refused}");
        assert_eq!(refused["failed_policies"], json!(policies), "{refused}");
        assert_eq!(refused["AttestationSubstatus"], substatus);
        assert_eq!(refused["certificate"], Value::Null);
    }
    // New firmware is measured where no baseline looks.
    for firmware in ["HGS-SIM-2.0".to_owned(), Dials::default().firmware] {
        lab.reboot(&Dials {
            firmware,
            ..Dials::default()
        });
        assert_eq!(lab.attest().await["AttestationStatus"], "Passed");
    }
}

#[actix_web::test]
async fn an_agent_that_measures_after_the_boot_is_refused() {
    let Some(lab) = Lab::new("an_agent_that_measures_after_the_boot_is_refused", "v1.0").await else {
        return;
    };
    lab.register().await;
    assert_eq!(lab.attest().await["AttestationStatus"], "Passed");

    // The agent puts another policy into its log and into the TPM, after the cap.
    let log = fs::read(lab.file("agent/boot.log")).unwrap();
    let mut forged = BootLogBuilder::new(3);
    let pcr = PcrIndex::new(12).unwrap();
    let digest = forged.tagged(pcr, [Tag::boolean(id::OSKERNELDEBUG, false)]);
    let extend = command::pcr_extend(12, &digest);
    let mut tpm = TpmChannel::connect(&lab.file("run/tpm-agent"), "host01").unwrap();
    tpm.call_with_empty_password(&extend).unwrap();
    let refused = lab.attest().await;
    assert_eq!(
        refused["error"], "TcgLogValidationErrorReply",
        "without the event in the log"
    );
    assert_eq!(refused["AttestationSubstatus"], "TcgLogVerification");

    let bytes = forged.finish();
    let record = BootLog::parse(&bytes).unwrap().events().last().unwrap().offset;
    fs::write(lab.file("agent/boot.log"), [log.as_slice(), &bytes[record..]].concat()).unwrap();
    let refused = lab.attest().await;
    assert_eq!(
        refused["error"], "TcgLogValidationErrorReply",
        "with the event in the log"
    );

    // Only a power cycle cleans the TPM, and that one measures the truth.
    lab.reboot(&Dials::default());
    assert_eq!(lab.attest().await["AttestationStatus"], "Passed");
}
