//! What the agent's user can reach of its host when the host was started by root: nothing with a key.
//!
//! The attacks act as the agent's user, by programs that are started as that user, and each is shown
//! to work where it should (as root, or on the agent's own files), so that none passes by accident.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    process::Command,
};

use guarded_host_sim::machine::user::AGENT_USER;
use support::{Stage, process, processes_of};

/// Runs a shell command as the agent's user; true when it succeeds.
fn agent_can(command: &str) -> bool {
    let user = AGENT_USER.to_string();
    Command::new("setpriv")
        .args(["--reuid", &user, "--regid", &user, "--clear-groups", "--no-new-privs"])
        .args(["sh", "-c", command])
        .output()
        .unwrap()
        .status
        .success()
}

fn root_can(command: &str) -> bool {
    Command::new("sh")
        .args(["-c", command])
        .output()
        .unwrap()
        .status
        .success()
}

fn everything_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            everything_below(&path, found);
        }
        found.push(path);
    }
}

fn sockets_below(folder: &Path) -> Vec<String> {
    let mut all = Vec::new();
    everything_below(folder, &mut all);
    let mut sockets: Vec<String> = all
        .iter()
        .filter(|path| fs::symlink_metadata(path).unwrap().file_type().is_socket())
        .map(|path| path.strip_prefix(folder).unwrap().display().to_string())
        .collect();
    sockets.sort();
    sockets
}

/// Connects to a unix socket and says nothing. Every program is there that the tests need anyway.
fn connect(path: &Path) -> String {
    format!(
        "python3 -c 'import socket,sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])' {}",
        path.display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn no_socket_leads_to_a_software_tpm() {
    let (stage, hosts) = Stage::set(&["host01"]).await;
    let host = &hosts[0];
    stage.power_on(host).await.unwrap();
    stage.prove(host).await;
    // While the guest runs its vTPM runs: two software TPMs, and no socket beside the known ones: the lab's clock of the
    // agent, the machine's door for the lab, and what leads to the store and, command by command, to the TPM.
    let tpms: Vec<u32> = processes_of(host.folder())
        .into_iter()
        .filter(|(_, line)| line.contains("swtpm socket"))
        .map(|(id, _)| id)
        .collect();
    assert_eq!(tpms.len(), 2);
    assert_eq!(
        sockets_below(host.folder()),
        [
            "agent/clock",
            "machine.sock",
            "run/store",
            "run/tpm-agent",
            "run/tpm-store"
        ]
    );
    // Nor elsewhere, nor in the abstract namespace: no socket that a TPM has open has a name.
    let named = fs::read_to_string("/proc/net/unix").unwrap();
    let mut seen = 0;
    for id in tpms {
        for entry in fs::read_dir(format!("/proc/{id}/fd")).unwrap().flatten() {
            let target = fs::read_link(entry.path()).unwrap_or_default().display().to_string();
            let Some(inode) = target.strip_prefix("socket:[").and_then(|t| t.strip_suffix(']')) else {
                continue;
            };
            seen += 1;
            for line in named.lines() {
                let mut fields = line.split_whitespace().skip(6);
                if fields.next() == Some(inode) {
                    assert_eq!(fields.next(), None, "a socket with a name: {line}");
                }
            }
        }
    }
    assert!(seen >= 4, "each TPM has two channels, {seen} were found");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agents_user_reaches_no_key_of_its_host() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED the_agents_user_reaches_no_key_of_its_host: only root can give the agent a user of its own");
        return;
    }
    let (stage, hosts) = Stage::set(&["host01"]).await;
    let host = &hosts[0];
    // The VM lives through a power-on with the separation in force.
    stage.power_on(host).await.unwrap();
    stage.prove(host).await;
    let folder = host.folder();
    let agent = process(folder, &[" agent --name "]);
    let store = process(folder, &[" store --name "]);
    assert_eq!(fs::metadata(format!("/proc/{agent}")).unwrap().uid(), AGENT_USER);
    let status = fs::read_to_string(format!("/proc/{agent}/status")).unwrap();
    for line in [
        "CapEff:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "NoNewPrivs:\t1",
    ] {
        assert!(status.contains(line), "{line} is not in {status}");
    }

    // Files: nothing below tpm/ and store/ opens, whatever its own mode is; the agent's own does.
    assert!(agent_can(&format!("cat {}/agent/boot.log", folder.display())));
    for part in ["tpm", "store"] {
        let part = folder.join(part);
        let mut files = vec![part.clone()];
        everything_below(&part, &mut files);
        assert!(files.len() > 3, "{files:?}");
        for file in files {
            let file = file.display();
            assert!(root_can(&format!("test -r {file}")));
            assert!(!agent_can(&format!("test -r {file} || test -w {file}")), "{file}");
        }
    }
    assert!(!agent_can(&format!("ls {}", folder.display())));
    assert!(!agent_can(&format!(
        "touch {}/new {}/run/new",
        folder.display(),
        folder.display()
    )));

    // Sockets: its own two, not the machine's and not the store's way to the TPM.
    for (socket, reachable) in [
        ("run/tpm-agent", true),
        ("run/store", true),
        ("run/tpm-store", false),
        ("machine.sock", false),
    ] {
        let command = connect(&folder.join(socket));
        assert!(root_can(&command), "{socket}");
        assert_eq!(agent_can(&command), reachable, "{socket}");
    }

    // Memory and descriptors of the processes that hold keys.
    let own = "head -c 0 /proc/self/mem && ls /proc/self/fd";
    assert!(agent_can(own));
    let mut keepers = vec![host.process_id().unwrap(), store];
    keepers.extend(
        processes_of(folder)
            .into_iter()
            .filter(|(_, line)| line.contains("swtpm socket"))
            .map(|(id, _)| id),
    );
    assert_eq!(keepers.len(), 4);
    for id in keepers {
        for file in ["mem", "environ", "maps", "auxv"] {
            let open = format!("exec 3< /proc/{id}/{file} && head -c 1 <&3");
            assert!(!agent_can(&open), "{file} of {id}");
        }
        assert!(!agent_can(&format!("ls /proc/{id}/fd")));
        assert!(!agent_can(&format!("kill -0 {id}")), "the agent can signal {id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_machine_follows_no_link_that_the_agent_leaves() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED the_machine_follows_no_link_that_the_agent_leaves: only root is worth misleading");
        return;
    }
    let (_stage, mut hosts) = Stage::set(&["host01"]).await;
    let host = &mut hosts[0];
    let target = host.folder().join("store/root.sealed");
    let before = fs::read(&target).unwrap();
    let agent = host.folder().join("agent");
    for file in ["boot.log", "ek.cer", "SIPolicy.p7b"] {
        let file = agent.join(file);
        assert!(agent_can(&format!("ln -sf {} {}", target.display(), file.display())));
    }
    host.reboot(guarded_host_sim::machine::dials::Dials::default()).unwrap();
    assert_eq!(fs::read(&target).unwrap(), before);
    assert_eq!(fs::metadata(&target).unwrap().uid(), 0);
    assert!(!fs::symlink_metadata(agent.join("boot.log")).unwrap().is_symlink());
}
