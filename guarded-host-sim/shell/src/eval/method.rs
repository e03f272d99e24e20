//! Methods of values: those of text, lists, hashtables, dates and documents that scripts use.

use std::rc::Rc;

use super::{cast::full_name, operator, statics, xml};
use crate::{
    error::{Category, ErrorRecord, Outcome},
    path::{self, Location},
    session::Session,
    syntax::ast::Expr,
    value::{Date, Object, Value, convert},
};

type Computed = Result<Value, ErrorRecord>;

impl Session {
    /// `object.name(…)` and `[type]::name(…)`.
    pub(crate) fn method_call(
        &mut self,
        object: &Expr,
        name: &Expr,
        arguments: &[Expr],
        is_static: bool,
        expr: &Expr,
    ) -> Outcome<Value> {
        let name = convert::to_text(&self.expression(name)?);
        let own = match is_static {
            true => Err(self.type_of(object)?),
            false => Ok(self.expression(object)?),
        };
        let arguments: Outcome<Vec<Value>> = arguments.iter().map(|argument| self.expression(argument)).collect();
        let arguments = arguments?;
        let result = match own {
            Err(kind) => self.static_call(&kind, &name, &arguments),
            Ok(value) => self.method(&value, &name, &arguments),
        };
        result.map_err(|stop| match stop {
            crate::error::Stop::Error(record) => self.wrong(expr.span, record),
            other => other,
        })
    }

    /// Calls a method of a value.
    pub(crate) fn method(&mut self, value: &Value, name: &str, arguments: &[Value]) -> Outcome<Value> {
        let method = name.to_ascii_lowercase();
        let result = match (value, method.as_str()) {
            (Value::Null, _) => Err(ErrorRecord::new(
                Category::InvalidOperation,
                "InvokeMethodOnNull",
                "You cannot call a method on a null-valued expression.",
            )
            .exception("RuntimeException")),
            (_, "gettype") => Ok(Value::Type(full_name(value).into())),
            (Value::Date(_) | Value::Int(_) | Value::Real(_), "tostring") if !arguments.is_empty() => {
                format_value(value, &convert::to_text(&arguments[0]))
            }
            (Value::Object(object), "tostring")
                if object.is("ErrorRecord") || object.hidden.borrow().get("ToString").is_some() =>
            {
                Ok(Value::text(convert::to_text(value)))
            }
            (_, "tostring") if !matches!(value, Value::Secret(_)) => Ok(Value::text(convert::to_text(value))),
            (_, "equals") if arguments.len() == 1 => Ok(Value::Bool(operator::equal(value, &arguments[0], true))),
            (Value::Block(block), "invoke" | "invokereturnasis") => {
                let block = Rc::clone(block);
                return Ok(Value::from_output(self.call_block(
                    &block,
                    arguments.to_vec(),
                    Vec::new(),
                )?));
            }
            (Value::Text(text), _) => text_method(text, &method, arguments),
            (Value::Table(_), _) => table_method(value, &method, arguments),
            (Value::List(_), _) => list_method(value, &method, arguments),
            (Value::Date(date), _) => date_method(*date, &method, arguments),
            (Value::Object(object), _) => return self.object_method(object, name, arguments),
            _ => Err(no_method(value, name)),
        };
        result.map_err(ErrorRecord::stop)
    }

