//! Endorsement keys: the forms in which they come (MS-HGSA 2.2.2.12) and whether a trusted TPM vendor
//! vouches for one. Only a certificate chain proves that a key is a TPM's; a bare key proves nothing.

use hgs_protocol::{
    crypto::RsaPublicKey,
    env::UnixTime,
    health::{signed_by, subject_key},
    oid,
    tpm::public::Public,
    wire::vsm::parse_rsa1,
};
use x509_cert::{
    Certificate,
    der::Decode,
    ext::pkix::{BasicConstraints, KeyUsage, KeyUsages},
};

/// An RSA endorsement key's public half. Its registry key is the SHA-256 of its SubjectPublicKeyInfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndorsementKey(RsaPublicKey);

/// Why an endorsement key or its certificate is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndorsementKeyError {
    /// None of the three forms, or not RSA.
    #[error(
        "not an RSA endorsement key as SubjectPublicKeyInfo, RSA1 blob or TPM2B_PUBLIC; keys of other algorithms cannot attest"
    )]
    Form,
    /// A TPM2B_PUBLIC without an endorsement key's attributes.
    #[error("the TPM2B_PUBLIC is not that of a restricted decryption key that never leaves its TPM")]
    Attributes,
    /// The certificate does not parse or its key is not RSA.
    #[error("not an X.509 certificate of an RSA key")]
    Certificate,
    /// The certificate is for another key than the one given beside it.
    #[error("the endorsement key certificate is for another key")]
    OtherKey,
    /// The certificate does not say that it is an endorsement key's.
    #[error("the certificate is not an endorsement key certificate (2.23.133.8.1), or it names a CA")]
    Purpose,
    /// It is not within its dates.
    #[error("the endorsement key certificate, or one above it, is not within its dates")]
    Dates,
    /// No trusted vendor certificate leads to it.
    #[error("no trusted TPM vendor certificate leads to it: add the vendor's root and intermediates first")]
    Untrusted,
}

impl EndorsementKey {
    /// From SubjectPublicKeyInfo DER, an RSA1 blob or a TPM2B_PUBLIC.
    pub fn parse(bytes: &[u8]) -> Result<EndorsementKey, EndorsementKeyError> {
        if let Ok(key) = RsaPublicKey::from_spki_der(bytes) {
            return Ok(EndorsementKey(key));
        }
        if let Ok(key) = parse_rsa1(bytes) {
            return Ok(EndorsementKey(key));
        }
        let public = Public::parse_sized(bytes).map_err(|_| EndorsementKeyError::Form)?;
        let key = public.rsa_key().ok_or(EndorsementKeyError::Form)?;
        if !public.looks_like_ek() {
            return Err(EndorsementKeyError::Attributes);
        }
        Ok(EndorsementKey(key.clone()))
    }

    /// The key that a certificate names. Nothing is said about who signed it.
    pub fn from_certificate(der: &[u8]) -> Result<EndorsementKey, EndorsementKeyError> {
        let certificate = Certificate::from_der(der).map_err(|_| EndorsementKeyError::Certificate)?;
        subject_key(&certificate)
            .map(EndorsementKey)
            .ok_or(EndorsementKeyError::Certificate)
    }

    /// The RSA key.
    pub fn key(&self) -> &RsaPublicKey {
        &self.0
    }

    /// Registry key.
    pub fn sha256(&self) -> [u8; 32] {
        self.0.spki_sha256()
    }
}

/// A trusted certificate of a TPM vendor: a root, or an intermediate on the way to one.
#[derive(Clone)]
pub struct VendorCertificate {
    certificate: Certificate,
    der: Vec<u8>,
    is_root: bool,
}

