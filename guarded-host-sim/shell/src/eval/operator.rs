//! Operators with two operands: arithmetic, comparison, patterns, lists, formats.

use std::{cmp::Ordering, rc::Rc};

use regex::{Captures, Regex, RegexBuilder};

use super::{cast::version_parts, method::format_value};
use crate::{
    error::{Category, ErrorRecord},
    syntax::ast::BinaryOp,
    value::{Date, Entries, Value, convert},
    wildcard::Wildcard,
};

type Computed = Result<Value, ErrorRecord>;

/// What an operator gives, and what `$Matches` becomes.
pub(crate) fn apply(
    op: BinaryOp,
    case: bool,
    left: &Value,
    right: &Value,
) -> Result<(Value, Option<Value>), ErrorRecord> {
    use BinaryOp as Op;
    let value = match op {
        Op::And | Op::Or => Value::Bool(right.is_true()),
        Op::Xor => Value::Bool(left.is_true() != right.is_true()),
        Op::Match | Op::NotMatch => return matching(op == Op::Match, case, left, right),
        Op::Equal
        | Op::NotEqual
        | Op::Greater
        | Op::GreaterOrEqual
        | Op::Less
        | Op::LessOrEqual
        | Op::Like
        | Op::NotLike => filtered(left, |one| compare(op, case, one, right))?,
        Op::Contains => Value::Bool(contains(left, right, case)),
        Op::NotContains => Value::Bool(!contains(left, right, case)),
        Op::In => Value::Bool(contains(right, left, case)),
        Op::NotIn => Value::Bool(!contains(right, left, case)),
        Op::Replace => replace(left, right, case)?,
        Op::Split => split(left, right, case)?,
        Op::Join => join(left, &convert::to_text(right)),
        Op::Add => add(left, right)?,
        Op::Subtract | Op::Multiply | Op::Divide | Op::Remainder => arithmetic(op, left, right)?,
        Op::BitAnd | Op::BitOr | Op::BitXor | Op::ShiftLeft | Op::ShiftRight => bits(op, left, right)?,
        Op::Format => format(&convert::to_text(left), &right.each())?,
        Op::Range => range(left, right)?,
        Op::Is | Op::IsNot | Op::As => return Err(ErrorRecord::outside("This use of a type")),
    };
    Ok((value, None))
}

/// Of a list, the items that fit; else whether it fits.
fn filtered(left: &Value, fits: impl Fn(&Value) -> Result<bool, ErrorRecord>) -> Computed {
    let Value::List(items) = left else {
        return Ok(Value::Bool(fits(left)?));
    };
    let mut found = Vec::new();
    for item in items.borrow().iter() {
        if fits(item)? {
            found.push(item.clone());
        }
    }
    Ok(Value::list(found))
}

fn compare(op: BinaryOp, case: bool, left: &Value, right: &Value) -> Result<bool, ErrorRecord> {
    use BinaryOp as Op;
    Ok(match op {
        Op::Equal => equal(left, right, case),
        Op::NotEqual => !equal(left, right, case),
        Op::Like => Wildcard::with_case(&convert::to_text(right), case).matches(&convert::to_text(left)),
        Op::NotLike => !Wildcard::with_case(&convert::to_text(right), case).matches(&convert::to_text(left)),
        _ => {
            let order = order(left, right, case)?;
            match op {
                Op::Greater => order == Ordering::Greater,
                Op::GreaterOrEqual => order != Ordering::Less,
                Op::Less => order == Ordering::Less,
                _ => order != Ordering::Greater,
            }
        }
    })
}

