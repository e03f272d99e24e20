//! The page of one scenario: its timeline, then each step with what was expected, what came, every policy's verdict
//! and the messages.

use std::fmt::Write as _;

use super::{escape, messages, page as whole, tags, timeline, verdict};
use crate::scenario::{
    advice::{PolicyVerdict, advice, verdicts},
    report::explain,
    run::{Report, StepReport, Verdict},
};

/// The page.
pub(super) fn page(report: &Report) -> Result<String, std::fmt::Error> {
    let plan = &report.file.scenario;
    let mut body =
        String::from("<p><a href=\"index.html\">All scenarios</a> · <a href=\"coverage.html\">Coverage</a></p>");
    write!(
        body,
        "<p class=\"teaches\">{}</p><p>{} in {:.1} s · <code>{}</code>{}</p>",
        escape(&plan.teaches.join(" ")),
        verdict(report.verdict.word()),
        report.took.as_secs_f64(),
        escape(&report.file.path.display().to_string()),
        tags(&plan.tags)
    )?;
    if let (Verdict::Trouble(reason) | Verdict::Skipped(reason), true) = (&report.verdict, report.steps.is_empty()) {
        write!(body, "<p class=\"failure\">{}</p>", escape(reason))?;
    }
    write!(body, "<h2>Timeline</h2>")?;
    timeline::draw(&mut body, report)?;
    write!(body, "<h2>Steps</h2>")?;
    for (number, step) in report.steps.iter().enumerate() {
        one(&mut body, report, number, step)?;
    }
    let before = of_step(report, None);
    if !before.is_empty() {
        write!(body, "<h2>Messages before the first step</h2>")?;
        for number in before {
            if let Some(message) = report.messages.get(number) {
                messages::folded(&mut body, &report.file.name, number, message)?;
            }
        }
    }
    Ok(whole(&plan.title, &body))
}

/// The numbers of the messages of a step.
fn of_step(report: &Report, step: Option<usize>) -> Vec<usize> {
    let mine = report
        .messages
        .iter()
        .enumerate()
        .filter(|(_, message)| message.step == step);
    mine.map(|(number, _)| number).collect()
}

fn one(body: &mut String, report: &Report, number: usize, step: &StepReport) -> std::fmt::Result {
    write!(
        body,
        "<section class=\"step {word}\" id=\"s{at}\"><h3>{at}. {} {}</h3>",
        escape(&step.title),
        verdict(step.verdict.word()),
        word = step.verdict.word(),
        at = number + 1,
    )?;
    if step.verdict != Verdict::Passed {
        write!(body, "<div class=\"failure\">")?;
        for line in explain(report, number, step) {
            write!(body, "<div>{}</div>", escape(&line))?;
        }
        write!(body, "</div>")?;
    }
    comparison(body, step)?;
    parts(body, step)?;
    if let Some(came) = &step.came {
        let told: Vec<PolicyVerdict> = came.events.iter().flat_map(verdicts).collect();
        policies(body, &told)?;
        let help = advice(came);
        if step.verdict == Verdict::Passed && !help.is_empty() {
            write!(
                body,
                "<p class=\"soft\">What an administrator would do about it:</p><ul class=\"advice\">"
            )?;
            for line in help {
                write!(body, "<li>{}</li>", escape(&line))?;
            }
            write!(body, "</ul>")?;
        }
    }
    let mine = of_step(report, Some(number));
    for (shown, at) in mine.iter().enumerate() {
        if shown == MOST_MESSAGES {
            let left = mine.len() - shown;
            write!(
                body,
                "<p class=\"soft\">and {left} more, whose bytes lie beside this page</p>"
            )?;
            break;
        }
        if let Some(message) = report.messages.get(*at) {
            messages::folded(body, &report.file.name, *at, message)?;
        }
    }
    write!(body, "</section>")
}

