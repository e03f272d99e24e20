//! From one kind of value to another, by PowerShell's rules and with its words when it cannot be done.

use std::rc::Rc;

use super::{Date, Object, Value};
use crate::table::{Kind, Parameter};

/// Why a value does not become what is wanted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConversionError(pub String);

type Converted = Result<Value, ConversionError>;

/// How a value reads in text: what a string with a variable in it shows.
pub fn to_text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Int(value) => value.to_string(),
        Value::Real(value) => value.to_string(),
        Value::Text(text) => text.to_string(),
        Value::Bytes(bytes) => {
            let each: Vec<String> = bytes.iter().map(u8::to_string).collect();
            each.join(" ")
        }
        Value::Date(date) => date.to_string(),
        Value::List(items) => {
            let each: Vec<String> = items.borrow().iter().map(to_text).collect();
            each.join(" ")
        }
        Value::Table(_) => "System.Collections.Hashtable".to_owned(),
        Value::Object(object) => object_text(object),
        Value::Secret(_) => "System.Security.SecureString".to_owned(),
        Value::Block(block) => block.script.span.text(&block.source).to_owned(),
        Value::Type(name) => name.to_string(),
    }
}

fn object_text(object: &Object) -> String {
    if let Some(text) = object.hidden.borrow().get("ToString") {
        return to_text(text);
    }
    match object.is("PSCustomObject") {
        true => {
            let properties = object.properties.borrow();
            let each: Vec<String> = properties
                .iter()
                .map(|(name, value)| format!("{name}={}", to_text(value)))
                .collect();
            format!("@{{{}}}", each.join("; "))
        }
        false => object.kind().to_owned(),
    }
}

/// What a parameter takes of a value.
///
/// # Errors
/// PowerShell's words for why it does not.
pub fn for_parameter(value: &Value, parameter: &Parameter) -> Converted {
    if parameter.many {
        let items = match value {
            Value::List(items) => items.borrow().clone(),
            Value::Null => return Ok(Value::Null),
            other => vec![other.clone()],
        };
        let converted: Result<Vec<Value>, _> = items.iter().map(|item| one(item, parameter)).collect();
        return converted.map(Value::list);
    }
    one(value, parameter)
}

/// Whether a parameter takes a value as it is.
pub fn fits(value: &Value, parameter: &Parameter) -> bool {
    let one = |value: &Value| match (&parameter.kind, value) {
        (Kind::Any, _)
        | (Kind::Text, Value::Text(_))
        | (Kind::Boolean, Value::Bool(_))
        | (Kind::Integer { .. }, Value::Int(_))
        | (Kind::Real, Value::Real(_))
        | (Kind::Date, Value::Date(_))
        | (Kind::Bytes, Value::Bytes(_))
        | (Kind::SecureString, Value::Secret(_))
        | (Kind::Block, Value::Block(_))
        | (Kind::Hashtable, Value::Table(_)) => true,
        (Kind::Xml, Value::Object(object)) => object.is("XmlDocument"),
        (Kind::Credential, Value::Object(object)) => object.is("PSCredential"),
        (Kind::Object { name, .. }, Value::Object(object)) => is_of(object, name),
        _ => false,
    };
    match value {
        Value::List(items) if parameter.many => items.borrow().iter().all(one),
        other => one(other),
    }
}

fn one(value: &Value, parameter: &Parameter) -> Converted {
    let converted = to_kind(value, &parameter.kind, &parameter.values)?;
    if !parameter.values.is_empty() && !matches!(parameter.kind, Kind::Enumeration(_)) {
        let text = to_text(&converted);
        if !parameter
            .values
            .iter()
            .any(|allowed| allowed.eq_ignore_ascii_case(&text))
        {
            return Err(ConversionError(format!(
                "The argument \"{text}\" does not belong to the set \"{}\" specified by the ValidateSet attribute. \
                 Supply an argument that is in the set and then try the command again.",
                parameter.values.join(",")
            )));
        }
    }
    Ok(converted)
}

