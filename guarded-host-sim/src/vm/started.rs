//! What a VBS store remembers of the VMs that it opened, so that nothing recorded is used again.
//!
//! An answer of the KPS carries no time and no nonce, and the VSM key that opens it outlives the
//! health certificate: only the store itself can tell a second use. It refuses a generation older
//! than the newest it knows, an answer that it has opened before, and a migration package that it
//! has opened before. The record also holds what may be started without contact ([`super::offline`]).
//! It is part of the store's sealed state, whose age the TPM's counter proves. It never learns of what
//! happens on other hosts.

use hgs_protocol::{
    crypto::{RsaPrivateKey, hkdf_sha256},
    env::Random,
    protector::OpenedRelease,
    secret::TransportKey,
};
use zeroize::Zeroizing;

use super::{
    VmId, fields,
    offline::{Kept, OfflineError, OfflineStart},
    package::MigrationId,
    state::Age,
};
use crate::shielding::data_file::DataFileId;

/// Answers and packages remembered per VM for the generations that could still be opened.
pub const MAX_USED: usize = 256;
/// VMs remembered.
pub const MAX_VMS: usize = 1024;

/// VMs that one shielding data file makes on a host.
pub const MAX_PROVISIONED: usize = 4096;

/// What the store keeps for its VMs: its VSM key and sealed records by name.
pub trait Vault {
    /// The private half of the key in the health certificate.
    fn vsm_key(&self) -> &RsaPrivateKey;
    /// A record.
    fn record(&self, name: &str) -> Option<&[u8]>;
    /// How many records there are.
    fn count(&self) -> usize;
    /// Replaces a record. It is durable, and no older copy counts any more, when this returns.
    fn put(&mut self, name: &str, value: Zeroizing<Vec<u8>>, rng: &mut dyn Random) -> Result<(), String>;
}

/// What a state or a package is opened with.
pub struct Opening<'a> {
    /// The keys of the answer, and how often the VM may be started with the egress key without contact.
    pub release: &'a OpenedRelease,
    /// [`hgs_protocol::protector::KeyProtector::digest`] of the egress protector.
    pub egress_protector: [u8; 32],
    /// The migration, if a package is opened.
    pub package: Option<MigrationId>,
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
        offered: Age,
        /// What this host knows.
        newest: Age,
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
    /// Too many VMs of one file.
    #[error(
        "{MAX_PROVISIONED} VMs were made on this host with the shielding data file {0}, and no more answers are remembered; \
         ask its owner for a new file, or use another host"
    )]
    TooManyProvisioned(DataFileId),
    /// Too many VMs.
    #[error(
        "the VBS store remembers {MAX_VMS} VMs and shielding data files and no more; remove the store's directory for new VSM keys"
    )]
    TooManyVms,
    /// Nothing is kept for a start without contact, or no more.
    #[error(transparent)]
    Offline(#[from] OfflineError),
    /// The record is no record.
    #[error("the VBS store's record of the {0} is damaged")]
    Damaged(String),
    /// The record cannot be made durable.
    #[error("the VBS store cannot write its record: {0}")]
    NotDurable(String),
}

/// The record of one VM: newest age (u64 generation, u32 start), u32 count and that many [`Kept`], then
/// 40 bytes for each used thing: u64 generation that it opens, 32 bytes id. Little-endian.
#[derive(Clone, Default)]
struct Record {
    newest: Age,
    kept: Vec<Kept>,
    used: Vec<(u64, [u8; 32])>,
}

