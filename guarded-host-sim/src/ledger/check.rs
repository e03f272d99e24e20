//! The checker: reads the ledgers of several hosts and finds every instant at which a VM may have run twice.
//!
//! A run lasts from its start to its end. A store that was killed wrote no end: its run lasted no longer
//! than until the death of its host, where whoever checks knows that instant, and otherwise no longer than
//! until the next store of that host opened (which proves that the first was gone), or else it may last
//! still. So the checker errs on one side only: it may take a run for longer than it was.

use std::{collections::BTreeMap, fmt};

use super::{Entry, Event, Instant};
use crate::vm::VmId;

/// What one host has to say.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// The host's name.
    pub host: String,
    /// The entries of its ledger, in their order.
    pub entries: Vec<Entry>,
    /// Instants at which somebody saw that nothing of the host ran any more, in their order.
    pub deaths: Vec<Instant>,
}

/// A time during which a VM ran on a host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    /// The VM.
    pub vm: VmId,
    /// Where.
    pub host: String,
    /// Rolls of the VM's key when it started.
    pub generation: u64,
    /// The boot of the machine whose clock counts.
    pub boot: String,
    /// From when.
    pub from: Instant,
    /// Until when at the latest; `None` while it may still run.
    pub until: Option<Instant>,
    /// Whether the store itself wrote the end.
    pub ended_in_order: bool,
}

/// Two runs of one VM with an instant in common.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Overlap {
    /// The one that began first.
    pub first: Run,
    /// The other.
    pub second: Run,
}

/// A ledger that contradicts itself, which no store writes.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("entry {entry} of the ledger of {host}: {what}")]
pub struct Contradiction {
    /// Whose ledger.
    pub host: String,
    /// Which entry, from 1.
    pub entry: usize,
    /// What is wrong.
    pub what: &'static str,
}

/// What the ledgers tell together.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Findings {
    /// Every run, by its beginning.
    pub runs: Vec<Run>,
    /// Every pair that overlaps.
    pub overlaps: Vec<Overlap>,
}

/// Reads the accounts together.
pub fn check(accounts: &[Account]) -> Result<Findings, Contradiction> {
    let mut runs = Vec::new();
    for account in accounts {
        runs.extend(account.runs()?);
    }
    runs.sort_by_key(|run| run.from);
    let mut overlaps = Vec::new();
    for (at, first) in runs.iter().enumerate() {
        let later = runs.iter().skip(at + 1);
        for second in later.filter(|second| second.vm == first.vm && second.boot == first.boot) {
            // An end and a beginning at one instant have that instant in common.
            if first.until.is_none_or(|until| second.from <= until) {
                overlaps.push(Overlap {
                    first: first.clone(),
                    second: second.clone(),
                });
            }
        }
    }
    Ok(Findings { runs, overlaps })
}

