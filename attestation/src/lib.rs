//! The attestation service: decides whether a host is healthy and certifies its keys (MS-HGSA).
//! `attest` is the story; `http` and `admin` are its shell.

pub mod admin;
pub mod attest;
pub mod baseline;
pub mod ek;
pub mod ek_chain;
pub mod facts;
pub mod http;
pub mod inspect;
pub mod inspect_ek;
pub mod policy;
pub mod refusal;
pub mod replay;
pub mod rtpm;
pub mod store;

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use actix_web::web;
use anyhow::Context;
use hgs_protocol::{
    env::{Env, UnixTime},
    health::{self, AttestationSigner},
    secret::Secret32,
    wire::hgsa::Reply,
};
use hgs_service::{
    audit::{Audit, AuditError, Entry},
    database::Database,
    sealed::Kek,
    serve::{Bound, Metrics, bind},
    settings::Settings,
};
use serde_json::json;
use sqlx::migrate::Migrator;
use tokio::sync::Semaphore;

use crate::{
    attest::{Ask, Decision, Knowledge, attest_tpm},
    policy::{Evaluated, Verdict},
    refusal::Refusal,
    rtpm::StateKeys,
    store::{KnownHost, Store},
};

/// Tables of the embedded database.
pub static SQLITE: Migrator = sqlx::migrate!("../migrations/attestation/sqlite");
/// The same tables in PostgreSQL.
pub static POSTGRES: Migrator = sqlx::migrate!("../migrations/attestation/postgres");

/// What an administrator chooses beyond the settings that all services share.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// How many minutes a health certificate lives
    #[arg(long, env = "HGS_HEALTH_CERTIFICATE_MINUTES", default_value_t = 480,
          value_parser = clap::value_parser!(u64).range(1..=1440))]
    pub health_certificate_minutes: u64,
}

/// Everything that a handler needs.
pub struct App {
    pub(crate) signer: AttestationSigner,
    pub(crate) signing_certificates: Vec<u8>,
    pub(crate) lifetime: Duration,
    pub(crate) store: Store,
    pub(crate) audit: Audit,
    pub(crate) kek: Kek,
    pub(crate) env: Env,
    pub(crate) metrics: Metrics,
    /// Requests that work or wait; beyond it one is turned away at once.
    pub(crate) admitted: Semaphore,
    /// One permit per core: cryptographic work under way.
    cores: Semaphore,
    starts: Mutex<HashMap<[u8; 32], VecDeque<Instant>>>,
    state_keys: Mutex<HashMap<i64, Secret32>>,
}

/// Opens the database, makes the signer on the first start, and binds the listeners.
pub async fn start(settings: &Settings, options: &Options, env: impl Into<Env>) -> anyhow::Result<Bound> {
    let env = env.into();
    let database = Database::open(&settings.database_url, &SQLITE, &POSTGRES).await?;
    let store = Store::new(database.clone());
    let signer = signer(&store, &settings.kek, &env).await?;
    let chain = health::certificates_only(&[signer.certificate_der()])?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let metrics = Metrics::new();
    let app = web::Data::new(App {
        signing_certificates: number_array(&chain),
        signer,
        lifetime: Duration::from_secs(options.health_certificate_minutes.saturating_mul(60)),
        store,
        audit: Audit::start(database.clone(), &settings.kek, env.clock.clone(), &mut env.rng()),
        kek: settings.kek.clone(),
        env: env.clone(),
        metrics: metrics.clone(),
        admitted: Semaphore::new(cores.saturating_mul(32)),
        cores: Semaphore::new(cores),
        starts: Mutex::default(),
        state_keys: Mutex::default(),
    });
    let public = {
        let app = app.clone();
        move |config: &mut web::ServiceConfig| {
            config.app_data(app.clone()).configure(http::routes);
        }
    };
    let admin = move |config: &mut web::ServiceConfig| {
        config.app_data(app.clone()).configure(admin::routes);
    };
    bind(settings, env.clock, database, metrics, public, admin)
}

/// The signer of this fabric, shared by all replicas; made when there is none.
async fn signer(store: &Store, kek: &Kek, env: &Env) -> anyhow::Result<AttestationSigner> {
    if store.sealed(SIGNER).await?.is_none() {
        let made = AttestationSigner::generate(env.now(), &mut env.rng())?;
        let sealed = kek.seal(SIGNER, made.expose_pkcs8(), &mut env.rng());
        store.seal_first(SIGNER, made.certificate_der(), &sealed).await?;
        tracing::info!("made the attestation signer");
    }
    let (certificate, sealed) = store.sealed(SIGNER).await?.context("the attestation signer is gone")?;
    let pkcs8 = kek
        .open(SIGNER, &sealed)
        .context("the attestation signer does not open")?;
    Ok(AttestationSigner::from_parts(&pkcs8, &certificate)?)
}

