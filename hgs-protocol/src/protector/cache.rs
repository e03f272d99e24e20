//! Wrapping chains that were verified before, by the digest of everything that the verdict rests on: each
//! wrapping's Id, parent, both certificates and both signatures. A roll changes none of these, so the
//! chain of a VM is verified once, not at every start. Public data only, and bounded in bytes.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use sha2::{Digest as _, Sha256};

use super::{
    document::{Signature, Wrapping},
    guardian::Certificate,
};

/// What verification found about a chain: the certificates of each wrapping and who owns it.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    /// Certificates of each wrapping, in document order: signing, encryption.
    pub(super) certificates: Arc<[(Certificate, Certificate)]>,
    pub(super) owner: usize,
}

/// Verified chains, the oldest dropped first. Shared by all threads of a service.
pub struct ChainCache {
    most_bytes: usize,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    chains: HashMap<[u8; 32], (Chain, usize)>,
    oldest: VecDeque<[u8; 32]>,
    bytes: usize,
}

impl ChainCache {
    /// Keeps chains whose certificates take `most_bytes` in all; 0 keeps none.
    pub fn new(most_bytes: usize) -> ChainCache {
        ChainCache {
            most_bytes,
            known: Mutex::default(),
        }
    }

    /// How many chains are kept at present.
    pub fn len(&self) -> usize {
        self.lock().chains.len()
    }

    /// True when no chain is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn find(&self, digest: &[u8; 32]) -> Option<Chain> {
        self.lock().chains.get(digest).map(|(chain, _)| chain.clone())
    }

    pub(super) fn keep(&self, digest: [u8; 32], chain: &Chain) {
        // A certificate is kept as its bytes and its key, which is about as long again.
        let size: usize = chain
            .certificates
            .iter()
            .map(|(signing, encryption)| 2 * (signing.der().len() + encryption.der().len()))
            .sum();
        let mut known = self.lock();
        if size > self.most_bytes || known.chains.contains_key(&digest) {
            return;
        }
        known.bytes += size;
        known.chains.insert(digest, (chain.clone(), size));
        known.oldest.push_back(digest);
        while known.bytes > self.most_bytes {
            let Some(oldest) = known.oldest.pop_front() else { break };
            if let Some((_, size)) = known.chains.remove(&oldest) {
                known.bytes -= size;
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        // Every change leaves the maps whole, so a thread that died inside one does no harm.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Names a chain. Each part is preceded by its length, so that no two chains give the same bytes.
pub(super) fn digest(wrappings: &[Wrapping]) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_le_bytes());
        hash.update(bytes);
    };
    for wrapping in wrappings {
        part(&wrapping.id.0.to_le_bytes());
        part(&wrapping.parent.0.to_le_bytes());
        for (certificate, signature) in [
            (&wrapping.signing_certificate, &wrapping.signing_signature),
            (&wrapping.encryption_certificate, &wrapping.encryption_signature),
        ] {
            let Signature { algorithm, value } = signature;
            part(certificate);
            part(algorithm.uri().as_bytes());
            part(value);
        }
    }
    hash.finalize().into()
}
