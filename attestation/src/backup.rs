//! Backup and restore of the service's state: hosts, artefacts, vendors, denied keys, switches, settings,
//! signers with their private keys, baselines' logs, VSM keys seen. Not in it: the record of decisions (its
//! chains hold only under the lost machine's key; `audit verify --json` keeps their heads), hosts' last boot
//! logs, tokens of administrators and TLS. Restored into an empty database only, before the service's first start.

use anyhow::{Context, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hgs_protocol::env::{Random, UnixTime};
use hgs_service::{backup, sealed::Kek};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    signers,
    store::{BaselineLog, Kind, KnownHost, KnownHostKey, Registered, SeenVsmKey, SignerRow, Slot, Store, Whole},
};

const SERVICE: &str = "attestation";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct State {
    made_at: UnixTime,
    hosts: Vec<KnownHost>,
    host_keys: Vec<KnownHostKey>,
    vsm_keys: Vec<SeenVsmKey>,
    registered: Vec<(Kind, Registered)>,
    signers: Vec<SavedSigner>,
    baseline_logs: Vec<BaselineLog>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SavedSigner {
    slot: Option<Slot>,
    /// DER, base64.
    certificate: String,
    /// PKCS#8, base64; none once it was erased.
    key: Option<Zeroizing<String>>,
    made_at: UnixTime,
    published_until: Option<UnixTime>,
}

/// The present state under `password`.
pub async fn export(
    store: &Store,
    kek: &Kek,
    password: &str,
    now: UnixTime,
    rng: &mut dyn Random,
) -> anyhow::Result<Vec<u8>> {
    let whole = store.whole().await?;
    ensure!(
        whole.signers.iter().any(|row| row.slot == Some(Slot::Active)),
        "the database holds no attestation signer: has the service ever been started on it?"
    );
    let signers = whole.signers.iter().map(|row| save(row, kek));
    let state = State {
        made_at: now,
        signers: signers.collect::<anyhow::Result<_>>()?,
        hosts: whole.hosts,
        host_keys: whole.host_keys,
        vsm_keys: whole.vsm_keys,
        registered: whole.registered,
        baseline_logs: whole.logs,
    };
    backup::seal_state(SERVICE, VERSION, &state, password, rng)
}

/// Restores a backup into an empty database, private keys sealed under this machine's key-encryption key. All or nothing.
pub async fn restore(
    store: &Store,
    kek: &Kek,
    bytes: &[u8],
    password: &str,
    rng: &mut dyn Random,
) -> anyhow::Result<()> {
    let state: State = backup::open_state(SERVICE, VERSION, bytes, password)?;
    let signers = state.signers.iter().map(|saved| load(saved, kek, rng));
    let whole = Whole {
        signers: signers.collect::<anyhow::Result<_>>()?,
        hosts: state.hosts,
        host_keys: state.host_keys,
        vsm_keys: state.vsm_keys,
        registered: state.registered,
        logs: state.baseline_logs,
    };
    ensure!(
        store.fill(&whole).await?,
        "the database is not empty: restore into an empty one, before the service's first start on it"
    );
    Ok(())
}

fn save(row: &SignerRow, kek: &Kek) -> anyhow::Result<SavedSigner> {
    let key = match &row.sealed {
        Some(_) => {
            let signer = signers::open(row, kek).with_context(|| format!("the attestation signer {}", row.id))?;
            Some(Zeroizing::new(STANDARD.encode(signer.expose_pkcs8())))
        }
        None => None,
    };
    Ok(SavedSigner {
        slot: row.slot,
        certificate: STANDARD.encode(&row.certificate),
        key,
        made_at: row.made_at,
        published_until: row.published_until,
    })
}

fn load(saved: &SavedSigner, kek: &Kek, rng: &mut dyn Random) -> anyhow::Result<SignerRow> {
    let certificate = STANDARD.decode(&saved.certificate)?;
    let key = match &saved.key {
        Some(text) => Some(Zeroizing::new(STANDARD.decode(text.as_bytes())?)),
        None => None,
    };
    let mut row = signers::from_parts(key.as_ref().map(|key| key.as_slice()), &certificate, kek, rng)?;
    row.slot = saved.slot;
    row.made_at = saved.made_at;
    row.published_until = saved.published_until;
    Ok(row)
}
