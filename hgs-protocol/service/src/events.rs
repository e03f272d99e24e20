//! Events as an administrator knows them: provider, log and id, level, time, text and data. One form for hosts and
//! services, and one way to ask for them.
//!
//! An id is the product's where its documents tell it. What they do not tell has a provider of this lab's own (the names
//! begin with `GuardedFabricLab-`) and an id from [`FIRST_OWN_ID`] on, so that the two are never taken for each other.
//! The names of the fields are those of `Get-WinEvent`.

pub mod recorded;

use std::{collections::BTreeMap, fmt, str::FromStr};

use actix_web::{error::QueryPayloadError, web};
use hgs_protocol::env::UnixTime;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Smallest id of this lab's own.
pub const FIRST_OWN_ID: u32 = 50_000;

/// One event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Event {
    /// Its place in its log; what [`Query::before`] takes.
    pub record_id: String,
    /// When, by the clock of the host or service. In JSON RFC 3339.
    #[serde(with = "rfc3339")]
    pub time_created: UnixTime,
    /// The log (the product's word is channel).
    pub log_name: String,
    /// Whose event it is.
    pub provider_name: String,
    /// What happened.
    pub id: u32,
    /// How bad it is.
    pub level: Level,
    /// What events of one request share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activity_id: Option<String>,
    /// What happened, and what to do next.
    pub message: String,
    /// The same for programs: status, substatus, server, VM, error. Nothing secret.
    #[serde(default)]
    pub data: BTreeMap<String, Value>,
}

/// How bad an event is. The product's levels 1 to 5; the first is the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the product's")]
pub enum Level {
    Critical,
    Error,
    Warning,
    Information,
    Verbose,
}

impl Level {
    const ALL: [Level; 5] = [
        Level::Critical,
        Level::Error,
        Level::Warning,
        Level::Information,
        Level::Verbose,
    ];
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl FromStr for Level {
    type Err = QueryError;

    fn from_str(text: &str) -> Result<Level, QueryError> {
        let found = Level::ALL
            .into_iter()
            .find(|level| level.to_string().eq_ignore_ascii_case(text));
        found.ok_or_else(|| QueryError::Level(text.to_owned()))
    }
}

/// A provider with its two logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Provider(pub &'static str);

impl Provider {
    /// The log for whoever administers; the product has such a pair for each provider.
    pub fn log(self, level: Level) -> String {
        let log = match level {
            Level::Critical | Level::Error | Level::Warning => "Admin",
            Level::Information | Level::Verbose => "Operational",
        };
        format!("{}/{log}", self.0)
    }

    /// An event without its place and time.
    pub fn event(self, id: u32, level: Level, message: impl Into<String>) -> Event {
        Event {
            record_id: String::new(),
            time_created: UnixTime(0),
            log_name: self.log(level),
            provider_name: self.0.to_owned(),
            id,
            level,
            activity_id: None,
            message: message.into(),
            data: BTreeMap::new(),
        }
    }
}

impl Event {
    /// With one more piece of data; nothing when `value` is null.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Event {
        let value = value.into();
        if !value.is_null() {
            self.data.insert(name.to_owned(), value);
        }
        self
    }
}

/// What is asked for, as it comes in a URL. Names the fields in its errors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Query {
    /// Ids, separated by commas.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The least bad level.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// RFC 3339 in UTC, or seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// How many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub newest: Option<String>,
    /// A RecordId.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
}

/// Which events are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    ids: Vec<u32>,
    level: Level,
    /// None earlier.
    pub since: Option<UnixTime>,
    /// At most so many, the newest ones.
    pub newest: usize,
    /// Only those before this one.
    pub before: Option<String>,
}

/// What is wrong with a query.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// Not a list of ids.
    #[error("id: \"{0}\" is no event id: give numbers, separated by commas, as in 1003,1008")]
    Id(String),
    /// Not a level.
    #[error(
        "level: \"{0}\" is no level: choose Critical, Error, Warning, Information or Verbose; worse ones come with it"
    )]
    Level(String),
    /// Not a time.
    #[error("since: \"{0}\" is no time: write 2026-01-31T12:00:00Z, or seconds since 1970")]
    Since(String),
    /// Not a number, or too many.
    #[error("newest: \"{0}\" is no number from 1 to {MOST}")]
    Newest(String),
    /// Not a place in this log.
    #[error("before: \"{0}\" is no place in this log: give the RecordId of the last event of a page")]
    Before(String),
    /// An unknown parameter, or one twice.
    #[error("{0}")]
    Form(String),
}

