//! `load`: many light hosts in one process. Each is a host of its own, with its own TPM, boot log and VSM keys,
//! that attests by the host's own code, holds its certificate and renews it; none has processes of its own but
//! its TPM. Measures what that takes, and counts at the end, against the signer's key, who holds a certificate.

mod fleet;
mod host;
mod limits;
mod memory;
mod phases;
mod pool;
pub mod report;
mod services;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use hgs_protocol::{
    env::{Clock, UnixTime},
    health::AttestationMode,
};
use tokio::sync::{Semaphore, watch};

use self::{
    fleet::{Come, Fleet, Hold},
    host::Tally,
    limits::{Need, make_room},
    memory::{peak_rss_kib, pss_kib},
    pool::Pool,
    report::{Cause, Memory, Round, Summary, round},
    services::Services,
};
use crate::{
    client::{LabClient, NameTable},
    demo::{clear_up_when_interrupted, working_folder},
};

/// How many hosts, before which service, and what they do there. Exit codes: 0 every host holds a valid
/// certificate at the end; 1 one does not, or the run failed; 2 wrong options.
#[derive(Clone, Debug, clap::Args)]
pub struct LoadArgs {
    /// How many hosts
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=99_999))]
    pub hosts: u32,
    /// How the hosts attest
    #[arg(long, value_enum, default_value_t)]
    pub mode: LoadMode,
    /// How often each host attests. After the first time the lab's clock moves on to where the certificates are to
    /// be renewed; without such a clock hosts attest anew at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// How many attestations are under way at a time [default: four for each core]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub concurrency: Option<u32>,
    /// How many TPMs run at a time; the others sleep, their state on disk [default: all run]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub tpms: Option<u32>,
    /// After the rounds hold the certificates for so many seconds; hosts renew them as they become due
    #[arg(long, value_name = "SECONDS", conflicts_with = "hold_until_renewal")]
    pub hold: Option<u64>,
    /// After the rounds hold the certificates until each host has renewed its own. Where the lab may move the clock it
    /// moves on to the first renewal
    #[arg(long)]
    pub hold_until_renewal: bool,
    /// Let all hosts attest anew, at once, while both services are killed and started again
    #[arg(long, conflicts_with = "attestation")]
    pub restart_services: bool,
    /// How many seconds a host goes on trying while the service does not answer or has too much to do
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub patience: u64,
    /// Base URL of an attestation service that runs already, as hosts are told it; this run starts its own otherwise
    #[arg(long, value_name = "URL", requires_all = ["attestation_admin", "token_file"])]
    pub attestation: Option<String>,
    /// URL of its administrators' listener
    #[arg(long, value_name = "URL", requires = "attestation")]
    pub attestation_admin: Option<String>,
    /// File with an administrator's token for it (one line)
    #[arg(long, value_name = "FILE", requires = "attestation")]
    pub token_file: Option<PathBuf>,
    /// PEM file with the root certificate of its HTTPS listeners
    #[arg(long, value_name = "FILE", requires = "attestation")]
    pub attestation_root: Option<PathBuf>,
    /// The socket of its lab clock, where it has one
    #[arg(long, value_name = "SOCKET", requires = "attestation")]
    pub lab_clock: Option<PathBuf>,
    /// The fabric's name table (JSON), where the URL has a name
    #[arg(long, value_name = "FILE", requires = "attestation")]
    pub names: Option<PathBuf>,
    /// Keep TPMs and keys in this folder and take those that are there [default: made anew for this run]
    #[arg(long)]
    pub pool: Option<PathBuf>,
    /// Keep everything else in this directory, which must be new or empty [default: a temporary one, removed at the
    /// end]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// How light hosts attest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LoadMode {
    /// By TPM: four trips of TPM commands each.
    #[default]
    Tpm,
    /// By host key: one request each, and no TPM.
    Hostkey,
}

impl LoadMode {
    fn of_attestation(self) -> AttestationMode {
        match self {
            LoadMode::Tpm => AttestationMode::Tpm,
            LoadMode::Hostkey => AttestationMode::HostKey,
        }
    }
}

