//! Cryptographic operations in the forms that the protocols use, over `aws-lc-rs` (RSA) and
//! `aes-gcm` (sealed state). No protocol decision is made here.

use aes_gcm::{Aes256Gcm, KeyInit, aead::AeadInPlace};
use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    key_wrap::{AES_256, AesKek, KeyWrap},
    rand::SystemRandom,
    rsa::{
        KeySize, OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepAlgorithm, OaepPrivateDecryptingKey,
        OaepPublicEncryptingKey, PrivateDecryptingKey, PublicEncryptingKey,
    },
    signature::{self, KeyPair as _, RsaKeyPair, RsaPublicKeyComponents, UnparsedPublicKey},
};
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use x509_cert::{
    der::{Decode, Encode, asn1::BitString},
    spki::{AlgorithmIdentifierOwned, ObjectIdentifier, SubjectPublicKeyInfoOwned},
};
use zeroize::Zeroizing;

use crate::{env::Random, secret::Secret32};

mod public;

pub use public::PublicKey;

const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const GCM_NONCE: usize = 12;
const GCM_TAG: usize = 16;

/// What went wrong in a cryptographic operation. Says no more than a caller may act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CryptoError {
    /// The key does not parse, is not RSA, or its size is outside 2048..=4096 bits.
    #[error("not an RSA key of 2048 to 4096 bits with an odd exponent of at least 65537")]
    Key,
    /// A ciphertext, tag or wrapped key does not open under this key.
    #[error("the ciphertext does not open under this key")]
    Open,
    /// The library refused to encrypt or sign (a plaintext too long for the key, say).
    #[error("the operation was refused by the cryptographic library")]
    Refused,
}

/// An RSA public key: 2048 to 4096 bits, exponent odd and at least 65537.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct RsaPublicKey {
    modulus: Vec<u8>,
    exponent: Vec<u8>,
}

impl RsaPublicKey {
    /// From big-endian components. Leading zeros are dropped.
    pub fn from_components(modulus: &[u8], exponent: &[u8]) -> Result<RsaPublicKey, CryptoError> {
        let modulus = trim_zeros(modulus).to_vec();
        let exponent = trim_zeros(exponent).to_vec();
        let bits = bit_length(&modulus);
        let odd = |n: &[u8]| n.last().is_some_and(|b| b & 1 == 1);
        let big_enough = exponent.len() > 2 && exponent.len() <= 8 && (exponent.len() > 3 || exponent >= vec![1, 0, 1]);
        if !(2048..=4096).contains(&bits) || !odd(&modulus) || !odd(&exponent) || !big_enough {
            return Err(CryptoError::Key);
        }
        Ok(RsaPublicKey { modulus, exponent })
    }

    /// From a DER SubjectPublicKeyInfo; trailing bytes are refused.
    pub fn from_spki_der(der: &[u8]) -> Result<RsaPublicKey, CryptoError> {
        let spki = SubjectPublicKeyInfoOwned::from_der(der).map_err(|_| CryptoError::Key)?;
        if spki.algorithm.oid != RSA_ENCRYPTION {
            return Err(CryptoError::Key);
        }
        let body = spki.subject_public_key.as_bytes().ok_or(CryptoError::Key)?;
        let parts: Vec<x509_cert::der::asn1::Uint> = Vec::from_der(body).map_err(|_| CryptoError::Key)?;
        match parts.as_slice() {
            [modulus, exponent] => RsaPublicKey::from_components(modulus.as_bytes(), exponent.as_bytes()),
            _ => Err(CryptoError::Key),
        }
    }

    /// The modulus, big-endian, without leading zeros.
    pub fn modulus(&self) -> &[u8] {
        &self.modulus
    }

    /// The public exponent, big-endian, without leading zeros.
    pub fn exponent(&self) -> &[u8] {
        &self.exponent
    }

