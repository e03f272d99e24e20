//! `disk.bin`: the VM's volume, encrypted under a key that only its vTPM unseals.
//!
//! Header slot (4096 bytes): `HGSVMDK1`, VM id (16), chunk count (u32 LE), then three fields: the
//! public and the private area of the TPM object that seals the volume key, and what recovers it ([`super::recovery`];
//! empty if nothing does). Then one slot of 4096
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
use super::{
    VmId, fields,
    recovery::{RecoveryError, RecoveryPassword, RecoverySlot},
};

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

/// What gives a disk's volume key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Locks {
    /// The vTPM.
    pub sealed_key: SealedVolumeKey,
    /// The recovery password, if there is one.
    pub recovery: Option<RecoverySlot>,
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
    /// The recovery password.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
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
    locks: Locks,
}

/// A disk with its volume key.
pub struct Disk {
    file: File,
    vm: VmId,
    chunks: u32,
    locks: Locks,
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
        let (vm, chunks, locks) = parse_header(&header).ok_or(DiskError::Format)?;
        Ok(LockedDisk {
            file,
            vm,
            chunks,
            locks,
        })
    }

    /// Whose disk it is, as the header says.
    pub fn vm(&self) -> VmId {
        self.vm
    }

    /// What the vTPM must unseal.
    pub fn sealed_key(&self) -> &SealedVolumeKey {
        &self.locks.sealed_key
    }

    /// What the recovery password unlocks, if there is one.
    pub fn recovery(&self) -> Option<&RecoverySlot> {
        self.locks.recovery.as_ref()
    }

    /// The volume key, by its recovery password.
    pub fn recover(&self, password: &RecoveryPassword) -> Result<Secret32, DiskError> {
        let slot = self.locks.recovery.as_ref().ok_or(RecoveryError::None)?;
        Ok(slot.unlock(self.vm, password)?)
    }

    /// Takes the unsealed key. A wrong key shows at the first chunk.
    pub fn unlock(self, key: Secret32) -> Disk {
        Disk {
            file: self.file,
            vm: self.vm,
            chunks: self.chunks,
            locks: self.locks,
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
        locks: &Locks,
        key: &Secret32,
        contents: &[&[u8]],
        rng: &mut dyn Random,
    ) -> Result<Vec<u8>, DiskError> {
        let mut out = header(vm, chunks, locks)?;
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

    /// Lets another vTPM, or the same in another state, unseal the volume key from now on: rewrites the header, which is
    /// durable then. It is one page, as a chunk is.
    pub fn seal_to(&mut self, sealed_key: SealedVolumeKey) -> Result<(), DiskError> {
        self.locks.sealed_key = sealed_key;
        let header = header(self.vm, self.chunks, &self.locks)?;
        self.file.write_all_at(&header, 0)?;
        Ok(self.file.sync_data()?)
    }

    fn offset(&self, position: u32) -> Result<u64, DiskError> {
        if position >= self.chunks {
            return Err(DiskError::NoChunk(position));
        }
        Ok((u64::from(position) + 1) * SLOT as u64)
    }
}

/// Whose disk the one at `path` is and what its header says of its key. It may be in use.
pub fn read_locks(path: &Path) -> Result<(VmId, Locks), DiskError> {
    let mut header = vec![0; SLOT];
    File::open(path)?
        .read_exact_at(&mut header, 0)
        .map_err(|_| DiskError::Format)?;
    let (vm, _, locks) = parse_header(&header).ok_or(DiskError::Format)?;
    Ok((vm, locks))
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

fn header(vm: VmId, chunks: u32, locks: &Locks) -> Result<Vec<u8>, DiskError> {
    let mut out = [MAGIC.as_slice(), vm.bytes(), &chunks.to_le_bytes()].concat();
    fields::put(&mut out, &locks.sealed_key.public);
    fields::put(&mut out, &locks.sealed_key.private);
    fields::put(
        &mut out,
        &locks.recovery.as_ref().map(RecoverySlot::encode).unwrap_or_default(),
    );
    if out.len() > SLOT || chunks > MAX_CHUNKS {
        return Err(DiskError::Format);
    }
    out.resize(SLOT, 0);
    Ok(out)
}

fn parse_header(header: &[u8]) -> Option<(VmId, u32, Locks)> {
    let rest = &mut &*header;
    let magic = fields::take_array::<8>(rest)?;
    let vm = VmId(uuid::Uuid::from_bytes(fields::take_array(rest)?));
    let chunks = fields::take_u32(rest)?;
    let public = fields::take(rest)?.to_vec();
    let private = fields::take(rest)?.to_vec();
    let locks = Locks {
        sealed_key: SealedVolumeKey { public, private },
        recovery: RecoverySlot::parse(fields::take(rest)?)?,
    };
    (magic == *MAGIC && chunks <= MAX_CHUNKS).then_some((vm, chunks, locks))
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

    fn password() -> RecoveryPassword {
        RecoveryPassword::random(&mut SeededRandom::new(8))
    }

    fn disk() -> (tempfile::NamedTempFile, Secret32, SeededRandom) {
        let mut rng = SeededRandom::new(3);
        let key = Secret32::random(&mut rng);
        let vm = VmId::random(&mut rng);
        let locks = Locks {
            sealed_key: SealedVolumeKey {
                public: vec![1; 78],
                private: vec![2; 160],
            },
            recovery: Some(RecoverySlot::new(vm, &key, &password(), None, &mut rng).unwrap()),
        };
        let bytes = Disk::format(vm, 4, &locks, &key, &[b"secret", b"boots"], &mut rng).unwrap();
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
    fn a_recovery_password_unlocks_and_the_key_is_sealed_anew() {
        let (file, key, mut rng) = disk();
        let locked = LockedDisk::open(file.path()).unwrap();
        let other = RecoveryPassword::random(&mut rng);
        assert!(matches!(
            locked.recover(&other),
            Err(DiskError::Recovery(RecoveryError::Password))
        ));
        let recovered = locked.recover(&password()).unwrap();
        assert_eq!(recovered.expose(), key.expose());
        let mut disk = locked.unlock(recovered);
        let sealed = SealedVolumeKey {
            public: vec![3; 50],
            private: vec![4; 70],
        };
        disk.seal_to(sealed.clone()).unwrap();
        drop(disk);
        let again = LockedDisk::open(file.path()).unwrap();
        assert_eq!(*again.sealed_key(), sealed);
        let again = again.recover(&password()).map(|key| again.unlock(key)).unwrap();
        assert!(again.read(0).unwrap().starts_with(b"secret\0"));
    }

    #[test]
    fn a_disk_of_before_has_no_recovery_password() {
        let (file, _, _) = disk();
        let mut bytes = std::fs::read(file.path()).unwrap();
        let third = 8 + 16 + 4 + 4 + 78 + 4 + 160;
        bytes[third..third + 44].fill(0);
        std::fs::write(file.path(), bytes).unwrap();
        let locked = LockedDisk::open(file.path()).unwrap();
        assert!(locked.recovery().is_none());
        assert!(matches!(
            locked.recover(&password()),
            Err(DiskError::Recovery(RecoveryError::None))
        ));
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
