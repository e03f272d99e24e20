//! Shielding data files (`.pdk`): what an owner gives to a fabric so that it makes VMs of the owner's, and never sees
//! what is in them.
//!
//! Layout (the project's own; that of the product is not published). Numbers are little-endian, a field is a u32 length
//! and that many bytes:
//!
//! | bytes | content |
//! | --- | --- |
//! | 8 | `HGSPDK01` |
//! | 16 | id, random |
//! | 1 | policy: 1 EncryptionSupported, 2 Shielded |
//! | field | key protector: the XML of MS-KPS, its owner the owner of the VMs, its guardians theirs |
//! | field | trusted templates: 1 to 32 fields, each of one [`Qualifier`] |
//! | field | contents: AES-256-GCM (nonce, ciphertext, tag) under HKDF-SHA-256(transport key, `HGS-PDK`, id); additional data: all of the above |
//! | field | signature of the owner's signing certificate over `HGS-PDK-SIGNATURE`, a zero byte and all of the above |
//!
//! Contents: 32 random bytes (seed of the VMs' proof and recovery keys), field answer file, then two fields for each other file: name
//! and content. Policy and templates are to be read without a key, as in the product (Test-ShieldingDataApplicability), and
//! are changed by nobody: the contents do not open then, and the signature does not hold. The signature is there
//! because every guardian of a file could seal other contents under its transport key.
//!
//! [`DataFile`] is what the bytes say, [`SignedDataFile`] one whose protector chains to an owner who signed the
//! file, [`ShieldingData`] one that was opened.

use std::fmt;

use hgs_protocol::{
    crypto::{gcm_open, gcm_seal, hkdf_sha256},
    env::Random,
    protector::{
        Certificate, ChainedProtector, GuardianKeys, KeyProtector, MAX_PROTECTOR, ProtectorError, VerifyError,
    },
    secret::{Secret32, TransportKey},
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{
    catalogue::algorithm,
    qualifier::{MAX_QUALIFIERS, Qualifier},
};
use crate::vm::{VmId, fields, security::Kind};

/// Most bytes of the answer file and the other files together.
pub const LARGEST_CONTENTS: usize = 1 << 20;
/// Most bytes of a shielding data file.
pub const LARGEST_DATA_FILE: usize = MAX_PROTECTOR + 2 * LARGEST_CONTENTS;
/// Most other files.
pub const MAX_FILES: usize = 64;
/// What the answer file is called in the guest.
pub const ANSWER_FILE: &str = "unattend.xml";

const MAGIC: &[u8; 8] = b"HGSPDK01";
const CONTENTS_LABEL: &str = "HGS-PDK";
const SIGNATURE_LABEL: &[u8] = b"HGS-PDK-SIGNATURE\0";
const PROOF_LABEL: &str = "HGS-PDK-PROOF";
const RECOVERY_LABEL: &str = "HGS-PDK-RECOVERY";

/// Names a shielding data file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DataFileId(pub uuid::Uuid);

impl fmt::Display for DataFileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is sealed: no `Debug`, wiped when dropped.
pub struct Contents {
    seed: Secret32,
    answer_file: Zeroizing<Vec<u8>>,
    other_files: Vec<NamedFile>,
}

/// One of the other files.
pub struct NamedFile {
    /// Its name in the guest.
    pub name: FileName,
    /// What is in it.
    pub content: Zeroizing<Vec<u8>>,
}

/// The name of a file: 1 to 255 bytes, no separator, no control character, not that of the answer file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(transparent)]
pub struct FileName(String);

/// Why something is no shielding data file, or is not to be made.
#[derive(Debug, thiserror::Error)]
pub enum DataFileError {
    /// Not the format above, or cut short.
    #[error("it is no shielding data file")]
    Format,
    /// Too long.
    #[error("a shielding data file has at most {LARGEST_DATA_FILE} bytes")]
    TooLarge,
    /// The files are too many, too long or none.
    #[error(
        "the answer file must not be empty, and answer file and other files have at most {LARGEST_CONTENTS} bytes together, in \
         at most {MAX_FILES} other files"
    )]
    Files,
    /// A file's name.
    #[error(
        "{0:?} cannot be the name of another file: give 1 to 255 bytes without / \\ : and control characters, once, and not \
         {ANSWER_FILE}, which is what the answer file is called"
    )]
    Name(String),
    /// No template is trusted, or too many are.
    #[error("a shielding data file trusts 1 to {MAX_QUALIFIERS} templates")]
    Qualifiers,
    /// The key protector does not parse.
    #[error("the key protector in the shielding data file: {0}")]
    Protector(#[from] ProtectorError),
    /// Its signatures do not hold.
    #[error("the key protector in the shielding data file: {0}")]
    Chain(#[from] VerifyError),
    /// The owner's signature does not hold.
    #[error("the shielding data file is not as its owner signed it: it was changed")]
    Signature,
    /// The contents do not open.
    #[error("the contents of the shielding data file do not open under its transport key: it was changed")]
    Sealed,
    /// The owner's key refused.
    #[error("the owner's signing key refused to sign")]
    Refused,
}

/// A shielding data file as its bytes say.
pub struct DataFile {
    id: DataFileId,
    policy: Kind,
    protector: Vec<u8>,
    qualifiers: Vec<Qualifier>,
    /// What stands before the contents, the contents, and what stands before the signature.
    head: Vec<u8>,
    sealed: Vec<u8>,
    signature: Vec<u8>,
}

/// A shielding data file that its owner signed.
pub struct SignedDataFile {
    file: DataFile,
    chained: ChainedProtector,
}

/// An opened shielding data file.
pub struct ShieldingData {
    id: DataFileId,
    policy: Kind,
    qualifiers: Vec<Qualifier>,
    contents: Contents,
}

/// What an owner puts into a new file.
pub struct NewDataFile<'a> {
    /// Its protector, and the transport key inside.
    pub protector: (&'a KeyProtector, &'a TransportKey),
    /// The kind of the VMs.
    pub policy: Kind,
    /// The templates that may be used.
    pub qualifiers: &'a [Qualifier],
    /// The files.
    pub contents: &'a Contents,
}

