//! What the client has to tell: each kind of notice passes here once, where it happens, and becomes an event of the
//! host's log. Ids of the product's providers are those that its documents tell; the rest stand under this lab's own.

use hgs_protocol::{
    health::AttestationMode,
    status::{AttestationStatus, SubstatusFlag},
};
use hgs_service::events::{Event, Level, Provider};
use serde_json::Value;

use super::{
    Agent, Outcome,
    attest::{AttestError, Health},
    configuration::{Change, ClientConfiguration, Server},
    view,
    vm::deeds::{self, Deed},
};
use crate::vm::{VmId, VmName, operation::VmError};

/// Something that an administrator may want to know.
#[derive(Debug)]
pub(super) enum Notice<'a> {
    /// The host has booted: its agent begins.
    Booted,
    /// The client configuration was set.
    Configured {
        /// It.
        configuration: &'a ClientConfiguration,
    },
    /// An attestation brought a certificate.
    Attested {
        /// Whose.
        server: Server,
        /// Base URL of the service.
        url: &'a str,
        /// What it brought.
        health: &'a Health,
        /// In which mode.
        mode: AttestationMode,
    },
    /// An attestation brought no certificate, after its retries.
    AttestationFailed {
        /// Whose.
        server: Server,
        /// Base URL of the service.
        url: &'a str,
        /// Why.
        error: &'a AttestError,
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
    /// Something was done to a VM, or was not.
    Vm {
        /// What.
        deed: &'a Deed,
        /// The VM, by name.
        name: &'a VmName,
        /// And by id, where its files tell it.
        id: Option<VmId>,
        /// Why it was not done.
        refused: Option<&'a VmError>,
    },
}

impl Agent {
    /// Tells: to the event log, and in short to the agent's own log. The one place through which all of it goes.
    pub(super) fn notice(&self, notice: &Notice<'_>) {
        for event in self.events_of(notice) {
            let host = self.name();
            match event.level {
                Level::Information | Level::Verbose => tracing::info!(host, id = event.id, "{}", event.message),
                _ => tracing::warn!(host, id = event.id, "{}", event.message),
            }
            self.events.write(event);
        }
    }

    /// The events of a notice, in the order in which they happened.
    fn events_of(&self, notice: &Notice<'_>) -> Vec<Event> {
        match notice {
            Notice::Booted => vec![self.booted()],
            Notice::Configured { configuration } => vec![configured(configuration)],
            Notice::Attested {
                server,
                url,
                health,
                mode,
            } => {
                let (_, until) = health.encryption.validity();
                let serial = health.encryption.serial();
                let message = format!("Remote attestation was completed: health certificate {serial} is valid until {until}.");
                let event = CLIENT.event(ATTESTED, Level::Information, message);
                let event = at(event, *server, url).with("AttestationOperationMode", view::mode_name(*mode));
                vec![
                    event
                        .with("AttestationStatus", format!("{:?}", AttestationStatus::Passed))
                        .with("HealthCertificate", serial)
                        .with("NotAfter", until.to_string()),
                ]
            }
            Notice::AttestationFailed {
                server,
                url,
                error,
                outcome,
            } => failed(error, outcome)
                .into_iter()
                .map(|event| with_outcome(at(event, *server, url), outcome))
                .collect(),
            Notice::StatusChanged { before, now, outcome } => vec![status_changed(*before, *now, outcome)],
            Notice::FallbackInUse { fallback: true } => vec![OWN.event(
                FALLBACK_IN_USE,
                Level::Warning,
                "The primary HGS does not answer: the fallback is in use. Check the primary's URLs, name resolution, route \
                 and services; the host goes back to it by itself.",
            )],
            Notice::FallbackInUse { fallback: false } => {
                let message = "The primary HGS answers again and is in use.";
                vec![OWN.event(PRIMARY_IN_USE, Level::Information, message)]
            }
            Notice::Vm {
                deed,
                name,
                id,
                refused,
            } => {
                let of_vm = |event: Event| {
                    let event = event.with("VMName", name.as_str()).with("Operation", deed.verb());
                    event.with("VMId", id.map(|id| id.to_string()))
                };
                let events = match refused {
                    None => deeds::done(deed, name),
                    Some(error) => deeds::refused(deed, name, error),
                };
                events.into_iter().map(of_vm).collect()
            }
        }
    }

    fn booted(&self) -> Event {
        let configuration = self.configuration();
        let vsm = self.args.store.is_some();
        let (level, message) = match vsm {
            true => (
                Level::Information,
                "The host has booted, and its VBS store runs.".to_owned(),
            ),
            false => (
                Level::Warning,
                format!(
                    "The host has booted without virtualization-based security: it can hold no key of a VM. {}",
                    SubstatusFlag::VirtualSecureMode.remedy()
                ),
            ),
        };
        let event = OWN.event(BOOTED, level, message);
        event.with("Mode", configuration.mode()).with("VirtualSecureMode", vsm)
    }
}

