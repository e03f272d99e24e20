//! The host agent: relays between TPM, VBS store, attestation and key protection, and serves a
//! control API on loopback. It holds no key of a VM and no VSM key; the fabric treats it as an
//! adversary, and attack tests speak with its means.

pub(crate) mod attest;
pub mod command;
pub mod configuration;
mod health;
mod http;
mod local;
mod notice;
mod rtpm;
pub mod view;
mod vm;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, RwLock},
};

use anyhow::Context;
pub use attest::{AttestError, Outcome, ProtocolVersion};
pub use health::{Choice, TestError};
pub use hgs_protocol::status::{AttestationStatus, Substatus};
use hgs_protocol::{env::Clock, wire::kps::MAX_RESPONSE};
pub use rtpm::RtpmError;
use tokio::sync::{Mutex, Notify};

use self::{
    attest::blocking,
    configuration::{Change, ClientConfiguration, NO_KEY_PROTECTION, Server},
    health::State,
    notice::Notice,
};
use crate::{
    client::{ClientError, LabClient, NameTable},
    event_log::EventLog,
    store::protocol::{StoreClient, StoreReply, StoreRequest},
};

/// How the machine starts an agent, with what the lab adds.
#[derive(Clone, Debug, clap::Args)]
pub struct AgentArgs {
    /// The host's name.
    #[arg(long)]
    pub name: String,
    /// The agent's directory: boot log, EK certificate, host key.
    #[arg(long)]
    pub dir: PathBuf,
    /// The machine's TPM socket for the agent.
    #[arg(long)]
    pub tpm: PathBuf,
    /// The VBS store's socket; absent when no VSM runs.
    #[arg(long)]
    pub store: Option<PathBuf>,
    /// Where the control API listens.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Base URL of attestation, until an administrator sets another. Without it the host is in local mode.
    #[arg(long)]
    pub attestation_url: Option<String>,
    /// Base URL of key protection; `http://localhost` where no VM needs keys.
    #[arg(long, requires = "attestation_url")]
    pub key_protection_url: Option<String>,
    /// Version of the attestation protocol.
    #[arg(long, value_enum, default_value_t)]
    pub protocol: ProtocolVersion,
    /// Begin to attest when somebody first asks for it, not at the start: a host that is not registered yet, in a story
    /// that tells each attempt.
    #[arg(long)]
    pub attest_when_asked: bool,
    /// The fabric's name table (JSON).
    #[arg(long)]
    pub names: Option<PathBuf>,
    /// Root certificate for https (PEM).
    #[arg(long)]
    pub root_certificate: Option<PathBuf>,
    /// Listen on another address than loopback too. The API has no authentication.
    #[arg(long)]
    pub allow_remote: bool,
    /// The shared volume with the VMs' files.
    #[arg(long)]
    pub volume: Option<PathBuf>,
    /// Seconds by which the host's clock is ahead of the true time; negative when it is behind.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    pub clock_skew: i64,
    /// Socket over which the lab moves this process's clock.
    #[arg(long)]
    pub lab_clock: Option<PathBuf>,
}

/// The agent of one host.
pub struct Agent {
    args: AgentArgs,
    clock: Clock,
    client: LabClient,
    configuration: RwLock<Arc<ClientConfiguration>>,
    state: Mutex<State>,
    shown: RwLock<State>,
    /// Told when the time of the next attempt may be another.
    changed: Notify,
    vm_locks: vm::VmLocks,
    events: EventLog,
}

/// The agent's process.
pub fn run(args: AgentArgs) -> anyhow::Result<()> {
    hgs_service::telemetry::init(hgs_service::telemetry::LogFormat::Text);
    actix_web::rt::System::new().block_on(async move {
        let clock = Clock::skewed(args.clock_skew);
        let lab_clock = args.lab_clock.clone();
        let agent = Arc::new(Agent::new(args, clock.clone())?);
        agent.notice(&Notice::Booted);
        if let Some(path) = &lab_clock {
            // Whoever moved the clock hears of it when everything that became due is done.
            let agent = agent.clone();
            hgs_service::lab_clock::listen_and(path, clock, move || {
                let agent = agent.clone();
                async move { agent.keep_up().await }
            })?;
        }
        http::serve(agent).await
    })
}

