//! The host's client configuration: local mode, or the URLs of its HGS and of a fallback, as
//! Set-HgsClientConfiguration takes them. Kept in the agent's folder, all or nothing; it outlives the host's
//! processes and then counts instead of the command line.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use reqwest::Url;
use serde::{Deserialize, Serialize};

use crate::owner::store::{replace, write_new};

/// What a host is told about its HGS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ClientConfiguration {
    /// No HGS: the host keeps key material of its own and never attests.
    #[default]
    Local,
    /// An HGS, and perhaps another one for the time in which the first does not answer.
    HostGuardianService {
        /// Asked first.
        primary: Servers,
        /// Asked when the first does not answer.
        fallback: Option<Servers>,
    },
}

/// The two services of one HGS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Servers {
    /// Base URL of attestation.
    pub attestation: ServerUrl,
    /// Base URL of key protection.
    pub key_protection: ServerUrl,
}

/// Which HGS of a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Server {
    /// The one asked first.
    Primary,
    /// The other one.
    Fallback,
}

/// A URL of http or https with a host, and nothing that a service's base URL cannot have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerUrl(String);

/// A change, with the parameters of Set-HgsClientConfiguration. Also the form on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields, default)]
pub struct Change {
    /// Go to local mode, which clears all URLs.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub enable_local_mode: bool,
    /// Base URL of attestation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attestation_server_url: Option<String>,
    /// Base URL of key protection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_protection_server_url: Option<String>,
    /// Base URL of the fallback's attestation. A change without a fallback removes the one there was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback_attestation_server_url: Option<String>,
    /// Base URL of the fallback's key protection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback_key_protection_server_url: Option<String>,
}

/// One of an HGS's two services, for what is said about a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Attestation.
    Attestation,
    /// Key protection.
    KeyProtection,
}

/// Why a configuration is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// No URL, or none with a host.
    #[error(
        "\"{text}\" is no URL of the {}: write scheme, name and path, as in {}",
        service.name(),
        service.example()
    )]
    NotUrl {
        /// What for.
        service: Service,
        /// As given.
        text: String,
    },
    /// Neither http nor https.
    #[error("\"{text}\": the {} is reached by http or https, as in {}", service.name(), service.example())]
    Scheme {
        /// What for.
        service: Service,
        /// As given.
        text: String,
    },
    /// User name, password, query or fragment.
    #[error(
        "the URL of the {} has a user name, a password, a query (?) or a fragment (#): leave them out, as in {}",
        service.name(),
        service.example()
    )]
    Extra {
        /// What for.
        service: Service,
    },
    /// The path is the other service's.
    #[error("\"{text}\" is given for the {}, and its path is the other service's: were the two URLs exchanged?", service.name())]
    Exchanged {
        /// What for.
        service: Service,
        /// As given.
        text: String,
    },
    /// Longer than [`LONGEST_URL`].
    #[error("the URL of the {} is longer than {LONGEST_URL} bytes", service.name())]
    TooLong {
        /// What for.
        service: Service,
    },
    /// One URL of two.
    #[error(
        "give both AttestationServerUrl and KeyProtectionServerUrl. A host whose VMs need no keys (one for SQL Server, \
         say) takes http://localhost as KeyProtectionServerUrl"
    )]
    Half,
    /// One fallback URL of two.
    #[error(
        "a fallback is a pair: give both FallbackAttestationServerUrl and FallbackKeyProtectionServerUrl, or neither, \
         which removes the present one"
    )]
    HalfFallback,
    /// Local mode and URLs.
    #[error("EnableLocalMode clears all URLs: give either that or the URLs")]
    LocalWithUrls,
    /// The file cannot be read or written.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
}

impl Service {
    fn name(self) -> &'static str {
        match self {
            Service::Attestation => "attestation service",
            Service::KeyProtection => "key protection service",
        }
    }

    fn example(self) -> &'static str {
        match self {
            Service::Attestation => "http://hgs.bastion.local/Attestation",
            Service::KeyProtection => "http://hgs.bastion.local/KeyProtection",
        }
    }

    fn other(self) -> Service {
        match self {
            Service::Attestation => Service::KeyProtection,
            Service::KeyProtection => Service::Attestation,
        }
    }
}

