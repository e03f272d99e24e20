//! Looks once a second whether the database answers and whether the clock was moved. What was amiss becomes a row of the
//! record as soon as one can be written: the record has nothing else of what happened while it could not be reached.

use std::time::{Duration, Instant};

use hgs_protocol::env::{Clock, UnixTime};
use serde_json::json;

use crate::{
    audit::{Audit, Entry},
    database::Database,
    events::recorded::{CLOCK, DATABASE, TROUBLE},
};

/// What is looked at.
pub(crate) struct Watch {
    pub(crate) database: Database,
    pub(crate) audit: Audit,
    pub(crate) clock: Clock,
}

impl Watch {
    /// Looks for as long as it is awaited.
    pub(crate) async fn run(self) {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        let mut seen = Seen::default();
        let mut waiting: Vec<Entry> = Vec::new();
        loop {
            second.tick().await;
            let look = Look {
                answered: self.database.answers().await,
                not_written: self.audit.not_written(),
                clock: self.clock.now(),
                at: Instant::now(),
            };
            waiting.extend(seen.look(look));
            waiting.truncate(MOST_WAITING);
            while let Some(entry) = waiting.first().cloned() {
                if self.audit.record(entry).await.is_err() {
                    break;
                }
                waiting.remove(0);
            }
        }
    }
}

/// One look.
#[derive(Clone, Copy)]
struct Look {
    answered: bool,
    /// Rows that could not be written since the start.
    not_written: u64,
    clock: UnixTime,
    at: Instant,
}

/// What the looks before have shown.
#[derive(Default)]
struct Seen {
    last: Option<Look>,
    /// When the present trouble began, and how many rows were lost before it.
    away: Option<(Instant, u64)>,
}

impl Seen {
    /// The rows that are to be written now.
    fn look(&mut self, look: Look) -> Vec<Entry> {
        let mut rows = Vec::new();
        let lost_before = self.last.map_or(0, |last| last.not_written);
        let well = look.answered && look.not_written == lost_before;
        match (well, self.away) {
            (false, None) => {
                let since = self.last.map_or(look.at, |last| last.at);
                tracing::error!("the database does not answer, or takes no row");
                self.away = Some((since, lost_before));
            }
            (true, Some((since, lost))) => {
                self.away = None;
                rows.push(trouble(json!({
                    "event": DATABASE,
                    "seconds": look.at.saturating_duration_since(since).as_secs(),
                    "rows_not_written": look.not_written.saturating_sub(lost),
                })));
            }
            _ => {}
        }
        if let Some(last) = self.last {
            let passed = i64::try_from(look.at.saturating_duration_since(last.at).as_secs()).unwrap_or(i64::MAX);
            let moved = look.clock.seconds_since(last.clock).saturating_sub(passed);
            if moved.abs() >= MOVED {
                rows.push(trouble(json!({ "event": CLOCK, "seconds": moved })));
            }
        }
        self.last = Some(look);
        rows
    }
}

fn trouble(body: serde_json::Value) -> Entry {
    Entry {
        kind: TROUBLE,
        once: None,
        body,
    }
}

/// By how many seconds a clock must be moved for it to be told. Below it is what a time service corrects.
const MOVED: i64 = 60;
/// Rows that wait while none can be written.
const MOST_WAITING: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn told(seen: &mut Seen, base: Instant, looks: &[(u64, bool, u64, i64)]) -> Vec<serde_json::Value> {
        let look = |(seconds, answered, not_written, clock): &(u64, bool, u64, i64)| Look {
            answered: *answered,
            not_written: *not_written,
            clock: UnixTime(*clock),
            at: base + Duration::from_secs(*seconds),
        };
        let rows = looks.iter().flat_map(|one| seen.look(look(one)));
        rows.map(|row| row.body).collect()
    }

    #[test]
    fn an_outage_is_one_row_with_its_length_and_what_was_not_recorded() {
        let (mut seen, base) = (Seen::default(), Instant::now());
        let looks = [
            (0, true, 0, 0),
            (1, true, 0, 1),
            (2, false, 0, 2),
            (9, false, 3, 9),
            (10, true, 5, 10),
            (11, true, 5, 11),
        ];
        assert_eq!(
            told(&mut seen, base, &looks),
            [json!({ "event": "database", "seconds": 10, "rows_not_written": 5 })]
        );
        // A database that answers and takes no row is away too.
        let looks = [(12, true, 6, 12), (13, true, 6, 13)];
        assert_eq!(
            told(&mut seen, base, &looks),
            [json!({ "event": "database", "seconds": 2, "rows_not_written": 1 })]
        );
    }

    #[test]
    fn a_clock_that_was_moved_is_told_and_one_that_goes_is_not() {
        let (mut seen, base) = (Seen::default(), Instant::now());
        let looks = [
            (0, true, 0, 0),
            (1, true, 0, 1),
            (300, true, 0, 301),
            (301, true, 0, 3902),
            (302, true, 0, 3303),
        ];
        assert_eq!(
            told(&mut seen, base, &looks),
            [
                json!({ "event": "clock", "seconds": 3600 }),
                json!({ "event": "clock", "seconds": -600 })
            ]
        );
    }
}
