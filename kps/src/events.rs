//! What the record of this service says, as events. No id of the product's key protection provider is known, so all are
//! this lab's own.

use hgs_service::{
    audit::AuditRow,
    events::{Event, Level, Provider, recorded::common},
};
use serde_json::Value;

/// The events in one row.
pub fn of_row(row: &AuditRow) -> Vec<Event> {
    let text = |name: &str| row.body.get(name).and_then(Value::as_str).unwrap_or_default();
    let made = |id, message: String| OWN.event(id, Level::Information, message);
    let certificate = || format!("{} certificate {}", text("certificateType"), text("sha256"));
    let signer = || match text("thumbprint") {
        "" => "all trusted attestation signers".to_owned(),
        thumbprint => format!("the attestation signer {thumbprint}"),
    };
    let event = match row.kind.as_str() {
        "key-release" => return vec![release(&row.body)],
        "attestation-signer-trusted" => made(
            SIGNER_TRUSTED,
            format!("Health certificates of {} are accepted from now on.", signer()),
        ),
        "attestation-signer-removed" => made(
            SIGNER_REMOVED,
            format!("Health certificates of {} are refused from now on.", signer()),
        ),
        "attestation-signer-policy" => made(
            SIGNER_POLICY,
            match row.body.get("denyIssuedBefore").and_then(Value::as_i64) {
                Some(before) => format!(
                    "Health certificates of {} that were issued before {} are refused from now on.",
                    signer(),
                    hgs_protocol::env::UnixTime(before)
                ),
                None => format!(
                    "Health certificates of {} are accepted whenever they were issued.",
                    signer()
                ),
            },
        ),
        "certificate-added" => made(CERTIFICATE_ADDED, format!("The {} was added.", certificate())),
        "certificate-primary" => made(
            CERTIFICATE_PRIMARY,
            format!("The {} is primary from now on.", certificate()),
        ),
        "certificate-enabled" => made(CERTIFICATE_ENABLED, format!("The {} is enabled.", certificate())),
        "certificate-disabled" => made(
            CERTIFICATE_DISABLED,
            format!(
                "The {} is disabled: key protectors that only it opens are refused from now on.",
                certificate()
            ),
        ),
        "certificate-removed" => made(CERTIFICATE_REMOVED, format!("The {} is gone for good.", certificate())),
        "settings-changed" => made(SETTINGS, "The settings of key protection were changed.".to_owned()),
        _ => return common(OWN, row),
    };
    let members = row.body.as_object().into_iter().flatten();
    vec![members.fold(event, |event, (name, value)| event.with(&capital(name), value.clone()))]
}

fn release(body: &Value) -> Event {
    let text = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default();
    let (outcome, certificate) = (text("outcome"), text("healthCertificate"));
    let event = match outcome {
        "Released" => OWN.event(
            RELEASED,
            Level::Information,
            format!("A transport key was released to the host with the health certificate {certificate}."),
        ),
        code => {
            let message = format!(
                "A transport key was refused: {code}, {}. {}",
                text("cause"),
                remedy(code)
            );
            OWN.event(REFUSED, Level::Error, message)
                .with("ErrorCode", code)
                .with("Reason", text("cause"))
        }
    };
    event
        .with("HealthCertificate", body["healthCertificate"].clone())
        .with("IngressProtector", body["ingressProtector"].clone())
        .with("EgressProtector", body["egressProtector"].clone())
}

/// What the administrator of this service does about a refusal.
fn remedy(code: &str) -> &'static str {
    match code {
        "HealthCertificateException" => {
            "Compare the clocks, and see that the attestation signer is trusted here and denied no time."
        }
        "KeyProtectionAccessDeniedException" => {
            "Enable the old certificate if there is one, or let the VM's owner give access to this guardian."
        }
        "InvalidProtectorException" | "InvalidWrappingException" => {
            "The protector was changed or is damaged: its fabric puts back a copy, or its owner makes a new one."
        }
        "UnsupportedAlgorithmException" => "The host asks for what no suite here has: update it.",
        "InternalException" => "Look at the service's log, and at the token that holds its keys.",
        _ => "Look at the service's log.",
    }
}

/// `denyIssuedBefore` becomes `DenyIssuedBefore`.
fn capital(name: &str) -> String {
    let mut letters = name.chars();
    let first = letters.next().into_iter().flat_map(char::to_uppercase);
    first.chain(letters).collect()
}

/// This lab's own provider.
const OWN: Provider = Provider("GuardedFabricLab-KeyProtection");

const RELEASED: u32 = 52_001;
const REFUSED: u32 = 52_002;
const SIGNER_TRUSTED: u32 = 52_010;
const SIGNER_REMOVED: u32 = 52_011;
const SIGNER_POLICY: u32 = 52_012;
const CERTIFICATE_ADDED: u32 = 52_020;
const CERTIFICATE_PRIMARY: u32 = 52_021;
const CERTIFICATE_ENABLED: u32 = 52_022;
const CERTIFICATE_DISABLED: u32 = 52_023;
const CERTIFICATE_REMOVED: u32 = 52_024;
const SETTINGS: u32 = 52_030;
