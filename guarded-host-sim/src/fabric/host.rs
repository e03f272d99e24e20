//! One host of a fabric: its `host` process, the lab's hand on its power button, and its agent
//! as an administrator of the host uses it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    service::{Environment, Process, beside_this_program, first_line, http_client},
    watch::Watch,
};
use crate::{
    child::{Output, Plan, last_words},
    machine::{
        control::{self, Control, ControlReply},
        dials::Dials,
    },
};

/// How to start a host.
pub struct HostPlan<'a> {
    /// The host's name.
    pub name: &'a str,
    /// Everything of the host.
    pub folder: &'a Path,
    /// The lab's TPM maker.
    pub maker: &'a Path,
    /// The volume with the VMs' files.
    pub volume: &'a Path,
    /// Arguments of the host itself beyond those.
    pub host: &'a [String],
    /// Arguments of its agent.
    pub agent: &'a [String],
    /// Variables for its processes.
    pub environment: &'a Environment,
}

/// A running host.
pub struct SimHost {
    /// Its name.
    pub name: String,
    /// Where its agent answers.
    pub agent_url: String,
    folder: PathBuf,
    process: Process,
    watch: Watch,
    http: reqwest::Client,
}

/// A host's agent as an administrator reaches it. It may outlive the host, and then nobody answers.
#[derive(Clone, Debug)]
pub struct AgentLink {
    name: String,
    url: String,
    http: reqwest::Client,
}

/// The answer of an agent: its value, or its refusal as it stands.
pub type Answer<T> = Result<T, String>;

/// The body of an agent's refusal.
#[derive(serde::Deserialize)]
struct Refusal {
    error: String,
}

impl SimHost {
    /// Starts the host and waits until it has booted.
    pub fn start(plan: &HostPlan<'_>) -> anyhow::Result<SimHost> {
        // The sockets of the host lie here, so that they go with the host's folder.
        let run = plan.folder.join("run");
        fs::create_dir_all(&run).with_context(|| format!("cannot create {}", plan.folder.display()))?;
        let log = plan.folder.join("host.log");
        let mut start = Plan::new(beside_this_program("guarded-host-sim")?, plan.folder)
            .args(["host", "--name", plan.name])
            .arg("--dir")
            .arg(plan.folder)
            .arg("--maker")
            .arg(plan.maker)
            .arg("--volume")
            .arg(plan.volume)
            .args(plan.host)
            .env("TMPDIR", &run)
            .output(Output::Pipe)
            .errors(Output::File(log.clone()));
        for (name, value) in plan.environment {
            start = start.env(name, value);
        }
        let mut child = start.arg("--").args(plan.agent).spawn()?;
        let output = child.take_output().context("a host without standard output")?;
        let (line, output) = first_line(plan.name, output, &log)?;
        let agent_url = line
            .split(' ')
            .find_map(|word| word.strip_prefix("agent="))
            .with_context(|| format!("{} printed an unexpected first line: {line}", plan.name))?;
        Ok(SimHost {
            name: plan.name.to_owned(),
            agent_url: agent_url.to_owned(),
            folder: plan.folder.to_path_buf(),
            process: Process::Child(Box::new(child), output),
            watch: Watch::default(),
            http: http_client(120, None)?,
        })
    }

    /// A host that runs elsewhere, with its folder (which has the machine's socket) in reach.
    pub fn attach(name: &str, folder: &Path, agent_url: &str) -> anyhow::Result<SimHost> {
        Ok(SimHost {
            name: name.to_owned(),
            agent_url: agent_url.to_owned(),
            folder: folder.to_path_buf(),
            process: Process::Elsewhere,
            watch: Watch::default(),
            http: http_client(120, None)?,
        })
    }

    /// Lets `watch` notice when the host ends without being told to.
    pub fn watch_by(&mut self, watch: &Watch) {
        let log = self.folder.join("host.log");
        watch.add(&format!("host {}", self.name), self.process_id(), &log);
        self.watch = watch.clone();
    }

    /// Everything of the host.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The process id of its daemon, if it is a child of ours.
    pub fn process_id(&self) -> Option<u32> {
        self.process.id()
    }

    /// Says how the host ended, if it has.
    pub fn ended(&mut self) -> Option<String> {
        match self.process.ended() {
            Ok(None) => None,
            Ok(Some(status)) => {
                let last = last_words(&self.folder.join("host.log"));
                Some(format!("host {} is down ({status}): {last}", self.name))
            }
            Err(e) => Some(e.to_string()),
        }
    }

