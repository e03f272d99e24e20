//! `disk.bin`: the VM's volume, encrypted under a key that only its vTPM unseals.
//!
//! Header slot (4096 bytes): `HGSVMDK1`, VM id (16), chunk count (u32 LE), then two fields: the
//! public and the private area of the TPM object that seals the volume key. Then one slot of 4096
//! bytes per chunk: AES-256-GCM nonce, 4068 bytes, tag, with VM id, chunk count and position as
//! additional data, so chunks cannot be swapped, moved or taken from another disk. A slot is one
//! page, so a process that is killed leaves the old chunk or the new one. An older copy of a chunk
//! at its own place is accepted: as with any disk encryption of this kind, rollback is not detected.

mod writer;

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

use hgs_protocol::{
    crypto::{gcm_open, gcm_seal},
    env::Random,
    secret::Secret32,
};
use rustix::{
    fs::{Mode, OFlags, ResolveFlags, openat2},
    io::Errno,
};
use zeroize::Zeroizing;

pub use self::writer::DiskWriter;
use super::{VmId, fields};

/// Bytes of the volume in one chunk.
pub const CHUNK: usize = SLOT - 12 - 16;
const SLOT: usize = 4096;
const MAGIC: &[u8; 8] = b"HGSVMDK1";
const MAX_CHUNKS: u32 = 1 << 20;

/// The volume key as a TPM object: it loads only in the vTPM that made it, and unseals only when
/// the guest's boot measured what its policy names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SealedVolumeKey {
    /// TPM2B_PUBLIC.
    pub public: Vec<u8>,
    /// TPM2B_PRIVATE.
    pub private: Vec<u8>,
}

/// Why a disk does not open.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// No disk of this format.
    #[error("the file is no disk of a shielded VM")]
    Format,
    /// The chunk does not exist.
    #[error("the disk has no chunk {0}")]
    NoChunk(u32),
    /// Wrong key, or the chunk was changed, moved or taken from elsewhere.
    #[error("chunk {0} of the disk does not open under the volume key: it was changed or moved")]
    Sealed(u32),
    /// The file is not a plain file on the volume of this host.
    #[error("the disk is not a file on this host's volume")]
    Elsewhere,
    /// There is something where a new disk was to be.
    #[error("the file for the new disk is not empty")]
    NotEmpty,
    /// A guest has it, here or on another host, or its owner.
    #[error("the disk is in use: the VM runs elsewhere, or its owner works on it at the moment")]
    InUse,
    /// The file system refused.
    #[error("disk: {0}")]
    Io(#[from] io::Error),
}

/// A disk whose volume is locked. Nobody else has the disk open as long as this or its [`Disk`] lives.
pub struct LockedDisk {
    file: File,
    vm: VmId,
    chunks: u32,
    sealed_key: SealedVolumeKey,
}

/// A disk with its volume key.
pub struct Disk {
    file: File,
    vm: VmId,
    chunks: u32,
    key: Secret32,
}

impl LockedDisk {
    /// Reads the header.
    pub fn open(path: &Path) -> Result<LockedDisk, DiskError> {
        LockedDisk::read(OpenOptions::new().read(true).write(true).open(path)?)
    }

    /// As [`LockedDisk::open`], for a path that an adversary names ([`open_below`]).
    pub fn open_below(root: &Path, path: &Path) -> Result<LockedDisk, DiskError> {
        LockedDisk::read(open_below(root, path, OFlags::RDWR)?)
    }

    fn read(file: File) -> Result<LockedDisk, DiskError> {
        // A lock of the file system, so that it ends with the process however that ends.
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DiskError::InUse),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        let mut header = vec![0; SLOT];
        file.read_exact_at(&mut header, 0).map_err(|_| DiskError::Format)?;
        let (vm, chunks, sealed_key) = parse_header(&header).ok_or(DiskError::Format)?;
        Ok(LockedDisk {
            file,
            vm,
            chunks,
            sealed_key,
        })
    }

    /// Whose disk it is, as the header says.
    pub fn vm(&self) -> VmId {
        self.vm
    }

    /// What the vTPM must unseal.
    pub fn sealed_key(&self) -> &SealedVolumeKey {
        &self.sealed_key
    }

    /// Takes the unsealed key. A wrong key shows at the first chunk.
    pub fn unlock(self, key: Secret32) -> Disk {
        Disk {
            file: self.file,
            vm: self.vm,
            chunks: self.chunks,
            key,
        }
    }
}