    /// Length of the modulus in bits.
    pub fn bits(&self) -> usize {
        bit_length(&self.modulus)
    }

    /// PKCS#1 `RSAPublicKey`, DER.
    pub fn pkcs1_der(&self) -> Vec<u8> {
        let part = |bytes: &[u8]| x509_cert::der::asn1::Uint::new(bytes);
        let sequence = part(&self.modulus).and_then(|n| part(&self.exponent).map(|e| vec![n, e]));
        #[expect(clippy::expect_used, reason = "two short integers always encode")]
        sequence.and_then(|s| s.to_der()).expect("an RSA key encodes")
    }

    /// SubjectPublicKeyInfo, DER.
    pub fn spki_der(&self) -> Vec<u8> {
        let spki = BitString::from_bytes(&self.pkcs1_der()).map(|subject_public_key| SubjectPublicKeyInfoOwned {
            algorithm: AlgorithmIdentifierOwned {
                oid: RSA_ENCRYPTION,
                parameters: Some(x509_cert::der::Any::null()),
            },
            subject_public_key,
        });
        #[expect(clippy::expect_used, reason = "a short bit string always encodes")]
        spki.and_then(|s| s.to_der()).expect("an RSA key encodes")
    }

    /// SHA-256 over [`RsaPublicKey::spki_der`]: the registry key of protocol references.
    pub fn spki_sha256(&self) -> [u8; 32] {
        sha256(&self.spki_der())
    }

    /// True when `signature` is a PKCS#1 v1.5 SHA-256 signature of `message` by this key.
    pub fn verify_pkcs1_sha256(&self, message: &[u8], signature: &[u8]) -> bool {
        self.components()
            .verify(&signature::RSA_PKCS1_2048_8192_SHA256, message, signature)
            .is_ok()
    }

    /// True when `signature` is an RSASSA-PSS signature of `message` by this key: SHA-256, MGF1 with
    /// SHA-256, salt of 32 bytes.
    pub fn verify_pss_sha256(&self, message: &[u8], signature: &[u8]) -> bool {
        self.components()
            .verify(&signature::RSA_PSS_2048_8192_SHA256, message, signature)
            .is_ok()
    }

    fn components(&self) -> RsaPublicKeyComponents<&[u8]> {
        RsaPublicKeyComponents {
            n: &self.modulus,
            e: &self.exponent,
        }
    }

    /// RSAES-OAEP, SHA-256 digest and MGF1, with `label` (empty for none).
    pub fn encrypt_oaep_sha256(&self, plaintext: &[u8], label: &[u8]) -> Result<Vec<u8>, CryptoError> {
        self.encrypt_oaep(&OAEP_SHA256_MGF1SHA256, plaintext, label)
    }

    /// RSAES-OAEP, SHA-1 digest and MGF1, no label: for a peer that asks for it where that is allowed.
    pub fn encrypt_oaep_sha1(&self, plaintext: &[u8]) -> Result<Vec<u8>, CryptoError> {
        self.encrypt_oaep(&OAEP_SHA1_MGF1SHA1, plaintext, b"")
    }

    fn encrypt_oaep(
        &self,
        algorithm: &'static OaepAlgorithm,
        plaintext: &[u8],
        label: &[u8],
    ) -> Result<Vec<u8>, CryptoError> {
        let key = PublicEncryptingKey::from_der(&self.spki_der()).map_err(|_| CryptoError::Key)?;
        let key = OaepPublicEncryptingKey::new(key).map_err(|_| CryptoError::Key)?;
        let mut out = vec![0; key.ciphertext_size()];
        let label = (!label.is_empty()).then_some(label);
        let written = key
            .encrypt(algorithm, plaintext, &mut out, label)
            .map_err(|_| CryptoError::Refused)?
            .len();
        out.truncate(written);
        Ok(out)
    }
}

/// A P-256 public key: a point on the curve, not the identity.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct EcPublicKey {
    point: [u8; 65],
}

