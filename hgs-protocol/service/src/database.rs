//! Pools for the two engines. SQLite: WAL, synchronous=FULL, one writing connection. PostgreSQL: a small pool.
//!
//! Statements are written once with `$1` parameters, which both engines take.

use std::{str::FromStr, time::Duration};

use anyhow::{Context, bail};
use sqlx::{
    PgPool, SqlitePool,
    migrate::Migrator,
    postgres::PgPoolOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

/// A service's database. Cloning shares the pools.
#[derive(Clone, Debug)]
pub enum Database {
    /// The embedded default.
    Sqlite {
        /// Reading connections.
        read: SqlitePool,
        /// The one writing connection.
        write: SqlitePool,
    },
    /// For any number of replicas.
    Postgres(PgPool),
}

impl Database {
    /// Opens `url` (`sqlite://FILE` or `postgres://…`) and brings its tables up to date.
    pub async fn open(url: &str, sqlite: &Migrator, postgres: &Migrator) -> anyhow::Result<Database> {
        match url.split(':').next() {
            Some("sqlite") => {
                let options = SqliteConnectOptions::from_str(url)
                    .context("the database URL is not valid")?
                    .create_if_missing(true)
                    .journal_mode(SqliteJournalMode::Wal)
                    .synchronous(SqliteSynchronous::Full)
                    .foreign_keys(true)
                    .busy_timeout(Duration::from_secs(10));
                let write = SqlitePoolOptions::new()
                    .max_connections(1)
                    .connect_with(options.clone())
                    .await
                    .context("the SQLite database cannot be opened")?;
                sqlite
                    .run(&write)
                    .await
                    .context("the database's tables cannot be brought up to date")?;
                let read = SqlitePoolOptions::new()
                    .max_connections(4)
                    .connect_with(options)
                    .await?;
                Ok(Database::Sqlite { read, write })
            }
            Some("postgres" | "postgresql") => {
                let pool = PgPoolOptions::new()
                    .max_connections(8)
                    .acquire_timeout(Duration::from_secs(5))
                    .connect(url)
                    .await
                    .context("PostgreSQL does not answer: check --database-url and that the server runs")?;
                postgres
                    .run(&pool)
                    .await
                    .context("the database's tables cannot be brought up to date")?;
                Ok(Database::Postgres(pool))
            }
            _ => bail!("the database URL must start with sqlite:// or postgres://"),
        }
    }

    /// True when a trivial question is answered.
    pub async fn answers(&self) -> bool {
        match self {
            Database::Sqlite { read, .. } => sqlx::query("SELECT 1").execute(read).await.is_ok(),
            Database::Postgres(pool) => sqlx::query("SELECT 1").execute(pool).await.is_ok(),
        }
    }
}

/// Runs one expression against whichever engine the database is: `$pool` is bound to the pool that
/// reads (`read`) or writes (`write`).
#[macro_export]
macro_rules! on_database {
    ($database:expr, read, $pool:ident => $body:expr) => {
        match $database {
            $crate::database::Database::Sqlite { read: $pool, .. } => $body,
            $crate::database::Database::Postgres($pool) => $body,
        }
    };
    ($database:expr, write, $pool:ident => $body:expr) => {
        match $database {
            $crate::database::Database::Sqlite { write: $pool, .. } => $body,
            $crate::database::Database::Postgres($pool) => $body,
        }
    };
}
