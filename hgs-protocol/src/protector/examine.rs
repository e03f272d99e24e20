//! Everything that can be said about a protector without a private key: each signature and each
//! fault by itself, where `chain` stops at the first. Decides nothing; whoever goes on with a
//! protector goes by `verify`.

use std::collections::HashMap;

use super::{
    chain::{WrappingFault, own_signature_holds, parent_signature_holds},
    document::{KeyProtector, ProtectorError, Wrapping, WrappingId, WrappingView},
    guardian::Certificate,
};

/// A protector looked at from outside.
#[derive(Debug)]
pub struct Examination<'p> {
    /// Whether the guardian signature over the wrappings holds, and if not, why.
    pub guardian_signature: Result<(), ProtectorError>,
    /// The wrappings in document order.
    pub wrappings: Vec<ExaminedWrapping<'p>>,
}

/// One wrapping looked at from outside.
#[derive(Debug)]
pub struct ExaminedWrapping<'p> {
    /// What it says.
    pub view: WrappingView<'p>,
    /// True for the first that is its own parent.
    pub is_owner: bool,
    /// Its signing certificate, if it parses.
    pub signing: Option<Certificate>,
    /// Its encryption certificate, if it parses.
    pub encryption: Option<Certificate>,
    /// Whether the parent signed the signing certificate; none where it cannot be checked.
    pub signing_signature_holds: Option<bool>,
    /// Whether the wrapping's own key signed the encryption certificate; none where it cannot be checked.
    pub encryption_signature_holds: Option<bool>,
    /// Every rule that it breaks.
    pub faults: Vec<WrappingFault>,
}

impl Examination<'_> {
    /// True when [`KeyProtector::verify`] finds nothing either.
    pub fn is_faultless(&self) -> bool {
        self.guardian_signature.is_ok() && self.wrappings.iter().all(|w| w.faults.is_empty())
    }
}

impl KeyProtector {
    /// Looks at every signature and every wrapping.
    pub fn examine(&self) -> Examination<'_> {
        let mut first = HashMap::new();
        for (at, wrapping) in self.wrappings.iter().enumerate() {
            first.entry(wrapping.id).or_insert(at);
        }
        let owner = self.wrappings.iter().position(|w| w.parent == w.id);
        let certificates: Vec<_> = self
            .wrappings
            .iter()
            .map(|w| [&w.signing_certificate, &w.encryption_certificate].map(|der| Certificate::parse(der).ok()))
            .collect();
        let wrappings = self.wrappings.iter().zip(&certificates).enumerate();
        let wrappings = wrappings.map(|(at, (wrapping, [signing, encryption]))| {
            let parent = first.get(&wrapping.parent).and_then(|at| certificates.get(*at));
            let parent_signing = parent.and_then(|[signing, _]| signing.as_ref());
            let signing_signature_holds = match (parent_signing, signing) {
                (Some(parent), Some(signing)) => Some(parent_signature_holds(wrapping, parent, signing)),
                _ => None,
            };
            let encryption_signature_holds = match (signing, encryption) {
                (Some(signing), Some(encryption)) => Some(own_signature_holds(wrapping, signing, encryption)),
                _ => None,
            };
            let is_owner = owner == Some(at);
            let faults = [
                (WrappingFault::SigningCertificate, signing.is_none()),
                (WrappingFault::EncryptionCertificate, encryption.is_none()),
                (WrappingFault::UnknownParent, parent.is_none()),
                (WrappingFault::DuplicateId, first.get(&wrapping.id) != Some(&at)),
                (
                    WrappingFault::Cycle,
                    parent.is_some() && !self.reaches_owner(wrapping, &first),
                ),
                (WrappingFault::SecondOwner, wrapping.parent == wrapping.id && !is_owner),
                (
                    WrappingFault::SigningCertificateSignature,
                    signing_signature_holds == Some(false),
                ),
                (
                    WrappingFault::EncryptionCertificateSignature,
                    encryption_signature_holds == Some(false),
                ),
            ];
            ExaminedWrapping {
                view: wrapping.view(),
                is_owner,
                signing: signing.clone(),
                encryption: encryption.clone(),
                signing_signature_holds,
                encryption_signature_holds,
                faults: faults
                    .into_iter()
                    .filter_map(|(fault, there)| there.then_some(fault))
                    .collect(),
            }
        });
        Examination {
            guardian_signature: self.check_guardian_signature(),
            wrappings: wrappings.collect(),
        }
    }

    /// Whether its parents lead to one that is its own; a parent that is missing is another fault.
    fn reaches_owner(&self, start: &Wrapping, first: &HashMap<WrappingId, usize>) -> bool {
        let mut at = start;
        for _ in 0..=self.wrappings.len() {
            if at.parent == at.id {
                return true;
            }
            match first.get(&at.parent).and_then(|at| self.wrappings.get(*at)) {
                Some(parent) => at = parent,
                None => return true,
            }
        }
        false
    }
}
