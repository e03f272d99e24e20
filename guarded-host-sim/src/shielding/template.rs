//! A template disk: a volume with its signature catalogue behind it.
//!
//! Layout (the project's own): the bytes of the volume; the catalogue ([`super::catalogue`]); 24 bytes that mark the file as a
//! template: length of the volume and of the catalogue (u64 each, little-endian), `HGSTMPL1`. So whatever reads
//! a volume from the start of the file reads it still. What is on the volume is of no account here.
//!
//! Whoever can write the file can change it while it is read. So a block counts only as the bytes that were
//! hashed: [`TemplateDisk::read_volume`] gives out what it has just compared, and reads nothing twice.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::Path,
};

use hgs_protocol::{crypto::sha256, protector::KeyPair};
use rustix::fs::OFlags;

use super::catalogue::{
    BLOCK, Catalogue, CatalogueError, LARGEST_CATALOGUE, LARGEST_VOLUME, SignedCatalogue, TemplateName, Version,
};
use crate::vm::{
    disk::{DiskError, open_below},
    fields,
};

/// A template disk whose catalogue holds. Its blocks are compared when they are read.
pub struct TemplateDisk {
    file: File,
    catalogue: SignedCatalogue,
}

/// Why a disk is no template, or not as it was signed.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// It bears no mark.
    #[error("the disk is no template: it was not signed (template protect), or its end was cut off")]
    NotSigned,
    /// It bears the mark already.
    #[error("the disk is a template already: sign the volume that it was made of")]
    Signed,
    /// The file is shorter or longer than its catalogue says.
    #[error("the template's volume has another length than was signed: the disk was changed")]
    Length,
    /// A block has another hash.
    #[error(
        "the template was changed after it was signed: block {block} (from byte {}) is not the one in its catalogue",
        block * BLOCK
    )]
    Block {
        /// Which, from 0.
        block: usize,
    },
    /// The path leads elsewhere.
    #[error("the template is no file on this host's volume; copy it there, not as a link")]
    Elsewhere,
    /// The catalogue.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The file system refused.
    #[error("template disk: {0}")]
    Io(#[from] io::Error),
}

impl TemplateDisk {
    /// Opens a template and checks the signature of its catalogue.
    pub fn open(path: &Path) -> Result<TemplateDisk, TemplateError> {
        TemplateDisk::read(File::open(path)?)
    }

    /// As [`TemplateDisk::open`], for a path that an adversary names.
    pub fn open_below(root: &Path, path: &Path) -> Result<TemplateDisk, TemplateError> {
        let file = open_below(root, path, OFlags::RDONLY).map_err(|error| match error {
            DiskError::Io(error) => TemplateError::Io(error),
            _ => TemplateError::Elsewhere,
        });
        TemplateDisk::read(file?)
    }

    fn read(file: File) -> Result<TemplateDisk, TemplateError> {
        let length = file.metadata()?.len();
        let (volume, catalogue) = read_mark(&file, length)?.ok_or(TemplateError::NotSigned)?;
        let size = usize::try_from(catalogue)
            .ok()
            .filter(|size| *size <= LARGEST_CATALOGUE);
        let mut bytes = vec![0; size.ok_or(CatalogueError::TooLarge)?];
        file.read_exact_at(&mut bytes, volume)?;
        let catalogue = Catalogue::parse(&bytes)?.verify()?;
        match catalogue.identity().length == volume {
            true => Ok(TemplateDisk { file, catalogue }),
            false => Err(TemplateError::Length),
        }
    }

    /// The catalogue.
    pub fn catalogue(&self) -> &SignedCatalogue {
        &self.catalogue
    }

    /// Gives every block of the volume to `take`, in order, each after it was found to be the one that was signed.
    pub fn read_volume<E: From<TemplateError>>(&self, mut take: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let mut block = vec![0; BLOCK];
        let mut left = self.catalogue.identity().length;
        for position in 0..self.catalogue.blocks() {
            let length = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
            let bytes = block.get_mut(..length).unwrap_or_default();
            let at = (position as u64).saturating_mul(BLOCK as u64);
            self.file.read_exact_at(bytes, at).map_err(TemplateError::Io)?;
            if !self.catalogue.matches(position, bytes) {
                return Err(TemplateError::Block { block: position }.into());
            }
            take(bytes)?;
            left = left.saturating_sub(length as u64);
        }
        Ok(())
    }

