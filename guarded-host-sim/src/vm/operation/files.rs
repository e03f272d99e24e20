//! What is done to a VM's files while nobody has its keys: its protector, its saved memory, export and import.

use std::path::Path;

use hgs_protocol::{
    env::Random,
    protector::{GuardianKeys, KeyProtector},
};

use super::{Host, VmError, own};
use crate::{
    commit_point::commit_point,
    vm::{
        VmName,
        disk::{DiskError, LockedDisk},
        rekey::{RekeyError, rekey_locally},
        volume::{Current, Generation, GenerationName, VmFolder, Volume},
    },
};

/// Set-VMKeyProtector -KeyProtector: gives a VM that does not run another protector and leaves its state as it is. A
/// protector with another transport key than the state's is taken too, as long as its signatures hold: nobody here
/// can tell. Such a VM does not start, and [`restore_protector`] undoes it.
pub fn set_protector(
    host: &impl Host,
    volume: &Volume,
    name: &VmName,
    protector: &[u8],
    rng: &mut dyn Random,
) -> Result<(), VmError> {
    let (folder, current) = own(host, volume, name)?;
    let _off = lock(&folder, &current)?;
    let unfit = |error: String| VmError::Protector(format!("the key protector: {error}"));
    let parsed = KeyProtector::parse(protector).map_err(|e| unfit(e.to_string()))?;
    parsed.verify().map_err(|e| unfit(e.to_string()))?;
    let files = Generation {
        protector: protector.to_vec(),
        ..folder.read_generation(&current.generation)?
    };
    let known_good = current.known_good.clone().unwrap_or(current.generation.clone());
    refile(&folder, &current, &files, Some(known_good), rng)
}

/// Set-VMKeyProtector -RestoreLastKnownGoodKeyProtector: brings back the protector with which the VM last started, or
/// was made, and the state beside it.
pub fn restore_protector(
    host: &impl Host,
    volume: &Volume,
    name: &VmName,
    rng: &mut dyn Random,
) -> Result<(), VmError> {
    let (folder, current) = own(host, volume, name)?;
    let _off = lock(&folder, &current)?;
    let known_good = current.known_good.as_ref().ok_or_else(|| {
        VmError::Nothing(format!(
            "there is no other key protector of {name} to restore: its last start was with the one that it has, or it \
             has had no other"
        ))
    })?;
    let files = folder.read_generation(known_good)?;
    let number = known_good.number();
    let written = folder.write_generation(number, &files, rng)?;
    commit(&folder, &current, written, None)
}

/// Set-VMKeyProtector -NewLocalKeyProtector: gives a VM that is off a protector whose owner and only guardian is this
/// host's own, with a new transport key, and seals its state under that key. `keys` are the host's guardians', the
/// first of which is to own it; one of them must open the present protector.
pub fn new_local_protector(
    host: &impl Host,
    volume: &Volume,
    name: &VmName,
    keys: &[GuardianKeys],
    rng: &mut dyn Random,
) -> Result<(), VmError> {
    let (folder, current) = own(host, volume, name)?;
    let _off = lock(&folder, &current)?;
    if folder.is_saved(&current.generation) {
        return Err(VmError::Saved(name.clone()));
    }
    let old = folder.read_generation(&current.generation)?;
    let (number, files) = rekey_locally(keys, &current, &old, rng).map_err(|error| match error {
        RekeyError::Volume(error) => error.into(),
        other => VmError::Protector(other.to_string()),
    })?;
    let known_good = current.known_good.clone().unwrap_or(current.generation.clone());
    let written = folder.write_generation(number, &files, rng)?;
    commit(&folder, &current, written, Some(known_good))
}

/// Remove-VMSavedState: throws a saved VM's memory away. Its next start boots.
pub fn discard_saved(host: &impl Host, volume: &Volume, name: &VmName, rng: &mut dyn Random) -> Result<(), VmError> {
    let (folder, current) = own(host, volume, name)?;
    let _off = lock(&folder, &current)?;
    let files = folder.read_generation(&current.generation)?;
    if files.memory.is_none() {
        return Err(VmError::Nothing(format!("the VM {name} is not saved")));
    }
    let files = Generation { memory: None, ..files };
    refile(&folder, &current, &files, current.known_good.clone(), rng)
}

/// Makes this host the owner of a VM that runs nowhere: its owner is lost, or is to give it up. The lock of its disk
/// tells whether it runs. An owner that is about to start it at this moment finds that it is late, and stops it.
pub fn take_over(host: &impl Host, volume: &Volume, name: &VmName) -> Result<(), VmError> {
    let folder = volume.vm(name)?;
    let current = folder.current()?;
    if current.owner_host == host.name() {
        return Err(VmError::Nothing(format!("the VM {name} belongs to this host already")));
    }
    let _off = lock(&folder, &current)?;
    folder.commit(&current, current.generation.clone(), host.name(), None)?;
    Ok(())
}

/// Copies a VM that is off or saved to a folder of its name below `destination`.
pub fn export(host: &impl Host, volume: &Volume, name: &VmName, destination: &Path) -> Result<VmFolder, VmError> {
    let (folder, current) = own(host, volume, name)?;
    let _off = lock(&folder, &current)?;
    Ok(folder.export(&current, destination)?)
}

/// Copies an exported VM to the volume, where this host owns it. Whether it starts here is for the KPS to say, and for
/// the store: it starts nothing older than it has had.
pub fn import(host: &impl Host, volume: &Volume, source: &Path, name: Option<&VmName>) -> Result<VmFolder, VmError> {
    Ok(volume.import(source, name, host.name())?)
}

/// Writes other files under the VM's present generation number and makes them count.
fn refile(
    folder: &VmFolder,
    current: &Current,
    files: &Generation,
    known_good: Option<GenerationName>,
    rng: &mut dyn Random,
) -> Result<(), VmError> {
    let written = folder.write_generation(current.generation.number(), files, rng)?;
    commit(folder, current, written, known_good)
}

fn commit(
    folder: &VmFolder,
    current: &Current,
    written: GenerationName,
    known_good: Option<GenerationName>,
) -> Result<(), VmError> {
    commit_point("files:written");
    let wanted = Current {
        generation: written,
        known_good,
        migration: None,
        ..current.clone()
    };
    folder.commit_change(current, wanted)?;
    commit_point("files:committed");
    Ok(())
}

/// Keeps the VM from starting anywhere as long as the result lives.
fn lock(folder: &VmFolder, current: &Current) -> Result<LockedDisk, VmError> {
    LockedDisk::open(&folder.disk_path(current)).map_err(|error| match error {
        DiskError::InUse => VmError::InUse(folder.name().clone()),
        other => VmError::Nothing(format!("the VM {} has no usable disk: {other}", folder.name())),
    })
}
