//! Which of the specifications' messages, error codes, statuses and substatuses a run reached, and which it missed.

use std::collections::BTreeMap;

use hgs_protocol::{
    status::{AttestationStatus, POLICIES, SubstatusFlag},
    wire::{
        hgsa::{Reply, Request},
        kps::ErrorMessage,
    },
    xml::Xml,
};
use serde::Serialize;

use super::{
    advice::verdicts,
    journal::{Message, Party},
    model::step::ServiceName,
    run::Report,
};

/// One kind of thing, with all that can be reached of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    /// What the things are.
    pub title: &'static str,
    /// Each.
    pub items: Vec<Item>,
}

/// One thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// Its name.
    pub name: String,
    /// Where it is specified, or whose it is.
    pub source: String,
    /// Why no run reaches it, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub excuse: Option<&'static str>,
    /// How often it was reached.
    pub count: usize,
    /// The scenarios that reached it, in their order.
    pub scenarios: Vec<String>,
}

impl Item {
    /// Whether it could have been reached and was not.
    pub fn is_missed(&self) -> bool {
        self.count == 0 && self.excuse.is_none()
    }
}

/// What was seen, by name.
#[derive(Default)]
struct Seen(BTreeMap<String, (usize, Vec<String>)>);

impl Seen {
    fn see(&mut self, name: impl Into<String>, scenario: &str) {
        let (count, scenarios) = self.0.entry(name.into()).or_default();
        *count += 1;
        if scenarios.last().map(String::as_str) != Some(scenario) {
            scenarios.push(scenario.to_owned());
        }
    }

    fn item(&self, name: &str, source: impl Into<String>, excuse: Option<&'static str>) -> Item {
        let (count, scenarios) = self.0.get(name).cloned().unwrap_or_default();
        Item {
            name: name.to_owned(),
            source: source.into(),
            excuse,
            count,
            scenarios,
        }
    }
}

/// What the run reached.
pub fn coverage(reports: &[Report]) -> Vec<Group> {
    let (mut messages, mut statuses, mut substatuses) = (Seen::default(), Seen::default(), Seen::default());
    let (mut passed, mut failed) = (Seen::default(), Seen::default());
    for report in reports {
        let name = &report.file.name;
        for message in &report.messages {
            for kind in kinds(message) {
                messages.see(kind, name);
            }
        }
        for came in report.steps.iter().filter_map(|step| step.came.as_ref()) {
            if let Some(status) = &came.status {
                statuses.see(status.clone(), name);
                let names = came.substatus.as_deref().unwrap_or_default();
                names
                    .iter()
                    .for_each(|substatus| substatuses.see(substatus.clone(), name));
                if names.is_empty() {
                    substatuses.see("NoInformation", name);
                }
            }
            for verdict in came.events.iter().flat_map(verdicts) {
                let seen = if verdict.verdict == "pass" {
                    &mut passed
                } else {
                    &mut failed
                };
                seen.see(verdict.policy, name);
            }
        }
    }
    let list = |title, rows: &[(&str, &'static str)]| Group {
        title,
        items: rows
            .iter()
            .map(|(name, source)| messages.item(name, *source, excuse(name)))
            .collect(),
    };
    let policies = |title, seen: &Seen| Group {
        title,
        items: POLICIES
            .iter()
            .map(|policy| seen.item(policy.name, "MS-HGSA 2.2.2.13", None))
            .collect(),
    };
    vec![
        list("Requests of attestation (MS-HGSA)", &REQUESTS),
        list("Replies of attestation (MS-HGSA)", &REPLIES),
        list("Messages of key protection (MS-KPS)", &DOCUMENTS),
        list("Error codes of key protection (MS-KPS and this project's)", &CODES),
        Group {
            title: "AttestationStatus",
            items: AttestationStatus::ALL
                .iter()
                .map(|status| statuses.item(&format!("{status:?}"), "the product", None))
                .collect(),
        },
        Group {
            title: "AttestationSubstatus",
            items: substatus_names()
                .into_iter()
                .map(|name| substatuses.item(name, "the product", None))
                .collect(),
        },
        policies("Policies that a host failed", &failed),
        policies("Policies that a host passed", &passed),
    ]
}

/// The types of a message's request and answer.
fn kinds(message: &Message) -> Vec<String> {
    let Party::Service { service, .. } = &message.to else {
        return Vec::new();
    };
    let answer = message.answer.as_ref();
    let mut kinds = Vec::new();
    match service {
        ServiceName::Attestation => {
            kinds.extend(
                Request::parse(&message.request)
                    .ok()
                    .map(|request| request_name(&request).to_owned()),
            );
            if let Some(answer) = answer {
                match Reply::parse(&answer.body) {
                    Ok(reply) => kinds.push(reply.name().to_owned()),
                    Err(_) if answer.status == 200 && answer.body.starts_with(b"[") => {
                        kinds.push(SIGNING_CERTIFICATES.to_owned());
                    }
                    Err(_) => {}
                }
            }
        }
        ServiceName::KeyProtection => {
            kinds.extend(root(&message.request));
            if let Some(answer) = answer {
                kinds.extend(root(&answer.body));
                kinds.extend(ErrorMessage::parse(&answer.body).ok().map(|error| error.code));
            }
        }
    }
    kinds
}

fn root(document: &[u8]) -> Option<String> {
    Some(Xml::parse(document, LARGEST).ok()?.root().name().to_owned())
}

fn request_name(request: &Request) -> &'static str {
    match request {
        Request::TpmInitial { .. } => "TpmRequestInitial",
        Request::TpmContinue { .. } => "TpmRequestContinue",
        Request::Domain { .. } => "ADRequest",
        Request::Attestation { .. } => "AttestationRequest",
    }
}

