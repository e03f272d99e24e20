//! The drill as a person runs it.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

use crate::support::{Folder, processes_of};

fn drill(dir: &Path, words: &str) -> (Output, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_guarded-host-sim"))
        .args(["drill", "--json", "--dir"])
        .arg(dir)
        .args(words.split(' '))
        .output()
        .unwrap();
    let summary = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output, summary)
}

#[test]
fn twenty_kills_lose_nothing_and_no_vm_runs_twice() {
    let folder = Folder::new();
    let output = Command::new(env!("CARGO_BIN_EXE_guarded-host-sim"))
        .args(["drill", "--json", "--kills", "20", "--seed", "20"])
        .env("TMPDIR", &folder.0)
        .output()
        .unwrap();
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    assert!(output.status.success(), "{}", summary["faults"]);
    let number = |path: &str| summary.pointer(path).and_then(Value::as_u64).unwrap();
    assert_eq!(number("/random_kills/during") + number("/random_kills/after"), 20);
    assert_eq!(number("/commit_point_kills/during"), 2);
    assert_eq!((number("/kills"), number("/seed")), (22, 20));
    // Most hit the operation, or nothing is drilled.
    assert!(number("/random_kills/during") >= 10, "{}", summary["random_kills"]);
    assert!(number("/replays_refused") > 0);
    let rounds = summary["rounds"].as_array().unwrap();
    for phase in ["power-on", "roll", "migration"] {
        assert!(
            rounds
                .iter()
                .any(|round| round["phase"] == phase && round["hit"] == "during")
        );
    }
    // Not each at the same instant.
    let mut instants: Vec<u64> = rounds.iter().filter_map(|round| round["after_ms"].as_u64()).collect();
    instants.sort_unstable();
    instants.dedup();
    assert!(instants.len() > 10, "{instants:?}");
    assert!(processes_of(&folder.0).is_empty());
    assert_eq!(
        fs::read_dir(&folder.0).unwrap().count(),
        0,
        "its temporary folder stays behind"
    );
}

#[test]
fn a_spoiled_run_fails_and_says_what_is_wrong() {
    for (sabotage, fault) in [
        ("disk", "the guest had counted to"),
        ("vtpm", "the guest had counted to"),
        ("ledger", "ran on two hosts at once"),
    ] {
        let folder = Folder::new();
        let (output, summary) = drill(&folder.0, &format!("--kills 2 --seed 4 --sabotage {sabotage}"));
        assert_eq!(output.status.code(), Some(1), "{sabotage}: {output:?}");
        let faults = summary["faults"].as_array().unwrap();
        let told = |text: &Value| text.as_str().unwrap().contains(fault);
        assert!(faults.iter().any(told), "{sabotage}: {faults:?}");
        assert!(
            faults
                .iter()
                .all(|text| !text.as_str().unwrap().starts_with("round 1 ")),
            "{faults:?}"
        );
        let transcript = fs::read_to_string(folder.0.join("transcript.jsonl")).unwrap();
        assert!(transcript.lines().count() >= 2 && transcript.contains(fault));
    }
}
