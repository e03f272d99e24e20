//! What the commands `guardian` and `protector` share: where guardians are kept, passwords, and files.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::Args;
use hgs_protocol::protector::KeyPair;
use hgs_service::pair_files;
use serde::Serialize;
use zeroize::Zeroizing;

use super::{
    certificate::printable,
    store::{GuardianStore, write_new},
};

/// Where guardians are kept.
#[derive(Args, Clone, Debug)]
pub(crate) struct StoreArgs {
    /// Folder of guardians
    #[arg(long, env = "HGS_GUARDIANS", value_name = "DIR", default_value = "guardians")]
    dir: PathBuf,
}

/// The password over the private keys of the owner's guardians.
#[derive(Args, Clone, Debug)]
pub(crate) struct PasswordArgs {
    /// File with the password over the private keys (one line); without it, the variable HGS_GUARDIAN_PASSWORD
    #[arg(long, env = "HGS_GUARDIAN_PASSWORD_FILE", value_name = "FILE")]
    password_file: Option<PathBuf>,
}

impl StoreArgs {
    /// The store.
    pub(crate) fn store(&self) -> GuardianStore {
        GuardianStore::new(&self.dir)
    }
}

impl PasswordArgs {
    /// The password.
    pub(crate) fn password(&self) -> anyhow::Result<Zeroizing<String>> {
        if let Some(path) = &self.password_file {
            return read_password(path);
        }
        match std::env::var("HGS_GUARDIAN_PASSWORD") {
            Ok(password) => Ok(Zeroizing::new(password)),
            Err(_) => bail!(
                "the private keys are sealed under a password: give a file with it by --password-file, or set \
                 HGS_GUARDIAN_PASSWORD"
            ),
        }
    }
}

/// The one line of a password file.
pub(crate) fn read_password(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    let text = fs::read_to_string(path).map(Zeroizing::new);
    let text = text.with_context(|| format!("the password file {} cannot be read", path.display()))?;
    Ok(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
}

/// The certificate with its private key in a PFX, whose password is in another file.
pub(crate) fn pair_from_pfx(file: &Path, password: &Path) -> anyhow::Result<KeyPair> {
    let password = read_password(password)?;
    let bytes = Zeroizing::new(read_file(file, LONGEST_KEY_FILE)?);
    pair_files::from_pfx(&bytes, &password).with_context(|| format!("cannot use {}", file.display()))
}

/// The certificate with its private key in a PEM file; the key may be in a file of its own.
pub(crate) fn pair_from_pem(certificate: &Path, key: Option<&Path>) -> anyhow::Result<KeyPair> {
    let mut text = Zeroizing::new(read_file(certificate, LONGEST_KEY_FILE)?);
    if let Some(key) = key {
        let key = Zeroizing::new(read_file(key, LONGEST_KEY_FILE)?);
        text = Zeroizing::new([text.as_slice(), b"\n", &key].concat());
    }
    let text = std::str::from_utf8(&text).map_err(|_| anyhow::anyhow!("it is no PEM text"));
    text.and_then(pair_files::from_pem)
        .with_context(|| format!("cannot use {}", certificate.display()))
}

/// A file of at most `limit` bytes.
pub(crate) fn read_file(path: &Path, limit: usize) -> anyhow::Result<Vec<u8>> {
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes));
    read.with_context(|| format!("cannot read {}", path.display()))?;
    if bytes.len() > limit {
        bail!(
            "{} has more than {limit} bytes and was not read further",
            path.display()
        );
    }
    Ok(bytes)
}

/// Writes a new file, in place of none.
pub(crate) fn write_out(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    match write_new(path, bytes, mode) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            bail!(
                "{} exists: nothing was written; choose another name or move it away",
                path.display()
            )
        }
        other => other.with_context(|| format!("cannot write {}", path.display())),
    }
}

/// An error about what a stranger wrote, parts of which it may quote.
pub(crate) fn harmless(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow::anyhow!("{}", printable(&error.to_string()))
}

/// Prints `value` as JSON if asked, else `text`.
pub(crate) fn print(json: bool, value: &impl Serialize, text: &str) -> anyhow::Result<()> {
    match json {
        true => say(&(serde_json::to_string_pretty(value)? + "\n")),
        false => say(text),
    }
}

/// Prints `text`.
pub(crate) fn say(text: &str) -> anyhow::Result<()> {
    Ok(io::stdout().lock().write_all(text.as_bytes())?)
}

const LONGEST_KEY_FILE: usize = 1 << 20;
