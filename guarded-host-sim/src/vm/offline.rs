//! What a VBS store keeps of a roll so that the VM may be started without contact (protocol reference 5.7).
//!
//! The egress key, which protector it belongs to, and how many starts are left. How many there are says
//! the KPS in the payload that only a holder of the ingress key can make; what a protector says of itself
//! is signed by nobody and is not read. The entry lies in the store's sealed record ([`super::started`]):
//! it dies with the VSM keys, with the next roll that starts, and when the VM is packed for another host.

use hgs_protocol::{
    crypto::same,
    secret::{Secret32, TransportKey},
};

use super::{VmId, fields};

/// Why no offline start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OfflineError {
    /// The record is empty: a new host, or new VSM keys.
    #[error(
        "the VBS store has not started the VM {0} since it got its VSM keys (they are new when the measured \
         configuration of the host has changed): the first start needs the key protection service"
    )]
    Unknown(VmId),
    /// The last roll allowed none, or the VM was packed for a migration since.
    #[error(
        "no offline start of the VM {0}: at its last start here the key protection service allowed none, or the VM \
         has been packed for a migration since; the next start needs the key protection service"
    )]
    NotAllowed(VmId),
    /// The protector on the volume holds another key.
    #[error(
        "the key protector of the VM {0} is not the one that this host keeps a key of: it was rolled elsewhere or made \
         anew by its owner; the next start needs the key protection service"
    )]
    OtherProtector(VmId),
    /// Counted down to nothing.
    #[error(
        "all {limit} offline starts of the VM {vm} that the key protection service allowed are used up; the next start \
         needs the key protection service"
    )]
    UsedUp {
        /// The VM.
        vm: VmId,
        /// How many there were.
        limit: u32,
    },
}

/// A key kept for starts without contact.
#[derive(Clone)]
pub(super) struct Kept {
    key: TransportKey,
    protector: [u8; 32],
    limit: u32,
    left: u32,
}

/// One counted start.
pub struct OfflineStart {
    /// The key under which the VM's state is sealed, now and after the start.
    pub key: TransportKey,
    /// Which offline start since the roll, from 1. No number is given twice.
    pub number: u32,
    /// How many are left.
    pub left: u32,
}

impl Kept {
    /// Bytes of an entry: key (32), digest of the protector (32), u32 limit and u32 left, little-endian.
    pub(super) const LENGTH: usize = 32 + 32 + 4 + 4;

    /// What is kept of a roll that allows `limit` offline starts; nothing when it allows none.
    pub(super) fn of_roll(key: &TransportKey, protector: [u8; 32], limit: u32) -> Option<Kept> {
        (limit > 0).then(|| Kept {
            key: key.clone(),
            protector,
            limit,
            left: limit,
        })
    }

    pub(super) fn is_of(&self, key: &TransportKey) -> bool {
        same(
            self.key.expose_transport_key().expose(),
            key.expose_transport_key().expose(),
        )
    }

    pub(super) fn is_for(&self, protector: &[u8; 32]) -> bool {
        self.protector == *protector
    }

    /// Counts one start; it counts only once the record is durable.
    pub(super) fn count(&mut self, vm: VmId) -> Result<OfflineStart, OfflineError> {
        let limit = self.limit;
        self.left = self.left.checked_sub(1).ok_or(OfflineError::UsedUp { vm, limit })?;
        Ok(OfflineStart {
            key: self.key.clone(),
            number: limit.saturating_sub(self.left),
            left: self.left,
        })
    }

    pub(super) fn parse(rest: &mut &[u8]) -> Option<Kept> {
        let (key, after) = rest.split_at_checked(32)?;
        *rest = after;
        Some(Kept {
            key: TransportKey::new(Secret32::from_slice(key)?),
            protector: fields::take_array(rest)?,
            limit: fields::take_u32(rest)?,
            left: fields::take_u32(rest)?,
        })
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.key.expose_transport_key().expose());
        out.extend_from_slice(&self.protector);
        out.extend_from_slice(&self.limit.to_le_bytes());
        out.extend_from_slice(&self.left.to_le_bytes());
    }
}
