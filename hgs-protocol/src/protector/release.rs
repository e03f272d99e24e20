//! The release of both transport keys to a host, from both ends (MS-KPS 2.2.2.2, 3.1.5.1.1.3 step
//! 10; protocol reference 5.5 "Response keys" and 5.9).
//!
//! X, the transfer key, is encrypted to the health certificate's key; W, the wrapping key, is
//! wrapped by X; the payload is encrypted by W. The answer is not signed: a host must check the
//! roll and must use the egress key only after the state has opened under the ingress key.

use super::{
    document::{KeyProtector, ProtectorError, transport_key_mac},
    open::{OpenedProtector, RolledProtector},
    payload::{Payload, PayloadVersion},
    suite::{KeyTransport, PrivateKey},
};
use crate::{
    crypto::{CryptoError, PublicKey, RsaPrivateKey, gcm_open, gcm_seal, kw_unwrap, kw_wrap, same},
    env::Random,
    health::CertifiedHost,
    secret::{Secret32, TransportKey},
    wire::kps::RollTransportKeyResponse,
};

/// What leaves the service: the egress protector and the encrypted keys. Holds no plain key.
pub struct Release {
    /// The response.
    pub response: RollTransportKeyResponse,
    /// Serial number of the health certificate that it was made for, hex.
    pub health_certificate: String,
}

/// Why a host could not read an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    /// A key of the answer does not open: it is for another key, or it was changed.
    #[error("the answer is not encrypted for this host's key, or was changed on the way")]
    NotForThisKey,
    /// The payload is not two transport keys of 32 bytes.
    #[error("the answer does not hold an ingress and an egress transport key")]
    Payload,
}

