//! Rows of the key protection service: its certificates, the attestation signers it trusts, and the
//! administrator's settings. One text of each statement serves SQLite and PostgreSQL. Every change
//! first raises the revision, which also makes changes of several replicas follow one another.
//! Knows nothing of HTTP.

use hgs_protocol::env::UnixTime;
use hgs_service::{database::Database, on_database};
use sqlx::Row;

/// The service's database, by its questions.
#[derive(Clone)]
pub struct Store(Database);

/// What a certificate of the service is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub enum Role {
    /// Signs egress protectors.
    Signing,
    /// Opens transport keys.
    Encryption,
    /// Signs the metadata; where there is none, the primary signing certificate does.
    Communications,
}

impl Role {
    /// Every role.
    pub const ALL: [Role; 3] = [Role::Signing, Role::Encryption, Role::Communications];

    /// The word in the table.
    pub fn word(self) -> &'static str {
        match self {
            Role::Signing => "signing",
            Role::Encryption => "encryption",
            Role::Communications => "communications",
        }
    }

    /// From that word, in any case.
    pub fn from_word(word: &str) -> Option<Role> {
        Role::ALL
            .into_iter()
            .find(|role| role.word().eq_ignore_ascii_case(word))
    }
}

/// Where a certificate's private key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPlace {
    /// PKCS#8, sealed under the key-encryption key.
    Sealed(Vec<u8>),
    /// In the token, under this id in hex.
    Token(String),
}

/// A certificate of the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredCertificate {
    /// SHA-256 of the certificate, hex.
    pub thumbprint: String,
    /// What it is for.
    pub role: Role,
    /// New protectors are made for the primary one; others still open old ones.
    pub is_primary: bool,
    /// One that is not opens and signs nothing.
    pub is_enabled: bool,
    /// DER.
    pub certificate: Vec<u8>,
    /// Its private key.
    pub key: KeyPlace,
    /// The request that made it, if that request had an id.
    pub request_id: Option<String>,
}

/// An attestation signer that is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSigner {
    /// SHA-256 of the certificate, hex.
    pub thumbprint: String,
    /// DER.
    pub certificate: Vec<u8>,
    /// Health certificates issued before this are refused.
    pub deny_issued_before: Option<UnixTime>,
}

/// What an administrator chose for the whole service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSettings {
    /// Wire numbers of the attestation modes that are accepted.
    pub accepted_modes: Vec<u8>,
    /// Upper limit of offline unwraps; none: as the service was started.
    pub max_offline_unwraps: Option<u32>,
    /// Whether OAEP with SHA-1 opens.
    pub allow_sha1_oaep: bool,
}

/// A change of a certificate's standing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The one for new protectors; the present primary stays as another.
    MakePrimary,
    /// Opens and signs again.
    Enable,
    /// Opens and signs no longer; its key is kept.
    Disable,
    /// Gone for good, key included.
    Remove,
}

/// Why a certificate was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeRefusal {
    /// No such certificate.
    #[error("no certificate of that type has that thumbprint; list them with GET /admin/v1/certificates")]
    Unknown,
    /// A disabled certificate cannot be primary.
    #[error("the certificate is disabled: enable it first, then make it primary")]
    Disabled,
    /// The primary one is needed.
    #[error("the certificate is the primary one: make another one primary first")]
    Primary,
    /// Removal of a certificate in use.
    #[error("the certificate is enabled: disable it first, check that every VM still starts, then remove it")]
    Enabled,
}

impl Change {
    /// Whether the change is needed (true), done already (false) or refused, for a certificate that is so.
    pub fn check(self, is_primary: bool, is_enabled: bool) -> Result<bool, ChangeRefusal> {
        match self {
            Change::MakePrimary if !is_enabled => Err(ChangeRefusal::Disabled),
            Change::MakePrimary => Ok(!is_primary),
            Change::Enable => Ok(!is_enabled),
            Change::Disable | Change::Remove if is_primary => Err(ChangeRefusal::Primary),
            Change::Disable => Ok(is_enabled),
            Change::Remove if is_enabled => Err(ChangeRefusal::Enabled),
            Change::Remove => Ok(true),
        }
    }
}

/// Raises the revision; the row stays locked until the transaction ends.
const RAISE: &str = "UPDATE standing SET revision = revision + 1 WHERE one = 1";