/// Whether two values are equal; the right one becomes what the left one is.
pub(crate) fn equal(left: &Value, right: &Value, case: bool) -> bool {
    match (left, right) {
        (Value::Null, other) | (other, Value::Null) => matches!(other, Value::Null),
        (Value::Bool(a), other) => *a == other.is_true(),
        (Value::Object(a), Value::Object(b)) if Rc::ptr_eq(a, b) => true,
        (Value::Table(a), Value::Table(b)) => Rc::ptr_eq(a, b),
        (Value::Bytes(a), Value::Bytes(b)) => Rc::ptr_eq(a, b),
        (Value::Secret(a), Value::Secret(b)) => Rc::ptr_eq(a, b),
        (Value::Text(a), other) => same_text(a, &convert::to_text(other), case),
        (Value::Int(_) | Value::Real(_), Value::Text(text)) if text.trim().is_empty() => false,
        (Value::Int(_) | Value::Real(_), _) => order(left, right, case).is_ok_and(Ordering::is_eq),
        (Value::Date(a), other) => to_date(other).is_some_and(|b| *a == b),
        (Value::Type(a), other) => super::cast::same_type(a, &convert::to_text(other)),
        // Objects that read as text are compared by it: URLs, versions, certificates' names.
        (Value::Object(a), other) => {
            a.hidden.borrow().get("ToString").is_some()
                && same_text(&convert::to_text(left), &convert::to_text(other), case)
        }
        _ => false,
    }
}

/// Which of two values comes first.
pub(crate) fn order(left: &Value, right: &Value, case: bool) -> Result<Ordering, ErrorRecord> {
    let ordering = match (left, right) {
        (Value::Null, Value::Null) => Some(Ordering::Equal),
        (Value::Null, _) => Some(Ordering::Less),
        (_, Value::Null) => Some(Ordering::Greater),
        (Value::Date(a), other) => to_date(other).map(|b| a.cmp(&b)),
        (Value::Bool(a), other) => Some(a.cmp(&other.is_true())),
        (Value::Int(_) | Value::Real(_), _) => match (number(left)?, number(right)?) {
            (Value::Int(a), Value::Int(b)) => Some(a.cmp(&b)),
            (a, b) => real(&a).partial_cmp(&real(&b)),
        },
        (Value::Object(a), _) if a.is("Version") => {
            let (a, b) = (
                version_parts(&convert::to_text(left)),
                version_parts(&convert::to_text(right)),
            );
            a.zip(b).map(|(a, b)| a.cmp(&b))
        }
        _ => Some(text_order(&convert::to_text(left), &convert::to_text(right), case)),
    };
    ordering.ok_or_else(|| {
        ErrorRecord::new(
            Category::InvalidArgument,
            "ComparisonFailure",
            format!(
                "Could not compare \"{}\" to \"{}\". Error: \"Cannot convert value to type {}.\"",
                convert::to_text(left),
                convert::to_text(right),
                left.type_name()
            ),
        )
        .exception("ExtendedTypeSystemException")
    })
}

fn text_order(left: &str, right: &str, case: bool) -> Ordering {
    let folded = left.to_lowercase().cmp(&right.to_lowercase());
    match case {
        // As cultures sort: a small letter before its capital.
        true => folded.then_with(|| right.cmp(left)),
        false => folded,
    }
}

fn same_text(left: &str, right: &str, case: bool) -> bool {
    match case {
        true => left == right,
        false => left.to_lowercase() == right.to_lowercase(),
    }
}

fn contains(list: &Value, item: &Value, case: bool) -> bool {
    list.each().iter().any(|own| equal(own, item, case))
}

fn to_date(value: &Value) -> Option<Date> {
    match value {
        Value::Date(date) => Some(*date),
        other => Date::parse(&convert::to_text(other)),
    }
}

