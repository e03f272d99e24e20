//! The volume signature catalogue of a template disk (`.vsc`): what its maker signed, and the hash of every block.
//!
//! Layout (the project's own); numbers are little-endian, a field is a u32 length and that many bytes:
//!
//! | bytes | content |
//! | --- | --- |
//! | 8 | `HGSVSC01` |
//! | field | name of the template, UTF-8, 1 to 128 bytes, no control characters |
//! | 4 x u32 | version: major, minor, build, revision |
//! | u64 | length of the volume in bytes, at least 1 |
//! | 32 | root: SHA-256 of `HGS-VSC-BLOCKS`, a zero byte and the hashes below |
//! | field | certificate of the signer, X.509 DER |
//! | field | signature over `HGS-VSC-SIGNATURE`, a zero byte and all of the above: RSASSA-PKCS1-v1_5 or ECDSA P-256 (r, s), SHA-256 |
//! | n x 32 | SHA-256 of each block of 65,536 bytes; the last block may be shorter |
//!
//! [`Catalogue`] is what a file says, [`SignedCatalogue`] one whose signature holds. Whether the signer is trusted is
//! for the owner of a VM to say ([`super::template`] has no opinion). Dates of the certificate are not looked at: a
//! template is used for years after it was signed, and who trusts it has named its certificate.

use std::{fmt, str::FromStr};

use hgs_protocol::{
    crypto::{same, sha256},
    protector::{
        Certificate, KeyPair,
        suite::{PublicKey, SignatureAlgorithm},
    },
};
use serde::{Deserialize, Serialize};

use crate::vm::fields;

/// Bytes of a block; the last one of a volume may be shorter.
pub const BLOCK: usize = 64 << 10;
/// The longest volume of a template, in bytes. A VM's disk has room for it and for the files of its owner.
pub const LARGEST_VOLUME: u64 = 3 << 30;
/// The largest catalogue, in bytes.
pub const LARGEST_CATALOGUE: usize = 2 << 20;

const MAGIC: &[u8; 8] = b"HGSVSC01";
const LONGEST_NAME: usize = 128;
const BLOCKS_LABEL: &[u8] = b"HGS-VSC-BLOCKS\0";
const SIGNATURE_LABEL: &[u8] = b"HGS-VSC-SIGNATURE\0";

/// What a template is called. Shown to people as it is, so it has no control characters.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TemplateName(String);

/// A template's version; later ones compare greater.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version(pub [u32; 4]);

/// A text is no name or no version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// No name.
    #[error("the name of a template has 1 to {LONGEST_NAME} bytes and no control characters")]
    Name,
    /// No version.
    #[error("{0:?} is no version: give two to four numbers, such as 1.0.0.0")]
    Version(String),
}

/// What identifies a template: everything that its signature says but for the signer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The name.
    pub name: TemplateName,
    /// The version.
    pub version: Version,
    /// Length of the volume in bytes.
    pub length: u64,
    /// Stands for the hashes of all blocks.
    pub root: [u8; 32],
}

/// Why something is no catalogue, or not its signer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CatalogueError {
    /// Not the format above, or cut short.
    #[error("it is no volume signature catalogue")]
    Format,
    /// More than [`LARGEST_CATALOGUE`].
    #[error("the volume signature catalogue has more than {LARGEST_CATALOGUE} bytes")]
    TooLarge,
    /// More than [`LARGEST_VOLUME`], or nothing.
    #[error("a template's volume has 1 to {LARGEST_VOLUME} bytes")]
    Volume,
    /// The certificate is none.
    #[error("the signer's certificate in the volume signature catalogue is none that can be used")]
    Certificate,
    /// The hashes do not give the root.
    #[error("the hashes in the volume signature catalogue are not those that were signed: it was changed")]
    Hashes,
    /// The signature does not hold.
    #[error("the signature of the volume signature catalogue does not hold: it was changed")]
    Signature,
    /// The signer's private key refused.
    #[error("the signing key refused to sign")]
    Refused,
}

/// A catalogue as its bytes say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Catalogue {
    identity: Identity,
    signer: Certificate,
    signature: Vec<u8>,
    hashes: Vec<[u8; 32]>,
}

