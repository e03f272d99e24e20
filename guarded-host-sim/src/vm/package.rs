//! The package of a live migration: the guest's memory and its saved vTPM.
//!
//! Encrypted under HKDF(current transport key, `HGS-VM-MIGRATION source-to-target`, VM id and
//! migration id). The target therefore reads it only after the KPS released that transport key to
//! the target itself (as the ingress key of the target's own roll). Header (authenticated, in
//! clear): `HGSVMMG2`, VM id (16), migration id (16), generation (u64 LE) whose key encrypts, security
//! (2 bytes). Then as `super::envelope` says: the memory of a VM whose encryption of migration traffic is
//! off travels in the clear, its vTPM never.

use std::fmt;

use hgs_protocol::{
    crypto::hkdf_sha256,
    env::Random,
    secret::{Secret32, TransportKey},
};
use zeroize::Zeroizing;

use super::{
    VmId,
    checkpoint::Checkpoints,
    envelope::{self, EnvelopeError},
    fields,
    security::Security,
    state::VtpmState,
};

/// The largest package, in bytes. What an agent takes from a peer and what a store takes from its
/// agent follow from it.
pub const LARGEST_PACKAGE: usize = 8 << 20;

const MAGIC: &[u8; 8] = b"HGSVMMG2";
const HEADER: usize = 8 + 16 + 16 + 8 + Security::LENGTH;
const LABEL: &str = "HGS-VM-MIGRATION source-to-target";

/// Names one attempt to move a VM; part of the key derivation. A store remembers the attempts whose
/// package it has opened ([`super::started`]), so a package serves a host once.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct MigrationId(pub uuid::Uuid);

impl MigrationId {
    /// A fresh id.
    pub fn random(rng: &mut dyn Random) -> MigrationId {
        MigrationId(uuid::Builder::from_random_bytes(rng.bytes()).into_uuid())
    }
}

impl fmt::Display for MigrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What the header of a package says. Authenticated only once the package has opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackageHeader {
    /// The VM.
    pub vm: VmId,
    /// The attempt.
    pub migration: MigrationId,
    /// The generation whose transport key encrypts the package.
    pub generation: u64,
    /// What the VM's kind and switches are.
    pub security: Security,
}

/// A suspended VM on its way to another host.
pub struct Package {
    /// From the authenticated header.
    pub header: PackageHeader,
    /// The VM's checkpoints.
    pub checkpoints: Checkpoints,
    /// The vTPM, saved by TPM2_Shutdown(STATE).
    pub vtpm: VtpmState,
    /// The guest's memory image.
    pub memory: Zeroizing<Vec<u8>>,
}

/// Why a package does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackageError {
    /// No package, or cut short.
    #[error("the bytes are no migration package")]
    Format,
    /// Longer than [`LARGEST_PACKAGE`].
    #[error("the migration package is larger than the {LARGEST_PACKAGE} bytes that a host takes")]
    TooLarge,
    /// Another key, another migration, or a byte was changed.
    #[error("the migration package does not open under this VM's transport key")]
    Sealed,
}

impl PackageHeader {
    /// Reads the header of `sealed` without a key.
    pub fn read(sealed: &[u8]) -> Result<PackageHeader, PackageError> {
        let parts = |rest: &mut &[u8]| {
            let magic = fields::take_array::<8>(rest)?;
            let vm = fields::take_array::<16>(rest)?;
            let migration = fields::take_array::<16>(rest)?;
            let generation = fields::take_u64(rest)?;
            let security = Security::parse(fields::take_array(rest)?)?;
            (magic == *MAGIC).then_some(PackageHeader {
                vm: VmId(uuid::Uuid::from_bytes(vm)),
                migration: MigrationId(uuid::Uuid::from_bytes(migration)),
                generation,
                security,
            })
        };
        parts(&mut &*sealed).ok_or(PackageError::Format)
    }

    fn encode(&self) -> Vec<u8> {
        let generation = self.generation.to_le_bytes();
        [
            MAGIC.as_slice(),
            self.vm.bytes(),
            self.migration.0.as_bytes(),
            &generation,
            &self.security.encode(),
        ]
        .concat()
    }

