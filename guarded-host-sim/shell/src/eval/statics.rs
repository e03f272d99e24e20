//! Static members of .NET types that deployment scripts use.

use std::rc::Rc;

use base64::{Engine, engine::general_purpose::STANDARD};
use hgs_protocol::env::{OsRandom, Random};

use super::cast::{cast, plain_name};
use crate::{
    error::{Category, ErrorRecord, Outcome},
    path::{self, Location},
    session::Session,
    value::{Date, Object, Value, convert},
};

/// Whether a type has static members here.
pub(crate) fn has(plain: &str) -> bool {
    matches!(
        plain,
        "math" | "convert" | "encoding" | "file" | "directory" | "path" | "environment" | "console" | "marshal"
    )
}

impl Session {
    /// `[type]::name`.
    pub(crate) fn static_member(&mut self, kind: &str, name: &str) -> Result<Value, ErrorRecord> {
        let key = (plain_name(kind), name.to_ascii_lowercase());
        Ok(match (key.0.as_str(), key.1.as_str()) {
            ("datetime", "now" | "utcnow" | "today") => {
                let now = self.now();
                let seconds = if key.1 == "today" {
                    now.0 - now.0.rem_euclid(86_400)
                } else {
                    now.0
                };
                Value::Date(Date(seconds))
            }
            ("datetime", "maxvalue") => Value::Date(Date(253_402_300_799)),
            ("datetime", "minvalue") => Value::Date(Date(-62_135_596_800)),
            ("int" | "int32", "maxvalue") => Value::Int(i64::from(i32::MAX)),
            ("int" | "int32", "minvalue") => Value::Int(i64::from(i32::MIN)),
            ("int64" | "long", "maxvalue") => Value::Int(i64::MAX),
            ("string", "empty") => Value::text(""),
            ("guid", "empty") => cast(&Value::text("00000000-0000-0000-0000-000000000000"), "guid")?,
            ("math", "pi") => Value::Real(std::f64::consts::PI),
            ("environment", "machinename") => Value::text(self.environment("COMPUTERNAME").unwrap_or_default()),
            ("environment", "newline") => Value::text("\r\n"),
            ("environment", "username") => Value::text("Administrator"),
            ("encoding", "utf8" | "ascii" | "unicode") => encoding(&key.1),
            // An enumeration's value is its name.
            (kind, _) if ENUMERATIONS.contains(&kind) => Value::text(name),
            _ => return Err(ErrorRecord::outside(format!("[{kind}]::{name}"))),
        })
    }

