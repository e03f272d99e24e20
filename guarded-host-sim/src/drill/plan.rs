//! What is to be struck, when, and how: drawn from a seed, nothing else. Durations are not known here, so an
//! instant is a part of the operation's duration.
//!
//! Victims come from a shuffled deck, so that each is struck about equally often and each order differs; instants
//! are uniform. The same seed draws the same plan; what the processes make of it is theirs.

use std::{collections::VecDeque, fmt, time::Duration};

use hgs_protocol::env::{Random, SeededRandom};
use serde::{Serialize, Serializer};

/// The operation that is struck.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Start of a VM that is off.
    PowerOn,
    /// A roll of the transport key without a start: a checkpoint of a VM that is off is taken or deleted.
    Roll,
    /// Live migration.
    Migration,
}

/// Which host: the one that owns the VM when the round begins, or the other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Side {
    /// The owner.
    Source,
    /// The other.
    Target,
}

/// Whom it strikes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Victim {
    /// A host's agent.
    Agent(Side),
    /// A host's VBS store.
    Store(Side),
    /// The VM's vTPM on a host.
    Vtpm(Side),
    /// A host's TPM.
    Tpm(Side),
    /// A host's daemon, and with it everything of the host.
    Host(Side),
    /// Both hosts at once.
    BothHosts,
    /// The key protection service.
    Kps,
    /// The attestation service.
    Attestation,
}

/// An instant: thousandths of the time that the operation takes undisturbed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(transparent)]
pub struct Part(u16);

/// What happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Blow {
    /// SIGKILL at an instant.
    Kill {
        /// Whom.
        victim: Victim,
        /// When.
        at: Part,
    },
    /// A process of a host ends itself at a commit point ([`crate::commit_point`]).
    CommitPoint {
        /// On which host.
        side: Side,
        /// Where.
        point: &'static str,
    },
    /// SIGSTOP at an instant, and SIGCONT later.
    Stall {
        /// Whom.
        victim: Victim,
        /// When.
        at: Part,
        /// For how long.
        lasts: Duration,
    },
    /// From an instant on nothing passes between source and target, in either direction, for a time; then what was
    /// under way between them breaks. Both reach the volume and the HGS all the while.
    Partition {
        /// When.
        at: Part,
        /// For how long.
        lasts: Duration,
    },
}

/// When what was killed is started again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Back {
    /// While the operation may still be under way.
    AtOnce,
    /// When whoever asked for the operation has an answer, or none will come.
    Afterwards,
}

/// One round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Round {
    /// The operation.
    pub phase: Phase,
    /// What strikes it.
    pub blow: Blow,
    /// Whether the host that needs a health certificate has none, so that attestation is part of the operation.
    pub cold: bool,
    /// When what was killed comes back.
    pub back: Back,
}

/// Draws rounds from a seed.
pub struct Plan {
    dice: Dice,
    victims: Deck<(Phase, Victim)>,
    points: Deck<(Phase, Side, &'static str)>,
    stalled: Deck<(Phase, Victim)>,
}

impl Plan {
    /// The plan that belongs to `seed`.
    pub fn new(seed: u64) -> Plan {
        Plan {
            dice: Dice(SeededRandom::new(seed)),
            victims: Deck::of(VICTIMS),
            points: Deck::of(POINTS),
            stalled: Deck::of(STALLED),
        }
    }

    /// `kills` kills at random instants and, beside them, for each ten (or part of ten) one kill at a commit point,
    /// and for each twenty one stall and one partition; in random order.
    pub fn draw(&mut self, kills: usize) -> Vec<Round> {
        let mut rounds = self.kills(kills);
        for _ in 0..kills.div_ceil(10) {
            let Some((phase, side, point)) = self.points.next(&mut self.dice) else {
                break;
            };
            rounds.push(self.dice.round(phase, Blow::CommitPoint { side, point }));
        }
        for _ in 0..kills.div_ceil(20) {
            let Some((phase, victim)) = self.stalled.next(&mut self.dice) else {
                break;
            };
            let (at, lasts) = (self.dice.part(), self.dice.pause());
            rounds.push(self.dice.round(phase, Blow::Stall { victim, at, lasts }));
            let (at, lasts) = (self.dice.part(), self.dice.pause());
            rounds.push(self.dice.round(Phase::Migration, Blow::Partition { at, lasts }));
        }
        self.dice.shuffle(&mut rounds);
        rounds
    }

