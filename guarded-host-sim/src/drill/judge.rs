//! What a round must leave behind, and everything that is wrong with what it left. Looks at nothing but what it
//! is given: what was promised before and during the round, what was seen after it, and the ledgers.

use std::collections::BTreeSet;

use serde::Serialize;

use super::plan::Side;
use crate::{
    ledger::check::{Account, Run, check},
    vm::{
        VmId,
        checkpoint::CheckpointId,
        guest::{GuestReport, Tally},
        shielded::VmPhase,
    },
};

/// What somebody was told, and may rely on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Promised {
    /// The guest's last acknowledged count.
    pub tally: Tally,
    /// How often it had booted.
    pub boots: u64,
    /// Its checkpoints before the round.
    pub checkpoints: BTreeSet<CheckpointId>,
    /// What the operation of the round was answered.
    pub operation: Operation,
    /// The boot that must go on wherever the VM was not started anew.
    pub boot_id: Option<String>,
}

/// What the operation was to do, and whether its caller was told that it is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Operation {
    /// A start. Whether it was answered shows in [`Promised::boot_id`].
    #[default]
    Start,
    /// A migration.
    Move {
        /// Told that the target has the VM.
        done: bool,
    },
    /// A checkpoint is taken.
    Take {
        /// The new one, if its taking was acknowledged.
        done: Option<CheckpointId>,
    },
    /// A checkpoint is deleted.
    Delete {
        /// Which.
        which: CheckpointId,
        /// Told that it is gone.
        done: bool,
    },
}

/// What was found when all processes were back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// The VM.
    pub vm: VmId,
    /// Where it runs now; or why it does not, asked of the host that owns it.
    pub running: Result<Running, String>,
    /// The host that it belongs to by what counts on the volume.
    pub owner: String,
    /// What the stores of the two hosts hold of it, by host.
    pub held: Vec<(String, VmPhase)>,
    /// Its checkpoints.
    pub checkpoints: BTreeSet<CheckpointId>,
    /// Hosts and services that ended though nobody struck them.
    pub went_down: Vec<String>,
    /// Hosts that took the stream of the round's migration a second time.
    pub took_replay: Vec<String>,
}

/// A VM that runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Running {
    /// On which host.
    pub host: String,
    /// Which of the round's hosts that is.
    pub side: Side,
    /// Whether it ran by itself, or had to be started when all was back.
    pub started_later: bool,
    /// What the guest tells of itself.
    pub guest: GuestReport,
    /// Whether it proved to its owner that it unlocked its volume.
    pub proved: bool,
}

/// Something that must not be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, thiserror::Error)]
#[serde(rename_all = "kebab-case", tag = "fault", content = "about")]
pub enum Fault {
    /// Two runs with an instant in common.
    #[error("ran on two hosts at once: {0}")]
    RanTwice(String),
    /// A ledger that no store writes.
    #[error("a ledger that no store writes: {0}")]
    BadLedger(String),
    /// The ledgers tell of other hosts that run it than the stores do.
    #[error("by the ledgers it runs on [{ledgers}], by the stores on [{stores}]")]
    LedgerDiffers {
        /// Hosts whose ledger has a run without an end.
        ledgers: String,
        /// Hosts whose store says that it runs.
        stores: String,
    },
    /// It does not start where it belongs.
    #[error("does not start: {0}")]
    DoesNotStart(String),
    /// It was found running, and then its guest could not be reached by the host that owns it.
    #[error("the guest does not go on: {0}")]
    DoesNotGoOn(String),
    /// It runs on another host than one, or not where it belongs.
    #[error("the stores hold of it: {0}")]
    NotOnOne(String),
    /// It runs on a host that does not own it, which cannot even stop it.
    #[error("runs on {host} and belongs to {owner}")]
    NotOwned {
        /// Where it runs.
        host: String,
        /// Who owns it.
        owner: String,
    },
    /// The guest does not know what only a guest that unlocked its volume knows.
    #[error("the guest does not prove that it unlocked its volume")]
    NoProof,
    /// Acknowledged counts are gone, or there are some that nobody asked for.
    #[error("the guest had counted to {promised:?} and is at {found:?}")]
    Tally {
        /// Acknowledged.
        promised: Tally,
        /// Found.
        found: Tally,
    },
    /// Boots of the volume are forgotten.
    #[error("the volume knows of {found} boots after {promised}")]
    Boots {
        /// Acknowledged.
        promised: u64,
        /// Found.
        found: u64,
    },
    /// Running all the while, it is another boot.
    #[error("the guest was not started anew and is another boot: its memory is lost")]
    Memory,
    /// An operation that was acknowledged has no effect.
    #[error("{0} was acknowledged and is not so")]
    Acknowledged(String),
    /// Checkpoints came or went that nobody asked about.
    #[error("checkpoints: {0}")]
    Checkpoints(String),
    /// A process ended though nobody struck it.
    #[error("ended unasked: {0}")]
    WentDown(String),
    /// A host took a migration stream again.
    #[error("{0} took a migration stream that was sent before")]
    Replay(String),
}

