//! The rest of a VM's life in the agent's control API. Each handler is one operation of [`crate::vm::operation`].

use std::path::PathBuf;

use actix_web::{
    HttpResponse, delete, get, post, put,
    web::{Data, Json, Path, ServiceConfig},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use zeroize::Zeroizing;

use super::{Agent, answer, deeds::Deed, to_the_end};
use crate::vm::{
    VmName,
    checkpoint::CheckpointId,
    operation::{self, Host, VmError},
    request::{Blob, VmReply, VmRequest},
    security::{Change, Channel, Kind},
    shielded::VmPhase,
    view::VmView,
    volume::{VmFolder, Volume},
};
use hgs_protocol::env::OsRandom;

/// The routes, below `/v1`.
pub(super) fn routes(config: &mut ServiceConfig) {
    config
        .service(list)
        .service(make_local)
        .service(show)
        .service(turn_off)
        .service(tally)
        .service(save)
        .service(discard_saved)
        .service(reset)
        .service(change_security)
        .service(take_checkpoint)
        .service(apply_checkpoint)
        .service(delete_checkpoint)
        .service(take_over)
        .service(export)
        .service(import)
        .service(get_protector)
        .service(set_protector)
        .service(new_local_protector)
        .service(restore_protector)
        .service(look);
}

/// Runs `work` on the volume, alone with the VM `name`, to its end, and notes it as `deed`.
pub(super) async fn alone<T: Serialize + 'static>(
    agent: Data<Agent>,
    deed: Deed,
    name: VmName,
    work: impl AsyncFnOnce(&Agent, &Volume, &VmName) -> Result<T, VmError> + 'static,
) -> HttpResponse {
    to_the_end(async move {
        let lock = agent.vm_locks.of(&name).await;
        let _one_at_a_time = lock.lock().await;
        let done = work(&agent, &agent.volume()?, &name).await;
        agent.told(&deed, &name, done)
    })
    .await
}

/// Get-VM: every VM on the volume.
#[get("/v1/volume/vms")]
async fn list(agent: Data<Agent>) -> HttpResponse {
    let views = async {
        let phases = phases(&agent).await?;
        let volume = agent.volume()?;
        // One damaged VM hides no other; asked for by name, it says what is wrong.
        let view = |folder: &VmFolder| {
            let view = VmView::of(folder, agent.name(), &phases);
            view.inspect_err(|error| tracing::warn!("{} is left out: {error}", folder.name()))
                .ok()
        };
        Ok(volume.vms()?.iter().filter_map(view).collect::<Vec<_>>())
    };
    answer(views.await)
}

