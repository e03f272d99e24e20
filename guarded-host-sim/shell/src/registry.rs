//! Each machine's registry: keys with named values, kept in one file. Cmdlets and the machine's own parts read it.

use std::{collections::BTreeMap, fs};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Category, ErrorRecord},
    value::Value,
    world::Machine,
};

/// A value of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Entry {
    /// `DWord`, `QWord`.
    Number(i64),
    /// `String`, `ExpandString`.
    Text(String),
    /// `MultiString`.
    Texts(Vec<String>),
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Key {
    /// As it was written.
    name: String,
    /// By names in small letters, with the names as they were written.
    values: BTreeMap<String, (String, Entry)>,
}

type Keys = BTreeMap<String, Key>;

/// The values of a key by name; nothing, if there is no such key. `path` begins with `HKLM\` or `HKCU\`.
///
/// # Errors
/// The registry's file cannot be read.
pub fn values(machine: &Machine, path: &str) -> Result<Option<Vec<(String, Entry)>>, ErrorRecord> {
    let keys = read(machine)?;
    Ok(keys
        .get(&folded(path))
        .map(|key| key.values.values().cloned().collect()))
}

/// One value of a key.
///
/// # Errors
/// The registry's file cannot be read.
pub fn value(machine: &Machine, path: &str, name: &str) -> Result<Option<Entry>, ErrorRecord> {
    let found = values(machine, path)?.unwrap_or_default();
    Ok(found
        .into_iter()
        .find(|(own, _)| own.eq_ignore_ascii_case(name))
        .map(|(_, entry)| entry))
}

/// Sets a value of a key that is there.
///
/// # Errors
/// There is no such key, or the registry's file cannot be written.
pub fn set(machine: &Machine, path: &str, name: &str, entry: Entry) -> Result<(), ErrorRecord> {
    let mut keys = read(machine)?;
    let Some(key) = keys.get_mut(&folded(path)) else {
        return Err(missing(path));
    };
    key.values.insert(name.to_ascii_lowercase(), (name.to_owned(), entry));
    write(machine, &keys)
}

/// Makes a key with those above it.
///
/// # Errors
/// The registry's file cannot be written.
pub fn create(machine: &Machine, path: &str) -> Result<(), ErrorRecord> {
    let mut keys = read(machine)?;
    add(&mut keys, path);
    write(machine, &keys)
}

/// Whether there is such a key.
///
/// # Errors
/// The registry's file cannot be read.
pub fn exists(machine: &Machine, path: &str) -> Result<bool, ErrorRecord> {
    Ok(read(machine)?.contains_key(&folded(path)))
}

/// The names of the keys right below one.
///
/// # Errors
/// The registry's file cannot be read.
pub fn children(machine: &Machine, path: &str) -> Result<Vec<String>, ErrorRecord> {
    let above = folded(path) + "\\";
    let keys = read(machine)?;
    let below = keys
        .iter()
        .filter(|(name, _)| name.strip_prefix(&above).is_some_and(|rest| !rest.contains('\\')));
    Ok(below
        .map(|(_, key)| key.name.rsplit('\\').next().unwrap_or_default().to_owned())
        .collect())
}

/// Takes a key away, with those below it; whether there was one.
///
/// # Errors
/// The registry's file cannot be written.
pub fn remove(machine: &Machine, path: &str) -> Result<bool, ErrorRecord> {
    let mut keys = read(machine)?;
    let (own, below) = (folded(path), folded(path) + "\\");
    let before = keys.len();
    keys.retain(|name, _| *name != own && !name.starts_with(&below));
    let removed = keys.len() < before;
    write(machine, &keys)?;
    Ok(removed)
}

impl Entry {
    /// What a script makes of it.
    pub fn to_value(&self) -> Value {
        match self {
            Entry::Number(number) => Value::Int(*number),
            Entry::Text(text) => Value::text(text),
            Entry::Texts(texts) => Value::list(texts.iter().map(Value::text).collect()),
        }
    }
}

fn add(keys: &mut Keys, path: &str) {
    let whole = path.trim_matches('\\');
    let mut end = 0;
    for part in whole.split('\\') {
        end += part.len();
        let name = whole.get(..end).unwrap_or(whole);
        keys.entry(folded(name)).or_insert_with(|| Key {
            name: name.to_owned(),
            values: BTreeMap::new(),
        });
        end += 1;
    }
}

fn folded(path: &str) -> String {
    path.trim_matches('\\').to_ascii_lowercase()
}

fn missing(path: &str) -> ErrorRecord {
    let shown = path.replacen('\\', ":\\", 1);
    ErrorRecord::new(
        Category::ObjectNotFound,
        "PathNotFound",
        format!("Cannot find path '{shown}' because it does not exist. New-Item makes it."),
    )
    .about(Value::text(shown))
}

fn file(machine: &Machine) -> std::path::PathBuf {
    machine.folder.join("registry.json")
}

fn read(machine: &Machine) -> Result<Keys, ErrorRecord> {
    let path = file(machine);
    let broken = |why: String| {
        let text = format!("The registry of {} cannot be used: {why}.", machine.name);
        ErrorRecord::new(Category::ReadError, "RegistryBroken", text)
    };
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| broken(error.to_string())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut keys = Keys::default();
            FIRST.iter().for_each(|path| add(&mut keys, path));
            Ok(keys)
        }
        Err(error) => Err(broken(error.to_string())),
    }
}

fn write(machine: &Machine, keys: &Keys) -> Result<(), ErrorRecord> {
    let broken = |why: String| {
        let text = format!("The registry of {} cannot be written: {why}.", machine.name);
        ErrorRecord::new(Category::WriteError, "RegistryBroken", text)
    };
    let bytes = serde_json::to_vec_pretty(keys).map_err(|error| broken(error.to_string()))?;
    let fresh = file(machine).with_extension("new");
    fs::write(&fresh, bytes)
        .and_then(|()| fs::rename(&fresh, file(machine)))
        .map_err(|error| broken(error.to_string()))
}

/// Keys that every machine has, as far as guides to guarded fabrics name them.
const FIRST: [&str; 8] = [
    r"HKLM\SYSTEM\CurrentControlSet\Control\DeviceGuard",
    r"HKLM\SYSTEM\CurrentControlSet\Control\CrashControl",
    r"HKLM\SYSTEM\CurrentControlSet\Control\FileSystem",
    r"HKLM\SYSTEM\CurrentControlSet\Control\Power",
    r"HKLM\SOFTWARE\Microsoft\HGS\KPS",
    r"HKLM\SOFTWARE\Microsoft\.NETFramework\v4.0.30319",
    r"HKLM\SOFTWARE\Wow6432Node\Microsoft\.NETFramework\v4.0.30319",
    r"HKCU\SOFTWARE",
];
