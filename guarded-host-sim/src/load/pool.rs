//! The pool: TPMs and keys of light hosts, made ahead of time, kept, and used by one run at a time.
//!
//! `hosts/NNNNN/tpm` is a TPM's state with its EK certificate, `store` the sealed state of the host's VBS
//! store, `key` what a host of host-key mode has. A TPM is never copied; it is made under another name and
//! renamed when it is whole, so a run that was cut short leaves no half of one.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use hgs_protocol::{
    crypto::RsaPrivateKey,
    env::{OsRandom, Random},
    wire::vsm,
};

use crate::{
    agent::attest::host_key,
    fabric::found_tpm_maker,
    swtpm::{TpmMaker, make_private_dir},
};

/// The folder of a pool, which is this process's alone while the value lives.
pub(super) struct Pool {
    folder: PathBuf,
    tag: String,
    _lock: File,
}

impl Pool {
    /// Opens or founds the pool in `folder`.
    pub(super) fn open(folder: &Path) -> anyhow::Result<Pool> {
        make_private_dir(folder)?;
        let folder = folder.canonicalize()?;
        let lock = File::create(folder.join("lock")).context("the pool cannot be locked")?;
        if lock.try_lock().is_err() {
            bail!(
                "another run uses the TPMs in {}; a TPM cannot be in two hosts",
                folder.display()
            );
        }
        let file = folder.join("tag");
        if !file.exists() {
            let tag: [u8; 3] = (&mut OsRandom as &mut dyn Random).bytes();
            fs::write(&file, hex::encode(tag)).with_context(|| format!("cannot write {}", file.display()))?;
        }
        let tag = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        if tag.len() != 6 || !tag.bytes().all(|b| b.is_ascii_hexdigit()) {
            bail!("{} does not hold the pool's tag: remove the pool", file.display());
        }
        Ok(Pool {
            folder,
            tag,
            _lock: lock,
        })
    }

    /// Tells this pool's hosts from those of others at the same service.
    pub(super) fn tag(&self) -> &str {
        &self.tag
    }

    /// The host with this number, whether anything of it is there or not.
    pub(super) fn place(&self, number: usize) -> Place {
        Place {
            name: format!("light-{}-{number:05}", self.tag),
            folder: self.folder.join("hosts").join(format!("{number:05}")),
        }
    }

    /// The maker of the pool's TPMs, founded if need be.
    pub(super) fn maker(&self) -> anyhow::Result<TpmMaker> {
        let directory = self.folder.join("maker");
        found_tpm_maker(&directory, &self.folder.join("first-tpm")).context("the maker of the pool's TPMs")?;
        Ok(TpmMaker::open(&directory)?)
    }
}

/// One host of a pool.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The host's name, which no host of another pool has.
    pub(super) name: String,
    /// Where everything of it lies.
    pub(super) folder: PathBuf,
}

impl Place {
    pub(super) fn has_tpm(&self) -> bool {
        self.folder.join(TPM).exists()
    }

    pub(super) fn has_keys(&self) -> bool {
        self.folder.join(KEY).exists()
    }

    /// Makes the host's TPM.
    pub(super) fn make_tpm(&self, maker: &TpmMaker) -> anyhow::Result<()> {
        make_private_dir(&self.folder)?;
        let making = self.folder.join("tpm.making");
        maker.manufacture(&self.name, &making, None)?;
        self.put(&making, TPM)
    }

    /// Makes the keys of a host of host-key mode. Of its VSM key only the public half is kept: a light host
    /// runs no VM, so nothing is ever opened with the other.
    pub(super) fn make_keys(&self) -> anyhow::Result<()> {
        let making = self.folder.join("key.making");
        if making.exists() {
            fs::remove_dir_all(&making)?;
        }
        make_private_dir(&making)?;
        host_key(&making)?;
        let vsm_key = RsaPrivateKey::generate_2048()?;
        fs::write(making.join(VSM_KEY), vsm::encode_rsa1(vsm_key.public()))?;
        self.put(&making, KEY)
    }

    fn put(&self, made: &Path, name: &str) -> anyhow::Result<()> {
        fs::rename(made, self.folder.join(name)).with_context(|| format!("cannot keep {}", made.display()))
    }
}

/// A host's TPM, within its folder.
pub(super) const TPM: &str = "tpm";
/// A host's keys in host-key mode, within its folder.
pub(super) const KEY: &str = "key";
/// The public VSM encryption key, within [`KEY`].
pub(super) const VSM_KEY: &str = "vsm-key.rsa1";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_one_runs_and_keeps_its_names() {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::open(dir.path()).unwrap();
        let name = pool.place(7).name;
        assert!(name.starts_with("light-") && name.ends_with("-00007"), "{name}");
        let refused = Pool::open(dir.path()).err().unwrap().to_string();
        assert!(refused.contains("another run uses the TPMs"), "{refused}");
        drop(pool);
        let again = Pool::open(dir.path()).unwrap();
        assert_eq!(again.place(7).name, name);
        drop(again);
        fs::write(dir.path().join("tag"), "../../..").unwrap();
        assert!(Pool::open(dir.path()).is_err());
    }

    #[test]
    fn keys_that_were_cut_short_are_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let place = Pool::open(dir.path()).unwrap().place(1);
        fs::create_dir_all(place.folder.join("key.making")).unwrap();
        fs::write(place.folder.join("key.making/host-key.pk8"), "half").unwrap();
        assert!(!place.has_keys());
        place.make_keys().unwrap();
        assert!(place.has_keys() && !place.has_tpm());
        assert!(host_key(&place.folder.join(KEY)).is_ok());
        vsm::parse_rsa1(&fs::read(place.folder.join(KEY).join(VSM_KEY)).unwrap()).unwrap();
    }
}
