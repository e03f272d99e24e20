//! A new VM of a template and shielding data: keys come by an answer of the KPS as for a start, and are gone from here
//! when the VM is made.

use hgs_protocol::env::Random;

use super::{Released, ShieldedError, ShieldedVms};
use crate::{
    commit_point::commit_point,
    shielding::{
        data_file::DataFile,
        provision::{Made, Order, Place, ProvisionError, provision},
    },
    vm::{
        VmId,
        disk::DiskError,
        started::{Vault, note_provisioned},
    },
};

/// What the agent must write and commit for the VM to be there.
pub struct Provisioned {
    /// The VM; its disk is durable.
    pub made: Made,
    /// Its key protector.
    pub protector: Vec<u8>,
}

impl ShieldedVms {
    /// Opens the shielding data with an answer for its protector and makes a VM. That the answer was used is on record
    /// before the shielding data is opened.
    pub fn provision(
        &mut self,
        vault: &mut dyn Vault,
        shielding_data: &[u8],
        answer: &[u8],
        order: &Order<'_>,
        rng: &mut dyn Random,
    ) -> Result<Provisioned, ShieldedError> {
        let unfit = ProvisionError::from;
        let signed = DataFile::parse(shielding_data)
            .and_then(DataFile::verify)
            .map_err(unfit)?;
        let released = Released::open(vault.vsm_key(), signed.file().protector(), answer)?;
        note_provisioned(vault, signed.file().id(), &released.release.egress, rng)?;
        let data = signed.open(&released.release.ingress).map_err(unfit)?;
        let vm = VmId::random(rng);
        let place = Place {
            volume: self.volume.as_deref().ok_or(DiskError::Elsewhere)?,
            maker: &self.folder.join("vtpm-maker"),
            vtpm: &self.vtpm_folder(vm),
        };
        let made = provision(vm, &data, &released.release.egress, order, &place, rng)?;
        commit_point("provision:sealed");
        Ok(Provisioned {
            made,
            protector: released.protector,
        })
    }
}
