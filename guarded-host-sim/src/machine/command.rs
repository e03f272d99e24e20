//! `guarded-host-sim machine`: a host's machine as its administrator sees and turns it, at the console of a running
//! one, or in the folder of one that is off.

use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    boot,
    control::{Control, ControlReply, ask},
    dials::Dials,
    known,
    orders::{CLEARED_AT_BOOT, TAKES_EFFECT},
    settings::{Changes, NextBoot, Settings, as_map},
};
use crate::owner::certificate::printable;

/// The machine of a host: its dials, and its power.
#[derive(Debug, clap::Args)]
pub struct MachineArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Show the dials in force, and what waits for the next boot
    Show(Machine),
    /// List every dial: what it means and what of the boot log it changes
    Dials {
        /// Print the list as JSON
        #[arg(long)]
        json: bool,
    },
    /// Turn dials: NAME=VALUE, on or off for most; in force from the next boot on
    Set(Set),
    /// Power-cycle the host; what waits for the next boot happens
    Reboot(Machine),
    /// Hibernate and resume: the host's memory is as before, and its boot log tells nothing of it
    Hibernate(Machine),
    /// Bring another firmware, in force from the next boot on
    UpdateFirmware(UpdateFirmware),
    /// Let firmware clear the TPM at the next boot: its storage keys and counters are gone, the endorsement key stays.
    ///
    /// The VBS store then begins anew with new VSM keys. Suspend BitLocker first on a real host; here it is taken to be.
    ClearTpm(ClearTpm),
}

#[derive(Clone, Debug, clap::Args)]
struct Machine {
    /// The host's folder, as `host --dir` has it
    #[arg(long, env = "HGS_HOST_DIR", value_name = "DIR")]
    dir: PathBuf,
    /// Print the machine as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Set {
    #[command(flatten)]
    machine: Machine,
    /// A dial and its value, such as secure-boot=off
    #[arg(required = true, value_name = "NAME=VALUE", value_parser = name_and_value)]
    dials: Vec<(String, String)>,
    /// Reboot the host at once
    #[arg(long)]
    reboot: bool,
}

#[derive(Debug, clap::Args)]
struct UpdateFirmware {
    #[command(flatten)]
    machine: Machine,
    /// The new version
    version: String,
    /// Name of the list of revoked signatures (dbx) that comes with it. Without it the list stays
    #[arg(long, value_name = "NAME")]
    dbx: Option<String>,
    /// Reboot the host at once
    #[arg(long)]
    reboot: bool,
}

#[derive(Debug, clap::Args)]
struct ClearTpm {
    #[command(flatten)]
    machine: Machine,
    /// Reboot the host at once
    #[arg(long)]
    reboot: bool,
}

/// A machine, on or off.
#[derive(Debug, Serialize)]
struct MachineView {
    on: bool,
    message: String,
    boots: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<String>,
    dials: Dials,
    waiting: NextBoot,
    remarks: Vec<String>,
}

/// Does what was asked and shows the machine; the exit code is 1 if the machine refused.
pub fn run(args: &MachineArgs) -> anyhow::Result<ExitCode> {
    match &args.verb {
        Verb::Show(machine) => machine.do_and_show(&Control::Status),
        Verb::Dials { json } => {
            println!(
                "{}",
                if *json {
                    serde_json::to_string_pretty(known::DIALS)?
                } else {
                    list()?
                }
            );
            Ok(ExitCode::SUCCESS)
        }
        Verb::Set(set) => {
            let dials = set.dials.iter().map(|(name, value)| dial(name, value));
            let dials = dials.collect::<anyhow::Result<Changes>>()?;
            set.machine.order(&Control::Set { dials }, set.reboot)
        }
        Verb::Reboot(machine) => machine.do_and_show(&Control::Reboot { dials: None }),
        Verb::Hibernate(machine) => machine.do_and_show(&Control::Hibernate),
        Verb::UpdateFirmware(update) => {
            let mut dials = Changes::from_iter([("firmware".to_owned(), json!(update.version))]);
            dials.extend(update.dbx.as_ref().map(|dbx| ("dbx".to_owned(), json!(dbx))));
            update.machine.order(&Control::Set { dials }, update.reboot)
        }
        Verb::ClearTpm(clear) => clear.machine.order(&Control::ClearTpm, clear.reboot),
    }
}

impl Machine {
    /// An order for the next boot, which comes at once if `reboot`.
    fn order(&self, order: &Control, reboot: bool) -> anyhow::Result<ExitCode> {
        if !reboot {
            return self.do_and_show(order);
        }
        let answered = self.ask(order)?;
        ensure!(
            answered.is_some(),
            "{} is off: leave --reboot out and start it",
            self.dir.display()
        );
        match answered.filter(|reply| !reply.ok) {
            Some(refused) => self.show(refused),
            None => self.do_and_show(&Control::Reboot { dials: None }),
        }
    }

    fn do_and_show(&self, order: &Control) -> anyhow::Result<ExitCode> {
        match self.ask(order)? {
            Some(reply) => self.show(reply),
            None => self.print(&self.while_off(order)?),
        }
    }

    /// What the running machine answers; none when it is off.
    fn ask(&self, order: &Control) -> anyhow::Result<Option<ControlReply>> {
        ensure!(self.dir.is_dir(), "there is no folder {} of a host", self.dir.display());
        let socket = self.dir.join("machine.sock");
        match ask(&socket, order) {
            Ok(reply) => Ok(Some(reply)),
            Err(e) if [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused].contains(&e.kind()) => Ok(None),
            Err(e) => Err(e).with_context(|| format!("the machine behind {} does not answer", socket.display())),
        }
    }

