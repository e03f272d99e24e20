//! Files and folders, and what other drives have.

use std::{fs, path::Path};

use sha2::Digest;

use crate::{
    call::Call,
    cmdlets::{Implementation, Run},
    error::{Category, ErrorRecord, Outcome},
    path::{FilePath, Location, io_error, locate},
    registry,
    value::{Date, Object, Value, convert},
    wildcard::{Wildcard, is_pattern},
};

const NO_FILTERS: &str = "name the files themselves, or filter with Where-Object";
const NO_CREDENTIAL: &str = "the drives of files take none, as in Windows";

pub(super) const ALL: &[Implementation] = &[
    Implementation {
        cmdlet: "Get-ChildItem",
        implemented: &[
            "Path",
            "LiteralPath",
            "Filter",
            "Include",
            "Exclude",
            "Recurse",
            "Name",
            "Directory",
            "File",
        ],
        without_effect: &[("Force", "files here are never hidden")],
        rejected: &[
            ("Depth", "with -Recurse every depth is gone to"),
            ("Attributes", "files here have no attributes"),
            ("Hidden", "files here are never hidden"),
            ("ReadOnly", "files here are never read-only"),
            ("System", "files here have no attributes"),
        ],
        run: Run::Each(get_child_item),
    },
    Implementation {
        cmdlet: "Get-Item",
        implemented: &["Path", "LiteralPath"],
        without_effect: &[("Force", "files here are never hidden")],
        rejected: &[
            ("Filter", NO_FILTERS),
            ("Include", NO_FILTERS),
            ("Exclude", NO_FILTERS),
            ("Credential", NO_CREDENTIAL),
            ("Stream", "files here have no alternate streams"),
            ("CodeSigningCert", "filter certificates with Where-Object"),
            ("DocumentEncryptionCert", "filter certificates with Where-Object"),
            ("SSLServerAuthentication", "filter certificates with Where-Object"),
            ("DnsName", "filter certificates with Where-Object"),
            ("Eku", "filter certificates with Where-Object"),
            ("ExpiringInDays", "filter certificates with Where-Object"),
        ],
        run: Run::Each(get_item),
    },
    Implementation {
        cmdlet: "New-Item",
        implemented: &["Path", "Name", "ItemType", "Value", "Force"],
        without_effect: &[],
        rejected: &[
            ("Credential", NO_CREDENTIAL),
            ("ConnectionURI", "there is no WSMan drive"),
            ("OptionSet", "there is no WSMan drive"),
            ("Authentication", "there is no WSMan drive"),
            ("CertificateThumbprint", "there is no WSMan drive"),
            ("SessionOption", "there is no WSMan drive"),
            ("Port", "there is no WSMan drive"),
            ("ApplicationName", "there is no WSMan drive"),
            ("UseSSL", "there is no WSMan drive"),
            ("Options", "there is no alias drive to add to"),
        ],
        run: Run::Each(new_item),
    },
    Implementation {
        cmdlet: "Remove-Item",
        implemented: &["Path", "LiteralPath", "Recurse", "DeleteKey"],
        without_effect: &[("Force", "files here are never read-only")],
        rejected: &[
            ("Filter", NO_FILTERS),
            ("Include", NO_FILTERS),
            ("Exclude", NO_FILTERS),
            ("Credential", NO_CREDENTIAL),
            ("Stream", "files here have no alternate streams"),
        ],
        run: Run::Each(remove_item),
    },
    Implementation {
        cmdlet: "Test-Path",
        implemented: &["Path", "LiteralPath", "PathType", "IsValid"],
        without_effect: &[],
        rejected: &[
            ("Filter", NO_FILTERS),
            ("Include", NO_FILTERS),
            ("Exclude", NO_FILTERS),
            ("Credential", NO_CREDENTIAL),
            ("OlderThan", "compare LastWriteTime instead"),
            ("NewerThan", "compare LastWriteTime instead"),
        ],
        run: Run::Each(test_path),
    },
    Implementation {
        cmdlet: "Get-FileHash",
        implemented: &["Path", "LiteralPath", "Algorithm"],
        without_effect: &[],
        rejected: &[("InputStream", "there are no streams; give a path")],
        run: Run::Each(get_file_hash),
    },
];