const INSERT_CERTIFICATE: &str = "INSERT INTO guardian_certificate \
     (thumbprint, role, is_primary, is_enabled, certificate, sealed_key, token_key, request_id, added_at) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING";
const INSERT_SIGNER: &str = "INSERT INTO attestation_signer (thumbprint, certificate, deny_issued_before, added_at) \
     VALUES ($1, $2, $3, $4) ON CONFLICT (thumbprint) DO NOTHING";

const PUT_SETTINGS: &str = "UPDATE standing SET accepted_modes = $1, max_offline_unwraps = $2, allow_sha1_oaep = $3, \
     revision = revision + 1 WHERE one = 1";

// Macros, since the two engines' transactions have no common type. Each gives the number of rows.

macro_rules! insert_certificate {
    ($to:expr, $row:expr, $now:expr) => {{
        let (sealed, token) = $row.key.columns();
        sqlx::query(INSERT_CERTIFICATE)
            .bind(&$row.thumbprint)
            .bind($row.role.word())
            .bind($row.is_primary)
            .bind($row.is_enabled)
            .bind(&$row.certificate)
            .bind(sealed)
            .bind(token)
            .bind(&$row.request_id)
            .bind($now.0)
            .execute($to)
            .await?
            .rows_affected()
    }};
}

macro_rules! insert_signer {
    ($to:expr, $row:expr, $now:expr) => {
        sqlx::query(INSERT_SIGNER)
            .bind(&$row.thumbprint)
            .bind(&$row.certificate)
            .bind($row.deny_issued_before.map(|t| t.0))
            .bind($now.0)
            .execute($to)
            .await?
            .rows_affected()
    };
}

macro_rules! put_settings {
    ($to:expr, $settings:expr) => {
        sqlx::query(PUT_SETTINGS)
            .bind(
                $settings
                    .accepted_modes
                    .iter()
                    .map(|mode| format!("{mode} "))
                    .collect::<String>(),
            )
            .bind($settings.max_offline_unwraps.map(i64::from))
            .bind($settings.allow_sha1_oaep)
            .execute($to)
            .await?
            .rows_affected()
    };
}

impl KeyPlace {
    /// The columns `sealed_key` and `token_key`, of which one is filled.
    fn columns(&self) -> (Option<&[u8]>, Option<&str>) {
        match self {
            KeyPlace::Sealed(sealed) => (Some(sealed), None),
            KeyPlace::Token(id) => (None, Some(id)),
        }
    }
}

impl Store {
    /// Over an open database whose tables are up to date.
    pub fn new(database: Database) -> Store {
        Store(database)
    }

    /// The database, for the audit chain.
    pub fn database(&self) -> &Database {
        &self.0
    }

    /// Grows with every change of the tables here (the audit chain is not one of them).
    pub async fn revision(&self) -> Result<i64, sqlx::Error> {
        on_database!(&self.0, read, pool => {
            sqlx::query("SELECT revision FROM standing").fetch_one(pool).await?.try_get(0)
        })
    }

    /// The administrator's settings.
    pub async fn settings(&self) -> Result<StoredSettings, sqlx::Error> {
        on_database!(&self.0, read, pool => {
            let row = sqlx::query("SELECT accepted_modes, max_offline_unwraps, allow_sha1_oaep FROM standing")
                .fetch_one(pool)
                .await?;
            let modes: String = row.try_get(0)?;
            Ok(StoredSettings {
                accepted_modes: modes.split_whitespace().filter_map(|mode| mode.parse().ok()).collect(),
                max_offline_unwraps: row.try_get::<Option<i64>, _>(1)?.map(|n| u32::try_from(n).unwrap_or(0)),
                allow_sha1_oaep: row.try_get(2)?,
            })
        })
    }

    /// Replaces the settings.
    pub async fn set_settings(&self, settings: &StoredSettings) -> Result<(), sqlx::Error> {
        on_database!(&self.0, write, pool => {
            put_settings!(pool, settings);
            Ok(())
        })
    }

