//! A new key protector for a VM that is off: a new transport key for its owner and the guardians that the
//! owner names now, and the VM's state sealed under that key.
//!
//! For a guardian rotation, and for taking a guardian's access away from what the VM writes from now on.
//! What was copied before opens as before, for whoever held a key then. Nothing of this runs on a host:
//! the owner's keys open the protector, and the volume's commit makes the new one count, so that a crash
//! leaves the old pair of protector and state or the new one.

use hgs_protocol::{
    env::Random,
    protector::{Guardian, GuardianError, GuardianKeys, KeyProtector, OpenError, ProtectorError, VerifyError},
};

use super::{
    VmName,
    disk::{DiskError, LockedDisk},
    state::{Age, GuestState, StateError, StateHeader},
    volume::{Generation, Volume, VolumeError},
};
use crate::commit_point::commit_point;

/// Why a VM got no new protector.
#[derive(Debug, thiserror::Error)]
pub enum RekeyError {
    /// Its disk is held open.
    #[error("the VM {0} runs: stop it first")]
    Running(VmName),
    /// Somebody else's VM.
    #[error("only its owner gives a VM a new protector, and these are not the owner's keys: the owner is {owner}")]
    NotOwner {
        /// Thumbprint of the owner's signing certificate.
        owner: String,
    },
    /// Nobody could start it.
    #[error("name a guardian: a VM that only its owner can open starts on no host")]
    NoGuardian,
    /// The state belongs to another VM.
    #[error("the VM {0} on the volume has the state of another VM; put its own back from a backup")]
    OtherVm(VmName),
    /// The present protector, or the new one.
    #[error("the key protector: {0}")]
    Protector(#[from] ProtectorError),
    /// The present protector's signatures.
    #[error("the key protector: {0}")]
    Chain(#[from] VerifyError),
    /// The present protector's wrapping for its owner.
    #[error("the key protector: {0}")]
    Open(#[from] OpenError),
    /// The owner's keys.
    #[error("the owner's keys: {0}")]
    Keys(#[from] GuardianError),
    /// The state.
    #[error(transparent)]
    State(#[from] StateError),
    /// The disk.
    #[error(transparent)]
    Disk(DiskError),
    /// The volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

/// Makes a new protector for `owner` (who must own the present one) and `guardians`, seals the VM's state
/// under its key, and lets both count. Gives the number of the new generation.
///
/// The present MaxOfflineUnwraps is kept unless another is given.
pub fn rekey(
    owner: &GuardianKeys,
    volume: &Volume,
    name: &VmName,
    guardians: &[Guardian],
    max_offline_unwraps: Option<u32>,
    rng: &mut dyn Random,
) -> Result<u64, RekeyError> {
    if guardians.is_empty() {
        return Err(RekeyError::NoGuardian);
    }
    let folder = volume.vm(name)?;
    // Held to the end: the VM does not start meanwhile.
    let _off = LockedDisk::open(&folder.disk_path()).map_err(|error| match error {
        DiskError::InUse => RekeyError::Running(name.clone()),
        other => RekeyError::Disk(other),
    })?;
    let current = folder.current()?;
    let old = folder.read_generation(&current.generation)?;

    let chained = KeyProtector::parse(&old.protector)?.verify()?;
    if chained.owner() != Some(owner.guardian()?.signing()) {
        return Err(RekeyError::NotOwner {
            owner: chained.owner().map_or_else(String::new, |signing| signing.thumbprint()),
        });
    }
    let wish = max_offline_unwraps.unwrap_or(chained.protector().max_offline_unwraps());
    let opened = chained.open(owner, rng)?;
    let state = GuestState::open(&old.guest_state, opened.transport_key())?;
    if state.header.vm != current.vm_id {
        return Err(RekeyError::OtherVm(name.clone()));
    }

    let (protector, key) = KeyProtector::create(owner, guardians, rng)?;
    // One generation, one key, as after a roll.
    let age = Age::rolled(state.header.age.generation.saturating_add(1));
    let new = Generation {
        protector: protector.with_max_offline_unwraps(wish).to_xml(),
        guest_state: GuestState {
            header: StateHeader {
                vm: state.header.vm,
                age,
            },
            vtpm: state.vtpm,
        }
        .seal(&key, rng),
    };
    let written = folder.write_generation(age.generation, &new, rng)?;
    commit_point("rekey:written");
    folder.commit(&current, written, &current.owner_host, None)?;
    commit_point("rekey:committed");
    Ok(age.generation)
}
