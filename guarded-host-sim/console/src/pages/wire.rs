//! What went over the network: a ladder of exchanges, and each message decoded to its specification's fields.

use actix_web::web::{Path, Query};
use askama::Template;
use serde::Deserialize;

use super::{
    Frame, Shown, Trouble,
    fields::{self, FieldRow},
    html,
};
use crate::{lab::Exchange, session::Visitor};

/// Whose exchanges.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    party: String,
}

/// A vertical line of the ladder.
struct Column {
    name: String,
    x: usize,
}

/// A rung: a request, and its answer below.
struct Rung {
    href: String,
    from: usize,
    to: usize,
    y: usize,
    below: usize,
    label: usize,
    /// To the right: the head of an arrow points with it.
    right: bool,
    exchange: Exchange,
}

impl Rung {
    fn answer(&self) -> &str {
        self.exchange.answer.as_ref().map_or("no answer", |answer| &answer.kind)
    }

    fn class(&self) -> &'static str {
        match &self.exchange.answer {
            Some(answer) if !answer.refuses => "good",
            _ => "bad",
        }
    }

    fn ask_head(&self) -> String {
        head(self.to, self.y, self.right)
    }

    fn answer_head(&self) -> String {
        head(self.from, self.below, !self.right)
    }
}

/// The points of an arrow's head at `x`, on the line `y`, which points to the right or to the left.
fn head(x: usize, y: usize, right: bool) -> String {
    let back = if right { x.saturating_sub(9) } else { x + 9 };
    format!("{x},{y} {back},{} {back},{}", y.saturating_sub(5), y + 5)
}

#[derive(Template)]
#[template(path = "wire.html")]
struct LadderPage {
    frame: Frame,
    party: String,
    parties: Vec<String>,
    columns: Vec<Column>,
    rungs: Vec<Rung>,
    width: usize,
    height: usize,
}

/// The newest exchanges.
pub(super) async fn list(visitor: Visitor, asked: Query<Asked>) -> Shown {
    let lab = &visitor.console.lab;
    let party = asked.into_inner().party;
    let exchanges = lab.exchanges(SHOWN, &party);
    let mut names: Vec<String> = Vec::new();
    // Askers stand left of whom they ask.
    let asked = exchanges.iter().map(|e| &e.from).chain(exchanges.iter().map(|e| &e.to));
    for name in asked {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    let x = |name: &str| MARGIN + names.iter().position(|n| n == name).unwrap_or_default() * COLUMN;
    let rungs: Vec<Rung> = exchanges
        .into_iter()
        .enumerate()
        .map(|(number, exchange)| {
            let (from, to, y) = (x(&exchange.from), x(&exchange.to), TOP + number * RUNG);
            Rung {
                href: format!("/wire/{}", exchange.number),
                from,
                to,
                y,
                below: y + RUNG / 2 - 6,
                label: from.min(to) + 8,
                right: to > from,
                exchange,
            }
        })
        .collect();
    let mut parties: Vec<String> = lab.hosts().await.into_iter().map(|host| host.name).collect();
    parties.extend(
        names
            .iter()
            .filter(|name| !parties.contains(name))
            .cloned()
            .collect::<Vec<_>>(),
    );
    html(&LadderPage {
        frame: Frame::new(&visitor, "wire", "Wire inspector"),
        parties,
        width: MARGIN * 2 + names.len().saturating_sub(1) * COLUMN,
        height: TOP + rungs.len() * RUNG,
        columns: names
            .iter()
            .map(|name| Column {
                name: name.clone(),
                x: x(name),
            })
            .collect(),
        rungs,
        party,
    })
}

#[derive(Template)]
#[template(path = "exchange.html")]
struct ExchangePage {
    frame: Frame,
    exchange: Exchange,
    request: Vec<FieldRow>,
    answer: Vec<FieldRow>,
    previous: Option<usize>,
}

/// One exchange, field by field.
pub(super) async fn show(visitor: Visitor, number: Path<usize>) -> Shown {
    let exchange = visitor.console.lab.exchange(*number);
    let exchange =
        exchange.ok_or_else(|| Trouble::Missing("this exchange is not, or no longer, in the record".to_owned()))?;
    html(&ExchangePage {
        frame: Frame::new(&visitor, "wire", format!("{} asks {}", exchange.from, exchange.to)),
        request: fields::of_fields(&exchange.request.fields),
        answer: exchange
            .answer
            .as_ref()
            .map(|answer| fields::of_fields(&answer.fields))
            .unwrap_or_default(),
        previous: number.checked_sub(1),
        exchange,
    })
}

const SHOWN: usize = 60;
const MARGIN: usize = 110;
const COLUMN: usize = 260;
const TOP: usize = 60;
const RUNG: usize = 64;
