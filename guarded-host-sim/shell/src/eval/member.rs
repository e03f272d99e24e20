//! Properties and elements.

use super::{cast::full_name, operator};
use crate::{
    error::{Category, ErrorRecord, Outcome},
    session::Session,
    syntax::ast::{Expr, ExprKind},
    value::{Value, convert},
};

impl Session {
    /// `object.name` and `[type]::name`.
    pub(crate) fn member(&mut self, object: &Expr, name: &Expr, is_static: bool, expr: &Expr) -> Outcome<Value> {
        let name = convert::to_text(&self.expression(name)?);
        if is_static {
            let kind = self.type_of(object)?;
            return self
                .static_member(&kind, &name)
                .map_err(|record| self.wrong(expr.span, record));
        }
        let object = self.expression(object)?;
        Ok(property(&object, &name))
    }

    /// The type before `::`.
    pub(crate) fn type_of(&mut self, object: &Expr) -> Outcome<String> {
        match &object.kind {
            ExprKind::Type(name) => Ok(name.clone()),
            _ => Ok(convert::to_text(&self.expression(object)?)),
        }
    }

    /// `object.name = value`.
    pub(crate) fn set_member(&mut self, object: &Value, name: &str, value: Value) -> Result<(), ErrorRecord> {
        match object {
            Value::Table(entries) => entries.borrow_mut().set(name, value),
            Value::Object(own) if own.properties.borrow().get(name).is_some() => {
                own.properties.borrow_mut().set(name, value);
            }
            other => {
                return Err(ErrorRecord::new(
                    Category::InvalidOperation,
                    "PropertyAssignmentException",
                    format!(
                        "The property '{name}' cannot be found on this object. Verify that the property exists and can be \
                         set. It is a {}.",
                        full_name(other)
                    ),
                )
                .exception("RuntimeException"));
            }
        }
        Ok(())
    }

    /// `object[index]`.
    pub(crate) fn index(&self, object: &Value, index: &Value) -> Result<Value, ErrorRecord> {
        if let (Value::List(several), false) = (index, matches!(object, Value::Table(_))) {
            let each: Result<Vec<Value>, ErrorRecord> =
                several.borrow().iter().map(|one| self.index(object, one)).collect();
            return Ok(Value::list(
                each?.into_iter().filter(|v| !matches!(v, Value::Null)).collect(),
            ));
        }
        let at = |length: usize| -> Result<Option<usize>, ErrorRecord> {
            let Value::Int(at) = operator::number(index)? else {
                return Err(ErrorRecord::outside("Such an index"));
            };
            let length = i64::try_from(length).unwrap_or(i64::MAX);
            Ok(usize::try_from(if at < 0 { at + length } else { at }).ok())
        };
        Ok(match object {
            Value::Table(entries) => match index {
                Value::List(names) => {
                    let names = names.borrow();
                    let each = names.iter().map(|name| entry(&entries.borrow(), name)).collect();
                    Value::list(each)
                }
                name => entry(&entries.borrow(), name),
            },
            Value::List(items) => {
                let items = items.borrow();
                at(items.len())?
                    .and_then(|at| items.get(at))
                    .cloned()
                    .unwrap_or(Value::Null)
            }
            Value::Bytes(bytes) => match at(bytes.len())?.and_then(|at| bytes.get(at)) {
                Some(byte) => Value::Int(i64::from(*byte)),
                None => Value::Null,
            },
            Value::Text(text) => match at(text.chars().count())?.and_then(|at| text.chars().nth(at)) {
                Some(c) => Value::text(c.to_string()),
                None => Value::Null,
            },
            Value::Object(own) if own.get(&convert::to_text(index)).is_some() => {
                own.get(&convert::to_text(index)).unwrap_or(Value::Null)
            }
            Value::Null => {
                return Err(ErrorRecord::new(
                    Category::InvalidOperation,
                    "NullArray",
                    "Cannot index into a null array.",
                )
                .exception("RuntimeException"));
            }
            // What is no list is a list of one.
            other => match at(1)? {
                Some(0) => other.clone(),
                _ => Value::Null,
            },
        })
    }
}