    /// `[type]::name(…)`.
    pub(crate) fn static_call(&mut self, kind: &str, name: &str, arguments: &[Value]) -> Outcome<Value> {
        let plain = plain_name(kind);
        let method = name.to_ascii_lowercase();
        let text = |index: usize| arguments.get(index).map(convert::to_text).unwrap_or_default();
        let value = match (plain.as_str(), method.as_str(), arguments.len()) {
            ("guid", "newguid", 0) => {
                let bytes: [u8; 16] = (&mut OsRandom as &mut dyn Random).bytes();
                let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                cast(&Value::text(digits), "guid")
            }
            ("string", "isnullorempty", 1) => Ok(Value::Bool(text(0).is_empty())),
            ("string", "isnullorwhitespace", 1) => Ok(Value::Bool(text(0).trim().is_empty())),
            ("string", "join", _) => {
                let items: Vec<String> = match arguments {
                    [_, list] => list.each().iter().map(convert::to_text).collect(),
                    _ => arguments.iter().skip(1).map(convert::to_text).collect(),
                };
                Ok(Value::text(items.join(&text(0))))
            }
            ("string", "format", _) => {
                let rest: Vec<Value> = arguments.iter().skip(1).flat_map(Value::each).collect();
                super::operator::format(&text(0), &rest)
            }
            ("convert", "tobase64string", 1) => match bytes_of(arguments) {
                Some(bytes) => Ok(Value::text(STANDARD.encode(bytes))),
                None => Err(wrong_arguments(name)),
            },
            ("convert", "frombase64string", 1) => match STANDARD.decode(text(0).trim()) {
                Ok(bytes) => Ok(Value::Bytes(bytes.into())),
                Err(_) => Err(ErrorRecord::new(
                    Category::NotSpecified,
                    "FormatException",
                    "Exception calling \"FromBase64String\" with \"1\" argument(s): \"The input is not a valid Base-64 \
                     string.\"",
                )),
            },
            ("convert", "toint32" | "toint64", 1) => {
                cast(&arguments[0], if method == "toint32" { "int" } else { "long" })
            }
            ("convert", "tostring", 1) => Ok(Value::text(text(0))),
            ("datetime", "parse", 1) => cast(&Value::text(text(0)), "datetime"),
            ("version", "parse", 1) => cast(&Value::text(text(0)), "version"),
            ("guid", "parse", 1) => cast(&Value::text(text(0)), "guid"),
            ("timespan", _, 1) => time_span_from(&method, &arguments[0]),
            ("math", _, 1 | 2) => math(&method, arguments),
            ("path", "combine", _) => {
                let parts: Vec<String> = arguments.iter().map(convert::to_text).collect();
                Ok(Value::text(parts.join("\\").replace("\\\\", "\\")))
            }
            ("path", "getfilename", 1) => Ok(Value::text(text(0).rsplit(['\\', '/']).next().unwrap_or_default())),
            ("path", "getextension", 1) => {
                let name = text(0);
                Ok(Value::text(
                    name.rfind('.').and_then(|at| name.get(at..)).unwrap_or_default(),
                ))
            }
            ("path", "getfilenamewithoutextension", 1) => {
                let name = text(0).rsplit(['\\', '/']).next().unwrap_or_default().to_owned();
                Ok(Value::text(
                    name.rsplit_once('.').map_or(name.as_str(), |(stem, _)| stem),
                ))
            }
            ("path", "gettemppath", 0) => Ok(Value::text(self.environment("TEMP").unwrap_or_default() + "\\")),
            ("file", _, _) => self.file_call(&method, arguments),
            ("directory", "exists", 1) => self.real_file(&text(0)).map(|file| Value::Bool(file.is_dir())),
            ("directory", "createdirectory", 1) => self.real_file(&text(0)).and_then(|file| {
                std::fs::create_dir_all(&file).map_err(|error| path::io_error(&text(0), &error))?;
                Ok(Value::text(text(0)))
            }),
            ("environment", "getenvironmentvariable", _) => {
                Ok(self.environment(&text(0)).map_or(Value::Null, Value::text))
            }
            (_, "new", _) => self.new_object(kind, arguments),
            _ => Err(ErrorRecord::outside(format!("[{kind}]::{name}()"))),
        };
        value.map_err(ErrorRecord::stop)
    }

    /// `New-Object` and `::new()`.
    pub(crate) fn new_object(&mut self, kind: &str, arguments: &[Value]) -> Result<Value, ErrorRecord> {
        let plain = plain_name(kind);
        match (plain.as_str(), arguments) {
            ("psobject" | "pscustomobject" | "object", []) => {
                Ok(Value::object::<String>("PSCustomObject", std::iter::empty()))
            }
            ("pscredential", _) => cast(&Value::list(arguments.to_vec()), "pscredential"),
            ("hashtable", []) => Ok(Value::table(Default::default())),
            ("arraylist" | "list", []) => Ok(Value::list(Vec::new())),
            ("uri" | "guid" | "version" | "string" | "datetime", [one]) => cast(one, &plain),
            ("xmldocument", []) => Ok(super::xml::empty()),
            ("version", several) => {
                let parts: Vec<String> = several.iter().map(convert::to_text).collect();
                cast(&Value::text(parts.join(".")), "version")
            }
            _ => Err(ErrorRecord::outside(format!("An object of the type {kind}"))),
        }
    }

