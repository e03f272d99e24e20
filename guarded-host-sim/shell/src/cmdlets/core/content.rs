//! What files have in them.

use super::output::save;
use crate::{
    call::Call,
    cmdlets::{Implementation, Run},
    error::{Category, ErrorRecord, Outcome},
    value::{Value, convert},
};

const NO_FILTERS: &str = "name the files themselves";
const NO_CREDENTIAL: &str = "the drives of files take none, as in Windows";

pub(super) const ALL: &[Implementation] = &[
    Implementation {
        cmdlet: "Get-Content",
        implemented: &[
            "Path",
            "LiteralPath",
            "TotalCount",
            "Tail",
            "Raw",
            "Encoding",
            "Delimiter",
        ],
        without_effect: &[
            ("ReadCount", "lines are handed on one by one"),
            ("Force", "files here are never hidden"),
        ],
        rejected: &[
            ("Filter", NO_FILTERS),
            ("Include", NO_FILTERS),
            ("Exclude", NO_FILTERS),
            ("Credential", NO_CREDENTIAL),
            ("Wait", "a file is read once"),
            ("Stream", "files here have no alternate streams"),
        ],
        run: Run::Each(get_content),
    },
    Implementation {
        cmdlet: "Set-Content",
        implemented: &["Value", "Path", "LiteralPath", "PassThru", "NoNewline", "Encoding"],
        without_effect: &[("Force", "files here are never read-only")],
        rejected: &[
            ("Filter", NO_FILTERS),
            ("Include", NO_FILTERS),
            ("Exclude", NO_FILTERS),
            ("Credential", NO_CREDENTIAL),
            ("Stream", "files here have no alternate streams"),
        ],
        run: Run::All(|call, items| write_content(call, items, false)),
    },
    Implementation {
        cmdlet: "Add-Content",
        implemented: &["Value", "Path", "LiteralPath", "PassThru", "NoNewline", "Encoding"],
        without_effect: &[("Force", "files here are never read-only")],
        rejected: &[
            ("Filter", NO_FILTERS),
            ("Include", NO_FILTERS),
            ("Exclude", NO_FILTERS),
            ("Credential", NO_CREDENTIAL),
            ("Stream", "files here have no alternate streams"),
        ],
        run: Run::All(|call, items| write_content(call, items, true)),
    },
];

fn paths(call: &Call<'_>) -> Vec<String> {
    match call.texts("Path") {
        paths if paths.is_empty() => call.texts("LiteralPath"),
        paths => paths,
    }
}

fn get_content(call: &mut Call<'_>) -> Outcome {
    let encoding = call.text("Encoding").unwrap_or_default();
    let delimiter = call.text("Delimiter");
    for path in paths(call) {
        let file = call.file(&path)?;
        let bytes = match std::fs::read(&file) {
            Ok(bytes) => bytes,
            Err(error) => {
                let mut record = crate::path::io_error(&path, &error);
                if file.is_dir() {
                    record.message = format!("Access to the path '{path}' is denied.");
                }
                call.error(record)?;
                continue;
            }
        };
        if encoding.eq_ignore_ascii_case("byte") {
            match call.switch("Raw") {
                true => call.write(Value::Bytes(bytes.into()))?,
                false => call.write_all(bytes.iter().map(|byte| Value::Int(i64::from(*byte))))?,
            }
            continue;
        }
        let text = decoded(&bytes);
        if call.switch("Raw") {
            call.write(Value::text(text))?;
            continue;
        }
        let mut lines: Vec<&str> = match &delimiter {
            Some(delimiter) if !delimiter.is_empty() => text.split(delimiter.as_str()).collect(),
            _ => text.lines().collect(),
        };
        let count = |name: &str| call.integer(name).and_then(|n| usize::try_from(n).ok());
        if let Some(first) = count("TotalCount") {
            lines.truncate(first);
        }
        if let Some(last) = count("Tail") {
            lines.drain(..lines.len().saturating_sub(last));
        }
        let lines: Vec<Value> = lines.into_iter().map(Value::text).collect();
        call.write_all(lines)?;
    }
    Ok(())
}

/// Text of bytes, by the mark at its beginning; without one it is UTF-8.
pub(super) fn decoded(bytes: &[u8]) -> String {
    let units = |bytes: &[u8], read: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| read([pair[0], pair[1]])).collect();
        String::from_utf16_lossy(&units)
    };
    match bytes {
        [0xFF, 0xFE, rest @ ..] => units(rest, u16::from_le_bytes),
        [0xFE, 0xFF, rest @ ..] => units(rest, u16::from_be_bytes),
        [0xEF, 0xBB, 0xBF, rest @ ..] => String::from_utf8_lossy(rest).into_owned(),
        other => String::from_utf8_lossy(other).into_owned(),
    }
}

fn write_content(call: &mut Call<'_>, items: Vec<Value>, append: bool) -> Outcome {
    let items = match call.get("Value") {
        Some(value) if items.is_empty() => value.each(),
        _ => items,
    };
    let encoding = call.text("Encoding").unwrap_or_else(|| "default".to_owned());
    let bytes: Option<Vec<u8>> = match encoding.eq_ignore_ascii_case("byte") {
        true => {
            let all = crate::eval::cast(&Value::list(items.clone()), "byte[]");
            match (items.as_slice(), all) {
                ([Value::Bytes(bytes)], _) => Some(bytes.to_vec()),
                (_, Ok(Value::Bytes(bytes))) => Some(bytes.to_vec()),
                _ => {
                    return Err(call.fail(ErrorRecord::new(
                        Category::InvalidArgument,
                        "ContentNotBytes",
                        "Cannot proceed with byte encoding. When using byte encoding the content must be of type byte.",
                    )));
                }
            }
        }
        false => None,
    };
    let no_newline = call.switch("NoNewline");
    let mut text: String = items
        .iter()
        .map(|item| convert::to_text(item) + if no_newline { "" } else { "\n" })
        .collect();
    if items.is_empty() {
        text.clear();
    }
    for path in paths(call) {
        let action = if append { "Add Content" } else { "Set Content" };
        if !call.should_process(&format!("Path: {path}"), action)? {
            continue;
        }
        match &bytes {
            Some(bytes) if append => {
                let mut all = std::fs::read(call.file(&path)?).unwrap_or_default();
                all.extend(bytes);
                call.write_file(&path, &all)?;
            }
            Some(bytes) => call.write_file(&path, bytes)?,
            None => save(call, &path, &text, &encoding, append)?,
        }
    }
    match call.switch("PassThru") {
        true => call.write_all(items),
        false => Ok(()),
    }
}
