//! Guardian rotation: add a certificate, make it primary, and once every VM starts with it, disable and
//! remove the old one.

use actix_web::{HttpResponse, web};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hgs_protocol::protector::{Certificate, suite::Suite};
use hgs_service::{pair_files, serve::problem, tokens::Holder};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use zeroize::Zeroizing;

use super::{Problem, normalise, record, refresh, unavailable};
use crate::{
    App,
    store::{Change, ChangeRefusal, KeyPlace, Role, StoredCertificate},
};

/// A certificate of this service.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct OwnCertificate {
    /// SHA-1 of the certificate in upper-case hex, as the product shows it.
    thumbprint: String,
    /// SHA-256 of the certificate, hex.
    sha256: String,
    certificate_type: Role,
    /// Named in the metadata, so that new protectors are made for it.
    is_primary: bool,
    /// Opens and signs; a disabled one does neither.
    is_enabled: bool,
    /// Id of the private key in the token, hex; null for a sealed key.
    token_key_id: Option<String>,
    /// DER, base64.
    certificate: String,
}

/// One way to say which certificate, beside its type.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct NewCertificate {
    certificate_type: Role,
    /// Makes a self-signed certificate with this common name.
    generate: Option<Generate>,
    /// CERTIFICATE and PRIVATE KEY (PKCS#8), PEM.
    #[schema(value_type = Option<String>)]
    pem: Option<Zeroizing<String>>,
    /// A PFX with one private key, base64, and its password.
    pfx: Option<Pfx>,
    /// A key that is in the token already, with its certificate.
    token: Option<InToken>,
    /// Any text of at most 100 characters. A repeated request with the same one makes no second certificate.
    request_id: Option<String>,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Generate {
    common_name: String,
    /// `rsa` (the default) or `p256`.
    #[serde(default)]
    suite: SuiteName,
}

#[derive(Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum SuiteName {
    #[default]
    Rsa,
    P256,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Pfx {
    #[schema(value_type = String)]
    data: Zeroizing<String>,
    #[schema(value_type = String)]
    password: Zeroizing<String>,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct InToken {
    /// CKA_ID of the key pair, hex.
    key_id: String,
    /// DER, base64.
    certificate: String,
}

/// What is to be otherwise; a field left out stays.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct CertificateChange {
    /// Only `true` can be asked for: another one takes the place.
    is_primary: Option<bool>,
    is_enabled: Option<bool>,
}

/// The service's certificates.
#[utoipa::path(get, path = "/certificates", tag = "certificates",
    responses((status = 200, description = "By type, the primary one first", body = [OwnCertificate])))]
pub(super) async fn list(app: web::Data<App>) -> HttpResponse {
    match app.store.certificates().await {
        Ok(rows) => HttpResponse::Ok().json(rows.iter().map(show).collect::<Vec<_>>()),
        Err(error) => unavailable(&error),
    }
}

/// Adds a certificate, which is enabled and not primary.
#[utoipa::path(post, path = "/certificates", tag = "certificates", request_body = NewCertificate,
    responses((status = 201, description = "Added", body = OwnCertificate),
              (status = 200, description = "There already", body = OwnCertificate),
              (status = 400, description = "No usable certificate and key", body = Problem)))]
