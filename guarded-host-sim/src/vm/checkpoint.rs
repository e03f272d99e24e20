//! Checkpoints: the disk, the vTPM and, of a VM that ran, the memory of an earlier instant.
//!
//! A store refuses every generation older than the newest, and a checkpoint is none: its image is
//! sealed under a key of its own, which is drawn when the checkpoint is taken and kept in the VM's
//! sealed state. So applying one takes the newest state, makes a newer one, and brings back nothing but
//! what was deliberately taken; whoever cannot open the newest state opens no checkpoint, and deleting
//! one destroys its key. Kind and switches of a VM are not part of it: they stay as they are.

use std::fmt;

use hgs_protocol::{env::Random, secret::Secret32};
use zeroize::Zeroizing;

use super::{
    VmId,
    envelope::{self, EnvelopeError},
    fields,
    security::Security,
    state::VtpmState,
};

/// Most checkpoints of one VM.
pub const MAX_CHECKPOINTS: usize = 50;

const MAGIC: &[u8; 8] = b"HGSVMCP1";
const HEADER: usize = 8 + 16 + 16 + Security::LENGTH;

/// Names a checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct CheckpointId(pub uuid::Uuid);

impl CheckpointId {
    /// A fresh id.
    pub fn random(rng: &mut dyn Random) -> CheckpointId {
        CheckpointId(uuid::Builder::from_random_bytes(rng.bytes()).into_uuid())
    }
}

impl fmt::Display for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a checkpoint is not taken or not applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The newest state of the VM does not name it.
    #[error("the newest state of the VM has no checkpoint {0}: it was deleted, or is another VM's")]
    Unknown(CheckpointId),
    /// There are too many.
    #[error("the VM has {MAX_CHECKPOINTS} checkpoints, and no VM has more: delete one")]
    TooMany,
    /// No image, or cut short.
    #[error("the file is no checkpoint of a VM")]
    Format,
    /// Another checkpoint's image, or one that was changed.
    #[error("the image of the checkpoint {0} does not open under its key: it was changed, or is another's")]
    Sealed(CheckpointId),
}

/// The checkpoints of a VM with their keys; part of its sealed state.
#[derive(Clone, Default)]
pub struct Checkpoints(Vec<(CheckpointId, Secret32)>);

/// What a checkpoint holds beside the disk.
pub struct CheckpointImage {
    /// The vTPM.
    pub vtpm: VtpmState,
    /// The guest's memory, if the VM ran or was saved.
    pub memory: Option<Zeroizing<Vec<u8>>>,
}

impl Checkpoints {
    /// Adds one with a new key, and seals its image; `security` decides where the memory lies.
    pub fn take(
        &mut self,
        vm: VmId,
        id: CheckpointId,
        security: Security,
        image: &CheckpointImage,
        rng: &mut dyn Random,
    ) -> Result<Vec<u8>, CheckpointError> {
        if self.0.len() >= MAX_CHECKPOINTS {
            return Err(CheckpointError::TooMany);
        }
        let key = Secret32::random(rng);
        let header = [MAGIC.as_slice(), vm.bytes(), id.0.as_bytes(), &security.encode()].concat();
        let memory: &[u8] = image.memory.as_deref().map_or(&[], |memory| memory);
        let (clear, hidden) = envelope::place(memory, security);
        let mut body = Zeroizing::new(Vec::with_capacity(image.vtpm.permanent.len() + hidden.len() + 64));
        fields::put(&mut body, image.vtpm.key.expose());
        fields::put(&mut body, &image.vtpm.permanent);
        fields::put(&mut body, &[u8::from(image.memory.is_some())]);
        fields::put(&mut body, hidden);
        let sealed = envelope::seal(&key, &header, clear, &body, rng);
        self.0.push((id, key));
        Ok(sealed)
    }

    /// Opens the image of one of these checkpoints of `vm`.
    pub fn open(&self, vm: VmId, id: CheckpointId, sealed: &[u8]) -> Result<CheckpointImage, CheckpointError> {
        let (_, key) = self
            .0
            .iter()
            .find(|(known, _)| *known == id)
            .ok_or(CheckpointError::Unknown(id))?;
        let security = |rest: &mut &[u8]| {
            let magic = fields::take_array::<8>(rest)?;
            let whose = fields::take_array::<16>(rest)?;
            let which = fields::take_array::<16>(rest)?;
            let security = Security::parse(fields::take_array(rest)?)?;
            (magic == *MAGIC).then_some((whose == *vm.bytes() && which == *id.0.as_bytes(), security))
        };
        let (ours, security) = security(&mut &*sealed).ok_or(CheckpointError::Format)?;
        if !ours {
            return Err(CheckpointError::Sealed(id));
        }
        let (clear, body) = envelope::open(key, HEADER, sealed).map_err(|error| match error {
            EnvelopeError::Format => CheckpointError::Format,
            EnvelopeError::Sealed => CheckpointError::Sealed(id),
        })?;
        let parts = |rest: &mut &[u8]| {
            let key = Secret32::from_slice(fields::take(rest)?)?;
            let permanent = fields::take(rest)?.to_vec();
            let has_memory = fields::take(rest)? == [1];
            let memory = envelope::displace(clear, fields::take(rest)?, security)?;
            rest.is_empty().then(|| CheckpointImage {
                vtpm: VtpmState { key, permanent },
                memory: has_memory.then_some(memory),
            })
        };
        parts(&mut body.as_slice()).ok_or(CheckpointError::Format)
    }

