//! What a step must yield. A field that is not given is not looked at, but for the outcome: without one
//! a step must succeed, unless what is given says that it is refused.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    arguments::ServiceName,
    value::{At, Length},
};

/// What a step must yield.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Expect {
    /// Whether it succeeds. When absent it must succeed, unless `error`, a `status` other than `Passed`, or an
    /// `http` of 400 and above is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<At<Outcome>>,
    /// AttestationStatus.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<At<Status>>,
    /// The names in AttestationSubstatus, all of them; empty for NoInformation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub substatus: Option<At<Vec<String>>>,
    /// The failed policies by the specification's names, all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_policies: Option<At<Vec<String>>>,
    /// Name of the error reply (MS-HGSA) or code of the Error (MS-KPS).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<At<String>>,
    /// Name of the reply's type, of an answer to a request of the lab's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply: Option<At<String>>,
    /// HTTP status of an answer to a request of the lab's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<At<u16>>,
    /// What the answer's text contains, whatever the case of its letters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub says: Option<At<Vec<String>>>,
    /// Whether the VM was started without contact.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offline: Option<At<bool>>,
    /// How often the host may start the VM without contact from now on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offline_starts_left: Option<At<u32>>,
    /// What the VM is doing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm_state: Option<At<VmStateName>>,
    /// The host that owns the VM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<At<String>>,
    /// How long the health certificate is still valid, by the host's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_left: Option<At<Between>>,
    /// How long the step takes, by the wall clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub takes: Option<At<Between>>,
    /// What services recorded and hosts and services have in their event logs of the step, each at least once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<At<Vec<Event>>>,
}

/// How a step ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It succeeds.
    Done,
    /// It is refused.
    Refused,
}

/// AttestationStatus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the names are the product's")]
pub enum Status {
    NotConfigured,
    Unknown,
    Passed,
    Expired,
    TransientError,
    UnauthorizedHost,
    TpmError,
    InsecureHostConfiguration,
}

/// What a VM is doing, as its host shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the names are the product's")]
pub enum VmStateName {
    Off,
    Saved,
    Running,
    Changing,
    OnAnotherHost,
}

/// A range of time; a bound that is absent does not bind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Between {
    /// No less.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_least: Option<Length>,
    /// No more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_most: Option<Length>,
}

/// Something that must be told: a decision in a service's record (`service`, `outcome`), or an event in the log of a
/// service or a host (`service` or `host`, `id`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// The service that tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    /// The host that tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<At<String>>,
    /// The decision: a reply's name, an error's code, `Released`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// The id of an event in a log, as `guarded-host-sim events` and `/admin/v1/events` show it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
    /// What the recorded reason, or the event's text, contains.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub says: Vec<String>,
}

impl Event {
    /// Who tells it.
    pub fn teller(&self) -> String {
        match (&self.host, self.service) {
            (Some(host), _) => host.to_string(),
            (None, Some(service)) => service.to_string(),
            (None, None) => "nobody".to_owned(),
        }
    }

    /// What is wrong with it, whoever exists.
    pub fn fault(&self) -> Option<&'static str> {
        match (&self.host, self.service, &self.outcome, self.id) {
            (Some(_), Some(_), ..) | (None, None, ..) => {
                Some("an event is told by a `host` or by a `service`: name one of them")
            }
            (Some(_), None, Some(_), _) => {
                Some("a host has no record of decisions: give the `id` of an event in its log")
            }
            (.., Some(_), Some(_)) | (.., None, None) => {
                Some("give the `outcome` of a decision in the service's record, or the `id` of an event in a log")
            }
            _ => None,
        }
    }
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: ", self.teller())?;
        match (&self.outcome, self.id) {
            (Some(outcome), _) => f.write_str(outcome),
            (None, Some(id)) => write!(f, "event {id}"),
            (None, None) => f.write_str("anything"),
        }
    }
}

/// A field of [`Expect`]: what some actions yield and others do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the fields")]
pub enum Yield {
    Outcome,
    Status,
    Substatus,
    FailedPolicies,
    Error,
    Reply,
    Http,
    Says,
    Offline,
    OfflineStartsLeft,
    VmState,
    Owner,
    CertificateLeft,
    Takes,
    Events,
}

impl Yield {
    /// The field's name in a file.
    pub fn field(self) -> &'static str {
        match self {
            Yield::Outcome => "outcome",
            Yield::Status => "status",
            Yield::Substatus => "substatus",
            Yield::FailedPolicies => "failed_policies",
            Yield::Error => "error",
            Yield::Reply => "reply",
            Yield::Http => "http",
            Yield::Says => "says",
            Yield::Offline => "offline",
            Yield::OfflineStartsLeft => "offline_starts_left",
            Yield::VmState => "vm_state",
            Yield::Owner => "owner",
            Yield::CertificateLeft => "certificate_left",
            Yield::Takes => "takes",
            Yield::Events => "events",
        }
    }
}

impl Expect {
    /// The fields that are given, each with its place.
    pub fn given(&self) -> Vec<(Yield, super::Span)> {
        fn of<T>(kind: Yield, field: &Option<At<T>>) -> Option<(Yield, super::Span)> {
            field.as_ref().map(|at| (kind, at.span.clone()))
        }
        [
            of(Yield::Outcome, &self.outcome),
            of(Yield::Status, &self.status),
            of(Yield::Substatus, &self.substatus),
            of(Yield::FailedPolicies, &self.failed_policies),
            of(Yield::Error, &self.error),
            of(Yield::Reply, &self.reply),
            of(Yield::Http, &self.http),
            of(Yield::Says, &self.says),
            of(Yield::Offline, &self.offline),
            of(Yield::OfflineStartsLeft, &self.offline_starts_left),
            of(Yield::VmState, &self.vm_state),
            of(Yield::Owner, &self.owner),
            of(Yield::CertificateLeft, &self.certificate_left),
            of(Yield::Takes, &self.takes),
            of(Yield::Events, &self.events),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// How the step must end.
    pub fn outcome(&self) -> Outcome {
        let refused = self.error.is_some()
            || self.status.as_ref().is_some_and(|status| **status != Status::Passed)
            || self.http.as_ref().is_some_and(|http| **http >= 400);
        match &self.outcome {
            Some(outcome) => **outcome,
            None if refused => Outcome::Refused,
            None => Outcome::Done,
        }
    }
}
