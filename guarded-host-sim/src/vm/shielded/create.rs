//! A new VM with an empty disk under a key protector that its owner has made: keys come by an answer of the KPS as for a
//! start, and are gone from here when the VM is made.

use std::{io::Write as _, path::Path};

use hgs_protocol::{crypto::sha256, env::Random, secret::Secret32};
use rustix::fs::OFlags;

use super::{Released, ShieldedError, ShieldedVms};
use crate::{
    commit_point::commit_point,
    shielding::{data_file::DataFileId, provision::ProvisionError},
    swtpm::TpmMaker,
    vm::{
        VmId, VmName,
        checkpoint::Checkpoints,
        disk::{DiskError, Locks, open_below},
        guest,
        security::{Kind, Security},
        started::{Vault, note_provisioned},
        state::{Age, GuestState, StateHeader},
        vtpm::Vtpm,
    },
};

/// A new VM with an empty disk.
pub struct NewVm<'a> {
    /// Its name.
    pub name: &'a VmName,
    /// Its kind.
    pub kind: Kind,
    /// An empty file for its disk.
    pub disk: &'a Path,
}

/// What the agent must write and commit for the VM to be there.
pub struct Created {
    /// The VM; its disk is durable.
    pub vm: VmId,
    /// Its key protector.
    pub protector: Vec<u8>,
    /// Its first state, sealed.
    pub guest_state: Vec<u8>,
}

impl ShieldedVms {
    /// Makes a VM whose protector is the one that an answer for `protector` brought. That the answer was used is on
    /// record before anything is made.
    pub fn create(
        &mut self,
        vault: &mut dyn Vault,
        (protector, answer): (&[u8], &[u8]),
        new: &NewVm<'_>,
        rng: &mut dyn Random,
    ) -> Result<Created, ShieldedError> {
        let released = Released::open(vault.vsm_key(), protector, answer)?;
        // The record of its answers goes by the protector, which has no name of its own.
        let digest = sha256(protector);
        let named = uuid::Uuid::from_slice(digest.get(..16).unwrap_or_default()).unwrap_or_default();
        note_provisioned(vault, DataFileId(named), &released.release.egress, rng)?;
        let vm = VmId::random(rng);
        let root = self.volume.as_deref().ok_or(DiskError::Elsewhere)?;
        let file = open_below(root, new.disk, OFlags::RDWR)?;

        let maker = TpmMaker::open(&self.folder.join("vtpm-maker")).map_err(ProvisionError::from)?;
        let run = self.vtpm_folder(vm);
        let fresh = Vtpm::manufacture(&maker, new.name.as_str(), &run, rng)?;
        let mut vtpm = Vtpm::power_on(new.name.as_str(), &fresh, &run)?;
        let volume_key = Secret32::random(rng);
        let sealed_key = vtpm.seal_volume_key(&volume_key, rng)?;
        let vtpm = vtpm.power_off()?;
        let locks = Locks {
            sealed_key,
            // Nobody is here who could write a recovery password down.
            recovery: None,
        };
        let disk = guest::new_disk(vm, &[], &Secret32::random(rng), &locks, &volume_key, rng)?;
        (&file).write_all(&disk).map_err(DiskError::from)?;
        file.sync_all().map_err(DiskError::from)?;

        let state = GuestState {
            header: StateHeader {
                vm,
                age: Age::rolled(1),
                security: Security::of(new.kind),
            },
            checkpoints: Checkpoints::default(),
            vtpm,
        };
        commit_point("create:sealed");
        Ok(Created {
            vm,
            guest_state: state.seal(&released.release.egress, rng),
            protector: released.protector,
        })
    }
}