/// Runs the hosts and prints the summary. Answers whether every host held a valid certificate at the end.
pub fn run(args: &LoadArgs) -> anyhow::Result<bool> {
    let plan = Plan::of(args);
    make_room(Need::of(plan.running_tpms, plan.at_once()))?;
    let (folder, remove) = working_folder(args.dir.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(plan.cores)
        .max_blocking_threads(plan.at_once().clamp(64, 512))
        .enable_all()
        .build()?;
    if remove {
        runtime.spawn(clear_up_when_interrupted(folder.clone()));
    }
    let summary = runtime.block_on(load(args, &plan, &folder));
    if remove {
        let _ = std::fs::remove_dir_all(&folder);
    }
    let summary = summary?;
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&summary)?),
        false => println!("{summary}"),
    }
    Ok(summary.is_good())
}

/// The numbers of a run.
struct Plan {
    cores: usize,
    hosts: usize,
    concurrency: usize,
    /// TPMs that run when the hosts rest.
    running_tpms: usize,
    sleeps: bool,
    restarts: bool,
}

impl Plan {
    fn of(args: &LoadArgs) -> Plan {
        let size = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let hosts = size(args.hosts);
        let most_tpms = match args.mode {
            LoadMode::Tpm => args.tpms.map_or(hosts, size).min(hosts),
            LoadMode::Hostkey => 0,
        };
        let sleeps = args.mode == LoadMode::Tpm && most_tpms < hosts;
        let wanted = args.concurrency.map_or(cores.saturating_mul(4), size).min(hosts);
        Plan {
            cores,
            hosts,
            // A TPM that sleeps runs only while its host attests.
            concurrency: if sleeps { wanted.min(most_tpms) } else { wanted },
            running_tpms: most_tpms,
            sleeps,
            restarts: args.restart_services,
        }
    }

    /// The most attestations that may be under way.
    fn at_once(&self) -> usize {
        match self.restarts && !self.sleeps {
            true => self.hosts,
            false => self.concurrency,
        }
    }

    /// Threads that make or boot hosts. swtpm and its tools wait a good part of their time.
    fn workers(&self) -> usize {
        let most = if self.sleeps { self.running_tpms } else { usize::MAX };
        self.cores.saturating_mul(4).min(most)
    }
}

async fn load(args: &LoadArgs, plan: &Plan, folder: &Path) -> anyhow::Result<Summary> {
    let mode = args.mode.of_attestation();
    // First what may fail at once.
    let mut services = Services::open(args, &folder.join("services"), mode).await?;
    let clock = Clock::system();
    let ahead = services.now().await?.map_or(0, |now| now.seconds_since(clock.now()));
    clock.advance(Duration::from_secs(u64::try_from(ahead).unwrap_or_default()));
    let names = args.names.as_deref().map(NameTable::read).transpose()?;
    let client = LabClient::new(
        names.unwrap_or_default(),
        args.attestation_root.as_deref(),
        clock.clone(),
    )?;
    let pool = Pool::open(&args.pool.clone().unwrap_or_else(|| folder.join("pool")))?;
    let tally = Arc::new(Tally::default());
    let (made, power_on, on) = tokio::task::block_in_place(|| phases::prepare(args.mode, plan, &pool, &tally))?;
    let registration = tokio::task::block_in_place(|| phases::register(&services, &pool, &on, plan))?;
    let fleet = Arc::new(Fleet {
        hosts: on.hosts,
        client,
        url: services.url(),
        mode,
        clock: clock.clone(),
        places: Semaphore::new(plan.concurrency),
        sleeps: plan.sleeps,
        patience: Duration::from_secs(args.patience),
        tally,
    });
    let rounds = rounds(args, &fleet, &mut services).await?;
    if let Some(ended) = services.ended() {
        anyhow::bail!("{ended}");
    }
    let memory = memory(&fleet, &services, plan.hosts);
    let (valid_certificates, mut failures) = fleet.verify().await?;
    for (why, hosts) in on.failures {
        *failures.entry(why).or_insert(0) += hosts;
    }
    Ok(Summary {
        hosts: plan.hosts,
        mode: match args.mode {
            LoadMode::Tpm => "tpm",
            LoadMode::Hostkey => "hostkey",
        },
        cores: plan.cores,
        concurrency: plan.concurrency,
        made,
        power_on,
        registration,
        rounds,
        memory,
        valid_certificates,
        failures,
    })
}