/// Everything that is wrong. `accounts` are the ledgers, or why they cannot be read; `known` are faults of earlier
/// rounds, which the ledgers go on telling of.
pub fn judge(
    promised: &Promised,
    found: &Found,
    accounts: &Result<Vec<Account>, String>,
    known: &[Fault],
) -> Vec<Fault> {
    let mut faults = Vec::new();
    match accounts {
        Ok(accounts) => ledgers(found, accounts, &mut faults),
        Err(reason) => faults.push(Fault::BadLedger(reason.clone())),
    }
    faults.retain(|fault| !known.contains(fault));
    match &found.running {
        Err(reason) => faults.push(Fault::DoesNotStart(reason.clone())),
        Ok(running) => guest(promised, running, &mut faults),
    }
    let here = found.running.as_ref().ok().map(|running| running.host.as_str());
    let alone = matches!(found.held.as_slice(), [(host, VmPhase::Running)] if Some(host.as_str()) == here);
    if here.is_some() && !alone {
        let held = found.held.iter().map(|(host, phase)| format!("{host} {phase:?}"));
        faults.push(Fault::NotOnOne(held.collect::<Vec<_>>().join(", ")));
    }
    if let Some(host) = here.filter(|host| *host != found.owner) {
        faults.push(Fault::NotOwned {
            host: host.to_owned(),
            owner: found.owner.clone(),
        });
    }
    checkpoints(promised, found, &mut faults);
    faults.extend(found.went_down.iter().cloned().map(Fault::WentDown));
    faults.extend(found.took_replay.iter().cloned().map(Fault::Replay));
    faults
}

fn ledgers(found: &Found, accounts: &[Account], faults: &mut Vec<Fault>) {
    let findings = match check(accounts) {
        Ok(findings) => findings,
        Err(contradiction) => return faults.push(Fault::BadLedger(contradiction.to_string())),
    };
    let overlaps = findings.overlaps.iter();
    faults.extend(overlaps.map(|overlap| Fault::RanTwice(overlap.to_string())));
    let open = |run: &&Run| run.vm == found.vm && run.until.is_none();
    let ledgers: Vec<&str> = findings.runs.iter().filter(open).map(|run| run.host.as_str()).collect();
    let runs = |(host, phase): &'_ (String, VmPhase)| (*phase == VmPhase::Running).then_some(host.clone());
    let stores: Vec<String> = found.held.iter().filter_map(runs).collect();
    if ledgers != stores {
        faults.push(Fault::LedgerDiffers {
            ledgers: ledgers.join(", "),
            stores: stores.join(", "),
        });
    }
}

fn guest(promised: &Promised, running: &Running, faults: &mut Vec<Fault>) {
    if !running.proved {
        faults.push(Fault::NoProof);
    }
    if running.guest.tally != promised.tally {
        faults.push(Fault::Tally {
            promised: promised.tally,
            found: running.guest.tally,
        });
    }
    if running.guest.boots < promised.boots {
        faults.push(Fault::Boots {
            promised: promised.boots,
            found: running.guest.boots,
        });
    }
    let other = promised.boot_id.as_ref().is_some_and(|id| *id != running.guest.boot_id);
    if !running.started_later && other {
        faults.push(Fault::Memory);
    }
    if promised.operation == (Operation::Move { done: true }) && running.side != Side::Target {
        faults.push(Fault::Acknowledged("the migration".to_owned()));
    }
}