    fn file_call(&mut self, method: &str, arguments: &[Value]) -> Result<Value, ErrorRecord> {
        let name = arguments.first().map(convert::to_text).unwrap_or_default();
        let file = self.real_file(&name)?;
        let io = |error: std::io::Error| path::io_error(&name, &error);
        Ok(match (method, arguments) {
            ("exists", [_]) => Value::Bool(file.is_file()),
            ("readallbytes", [_]) => Value::Bytes(std::fs::read(&file).map_err(io)?.into()),
            ("readalltext", [_, ..]) => {
                let bytes = std::fs::read(&file).map_err(io)?;
                Value::text(String::from_utf8_lossy(&bytes).trim_start_matches('\u{feff}'))
            }
            ("writeallbytes", [_, content]) => {
                let bytes = bytes_of(std::slice::from_ref(content)).ok_or_else(|| wrong_arguments(method))?;
                std::fs::write(&file, bytes).map_err(io)?;
                Value::Null
            }
            ("writealltext", [_, content, ..]) => {
                std::fs::write(&file, convert::to_text(content)).map_err(io)?;
                Value::Null
            }
            ("delete", [_]) => {
                std::fs::remove_file(&file).map_err(io)?;
                Value::Null
            }
            _ => return Err(ErrorRecord::outside(format!("[System.IO.File]::{method}()"))),
        })
    }

    fn real_file(&self, name: &str) -> Result<std::path::PathBuf, ErrorRecord> {
        match path::locate(self, name)? {
            Location::File(file) => Ok(file.real),
            Location::Drive(..) => Err(ErrorRecord::outside("A path that is none of a file")),
        }
    }
}

/// The bytes of a single argument.
pub(crate) fn bytes_of(arguments: &[Value]) -> Option<Vec<u8>> {
    match arguments.first()? {
        Value::Bytes(bytes) => Some(bytes.to_vec()),
        other => match cast(other, "byte[]").ok()? {
            Value::Bytes(bytes) => Some(bytes.to_vec()),
            _ => None,
        },
    }
}

fn wrong_arguments(name: &str) -> ErrorRecord {
    ErrorRecord::new(
        Category::NotSpecified,
        "MethodCountCouldNotFindBest",
        format!("Cannot find an overload for \"{name}\" that takes these arguments."),
    )
    .exception("MethodException")
}

fn math(method: &str, arguments: &[Value]) -> Result<Value, ErrorRecord> {
    let numbers: Result<Vec<Value>, ErrorRecord> = arguments.iter().map(super::operator::number).collect();
    #[expect(clippy::cast_precision_loss, reason = "as every language does it")]
    let real = |value: &Value| match value {
        Value::Int(number) => *number as f64,
        Value::Real(number) => *number,
        _ => f64::NAN,
    };
    let numbers = numbers?;
    Ok(match (method, numbers.as_slice()) {
        ("max", [Value::Int(a), Value::Int(b)]) => Value::Int(*a.max(b)),
        ("min", [Value::Int(a), Value::Int(b)]) => Value::Int(*a.min(b)),
        ("max", [a, b]) => Value::Real(real(a).max(real(b))),
        ("min", [a, b]) => Value::Real(real(a).min(real(b))),
        ("abs", [Value::Int(a)]) => a.checked_abs().map_or(Value::Null, Value::Int),
        ("abs", [a]) => Value::Real(real(a).abs()),
        ("floor", [a]) => Value::Real(real(a).floor()),
        ("ceiling", [a]) => Value::Real(real(a).ceil()),
        ("truncate", [a]) => Value::Real(real(a).trunc()),
        ("sqrt", [a]) => Value::Real(real(a).sqrt()),
        ("pow", [a, b]) => Value::Real(real(a).powf(real(b))),
        ("round", [a]) => Value::Real(real(a).round_ties_even()),
        ("round", [a, Value::Int(digits)]) => {
            let power = 10_f64.powi(i32::try_from(*digits).unwrap_or_default());
            Value::Real((real(a) * power).round_ties_even() / power)
        }
        _ => return Err(ErrorRecord::outside(format!("[math]::{method}()"))),
    })
}