/// Get-VM and Get-VMSecurity.
#[get("/v1/vms/{name}")]
async fn show(agent: Data<Agent>, name: Path<VmName>) -> HttpResponse {
    let view = async {
        let folder = agent.volume()?.vm(&name)?;
        Ok(VmView::of(&folder, agent.name(), &phases(&agent).await?)?)
    };
    answer::<VmView>(view.await)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewVm {
    name: VmName,
    kind: Kind,
    secret: Zeroizing<String>,
}

/// New-VM, Set-VMKeyProtector -NewLocalKeyProtector and Enable-VMTPM, on a host in local mode. `secret` is what the
/// guest's volume holds.
#[post("/v1/vms")]
async fn make_local(agent: Data<Agent>, new: Json<NewVm>) -> HttpResponse {
    let NewVm { name, kind, secret } = new.into_inner();
    alone(agent, Deed::Make, name, async move |agent, volume, name| {
        let made = agent.make_local_vm(volume.clone(), name.clone(), kind, secret);
        let password = made.await?;
        Ok(json!({ "recovery_password": *password.expose_text() }))
    })
    .await
}

/// Stop-VM -TurnOff.
#[post("/v1/vms/{name}/turn-off")]
async fn turn_off(agent: Data<Agent>, name: Path<VmName>) -> HttpResponse {
    alone(agent, Deed::TurnOff, name.into_inner(), async |agent, volume, name| {
        operation::turn_off(agent, volume, name, &mut OsRandom).await
    })
    .await
}

/// Lets the guest count one more, and keeps what its vTPM has written.
#[post("/v1/vms/{name}/tally")]
async fn tally(agent: Data<Agent>, name: Path<VmName>) -> HttpResponse {
    alone(agent, Deed::Tally, name.into_inner(), async |agent, volume, name| {
        operation::tally(agent, volume, name, &mut OsRandom).await
    })
    .await
}

/// Save-VM.
#[post("/v1/vms/{name}/save")]
async fn save(agent: Data<Agent>, name: Path<VmName>) -> HttpResponse {
    alone(agent, Deed::Save, name.into_inner(), async |agent, volume, name| {
        operation::save(agent, volume, name, &mut OsRandom).await
    })
    .await
}

/// Remove-VMSavedState.
#[post("/v1/vms/{name}/discard-saved")]
async fn discard_saved(agent: Data<Agent>, name: Path<VmName>) -> HttpResponse {
    alone(
        agent,
        Deed::DiscardSaved,
        name.into_inner(),
        async |agent, volume, name| operation::discard_saved(agent, volume, name, &mut OsRandom),
    )
    .await
}

/// Restart-VM -Force: a reset.
#[post("/v1/vms/{name}/reset")]
async fn reset(agent: Data<Agent>, name: Path<VmName>) -> HttpResponse {
    alone(agent, Deed::Reset, name.into_inner(), async |agent, volume, name| {
        operation::reset(agent, volume, name).await
    })
    .await
}

/// Set-VMSecurity, Set-VMSecurityPolicy, Enable- and Disable-VMTPM, Set-VMFirmware -EnableSecureBoot.
#[post("/v1/vms/{name}/security")]
async fn change_security(agent: Data<Agent>, name: Path<VmName>, change: Json<Change>) -> HttpResponse {
    alone(
        agent,
        Deed::ChangeSecurity,
        name.into_inner(),
        async move |agent, volume, name| operation::change_security(agent, volume, name, *change, &mut OsRandom).await,
    )
    .await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewCheckpoint {
    name: String,
}

/// Checkpoint-VM.
#[post("/v1/vms/{name}/checkpoints")]
async fn take_checkpoint(agent: Data<Agent>, name: Path<VmName>, new: Json<NewCheckpoint>) -> HttpResponse {
    alone(
        agent,
        Deed::TakeCheckpoint,
        name.into_inner(),
        async move |agent, volume, name| {
            let called = (new.into_inner().name, agent.clock.now().0);
            operation::take_checkpoint(agent, volume, name, called, &mut OsRandom).await
        },
    )
    .await
}

/// Restore-VMCheckpoint.
#[post("/v1/vms/{name}/checkpoints/{id}/apply")]
async fn apply_checkpoint(agent: Data<Agent>, path: Path<(VmName, CheckpointId)>) -> HttpResponse {
    let (name, id) = path.into_inner();
    alone(agent, Deed::ApplyCheckpoint, name, async move |agent, volume, name| {
        operation::apply_checkpoint(agent, volume, name, id, &mut OsRandom).await
    })
    .await
}

/// Remove-VMCheckpoint.
#[delete("/v1/vms/{name}/checkpoints/{id}")]
async fn delete_checkpoint(agent: Data<Agent>, path: Path<(VmName, CheckpointId)>) -> HttpResponse {
    let (name, id) = path.into_inner();
    alone(agent, Deed::DeleteCheckpoint, name, async move |agent, volume, name| {
        operation::delete_checkpoint(agent, volume, name, id, &mut OsRandom).await
    })
    .await
}

/// The VM's owner is lost, its administrator says: this host owns the VM from now on.
#[post("/v1/vms/{name}/take-over")]
async fn take_over(agent: Data<Agent>, name: Path<VmName>) -> HttpResponse {
    alone(agent, Deed::TakeOver, name.into_inner(), async |agent, volume, name| {
        operation::take_over(agent, volume, name)
    })
    .await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Export {
    destination: PathBuf,
}

/// Export-VM: to a folder of the VM's name below `destination`, on this host.
#[post("/v1/vms/{name}/export")]
async fn export(agent: Data<Agent>, name: Path<VmName>, to: Json<Export>) -> HttpResponse {
    alone(
        agent,
        Deed::Export,
        name.into_inner(),
        async move |agent, volume, name| {
            let exported = operation::export(agent, volume, name, &to.destination)?;
            Ok(json!({ "folder": exported.path() }))
        },
    )
    .await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Import {
    source: PathBuf,
    #[serde(default)]
    name: Option<VmName>,
}

/// Import-VM -Copy: from the folder of an exported VM, on this host.
#[post("/v1/imports")]
async fn import(agent: Data<Agent>, from: Json<Import>) -> HttpResponse {
    to_the_end(async move {
        let imported = operation::import(&**agent, &agent.volume()?, &from.source, from.name.as_ref())?;
        Ok(json!({ "name": imported.name() }))
    })
    .await
}

/// Get-VMKeyProtector.
#[get("/v1/vms/{name}/protector")]
async fn get_protector(agent: Data<Agent>, name: Path<VmName>) -> HttpResponse {
    let protector = || {
        let folder = agent.volume()?.vm(&name)?;
        Ok::<_, VmError>(folder.read_generation(&folder.current()?.generation)?.protector)
    };
    answer(protector().map(|protector| json!({ "protector": Blob(protector) })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewProtector {
    protector: Blob,
}

/// Set-VMKeyProtector -KeyProtector.
#[put("/v1/vms/{name}/protector")]
async fn set_protector(agent: Data<Agent>, name: Path<VmName>, new: Json<NewProtector>) -> HttpResponse {
    alone(
        agent,
        Deed::SetProtector,
        name.into_inner(),
        async move |agent, volume, name| operation::set_protector(agent, volume, name, &new.protector.0, &mut OsRandom),
    )
    .await
}

/// Set-VMKeyProtector -NewLocalKeyProtector, on a host in local mode.
#[post("/v1/vms/{name}/protector/new-local")]
async fn new_local_protector(agent: Data<Agent>, name: Path<VmName>) -> HttpResponse {
    alone(
        agent,
        Deed::SetProtector,
        name.into_inner(),
        async |agent, volume, name| {
            let folder = volume.vm(name)?;
            let present = folder.read_generation(&folder.current()?.generation)?.protector;
            let keys = agent.own_guardians(present).await?;
            operation::new_local_protector(agent, volume, name, &keys, &mut OsRandom)
        },
    )
    .await
}

/// Set-VMKeyProtector -RestoreLastKnownGoodKeyProtector.
#[post("/v1/vms/{name}/protector/restore")]
async fn restore_protector(agent: Data<Agent>, name: Path<VmName>) -> HttpResponse {
    alone(
        agent,
        Deed::SetProtector,
        name.into_inner(),
        async |agent, volume, name| operation::restore_protector(agent, volume, name, &mut OsRandom),
    )
    .await
}

/// A way into the guest, where the VM's kind and switches allow it.
#[get("/v1/vms/{name}/channels/{channel}")]
async fn look(agent: Data<Agent>, path: Path<(VmName, Channel)>) -> HttpResponse {
    let (name, channel) = path.into_inner();
    let shown = async {
        let vm = agent.volume()?.vm(&name)?.current()?.vm_id;
        agent.store(VmRequest::Look { vm, channel }).await
    };
    let deed = Deed::Look {
        channel: format!("{channel:?}"),
    };
    answer(agent.told(&deed, &name, shown.await))
}

async fn phases(agent: &Agent) -> Result<Vec<(crate::vm::VmId, VmPhase)>, VmError> {
    // A host without a VBS store runs none.
    if agent.args.store.is_none() {
        return Ok(Vec::new());
    }
    match agent.store(VmRequest::List).await? {
        VmReply::List { vms } => Ok(vms),
        _ => Err(VmError::Store("it answered something else than was asked".to_owned())),
    }
}
