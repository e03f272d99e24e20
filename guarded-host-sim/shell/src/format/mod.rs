//! How objects look: tables and lists as PowerShell draws them.

mod json;
mod list;
mod table;
mod view;

use crate::value::{Object, Value, convert};

pub use json::{from_json, to_json};
pub(crate) use list::{list, rows_of};
pub(crate) use table::{Property, Wanted, table, without_titles};
pub(crate) use view::CORE_VIEWS;
pub use view::{Column, Shape, View};

/// Draws what comes one after the other; objects of one kind share a table.
#[derive(Default)]
pub(crate) struct Formatter {
    pub(crate) views: Vec<&'static View>,
    waiting: Vec<Value>,
    kind: String,
    /// Whether objects are kept instead, for JSON.
    pub(crate) keep: Option<Vec<Value>>,
}

impl Formatter {
    pub(crate) fn with_views(views: &'static [View]) -> Formatter {
        Formatter {
            views: views.iter().collect(),
            ..Formatter::default()
        }
    }

    /// Takes an object; gives the text that can be drawn now.
    pub(crate) fn take(&mut self, value: &Value, width: usize) -> String {
        if let Some(kept) = &mut self.keep {
            kept.push(value.clone());
            return String::new();
        }
        let Some(kind) = drawn_kind(value) else {
            let mut text = self.finish(width);
            text.push_str(&lines(value));
            return text;
        };
        let mut text = String::new();
        if kind != self.kind {
            text = self.finish(width);
            self.kind = kind;
        }
        self.waiting.push(value.clone());
        text
    }

    /// Draws what waits.
    pub(crate) fn finish(&mut self, width: usize) -> String {
        let waiting = std::mem::take(&mut self.waiting);
        self.kind.clear();
        match waiting.is_empty() {
            true => String::new(),
            false => self.draw(&waiting, width),
        }
    }

    /// Objects of one kind by their view.
    fn draw(&self, values: &[Value], width: usize) -> String {
        let Some(first) = values.first() else {
            return String::new();
        };
        if let Value::Table(_) = first {
            return table::dictionary(values, width);
        }
        let view = match first {
            Value::Object(object) => self.view_of(object),
            _ => None,
        };
        match view.map(|view| &view.shape) {
            Some(Shape::Table { columns, group }) => table::by_view(values, columns, *group, width),
            Some(Shape::List(names)) => list(
                values,
                &names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>(),
                width,
            ),
            Some(Shape::Line(property)) => values
                .iter()
                .map(|value| format!("{}\n", cell(&crate::eval::property_of(value, property))))
                .collect(),
            None => {
                let names = property_names(first);
                match names.len() {
                    0 => "\n".to_owned(),
                    1..=4 => table(values, &Wanted::all(&names), width),
                    _ => list(values, &names, width),
                }
            }
        }
    }

    fn view_of(&self, object: &Object) -> Option<&'static View> {
        let own = |kind: &std::rc::Rc<str>| self.views.iter().find(|view| view.kind.eq_ignore_ascii_case(kind));
        object.types.iter().find_map(own).copied()
    }

    /// The text of several objects, as `Out-String` and `Out-File` give it.
    pub(crate) fn text_of(&self, values: &[Value], width: usize) -> String {
        let mut own = Formatter {
            views: self.views.clone(),
            ..Formatter::default()
        };
        let mut text: String = values.iter().map(|value| own.take(value, width)).collect();
        text.push_str(&own.finish(width));
        text
    }
}

/// What groups objects that are drawn together; nothing for what is a line by itself.
fn drawn_kind(value: &Value) -> Option<String> {
    match value {
        Value::Table(_) => Some("Hashtable".to_owned()),
        Value::Object(object) => {
            let hidden = object.hidden.borrow();
            let own = ["Drawn", "Display"].iter().any(|name| hidden.get(name).is_some());
            let empty = object.properties.borrow().is_empty();
            let line = LINES.iter().any(|kind| object.is(kind)) || (empty && hidden.get("ToString").is_some());
            match own || line {
                true => None,
                // Objects of a script's own making share a table if they have the same properties.
                false if object.is("PSCustomObject") => Some(property_names(value).join("\n")),
                false => Some(object.kind().to_owned()),
            }
        }
        _ => None,
    }
}

/// What is a line, or lines, by itself.
fn lines(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::List(items) => items.borrow().iter().map(lines).collect(),
        Value::Bytes(bytes) => bytes.iter().map(|byte| format!("{byte}\n")).collect(),
        Value::Date(date) => format!("\n{}\n\n", date.long()),
        Value::Type(name) => format!("{name}\n"),
        Value::Object(object) => {
            let hidden = object.hidden.borrow();
            if let Some(text) = hidden.get("Drawn") {
                return convert::to_text(text);
            }
            match hidden.get("Display") {
                Some(text) => format!("{}\n", convert::to_text(text)),
                None => format!("{}\n", convert::to_text(value)),
            }
        }
        other => format!("{}\n", convert::to_text(other)),
    }
}

/// The names of an object's properties.
pub(crate) fn property_names(value: &Value) -> Vec<String> {
    match value {
        Value::Object(object) => object
            .properties
            .borrow()
            .iter()
            .map(|(name, _)| name.to_owned())
            .collect(),
        Value::Table(_) => vec!["Name".to_owned(), "Value".to_owned()],
        _ => Vec::new(),
    }
}

/// How a value looks inside of a table or a list.
pub(crate) fn cell(value: &Value) -> String {
    let several = |items: Vec<String>, more: bool| {
        let mut text = items.join(", ");
        if more {
            text.push_str("...");
        }
        format!("{{{text}}}")
    };
    match value {
        Value::List(items) => {
            let items = items.borrow();
            several(
                items.iter().take(SHOWN).map(convert::to_text).collect(),
                items.len() > SHOWN,
            )
        }
        Value::Bytes(bytes) => several(
            bytes.iter().take(SHOWN).map(u8::to_string).collect(),
            bytes.len() > SHOWN,
        ),
        Value::Table(entries) => {
            let entries = entries.borrow();
            several(
                entries.iter().take(SHOWN).map(|(name, _)| name.to_owned()).collect(),
                entries.len() > SHOWN,
            )
        }
        other => convert::to_text(other).replace(['\r', '\n'], " "),
    }
}

/// A drawn text as an object, as `Format-List` and `Format-Table` give it.
pub(crate) fn drawn(text: String) -> Value {
    let object = Object::new::<String>("FormatEntryData", std::iter::empty());
    object.hidden.borrow_mut().set("Drawn", Value::text(text));
    Value::Object(std::rc::Rc::new(object))
}

/// As `$FormatEnumerationLimit` has it.
const SHOWN: usize = 4;
/// Types that are drawn as their text.
const LINES: [&str; 5] = ["Uri", "Guid", "Version", "TimeSpan", "XmlElement"];
