//! Public areas of TPM objects (TPM2B_PUBLIC, part 2, 12.2) and their names (part 1, 16).
//! Knows RSA keys and sealed data; an ECC key is refused by its algorithm.

use sha2::{Digest, Sha256};

use super::{ALG_AES, ALG_CFB, ALG_KEYEDHASH, ALG_NULL, ALG_RSA, ALG_SHA256, Reader, Sized16, TpmError};
use crate::crypto::RsaPublicKey;

/// TPMA_OBJECT, as far as it is read here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectAttributes(pub u32);

impl ObjectAttributes {
    /// The object never leaves this TPM.
    pub const FIXED_TPM: u32 = 1 << 1;
    /// The object never leaves its parent.
    pub const FIXED_PARENT: u32 = 1 << 4;
    /// The TPM itself drew the secret part.
    pub const SENSITIVE_DATA_ORIGIN: u32 = 1 << 5;
    /// The authorisation value may be used (clear: only the policy).
    pub const USER_WITH_AUTH: u32 = 1 << 6;
    /// Changing the authorisation value and the like is authorised by the policy alone.
    pub const ADMIN_WITH_POLICY: u32 = 1 << 7;
    /// Failures do not count for the dictionary-attack lockout.
    pub const NO_DA: u32 = 1 << 10;
    /// Decrypts only what the TPM's own formats allow.
    pub const RESTRICTED: u32 = 1 << 16;
    /// May decrypt.
    pub const DECRYPT: u32 = 1 << 17;
    /// May sign.
    pub const SIGN: u32 = 1 << 18;

    /// True when all of `bits` are set.
    pub fn has(self, bits: u32) -> bool {
        self.0 & bits == bits
    }
}

/// What kind of object it is, with its public value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicBody {
    /// An RSA key.
    Rsa(RsaPublicKey),
    /// Sealed data or an HMAC key: a digest that identifies it.
    KeyedHash(Vec<u8>),
}

/// A parsed TPMT_PUBLIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Public {
    encoded: Vec<u8>,
    name_algorithm: u16,
    attributes: ObjectAttributes,
    policy: Vec<u8>,
    body: PublicBody,
}

impl Public {
    /// Parses a TPM2B_PUBLIC: u16 size, then the TPMT_PUBLIC; nothing may follow.
    pub fn parse_sized(bytes: &[u8]) -> Result<Public, TpmError> {
        let mut reader = Reader(bytes);
        let inner = reader.sized()?;
        reader.finish()?;
        Public::parse(inner)
    }

    /// Parses a TPMT_PUBLIC; nothing may follow.
    pub fn parse(bytes: &[u8]) -> Result<Public, TpmError> {
        let mut reader = Reader(bytes);
        let kind = reader.u16()?;
        let name_algorithm = reader.u16()?;
        let attributes = ObjectAttributes(reader.u32()?);
        let policy = reader.sized()?.to_vec();
        let body = match kind {
            ALG_RSA => PublicBody::Rsa(read_rsa(&mut reader)?),
            ALG_KEYEDHASH => {
                match reader.u16()? {
                    ALG_NULL => {}
                    other => return Err(TpmError::Algorithm(other)),
                }
                PublicBody::KeyedHash(reader.sized()?.to_vec())
            }
            other => return Err(TpmError::Algorithm(other)),
        };
        reader.finish()?;
        Ok(Public {
            encoded: bytes.to_vec(),
            name_algorithm,
            attributes,
            policy,
            body,
        })
    }

    /// The TPM2B_PUBLIC.
    pub fn encode_sized(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.push_sized(&self.encoded);
        out
    }

    /// The object's attributes.
    pub fn attributes(&self) -> ObjectAttributes {
        self.attributes
    }

    /// The authorisation policy's digest; empty for none.
    pub fn policy(&self) -> &[u8] {
        &self.policy
    }

    /// Kind and public value.
    pub fn body(&self) -> &PublicBody {
        &self.body
    }

    /// The RSA key, if it is one.
    pub fn rsa_key(&self) -> Option<&RsaPublicKey> {
        match &self.body {
            PublicBody::Rsa(key) => Some(key),
            PublicBody::KeyedHash(_) => None,
        }
    }

