//! The machine of one host, run by the daemon `host`: it owns the TPM with its power button, is firmware
//! and boot loader, and starts the VBS store and the agent.
//!
//! Boot order (the store's root key hangs on it): reset, measure the configuration, let the store
//! unseal, measure counter and VSM keys, cap; only then does the agent get a TPM socket.

pub mod boot;
pub mod command;
pub mod control;
pub mod dials;
pub mod ek_certificate;
pub mod known;
mod orders;
pub mod provision;
pub mod relay;
pub mod settings;
pub mod template;
pub mod user;

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    sync::mpsc,
};

use anyhow::{Context, bail};
use rustix::process::{Resource, Rlimit, setrlimit};

use self::{
    boot::Boot,
    control::ControlReply,
    dials::{AppliedDials, Dials, Skew, TemplateDial},
    provision::provision,
    relay::{Gate, SharedTpm},
    settings::{NextBoot, Settings},
    template::{Script, Template},
    user::{AGENT_USER, AgentUser, place},
};
use crate::{
    child::{Child, Input, Output, Plan, last_words},
    store::StoreReport,
    swtpm::{Swtpm, TpmMaker, make_private_dir, socket_dir},
};

/// One simulated host.
#[derive(Clone, Debug, clap::Args)]
pub struct HostArgs {
    /// The host's name.
    #[arg(long)]
    pub name: String,
    /// The host's directory: TPM, store, agent, control socket `machine.sock`.
    #[arg(long)]
    pub dir: PathBuf,
    /// Directory of the lab's TPM maker; needed when the host has no TPM yet.
    #[arg(long)]
    pub maker: Option<PathBuf>,
    /// JSON file of dials; without it the host has those of its last boot, and a new one is healthy. What its
    /// administrator has set for the next boot comes on top.
    #[arg(long)]
    pub dials: Option<PathBuf>,
    /// Boot log of a real machine, whose shape the host takes.
    #[arg(long)]
    pub template: Option<PathBuf>,
    /// Which dials change the template's values.
    #[arg(long, value_enum, default_value_t, requires = "template")]
    pub template_dials: AppliedDials,
    /// Where the agent's control API listens.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub agent_listen: String,
    /// The user (and group) of the agent when the host is started as root; 0 for root itself.
    #[arg(long, default_value_t = AGENT_USER)]
    pub agent_user: u32,
    /// The hosts' shared volume with the VMs' files.
    #[arg(long)]
    pub volume: Option<PathBuf>,
    /// Be a host of before Windows version 1803, which has no console for shielded VMs.
    #[arg(long)]
    pub before_1803: bool,
    /// What follows `--` is given to the agent.
    #[arg(last = true)]
    pub agent: Vec<String>,
}

/// Runs the host until it is stopped (Ok) or something of it dies (an error).
pub fn run(args: &HostArgs) -> anyhow::Result<()> {
    let mut settings = Settings::load(&args.dir)?.unwrap_or_default();
    if let Some(path) = &args.dials {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        settings.dials = serde_json::from_slice(&text).with_context(|| format!("{} holds no dials", path.display()))?;
    }
    if let Some(file) = &args.template {
        settings.dials.template = Some(TemplateDial {
            file: file.clone(),
            dials: args.template_dials,
        });
    }
    // Inherited by every part of the host: what crashes leaves no image of its memory, software TPMs included.
    let no_cores = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, no_cores).context("the system refuses to forbid core dumps")?;
    let mut machine = Machine::assemble(args, settings)?;
    let (sender, orders) = mpsc::channel();
    control::listen(&machine.dir.join("machine.sock"), sender).context("the machine's control socket")?;
    let result = machine.live(&orders);
    let _ = fs::remove_dir_all(&machine.sockets);
    result
}

struct Machine {
    name: String,
    dir: PathBuf,
    sockets: PathBuf,
    user: AgentUser,
    volume: Option<PathBuf>,
    before_1803: bool,
    agent_listen: String,
    agent_arguments: Vec<String>,
    settings: Settings,
    /// The template that the dials name, read when they were set.
    template: Option<Template>,
    maker: Option<PathBuf>,
    boots: u64,
    remarks: Vec<String>,
    tpm: SharedTpm,
    store_gate: Gate,
    agent_gate: Gate,
    running: Option<Running>,
    /// Whether the lab let the TPM fail since the last boot.
    tpm_failed: bool,
}

