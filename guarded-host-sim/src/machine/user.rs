//! The agent's own user: what it owns, and what stands between it and the host's keys.
//!
//! A machine that runs as root starts its agent under another user, who owns the agent's folder and
//! the VMs' volume and reaches the two sockets made for it. TPM, store and the machine's control
//! socket stay root's. Without root all of a host is one user, and any process of that user can
//! take the keys: the TPM's state is a plain file.

use std::{
    fs::{self, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, lchown},
    path::Path,
};

use anyhow::{Context, bail};

/// No account has this number on a usual system, so nothing else belongs to it.
pub const AGENT_USER: u32 = 59_700;

/// Said in the host's log and status when the agent has no user of its own.
pub const ONE_USER: &str = "this host runs under one user (start it as root to separate the agent): \
                            any process of that user can take the VSM keys";

/// The user that the agent runs as, or none when that is the machine's own user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgentUser(Option<u32>);

impl AgentUser {
    /// `wanted` where this process may choose (it runs as root and `wanted` is another user).
    pub fn choose(wanted: u32) -> AgentUser {
        AgentUser((rustix::process::geteuid().is_root() && wanted != 0).then_some(wanted))
    }

    /// Its number, when it is not the machine's own user.
    pub fn number(self) -> Option<u32> {
        self.0
    }

    /// What an operator should know.
    pub fn remark(self) -> Option<&'static str> {
        self.0.is_none().then_some(ONE_USER)
    }

    /// Gives `path`, a folder or socket in a folder of the machine's, to the agent alone.
    pub fn give(self, path: &Path) -> anyhow::Result<()> {
        if let Some(user) = self.0 {
            lchown(path, Some(user), Some(user))
                .with_context(|| format!("cannot give {} to the agent's user", path.display()))?;
        }
        Ok(())
    }

    /// Lets the agent pass through `folder` of the machine's without listing it.
    pub fn let_pass(self, folder: &Path) -> anyhow::Result<()> {
        let mode = if self.0.is_some() { 0o711 } else { 0o700 };
        fs::set_permissions(folder, Permissions::from_mode(mode))
            .with_context(|| format!("cannot set the permissions of {}", folder.display()))
    }

    /// Fails, saying what to do, when the agent cannot get to `path` through the folders above it.
    pub fn can_reach(self, path: &Path) -> anyhow::Result<()> {
        let Some(user) = self.0 else { return Ok(()) };
        for folder in path.ancestors().skip(1) {
            let about = fs::metadata(folder).with_context(|| format!("cannot look at {}", folder.display()))?;
            if about.mode() & 0o001 == 0 && about.uid() != user {
                bail!(
                    "the agent's user {user} cannot pass through {}: allow it (chmod o+x), choose another \
                     directory, or give up the separation with --agent-user 0",
                    folder.display()
                );
            }
        }
        Ok(())
    }

    /// Makes the volume the agent's, once: only the first time does anything below it change hands,
    /// when no agent has had a say in what lies there.
    pub fn hand_over(self, volume: &Path) -> anyhow::Result<()> {
        let Some(user) = self.0 else { return Ok(()) };
        fs::create_dir_all(volume).with_context(|| format!("cannot create {}", volume.display()))?;
        if fs::metadata(volume)?.uid() != user {
            give_tree(volume, user).with_context(|| format!("cannot give {} to the agent", volume.display()))?;
        }
        Ok(())
    }
}

/// Gives a folder and everything below it to `user`, the folder itself last. Links are not followed.
pub fn give_tree(path: &Path, user: u32) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            match give_tree(&entry?.path(), user) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
    }
    lchown(path, Some(user), Some(user))
}

/// Lets other users pass through a folder of ours without listing it; for folders of a lab that
/// have a host somewhere below them.
pub fn let_others_pass(folder: &Path) -> io::Result<()> {
    let mode = fs::metadata(folder)?.mode();
    fs::set_permissions(folder, Permissions::from_mode(mode | 0o111))
}

/// Writes a file anew in the agent's folder. A link that the agent may have left there is replaced,
/// never followed.
pub(super) fn place(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let write = || {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
        file.write_all(bytes)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
