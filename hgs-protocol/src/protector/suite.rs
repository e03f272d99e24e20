//! The algorithm suites of key protectors: one row per algorithm identifier (protocol reference
//! 5.4; each is a registered W3C URI, MS-KPS names none). A new suite is a new row in each table
//! and a new variant of the two keys. Decides no trust.

use p256::{
    SecretKey,
    ecdsa::{Signature, signature::Signer as _},
    elliptic_curve::{ecdh::diffie_hellman, sec1::ToEncodedPoint as _},
    pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _},
};
use zeroize::Zeroizing;

use super::token::{self, TokenKey};
pub use crate::crypto::PublicKey;
use crate::{
    crypto::{CryptoError, EcPublicKey, RsaPrivateKey, gcm_open, gcm_seal, kw_unwrap, kw_wrap, sha256},
    env::Random,
    secret::Secret32,
    xml::NS_XENC11,
};

/// The two suites. Owner and guardians of one protector may have different ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// A: RSA-2048, as Windows.
    Rsa,
    /// B: P-256.
    P256,
}

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
    /// ECDSA on P-256 with SHA-256; the value is r then s, 64 bytes.
    EcdsaSha256,
}

impl SignatureAlgorithm {
    const ALL: [SignatureAlgorithm; 2] = [SignatureAlgorithm::RsaSha256, SignatureAlgorithm::EcdsaSha256];

    /// The algorithm of that identifier.
    pub fn from_uri(uri: &str) -> Option<SignatureAlgorithm> {
        SignatureAlgorithm::ALL.into_iter().find(|a| a.uri() == uri)
    }

    /// Its identifier.
    pub fn uri(self) -> &'static str {
        match self {
            SignatureAlgorithm::RsaSha256 => "http://www.w3.org/2001/04/xmldsig-more#rsa-sha256",
            SignatureAlgorithm::EcdsaSha256 => "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha256",
        }
    }
}

/// How a 32-byte key travels to the holder of a certificate: the content-encryption key of a
/// wrapping, the transfer key of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyTransport {
    /// RSAES-OAEP, SHA-256 digest and MGF1, no label.
    RsaOaep,
    /// RSAES-OAEP, SHA-1 digest and MGF1, no label. Only for what others made, and only where an
    /// administrator allows it; never chosen here.
    RsaOaepSha1,
    /// Ephemeral-static ECDH on P-256: the 65-byte uncompressed ephemeral point, then the key
    /// wrapped (RFC 3394) under ConcatKDF of the shared secret.
    EcdhEs,
}

impl KeyTransport {
    const ALL: [KeyTransport; 3] = [KeyTransport::RsaOaep, KeyTransport::RsaOaepSha1, KeyTransport::EcdhEs];

    /// The algorithm of that identifier.
    pub fn from_uri(uri: &str) -> Option<KeyTransport> {
        KeyTransport::ALL.into_iter().find(|a| a.uri() == uri)
    }

    /// Its identifier.
    pub fn uri(self) -> &'static str {
        match self {
            KeyTransport::RsaOaep => "http://www.w3.org/2009/xmlenc11#rsa-oaep",
            KeyTransport::RsaOaepSha1 => "http://www.w3.org/2001/04/xmlenc#rsa-oaep-mgf1p",
            KeyTransport::EcdhEs => "http://www.w3.org/2009/xmlenc11#ECDH-ES",
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
            KeyTransport::RsaOaepSha1 | KeyTransport::EcdhEs => String::new(),
        }
    }
}

impl PublicKey {
    /// True when `signature` is one by this key over `message` under `algorithm`.
    pub fn verify(&self, algorithm: SignatureAlgorithm, message: &[u8], signature: &[u8]) -> bool {
        match (self, algorithm) {
            (PublicKey::Rsa(key), SignatureAlgorithm::RsaSha256) => key.verify_pkcs1_sha256(message, signature),
            (PublicKey::P256(key), SignatureAlgorithm::EcdsaSha256) => key.verify_sha256(message, signature),
            (PublicKey::Rsa(_), SignatureAlgorithm::EcdsaSha256)
            | (PublicKey::P256(_), SignatureAlgorithm::RsaSha256) => false,
        }
    }

