//! The two operations over HTTP (MS-KPS 2.2.1). Finds the operation whatever the path's case, reads
//! a bounded body, runs the story on a core of its own, records the decision, then answers.

use actix_web::{
    HttpRequest, HttpResponse,
    http::{Method, StatusCode, header},
    web,
};
use hgs_protocol::{
    crypto::sha256,
    health::HealthCertificate,
    protector::{Metadata, MetadataError, Release},
    wire::kps::{CONTENT_TYPE, MAX_REQUEST, METADATA_PATH, RollTransportKeyRequest, ServiceVersion},
};
use hgs_service::audit::Entry;

use crate::{App, refusal::Refusal, roll};

/// Everything on the service listener that no probe answers.
pub fn routes(service: &mut web::ServiceConfig) {
    service.default_service(web::to(dispatch));
}

async fn dispatch(app: web::Data<App>, request: HttpRequest, body: web::Payload) -> HttpResponse {
    let (operation, allowed) = match Operation::of(request.path()) {
        None => return HttpResponse::NotFound().finish(),
        Some(operation @ Operation::Roll(_)) => (operation, [Method::POST].as_slice()),
        Some(Operation::Metadata) => (
            Operation::Metadata,
            [Method::GET, Method::HEAD, Method::POST].as_slice(),
        ),
    };
    if !allowed.contains(request.method()) {
        let names: Vec<&str> = allowed.iter().map(Method::as_str).collect();
        return HttpResponse::MethodNotAllowed()
            .insert_header((header::ALLOW, names.join(", ")))
            .finish();
    }
    let body = match body.to_bytes_limited(MAX_REQUEST).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => return HttpResponse::BadRequest().finish(),
        Err(_) => return HttpResponse::PayloadTooLarge().finish(),
    };
    let (name, outcome) = match operation {
        Operation::Metadata => ("GetMetaData", metadata(app.clone(), &request, &body).await),
        Operation::Roll(version) => ("RollTransportKey", roll_transport_key(app.clone(), version, body).await),
    };
    match outcome {
        Ok(reply) => {
            app.metrics.decided("kps", "Passed");
            reply
        }
        Err(refusal) => {
            let (code, status, _) = refusal.reply();
            tracing::info!(operation = name, code, cause = %refusal, "refused");
            app.metrics.decided("kps", code);
            let mut reply = HttpResponse::build(StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST));
            if status == 503 {
                reply.insert_header((header::RETRY_AFTER, "1"));
            }
            reply.content_type(CONTENT_TYPE).body(refusal.document())
        }
    }
}

/// What a path asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    /// None for an unknown version segment, which is a refusal of the protocol's own.
    Roll(Option<ServiceVersion>),
    Metadata,
}

impl Operation {
    /// Ignores ASCII case and one trailing slash.
    fn of(path: &str) -> Option<Operation> {
        let path = path.to_ascii_lowercase();
        let path = path.strip_suffix('/').unwrap_or(&path);
        if path == METADATA_PATH {
            return Some(Operation::Metadata);
        }
        let version = path
            .strip_prefix("/keyprotection/service/")?
            .strip_suffix("/rolltransportkey")?;
        (!version.contains('/')).then(|| Operation::Roll(ServiceVersion::from_segment(version)))
    }
}

async fn roll_transport_key(
    app: web::Data<App>,
    version: Option<ServiceVersion>,
    body: web::Bytes,
) -> Result<HttpResponse, Refusal> {
    let version = version.ok_or(Refusal::Version)?;
    let _admitted = app.admitted.try_acquire().map_err(|_| Refusal::Unavailable)?;
    let _row = app.audit.expect();
    let (ask, outcome) = on_a_core(&app, move |app| {
        let ask = RollTransportKeyRequest::parse(&body)?;
        let standing = app.current.get();
        let guardian = roll::Guardian {
            keys: &standing.keys,
            signers: &standing.signers,
            rules: &standing.rules,
            max_offline_unwraps: standing.max_offline_unwraps,
            allow_sha1_oaep: standing.allow_sha1_oaep,
            chains: &app.chains,
        };
        let outcome = roll::roll_transport_key(&ask, version, &guardian, app.env.now(), &mut app.env.rng());
        Ok::<_, Refusal>((ask, outcome))
    })
    .await??;
    app.audit
        .record(decision(&ask, &outcome))
        .await
        .map_err(|_| Refusal::Unavailable)?;
    Ok(HttpResponse::Ok()
        .content_type(CONTENT_TYPE)
        .body(outcome?.response.encode()))
}