    /// True for an RSA key with the attributes of an endorsement key and name hash SHA-256:
    /// fixedTPM, fixedParent, sensitiveDataOrigin, restricted, decrypt, not sign. Whether a TPM
    /// really holds it is proved only by a certificate of the TPM's vendor.
    pub fn looks_like_ek(&self) -> bool {
        self.is_fixed_storage_key()
    }

    /// True for an RSA key that a TPM drew itself, that never leaves it, and that does nothing but protect other
    /// objects: what is sealed under any other key, its maker may open outside the TPM.
    pub fn is_fixed_storage_key(&self) -> bool {
        const NEEDED: u32 = ObjectAttributes::FIXED_TPM
            | ObjectAttributes::FIXED_PARENT
            | ObjectAttributes::SENSITIVE_DATA_ORIGIN
            | ObjectAttributes::RESTRICTED
            | ObjectAttributes::DECRYPT;
        self.rsa_key().is_some()
            && self.name_algorithm == ALG_SHA256
            && self.attributes.has(NEEDED)
            && !self.attributes.has(ObjectAttributes::SIGN)
    }

    /// The object's name: name algorithm, then the SHA-256 of the public area. Other name
    /// algorithms are refused.
    pub fn name(&self) -> Result<Vec<u8>, TpmError> {
        match self.name_algorithm {
            ALG_SHA256 => Ok(name_of(&self.encoded)),
            other => Err(TpmError::Algorithm(other)),
        }
    }
}

/// The name of anything whose public area is `encoded` and whose name hash is SHA-256.
pub(super) fn name_of(encoded: &[u8]) -> Vec<u8> {
    let mut out = ALG_SHA256.to_be_bytes().to_vec();
    out.extend(Sha256::digest(encoded));
    out
}

/// The template of the storage root key (TCG TPM v2.0 Provisioning Guidance, 7.5.1): RSA-2048, restricted, AES-128-CFB
/// for its children. The same template under the owner hierarchy always gives the same key, until the TPM is cleared.
pub fn storage_key_template() -> Vec<u8> {
    const ATTRIBUTES: u32 = ObjectAttributes::FIXED_TPM
        | ObjectAttributes::FIXED_PARENT
        | ObjectAttributes::SENSITIVE_DATA_ORIGIN
        | ObjectAttributes::USER_WITH_AUTH
        | ObjectAttributes::NO_DA
        | ObjectAttributes::RESTRICTED
        | ObjectAttributes::DECRYPT;
    storage_template(ATTRIBUTES, &[], &[0; 256])
}

/// The template of the RSA endorsement key (TCG EK Credential Profile, B.3.3, L-1): the same template under the
/// endorsement hierarchy always gives the same key, after TPM2_Clear too.
pub fn endorsement_key_template() -> Vec<u8> {
    const ATTRIBUTES: u32 = ObjectAttributes::FIXED_TPM
        | ObjectAttributes::FIXED_PARENT
        | ObjectAttributes::SENSITIVE_DATA_ORIGIN
        | ObjectAttributes::ADMIN_WITH_POLICY
        | ObjectAttributes::RESTRICTED
        | ObjectAttributes::DECRYPT;
    storage_template(ATTRIBUTES, &POLICY_SECRET_ENDORSEMENT, &[0; 256])
}

/// A TPM2B_PUBLIC of a restricted RSA-2048 key with AES-128-CFB for its children.
pub fn storage_template(attributes: u32, policy: &[u8], unique: &[u8]) -> Vec<u8> {
    let mut inner = Vec::new();
    inner.extend(ALG_RSA.to_be_bytes());
    inner.extend(ALG_SHA256.to_be_bytes());
    inner.extend(attributes.to_be_bytes());
    inner.push_sized(policy);
    for field in [ALG_AES, 128, ALG_CFB, ALG_NULL, 2048] {
        inner.extend(field.to_be_bytes());
    }
    inner.extend(0u32.to_be_bytes());
    inner.push_sized(unique);
    let mut out = Vec::new();
    out.push_sized(&inner);
    out
}

/// TPM2_PolicySecret(TPM_RH_ENDORSEMENT), the profile's PolicyA for SHA-256.
const POLICY_SECRET_ENDORSEMENT: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xB3, 0xF8, 0x1A, 0x90, 0xCC, 0x8D, 0x46, 0xA5, 0xD7, 0x24, 0xFD, 0x52, 0xD7,
    0x6E, 0x06, 0x52, 0x0B, 0x64, 0xF2, 0xA1, 0xDA, 0x1B, 0x33, 0x14, 0x69, 0xAA,
];

