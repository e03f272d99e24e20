//! The run as one JSON document.

use serde_json::{Value, json};

use super::explain;
use crate::scenario::{
    advice::{advice, verdicts},
    coverage::coverage,
    run::{Report, Verdict},
};

/// The document; `how` says in what way the scenarios were run.
pub fn document(how: &str, reports: &[Report]) -> Value {
    let count = |word: &str| reports.iter().filter(|report| report.verdict.word() == word).count();
    json!({
        "how": how,
        "scenarios": reports.iter().map(scenario).collect::<Vec<_>>(),
        "passed": count("passed"),
        "failed": count("failed"),
        "skipped": count("skipped"),
        "trouble": count("trouble"),
        "coverage": coverage(reports),
    })
}

fn scenario(report: &Report) -> Value {
    let plan = &report.file.scenario;
    json!({
        "name": report.file.name,
        "file": report.file.path,
        "title": plan.title,
        "teaches": *plan.teaches,
        "tags": plan.tags,
        "verdict": report.verdict.word(),
        "reason": reason(&report.verdict),
        "milliseconds": milliseconds(report.took),
        "steps": steps(report),
        "messages": report.messages.iter().map(message).collect::<Vec<_>>(),
    })
}

fn steps(report: &Report) -> Vec<Value> {
    let one = |(number, step): (usize, &crate::scenario::run::StepReport)| {
        let events = step.came.iter().flat_map(|came| &came.events);
        json!({
            "title": step.title,
            "step": step.step,
            "verdict": step.verdict.word(),
            "reason": reason(&step.verdict),
            "began_at_ms": milliseconds(step.at),
            "came": step.came,
            "mismatches": step.mismatches,
            "policies": events.flat_map(verdicts).collect::<Vec<_>>(),
            "advice": step.came.as_ref().map(advice),
            "explanation": explain(report, number, step),
        })
    };
    report.steps.iter().enumerate().map(one).collect()
}

fn message(message: &crate::scenario::journal::Message) -> Value {
    json!({
        "step": message.step,
        "at_ms": milliseconds(message.at),
        "took_ms": milliseconds(message.took),
        "from": message.from,
        "to": message.to.to_string(),
        "method": message.method,
        "path": message.path,
        "request_bytes": message.request.len(),
        "status": message.answer.as_ref().map(|answer| answer.status),
        "answer_bytes": message.answer.as_ref().map(|answer| answer.body.len()),
        "remark": message.remark,
    })
}

fn reason(verdict: &Verdict) -> Option<&str> {
    match verdict {
        Verdict::Skipped(reason) | Verdict::Trouble(reason) => Some(reason),
        _ => None,
    }
}

fn milliseconds(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
