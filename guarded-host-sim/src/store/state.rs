//! The store's sealed state: which file counts, and how it is replaced without ever losing it.
//!
//! Each file carries the value of the TPM's counter at which it is the newest. A change writes
//! `state.next` for the next value, makes it durable, increments the counter and renames. At a
//! start the file of the present value is accepted, whichever name it has; any other is an older
//! copy and is refused.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use hgs_protocol::{
    crypto::{CryptoError, RsaPrivateKey, gcm_open, gcm_seal, hkdf_sha256},
    env::Random,
    secret::Secret32,
};
use zeroize::Zeroizing;

use super::root::{RootError, SealedRoot, StoreTpm};
use crate::{
    swtpm::make_private_dir,
    tpm_channel::{ChannelError, TpmChannel},
};

/// Why the store does not open or cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Every file there is older than the TPM's counter says.
    #[error(
        "the sealed state in {} is not the newest one (somebody put an older copy back); \
         remove that directory to start with new VSM keys", directory.display()
    )]
    OlderCopy {
        /// Where.
        directory: PathBuf,
    },
    /// The counter in the TPM is gone, so that nothing proves the state's age.
    #[error(
        "the TPM's counter for the sealed state is gone (somebody removed it); \
         remove {} to start with new VSM keys", directory.display()
    )]
    NoCounter {
        /// Where.
        directory: PathBuf,
    },
    /// The root key.
    #[error(transparent)]
    Root(#[from] RootError),
    /// The TPM.
    #[error(transparent)]
    Tpm(#[from] ChannelError),
    /// A file.
    #[error("cannot use {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        #[source]
        cause: io::Error,
    },
    /// An earlier change failed half-way.
    #[error("an earlier change of the sealed state failed half-way; restart the host to find out which state counts")]
    Uncertain,
    /// A key could not be made.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

/// Everything secret that the store keeps.
pub struct Secrets {
    /// VSM identity key for encryption.
    pub encryption: RsaPrivateKey,
    /// VSM identity key for signing.
    pub signing: RsaPrivateKey,
    /// Further records by name.
    pub records: BTreeMap<String, Zeroizing<Vec<u8>>>,
}

/// The open store.
pub struct Store {
    directory: PathBuf,
    tpm: StoreTpm,
    root: Secret32,
    counter: u64,
    /// A change began and has not ended: only the next start can tell whether it counts.
    uncertain: bool,
    secrets: Secrets,
}

/// What [`Store::open`] found.
pub struct Opened {
    /// The store.
    pub store: Store,
    /// True when the VSM keys were made just now.
    pub new_keys: bool,
    /// What an operator should know.
    pub remarks: Vec<String>,
}

impl Store {
    /// Opens the state in `directory`, or founds a new one when there is none or the host's
    /// configuration has changed. An older copy is refused.
    pub fn open(directory: &Path, channel: TpmChannel, rng: &mut dyn Random) -> Result<Opened, StateError> {
        make_private_dir(directory).map_err(|e| file_error(directory)(io::Error::other(e)))?;
        let mut tpm = StoreTpm::new(channel)?;
        let sealed_root = directory.join(ROOT);
        let has_state = directory.join(STATE).exists() || directory.join(NEXT).exists();
        if !sealed_root.exists() || !has_state {
            return Store::found(directory, tpm, "the VBS store is new: new VSM keys", rng);
        }
        let sealed = SealedRoot::read(&sealed_root)?;
        let root = match tpm.unseal_root(&sealed, rng) {
            Ok(root) => root,
            Err(RootError::Cleared) => {
                let remark = "the TPM was cleared: new VSM keys, the old state is discarded";
                return Store::found(directory, tpm, remark, rng);
            }
            Err(RootError::OtherConfiguration) => {
                let remark = "the measured configuration has changed: new VSM keys, the old state is discarded";
                return Store::found(directory, tpm, remark, rng);
            }
            Err(other) => return Err(other.into()),
        };
        let counter = match tpm.counter(&root, rng) {
            Ok(counter) => counter,
            Err(e) if e.refusal().is_some() => {
                return Err(StateError::NoCounter {
                    directory: directory.to_path_buf(),
                });
            }
            Err(e) => return Err(e.into()),
        };
        let mut counter = counter;
        // A change that was written but did not reach the counter is carried through, not dropped: a
        // copy of it would open beside the change that took its number.
        let opens = |name: &str, value: u64| {
            let bytes = fs::read(directory.join(name)).ok();
            bytes.is_some_and(|bytes| open(&root, value, &bytes).is_some())
        };
        if opens(STATE, counter) && opens(NEXT, counter + 1) {
            tpm.increment(&root, rng)?;
            counter += 1;
        }
        let secrets = read_newest(directory, &root, counter)?;
        let store = Store {
            directory: directory.to_path_buf(),
            tpm,
            root,
            counter,
            uncertain: false,
            secrets,
        };
        Ok(Opened {
            store,
            new_keys: false,
            remarks: Vec::new(),
        })
    }

    /// Founds a new store, whatever there was: for a host whose boot cannot be sealed to.
    pub fn open_anew(directory: &Path, channel: TpmChannel, rng: &mut dyn Random) -> Result<Opened, StateError> {
        make_private_dir(directory).map_err(|e| file_error(directory)(io::Error::other(e)))?;
        let remark = "the host has the shape of another machine's log: new VSM keys at every boot";
        Store::found(directory, StoreTpm::new(channel)?, remark, rng)
    }

    fn found(directory: &Path, mut tpm: StoreTpm, remark: &str, rng: &mut dyn Random) -> Result<Opened, StateError> {
        for old in [STATE, NEXT] {
            match fs::remove_file(directory.join(old)) {
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                    return Err(file_error(&directory.join(old))(cause));
                }
                _ => {}
            }
        }
        let root = Secret32::random(rng);
        let sealed = tpm.seal_root(&root, rng)?;
        write_durably(&directory.join(ROOT), &sealed.encode())?;
        let counter = tpm.found_counter(&root, rng)?;
        let secrets = Secrets {
            encryption: RsaPrivateKey::generate_2048()?,
            signing: RsaPrivateKey::generate_2048()?,
            records: BTreeMap::new(),
        };
        // At the counter's present value and under its final name at once: whatever instant a crash
        // picks, the next boot finds a whole state or none, and none is founded again.
        let founding = directory.join(FOUNDING);
        write_durably(&founding, &seal(&root, counter, &encode(&secrets), rng))?;
        rename(&founding, &directory.join(STATE))?;
        let store = Store {
            directory: directory.to_path_buf(),
            tpm,
            root,
            counter,
            uncertain: false,
            secrets,
        };
        Ok(Opened {
            store,
            new_keys: true,
            remarks: vec![remark.to_owned()],
        })
    }

    /// The secrets.
    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// Changes the records and makes the change durable. After an error nothing is known about
    /// which state the next start finds: either the old or the new one, never a mixture.
    pub fn change(
        &mut self,
        change: impl FnOnce(&mut BTreeMap<String, Zeroizing<Vec<u8>>>),
        rng: &mut dyn Random,
    ) -> Result<(), StateError> {
        change(&mut self.secrets.records);
        self.save(rng)
    }

    fn save(&mut self, rng: &mut dyn Random) -> Result<(), StateError> {
        if self.uncertain {
            return Err(StateError::Uncertain);
        }
        self.uncertain = true;
        let value = self.counter + 1;
        let next = self.directory.join(NEXT);
        let plaintext = encode(&self.secrets);
        write_durably(&next, &seal(&self.root, value, &plaintext, rng))?;
        self.tpm.increment(&self.root, rng)?;
        self.counter = value;
        rename(&next, &self.directory.join(STATE))?;
        self.uncertain = false;
        Ok(())
    }
}