/// The template of sealed data that only the policy `policy` opens.
pub fn sealed_data_template(policy: &[u8; 32]) -> Vec<u8> {
    const ATTRIBUTES: u32 = ObjectAttributes::FIXED_TPM | ObjectAttributes::FIXED_PARENT | ObjectAttributes::NO_DA;
    let mut inner = Vec::new();
    inner.extend(ALG_KEYEDHASH.to_be_bytes());
    inner.extend(ALG_SHA256.to_be_bytes());
    inner.extend(ATTRIBUTES.to_be_bytes());
    inner.push_sized(policy);
    inner.extend(ALG_NULL.to_be_bytes());
    inner.push_sized(&[]);
    let mut out = Vec::new();
    out.push_sized(&inner);
    out
}

fn read_rsa(reader: &mut Reader<'_>) -> Result<RsaPublicKey, TpmError> {
    match reader.u16()? {
        ALG_NULL => {}
        _ => {
            reader.u16()?; // key bits
            reader.u16()?; // mode
        }
    }
    match reader.u16()? {
        ALG_NULL => {}
        other => return Err(TpmError::Algorithm(other)),
    }
    let bits = reader.u16()?;
    let exponent = match reader.u32()? {
        0 => 65_537,
        given => given,
    };
    let modulus = reader.sized()?;
    if modulus.len() * 8 != usize::from(bits) {
        return Err(TpmError::Value("an RSA modulus of another length than announced"));
    }
    RsaPublicKey::from_components(modulus, &exponent.to_be_bytes()).map_err(|_| TpmError::Value("an unusable RSA key"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::crypto::RsaPrivateKey;

    /// A TPM2B_PUBLIC as an EK has it, around `key`.
    pub(in crate::tpm) fn ek_public(key: &RsaPublicKey, attributes: u32) -> Vec<u8> {
        let mut inner = Vec::new();
        inner.extend(ALG_RSA.to_be_bytes());
        inner.extend(ALG_SHA256.to_be_bytes());
        inner.extend(attributes.to_be_bytes());
        inner.push_sized(&[7; 32]);
        for field in [ALG_AES, 128, ALG_CFB, ALG_NULL, 2048] {
            inner.extend(field.to_be_bytes());
        }
        inner.extend(0u32.to_be_bytes());
        inner.push_sized(key.modulus());
        let mut out = Vec::new();
        out.push_sized(&inner);
        out
    }

    #[test]
    fn an_ek_is_known_by_its_attributes() {
        let key = RsaPrivateKey::generate_2048().unwrap();
        let bytes = ek_public(key.public(), 0x0003_00B2);
        let public = Public::parse_sized(&bytes).unwrap();
        assert!(public.looks_like_ek());
        assert_eq!(public.rsa_key(), Some(key.public()));
        assert_eq!(public.policy(), [7; 32]);
        assert_eq!(public.encode_sized(), bytes);
        assert_eq!(public.name().unwrap().len(), 34);
        let signing = Public::parse_sized(&ek_public(key.public(), 0x0007_00B2)).unwrap();
        assert!(!signing.looks_like_ek());
        let unrestricted = Public::parse_sized(&ek_public(key.public(), 0x0002_00B2)).unwrap();
        assert!(!unrestricted.looks_like_ek());
    }

    #[test]
    fn every_shortened_or_lengthened_public_area_is_refused() {
        let key = RsaPrivateKey::generate_2048().unwrap();
        let bytes = ek_public(key.public(), 0x0003_00B2);
        for length in 0..bytes.len() {
            assert!(Public::parse_sized(&bytes[..length]).is_err(), "{length}");
        }
        let mut longer = bytes;
        longer.push(0);
        assert_eq!(Public::parse_sized(&longer), Err(TpmError::Trailing));
    }

    #[test]
    fn an_elliptic_key_is_refused_by_name() {
        let bytes = [0x00, 0x23, 0x00, 0x0B, 0, 0, 0, 0, 0, 0];
        assert_eq!(Public::parse(&bytes), Err(TpmError::Algorithm(0x23)));
    }
}
