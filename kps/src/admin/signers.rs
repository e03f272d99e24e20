//! Attestation signers: whose health certificates count, and from when on.

use actix_web::{HttpResponse, web};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hgs_protocol::{env::UnixTime, health::TrustedSigner};
use hgs_service::{serve::problem, tokens::Holder};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::{Problem, normalise, record, refresh, unavailable};
use crate::{App, store::StoredSigner};

/// A trusted attestation signer.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Signer {
    /// SHA-256 of the certificate, hex.
    thumbprint: String,
    /// DER, base64.
    certificate: String,
    /// Seconds since 1970; health certificates issued before are refused.
    #[schema(value_type = Option<i64>)]
    deny_issued_before: Option<UnixTime>,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct NewSigner {
    /// DER, base64.
    certificate: String,
    /// Seconds since 1970. Left out for a signer that is trusted already, its setting stays.
    #[serde(default)]
    #[schema(value_type = Option<i64>)]
    deny_issued_before: Option<UnixTime>,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SignerPolicy {
    /// Seconds since 1970; null denies nothing.
    #[schema(value_type = Option<i64>)]
    deny_issued_before: Option<UnixTime>,
}

/// The trusted attestation signers.
#[utoipa::path(get, path = "/attestation-signers", tag = "attestation signers",
    responses((status = 200, description = "Oldest first", body = [Signer])))]
pub(super) async fn list(app: web::Data<App>) -> HttpResponse {
    match app.store.signers().await {
        Ok(rows) => HttpResponse::Ok().json(rows.iter().map(show).collect::<Vec<_>>()),
        Err(error) => unavailable(&error),
    }
}

/// Trusts an attestation signer.
#[utoipa::path(post, path = "/attestation-signers", tag = "attestation signers", request_body = NewSigner,
    responses((status = 201, description = "Trusted now", body = Signer),
              (status = 200, description = "Trusted already", body = Signer),
              (status = 400, description = "No certificate with a usable key", body = Problem)))]
pub(super) async fn add(app: web::Data<App>, by: web::ReqData<Holder>, new: web::Json<NewSigner>) -> HttpResponse {
    let der = STANDARD.decode(new.certificate.trim()).ok();
    let signer = der.and_then(|der| TrustedSigner::from_certificate(&der).ok().map(|signer| (der, signer)));
    let Some((certificate, signer)) = signer else {
        return problem(
            HttpResponse::BadRequest(),
            "`certificate` must be the base64 DER of an X.509 certificate with an RSA key of 2048 to 4096 bits or a P-256 key",
        );
    };
    let row = StoredSigner {
        thumbprint: hex::encode(signer.thumbprint()),
        certificate,
        deny_issued_before: new.deny_issued_before,
    };
    let done = async {
        let known = find(&app, &row.thumbprint).await;
        if let Ok(known) = &known
            && (row.deny_issued_before.is_none() || row.deny_issued_before == known.deny_issued_before)
        {
            return Ok(HttpResponse::Ok().json(show(known)));
        }
        let body = json!({ "thumbprint": row.thumbprint, "denyIssuedBefore": row.deny_issued_before });
        record(&app, *by, "attestation-signer-trusted", body).await?;
        let added = app
            .store
            .trust_signer(&row, app.env.now())
            .await
            .map_err(|e| unavailable(&e))?;
        if !added {
            app.store
                .deny_issued_before(Some(&row.thumbprint), row.deny_issued_before)
                .await
                .map_err(|e| unavailable(&e))?;
        }
        refresh(&app).await?;
        let mut reply = if added {
            HttpResponse::Created()
        } else {
            HttpResponse::Ok()
        };
        Ok(reply.json(show(&row)))
    };
    done.await.unwrap_or_else(|refusal| refusal)
}

/// Trusts a signer no longer.
#[utoipa::path(delete, path = "/attestation-signers/{thumbprint}", tag = "attestation signers",
    params(("thumbprint", description = "SHA-256, hex")),
    responses((status = 204, description = "Trusted no longer"), (status = 404, body = Problem, description = "Not trusted")))]
pub(super) async fn remove(
    app: web::Data<App>,
    by: web::ReqData<Holder>,
    thumbprint: web::Path<String>,
) -> HttpResponse {
    let done = async {
        let known = find(&app, &thumbprint).await?;
        let body = json!({ "thumbprint": known.thumbprint });
        record(&app, *by, "attestation-signer-removed", body).await?;
        app.store
            .forget_signer(&known.thumbprint)
            .await
            .map_err(|e| unavailable(&e))?;
        refresh(&app).await?;
        Ok(HttpResponse::NoContent().finish())
    };
    done.await.unwrap_or_else(|refusal: HttpResponse| refusal)
}

/// Refuses health certificates of one signer that were issued before a time (DenyHealthCertificatesIssuedBefore).
#[utoipa::path(put, path = "/attestation-signers/{thumbprint}/policy", tag = "attestation signers",
    params(("thumbprint", description = "SHA-256, hex")), request_body = SignerPolicy,
    responses((status = 204, description = "In force"), (status = 404, body = Problem, description = "Not trusted")))]
pub(super) async fn deny(
    app: web::Data<App>,
    by: web::ReqData<Holder>,
    thumbprint: web::Path<String>,
    policy: web::Json<SignerPolicy>,
) -> HttpResponse {
    match find(&app, &thumbprint).await {
        Ok(known) => set_policy(&app, *by, Some(&known.thumbprint), policy.deny_issued_before).await,
        Err(refusal) => refusal,
    }
}

/// As for one signer, for all that are trusted now.
#[utoipa::path(put, path = "/attestation-signers/policy", tag = "attestation signers", request_body = SignerPolicy,
    responses((status = 204, description = "In force")))]
pub(super) async fn deny_all(
    app: web::Data<App>,
    by: web::ReqData<Holder>,
    policy: web::Json<SignerPolicy>,
) -> HttpResponse {
    set_policy(&app, *by, None, policy.deny_issued_before).await
}

async fn set_policy(app: &App, by: Holder, thumbprint: Option<&str>, before: Option<UnixTime>) -> HttpResponse {
    let done = async {
        let body = json!({ "thumbprint": thumbprint, "denyIssuedBefore": before });
        record(app, by, "attestation-signer-policy", body).await?;
        app.store
            .deny_issued_before(thumbprint, before)
            .await
            .map_err(|e| unavailable(&e))?;
        refresh(app).await?;
        Ok(HttpResponse::NoContent().finish())
    };
    done.await.unwrap_or_else(|refusal: HttpResponse| refusal)
}

async fn find(app: &App, thumbprint: &str) -> Result<StoredSigner, HttpResponse> {
    let thumbprint = normalise(thumbprint);
    let rows = app.store.signers().await.map_err(|error| unavailable(&error))?;
    rows.into_iter().find(|row| row.thumbprint == thumbprint).ok_or_else(|| {
        problem(
            HttpResponse::NotFound(),
            "no attestation signer has that thumbprint (SHA-256, hex); list them with GET /admin/v1/attestation-signers",
        )
    })
}

fn show(row: &StoredSigner) -> Signer {
    Signer {
        thumbprint: row.thumbprint.clone(),
        certificate: STANDARD.encode(&row.certificate),
        deny_issued_before: row.deny_issued_before,
    }
}