impl EcPublicKey {
    /// From big-endian coordinates.
    pub fn from_coordinates(x: &[u8; 32], y: &[u8; 32]) -> Result<EcPublicKey, CryptoError> {
        let mut point = [4; 65];
        let (_, coordinates) = point.split_at_mut(1);
        for (to, from) in coordinates.iter_mut().zip(x.iter().chain(y)) {
            *to = *from;
        }
        EcPublicKey::from_point(&point)
    }

    /// From an uncompressed point (SEC 1), 65 bytes.
    pub fn from_point(point: &[u8]) -> Result<EcPublicKey, CryptoError> {
        let point: [u8; 65] = point.try_into().map_err(|_| CryptoError::Key)?;
        // Refuses what does not lie on the curve.
        p256::PublicKey::from_sec1_bytes(&point).map_err(|_| CryptoError::Key)?;
        Ok(EcPublicKey { point })
    }

    /// From a DER SubjectPublicKeyInfo of the named curve P-256; trailing bytes are refused.
    pub fn from_spki_der(der: &[u8]) -> Result<EcPublicKey, CryptoError> {
        use p256::{elliptic_curve::sec1::ToEncodedPoint as _, pkcs8::DecodePublicKey as _};
        let key = p256::PublicKey::from_public_key_der(der).map_err(|_| CryptoError::Key)?;
        EcPublicKey::from_point(key.to_encoded_point(false).as_bytes())
    }

    /// 4, X, Y: the uncompressed point (SEC 1).
    pub fn point(&self) -> &[u8; 65] {
        &self.point
    }

    /// X then Y, big-endian, 32 bytes each.
    pub fn coordinates(&self) -> ([u8; 32], [u8; 32]) {
        let mut x = [0; 32];
        let mut y = [0; 32];
        let places = x.iter_mut().chain(&mut y);
        for (to, from) in places.zip(self.point.iter().skip(1)) {
            *to = *from;
        }
        (x, y)
    }

    /// SubjectPublicKeyInfo, DER, with the point uncompressed.
    pub fn spki_der(&self) -> Vec<u8> {
        use p256::pkcs8::EncodePublicKey as _;
        #[expect(clippy::expect_used, reason = "the constructors let only points of the curve in")]
        let key = p256::PublicKey::from_sec1_bytes(&self.point).expect("a point on the curve");
        #[expect(clippy::expect_used, reason = "a short bit string always encodes")]
        key.to_public_key_der().expect("a P-256 key encodes").into_vec()
    }

    /// SHA-256 over [`EcPublicKey::spki_der`].
    pub fn spki_sha256(&self) -> [u8; 32] {
        sha256(&self.spki_der())
    }

    /// True when `signature` (r then s, 64 bytes) is an ECDSA SHA-256 signature of `message` by this key.
    pub fn verify_sha256(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, &self.point)
            .verify(message, signature)
            .is_ok()
    }

    /// As [`EcPublicKey::verify_sha256`], for a signature in DER, as certificates carry it.
    pub fn verify_sha256_der(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_ASN1, &self.point)
            .verify(message, signature)
            .is_ok()
    }
}

/// An RSA private key. Has no `Debug`, no `Clone` and no `Serialize`.
pub struct RsaPrivateKey {
    signing: RsaKeyPair,
    decrypting: OaepPrivateDecryptingKey,
    public: RsaPublicKey,
    pkcs8: Zeroizing<Vec<u8>>,
}

impl RsaPrivateKey {
    /// A new 2048-bit key.
    pub fn generate_2048() -> Result<RsaPrivateKey, CryptoError> {
        let key = PrivateDecryptingKey::generate(KeySize::Rsa2048).map_err(|_| CryptoError::Refused)?;
        let der = AsDer::<Pkcs8V1Der<'_>>::as_der(&key).map_err(|_| CryptoError::Refused)?;
        RsaPrivateKey::from_pkcs8(der.as_ref())
    }

