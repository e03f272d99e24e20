//! `guarded-host-sim run`: reads scenario files, runs them, tells how it goes, writes the reports.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::Context;
use tokio::task::JoinSet;

use super::{
    parse::{self, Fault, ScenarioFile},
    pool::TpmPool,
    report,
    run::{Report, Running, Verdict, run as run_one},
    schema,
    teller::Teller,
    world::{Attached, Way},
};
use crate::{demo::clear_up_when_interrupted, machine::user::let_others_pass, swtpm::short_private_dir};

/// What to run and what to write. Exit codes: 0 everything passed; 1 something else came than a scenario expects; 2 a
/// file is no valid scenario, or the options are wrong; 3 the lab had trouble: a service or host of its own fabric
/// does not start or answer.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// Scenario files, or folders of them
    #[arg(required_unless_present = "schema")]
    pub paths: Vec<PathBuf>,
    /// Write JUnit XML to this file
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Write pages for people into this folder: timelines, every message decoded, coverage
    #[arg(long, value_name = "DIR")]
    pub html: Option<PathBuf>,
    /// Write one JSON document to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Run only scenarios whose name or title contains this, or that have it as a tag
    #[arg(long, value_name = "TEXT")]
    pub filter: Option<String>,
    /// How many scenarios run at a time [default: two for each core, since much of a scenario is waiting]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: Option<u16>,
    /// Let time that must pass be passed by moving the clocks
    #[arg(long)]
    pub virtual_time: bool,
    /// How the parts of a fabric run
    #[arg(long, value_enum, default_value = "in-process")]
    pub way: Way,
    /// Run on the HGS that is up and that this file (written by `prepare`) describes, one scenario after the other. Hosts
    /// are processes here. What the HGS's other users would suffer from is skipped, and the HGS is left as it was
    #[arg(long, value_name = "FILE", conflicts_with_all = ["way", "virtual_time", "jobs"])]
    pub attach: Option<PathBuf>,
    /// Print the JSON schema of scenario files, and do nothing else
    #[arg(long)]
    pub schema: bool,
}

/// Runs scenarios.
pub fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    // What ends a run early is the lab's own trouble, and no verdict on any scenario.
    Ok(carry_out(args).unwrap_or_else(|error| {
        eprintln!("trouble: {error:#}");
        ExitCode::from(TROUBLE)
    }))
}

