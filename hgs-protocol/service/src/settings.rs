//! What a service is told at start: command line over environment over file, in one typed struct.
//! Unknown keys in the file are refused. Nothing here opens a socket or a database.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

use crate::{sealed::Kek, telemetry::LogFormat};

/// The options of `serve`, as given. [`ServiceArgs::resolve`] turns them into [`Settings`].
#[derive(Clone, Debug, Default, clap::Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ServiceArgs {
    /// A TOML file with these same options (without dashes in front); command line and environment win over it
    #[arg(long, env = "HGS_CONFIG")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Address of the HTTP service listener; port 0 picks a free one [default: 127.0.0.1:0]
    #[arg(long, env = "HGS_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// Address of the HTTPS service listener; needs --tls-certificate and --tls-key
    #[arg(long, env = "HGS_TLS_LISTEN")]
    pub tls_listen: Option<SocketAddr>,
    /// PEM file with the server certificate and its chain
    #[arg(long, env = "HGS_TLS_CERTIFICATE")]
    pub tls_certificate: Option<PathBuf>,
    /// PEM file with the server certificate's private key
    #[arg(long, env = "HGS_TLS_KEY")]
    pub tls_key: Option<PathBuf>,
    /// Address of the administrators' listener; outside loopback it speaks HTTPS only [default: 127.0.0.1:0]
    #[arg(long, env = "HGS_ADMIN_LISTEN")]
    pub admin_listen: Option<SocketAddr>,
    /// File with a line `administrator SHA256` or `reviewer SHA256` per admin token (hash of the token, in hex)
    #[arg(long, env = "HGS_ADMIN_TOKENS")]
    pub admin_tokens: Option<PathBuf>,
    /// sqlite://FILE or postgres://… [default: a SQLite file in the data directory]
    #[arg(long, env = "HGS_DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<String>,
    /// Directory of the service's own files
    #[arg(long, env = "HGS_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// File with the key-encryption key, 64 hex digits; must lie outside the data directory
    #[arg(long, env = "HGS_KEY_ENCRYPTION_KEY_FILE")]
    pub key_encryption_key_file: Option<PathBuf>,
    /// Form of the log on standard error [default: text]
    #[arg(long, env = "HGS_LOG_FORMAT", value_enum)]
    pub log_format: Option<LogFormat>,
    /// Unix socket on which a lab moves this process's clock forward; never in production
    #[arg(long, env = "HGS_LAB_CLOCK")]
    pub lab_clock: Option<PathBuf>,
}

/// What `serve` runs by. Paths exist; the key-encryption key has been read.
pub struct Settings {
    /// HTTP service listener.
    pub listen: SocketAddr,
    /// HTTPS service listener with its certificate and key files.
    pub tls: Option<TlsFiles>,
    /// Where HTTPS is served, if anywhere.
    pub tls_listen: Option<SocketAddr>,
    /// Administrators' listener.
    pub admin_listen: SocketAddr,
    /// File of admin token hashes; none means that no administrator can sign in.
    pub admin_tokens: Option<PathBuf>,
    /// Database URL.
    pub database_url: String,
    /// The service's own files.
    pub data_dir: PathBuf,
    /// Seals the service's keys at rest.
    pub kek: Kek,
    /// Form of the log.
    pub log_format: LogFormat,
    /// Control socket of the lab's clock.
    pub lab_clock: Option<PathBuf>,
    /// Whether SIGTERM and SIGINT drain the service; not where the service is a part of somebody else's process.
    pub drained_by_signals: bool,
}

/// Certificate chain and key of a TLS listener, PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// Server certificate first, then its issuers.
    pub certificate: PathBuf,
    /// PKCS#8, PKCS#1 or SEC1 private key.
    pub key: PathBuf,
}

impl Settings {
    /// Fails when the database is a SQLite file that is not there: opening it would make an empty one.
    pub fn require_database(&self) -> anyhow::Result<()> {
        if let Some(file) = self.database_url.strip_prefix("sqlite://") {
            let file = file.split('?').next().unwrap_or(file);
            ensure!(
                Path::new(file).exists(),
                "there is no database {file}: is --data-dir (or --database-url) the service's?"
            );
        }
        Ok(())
    }
}