    fn key(&self, key: &TransportKey) -> Secret32 {
        let context = [self.vm.bytes().as_slice(), self.migration.0.as_bytes()].concat();
        hkdf_sha256(key.expose_transport_key(), LABEL, &context)
    }
}

impl Package {
    /// Encrypts under the VM's current transport key.
    pub fn seal(&self, key: &TransportKey, rng: &mut dyn Random) -> Vec<u8> {
        let (clear, hidden) = envelope::place(&self.memory, self.header.security);
        let mut body = Zeroizing::new(Vec::with_capacity(
            self.vtpm.permanent.len() + self.checkpoints.length() + hidden.len() + 64,
        ));
        fields::put(&mut body, self.vtpm.key.expose());
        fields::put(&mut body, &self.vtpm.permanent);
        self.checkpoints.write(&mut body);
        fields::put(&mut body, hidden);
        envelope::seal(&self.header.key(key), &self.header.encode(), clear, &body, rng)
    }

    /// Opens what [`Package::seal`] made under the same key.
    pub fn open(sealed: &[u8], key: &TransportKey) -> Result<Package, PackageError> {
        if sealed.len() > LARGEST_PACKAGE {
            return Err(PackageError::TooLarge);
        }
        let header = PackageHeader::read(sealed)?;
        let (clear, body) = envelope::open(&header.key(key), HEADER, sealed).map_err(|error| match error {
            EnvelopeError::Format => PackageError::Format,
            EnvelopeError::Sealed => PackageError::Sealed,
        })?;
        let parts = |rest: &mut &[u8]| {
            let key = Secret32::from_slice(fields::take(rest)?)?;
            let permanent = fields::take(rest)?.to_vec();
            let checkpoints = Checkpoints::parse(rest)?;
            let memory = envelope::displace(clear, fields::take(rest)?, header.security)?;
            rest.is_empty().then_some(Package {
                header,
                checkpoints,
                vtpm: VtpmState { key, permanent },
                memory,
            })
        };
        parts(&mut body.as_slice()).ok_or(PackageError::Format)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::security::Kind;
    use hgs_protocol::env::SeededRandom;
    use proptest::prelude::*;

    fn package(seed: u64, memory: Vec<u8>) -> Package {
        let rng: &mut dyn Random = &mut SeededRandom::new(seed);
        Package {
            header: PackageHeader {
                vm: VmId::random(rng),
                migration: MigrationId::random(rng),
                generation: seed,
                security: Security::of(Kind::Shielded),
            },
            checkpoints: Checkpoints::default(),
            vtpm: VtpmState {
                key: Secret32::random(rng),
                permanent: vec![3; 40],
            },
            memory: Zeroizing::new(memory),
        }
    }

    #[test]
    fn a_package_is_bound_to_key_and_migration() {
        let rng = &mut SeededRandom::new(4);
        let (key, other) = (TransportKey::random(rng), TransportKey::random(rng));
        let sealed = package(1, vec![5; 30]).seal(&key, rng);
        assert!(Package::open(&sealed, &key).is_ok());
        assert!(matches!(Package::open(&sealed, &other), Err(PackageError::Sealed)));
        let long = [sealed.clone(), vec![0; LARGEST_PACKAGE]].concat();
        assert!(matches!(Package::open(&long, &key), Err(PackageError::TooLarge)));
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 1;
            assert!(Package::open(&bad, &key).is_err(), "byte {at}");
            assert!(Package::open(&sealed[..at], &key).is_err(), "cut at {at}");
        }
    }

    proptest! {
        #[test]
        fn a_package_survives_sealing(seed: u64, memory: Vec<u8>) {
            let rng = &mut SeededRandom::new(seed);
            let key = TransportKey::random(rng);
            let before = package(seed, memory);
            let after = Package::open(&before.seal(&key, rng), &key).unwrap();
            prop_assert_eq!(after.header, before.header);
            prop_assert_eq!(&*after.memory, &*before.memory);
            prop_assert_eq!(after.vtpm.permanent, before.vtpm.permanent);
        }

        #[test]
        fn hostile_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Package::open(&bytes, &TransportKey::random(&mut SeededRandom::new(1)));
        }
    }
}
