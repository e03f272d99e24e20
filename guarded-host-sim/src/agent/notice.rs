//! What the client has to tell: each kind of notice passes here once, where it happens.

use hgs_protocol::status::AttestationStatus;

use super::{
    Agent, Outcome,
    configuration::{ClientConfiguration, Server},
};

/// Something that an administrator may want to know.
#[derive(Debug)]
pub(super) enum Notice<'a> {
    /// The client configuration was set.
    Configured {
        /// It.
        configuration: &'a ClientConfiguration,
    },
    /// An attestation brought no certificate, after its retries.
    AttestationFailed {
        /// Whose.
        server: Server,
        /// Base URL of the service.
        url: &'a str,
        /// Status, substatus, and the protocol's error.
        outcome: &'a Outcome,
    },
    /// The host's AttestationStatus is another one than before.
    StatusChanged {
        /// None for the first.
        before: Option<AttestationStatus>,
        /// The present one.
        now: AttestationStatus,
        /// The attempt that showed it.
        outcome: &'a Outcome,
    },
    /// The primary HGS does not answer and the fallback does; or the primary does again.
    FallbackInUse {
        /// Whether the fallback is in use now.
        fallback: bool,
    },
}

impl Agent {
    /// Tells. The one place through which all of it goes.
    pub(super) fn notice(&self, notice: &Notice<'_>) {
        let host = self.name();
        match notice {
            Notice::Configured { configuration } => {
                tracing::info!(host, mode = configuration.mode(), "the client configuration was set");
            }
            Notice::AttestationFailed { server, url, outcome } => {
                tracing::warn!(host, ?server, url, "attestation failed: {}", outcome.detail);
            }
            Notice::StatusChanged { before, now, outcome } => {
                tracing::info!(
                    host,
                    ?before,
                    ?now,
                    "the attestation status changed: {}",
                    outcome.detail
                );
            }
            Notice::FallbackInUse { fallback: true } => {
                tracing::warn!(host, "the primary HGS does not answer: the fallback is in use");
            }
            Notice::FallbackInUse { fallback: false } => tracing::info!(host, "the primary HGS is in use again"),
        }
    }
}
