//! Messages on a page: each field beside its bytes. Long bytes are cut there; all of them lie in files beside the pages.

use std::{fmt::Write as _, path::Path};

use anyhow::Context;

use super::escape;
use crate::scenario::{
    decode::{self, Decoded, Field},
    journal::Message,
    run::Report,
};

/// Writes the bodies of all messages as they went over the network.
pub(super) fn write_bytes(folder: &Path, report: &Report) -> anyhow::Result<()> {
    if report.messages.is_empty() {
        return Ok(());
    }
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for (number, message) in report.messages.iter().enumerate() {
        let write = |what: &str, body: &[u8]| {
            let path = folder.join(file(number, what));
            std::fs::write(&path, body).with_context(|| format!("cannot write {}", path.display()))
        };
        if !message.request.is_empty() {
            write("request", &message.request)?;
        }
        if let Some(answer) = message.answer.as_ref().filter(|answer| !answer.body.is_empty()) {
            write("answer", &answer.body)?;
        }
    }
    Ok(())
}

fn file(number: usize, what: &str) -> String {
    format!("{}-{what}", number + 1)
}

/// The types of request and answer, in a line, and whether the answer is a refusal.
pub(super) fn summary(message: &Message) -> (String, String, Mood) {
    let request = decode::request(message).kind;
    match (decode::answer(message), &message.answer) {
        (Some(answer), Some(came)) => {
            let refused = came.status >= 400 || answer.kind.ends_with("ErrorReply");
            let told = match answer.kind.as_str() {
                "Error" => code(&answer).unwrap_or(answer.kind),
                _ => answer.kind,
            };
            (request, told, if refused { Mood::Refused } else { Mood::Good })
        }
        _ => (request, "no answer".to_owned(), Mood::Lost),
    }
}

/// How a message went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mood {
    Good,
    Refused,
    Lost,
}

fn code(error: &Decoded) -> Option<String> {
    Some(error.fields.iter().find(|field| field.name == "Code")?.value.clone())
}

/// One message, folded. `number` counts from 0.
pub(super) fn folded(out: &mut String, scenario: &str, number: usize, message: &Message) -> std::fmt::Result {
    let (request, answer, mood) = summary(message);
    let class = if mood == Mood::Good { "passed" } else { "failed" };
    write!(
        out,
        "<details id=\"m{}\"><summary>{} → {}: <b>{}</b> → <span class=\"{class}\">{}</span> <span class=\"soft\">{} {}, \
         {} ms</span></summary><div class=\"inside\">",
        number + 1,
        escape(&message.from),
        escape(&message.to.to_string()),
        escape(&request),
        escape(&answer),
        escape(&message.method),
        escape(&message.path),
        message.took.as_millis(),
    )?;
    if let Some(remark) = &message.remark {
        write!(out, "<p class=\"failed\">{}</p>", escape(remark))?;
    }
    let link = |what: &str, length: usize| match length {
        0 => "no body".to_owned(),
        length => format!(
            "<a href=\"messages/{}/{}\">all {length} bytes</a>",
            escape(scenario),
            file(number, what)
        ),
    };
    let told = decode::request(message);
    write!(
        out,
        "<h3>Request: {} {}</h3><p>{}</p>",
        escape(&told.kind),
        section(&told),
        link("request", message.request.len())
    )?;
    fields(out, &told)?;
    if let (Some(told), Some(came)) = (decode::answer(message), &message.answer) {
        write!(
            out,
            "<h3>Answer: {} {}</h3><p>HTTP {}, {}</p>",
            escape(&told.kind),
            section(&told),
            came.status,
            link("answer", came.body.len())
        )?;
        fields(out, &told)?;
    }
    write!(out, "</div></details>")
}

fn section(told: &Decoded) -> String {
    match told.section {
        "" => String::new(),
        section => format!("<span class=\"soft\">({section})</span>"),
    }
}

fn fields(out: &mut String, told: &Decoded) -> std::fmt::Result {
    if told.fields.is_empty() {
        return Ok(());
    }
    write!(
        out,
        "<table class=\"fields\"><thead><tr><th>Field</th><th>Value</th><th>Bytes</th></tr></thead><tbody>"
    )?;
    for field in &told.fields {
        row(out, field, 0)?;
    }
    write!(out, "</tbody></table>")
}

fn row(out: &mut String, field: &Field, depth: usize) -> std::fmt::Result {
    write!(
        out,
        "<tr><td style=\"padding-left:{:.1}rem\">{}</td><td class=\"value\">{}</td><td class=\"bytes\">{}</td></tr>",
        0.5 + 1.2 * depth as f32,
        escape(&field.name),
        escape(&cut(&field.value)),
        bytes(&field.bytes)
    )?;
    if depth < DEEPEST {
        for part in &field.parts {
            row(out, part, depth + 1)?;
        }
    }
    Ok(())
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(LONGEST_VALUE) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// Hex in groups of four bytes.
fn bytes(bytes: &[u8]) -> String {
    let shown = bytes.get(..bytes.len().min(MOST_BYTES)).unwrap_or_default();
    let groups: Vec<String> = shown.chunks(4).map(hex::encode).collect();
    let rest = match bytes.len() > shown.len() {
        true => format!(" … ({} bytes)", bytes.len()),
        false => String::new(),
    };
    groups.join(" ") + &rest
}

const MOST_BYTES: usize = 64;
const LONGEST_VALUE: usize = 400;
const DEEPEST: usize = 12;
