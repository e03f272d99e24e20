//! What an administrator looks back at: a host's history, and what changed since a baseline. Certifies nothing.

use actix_web::{
    HttpResponse,
    web::{self, Data, Json, Path, Query},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hgs_protocol::wire::boot_log::BootLog;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Answer, App, Problem, Refused, added, invalid, valid_name};
use crate::{
    baseline::TpmBaseline,
    compare::compare,
    evidence::{self, Evidence, PastDecision, Subject},
    store::{Kind, PolicyVersion, Registered},
};

/// Keeps a baseline's own log, so that hosts can be compared with it.
pub(super) async fn keep_baseline(app: &App, name: &str, log: &[u8]) -> Result<(), sqlx::Error> {
    let database = app.store.database();
    evidence::keep(database, Subject::Baseline, name, &Evidence::of_log(log), app.env.now()).await
}

/// Which part of a history.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Back {
    /// Only decisions older than this cursor
    before: Option<String>,
    /// At most so many, 1 to 500; 50 unless given
    limit: Option<i64>,
}

/// A host's attestations, newest first
#[utoipa::path(get, path = "/tpm-hosts/{name}/attestations", params(("name" = String, Path), Back),
    responses((status = 200, body = [PastDecision])))]
pub(super) async fn history(app: Data<App>, name: Path<String>, back: Query<Back>) -> Answer {
    let most = back.limit.unwrap_or(50).clamp(1, 500);
    let rows = evidence::history(app.store.database(), &name, back.before.as_deref(), most).await?;
    Ok(HttpResponse::Ok().json(rows))
}

async fn of_host(app: &App, name: &str) -> Result<Evidence, Problem> {
    let found = evidence::last(app.store.database(), Subject::Host, name).await?;
    let text = || format!("a boot log of {name}, which is kept when a registered host attests,");
    found
        .map(|(evidence, _)| evidence)
        .ok_or_else(|| Problem::Missing(text()))
}

/// A host's last boot log
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct LastLog {
    host: String,
    /// Base64
    log: String,
}

/// A host's last boot log
#[utoipa::path(get, path = "/tpm-hosts/{name}/log", params(("name" = String, Path)),
    responses((status = 200, body = LastLog), (status = 404, body = Refused)))]
pub(super) async fn last_log(app: Data<App>, name: Path<String>) -> Answer {
    let log = STANDARD.encode(of_host(&app, &name).await?.log());
    let host = name.into_inner();
    Ok(HttpResponse::Ok().json(LastLog { host, log }))
}

/// What a host is compared with.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Against {
    /// Name of a registered baseline
    baseline: String,
}

fn read_log(evidence: &Evidence) -> Result<BootLog, Problem> {
    BootLog::parse(evidence.log()).map_err(|error| Problem::Conflict(format!("the kept log does not parse: {error}")))
}

/// What changed, event by event, from a registered baseline to the host's last boot log
#[utoipa::path(get, path = "/tpm-hosts/{name}/compare", params(("name" = String, Path), Against),
    responses((status = 200, description = "same, differingPcrs, notes, changes"), (status = 404, body = Refused)))]
pub(super) async fn drift(app: Data<App>, name: Path<String>, against: Query<Against>) -> Answer {
    let after = read_log(&of_host(&app, &name).await?)?;
    let baseline = &against.baseline;
    let before = evidence::last(app.store.database(), Subject::Baseline, baseline).await?;
    let (before, _) = before.ok_or_else(|| Problem::Missing(format!("a baseline {baseline} with its log")))?;
    let before = read_log(&before)?;
    let comparison = web::block(move || compare(&before, &after)).await.map_err(invalid)?;
    Ok(HttpResponse::Ok().json(json!({ "host": *name, "baseline": baseline, "comparison": comparison })))
}

/// How a host's last boot log is registered.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Adopted {
    /// The new baseline's name
    name: String,
    /// `v1` or `v2`, the default
    #[serde(default)]
    policy_version: PolicyVersion,
    /// Keep it without holding any host against it yet
    #[serde(default)]
    stage: bool,
}

/// Register a host's last boot log as a new baseline
#[utoipa::path(post, path = "/tpm-hosts/{name}/baseline", params(("name" = String, Path)), request_body = Adopted,
    responses((status = 201), (status = 200, description = "registered before"), (status = 404, body = Refused),
    (status = 409, body = Refused)))]
pub(super) async fn adopt(app: Data<App>, host: Path<String>, new: Json<Adopted>) -> Answer {
    let name = valid_name(&new.name)?;
    let evidence = of_host(&app, &host).await?;
    let baseline = TpmBaseline::from_log(&name, evidence.log())
        .map_err(|error| Problem::Conflict(format!("the host's last log is not usable as a baseline: {error}")))?;
    let row = Registered {
        name: name.clone(),
        version: Some(new.policy_version),
        staged: new.stage,
        body: serde_json::to_string(&baseline).map_err(invalid)?,
    };
    let outcome = app.store.register(Kind::TpmBaseline, &row).await?;
    let view = json!({ "name": name, "digest": hex::encode(baseline.digest()), "from_host": *host });
    let answer = added(&app, outcome, &name, view)?;
    keep_baseline(&app, &name, evidence.log()).await?;
    Ok(answer)
}
