//! The owner's folder of guardians: one file each, `NAME.json`, readable by its user only. It holds
//! the guardian's metadata document (MS-KPS 6.4) and, for one's own, both private keys sealed under
//! a password (the envelope of `hgs_service::backup`: Argon2id, AES-256-GCM), bound to their
//! certificates.
//!
//! The password guards private keys and nothing else: whoever may write the folder can put another
//! guardian in a guardian's place.

use std::{
    fmt, fs,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hgs_protocol::{
    env::Random,
    protector::{Guardian, GuardianError, GuardianKeys, KeyPair, Metadata, MetadataError},
};
use hgs_service::backup::{self, BackupError};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Why the store did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A name that would not make a file name, or not fit into a certificate.
    #[error(
        "{0:?} cannot be a guardian's name: give 1 to {LONGEST_NAME} letters, digits, spaces or any of - _ . ( ), \
         beginning with a letter or digit and not ending with a space"
    )]
    Name(String),
    /// Nothing of that name.
    #[error("there is no guardian {name} in {}: `guardian list` shows those that are", folder.display())]
    Unknown {
        /// The name.
        name: GuardianName,
        /// The store's folder.
        folder: PathBuf,
    },
    /// Names are not given twice; what is there stays.
    #[error("there is a guardian {0} already: choose another name, or remove it first")]
    Exists(GuardianName),
    /// A file or folder cannot be read or written.
    #[error("cannot {verb} {}: {source}", path.display())]
    File {
        /// What was tried.
        verb: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what was written here.
    #[error("{} is no guardian's file or was changed: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The document to import is no guardian's metadata.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// Only one's own guardians have private keys here.
    #[error("the private keys of {0} are not here: it is another's guardian, known by its certificates only")]
    NoPrivateKeys(GuardianName),
    /// Too short a password for a file that can be copied.
    #[error("the password must have at least 10 characters: it is all that guards the private keys in the file")]
    ShortPassword,
    /// Another password, or a changed file.
    #[error("the private keys of {0} do not open: the password is another, or the file was changed")]
    Locked(GuardianName),
    /// The keys do not fit their certificates, or could not sign.
    #[error("the keys of {name}: {source}")]
    Keys {
        /// Whose.
        name: GuardianName,
        /// Why.
        source: GuardianError,
    },
}

/// A name that is a safe file name and fits into a certificate's common name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct GuardianName(String);

