//! Initialize-ShieldedVM in the agent's control API, and a start with the recovery password of a VM's volume.

use actix_web::{
    HttpResponse, post,
    web::{Data, Json, Path},
};
use hgs_protocol::env::OsRandom;

use serde::Deserialize;

use super::{Agent, deeds::Deed, life::alone, to_the_end};
use crate::vm::{
    VmName,
    operation::{self, NewShieldedVm, NewVmOf},
    request::Typed,
};

/// Makes a VM of a template on the host's volume and shielding data.
#[post("/v1/vms/{name}/provision")]
pub(super) async fn provision(agent: Data<Agent>, name: Path<VmName>, new: Json<NewShieldedVm>) -> HttpResponse {
    alone(
        agent,
        Deed::Provision,
        name.into_inner(),
        async move |agent, volume, name| {
            operation::provision(agent, volume, name, new.into_inner(), &mut OsRandom).await
        },
    )
    .await
}

/// Makes a VM with an empty disk under the key protector that its owner has made.
#[post("/v1/vms/{name}/create")]
pub(super) async fn create(agent: Data<Agent>, name: Path<VmName>, new: Json<NewVmOf>) -> HttpResponse {
    alone(
        agent,
        Deed::Create,
        name.into_inner(),
        async move |agent, volume, name| operation::create(agent, volume, name, new.into_inner(), &mut OsRandom).await,
    )
    .await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AtItsConsole {
    recovery_password: Typed,
}

/// Start-VM, with the recovery password typed at the VM's console. Not for a shielded VM.
#[post("/v1/vms/{name}/recover")]
pub(super) async fn recover(agent: Data<Agent>, name: Path<VmName>, at: Json<AtItsConsole>) -> HttpResponse {
    to_the_end(async move {
        let lock = agent.vm_locks.of(&name).await;
        let _one_at_a_time = lock.lock().await;
        let volume = agent.volume()?;
        let typed = Some(at.into_inner().recovery_password);
        let done = operation::power_on_typing(&**agent, &volume, &name, typed, &mut OsRandom).await;
        agent.told(&Deed::started(&done), &name, done)
    })
    .await
}
