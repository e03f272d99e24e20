//! What the VBS store does for VMs with a key protector: opens a KPS answer, opens and reseals the state,
//! runs vTPM and guest, packs a VM for a migration and forgets its keys. What else may be done to a VM
//! while its keys are here is in `life`.
//!
//! Transport keys, vTPM keys and guest memory exist here and nowhere else on a host. Whatever comes
//! in was carried by the agent, an adversary: protector, answer, state and package are taken only
//! when they open and fit together (protocol reference 5.9). The egress key is used only after the
//! state has opened under the ingress key, and after the sealed record ([`super::started`]) has taken
//! note: an answer, a package or a generation of the past opens nothing again on this host. A key kept
//! from the last roll is used only after its use was counted ([`super::offline`]).

mod create;
mod life;
mod opened;
mod provision;
mod run;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use hgs_protocol::{
    env::Random,
    protector::{KeyProtector, ReleaseError, RollError},
    secret::TransportKey,
    xml::XmlError,
};
use zeroize::Zeroizing;

pub use self::{
    create::{Created, NewVm},
    life::Resealed,
    opened::AtRest,
    provision::Provisioned,
};
use self::{
    opened::{Next, OpenedVm, Released},
    run::Run,
};
use super::{
    VmId, VmName,
    checkpoint::{CheckpointError, Checkpoints},
    disk::{DiskError, LockedDisk},
    guest::{GuestError, GuestReport},
    memory::MemoryError,
    package::{LARGEST_PACKAGE, MigrationId, Package, PackageError, PackageHeader},
    recovery::{RecoveryPassword, RecoveryPasswordError},
    security::{Kind, Security, SecurityError, Switch},
    started::{StartedError, Vault, note_leaving, note_offline, note_opened, note_started},
    state::{Age, GuestState, StateError, StateHeader, VtpmState},
    vtpm::VtpmError,
};
use crate::{
    commit_point::commit_point,
    ledger::{Event, Ledger, LedgerError, Of},
    shielding::provision::ProvisionError,
};

/// The shielded VMs of one host.
pub struct ShieldedVms {
    folder: PathBuf,
    volume: Option<PathBuf>,
    /// Whether this host is of version 1803 or later.
    shielded_console: bool,
    ledger: Ledger,
    vms: HashMap<VmId, Vm>,
}

struct Vm {
    seal: Seal,
    phase: Phase,
}

/// What every sealed form of a VM is made with.
struct Seal {
    /// The transport key of now.
    key: TransportKey,
    age: Age,
    security: Security,
    checkpoints: Checkpoints,
}

enum Phase {
    /// Opened and resealed; the agent has yet to commit the new generation.
    Prepared {
        vtpm: VtpmState,
        start: Start,
    },
    Running(Box<Run>),
    /// Packed for a migration, saved or held for a checkpoint, and it is not known yet what becomes of it.
    Suspended {
        vtpm: VtpmState,
        memory: Zeroizing<Vec<u8>>,
    },
}

/// How a prepared VM begins to run.
enum Start {
    Boot,
    /// With the memory that was saved.
    Resume(Zeroizing<Vec<u8>>),
    /// With the memory that came from another host.
    Arrive(Zeroizing<Vec<u8>>),
}

/// What the agent must write and commit before the VM may start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Prepared {
    /// The VM.
    pub vm: VmId,
    /// Its generation: a new one, or the one before when the start is offline.
    pub generation: u64,
    /// The protector with the key of the state.
    pub protector: Vec<u8>,
    /// The state, sealed anew. Of a saved VM it is the state without its memory, which the store holds now.
    pub guest_state: Vec<u8>,
    /// How often this host may start the VM offline after this start.
    pub offline_starts_left: u32,
}

/// Where a VM stands on this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmPhase {
    /// Its keys are here, its guest does not run yet.
    Prepared,
    /// Its guest runs.
    Running,
    /// Its guest is held: packed for a migration, saved, or while a checkpoint is taken.
    Suspended,
}

