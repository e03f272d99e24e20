//! What holds for every answer and every request: headers that leave a browser no freedom, names under which the
//! console is reached, and forms from its own pages alone.

use actix_web::{
    Error, HttpResponse,
    body::{BoxBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::{
        Method,
        header::{self, HeaderName, HeaderValue},
    },
    middleware::Next,
    web,
};

use crate::Console;

/// Wraps every route.
pub(crate) async fn secure(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let refusal = refusal(&request);
    let fixed = request.path().starts_with("/static/");
    let mut response = match refusal {
        Some(text) => {
            let answer = HttpResponse::Forbidden()
                .content_type("text/plain; charset=utf-8")
                .body(text);
            request.into_response(answer)
        }
        None => next.call(request).await?.map_into_boxed_body(),
    };
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    let keep = if fixed { "public, max-age=3600" } else { "no-store" };
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(keep));
    Ok(response)
}

fn refusal(request: &ServiceRequest) -> Option<&'static str> {
    let header = |name: HeaderName| {
        request
            .headers()
            .get(name)
            .map(|value| value.to_str().unwrap_or_default())
    };
    let console = request.app_data::<web::Data<Console>>()?;
    let host = header(header::HOST).unwrap_or_default();
    if !is_known(name_of(host), &console.names) {
        return Some(
            "the console is not reached under this name: use localhost, or start it with --name for another one",
        );
    }
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return None;
    }
    let origin = header(header::ORIGIN).and_then(|origin| origin.split_once("://").map(|(_, rest)| rest));
    let site = header(HeaderName::from_static("sec-fetch-site"));
    // A browser sends one of the two with every form. Whoever sends neither is no browser and holds no cookie of one.
    let foreign = origin.is_some_and(|origin| origin != host) || site.is_some_and(|site| site != "same-origin");
    foreign.then_some("this form is from another site")
}

/// Without the port.
fn name_of(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    }
}

fn is_known(name: &str, names: &[String]) -> bool {
    let loopback = name
        .parse::<std::net::IpAddr>()
        .is_ok_and(|address| address.is_loopback());
    loopback || name.eq_ignore_ascii_case("localhost") || names.iter().any(|known| known.eq_ignore_ascii_case(name))
}

const HEADERS: [(&str, &str); 7] = [
    (
        "content-security-policy",
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; \
         form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    // Not less: browsers then send forms with the origin `null`.
    ("referrer-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_somebody_elses_is_not_ours() {
        let names = ["console.lab".to_owned()];
        for host in ["localhost:8080", "127.0.0.1", "[::1]:8080", "Console.lab:80"] {
            assert!(is_known(name_of(host), &names), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example:8080",
            "10.0.0.1:8080",
            "[fe80::1]",
        ] {
            assert!(!is_known(name_of(host), &names), "{host}");
        }
    }
}
