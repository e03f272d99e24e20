//! Health certificates: what attestation issues to a healthy host and key protection accepts.
//!
//! [`AttestationSigner::issue`] writes the profile, [`HealthCertificate::accept`] decides whether
//! one is good enough to seal keys to. Attestation's verdict itself is made elsewhere; this module
//! never looks at a boot log.

use std::time::Duration;

use aws_lc_rs::signature::{self, UnparsedPublicKey};
use uuid::Uuid;
use x509_cert::{
    Certificate, Version,
    der::{Decode, asn1::ObjectIdentifier},
    ext::{
        Extension,
        pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages},
    },
};

use crate::{
    crypto::{PublicKey, sha256},
    env::UnixTime,
    oid,
};

mod issue;
mod statement;

pub use issue::{AttestationSigner, HealthCertificateRequest, IssueError, certificates_only};
pub use statement::{AttestationMode, AttestationStatement, CertificateKind, PolicyVerdict};

/// A signer that key protection trusts: its key, and the moment before which nothing counts.
#[derive(Clone, Debug)]
pub struct TrustedSigner {
    key: PublicKey,
    sha256: [u8; 32],
    /// Health certificates issued before this are refused
    /// (the documented setting DenyHealthCertificatesIssuedBefore).
    pub deny_issued_before: Option<UnixTime>,
}

impl TrustedSigner {
    /// From the signer's certificate. Only its key matters: names and dates are not compared.
    pub fn from_certificate(der: &[u8]) -> Result<TrustedSigner, HealthCertificateError> {
        let certificate = Certificate::from_der(der).map_err(|_| HealthCertificateError::NotX509)?;
        Ok(TrustedSigner {
            key: PublicKey::of_certificate(&certificate).ok_or(HealthCertificateError::Key)?,
            sha256: sha256(der),
            deny_issued_before: None,
        })
    }

    /// SHA-256 of the certificate: the thumbprint shown to an administrator.
    pub fn thumbprint(&self) -> [u8; 32] {
        self.sha256
    }
}

/// The part of acceptance that an administrator may choose.
#[derive(Clone, Debug)]
pub struct AcceptanceRules {
    /// Modes whose certificates are accepted; all by default.
    pub modes: Vec<AttestationMode>,
}

impl Default for AcceptanceRules {
    fn default() -> AcceptanceRules {
        AcceptanceRules {
            modes: AttestationMode::ALL.to_vec(),
        }
    }
}