/// The given paths, patterns resolved to what is there; a path without a pattern stays as it is.
pub(super) fn paths(call: &mut Call<'_>) -> Outcome<Vec<String>> {
    let mut all = call.texts("LiteralPath");
    for path in call.texts("Path") {
        let last = path.rsplit(['\\', '/']).next().unwrap_or_default();
        if !is_pattern(last) {
            all.push(path);
            continue;
        }
        let folder = path.get(..path.len() - last.len()).unwrap_or_default();
        let folder = if folder.is_empty() { "." } else { folder };
        let pattern = Wildcard::new(last);
        if let Location::File(place) = locate(call.session, folder).map_err(|record| call.fail(record))? {
            let mut names: Vec<String> = names_in(&place.real);
            names.retain(|name| pattern.matches(name));
            all.extend(
                names
                    .into_iter()
                    .map(|name| format!(r"{}\{name}", place.windows.trim_end_matches('\\'))),
            );
        } else {
            all.push(path);
        }
    }
    Ok(all)
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort_by_key(|name| name.to_lowercase());
    names
}

/// A file or a folder as an object.
pub(super) fn file_object(place: &FilePath) -> Option<Value> {
    let data = fs::symlink_metadata(&place.real)
        .ok()
        .filter(|data| !data.file_type().is_symlink())?;
    let name = place.windows.rsplit('\\').next().unwrap_or(&place.windows);
    let folder = place.windows.rsplit_once('\\').map_or("", |(folder, _)| folder);
    let folder = if folder.ends_with(':') {
        format!("{folder}\\")
    } else {
        folder.to_owned()
    };
    let modified = data
        .modified()
        .ok()
        .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    let modified = Date(
        modified
            .and_then(|time| i64::try_from(time.as_secs()).ok())
            .unwrap_or_default(),
    );
    let directory = data.is_dir();
    let short = {
        let ((year, month, day), (hour, minute, _)) = (modified.calendar(), modified.clock());
        let half = if hour < 12 { "AM" } else { "PM" };
        let twelve = if hour % 12 == 0 { 12 } else { hour % 12 };
        format!(
            "{:>10}{:>11}",
            format!("{month}/{day}/{year}"),
            format!("{twelve}:{minute:02} {half}")
        )
    };
    let length = match directory {
        true => Value::Null,
        false => Value::Int(i64::try_from(data.len()).unwrap_or(i64::MAX)),
    };
    let (stem, extension) = match name.rfind('.').filter(|_| !directory) {
        Some(at) => (name.get(..at).unwrap_or(name), name.get(at..).unwrap_or_default()),
        None => (name, ""),
    };
    let object = Object::new(
        if directory { "DirectoryInfo" } else { "FileInfo" },
        [
            ("Mode", Value::text(if directory { "d-----" } else { "-a----" })),
            ("LastWriteTime", Value::Date(modified)),
            ("Length", length),
            ("Name", Value::text(name)),
            ("BaseName", Value::text(stem)),
            ("Extension", Value::text(extension)),
            ("FullName", Value::text(&place.windows)),
            ("DirectoryName", Value::text(&folder)),
            ("Exists", Value::Bool(true)),
            ("PSIsContainer", Value::Bool(directory)),
            (
                "PSPath",
                Value::text(format!("Microsoft.PowerShell.Core\\FileSystem::{}", place.windows)),
            ),
        ],
    );
    let mut object = object;
    object.types.push("FileSystemInfo".into());
    let mut hidden = object.hidden.borrow_mut();
    hidden.set("ToString", Value::text(&place.windows));
    hidden.set("ShortTime", Value::text(short));
    drop(hidden);
    Some(Value::Object(std::rc::Rc::new(object)))
}

