//! Scenarios on an HGS that is up and has other users: what they may do passes, what would harm the others is skipped,
//! and the HGS is left as it was.

use std::{collections::BTreeMap, fs, path::Path};

use guarded_host_sim::fabric::{
    Elsewhere,
    hgs::Hgs,
    service::{Attachment, Extras, Service},
};
use serde_json::{Value, json};

use super::{TPM_TOOLS, missing_tools, run, said, suite_folder};

/// What an administrator sees of an HGS, in the order of the calls.
async fn seen(hgs: &Hgs) -> Vec<Value> {
    let mut seen = Vec::new();
    for path in [
        "operation-mode",
        "ca-certificates",
        "policies",
        "tpm-hosts",
        "host-keys",
        "host-groups",
        "tpm-baselines",
        "ci-policies",
        "dump-keys",
        "tpm-trust",
    ] {
        seen.push(hgs.attestation.admin_get(path).await.unwrap());
    }
    for path in ["settings", "attestation-signers", "certificates"] {
        seen.push(hgs.kps.admin_get(path).await.unwrap());
    }
    seen
}

/// The description of a running HGS, as `prepare` writes it of one in containers.
fn describe(hgs: &Hgs, file: &Path) {
    let attachment = |service: &Service| {
        let (admin_url, token) = service.administrator();
        Attachment {
            url: service.url.clone(),
            https: None,
            admin_url: admin_url.to_owned(),
            token: token.to_owned(),
            root: None,
            clock: service.folder().join("clock"),
            replica_clocks: Vec::new(),
        }
    };
    let elsewhere = Elsewhere {
        attestation: attachment(&hgs.attestation),
        kps: attachment(&hgs.kps),
        hosts: BTreeMap::new(),
        volume: file.with_file_name("volume"),
        tpm_maker: file.with_file_name("tpm-maker"),
    };
    fs::write(file, serde_json::to_vec(&elsewhere).unwrap()).unwrap();
}

/// An HGS that is up, with something of its own users' in it, and its description.
async fn up(folder: &Path) -> (Hgs, String) {
    let hgs_folder = folder.join("hgs");
    let started = tokio::task::spawn_blocking(move || Hgs::start(&hgs_folder, &Extras::default(), None));
    let hgs = started.await.unwrap().unwrap();
    hgs.trust_signer().await.unwrap();
    let group = json!({ "name": "scenarists", "identifier": "S-1-5-21-1-2-3-1105" });
    hgs.attestation.admin_post("host-groups", &group).await.unwrap();
    let file = folder.join("fabric.json");
    describe(&hgs, &file);
    (hgs, file.display().to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_would_suffer_from_is_skipped_and_the_hgs_is_left_as_it_was() {
    if missing_tools("what_others_would_suffer_from_is_skipped", &TPM_TOOLS) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (hgs, description) = up(folder.path()).await;
    let before = seen(&hgs).await;
    let names = [
        ("happy-tpm", "passed"),
        ("active-directory", "passed"),
        ("policy-dumps", "passed"),
        ("mode-switch", "passed"),
        ("signer-not-trusted", "passed"),
        ("certificates-denied", "passed"),
        ("stolen-vm", "passed"),
        ("rotation", "skipped"),
        ("rotation-cut-short", "passed"),
        ("hgs-restarts", "skipped"),
        ("expired-everything", "skipped"),
        ("rate-limit", "skipped"),
        ("overload", "skipped"),
    ];
    let files = names.map(|(name, _)| suite_folder().join(format!("{name}.toml")).display().to_string());
    let json = folder.path().join("report.json").display().to_string();
    let mut arguments: Vec<&str> = files.iter().map(String::as_str).collect();
    arguments.extend(["--attach", &description, "--json", &json]);
    let output = run(&arguments);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let report: Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    for ((name, verdict), scenario) in names.iter().zip(report["scenarios"].as_array().unwrap()) {
        assert_eq!(scenario["name"], *name);
        assert_eq!(scenario["verdict"], *verdict, "{name}: {said}");
        assert_eq!(*verdict == "skipped", scenario["reason"].is_string(), "{name}");
    }
    for reason in [
        "not ended from inside another container",
        "whose keys were removed do not come back",
        "are not moved",
        "chosen when a service starts",
        "is not for scenarios",
    ] {
        assert!(said.contains(reason), "{reason}: {said}");
    }
    assert_eq!(seen(&hgs).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_run_that_was_ended_early_has_left_is_put_back_by_the_next() {
    if missing_tools("what_a_run_that_was_ended_early_has_left", &TPM_TOOLS) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (hgs, description) = up(folder.path()).await;
    let before = seen(&hgs).await;
    // A run writes its note before it changes anything; this one is ended while the HGS is changed.
    let file = folder.path().join("long.toml");
    let text = "title = \"A long one\"\nteaches = [\"This is a test.\", \"It teaches nothing else.\"]\n\
                [[host]]\nname = \"host01\"\n\
                [[step]]\nset_policy = { policy = \"Hgs_BitLockerEnabled\", enabled = true }\n\
                [[step]]\nset_mode = { mode = \"host-key\" }\n[[step]]\nwait = { time = \"50s\" }\n";
    fs::write(&file, text).unwrap();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_guarded-host-sim"))
        .arg("run")
        .arg(&file)
        .args(["--attach", &description])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let changed = async {
        while hgs.attestation.operation_mode().await.unwrap() == "Tpm" {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let limit = std::time::Duration::from_secs(60);
    tokio::time::timeout(limit, changed).await.expect("the mode is changed");

    let second = run(&[&file.display().to_string(), "--attach", &description]);
    assert_eq!(second.status.code(), Some(3), "two runs at a time");
    assert!(said(&second).contains("scenarios run on this fabric already"));

    child.kill().unwrap();
    child.wait().unwrap();
    assert_ne!(seen(&hgs).await, before);
    let happy = suite_folder().join("happy-tpm.toml").display().to_string();
    let next = run(&[&happy, "--attach", &description]);
    assert_eq!(next.status.code(), Some(0), "{}", said(&next));
    assert_eq!(seen(&hgs).await, before);
}

#[test]
fn a_fabric_that_is_not_up_ends_with_3() {
    let folder = tempfile::tempdir().unwrap();
    let happy = suite_folder().join("happy-tpm.toml").display().to_string();
    let missing = folder.path().join("fabric.json").display().to_string();
    let output = run(&[&happy, "--attach", &missing]);
    assert_eq!(output.status.code(), Some(3));
    assert!(said(&output).contains(&format!("cannot read {missing}")));
}
