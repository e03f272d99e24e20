//! Hosts in the shape of real machines, and hosts with other EK certificates, against the service.

use std::{collections::BTreeSet, fs, path::PathBuf};

use attestation::policy::POLICIES;
use guarded_host_sim::{
    machine::{
        dials::{AppliedDials, Dials, TemplateDial},
        ek_certificate::EkCertificate,
    },
    tpm_channel::TpmChannel,
};
use hgs_protocol::wire::boot_log::{Bank, BootLog, Event, EventType};
use serde_json::json;

use crate::{
    forgery::exchange,
    lab::{Host, Lab, Service},
};

/// A machine of the gallery and what it fails when nothing of it is changed.
struct Exhibit {
    log: &'static str,
    /// Policies in the order of the specification; every policy that reads PCR 11-14 where no
    /// authority was measured.
    fails: &'static [&'static str],
}

const WINDOWS: &[Exhibit] = &[
    Exhibit {
        // Secure Boot is off, so no authority was measured and PCR 11-14 prove nothing.
        log: "dell-latitude7520-win10-vbs-hvci-nosecureboot.log",
        fails: ALL_ENABLED,
    },
    Exhibit {
        log: "dell-notebook-win10-5logs-resume.0.log",
        fails: ALL_ENABLED,
    },
    Exhibit {
        log: "dell-notebook-win10-5logs-resume.4.log",
        fails: ALL_ENABLED,
    },
    Exhibit {
        log: "gcp-shielded-vm-server.log",
        fails: &[
            "SystemIntegrityCiKnownGood",
            "VsmIdkPresent",
            "VsmRunning",
            "IommuEnabled",
            "PagefileEncryptionEnabled",
            "HypervisorEnforcedCiPolicy",
            "NoHibernation",
            "NoDumps",
            "DumpEncryption",
            "DumpEncryptionKey",
        ],
    },
    Exhibit {
        // VSM runs, so the host's VSM keys are measured though the template had none.
        log: "lenovo-x1carbon3-tpm12-credentialguard.log",
        fails: &[
            "SystemIntegrityCiKnownGood",
            "IommuEnabled",
            "PagefileEncryptionEnabled",
            "HypervisorEnforcedCiPolicy",
            "NoHibernation",
            "NoDumps",
            "DumpEncryption",
            "DumpEncryptionKey",
        ],
    },
    Exhibit {
        log: "supermicro-server2022-quoted-aik.log",
        fails: &[
            "SecureBootEnabled",
            "SecureBootSettings",
            "SystemIntegrityCiKnownGood",
            "VsmIdkPresent",
            "VsmRunning",
            "IommuEnabled",
            "PagefileEncryptionEnabled",
            "HypervisorEnforcedCiPolicy",
            "NoHibernation",
            "NoDumps",
            "DumpEncryption",
            "DumpEncryptionKey",
        ],
    },
];

const ALL_ENABLED: &[&str] = &[
    "SecureBootEnabled",
    "SecureBootSettings",
    "DebugModeUefi",
    "SystemIntegrityCiKnownGood",
    "FullBoot",
    "VsmIdkPresent",
    "VsmRunning",
    "IommuEnabled",
    "PagefileEncryptionEnabled",
    "HypervisorEnforcedCiPolicy",
    "NoHibernation",
    "NoDumps",
    "DumpEncryption",
    "DumpEncryptionKey",
];

/// Logs of other systems: they replay to their TPM and yet prove nothing of Windows.
const OTHERS: &[(&str, &str)] = &[
    ("arch-linux-workstation.bin", NOT_CAPPED),
    ("cos-93-amd-sev.bin", AUTHORITY),
    ("debian-10.bin", AUTHORITY),
    ("event-moklisttrusted.bin", NOT_CAPPED),
    ("gdc-host.bin", NOT_CAPPED),
    ("thinkpad-gentoo-good.log", NOT_CAPPED),
    ("ubuntu_2104_shielded_vm_no_secure_boot_eventlog.bin", NOT_CAPPED),
];

const NOT_CAPPED: &str = "PCR 12 is not capped";
/// Some firmware measures less of an authority than it logs.
const AUTHORITY: &str = "(PCR 7) is not the hash of its data";

fn corpus(test: &str) -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/corpus");
    let root = std::env::var_os("LAB_CORPUS").map_or_else(|| PathBuf::from(beside), PathBuf::from);
    let there = root.join("expectations.json").exists();
    if !there {
        eprintln!("SKIPPED {test}: no corpus of real logs (set LAB_CORPUS)");
    }
    there.then_some(root)
}

