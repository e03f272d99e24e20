//! A fresh protector from its owner: owner first, self-parented, signing; every guardian vouched
//! for by the owner (MS-KPS 2.2.2.3; protocol reference 9 row 15).

use super::{
    document::{KeyProtector, ProtectorError, Signature, Wrapping, WrappingId, signed_form, transport_key_mac},
    guardian::{Guardian, GuardianKeys, KeyPair},
    payload::{Payload, PayloadVersion},
    suite::{KeyTransport, PublicKey},
};
use crate::{env::Random, secret::TransportKey};

impl KeyProtector {
    /// A new transport key, wrapped for `owner` (Id 1) and each of `guardians` (Id 2 and on).
    pub fn create(
        owner: &GuardianKeys,
        guardians: &[Guardian],
        rng: &mut dyn Random,
    ) -> Result<(KeyProtector, TransportKey), ProtectorError> {
        let (signing, _) = owner.primary().map_err(|_| ProtectorError::Refused)?;
        let owner_public = owner.guardian().map_err(|_| ProtectorError::Refused)?;
        let key = TransportKey::random(rng);
        let guardians = std::iter::once(&owner_public).chain(guardians);
        let wrappings = (1u32..)
            .zip(guardians)
            .map(|(id, guardian)| wrap_for(WrappingId(id), OWNER, guardian, signing, &key, rng))
            .collect::<Result<Vec<_>, _>>()?;
        if wrappings.len() > super::MAX_WRAPPINGS {
            return Err(ProtectorError::TooManyWrappings);
        }
        let protector = seal(wrappings, &key, OWNER, signing, 0)?;
        Ok((protector, key))
    }
}

/// Signs finished wrappings by the guardian `signing` and under the transport key.
pub(super) fn seal(
    wrappings: Vec<Wrapping>,
    key: &TransportKey,
    signer: WrappingId,
    signing: &KeyPair,
    max_offline_unwraps: u32,
) -> Result<KeyProtector, ProtectorError> {
    let signed = signed_form(&wrappings);
    Ok(KeyProtector {
        max_offline_unwraps,
        transport_key_mac: transport_key_mac(key, &signed).to_vec(),
        guardian_signature: sign(signing, &signed)?,
        signer,
        wrappings,
        signed,
    })
}

/// A whole wrapping for `guardian`, vouched for by `parent`, whose signing pair is `vouching`.
pub(super) fn wrap_for(
    id: WrappingId,
    parent: WrappingId,
    guardian: &Guardian,
    vouching: &KeyPair,
    key: &TransportKey,
    rng: &mut dyn Random,
) -> Result<Wrapping, ProtectorError> {
    let (algorithm, value) = guardian.encryption_signature();
    let (transport, transport_key) = wrap(key, guardian.encryption().public_key(), rng)?;
    Ok(Wrapping {
        id,
        parent,
        signing_certificate: guardian.signing().der().to_vec(),
        signing_signature: sign(vouching, guardian.signing().der())?,
        encryption_certificate: guardian.encryption().der().to_vec(),
        encryption_signature: Signature {
            algorithm,
            value: value.to_vec(),
        },
        transport,
        transport_key,
    })
}

/// A transport key encrypted to a wrapping's encryption certificate: hybrid form of Payload_V1.
pub(super) fn wrap(
    key: &TransportKey,
    to: &PublicKey,
    rng: &mut dyn Random,
) -> Result<(KeyTransport, Vec<u8>), ProtectorError> {
    let payload = Payload::new(&[key], 0).encode(PayloadVersion::V1);
    let value = to.encrypt_hybrid(&payload, rng).map_err(|_| ProtectorError::Refused)?;
    Ok((to.key_transport(), value))
}

fn sign(by: &KeyPair, bytes: &[u8]) -> Result<Signature, ProtectorError> {
    Ok(Signature {
        algorithm: by.signature_algorithm(),
        value: by.sign(bytes).map_err(|_| ProtectorError::Refused)?,
    })
}

const OWNER: WrappingId = WrappingId(1);
