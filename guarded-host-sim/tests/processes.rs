//! The processes of a host: what ends with what, and what is said about it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use guarded_host_sim::{
    machine::{
        control::{Control, ask},
        user::let_others_pass,
    },
    swtpm::short_private_dir,
};

struct Folder(std::path::PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn start(test: &str) -> Option<(Folder, Child)> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |name: &str| std::env::split_paths(&path).any(|d| d.join(name).exists());
    if !found("swtpm") || !found("swtpm_setup") || !found("setpriv") {
        eprintln!("SKIPPED {test}: swtpm, swtpm_setup or setpriv is not installed");
        return None;
    }
    let folder = Folder(short_private_dir().unwrap());
    let_others_pass(&folder.0).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_guarded-host-sim"))
        .args(["host", "--name", "host01", "--maker"])
        .arg(folder.0.join("maker"))
        .arg("--dir")
        .arg(folder.0.join("host01"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert!(line.starts_with("ready host01 agent=http://127.0.0.1:"), "{line:?}");
    Some((folder, child))
}

/// Ids and names of the processes that have `folder` in their arguments.
fn processes(folder: &Path) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(id) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        // Empty for a process that has ended and waits to be reaped.
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
        if arguments.contains(&*folder.to_string_lossy()) {
            found.push((id, arguments));
        }
    }
    found
}

fn kill(id: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(id).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

fn wait_until_nothing_runs(folder: &Path) {
    let patience = Instant::now() + Duration::from_secs(10);
    while !processes(folder).is_empty() {
        assert!(Instant::now() < patience, "still running: {:?}", processes(folder));
        std::thread::yield_now();
    }
}

#[test]
fn nothing_runs_on_when_the_machine_is_killed() {
    let Some((folder, mut machine)) = start("nothing_runs_on_when_the_machine_is_killed") else {
        return;
    };
    let names: String = processes(&folder.0).into_iter().map(|(_, name)| name).collect();
    for part in ["swtpm socket", " store --name", " agent --name"] {
        assert!(names.contains(part), "{part} runs: {names}");
    }
    machine.kill().unwrap();
    machine.wait().unwrap();
    wait_until_nothing_runs(&folder.0);
}

#[test]
fn the_machine_says_which_part_has_died() {
    for (part, message) in [
        ("swtpm socket", "the TPM of host01 does not answer"),
        (" store --name", "the VBS store of host01 has ended"),
        (" agent --name", "the agent of host01 has ended"),
    ] {
        let Some((folder, mut machine)) = start("the_machine_says_which_part_has_died") else {
            return;
        };
        let (id, _) = processes(&folder.0)
            .into_iter()
            .find(|(_, name)| name.contains(part))
            .unwrap();
        kill(id);
        let status = machine.wait().unwrap();
        let mut said = String::new();
        machine.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(!status.success());
        assert!(said.contains(message), "{said}");
        wait_until_nothing_runs(&folder.0);
    }
}

/// As a real one: what runs goes on, what needs the TPM fails, and a power cycle brings the TPM back.
#[test]
fn a_machine_goes_on_without_a_failed_tpm_until_it_is_rebooted() {
    let Some((folder, mut machine)) = start("a_machine_goes_on_without_a_failed_tpm_until_it_is_rebooted") else {
        return;
    };
    let control = folder.0.join("host01/machine.sock");
    let says = |remarks: &[String]| remarks.iter().any(|r| r.contains("the TPM of host01 has failed"));
    let reply = ask(&control, &Control::FailTpm).unwrap();
    assert!(reply.ok && says(&reply.remarks), "{reply:?}");
    let names = || -> String { processes(&folder.0).into_iter().map(|(_, name)| name).collect() };
    let running = names();
    assert!(
        running.contains(" store --name") && running.contains(" agent --name"),
        "{running}"
    );
    assert!(!running.contains("swtpm socket"), "{running}");
    let rebooted = ask(&control, &Control::Reboot { dials: None }).unwrap();
    assert!(
        rebooted.ok && rebooted.boots == 2 && !says(&rebooted.remarks),
        "{rebooted:?}"
    );
    assert!(names().contains("swtpm socket"));

    // Stopped without a TPM, the host ends as orderly as it can.
    assert!(ask(&control, &Control::FailTpm).unwrap().ok);
    assert!(ask(&control, &Control::Stop).unwrap().ok);
    assert!(machine.wait().unwrap().success());
    let mut log = String::new();
    machine.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert_eq!(log.matches("new VSM keys").count(), 1, "the keys stay: {log}");
}

#[test]
fn the_lab_stops_and_restarts_a_host_and_its_keys_stay() {
    let Some((folder, mut machine)) = start("the_lab_stops_and_restarts_a_host_and_its_keys_stay") else {
        return;
    };
    let control = folder.0.join("host01/machine.sock");
    let before = ask(&control, &Control::Status).unwrap();
    assert_eq!(before.boots, 1);
    let after = ask(&control, &Control::Reboot { dials: None }).unwrap();
    assert!(after.ok);
    assert_eq!(
        (after.boots, after.agent),
        (2, before.agent),
        "the agent keeps its address"
    );
    assert!(ask(&control, &Control::Stop).unwrap().ok);
    assert!(machine.wait().unwrap().success());
    let log = {
        let mut text = String::new();
        machine.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    };
    assert_eq!(
        log.matches("new VSM keys").count(),
        1,
        "only the first boot makes keys: {log}"
    );
    wait_until_nothing_runs(&folder.0);
}
