//! The demonstration as a user runs it: its outcome, its JSON, and what it leaves behind.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    io::Read,
    process::{Child, Command, Stdio},
};

use serde_json::Value;
use support::{Folder, kill, process, processes_of, wait_until};

fn start(folder: &Folder, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_guarded-host-sim"))
        .arg("demo")
        .arg("--dir")
        .arg(folder.0.join("demo"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn end(mut child: Child) -> (Option<i32>, String) {
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    (child.wait().unwrap().code(), text)
}

fn nothing_runs(folder: &Folder) {
    wait_until(10, "nothing keeps running", || processes_of(&folder.0).is_empty());
}

/// `--json` prints one document and nothing else, and every step passes, also over HTTPS.
#[test]
fn every_step_of_the_demonstration_passes() {
    for arguments in [["--json"].as_slice(), &["--json", "--https"]] {
        let folder = Folder::new();
        let (code, text) = end(start(&folder, arguments));
        let document: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        let steps = document["steps"].as_array().unwrap();
        assert!(steps.iter().all(|s| s["passed"] == true), "{text}");
        assert!(steps.len() >= 12);
        assert_eq!(document["passed"], steps.len());
        assert_eq!(document["failed"], 0);
        assert_eq!(code, Some(0));
        let refused = |word: &str| {
            steps
                .iter()
                .any(|s| s["outcome"] == "refused" && s["detail"].as_str().unwrap().contains(word))
        };
        for word in [
            "SecureBootEnabled",
            "UnauthorizedErrorReply",
            "HealthCertificateException",
            "InvalidProtectorException",
            "KeyProtectionAccessDeniedException",
        ] {
            assert!(refused(word), "no step was refused with {word}: {text}");
        }
        nothing_runs(&folder);
    }
}

#[test]
fn a_tpm_killed_midway_ends_the_demonstration_with_a_clear_message() {
    let folder = Folder::new();
    let demo = start(&folder, &[]);
    let hosts = folder.0.join("demo/hosts/host02");
    // The agent is up, so the host has booted and its TPM is in use.
    wait_until(60, "host02 is up", || {
        processes_of(&hosts).iter().any(|(_, line)| line.contains(" agent "))
    });
    kill(process(&hosts, &["swtpm socket"]));
    let (code, text) = end(demo);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("the TPM of host02 does not answer"), "{text}");
    assert!(
        text.lines().last().unwrap().contains("failed") || text.contains(" failed"),
        "{text}"
    );
    nothing_runs(&folder);
}

#[test]
fn an_interrupted_demonstration_removes_its_temporary_directory() {
    let temporary = Folder::new();
    let mut demo = Command::new(env!("CARGO_BIN_EXE_guarded-host-sim"))
        .args(["demo", "--json"])
        .env("TMPDIR", &temporary.0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let used = || std::fs::read_dir(&temporary.0).unwrap().next().is_some();
    wait_until(60, "services are up", || {
        processes_of(&temporary.0)
            .iter()
            .any(|(_, line)| line.contains(" agent "))
    });
    assert!(used(), "it does not work in its temporary directory");
    let id = rustix::process::Pid::from_raw(i32::try_from(demo.id()).unwrap()).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
    assert_eq!(demo.wait().unwrap().code(), Some(130));
    nothing_runs(&temporary);
    assert!(!used(), "something is left of it");
}

#[test]
fn a_killed_demonstration_leaves_no_process_behind() {
    let folder = Folder::new();
    let mut demo = start(&folder, &["--json"]);
    let hosts = folder.0.join("demo/hosts");
    wait_until(60, "hosts are up", || {
        processes_of(&hosts)
            .iter()
            .filter(|(_, line)| line.contains(" agent "))
            .count()
            >= 2
    });
    demo.kill().unwrap();
    demo.wait().unwrap();
    nothing_runs(&folder);
}