fn get_child_item(call: &mut Call<'_>) -> Outcome {
    let wanted = match (call.texts("Path"), call.texts("LiteralPath")) {
        (path, literal) if path.is_empty() && literal.is_empty() => vec![".".to_owned()],
        _ => paths(call)?,
    };
    let recurse = call.switch("Recurse");
    for path in wanted {
        match locate(call.session, &path) {
            Err(record) => call.error(record)?,
            Ok(Location::Drive(drive, rest)) => other_children(call, &drive, &rest, recurse)?,
            Ok(Location::File(place)) if place.real.is_dir() => list_folder(call, &place, recurse)?,
            Ok(Location::File(place)) => match file_object(&place) {
                Some(object) => call.write(object)?,
                None => call.error(missing(&path))?,
            },
        }
    }
    Ok(())
}

fn list_folder(call: &mut Call<'_>, folder: &FilePath, recurse: bool) -> Outcome {
    let mut inner = Vec::new();
    for name in names_in(&folder.real) {
        let place = FilePath {
            windows: format!(r"{}\{name}", folder.windows.trim_end_matches('\\')),
            real: folder.real.join(&name),
        };
        let directory = place.real.is_dir();
        let any = |patterns: &[String]| patterns.iter().any(|pattern| Wildcard::new(pattern).matches(&name));
        let (include, exclude) = (call.texts("Include"), call.texts("Exclude"));
        let fits = call
            .text("Filter")
            .is_none_or(|filter| Wildcard::new(&filter).matches(&name))
            && (include.is_empty() || any(&include))
            && !any(&exclude)
            && (!call.switch("Directory") || directory)
            && (!call.switch("File") || !directory);
        if fits && let Some(object) = file_object(&place) {
            match call.switch("Name") {
                true => call.write(Value::text(&name))?,
                false => call.write(object)?,
            }
        }
        let link = fs::symlink_metadata(&place.real).is_ok_and(|data| data.file_type().is_symlink());
        if directory && recurse && !link {
            inner.push(place);
        }
    }
    inner.iter().try_for_each(|place| list_folder(call, place, true))
}

fn other_children(call: &mut Call<'_>, drive: &str, rest: &str, recurse: bool) -> Outcome {
    let machine = call.machine().clone();
    if matches!(drive, "hklm" | "hkcu") {
        let names = registry::children(&machine, &format!(r"{drive}\{rest}")).map_err(|record| call.fail(record))?;
        return call.write_all(
            names
                .into_iter()
                .map(|name| Value::object("RegistryKey", [("Name", Value::text(name))])),
        );
    }
    if drive == "env" {
        let environment = &call.session.runspace().environment;
        let mut all: Vec<(String, String)> = environment.values().cloned().collect();
        all.sort();
        let entries = all.into_iter().map(|(name, value)| {
            Value::object(
                "DictionaryEntry",
                [("Name", Value::text(name)), ("Value", Value::text(value))],
            )
        });
        return call.write_all(entries);
    }
    let world = call.world();
    let children = match world.drive(drive) {
        Some(own) => own.children(&machine, rest, recurse),
        None => Err(ErrorRecord::outside(format!("Listing the drive {drive}:"))),
    };
    match children {
        Ok(children) => call.write_all(children),
        Err(record) => call.error(record),
    }
}

/// What a path names; nothing, if there is none.
fn item(call: &mut Call<'_>, path: &str) -> Result<Option<Value>, ErrorRecord> {
    match locate(call.session, path)? {
        Location::File(place) => Ok(file_object(&place)),
        Location::Drive(drive, rest) => {
            let machine = call.machine().clone();
            match drive.as_str() {
                "hklm" | "hkcu" => {
                    let found = registry::exists(&machine, &format!(r"{drive}\{rest}"))?;
                    Ok(found.then(|| Value::object("RegistryKey", [("Name", Value::text(path))])))
                }
                "env" => Ok(call.session.environment(&rest).map(|value| {
                    Value::object(
                        "DictionaryEntry",
                        [("Name", Value::text(&rest)), ("Value", Value::text(value))],
                    )
                })),
                "variable" => Ok(call.session.variable(&rest)),
                "function" => Ok(call.session.function(&rest)),
                _ => match call.world().drive(&drive) {
                    Some(own) => own.item(&machine, &rest),
                    None => Err(ErrorRecord::outside(format!("An item of the drive {drive}:"))),
                },
            }
        }
    }
}