impl Query {
    /// Checks everything that can be checked without the log.
    pub fn filter(&self) -> Result<Filter, QueryError> {
        let mut ids = Vec::new();
        if let Some(text) = &self.id {
            for id in text.split(',') {
                ids.push(id.trim().parse().map_err(|_| QueryError::Id(text.clone()))?);
            }
        }
        let level = self.level.as_deref().map_or(Ok(Level::Verbose), str::parse)?;
        let since = self.since.as_deref().map(time).transpose()?;
        let newest = match &self.newest {
            None => USUAL,
            Some(text) => match text.parse() {
                Ok(number) if (1..=MOST).contains(&number) => number,
                _ => return Err(QueryError::Newest(text.clone())),
            },
        };
        Ok(Filter {
            ids,
            level,
            since,
            newest,
            before: self.before.clone(),
        })
    }
}

impl Filter {
    /// From the query part of a URL.
    pub fn of_url(query: &str) -> Result<Filter, QueryError> {
        let parsed = web::Query::<Query>::from_query(query).map_err(|error| {
            QueryError::Form(match error {
                QueryPayloadError::Deserialize(error) => error.to_string(),
                other => other.to_string(),
            })
        })?;
        parsed.filter()
    }

    /// Whether the event is wanted, wherever in its log it stands.
    pub fn wants(&self, event: &Event) -> bool {
        (self.ids.is_empty() || self.ids.contains(&event.id))
            && event.level <= self.level
            && self.since.is_none_or(|since| since <= event.time_created)
    }
}

fn time(text: &str) -> Result<UnixTime, QueryError> {
    let wrong = || QueryError::Since(text.to_owned());
    match text.parse() {
        Ok(seconds) => Ok(UnixTime(seconds)),
        Err(_) => text.parse().map_err(|_| wrong()),
    }
}

/// Times in JSON.
mod rfc3339 {
    use hgs_protocol::env::UnixTime;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(time: &UnixTime, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(time)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<UnixTime, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// How many are given unless asked otherwise.
const USUAL: usize = 100;
/// How many are given at most.
pub const MOST: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Result<Filter, String> {
        let query: Query = serde_json::from_str(text).map_err(|e| e.to_string())?;
        query.filter().map_err(|e| e.to_string())
    }

    #[test]
    fn a_filter_wants_its_ids_its_level_and_worse_and_its_time() {
        let provider = Provider("GuardedFabricLab-Test");
        let event = |id, level, at| Event {
            time_created: UnixTime(at),
            ..provider.event(id, level, "")
        };
        let filter = query(r#"{"id":"1003, 1008","level":"warning","since":"1970-01-01T00:01:40Z"}"#).unwrap();
        assert!(filter.wants(&event(1008, Level::Error, 100)));
        assert!(filter.wants(&event(1003, Level::Warning, 200)));
        assert!(!filter.wants(&event(1003, Level::Information, 100)));
        assert!(!filter.wants(&event(1004, Level::Error, 100)));
        assert!(!filter.wants(&event(1008, Level::Error, 99)));
        let all = query("{}").unwrap();
        assert!(all.wants(&event(7, Level::Verbose, -5)) && all.newest == USUAL);
        assert_eq!(query(r#"{"since":"100"}"#).unwrap().since, Some(UnixTime(100)));
    }

    #[test]
    fn what_is_wrong_with_a_query_is_said_with_what_to_write() {
        for (text, words) in [
            (r#"{"id":"1003;1008"}"#, "separated by commas"),
            (r#"{"id":""}"#, "no event id"),
            (r#"{"level":"bad"}"#, "choose Critical, Error"),
            (r#"{"since":"yesterday"}"#, "write 2026-01-31T12:00:00Z"),
            (r#"{"newest":"0"}"#, "1 to 1000"),
            (r#"{"newest":"1001"}"#, "1 to 1000"),
            (
                r#"{"lvl":"Error"}"#,
                "unknown field `lvl`, expected one of `id`, `level`",
            ),
        ] {
            let error = query(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn an_event_goes_through_json_with_the_products_names() {
        let mut event = Provider("P")
            .event(1500, Level::Error, "no")
            .with("EkHash", "ab")
            .with("None", Value::Null);
        event.time_created = UnixTime(1_800_000_000);
        event.record_id = "7".to_owned();
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!(json["TimeCreated"], "2027-01-15T08:00:00Z");
        assert_eq!((&json["LogName"], &json["Level"]), (&"P/Admin".into(), &"Error".into()));
        assert_eq!(json["Data"], serde_json::json!({ "EkHash": "ab" }));
        assert_eq!(serde_json::from_value::<Event>(json).unwrap(), event);
    }
}
