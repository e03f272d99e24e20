//! What the owner of a VM does when its fabric is lost, or its vTPM: reads the recovery password, reaches the disk, builds
//! a vTPM anew. With the owner's own keys, on the owner's machine; no host and no service takes part.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use hgs_protocol::{
    env::Random,
    protector::{GuardianKeys, KeyProtector, OpenError, ProtectorError, VerifyError},
    secret::TransportKey,
};

use super::data_file::{ANSWER_FILE, FileName, ShieldingData};
use crate::{
    commit_point::commit_point,
    swtpm::{SwtpmError, TpmMaker},
    vm::{
        VmId, VmName,
        checkpoint::Checkpoints,
        disk::{Disk, DiskError, LockedDisk, read_locks},
        guest::{self, Boot, GuestError},
        layout::Map,
        recovery::{Escrow, RecoveryError, RecoveryPassword},
        security::{Kind, Security, Switch},
        state::{Age, GuestState, StateError, StateHeader},
        volume::{Current, Generation, Volume, VolumeError},
        vtpm::{Vtpm, VtpmError},
    },
};

/// Why the owner did not get through.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The VM's protector.
    #[error("the key protector: {0}")]
    Protector(#[from] ProtectorError),
    /// Its signatures.
    #[error("the key protector: {0}")]
    Chain(#[from] VerifyError),
    /// The owner's wrapping.
    #[error("the key protector: {0}")]
    Open(#[from] OpenError),
    /// The state.
    #[error("{0}; if the VM's state is lost, use the recovery password of its disk")]
    State(#[from] StateError),
    /// The state, or the disk, of another VM.
    #[error("the {0} belongs to another VM")]
    OtherVm(&'static str),
    /// The VM is somebody else's.
    #[error("the VM belongs to the owner of the signing certificate {0}, and these are not that owner's keys")]
    NotOwner(String),
    /// The recovery password.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The guest's volume.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The maker of vTPMs.
    #[error(transparent)]
    Maker(#[from] SwtpmError),
    /// The vTPM.
    #[error(transparent)]
    Vtpm(#[from] VtpmError),
    /// The volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// What is recovered has nowhere to go.
    #[error("cannot write {}: {cause}", path.display())]
    Write {
        /// Which folder or file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
}

/// The recovery password on the disk at `path`, which `data` opens. The disk may be in use.
pub fn recovery_password(path: &Path, data: &ShieldingData) -> Result<(VmId, RecoveryPassword), RecoverError> {
    let (vm, locks) = read_locks(path)?;
    let key = data.recovery_key(vm);
    let escrow = Escrow {
        file: data.id().0,
        key: &key,
    };
    let slot = locks.recovery.ok_or(RecoveryError::None)?;
    Ok((vm, slot.password(vm, &escrow)?))
}

/// Unlocks the disk of a VM that runs nowhere as its guest does: by the vTPM in its state, which `owner` opens.
/// The vTPM runs in `folder`.
pub fn unlock_by_owner(
    owner: &GuardianKeys,
    volume: &Volume,
    name: &VmName,
    folder: &Path,
    rng: &mut dyn Random,
) -> Result<Disk, RecoverError> {
    let place = volume.vm(name)?;
    let current = place.current()?;
    let disk = LockedDisk::open(&place.disk_path(&current))?;
    let files = place.read_generation(&current.generation)?;
    let opened = KeyProtector::parse(&files.protector)?.verify()?.open(owner, rng)?;
    let state = GuestState::open(&files.guest_state, opened.transport_key())?;
    if state.header.vm != current.vm_id {
        return Err(RecoverError::OtherVm("state"));
    }
    let mut vtpm = Vtpm::power_on(name.as_str(), &state.vtpm, folder)?;
    let boot = Boot {
        secure: state.header.security.is_on(Switch::SecureBoot),
        recovery: None,
    };
    // What the vTPM writes meanwhile goes with it: the VM's own state stays as it is.
    Ok(guest::unlock(boot, state.header.vm, &mut vtpm, disk, rng)?.0)
}

/// Unlocks a disk that nobody has open by its recovery password.
pub fn unlock_by_password(path: &Path, password: &RecoveryPassword) -> Result<Disk, RecoverError> {
    let disk = LockedDisk::open(path)?;
    let key = disk.recover(password)?;
    let disk = disk.unlock(key);
    // A key that is another's shows at the first chunk.
    disk.read(0)?;
    Ok(disk)
}

/// Writes what is on an unlocked disk into a new folder: the template's volume as `volume.img` and the owner's files in
/// `files`, or the owner's secret as `secret` if the VM was not made of a template. Gives their names.
pub fn write_contents(disk: &Disk, folder: &Path) -> Result<Vec<String>, RecoverError> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |cause| RecoverError::Write { path, cause }
    };
    let make = |path: &Path| DirBuilder::new().mode(0o700).create(path).map_err(failed(path));
    let create = |path: &Path| {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        file.map_err(failed(path))
    };
    make(folder)?;
    let mut written = Vec::new();
    let Some(map) = Map::read(disk)? else {
        let path = folder.join("secret");
        let secret = guest::read_secret(disk)?;
        create(&path)?.write_all(&secret).map_err(failed(&path))?;
        return Ok(vec!["secret".to_owned()]);
    };
    make(&folder.join("files"))?;
    for file in map.files(disk)? {
        if file.name != ANSWER_FILE && FileName::parse(&file.name).is_err() {
            return Err(GuestError::Damaged("volume").into());
        }
        let name = format!("files/{}", file.name);
        let path = folder.join(&name);
        create(&path)?.write_all(&file.content).map_err(failed(&path))?;
        written.push(name);
    }
    let path = folder.join("volume.img");
    let mut image = create(&path)?;
    map.volume(disk, |bytes| {
        image.write_all(bytes).map_err(failed(&path))?;
        Ok::<_, RecoverError>(())
    })?;
    image.sync_all().map_err(failed(&path))?;
    written.push("volume.img".to_owned());
    Ok(written)
}

/// What a VM is built anew with.
pub struct Anew<'a> {
    /// The owner of the VM, and of the new protector.
    pub owner: &'a GuardianKeys,
    /// The new protector, and its transport key.
    pub protector: (&'a KeyProtector, &'a TransportKey),
    /// The recovery password of the VM's disk.
    pub password: &'a RecoveryPassword,
    /// The kind of the VM from now on. What the lost state said of it, nobody can tell.
    pub kind: Kind,
}

/// Gives a VM whose state is lost a new vTPM, a new protector and a state under its key. Its disk stays what it is, but for
/// the key, which is sealed to the new vTPM in a copy of the disk that takes the place of the old one by the same commit.
/// Saved memory and checkpoints are gone: their keys were in the state. `folder` (absolute) is for the vTPM and its maker.
pub fn rebuild(
    anew: &Anew<'_>,
    volume: &Volume,
    name: &VmName,
    folder: &Path,
    rng: &mut dyn Random,
) -> Result<u64, RecoverError> {
    let place = volume.vm(name)?;
    let current = place.current()?;
    let path = place.disk_path(&current);
    // Held to the end: the VM does not start meanwhile.
    let old = unlock_by_password(&path, anew.password)?;
    if old.vm() != current.vm_id {
        return Err(RecoverError::OtherVm("disk"));
    }
    // A protector that is lost too, or was replaced by nonsense, says nothing.
    let present = place.read_generation(&current.generation).ok();
    let present = present.and_then(|files| KeyProtector::parse(&files.protector).ok()?.verify().ok());
    if let Some(owner) = present.as_ref().and_then(|chained| chained.owner())
        && !anew.owner.signing().iter().any(|pair| pair.certificate() == owner)
    {
        return Err(RecoverError::NotOwner(owner.thumbprint()));
    }

    let maker = TpmMaker::open(&folder.join("vtpm-maker"))?;
    let run = folder.join("vtpm");
    let fresh = Vtpm::manufacture(&maker, name.as_str(), &run, rng)?;
    let mut vtpm = Vtpm::power_on(name.as_str(), &fresh, &run)?;
    let disk = place.copy_disk(&current, rng)?;
    let copy = LockedDisk::open(&place.disk_path(&Current {
        disk: Some(disk.clone()),
        ..current.clone()
    }))?;
    let key = copy.recover(anew.password)?;
    let sealed_key = vtpm.seal_volume_key(&key, rng)?;
    copy.unlock(key).seal_to(sealed_key)?;

    let (protector, key) = anew.protector;
    // One generation, one key, and newer than any host has had.
    let number = current.generation.number().saturating_add(1);
    let state = GuestState {
        header: StateHeader {
            vm: current.vm_id,
            age: Age::rolled(number),
            security: Security::of(anew.kind),
        },
        checkpoints: Checkpoints::default(),
        vtpm: vtpm.power_off()?,
    };
    let files = Generation {
        protector: protector.to_xml(),
        guest_state: state.seal(key, rng),
        memory: None,
    };
    let written = place.write_generation(number, &files, rng)?;
    commit_point("rebuild:written");
    let wanted = Current {
        generation: written,
        migration: None,
        known_good: None,
        disk: Some(disk),
        checkpoints: Vec::new(),
        ..current.clone()
    };
    place.commit_change(&current, wanted)?;
    commit_point("rebuild:committed");
    drop(old);
    Ok(number)
}

/// Removes a folder with a vTPM in it when dropped.
pub struct WorkFolder(PathBuf);

impl WorkFolder {
    /// A new folder, short enough for sockets, that nobody else reads.
    pub fn new() -> Result<WorkFolder, SwtpmError> {
        crate::swtpm::short_private_dir().map(WorkFolder)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
