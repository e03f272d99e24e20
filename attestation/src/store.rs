//! What the service remembers: registered hosts and host keys, baselines, vendor certificates, settings,
//! signers, sealed keys. One call, one transaction, over SQLite and PostgreSQL alike. Knows rows, never HTTP.

use hgs_protocol::env::UnixTime;
use hgs_service::{database::Database, on_database};
use serde::{Deserialize, Serialize};
use sqlx::Row;

use crate::baseline::{Baselines, Switches};

mod signers;
mod whole;

pub use signers::{SignerRow, Slot};
pub use whole::{BaselineLog, Whole};

/// A row of either engine.
macro_rules! host {
    ($row:expr) => {{
        let row = $row;
        Ok::<KnownHost, sqlx::Error>(KnownHost {
            name: row.try_get(0)?,
            ek_sha256: digest(row.try_get(1)?)?,
            version: PolicyVersion::from_number(row.try_get(2)?)?,
            unproven: row.try_get::<i64, _>(3)? != 0,
            vendor: row.try_get(4)?,
            added_at: UnixTime(row.try_get(5)?),
        })
    }};
}

macro_rules! host_key {
    ($row:expr) => {{
        let row = $row;
        Ok::<KnownHostKey, sqlx::Error>(KnownHostKey {
            name: row.try_get(0)?,
            spki_sha256: digest(row.try_get(1)?)?,
            algorithm: row.try_get(2)?,
            added_at: UnixTime(row.try_get(3)?),
        })
    }};
}

/// The generation of a host's artefacts: v1 is attestation as of 2016, v2 as of 2019. A host passes with
/// an endorsement key, a baseline and a code-integrity policy of one and the same version.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
pub enum PolicyVersion {
    /// The older one, the only one that takes an endorsement key without a certificate.
    #[serde(rename = "v1", alias = "V1", alias = "PolicyVersion1503")]
    V1,
    /// The default.
    #[default]
    #[serde(rename = "v2", alias = "V2", alias = "PolicyVersion1704", alias = "None")]
    V2,
}

impl PolicyVersion {
    /// In the order in which they are tried.
    pub const TRIED: [PolicyVersion; 2] = [PolicyVersion::V2, PolicyVersion::V1];

    /// Its column value.
    pub fn number(self) -> i64 {
        match self {
            PolicyVersion::V1 => 1,
            PolicyVersion::V2 => 2,
        }
    }

    fn from_number(number: i64) -> Result<PolicyVersion, sqlx::Error> {
        let found = PolicyVersion::TRIED
            .into_iter()
            .find(|version| version.number() == number);
        found.ok_or_else(|| sqlx::Error::Decode("an unknown policy version".into()))
    }
}

/// A registered host of TPM mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct KnownHost {
    /// The administrator's name for it.
    pub name: String,
    /// SHA-256 of the endorsement key's SubjectPublicKeyInfo.
    #[serde(serialize_with = "hex_text", deserialize_with = "from_hex_text")]
    #[schema(value_type = String)]
    pub ek_sha256: [u8; 32],
    /// The version of its registration.
    #[serde(rename = "policy_version")]
    pub version: PolicyVersion,
    /// True when no certificate of a TPM vendor proved the key: a bare key, taken by force.
    pub unproven: bool,
    /// Subject of the vendor's root, where a certificate proved the key.
    pub vendor: Option<String>,
    /// When it was added, seconds since 1970.
    #[schema(value_type = i64)]
    pub added_at: UnixTime,
}

/// A registered host of host-key mode. Only the key is kept of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct KnownHostKey {
    /// The administrator's name for it.
    pub name: String,
    /// SHA-256 of the key's SubjectPublicKeyInfo.
    #[serde(serialize_with = "hex_text", deserialize_with = "from_hex_text")]
    #[schema(value_type = String)]
    pub spki_sha256: [u8; 32],
    /// `RSA` or `P-256`.
    pub algorithm: String,
    /// When it was added, seconds since 1970.
    #[schema(value_type = i64)]
    pub added_at: UnixTime,
}

/// A VSM key that was certified for a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SeenVsmKey {
    /// The host's registered name.
    pub host: String,
    /// SHA-256 of the key's SubjectPublicKeyInfo: what is denied when the key has leaked.
    #[serde(serialize_with = "hex_text", deserialize_with = "from_hex_text")]
    #[schema(value_type = String)]
    pub spki_sha256: [u8; 32],
    /// The mode in force then.
    pub mode: String,
    /// When, seconds since 1970.
    #[schema(value_type = i64)]
    pub first_seen: UnixTime,
}

