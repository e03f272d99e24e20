//! The envelope of a service's backup: its state under a password. Argon2id makes the key, AES-256-GCM
//! seals; the header is authenticated with the service's name, so that one service's backup is not
//! another's. What the state is, each service decides.
//!
//! Layout: `HGSBACK1` (8), memory in KiB, passes, lanes (u32 each, little-endian), salt (16), nonce (12),
//! ciphertext, tag (16).

use std::{
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use argon2::{Algorithm, Argon2, Params, Version};
use hgs_protocol::{
    crypto::{gcm_open, gcm_seal},
    env::Random,
    secret::Secret32,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

const MAGIC: &[u8; 8] = b"HGSBACK1";
const SALT: usize = 16;
const HEADER: usize = 8 + 12 + SALT;
const MEMORY_KIB: u32 = 64 * 1024;
const PASSES: u32 = 3;
const LANES: u32 = 1;
/// A file may not ask for more than this.
const MOST_MEMORY_KIB: u32 = 1024 * 1024;
const MOST_PASSES: u32 = 20;
const SHORTEST_PASSWORD: usize = 10;

/// Why a backup was not made or not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackupError {
    /// A short password can be guessed by whoever has the file.
    #[error("the password of a backup must have at least {SHORTEST_PASSWORD} characters")]
    ShortPassword,
    /// Another file, or one cut short.
    #[error("this is no backup of an HGS service, or it is cut short")]
    Format,
    /// GCM does not open it.
    #[error("the backup does not open: the password is another, the file was changed, or it is another service's")]
    Closed,
}

/// Seals the state of `service` under `password`.
pub fn seal(service: &str, password: &str, state: &[u8], rng: &mut dyn Random) -> Result<Vec<u8>, BackupError> {
    if password.chars().count() < SHORTEST_PASSWORD {
        return Err(BackupError::ShortPassword);
    }
    let mut out = MAGIC.to_vec();
    for number in [MEMORY_KIB, PASSES, LANES] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&rng.bytes::<SALT>());
    let key = derive(&out, password)?;
    let sealed = gcm_seal(&key, &associated(&out, service), state, rng);
    out.extend_from_slice(&sealed);
    Ok(out)
}

/// Opens what [`seal`] made for the same service.
pub fn open(service: &str, password: &str, backup: &[u8]) -> Result<Zeroizing<Vec<u8>>, BackupError> {
    let (header, sealed) = backup.split_at_checked(HEADER).ok_or(BackupError::Format)?;
    let key = derive(header, password)?;
    gcm_open(&key, &associated(header, service), sealed).map_err(|_| BackupError::Closed)
}

/// A service's state with the version of its form, as [`seal_state`] writes it.
#[derive(Serialize)]
struct Versioned<'a, T> {
    version: u32,
    #[serde(flatten)]
    state: &'a T,
}

/// The version alone, whatever the form.
#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

/// Seals `state` as JSON, with `version` as a member of its own.
pub fn seal_state<T: Serialize>(
    service: &str,
    version: u32,
    state: &T,
    password: &str,
    rng: &mut dyn Random,
) -> anyhow::Result<Vec<u8>> {
    let plain = Zeroizing::new(serde_json::to_vec(&Versioned { version, state })?);
    Ok(seal(service, password, &plain, rng)?)
}

/// Opens what [`seal_state`] made; fails on another version before it looks at the rest.
pub fn open_state<T: DeserializeOwned>(
    service: &str,
    version: u32,
    backup: &[u8],
    password: &str,
) -> anyhow::Result<T> {
    let plain = open(service, password, backup)?;
    let there: VersionOnly = serde_json::from_slice(&plain).context(OTHER_STATE)?;
    ensure!(
        there.version == version,
        "the backup is of version {}, and this program reads version {version}",
        there.version
    );
    serde_json::from_slice(&plain).context(OTHER_STATE)
}

/// Where a backup's password stands.
#[derive(Clone, Debug, clap::Args)]
pub struct PasswordFile {
    /// File with the backup's password (one line)
    #[arg(long)]
    password_file: PathBuf,
}

impl PasswordFile {
    /// The password, without the line's end.
    pub fn read(&self) -> anyhow::Result<Zeroizing<String>> {
        let text = std::fs::read_to_string(&self.password_file)
            .with_context(|| format!("the password file {} cannot be read", self.password_file.display()))?;
        let text = Zeroizing::new(text);
        Ok(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
    }
}

/// Writes a backup to a file that must not exist, readable by its owner only.
pub fn write_new(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot make {}; an older backup is never overwritten", path.display()))?;
    file.write_all(bytes)?;
    Ok(file.sync_all()?)
}

/// Reads a backup's file.
pub fn read_file(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read the backup {}", path.display()))
}

const OTHER_STATE: &str = "the backup holds another state than this version reads";

fn associated(header: &[u8], service: &str) -> Vec<u8> {
    [header, service.as_bytes()].concat()
}

fn derive(header: &[u8], password: &str) -> Result<Secret32, BackupError> {
    let rest = header.strip_prefix(MAGIC).ok_or(BackupError::Format)?;
    let (numbers, salt) = rest.split_first_chunk::<12>().ok_or(BackupError::Format)?;
    let mut parameters = numbers
        .chunks_exact(4)
        .map(|four| four.try_into().map_or(0, u32::from_le_bytes));
    let (Some(memory), Some(passes), Some(lanes)) = (parameters.next(), parameters.next(), parameters.next()) else {
        return Err(BackupError::Format);
    };
    if memory > MOST_MEMORY_KIB || passes > MOST_PASSES || lanes > 16 {
        return Err(BackupError::Format);
    }
    let params = Params::new(memory, passes, lanes, Some(32)).map_err(|_| BackupError::Format)?;
    let mut key = Zeroizing::new([0; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(password.as_bytes(), salt, key.as_mut())
        .map_err(|_| BackupError::Format)?;
    Ok(Secret32::new(*key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hgs_protocol::env::OsRandom;

    #[test]
    fn a_backup_opens_with_its_password_and_service_and_no_changed_bit() {
        let password = "correct horse";
        let sealed = seal("kps", password, b"the state", &mut OsRandom).unwrap();
        assert_eq!(&*open("kps", password, &sealed).unwrap(), b"the state");
        assert!(!sealed.windows(9).any(|window| window == b"the state"));
        assert_eq!(open("kps", "another one", &sealed).err(), Some(BackupError::Closed));
        assert_eq!(open("attestation", password, &sealed).err(), Some(BackupError::Closed));
        assert_eq!(open("kps", password, &sealed[..30]).err(), Some(BackupError::Format));
        assert_eq!(open("kps", password, b"PK").err(), Some(BackupError::Format));
        for at in [0, 12, 20, 36, 50, sealed.len() - 1] {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(open("kps", password, &changed).is_err(), "{at}");
        }
        // A file cannot ask for all of the machine's memory.
        let mut greedy = sealed;
        greedy[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(open("kps", password, &greedy).err(), Some(BackupError::Format));
        assert_eq!(
            seal("kps", "short", b"", &mut OsRandom).err(),
            Some(BackupError::ShortPassword)
        );
    }
}
