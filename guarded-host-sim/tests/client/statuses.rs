//! Every AttestationStatus and every AttestationSubstatus, each reached by something that happens to a host or its HGS, and
//! left again by undoing it. The table is held against the two enumerations.

use std::fs;

use guarded_host_sim::{
    agent::view::ClientView,
    fabric::host::SimHost,
    machine::{
        control::{Control, ask},
        dials::Dials,
    },
};
use hgs_protocol::status::{AttestationStatus, SubstatusFlag};
use serde_json::json;

use crate::{HOUR, get, look, support::Stage, test};

use AttestationStatus::{
    Expired, InsecureHostConfiguration, NotConfigured, Passed, TpmError, TransientError, UnauthorizedHost, Unknown,
};
use SubstatusFlag::{
    BitLocker, CodeIntegrityPolicy, DebugMode, DumpEncryption, DumpEncryptionKey, DumpsEnabled, FullBoot,
    HibernationEnabled, HypervisorEnforcedCodeIntegrityPolicy, Iommu, PagefileEncryption, SecureBoot,
    SecureBootSettings, TcgLogVerification, VirtualSecureMode,
};

/// What happens.
enum Turn {
    Nothing,
    /// The host restarts with other dials.
    Dials(fn(&mut Dials)),
    /// An administrator of the HGS turns policies on or off for all hosts, and the host restarts with other dials.
    Policies(&'static [(&'static str, bool)], fn(&mut Dials)),
    /// The host's administrator goes to local mode.
    LocalMode,
    /// The host starts while attestation stands still: its first attempt has not ended.
    ServiceStandsStill,
    /// Attestation ends.
    ServiceGone,
    /// The HGS forgets the host.
    Unregistered,
    /// The host's clock runs ahead of its HGS's.
    ClockAhead,
    /// The host's TPM fails.
    TpmFails,
    /// The host's boot log is cut.
    LogCut,
    /// The HGS goes to host-key mode, which the host follows and in which nobody knows it.
    HostKeyMode,
}

