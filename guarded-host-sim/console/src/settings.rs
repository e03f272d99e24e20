//! The fabric's Host Guardian Service settings, as Virtual Machine Manager holds them: what all guarded hosts are told,
//! which hosts take it, and what one of them is told instead. One file, replaced as a whole.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use serde::{Deserialize, Serialize};

/// Base URLs that a host is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Urls {
    /// Attestation server URL.
    pub attestation: String,
    /// Key protection server URL.
    pub key_protection: String,
    /// The fallback's attestation server URL; empty where there is no fallback.
    pub fallback_attestation: String,
    /// The fallback's key protection server URL.
    pub fallback_key_protection: String,
}

/// A code-integrity policy that hosts may be given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodeIntegrityPolicy {
    /// Friendly name.
    pub name: String,
    /// Path of the policy, as the hosts reach it.
    pub path: String,
}

/// What is set for one host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostSettings {
    /// Host Guardian Hyper-V support is enabled and the URLs apply.
    pub enabled: bool,
    /// URLs in place of the fabric's.
    pub own: Option<Urls>,
    /// Friendly name of the code-integrity policy that was applied.
    pub code_integrity_policy: Option<String>,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FabricSettings {
    /// What all hosts are told.
    pub urls: Urls,
    /// The list from which a host's policy is chosen.
    pub code_integrity_policies: Vec<CodeIntegrityPolicy>,
    /// Path of the disk that shields existing VMs; empty where there is none.
    pub shielding_helper_disk: String,
    /// By host.
    pub hosts: BTreeMap<String, HostSettings>,
}

impl Urls {
    /// Whether there is anything to tell a host.
    pub fn are_set(&self) -> bool {
        !self.attestation.is_empty() && !self.key_protection.is_empty()
    }
}

impl FabricSettings {
    /// What the host is to be told; nothing while it is not enabled or nothing is set.
    pub fn urls_of(&self, host: &str) -> Option<&Urls> {
        let its = self.hosts.get(host).filter(|its| its.enabled)?;
        Some(its.own.as_ref().unwrap_or(&self.urls)).filter(|urls| urls.are_set())
    }
}

/// Why the settings cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file or its folder.
    #[error("the fabric settings in {} cannot be read or written: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It was damaged.
    #[error("{} does not hold fabric settings ({error}): remove it and set them again", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Why.
        error: serde_json::Error,
    },
}

/// The file with the settings.
pub struct SettingsFile {
    path: PathBuf,
    kept: RwLock<Arc<FabricSettings>>,
    /// One change at a time.
    changing: Mutex<()>,
}

impl SettingsFile {
    /// Reads the file; without one nothing is set.
    pub fn open(path: &Path) -> Result<SettingsFile, SettingsError> {
        let file = |error| SettingsError::File {
            path: path.to_path_buf(),
            error,
        };
        let kept = match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| SettingsError::Damaged {
                path: path.to_path_buf(),
                error,
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => FabricSettings::default(),
            Err(error) => return Err(file(error)),
        };
        Ok(SettingsFile {
            path: path.to_path_buf(),
            kept: RwLock::new(Arc::new(kept)),
            changing: Mutex::default(),
        })
    }

    /// The settings in force.
    pub fn now(&self) -> Arc<FabricSettings> {
        self.kept.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the settings; they are durable when this returns. Blocks for a moment.
    pub fn change(&self, change: impl FnOnce(&mut FabricSettings)) -> Result<Arc<FabricSettings>, SettingsError> {
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wanted = FabricSettings::clone(&self.now());
        change(&mut wanted);
        self.write(&wanted).map_err(|error| SettingsError::File {
            path: self.path.clone(),
            error,
        })?;
        let wanted = Arc::new(wanted);
        *self.kept.write().unwrap_or_else(PoisonError::into_inner) = wanted.clone();
        Ok(wanted)
    }

    fn write(&self, settings: &FabricSettings) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&serde_json::to_vec_pretty(settings)?)?;
        file.as_file().sync_all()?;
        file.persist(&self.path).map_err(|error| error.error)?;
        fs::File::open(folder)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(name: &str) -> Urls {
        Urls {
            attestation: format!("http://{name}/Attestation"),
            key_protection: format!("http://{name}/KeyProtection"),
            ..Urls::default()
        }
    }

    #[test]
    fn settings_are_kept_and_a_damaged_file_is_no_empty_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console/settings.json");
        let file = SettingsFile::open(&path).unwrap();
        assert_eq!(*file.now(), FabricSettings::default());
        file.change(|settings| settings.urls = urls("hgs")).unwrap();
        let wanted = file
            .change(|settings| settings.shielding_helper_disk = "helper.vhdx".to_owned())
            .unwrap();
        assert_eq!(wanted.urls, urls("hgs"), "one change keeps the other");
        assert_eq!(SettingsFile::open(&path).unwrap().now(), wanted);
        let left = fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(left, 1, "nothing but the file is left behind");

        fs::write(&path, b"{\"urls\":").unwrap();
        let error = SettingsFile::open(&path).err().unwrap().to_string();
        assert!(error.contains("remove it"), "{error}");
    }

    #[test]
    fn a_host_is_told_the_urls_of_the_fabric_or_its_own_and_only_when_enabled() {
        let mut settings = FabricSettings {
            urls: urls("hgs"),
            ..FabricSettings::default()
        };
        assert_eq!(settings.urls_of("host01"), None);
        settings.hosts.insert(
            "host01".to_owned(),
            HostSettings {
                enabled: true,
                ..HostSettings::default()
            },
        );
        assert_eq!(settings.urls_of("host01"), Some(&urls("hgs")));
        if let Some(its) = settings.hosts.get_mut("host01") {
            its.own = Some(urls("other"));
        }
        assert_eq!(settings.urls_of("host01"), Some(&urls("other")));
        settings.urls = Urls::default();
        assert_eq!(settings.urls_of("host01"), Some(&urls("other")));
    }
}
