//! A VM's checkpoints on the volume, and the disk that takes the place of another when one is applied.
//!
//! Nothing here counts before `current.json` names it, and what it no longer names is removed.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use hgs_protocol::env::Random;

use super::{Current, FIRST_DISK, VmFolder, VolumeError, give_to_owner_of, io_error, sync_folder, write_durably};
use crate::vm::checkpoint::CheckpointId;

/// A checkpoint as `current.json` names it.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointEntry {
    /// Names its folder, and its key in the VM's sealed state.
    pub id: CheckpointId,
    /// What its maker calls it.
    pub name: String,
    /// When it was taken by the host's clock, seconds since 1970.
    pub taken: i64,
    /// Whether it has the guest's memory.
    pub memory: bool,
}

/// Tells a disk from those that it took the place of: eight hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DiskTag(u32);

impl DiskTag {
    pub(super) fn file_name(&self) -> String {
        format!("disk-{:08x}.bin", self.0)
    }

    fn of_file(name: &str) -> Option<DiskTag> {
        let tag = name.strip_prefix("disk-")?.strip_suffix(".bin")?;
        DiskTag::try_from(tag.to_owned()).ok()
    }
}

impl TryFrom<String> for DiskTag {
    type Error = String;
    fn try_from(text: String) -> Result<DiskTag, String> {
        match u32::from_str_radix(&text, 16) {
            Ok(tag) if format!("{tag:08x}") == text => Ok(DiskTag(tag)),
            _ => Err(format!("{text:?} is no tag of a disk, such as 0a1b2c3d")),
        }
    }
}

impl From<DiskTag> for String {
    fn from(tag: DiskTag) -> String {
        format!("{:08x}", tag.0)
    }
}

impl VmFolder {
    /// Writes a checkpoint durably: its image, and a copy of the disk of now.
    pub fn write_checkpoint(&self, current: &Current, id: CheckpointId, image: &[u8]) -> Result<(), VolumeError> {
        let folder = self.checkpoint_path(id);
        fs::create_dir_all(&folder).map_err(io_error("create", &folder))?;
        write_durably(&folder.join(IMAGE), image)?;
        copy_durably(&self.disk_path(current), &folder.join(FIRST_DISK))?;
        sync_folder(&folder)?;
        sync_folder(&self.checkpoints_path())?;
        sync_folder(self.path())?;
        give_to_owner_of(self.path(), &self.checkpoints_path())
    }

    /// The image of a checkpoint.
    pub fn read_checkpoint(&self, id: CheckpointId) -> Result<Vec<u8>, VolumeError> {
        let path = self.checkpoint_path(id).join(IMAGE);
        fs::read(&path).map_err(io_error("read", &path))
    }

    /// A copy of a checkpoint's disk beside the disk of now; it counts once `current.json` names it.
    pub fn stage_disk(&self, id: CheckpointId, rng: &mut dyn Random) -> Result<DiskTag, VolumeError> {
        self.stage(&self.checkpoint_path(id).join(FIRST_DISK), rng)
    }

    /// A copy of the disk of now beside it; it counts once `current.json` names it.
    pub fn copy_disk(&self, current: &Current, rng: &mut dyn Random) -> Result<DiskTag, VolumeError> {
        self.stage(&self.disk_path(current), rng)
    }

    fn stage(&self, from: &Path, rng: &mut dyn Random) -> Result<DiskTag, VolumeError> {
        let tag = DiskTag(u32::from_le_bytes(rng.bytes()));
        let path = self.path().join(tag.file_name());
        copy_durably(from, &path)?;
        sync_folder(self.path())?;
        give_to_owner_of(self.path(), &path)?;
        Ok(tag)
    }

    /// Removes disks and checkpoints that `current` does not name.
    pub(super) fn drop_unnamed_disks(&self, current: &Current) {
        if current.disk.is_some() {
            let _ = fs::remove_file(self.path().join(FIRST_DISK));
        }
        for name in names_in(self.path()) {
            let tag = DiskTag::of_file(&name);
            if tag.is_some() && tag != current.disk {
                let _ = fs::remove_file(self.path().join(name));
            }
        }
        for name in names_in(&self.checkpoints_path()) {
            if !current.checkpoints.iter().any(|entry| entry.id.to_string() == name) {
                let _ = fs::remove_dir_all(self.checkpoints_path().join(name));
            }
        }
    }

    /// Copies a checkpoint to the folder of the same VM elsewhere.
    pub(super) fn copy_checkpoint(&self, id: CheckpointId, to: &VmFolder) -> Result<(), VolumeError> {
        let (from, folder) = (self.checkpoint_path(id), to.checkpoint_path(id));
        fs::create_dir_all(&folder).map_err(io_error("create", &folder))?;
        for file in [IMAGE, FIRST_DISK] {
            copy_durably(&from.join(file), &folder.join(file))?;
        }
        sync_folder(&folder)?;
        sync_folder(&to.checkpoints_path())
    }

    fn checkpoints_path(&self) -> PathBuf {
        self.path().join("checkpoints")
    }

    fn checkpoint_path(&self, id: CheckpointId) -> PathBuf {
        self.checkpoints_path().join(id.to_string())
    }
}

pub(super) fn copy_durably(from: &Path, to: &Path) -> Result<(), VolumeError> {
    let copy = || -> io::Result<()> {
        let (mut source, mut target) = (File::open(from)?, File::create(to)?);
        io::copy(&mut source, &mut target)?;
        target.sync_all()
    };
    copy().map_err(io_error("copy", from))
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

const IMAGE: &str = "image.bin";