/// What was expected beside what came, field by field.
fn comparison(body: &mut String, step: &StepReport) -> std::fmt::Result {
    let Some(came) = &step.came else { return Ok(()) };
    if step.step.action.yields().is_empty() {
        return write!(body, "<p class=\"soft\">{}</p>", escape(&came.text));
    }
    let expected = serde_json::to_value(&step.step.expect).unwrap_or_default();
    let told = serde_json::to_value(came).unwrap_or_default();
    write!(
        body,
        "<table><thead><tr><th></th><th>Expected</th><th>Came</th></tr></thead><tbody>"
    )?;
    let outcome = if came.done { "done" } else { "refused" };
    let wanted = match &step.step.expect {
        Some(expect) => serde_json::to_value(expect.outcome()).unwrap_or_default(),
        None => "done".into(),
    };
    let mut row = |name: &str, expected: String, came: String| {
        let wrong = step.mismatches.iter().any(|mismatch| mismatch.field == name);
        let class = if wrong { " class=\"failed\"" } else { "" };
        write!(
            body,
            "<tr><td>{name}</td><td>{}</td><td{class}>{}</td></tr>",
            escape(&expected),
            escape(&came)
        )
    };
    row(
        "outcome",
        wanted.as_str().unwrap_or_default().to_owned(),
        outcome.to_owned(),
    )?;
    for name in FIELDS {
        let (expected, came) = (expected.get(name), told.get(name));
        if expected.is_none_or(serde_json::Value::is_null) && came.is_none_or(serde_json::Value::is_null) {
            continue;
        }
        let text = |value: Option<&serde_json::Value>| match value {
            None | Some(serde_json::Value::Null) => String::new(),
            Some(serde_json::Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        row(name, text(expected), text(came))?;
    }
    row(
        "text",
        step.step
            .expect
            .iter()
            .flat_map(|e| e.says.iter())
            .flat_map(|w| w.iter().cloned())
            .collect::<Vec<_>>()
            .join(", "),
        came.text.clone(),
    )?;
    let events: Vec<String> = came
        .events
        .iter()
        .map(|event| format!("{}: {}", event.service, event.outcome))
        .chain(came.logged.iter().map(ToString::to_string))
        .collect();
    let wanted = step
        .step
        .expect
        .iter()
        .flat_map(|e| e.events.iter())
        .flat_map(|events| events.iter());
    let wanted: Vec<String> = wanted.map(ToString::to_string).collect();
    if !(wanted.is_empty() && events.is_empty()) {
        row("events", wanted.join(", "), events.join(", "))?;
    }
    write!(body, "</tbody></table>")
}

/// Several steps at once.
fn parts(body: &mut String, step: &StepReport) -> std::fmt::Result {
    for part in step.came.iter().flat_map(|came| &came.parts) {
        let word = if part.mismatches.is_empty() { "passed" } else { "failed" };
        write!(
            body,
            "<div>{} {}: {}</div>",
            verdict(word),
            escape(&part.title),
            escape(&part.text)
        )?;
    }
    Ok(())
}

fn policies(body: &mut String, told: &[PolicyVerdict]) -> std::fmt::Result {
    if told.is_empty() {
        return Ok(());
    }
    let failed = told
        .iter()
        .filter(|verdict| verdict.enabled && verdict.verdict != "pass")
        .count();
    write!(
        body,
        "<details><summary>Every policy's verdict: {} evaluated, {failed} failed</summary><div \
         class=\"inside\"><table><thead><tr><th>Host</th><th>Policy</th><th>Verdict</th><th>Decided \
         by</th><th>Expected</th><th>Seen</th><th>Remedy</th></tr></thead><tbody>",
        told.len()
    )?;
    for verdict in told {
        let passed = verdict.verdict == "pass";
        write!(
            body,
            "<tr><td>{}</td><td>{}</td><td class=\"{}\">{}{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&verdict.host),
            escape(&verdict.policy),
            if passed { "passed" } else { "failed" },
            escape(&verdict.verdict),
            if verdict.enabled { "" } else { " (disabled)" },
            escape(&verdict.decided_by),
            escape(&verdict.expected),
            escape(&verdict.seen),
            escape(if passed { "" } else { &verdict.remedy }),
        )?;
    }
    write!(body, "</tbody></table></div></details>")
}

const FIELDS: [&str; 12] = [
    "status",
    "substatus",
    "failed_policies",
    "error",
    "reply",
    "http",
    "offline",
    "offline_starts_left",
    "vm_state",
    "owner",
    "certificate_left",
    "takes",
];
/// Messages of one step on a page.
const MOST_MESSAGES: usize = 60;
