//! Decides whether a TPM vendor vouches for an endorsement key: walks from its certificate to a trusted
//! authority and says at every step why, or why not (TCG EK Credential Profile, RFC 5280 section 6).
//!
//! Every trusted authority is an anchor, an intermediate as much as a root: the vendors' roots are often
//! signed by others that nobody has. Revocation is not looked up. A bare key is never proven here.

mod certificate;

use hgs_protocol::env::UnixTime;
use serde::Serialize;

pub use certificate::{CertificateError, ParsedCertificate};

/// A trusted certificate authority of a TPM vendor.
#[derive(Clone, Debug)]
pub struct Anchor(ParsedCertificate);

/// Why a certificate cannot be a trusted authority.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnchorError {
    /// It cannot be read.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// It does not say that it may sign certificates.
    #[error("{subject} is not a certificate authority: its basic constraints or key usage forbid signing certificates")]
    NotAuthority {
        /// Its subject.
        subject: String,
    },
}

impl Anchor {
    /// From DER.
    pub fn parse(der: &[u8]) -> Result<Anchor, AnchorError> {
        let certificate = ParsedCertificate::parse(der)?;
        match certificate.is_authority() {
            true => Ok(Anchor(certificate)),
            false => Err(AnchorError::NotAuthority {
                subject: certificate.name(),
            }),
        }
    }

    /// The certificate.
    pub fn certificate(&self) -> &ParsedCertificate {
        &self.0
    }

    /// True for one that signed itself.
    pub fn is_root(&self) -> bool {
        self.0.issuer == self.0.subject && self.0.signed_by(&self.0)
    }
}

/// One certificate of a chain, for people and scripts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    /// Subject; where it is empty, as vendors leave it, the directory name of subjectAltName.
    pub subject: String,
    /// Issuer.
    pub issuer: String,
    /// Serial number, hex.
    pub serial: String,
    /// First moment of validity.
    pub not_before: String,
    /// Last moment of validity.
    pub not_after: String,
    /// Algorithm and size of the key.
    pub key: String,
    /// Algorithm of the signature over it.
    pub signature: String,
    /// SHA-256 of the DER, hex.
    pub sha256: String,
    /// True for a certificate of the trusted store.
    pub trusted: bool,
}

/// What the walk came to.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Judgement {
    /// Whether a trusted authority vouches for the key as an endorsement key.
    pub trusted: bool,
    /// The endorsement key's certificate first, then its issuers as far as they are known.
    pub chain: Vec<Link>,
    /// Why it is or is not trusted, one sentence each, in the order of the checks.
    pub reasons: Vec<String>,
    /// Whether the key may decrypt, which the attestation exchange needs of it.
    pub can_decrypt: bool,
    /// Subject of the topmost trusted certificate of the chain.
    pub vendor: Option<String>,
}

/// Judges the endorsement key certificate `leaf`. `sent` are certificates that came with it and are
/// trusted only if an anchor leads to them.
pub fn judge(leaf: &ParsedCertificate, sent: &[ParsedCertificate], anchors: &[Anchor], now: UnixTime) -> Judgement {
    let mut reasons = Vec::new();
    let purpose_holds = judge_purpose(leaf, &mut reasons);
    let leaf_in_time = judge_dates("the endorsement key certificate", leaf, now, &mut reasons);
    let (path, anchored) = walk(leaf, sent, anchors, now, &mut reasons);
    let trusted = purpose_holds && leaf_in_time && anchored;
    let is_anchor = |certificate: &ParsedCertificate| anchors.iter().any(|anchor| anchor.0.der == certificate.der);
    let vendor = path.iter().rev().find(|certificate| is_anchor(certificate));
    Judgement {
        trusted,
        vendor: vendor.map(|certificate| certificate.name()),
        can_decrypt: leaf.may_decrypt(),
        chain: path
            .iter()
            .map(|certificate| link(certificate, is_anchor(certificate)))
            .collect(),
        reasons,
    }
}

/// What the certificate says that its key is for.
fn judge_purpose(leaf: &ParsedCertificate, reasons: &mut Vec<String>) -> bool {
    let before = reasons.len();
    match &leaf.extended_usages {
        Some(usages) if usages.iter().any(|usage| usage == EK_CERTIFICATE) => {}
        Some(usages) => reasons.push(format!(
            "its extended key usage is {}, not that of an endorsement key certificate ({EK_CERTIFICATE})",
            usages.join(", ")
        )),
        None => reasons.push(format!(
            "it has no extended key usage, so nothing says that it is an endorsement key certificate ({EK_CERTIFICATE})"
        )),
    }
    if leaf.authority == Some(true) {
        reasons.push("it is a certificate authority's, not an endorsement key's".to_owned());
    }
    if leaf.subject.is_empty() && leaf.directory_name.is_none() {
        reasons.push("it names nothing: its subject is empty and subjectAltName has no directory name".to_owned());
    }
    if let Some(unknown) = &leaf.unknown_critical {
        reasons.push(format!(
            "it has the critical extension {unknown}, which is not understood here"
        ));
    }
    let holds = reasons.len() == before;
    if holds {
        reasons.push(format!("it is an endorsement key certificate ({EK_CERTIFICATE})"));
    }
    if !leaf.may_decrypt() {
        reasons.push(
            "its key usage allows no key encipherment: the key may be genuine, but cannot take part in an attestation"
                .to_owned(),
        );
    }
    holds
}