    fn show(&self, reply: ControlReply) -> anyhow::Result<ExitCode> {
        if !reply.ok {
            eprintln!("{}", printable(&reply.message));
            return Ok(ExitCode::FAILURE);
        }
        self.print(&MachineView {
            on: true,
            message: reply.message,
            boots: reply.boots,
            agent: reply.agent,
            dials: reply.dials.map(|dials| *dials).unwrap_or_default(),
            waiting: reply.waiting,
            remarks: reply.remarks,
        })
    }

    /// What can be ordered of a machine that is off: what waits for its next boot.
    fn while_off(&self, order: &Control) -> anyhow::Result<MachineView> {
        let folder = &self.dir;
        let kept = Settings::load(folder)?;
        ensure!(
            kept.is_some() || folder.join("tpm").is_dir(),
            "{} is not the folder of a host: start the host once, with `host --dir`",
            folder.display()
        );
        let mut settings = kept.unwrap_or_default();
        let message = match order {
            Control::Status => "",
            Control::Set { dials } => {
                settings.turn(dials)?;
                TAKES_EFFECT
            }
            Control::ClearTpm => {
                settings.next.clear_tpm = true;
                CLEARED_AT_BOOT
            }
            _ => bail!("{} is off: start the host", folder.display()),
        };
        if *order != Control::Status {
            settings.save(folder)?;
        }
        Ok(MachineView {
            on: false,
            message: message.to_owned(),
            boots: boot::count(folder),
            agent: None,
            dials: settings.dials,
            waiting: settings.next,
            remarks: Vec::new(),
        })
    }

    fn print(&self, view: &MachineView) -> anyhow::Result<ExitCode> {
        match self.json {
            true => println!("{}", serde_json::to_string_pretty(view)?),
            false => print!("{}", text(view)?),
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn text(view: &MachineView) -> anyhow::Result<String> {
    let mut text = String::new();
    let power = if view.on { "on" } else { "off" };
    write!(text, "The machine is {power}, boots so far: {}", view.boots)?;
    if let Some(agent) = &view.agent {
        write!(text, ", agent: {}", printable(agent))?;
    }
    let (now, waiting) = (as_map(&view.dials), &view.waiting.dials);
    writeln!(text, "\n\n{:<22} {:<26} at the next boot", "dial", "now")?;
    for dial in known::DIALS {
        let next = waiting
            .get(dial.name)
            .map_or_else(String::new, |value| word(dial.name, Some(value)));
        let line = format!("{:<22} {:<26} {next}", dial.name, word(dial.name, now.get(dial.name)));
        writeln!(text, "{}", line.trim_end())?;
    }
    if view.waiting.clear_tpm {
        writeln!(text, "\nThe TPM is cleared at the next boot.")?;
    }
    for remark in &view.remarks {
        writeln!(text, "\n{}", printable(remark))?;
    }
    if !view.message.is_empty() {
        writeln!(text, "\n{}", printable(&view.message))?;
    }
    Ok(text)
}

/// A dial's value in a word.
fn word(name: &str, value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "none".to_owned(),
        Some(Value::Bool(value)) => if *value { "on" } else { "off" }.to_owned(),
        Some(Value::String(text)) if IN_FILES.contains(&name) => match BASE64_STANDARD.decode(text) {
            Ok(bytes) => format!("{} bytes", bytes.len()),
            Err(_) => printable(text),
        },
        Some(Value::String(text)) => printable(text),
        Some(Value::Array(names)) => {
            let names: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
            printable(&names.join(","))
        }
        Some(other) => printable(&other.to_string()),
    }
}

fn list() -> anyhow::Result<String> {
    let mut text = String::new();
    for dial in known::DIALS {
        writeln!(text, "{}: {}", dial.name, dial.about)?;
        for (pcr, event) in dial.measured {
            writeln!(text, "    PCR {pcr:>2}  {event}")?;
        }
    }
    Ok(text.trim_end().to_owned())
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or("a dial is turned by NAME=VALUE, such as iommu=off")?;
    Ok((name.replace('-', "_"), value.to_owned()))
}

/// A dial's name and value as a file of dials has them.
fn dial(name: &str, value: &str) -> anyhow::Result<(String, Value)> {
    let there = as_map(&Dials::default());
    let none = value == "none";
    let read = || fs::read(value).with_context(|| format!("cannot read {value}"));
    let value = match name {
        _ if IN_FILES.contains(&name) && !none => json!(BASE64_STANDARD.encode(read()?)),
        "template" if !none => json!({ "file": Path::new(value).canonicalize().with_context(|| value.to_owned())? }),
        _ if none && (IN_FILES.contains(&name) || name == "template") => Value::Null,
        "omit" if none => json!([]),
        "omit" => json!(value.split(',').collect::<Vec<_>>()),
        _ => match (there.get(name), value) {
            (None, _) => bail!("there is no dial {}: `machine dials` lists them", printable(name)),
            (Some(Value::Bool(_)), "on" | "true") => json!(true),
            (Some(Value::Bool(_)), "off" | "false") => json!(false),
            (Some(Value::Bool(_)), _) => bail!("{name} is on or off, not {}", printable(value)),
            (Some(_), _) => json!(value),
        },
    };
    Ok((name.to_owned(), value))
}

/// Dials whose value is given as a file.
const IN_FILES: [&str; 2] = ["ci_policy", "dump_encryption_key"];