/// Why the store refuses something about a VM.
#[derive(Debug, thiserror::Error)]
pub enum ShieldedError {
    /// The answer of the KPS does not parse.
    #[error("the answer of the key protection service: {0}")]
    Answer(#[from] XmlError),
    /// The answer does not open with the VSM key of this host.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// The egress protector does not follow from the ingress protector.
    #[error(transparent)]
    Roll(#[from] RollError),
    /// The state does not open under the ingress key.
    #[error(transparent)]
    State(#[from] StateError),
    /// The saved memory does not open, or not beside this state.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The VM's kind or switches do not allow it.
    #[error(transparent)]
    Security(#[from] SecurityError),
    /// The checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Hardware of a VM with a saved memory.
    #[error("the VM is saved: resume it and shut it down, or discard its saved state, and change it then")]
    Saved,
    /// The package does not open under the ingress key.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// The record of this host refuses: an older generation, or an answer or package used before.
    #[error(transparent)]
    Started(#[from] StartedError),
    /// The guest does not come up.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The vTPM fails.
    #[error(transparent)]
    Vtpm(#[from] VtpmError),
    /// The disk does not open.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// What was typed is no recovery password.
    #[error(transparent)]
    RecoveryPassword(#[from] RecoveryPasswordError),
    /// Typed where the fabric sees it.
    #[error(
        "the VM is shielded, and a recovery password that is typed on its host is seen by the fabric: its owner rebuilds the \
         VM with it (vm rebuild)"
    )]
    TypedOnHost,
    /// No VM was made of a template.
    #[error(transparent)]
    Provision(#[from] ProvisionError),
    /// The ledger of what runs here takes no entry.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The VM is here, in a phase that does not allow the request.
    #[error("the VM {vm} is {phase:?} on this host; {wanted} it first")]
    Phase {
        /// The VM.
        vm: VmId,
        /// Where it stands.
        phase: VmPhase,
        /// What would have to happen before.
        wanted: &'static str,
    },
    /// No key of this VM is here.
    #[error("this host holds no key of the VM {0}; power it on first")]
    NotHere(VmId),
}

impl ShieldedVms {
    /// No VM; vTPMs will run in folders below `folder` (absolute), disks are opened below `volume` only,
    /// and every run is noted in `ledger`.
    pub fn new(folder: &Path, volume: Option<&Path>, ledger: Ledger) -> ShieldedVms {
        ShieldedVms {
            folder: folder.to_path_buf(),
            volume: volume.map(Path::to_path_buf),
            shielded_console: true,
            ledger,
            vms: HashMap::new(),
        }
    }

    /// As a host of before version 1803, which has no console for shielded VMs.
    #[must_use]
    pub fn before_1803(mut self) -> ShieldedVms {
        self.shielded_console = false;
        self
    }

    /// Opens the state of a VM, with the memory if it is saved, and reseals the state under the egress key. What
    /// was used is on record before the result leaves.
    pub fn prepare_power_on(
        &mut self,
        vault: &mut dyn Vault,
        ingress_protector: &[u8],
        answer: &[u8],
        at_rest: AtRest<'_>,
        rng: &mut dyn Random,
    ) -> Result<Prepared, ShieldedError> {
        self.refuse_running(StateHeader::read(at_rest.guest_state)?.vm)?;
        let released = Released::open(vault.vsm_key(), ingress_protector, answer)?;
        let opened = at_rest.open(&released.release.ingress)?;
        let (vm, age) = (opened.vm, opened.age);
        note_opened(vault, vm, age, &released.opening(None), rng)?;
        Ok(self.prepare(opened, released.next(age), rng))
    }

    /// As [`ShieldedVms::prepare_power_on`], without an answer of the KPS: with the key kept from the last
    /// roll, if `protector` is the one of that roll and a start is left. The start is counted before the
    /// key is used, whatever becomes of it.
    pub fn prepare_offline(
        &mut self,
        vault: &mut dyn Vault,
        protector: &[u8],
        at_rest: AtRest<'_>,
        rng: &mut dyn Random,
    ) -> Result<Prepared, ShieldedError> {
        // Authentic only once the state has opened; until then it can do no more than cost a start.
        let StateHeader { vm, age, .. } = StateHeader::read(at_rest.guest_state)?;
        self.refuse_running(vm)?;
        let digest = KeyProtector::parse(protector).map_err(RollError::Ingress)?.digest();
        let start = note_offline(vault, vm, age, &digest, rng)?;
        commit_point("offline:counted");
        let opened = at_rest.open(&start.key)?;
        let next = Next {
            age: Age {
                generation: age.generation,
                start: start.number,
            },
            key: start.key,
            protector: protector.to_vec(),
            offline_starts_left: start.left,
        };
        Ok(self.prepare(opened, next, rng))
    }

    /// Opens the package of a migration and reseals the VM's state under the egress key. What was
    /// used is on record before the result leaves.
    pub fn prepare_resume(
        &mut self,
        vault: &mut dyn Vault,
        ingress_protector: &[u8],
        answer: &[u8],
        package: &[u8],
        rng: &mut dyn Random,
    ) -> Result<Prepared, ShieldedError> {
        self.refuse_running(PackageHeader::read(package)?.vm)?;
        let released = Released::open(vault.vsm_key(), ingress_protector, answer)?;
        let package = Package::open(package, &released.release.ingress)?;
        let (PackageHeader { vm, migration, .. }, age) = (package.header, Age::rolled(package.header.generation));
        note_opened(vault, vm, age, &released.opening(Some(migration)), rng)?;
        let of = Of::new(vm, age);
        self.ledger.note(Event::Received { of, migration })?;
        let opened = OpenedVm {
            vm,
            age,
            security: package.header.security,
            checkpoints: package.checkpoints,
            vtpm: package.vtpm,
            start: Start::Arrive(package.memory),
        };
        Ok(self.prepare(opened, released.next(age), rng))
    }

    fn prepare(&mut self, opened: OpenedVm, next: Next, rng: &mut dyn Random) -> Prepared {
        let id = opened.vm;
        let seal = Seal {
            key: next.key,
            age: next.age,
            security: opened.security,
            checkpoints: opened.checkpoints,
        };
        let guest_state = seal.guest_state(id, &opened.vtpm, rng);
        let phase = Phase::Prepared {
            vtpm: opened.vtpm,
            start: opened.start,
        };
        self.vms.insert(id, Vm { seal, phase });
        commit_point("power-on:opened");
        Prepared {
            vm: id,
            generation: next.age.generation,
            protector: next.protector,
            guest_state,
            offline_starts_left: next.offline_starts_left,
        }
    }

    /// Starts vTPM and guest of a prepared VM: a boot, or going on where a migration left off. `recovery` is what somebody
    /// types where the guest asks for the recovery password of its volume.
    pub fn start(
        &mut self,
        vault: &mut dyn Vault,
        id: VmId,
        name: &VmName,
        disk: &Path,
        recovery: Option<&str>,
        rng: &mut dyn Random,
    ) -> Result<GuestReport, ShieldedError> {
        let recovery = recovery.map(RecoveryPassword::parse).transpose()?;
        let folder = self.vtpm_folder(id);
        let disk = self.disk(disk);
        let vm = self.vms.get_mut(&id).ok_or(ShieldedError::NotHere(id))?;
        if vm.phase() == VmPhase::Running {
            return Err(phase_error(id, vm, "stop"));
        }
        if recovery.is_some() && vm.seal.security.kind() == Kind::Shielded {
            return Err(ShieldedError::TypedOnHost);
        }
        note_started(vault, id, vm.seal.age, &vm.seal.key, rng)?;
        commit_point("power-on:recorded");
        if !vm.seal.security.is_on(Switch::Vtpm) {
            return Err(GuestError::NoVtpm.into());
        }
        let (disk, of) = (disk?, Of::new(id, vm.seal.age));
        self.ledger.note(Event::Started(of))?;
        match Run::begin(id, name, vm, &folder, disk, recovery.as_ref(), rng) {
            Ok(run) => {
                let report = run.guest.report();
                vm.phase = Phase::Running(Box::new(run));
                Ok(report)
            }
            Err(failed) => {
                self.ledger.note(Event::Stopped(of))?;
                Err(failed)
            }
        }
    }

    /// Suspends a running VM and packs it for `migration`. It stays suspended here until
    /// [`ShieldedVms::start`] (the migration failed) or [`ShieldedVms::forget`] (it succeeded). In
    /// either case it does not start here offline before the next roll.
    pub fn save(
        &mut self,
        vault: &mut dyn Vault,
        id: VmId,
        migration: MigrationId,
        rng: &mut dyn Random,
    ) -> Result<Vec<u8>, ShieldedError> {
        let vm = self.suspend_running(id, |of| Event::Sent { of, migration })?;
        let Phase::Suspended { vtpm, memory } = &vm.phase else {
            return Err(phase_error(id, vm, "start"));
        };
        let package = Package {
            header: PackageHeader {
                vm: id,
                migration,
                generation: vm.seal.age.generation,
                security: vm.seal.security,
            },
            checkpoints: vm.seal.checkpoints.clone(),
            vtpm: vtpm.clone(),
            memory: memory.clone(),
        };
        let sealed = package.seal(&vm.seal.key, rng);
        note_leaving(vault, id, rng)?;
        commit_point("migration:saved");
        if sealed.len() > LARGEST_PACKAGE {
            return Err(PackageError::TooLarge.into());
        }
        Ok(sealed)
    }

    /// Shuts a running VM down and gives its state, sealed under the current key.
    pub fn power_off(&mut self, id: VmId, rng: &mut dyn Random) -> Result<Vec<u8>, ShieldedError> {
        let (seal, Run { vtpm, guest }) = self.take_running(id, Event::Stopped)?;
        // A volume that takes no more writes is one that was not shut down; the vTPM is saved all the same.
        let _ = guest.shut_down(rng);
        let guest_state = seal.guest_state(id, &vtpm.power_off()?, rng);
        commit_point("power-off:stopped");
        Ok(guest_state)
    }

    /// Drops every key of the VM from memory; what may be started offline stays sealed. Refused while its guest runs. Answers whether there was one.
    pub fn forget(&mut self, id: VmId) -> Result<bool, ShieldedError> {
        match self.vms.get(&id) {
            Some(vm) if matches!(vm.phase, Phase::Running(_)) => Err(phase_error(id, vm, "stop or migrate")),
            _ => Ok(self.vms.remove(&id).is_some()),
        }
    }

    /// Lets the guest answer its owner's challenge.
    pub fn prove(&self, id: VmId, challenge: &[u8]) -> Result<([u8; 32], GuestReport), ShieldedError> {
        let vm = self.vms.get(&id).ok_or(ShieldedError::NotHere(id))?;
        match &vm.phase {
            Phase::Running(run) => Ok((run.guest.prove(challenge), run.guest.report())),
            _ => Err(phase_error(id, vm, "start")),
        }
    }

    /// The VMs whose keys are here.
    pub fn list(&self) -> Vec<(VmId, VmPhase)> {
        self.vms.iter().map(|(id, vm)| (*id, vm.phase())).collect()
    }

    /// A VM whose vTPM has died has stopped: its guest does not go on without.
    pub(super) fn bury_the_dead(&mut self) -> Result<(), ShieldedError> {
        let dead = self.vms.iter_mut().filter_map(|(id, vm)| match &mut vm.phase {
            Phase::Running(run) => (!run.vtpm.is_running()).then_some(*id),
            _ => None,
        });
        for id in dead.collect::<Vec<_>>() {
            self.take_running(id, Event::Stopped)?;
        }
        Ok(())
    }

    /// Takes a running VM out of the table, after `end` is noted: whatever fails from here on, it does not run
    /// any more. Its disk stays locked as long as the guest lives.
    fn take_running(&mut self, id: VmId, end: impl FnOnce(Of) -> Event) -> Result<(Seal, Run), ShieldedError> {
        let vm = self.vms.get(&id).ok_or(ShieldedError::NotHere(id))?;
        if vm.phase() != VmPhase::Running {
            return Err(phase_error(id, vm, "start"));
        }
        self.ledger.note(end(Of::new(id, vm.seal.age)))?;
        match self.vms.remove(&id) {
            Some(Vm {
                seal,
                phase: Phase::Running(run),
            }) => Ok((seal, *run)),
            _ => Err(ShieldedError::NotHere(id)),
        }
    }

    /// Suspends a running VM and keeps it so.
    fn suspend_running(&mut self, id: VmId, end: impl FnOnce(Of) -> Event) -> Result<&mut Vm, ShieldedError> {
        let (seal, Run { vtpm, guest }) = self.take_running(id, end)?;
        let memory = guest.expose_memory();
        drop(guest);
        // A vTPM that cannot be saved leaves the VM stopped: its state on the volume still starts.
        let vtpm = vtpm.suspend()?;
        let phase = Phase::Suspended { vtpm, memory };
        Ok(self.vms.entry(id).or_insert(Vm { seal, phase }))
    }

    /// A suspended VM may be powered on anew: its memory is lost, as after a power cut.
    fn refuse_running(&self, id: VmId) -> Result<(), ShieldedError> {
        match self.vms.get(&id) {
            Some(vm) if vm.phase() == VmPhase::Running => Err(phase_error(id, vm, "stop")),
            _ => Ok(()),
        }
    }

    fn vtpm_folder(&self, id: VmId) -> PathBuf {
        self.folder.join(format!("vtpm-{id}"))
    }

    fn disk(&self, disk: &Path) -> Result<LockedDisk, DiskError> {
        match &self.volume {
            Some(volume) => LockedDisk::open_below(volume, disk),
            None => Err(DiskError::Elsewhere),
        }
    }
}

impl Seal {
    fn header(&self, vm: VmId) -> StateHeader {
        StateHeader {
            vm,
            age: self.age,
            security: self.security,
        }
    }

    fn guest_state(&self, vm: VmId, vtpm: &VtpmState, rng: &mut dyn Random) -> Vec<u8> {
        GuestState {
            header: self.header(vm),
            checkpoints: self.checkpoints.clone(),
            vtpm: vtpm.clone(),
        }
        .seal(&self.key, rng)
    }
}

impl Vm {
    fn phase(&self) -> VmPhase {
        match self.phase {
            Phase::Prepared { .. } => VmPhase::Prepared,
            Phase::Running(_) => VmPhase::Running,
            Phase::Suspended { .. } => VmPhase::Suspended,
        }
    }
}

fn phase_error(vm: VmId, here: &Vm, wanted: &'static str) -> ShieldedError {
    ShieldedError::Phase {
        vm,
        phase: here.phase(),
        wanted,
    }
}