/// Why a health certificate was not accepted. The order is that of the checks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HealthCertificateError {
    /// Over [`MAX_CERTIFICATE`] bytes.
    #[error("the health certificate is longer than 16 KiB")]
    TooLong,
    /// Not one DER certificate of version 3.
    #[error("the health certificate is not an X.509 version 3 certificate")]
    NotX509,
    /// Signed by an algorithm weaker than, or other than, SHA-256 with RSA or P-256.
    #[error(
        "the health certificate is signed with {0}, not with sha256WithRSA or stronger, nor with ecdsa-with-SHA256"
    )]
    SignatureAlgorithm(ObjectIdentifier),
    /// No trusted attestation signer's key made the signature.
    #[error("no trusted attestation signer signed the health certificate")]
    UntrustedSigner,
    /// Its time has not come.
    #[error("the health certificate is not valid before {0}")]
    NotYetValid(UnixTime),
    /// Its time is over: attest again.
    #[error("the health certificate expired at {0}; attest again")]
    Expired(UnixTime),
    /// It lives longer than a day, or ends before it begins.
    #[error("the health certificate's lifetime of {0} seconds is not within 24 hours")]
    Lifetime(i64),
    /// Issued before the administrator's cut.
    #[error("the health certificate was issued at {issued_at}, and those from before {denied_before} are denied")]
    Denied {
        /// When it was issued.
        issued_at: UnixTime,
        /// The setting.
        denied_before: UnixTime,
    },
    /// An authority's certificate.
    #[error("a certificate authority's certificate is no health certificate")]
    Authority,
    /// A critical extension that we do not know.
    #[error("the health certificate has the unknown critical extension {0}")]
    UnknownCriticalExtension(ObjectIdentifier),
    /// One extension twice, or one that does not parse.
    #[error("the health certificate's extension {0} is malformed or repeated")]
    Extension(ObjectIdentifier),
    /// The two places that name the signature algorithm differ.
    #[error("the health certificate names two different signature algorithms")]
    AlgorithmMismatch,
    /// Its key may not receive keys.
    #[error(
        "the health certificate's key usage allows neither keyEncipherment of an RSA key nor keyAgreement of a P-256 key"
    )]
    KeyUsage,
    /// It is not for encryption (a signing certificate, say).
    #[error("the health certificate is not one for encryption")]
    Purpose,
    /// The attestation extension is absent.
    #[error("the health certificate does not say how the host was attested")]
    StatementMissing,
    /// The attestation extension does not parse.
    #[error("the health certificate's attestation extension is malformed")]
    StatementMalformed,
    /// Attested in a mode that is not allowed here.
    #[error("health certificates of mode {0:?} are not accepted here")]
    Mode(AttestationMode),
    /// A policy in it failed.
    #[error("the health certificate records the policy {0} as failed")]
    PolicyFailed(Uuid),
    /// The key is neither RSA of 2048 to 4096 bits nor P-256.
    #[error("the certificate's key is neither RSA of 2048 to 4096 bits nor P-256")]
    Key,
}

/// A certificate that parses as a health certificate; nothing is believed yet.
#[derive(Clone, Debug)]
pub struct HealthCertificate {
    certificate: Certificate,
    der: Vec<u8>,
}

impl HealthCertificate {
    /// Reads one DER certificate: X.509 version 3, within [`MAX_CERTIFICATE`], signed with RSA and SHA-256 or stronger,
    /// or with P-256 and SHA-256.
    pub fn parse(der: &[u8]) -> Result<HealthCertificate, HealthCertificateError> {
        if der.len() > MAX_CERTIFICATE {
            return Err(HealthCertificateError::TooLong);
        }
        let certificate = Certificate::from_der(der).map_err(|_| HealthCertificateError::NotX509)?;
        if certificate.tbs_certificate.version != Version::V3 {
            return Err(HealthCertificateError::NotX509);
        }
        let algorithm = certificate.signature_algorithm.oid;
        if algorithm != oid::ECDSA_WITH_SHA256 && rsa_verification(algorithm).is_none() {
            return Err(HealthCertificateError::SignatureAlgorithm(algorithm));
        }
        Ok(HealthCertificate {
            certificate,
            der: der.to_vec(),
        })
    }

    /// The certificate as it came.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The serial number in hex, for rows and logs.
    pub fn serial(&self) -> String {
        hex::encode(self.certificate.tbs_certificate.serial_number.as_bytes())
    }

    /// Start and end of validity.
    pub fn validity(&self) -> (UnixTime, UnixTime) {
        let validity = self.certificate.tbs_certificate.validity;
        (unix(validity.not_before), unix(validity.not_after))
    }

    /// The attestation extension. What it says counts only once the certificate is accepted.
    pub fn statement(&self) -> Result<AttestationStatement, HealthCertificateError> {
        let extension = self
            .extension(oid::ATTESTATION)?
            .ok_or(HealthCertificateError::StatementMissing)?;
        AttestationStatement::parse(extension.extn_value.as_bytes())
    }