/// What kind of thing is registered under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A TPM baseline.
    TpmBaseline,
    /// A code-integrity policy.
    CiPolicy,
    /// A dump encryption key.
    DumpKey,
    /// A security group of Active Directory; no mode evaluates it.
    HostGroup,
    /// A trusted certificate of a TPM vendor, base64 DER.
    TpmTrust,
    /// A VSM key that is never certified again; its name is the SPKI hash.
    DeniedKey,
    /// A built-in policy that differs from its first state: `true` or `false`.
    Switch,
    /// A setting of the service, the operation mode among them.
    Setting,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 8] = [
        Kind::TpmBaseline,
        Kind::CiPolicy,
        Kind::DumpKey,
        Kind::HostGroup,
        Kind::TpmTrust,
        Kind::DeniedKey,
        Kind::Switch,
        Kind::Setting,
    ];

    fn column(self) -> &'static str {
        match self {
            Kind::TpmBaseline => "baseline",
            Kind::CiPolicy => "ci-policy",
            Kind::DumpKey => "dump-key",
            Kind::HostGroup => "host-group",
            Kind::TpmTrust => "tpm-trust",
            Kind::DeniedKey => "denied-key",
            Kind::Switch => "switch",
            Kind::Setting => "setting",
        }
    }
}

/// Something registered under a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// Its name, unique among its kind.
    pub name: String,
    /// Its policy version, where it has one.
    pub version: Option<PolicyVersion>,
    /// True when no host is held against it yet.
    pub staged: bool,
    /// JSON.
    pub body: String,
}

impl Registered {
    /// Without a version, in force.
    pub fn plain(name: impl Into<String>, body: impl Into<String>) -> Registered {
        Registered {
            name: name.into(),
            version: None,
            staged: false,
            body: body.into(),
        }
    }
}

/// What became of something to be registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// It is new.
    New,
    /// Exactly this was registered before; nothing changed.
    Same,
    /// The name, or the key, is taken by something else.
    Conflict,
}

/// A part of a listing, by name.
#[derive(Clone, Debug)]
pub struct Page {
    /// Only names after this one.
    pub after: String,
    /// At most so many rows.
    pub limit: i64,
}

