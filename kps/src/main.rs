//! `kps serve`: runs the key protection service; `kps backup` and `kps restore`: its state in a file;
//! `kps audit verify`: checks its record.

use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use hgs_protocol::env::{Clock, Env};
use hgs_service::{audit_command::AuditCommand, lab_clock, settings::ServiceArgs, telemetry};
use kps::{
    backup,
    guardian::Vault,
    store::Store,
    token::{Token, TokenOptions},
};
use zeroize::Zeroizing;

#[derive(Parser)]
#[command(
    name = "kps",
    version,
    about = "Key protection service: releases a shielded VM's keys to healthy hosts"
)]
struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the service until SIGTERM
    Serve {
        #[command(flatten)]
        service: ServiceArgs,
        #[command(flatten)]
        options: kps::Options,
    },
    /// Write the service's certificates, keys, signers and settings to a file under a password
    Backup {
        #[command(flatten)]
        place: Place,
        /// File to write; it must not exist
        #[arg(long)]
        to: PathBuf,
    },
    /// Read a backup into an empty database
    Restore {
        #[command(flatten)]
        place: Place,
        /// File that `backup` wrote
        #[arg(long)]
        from: PathBuf,
    },
    /// The record of decisions
    #[command(subcommand)]
    Audit(AuditCommand),
}

#[derive(clap::Args)]
struct Place {
    #[command(flatten)]
    service: ServiceArgs,
    #[command(flatten)]
    token: TokenOptions,
    /// File with the backup's password (one line)
    #[arg(long)]
    password_file: PathBuf,
}

impl Place {
    async fn open(self) -> anyhow::Result<(Store, Vault, Zeroizing<String>)> {
        let settings = self.service.resolve("kps")?;
        telemetry::init(settings.log_format);
        let password = std::fs::read_to_string(&self.password_file)
            .with_context(|| format!("the password file {} cannot be read", self.password_file.display()))?;
        let password = Zeroizing::new(password);
        let store = kps::open_store(&settings).await?;
        let vault = Vault {
            kek: settings.kek.clone(),
            token: Token::open(&self.token)?,
        };
        Ok((
            store,
            vault,
            Zeroizing::new(password.trim_end_matches(['\r', '\n']).to_owned()),
        ))
    }
}

#[actix_web::main]
async fn main() -> anyhow::Result<ExitCode> {
    let env = Env::system();
    let (service, options) = match Command::parse().verb {
        Verb::Serve { service, options } => (service, options),
        Verb::Backup { place, to } => {
            let (store, vault, password) = place.open().await?;
            let bytes = backup::export(&store, &vault, &password, env.now(), &mut env.rng()).await?;
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&to)
                .with_context(|| format!("cannot make {}", to.display()))?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            println!("kps backup written to {}", to.display());
            return Ok(ExitCode::SUCCESS);
        }
        Verb::Restore { place, from } => {
            let (store, vault, password) = place.open().await?;
            let bytes = std::fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
            backup::restore(&store, &vault, &bytes, &password, env.now(), &mut env.rng()).await?;
            println!("kps restored from {}", from.display());
            return Ok(ExitCode::SUCCESS);
        }
        Verb::Audit(command) => return command.run("kps", (&kps::SQLITE, &kps::POSTGRES)).await,
    };
    let settings = service.resolve("kps")?;
    telemetry::init(settings.log_format);
    let clock = Clock::system();
    if let Some(socket) = &settings.lab_clock {
        lab_clock::listen(socket, clock.clone())?;
    }
    let bound = kps::start(&settings, &options, clock).await?;
    println!("{}", bound.ready_line("kps"));
    bound.run().await?;
    Ok(ExitCode::SUCCESS)
}
