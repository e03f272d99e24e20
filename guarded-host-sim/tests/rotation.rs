//! A guardian rotation as a drill: new certificates at the KPS, a new protector for the VM, the old
//! certificates removed, and what becomes of a backup from before.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
};

use guarded_host_sim::{
    fabric::{hgs::Hgs, host::SimHost},
    owner::Owner,
    vm::{VmName, guest::GuestReport, operation::PoweredOn, volume::Current},
};
use hgs_protocol::{
    env::{Clock, OsRandom, Random},
    protector::{Guardian, GuardianKeys, KeyPair, KeyPurpose, suite::Suite},
};
use serde_json::{Value, json};
use support::{Stage, pem};

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_outlives_the_certificates_it_was_made_for_and_its_old_backup_needs_them() {
    let (mut stage, mut hosts) = Stage::set(&["host01"]).await;
    let host = hosts.remove(0);
    let rng: &mut dyn Random = &mut OsRandom;

    // The KPS of the time before: its administrator has the keys in escrow.
    let old = [("Signing", KeyPurpose::Signing), ("Encryption", KeyPurpose::Encryption)].map(|(kind, purpose)| {
        let now = Clock::system().now();
        (
            kind,
            KeyPair::generate(Suite::Rsa, purpose, "HGS of old", now, rng).unwrap(),
        )
    });
    let mut old_paths = Vec::new();
    for (kind, pair) in &old {
        let path = add(&stage.hgs, kind, &json!({ "pem": pem(pair) })).await;
        change(&stage.hgs, &path, &json!({ "isPrimary": true })).await;
        old_paths.push(path);
    }
    let old_guardian = guardian(&stage.hgs).await;
    let name = VmName::parse("ledger").unwrap();
    stage.vm = stage
        .owner
        .shield(&name, b"in the books", &old_guardian, &stage.volume, "host01", rng)
        .unwrap();
    on_and_off(&stage, &host).await;
    let backup = stage.folder.0.join("backup");
    copy(&stage.volume_path.join("ledger"), &backup.join("ledger"));

    // New certificates become primary. A VM of before starts while the old ones are there.
    for kind in ["Signing", "Encryption"] {
        let path = add(
            &stage.hgs,
            kind,
            &json!({ "generate": { "commonName": "HGS of today" } }),
        )
        .await;
        change(&stage.hgs, &path, &json!({ "isPrimary": true })).await;
    }
    let new_guardian = guardian(&stage.hgs).await;
    assert_ne!(
        old_guardian.encryption().thumbprint(),
        new_guardian.encryption().thumbprint()
    );
    let guest = on(&stage, &host).await;
    assert_eq!(guest.boots, 2);

    // The owner gives it a protector for the new ones, once it is off.
    let running = stage
        .owner
        .rekey(&name, std::slice::from_ref(&new_guardian), &stage.volume, rng);
    assert!(running.unwrap_err().to_string().contains("stop it first"));
    off(&stage, &host).await;
    let before = stage.current();
    let stranger = Owner::new("stranger", &stage.folder.0.join("stranger"), Clock::system().now(), rng).unwrap();
    let refused = stranger.rekey(&name, std::slice::from_ref(&new_guardian), &stage.volume, rng);
    assert!(refused.unwrap_err().to_string().contains("not the owner's keys"));
    assert_eq!(stage.current(), before);
    let generation = stage
        .owner
        .rekey(&name, std::slice::from_ref(&new_guardian), &stage.volume, rng)
        .unwrap();
    let after = stage.current();
    assert_eq!(after.generation.number(), generation);
    assert_eq!(after.previous, Some(before.generation.clone()), "the old pair is kept");
    on_and_off(&stage, &host).await;

    // Without the old certificates the VM starts and its old backup does not, on a host that never ran it.
    for path in &old_paths {
        change(&stage.hgs, path, &json!({ "isEnabled": false })).await;
    }
    on_and_off(&stage, &host).await;
    let fresh = restore(&mut stage, &backup).await;
    let refused = start(&stage, &fresh).await.unwrap_err();
    assert!(refused.starts_with("KeyProtectionAccessDeniedException"), "{refused}");
    for path in &old_paths {
        stage.hgs.kps.admin_delete(path).await.unwrap();
    }
    on_and_off(&stage, &host).await;
    let refused = start(&stage, &fresh).await.unwrap_err();
    assert!(refused.starts_with("KeyProtectionAccessDeniedException"), "{refused}");
    assert!(refused.contains("owner can give it a new protector"), "{refused}");

    // The keys from escrow: enabled, not primary. Nothing about the VM of today changes.
    for (kind, pair) in &old {
        add(&stage.hgs, kind, &json!({ "pem": pem(pair) })).await;
    }
    let guest = on(&stage, &fresh).await;
    assert_eq!(guest.boots, 2, "the disk is the backup's");
    off(&stage, &fresh).await;
    assert_eq!(
        guardian(&stage.hgs).await.encryption().thumbprint(),
        new_guardian.encryption().thumbprint()
    );
    // The host that ran the VM since takes no backup of before, keys or not.
    let newest = stage.current();
    put_back(&stage, &backup, &newest);
    let refused = start(&stage, &host).await.unwrap_err();
    assert!(refused.contains("is too old"), "{refused}");
}

