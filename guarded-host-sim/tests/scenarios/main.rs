//! `guarded-host-sim run`: the suite in `scenarios/`, exit codes, messages and reports.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod attached;
mod exits;
mod pages;
mod suite;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// Runs `guarded-host-sim run` with `arguments`.
fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_guarded-host-sim"));
    command.arg("run").args(arguments).output().unwrap()
}

/// Everything that the program said.
fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// The suite's folder.
fn suite_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../scenarios")
        .canonicalize()
        .unwrap()
}

/// True, and says so, when a test cannot run here.
fn missing_tools(test: &str, tools: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |name: &&&str| std::env::split_paths(&path).any(|dir| dir.join(name).exists());
    let missing = tools.iter().find(|name| !found(name));
    if let Some(name) = missing {
        eprintln!("SKIPPED {test}: {name} is not installed");
    }
    missing.is_some()
}

const TPM_TOOLS: [&str; 3] = ["swtpm", "swtpm_setup", "setpriv"];