/// A value of this kind.
///
/// # Errors
/// PowerShell's words for why there is none.
pub fn to_kind(value: &Value, kind: &Kind, values: &[String]) -> Converted {
    let cannot = |to: &str| {
        ConversionError(format!(
            "Cannot convert the \"{}\" value of type \"{}\" to type \"{to}\".",
            shown(value),
            value.type_name()
        ))
    };
    // A list of one stands for that one.
    if let Value::List(items) = value
        && let [one] = items.borrow().as_slice()
        && !matches!(kind, Kind::Any | Kind::Bytes)
    {
        return to_kind(one, kind, values);
    }
    match (kind, value) {
        (Kind::Any, _)
        | (Kind::SecureString, Value::Secret(_) | Value::Null)
        | (Kind::Block, Value::Block(_))
        | (Kind::Hashtable, Value::Table(_))
        | (Kind::Bytes, Value::Bytes(_) | Value::Null)
        | (Kind::Date, Value::Date(_)) => Ok(value.clone()),
        (Kind::Text, Value::Secret(_)) => Err(cannot("String")),
        (Kind::Text, _) => Ok(Value::text(to_text(value))),
        (Kind::Switch | Kind::Boolean, Value::Bool(_)) => Ok(value.clone()),
        (Kind::Switch | Kind::Boolean, Value::Int(number)) => Ok(Value::Bool(*number != 0)),
        (Kind::Switch | Kind::Boolean, Value::Null) => Ok(Value::Bool(false)),
        (Kind::Switch | Kind::Boolean, _) => Err(ConversionError(format!(
            "Cannot convert value \"{}\" to type \"System.Boolean\". Boolean parameters accept only Boolean values and \
             numbers, such as $True, $False, 1 or 0.",
            shown(value)
        ))),
        (Kind::Integer { name, lowest, greatest }, _) => integer(value, name, *lowest, *greatest),
        (Kind::Real, Value::Int(number)) =>
        {
            #[expect(clippy::cast_precision_loss, reason = "as every language does it")]
            Ok(Value::Real(*number as f64))
        }
        (Kind::Real, Value::Real(_)) => Ok(value.clone()),
        (Kind::Real, Value::Text(text)) => match text.trim().parse() {
            Ok(number) => Ok(Value::Real(number)),
            Err(_) => Err(cannot("Double")),
        },
        (Kind::Date, Value::Text(text)) => match Date::parse(text) {
            Some(date) => Ok(Value::Date(date)),
            None => Err(ConversionError(format!(
                "Cannot convert value \"{text}\" to type \"System.DateTime\". Error: \"String was not recognized as a \
                 valid DateTime.\""
            ))),
        },
        (Kind::Bytes, Value::List(items)) => bytes(&items.borrow()).ok_or_else(|| cannot("Byte[]")),
        (Kind::Xml, Value::Object(object)) if object.is("XmlDocument") => Ok(value.clone()),
        (Kind::Credential, Value::Object(object)) if object.is("PSCredential") => Ok(value.clone()),
        (Kind::Enumeration(name), _) => enumeration(value, name, values),
        (Kind::Object { name, .. }, Value::Object(object)) if is_of(object, name) => Ok(value.clone()),
        (Kind::Object { from_text: true, .. }, Value::Text(_) | Value::Int(_)) => Ok(Value::text(to_text(value))),
        (Kind::SecureString, _) => Err(cannot("SecureString")),
        (Kind::Block, _) => Err(cannot("ScriptBlock")),
        (Kind::Hashtable, _) => Err(cannot("Hashtable")),
        (Kind::Bytes, _) => Err(cannot("Byte[]")),
        (Kind::Real, _) => Err(cannot("Double")),
        (Kind::Date, _) => Err(cannot("DateTime")),
        (Kind::Xml, _) => Err(cannot("XmlDocument")),
        (Kind::Credential, _) => Err(cannot("PSCredential")),
        (Kind::Object { name, .. }, _) => Err(cannot(name)),
    }
}

fn integer(value: &Value, name: &str, lowest: i64, greatest: i64) -> Converted {
    let fails = |why: &str| {
        ConversionError(format!(
            "Cannot convert value \"{}\" to type \"System.{name}\". Error: \"{why}\"",
            shown(value)
        ))
    };
    let number = match value {
        Value::Int(number) => *number,
        Value::Null => 0,
        Value::Bool(value) => i64::from(*value),
        #[expect(clippy::cast_possible_truncation, reason = "the bounds are checked")]
        Value::Real(number) if number.abs() < 9e15 => number.round_ties_even() as i64,
        Value::Text(text) => match crate::syntax::number(text.trim()) {
            Some(number) => number,
            None => return Err(fails("Input string was not in a correct format.")),
        },
        _ => return Err(fails("Invalid cast.")),
    };
    match (lowest..=greatest).contains(&number) {
        true => Ok(Value::Int(number)),
        false => Err(fails(&format!("Value was either too large or too small for {name}."))),
    }
}

