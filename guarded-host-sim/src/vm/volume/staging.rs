//! A new VM whose disk is written where nothing reads it. A rename, which replaces nothing, makes it be there.

use std::{
    fs::{self, File},
    io::ErrorKind,
    path::PathBuf,
};

use hgs_protocol::{crypto::sha256, env::Random};

use super::{
    Current, FIRST_DISK, Generation, VmFolder, Volume, VolumeError, give_to_owner_of, io_error, sync_folder,
    transfer::make_it_be_there,
};
use crate::{
    commit_point::commit_point,
    vm::{VmId, VmName},
};

/// A VM that is being made. What is there goes when it is dropped before it is finished.
pub struct StagedVm {
    volume: Volume,
    owner_host: String,
    staging: VmFolder,
    finished: bool,
}

impl Volume {
    /// Begins a new VM, which `owner_host` is to own: an empty disk in a folder of that host's.
    pub fn stage_vm(&self, name: &VmName, owner_host: &str) -> Result<StagedVm, VolumeError> {
        let place = self.folder(name);
        if place.path.exists() {
            return Err(VolumeError::Exists(name.clone()));
        }
        // Its host alone works there, on one VM of a name at a time.
        let tag = hex::encode(sha256(owner_host.as_bytes()).get(..6).unwrap_or_default());
        let path = self.root.join(format!(".provision-{name}-{tag}"));
        if path.exists() {
            // Left by an attempt that was cut short.
            fs::remove_dir_all(&path).map_err(io_error("remove", &path))?;
        }
        fs::create_dir_all(path.join("generations")).map_err(io_error("create", &path))?;
        let staged = StagedVm {
            volume: self.clone(),
            owner_host: owner_host.to_owned(),
            staging: VmFolder {
                name: name.clone(),
                path,
            },
            finished: false,
        };
        let disk = staged.disk_path();
        File::create_new(&disk).map_err(io_error("create", &disk))?;
        Ok(staged)
    }
}

impl StagedVm {
    /// The file for the disk.
    pub fn disk_path(&self) -> PathBuf {
        self.staging.path.join(FIRST_DISK)
    }

    /// Writes the first generation beside the disk, which must be durable, and puts the VM on the volume.
    pub fn finish(mut self, vm_id: VmId, first: &Generation, rng: &mut dyn Random) -> Result<VmFolder, VolumeError> {
        let generation = self.staging.write_generation(1, first, rng)?;
        self.staging.replace_current(&Current {
            vm_id,
            generation,
            previous: None,
            owner_host: self.owner_host.clone(),
            commit: 1,
            migration: None,
            known_good: None,
            disk: None,
            checkpoints: Vec::new(),
        })?;
        let root = &self.volume.root;
        give_to_owner_of(root, &self.staging.path)?;
        commit_point("provision:written");
        let there = self.volume.folder(&self.staging.name);
        make_it_be_there(&self.staging.path, &there.path).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => VolumeError::Exists(there.name.clone()),
            _ => io_error("replace", &there.path)(error),
        })?;
        self.finished = true;
        sync_folder(root)?;
        commit_point("provision:committed");
        Ok(there)
    }
}

impl Drop for StagedVm {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_dir_all(&self.staging.path);
        }
    }
}