    fn object_method(&mut self, object: &Rc<Object>, name: &str, arguments: &[Value]) -> Outcome<Value> {
        let method = name.to_ascii_lowercase();
        if let Some(Value::Block(block)) = object.get(name) {
            return Ok(Value::from_output(self.call_block(
                &block,
                arguments.to_vec(),
                Vec::new(),
            )?));
        }
        let text = |index: usize| arguments.get(index).map(convert::to_text).unwrap_or_default();
        let hidden = |name: &str| object.hidden.borrow().get(name).cloned();
        let result = match (
            object.kind().to_ascii_lowercase().as_str(),
            method.as_str(),
            arguments.len(),
        ) {
            ("xmldocument", "save", 1) => self.save_document(object, &text(0)),
            ("xmldocument", "load", 1) => self.load_document(object, &text(0)),
            ("xmldocument", "loadxml", 1) => become_document(object, &text(0)),
            ("pscredential", "getnetworkcredential", 0) => {
                let password = match object.get("Password") {
                    Some(Value::Secret(secret)) => Value::text(secret.expose()),
                    _ => Value::Null,
                };
                let user = object.get("UserName").unwrap_or(Value::Null);
                Ok(Value::object(
                    "NetworkCredential",
                    [("UserName", user), ("Password", password)],
                ))
            }
            ("x509certificate2", "getrawcertdata" | "export", _) if hidden("RawData").is_some() => {
                Ok(hidden("RawData").unwrap_or(Value::Null))
            }
            ("x509certificate2", "getcerthashstring", 0) => Ok(object.get("Thumbprint").unwrap_or(Value::Null)),
            ("guid", "tobytearray", 0) => Err(ErrorRecord::outside("Guid.ToByteArray()")),
            ("encoding", "getbytes", 1) => Ok(encoded(object, &text(0))),
            ("encoding", "getstring", 1) => match statics::bytes_of(arguments) {
                Some(bytes) => Ok(Value::text(String::from_utf8_lossy(&bytes))),
                None => Err(no_method(&Value::Object(Rc::clone(object)), name)),
            },
            ("fileinfo" | "directoryinfo", "delete", 0) => {
                let name = object
                    .get("FullName")
                    .as_ref()
                    .map(convert::to_text)
                    .unwrap_or_default();
                self.static_call("System.IO.File", "Delete", &[Value::text(name)])?;
                Ok(Value::Null)
            }
            _ => Err(no_method(&Value::Object(Rc::clone(object)), name)),
        };
        result.map_err(ErrorRecord::stop)
    }

    fn save_document(&mut self, document: &Object, name: &str) -> Computed {
        let text = document
            .hidden
            .borrow()
            .get("OuterXml")
            .map(convert::to_text)
            .unwrap_or_default();
        let Location::File(file) = path::locate(self, name)? else {
            return Err(ErrorRecord::outside("Saving a document there"));
        };
        std::fs::write(&file.real, text).map_err(|error| path::io_error(name, &error))?;
        Ok(Value::Null)
    }

    fn load_document(&mut self, document: &Object, name: &str) -> Computed {
        let Location::File(file) = path::locate(self, name)? else {
            return Err(ErrorRecord::outside("Loading a document from there"));
        };
        let bytes = std::fs::read(&file.real).map_err(|error| path::io_error(name, &error))?;
        become_document(document, &String::from_utf8_lossy(&bytes))
    }
}

fn become_document(document: &Object, text: &str) -> Computed {
    let read = xml::document(text).map_err(|reason| {
        ErrorRecord::new(
            Category::NotSpecified,
            "XmlException",
            format!("Exception calling \"Load\" with \"1\" argument(s): \"{reason}\""),
        )
    })?;
    if let Value::Object(read) = read {
        *document.properties.borrow_mut() = read.properties.borrow().clone();
        *document.hidden.borrow_mut() = read.hidden.borrow().clone();
    }
    Ok(Value::Null)
}

fn encoded(encoding: &Object, text: &str) -> Value {
    let unicode = encoding
        .get("EncodingName")
        .is_some_and(|name| convert::to_text(&name) == "unicode");
    let bytes: Vec<u8> = match unicode {
        true => text.encode_utf16().flat_map(u16::to_le_bytes).collect(),
        false => text.as_bytes().to_vec(),
    };
    Value::Bytes(bytes.into())
}