fn bytes(items: &[Value]) -> Option<Value> {
    let each: Option<Vec<u8>> = items
        .iter()
        .map(|item| match item {
            Value::Int(number) => u8::try_from(*number).ok(),
            _ => None,
        })
        .collect();
    each.map(|bytes| Value::Bytes(bytes.into()))
}

/// The value whose name is given, or the only one whose name begins so.
fn enumeration(value: &Value, name: &str, values: &[String]) -> Converted {
    let text = to_text(value);
    let exact = values.iter().find(|one| one.eq_ignore_ascii_case(&text));
    let begins = |one: &&String| one.to_ascii_lowercase().starts_with(&text.to_ascii_lowercase());
    let found = exact.or_else(|| {
        let mut candidates = values.iter().filter(begins);
        candidates
            .next()
            .filter(|_| !text.is_empty() && candidates.next().is_none())
    });
    match found {
        Some(found) => Ok(Value::Text(Rc::from(found.as_str()))),
        None => Err(ConversionError(format!(
            "Cannot convert value \"{text}\" to type \"{name}\". Error: \"Unable to match the identifier name {text} to a \
             valid enumerator name. Specify one of the following enumerator names and try again: {}\"",
            values.join(", ")
        ))),
    }
}

/// Objects of CIM classes are known by the beginning of their names.
fn is_of(object: &Object, kind: &str) -> bool {
    object.is(kind) || (kind == "CimInstance" && object.kind().starts_with("MSFT_"))
}

/// What an error may show of a value: never a secret, and not without end.
fn shown(value: &Value) -> String {
    let text = to_text(value);
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Table;

    fn convert(cmdlet: &str, parameter: &str, value: &Value) -> Result<String, String> {
        let parameter = Table::builtin()
            .unwrap()
            .find(cmdlet)
            .unwrap()
            .parameter(parameter)
            .unwrap();
        for_parameter(value, parameter).map(|v| to_text(&v)).map_err(|e| e.0)
    }

    #[test]
    fn parameters_take_what_powershell_takes() {
        let text = |text: &str| Value::text(text);
        assert_eq!(convert("Set-HgsServer", "HttpPort", &text("81")), Ok("81".to_owned()));
        let error = convert("Set-HgsServer", "HttpPort", &Value::Int(70_000)).unwrap_err();
        assert!(error.contains("too large or too small for UInt16"), "{error}");
        let error = convert("Set-HgsServer", "HttpPort", &text("many")).unwrap_err();
        assert!(error.contains("not in a correct format"), "{error}");
        assert_eq!(
            convert("Add-HgsAttestationTpmHost", "Name", &Value::Int(5)),
            Ok("5".to_owned())
        );
        let certificate = |value: &str| convert("Add-HgsKeyProtectionCertificate", "CertificateType", &text(value));
        assert_eq!(certificate("encryption"), Ok("Encryption".to_owned()));
        assert_eq!(certificate("s"), Ok("Signing".to_owned()), "a beginning that is unique");
        assert!(certificate("Both").unwrap_err().contains("Signing, Encryption"));
        let enabled = |value: &Value| convert("Set-HgsKeyProtectionCertificate", "IsEnabled", value);
        assert_eq!(enabled(&Value::Int(0)), Ok("False".to_owned()));
        assert!(
            enabled(&text("true"))
                .unwrap_err()
                .contains("accept only Boolean values")
        );
        let error = convert("Export-HgsServerState", "Password", &text("secret")).unwrap_err();
        assert!(error.contains("to type \"SecureString\""), "{error}");
        let guardian = Value::object("MSFT_HgsGuardian", [("Name", text("Owner"))]);
        assert!(convert("New-HgsKeyProtector", "Owner", &guardian).is_ok());
        assert!(convert("New-HgsKeyProtector", "Owner", &text("Owner")).is_err());
        assert!(
            convert("Start-VM", "VM", &guardian).is_err(),
            "an object of another type"
        );
        let date = convert(
            "Set-HgsKeyProtectionAttestationSignerCertificatePolicy",
            "DenyHealthCertificatesIssuedBefore",
            &text("2024-01-02"),
        );
        assert_eq!(date, Ok("1/2/2024 12:00:00 AM".to_owned()));
        assert_eq!(convert("Get-VM", "Name", &text("a")), Ok("a".to_owned()));
        assert!(
            convert("New-VM", "Generation", &Value::Int(3))
                .unwrap_err()
                .contains("ValidateSet")
        );
    }
}
