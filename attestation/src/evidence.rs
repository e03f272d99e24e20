//! What is kept about hosts beyond the decisions: the last few boot logs of each, and each baseline's own;
//! and a host's history, read from the audit rows. Bounded by host. Judges only for trying, never for real.

use std::collections::BTreeMap;

use hgs_protocol::{
    crypto,
    env::UnixTime,
    status::{AttestationStatus, Substatus},
    wire::{
        boot_log::{Bank, BootLog},
        hgsa::Reply,
    },
};
use hgs_service::{database::Database, on_database};
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::Row;

use crate::{
    baseline::{Baselines, Switches},
    facts::BootFacts,
    policy::{Evaluation, evaluate},
    refusal::Refusal,
    replay::{ATTESTED_PCRS, PcrReadout, ReplayedLog, TcgLogError},
};

/// Whose log it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A registered host's.
    Host,
    /// A TPM baseline's.
    Baseline,
}

impl Subject {
    fn column(self) -> &'static str {
        match self {
            Subject::Host => "host",
            Subject::Baseline => "baseline",
        }
    }
}

/// A boot log with the PCR values that came with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Values of [`ATTESTED_PCRS`] in their order, 32 bytes each; empty for a baseline.
    readout: Vec<u8>,
    log: Vec<u8>,
}

impl Evidence {
    /// What a finished exchange brought.
    pub fn of_exchange(readout: &PcrReadout, log: Vec<u8>) -> Evidence {
        let values = ATTESTED_PCRS.iter().filter_map(|pcr| readout.value(*pcr));
        Evidence {
            readout: values.flatten().copied().collect(),
            log,
        }
    }

    /// A log alone.
    pub fn of_log(log: &[u8]) -> Evidence {
        Evidence {
            readout: Vec::new(),
            log: log.to_vec(),
        }
    }

    /// As if a TPM had reported what the log replays to: for explaining a log, never for a host.
    pub(crate) fn as_if_vouched_for(log: &BootLog) -> Evidence {
        let values = log.replay(Bank::Sha256);
        let value = |pcr: &u8| {
            let there = values.iter().find(|(index, _)| index.get() == *pcr);
            there.map_or_else(|| vec![0; 32], |(_, value)| value.clone())
        };
        Evidence {
            readout: ATTESTED_PCRS.iter().flat_map(value).collect(),
            log: log.encode(),
        }
    }

    /// The boot log.
    pub fn log(&self) -> &[u8] {
        &self.log
    }

    /// The verdicts that these artefacts and switches would give. Nothing is certified by it: whoever can
    /// write the database can write evidence.
    pub(crate) fn judge(&self, baselines: &Baselines, switches: &Switches) -> Result<Evaluation, TcgLogError> {
        let values = ATTESTED_PCRS.iter().zip(self.readout.chunks_exact(32));
        let values: BTreeMap<u8, [u8; 32]> = values
            .filter_map(|(pcr, value)| Some((*pcr, value.try_into().ok()?)))
            .collect();
        let readout = PcrReadout::authenticated(values).ok_or(TcgLogError::NoSha256Bank)?;
        let replayed = ReplayedLog::replay(&BootLog::parse(&self.log)?, &readout)?;
        Ok(evaluate(BootFacts::read(&replayed), baselines, switches))
    }

    fn sha256(&self) -> [u8; 32] {
        crypto::sha256(&[self.readout.as_slice(), &self.log].concat())
    }
}

/// Keeps what `name` brought, unless it is what it brought last; older logs than the last three go.
pub async fn keep(
    database: &Database,
    subject: Subject,
    name: &str,
    evidence: &Evidence,
    at: UnixTime,
) -> Result<(), sqlx::Error> {
    let sha256 = evidence.sha256();
    let last = "SELECT sha256, place FROM evidence WHERE subject = $1 AND name = $2 ORDER BY place DESC LIMIT 1";
    let last: Option<(Vec<u8>, i64)> = on_database!(database, read, pool => {
        let row = sqlx::query(last).bind(subject.column()).bind(name).fetch_optional(pool).await?;
        row.map(|row| Ok::<_, sqlx::Error>((row.try_get(0)?, row.try_get(1)?))).transpose()?
    });
    let place = match last {
        Some((there, _)) if there == sha256 => return Ok(()),
        other => other.map_or(1, |(_, place)| place.saturating_add(1)),
    };
    let insert = "INSERT INTO evidence (subject, name, sha256, place, at, readout, log) \
                  VALUES ($1, $2, $3, $4, $5, $6, $7) \
                  ON CONFLICT (subject, name, sha256) DO UPDATE SET place = excluded.place, at = excluded.at";
    let trim = "DELETE FROM evidence WHERE subject = $1 AND name = $2 AND place <= $3";
    on_database!(database, write, pool => {
        let mut transaction = pool.begin().await?;
        sqlx::query(insert)
            .bind(subject.column())
            .bind(name)
            .bind(sha256.as_slice())
            .bind(place)
            .bind(at.0)
            .bind(evidence.readout.as_slice())
            .bind(evidence.log.as_slice())
            .execute(&mut *transaction)
            .await?;
        let oldest = place.saturating_sub(KEPT);
        sqlx::query(trim).bind(subject.column()).bind(name).bind(oldest).execute(&mut *transaction).await?;
        transaction.commit().await
    })
}

