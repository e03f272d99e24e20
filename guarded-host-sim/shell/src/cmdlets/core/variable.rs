//! Cmdlets about variables.

use crate::{
    call::Call,
    cmdlets::{Implementation, Run},
    error::{Category, ErrorRecord, Outcome},
    value::Value,
    wildcard::{Wildcard, is_pattern},
};

const OTHER_SCOPES: &str = "a script's own variables are meant";

pub(super) const ALL: &[Implementation] = &[
    Implementation {
        cmdlet: "Set-Variable",
        implemented: &["Name", "Value", "PassThru"],
        without_effect: &[
            ("Description", "no view shows it"),
            ("Force", "variables here are never read-only"),
            ("Visibility", "no module hides variables"),
        ],
        rejected: &[
            ("Include", "name the variables themselves"),
            ("Exclude", "name the variables themselves"),
            ("Option", "variables here are never read-only"),
            ("Scope", OTHER_SCOPES),
        ],
        run: Run::Each(set_variable),
    },
    Implementation {
        cmdlet: "Get-Variable",
        implemented: &["Name", "ValueOnly"],
        without_effect: &[],
        rejected: &[
            ("Include", "name the variables themselves"),
            ("Exclude", "name the variables themselves"),
            ("Scope", OTHER_SCOPES),
        ],
        run: Run::Each(get_variable),
    },
    Implementation {
        cmdlet: "Remove-Variable",
        implemented: &["Name"],
        without_effect: &[("Force", "variables here are never read-only")],
        rejected: &[
            ("Include", "name the variables themselves"),
            ("Exclude", "name the variables themselves"),
            ("Scope", OTHER_SCOPES),
        ],
        run: Run::Each(remove_variable),
    },
    Implementation {
        cmdlet: "Clear-Variable",
        implemented: &["Name"],
        without_effect: &[("Force", "variables here are never read-only")],
        rejected: &[
            ("Include", "name the variables themselves"),
            ("Exclude", "name the variables themselves"),
            ("PassThru", "the variable is empty then"),
            ("Scope", OTHER_SCOPES),
        ],
        run: Run::Each(clear_variable),
    },
];

fn shown(name: &str, value: Value) -> Value {
    Value::object("PSVariable", [("Name", Value::text(name)), ("Value", value)])
}

fn set_variable(call: &mut Call<'_>) -> Outcome {
    let value = call.get("Value").unwrap_or(Value::Null);
    for name in call.texts("Name") {
        if call.should_process(&format!("Name: {name}"), "Set variable")? {
            call.session.set_variable(&name, value.clone());
        }
        if call.switch("PassThru") {
            call.write(shown(&name, value.clone()))?;
        }
    }
    Ok(())
}

fn get_variable(call: &mut Call<'_>) -> Outcome {
    let only_value = call.switch("ValueOnly");
    let wanted = match call.texts("Name") {
        names if names.is_empty() => vec!["*".to_owned()],
        names => names,
    };
    for name in wanted {
        let found = match is_pattern(&name) {
            true => {
                let pattern = Wildcard::new(&name);
                call.session
                    .variables()
                    .into_iter()
                    .filter(|(own, _)| pattern.matches(own))
                    .collect()
            }
            false => match call.session.variable(&name) {
                Some(value) => vec![(name, value)],
                None => {
                    call.error(missing(&name))?;
                    continue;
                }
            },
        };
        for (name, value) in found {
            call.write(if only_value { value } else { shown(&name, value) })?;
        }
    }
    Ok(())
}

fn remove_variable(call: &mut Call<'_>) -> Outcome {
    for name in call.texts("Name") {
        if call.should_process(&format!("Name: {name}"), "Remove variable")? && !call.session.remove_variable(&name) {
            call.error(missing(&name))?;
        }
    }
    Ok(())
}

fn clear_variable(call: &mut Call<'_>) -> Outcome {
    for name in call.texts("Name") {
        match call.session.variable(&name) {
            Some(_) if call.should_process(&format!("Name: {name}"), "Clear variable")? => {
                call.session.set_variable(&name, Value::Null);
            }
            Some(_) => {}
            None => call.error(missing(&name))?,
        }
    }
    Ok(())
}

fn missing(name: &str) -> ErrorRecord {
    ErrorRecord::new(
        Category::ObjectNotFound,
        "VariableNotFound",
        format!("Cannot find a variable with the name '{name}'."),
    )
    .about(Value::text(name))
    .exception("ItemNotFoundException")
}
