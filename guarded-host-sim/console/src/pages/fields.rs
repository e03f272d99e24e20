//! Trees of fields as rows of a page: each with its depth, its value and its bytes.

use serde_json::Value;

use crate::lab::Field;

/// A row.
pub(super) struct FieldRow {
    pub(super) depth: usize,
    pub(super) name: String,
    pub(super) value: String,
    pub(super) bytes: String,
    /// How many bytes are not shown.
    pub(super) more: usize,
}

/// Fields of a message, parts below what they are parts of.
pub(super) fn of_fields(fields: &[Field]) -> Vec<FieldRow> {
    let mut rows = Vec::new();
    for field in fields {
        add(&mut rows, field, 0);
    }
    rows
}

fn add(rows: &mut Vec<FieldRow>, field: &Field, depth: usize) {
    let shown = field.bytes.get(..MOST_BYTES).unwrap_or(&field.bytes);
    // A whole is told by its parts.
    let (bytes, more) = match field.parts.is_empty() {
        true => (grouped(shown), field.bytes.len() - shown.len()),
        false => (String::new(), 0),
    };
    rows.push(FieldRow {
        depth: depth.min(DEEPEST),
        name: field.name.clone(),
        value: match (field.parts.is_empty(), field.value.is_empty()) {
            (false, true) => format!("{} bytes", field.bytes.len()),
            _ => field.value.clone(),
        },
        bytes,
        more,
    });
    for part in &field.parts {
        add(rows, part, depth + 1);
    }
}

fn grouped(bytes: &[u8]) -> String {
    bytes.chunks(8).map(hex::encode).collect::<Vec<_>>().join(" ")
}

/// A JSON value in the same form, without bytes.
pub(super) fn of_json(value: &Value) -> Vec<FieldRow> {
    let mut rows = Vec::new();
    add_json(&mut rows, "", value, 0);
    rows
}

fn add_json(rows: &mut Vec<FieldRow>, name: &str, value: &Value, depth: usize) {
    let mut row = |value: String| {
        rows.push(FieldRow {
            depth: depth.min(DEEPEST),
            name: name.to_owned(),
            value,
            bytes: String::new(),
            more: 0,
        });
    };
    let inside = if name.is_empty() { depth } else { depth + 1 };
    match value {
        Value::Object(members) => {
            if !name.is_empty() {
                row(String::new());
            }
            for (key, member) in members {
                add_json(rows, key, member, inside);
            }
        }
        Value::Array(items) if items.iter().any(|item| item.is_object() || item.is_array()) => {
            for (number, item) in items.iter().enumerate() {
                add_json(rows, &format!("{name} {}", number + 1), item, depth);
            }
        }
        Value::Array(items) => row(items.iter().map(plain).collect::<Vec<_>>().join(", ")),
        Value::Null => row("none".to_owned()),
        other => row(plain(other)),
    }
}

/// Text as text, nothing as nothing, anything else as JSON.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// The style sheet indents so many.
const DEEPEST: usize = 6;
const MOST_BYTES: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_stand_below_their_whole_and_long_bytes_are_cut() {
        let leaf = |name: &str, bytes: Vec<u8>| Field {
            name: name.to_owned(),
            value: String::new(),
            bytes,
            parts: Vec::new(),
        };
        let whole = Field {
            parts: vec![leaf("first", vec![1; 9]), leaf("second", vec![2; 200])],
            ..leaf("whole", vec![0; 209])
        };
        let rows = of_fields(&[whole]);
        let told: Vec<_> = rows
            .iter()
            .map(|row| (row.depth, row.name.as_str(), row.more))
            .collect();
        assert_eq!(told, [(0, "whole", 0), (1, "first", 0), (1, "second", 72)]);
        assert_eq!(rows[0].value, "209 bytes");
        assert_eq!(rows[1].bytes, "0101010101010101 01");
    }

    #[test]
    fn json_is_told_member_by_member() {
        let value = serde_json::json!({ "a": { "b": true }, "list": [1, 2], "rows": [{ "c": null }] });
        let rows = of_json(&value);
        let told: Vec<_> = rows
            .iter()
            .map(|row| (row.depth, row.name.as_str(), row.value.as_str()))
            .collect();
        assert_eq!(
            told,
            [
                (0, "a", ""),
                (1, "b", "yes"),
                (0, "list", "1, 2"),
                (0, "rows 1", ""),
                (1, "c", "none")
            ]
        );
    }
}
