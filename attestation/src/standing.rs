//! What stands at the moment: operation mode, artefacts in force, switches, denied keys, signers. Read from
//! the database at most once a second, so that every replica follows a change within seconds, and at once
//! in the process that made it. Decides nothing.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hgs_protocol::{
    env::UnixTime,
    health::{self, AttestationMode, AttestationSigner},
};
use hgs_service::sealed::Kek;

use crate::{
    baseline::{Baselines, Switches},
    signers,
    store::{Kind, Page, PolicyVersion, SignerRow, Slot, Store},
};

/// One consistent enough picture; never older than [`FRESH`].
pub struct Standing {
    /// The operation mode in force.
    pub mode: AttestationMode,
    /// What hosts of TPM mode are held against.
    pub baselines: BTreeMap<PolicyVersion, Baselines>,
    /// Which built-in policies are off.
    pub switches: Switches,
    /// Whether keys of CA trustlets are certified (result type 3).
    pub ca_certificates: bool,
    /// SPKI hashes of VSM keys that are never certified.
    pub denied: HashSet<[u8; 32]>,
    /// The one signer that signs.
    pub signer: Arc<AttestationSigner>,
    /// All signers.
    pub signers: Vec<SignerRow>,
    /// The body of signingCertificates: the numbers of a PKCS#7 with every published signer.
    pub signing_certificates: Vec<u8>,
}

/// Why the present state cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum StandingError {
    /// The database failed.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    /// A stored signer does not open or does not parse.
    #[error("the stored attestation signer is not usable: {0}")]
    Signer(String),
}

/// Keeps the last picture.
#[derive(Default)]
pub struct Cache {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Moves with each change made here, so that a picture begun before it is not kept.
    changes: u64,
    kept: Option<(Instant, Arc<Standing>)>,
}

impl Cache {
    /// The present picture.
    pub async fn standing(&self, store: &Store, kek: &Kek, now: UnixTime) -> Result<Arc<Standing>, StandingError> {
        let (changes, kept) = {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            (state.changes, state.kept.clone())
        };
        let last = match kept {
            Some((at, standing)) if at.elapsed() < FRESH => return Ok(standing),
            other => other.map(|(_, standing)| standing),
        };
        let begun = Instant::now();
        let standing = Arc::new(Standing::load(store, kek, now, last.as_deref()).await?);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.changes == changes {
            state.kept = Some((begun, standing.clone()));
        }
        Ok(standing)
    }

    /// The last picture, however old.
    pub fn last(&self) -> Option<Arc<Standing>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.kept.as_ref().map(|(_, standing)| standing.clone())
    }

    /// After a change made by this process.
    pub fn changed(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.changes = state.changes.wrapping_add(1);
        if let Some((at, _)) = &mut state.kept
            && let Some(old) = at.checked_sub(FRESH)
        {
            *at = old;
        }
    }
}

impl Standing {
    async fn load(store: &Store, kek: &Kek, now: UnixTime, last: Option<&Standing>) -> Result<Standing, StandingError> {
        let mut baselines = BTreeMap::new();
        for version in PolicyVersion::TRIED {
            baselines.insert(version, store.baselines(version).await?);
        }
        let denied = store.registered(Kind::DeniedKey, &Page::all()).await?;
        let denied = denied.into_iter().filter_map(|row| {
            let mut sha256 = [0; 32];
            hex::decode_to_slice(row.name, &mut sha256).ok().map(|()| sha256)
        });
        let rows = store.signers().await?;
        let unusable = |error: &dyn std::fmt::Display| StandingError::Signer(error.to_string());
        let active = rows
            .iter()
            .find(|row| row.slot == Some(Slot::Active))
            .ok_or_else(|| unusable(&"there is none"))?;
        // Opening a key costs more than all the rest.
        let same = last.filter(|last| last.signer.certificate_der() == active.certificate);
        let signer = match same {
            Some(last) => last.signer.clone(),
            None => Arc::new(signers::open(active, kek).map_err(|error| unusable(&error))?),
        };
        let published: Vec<&[u8]> = rows
            .iter()
            .filter(|row| row.is_published(now))
            .map(|row| row.certificate.as_slice())
            .collect();
        let pkcs7 = health::certificates_only(&published).map_err(|error| unusable(&error))?;
        Ok(Standing {
            mode: mode(store).await?,
            baselines,
            switches: store.switches().await?,
            ca_certificates: ca_certificates(store).await?,
            denied: denied.collect(),
            signer,
            signing_certificates: number_array(&pkcs7),
            signers: rows,
        })
    }

    /// Baselines of one version, for tools beside attestation itself.
    pub fn baselines(&self, version: PolicyVersion) -> Option<&Baselines> {
        self.baselines.get(&version)
    }
}

/// The stored operation mode; TPM until an administrator chooses another.
pub async fn mode(store: &Store) -> Result<AttestationMode, sqlx::Error> {
    let row = store.registered_as(Kind::Setting, OPERATION_MODE).await?;
    Ok(match row.as_ref().map(|row| row.body.as_str()) {
        Some("HostKey") => AttestationMode::HostKey,
        _ => AttestationMode::Tpm,
    })
}

/// Whether keys of CA trustlets are certified; not until an administrator says so.
pub async fn ca_certificates(store: &Store) -> Result<bool, sqlx::Error> {
    let row = store.registered_as(Kind::Setting, CA_CERTIFICATES).await?;
    Ok(row.is_some_and(|row| row.body == "on"))
}

/// `[48,130,…]` without a space: one public client splits at the commas and trims nothing.
fn number_array(bytes: &[u8]) -> Vec<u8> {
    let numbers: Vec<String> = bytes.iter().map(u8::to_string).collect();
    format!("[{}]", numbers.join(",")).into_bytes()
}

/// Name of the setting that holds the operation mode.
pub const OPERATION_MODE: &str = "operation-mode";
/// Name of the setting that is `on` while keys of CA trustlets are certified.
pub const CA_CERTIFICATES: &str = "ca-certificates";
/// How old a picture may be.
pub const FRESH: Duration = Duration::from_secs(1);
