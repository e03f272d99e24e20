//! Objects as JSON and back. Names keep their order.

use std::{fmt, rc::Rc};

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::value::{Entries, Object, Value, convert};

/// A value as JSON, objects down to this depth; what lies deeper is text.
pub fn to_json(value: &Value, depth: usize, compressed: bool) -> String {
    let mut text = String::new();
    let style = Style { compressed };
    style.write(&mut text, value, depth, 0);
    text
}

/// JSON as a value: objects are custom objects.
///
/// # Errors
/// It is no JSON.
pub fn from_json(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str::<Read>(text).map(|read| read.0)
}

struct Style {
    compressed: bool,
}

impl Style {
    fn write(&self, text: &mut String, value: &Value, depth: usize, level: usize) {
        match value {
            Value::Null => text.push_str("null"),
            Value::Bool(value) => text.push_str(if *value { "true" } else { "false" }),
            Value::Int(number) => text.push_str(&number.to_string()),
            Value::Real(number) if number.is_finite() => {
                text.push_str(&serde_json::to_string(number).unwrap_or_default());
            }
            Value::Date(date) => quote(text, &date.iso()),
            Value::Bytes(bytes) => {
                let items: Vec<Value> = bytes.iter().map(|byte| Value::Int(i64::from(*byte))).collect();
                self.items(text, &items, depth.max(1), level);
            }
            Value::List(items) => self.items(text, &items.borrow(), depth, level),
            Value::Table(entries) => self.entries(text, &entries.borrow(), depth, level),
            Value::Object(object) => {
                let shown = object.hidden.borrow().get("ToString").cloned();
                let simple = ["Uri", "Guid", "Version", "TimeSpan"]
                    .iter()
                    .any(|kind| object.is(kind));
                match shown {
                    Some(shown) if simple || object.properties.borrow().is_empty() => {
                        quote(text, &convert::to_text(&shown));
                    }
                    _ => self.entries(text, &object.properties.borrow(), depth, level),
                }
            }
            other => quote(text, &convert::to_text(other)),
        }
    }

    fn items(&self, text: &mut String, items: &[Value], depth: usize, level: usize) {
        if items.is_empty() {
            text.push_str("[]");
            return;
        }
        text.push('[');
        for (index, item) in items.iter().enumerate() {
            self.begin(text, index, level + 1);
            match (depth, item) {
                (0, Value::List(_) | Value::Table(_) | Value::Object(_)) => quote(text, &convert::to_text(item)),
                _ => self.write(text, item, depth.saturating_sub(1), level + 1),
            }
        }
        self.end(text, level);
        text.push(']');
    }

    fn entries(&self, text: &mut String, entries: &Entries, depth: usize, level: usize) {
        if entries.is_empty() {
            text.push_str("{}");
            return;
        }
        text.push('{');
        for (index, (name, value)) in entries.iter().enumerate() {
            self.begin(text, index, level + 1);
            quote(text, name);
            text.push_str(if self.compressed { ":" } else { ": " });
            match (depth, value) {
                (0, Value::List(_) | Value::Table(_) | Value::Object(_)) => quote(text, &convert::to_text(value)),
                _ => self.write(text, value, depth.saturating_sub(1), level + 1),
            }
        }
        self.end(text, level);
        text.push('}');
    }

    fn begin(&self, text: &mut String, index: usize, level: usize) {
        if index > 0 {
            text.push(',');
        }
        self.end(text, level);
    }

    fn end(&self, text: &mut String, level: usize) {
        if !self.compressed {
            text.push('\n');
            text.push_str(&"  ".repeat(level));
        }
    }
}

fn quote(text: &mut String, own: &str) {
    text.push_str(&serde_json::to_string(own).unwrap_or_default());
}

/// A value as it is read.
struct Read(Value);

impl<'de> Deserialize<'de> for Read {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Read, D::Error> {
        deserializer.deserialize_any(Reader).map(Read)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        #[expect(
            clippy::cast_precision_loss,
            reason = "greater numbers are kept as PowerShell keeps them"
        )]
        Ok(i64::try_from(value).map_or(Value::Real(value as f64), Value::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Real(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(Read(item)) = items.next_element()? {
            all.push(item);
        }
        Ok(Value::list(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut all: Vec<(String, Value)> = Vec::new();
        while let Some((name, Read(value))) = entries.next_entry::<String, Read>()? {
            all.push((name, value));
        }
        Ok(Value::Object(Rc::new(Object::new("PSCustomObject", all))))
    }
}
