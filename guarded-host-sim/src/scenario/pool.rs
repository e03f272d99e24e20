//! Manufactured TPMs, made once for all scenarios of a run: making one takes a second, copying its files does not.
//! Two scenarios never meet, so that the same TPM in both harms nothing; nothing else is shared between scenarios.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use anyhow::Context;
use rustls::pki_types::{CertificateDer, pem::PemObject};

use crate::swtpm::{TpmMaker, make_private_dir};

/// The TPMs and their maker, in a folder of their own.
#[derive(Debug)]
pub struct TpmPool {
    folder: PathBuf,
    made: Mutex<usize>,
}

impl TpmPool {
    /// An empty pool in `folder` (absolute).
    pub fn new(folder: &Path) -> anyhow::Result<TpmPool> {
        make_private_dir(folder)?;
        Ok(TpmPool {
            folder: folder.to_path_buf(),
            made: Mutex::new(0),
        })
    }

    /// The directory of the TPMs' maker.
    pub fn maker(&self) -> PathBuf {
        self.folder.join("maker")
    }

    /// Puts the files of the TPM `number`, from 0, into `state`, which must not be there. Blocks.
    pub fn put(&self, number: usize, state: &Path) -> anyhow::Result<()> {
        self.make(number + 1)?;
        copy(&self.tpm(number), state)
    }

    /// Puts the maker's files, keys included, into `folder`: another maker with the same keys. Blocks.
    pub fn put_maker(&self, folder: &Path) -> anyhow::Result<()> {
        self.make(1)?;
        copy(&self.maker(), folder)
    }

    /// Certificates of the authorities that vouch for the TPMs, DER.
    pub fn authorities(&self) -> anyhow::Result<Vec<Vec<u8>>> {
        self.make(1)?;
        let maker = TpmMaker::open(&self.maker())?;
        let read = |path: PathBuf| {
            let certificate = CertificateDer::from_pem_file(&path);
            Ok(certificate
                .with_context(|| format!("cannot read {}", path.display()))?
                .to_vec())
        };
        [maker.root_certificate(), maker.intermediate_certificate()]
            .into_iter()
            .map(read)
            .collect()
    }

    /// Makes sure of `count` TPMs. The maker's own keys are made with the first, which must be alone.
    fn make(&self, count: usize) -> anyhow::Result<()> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if *made < count {
            let maker = TpmMaker::open(&self.maker())?;
            while *made < count {
                maker.manufacture("host", &self.tpm(*made), None)?;
                *made += 1;
            }
        }
        Ok(())
    }

    fn tpm(&self, number: usize) -> PathBuf {
        self.folder.join(format!("tpm-{number}"))
    }
}

/// Copies a folder of files and folders.
pub(super) fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    make_private_dir(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy(&entry.path(), &target)?,
            false => {
                fs::copy(entry.path(), &target).with_context(|| format!("cannot write {}", target.display()))?;
            }
        }
    }
    Ok(())
}