    /// Whether every block is as it was signed.
    pub fn check(&self) -> Result<(), TemplateError> {
        self.read_volume(|_| Ok(()))
    }
}

/// Copies the volume in `from` to `to` and signs it on the way: what is copied is what is hashed. `to` is a template then;
/// making it durable is the caller's.
pub fn protect(
    from: &mut File,
    to: &mut File,
    name: TemplateName,
    version: Version,
    signer: &KeyPair,
) -> Result<SignedCatalogue, TemplateError> {
    let length = from.metadata()?.len();
    if read_mark(from, length)?.is_some() {
        return Err(TemplateError::Signed);
    }
    if !(1..=LARGEST_VOLUME).contains(&length) {
        return Err(CatalogueError::Volume.into());
    }
    from.seek(SeekFrom::Start(0))?;
    let (mut hashes, mut copied) = (Vec::new(), 0_u64);
    let from: &File = from;
    loop {
        let mut block = Vec::with_capacity(BLOCK);
        Read::take(from, BLOCK as u64).read_to_end(&mut block)?;
        if block.is_empty() {
            break;
        }
        copied = copied.saturating_add(block.len() as u64);
        hashes.push(sha256(&block));
        to.write_all(&block)?;
        if copied > length {
            return Err(TemplateError::Length);
        }
    }
    let catalogue = SignedCatalogue::sign(name, version, copied, hashes, signer)?;
    let bytes = catalogue.encode();
    to.write_all(&bytes)?;
    to.write_all(&copied.to_le_bytes())?;
    to.write_all(&(bytes.len() as u64).to_le_bytes())?;
    to.write_all(MARK)?;
    Ok(catalogue)
}

/// The lengths of volume and catalogue of a file that is `length` bytes long, if it bears the mark of a template.
fn read_mark(file: &File, length: u64) -> Result<Option<(u64, u64)>, TemplateError> {
    let Some(end) = length.checked_sub(FOOTER as u64) else {
        return Ok(None);
    };
    let mut footer = [0; FOOTER];
    file.read_exact_at(&mut footer, end)?;
    let rest = &mut footer.as_slice();
    let lengths = fields::take_u64(rest).zip(fields::take_u64(rest));
    if *rest != MARK {
        return Ok(None);
    }
    match lengths {
        Some((volume, catalogue)) if volume.checked_add(catalogue) == Some(end) => Ok(Some((volume, catalogue))),
        _ => Err(TemplateError::Length),
    }
}

const MARK: &[u8; 8] = b"HGSTMPL1";
const FOOTER: usize = 8 + 8 + 8;

#[cfg(test)]
pub(crate) mod tests {
    use std::{fs, path::PathBuf};

    use super::*;
    use hgs_protocol::env::{SeededRandom, UnixTime};
    use proptest::prelude::*;

    /// A template in `folder` of `volume`, with its signer.
    pub(crate) fn template(folder: &Path, volume: &[u8], name: &str, version: [u32; 4]) -> (PathBuf, KeyPair) {
        use hgs_protocol::protector::{KeyPurpose, suite::Suite};
        let (plain, path) = (folder.join("plain"), folder.join(format!("{name}.img")));
        fs::write(&plain, volume).unwrap();
        let now = UnixTime(1_800_000_000);
        let rng = &mut SeededRandom::new(1);
        let signer = KeyPair::generate(Suite::P256, KeyPurpose::Signing, "maker", now, rng).unwrap();
        let (mut from, mut to) = (File::open(&plain).unwrap(), File::create(&path).unwrap());
        protect(&mut from, &mut to, name.parse().unwrap(), Version(version), &signer).unwrap();
        (path, signer)
    }

