//! `guarded-host-sim shell`: the administrators' shell. The language is the crate `hgs-shell`; what it acts on are
//! the machines of a [`Lab`], by the product's [`cmdlets`].

mod interactive;

use std::{
    ffi::OsString,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    rc::Rc,
    thread,
};

use anyhow::{Context, anyhow};
use clap::Args;
use hgs_shell::{
    check,
    console::Standard,
    coverage::coverage,
    format::to_json,
    session::{Ended, Session},
    table::Table,
    value::Value,
};

use crate::{
    cmdlets,
    lab::{Lab, Plan},
};

/// What the shell is to do; without anything, it asks for lines.
#[derive(Args)]
pub struct ShellArgs {
    /// Carries out this text; also as `-Command`. The exit code is 1 if its last command failed
    #[arg(long, value_name = "TEXT", conflicts_with = "file")]
    command: Option<String>,
    /// Carries out a script's file, with what follows as its arguments; also as `-File`. The exit code is the script's
    /// own, or 1 if an error ended it
    #[arg(long, value_name = "FILE", num_args = 1.., allow_hyphen_values = true)]
    file: Vec<String>,
    /// Folder with the machines' files, which are kept there; a new one that is removed in the end, unless given
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Reads the lines of a file and binds their parameters, without carrying anything out; a file that ends
    /// in `.ps1` is taken as one script. The exit code is 1 if anything is wrong
    #[arg(long, value_name = "FILE", conflicts_with_all = ["command", "file"])]
    check: Option<PathBuf>,
    /// Says of each cmdlet and parameter whether it is implemented, accepted without effect, rejected, or not
    /// built yet
    #[arg(long, conflicts_with_all = ["check", "command", "file"])]
    coverage: bool,
    /// Prints JSON: what the commands give, instead of tables and lists
    #[arg(long)]
    json: bool,
}

/// The program's arguments with PowerShell's own `-Command`, `-File` and `-Json` as this program spells them.
pub fn arguments(given: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut in_shell = false;
    let mut only_values = false;
    let mut all = Vec::new();
    for (index, argument) in given.enumerate() {
        in_shell |= index == 1 && argument == "shell";
        let text = argument.to_string_lossy().to_ascii_lowercase();
        let spelled = match text.as_str() {
            "-command" | "-c" => Some("--command"),
            "-file" | "-f" => Some("--file"),
            "-json" => Some("--json"),
            // Said by habit; it is so anyway.
            "-noprofile" | "-noninteractive" | "-nologo" if in_shell && !only_values => continue,
            _ => None,
        };
        match spelled {
            Some(spelled) if in_shell && !only_values => {
                // What follows is a text or a script's own arguments.
                only_values = spelled != "--json";
                all.push(spelled.into());
            }
            _ => all.push(argument),
        }
    }
    all
}

/// Carries it out.
pub fn run(args: ShellArgs) -> anyhow::Result<ExitCode> {
    if args.coverage {
        show_coverage(args.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(file) = &args.check {
        let good = check_file(file, args.json)?;
        return Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    // Blocks that call each other need room.
    let shell = thread::Builder::new().name("shell".to_owned()).stack_size(STACK);
    let shell = shell.spawn(move || in_lab(&args))?;
    shell.join().map_err(|_| anyhow!("the shell's thread panicked"))?
}

fn in_lab(args: &ShellArgs) -> anyhow::Result<ExitCode> {
    let temporary = match &args.folder {
        Some(_) => None,
        None => Some(crate::swtpm::short_private_dir().map(Temporary)?),
    };
    let folder = match (&args.folder, &temporary) {
        (Some(folder), _) => {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
            fs::canonicalize(folder)?
        }
        (None, Some(Temporary(folder))) => folder.clone(),
        (None, None) => return Err(anyhow!("no folder for the machines' files")),
    };
    let lab = Rc::new(Lab::start(&folder, &Plan::default())?);
    if args.command.is_none() && args.file.is_empty() {
        return interactive::run(lab, &folder);
    }
    let mut session = Session::new(lab, cmdlets::registry(), Box::new(Standard))?;
    session.set_views(cmdlets::VIEWS);
    if args.json {
        session.keep_output();
    }
    let ended = match (&args.command, args.file.split_first()) {
        (Some(text), _) => session.run(text),
        (None, Some((file, arguments))) => {
            let text = fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
            session.run_script(file, &text, arguments)
        }
        (None, None) => Ended::Whole(true),
    };
    if let Some(kept) = session.kept_output() {
        let value = Value::from_output(kept);
        writeln!(io::stdout(), "{}", to_json(&value, JSON_DEPTH, false))?;
    }
    Ok(match ended {
        Ended::Whole(succeeded) if succeeded || args.command.is_none() => ExitCode::SUCCESS,
        Ended::Whole(_) | Ended::Failed => ExitCode::FAILURE,
        Ended::Exit(code) => ExitCode::from(u8::try_from(code.rem_euclid(256)).unwrap_or(1)),
    })
}

/// Removed with everything in it.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn show_coverage(json: bool) -> anyhow::Result<()> {
    let coverage = coverage(Table::builtin()?, &cmdlets::registry());
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

const STACK: usize = 256 << 20;
const JSON_DEPTH: usize = 5;
