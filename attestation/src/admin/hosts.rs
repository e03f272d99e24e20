//! Hosts of TPM mode, and the vendors whose word is taken for their TPMs.

use actix_web::web::Json;
use actix_web::{
    HttpResponse,
    web::{Data, Path, Query},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use super::{Answer, App, Paging, Problem, Refused, added, decode, invalid, removed, valid_name};
use crate::{
    ek::{EndorsementKey, EndorsementKeyError},
    ek_chain::{Anchor, ParsedCertificate, judge},
    evidence::{self, Subject},
    platform::PlatformIdentifier,
    store::{Kind, KnownHost, Page, PolicyVersion, Registered},
};

#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewHost {
    name: String,
    /// SubjectPublicKeyInfo, RSA1 blob or TPM2B_PUBLIC, base64
    #[serde(alias = "ekPublic")]
    ek_public: Option<String>,
    /// DER, base64
    #[serde(alias = "ekCertificate")]
    ek_certificate: Option<String>,
    /// The XML file of Get-PlatformIdentifier, base64; in place of the two above
    #[serde(alias = "platformIdentifier")]
    platform_identifier: Option<String>,
    /// `v1` or `v2`, the default
    #[serde(default)]
    policy_version: PolicyVersion,
    /// Takes, in version v1, a key that no trusted vendor certificate proves, and marks it so. Without effect in v2
    #[serde(default)]
    force: bool,
}

/// Registered hosts
#[utoipa::path(get, path = "/tpm-hosts", params(Paging), responses((status = 200, body = [KnownHost])))]
pub(super) async fn list(app: Data<App>, paging: Query<Paging>) -> Answer {
    let rows = app.store.hosts(&paging.page()).await?;
    Ok(paging.answer(rows, |host| &host.name))
}

/// Register a host by its endorsement key
#[utoipa::path(post, path = "/tpm-hosts", request_body = NewHost, responses(
    (status = 201, body = KnownHost), (status = 200, description = "registered before", body = KnownHost),
    (status = 400, body = Refused), (status = 409, body = Refused)))]
pub(super) async fn add(app: Data<App>, new: Json<NewHost>) -> Answer {
    let name = valid_name(&new.name)?;
    let (key, vendor) = endorsement_key(&app, &new).await?;
    let host = KnownHost {
        name,
        ek_sha256: key.sha256(),
        version: new.policy_version,
        unproven: vendor.is_none(),
        vendor,
        added_at: app.env.now(),
    };
    let outcome = app.store.add_host(&host).await?;
    if outcome == crate::store::Added::Conflict {
        return Err(Problem::Conflict(format!(
            "a host named {}, or another with this endorsement key, is registered already",
            host.name
        )));
    }
    added(&app, outcome, &host.name.clone(), host)
}

/// The key to register, and the vendor that proves it.
async fn endorsement_key(app: &App, new: &NewHost) -> Result<(EndorsementKey, Option<String>), Problem> {
    let (given, certificate) = match &new.platform_identifier {
        Some(_) if new.ek_public.is_some() || new.ek_certificate.is_some() => {
            return Err(Problem::Invalid(
                "give either platform_identifier or ek_public and ek_certificate".to_owned(),
            ));
        }
        Some(text) => {
            let file = PlatformIdentifier::parse(&decode(text)?).map_err(invalid)?;
            (file.key, file.certificate)
        }
        None => {
            let key = new.ek_public.as_ref().map(|text| decode(text)).transpose()?;
            let key = key
                .map(|bytes| EndorsementKey::parse(&bytes))
                .transpose()
                .map_err(invalid)?;
            (key, new.ek_certificate.as_ref().map(|text| decode(text)).transpose()?)
        }
    };
    let (named, proof) = match &certificate {
        Some(der) => {
            let named = EndorsementKey::from_certificate(der).map_err(invalid)?;
            let leaf = ParsedCertificate::parse(der).map_err(invalid)?;
            let judgement = judge(&leaf, &[], &trusted(app).await?, app.env.now());
            let proof = match (judgement.trusted, judgement.can_decrypt) {
                (true, true) => Ok(judgement.vendor.unwrap_or_default()),
                (true, false) => Err("its certificate forbids decryption, which the exchange needs".to_owned()),
                (false, _) => Err(judgement.reasons.join("; ")),
            };
            (Some(named), proof)
        }
        None => (None, Err("there is no endorsement key certificate".to_owned())),
    };
    if let (Some(named), Some(given)) = (&named, &given)
        && named != given
    {
        return Err(invalid(EndorsementKeyError::OtherKey));
    }
    let key = named.or(given);
    let why = match proof {
        Ok(vendor) => {
            return key
                .map(|key| (key, Some(vendor)))
                .ok_or_else(|| invalid(EndorsementKeyError::Form));
        }
        Err(why) => why,
    };
    match (new.policy_version, new.force, key) {
        (PolicyVersion::V1, true, Some(key)) => Ok((key, None)),
        (_, _, None) => Err(Problem::Invalid(
            "give ek_certificate, ek_public or platform_identifier".to_owned(),
        )),
        (PolicyVersion::V1, false, _) => Err(Problem::Invalid(format!(
            "the endorsement key is not proven: {why}; with force it is taken and marked unproven"
        ))),
        (PolicyVersion::V2, ..) => Err(Problem::Invalid(format!(
            "the endorsement key is not proven: {why}. Version v2 takes no key without proof, force or not: trust the \
             TPM's vendor, or register the host, a baseline and a code-integrity policy as v1, the host with force"
        ))),
    }
}

