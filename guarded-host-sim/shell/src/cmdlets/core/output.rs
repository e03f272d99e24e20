//! Cmdlets that format and that send text somewhere.

use std::{fs, io::Write as _};

use super::object::computed;
use crate::{
    call::Call,
    cmdlets::{Implementation, Run},
    error::{Category, ErrorRecord, Outcome},
    format::{Property, Wanted, cell, drawn, list, property_names, rows_of, table, without_titles},
    path,
    value::{Value, convert},
    wildcard::{Wildcard, is_pattern},
};

pub(super) const ALL: &[Implementation] = &[
    Implementation {
        cmdlet: "Format-List",
        implemented: &["Property", "InputObject", "GroupBy"],
        without_effect: &[
            ("Force", "errors are drawn with all of their properties anyway"),
            ("Expand", "collections are drawn one by one"),
            (
                "ShowError",
                "a property that cannot be computed ends the command with its error",
            ),
            (
                "DisplayError",
                "a property that cannot be computed ends the command with its error",
            ),
        ],
        rejected: &[("View", "there are no named views")],
        run: Run::All(format_list),
    },
    Implementation {
        cmdlet: "Format-Table",
        implemented: &[
            "Property",
            "AutoSize",
            "HideTableHeaders",
            "Wrap",
            "GroupBy",
            "InputObject",
        ],
        without_effect: &[
            ("Force", "nothing is held back"),
            ("Expand", "collections are drawn one by one"),
            ("RepeatHeader", "text is not divided into pages"),
            (
                "ShowError",
                "a property that cannot be computed ends the command with its error",
            ),
            (
                "DisplayError",
                "a property that cannot be computed ends the command with its error",
            ),
        ],
        rejected: &[("View", "there are no named views")],
        run: Run::All(format_table),
    },
    Implementation {
        cmdlet: "Out-Null",
        implemented: &["InputObject"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(|_| Ok(())),
    },
    Implementation {
        cmdlet: "Out-Host",
        implemented: &["InputObject"],
        without_effect: &[("Paging", "the terminal scrolls by itself")],
        rejected: &[],
        run: Run::All(out_host),
    },
    Implementation {
        cmdlet: "Out-Default",
        implemented: &["InputObject"],
        without_effect: &[("Transcript", "there are no transcripts")],
        rejected: &[],
        run: Run::All(out_host),
    },
    Implementation {
        cmdlet: "Out-String",
        implemented: &["Stream", "Width", "InputObject"],
        without_effect: &[],
        rejected: &[],
        run: Run::All(out_string),
    },
    Implementation {
        cmdlet: "Out-File",
        implemented: &[
            "FilePath",
            "LiteralPath",
            "Encoding",
            "Append",
            "NoClobber",
            "Width",
            "NoNewline",
            "InputObject",
        ],
        without_effect: &[("Force", "files here are never read-only")],
        rejected: &[],
        run: Run::All(out_file),
    },
    Implementation {
        cmdlet: "Tee-Object",
        implemented: &["FilePath", "LiteralPath", "InputObject", "Append", "Variable"],
        without_effect: &[],
        rejected: &[],
        run: Run::All(tee_object),
    },
];

/// The names and cells of the columns that are asked for.
fn columns(call: &mut Call<'_>, items: &[Value]) -> Outcome<Vec<(String, Vec<Value>)>> {
    let mut columns: Vec<(String, Vec<Value>)> = Vec::new();
    for one in call.get("Property").map(|value| value.each()).unwrap_or_default() {
        let text = convert::to_text(&one);
        if !matches!(one, Value::Table(_) | Value::Block(_)) && is_pattern(&text) {
            let pattern = Wildcard::new(&text);
            let names = items.first().map(property_names).unwrap_or_default();
            for name in names.iter().filter(|name| pattern.matches(name)) {
                let values = items.iter().map(|item| crate::eval::property_of(item, name));
                columns.push((name.clone(), values.collect()));
            }
            continue;
        }
        let mut name = text;
        let mut values = Vec::new();
        for item in items {
            let (own, value) = computed(call, &one, item)?;
            // A property is titled as its object spells it.
            let spelled = property_names(item)
                .into_iter()
                .find(|spelled| spelled.eq_ignore_ascii_case(&own));
            name = spelled.unwrap_or(own);
            values.push(value);
        }
        columns.push((name, values));
    }
    Ok(columns)
}

/// Objects in groups, each with the line above it.
fn groups(call: &mut Call<'_>, items: Vec<Value>) -> Outcome<Vec<(String, Vec<Value>)>> {
    let Some(by) = call.get("GroupBy") else {
        return Ok(vec![(String::new(), items)]);
    };
    let mut groups: Vec<(String, Vec<Value>)> = Vec::new();
    for item in items {
        let (name, value) = computed(call, &by, &item)?;
        let head = format!("\n   {name}: {}\n", convert::to_text(&value));
        match groups.last_mut() {
            Some((own, members)) if *own == head => members.push(item),
            _ => groups.push((head, vec![item])),
        }
    }
    Ok(groups)
}

fn format_list(call: &mut Call<'_>, items: Vec<Value>) -> Outcome {
    let width = call.session.width();
    let items: Vec<Value> = items.iter().flat_map(entries_of).collect();
    for (head, items) in groups(call, items)? {
        let columns = columns(call, &items)?;
        let mut text = head;
        if columns.is_empty() {
            // Without a choice, objects of different types each with their own properties.
            for part in items.chunk_by(|a, b| property_names(a) == property_names(b)) {
                match part.first().map(property_names).unwrap_or_default() {
                    names if names.is_empty() => text.push_str(&call.session.formatter.text_of(part, width)),
                    names => text.push_str(&list(part, &names, width)),
                }
            }
        } else {
            text.push('\n');
            for index in 0..items.len() {
                let row = columns
                    .iter()
                    .map(|(name, values)| (name.clone(), values.get(index).map(cell).unwrap_or_default()));
                text.push_str(&rows_of(&row.collect::<Vec<_>>(), width));
                text.push('\n');
            }
        }
        call.write(drawn(text))?;
    }
    Ok(())
}

fn format_table(call: &mut Call<'_>, items: Vec<Value>) -> Outcome {
    let width = call.session.width();
    let items: Vec<Value> = items.iter().flat_map(entries_of).collect();
    let untitled = call.switch("HideTableHeaders");
    for (head, items) in groups(call, items)? {
        if items.is_empty() {
            continue;
        }
        let columns = columns(call, &items)?;
        let wanted: Vec<Wanted> = match columns.is_empty() {
            true => {
                let names = items.first().map(property_names).unwrap_or_default();
                Wanted::all(&names.into_iter().take(MOST_COLUMNS).collect::<Vec<_>>())
            }
            false => columns
                .into_iter()
                .map(|(title, values)| Wanted {
                    title,
                    property: Property::Computed(values),
                    width: None,
                    right: None,
                })
                .collect(),
        };
        let text = match (wanted.is_empty(), untitled) {
            (true, _) => call.session.formatter.text_of(&items, width),
            (false, true) => without_titles(&items, &wanted, width),
            (false, false) => table(&items, &wanted, width),
        };
        call.write(drawn(head + &text))?;
    }
    Ok(())
}

/// The entries of a hashtable, which is drawn by them; else the value itself.
fn entries_of(value: &Value) -> Vec<Value> {
    match value {
        Value::Table(entries) => entries
            .borrow()
            .iter()
            .map(|(name, value)| {
                Value::object(
                    "DictionaryEntry",
                    [("Name", Value::text(name)), ("Value", value.clone())],
                )
            })
            .collect(),
        other => vec![other.clone()],
    }
}

fn out_host(call: &mut Call<'_>, items: Vec<Value>) -> Outcome {
    items.iter().for_each(|item| call.session.show(item));
    Ok(())
}

fn text_of(call: &Call<'_>, items: &[Value]) -> String {
    let width = call.integer("Width").and_then(|width| usize::try_from(width).ok());
    call.session
        .formatter
        .text_of(items, width.unwrap_or_else(|| call.session.width()))
}

fn out_string(call: &mut Call<'_>, items: Vec<Value>) -> Outcome {
    let text = text_of(call, &items);
    match call.switch("Stream") {
        true => call.write_all(text.lines().map(Value::text)),
        false => call.write(Value::text(text)),
    }
}

fn out_file(call: &mut Call<'_>, items: Vec<Value>) -> Outcome {
    let name = call
        .text("FilePath")
        .or_else(|| call.text("LiteralPath"))
        .unwrap_or_default();
    let mut text = text_of(call, &items);
    if call.switch("NoNewline") {
        text = text.replace('\n', "");
    }
    let (append, no_clobber) = (call.switch("Append"), call.switch("NoClobber"));
    let encoding = call.text("Encoding").unwrap_or_else(|| "unicode".to_owned());
    if !call.should_process(&name, "Output to File")? {
        return Ok(());
    }
    let file = call.file(&name)?;
    if no_clobber && file.exists() && !append {
        let record = ErrorRecord::new(
            Category::ResourceExists,
            "NoClobber",
            format!("The file '{name}' already exists."),
        );
        return Err(call.fail(record.about(Value::text(name))));
    }
    save(call, &name, &text, &encoding, append)
}

/// Writes text in an encoding, as Windows PowerShell names them, with the line ends of Windows.
pub(super) fn save(call: &mut Call<'_>, name: &str, text: &str, encoding: &str, append: bool) -> Outcome {
    let file = call.file(name)?;
    let fresh = !append || !file.exists();
    let text = text.replace("\r\n", "\n").replace('\n', "\r\n");
    let bytes = encoded(&text, encoding, fresh);
    let written = match append {
        true => fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(&file)
            .and_then(|mut f| f.write_all(&bytes)),
        false => fs::write(&file, &bytes),
    };
    written.map_err(|error| {
        let record = match error.kind() {
            std::io::ErrorKind::NotFound => {
                let folder = name.rsplit_once('\\').map_or("", |(folder, _)| folder);
                ErrorRecord::new(
                    Category::OpenError,
                    "FileOpenFailure",
                    format!("Could not find a part of the path '{folder}'. Make the folder first: New-Item -ItemType Directory {folder}"),
                )
                .exception("DirectoryNotFoundException")
            }
            _ => path::io_error(name, &error),
        };
        call.fail(record)
    })
}

fn encoded(text: &str, encoding: &str, fresh: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    match encoding.to_ascii_lowercase().as_str() {
        "unicode" | "string" | "unknown" => {
            if fresh {
                bytes.extend([0xFF, 0xFE]);
            }
            bytes.extend(text.encode_utf16().flat_map(u16::to_le_bytes));
        }
        "bigendianunicode" => {
            if fresh {
                bytes.extend([0xFE, 0xFF]);
            }
            bytes.extend(text.encode_utf16().flat_map(u16::to_be_bytes));
        }
        "utf8" | "utf8bom" => {
            if fresh {
                bytes.extend([0xEF, 0xBB, 0xBF]);
            }
            bytes.extend(text.as_bytes());
        }
        "ascii" => bytes.extend(text.chars().map(|c| if c.is_ascii() { c as u8 } else { b'?' })),
        _ => bytes.extend(text.as_bytes()),
    }
    bytes
}

fn tee_object(call: &mut Call<'_>, items: Vec<Value>) -> Outcome {
    if let Some(name) = call.text("Variable") {
        call.session.set_variable(&name, Value::from_output(items.clone()));
    }
    if let Some(name) = call.text("FilePath").or_else(|| call.text("LiteralPath")) {
        let text = text_of(call, &items);
        let append = call.switch("Append");
        save(call, &name, &text, "unicode", append)?;
    }
    call.write_all(items)
}

const MOST_COLUMNS: usize = 10;