/// Keeps what a host brought. Its decision stands without it, so a failure is only told.
pub(crate) async fn keep_of_host(database: &Database, host: &str, evidence: &Evidence, at: UnixTime) {
    if let Err(error) = keep(database, Subject::Host, host, evidence, at).await {
        tracing::warn!(%error, host, "the boot log was not kept");
    }
}

/// The last log of `name`, and when it came.
pub async fn last(
    database: &Database,
    subject: Subject,
    name: &str,
) -> Result<Option<(Evidence, UnixTime)>, sqlx::Error> {
    let text = "SELECT readout, log, at FROM evidence WHERE subject = $1 AND name = $2 ORDER BY place DESC LIMIT 1";
    on_database!(database, read, pool => {
        let row = sqlx::query(text).bind(subject.column()).bind(name).fetch_optional(pool).await?;
        row.map(|row| {
            let evidence = Evidence { readout: row.try_get(0)?, log: row.try_get(1)? };
            Ok((evidence, UnixTime(row.try_get(2)?)))
        })
        .transpose()
    })
}

/// The last log of each host whose name comes after `after`, up to `last`, with the time when it came.
pub async fn last_between(
    database: &Database,
    after: &str,
    last: &str,
) -> Result<BTreeMap<String, (Evidence, UnixTime)>, sqlx::Error> {
    let text = "SELECT name, readout, log, at FROM evidence AS kept \
                WHERE subject = 'host' AND name > $1 AND name <= $2 AND place = \
                (SELECT MAX(place) FROM evidence AS newer WHERE newer.subject = 'host' AND newer.name = kept.name)";
    on_database!(database, read, pool => {
        let rows = sqlx::query(text).bind(after).bind(last).fetch_all(pool).await?;
        rows.into_iter()
            .map(|row| {
                let evidence = Evidence { readout: row.try_get(1)?, log: row.try_get(2)? };
                Ok((row.try_get(0)?, (evidence, UnixTime(row.try_get(3)?))))
            })
            .collect()
    })
}

/// Forgets what is kept of `name`.
pub async fn forget(database: &Database, subject: Subject, name: &str) -> Result<(), sqlx::Error> {
    on_database!(database, write, pool => {
        sqlx::query("DELETE FROM evidence WHERE subject = $1 AND name = $2")
            .bind(subject.column())
            .bind(name)
            .execute(pool)
            .await?;
        Ok(())
    })
}

/// What the host will say about this decision: status, substatus, and what helps.
pub(crate) fn host_status(outcome: &Result<Reply, Refusal>) -> Value {
    let (status, substatus) = match outcome.as_ref().map_err(|refusal| refusal.reply().0) {
        Ok(_) => (AttestationStatus::Passed, Substatus::default()),
        Err(Reply::Error { kind, .. }) => (AttestationStatus::of_error(&kind), Substatus::of_error(&kind)),
        Err(_) => (AttestationStatus::TransientError, Substatus::default()),
    };
    json!({
        "status": status,
        "code": status.code(),
        "substatus": substatus.text(),
        "bits": substatus.bits(),
        // Only 1, 2 and 4 are the product's numbers; the rest are this project's.
        "documented_bits": substatus.bits() & 7,
        "remedy": status.remedy(),
    })
}

/// One decision about a host.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct PastDecision {
    /// Where the next page goes on: give it as `before`.
    pub cursor: String,
    /// When it was taken.
    #[schema(value_type = i64)]
    pub at: UnixTime,
    /// Its audit row: reply, the host's status and substatus, every policy's verdict.
    #[schema(value_type = Object)]
    pub decision: Value,
}

