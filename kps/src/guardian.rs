//! The service's own certificates: made on the first start, private keys sealed at rest under the
//! key-encryption key, the primary of each kind first.

use anyhow::{Context, ensure};
use hgs_protocol::{
    env::{Random, UnixTime},
    protector::{GuardianKeys, KeyPair},
};
use hgs_service::sealed::Kek;

use crate::store::{Role, Store, StoredCertificate};

/// Loads the service's certificates. Where there are none yet, makes a self-signed pair of each
/// kind (RSA-2048); of two processes that do so at once, one wins and both use its pairs.
pub async fn load_or_make(
    store: &Store,
    kek: &Kek,
    now: UnixTime,
    rng: &mut dyn Random,
) -> anyhow::Result<GuardianKeys> {
    let mut stored = store.certificates().await?;
    if stored.is_empty() {
        let signing = KeyPair::generate_signing("HGS Signing", now, rng)?;
        let encryption = KeyPair::generate_encryption("HGS Encryption", now, rng)?;
        for (role, pair) in [(Role::Signing, &signing), (Role::Encryption, &encryption)] {
            store.add_primary(&seal(role, pair, kek, rng), now).await?;
        }
        stored = store.certificates().await?;
        tracing::info!("made the first signing and encryption certificates");
    }
    assemble(&stored, kek)
}

fn assemble(stored: &[StoredCertificate], kek: &Kek) -> anyhow::Result<GuardianKeys> {
    let mut pairs = [Vec::new(), Vec::new()];
    for (role, list) in [Role::Signing, Role::Encryption].into_iter().zip(&mut pairs) {
        for row in stored.iter().filter(|row| row.role == role) {
            list.push(open(row, kek)?);
        }
        let primary = stored.iter().find(|row| row.role == role);
        ensure!(
            primary.is_some_and(|row| row.is_primary),
            "there is no primary {} certificate in the database",
            role.word()
        );
    }
    let [signing, encryption] = pairs.map(Vec::into_iter);
    let (mut signing, mut encryption) = (signing, encryption);
    let first = (signing.next(), encryption.next());
    let (Some(first_signing), Some(first_encryption)) = first else {
        anyhow::bail!("there is no primary certificate in the database");
    };
    let mut keys = GuardianKeys::from_pairs("HGS", first_signing, first_encryption);
    signing.for_each(|pair| keys.add_signing(pair));
    encryption.for_each(|pair| keys.add_encryption(pair));
    Ok(keys)
}

fn seal(role: Role, pair: &KeyPair, kek: &Kek, rng: &mut dyn Random) -> StoredCertificate {
    let thumbprint = hex::encode(pair.certificate().sha256());
    StoredCertificate {
        sealed_key: kek.seal(&purpose(role, &thumbprint), pair.expose_pkcs8(), rng),
        thumbprint,
        role,
        is_primary: true,
        certificate: pair.certificate().der().to_vec(),
    }
}

fn open(row: &StoredCertificate, kek: &Kek) -> anyhow::Result<KeyPair> {
    let what = || format!("the {} certificate {}", row.role.word(), row.thumbprint);
    let key = kek
        .open(&purpose(row.role, &row.thumbprint), &row.sealed_key)
        .with_context(what)?;
    KeyPair::from_parts(&key, &row.certificate).with_context(what)
}

/// Binds a sealed key to its row, so that one row's key cannot stand in for another's.
fn purpose(role: Role, thumbprint: &str) -> String {
    format!("kps-{}-{thumbprint}", role.word())
}
