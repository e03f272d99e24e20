//! The algorithm suites of key protectors: one row per algorithm identifier (protocol reference
//! 5.4; each is a registered W3C URI, MS-KPS names none). A new suite is a new row in each table
//! and a new variant of the two keys. Decides no trust.

use crate::{
    crypto::{CryptoError, RsaPrivateKey, RsaPublicKey, gcm_open, gcm_seal},
    env::Random,
    secret::Secret32,
    xml::NS_XENC11,
};
use zeroize::Zeroizing;

/// Key wrap of the wrapping key (RFC 3394).
pub const KW_AES256: &str = "http://www.w3.org/2001/04/xmlenc#kw-aes256";
/// Encryption of the transport keys of a response.
pub const AES256_GCM: &str = "http://www.w3.org/2009/xmlenc11#aes256-gcm";
/// The TransportKeySignature.
pub const HMAC_SHA256: &str = "http://www.w3.org/2001/04/xmldsig-more#hmac-sha256";
/// Derivation of the key of the TransportKeySignature.
pub const CONCAT_KDF: &str = "http://www.w3.org/2009/xmlenc11#ConcatKDF";
/// SHA-256 as a digest method.
pub const SHA256: &str = "http://www.w3.org/2001/04/xmlenc#sha256";
/// MGF1 with SHA-256.
pub const MGF1_SHA256: &str = "http://www.w3.org/2009/xmlenc11#mgf1sha256";

/// Signatures by certificates: guardian signature, certificate signatures, metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignatureAlgorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    RsaSha256,
}

impl SignatureAlgorithm {
    const ALL: [(SignatureAlgorithm, &'static str); 1] = [(
        SignatureAlgorithm::RsaSha256,
        "http://www.w3.org/2001/04/xmldsig-more#rsa-sha256",
    )];

    /// The algorithm of that identifier.
    pub fn from_uri(uri: &str) -> Option<SignatureAlgorithm> {
        SignatureAlgorithm::ALL.iter().find(|(_, u)| *u == uri).map(|(a, _)| *a)
    }

    /// Its identifier.
    pub fn uri(self) -> &'static str {
        match self {
            SignatureAlgorithm::RsaSha256 => "http://www.w3.org/2001/04/xmldsig-more#rsa-sha256",
        }
    }
}

/// How a 32-byte key travels to the holder of a certificate: the content-encryption key of a
/// wrapping, the transfer key of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyTransport {
    /// RSAES-OAEP, SHA-256 digest and MGF1, no label.
    RsaOaep,
}

impl KeyTransport {
    const ALL: [(KeyTransport, &'static str); 1] =
        [(KeyTransport::RsaOaep, "http://www.w3.org/2009/xmlenc11#rsa-oaep")];

    /// The algorithm of that identifier. `xmlenc#rsa-oaep-mgf1p` (SHA-1) is not in the table.
    pub fn from_uri(uri: &str) -> Option<KeyTransport> {
        KeyTransport::ALL.iter().find(|(_, u)| *u == uri).map(|(a, _)| *a)
    }

    /// Its identifier.
    pub fn uri(self) -> &'static str {
        match self {
            KeyTransport::RsaOaep => "http://www.w3.org/2009/xmlenc11#rsa-oaep",
        }
    }

    /// The Parameters element that says in full what the identifier implies here.
    pub(super) fn parameters(self) -> String {
        match self {
            KeyTransport::RsaOaep => format!(
                "<Parameters><ds:DigestMethod xmlns:ds=\"{ds}\" Algorithm=\"{SHA256}\"></ds:DigestMethod>\
                 <xenc11:MGF xmlns:xenc11=\"{NS_XENC11}\" Algorithm=\"{MGF1_SHA256}\"></xenc11:MGF></Parameters>",
                ds = crate::xml::NS_DSIG,
            ),
        }
    }
}

/// A certificate's public key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PublicKey {
    /// Suite A.
    Rsa(RsaPublicKey),
}

impl PublicKey {
    /// From a DER SubjectPublicKeyInfo.
    pub fn from_spki_der(der: &[u8]) -> Result<PublicKey, CryptoError> {
        RsaPublicKey::from_spki_der(der).map(PublicKey::Rsa)
    }