fn encoding(name: &str) -> Value {
    Value::object("Encoding", [("EncodingName", Value::text(name))])
}

fn time_span_from(method: &str, value: &Value) -> Result<Value, ErrorRecord> {
    let Value::Int(number) = super::operator::number(value)? else {
        return Err(ErrorRecord::outside("A part of a unit of time"));
    };
    let unit = match method {
        "fromdays" => 86_400,
        "fromhours" => 3600,
        "fromminutes" => 60,
        "fromseconds" => 1,
        _ => return Err(ErrorRecord::outside(format!("[timespan]::{method}()"))),
    };
    Ok(time_span(number.saturating_mul(unit)))
}

/// A length of time, in seconds.
pub fn time_span(seconds: i64) -> Value {
    #[expect(clippy::cast_precision_loss, reason = "spans of a lab are short")]
    let total = |unit: f64| Value::Real(seconds as f64 / unit);
    let object = Object::new(
        "TimeSpan",
        [
            ("Days", Value::Int(seconds / 86_400)),
            ("Hours", Value::Int(seconds / 3600 % 24)),
            ("Minutes", Value::Int(seconds / 60 % 60)),
            ("Seconds", Value::Int(seconds % 60)),
            ("Milliseconds", Value::Int(0)),
            ("Ticks", Value::Int(seconds.saturating_mul(10_000_000))),
            ("TotalDays", total(86_400.0)),
            ("TotalHours", total(3600.0)),
            ("TotalMinutes", total(60.0)),
            ("TotalSeconds", total(1.0)),
        ],
    );
    let (sign, all) = (if seconds < 0 { "-" } else { "" }, seconds.unsigned_abs());
    let days = match all / 86_400 {
        0 => String::new(),
        days => format!("{days}."),
    };
    let shown = format!(
        "{sign}{days}{:02}:{:02}:{:02}",
        all / 3600 % 24,
        all / 60 % 60,
        all % 60
    );
    let mut hidden = object.hidden.borrow_mut();
    hidden.set("ToString", Value::text(shown));
    hidden.set("Seconds", Value::Int(seconds));
    drop(hidden);
    Value::Object(Rc::new(object))
}

/// The seconds of a length of time.
pub(crate) fn seconds_of(span: &Object) -> i64 {
    match span.hidden.borrow().get("Seconds") {
        Some(Value::Int(seconds)) => *seconds,
        _ => 0,
    }
}

/// `1.02:03:04`, `02:03:04`, or days alone.
pub(crate) fn parse_time_span(text: &str) -> Option<Value> {
    let text = text.trim();
    let (sign, text) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
    let (days, clock) = match text.split_once('.') {
        Some((days, clock)) => (days.parse().ok()?, clock),
        None if !text.contains(':') => (text.parse::<i64>().ok()?, ""),
        None => (0, text),
    };
    let mut seconds = days.checked_mul(86_400)?;
    if !clock.is_empty() {
        let parts: Option<Vec<i64>> = clock.split(':').map(|part| part.parse().ok()).collect();
        seconds += match parts?.as_slice() {
            [hours, minutes] => hours * 3600 + minutes * 60,
            [hours, minutes, rest] => hours * 3600 + minutes * 60 + rest,
            _ => return None,
        };
    }
    Some(time_span(sign * seconds))
}

/// Enumerations whose values scripts name by type.
const ENUMERATIONS: [&str; 5] = [
    "x509contenttype",
    "x509keystorageflags",
    "storename",
    "storelocation",
    "securityprotocoltype",
];