/// What runs between two power cycles. The agent ends before the store.
struct Running {
    agent: Child,
    store: Option<Child>,
    address: String,
}

impl Machine {
    fn assemble(args: &HostArgs, settings: Settings) -> anyhow::Result<Machine> {
        let user = AgentUser::choose(args.agent_user);
        fs::create_dir_all(&args.dir).with_context(|| format!("cannot create {}", args.dir.display()))?;
        let dir = args.dir.canonicalize()?;
        user.let_pass(&dir)?;
        user.can_reach(&dir)?;
        let volume = match &args.volume {
            Some(volume) => {
                fs::create_dir_all(volume).with_context(|| format!("cannot create {}", volume.display()))?;
                user.hand_over(volume)?;
                // The store and the agent work in folders of their own.
                let volume = volume.canonicalize()?;
                user.can_reach(&volume)?;
                Some(volume)
            }
            None => None,
        };
        let state = dir.join("tpm");
        if !state.join("ek-rsa2048.crt").exists() {
            let maker = args
                .maker
                .as_deref()
                .context("this host has no TPM yet: give --maker, the directory of the lab's TPM maker")?;
            make_private_dir(maker)?;
            TpmMaker::open(&maker.canonicalize()?)?.manufacture(&args.name, &state, None)?;
        }
        for part in ["store", "agent"] {
            make_private_dir(&dir.join(part))?;
        }
        user.give(&dir.join("agent"))?;
        let boots = boot::count(&dir);
        let tpm = SharedTpm::new(Swtpm::start(&args.name, &state, None)?);
        let sockets = socket_dir(&dir)?;
        user.let_pass(&sockets)?;
        let (store_gate, agent_gate) = (Gate::default(), Gate::default());
        relay::offer(&sockets.join("tpm-store"), tpm.clone(), store_gate.clone())?;
        relay::offer(&sockets.join("tpm-agent"), tpm.clone(), agent_gate.clone())?;
        user.give(&sockets.join("tpm-agent"))?;
        Ok(Machine {
            name: args.name.clone(),
            dir,
            sockets,
            user,
            volume,
            before_1803: args.before_1803,
            agent_listen: args.agent_listen.clone(),
            agent_arguments: args.agent.clone(),
            template: None,
            settings,
            maker: args.maker.clone(),
            boots,
            remarks: Vec::new(),
            tpm,
            store_gate,
            agent_gate,
            running: None,
            tpm_failed: false,
        })
    }

    fn boot(&mut self) -> anyhow::Result<()> {
        self.power_off()?;
        if !self.tpm.lock().is_running() {
            self.tpm.replace(Swtpm::start(&self.name, &self.dir.join("tpm"), None)?);
        }
        self.tpm_failed = false;
        if self.settings.next.clear_tpm {
            let mut tpm = self.tpm.lock();
            tpm.reset(boot::STARTUP_LOCALITY)?;
            provision::clear(&mut tpm).context("the TPM cannot be cleared")?;
        }
        self.settings.next = NextBoot::default();
        self.settings.save(&self.dir)?;
        self.boots = boot::count_one_more(&self.dir).context("cannot write the boot counter")?;
        self.remarks = self.user.remark().map(str::to_owned).into_iter().collect();
        let (log, store) = match self.script() {
            Some(script) => self.boot_template(script)?,
            None => {
                let (tpm, dials, boots) = (self.tpm.clone(), self.settings.dials.clone(), self.boots);
                boot::simulate(&tpm, &dials, boots, || self.start_store(false))?
            }
        };
        for remark in &self.remarks {
            eprintln!("{}: {remark}", self.name);
        }
        let agent_dir = self.dir.join("agent");
        place(&agent_dir.join("boot.log"), &log)?;
        let policy = agent_dir.join("SIPolicy.p7b");
        match &self.settings.dials.ci_policy {
            Some(bytes) if self.applies_ci_policy() => {
                place(&policy, bytes)?;
            }
            _ => {
                let _ = fs::remove_file(&policy);
            }
        }
        self.settings.dials.ek_certificate.show(
            &self.dir.join("tpm/ek-rsa2048.crt"),
            self.maker.as_deref(),
            &self.dir,
            &agent_dir,
        )?;
        self.agent_gate.open();
        let (agent, address) = self.start_agent(store.is_some())?;
        // The next agent of this machine answers at the same place.
        self.agent_listen = address.clone();
        self.running = Some(Running { agent, store, address });
        Ok(())
    }

