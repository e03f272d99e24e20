//! The run as pages for people: an index, a page for each scenario, and one about coverage. The pages load nothing:
//! styles and drawings are inside them, there are no scripts, and their content-security policy forbids the rest.

mod coverage;
mod messages;
mod scenario;
mod timeline;

use std::{fmt::Write as _, path::Path};

use anyhow::Context;

use super::{culprit, escape, explain, write};
use crate::scenario::{
    coverage::coverage,
    run::{Report, Verdict},
};

/// Writes the pages, and each message's bytes beside them, into `folder`. `how` says in what way the scenarios were run.
pub fn write_all(folder: &Path, how: &str, reports: &[Report]) -> anyhow::Result<()> {
    let groups = coverage(reports);
    write(&folder.join("index.html"), &index(how, reports)?)?;
    write(&folder.join("coverage.html"), &coverage::page(&groups)?)?;
    for report in reports {
        let name = &report.file.name;
        write(&folder.join(format!("scenario-{name}.html")), &scenario::page(report)?)?;
        messages::write_bytes(&folder.join("messages").join(name), report)
            .with_context(|| format!("the messages of {name}"))?;
    }
    Ok(())
}

fn index(how: &str, reports: &[Report]) -> Result<String, std::fmt::Error> {
    let mut body = format!("<p class=\"teaches\">{} scenarios, {}</p>", reports.len(), escape(how));
    let count = |word: &str| reports.iter().filter(|report| report.verdict.word() == word).count();
    write!(body, "<p class=\"counts\">")?;
    for word in ["passed", "failed", "skipped", "trouble"] {
        write!(body, "<span class=\"verdict {word}\">{} {word}</span> ", count(word))?;
    }
    write!(
        body,
        "</p><p><a href=\"coverage.html\">What of the specifications was reached</a></p>"
    )?;
    write!(
        body,
        "<table><thead><tr><th>Verdict</th><th>Scenario</th><th>What it teaches</th><th>Time</th></tr></thead><tbody>"
    )?;
    for report in reports {
        let plan = &report.file.scenario;
        write!(
            body,
            "<tr><td>{}</td><td><a href=\"scenario-{name}.html\">{}</a><br><code>{name}</code>{}{}</td><td>{}</td><td \
             class=\"number\">{:.1} s</td></tr>",
            verdict(report.verdict.word()),
            escape(&plan.title),
            tags(&plan.tags),
            reason(report),
            escape(&plan.teaches.join(" ")),
            report.took.as_secs_f64(),
            name = escape(&report.file.name),
        )?;
    }
    write!(body, "</tbody></table>")?;
    Ok(page("Scenarios of the guarded fabric lab", &body))
}

/// What kept a scenario from passing, in a line.
fn reason(report: &Report) -> String {
    let told = match &report.verdict {
        Verdict::Passed => return String::new(),
        Verdict::Skipped(reason) | Verdict::Trouble(reason) => Some(reason.clone()),
        Verdict::Failed => culprit(report).and_then(|(number, step)| explain(report, number, step).into_iter().next()),
    };
    told.map(|told| format!("<br><span class=\"{}\">{}</span>", report.verdict.word(), escape(&told)))
        .unwrap_or_default()
}

fn tags(tags: &[String]) -> String {
    tags.iter()
        .map(|tag| format!(" <span class=\"tag\">{}</span>", escape(tag)))
        .collect()
}

/// A verdict as a coloured word.
fn verdict(word: &str) -> String {
    format!("<span class=\"verdict {word}\">{word}</span>")
}

/// A whole page around `body`.
fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; base-uri \
         'none'; form-action 'none'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>{STYLE}</style></head>\n<body><main><h1>{title}</h1>\n{body}\n</main></body></html>\n",
        title = escape(title)
    )
}

const STYLE: &str = include_str!("style.css");