fn configured(configuration: &ClientConfiguration) -> Event {
    let message = match configuration {
        ClientConfiguration::Local => "The client configuration was set: local mode, without an HGS.",
        ClientConfiguration::HostGuardianService { fallback: None, .. } => {
            "The client configuration was set: an HGS without a fallback. The host attests by it."
        }
        ClientConfiguration::HostGuardianService { fallback: Some(_), .. } => {
            "The client configuration was set: an HGS and a fallback. The host attests by it."
        }
    };
    let event = OWN.event(CONFIGURED, Level::Information, message);
    let event = event.with("Mode", configuration.mode());
    // The URLs have no password in them: none is taken that has.
    let urls = serde_json::to_value(Change::from(configuration)).unwrap_or_default();
    let urls = urls.as_object().cloned().unwrap_or_default();
    let urls = urls.into_iter().filter(|(name, _)| name.ends_with("Url"));
    urls.fold(event, |event, (name, url)| event.with(&name, url))
}

/// One event of the product's for each reason that has one, and for the others one of this lab's.
fn failed(error: &AttestError, outcome: &Outcome) -> Vec<Event> {
    let detail = &outcome.detail;
    let told = |help: &str| format!("Attestation failed: {detail}. {help}").trim_end().to_owned();
    if !outcome.substatus.flags.is_empty() {
        let flags = outcome.substatus.flags.iter();
        return flags.map(|flag| insecure(*flag, told(flag.remedy()))).collect();
    }
    let help = outcome.error.as_deref().and_then(crate::remedy::remedy);
    let message = told(help.unwrap_or(outcome.status.remedy()));
    let mode = outcome.mode.unwrap_or(AttestationMode::Tpm);
    let (provider, id, level) = match (error, outcome.status, mode) {
        (_, AttestationStatus::UnauthorizedHost, AttestationMode::Tpm) => (CLIENT, EK_NOT_AUTHORIZED, Level::Error),
        (_, AttestationStatus::UnauthorizedHost, _) => (OWN, HOST_KEY_NOT_AUTHORIZED, Level::Error),
        // It is the first that the TPM is asked for.
        (AttestError::Tpm(_), ..) => (CLIENT, EK_NOT_DETERMINED, Level::Error),
        (_, AttestationStatus::TpmError, _) => (OWN, TPM_ERROR, Level::Error),
        (AttestError::Client(_) | AttestError::Service(_), ..) => (CLIENT, HTTP_ERROR, Level::Warning),
        _ => (OWN, ATTESTATION_FAILED, Level::Warning),
    };
    vec![provider.event(id, level, message)]
}

fn insecure(flag: SubstatusFlag, message: String) -> Event {
    let (provider, id) = match flag {
        SubstatusFlag::SecureBoot | SubstatusFlag::SecureBootSettings => (CLIENT, MEASUREMENTS),
        SubstatusFlag::CodeIntegrityPolicy => (CLIENT, CI_POLICY),
        _ => (OWN, INSECURE),
    };
    let event = provider.event(id, Level::Error, message);
    event.with("AttestationSubstatus", flag.name())
}

fn at(event: Event, server: Server, url: &str) -> Event {
    event
        .with("Server", format!("{server:?}"))
        .with("AttestationServerUrl", url)
}

fn with_outcome(event: Event, outcome: &Outcome) -> Event {
    event
        .with("AttestationStatus", format!("{:?}", outcome.status))
        .with("Error", outcome.error.clone())
        .with("Message", outcome.detail.clone())
        .with("AttestationOperationMode", outcome.mode.map(view::mode_name))
}

fn status_changed(before: Option<AttestationStatus>, now: AttestationStatus, outcome: &Outcome) -> Event {
    let level = match now {
        AttestationStatus::Passed | AttestationStatus::NotConfigured | AttestationStatus::Unknown => Level::Information,
        AttestationStatus::Expired | AttestationStatus::TransientError => Level::Warning,
        _ => Level::Error,
    };
    let word = |status| format!("{status:?}");
    let was = before.map_or_else(|| "nothing yet".to_owned(), word);
    let help = view::remedy(outcome);
    let message = format!(
        "The attestation status is {now:?}; it was {was}. {}. {help}",
        outcome.detail
    );
    OWN.event(STATUS_CHANGED, level, message.trim_end())
        .with("AttestationStatus", word(now))
        .with("StatusBefore", before.map(word))
        .with("AttestationSubstatus", outcome.substatus.text())
        .with("FailedPolicies", outcome.substatus.failed_policies.clone())
        .with("Error", outcome.error.clone().map_or(Value::Null, Value::from))
}

/// The product's provider.
pub(super) const CLIENT: Provider = Provider("Microsoft-Windows-HostGuardianService-Client");
/// This lab's own.
pub(super) const OWN: Provider = Provider("GuardedFabricLab-Host");

const ATTESTED: u32 = 1003;
const HTTP_ERROR: u32 = 1006;
const EK_NOT_AUTHORIZED: u32 = 1007;
const MEASUREMENTS: u32 = 1008;
const CI_POLICY: u32 = 1009;
const EK_NOT_DETERMINED: u32 = 1012;

const BOOTED: u32 = 50_001;
const CONFIGURED: u32 = 50_010;
const STATUS_CHANGED: u32 = 50_011;
const FALLBACK_IN_USE: u32 = 50_012;
const PRIMARY_IN_USE: u32 = 50_013;
const ATTESTATION_FAILED: u32 = 50_020;
const INSECURE: u32 = 50_021;
const HOST_KEY_NOT_AUTHORIZED: u32 = 50_022;
const TPM_ERROR: u32 = 50_023;
