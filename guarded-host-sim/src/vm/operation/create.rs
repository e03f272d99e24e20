//! New-VM with a key protector of its owner's and a virtual TPM: a new VM with an empty disk.

use hgs_protocol::env::Random;
use serde::{Deserialize, Serialize};

use super::{Host, VmError, roll, unexpected};
use crate::{
    commit_point::commit_point,
    vm::{
        VmId, VmName,
        request::{Blob, CreateRequest, VmReply, VmRequest},
        security::Kind,
        volume::{Generation, Volume},
    },
};

/// What an administrator asks for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewVmOf {
    /// The key protector that the VM's owner has made.
    pub protector: Blob,
    /// The VM's kind.
    pub kind: Kind,
}

/// A VM that was made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CreatedVm {
    /// Its GUID.
    pub vm: VmId,
}

/// Makes a VM, which is on the volume whole or not at all.
pub async fn create(
    host: &impl Host,
    volume: &Volume,
    name: &VmName,
    new: NewVmOf,
    rng: &mut dyn Random,
) -> Result<CreatedVm, VmError> {
    let staged = volume.stage_vm(name, host.name())?;
    let answer = roll(host, &new.protector.0).await?;
    commit_point("create:rolled");
    let request = VmRequest::Create(Box::new(CreateRequest {
        protector: new.protector,
        answer: Blob(answer),
        name: name.clone(),
        disk: staged.disk_path(),
        kind: new.kind,
    }));
    let VmReply::Created {
        vm,
        protector,
        guest_state,
    } = host.store(request).await?
    else {
        return Err(unexpected());
    };
    let first = Generation {
        protector: protector.0,
        guest_state: guest_state.0,
        memory: None,
    };
    staged.finish(vm, &first, rng)?;
    Ok(CreatedVm { vm })
}