fn entry(entries: &crate::value::Entries, name: &Value) -> Value {
    entries.get(&convert::to_text(name)).cloned().unwrap_or(Value::Null)
}

/// A property of a value; `$null`, if it has none of this name.
pub(crate) fn property(object: &Value, name: &str) -> Value {
    own_property(object, name).unwrap_or(Value::Null)
}

/// A property of a value, if it has one of this name.
pub(crate) fn own_property(object: &Value, name: &str) -> Option<Value> {
    let count = |n: usize| Value::Int(i64::try_from(n).unwrap_or(i64::MAX));
    let lower = name.to_ascii_lowercase();
    match object {
        Value::Table(entries) => {
            let entries = entries.borrow();
            if let Some(value) = entries.get(name) {
                return Some(value.clone());
            }
            Some(match lower.as_str() {
                "count" => count(entries.len()),
                "keys" => Value::list(entries.iter().map(|(name, _)| Value::text(name)).collect()),
                "values" => Value::list(entries.iter().map(|(_, value)| value.clone()).collect()),
                _ => return None,
            })
        }
        Value::List(items) => match lower.as_str() {
            "count" | "length" => Some(count(items.borrow().len())),
            // Of each item, as PowerShell does since its third version.
            _ => {
                let items = items.borrow();
                let each: Vec<Value> = items
                    .iter()
                    .filter_map(|item| own_property(item, name))
                    .flat_map(|v| v.each())
                    .collect();
                let any = items.iter().any(|item| own_property(item, name).is_some());
                any.then(|| Value::from_output(each))
            }
        },
        Value::Object(own) => {
            if let Some(value) = own.get(name) {
                return Some(value);
            }
            if let Some(value) = own
                .hidden
                .borrow()
                .get(name)
                .filter(|_| VISIBLE.contains(&lower.as_str()))
            {
                return Some(value.clone());
            }
            (lower == "count").then(|| Value::Int(1))
        }
        Value::Text(text) if lower == "length" => Some(count(text.chars().count())),
        Value::Bytes(bytes) if matches!(lower.as_str(), "length" | "count") => Some(count(bytes.len())),
        Value::Date(date) => date_property(*date, &lower),
        Value::Secret(secret) if lower == "length" => Some(count(secret.expose().chars().count())),
        Value::Type(name) => match lower.as_str() {
            "name" => Some(Value::text(name.rsplit('.').next().unwrap_or(name))),
            "fullname" => Some(Value::text(name)),
            _ => None,
        },
        Value::Null if lower == "count" => Some(Value::Int(0)),
        Value::Null => None,
        _ if matches!(lower.as_str(), "count" | "length") => Some(Value::Int(1)),
        _ => None,
    }
}

fn date_property(date: crate::value::Date, name: &str) -> Option<Value> {
    let ((year, month, day), (hour, minute, second)) = (date.calendar(), date.clock());
    Some(match name {
        "year" => Value::Int(year),
        "month" => Value::Int(month),
        "day" => Value::Int(day),
        "hour" => Value::Int(hour),
        "minute" => Value::Int(minute),
        "second" => Value::Int(second),
        "date" => Value::Date(crate::value::Date(date.0 - date.0.rem_euclid(86_400))),
        "dayofweek" => Value::text(date.long().split(',').next().unwrap_or_default()),
        "ticks" => Value::Int((date.0 + 62_135_596_800).saturating_mul(10_000_000)),
        _ => return None,
    })
}

/// What scripts may read of what only methods keep.
const VISIBLE: [&str; 9] = [
    "shorttime",
    "pscomputername",
    "outerxml",
    "innerxml",
    "innertext",
    "documentelement",
    "localname",
    "rawdata",
    "certificate",
];