type Row = (Turn, AttestationStatus, &'static [SubstatusFlag]);

const TABLE: &[Row] = &[
    (Turn::Nothing, Passed, &[]),
    (Turn::LocalMode, NotConfigured, &[]),
    (Turn::ServiceStandsStill, Unknown, &[]),
    (Turn::ClockAhead, Expired, &[]),
    (Turn::ServiceGone, TransientError, &[]),
    (Turn::HostKeyMode, UnauthorizedHost, &[]),
    (Turn::Unregistered, UnauthorizedHost, &[]),
    (Turn::TpmFails, TpmError, &[]),
    (Turn::LogCut, InsecureHostConfiguration, &[TcgLogVerification]),
    (
        Turn::Dials(|d| d.secure_boot = false),
        InsecureHostConfiguration,
        &[SecureBoot, SecureBootSettings],
    ),
    (
        Turn::Dials(|d| d.omit.extend(["dbx".to_owned()])),
        InsecureHostConfiguration,
        &[SecureBootSettings],
    ),
    (
        Turn::Dials(|d| d.uefi_debug = true),
        InsecureHostConfiguration,
        &[DebugMode],
    ),
    (
        Turn::Dials(|d| d.ci_policy = Some(b"another policy".to_vec())),
        InsecureHostConfiguration,
        &[CodeIntegrityPolicy],
    ),
    (
        Turn::Dials(|d| d.full_boot = false),
        InsecureHostConfiguration,
        &[FullBoot],
    ),
    (
        Turn::Dials(|d| d.vsm = false),
        InsecureHostConfiguration,
        &[VirtualSecureMode, Iommu, HypervisorEnforcedCodeIntegrityPolicy],
    ),
    (Turn::Dials(|d| d.iommu = false), InsecureHostConfiguration, &[Iommu]),
    (
        Turn::Policies(&[("Hgs_BitLockerEnabled", true)], |d| d.bitlocker = false),
        InsecureHostConfiguration,
        &[BitLocker],
    ),
    (
        Turn::Dials(|d| d.pagefile_encryption = false),
        InsecureHostConfiguration,
        &[PagefileEncryption],
    ),
    (
        Turn::Dials(|d| d.hvci = false),
        InsecureHostConfiguration,
        &[HypervisorEnforcedCodeIntegrityPolicy],
    ),
    (
        Turn::Dials(|d| d.hibernation_disabled = false),
        InsecureHostConfiguration,
        &[HibernationEnabled],
    ),
    (
        Turn::Dials(|d| d.dumps_disabled = false),
        InsecureHostConfiguration,
        &[DumpsEnabled, DumpEncryption, DumpEncryptionKey],
    ),
    (
        Turn::Policies(
            &[("Hgs_DumpEncryption", false), ("Hgs_DumpEncryptionKey", false)],
            |d| {
                d.dumps_disabled = false;
            },
        ),
        InsecureHostConfiguration,
        &[DumpsEnabled],
    ),
    (
        Turn::Policies(&[("Hgs_NoDumps", false), ("Hgs_DumpEncryptionKey", false)], |d| {
            d.dumps_disabled = false;
        }),
        InsecureHostConfiguration,
        &[DumpEncryption],
    ),
    (
        Turn::Policies(&[("Hgs_NoDumps", false)], |d| {
            (d.dumps_disabled, d.dump_encryption) = (false, true);
            d.dump_encryption_key = Some(vec![7; 32]);
        }),
        InsecureHostConfiguration,
        &[DumpEncryptionKey],
    ),
    // Several at once, of one bit field.
    (
        Turn::Dials(|d| (d.test_signing, d.pagefile_encryption, d.full_boot) = (true, false, false)),
        InsecureHostConfiguration,
        &[DebugMode, FullBoot, PagefileEncryption],
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_status_and_substatus_is_reached_and_left_again() {
    // A host boots, and attests, as often as it can.
    let (mut stage, mut hosts) = Stage::set_with(&["host01"], &[("HGS_REQUESTS_PER_MINUTE_PER_KEY", "10000")]).await;
    let mut host = hosts.remove(0);
    let urls = look(&host).await;
    let mut seen = (Vec::new(), Vec::new());
    for (number, (turn, status, flags)) in TABLE.iter().enumerate() {
        let view = turn.take(&mut stage, &mut host).await;
        check(&format!("row {number}"), &view, *status, flags);
        seen.0.push(view.attestation_status);
        seen.1.extend(view.flags.iter().map(|flag| flag.name.clone()));

        turn.undo(&mut stage, &mut host, &urls).await;
        let view = test(&host).await;
        check(&format!("after row {number}"), &view, Passed, &[]);
    }
    for status in AttestationStatus::ALL {
        assert!(seen.0.contains(&status), "no row reaches {status:?}");
    }
    for flag in SubstatusFlag::ALL {
        assert!(
            seen.1.iter().any(|name| name == flag.name()),
            "no row reaches {}",
            flag.name()
        );
    }
}

/// Status, substatus and their numbers, in each form in which the host shows them.
fn check(row: &str, view: &ClientView, status: AttestationStatus, flags: &[SubstatusFlag]) {
    assert_eq!(view.attestation_status, status, "{row}: {view:?}");
    assert_eq!(view.attestation_status_code, status.code(), "{row}");
    assert_eq!(view.is_host_guarded, status == Passed, "{row}: {view:?}");
    let shown: Vec<&str> = view.flags.iter().map(|flag| flag.name.as_str()).collect();
    let mut expected: Vec<&str> = flags.iter().map(|flag| flag.name()).collect();
    let text = if shown.is_empty() {
        "NoInformation".to_owned()
    } else {
        shown.join(", ")
    };
    assert_eq!(view.attestation_substatus, text, "{row}");
    let mut sorted = shown.clone();
    sorted.sort_unstable();
    expected.sort_unstable();
    assert_eq!(sorted, expected, "{row}: {view:?}");
    let bits = flags.iter().map(|flag| flag.number()).sum::<u64>();
    assert_eq!(view.attestation_substatus_bits, bits, "{row}");
    for flag in &view.flags {
        assert_eq!(flag.documented, flag.number <= 4, "{row}: {flag:?}");
    }
    assert_eq!(view.remedy.is_empty(), status == Passed, "{row}: {}", view.remedy);
}

impl Turn {
    /// Lets it happen, and asks the host as its administrator would.
    async fn take(&self, stage: &mut Stage, host: &mut SimHost) -> ClientView {
        let with = |turn: fn(&mut Dials)| {
            let mut dials = Dials::default();
            turn(&mut dials);
            dials
        };
        match self {
            Turn::Nothing => get(host).await,
            Turn::Dials(turn) => {
                host.reboot(with(*turn)).unwrap();
                get(host).await
            }
            Turn::Policies(switches, turn) => {
                switch(stage, switches, true).await;
                host.reboot(with(*turn)).unwrap();
                get(host).await
            }
            Turn::LocalMode => {
                let change = json!({ "EnableLocalMode": true });
                host.put("client-configuration", &change).await.unwrap().unwrap()
            }
            Turn::ServiceStandsStill => {
                signal(stage, rustix::process::Signal::STOP);
                host.reboot(Dials::default()).unwrap();
                look(host).await
            }
            Turn::ServiceGone => {
                stage.hgs.attestation.kill().unwrap();
                test(host).await
            }
            Turn::Unregistered => {
                stage.hgs.attestation.admin_delete("tpm-hosts/host01").await.unwrap();
                test(host).await
            }
            Turn::ClockAhead => {
                host.advance_clock(9 * HOUR).await.unwrap();
                get(host).await
            }
            Turn::TpmFails => {
                let reply = ask(&host.folder().join("machine.sock"), &Control::FailTpm).unwrap();
                assert!(reply.ok, "{reply:?}");
                test(host).await
            }
            Turn::LogCut => {
                let log = host.folder().join("agent/boot.log");
                let bytes = fs::read(&log).unwrap();
                fs::write(&log, &bytes[..bytes.len() / 2]).unwrap();
                test(host).await
            }
            Turn::HostKeyMode => {
                mode(stage, "HostKey").await;
                let view = test(host).await;
                assert_eq!(view.attestation_operation_mode, "HostKey");
                view
            }
        }
    }

    /// Undoes it. A host that runs on is not restarted where that is not needed.
    async fn undo(&self, stage: &mut Stage, host: &mut SimHost, urls: &ClientView) {
        match self {
            Turn::Nothing => {}
            Turn::Dials(_) | Turn::TpmFails | Turn::LogCut | Turn::ClockAhead => host.reboot(Dials::default()).unwrap(),
            Turn::Policies(switches, _) => {
                switch(stage, switches, false).await;
                host.reboot(Dials::default()).unwrap();
            }
            Turn::LocalMode => {
                let change = json!({
                    "AttestationServerUrl": urls.attestation_server_url,
                    "KeyProtectionServerUrl": urls.key_protection_server_url,
                });
                let _: ClientView = host.put("client-configuration", &change).await.unwrap().unwrap();
            }
            Turn::ServiceStandsStill => signal(stage, rustix::process::Signal::CONT),
            Turn::ServiceGone => stage.hgs.attestation.restart().unwrap(),
            Turn::Unregistered => {
                let ek = host.artefact("ek.cer").await.unwrap();
                stage.hgs.register_host("host01", &ek).await.unwrap();
            }
            Turn::HostKeyMode => mode(stage, "Tpm").await,
        }
    }
}

async fn mode(stage: &Stage, mode: &str) {
    let attestation = &stage.hgs.attestation;
    attestation
        .admin_put("operation-mode", &json!({ "mode": mode }))
        .await
        .unwrap();
}

/// Turns each policy as it says, or the other way round.
async fn switch(stage: &Stage, switches: &[(&str, bool)], as_told: bool) {
    for (policy, on) in switches {
        let verb = if *on == as_told { "enable" } else { "disable" };
        let path = format!("policies/{policy}/{verb}");
        stage.hgs.attestation.admin_post(&path, &json!({})).await.unwrap();
    }
}

/// Lets the attestation service's process stand still, or go on.
fn signal(stage: &Stage, signal: rustix::process::Signal) {
    let id = stage.hgs.attestation.process_id().unwrap();
    let id = rustix::process::Pid::from_raw(id.try_into().unwrap()).unwrap();
    rustix::process::kill_process(id, signal).unwrap();
}