    /// A boot in a real machine's shape. Its order says nothing about what comes after the store has
    /// opened, so the store's keys last for this boot only.
    fn boot_template(&mut self, script: Script) -> anyhow::Result<Booted> {
        self.remarks.extend(script.remarks.iter().cloned());
        let tpm = self.tpm.clone();
        let log = {
            let mut tpm = tpm.lock();
            tpm.reset(script.locality)?;
            provision(&mut tpm)?;
            let mut boot = Boot::begin_at(script.locality, tpm.channel());
            boot.repeat(&script.before)?;
            boot.pause()
        };
        let store = match script.vsm {
            true => Some(self.start_store(true)?),
            false => None,
        };
        let keys = store.as_ref().map(|(_, report)| report.keys()).transpose()?;
        let mut tpm = tpm.lock();
        let mut boot = Boot::resume(log, tpm.channel());
        boot.repeat(&script.after(keys.as_ref().map(|(e, s)| (e, s))))?;
        Ok((boot.pause().finish(), store.map(|(child, _)| child)))
    }

    fn script(&self) -> Option<Script> {
        let (template, dial) = (self.template.as_ref()?, self.settings.dials.template.as_ref()?);
        Some(template.script(&self.settings.dials, dial.dials, self.boots, &self.name))
    }

    /// False where a template's own policy stays, whose file nobody has.
    fn applies_ci_policy(&self) -> bool {
        let all = |dial: &TemplateDial| dial.dials == AppliedDials::All;
        let dials = &self.settings.dials;
        dials.template.as_ref().is_none_or(all) || dials.ci_policy != Dials::default().ci_policy
    }

    fn power_off(&mut self) -> anyhow::Result<()> {
        self.agent_gate.shut();
        self.store_gate.shut();
        if let Some(mut running) = self.running.take() {
            running.agent.kill()?;
            if let Some(store) = &mut running.store {
                store.kill()?;
            }
        }
        Ok(())
    }

    fn start_store(&mut self, anew: bool) -> anyhow::Result<(Child, StoreReport)> {
        self.store_gate.open();
        let dir = self.dir.join("store");
        let log = dir.join("store.log");
        let anew: &[&str] = if anew { &["--anew"] } else { &[] };
        let mut plan = Plan::this_program(&dir)?
            .args(["store", "--name", &self.name])
            .args(anew)
            .arg("--dir")
            .arg(&dir)
            .arg("--tpm")
            .arg(self.sockets.join("tpm-store"))
            .arg("--socket")
            .arg(self.store_socket())
            .output(Output::Pipe)
            .errors(Output::File(log.clone()));
        if let Some(volume) = &self.volume {
            plan = plan.arg("--volume").arg(volume);
        }
        if self.before_1803 {
            plan = plan.arg("--before-1803");
        }
        let mut child = plan.spawn()?;
        let line = first_line(&mut child)?;
        let report: StoreReport = serde_json::from_str(&line).map_err(|_| self.store_failure(&log))?;
        self.remarks.extend(report.remarks.iter().cloned());
        self.user.give(&self.store_socket())?;
        Ok((child, report))
    }

    /// What the store said last, or that the TPM is gone.
    fn store_failure(&mut self, log: &Path) -> anyhow::Error {
        if !self.tpm.lock().is_running() {
            return anyhow::anyhow!("the TPM of {} does not answer: swtpm has ended", self.name);
        }
        match last_words(log) {
            words if words.starts_with("the VBS store") => anyhow::anyhow!("{words}"),
            words => anyhow::anyhow!("the VBS store of {} did not open: {words}", self.name),
        }
    }

