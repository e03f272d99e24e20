//! The life of attestation signers: a new one is made in good time, is published at once and waits; an
//! administrator registers it with key protection and says so, and only then does it sign, not before clients
//! have had the time to see it published; the old one stays published until the last health certificate that
//! it signed has expired.
//!
//! A signer is valid from the moment it is made, and all should be of one key type, RSA unless configured otherwise:
//! a public client gives up at a list in which one is not yet valid or has another key type than the certificate
//! at hand.

use std::time::Duration;

use hgs_protocol::{
    crypto::sha256,
    env::{Random, UnixTime},
    health::{AttestationSigner, IssueError, TrustedSigner},
    protector::suite::Suite,
};
use hgs_service::sealed::{Kek, SealedError};
use serde::Serialize;
use x509_cert::{Certificate, der::Decode as _};

use crate::store::{Kind, Registered, SignerRow, Slot, Store};

/// Why a stored signer does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its key was erased.
    #[error("its private key has been erased")]
    Erased,
    /// Not under this key-encryption key.
    #[error(transparent)]
    Sealed(#[from] SealedError),
    /// Key and certificate do not fit.
    #[error(transparent)]
    Parts(#[from] IssueError),
}

/// A new signer for `slot` with a key of that suite, its key sealed.
pub fn make(slot: Slot, suite: Suite, kek: &Kek, now: UnixTime, rng: &mut dyn Random) -> Result<SignerRow, IssueError> {
    let signer = AttestationSigner::generate_of(suite, now, rng)?;
    Ok(SignerRow {
        slot: Some(slot),
        made_at: now,
        ..from_parts(Some(signer.expose_pkcs8()), signer.certificate_der(), kek, rng)?
    })
}

/// The row of a signer from elsewhere, its private key (PKCS#8), where it is kept, sealed; in no slot.
pub fn from_parts(
    pkcs8: Option<&[u8]>,
    certificate: &[u8],
    kek: &Kek,
    rng: &mut dyn Random,
) -> Result<SignerRow, IssueError> {
    let id = hex::encode(sha256(certificate));
    let sealed = match pkcs8 {
        Some(pkcs8) => {
            let signer = AttestationSigner::from_parts(pkcs8, certificate)?;
            Some(kek.seal(&purpose(&id), signer.expose_pkcs8(), rng))
        }
        None => None,
    };
    Ok(SignerRow {
        id,
        slot: None,
        certificate: certificate.to_vec(),
        sealed,
        made_at: UnixTime(0),
        published_until: None,
    })
}

/// The signer of a row, ready to sign.
pub fn open(row: &SignerRow, kek: &Kek) -> Result<AttestationSigner, OpenError> {
    let sealed = row.sealed.as_ref().ok_or(OpenError::Erased)?;
    let pkcs8 = kek.open(&purpose(&row.id), sealed)?;
    Ok(AttestationSigner::from_parts(&pkcs8, &row.certificate)?)
}

/// What the passing of time asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Renewal {
    /// Nothing.
    NotDue,
    /// The active signer ends soon, and no other waits: make one.
    Due,
    /// One waits for an administrator.
    Pending,
    /// One waits, or should, and the active signer ends within [`LATE`].
    Late,
    /// The active signer has ended; no host can attest.
    Expired,
}

/// Where the renewal stands. `ahead` is how long before its end a signer's successor is made.
pub fn renewal(rows: &[SignerRow], now: UnixTime, ahead: Duration) -> Renewal {
    let active = rows.iter().find(|row| row.slot == Some(Slot::Active));
    let pending = rows.iter().any(|row| row.slot == Some(Slot::Pending));
    let left = active.map_or(0, |row| not_after(row).seconds_since(now));
    let within = |span: Duration| left <= i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
    match (left <= 0, within(LATE.min(ahead)), pending, within(ahead)) {
        (true, ..) => Renewal::Expired,
        (_, true, ..) => Renewal::Late,
        (_, _, true, _) => Renewal::Pending,
        (_, _, false, true) => Renewal::Due,
        _ => Renewal::NotDue,
    }
}

/// How many seconds the pending signer must still be published before it may sign: until clients that keep the
/// list for `publish` have it. None are left once the active one has ended, since then nothing is lost.
pub fn seconds_to_wait(pending: &SignerRow, active: Option<&SignerRow>, now: UnixTime, publish: Duration) -> i64 {
    if active.is_none_or(|row| not_after(row) <= now) {
        return 0;
    }
    let publish = i64::try_from(publish.as_secs()).unwrap_or(i64::MAX);
    pending.made_at.plus_seconds(publish).seconds_since(now).max(0)
}

/// End of a signer's certificate; the beginning of time where it does not parse.
pub fn not_after(row: &SignerRow) -> UnixTime {
    let seconds = |certificate: Certificate| {
        let end = certificate.tbs_certificate.validity.not_after.to_unix_duration();
        i64::try_from(end.as_secs()).ok()
    };
    UnixTime(
        Certificate::from_der(&row.certificate)
            .ok()
            .and_then(seconds)
            .unwrap_or(0),
    )
}

/// True when the certificate is one that key protection and clients can use now.
pub fn is_usable(row: &SignerRow, now: UnixTime) -> bool {
    let begun = Certificate::from_der(&row.certificate).is_ok_and(|certificate| {
        let begin = certificate.tbs_certificate.validity.not_before.to_unix_duration();
        i64::try_from(begin.as_secs()).is_ok_and(|begin| begin <= now.0)
    });
    begun && now < not_after(row) && TrustedSigner::from_certificate(&row.certificate).is_ok()
}

