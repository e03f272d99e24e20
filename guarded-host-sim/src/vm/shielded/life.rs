//! What else may be done to a VM while its keys are in the store: save, turn off, reset, change,
//! checkpoint, look into.
//!
//! Nothing here brings a key: the VM was prepared or runs. What comes out is sealed, but for what a
//! channel gives where the VM's kind allows it.

use std::path::Path;

use hgs_protocol::env::Random;
use zeroize::Zeroizing;

use super::{Event, GuestReport, Of, Phase, Run, ShieldedError, ShieldedVms, Start, Vm, note_started, phase_error};
use crate::{
    commit_point::commit_point,
    vm::{
        VmId,
        checkpoint::{CheckpointId, CheckpointImage},
        memory::seal_memory,
        security::{Change, Channel},
        started::Vault,
    },
};

/// A VM sealed anew under the key that it has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resealed {
    /// Its state.
    pub guest_state: Vec<u8>,
    /// Its memory, if it is saved.
    pub memory: Option<Vec<u8>>,
}

impl ShieldedVms {
    /// Lets a running guest count one more in its vTPM and on its volume, and seals its state as the vTPM has
    /// written it. Once that state counts on the volume, no crash takes the vTPM's count back.
    pub fn tally(&mut self, id: VmId, rng: &mut dyn Random) -> Result<(GuestReport, Vec<u8>), ShieldedError> {
        let vm = self.vms.get_mut(&id).ok_or(ShieldedError::NotHere(id))?;
        let Phase::Running(run) = &mut vm.phase else {
            return Err(phase_error(id, vm, "start"));
        };
        let report = run.guest.count(&mut run.vtpm, rng)?;
        let guest_state = vm.seal.guest_state(id, &run.vtpm.written()?, rng);
        commit_point("tally:counted");
        Ok((report, guest_state))
    }

    /// Suspends a running VM and seals state and memory, for its next start to go on from. It stays suspended
    /// here until [`ShieldedVms::forget`], or goes on by [`ShieldedVms::start`]. A VM that is suspended already, or
    /// whose resumption failed, is sealed as it is.
    pub fn suspend(&mut self, id: VmId, rng: &mut dyn Random) -> Result<Resealed, ShieldedError> {
        let vm = match self.runs(id) {
            true => self.suspend_running(id, Event::Stopped)?,
            false => self.vms.get_mut(&id).ok_or(ShieldedError::NotHere(id))?,
        };
        let (vtpm, memory) = match &vm.phase {
            Phase::Suspended { vtpm, memory } => (vtpm, memory),
            Phase::Prepared {
                vtpm,
                start: Start::Resume(memory),
            } => (vtpm, memory),
            _ => return Err(phase_error(id, vm, "start")),
        };
        let guest_state = vm.seal.guest_state(id, vtpm, rng);
        let memory = seal_memory(&vm.seal.key, &vm.seal.header(id), &guest_state, memory, rng);
        commit_point("save:suspended");
        Ok(Resealed {
            guest_state,
            memory: Some(memory),
        })
    }

    /// Cuts a running VM's power and gives its state as the vTPM had written it.
    pub fn turn_off(&mut self, id: VmId, rng: &mut dyn Random) -> Result<Vec<u8>, ShieldedError> {
        let (seal, Run { vtpm, guest }) = self.take_running(id, Event::Stopped)?;
        drop(guest);
        let guest_state = seal.guest_state(id, &vtpm.turn_off()?, rng);
        commit_point("power-off:stopped");
        Ok(guest_state)
    }

    /// Resets a running VM: vTPM and guest start anew, with the keys that are here. A guest that does not come
    /// up again leaves the VM off, as it was before its last start.
    pub fn reset(&mut self, id: VmId, disk: &Path, rng: &mut dyn Random) -> Result<GuestReport, ShieldedError> {
        let (seal, Run { mut vtpm, guest }) = self.take_running(id, Event::Stopped)?;
        // The disk is locked as long as a guest has it.
        drop(guest);
        vtpm.reset()?;
        commit_point("reset:cut");
        let (disk, of) = (self.disk(disk)?, Of::new(id, seal.age));
        self.ledger.note(Event::Started(of))?;
        match Run::boot(seal.security, id, vtpm, disk, None, rng) {
            Ok(run) => {
                let report = run.guest.report();
                let phase = Phase::Running(Box::new(run));
                self.vms.insert(id, Vm { seal, phase });
                Ok(report)
            }
            Err(failed) => {
                self.ledger.note(Event::Stopped(of))?;
                Err(failed)
            }
        }
    }

    /// Changes kind or switches of a VM that is prepared and not saved, and seals it anew.
    pub fn change(&mut self, id: VmId, change: Change, rng: &mut dyn Random) -> Result<Resealed, ShieldedError> {
        let vm = self.vms.get_mut(&id).ok_or(ShieldedError::NotHere(id))?;
        match &vm.phase {
            Phase::Prepared { start: Start::Boot, .. } => {}
            Phase::Prepared { .. } => return Err(ShieldedError::Saved),
            _ => return Err(phase_error(id, vm, "stop")),
        }
        vm.seal.security = vm.seal.security.change(change)?;
        reseal(id, vm, rng)
    }