/// Takes note that the state (or the package) of `age` is opened with an answer. Refused when the VM was
/// newer here, or when answer or package were used before.
///
/// Until the next start, what may be started offline is the VM as it was and as it is to be: a crash
/// leaves either on the volume.
pub fn note_opened(
    vault: &mut dyn Vault,
    vm: VmId,
    age: Age,
    opening: &Opening<'_>,
    rng: &mut dyn Random,
) -> Result<(), StartedError> {
    let mut record = Record::load(vault, &name(vm))?;
    record.refuse_older(vm, age)?;
    let OpenedRelease {
        ingress,
        egress,
        max_offline_unwraps,
    } = opening.release;
    // The KPS draws the egress key for each answer, so the key names the answer, however its
    // envelope may be changed.
    let answer = id(egress, "HGS-STORE-USED-ANSWER", &[]);
    if record.has(&answer) {
        return Err(StartedError::AnswerUsed);
    }
    record.raise(age);
    record.used.push((age.generation, answer));
    if let Some(migration) = opening.package {
        let package = package_id(migration);
        if record.has(&package) {
            return Err(StartedError::PackageUsed(migration));
        }
        record.used.push((age.generation, package));
    }
    if record.used.len() > MAX_USED {
        return Err(StartedError::TooManyUsed(vm));
    }
    record.kept.retain(|kept| kept.is_of(ingress));
    let new = Kept::of_roll(egress, opening.egress_protector, *max_offline_unwraps);
    record.kept.extend(new);
    record.store(vault, &name(vm), rng)
}

/// Counts an offline start of the VM from the state of `age` (as its header says; the state itself is
/// opened only with the key that this gives). The count is durable when this returns.
pub fn note_offline(
    vault: &mut dyn Vault,
    vm: VmId,
    age: Age,
    protector: &[u8; 32],
    rng: &mut dyn Random,
) -> Result<OfflineStart, StartedError> {
    if vault.record(&name(vm)).is_none() {
        return Err(OfflineError::Unknown(vm).into());
    }
    let mut record = Record::load(vault, &name(vm))?;
    record.refuse_older(vm, age)?;
    if record.kept.is_empty() {
        return Err(OfflineError::NotAllowed(vm).into());
    }
    let kept = record.kept.iter_mut().find(|kept| kept.is_for(protector));
    let start = kept.ok_or(OfflineError::OtherProtector(vm))?.count(vm)?;
    record.store(vault, &name(vm), rng)?;
    Ok(start)
}

/// Takes note that `age` starts here, sealed under `key`: nothing older will, and only `key` may start
/// the VM offline from now on.
pub fn note_started(
    vault: &mut dyn Vault,
    vm: VmId,
    age: Age,
    key: &TransportKey,
    rng: &mut dyn Random,
) -> Result<(), StartedError> {
    let mut record = Record::load(vault, &name(vm))?;
    let before = record.kept.len();
    record.kept.retain(|kept| kept.is_of(key));
    if record.newest >= age && record.kept.len() == before {
        return Ok(());
    }
    record.raise(age);
    record.store(vault, &name(vm), rng)
}

/// Takes note that the VM may leave this host: from now on nothing of it starts here offline. It stays
/// so when the VM does not leave after all, for its agent alone says whether it did.
pub fn note_leaving(vault: &mut dyn Vault, vm: VmId, rng: &mut dyn Random) -> Result<(), StartedError> {
    let mut record = Record::load(vault, &name(vm))?;
    if record.kept.is_empty() {
        return Ok(());
    }
    record.kept.clear();
    record.store(vault, &name(vm), rng)
}