impl Disk {
    /// The bytes of a whole new disk; `contents` are the first chunks (each cut or filled to
    /// [`CHUNK`]), the rest is zero.
    pub fn format(
        vm: VmId,
        chunks: u32,
        sealed_key: &SealedVolumeKey,
        key: &Secret32,
        contents: &[&[u8]],
        rng: &mut dyn Random,
    ) -> Result<Vec<u8>, DiskError> {
        let mut out = header(vm, chunks, sealed_key)?;
        for (position, content) in (0..chunks).zip(contents.iter().copied().chain(std::iter::repeat(&[][..]))) {
            out.extend_from_slice(&seal_chunk(vm, chunks, position, key, content, rng));
        }
        Ok(out)
    }

    /// Whose disk it is; authenticated by every chunk.
    pub fn vm(&self) -> VmId {
        self.vm
    }

    /// A chunk: exactly [`CHUNK`] bytes.
    pub fn read(&self, position: u32) -> Result<Zeroizing<Vec<u8>>, DiskError> {
        let mut slot = vec![0; SLOT];
        self.file.read_exact_at(&mut slot, self.offset(position)?)?;
        gcm_open(&self.key, &position_data(self.vm, self.chunks, position), &slot)
            .map_err(|_| DiskError::Sealed(position))
    }

    /// Writes a chunk, cut or filled with zeros to [`CHUNK`] bytes, and flushes it.
    pub fn write(&self, position: u32, content: &[u8], rng: &mut dyn Random) -> Result<(), DiskError> {
        let slot = seal_chunk(self.vm, self.chunks, position, &self.key, content, rng);
        self.file.write_all_at(&slot, self.offset(position)?)?;
        Ok(self.file.sync_data()?)
    }

    fn offset(&self, position: u32) -> Result<u64, DiskError> {
        if position >= self.chunks {
            return Err(DiskError::NoChunk(position));
        }
        Ok((u64::from(position) + 1) * SLOT as u64)
    }
}

/// Opens a path that an adversary names: only a plain file below `root`, reached without a link. Links are refused
/// by the open itself, so that none can be put there between a check and the open.
pub fn open_below(root: &Path, path: &Path, how: OFlags) -> Result<File, DiskError> {
    let below = path.strip_prefix(root).map_err(|_| DiskError::Elsewhere)?;
    let file = openat2(
        File::open(root)?,
        below,
        how | OFlags::CLOEXEC | OFlags::NONBLOCK,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    );
    let file = match file {
        Err(Errno::XDEV | Errno::LOOP) => return Err(DiskError::Elsewhere),
        file => File::from(file.map_err(io::Error::from)?),
    };
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(DiskError::Elsewhere),
    }
}

fn header(vm: VmId, chunks: u32, sealed_key: &SealedVolumeKey) -> Result<Vec<u8>, DiskError> {
    let mut out = [MAGIC.as_slice(), vm.bytes(), &chunks.to_le_bytes()].concat();
    fields::put(&mut out, &sealed_key.public);
    fields::put(&mut out, &sealed_key.private);
    if out.len() > SLOT || chunks > MAX_CHUNKS {
        return Err(DiskError::Format);
    }
    out.resize(SLOT, 0);
    Ok(out)
}