impl App {
    /// Loads what is known, decides, records, and only then answers.
    pub(crate) async fn decide(app: Arc<App>, ask: Ask) -> Result<Reply, Refusal> {
        let ek = ask.ek.sha256();
        let unreachable = |error: sqlx::Error| {
            tracing::error!(%error, "the database failed an attestation");
            Refusal::Unavailable("the database does not answer")
        };
        let host = app.store.known_host(&ek).await.map_err(unreachable)?;
        if host.is_some() && ask.context.is_none() && !app.may_start(ek) {
            return Err(Refusal::Unavailable(
                "too many exchanges with this endorsement key in a minute",
            ));
        }
        let baselines = app.store.baselines().await.map_err(unreachable)?;
        let switches = app.store.switches().await.map_err(unreachable)?;
        let state_keys = app.state_keys().await.map_err(unreachable)?;
        let _core = app.cores.acquire().await;
        let (worker, known_host) = (app.clone(), host.clone());
        let decided = web::block(move || {
            let known = Knowledge {
                host: known_host.as_ref(),
                baselines: &baselines,
                switches: &switches,
                state_keys: &state_keys,
                signer: &worker.signer,
                lifetime: worker.lifetime,
                now: worker.env.now(),
                unshifted: worker.env.clock.unshifted(),
            };
            let decision = attest_tpm(&ask, &known, &mut worker.env.rng());
            (ask, decision)
        })
        .await;
        let (ask, decision) = decided.map_err(|_| Refusal::Unavailable("shutting down"))?;
        if !decision.goes_on() {
            let entry = Entry {
                kind: "attestation",
                once: decision.exchange,
                body: record(&ask, host.as_ref(), &decision),
            };
            match app.audit.record(entry).await {
                Ok(()) => {}
                Err(AuditError::Twice) => return Err(Refusal::Replayed),
                Err(AuditError::Unavailable) => return Err(Refusal::Unavailable("the decision could not be recorded")),
            }
        }
        decision.outcome
    }

    /// At most [`MOST_STARTS`] exchanges a minute for each registered endorsement key.
    fn may_start(&self, ek: [u8; 32]) -> bool {
        let mut starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
        let times = starts.entry(ek).or_default();
        while times.front().is_some_and(|at| at.elapsed() >= MINUTE) {
            times.pop_front();
        }
        let may = times.len() < MOST_STARTS;
        if may {
            times.push_back(Instant::now());
        }
        may
    }

    /// The hour's key for sealed states, drawn by whichever replica needs it first.
    async fn state_keys(&self) -> Result<StateKeys, sqlx::Error> {
        let UnixTime(now) = self.env.clock.unshifted();
        let hour = now.div_euclid(HOUR);
        let fresh = now.rem_euclid(HOUR) < STATE_LIFE;
        Ok(StateKeys {
            current: self.state_key(hour).await?,
            previous: if fresh {
                Some(self.state_key(hour - 1).await?)
            } else {
                None
            },
        })
    }

    async fn state_key(&self, hour: i64) -> Result<Secret32, sqlx::Error> {
        let cached = |keys: &HashMap<i64, Secret32>| keys.get(&hour).cloned();
        if let Some(key) = cached(&self.state_keys.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(key);
        }
        let name = format!("rtpm-state-{hour}");
        if self.store.sealed(&name).await?.is_none() {
            let drawn = Secret32::random(&mut self.env.rng());
            let sealed = self.kek.seal(&name, drawn.expose(), &mut self.env.rng());
            self.store.seal_first(&name, &[], &sealed).await?;
            self.store.forget_sealed(&format!("rtpm-state-{}", hour - 2)).await?;
        }
        let (_, sealed) = self.store.sealed(&name).await?.ok_or(sqlx::Error::RowNotFound)?;
        let opened = self.kek.open(&name, &sealed);
        let opened = opened.map_err(|error| sqlx::Error::Decode(error.into()))?;
        let key = Secret32::from_slice(&opened).ok_or(sqlx::Error::RowNotFound)?;
        let mut keys = self.state_keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.retain(|other, _| *other >= hour - 1);
        keys.insert(hour, key.clone());
        Ok(key)
    }
}

/// The decision as the audit row keeps it: hashes of keys, never keys.
fn record(ask: &Ask, host: Option<&KnownHost>, decision: &Decision) -> serde_json::Value {
    let verdict = |evaluated: &Evaluated| {
        let outcome = match &evaluated.verdict {
            Verdict::Pass(_) => "pass",
            Verdict::Fail(_) => "fail",
            Verdict::NotMeasured(_) => "not measured",
        };
        let reason = evaluated.verdict.reason();
        json!({
            "policy": evaluated.policy.name,
            "id": evaluated.policy.id.0,
            "enabled": evaluated.enabled,
            "verdict": outcome,
            "decided_by": reason.decided_by,
            "expected": reason.expected,
            "seen": reason.seen,
            "remedy": reason.remedy,
        })
    };
    let verdicts = decision.evaluation.iter().flat_map(|evaluation| evaluation.verdicts());
    let (reply, reason) = match &decision.outcome {
        Ok(reply) => (reply.name(), None),
        Err(refusal) => (refusal.reply().0.name(), Some(refusal.to_string())),
    };
    json!({
        "host": host.map(|host| &host.name),
        "unproven": host.map(|host| host.unproven),
        "ek_sha256": hex::encode(ask.ek.sha256()),
        "session": ask.session.0,
        "mode": "Tpm",
        "reply": reply,
        "reason": reason,
        "authority": decision.evaluation.as_ref().and_then(|evaluation| evaluation.authority()),
        "verdicts": verdicts.map(verdict).collect::<Vec<_>>(),
        "serials": decision.serials,
    })
}

/// `[48,130,…]` without a space: one public client splits at the commas and trims nothing.
fn number_array(bytes: &[u8]) -> Vec<u8> {
    let numbers: Vec<String> = bytes.iter().map(u8::to_string).collect();
    format!("[{}]", numbers.join(",")).into_bytes()
}

const SIGNER: &str = "attestation-signer";
const MINUTE: Duration = Duration::from_secs(60);
const MOST_STARTS: usize = 20;
const HOUR: i64 = 3600;
const STATE_LIFE: i64 = 120;
