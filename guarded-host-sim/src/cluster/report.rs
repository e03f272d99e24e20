//! The report: what was done, what clients met, what was expected of it and whether it held; for people and,
//! as JSON, for programs.

use std::fmt::{self, Write as _};

use serde::Serialize;

use super::counts::{Counts, Traffic};

/// Everything of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Requests a second that were meant for the front door, VM starts not counted.
    pub rate: u32,
    /// Each drill, in order.
    pub drills: Vec<Drill>,
    /// What was found afterwards.
    pub afterwards: Vec<Check>,
    /// What kept a drill from being carried out, and those after it.
    pub trouble: Option<String>,
    /// Whether all of it held.
    pub held: bool,
}

/// One drill.
#[derive(Clone, Debug, Serialize)]
pub struct Drill {
    /// Its name on the command line.
    pub name: &'static str,
    /// What was done, with seconds since its beginning.
    pub done: Vec<String>,
    /// What clients did, by part of the drill.
    pub traffic: Vec<(&'static str, Traffic)>,
    /// What was expected.
    pub checks: Vec<Check>,
}

/// An expectation and what was found.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What was expected.
    pub expected: String,
    /// Whether it was so.
    pub held: bool,
    /// What was found.
    pub found: String,
}

impl Check {
    pub(super) fn new(expected: impl Into<String>, held: bool, found: impl Into<String>) -> Check {
        Check {
            expected: expected.into(),
            held,
            found: found.into(),
        }
    }
}

impl Report {
    /// Nothing yet.
    pub(super) fn of(rate: u32) -> Report {
        Report {
            rate,
            drills: Vec::new(),
            afterwards: Vec::new(),
            trouble: None,
            held: false,
        }
    }

    /// Says whether all of it held.
    pub(super) fn sum_up(&mut self) {
        self.held = self.trouble.is_none() && self.checks().all(|check| check.held);
    }

    fn checks(&self) -> impl Iterator<Item = &Check> {
        self.drills
            .iter()
            .flat_map(|drill| &drill.checks)
            .chain(&self.afterwards)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for drill in &self.drills {
            writeln!(f, "\n{}", drill.name)?;
            for line in &drill.done {
                writeln!(f, "  {line}")?;
            }
            for (part, traffic) in &drill.traffic {
                write!(f, "{}", traffic_text(part, traffic))?;
            }
            for check in &drill.checks {
                writeln!(f, "{check}")?;
            }
        }
        match &self.trouble {
            Some(trouble) => writeln!(f, "\n{trouble}")?,
            None => writeln!(f, "\nafterwards")?,
        }
        for check in &self.afterwards {
            writeln!(f, "{check}")?;
        }
        let failed = self.checks().filter(|check| !check.held).count();
        let held = self.checks().count() - failed;
        writeln!(f, "\n{held} expectations held, {failed} did not")
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.held { "ok  " } else { "FAIL" };
        write!(f, "  {word} {} ({})", self.expected, self.found)
    }
}

fn traffic_text(part: &str, traffic: &Traffic) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "  {part}: {:.0} s, {} requests at the front door ({:.1} a second), {} repeated by it",
        traffic.seconds,
        traffic.requests,
        traffic.requests_per_second(),
        traffic.repeated_by_front_door
    );
    let _ = writeln!(
        text,
        "    {:14}{:>8}{:>8}{:>14}{:>16}{:>10}   median / p99 / longest",
        "", "asked", "done", "after a retry", "failed for now", "refused"
    );
    for (name, counts) in traffic.kinds() {
        let _ = writeln!(text, "    {name:14}{}", counts_text(counts));
        for (reason, times) in counts.failed_for_now.iter().chain(&counts.refused) {
            let _ = writeln!(text, "      {times} x {reason}");
        }
    }
    text
}

fn counts_text(counts: &Counts) -> String {
    let ms = counts.milliseconds;
    let retried = counts
        .done_after_retry
        .map_or_else(|| "-".to_owned(), |n| n.to_string());
    format!(
        "{:>8}{:>8}{:>14}{:>16}{:>10}   {} / {} / {} ms",
        counts.asked,
        counts.done,
        retried,
        counts.failed_now(),
        counts.failed_for_good(),
        ms.median,
        ms.p99,
        ms.most
    )
}
