//! The key protection service (MS-KPS): exchanges a key protector and a health certificate for the
//! keys of a shielded VM. `roll` is the story; everything else is its shell.

pub mod admin;
pub mod backup;
pub mod events;
pub mod guardian;
pub mod http;
pub mod refusal;
pub mod roll;
pub mod standing;
pub mod store;
pub mod token;

use std::sync::Arc;

use actix_web::web;
use hgs_protocol::{env::Env, protector::ChainCache};
use hgs_service::{
    audit::Audit,
    database::Database,
    serve::{Bound, Metrics, bind},
    settings::Settings,
};
use sqlx::migrate::Migrator;
use tokio::sync::Semaphore;

use crate::{
    guardian::Vault,
    standing::Current,
    store::Store,
    token::{Token, TokenOptions},
};

/// What an administrator chooses beyond the settings that all services share.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Options {
    /// How many offline unwraps a released key may at most carry, until an administrator sets it; 0 allows none
    #[arg(long, env = "HGS_MAX_OFFLINE_UNWRAPS", default_value_t = 0)]
    pub max_offline_unwraps: u32,
    /// The token that holds the private keys, if any does.
    #[command(flatten)]
    pub token: TokenOptions,
}

/// Everything that a handler needs.
pub struct App {
    pub(crate) current: Arc<Current>,
    pub(crate) vault: Vault,
    pub(crate) chains: ChainCache,
    pub(crate) store: Store,
    pub(crate) audit: Audit,
    pub(crate) env: Env,
    pub(crate) metrics: Metrics,
    /// One permit per core: cryptographic work under way.
    pub(crate) cores: Arc<Semaphore>,
    /// Requests that work or wait; beyond it a request is turned away at once.
    pub(crate) admitted: Semaphore,
    /// The same for GetMetaData, which needs no database: requests that wait for it do not keep this one out.
    pub(crate) readers: Semaphore,
}

/// The tables in SQLite.
pub static SQLITE: Migrator = sqlx::migrate!("../migrations/kps/sqlite");
/// The tables in PostgreSQL.
pub static POSTGRES: Migrator = sqlx::migrate!("../migrations/kps/postgres");

/// Opens the database of `settings` and brings its tables up to date.
pub async fn open_store(settings: &Settings) -> anyhow::Result<Store> {
    let database = Database::open(&settings.database_url, &SQLITE, &POSTGRES).await?;
    Ok(Store::new(database))
}

/// Opens the database, makes the certificates on the first start, and binds the listeners.
pub async fn start(settings: &Settings, options: &Options, env: impl Into<Env>) -> anyhow::Result<Bound> {
    let env = env.into();
    let store = open_store(settings).await?;
    let database = store.database().clone();
    let vault = Vault {
        kek: settings.kek.clone(),
        token: Token::open(&options.token)?,
    };
    guardian::make_first(&store, &vault, env.now(), &mut env.rng()).await?;
    let current = Arc::new(Current::read(store.clone(), vault.clone(), options.max_offline_unwraps).await?);
    tokio::spawn(Current::watch(Arc::downgrade(&current)));
    let metrics = Metrics::new();
    let app = web::Data::from(Arc::new(App {
        current,
        vault,
        chains: ChainCache::new(CHAIN_CACHE),
        store,
        audit: Audit::start(database.clone(), &settings.kek, &env),
        env: env.clone(),
        metrics: metrics.clone(),
        cores: Arc::new(Semaphore::new(cores())),
        admitted: Semaphore::new(capacity()),
        readers: Semaphore::new(capacity()),
    }));
    let admin = app.clone();
    bind(
        settings,
        env.clock,
        database,
        app.audit.clone(),
        metrics,
        move |service| {
            service.app_data(app.clone()).configure(http::routes);
        },
        move |service| {
            service.app_data(admin.clone()).configure(admin::routes);
        },
    )
}

/// How many requests a process takes on at once; to one more it answers that it is busy.
pub fn capacity() -> usize {
    cores() * WAITING_PER_CORE
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Bytes of verified chains that are kept: those of some ten thousand VMs.
const CHAIN_CACHE: usize = 64 << 20;
/// A roll takes a few milliseconds of a core, so the last in the queue waits well under a second.
const WAITING_PER_CORE: usize = 32;
