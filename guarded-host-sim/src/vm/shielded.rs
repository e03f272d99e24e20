//! What the VBS store does for shielded VMs: opens a KPS answer, opens and reseals the state, runs
//! vTPM and guest, packs a VM for a migration and forgets its keys.
//!
//! Transport keys, vTPM keys and guest memory exist here and nowhere else on a host. Whatever comes
//! in was carried by the agent, an adversary: protector, answer, state and package are taken only
//! when they open and fit together (protocol reference 5.9). The egress key is used only after the
//! state has opened under the ingress key, and after the sealed record ([`super::started`]) has taken
//! note: an answer, a package or a generation of the past opens nothing again on this host. A key kept
//! from the last roll is used only after its use was counted ([`super::offline`]).

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use hgs_protocol::{
    crypto::RsaPrivateKey,
    env::Random,
    protector::{KeyProtector, OpenedRelease, ReleaseError, RollError, check_roll, open_release},
    secret::TransportKey,
    wire::kps::RollTransportKeyResponse,
    xml::XmlError,
};
use zeroize::Zeroizing;

use super::{
    VmId, VmName,
    disk::{DiskError, LockedDisk},
    guest::{Guest, GuestError, GuestReport},
    package::{LARGEST_PACKAGE, MigrationId, Package, PackageError, PackageHeader},
    started::{Opening, StartedError, Vault, note_leaving, note_offline, note_opened, note_started},
    state::{Age, GuestState, StateError, StateHeader, VtpmState},
    vtpm::{Vtpm, VtpmError},
};
use crate::commit_point::commit_point;

/// The shielded VMs of one host.
pub struct ShieldedVms {
    folder: PathBuf,
    volume: Option<PathBuf>,
    vms: HashMap<VmId, Vm>,
}

struct Vm {
    /// The transport key under which the VM's state is sealed now.
    key: TransportKey,
    age: Age,
    phase: Phase,
}

enum Phase {
    /// Opened and resealed; the agent has yet to commit the new generation.
    Prepared {
        vtpm: VtpmState,
        memory: Option<Zeroizing<Vec<u8>>>,
    },
    Running(Box<(Vtpm, Guest)>),
    /// Packed for a migration whose outcome is not known yet.
    Suspended {
        vtpm: VtpmState,
        memory: Zeroizing<Vec<u8>>,
    },
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
    /// The state, sealed anew.
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
    /// Its guest is packed for a migration.
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
    /// No VM; vTPMs will run in folders below `folder` (absolute), and disks are
    /// opened below `volume` only.
    pub fn new(folder: &Path, volume: Option<&Path>) -> ShieldedVms {
        ShieldedVms {
            folder: folder.to_path_buf(),
            volume: volume.map(Path::to_path_buf),
            vms: HashMap::new(),
        }
    }

    /// Opens the state of a VM for a power-on and reseals it under the egress key. What was used is
    /// on record before the result leaves.
    pub fn prepare_power_on(
        &mut self,
        vault: &mut dyn Vault,
        ingress_protector: &[u8],
        answer: &[u8],
        guest_state: &[u8],
        rng: &mut dyn Random,
    ) -> Result<Prepared, ShieldedError> {
        self.refuse_running(StateHeader::read(guest_state)?.vm)?;
        let released = Released::open(vault.vsm_key(), ingress_protector, answer)?;
        let state = GuestState::open(guest_state, &released.release.ingress)?;
        let StateHeader { vm, age } = state.header;
        note_opened(vault, vm, age, &released.opening(None), rng)?;
        Ok(self.prepare(vm, released.next(age), state.vtpm, None, rng))
    }

    /// As [`ShieldedVms::prepare_power_on`], without an answer of the KPS: with the key kept from the last
    /// roll, if `protector` is the one of that roll and a start is left. The start is counted before the
    /// key is used, whatever becomes of it.
    pub fn prepare_offline(
        &mut self,
        vault: &mut dyn Vault,
        protector: &[u8],
        guest_state: &[u8],
        rng: &mut dyn Random,
    ) -> Result<Prepared, ShieldedError> {
        // Authentic only once the state has opened; until then it can do no more than cost a start.
        let StateHeader { vm, age } = StateHeader::read(guest_state)?;
        self.refuse_running(vm)?;
        let digest = KeyProtector::parse(protector).map_err(RollError::Ingress)?.digest();
        let start = note_offline(vault, vm, age, &digest, rng)?;
        commit_point("offline:counted");
        let state = GuestState::open(guest_state, &start.key)?;
        let next = Next {
            age: Age {
                generation: age.generation,
                start: start.number,
            },
            key: start.key,
            protector: protector.to_vec(),
            offline_starts_left: start.left,
        };
        Ok(self.prepare(vm, next, state.vtpm, None, rng))
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
        let PackageHeader {
            vm,
            migration,
            generation,
        } = package.header;
        let age = Age::rolled(generation);
        note_opened(vault, vm, age, &released.opening(Some(migration)), rng)?;
        Ok(self.prepare(vm, released.next(age), package.vtpm, Some(package.memory), rng))
    }

    fn prepare(
        &mut self,
        id: VmId,
        next: Next,
        vtpm: VtpmState,
        memory: Option<Zeroizing<Vec<u8>>>,
        rng: &mut dyn Random,
    ) -> Prepared {
        let guest_state = GuestState {
            header: StateHeader { vm: id, age: next.age },
            vtpm: vtpm.clone(),
        }
        .seal(&next.key, rng);
        let vm = Vm {
            key: next.key,
            age: next.age,
            phase: Phase::Prepared { vtpm, memory },
        };
        self.vms.insert(id, vm);
        commit_point("power-on:opened");
        Prepared {
            vm: id,
            generation: next.age.generation,
            protector: next.protector,
            guest_state,
            offline_starts_left: next.offline_starts_left,
        }
    }