/// NoInformation, those that policies set, and the one of a log that proves nothing.
fn substatus_names() -> Vec<&'static str> {
    let flags = SubstatusFlag::ALL.iter().map(|flag| flag.name());
    std::iter::once("NoInformation").chain(flags).collect()
}

/// Why no run reaches it.
fn excuse(name: &str) -> Option<&'static str> {
    match name {
        "ADRequest" => Some("not built: Active Directory mode"),
        "InternalException" => {
            Some("no request leads to it: an operation of the cryptographic library would have to fail")
        }
        _ => None,
    }
}

const SIGNING_CERTIFICATES: &str = "signingCertificates";
const LARGEST: usize = 16 << 20;
const REQUESTS: [(&str, &str); 4] = [
    ("AttestationRequest", "2.2.2.1"),
    ("TpmRequestInitial", "2.2.2.3"),
    ("TpmRequestContinue", "2.2.2.4"),
    ("ADRequest", "2.2.2.5"),
];
const REPLIES: [(&str, &str); 14] = [
    ("TpmReplyContinue", "2.2.2.6"),
    ("HealthCertificateReply", "2.2.2.7"),
    ("ServiceInfoReply", "2.2.2.10"),
    ("ErrorReply", "2.2.2.11"),
    ("OperationModeErrorReply", "2.2.2.14"),
    ("PayloadErrorReply", "2.2.2.15"),
    ("PolicyEvaluationErrorReply", "2.2.2.16"),
    ("RtpmErrorReply", "2.2.2.19"),
    ("TcgLogValidationErrorReply", "2.2.2.20"),
    ("UnauthorizedErrorReply", "2.2.2.21"),
    ("UnavailableErrorReply", "2.2.2.22"),
    ("VirtualSecureModeErrorReply", "2.2.2.23"),
    ("VsmReportValidationErrorReply", "2.2.2.24"),
    (SIGNING_CERTIFICATES, "3.1.5.5"),
];
const DOCUMENTS: [(&str, &str); 4] = [
    ("RollTransportKeyRequest", "2.2.2.1"),
    ("RollTransportKeyResponse", "2.2.2.2"),
    ("Error", "2.2.2.5"),
    ("Metadata", "6.4"),
];
const CODES: [(&str, &str); 9] = [
    ("HealthCertificateException", "3.1.5.1.1.3"),
    ("InvalidProtectorException", "3.1.5.1.1.3"),
    ("InvalidWrappingException", "3.1.5.1.1.3"),
    ("KeyProtectionAccessDeniedException", "this project"),
    ("InvalidRequestException", "this project"),
    ("UnsupportedAlgorithmException", "this project"),
    ("MetadataException", "this project"),
    ("UnavailableException", "this project"),
    ("InternalException", "this project"),
];

#[cfg(test)]
mod tests {
    use hgs_protocol::wire::hgsa::ErrorKind;

    use super::*;

    /// One of each; the compiler asks for a new one here.
    fn errors() -> Vec<ErrorKind> {
        let all = vec![
            ErrorKind::Other,
            ErrorKind::OperationMode(None),
            ErrorKind::Payload,
            ErrorKind::PolicyEvaluation(Vec::new()),
            ErrorKind::Rtpm,
            ErrorKind::TcgLogValidation,
            ErrorKind::Unauthorized,
            ErrorKind::Unavailable,
            ErrorKind::VirtualSecureMode,
            ErrorKind::VsmReportValidation,
        ];
        for kind in &all {
            match kind {
                ErrorKind::Other
                | ErrorKind::OperationMode(_)
                | ErrorKind::Payload
                | ErrorKind::PolicyEvaluation(_)
                | ErrorKind::Rtpm
                | ErrorKind::TcgLogValidation
                | ErrorKind::Unauthorized
                | ErrorKind::Unavailable
                | ErrorKind::VirtualSecureMode
                | ErrorKind::VsmReportValidation => {}
            }
        }
        all
    }

    #[test]
    fn every_error_reply_is_listed_and_nothing_is_reached_by_no_run() {
        let groups = coverage(&[]);
        let names: Vec<&str> = groups
            .iter()
            .flat_map(|group| &group.items)
            .map(|item| item.name.as_str())
            .collect();
        for kind in errors() {
            assert!(names.contains(&kind.name()), "{}", kind.name());
        }
        assert!(groups.iter().flat_map(|group| &group.items).all(|item| item.count == 0));
        let missed = |item: &&Item| item.is_missed();
        assert_eq!(
            groups[0].items.iter().filter(missed).count(),
            3,
            "AD is listed as not built"
        );
    }
}