impl ServerUrl {
    /// Takes `text` as the base URL of `service`.
    pub fn parse(text: &str, service: Service) -> Result<ServerUrl, ConfigurationError> {
        if text.len() > LONGEST_URL {
            return Err(ConfigurationError::TooLong { service });
        }
        let text = text.trim();
        let not_url = || ConfigurationError::NotUrl {
            service,
            text: text.to_owned(),
        };
        let url = Url::parse(text).map_err(|_| not_url())?;
        if !matches!(url.scheme(), "http" | "https") {
            // `hgs:80` parses, as a URL of the scheme `hgs`.
            return Err(match text.contains("://") {
                true => ConfigurationError::Scheme {
                    service,
                    text: text.to_owned(),
                },
                false => not_url(),
            });
        }
        // A password is not repeated in an error.
        let user = !url.username().is_empty() || url.password().is_some();
        if user || url.query().is_some() || url.fragment().is_some() {
            return Err(ConfigurationError::Extra { service });
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(not_url());
        }
        let last = url.path().trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let its = service.other().example().rsplit('/').next().unwrap_or_default();
        if last.eq_ignore_ascii_case(its) {
            return Err(ConfigurationError::Exchanged {
                service,
                text: text.to_owned(),
            });
        }
        Ok(ServerUrl(text.to_owned()))
    }

    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Servers {
    fn parse(attestation: &str, key_protection: &str) -> Result<Servers, ConfigurationError> {
        Ok(Servers {
            attestation: ServerUrl::parse(attestation, Service::Attestation)?,
            key_protection: ServerUrl::parse(key_protection, Service::KeyProtection)?,
        })
    }
}

impl ClientConfiguration {
    /// The services of one HGS; none in local mode, or without a fallback.
    pub fn servers(&self, server: Server) -> Option<&Servers> {
        match (self, server) {
            (ClientConfiguration::Local, _) => None,
            (ClientConfiguration::HostGuardianService { primary, .. }, Server::Primary) => Some(primary),
            (ClientConfiguration::HostGuardianService { fallback, .. }, Server::Fallback) => fallback.as_ref(),
        }
    }

    /// `Local` or `HostGuardianService`.
    pub fn mode(&self) -> &'static str {
        match self {
            ClientConfiguration::Local => "Local",
            ClientConfiguration::HostGuardianService { .. } => "HostGuardianService",
        }
    }

    /// The mode's number. The product shows 2 for HostGuardianService; that Local is 1 is our choice.
    pub fn mode_code(&self) -> u16 {
        match self {
            ClientConfiguration::Local => 1,
            ClientConfiguration::HostGuardianService { .. } => 2,
        }
    }

    /// What was kept in `dir`, if anything was. A damaged file is an error: another HGS than the administrator's
    /// would be worse.
    pub fn load(dir: &Path) -> Result<Option<ClientConfiguration>, ConfigurationError> {
        let path = dir.join(FILE);
        let damaged = |reason: String| ConfigurationError::File {
            path: path.clone(),
            reason: format!("{reason}; remove the file and set the client configuration again"),
        };
        match fs::read(&path) {
            Ok(bytes) => {
                let kept: Change = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
                Ok(Some(kept.accept().map_err(|e| damaged(e.to_string()))?))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(damaged(error.to_string())),
        }
    }

    /// Keeps the configuration in `dir`: durable, all or nothing, when this returns.
    pub fn save(&self, dir: &Path) -> Result<(), ConfigurationError> {
        let path = dir.join(FILE);
        let write = || -> io::Result<()> {
            let mut text = serde_json::to_vec_pretty(&Change::from(self))?;
            text.push(b'\n');
            match write_new(&path, &text, 0o600) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => replace(&path, &text),
                written => written,
            }
        };
        write().map_err(|e| ConfigurationError::File {
            path: path.clone(),
            reason: format!("the client configuration cannot be kept: {e}"),
        })
    }
}

impl Change {
    /// The configuration that this makes, or what is wrong with it.
    pub fn accept(&self) -> Result<ClientConfiguration, ConfigurationError> {
        let primary = (&self.attestation_server_url, &self.key_protection_server_url);
        let fallback = (
            &self.fallback_attestation_server_url,
            &self.fallback_key_protection_server_url,
        );
        if self.enable_local_mode {
            return match (primary, fallback) {
                ((None, None), (None, None)) => Ok(ClientConfiguration::Local),
                _ => Err(ConfigurationError::LocalWithUrls),
            };
        }
        let (Some(attestation), Some(key_protection)) = primary else {
            return Err(ConfigurationError::Half);
        };
        let primary = Servers::parse(attestation, key_protection)?;
        let fallback = match fallback {
            (None, None) => None,
            (Some(attestation), Some(key_protection)) => Some(Servers::parse(attestation, key_protection)?),
            _ => return Err(ConfigurationError::HalfFallback),
        };
        Ok(ClientConfiguration::HostGuardianService { primary, fallback })
    }
}

