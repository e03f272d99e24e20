//! `/admin/v1` of the key protection service: attestation signers, certificates, the audit chain.
//! The listener has checked the token; every change is an audit row before it is answered.

use actix_web::{HttpResponse, web};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hgs_protocol::{
    env::UnixTime,
    health::TrustedSigner,
    protector::{Certificate, KeyPair},
};
use hgs_service::{
    audit::{self, Entry, Head},
    serve::problem,
};
use serde::{Deserialize, Serialize};

use crate::{App, store::StoredSigner};

/// The routes, below `/admin/v1`.
pub fn routes(service: &mut web::ServiceConfig) {
    service
        .route("/attestation-signers", web::get().to(list_signers))
        .route("/attestation-signers", web::post().to(add_signer))
        .route("/attestation-signers/{thumbprint}", web::delete().to(remove_signer))
        .route("/certificates", web::get().to(list_certificates))
        .route("/audit", web::get().to(list_audit))
        .route("/audit/verify", web::get().to(verify_audit))
        .route("/audit/verify", web::post().to(verify_audit_against));
}

/// A trusted attestation signer.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Signer {
    /// SHA-256 of the certificate, hex.
    thumbprint: String,
    /// DER, base64.
    certificate: String,
    /// Seconds since 1970; health certificates issued before are refused.
    deny_issued_before: Option<UnixTime>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NewSigner {
    certificate: String,
    #[serde(default)]
    deny_issued_before: Option<UnixTime>,
}

/// A certificate of this service.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OwnCertificate {
    /// SHA-1 of the certificate in upper-case hex, as the product shows it.
    thumbprint: String,
    /// SHA-256 of the certificate, hex.
    sha256: String,
    certificate_type: &'static str,
    is_primary: bool,
    is_enabled: bool,
    certificate: String,
}

#[derive(Deserialize)]
struct Page {
    limit: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    heads: Vec<Head>,
}

async fn list_signers(app: web::Data<App>) -> HttpResponse {
    match app.store.signers().await {
        Ok(rows) => HttpResponse::Ok().json(rows.iter().map(show).collect::<Vec<_>>()),
        Err(error) => unavailable(&error),
    }
}

async fn add_signer(app: web::Data<App>, new: web::Json<NewSigner>) -> HttpResponse {
    let der = STANDARD.decode(new.certificate.trim()).ok();
    let signer = der.and_then(|der| TrustedSigner::from_certificate(&der).ok().map(|signer| (der, signer)));
    let Some((certificate, signer)) = signer else {
        return problem(
            HttpResponse::BadRequest(),
            "`certificate` must be the base64 DER of an X.509 certificate with an RSA key of 2048 to 4096 bits",
        );
    };
    let row = StoredSigner {
        thumbprint: hex::encode(signer.thumbprint()),
        certificate,
        deny_issued_before: new.deny_issued_before,
    };
    if let Err(refusal) = record(&app, "attestation-signer-trusted", &row.thumbprint).await {
        return refusal;
    }
    match app.store.trust_signer(&row, app.env.now()).await {
        Ok(()) => HttpResponse::Created().json(show(&row)),
        Err(error) => unavailable(&error),
    }
}

async fn remove_signer(app: web::Data<App>, thumbprint: web::Path<String>) -> HttpResponse {
    let thumbprint = thumbprint.to_ascii_lowercase();
    match app.store.signers().await {
        Ok(rows) if rows.iter().any(|row| row.thumbprint == thumbprint) => {}
        Ok(_) => {
            return problem(
                HttpResponse::NotFound(),
                "no attestation signer has that thumbprint (SHA-256, hex); list them with GET /admin/v1/attestation-signers",
            );
        }
        Err(error) => return unavailable(&error),
    }
    if let Err(refusal) = record(&app, "attestation-signer-removed", &thumbprint).await {
        return refusal;
    }
    match app.store.forget_signer(&thumbprint).await {
        Ok(_) => HttpResponse::NoContent().finish(),
        Err(error) => unavailable(&error),
    }
}

async fn list_certificates(app: web::Data<App>) -> HttpResponse {
    let kinds = [("Signing", app.keys.signing()), ("Encryption", app.keys.encryption())];
    let list: Vec<OwnCertificate> = kinds
        .into_iter()
        .flat_map(|(kind, pairs)| {
            pairs
                .iter()
                .enumerate()
                .map(move |(place, pair)| own(kind, place, pair))
        })
        .collect();
    HttpResponse::Ok().json(list)
}

async fn list_audit(app: web::Data<App>, page: web::Query<Page>) -> HttpResponse {
    let limit = page.limit.unwrap_or(100).clamp(1, 1000);
    match audit::newest(app.store.database(), limit).await {
        Ok(rows) => HttpResponse::Ok().json(rows),
        Err(error) => unavailable(&error),
    }
}

async fn verify_audit(app: web::Data<App>) -> HttpResponse {
    verification(&app, &[]).await
}

async fn verify_audit_against(app: web::Data<App>, kept: web::Json<Kept>) -> HttpResponse {
    verification(&app, &kept.heads).await
}

async fn verification(app: &App, heads: &[Head]) -> HttpResponse {
    match audit::verify(app.store.database(), &app.kek, heads).await {
        Ok(found) => HttpResponse::Ok().json(found),
        Err(error) => unavailable(&error),
    }
}

async fn record(app: &App, kind: &'static str, thumbprint: &str) -> Result<(), HttpResponse> {
    let entry = Entry {
        kind,
        once: None,
        body: serde_json::json!({ "thumbprint": thumbprint }),
    };
    app.audit
        .record(entry)
        .await
        .map_err(|error| problem(HttpResponse::ServiceUnavailable(), &error.to_string()))
}

fn own(kind: &'static str, place: usize, pair: &KeyPair) -> OwnCertificate {
    let certificate: &Certificate = pair.certificate();
    OwnCertificate {
        thumbprint: certificate.thumbprint(),
        sha256: hex::encode(certificate.sha256()),
        certificate_type: kind,
        is_primary: place == 0,
        is_enabled: true,
        certificate: STANDARD.encode(certificate.der()),
    }
}

fn show(row: &StoredSigner) -> Signer {
    Signer {
        thumbprint: row.thumbprint.clone(),
        certificate: STANDARD.encode(&row.certificate),
        deny_issued_before: row.deny_issued_before,
    }
}

fn unavailable(error: &sqlx::Error) -> HttpResponse {
    tracing::error!(%error, "the database does not answer");
    problem(HttpResponse::ServiceUnavailable(), "the database does not answer")
}