fn shaped(file: PathBuf, dials: AppliedDials) -> Dials {
    Dials {
        template: Some(TemplateDial { file, dials }),
        ..Dials::default()
    }
}

/// Registers what the host shows now, under a name of its own.
async fn register_model(service: &Service, host: &Host, name: &str) {
    service
        .register("tpm-baselines", name, &host.read("agent/boot.log"))
        .await;
}

#[actix_web::test]
async fn hosts_boot_in_the_shape_of_real_machines() {
    let test = "hosts_boot_in_the_shape_of_real_machines";
    let Some(corpus) = corpus(test) else { return };
    let Some(service) = Service::start(test).await else {
        return;
    };
    let hosts =
        [("host01", "v2.0"), ("host02", "v1.0")].map(|(name, version)| (name, service.host(name, version, &[])));
    service.trust_tpm_maker().await;
    for (name, host) in &hosts {
        service.register_ek(name, &host.read("agent/ek.cer")).await;
    }
    let policy = hosts[0].1.read("agent/SIPolicy.p7b");
    service.register("ci-policies", "model", &policy).await;
    let mut keys = BTreeSet::new();
    for (turn, exhibit) in WINDOWS.iter().enumerate() {
        let host = &hosts[turn % 2].1;
        let file = corpus.join("windows").join(exhibit.log);

        // As the machine was, held against its own baseline.
        host.reboot(&shaped(file.clone(), AppliedDials::Changed));
        let shown = host.read("agent/boot.log");
        same_shape(exhibit.log, &fs::read(&file).unwrap(), &shown);
        register_model(&service, host, &format!("{} as it was", exhibit.log)).await;
        let refused = host.attest().await;
        assert_eq!(
            refused["failed_policies"],
            json!(exhibit.fails),
            "{}: {refused}",
            exhibit.log
        );

        // The same machine put in order passes, with new VSM keys at each boot.
        for boot in 0..2 {
            let reply = host.reboot(&shaped(file.clone(), AppliedDials::All));
            let said = reply
                .remarks
                .iter()
                .any(|remark| remark.contains("new VSM keys at every boot"));
            assert!(said, "{}: {:?}", exhibit.log, reply.remarks);
            if boot == 0 {
                register_model(&service, host, &format!("{} in order", exhibit.log)).await;
            }
            let passed = host.attest().await;
            assert_eq!(passed["AttestationStatus"], "Passed", "{}: {passed}", exhibit.log);
            assert!(
                keys.insert(vsm_keys(&host.read("agent/boot.log"))),
                "{}: old keys",
                exhibit.log
            );
        }

        // And fails what a dial then turns.
        let mut dials = shaped(file, AppliedDials::All);
        dials.hypervisor_debug = true;
        host.reboot(&dials);
        let refused = host.attest().await;
        assert_eq!(
            refused["failed_policies"],
            json!(["DebugModeUefi"]),
            "{}: {refused}",
            exhibit.log
        );
    }
    assert!(
        WINDOWS
            .iter()
            .all(|e| e.fails.iter().all(|name| POLICIES.iter().any(|p| p.name == *name)))
    );

    // Back to a machine of its own: the store opens again with keys that last.
    let host = &hosts[0].1;
    host.reboot(&Dials::default());
    let first = vsm_keys(&host.read("agent/boot.log"));
    host.reboot(&Dials::default());
    assert_eq!(vsm_keys(&host.read("agent/boot.log")), first);
    assert!(keys.insert(first));
}

#[actix_web::test]
async fn machines_without_windows_prove_nothing() {
    let test = "machines_without_windows_prove_nothing";
    let Some(corpus) = corpus(test) else { return };
    let Some(lab) = Lab::new(test, "v2.0").await else {
        return;
    };
    lab.register().await;
    for (name, expected) in OTHERS {
        lab.reboot(&shaped(corpus.join("uefi").join(name), AppliedDials::Changed));
        // The agent would try such a verdict three times.
        let mut tpm = TpmChannel::connect(&lab.file("run/tpm-agent"), "host01").unwrap();
        let (certificate, log) = (lab.read("agent/ek.cer"), lab.read("agent/boot.log"));
        let reply = exchange(&lab.service.attest_url(), &certificate, &mut tpm, &log, None).await;
        assert_eq!(reply.name(), "TcgLogValidationErrorReply", "{name}");
        let cause = lab.service.last_record().await["reason"].as_str().unwrap().to_owned();
        assert!(cause.contains(expected), "{name}: {cause}");
    }
    let mut dials = Dials::default();
    for file in [corpus.join("README.md"), corpus.join("no such file")] {
        dials.template = Some(TemplateDial {
            file,
            dials: AppliedDials::Changed,
        });
        let reply = lab.try_reboot(&dials);
        assert!(
            !reply.ok && reply.message.starts_with("not rebooted"),
            "{}",
            reply.message
        );
    }
    lab.reboot(&Dials::default());
    assert_eq!(lab.attest().await["AttestationStatus"], "Passed");
}

