//! Files and folders that are copied, moved and renamed.

use std::{fs, path::Path};

use super::item::{file_object, missing, paths};
use crate::{
    call::Call,
    cmdlets::{Implementation, Run},
    error::{Category, ErrorRecord, Outcome},
    path::{FilePath, Location, io_error, locate},
    value::{Value, convert},
};

const NO_FILTERS: &str = "name the files themselves, or filter with Where-Object";
const NO_CREDENTIAL: &str = "the drives of files take none, as in Windows";

pub(super) const ALL: &[Implementation] = &[
    Implementation {
        cmdlet: "Copy-Item",
        implemented: &[
            "Path",
            "LiteralPath",
            "Destination",
            "Recurse",
            "PassThru",
            "FromSession",
            "ToSession",
        ],
        without_effect: &[
            ("Force", "files here are never read-only"),
            ("Container", "folders stay folders"),
        ],
        rejected: &[
            ("Filter", NO_FILTERS),
            ("Include", NO_FILTERS),
            ("Exclude", NO_FILTERS),
            ("Credential", NO_CREDENTIAL),
        ],
        run: Run::Each(copy_item),
    },
    Implementation {
        cmdlet: "Move-Item",
        implemented: &["Path", "LiteralPath", "Destination", "PassThru"],
        without_effect: &[("Force", "files here are never read-only")],
        rejected: &[
            ("Filter", NO_FILTERS),
            ("Include", NO_FILTERS),
            ("Exclude", NO_FILTERS),
            ("Credential", NO_CREDENTIAL),
        ],
        run: Run::Each(move_item),
    },
    Implementation {
        cmdlet: "Rename-Item",
        implemented: &["Path", "LiteralPath", "NewName", "PassThru"],
        without_effect: &[("Force", "files here are never read-only")],
        rejected: &[("Credential", NO_CREDENTIAL)],
        run: Run::Each(rename_item),
    },
];

/// The places between which something is copied or moved.
fn from_and_to(call: &mut Call<'_>, path: &str) -> Outcome<(FilePath, FilePath)> {
    let from = place(call, path, "FromSession")?;
    let target = call.text("Destination").unwrap_or_else(|| ".".to_owned());
    let mut to = place(call, &target, "ToSession")?;
    if to.real.is_dir() {
        let name = from.windows.rsplit('\\').next().unwrap_or_default();
        to.real.push(name);
        to.windows = format!(r"{}\{name}", to.windows.trim_end_matches('\\'));
    }
    Ok((from, to))
}

/// A place, on the machine of a session if one is given.
fn place(call: &mut Call<'_>, path: &str, session: &str) -> Outcome<FilePath> {
    let path = match call.get(session) {
        Some(Value::Object(own)) if !path.starts_with(r"\\") => {
            let machine = own
                .get("ComputerName")
                .as_ref()
                .map(convert::to_text)
                .unwrap_or_default();
            match path.split_once(':') {
                Some((drive, rest)) => format!(r"\\{machine}\{drive}${rest}"),
                None => format!(r"\\{machine}\C$\Users\Administrator\{path}"),
            }
        }
        _ => path.to_owned(),
    };
    match locate(call.session, &path).map_err(|record| call.fail(record))? {
        Location::File(place) => Ok(place),
        Location::Drive(drive, _) => {
            let record = ErrorRecord::outside(format!("Copying or moving an item of the drive {drive}:"));
            Err(call.fail(record))
        }
    }
}

fn copy_item(call: &mut Call<'_>) -> Outcome {
    for path in paths(call)? {
        let (from, to) = from_and_to(call, &path)?;
        if !from.real.exists() {
            call.error(missing(&path))?;
            continue;
        }
        let kind = if from.real.is_dir() { "Directory" } else { "File" };
        let target = format!("Item: {} Destination: {}", from.windows, to.windows);
        if !call.should_process(&target, &format!("Copy {kind}"))? {
            continue;
        }
        if let Err(error) = copy(&from.real, &to.real, call.switch("Recurse")) {
            call.error(io_error(&to.windows, &error))?;
            continue;
        }
        if call.switch("PassThru")
            && let Some(object) = file_object(&to)
        {
            call.write(object)?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path, recurse: bool) -> std::io::Result<()> {
    if fs::symlink_metadata(from)?.file_type().is_symlink() {
        return Ok(());
    }
    if !from.is_dir() {
        return fs::copy(from, to).map(|_| ());
    }
    if to.starts_with(from) {
        return Err(std::io::Error::other("a folder cannot be copied into itself"));
    }
    fs::create_dir_all(to)?;
    if recurse {
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()), true)?;
        }
    }
    Ok(())
}

fn move_item(call: &mut Call<'_>) -> Outcome {
    for path in paths(call)? {
        let (from, to) = from_and_to(call, &path)?;
        move_one(call, &path, &from, &to, "Move")?;
    }
    Ok(())
}

fn rename_item(call: &mut Call<'_>) -> Outcome {
    let name = call.text("NewName").unwrap_or_default();
    for path in paths(call)? {
        let from = place(call, &path, "FromSession")?;
        let folder = from
            .windows
            .rsplit_once('\\')
            .map_or("C:", |(folder, _)| folder)
            .to_owned();
        let to = place(call, &format!(r"{folder}\{name}"), "ToSession")?;
        move_one(call, &path, &from, &to, "Rename")?;
    }
    Ok(())
}

fn move_one(call: &mut Call<'_>, path: &str, from: &FilePath, to: &FilePath, verb: &str) -> Outcome {
    if !from.real.exists() {
        return call.error(missing(path));
    }
    if to.real.exists() {
        let text = "Cannot create a file when that file already exists.";
        return call
            .error(ErrorRecord::new(Category::WriteError, "MoveFileInfoItemIOError", text).about(Value::text(path)));
    }
    let kind = if from.real.is_dir() { "Directory" } else { "File" };
    let target = format!("Item: {} Destination: {}", from.windows, to.windows);
    if !call.should_process(&target, &format!("{verb} {kind}"))? {
        return Ok(());
    }
    if let Err(error) = fs::rename(&from.real, &to.real) {
        return call.error(io_error(&to.windows, &error));
    }
    match file_object(to) {
        Some(object) if call.switch("PassThru") => call.write(object),
        _ => Ok(()),
    }
}
