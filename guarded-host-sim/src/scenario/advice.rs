//! What an administrator would do about what came of a step: from the services' records where they say it, and from
//! one table for the rest.

use serde_json::Value;

use super::{came::Came, world::Recorded};
use hgs_protocol::status::AttestationStatus;

/// One policy's verdict about a host, as attestation recorded it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PolicyVerdict {
    /// The host.
    pub host: String,
    /// The policy by the specification's name.
    pub policy: String,
    /// `pass`, `fail` or `not measured`.
    pub verdict: String,
    /// Whether it counts.
    pub enabled: bool,
    /// The PCR and event that decided.
    pub decided_by: String,
    /// What would pass.
    pub expected: String,
    /// What was there.
    pub seen: String,
    /// What to do about it.
    pub remedy: String,
}

/// Every policy's verdict in a row of attestation's record.
pub fn verdicts(row: &Recorded) -> Vec<PolicyVerdict> {
    let host = row.body.get("host").and_then(Value::as_str).unwrap_or_default();
    let rows = row.body.get("verdicts").and_then(Value::as_array);
    let of = |row: &Value| {
        let text = |key: &str| row.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        PolicyVerdict {
            host: host.to_owned(),
            policy: text("policy"),
            verdict: text("verdict"),
            enabled: row.get("enabled").and_then(Value::as_bool).unwrap_or(false),
            decided_by: text("decided_by"),
            expected: text("expected"),
            seen: text("seen"),
            remedy: text("remedy"),
        }
    };
    rows.into_iter().flatten().map(of).collect()
}

/// What helps, in sentences; empty when nothing is amiss.
pub fn advice(came: &Came) -> Vec<String> {
    let mut told: Vec<String> = Vec::new();
    let mut tell = |text: String| {
        if !text.is_empty() && !told.contains(&text) {
            told.push(text);
        }
    };
    if came.done {
        return told;
    }
    for event in &came.events {
        let failed = verdicts(event)
            .into_iter()
            .filter(|verdict| verdict.enabled && verdict.verdict != "pass");
        for verdict in failed {
            tell(format!("{}: {}", verdict.policy, verdict.remedy));
        }
    }
    if let Some(error) = &came.error
        && let Some((_, help)) = ERRORS.iter().find(|(name, _)| name == error)
    {
        tell((*help).to_owned());
    }
    let status = came
        .status
        .as_deref()
        .and_then(|name| AttestationStatus::ALL.into_iter().find(|s| format!("{s:?}") == name));
    if let Some(status) = status {
        tell(status.remedy().to_owned());
    }
    for event in came
        .events
        .iter()
        .filter(|event| event.is_decision() && !event.reason.is_empty())
    {
        tell(format!("{} recorded: {}.", event.service, event.reason));
    }
    told
}

/// Errors of both protocols and what an administrator does about each.
const ERRORS: [(&str, &str); 19] = [
    (
        "OperationModeErrorReply",
        "The service is in another mode than the URL's: see Get-HgsServer, and let the host attest again.",
    ),
    (
        "PayloadErrorReply",
        "The request does not fit its URL: compare the versions of host and service.",
    ),
    (
        "PolicyEvaluationErrorReply",
        "Look at each failed policy; change the host, or register its new baseline or policy.",
    ),
    (
        "RtpmErrorReply",
        "The exchange with the TPM failed: let the host attest again; if it stays, look at the TPM and at what is \
         between host and service.",
    ),
    (
        "TcgLogValidationErrorReply",
        "The boot log does not prove the PCR values: reboot the host; update firmware and network boot program.",
    ),
    (
        "UnauthorizedErrorReply",
        "The host's identity is not registered: capture it on the host and add it with Add-HgsAttestationTpmHost or \
         Add-HgsAttestationHostKey.",
    ),
    (
        "UnavailableErrorReply",
        "The service is busy or its database is away: wait; if it stays, look at its log.",
    ),
    (
        "VirtualSecureModeErrorReply",
        "Virtualization-based security does not run or shows no key: turn it on, and reboot.",
    ),
    (
        "VsmReportValidationErrorReply",
        "The report of the CA trustlet does not verify: only a trustlet on that host can make one.",
    ),
    (
        "ErrorReply",
        "The service could not issue a certificate: see whether its attestation signer has ended, and renew it.",
    ),
    (
        "HealthCertificateException",
        "Key protection does not accept the health certificate: compare clocks, and see that its attestation signer is \
         registered with key protection.",
    ),
    (
        "InvalidProtectorException",
        "The key protector was changed or is damaged: put back the one of a backup, or let its owner make a new one.",
    ),
    (
        "InvalidWrappingException",
        "A wrapping of the key protector is damaged: let its owner make a new protector.",
    ),
    (
        "KeyProtectionAccessDeniedException",
        "No wrapping is for a certificate of this HGS: enable the old certificate, or let the VM's owner grant access \
         to this HGS's guardian.",
    ),
    (
        "InvalidRequestException",
        "The request is not the protocol's: compare the versions of host and service.",
    ),
    (
        "UnsupportedAlgorithmException",
        "The host asks for an algorithm that this service does not have: update the host.",
    ),
    (
        "MetadataException",
        "The HGS has no primary certificate: make one primary with Set-HgsKeyProtectionCertificate -IsPrimary.",
    ),
    (
        "UnavailableException",
        "Key protection is busy or its database is away: wait; if it stays, look at its log.",
    ),
    (
        "InternalException",
        "Key protection could not use its keys: look at its log, and at the token that holds them.",
    ),
];
