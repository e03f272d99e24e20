//! The attestation service and its tools.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use hgs_protocol::env::{Clock, Env};
use hgs_service::{
    audit_command::AuditCommand,
    backup, lab_clock,
    settings::{ServiceArgs, Settings},
    telemetry,
};
use zeroize::Zeroizing;

/// Host attestation of a guarded fabric (MS-HGSA).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the service until SIGTERM
    Serve {
        #[command(flatten)]
        service: Box<ServiceArgs>,
        #[command(flatten)]
        options: attestation::Options,
    },
    /// Explain a boot log (TCG or WBCL): header, banks, replayed PCRs, boot facts
    InspectLog {
        /// The log
        file: PathBuf,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Show event by event what changed between two boot logs
    CompareLogs {
        /// The log as it was
        before: PathBuf,
        /// The log as it is
        after: PathBuf,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// State an endorsement key certificate's chain and why it is or is not trusted
    InspectEk {
        /// The certificate, DER or PEM; in PEM, intermediates may follow it
        file: PathBuf,
        /// Folder (or file) of trusted vendor authorities, DER or PEM
        #[arg(long)]
        roots: Option<PathBuf>,
        /// Print one JSON document: trusted, chain, reasons
        #[arg(long)]
        json: bool,
    },
    /// Write hosts, artefacts, policies, signers with their keys and settings to a file under a password. Not in
    /// it: the record of decisions, hosts' boot logs, administrators' tokens
    Backup {
        #[command(flatten)]
        place: Box<Place>,
        /// File to write; it must not exist
        #[arg(long, visible_alias = "out")]
        to: PathBuf,
    },
    /// Read a backup into an empty database, before the service's first start on it
    Restore {
        #[command(flatten)]
        place: Box<Place>,
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
    password: backup::PasswordFile,
}

impl Place {
    fn read(self) -> anyhow::Result<(Settings, Zeroizing<String>)> {
        let settings = self.service.resolve("attestation")?;
        telemetry::init(settings.log_format);
        Ok((settings, self.password.read()?))
    }
}

#[actix_web::main]
async fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().command {
        Command::InspectLog { file, json } => attestation::inspect::run(&file, json),
        Command::CompareLogs { before, after, json } => attestation::compare::run(&before, &after, json),
        Command::InspectEk { file, roots, json } => attestation::inspect_ek::run(&file, roots.as_deref(), json),
        Command::Audit(command) => {
            let tables = (&attestation::SQLITE, &attestation::POSTGRES);
            command.run("attestation", tables).await
        }
        Command::Backup { place, to } => {
            let (settings, password) = place.read()?;
            settings.require_database()?;
            let (store, env) = (attestation::open_store(&settings).await?, Env::system());
            let bytes =
                attestation::backup::export(&store, &settings.kek, &password, env.now(), &mut env.rng()).await?;
            backup::write_new(&to, &bytes)?;
            println!("attestation backup written to {}", to.display());
            Ok(ExitCode::SUCCESS)
        }
        Command::Restore { place, from } => {
            let (settings, password) = place.read()?;
            let bytes = backup::read_file(&from)?;
            let store = attestation::open_store(&settings).await?;
            let mut rng = Env::system().rng();
            attestation::backup::restore(&store, &settings.kek, &bytes, &password, &mut rng).await?;
            println!("attestation restored from {}", from.display());
            Ok(ExitCode::SUCCESS)
        }
        Command::Serve { service, options } => {
            let settings = service.resolve("attestation")?;
            telemetry::init(settings.log_format);
            let clock = Clock::system();
            if let Some(socket) = &settings.lab_clock {
                lab_clock::listen(socket, clock.clone())?;
            }
            let bound = attestation::start(&settings, &options, clock).await?;
            println!("{}", bound.ready_line("attestation"));
            bound.run().await?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
