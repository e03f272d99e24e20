//! `kps serve`: runs the key protection service.

use clap::{Parser, Subcommand};
use hgs_protocol::env::Clock;
use hgs_service::{lab_clock, settings::ServiceArgs, telemetry};

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
}

#[actix_web::main]
async fn main() -> anyhow::Result<()> {
    let Verb::Serve { service, options } = Command::parse().verb;
    let settings = service.resolve("kps")?;
    telemetry::init(settings.log_format);
    let clock = Clock::system();
    if let Some(socket) = &settings.lab_clock {
        lab_clock::listen(socket, clock.clone())?;
    }
    let bound = kps::start(&settings, &options, clock).await?;
    println!("{}", bound.ready_line("kps"));
    bound.run().await
}
