//! What a drill does with the VM: brings it to where an operation begins, lets the operation begin, finds the VM when
//! all is back, and remembers what guest and hosts have promised.

use std::{collections::BTreeSet, time::Instant};

use anyhow::{Context, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use hgs_protocol::env::{OsRandom, Random};
use serde_json::{Value, json};

use super::{
    field::{Field, SEATS, Seat},
    judge::{Fault, Found, Operation, Promised, Running},
    pace::Pace,
    plan::{Phase, Side},
};
use crate::{
    fabric::host::Answer,
    vm::{
        checkpoint::CheckpointId,
        guest::{GuestReport, Tally},
        operation::PoweredOn,
        request::{Blob, VmReply},
        volume::CheckpointEntry,
    },
};

/// Plays rounds on a field. Between rounds the VM runs on its owner.
pub struct Player {
    pub(super) field: Field,
    pub(super) pace: Pace,
    pub(super) known: Vec<Fault>,
    guest: GuestReport,
    tally: Tally,
}

/// What the caller of an operation is told; an error is no answer.
pub(super) type Told = anyhow::Result<Answer<Value>>;

impl Player {
    /// Starts the VM for the first time and measures every operation.
    pub async fn begin(field: Field) -> anyhow::Result<Player> {
        let started: Answer<PoweredOn> = field.agent(Seat::First).post(&path("power-on"), &json!({})).await?;
        let guest = started.map_err(anyhow::Error::msg)?.guest;
        let mut player = Player {
            field,
            pace: Pace::default(),
            known: Vec::new(),
            tally: guest.tally,
            guest,
        };
        player.count().await?;
        player.measure().await?;
        Ok(player)
    }

    /// How long undisturbed operations take.
    pub fn pace(&self) -> &Pace {
        &self.pace
    }

    /// The field.
    pub fn field(&mut self) -> &mut Field {
        &mut self.field
    }

    /// Measures every operation once, undisturbed, with and without attestation.
    pub async fn measure(&mut self) -> anyhow::Result<()> {
        for phase in [Phase::PowerOn, Phase::Roll, Phase::Migration] {
            for cold in [true, false] {
                let source = self.arrange(phase, cold, None).await?;
                let address = self.field.url(source.other());
                let begin = Instant::now();
                let told = self.operation(phase, source, &address)?.1.await;
                self.pace.learn(phase, cold, begin.elapsed());
                told?
                    .map_err(anyhow::Error::msg)
                    .with_context(|| format!("an undisturbed {phase}"))?;
                self.run().await?;
            }
        }
        Ok(())
    }

    /// Brings the VM to where an operation begins; gives the host that owns it. A host of a commit point is started
    /// anew for it.
    pub(super) async fn arrange(
        &mut self,
        phase: Phase,
        cold: bool,
        crash: Option<(Side, &str)>,
    ) -> anyhow::Result<Seat> {
        let source = self.field.owner()?;
        let at = |side| crash.and_then(|(of, point)| (of == side).then_some(point));
        let asks = match phase {
            Phase::PowerOn | Phase::Roll => Side::Source,
            Phase::Migration => Side::Target,
        };
        for side in [Side::Source, Side::Target] {
            if at(side).is_some() || (cold && side == asks) {
                self.field.cut_power(source.at(side), at(side)).await?;
            }
        }
        let ended_with_its_host = at(Side::Source).is_some() || (cold && asks == Side::Source);
        match phase {
            Phase::PowerOn | Phase::Roll if !ended_with_its_host => {
                let off: Answer<Value> = self.field.agent(source).post(&path("power-off"), &json!({})).await?;
                off.map_err(anyhow::Error::msg).context("the VM does not stop")?;
            }
            Phase::Migration if ended_with_its_host => self.run().await?,
            _ => {}
        }
        if phase == Phase::Migration && !cold && at(Side::Target).is_none() {
            let agent = self.field.agent(source.other());
            let attested: Answer<Value> = agent.post("attest", &json!({})).await?;
            let attested = attested.map_err(anyhow::Error::msg)?;
            ensure!(
                attested["IsHostGuarded"] == true,
                "the target does not attest: {attested}"
            );
        }
        Ok(source)
    }

    /// An operation that is about to begin, and what it is. The source reaches the target at `address`.
    pub(super) fn operation(
        &self,
        phase: Phase,
        source: Seat,
        address: &str,
    ) -> anyhow::Result<(Operation, impl Future<Output = Told> + Send + 'static)> {
        let agent = self.field.agent(source);
        let (operation, path, body) = match phase {
            Phase::PowerOn => (Operation::Start, path("power-on"), Some(json!({}))),
            Phase::Roll => match self.field.current()?.checkpoints.first() {
                None => (
                    Operation::Take { done: None },
                    path("checkpoints"),
                    Some(json!({ "name": "drill" })),
                ),
                Some(CheckpointEntry { id: which, .. }) => {
                    let (which, done) = (*which, false);
                    (
                        Operation::Delete { which, done },
                        path(&format!("checkpoints/{which}")),
                        None,
                    )
                }
            },
            Phase::Migration => {
                let body = json!({ "target": source.other().name(), "address": address });
                (Operation::Move { done: false }, path("migrate"), Some(body))
            }
        };
        let told = async move {
            match body {
                Some(body) => agent.post(&path, &body).await,
                None => agent.delete(&path).await,
            }
        };
        Ok((operation, told))
    }

    /// What holds before an operation, and after it whatever becomes of it.
    pub(super) fn promised(&self, phase: Phase, operation: Operation) -> anyhow::Result<Promised> {
        Ok(Promised {
            tally: self.tally,
            boots: self.guest.boots,
            checkpoints: self.checkpoints()?,
            operation,
            // Of a VM that is off there is no boot to go on.
            boot_id: (phase == Phase::Migration).then(|| self.guest.boot_id.clone()),
        })
    }

    /// Finds the VM where it runs, or starts it on the host that owns it. Each host is asked to start it: the answer
    /// comes when whatever was under way there has ended, and the host that does not own the VM must refuse.
    pub(super) async fn find(&self, source: Seat) -> Result<Running, String> {
        let failed = |error: anyhow::Error| format!("{error:#}");
        let mut started = None;
        for _ in 0..OWNERS {
            let owner = self.field.owner().map_err(failed)?;
            let refused = match self.power_on(owner.other()).await? {
                Err(refused) if refused.contains(" belongs to ") => None,
                other => Some(other),
            };
            let moved = |field: &Field| field.owner().is_ok_and(|now| now != owner);
            if let Some(answer) = refused {
                if !moved(&self.field) {
                    return Err(format!(
                        "{} does not own it and does not refuse as such a host does: {answer:?}",
                        owner.other().name()
                    ));
                }
                if let Ok(guest) = answer {
                    started = Some((owner.other(), guest));
                }
                continue;
            }
            match self.power_on(owner).await? {
                Ok(guest) => started = Some((owner, guest)),
                Err(refused) if refused.contains(" is Running on this host") => {}
                Err(_) if moved(&self.field) => continue,
                Err(refused) => return Err(format!("{}: {refused}", owner.name())),
            }
            let (guest, proved) = self.prove(owner).await.map_err(failed)?;
            return Ok(Running {
                host: owner.name().to_owned(),
                side: if owner == source { Side::Source } else { Side::Target },
                started_later: started.is_some_and(|(on, _)| on == owner),
                guest,
                proved,
            });
        }
        Err(format!("its owner has changed {OWNERS} times while it was looked for"))
    }

    async fn power_on(&self, seat: Seat) -> Result<Result<GuestReport, String>, String> {
        let answer: anyhow::Result<Answer<PoweredOn>> =
            self.field.agent(seat).post(&path("power-on"), &json!({})).await;
        match answer {
            Ok(told) => Ok(told.map(|on| on.guest)),
            Err(error) => Err(format!("{error:#}")),
        }
    }

    async fn prove(&self, seat: Seat) -> anyhow::Result<(GuestReport, bool)> {
        let challenge: [u8; 32] = (&mut OsRandom as &mut dyn Random).bytes();
        let ask = json!({ "challenge": STANDARD.encode(challenge) });
        let answer: Answer<VmReply> = self.field.agent(seat).post(&path("prove"), &ask).await?;
        match answer.map_err(anyhow::Error::msg)? {
            VmReply::Proof { proof, guest } => {
                let expected = self.field.vm().expected_proof(&challenge);
                Ok((guest, proof == Blob(expected.to_vec())))
            }
            other => anyhow::bail!("{} proved nothing: {other:?}", seat.name()),
        }
    }

    /// All that there is to see of the VM.
    pub(super) async fn look(
        &self,
        running: Result<Running, String>,
        went_down: Vec<String>,
        took_replay: Vec<String>,
    ) -> anyhow::Result<Found> {
        let vm = self.field.vm().id;
        let mut held = Vec::new();
        for seat in SEATS {
            let answer: Answer<VmReply> = self.field.agent(seat).get("vms").await?;
            let VmReply::List { vms } = answer.map_err(anyhow::Error::msg)? else {
                anyhow::bail!("{} did not list its VMs", seat.name());
            };
            let of_vm = vms.into_iter().filter(|(id, _)| *id == vm);
            held.extend(of_vm.map(|(_, phase)| (seat.name().to_owned(), phase)));
        }
        Ok(Found {
            vm,
            running,
            owner: self.field.owner()?.name().to_owned(),
            held,
            checkpoints: self.checkpoints()?,
            went_down,
            took_replay,
        })
    }

    /// Lets the VM run, on whichever host owns it.
    pub async fn run(&mut self) -> anyhow::Result<()> {
        let owner = self.field.owner()?;
        let running = self.find(owner).await.map_err(anyhow::Error::msg)?;
        self.guest = running.guest;
        Ok(())
    }

    /// Takes over what a guest that was found says, and lets it count one more: the next round finds at least that.
    pub(super) async fn go_on(&mut self, running: &Running) -> anyhow::Result<()> {
        self.guest = running.guest.clone();
        self.count().await
    }

    /// Lets the guest count.
    pub async fn count(&mut self) -> anyhow::Result<()> {
        let owner = self.field.owner()?;
        let counted: Answer<GuestReport> = self.field.agent(owner).post(&path("tally"), &json!({})).await?;
        self.guest = counted
            .map_err(anyhow::Error::msg)
            .context("the guest does not count")?;
        self.tally = self.guest.tally;
        Ok(())
    }

    fn checkpoints(&self) -> anyhow::Result<BTreeSet<CheckpointId>> {
        let entries = self.field.current()?.checkpoints;
        Ok(entries.into_iter().map(|entry| entry.id).collect())
    }
}

/// Of an operation on the VM in its host's control API.
fn path(verb: &str) -> String {
    format!("vms/{}/{verb}", super::field::VM)
}

/// A VM changes hosts once in a round; twice would be a surprise.
const OWNERS: usize = 4;
