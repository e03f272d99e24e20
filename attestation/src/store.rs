//! What the service remembers: registered hosts, baselines, vendor certificates, switches, sealed keys.
//! One call, one transaction, over SQLite and PostgreSQL alike. Knows rows, never HTTP.

use hgs_protocol::env::UnixTime;
use hgs_service::{database::Database, on_database};
use serde::{Deserialize, Serialize};
use sqlx::Row;

use crate::baseline::{Baselines, Switches};

/// A row of either engine.
macro_rules! host {
    ($row:expr) => {{
        let row = $row;
        let ek: Vec<u8> = row.try_get(1)?;
        Ok::<KnownHost, sqlx::Error>(KnownHost {
            name: row.try_get(0)?,
            ek_sha256: ek
                .try_into()
                .map_err(|_| sqlx::Error::Decode("an endorsement key's hash of another length".into()))?,
            unproven: row.try_get::<i64, _>(2)? != 0,
            vendor: row.try_get(3)?,
            added_at: UnixTime(row.try_get(4)?),
        })
    }};
}

/// A registered host of TPM mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KnownHost {
    /// The administrator's name for it.
    pub name: String,
    /// SHA-256 of the endorsement key's SubjectPublicKeyInfo.
    #[serde(serialize_with = "hex_text")]
    pub ek_sha256: [u8; 32],
    /// True when no certificate of a TPM vendor proved the key: a bare key, taken by force.
    pub unproven: bool,
    /// Subject of the vendor's root, where a certificate proved the key.
    pub vendor: Option<String>,
    /// When it was added.
    pub added_at: UnixTime,
}

/// What kind of thing is registered under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A TPM baseline.
    TpmBaseline,
    /// A code-integrity policy.
    CiPolicy,
    /// A trusted certificate of a TPM vendor, base64 DER.
    TpmTrust,
    /// A built-in policy that differs from its first state: `true` or `false`.
    Switch,
}

impl Kind {
    fn column(self) -> &'static str {
        match self {
            Kind::TpmBaseline => "baseline",
            Kind::CiPolicy => "ci-policy",
            Kind::TpmTrust => "tpm-trust",
            Kind::Switch => "switch",
        }
    }
}

/// The service's own database.
#[derive(Clone)]
pub struct Store {
    database: Database,
}

impl Store {
    /// Over an open database whose tables are up to date.
    pub fn new(database: Database) -> Store {
        Store { database }
    }

    /// The pools themselves, for the audit chain.
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// The host with this endorsement key.
    pub async fn known_host(&self, ek_sha256: &[u8; 32]) -> Result<Option<KnownHost>, sqlx::Error> {
        let text = "SELECT name, ek_sha256, unproven, vendor, added_at FROM tpm_host WHERE ek_sha256 = $1";
        on_database!(&self.database, read, pool => {
            let row = sqlx::query(text).bind(ek_sha256.as_slice()).fetch_optional(pool).await?;
            row.map(|row| host!(row)).transpose()
        })
    }

    /// All hosts by name.
    pub async fn hosts(&self) -> Result<Vec<KnownHost>, sqlx::Error> {
        let text = "SELECT name, ek_sha256, unproven, vendor, added_at FROM tpm_host ORDER BY name";
        on_database!(&self.database, read, pool => {
            sqlx::query(text).fetch_all(pool).await?.into_iter().map(|row| host!(row)).collect()
        })
    }

    /// Adds a host; false when its name or its endorsement key is registered already.
    pub async fn add_host(&self, host: &KnownHost) -> Result<bool, sqlx::Error> {
        let text = "INSERT INTO tpm_host (name, ek_sha256, unproven, vendor, added_at) \
                    VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING";
        on_database!(&self.database, write, pool => {
            let done = sqlx::query(text)
                .bind(&host.name)
                .bind(host.ek_sha256.as_slice())
                .bind(i64::from(host.unproven))
                .bind(&host.vendor)
                .bind(host.added_at.0)
                .execute(pool)
                .await?;
            Ok(done.rows_affected() == 1)
        })
    }

    /// Removes a host; false when there was none.
    pub async fn remove_host(&self, name: &str) -> Result<bool, sqlx::Error> {
        on_database!(&self.database, write, pool => {
            let done = sqlx::query("DELETE FROM tpm_host WHERE name = $1").bind(name).execute(pool).await?;
            Ok(done.rows_affected() == 1)
        })
    }

    /// Everything of one kind, by name: name and JSON.
    pub async fn registered(&self, kind: Kind) -> Result<Vec<(String, String)>, sqlx::Error> {
        let text = "SELECT name, body FROM registered WHERE kind = $1 ORDER BY name";
        on_database!(&self.database, read, pool => {
            let rows = sqlx::query(text).bind(kind.column()).fetch_all(pool).await?;
            rows.into_iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
        })
    }

    /// Registers something new; false when the name is taken.
    pub async fn register(&self, kind: Kind, name: &str, body: &str) -> Result<bool, sqlx::Error> {
        let text = "INSERT INTO registered (kind, name, body) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
        on_database!(&self.database, write, pool => {
            let done = sqlx::query(text).bind(kind.column()).bind(name).bind(body).execute(pool).await?;
            Ok(done.rows_affected() == 1)
        })
    }