    /// From PKCS#8 DER.
    pub fn from_pkcs8(der: &[u8]) -> Result<RsaPrivateKey, CryptoError> {
        let signing = RsaKeyPair::from_pkcs8(der).map_err(|_| CryptoError::Key)?;
        let decrypting = PrivateDecryptingKey::from_pkcs8(der).map_err(|_| CryptoError::Key)?;
        let public = signing.public_key();
        let public = RsaPublicKey::from_components(
            public.modulus().big_endian_without_leading_zero(),
            public.exponent().big_endian_without_leading_zero(),
        )?;
        Ok(RsaPrivateKey {
            signing,
            decrypting: OaepPrivateDecryptingKey::new(decrypting).map_err(|_| CryptoError::Key)?,
            public,
            pkcs8: Zeroizing::new(der.to_vec()),
        })
    }

    /// PKCS#8 DER, for sealing at rest and nothing else.
    pub fn expose_pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The public half.
    pub fn public(&self) -> &RsaPublicKey {
        &self.public
    }

    /// RSASSA-PKCS1-v1_5 with SHA-256.
    pub fn sign_pkcs1_sha256(&self, message: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let mut out = vec![0; self.signing.public_modulus_len()];
        self.signing
            .sign(&signature::RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut out)
            .map_err(|_| CryptoError::Refused)?;
        Ok(out)
    }

    /// RSASSA-PSS with SHA-256 and a salt of 32 bytes.
    pub fn sign_pss_sha256(&self, message: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let mut out = vec![0; self.signing.public_modulus_len()];
        self.signing
            .sign(&signature::RSA_PSS_SHA256, &SystemRandom::new(), message, &mut out)
            .map_err(|_| CryptoError::Refused)?;
        Ok(out)
    }

    /// Opens RSAES-OAEP with SHA-256 and `label` (empty for none).
    pub fn decrypt_oaep_sha256(&self, ciphertext: &[u8], label: &[u8]) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
        self.decrypt_oaep(&OAEP_SHA256_MGF1SHA256, ciphertext, label)
    }

    /// Opens RSAES-OAEP with SHA-1 and no label.
    pub fn decrypt_oaep_sha1(&self, ciphertext: &[u8]) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
        self.decrypt_oaep(&OAEP_SHA1_MGF1SHA1, ciphertext, b"")
    }

    fn decrypt_oaep(
        &self,
        algorithm: &'static OaepAlgorithm,
        ciphertext: &[u8],
        label: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
        let mut out = Zeroizing::new(vec![0; self.decrypting.min_output_size()]);
        let label = (!label.is_empty()).then_some(label);
        let written = self
            .decrypting
            .decrypt(algorithm, ciphertext, &mut out, label)
            .map_err(|_| CryptoError::Open)?
            .len();
        out.truncate(written);
        Ok(out)
    }
}

/// SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// HMAC-SHA-256 over the concatenation of `parts`.
pub fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
    let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(key).expect("HMAC takes any key");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// Constant-time equality; lengths are not secret.
pub fn same(a: &[u8], b: &[u8]) -> bool {
    use subtle::ConstantTimeEq;
    a.ct_eq(b).into()
}

/// HKDF-SHA-256 without salt, 32 bytes, `info` the concatenation of `label`, a zero byte and `context`.
pub fn hkdf_sha256(key: &Secret32, label: &str, context: &[u8]) -> Secret32 {
    let mut out = Zeroizing::new([0; 32]);
    #[expect(clippy::expect_used, reason = "32 bytes are within HKDF's limit")]
    hkdf::Hkdf::<Sha256>::new(None, key.expose())
        .expand_multi_info(&[label.as_bytes(), &[0], context], out.as_mut())
        .expect("32 bytes are within HKDF's limit");
    Secret32::new(*out)
}

