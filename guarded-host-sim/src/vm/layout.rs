//! What lies where on the volume of a VM that was provisioned from a template: a map in a chunk of its own, the files of
//! the VM's owner, then the template's volume.
//!
//! Map, in chunk [`MAP_CHUNK`]: `HGSVMAP1`, length of the files and of the volume in bytes (u64 each, little-endian).
//! The files begin in the chunk behind the map, the volume in the first chunk behind the files. Files: two fields for
//! each, name and content, the answer file first. A volume without a map is one that was not provisioned. Everything is
//! read through [`Disk`], so nothing here was written by anyone without the volume's key.

use zeroize::Zeroizing;

use super::{
    disk::{CHUNK, Disk, DiskError},
    fields,
    guest::GuestError,
};

/// Chunk with the map; zero on a volume that was not provisioned.
pub const MAP_CHUNK: u32 = 4;

const MAGIC: &[u8; 8] = b"HGSVMAP1";
/// More than any owner's files come to.
const LARGEST_FILES: u64 = 16 << 20;

/// Where files and volume lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Map {
    files: Extent,
    volume: Extent,
}

/// Consecutive chunks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Extent {
    first: u32,
    length: u64,
}

/// A file of the owner's in the guest.
pub struct GuestFile {
    /// Its name.
    pub name: String,
    /// What is in it.
    pub content: Zeroizing<Vec<u8>>,
}

impl Map {
    /// The map of `files` and `volume` bytes; nothing if that is more than a disk has.
    pub fn new(files: u64, volume: u64) -> Option<Map> {
        let files = Extent {
            first: MAP_CHUNK.checked_add(1)?,
            length: files,
        };
        let volume = Extent {
            first: files.end()?,
            length: volume,
        };
        volume.end()?;
        (files.length <= LARGEST_FILES).then_some(Map { files, volume })
    }

    /// How many chunks a disk with this map has.
    pub fn chunks(&self) -> u32 {
        self.volume.end().unwrap_or(u32::MAX)
    }

    /// The content of [`MAP_CHUNK`].
    pub fn encode(&self) -> Vec<u8> {
        let (files, volume) = (self.files.length.to_le_bytes(), self.volume.length.to_le_bytes());
        [*MAGIC, files, volume].concat()
    }

    /// The map of a volume, if it was provisioned.
    pub fn read(disk: &Disk) -> Result<Option<Map>, GuestError> {
        let chunk = disk.read(MAP_CHUNK)?;
        match chunk.iter().all(|byte| *byte == 0) {
            true => Ok(None),
            false => Map::parse(&chunk).map(Some).ok_or(GuestError::Damaged("volume")),
        }
    }

    fn parse(chunk: &[u8]) -> Option<Map> {
        let rest = &mut &*chunk;
        let magic = fields::take_array::<8>(rest)?;
        let (files, volume) = (fields::take_u64(rest)?, fields::take_u64(rest)?);
        (magic == *MAGIC).then(|| Map::new(files, volume))?
    }

    /// The files of the owner, the answer file first.
    pub fn files(&self, disk: &Disk) -> Result<Vec<GuestFile>, GuestError> {
        let length = usize::try_from(self.files.length).unwrap_or(usize::MAX);
        // Reserved at once, so that no half-grown copy stays behind in freed memory.
        let mut all = Zeroizing::new(Vec::with_capacity(length));
        self.files.read(disk, |bytes| {
            all.extend_from_slice(bytes);
            Ok::<_, DiskError>(())
        })?;
        let rest = &mut all.as_slice();
        let mut files = Vec::new();
        while !rest.is_empty() {
            files.push(take_file(rest).ok_or(GuestError::Damaged("volume"))?);
        }
        Ok(files)
    }

    /// Gives the bytes of the template's volume to `take`, in order.
    pub fn volume<E: From<DiskError>>(&self, disk: &Disk, take: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        self.volume.read(disk, take)
    }
}

/// The bytes of the owner's files as they lie on the volume.
pub fn encode_files(files: &[(&str, &[u8])]) -> Zeroizing<Vec<u8>> {
    let lengths = files.iter().map(|(name, content)| 8 + name.len() + content.len());
    let mut out = Zeroizing::new(Vec::with_capacity(lengths.sum()));
    for (name, content) in files {
        fields::put(&mut out, name.as_bytes());
        fields::put(&mut out, content);
    }
    out
}

fn take_file(rest: &mut &[u8]) -> Option<GuestFile> {
    Some(GuestFile {
        name: std::str::from_utf8(fields::take(rest)?).ok()?.to_owned(),
        content: Zeroizing::new(fields::take(rest)?.to_vec()),
    })
}

impl Extent {
    fn end(self) -> Option<u32> {
        let chunks = self.length.div_ceil(CHUNK as u64);
        self.first.checked_add(u32::try_from(chunks).ok()?)
    }

    fn read<E: From<DiskError>>(self, disk: &Disk, mut take: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let mut left = self.length;
        for position in self.first..self.end().unwrap_or(self.first) {
            let chunk = disk.read(position)?;
            let length = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            take(chunk.get(..length).unwrap_or_default())?;
            left = left.saturating_sub(length as u64);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn files_and_volume_lie_behind_one_another() {
        let map = Map::new(CHUNK as u64 + 1, 3).unwrap();
        assert_eq!((map.files.first, map.volume.first, map.chunks()), (5, 7, 8));
        assert_eq!(Map::parse(&map.encode()), Some(map));
        assert_eq!(Map::new(LARGEST_FILES + 1, 0), None);
        assert_eq!(Map::new(0, u64::MAX), None);
    }

    proptest! {
        #[test]
        fn hostile_maps_never_panic(files: u64, volume: u64, bytes: Vec<u8>) {
            let _ = Map::parse(&bytes);
            let _ = Map::parse(&[*MAGIC, files.to_le_bytes(), volume.to_le_bytes()].concat());
            let rest = &mut bytes.as_slice();
            while take_file(rest).is_some() {}
        }
    }
}
