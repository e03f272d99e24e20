//! The service's own certificates: made on the first start, private keys sealed at rest under the
//! key-encryption key or kept in a token, and read into the keys that requests are served with.

use std::sync::Arc;

use anyhow::{Context, ensure};
use hgs_protocol::{
    env::{Random, UnixTime},
    protector::{KeyPair, KeyPurpose, suite::Suite},
};
use hgs_service::sealed::Kek;

use crate::{
    store::{KeyPlace, Role, Store, StoredCertificate},
    token::Token,
};

/// Where new keys go and old ones are found.
#[derive(Clone)]
pub struct Vault {
    /// Seals keys in the database.
    pub kek: Kek,
    /// Holds the keys instead, where there is one.
    pub token: Option<Arc<Token>>,
}

impl Vault {
    /// Makes a self-signed pair: in the token if there is one, else sealed. P-256 in a token is refused.
    pub fn make(
        &self,
        role: Role,
        suite: Suite,
        name: &str,
        now: UnixTime,
        rng: &mut dyn Random,
    ) -> anyhow::Result<StoredCertificate> {
        let purpose = match role {
            Role::Signing | Role::Communications => KeyPurpose::Signing,
            Role::Encryption => KeyPurpose::Encryption,
        };
        let Some(token) = &self.token else {
            let pair = KeyPair::generate(suite, purpose, name, now, rng)?;
            return self.seal(role, &pair, rng);
        };
        ensure!(suite == Suite::Rsa, "keys in a token are RSA keys: leave `suite` out");
        let id = token.generate(name, rng)?;
        let pair = KeyPair::certify_token(token.key(&id)?, name, purpose, now, rng)?;
        Ok(row(role, &pair, KeyPlace::Token(id)))
    }

    /// Takes over a pair made elsewhere. Refused where keys live in a token, since this one has been outside.
    pub fn seal(&self, role: Role, pair: &KeyPair, rng: &mut dyn Random) -> anyhow::Result<StoredCertificate> {
        ensure!(
            self.token.is_none(),
            "the keys of this service live in a token: put the key into it with the token's own tools, then add it by \
             `tokenKeyId` and `certificate`"
        );
        let key = pair.expose_pkcs8().context("the private key is in a token")?;
        let thumbprint = hex::encode(pair.certificate().sha256());
        let sealed = self.kek.seal(&purpose(role, &thumbprint), key, rng);
        Ok(row(role, pair, KeyPlace::Sealed(sealed)))
    }

    /// Takes over a key that is in the token already, with its certificate.
    pub fn adopt(&self, role: Role, id: &str, certificate: &[u8]) -> anyhow::Result<StoredCertificate> {
        let token = self.token.as_ref().context(NO_TOKEN)?;
        let pair = KeyPair::from_token(token.key(id)?, certificate)?;
        Ok(row(role, &pair, KeyPlace::Token(id.to_ascii_lowercase())))
    }

    /// The pair of a row.
    pub fn open(&self, row: &StoredCertificate) -> anyhow::Result<KeyPair> {
        let what = || format!("the {} certificate {}", row.role.word(), row.thumbprint);
        match &row.key {
            KeyPlace::Sealed(sealed) => {
                let key = self
                    .kek
                    .open(&purpose(row.role, &row.thumbprint), sealed)
                    .with_context(what)?;
                KeyPair::from_parts(&key, &row.certificate).with_context(what)
            }
            KeyPlace::Token(id) => {
                let token = self.token.as_ref().context(NO_TOKEN).with_context(what)?;
                KeyPair::from_token(token.key(id).with_context(what)?, &row.certificate).with_context(what)
            }
        }
    }

    /// Destroys the key of a row that is gone.
    pub fn forget(&self, row: &StoredCertificate) {
        if let (KeyPlace::Token(id), Some(token)) = (&row.key, &self.token)
            && let Err(error) = token.destroy(id)
        {
            tracing::warn!(key = id, %error, "a key that is no longer used stays in the token");
        }
    }
}

/// Makes the first self-signed pair (RSA-2048) of signing and of encryption where the service has none of that kind; of two processes that do so at once, one wins and both use its pairs.
pub async fn make_first(store: &Store, vault: &Vault, now: UnixTime, rng: &mut dyn Random) -> anyhow::Result<()> {
    let there = store.certificates().await?;
    for (role, name) in [(Role::Signing, "HGS Signing"), (Role::Encryption, "HGS Encryption")] {
        // Each kind by itself: a first start may have been cut short between the two.
        if there.iter().any(|row| row.role == role) {
            continue;
        }
        let mut made = vault.make(role, Suite::Rsa, name, now, rng)?;
        made.is_primary = true;
        if !store.add_certificate(&made, now).await? {
            vault.forget(&made);
        }
        tracing::info!(kind = role.word(), "made the first certificate");
    }
    Ok(())
}

fn row(role: Role, pair: &KeyPair, key: KeyPlace) -> StoredCertificate {
    StoredCertificate {
        thumbprint: hex::encode(pair.certificate().sha256()),
        role,
        is_primary: false,
        is_enabled: true,
        certificate: pair.certificate().der().to_vec(),
        key,
        request_id: None,
    }
}

/// Binds a sealed key to its row, so that one row's key cannot stand in for another's.
fn purpose(role: Role, thumbprint: &str) -> String {
    format!("kps-{}-{thumbprint}", role.word())
}

const NO_TOKEN: &str = "its private key is in a token: start the service with --pkcs11-module and --pkcs11-pin-file";

#[cfg(test)]
mod tests {
    use super::*;
    use hgs_protocol::{env::OsRandom, secret::Secret32};
    use hgs_service::database::Database;

    #[tokio::test]
    async fn a_first_start_that_was_cut_short_is_finished_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(
            &format!("sqlite://{}", dir.path().join("kps.db").display()),
            &crate::SQLITE,
            &crate::POSTGRES,
        )
        .await
        .unwrap();
        let store = Store::new(database);
        let vault = Vault {
            kek: Kek::new(Secret32::new([1; 32])),
            token: None,
        };
        let now = UnixTime(1_800_000_000);
        let mut signing = vault
            .make(Role::Signing, Suite::Rsa, "HGS Signing", now, &mut OsRandom)
            .unwrap();
        signing.is_primary = true;
        assert!(store.add_certificate(&signing, now).await.unwrap());
        make_first(&store, &vault, now, &mut OsRandom).await.unwrap();
        let made = store.certificates().await.unwrap();
        let primaries: Vec<&str> = made
            .iter()
            .filter(|row| row.is_primary)
            .map(|row| row.role.word())
            .collect();
        assert_eq!(primaries.len(), 2, "{primaries:?}");
        assert!(
            made.iter().any(|row| row.thumbprint == signing.thumbprint),
            "the first is kept"
        );
        make_first(&store, &vault, now, &mut OsRandom).await.unwrap();
        assert_eq!(store.certificates().await.unwrap().len(), 2);
    }
}