fn read_newest(directory: &Path, root: &Secret32, counter: u64) -> Result<Secrets, StateError> {
    let (state, next) = (directory.join(STATE), directory.join(NEXT));
    let opened = |path: &Path| open(root, counter, &fs::read(path).ok()?);
    if let Some(secrets) = opened(&state) {
        // Half-written: it never opened.
        let _ = fs::remove_file(&next);
        return Ok(secrets);
    }
    match opened(&next) {
        Some(secrets) => {
            rename(&next, &state)?;
            Ok(secrets)
        }
        None => Err(StateError::OlderCopy {
            directory: directory.to_path_buf(),
        }),
    }
}

/// u64 counter, then AES-256-GCM over the plaintext with magic and counter as associated data.
fn seal(root: &Secret32, counter: u64, plaintext: &[u8], rng: &mut dyn Random) -> Vec<u8> {
    let mut out = counter.to_be_bytes().to_vec();
    out.extend(gcm_seal(&state_key(root), &associated(counter), plaintext, rng));
    out
}

fn open(root: &Secret32, counter: u64, sealed: &[u8]) -> Option<Secrets> {
    let (written, body) = sealed.split_first_chunk()?;
    if u64::from_be_bytes(*written) != counter {
        return None;
    }
    decode(&gcm_open(&state_key(root), &associated(counter), body).ok()?)
}

