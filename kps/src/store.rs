//! Rows of the key protection service: its certificates and the attestation signers it trusts.
//! One text of each statement serves SQLite and PostgreSQL. Knows nothing of HTTP.

use hgs_protocol::env::UnixTime;
use hgs_service::{database::Database, on_database};
use sqlx::Row;

/// The service's database, by its questions.
#[derive(Clone)]
pub struct Store(Database);

/// What a certificate of the service is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Signs egress protectors and metadata.
    Signing,
    /// Opens transport keys.
    Encryption,
}

impl Role {
    /// The word in the table.
    pub fn word(self) -> &'static str {
        match self {
            Role::Signing => "signing",
            Role::Encryption => "encryption",
        }
    }
}

/// A certificate of the service with its sealed private key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredCertificate {
    /// SHA-256 of the certificate, hex.
    pub thumbprint: String,
    /// What it is for.
    pub role: Role,
    /// New protectors are made for the primary one; others still open old ones.
    pub is_primary: bool,
    /// DER.
    pub certificate: Vec<u8>,
    /// PKCS#8, sealed under the key-encryption key.
    pub sealed_key: Vec<u8>,
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

impl Store {
    /// Over an open database whose tables are up to date.
    pub fn new(database: Database) -> Store {
        Store(database)
    }

    /// The database, for the audit chain.
    pub fn database(&self) -> &Database {
        &self.0
    }

    /// All certificates of the service, the primary of each role first.
    pub async fn certificates(&self) -> Result<Vec<StoredCertificate>, sqlx::Error> {
        on_database!(&self.0, read, pool => {
            let rows = sqlx::query(
                "SELECT thumbprint, role, is_primary, certificate, sealed_key FROM guardian_certificate \
                 ORDER BY role, is_primary DESC, added_at DESC, thumbprint",
            )
            .fetch_all(pool)
            .await?;
            rows.iter().map(|row| {
                let role: String = row.try_get(1)?;
                Ok(StoredCertificate {
                    thumbprint: row.try_get(0)?,
                    role: if role == Role::Signing.word() { Role::Signing } else { Role::Encryption },
                    is_primary: row.try_get(2)?,
                    certificate: row.try_get(3)?,
                    sealed_key: row.try_get(4)?,
                })
            }).collect()
        })
    }

    /// Adds a role's first primary certificate. Does nothing where the role has one already.
    pub async fn add_primary(&self, new: &StoredCertificate, now: UnixTime) -> Result<(), sqlx::Error> {
        on_database!(&self.0, write, pool => {
            sqlx::query(
                "INSERT INTO guardian_certificate \
                 (thumbprint, role, is_primary, certificate, sealed_key, added_at) \
                 VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
            )
            .bind(&new.thumbprint)
            .bind(new.role.word())
            .bind(true)
            .bind(&new.certificate)
            .bind(&new.sealed_key)
            .bind(now.0)
            .execute(pool)
            .await
            .map(|_| ())
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

    /// Trusts a signer, or changes its setting where it is trusted already.
    pub async fn trust_signer(&self, signer: &StoredSigner, now: UnixTime) -> Result<(), sqlx::Error> {
        on_database!(&self.0, write, pool => {
            sqlx::query(
                "INSERT INTO attestation_signer (thumbprint, certificate, deny_issued_before, added_at) \
                 VALUES ($1, $2, $3, $4) \
                 ON CONFLICT (thumbprint) DO UPDATE SET deny_issued_before = excluded.deny_issued_before",
            )
            .bind(&signer.thumbprint)
            .bind(&signer.certificate)
            .bind(signer.deny_issued_before.map(|t| t.0))
            .bind(now.0)
            .execute(pool)
            .await
            .map(|_| ())
        })
    }

    /// Trusts a signer no longer; false when it was not trusted.
    pub async fn forget_signer(&self, thumbprint: &str) -> Result<bool, sqlx::Error> {
        on_database!(&self.0, write, pool => {
            sqlx::query("DELETE FROM attestation_signer WHERE thumbprint = $1")
                .bind(thumbprint)
                .execute(pool)
                .await
                .map(|done| done.rows_affected() == 1)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn contract(database: Database) {
        let store = Store::new(database);
        let certificate = |name: &str, role| StoredCertificate {
            thumbprint: name.to_owned(),
            role,
            is_primary: true,
            certificate: vec![1, 2],
            sealed_key: vec![3],
        };
        let now = UnixTime(1_800_000_000);
        assert_eq!(store.certificates().await.unwrap(), []);
        let (signing, encryption) = (certificate("b", Role::Signing), certificate("a", Role::Encryption));
        store.add_primary(&signing, now).await.unwrap();
        store.add_primary(&encryption, now).await.unwrap();
        // A second process that starts at the same moment loses, and uses the winner's.
        store.add_primary(&certificate("c", Role::Signing), now).await.unwrap();
        assert_eq!(store.certificates().await.unwrap(), [encryption, signing]);

        let signer = |name: &str, deny| StoredSigner {
            thumbprint: name.to_owned(),
            certificate: vec![9],
            deny_issued_before: deny,
        };
        store.trust_signer(&signer("y", None), now).await.unwrap();
        store
            .trust_signer(&signer("x", None), now.plus_seconds(1))
            .await
            .unwrap();
        let denying = signer("x", Some(now));
        store.trust_signer(&denying, now.plus_seconds(2)).await.unwrap();
        assert_eq!(store.signers().await.unwrap(), [signer("y", None), denying.clone()]);
        assert!(store.forget_signer("y").await.unwrap());
        assert!(!store.forget_signer("y").await.unwrap());
        assert_eq!(store.signers().await.unwrap(), [denying]);
    }

    async fn open(url: &str) -> Database {
        Database::open(
            url,
            &sqlx::migrate!("../migrations/kps/sqlite"),
            &sqlx::migrate!("../migrations/kps/postgres"),
        )
        .await
        .unwrap()
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
        let (server, _) = url.rsplit_once('/').unwrap();
        let database = open(&format!("{server}/{name}")).await;
        contract(database.clone()).await;
        if let Database::Postgres(pool) = database {
            pool.close().await;
        }
        run(format!("DROP DATABASE {name}")).await;
    }
}
