//! Exporting a VM to a folder and importing it on a volume, this one or another.
//!
//! An exported VM is laid out as on a volume. Both ways everything is copied and durable under a name
//! that nothing reads, and a rename, which replaces nothing, makes it be there.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind},
    path::Path,
};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{
    Current, VmFolder, Volume, VolumeError, checkpoints::copy_durably, give_to_owner_of, io_error, sync_folder,
};
use crate::{commit_point::commit_point, vm::VmName};

impl VmFolder {
    /// Copies the VM as `current` names it to a folder of its name below `destination`. It must be off or saved.
    pub fn export(&self, current: &Current, destination: &Path) -> Result<VmFolder, VolumeError> {
        fs::create_dir_all(destination).map_err(io_error("create", destination))?;
        let exported = VmFolder {
            name: self.name.clone(),
            path: destination.join(self.name.as_str()),
        };
        if exported.path.exists() {
            return Err(VolumeError::InTheWay(exported.path));
        }
        let staging = destination.join(format!(".{}.partial", self.name));
        let wanted = Current {
            previous: None,
            ..current.clone()
        };
        self.copy_to(&staging, &wanted)?;
        commit_point("export:copied");
        make_it_be_there(&staging, &exported.path).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => VolumeError::InTheWay(exported.path.clone()),
            _ => io_error("replace", &exported.path)(error),
        })?;
        sync_folder(destination)?;
        commit_point("export:committed");
        Ok(exported)
    }

    /// Everything that `wanted` names, in a folder made anew.
    fn copy_to(&self, folder: &Path, wanted: &Current) -> Result<(), VolumeError> {
        if folder.exists() {
            // Left by a copy that was cut short.
            fs::remove_dir_all(folder).map_err(io_error("remove", folder))?;
        }
        let copy = VmFolder {
            name: self.name.clone(),
            path: folder.to_path_buf(),
        };
        let generations = folder.join("generations");
        fs::create_dir_all(&generations).map_err(io_error("create", &generations))?;
        for name in [Some(&wanted.generation), wanted.known_good.as_ref()]
            .into_iter()
            .flatten()
        {
            copy.write_generation_as(name, &self.read_generation(name)?)?;
        }
        copy_durably(&self.disk_path(wanted), &copy.disk_path(wanted))?;
        for entry in &wanted.checkpoints {
            self.copy_checkpoint(entry.id, &copy)?;
        }
        copy.replace_current(wanted)
    }
}

impl Volume {
    /// Copies an exported VM to this volume as `name`; `owner_host` owns it here.
    pub fn import(&self, source: &Path, name: Option<&VmName>, owner_host: &str) -> Result<VmFolder, VolumeError> {
        // The folder's name is of no account until it is known to be a VM's.
        let own = source.file_name().and_then(|name| name.to_str());
        let own = own.and_then(|name| VmName::parse(name).ok());
        let name = match (name, own) {
            (Some(name), _) => name.clone(),
            (None, Some(own)) => own,
            (None, None) => return Err(VolumeError::NoExport(source.to_path_buf())),
        };
        let exported = VmFolder {
            name: name.clone(),
            path: source.to_path_buf(),
        };
        if !exported.current_path().exists() {
            return Err(VolumeError::NoExport(source.to_path_buf()));
        }
        let from = exported.current()?;
        // One import at a time on a volume, so that none takes another's copy for one that was cut short.
        let path = self.root.join(".import.lock");
        let lock = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .map_err(io_error("open", &path))?;
        give_to_owner_of(&self.root, &path)?;
        lock.lock().map_err(io_error("lock", &path))?;
        for there in self.vms()? {
            if *there.name() == name {
                return Err(VolumeError::Exists(name));
            }
            if there.current()?.vm_id == from.vm_id {
                return Err(VolumeError::SameVm(there.name().clone()));
            }
        }
        let imported = self.folder(&name);
        let staging = self.root.join(format!(".import-{name}"));
        let wanted = Current {
            previous: None,
            owner_host: owner_host.to_owned(),
            commit: from.commit.saturating_add(1),
            migration: None,
            ..from
        };
        exported.copy_to(&staging, &wanted)?;
        give_to_owner_of(&self.root, &staging)?;
        commit_point("import:copied");
        make_it_be_there(&staging, &imported.path).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => VolumeError::Exists(name.clone()),
            _ => io_error("replace", &imported.path)(error),
        })?;
        sync_folder(&self.root)?;
        commit_point("import:committed");
        Ok(imported)
    }
}

pub(super) fn make_it_be_there(staging: &Path, path: &Path) -> io::Result<()> {
    File::open(staging)?.sync_all()?;
    Ok(renameat_with(CWD, staging, CWD, path, RenameFlags::NOREPLACE)?)
}
