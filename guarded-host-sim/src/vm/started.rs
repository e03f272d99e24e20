//! What a VBS store remembers of the VMs that it opened, so that nothing recorded is used again.
//!
//! An answer of the KPS carries no time and no nonce, and the VSM key that opens it outlives the
//! health certificate: only the store itself can tell a second use. It refuses a generation older
//! than the newest it knows, an answer that it has opened before, and a migration package that it
//! has opened before. The record is part of the store's sealed state, whose age the TPM's counter
//! proves. It never learns of what happens on other hosts.

use hgs_protocol::{
    crypto::{RsaPrivateKey, hkdf_sha256},
    env::Random,
    secret::TransportKey,
};

use super::{VmId, fields, package::MigrationId};

/// Answers and packages remembered per VM for the generations that could still be opened.
pub const MAX_USED: usize = 256;
/// VMs remembered.
pub const MAX_VMS: usize = 1024;

/// What the store keeps for its VMs: its VSM key and sealed records by name.
pub trait Vault {
    /// The private half of the key in the health certificate.
    fn vsm_key(&self) -> &RsaPrivateKey;
    /// A record.
    fn record(&self, name: &str) -> Option<&[u8]>;
    /// How many records there are.
    fn count(&self) -> usize;
    /// Replaces a record. It is durable, and no older copy counts any more, when this returns.
    fn put(&mut self, name: &str, value: Vec<u8>, rng: &mut dyn Random) -> Result<(), String>;
}

/// Why the record refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartedError {
    /// The VM was newer on this host.
    #[error(
        "generation {offered} of the VM {vm} is too old: this host has had generation {newest}; \
         start it from the newest generation on the volume"
    )]
    Older {
        /// The VM.
        vm: VmId,
        /// What was presented.
        offered: u64,
        /// What this host knows.
        newest: u64,
    },
    /// The answer was opened before.
    #[error("this answer of the key protection service was used on this host before; ask for a new one")]
    AnswerUsed,
    /// The package was opened before.
    #[error("the package of the migration {0} was used on this host before; migrate again")]
    PackageUsed(MigrationId),
    /// Too many answers without a start.
    #[error(
        "{MAX_USED} answers and packages for the VM {0} were opened here without its start, and no more are \
         remembered; start the VM on another host, or remove the store's directory for new VSM keys"
    )]
    TooManyUsed(VmId),
    /// Too many VMs.
    #[error("the VBS store remembers {MAX_VMS} VMs and no more; remove the store's directory for new VSM keys")]
    TooManyVms,
    /// The record is no record.
    #[error("the VBS store's record of the VM {0} is damaged")]
    Damaged(VmId),
    /// The record cannot be made durable.
    #[error("the VBS store cannot write its record: {0}")]
    NotDurable(String),
}

/// The record of one VM: u64 newest generation, then 40 bytes for each used thing: u64 generation
/// that it opens, 32 bytes id. Little-endian.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
struct Record {
    newest: u64,
    used: Vec<(u64, [u8; 32])>,
}

/// Takes note that the state (or the package) of `generation` is opened with an answer that gave
/// `egress`. Refused when the VM was newer here, or when answer or package were used before.
pub fn note_opened(
    vault: &mut dyn Vault,
    vm: VmId,
    generation: u64,
    egress: &TransportKey,
    package: Option<MigrationId>,
    rng: &mut dyn Random,
) -> Result<(), StartedError> {
    let mut record = Record::load(vault, vm)?;
    if generation < record.newest {
        return Err(StartedError::Older {
            vm,
            offered: generation,
            newest: record.newest,
        });
    }
    // The KPS draws the egress key for each answer, so the key names the answer, however its
    // envelope may be changed.
    let answer = id(egress, "HGS-STORE-USED-ANSWER", &[]);
    if record.has(&answer) {
        return Err(StartedError::AnswerUsed);
    }
    record.raise(generation);
    record.used.push((generation, answer));
    if let Some(migration) = package {
        let package = package_id(migration);
        if record.has(&package) {
            return Err(StartedError::PackageUsed(migration));
        }
        record.used.push((generation, package));
    }
    if record.used.len() > MAX_USED {
        return Err(StartedError::TooManyUsed(vm));
    }
    record.store(vault, vm, rng)
}

/// Takes note that `generation` starts here: nothing older will.
pub fn note_started(
    vault: &mut dyn Vault,
    vm: VmId,
    generation: u64,
    rng: &mut dyn Random,
) -> Result<(), StartedError> {
    let mut record = Record::load(vault, vm)?;
    if record.newest >= generation {
        return Ok(());
    }
    record.raise(generation);
    record.store(vault, vm, rng)
}

fn id(key: &TransportKey, label: &str, context: &[u8]) -> [u8; 32] {
    *hkdf_sha256(key.expose_transport_key(), label, context).expose()
}

fn package_id(migration: MigrationId) -> [u8; 32] {
    hgs_protocol::crypto::sha256(&[b"HGS-STORE-USED-PACKAGE".as_slice(), migration.0.as_bytes()].concat())
}

fn name(vm: VmId) -> String {
    format!("vm {vm}")
}

impl Record {
    fn load(vault: &dyn Vault, vm: VmId) -> Result<Record, StartedError> {
        match vault.record(&name(vm)) {
            Some(bytes) => Record::parse(bytes).ok_or(StartedError::Damaged(vm)),
            None if vault.count() >= MAX_VMS => Err(StartedError::TooManyVms),
            None => Ok(Record::default()),
        }
    }

