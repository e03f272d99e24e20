//! The shared volume (as a cluster shared volume): which files a VM has and which of them count.
//!
//! `<volume>/<vm>/generations/<name>/{protector.xml,guest-state.bin,memory.bin}`, `disk.bin` (or `disk-TAG.bin`
//! once a checkpoint was applied), `checkpoints/<id>/{image.bin,disk.bin}`, `current.json`.
//! The rename of `current.json` is the single commit point of whatever is done to a VM: before
//! it the old generation counts, after it the new one, and a VM has exactly one owner host at any
//! instant. Everything that `current.json` names is durable before it does, and
//! the previous generation is kept. No key appears here.

mod checkpoints;
mod staging;
mod transfer;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use hgs_protocol::env::Random;

pub use self::{
    checkpoints::{CheckpointEntry, DiskTag},
    staging::StagedVm,
};
use super::{VmId, VmName, package::MigrationId};

/// The folder that all hosts of a fabric share.
#[derive(Clone, Debug)]
pub struct Volume {
    root: PathBuf,
}

/// The files of one VM.
#[derive(Clone, Debug)]
pub struct VmFolder {
    name: VmName,
    path: PathBuf,
}

/// What `current.json` says. Two values are equal only when nothing was committed between them.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Current {
    /// The VM's GUID.
    pub vm_id: VmId,
    /// The generation that counts.
    pub generation: GenerationName,
    /// The one before, kept until the next commit.
    pub previous: Option<GenerationName>,
    /// The only host that may start the VM.
    pub owner_host: String,
    /// Counts commits, so that a late committer sees that it is late.
    pub commit: u64,
    /// The migration that made this commit, if one did.
    pub migration: Option<MigrationId>,
    /// The generation from before the protector was replaced, until the VM starts with the new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_good: Option<GenerationName>,
    /// The disk, when it is not the one that the VM was made with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskTag>,
    /// The VM's checkpoints, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checkpoints: Vec<CheckpointEntry>,
}

/// Folder of a generation: its number and a random tag, so that two hosts that prepare the same
/// number never write the same files.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GenerationName {
    number: u64,
    tag: u32,
}

/// Protector and sealed state that belong together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Generation {
    /// The key protector, a whole XML file.
    pub protector: Vec<u8>,
    /// The guest state, sealed under the transport key inside the protector.
    pub guest_state: Vec<u8>,
    /// The memory of a saved VM, sealed under the same key.
    pub memory: Option<Vec<u8>>,
}