    /// Registers something, over what had the name.
    pub async fn replace(&self, kind: Kind, name: &str, body: &str) -> Result<(), sqlx::Error> {
        let text = "INSERT INTO registered (kind, name, body) VALUES ($1, $2, $3) \
                    ON CONFLICT (kind, name) DO UPDATE SET body = excluded.body";
        on_database!(&self.database, write, pool => {
            sqlx::query(text).bind(kind.column()).bind(name).bind(body).execute(pool).await?;
            Ok(())
        })
    }

    /// Removes something; false when there was none.
    pub async fn unregister(&self, kind: Kind, name: &str) -> Result<bool, sqlx::Error> {
        let text = "DELETE FROM registered WHERE kind = $1 AND name = $2";
        on_database!(&self.database, write, pool => {
            let done = sqlx::query(text).bind(kind.column()).bind(name).execute(pool).await?;
            Ok(done.rows_affected() == 1)
        })
    }

    /// What hosts are held against.
    pub async fn baselines(&self) -> Result<Baselines, sqlx::Error> {
        Ok(Baselines {
            tpm: read(self.registered(Kind::TpmBaseline).await?)?,
            ci_policies: read(self.registered(Kind::CiPolicy).await?)?,
            dump_keys: Vec::new(),
        })
    }

    /// Which built-in policies are off.
    pub async fn switches(&self) -> Result<Switches, sqlx::Error> {
        let mut switches = Switches::default();
        for (name, body) in self.registered(Kind::Switch).await? {
            if switches.set(&name, body == "true").is_err() {
                tracing::warn!(name, "a stored policy switch is not known to this version");
            }
        }
        Ok(switches)
    }

    /// A sealed key with its certificate.
    pub async fn sealed(&self, name: &str) -> Result<Option<(Vec<u8>, Vec<u8>)>, sqlx::Error> {
        let text = "SELECT certificate, sealed FROM sealed_key WHERE name = $1";
        on_database!(&self.database, read, pool => {
            let row = sqlx::query(text).bind(name).fetch_optional(pool).await?;
            row.map(|row| {
                Ok((row.try_get::<Option<Vec<u8>>, _>(0)?.unwrap_or_default(), row.try_get(1)?))
            })
            .transpose()
        })
    }

    /// Stores a sealed key unless there is one of that name: of two replicas that start together, one wins.
    pub async fn seal_first(&self, name: &str, certificate: &[u8], sealed: &[u8]) -> Result<(), sqlx::Error> {
        let text = "INSERT INTO sealed_key (name, certificate, sealed) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
        on_database!(&self.database, write, pool => {
            sqlx::query(text).bind(name).bind(certificate).bind(sealed).execute(pool).await?;
            Ok(())
        })
    }

    /// Forgets a sealed key.
    pub async fn forget_sealed(&self, name: &str) -> Result<(), sqlx::Error> {
        on_database!(&self.database, write, pool => {
            sqlx::query("DELETE FROM sealed_key WHERE name = $1").bind(name).execute(pool).await?;
            Ok(())
        })
    }
}

fn hex_text<S: serde::Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(bytes))
}

fn read<T: for<'a> Deserialize<'a>>(rows: Vec<(String, String)>) -> Result<Vec<T>, sqlx::Error> {
    let parse =
        |(_, body): (String, String)| serde_json::from_str(&body).map_err(|error| sqlx::Error::Decode(error.into()));
    rows.into_iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn contract(url: &str) {
        let database = Database::open(url, &crate::SQLITE, &crate::POSTGRES).await.unwrap();
        let store = Store::new(database);
        let host = KnownHost {
            name: "contract-host".to_owned(),
            ek_sha256: [7; 32],
            unproven: true,
            vendor: None,
            added_at: UnixTime(5),
        };
        store.remove_host(&host.name).await.unwrap();
        assert!(store.add_host(&host).await.unwrap());
        assert!(!store.add_host(&host).await.unwrap());
        let other = KnownHost {
            name: "contract-other".to_owned(),
            ..host.clone()
        };
        assert!(!store.add_host(&other).await.unwrap(), "one key, one host");
        assert_eq!(store.known_host(&[7; 32]).await.unwrap(), Some(host.clone()));
        assert_eq!(store.known_host(&[8; 32]).await.unwrap(), None);
        assert!(store.hosts().await.unwrap().contains(&host));
        assert!(store.remove_host(&host.name).await.unwrap());
        assert!(!store.remove_host(&host.name).await.unwrap());

        store.unregister(Kind::CiPolicy, "contract").await.unwrap();
        let policy = crate::baseline::CiPolicy::from_file("contract", b"policy");
        let body = serde_json::to_string(&policy).unwrap();
        assert!(store.register(Kind::CiPolicy, "contract", &body).await.unwrap());
        assert!(!store.register(Kind::CiPolicy, "contract", "{}").await.unwrap());
        assert!(store.baselines().await.unwrap().ci_policies.contains(&policy));
        assert!(store.unregister(Kind::CiPolicy, "contract").await.unwrap());

        store.forget_sealed("contract").await.unwrap();
        store.seal_first("contract", b"c", b"first").await.unwrap();
        store.seal_first("contract", b"d", b"second").await.unwrap();
        assert_eq!(
            store.sealed("contract").await.unwrap(),
            Some((b"c".to_vec(), b"first".to_vec()))
        );
        store.forget_sealed("contract").await.unwrap();
        assert_eq!(store.sealed("contract").await.unwrap(), None);
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