impl NewDataFile<'_> {
    /// Seals and signs; `owner` must be the owner of the protector. Gives the bytes of the file.
    pub fn seal(&self, owner: &GuardianKeys, rng: &mut dyn Random) -> Result<Vec<u8>, DataFileError> {
        if !(1..=MAX_QUALIFIERS).contains(&self.qualifiers.len()) {
            return Err(DataFileError::Qualifiers);
        }
        let (protector, key) = self.protector;
        let id = DataFileId(uuid::Builder::from_random_bytes(rng.bytes()).into_uuid());
        let mut out = [MAGIC.as_slice(), id.0.as_bytes(), &[policy_byte(self.policy)]].concat();
        fields::put(&mut out, &protector.to_xml());
        let mut trusted = Vec::new();
        for qualifier in self.qualifiers {
            let mut one = Vec::new();
            qualifier.write(&mut one);
            fields::put(&mut trusted, &one);
        }
        fields::put(&mut out, &trusted);
        let sealed = gcm_seal(&contents_key(key, id), &out, &self.contents.encode(), rng);
        fields::put(&mut out, &sealed);
        let signing = owner.signing().first().ok_or(DataFileError::Refused)?;
        let signature = signing.sign(&[SIGNATURE_LABEL, &out].concat());
        fields::put(&mut out, &signature.map_err(|_| DataFileError::Refused)?);
        match out.len() {
            0..=LARGEST_DATA_FILE => Ok(out),
            _ => Err(DataFileError::TooLarge),
        }
    }
}