/// AES-256-GCM: 12-byte nonce, ciphertext, 16-byte tag, concatenated (XML Encryption 1.1, 5.2.4).
pub fn gcm_seal(key: &Secret32, aad: &[u8], plaintext: &[u8], rng: &mut dyn Random) -> Vec<u8> {
    let nonce: [u8; GCM_NONCE] = rng.bytes();
    let mut out = Vec::with_capacity(GCM_NONCE + plaintext.len() + GCM_TAG);
    out.extend_from_slice(&nonce);
    out.extend_from_slice(plaintext);
    let cipher = Aes256Gcm::new(key.expose().into());
    #[expect(
        clippy::expect_used,
        clippy::indexing_slicing,
        reason = "no plaintext here reaches GCM's limit of 64 GiB"
    )]
    let tag = cipher
        .encrypt_in_place_detached(&nonce.into(), aad, &mut out[GCM_NONCE..])
        .expect("the plaintext is within GCM's limit");
    out.extend_from_slice(&tag);
    out
}

/// Opens what [`gcm_seal`] made.
pub fn gcm_open(key: &Secret32, aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
    let (nonce, rest) = sealed.split_first_chunk::<GCM_NONCE>().ok_or(CryptoError::Open)?;
    let (body, tag) = rest.split_last_chunk::<GCM_TAG>().ok_or(CryptoError::Open)?;
    let mut out = Zeroizing::new(body.to_vec());
    Aes256Gcm::new(key.expose().into())
        .decrypt_in_place_detached(nonce.into(), aad, &mut out, tag.into())
        .map_err(|_| CryptoError::Open)?;
    Ok(out)
}

/// RFC 3394 key wrap of a 32-byte key: 40 bytes.
pub fn kw_wrap(kek: &Secret32, key: &Secret32) -> Result<Vec<u8>, CryptoError> {
    let kek = AesKek::new(&AES_256, kek.expose()).map_err(|_| CryptoError::Key)?;
    let mut out = vec![0; 40];
    let written = kek
        .wrap(key.expose(), &mut out)
        .map_err(|_| CryptoError::Refused)?
        .len();
    out.truncate(written);
    Ok(out)
}

/// Opens what [`kw_wrap`] made.
pub fn kw_unwrap(kek: &Secret32, wrapped: &[u8]) -> Result<Secret32, CryptoError> {
    let kek = AesKek::new(&AES_256, kek.expose()).map_err(|_| CryptoError::Key)?;
    let mut out = Zeroizing::new([0; 40]);
    let key = kek.unwrap(wrapped, out.as_mut()).map_err(|_| CryptoError::Open)?;
    let key: [u8; 32] = (&*key).try_into().map_err(|_| CryptoError::Open)?;
    Ok(Secret32::new(key))
}

fn trim_zeros(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|b| **b == 0).count();
    bytes.get(zeros..).unwrap_or_default()
}

