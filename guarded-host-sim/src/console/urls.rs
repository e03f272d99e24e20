//! Whether a base URL is that of a service that answers, as the fabric's hosts would reach it.

use hgs_console::UrlOf;
use hgs_protocol::env::Clock;

use crate::{
    agent::configuration::{NO_KEY_PROTECTION, ServerUrl, Service},
    client::{LabClient, NameTable},
};

/// Asks the service at `url` for something that only such a service has.
pub(super) async fn check(names: NameTable, of: UrlOf, url: &str) -> Result<(), String> {
    let (service, path, what) = match of {
        UrlOf::Attestation => (
            Service::Attestation,
            "v2.0/signingCertificates",
            "the attestation service's signing certificates",
        ),
        UrlOf::KeyProtection => (
            Service::KeyProtection,
            "service/metadata/2014-07/metadata.xml",
            "the key protection service's metadata",
        ),
    };
    let url = ServerUrl::parse(url, service).map_err(|error| error.to_string())?;
    if url.as_str() == NO_KEY_PROTECTION && of == UrlOf::KeyProtection {
        return Ok(());
    }
    let client = LabClient::new(names, None, Clock::system()).map_err(|error| error.to_string())?;
    let asked = format!("{}/{path}", url.as_str().trim_end_matches('/'));
    match client.get(&asked, LARGEST_ANSWER).await {
        Ok(answer) if answer.status == 200 => Ok(()),
        Ok(answer) => Err(format!(
            "{} answers, but has not {what} (HTTP status {}): is the path right?",
            url.as_str(),
            answer.status
        )),
        Err(error) => Err(error.to_string()),
    }
}

const LARGEST_ANSWER: usize = 1024 * 1024;