    /// True when `signature` is one by this key over `message` under `algorithm`.
    pub fn verify(&self, algorithm: SignatureAlgorithm, message: &[u8], signature: &[u8]) -> bool {
        match (self, algorithm) {
            (PublicKey::Rsa(key), SignatureAlgorithm::RsaSha256) => key.verify_pkcs1_sha256(message, signature),
        }
    }

    /// How a key is encrypted to this public key.
    pub fn key_transport(&self) -> KeyTransport {
        match self {
            PublicKey::Rsa(_) => KeyTransport::RsaOaep,
        }
    }

    /// Encrypts a 32-byte key to this public key.
    pub fn encrypt_key(&self, key: &Secret32) -> Result<Vec<u8>, CryptoError> {
        match self {
            PublicKey::Rsa(rsa) => rsa.encrypt_oaep_sha256(key.expose(), b""),
        }
    }

    /// The hybrid form of wrappings: an encrypted content key, then AES-256-GCM of `plaintext`.
    pub(super) fn encrypt_hybrid(&self, plaintext: &[u8], rng: &mut dyn Random) -> Result<Vec<u8>, CryptoError> {
        let content_key = Secret32::random(rng);
        let mut out = self.encrypt_key(&content_key)?;
        out.extend_from_slice(&gcm_seal(&content_key, b"", plaintext, rng));
        Ok(out)
    }
}

/// The private key of a certificate. Has no `Debug`, no `Clone` and no `Serialize`.
pub enum PrivateKey {
    /// Suite A.
    Rsa(RsaPrivateKey),
}

impl PrivateKey {
    /// The public half.
    pub fn public(&self) -> PublicKey {
        match self {
            PrivateKey::Rsa(key) => PublicKey::Rsa(key.public().clone()),
        }
    }

    /// From PKCS#8 DER.
    pub fn from_pkcs8(der: &[u8]) -> Result<PrivateKey, CryptoError> {
        RsaPrivateKey::from_pkcs8(der).map(PrivateKey::Rsa)
    }

    /// PKCS#8 DER, for sealing at rest and nothing else.
    pub fn expose_pkcs8(&self) -> &[u8] {
        match self {
            PrivateKey::Rsa(key) => key.expose_pkcs8(),
        }
    }

    /// The algorithm that [`PrivateKey::sign`] uses.
    pub fn signature_algorithm(&self) -> SignatureAlgorithm {
        match self {
            PrivateKey::Rsa(_) => SignatureAlgorithm::RsaSha256,
        }
    }

    /// Signs `message`.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, CryptoError> {
        match self {
            PrivateKey::Rsa(key) => key.sign_pkcs1_sha256(message),
        }
    }

    /// Opens what [`PublicKey::encrypt_key`] made.
    pub fn decrypt_key(&self, encrypted: &[u8]) -> Result<Secret32, CryptoError> {
        match self {
            PrivateKey::Rsa(key) => {
                let plain = key.decrypt_oaep_sha256(encrypted, b"")?;
                Secret32::from_slice(&plain).ok_or(CryptoError::Open)
            }
        }
    }

    /// Opens what [`PublicKey::encrypt_hybrid`] made. When the content key does not open, goes on
    /// with a random one, so that both failures take the same steps and give the same error.
    pub(super) fn decrypt_hybrid(
        &self,
        algorithm: KeyTransport,
        value: &[u8],
        rng: &mut dyn Random,
    ) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
        let head = match (self, algorithm) {
            (PrivateKey::Rsa(key), KeyTransport::RsaOaep) => key.public().modulus().len(),
        };
        let fallback = Secret32::random(rng);
        let (head, body) = value.split_at_checked(head).unwrap_or((value, &[]));
        let content_key = self.decrypt_key(head).unwrap_or(fallback);
        gcm_open(&content_key, b"", body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_identifier_names_one_algorithm() {
        for (algorithm, uri) in SignatureAlgorithm::ALL {
            assert_eq!(algorithm.uri(), uri);
            assert_eq!(SignatureAlgorithm::from_uri(uri), Some(algorithm));
        }
        for (algorithm, uri) in KeyTransport::ALL {
            assert_eq!(algorithm.uri(), uri);
            assert_eq!(KeyTransport::from_uri(uri), Some(algorithm));
        }
        assert_eq!(
            KeyTransport::from_uri("http://www.w3.org/2001/04/xmlenc#rsa-oaep-mgf1p"),
            None
        );
    }
}
