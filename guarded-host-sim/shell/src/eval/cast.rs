//! Types: casts, `-is`, names.

use std::rc::Rc;

use super::{operator, statics, xml};
use crate::{
    error::{Category, ErrorRecord},
    table::Kind,
    value::{Object, Secret, Value, convert},
};

/// A value as one of this type.
///
/// # Errors
/// It does not become one, or the type is none that this shell has.
pub fn cast(value: &Value, name: &str) -> Result<Value, ErrorRecord> {
    let plain = plain_name(name);
    if let Some(element) = plain.strip_suffix("[]")
        && plain != "byte[]"
    {
        let items: Result<Vec<Value>, ErrorRecord> = value.each().iter().map(|item| cast(item, element)).collect();
        return Ok(Value::list(items?));
    }
    let kind = |kind: Kind| convert::to_kind(value, &kind, &[]).map_err(|error| failed(error.0));
    let integer = |name: &'static str, lowest: i64, greatest: i64| kind(Kind::Integer { name, lowest, greatest });
    let text = || convert::to_text(value);
    Ok(match plain.as_str() {
        "string" => Value::text(text()),
        "char" => match (value, text().chars().count()) {
            (Value::Int(code), _) => {
                let c = u32::try_from(*code).ok().and_then(char::from_u32);
                Value::text(c.ok_or_else(|| failed(format!("Cannot convert value \"{code}\" to type \"System.Char\".")))?.to_string())
            }
            (_, 1) => Value::text(text()),
            _ => return Err(failed(format!("Cannot convert value \"{}\" to type \"System.Char\". Error: \"String must be exactly one character long.\"", text()))),
        },
        "bool" | "boolean" | "switch" | "switchparameter" => Value::Bool(value.is_true()),
        "int" | "int32" => integer("Int32", i32::MIN.into(), i32::MAX.into())?,
        "int16" | "short" => integer("Int16", i16::MIN.into(), i16::MAX.into())?,
        "uint16" | "ushort" => integer("UInt16", 0, u16::MAX.into())?,
        "uint32" | "uint" => integer("UInt32", 0, u32::MAX.into())?,
        "int64" | "long" => integer("Int64", i64::MIN, i64::MAX)?,
        "uint64" | "ulong" => integer("UInt64", 0, i64::MAX)?,
        "byte" => integer("Byte", 0, 255)?,
        "double" | "single" | "float" | "decimal" => match operator::number(value)? {
            #[expect(clippy::cast_precision_loss, reason = "as every language does it")]
            Value::Int(number) => Value::Real(number as f64),
            other => other,
        },
        "byte[]" => match value {
            Value::Text(_) => return Err(failed(format!("Cannot convert value \"{}\" to type \"System.Byte[]\".", text()))),
            Value::Int(_) => kind(Kind::Bytes).or_else(|_| convert_one_byte(value))?,
            _ => kind(Kind::Bytes)?,
        },
        "array" | "object[]" => Value::list(value.each()),
        "object" | "psobject" => value.clone(),
        "void" => Value::Null,
        "pscustomobject" => match value {
            Value::Table(entries) => Value::object(
                "PSCustomObject",
                entries.borrow().iter().map(|(name, value)| (name.to_owned(), value.clone())),
            ),
            other => other.clone(),
        },
        "hashtable" | "ordered" => match value {
            Value::Table(_) => value.clone(),
            _ => return Err(cannot(value, "System.Collections.Hashtable")),
        },
        "datetime" => kind(Kind::Date)?,
        "timespan" => match value {
            Value::Object(object) if object.is("TimeSpan") => value.clone(),
            Value::Int(ticks) => statics::time_span(ticks / 10_000_000),
            _ => statics::parse_time_span(&text()).ok_or_else(|| cannot(value, "System.TimeSpan"))?,
        },
        "guid" => guid(&text()).ok_or_else(|| {
            failed(format!(
                "Cannot convert value \"{}\" to type \"System.Guid\". Error: \"Guid should contain 32 digits with 4 dashes \
                 (xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx).\"",
                text()
            ))
        })?,
        "version" => match version_parts(&text()) {
            Some(parts) => version(&text(), &parts),
            None => return Err(cannot(value, "System.Version")),
        },
        "uri" => uri(&text()),
        "xml" | "xmldocument" => match value {
            Value::Object(object) if object.is("XmlDocument") => value.clone(),
            other => {
                let lines: Vec<String> = other.each().iter().map(convert::to_text).collect();
                xml::document(&lines.join("\n")).map_err(|reason| {
                    failed(format!("Cannot convert value to type \"System.Xml.XmlDocument\". Error: \"{reason}\""))
                })?
            }
        },
        "scriptblock" => match value {
            Value::Block(_) => value.clone(),
            _ => return Err(cannot(value, "System.Management.Automation.ScriptBlock")),
        },
        "securestring" => match value {
            Value::Secret(_) => value.clone(),
            _ => return Err(cannot(value, "System.Security.SecureString")),
        },
        "pscredential" => match value {
            Value::Object(object) if object.is("PSCredential") => value.clone(),
            Value::List(items) => match items.borrow().as_slice() {
                [user, Value::Secret(password)] => credential(&convert::to_text(user), Rc::clone(password)),
                _ => return Err(cannot(value, "System.Management.Automation.PSCredential")),
            },
            _ => return Err(cannot(value, "System.Management.Automation.PSCredential")),
        },
        "regex" => Value::text(text()),
        "type" | "runtimetype" => match known(&text()) {
            true => Value::Type(text().into()),
            false => return Err(unknown(&text())),
        },
        "x509certificate2" | "x509certificate" => match value {
            Value::Object(object) if object.is("X509Certificate2") => value.clone(),
            _ => return Err(ErrorRecord::outside("Reading a certificate by a cast (use Get-PfxCertificate or Import-Certificate)")),
        },
        _ => return Err(unknown(name)),
    })
}