/// A catalogue whose hashes and signature hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SignedCatalogue(Catalogue);

impl Catalogue {
    /// Whether a file begins as a catalogue does.
    pub fn begins(bytes: &[u8]) -> bool {
        bytes.starts_with(MAGIC)
    }

    /// Reads a whole catalogue; bytes behind it are refused.
    pub fn parse(bytes: &[u8]) -> Result<Catalogue, CatalogueError> {
        if bytes.len() > LARGEST_CATALOGUE {
            return Err(CatalogueError::TooLarge);
        }
        let rest = &mut &*bytes;
        fn parts<'a>(rest: &mut &'a [u8]) -> Option<(Identity, &'a [u8], Vec<u8>)> {
            let magic = fields::take_array::<8>(rest)?;
            let name = std::str::from_utf8(fields::take(rest)?).ok()?;
            let name = TemplateName::try_from(name.to_owned()).ok()?;
            let version = Version::take(rest)?;
            let length = fields::take_u64(rest)?;
            let root = fields::take_array(rest)?;
            let certificate = fields::take(rest)?;
            let signature = fields::take(rest)?.to_vec();
            let identity = Identity {
                name,
                version,
                length,
                root,
            };
            (magic == *MAGIC).then_some((identity, certificate, signature))
        }
        let (identity, certificate, signature) = parts(rest).ok_or(CatalogueError::Format)?;
        let blocks = blocks_of(identity.length)?;
        let (hashes, cut) = rest.as_chunks::<32>();
        if !cut.is_empty() || u64::try_from(hashes.len()) != Ok(blocks) {
            return Err(CatalogueError::Format);
        }
        Ok(Catalogue {
            identity,
            signer: Certificate::parse(certificate).map_err(|_| CatalogueError::Certificate)?,
            signature,
            hashes: hashes.to_vec(),
        })
    }

    /// Checks that the signer signed these very hashes.
    pub fn verify(self) -> Result<SignedCatalogue, CatalogueError> {
        if !same(&root(&self.hashes), &self.identity.root) {
            return Err(CatalogueError::Hashes);
        }
        let key = self.signer.public_key();
        let holds = key.verify(algorithm(key), &self.signed(), &self.signature);
        holds.then_some(SignedCatalogue(self)).ok_or(CatalogueError::Signature)
    }

    fn signed(&self) -> Vec<u8> {
        [SIGNATURE_LABEL, &self.head()].concat()
    }

    fn head(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        fields::put(&mut out, self.identity.name.0.as_bytes());
        self.identity.version.write(&mut out);
        out.extend_from_slice(&self.identity.length.to_le_bytes());
        out.extend_from_slice(&self.identity.root);
        fields::put(&mut out, self.signer.der());
        out
    }
}

impl SignedCatalogue {
    /// Signs the hashes of a volume of `length` bytes.
    pub fn sign(
        name: TemplateName,
        version: Version,
        length: u64,
        hashes: Vec<[u8; 32]>,
        signer: &KeyPair,
    ) -> Result<SignedCatalogue, CatalogueError> {
        if u64::try_from(hashes.len()) != Ok(blocks_of(length)?) {
            return Err(CatalogueError::Format);
        }
        let mut catalogue = Catalogue {
            identity: Identity {
                name,
                version,
                length,
                root: root(&hashes),
            },
            signer: signer.certificate().clone(),
            signature: Vec::new(),
            hashes,
        };
        let signature = signer.sign(&catalogue.signed());
        catalogue.signature = signature.map_err(|_| CatalogueError::Refused)?;
        Ok(SignedCatalogue(catalogue))
    }

    /// The bytes of the file.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.0.head();
        fields::put(&mut out, &self.0.signature);
        out.extend_from_slice(self.0.hashes.as_flattened());
        out
    }

    /// What was signed.
    pub fn identity(&self) -> &Identity {
        &self.0.identity
    }

    /// Who signed it.
    pub fn signer(&self) -> &Certificate {
        &self.0.signer
    }

    /// The number of blocks.
    pub fn blocks(&self) -> usize {
        self.0.hashes.len()
    }

    /// Whether `bytes` are the block at `position`, as it was signed.
    pub fn matches(&self, position: usize, bytes: &[u8]) -> bool {
        self.0.hashes.get(position).is_some_and(|hash| *hash == sha256(bytes))
    }
}

