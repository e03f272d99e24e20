//! The administrators' interface, `/admin/v1`: hosts, vendor trust, baselines, policies, decisions.
//! Reached with a token only; a reviewer's token reads only. Judges no host.

use actix_web::{
    HttpResponse,
    http::StatusCode,
    web::{self, Data, Json, Path},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hgs_service::audit;
use serde::Deserialize;
use serde_json::json;

use crate::{
    App,
    baseline::{CiPolicy, SwitchError, TpmBaseline},
    ek::{EndorsementKey, VendorCertificate, prove},
    policy::{POLICIES, SWITCHES},
    store::{Kind, KnownHost},
};

/// Routes below `/admin/v1`.
pub fn routes(app: &mut web::ServiceConfig) {
    app.app_data(web::JsonConfig::default().limit(LARGEST_BODY))
        .route("/tpm-hosts", web::get().to(list_hosts))
        .route("/tpm-hosts", web::post().to(add_host))
        .route("/tpm-hosts/{name}", web::delete().to(remove_host))
        .route("/tpm-trust", web::get().to(list_trust))
        .route("/tpm-trust", web::post().to(add_trust))
        .route("/tpm-baselines", web::get().to(list_baselines))
        .route("/tpm-baselines", web::post().to(add_baseline))
        .route("/tpm-baselines/{name}", web::delete().to(remove_baseline))
        .route("/ci-policies", web::get().to(list_ci_policies))
        .route("/ci-policies", web::post().to(add_ci_policy))
        .route("/ci-policies/{name}", web::delete().to(remove_ci_policy))
        .route("/policies", web::get().to(list_policies))
        .route("/policies/{name}/enable", web::post().to(enable_policy))
        .route("/policies/{name}/disable", web::post().to(disable_policy))
        .route("/attestation-signer", web::get().to(signer))
        .route("/attestations", web::get().to(attestations))
        .route("/audit/verify", web::post().to(verify_audit));
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
    #[error("the database does not answer")]
    Database(#[from] sqlx::Error),
}

impl actix_web::ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        match self {
            Problem::Invalid(_) => StatusCode::BAD_REQUEST,
            Problem::Missing(_) => StatusCode::NOT_FOUND,
            Problem::Conflict(_) => StatusCode::CONFLICT,
            Problem::Database(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn error_response(&self) -> HttpResponse {
        if let Problem::Database(error) = self {
            tracing::error!(%error, "the database failed an administrator's request");
        }
        HttpResponse::build(self.status_code()).json(json!({ "error": self.to_string() }))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewHost {
    name: String,
    /// SubjectPublicKeyInfo, RSA1 blob or TPM2B_PUBLIC, base64.
    #[serde(alias = "ekPublic")]
    ek_public: Option<String>,
    /// DER, base64.
    #[serde(alias = "ekCertificate")]
    ek_certificate: Option<String>,
    /// Takes a key that no trusted vendor certificate proves, and marks it so.
    #[serde(default)]
    force: bool,
}

async fn list_hosts(app: Data<App>) -> Answer {
    Ok(HttpResponse::Ok().json(app.store.hosts().await?))
}

async fn add_host(app: Data<App>, new: Json<NewHost>) -> Answer {
    let name = valid_name(&new.name)?;
    let invalid = |error: crate::ek::EndorsementKeyError| Problem::Invalid(error.to_string());
    let given = match &new.ek_public {
        Some(text) => Some(EndorsementKey::parse(&decode(text)?).map_err(invalid)?),
        None => None,
    };
    let proven = match &new.ek_certificate {
        Some(text) => {
            let der = decode(text)?;
            let named = EndorsementKey::from_certificate(&der).map_err(invalid)?;
            match prove(&der, &trusted(&app).await?, app.env.now()) {
                Ok((key, vendor)) => Ok((key, Some(vendor))),
                Err(error) => Err((Some(named), error.to_string())),
            }
        }
        None => Err((None, "there is no endorsement key certificate".to_owned())),
    };
    let (key, vendor) = match (proven, given) {
        (Ok((key, _)), Some(given)) if key != given => {
            return Err(invalid(crate::ek::EndorsementKeyError::OtherKey));
        }
        (Ok(proven), _) => proven,
        (Err((Some(named), _)), Some(given)) if named != given => {
            return Err(invalid(crate::ek::EndorsementKeyError::OtherKey));
        }
        (Err((named, _)), given) if new.force => match given.or(named) {
            Some(key) => (key, None),
            None => return Err(Problem::Invalid("give ek_public or ek_certificate".to_owned())),
        },
        (Err((_, why)), _) => {
            let text = format!("the endorsement key is not proven: {why}; with force it is taken and marked unproven");
            return Err(Problem::Invalid(text));
        }
    };
    let host = KnownHost {
        name,
        ek_sha256: key.sha256(),
        unproven: vendor.is_none(),
        vendor,
        added_at: app.env.now(),
    };
    match app.store.add_host(&host).await? {
        true => Ok(HttpResponse::Created().json(host)),
        false => Err(Problem::Conflict(format!(
            "a host named {} or with this endorsement key is registered already",
            host.name
        ))),
    }
}

async fn remove_host(app: Data<App>, name: Path<String>) -> Answer {
    removed(app.store.remove_host(&name).await?, &name)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewTrust {
    name: String,
    /// DER, base64.
    certificate: String,
}

async fn trusted(app: &App) -> Result<Vec<VendorCertificate>, Problem> {
    let rows = app.store.registered(Kind::TpmTrust).await?;
    let parse = |(_, body): (String, String)| VendorCertificate::parse(&STANDARD.decode(body).ok()?).ok();
    Ok(rows.into_iter().filter_map(parse).collect())
}

async fn list_trust(app: Data<App>) -> Answer {
    let rows = app.store.registered(Kind::TpmTrust).await?;
    let rows: Vec<_> = rows
        .into_iter()
        .map(|(name, body)| {
            let certificate = STANDARD
                .decode(&body)
                .ok()
                .and_then(|der| VendorCertificate::parse(&der).ok());
            json!({
                "name": name,
                "subject": certificate.as_ref().map(VendorCertificate::subject),
                "root": certificate.as_ref().is_some_and(VendorCertificate::is_root),
                "certificate": body,
            })
        })
        .collect();
    Ok(HttpResponse::Ok().json(rows))
}

async fn add_trust(app: Data<App>, new: Json<NewTrust>) -> Answer {
    let name = valid_name(&new.name)?;
    let der = decode(&new.certificate)?;
    let certificate = VendorCertificate::parse(&der).map_err(|error| Problem::Invalid(error.to_string()))?;
    let body = STANDARD.encode(&der);
    let added = app.store.register(Kind::TpmTrust, &name, &body).await?;
    let view = json!({ "name": name, "subject": certificate.subject(), "root": certificate.is_root() });
    created(added, &name, view)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewFile {
    name: String,
    /// The file, base64.
    #[serde(alias = "bootLog", alias = "policy")]
    content: String,
}

async fn list_baselines(app: Data<App>) -> Answer {
    let view = |baseline: &TpmBaseline| json!({ "name": baseline.name, "digest": hex::encode(baseline.digest()) });
    let rows: Vec<_> = app.store.baselines().await?.tpm.iter().map(view).collect();
    Ok(HttpResponse::Ok().json(rows))
}

async fn add_baseline(app: Data<App>, new: Json<NewFile>) -> Answer {
    let name = valid_name(&new.name)?;
    let baseline = TpmBaseline::from_log(&name, &decode(&new.content)?)
        .map_err(|error| Problem::Invalid(format!("not usable as a TPM baseline: {error}")))?;
    let body = serde_json::to_string(&baseline).map_err(|error| Problem::Invalid(error.to_string()))?;
    let added = app.store.register(Kind::TpmBaseline, &name, &body).await?;
    created(
        added,
        &name,
        json!({ "name": name, "digest": hex::encode(baseline.digest()) }),
    )
}

async fn remove_baseline(app: Data<App>, name: Path<String>) -> Answer {
    removed(app.store.unregister(Kind::TpmBaseline, &name).await?, &name)
}

async fn list_ci_policies(app: Data<App>) -> Answer {
    Ok(HttpResponse::Ok().json(app.store.baselines().await?.ci_policies))
}

async fn add_ci_policy(app: Data<App>, new: Json<NewFile>) -> Answer {
    let name = valid_name(&new.name)?;
    let policy = CiPolicy::from_file(&name, &decode(&new.content)?);
    let body = serde_json::to_string(&policy).map_err(|error| Problem::Invalid(error.to_string()))?;
    let added = app.store.register(Kind::CiPolicy, &name, &body).await?;
    created(added, &name, json!(policy))
}

async fn remove_ci_policy(app: Data<App>, name: Path<String>) -> Answer {
    removed(app.store.unregister(Kind::CiPolicy, &name).await?, &name)
}

async fn list_policies(app: Data<App>) -> Answer {
    let switches = app.store.switches().await?;
    let rows: Vec<_> = POLICIES
        .iter()
        .map(|policy| {
            let locked = SWITCHES
                .iter()
                .any(|switch| switch.name == policy.switch && switch.locked);
            json!({
                "name": policy.name,
                "id": policy.id.0,
                "switch": policy.switch,
                "enabled": switches.is_enabled(policy.switch),
                "locked": locked,
                "substatus": policy.substatus,
            })
        })
        .collect();
    Ok(HttpResponse::Ok().json(rows))
}

async fn enable_policy(app: Data<App>, name: Path<String>) -> Answer {
    switch(&app, &name, true).await
}

async fn disable_policy(app: Data<App>, name: Path<String>) -> Answer {
    switch(&app, &name, false).await
}

async fn switch(app: &App, name: &str, enabled: bool) -> Answer {
    app.store
        .switches()
        .await?
        .set(name, enabled)
        .map_err(|error| match error {
            SwitchError::Unknown(name) => Problem::Missing(name),
            locked @ SwitchError::Locked(_) => Problem::Conflict(locked.to_string()),
        })?;
    let switch = SWITCHES.iter().find(|switch| switch.name.eq_ignore_ascii_case(name));
    let name = switch.map_or(name, |switch| switch.name);
    let body = if enabled { "true" } else { "false" };
    app.store.replace(Kind::Switch, name, body).await?;
    Ok(HttpResponse::Ok().json(json!({ "switch": name, "enabled": enabled })))
}

async fn signer(app: Data<App>) -> Answer {
    let der = app.signer.certificate_der();
    Ok(HttpResponse::Ok().json(json!({
        "certificate": STANDARD.encode(der),
        "sha256": hex::encode(hgs_protocol::crypto::sha256(der)),
        "not_after": app.signer.not_after().to_string(),
    })))
}

async fn attestations(app: Data<App>) -> Answer {
    let rows = audit::newest(app.store.database(), NEWEST).await?;
    Ok(HttpResponse::Ok().json(rows))
}

/// Takes kept heads, as an earlier call answered them; an empty list checks the chains alone.
async fn verify_audit(app: Data<App>, kept: Json<Vec<audit::Head>>) -> Answer {
    Ok(HttpResponse::Ok().json(audit::verify(app.store.database(), &app.kek, &kept).await?))
}

fn created(added: bool, name: &str, view: serde_json::Value) -> Answer {
    match added {
        true => Ok(HttpResponse::Created().json(view)),
        false => Err(Problem::Conflict(format!("{name} is registered already"))),
    }
}

fn removed(removed: bool, name: &str) -> Answer {
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

const LARGEST_BODY: usize = 2 * 1024 * 1024;
const NEWEST: i64 = 200;
