//! The audit chain: each decision is one row, durable before the reply leaves.
//!
//! Rows that wait at the same time are committed together. They are chained per writing process by an
//! HMAC under a key derived from the key-encryption key, since whoever can write the database can
//! recompute a bare hash chain. [`verify`] finds an edited, inserted or missing row, and a cut tail only
//! against a head kept elsewhere; it cannot see a whole writer that was removed unless its head was kept.
//!
//! The table belongs to each service's migrations:
//!
//! ```sql
//! CREATE TABLE audit (
//!     writer   BLOB NOT NULL,    -- BYTEA in PostgreSQL; 16 random bytes per process start
//!     sequence BIGINT NOT NULL,  -- 1, 2, 3 … per writer
//!     at       BIGINT NOT NULL,  -- seconds since 1970, the lab's time
//!     kind     TEXT NOT NULL,    -- what was decided
//!     once     BLOB UNIQUE,      -- BYTEA; an id that may be decided once only, or NULL
//!     body     TEXT NOT NULL,    -- JSON, nothing secret
//!     mac      BLOB NOT NULL,    -- BYTEA; the chain
//!     PRIMARY KEY (writer, sequence)
//! );
//! ```

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use hgs_protocol::{
    crypto::{hmac_sha256, same},
    env::{Env, Random, UnixTime},
    secret::Secret32,
};
use serde::{Deserialize, Serialize};
use sqlx::Row;
use tokio::sync::{mpsc, oneshot};

use crate::{database::Database, on_database, sealed::Kek};

const INSERT: &str = "INSERT INTO audit (writer, sequence, at, kind, once, body, mac) \
                      VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (once) DO NOTHING";
const MOST_IN_A_COMMIT: usize = 256;
const QUEUE: usize = 1024;
/// How long a commit waits for rows that are expected: a few times what it costs by itself.
const GATHERING: Duration = Duration::from_millis(2);

/// Appends rows. Cloning shares the one writing task.
#[derive(Clone)]
pub struct Audit {
    queue: mpsc::Sender<Waiting>,
    expected: Arc<AtomicUsize>,
    not_written: Arc<AtomicU64>,
}

/// A row is on its way: while this lives, a commit waits for it, though never longer than two milliseconds.
#[must_use]
pub struct Expected(Arc<AtomicUsize>);

impl Drop for Expected {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is to be recorded.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What was decided, a short word such as `attestation` or `key-release`.
    pub kind: &'static str,
    /// An id that may be decided once only (the RTPM exchange's); the second row with it is refused.
    pub once: Option<[u8; 16]>,
    /// JSON with nothing secret in it.
    pub body: serde_json::Value,
}

/// Why a row was not recorded; the decision's reply must then not leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// The id of [`Entry::once`] has been decided before.
    #[error("this exchange has been decided before")]
    Twice,
    /// The database did not take the row.
    #[error("the audit record could not be made durable")]
    Unavailable,
}

struct Waiting {
    entry: Entry,
    answer: oneshot::Sender<Result<(), AuditError>>,
}

struct Chain {
    key: Secret32,
    writer: [u8; 16],
    sequence: i64,
    mac: [u8; 32],
}

impl Chain {
    fn begin(key: Secret32, rng: &mut dyn Random) -> Chain {
        Chain {
            key,
            writer: rng.bytes(),
            sequence: 0,
            mac: [0; 32],
        }
    }
}

/// A row as stored.
#[derive(Clone, Debug, Serialize)]
pub struct AuditRow {
    /// Writer id, hex.
    pub writer: String,
    /// Place in the writer's chain, from 1.
    pub sequence: i64,
    /// The lab's time of the decision.
    pub at: UnixTime,
    /// What was decided.
    pub kind: String,
    /// The decision's details.
    pub body: serde_json::Value,
}

/// Where a row stands among all rows by time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The row's time.
    pub at: UnixTime,
    /// Its writer.
    pub writer: Vec<u8>,
    /// Its place in the writer's chain.
    pub sequence: i64,
}

impl AuditRow {
    /// Its place.
    pub fn place(&self) -> Place {
        Place {
            at: self.at,
            // Written as hex a moment ago.
            writer: hex::decode(&self.writer).unwrap_or_default(),
            sequence: self.sequence,
        }
    }
}