async fn metadata(app: web::Data<App>, request: &HttpRequest, body: &[u8]) -> Result<HttpResponse, Refusal> {
    if !body.is_empty() {
        return Err(Refusal::InvalidRequest(hgs_protocol::xml::XmlError::Unexpected {
            found: "a body".to_owned(),
            expected: "none: GetMetaData takes no input".to_owned(),
        }));
    }
    let _admitted = app.readers.try_acquire().map_err(|_| Refusal::Unavailable)?;
    let document = on_a_core(&app, |app| {
        let standing = app.current.get();
        // In the order of MS-KPS 3.1.5.1.2.3.
        if !standing.has_primary_encryption {
            return Err(MetadataError::NoEncryptionCertificate);
        }
        if !standing.has_primary_signing {
            return Err(MetadataError::NoSigningCertificate);
        }
        Metadata::build(&standing.keys, standing.communications.as_ref())
    })
    .await??;
    let tag = format!("\"{}\"", hex::encode(sha256(&document)));
    let known = request
        .headers()
        .get(header::IF_NONE_MATCH)
        .and_then(|value| value.to_str().ok());
    let unchanged = known.is_some_and(|known| known.split(',').any(|one| one.trim() == tag));
    let mut reply = HttpResponse::build(match unchanged {
        true => StatusCode::NOT_MODIFIED,
        false => StatusCode::OK,
    });
    reply
        .insert_header((header::ETAG, tag))
        .insert_header((header::CACHE_CONTROL, "no-cache"));
    Ok(match unchanged {
        true => reply.finish(),
        false => reply.content_type(CONTENT_TYPE).body(document),
    })
}

/// Runs cryptographic work off the event loop, at most one at a time per core.
async fn on_a_core<T: Send + 'static>(
    app: &web::Data<App>,
    work: impl FnOnce(&App) -> T + Send + 'static,
) -> Result<T, Refusal> {
    let core = app.cores.clone().acquire_owned().await;
    let core = core.map_err(|_| Refusal::Unavailable)?;
    let app = app.clone();
    let work = move || {
        let outcome = work(&app);
        // The next one need not wait until the event loop has heard of this end.
        drop(core);
        outcome
    };
    web::block(work).await.map_err(|_| Refusal::Unavailable)
}

/// The audit row of a decision. Holds names of things, no key.
fn decision(ask: &RollTransportKeyRequest, outcome: &Result<Release, Refusal>) -> Entry {
    let hash = |bytes: &[u8]| hex::encode(sha256(bytes));
    let (code, cause, egress, host) = match outcome {
        Ok(release) => (
            "Released",
            String::new(),
            Some(hash(&release.response.egress_protector)),
            Some(release.health_certificate.clone()),
        ),
        Err(refusal) => {
            let host = HealthCertificate::parse(&ask.health_certificate).ok();
            (
                refusal.reply().0,
                refusal.to_string(),
                None,
                host.map(|host| host.serial()),
            )
        }
    };
    Entry {
        kind: "key-release",
        once: None,
        body: serde_json::json!({
            "outcome": code,
            "cause": cause,
            "healthCertificate": host,
            "ingressProtector": hash(&ask.ingress_protector),
            "egressProtector": egress,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_found_in_any_case_with_one_slash_more() {
        use Operation::{Metadata, Roll};
        for (path, expected) in [
            (
                "/KeyProtection/service/v1.0/rolltransportkey",
                Some(Roll(Some(ServiceVersion::V1))),
            ),
            (
                "/KEYPROTECTION/SERVICE/V2.0/RollTransportKey/",
                Some(Roll(Some(ServiceVersion::V2))),
            ),
            ("/keyprotection/service/v3.0/rolltransportkey", Some(Roll(None))),
            ("/keyprotection/service/v1.0/rolltransportkey//", None),
            ("/keyprotection/service/a/b/rolltransportkey", None),
            ("/keyprotection/service/metadata/2014-07/Metadata.xml", Some(Metadata)),
            ("/keyprotection/service/metadata/2014-07/metadata.xml/", Some(Metadata)),
            ("/keyprotection/service/metadata/2015-07/metadata.xml", None),
            ("/", None),
        ] {
            assert_eq!(Operation::of(path), expected, "{path}");
        }
    }
}
