//! One round: the operation begins, something strikes, what has ended is started again, the VM is found, and all that
//! was promised must hold.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::Context;
use serde::Serialize;
use serde_json::Value;
use tokio::{
    task::JoinHandle,
    time::{sleep, sleep_until},
};

use super::{
    field::{SEATS, Seat, Who},
    judge::{Fault, Operation, Promised, Running, judge},
    plan::{Back, Blow, Phase, Round, Side, Victim},
    player::{Player, Told},
    prey::{self, Stopped},
    wire::Wire,
};
use crate::{
    fabric::host::Answer,
    vm::{operation::PoweredOn, volume::CheckpointEntry},
};

/// What happened in a round, as the transcript has it.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// From 1.
    pub round: usize,
    /// The operation.
    pub phase: Phase,
    /// Whom the blow was for, as the summary counts it.
    pub victim: String,
    /// The blow in words.
    pub blow: String,
    /// What kind it was.
    pub kind: Kind,
    /// The host that owned the VM.
    pub source: &'static str,
    /// Whether attestation was part of the operation.
    pub cold: bool,
    /// When what was killed was started again.
    pub back: Back,
    /// When the blow fell.
    pub hit: Hit,
    /// Milliseconds from the operation's begin to the blow.
    pub after_ms: u128,
    /// What the operation's caller was told, or why nothing.
    pub answer: String,
    /// What had ended, and how.
    pub ended: Vec<String>,
    /// Where the VM was found.
    pub outcome: Outcome,
    /// The stream of the migration was sent to both hosts again, and this is what they said.
    pub replay: Vec<String>,
    /// What must not be.
    pub faults: Vec<String>,
    /// Whether no further round can be played with the VM as it is.
    pub stuck: bool,
    /// Milliseconds that the round took.
    pub took_ms: u128,
}

/// What kind of blow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// SIGKILL at a random instant.
    Kill,
    /// A kill at a commit point.
    CommitPoint,
    /// A process stood still for a time.
    Stall,
    /// The hosts did not hear each other for a time.
    Partition,
}

/// When a blow fell.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hit {
    /// While the operation was under way.
    During,
    /// The operation had ended already.
    After,
    /// There was no such process, or the commit point was not passed.
    Nobody,
}

/// Where the VM was when all was back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It ran on the source.
    RanOnSource,
    /// It ran on the target.
    RanOnTarget,
    /// It ran nowhere and was started, on the source.
    StartedOnSource,
    /// It ran nowhere and was started, on the target.
    StartedOnTarget,
    /// It runs nowhere.
    Lost,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hit = match self.hit {
            Hit::During => format!("{} ms into it", self.after_ms),
            Hit::After => format!("after it had ended, {} ms", self.after_ms),
            Hit::Nobody => "found nobody".to_owned(),
        };
        let outcome = match self.outcome {
            Outcome::RanOnSource => "the VM ran on the source",
            Outcome::RanOnTarget => "the VM ran on the target",
            Outcome::StartedOnSource => "the VM started later on the source",
            Outcome::StartedOnTarget => "the VM started later on the target",
            Outcome::Lost => "THE VM IS LOST",
        };
        let answer = self.answer.split(':').next().unwrap_or_default();
        let (round, phase, blow) = (self.round, self.phase.to_string(), &self.blow);
        write!(f, "{round:>4} {phase:<9} {blow} ({hit}): {answer}; {outcome}")
    }
}

struct Strike {
    hit: Hit,
    after: Duration,
}

