//! Command line of the guarded host simulator: one subcommand per process of a host.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use guarded_host_sim::{
    agent, cluster, console, demo, drill, event_log, fabric, gallery, ledger, lesson, load, machine,
    owner::{guardian_command, protector_command},
    renew_signer, scenario, shell,
    shielding::{data_command, template_command},
    store, vm,
};

#[derive(Parser)]
#[command(version, about = "Guarded hosts, simulated on real TPMs in software")]
struct Cli {
    #[command(subcommand)]
    part: Part,
}

#[derive(Subcommand)]
enum Part {
    /// Runs a whole guarded fabric on loopback and narrates it.
    Demo(demo::DemoArgs),
    /// Kills processes of a whole fabric at random instants and sees that no VM is lost or runs twice.
    Drill(drill::DrillArgs),
    /// The fabric console: pages on which an administrator sees and steers a small fabric of its own.
    Console(console::ConsoleArgs),
    /// Runs scenario files and reports what came of each step.
    Run(scenario::command::RunArgs),
    /// Makes what a fabric in containers needs before its parts start.
    Prepare(fabric::prepare::PrepareArgs),
    /// Registers the hosts of a fabric in containers and lets each attest.
    Enrol(fabric::enrol::EnrolArgs),
    /// Drills on a cluster in containers: what becomes of its clients when parts of it go.
    Cluster(cluster::ClusterArgs),
    /// Lists the boot logs that a host can take as its template, and what each shows.
    Gallery(gallery::GalleryArgs),
    /// Registers the pending attestation signer with key protection and lets it sign; for a timer.
    RenewSigner(renew_signer::RenewSignerArgs),
    /// The administrators' shell: carries out PowerShell with the product's cmdlets, or checks it.
    Shell(shell::ShellArgs),
    /// Guided lessons: a fabric, a task, checks, hints and a grade.
    Lesson(lesson::command::LessonArgs),
    /// VMs: run, save, move and look at them on a host, and change them as their owner.
    Vm(vm::command::VmArgs),
    /// A host's machine: show and turn its dials, reboot, hibernate, update firmware, clear the TPM.
    Machine(machine::command::MachineArgs),
    /// A host's client configuration: show, set, test.
    Client(agent::command::ClientArgs),
    /// A host's event log: query it by id, level and time.
    Events(event_log::command::EventsArgs),
    /// Checks, from the ledgers of several hosts' VBS stores, that no VM ran on two of them at once.
    Ledger(ledger::command::LedgerArgs),
    /// Lets many light hosts, in this one process, attest and keep their certificates, and measures it.
    Load(load::LoadArgs),
    /// A VM owner's guardians: make, import, export, list, show, remove.
    Guardian(guardian_command::GuardianArgs),
    /// A VM owner's key protectors: create, grant, revoke, inspect.
    Protector(protector_command::ProtectorArgs),
    /// Template disks for shielded VMs: sign, inspect, extract the volume signature catalogue.
    Template(template_command::TemplateArgs),
    /// Shielding data files (.pdk): what an owner gives to a fabric for new VMs, sealed.
    ShieldingData(data_command::DataArgs),
    /// Runs one host until it is stopped: TPM and firmware, and the VBS store and the agent as its children.
    Host(machine::HostArgs),
    /// The agent of a host. Started by `host`.
    #[command(hide = true)]
    Agent(agent::AgentArgs),
    /// The VBS store of a host. Started by `host`.
    #[command(hide = true)]
    Store(store::StoreArgs),
}

fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse_from(shell::arguments(std::env::args_os())).part {
        Part::Demo(args) => {
            let good = demo::run(&args)?;
            return Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Part::Drill(args) => {
            let good = drill::run(&args)?;
            return Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Part::Ledger(args) => {
            let good = ledger::command::run(&args)?;
            return Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Part::Shell(args) => return shell::run(args),
        Part::Lesson(args) => return lesson::command::run(args),
        Part::Run(args) => return scenario::command::run(&args),
        Part::Load(args) => {
            let good = load::run(&args)?;
            return Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Part::Machine(args) => return machine::command::run(&args),
        Part::Client(args) => return agent::command::run(&args),
        Part::Events(args) => event_log::command::run(&args)?,
        Part::Vm(args) => vm::command::run(&args)?,
        Part::Guardian(args) => return guardian_command::run(args),
        Part::Protector(args) => return protector_command::run(args),
        Part::Template(args) => template_command::run(&args)?,
        Part::ShieldingData(args) => return data_command::run(args),
        Part::Console(args) => console::run(&args)?,
        Part::Prepare(args) => fabric::prepare::run(&args)?,
        Part::Enrol(args) => fabric::enrol::run(&args)?,
        Part::Cluster(args) => return cluster::run(&args),
        Part::Gallery(args) => gallery::run(&args)?,
        Part::RenewSigner(args) => renew_signer::run(&args)?,
        Part::Host(args) => machine::run(&args)?,
        Part::Agent(args) => agent::run(args)?,
        Part::Store(args) => store::run(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}