fn convert_one_byte(value: &Value) -> Result<Value, ErrorRecord> {
    match value {
        Value::Int(number) => match u8::try_from(*number) {
            Ok(byte) => Ok(Value::Bytes([byte].into())),
            Err(_) => Err(cannot(value, "System.Byte[]")),
        },
        _ => Err(cannot(value, "System.Byte[]")),
    }
}

fn failed(message: impl Into<String>) -> ErrorRecord {
    ErrorRecord::new(Category::InvalidArgument, "RuntimeException", message).exception("RuntimeException")
}

fn cannot(value: &Value, to: &str) -> ErrorRecord {
    failed(format!(
        "Cannot convert the \"{}\" value of type \"{}\" to type \"{to}\".",
        convert::to_text(value),
        full_name(value)
    ))
}

/// A type that this shell does not have.
pub(crate) fn unknown(name: &str) -> ErrorRecord {
    ErrorRecord::new(
        Category::InvalidOperation,
        "TypeNotFound",
        format!("Unable to find type [{name}], or it is outside of what this shell carries out."),
    )
    .exception("RuntimeException")
}

/// Whether there is such a type.
pub(crate) fn known(name: &str) -> bool {
    let plain = plain_name(name);
    let plain = plain.trim_end_matches("[]");
    KNOWN.contains(&plain) || statics::has(plain)
}

/// The last part of a type's name, in small letters.
pub(crate) fn plain_name(name: &str) -> String {
    let name = name.trim().to_ascii_lowercase();
    name.rsplit('.').next().unwrap_or(&name).to_owned()
}

/// Whether two names mean the same type.
pub(crate) fn same_type(a: &str, b: &str) -> bool {
    canonical(&plain_name(a)) == canonical(&plain_name(b))
}

fn canonical(plain: &str) -> &str {
    match plain {
        "int" => "int32",
        "long" => "int64",
        "bool" => "boolean",
        "float" => "single",
        "xml" => "xmldocument",
        "psobject" => "pscustomobject",
        other => other,
    }
}

/// Whether a value is of a type.
pub(crate) fn is(value: &Value, name: &str) -> bool {
    let plain = plain_name(name);
    let wanted = canonical(&plain);
    let own = value.type_name().to_ascii_lowercase();
    match value {
        Value::Null => false,
        Value::Object(object) => object.is(wanted) || wanted == "object" || wanted == "pscustomobject",
        Value::List(_) => matches!(wanted, "array" | "object[]" | "object" | "ienumerable" | "ilist"),
        Value::Bytes(_) => matches!(wanted, "array" | "byte[]" | "object"),
        Value::Table(_) => matches!(wanted, "hashtable" | "idictionary" | "object" | "ordereddictionary"),
        _ => own == wanted || wanted == "object",
    }
}

