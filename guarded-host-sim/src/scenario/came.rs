//! What came of a step, in the words in which it can be expected.

use std::time::Duration;

use hgs_protocol::{
    wire::{hgsa, kps::ErrorMessage},
    xml::Xml,
};
use serde::Serialize;
use serde_json::Value;

use super::{
    judge::Mismatch,
    model::expect::Outcome,
    world::{Logged, Recorded},
};

/// What came of a step. A field is empty where the step's action does not yield it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Came {
    /// Whether it succeeded.
    pub done: bool,
    /// What it says of itself.
    pub text: String,
    /// AttestationStatus.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// The names in AttestationSubstatus.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub substatus: Option<Vec<String>>,
    /// The failed policies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_policies: Option<Vec<String>>,
    /// Name of the error reply, or code of the Error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Name of the reply's type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply: Option<String>,
    /// HTTP status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<u16>,
    /// Whether the VM was started without contact.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offline: Option<bool>,
    /// Starts without contact that are left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offline_starts_left: Option<u32>,
    /// What the VM is doing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm_state: Option<String>,
    /// The host that owns the VM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Seconds for which the health certificate is still valid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_left: Option<i64>,
    /// How long the step took.
    #[serde(serialize_with = "milliseconds")]
    pub took: Duration,
    /// What the services recorded meanwhile.
    pub events: Vec<Recorded>,
    /// What stands in the event logs of hosts and services since then.
    pub logged: Vec<Logged>,
    /// What came of each of several steps at once.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Part>,
}

/// One of several steps at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Part {
    /// What was done.
    pub title: String,
    /// Every field that is not as expected.
    pub mismatches: Vec<Mismatch>,
    /// What came of it.
    pub text: String,
}

impl Came {
    /// It succeeded.
    pub fn done(text: impl Into<String>) -> Came {
        Came {
            done: true,
            text: text.into(),
            ..Came::default()
        }
    }

    /// It was refused; the error is the word before the first colon, if that is an error's name.
    pub fn refused(text: impl Into<String>) -> Came {
        let text = text.into();
        let error = text
            .split([':', ','])
            .map(str::trim)
            .find(|word| is_error_name(word))
            .map(str::to_owned);
        Came {
            text,
            error,
            ..Came::default()
        }
    }

    /// What a host's agent says of its attestation.
    pub fn of_configuration(told: &Value) -> Came {
        let text = |key: &str| told.get(key).and_then(Value::as_str).map(str::to_owned);
        let status = text("AttestationStatus");
        let substatus = text("AttestationSubstatus").unwrap_or_default();
        let names = substatus
            .split(", ")
            .filter(|name| !name.is_empty() && *name != "NoInformation");
        let failed = told.get("failed_policies").and_then(Value::as_array);
        let failed = failed.into_iter().flatten().filter_map(Value::as_str);
        Came {
            done: status.as_deref() == Some("Passed"),
            text: text("detail").unwrap_or_default(),
            substatus: Some(names.map(str::to_owned).collect()),
            failed_policies: Some(failed.map(str::to_owned).collect()),
            error: text("error"),
            certificate_left: told.pointer("/certificate/seconds_left").and_then(Value::as_i64),
            status,
            ..Came::default()
        }
    }

    /// The answer to a request of the lab's own.
    pub fn of_answer(status: u16, body: &[u8]) -> Came {
        let json = hgsa::Reply::parse(body).ok().map(|reply| reply.name().to_owned());
        let reply = json.or_else(|| Some(Xml::parse(body, LARGEST).ok()?.root().name().to_owned()));
        let kps = ErrorMessage::parse(body).ok();
        let error = match (&kps, &reply) {
            (Some(error), _) => Some(error.code.clone()),
            (None, Some(name)) if is_error_name(name) => Some(name.clone()),
            _ => None,
        };
        Came {
            done: status < 400 && error.is_none(),
            text: match kps {
                Some(error) => format!("HTTP {status}, {}: {}", error.code, error.message),
                None => format!("HTTP {status}, {} bytes: {}", body.len(), beginning(body)),
            },
            error,
            reply,
            http: Some(status),
            ..Came::default()
        }
    }

    /// How it ended.
    pub fn outcome(&self) -> Outcome {
        match self.done {
            true => Outcome::Done,
            false => Outcome::Refused,
        }
    }
}

fn is_error_name(word: &str) -> bool {
    let one_word = !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric());
    one_word && (word.ends_with("ErrorReply") || word.ends_with("Exception"))
}

/// The begin of a text body.
fn beginning(body: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(body).chars().take(200).collect();
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

const LARGEST: usize = 16 << 20;

fn milliseconds<S: serde::Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusals_error_is_found_in_its_text() {
        for (text, error) in [
            (
                "HealthCertificateException: it has expired",
                Some("HealthCertificateException"),
            ),
            (
                "PolicyEvaluationErrorReply: SecureBootEnabled",
                Some("PolicyEvaluationErrorReply"),
            ),
            (
                "no contact with the Host Guardian Service: HTTP 503, UnavailableException: busy",
                Some("UnavailableException"),
            ),
            (
                "host02 does not take the VM: UnauthorizedErrorReply",
                Some("UnauthorizedErrorReply"),
            ),
            ("the VM books belongs to host02", None),
        ] {
            assert_eq!(Came::refused(text).error.as_deref(), error, "{text}");
        }
    }

    #[test]
    fn answers_are_told_apart() {
        let error = ErrorMessage {
            code: "InvalidRequestException".to_owned(),
            message: "no".to_owned(),
        };
        let came = Came::of_answer(400, &error.encode());
        assert_eq!(
            (came.done, came.error.as_deref()),
            (false, Some("InvalidRequestException"))
        );
        let reply = br#"{"__type":"PayloadErrorReply:#Microsoft.Windows.RemoteAttestation.Core","Retryable":false}"#;
        let came = Came::of_answer(200, reply);
        assert_eq!((came.done, came.reply.as_deref()), (false, Some("PayloadErrorReply")));
        assert!(Came::of_answer(200, b"[1,2]").done);
        assert!(!Came::of_answer(404, b"").done);
    }
}
