//! Endorsement keys: the forms in which they come (MS-HGSA 2.2.2.12). A bare key proves nothing; whether a
//! TPM vendor vouches for one is decided by [`crate::ek_chain`].

use hgs_protocol::{crypto::RsaPublicKey, tpm::public::Public, wire::vsm::parse_rsa1};

use crate::ek_chain::ParsedCertificate;

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
        ParsedCertificate::rsa_key_of(der)
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

#[cfg(test)]
mod tests {
    use hgs_protocol::{crypto::RsaPrivateKey, wire::vsm::encode_rsa1};

    use super::*;

    #[test]
    fn two_forms_of_one_key_are_one_key() {
        let key = RsaPrivateKey::generate_2048().unwrap();
        let spki = EndorsementKey::parse(&key.public().spki_der()).unwrap();
        let blob = EndorsementKey::parse(&encode_rsa1(key.public())).unwrap();
        assert_eq!(spki, blob);
        assert_eq!(spki.sha256(), key.public().spki_sha256());
        for bad in [&[][..], &[0x30], b"RSA1", &[0, 4, 0, 1, 0, 11]] {
            assert_eq!(EndorsementKey::parse(bad), Err(EndorsementKeyError::Form));
        }
    }
}
