//! TLS for both listeners: rustls, TLS 1.2 and 1.3, time from the injected clock.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use hgs_protocol::env::Clock;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
    time_provider::TimeProvider,
};

use crate::settings::TlsFiles;

/// Lets rustls ask the lab's clock.
#[derive(Clone, Debug)]
pub struct LabTime(pub Clock);

impl TimeProvider for LabTime {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.now().0).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

/// The server's configuration from its files.
pub fn server_config(files: &TlsFiles, clock: Clock) -> anyhow::Result<ServerConfig> {
    let chain = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| {
            format!(
                "the TLS certificate {} cannot be read as PEM",
                files.certificate.display()
            )
        })?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .with_context(|| format!("the TLS key {} cannot be read as PEM", files.key.display()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ServerConfig::builder_with_details(provider, Arc::new(LabTime(clock)))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("the TLS certificate and key do not fit together")
}
