//! Whose protector this is: the guardian signature and the chain of wrappings up to the one owner
//! (MS-KPS 3.1.5.1.1.3, steps 3 to 5 of the protocol reference 5.5, in that order).
//!
//! Never looks at dates, names or chains of certificates, and cannot check the
//! TransportKeySignature: that needs the key (`open`).

use std::collections::{HashMap, HashSet};

use super::{
    cache::{self, Chain, ChainCache},
    document::{KeyProtector, ProtectorError, Wrapping, WrappingId},
    guardian::Certificate,
};

/// Which rule a wrapping breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WrappingFault {
    /// The signing certificate is no X.509 certificate with a key of a known suite.
    #[error("its signing certificate does not parse")]
    SigningCertificate,
    /// The encryption certificate is no X.509 certificate with a key of a known suite.
    #[error("its encryption certificate does not parse")]
    EncryptionCertificate,
    /// ParentWrappingId names no wrapping.
    #[error("its parent is not in the key protector")]
    UnknownParent,
    /// Another wrapping has the same Id.
    #[error("its Id is used twice")]
    DuplicateId,
    /// Its parents lead round in a circle and never to the owner.
    #[error("its chain of parents does not reach the owner")]
    Cycle,
    /// A second wrapping that is its own parent; the first is the owner.
    #[error("it is a second owner")]
    SecondOwner,
    /// The parent's key did not sign the signing certificate.
    #[error("its signing certificate is not signed by its parent")]
    SigningCertificateSignature,
    /// The wrapping's own key did not sign the encryption certificate.
    #[error("its encryption certificate is not signed by its signing certificate's key")]
    EncryptionCertificateSignature,
}

/// A wrapping that is not valid (InvalidWrappingException of the protocol).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("wrapping {id}: {fault}")]
pub struct WrappingError {
    /// The wrapping.
    pub id: WrappingId,
    /// The rule.
    pub fault: WrappingFault,
}

