//! A host asks for its key and the key is released (MS-KPS 3.1.5.1.1.3).
//!
//! The whole decision, in the order of the protocol: the first check that fails names the refusal.
//! Touches no socket, no clock and no database.

use hgs_protocol::{
    env::{Random, UnixTime},
    health::{AcceptanceRules, CertifiedHost, HealthCertificate, TrustedSigner},
    protector::{
        ChainCache, ChainedProtector, GuardianKeys, KeyProtector, OpenedProtector, PayloadVersion, ProtectorError,
        Release, seal_release_by,
        suite::{AES256_GCM, KW_AES256, KeyTransport},
    },
    wire::kps::{RollTransportKeyRequest, ServiceVersion},
};

use crate::refusal::Refusal;

/// Whom this service is and whom it trusts, at one moment.
pub struct Guardian<'a> {
    /// Its certificates with their private keys.
    pub keys: &'a GuardianKeys,
    /// Attestation signers whose health certificates count.
    pub signers: &'a [TrustedSigner],
    /// What else a health certificate must meet.
    pub rules: &'a AcceptanceRules,
    /// Upper limit of the offline unwraps that a release may carry.
    pub max_offline_unwraps: u32,
    /// Whether OAEP with SHA-1 opens a wrapping, and is used where a host asks for it.
    pub allow_sha1_oaep: bool,
    /// Chains that were verified before.
    pub chains: &'a ChainCache,
}

/// Decides on one request and, if nothing speaks against it, makes the answer.
pub fn roll_transport_key(
    ask: &RollTransportKeyRequest,
    version: ServiceVersion,
    kps: &Guardian<'_>,
    now: UnixTime,
    rng: &mut dyn Random,
) -> Result<Release, Refusal> {
    let transfer = kps.check_algorithms(ask)?;
    let host = kps.certified_host(&ask.health_certificate, now)?;
    // An algorithm of the other suite than the certified key's.
    if !host.encryption_key().takes(transfer) {
        return Err(Refusal::UnsupportedAlgorithm("transfer key"));
    }
    let parsed = kps.parse(&ask.ingress_protector)?;
    let chained = parsed.verify_cached(kps.chains)?;
    let ingress = kps.open(chained, rng)?;
    let egress = ingress.roll(kps.keys, rng).map_err(|_| Refusal::Internal)?;
    let offline = kps.max_offline_unwraps.min(egress.egress().max_offline_unwraps());
    seal_release_by(transfer, &ingress, &egress, &host, layout(version), offline, rng).map_err(|_| Refusal::Internal)
}

impl Guardian<'_> {
    /// The three algorithms that a host asks for are known and allowed; nothing is negotiated.
    fn check_algorithms(&self, ask: &RollTransportKeyRequest) -> Result<KeyTransport, Refusal> {
        let transfer = match KeyTransport::from_uri(&ask.transfer_key_encryption_algorithm) {
            Some(known @ (KeyTransport::RsaOaep | KeyTransport::EcdhEs)) => known,
            Some(KeyTransport::RsaOaepSha1) if self.allow_sha1_oaep => KeyTransport::RsaOaepSha1,
            _ => return Err(Refusal::UnsupportedAlgorithm("transfer key")),
        };
        if ask.wrapping_key_encryption_algorithm != KW_AES256 {
            return Err(Refusal::UnsupportedAlgorithm("wrapping key"));
        }
        if ask.transport_keys_encryption_algorithm != AES256_GCM {
            return Err(Refusal::UnsupportedAlgorithm("transport keys"));
        }
        Ok(transfer)
    }

    fn parse(&self, document: &[u8]) -> Result<KeyProtector, ProtectorError> {
        match self.allow_sha1_oaep {
            true => KeyProtector::parse_allowing_sha1(document),
            false => KeyProtector::parse(document),
        }
    }

    fn certified_host(&self, der: &[u8], now: UnixTime) -> Result<CertifiedHost, Refusal> {
        Ok(HealthCertificate::parse(der)?.accept(self.signers, now, self.rules)?)
    }

    fn open(&self, chained: ChainedProtector, rng: &mut dyn Random) -> Result<OpenedProtector, Refusal> {
        Ok(chained.open(self.keys, rng)?)
    }
}

fn layout(version: ServiceVersion) -> PayloadVersion {
    match version {
        ServiceVersion::V1 => PayloadVersion::V1,
        ServiceVersion::V2 => PayloadVersion::V2,
    }
}