/// As a person does it, and cut short at each commit point: the old protector counts, or the new one, and the VM starts.
#[tokio::test(flavor = "multi_thread")]
async fn the_owners_command_leaves_a_vm_that_starts_wherever_it_is_cut_short() {
    let (mut stage, mut hosts) = Stage::set(&["host01"]).await;
    let host = hosts.remove(0);
    let rng: &mut dyn Random = &mut OsRandom;
    let now = Clock::system().now();
    let desk = stage.folder.0.join("desk");
    fs::create_dir(&desk).unwrap();
    let keys = [KeyPurpose::Signing, KeyPurpose::Encryption]
        .map(|purpose| KeyPair::generate(Suite::Rsa, purpose, "Owner", now, rng).unwrap());
    for (pair, file) in keys.iter().zip(["signing.pem", "encryption.pem"]) {
        fs::write(desk.join(file), pem(pair)).unwrap();
    }
    let [signing, encryption] = keys;
    let owner = Owner::with_keys(GuardianKeys::from_pairs("Owner", signing, encryption), &desk).unwrap();
    fs::write(desk.join("hgs.xml"), stage.hgs.metadata().await.unwrap()).unwrap();
    let hgs = guardian(&stage.hgs).await;
    let name = VmName::parse("ledger").unwrap();
    stage.vm = owner
        .shield(&name, b"in the books", &hgs, &stage.volume, "host01", rng)
        .unwrap();
    on_and_off(&stage, &host).await;

    let command = |thumbprint: &str, crash_at: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_guarded-host-sim"));
        command.args(["vm", "rekey", "ledger", "--owner-signing", "signing.pem"]);
        command.args(["--owner-encryption", "encryption.pem", "--guardian", "hgs.xml"]);
        command
            .args(["--thumbprint", thumbprint, "--volume"])
            .arg(&stage.volume_path);
        command
            .current_dir(&desk)
            .env("LAB_CRASH_AT", crash_at)
            .output()
            .unwrap()
    };
    let thumbprint = hgs.encryption().thumbprint();
    let before = stage.current();
    let other = command("00", "");
    let text = String::from_utf8_lossy(&other.stderr);
    assert!(!other.status.success() && text.contains(&thumbprint), "{text}");
    assert_eq!(stage.current(), before);
    for (point, committed) in [("rekey:written", false), ("rekey:committed", true), ("", true)] {
        let before = stage.current();
        let done = command(&thumbprint, point);
        assert_eq!(done.status.success(), point.is_empty(), "{done:?}");
        assert_eq!(stage.current() != before, committed, "at {point}");
        on_and_off(&stage, &host).await;
    }
}

async fn start(stage: &Stage, host: &SimHost) -> Result<PoweredOn, String> {
    stage.ask(host, "power-on", &json!({})).await
}

/// Starts the VM, which must know its owner's secret.
async fn on(stage: &Stage, host: &SimHost) -> GuestReport {
    start(stage, host).await.unwrap();
    stage.prove(host).await
}

async fn off(stage: &Stage, host: &SimHost) {
    stage.ask::<Value>(host, "power-off", &json!({})).await.unwrap();
}

async fn on_and_off(stage: &Stage, host: &SimHost) {
    on(stage, host).await;
    off(stage, host).await;
}

/// Adds a certificate; gives its path below the administrators' API.
async fn add(hgs: &Hgs, kind: &str, how: &Value) -> String {
    let mut new = how.clone();
    new["certificateType"] = json!(kind);
    let made: Value = serde_json::from_slice(&hgs.kps.admin_post("certificates", &new).await.unwrap()).unwrap();
    let sha256 = made["sha256"].as_str().unwrap();
    format!("certificates/{}/{sha256}", kind.to_lowercase())
}

async fn change(hgs: &Hgs, path: &str, what: &Value) {
    hgs.kps.admin_patch(path, what).await.unwrap();
}

async fn guardian(hgs: &Hgs) -> Guardian {
    Owner::import_guardian(&hgs.metadata().await.unwrap(), "HGS")
        .unwrap()
        .guardian
}

/// A new host over a volume of its own with the backup on it.
async fn restore(stage: &mut Stage, backup: &Path) -> SimHost {
    let (_, path) = stage.fabric.volume("restored").unwrap();
    copy(&backup.join("ledger"), &path.join("ledger"));
    let current = path.join("ledger/current.json");
    let mut text: Current = serde_json::from_slice(&fs::read(&current).unwrap()).unwrap();
    text.owner_host = "host02".to_owned();
    fs::write(&current, serde_json::to_vec(&text).unwrap()).unwrap();
    let mut started = stage
        .fabric
        .start_hosts(&[("host02", &stage.hgs, path.as_path())])
        .unwrap();
    let host = started.remove("host02").unwrap();
    let ek = host.artefact("ek.cer").await.unwrap();
    stage.hgs.register_host("host02", &ek).await.unwrap();
    host
}

/// The backup's generation in place of the one that counts.
fn put_back(stage: &Stage, backup: &Path, newest: &Current) {
    let generations = |root: &Path| root.join("ledger/generations");
    let kept: Current = serde_json::from_slice(&fs::read(backup.join("ledger/current.json")).unwrap()).unwrap();
    let from = generations(backup).join(String::from(kept.generation));
    let to: PathBuf = generations(&stage.volume_path).join(String::from(newest.generation.clone()));
    for file in ["protector.xml", "guest-state.bin"] {
        fs::write(to.join(file), fs::read(from.join(file)).unwrap()).unwrap();
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}