/// Everything that the hosts do at the service.
async fn rounds(args: &LoadArgs, fleet: &Arc<Fleet>, services: &mut Services) -> anyhow::Result<Vec<Round>> {
    let mut rounds = vec![fleet.round(Cause::Boot, Come::ByPlaces).await];
    // Before the clocks move: a process that starts anew has the system's time again.
    if args.restart_services {
        rounds.push(restart_services(fleet, services).await?);
    }
    for _ in 1..args.rounds {
        let cause = match services.has_lab_clock() {
            true => {
                let due = fleet.hosts.iter().filter_map(|host| host.due_at()).max();
                advance(fleet, services, due).await?;
                Cause::Renewal
            }
            false => Cause::Told,
        };
        rounds.push(fleet.round(cause, Come::ByPlaces).await);
    }
    let hold = match (args.hold, args.hold_until_renewal) {
        (Some(seconds), _) => Some(Hold::For(Duration::from_secs(seconds))),
        (None, true) => {
            if services.has_lab_clock() {
                let due = fleet.hosts.iter().filter_map(|host| host.due_at()).min();
                advance(fleet, services, due).await?;
            }
            Some(Hold::UntilRenewal)
        }
        (None, false) => None,
    };
    if let Some(hold) = hold {
        rounds.push(fleet.hold(hold).await);
    }
    Ok(rounds)
}

/// Moves the lab's clock forward to `due`, here and at the services.
async fn advance(fleet: &Fleet, services: &Services, due: Option<UnixTime>) -> anyhow::Result<()> {
    let seconds = due.map_or(0, |due| due.seconds_since(fleet.clock.now()));
    let seconds = u64::try_from(seconds).unwrap_or_default();
    services.advance_clock(seconds).await?;
    fleet.clock.advance(Duration::from_secs(seconds));
    Ok(())
}

/// All hosts attest anew, none waiting for a place. Once a tenth of them has a certificate both services are killed,
/// then the second half comes, and once a tenth of the hosts was left without an answer they are started again.
async fn restart_services(fleet: &Arc<Fleet>, services: &mut Services) -> anyhow::Result<Round> {
    let tenth = (fleet.hosts.len() / 10).max(1);
    let (mut attested, mut unanswered) = (fleet.tally.attested.subscribe(), fleet.tally.unanswered.subscribe());
    // What an earlier round left there does not count.
    fleet.tally.begin();
    let (killed, come) = watch::channel(false);
    let round_of_all = fleet.round(Cause::ServicesRestarted, Come::HalfAfter(come));
    let restart = async move {
        // Both senders live as long as the fleet, so the waits end by their condition.
        let enough = attested.wait_for(|n| *n >= tenth);
        let _ = tokio::time::timeout(LONGEST_WAIT, enough).await;
        let begin = Instant::now();
        tokio::task::block_in_place(|| services.kill())?;
        killed.send_replace(true);
        let enough = unanswered.wait_for(|n| *n >= tenth);
        let _ = tokio::time::timeout(LONGEST_WAIT, enough).await;
        tokio::task::block_in_place(|| services.restart()).context("the services did not start again")?;
        anyhow::Ok(begin.elapsed())
    };
    let (mut report, away) = tokio::join!(round_of_all, restart);
    report.services_away_seconds = Some(round(away?.as_secs_f64()));
    Ok(report)
}

fn memory(fleet: &Fleet, services: &Services, hosts: usize) -> Memory {
    let tpms: Vec<u32> = fleet.hosts.iter().filter_map(|host| host.tpm_process()).collect();
    let process_kib = pss_kib(std::process::id());
    let tpms_kib = tpms.iter().map(|process| pss_kib(*process)).sum::<Option<u64>>();
    let per_host = |(process, tpms): (u64, u64)| round((process + tpms) as f64 / hosts as f64);
    Memory {
        process_kib,
        process_peak_rss_kib: peak_rss_kib(),
        tpms_running: tpms.len(),
        tpms_kib,
        per_host_kib: process_kib.zip(tpms_kib).map(per_host),
        services: services.memory(),
    }
}

/// Where so few hosts come, or get through, that the number is never reached.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
