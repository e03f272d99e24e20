//! A public key of either suite, as certificates carry it.

use x509_cert::der::Encode as _;

use super::{CryptoError, EcPublicKey, RsaPublicKey, sha256};

/// A certificate's public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicKey {
    /// Suite A: RSA, 2048 to 4096 bits.
    Rsa(RsaPublicKey),
    /// Suite B: P-256.
    P256(EcPublicKey),
}

impl PublicKey {
    /// From a DER SubjectPublicKeyInfo; trailing bytes are refused.
    pub fn from_spki_der(der: &[u8]) -> Result<PublicKey, CryptoError> {
        match RsaPublicKey::from_spki_der(der) {
            Ok(key) => Ok(PublicKey::Rsa(key)),
            Err(error) => EcPublicKey::from_spki_der(der).map(PublicKey::P256).map_err(|_| error),
        }
    }

    /// SubjectPublicKeyInfo, DER.
    pub fn spki_der(&self) -> Vec<u8> {
        match self {
            PublicKey::Rsa(key) => key.spki_der(),
            PublicKey::P256(key) => key.spki_der(),
        }
    }

    /// SHA-256 over [`PublicKey::spki_der`].
    pub fn spki_sha256(&self) -> [u8; 32] {
        sha256(&self.spki_der())
    }

    /// The content of the subjectPublicKey field: PKCS#1 of an RSA key, the uncompressed point of a P-256 key.
    pub fn key_bits(&self) -> Vec<u8> {
        match self {
            PublicKey::Rsa(key) => key.pkcs1_der(),
            PublicKey::P256(key) => key.point().to_vec(),
        }
    }

    /// The key of a certificate; none when it is of another kind or size.
    pub(crate) fn of_certificate(certificate: &x509_cert::Certificate) -> Option<PublicKey> {
        let spki = certificate.tbs_certificate.subject_public_key_info.to_der();
        PublicKey::from_spki_der(&spki.ok()?).ok()
    }
}

impl From<RsaPublicKey> for PublicKey {
    fn from(key: RsaPublicKey) -> PublicKey {
        PublicKey::Rsa(key)
    }
}

impl From<EcPublicKey> for PublicKey {
    fn from(key: EcPublicKey) -> PublicKey {
        PublicKey::P256(key)
    }
}
