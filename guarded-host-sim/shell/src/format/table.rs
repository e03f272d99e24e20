//! Tables.

use super::{Column, cell};
use crate::value::{Value, convert};

/// A column that is wanted.
pub(crate) struct Wanted {
    pub(crate) title: String,
    pub(crate) property: Property,
    pub(crate) width: Option<usize>,
    pub(crate) right: Option<bool>,
}

/// Where a column's cells come from.
pub(crate) enum Property {
    /// A property.
    Named(String),
    /// Values that were computed, object by object.
    Computed(Vec<Value>),
}

impl Wanted {
    /// Columns of these names.
    pub(crate) fn all(names: &[String]) -> Vec<Wanted> {
        let named = names.iter().map(|name| Wanted {
            title: name.clone(),
            property: Property::Named(name.clone()),
            width: None,
            right: None,
        });
        named.collect()
    }
}

/// Objects as a table, each column as wide as its cells as long as they fit.
pub(crate) fn table(values: &[Value], columns: &[Wanted], width: usize) -> String {
    drawn(values, columns, width, true)
}

/// The same without the line of titles.
pub(crate) fn without_titles(values: &[Value], columns: &[Wanted], width: usize) -> String {
    drawn(values, columns, width, false)
}

fn drawn(values: &[Value], columns: &[Wanted], width: usize, titles: bool) -> String {
    let cells: Vec<Vec<Value>> = columns
        .iter()
        .map(|column| match &column.property {
            Property::Named(name) => values
                .iter()
                .map(|value| crate::eval::property_of(value, name))
                .collect(),
            Property::Computed(values) => values.clone(),
        })
        .collect();
    let texts: Vec<Vec<String>> = cells.iter().map(|own| own.iter().map(cell).collect()).collect();
    let right: Vec<bool> = columns
        .iter()
        .zip(&cells)
        .map(|(column, own)| {
            let to_the_right = |value: &Value| matches!(value, Value::Int(_) | Value::Real(_) | Value::Bool(_));
            column.right.unwrap_or_else(|| own.first().is_some_and(to_the_right))
        })
        .collect();
    let mut widths: Vec<usize> = columns
        .iter()
        .zip(&texts)
        .map(|(column, own)| {
            let widest = own.iter().map(|text| text.chars().count()).max().unwrap_or_default();
            column.width.unwrap_or(widest.max(column.title.chars().count()))
        })
        .collect();
    fit(&mut widths, width);
    let line = |parts: &mut dyn Iterator<Item = String>| {
        let mut text = parts.collect::<Vec<_>>().join(" ");
        text.truncate(text.trim_end().len());
        text.push('\n');
        text
    };
    let mut text = String::from("\n");
    if titles {
        text.push_str(&line(&mut columns.iter().enumerate().map(|(index, column)| {
            padded(
                &column.title,
                at(&widths, index),
                at(&right, index),
                index + 1 == columns.len(),
            )
        })));
        text.push_str(&line(&mut columns.iter().enumerate().map(|(index, column)| {
            let dashes = "-".repeat(column.title.chars().count().min(at(&widths, index)));
            padded(
                &dashes,
                at(&widths, index),
                at(&right, index),
                index + 1 == columns.len(),
            )
        })));
    }
    for row in 0..values.len() {
        text.push_str(&line(&mut texts.iter().enumerate().map(|(index, own)| {
            let last = index + 1 == columns.len();
            padded(
                own.get(row).map_or("", String::as_str),
                at(&widths, index),
                at(&right, index),
                last,
            )
        })));
    }
    text.push('\n');
    text
}

/// By a view's columns; objects that differ in what groups them get a table each.
pub(crate) fn by_view(values: &[Value], columns: &[Column], group: Option<(&str, &str)>, width: usize) -> String {
    let wanted = || -> Vec<Wanted> {
        columns
            .iter()
            .map(|column| Wanted {
                title: column.title.to_owned(),
                property: Property::Named(column.property.to_owned()),
                width: column.width,
                right: column.right,
            })
            .collect()
    };
    let Some((title, property)) = group else {
        return table(values, &wanted(), width);
    };
    let mut text = String::new();
    let of = |value: &Value| convert::to_text(&crate::eval::property_of(value, property));
    for part in values.chunk_by(|a, b| of(a) == of(b)) {
        let name = part.first().map(of).unwrap_or_default();
        text.push_str(&format!("\n    {title}: {name}\n\n"));
        text.push_str(&table(part, &wanted(), width));
    }
    text
}

/// Hashtables: names and values.
pub(crate) fn dictionary(values: &[Value], width: usize) -> String {
    let mut rows = Vec::new();
    for value in values {
        if let Value::Table(entries) = value {
            for (name, value) in entries.borrow().iter() {
                rows.push(Value::object(
                    "DictionaryEntry",
                    [("Name", Value::text(name)), ("Value", value.clone())],
                ));
            }
        }
    }
    let column = |title: &str, width: Option<usize>| Wanted {
        title: title.to_owned(),
        property: Property::Named(title.to_owned()),
        width,
        right: Some(false),
    };
    table(&rows, &[column("Name", Some(30)), column("Value", None)], width)
}

/// Narrows the widest columns until the table fits.
fn fit(widths: &mut [usize], width: usize) {
    let gaps = widths.len().saturating_sub(1);
    while widths.iter().sum::<usize>() + gaps > width {
        match widths.iter_mut().max() {
            Some(widest) if *widest > 4 => *widest -= 1,
            _ => return,
        }
    }
}

fn padded(text: &str, width: usize, right: bool, last: bool) -> String {
    let count = text.chars().count();
    let shown = match count > width {
        true if width > 3 => text.chars().take(width - 3).chain("...".chars()).collect(),
        true => text.chars().take(width).collect(),
        false => text.to_owned(),
    };
    match (right, last) {
        (true, _) => format!("{shown:>width$}"),
        (false, true) => shown,
        (false, false) => format!("{shown:<width$}"),
    }
}

fn at<T: Copy + Default>(all: &[T], index: usize) -> T {
    all.get(index).copied().unwrap_or_default()
}