    /// Kills at random instants alone.
    pub fn kills(&mut self, kills: usize) -> Vec<Round> {
        let mut rounds = Vec::new();
        for _ in 0..kills {
            let Some((phase, victim)) = self.victims.next(&mut self.dice) else {
                break;
            };
            let at = self.dice.part();
            rounds.push(self.dice.round(phase, Blow::Kill { victim, at }));
        }
        rounds
    }
}

impl Round {
    /// Whom it is about, for the summary.
    pub fn victim(&self) -> String {
        match self.blow {
            Blow::Kill { victim, .. } => victim.to_string(),
            Blow::CommitPoint { side, .. } => format!("commit points of the {side}"),
            Blow::Stall { .. } => "any, stalled".to_owned(),
            Blow::Partition { .. } => "link between the hosts, cut".to_owned(),
        }
    }
}

impl Part {
    /// Of `whole`.
    pub fn of(self, whole: Duration) -> Duration {
        whole * u32::from(self.0) / 1000
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::PowerOn => "power-on",
            Phase::Roll => "roll",
            Phase::Migration => "migration",
        })
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::Source => "source",
            Side::Target => "target",
        })
    }
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Victim::Agent(side) => write!(f, "agent of the {side}"),
            Victim::Store(side) => write!(f, "VBS store of the {side}"),
            Victim::Vtpm(side) => write!(f, "vTPM on the {side}"),
            Victim::Tpm(side) => write!(f, "TPM of the {side}"),
            Victim::Host(side) => write!(f, "{side}"),
            Victim::BothHosts => f.write_str("source and target"),
            Victim::Kps => f.write_str("KPS"),
            Victim::Attestation => f.write_str("attestation"),
        }
    }
}

impl Serialize for Victim {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Blow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Blow::Kill { victim, .. } => write!(f, "{victim} killed"),
            Blow::CommitPoint { side, point } => write!(f, "{side} killed at {point}"),
            Blow::Stall { victim, lasts, .. } => write!(f, "{victim} stalled for {} ms", lasts.as_millis()),
            Blow::Partition { lasts, .. } => write!(f, "link between the hosts cut for {} ms", lasts.as_millis()),
        }
    }
}

/// Gives each card once before any comes again.
struct Deck<T: 'static> {
    all: &'static [T],
    left: VecDeque<T>,
}

impl<T: Copy> Deck<T> {
    fn of(all: &'static [T]) -> Deck<T> {
        Deck {
            all,
            left: VecDeque::new(),
        }
    }

    fn next(&mut self, dice: &mut Dice) -> Option<T> {
        if self.left.is_empty() {
            let mut cards = self.all.to_vec();
            dice.shuffle(&mut cards);
            self.left = cards.into();
        }
        self.left.pop_front()
    }
}

struct Dice(SeededRandom);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        let drawn = u64::from_le_bytes((&mut self.0 as &mut dyn Random).bytes());
        let limit = u64::try_from(limit.max(1)).unwrap_or(u64::MAX);
        usize::try_from(drawn % limit).unwrap_or(0)
    }

    fn part(&mut self) -> Part {
        Part(u16::try_from(self.below(1000)).unwrap_or(0))
    }

    /// 100 ms to 1.6 s.
    fn pause(&mut self) -> Duration {
        Duration::from_millis(100 + u64::from(self.part().0) * 3 / 2)
    }

    fn shuffle<T>(&mut self, cards: &mut [T]) {
        for last in (1..cards.len()).rev() {
            cards.swap(last, self.below(last + 1));
        }
    }

    fn round(&mut self, phase: Phase, blow: Blow) -> Round {
        // Attestation is asked by a host without a certificate only.
        let attests = matches!(
            blow,
            Blow::Kill {
                victim: Victim::Attestation,
                ..
            } | Blow::Stall {
                victim: Victim::Attestation,
                ..
            }
        );
        Round {
            phase,
            blow,
            cold: self.below(3) == 0 || attests,
            back: if self.below(2) == 0 {
                Back::AtOnce
            } else {
                Back::Afterwards
            },
        }
    }
}

use Phase::{Migration, PowerOn, Roll};
use Side::{Source, Target};
use Victim::{Agent, Attestation, BothHosts, Host, Kps, Store, Tpm, Vtpm};

