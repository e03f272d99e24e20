//! Files, sockets and processes that are not the agent's, as its user. Only a host that root started gives the agent a
//! user of its own; under one user each of these attempts works, and README says so.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::json;

use crate::{
    hands::Hands,
    report::{Report, said},
    support::{process, processes_of},
};

const OF: &str = "Files, sockets and processes (the host was started by root)";

/// Everything below `folder`, folders included.
fn below(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.to_path_buf()];
    for entry in fs::read_dir(folder).unwrap().flatten() {
        match fs::symlink_metadata(entry.path()).unwrap().is_dir() {
            true => found.extend(below(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found
}

/// The processes of the host that have a key: what each is, and its id.
fn keepers(host: &Path, machine: u32) -> Vec<(String, u32)> {
    let mut keepers = vec![
        ("the machine".to_owned(), machine),
        ("the VBS store".to_owned(), process(host, &[" store --name "])),
    ];
    for (id, line) in processes_of(host)
        .into_iter()
        .filter(|(_, line)| line.contains("swtpm socket"))
    {
        let whose = if line.contains("/store/vtpm-") {
            "a vTPM"
        } else {
            "the TPM"
        };
        keepers.push((whose.to_owned(), id));
    }
    keepers
}

pub(crate) fn look(host: &Path, machine: u32, hands: &mut Hands, report: &mut Report) {
    hands.take();
    for part in ["store", "tpm"] {
        for path in below(&host.join(part)) {
            let name = path.strip_prefix(host).unwrap().display().to_string();
            let name =
                name.split("vtpm-").next().unwrap().to_owned() + if name.contains("vtpm-") { "vtpm-…" } else { "" };
            if path.is_dir() {
                let listed = said(&hands.try_to("list", json!({ "path": path })));
                report.row(OF, format!("list {name}"), "EACCES", listed, hands.take());
                continue;
            }
            for what in ["read", "write"] {
                let deed = said(&hands.try_to(what, json!({ "path": path })));
                report.row(OF, format!("{what} {name}"), "EACCES", deed, hands.take());
            }
        }
    }
    let new = host.join("agent/mine");
    let linked = hands.try_to("link", json!({ "path": host.join("store/root.sealed"), "new": new }));
    report.row(
        OF,
        "a hard link to store/root.sealed",
        "EACCES",
        said(&linked),
        hands.take(),
    );
    for socket in ["run/tpm-store", "machine.sock"] {
        let connected = said(&hands.try_to("connect", json!({ "path": host.join(socket) })));
        report.row(OF, format!("connect to {socket}"), "EACCES", connected, hands.take());
    }
    let keepers = keepers(host, machine);
    assert_eq!(keepers.len(), 4, "{keepers:?}");
    for (what, id) in keepers {
        for file in ["mem", "environ", "maps", "auxv", "fd/0", "root/etc/shadow"] {
            let read = hands.get("read", json!({ "path": format!("/proc/{id}/{file}") }));
            report.row(
                OF,
                format!("read /proc/…/{file} of {what}"),
                "EACCES",
                said(&read),
                hands.take(),
            );
        }
        for (attempt, deed, about) in [
            ("PTRACE_ATTACH to", "ptrace", json!({ "pid": id, "seize": false })),
            ("PTRACE_SEIZE of", "ptrace", json!({ "pid": id, "seize": true })),
            (
                "process_vm_readv of",
                "peek",
                json!({ "pid": id, "address": 0x40_0000 }),
            ),
            ("pidfd_getfd of a channel of", "steal", json!({ "pid": id, "fd": 3 })),
            ("core dumps allowed (prlimit) to", "cores", json!({ "pid": id })),
            (
                "SIGABRT, for a core dump, to",
                "signal",
                json!({ "pid": id, "signal": 6 }),
            ),
            ("SIGSTOP to", "signal", json!({ "pid": id, "signal": 19 })),
        ] {
            let done = hands.try_to(deed, about);
            report.row(OF, format!("{attempt} {what}"), "EPERM", said(&done), hands.take());
        }
    }
    // Each of them works where it may: on the hands themselves.
    let own = hands.id();
    for (deed, about) in [
        ("read", json!({ "path": format!("/proc/{own}/environ") })),
        ("list", json!({ "path": format!("/proc/{own}/fd") })),
        ("cores", json!({ "pid": own })),
        ("connect", json!({ "path": host.join("run/tpm-agent") })),
        ("write", json!({ "path": host.join("agent/mine") })),
    ] {
        let done = said(&hands.try_to(deed, about));
        let wanted = if deed == "cores" { "EPERM" } else { "done" };
        assert!(done == "done" || done == wanted, "{deed}: {done}");
    }
    hands.take();
}

/// What crashes leaves no core. The store is ended as by a fault of its own.
pub(crate) fn crash(host: &Path, machine: u32, report: &mut Report) {
    const ABORT: rustix::process::Signal = rustix::process::Signal::ABORT;
    let pid = |id: u32| rustix::process::Pid::from_raw(i32::try_from(id).unwrap()).unwrap();
    for (what, id) in keepers(host, machine) {
        let limits = fs::read_to_string(format!("/proc/{id}/limits")).unwrap();
        let line = limits
            .lines()
            .find(|line| line.starts_with("Max core file size"))
            .unwrap();
        let words: Vec<&str> = line.split_whitespace().skip(4).take(2).collect();
        report.row(
            OF,
            format!("size of a core dump that {what} may leave"),
            "0 now, 0 at most",
            format!("{} now, {} at most", words[0], words[1]),
            Vec::new(),
        );
    }
    let store = process(host, &[" store --name "]);
    rustix::process::kill_process(pid(store), ABORT).unwrap();
    crate::support::wait_until(20, "the host ends with its store", || processes_of(host).is_empty());
    let cores = below(host).into_iter().filter(|path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("core")
    });
    let found: Vec<PathBuf> = cores.collect();
    report.row(
        OF,
        "a store that crashed",
        "no core file",
        match found.as_slice() {
            [] => "no core file".to_owned(),
            some => format!("{some:?}"),
        },
        Vec::new(),
    );
}
