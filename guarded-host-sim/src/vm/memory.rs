//! `memory.bin`: the memory of a saved VM, sealed under the VM's transport key and bound to the guest
//! state beside it.
//!
//! Header (authenticated, in clear): `HGSVMMM1`, the guest state's VM id (16), age (12) and security (2),
//! SHA-256 of the guest state's file (32). Then as `super::envelope` says, under HKDF(transport key,
//! `HGS-VM-MEMORY`, VM id).

use hgs_protocol::{
    crypto::{hkdf_sha256, sha256},
    env::Random,
    secret::{Secret32, TransportKey},
};
use zeroize::Zeroizing;

use super::{
    envelope::{self, EnvelopeError},
    fields,
    state::StateHeader,
};

const MAGIC: &[u8; 8] = b"HGSVMMM1";
const LABEL: &str = "HGS-VM-MEMORY";

/// Why a saved memory does not open.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MemoryError {
    /// No saved memory, or cut short.
    #[error("the file is no saved memory of a VM")]
    Format,
    /// Saved beside another state.
    #[error("the saved memory belongs to another state of the VM, or to another VM")]
    OtherState,
    /// Another key, or a byte was changed.
    #[error("the saved memory does not open under the VM's transport key: it was changed")]
    Sealed,
}

/// Seals `memory` for resumption from `guest_state`, whose header is given.
pub fn seal_memory(
    key: &TransportKey,
    header: &StateHeader,
    guest_state: &[u8],
    memory: &[u8],
    rng: &mut dyn Random,
) -> Vec<u8> {
    let (clear, hidden) = envelope::place(memory, header.security);
    let mut body = Zeroizing::new(Vec::with_capacity(hidden.len() + 4));
    fields::put(&mut body, hidden);
    envelope::seal(&derive(key, header), &encode(header, guest_state), clear, &body, rng)
}

/// Opens what [`seal_memory`] made for the same guest state, which has opened under the same key.
pub fn open_memory(
    sealed: &[u8],
    key: &TransportKey,
    header: &StateHeader,
    guest_state: &[u8],
) -> Result<Zeroizing<Vec<u8>>, MemoryError> {
    if sealed.get(..MAGIC.len()) != Some(MAGIC) {
        return Err(MemoryError::Format);
    }
    let expected = encode(header, guest_state);
    if !sealed.starts_with(&expected) {
        return Err(MemoryError::OtherState);
    }
    let (clear, body) = envelope::open(&derive(key, header), expected.len(), sealed).map_err(|error| match error {
        EnvelopeError::Format => MemoryError::Format,
        EnvelopeError::Sealed => MemoryError::Sealed,
    })?;
    let rest = &mut body.as_slice();
    fields::take(rest)
        .filter(|_| rest.is_empty())
        .and_then(|hidden| envelope::displace(clear, hidden, header.security))
        .ok_or(MemoryError::Format)
}

fn encode(header: &StateHeader, guest_state: &[u8]) -> Vec<u8> {
    [MAGIC.as_slice(), &header.fields(), &sha256(guest_state)].concat()
}

fn derive(key: &TransportKey, header: &StateHeader) -> Secret32 {
    hkdf_sha256(key.expose_transport_key(), LABEL, header.vm.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::{
        VmId,
        security::{Change, Kind, Security, Switch},
        state::Age,
    };
    use hgs_protocol::env::SeededRandom;
    use proptest::prelude::*;

    fn header(security: Security) -> StateHeader {
        StateHeader {
            vm: VmId::random(&mut SeededRandom::new(8)),
            age: Age {
                generation: 3,
                start: 1,
            },
            security,
        }
    }

    #[test]
    fn memory_opens_beside_its_own_state_only() {
        let rng = &mut SeededRandom::new(4);
        let (key, other) = (TransportKey::random(rng), TransportKey::random(rng));
        let header = header(Security::of(Kind::Shielded));
        let sealed = seal_memory(&key, &header, b"state", b"the secret", rng);
        assert!(!sealed.windows(10).any(|w| w == b"the secret"));
        let open = |sealed: &[u8], key, header, state| open_memory(sealed, key, header, state).map(|m| m.to_vec());
        assert_eq!(open(&sealed, &key, &header, b"state"), Ok(b"the secret".to_vec()));
        assert_eq!(open(&sealed, &other, &header, b"state"), Err(MemoryError::Sealed));
        assert_eq!(open(&sealed, &key, &header, b"another"), Err(MemoryError::OtherState));
        let later = StateHeader {
            age: Age::rolled(4),
            ..header
        };
        assert_eq!(open(&sealed, &key, &later, b"state"), Err(MemoryError::OtherState));
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 1;
            assert!(open(&bad, &key, &header, b"state").is_err(), "byte {at}");
            assert!(open(&sealed[..at], &key, &header, b"state").is_err(), "cut at {at}");
        }
    }

    #[test]
    fn memory_in_the_clear_is_bound_to_the_key_all_the_same() {
        let rng = &mut SeededRandom::new(4);
        let key = TransportKey::random(rng);
        let off = Change::Switch {
            switch: Switch::EncryptStateAndMigration,
            on: false,
        };
        let header = header(Security::of(Kind::EncryptionSupported).change(off).unwrap());
        let mut sealed = seal_memory(&key, &header, b"state", b"the secret", rng);
        let at = sealed.windows(10).position(|w| w == b"the secret").unwrap();
        assert!(open_memory(&sealed, &key, &header, b"state").is_ok());
        sealed[at] ^= 1;
        assert_eq!(
            open_memory(&sealed, &key, &header, b"state").err(),
            Some(MemoryError::Sealed)
        );
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes: Vec<u8>) {
            let key = TransportKey::random(&mut SeededRandom::new(1));
            let header = header(Security::of(Kind::Shielded));
            let _ = open_memory(&bytes, &key, &header, b"state");
            let whole = [encode(&header, b"state"), bytes].concat();
            let _ = open_memory(&whole, &key, &header, b"state");
        }
    }
}
