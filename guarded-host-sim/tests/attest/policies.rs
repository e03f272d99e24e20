//! Each of the fifteen policies with a host that passes it, one that fails it and one whose log does
//! not say: the reply on the wire, the record, and what the host then says of itself.

use std::collections::BTreeSet;

use attestation::policy::POLICIES;
use guarded_host_sim::machine::dials::Dials;
use hgs_protocol::{
    crypto::sha256,
    wire::hgsa::{ErrorKind, Reply},
};
use serde_json::{Value, json};

use crate::lab::Service;

type Change = fn(&mut Dials);

/// A host and what it costs it.
struct Case {
    change: Change,
    /// Every policy that fails, in the order of the specification.
    failed: &'static [&'static str],
    substatus: &'static str,
}

/// One policy. A host that fails it, or does not measure it, may fail others with it.
struct Row {
    policy: &'static str,
    passing: Change,
    failing: Case,
    unmeasured: Case,
}

const TABLE: &[Row] = &[
    Row {
        policy: "SecureBootEnabled",
        passing: |_| {},
        failing: Case {
            change: |d| d.secure_boot = false,
            failed: &["SecureBootEnabled", "SecureBootSettings"],
            substatus: "SecureBoot, SecureBootSettings",
        },
        unmeasured: Case {
            change: |d| omit(d, &["SecureBoot"]),
            failed: &["SecureBootEnabled", "SecureBootSettings"],
            substatus: "SecureBoot, SecureBootSettings",
        },
    },
    Row {
        policy: "SecureBootSettings",
        passing: |_| {},
        failing: Case {
            change: |d| omit(d, &["dbx"]),
            failed: &["SecureBootSettings"],
            substatus: "SecureBootSettings",
        },
        unmeasured: Case {
            change: |d| omit(d, &["SecureBoot", "PK", "KEK", "db", "dbx"]),
            failed: &["SecureBootEnabled", "SecureBootSettings"],
            substatus: "SecureBoot, SecureBootSettings",
        },
    },
    Row {
        policy: "DebugModeUefi",
        passing: |_| {},
        failing: Case {
            change: |d| d.uefi_debug = true,
            failed: &["DebugModeUefi"],
            substatus: "DebugMode",
        },
        unmeasured: Case {
            change: |d| omit(d, &["OSKERNELDEBUG"]),
            failed: &["DebugModeUefi"],
            substatus: "DebugMode",
        },
    },
    Row {
        policy: "SystemIntegrityCiKnownGood",
        passing: |_| {},
        failing: Case {
            change: |d| d.ci_policy = Some(b"another policy".to_vec()),
            failed: &["SystemIntegrityCiKnownGood"],
            substatus: "CodeIntegrityPolicy",
        },
        unmeasured: Case {
            change: |d| omit(d, &["SI_POLICY"]),
            failed: &["SystemIntegrityCiKnownGood"],
            substatus: "CodeIntegrityPolicy",
        },
    },
    Row {
        policy: "FullBoot",
        passing: |_| {},
        failing: Case {
            change: |d| d.full_boot = false,
            failed: &["FullBoot"],
            substatus: "FullBoot",
        },
        unmeasured: Case {
            change: |d| omit(d, &["TRANSFER_CONTROL"]),
            failed: &["FullBoot"],
            substatus: "FullBoot",
        },
    },
    Row {
        policy: "VsmIdkPresent",
        passing: |_| {},
        failing: NO_VSM,
        unmeasured: Case {
            change: |d| omit(d, &["VSM_IDK_INFO"]),
            failed: &["VsmIdkPresent"],
            substatus: "VirtualSecureMode",
        },
    },
    Row {
        policy: "VsmRunning",
        passing: |_| {},
        failing: NO_VSM,
        unmeasured: Case {
            change: |d| omit(d, &["VSM_LAUNCH_TYPE"]),
            failed: &["VsmRunning"],
            substatus: "VirtualSecureMode",
        },
    },
    Row {
        policy: "IommuEnabled",
        passing: |_| {},
        failing: Case {
            change: |d| d.iommu = false,
            failed: &["IommuEnabled"],
            substatus: "Iommu",
        },
        unmeasured: Case {
            change: |d| omit(d, &["VBS_IOMMU_REQUIRED"]),
            failed: &["IommuEnabled"],
            substatus: "Iommu",
        },
    },
    Row {
        policy: "BitLockerEnabled",
        passing: |_| {},
        failing: Case {
            change: |d| d.bitlocker = false,
            failed: &["BitLockerEnabled"],
            substatus: "BitLocker",
        },
        unmeasured: Case {
            change: |d| omit(d, &["BITLOCKER_UNLOCK"]),
            failed: &["BitLockerEnabled"],
            substatus: "BitLocker",
        },
    },
    Row {
        policy: "PagefileEncryptionEnabled",
        passing: |_| {},
        failing: Case {
            change: |d| d.pagefile_encryption = false,
            failed: &["PagefileEncryptionEnabled"],
            substatus: "PagefileEncryption",
        },
        unmeasured: Case {
            change: |d| omit(d, &["PAGEFILE_ENCRYPTION_ENABLED"]),
            failed: &["PagefileEncryptionEnabled"],
            substatus: "PagefileEncryption",
        },
    },
    Row {
        policy: "HypervisorEnforcedCiPolicy",
        passing: |_| {},
        failing: Case {
            change: |d| d.hvci = false,
            failed: &["HypervisorEnforcedCiPolicy"],
            substatus: "HypervisorEnforcedCodeIntegrityPolicy",
        },
        unmeasured: Case {
            change: |d| omit(d, &["VBS_HVCI_POLICY"]),
            failed: &["HypervisorEnforcedCiPolicy"],
            substatus: "HypervisorEnforcedCodeIntegrityPolicy",
        },
    },
    Row {
        policy: "NoHibernation",
        passing: |_| {},
        failing: Case {
            change: |d| d.hibernation_disabled = false,
            failed: &["NoHibernation"],
            substatus: "HibernationEnabled",
        },
        unmeasured: Case {
            change: |d| omit(d, &["HIBERNATION_DISABLED"]),
            failed: &["NoHibernation"],
            substatus: "HibernationEnabled",
        },
    },
    Row {
        policy: "NoDumps",
        passing: |_| {},
        failing: Case {
            change: |d| d.dumps_disabled = false,
            failed: &["NoDumps", "DumpEncryption", "DumpEncryptionKey"],
            substatus: "DumpsEnabled, DumpEncryption, DumpEncryptionKey",
        },
        unmeasured: Case {
            change: |d| omit(d, &["DUMPS_DISABLED", "DUMP_ENCRYPTION_ENABLED"]),
            failed: &["NoDumps", "DumpEncryption", "DumpEncryptionKey"],
            substatus: "DumpsEnabled, DumpEncryption, DumpEncryptionKey",
        },
    },
    // From here on dumps are allowed.
    Row {
        policy: "DumpEncryption",
        passing: dumps_encrypted,
        failing: Case {
            change: |d| {
                dumps_encrypted(d);
                d.dump_encryption = false;
            },
            failed: &["DumpEncryption"],
            substatus: "DumpEncryption",
        },
        unmeasured: Case {
            change: |d| {
                dumps_encrypted(d);
                omit(d, &["DUMP_ENCRYPTION_ENABLED"]);
            },
            failed: &["DumpEncryption"],
            substatus: "DumpEncryption",
        },
    },
    Row {
        policy: "DumpEncryptionKey",
        passing: dumps_encrypted,
        failing: Case {
            change: |d| {
                dumps_encrypted(d);
                d.dump_encryption_key = Some(b"a key that nobody registered".to_vec());
            },
            failed: &["DumpEncryptionKey"],
            substatus: "DumpEncryptionKey",
        },
        unmeasured: Case {
            change: |d| {
                dumps_encrypted(d);
                d.dump_encryption_key = None;
            },
            failed: &["DumpEncryptionKey"],
            substatus: "DumpEncryptionKey",
        },
    },
];