fn get_item(call: &mut Call<'_>) -> Outcome {
    for path in paths(call)? {
        match item(call, &path) {
            Ok(Some(object)) => call.write(object)?,
            Ok(None) => call.error(missing(&path))?,
            Err(record) => call.error(record)?,
        }
    }
    Ok(())
}

fn new_item(call: &mut Call<'_>) -> Outcome {
    let kind = call
        .text("ItemType")
        .unwrap_or_else(|| "File".to_owned())
        .to_ascii_lowercase();
    let force = call.switch("Force");
    let name = call.text("Name");
    let mut paths = call.texts("Path");
    if paths.is_empty() {
        paths.push(".".to_owned());
    }
    for path in paths {
        let path = match &name {
            Some(name) => format!(r"{path}\{name}"),
            None => path,
        };
        let place = match locate(call.session, &path).map_err(|record| call.fail(record))? {
            Location::File(place) => place,
            Location::Drive(drive, rest) if matches!(drive.as_str(), "hklm" | "hkcu") => {
                if call.should_process(&path, "Create Key")? {
                    let machine = call.machine().clone();
                    registry::create(&machine, &format!(r"{drive}\{rest}")).map_err(|record| call.fail(record))?;
                    call.write(Value::object("RegistryKey", [("Name", Value::text(&path))]))?;
                }
                continue;
            }
            Location::Drive(drive, rest) if drive == "env" => {
                let value = call.text("Value").unwrap_or_default();
                call.session.set_environment(&rest, &value);
                continue;
            }
            Location::Drive(drive, _) => {
                let record = ErrorRecord::outside(format!("Making an item of the drive {drive}:"));
                return Err(call.fail(record));
            }
        };
        let (action, folder) = match kind.as_str() {
            "file" => ("Create File", false),
            "directory" | "container" => ("Create Directory", true),
            other => return Err(call.fail(ErrorRecord::outside(format!("An item of the type {other}")))),
        };
        if !call.should_process(&format!("Destination: {}", place.windows), action)? {
            continue;
        }
        let exists = place.real.exists();
        let result = match (folder, exists, force) {
            (true, true, true) if place.real.is_dir() => Ok(()),
            (_, true, false) | (true, true, _) => {
                let text = match place.real.is_dir() {
                    true => format!("An item with the specified name {} already exists.", place.windows),
                    false => format!("The file '{}' already exists.", place.windows),
                };
                let id = if folder { "DirectoryExist" } else { "NewItemIOError" };
                let record = ErrorRecord::new(Category::ResourceExists, id, text).about(Value::text(&place.windows));
                call.error(record)?;
                continue;
            }
            (true, false, _) => fs::create_dir_all(&place.real),
            (false, _, _) => {
                let text = call
                    .get("Value")
                    .map(|value| convert::to_text(&value))
                    .unwrap_or_default();
                let parents = match (force, place.real.parent()) {
                    (true, Some(parent)) => fs::create_dir_all(parent),
                    _ => Ok(()),
                };
                parents.and_then(|()| fs::write(&place.real, text))
            }
        };
        if let Err(error) = result {
            call.error(io_error(&place.windows, &error))?;
            continue;
        }
        if let Some(object) = file_object(&place) {
            call.write(object)?;
        }
    }
    Ok(())
}

fn remove_item(call: &mut Call<'_>) -> Outcome {
    for path in paths(call)? {
        let place = match locate(call.session, &path) {
            Err(record) => {
                call.error(record)?;
                continue;
            }
            Ok(Location::Drive(drive, rest)) => {
                remove_other(call, &path, &drive, &rest)?;
                continue;
            }
            Ok(Location::File(place)) => place,
        };
        if !place.real.exists() {
            call.error(missing(&path))?;
            continue;
        }
        let directory = place.real.is_dir();
        if directory && !call.switch("Recurse") && !names_in(&place.real).is_empty() {
            let caption = format!(
                "The item at {} has children and the Recurse parameter was not specified. If you continue, all children \
                 will be removed with the item.",
                place.windows
            );
            if !call.session.is_interactive() {
                let record = ErrorRecord::new(
                    Category::InvalidOperation,
                    "DirectoryNotEmpty",
                    caption + " Give -Recurse.",
                );
                call.error(record.about(Value::text(&place.windows)))?;
                continue;
            }
            if !call.should_continue("Confirm", &caption)? {
                continue;
            }
        }
        let action = if directory { "Remove Directory" } else { "Remove File" };
        if !call.should_process(&place.windows, action)? {
            continue;
        }
        let result = if directory {
            fs::remove_dir_all(&place.real)
        } else {
            fs::remove_file(&place.real)
        };
        if let Err(error) = result {
            call.error(io_error(&place.windows, &error))?;
        }
    }
    Ok(())
}