    /// Kills the host's daemon, and with it everything of the host.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.kill()
    }

    /// A power cycle with the dials given.
    pub fn reboot(&mut self, dials: Dials) -> anyhow::Result<()> {
        self.boot_again(Some(Box::new(dials)))
    }

    /// A power cycle at which firmware clears the TPM.
    pub fn clear_tpm(&mut self) -> anyhow::Result<()> {
        let reply = self.order(&Control::ClearTpm)?;
        ensure!(reply.ok, "{}", reply.message);
        self.boot_again(None)
    }

    /// Hibernates and resumes; a machine that must not says why.
    pub fn hibernate(&mut self) -> anyhow::Result<Answer<String>> {
        let reply = self.order(&Control::Hibernate)?;
        Ok(if reply.ok {
            Ok(reply.message)
        } else {
            Err(reply.message)
        })
    }

    fn boot_again(&mut self, dials: Option<Box<Dials>>) -> anyhow::Result<()> {
        let reply = self.order(&Control::Reboot { dials })?;
        match (reply.ok, reply.agent) {
            (true, Some(url)) => {
                // A machine elsewhere listens on all its addresses and does not know ours for it.
                if self.process.id().is_some() {
                    self.agent_url = url;
                }
                Ok(())
            }
            _ => bail!("{} did not come up again: {}", self.name, reply.message),
        }
    }

    fn order(&self, order: &Control) -> anyhow::Result<ControlReply> {
        let socket = self.folder.join("machine.sock");
        control::ask(&socket, order).with_context(|| format!("the machine of {} does not answer", self.name))
    }

    /// Moves the clock of the host's agent forward, until its next boot. What became due then is done: a renewal, say.
    pub async fn advance_clock(&self, seconds: u64) -> anyhow::Result<i64> {
        hgs_service::lab_clock::advance(&clock(&self.folder), seconds).await
    }

    /// A file of the host's administrator, `health.cer` say, from the agent.
    pub async fn artefact(&self, name: &str) -> anyhow::Result<Vec<u8>> {
        let url = format!("{}/v1/artefacts/{name}", self.agent_url);
        let answer = self.http.get(url).send().await?.error_for_status()?;
        Ok(answer.bytes().await?.to_vec())
    }

    /// The agent, for whoever needs it apart from the host.
    pub fn agent(&self) -> AgentLink {
        AgentLink {
            name: self.name.clone(),
            url: self.agent_url.clone(),
            http: self.http.clone(),
        }
    }

    /// POST to the agent, below `/v1`.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<Answer<T>> {
        self.agent().post(path, body).await
    }

    /// PUT to the agent, below `/v1`.
    pub async fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<Answer<T>> {
        self.agent().send(reqwest::Method::PUT, path, body).await
    }

    /// GET from the agent, below `/v1`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<Answer<T>> {
        self.agent().get(path).await
    }
}

impl AgentLink {
    /// A file of the host's administrator, `health.cer` say.
    pub async fn artefact(&self, name: &str) -> anyhow::Result<Vec<u8>> {
        let url = format!("{}/v1/artefacts/{name}", self.url);
        let answer = self.http.get(url).send().await?.error_for_status()?;
        Ok(answer.bytes().await?.to_vec())
    }

    /// POST below `/v1`.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<Answer<T>> {
        self.answer(self.http.post(format!("{}/v1/{path}", self.url)).json(body))
            .await
    }

    /// Any request with a body, below `/v1`.
    pub async fn send<T: DeserializeOwned>(
        &self,
        method: reqwest::Method,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<Answer<T>> {
        let request = self.http.request(method, format!("{}/v1/{path}", self.url)).json(body);
        self.answer(request).await
    }

    /// GET below `/v1`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<Answer<T>> {
        self.answer(self.http.get(format!("{}/v1/{path}", self.url))).await
    }

    /// DELETE below `/v1`.
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<Answer<T>> {
        self.answer(self.http.delete(format!("{}/v1/{path}", self.url))).await
    }

    async fn answer<T: DeserializeOwned>(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Answer<T>> {
        let answer = request
            .send()
            .await
            .with_context(|| format!("the agent of {} does not answer", self.name))?;
        let status = answer.status();
        let body = answer.bytes().await?;
        if status.is_success() {
            return Ok(Ok(serde_json::from_slice(&body)?));
        }
        match serde_json::from_slice::<Refusal>(&body) {
            Ok(refusal) => Ok(Err(refusal.error)),
            Err(_) => bail!(
                "the agent of {} answered {status}: {}",
                self.name,
                String::from_utf8_lossy(&body)
            ),
        }
    }
}

/// The socket of the lab's clock of a host in `folder`: in its agent's folder, because the agent listens on it.
pub(super) fn clock(folder: &Path) -> PathBuf {
    folder.join("agent/clock")
}

impl Drop for SimHost {
    /// A host that still runs ends with this value, which is no news to whoever watches.
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.watch.forget(self.process_id());
        }
    }
}