impl From<Stored> for AuditRow {
    fn from(row: Stored) -> AuditRow {
        AuditRow {
            writer: hex::encode(row.writer),
            sequence: row.sequence,
            at: UnixTime(row.at),
            kind: row.kind,
            body: serde_json::from_str(&row.body).unwrap_or(serde_json::Value::String(row.body)),
        }
    }
}

/// The end of a writer's chain, to be kept outside the database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Writer id, hex.
    pub writer: String,
    /// The last sequence number.
    pub sequence: i64,
    /// The last row's HMAC, hex.
    pub mac: String,
}

/// What [`verify`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// Rows whose HMAC was computed anew.
    pub rows: usize,
    /// What is wrong, in words; empty when the chains hold.
    pub faults: Vec<String>,
    /// The present heads.
    pub heads: Vec<Head>,
}

impl Audit {
    /// Starts the writing task on the present runtime.
    pub fn start(database: Database, kek: &Kek, env: &Env) -> Audit {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let chain = Chain::begin(kek.derive("HGS-AUDIT"), &mut env.rng());
        let audit = Audit {
            queue,
            expected: Arc::default(),
            not_written: Arc::default(),
        };
        let counts = (audit.expected.clone(), audit.not_written.clone());
        tokio::spawn(write(waiting, database, chain, env.clone(), counts));
        audit
    }

    /// How many rows this process could not write.
    pub fn not_written(&self) -> u64 {
        self.not_written.load(Ordering::Relaxed)
    }

    /// Says that a row will come when the work that begins now is done; hold the answer until
    /// [`Audit::record`] has returned. Only a hint, with which rows of one moment share a commit.
    pub fn expect(&self) -> Expected {
        self.expected.fetch_add(1, Ordering::Relaxed);
        Expected(self.expected.clone())
    }

    /// Records one decision; returns when it is durable.
    pub async fn record(&self, entry: Entry) -> Result<(), AuditError> {
        let (answer, durable) = oneshot::channel();
        self.queue
            .send(Waiting { entry, answer })
            .await
            .map_err(|_| AuditError::Unavailable)?;
        durable.await.unwrap_or(Err(AuditError::Unavailable))
    }
}

async fn write(
    mut waiting: mpsc::Receiver<Waiting>,
    database: Database,
    mut chain: Chain,
    env: Env,
    (expected, not_written): (Arc<AtomicUsize>, Arc<AtomicU64>),
) {
    let mut batch = Vec::new();
    let mut minute = tokio::time::interval(Duration::from_secs(60));
    let mut told = 0;
    loop {
        tokio::select! {
            taken = waiting.recv_many(&mut batch, MOST_IN_A_COMMIT) => {
                if taken == 0 {
                    return;
                }
                let deadline = tokio::time::Instant::now() + GATHERING;
                while batch.len() < expected.load(Ordering::Relaxed).min(MOST_IN_A_COMMIT) {
                    match tokio::time::timeout_at(deadline, waiting.recv()).await {
                        Ok(Some(next)) => batch.push(next),
                        Ok(None) | Err(_) => break,
                    }
                }
            }
            _ = minute.tick() => {
                if chain.sequence != told {
                    told = chain.sequence;
                    tracing::info!(writer = hex::encode(chain.writer), sequence = chain.sequence,
                        mac = hex::encode(chain.mac), "audit head");
                }
                continue;
            }
        }
        let entries: Vec<&Entry> = batch.iter().map(|w| &w.entry).collect();
        let outcome = on_database!(&database, write, pool => commit!(pool, &entries, &chain, env.now()));
        match outcome {
            Ok((results, sequence, mac)) => {
                (chain.sequence, chain.mac) = (sequence, mac);
                for (waiting, result) in batch.drain(..).zip(results) {
                    let _ = waiting.answer.send(result);
                }
            }
            Err(error) => {
                tracing::error!(%error, "the audit rows were not written");
                not_written.fetch_add(u64::try_from(batch.len()).unwrap_or(u64::MAX), Ordering::Relaxed);
                // The rows may be there all the same, if only the answer to COMMIT was lost. A new chain
                // cannot collide with them, and leaves this one with nothing missing.
                chain = Chain::begin(chain.key.clone(), &mut env.rng());
                told = 0;
                for waiting in batch.drain(..) {
                    let _ = waiting.answer.send(Err(AuditError::Unavailable));
                }
            }
        }
    }
}