impl TemplateName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for TemplateName {
    type Error = IdentityError;
    fn try_from(text: String) -> Result<TemplateName, IdentityError> {
        let good = (1..=LONGEST_NAME).contains(&text.len()) && !text.chars().any(char::is_control);
        good.then_some(TemplateName(text)).ok_or(IdentityError::Name)
    }
}

impl FromStr for TemplateName {
    type Err = IdentityError;
    fn from_str(text: &str) -> Result<TemplateName, IdentityError> {
        TemplateName::try_from(text.to_owned())
    }
}

impl From<TemplateName> for String {
    fn from(name: TemplateName) -> String {
        name.0
    }
}

impl fmt::Display for TemplateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Version {
    /// Four u32, little-endian.
    pub(super) fn write(self, out: &mut Vec<u8>) {
        for part in self.0 {
            out.extend_from_slice(&part.to_le_bytes());
        }
    }

    pub(super) fn take(rest: &mut &[u8]) -> Option<Version> {
        let mut parts = [0; 4];
        for part in &mut parts {
            *part = fields::take_u32(rest)?;
        }
        Some(Version(parts))
    }
}

impl TryFrom<String> for Version {
    type Error = IdentityError;
    fn try_from(text: String) -> Result<Version, IdentityError> {
        let number = |part: &str| part.chars().all(|c| c.is_ascii_digit()).then(|| part.parse().ok())?;
        let numbers: Option<Vec<u32>> = text.split('.').map(number).collect();
        let version = match numbers.as_deref() {
            Some(&[major, minor]) => [major, minor, 0, 0],
            Some(&[major, minor, build]) => [major, minor, build, 0],
            Some(&[major, minor, build, revision]) => [major, minor, build, revision],
            _ => return Err(IdentityError::Version(text.chars().take(60).collect())),
        };
        Ok(Version(version))
    }
}

impl FromStr for Version {
    type Err = IdentityError;
    fn from_str(text: &str) -> Result<Version, IdentityError> {
        Version::try_from(text.to_owned())
    }
}

impl From<Version> for String {
    fn from(version: Version) -> String {
        version.to_string()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, build, revision] = self.0;
        write!(f, "{major}.{minor}.{build}.{revision}")
    }
}

/// How a certificate's key signs here.
pub(super) fn algorithm(key: &PublicKey) -> SignatureAlgorithm {
    match key {
        PublicKey::Rsa(_) => SignatureAlgorithm::RsaSha256,
        PublicKey::P256(_) => SignatureAlgorithm::EcdsaSha256,
    }
}

fn root(hashes: &[[u8; 32]]) -> [u8; 32] {
    sha256(&[BLOCKS_LABEL, hashes.as_flattened()].concat())
}

