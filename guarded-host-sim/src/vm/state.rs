//! `guest-state.bin`: the vTPM of a VM at rest, sealed under the VM's transport key.
//!
//! Header (authenticated, in clear): `HGSVMST3`, VM id (16), age: generation (u64 LE) and offline start
//! (u32 LE), security (2 bytes). Body: AES-256-GCM under HKDF(transport key, `HGS-VM-STATE`, VM id) of the fields K_v (32
//! bytes, the key under which the vTPM encrypts its own files), the vTPM's permanent state and the keys of the VM's
//! checkpoints. A VM's state is resealed under the egress key at every roll, so the key of an earlier generation opens nothing later. A start
//! without contact brings no new key: the state keeps its generation and gets the number of that start.

use std::fmt;

use hgs_protocol::{
    crypto::{gcm_open, gcm_seal, hkdf_sha256},
    env::Random,
    secret::{Secret32, TransportKey},
};
use zeroize::Zeroizing;

use super::{VmId, checkpoint::Checkpoints, fields, security::Security};

const MAGIC: &[u8; 8] = b"HGSVMST3";
const HEADER: usize = 8 + 16 + 8 + 4 + Security::LENGTH;
const LABEL: &str = "HGS-VM-STATE";

/// A vTPM that is not running: its key and its files, which are encrypted under that key.
#[derive(Clone)]
pub struct VtpmState {
    /// K_v: swtpm encrypts its state with it (AES-256-CBC with a MAC).
    pub key: Secret32,
    /// The file `tpm2-00.permall`, as swtpm wrote it.
    pub permanent: Vec<u8>,
}

/// Why a guest state does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// No guest state, or cut short.
    #[error("the file is no guest state")]
    Format,
    /// The key is of another generation or another VM, or a byte was changed.
    #[error(
        "the guest state does not open under this transport key: key and state are of different generations or VMs, or the state was changed"
    )]
    Sealed,
}

/// How new a state is. A later one compares greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Age {
    /// Counts the rolls of the VM's transport key, from 1. One generation, one key.
    pub generation: u64,
    /// Which offline start since that roll, from 1; 0 before the first.
    pub start: u32,
}

impl Age {
    /// Just rolled to `generation`.
    pub fn rolled(generation: u64) -> Age {
        Age { generation, start: 0 }
    }
}

/// `3`, and `3.1` after the first offline start of generation 3.
impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.start {
            0 => write!(f, "{}", self.generation),
            start => write!(f, "{}.{start}", self.generation),
        }
    }
}

/// What the header of a guest state says. Authenticated only once the state has opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateHeader {
    /// The VM.
    pub vm: VmId,
    /// How new the state is.
    pub age: Age,
    /// What the VM's kind and switches are.
    pub security: Security,
}

/// An opened guest state.
pub struct GuestState {
    /// From the authenticated header.
    pub header: StateHeader,
    /// The VM's checkpoints.
    pub checkpoints: Checkpoints,
    /// The vTPM.
    pub vtpm: VtpmState,
}

impl StateHeader {
    /// Reads the header of `sealed` without a key.
    pub fn read(sealed: &[u8]) -> Result<StateHeader, StateError> {
        let parts = |rest: &mut &[u8]| {
            let magic = fields::take_array::<8>(rest)?;
            let vm = fields::take_array::<16>(rest)?;
            let age = Age {
                generation: fields::take_u64(rest)?,
                start: fields::take_u32(rest)?,
            };
            let security = Security::parse(fields::take_array(rest)?)?;
            (magic == *MAGIC).then_some(StateHeader {
                vm: VmId(uuid::Uuid::from_bytes(vm)),
                age,
                security,
            })
        };
        parts(&mut &*sealed).ok_or(StateError::Format)
    }

    fn encode(&self) -> Vec<u8> {
        [MAGIC.as_slice(), &self.fields()].concat()
    }

    /// VM id, age and security as they stand in headers.
    pub(super) fn fields(&self) -> Vec<u8> {
        let (generation, start) = (self.age.generation.to_le_bytes(), self.age.start.to_le_bytes());
        [self.vm.bytes().as_slice(), &generation, &start, &self.security.encode()].concat()
    }
}