/// One transaction over either engine; the row types differ, the text does not.
macro_rules! commit {
    ($pool:expr, $entries:expr, $chain:expr, $now:expr) => {
        async {
            let (mut sequence, mut mac) = ($chain.sequence, $chain.mac);
            let mut results = Vec::with_capacity($entries.len());
            if $entries.iter().all(|entry| entry.once.is_none()) {
                // Nothing can be refused, so one statement is the whole transaction: one way to the
                // database and back instead of one per row and two more.
                let mut query = sqlx::query(sqlx::AssertSqlSafe(insert_many($entries.len())));
                for entry in $entries {
                    let body = entry.body.to_string();
                    sequence += 1;
                    mac = link(
                        &$chain.key,
                        &mac,
                        &$chain.writer,
                        sequence,
                        $now,
                        entry.kind,
                        None,
                        &body,
                    );
                    query = query
                        .bind($chain.writer.as_slice())
                        .bind(sequence)
                        .bind($now.0)
                        .bind(entry.kind)
                        .bind(None::<Vec<u8>>)
                        .bind(body)
                        .bind(mac.to_vec());
                    results.push(Ok(()));
                }
                query.execute($pool).await?;
                return Ok((results, sequence, mac));
            }
            let mut transaction = $pool.begin().await?;
            for entry in $entries {
                let body = entry.body.to_string();
                let next = link(
                    &$chain.key,
                    &mac,
                    &$chain.writer,
                    sequence + 1,
                    $now,
                    entry.kind,
                    entry.once.as_ref().map(|o| o.as_slice()),
                    &body,
                );
                let written = sqlx::query(INSERT)
                    .bind($chain.writer.as_slice())
                    .bind(sequence + 1)
                    .bind($now.0)
                    .bind(entry.kind)
                    .bind(entry.once.as_ref().map(|o| o.as_slice()))
                    .bind(body)
                    .bind(next.as_slice())
                    .execute(&mut *transaction)
                    .await?
                    .rows_affected();
                if written == 1 {
                    (sequence, mac) = (sequence + 1, next);
                    results.push(Ok(()));
                } else {
                    results.push(Err(AuditError::Twice));
                }
            }
            transaction.commit().await?;
            Ok::<_, sqlx::Error>((results, sequence, mac))
        }
        .await
    };
}
use commit;

/// The statement that inserts `rows` rows at once.
fn insert_many(rows: usize) -> String {
    let mut text = "INSERT INTO audit (writer, sequence, at, kind, once, body, mac) VALUES ".to_owned();
    for row in 0..rows {
        let columns = (1..=7).map(|column| format!("${}", row * 7 + column));
        let comma = if row == 0 { "" } else { ", " };
        text.push_str(&format!("{comma}({})", columns.collect::<Vec<_>>().join(", ")));
    }
    text
}

#[expect(clippy::too_many_arguments, reason = "every column enters the chain")]
fn link(
    key: &Secret32,
    previous: &[u8],
    writer: &[u8],
    sequence: i64,
    at: UnixTime,
    kind: &str,
    once: Option<&[u8]>,
    body: &str,
) -> [u8; 32] {
    // Each part of varying length is preceded by its length, so that parts cannot be shifted.
    let length = |n: usize| u64::try_from(n).unwrap_or(u64::MAX).to_le_bytes();
    hmac_sha256(
        key.expose(),
        &[
            previous,
            writer,
            &sequence.to_le_bytes(),
            &at.0.to_le_bytes(),
            &length(kind.len()),
            kind.as_bytes(),
            &[u8::from(once.is_some())],
            once.unwrap_or_default(),
            &length(body.len()),
            body.as_bytes(),
        ],
    )
}

struct Stored {
    writer: Vec<u8>,
    sequence: i64,
    at: i64,
    kind: String,
    once: Option<Vec<u8>>,
    body: String,
    mac: Vec<u8>,
}

/// Columns in the order of every SELECT here.
macro_rules! stored {
    ($row:expr) => {
        Stored {
            writer: $row.try_get(0)?,
            sequence: $row.try_get(1)?,
            at: $row.try_get(2)?,
            kind: $row.try_get(3)?,
            once: $row.try_get(4)?,
            body: $row.try_get(5)?,
            mac: $row.try_get(6)?,
        }
    };
}