/// Why a protector's signatures do not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The protector as a whole.
    #[error(transparent)]
    Protector(#[from] ProtectorError),
    /// One wrapping.
    #[error(transparent)]
    Wrapping(#[from] WrappingError),
}

/// A key protector whose guardian signature holds and whose every wrapping chains to its owner.
#[derive(Clone, Debug)]
pub struct ChainedProtector {
    pub(super) protector: KeyProtector,
    pub(super) chain: Chain,
}

impl KeyProtector {
    /// Checks the guardian signature, then every wrapping.
    pub fn verify(self) -> Result<ChainedProtector, VerifyError> {
        self.check_guardian_signature()?;
        let chain = verify_chain(&self.wrappings)?;
        Ok(ChainedProtector { protector: self, chain })
    }

    /// As [`KeyProtector::verify`], but a chain that `cache` knows is not verified again. The guardian signature
    /// always is.
    pub fn verify_cached(self, cache: &ChainCache) -> Result<ChainedProtector, VerifyError> {
        let digest = cache::digest(&self.wrappings);
        let Some(chain) = cache.find(&digest) else {
            let chained = self.verify()?;
            cache.keep(digest, &chained.chain);
            return Ok(chained);
        };
        let at = self.wrappings.iter().position(|w| w.id == self.signer);
        let (signing, _) = at
            .and_then(|at| chain.certificates.get(at))
            .ok_or(ProtectorError::UnknownSigner(self.signer))?;
        self.check_signed_by(signing)?;
        Ok(ChainedProtector { protector: self, chain })
    }

    /// The guardian signature alone, by the signing certificate of the wrapping that it names.
    pub(super) fn check_guardian_signature(&self) -> Result<(), ProtectorError> {
        let signer = self
            .wrapping(self.signer)
            .ok_or(ProtectorError::UnknownSigner(self.signer))?;
        let certificate =
            Certificate::parse(&signer.signing_certificate).map_err(|_| ProtectorError::GuardianSignature)?;
        self.check_signed_by(&certificate)
    }

    fn check_signed_by(&self, certificate: &Certificate) -> Result<(), ProtectorError> {
        let signature = &self.guardian_signature;
        if certificate
            .public_key()
            .verify(signature.algorithm, &self.signed, &signature.value)
        {
            Ok(())
        } else {
            Err(ProtectorError::GuardianSignature)
        }
    }
}

impl ChainedProtector {
    /// The protector as it was read.
    pub fn protector(&self) -> &KeyProtector {
        &self.protector
    }

    /// The owner's wrapping.
    pub(super) fn owner_wrapping(&self) -> Option<&Wrapping> {
        self.protector.wrappings.get(self.chain.owner)
    }

    /// The owner's signing certificate.
    pub fn owner(&self) -> Option<&Certificate> {
        self.chain
            .certificates
            .get(self.chain.owner)
            .map(|(signing, _)| signing)
    }
}

fn verify_chain(wrappings: &[Wrapping]) -> Result<Chain, WrappingError> {
    let certificates = wrappings
        .iter()
        .map(parse_certificates)
        .collect::<Result<Vec<_>, _>>()?;
    let (owner, parents) = find_owner(wrappings)?;
    for ((wrapping, parent), (signing, encryption)) in wrappings.iter().zip(parents).zip(&certificates) {
        let fault = |fault| WrappingError { id: wrapping.id, fault };
        let (parent, _) = certificates.get(parent).ok_or(fault(WrappingFault::UnknownParent))?;
        if !parent_signature_holds(wrapping, parent, signing) {
            return Err(fault(WrappingFault::SigningCertificateSignature));
        }
        if !own_signature_holds(wrapping, signing, encryption) {
            return Err(fault(WrappingFault::EncryptionCertificateSignature));
        }
    }
    Ok(Chain {
        certificates: certificates.into(),
        owner,
    })
}

/// Whether the key of `parent` signed the wrapping's signing certificate.
pub(super) fn parent_signature_holds(wrapping: &Wrapping, parent: &Certificate, signing: &Certificate) -> bool {
    let signature = &wrapping.signing_signature;
    parent
        .public_key()
        .verify(signature.algorithm, signing.der(), &signature.value)
}

/// Whether the wrapping's own signing key signed its encryption certificate.
pub(super) fn own_signature_holds(wrapping: &Wrapping, signing: &Certificate, encryption: &Certificate) -> bool {
    let signature = &wrapping.encryption_signature;
    signing
        .public_key()
        .verify(signature.algorithm, encryption.der(), &signature.value)
}

fn parse_certificates(wrapping: &Wrapping) -> Result<(Certificate, Certificate), WrappingError> {
    let fault = |fault| WrappingError { id: wrapping.id, fault };
    Ok((
        Certificate::parse(&wrapping.signing_certificate).map_err(|_| fault(WrappingFault::SigningCertificate))?,
        Certificate::parse(&wrapping.encryption_certificate)
            .map_err(|_| fault(WrappingFault::EncryptionCertificate))?,
    ))
}

/// Index of the owner, and of each wrapping's parent. Walks iteratively; each wrapping is entered
/// at most twice, so 256 in a row cost no more than 256 side by side.
fn find_owner(wrappings: &[Wrapping]) -> Result<(usize, Vec<usize>), WrappingError> {
    let index: HashMap<WrappingId, usize> = (0..).zip(wrappings).map(|(at, wrapping)| (wrapping.id, at)).collect();
    let parents = wrappings
        .iter()
        .map(|wrapping| {
            index.get(&wrapping.parent).copied().ok_or(WrappingError {
                id: wrapping.id,
                fault: WrappingFault::UnknownParent,
            })
        })
        .collect::<Result<Vec<usize>, _>>()?;
    let mut seen = HashSet::new();
    let mut owner = None;
    for (at, wrapping) in wrappings.iter().enumerate() {
        let fault = |fault| WrappingError { id: wrapping.id, fault };
        if !seen.insert(wrapping.id) {
            return Err(fault(WrappingFault::DuplicateId));
        }
        if wrapping.parent == wrapping.id && owner.replace(at).is_some() {
            return Err(fault(WrappingFault::SecondOwner));
        }
    }
    let mut reaches_owner = vec![false; wrappings.len()];
    if let Some(known) = owner.and_then(|at| reaches_owner.get_mut(at)) {
        *known = true;
    }
    for (start, wrapping) in wrappings.iter().enumerate() {
        let mut path = Vec::new();
        let mut at = start;
        while reaches_owner.get(at) == Some(&false) {
            if path.len() == wrappings.len() {
                return Err(WrappingError {
                    id: wrapping.id,
                    fault: WrappingFault::Cycle,
                });
            }
            path.push(at);
            at = parents.get(at).copied().unwrap_or(start);
        }
        for step in path {
            if let Some(known) = reaches_owner.get_mut(step) {
                *known = true;
            }
        }
    }
    match owner {
        Some(owner) => Ok((owner, parents)),
        // Without an owner every chain is a circle, and the first was found above.
        None => Err(WrappingError {
            id: wrappings.first().map_or(WrappingId(0), |w| w.id),
            fault: WrappingFault::Cycle,
        }),
    }
}