    /// How a key is encrypted to this public key.
    pub fn key_transport(&self) -> KeyTransport {
        match self {
            PublicKey::Rsa(_) => KeyTransport::RsaOaep,
            PublicKey::P256(_) => KeyTransport::EcdhEs,
        }
    }

    /// Whether a key can be encrypted to this public key by that algorithm.
    pub fn takes(&self, algorithm: KeyTransport) -> bool {
        match self {
            PublicKey::Rsa(_) => matches!(algorithm, KeyTransport::RsaOaep | KeyTransport::RsaOaepSha1),
            PublicKey::P256(_) => algorithm == KeyTransport::EcdhEs,
        }
    }

    /// Encrypts a 32-byte key to this public key.
    pub fn encrypt_key(&self, key: &Secret32, rng: &mut dyn Random) -> Result<Vec<u8>, CryptoError> {
        match self {
            PublicKey::Rsa(rsa) => rsa.encrypt_oaep_sha256(key.expose(), b""),
            PublicKey::P256(recipient) => {
                let ephemeral = generate_p256(rng)?;
                let point = p256::PublicKey::from_sec1_bytes(recipient.point()).map_err(|_| CryptoError::Key)?;
                let shared = diffie_hellman(ephemeral.to_nonzero_scalar(), point.as_affine());
                let wrapping = ecdh_key(shared.raw_secret_bytes(), recipient);
                let mut out = ephemeral.public_key().to_encoded_point(false).as_bytes().to_vec();
                out.extend_from_slice(&kw_wrap(&wrapping, key)?);
                Ok(out)
            }
        }
    }

    /// As [`PublicKey::encrypt_key`], by the algorithm that a peer asked for.
    pub fn encrypt_key_by(
        &self,
        algorithm: KeyTransport,
        key: &Secret32,
        rng: &mut dyn Random,
    ) -> Result<Vec<u8>, CryptoError> {
        match (self, algorithm) {
            (PublicKey::Rsa(rsa), KeyTransport::RsaOaepSha1) => rsa.encrypt_oaep_sha1(key.expose()),
            _ if algorithm == self.key_transport() => self.encrypt_key(key, rng),
            _ => Err(CryptoError::Refused),
        }
    }

    /// The hybrid form of wrappings: an encrypted content key, then AES-256-GCM of `plaintext`.
    pub(super) fn encrypt_hybrid(&self, plaintext: &[u8], rng: &mut dyn Random) -> Result<Vec<u8>, CryptoError> {
        let content_key = Secret32::random(rng);
        let mut out = self.encrypt_key(&content_key, rng)?;
        out.extend_from_slice(&gcm_seal(&content_key, b"", plaintext, rng));
        Ok(out)
    }
}

/// The private key of a certificate. Has no `Debug`, no `Clone` and no `Serialize`.
pub enum PrivateKey {
    /// Suite A.
    Rsa(RsaPrivateKey),
    /// Suite B.
    P256(P256PrivateKey),
    /// Suite A, in a token that the key never leaves.
    Token(Box<dyn TokenKey>),
}

/// A P-256 private key; both forms are wiped on drop.
pub struct P256PrivateKey {
    secret: SecretKey,
    public: EcPublicKey,
    pkcs8: Zeroizing<Vec<u8>>,
}

impl PrivateKey {
    /// A new key of that suite.
    pub fn generate(suite: Suite, rng: &mut dyn Random) -> Result<PrivateKey, CryptoError> {
        match suite {
            Suite::Rsa => RsaPrivateKey::generate_2048().map(PrivateKey::Rsa),
            Suite::P256 => {
                let secret = generate_p256(rng)?;
                let der = secret.to_pkcs8_der().map_err(|_| CryptoError::Refused)?;
                PrivateKey::from_pkcs8(der.as_bytes())
            }
        }
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        match self {
            PrivateKey::Rsa(key) => PublicKey::Rsa(key.public().clone()),
            PrivateKey::P256(key) => PublicKey::P256(key.public),
            PrivateKey::Token(key) => PublicKey::Rsa(key.public().clone()),
        }
    }

