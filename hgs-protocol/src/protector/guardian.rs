//! Guardians: a named pair of a signing and an encryption certificate (MS-KPS 2.2.2.6). With
//! private keys it can own protectors or serve as a key protection service; with public parts it
//! is what an owner authorises. Certificate dates, names and chains are not examined: trust is in
//! the wrapping chain and in the thumbprints that a person compares.

use std::time::Duration;

use rcgen::{CertificateParams, DnType, IsCa, KeyUsagePurpose, SerialNumber};
use sha1::{Digest, Sha1};
use x509_cert::der::{Decode, Encode};

use super::{
    suite::{PrivateKey, PublicKey, SignatureAlgorithm, Suite},
    token::TokenKey,
};
use crate::{
    certify::CertificateSigner,
    crypto::{CryptoError, same, sha256},
    env::{Random, UnixTime},
    secret::Secret32,
};

/// Why a certificate or key pair was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuardianError {
    /// Not one X.509 certificate in DER of at most 16 KiB.
    #[error("not an X.509 certificate in DER")]
    Certificate,
    /// The certificate's key is of no suite that this build knows, or too small.
    #[error("the certificate's key is neither RSA of 2048 to 4096 bits nor P-256")]
    Key,
    /// Private key and certificate do not belong together.
    #[error("the private key does not belong to the certificate")]
    Mismatch,
    /// The library refused to make a key, a certificate or a signature.
    #[error("the key or certificate could not be made")]
    Refused,
    /// The signature over the encryption certificate is not by the signing certificate's key.
    #[error("the encryption certificate is not signed by the signing certificate's key")]
    EncryptionCertificateSignature,
}

/// A certificate as this protocol uses one: its exact bytes and its public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    der: Vec<u8>,
    key: PublicKey,
}

impl Certificate {
    /// Reads one DER certificate; trailing bytes are refused.
    pub fn parse(der: &[u8]) -> Result<Certificate, GuardianError> {
        if der.len() > MAX_CERTIFICATE {
            return Err(GuardianError::Certificate);
        }
        let certificate = x509_cert::Certificate::from_der(der).map_err(|_| GuardianError::Certificate)?;
        let spki = certificate.tbs_certificate.subject_public_key_info.to_der();
        let key =
            PublicKey::from_spki_der(&spki.map_err(|_| GuardianError::Certificate)?).map_err(|_| GuardianError::Key)?;
        Ok(Certificate { der: der.to_vec(), key })
    }

    /// The exact bytes, which are what signatures cover.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The public key.
    pub fn public_key(&self) -> &PublicKey {
        &self.key
    }

    /// SHA-1 of the DER in upper-case hex, the thumbprint that Windows tools show.
    pub fn thumbprint(&self) -> String {
        hex::encode_upper(Sha1::digest(&self.der))
    }

    /// SHA-256 of the DER.
    pub fn sha256(&self) -> [u8; 32] {
        sha256(&self.der)
    }
}

/// A certificate with its private key. Has no `Debug` and no `Clone`.
pub struct KeyPair {
    certificate: Certificate,
    private: PrivateKey,
}

impl KeyPair {
    /// A new self-signed signing certificate of suite A (RSA-2048, KeyUsage digitalSignature).
    pub fn generate_signing(name: &str, now: UnixTime, rng: &mut dyn Random) -> Result<KeyPair, GuardianError> {
        KeyPair::generate(Suite::Rsa, KeyPurpose::Signing, name, now, rng)
    }

    /// A new self-signed encryption certificate of suite A (RSA-2048, KeyUsage keyEncipherment and
    /// dataEncipherment).
    pub fn generate_encryption(name: &str, now: UnixTime, rng: &mut dyn Random) -> Result<KeyPair, GuardianError> {
        KeyPair::generate(Suite::Rsa, KeyPurpose::Encryption, name, now, rng)
    }

    /// A pair read from storage; refuses a key that is not the certificate's.
    pub fn from_parts(pkcs8: &[u8], certificate_der: &[u8]) -> Result<KeyPair, GuardianError> {
        let certificate = Certificate::parse(certificate_der)?;
        let private = PrivateKey::from_pkcs8(pkcs8).map_err(|_| GuardianError::Key)?;
        if private.public() != certificate.key {
            return Err(GuardianError::Mismatch);
        }
        Ok(KeyPair { certificate, private })
    }

    /// The certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// A pair whose private key stays in a token; refuses a key that is not the certificate's.
    pub fn from_token(key: Box<dyn TokenKey>, certificate_der: &[u8]) -> Result<KeyPair, GuardianError> {
        let certificate = Certificate::parse(certificate_der)?;
        let private = PrivateKey::Token(key);
        if private.public() != certificate.key {
            return Err(GuardianError::Mismatch);
        }
        Ok(KeyPair { certificate, private })
    }

    /// A self-signed certificate over a key that is in a token already.
    pub fn certify_token(
        key: Box<dyn TokenKey>,
        name: &str,
        purpose: KeyPurpose,
        now: UnixTime,
        rng: &mut dyn Random,
    ) -> Result<KeyPair, GuardianError> {
        KeyPair::certify(PrivateKey::Token(key), name, purpose.usage(Suite::Rsa), now, rng)
    }

