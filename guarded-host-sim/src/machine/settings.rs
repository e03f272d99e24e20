//! What a machine keeps while its power is off, as a real one keeps it in its flash: its dials, and what its
//! administrator has ordered for the next boot.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tempfile::NamedTempFile;

use super::dials::Dials;

/// Dials by name, each with its value as in a file of dials.
pub type Changes = Map<String, Value>;

/// The settings of one machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The dials of the last boot.
    pub dials: Dials,
    /// What comes on top at the next one.
    pub next: NextBoot,
}

/// What waits for a machine's next boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NextBoot {
    /// The dials that are otherwise from then on.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub dials: Changes,
    /// Firmware clears the TPM first.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub clear_tpm: bool,
}

impl NextBoot {
    /// True when the next boot is as the last one.
    pub fn is_empty(&self) -> bool {
        *self == NextBoot::default()
    }
}

impl Settings {
    /// The settings in the machine's folder; none before its first boot.
    pub fn load(folder: &Path) -> anyhow::Result<Option<Settings>> {
        let path = folder.join(FILE);
        let text = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let settings = serde_json::from_slice(&text).with_context(|| {
            format!(
                "{} holds no settings of a machine; remove it to go back to a healthy host's dials",
                path.display()
            )
        })?;
        Ok(Some(settings))
    }

    /// Keeps them in the machine's folder: the old ones or the new ones are there, whatever happens.
    pub fn save(&self, folder: &Path) -> anyhow::Result<()> {
        let path = folder.join(FILE);
        let write = || {
            let mut new = NamedTempFile::new_in(folder)?;
            new.write_all(&serde_json::to_vec_pretty(self)?)?;
            new.as_file().sync_all()?;
            new.persist(&path)?;
            fs::File::open(folder)?.sync_all()
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// The dials of the next boot.
    pub fn next_dials(&self) -> anyhow::Result<Dials> {
        changed(&self.dials, &self.next.dials)
    }

    /// Turns dials for the next boot, on top of what waits already. A dial that gets its present value waits no more.
    pub fn turn(&mut self, changes: &Changes) -> anyhow::Result<()> {
        let mut waiting = self.next.dials.clone();
        waiting.extend(changes.clone());
        let next = as_map(&changed(&self.dials, &waiting)?);
        let now = as_map(&self.dials);
        waiting.retain(|name, _| now.get(name) != next.get(name));
        self.next.dials = waiting;
        Ok(())
    }
}

/// `dials` with `changes`.
fn changed(dials: &Dials, changes: &Changes) -> anyhow::Result<Dials> {
    let mut map = as_map(dials);
    map.extend(changes.clone());
    let names = || changes.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    serde_json::from_value(Value::Object(map))
        .with_context(|| format!("a host cannot be given such dials: {}", names()))
}

/// Every dial by name; one that a file leaves out is left out here.
pub fn as_map(dials: &Dials) -> Changes {
    match serde_json::to_value(dials) {
        Ok(Value::Object(map)) => map,
        _ => Changes::new(),
    }
}

const FILE: &str = "settings.json";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn map(value: Value) -> Changes {
        match value {
            Value::Object(map) => map,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn dials_wait_until_they_are_as_they_were() {
        let mut settings = Settings::default();
        settings
            .turn(&map(json!({ "iommu": false, "firmware": "2.0" })))
            .unwrap();
        settings.turn(&map(json!({ "omit": ["dbx"] }))).unwrap();
        assert_eq!(settings.dials, Dials::default(), "nothing has changed yet");
        let next = settings.next_dials().unwrap();
        assert_eq!((next.iommu, next.firmware.as_str(), next.omit.len()), (false, "2.0", 1));
        settings
            .turn(&map(
                json!({ "iommu": true, "omit": [], "firmware": Dials::default().firmware }),
            ))
            .unwrap();
        assert!(settings.next.is_empty(), "{:?}", settings.next);
        for bad in [
            json!({ "iomu": true }),
            json!({ "iommu": "on" }),
            json!({ "clock_skew": 5 }),
        ] {
            assert!(settings.turn(&map(bad)).is_err());
            assert!(settings.next.is_empty());
        }
    }

    #[test]
    fn settings_are_kept_in_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Settings::load(folder.path()).unwrap(), None);
        let mut settings = Settings::default();
        settings.next.clear_tpm = true;
        settings.turn(&map(json!({ "ci_policy": null }))).unwrap();
        settings.save(folder.path()).unwrap();
        assert_eq!(Settings::load(folder.path()).unwrap(), Some(settings));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
        fs::write(folder.path().join(FILE), "{").unwrap();
        let refused = Settings::load(folder.path()).unwrap_err().to_string();
        assert!(refused.contains("remove it"), "{refused}");
    }
}