impl GuardianName {
    /// Checks a name.
    pub fn parse(text: &str) -> Result<GuardianName, StoreError> {
        let good = text.chars().all(|c| c.is_alphanumeric() || " -_.()".contains(c))
            && text.chars().next().is_some_and(char::is_alphanumeric)
            && !text.ends_with(' ')
            && text.chars().count() <= LONGEST_NAME
            && text.len() <= LONGEST_FILE_NAME;
        match good {
            true => Ok(GuardianName(text.to_owned())),
            false => Err(StoreError::Name(text.to_owned())),
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GuardianName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The folder.
pub struct GuardianStore {
    folder: PathBuf,
}

/// One guardian of the store; its private keys still sealed.
#[derive(Debug)]
pub struct StoredGuardian {
    name: GuardianName,
    document: Vec<u8>,
    metadata: Metadata,
    sealed_keys: Option<Vec<u8>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct GuardianFile {
    version: u32,
    /// Base64.
    metadata: String,
    /// Base64 of the envelope; null for another's guardian.
    private_keys: Option<String>,
}

/// PKCS#8, base64.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PrivateKeys {
    signing: Zeroizing<String>,
    encryption: Zeroizing<String>,
}

impl GuardianStore {
    /// The store in `folder`, which is made when the first guardian comes.
    pub fn new(folder: &Path) -> GuardianStore {
        GuardianStore {
            folder: folder.to_path_buf(),
        }
    }

    /// Every guardian in the order of names; in place of one that cannot be read, why.
    pub fn list(&self) -> Result<Vec<Result<StoredGuardian, StoreError>>, StoreError> {
        let failed = |source| file_error("read", &self.folder, source);
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "json")
                && let Some(stem) = path.file_stem().and_then(|stem| stem.to_str())
                && let Ok(name) = GuardianName::parse(stem)
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names.iter().map(|name| self.find(name)).collect())
    }

    /// The guardian of that name.
    pub fn find(&self, name: &GuardianName) -> Result<StoredGuardian, StoreError> {
        let path = self.path(name);
        let mut text = Vec::new();
        let read = fs::File::open(&path).and_then(|file| file.take(LONGEST_FILE).read_to_end(&mut text));
        if let Err(error) = read {
            return Err(match error.kind() {
                io::ErrorKind::NotFound => StoreError::Unknown {
                    name: name.clone(),
                    folder: self.folder.clone(),
                },
                _ => file_error("read", &path, error),
            });
        }
        let damaged = |reason: String| StoreError::Damaged {
            path: path.clone(),
            reason,
        };
        let file: GuardianFile = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
        if file.version != VERSION {
            return Err(damaged(format!("its version is {}, not {VERSION}", file.version)));
        }
        let bytes = |text: &str| STANDARD.decode(text).map_err(|e| damaged(e.to_string()));
        let document = bytes(&file.metadata)?;
        Ok(StoredGuardian {
            metadata: Metadata::import(&document, name.as_str()).map_err(|e| damaged(e.to_string()))?,
            name: name.clone(),
            document,
            sealed_keys: file.private_keys.as_deref().map(bytes).transpose()?,
        })
    }

    /// Keeps a guardian of one's own, private keys sealed under `password` (of 10 characters at least).
    pub fn add_own(
        &self,
        keys: &GuardianKeys,
        password: &str,
        rng: &mut dyn Random,
    ) -> Result<StoredGuardian, StoreError> {
        let name = GuardianName::parse(keys.name())?;
        let document = Metadata::build(keys, None)?;
        let metadata = Metadata::import(&document, name.as_str())?;
        let secret = |pairs: &[KeyPair]| {
            let key = pairs.first().and_then(KeyPair::expose_pkcs8);
            key.map(|key| Zeroizing::new(STANDARD.encode(key)))
                .ok_or(StoreError::NoPrivateKeys(name.clone()))
        };
        let private = PrivateKeys {
            signing: secret(keys.signing())?,
            encryption: secret(keys.encryption())?,
        };
        let plain = serde_json::to_vec(&private).map(Zeroizing::new);
        let plain = plain.map_err(|e| file_error("write", &self.folder, e.into()))?;
        let sealed = backup::seal(&purpose(metadata.guardian()), password, &plain, rng);
        let stored = StoredGuardian {
            sealed_keys: Some(sealed.map_err(|error| closed(error, &name))?),
            name,
            document,
            metadata,
        };
        self.write_new(&stored)?;
        Ok(stored)
    }

    /// Keeps another's guardian from its metadata document.
    pub fn add_imported(&self, name: &GuardianName, document: &[u8]) -> Result<StoredGuardian, StoreError> {
        let stored = StoredGuardian {
            metadata: Metadata::import(document, name.as_str())?,
            name: name.clone(),
            document: document.to_vec(),
            sealed_keys: None,
        };
        self.write_new(&stored)?;
        Ok(stored)
    }

    /// Forgets a guardian and, if it is one's own, its private keys for good.
    pub fn remove(&self, name: &GuardianName) -> Result<(), StoreError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(StoreError::Unknown {
                name: name.clone(),
                folder: self.folder.clone(),
            }),
            other => other.map_err(|error| file_error("remove", &path, error)),
        }
    }

    fn path(&self, name: &GuardianName) -> PathBuf {
        self.folder.join(format!("{name}.json"))
    }

    fn write_new(&self, stored: &StoredGuardian) -> Result<(), StoreError> {
        use std::os::unix::fs::DirBuilderExt;
        let file = GuardianFile {
            version: VERSION,
            metadata: STANDARD.encode(&stored.document),
            private_keys: stored.sealed_keys.as_ref().map(|sealed| STANDARD.encode(sealed)),
        };
        let path = self.path(&stored.name);
        let write = || -> io::Result<()> {
            let mut text = serde_json::to_vec_pretty(&file)?;
            text.push(b'\n');
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
            write_new(&path, &text, 0o600)
        };
        write().map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => StoreError::Exists(stored.name.clone()),
            _ => file_error("write", &path, error),
        })
    }
}

impl StoredGuardian {
    /// Its name here.
    pub fn name(&self) -> &GuardianName {
        &self.name
    }

    /// Its public certificates.
    pub fn guardian(&self) -> &Guardian {
        self.metadata.guardian()
    }

    /// Its metadata as read.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Its metadata document, for others to import.
    pub fn document(&self) -> &[u8] {
        &self.document
    }

    /// Whether it is one's own.
    pub fn has_private_keys(&self) -> bool {
        self.sealed_keys.is_some()
    }

    /// Opens the private keys.
    pub fn unlock(&self, password: &str) -> Result<GuardianKeys, StoreError> {
        let sealed = self.sealed_keys.as_ref();
        let sealed = sealed.ok_or_else(|| StoreError::NoPrivateKeys(self.name.clone()))?;
        let guardian = self.guardian();
        let plain = backup::open(&purpose(guardian), password, sealed).map_err(|error| closed(error, &self.name))?;
        let locked = || StoreError::Locked(self.name.clone());
        let private: PrivateKeys = serde_json::from_slice(&plain).map_err(|_| locked())?;
        let pair = |key: &Zeroizing<String>, certificate: &[u8]| {
            let key = STANDARD.decode(key.as_bytes()).map_err(|_| locked())?;
            KeyPair::from_parts(&Zeroizing::new(key), certificate).map_err(|source| StoreError::Keys {
                name: self.name.clone(),
                source,
            })
        };
        let signing = pair(&private.signing, guardian.signing().der())?;
        let encryption = pair(&private.encryption, guardian.encryption().der())?;
        Ok(GuardianKeys::from_pairs(self.name.as_str(), signing, encryption))
    }
}