    /// Forgets one, and with it its key. Answers whether there was one.
    pub fn remove(&mut self, id: CheckpointId) -> bool {
        let before = self.0.len();
        self.0.retain(|(known, _)| *known != id);
        self.0.len() != before
    }

    /// One field of 48 bytes for each: id (16), key (32).
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let mut field = Zeroizing::new(Vec::with_capacity(self.0.len() * 48));
        for (id, key) in &self.0 {
            field.extend_from_slice(id.0.as_bytes());
            field.extend_from_slice(key.expose());
        }
        fields::put(out, &field);
    }

    /// Bytes of [`Checkpoints::write`].
    pub(super) fn length(&self) -> usize {
        4 + self.0.len() * 48
    }

    pub(super) fn parse(rest: &mut &[u8]) -> Option<Checkpoints> {
        let (entries, cut) = fields::take(rest)?.as_chunks::<48>();
        let entry = |entry: &[u8; 48]| {
            let (id, key) = entry.split_first_chunk::<16>()?;
            Some((CheckpointId(uuid::Uuid::from_bytes(*id)), Secret32::from_slice(key)?))
        };
        let entries: Option<Vec<_>> = entries.iter().map(entry).collect();
        (cut.is_empty()).then_some(Checkpoints(entries?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::security::{Change, Kind, Switch};
    use hgs_protocol::env::SeededRandom;
    use proptest::prelude::*;

    fn image(memory: Option<Vec<u8>>) -> CheckpointImage {
        CheckpointImage {
            vtpm: VtpmState {
                key: Secret32::new([3; 32]),
                permanent: vec![4; 30],
            },
            memory: memory.map(Zeroizing::new),
        }
    }

    #[test]
    fn an_image_opens_for_its_vm_by_its_own_key_until_it_is_forgotten() {
        let rng: &mut dyn Random = &mut SeededRandom::new(2);
        let (vm, other) = (VmId::random(rng), VmId::random(rng));
        let [one, two] = [CheckpointId::random(rng), CheckpointId::random(rng)];
        let security = Security::of(Kind::Shielded);
        let mut all = Checkpoints::default();
        let first = all
            .take(vm, one, security, &image(Some(b"memory".to_vec())), rng)
            .unwrap();
        let second = all.take(vm, two, security, &image(None), rng).unwrap();
        assert_eq!(all.open(vm, one, &first).unwrap().memory.unwrap().as_slice(), b"memory");
        assert!(all.open(vm, two, &second).unwrap().memory.is_none());
        assert_eq!(all.open(vm, two, &first).err(), Some(CheckpointError::Sealed(two)));
        assert_eq!(all.open(other, one, &first).err(), Some(CheckpointError::Sealed(one)));
        for at in 0..first.len() {
            let mut bad = first.clone();
            bad[at] ^= 1;
            assert!(all.open(vm, one, &bad).is_err(), "byte {at}");
            assert!(all.open(vm, one, &first[..at]).is_err(), "cut at {at}");
        }
        // The keys go with the VM's state.
        let mut bytes = Vec::new();
        all.write(&mut bytes);
        assert_eq!(bytes.len(), all.length());
        let mut again = Checkpoints::parse(&mut bytes.as_slice()).unwrap();
        assert!(again.open(vm, one, &first).is_ok());
        assert!(again.remove(one) && !again.remove(one));
        assert_eq!(again.open(vm, one, &first).err(), Some(CheckpointError::Unknown(one)));
        assert!(again.open(vm, two, &second).is_ok());
    }

    #[test]
    fn memory_lies_in_the_clear_only_where_its_encryption_is_off() {
        let rng: &mut dyn Random = &mut SeededRandom::new(3);
        let (vm, id) = (VmId::random(rng), CheckpointId::random(rng));
        let on = Security::of(Kind::EncryptionSupported);
        let off = on
            .change(Change::Switch {
                switch: Switch::EncryptStateAndMigration,
                on: false,
            })
            .unwrap();
        for (security, visible) in [(on, false), (off, true)] {
            let mut all = Checkpoints::default();
            let sealed = all
                .take(vm, id, security, &image(Some(b"the secret".to_vec())), rng)
                .unwrap();
            assert_eq!(sealed.windows(10).any(|w| w == b"the secret"), visible);
            assert_eq!(
                all.open(vm, id, &sealed).unwrap().memory.unwrap().as_slice(),
                b"the secret"
            );
        }
    }

    #[test]
    fn no_vm_has_more_than_the_limit() {
        let rng: &mut dyn Random = &mut SeededRandom::new(4);
        let vm = VmId::random(rng);
        let mut all = Checkpoints::default();
        let mut take = |rng: &mut dyn Random| {
            let id = CheckpointId::random(rng);
            all.take(vm, id, Security::of(Kind::Shielded), &image(None), rng)
                .map(drop)
        };
        for _ in 0..MAX_CHECKPOINTS {
            take(rng).unwrap();
        }
        assert_eq!(take(rng), Err(CheckpointError::TooMany));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes: Vec<u8>) {
            let rng: &mut dyn Random = &mut SeededRandom::new(5);
            let (vm, id) = (VmId::random(rng), CheckpointId::random(rng));
            let mut all = Checkpoints::default();
            all.take(vm, id, Security::of(Kind::Shielded), &image(None), rng).unwrap();
            let _ = all.open(vm, id, &bytes);
            let _ = Checkpoints::parse(&mut bytes.as_slice());
        }
    }
}
