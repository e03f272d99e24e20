//! The service's URLs (MS-HGSA 3.1.5) in every spelling that clients use. A thin shell: find the
//! operation, check the mode, read, decide, record, reply. Headers and body leave in one write, since
//! one public client reads only what has arrived with the headers.

use actix_web::{
    HttpRequest, HttpResponse,
    http::{Method, StatusCode, header},
    web::{self, Bytes, Data, Payload},
};
use hgs_protocol::{
    health::AttestationMode,
    wire::hgsa::{Reply, Request},
};

use crate::{AnyAsk, App, attest::Ask, host_key::HostKeyAsk, limits::client_address, refusal::Refusal};

/// Routes everything that is not the shell's own; any path may come in any case.
pub fn routes(app: &mut web::ServiceConfig) {
    app.default_service(web::to(serve));
}

/// What a path asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    ServiceInfo,
    SigningCertificates,
    Attest { mode: AttestationMode, v2: bool },
}

impl Operation {
    /// From a path in any case, with doubled or trailing slashes, with or without the `.svc` segment.
    fn of(path: &str) -> Option<Operation> {
        let path = path.to_ascii_lowercase();
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        let segments = segments.strip_prefix(&["attestation"])?;
        let segments = segments.strip_prefix(&["attestationservice.svc"]).unwrap_or(segments);
        use AttestationMode::{ActiveDirectory, HostKey, Tpm};
        let attest = |mode, v2| Some(Operation::Attest { mode, v2 });
        match segments {
            ["getinfo"] | ["v1.0" | "v2.0", "getinfo"] => Some(Operation::ServiceInfo),
            ["signingcertificates"] | ["v2.0", "signingcertificates"] => Some(Operation::SigningCertificates),
            ["v1.0", "attest"] => attest(Tpm, false),
            ["v2.0", "attest"] => attest(Tpm, true),
            ["v1.0", "domainattest"] => attest(ActiveDirectory, false),
            ["v2.0", "domainattest"] => attest(ActiveDirectory, true),
            ["v2.0", "hostkeyattest"] => attest(HostKey, true),
            _ => None,
        }
    }
}

async fn serve(request: HttpRequest, payload: Payload, app: Data<App>) -> HttpResponse {
    let Some(operation) = Operation::of(request.path()) else {
        return HttpResponse::NotFound().finish();
    };
    let (allowed, allow) = match operation {
        Operation::Attest { .. } => (request.method() == Method::POST, "POST"),
        _ => (matches!(*request.method(), Method::GET | Method::HEAD), "GET, HEAD"),
    };
    if !allowed {
        return HttpResponse::MethodNotAllowed()
            .insert_header((header::ALLOW, allow))
            .finish();
    }
    if let (Some(limit), Some(address)) = (&app.addresses, client_address(&request, &app.proxies))
        && !limit.admit(address)
    {
        return refuse(
            &app,
            &Refusal::Unavailable("too many requests from this address in a minute"),
        );
    }
    let standing = match app.standing().await {
        Ok(standing) => standing,
        // Clients keep the signing certificates for hours, so the last known ones are good enough.
        Err(_) if operation == Operation::SigningCertificates && app.last_standing().is_some() => {
            let last = app.last_standing().map(|last| last.signing_certificates.clone());
            return json(StatusCode::OK, last.unwrap_or_default());
        }
        Err(error) => {
            tracing::error!(%error, "what stands is not known");
            return refuse(&app, &Refusal::Unavailable("the database does not answer"));
        }
    };
    match operation {
        Operation::ServiceInfo => json(
            StatusCode::OK,
            Reply::ServiceInfo {
                functional_level: 2,
                operation_mode: Some(standing.mode),
                supported_functional_levels: vec![1, 2],
            }
            .encode(),
        ),
        Operation::SigningCertificates => json(StatusCode::OK, standing.signing_certificates.clone()),
        // The mode is checked before the body is read.
        Operation::Attest { mode, .. } if mode != standing.mode => refuse(
            &app,
            &Refusal::OperationMode {
                expected: standing.mode,
            },
        ),
        Operation::Attest { mode, v2 } => match payload.to_bytes_limited(LARGEST_BODY).await {
            Err(_) => HttpResponse::PayloadTooLarge().finish(),
            Ok(Err(_)) => HttpResponse::BadRequest().finish(),
            Ok(Ok(body)) => attest(&app, &body, mode, v2).await,
        },
    }
}

