//! The whole state at once, for a backup and its restore.

use hgs_protocol::env::UnixTime;
use hgs_service::on_database;
use serde::{Deserialize, Serialize};
use sqlx::Row;

use super::{Kind, KnownHost, KnownHostKey, Page, Registered, SeenVsmKey, SignerRow, Slot, Store};

/// Everything that an administrator or the service itself put there, but for decisions and hosts' boot logs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whole {
    /// Hosts of TPM mode.
    pub hosts: Vec<KnownHost>,
    /// Hosts of host-key mode.
    pub host_keys: Vec<KnownHostKey>,
    /// VSM keys by host.
    pub vsm_keys: Vec<SeenVsmKey>,
    /// Artefacts, vendors, denied keys, switches, settings.
    pub registered: Vec<(Kind, Registered)>,
    /// Signers, their keys sealed.
    pub signers: Vec<SignerRow>,
    /// Baselines' own logs.
    pub logs: Vec<BaselineLog>,
}

/// A baseline's own log as kept for comparing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BaselineLog {
    /// The baseline.
    pub name: String,
    /// When it was kept.
    pub at: UnixTime,
    /// The log.
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub log: Vec<u8>,
}

/// What makes a database no empty one.
const FILLED: &str = "SELECT (SELECT count(*) FROM tpm_host) + (SELECT count(*) FROM host_key) \
                      + (SELECT count(*) FROM registered) + (SELECT count(*) FROM signer)";

impl Store {
    /// Reads the whole state.
    pub async fn whole(&self) -> Result<Whole, sqlx::Error> {
        let mut registered = Vec::new();
        for kind in Kind::ALL {
            let rows = self.registered(kind, &Page::all()).await?;
            registered.extend(rows.into_iter().map(|row| (kind, row)));
        }
        let text = "SELECT name, at, log FROM evidence WHERE subject = 'baseline' ORDER BY name, place";
        let logs = on_database!(&self.database, read, pool => {
            let rows = sqlx::query(text).fetch_all(pool).await?;
            let rows = rows.into_iter().map(|row| Ok(BaselineLog {
                name: row.try_get(0)?,
                at: UnixTime(row.try_get(1)?),
                log: row.try_get(2)?,
            }));
            rows.collect::<Result<_, sqlx::Error>>()?
        });
        Ok(Whole {
            hosts: self.hosts(&Page::all()).await?,
            host_keys: self.host_keys(&Page::all()).await?,
            vsm_keys: self.vsm_keys(&Page::all()).await?,
            registered,
            signers: self.signers().await?,
            logs,
        })
    }

    /// Fills an empty database, all or nothing; false when it is not empty.
    pub async fn fill(&self, whole: &Whole) -> Result<bool, sqlx::Error> {
        on_database!(&self.database, write, pool => {
            let mut transaction = pool.begin().await?;
            let filled: i64 = sqlx::query_scalar(FILLED).fetch_one(&mut *transaction).await?;
            if filled > 0 {
                return Ok(false);
            }
            for host in &whole.hosts {
                sqlx::query("INSERT INTO tpm_host (name, ek_sha256, version, unproven, vendor, added_at) \
                             VALUES ($1, $2, $3, $4, $5, $6)")
                    .bind(&host.name)
                    .bind(host.ek_sha256.as_slice())
                    .bind(host.version.number())
                    .bind(i64::from(host.unproven))
                    .bind(&host.vendor)
                    .bind(host.added_at.0)
                    .execute(&mut *transaction)
                    .await?;
            }
            for key in &whole.host_keys {
                sqlx::query("INSERT INTO host_key (name, spki_sha256, algorithm, added_at) VALUES ($1, $2, $3, $4)")
                    .bind(&key.name)
                    .bind(key.spki_sha256.as_slice())
                    .bind(&key.algorithm)
                    .bind(key.added_at.0)
                    .execute(&mut *transaction)
                    .await?;
            }
            for seen in &whole.vsm_keys {
                sqlx::query("INSERT INTO vsm_key (host, spki_sha256, mode, first_seen) VALUES ($1, $2, $3, $4)")
                    .bind(&seen.host)
                    .bind(seen.spki_sha256.as_slice())
                    .bind(&seen.mode)
                    .bind(seen.first_seen.0)
                    .execute(&mut *transaction)
                    .await?;
            }
            for (kind, row) in &whole.registered {
                sqlx::query("INSERT INTO registered (kind, name, version, staged, body) VALUES ($1, $2, $3, $4, $5)")
                    .bind(kind.column())
                    .bind(&row.name)
                    .bind(row.version.map_or(0, super::PolicyVersion::number))
                    .bind(i64::from(row.staged))
                    .bind(&row.body)
                    .execute(&mut *transaction)
                    .await?;
            }
            for signer in &whole.signers {
                sqlx::query("INSERT INTO signer (id, slot, certificate, sealed, made_at, published_until) \
                             VALUES ($1, $2, $3, $4, $5, $6)")
                    .bind(&signer.id)
                    .bind(signer.slot.map(Slot::column))
                    .bind(&signer.certificate)
                    .bind(&signer.sealed)
                    .bind(signer.made_at.0)
                    .bind(signer.published_until.map(|until| until.0))
                    .execute(&mut *transaction)
                    .await?;
            }
            for (place, kept) in (1i64..).zip(&whole.logs) {
                sqlx::query("INSERT INTO evidence (subject, name, sha256, place, at, readout, log) \
                             VALUES ('baseline', $1, $2, $3, $4, $5, $6)")
                    .bind(&kept.name)
                    .bind(hgs_protocol::crypto::sha256(&kept.log).as_slice())
                    .bind(place)
                    .bind(kept.at.0)
                    .bind(Vec::<u8>::new())
                    .bind(&kept.log)
                    .execute(&mut *transaction)
                    .await?;
            }
            transaction.commit().await?;
            Ok(true)
        })
    }
}

fn to_base64<S: serde::Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    to.serialize_str(&STANDARD.encode(bytes))
}

fn from_base64<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    STANDARD
        .decode(String::deserialize(from)?)
        .map_err(serde::de::Error::custom)
}