impl VendorCertificate {
    /// From DER. A certificate that signs itself is a root.
    pub fn parse(der: &[u8]) -> Result<VendorCertificate, EndorsementKeyError> {
        let certificate = Certificate::from_der(der).map_err(|_| EndorsementKeyError::Certificate)?;
        let key = subject_key(&certificate).ok_or(EndorsementKeyError::Certificate)?;
        let tbs = &certificate.tbs_certificate;
        let is_root = tbs.subject == tbs.issuer && signed_by(&certificate, der, &key);
        Ok(VendorCertificate {
            certificate,
            der: der.to_vec(),
            is_root,
        })
    }

    /// Subject, for people.
    pub fn subject(&self) -> String {
        self.certificate.tbs_certificate.subject.to_string()
    }

    /// True for a self-signed certificate.
    pub fn is_root(&self) -> bool {
        self.is_root
    }

    fn issued(&self, certificate: &Certificate, der: &[u8]) -> bool {
        let named = certificate.tbs_certificate.issuer == self.certificate.tbs_certificate.subject;
        named
            && is_authority(&self.certificate)
            && subject_key(&self.certificate).is_some_and(|key| signed_by(certificate, der, &key))
    }
}

/// Walks from an endorsement key certificate up to a trusted root: signature, issuer name, CA flag and
/// dates at each step. Answers the key and the root's subject.
pub fn prove(
    der: &[u8],
    trusted: &[VendorCertificate],
    now: UnixTime,
) -> Result<(EndorsementKey, String), EndorsementKeyError> {
    let key = EndorsementKey::from_certificate(der)?;
    let leaf = Certificate::from_der(der).map_err(|_| EndorsementKeyError::Certificate)?;
    let purposes = extension::<x509_cert::ext::pkix::ExtendedKeyUsage>(&leaf, oid::EXTENDED_KEY_USAGE);
    let is_ek = match purposes {
        None => true, // optional in the credential profile
        Some(Ok(purposes)) => purposes.0.contains(&oid::EK_CERTIFICATE),
        Some(Err(())) => false,
    };
    if !is_ek || is_authority(&leaf) {
        return Err(EndorsementKeyError::Purpose);
    }
    if !within_dates(&leaf, now) {
        return Err(EndorsementKeyError::Dates);
    }
    let (mut certificate, mut bytes) = (&leaf, der);
    for _ in 0..MOST_STEPS {
        let issuer = trusted
            .iter()
            .find(|issuer| issuer.issued(certificate, bytes))
            .ok_or(EndorsementKeyError::Untrusted)?;
        if !within_dates(&issuer.certificate, now) {
            return Err(EndorsementKeyError::Dates);
        }
        if issuer.is_root {
            return Ok((key, issuer.subject()));
        }
        (certificate, bytes) = (&issuer.certificate, &issuer.der);
    }
    Err(EndorsementKeyError::Untrusted)
}

fn is_authority(certificate: &Certificate) -> bool {
    let constraints = extension::<BasicConstraints>(certificate, oid::BASIC_CONSTRAINTS);
    let may_sign = match extension::<KeyUsage>(certificate, oid::KEY_USAGE) {
        None => true,
        Some(Ok(usage)) => usage.0.contains(KeyUsages::KeyCertSign),
        Some(Err(())) => false,
    };
    matches!(constraints, Some(Ok(constraints)) if constraints.ca) && may_sign
}

fn extension<'a, T: Decode<'a>>(
    certificate: &'a Certificate,
    id: x509_cert::der::asn1::ObjectIdentifier,
) -> Option<Result<T, ()>> {
    let extensions = certificate.tbs_certificate.extensions.as_deref()?;
    let found = extensions.iter().find(|extension| extension.extn_id == id)?;
    Some(T::from_der(found.extn_value.as_bytes()).map_err(|_| ()))
}

fn within_dates(certificate: &Certificate, now: UnixTime) -> bool {
    let validity = &certificate.tbs_certificate.validity;
    let seconds = |time: x509_cert::time::Time| i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX);
    (seconds(validity.not_before)..=seconds(validity.not_after)).contains(&now.0)
}

/// More certificates than any vendor's chain has.
const MOST_STEPS: usize = 6;
