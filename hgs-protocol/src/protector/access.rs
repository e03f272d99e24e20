//! The owner's changes to who may open a protector: a wrapping more, a wrapping less, signed anew
//! by the owner (Grant- and Revoke-HgsKeyProtectorAccess of the product).
//!
//! The transport key stays: the VM's state is sealed under it, and neither the owner's file nor
//! this module has that state. So a guardian who was revoked still opens an older copy of the
//! protector, and with it whatever is sealed under this key; only the next roll by a key
//! protection service ends that, for it brings a new key that is wrapped for the others alone.

use super::{
    MAX_WRAPPINGS,
    create::{seal, wrap_for},
    document::{KeyProtector, ProtectorError, Wrapping, WrappingId},
    guardian::{Guardian, GuardianKeys, KeyPair},
    open::OpenedProtector,
};
use crate::env::Random;

/// Why the owner's change was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// The keys are another guardian's; its changes would not chain to the owner as they should.
    #[error("only the owner changes who may open a key protector, and these keys are not the owner's")]
    NotOwner,
    /// Both certificates stand in that wrapping.
    #[error("the guardian has access already, by wrapping {0}")]
    Granted(WrappingId),
    /// Nothing to revoke.
    #[error("the key protector has no wrapping {0}")]
    NoWrapping(WrappingId),
    /// Without the owner's wrapping nobody could change the protector again.
    #[error("wrapping {0} is the owner's, which cannot be revoked")]
    Owner(WrappingId),
    /// Too many wrappings, or the library refused.
    #[error(transparent)]
    Protector(#[from] ProtectorError),
}

/// A protector with fewer wrappings.
pub struct Revoked {
    /// The protector.
    pub protector: KeyProtector,
    /// The wrappings that are gone: the one that was asked for, and those that only it vouched for.
    pub removed: Vec<WrappingId>,
}

impl OpenedProtector {
    /// The same protector with a wrapping for `guardian` too, vouched for and signed by `owner`.
    pub fn grant(
        &self,
        owner: &GuardianKeys,
        guardian: &Guardian,
        rng: &mut dyn Random,
    ) -> Result<KeyProtector, AccessError> {
        let protector = self.chained().protector();
        let (owner, signing) = self.owner_pair(owner)?;
        if let Some(there) = protector.wrapping_of(guardian) {
            return Err(AccessError::Granted(there));
        }
        // With fewer wrappings than there are numbers, one is free.
        let free = (1..=u32::MAX)
            .map(WrappingId)
            .find(|id| protector.wrapping(*id).is_none());
        let id = free
            .filter(|_| protector.wrappings.len() < MAX_WRAPPINGS)
            .ok_or(ProtectorError::TooManyWrappings)?;
        let mut wrappings = protector.wrappings.clone();
        wrappings.push(wrap_for(id, owner, guardian, signing, self.transport_key(), rng)?);
        Ok(self.seal_as_owner(wrappings, owner, signing)?)
    }

    /// The same protector without `wrapping` and without those that chain to the owner by it alone.
    pub fn revoke(&self, owner: &GuardianKeys, wrapping: WrappingId) -> Result<Revoked, AccessError> {
        let protector = self.chained().protector();
        let (owner, signing) = self.owner_pair(owner)?;
        if wrapping == owner {
            return Err(AccessError::Owner(owner));
        }
        if protector.wrapping(wrapping).is_none() {
            return Err(AccessError::NoWrapping(wrapping));
        }
        let mut removed = vec![wrapping];
        // Children may stand before their parents, so until a pass finds none.
        loop {
            let orphan = |w: &&Wrapping| removed.contains(&w.parent) && !removed.contains(&w.id);
            let Some(orphan) = protector.wrappings.iter().find(orphan) else {
                break;
            };
            removed.push(orphan.id);
        }
        let mut wrappings = protector.wrappings.clone();
        wrappings.retain(|w| !removed.contains(&w.id));
        Ok(Revoked {
            protector: self.seal_as_owner(wrappings, owner, signing)?,
            removed,
        })
    }