fn no_method(value: &Value, name: &str) -> ErrorRecord {
    ErrorRecord::new(
        Category::InvalidOperation,
        "MethodNotFound",
        format!(
            "Method invocation failed because [{}] does not contain a method named '{name}', or it is outside of what this \
             shell carries out.",
            full_name(value)
        ),
    )
    .exception("RuntimeException")
}

fn text_method(text: &str, method: &str, arguments: &[Value]) -> Computed {
    let argument = |index: usize| arguments.get(index).map(convert::to_text).unwrap_or_default();
    let integer = |index: usize| match arguments.get(index).map(operator::number) {
        Some(Ok(Value::Int(number))) => usize::try_from(number).ok(),
        _ => None,
    };
    let chars = |from: usize, length: usize| -> String { text.chars().skip(from).take(length).collect() };
    let place = |found: Option<usize>| match found {
        Some(at) => Value::Int(i64::try_from(text.get(..at).unwrap_or_default().chars().count()).unwrap_or(-1)),
        None => Value::Int(-1),
    };
    let trimmed: Vec<char> = match arguments.is_empty() {
        true => Vec::new(),
        false => argument(0).chars().collect(),
    };
    let strips = |c: char| {
        if trimmed.is_empty() {
            c.is_whitespace()
        } else {
            trimmed.contains(&c)
        }
    };
    Ok(match (method, arguments.len()) {
        ("toupper" | "toupperinvariant", 0) => Value::text(text.to_uppercase()),
        ("tolower" | "tolowerinvariant", 0) => Value::text(text.to_lowercase()),
        ("trim", 0 | 1) => Value::text(text.trim_matches(strips)),
        ("trimstart", 0 | 1) => Value::text(text.trim_start_matches(strips)),
        ("trimend", 0 | 1) => Value::text(text.trim_end_matches(strips)),
        ("replace", 2) => Value::text(text.replace(&argument(0), &argument(1))),
        ("split", 1 | 2) => {
            let marks: Vec<char> = argument(0).chars().collect();
            let parts = text.split(|c| marks.contains(&c));
            Value::list(parts.map(Value::text).collect())
        }
        ("split", 0) => Value::list(text.split_whitespace().map(Value::text).collect()),
        ("startswith", 1 | 2) => Value::Bool(text.starts_with(&argument(0))),
        ("endswith", 1 | 2) => Value::Bool(text.ends_with(&argument(0))),
        ("contains", 1) => Value::Bool(text.contains(&argument(0))),
        ("indexof", 1) => place(text.find(&argument(0))),
        ("lastindexof", 1) => place(text.rfind(&argument(0))),
        ("padleft" | "padright", 1 | 2) => {
            let wanted = integer(0).unwrap_or_default().min(100_000);
            let fill = argument(1).chars().next().unwrap_or(' ');
            let missing = wanted.saturating_sub(text.chars().count());
            let fill: String = std::iter::repeat_n(fill, missing).collect();
            Value::text(if method == "padleft" {
                format!("{fill}{text}")
            } else {
                format!("{text}{fill}")
            })
        }
        ("substring", 1 | 2) => {
            let length = text.chars().count();
            let from = integer(0).filter(|from| *from <= length);
            let wanted = match arguments.len() {
                1 => from.map(|from| length - from),
                _ => integer(1).filter(|wanted| from.is_some_and(|from| from + wanted <= length)),
            };
            match (from, wanted) {
                (Some(from), Some(wanted)) => Value::text(chars(from, wanted)),
                _ => {
                    return Err(ErrorRecord::new(
                        Category::NotSpecified,
                        "ArgumentOutOfRangeException",
                        format!(
                            "Exception calling \"Substring\" with \"{}\" argument(s): \"Index and length must refer to a \
                             location within the string.\"",
                            arguments.len()
                        ),
                    )
                    .exception("MethodInvocationException"));
                }
            }
        }
        ("remove", 1) => Value::text(chars(0, integer(0).unwrap_or_default())),
        ("remove", 2) => {
            let (from, length) = (integer(0).unwrap_or_default(), integer(1).unwrap_or_default());
            Value::text(chars(0, from) + &chars(from.saturating_add(length), usize::MAX))
        }
        ("insert", 2) => {
            let at = integer(0).unwrap_or_default();
            Value::text(chars(0, at) + &argument(1) + &chars(at, usize::MAX))
        }
        ("tochararray", 0) => Value::list(text.chars().map(|c| Value::text(c.to_string())).collect()),
        ("compareto", 1) => Value::Int(match operator::order(&Value::text(text), &arguments[0], true)? {
            std::cmp::Ordering::Less => -1,
            std::cmp::Ordering::Equal => 0,
            std::cmp::Ordering::Greater => 1,
        }),
        _ => return Err(no_method(&Value::text(text), method)),
    })
}

