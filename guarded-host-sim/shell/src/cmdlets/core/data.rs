//! Cmdlets about values: JSON, secrets, dates, questions.

use std::{rc::Rc, time::Duration};

use crate::{
    call::Call,
    cmdlets::{Implementation, Run},
    error::{Category, ErrorRecord, Outcome},
    eval::{credential, date_in},
    format::{from_json, to_json},
    value::{Date, Secret, Value, convert},
};

pub(super) const ALL: &[Implementation] = &[
    Implementation {
        cmdlet: "ConvertTo-Json",
        implemented: &["InputObject", "Depth", "Compress"],
        without_effect: &[],
        rejected: &[],
        run: Run::All(convert_to_json),
    },
    Implementation {
        cmdlet: "ConvertFrom-Json",
        implemented: &["InputObject"],
        without_effect: &[],
        rejected: &[],
        run: Run::All(convert_from_json),
    },
    Implementation {
        cmdlet: "ConvertTo-SecureString",
        implemented: &["String", "AsPlainText", "Force"],
        without_effect: &[],
        rejected: &[
            (
                "SecureKey",
                "encrypted standard strings belong to one Windows user and are not made here",
            ),
            (
                "Key",
                "encrypted standard strings belong to one Windows user and are not made here",
            ),
        ],
        run: Run::Each(convert_to_secure_string),
    },
    Implementation {
        cmdlet: "Get-Credential",
        implemented: &["Credential", "UserName", "Message"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(get_credential),
    },
    Implementation {
        cmdlet: "Read-Host",
        implemented: &["Prompt", "AsSecureString"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(read_host),
    },
    Implementation {
        cmdlet: "Get-Date",
        implemented: &["Date", "Year", "Month", "Day", "Hour", "Minute", "Second", "Format"],
        without_effect: &[("Millisecond", "times here are whole seconds")],
        rejected: &[
            ("DisplayHint", "a date is always drawn with its time"),
            ("UFormat", "give -Format, with a pattern as .NET has it"),
        ],
        run: Run::Each(get_date),
    },
    Implementation {
        cmdlet: "Start-Sleep",
        implemented: &["Seconds", "Milliseconds"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(start_sleep),
    },
];

fn convert_to_json(call: &mut Call<'_>, items: Vec<Value>) -> Outcome {
    let depth = call
        .integer("Depth")
        .and_then(|depth| usize::try_from(depth).ok())
        .unwrap_or(2);
    let text = to_json(&Value::from_output(items), depth, call.switch("Compress"));
    call.write(Value::text(text))
}

fn convert_from_json(call: &mut Call<'_>, items: Vec<Value>) -> Outcome {
    let lines: Vec<String> = items.iter().map(convert::to_text).collect();
    match from_json(&lines.join("\n")) {
        Ok(value) => call.write_all(value.each()),
        Err(error) => Err(call.fail(ErrorRecord::new(
            Category::NotSpecified,
            "System.ArgumentException",
            format!("Invalid JSON: {error}."),
        ))),
    }
}

fn convert_to_secure_string(call: &mut Call<'_>) -> Outcome {
    let text = call.text("String").unwrap_or_default();
    let (plain, _force) = (call.switch("AsPlainText"), call.switch("Force"));
    if !plain {
        return Err(call.fail(
            ErrorRecord::new(
                Category::InvalidArgument,
                "ImportSecureString_InvalidArgument",
                "Encrypted standard strings belong to one Windows user and are not read here. For text as it is, give \
                 -AsPlainText -Force.",
            )
            .exception("FormatException"),
        ));
    }
    call.write(Value::Secret(Rc::new(Secret::new(text))))
}

/// A stand-in for the dialog: asks for the password in the console. In a script that nobody watches there is no
/// dialog either.
fn get_credential(call: &mut Call<'_>) -> Outcome {
    if let Some(Value::Object(given)) = call.get("Credential").filter(|v| matches!(v, Value::Object(_))) {
        return call.write(Value::Object(given));
    }
    let user = call.text("UserName").or_else(|| call.text("Credential"));
    if let Some(message) = call.text("Message") {
        call.session
            .say(crate::console::Stream::Output, &format!("\n{message}"));
    }
    let user = match user {
        Some(user) => Some(user),
        None => call.session.ask("User: "),
    };
    let password = call
        .session
        .ask_secret(&format!("Password for user {}: ", user.as_deref().unwrap_or_default()));
    match (user, password) {
        (Some(user), Some(password)) => call.write(credential(&user, Rc::new(Secret::new(password)))),
        _ => Err(call.fail(ErrorRecord::new(
            Category::InvalidOperation,
            "NonInteractive",
            "Nobody can be asked for a credential here. Make one: New-Object PSCredential 'user', (ConvertTo-SecureString \
             'password' -AsPlainText -Force)",
        ))),
    }
}

fn read_host(call: &mut Call<'_>) -> Outcome {
    let prompt = call
        .get("Prompt")
        .map(|value| convert::to_text(&value) + ": ")
        .unwrap_or_default();
    let answer = match call.switch("AsSecureString") {
        true => call
            .session
            .ask_secret(&prompt)
            .map(|text| Value::Secret(Rc::new(Secret::new(text)))),
        false => call.session.ask(&prompt).map(Value::text),
    };
    match answer {
        Some(answer) => call.write(answer),
        None => Err(call.fail(ErrorRecord::new(
            Category::InvalidOperation,
            "InvalidOperation",
            "PowerShell is in NonInteractive mode. Read and Prompt functionality is not available.",
        ))),
    }
}

fn get_date(call: &mut Call<'_>) -> Outcome {
    let date = match call.get("Date") {
        Some(Value::Date(date)) => date,
        _ => call.now(),
    };
    let ((year, month, day), (hour, minute, second)) = (date.calendar(), date.clock());
    let part = |name: &str, own: i64| call.integer(name).unwrap_or(own);
    let seconds = part("Hour", hour) * 3600 + part("Minute", minute) * 60 + part("Second", second);
    let found = Date::from_calendar(part("Year", year), part("Month", month), part("Day", day), seconds);
    let Some(date) = found else {
        return Err(call.fail(ErrorRecord::new(
            Category::InvalidArgument,
            "InvalidDate",
            "Year, Month, and Day parameters describe an un-representable DateTime.",
        )));
    };
    match call.text("Format") {
        Some(style) => call.write(Value::text(date_in(date, &style))),
        None => call.write(Value::Date(date)),
    }
}

fn start_sleep(call: &mut Call<'_>) -> Outcome {
    let number = |name: &str| call.integer(name).and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
    let time = Duration::from_secs(number("Seconds")).saturating_add(Duration::from_millis(number("Milliseconds")));
    call.world().pause(time);
    Ok(())
}