impl AgentArgs {
    /// What the command line configures.
    fn configuration(&self) -> Result<ClientConfiguration, configuration::ConfigurationError> {
        let Some(attestation) = &self.attestation_url else {
            return Ok(ClientConfiguration::Local);
        };
        let key_protection = self.key_protection_url.as_deref().unwrap_or(NO_KEY_PROTECTION);
        let change = Change {
            attestation_server_url: Some(attestation.clone()),
            key_protection_server_url: Some(key_protection.to_owned()),
            ..Change::default()
        };
        change.accept()
    }
}

impl Agent {
    /// An agent that has not attested yet.
    pub fn new(args: AgentArgs, clock: Clock) -> anyhow::Result<Agent> {
        let root = args.root_certificate.as_deref();
        let client = match &args.names {
            Some(table) => LabClient::following(table, root, clock.clone())?,
            None => LabClient::new(NameTable::default(), root, clock.clone())?,
        };
        let configuration = match ClientConfiguration::load(&args.dir)? {
            Some(kept) => kept,
            None => args.configuration()?,
        };
        let events = EventLog::open(&args.dir, clock.clone())
            .with_context(|| format!("the event log in {} cannot be opened", args.dir.display()))?;
        Ok(Agent {
            args,
            events,
            clock,
            client,
            configuration: RwLock::new(Arc::new(configuration)),
            state: Mutex::default(),
            shown: RwLock::default(),
            changed: Notify::new(),
            vm_locks: vm::VmLocks::default(),
        })
    }

    /// The host's name.
    pub fn name(&self) -> &str {
        &self.args.name
    }

    /// Sends a document to an operation of key protection (`v1.0/RollTransportKey`, say); answers HTTP status and body.
    /// Retries as the protocol says (MS-KPS 3.2.5.1).
    pub async fn key_protection(
        &self,
        server: Server,
        operation: &str,
        document: Vec<u8>,
    ) -> Result<(u16, Vec<u8>), ClientError> {
        let configuration = self.configuration();
        let servers = configuration.servers(server);
        let servers = servers.ok_or(ClientError::NotConfigured("key protection service"))?;
        let base = servers.key_protection.as_str().trim_end_matches('/');
        let url = format!("{base}/{operation}");
        let sent = self
            .client
            .post_with_retries(&url, "application/xml; charset=utf-8", document, MAX_RESPONSE);
        let answer = sent.await?;
        Ok((answer.status, answer.body))
    }

    /// Asks the VBS store.
    pub async fn ask_store(&self, request: StoreRequest) -> Result<StoreReply, String> {
        let path = self
            .args
            .store
            .clone()
            .ok_or("virtual secure mode does not run on this host, so there is no VBS store")?;
        let name = self.args.name.clone();
        let ask = move || StoreClient::connect(&path).and_then(|mut store| store.ask(&request));
        match blocking(ask).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(e)) => Err(format!("the VBS store of {name} does not answer: {e}")),
            Err(e) => Err(e.to_string()),
        }
    }

    /// Public VSM keys as `RSA1` blobs: encryption, signing.
    async fn store_keys(&self) -> Result<(Vec<u8>, Vec<u8>), String> {
        match self.ask_store(StoreRequest::Describe).await? {
            StoreReply::Description {
                encryption_key,
                signing_key,
                ..
            } => {
                let decode = |text: &str| hex::decode(text).map_err(|e| e.to_string());
                Ok((decode(&encryption_key)?, decode(&signing_key)?))
            }
            other => Err(format!("the VBS store answered something else: {other:?}")),
        }
    }
}
