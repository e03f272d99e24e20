//! `cluster`: drills on a cluster that runs in containers (`docker compose --profile cluster`), by whoever may
//! command its Docker engine. Clients go on all the while; the report has the counts, and the audit is held
//! against what clients saw. Nothing here decides anything about hosts or keys.

mod agent;
mod counts;
mod drill;
mod engine;
mod evidence;
mod front_door;
mod load;
mod report;
mod vms;

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::Context;

use self::{agent::Agent, drill::Stage, engine::Engine, evidence::Auditors, front_door::FrontDoor, load::World};
pub use self::{
    counts::{Counts, Quantiles, Traffic},
    drill::Which,
    report::{Check, Drill, Report},
    vms::ShieldArgs,
};

/// Drills on a cluster in containers.
#[derive(Clone, Debug, clap::Args)]
pub struct ClusterArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Verb {
    /// Carry drills out and report. Exit code 0: all expectations held; 1: some did not; 3: a drill could not be
    /// carried out
    Drill(DrillArgs),
    /// Make the VMs of drills. Run by `drill`, beside the hosts
    #[command(hide = true)]
    Shield(ShieldArgs),
}

#[derive(Clone, Debug, clap::Args)]
struct DrillArgs {
    /// Name of the compose project
    #[arg(long, env = "COMPOSE_PROJECT_NAME")]
    project: String,
    /// Requests a second at the front door, VM starts not counted
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(5..=1000))]
    rate: u32,
    /// Only this drill; may be repeated
    #[arg(long, value_enum)]
    only: Vec<Which>,
    /// Write the report as JSON to this file too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs it.
pub fn run(args: &ClusterArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    match &args.verb {
        Verb::Shield(args) => runtime.block_on(vms::shield(args)).map(|()| ExitCode::SUCCESS),
        Verb::Drill(args) => match runtime.block_on(drill(args)) {
            Ok(report) => Ok(match (&report.trouble, report.held) {
                (Some(_), _) => ExitCode::from(TROUBLE),
                (None, false) => ExitCode::FAILURE,
                (None, true) => ExitCode::SUCCESS,
            }),
            Err(error) => {
                eprintln!("{error:#}");
                Ok(ExitCode::from(TROUBLE))
            }
        },
    }
}

async fn drill(args: &DrillArgs) -> anyhow::Result<Report> {
    let engine = Engine::of(&args.project);
    let stage = stage(args.rate, engine.clone()).await?;
    let mut report = Report::of(args.rate);
    let wanted = |which: &Which| args.only.is_empty() || args.only.contains(which);
    for which in Which::ALL.into_iter().filter(wanted) {
        match stage.run(which).await {
            Ok(drill) => report.drills.push(drill),
            // What state the cluster is in is not known any more; what was drilled before still counts.
            Err(error) => {
                report.trouble = Some(format!("{error:#}"));
                break;
            }
        }
    }
    if report.trouble.is_none() {
        report.afterwards = afterwards(&stage).await?;
    }
    report.sum_up();
    print!("{report}");
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(report)
}

/// What clients saw, held against the audit and the ledgers.
async fn afterwards(stage: &Stage) -> anyhow::Result<Vec<Check>> {
    let [releases, certificates] = evidence::audited(&stage.engine, &stage.world.seen()).await?;
    let chains = stage.auditors.chains_hold(&stage.heads).await?;
    let ledgers = evidence::ran_once(&stage.engine, &HOSTS).await;
    Ok(vec![releases, certificates, chains, ledgers])
}

/// Finds the cluster, makes a VM for each host and lets the hosts attest.
async fn stage(rate: u32, engine: Engine) -> anyhow::Result<Stage> {
    let door = FrontDoor::at(engine.published("front-door", 8404).await?)?;
    door.until_all(&drill::REPLICAS, true, drill::PATIENCE).await?;
    let vm = |host: &str| format!("drill-{host}");
    let mut make = vec!["guarded-host-sim", "cluster", "shield", "--fabric", "/lab/fabric.json"];
    let wanted: Vec<String> = HOSTS.iter().map(|host| format!("--vm={}@{host}", vm(host))).collect();
    make.extend(wanted.iter().map(String::as_str));
    engine.run_beside("enrol", Some("hgs"), &make).await?;
    let mut hosts = Vec::new();
    for host in HOSTS {
        hosts.push((Agent::at(host, engine.published(host, 8700).await?)?, vm(host)));
    }
    let world = World::prepare(engine.published("front-door", 80).await?, hosts).await?;
    let auditors = Auditors::of(&engine).await?;
    let heads = auditors.heads().await?;
    Ok(Stage {
        engine,
        door,
        world: Arc::new(world),
        auditors,
        rate,
        heads,
    })
}

/// Exit code: a drill could not be carried out.
const TROUBLE: u8 = 3;
/// The hosts of docker-compose.yml.
const HOSTS: [&str; 4] = ["host01", "host02", "host11", "host12"];
