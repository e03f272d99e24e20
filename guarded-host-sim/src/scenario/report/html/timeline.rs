//! The timeline: a column for each role (VMs, hosts, attestation, key protection), time downwards, an arrow for each
//! message, a mark where something was done.

use std::fmt::Write as _;

use super::{
    escape,
    messages::{Mood, summary},
};
use crate::scenario::{
    act::LAB,
    journal::Message,
    model::Action,
    run::{Report, StepReport},
};

/// Draws it.
pub(super) fn draw(out: &mut String, report: &Report) -> std::fmt::Result {
    let lanes = lanes(report);
    let rows = rows(report);
    let height = HEAD + rows.iter().map(Row::height).sum::<usize>() + 10;
    let width = LEFT + lanes.len() * LANE;
    write!(
        out,
        "<div class=\"timeline\"><svg width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" role=\"img\" \
         aria-label=\"timeline of the scenario\">"
    )?;
    let mut y = HEAD;
    // Bands lie below lanes, lanes below arrows.
    for row in &rows {
        if let Row::Step(..) = row {
            write!(
                out,
                "<rect class=\"band\" x=\"0\" y=\"{y}\" width=\"{width}\" height=\"{STEP}\"/>"
            )?;
        }
        y += row.height();
    }
    for (number, lane) in lanes.iter().enumerate() {
        let x = middle(number);
        write!(
            out,
            "<line class=\"lane\" x1=\"{x}\" y1=\"{HEAD}\" x2=\"{x}\" y2=\"{height}\"/><text class=\"head\" x=\"{x}\" \
             y=\"16\" text-anchor=\"middle\">{}</text>",
            escape(lane.split(" of ").next().unwrap_or_default())
        )?;
        if let Some((_, hgs)) = lane.split_once(" of ") {
            let hgs = escape(hgs);
            write!(
                out,
                "<text class=\"soft\" x=\"{x}\" y=\"31\" text-anchor=\"middle\">of {hgs}</text>"
            )?;
        }
    }
    let mut y = HEAD;
    for row in &rows {
        match row {
            Row::Step(number, step) => step_row(out, &lanes, *number, step, y)?,
            Row::Message(number, message) => message_row(out, &lanes, *number, message, y)?,
            Row::More(count) => write!(
                out,
                "<text class=\"soft\" x=\"8\" y=\"{}\">… and {count} more messages of this step</text>",
                y + 15
            )?,
        }
        y += row.height();
    }
    write!(out, "</svg></div>")
}

enum Row<'a> {
    Step(usize, &'a StepReport),
    Message(usize, &'a Message),
    More(usize),
}

impl Row<'_> {
    fn height(&self) -> usize {
        match self {
            Row::Step(..) => STEP,
            _ => MESSAGE,
        }
    }
}

fn rows(report: &Report) -> Vec<Row<'_>> {
    let mut rows = Vec::new();
    for (number, step) in report.steps.iter().enumerate() {
        rows.push(Row::Step(number, step));
        let mine: Vec<_> = report
            .messages
            .iter()
            .enumerate()
            .filter(|(_, m)| m.step == Some(number))
            .collect();
        rows.extend(
            mine.iter()
                .take(MOST_DRAWN)
                .map(|(at, message)| Row::Message(*at, message)),
        );
        if let Some(more) = mine.len().checked_sub(MOST_DRAWN).filter(|more| *more > 0) {
            rows.push(Row::More(more));
        }
    }
    rows
}

/// VMs, hosts, the lab where it speaks itself, then the services of each HGS.
fn lanes(report: &Report) -> Vec<String> {
    let plan = &report.file.scenario;
    let mut lanes: Vec<String> = plan.vm.iter().map(|vm| vm.name.to_string()).collect();
    lanes.extend(plan.host.iter().map(|host| host.name.to_string()));
    if report.messages.iter().any(|message| message.from == LAB) {
        lanes.push(LAB.to_owned());
    }
    for hgs in plan.services() {
        lanes.push(format!("attestation of {}", hgs.name));
        lanes.push(format!("key-protection of {}", hgs.name));
    }
    lanes
}

fn step_row(out: &mut String, lanes: &[String], number: usize, step: &StepReport, y: usize) -> std::fmt::Result {
    let word = step.verdict.word();
    for party in parties(&step.step.action) {
        if let Some(lane) = lanes.iter().position(|lane| *lane == party) {
            write!(
                out,
                "<circle class=\"mark {word}\" cx=\"{}\" cy=\"{}\" r=\"5\"/>",
                middle(lane),
                y + STEP / 2
            )?;
        }
    }
    write!(
        out,
        "<a href=\"#s{at}\"><title>{}</title><text x=\"8\" y=\"{}\">{at}. {} <tspan class=\"soft\">at {} ms</tspan></text></a>",
        escape(&step.title),
        y + 17,
        escape(&shortened(&step.title)),
        step.at.as_millis(),
        at = number + 1,
    )
}

fn message_row(out: &mut String, lanes: &[String], number: usize, message: &Message, y: usize) -> std::fmt::Result {
    let place = |name: &str| lanes.iter().position(|lane| lane == name);
    let (Some(from), Some(to)) = (place(&message.from), place(&message.to.to_string())) else {
        return Ok(());
    };
    let (request, answer, mood) = summary(message);
    let class = match mood {
        Mood::Good => "",
        Mood::Refused => "bad",
        Mood::Lost => "lost",
    };
    let (x1, x2) = (middle(from), middle(to));
    let at = y + 16;
    let back = if x2 > x1 { x2.saturating_sub(7) } else { x2 + 7 };
    write!(
        out,
        "<line class=\"arrow {class}\" x1=\"{x1}\" y1=\"{at}\" x2=\"{x2}\" y2=\"{at}\"/><polygon class=\"tip {class}\" \
         points=\"{x2},{at} {back},{} {back},{}\"/><a href=\"#m{}\"><text class=\"label\" x=\"{}\" y=\"{}\" text-anchor=\"middle\">{} → {} \
         <tspan class=\"soft\">{} ms</tspan></text></a>",
        at - 4,
        at + 4,
        number + 1,
        (x1 + x2) / 2,
        at - 5,
        escape(&request),
        escape(&answer),
        message.took.as_millis(),
    )
}

/// Whom an action is about, as the lanes are called.
fn parties(action: &Action) -> Vec<String> {
    let of = serde_json::to_value(action).unwrap_or_default();
    let Some(fields) = of.as_object().and_then(|map| map.values().next()?.as_object()) else {
        return Vec::new();
    };
    ["vm", "host", "from", "to"]
        .iter()
        .filter_map(|key| fields.get(*key)?.as_str().map(str::to_owned))
        .collect()
}

/// A title that ends before the first lane.
fn shortened(title: &str) -> String {
    match title.char_indices().nth(LONGEST_TITLE) {
        Some((at, _)) => format!("{}…", title.get(..at).unwrap_or_default().trim_end()),
        None => title.to_owned(),
    }
}

fn middle(lane: usize) -> usize {
    LEFT + lane * LANE + LANE / 2
}

const HEAD: usize = 38;
const STEP: usize = 26;
const MESSAGE: usize = 22;
const LANE: usize = 200;
const LEFT: usize = 320;
const LONGEST_TITLE: usize = 46;
/// Messages of one step in the drawing.
const MOST_DRAWN: usize = 30;