pub(super) async fn add(app: web::Data<App>, by: web::ReqData<Holder>, new: web::Json<NewCertificate>) -> HttpResponse {
    let new = new.into_inner();
    let (role, request_id) = (new.certificate_type, new.request_id.clone());
    let done = async {
        if request_id.as_ref().is_some_and(|id| id.chars().count() > 100) {
            return Err(problem(
                HttpResponse::BadRequest(),
                "`requestId` is longer than 100 characters",
            ));
        }
        let rows = app.store.certificates().await.map_err(|e| unavailable(&e))?;
        if let Some(made) = rows
            .iter()
            .find(|row| request_id.is_some() && row.request_id == request_id)
        {
            return match made.role == role {
                true => Ok(HttpResponse::Ok().json(show(made))),
                false => Err(problem(
                    HttpResponse::Conflict(),
                    "`requestId` was used for a certificate of another type: choose a new one",
                )),
            };
        }
        let making = app.clone();
        let made = web::block(move || make(&making, &new)).await.map_err(|_| busy())?;
        let mut made = made.map_err(|error| problem(HttpResponse::BadRequest(), &format!("{error:#}")))?;
        made.request_id = request_id;
        if let Some(known) = rows
            .iter()
            .find(|row| row.role == role && row.thumbprint == made.thumbprint)
        {
            return Ok(HttpResponse::Ok().json(show(known)));
        }
        record(&app, *by, "certificate-added", name(&made)).await?;
        if !app
            .store
            .add_certificate(&made, app.env.now())
            .await
            .map_err(|e| unavailable(&e))?
        {
            app.vault.forget(&made);
            return Err(problem(
                HttpResponse::Conflict(),
                "another request added it at the same moment: list the certificates",
            ));
        }
        refresh(&app).await?;
        Ok(HttpResponse::Created().json(show(&made)))
    };
    done.await.unwrap_or_else(|refusal| refusal)
}

/// Makes a certificate primary, enables or disables it.
#[utoipa::path(patch, path = "/certificates/{type}/{thumbprint}", tag = "certificates",
    params(("type", description = "signing, encryption or communications"), ("thumbprint", description = "SHA-1 or SHA-256, hex")),
    request_body = CertificateChange,
    responses((status = 200, description = "As asked", body = OwnCertificate),
              (status = 404, description = "No such certificate", body = Problem),
              (status = 409, description = "It would leave the service without a usable primary", body = Problem)))]
pub(super) async fn change(
    app: web::Data<App>,
    by: web::ReqData<Holder>,
    path: web::Path<(String, String)>,
    ask: web::Json<CertificateChange>,
) -> HttpResponse {
    let done = async {
        if ask.is_primary == Some(false) {
            return Err(problem(
                HttpResponse::Conflict(),
                "a primary certificate stays primary until another one is made primary",
            ));
        }
        let mut changes = Vec::new();
        match ask.is_enabled {
            Some(true) => changes.push(Change::Enable),
            Some(false) => changes.push(Change::Disable),
            None => {}
        }
        if ask.is_primary.is_some() {
            changes.push(Change::MakePrimary);
        }
        let row = find(&app, &path).await?;
        // All or nothing, as far as this replica can see.
        let (mut is_primary, mut is_enabled) = (row.is_primary, row.is_enabled);
        for change in &changes {
            change.check(is_primary, is_enabled).map_err(|e| refuse(&e))?;
            is_primary |= *change == Change::MakePrimary;
            is_enabled = (is_enabled || *change == Change::Enable) && *change != Change::Disable;
        }
        for change in changes {
            apply(&app, *by, &row, change).await?;
        }
        refresh(&app).await?;
        Ok(HttpResponse::Ok().json(show(&find(&app, &path).await?)))
    };
    done.await.unwrap_or_else(|refusal| refusal)
}

/// Removes a disabled certificate and its private key for good.
#[utoipa::path(delete, path = "/certificates/{type}/{thumbprint}", tag = "certificates",
    params(("type", description = "signing, encryption or communications"), ("thumbprint", description = "SHA-1 or SHA-256, hex")),
    responses((status = 204, description = "Gone"),
              (status = 404, description = "No such certificate", body = Problem),
              (status = 409, description = "Primary or enabled", body = Problem)))]
pub(super) async fn remove(
    app: web::Data<App>,
    by: web::ReqData<Holder>,
    path: web::Path<(String, String)>,
) -> HttpResponse {
    let done = async {
        let row = find(&app, &path).await?;
        Change::Remove
            .check(row.is_primary, row.is_enabled)
            .map_err(|e| refuse(&e))?;
        apply(&app, *by, &row, Change::Remove).await?;
        app.vault.forget(&row);
        refresh(&app).await?;
        Ok(HttpResponse::NoContent().finish())
    };
    done.await.unwrap_or_else(|refusal: HttpResponse| refusal)
}

