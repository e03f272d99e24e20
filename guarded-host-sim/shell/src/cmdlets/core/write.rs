//! Cmdlets that write: to the pipeline, to the console, to the streams.

use crate::{
    call::Call,
    cmdlets::{Implementation, Run},
    error::{Category, ErrorRecord, Outcome},
    value::{Value, convert},
};

pub(super) const ALL: &[Implementation] = &[
    Implementation {
        cmdlet: "Write-Output",
        implemented: &["InputObject", "NoEnumerate"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(write_output),
    },
    Implementation {
        cmdlet: "Write-Host",
        implemented: &["Object", "NoNewline", "Separator"],
        without_effect: &[
            ("ForegroundColor", "text keeps the terminal's own colour"),
            ("BackgroundColor", "text keeps the terminal's own colour"),
        ],
        rejected: &[],
        run: Run::Each(write_host),
    },
    Implementation {
        cmdlet: "Write-Warning",
        implemented: &["Message"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(write_warning),
    },
    Implementation {
        cmdlet: "Write-Verbose",
        implemented: &["Message"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(write_verbose),
    },
    Implementation {
        cmdlet: "Write-Error",
        implemented: &[
            "Message",
            "Category",
            "ErrorId",
            "TargetObject",
            "ErrorRecord",
            "Exception",
        ],
        without_effect: &[
            ("RecommendedAction", "no view shows it"),
            ("CategoryActivity", "the cmdlet's name stands there"),
            ("CategoryReason", "the exception's type stands there"),
            ("CategoryTargetName", "the target's text stands there"),
            ("CategoryTargetType", "the target's type stands there"),
        ],
        rejected: &[],
        run: Run::Each(write_error),
    },
];

fn write_output(call: &mut Call<'_>) -> Outcome {
    let value = call.get("InputObject").unwrap_or(Value::Null);
    match call.switch("NoEnumerate") {
        true => call.write(value),
        false => call.write_all(value.each()),
    }
}

fn write_host(call: &mut Call<'_>) -> Outcome {
    let separator = call
        .get("Separator")
        .map_or_else(|| " ".to_owned(), |value| convert::to_text(&value));
    let items = call.get("Object").map(|value| value.each()).unwrap_or_default();
    let texts: Vec<String> = items.iter().map(convert::to_text).collect();
    let mut text = texts.join(&separator);
    if !call.switch("NoNewline") {
        text.push('\n');
    }
    call.session.put(&text);
    Ok(())
}

fn write_warning(call: &mut Call<'_>) -> Outcome {
    let text = call.text("Message").unwrap_or_default();
    call.warning(&text)
}

fn write_verbose(call: &mut Call<'_>) -> Outcome {
    let text = call.text("Message").unwrap_or_default();
    call.verbose(&text);
    Ok(())
}

fn write_error(call: &mut Call<'_>) -> Outcome {
    let text = ["Message", "ErrorRecord", "Exception"]
        .iter()
        .find_map(|name| call.text(name))
        .unwrap_or_default();
    let id = call
        .text("ErrorId")
        .unwrap_or_else(|| "Microsoft.PowerShell.Commands.WriteErrorException".to_owned());
    let mut record = ErrorRecord::new(Category::NotSpecified, &id, text).exception("WriteErrorException");
    record.target = call.get("TargetObject");
    if let Some(category) = call.text("Category").and_then(|name| category(&name)) {
        record.category = category;
    }
    record.source = "Write-Error".to_owned();
    call.error(record)
}

fn category(name: &str) -> Option<Category> {
    use Category as Kind;
    let all = [
        Kind::NotSpecified,
        Kind::OpenError,
        Kind::DeviceError,
        Kind::InvalidArgument,
        Kind::InvalidData,
        Kind::InvalidOperation,
        Kind::InvalidResult,
        Kind::InvalidType,
        Kind::MetadataError,
        Kind::NotImplemented,
        Kind::NotInstalled,
        Kind::ObjectNotFound,
        Kind::OperationStopped,
        Kind::OperationTimeout,
        Kind::PermissionDenied,
        Kind::ReadError,
        Kind::ResourceBusy,
        Kind::ResourceExists,
        Kind::ResourceUnavailable,
        Kind::SecurityError,
        Kind::WriteError,
        Kind::ConnectionError,
        Kind::AuthenticationError,
        Kind::LimitsExceeded,
        Kind::NotEnabled,
    ];
    all.into_iter()
        .find(|one| format!("{one:?}").eq_ignore_ascii_case(name))
}