fn table_method(value: &Value, method: &str, arguments: &[Value]) -> Computed {
    let Value::Table(entries) = value else {
        return Err(no_method(value, method));
    };
    let name = arguments.first().map(convert::to_text).unwrap_or_default();
    Ok(match (method, arguments) {
        ("containskey" | "contains", [_]) => Value::Bool(entries.borrow().get(&name).is_some()),
        ("containsvalue", [wanted]) => Value::Bool(
            entries
                .borrow()
                .iter()
                .any(|(_, own)| operator::equal(own, wanted, true)),
        ),
        ("add", [_, added]) => {
            if entries.borrow().get(&name).is_some() {
                return Err(ErrorRecord::new(
                    Category::NotSpecified,
                    "ArgumentException",
                    format!(
                        "Exception calling \"Add\" with \"2\" argument(s): \"Item has already been added. Key in \
                         dictionary: '{name}'  Key being added: '{name}'\""
                    ),
                )
                .exception("MethodInvocationException"));
            }
            entries.borrow_mut().set(&name, added.clone());
            Value::Null
        }
        ("remove", [_]) => {
            entries.borrow_mut().remove(&name);
            Value::Null
        }
        ("clear", []) => {
            *entries.borrow_mut() = Default::default();
            Value::Null
        }
        ("clone", []) => Value::table(entries.borrow().clone()),
        ("getenumerator", []) => {
            let entries = entries.borrow();
            let each = entries.iter().map(|(name, value)| {
                Value::object(
                    "DictionaryEntry",
                    [
                        ("Name", Value::text(name)),
                        ("Value", value.clone()),
                        ("Key", Value::text(name)),
                    ],
                )
            });
            Value::list(each.collect())
        }
        _ => return Err(no_method(value, method)),
    })
}

fn list_method(value: &Value, method: &str, arguments: &[Value]) -> Computed {
    let Value::List(items) = value else {
        return Err(no_method(value, method));
    };
    Ok(match (method, arguments) {
        ("add", [item]) => {
            items.borrow_mut().push(item.clone());
            Value::Null
        }
        ("addrange", [more]) => {
            let more = more.each();
            items.borrow_mut().extend(more);
            Value::Null
        }
        ("contains", [wanted]) => Value::Bool(items.borrow().iter().any(|own| operator::equal(own, wanted, true))),
        ("indexof", [wanted]) => {
            let at = items.borrow().iter().position(|own| operator::equal(own, wanted, true));
            Value::Int(at.and_then(|at| i64::try_from(at).ok()).unwrap_or(-1))
        }
        ("clear", []) => {
            items.borrow_mut().clear();
            Value::Null
        }
        ("removeat", [at]) => {
            let mut items = items.borrow_mut();
            if let Value::Int(at) = operator::number(at)?
                && let Ok(at) = usize::try_from(at)
                && at < items.len()
            {
                items.remove(at);
            }
            Value::Null
        }
        ("toarray" | "clone", []) => Value::list(items.borrow().clone()),
        ("getenumerator", []) => value.clone(),
        _ => return Err(no_method(value, method)),
    })
}