    /// All certificates of the service, the primary of each role first.
    pub async fn certificates(&self) -> Result<Vec<StoredCertificate>, sqlx::Error> {
        on_database!(&self.0, read, pool => {
            let rows = sqlx::query(
                "SELECT thumbprint, role, is_primary, is_enabled, certificate, sealed_key, token_key, request_id \
                 FROM guardian_certificate ORDER BY role DESC, is_primary DESC, thumbprint",
            )
            .fetch_all(pool)
            .await?;
            rows.iter().map(|row| {
                let key = match (row.try_get(5)?, row.try_get(6)?) {
                    (Some(sealed), _) => KeyPlace::Sealed(sealed),
                    (None, Some(id)) => KeyPlace::Token(id),
                    (None, None) => return Err(sqlx::Error::RowNotFound),
                };
                Ok(StoredCertificate {
                    thumbprint: row.try_get(0)?,
                    role: Role::from_word(&row.try_get::<String, _>(1)?).ok_or(sqlx::Error::RowNotFound)?,
                    is_primary: row.try_get(2)?,
                    is_enabled: row.try_get(3)?,
                    certificate: row.try_get(4)?,
                    key,
                    request_id: row.try_get(7)?,
                })
            }).collect()
        })
    }

    /// Adds a certificate; false where it, its request or (for a primary one) another primary is there already.
    pub async fn add_certificate(&self, new: &StoredCertificate, now: UnixTime) -> Result<bool, sqlx::Error> {
        on_database!(&self.0, write, pool => {
            let mut transaction = pool.begin().await?;
            sqlx::query(RAISE).execute(&mut *transaction).await?;
            let added = insert_certificate!(&mut *transaction, new, now);
            transaction.commit().await?;
            Ok(added == 1)
        })
    }

    /// Fills an empty database in one transaction; false, and nothing done, where there is a certificate already.
    pub async fn fill(
        &self,
        certificates: &[StoredCertificate],
        signers: &[StoredSigner],
        settings: &StoredSettings,
        now: UnixTime,
    ) -> Result<bool, sqlx::Error> {
        on_database!(&self.0, write, pool => {
            let mut transaction = pool.begin().await?;
            put_settings!(&mut *transaction, settings);
            let there: i64 = sqlx::query("SELECT count(*) FROM guardian_certificate")
                .fetch_one(&mut *transaction)
                .await?
                .try_get(0)?;
            if there > 0 {
                return Ok(false);
            }
            for row in certificates {
                insert_certificate!(&mut *transaction, row, now);
            }
            for row in signers {
                insert_signer!(&mut *transaction, row, now);
            }
            transaction.commit().await?;
            Ok(true)
        })
    }

    /// Changes a certificate's standing; false when nothing was to be done.
    pub async fn change_certificate(
        &self,
        role: Role,
        thumbprint: &str,
        change: Change,
    ) -> Result<Result<bool, ChangeRefusal>, sqlx::Error> {
        on_database!(&self.0, write, pool => {
            let mut transaction = pool.begin().await?;
            sqlx::query(RAISE).execute(&mut *transaction).await?;
            let row = sqlx::query(
                "SELECT is_primary, is_enabled FROM guardian_certificate WHERE role = $1 AND thumbprint = $2",
            )
            .bind(role.word())
            .bind(thumbprint)
            .fetch_optional(&mut *transaction)
            .await?;
            let Some(row) = row else { return Ok(Err(ChangeRefusal::Unknown)) };
            match change.check(row.try_get(0)?, row.try_get(1)?) {
                Ok(true) => {}
                other => return Ok(other),
            }
            let statements: &[&'static str] = match change {
                Change::MakePrimary => &[
                    "UPDATE guardian_certificate SET is_primary = FALSE WHERE role = $1 AND thumbprint <> $2",
                    "UPDATE guardian_certificate SET is_primary = TRUE WHERE role = $1 AND thumbprint = $2",
                ],
                Change::Enable => {
                    &["UPDATE guardian_certificate SET is_enabled = TRUE WHERE role = $1 AND thumbprint = $2"]
                }
                Change::Disable => {
                    &["UPDATE guardian_certificate SET is_enabled = FALSE WHERE role = $1 AND thumbprint = $2"]
                }
                Change::Remove => &["DELETE FROM guardian_certificate WHERE role = $1 AND thumbprint = $2"],
            };
            for statement in statements {
                sqlx::query(*statement)
                    .bind(role.word())
                    .bind(thumbprint)
                    .execute(&mut *transaction)
                    .await?;
            }
            transaction.commit().await?;
            Ok(Ok(true))
        })
    }