async fn attest(app: &Data<App>, body: &Bytes, mode: AttestationMode, v2: bool) -> HttpResponse {
    let Ok(_admitted) = app.admitted.try_acquire() else {
        return refuse(app, &Refusal::Unavailable("too many requests at once"));
    };
    let ask = match Request::parse(body) {
        Ok(request) if mode == AttestationMode::HostKey => HostKeyAsk::from_request(request).map(AnyAsk::HostKey),
        Ok(request) => Ask::from_request(request, v2).map(AnyAsk::Tpm),
        Err(error @ hgs_protocol::wire::hgsa::JsonError::NotJson) => Err(Refusal::NotJson(error)),
        Err(error) => Err(Refusal::Payload(error.to_string())),
    };
    let outcome = match ask {
        Ok(ask) => App::decide(app.clone().into_inner(), ask).await,
        Err(refusal) => Err(refusal),
    };
    match outcome {
        Ok(reply) => {
            app.metrics.decided("attestation", reply.name());
            json(StatusCode::OK, reply.encode())
        }
        Err(refusal) => refuse(app, &refusal),
    }
}

fn refuse(app: &App, refusal: &Refusal) -> HttpResponse {
    let (reply, status) = refusal.reply();
    tracing::info!(reply = reply.name(), cause = %refusal, "refused");
    app.metrics.decided("attestation", reply.name());
    let mut response = json(StatusCode::from_u16(status).unwrap_or(StatusCode::OK), reply.encode());
    if status == 503 {
        let seconds = header::HeaderValue::from_static("5");
        response.headers_mut().insert(header::RETRY_AFTER, seconds);
    }
    response
}

fn json(status: StatusCode, body: Vec<u8>) -> HttpResponse {
    HttpResponse::build(status)
        .insert_header((header::CONTENT_TYPE, "application/json; charset=utf-8"))
        .body(body)
}

/// Larger bodies are answered with 413.
const LARGEST_BODY: usize = 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_path_leads_to_its_operation() {
        for path in [
            "/Attestation/v2.0/signingCertificates",
            "/Attestation/v2.0/signingCertificates/",
            "//Attestation//attestationservice.svc/v2.0/signingCertificates/",
            "/attestation/AttestationService.svc/signingCERTIFICATES",
            "/ATTESTATION/signingcertificates",
        ] {
            assert_eq!(Operation::of(path), Some(Operation::SigningCertificates), "{path}");
        }
        for path in [
            "/Attestation/Getinfo",
            "/attestation/v2.0/getinfo/",
            "/Attestation/attestationservice.svc/getinfo",
        ] {
            assert_eq!(Operation::of(path), Some(Operation::ServiceInfo), "{path}");
        }
        let tpm = |v2| {
            Some(Operation::Attest {
                mode: AttestationMode::Tpm,
                v2,
            })
        };
        assert_eq!(Operation::of("/Attestation/v1.0/attest"), tpm(false));
        assert_eq!(
            Operation::of("/Attestation/attestationservice.svc/V2.0/Attest/"),
            tpm(true)
        );
        for path in [
            "/",
            "/Attestation",
            "/Attestation/v3.0/attest",
            "/Attestation/v1.0/hostkeyattest",
            "/Attestation/attest",
            "/v2.0/attest",
            "/KeyProtection/v2.0/attest",
        ] {
            assert_eq!(Operation::of(path), None, "{path}");
        }
    }
}