fn bit_length(bytes: &[u8]) -> usize {
    match bytes.first() {
        Some(first) => bytes.len() * 8 - first.leading_zeros() as usize,
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::SeededRandom;

    #[test]
    fn an_rsa_key_survives_its_encodings() {
        let key = RsaPrivateKey::generate_2048().unwrap();
        let again = RsaPrivateKey::from_pkcs8(key.expose_pkcs8()).unwrap();
        assert_eq!(key.public(), again.public());
        let public = RsaPublicKey::from_spki_der(&key.public().spki_der()).unwrap();
        assert_eq!(&public, key.public());
        let mut longer = public.spki_der();
        longer.push(0);
        assert_eq!(RsaPublicKey::from_spki_der(&longer), Err(CryptoError::Key));
    }

    #[test]
    fn oaep_opens_only_with_its_label() {
        let key = RsaPrivateKey::generate_2048().unwrap();
        let sealed = key.public().encrypt_oaep_sha256(b"salt", b"SECRET\0").unwrap();
        assert_eq!(&*key.decrypt_oaep_sha256(&sealed, b"SECRET\0").unwrap(), b"salt");
        assert!(key.decrypt_oaep_sha256(&sealed, b"IDENTITY\0").is_err());
    }

    #[test]
    fn a_signature_is_bound_to_its_message() {
        let key = RsaPrivateKey::generate_2048().unwrap();
        let signature = key.sign_pkcs1_sha256(b"a").unwrap();
        assert!(key.public().verify_pkcs1_sha256(b"a", &signature));
        assert!(!key.public().verify_pkcs1_sha256(b"b", &signature));
    }

    #[test]
    fn a_p256_key_survives_its_encodings_and_verifies_r_then_s() {
        use p256::ecdsa::{Signature, SigningKey, signature::Signer as _};
        let private = SigningKey::from_slice(&[7; 32]).unwrap();
        let point = private.verifying_key().to_encoded_point(false);
        let (x, y) = (*point.x().unwrap(), *point.y().unwrap());
        let key = EcPublicKey::from_coordinates(&x.into(), &y.into()).unwrap();
        assert_eq!(EcPublicKey::from_spki_der(&key.spki_der()), Ok(key));
        assert_eq!(key.coordinates(), (x.into(), y.into()));
        let signature: Signature = private.sign(b"a");
        assert!(key.verify_sha256(b"a", &signature.to_bytes()));
        assert!(!key.verify_sha256(b"b", &signature.to_bytes()));
        assert!(!key.verify_sha256(b"a", signature.to_der().as_bytes()), "not DER");
        assert!(key.verify_sha256_der(b"a", signature.to_der().as_bytes()));
        assert!(!key.verify_sha256_der(b"a", &signature.to_bytes()), "DER only");
        assert_eq!(EcPublicKey::from_coordinates(&[1; 32], &[2; 32]), Err(CryptoError::Key));
        let mut longer = key.spki_der();
        longer.push(0);
        assert_eq!(EcPublicKey::from_spki_der(&longer), Err(CryptoError::Key));
    }

    #[test]
    fn a_pss_signature_is_bound_to_its_message() {
        let key = RsaPrivateKey::generate_2048().unwrap();
        let signature = key.sign_pss_sha256(b"a").unwrap();
        assert!(key.public().verify_pss_sha256(b"a", &signature));
        assert!(!key.public().verify_pss_sha256(b"b", &signature));
        assert!(!key.public().verify_pkcs1_sha256(b"a", &signature));
    }

    #[test]
    fn gcm_and_key_wrap_refuse_any_changed_bit() {
        let key = Secret32::new([7; 32]);
        let sealed = gcm_seal(&key, b"aad", b"text", &mut SeededRandom::new(1));
        assert_eq!(&*gcm_open(&key, b"aad", &sealed).unwrap(), b"text");
        assert!(gcm_open(&key, b"other", &sealed).is_err());
        assert!(gcm_open(&key, b"aad", sealed.get(..20).unwrap()).is_err());
        let wrapped = kw_wrap(&key, &Secret32::new([9; 32])).unwrap();
        assert_eq!(wrapped.len(), 40);
        assert_eq!(kw_unwrap(&key, &wrapped).unwrap().expose(), &[9; 32]);
        let mut bad = wrapped;
        bad[39] ^= 1;
        assert!(kw_unwrap(&key, &bad).is_err());
    }

    #[test]
    fn an_even_or_small_exponent_is_refused() {
        let key = RsaPrivateKey::generate_2048().unwrap();
        let n = key.public().modulus().to_vec();
        assert!(RsaPublicKey::from_components(&n, &[3]).is_err());
        assert!(RsaPublicKey::from_components(&n, &[1, 0, 0]).is_err());
        assert!(RsaPublicKey::from_components(&n, &[1, 0, 1]).is_ok());
        assert!(RsaPublicKey::from_components(n.get(..128).unwrap(), &[1, 0, 1]).is_err());
    }
}