fn remove_other(call: &mut Call<'_>, path: &str, drive: &str, rest: &str) -> Outcome {
    let with_key = call.switch("DeleteKey");
    if !call.should_process(path, "Remove Item")? {
        return Ok(());
    }
    let machine = call.machine().clone();
    let removed = match drive {
        "hklm" | "hkcu" => registry::remove(&machine, &format!(r"{drive}\{rest}")),
        "env" => {
            call.session.set_environment(rest, "");
            Ok(true)
        }
        "variable" => Ok(call.session.remove_variable(rest)),
        _ => match call.world().drive(drive) {
            Some(own) => own.remove(&machine, rest, with_key),
            None => Err(ErrorRecord::outside(format!("Removing an item of the drive {drive}:"))),
        },
    };
    match removed {
        Ok(true) => Ok(()),
        Ok(false) => call.error(missing(path)),
        Err(record) => call.error(record),
    }
}

fn test_path(call: &mut Call<'_>) -> Outcome {
    let kind = call.text("PathType").unwrap_or_else(|| "Any".to_owned());
    let valid = call.switch("IsValid");
    let given: Vec<String> = call
        .texts("Path")
        .into_iter()
        .chain(call.texts("LiteralPath"))
        .collect();
    for path in given {
        if valid {
            let good = locate(call.session, &path).is_ok();
            call.write(Value::Bool(good))?;
            continue;
        }
        let found = match is_pattern(path.rsplit('\\').next().unwrap_or_default()) {
            true => !paths(call)?.is_empty(),
            false => match item(call, &path) {
                Ok(Some(Value::Object(object))) if object.is("FileSystemInfo") => match kind.as_str() {
                    "Container" => object.is("DirectoryInfo"),
                    "Leaf" => object.is("FileInfo"),
                    _ => true,
                },
                Ok(found) => found.is_some(),
                Err(_) => false,
            },
        };
        call.write(Value::Bool(found))?;
    }
    Ok(())
}

fn get_file_hash(call: &mut Call<'_>) -> Outcome {
    let algorithm = call
        .text("Algorithm")
        .unwrap_or_else(|| "SHA256".to_owned())
        .to_ascii_uppercase();
    for path in paths(call)? {
        let bytes = call.read_file(&path)?;
        let Some(hash) = hash(&algorithm, &bytes) else {
            let record = ErrorRecord::outside(format!("The algorithm {algorithm}"));
            return Err(call.fail(record));
        };
        let whole = crate::path::absolute(call.session, &path).map_err(|record| call.fail(record))?;
        call.write(Value::object(
            "FileHash",
            [
                ("Algorithm", Value::text(&algorithm)),
                ("Hash", Value::text(hash)),
                ("Path", Value::text(whole)),
            ],
        ))?;
    }
    Ok(())
}

fn hash(algorithm: &str, bytes: &[u8]) -> Option<String> {
    let digest = match algorithm {
        "SHA1" => sha1::Sha1::digest(bytes).to_vec(),
        "SHA256" => sha2::Sha256::digest(bytes).to_vec(),
        "SHA384" => sha2::Sha384::digest(bytes).to_vec(),
        "SHA512" => sha2::Sha512::digest(bytes).to_vec(),
        _ => return None,
    };
    Some(digest.iter().map(|byte| format!("{byte:02X}")).collect())
}

pub(super) fn missing(path: &str) -> ErrorRecord {
    ErrorRecord::new(
        Category::ObjectNotFound,
        "PathNotFound",
        format!("Cannot find path '{path}' because it does not exist."),
    )
    .about(Value::text(path))
}
