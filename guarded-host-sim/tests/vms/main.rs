//! What an administrator does with VMs, by the command `vm` against real hosts: kinds and switches, saving, checkpoints,
//! export and import, key protectors; and a kill at each commit point on the way.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod checkpoints;
mod crash;
mod kinds;
mod life;
mod local;
#[path = "../support/mod.rs"]
mod support;
mod transfer;

use std::{fs, path::PathBuf, process::Command};

use base64::{Engine, engine::general_purpose::STANDARD};
use guarded_host_sim::{
    fabric::host::SimHost,
    owner::{OwnedVm, Owner},
    vm::{
        VmName,
        guest::GuestReport,
        request::{Blob, VmReply},
        security::Kind,
        view::{VmState, VmView},
        volume::{Generation, VmFolder},
    },
};
use hgs_protocol::env::OsRandom;
use serde_json::{Value, json};
use support::{Stage, refused_for, said};

/// The secret of the VM `ledger`.
const SECRET: &str = "what is written in the books";

/// Runs `guarded-host-sim vm WORDS` against the host; gives its JSON, or its refusal.
fn vm(host: &SimHost, words: &str) -> Result<Value, String> {
    program(&format!("vm {words} --agent {} --json", host.agent_url))
}

/// Runs `guarded-host-sim WORDS`.
fn program(words: &str) -> Result<Value, String> {
    said(Command::new(env!("CARGO_BIN_EXE_guarded-host-sim")).args(words.split(' ')))
}

/// Panics unless the command succeeds.
fn good(host: &SimHost, words: &str) -> Value {
    vm(host, words).unwrap_or_else(|error| panic!("vm {words}: {error}"))
}

/// Panics unless the command is refused with all of `reasons`.
fn refused(host: &SimHost, words: &str, reasons: &[&str]) {
    refused_for(vm(host, words), words, reasons);
}

fn start(host: &SimHost, name: &str) -> GuestReport {
    serde_json::from_value(good(host, &format!("start {name}"))).unwrap()
}

fn view(host: &SimHost, name: &str) -> VmView {
    serde_json::from_value(good(host, &format!("show {name}"))).unwrap()
}

fn state(host: &SimHost, name: &str) -> VmState {
    view(host, name).state
}

/// A second VM on the stage, which is not shielded and belongs to the first host.
async fn ledger(stage: &Stage) -> OwnedVm {
    let guardian = Owner::import_guardian(&stage.hgs.metadata().await.unwrap(), "HGS")
        .unwrap()
        .guardian;
    stage
        .owner
        .make_vm(
            &VmName::parse("ledger").unwrap(),
            Kind::EncryptionSupported,
            SECRET.as_bytes(),
            &[guardian],
            (&stage.volume, "host01"),
            &mut OsRandom,
        )
        .unwrap()
}

/// Panics unless the guest knows the owner's secret.
async fn prove(host: &SimHost, vm: &OwnedVm) -> GuestReport {
    let challenge = [7; 32];
    let ask = json!({ "challenge": STANDARD.encode(challenge) });
    match host
        .post(&format!("vms/{}/prove", vm.name), &ask)
        .await
        .unwrap()
        .unwrap()
    {
        VmReply::Proof { proof, guest } => {
            assert_eq!(proof, Blob(vm.expected_proof(&challenge).to_vec()));
            guest
        }
        other => panic!("{other:?}"),
    }
}

fn folder(stage: &Stage, name: &str) -> VmFolder {
    stage.volume.vm(&VmName::parse(name).unwrap()).unwrap()
}

/// The files that count.
fn files(stage: &Stage, name: &str) -> Generation {
    let folder = folder(stage, name);
    folder.read_generation(&folder.current().unwrap().generation).unwrap()
}

/// Puts other files in the place of those that count, as whoever administers the volume may.
fn put_all(stage: &Stage, name: &str, files: &Generation) {
    put(stage, name, "protector.xml", &files.protector);
    put(stage, name, "guest-state.bin", &files.guest_state);
    match &files.memory {
        Some(memory) => put(stage, name, "memory.bin", memory),
        None => drop(fs::remove_file(path(stage, name, "memory.bin"))),
    }
}

/// Puts other bytes in the place of a file that counts, as whoever administers the volume may.
fn put(stage: &Stage, name: &str, file: &str, bytes: &[u8]) {
    fs::write(path(stage, name, file), bytes).unwrap();
}

fn path(stage: &Stage, name: &str, file: &str) -> PathBuf {
    let current = folder(stage, name).current().unwrap();
    let generations = stage.volume_path.join(name).join("generations");
    generations.join(String::from(current.generation)).join(file)
}

fn contains(bytes: &[u8], what: &str) -> bool {
    bytes.windows(what.len()).any(|window| window == what.as_bytes())
}