/// Who has a part in what. No vTPM runs during a roll without a start.
const VICTIMS: &[(Phase, Victim)] = &[
    (PowerOn, Agent(Source)),
    (PowerOn, Store(Source)),
    (PowerOn, Vtpm(Source)),
    (PowerOn, Tpm(Source)),
    (PowerOn, Host(Source)),
    (PowerOn, Kps),
    (PowerOn, Attestation),
    (Roll, Agent(Source)),
    (Roll, Store(Source)),
    (Roll, Tpm(Source)),
    (Roll, Host(Source)),
    (Roll, Kps),
    (Roll, Attestation),
    (Migration, Agent(Source)),
    (Migration, Agent(Target)),
    (Migration, Store(Source)),
    (Migration, Store(Target)),
    (Migration, Vtpm(Source)),
    (Migration, Vtpm(Target)),
    (Migration, Tpm(Target)),
    (Migration, Host(Source)),
    (Migration, Host(Target)),
    (Migration, BothHosts),
    (Migration, Kps),
    (Migration, Attestation),
];

const STALLED: &[(Phase, Victim)] = &[
    (PowerOn, Agent(Source)),
    (PowerOn, Store(Source)),
    (PowerOn, Kps),
    (Roll, Attestation),
    (Migration, Agent(Source)),
    (Migration, Agent(Target)),
    (Migration, Store(Source)),
    (Migration, Store(Target)),
    (Migration, Host(Target)),
    (Migration, Kps),
];

/// The commit points that an operation passes, and on which host.
const POINTS: &[(Phase, Side, &str)] = &[
    (PowerOn, Source, "power-on:attested"),
    (PowerOn, Source, "power-on:rolled"),
    (PowerOn, Source, "power-on:opened"),
    (PowerOn, Source, "power-on:written"),
    (PowerOn, Source, "power-on:committed"),
    (PowerOn, Source, "power-on:recorded"),
    (PowerOn, Source, "power-on:vtpm-started"),
    (PowerOn, Source, "power-on:booted"),
    (Roll, Source, "power-on:rolled"),
    (Roll, Source, "power-on:opened"),
    (Roll, Source, "change:written"),
    (Roll, Source, "change:committed"),
    (Migration, Source, "migration:saved"),
    (Migration, Target, "migration:received"),
    (Migration, Target, "power-on:attested"),
    (Migration, Target, "power-on:opened"),
    (Migration, Target, "migration:written"),
    (Migration, Target, "migration:committed"),
    (Migration, Target, "power-on:recorded"),
    (Migration, Target, "migration:resumed"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit_point::COMMIT_POINTS;

    fn draw(seed: u64, kills: usize) -> Vec<Round> {
        Plan::new(seed).draw(kills)
    }

    #[test]
    fn a_seed_draws_one_plan_and_every_victim_is_struck_at_many_instants() {
        let rounds = draw(7, 200);
        assert_eq!(rounds, draw(7, 200));
        assert_ne!(rounds, draw(8, 200));
        assert_eq!(rounds.len(), 200 + 20 + 10 + 10);
        let random = |round: &&Round| matches!(round.blow, Blow::Kill { .. });
        assert_eq!(rounds.iter().filter(random).count(), 200);
        for (phase, victim) in VICTIMS {
            let instants: std::collections::BTreeSet<u16> = rounds
                .iter()
                .filter(|round| round.phase == *phase)
                .filter_map(|round| match round.blow {
                    Blow::Kill { victim: v, at } if v == *victim => Some(at.0),
                    _ => None,
                })
                .collect();
            assert!(instants.len() >= 6, "{phase} {victim}: {instants:?}");
        }
        for (phase, side, point) in POINTS {
            assert!(COMMIT_POINTS.iter().any(|(name, _)| name == point), "{point}");
            let blow = Blow::CommitPoint { side: *side, point };
            assert!(
                rounds.iter().any(|round| round.phase == *phase && round.blow == blow),
                "{point}"
            );
        }
    }

    #[test]
    fn instants_cover_the_whole_operation() {
        let at = |round: Round| match round.blow {
            Blow::Kill { at, .. } => Some(at.of(Duration::from_secs(10)).as_secs()),
            _ => None,
        };
        let mut tenths: Vec<u64> = draw(1, 200).into_iter().filter_map(at).collect();
        tenths.sort_unstable();
        tenths.dedup();
        assert_eq!(tenths, (0..10).collect::<Vec<u64>>());
    }
}