/// The decisions about `host`, newest first, older than the cursor `before`.
pub async fn history(
    database: &Database,
    host: &str,
    before: Option<&str>,
    most: i64,
) -> Result<Vec<PastDecision>, sqlx::Error> {
    let (at, sequence, writer) = before
        .and_then(parse_cursor)
        .unwrap_or((i64::MAX, i64::MAX, Vec::new()));
    // The index is on this very expression.
    let body = match database {
        Database::Sqlite { .. } => "json_extract(body, '$.host')",
        Database::Postgres(_) => "(body::jsonb ->> 'host')",
    };
    let text = format!(
        "SELECT at, sequence, writer, body FROM audit WHERE {body} = $1 AND kind = 'attestation' \
         AND (at < $2 OR (at = $2 AND (sequence < $3 OR (sequence = $3 AND writer < $4)))) \
         ORDER BY at DESC, sequence DESC, writer DESC LIMIT $5"
    );
    on_database!(database, read, pool => {
        let rows = sqlx::query(sqlx::AssertSqlSafe(text))
            .bind(host)
            .bind(at)
            .bind(sequence)
            .bind(writer)
            .bind(most)
            .fetch_all(pool)
            .await?;
        rows.into_iter()
            .map(|row| {
                let (at, sequence): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
                let (writer, body): (Vec<u8>, String) = (row.try_get(2)?, row.try_get(3)?);
                Ok(PastDecision {
                    cursor: format!("{at}.{sequence}.{}", hex::encode(writer)),
                    at: UnixTime(at),
                    decision: serde_json::from_str(&body).unwrap_or(Value::String(body)),
                })
            })
            .collect()
    })
}

fn parse_cursor(text: &str) -> Option<(i64, i64, Vec<u8>)> {
    let mut parts = text.splitn(3, '.');
    let (at, sequence, writer) = (parts.next()?, parts.next()?, parts.next()?);
    Some((at.parse().ok()?, sequence.parse().ok()?, hex::decode(writer).ok()?))
}

/// Logs kept of one host.
const KEPT: i64 = 3;

#[cfg(test)]
mod tests {
    use hgs_protocol::{
        env::{Env, OsRandom, Random},
        secret::Secret32,
    };
    use hgs_service::{
        audit::{Audit, Entry},
        sealed::Kek,
    };

    use super::*;

    async fn contract(url: &str) {
        let database = Database::open(url, &crate::SQLITE, &crate::POSTGRES).await.unwrap();
        let rng: &mut dyn Random = &mut OsRandom;
        let name = format!("host-{}", hex::encode(rng.bytes::<8>()));
        assert_eq!(last(&database, Subject::Host, &name).await.unwrap(), None);
        for boot in 0u8..6 {
            let evidence = Evidence::of_log(&[boot]);
            for _ in 0..2 {
                keep(&database, Subject::Host, &name, &evidence, UnixTime(5))
                    .await
                    .unwrap();
            }
        }
        let kept = last(&database, Subject::Host, &name).await.unwrap();
        assert_eq!(kept, Some((Evidence::of_log(&[5]), UnixTime(5))));
        let text = "SELECT COUNT(*) FROM evidence WHERE name = $1";
        let count: i64 = on_database!(&database, read, pool => {
            sqlx::query_scalar(text).bind(&name).fetch_one(pool).await.unwrap()
        });
        assert_eq!(count, KEPT);
        // An older log that comes again is the last one.
        keep(&database, Subject::Host, &name, &Evidence::of_log(&[4]), UnixTime(6))
            .await
            .unwrap();
        let kept = last(&database, Subject::Host, &name).await.unwrap();
        assert_eq!(kept, Some((Evidence::of_log(&[4]), UnixTime(6))));
        assert_eq!(last(&database, Subject::Baseline, &name).await.unwrap(), None);
        let between = last_between(&database, &name[..name.len() - 1], &name).await.unwrap();
        assert_eq!(between.get(&name), Some(&(Evidence::of_log(&[4]), UnixTime(6))));
        assert!(last_between(&database, &name, &name).await.unwrap().is_empty());
        forget(&database, Subject::Host, &name).await.unwrap();
        assert_eq!(last(&database, Subject::Host, &name).await.unwrap(), None);

        let audit = Audit::start(
            database.clone(),
            &Kek::new(Secret32::random(&mut OsRandom)),
            &Env::system(),
        );
        for number in 0..5 {
            for host in [name.as_str(), "another"] {
                let body = json!({ "host": host, "number": number });
                let entry = Entry {
                    kind: "attestation",
                    once: None,
                    body,
                };
                audit.record(entry).await.unwrap();
            }
        }
        let mut seen = Vec::new();
        let mut before = None;
        loop {
            let page = history(&database, &name, before.as_deref(), 2).await.unwrap();
            let Some(oldest) = page.last() else { break };
            before = Some(oldest.cursor.clone());
            seen.extend(page.iter().map(|past| past.decision["number"].as_i64().unwrap()));
        }
        assert_eq!(seen, [4, 3, 2, 1, 0]);
    }

    #[tokio::test]
    async fn sqlite_keeps_the_contract() {
        let dir = tempfile::tempdir().unwrap();
        contract(&format!("sqlite://{}", dir.path().join("a.db").display())).await;
    }

    #[tokio::test]
    async fn postgresql_keeps_the_contract() {
        match std::env::var("TEST_POSTGRES_URL") {
            Ok(url) => contract(&url).await,
            Err(_) => println!("skipped: TEST_POSTGRES_URL is not set"),
        }
    }
}
