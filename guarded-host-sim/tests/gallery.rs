//! `gallery`: what a lab owner can pass as a host's template.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use hgs_protocol::wire::{
    boot_log::{BootLogBuilder, EventType, PcrIndex},
    sipa::{Tag, id, transfer},
    uefi::{GLOBAL_VARIABLE, UefiVariable},
};
use serde_json::{Value, json};

fn gallery(dir: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_guarded-host-sim"))
        .arg("gallery")
        .arg("--dir")
        .arg(dir)
        .args(more)
        .output()
        .unwrap()
}

fn shown(dir: &Path) -> Vec<Value> {
    let output = gallery(dir, &["--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn without_logs_it_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    for (folder, says) in [
        (dir.path().join("none"), "there is no gallery"),
        (dir.path().to_owned(), "holds no boot log"),
    ] {
        let output = gallery(&folder, &[]);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && output.stdout.is_empty());
        assert!(errors.contains(says) && errors.contains("LAB_CORPUS"), "{errors}");
    }
}

#[test]
fn a_log_is_shown_as_it_was_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = BootLogBuilder::new(3);
    let index = |pcr| PcrIndex::new(pcr).unwrap();
    log.measure(index(0), EventType::S_CRTM_VERSION, *b"1.2.3\0");
    let secure_boot = UefiVariable {
        guid: GLOBAL_VARIABLE,
        name: "SecureBoot".to_owned(),
        data: vec![0],
    };
    // The machine's maker owns the platform key: one list (28 bytes of header, 16 of owner) of one certificate.
    let maker = rcgen::generate_simple_self_signed(vec!["maker.example".to_owned()]).unwrap();
    let platform_key = UefiVariable {
        guid: GLOBAL_VARIABLE,
        name: "PK".to_owned(),
        data: [&[0; 44], maker.cert.der().as_ref()].concat(),
    };
    for variable in [secure_boot, platform_key] {
        log.measure(index(7), EventType::EFI_VARIABLE_DRIVER_CONFIG, variable.encode());
    }
    for pcr in 0..=7 {
        log.separator(index(pcr));
    }
    log.tagged(
        index(12),
        [Tag::u32(
            id::TRANSFER_CONTROL,
            u32::try_from(transfer::OS_LOADER).unwrap(),
        )],
    );
    for pcr in [11, 12, 13, 14] {
        log.separator(index(pcr));
    }
    std::fs::create_dir(dir.path().join("below")).unwrap();
    std::fs::write(dir.path().join("below/one.log"), log.finish()).unwrap();
    std::fs::write(dir.path().join("README.md"), "no log").unwrap();
    let exhibits = shown(dir.path());
    assert_eq!(exhibits.len(), 1, "{exhibits:?}");
    let one = &exhibits[0];
    assert_eq!(
        (&one["firmware"], &one["facts"]["SecureBootEnabled"]),
        (&json!("1.2.3"), &json!(false))
    );
    assert_eq!(one["maker"], "CN=rcgen self signed cert");
    assert_eq!(one["as_it_was"]["healthy"], false);
    assert!(
        one["as_it_was"]["fails"]
            .as_array()
            .unwrap()
            .contains(&json!("SecureBootEnabled")),
        "{one}"
    );
    assert_eq!(one["in_order"]["healthy"], true, "{one}");
    assert_eq!(one["in_order"]["template"]["dials"], "all");
    let text = gallery(dir.path(), &[]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(
        text.contains("below/one.log") && text.contains("in order (dials: all): healthy"),
        "{text}"
    );
}

#[test]
fn logs_of_real_machines_are_judged_as_hosts_of_their_shape_are() {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/corpus");
    let corpus = std::env::var_os("LAB_CORPUS").map_or_else(|| PathBuf::from(beside), PathBuf::from);
    if !corpus.join("windows").exists() {
        eprintln!("SKIPPED the gallery of real machines: no corpus of real logs (set LAB_CORPUS)");
        return;
    }
    let exhibits = shown(&corpus.join("windows"));
    let named = |name: &str| {
        let is_it = |exhibit: &&Value| exhibit["file"].as_str().unwrap().ends_with(name);
        exhibits.iter().find(is_it).unwrap()
    };
    for exhibit in &exhibits {
        assert_eq!(
            (&exhibit["windows"], &exhibit["in_order"]["healthy"]),
            (&json!(true), &json!(true)),
            "{exhibit}"
        );
        assert_eq!(exhibit["as_it_was"]["healthy"], false, "{exhibit}");
    }
    // The same verdicts as of a host that attests in this shape (tests/attest/gallery.rs).
    let fails = named("gcp-shielded-vm-server.log")["as_it_was"]["fails"]
        .as_array()
        .unwrap();
    assert!(
        fails.contains(&json!("VsmRunning")) && !fails.contains(&json!("SecureBootEnabled")),
        "{fails:?}"
    );
    let fails = named("lenovo-x1carbon3-tpm12-credentialguard.log")["as_it_was"]["fails"]
        .as_array()
        .unwrap();
    assert!(
        !fails.contains(&json!("VsmRunning")) && fails.contains(&json!("IommuEnabled")),
        "{fails:?}"
    );
}
