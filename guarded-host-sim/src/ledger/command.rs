//! `guarded-host-sim ledger`: the checker for a person. It reads files only; the stores may run.

use std::path::PathBuf;

use super::{
    check::{Account, check},
    read,
};

/// Ledgers of VBS stores, of hosts that share a volume.
#[derive(Debug, clap::Args)]
pub struct LedgerArgs {
    /// `store/ledger.jsonl` of each host
    #[arg(required = true, value_name = "FILE")]
    ledgers: Vec<PathBuf>,
}

/// Lists every run and every overlap; true when there is none. A host that was killed and not started again counts as
/// running still.
pub fn run(args: &LedgerArgs) -> anyhow::Result<bool> {
    let mut accounts = Vec::new();
    for path in &args.ledgers {
        accounts.push(Account {
            host: path.display().to_string(),
            entries: read(path)?,
            deaths: Vec::new(),
        });
    }
    let findings = check(&accounts)?;
    for run in &findings.runs {
        println!("{run}");
    }
    for overlap in &findings.overlaps {
        println!("OVERLAP: {overlap}");
    }
    match findings.overlaps.len() {
        0 => println!("{} runs, no VM on two hosts at once", findings.runs.len()),
        n => println!("{} runs, {n} overlaps", findings.runs.len()),
    }
    Ok(findings.overlaps.is_empty())
}