    fn volume_of(disk: &TemplateDisk) -> Result<Vec<u8>, TemplateError> {
        let mut out = Vec::new();
        disk.read_volume(|block| {
            out.extend_from_slice(block);
            Ok::<_, TemplateError>(())
        })?;
        Ok(out)
    }

    #[test]
    fn a_volume_comes_back_as_it_was_signed() {
        let folder = tempfile::tempdir().unwrap();
        for length in [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7] {
            let volume: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let (path, signer) = template(folder.path(), &volume, "t", [1, 0, 0, 0]);
            let disk = TemplateDisk::open(&path).unwrap();
            assert_eq!(volume_of(&disk).unwrap(), volume);
            assert_eq!(disk.catalogue().signer(), signer.certificate());
            assert!(fs::read(&path).unwrap().starts_with(&volume));
        }
    }

    #[test]
    fn a_changed_volume_is_refused_at_its_block() {
        let folder = tempfile::tempdir().unwrap();
        let volume = vec![7; 2 * BLOCK + 9];
        let (path, signer) = template(folder.path(), &volume, "t", [1, 0, 0, 0]);
        let good = fs::read(&path).unwrap();
        for (at, block) in [(0, 0), (BLOCK, 1), (volume.len() - 1, 2)] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            let disk = TemplateDisk::open(&path).unwrap();
            let mut given = 0;
            let read = disk.read_volume(|_| {
                given += 1;
                Ok::<_, TemplateError>(())
            });
            assert!(matches!(read, Err(TemplateError::Block { block: b }) if b == block));
            assert_eq!(given, block, "nothing of the changed block is given out");
        }
        // A byte more, a byte less, another catalogue's length.
        let longer = [&good[..volume.len()], &[0], &good[volume.len()..]].concat();
        let shorter = [&good[..volume.len() - 1], &good[volume.len()..]].concat();
        for bad in [longer, shorter] {
            fs::write(&path, bad).unwrap();
            assert!(matches!(TemplateDisk::open(&path), Err(TemplateError::Length)));
        }
        fs::write(&path, &good[..good.len() - 1]).unwrap();
        assert!(matches!(TemplateDisk::open(&path), Err(TemplateError::NotSigned)));
        fs::write(&path, &good).unwrap();
        let mut again = tempfile::tempfile().unwrap();
        let twice = protect(
            &mut File::open(&path).unwrap(),
            &mut again,
            "t".parse().unwrap(),
            Version([2, 0, 0, 0]),
            &signer,
        );
        assert!(matches!(twice, Err(TemplateError::Signed)));
    }

    #[test]
    fn a_store_opens_no_template_through_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (path, _) = template(folder.path(), b"volume", "t", [1, 0, 0, 0]);
        let volume = folder.path().join("volume");
        fs::create_dir(&volume).unwrap();
        std::os::unix::fs::symlink(&path, volume.join("link")).unwrap();
        for elsewhere in [volume.join("link"), path.clone()] {
            let opened = TemplateDisk::open_below(&volume, &elsewhere);
            assert!(matches!(opened, Err(TemplateError::Elsewhere)));
        }
        fs::copy(&path, volume.join("copy")).unwrap();
        TemplateDisk::open_below(&volume, &volume.join("copy"))
            .unwrap()
            .check()
            .unwrap();
    }

    proptest! {
        #[test]
        fn hostile_files_never_panic(bytes: Vec<u8>, volume: u64, catalogue: u64) {
            let file = tempfile::NamedTempFile::new().unwrap();
            let footer = [volume.to_le_bytes(), catalogue.to_le_bytes(), *MARK].concat();
            for content in [bytes.clone(), [bytes.clone(), footer].concat()] {
                fs::write(file.path(), content).unwrap();
                prop_assert!(TemplateDisk::open(file.path()).is_err());
            }
            // Lengths that fit, around what is no catalogue.
            let fitting = [0_u64.to_le_bytes(), (bytes.len() as u64).to_le_bytes(), *MARK].concat();
            fs::write(file.path(), [bytes, fitting].concat()).unwrap();
            prop_assert!(TemplateDisk::open(file.path()).is_err());
        }
    }
}