impl From<&ClientConfiguration> for Change {
    fn from(configuration: &ClientConfiguration) -> Change {
        let text = |url: &ServerUrl| Some(url.as_str().to_owned());
        let of = |server| configuration.servers(server);
        Change {
            enable_local_mode: *configuration == ClientConfiguration::Local,
            attestation_server_url: of(Server::Primary).and_then(|s| text(&s.attestation)),
            key_protection_server_url: of(Server::Primary).and_then(|s| text(&s.key_protection)),
            fallback_attestation_server_url: of(Server::Fallback).and_then(|s| text(&s.attestation)),
            fallback_key_protection_server_url: of(Server::Fallback).and_then(|s| text(&s.key_protection)),
        }
    }
}

/// The URL that stands for no key protection, as the product's guides write it for SQL Server.
pub const NO_KEY_PROTECTION: &str = "http://localhost";
/// In bytes.
pub const LONGEST_URL: usize = 2048;
const FILE: &str = "client-configuration.json";

#[cfg(test)]
mod tests {
    use super::*;

    fn change(urls: [Option<&str>; 4]) -> Change {
        let [
            attestation,
            key_protection,
            fallback_attestation,
            fallback_key_protection,
        ] = urls.map(|url| url.map(str::to_owned));
        Change {
            enable_local_mode: false,
            attestation_server_url: attestation,
            key_protection_server_url: key_protection,
            fallback_attestation_server_url: fallback_attestation,
            fallback_key_protection_server_url: fallback_key_protection,
        }
    }

    const ATTESTATION: Option<&str> = Some("http://hgs.bastion.local/Attestation");
    const KEYS: Option<&str> = Some("https://hgs.bastion.local:8443/KeyProtection/");

    #[test]
    fn a_configuration_is_kept_whole_and_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(ClientConfiguration::load(dir.path()).unwrap(), None);
        let local = Change {
            enable_local_mode: true,
            ..Change::default()
        };
        for kept in [
            change([ATTESTATION, KEYS, ATTESTATION, KEYS]),
            change([ATTESTATION, Some(NO_KEY_PROTECTION), None, None]),
            local,
        ] {
            let configuration = kept.accept().unwrap();
            configuration.save(dir.path()).unwrap();
            assert_eq!(ClientConfiguration::load(dir.path()).unwrap(), Some(configuration));
        }
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().collect();
        assert_eq!(names.len(), 1, "nothing but the file is left behind: {names:?}");

        fs::write(dir.path().join(FILE), br#"{"AttestationServerUrl":"http://h"#).unwrap();
        let error = ClientConfiguration::load(dir.path()).unwrap_err();
        assert!(error.to_string().contains("remove the file"), "{error}");
    }

    #[test]
    fn what_is_wrong_with_a_url_is_said_with_what_to_do() {
        let cases = [
            ("hgs.bastion.local", "write scheme, name and path"),
            ("hgs:80/Attestation", "write scheme, name and path"),
            ("http://", "write scheme, name and path"),
            ("", "write scheme, name and path"),
            ("ftp://hgs.bastion.local/Attestation", "by http or https"),
            ("http://user:secret@hgs.bastion.local/Attestation", "leave them out"),
            ("http://hgs.bastion.local/Attestation?v=2", "leave them out"),
            ("http://hgs.bastion.local/keyprotection/", "exchanged?"),
        ];
        for (url, words) in cases {
            let error = change([Some(url), KEYS, None, None]).accept().unwrap_err().to_string();
            assert!(error.contains(words), "{url}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
        let long = format!("http://h/{}", "a".repeat(LONGEST_URL));
        let error = change([Some(&long), KEYS, None, None]).accept().unwrap_err();
        assert!(error.to_string().contains("2048"), "{error}");
    }

    #[test]
    fn urls_come_in_pairs_and_local_mode_takes_none() {
        let refused = |change: Change| change.accept().unwrap_err().to_string();
        assert!(refused(Change::default()).contains("give both"));
        assert!(refused(change([ATTESTATION, None, None, None])).contains("give both"));
        for half in [[ATTESTATION, None], [None, KEYS]] {
            let [attestation, keys] = half;
            let told = refused(change([ATTESTATION, KEYS, attestation, keys]));
            assert!(told.contains("a fallback is a pair"), "{told}");
        }
        let both = Change {
            enable_local_mode: true,
            ..change([ATTESTATION, KEYS, None, None])
        };
        assert!(refused(both).contains("clears all URLs"));
    }

    proptest::proptest! {
        #[test]
        fn a_change_of_any_text_is_judged_and_what_is_taken_is_kept_as_given(text in "\\PC{0,40}", rest in "[ -~]{0,20}") {
            for url in [text.clone(), format!("http://{text}/{rest}")] {
                if let Ok(taken) = change([Some(&url), KEYS, None, None]).accept() {
                    let again = Change::from(&taken).accept().unwrap();
                    proptest::prop_assert_eq!(again, taken);
                }
            }
        }
    }
}
