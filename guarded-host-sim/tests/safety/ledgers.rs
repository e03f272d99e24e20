//! What real stores write into their ledgers, and what the checker makes of it.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use guarded_host_sim::{
    ledger::{
        Event,
        check::{Findings, check},
    },
    machine::user::give_tree,
};
use serde_json::{Value, json};

use crate::{
    accounts,
    support::{Stage, kill, processes_of, wait_until},
};

fn words(findings: &Findings) -> Vec<(&str, bool)> {
    let runs = findings.runs.iter();
    runs.map(|run| (run.host.as_str(), run.ended_in_order)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledgers_tell_where_a_vm_ran_and_for_how_long() {
    let (stage, mut hosts) = Stage::set(&["host01", "host02"]).await;
    let (two, mut one) = (hosts.remove(1), hosts.remove(0));
    stage.power_on(&one).await.unwrap();
    stage.ask::<Value>(&one, "reset", &json!({})).await.unwrap();
    stage.ask::<Value>(&one, "save", &json!({})).await.unwrap();
    stage.power_on(&one).await.unwrap();
    stage.migrate(&one, &two).await.unwrap();
    stage.migrate(&two, &one).await.unwrap();
    one.kill().unwrap();
    let folder = one.folder().to_path_buf();
    wait_until(10, "nothing of the host runs", || processes_of(&folder).is_empty());
    one = stage.restart("host01", None);
    stage.power_on(&one).await.unwrap();

    let accounts = accounts(&[&one, &two]);
    let findings = check(&accounts).unwrap();
    assert_eq!(findings.overlaps, []);
    let (here, there) = (("host01", true), ("host02", true));
    assert_eq!(
        words(&findings),
        [here, here, here, there, ("host01", false), ("host01", false)],
        "boot, reset, resumption, migration, migration back, start after the kill: {:?}",
        findings.runs
    );
    assert_eq!(findings.runs[5].until, None, "it runs still");
    let moves = |host: usize| {
        let entries = accounts[host].entries.iter();
        let name = |event: &Event| match event {
            Event::Sent { migration, .. } => Some(("sent", *migration)),
            Event::Received { migration, .. } => Some(("received", *migration)),
            _ => None,
        };
        entries.filter_map(|entry| name(&entry.event)).collect::<Vec<_>>()
    };
    let (of_one, of_two) = (moves(0), moves(1));
    assert_eq!(
        (of_one[0].0, of_two[0].0, of_two[1].0, of_one[1].0),
        ("sent", "received", "sent", "received")
    );
    assert_eq!((of_one[0].1, of_two[1].1), (of_two[0].1, of_one[1].1));

    // A VM whose vTPM has died has stopped; it starts anew.
    let vtpm = processes_of(one.folder())
        .into_iter()
        .find(|(_, line)| line.contains("swtpm socket") && line.contains("/store/vtpm-"))
        .unwrap();
    kill(vtpm.0);
    wait_until(10, "the vTPM is gone", || {
        !processes_of(one.folder()).iter().any(|(id, _)| *id == vtpm.0)
    });
    stage.power_on(&one).await.unwrap();
    stage.prove(&one).await;
    let findings = check(&crate::accounts(&[&one, &two])).unwrap();
    assert_eq!((words(&findings)[5], findings.overlaps.len()), (here, 0));
}

/// Whoever copies a VM's files may start the copy elsewhere, and nothing stops it: the product's limit and ours. It is what
/// the checker must find.
#[tokio::test(flavor = "multi_thread")]
async fn the_checker_finds_a_vm_that_really_runs_twice() {
    let (stage, mut hosts) = Stage::set(&["host01", "host02"]).await;
    let (mut two, one) = (hosts.remove(1), hosts.remove(0));
    let copy = stage.folder.0.join("copy");
    copy_tree(&stage.volume_path, &copy);
    let current = copy.join("payroll/current.json");
    let mut text: Value = serde_json::from_slice(&fs::read(&current).unwrap()).unwrap();
    text["owner_host"] = json!("host02");
    fs::write(&current, text.to_string()).unwrap();
    two.kill().unwrap();
    let folder = two.folder().to_path_buf();
    wait_until(10, "nothing of the host runs", || processes_of(&folder).is_empty());
    two = stage.fabric.restart_host("host02", &stage.hgs, &copy, None).unwrap();

    stage.power_on(&one).await.unwrap();
    let ledgers = [&one, &two].map(|host| host.folder().join("store/ledger.jsonl"));
    let told = checker(&ledgers);
    assert!(told.status.success(), "{told:?}");
    stage.power_on(&two).await.unwrap();
    stage.prove(&one).await;
    stage.prove(&two).await;

    let findings = check(&accounts(&[&one, &two])).unwrap();
    let [overlap] = findings.overlaps.as_slice() else {
        panic!("{findings:?}")
    };
    assert_eq!(
        (overlap.first.host.as_str(), overlap.second.host.as_str()),
        ("host01", "host02")
    );
    let told = checker(&ledgers);
    let text = String::from_utf8(told.stdout).unwrap();
    assert!(!told.status.success());
    assert!(
        text.contains("OVERLAP") && text.ends_with("2 runs, 1 overlaps\n"),
        "{text}"
    );
}

fn checker(ledgers: &[std::path::PathBuf]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_guarded-host-sim"))
        .arg("ledger")
        .args(ledgers)
        .output()
        .unwrap()
}

/// Copies a folder, and to whom it belongs.
fn copy_tree(from: &Path, to: &Path) {
    use std::os::unix::fs::MetadataExt;
    fn copy(from: &Path, to: &Path) {
        fs::create_dir(to).unwrap();
        for entry in fs::read_dir(from).unwrap().flatten() {
            let (path, to) = (entry.path(), to.join(entry.file_name()));
            match path.is_dir() {
                true => copy(&path, &to),
                false => drop(fs::copy(&path, &to).unwrap()),
            }
        }
    }
    copy(from, to);
    if rustix::process::geteuid().is_root() {
        give_tree(to, fs::metadata(from).unwrap().uid()).unwrap();
    }
}
