//! Template disks and shielding data files by their commands, and VMs that real hosts make of them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod data_files;
mod provision;
mod recovery;
#[path = "../support/mod.rs"]
mod support;
mod templates;

use std::{path::Path, process::Command};

use serde_json::Value;
use support::{refused_for, said};

/// Runs `guarded-host-sim WORDS` in `folder`; gives its JSON or text, or its refusal.
fn program(folder: &Path, words: &str) -> Result<Value, String> {
    program_with(folder, words, &[])
}

/// The same with more variables.
fn program_with(folder: &Path, words: &str, variables: &[(&str, &str)]) -> Result<Value, String> {
    said(
        Command::new(env!("CARGO_BIN_EXE_guarded-host-sim"))
            .args(words.split_whitespace())
            .current_dir(folder)
            .env("HGS_GUARDIAN_PASSWORD", "correct horse battery")
            .envs(variables.iter().copied()),
    )
}

/// Panics unless the command succeeds.
fn good(folder: &Path, words: &str) -> Value {
    program(folder, words).unwrap_or_else(|error| panic!("{words}: {error}"))
}

/// Panics unless the command is refused with all of `reasons`.
fn refused(folder: &Path, words: &str, reasons: &[&str]) {
    refused_for(program(folder, words), words, reasons);
}
