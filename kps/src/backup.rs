//! Backup and restore of the service's state: certificates with their keys, attestation signers and
//! settings. Not in it: the audit chain, tokens of administrators, TLS, and keys that live in a token
//! (their certificates and ids are). Restored into an empty database only.

use anyhow::{Context, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hgs_protocol::{
    env::{Random, UnixTime},
    protector::KeyPair,
};
use hgs_service::backup;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    guardian::Vault,
    store::{KeyPlace, Role, Store, StoredCertificate, StoredSettings, StoredSigner},
};

const SERVICE: &str = "kps";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct State {
    made_at: UnixTime,
    certificates: Vec<SavedCertificate>,
    signers: Vec<SavedSigner>,
    accepted_modes: Vec<u8>,
    max_offline_unwraps: Option<u32>,
    allow_sha1_oaep: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SavedCertificate {
    role: Role,
    is_primary: bool,
    is_enabled: bool,
    certificate: String,
    /// PKCS#8, base64; none for a key in a token.
    key: Option<Zeroizing<String>>,
    token_key_id: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SavedSigner {
    certificate: String,
    deny_issued_before: Option<UnixTime>,
}

/// The present state under `password`.
pub async fn export(
    store: &Store,
    vault: &Vault,
    password: &str,
    now: UnixTime,
    rng: &mut dyn Random,
) -> anyhow::Result<Vec<u8>> {
    let settings = store.settings().await?;
    let certificates = store.certificates().await?;
    let certificates = certificates.iter().map(|row| save(row, vault));
    let state = State {
        made_at: now,
        certificates: certificates.collect::<anyhow::Result<_>>()?,
        signers: store
            .signers()
            .await?
            .into_iter()
            .map(|signer| SavedSigner {
                certificate: STANDARD.encode(signer.certificate),
                deny_issued_before: signer.deny_issued_before,
            })
            .collect(),
        accepted_modes: settings.accepted_modes,
        max_offline_unwraps: settings.max_offline_unwraps,
        allow_sha1_oaep: settings.allow_sha1_oaep,
    };
    backup::seal_state(SERVICE, VERSION, &state, password, rng)
}

/// Restores a backup into an empty database, keys sealed under this service's key-encryption key. All or nothing.
pub async fn restore(
    store: &Store,
    vault: &Vault,
    bytes: &[u8],
    password: &str,
    now: UnixTime,
    rng: &mut dyn Random,
) -> anyhow::Result<()> {
    let state: State = backup::open_state(SERVICE, VERSION, bytes, password)?;
    let certificates = state.certificates.iter().map(|saved| load(saved, vault, rng));
    let certificates = certificates.collect::<anyhow::Result<Vec<_>>>()?;
    let signers = state
        .signers
        .iter()
        .map(|saved| {
            let certificate = STANDARD.decode(&saved.certificate)?;
            Ok(StoredSigner {
                thumbprint: hex::encode(hgs_protocol::crypto::sha256(&certificate)),
                certificate,
                deny_issued_before: saved.deny_issued_before,
            })
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let settings = StoredSettings {
        accepted_modes: state.accepted_modes,
        max_offline_unwraps: state.max_offline_unwraps,
        allow_sha1_oaep: state.allow_sha1_oaep,
    };
    ensure!(
        store.fill(&certificates, &signers, &settings, now).await?,
        "the database holds certificates already: restore into an empty one"
    );
    Ok(())
}

fn save(row: &StoredCertificate, vault: &Vault) -> anyhow::Result<SavedCertificate> {
    let (key, token_key_id) = match &row.key {
        KeyPlace::Token(id) => (None, Some(id.clone())),
        KeyPlace::Sealed(_) => {
            let pair = vault.open(row)?;
            let key = pair.expose_pkcs8().context("a sealed key opens")?;
            (Some(Zeroizing::new(STANDARD.encode(key))), None)
        }
    };
    Ok(SavedCertificate {
        role: row.role,
        is_primary: row.is_primary,
        is_enabled: row.is_enabled,
        certificate: STANDARD.encode(&row.certificate),
        key,
        token_key_id,
    })
}

fn load(saved: &SavedCertificate, vault: &Vault, rng: &mut dyn Random) -> anyhow::Result<StoredCertificate> {
    let certificate = STANDARD.decode(&saved.certificate)?;
    let mut row = match (&saved.key, &saved.token_key_id) {
        (Some(key), None) => {
            let key = Zeroizing::new(STANDARD.decode(key.as_bytes())?);
            vault.seal(saved.role, &KeyPair::from_parts(&key, &certificate)?, rng)?
        }
        (None, Some(id)) => vault.adopt(saved.role, id, &certificate)?,
        _ => anyhow::bail!("the backup holds a certificate without its key"),
    };
    row.is_primary = saved.is_primary;
    row.is_enabled = saved.is_enabled;
    Ok(row)
}