    /// Starts vTPM and guest of a prepared VM: a boot, or going on where a migration left off.
    pub fn start(
        &mut self,
        vault: &mut dyn Vault,
        id: VmId,
        name: &VmName,
        disk: &Path,
        rng: &mut dyn Random,
    ) -> Result<GuestReport, ShieldedError> {
        let folder = self.vtpm_folder(id);
        let volume = self.volume.clone();
        let open = |disk: &Path| match &volume {
            Some(volume) => LockedDisk::open_below(volume, disk),
            None => Err(DiskError::Elsewhere),
        };
        let vm = self.vms.get_mut(&id).ok_or(ShieldedError::NotHere(id))?;
        note_started(vault, id, vm.age, &vm.key, rng)?;
        commit_point("power-on:recorded");
        let (vtpm, guest) = match &vm.phase {
            Phase::Prepared { vtpm, memory: None } => {
                let mut vtpm = Vtpm::power_on(name.as_str(), vtpm, &folder)?;
                commit_point("power-on:vtpm-started");
                let guest = Guest::boot(id, &mut vtpm, open(disk)?, rng)?;
                commit_point("power-on:booted");
                (vtpm, guest)
            }
            Phase::Prepared {
                vtpm,
                memory: Some(memory),
            }
            | Phase::Suspended { vtpm, memory } => {
                let vtpm = Vtpm::resume(name.as_str(), vtpm, &folder)?;
                let guest = Guest::resume(id, memory, open(disk)?)?;
                commit_point("migration:resumed");
                (vtpm, guest)
            }
            Phase::Running(_) => return Err(phase_error(id, vm, "stop")),
        };
        let report = guest.report();
        vm.phase = Phase::Running(Box::new((vtpm, guest)));
        Ok(report)
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
        let (key, age, vtpm, guest) = self.take_running(id)?;
        let memory = guest.expose_memory();
        drop(guest);
        // A vTPM that cannot be saved leaves the VM stopped: its state on the volume still starts.
        let vtpm = vtpm.suspend()?;
        let package = Package {
            header: PackageHeader {
                vm: id,
                migration,
                generation: age.generation,
            },
            vtpm: vtpm.clone(),
            memory: memory.clone(),
        };
        let sealed = package.seal(&key, rng);
        let suspended = Vm {
            key,
            age,
            phase: Phase::Suspended { vtpm, memory },
        };
        self.vms.insert(id, suspended);
        note_leaving(vault, id, rng)?;
        commit_point("migration:saved");
        if sealed.len() > LARGEST_PACKAGE {
            return Err(PackageError::TooLarge.into());
        }
        Ok(sealed)
    }

    /// Stops a running VM in an orderly way and gives its state, sealed under the current key.
    pub fn power_off(&mut self, id: VmId, rng: &mut dyn Random) -> Result<Vec<u8>, ShieldedError> {
        let (key, age, vtpm, guest) = self.take_running(id)?;
        drop(guest);
        let state = GuestState {
            header: StateHeader { vm: id, age },
            vtpm: vtpm.power_off()?,
        };
        Ok(state.seal(&key, rng))
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
            Phase::Running(running) => Ok((running.1.prove(challenge), running.1.report())),
            _ => Err(phase_error(id, vm, "start")),
        }
    }

    /// The VMs whose keys are here.
    pub fn list(&self) -> Vec<(VmId, VmPhase)> {
        self.vms.iter().map(|(id, vm)| (*id, vm.phase())).collect()
    }

    /// Takes a running VM out of the table: whatever fails from here on, it does not run any more.
    fn take_running(&mut self, id: VmId) -> Result<(TransportKey, Age, Vtpm, Guest), ShieldedError> {
        match self.vms.remove(&id) {
            None => Err(ShieldedError::NotHere(id)),
            Some(Vm {
                key,
                age,
                phase: Phase::Running(running),
            }) => Ok((key, age, running.0, running.1)),
            Some(vm) => {
                let error = phase_error(id, &vm, "start");
                self.vms.insert(id, vm);
                Err(error)
            }
        }
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

/// What a VM is sealed with for a start.
struct Next {
    age: Age,
    key: TransportKey,
    protector: Vec<u8>,
    offline_starts_left: u32,
}

/// An answer of the KPS that was opened, and whose egress protector follows from the ingress protector.
struct Released {
    release: OpenedRelease,
    protector: Vec<u8>,
    digest: [u8; 32],
}

impl Released {
    fn open(vsm_key: &RsaPrivateKey, ingress_protector: &[u8], answer: &[u8]) -> Result<Released, ShieldedError> {
        let answer = RollTransportKeyResponse::parse(answer)?;
        let release = open_release(&answer, vsm_key)?;
        let egress = check_roll(ingress_protector, &answer.egress_protector, &release.egress)?;
        Ok(Released {
            release,
            protector: answer.egress_protector,
            digest: egress.digest(),
        })
    }

    fn opening(&self, package: Option<MigrationId>) -> Opening<'_> {
        Opening {
            release: &self.release,
            egress_protector: self.digest,
            package,
        }
    }

    /// After the state of `age`.
    fn next(self, age: Age) -> Next {
        Next {
            age: Age::rolled(age.generation.saturating_add(1)),
            offline_starts_left: self.release.max_offline_unwraps,
            key: self.release.egress,
            protector: self.protector,
        }
    }
}