impl GuestState {
    /// Seals under `key`. The result differs at every call.
    pub fn seal(&self, key: &TransportKey, rng: &mut dyn Random) -> Vec<u8> {
        let header = self.header.encode();
        let mut body = Zeroizing::new(Vec::with_capacity(
            self.vtpm.permanent.len() + self.checkpoints.length() + 64,
        ));
        fields::put(&mut body, self.vtpm.key.expose());
        fields::put(&mut body, &self.vtpm.permanent);
        self.checkpoints.write(&mut body);
        let sealed = gcm_seal(&derive(key, self.header.vm), &header, &body, rng);
        [header, sealed].concat()
    }

    /// Opens what [`GuestState::seal`] made under the same key.
    pub fn open(sealed: &[u8], key: &TransportKey) -> Result<GuestState, StateError> {
        let header = StateHeader::read(sealed)?;
        let (clear, body) = sealed.split_at_checked(HEADER).ok_or(StateError::Format)?;
        let body = gcm_open(&derive(key, header.vm), clear, body).map_err(|_| StateError::Sealed)?;
        let mut rest = body.as_slice();
        let parts = |rest: &mut &[u8]| {
            let key = Secret32::from_slice(fields::take(rest)?)?;
            let permanent = fields::take(rest)?.to_vec();
            let checkpoints = Checkpoints::parse(rest)?;
            rest.is_empty().then_some((VtpmState { key, permanent }, checkpoints))
        };
        let (vtpm, checkpoints) = parts(&mut rest).ok_or(StateError::Format)?;
        Ok(GuestState {
            header,
            checkpoints,
            vtpm,
        })
    }
}

fn derive(key: &TransportKey, vm: VmId) -> Secret32 {
    hkdf_sha256(key.expose_transport_key(), LABEL, vm.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::security::Kind;
    use hgs_protocol::env::SeededRandom;
    use proptest::prelude::*;

    fn state(generation: u64, permanent: Vec<u8>) -> GuestState {
        let rng: &mut dyn Random = &mut SeededRandom::new(generation);
        GuestState {
            header: StateHeader {
                vm: VmId::random(rng),
                age: Age { generation, start: 7 },
                security: Security::of(Kind::Shielded),
            },
            checkpoints: Checkpoints::default(),
            vtpm: VtpmState {
                key: Secret32::random(rng),
                permanent,
            },
        }
    }

    #[test]
    fn the_key_of_another_generation_opens_nothing() {
        let rng = &mut SeededRandom::new(9);
        let (old, new) = (TransportKey::random(rng), TransportKey::random(rng));
        let sealed = state(2, vec![1; 100]).seal(&new, rng);
        assert!(GuestState::open(&sealed, &new).is_ok());
        assert!(matches!(GuestState::open(&sealed, &old), Err(StateError::Sealed)));
    }

    #[test]
    fn every_changed_byte_is_refused() {
        let rng = &mut SeededRandom::new(9);
        let key = TransportKey::random(rng);
        let sealed = state(2, vec![1; 20]).seal(&key, rng);
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 1;
            assert!(GuestState::open(&bad, &key).is_err(), "byte {at}");
            assert!(GuestState::open(&sealed[..at], &key).is_err(), "cut at {at}");
        }
    }

    proptest! {
        #[test]
        fn a_state_survives_sealing(generation: u64, permanent: Vec<u8>, seed: u64) {
            let rng = &mut SeededRandom::new(seed);
            let key = TransportKey::random(rng);
            let before = state(generation, permanent);
            let after = GuestState::open(&before.seal(&key, rng), &key).unwrap();
            prop_assert_eq!(after.header, before.header);
            prop_assert_eq!(after.vtpm.key.expose(), before.vtpm.key.expose());
            prop_assert_eq!(after.vtpm.permanent, before.vtpm.permanent);
        }

        #[test]
        fn hostile_bytes_never_panic(bytes: Vec<u8>) {
            let _ = GuestState::open(&bytes, &TransportKey::random(&mut SeededRandom::new(1)));
        }
    }
}