    /// The trusted attestation signers, oldest first.
    pub async fn signers(&self) -> Result<Vec<StoredSigner>, sqlx::Error> {
        on_database!(&self.0, read, pool => {
            let rows = sqlx::query(
                "SELECT thumbprint, certificate, deny_issued_before FROM attestation_signer \
                 ORDER BY added_at, thumbprint",
            )
            .fetch_all(pool)
            .await?;
            rows.iter().map(|row| {
                Ok(StoredSigner {
                    thumbprint: row.try_get(0)?,
                    certificate: row.try_get(1)?,
                    deny_issued_before: row.try_get::<Option<i64>, _>(2)?.map(UnixTime),
                })
            }).collect()
        })
    }

    /// Trusts a signer; false when it is trusted already, and then its setting stays as it is.
    pub async fn trust_signer(&self, signer: &StoredSigner, now: UnixTime) -> Result<bool, sqlx::Error> {
        on_database!(&self.0, write, pool => {
            let mut transaction = pool.begin().await?;
            sqlx::query(RAISE).execute(&mut *transaction).await?;
            let added = insert_signer!(&mut *transaction, signer, now);
            transaction.commit().await?;
            Ok(added == 1)
        })
    }

    /// Denies health certificates from before `before` (none: denies none), of one signer or, with none named, of
    /// all; the number of signers that this concerns.
    pub async fn deny_issued_before(
        &self,
        thumbprint: Option<&str>,
        before: Option<UnixTime>,
    ) -> Result<u64, sqlx::Error> {
        on_database!(&self.0, write, pool => {
            let mut transaction = pool.begin().await?;
            sqlx::query(RAISE).execute(&mut *transaction).await?;
            let done = sqlx::query(
                "UPDATE attestation_signer SET deny_issued_before = $1 WHERE thumbprint = $2 OR $2 IS NULL",
            )
            .bind(before.map(|t| t.0))
            .bind(thumbprint)
            .execute(&mut *transaction)
            .await?
            .rows_affected();
            transaction.commit().await?;
            Ok(done)
        })
    }

