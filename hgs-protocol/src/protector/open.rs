//! Opening a chained protector with a guardian's private keys, and rolling it (MS-KPS 3.1.5.1.1.3,
//! steps 6 to 9 of the protocol reference 5.5).

use super::{
    chain::ChainedProtector,
    create::{seal, wrap},
    document::{KeyProtector, ProtectorError, WrappingId, transport_key_mac},
    guardian::GuardianKeys,
    payload::Payload,
};
use crate::{crypto::same, env::Random, secret::TransportKey};

/// Why a chained protector was not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// No wrapping is for these keys: the owner has not authorised this guardian.
    #[error("no wrapping of the key protector is for this guardian")]
    NoWrapping,
    /// The transport key does not come out or does not confirm the protector.
    #[error(transparent)]
    Protector(#[from] ProtectorError),
}

/// A chained protector whose transport key is known and confirmed by the TransportKeySignature.
pub struct OpenedProtector {
    chained: ChainedProtector,
    wrapping: WrappingId,
    transport_key: TransportKey,
}

/// The egress protector of a roll with its new transport key.
pub struct RolledProtector {
    egress: KeyProtector,
    transport_key: TransportKey,
}

impl ChainedProtector {
    /// Opens the first wrapping whose two certificates are among `keys`.
    ///
    /// A wrapping that holds our encryption certificate under a stranger's signing certificate is
    /// not ours: we could not sign for it.
    pub fn open(self, keys: &GuardianKeys, rng: &mut dyn Random) -> Result<OpenedProtector, OpenError> {
        let protector = &self.protector;
        let (wrapping, pair) = protector
            .wrappings
            .iter()
            .filter(|w| keys.signing_pair(&w.signing_certificate).is_some())
            .find_map(|w| Some((w, keys.encryption_pair(&w.encryption_certificate)?)))
            .ok_or(OpenError::NoWrapping)?;
        // Each step that fails goes on with a random value to the end, so that time and answer do
        // not tell a bad ciphertext from a bad confirmation.
        let fallback = TransportKey::random(rng);
        let key = pair
            .private()
            .decrypt_hybrid(wrapping.transport, &wrapping.transport_key, rng)
            .ok()
            .and_then(|plain| Payload::parse(&plain).ok())
            .filter(|payload| payload.keys.len() == 1)
            .and_then(|payload| payload.transport_key(0))
            .unwrap_or(fallback);
        if !same(
            &transport_key_mac(&key, &protector.signed),
            &protector.transport_key_mac,
        ) {
            return Err(ProtectorError::TransportKey.into());
        }
        Ok(OpenedProtector {
            wrapping: wrapping.id,
            chained: self,
            transport_key: key,
        })
    }
}

impl OpenedProtector {
    /// The confirmed (ingress) transport key.
    pub fn transport_key(&self) -> &TransportKey {
        &self.transport_key
    }

    /// The wrapping that was opened.
    pub fn wrapping(&self) -> WrappingId {
        self.wrapping
    }

    /// The protector with its verified chain.
    pub fn chained(&self) -> &ChainedProtector {
        &self.chained
    }

    /// The egress protector: every wrapping kept, a new transport key encrypted to each, signed by
    /// the guardian whose wrapping was opened. MaxOfflineUnwraps is copied.
    pub fn roll(&self, keys: &GuardianKeys, rng: &mut dyn Random) -> Result<RolledProtector, ProtectorError> {
        let ingress = &self.chained.protector;
        let key = TransportKey::random(rng);
        let mut wrappings = ingress.wrappings.clone();
        for (wrapping, (_, encryption)) in wrappings.iter_mut().zip(self.chained.chain.certificates.iter()) {
            (wrapping.transport, wrapping.transport_key) = wrap(&key, encryption.public_key(), rng)?;
        }
        let signing = ingress
            .wrapping(self.wrapping)
            .and_then(|w| keys.signing_pair(&w.signing_certificate))
            .ok_or(ProtectorError::Refused)?;
        let egress = seal(wrappings, &key, self.wrapping, signing, ingress.max_offline_unwraps)?;
        Ok(RolledProtector {
            egress,
            transport_key: key,
        })
    }
}

impl RolledProtector {
    /// The egress protector.
    pub fn egress(&self) -> &KeyProtector {
        &self.egress
    }

    /// The egress transport key.
    pub fn transport_key(&self) -> &TransportKey {
        &self.transport_key
    }
}
