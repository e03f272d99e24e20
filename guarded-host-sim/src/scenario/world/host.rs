//! A host of a scenario: its process, its dials, its doors to the HGSs, and its clock.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use anyhow::Context;
use hgs_service::lab_clock;
use tokio::{net::TcpStream, sync::Mutex};
use x509_cert::{
    Certificate,
    der::{Decode, Encode},
};

use super::{address_of, blocking};
use crate::{
    client::NameTable,
    commit_point,
    fabric::host::{AgentLink, Answer, HostPlan as Start, SimHost},
    machine::dials::Dials,
    scenario::{
        door::Door,
        model::{DialChanges, HostPlan, NO_HGS},
        pool::TpmPool,
    },
    swtpm,
};

/// A host.
pub struct HostHere {
    plan: HostPlan,
    /// Its HGS; none in local mode.
    pub(in crate::scenario) hgs: Option<String>,
    parts: Parts,
    https: bool,
    /// Whether a commit point is to cut its power.
    armed: AtomicBool,
    /// None while its power is off.
    sim: Mutex<Option<SimHost>>,
    dials: Mutex<Dials>,
    /// Seconds by which the lab has moved its clock.
    ahead: AtomicU64,
    /// The number of the last event that was read.
    pub(super) seen_events: Mutex<u64>,
    doors: BTreeMap<String, Door>,
}

/// What a host is made of.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    pub(super) folder: PathBuf,
    pub(super) pool: Arc<TpmPool>,
    pub(super) number: usize,
    pub(super) volume: PathBuf,
    pub(super) first: String,
    pub(super) root_certificate: Option<PathBuf>,
}

impl HostHere {
    /// Takes a TPM from the pool and boots.
    pub(super) async fn start(plan: HostPlan, parts: Parts, doors: BTreeMap<String, Door>) -> anyhow::Result<HostHere> {
        let hgs = match &plan.hgs {
            None => Some(parts.first.clone()),
            Some(name) if **name == NO_HGS => None,
            Some(name) => Some(name.to_string()),
        };
        let dials = plan.dials.apply(Dials::default());
        let host = HostHere {
            hgs,
            https: parts.root_certificate.is_some(),
            armed: AtomicBool::new(false),
            sim: Mutex::new(None),
            dials: Mutex::new(dials),
            ahead: AtomicU64::new(0),
            seen_events: Mutex::default(),
            doors,
            plan,
            parts,
        };
        let (parts, tpm) = (host.parts.clone(), host.parts.folder.join("tpm"));
        blocking(move || {
            fs::create_dir_all(&parts.folder)?;
            parts.pool.put(parts.number, &tpm)
        })
        .await?;
        host.power_on(None).await?;
        Ok(host)
    }

    /// Its name.
    pub(in crate::scenario) fn name(&self) -> &str {
        &self.plan.name
    }

    /// Its agent; an error while its power is off.
    pub(in crate::scenario) async fn agent(&self) -> anyhow::Result<AgentLink> {
        let sim = self.sim.lock().await;
        let sim = sim
            .as_ref()
            .with_context(|| format!("the power of {} is off", self.name()))?;
        Ok(sim.agent())
    }

    /// Whether its power is on. A host that has lost its power at a commit point is off from then on.
    pub(in crate::scenario) async fn is_on(&self) -> bool {
        let mut sim = self.sim.lock().await;
        let mut crashed = sim.as_mut().is_some_and(|host| host.ended().is_some());
        // A commit point ends one of its processes; the others follow a moment later.
        if let Some(host) = sim.as_ref().filter(|_| self.armed.load(Ordering::SeqCst)) {
            let address = host.agent_url.trim_start_matches("http://");
            crashed |= TcpStream::connect(address).await.is_err();
        }
        if crashed && let Some(mut host) = sim.take() {
            let _ = blocking(move || host.kill()).await;
        }
        sim.is_some()
    }

    /// The folder of its agent.
    pub(super) fn agent_folder(&self) -> PathBuf {
        self.parts.folder.join("agent")
    }

    /// The volume of its VMs.
    pub(in crate::scenario) fn volume(&self) -> &Path {
        &self.parts.volume
    }

    /// Its endorsement key, SubjectPublicKeyInfo, as its administrator captures it where the TPM has no certificate.
    pub(super) fn endorsement_key(&self) -> anyhow::Result<Vec<u8>> {
        let certificate = swtpm::ek_certificate(&self.parts.folder.join("tpm"))?;
        let certificate = Certificate::from_der(&certificate)?;
        Ok(certificate.tbs_certificate.subject_public_key_info.to_der()?)
    }

    /// Where another host's agent reaches this one's.
    pub(in crate::scenario) async fn address(&self) -> Option<String> {
        self.sim.lock().await.as_ref().map(|sim| sim.agent_url.clone())
    }

    /// The dials of its present boot, or of the next one while its power is off.
    pub(in crate::scenario) async fn dials(&self) -> Dials {
        self.dials.lock().await.clone()
    }

    /// A power cycle with other dials.
    pub(in crate::scenario) async fn reboot(&self, changes: &DialChanges) -> anyhow::Result<()> {
        self.reboot_with(|dials| changes.apply(dials)).await
    }