impl DataFile {
    /// Reads a whole file; bytes behind it are refused.
    pub fn parse(bytes: &[u8]) -> Result<DataFile, DataFileError> {
        if bytes.len() > LARGEST_DATA_FILE {
            return Err(DataFileError::TooLarge);
        }
        let parts = |rest: &mut &[u8]| {
            let magic = fields::take_array::<8>(rest)?;
            let id = DataFileId(uuid::Uuid::from_bytes(fields::take_array(rest)?));
            let policy = policy_of(fields::take_array(rest)?)?;
            let protector = fields::take(rest)?.to_vec();
            let qualifiers = parse_qualifiers(fields::take(rest)?)?;
            let head = bytes.get(..bytes.len().checked_sub(rest.len())?)?.to_vec();
            let sealed = fields::take(rest)?.to_vec();
            let signature = fields::take(rest)?.to_vec();
            (magic == *MAGIC && rest.is_empty()).then_some(DataFile {
                id,
                policy,
                protector,
                qualifiers,
                head,
                sealed,
                signature,
            })
        };
        parts(&mut &*bytes).ok_or(DataFileError::Format)
    }

    /// Its id.
    pub fn id(&self) -> DataFileId {
        self.id
    }

    /// The kind of the VMs that are made with it.
    pub fn policy(&self) -> Kind {
        self.policy
    }

    /// The key protector, XML.
    pub fn protector(&self) -> &[u8] {
        &self.protector
    }

    /// The templates that may be used.
    pub fn qualifiers(&self) -> &[Qualifier] {
        &self.qualifiers
    }

    /// Bytes of the sealed contents.
    pub fn sealed_length(&self) -> usize {
        self.sealed.len()
    }

    /// Checks the protector's signatures, and the owner's over the whole file.
    pub fn verify(self) -> Result<SignedDataFile, DataFileError> {
        let chained = KeyProtector::parse(&self.protector)?.verify()?;
        let owner = chained.owner().ok_or(DataFileError::Signature)?.public_key();
        let mut signed = [SIGNATURE_LABEL, &self.head].concat();
        fields::put(&mut signed, &self.sealed);
        match owner.verify(algorithm(owner), &signed, &self.signature) {
            true => Ok(SignedDataFile { file: self, chained }),
            false => Err(DataFileError::Signature),
        }
    }
}

impl SignedDataFile {
    /// The file.
    pub fn file(&self) -> &DataFile {
        &self.file
    }

    /// The owner's signing certificate.
    pub fn owner(&self) -> Option<&Certificate> {
        self.chained.owner()
    }

    /// Its protector, whose signatures hold.
    pub fn chained(&self) -> &ChainedProtector {
        &self.chained
    }

    /// Opens the contents with the transport key in the protector.
    pub fn open(self, key: &TransportKey) -> Result<ShieldingData, DataFileError> {
        let file = self.file;
        let plain =
            gcm_open(&contents_key(key, file.id), &file.head, &file.sealed).map_err(|_| DataFileError::Sealed)?;
        Ok(ShieldingData {
            id: file.id,
            policy: file.policy,
            qualifiers: file.qualifiers,
            contents: Contents::parse(&plain)?,
        })
    }
}

impl ShieldingData {
    /// Its id.
    pub fn id(&self) -> DataFileId {
        self.id
    }

    /// The kind of the VMs that are made with it.
    pub fn policy(&self) -> Kind {
        self.policy
    }

    /// The templates that may be used.
    pub fn qualifiers(&self) -> &[Qualifier] {
        &self.qualifiers
    }

    /// The files.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// The key by which the guest of the VM `vm`, made with this file, answers its owner's challenges.
    pub fn proof_key(&self, vm: VmId) -> Secret32 {
        hkdf_sha256(&self.contents.seed, PROOF_LABEL, vm.bytes())
    }

    /// The key under which the disk of the VM `vm`, made with this file, keeps its recovery password.
    pub fn recovery_key(&self, vm: VmId) -> Secret32 {
        hkdf_sha256(&self.contents.seed, RECOVERY_LABEL, vm.bytes())
    }
}

impl Contents {
    /// Takes the files over.
    pub fn new(
        answer_file: Zeroizing<Vec<u8>>,
        other_files: Vec<NamedFile>,
        rng: &mut dyn Random,
    ) -> Result<Contents, DataFileError> {
        Contents {
            seed: Secret32::random(rng),
            answer_file,
            other_files,
        }
        .check()
    }

