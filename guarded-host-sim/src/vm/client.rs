//! The verbs of `guarded-host-sim vm` that a host's agent carries out: each is one request to its control API, and
//! the host decides everything.

use std::{fmt::Write as _, fs, path::PathBuf};

use anyhow::{Context, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{
    VmName,
    checkpoint::CheckpointId,
    guest::Tally,
    security::{Channel, Kind, Switch},
    view::{VmState, VmView},
};
use crate::{
    fabric::service::http_client,
    owner::{
        certificate::printable,
        command::{read_file, read_password},
    },
    shielding::data_file::LARGEST_DATA_FILE,
};

/// Which host, and how its answer is shown.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Host {
    /// Base URL of the host's agent
    #[arg(long, env = "HGS_AGENT", value_name = "URL")]
    agent: String,
    /// Print the host's answer as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum HostVerb {
    /// List the VMs on the host's volume
    List(Host),
    /// Show a VM: state, security, key protector, checkpoints
    Show(Of),
    /// On a host in local mode: make a VM with a local key protector and a vTPM
    Create(Create),
    /// Make a VM of a template on the host's volume and shielding data
    Provision(Provision),
    /// Start a VM, or go on from its saved state
    #[command(visible_alias = "resume")]
    Start(Start),
    /// Shut a VM down
    Stop(Stop),
    /// Let a running VM's guest count one more, in its vTPM and on its volume: what it answers outlasts every crash
    Tally(Of),
    /// Save a running VM's memory and stop it
    Save(Of),
    /// Throw a saved VM's memory away
    DiscardSaved(Of),
    /// Reset a running VM; it keeps its keys
    Reset(Of),
    /// Move a running VM to another host
    Migrate(Migrate),
    /// Make this host the owner of a VM that runs nowhere, because its owner is lost or is to give it up
    TakeOver(Of),
    /// Shield a VM that is off, or turn one of its switches
    Security(SecurityArgs),
    /// Take a checkpoint
    Checkpoint(Checkpoint),
    /// Put a VM that is off or saved back to a checkpoint
    ApplyCheckpoint(OfCheckpoint),
    /// Delete a checkpoint
    DeleteCheckpoint(OfCheckpoint),
    /// Copy a VM that is off or saved to a folder of its name below another, on the host
    Export(Export),
    /// Copy an exported VM to the host's volume
    Import(Import),
    /// Write a VM's key protector to a file
    Protector(GetProtector),
    /// Give a VM that does not run another key protector
    SetProtector(SetProtector),
    /// Look into the guest by a channel that the VM's kind allows
    Look(Look),
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Of {
    /// The VM
    name: VmName,
    #[command(flatten)]
    host: Host,
}

#[derive(Debug, clap::Args)]
pub(super) struct Create {
    #[command(flatten)]
    vm: Of,
    #[arg(long, value_enum, default_value = "shielded")]
    kind: Kind,
    /// File whose text the guest's volume holds
    #[arg(long, value_name = "FILE")]
    secret_file: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(super) struct Start {
    #[command(flatten)]
    vm: Of,
    /// File with the recovery password of the VM's volume, which is typed where the guest asks for it, so that the fabric sees
    /// it: not of a shielded VM
    #[arg(long, value_name = "FILE")]
    recovery_password_file: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Provision {
    #[command(flatten)]
    vm: Of,
    /// The owner's shielding data file
    #[arg(long, value_name = "FILE")]
    shielding_data: PathBuf,
    /// The template disk, on the host's volume: its path there
    #[arg(long, value_name = "FILE")]
    template: PathBuf,
    /// A value for a placeholder of the answer file, such as ComputerName=web-01; may be repeated
    #[arg(long = "value", value_name = "NAME=VALUE", value_parser = name_and_value)]
    values: Vec<(String, String)>,
    /// Refuse shielding data of another policy
    #[arg(long, value_enum)]
    kind: Option<Kind>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Stop {
    #[command(flatten)]
    vm: Of,
    /// Cut its power instead
    #[arg(long)]
    turn_off: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Migrate {
    #[command(flatten)]
    vm: Of,
    /// The target's name
    #[arg(long)]
    target: String,
    /// Base URL of the target's agent
    #[arg(long, value_name = "URL")]
    address: String,
}

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub(super) struct SecurityArgs {
    #[command(flatten)]
    vm: Of,
    /// Make it one of this kind; only its owner makes a shielded VM anything else (vm rekey)
    #[arg(long, value_enum, group = "what")]
    kind: Option<Kind>,
    /// Turn this on
    #[arg(long, value_enum, value_name = "SWITCH", group = "what")]
    on: Option<Switch>,
    /// Turn this off
    #[arg(long, value_enum, value_name = "SWITCH", group = "what")]
    off: Option<Switch>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Checkpoint {
    #[command(flatten)]
    vm: Of,
    /// What to call it
    #[arg(long, default_value = "")]
    label: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct OfCheckpoint {
    #[command(flatten)]
    vm: Of,
    /// The checkpoint, as `vm show` names it
    checkpoint: uuid::Uuid,
}

#[derive(Debug, clap::Args)]
pub(super) struct Export {
    #[command(flatten)]
    vm: Of,
    /// The folder, on the host
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(super) struct Import {
    /// The exported VM's folder, on the host
    from: PathBuf,
    /// What to call it, if not as before
    #[arg(long)]
    name: Option<VmName>,
    #[command(flatten)]
    host: Host,
}

#[derive(Debug, clap::Args)]
pub(super) struct GetProtector {
    #[command(flatten)]
    vm: Of,
    /// The file
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("which").required(true))]
pub(super) struct SetProtector {
    #[command(flatten)]
    vm: Of,
    /// This one. The VM's state stays sealed under the key of the present one, so it must hold the same key
    #[arg(long, value_name = "FILE", group = "which")]
    file: Option<PathBuf>,
    /// A new one for this host's own guardian alone, which must be able to open the present one; the host is in local mode
    #[arg(long, group = "which")]
    new_local: bool,
    /// The one with which the VM last started
    #[arg(long, group = "which")]
    restore_last_known_good: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Look {
    #[command(flatten)]
    vm: Of,
    /// The channel
    #[arg(value_enum)]
    channel: Channel,
    /// File for what it gives, instead of the standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Asks the host and shows what it answers.
pub(super) fn run(verb: &HostVerb) -> anyhow::Result<()> {
    match verb {
        HostVerb::List(host) => {
            let vms: Vec<VmView> = host.ask(Method::GET, "volume/vms", None)?;
            let mut text = String::new();
            for vm in &vms {
                writeln!(text, "{}", line(vm))?;
            }
            host.show(
                &vms,
                if vms.is_empty() {
                    "no VMs on the volume\n"
                } else {
                    &text
                },
            )
        }
        HostVerb::Show(of) => {
            let vm: VmView = of.ask(Method::GET, "", None)?;
            of.host.show(&vm, &whole(&vm)?)
        }
        HostVerb::Create(args) => {
            let secret = fs::read_to_string(&args.secret_file).map(Zeroizing::new);
            let secret = secret.with_context(|| format!("cannot read {}", args.secret_file.display()))?;
            let body = json!({ "name": args.vm.name, "kind": args.kind, "secret": *secret });
            let host = &args.vm.host;
            let answer: Value = host.ask(Method::POST, "vms", Some(body))?;
            let password = answer["recovery_password"].as_str().unwrap_or_default();
            let text = format!(
                "made {}, which this host alone starts\nits recovery password, kept nowhere else: {}\n",
                args.vm.name,
                printable(password)
            );
            host.show(&answer, &text)
        }
        HostVerb::Provision(args) => {
            let data = read_file(&args.shielding_data, LARGEST_DATA_FILE)?;
            let body = json!({
                "shielding_data": STANDARD.encode(data),
                "template": args.template,
                "values": args.values.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
                "kind": args.kind,
            });
            let made: super::operation::ProvisionedVm = args.vm.ask(Method::POST, "provision", Some(body))?;
            let (name, template) = (&args.vm.name, printable(made.template.as_str()));
            let text = format!("made {name} ({}) of {template} {}\n", made.kind, made.version);
            args.vm.host.show(&made, &text)
        }
        HostVerb::Start(args) => {
            let of = &args.vm;
            let (path, body) = match &args.recovery_password_file {
                None => ("power-on", json!({})),
                Some(file) => ("recover", json!({ "recovery_password": *read_password(file)? })),
            };
            let started: super::operation::PoweredOn = of.ask(Method::POST, path, Some(body))?;
            let how = if started.offline { " without contact" } else { "" };
            let left = match started.offline_starts_left {
                0 => String::new(),
                left => format!("; {left} starts without contact are left"),
            };
            let text = format!("{} runs{how}: boot {}{left}\n", of.name, started.guest.boots);
            of.host.show(&started, &text)
        }
        HostVerb::Stop(args) if args.turn_off => args.vm.act("turn-off", "is off: its power was cut"),
        HostVerb::Stop(args) => args.vm.act("power-off", "is off"),
        HostVerb::Tally(of) => {
            let guest: super::guest::GuestReport = of.ask(Method::POST, "tally", Some(json!({})))?;
            let Tally { volume, vtpm } = guest.tally;
            let text = format!(
                "{} has counted to {volume} on its volume, {vtpm} in its vTPM\n",
                of.name
            );
            of.host.show(&guest, &text)
        }
        HostVerb::Save(of) => of.act("save", "is saved"),
        HostVerb::DiscardSaved(of) => of.act("discard-saved", "is off: its saved memory is gone"),
        HostVerb::Reset(of) => of.act("reset", "was reset and runs"),
        HostVerb::Migrate(args) => {
            let body = json!({ "target": args.target, "address": args.address });
            let moved: Value = args.vm.ask(Method::POST, "migrate", Some(body))?;
            let text = format!("{} runs on {}\n", args.vm.name, args.target);
            args.vm.host.show(&moved, &text)
        }
        HostVerb::TakeOver(of) => of.act("take-over", "belongs to this host"),
        HostVerb::Security(args) => {
            let (change, done) = match (args.kind, args.on, args.off) {
                (Some(kind), ..) => (json!({ "change": "kind", "kind": kind }), format!("is {kind}")),
                (None, Some(switch), _) => (
                    json!({ "change": "switch", "switch": switch, "on": true }),
                    format!("has {switch} on"),
                ),
                (None, None, Some(switch)) => (
                    json!({ "change": "switch", "switch": switch, "on": false }),
                    format!("has {switch} off"),
                ),
                (None, None, None) => bail!("say what is to change"),
            };
            args.vm.send(Method::POST, "security", change, &done)
        }
        HostVerb::Checkpoint(args) => {
            let taken: super::volume::CheckpointEntry =
                args.vm
                    .ask(Method::POST, "checkpoints", Some(json!({ "name": args.label })))?;
            args.vm
                .host
                .show(&taken, &format!("took the checkpoint {}\n", taken.id))
        }
        HostVerb::ApplyCheckpoint(args) => {
            let path = format!("checkpoints/{}/apply", CheckpointId(args.checkpoint));
            args.vm.act(&path, "is back at the checkpoint")
        }
        HostVerb::DeleteCheckpoint(args) => {
            let path = format!("checkpoints/{}", CheckpointId(args.checkpoint));
            args.vm
                .send(Method::DELETE, &path, json!({}), "has that checkpoint no more")
        }
        HostVerb::Export(args) => {
            let done = format!("was copied to {}", args.to.display());
            args.vm
                .send(Method::POST, "export", json!({ "destination": args.to }), &done)
        }
        HostVerb::Import(args) => {
            let body = json!({ "source": args.from, "name": args.name });
            let imported: Value = args.host.ask(Method::POST, "imports", Some(body))?;
            args.host
                .show(&imported, "the VM is on the volume, and this host owns it\n")
        }
        HostVerb::Protector(args) => {
            let answer: Protector = args.vm.ask(Method::GET, "protector", None)?;
            fs::write(&args.out, STANDARD.decode(&answer.protector)?)
                .with_context(|| format!("cannot write {}", args.out.display()))?;
            args.vm.host.show(&answer, &format!("wrote {}\n", args.out.display()))
        }
        HostVerb::SetProtector(args) => match &args.file {
            Some(file) => {
                let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
                let body = json!({ "protector": STANDARD.encode(bytes) });
                args.vm.send(
                    Method::PUT,
                    "protector",
                    body,
                    "has that key protector; its next start tells whether it fits",
                )
            }
            None if args.new_local => args.vm.act("protector/new-local", "has a new local key protector"),
            None => args
                .vm
                .act("protector/restore", "has the key protector of its last start again"),
        },
        HostVerb::Look(args) => {
            let path = format!(
                "channels/{}",
                serde_json::to_value(args.channel)?.as_str().unwrap_or_default()
            );
            let shown: Shown = args.vm.ask(Method::GET, &path, None)?;
            let content = STANDARD.decode(&shown.content).map(Zeroizing::new)?;
            match &args.out {
                Some(out) => {
                    fs::write(out, &content).with_context(|| format!("cannot write {}", out.display()))?;
                    args.vm.host.show(&shown, &format!("wrote {}\n", out.display()))
                }
                // What a guest says is not to move a terminal's cursor.
                None => {
                    let text: Vec<String> = String::from_utf8_lossy(&content).lines().map(printable).collect();
                    args.vm.host.show(&shown, &(text.join("\n") + "\n"))
                }
            }
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Protector {
    protector: String,
}

#[derive(Serialize, Deserialize)]
struct Shown {
    content: String,
}

impl Of {
    fn ask<T: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        verb: &str,
        body: Option<Value>,
    ) -> anyhow::Result<T> {
        let path = format!("vms/{}/{verb}", self.name);
        self.host.ask(method, path.trim_end_matches('/'), body)
    }

    fn send(&self, method: Method, verb: &str, body: Value, done: &str) -> anyhow::Result<()> {
        let answer: Value = self.ask(method, verb, Some(body))?;
        self.host.show(&answer, &format!("{} {done}\n", self.name))
    }

    fn act(&self, verb: &str, done: &str) -> anyhow::Result<()> {
        self.send(Method::POST, verb, json!({}), done)
    }
}

impl Host {
    /// The host whose agent is at this base URL.
    pub(crate) fn at(agent: &str) -> Host {
        Host {
            agent: agent.to_owned(),
            json: false,
        }
    }

    /// The host's answer, or its refusal as the error.
    pub(crate) fn ask<T: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> anyhow::Result<T> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let url = format!("{}/v1/{path}", self.agent.trim_end_matches('/'));
        runtime.block_on(async {
            let mut request = http_client(LONGEST_OPERATION, None)?.request(method, &url);
            if let Some(body) = body {
                request = request.json(&body);
            }
            let answer = request.send().await;
            let answer = answer.with_context(|| format!("the agent at {} does not answer", self.agent))?;
            let status = answer.status();
            let bytes = answer.bytes().await?;
            if status.is_success() {
                return serde_json::from_slice(&bytes).with_context(|| format!("{url} gave an unexpected answer"));
            }
            #[derive(Deserialize)]
            struct Refusal {
                error: String,
            }
            match serde_json::from_slice::<Refusal>(&bytes) {
                Ok(refusal) => bail!("{}", printable(&refusal.error)),
                Err(_) => bail!("{url} answered HTTP {status}"),
            }
        })
    }

    /// Prints the answer: `text`, or the whole of it as JSON.
    pub(crate) fn show(&self, answer: &impl Serialize, text: &str) -> anyhow::Result<()> {
        match self.json {
            true => println!("{}", serde_json::to_string_pretty(answer)?),
            false => print!("{text}"),
        }
        Ok(())
    }
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').ok_or("give NAME=VALUE")?;
    Ok((pair.0.to_owned(), pair.1.to_owned()))
}

fn line(vm: &VmView) -> String {
    let state = match vm.state {
        VmState::OnAnotherHost => format!("on {}", printable(&vm.owner_host)),
        state => format!("{state:?}"),
    };
    let kind = vm
        .security
        .as_ref()
        .map_or_else(|| "unreadable".to_owned(), |security| security.kind.to_string());
    format!("{:<20} {state:<16} {kind}", vm.name.as_str())
}

fn whole(vm: &VmView) -> anyhow::Result<String> {
    let mut text = format!("{}\n  id {}\n", line(vm), vm.id);
    writeln!(
        text,
        "  owner host {}, generation {}",
        printable(&vm.owner_host),
        vm.generation
    )?;
    for (switch, on) in vm.security.iter().flat_map(|security| &security.switches) {
        writeln!(text, "  {switch} {}", if *on { "on" } else { "off" })?;
    }
    match &vm.protector {
        None => writeln!(text, "  the key protector is unreadable")?,
        Some(protector) => {
            let owner = protector
                .owner
                .as_deref()
                .unwrap_or("unknown: its signatures do not hold");
            let others = protector.guardians.saturating_sub(1);
            writeln!(
                text,
                "  key protector for its owner ({owner}) and {others} other guardians"
            )?;
            if protector.can_restore {
                writeln!(text, "  the key protector of its last start can be restored")?;
            }
        }
    }
    for entry in &vm.checkpoints {
        let what = if entry.memory { "with memory" } else { "without memory" };
        writeln!(
            text,
            "  checkpoint {} {what}, taken {} {}",
            entry.id,
            hgs_protocol::env::UnixTime(entry.taken),
            printable(&entry.name)
        )?;
    }
    Ok(text)
}

/// A migration waits for its target's attestation and KPS, with their retries. In seconds.
const LONGEST_OPERATION: u64 = 300;
