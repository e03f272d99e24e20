//! Keys at rest: AES-256-GCM under a key derived from the key-encryption key.
//!
//! Layout of a sealed value: `HGSEAL1` and a zero byte (8), key identity (8), nonce (12), ciphertext, tag (16).
//! The purpose's name is authenticated, so that one sealed value cannot stand in for another.

use std::path::Path;

use anyhow::Context;
use hgs_protocol::{
    crypto::{CryptoError, gcm_open, gcm_seal, hkdf_sha256},
    env::Random,
    secret::Secret32,
};
use zeroize::Zeroizing;

const MAGIC: &[u8; 8] = b"HGSEAL1\0";

/// The key-encryption key of a service. Never written by the service itself.
#[derive(Clone)]
pub struct Kek(Secret32);

/// Why a sealed value does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealedError {
    /// Not a sealed value, or cut short.
    #[error("this is no sealed value, or it is cut short")]
    Format,
    /// Sealed under another key-encryption key.
    #[error("sealed under another key-encryption key: start the service with the key it was first started with")]
    OtherKey,
    /// The key is right, the content or its purpose was changed.
    #[error("the sealed value has been changed or was made for another purpose")]
    Changed,
}

impl Kek {
    /// From 32 bytes.
    pub fn new(key: Secret32) -> Kek {
        Kek(key)
    }

    /// From a file of 64 hex digits (white space around them is ignored).
    pub fn from_file(path: &Path) -> anyhow::Result<Kek> {
        let text = Zeroizing::new(
            std::fs::read_to_string(path)
                .with_context(|| format!("the key-encryption key {} cannot be read", path.display()))?,
        );
        let mut key = Zeroizing::new([0; 32]);
        hex::decode_to_slice(text.trim(), key.as_mut()).map_err(|_| {
            anyhow::anyhow!(
                "the key-encryption key {} is not 64 hex digits: make one with `openssl rand -hex 32`",
                path.display()
            )
        })?;
        Ok(Kek(Secret32::new(*key)))
    }

    /// A key of its own for `purpose` (the audit chain, say).
    pub fn derive(&self, purpose: &str) -> Secret32 {
        hkdf_sha256(&self.0, purpose, b"")
    }

    /// Seals `plaintext` for `purpose`.
    pub fn seal(&self, purpose: &str, plaintext: &[u8], rng: &mut dyn Random) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&self.identity());
        out.extend_from_slice(&gcm_seal(&self.derive("HGS-SEAL"), purpose.as_bytes(), plaintext, rng));
        out
    }

    /// Opens what [`Kek::seal`] made for the same `purpose`.
    pub fn open(&self, purpose: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealedError> {
        let rest = sealed.strip_prefix(MAGIC).ok_or(SealedError::Format)?;
        let (identity, rest) = rest.split_first_chunk::<8>().ok_or(SealedError::Format)?;
        if identity != &self.identity() {
            return Err(SealedError::OtherKey);
        }
        gcm_open(&self.derive("HGS-SEAL"), purpose.as_bytes(), rest).map_err(|_: CryptoError| SealedError::Changed)
    }

    /// Tells keys apart without telling anything of the key.
    fn identity(&self) -> [u8; 8] {
        let mut id = [0; 8];
        let derived = self.derive("HGS-SEAL-IDENTITY");
        for (to, from) in id.iter_mut().zip(derived.expose()) {
            *to = *from;
        }
        id
    }
}

/// Writes `bytes` to `path` so that a crash leaves either the old file or the new one, and a reply after
/// it may rely on it: temporary file, fsync, rename, fsync of the directory. Readable by the owner only.
pub fn write_durably(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::{fs, io::Write, os::unix::fs::OpenOptionsExt};
    let parent = path.parent().unwrap_or(Path::new("."));
    let temporary = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    fs::File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hgs_protocol::env::OsRandom;

    #[test]
    fn a_sealed_value_opens_only_with_its_key_and_purpose() {
        let kek = Kek::new(Secret32::new([1; 32]));
        let sealed = kek.seal("signer", b"key", &mut OsRandom);
        assert_eq!(&*kek.open("signer", &sealed).unwrap(), b"key");
        assert_eq!(kek.open("other", &sealed).err(), Some(SealedError::Changed));
        let other = Kek::new(Secret32::new([2; 32]));
        assert_eq!(other.open("signer", &sealed).err(), Some(SealedError::OtherKey));
        assert_eq!(kek.open("signer", &sealed[..10]).err(), Some(SealedError::Format));
        assert!(!sealed.windows(3).any(|w| w == b"key"));
    }

    #[test]
    fn a_durable_write_replaces_the_file_and_leaves_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sealed");
        write_durably(&path, b"1").unwrap();
        write_durably(&path, b"2").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"2");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