    /// Decides whether keys may be sealed to this certificate's key, in the order in which
    /// key protection is to check it.
    pub fn accept(
        &self,
        signers: &[TrustedSigner],
        now: UnixTime,
        rules: &AcceptanceRules,
    ) -> Result<CertifiedHost, HealthCertificateError> {
        use HealthCertificateError as Refused;
        // A renewed certificate has the same key, so several entries may match; the strictest date counts.
        let signer = signers
            .iter()
            .filter(|signer| signed_by(&self.certificate, &self.der, &signer.key))
            .max_by_key(|signer| signer.deny_issued_before)
            .ok_or(Refused::UntrustedSigner)?;

        let (begin, end) = self.validity();
        if now < begin.plus_seconds(-seconds(BACKDATE)) {
            return Err(Refused::NotYetValid(begin));
        }
        if now > end {
            return Err(Refused::Expired(end));
        }
        // The start is set back for clients with slow clocks; that does not count as life.
        let lifetime = end.seconds_since(begin.plus_seconds(seconds(BACKDATE)));
        if !(0..=seconds(MAX_LIFETIME)).contains(&lifetime) {
            return Err(Refused::Lifetime(lifetime));
        }
        if let Some(denied_before) = signer.deny_issued_before {
            let issued_at = self.statement()?.issued_at;
            if issued_at < denied_before {
                return Err(Refused::Denied {
                    issued_at,
                    denied_before,
                });
            }
        }

        if let Some(constraints) = self.read::<BasicConstraints>(oid::BASIC_CONSTRAINTS)?
            && constraints.ca
        {
            return Err(Refused::Authority);
        }
        for extension in self.extensions() {
            if extension.critical && !KNOWN.contains(&extension.extn_id) {
                return Err(Refused::UnknownCriticalExtension(extension.extn_id));
            }
        }
        if self.certificate.signature_algorithm != self.certificate.tbs_certificate.signature {
            return Err(Refused::AlgorithmMismatch);
        }
        let usage = self.read::<KeyUsage>(oid::KEY_USAGE)?.ok_or(Refused::KeyUsage)?;
        let key = PublicKey::of_certificate(&self.certificate).ok_or(Refused::Key)?;
        let wanted = match &key {
            PublicKey::Rsa(_) => KeyUsages::KeyEncipherment,
            PublicKey::P256(_) => KeyUsages::KeyAgreement,
        };
        if !usage.0.contains(wanted) {
            return Err(Refused::KeyUsage);
        }
        let purposes = self
            .read::<ExtendedKeyUsage>(oid::EXTENDED_KEY_USAGE)?
            .ok_or(Refused::Purpose)?;
        if !purposes.0.contains(&oid::HEALTH_ENCRYPTION) {
            return Err(Refused::Purpose);
        }
        let statement = self.statement()?;
        if !rules.modes.contains(&statement.mode) {
            return Err(Refused::Mode(statement.mode));
        }
        if let Some(failed) = statement.policies.iter().find(|verdict| !verdict.passed) {
            return Err(Refused::PolicyFailed(failed.id));
        }
        Ok(CertifiedHost {
            key,
            serial: self.serial(),
            not_after: end,
            statement,
            signer: signer.sha256,
        })
    }

    fn extensions(&self) -> &[Extension] {
        self.certificate
            .tbs_certificate
            .extensions
            .as_deref()
            .unwrap_or_default()
    }

    fn extension(&self, id: ObjectIdentifier) -> Result<Option<&Extension>, HealthCertificateError> {
        let mut found = self.extensions().iter().filter(|extension| extension.extn_id == id);
        match (found.next(), found.next()) {
            (_, Some(_)) => Err(HealthCertificateError::Extension(id)),
            (found, None) => Ok(found),
        }
    }

    fn read<'a, T: Decode<'a>>(&'a self, id: ObjectIdentifier) -> Result<Option<T>, HealthCertificateError> {
        self.extension(id)?
            .map(|extension| T::from_der(extension.extn_value.as_bytes()))
            .transpose()
            .map_err(|_| HealthCertificateError::Extension(id))
    }
}