fn parse_header(header: &[u8]) -> Option<(VmId, u32, SealedVolumeKey)> {
    let rest = &mut &*header;
    let magic = fields::take_array::<8>(rest)?;
    let vm = VmId(uuid::Uuid::from_bytes(fields::take_array(rest)?));
    let chunks = fields::take_u32(rest)?;
    let public = fields::take(rest)?.to_vec();
    let private = fields::take(rest)?.to_vec();
    (magic == *MAGIC && chunks <= MAX_CHUNKS).then_some((vm, chunks, SealedVolumeKey { public, private }))
}

fn seal_chunk(vm: VmId, chunks: u32, position: u32, key: &Secret32, content: &[u8], rng: &mut dyn Random) -> Vec<u8> {
    let mut clear = Zeroizing::new(vec![0; CHUNK]);
    clear.iter_mut().zip(content).for_each(|(to, from)| *to = *from);
    gcm_seal(key, &position_data(vm, chunks, position), &clear, rng)
}

fn position_data(vm: VmId, chunks: u32, position: u32) -> Vec<u8> {
    [vm.bytes().as_slice(), &chunks.to_le_bytes(), &position.to_le_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hgs_protocol::env::SeededRandom;
    use proptest::prelude::*;

    fn disk() -> (tempfile::NamedTempFile, Secret32, SeededRandom) {
        let mut rng = SeededRandom::new(3);
        let key = Secret32::random(&mut rng);
        let sealed_key = SealedVolumeKey {
            public: vec![1; 78],
            private: vec![2; 160],
        };
        let vm = VmId::random(&mut rng);
        let bytes = Disk::format(vm, 4, &sealed_key, &key, &[b"secret", b"boots"], &mut rng).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        (file, key, rng)
    }

    #[test]
    fn chunks_are_read_and_written_in_place() {
        let (file, key, mut rng) = disk();
        let locked = LockedDisk::open(file.path()).unwrap();
        assert_eq!(locked.sealed_key().private, vec![2; 160]);
        let disk = locked.unlock(key.clone());
        assert!(disk.read(0).unwrap().starts_with(b"secret\0"));
        disk.write(3, b"new", &mut rng).unwrap();
        assert!(matches!(LockedDisk::open(file.path()), Err(DiskError::InUse)));
        drop(disk);
        let again = LockedDisk::open(file.path()).unwrap().unlock(key);
        assert!(again.read(3).unwrap().starts_with(b"new\0"));
        assert!(again.read(0).unwrap().starts_with(b"secret\0"));
        assert!(matches!(again.read(4), Err(DiskError::NoChunk(4))));
    }

    #[test]
    fn a_moved_chunk_a_changed_chunk_and_another_key_are_refused() {
        let (file, key, mut rng) = disk();
        let bytes = std::fs::read(file.path()).unwrap();
        let open = |bytes: &[u8], key: &Secret32| {
            std::fs::write(file.path(), bytes).unwrap();
            LockedDisk::open(file.path()).unwrap().unlock(key.clone()).read(0)
        };
        let mut moved = bytes.clone();
        moved.copy_within(2 * SLOT..3 * SLOT, SLOT);
        assert!(matches!(open(&moved, &key), Err(DiskError::Sealed(0))));
        let mut changed = bytes.clone();
        changed[SLOT + 100] ^= 1;
        assert!(open(&changed, &key).is_err());
        let mut other_vm = bytes.clone();
        other_vm[8] ^= 1;
        assert!(open(&other_vm, &key).is_err());
        assert!(open(&bytes, &Secret32::random(&mut rng)).is_err());
        assert!(open(&bytes, &key).is_ok());
    }

    #[test]
    fn the_plain_text_is_nowhere_in_the_file() {
        let (file, key, _) = disk();
        let bytes = std::fs::read(file.path()).unwrap();
        assert!(!bytes.windows(6).any(|w| w == b"secret"));
        assert!(!bytes.windows(32).any(|w| w == key.expose()));
    }

    proptest! {
        #[test]
        fn hostile_headers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut header = MAGIC.to_vec();
            header.extend_from_slice(&bytes);
            let _ = parse_header(&header);
            let _ = parse_header(&bytes);
        }
    }
}
