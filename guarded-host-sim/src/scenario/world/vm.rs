//! A VM of a scenario, with what its owner keeps of it, and what befalls its files.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context;
use hgs_protocol::{
    env::{OsRandom, Random},
    protector::{Guardian, KeyProtector},
};
use serde_json::{Value, json};

use super::{HostHere, blocking};
use crate::{
    owner::{OwnedVm, Owner},
    scenario::{model::VmPlan, pool},
    vm::{
        VmName,
        volume::{Current, Generation, Volume, give_to_owner_of},
    },
};

/// A VM.
pub struct VmHere {
    name: VmName,
    volume: Volume,
    /// Where its files are backed up.
    backups: PathBuf,
    /// None for a VM that its host made in local mode.
    owner: Option<(Arc<Owner>, OwnedVm)>,
    /// Copies of its key protector by name.
    kept: Mutex<BTreeMap<String, Vec<u8>>>,
}

impl VmHere {
    /// Its owner makes it; it is off then.
    pub(super) async fn make(
        plan: VmPlan,
        owner: Arc<Owner>,
        guardians: Vec<Guardian>,
        volume: Volume,
        backups: PathBuf,
    ) -> anyhow::Result<VmHere> {
        let name = VmName::parse(&plan.name)?;
        let (at, by, called) = (volume.clone(), owner.clone(), name.clone());
        let owned = blocking(move || {
            let rng: &mut dyn Random = &mut OsRandom;
            let secret = hex::encode(rng.bytes::<24>());
            let place = (&at, plan.host.as_str());
            let owned = by.make_vm(
                &called,
                plan.kind.as_security(),
                secret.as_bytes(),
                &guardians,
                place,
                rng,
            )?;
            if plan.max_offline_unwraps > 0 {
                wish_offline_starts(&at, &called, plan.max_offline_unwraps)?;
            }
            Ok(owned)
        })
        .await?;
        Ok(VmHere {
            name,
            volume,
            backups,
            owner: Some((owner, owned)),
            kept: Mutex::default(),
        })
    }

    /// A host in local mode makes it, with a key protector of its own guardian.
    pub(super) async fn make_local(plan: &VmPlan, host: &HostHere, backups: PathBuf) -> anyhow::Result<VmHere> {
        let secret = hex::encode((&mut OsRandom as &mut dyn Random).bytes::<24>());
        let body = json!({ "name": *plan.name, "kind": plan.kind.as_security(), "secret": secret });
        let made: Result<Value, String> = host.agent().await?.post("vms", &body).await?;
        made.map_err(|refusal| anyhow::anyhow!("{} does not make the VM {}: {refusal}", host.name(), plan.name))?;
        Ok(VmHere {
            name: VmName::parse(&plan.name)?,
            volume: Volume::open(host.volume())?,
            backups,
            owner: None,
            kept: Mutex::default(),
        })
    }

    /// What counts of it on the volume.
    pub(in crate::scenario) fn current(&self) -> anyhow::Result<Current> {
        Ok(self.volume.vm(&self.name)?.current()?)
    }

    /// Its files.
    pub(in crate::scenario) fn files(&self) -> anyhow::Result<Generation> {
        let folder = self.volume.vm(&self.name)?;
        Ok(folder.read_generation(&folder.current()?.generation)?)
    }

    /// What a guest that unlocked its volume answers to `challenge`; only an owner knows.
    pub(in crate::scenario) fn expected_proof(&self, challenge: &[u8]) -> Option<Vec<u8>> {
        let (_, owned) = self.owner.as_ref()?;
        Some(owned.expected_proof(challenge).to_vec())
    }

    /// The signature of its owner.
    pub(in crate::scenario) fn sign(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let (owner, _) = self.owner.as_ref()?;
        owner.keys().signing().first()?.sign(bytes).ok()
    }

    /// A new key protector; the inner error is a refusal of the owner's tools.
    pub(in crate::scenario) async fn rekey(&self, guardians: Vec<Guardian>) -> anyhow::Result<Result<u64, String>> {
        let (owner, _) = self.owner.as_ref().context("the VM has no owner but its host")?;
        let (owner, name, volume) = (owner.clone(), self.name.clone(), self.volume.clone());
        blocking(move || {
            let done = owner.rekey(&name, &guardians, &volume, &mut OsRandom);
            Ok(done.map_err(|error| error.to_string()))
        })
        .await
    }

    /// Takes its files to the volume of `thief`, as whoever can read the storage does, and names that host their owner.
    pub(in crate::scenario) async fn steal(&self, thief: &HostHere) -> anyhow::Result<()> {
        let folder = self.volume.vm(&self.name)?;
        let current = folder.current()?;
        let disk = fs::read(folder.disk_path(&current)).context("the VM's disk")?;
        let files = folder.read_generation(&current.generation)?;
        let to = Volume::open(thief.volume())?;
        to.create_vm(&self.name, current.vm_id, thief.name(), &files, &disk, &mut OsRandom)?;
        Ok(())
    }

    /// Copies its files.
    pub(in crate::scenario) fn back_up(&self, name: &str) -> anyhow::Result<()> {
        let to = self.backups.join(self.name.as_str()).join(name);
        let _ = fs::remove_dir_all(&to);
        pool::copy(self.volume.vm(&self.name)?.path(), &to)
    }

    /// Puts copied files in the place of the present ones.
    pub(in crate::scenario) fn put_back(&self, name: &str) -> anyhow::Result<()> {
        let from = self.backups.join(self.name.as_str()).join(name);
        let folder = self.volume.vm(&self.name)?;
        fs::remove_dir_all(folder.path()).context("the VM's files")?;
        pool::copy(&from, folder.path())?;
        Ok(give_to_owner_of(self.volume.root(), folder.path())?)
    }

    /// Copies its key protector.
    pub(in crate::scenario) fn keep_protector(&self, name: &str) -> anyhow::Result<()> {
        let protector = self.files()?.protector;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.insert(name.to_owned(), protector);
        Ok(())
    }

    /// A copied key protector.
    pub(in crate::scenario) fn kept_protector(&self, name: &str) -> anyhow::Result<Vec<u8>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.get(name).cloned();
        found.with_context(|| format!("no key protector was copied as {name:?}"))
    }
}

/// Writes MaxOfflineUnwraps into the protector, as whoever holds the file may: no signature covers it.
fn wish_offline_starts(volume: &Volume, name: &VmName, starts: u32) -> anyhow::Result<()> {
    let folder = volume.vm(name)?;
    let generation = String::from(folder.current()?.generation);
    let path = folder.path().join("generations").join(generation).join("protector.xml");
    let protector = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let protector = KeyProtector::parse(&protector)?.with_max_offline_unwraps(starts);
    fs::write(&path, protector.to_xml()).with_context(|| format!("cannot write {}", path.display()))
}
