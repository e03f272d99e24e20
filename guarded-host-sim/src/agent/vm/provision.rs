//! Initialize-ShieldedVM in the agent's control API.

use actix_web::{
    HttpResponse, post,
    web::{Data, Json, Path},
};
use hgs_protocol::env::OsRandom;

use super::{Agent, life::alone};
use crate::vm::{
    VmName,
    operation::{self, NewShieldedVm},
};

/// Makes a VM of a template on the host's volume and shielding data.
#[post("/v1/vms/{name}/provision")]
pub(super) async fn provision(agent: Data<Agent>, name: Path<VmName>, new: Json<NewShieldedVm>) -> HttpResponse {
    alone(agent, name.into_inner(), async move |agent, volume, name| {
        operation::provision(agent, volume, name, new.into_inner(), &mut OsRandom).await
    })
    .await
}
