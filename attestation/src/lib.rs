//! The attestation service: decides whether a host is healthy and certifies its keys (MS-HGSA).
//! `attest` is the story; `http` and `admin` are its shell.

pub mod admin;
pub mod attest;
pub mod backup;
pub mod baseline;
pub mod ca_trustlet;
pub mod ci_file;
pub mod compare;
pub mod ek;
pub mod ek_chain;
pub mod events;
pub mod evidence;
pub mod facts;
pub mod host_key;
pub mod http;
pub mod inspect;
pub mod inspect_ek;
pub mod limits;
pub mod platform;
pub mod policy;
pub mod refusal;
pub mod replay;
pub mod rtpm;
pub mod signers;
pub mod standing;
pub mod store;

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use actix_web::web;
use anyhow::Context;
use hgs_protocol::{
    env::{Env, UnixTime},
    protector::suite::Suite,
    secret::Secret32,
    wire::hgsa::{Reply, SessionId},
};
use hgs_service::{
    audit::{Audit, AuditError, Entry},
    database::Database,
    sealed::Kek,
    serve::{Bound, Metrics, bind},
    settings::Settings,
};
use prometheus_client::metrics::gauge::Gauge;
use serde_json::json;
use sqlx::migrate::Migrator;
use tokio::sync::Semaphore;

use crate::{
    attest::{Ask, Decision, Issuing, Knowledge, attest_tpm},
    host_key::{HostKeyAsk, attest_host_key},
    limits::Limiter,
    policy::{Evaluated, Verdict},
    refusal::Refusal,
    rtpm::StateKeys,
    signers::Renewal,
    standing::{Cache, Standing, StandingError},
    store::{SeenVsmKey, Slot, Store},
};

/// Tables of the embedded database.
pub static SQLITE: Migrator = sqlx::migrate!("../migrations/attestation/sqlite");
/// The same tables in PostgreSQL.
pub static POSTGRES: Migrator = sqlx::migrate!("../migrations/attestation/postgres");

/// What an administrator chooses beyond the settings that all services share.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// How many minutes a health certificate lives
    #[arg(long, env = "HGS_HEALTH_CERTIFICATE_MINUTES", default_value_t = LIFETIME_MINUTES,
          value_parser = clap::value_parser!(u64).range(1..=1440))]
    pub health_certificate_minutes: u64,
    /// How many days before its end the attestation signer's successor is made
    #[arg(long, env = "HGS_SIGNER_RENEWAL_DAYS", default_value_t = RENEWAL_DAYS,
          value_parser = clap::value_parser!(u64).range(1..=1800))]
    pub signer_renewal_days: u64,
    /// Key of the attestation signers made from now on. A change takes effect with the next signer; from when it is
    /// made, and so published, until the old one is no longer published, public enclave clients may refuse the list with both kinds
    #[arg(long, env = "HGS_SIGNER_SUITE", value_enum, default_value_t = SignerSuite::Rsa)]
    pub signer_suite: SignerSuite,
    /// How many hours a new attestation signer is published before it may sign; drivers of SQL Server keep the list
    /// for eight
    #[arg(long, env = "HGS_SIGNER_PUBLISH_HOURS", default_value_t = PUBLISH_HOURS,
          value_parser = clap::value_parser!(u64).range(0..=720))]
    pub signer_publish_hours: u64,
    /// Most exchanges (TPM mode) or requests (host-key mode) a minute of one registered key; each replica counts for
    /// itself
    #[arg(long, env = "HGS_REQUESTS_PER_MINUTE_PER_KEY", default_value_t = MOST_STARTS,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub requests_per_minute_per_key: u32,
    /// Most requests a minute from one address; 0 for no limit; each replica counts for itself
    #[arg(long, env = "HGS_REQUESTS_PER_MINUTE_PER_ADDRESS", default_value_t = 0)]
    pub requests_per_minute_per_address: u32,
    /// Addresses of proxies whose X-Forwarded-For counts, separated by commas
    #[arg(long, env = "HGS_TRUSTED_PROXIES", value_delimiter = ',')]
    pub trusted_proxies: Vec<IpAddr>,
}

/// Kind of an attestation signer's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SignerSuite {
    /// RSA-2048, which public enclave clients verify
    Rsa,
    /// P-256
    P256,
}