fn blocks_of(length: u64) -> Result<u64, CatalogueError> {
    match length {
        1..=LARGEST_VOLUME => Ok(length.div_ceil(BLOCK as u64)),
        _ => Err(CatalogueError::Volume),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hgs_protocol::{
        env::{SeededRandom, UnixTime},
        protector::{KeyPurpose, suite::Suite},
    };
    use proptest::prelude::*;

    fn signer(suite: Suite) -> KeyPair {
        signer_of(suite, 1)
    }

    fn signer_of(suite: Suite, seed: u64) -> KeyPair {
        let rng = &mut SeededRandom::new(seed);
        KeyPair::generate(suite, KeyPurpose::Signing, "maker", UnixTime(1_800_000_000), rng).unwrap()
    }

    fn signed(signer: &KeyPair, blocks: &[&[u8]]) -> SignedCatalogue {
        let length: usize = blocks.iter().map(|block| block.len()).sum();
        let hashes = blocks.iter().map(|block| sha256(block)).collect();
        let name = "Server".parse().unwrap();
        SignedCatalogue::sign(name, Version([1, 2, 3, 4]), length as u64, hashes, signer).unwrap()
    }

    #[test]
    fn a_catalogue_survives_its_file_and_any_change_is_noticed() {
        for suite in [Suite::Rsa, Suite::P256] {
            let catalogue = signed(&signer(suite), &[&[1; BLOCK], &[2; BLOCK], b"end"]);
            let bytes = catalogue.encode();
            assert_eq!(Catalogue::parse(&bytes).unwrap().verify().unwrap(), catalogue);
            assert!(catalogue.matches(0, &[1; BLOCK]) && catalogue.matches(2, b"end"));
            assert!(!catalogue.matches(1, &[1; BLOCK]) && !catalogue.matches(3, b"end"));
            for at in 0..bytes.len() {
                let mut bad = bytes.clone();
                bad[at] ^= 1;
                let read = Catalogue::parse(&bad).and_then(Catalogue::verify);
                assert!(read.is_err(), "byte {at}");
                assert!(Catalogue::parse(&bytes[..at]).is_err(), "cut at {at}");
            }
            assert_eq!(
                Catalogue::parse(&[bytes, vec![0]].concat()),
                Err(CatalogueError::Format)
            );
        }
    }

    #[test]
    fn another_signer_is_another_template() {
        let (one, two) = (signer_of(Suite::P256, 1), signer_of(Suite::P256, 2));
        let (mine, other) = (signed(&one, &[b"x"]), signed(&two, &[b"x"]));
        assert_eq!(mine.identity(), other.identity());
        let swapped = Catalogue {
            signer: two.certificate().clone(),
            ..mine.0
        };
        assert_eq!(swapped.verify(), Err(CatalogueError::Signature));
        assert_eq!(Catalogue::parse(&other.encode()).unwrap().verify(), Ok(other));
    }

    #[test]
    fn versions_are_compared_number_by_number() {
        let version = |text: &str| text.parse::<Version>();
        assert_eq!(version("1.2").unwrap(), version("1.2.0.0").unwrap());
        assert!(version("1.10").unwrap() > version("1.9.9").unwrap());
        assert_eq!(version("1.2.3.4").unwrap().to_string(), "1.2.3.4");
        for bad in ["", "1", "1.", "1.a", "1.+2", "1.2.3.4.5", "1.4294967296", "1. 2"] {
            assert!(version(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "a\nb", &"a".repeat(129)] {
            assert!(bad.parse::<TemplateName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn volumes_have_their_limits() {
        assert_eq!(blocks_of(0), Err(CatalogueError::Volume));
        assert_eq!(blocks_of(LARGEST_VOLUME + 1), Err(CatalogueError::Volume));
        let most = blocks_of(LARGEST_VOLUME).unwrap();
        assert!(
            most * 32 + (64 << 10) < LARGEST_CATALOGUE as u64,
            "the largest volume's fits"
        );
        let pair = signer(Suite::P256);
        let miscounted = SignedCatalogue::sign("x".parse().unwrap(), Version([0; 4]), 1, Vec::new(), &pair);
        assert_eq!(miscounted, Err(CatalogueError::Format));
        let long = vec![0; LARGEST_CATALOGUE + 1];
        assert_eq!(Catalogue::parse(&long), Err(CatalogueError::TooLarge));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes: Vec<u8>, keep in 0_usize..80) {
            let _ = Catalogue::parse(&bytes).and_then(Catalogue::verify);
            let good = signed(&signer(Suite::P256), &[b"x"]).encode();
            let spliced = [&good[..keep.min(good.len())], &bytes].concat();
            if let Ok(read) = Catalogue::parse(&spliced) {
                prop_assert!(read.verify().is_err() || spliced == good);
            }
        }

        #[test]
        fn what_is_read_is_written_again(version: [u32; 4], content in proptest::collection::vec(any::<u8>(), 1..300)) {
            let pair = signer(Suite::P256);
            let hashes = vec![sha256(&content)];
            let length = content.len() as u64;
            let made = SignedCatalogue::sign("n".parse().unwrap(), Version(version), length, hashes, &pair).unwrap();
            let again = Catalogue::parse(&made.encode()).unwrap().verify().unwrap();
            prop_assert_eq!(again.encode(), made.encode());
            prop_assert_eq!(again.identity().version, Version(version));
        }
    }
}