const NO_VSM: Case = Case {
    change: |d| d.vsm = false,
    failed: &[
        "VsmIdkPresent",
        "VsmRunning",
        "IommuEnabled",
        "HypervisorEnforcedCiPolicy",
    ],
    substatus: "VirtualSecureMode, Iommu, HypervisorEnforcedCodeIntegrityPolicy",
};

const DUMP_KEY: &[u8] = b"the dump key of the lab";

fn dumps_encrypted(dials: &mut Dials) {
    (dials.dumps_disabled, dials.dump_encryption) = (false, true);
    dials.dump_encryption_key = Some(DUMP_KEY.to_vec());
}

fn omit(dials: &mut Dials, names: &[&str]) {
    dials.omit = names.iter().map(|name| (*name).to_owned()).collect();
}

#[actix_web::test]
async fn every_policy_passes_fails_and_is_not_measured() {
    let names: Vec<&str> = TABLE.iter().map(|row| row.policy).collect();
    let known: Vec<&str> = POLICIES.iter().map(|policy| policy.name).collect();
    assert_eq!(names, known, "one row for each policy");

    let Some(service) = Service::start("every_policy_passes_fails_and_is_not_measured").await else {
        return;
    };
    // One TPM may start only so many exchanges a minute, so the rows take turns on three.
    let hosts = [("host01", "v2.0"), ("host02", "v1.0"), ("host03", "v2.0")]
        .map(|(name, protocol)| (name, service.host(name, protocol, &[])));
    service.trust_tpm_maker().await;
    for (name, host) in &hosts {
        service.register_ek(name, &host.read("agent/ek.cer")).await;
    }
    let model = &hosts[0].1;
    service
        .register("tpm-baselines", "model", &model.read("agent/boot.log"))
        .await;
    service
        .register("ci-policies", "model", &model.read("agent/SIPolicy.p7b"))
        .await;
    service.admin("policies/Hgs_BitLockerEnabled/enable", json!({})).await;

    let dump_key = json!({ "name": "lab", "sha256": hex::encode(sha256(DUMP_KEY)) });
    service.admin("dump-keys", dump_key).await;

    let mut serials = BTreeSet::new();
    for (turn, row) in TABLE.iter().enumerate() {
        let host = &hosts[turn % hosts.len()].1;
        let policy = POLICIES.iter().find(|policy| policy.name == row.policy).unwrap();
        if row.policy == "DumpEncryption" {
            service.admin("policies/Hgs_NoDumps/disable", json!({})).await;
        }

        let mut dials = Dials::default();
        (row.passing)(&mut dials);
        host.reboot(&dials);
        let passed = host.attest().await;
        assert_eq!(passed["AttestationStatus"], "Passed", "{}: {passed}", row.policy);
        assert_eq!(passed["AttestationSubstatus"], "NoInformation", "{}", row.policy);
        assert!(matches!(service.last_reply(), Reply::HealthCertificate { .. }));
        assert_eq!(verdict(&service, row.policy).await, "pass", "{}", row.policy);
        let serial = passed["certificate"]["serial"].as_str().unwrap();
        assert!(
            serials.insert(serial.to_owned()),
            "{}: a certificate of its own",
            row.policy
        );

        for (case, expected) in [(&row.failing, "fail"), (&row.unmeasured, "not measured")] {
            let named = format!("{}, {expected}", row.policy);
            let mut dials = Dials::default();
            (case.change)(&mut dials);
            host.reboot(&dials);
            let refused = host.attest().await;
            let Reply::Error { kind, retryable } = service.last_reply() else {
                panic!("{named}: passed");
            };
            let ErrorKind::PolicyEvaluation(reasons) = kind else {
                panic!("{named}: {}", kind.name());
            };
            assert!(!retryable, "{named}");
            assert!(reasons.iter().all(|reason| !reason.result), "{named}");
            assert!(reasons.iter().any(|reason| reason.reason == policy.id.0), "{named}");
            let id = |name: &&str| POLICIES.iter().find(|policy| policy.name == *name).unwrap().id.0;
            let failed: Vec<_> = case.failed.iter().map(id).collect();
            assert_eq!(
                reasons.iter().map(|reason| reason.reason).collect::<Vec<_>>(),
                failed,
                "{named}"
            );
            assert_eq!(verdict(&service, row.policy).await, expected, "{named}");
            assert_eq!(
                refused["AttestationStatus"], "InsecureHostConfiguration",
                "{named}: {refused}"
            );
            assert_eq!(refused["AttestationSubstatus"], case.substatus, "{named}: {refused}");
            assert_eq!(refused["certificate"], Value::Null, "{named}");
        }
    }
}

/// What the service recorded of one policy at the last decision.
async fn verdict(service: &Service, policy: &str) -> String {
    let record = service.last_record().await;
    let verdicts = record["verdicts"].as_array().unwrap();
    let found = verdicts.iter().find(|verdict| verdict["policy"] == policy);
    found.unwrap()["verdict"].as_str().unwrap().to_owned()
}
