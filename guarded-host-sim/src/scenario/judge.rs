//! Holds what came of a step against what was expected. Decides nothing else.

use std::time::Duration;

use serde::Serialize;

use super::{
    came::Came,
    model::{Expect, expect::Between, expect::Event},
    world::{Logged, Recorded},
};

/// One field that is not as expected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mismatch {
    /// The field of `expect`.
    pub field: &'static str,
    /// What was expected.
    pub expected: String,
    /// What came.
    pub came: String,
}

/// Every field that is not as expected; none when the step passes.
pub fn judge(expect: Option<&Expect>, came: &Came) -> Vec<Mismatch> {
    let default = Expect::default();
    let expect = expect.unwrap_or(&default);
    let mut found = Vec::new();
    let mut differ = |field, expected: String, came: String| {
        found.push(Mismatch { field, expected, came });
    };
    // What is wrong with several steps at once is told part by part.
    if came.parts.is_empty() && expect.outcome() != came.outcome() {
        let told = |done| if done { "done" } else { "refused" };
        let expected = told(expect.outcome() == super::model::expect::Outcome::Done);
        differ(
            "outcome",
            expected.to_owned(),
            format!("{}: {}", told(came.done), came.text),
        );
    }
    if let Some(status) = &expect.status {
        let expected = format!("{:?}", **status);
        if came.status.as_deref() != Some(expected.as_str()) {
            differ("status", expected, or_nothing(&came.status));
        }
    }
    for (field, expected, came) in [
        ("substatus", &expect.substatus, &came.substatus),
        ("failed_policies", &expect.failed_policies, &came.failed_policies),
    ] {
        if let Some(expected) = expected
            && !same(expected, came.as_deref().unwrap_or_default())
        {
            differ(field, list(expected), list(came.as_deref().unwrap_or_default()));
        }
    }
    for (field, expected, came) in [
        ("error", &expect.error, &came.error),
        ("reply", &expect.reply, &came.reply),
    ] {
        if let Some(expected) = expected
            && came.as_deref() != Some(expected.as_str())
        {
            differ(field, expected.to_string(), or_nothing(came));
        }
    }
    if let Some(http) = &expect.http
        && came.http != Some(**http)
    {
        differ("http", http.to_string(), or_nothing(&came.http));
    }
    for word in expect.says.iter().flat_map(|words| words.iter()) {
        if !contains(&came.text, word) {
            differ("says", format!("{word:?} in the text"), came.text.clone());
        }
    }
    if let Some(offline) = &expect.offline
        && came.offline != Some(**offline)
    {
        differ("offline", offline.to_string(), or_nothing(&came.offline));
    }
    if let Some(left) = &expect.offline_starts_left
        && came.offline_starts_left != Some(**left)
    {
        differ(
            "offline_starts_left",
            left.to_string(),
            or_nothing(&came.offline_starts_left),
        );
    }
    if let Some(state) = &expect.vm_state {
        let expected = format!("{:?}", **state);
        if came.vm_state.as_deref() != Some(expected.as_str()) {
            differ("vm_state", expected, or_nothing(&came.vm_state));
        }
    }
    if let Some(owner) = &expect.owner
        && came.owner.as_deref() != Some(owner.as_str())
    {
        differ("owner", owner.to_string(), or_nothing(&came.owner));
    }
    if let Some(left) = &expect.certificate_left {
        let seconds = came.certificate_left.and_then(|seconds| u64::try_from(seconds).ok());
        match seconds.map(Duration::from_secs) {
            Some(time) if within(left, time) => {}
            Some(time) => differ("certificate_left", range(left), format!("{} s", time.as_secs())),
            None => differ("certificate_left", range(left), "no valid certificate".to_owned()),
        }
    }
    if let Some(takes) = &expect.takes
        && !within(takes, came.took)
    {
        differ("takes", range(takes), format!("{} ms", came.took.as_millis()));
    }
    for event in expect.events.iter().flat_map(|events| events.iter()) {
        let (found, instead) = match event.id {
            None => (
                came.events.iter().any(|recorded| is(recorded, event)),
                came.events.iter().map(told).collect::<Vec<_>>(),
            ),
            Some(_) => (
                came.logged.iter().any(|logged| logged.is(event)),
                came.logged.iter().map(|logged| logged.in_short(event)).collect(),
            ),
        };
        if !found {
            differ("events", said(event), list(&instead));
        }
    }
    for part in &came.parts {
        for mismatch in &part.mismatches {
            found.push(Mismatch {
                field: mismatch.field,
                expected: format!("{} ({})", mismatch.expected, part.title),
                came: mismatch.came.clone(),
            });
        }
    }
    found
}