    /// PKCS#8 DER of the private key, for sealing at rest and nothing else; none for a key in a token.
    pub fn expose_pkcs8(&self) -> Option<&[u8]> {
        self.private.expose_pkcs8()
    }

    /// Opens a 32-byte key that was encrypted to the certificate.
    pub fn decrypt_key(&self, encrypted: &[u8]) -> Result<Secret32, CryptoError> {
        self.private.decrypt_key(encrypted)
    }

    pub(super) fn private(&self) -> &PrivateKey {
        &self.private
    }

    /// The algorithm of [`KeyPair::sign`].
    pub fn signature_algorithm(&self) -> SignatureAlgorithm {
        self.private.signature_algorithm()
    }

    /// Signs `message` with the private key.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, CryptoError> {
        self.private.sign(message)
    }

    /// A new self-signed certificate of that suite for that purpose, valid for ten years from `now`.
    pub fn generate(
        suite: Suite,
        purpose: KeyPurpose,
        name: &str,
        now: UnixTime,
        rng: &mut dyn Random,
    ) -> Result<KeyPair, GuardianError> {
        let key = PrivateKey::generate(suite, rng).map_err(|_| GuardianError::Refused)?;
        KeyPair::certify(key, name, purpose.usage(suite), now, rng)
    }

    fn certify(
        key: PrivateKey,
        name: &str,
        usage: &[KeyUsagePurpose],
        now: UnixTime,
        rng: &mut dyn Random,
    ) -> Result<KeyPair, GuardianError> {
        let mut params = CertificateParams::default();
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::CommonName, name);
        let seconds = |t: UnixTime| Duration::from_secs(u64::try_from(t.0).unwrap_or_default());
        params.not_before = rcgen::date_time_ymd(1970, 1, 1) + seconds(now.plus_seconds(-300));
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + seconds(now.plus_seconds(LIFETIME_SECONDS));
        let mut serial: [u8; 16] = rng.bytes();
        // Positive and without leading zeros, so that the DER integer has one form.
        if let Some(first) = serial.first_mut() {
            *first = (*first & 0x7f) | 0x40;
        }
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = usage.to_vec();
        let certificate = params
            .self_signed(&CertificateSigner::new(&key))
            .map_err(|_| GuardianError::Refused)?;
        Ok(KeyPair {
            certificate: Certificate::parse(certificate.der())?,
            private: key,
        })
    }
}

/// What a certificate is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyPurpose {
    /// Signatures.
    Signing,
    /// Transport keys.
    Encryption,
}

impl KeyPurpose {
    fn usage(self, suite: Suite) -> &'static [KeyUsagePurpose] {
        match (self, suite) {
            (KeyPurpose::Signing, _) => &[KeyUsagePurpose::DigitalSignature],
            (KeyPurpose::Encryption, Suite::Rsa) => {
                &[KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::DataEncipherment]
            }
            (KeyPurpose::Encryption, Suite::P256) => &[KeyUsagePurpose::KeyAgreement],
        }
    }
}

/// A guardian with its private keys: an owner, or the key protection service itself.
///
/// The first pair of each kind is the primary one; others still open and sign old protectors.
pub struct GuardianKeys {
    name: String,
    signing: Vec<KeyPair>,
    encryption: Vec<KeyPair>,
}

impl GuardianKeys {
    /// A new guardian with two self-signed certificates, valid for ten years from `now`.
    pub fn generate(name: &str, now: UnixTime, rng: &mut dyn Random) -> Result<GuardianKeys, GuardianError> {
        Ok(GuardianKeys {
            name: name.to_owned(),
            signing: vec![KeyPair::generate_signing(&format!("{name} Signing"), now, rng)?],
            encryption: vec![KeyPair::generate_encryption(&format!("{name} Encryption"), now, rng)?],
        })
    }

    /// As [`GuardianKeys::generate`], with keys of suite B (P-256; KeyUsage digitalSignature and
    /// keyAgreement).
    pub fn generate_p256(name: &str, now: UnixTime, rng: &mut dyn Random) -> Result<GuardianKeys, GuardianError> {
        let mut make =
            |kind: &str, purpose| KeyPair::generate(Suite::P256, purpose, &format!("{name} {kind}"), now, rng);
        Ok(GuardianKeys {
            name: name.to_owned(),
            signing: vec![make("Signing", KeyPurpose::Signing)?],
            encryption: vec![make("Encryption", KeyPurpose::Encryption)?],
        })
    }

    /// From stored pairs; `signing` and `encryption` become the primary ones.
    pub fn from_pairs(name: &str, signing: KeyPair, encryption: KeyPair) -> GuardianKeys {
        GuardianKeys {
            name: name.to_owned(),
            signing: vec![signing],
            encryption: vec![encryption],
        }
    }

