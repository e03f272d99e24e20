//! Values of the registry's keys.

use crate::{
    call::Call,
    cmdlets::{Implementation, Run},
    error::{Category, ErrorRecord, Outcome},
    path::{Location, locate},
    registry::{self, Entry},
    value::{Entries, Object, Value, convert},
    wildcard::Wildcard,
};

const NO_FILTERS: &str = "name the keys themselves";
const NO_CREDENTIAL: &str = "the registry's drives take none, as in Windows";

pub(super) const ALL: &[Implementation] = &[
    Implementation {
        cmdlet: "Get-ItemProperty",
        implemented: &["Path", "LiteralPath", "Name"],
        without_effect: &[],
        rejected: &[
            ("Filter", NO_FILTERS),
            ("Include", NO_FILTERS),
            ("Exclude", NO_FILTERS),
            ("Credential", NO_CREDENTIAL),
        ],
        run: Run::Each(get_item_property),
    },
    Implementation {
        cmdlet: "Set-ItemProperty",
        implemented: &["Path", "LiteralPath", "Name", "Value", "Type", "PassThru"],
        without_effect: &[("Force", "values here are never read-only")],
        rejected: &[
            ("Filter", NO_FILTERS),
            ("Include", NO_FILTERS),
            ("Exclude", NO_FILTERS),
            ("Credential", NO_CREDENTIAL),
            ("InputObject", "give -Name and -Value"),
        ],
        run: Run::Each(|call| write(call, false)),
    },
    Implementation {
        cmdlet: "New-ItemProperty",
        implemented: &["Path", "LiteralPath", "Name", "Value", "PropertyType", "Force"],
        without_effect: &[],
        rejected: &[
            ("Filter", NO_FILTERS),
            ("Include", NO_FILTERS),
            ("Exclude", NO_FILTERS),
            ("Credential", NO_CREDENTIAL),
        ],
        run: Run::Each(|call| write(call, true)),
    },
];

/// A key as `registry` names it.
fn key(call: &mut Call<'_>, path: &str) -> Outcome<String> {
    match locate(call.session, path) {
        Ok(Location::Drive(drive, rest)) if matches!(drive.as_str(), "hklm" | "hkcu") => {
            Ok(format!(r"{}\{rest}", drive.to_ascii_uppercase()))
        }
        Ok(_) => {
            let record = ErrorRecord::outside("Properties of what is no key of the registry");
            Err(call.fail(record))
        }
        Err(record) => Err(call.fail(record)),
    }
}

fn paths(call: &Call<'_>) -> Vec<String> {
    call.texts("Path")
        .into_iter()
        .chain(call.texts("LiteralPath"))
        .collect()
}

fn get_item_property(call: &mut Call<'_>) -> Outcome {
    let wanted = call.texts("Name");
    for path in paths(call) {
        let key = key(call, &path)?;
        let machine = call.machine().clone();
        let found = registry::values(&machine, &key).map_err(|record| call.fail(record))?;
        let Some(found) = found else {
            call.error(super::item::missing(&path))?;
            continue;
        };
        let mut properties = Entries::default();
        for (name, entry) in &found {
            let fits = wanted.iter().any(|pattern| Wildcard::new(pattern).matches(name));
            if wanted.is_empty() || fits {
                properties.set(name, entry.to_value());
            }
        }
        if let Some(name) = wanted
            .iter()
            .find(|name| properties.is_empty() && !crate::wildcard::is_pattern(name))
        {
            let text = format!("Property {name} does not exist at path {path}.");
            let record = ErrorRecord::new(
                Category::InvalidArgument,
                "System.Management.Automation.PSArgumentException",
                text,
            );
            call.error(record.about(Value::text(name)).exception("PSArgumentException"))?;
            continue;
        }
        if !properties.is_empty() {
            let object = Object::new::<String>("PSCustomObject", std::iter::empty());
            *object.properties.borrow_mut() = properties;
            call.write(Value::Object(std::rc::Rc::new(object)))?;
        }
    }
    Ok(())
}

fn write(call: &mut Call<'_>, new: bool) -> Outcome {
    let kind = call
        .text(if new { "PropertyType" } else { "Type" })
        .unwrap_or_default()
        .to_ascii_lowercase();
    let value = call.get("Value").unwrap_or(Value::Null);
    let entry = match (kind.as_str(), &value) {
        ("dword" | "qword", value) => number(value).map_err(|record| call.fail(record))?,
        ("multistring", value) => Entry::Texts(value.each().iter().map(convert::to_text).collect()),
        ("string" | "expandstring", value) => Entry::Text(convert::to_text(value)),
        ("", Value::Int(number)) => Entry::Number(*number),
        ("", Value::List(items)) => Entry::Texts(items.borrow().iter().map(convert::to_text).collect()),
        ("", value) => Entry::Text(convert::to_text(value)),
        (other, _) => {
            let record = ErrorRecord::outside(format!("A value of the type {other}"));
            return Err(call.fail(record));
        }
    };
    let name = call.text("Name").unwrap_or_default();
    let force = call.switch("Force");
    for path in paths(call) {
        let key = key(call, &path)?;
        let machine = call.machine().clone();
        let there = registry::value(&machine, &key, &name).map_err(|record| call.fail(record))?;
        if new && there.is_some() && !force {
            let record = ErrorRecord::new(
                Category::WriteError,
                "System.IO.IOException",
                "The property already exists.",
            );
            call.error(record.about(Value::text(&path)))?;
            continue;
        }
        let (verb, target) = match new {
            true => ("New Property", format!("Item: {path} Property: {name}")),
            false => ("Set Property", format!("Item: {path} Property: {name}")),
        };
        if !call.should_process(&target, verb)? {
            continue;
        }
        if let Err(record) = registry::set(&machine, &key, &name, entry.clone()) {
            call.error(record)?;
            continue;
        }
        if new || call.switch("PassThru") {
            call.write(Value::object("PSCustomObject", [(name.clone(), entry.to_value())]))?;
        }
    }
    Ok(())
}

fn number(value: &Value) -> Result<Entry, ErrorRecord> {
    match crate::eval::cast(value, "long")? {
        Value::Int(number) => Ok(Entry::Number(number)),
        _ => Err(ErrorRecord::outside("Such a number")),
    }
}