fn is(recorded: &Recorded, event: &Event) -> bool {
    Some(recorded.service) == event.service
        && Some(&recorded.outcome) == event.outcome.as_ref()
        && event.says.iter().all(|word| contains(&recorded.reason, word))
}

fn told(recorded: &Recorded) -> String {
    match recorded.reason.is_empty() {
        true => format!("{}: {}", recorded.service, recorded.outcome),
        false => format!("{}: {} ({})", recorded.service, recorded.outcome, recorded.reason),
    }
}

fn said(event: &Event) -> String {
    match event.says.is_empty() {
        true => event.to_string(),
        false => format!("{event} with {}", list(&event.says)),
    }
}

impl Logged {
    fn is(&self, event: &Event) -> bool {
        Some(self.event.id) == event.id
            && self.teller == event.teller()
            && event.says.iter().all(|word| contains(&self.event.message, word))
    }

    /// Its id, and its text where the id is the one that is looked for.
    fn in_short(&self, sought: &Event) -> String {
        match Some(self.event.id) == sought.id {
            true => format!("{self} ({})", self.event.message),
            false => self.to_string(),
        }
    }
}

fn contains(text: &str, word: &str) -> bool {
    text.to_lowercase().contains(&word.to_lowercase())
}

/// The same names, in whatever order.
fn same(one: &[String], other: &[String]) -> bool {
    let sorted = |names: &[String]| {
        let mut names = names.to_vec();
        names.sort();
        names
    };
    sorted(one) == sorted(other)
}

fn within(between: &Between, time: Duration) -> bool {
    between.at_least.is_none_or(|least| time >= least.0) && between.at_most.is_none_or(|most| time <= most.0)
}

fn range(between: &Between) -> String {
    match (between.at_least, between.at_most) {
        (Some(least), Some(most)) => format!("{least} to {most}"),
        (Some(least), None) => format!("at least {least}"),
        (None, Some(most)) => format!("at most {most}"),
        (None, None) => "any time".to_owned(),
    }
}

fn list(names: &[String]) -> String {
    match names.is_empty() {
        true => "nothing".to_owned(),
        false => names.join(", "),
    }
}

