//! What an owner is told about a key protector: its wrappings, whose they are by the guardian store,
//! which signatures hold, and what cannot be told without a key. Decides nothing.

use std::fmt::{self, Write as _};

use hgs_protocol::{
    env::UnixTime,
    protector::{Examination, ExaminedWrapping, KeyProtector, suite::KeyTransport},
};
use serde::Serialize;

use super::{certificate::CertificateView, store::StoredGuardian};

/// A protector as a person or a script sees it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inspection {
    /// Whether every signature that can be checked here holds and every wrapping chains to the one owner.
    pub signatures_hold: bool,
    /// SHA-256 of the signed bytes, hex: the name of this set of wrappings in the service's records.
    pub digest: String,
    /// The wrappings in document order.
    pub wrappings: Vec<WrappingInspection>,
    /// The signature over the wrappings.
    pub guardian_signature: GuardianSignature,
    /// The signature under the transport key.
    pub transport_key_signature: TransportKeySignature,
    /// How often a host may start the VM without contact; an unsigned wish.
    pub max_offline_unwraps: u32,
    /// Always false: anyone who has the file can change the value.
    pub max_offline_unwraps_is_signed: bool,
}

/// One wrapping.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WrappingInspection {
    /// Its Id.
    pub id: u32,
    /// The wrapping that vouches for it; its own for the owner.
    pub parent: u32,
    /// Whether it is the owner's.
    pub is_owner: bool,
    /// Its signing certificate; null if that does not parse.
    pub signing_certificate: Option<CertificateView>,
    /// Its encryption certificate; null if that does not parse.
    pub encryption_certificate: Option<CertificateView>,
    /// Whether the parent signed the signing certificate; null where that cannot be checked.
    pub signing_certificate_signature_holds: Option<bool>,
    /// Whether its own key signed the encryption certificate; null where that cannot be checked.
    pub encryption_certificate_signature_holds: Option<bool>,
    /// Identifier of the encryption of its transport key.
    pub transport_key_algorithm: &'static str,
    /// Guardians of the store with both certificates: they, and nobody else here, can open it.
    pub guardians: Vec<KnownGuardian>,
    /// The rules that it breaks.
    pub faults: Vec<String>,
}

/// A guardian of the owner's store.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KnownGuardian {
    /// Its name in the store.
    pub name: String,
    /// Whether its private keys are in the store too.
    pub has_private_keys: bool,
}

/// GuardianSignature.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GuardianSignature {
    /// The wrapping whose guardian signed.
    pub wrapping: u32,
    /// Whether it holds.
    pub holds: bool,
    /// If not, why.
    pub reason: Option<String>,
}

/// TransportKeySignature.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TransportKeySignature {
    /// Whether it holds; null without a key that opens the protector.
    pub holds: Option<bool>,
    /// What was or was not tried.
    pub note: String,
}

/// What a guardian's private keys came to.
pub enum Opening {
    /// None were given.
    NotTried,
    /// By the guardian of that name, or why not.
    Tried(String, Result<u32, String>),
}

impl Inspection {
    /// Looks at `protector` and matches its wrappings with the guardians in `store`.
    pub fn of(protector: &KeyProtector, store: &[StoredGuardian], opening: &Opening) -> Inspection {
        let examined = protector.examine();
        Inspection {
            signatures_hold: examined.is_faultless() && !matches!(opening, Opening::Tried(_, Err(_))),
            digest: hex::encode(protector.digest()),
            guardian_signature: guardian_signature(protector, &examined),
            transport_key_signature: transport_key_signature(opening),
            max_offline_unwraps: protector.max_offline_unwraps(),
            max_offline_unwraps_is_signed: false,
            wrappings: examined.wrappings.iter().map(|w| wrapping(w, store)).collect(),
        }
    }

    /// The same for a person.
    pub fn text(&self, title: &str, now: UnixTime) -> Result<String, fmt::Error> {
        let mut out = String::new();
        let count = match self.wrappings.len() {
            1 => "1 wrapping".to_owned(),
            n => format!("{n} wrappings"),
        };
        let verdict = match self.signatures_hold {
            true => "every signature that can be checked here holds",
            false => "NOT to be relied on, see below",
        };
        writeln!(out, "{title}: key protector with {count}; {verdict}")?;
        writeln!(out, "  digest of the wrappings {}", self.digest)?;
        for wrapping in &self.wrappings {
            wrapping.write(&mut out, now)?;
        }
        let signature = &self.guardian_signature;
        let by = signature.wrapping;
        match &signature.reason {
            None => writeln!(out, "\nGuardian signature: by wrapping {by}{}, holds", self.name_of(by))?,
            Some(reason) => writeln!(out, "\nGuardian signature: by wrapping {by}, does NOT hold: {reason}")?,
        }
        writeln!(out, "Transport key signature: {}", self.transport_key_signature.note)?;
        writeln!(
            out,
            "Offline unwraps: {}. No signature covers this number; a key protection service lowers it to its own limit.",
            self.max_offline_unwraps
        )?;
        Ok(out)
    }

