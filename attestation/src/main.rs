//! The attestation service and its tools.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

/// Host attestation of a guarded fabric (MS-HGSA).
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Explain a boot log (TCG or WBCL): header, banks, replayed PCRs, boot facts.
    InspectLog {
        /// The log.
        file: PathBuf,
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().command {
        Command::InspectLog { file, json } => attestation::inspect::run(&file, json),
    }
}
