//! A host of the lab: its process, its settings, and the VMs that were only planned on it so far.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context, anyhow, bail};

use crate::{
    fabric::{
        host::{AgentLink, HostPlan, SimHost},
        service::Environment,
    },
    machine::{
        control::{Control, ask},
        dials::Dials,
        user::let_others_pass,
    },
    vm::security::Kind,
};

/// A host.
pub struct LabHost {
    sim: SimHost,
    /// How its machine is set from the next start on.
    pub dials: Dials,
    /// VMs that New-VM has made and that have no virtual TPM yet, by their names in small letters.
    pub planned: BTreeMap<String, PlannedVm>,
}

/// A VM as New-VM makes it: it has nothing sealed yet, so that nothing of it is on the volume.
#[derive(Clone, Debug)]
pub struct PlannedVm {
    /// Its name.
    pub name: String,
    /// 1 or 2.
    pub generation: i64,
    /// Bytes.
    pub memory: i64,
    /// The key protector, once one is set.
    pub protector: Option<Vec<u8>>,
    /// The template disk that it was made with: the real file.
    pub disk: Option<PathBuf>,
    /// Whether it is to have a virtual TPM.
    pub tpm: bool,
    /// What it is to be.
    pub kind: Kind,
}

pub(super) fn start_all(
    folder: &Path,
    maker: &Path,
    names: &Path,
    wanted: &[(String, Dials)],
) -> anyhow::Result<BTreeMap<String, LabHost>> {
    let started: Vec<anyhow::Result<LabHost>> = thread::scope(|scope| {
        let threads: Vec<_> = wanted
            .iter()
            .map(|(name, dials)| scope.spawn(move || LabHost::start(folder, maker, names, name, dials)))
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread
                .join()
                .unwrap_or_else(|_| Err(anyhow!("the thread that starts a host panicked")))
        };
        threads.into_iter().map(join).collect()
    });
    let mut hosts = BTreeMap::new();
    for host in started {
        let host = host?;
        hosts.insert(host.sim.name.to_ascii_lowercase(), host);
    }
    Ok(hosts)
}

impl LabHost {
    fn start(folder: &Path, maker: &Path, names: &Path, name: &str, dials: &Dials) -> anyhow::Result<LabHost> {
        let own = folder.join("hosts").join(name);
        fs::create_dir_all(&own)?;
        let_others_pass(&own)?;
        let file = own.join("dials.json");
        fs::write(&file, serde_json::to_vec(dials)?)?;
        let text = |path: &Path| path.display().to_string();
        let agent = [
            // Without URLs it is in local mode, as a new host is.
            "--attest-when-asked".to_owned(),
            "--names".to_owned(),
            text(names),
            "--lab-clock".to_owned(),
            text(&own.join("agent/clock")),
        ];
        let sim = SimHost::start(&HostPlan {
            name,
            folder: &own,
            maker,
            volume: &folder.join("volume"),
            host: &["--dials".to_owned(), text(&file)],
            agent: &agent,
            environment: &Environment::new(),
        })
        .with_context(|| format!("the host {name}"))?;
        Ok(LabHost {
            sim,
            dials: dials.clone(),
            planned: BTreeMap::new(),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.sim.name
    }

    /// Its agent.
    pub fn agent(&self) -> AgentLink {
        self.sim.agent()
    }

    /// Where other hosts reach its agent.
    pub fn address(&self) -> &str {
        &self.sim.agent_url
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.sim.folder()
    }

    /// How its machine is set at the moment, and how often it has booted.
    pub fn status(&self) -> anyhow::Result<(Dials, u64)> {
        let reply = ask(&self.folder().join("machine.sock"), &Control::Status)
            .with_context(|| format!("the machine of {} does not answer", self.name()))?;
        let dials = reply.dials.context("the machine does not say how it is set")?;
        Ok((*dials, reply.boots))
    }

    /// A power cycle with its settings. `files` are its machine's: the code-integrity policy in them is taken.
    pub(super) fn restart(&mut self, files: &Path) -> anyhow::Result<()> {
        match fs::read(policy_file(files)) {
            Ok(policy) => self.dials.ci_policy = Some(policy),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => bail!("the code-integrity policy of {} cannot be read: {error}", self.name()),
        }
        self.sim.reboot(self.dials.clone())
    }

    pub(super) async fn advance(&self, seconds: u64) -> anyhow::Result<()> {
        self.sim.advance_clock(seconds).await.map(|_| ())
    }
}

/// Where Windows takes its code-integrity policy from, in a machine's files.
pub(super) fn policy_file(files: &Path) -> PathBuf {
    files.join("C/Windows/System32/CodeIntegrity/SIPolicy.p7b")
}
