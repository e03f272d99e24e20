//! Get-WinEvent: what hosts and services have to tell.

use hgs_shell::{
    call::Call,
    error::{Category, ErrorRecord, Outcome},
    value::{Date, Value, convert},
    wildcard::Wildcard,
    world::Role,
};
use reqwest::Method;
use serde_json::Value as Json;

use crate::{
    cmdlets::{ask, client::told, lab, rows_of, text_of},
    lab::{Lab, ServiceName},
};

/// What is asked for; empty lists take everything.
#[derive(Default)]
struct Wanted {
    logs: Vec<String>,
    providers: Vec<String>,
    ids: Vec<String>,
    since: Option<i64>,
}

pub(super) fn get(call: &mut Call<'_>) -> Outcome {
    let lab = lab(call)?;
    let mut wanted = Wanted {
        logs: call.texts("LogName"),
        providers: call.texts("ProviderName"),
        ..Wanted::default()
    };
    for table in call
        .get("FilterHashtable")
        .map(|given| given.each())
        .unwrap_or_default()
    {
        let Value::Table(entries) = table else { continue };
        for (name, value) in entries.borrow().iter() {
            let texts = || value.each().iter().map(convert::to_text).collect::<Vec<_>>();
            match name.to_ascii_lowercase().as_str() {
                "logname" => wanted.logs = texts(),
                "providername" => wanted.providers = texts(),
                "id" => wanted.ids = texts(),
                "starttime" => {
                    if let Value::Date(date) = value {
                        wanted.since = Some(date.0);
                    }
                }
                other => {
                    let why =
                        format!("a filter's keys are LogName, ProviderName, Id and StartTime here, not '{other}'");
                    return super::outside(call, &why);
                }
            }
        }
    }
    let most = call
        .integer("MaxEvents")
        .and_then(|most| usize::try_from(most).ok())
        .unwrap_or(100);
    let mut events = read(call, &lab)?;
    events.sort_by_key(|event| std::cmp::Reverse(text_of(event, "TimeCreated")));
    let mut found: Vec<Value> = events
        .iter()
        .filter(|event| wanted.takes(event))
        .take(most)
        .map(shown)
        .collect();
    if found.is_empty() {
        return Err(call.fail(ErrorRecord::new(
            Category::ObjectNotFound,
            "NoMatchingEventsFound",
            "No events were found that match the specified selection criteria.",
        )));
    }
    if call.switch("Oldest") {
        found.reverse();
    }
    call.write_all(found)
}

/// The events of the machine: a host's own, or those of the services behind an HGS node.
fn read(call: &mut Call<'_>, lab: &Lab) -> Outcome<Vec<Json>> {
    let machine = match call.text("ComputerName") {
        Some(name) => lab.machine(&name).cloned().unwrap_or_else(|| call.machine().clone()),
        None => call.machine().clone(),
    };
    match machine.role {
        Role::HgsNode if lab.cluster().is_some() => {
            let mut events = Vec::new();
            for service in [ServiceName::Attestation, ServiceName::KeyProtection] {
                let answer = ask(call, lab, service, Method::GET, "events?newest=500", None)?;
                events.extend(rows_of(&answer).iter().cloned());
            }
            Ok(events)
        }
        Role::Host => {
            let agent = lab.host(&machine.name).map(|host| host.agent());
            let Some(agent) = agent else { return Ok(Vec::new()) };
            let answer = lab.wait(agent.get::<Json>("events?newest=500"));
            Ok(rows_of(&told(call, "EventLogNotRead", answer)?).to_vec())
        }
        _ => Ok(Vec::new()),
    }
}

impl Wanted {
    fn takes(&self, event: &Json) -> bool {
        let among = |list: &[String], key: &str| {
            list.is_empty()
                || list
                    .iter()
                    .any(|pattern| Wildcard::new(pattern).matches(&text_of(event, key)))
        };
        let time = Date::parse(&text_of(event, "TimeCreated"));
        among(&self.logs, "LogName")
            && among(&self.providers, "ProviderName")
            && among(&self.ids, "Id")
            && self.since.is_none_or(|since| time.is_some_and(|time| time.0 >= since))
    }
}

fn shown(event: &Json) -> Value {
    let time = Date::parse(&text_of(event, "TimeCreated"));
    Value::object(
        "EventLogRecord",
        [
            ("TimeCreated", time.map_or(Value::Null, Value::Date)),
            (
                "Id",
                Value::Int(event.get("Id").and_then(Json::as_i64).unwrap_or_default()),
            ),
            ("LevelDisplayName", Value::text(text_of(event, "Level"))),
            ("Message", Value::text(text_of(event, "Message"))),
            ("ProviderName", Value::text(text_of(event, "ProviderName"))),
            ("LogName", Value::text(text_of(event, "LogName"))),
            ("ActivityId", Value::text(text_of(event, "ActivityId"))),
            ("RecordId", Value::text(text_of(event, "RecordId"))),
        ],
    )
}