/// Remove a host
#[utoipa::path(delete, path = "/tpm-hosts/{name}", params(("name" = String, Path)), responses(
    (status = 204), (status = 404, body = Refused)))]
pub(super) async fn remove(app: Data<App>, name: Path<String>) -> Answer {
    let gone = app.store.remove_host(&name).await?;
    if gone {
        evidence::forget(app.store.database(), Subject::Host, &name).await?;
    }
    removed(&app, gone, &name)
}

#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewTrust {
    name: String,
    /// DER, base64
    certificate: String,
}

/// A certificate of a TPM vendor.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct Trust {
    name: String,
    subject: Option<String>,
    /// Whether it signs itself
    root: bool,
    /// DER, base64
    certificate: String,
}

impl Trust {
    fn of(name: String, body: String) -> Trust {
        let der = STANDARD.decode(&body).ok();
        let anchor = der.and_then(|der| Anchor::parse(&der).ok());
        Trust {
            name,
            subject: anchor.as_ref().map(|anchor| anchor.certificate().name()),
            root: anchor.as_ref().is_some_and(Anchor::is_root),
            certificate: body,
        }
    }
}

pub(super) async fn trusted(app: &App) -> Result<Vec<Anchor>, Problem> {
    let rows = app.store.registered(Kind::TpmTrust, &Page::all()).await?;
    let parse = |row: Registered| Anchor::parse(&STANDARD.decode(row.body).ok()?).ok();
    Ok(rows.into_iter().filter_map(parse).collect())
}

/// Trusted certificates of TPM vendors
#[utoipa::path(get, path = "/tpm-trust", params(Paging), responses((status = 200, body = [Trust])))]
pub(super) async fn list_trust(app: Data<App>, paging: Query<Paging>) -> Answer {
    let rows = app.store.registered(Kind::TpmTrust, &paging.page()).await?;
    let rows = rows.into_iter().map(|row| Trust::of(row.name, row.body)).collect();
    Ok(paging.answer(rows, |trust: &Trust| &trust.name))
}

/// Trust a root or an intermediate of a TPM vendor
#[utoipa::path(post, path = "/tpm-trust", request_body = NewTrust, responses(
    (status = 201, body = Trust), (status = 200, description = "trusted before", body = Trust),
    (status = 400, body = Refused), (status = 409, body = Refused)))]
pub(super) async fn add_trust(app: Data<App>, new: Json<NewTrust>) -> Answer {
    let name = valid_name(&new.name)?;
    let der = decode(&new.certificate)?;
    Anchor::parse(&der).map_err(invalid)?;
    let body = STANDARD.encode(&der);
    let outcome = app
        .store
        .register(Kind::TpmTrust, &Registered::plain(&name, &body))
        .await?;
    added(&app, outcome, &name, Trust::of(name.clone(), body))
}

/// Trust a vendor's certificate no more; hosts registered by it stay
#[utoipa::path(delete, path = "/tpm-trust/{name}", params(("name" = String, Path)), responses(
    (status = 204), (status = 404, body = Refused)))]
pub(super) async fn remove_trust(app: Data<App>, name: Path<String>) -> Result<HttpResponse, Problem> {
    removed(&app, app.store.unregister(Kind::TpmTrust, &name).await?, &name)
}