    /// From PKCS#8 DER.
    pub fn from_pkcs8(der: &[u8]) -> Result<PrivateKey, CryptoError> {
        match RsaPrivateKey::from_pkcs8(der) {
            Ok(key) => Ok(PrivateKey::Rsa(key)),
            Err(error) => {
                let secret = SecretKey::from_pkcs8_der(der).map_err(|_| error)?;
                let point = secret.public_key().to_encoded_point(false);
                Ok(PrivateKey::P256(P256PrivateKey {
                    secret,
                    public: EcPublicKey::from_point(point.as_bytes())?,
                    pkcs8: Zeroizing::new(der.to_vec()),
                }))
            }
        }
    }

    /// PKCS#8 DER, for sealing at rest and nothing else; none for a key in a token.
    pub fn expose_pkcs8(&self) -> Option<&[u8]> {
        match self {
            PrivateKey::Rsa(key) => Some(key.expose_pkcs8()),
            PrivateKey::P256(key) => Some(&key.pkcs8),
            PrivateKey::Token(_) => None,
        }
    }

    /// The algorithm that [`PrivateKey::sign`] uses.
    pub fn signature_algorithm(&self) -> SignatureAlgorithm {
        match self {
            PrivateKey::Rsa(_) | PrivateKey::Token(_) => SignatureAlgorithm::RsaSha256,
            PrivateKey::P256(_) => SignatureAlgorithm::EcdsaSha256,
        }
    }

    /// Signs `message`.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, CryptoError> {
        match self {
            PrivateKey::Rsa(key) => key.sign_pkcs1_sha256(message),
            PrivateKey::P256(key) => Ok(key.sign(message)?.to_vec()),
            PrivateKey::Token(key) => key.sign_pkcs1_sha256(message),
        }
    }

    /// Signs `message` in the form that certificates carry: as [`PrivateKey::sign`], but ECDSA in DER.
    pub(crate) fn sign_certificate(&self, message: &[u8]) -> Result<Vec<u8>, CryptoError> {
        match self {
            PrivateKey::Rsa(key) => key.sign_pkcs1_sha256(message),
            PrivateKey::P256(key) => Ok(key.sign(message)?.to_der().as_bytes().to_vec()),
            PrivateKey::Token(key) => key.sign_pkcs1_sha256(message),
        }
    }

    /// Opens what [`PublicKey::encrypt_key`] made.
    pub fn decrypt_key(&self, encrypted: &[u8]) -> Result<Secret32, CryptoError> {
        match self {
            PrivateKey::Rsa(key) => {
                let plain = key.decrypt_oaep_sha256(encrypted, b"")?;
                Secret32::from_slice(&plain).ok_or(CryptoError::Open)
            }
            PrivateKey::P256(key) => {
                let (point, wrapped) = encrypted.split_first_chunk::<EC_POINT>().ok_or(CryptoError::Open)?;
                let ephemeral = p256::PublicKey::from_sec1_bytes(point).map_err(|_| CryptoError::Open)?;
                let shared = diffie_hellman(key.secret.to_nonzero_scalar(), ephemeral.as_affine());
                kw_unwrap(&ecdh_key(shared.raw_secret_bytes(), &key.public), wrapped)
            }
            PrivateKey::Token(key) => token::decrypt_key(key.as_ref(), encrypted),
        }
    }

    /// As [`PrivateKey::decrypt_key`], for a key that was encrypted by `algorithm`. SHA-1 is refused in a token.
    fn decrypt_key_by(&self, algorithm: KeyTransport, encrypted: &[u8]) -> Result<Secret32, CryptoError> {
        match (self, algorithm) {
            (PrivateKey::Rsa(key), KeyTransport::RsaOaepSha1) => {
                Secret32::from_slice(&key.decrypt_oaep_sha1(encrypted)?).ok_or(CryptoError::Open)
            }
            _ if algorithm == self.key_transport() => self.decrypt_key(encrypted),
            _ => Err(CryptoError::Open),
        }
    }

    fn key_transport(&self) -> KeyTransport {
        match self {
            PrivateKey::Rsa(_) | PrivateKey::Token(_) => KeyTransport::RsaOaep,
            PrivateKey::P256(_) => KeyTransport::EcdhEs,
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
        let head = match self {
            PrivateKey::Rsa(key) => key.public().modulus().len(),
            PrivateKey::P256(_) => EC_POINT + 40,
            PrivateKey::Token(key) => key.public().modulus().len(),
        };
        let fallback = Secret32::random(rng);
        let (head, body) = value.split_at_checked(head).unwrap_or((value, &[]));
        let content_key = self.decrypt_key_by(algorithm, head).unwrap_or(fallback);
        gcm_open(&content_key, b"", body)
    }
}

