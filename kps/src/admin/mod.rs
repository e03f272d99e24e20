//! `/admin/v1` of the key protection service: certificates, attestation signers, settings, the audit
//! chain, backup, and the OpenAPI document of it all. The listener has checked the token and its role;
//! every change is an audit row before it is made. Repeating a request changes nothing more.

mod certificates;
mod settings;
mod signers;

use actix_web::{HttpRequest, HttpResponse, web};
use hgs_service::{
    audit::{self, Entry, Head},
    events,
    serve::problem,
    tokens::Holder,
};
use serde::{Deserialize, Serialize};
use utoipa::{OpenApi, ToSchema};

use crate::{App, events::of_row};

/// The routes, below `/admin/v1`.
pub fn routes(service: &mut web::ServiceConfig) {
    service
        .app_data(web::JsonConfig::default().limit(MAX_BODY).error_handler(bad_body))
        .route("/openapi.json", web::get().to(openapi))
        .route("/attestation-signers", web::get().to(signers::list))
        .route("/attestation-signers", web::post().to(signers::add))
        .route("/attestation-signers/policy", web::put().to(signers::deny_all))
        .route("/attestation-signers/{thumbprint}", web::delete().to(signers::remove))
        .route("/attestation-signers/{thumbprint}/policy", web::put().to(signers::deny))
        .route("/certificates", web::get().to(certificates::list))
        .route("/certificates", web::post().to(certificates::add))
        .route(
            "/certificates/{type}/{thumbprint}",
            web::patch().to(certificates::change),
        )
        .route(
            "/certificates/{type}/{thumbprint}",
            web::delete().to(certificates::remove),
        )
        .route("/settings", web::get().to(settings::get))
        .route("/settings", web::put().to(settings::put))
        .route("/events", web::get().to(list_events))
        .route("/audit", web::get().to(list_audit))
        .route("/audit/verify", web::get().to(verify_audit))
        .route("/audit/verify", web::post().to(verify_audit_against));
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Key protection service, administration",
        description = "Every call needs `Authorization: Bearer TOKEN`; a reviewer's token reads only. \
                       Refusals are `{\"error\": \"what is wrong and what to do\"}`.",
        version = "1"
    ),
    servers((url = "/admin/v1")),
    paths(
        signers::list, signers::add, signers::remove, signers::deny, signers::deny_all,
        certificates::list, certificates::add, certificates::change, certificates::remove,
        settings::get, settings::put, list_events, list_audit, verify_audit, verify_audit_against,
    )
)]
struct Document;

async fn openapi() -> HttpResponse {
    HttpResponse::Ok().json(Document::openapi())
}

/// The body of a refusal.
#[derive(ToSchema, Serialize)]
struct Problem {
    /// What is wrong and what to do.
    error: String,
}

#[derive(Deserialize, utoipa::IntoParams)]
struct Page {
    /// Rows at most, 1 to 1000; 100 where not given.
    limit: Option<i64>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Kept {
    /// Heads that were kept outside the database: `writer`, `sequence`, `mac`.
    #[schema(value_type = Vec<Object>)]
    heads: Vec<Head>,
}

/// Events, newest first: releases and refusals, signers, certificates, settings, administration, trouble. The header
/// `Next-Before` names where the next page begins.
#[utoipa::path(get, path = "/events", tag = "audit",
    params(("id" = Option<String>, Query, description = "Ids, separated by commas"),
        ("level" = Option<String>, Query, description = "Critical, Error, Warning, Information or Verbose; worse ones come with it"),
        ("since" = Option<String>, Query, description = "RFC 3339 in UTC, or seconds since 1970"),
        ("newest" = Option<u32>, Query, description = "At most so many, 1 to 1000; 100 unless given"),
        ("before" = Option<String>, Query, description = "Only those before this RecordId, as the header Next-Before gives it")),
    responses((status = 200, description = "Newest first", body = [Object]),
              (status = 400, description = "No such filter", body = Problem)))]
async fn list_events(app: web::Data<App>, request: HttpRequest) -> HttpResponse {
    events::recorded::answer(app.store.database(), request.query_string(), of_row).await
}

/// The newest audit rows.
#[utoipa::path(get, path = "/audit", tag = "audit", params(Page),
    responses((status = 200, description = "Newest first", body = [Object])))]
async fn list_audit(app: web::Data<App>, page: web::Query<Page>) -> HttpResponse {
    let limit = page.limit.unwrap_or(100).clamp(1, 1000);
    match audit::newest(app.store.database(), None, limit).await {
        Ok(rows) => HttpResponse::Ok().json(rows),
        Err(error) => unavailable(&error),
    }
}

/// Computes the audit chains anew.
#[utoipa::path(get, path = "/audit/verify", tag = "audit",
    responses((status = 200, description = "Rows, faults and the present heads", body = Object)))]
async fn verify_audit(app: web::Data<App>) -> HttpResponse {
    verification(&app, &[]).await
}

/// Computes the audit chains anew and holds them against heads that were kept.
#[utoipa::path(post, path = "/audit/verify", tag = "audit", request_body = Kept,
    responses((status = 200, description = "Rows, faults and the present heads", body = Object)))]
async fn verify_audit_against(app: web::Data<App>, kept: web::Json<Kept>) -> HttpResponse {
    verification(&app, &kept.heads).await
}

async fn verification(app: &App, heads: &[Head]) -> HttpResponse {
    match audit::verify(app.store.database(), &app.vault.kek, heads).await {
        Ok(found) => HttpResponse::Ok().json(found),
        Err(error) => unavailable(&error),
    }
}

/// One audit row for a change that is about to be made, with who makes it.
async fn record(app: &App, by: Holder, kind: &'static str, mut body: serde_json::Value) -> Result<(), HttpResponse> {
    if let Some(fields) = body.as_object_mut() {
        fields.insert("by".to_owned(), by.to_string().into());
    }
    let entry = Entry { kind, once: None, body };
    app.audit
        .record(entry)
        .await
        .map_err(|error| problem(HttpResponse::ServiceUnavailable(), &error.to_string()))
}

/// Makes a change felt by this replica at once; the others see it within a second.
async fn refresh(app: &App) -> Result<(), HttpResponse> {
    app.current.refresh().await.map_err(|error| {
        tracing::error!(
            error = format!("{error:#}"),
            "the change is stored but was not read again"
        );
        problem(
            HttpResponse::ServiceUnavailable(),
            "the change is stored, but this replica could not read it yet: it tries again every second",
        )
    })
}

fn unavailable(error: &sqlx::Error) -> HttpResponse {
    tracing::error!(%error, "the database does not answer");
    problem(HttpResponse::ServiceUnavailable(), "the database does not answer")
}

fn bad_body(error: actix_web::error::JsonPayloadError, _: &actix_web::HttpRequest) -> actix_web::Error {
    let reply = problem(HttpResponse::BadRequest(), &error.to_string());
    actix_web::error::InternalError::from_response(error, reply).into()
}

/// Upper-case or lower-case hex, with the colons or blanks that other tools put in.
fn normalise(thumbprint: &str) -> String {
    let mut plain = thumbprint.to_ascii_lowercase();
    plain.retain(|c| c.is_ascii_hexdigit());
    plain
}

/// A PFX with a long chain stays far below.
const MAX_BODY: usize = 256 * 1024;