    /// Trusts a signer no longer; false when it was not trusted.
    pub async fn forget_signer(&self, thumbprint: &str) -> Result<bool, sqlx::Error> {
        on_database!(&self.0, write, pool => {
            let mut transaction = pool.begin().await?;
            sqlx::query(RAISE).execute(&mut *transaction).await?;
            let gone = sqlx::query("DELETE FROM attestation_signer WHERE thumbprint = $1")
                .bind(thumbprint)
                .execute(&mut *transaction)
                .await?
                .rows_affected();
            transaction.commit().await?;
            Ok(gone == 1)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn contract(database: Database) {
        let store = Store::new(database);
        let certificate = |name: &str, role, is_primary| StoredCertificate {
            thumbprint: name.to_owned(),
            role,
            is_primary,
            is_enabled: true,
            certificate: vec![1, 2],
            key: KeyPlace::Sealed(vec![3]),
            request_id: None,
        };
        let now = UnixTime(1_800_000_000);
        assert_eq!(store.certificates().await.unwrap(), []);
        let (signing, mut encryption) = (
            certificate("b", Role::Signing, true),
            certificate("a", Role::Encryption, true),
        );
        encryption.key = KeyPlace::Token("0a".to_owned());
        assert!(store.add_certificate(&signing, now).await.unwrap());
        assert!(store.add_certificate(&encryption, now).await.unwrap());
        // A second process that starts at the same moment loses, and uses the winner's.
        let loser = certificate("c", Role::Signing, true);
        assert!(!store.add_certificate(&loser, now).await.unwrap());
        assert_eq!(
            store.certificates().await.unwrap(),
            [signing.clone(), encryption.clone()]
        );

        // Rotation: every step that would leave the service without a key is refused.
        let before = store.revision().await.unwrap();
        let mut next = certificate("d", Role::Signing, false);
        next.request_id = Some("r".to_owned());
        assert!(store.add_certificate(&next, now).await.unwrap());
        assert!(!store.add_certificate(&next, now).await.unwrap());
        let change = |name: &'static str, change| store.change_certificate(Role::Signing, name, change);
        assert_eq!(change("z", Change::Enable).await.unwrap(), Err(ChangeRefusal::Unknown));
        assert_eq!(change("a", Change::Enable).await.unwrap(), Err(ChangeRefusal::Unknown));
        assert_eq!(change("b", Change::Disable).await.unwrap(), Err(ChangeRefusal::Primary));
        assert_eq!(change("b", Change::Remove).await.unwrap(), Err(ChangeRefusal::Primary));
        assert_eq!(change("d", Change::MakePrimary).await.unwrap(), Ok(true));
        assert_eq!(change("d", Change::MakePrimary).await.unwrap(), Ok(false));
        assert_eq!(change("b", Change::Remove).await.unwrap(), Err(ChangeRefusal::Enabled));
        assert_eq!(change("b", Change::Disable).await.unwrap(), Ok(true));
        assert_eq!(
            change("b", Change::MakePrimary).await.unwrap(),
            Err(ChangeRefusal::Disabled)
        );
        assert_eq!(change("b", Change::Remove).await.unwrap(), Ok(true));
        assert!(store.revision().await.unwrap() > before);
        next.is_primary = true;
        assert_eq!(store.certificates().await.unwrap(), [next, encryption]);

        let signer = |name: &str, deny| StoredSigner {
            thumbprint: name.to_owned(),
            certificate: vec![9],
            deny_issued_before: deny,
        };
        assert!(store.trust_signer(&signer("y", None), now).await.unwrap());
        let later = now.plus_seconds(1);
        assert!(store.trust_signer(&signer("x", Some(now)), later).await.unwrap());
        // Trusting it again does not lift what is denied.
        assert!(!store.trust_signer(&signer("x", None), later).await.unwrap());
        assert_eq!(
            store.signers().await.unwrap(),
            [signer("y", None), signer("x", Some(now))]
        );
        assert_eq!(store.deny_issued_before(Some("x"), None).await.unwrap(), 1);
        assert_eq!(store.deny_issued_before(Some("z"), None).await.unwrap(), 0);
        assert_eq!(store.deny_issued_before(None, Some(later)).await.unwrap(), 2);
        assert!(store.forget_signer("y").await.unwrap());
        assert!(!store.forget_signer("y").await.unwrap());
        assert_eq!(store.signers().await.unwrap(), [signer("x", Some(later))]);

        let mut settings = store.settings().await.unwrap();
        assert_eq!(settings.accepted_modes, [1, 2, 3]);
        assert_eq!((settings.max_offline_unwraps, settings.allow_sha1_oaep), (None, false));
        settings = StoredSettings {
            accepted_modes: vec![1],
            max_offline_unwraps: Some(u32::MAX),
            allow_sha1_oaep: true,
        };
        store.set_settings(&settings).await.unwrap();
        assert_eq!(store.settings().await.unwrap(), settings);
    }

    async fn open(url: &str) -> Database {
        Database::open(url, &crate::SQLITE, &crate::POSTGRES).await.unwrap()
    }

    #[tokio::test]
    async fn sqlite_keeps_the_contract() {
        let dir = tempfile::tempdir().unwrap();
        contract(open(&format!("sqlite://{}", dir.path().join("kps.db").display())).await).await;
    }

    #[tokio::test]
    async fn postgresql_keeps_the_contract() {
        let Ok(url) = std::env::var("TEST_POSTGRES_URL") else {
            eprintln!("skipped: TEST_POSTGRES_URL names no PostgreSQL server");
            return;
        };
        // A database of its own, for the tables must be empty.
        let name = format!("kps_contract_{}", std::process::id());
        let admin = sqlx::PgPool::connect(&url).await.unwrap();
        let run = |text: String| {
            let admin = admin.clone();
            async move { sqlx::query(sqlx::AssertSqlSafe(text)).execute(&admin).await.unwrap() }
        };
        run(format!("CREATE DATABASE {name}")).await;
        // The query part names the server's socket.
        let (place, query) = url.split_once('?').unwrap_or((&url, ""));
        let (server, _) = place.rsplit_once('/').unwrap();
        let database = open(&format!("{server}/{name}?{query}")).await;
        contract(database.clone()).await;
        if let Database::Postgres(pool) = database {
            pool.close().await;
        }
        run(format!("DROP DATABASE {name}")).await;
    }
}