impl Player {
    /// Plays a round. An error is a drill that cannot go on, not a fault of the VM.
    pub async fn play(&mut self, number: usize, round: &Round) -> anyhow::Result<Record> {
        let whole = Instant::now();
        let crash = match round.blow {
            Blow::CommitPoint { side, point } => Some((side, point)),
            _ => None,
        };
        let source = self.arrange(round.phase, round.cold, crash).await?;
        let wire = Wire::to(self.field.address(source.other())?).await?;
        let (operation, told) = self.operation(round.phase, source, &wire.url)?;
        let mut promised = self.promised(round.phase, operation)?;
        let struck = struck(round, source);
        // Now, because looking takes longer than some processes have to live.
        let prey = match round.blow {
            Blow::Kill { victim, .. } | Blow::Stall { victim, .. } => self.field.prey(victim, source),
            Blow::CommitPoint { .. } | Blow::Partition { .. } => Vec::new(),
        };

        let begin = Instant::now();
        let told = tokio::spawn(async move { (told.await, begin.elapsed()) });
        let mut strike = self.strike(round, prey, begin, &told, &wire).await;
        let (mut ended, mut down) = (Vec::new(), struck.as_slice());
        if round.back == Back::AtOnce && crash.is_none() && strike.hit != Hit::Nobody {
            ended.extend(self.raise(&struck).await?);
            down = &[];
        }
        let (told, took) = told.await.context("the drill's own request ended early")?;
        if strike.hit == Hit::After {
            self.pace.learn(round.phase, round.cold, took);
        }
        if let Some((side, _)) = crash {
            strike = self.crashed(source.at(side), begin).await?;
        }
        if strike.hit == Hit::Nobody {
            down = &[];
        }
        ended.extend(self.raise(down).await?);
        let unasked = ended.iter().filter(|(who, _)| !struck.contains(who));
        let went_down = unasked.map(|(who, how)| format!("{}: {how}", who.name())).collect();
        keep(&mut promised, &told)?;

        let running = self.find(source).await;
        let stream = wire.request();
        let (replay, took_replay) = self.send_again(stream).await;
        let found = self.look(running, went_down, took_replay).await?;
        let accounts = self.field.accounts().map_err(|error| error.to_string());
        let mut faults = judge(&promised, &found, &accounts, &self.known);
        let mut stuck = found.running.is_err();
        if let Ok(running) = &found.running
            && let Err(error) = self.go_on(running).await
        {
            stuck = true;
            faults.push(Fault::DoesNotGoOn(format!("{error:#}")));
        }
        self.known.extend(faults.iter().cloned());
        Ok(Record {
            round: number,
            phase: round.phase,
            victim: round.victim(),
            blow: round.blow.to_string(),
            kind: match round.blow {
                Blow::Kill { .. } => Kind::Kill,
                Blow::CommitPoint { .. } => Kind::CommitPoint,
                Blow::Stall { .. } => Kind::Stall,
                Blow::Partition { .. } => Kind::Partition,
            },
            source: source.name(),
            cold: round.cold,
            back: round.back,
            hit: strike.hit,
            after_ms: strike.after.as_millis(),
            answer: words(&told),
            ended: ended.into_iter().map(|(_, how)| how).collect(),
            outcome: Outcome::of(&found.running),
            replay,
            faults: faults.iter().map(Fault::to_string).collect(),
            stuck,
            took_ms: whole.elapsed().as_millis(),
        })
    }

    /// Strikes at the planned instant after `begin`. A commit point strikes by itself.
    async fn strike(
        &self,
        round: &Round,
        mut prey: Vec<u32>,
        begin: Instant,
        told: &JoinHandle<(Told, Duration)>,
        wire: &Wire,
    ) -> Strike {
        let whole = self.pace.of(round.phase, round.cold);
        let until = |part: Duration| sleep_until((begin + part).into());
        let fell = |somebody: bool| Strike {
            hit: match (somebody, told.is_finished()) {
                (false, _) => Hit::Nobody,
                (true, true) => Hit::After,
                (true, false) => Hit::During,
            },
            after: begin.elapsed(),
        };
        match round.blow {
            Blow::Kill { victim, at } => {
                match victim {
                    // It runs for a part of the operation only.
                    Victim::Vtpm(side) => {
                        let vtpm = || -> Vec<u32> { prey.iter().flat_map(|store| prey::children_of(*store)).collect() };
                        while vtpm().is_empty() && !told.is_finished() {
                            sleep(LOOK_AGAIN).await;
                        }
                        // The source's ends as soon as the VM is packed.
                        let packs = side == Side::Source && round.phase == Phase::Migration;
                        sleep(at.of(whole / if packs { 40 } else { 10 })).await;
                        prey = vtpm();
                    }
                    _ => until(at.of(whole)).await,
                }
                let mut strike = fell(!prey.is_empty());
                // A vTPM may have ended in an orderly way since it was found.
                if prey.into_iter().filter(|id| prey::kill(*id)).count() == 0 {
                    strike.hit = Hit::Nobody;
                }
                strike
            }
            Blow::Stall { at, lasts, .. } => {
                until(at.of(whole)).await;
                let strike = fell(!prey.is_empty());
                let stopped: Vec<Stopped> = prey.into_iter().filter_map(Stopped::new).collect();
                sleep(lasts).await;
                drop(stopped);
                strike
            }
            Blow::Partition { at, lasts } => {
                until(at.of(whole)).await;
                let strike = fell(true);
                wire.cut();
                sleep(lasts).await;
                wire.mend();
                strike
            }
            Blow::CommitPoint { .. } => fell(false),
        }
    }