fn carry_out(args: &RunArgs) -> anyhow::Result<ExitCode> {
    if args.schema {
        print!("{}", schema::text()?);
        return Ok(ExitCode::SUCCESS);
    }
    let files = match read(&args.paths, args.filter.as_deref()) {
        Ok(files) => files,
        Err(faults) => {
            for fault in &faults {
                eprintln!("{fault}");
            }
            eprintln!(
                "{} of the scenario files wrong: nothing was run. `guarded-host-sim run --schema` prints what a file may \
                 hold.",
                if faults.len() == 1 {
                    "1 place is".to_owned()
                } else {
                    format!("{} places are", faults.len())
                }
            );
            return Ok(ExitCode::from(INVALID));
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let pages = args.html.as_ref().map(|folder| folder.join("index.html"));
    for file in [&args.junit, &pages, &args.json].into_iter().flatten() {
        report::begin(file)?;
    }
    let (how, reports) = runtime.block_on(run_all(files, args))?;
    if let Some(path) = &args.junit {
        report::write(path, &report::junit::document(&reports)?)?;
    }
    if let Some(folder) = &args.html {
        report::html::write_all(folder, &how, &reports)?;
        println!("the report is {}", folder.join("index.html").display());
    }
    if let Some(path) = &args.json {
        let document = serde_json::to_string_pretty(&report::json::document(&how, &reports))?;
        report::write(path, &(document + "\n"))?;
    }
    let any = |word: &str| reports.iter().any(|report| report.verdict.word() == word);
    Ok(match (any("trouble"), any("failed")) {
        (true, _) => ExitCode::from(TROUBLE),
        (false, true) => ExitCode::FAILURE,
        (false, false) => ExitCode::SUCCESS,
    })
}

/// The scenarios in `paths` that `filter` lets through, by name; or everything wrong with the files.
fn read(paths: &[PathBuf], filter: Option<&str>) -> Result<Vec<ScenarioFile>, Vec<Fault>> {
    let (mut files, mut faults) = (Vec::new(), Vec::new());
    for path in paths {
        match found(path) {
            Ok(found) => {
                for file in found {
                    match parse::read(&file) {
                        Ok(file) => files.push(file),
                        Err(wrong) => faults.extend(wrong),
                    }
                }
            }
            Err(fault) => faults.push(fault),
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    files.retain(|file| filter.is_none_or(|wanted| is_meant(file, wanted)));
    if files.is_empty() {
        let what = filter.map_or_else(
            || "there is no scenario".to_owned(),
            |f| format!("no scenario fits --filter {f}"),
        );
        return Err(vec![bare(paths.first().map_or(Path::new("."), PathBuf::as_path), what)]);
    }
    Ok(files)
}

/// The scenario files that `path` means, by name.
fn found(path: &Path) -> Result<Vec<PathBuf>, Fault> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let unreadable = |error: std::io::Error| bare(path, format!("the folder cannot be read: {error}"));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?.path();
        if entry.is_dir() {
            files.extend(found(&entry)?);
        } else if entry.extension().is_some_and(|ending| ending == "toml") {
            files.push(entry);
        }
    }
    files.sort();
    match files.is_empty() {
        true => Err(bare(path, "the folder holds no scenario (*.toml)".to_owned())),
        false => Ok(files),
    }
}

fn bare(path: &Path, message: String) -> Fault {
    Fault {
        path: path.to_path_buf(),
        place: None,
        field: String::new(),
        message,
    }
}

fn is_meant(file: &ScenarioFile, wanted: &str) -> bool {
    let wanted = wanted.to_lowercase();
    let contains = |text: &str| text.to_lowercase().contains(&wanted);
    let tag = |tag: &String| tag.to_lowercase() == wanted;
    contains(&file.name) || contains(&file.scenario.title) || file.scenario.tags.iter().any(tag)
}

/// Runs all, as many at a time as asked for. Gives in what way, and the reports in the order of the files.
async fn run_all(files: Vec<ScenarioFile>, args: &RunArgs) -> anyhow::Result<(String, Vec<Report>)> {
    let folder = short_private_dir()?;
    let_others_pass(&folder)?;
    tokio::spawn(clear_up_when_interrupted(folder.clone()));
    let (way, jobs) = match &args.attach {
        Some(description) => (Way::Attached(Arc::new(Attached::hold(description).await?)), 1),
        None => (args.way.clone(), args.jobs.map_or_else(|| cores() * 2, usize::from)),
    };
    let running = Running {
        way,
        virtual_time: args.virtual_time,
        pool: Arc::new(TpmPool::new(&folder.join("tpms"))?),
    };
    let teller = Teller::new(files.len(), &running.told());
    let mut waiting = files.into_iter().enumerate();
    let mut under_way: JoinSet<(usize, Report)> = JoinSet::new();
    let mut done: Vec<(usize, Report)> = Vec::new();
    loop {
        while under_way.len() < jobs
            && let Some((number, file)) = waiting.next()
        {
            let (running, teller) = (running.clone(), teller.clone());
            under_way.spawn(async move {
                let name = file.name.clone();
                teller.begins(&name);
                let progress = teller.clone();
                let report = run_one(file, &running, move |_, step| progress.step(&name, step)).await;
                teller.ends(&report);
                (number, report)
            });
        }
        let ended = tokio::select! {
            ended = under_way.join_next() => ended,
            () = teller.ticks() => continue,
        };
        match ended {
            Some(report) => done.push(report.context("a scenario's task ended early")?),
            None => break,
        }
    }
    let _ = std::fs::remove_dir_all(&folder);
    done.sort_by_key(|(number, _)| *number);
    let reports: Vec<Report> = done.into_iter().map(|(_, report)| report).collect();
    teller.sums_up(&reports);
    Ok((running.told(), reports))
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A file is no valid scenario.
const INVALID: u8 = 2;
/// The lab had trouble.
const TROUBLE: u8 = 3;

impl Report {
    /// Whether everything came as expected.
    pub fn passed(&self) -> bool {
        self.verdict == Verdict::Passed
    }
}
