//! Secrets as types: wiped on drop, without `Debug` or `Serialize`, read only through `expose`.

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::env::Random;

/// 32 secret bytes: a salt, a session key, a content-encryption key.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret32([u8; 32]);

impl Secret32 {
    /// Takes the bytes over. The caller's copy is the caller's to wipe.
    pub fn new(bytes: [u8; 32]) -> Secret32 {
        Secret32(bytes)
    }

    /// A fresh secret.
    pub fn random(rng: &mut dyn Random) -> Secret32 {
        let mut secret = Secret32([0; 32]);
        rng.fill(&mut secret.0);
        secret
    }

    /// From a slice of exactly 32 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Secret32> {
        bytes.try_into().ok().map(Secret32)
    }

    /// The bytes themselves. Every call is a place to review.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The key that opens a shielded VM's state (MS-KPS 2.2.2.3): random, 32 bytes, new at every roll.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct TransportKey(Secret32);

impl TransportKey {
    /// A fresh transport key.
    pub fn random(rng: &mut dyn Random) -> TransportKey {
        TransportKey(Secret32::random(rng))
    }

    /// From the KeyValue of a payload blob.
    pub fn new(bytes: Secret32) -> TransportKey {
        TransportKey(bytes)
    }

    /// The key itself, as a secret. Every call is a place to review.
    pub fn expose_transport_key(&self) -> &Secret32 {
        &self.0
    }
}
