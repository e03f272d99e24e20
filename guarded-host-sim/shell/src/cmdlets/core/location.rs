//! Paths as text, and where one is.

use crate::{
    call::Call,
    cmdlets::{Implementation, Run},
    error::Outcome,
    path::{Location, absolute, locate},
    value::{Object, Value},
};

const NO_CREDENTIAL: &str = "the drives of files take none, as in Windows";
const NO_STACK: &str = "there is no stack of places";

pub(super) const ALL: &[Implementation] = &[
    Implementation {
        cmdlet: "Join-Path",
        implemented: &["Path", "ChildPath", "Resolve"],
        without_effect: &[],
        rejected: &[("Credential", NO_CREDENTIAL)],
        run: Run::Each(join_path),
    },
    Implementation {
        cmdlet: "Split-Path",
        implemented: &[
            "Path",
            "LiteralPath",
            "Parent",
            "Leaf",
            "NoQualifier",
            "Qualifier",
            "IsAbsolute",
            "Resolve",
        ],
        without_effect: &[],
        rejected: &[("Credential", NO_CREDENTIAL)],
        run: Run::Each(split_path),
    },
    Implementation {
        cmdlet: "Resolve-Path",
        implemented: &["Path", "LiteralPath"],
        without_effect: &[],
        rejected: &[("Relative", "paths are given whole"), ("Credential", NO_CREDENTIAL)],
        run: Run::Each(resolve_path),
    },
    Implementation {
        cmdlet: "Get-Location",
        implemented: &[],
        without_effect: &[],
        rejected: &[
            ("PSProvider", "there is one place only"),
            ("PSDrive", "there is one place only"),
            ("Stack", NO_STACK),
            ("StackName", NO_STACK),
        ],
        run: Run::Each(|call| {
            let path = call.session.location().to_owned();
            call.write(path_info(&path))
        }),
    },
    Implementation {
        cmdlet: "Set-Location",
        implemented: &["Path", "LiteralPath", "PassThru"],
        without_effect: &[],
        rejected: &[("StackName", NO_STACK)],
        run: Run::Each(set_location),
    },
];

fn path_info(path: &str) -> Value {
    let object = Object::new("PathInfo", [("Path", Value::text(path))]);
    object.hidden.borrow_mut().set("ToString", Value::text(path));
    Value::Object(std::rc::Rc::new(object))
}

fn join_path(call: &mut Call<'_>) -> Outcome {
    let child = call.text("ChildPath").unwrap_or_default();
    let resolve = call.switch("Resolve");
    for path in call.texts("Path") {
        let joined = format!(
            r"{}\{}",
            path.trim_end_matches(['\\', '/']),
            child.trim_start_matches(['\\', '/'])
        );
        if resolve {
            let there = matches!(locate(call.session, &joined), Ok(Location::File(place)) if place.real.exists());
            if !there {
                call.error(super::item::missing(&joined))?;
                continue;
            }
        }
        call.write(Value::text(joined))?;
    }
    Ok(())
}

fn split_path(call: &mut Call<'_>) -> Outcome {
    let given: Vec<String> = call
        .texts("Path")
        .into_iter()
        .chain(call.texts("LiteralPath"))
        .collect();
    for path in given {
        let path = match call.switch("Resolve") {
            true => absolute(call.session, &path).map_err(|record| call.fail(record))?,
            false => path,
        };
        let (qualifier, rest) = match path.split_once(':') {
            Some((drive, rest)) => (format!("{drive}:"), rest.to_owned()),
            None => (String::new(), path.clone()),
        };
        let at = path.rfind(['\\', '/']);
        let value = match () {
            () if call.switch("Leaf") => Value::text(at.and_then(|at| path.get(at + 1..)).unwrap_or(&path)),
            () if call.switch("Qualifier") => Value::text(qualifier),
            () if call.switch("NoQualifier") => Value::text(rest),
            () if call.switch("IsAbsolute") => Value::Bool(!qualifier.is_empty() || path.starts_with(r"\\")),
            () => {
                let _parent = call.switch("Parent");
                let parent = at.and_then(|at| path.get(..at)).unwrap_or_default();
                Value::text(if parent.ends_with(':') {
                    format!("{parent}\\")
                } else {
                    parent.to_owned()
                })
            }
        };
        call.write(value)?;
    }
    Ok(())
}

fn resolve_path(call: &mut Call<'_>) -> Outcome {
    for path in super::item::paths(call)? {
        match locate(call.session, &path) {
            Ok(Location::File(place)) if place.real.exists() => call.write(path_info(&place.windows))?,
            Ok(_) => call.error(super::item::missing(&path))?,
            Err(record) => call.error(record)?,
        }
    }
    Ok(())
}

fn set_location(call: &mut Call<'_>) -> Outcome {
    let wanted = call.text("Path").or_else(|| call.text("LiteralPath"));
    let wanted = wanted.unwrap_or_else(|| crate::path::HOME.to_owned());
    let whole = match locate(call.session, &wanted) {
        Ok(Location::File(place)) if place.real.is_dir() => place.windows,
        Ok(Location::File(_)) => return call.error(super::item::missing(&wanted)),
        Ok(Location::Drive(..)) => absolute(call.session, &wanted).map_err(|record| call.fail(record))?,
        Err(record) => return call.error(record),
    };
    call.session.set_location(whole.clone());
    match call.switch("PassThru") {
        true => call.write(path_info(&whole)),
        false => Ok(()),
    }
}