impl Page {
    /// Everything.
    pub fn all() -> Page {
        Page {
            after: String::new(),
            limit: i64::MAX,
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

    /// The registrations of this endorsement key, the newest policy version first.
    pub async fn known_hosts(&self, ek_sha256: &[u8; 32]) -> Result<Vec<KnownHost>, sqlx::Error> {
        let text = "SELECT name, ek_sha256, version, unproven, vendor, added_at FROM tpm_host \
                    WHERE ek_sha256 = $1 ORDER BY version DESC";
        on_database!(&self.database, read, pool => {
            let rows = sqlx::query(text).bind(ek_sha256.as_slice()).fetch_all(pool).await?;
            rows.into_iter().map(|row| host!(row)).collect()
        })
    }

    /// The host of that name.
    pub async fn host_named(&self, name: &str) -> Result<Option<KnownHost>, sqlx::Error> {
        let text = "SELECT name, ek_sha256, version, unproven, vendor, added_at FROM tpm_host WHERE name = $1";
        on_database!(&self.database, read, pool => {
            let row = sqlx::query(text).bind(name).fetch_optional(pool).await?;
            row.map(|row| host!(row)).transpose()
        })
    }

    /// Hosts by name.
    pub async fn hosts(&self, page: &Page) -> Result<Vec<KnownHost>, sqlx::Error> {
        let text = "SELECT name, ek_sha256, version, unproven, vendor, added_at FROM tpm_host \
                    WHERE name > $1 ORDER BY name LIMIT $2";
        on_database!(&self.database, read, pool => {
            let rows = sqlx::query(text).bind(&page.after).bind(page.limit).fetch_all(pool).await?;
            rows.into_iter().map(|row| host!(row)).collect()
        })
    }

    /// Key and version of every registration that has the key of a host after `after`, up to `last` by name. A
    /// host may be registered once per version, under names of its own; the key says which are one host.
    pub async fn versions_between(
        &self,
        after: &str,
        last: &str,
    ) -> Result<Vec<([u8; 32], PolicyVersion)>, sqlx::Error> {
        let text = "SELECT ek_sha256, version FROM tpm_host WHERE ek_sha256 IN \
                    (SELECT ek_sha256 FROM tpm_host WHERE name > $1 AND name <= $2)";
        on_database!(&self.database, read, pool => {
            let rows = sqlx::query(text).bind(after).bind(last).fetch_all(pool).await?;
            rows.into_iter()
                .map(|row| Ok((digest(row.try_get(0)?)?, PolicyVersion::from_number(row.try_get(1)?)?)))
                .collect()
        })
    }

    /// Adds a host, unless its name, or its endorsement key in this version, is taken.
    pub async fn add_host(&self, host: &KnownHost) -> Result<Added, sqlx::Error> {
        let text = "INSERT INTO tpm_host (name, ek_sha256, version, unproven, vendor, added_at) \
                    VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING";
        let rows = on_database!(&self.database, write, pool => {
            sqlx::query(text)
                .bind(&host.name)
                .bind(host.ek_sha256.as_slice())
                .bind(host.version.number())
                .bind(i64::from(host.unproven))
                .bind(&host.vendor)
                .bind(host.added_at.0)
                .execute(pool)
                .await?
                .rows_affected()
        });
        if rows == 1 {
            return Ok(Added::New);
        }
        let there = self.host_named(&host.name).await?;
        let same = |there: KnownHost| {
            KnownHost {
                added_at: host.added_at,
                ..there
            } == *host
        };
        Ok(match there.is_some_and(same) {
            true => Added::Same,
            false => Added::Conflict,
        })
    }

    /// Removes a host; false when there was none.
    pub async fn remove_host(&self, name: &str) -> Result<bool, sqlx::Error> {
        self.delete("DELETE FROM tpm_host WHERE name = $1", name).await
    }

    /// The registration of this host key.
    pub async fn known_host_key(&self, spki_sha256: &[u8; 32]) -> Result<Option<KnownHostKey>, sqlx::Error> {
        let text = "SELECT name, spki_sha256, algorithm, added_at FROM host_key WHERE spki_sha256 = $1";
        on_database!(&self.database, read, pool => {
            let row = sqlx::query(text).bind(spki_sha256.as_slice()).fetch_optional(pool).await?;
            row.map(|row| host_key!(row)).transpose()
        })
    }

    /// Host keys by name.
    pub async fn host_keys(&self, page: &Page) -> Result<Vec<KnownHostKey>, sqlx::Error> {
        let text = "SELECT name, spki_sha256, algorithm, added_at FROM host_key WHERE name > $1 ORDER BY name LIMIT $2";
        on_database!(&self.database, read, pool => {
            let rows = sqlx::query(text).bind(&page.after).bind(page.limit).fetch_all(pool).await?;
            rows.into_iter().map(|row| host_key!(row)).collect()
        })
    }

    /// Adds a host key, unless its name or the key is taken.
    pub async fn add_host_key(&self, key: &KnownHostKey) -> Result<Added, sqlx::Error> {
        let text = "INSERT INTO host_key (name, spki_sha256, algorithm, added_at) VALUES ($1, $2, $3, $4) \
                    ON CONFLICT DO NOTHING";
        let rows = on_database!(&self.database, write, pool => {
            sqlx::query(text)
                .bind(&key.name)
                .bind(key.spki_sha256.as_slice())
                .bind(&key.algorithm)
                .bind(key.added_at.0)
                .execute(pool)
                .await?
                .rows_affected()
        });
        if rows == 1 {
            return Ok(Added::New);
        }
        let there = self.known_host_key(&key.spki_sha256).await?;
        Ok(match there.is_some_and(|there| there.name == key.name) {
            true => Added::Same,
            false => Added::Conflict,
        })
    }

    /// Removes a host key; false when there was none.
    pub async fn remove_host_key(&self, name: &str) -> Result<bool, sqlx::Error> {
        self.delete("DELETE FROM host_key WHERE name = $1", name).await
    }

    /// Records a VSM key of a host, unless it was seen before.
    pub async fn saw_vsm_key(&self, seen: &SeenVsmKey) -> Result<(), sqlx::Error> {
        let known = "SELECT 1 FROM vsm_key WHERE host = $1 AND spki_sha256 = $2";
        let known = on_database!(&self.database, read, pool => {
            let query = sqlx::query(known).bind(&seen.host).bind(seen.spki_sha256.as_slice());
            query.fetch_optional(pool).await?.is_some()
        });
        if known {
            return Ok(());
        }
        let text = "INSERT INTO vsm_key (host, spki_sha256, mode, first_seen) VALUES ($1, $2, $3, $4) \
                    ON CONFLICT DO NOTHING";
        on_database!(&self.database, write, pool => {
            sqlx::query(text)
                .bind(&seen.host)
                .bind(seen.spki_sha256.as_slice())
                .bind(&seen.mode)
                .bind(seen.first_seen.0)
                .execute(pool)
                .await?;
        });
        Ok(())
    }

    /// VSM keys by host; all keys of a host stand on one page.
    pub async fn vsm_keys(&self, page: &Page) -> Result<Vec<SeenVsmKey>, sqlx::Error> {
        let text = "SELECT host, spki_sha256, mode, first_seen FROM vsm_key WHERE host IN \
                    (SELECT DISTINCT host FROM vsm_key WHERE host > $1 ORDER BY host LIMIT $2) \
                    ORDER BY host, first_seen, spki_sha256";
        on_database!(&self.database, read, pool => {
            let rows = sqlx::query(text).bind(&page.after).bind(page.limit).fetch_all(pool).await?;
            rows.into_iter()
                .map(|row| Ok(SeenVsmKey {
                    host: row.try_get(0)?,
                    spki_sha256: digest(row.try_get(1)?)?,
                    mode: row.try_get(2)?,
                    first_seen: UnixTime(row.try_get(3)?),
                }))
                .collect()
        })
    }

    /// Everything of one kind, by name.
    pub async fn registered(&self, kind: Kind, page: &Page) -> Result<Vec<Registered>, sqlx::Error> {
        let text = "SELECT name, version, staged, body FROM registered WHERE kind = $1 AND name > $2 \
                    ORDER BY name LIMIT $3";
        on_database!(&self.database, read, pool => {
            let query = sqlx::query(text).bind(kind.column()).bind(&page.after).bind(page.limit);
            query
                .fetch_all(pool)
                .await?
                .into_iter()
                .map(|row| Ok(Registered {
                    name: row.try_get(0)?,
                    version: match row.try_get::<i64, _>(1)? {
                        0 => None,
                        number => Some(PolicyVersion::from_number(number)?),
                    },
                    staged: row.try_get::<i64, _>(2)? != 0,
                    body: row.try_get(3)?,
                }))
                .collect()
        })
    }

    /// The one of that name.
    pub async fn registered_as(&self, kind: Kind, name: &str) -> Result<Option<Registered>, sqlx::Error> {
        let text = "SELECT version, staged, body FROM registered WHERE kind = $1 AND name = $2";
        on_database!(&self.database, read, pool => {
            let row = sqlx::query(text).bind(kind.column()).bind(name).fetch_optional(pool).await?;
            row.map(|row| Ok(Registered {
                name: name.to_owned(),
                version: match row.try_get::<i64, _>(0)? {
                    0 => None,
                    number => Some(PolicyVersion::from_number(number)?),
                },
                staged: row.try_get::<i64, _>(1)? != 0,
                body: row.try_get(2)?,
            }))
            .transpose()
        })
    }

    /// Registers something new, unless the name is taken.
    pub async fn register(&self, kind: Kind, new: &Registered) -> Result<Added, sqlx::Error> {
        let text = "INSERT INTO registered (kind, name, version, staged, body) VALUES ($1, $2, $3, $4, $5) \
                    ON CONFLICT DO NOTHING";
        if self.write_registered(text, kind, new).await? == 1 {
            return Ok(Added::New);
        }
        let there = self.registered_as(kind, &new.name).await?;
        Ok(match there.as_ref() == Some(new) {
            true => Added::Same,
            false => Added::Conflict,
        })
    }

    /// Registers something, over what had the name.
    pub async fn replace(&self, kind: Kind, new: &Registered) -> Result<(), sqlx::Error> {
        let text = "INSERT INTO registered (kind, name, version, staged, body) VALUES ($1, $2, $3, $4, $5) \
                    ON CONFLICT (kind, name) DO UPDATE SET \
                    version = excluded.version, staged = excluded.staged, body = excluded.body";
        self.write_registered(text, kind, new).await.map(|_| ())
    }

    async fn write_registered(&self, text: &'static str, kind: Kind, new: &Registered) -> Result<u64, sqlx::Error> {
        on_database!(&self.database, write, pool => {
            let done = sqlx::query(text)
                .bind(kind.column())
                .bind(&new.name)
                .bind(new.version.map_or(0, PolicyVersion::number))
                .bind(i64::from(new.staged))
                .bind(&new.body)
                .execute(pool)
                .await?;
            Ok(done.rows_affected())
        })
    }

    /// Lets hosts be held against something that was staged; false when there is none of that name.
    pub async fn put_in_force(&self, kind: Kind, name: &str) -> Result<bool, sqlx::Error> {
        let text = "UPDATE registered SET staged = 0 WHERE kind = $1 AND name = $2";
        self.change_registered(text, kind, name).await
    }

    /// Removes something; false when there was none.
    pub async fn unregister(&self, kind: Kind, name: &str) -> Result<bool, sqlx::Error> {
        let text = "DELETE FROM registered WHERE kind = $1 AND name = $2";
        self.change_registered(text, kind, name).await
    }

    async fn change_registered(&self, text: &'static str, kind: Kind, name: &str) -> Result<bool, sqlx::Error> {
        on_database!(&self.database, write, pool => {
            let done = sqlx::query(text).bind(kind.column()).bind(name).execute(pool).await?;
            Ok(done.rows_affected() == 1)
        })
    }

    async fn delete(&self, text: &'static str, name: &str) -> Result<bool, sqlx::Error> {
        on_database!(&self.database, write, pool => {
            let done = sqlx::query(text).bind(name).execute(pool).await?;
            Ok(done.rows_affected() == 1)
        })
    }

    /// What hosts are held against, of one policy version; what is staged is left out.
    pub async fn baselines(&self, version: PolicyVersion) -> Result<Baselines, sqlx::Error> {
        Ok(Baselines {
            tpm: self.in_force(Kind::TpmBaseline, version).await?,
            ci_policies: self.in_force(Kind::CiPolicy, version).await?,
            // A dump key is of no version.
            dump_keys: self.in_force(Kind::DumpKey, version).await?,
        })
    }

    async fn in_force<T: for<'a> Deserialize<'a>>(
        &self,
        kind: Kind,
        version: PolicyVersion,
    ) -> Result<Vec<T>, sqlx::Error> {
        let rows = self.registered(kind, &Page::all()).await?;
        rows.into_iter()
            .filter(|row| !row.staged && row.version.is_none_or(|other| other == version))
            .map(|row| serde_json::from_str(&row.body).map_err(|error| sqlx::Error::Decode(error.into())))
            .collect()
    }

    /// Which built-in policies are off.
    pub async fn switches(&self) -> Result<Switches, sqlx::Error> {
        let mut switches = Switches::default();
        for row in self.registered(Kind::Switch, &Page::all()).await? {
            if switches.set(&row.name, row.body == "true").is_err() {
                tracing::warn!(name = row.name, "a stored policy switch is not known to this version");
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

    /// Stores a sealed key unless another process was first; the one that is there counts.
    pub async fn seal_first(&self, name: &str, certificate: &[u8], sealed: &[u8]) -> Result<(), sqlx::Error> {
        let text = "INSERT INTO sealed_key (name, certificate, sealed) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
        on_database!(&self.database, write, pool => {
            sqlx::query(text).bind(name).bind(certificate).bind(sealed).execute(pool).await?;
            Ok(())
        })
    }

    /// Forgets every sealed key whose name begins with `prefix` and sorts before `name`.
    pub async fn forget_sealed_below(&self, prefix: &str, name: &str) -> Result<(), sqlx::Error> {
        let text = "DELETE FROM sealed_key WHERE name >= $1 AND name < $2";
        on_database!(&self.database, write, pool => {
            sqlx::query(text).bind(prefix).bind(name).execute(pool).await?;
            Ok(())
        })
    }
}

fn hex_text<S: serde::Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(bytes))
}

fn from_hex_text<'de, D: serde::Deserializer<'de>>(from: D) -> Result<[u8; 32], D::Error> {
    let mut bytes = [0; 32];
    let text = String::deserialize(from)?;
    hex::decode_to_slice(text, &mut bytes).map_err(serde::de::Error::custom)?;
    Ok(bytes)
}

fn digest(bytes: Vec<u8>) -> Result<[u8; 32], sqlx::Error> {
    let wrong = |_| sqlx::Error::Decode("a hash of another length".into());
    bytes.try_into().map_err(wrong)
}

#[cfg(test)]
mod tests;