fn judge_dates(what: &str, certificate: &ParsedCertificate, now: UnixTime, reasons: &mut Vec<String>) -> bool {
    if now < certificate.not_before {
        reasons.push(format!("{what} is not valid before {}", certificate.not_before));
        return false;
    }
    if now > certificate.not_after {
        reasons.push(format!("{what} expired at {}", certificate.not_after));
        return false;
    }
    true
}

/// From the leaf upwards. Below the first anchor every step must hold; above it certificates are only
/// listed. A false lead costs a signature check, so their number is bounded.
fn walk<'a>(
    leaf: &'a ParsedCertificate,
    sent: &'a [ParsedCertificate],
    anchors: &'a [Anchor],
    now: UnixTime,
    reasons: &mut Vec<String>,
) -> (Vec<&'a ParsedCertificate>, bool) {
    let mut path = vec![leaf];
    let mut holds = true;
    let mut anchored = false;
    let mut checks = MOST_CHECKS;
    let mut current = leaf;
    while path.len() <= MOST_STEPS && !(current.issuer == current.subject && current.signed_by(current)) {
        let trusted = anchors.iter().map(|anchor| (&anchor.0, true));
        let known = trusted.chain(sent.iter().map(|certificate| (certificate, false)));
        // Once anchored, nothing that merely came along is worth listing.
        let named = known.filter(|(issuer, trusted)| issuer.subject == current.issuer && (*trusted || !anchored));
        let named: Vec<_> = named.take(checks).collect();
        checks -= named.len();
        let signers = named.iter().filter(|(issuer, _)| current.signed_by(issuer));
        // An authority may have renewed its certificate with the same key.
        let best =
            signers.min_by_key(|(issuer, trusted)| (!trusted, now < issuer.not_before || now > issuer.not_after));
        let Some((issuer, is_anchor)) = best.copied() else {
            if !anchored {
                reasons.push(missing(current, &named));
            }
            break;
        };
        if !anchored {
            let below = path.len() - 1;
            holds &= judge_issuer(current, issuer, is_anchor, below, now, reasons);
            anchored = is_anchor;
        }
        path.push(issuer);
        current = issuer;
    }
    if !anchored && current.issuer == current.subject {
        reasons.push(format!("the chain ends at {}, which is not trusted", current.name()));
    } else if !anchored && path.len() > MOST_STEPS {
        reasons.push(format!("the chain has more than {MOST_STEPS} steps"));
    }
    (path, anchored && holds)
}

fn missing(current: &ParsedCertificate, named: &[(&ParsedCertificate, bool)]) -> String {
    match named.is_empty() {
        true => format!(
            "its issuer {} is not among the trusted certificates: add it, if the vendor's site confirms it",
            current.issuer
        ),
        false => format!(
            "the signature on {} ({}) is not that of {}, whose name it gives as issuer",
            current.name(),
            current.signature_algorithm_name(),
            current.issuer
        ),
    }
}

fn judge_issuer(
    current: &ParsedCertificate,
    issuer: &ParsedCertificate,
    is_anchor: bool,
    below: usize,
    now: UnixTime,
    reasons: &mut Vec<String>,
) -> bool {
    let name = issuer.name();
    let mut holds = judge_dates(&format!("the issuer {name}"), issuer, now, reasons);
    if !issuer.is_authority() {
        reasons.push(format!(
            "{name} is not a certificate authority and may not sign certificates"
        ));
        holds = false;
    }
    if issuer
        .path_length
        .is_some_and(|most| usize::try_from(most).is_ok_and(|most| below > most))
    {
        reasons.push(format!("{name} forbids so many authorities below it"));
        holds = false;
    }
    if let Some(unknown) = &issuer.unknown_critical {
        reasons.push(format!(
            "{name} has the critical extension {unknown}, which is not understood here"
        ));
        holds = false;
    }
    if holds {
        let role = if is_anchor {
            "the trusted authority"
        } else {
            "the authority"
        };
        let algorithm = current.signature_algorithm_name();
        reasons.push(format!("{role} {name} signed {} ({algorithm})", current.name()));
        if algorithm.contains("sha1") {
            reasons.push("that signature uses SHA-1, taken because older TPMs have no other".to_owned());
        }
    }
    holds
}

fn link(certificate: &ParsedCertificate, trusted: bool) -> Link {
    Link {
        subject: certificate.name(),
        issuer: certificate.issuer.clone(),
        serial: certificate.serial.clone(),
        not_before: certificate.not_before.to_string(),
        not_after: certificate.not_after.to_string(),
        key: certificate.key_name(),
        signature: certificate.signature_algorithm_name(),
        sha256: hex::encode(hgs_protocol::crypto::sha256(&certificate.der)),
        trusted,
    }
}

/// Extended key usage tcg-kp-EKCertificate.
const EK_CERTIFICATE: &str = "2.23.133.8.1";
/// More authorities than any vendor's chain has.
const MOST_STEPS: usize = 6;
/// Signature checks in one walk.
const MOST_CHECKS: usize = 64;

#[cfg(test)]
mod tests;
