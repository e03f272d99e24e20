//! The administrators' interface, `/admin/v1`: hosts, keys, vendor trust, artefacts, policies, signers,
//! decisions. Reached with a token only; a reviewer's token reads only. Judges no host.
//!
//! Writing the same thing twice is no error; another thing under a taken name is. Listings come by name,
//! `limit` rows after the name `after`; the header `Next-After` names where the next page begins.

use actix_web::{
    FromRequest, Handler, HttpResponse, Responder, Route,
    http::{StatusCode, header},
    web,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hgs_service::audit::AuditError;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::OpenApi as _;

use crate::{
    App,
    standing::StandingError,
    store::{Added, Page, PolicyVersion},
};

mod artefacts;
mod hosts;
mod keys;
mod review;
mod service;
mod what_if;

/// Routes below `/admin/v1`.
pub fn routes(app: &mut web::ServiceConfig) {
    app.app_data(web::JsonConfig::default().limit(LARGEST_BODY));
    for row in table() {
        app.route(row.path, row.route);
    }
}

/// One route: what is served, and what the OpenAPI document must name.
struct Row {
    #[cfg_attr(not(test), expect(dead_code, reason = "a test compares it with the document"))]
    method: &'static str,
    path: &'static str,
    route: Route,
}

fn table() -> Vec<Row> {
    vec![
        get("/openapi.json", openapi),
        get("/operation-mode", service::mode),
        put("/operation-mode", service::set_mode),
        get("/ca-certificates", service::ca_certificates),
        put("/ca-certificates", service::set_ca_certificates),
        get("/tpm-hosts", hosts::list),
        post("/tpm-hosts", hosts::add),
        delete("/tpm-hosts/{name}", hosts::remove),
        get("/tpm-hosts/{name}/attestations", review::history),
        get("/tpm-hosts/{name}/log", review::last_log),
        get("/tpm-hosts/{name}/compare", review::drift),
        post("/tpm-hosts/{name}/baseline", review::adopt),
        post("/what-if", what_if::what_if),
        get("/tpm-trust", hosts::list_trust),
        post("/tpm-trust", hosts::add_trust),
        delete("/tpm-trust/{name}", hosts::remove_trust),
        get("/host-keys", keys::list),
        post("/host-keys", keys::add),
        delete("/host-keys/{name}", keys::remove),
        get("/vsm-keys", keys::list_seen),
        get("/denied-keys", keys::list_denied),
        post("/denied-keys", keys::deny),
        delete("/denied-keys/{sha256}", keys::allow),
        get("/host-groups", keys::list_groups),
        post("/host-groups", keys::add_group),
        delete("/host-groups/{name}", keys::remove_group),
        get("/tpm-baselines", artefacts::list_baselines),
        post("/tpm-baselines", artefacts::add_baseline),
        delete("/tpm-baselines/{name}", artefacts::remove_baseline),
        post("/tpm-baselines/{name}/put-in-force", artefacts::baseline_in_force),
        get("/ci-policies", artefacts::list_ci_policies),
        post("/ci-policies", artefacts::add_ci_policy),
        delete("/ci-policies/{name}", artefacts::remove_ci_policy),
        post("/ci-policies/{name}/put-in-force", artefacts::ci_policy_in_force),
        get("/dump-keys", artefacts::list_dump_keys),
        post("/dump-keys", artefacts::add_dump_key),
        delete("/dump-keys/{name}", artefacts::remove_dump_key),
        post("/dump-keys/{name}/put-in-force", artefacts::dump_key_in_force),
        get("/policies", service::list_policies),
        post("/policies/{name}/enable", service::enable_policy),
        post("/policies/{name}/disable", service::disable_policy),
        get("/attestation-signer", service::signer),
        get("/attestation-signers", service::signers),
        post("/attestation-signers", service::make_signer),
        post("/attestation-signers/{sha256}/activate", service::activate_signer),
        delete("/attestation-signers/{sha256}", service::drop_signer),
        get("/diagnosis", service::diagnosis),
        get("/attestations", service::attestations),
        get("/events", service::events),
        get("/audit", service::recorded),
        post("/audit/verify", service::verify_audit),
    ]
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(title = "Attestation service, administration", description = "Every call needs a bearer token; a reviewer's token reads only."),
    paths(
        openapi,
        service::mode,
        service::set_mode,
        service::ca_certificates,
        service::set_ca_certificates,
        hosts::list,
        hosts::add,
        hosts::remove,
        review::history,
        review::last_log,
        review::drift,
        review::adopt,
        what_if::what_if,
        hosts::list_trust,
        hosts::add_trust,
        hosts::remove_trust,
        keys::list,
        keys::add,
        keys::remove,
        keys::list_seen,
        keys::list_denied,
        keys::deny,
        keys::allow,
        keys::list_groups,
        keys::add_group,
        keys::remove_group,
        artefacts::list_baselines,
        artefacts::add_baseline,
        artefacts::remove_baseline,
        artefacts::baseline_in_force,
        artefacts::list_ci_policies,
        artefacts::add_ci_policy,
        artefacts::remove_ci_policy,
        artefacts::ci_policy_in_force,
        artefacts::list_dump_keys,
        artefacts::add_dump_key,
        artefacts::remove_dump_key,
        artefacts::dump_key_in_force,
        service::list_policies,
        service::enable_policy,
        service::disable_policy,
        service::signer,
        service::signers,
        service::make_signer,
        service::activate_signer,
        service::drop_signer,
        service::diagnosis,
        service::attestations,
        service::events,
        service::recorded,
        service::verify_audit,
    ),
    servers((url = "/admin/v1"))
)]
struct Document;

