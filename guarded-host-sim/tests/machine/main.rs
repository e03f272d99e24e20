//! A host's machine, with a real TPM in software: what each dial changes of a boot, and what an administrator does
//! with it by the command `machine`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod console;
mod hibernation;
mod measured;
#[path = "../support/mod.rs"]
mod support;

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use guarded_host_sim::machine::control::{Control, ControlReply, ask};

use crate::support::Folder;

/// A host by itself, in local mode, with its folder below one of its own.
struct Host {
    child: Option<Child>,
    folder: Folder,
}

impl Host {
    /// A new host that runs; none, said so, where the tools are missing.
    fn start(test: &str) -> Option<Host> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = |name: &str| std::env::split_paths(&path).any(|d| d.join(name).exists());
        if !found("swtpm") || !found("swtpm_setup") || !found("setpriv") {
            eprintln!("SKIPPED {test}: swtpm, swtpm_setup or setpriv is not installed");
            return None;
        }
        let mut host = Host {
            child: None,
            folder: Folder::new(),
        };
        host.power_on(&[]);
        Some(host)
    }

    fn dir(&self) -> PathBuf {
        self.folder.0.join("host01")
    }

    fn power_on(&mut self, arguments: &[&str]) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_guarded-host-sim"))
            .args(["host", "--name", "host01", "--maker"])
            .arg(self.folder.0.join("maker"))
            .arg("--dir")
            .arg(self.dir())
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        self.child = Some(child);
        assert!(line.starts_with("ready host01"), "{line:?}");
    }

    /// Ends it in an orderly way.
    fn power_off(&mut self) {
        assert!(self.ask(&Control::Stop).ok);
        assert!(self.child.take().unwrap().wait().unwrap().success());
    }

    fn ask(&self, order: &Control) -> ControlReply {
        ask(&self.dir().join("machine.sock"), order).unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