/// Why the volume refuses.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// No such VM.
    #[error("there is no VM {name} on the volume {volume}")]
    NoVm {
        /// The VM asked for.
        name: VmName,
        /// Where it was looked for.
        volume: PathBuf,
    },
    /// There is such a VM already.
    #[error("the VM {0} is on the volume already")]
    Exists(VmName),
    /// The same VM under another name.
    #[error(
        "the VM that is to be imported is on the volume already, as {0}: a VM is there once, since both copies would \
         have one identity and one disk key"
    )]
    SameVm(VmName),
    /// Where a VM is to be exported to.
    #[error("{} exists: export the VM to another folder, or move that one away", .0.display())]
    InTheWay(PathBuf),
    /// Where a VM is to be imported from.
    #[error("{} is no exported VM: name the folder that holds its current.json", .0.display())]
    NoExport(PathBuf),
    /// `current.json` does not parse.
    #[error("{path} is damaged: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Someone committed in between: another power-on or a migration.
    #[error("the VM {name} was taken over by {owner} in the meantime (commit {commit}); start again from there")]
    Overtaken {
        /// The VM.
        name: VmName,
        /// Who owns it now.
        owner: String,
        /// The commit that counts now.
        commit: u64,
    },
    /// The file system refused.
    #[error("{what} {path}: {source}")]
    Io {
        /// The operation.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl Volume {
    /// The volume at `root`; the folder is made when missing.
    pub fn open(root: &Path) -> Result<Volume, VolumeError> {
        fs::create_dir_all(root).map_err(io_error("create", root))?;
        Ok(Volume {
            root: root.to_path_buf(),
        })
    }

    /// The volume's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of a VM that exists.
    pub fn vm(&self, name: &VmName) -> Result<VmFolder, VolumeError> {
        let folder = self.folder(name);
        if folder.current_path().exists() {
            Ok(folder)
        } else {
            Err(VolumeError::NoVm {
                name: name.clone(),
                volume: self.root.clone(),
            })
        }
    }

    /// Writes a new VM: the disk, then the first generation, then `current.json`, which makes it exist.
    pub fn create_vm(
        &self,
        name: &VmName,
        vm_id: VmId,
        owner_host: &str,
        first: &Generation,
        disk: &[u8],
        rng: &mut dyn Random,
    ) -> Result<VmFolder, VolumeError> {
        let folder = self.folder(name);
        fs::create_dir_all(folder.path.join("generations")).map_err(io_error("create", &folder.path))?;
        if folder.current_path().exists() {
            return Err(VolumeError::Exists(name.clone()));
        }
        write_durably(&folder.path.join(FIRST_DISK), disk)?;
        let generation = folder.write_generation(1, first, rng)?;
        folder.replace_current(&Current {
            vm_id,
            generation,
            previous: None,
            owner_host: owner_host.to_owned(),
            commit: 1,
            migration: None,
            known_good: None,
            disk: None,
            checkpoints: Vec::new(),
        })?;
        sync_folder(&self.root)?;
        give_to_owner_of(&self.root, &folder.path)?;
        Ok(folder)
    }

    /// The VMs that are on the volume, by name.
    pub fn vms(&self) -> Result<Vec<VmFolder>, VolumeError> {
        let entries = fs::read_dir(&self.root).map_err(io_error("list", &self.root))?;
        let mut names: Vec<VmName> = entries
            .flatten()
            .filter_map(|entry| VmName::try_from(entry.file_name().into_string().ok()?).ok())
            .collect();
        names.sort();
        let folders = names.iter().map(|name| self.folder(name));
        Ok(folders.filter(|folder| folder.current_path().exists()).collect())
    }

    fn folder(&self, name: &VmName) -> VmFolder {
        VmFolder {
            name: name.clone(),
            path: self.root.join(name.as_str()),
        }
    }
}

impl VmFolder {
    /// The VM's name.
    pub fn name(&self) -> &VmName {
        &self.name
    }

    /// The VM's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The VM's disk.
    pub fn disk_path(&self, current: &Current) -> PathBuf {
        self.path.join(match &current.disk {
            None => FIRST_DISK.to_owned(),
            Some(tag) => tag.file_name(),
        })
    }

    /// What counts now.
    pub fn current(&self) -> Result<Current, VolumeError> {
        let path = self.current_path();
        let text = fs::read(&path).map_err(io_error("read", &path))?;
        serde_json::from_slice(&text).map_err(|e| VolumeError::Damaged {
            path,
            reason: e.to_string(),
        })
    }

    /// The files of a generation.
    pub fn read_generation(&self, name: &GenerationName) -> Result<Generation, VolumeError> {
        let folder = self.generation_path(name);
        let read = |file: &str| {
            let path = folder.join(file);
            fs::read(&path).map_err(io_error("read", &path))
        };
        let memory = match fs::read(folder.join(MEMORY)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            found => Some(found.map_err(io_error("read", &folder.join(MEMORY)))?),
        };
        Ok(Generation {
            protector: read("protector.xml")?,
            guest_state: read("guest-state.bin")?,
            memory,
        })
    }

    /// Whether a generation is one of a saved VM.
    pub fn is_saved(&self, name: &GenerationName) -> bool {
        self.generation_path(name).join(MEMORY).exists()
    }

    /// Writes a generation durably under a fresh name. It counts only once it is committed.
    pub fn write_generation(
        &self,
        number: u64,
        files: &Generation,
        rng: &mut dyn Random,
    ) -> Result<GenerationName, VolumeError> {
        let name = GenerationName {
            number,
            tag: u32::from_le_bytes(rng.bytes()),
        };
        self.write_generation_as(&name, files)?;
        Ok(name)
    }

    fn write_generation_as(&self, name: &GenerationName, files: &Generation) -> Result<(), VolumeError> {
        let folder = self.generation_path(name);
        fs::create_dir(&folder).map_err(io_error("create", &folder))?;
        write_durably(&folder.join("protector.xml"), &files.protector)?;
        write_durably(&folder.join("guest-state.bin"), &files.guest_state)?;
        if let Some(memory) = &files.memory {
            write_durably(&folder.join(MEMORY), memory)?;
        }
        sync_folder(&folder)?;
        sync_folder(&self.path.join("generations"))?;
        give_to_owner_of(&self.path, &folder)
    }

