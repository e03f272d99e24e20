//! A new key protector for a VM that is off: a new transport key for its owner and the guardians that the
//! owner names now, and the VM's state sealed under that key.
//!
//! For a guardian rotation, and for taking a guardian's access away from what the VM writes from now on.
//! What was copied before opens as before, for whoever held a key then. Nothing of this runs on a host:
//! the owner's keys open the protector, and the volume's commit makes the new one count, so that a crash
//! leaves the old pair of protector and state or the new one.

use hgs_protocol::{
    env::Random,
    protector::{
        Guardian, GuardianError, GuardianKeys, KeyProtector, OpenError, OpenedProtector, ProtectorError, VerifyError,
    },
};

use super::{
    VmId, VmName,
    disk::{DiskError, LockedDisk},
    security::{Kind, Security},
    state::{Age, GuestState, StateError, StateHeader},
    volume::{Current, Generation, Volume, VolumeError},
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
    /// A saved memory is sealed under the key that is to go.
    #[error("the VM {0} is saved: resume it and shut it down, or discard its saved state first")]
    Saved(VmName),
    /// Nobody here may open it.
    #[error(
        "no guardian of this host has the private keys for the VM's key protector: bring its owner's certificates with \
         their private keys here first"
    )]
    NotOpened,
    /// The state belongs to another VM.
    #[error("the VM {0} has the state of another VM on the volume; put its own back from a backup")]
    OtherVm(VmId),
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

/// What the owner wants otherwise, beside the key. What is not given stays.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wishes {
    /// MaxOfflineUnwraps.
    pub max_offline_unwraps: Option<u32>,
    /// The VM's kind, with its switches as such a VM begins; the owner alone makes a shielded VM anything else.
    pub kind: Option<Kind>,
}

/// Makes a new protector for `owner` (who must own the present one) and `guardians`, seals the VM's state
/// under its key, and lets both count. Gives the number of the new generation.
pub fn rekey(
    owner: &GuardianKeys,
    volume: &Volume,
    name: &VmName,
    guardians: &[Guardian],
    wishes: Wishes,
    rng: &mut dyn Random,
) -> Result<u64, RekeyError> {
    if guardians.is_empty() {
        return Err(RekeyError::NoGuardian);
    }
    let folder = volume.vm(name)?;
    let current = folder.current()?;
    // Held to the end: the VM does not start meanwhile. Whatever was done before it was held, the commit finds.
    let _off = LockedDisk::open(&folder.disk_path(&current)).map_err(|error| match error {
        DiskError::InUse => RekeyError::Running(name.clone()),
        other => RekeyError::Disk(other),
    })?;
    let old = folder.read_generation(&current.generation)?;
    if old.memory.is_some() {
        return Err(RekeyError::Saved(name.clone()));
    }

    let chained = KeyProtector::parse(&old.protector)?.verify()?;
    if chained.owner() != Some(owner.guardian()?.signing()) {
        return Err(RekeyError::NotOwner {
            owner: chained.owner().map_or_else(String::new, |signing| signing.thumbprint()),
        });
    }
    let opened = chained.open(owner, rng)?;
    let (number, new) = reseal(&opened, owner, guardians, wishes, &current, &old, rng)?;
    let written = folder.write_generation(number, &new, rng)?;
    commit_point("rekey:written");
    let wanted = Current {
        generation: written,
        migration: None,
        known_good: None,
        ..current.clone()
    };
    folder.commit_change(&current, wanted)?;
    commit_point("rekey:committed");
    Ok(number)
}

/// Makes a protector that the first of `keys` owns and opens alone, for a VM whose present protector one of `keys`
/// opens; gives the number of its generation and its files.
pub fn rekey_locally(
    keys: &[GuardianKeys],
    current: &Current,
    old: &Generation,
    rng: &mut dyn Random,
) -> Result<(u64, Generation), RekeyError> {
    let owner = keys.first().ok_or(RekeyError::NotOpened)?;
    for opener in keys {
        let chained = KeyProtector::parse(&old.protector)?.verify()?;
        match chained.open(opener, rng) {
            Ok(opened) => return reseal(&opened, owner, &[], Wishes::default(), current, old, rng),
            Err(OpenError::NoWrapping) => {}
            Err(other) => return Err(other.into()),
        }
    }
    Err(RekeyError::NotOpened)
}

fn reseal(
    opened: &OpenedProtector,
    owner: &GuardianKeys,
    guardians: &[Guardian],
    wishes: Wishes,
    current: &Current,
    old: &Generation,
    rng: &mut dyn Random,
) -> Result<(u64, Generation), RekeyError> {
    let state = GuestState::open(&old.guest_state, opened.transport_key())?;
    if state.header.vm != current.vm_id {
        return Err(RekeyError::OtherVm(current.vm_id));
    }
    let before = opened.chained().protector().max_offline_unwraps();
    let (protector, key) = KeyProtector::create(owner, guardians, rng)?;
    // One generation, one key, as after a roll.
    let age = Age::rolled(state.header.age.generation.saturating_add(1));
    let new = Generation {
        protector: protector
            .with_max_offline_unwraps(wishes.max_offline_unwraps.unwrap_or(before))
            .to_xml(),
        guest_state: GuestState {
            header: StateHeader {
                age,
                security: wishes.kind.map_or(state.header.security, Security::of),
                ..state.header
            },
            ..state
        }
        .seal(&key, rng),
        memory: None,
    };
    Ok((age.generation, new))
}