    /// A power cycle with what `change` makes of its dials.
    pub(in crate::scenario) async fn reboot_with(&self, change: impl FnOnce(Dials) -> Dials) -> anyhow::Result<()> {
        let mut dials = self.dials.lock().await;
        let wanted = change(dials.clone());
        *dials = wanted.clone();
        drop(dials);
        self.at_the_machine(move |host| host.reboot(wanted)).await?;
        self.set_clock().await
    }

    /// A power cycle at which firmware clears the TPM.
    pub(in crate::scenario) async fn clear_tpm(&self) -> anyhow::Result<()> {
        self.at_the_machine(SimHost::clear_tpm).await?;
        self.set_clock().await
    }

    /// Hibernates and resumes, or says why the machine refuses. The agent is the same as before, its clock too.
    pub(in crate::scenario) async fn hibernate(&self) -> anyhow::Result<Answer<String>> {
        self.at_the_machine(|host| host.hibernate()).await
    }

    /// Does something at the machine of a host that is on.
    async fn at_the_machine<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut SimHost) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let mut sim = self.sim.lock().await;
        let mut host = sim
            .take()
            .with_context(|| format!("the power of {} is off", self.name()))?;
        let (host, done) = blocking(move || {
            let done = act(&mut host);
            Ok((host, done))
        })
        .await?;
        *sim = Some(host);
        done
    }

    /// Cuts its power.
    pub(in crate::scenario) async fn kill(&self) -> anyhow::Result<()> {
        match self.sim.lock().await.take() {
            Some(mut host) => blocking(move || host.kill()).await,
            None => Ok(()),
        }
    }

    /// Boots; a host that runs stays as it is. `crash_at` names the commit point at which its power is cut.
    pub(in crate::scenario) async fn power_on(&self, crash_at: Option<&str>) -> anyhow::Result<()> {
        if self.is_on().await {
            return Ok(());
        }
        let mut sim = self.sim.lock().await;
        let agent = self.agent_arguments()?;
        let parts = self.parts.clone();
        let dials = parts.folder.join("dials.json");
        fs::write(&dials, serde_json::to_vec(&*self.dials.lock().await)?)?;
        let mut arguments = vec!["--dials".to_owned(), dials.display().to_string()];
        if self.plan.before_1803 {
            arguments.push("--before-1803".to_owned());
        }
        let environment: Vec<_> = crash_at
            .map(|point| (commit_point::VARIABLE.to_owned(), point.to_owned()))
            .into_iter()
            .collect();
        let name = self.name().to_owned();
        let started = blocking(move || {
            SimHost::start(&Start {
                name: &name,
                folder: &parts.folder,
                maker: &parts.pool.maker(),
                volume: &parts.volume,
                host: &arguments,
                agent: &agent,
                environment: &environment,
            })
        });
        let started = started
            .await
            .with_context(|| format!("{} does not start", self.name()))?;
        *sim = Some(started);
        drop(sim);
        self.armed.store(crash_at.is_some(), Ordering::SeqCst);
        self.set_clock().await
    }

    /// Moves its clock.
    pub(in crate::scenario) async fn advance(&self, seconds: u64) -> anyhow::Result<()> {
        self.ahead.fetch_add(seconds, Ordering::SeqCst);
        // One that is off gets it when it boots.
        match self.is_on().await {
            true => self.move_clock(seconds).await,
            false => Ok(()),
        }
    }

    /// After a boot the agent is a new process, at the system's time.
    async fn set_clock(&self) -> anyhow::Result<()> {
        match self.ahead.load(Ordering::SeqCst) {
            0 => Ok(()),
            ahead => self.move_clock(ahead).await,
        }
    }

    async fn move_clock(&self, seconds: u64) -> anyhow::Result<()> {
        lab_clock::advance(&self.clock(), seconds).await.map(|_| ())
    }

    fn clock(&self) -> PathBuf {
        self.parts.folder.join("agent").join("clock")
    }

    /// What the agent is told, as its administrator would configure it.
    fn agent_arguments(&self) -> anyhow::Result<Vec<String>> {
        let (scheme, port) = if self.https { ("https", 443) } else { ("http", 80) };
        let mut names = NameTable::default();
        for (hgs, door) in &self.doors {
            names
                .0
                .insert(format!("{}:{port}", address_of(hgs)), vec![door.address]);
        }
        let table = self.parts.folder.join("names.json");
        fs::write(&table, serde_json::to_vec_pretty(&names)?)?;
        let mut arguments = vec![
            // A scenario counts attempts; the first one is its own.
            "--attest-when-asked".to_owned(),
            "--names".to_owned(),
            table.display().to_string(),
            "--lab-clock".to_owned(),
            self.clock().display().to_string(),
            "--protocol".to_owned(),
            self.plan.protocol.name().to_owned(),
        ];
        if let Some(hgs) = &self.hgs {
            let base = format!("{scheme}://{}", address_of(hgs));
            arguments.extend(["--attestation-url".to_owned(), format!("{base}/Attestation")]);
            arguments.extend(["--key-protection-url".to_owned(), format!("{base}/KeyProtection")]);
        }
        if let Some(root) = &self.parts.root_certificate {
            arguments.extend(["--root-certificate".to_owned(), root.display().to_string()]);
        }
        Ok(arguments)
    }
}