fn or_nothing(value: &Option<impl ToString>) -> String {
    value.as_ref().map_or_else(|| "nothing".to_owned(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::model::step::ServiceName;

    fn expect(text: &str) -> Expect {
        toml::from_str(text).unwrap()
    }

    fn fields(expected: &str, came: &Came) -> Vec<&'static str> {
        judge(Some(&expect(expected)), came)
            .iter()
            .map(|found| found.field)
            .collect()
    }

    fn logged(teller: &str, id: u32) -> Logged {
        let provider = hgs_service::events::Provider("P");
        let level = hgs_service::events::Level::Error;
        Logged {
            teller: teller.to_owned(),
            event: provider.event(id, level, "the text"),
        }
    }

    #[test]
    fn an_event_that_did_not_come_is_told_with_those_that_did() {
        let came = Came {
            logged: vec![logged("host01", 50_001), logged("host01", 1008)],
            ..Came::done("")
        };
        let expected = "events = [{ host = \"host01\", id = 1008, says = [\"Secure Boot\"] }]";
        let found = judge(Some(&expect(expected)), &came);
        assert_eq!(found[0].expected, "host01: event 1008 with Secure Boot");
        assert_eq!(found[0].came, "host01: event 50001, host01: event 1008 (the text)");
    }

    #[test]
    fn without_an_expectation_a_step_must_succeed() {
        assert_eq!(judge(None, &Came::done("")), []);
        assert_eq!(judge(None, &Came::refused("no"))[0].field, "outcome");
    }

    #[test]
    fn every_field_is_looked_at() {
        let came = Came {
            status: Some("InsecureHostConfiguration".to_owned()),
            substatus: Some(vec!["SecureBoot".to_owned(), "Iommu".to_owned()]),
            failed_policies: Some(vec!["SecureBootEnabled".to_owned()]),
            http: Some(403),
            offline: Some(false),
            offline_starts_left: Some(2),
            certificate_left: Some(100),
            took: Duration::from_secs(2),
            reply: Some("PolicyEvaluationErrorReply".to_owned()),
            events: vec![Recorded {
                hgs: "hgs".to_owned(),
                service: ServiceName::Attestation,
                kind: "attestation".to_owned(),
                outcome: "PolicyEvaluationErrorReply".to_owned(),
                reason: "the host fails: SecureBootEnabled".to_owned(),
                body: serde_json::Value::Null,
            }],
            logged: vec![logged("attestation", 1508), logged("host01", 1008)],
            ..Came::refused("PolicyEvaluationErrorReply: SecureBootEnabled")
        };
        for good in [
            "status = \"InsecureHostConfiguration\"",
            "outcome = \"refused\"\nsubstatus = [\"Iommu\", \"SecureBoot\"]",
            "outcome = \"refused\"\nfailed_policies = [\"SecureBootEnabled\"]",
            "error = \"PolicyEvaluationErrorReply\"",
            "http = 403\nreply = \"PolicyEvaluationErrorReply\"",
            "outcome = \"refused\"\nsays = [\"securebootenabled\"]",
            "outcome = \"refused\"\noffline = false\noffline_starts_left = 2",
            "outcome = \"refused\"\ncertificate_left = { at_least = \"1m\", at_most = \"2m\" }",
            "outcome = \"refused\"\ntakes = { at_most = \"3s\" }",
            "outcome = \"refused\"\nevents = [{ service = \"attestation\", outcome = \"PolicyEvaluationErrorReply\", \
             says = [\"SecureBoot\"] }]",
            "outcome = \"refused\"\nevents = [{ service = \"attestation\", id = 1508, says = [\"TEXT\"] }, \
             { host = \"host01\", id = 1008 }]",
        ] {
            assert_eq!(fields(good, &came), [""; 0], "{good}");
        }
        for (bad, field) in [
            ("outcome = \"done\"", "outcome"),
            ("status = \"UnauthorizedHost\"", "status"),
            ("outcome = \"refused\"\nsubstatus = [\"SecureBoot\"]", "substatus"),
            ("outcome = \"refused\"\nfailed_policies = []", "failed_policies"),
            ("error = \"RtpmErrorReply\"", "error"),
            ("http = 400", "http"),
            ("outcome = \"refused\"\nreply = \"ErrorReply\"", "reply"),
            ("outcome = \"refused\"\nsays = [\"BitLocker\"]", "says"),
            ("outcome = \"refused\"\noffline = true", "offline"),
            ("outcome = \"refused\"\noffline_starts_left = 1", "offline_starts_left"),
            (
                "outcome = \"refused\"\ncertificate_left = { at_least = \"2m\" }",
                "certificate_left",
            ),
            ("outcome = \"refused\"\ntakes = { at_most = \"1s\" }", "takes"),
            (
                "outcome = \"refused\"\nevents = [{ service = \"key-protection\", outcome = \"Released\" }]",
                "events",
            ),
            (
                "outcome = \"refused\"\nevents = [{ host = \"host01\", id = 1508 }]",
                "events",
            ),
            (
                "outcome = \"refused\"\nevents = [{ host = \"host01\", id = 1008, says = [\"BitLocker\"] }]",
                "events",
            ),
        ] {
            assert_eq!(fields(bad, &came), [field], "{bad}");
        }
    }
}
