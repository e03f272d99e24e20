//! Paths as Windows writes them, and the real files that stand for those of a simulated machine. A machine's drives are
//! folders below its own; no path leads out of them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    error::{Category, ErrorRecord},
    session::Session,
    value::Value,
};

/// What a path leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A file or a folder, or a place where one could be.
    File(FilePath),
    /// Another drive of PowerShell, with what follows its colon: `cert` and `LocalMachine\My`.
    Drive(String, String),
}

/// A place in a machine's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePath {
    /// As Windows writes it, whole: `C:\temp\a.xml`.
    pub windows: String,
    /// The real file.
    pub real: PathBuf,
}

/// Where a path leads, seen from the place where the shell is.
///
/// # Errors
/// There is no such drive or machine, or the path has characters that Windows refuses.
pub fn locate(session: &Session, text: &str) -> Result<Location, ErrorRecord> {
    let whole = absolute(session, text)?;
    if let Some(rest) = whole.strip_prefix(r"\\") {
        let (server, rest) = rest.split_once('\\').unwrap_or((rest, ""));
        let (share, rest) = rest.split_once('\\').unwrap_or((rest, ""));
        let machine = session.find_machine(server);
        let drive = share.strip_suffix('$').filter(|d| is_letter(d));
        return match (machine, drive) {
            (Some(machine), Some(drive)) => real(
                &machine.folder,
                &drive.to_ascii_uppercase(),
                rest,
                &format!(r"\\{server}\{share}"),
            ),
            _ => Err(ErrorRecord::new(
                Category::ObjectNotFound,
                "PathNotFound",
                format!(
                    "Cannot find path '{text}' because it does not exist. Machines here share their drives as \
                     \\\\NAME\\C$."
                ),
            )),
        };
    }
    let (drive, rest) = whole.split_once(':').unwrap_or(("C", &whole));
    let rest = rest.trim_start_matches('\\');
    if is_letter(drive) {
        let drive = drive.to_ascii_uppercase();
        return real(&session.machine().folder, &drive, rest, &format!("{drive}:"));
    }
    match DRIVES.contains(&drive.to_ascii_lowercase().as_str()) {
        true => Ok(Location::Drive(drive.to_ascii_lowercase(), rest.to_owned())),
        false => Err(ErrorRecord::new(
            Category::ObjectNotFound,
            "DriveNotFound",
            format!("Cannot find drive. A drive with the name '{drive}' does not exist."),
        )
        .exception("DriveNotFoundException")
        .about(Value::text(drive))),
    }
}

/// The whole path, with `.`, `..` and `~` resolved.
///
/// # Errors
/// A drive's name is empty.
pub fn absolute(session: &Session, text: &str) -> Result<String, ErrorRecord> {
    let text = text.trim().replace('/', "\\");
    let text = match text.rsplit_once("::") {
        Some((_, rest)) => rest.to_owned(),
        None => text,
    };
    if text.starts_with(r"\\") {
        return Ok(text);
    }
    let location = session.location();
    let (drive, rest) = match text.split_once(':') {
        Some((drive, rest)) => (drive.to_owned(), rest.to_owned()),
        None => {
            let (drive, here) = location.split_once(':').unwrap_or(("C", location));
            match text.strip_prefix('~') {
                Some(rest) => ("C".to_owned(), format!(r"{}\{rest}", &HOME[2..])),
                None if text.starts_with('\\') => (drive.to_owned(), text),
                None => (drive.to_owned(), format!(r"{here}\{text}")),
            }
        }
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in rest.split('\\') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            other => parts.push(other),
        }
    }
    Ok(format!(r"{drive}:\{}", parts.join("\\")))
}

/// The real file below a machine's folder. Names are found in any case; a link leads nowhere.
fn real(folder: &Path, drive: &str, rest: &str, windows: &str) -> Result<Location, ErrorRecord> {
    let mut real = folder.join(drive);
    let mut shown = windows.to_owned();
    for part in rest.split('\\').filter(|part| !part.is_empty()) {
        if part.contains(['<', '>', '"', '|', '?', '*', ':', '\0']) || part == ".." {
            return Err(ErrorRecord::new(
                Category::InvalidArgument,
                "IllegalCharactersInPath",
                format!("Illegal characters in path: '{part}'."),
            ));
        }
        // A name that does not end in a dot or blank is what Windows makes of it.
        let part = part.trim_end_matches(['.', ' ']);
        let found = own_name(&real, part);
        real.push(&found);
        shown.push('\\');
        shown.push_str(&found);
        let link = fs::symlink_metadata(&real).is_ok_and(|data| data.file_type().is_symlink());
        if link {
            return Err(ErrorRecord::new(
                Category::PermissionDenied,
                "UnauthorizedAccess",
                format!("Access to the path '{shown}' is denied: it is a link."),
            ));
        }
    }
    if rest.is_empty() {
        shown.push('\\');
    }
    Ok(Location::File(FilePath { windows: shown, real }))
}

/// The name of an entry as it is written, if it differs in case alone.
fn own_name(folder: &Path, name: &str) -> String {
    if folder.join(name).exists() {
        return name.to_owned();
    }
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names
        .find(|own| own.eq_ignore_ascii_case(name))
        .unwrap_or_else(|| name.to_owned())
}

/// What went wrong with a file, in PowerShell's words.
pub fn io_error(path: &str, error: &io::Error) -> ErrorRecord {
    let about = Value::text(path);
    match error.kind() {
        io::ErrorKind::NotFound => ErrorRecord::new(
            Category::ObjectNotFound,
            "PathNotFound",
            format!("Cannot find path '{path}' because it does not exist."),
        )
        .about(about),
        io::ErrorKind::AlreadyExists => ErrorRecord::new(
            Category::ResourceExists,
            "NewItemIOError",
            format!("The file '{path}' already exists."),
        )
        .about(about),
        io::ErrorKind::PermissionDenied | io::ErrorKind::IsADirectory => ErrorRecord::new(
            Category::PermissionDenied,
            "UnauthorizedAccessError",
            format!("Access to the path '{path}' is denied."),
        )
        .about(about),
        _ => ErrorRecord::new(Category::ReadError, "IOError", format!("The file '{path}': {error}.")).about(about),
    }
}

fn is_letter(drive: &str) -> bool {
    drive.len() == 1 && drive.bytes().all(|b| b.is_ascii_alphabetic())
}

/// Where an administrator's own files are.
pub const HOME: &str = r"C:\Users\Administrator";
/// Drives that are none of files.
const DRIVES: [&str; 7] = ["cert", "env", "hklm", "hkcu", "variable", "function", "alias"];