/// The newest rows, newest first; those of one `kind`, if it is given.
pub async fn newest(database: &Database, kind: Option<&str>, most: i64) -> Result<Vec<AuditRow>, sqlx::Error> {
    let only = if kind.is_some() { "WHERE kind = $2 " } else { "" };
    let rows = select(
        database,
        &format!("{only}ORDER BY at DESC, writer, sequence DESC LIMIT $1"),
        most,
        kind,
    )
    .await?;
    Ok(rows.into_iter().map(AuditRow::from).collect())
}

/// At most `most` rows no earlier than `since`, newest first, from `place` on (with the row there) or from the newest.
pub async fn from(
    database: &Database,
    place: Option<&Place>,
    since: Option<UnixTime>,
    most: usize,
) -> Result<Vec<AuditRow>, sqlx::Error> {
    let text = "SELECT writer, sequence, at, kind, once, body, mac FROM audit WHERE at <= $1 AND at >= $2 \
                AND (at < $1 OR writer > $3 OR (writer = $3 AND sequence <= $4)) \
                ORDER BY at DESC, writer, sequence DESC LIMIT $5";
    let newest = Place {
        at: UnixTime(i64::MAX),
        writer: Vec::new(),
        sequence: i64::MAX,
    };
    let place = place.unwrap_or(&newest);
    on_database!(database, read, pool => {
        let rows = sqlx::query(text)
            .bind(place.at.0)
            .bind(since.map_or(i64::MIN, |since| since.0))
            .bind(place.writer.as_slice())
            .bind(place.sequence)
            .bind(i64::try_from(most).unwrap_or(i64::MAX))
            .fetch_all(pool)
            .await?;
        rows.iter().map(|row| Ok(AuditRow::from(stored!(row)))).collect()
    })
}

/// Computes every chain anew and holds it against `kept` heads.
pub async fn verify(database: &Database, kek: &Kek, kept: &[Head]) -> Result<Verification, sqlx::Error> {
    let rows = select(database, "ORDER BY writer, sequence LIMIT $1", i64::MAX, None).await?;
    let key = kek.derive("HGS-AUDIT");
    let mut found = Verification {
        rows: rows.len(),
        ..Verification::default()
    };
    let mut chains: BTreeMap<Vec<u8>, (i64, Vec<u8>)> = BTreeMap::new();
    let mut macs: BTreeMap<(String, i64), String> = BTreeMap::new();
    for row in rows {
        let name = hex::encode(&row.writer);
        let (last, previous) = chains.entry(row.writer.clone()).or_insert_with(|| (0, vec![0; 32]));
        if row.sequence != *last + 1 {
            found.faults.push(format!(
                "writer {name}: rows {} to {} are missing",
                *last + 1,
                row.sequence - 1
            ));
        }
        let mac = link(
            &key,
            previous,
            &row.writer,
            row.sequence,
            UnixTime(row.at),
            &row.kind,
            row.once.as_deref(),
            &row.body,
        );
        // After a gap the previous HMAC is unknown, so the row cannot be checked; the gap has been told.
        if row.sequence == *last + 1 && !same(&mac, &row.mac) {
            found
                .faults
                .push(format!("writer {name}: row {} was changed", row.sequence));
        }
        macs.insert((name, row.sequence), hex::encode(&row.mac));
        (*last, *previous) = (row.sequence, row.mac);
    }
    for head in kept {
        match macs.get(&(head.writer.clone(), head.sequence)) {
            None => found.faults.push(format!(
                "writer {}: the kept head, row {}, is gone",
                head.writer, head.sequence
            )),
            Some(mac) if *mac != head.mac => {
                found.faults.push(format!(
                    "writer {}: row {} is not the kept head",
                    head.writer, head.sequence
                ));
            }
            Some(_) => {}
        }
    }
    found.heads = chains
        .into_iter()
        .map(|(writer, (sequence, mac))| Head {
            writer: hex::encode(writer),
            sequence,
            mac: hex::encode(mac),
        })
        .collect();
    Ok(found)
}

async fn select(database: &Database, tail: &str, most: i64, kind: Option<&str>) -> Result<Vec<Stored>, sqlx::Error> {
    let text = format!("SELECT writer, sequence, at, kind, once, body, mac FROM audit {tail}");
    on_database!(database, read, pool => {
        let query = sqlx::query(sqlx::AssertSqlSafe(text)).bind(most);
        let rows = match kind {
            Some(kind) => query.bind(kind.to_owned()).fetch_all(pool).await?,
            None => query.fetch_all(pool).await?,
        };
        rows.iter().map(|row| Ok(stored!(row))).collect()
    })
}