    /// Makes `generation` and `owner_host` count, as [`VmFolder::commit_change`] does; all else stays.
    pub fn commit(
        &self,
        expected: &Current,
        generation: GenerationName,
        owner_host: &str,
        migration: Option<MigrationId>,
    ) -> Result<Current, VolumeError> {
        let wanted = Current {
            generation,
            owner_host: owner_host.to_owned(),
            migration,
            ..expected.clone()
        };
        self.commit_change(expected, wanted)
    }

    /// Makes `wanted` count (its count of commits and its previous generation follow from `expected`), if what
    /// counted is still `expected`; then drops what nothing names any more.
    ///
    /// This is the commit point. When it answers `Overtaken`, nothing has changed.
    pub fn commit_change(&self, expected: &Current, wanted: Current) -> Result<Current, VolumeError> {
        let path = self.path.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .map_err(io_error("open", &path))?;
        give_to_owner_of(&self.path, &path)?;
        lock.lock().map_err(io_error("lock", &path))?;
        let found = self.current()?;
        if found != *expected {
            return Err(VolumeError::Overtaken {
                name: self.name.clone(),
                owner: found.owner_host,
                commit: found.commit,
            });
        }
        let previous = if wanted.generation == expected.generation {
            expected.previous.clone()
        } else {
            Some(expected.generation.clone())
        };
        let next = Current {
            vm_id: expected.vm_id,
            previous,
            commit: expected.commit.saturating_add(1),
            ..wanted
        };
        self.replace_current(&next)?;
        self.drop_older(&next);
        Ok(next)
    }

    /// The generations that are on the volume, in no order.
    pub fn generations(&self) -> Result<Vec<GenerationName>, VolumeError> {
        let folder = self.path.join("generations");
        let names = fs::read_dir(&folder).map_err(io_error("list", &folder))?;
        Ok(names
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter_map(|text| GenerationName::try_from(text).ok())
            .collect())
    }

    /// Removes the generations, disks and checkpoints that `current` does not name. A failure leaves waste, no more.
    fn drop_older(&self, current: &Current) {
        let kept = [
            Some(&current.generation),
            current.previous.as_ref(),
            current.known_good.as_ref(),
        ];
        for name in self.generations().unwrap_or_default() {
            if !kept.contains(&Some(&name)) {
                let _ = fs::remove_dir_all(self.generation_path(&name));
            }
        }
        self.drop_unnamed_disks(current);
    }

    fn replace_current(&self, current: &Current) -> Result<(), VolumeError> {
        let path = self.current_path();
        let text = serde_json::to_vec_pretty(current).map_err(|e| VolumeError::Damaged {
            path: path.clone(),
            reason: e.to_string(),
        })?;
        let next = self.path.join("current.json.next");
        write_durably(&next, &text)?;
        give_to_owner_of(&self.path, &next)?;
        fs::rename(&next, &path).map_err(io_error("replace", &path))?;
        sync_folder(&self.path)
    }

    fn current_path(&self) -> PathBuf {
        self.path.join("current.json")
    }

    fn generation_path(&self, name: &GenerationName) -> PathBuf {
        self.path.join("generations").join(String::from(name.clone()))
    }
}

impl GenerationName {
    /// Counts the rolls of the VM's transport key, from 1.
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl TryFrom<String> for GenerationName {
    type Error = String;
    fn try_from(text: String) -> Result<GenerationName, String> {
        let parts = text.split_once('-').and_then(|(number, tag)| {
            Some(GenerationName {
                number: number.parse().ok()?,
                tag: u32::from_str_radix(tag, 16).ok()?,
            })
        });
        match parts {
            Some(name) if String::from(name.clone()) == text => Ok(name),
            _ => Err(format!("{text:?} is no generation, such as 3-0a1b2c3d")),
        }
    }
}

impl From<GenerationName> for String {
    fn from(name: GenerationName) -> String {
        format!("{}-{:08x}", name.number, name.tag)
    }
}

/// The disk that a VM is made with.
const FIRST_DISK: &str = "disk.bin";
const MEMORY: &str = "memory.bin";

/// Whoever `folder` belongs to must be able to change what root has put below it; only root may find another
/// there.
pub(crate) fn give_to_owner_of(folder: &Path, path: &Path) -> Result<(), VolumeError> {
    let owner = fs::metadata(folder).map_err(io_error("look at", folder))?.uid();
    if rustix::process::geteuid().is_root() && owner != 0 {
        crate::machine::user::give_tree(path, owner).map_err(io_error("give away", path))?;
    }
    Ok(())
}

fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), VolumeError> {
    let mut file = File::create(path).map_err(io_error("create", path))?;
    file.write_all(bytes).map_err(io_error("write", path))?;
    file.sync_all().map_err(io_error("flush", path))
}

