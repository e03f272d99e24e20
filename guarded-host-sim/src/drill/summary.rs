//! What a drill came to: a table by operation and victim, and the whole as a JSON document.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::Serialize;

use super::{
    pace::Pace,
    plan::Phase,
    round::{Hit, Kind, Outcome, Record},
};

/// The whole.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// From which the plan was drawn.
    pub seed: u64,
    /// How many processes were killed, at random instants and at commit points.
    pub kills: usize,
    /// Kills at random instants.
    pub random_kills: Hits,
    /// Kills at commit points.
    pub commit_point_kills: Hits,
    /// Processes that stood still for a time.
    pub stalls: Hits,
    /// Cuts of the link between the hosts.
    pub partitions: Hits,
    /// Migration streams that were sent again, each to one host, and refused.
    pub replays_refused: usize,
    /// Each operation, whether with attestation, and its undisturbed duration in milliseconds.
    pub durations_ms: Vec<(Phase, bool, u128)>,
    /// By operation and victim.
    pub table: Vec<Row>,
    /// What must not be, each with its round.
    pub faults: Vec<String>,
    /// Why the drill ended before its plan did.
    pub stopped: Option<String>,
    /// How long it took, in seconds.
    pub seconds: u64,
    /// Every round.
    pub rounds: Vec<Record>,
}

/// When blows fell.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Hits {
    /// While the operation was under way.
    pub during: usize,
    /// After it had ended.
    pub after: usize,
    /// There was nobody to strike.
    pub nobody: usize,
}

/// One line of the table.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Row {
    /// The operation.
    pub phase: Phase,
    /// Whom the blows were for.
    pub victim: String,
    /// When they fell.
    pub hits: Hits,
    /// How often the VM ran on the source by itself.
    pub ran_on_source: usize,
    /// On the target.
    pub ran_on_target: usize,
    /// How often it ran nowhere and was started when all was back, on the source.
    pub started_on_source: usize,
    /// On the target.
    pub started_on_target: usize,
    /// How often it did not run at all.
    pub lost: usize,
}

impl Summary {
    /// Of the rounds of a drill.
    pub fn of(seed: u64, rounds: Vec<Record>, pace: &Pace, stopped: Option<String>, took: Duration) -> Summary {
        let hits = |kind| Hits::of(rounds.iter().filter(|round| round.kind == kind));
        let (random_kills, commit_point_kills) = (hits(Kind::Kill), hits(Kind::CommitPoint));
        let faults = rounds.iter().flat_map(|round| {
            let faults = round.faults.iter();
            faults.map(|fault| format!("round {} ({}, {}): {fault}", round.round, round.phase, round.blow))
        });
        Summary {
            seed,
            kills: random_kills.delivered() + commit_point_kills.delivered(),
            random_kills,
            commit_point_kills,
            stalls: hits(Kind::Stall),
            partitions: hits(Kind::Partition),
            replays_refused: rounds
                .iter()
                .flat_map(|round| &round.replay)
                .filter(|said| said.contains("refused"))
                .count(),
            durations_ms: pace.all(),
            table: table(&rounds),
            faults: faults.collect(),
            stopped,
            seconds: took.as_secs(),
            rounds,
        }
    }

    /// Whether everything was played and nothing was wrong.
    pub fn good(&self) -> bool {
        self.faults.is_empty() && self.stopped.is_none()
    }
}

impl Hits {
    fn of<'a>(rounds: impl Iterator<Item = &'a Record>) -> Hits {
        let mut hits = Hits::default();
        for round in rounds {
            match round.hit {
                Hit::During => hits.during += 1,
                Hit::After => hits.after += 1,
                Hit::Nobody => hits.nobody += 1,
            }
        }
        hits
    }

    /// Those that struck somebody.
    pub fn delivered(self) -> usize {
        self.during + self.after
    }
}

fn table(rounds: &[Record]) -> Vec<Row> {
    let mut groups: BTreeMap<(Phase, &str), Vec<&Record>> = BTreeMap::new();
    for round in rounds {
        groups.entry((round.phase, &round.victim)).or_default().push(round);
    }
    let row = |((phase, victim), rounds): ((Phase, &str), Vec<&Record>)| {
        let ended = |outcome| rounds.iter().filter(|round| round.outcome == outcome).count();
        Row {
            phase,
            victim: victim.to_owned(),
            hits: Hits::of(rounds.iter().copied()),
            ran_on_source: ended(Outcome::RanOnSource),
            ran_on_target: ended(Outcome::RanOnTarget),
            started_on_source: ended(Outcome::StartedOnSource),
            started_on_target: ended(Outcome::StartedOnTarget),
            lost: ended(Outcome::Lost),
        }
    };
    groups.into_iter().map(row).collect()
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n{:<10} {:<27} {:>6} {:>6} {:>6} | {:>8} {:>8} | {:>8} {:>8}\n{:<38} {:>6} {:>6} {:>6} | {:>17} | {:>17}",
            "",
            "",
            "during",
            "after",
            "nobody",
            "source",
            "target",
            "source",
            "target",
            "",
            "",
            "",
            "",
            "ran on",
            "started later on"
        )?;
        for row in &self.table {
            write!(
                f,
                "{:<10} {:<27} {:>6} {:>6} {:>6} | {:>8} {:>8} | {:>8} {:>8}",
                row.phase.to_string(),
                row.victim,
                row.hits.during,
                row.hits.after,
                row.hits.nobody,
                row.ran_on_source,
                row.ran_on_target,
                row.started_on_source,
                row.started_on_target
            )?;
            match row.lost {
                0 => writeln!(f)?,
                lost => writeln!(f, "  LOST {lost}")?,
            }
        }
        writeln!(f)?;
        for (phase, cold, took) in &self.durations_ms {
            let attests = if *cold { " with attestation" } else { "" };
            writeln!(f, "undisturbed {phase}{attests}: {took} ms")?;
        }
        for (what, hits) in [
            ("kills at random instants", self.random_kills),
            ("kills at commit points", self.commit_point_kills),
            ("stalls", self.stalls),
            ("partitions", self.partitions),
        ] {
            writeln!(
                f,
                "{} {what}: {} during the operation, {} after it had ended; {} more found nobody",
                hits.delivered(),
                hits.during,
                hits.after,
                hits.nobody
            )?;
        }
        writeln!(f, "{} replays of migration streams were refused", self.replays_refused)?;
        for fault in &self.faults {
            writeln!(f, "FAULT: {fault}")?;
        }
        if let Some(reason) = &self.stopped {
            writeln!(f, "The drill could not go on: {reason}")?;
        }
        writeln!(
            f,
            "seed {}: {} kills in {} s, {} faults",
            self.seed,
            self.kills,
            self.seconds,
            self.faults.len()
        )
    }
}
