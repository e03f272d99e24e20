//! The agent's control API: JSON over HTTP on loopback, for the host's administrator.
//! A handler passes on; a refusal is `{"error": "…"}`.

use std::{fs, io::Write, sync::Arc};

use actix_web::{
    App, HttpRequest, HttpResponse, HttpResponseBuilder, HttpServer, Responder, delete, get, post, put,
    web::{Data, Json, Path},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hgs_service::events::Filter;
use serde_json::json;

use super::{
    Agent, Choice, TestError,
    attest::{forget_host_key, host_key, set_host_key},
    configuration::{Change, ConfigurationError},
};
use crate::store::protocol::{StoreReply, StoreRequest};

/// Serves until the process is killed; prints `ready ADDRESS` when it listens.
pub(super) async fn serve(agent: Arc<Agent>) -> anyhow::Result<()> {
    let listen = agent.args.listen;
    if !listen.ip().is_loopback() && !agent.args.allow_remote {
        anyhow::bail!("the agent's API has no authentication: {listen} is not loopback (--allow-remote permits it)");
    }
    let data = Data::from(agent.clone());
    let server = HttpServer::new(move || {
        App::new()
            .app_data(data.clone())
            .service(attest)
            .service(status)
            .service(get_configuration)
            .service(set_configuration)
            .service(test_configuration)
            .service(artefact)
            .service(new_host_key)
            .service(remove_host_key)
            .service(store)
            .service(events)
            .configure(super::vm::routes)
    })
    .workers(1)
    .bind(listen)?;
    for address in server.addrs() {
        println!("ready {address}");
    }
    std::io::stdout().flush()?;
    tokio::select! {
        ended = server.run() => ended?,
        () = agent.keep_up_forever() => {}
    }
    Ok(())
}

/// Attests, whatever certificate is at hand.
#[post("/v1/attest")]
async fn attest(agent: Data<Agent>) -> impl Responder {
    let outcome = agent.attest().await;
    HttpResponse::Ok().json(agent.view(outcome))
}

/// Get-HgsClientConfiguration without its attempt.
#[get("/v1/status")]
async fn status(agent: Data<Agent>) -> impl Responder {
    let outcome = agent.outcome();
    HttpResponse::Ok().json(agent.view(outcome))
}

/// Get-HgsClientConfiguration: attests, unless a certificate is at hand that is not due yet.
#[get("/v1/client-configuration")]
async fn get_configuration(agent: Data<Agent>) -> impl Responder {
    let outcome = agent.attempt().await;
    HttpResponse::Ok().json(agent.view(outcome))
}

/// Set-HgsClientConfiguration: keeps the configuration and attests by it.
#[put("/v1/client-configuration")]
async fn set_configuration(agent: Data<Agent>, change: Json<Change>) -> impl Responder {
    match agent.configure(&change).await {
        Ok(outcome) => HttpResponse::Ok().json(agent.view(outcome)),
        Err(error @ ConfigurationError::File { .. }) => refusal(HttpResponse::InternalServerError(), &error),
        Err(error) => refusal(HttpResponse::BadRequest(), &error),
    }
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Test {
    #[serde(rename = "use")]
    choice: Choice,
}

/// Test-HgsClientConfiguration: attests, whatever certificate is at hand, with one HGS if so asked.
#[post("/v1/client-configuration/test")]
async fn test_configuration(agent: Data<Agent>, asked: Json<Test>) -> impl Responder {
    match agent.test(asked.choice).await {
        Ok(outcome) => HttpResponse::Ok().json(agent.view(outcome)),
        Err(error @ TestError::NoFallback) => refusal(HttpResponse::Conflict(), &error),
        Err(error @ TestError::Unreachable { .. }) => refusal(HttpResponse::BadGateway(), &error),
    }
}

fn refusal(mut reply: HttpResponseBuilder, error: &dyn std::error::Error) -> HttpResponse {
    reply.json(json!({ "error": error.to_string() }))
}

/// What the host's administrator hands over: `ek.cer`, `boot.log` (the TPM baseline), `SIPolicy.p7b`, `host-key.pub` (SubjectPublicKeyInfo), `health.cer`, `health-signing.cer`.
#[get("/v1/artefacts/{name}")]
async fn artefact(agent: Data<Agent>, name: Path<String>) -> impl Responder {
    let dir = &agent.args.dir;
    let found = match name.as_str() {
        file @ ("ek.cer" | "boot.log" | "SIPolicy.p7b") => fs::read(dir.join(file)).ok(),
        "host-key.pub" => host_key(dir).ok().map(|key| key.public().spki_der()),
        "health.cer" => {
            let health = agent.snapshot().health;
            health.map(|health| health.encryption.der().to_vec())
        }
        "health-signing.cer" => agent.signing_certificate(),
        _ => None,
    };
    match found {
        Some(bytes) => HttpResponse::Ok().content_type("application/octet-stream").body(bytes),
        None => HttpResponse::NotFound().json(json!({ "error": format!("this host has no artefact {name}") })),
    }
}

/// Get-WinEvent: the host's events, newest first; `id`, `level`, `since`, `newest` and `before` narrow them down.
#[get("/v1/events")]
async fn events(agent: Data<Agent>, request: HttpRequest) -> HttpResponse {
    let filter = Filter::of_url(request.query_string());
    match filter.and_then(|filter| agent.events.read(&filter)) {
        Ok(events) => HttpResponse::Ok().json(events),
        Err(error) => refusal(HttpResponse::BadRequest(), &error),
    }
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
struct NewHostKey {
    /// PKCS#8, base64; without it a new key is made.
    private_key: Option<zeroize::Zeroizing<String>>,
}

/// Set-HgsClientHostKey: another host key, made here or given.
#[put("/v1/host-key")]
async fn new_host_key(agent: Data<Agent>, new: Json<NewHostKey>) -> impl Responder {
    let given = match new.private_key.as_ref().map(|text| STANDARD.decode(text.as_bytes())) {
        Some(Err(_)) => return HttpResponse::BadRequest().json(json!({ "error": "the private key is not base64" })),
        Some(Ok(bytes)) => Some(zeroize::Zeroizing::new(bytes)),
        None => None,
    };
    match set_host_key(&agent.args.dir, given.as_ref().map(|bytes| bytes.as_slice())) {
        Ok(()) => HttpResponse::Ok().json(json!({})),
        Err(error) => HttpResponse::BadRequest().json(json!({ "error": error.to_string() })),
    }
}

/// Remove-HgsClientHostKey. A host without one makes one when it next attests by it.
#[delete("/v1/host-key")]
async fn remove_host_key(agent: Data<Agent>) -> impl Responder {
    match forget_host_key(&agent.args.dir) {
        Ok(()) => HttpResponse::Ok().json(json!({})),
        Err(error) => HttpResponse::InternalServerError().json(json!({ "error": error.to_string() })),
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