fn sync_folder(path: &Path) -> Result<(), VolumeError> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(io_error("flush", path))
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VolumeError {
    let path = path.to_path_buf();
    move |source| VolumeError::Io { what, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hgs_protocol::env::SeededRandom;

    fn files(tag: u8) -> Generation {
        Generation {
            protector: vec![tag; 10],
            guest_state: vec![tag; 20],
            memory: None,
        }
    }

    fn volume_with_vm() -> (tempfile::TempDir, VmFolder, SeededRandom) {
        let folder = tempfile::tempdir().unwrap();
        let mut rng = SeededRandom::new(1);
        let name = VmName::parse("vm1").unwrap();
        let id = VmId::random(&mut rng);
        let vm = Volume::open(folder.path())
            .unwrap()
            .create_vm(&name, id, "host01", &files(1), b"disk", &mut rng)
            .unwrap();
        (folder, vm, rng)
    }

    #[test]
    fn a_generation_counts_only_after_its_commit() {
        let (_volume, vm, mut rng) = volume_with_vm();
        let before = vm.current().unwrap();
        let next = vm.write_generation(2, &files(2), &mut rng).unwrap();
        assert_eq!(vm.current().unwrap(), before);
        let after = vm.commit(&before, next, "host02", None).unwrap();
        assert_eq!(vm.read_generation(&after.generation).unwrap(), files(2));
        assert_eq!(after.owner_host, "host02");
        assert_eq!(vm.current().unwrap(), after);
    }

    #[test]
    fn of_two_commits_over_the_same_state_one_wins() {
        let (_volume, vm, mut rng) = volume_with_vm();
        let seen = vm.current().unwrap();
        let a = vm.write_generation(2, &files(2), &mut rng).unwrap();
        let b = vm.write_generation(2, &files(3), &mut rng).unwrap();
        vm.commit(&seen, b, "host02", None).unwrap();
        let late = vm.commit(&seen, a, "host01", None);
        assert!(matches!(late, Err(VolumeError::Overtaken { owner, .. }) if owner == "host02"));
        let current = vm.current().unwrap();
        assert_eq!(vm.read_generation(&current.generation).unwrap(), files(3));
    }

    #[test]
    fn the_last_two_generations_are_kept() {
        let (_volume, vm, mut rng) = volume_with_vm();
        for number in 2..6 {
            let seen = vm.current().unwrap();
            let next = vm.write_generation(number, &files(9), &mut rng).unwrap();
            vm.commit(&seen, next, "host01", None).unwrap();
        }
        let mut numbers: Vec<u64> = vm.generations().unwrap().iter().map(GenerationName::number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [4, 5]);
    }

    #[test]
    fn an_owner_change_keeps_the_generation_and_the_previous_one() {
        let (_volume, vm, mut rng) = volume_with_vm();
        let first = vm.current().unwrap();
        let next = vm.write_generation(2, &files(2), &mut rng).unwrap();
        let second = vm.commit(&first, next, "host01", None).unwrap();
        let third = vm.commit(&second, second.generation.clone(), "host02", None).unwrap();
        assert_eq!(third.previous, second.previous);
        assert_eq!(vm.generations().unwrap().len(), 2);
    }

    #[test]
    fn a_vm_is_made_once_and_a_missing_one_is_named() {
        let (folder, vm, mut rng) = volume_with_vm();
        let volume = Volume::open(folder.path()).unwrap();
        let again = volume.create_vm(vm.name(), VmId::random(&mut rng), "h", &files(1), b"", &mut rng);
        assert!(matches!(again, Err(VolumeError::Exists(_))));
        let missing = volume.vm(&VmName::parse("vm2").unwrap());
        assert!(matches!(missing, Err(VolumeError::NoVm { .. })));
    }
}