impl ServiceArgs {
    /// Merges the file in, fills defaults in and checks what can be checked before start.
    ///
    /// `name` names the SQLite file. Fails with what is wrong and which option mends it.
    pub fn resolve(self, name: &str) -> anyhow::Result<Settings> {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let args = match &self.config {
            Some(path) => self.clone().over(read_file(path)?),
            None => self,
        };
        let data_dir = args.data_dir.context("no data directory: give --data-dir")?;
        std::fs::create_dir_all(&data_dir)
            .with_context(|| format!("cannot make the data directory {}", data_dir.display()))?;
        let data_dir = data_dir
            .canonicalize()
            .context("the data directory cannot be resolved")?;
        let kek_file = args.key_encryption_key_file.context(
            "no key-encryption key: give --key-encryption-key-file; make a key with `openssl rand -hex 32 > FILE`",
        )?;
        let kek_place = kek_file
            .canonicalize()
            .with_context(|| format!("the key-encryption key {} cannot be read", kek_file.display()))?;
        ensure!(
            !kek_place.starts_with(&data_dir),
            "the key-encryption key lies inside the data directory it is to protect: move it elsewhere"
        );
        let kek = Kek::from_file(&kek_place)?;
        let tls = match (args.tls_certificate, args.tls_key) {
            (Some(certificate), Some(key)) => Some(TlsFiles { certificate, key }),
            (None, None) => None,
            _ => bail!("--tls-certificate and --tls-key belong together: give both or neither"),
        };
        ensure!(
            args.tls_listen.is_none() || tls.is_some(),
            "--tls-listen needs --tls-certificate and --tls-key"
        );
        let admin_listen = args.admin_listen.unwrap_or(loopback);
        ensure!(
            admin_listen.ip().is_loopback() || tls.is_some(),
            "the administrators' listener {admin_listen} is reachable from outside, where tokens must not travel in \
             clear: give --tls-certificate and --tls-key, or listen on loopback"
        );
        Ok(Settings {
            listen: args.listen.unwrap_or(loopback),
            tls,
            tls_listen: args.tls_listen,
            admin_listen,
            admin_tokens: args.admin_tokens,
            database_url: args
                .database_url
                .unwrap_or_else(|| format!("sqlite://{}", data_dir.join(format!("{name}.db")).display())),
            data_dir,
            kek,
            log_format: args.log_format.unwrap_or_default(),
            lab_clock: args.lab_clock,
            drained_by_signals: true,
        })
    }

    fn over(self, file: ServiceArgs) -> ServiceArgs {
        ServiceArgs {
            config: self.config,
            listen: self.listen.or(file.listen),
            tls_listen: self.tls_listen.or(file.tls_listen),
            tls_certificate: self.tls_certificate.or(file.tls_certificate),
            tls_key: self.tls_key.or(file.tls_key),
            admin_listen: self.admin_listen.or(file.admin_listen),
            admin_tokens: self.admin_tokens.or(file.admin_tokens),
            database_url: self.database_url.or(file.database_url),
            data_dir: self.data_dir.or(file.data_dir),
            key_encryption_key_file: self.key_encryption_key_file.or(file.key_encryption_key_file),
            log_format: self.log_format.or(file.log_format),
            lab_clock: self.lab_clock.or(file.lab_clock),
        }
    }
}

fn read_file(path: &Path) -> anyhow::Result<ServiceArgs> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("the configuration file {} cannot be read", path.display()))?;
    toml::from_str(&text).with_context(|| format!("the configuration file {} is not valid", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(dir: &Path) -> ServiceArgs {
        let kek = dir.join("kek");
        std::fs::write(&kek, "11".repeat(32)).unwrap();
        ServiceArgs {
            data_dir: Some(dir.join("data")),
            key_encryption_key_file: Some(kek),
            ..ServiceArgs::default()
        }
    }

    fn refusal(args: ServiceArgs) -> String {
        format!("{:#}", args.resolve("kps").err().unwrap())
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kps.toml");
        std::fs::write(&file, "listen = \"127.0.0.1:81\"\nadmin-listen = \"127.0.0.1:82\"\n").unwrap();
        let settings = ServiceArgs {
            config: Some(file),
            listen: Some(([127, 0, 0, 1], 80).into()),
            ..args(dir.path())
        }
        .resolve("kps")
        .unwrap();
        assert_eq!((settings.listen.port(), settings.admin_listen.port()), (80, 82));
        assert!(settings.database_url.ends_with("/data/kps.db"));
    }

    #[test]
    fn an_unknown_key_in_the_file_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kps.toml");
        std::fs::write(&file, "lisen = \"127.0.0.1:81\"\n").unwrap();
        let text = refusal(ServiceArgs {
            config: Some(file),
            ..args(dir.path())
        });
        assert!(text.contains("lisen"), "{text}");
    }

    #[test]
    fn a_key_encryption_key_in_the_data_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("data")).unwrap();
        let kek = dir.path().join("data/kek");
        std::fs::write(&kek, "11".repeat(32)).unwrap();
        let text = refusal(ServiceArgs {
            key_encryption_key_file: Some(kek),
            ..args(dir.path())
        });
        assert!(text.contains("inside the data directory"), "{text}");
    }

    #[test]
    fn tokens_do_not_travel_in_clear() {
        let dir = tempfile::tempdir().unwrap();
        let text = refusal(ServiceArgs {
            admin_listen: Some(([0, 0, 0, 0], 82).into()),
            ..args(dir.path())
        });
        assert!(text.contains("in clear"), "{text}");
    }

    #[test]
    fn a_missing_key_encryption_key_says_how_to_make_one() {
        let dir = tempfile::tempdir().unwrap();
        let text = refusal(ServiceArgs {
            key_encryption_key_file: None,
            ..args(dir.path())
        });
        assert!(text.contains("openssl rand -hex 32"), "{text}");
    }
}