    /// Takes a checkpoint of a VM that is prepared or runs; gives its image and the VM sealed anew with the
    /// image's key. A running VM is suspended until [`ShieldedVms::start`], for its disk to be copied.
    pub fn take_checkpoint(
        &mut self,
        id: VmId,
        checkpoint: CheckpointId,
        rng: &mut dyn Random,
    ) -> Result<(Vec<u8>, Resealed), ShieldedError> {
        let ran = self.runs(id);
        let vm = match ran {
            true => self.suspend_running(id, Event::Stopped)?,
            false => self.vms.get_mut(&id).ok_or(ShieldedError::NotHere(id))?,
        };
        let (vtpm, memory) = match &vm.phase {
            Phase::Suspended { vtpm, memory } if ran => (vtpm, Some(memory)),
            Phase::Prepared {
                vtpm,
                start: Start::Boot,
            } => (vtpm, None),
            Phase::Prepared {
                vtpm,
                start: Start::Resume(memory),
            } => (vtpm, Some(memory)),
            _ => return Err(phase_error(id, vm, "start or stop")),
        };
        let image = CheckpointImage {
            vtpm: vtpm.clone(),
            memory: memory.cloned(),
        };
        let taken = vm
            .seal
            .checkpoints
            .take(id, checkpoint, vm.seal.security, &image, rng)?;
        commit_point("checkpoint:taken");
        let resealed = match ran {
            // Whatever becomes of the checkpoint, on the volume the VM is one that runs, not a saved one.
            true => Resealed {
                guest_state: vm.seal.guest_state(id, &image.vtpm, rng),
                memory: None,
            },
            false => reseal(id, vm, rng)?,
        };
        Ok((taken, resealed))
    }

    /// Puts a prepared VM back to a checkpoint of its own, from which its next start boots or goes on. Kind,
    /// switches and checkpoints stay as they are.
    pub fn apply_checkpoint(
        &mut self,
        id: VmId,
        checkpoint: CheckpointId,
        image: &[u8],
        rng: &mut dyn Random,
    ) -> Result<Resealed, ShieldedError> {
        let vm = self.vms.get_mut(&id).ok_or(ShieldedError::NotHere(id))?;
        if !matches!(vm.phase, Phase::Prepared { .. }) {
            return Err(phase_error(id, vm, "stop"));
        }
        let image = vm.seal.checkpoints.open(id, checkpoint, image)?;
        vm.phase = Phase::Prepared {
            vtpm: image.vtpm,
            start: image.memory.map_or(Start::Boot, Start::Resume),
        };
        reseal(id, vm, rng)
    }

    /// Forgets a checkpoint and its key. A prepared VM is sealed anew; one that runs is when it stops.
    pub fn forget_checkpoint(
        &mut self,
        id: VmId,
        checkpoint: CheckpointId,
        rng: &mut dyn Random,
    ) -> Result<Option<Resealed>, ShieldedError> {
        let vm = self.vms.get_mut(&id).ok_or(ShieldedError::NotHere(id))?;
        vm.seal.checkpoints.remove(checkpoint);
        match vm.phase {
            Phase::Prepared { .. } => reseal(id, vm, rng).map(Some),
            Phase::Running(_) | Phase::Suspended { .. } => Ok(None),
        }
    }

    /// Ends a change of a prepared VM whose new files count now: nothing older starts here any more, and its
    /// keys leave memory.
    pub fn settle(&mut self, vault: &mut dyn Vault, id: VmId, rng: &mut dyn Random) -> Result<(), ShieldedError> {
        let vm = self.vms.get(&id).ok_or(ShieldedError::NotHere(id))?;
        if !matches!(vm.phase, Phase::Prepared { .. }) {
            return Err(phase_error(id, vm, "stop"));
        }
        note_started(vault, id, vm.seal.age, &vm.seal.key, rng)?;
        self.vms.remove(&id);
        Ok(())
    }

    /// What a channel into the running guest gives, where the VM's kind and switches allow it.
    pub fn look(&self, id: VmId, channel: Channel) -> Result<Zeroizing<Vec<u8>>, ShieldedError> {
        let vm = self.vms.get(&id).ok_or(ShieldedError::NotHere(id))?;
        vm.seal.security.allows(channel, self.shielded_console)?;
        match &vm.phase {
            Phase::Running(run) => Ok(run.guest.expose(channel)),
            _ => Err(phase_error(id, vm, "start")),
        }
    }

    fn runs(&self, id: VmId) -> bool {
        matches!(self.vms.get(&id).map(|vm| &vm.phase), Some(Phase::Running(_)))
    }
}

fn reseal(id: VmId, vm: &Vm, rng: &mut dyn Random) -> Result<Resealed, ShieldedError> {
    let Phase::Prepared { vtpm, start } = &vm.phase else {
        return Err(phase_error(id, vm, "stop"));
    };
    let guest_state = vm.seal.guest_state(id, vtpm, rng);
    let memory = match start {
        Start::Boot => None,
        Start::Resume(memory) | Start::Arrive(memory) => Some(seal_memory(
            &vm.seal.key,
            &vm.seal.header(id),
            &guest_state,
            memory,
            rng,
        )),
    };
    Ok(Resealed { guest_state, memory })
}