    fn name_of(&self, id: u32) -> String {
        let wrapping = self.wrappings.iter().find(|w| w.id == id);
        match wrapping {
            Some(wrapping) if wrapping.is_owner => ", the owner".to_owned(),
            Some(wrapping) => match wrapping.guardians.first() {
                Some(guardian) => format!(", {}", guardian.name),
                None => String::new(),
            },
            None => String::new(),
        }
    }
}

impl WrappingInspection {
    fn write(&self, out: &mut String, now: UnixTime) -> fmt::Result {
        let role = match self.is_owner {
            true => "the owner".to_owned(),
            false => format!("vouched for by wrapping {}", self.parent),
        };
        writeln!(out, "\nWrapping {}, {role}", self.id)?;
        for (kind, certificate, signer, holds) in [
            (
                "signing",
                &self.signing_certificate,
                "its parent's",
                self.signing_certificate_signature_holds,
            ),
            (
                "encryption",
                &self.encryption_certificate,
                "its own signing",
                self.encryption_certificate_signature_holds,
            ),
        ] {
            match certificate {
                Some(view) => write!(out, "  {kind} certificate\n{}", view.text(4, now))?,
                None => writeln!(out, "  {kind} certificate: does not parse")?,
            }
            match holds {
                Some(true) => writeln!(out, "    signature by {signer} key holds")?,
                Some(false) => writeln!(out, "    signature by {signer} key does NOT hold")?,
                None => writeln!(out, "    signature by {signer} key cannot be checked")?,
            }
        }
        let refused = match self.transport_key_algorithm == KeyTransport::RsaOaepSha1.uri() {
            true => " (SHA-1: services refuse it unless their administrators allow it)",
            false => "",
        };
        writeln!(
            out,
            "  transport key encrypted by {}{refused}",
            self.transport_key_algorithm
        )?;
        let names = self.guardians.iter().map(|guardian| match guardian.has_private_keys {
            true => format!("{} (private keys here)", guardian.name),
            false => guardian.name.clone(),
        });
        match self.guardians.is_empty() {
            true => writeln!(out, "  opened by: a guardian that is not in the store")?,
            false => writeln!(out, "  opened by: {}", names.collect::<Vec<_>>().join(", "))?,
        }
        for fault in &self.faults {
            writeln!(out, "  NOT valid: {fault}")?;
        }
        Ok(())
    }
}

fn wrapping(examined: &ExaminedWrapping<'_>, store: &[StoredGuardian]) -> WrappingInspection {
    let view = &examined.view;
    let same = |stored: &&StoredGuardian| {
        let guardian = stored.guardian();
        guardian.signing().der() == view.signing_certificate
            && guardian.encryption().der() == view.encryption_certificate
    };
    WrappingInspection {
        id: view.id.0,
        parent: view.parent.0,
        is_owner: examined.is_owner,
        signing_certificate: examined.signing.as_ref().map(CertificateView::of),
        encryption_certificate: examined.encryption.as_ref().map(CertificateView::of),
        signing_certificate_signature_holds: examined.signing_signature_holds,
        encryption_certificate_signature_holds: examined.encryption_signature_holds,
        transport_key_algorithm: view.transport.uri(),
        guardians: store
            .iter()
            .filter(same)
            .map(|stored| KnownGuardian {
                name: stored.name().to_string(),
                has_private_keys: stored.has_private_keys(),
            })
            .collect(),
        faults: examined.faults.iter().map(ToString::to_string).collect(),
    }
}

fn guardian_signature(protector: &KeyProtector, examined: &Examination<'_>) -> GuardianSignature {
    let reason = examined.guardian_signature.as_ref().err();
    GuardianSignature {
        wrapping: protector.signer().0,
        holds: reason.is_none(),
        reason: reason.map(ToString::to_string),
    }
}

fn transport_key_signature(opening: &Opening) -> TransportKeySignature {
    let (holds, note) = match opening {
        Opening::NotTried => (
            None,
            "not checkable without a key: repeat with --open-with and a guardian whose private keys are here"
                .to_owned(),
        ),
        Opening::Tried(name, Ok(wrapping)) => (Some(true), format!("holds; {name} opens wrapping {wrapping}")),
        Opening::Tried(name, Err(reason)) => (None, format!("NOT checked: {name} does not open it: {reason}")),
    };
    TransportKeySignature { holds, note }
}