/// Why an egress protector was not taken as the successor of an ingress protector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RollError {
    /// The ingress protector does not parse.
    #[error("the ingress protector: {0}")]
    Ingress(#[source] ProtectorError),
    /// The egress protector does not parse, or is not signed by a guardian of the ingress one.
    #[error("the egress protector: {0}")]
    Egress(#[source] ProtectorError),
    /// A wrapping was added, removed, reordered or changed beyond its TransportKey.
    #[error("the wrappings of the egress protector are not those of the ingress protector")]
    Wrappings,
    /// The TransportKeySignature does not hold under the egress transport key.
    #[error("the egress transport key does not confirm the egress protector")]
    TransportKey,
}

/// The keys that a host takes out of an answer.
pub struct OpenedRelease {
    /// The key that the VM's state is sealed under now.
    pub ingress: TransportKey,
    /// The key to seal it under next.
    pub egress: TransportKey,
    /// How often this host may start the VM without contact before the next roll; 0: never.
    pub max_offline_unwraps: u32,
}

/// Seals both transport keys of a roll for the host whose health certificate was accepted.
pub fn seal_release(
    ingress: &OpenedProtector,
    egress: &RolledProtector,
    host: &CertifiedHost,
    version: PayloadVersion,
    max_offline_unwraps: u32,
    rng: &mut dyn Random,
) -> Result<Release, CryptoError> {
    seal_release_by(
        host.encryption_key().key_transport(),
        ingress,
        egress,
        host,
        version,
        max_offline_unwraps,
        rng,
    )
}

/// As [`seal_release`], with the transfer key encrypted by the algorithm that the host asked for.
pub fn seal_release_by(
    transfer: KeyTransport,
    ingress: &OpenedProtector,
    egress: &RolledProtector,
    host: &CertifiedHost,
    version: PayloadVersion,
    max_offline_unwraps: u32,
    rng: &mut dyn Random,
) -> Result<Release, CryptoError> {
    Ok(Release {
        health_certificate: host.serial().to_owned(),
        response: seal_keys(
            host.encryption_key(),
            transfer,
            (ingress, egress),
            version,
            max_offline_unwraps,
            rng,
        )?,
    })
}

/// The answer of a host in local mode to itself: seals both keys of a roll for its own VSM key, which nobody has
/// attested. It allows no offline start. Whoever calls this has the keys of a guardian of its own; a service never does.
pub fn seal_for_oneself(
    vsm_key: &PublicKey,
    ingress: &OpenedProtector,
    egress: &RolledProtector,
    rng: &mut dyn Random,
) -> Result<RollTransportKeyResponse, CryptoError> {
    let keys = (ingress, egress);
    seal_keys(vsm_key, vsm_key.key_transport(), keys, PayloadVersion::V2, 0, rng)
}

fn seal_keys(
    key: &PublicKey,
    transfer: KeyTransport,
    (ingress, egress): (&OpenedProtector, &RolledProtector),
    version: PayloadVersion,
    max_offline_unwraps: u32,
    rng: &mut dyn Random,
) -> Result<RollTransportKeyResponse, CryptoError> {
    let transfer_key = Secret32::random(rng);
    let wrapping_key = Secret32::random(rng);
    let payload = Payload::new(&[ingress.transport_key(), egress.transport_key()], max_offline_unwraps).encode(version);
    Ok(RollTransportKeyResponse {
        egress_protector: egress.egress().to_xml(),
        encrypted_transfer_key: key.encrypt_key_by(transfer, &transfer_key, rng)?,
        encrypted_wrapping_key: kw_wrap(&transfer_key, &wrapping_key)?,
        encrypted_transport_keys: gcm_seal(&wrapping_key, b"", &payload, rng),
    })
}

/// A private key that opens a transfer key by its suite's algorithm.
pub trait OpensTransferKey {
    /// The 32-byte key that was encrypted to the public half.
    fn open_transfer_key(&self, encrypted: &[u8]) -> Result<Secret32, CryptoError>;
}

impl OpensTransferKey for RsaPrivateKey {
    fn open_transfer_key(&self, encrypted: &[u8]) -> Result<Secret32, CryptoError> {
        let plain = self.decrypt_oaep_sha256(encrypted, b"")?;
        Secret32::from_slice(&plain).ok_or(CryptoError::Open)
    }
}

impl OpensTransferKey for PrivateKey {
    fn open_transfer_key(&self, encrypted: &[u8]) -> Result<Secret32, CryptoError> {
        self.decrypt_key(encrypted)
    }
}

/// The host's side: takes the keys out of an answer with the private key of its health certificate.
pub fn open_release(
    response: &RollTransportKeyResponse,
    key: &impl OpensTransferKey,
) -> Result<OpenedRelease, ReleaseError> {
    let closed = |_| ReleaseError::NotForThisKey;
    let transfer_key = key
        .open_transfer_key(&response.encrypted_transfer_key)
        .map_err(closed)?;
    let wrapping_key = kw_unwrap(&transfer_key, &response.encrypted_wrapping_key).map_err(closed)?;
    let payload = gcm_open(&wrapping_key, b"", &response.encrypted_transport_keys).map_err(closed)?;
    let payload = Payload::parse(&payload).map_err(|_| ReleaseError::Payload)?;
    match (payload.transport_key(0), payload.transport_key(1), payload.keys.len()) {
        (Some(ingress), Some(egress), 2) => Ok(OpenedRelease {
            ingress,
            egress,
            max_offline_unwraps: payload.max_offline_unwraps,
        }),
        _ => Err(ReleaseError::Payload),
    }
}

/// The host's check after a roll (protocol reference 5.9): the same wrappings but for their
/// TransportKey; the guardian signature by a signing certificate as it stood in the ingress
/// protector; the TransportKeySignature under the egress key. Gives the egress protector.
pub fn check_roll(ingress: &[u8], egress: &[u8], egress_key: &TransportKey) -> Result<KeyProtector, RollError> {
    // An old guardian's SHA-1 is the KPS's to allow; the host opens nothing in it, and takes none in the answer.
    let ingress = KeyProtector::parse_allowing_sha1(ingress).map_err(RollError::Ingress)?;
    let egress = KeyProtector::parse(egress).map_err(RollError::Egress)?;
    let kept = |protector: &KeyProtector| {
        let mut wrappings = protector.wrappings.clone();
        for wrapping in &mut wrappings {
            wrapping.transport = KeyTransport::RsaOaep;
            wrapping.transport_key.clear();
        }
        wrappings
    };
    if kept(&ingress) != kept(&egress) {
        return Err(RollError::Wrappings);
    }
    egress.check_guardian_signature().map_err(RollError::Egress)?;
    if !same(
        &transport_key_mac(egress_key, &egress.signed),
        &egress.transport_key_mac,
    ) {
        return Err(RollError::TransportKey);
    }
    Ok(egress)
}