/// This document
#[utoipa::path(get, path = "/openapi.json", responses((status = 200, description = "OpenAPI 3.1")))]
async fn openapi() -> HttpResponse {
    HttpResponse::Ok().json(Document::openapi())
}

type Answer = Result<HttpResponse, Problem>;

/// Why an administrator's request is not done.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("{0}")]
    Invalid(String),
    #[error("{0} is not registered")]
    Missing(String),
    #[error("{0}")]
    Conflict(String),
    /// Later it may be done.
    #[error("{0}")]
    Busy(&'static str),
    #[error("the database does not answer")]
    Database(#[from] sqlx::Error),
    #[error("the service's own state is not usable: {0}")]
    Standing(#[from] StandingError),
    #[error("nothing was changed, because the change could not be recorded; try again")]
    Record(#[from] AuditError),
}

impl actix_web::ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        match self {
            Problem::Invalid(_) => StatusCode::BAD_REQUEST,
            Problem::Missing(_) => StatusCode::NOT_FOUND,
            Problem::Conflict(_) => StatusCode::CONFLICT,
            Problem::Busy(_) | Problem::Database(_) | Problem::Standing(_) | Problem::Record(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }

    fn error_response(&self) -> HttpResponse {
        if let Problem::Database(error) = self {
            tracing::error!(%error, "the database failed an administrator's request");
        }
        HttpResponse::build(self.status_code()).json(json!({ "error": self.to_string() }))
    }
}

/// The body of every refusal.
#[derive(Serialize, utoipa::ToSchema)]
struct Refused {
    /// What is wrong and what to do about it.
    error: String,
}

/// Which part of a listing.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Paging {
    /// At most so many rows, 1 to 1000; 500 unless given
    limit: Option<i64>,
    /// Only rows after this name
    after: Option<String>,
}

impl Paging {
    /// One row more than asked for, which tells whether there are more.
    fn page(&self) -> Page {
        Page {
            after: self.after.clone().unwrap_or_default(),
            limit: self.limit().saturating_add(1),
        }
    }

    fn limit(&self) -> i64 {
        self.limit.unwrap_or(500).clamp(1, 1000)
    }

    fn answer<T: Serialize>(&self, mut rows: Vec<T>, name: impl Fn(&T) -> &str) -> HttpResponse {
        let limit = usize::try_from(self.limit()).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        let mut response = HttpResponse::Ok();
        if let (true, Some(last)) = (more, rows.last()) {
            let quoted: String = url_encoded(name(last));
            response.insert_header((header::HeaderName::from_static("next-after"), quoted));
        }
        response.json(rows)
    }
}

/// For a header and for the `after` of the next request alike.
fn url_encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| match plain(byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}

/// A file with its name, base64.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct NewFile {
    /// Unique among its kind
    name: String,
    /// The file, base64
    #[serde(alias = "bootLog", alias = "policy")]
    content: String,
    /// `v1` or `v2`, the default
    #[serde(default)]
    policy_version: PolicyVersion,
    /// Keep it without holding any host against it yet
    #[serde(default)]
    stage: bool,
}

fn added<T: Serialize>(app: &App, added: Added, name: &str, view: T) -> Answer {
    match added {
        Added::New => {
            app.changed();
            Ok(HttpResponse::Created().json(view))
        }
        Added::Same => Ok(HttpResponse::Ok().json(view)),
        Added::Conflict => Err(Problem::Conflict(format!(
            "{name} is registered already, with another content: remove it first or take another name"
        ))),
    }
}

fn removed(app: &App, removed: bool, name: &str) -> Answer {
    app.changed();
    match removed {
        true => Ok(HttpResponse::NoContent().finish()),
        false => Err(Problem::Missing(name.to_owned())),
    }
}

fn valid_name(name: &str) -> Result<String, Problem> {
    let name = name.trim();
    match name.is_empty() || name.len() > 128 || name.contains(['/', '\\']) || name.chars().any(char::is_control) {
        true => Err(Problem::Invalid(
            "a name has 1 to 128 characters, without slashes".to_owned(),
        )),
        false => Ok(name.to_owned()),
    }
}

fn decode(text: &str) -> Result<Vec<u8>, Problem> {
    STANDARD
        .decode(text)
        .map_err(|_| Problem::Invalid("not base64 (standard alphabet, padded)".to_owned()))
}

fn digest(text: &str) -> Result<[u8; 32], Problem> {
    let mut sha256 = [0; 32];
    hex::decode_to_slice(text.trim(), &mut sha256)
        .map(|()| sha256)
        .map_err(|_| Problem::Invalid("not a SHA-256 in hex (64 digits)".to_owned()))
}

fn invalid(error: impl std::fmt::Display) -> Problem {
    Problem::Invalid(error.to_string())
}

fn row(method: &'static str, path: &'static str, route: Route) -> Row {
    Row { method, path, route }
}

fn get<F, A>(path: &'static str, handler: F) -> Row
where
    F: Handler<A>,
    A: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    row("get", path, web::get().to(handler))
}

fn post<F, A>(path: &'static str, handler: F) -> Row
where
    F: Handler<A>,
    A: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    row("post", path, web::post().to(handler))
}

fn put<F, A>(path: &'static str, handler: F) -> Row
where
    F: Handler<A>,
    A: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    row("put", path, web::put().to(handler))
}

fn delete<F, A>(path: &'static str, handler: F) -> Row
where
    F: Handler<A>,
    A: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    row("delete", path, web::delete().to(handler))
}

const LARGEST_BODY: usize = 2 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_route_is_in_the_document_and_nothing_else() {
        let served: BTreeSet<(String, String)> = table()
            .iter()
            .map(|row| (row.method.to_owned(), row.path.to_owned()))
            .collect();
        assert_eq!(served.len(), table().len(), "no route twice");
        let document = serde_json::to_value(Document::openapi()).unwrap();
        let documented: BTreeSet<(String, String)> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, item)| {
                let methods = item.as_object().unwrap().keys();
                methods.map(move |method| (method.clone(), path.clone()))
            })
            .collect();
        assert_eq!(served, documented);
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                assert!(
                    !operation["responses"].as_object().unwrap().is_empty(),
                    "{method} {path}"
                );
                assert!(operation["summary"].is_string(), "{method} {path} has no summary");
            }
        }
    }
}
