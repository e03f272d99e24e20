//! `guarded-host-sim shell`: the administrators' shell. What is read and bound how, the crate
//! `hgs-shell` says.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::Args;
use hgs_shell::{check, cmdlets::Registry, coverage::coverage, table::Table};

/// What the shell is to do.
#[derive(Args)]
pub struct ShellArgs {
    /// Reads the lines of a file and binds their parameters, without carrying anything out; a file that ends
    /// in `.ps1` is taken as one script. The exit code is 1 if anything is wrong
    #[arg(long, value_name = "FILE", required_unless_present = "coverage")]
    check: Option<PathBuf>,
    /// Says of each cmdlet and parameter whether it is implemented, accepted without effect, rejected, or not
    /// built yet
    #[arg(long, conflicts_with = "check")]
    coverage: bool,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

/// Carries it out.
pub fn run(args: &ShellArgs) -> anyhow::Result<ExitCode> {
    let good = match &args.check {
        Some(file) => check_file(file, args.json)?,
        None => {
            show_coverage(args.json)?;
            true
        }
    };
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show_coverage(json: bool) -> anyhow::Result<()> {
    let coverage = coverage(Table::builtin()?, &Registry::builtin());
    let report = match json {
        true => serde_json::to_string_pretty(&coverage)? + "\n",
        false => coverage.report(),
    };
    Ok(io::stdout().write_all(report.as_bytes())?)
}

fn check_file(file: &Path, json: bool) -> anyhow::Result<bool> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let table = Table::builtin()?;
    let lines = match file.extension().is_some_and(|e| e.eq_ignore_ascii_case("ps1")) {
        true => vec![check::script(&text, table)],
        false => check::lines(&text, table),
    };
    let report = match json {
        true => serde_json::to_string_pretty(&lines)? + "\n",
        false => check::report(&lines),
    };
    io::stdout().write_all(report.as_bytes())?;
    Ok(lines.iter().all(check::Line::is_good))
}