fn date_method(date: Date, method: &str, arguments: &[Value]) -> Computed {
    let by = match arguments.first().map(operator::number).transpose()? {
        Some(Value::Int(number)) => number,
        Some(Value::Real(number)) if method.starts_with("add") && number.abs() < 1e9 => {
            let unit = unit_of(method).ok_or_else(|| no_method(&Value::Date(date), method))?;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_precision_loss,
                reason = "bounded above"
            )]
            return Ok(Value::Date(Date(date.0.saturating_add((number * unit as f64) as i64))));
        }
        _ => 0,
    };
    Ok(match (method, arguments.len()) {
        ("addmonths" | "addyears", 1) => {
            let months = if method == "addyears" {
                by.saturating_mul(12)
            } else {
                by
            };
            let (year, month, day) = date.calendar();
            let all = year.saturating_mul(12).saturating_add(month - 1).saturating_add(months);
            let (year, month) = (all.div_euclid(12), all.rem_euclid(12) + 1);
            let second = date.0.rem_euclid(86_400);
            // The last day of a shorter month.
            let found = (0..4).find_map(|less| Date::from_calendar(year, month, day - less, second));
            Value::Date(found.ok_or_else(|| ErrorRecord::outside("A date this far away"))?)
        }
        (_, 1) if unit_of(method).is_some() => {
            let unit = unit_of(method).unwrap_or_default();
            Value::Date(Date(date.0.saturating_add(by.saturating_mul(unit))))
        }
        ("add", 1) => match &arguments[0] {
            Value::Object(span) if span.is("TimeSpan") => {
                Value::Date(Date(date.0.saturating_add(statics::seconds_of(span))))
            }
            _ => return Err(no_method(&Value::Date(date), method)),
        },
        ("touniversaltime" | "tolocaltime", 0) => Value::Date(date),
        ("toshortdatestring", 0) => {
            let (year, month, day) = date.calendar();
            Value::text(format!("{month}/{day}/{year}"))
        }
        ("tofiletime" | "tofiletimeutc", 0) => Value::Int((date.0 + 11_644_473_600).saturating_mul(10_000_000)),
        _ => return Err(no_method(&Value::Date(date), method)),
    })
}

fn unit_of(method: &str) -> Option<i64> {
    Some(match method {
        "adddays" => 86_400,
        "addhours" => 3600,
        "addminutes" => 60,
        "addseconds" => 1,
        _ => return None,
    })
}

/// A number or a date in a style: `N2`, `X4`, `D3`, `yyyy-MM-dd`.
pub(crate) fn format_value(value: &Value, style: &str) -> Computed {
    if let Value::Date(date) = value {
        return Ok(Value::text(date_in(*date, style)));
    }
    let (letter, digits) = style.split_at(style.chars().next().map_or(0, char::len_utf8));
    let number = match value {
        Value::Int(_) | Value::Real(_) => value.clone(),
        // Text and other things have no styles.
        other => return Ok(Value::text(convert::to_text(other))),
    };
    let digits: Option<usize> = match digits {
        "" => None,
        digits => Some(
            digits
                .parse()
                .ok()
                .filter(|n| *n <= 99)
                .ok_or_else(|| outside_style(style))?,
        ),
    };
    #[expect(clippy::cast_precision_loss, reason = "as every language does it")]
    let real = match &number {
        Value::Int(number) => *number as f64,
        Value::Real(number) => *number,
        _ => 0.0,
    };
    Ok(Value::text(match (letter, &number) {
        ("N" | "n", _) => grouped(real, digits.unwrap_or(2)),
        ("F" | "f", _) => format!("{real:.*}", digits.unwrap_or(2)),
        ("P" | "p", _) => format!("{} %", grouped(real * 100.0, digits.unwrap_or(2))),
        ("D" | "d", Value::Int(number)) => {
            let sign = if *number < 0 { "-" } else { "" };
            format!("{sign}{:0>width$}", number.unsigned_abs(), width = digits.unwrap_or(1))
        }
        ("X", Value::Int(number)) => format!("{number:0>width$X}", width = digits.unwrap_or(1)),
        ("x", Value::Int(number)) => format!("{number:0>width$x}", width = digits.unwrap_or(1)),
        ("G" | "g", _) => convert::to_text(&number),
        ("0", _) if style.bytes().all(|b| b == b'0') => format!("{real:0>width$.0}", width = style.len()),
        _ => return Err(outside_style(style)),
    }))
}