    /// From lists whose first members are the primary pairs; a list may be empty, and then nothing can be
    /// signed or opened.
    pub fn from_lists(name: &str, signing: Vec<KeyPair>, encryption: Vec<KeyPair>) -> GuardianKeys {
        GuardianKeys {
            name: name.to_owned(),
            signing,
            encryption,
        }
    }

    /// Adds a signing pair that is not primary.
    pub fn add_signing(&mut self, pair: KeyPair) {
        self.signing.push(pair);
    }

    /// The guardian's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All signing pairs, primary first.
    pub fn signing(&self) -> &[KeyPair] {
        &self.signing
    }

    /// All encryption pairs, primary first.
    pub fn encryption(&self) -> &[KeyPair] {
        &self.encryption
    }

    pub(super) fn primary(&self) -> Result<(&KeyPair, &KeyPair), GuardianError> {
        match (self.signing.first(), self.encryption.first()) {
            (Some(signing), Some(encryption)) => Ok((signing, encryption)),
            _ => Err(GuardianError::Refused),
        }
    }

    pub(super) fn signing_pair(&self, certificate: &[u8]) -> Option<&KeyPair> {
        self.signing.iter().find(|p| same(p.certificate.der(), certificate))
    }

    pub(super) fn encryption_pair(&self, certificate: &[u8]) -> Option<&KeyPair> {
        self.encryption.iter().find(|p| same(p.certificate.der(), certificate))
    }

    /// The public half, of the primary pairs, as its metadata would say.
    pub fn guardian(&self) -> Result<Guardian, GuardianError> {
        let (signing, encryption) = self.primary()?;
        let signature = signing
            .sign(encryption.certificate.der())
            .map_err(|_| GuardianError::Refused)?;
        Guardian::new(
            &self.name,
            signing.certificate.clone(),
            encryption.certificate.clone(),
            signing.signature_algorithm(),
            signature,
        )
    }
}

/// A guardian's public certificates, the one signed by the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guardian {
    name: String,
    signing: Certificate,
    encryption: Certificate,
    algorithm: SignatureAlgorithm,
    encryption_signature: Vec<u8>,
}

impl Guardian {
    pub(super) fn new(
        name: &str,
        signing: Certificate,
        encryption: Certificate,
        algorithm: SignatureAlgorithm,
        encryption_signature: Vec<u8>,
    ) -> Result<Guardian, GuardianError> {
        if !signing.key.verify(algorithm, encryption.der(), &encryption_signature) {
            return Err(GuardianError::EncryptionCertificateSignature);
        }
        Ok(Guardian {
            name: name.to_owned(),
            signing,
            encryption,
            algorithm,
            encryption_signature,
        })
    }

    /// The name given to it here.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The certificate whose key signs for this guardian.
    pub fn signing(&self) -> &Certificate {
        &self.signing
    }

    /// The certificate to whose key transport keys are encrypted.
    pub fn encryption(&self) -> &Certificate {
        &self.encryption
    }

    pub(super) fn encryption_signature(&self) -> (SignatureAlgorithm, &[u8]) {
        (self.algorithm, &self.encryption_signature)
    }
}

/// Ten years: protectors outlive hosts, and nothing here enforces the date.
const LIFETIME_SECONDS: i64 = 3650 * 24 * 3600;
/// A certificate of RSA-4096 with long names stays far below.
const MAX_CERTIFICATE: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::SeededRandom;

    #[test]
    fn a_pair_survives_storage_and_refuses_a_foreign_key() {
        let mut rng = SeededRandom::new(1);
        let keys = GuardianKeys::generate("Owner", UnixTime(1_800_000_000), &mut rng).unwrap();
        let (signing, encryption) = keys.primary().unwrap();
        let again = KeyPair::from_parts(signing.expose_pkcs8().unwrap(), signing.certificate().der()).unwrap();
        assert_eq!(again.certificate(), signing.certificate());
        assert_eq!(
            KeyPair::from_parts(signing.expose_pkcs8().unwrap(), encryption.certificate().der()).err(),
            Some(GuardianError::Mismatch)
        );
        let mut longer = signing.certificate().der().to_vec();
        longer.push(0);
        assert_eq!(Certificate::parse(&longer), Err(GuardianError::Certificate));
        assert_eq!(signing.certificate().thumbprint().len(), 40);
    }

    #[test]
    fn the_certificates_say_what_they_are_for() {
        let mut rng = SeededRandom::new(2);
        let keys = GuardianKeys::generate("Owner", UnixTime(1_800_000_000), &mut rng).unwrap();
        let usage = |pair: &KeyPair| {
            let certificate = x509_cert::Certificate::from_der(pair.certificate().der()).unwrap();
            let (_, usage) = certificate
                .tbs_certificate
                .get::<x509_cert::ext::pkix::KeyUsage>()
                .unwrap()
                .unwrap();
            (
                usage.digital_signature(),
                usage.key_encipherment(),
                usage.data_encipherment(),
            )
        };
        let (signing, encryption) = keys.primary().unwrap();
        assert_eq!(usage(signing), (true, false, false));
        assert_eq!(usage(encryption), (false, true, true));
    }
}