async fn apply(app: &App, by: Holder, row: &StoredCertificate, change: Change) -> Result<(), HttpResponse> {
    let kind = match change {
        Change::MakePrimary => "certificate-primary",
        Change::Enable => "certificate-enabled",
        Change::Disable => "certificate-disabled",
        Change::Remove => "certificate-removed",
    };
    record(app, by, kind, name(row)).await?;
    match app.store.change_certificate(row.role, &row.thumbprint, change).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(refusal)) => Err(refuse(&refusal)),
        Err(error) => Err(unavailable(&error)),
    }
}

fn make(app: &App, new: &NewCertificate) -> anyhow::Result<StoredCertificate> {
    let (role, rng) = (new.certificate_type, &mut app.env.rng());
    match (&new.generate, &new.pem, &new.pfx, &new.token) {
        (Some(generate), None, None, None) => {
            let suite = match generate.suite {
                SuiteName::Rsa => Suite::Rsa,
                SuiteName::P256 => Suite::P256,
            };
            anyhow::ensure!(
                (1..=64).contains(&generate.common_name.chars().count()),
                "`commonName` must have 1 to 64 characters"
            );
            app.vault.make(role, suite, &generate.common_name, app.env.now(), rng)
        }
        (None, Some(pem), None, None) => app.vault.seal(role, &pair_files::from_pem(pem)?, rng),
        (None, None, Some(pfx), None) => {
            let bytes = STANDARD
                .decode(pfx.data.trim())
                .map_err(|_| anyhow::anyhow!("`pfx.data` is not base64"))?;
            app.vault.seal(role, &pair_files::from_pfx(&bytes, &pfx.password)?, rng)
        }
        (None, None, None, Some(token)) => {
            let certificate = STANDARD
                .decode(token.certificate.trim())
                .map_err(|_| anyhow::anyhow!("`token.certificate` is not base64"))?;
            app.vault.adopt(role, &token.key_id, &certificate)
        }
        _ => anyhow::bail!("give exactly one of `generate`, `pem`, `pfx` and `token`"),
    }
}

async fn find(app: &App, (role, thumbprint): &(String, String)) -> Result<StoredCertificate, HttpResponse> {
    let thumbprint = normalise(thumbprint);
    let rows = app.store.certificates().await.map_err(|error| unavailable(&error))?;
    rows.into_iter()
        .filter(|row| Role::from_word(role) == Some(row.role))
        .find(|row| row.thumbprint == thumbprint || sha1(row).eq_ignore_ascii_case(&thumbprint))
        .ok_or_else(|| refuse(&ChangeRefusal::Unknown))
}

fn refuse(refusal: &ChangeRefusal) -> HttpResponse {
    let status = match refusal {
        ChangeRefusal::Unknown => HttpResponse::NotFound(),
        ChangeRefusal::Disabled | ChangeRefusal::Primary | ChangeRefusal::Enabled => HttpResponse::Conflict(),
    };
    problem(status, &refusal.to_string())
}

fn busy() -> HttpResponse {
    problem(HttpResponse::ServiceUnavailable(), "the service is shutting down")
}

fn name(row: &StoredCertificate) -> serde_json::Value {
    json!({ "certificateType": row.role, "sha256": row.thumbprint })
}

fn sha1(row: &StoredCertificate) -> String {
    Certificate::parse(&row.certificate).map_or_else(|_| String::new(), |certificate| certificate.thumbprint())
}

fn show(row: &StoredCertificate) -> OwnCertificate {
    OwnCertificate {
        thumbprint: sha1(row),
        sha256: row.thumbprint.clone(),
        certificate_type: row.role,
        is_primary: row.is_primary,
        is_enabled: row.is_enabled,
        token_key_id: match &row.key {
            KeyPlace::Token(id) => Some(id.clone()),
            KeyPlace::Sealed(_) => None,
        },
        certificate: STANDARD.encode(&row.certificate),
    }
}
