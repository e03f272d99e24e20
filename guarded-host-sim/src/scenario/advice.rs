//! What an administrator would do about what came of a step: from the services' records where they say it, and from
//! the table of errors for the rest.

use serde_json::Value;

use super::{came::Came, world::Recorded};
use crate::remedy::remedy;
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
    if let Some(help) = came.error.as_deref().and_then(remedy) {
        tell(help.to_owned());
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