    fn owner_pair<'k>(&self, keys: &'k GuardianKeys) -> Result<(WrappingId, &'k KeyPair), AccessError> {
        let owner = self.chained().owner_wrapping().ok_or(AccessError::NotOwner)?;
        let signing = keys.signing_pair(&owner.signing_certificate);
        Ok((owner.id, signing.ok_or(AccessError::NotOwner)?))
    }

    fn seal_as_owner(
        &self,
        wrappings: Vec<Wrapping>,
        owner: WrappingId,
        signing: &KeyPair,
    ) -> Result<KeyProtector, ProtectorError> {
        let limit = self.chained().protector().max_offline_unwraps();
        seal(wrappings, self.transport_key(), owner, signing, limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        env::{SeededRandom, UnixTime},
        protector::check_roll,
    };

    fn open(protector: &KeyProtector, by: &GuardianKeys) -> Result<OpenedProtector, String> {
        KeyProtector::parse(&protector.to_xml())
            .map_err(|e| e.to_string())?
            .verify()
            .map_err(|e| e.to_string())?
            .open(by, &mut SeededRandom::new(4))
            .map_err(|e| e.to_string())
    }

    fn same_key(one: &OpenedProtector, other: &OpenedProtector) -> bool {
        one.transport_key().expose_transport_key().expose() == other.transport_key().expose_transport_key().expose()
    }

    #[test]
    fn the_owner_grants_and_revokes_and_the_key_stays_until_a_roll() {
        let (rng, now) = (&mut SeededRandom::new(1), UnixTime(1_800_000_000));
        let owner = GuardianKeys::generate("Owner", now, rng).unwrap();
        let first = GuardianKeys::generate_p256("first", now, rng).unwrap();
        let second = GuardianKeys::generate("second", now, rng).unwrap();
        let (protector, _) = KeyProtector::create(&owner, &[first.guardian().unwrap()], rng).unwrap();
        // As a VM that has run has it: signed by its service, under a newer key.
        let rolled = open(&protector, &first).unwrap().roll(&first, rng).unwrap();
        let old = rolled.egress().clone().with_max_offline_unwraps(3);
        let opened = open(&old, &owner).unwrap();

        let both = opened.grant(&owner, &second.guardian().unwrap(), rng).unwrap();
        assert_eq!((both.signer(), both.max_offline_unwraps()), (WrappingId(1), 3));
        for by in [&owner, &first, &second] {
            assert!(same_key(&open(&both, by).unwrap(), &opened));
        }
        let again = open(&both, &owner).unwrap();
        let granted = again.grant(&owner, &second.guardian().unwrap(), rng).err();
        assert_eq!(granted, Some(AccessError::Granted(WrappingId(3))));
        let owners = again.grant(&owner, &owner.guardian().unwrap(), rng).err();
        assert_eq!(owners, Some(AccessError::Granted(WrappingId(1))));

        let revoked = again.revoke(&owner, WrappingId(2)).unwrap();
        assert_eq!(revoked.removed, [WrappingId(2)]);
        assert!(open(&revoked.protector, &first).is_err());
        assert!(same_key(&open(&revoked.protector, &second).unwrap(), &opened));
        // The older copy still opens for the revoked guardian, to the same key; a roll ends that.
        assert!(same_key(&open(&both, &first).unwrap(), &opened));
        let rolled = open(&revoked.protector, &second).unwrap().roll(&second, rng).unwrap();
        check_roll(
            &revoked.protector.to_xml(),
            &rolled.egress().to_xml(),
            rolled.transport_key(),
        )
        .unwrap();
        assert!(!same_key(&open(rolled.egress(), &owner).unwrap(), &opened));
        assert!(open(rolled.egress(), &first).is_err());
        // A number that became free is used again.
        let back = open(rolled.egress(), &owner).unwrap();
        let back = back.grant(&owner, &first.guardian().unwrap(), rng).unwrap();
        assert_eq!(back.wrapping_of(&first.guardian().unwrap()), Some(WrappingId(2)));
        assert!(open(&back, &first).is_ok());
    }

    #[test]
    fn a_guardian_changes_nothing_and_the_owner_not_itself() {
        let (rng, now) = (&mut SeededRandom::new(2), UnixTime(1_800_000_000));
        let [owner, guardian] = ["o", "g"].map(|name| GuardianKeys::generate_p256(name, now, rng).unwrap());
        let (protector, _) = KeyProtector::create(&owner, &[guardian.guardian().unwrap()], rng).unwrap();
        let by_guardian = open(&protector, &guardian).unwrap();
        let stranger = GuardianKeys::generate_p256("s", now, rng).unwrap();
        let granted = by_guardian.grant(&guardian, &stranger.guardian().unwrap(), rng).err();
        assert_eq!(granted, Some(AccessError::NotOwner));
        assert_eq!(
            by_guardian.revoke(&guardian, WrappingId(1)).err(),
            Some(AccessError::NotOwner)
        );
        let by_owner = open(&protector, &owner).unwrap();
        let revoke = |id| by_owner.revoke(&owner, WrappingId(id)).err();
        assert_eq!(revoke(1), Some(AccessError::Owner(WrappingId(1))));
        assert_eq!(revoke(9), Some(AccessError::NoWrapping(WrappingId(9))));
    }

    #[test]
    fn whom_only_the_revoked_guardian_vouched_for_goes_with_it() {
        let (rng, now) = (&mut SeededRandom::new(3), UnixTime(1_800_000_000));
        let [owner, middle, leaf] = ["o", "m", "l"].map(|name| GuardianKeys::generate_p256(name, now, rng).unwrap());
        let (protector, key) = KeyProtector::create(&owner, &[middle.guardian().unwrap()], rng).unwrap();
        let mut wrappings = protector.wrappings.clone();
        let leaf = leaf.guardian().unwrap();
        let child = wrap_for(WrappingId(7), WrappingId(2), &leaf, &middle.signing()[0], &key, rng).unwrap();
        wrappings.insert(0, child);
        let deep = seal(wrappings, &key, WrappingId(1), &owner.signing()[0], 0).unwrap();
        let revoked = open(&deep, &owner).unwrap().revoke(&owner, WrappingId(2)).unwrap();
        assert_eq!(revoked.removed, [WrappingId(2), WrappingId(7)]);
        assert_eq!(revoked.protector.wrappings().count(), 1);
        assert!(open(&revoked.protector, &owner).is_ok());
    }
}