impl P256PrivateKey {
    fn sign(&self, message: &[u8]) -> Result<Signature, CryptoError> {
        p256::ecdsa::SigningKey::from(&self.secret)
            .try_sign(message)
            .map_err(|_| CryptoError::Refused)
    }
}

/// A P-256 key from our own source of randomness. The order lies so near to 2^256 that a second
/// draw is never seen.
fn generate_p256(rng: &mut dyn Random) -> Result<SecretKey, CryptoError> {
    for _ in 0..8 {
        if let Ok(secret) = SecretKey::from_slice(Secret32::random(rng).expose()) {
            return Ok(secret);
        }
    }
    Err(CryptoError::Refused)
}

/// One block of ConcatKDF with SHA-256 over the shared secret, for this recipient alone.
fn ecdh_key(shared: &[u8], recipient: &EcPublicKey) -> Secret32 {
    let mut input = Zeroizing::new(Vec::with_capacity(4 + 32 + ECDH_INFO.len() + 32));
    input.extend_from_slice(&[0, 0, 0, 1]);
    input.extend_from_slice(shared);
    input.extend_from_slice(ECDH_INFO);
    input.extend_from_slice(&recipient.spki_sha256());
    Secret32::new(sha256(&input))
}

/// An uncompressed point.
const EC_POINT: usize = 65;
const ECDH_INFO: &[u8] = b"HGS-ECDH";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::SeededRandom;

    #[test]
    fn every_identifier_names_one_algorithm() {
        for algorithm in SignatureAlgorithm::ALL {
            assert_eq!(SignatureAlgorithm::from_uri(algorithm.uri()), Some(algorithm));
        }
        for algorithm in KeyTransport::ALL {
            assert_eq!(KeyTransport::from_uri(algorithm.uri()), Some(algorithm));
        }
        assert_eq!(KeyTransport::from_uri("http://www.w3.org/2001/04/xmlenc#rsa-1_5"), None);
    }

    #[test]
    fn a_p256_key_opens_what_was_encrypted_to_it_and_signs_64_bytes() {
        let rng = &mut SeededRandom::new(1);
        let [one, other] = [(); 2].map(|()| PrivateKey::generate(Suite::P256, rng).unwrap());
        let sealed = one.public().encrypt_key(&Secret32::new([7; 32]), rng).unwrap();
        assert_eq!(sealed.len(), 105);
        assert_eq!(one.decrypt_key(&sealed).unwrap().expose(), &[7; 32]);
        assert!(other.decrypt_key(&sealed).is_err());
        for at in [0, 1, 64, 65, 104] {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(one.decrypt_key(&changed).is_err(), "{at}");
        }
        assert!(one.decrypt_key(&sealed[..60]).is_err());
        let signature = one.sign(b"a").unwrap();
        assert_eq!(signature.len(), 64);
        let public = one.public();
        assert!(public.verify(SignatureAlgorithm::EcdsaSha256, b"a", &signature));
        assert!(!public.verify(SignatureAlgorithm::EcdsaSha256, b"b", &signature));
        assert!(!public.verify(SignatureAlgorithm::RsaSha256, b"a", &signature));
        assert!(!other.public().verify(SignatureAlgorithm::EcdsaSha256, b"a", &signature));
        let again = PrivateKey::from_pkcs8(one.expose_pkcs8().unwrap()).unwrap();
        assert_eq!(again.public(), one.public());
    }
}
