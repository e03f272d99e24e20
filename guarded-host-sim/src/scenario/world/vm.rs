//! A VM of a scenario, with what its owner keeps of it.

use std::{fs, sync::Arc};

use anyhow::Context;
use hgs_protocol::{
    env::{OsRandom, Random},
    protector::{Guardian, KeyProtector},
};

use super::blocking;
use crate::{
    owner::{OwnedVm, Owner},
    scenario::model::{VmKind, VmPlan},
    vm::{
        VmName,
        security::Kind,
        volume::{Current, Volume},
    },
};

/// A VM.
pub struct VmHere {
    volume: Volume,
    owned: OwnedVm,
}

impl VmHere {
    /// Its owner makes it; it is off then.
    pub(super) async fn make(
        plan: VmPlan,
        owner: Arc<Owner>,
        guardians: Vec<Guardian>,
        volume: Volume,
    ) -> anyhow::Result<VmHere> {
        let at = volume.clone();
        let owned = blocking(move || {
            let rng: &mut dyn Random = &mut OsRandom;
            let kind = match plan.kind {
                VmKind::Shielded => Kind::Shielded,
                VmKind::EncryptionSupported => Kind::EncryptionSupported,
            };
            let secret = hex::encode(rng.bytes::<24>());
            let name = VmName::parse(&plan.name)?;
            let owned = owner.make_vm(&name, kind, secret.as_bytes(), &guardians, (&at, &plan.host), rng)?;
            if plan.max_offline_unwraps > 0 {
                wish_offline_starts(&at, &name, plan.max_offline_unwraps)?;
            }
            Ok(owned)
        })
        .await?;
        Ok(VmHere { volume, owned })
    }

    /// What counts of it on the volume.
    pub(in crate::scenario) fn current(&self) -> anyhow::Result<Current> {
        Ok(self.volume.vm(&self.owned.name)?.current()?)
    }

    /// What a guest that unlocked its volume answers to `challenge`.
    pub(in crate::scenario) fn expected_proof(&self, challenge: &[u8]) -> Vec<u8> {
        self.owned.expected_proof(challenge).to_vec()
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