impl From<SignerSuite> for Suite {
    fn from(suite: SignerSuite) -> Suite {
        match suite {
            SignerSuite::Rsa => Suite::Rsa,
            SignerSuite::P256 => Suite::P256,
        }
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            health_certificate_minutes: LIFETIME_MINUTES,
            signer_renewal_days: RENEWAL_DAYS,
            signer_suite: SignerSuite::Rsa,
            signer_publish_hours: PUBLISH_HOURS,
            requests_per_minute_per_key: MOST_STARTS,
            requests_per_minute_per_address: 0,
            trusted_proxies: Vec::new(),
        }
    }
}

/// Everything that a handler needs.
pub struct App {
    pub(crate) lifetime: Duration,
    pub(crate) renewal_ahead: Duration,
    signer_suite: Suite,
    /// How long a signer is published before it signs.
    pub(crate) publish_first: Duration,
    pub(crate) store: Store,
    pub(crate) audit: Audit,
    pub(crate) kek: Kek,
    pub(crate) env: Env,
    pub(crate) metrics: Metrics,
    /// Requests that work or wait; beyond it one is turned away at once.
    pub(crate) admitted: Semaphore,
    /// Policies being tried on all hosts: half of the cores at most, so that attestations have the others.
    pub(crate) trials: Semaphore,
    /// Requests of one address, where a limit is set.
    pub(crate) addresses: Option<Limiter<IpAddr>>,
    pub(crate) proxies: Vec<IpAddr>,
    cache: Cache,
    /// One permit per core: cryptographic work under way.
    cores: Arc<Semaphore>,
    /// Exchanges and requests of one registered key.
    keys: Limiter<[u8; 32]>,
    state_keys: Mutex<HashMap<i64, Secret32>>,
    gauges: Gauges,
    told: Mutex<Option<Renewal>>,
}

/// What `/metrics` says of signers.
struct Gauges {
    seconds_left: Gauge,
    pending: Gauge,
    late: Gauge,
}

/// Opens the database of `settings` and brings its tables up to date.
pub async fn open_store(settings: &Settings) -> anyhow::Result<Store> {
    Ok(Store::new(
        Database::open(&settings.database_url, &SQLITE, &POSTGRES).await?,
    ))
}