/// A number of a value.
pub(crate) fn number(value: &Value) -> Computed {
    match value {
        Value::Int(_) | Value::Real(_) => Ok(value.clone()),
        Value::Null => Ok(Value::Int(0)),
        Value::Bool(value) => Ok(Value::Int(i64::from(*value))),
        other => {
            let text = convert::to_text(other);
            let trimmed = text.trim();
            if trimmed.is_empty() {
                return Ok(Value::Int(0));
            }
            let (sign, digits) = match trimmed.strip_prefix('-') {
                Some(digits) => (-1, digits),
                None => (1, trimmed),
            };
            match (crate::syntax::number(digits), trimmed.parse::<f64>()) {
                (Some(number), _) => Ok(Value::Int(sign * number)),
                (None, Ok(number)) => Ok(Value::Real(number)),
                _ => Err(ErrorRecord::new(
                    Category::InvalidArgument,
                    "InvalidCastFromStringToInteger",
                    format!(
                        "Cannot convert value \"{text}\" to type \"System.Int32\". Error: \"Input string was not in a \
                         correct format.\""
                    ),
                )
                .exception("RuntimeException")),
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "as every language does it")]
fn real(value: &Value) -> f64 {
    match value {
        Value::Int(number) => *number as f64,
        Value::Real(number) => *number,
        _ => f64::NAN,
    }
}

fn add(left: &Value, right: &Value) -> Computed {
    match (left, right) {
        (Value::List(items), other) => {
            let mut items = items.borrow().clone();
            match other {
                Value::Null => items.push(Value::Null),
                other => items.extend(other.each()),
            }
            Ok(Value::list(items))
        }
        (Value::Bytes(bytes), other) => {
            let mut all = bytes.to_vec();
            match other {
                Value::Bytes(more) => all.extend_from_slice(more),
                _ => return Err(ErrorRecord::outside("Adding this to bytes")),
            }
            Ok(Value::Bytes(all.into()))
        }
        (Value::Table(a), Value::Table(b)) => {
            let mut all: Entries = a.borrow().clone();
            for (name, value) in b.borrow().iter() {
                if all.get(name).is_some() {
                    return Err(ErrorRecord::new(
                        Category::OperationStopped,
                        "ArgumentException",
                        format!("Item has already been added. Key in dictionary: '{name}'  Key being added: '{name}'"),
                    ));
                }
                all.set(name, value.clone());
            }
            Ok(Value::table(all))
        }
        (Value::Text(text), other) => Ok(Value::text(format!("{text}{}", convert::to_text(other)))),
        (Value::Date(date), Value::Object(span)) if span.is("TimeSpan") => Ok(Value::Date(Date(
            date.0.saturating_add(super::statics::seconds_of(span)),
        ))),
        (Value::Null, other) => Ok(other.clone()),
        (Value::Int(_) | Value::Real(_) | Value::Bool(_), _) => arithmetic(BinaryOp::Add, left, right),
        _ => Err(no_method(left, "op_Addition")),
    }
}

fn arithmetic(op: BinaryOp, left: &Value, right: &Value) -> Computed {
    use BinaryOp as Op;
    match (op, left, right) {
        (Op::Multiply, Value::Text(text), times) => {
            let Value::Int(times) = number(times)? else {
                return Err(ErrorRecord::outside("Repeating text this often"));
            };
            let times = usize::try_from(times).unwrap_or_default();
            if text.len().saturating_mul(times) > LONGEST {
                return Err(ErrorRecord::outside("Text of this length"));
            }
            return Ok(Value::text(text.repeat(times)));
        }
        (Op::Multiply, Value::List(items), Value::Int(times)) => {
            let items = items.borrow();
            let times = usize::try_from(*times).unwrap_or_default();
            if items.len().saturating_mul(times) > LONGEST {
                return Err(ErrorRecord::outside("A list of this length"));
            }
            let all = std::iter::repeat_n(items.iter().cloned(), times).flatten();
            return Ok(Value::list(all.collect()));
        }
        (Op::Subtract, Value::Date(a), Value::Date(b)) => return Ok(super::statics::time_span(a.0 - b.0)),
        (Op::Subtract, Value::Date(a), Value::Object(span)) if span.is("TimeSpan") => {
            return Ok(Value::Date(Date(a.0.saturating_sub(super::statics::seconds_of(span)))));
        }
        (_, Value::List(_) | Value::Table(_) | Value::Object(_) | Value::Block(_), _) => {
            let name = match op {
                Op::Subtract => "op_Subtraction",
                Op::Multiply => "op_Multiply",
                Op::Divide => "op_Division",
                _ => "op_Modulus",
            };
            return Err(no_method(left, name));
        }
        _ => {}
    }
    let (left, right) = (number(left)?, number(right)?);
    if matches!(op, Op::Divide | Op::Remainder) && matches!(right, Value::Int(0)) {
        return Err(ErrorRecord::new(
            Category::NotSpecified,
            "RuntimeException",
            "Attempted to divide by zero.",
        )
        .exception("RuntimeException"));
    }
    let (Value::Int(a), Value::Int(b)) = (&left, &right) else {
        let (a, b) = (real(&left), real(&right));
        return Ok(Value::Real(match op {
            Op::Add => a + b,
            Op::Subtract => a - b,
            Op::Multiply => a * b,
            Op::Divide => a / b,
            _ => a % b,
        }));
    };
    let whole = match op {
        Op::Add => a.checked_add(*b),
        Op::Subtract => a.checked_sub(*b),
        Op::Multiply => a.checked_mul(*b),
        Op::Divide if a.checked_rem(*b) == Some(0) => a.checked_div(*b),
        Op::Divide => None,
        _ => a.checked_rem(*b),
    };
    Ok(whole.map_or_else(
        || {
            let (a, b) = (real(&left), real(&right));
            Value::Real(match op {
                Op::Add => a + b,
                Op::Subtract => a - b,
                Op::Multiply => a * b,
                _ => a / b,
            })
        },
        Value::Int,
    ))
}

fn bits(op: BinaryOp, left: &Value, right: &Value) -> Computed {
    let (Value::Int(a), Value::Int(b)) = (number(left)?, number(right)?) else {
        return Err(ErrorRecord::outside("Bits of such a number"));
    };
    let by = u32::try_from(b.rem_euclid(64)).unwrap_or_default();
    Ok(Value::Int(match op {
        BinaryOp::BitAnd => a & b,
        BinaryOp::BitOr => a | b,
        BinaryOp::BitXor => a ^ b,
        BinaryOp::ShiftLeft => a.wrapping_shl(by),
        _ => a.wrapping_shr(by),
    }))
}

fn range(left: &Value, right: &Value) -> Computed {
    let (Value::Int(from), Value::Int(to)) = (number(left)?, number(right)?) else {
        return Err(ErrorRecord::outside("A range of such numbers"));
    };
    let length = usize::try_from(from.abs_diff(to)).unwrap_or(usize::MAX);
    if length > LONGEST {
        return Err(ErrorRecord::outside("A range of this length"));
    }
    let items: Vec<Value> = match from <= to {
        true => (from..=to).map(Value::Int).collect(),
        false => (to..=from).rev().map(Value::Int).collect(),
    };
    Ok(Value::list(items))
}

/// The items of a list in one text.
pub(crate) fn join(list: &Value, between: &str) -> Value {
    let each: Vec<String> = match list {
        Value::Bytes(bytes) => bytes.iter().map(u8::to_string).collect(),
        other => other.each().iter().map(convert::to_text).collect(),
    };
    Value::text(each.join(between))
}

/// A regular expression as .NET writes it, as far as it is the same here.
pub(crate) fn expression(pattern: &str, case: bool) -> Result<Regex, ErrorRecord> {
    let built = RegexBuilder::new(pattern)
        .case_insensitive(!case)
        .size_limit(1 << 20)
        .build();
    built.map_err(|error| {
        let reason = error.to_string();
        let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        ErrorRecord::new(
            Category::InvalidOperation,
            "RegularExpressionInvalid",
            format!("The regular expression pattern {pattern} is not valid, or outside of what this shell carries out: {reason}."),
        )
        .exception("RuntimeException")
    })
}

fn matching(wanted: bool, case: bool, left: &Value, right: &Value) -> Result<(Value, Option<Value>), ErrorRecord> {
    let pattern = expression(&convert::to_text(right), case)?;
    if let Value::List(_) = left {
        let value = filtered(left, |one| Ok(pattern.is_match(&convert::to_text(one)) == wanted))?;
        return Ok((value, None));
    }
    let text = convert::to_text(left);
    let captures = pattern.captures(&text);
    let found = captures.is_some();
    let matches = captures.map(|captures| groups(&pattern, &captures));
    Ok((Value::Bool(found == wanted), matches))
}

/// What `$Matches` holds.
fn groups(pattern: &Regex, captures: &Captures<'_>) -> Value {
    let mut entries = Entries::default();
    // Only groups without a name are counted.
    let mut unnamed = 0..;
    for (index, name) in pattern.capture_names().enumerate() {
        let name = name.map_or_else(|| unnamed.next().unwrap_or(index).to_string(), str::to_owned);
        if let Some(found) = captures.get(index) {
            entries.set(&name, Value::text(found.as_str()));
        }
    }
    Value::table(entries)
}

fn replace(left: &Value, right: &Value, case: bool) -> Computed {
    let parts = right.each();
    let text = |index: usize| parts.get(index).map(convert::to_text).unwrap_or_default();
    let pattern = expression(&text(0), case)?;
    // `$1a` is group 1 and a letter to .NET, group `1a` to the library.
    let by = match Regex::new(r"\$(\d+)") {
        Ok(numbers) => numbers.replace_all(&text(1), "$${$1}").into_owned(),
        Err(_) => text(1),
    };
    let one = |value: &Value| Value::text(pattern.replace_all(&convert::to_text(value), by.as_str()));
    Ok(match left {
        Value::List(items) => Value::list(items.borrow().iter().map(one).collect()),
        other => one(other),
    })
}

fn split(left: &Value, right: &Value, case: bool) -> Computed {
    let parts = right.each();
    if matches!(parts.first(), Some(Value::Block(_))) {
        return Err(ErrorRecord::outside("-split by a script block"));
    }
    let pattern = expression(&parts.first().map(convert::to_text).unwrap_or_default(), case)?;
    let most = match parts.get(1) {
        Some(most) => usize::try_from(convert::to_text(most).parse::<i64>().unwrap_or(0)).unwrap_or(0),
        None => 0,
    };
    let mut found = Vec::new();
    for value in left.each() {
        let text = convert::to_text(&value);
        let mut from = 0;
        for captures in pattern.captures_iter(&text) {
            let Some(whole) = captures.get(0).filter(|whole| !whole.is_empty()) else {
                continue;
            };
            if most > 0 && found.len() + 1 >= most {
                break;
            }
            found.push(Value::text(text.get(from..whole.start()).unwrap_or_default()));
            // What the pattern keeps in brackets stays in the result.
            found.extend(captures.iter().skip(1).flatten().map(|kept| Value::text(kept.as_str())));
            from = whole.end();
        }
        found.push(Value::text(text.get(from..).unwrap_or_default()));
    }
    Ok(Value::list(found))
}

/// `'{0,-10} {1:N2}' -f …`.
pub(crate) fn format(pattern: &str, values: &[Value]) -> Computed {
    let wrong = |why: &str| {
        ErrorRecord::new(
            Category::InvalidOperation,
            "FormatError",
            format!("Error formatting a string: {why}"),
        )
        .exception("RuntimeException")
    };
    let mut text = String::new();
    let mut rest = pattern.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '{' if rest.peek() == Some(&'{') => {
                rest.next();
                text.push('{');
            }
            '}' if rest.peek() == Some(&'}') => {
                rest.next();
                text.push('}');
            }
            '{' => {
                let item: String = rest.by_ref().take_while(|c| *c != '}').collect();
                let (place, style) = match item.split_once(':') {
                    Some((place, style)) => (place.to_owned(), Some(style.to_owned())),
                    None => (item, None),
                };
                let (index, width) = match place.split_once(',') {
                    Some((index, width)) => (index.trim().to_owned(), width.trim().parse::<i64>().unwrap_or(0)),
                    None => (place.trim().to_owned(), 0),
                };
                let index: usize = index
                    .parse()
                    .map_err(|_| wrong("Input string was not in a correct format.."))?;
                let value = values.get(index).ok_or_else(|| {
                    wrong(
                        "Index (zero based) must be greater than or equal to zero and less than the size of the \
                         argument list..",
                    )
                })?;
                let shown = match &style {
                    Some(style) => convert::to_text(&format_value(value, style)?),
                    None => convert::to_text(value),
                };
                let size = usize::try_from(width.unsigned_abs().min(1000)).unwrap_or_default();
                text.push_str(&match width < 0 {
                    true => format!("{shown:<size$}"),
                    false => format!("{shown:>size$}"),
                });
            }
            other => text.push(other),
        }
    }
    Ok(Value::text(text))
}

fn no_method(left: &Value, name: &str) -> ErrorRecord {
    ErrorRecord::new(
        Category::InvalidOperation,
        "MethodNotFound",
        format!(
            "Method invocation failed because [{}] does not contain a method named '{name}'.",
            super::cast::full_name(left)
        ),
    )
    .exception("RuntimeException")
}

/// Beyond this many items or bytes a script is mistaken.
const LONGEST: usize = 50_000_000;