    fn store(&self, vault: &mut dyn Vault, vm: VmId, rng: &mut dyn Random) -> Result<(), StartedError> {
        vault
            .put(&name(vm), self.encode(), rng)
            .map_err(StartedError::NotDurable)
    }

    fn has(&self, id: &[u8; 32]) -> bool {
        self.used.iter().any(|(_, used)| used == id)
    }

    /// What opens only an older generation need not be remembered: that generation is refused.
    fn raise(&mut self, generation: u64) {
        self.newest = self.newest.max(generation);
        let newest = self.newest;
        self.used.retain(|(opens, _)| *opens >= newest);
    }

    fn parse(mut bytes: &[u8]) -> Option<Record> {
        let rest = &mut bytes;
        let newest = fields::take_u64(rest)?;
        let mut used = Vec::new();
        while !rest.is_empty() {
            used.push((fields::take_u64(rest)?, fields::take_array(rest)?));
        }
        Some(Record { newest, used })
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = self.newest.to_le_bytes().to_vec();
        for (opens, id) in &self.used {
            out.extend_from_slice(&opens.to_le_bytes());
            out.extend_from_slice(id);
        }
        out
    }
}

/// A vault in memory, for tests: what a store keeps over its reboots.
#[cfg(test)]
pub(crate) struct MemoryVault {
    pub(crate) key: RsaPrivateKey,
    pub(crate) records: std::collections::BTreeMap<String, Vec<u8>>,
    pub(crate) broken: bool,
}

#[cfg(test)]
impl MemoryVault {
    pub(crate) fn new() -> MemoryVault {
        MemoryVault {
            key: RsaPrivateKey::generate_2048().unwrap(),
            records: std::collections::BTreeMap::new(),
            broken: false,
        }
    }
}

#[cfg(test)]
impl Vault for MemoryVault {
    fn vsm_key(&self) -> &RsaPrivateKey {
        &self.key
    }
    fn record(&self, name: &str) -> Option<&[u8]> {
        self.records.get(name).map(Vec::as_slice)
    }
    fn count(&self) -> usize {
        self.records.len()
    }
    fn put(&mut self, name: &str, value: Vec<u8>, _: &mut dyn Random) -> Result<(), String> {
        if self.broken {
            return Err("no space left".to_owned());
        }
        self.records.insert(name.to_owned(), value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hgs_protocol::env::SeededRandom;
    use proptest::prelude::*;

    #[test]
    fn a_used_answer_a_used_package_and_an_older_generation_are_refused() {
        let rng = &mut SeededRandom::new(5);
        let vault = &mut MemoryVault::new();
        let vm = VmId::random(rng);
        let (one, two, three) = (
            TransportKey::random(rng),
            TransportKey::random(rng),
            TransportKey::random(rng),
        );
        note_opened(vault, vm, 4, &one, None, rng).unwrap();
        assert_eq!(
            note_opened(vault, vm, 4, &one, None, rng),
            Err(StartedError::AnswerUsed)
        );
        // An attempt that came to nothing is repeated with a new answer.
        let moved = MigrationId::random(rng);
        note_opened(vault, vm, 4, &two, Some(moved), rng).unwrap();
        assert_eq!(
            note_opened(vault, vm, 4, &three, Some(moved), rng),
            Err(StartedError::PackageUsed(moved))
        );
        note_started(vault, vm, 5, rng).unwrap();
        let older = note_opened(vault, vm, 4, &three, None, rng).unwrap_err();
        assert!(older.to_string().contains("has had generation 5"), "{older}");
        note_opened(vault, vm, 5, &three, None, rng).unwrap();
        // Starting again from the same generation (a resumed guest) needs no new record.
        vault.broken = true;
        note_started(vault, vm, 5, rng).unwrap();
        let refused = note_started(vault, vm, 6, rng).unwrap_err();
        assert!(refused.to_string().contains("no space left"), "{refused}");
    }

    #[test]
    fn the_record_stays_small() {
        let rng = &mut SeededRandom::new(6);
        let vault = &mut MemoryVault::new();
        let vm = VmId::random(rng);
        for _ in 0..MAX_USED {
            note_opened(vault, vm, 1, &TransportKey::random(rng), None, rng).unwrap();
        }
        let full = note_opened(vault, vm, 1, &TransportKey::random(rng), None, rng);
        assert_eq!(full, Err(StartedError::TooManyUsed(vm)));
        note_started(vault, vm, 2, rng).unwrap();
        assert_eq!(vault.records.values().next().unwrap().len(), 8);
        for _ in 1..MAX_VMS {
            note_started(vault, VmId::random(rng), 1, rng).unwrap();
        }
        assert_eq!(
            note_started(vault, VmId::random(rng), 1, rng),
            Err(StartedError::TooManyVms)
        );
        note_started(vault, vm, 3, rng).unwrap();
    }

    proptest! {
        #[test]
        fn a_record_survives_its_encoding(newest: u64, used: Vec<(u64, [u8; 32])>) {
            let record = Record { newest, used };
            prop_assert_eq!(Record::parse(&record.encode()), Some(record));
        }

        #[test]
        fn hostile_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Record::parse(&bytes);
        }
    }
}