fn outside_style(style: &str) -> ErrorRecord {
    ErrorRecord::outside(format!("The number format '{style}'"))
}

fn grouped(number: f64, digits: usize) -> String {
    let text = format!("{:.digits$}", number.abs());
    let (whole, rest) = text
        .split_once('.')
        .map_or((text.as_str(), None), |(w, r)| (w, Some(r)));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let sign = if number < 0.0 { "-" } else { "" };
    match rest {
        Some(rest) => format!("{sign}{grouped}.{rest}"),
        None => format!("{sign}{grouped}"),
    }
}

/// A date by a pattern, or by one of the standard letters.
pub(crate) fn date_in(date: Date, style: &str) -> String {
    let ((year, month, day), (hour, minute, second)) = (date.calendar(), date.clock());
    let style = match style {
        "s" => "yyyy-MM-ddTHH:mm:ss",
        "u" => "yyyy-MM-dd HH:mm:ssZ",
        "o" | "O" => "yyyy-MM-ddTHH:mm:ss.0000000Z",
        "d" => "M/d/yyyy",
        "t" => "h:mm tt",
        "T" => "h:mm:ss tt",
        "g" => "M/d/yyyy h:mm tt",
        "G" => "M/d/yyyy h:mm:ss tt",
        "f" | "F" | "U" => return date.long(),
        other => other,
    };
    let long = date.long();
    let mut words = long.split([',', ' ']).filter(|word| !word.is_empty());
    let (weekday, month_name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let twelve = if hour % 12 == 0 { 12 } else { hour % 12 };
    let mut text = String::new();
    let mut rest = style;
    while let Some(c) = rest.chars().next() {
        let run = rest.chars().take_while(|own| *own == c).count();
        let (piece, taken) = match c {
            'y' if run >= 4 => (format!("{year:04}"), run),
            'y' => (format!("{:02}", year % 100), run),
            'M' if run >= 4 => (month_name.to_owned(), run),
            'M' if run == 3 => (month_name.chars().take(3).collect(), run),
            'M' if run == 2 => (format!("{month:02}"), run),
            'M' => (month.to_string(), run),
            'd' if run >= 4 => (weekday.to_owned(), run),
            'd' if run == 3 => (weekday.chars().take(3).collect(), run),
            'd' if run == 2 => (format!("{day:02}"), run),
            'd' => (day.to_string(), run),
            'H' if run >= 2 => (format!("{hour:02}"), run),
            'H' => (hour.to_string(), run),
            'h' if run >= 2 => (format!("{twelve:02}"), run),
            'h' => (twelve.to_string(), run),
            'm' if run >= 2 => (format!("{minute:02}"), run),
            'm' => (minute.to_string(), run),
            's' if run >= 2 => (format!("{second:02}"), run),
            's' => (second.to_string(), run),
            'f' => ("0".repeat(run), run),
            't' => ((if hour < 12 { "AM" } else { "PM" }).chars().take(run).collect(), run),
            '\'' => {
                let inside = rest.get(1..).unwrap_or_default();
                let end = inside.find('\'').unwrap_or(inside.len());
                (inside.get(..end).unwrap_or_default().to_owned(), end + 2)
            }
            other => (other.to_string(), 1),
        };
        text.push_str(&piece);
        let skip: usize = rest.chars().take(taken).map(char::len_utf8).sum();
        rest = rest.get(skip..).unwrap_or_default();
    }
    text
}