/// Takes note that an answer for the protector of a shielding data file, whose egress key is `egress`, is used.
pub fn note_provisioned(
    vault: &mut dyn Vault,
    file: DataFileId,
    egress: &TransportKey,
    rng: &mut dyn Random,
) -> Result<(), StartedError> {
    let name = format!("pdk {file}");
    let mut record = Record::load(vault, &name)?;
    let answer = id(egress, "HGS-STORE-USED-ANSWER", &[]);
    if record.has(&answer) {
        return Err(StartedError::AnswerUsed);
    }
    if record.used.len() >= MAX_PROVISIONED {
        return Err(StartedError::TooManyProvisioned(file));
    }
    // A file has no generations: its answers are remembered as long as the VSM keys live.
    record.used.push((0, answer));
    record.store(vault, &name, rng)
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
    fn load(vault: &dyn Vault, name: &str) -> Result<Record, StartedError> {
        match vault.record(name) {
            Some(bytes) => Record::parse(bytes).ok_or(StartedError::Damaged(name.to_owned())),
            None if vault.count() >= MAX_VMS => Err(StartedError::TooManyVms),
            None => Ok(Record::default()),
        }
    }

    fn store(&self, vault: &mut dyn Vault, name: &str, rng: &mut dyn Random) -> Result<(), StartedError> {
        vault.put(name, self.encode(), rng).map_err(StartedError::NotDurable)
    }

    fn has(&self, id: &[u8; 32]) -> bool {
        self.used.iter().any(|(_, used)| used == id)
    }

    fn refuse_older(&self, vm: VmId, offered: Age) -> Result<(), StartedError> {
        let newest = self.newest;
        match offered < newest {
            true => Err(StartedError::Older { vm, offered, newest }),
            false => Ok(()),
        }
    }

    /// What opens only an older generation need not be remembered: that generation is refused.
    fn raise(&mut self, age: Age) {
        self.newest = self.newest.max(age);
        let newest = self.newest.generation;
        self.used.retain(|(opens, _)| *opens >= newest);
    }

    fn parse(mut bytes: &[u8]) -> Option<Record> {
        let rest = &mut bytes;
        let newest = Age {
            generation: fields::take_u64(rest)?,
            start: fields::take_u32(rest)?,
        };
        let kept = (0..fields::take_u32(rest)?)
            .map(|_| Kept::parse(rest))
            .collect::<Option<_>>()?;
        let mut used = Vec::new();
        while !rest.is_empty() {
            used.push((fields::take_u64(rest)?, fields::take_array(rest)?));
        }
        Some(Record { newest, kept, used })
    }

    fn encode(&self) -> Zeroizing<Vec<u8>> {
        // Reserved at once, so that no half-grown copy of a key stays behind in freed memory.
        let mut out = Zeroizing::new(Vec::with_capacity(
            16 + self.kept.len() * Kept::LENGTH + self.used.len() * 40,
        ));
        out.extend_from_slice(&self.newest.generation.to_le_bytes());
        out.extend_from_slice(&self.newest.start.to_le_bytes());
        out.extend_from_slice(&u32::try_from(self.kept.len()).unwrap_or(u32::MAX).to_le_bytes());
        for kept in &self.kept {
            kept.write(&mut out);
        }
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
    pub(crate) records: std::collections::BTreeMap<String, Zeroizing<Vec<u8>>>,
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
        self.records.get(name).map(|value| value.as_slice())
    }
    fn count(&self) -> usize {
        self.records.len()
    }
    fn put(&mut self, name: &str, value: Zeroizing<Vec<u8>>, _: &mut dyn Random) -> Result<(), String> {
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

    fn release(limit: u32, rng: &mut dyn Random) -> OpenedRelease {
        OpenedRelease {
            ingress: TransportKey::random(rng),
            egress: TransportKey::random(rng),
            max_offline_unwraps: limit,
        }
    }

    fn open(
        vault: &mut MemoryVault,
        vm: VmId,
        generation: u64,
        release: &OpenedRelease,
        package: Option<MigrationId>,
    ) -> Result<(), StartedError> {
        let opening = Opening {
            release,
            egress_protector: digest(&release.egress),
            package,
        };
        note_opened(vault, vm, Age::rolled(generation), &opening, &mut SeededRandom::new(0))
    }

    fn start(vault: &mut MemoryVault, vm: VmId, age: Age, key: &TransportKey) -> Result<(), StartedError> {
        note_started(vault, vm, age, key, &mut SeededRandom::new(0))
    }

    /// Tries to count an offline start; gives its number and what is left.
    fn offline(vault: &mut MemoryVault, vm: VmId, age: Age, key: &TransportKey) -> Result<(u32, u32), String> {
        note_offline(vault, vm, age, &digest(key), &mut SeededRandom::new(0))
            .map(|start| (start.number, start.left))
            .map_err(|e| e.to_string())
    }

    /// Stands for the digest of the protector that holds `key`.
    fn digest(key: &TransportKey) -> [u8; 32] {
        id(key, "test protector", &[])
    }

    #[test]
    fn a_used_answer_a_used_package_and_an_older_generation_are_refused() {
        let rng = &mut SeededRandom::new(5);
        let vault = &mut MemoryVault::new();
        let vm = VmId::random(rng);
        let (one, two, three) = (release(0, rng), release(0, rng), release(0, rng));
        open(vault, vm, 4, &one, None).unwrap();
        assert_eq!(open(vault, vm, 4, &one, None), Err(StartedError::AnswerUsed));
        // An attempt that came to nothing is repeated with a new answer.
        let moved = MigrationId::random(rng);
        open(vault, vm, 4, &two, Some(moved)).unwrap();
        assert_eq!(
            open(vault, vm, 4, &three, Some(moved)),
            Err(StartedError::PackageUsed(moved))
        );
        start(vault, vm, Age::rolled(5), &two.egress).unwrap();
        let older = open(vault, vm, 4, &three, None).unwrap_err();
        assert!(older.to_string().contains("has had generation 5"), "{older}");
        open(vault, vm, 5, &three, None).unwrap();
        // Starting again from the same generation (a resumed guest) needs no new record.
        vault.broken = true;
        start(vault, vm, Age::rolled(5), &two.egress).unwrap();
        let refused = start(vault, vm, Age::rolled(6), &three.egress).unwrap_err();
        assert!(refused.to_string().contains("no space left"), "{refused}");
    }

    #[test]
    fn offline_starts_are_counted_numbered_and_end_with_the_next_roll() {
        let rng = &mut SeededRandom::new(7);
        let vault = &mut MemoryVault::new();
        let vm = VmId::random(rng);
        let (first, second) = (release(3, rng), release(1, rng));
        let age = |generation, start| Age { generation, start };
        let unknown = offline(vault, vm, age(2, 0), &first.egress).unwrap_err();
        assert!(unknown.contains("has not started"), "{unknown}");
        open(vault, vm, 1, &first, None).unwrap();
        start(vault, vm, age(2, 0), &first.egress).unwrap();
        // Each attempt has a number of its own, also one that comes to nothing.
        assert_eq!(offline(vault, vm, age(2, 0), &first.egress).unwrap(), (1, 2));
        assert_eq!(offline(vault, vm, age(2, 0), &first.egress).unwrap(), (2, 1));
        start(vault, vm, age(2, 2), &first.egress).unwrap();
        // The state of the attempt that came to nothing is older than what has started.
        for older in [age(2, 0), age(2, 1)] {
            let refused = offline(vault, vm, older, &first.egress).unwrap_err();
            assert!(refused.contains("has had generation 2.2"), "{refused}");
        }
        let other = offline(vault, vm, age(2, 2), &second.egress).unwrap_err();
        assert!(other.contains("protector"), "{other}");
        // A count that cannot be made durable is no start.
        vault.broken = true;
        assert!(offline(vault, vm, age(2, 2), &first.egress).is_err());
        vault.broken = false;
        assert_eq!(offline(vault, vm, age(2, 2), &first.egress).unwrap(), (3, 0));
        let none = offline(vault, vm, age(2, 2), &first.egress).unwrap_err();
        assert!(none.contains("all 3 offline starts"), "{none}");
        // A roll that is opened and not started leaves both, and counts for the old one stay as they are.
        let second = OpenedRelease {
            ingress: first.egress.clone(),
            ..second
        };
        open(vault, vm, 2, &second, None).unwrap_err();
        let opening = Opening {
            release: &second,
            egress_protector: digest(&second.egress),
            package: None,
        };
        note_opened(vault, vm, age(2, 2), &opening, rng).unwrap();
        assert!(
            offline(vault, vm, age(2, 2), &first.egress)
                .unwrap_err()
                .contains("all 3")
        );
        assert_eq!(offline(vault, vm, age(3, 0), &second.egress).unwrap(), (1, 0));
        // Its start ends what was kept of the old one.
        start(vault, vm, age(3, 1), &second.egress).unwrap();
        let gone = offline(vault, vm, age(3, 1), &first.egress).unwrap_err();
        assert!(gone.contains("protector"), "{gone}");
        // A VM that leaves takes its offline starts with it.
        let third = release(5, rng);
        open(vault, vm, 4, &third, None).unwrap();
        start(vault, vm, age(5, 0), &third.egress).unwrap();
        note_leaving(vault, vm, rng).unwrap();
        let left = offline(vault, vm, age(5, 0), &third.egress).unwrap_err();
        assert!(left.contains("allowed none"), "{left}");
    }

    #[test]
    fn an_answer_used_before_offline_starts_stays_used() {
        let rng = &mut SeededRandom::new(8);
        let vault = &mut MemoryVault::new();
        let vm = VmId::random(rng);
        let first = release(3, rng);
        open(vault, vm, 1, &first, None).unwrap();
        start(vault, vm, Age::rolled(2), &first.egress).unwrap();
        let unstarted = OpenedRelease {
            ingress: first.egress.clone(),
            ..release(3, rng)
        };
        open(vault, vm, 2, &unstarted, None).unwrap();
        // The state keeps its generation over offline starts, and so does what opens it.
        let later = Age {
            generation: 2,
            start: offline(vault, vm, Age::rolled(2), &first.egress).unwrap().0,
        };
        start(vault, vm, later, &first.egress).unwrap();
        let opening = Opening {
            release: &unstarted,
            egress_protector: digest(&unstarted.egress),
            package: None,
        };
        assert_eq!(
            note_opened(vault, vm, later, &opening, rng),
            Err(StartedError::AnswerUsed)
        );
    }

    #[test]
    fn the_record_stays_small() {
        let rng = &mut SeededRandom::new(6);
        let vault = &mut MemoryVault::new();
        let vm = VmId::random(rng);
        let last = release(0, rng);
        for _ in 0..MAX_USED {
            open(vault, vm, 1, &release(9, rng), None).unwrap();
        }
        assert_eq!(open(vault, vm, 1, &last, None), Err(StartedError::TooManyUsed(vm)));
        start(vault, vm, Age::rolled(2), &last.egress).unwrap();
        assert_eq!(vault.records.values().next().unwrap().len(), 16);
        for _ in 1..MAX_VMS {
            start(vault, VmId::random(rng), Age::rolled(1), &last.egress).unwrap();
        }
        assert_eq!(
            start(vault, VmId::random(rng), Age::rolled(1), &last.egress),
            Err(StartedError::TooManyVms)
        );
        start(vault, vm, Age::rolled(3), &last.egress).unwrap();
    }

    proptest! {
        #[test]
        fn a_record_survives_its_encoding(
            generation: u64,
            start: u32,
            kept in proptest::collection::vec((any::<u64>(), any::<u32>()), 0..3),
            used: Vec<(u64, [u8; 32])>,
        ) {
            let kept = kept.into_iter().filter_map(|(seed, limit)| {
                let key = TransportKey::random(&mut SeededRandom::new(seed));
                Kept::of_roll(&key, digest(&key), limit)
            });
            let record = Record { newest: Age { generation, start }, kept: kept.collect(), used };
            let again = Record::parse(&record.encode()).unwrap();
            prop_assert_eq!(again.newest, record.newest);
            prop_assert_eq!(again.used.clone(), record.used.clone());
            prop_assert_eq!(again.encode(), record.encode());
        }

        #[test]
        fn hostile_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Record::parse(&bytes);
        }
    }
}
