//! Rows of attestation signers: at most one active, at most one pending, any number of old ones.

use hgs_protocol::env::UnixTime;
use hgs_service::on_database;
use sqlx::Row;

use super::Store;

/// What a signer is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Slot {
    /// It signs.
    Active,
    /// It is published, and will sign once an administrator says that key protection trusts it.
    Pending,
}

impl Slot {
    pub(super) fn column(self) -> &'static str {
        match self {
            Slot::Active => "active",
            Slot::Pending => "pending",
        }
    }
}

/// A signer as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignerRow {
    /// SHA-256 of its certificate, hex.
    pub id: String,
    /// None for an old one.
    pub slot: Option<Slot>,
    /// DER.
    pub certificate: Vec<u8>,
    /// Its private key, sealed; gone once an old one is no longer published.
    pub sealed: Option<Vec<u8>>,
    /// When it was made.
    pub made_at: UnixTime,
    /// Of an old one: when the last health certificate that it signed has expired.
    pub published_until: Option<UnixTime>,
}

impl SignerRow {
    /// True when clients are to find it among the signing certificates.
    pub fn is_published(&self, now: UnixTime) -> bool {
        match self.slot {
            // Clients keep the list for hours, so the next signer is in it long before it signs.
            Some(Slot::Active | Slot::Pending) => true,
            None => self.published_until.is_some_and(|until| now < until),
        }
    }
}

impl Store {
    /// Every signer, newest first.
    pub async fn signers(&self) -> Result<Vec<SignerRow>, sqlx::Error> {
        let text = "SELECT id, slot, certificate, sealed, made_at, published_until FROM signer \
                    ORDER BY made_at DESC, id";
        on_database!(&self.database, read, pool => {
            let rows = sqlx::query(text).fetch_all(pool).await?;
            rows.into_iter()
                .map(|row| {
                    let slot: Option<String> = row.try_get(1)?;
                    Ok(SignerRow {
                        id: row.try_get(0)?,
                        slot: match slot.as_deref() {
                            Some("active") => Some(Slot::Active),
                            Some("pending") => Some(Slot::Pending),
                            _ => None,
                        },
                        certificate: row.try_get(2)?,
                        sealed: row.try_get(3)?,
                        made_at: UnixTime(row.try_get(4)?),
                        published_until: row.try_get::<Option<i64>, _>(5)?.map(UnixTime),
                    })
                })
                .collect()
        })
    }

    /// Stores a new signer in its slot unless the slot is taken; true when it was stored.
    pub async fn add_signer(&self, signer: &SignerRow) -> Result<bool, sqlx::Error> {
        let text = "INSERT INTO signer (id, slot, certificate, sealed, made_at) VALUES ($1, $2, $3, $4, $5) \
                    ON CONFLICT DO NOTHING";
        on_database!(&self.database, write, pool => {
            let done = sqlx::query(text)
                .bind(&signer.id)
                .bind(signer.slot.map(Slot::column))
                .bind(&signer.certificate)
                .bind(&signer.sealed)
                .bind(signer.made_at.0)
                .execute(pool)
                .await?;
            Ok(done.rows_affected() == 1)
        })
    }

    /// The pending signer `id` becomes the active one; the one before stays published until
    /// `published_until`. False when `id` is not pending.
    pub async fn activate_signer(&self, id: &str, published_until: UnixTime) -> Result<bool, sqlx::Error> {
        let retire = "UPDATE signer SET slot = NULL, published_until = $1 WHERE slot = 'active' \
                      AND EXISTS (SELECT 1 FROM signer AS next WHERE next.id = $2 AND next.slot = 'pending')";
        let promote = "UPDATE signer SET slot = 'active' WHERE id = $1 AND slot = 'pending'";
        on_database!(&self.database, write, pool => {
            let mut transaction = pool.begin().await?;
            sqlx::query(retire).bind(published_until.0).bind(id).execute(&mut *transaction).await?;
            let done = sqlx::query(promote).bind(id).execute(&mut *transaction).await?;
            transaction.commit().await?;
            Ok(done.rows_affected() == 1)
        })
    }

    /// Drops a pending signer, or withdraws an old one before its time; never the active one.
    pub async fn drop_signer(&self, id: &str) -> Result<bool, sqlx::Error> {
        let text = "DELETE FROM signer WHERE id = $1 AND (slot IS NULL OR slot = 'pending')";
        self.delete(text, id).await
    }

    /// Erases the private keys of old signers: they sign no more from the moment of their retirement.
    pub async fn erase_old_signer_keys(&self, now: UnixTime) -> Result<u64, sqlx::Error> {
        let text =
            "UPDATE signer SET sealed = NULL WHERE slot IS NULL AND sealed IS NOT NULL AND published_until <= $1";
        on_database!(&self.database, write, pool => {
            Ok(sqlx::query(text).bind(now.0).execute(pool).await?.rows_affected())
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Leaves the table as it was, whatever was in it, apart from signers of its own.
    pub(in super::super) async fn contract(store: &Store) {
        for row in store.signers().await.unwrap() {
            store.drop_signer(&row.id).await.unwrap();
        }
        let new = |id: &str, slot, at| SignerRow {
            id: id.to_owned(),
            slot: Some(slot),
            certificate: vec![1],
            sealed: Some(vec![2]),
            made_at: UnixTime(at),
            published_until: None,
        };
        let first_run = store.add_signer(&new("contract-1", Slot::Active, 1)).await.unwrap();
        assert!(store.add_signer(&new("contract-2", Slot::Pending, 2)).await.unwrap());
        assert!(
            !store.add_signer(&new("contract-3", Slot::Pending, 3)).await.unwrap(),
            "one at a time"
        );
        assert!(!store.add_signer(&new("contract-3", Slot::Active, 3)).await.unwrap());
        assert!(!store.activate_signer("contract-9", UnixTime(9)).await.unwrap());
        assert!(store.activate_signer("contract-2", UnixTime(9)).await.unwrap());
        assert!(
            !store.activate_signer("contract-2", UnixTime(99)).await.unwrap(),
            "it is not pending"
        );
        assert!(
            !store.drop_signer("contract-2").await.unwrap(),
            "the active one is not dropped"
        );
        if first_run {
            let rows = store.signers().await.unwrap();
            let old = rows.iter().find(|row| row.id == "contract-1").unwrap();
            assert_eq!((old.slot, old.published_until), (None, Some(UnixTime(9))));
            assert!(old.is_published(UnixTime(8)) && !old.is_published(UnixTime(9)));
            assert_eq!(store.erase_old_signer_keys(UnixTime(8)).await.unwrap(), 0);
            assert_eq!(store.erase_old_signer_keys(UnixTime(9)).await.unwrap(), 1);
            assert!(store.drop_signer("contract-1").await.unwrap());
        }
    }
}
