//! Crash drills: processes of a real fabric are killed at random instants of a VM's power-on, of rolls of its
//! transport key and of its live migration. Afterwards the VM must run on exactly one host or start on one, must have lost
//! nothing that was acknowledged, and at no instant may two hosts have run it: their ledgers tell.
//!
//! [`plan`] draws what happens from a seed; `field` is the fabric; `player` and `round` carry a round out;
//! [`judge`] says what is wrong.

mod field;
pub mod judge;
mod pace;
pub mod plan;
mod player;
mod prey;
mod round;
mod sabotage;
mod summary;
mod wire;

use std::{
    fs::File,
    io::{Write, stdout},
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::Context;
use hgs_protocol::env::{OsRandom, Random};

use self::plan::Plan;
pub use self::{
    field::{Field, SEATS, Seat, Who},
    player::Player,
    round::{Hit, Kind, Outcome, Record},
    sabotage::Sabotage,
    summary::Summary,
    wire::Wire,
};

/// Options of a drill.
#[derive(Clone, Debug, clap::Args)]
pub struct DrillArgs {
    /// How many processes to kill at random instants. For every ten a kill at a commit point comes on top, for every
    /// twenty a process that stands still and a cut of the link between the hosts
    #[arg(long, default_value_t = 200)]
    pub kills: usize,
    /// Draw the plan from this seed [default: a fresh one, which is printed]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Print one JSON document, and nothing else, on standard output
    #[arg(long)]
    pub json: bool,
    /// Keep everything in this directory, which must be new or empty [default: a temporary one, kept when something is
    /// wrong]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Spoil the run after its first round, to see that the drill notices
    #[arg(long, value_enum)]
    pub sabotage: Option<Sabotage>,
}

/// Runs a drill. Answers whether nothing was wrong.
pub fn run(args: &DrillArgs) -> anyhow::Result<bool> {
    let (dir, temporary) = match &args.dir {
        Some(dir) => {
            std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
            let used = std::fs::read_dir(dir)?.next().is_some();
            anyhow::ensure!(!used, "the directory {} is not empty: name a new one", dir.display());
            (dir.canonicalize()?, false)
        }
        None => (crate::swtpm::short_private_dir()?, true),
    };
    // Agents run under a user of their own and have their folders below.
    crate::machine::user::let_others_pass(&dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    if temporary {
        runtime.spawn(crate::demo::clear_up_when_interrupted(dir.clone()));
    }
    let summary = runtime.block_on(drill(args, &dir));
    let summary = summary.with_context(|| format!("no drill (everything of this run is in {})", dir.display()))?;
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&summary)?),
        false => print!("{summary}"),
    }
    if temporary && summary.good() {
        let _ = std::fs::remove_dir_all(&dir);
    } else {
        eprintln!("Everything of this run is in {}; {TRANSCRIPT} tells it.", dir.display());
    }
    Ok(summary.good())
}

async fn drill(args: &DrillArgs, dir: &Path) -> anyhow::Result<Summary> {
    let seed = args
        .seed
        .unwrap_or_else(|| u64::from(u32::from_le_bytes((&mut OsRandom as &mut dyn Random).bytes())));
    let begin = Instant::now();
    let mut told = Told {
        json: args.json,
        transcript: File::create(dir.join(TRANSCRIPT))?,
        records: Vec::new(),
    };
    told.say(&format!(
        "drill of {} kills, seed {seed}: setting up a fabric",
        args.kills
    ));
    let field = Field::set(&dir.join("fabric"))
        .await
        .context("the fabric does not come up")?;
    let mut player = Player::begin(field).await.context("the VM does not run undisturbed")?;
    let stopped = play(args, seed, &mut player, &mut told).await.err();
    let stopped = stopped.map(|error| format!("{error:#}"));
    Ok(Summary::of(seed, told.records, player.pace(), stopped, begin.elapsed()))
}

/// Plays until as many processes were killed as were asked for: a kill that found nobody does not count.
async fn play(args: &DrillArgs, seed: u64, player: &mut Player, told: &mut Told) -> anyhow::Result<()> {
    let mut plan = Plan::new(seed);
    let mut rounds = plan.draw(args.kills);
    for _ in 0..TRIES {
        for round in &rounds {
            let number = told.records.len() + 1;
            match (number, args.sabotage) {
                (2, Some(sabotage)) => player.spoil(sabotage).await?,
                _ if number.is_multiple_of(MEASURED_EVERY) => player.measure().await?,
                _ => {}
            }
            let record = player.play(number, round).await;
            let record = record.with_context(|| format!("round {number} ({}, {})", round.phase, round.blow))?;
            let stuck = record.stuck;
            told.tell(record)?;
            anyhow::ensure!(!stuck, "the VM does not go on after round {number}");
        }
        let struck = |record: &&Record| record.kind == Kind::Kill && record.hit != Hit::Nobody;
        let missing = args.kills.saturating_sub(told.records.iter().filter(struck).count());
        if missing == 0 {
            return Ok(());
        }
        rounds = plan.kills(missing);
    }
    anyhow::bail!("too many kills found nobody")
}

/// Where a drill is told.
struct Told {
    json: bool,
    transcript: File,
    records: Vec<Record>,
}

impl Told {
    fn tell(&mut self, record: Record) -> anyhow::Result<()> {
        writeln!(self.transcript, "{}", serde_json::to_string(&record)?)?;
        self.say(&record.to_string());
        for fault in &record.faults {
            self.say(&format!("     FAULT: {fault}"));
        }
        self.records.push(record);
        Ok(())
    }

    fn say(&self, line: &str) {
        if !self.json {
            println!("{line}");
            let _ = stdout().flush();
        }
    }
}

/// One JSON object a round.
const TRANSCRIPT: &str = "transcript.jsonl";
/// How often the plan is topped up before it is given up.
const TRIES: usize = 5;
/// A machine's pace changes; it is measured anew after so many rounds.
const MEASURED_EVERY: usize = 25;