/// A host whose health certificate was accepted: keys may be sealed to it.
#[derive(Clone, Debug)]
pub struct CertifiedHost {
    key: PublicKey,
    serial: String,
    not_after: UnixTime,
    statement: AttestationStatement,
    signer: [u8; 32],
}

impl CertifiedHost {
    /// The VSM key that alone may open what is sealed to this host.
    pub fn encryption_key(&self) -> &PublicKey {
        &self.key
    }

    /// The certificate's serial number in hex.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// The certificate's end.
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }

    /// How, when and with which verdicts the host was attested.
    pub fn statement(&self) -> &AttestationStatement {
        &self.statement
    }

    /// Thumbprint (SHA-256) of the signer that vouches for it.
    pub fn signer_thumbprint(&self) -> [u8; 32] {
        self.signer
    }
}

/// True when `certificate` (whose bytes are `der`) carries a signature by `key`: RSA PKCS#1 v1.5
/// with SHA-256, SHA-384 or SHA-512, or ECDSA with SHA-256. Names, dates and extensions are not looked at.
fn signed_by(certificate: &Certificate, der: &[u8], key: &PublicKey) -> bool {
    let (Some(tbs), Some(signature)) = (tbs_bytes(der), certificate.signature.as_bytes()) else {
        return false;
    };
    let algorithm = certificate.signature_algorithm.oid;
    match (key, rsa_verification(algorithm)) {
        (PublicKey::Rsa(key), Some(algorithm)) => UnparsedPublicKey::new(algorithm, key.pkcs1_der())
            .verify(tbs, signature)
            .is_ok(),
        (PublicKey::P256(key), None) => algorithm == oid::ECDSA_WITH_SHA256 && key.verify_sha256_der(tbs, signature),
        (PublicKey::Rsa(_), None) | (PublicKey::P256(_), Some(_)) => false,
    }
}

/// The bytes that a certificate's signature covers, as they stand in `der`.
///
/// They are taken from the input and never encoded anew: some authorities' encodings are not DER.
fn tbs_bytes(der: &[u8]) -> Option<&[u8]> {
    use x509_cert::der::{Reader, SliceReader};
    let mut reader = SliceReader::new(der).ok()?;
    reader
        .sequence(|certificate| {
            let tbs = certificate.tlv_bytes()?;
            while !certificate.is_finished() {
                certificate.tlv_bytes()?;
            }
            Ok(tbs)
        })
        .ok()
}

fn rsa_verification(algorithm: ObjectIdentifier) -> Option<&'static signature::RsaParameters> {
    match algorithm {
        oid::SHA256_WITH_RSA => Some(&signature::RSA_PKCS1_2048_8192_SHA256),
        oid::SHA384_WITH_RSA => Some(&signature::RSA_PKCS1_2048_8192_SHA384),
        oid::SHA512_WITH_RSA => Some(&signature::RSA_PKCS1_2048_8192_SHA512),
        _ => None,
    }
}

fn unix(time: x509_cert::time::Time) -> UnixTime {
    UnixTime(i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX))
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// How long a health certificate lives unless configured otherwise.
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(8 * 3600);
/// The longest life that key protection accepts.
pub const MAX_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How long a new signer lives.
pub const SIGNER_LIFETIME: Duration = Duration::from_secs(5 * 365 * 86_400);
/// The largest health certificate read, in bytes.
pub const MAX_CERTIFICATE: usize = 16 * 1024;
/// How far notBefore lies before the moment of issue, and the skew that acceptance allows.
pub const BACKDATE: Duration = Duration::from_secs(300);

const KNOWN: [ObjectIdentifier; 7] = [
    oid::KEY_USAGE,
    oid::APPLICATION_POLICIES,
    oid::SUBJECT_KEY_IDENTIFIER,
    oid::AUTHORITY_KEY_IDENTIFIER,
    oid::EXTENDED_KEY_USAGE,
    oid::BASIC_CONSTRAINTS,
    oid::ATTESTATION,
];

#[cfg(test)]
mod tests;
