//! What is written about a run, for machines and people.

pub mod html;
pub mod json;
pub mod junit;

use std::path::Path;

use super::{
    advice::advice,
    run::{Report, StepReport, Verdict},
};

/// What a reader needs to know about a step that did not pass, in lines.
pub fn explain(report: &Report, number: usize, step: &StepReport) -> Vec<String> {
    let mut lines = Vec::new();
    let at = |line: Option<usize>| line.map_or_else(String::new, |line| format!(":{line}"));
    match &step.verdict {
        Verdict::Passed => {}
        Verdict::Skipped(reason) => lines.push(format!("skipped: {reason}")),
        Verdict::Trouble(reason) => {
            lines.push(format!("trouble: {reason}"));
            lines.push("this is no verdict on the scenario: the lab did not reach a part of its own fabric".to_owned());
        }
        Verdict::Failed => {
            let given = step
                .step
                .expect
                .iter()
                .flat_map(|expect| expect.given())
                .collect::<Vec<_>>();
            for mismatch in &step.mismatches {
                let span = given.iter().find(|(field, _)| field.field() == mismatch.field);
                let line = span.and_then(|(_, span)| report.file.line(span));
                let place = format!("{}{}", report.file.path.display(), at(line));
                lines.push(format!(
                    "{place}: step {} expects {} {}",
                    number + 1,
                    mismatch.field,
                    mismatch.expected
                ));
                lines.push(format!("what came: {}", mismatch.came));
            }
            let help = step.came.iter().flat_map(advice).collect::<Vec<_>>();
            lines.extend(help.into_iter().map(|text| format!("an administrator would: {text}")));
        }
    }
    lines
}

/// The first step that did not pass, with its number from 0.
pub fn culprit(report: &Report) -> Option<(usize, &StepReport)> {
    report
        .steps
        .iter()
        .enumerate()
        .find(|(_, step)| step.verdict != Verdict::Passed)
}

/// Empties a report's file, or makes it and the folders above it: whoever reads it later does not read an earlier run's, and
/// a place where nothing can be written is known before the run.
pub fn begin(path: &Path) -> anyhow::Result<()> {
    write(path, "")
}

/// Writes a report's file, and the folders above it.
pub fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    use anyhow::Context;
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Text in XML or HTML: what is markup is escaped, what XML cannot hold is replaced.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}