fn checkpoints(promised: &Promised, found: &Found, faults: &mut Vec<Fault>) {
    let came: Vec<_> = found.checkpoints.difference(&promised.checkpoints).collect();
    let went: Vec<_> = promised.checkpoints.difference(&found.checkpoints).collect();
    let fits = match promised.operation {
        Operation::Start | Operation::Move { .. } => came.is_empty() && went.is_empty(),
        Operation::Take { done: Some(id) } => came == [&id] && went.is_empty(),
        Operation::Take { done: None } => came.len() <= 1 && went.is_empty(),
        Operation::Delete { which, done: true } => came.is_empty() && went == [&which],
        Operation::Delete { which, done: false } => came.is_empty() && went.iter().all(|id| **id == which),
    };
    if !fits {
        faults.push(Fault::Checkpoints(format!("{came:?} came, {went:?} went")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ledger::{Entry, Event, Instant, Of},
        vm::state::Age,
    };
    use hgs_protocol::env::SeededRandom;

    type Ledgers = Result<Vec<Account>, String>;

    fn vm() -> VmId {
        VmId::random(&mut SeededRandom::new(1))
    }

    fn checkpoint(number: u128) -> CheckpointId {
        CheckpointId(uuid::Uuid::from_u128(number))
    }

    fn account(host: &str, events: &[(u64, Event)]) -> Account {
        let opened = Event::Opened { boot: "b".to_owned() };
        let entries = [(0, opened)].into_iter().chain(events.iter().cloned());
        Account {
            host: host.to_owned(),
            entries: entries.map(|(at, event)| Entry { at: Instant(at), event }).collect(),
            deaths: Vec::new(),
        }
    }

    fn started() -> Event {
        Event::Started(Of::new(vm(), Age::rolled(2)))
    }

    fn stopped() -> Event {
        Event::Stopped(Of::new(vm(), Age::rolled(2)))
    }

    /// A VM that has moved from `host01` to `host02` and runs there.
    fn moved() -> (Promised, Found, Ledgers) {
        let tally = Tally { volume: 4, vtpm: 9 };
        let promised = Promised {
            tally,
            boots: 3,
            checkpoints: BTreeSet::from([checkpoint(1)]),
            operation: Operation::Move { done: true },
            boot_id: Some("b7".to_owned()),
        };
        let running = Running {
            host: "host02".to_owned(),
            side: Side::Target,
            started_later: false,
            guest: GuestReport {
                boot_id: "b7".to_owned(),
                boots: 3,
                uptime_ms: 5,
                after_shutdown: true,
                tally,
            },
            proved: true,
        };
        let found = Found {
            vm: vm(),
            running: Ok(running),
            owner: "host02".to_owned(),
            held: vec![("host02".to_owned(), VmPhase::Running)],
            checkpoints: promised.checkpoints.clone(),
            went_down: Vec::new(),
            took_replay: Vec::new(),
        };
        let ledgers = vec![
            account("host01", &[(1, started()), (5, stopped())]),
            account("host02", &[(6, started())]),
        ];
        (promised, found, Ok(ledgers))
    }

    fn faults(spoil: impl FnOnce(&mut Promised, &mut Found, &mut Ledgers)) -> Vec<Fault> {
        let (mut promised, mut found, mut ledgers) = moved();
        spoil(&mut promised, &mut found, &mut ledgers);
        judge(&promised, &found, &ledgers, &[])
    }

    fn running(found: &mut Found) -> &mut Running {
        found.running.as_mut().unwrap()
    }

    #[test]
    fn a_vm_that_moved_and_lost_nothing_is_fine() {
        assert_eq!(faults(|_, _, _| {}), []);
        let started_later = |_: &mut Promised, found: &mut Found, _: &mut Ledgers| {
            let running = running(found);
            running.started_later = true;
            (running.guest.boot_id, running.guest.boots) = ("b8".to_owned(), 4);
        };
        assert_eq!(faults(started_later), []);
    }

    #[test]
    fn ledgers_that_tell_of_two_hosts_at_once_are_noticed() {
        let twice = faults(|_, _, ledgers| {
            *ledgers = Ok(vec![
                account("host01", &[(1, started()), (7, stopped())]),
                account("host02", &[(6, started())]),
            ]);
        });
        let [Fault::RanTwice(text)] = twice.as_slice() else {
            panic!("{twice:?}")
        };
        assert!(text.contains("host01") && text.contains("host02"), "{text}");
        // Once told, it is not told in every round.
        let (promised, found, _) = moved();
        let again = Ok(vec![
            account("host01", &[(1, started()), (7, stopped())]),
            account("host02", &[(6, started())]),
        ]);
        assert_eq!(judge(&promised, &found, &again, &twice), []);

        // A store that was killed and never seen dead may run it still.
        let open = faults(|_, _, ledgers| {
            *ledgers = Ok(vec![
                account("host01", &[(1, started())]),
                account("host02", &[(6, started())]),
            ]);
        });
        assert!(
            matches!(open.as_slice(), [Fault::RanTwice(_), Fault::LedgerDiffers { .. }]),
            "{open:?}"
        );
    }

    #[test]
    fn ledgers_that_say_nothing_or_nonsense_are_no_proof() {
        for ledgers in [
            Ok(vec![account("host01", &[]), account("host02", &[])]),
            Ok(vec![account("host01", &[(1, started())]), account("host02", &[])]),
        ] {
            let silent = faults(|_, _, of| *of = ledgers);
            assert!(matches!(silent.as_slice(), [Fault::LedgerDiffers { .. }]), "{silent:?}");
        }
        for ledgers in [
            Ok(vec![account("host01", &[(1, stopped())])]),
            Err("line 3 is no entry".to_owned()),
        ] {
            let bad = faults(|_, _, of| *of = ledgers);
            assert!(matches!(bad.as_slice(), [Fault::BadLedger(_)]), "{bad:?}");
        }
    }

    #[test]
    fn whatever_is_lost_is_noticed() {
        let one = |spoil: fn(&mut Promised, &mut Found)| match faults(|promised, found, _| spoil(promised, found))
            .as_slice()
        {
            [fault] => fault.clone(),
            other => panic!("{other:?}"),
        };
        let promised = Tally { volume: 4, vtpm: 9 };
        for found in [
            Tally { volume: 3, vtpm: 9 },
            Tally { volume: 4, vtpm: 8 },
            Tally { volume: 5, vtpm: 9 },
        ] {
            let seen = faults(|_, f, _| running(f).guest.tally = found);
            assert_eq!(seen, [Fault::Tally { promised, found }]);
        }
        assert_eq!(one(|_, found| running(found).proved = false), Fault::NoProof);
        assert_eq!(
            one(|_, found| running(found).guest.boot_id = "b8".to_owned()),
            Fault::Memory
        );
        assert_eq!(
            one(|promised, _| promised.boots = 4),
            Fault::Boots { promised: 4, found: 3 }
        );
        let back = one(|_, found| running(found).side = Side::Source);
        assert_eq!(back, Fault::Acknowledged("the migration".to_owned()));
        let taken = one(|_, found| found.owner = "host01".to_owned());
        let (host, owner) = ("host02".to_owned(), "host01".to_owned());
        assert_eq!(taken, Fault::NotOwned { host, owner });
        let down = one(|_, found| found.went_down.push("kps".to_owned()));
        assert_eq!(down, Fault::WentDown("kps".to_owned()));
        let replay = one(|_, found| found.took_replay.push("host02".to_owned()));
        assert_eq!(replay, Fault::Replay("host02".to_owned()));
    }

    #[test]
    fn a_vm_on_both_hosts_or_on_none_is_noticed() {
        for left in [VmPhase::Prepared, VmPhase::Suspended] {
            let keys = faults(|_, found, _| found.held.push(("host01".to_owned(), left)));
            assert!(matches!(keys.as_slice(), [Fault::NotOnOne(_)]), "{keys:?}");
        }
        let both = faults(|_, found, _| found.held.push(("host01".to_owned(), VmPhase::Running)));
        assert!(
            matches!(both.as_slice(), [Fault::LedgerDiffers { .. }, Fault::NotOnOne(_)]),
            "{both:?}"
        );
        let none = faults(|_, found, ledgers| {
            found.running = Err("the VBS store refuses".to_owned());
            found.held.clear();
            *ledgers = Ok(vec![account("host02", &[(1, started()), (2, stopped())])]);
        });
        assert_eq!(none, [Fault::DoesNotStart("the VBS store refuses".to_owned())]);
    }

    #[test]
    fn checkpoints_come_and_go_as_they_were_acknowledged() {
        let fits = |operation, there: &[u128]| {
            let seen = faults(|promised, found, _| {
                promised.operation = operation;
                found.checkpoints = there.iter().map(|number| checkpoint(*number)).collect();
            });
            assert!(
                seen.is_empty() || matches!(seen.as_slice(), [Fault::Checkpoints(_)]),
                "{seen:?}"
            );
            seen.is_empty()
        };
        let (take, which) = (
            |done: Option<u128>| Operation::Take {
                done: done.map(checkpoint),
            },
            checkpoint(1),
        );
        let delete = |done| Operation::Delete { which, done };
        assert!(fits(Operation::Start, &[1]) && !fits(Operation::Start, &[]) && !fits(Operation::Start, &[1, 2]));
        assert!(fits(take(Some(2)), &[1, 2]) && !fits(take(Some(2)), &[1]) && !fits(take(Some(2)), &[2]));
        assert!(fits(take(None), &[1]) && fits(take(None), &[1, 2]) && !fits(take(None), &[1, 2, 3]));
        assert!(fits(delete(true), &[]) && !fits(delete(true), &[1]));
        assert!(fits(delete(false), &[]) && fits(delete(false), &[1]) && !fits(delete(false), &[2]));
    }
}