/// With its name space, as errors and `GetType()` have it.
pub(crate) fn full_name(value: &Value) -> String {
    let name = value.type_name();
    match value {
        Value::Table(_) => "System.Collections.Hashtable".to_owned(),
        Value::Object(object) if object.is("PSCustomObject") => {
            "System.Management.Automation.PSCustomObject".to_owned()
        }
        Value::Secret(_) => "System.Security.SecureString".to_owned(),
        Value::Block(_) => "System.Management.Automation.ScriptBlock".to_owned(),
        Value::Object(object) if object.is("PSCredential") => "System.Management.Automation.PSCredential".to_owned(),
        Value::Object(object) if object.is("ErrorRecord") => "System.Management.Automation.ErrorRecord".to_owned(),
        Value::Object(object) if object.is("XmlDocument") => "System.Xml.XmlDocument".to_owned(),
        Value::Object(object) if object.is("X509Certificate2") => {
            "System.Security.Cryptography.X509Certificates.X509Certificate2".to_owned()
        }
        Value::Object(object) if object.is("FileInfo") || object.is("DirectoryInfo") => format!("System.IO.{name}"),
        _ => format!("System.{name}"),
    }
}

/// A credential.
pub fn credential(user: &str, password: Rc<Secret>) -> Value {
    Value::object(
        "PSCredential",
        [("UserName", Value::text(user)), ("Password", Value::Secret(password))],
    )
}

/// A URL, with its parts.
pub fn uri(text: &str) -> Value {
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, if scheme.is_empty() { "" } else { "/" }),
    };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => (host, port.parse::<u16>().unwrap_or_default()),
        _ => (authority, if scheme.eq_ignore_ascii_case("https") { 443 } else { 80 }),
    };
    let object = Object::new(
        "Uri",
        [
            ("AbsolutePath", Value::text(path)),
            ("AbsoluteUri", Value::text(text)),
            ("Host", Value::text(host)),
            ("Port", Value::Int(i64::from(port))),
            ("Scheme", Value::text(scheme)),
            ("Authority", Value::text(authority)),
            ("OriginalString", Value::text(text)),
            ("IsAbsoluteUri", Value::Bool(!scheme.is_empty())),
        ],
    );
    object.hidden.borrow_mut().set("ToString", Value::text(text));
    Value::Object(Rc::new(object))
}

fn guid(text: &str) -> Option<Value> {
    let inner = text.trim().trim_start_matches(['{', '(']).trim_end_matches(['}', ')']);
    let digits: String = inner
        .chars()
        .filter(|c| *c != '-')
        .collect::<String>()
        .to_ascii_lowercase();
    let dashes = inner.matches('-').count();
    if digits.len() != 32 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) || !matches!(dashes, 0 | 4) {
        return None;
    }
    let part = |from: usize, to: usize| digits.get(from..to).unwrap_or_default();
    let shown = [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-");
    let object = Object::new("Guid", [("Guid", Value::text(&shown))]);
    object.hidden.borrow_mut().set("ToString", Value::text(&shown));
    Some(Value::Object(Rc::new(object)))
}

/// The numbers of a version: two to four.
pub(crate) fn version_parts(text: &str) -> Option<Vec<i64>> {
    let parts: Option<Vec<i64>> = text
        .trim()
        .split('.')
        .map(|part| part.parse().ok().filter(|n| *n >= 0))
        .collect();
    parts.filter(|parts| (2..=4).contains(&parts.len()))
}

fn version(text: &str, parts: &[i64]) -> Value {
    let part = |index: usize| Value::Int(parts.get(index).copied().unwrap_or(-1));
    let object = Object::new(
        "Version",
        [
            ("Major", part(0)),
            ("Minor", part(1)),
            ("Build", part(2)),
            ("Revision", part(3)),
        ],
    );
    object.hidden.borrow_mut().set("ToString", Value::text(text.trim()));
    Value::Object(Rc::new(object))
}

const KNOWN: [&str; 40] = [
    "string",
    "char",
    "bool",
    "boolean",
    "switch",
    "switchparameter",
    "int",
    "int32",
    "int16",
    "short",
    "uint16",
    "ushort",
    "uint32",
    "uint",
    "int64",
    "long",
    "uint64",
    "ulong",
    "byte",
    "double",
    "single",
    "float",
    "decimal",
    "array",
    "object",
    "psobject",
    "void",
    "pscustomobject",
    "hashtable",
    "ordered",
    "datetime",
    "timespan",
    "guid",
    "version",
    "uri",
    "xml",
    "xmldocument",
    "scriptblock",
    "securestring",
    "pscredential",
];