/// Writes a file that appears whole or not at all, in place of no other.
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let (file, folder) = write_temporary(path, bytes, mode)?;
    file.persist_noclobber(path).map_err(|error| error.error)?;
    fs::File::open(folder)?.sync_all()
}

/// Puts new content in a file's place, all or nothing, with the permissions that it had.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // Through a link to the file itself, which the link goes on naming.
    let path = fs::canonicalize(path)?;
    let permissions = fs::metadata(&path)?.permissions();
    let (file, folder) = write_temporary(&path, bytes, 0o600)?;
    file.as_file().set_permissions(permissions)?;
    file.persist(&path).map_err(|error| error.error)?;
    fs::File::open(folder)?.sync_all()
}

fn write_temporary(path: &Path, bytes: &[u8], mode: u32) -> io::Result<(tempfile::NamedTempFile, PathBuf)> {
    use std::os::unix::fs::PermissionsExt;
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(mode))
        .tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    Ok((file, folder.to_path_buf()))
}

/// Binds sealed keys to their certificates.
fn purpose(guardian: &Guardian) -> String {
    let [signing, encryption] = [guardian.signing(), guardian.encryption()].map(|c| hex::encode(c.sha256()));
    format!("guardian {signing} {encryption}")
}

fn closed(error: BackupError, name: &GuardianName) -> StoreError {
    match error {
        BackupError::ShortPassword => StoreError::ShortPassword,
        BackupError::Format | BackupError::Closed => StoreError::Locked(name.clone()),
    }
}

fn file_error(verb: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::File {
        verb,
        path: path.to_path_buf(),
        source,
    }
}

const VERSION: u32 = 1;
/// A common name has at most 64 characters, ` Encryption` included.
const LONGEST_NAME: usize = 48;
/// File systems take 255 bytes, `.json` and a temporary name's ending included.
const LONGEST_FILE_NAME: usize = 200;
/// A metadata document has at most 1 MiB.
const LONGEST_FILE: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use hgs_protocol::env::{OsRandom, UnixTime};

    use super::*;

    #[test]
    fn a_name_is_a_file_name_and_no_path() {
        for good in ["HGS", "Host Guardian (2019)", "a-b_c.d", "Wächter"] {
            assert!(GuardianName::parse(good).is_ok(), "{good}");
        }
        let long = "a".repeat(49);
        for bad in [
            "", ".", "..", "../x", "a/b", "a\0", " a", "a ", ".a", "a\n", "-a", &long,
        ] {
            assert!(GuardianName::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn keys_come_back_by_their_password_and_for_their_certificates_alone() {
        let folder = tempfile::tempdir().unwrap();
        let store = GuardianStore::new(&folder.path().join("deep/guardians"));
        assert!(store.list().unwrap().is_empty());
        let now = UnixTime(1_800_000_000);
        let keys = GuardianKeys::generate_p256("Owner", now, &mut OsRandom).unwrap();
        assert!(matches!(
            store.add_own(&keys, "short", &mut OsRandom),
            Err(StoreError::ShortPassword)
        ));
        let password = "correct horse";
        let stored = store.add_own(&keys, password, &mut OsRandom).unwrap();
        assert!(matches!(
            store.add_own(&keys, password, &mut OsRandom),
            Err(StoreError::Exists(_))
        ));
        let path = store.path(stored.name());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&store.folder).unwrap().permissions().mode() & 0o777, 0o700);
        let found = store.find(stored.name()).unwrap();
        let again = found.unlock(password).unwrap();
        for (one, other) in [
            (keys.signing(), again.signing()),
            (keys.encryption(), again.encryption()),
        ] {
            assert_eq!(one[0].expose_pkcs8(), other[0].expose_pkcs8());
        }
        assert!(matches!(found.unlock("another horse"), Err(StoreError::Locked(_))));

        // Sealed keys under another guardian's certificates, and a file cut short.
        let other = GuardianKeys::generate_p256("Other", now, &mut OsRandom).unwrap();
        store.add_own(&other, password, &mut OsRandom).unwrap();
        let other = GuardianName::parse("Other").unwrap();
        let mut file: GuardianFile = serde_json::from_slice(&fs::read(store.path(&other)).unwrap()).unwrap();
        let own: GuardianFile = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        file.private_keys = own.private_keys;
        fs::write(store.path(&other), serde_json::to_vec(&file).unwrap()).unwrap();
        let swapped = store.find(&other).unwrap();
        assert!(matches!(swapped.unlock(password), Err(StoreError::Locked(_))));
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let list = store.list().unwrap();
        assert!(matches!(list.as_slice(), [Ok(_), Err(StoreError::Damaged { .. })]));
        store.remove(&other).unwrap();
        assert!(matches!(store.remove(&other), Err(StoreError::Unknown { .. })));
    }
}
