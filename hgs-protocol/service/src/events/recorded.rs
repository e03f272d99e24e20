//! A service's events. They are read out of its record (the audit rows), which is the one place where a decision or a
//! change is kept; so they are as durable as it, the same whichever replica is asked, and nothing is kept twice.

use actix_web::{
    HttpResponse,
    http::header::{HeaderName, HeaderValue},
};
use serde_json::Value;

use super::{Event, Filter, Level, Provider, QueryError};
use crate::{
    audit::{self, AuditRow, Place},
    database::Database,
    serve::problem,
};

/// The events in one row of a record, in the order in which they happened.
pub type Derive = fn(&AuditRow) -> Vec<Event>;

/// A part of a service's events, newest first.
struct Page {
    events: Vec<Event>,
    /// Where the next page begins; none when there is nothing older.
    next: Option<String>,
}

/// Answers a query of the administrators' interface: the events, newest first. The header `Next-Before` says where the next
/// page begins; it is also given when nothing was found in the part of the record that was looked through.
pub async fn answer(database: &Database, query: &str, derive: Derive) -> HttpResponse {
    let filter = match Filter::of_url(query) {
        Ok(filter) => filter,
        Err(error) => return problem(HttpResponse::BadRequest(), &error.to_string()),
    };
    match page(database, &filter, derive).await {
        Ok(Ok(page)) => {
            let mut reply = HttpResponse::Ok();
            if let Some(next) = page.next.and_then(|next| HeaderValue::from_str(&next).ok()) {
                reply.insert_header((HeaderName::from_static("next-before"), next));
            }
            reply.json(page.events)
        }
        Ok(Err(error)) => problem(HttpResponse::BadRequest(), &error.to_string()),
        Err(error) => {
            tracing::error!(%error, "the database failed a query of events");
            problem(
                HttpResponse::ServiceUnavailable(),
                "the events are in the database, which does not answer: see that it runs, then ask again",
            )
        }
    }
}

async fn page(database: &Database, filter: &Filter, derive: Derive) -> Result<Result<Page, QueryError>, sqlx::Error> {
    let wrong = |text: &String| QueryError::Before(text.clone());
    let mut from = match filter
        .before
        .as_ref()
        .map(|text| place(text).ok_or_else(|| wrong(text)))
    {
        None => None,
        Some(Ok(place)) => Some(place),
        Some(Err(error)) => return Ok(Err(error)),
    };
    let mut events = Vec::new();
    let mut rows_left = MOST_ROWS;
    loop {
        let rows = audit::from(database, from.as_ref().map(|(place, _)| place), filter.since, CHUNK).await?;
        let last_chunk = rows.len() < CHUNK;
        for row in &rows {
            let here = row.place();
            let below = match &from {
                Some((place, number)) if *place == here => *number,
                _ => usize::MAX,
            };
            let of_row = derive(row).into_iter().enumerate().take(below).collect::<Vec<_>>();
            for (number, event) in of_row.into_iter().rev() {
                if events.len() == filter.newest {
                    // This one and what is older is on the next page.
                    let next = Some(record_id(&here, number + 1));
                    return Ok(Ok(Page { events, next }));
                }
                let event = Event {
                    record_id: record_id(&here, number),
                    time_created: row.at,
                    ..event
                };
                if filter.wants(&event) {
                    events.push(event);
                }
            }
            from = Some((here, 0));
        }
        rows_left = rows_left.saturating_sub(rows.len());
        if last_chunk || rows_left == 0 {
            let next = match last_chunk {
                true => None,
                false => from.map(|(place, number)| record_id(&place, number)),
            };
            return Ok(Ok(Page { events, next }));
        }
    }
}

fn record_id(place: &Place, number: usize) -> String {
    format!(
        "{}.{}.{}.{number}",
        place.at.0,
        place.sequence,
        hex::encode(&place.writer)
    )
}

fn place(text: &str) -> Option<(Place, usize)> {
    let mut parts = text.split('.');
    let mut part = || parts.next();
    let place = Place {
        at: hgs_protocol::env::UnixTime(part()?.parse().ok()?),
        sequence: part()?.parse().ok()?,
        writer: hex::decode(part()?).ok()?,
    };
    let number = part()?.parse().ok()?;
    parts.next().is_none().then_some((place, number))
}

/// Events in rows that every service writes: changes by administrators, and trouble with database and clock.
pub fn common(provider: Provider, row: &AuditRow) -> Vec<Event> {
    let body = &row.body;
    let number = |name: &str| body.get(name).and_then(Value::as_i64).unwrap_or_default();
    let event = match (row.kind.as_str(), body.get("event").and_then(Value::as_str)) {
        ("administration", _) => {
            let text = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default();
            let message = format!("{} asks for {} {}.", text("by"), text("method"), text("path"));
            let event = provider.event(ADMINISTRATION, Level::Information, message);
            ["by", "method", "path", "from"]
                .into_iter()
                .fold(event, |event, name| event.with(&title(name), text(name)))
        }
        (TROUBLE, Some(DATABASE)) => {
            let (seconds, lost) = (number("seconds"), number("rows_not_written"));
            let message = format!(
                "The database did not answer for {seconds} s; {lost} decisions could not be recorded, and whoever asked for \
                 them was told to try again. Look at the database's log and at the way to it."
            );
            let event = provider.event(DATABASE_AWAY, Level::Error, message);
            event.with("Seconds", seconds).with("RowsNotWritten", lost)
        }
        (TROUBLE, Some(CLOCK)) => {
            let seconds = number("seconds");
            let message = format!(
                "The service's clock was moved by {seconds} s. Compare it with the hosts' clocks: health certificates are \
                 valid for a time."
            );
            provider
                .event(CLOCK_MOVED, Level::Warning, message)
                .with("Seconds", seconds)
        }
        _ => return Vec::new(),
    };
    vec![event]
}

/// `by` becomes `By`.
fn title(name: &str) -> String {
    let mut letters = name.chars();
    letters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// Kind of the rows of [`crate::watch`].
pub(crate) const TROUBLE: &str = "trouble";
/// `event` of a row about the database.
pub(crate) const DATABASE: &str = "database";
/// `event` of a row about the clock.
pub(crate) const CLOCK: &str = "clock";

/// An administrator asked for a change.
pub const ADMINISTRATION: u32 = 53_001;
/// The database did not answer.
pub const DATABASE_AWAY: u32 = 53_002;
/// The service's clock was moved.
pub const CLOCK_MOVED: u32 = 53_003;

/// Rows that are read at a time.
const CHUNK: usize = 500;
/// Rows that one query looks through.
const MOST_ROWS: usize = 20_000;
