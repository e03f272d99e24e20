//! The agent's control API: JSON over HTTP on loopback, for the host's administrator.
//! A handler passes on; a refusal is `{"error": "…"}`.

use std::{fs, io::Write, sync::Arc};

use actix_web::{
    App, HttpResponse, HttpServer, Responder, get, post,
    web::{Data, Path},
};
use serde_json::json;

use super::{Agent, Outcome, attest::host_key};
use crate::store::protocol::{StoreReply, StoreRequest};

/// Serves until the process is killed; prints `ready ADDRESS` when it listens.
pub(super) async fn serve(agent: Arc<Agent>) -> anyhow::Result<()> {
    let listen = agent.args.listen;
    if !listen.ip().is_loopback() && !agent.args.allow_remote {
        anyhow::bail!("the agent's API has no authentication: {listen} is not loopback (--allow-remote permits it)");
    }
    let data = Data::from(agent);
    let server = HttpServer::new(move || {
        App::new()
            .app_data(data.clone())
            .service(attest)
            .service(status)
            .service(artefact)
            .service(store)
            .configure(super::vm::routes)
    })
    .workers(1)
    .bind(listen)?;
    for address in server.addrs() {
        println!("ready {address}");
    }
    std::io::stdout().flush()?;
    server.run().await?;
    Ok(())
}

/// Test-HgsClientConfiguration: attests, whatever certificate is at hand.
#[post("/v1/attest")]
async fn attest(agent: Data<Agent>) -> impl Responder {
    let outcome = agent.attest().await;
    HttpResponse::Ok().json(configuration(&agent, &outcome).await)
}

/// Get-HgsClientConfiguration without its attempt.
#[get("/v1/status")]
async fn status(agent: Data<Agent>) -> impl Responder {
    let outcome = agent.outcome().await;
    HttpResponse::Ok().json(configuration(&agent, &outcome).await)
}

/// What the host's administrator hands over: `ek.cer`, `boot.log` (the TPM baseline), `SIPolicy.p7b`, `host-key.pub` (SubjectPublicKeyInfo), `health.cer`, `health-signing.cer`.
#[get("/v1/artefacts/{name}")]
async fn artefact(agent: Data<Agent>, name: Path<String>) -> impl Responder {
    let dir = &agent.args.dir;
    let found = match name.as_str() {
        file @ ("ek.cer" | "boot.log" | "SIPolicy.p7b") => fs::read(dir.join(file)).ok(),
        "host-key.pub" => host_key(dir).ok().map(|key| key.public().spki_der()),
        "health.cer" => {
            let state = agent.state.lock().await;
            state.health.as_ref().map(|h| h.encryption.der().to_vec())
        }
        "health-signing.cer" => agent.signing_certificate().await,
        _ => None,
    };
    match found {
        Some(bytes) => HttpResponse::Ok().content_type("application/octet-stream").body(bytes),
        None => HttpResponse::NotFound().json(json!({ "error": format!("this host has no artefact {name}") })),
    }
}

/// The VBS store's public keys and remarks.
#[get("/v1/store")]
async fn store(agent: Data<Agent>) -> impl Responder {
    match agent.ask_store(StoreRequest::Describe).await {
        Ok(StoreReply::Refused { reason }) | Err(reason) => {
            HttpResponse::ServiceUnavailable().json(json!({ "error": reason }))
        }
        Ok(description) => HttpResponse::Ok().json(description),
    }
}

/// The object that Get-HgsClientConfiguration prints, with what it does not show.
async fn configuration(agent: &Agent, outcome: &Outcome) -> serde_json::Value {
    let state = agent.state.lock().await;
    let certificate = state.health.as_ref().map(|health| {
        let (not_before, not_after) = health.encryption.validity();
        json!({
            "serial": health.encryption.serial(),
            "not_before": not_before.to_string(),
            "not_after": not_after.to_string(),
            "seconds_left": not_after.seconds_since(agent.clock.now()),
        })
    });
    let passed = outcome.status == super::AttestationStatus::Passed;
    let mode = match agent.args.attestation_url {
        Some(_) => "HostGuardianService",
        None => "Local",
    };
    json!({
        "host": agent.args.name,
        "IsHostGuarded": passed,
        "Mode": mode,
        "KeyProtectionServerUrl": agent.args.key_protection_url,
        "AttestationServerUrl": agent.args.attestation_url,
        "AttestationStatus": outcome.status,
        "AttestationStatusCode": outcome.status.code(),
        "AttestationSubstatus": outcome.substatus.text(),
        "AttestationSubstatusBits": outcome.substatus.bits,
        "error": outcome.error,
        "failed_policies": outcome.substatus.failed_policies,
        "detail": outcome.detail,
        "certificate": certificate,
    })
}
