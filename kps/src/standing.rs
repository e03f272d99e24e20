//! Who the service is and whom it trusts at present: keys, attestation signers, settings, read from the
//! database and replaced as a whole. Every replica looks once a second whether a change was made.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use hgs_protocol::{
    health::{AcceptanceRules, AttestationMode, TrustedSigner},
    protector::{GuardianKeys, KeyPair},
};

use crate::{
    guardian::Vault,
    store::{Role, Store, StoredSigner},
};

/// One moment's answer; requests keep the one that they began with.
pub struct Standing {
    /// Enabled certificates with their keys, the primary of each kind first.
    pub keys: GuardianKeys,
    /// Signs the metadata; else the primary signing certificate does.
    pub communications: Option<KeyPair>,
    /// Whether the first signing certificate is the primary one.
    pub has_primary_signing: bool,
    /// Whether the first encryption certificate is the primary one.
    pub has_primary_encryption: bool,
    /// Attestation signers whose health certificates count.
    pub signers: Vec<TrustedSigner>,
    /// What else a health certificate must meet.
    pub rules: AcceptanceRules,
    /// Upper limit of the offline unwraps that a release may carry.
    pub max_offline_unwraps: u32,
    /// Whether OAEP with SHA-1 opens.
    pub allow_sha1_oaep: bool,
    revision: i64,
}

/// The present standing, shared by all threads.
pub struct Current {
    store: Store,
    vault: Vault,
    /// The limit that the service was started with.
    max_offline_unwraps: u32,
    now: RwLock<Arc<Standing>>,
    /// One reading at a time, so that an older one never replaces a newer.
    reading: tokio::sync::Mutex<()>,
}

impl Current {
    /// Reads the standing for the first time; a key that does not open is an error here.
    pub async fn read(store: Store, vault: Vault, max_offline_unwraps: u32) -> anyhow::Result<Current> {
        let standing = load(&store, &vault, max_offline_unwraps).await?;
        Ok(Current {
            store,
            vault,
            max_offline_unwraps,
            now: RwLock::new(Arc::new(standing)),
            reading: tokio::sync::Mutex::default(),
        })
    }

    /// The present one.
    pub fn get(&self) -> Arc<Standing> {
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the standing again if anything was changed.
    pub async fn refresh(&self) -> anyhow::Result<()> {
        let _reading = self.reading.lock().await;
        if self.store.revision().await? == self.get().revision {
            return Ok(());
        }
        let standing = load(&self.store, &self.vault, self.max_offline_unwraps).await?;
        tracing::info!(
            revision = standing.revision,
            "certificates, signers and settings were read again"
        );
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(standing);
        Ok(())
    }

    /// Sees the changes of other replicas, for as long as anything else holds `current`.
    pub async fn watch(current: std::sync::Weak<Current>) {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        loop {
            second.tick().await;
            let Some(current) = current.upgrade() else { return };
            if let Err(error) = current.refresh().await {
                tracing::error!(
                    error = format!("{error:#}"),
                    "the standing could not be read again; the old one stays"
                );
            }
        }
    }
}

async fn load(store: &Store, vault: &Vault, max_offline_unwraps: u32) -> anyhow::Result<Standing> {
    // Read first: what changes meanwhile is seen by the next look.
    let revision = store.revision().await?;
    let rows = store.certificates().await?;
    let (vault, enabled) = (vault.clone(), rows.clone());
    // A token may be slow, and RSA keys are checked when they are read.
    let mut pairs = tokio::task::spawn_blocking(move || {
        enabled
            .iter()
            .filter(|row| row.is_enabled)
            .map(|row| Ok((row.role, row.is_primary, vault.open(row)?)))
            .collect::<anyhow::Result<Vec<_>>>()
    })
    .await??;
    let has_primary = |role| rows.iter().any(|row| row.role == role && row.is_primary);
    let mut take = |wanted| -> Vec<KeyPair> {
        let (taken, rest) = std::mem::take(&mut pairs)
            .into_iter()
            .partition(|(role, ..)| *role == wanted);
        pairs = rest;
        let taken: Vec<(Role, bool, KeyPair)> = taken;
        taken.into_iter().map(|(_, _, pair)| pair).collect()
    };
    let keys = GuardianKeys::from_lists("HGS", take(Role::Signing), take(Role::Encryption));
    let communications = match has_primary(Role::Communications) {
        true => take(Role::Communications).into_iter().next(),
        false => None,
    };
    let settings = store.settings().await?;
    Ok(Standing {
        keys,
        communications,
        has_primary_signing: has_primary(Role::Signing),
        has_primary_encryption: has_primary(Role::Encryption),
        signers: store.signers().await?.iter().filter_map(trusted).collect(),
        rules: AcceptanceRules {
            modes: settings
                .accepted_modes
                .iter()
                .filter_map(|code| AttestationMode::from_code(u64::from(*code)))
                .collect(),
        },
        max_offline_unwraps: settings.max_offline_unwraps.unwrap_or(max_offline_unwraps),
        allow_sha1_oaep: settings.allow_sha1_oaep,
        revision,
    })
}

fn trusted(row: &StoredSigner) -> Option<TrustedSigner> {
    match TrustedSigner::from_certificate(&row.certificate) {
        Ok(mut signer) => {
            signer.deny_issued_before = row.deny_issued_before;
            Some(signer)
        }
        Err(error) => {
            tracing::error!(signer = row.thumbprint, %error, "a stored attestation signer is not usable");
            None
        }
    }
}
