//! The run as JUnit XML, in the dialect that Jenkins publishes a schema for: a suite for each scenario, a case for
//! each step.

use std::{fmt::Write as _, time::Duration};

use super::{culprit, escape, explain};
use crate::scenario::run::{Report, Verdict};

/// The document.
pub fn document(reports: &[Report]) -> Result<String, std::fmt::Error> {
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let count = |wanted: fn(&Verdict) -> bool| -> usize {
        let steps = reports.iter().map(|report| counted(report, wanted));
        steps.sum()
    };
    let time: Duration = reports.iter().map(|report| report.took).sum();
    writeln!(
        out,
        "<testsuites name=\"scenarios\" tests=\"{}\" failures=\"{}\" errors=\"{}\" time=\"{}\">",
        count(|_| true),
        count(is_failed),
        count(is_trouble),
        seconds(time)
    )?;
    for report in reports {
        suite(&mut out, report)?;
    }
    out.push_str("</testsuites>\n");
    Ok(out)
}

fn suite(out: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(
        out,
        "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\" time=\"{}\">",
        escape(&format!("{}: {}", report.file.name, report.file.scenario.title)),
        counted(report, |_| true),
        counted(report, is_failed),
        counted(report, is_trouble),
        counted(report, |verdict| matches!(verdict, Verdict::Skipped(_))),
        seconds(report.took)
    )?;
    // A fabric that did not start has no step to blame.
    if report.steps.is_empty() {
        let Verdict::Trouble(reason) = &report.verdict else {
            return out.write_str("  </testsuite>\n");
        };
        writeln!(
            out,
            "    <testcase classname=\"{}\" name=\"the fabric starts\" time=\"{}\">",
            escape(&report.file.name),
            seconds(report.took)
        )?;
        writeln!(out, "      <error message=\"{}\"/>\n    </testcase>", escape(reason))?;
    }
    for (number, step) in report.steps.iter().enumerate() {
        let time = step.came.as_ref().map(|came| came.took).unwrap_or_default();
        write!(
            out,
            "    <testcase classname=\"{}\" name=\"{}\" time=\"{}\"",
            escape(&report.file.name),
            escape(&format!("{}. {}", number + 1, step.title)),
            seconds(time)
        )?;
        let told = explain(report, number, step).join("\n");
        let first = told.lines().next().unwrap_or_default();
        match &step.verdict {
            Verdict::Passed => out.push_str("/>\n"),
            Verdict::Skipped(reason) => {
                writeln!(
                    out,
                    ">\n      <skipped message=\"{}\"/>\n    </testcase>",
                    escape(reason)
                )?;
            }
            Verdict::Failed | Verdict::Trouble(_) => {
                let tag = if is_failed(&step.verdict) { "failure" } else { "error" };
                writeln!(
                    out,
                    ">\n      <{tag} message=\"{}\">{}</{tag}>\n    </testcase>",
                    escape(first),
                    escape(&told)
                )?;
            }
        }
    }
    out.write_str("  </testsuite>\n")
}

fn counted(report: &Report, wanted: impl Fn(&Verdict) -> bool) -> usize {
    match culprit(report) {
        None if report.steps.is_empty() => usize::from(wanted(&report.verdict)),
        _ => report.steps.iter().filter(|step| wanted(&step.verdict)).count(),
    }
}

fn is_failed(verdict: &Verdict) -> bool {
    *verdict == Verdict::Failed
}

fn is_trouble(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Trouble(_))
}

fn seconds(time: Duration) -> String {
    format!("{:.3}", time.as_secs_f64())
}
