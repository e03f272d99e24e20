//! Our keys in the form that the certificate builder takes. Decides nothing.

use crate::{crypto::PublicKey, protector::suite::PrivateKey};

/// The key that a certificate is about.
pub(crate) struct SubjectKey {
    bits: Vec<u8>,
    algorithm: &'static rcgen::SignatureAlgorithm,
}

impl SubjectKey {
    pub(crate) fn new(key: &PublicKey) -> SubjectKey {
        SubjectKey {
            bits: key.key_bits(),
            algorithm: match key {
                PublicKey::Rsa(_) => &rcgen::PKCS_RSA_SHA256,
                PublicKey::P256(_) => &rcgen::PKCS_ECDSA_P256_SHA256,
            },
        }
    }
}

impl rcgen::PublicKeyData for SubjectKey {
    fn der_bytes(&self) -> &[u8] {
        &self.bits
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.algorithm
    }
}

/// The key that signs a certificate.
pub(crate) struct CertificateSigner<'k> {
    public: SubjectKey,
    key: &'k PrivateKey,
}

impl CertificateSigner<'_> {
    pub(crate) fn new(key: &PrivateKey) -> CertificateSigner<'_> {
        CertificateSigner {
            public: SubjectKey::new(&key.public()),
            key,
        }
    }
}

impl rcgen::PublicKeyData for CertificateSigner<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.public.der_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.public.algorithm()
    }
}

impl rcgen::SigningKey for CertificateSigner<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.key
            .sign_certificate(message)
            .map_err(|_| rcgen::Error::RemoteKeyError)
    }
}
