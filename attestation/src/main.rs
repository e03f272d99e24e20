//! The attestation service and its tools.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use hgs_protocol::env::Clock;
use hgs_service::{audit_command::AuditCommand, lab_clock, settings::ServiceArgs, telemetry};

/// Host attestation of a guarded fabric (MS-HGSA).
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
    /// The record of decisions
    #[command(subcommand)]
    Audit(AuditCommand),
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