/// How long a retired signer must stay published: the longest life that any certificate was ever given
/// here, and what a replica may lag behind.
pub async fn publish_after_retirement(store: &Store, lifetime: Duration) -> Result<Duration, sqlx::Error> {
    let stored = store.registered_as(Kind::Setting, LONGEST_LIFETIME).await?;
    let longest = stored.and_then(|row| row.body.parse().ok()).unwrap_or(0);
    Ok(Duration::from_secs(longest).max(lifetime) + LAG)
}

/// Remembers the longest life of health certificates ever configured.
pub async fn remember_lifetime(store: &Store, lifetime: Duration) -> Result<(), sqlx::Error> {
    let stored = store.registered_as(Kind::Setting, LONGEST_LIFETIME).await?;
    let longest: u64 = stored.and_then(|row| row.body.parse().ok()).unwrap_or(0);
    if lifetime.as_secs() > longest {
        let row = Registered::plain(LONGEST_LIFETIME, lifetime.as_secs().to_string());
        store.replace(Kind::Setting, &row).await?;
    }
    Ok(())
}

fn purpose(id: &str) -> String {
    format!("attestation-signer-{id}")
}

const LONGEST_LIFETIME: &str = "longest-health-certificate-seconds";
const LAG: Duration = Duration::from_secs(60);
/// So many fit into one TLS record, beyond which a public client does not read.
pub const MOST_PUBLISHED: usize = 5;
/// With less life than this left, a renewal that waits is late.
pub const LATE: Duration = Duration::from_secs(14 * 86_400);

#[cfg(test)]
mod tests {
    use hgs_protocol::{env::SeededRandom, health::SIGNER_LIFETIME, secret::Secret32};

    use super::*;

    const NOW: UnixTime = UnixTime(1_770_000_000);
    const AHEAD: Duration = Duration::from_secs(60 * 86_400);

    fn kek(byte: u8) -> Kek {
        Kek::new(Secret32::new([byte; 32]))
    }

    #[test]
    fn a_signer_opens_under_its_own_key_and_name_only() {
        let row = make(Slot::Active, Suite::Rsa, &kek(1), NOW, &mut SeededRandom::new(1)).unwrap();
        assert_eq!(open(&row, &kek(1)).unwrap().certificate_der(), row.certificate);
        assert!(matches!(open(&row, &kek(2)), Err(OpenError::Sealed(_))));
        let renamed = SignerRow {
            id: "0".repeat(64),
            ..row.clone()
        };
        assert!(matches!(open(&renamed, &kek(1)), Err(OpenError::Sealed(_))));
        let p256 = make(Slot::Active, Suite::P256, &kek(1), NOW, &mut SeededRandom::new(1)).unwrap();
        assert_eq!(open(&p256, &kek(1)).unwrap().certificate_der(), p256.certificate);
        assert!(is_usable(&p256, NOW));
        let erased = SignerRow { sealed: None, ..row };
        assert!(matches!(open(&erased, &kek(1)), Err(OpenError::Erased)));
    }

    #[test]
    fn a_renewal_falls_due_waits_and_is_late() {
        let active = make(Slot::Active, Suite::Rsa, &kek(1), NOW, &mut SeededRandom::new(1)).unwrap();
        let pending = make(Slot::Pending, Suite::Rsa, &kek(1), NOW, &mut SeededRandom::new(2)).unwrap();
        let (alone, both) = (vec![active.clone()], vec![active.clone(), pending]);
        let end = not_after(&active);
        assert_eq!(end, NOW.plus_seconds(i64::try_from(SIGNER_LIFETIME.as_secs()).unwrap()));
        let days = |days: i64| end.plus_seconds(-days * 86_400);
        assert_eq!(renewal(&alone, days(61), AHEAD), Renewal::NotDue);
        assert_eq!(renewal(&alone, days(60), AHEAD), Renewal::Due);
        assert_eq!(renewal(&both, days(60), AHEAD), Renewal::Pending);
        assert_eq!(renewal(&both, days(61), AHEAD), Renewal::Pending, "made by hand");
        assert_eq!(renewal(&both, days(14), AHEAD), Renewal::Late);
        assert_eq!(renewal(&alone, days(14), AHEAD), Renewal::Late);
        assert_eq!(renewal(&both, end, AHEAD), Renewal::Expired);
        assert_eq!(renewal(&[], NOW, AHEAD), Renewal::Expired);
        let waits = |now| seconds_to_wait(&both[1], Some(&active), now, Duration::from_secs(3600));
        assert_eq!(
            (waits(NOW), waits(NOW.plus_seconds(3599)), waits(NOW.plus_seconds(3600))),
            (3600, 1, 0)
        );
        let fresh = SignerRow {
            made_at: end,
            ..both[1].clone()
        };
        let publish = Duration::from_secs(3600);
        assert_eq!(
            seconds_to_wait(&fresh, Some(&active), end, publish),
            0,
            "nothing is lost any more"
        );
        assert_eq!(
            seconds_to_wait(&fresh, Some(&active), end.plus_seconds(-1), publish),
            3601
        );
        assert!(is_usable(&active, NOW) && !is_usable(&active, end));
        assert!(!is_usable(&active, NOW.plus_seconds(-7200)), "not yet valid");
    }
}
