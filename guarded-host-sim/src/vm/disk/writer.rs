//! Writes a new disk chunk by chunk, so that a volume of any length needs little memory.

use std::{
    fs::File,
    io::{BufWriter, Write},
};

use hgs_protocol::{env::Random, secret::Secret32};
use zeroize::Zeroizing;

use super::{CHUNK, DiskError, Locks, VmId, header, seal_chunk};

/// A disk that is being written. It is whole once [`DiskWriter::finish`] returns.
pub struct DiskWriter<'k> {
    file: BufWriter<File>,
    vm: VmId,
    chunks: u32,
    next: u32,
    key: &'k Secret32,
    /// The beginning of a chunk.
    partial: Zeroizing<Vec<u8>>,
}

impl<'k> DiskWriter<'k> {
    /// Begins a disk of `chunks` chunks in `file`, which must be empty.
    pub fn begin(
        file: File,
        vm: VmId,
        chunks: u32,
        locks: &Locks,
        key: &'k Secret32,
    ) -> Result<DiskWriter<'k>, DiskError> {
        if file.metadata()?.len() != 0 {
            return Err(DiskError::NotEmpty);
        }
        let mut file = BufWriter::new(file);
        file.write_all(&header(vm, chunks, locks)?)?;
        Ok(DiskWriter {
            file,
            vm,
            chunks,
            next: 0,
            key,
            partial: Zeroizing::new(Vec::with_capacity(CHUNK)),
        })
    }

    /// Appends bytes, which go on where the last ones ended.
    pub fn append(&mut self, mut bytes: &[u8], rng: &mut dyn Random) -> Result<(), DiskError> {
        while !bytes.is_empty() {
            let room = CHUNK.saturating_sub(self.partial.len()).min(bytes.len());
            let (now, later) = bytes.split_at(room);
            self.partial.extend_from_slice(now);
            bytes = later;
            if self.partial.len() == CHUNK {
                self.end_chunk(rng)?;
            }
        }
        Ok(())
    }

    /// Fills the chunk that was begun, if one was; what is appended next begins another.
    pub fn end_extent(&mut self, rng: &mut dyn Random) -> Result<(), DiskError> {
        match self.partial.is_empty() {
            true => Ok(()),
            false => self.end_chunk(rng),
        }
    }

    /// Writes one chunk of its own, cut or filled with zeros to [`CHUNK`] bytes.
    pub fn chunk(&mut self, content: &[u8], rng: &mut dyn Random) -> Result<(), DiskError> {
        self.end_extent(rng)?;
        self.write(content, rng)
    }

    /// Fills the disk with zeros and makes it durable.
    pub fn finish(mut self, rng: &mut dyn Random) -> Result<(), DiskError> {
        self.end_extent(rng)?;
        while self.next < self.chunks {
            self.write(&[], rng)?;
        }
        self.file.flush()?;
        Ok(self.file.get_ref().sync_all()?)
    }

    fn end_chunk(&mut self, rng: &mut dyn Random) -> Result<(), DiskError> {
        let content = std::mem::replace(&mut self.partial, Zeroizing::new(Vec::with_capacity(CHUNK)));
        self.write(&content, rng)
    }

    fn write(&mut self, content: &[u8], rng: &mut dyn Random) -> Result<(), DiskError> {
        if self.next >= self.chunks {
            return Err(DiskError::NoChunk(self.next));
        }
        let slot = seal_chunk(self.vm, self.chunks, self.next, self.key, content, rng);
        self.file.write_all(&slot)?;
        self.next = self.next.saturating_add(1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::disk::{LockedDisk, SealedVolumeKey};
    use hgs_protocol::env::SeededRandom;

    #[test]
    fn what_is_appended_in_pieces_is_read_in_chunks() {
        let rng: &mut dyn Random = &mut SeededRandom::new(1);
        let (vm, key) = (VmId::random(rng), Secret32::random(rng));
        let locks = Locks {
            sealed_key: SealedVolumeKey {
                public: vec![1; 78],
                private: vec![2; 160],
            },
            recovery: None,
        };
        let path = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(path.path()).unwrap();
        let mut disk = DiskWriter::begin(open(), vm, 6, &locks, &key).unwrap();
        disk.chunk(b"alone", rng).unwrap();
        for piece in [1000, 3000, 1000] {
            disk.append(&vec![7; piece], rng).unwrap();
        }
        disk.end_extent(rng).unwrap();
        disk.append(b"behind", rng).unwrap();
        disk.finish(rng).unwrap();

        let again = DiskWriter::begin(open(), vm, 6, &locks, &key);
        assert!(matches!(again, Err(DiskError::NotEmpty)));
        let disk = LockedDisk::open(path.path()).unwrap().unlock(key.clone());
        assert!(disk.read(0).unwrap().starts_with(b"alone\0"));
        assert_eq!(disk.read(1).unwrap().as_slice(), [7; CHUNK]);
        let rest = disk.read(2).unwrap();
        assert!(rest[..5000 - CHUNK].iter().all(|byte| *byte == 7) && rest[5000 - CHUNK..].iter().all(|b| *b == 0));
        assert!(disk.read(3).unwrap().starts_with(b"behind\0"));
        assert!(disk.read(5).unwrap().iter().all(|byte| *byte == 0));

        std::fs::write(path.path(), b"").unwrap();
        drop(disk);
        let mut full = DiskWriter::begin(open(), vm, 1, &locks, &key).unwrap();
        full.chunk(b"x", rng).unwrap();
        assert!(matches!(full.chunk(b"y", rng), Err(DiskError::NoChunk(1))));
    }
}