    /// Waits for the end of a host at its commit point. One that has not passed it is started anew without.
    async fn crashed(&mut self, seat: Seat, begin: Instant) -> anyhow::Result<Strike> {
        let hit = match self.field.await_end(Who::Host(seat)).await {
            Ok(()) => Hit::During,
            Err(_) => {
                self.field.cut_power(seat, None).await?;
                Hit::Nobody
            }
        };
        Ok(Strike {
            hit,
            after: begin.elapsed(),
        })
    }

    /// Starts again what was struck, and whatever else has ended.
    async fn raise(&mut self, struck: &[Who]) -> anyhow::Result<Vec<(Who, String)>> {
        for who in struck {
            self.field.await_end(*who).await?;
        }
        self.field.raise(None).await
    }

    /// Sends a migration stream to both hosts once more: what each says, and which of them took it.
    async fn send_again(&self, stream: Option<Value>) -> (Vec<String>, Vec<String>) {
        let (mut said, mut took) = (Vec::new(), Vec::new());
        let Some(stream) = stream else { return (said, took) };
        for seat in SEATS {
            let answer: anyhow::Result<Answer<Value>> = self.field.agent(seat).post("migrations", &stream).await;
            said.push(format!("{}: {}", seat.name(), words(&answer)));
            if matches!(answer, Ok(Ok(_))) {
                took.push(seat.name().to_owned());
            }
        }
        (said, took)
    }
}

/// What ends by a blow: a host ends with each of its parts but the VM's vTPM.
fn struck(round: &Round, source: Seat) -> Vec<Who> {
    let host = |side| vec![Who::Host(source.at(side))];
    match round.blow {
        Blow::Kill { victim, .. } => match victim {
            Victim::Agent(side) | Victim::Store(side) | Victim::Tpm(side) | Victim::Host(side) => host(side),
            Victim::BothHosts => SEATS.map(Who::Host).to_vec(),
            Victim::Vtpm(_) => Vec::new(),
            Victim::Kps => vec![Who::Kps],
            Victim::Attestation => vec![Who::Attestation],
        },
        Blow::CommitPoint { side, .. } => host(side),
        Blow::Stall { .. } | Blow::Partition { .. } => Vec::new(),
    }
}

/// What an answer promises beyond what held before.
fn keep(promised: &mut Promised, told: &Told) -> anyhow::Result<()> {
    let Ok(Ok(answer)) = told else { return Ok(()) };
    match &mut promised.operation {
        Operation::Start => {
            let on: PoweredOn = serde_json::from_value(answer.clone())?;
            (promised.boots, promised.boot_id) = (on.guest.boots, Some(on.guest.boot_id));
        }
        Operation::Take { done } => *done = Some(serde_json::from_value::<CheckpointEntry>(answer.clone())?.id),
        Operation::Move { done } | Operation::Delete { done, .. } => *done = true,
    }
    Ok(())
}

fn words(told: &Told) -> String {
    match told {
        Ok(Ok(_)) => "done".to_owned(),
        Ok(Err(refused)) => format!("refused: {refused}"),
        Err(error) => format!("no answer: {error:#}"),
    }
}

impl Outcome {
    fn of(running: &Result<Running, String>) -> Outcome {
        match running.as_ref().map(|running| (running.started_later, running.side)) {
            Err(_) => Outcome::Lost,
            Ok((false, Side::Source)) => Outcome::RanOnSource,
            Ok((false, Side::Target)) => Outcome::RanOnTarget,
            Ok((true, Side::Source)) => Outcome::StartedOnSource,
            Ok((true, Side::Target)) => Outcome::StartedOnTarget,
        }
    }
}

const LOOK_AGAIN: Duration = Duration::from_millis(1);