fn state_key(root: &Secret32) -> Secret32 {
    hkdf_sha256(root, "HGS-STORE-STATE", &[])
}

fn associated(counter: u64) -> Vec<u8> {
    [b"HGS-STORE-1".as_slice(), &counter.to_be_bytes()].concat()
}

/// Fields of u32 length and bytes: two PKCS#8 keys, then name and value of each record.
fn encode(secrets: &Secrets) -> Zeroizing<Vec<u8>> {
    let mut fields = vec![secrets.encryption.expose_pkcs8(), secrets.signing.expose_pkcs8()];
    for (name, value) in &secrets.records {
        fields.extend([name.as_bytes(), value.as_slice()]);
    }
    // Reserved at once, so that no half-grown copy of a key stays behind in freed memory.
    let mut out = Zeroizing::new(Vec::with_capacity(fields.iter().map(|f| f.len() + 4).sum()));
    for field in fields {
        out.extend(u32::try_from(field.len()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(field);
    }
    out
}

fn decode(mut bytes: &[u8]) -> Option<Secrets> {
    let mut field = || -> Option<&[u8]> {
        let (length, rest) = bytes.split_first_chunk()?;
        let (field, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
        bytes = rest;
        Some(field)
    };
    let encryption = RsaPrivateKey::from_pkcs8(field()?).ok()?;
    let signing = RsaPrivateKey::from_pkcs8(field()?).ok()?;
    let mut records = BTreeMap::new();
    while let Some(name) = field() {
        let name = String::from_utf8(name.to_vec()).ok()?;
        records.insert(name, Zeroizing::new(field()?.to_vec()));
    }
    Some(Secrets {
        encryption,
        signing,
        records,
    })
}

fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        sync_parent(path)
    };
    write().map_err(file_error(path))
}

fn rename(from: &Path, to: &Path) -> Result<(), StateError> {
    fs::rename(from, to)
        .and_then(|()| sync_parent(to))
        .map_err(file_error(to))
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn file_error(path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_path_buf();
    move |cause| StateError::File { path, cause }
}

const ROOT: &str = "root.sealed";
const STATE: &str = "state.sealed";
const NEXT: &str = "state.next";
const FOUNDING: &str = "state.founding";

#[cfg(test)]
mod tests {
    use hgs_protocol::env::OsRandom;

    use super::*;

    #[test]
    fn records_survive_their_encoding() {
        let secrets = Secrets {
            encryption: RsaPrivateKey::generate_2048().unwrap(),
            signing: RsaPrivateKey::generate_2048().unwrap(),
            records: BTreeMap::from([("vm".to_owned(), Zeroizing::new(vec![1, 2, 3]))]),
        };
        let root = Secret32::new([1; 32]);
        let sealed = seal(&root, 7, &encode(&secrets), &mut OsRandom);
        let again = open(&root, 7, &sealed).unwrap();
        assert_eq!(again.encryption.public(), secrets.encryption.public());
        assert_eq!(again.signing.public(), secrets.signing.public());
        assert_eq!(again.records, secrets.records);
        assert!(open(&root, 8, &sealed).is_none());
        assert!(open(&Secret32::new([2; 32]), 7, &sealed).is_none());
    }
}
