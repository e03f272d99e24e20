//! VMs in the agent's control API: power-on, power-off, live migration, the owner's challenge; the rest in `life`.
//!
//! The agent relays between volume, store and KPS ([`crate::vm::operation`] has the order). Hosts
//! trust each other for nothing: a target opens a package only with keys that it obtained itself.

pub(super) mod deeds;
mod life;
mod provision;

use std::{collections::HashMap, sync::Arc};

use actix_web::{
    HttpResponse,
    error::{InternalError, JsonPayloadError},
    get, post,
    web::{Data, Json, JsonConfig, Path, ServiceConfig},
};
use hgs_protocol::{
    env::OsRandom,
    wire::kps::{ErrorMessage, ServiceVersion},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Mutex;

use self::deeds::Deed;
use super::{Agent, configuration::Server, notice::Notice};
use crate::{
    store::protocol::{StoreReply, StoreRequest},
    vm::{
        VmName,
        guest::GuestReport,
        operation::{self, Host, MigrationOffer, Target, VmError},
        package::{LARGEST_PACKAGE, PackageError},
        request::{Blob, VmReply, VmRequest, in_base64},
        volume::Volume,
    },
};

/// One operation at a time per VM.
#[derive(Default)]
pub(super) struct VmLocks(Mutex<HashMap<VmName, Arc<Mutex<()>>>>);

impl VmLocks {
    async fn of(&self, name: &VmName) -> Arc<Mutex<()>> {
        self.0.lock().await.entry(name.clone()).or_default().clone()
    }
}

/// The routes about VMs, below `/v1`.
pub(super) fn routes(config: &mut ServiceConfig) {
    config
        .app_data(JsonConfig::default().limit(LARGEST_OFFER).error_handler(|error, _| {
            let reason = match error {
                JsonPayloadError::Overflow { .. } | JsonPayloadError::OverflowKnownLength { .. } => {
                    PackageError::TooLarge.to_string()
                }
                other => other.to_string(),
            };
            let reply = HttpResponse::BadRequest().json(json!({ "error": reason }));
            InternalError::from_response(reason, reply).into()
        }))
        .service(list)
        .service(power_on)
        .service(power_off)
        .service(migrate)
        .service(receive)
        .service(prove)
        .service(provision::provision)
        .service(provision::create)
        .service(provision::recover)
        .configure(life::routes);
}

/// The VMs whose keys this host's store holds.
#[get("/v1/vms")]
async fn list(agent: Data<Agent>) -> HttpResponse {
    answer(agent.store(VmRequest::List).await)
}

/// Start-VM.
#[post("/v1/vms/{name}/power-on")]
async fn power_on(agent: Data<Agent>, name: Path<VmName>) -> HttpResponse {
    to_the_end(async move {
        let lock = agent.vm_locks.of(&name).await;
        let _one_at_a_time = lock.lock().await;
        let volume = agent.volume()?;
        let done = operation::power_on(&**agent, &volume, &name, &mut OsRandom).await;
        agent.told(&Deed::started(&done), &name, done)
    })
    .await
}

/// Stop-VM, in an orderly way.
#[post("/v1/vms/{name}/power-off")]
async fn power_off(agent: Data<Agent>, name: Path<VmName>) -> HttpResponse {
    to_the_end(async move {
        let lock = agent.vm_locks.of(&name).await;
        let _one_at_a_time = lock.lock().await;
        let volume = agent.volume()?;
        let done = operation::power_off(&**agent, &volume, &name, &mut OsRandom).await;
        agent.told(&Deed::ShutDown, &name, done)
    })
    .await
}

/// Move-VM to the host `target`, whose agent answers at `address`.
#[post("/v1/vms/{name}/migrate")]
async fn migrate(agent: Data<Agent>, name: Path<VmName>, target: Json<Target>) -> HttpResponse {
    to_the_end(async move {
        let lock = agent.vm_locks.of(&name).await;
        let _one_at_a_time = lock.lock().await;
        let volume = agent.volume()?;
        let done = operation::migrate(&**agent, &volume, &name, &target, &mut OsRandom).await;
        let target = target.into_inner().target;
        agent.told(&Deed::MigrateAway { target }, &name, done)
    })
    .await
}

/// Another host offers a VM.
#[post("/v1/migrations")]
async fn receive(agent: Data<Agent>, offer: Json<MigrationOffer>) -> HttpResponse {
    to_the_end(async move {
        let lock = agent.vm_locks.of(&offer.vm).await;
        let _one_at_a_time = lock.lock().await;
        let volume = agent.volume()?;
        let name = offer.vm.clone();
        let done = operation::receive(&**agent, &volume, offer.into_inner(), &mut OsRandom).await;
        agent.told(&Deed::Receive, &name, done)
    })
    .await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Challenge {
    challenge: Blob,
}

/// The owner's challenge to the guest.
#[post("/v1/vms/{name}/prove")]
async fn prove(agent: Data<Agent>, name: Path<VmName>, asked: Json<Challenge>) -> HttpResponse {
    let current = agent.volume().and_then(|volume| Ok(volume.vm(&name)?.current()?));
    answer(match current {
        Ok(current) => {
            let request = VmRequest::Prove {
                vm: current.vm_id,
                challenge: asked.into_inner().challenge,
            };
            agent.store(request).await
        }
        Err(error) => Err(error),
    })
}

impl Agent {
    /// Notes what was done to the VM `name`, or why it was not, and gives that back.
    fn told<T>(&self, deed: &Deed, name: &VmName, done: Result<T, VmError>) -> Result<T, VmError> {
        let current = |volume: Volume| Ok::<_, VmError>(volume.vm(name)?.current()?);
        let current = self.volume().and_then(current).ok();
        self.notice(&Notice::Vm {
            deed,
            name,
            id: current.map(|current| current.vm_id),
            refused: done.as_ref().err(),
        });
        done
    }

    fn volume(&self) -> Result<Volume, VmError> {
        let path = self.args.volume.as_deref().ok_or_else(|| {
            VmError::Unreachable(format!(
                "{} is attached to no volume: start it with --volume",
                self.args.name
            ))
        })?;
        Ok(Volume::open(path)?)
    }
}

impl Host for Agent {
    fn name(&self) -> &str {
        &self.args.name
    }

    fn has_fallback(&self) -> bool {
        self.configuration().servers(Server::Fallback).is_some()
    }

    async fn health_certificate(&self, server: Server, fresh: bool) -> Result<Vec<u8>, VmError> {
        Agent::health_certificate(self, server, fresh)
            .await
            .map_err(|outcome| match outcome.no_contact {
                true => VmError::NoContact(outcome.detail),
                false => VmError::Attestation(outcome.detail),
            })
    }

    async fn roll(&self, server: Server, request: Vec<u8>) -> Result<Vec<u8>, VmError> {
        // The base URL ends in `/KeyProtection` already.
        let path = ServiceVersion::V2.roll_path();
        let operation = path.split('/').skip(2).collect::<Vec<_>>().join("/");
        let answer = self.key_protection(server, &operation, request).await;
        let (status, body) = answer.map_err(|error| match error.is_no_contact() {
            true => VmError::NoContact(error.to_string()),
            false => VmError::Unreachable(error.to_string()),
        })?;
        if status < 500 {
            self.key_protection_answered(server).await;
        }
        if status == 200 {
            return Ok(body);
        }
        let error = ErrorMessage::parse(&body);
        Err(match (status, error) {
            // A service that cannot at the moment, or a proxy before it, refuses nothing.
            (500.., Ok(error)) => VmError::NoContact(format!("HTTP {status}, {}: {}", error.code, error.message)),
            (500.., Err(_)) => VmError::NoContact(format!("the key protection service answered HTTP {status}")),
            (_, Ok(error)) => VmError::Kps {
                code: error.code,
                message: error.message,
            },
            (_, Err(_)) => VmError::Unreachable(format!("the key protection service answered HTTP {status}")),
        })
    }

    async fn roll_locally(&self, protector: &[u8]) -> Result<Option<Vec<u8>>, VmError> {
        match self.is_local() {
            true => self.roll_by_own_guardian(protector).await.map(Some),
            false => Ok(None),
        }
    }

    async fn store(&self, request: VmRequest) -> Result<VmReply, VmError> {
        match self.ask_store(StoreRequest::Vm(request)).await {
            Ok(StoreReply::Vm(VmReply::Refused { reason }) | StoreReply::Refused { reason }) => {
                Err(VmError::Store(reason))
            }
            Ok(StoreReply::Vm(reply)) => Ok(reply),
            Ok(_) => Err(VmError::Store("it answered something else than was asked".to_owned())),
            Err(reason) => Err(VmError::Unreachable(reason)),
        }
    }

    async fn offer(&self, target: &Target, offer: &MigrationOffer) -> Result<GuestReport, VmError> {
        let lost = |reason: String| VmError::Unreachable(reason);
        let url = format!("{}/v1/migrations", target.address.trim_end_matches('/'));
        let body = serde_json::to_vec(offer).map_err(|e| lost(e.to_string()))?;
        let answer = self
            .client
            .post(&url, "application/json", body, LARGEST_VERDICT)
            .await
            .map_err(|e| lost(e.to_string()))?;
        if answer.status == 200 {
            return serde_json::from_slice(&answer.body).map_err(|e| lost(e.to_string()));
        }
        let refusal: Option<Refusal> = serde_json::from_slice(&answer.body).ok();
        Err(VmError::TargetRefused {
            target: target.target.clone(),
            reason: refusal.map_or_else(|| format!("HTTP {}", answer.status), |r| r.error),
        })
    }
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
}

/// Runs an operation on a VM to its end, also when whoever asked has hung up: a handler that is
/// dropped half-way would leave keys in the store that nothing starts or forgets.
async fn to_the_end<T: Serialize + 'static>(
    operation: impl Future<Output = Result<T, VmError>> + 'static,
) -> HttpResponse {
    match actix_web::rt::spawn(operation).await {
        Ok(result) => answer(result),
        Err(error) => answer::<T>(Err(VmError::Unreachable(format!("the operation ended early: {error}")))),
    }
}

/// 200 with what was asked for, or a refusal whose status says whose it is.
fn answer<T: Serialize>(result: Result<T, VmError>) -> HttpResponse {
    match result {
        Ok(value) => HttpResponse::Ok().json(value),
        Err(error) => {
            tracing::info!("refused: {error}");
            let mut reply = match &error {
                VmError::Unreachable(_) | VmError::NoContact(_) | VmError::NotOffline { .. } => {
                    HttpResponse::BadGateway()
                }
                VmError::Attestation(_) | VmError::Kps { .. } => HttpResponse::Forbidden(),
                VmError::Nothing(_) => HttpResponse::NotFound(),
                VmError::Volume(_)
                | VmError::NotOwner { .. }
                | VmError::Store(_)
                | VmError::Offer(_)
                | VmError::Protector(_)
                | VmError::InUse(_)
                | VmError::Saved(_)
                | VmError::TargetRefused { .. } => HttpResponse::Conflict(),
            };
            reply.json(json!({ "error": error.to_string() }))
        }
    }
}

/// A package in base64 with what stands around it.
const LARGEST_OFFER: usize = in_base64(LARGEST_PACKAGE) + (64 << 10);
/// A guest's report or a refusal.
const LARGEST_VERDICT: usize = 64 << 10;
