//! `kps serve`: runs the key protection service; `kps backup` and `kps restore`: its state in a file;
//! `kps audit verify`: checks its record.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use hgs_protocol::env::{Clock, Env};
use hgs_service::{
    audit_command::AuditCommand, backup as file, backup::PasswordFile, lab_clock, settings::ServiceArgs, telemetry,
};
use kps::{
    backup,
    guardian::Vault,
    store::Store,
    token::{Token, TokenOptions},
};
use zeroize::Zeroizing;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
        #[arg(long, visible_alias = "out")]
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
    #[command(flatten)]
    password: PasswordFile,
}

impl Place {
    /// `existing` refuses a database that is not there, which opening would make.
    async fn open(self, existing: bool) -> anyhow::Result<(Store, Vault, Zeroizing<String>)> {
        let settings = self.service.resolve("kps")?;
        if existing {
            settings.require_database()?;
        }
        telemetry::init(settings.log_format);
        let password = self.password.read()?;
        let store = kps::open_store(&settings).await?;
        let vault = Vault {
            kek: settings.kek.clone(),
            token: Token::open(&self.token)?,
        };
        Ok((store, vault, password))
    }
}

#[actix_web::main]
async fn main() -> anyhow::Result<ExitCode> {
    let env = Env::system();
    let (service, options) = match Command::parse().verb {
        Verb::Serve { service, options } => (service, options),
        Verb::Backup { place, to } => {
            let (store, vault, password) = place.open(true).await?;
            let bytes = backup::export(&store, &vault, &password, env.now(), &mut env.rng()).await?;
            file::write_new(&to, &bytes)?;
            println!("kps backup written to {}", to.display());
            return Ok(ExitCode::SUCCESS);
        }
        Verb::Restore { place, from } => {
            let (store, vault, password) = place.open(false).await?;
            let bytes = file::read_file(&from)?;
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
