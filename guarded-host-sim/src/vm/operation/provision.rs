//! Initialize-ShieldedVM: a new VM of a template and shielding data. The agent carries the files; the store opens them.

use std::path::{Path, PathBuf};

use hgs_protocol::env::Random;
use serde::{Deserialize, Serialize};

use super::{Host, VmError, roll, unexpected};
use crate::{
    commit_point::commit_point,
    shielding::{
        catalogue::{TemplateName, Version},
        data_file::DataFile,
    },
    vm::{
        VmId, VmName,
        request::{Blob, ProvisionRequest, VmReply, VmRequest},
        security::Kind,
        volume::{Generation, Volume},
    },
};

/// What an administrator asks for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewShieldedVm {
    /// The shielding data file.
    pub shielding_data: Blob,
    /// The template disk: a file on the host's volume, by its path or by its path there.
    pub template: PathBuf,
    /// What is filled into the answer file.
    #[serde(default)]
    pub values: std::collections::BTreeMap<String, String>,
    /// The kind that the VM is expected to be; the shielding data decides.
    #[serde(default)]
    pub kind: Option<Kind>,
}

/// A VM that was made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProvisionedVm {
    /// Its GUID.
    pub vm: VmId,
    /// Its kind.
    pub kind: Kind,
    /// The template that it was made of.
    pub template: TemplateName,
    /// Its version.
    pub version: Version,
}

/// Makes a VM, which is on the volume whole or not at all.
pub async fn provision(
    host: &impl Host,
    volume: &Volume,
    name: &VmName,
    new: NewShieldedVm,
    rng: &mut dyn Random,
) -> Result<ProvisionedVm, VmError> {
    // Only to be sent to the KPS; the store reads the file itself and believes nobody.
    let file = DataFile::parse(&new.shielding_data.0).map_err(|e| VmError::Offer(e.to_string()))?;
    let staged = volume.stage_vm(name, host.name())?;
    let answer = roll(host, file.protector()).await.map_err(|error| match error {
        VmError::Kps { code, message } if code == "KeyProtectionAccessDeniedException" => VmError::Kps {
            code,
            message: format!(
                "the owner of the shielding data has not authorised the guardian of this fabric (shielding-data inspect shows \
                 who is). {message}"
            ),
        },
        other => other,
    })?;
    commit_point("provision:rolled");
    let request = VmRequest::Provision(Box::new(ProvisionRequest {
        shielding_data: new.shielding_data,
        answer: Blob(answer),
        name: name.clone(),
        template: on(volume, &new.template),
        disk: staged.disk_path(),
        values: new.values,
        kind: new.kind,
    }));
    let VmReply::Provisioned {
        vm,
        kind,
        template,
        version,
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
    Ok(ProvisionedVm {
        vm,
        kind,
        template,
        version,
    })
}

fn on(volume: &Volume, template: &Path) -> PathBuf {
    // A path from the root stays as it is.
    volume.root().join(template)
}
