//! Starts without contact: as many as the KPS allowed in the answer that only a holder of the key can
//! make, counted by the store in a state that the TPM ages.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;

use guarded_host_sim::{
    commit_point::COMMIT_POINTS, fabric::host::SimHost, machine::dials::Dials, vm::operation::PoweredOn,
};
use serde_json::{Value, json};
use support::{Stage, processes_of, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_starts_without_contact_as_often_as_the_kps_allowed() {
    let (mut stage, mut hosts) = Stage::set(&["host01"]).await;
    let mut host = hosts.remove(0);

    // The host raises the wish in the protector, which nobody signs. The KPS allows none.
    stage.wish_offline_starts(9);
    assert_eq!(on(&stage, &host).await, (false, 0));
    off(&stage, &host).await;
    stage.hgs.kps.kill().unwrap();
    let refused = start(&stage, &host).await.unwrap_err();
    assert!(
        refused.contains("no contact with the Host Guardian Service"),
        "{refused}"
    );
    assert!(refused.contains("the key protection service allowed none"), "{refused}");

    // The KPS allows two. The count outlives the host's processes.
    stage.hgs.kps.restart().unwrap();
    allow(&stage, 2).await;
    assert_eq!(on(&stage, &host).await, (false, 2));
    off(&stage, &host).await;
    stage.hgs.kps.kill().unwrap();
    let before = stage.current();
    assert_eq!(on(&stage, &host).await, (true, 1));
    assert_eq!(stage.current().generation.number(), before.generation.number());
    off(&stage, &host).await;
    host.kill().unwrap();
    host = stage.restart("host01", None);
    assert_eq!(on(&stage, &host).await, (true, 0));
    off(&stage, &host).await;
    let used_up = "all 2 offline starts";
    let refused = start(&stage, &host).await.unwrap_err();
    assert!(refused.contains(used_up), "{refused}");

    // What the protector wishes is of no account here.
    stage.wish_offline_starts(99);
    let refused = start(&stage, &host).await.unwrap_err();
    assert!(refused.contains(used_up), "{refused}");

    // A start with contact counts anew, up to the KPS's limit and no further.
    stage.hgs.kps.restart().unwrap();
    assert_eq!(on(&stage, &host).await, (false, 2));
    off(&stage, &host).await;

    // A KPS that refuses is obeyed: it no longer takes the signer's certificates.
    deny_certificates(&stage, Some(4_102_444_800)).await;
    let refused = start(&stage, &host).await.unwrap_err();
    assert!(refused.contains("HealthCertificateException"), "{refused}");
    deny_certificates(&stage, None).await;

    // Nothing of the HGS answers, and the host has no certificate at hand.
    stage.hgs.kps.kill().unwrap();
    stage.hgs.attestation.kill().unwrap();
    host.kill().unwrap();
    host = stage.restart("host01", None);
    assert_eq!(on(&stage, &host).await, (true, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_copy_gives_no_start_back() {
    let (mut stage, mut hosts) = Stage::set(&["host01"]).await;
    let mut host = hosts.remove(0);
    allow(&stage, 3).await;
    stage.wish_offline_starts(3);
    assert_eq!(on(&stage, &host).await, (false, 3));
    off(&stage, &host).await;
    stage.hgs.kps.kill().unwrap();

    // Of the VM's files: the state from before an offline start does not start again.
    let rolled = stage.files();
    assert_eq!(on(&stage, &host).await, (true, 2));
    off(&stage, &host).await;
    let newest = stage.files();
    for (path, bytes) in [newest.0.clone(), newest.1.clone()]
        .iter()
        .zip([&rolled.0.1, &rolled.1.1])
    {
        fs::write(&path.0, bytes).unwrap();
    }
    let refused = start(&stage, &host).await.unwrap_err();
    assert!(refused.contains("has had generation 2.1"), "{refused}");
    for (path, bytes) in [newest.0, newest.1] {
        fs::write(path, bytes).unwrap();
    }

    // Of the store's sealed state: the TPM's counter tells that it is an older one.
    let sealed = host.folder().join("store/state.sealed");
    let kept = fs::read(&sealed).unwrap();
    assert_eq!(on(&stage, &host).await, (true, 1));
    off(&stage, &host).await;
    host.kill().unwrap();
    // A machine is down before its TPM is, whose files are locked until then.
    let folder = host.folder().to_path_buf();
    let down = || wait_until(10, "nothing of the host runs", || processes_of(&folder).is_empty());
    down();
    let counted = fs::read(&sealed).unwrap();
    assert_ne!(kept, counted);
    fs::write(&sealed, kept).unwrap();
    let error = stage
        .fabric
        .restart_host("host01", &stage.hgs, &stage.volume_path, None)
        .err()
        .unwrap();
    down();
    // Which of its words a machine says last is open.
    let log = fs::read_to_string(folder.join("host.log")).unwrap_or_default();
    let store = fs::read_to_string(folder.join("store/store.log")).unwrap_or_default();
    let told = format!("{error:#}\n{log}\n{store}");
    assert!(told.contains("not the newest one"), "{told}");
    fs::write(&sealed, counted).unwrap();
    host = stage.restart("host01", None);
    assert_eq!(on(&stage, &host).await, (true, 0));
    off(&stage, &host).await;
    assert!(start(&stage, &host).await.unwrap_err().contains("all 3 offline starts"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_of_another_configuration_starts_nothing_offline() {
    let (mut stage, mut hosts) = Stage::set(&["host01"]).await;
    let mut host = hosts.remove(0);
    allow(&stage, 5).await;
    stage.wish_offline_starts(5);
    assert_eq!(on(&stage, &host).await, (false, 5));
    off(&stage, &host).await;

    // An unhealthy host is refused by attestation, which is obeyed while it answers.
    let changed = Dials {
        secure_boot: false,
        ..Dials::default()
    };
    stage.hgs.kps.kill().unwrap();
    host.reboot(changed).unwrap();
    let refused = start(&stage, &host).await.unwrap_err();
    assert!(refused.contains("PolicyEvaluationErrorReply"), "{refused}");

    // Without attestation it is the store that has nothing to start with, and gets it back by no dial.
    stage.hgs.attestation.kill().unwrap();
    for dials in [None, Some(Dials::default())] {
        if let Some(dials) = dials {
            host.reboot(dials).unwrap();
        }
        let refused = start(&stage, &host).await.unwrap_err();
        assert!(refused.contains("no contact"), "{refused}");
        assert!(refused.contains("since it got its VSM keys"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offline_start_that_is_cut_short_costs_one_start_and_leaves_a_vm_that_starts() {
    let (mut stage, mut hosts) = Stage::set(&["host01"]).await;
    let mut host = hosts.remove(0);
    allow(&stage, 40).await;
    stage.wish_offline_starts(40);
    assert_eq!(on(&stage, &host).await, (false, 40));
    stage.hgs.kps.kill().unwrap();
    let mut left = 40;
    let passed = |name: &str| {
        name == "offline:counted"
            || name.starts_with("power-on:") && !["power-on:attested", "power-on:rolled"].contains(&name)
    };
    for (point, _) in COMMIT_POINTS.iter().filter(|(name, _)| passed(name)) {
        host.kill().unwrap();
        host = stage.restart("host01", Some(point));
        let killed = start(&stage, &host).await;
        assert!(killed.is_err(), "nothing was killed at {point}: {killed:?}");
        wait_until(10, "the host is down", || host.ended().is_some());
        host = stage.restart("host01", None);
        left -= 2;
        assert_eq!(on(&stage, &host).await, (true, left), "after a kill at {point}");
    }
}

/// A start with contact that is cut short leaves a VM that starts offline too, whichever of the two
/// generations counts.
#[tokio::test(flavor = "multi_thread")]
async fn a_vm_starts_offline_after_a_power_on_with_contact_that_was_cut_short() {
    let (mut stage, mut hosts) = Stage::set(&["host01"]).await;
    let mut host = hosts.remove(0);
    allow(&stage, 4).await;
    stage.wish_offline_starts(4);
    on(&stage, &host).await;
    for (point, _) in COMMIT_POINTS.iter().filter(|(name, _)| name.starts_with("power-on:")) {
        host.kill().unwrap();
        host = stage.restart("host01", Some(point));
        let before = stage.current();
        assert!(start(&stage, &host).await.is_err(), "nothing was killed at {point}");
        wait_until(10, "the host is down", || host.ended().is_some());
        let committed = stage.current() != before;
        host = stage.restart("host01", None);
        stage.hgs.kps.kill().unwrap();
        let (offline, left) = on(&stage, &host).await;
        assert!(offline);
        assert!(
            left == 3,
            "{left} are left after a kill at {point} (committed: {committed})"
        );
        stage.hgs.kps.restart().unwrap();
        off(&stage, &host).await;
        assert_eq!(on(&stage, &host).await, (false, 4));
    }
}

async fn start(stage: &Stage, host: &SimHost) -> Result<PoweredOn, String> {
    stage.ask(host, "power-on", &json!({})).await
}

/// Starts the VM, which must work and know the owner's secret: whether offline, and how many starts are left.
async fn on(stage: &Stage, host: &SimHost) -> (bool, u32) {
    let started = start(stage, host).await.unwrap();
    stage.prove(host).await;
    (started.offline, started.offline_starts_left)
}

async fn off(stage: &Stage, host: &SimHost) {
    stage.ask::<Value>(host, "power-off", &json!({})).await.unwrap();
}

/// The KPS's limit.
async fn allow(stage: &Stage, limit: u32) {
    let mut settings: Value = stage.hgs.kps.admin_get("settings").await.unwrap();
    settings["maxOfflineUnwraps"] = json!(limit);
    stage.hgs.kps.admin_put("settings", &settings).await.unwrap();
}

async fn deny_certificates(stage: &Stage, issued_before: Option<i64>) {
    let policy = json!({ "denyIssuedBefore": issued_before });
    stage
        .hgs
        .kps
        .admin_put("attestation-signers/policy", &policy)
        .await
        .unwrap();
}