    fn start_agent(&mut self, with_store: bool) -> anyhow::Result<(Child, String)> {
        let dir = self.dir.join("agent");
        // Not in the agent's folder, where it could put a link in the log's place.
        let log = self.dir.join("agent.log");
        let mut plan = self
            .agent_program(&dir)?
            .args(["agent", "--name", &self.name, "--listen", &self.agent_listen])
            .arg("--dir")
            .arg(&dir)
            .arg("--tpm")
            .arg(self.sockets.join("tpm-agent"));
        if with_store {
            plan = plan.arg("--store").arg(self.store_socket());
        }
        if let Some(volume) = &self.volume {
            plan = plan.arg("--volume").arg(volume);
        }
        match self.settings.dials.clock_skew {
            Skew(0) => {}
            Skew(seconds) => plan = plan.arg(format!("--clock-skew={seconds}")),
        }
        let mut child = plan
            .args(&self.agent_arguments)
            .input(Input::Null)
            .output(Output::Pipe)
            .errors(Output::File(log.clone()))
            .spawn()?;
        let line = first_line(&mut child)?;
        match line.trim().strip_prefix("ready ") {
            Some(address) => Ok((child, address.to_owned())),
            None => bail!("the agent of {} did not start: {}", self.name, last_words(&log)),
        }
    }

    /// This program, for the agent's user. That user may not be able to walk to the program's file
    /// (below root's home, say), so the child gets it open and executes the descriptor.
    fn agent_program(&self, dir: &Path) -> anyhow::Result<Plan> {
        if self.user.number().is_none() {
            return Ok(Plan::this_program(dir)?);
        }
        let program = File::open(std::env::current_exe()?).context("cannot open this program")?;
        Ok(Plan::new("/proc/self/fd/3", dir)
            .descriptor(program, 3)
            .user(self.user.number()))
    }

    fn watch(&mut self) -> anyhow::Result<()> {
        if !self.tpm_failed && !self.tpm.lock().is_running() {
            bail!("the TPM of {} does not answer: swtpm has ended", self.name);
        }
        if let Some(running) = &mut self.running {
            if let Some(store) = &mut running.store
                && store.ended()?.is_some()
            {
                bail!("the VBS store of {} has ended; the host cannot go on", self.name);
            }
            if running.agent.ended()?.is_some() {
                bail!(
                    "the agent of {} has ended; see {}/agent.log",
                    self.name,
                    self.dir.display()
                );
            }
        }
        Ok(())
    }

    fn store_socket(&self) -> PathBuf {
        self.sockets.join("store")
    }

    fn address(&self) -> Option<String> {
        self.running.as_ref().map(|r| format!("http://{}", r.address))
    }

    fn reply(&self, message: &str) -> ControlReply {
        ControlReply {
            ok: true,
            message: message.to_owned(),
            agent: self.address(),
            boots: self.boots,
            dials: Some(Box::new(self.settings.dials.clone())),
            waiting: self.settings.next.clone(),
            remarks: self.remarks.clone(),
        }
    }
}

/// The boot log, and the store where VSM runs.
type Booted = (Vec<u8>, Option<Child>);

/// The template that `dials` name.
fn template(dials: &Dials) -> anyhow::Result<Option<Template>> {
    let Some(dial) = &dials.template else { return Ok(None) };
    let below = std::env::var_os("LAB_CORPUS").map(|corpus| PathBuf::from(corpus).join(&dial.file));
    let path = match below.filter(|path| !dial.file.exists() && path.exists()) {
        Some(path) => path,
        None => dial.file.clone(),
    };
    let bytes = fs::read(&path).with_context(|| format!("cannot read the template {}", path.display()))?;
    let read = Template::read(&bytes).with_context(|| format!("{} is no boot log", path.display()))?;
    Ok(Some(read))
}

fn first_line(child: &mut Child) -> anyhow::Result<String> {
    let mut line = String::new();
    if let Some(output) = child.take_output() {
        BufReader::new(output).read_line(&mut line)?;
    }
    Ok(line)
}