impl Account {
    fn runs(&self) -> Result<Vec<Run>, Contradiction> {
        let mut done = Vec::new();
        let mut open: BTreeMap<uuid::Uuid, Run> = BTreeMap::new();
        let mut boot = None;
        let mut last = Instant(0);
        for (number, entry) in self.entries.iter().enumerate() {
            let wrong = |what| Contradiction {
                host: self.host.clone(),
                entry: number + 1,
                what,
            };
            if let Event::Opened { boot: of } = &entry.event {
                // What ran is gone: by now, or, of an earlier boot of the machine, with that boot.
                let same_clock = boot.as_ref() == Some(of);
                done.extend(std::mem::take(&mut open).into_values().map(|run| Run {
                    until: same_clock.then_some(entry.at).or(run.until),
                    ..run
                }));
                if !same_clock {
                    last = Instant(0);
                }
                boot = Some(of.clone());
            }
            let Some(boot) = &boot else {
                return Err(wrong("nothing says that a store opened"));
            };
            if entry.at < last {
                return Err(wrong("it is older than the one before it"));
            }
            last = entry.at;
            match &entry.event {
                Event::Opened { .. } | Event::Received { .. } => {}
                Event::Started(of) => {
                    let run = Run {
                        vm: of.vm,
                        host: self.host.clone(),
                        generation: of.generation,
                        boot: boot.clone(),
                        from: entry.at,
                        until: None,
                        ended_in_order: false,
                    };
                    if open.insert(of.vm.0, run).is_some() {
                        return Err(wrong("a VM that runs here is started"));
                    }
                }
                Event::Stopped(of) | Event::Sent { of, .. } => match open.remove(&of.vm.0) {
                    Some(run) => done.push(Run {
                        until: Some(entry.at),
                        ended_in_order: true,
                        ..run
                    }),
                    None => return Err(wrong("a VM that does not run here ends")),
                },
            }
        }
        done.extend(open.into_values());
        for run in done.iter_mut().filter(|run| !run.ended_in_order) {
            let death = self.deaths.iter().find(|death| **death >= run.from).copied();
            run.until = match (run.until, death) {
                (Some(until), Some(death)) => Some(until.min(death)),
                (until, death) => until.or(death),
            };
        }
        Ok(done)
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |instant: Instant| format!("{}.{:06}", instant.0 / 1_000_000_000, instant.0 / 1000 % 1_000_000);
        let until = match (self.until, self.ended_in_order) {
            (Some(until), true) => seconds(until),
            (Some(until), false) => format!("{} at the latest", seconds(until)),
            (None, _) => "now".to_owned(),
        };
        write!(
            f,
            "{} generation {} on {} from {} to {until}",
            self.vm,
            self.generation,
            self.host,
            seconds(self.from)
        )
    }
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, and at the same time {}", self.first, self.second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ledger::Of,
        vm::{package::MigrationId, state::Age},
    };
    use hgs_protocol::env::SeededRandom;
    use proptest::prelude::*;

    fn of() -> Of {
        Of::new(VmId::random(&mut SeededRandom::new(1)), Age::rolled(2))
    }

    fn opened() -> Event {
        Event::Opened { boot: "b1".to_owned() }
    }

    fn sent() -> Event {
        Event::Sent {
            of: of(),
            migration: MigrationId::random(&mut SeededRandom::new(2)),
        }
    }

    fn account(host: &str, events: Vec<(u64, Event)>, deaths: &[u64]) -> Account {
        Account {
            host: host.to_owned(),
            entries: events
                .into_iter()
                .map(|(at, event)| Entry { at: Instant(at), event })
                .collect(),
            deaths: deaths.iter().copied().map(Instant).collect(),
        }
    }

    fn overlaps(accounts: &[Account]) -> usize {
        check(accounts).unwrap().overlaps.len()
    }

    #[test]
    fn a_vm_that_moves_and_comes_back_runs_once_at_a_time() {
        let (start, stop) = (Event::Started(of()), Event::Stopped(of()));
        let one = account(
            "host01",
            vec![(1, opened()), (2, start.clone()), (5, sent()), (20, start.clone())],
            &[],
        );
        let two = account("host02", vec![(1, opened()), (6, start), (19, stop)], &[]);
        let findings = check(&[one, two]).unwrap();
        assert_eq!(findings.overlaps, []);
        assert_eq!(findings.runs.len(), 3);
        assert_eq!(findings.runs[2].until, None);
    }

    #[test]
    fn two_runs_with_one_instant_in_common_overlap() {
        let (start, stop) = (Event::Started(of()), Event::Stopped(of()));
        let one = account(
            "host01",
            vec![(1, opened()), (2, start.clone()), (6, stop.clone())],
            &[],
        );
        for (from, until, expected) in [(6, 9, 1), (3, 4, 1), (1, 3, 1), (7, 9, 0), (0, 1, 0)] {
            let two = account(
                "host02",
                vec![(0, opened()), (from, start.clone()), (until, stop.clone())],
                &[],
            );
            assert_eq!(overlaps(&[one.clone(), two]), expected, "{from} to {until}");
        }
        // Another VM is nobody's double.
        let other = Of::new(VmId::random(&mut SeededRandom::new(9)), Age::rolled(2));
        let two = account("host02", vec![(0, opened()), (3, Event::Started(other))], &[]);
        assert_eq!(overlaps(&[one, two]), 0);
    }

    #[test]
    fn a_killed_store_ran_its_vm_until_its_death_or_until_the_next_store_at_the_latest() {
        let start = Event::Started(of());
        let killed = vec![(1, opened()), (2, start.clone())];
        let two = account("host02", vec![(1, opened()), (10, start.clone())], &[]);
        let seen = |deaths: &[u64]| overlaps(&[account("host01", killed.clone(), deaths), two.clone()]);
        assert_eq!(seen(&[]), 1, "it may run still");
        assert_eq!(seen(&[1]), 1, "a death before the start says nothing");
        assert_eq!(seen(&[9]), 0);
        assert_eq!(seen(&[11]), 1);
        let again = |at, deaths: &[u64]| {
            let events = [killed.clone(), vec![(at, opened())]].concat();
            overlaps(&[account("host01", events, deaths), two.clone()])
        };
        assert_eq!(again(9, &[]), 0);
        assert_eq!(again(12, &[]), 1);
        assert_eq!(again(12, &[9]), 0);
        // A run before the machine's own reboot is over, and its clock is another.
        let next_boot = vec![(1, Event::Opened { boot: "b2".to_owned() }), (10, start)];
        let three = account("host03", next_boot, &[]);
        assert_eq!(overlaps(&[account("host01", killed, &[]), three]), 0);
    }

    #[test]
    fn a_ledger_that_contradicts_itself_is_no_ledger() {
        let start = Event::Started(of());
        for (events, what) in [
            (vec![(1, start.clone())], "nothing says"),
            (
                vec![(1, opened()), (2, start.clone()), (3, start.clone())],
                "is started",
            ),
            (vec![(1, opened()), (3, sent())], "does not run here"),
            (vec![(4, opened()), (3, start)], "older"),
        ] {
            let error = check(&[account("host01", events, &[])]).unwrap_err();
            assert!(error.to_string().contains(what), "{error}");
        }
    }

    proptest! {
        /// Whatever two hosts do in turn, nothing is found; and one run moved into another is.
        #[test]
        fn a_planted_overlap_is_found(turns in proptest::collection::vec((any::<bool>(), 1u64..50), 2..20), at: prop::sample::Index) {
            let mut now = 1;
            let mut events = [vec![(0, opened())], vec![(0, opened())]];
            let mut runs = Vec::new();
            for (host, length) in turns {
                events[usize::from(host)].extend([(now, Event::Started(of())), (now + length, sent())]);
                runs.push((host, now, now + length));
                now += length + 1;
            }
            let accounts = |events: [Vec<(u64, Event)>; 2]| {
                let [one, two] = events;
                [account("host01", one, &[]), account("host02", two, &[])]
            };
            prop_assert_eq!(overlaps(&accounts(events.clone())), 0);
            let (host, from, until) = runs[at.index(runs.len())];
            let planted = account("host03", vec![(0, opened()), (from + (until - from) / 2, Event::Started(of())), (until, sent())], &[]);
            let [one, two] = accounts(events);
            prop_assert_eq!(overlaps(&[one, two, planted]), 1, "{}", host);
        }
    }
}
