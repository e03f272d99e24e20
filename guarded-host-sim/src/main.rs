//! Command line of the guarded host simulator: one subcommand per process of a host.

use clap::{Parser, Subcommand};
use guarded_host_sim::{machine, store};

#[derive(Parser)]
#[command(version, about = "Guarded hosts, simulated on real TPMs in software")]
struct Cli {
    #[command(subcommand)]
    part: Part,
}

#[derive(Subcommand)]
enum Part {
    /// Runs one host: TPM, firmware, and the other parts as its children.
    Machine(machine::MachineArgs),
    /// The VBS store of a host. Started by its machine.
    #[command(hide = true)]
    Store(store::StoreArgs),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().part {
        Part::Machine(args) => machine::run(&args),
        Part::Store(args) => store::run(&args),
    }
}
