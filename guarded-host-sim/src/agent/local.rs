//! Local mode: the host has no HGS, and guardians of its own, whose private keys lie in its agent's folder
//! (the product's certificate store `Shielded VM Local Certificates`). It rolls the protectors of its VMs by
//! itself. Whoever administers such a host can open those VMs; nothing here claims otherwise.
//!
//! `local-guardians/` is a folder as `guardian-host-sim guardian` keeps it, under the password in
//! `local-guardians.password`, so that guardians are exported and imported with that command.

use std::{fs, io, path::Path};

use hgs_protocol::{
    env::{OsRandom, Random, UnixTime},
    protector::{Guardian, GuardianKeys, KeyProtector, seal_for_oneself},
    wire::vsm,
};
use zeroize::Zeroizing;

use super::{Agent, attest::blocking, configuration::ClientConfiguration};
use crate::{
    owner::{
        Owner,
        store::{GuardianName, GuardianStore, StoreError, write_new},
    },
    vm::{VmName, operation::VmError, recovery::RecoveryPassword, security::Kind, volume::Volume},
};

impl Agent {
    /// Whether this host is in local mode: no attestation service is configured.
    pub(super) fn is_local(&self) -> bool {
        *self.configuration() == ClientConfiguration::Local
    }

    /// Opens and rolls `protector` with the keys of a guardian of this host, for its own VBS store.
    pub(super) async fn roll_by_own_guardian(&self, protector: &[u8]) -> Result<Vec<u8>, VmError> {
        let (encryption, _) = self.store_keys().await.map_err(VmError::Unreachable)?;
        let (dir, protector) = (self.args.dir.clone(), protector.to_vec());
        self.local(move |host| {
            let unfit = |error: String| VmError::Protector(format!("the key protector: {error}"));
            let parsed = KeyProtector::parse(&protector).map_err(|e| unfit(e.to_string()))?;
            let keys = guardians(&dir, |guardian| parsed.wrapping_of(guardian).is_some())?;
            let chained = parsed.verify().map_err(|e| unfit(e.to_string()))?;
            let Some(keys) = keys.first() else {
                let owner = chained.owner().map(|owner| owner.thumbprint()).unwrap_or_default();
                return Err(VmError::Protector(format!(
                    "the key protector cannot be unwrapped: {host} is in local mode, and no guardian here has the private \
                     keys for it (its owner's signing certificate is {owner}). Export that guardian with its private \
                     keys where the VM was made and import it here, or let the owner grant the fabric's guardian access \
                     and give this host its HGS"
                )));
            };
            let rng: &mut dyn Random = &mut OsRandom;
            let opened = chained.open(keys, rng).map_err(|e| unfit(e.to_string()))?;
            let rolled = opened.roll(keys, rng).map_err(|e| unfit(e.to_string()))?;
            let vsm_key = vsm::parse_rsa1(&encryption).map_err(|e| unfit(e.to_string()))?;
            let answer = seal_for_oneself(&vsm_key.into(), &opened, &rolled, rng);
            Ok(answer.map_err(|e| unfit(e.to_string()))?.encode())
        })
        .await
    }

    /// The keys of this host's own guardian, which is made when there is none, and of every other local guardian that
    /// `protector` is for.
    pub(super) async fn own_guardians(&self, protector: Vec<u8>) -> Result<Vec<GuardianKeys>, VmError> {
        let (dir, now) = (self.args.dir.clone(), self.clock.now());
        self.local(move |_| {
            let mut keys = vec![own_guardian(&dir, now)?];
            if let Ok(parsed) = KeyProtector::parse(&protector) {
                let others = |guardian: &Guardian| guardian.name() != OWN && parsed.wrapping_of(guardian).is_some();
                keys.extend(guardians(&dir, others)?);
            }
            Ok(keys)
        })
        .await
    }

    /// New-VM with a new local key protector and a vTPM: a VM that this host alone starts. Gives its recovery password.
    pub(super) async fn make_local_vm(
        &self,
        volume: Volume,
        name: VmName,
        kind: Kind,
        secret: Zeroizing<String>,
    ) -> Result<RecoveryPassword, VmError> {
        let (dir, now) = (self.args.dir.clone(), self.clock.now());
        self.local(move |host| {
            let failed = |error: crate::owner::OwnerError| VmError::Protector(error.to_string());
            let owner = Owner::with_keys(own_guardian(&dir, now)?, &dir.join("new-vms")).map_err(failed)?;
            let place = (&volume, host);
            let made = owner.make_vm(&name, kind, secret.as_bytes(), &[], place, &mut OsRandom);
            made.map(|vm| vm.recovery_password().clone()).map_err(failed)
        })
        .await
    }

    /// Runs what may take a while and belongs to local mode alone.
    async fn local<T: Send + 'static>(
        &self,
        work: impl FnOnce(&str) -> Result<T, VmError> + Send + 'static,
    ) -> Result<T, VmError> {
        let host = self.args.name.clone();
        if !self.is_local() {
            return Err(VmError::Protector(format!(
                "{host} is not in local mode: the protectors of its VMs are its HGS's to open"
            )));
        }
        blocking(move || work(&host))
            .await
            .map_err(|e| VmError::Unreachable(e.to_string()))?
    }
}

/// The guardians with private keys here that are `wanted`.
fn guardians(dir: &Path, wanted: impl Fn(&Guardian) -> bool) -> Result<Vec<GuardianKeys>, VmError> {
    let store = GuardianStore::new(&dir.join(GUARDIANS));
    let password = password(dir)?;
    let stored = store.list().map_err(unusable)?;
    let found = stored.into_iter().flatten();
    found
        .filter(|guardian| guardian.has_private_keys() && wanted(guardian.guardian()))
        .map(|guardian| guardian.unlock(&password).map_err(unusable))
        .collect()
}

fn own_guardian(dir: &Path, now: UnixTime) -> Result<GuardianKeys, VmError> {
    let store = GuardianStore::new(&dir.join(GUARDIANS));
    let (name, password) = (GuardianName::parse(OWN).map_err(unusable)?, password(dir)?);
    match store.find(&name) {
        Ok(found) => found.unlock(&password).map_err(unusable),
        Err(StoreError::Unknown { .. }) => {
            let made = GuardianKeys::generate(OWN, now, &mut OsRandom);
            let keys = made.map_err(|e| VmError::Protector(format!("the host's own guardian: {e}")))?;
            store.add_own(&keys, &password, &mut OsRandom).map_err(unusable)?;
            Ok(keys)
        }
        Err(other) => Err(unusable(other)),
    }
}

/// Drawn once. It stands for the machine's protection of its certificate store: whoever reads the folder has both.
fn password(dir: &Path) -> Result<Zeroizing<String>, VmError> {
    let path = dir.join(PASSWORD);
    let fresh = || -> [u8; 32] { (&mut OsRandom as &mut dyn Random).bytes() };
    let made = match path.exists() {
        true => Ok(()),
        false => write_new(&path, hex::encode(fresh()).as_bytes(), 0o600),
    };
    let read = match made {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => fs::read_to_string(&path),
    };
    read.map(|text| Zeroizing::new(text.trim().to_owned()))
        .map_err(|e| VmError::Protector(format!("cannot use {}: {e}", path.display())))
}

fn unusable(error: StoreError) -> VmError {
    VmError::Protector(format!("the host's own guardians: {error}"))
}

/// The product's name for a host's own guardian.
const OWN: &str = "UntrustedGuardian";
const GUARDIANS: &str = "local-guardians";
const PASSWORD: &str = "local-guardians.password";