    /// The answer file.
    pub fn answer_file(&self) -> &[u8] {
        &self.answer_file
    }

    /// The other files.
    pub fn other_files(&self) -> &[NamedFile] {
        &self.other_files
    }

    fn check(self) -> Result<Contents, DataFileError> {
        let lengths = self.other_files.iter().map(|file| file.content.len());
        let total = lengths.fold(self.answer_file.len(), usize::saturating_add);
        if self.answer_file.is_empty() || total > LARGEST_CONTENTS || self.other_files.len() > MAX_FILES {
            return Err(DataFileError::Files);
        }
        let mut seen = std::collections::HashSet::new();
        for file in &self.other_files {
            // A guest's file system may not tell cases apart.
            if !seen.insert(file.name.0.to_lowercase()) {
                return Err(DataFileError::Name(file.name.0.clone()));
            }
        }
        Ok(self)
    }

    fn encode(&self) -> Zeroizing<Vec<u8>> {
        let others = self.other_files.iter().map(|f| 8 + f.name.0.len() + f.content.len());
        // Reserved at once, so that no half-grown copy stays behind in freed memory.
        let mut out = Zeroizing::new(Vec::with_capacity(
            32 + 4 + self.answer_file.len() + others.sum::<usize>(),
        ));
        out.extend_from_slice(self.seed.expose());
        fields::put(&mut out, &self.answer_file);
        for file in &self.other_files {
            fields::put(&mut out, file.name.0.as_bytes());
            fields::put(&mut out, &file.content);
        }
        out
    }

    fn parse(plain: &[u8]) -> Result<Contents, DataFileError> {
        let parts = |rest: &mut &[u8]| {
            let (seed, after) = rest.split_at_checked(32)?;
            *rest = after;
            let seed = Secret32::from_slice(seed)?;
            let answer_file = Zeroizing::new(fields::take(rest)?.to_vec());
            let mut other_files = Vec::new();
            while !rest.is_empty() {
                let name = std::str::from_utf8(fields::take(rest)?).ok()?;
                other_files.push(NamedFile {
                    name: FileName::parse(name).ok()?,
                    content: Zeroizing::new(fields::take(rest)?.to_vec()),
                });
            }
            Some(Contents {
                seed,
                answer_file,
                other_files,
            })
        };
        parts(&mut &*plain).ok_or(DataFileError::Format)?.check()
    }
}

impl FileName {
    /// Checks the rule of the type.
    pub fn parse(text: &str) -> Result<FileName, DataFileError> {
        let bad = |c: char| c.is_control() || ['/', '\\', ':'].contains(&c);
        let good = (1..=255).contains(&text.len())
            && !text.chars().any(bad)
            && ![".", "..", ANSWER_FILE].contains(&text.to_lowercase().as_str());
        match good {
            true => Ok(FileName(text.to_owned())),
            false => Err(DataFileError::Name(text.chars().take(300).collect())),
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn contents_key(key: &TransportKey, id: DataFileId) -> Secret32 {
    hkdf_sha256(key.expose_transport_key(), CONTENTS_LABEL, id.0.as_bytes())
}

fn policy_byte(policy: Kind) -> u8 {
    match policy {
        Kind::EncryptionSupported => 1,
        Kind::Shielded => 2,
    }
}

fn policy_of(byte: [u8; 1]) -> Option<Kind> {
    match byte {
        [1] => Some(Kind::EncryptionSupported),
        [2] => Some(Kind::Shielded),
        _ => None,
    }
}

fn parse_qualifiers(mut bytes: &[u8]) -> Option<Vec<Qualifier>> {
    let mut qualifiers = Vec::new();
    while !bytes.is_empty() {
        let mut one = fields::take(&mut bytes)?;
        qualifiers.push(Qualifier::take(&mut one)?);
        if !one.is_empty() || qualifiers.len() > MAX_QUALIFIERS {
            return None;
        }
    }
    (!qualifiers.is_empty()).then_some(qualifiers)
}

#[cfg(test)]
mod tests;