/// Opens the database, makes the signer on the first start, and binds the listeners.
pub async fn start(settings: &Settings, options: &Options, env: impl Into<Env>) -> anyhow::Result<Bound> {
    let env = env.into();
    let store = open_store(settings).await?;
    let database = store.database().clone();
    let lifetime = Duration::from_secs(options.health_certificate_minutes.saturating_mul(60));
    signers::remember_lifetime(&store, lifetime).await?;
    if !store.signers().await?.iter().any(|row| row.slot == Some(Slot::Active)) {
        let first = signers::make(
            Slot::Active,
            options.signer_suite.into(),
            &settings.kek,
            env.now(),
            &mut env.rng(),
        )?;
        if store.add_signer(&first).await? {
            tracing::info!(id = first.id, "made the attestation signer");
        }
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let gauges = Gauges {
        seconds_left: Gauge::default(),
        pending: Gauge::default(),
        late: Gauge::default(),
    };
    let metrics = Metrics::with(|registry| {
        let mut gauge = |name: &str, help: &str, gauge: &Gauge| registry.register(name, help, gauge.clone());
        gauge(
            "hgs_attestation_signer_seconds_left",
            "Seconds until the active attestation signer ends",
            &gauges.seconds_left,
        );
        gauge(
            "hgs_attestation_signer_pending",
            "1 while a new attestation signer waits to be registered with key protection",
            &gauges.pending,
        );
        gauge(
            "hgs_attestation_signer_late",
            "1 while the renewal of the attestation signer is late",
            &gauges.late,
        );
    });
    let limit = options.requests_per_minute_per_address;
    let app = web::Data::new(App {
        lifetime,
        signer_suite: options.signer_suite.into(),
        renewal_ahead: Duration::from_secs(options.signer_renewal_days.saturating_mul(86_400)),
        publish_first: Duration::from_secs(options.signer_publish_hours.saturating_mul(3600)),
        store,
        audit: Audit::start(database.clone(), &settings.kek, &env),
        kek: settings.kek.clone(),
        env: env.clone(),
        metrics: metrics.clone(),
        admitted: Semaphore::new(cores.saturating_mul(32)),
        trials: Semaphore::new((cores / 2).max(1)),
        addresses: (limit > 0).then(|| Limiter::new(limit)),
        proxies: options.trusted_proxies.clone(),
        cache: Cache::default(),
        cores: Arc::new(Semaphore::new(cores)),
        keys: Limiter::new(options.requests_per_minute_per_key),
        state_keys: Mutex::default(),
        gauges,
        told: Mutex::default(),
    });
    app.standing().await.context("the attestation signer does not open")?;
    tokio::spawn(App::tend(Arc::downgrade(&app.clone().into_inner())));
    let audit = app.audit.clone();
    let public = {
        let app = app.clone();
        move |config: &mut web::ServiceConfig| {
            config.app_data(app.clone()).configure(http::routes);
        }
    };
    let admin = move |config: &mut web::ServiceConfig| {
        config.app_data(app.clone()).configure(admin::routes);
    };
    bind(settings, env.clock, database, audit, metrics, public, admin)
}

/// A request of the mode in force.
pub(crate) enum AnyAsk {
    Tpm(Ask),
    HostKey(HostKeyAsk),
}

/// Whom a decision is about, for its record.
struct Subject {
    host: Option<String>,
    unproven: Option<bool>,
    key: Option<(&'static str, [u8; 32])>,
    session: SessionId,
    mode: &'static str,
}

impl App {
    /// What stands now.
    pub(crate) async fn standing(&self) -> Result<Arc<Standing>, StandingError> {
        self.cache.standing(&self.store, &self.kek, self.env.now()).await
    }

    /// The last known state, for what must be answered though the database is away.
    pub(crate) fn last_standing(&self) -> Option<Arc<Standing>> {
        self.cache.last()
    }

    /// After a change that this process wrote.
    pub(crate) fn changed(&self) {
        self.cache.changed();
    }

    /// Loads what is known, decides, records, and only then answers.
    pub(crate) async fn decide(app: Arc<App>, ask: AnyAsk) -> Result<Reply, Refusal> {
        let standing = app.standing().await.map_err(unreachable)?;
        match ask {
            AnyAsk::Tpm(ask) => App::decide_tpm(app, ask, standing).await,
            AnyAsk::HostKey(ask) => App::decide_host_key(app, ask, standing).await,
        }
    }

    async fn decide_tpm(app: Arc<App>, ask: Ask, standing: Arc<Standing>) -> Result<Reply, Refusal> {
        let ek = ask.ek.sha256();
        let mut hosts = app.store.known_hosts(&ek).await.map_err(unreachable)?;
        if !hosts.is_empty() && ask.context.is_none() && !app.keys.admit(ek) {
            return Err(TOO_OFTEN);
        }
        let state_keys = app.state_keys().await.map_err(unreachable)?;
        let session = ask.session;
        let (decision, mut hosts) = app
            .clone()
            .work(standing, move |app, issuing, standing| {
                let known = Knowledge {
                    hosts: &hosts,
                    baselines: &standing.baselines,
                    switches: &standing.switches,
                    ca_certificates: standing.ca_certificates,
                    state_keys: &state_keys,
                    issuing,
                    unshifted: app.env.clock.unshifted(),
                };
                let decision = attest_tpm(&ask, &known, &mut app.env.rng());
                (decision, std::mem::take(&mut hosts))
            })
            .await?;
        if decision.goes_on() {
            return decision.outcome;
        }
        let at = hosts.iter().position(|host| decision.version == Some(host.version));
        let host = match hosts.is_empty() {
            true => None,
            false => Some(hosts.swap_remove(at.unwrap_or(0))),
        };
        let subject = Subject {
            unproven: host.as_ref().map(|host| host.unproven),
            host: host.map(|host| host.name),
            key: Some(("ek_sha256", ek)),
            session,
            mode: "Tpm",
        };
        app.conclude(subject, decision).await
    }

    async fn decide_host_key(app: Arc<App>, ask: HostKeyAsk, standing: Arc<Standing>) -> Result<Reply, Refusal> {
        let key = ask.host_key.as_ref().map(host_key::HostKey::sha256);
        let host = match &key {
            Some(sha256) => app.store.known_host_key(sha256).await.map_err(unreachable)?,
            None => None,
        };
        if let (Some(_), Some(sha256)) = (&host, key)
            && !app.keys.admit(sha256)
        {
            return Err(TOO_OFTEN);
        }
        let subject = Subject {
            host: host.as_ref().map(|host| host.name.clone()),
            unproven: None,
            key: key.map(|sha256| ("host_key_sha256", sha256)),
            session: ask.session,
            mode: "HostKey",
        };
        let decision = app
            .clone()
            .work(standing, move |app, issuing, _| {
                attest_host_key(&ask, host.as_ref(), issuing, &mut app.env.rng())
            })
            .await?;
        app.conclude(subject, decision).await
    }

    /// Runs a story on a thread of its own, as many at a time as there are cores.
    async fn work<T: Send + 'static>(
        self: Arc<App>,
        standing: Arc<Standing>,
        mut story: impl FnMut(&App, &Issuing<'_>, &Standing) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let app = self.clone();
        let core = self.cores.clone().acquire_owned().await;
        let done = web::block(move || {
            let issuing = Issuing {
                signer: &standing.signer,
                lifetime: app.lifetime,
                now: app.env.now(),
                mode: standing.mode,
                denied: &standing.denied,
            };
            let outcome = story(&app, &issuing, &standing);
            // The next one need not wait until the event loop has heard of this end.
            drop(core);
            outcome
        });
        done.await.map_err(|_| Refusal::Unavailable("shutting down"))
    }

    /// Makes the decision durable, then answers with it.
    async fn conclude(&self, subject: Subject, decision: Decision) -> Result<Reply, Refusal> {
        if let Some(host) = &subject.host {
            for sha256 in &decision.certified {
                let seen = SeenVsmKey {
                    host: host.clone(),
                    spki_sha256: *sha256,
                    mode: subject.mode.to_owned(),
                    first_seen: self.env.now(),
                };
                self.store.saw_vsm_key(&seen).await.map_err(unreachable)?;
            }
        }
        let entry = Entry {
            kind: "attestation",
            once: decision.exchange,
            body: record(&subject, &decision),
        };
        match self.audit.record(entry).await {
            Ok(()) => {
                if let (Some(host), Some(evidence)) = (&subject.host, &decision.evidence) {
                    evidence::keep_of_host(self.store.database(), host, evidence, self.env.now()).await;
                }
                decision.outcome
            }
            Err(AuditError::Twice) => Err(Refusal::Replayed),
            Err(AuditError::Unavailable) => Err(Refusal::Unavailable("the decision could not be recorded")),
        }
    }

    /// Does what the passing of time asks for, once a second, for as long as the service lives.
    async fn tend(app: std::sync::Weak<App>) {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        loop {
            second.tick().await;
            let Some(app) = app.upgrade() else { return };
            if let Err(error) = app.tend_signers().await {
                tracing::warn!(%error, "the attestation signers could not be looked after");
            }
        }
    }

    /// Makes the next signer when it is due, erases keys that have no more use, and says where things stand.
    pub(crate) async fn tend_signers(&self) -> Result<Renewal, StandingError> {
        let standing = self.standing().await?;
        let now = self.env.now();
        let renewal = signers::renewal(&standing.signers, now, self.renewal_ahead);
        let of = |slot| standing.signers.iter().find(move |row| row.slot == Some(slot));
        let left = of(Slot::Active).map_or(0, |row| signers::not_after(row).seconds_since(now));
        let pending = of(Slot::Pending).is_some();
        self.gauges.seconds_left.set(left);
        self.gauges.pending.set(i64::from(pending));
        let late = matches!(renewal, Renewal::Late | Renewal::Expired);
        self.gauges.late.set(i64::from(late));
        if !pending && !matches!(renewal, Renewal::NotDue | Renewal::Pending) {
            self.make_pending_signer().await?;
        }
        let over = |row: &store::SignerRow| row.slot.is_none() && row.sealed.is_some() && !row.is_published(now);
        if standing.signers.iter().any(over) {
            self.store.erase_old_signer_keys(now).await?;
            self.changed();
        }
        let news = {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            let news = *told != Some(renewal) && !matches!(renewal, Renewal::NotDue | Renewal::Due);
            *told = Some(renewal);
            news
        };
        if news {
            tracing::warn!(?renewal, seconds_left = left, "the renewal of the attestation signer");
            self.tell(json!({ "event": "renewal", "state": renewal, "seconds_left": left }))
                .await;
        }
        Ok(renewal)
    }

    /// Makes a pending signer unless there is one.
    pub(crate) async fn make_pending_signer(&self) -> Result<(), StandingError> {
        let made = signers::make(
            Slot::Pending,
            self.signer_suite,
            &self.kek,
            self.env.now(),
            &mut self.env.rng(),
        );
        let made = made.map_err(|error| StandingError::Signer(error.to_string()))?;
        if self.store.add_signer(&made).await? {
            tracing::info!(
                id = made.id,
                "made the next attestation signer; register it with key protection"
            );
            self.tell(json!({ "event": "made", "sha256": made.id })).await;
        }
        self.changed();
        Ok(())
    }

    /// What an administrator is about to change, into the record, before it is changed.
    pub(crate) async fn record_change(&self, body: serde_json::Value) -> Result<(), AuditError> {
        let entry = Entry {
            kind: "setting",
            once: None,
            body,
        };
        self.audit.record(entry).await
    }

    /// An event of the signers' life, into the record.
    pub(crate) async fn tell(&self, body: serde_json::Value) {
        let entry = Entry {
            kind: "attestation-signer",
            once: None,
            body,
        };
        if let Err(error) = self.audit.record(entry).await {
            tracing::error!(%error, "an event of the attestation signers was not recorded");
        }
    }

    /// The hour's key for sealed states, drawn by whichever replica needs it first.
    async fn state_keys(&self) -> Result<StateKeys, sqlx::Error> {
        let UnixTime(now) = self.env.clock.unshifted();
        let hour = now.div_euclid(HOUR);
        let into = now.rem_euclid(HOUR);
        let mut others = Vec::new();
        if into < STATE_LIFE {
            others.push(self.state_key(hour - 1).await?);
        }
        // A replica whose clock is ahead may have turned to the next hour already.
        if into >= HOUR - rtpm::SKEW {
            others.push(self.state_key(hour + 1).await?);
        }
        Ok(StateKeys {
            current: self.state_key(hour).await?,
            others,
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
            // Hours of one number of digits sort as their names do.
            self.store
                .forget_sealed_below("rtpm-state-", &format!("rtpm-state-{}", hour - 2))
                .await?;
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

fn unreachable(error: impl std::fmt::Display) -> Refusal {
    tracing::error!(%error, "the database failed an attestation");
    Refusal::Unavailable("the database does not answer")
}

/// The decision as the audit row keeps it: hashes of keys, never keys.
fn record(subject: &Subject, decision: &Decision) -> serde_json::Value {
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
    let mut body = json!({
        "host": subject.host,
        "unproven": subject.unproven,
        "session": subject.session.0,
        "mode": subject.mode,
        "policy_version": decision.version,
        "reply": reply,
        "reason": reason,
        "host_status": evidence::host_status(&decision.outcome),
        "authority": decision.evaluation.as_ref().and_then(|evaluation| evaluation.authority()),
        "verdicts": verdicts.map(verdict).collect::<Vec<_>>(),
        "serials": decision.serials,
        "vsm_keys": decision.certified.iter().map(hex::encode).collect::<Vec<_>>(),
    });
    if let (Some((name, sha256)), Some(members)) = (subject.key, body.as_object_mut()) {
        members.insert(name.to_owned(), json!(hex::encode(sha256)));
    }
    body
}

const TOO_OFTEN: Refusal = Refusal::Unavailable("too many exchanges with this key in a minute");
const LIFETIME_MINUTES: u64 = 480;
const RENEWAL_DAYS: u64 = 60;
const PUBLISH_HOURS: u64 = 9;
const MOST_STARTS: u32 = 20;
const HOUR: i64 = 3600;
const STATE_LIFE: i64 = 120;