#[actix_web::test]
async fn each_ek_certificate_is_taken_or_refused_with_its_reason() {
    let Some(lab) = Lab::new("each_ek_certificate_is_taken_or_refused_with_its_reason", "v2.0").await else {
        return;
    };
    lab.service.trust_tpm_maker().await;
    let with = |ek_certificate| Dials {
        ek_certificate,
        ..Dials::default()
    };
    for (certificate, reason) in [
        (EkCertificate::Expired, "expired at 2020-01-01T00:00:00Z"),
        (EkCertificate::UnknownVendor, "trusted"),
    ] {
        lab.reboot(&with(certificate));
        let shown = lab.read("agent/ek.cer");
        let (status, text) = lab.service.try_register_ek("host01", &shown).await;
        assert_eq!(status, 400, "{certificate:?}: {text}");
        assert!(text.contains(reason), "{certificate:?}: {text}");
        lab.reboot(&with(certificate));
        assert_eq!(
            lab.read("agent/ek.cer"),
            shown,
            "{certificate:?}: the same at every boot"
        );
    }
    // Once its root is trusted, an unknown vendor is a known one.
    lab.service.trust("fabrikam", &lab.read("agent/ek-vendor.cer")).await;
    let shown = lab.read("agent/ek.cer");
    let (status, text) = lab.service.try_register_ek("host01", &shown).await;
    assert_eq!(status, 201, "{text}");
    lab.register_models().await;
    assert_eq!(lab.attest().await["AttestationStatus"], "Passed");

    // The registered key is the identity, whichever certificate shows it, and also without one.
    for certificate in [EkCertificate::Issued, EkCertificate::Expired, EkCertificate::Missing] {
        lab.reboot(&with(certificate));
        assert_eq!(lab.file("agent/ek.cer").exists(), certificate != EkCertificate::Missing);
        assert_eq!(lab.attest().await["AttestationStatus"], "Passed", "{certificate:?}");
    }
}

/// Every measured event of the template stands in the host's log, in its order, under the same type;
/// only additions come between. Where the template has a SHA-256 digest and no key or counter was
/// substituted, it is the same digest.
fn same_shape(name: &str, template: &[u8], host: &[u8]) {
    let (template, host) = (BootLog::parse(template).unwrap(), BootLog::parse(host).unwrap());
    let measured = |log: &BootLog| -> Vec<Event> { log.events().iter().filter(|e| e.is_measured()).cloned().collect() };
    let (template, host) = (measured(&template), measured(&host));
    let mut rest = host.iter();
    let mut changed = 0;
    for event in &template {
        let alike = |other: &&Event| other.pcr == event.pcr && other.event_type == event.event_type;
        let found = rest.find(|other| alike(other));
        let found = found.unwrap_or_else(|| panic!("{name}: the record at byte {} is gone", event.offset));
        if event
            .digest(Bank::Sha256)
            .is_some_and(|digest| found.digest(Bank::Sha256) != Some(digest))
        {
            changed += 1;
            assert_eq!((event.pcr, event.event_type), (12, EventType::EVENT_TAG), "{name}");
        }
    }
    assert!(changed <= 2, "{name}: {changed} records changed");
    assert!(
        host.len() <= template.len() + 1,
        "{name}: at most the VSM keys are added"
    );
}

/// Both VSM keys of a log.
fn vsm_keys(log: &[u8]) -> Vec<u8> {
    use hgs_protocol::wire::sipa::{id, measured_leaves};
    let log = BootLog::parse(log).unwrap();
    let tagged = log
        .events()
        .iter()
        .filter(|event| event.pcr == 12 && event.event_type == EventType::EVENT_TAG);
    let tags = tagged.flat_map(|event| measured_leaves(&event.data).unwrap());
    let keys: Vec<Vec<u8>> = tags
        .filter(|tag| [id::VSM_IDK_INFO, id::VSM_IDKS_INFO].contains(&tag.id))
        .map(|tag| tag.data)
        .collect();
    assert_eq!(keys.len(), 2);
    keys.concat()
}
