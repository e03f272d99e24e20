//! Lists: a property in each line.

use super::cell;
use crate::value::Value;

/// Objects as a list of these properties.
pub(crate) fn list(values: &[Value], names: &[String], width: usize) -> String {
    let mut text = String::from("\n");
    for value in values {
        let rows: Vec<(String, String)> = names
            .iter()
            .map(|name| (name.clone(), cell(&crate::eval::property_of(value, name))))
            .collect();
        text.push_str(&rows_of(&rows, width));
        text.push('\n');
    }
    text
}

/// One object's rows: `Name : value`, long values in several lines.
pub(crate) fn rows_of(rows: &[(String, String)], width: usize) -> String {
    let widest = rows
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or_default();
    let mut text = String::new();
    for (name, value) in rows {
        let room = width.saturating_sub(widest + 4).max(20);
        let characters: Vec<char> = value.chars().collect();
        let mut parts = characters.chunks(room).map(|part| part.iter().collect::<String>());
        let first = parts.next().unwrap_or_default();
        let line = format!("{name:<widest$} : {first}");
        text.push_str(line.trim_end());
        text.push('\n');
        for part in parts {
            text.push_str(&format!("{:widest$}   {}\n", "", part.trim_end()));
        }
    }
    text
}
