//! The host agent: relays between TPM, VBS store, attestation and key protection, and serves a
//! control API on loopback. It holds no key of a VM and no VSM key; the fabric treats it as an
//! adversary, and attack tests speak with its means.

pub(crate) mod attest;
mod http;
mod local;
mod rtpm;
mod vm;

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

pub use attest::{AttestError, Outcome, ProtocolVersion};
pub use hgs_protocol::status::{AttestationStatus, Substatus};
use hgs_protocol::{env::Clock, health::AttestationMode, wire::kps::MAX_RESPONSE};
pub use rtpm::RtpmError;
use tokio::sync::Mutex;

use self::attest::{Attester, Health, blocking};
use crate::{
    client::{ClientError, LabClient, NameTable},
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
    /// Base URL of attestation, as Set-HgsClientConfiguration takes it.
    #[arg(long)]
    pub attestation_url: Option<String>,
    /// Base URL of key protection.
    #[arg(long)]
    pub key_protection_url: Option<String>,
    /// Version of the attestation protocol.
    #[arg(long, value_enum, default_value_t)]
    pub protocol: ProtocolVersion,
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
    /// Socket over which the lab moves this process's clock.
    #[arg(long)]
    pub lab_clock: Option<PathBuf>,
}

/// The agent of one host.
pub struct Agent {
    args: AgentArgs,
    clock: Clock,
    client: LabClient,
    state: Mutex<State>,
    vm_locks: vm::VmLocks,
}

/// What the last attestation left. Held while attesting, so that callers share one attempt.
#[derive(Default)]
struct State {
    health: Option<Health>,
    outcome: Option<Outcome>,
}

/// The agent's process.
pub fn run(args: AgentArgs) -> anyhow::Result<()> {
    hgs_service::telemetry::init(hgs_service::telemetry::LogFormat::Text);
    actix_web::rt::System::new().block_on(async move {
        let clock = Clock::system();
        if let Some(path) = &args.lab_clock {
            hgs_service::lab_clock::listen(path, clock.clone())?;
        }
        let agent = Arc::new(Agent::new(args, clock)?);
        http::serve(agent).await
    })
}

impl Agent {
    /// An agent that has not attested yet.
    pub fn new(args: AgentArgs, clock: Clock) -> anyhow::Result<Agent> {
        let names = match &args.names {
            Some(path) => NameTable::read(path)?,
            None => NameTable::default(),
        };
        let client = LabClient::new(names, args.root_certificate.as_deref(), clock.clone())?;
        Ok(Agent {
            args,
            clock,
            client,
            state: Mutex::default(),
            vm_locks: vm::VmLocks::default(),
        })
    }

    /// The host's name.
    pub fn name(&self) -> &str {
        &self.args.name
    }

    /// Attests, ignoring the certificate at hand.
    pub async fn attest(&self) -> Outcome {
        let mut state = self.state.lock().await;
        self.attest_into(&mut state).await
    }

    /// A health certificate, DER: the one at hand, or one of a new attestation when `fresh`, when
    /// there is none valid, or when two thirds of its life are over. In the last case an attempt
    /// that reaches no service leaves the old one in use.
    pub async fn health_certificate(&self, fresh: bool) -> Result<Vec<u8>, Outcome> {
        let mut state = self.state.lock().await;
        let now = self.clock.now();
        let kept = state.health.clone().filter(|h| h.is_valid(now));
        if let Some(health) = &kept
            && !fresh
            && !health.is_due(now)
        {
            return Ok(health.encryption.der().to_vec());
        }
        let outcome = self.attest_into(&mut state).await;
        let usable = outcome.status == AttestationStatus::Passed || (kept.is_some() && !fresh);
        match &state.health {
            Some(health) if usable => Ok(health.encryption.der().to_vec()),
            _ => Err(outcome),
        }
    }

    /// The certificate for the VSM signing key, if the last attestation brought one.
    pub async fn signing_certificate(&self) -> Option<Vec<u8>> {
        self.state.lock().await.health.as_ref()?.signing.clone()
    }

    /// Sends a document to an operation of key protection (`v1.0/RollTransportKey`, say); answers HTTP status and body.
    /// Retries as the protocol says (MS-KPS 3.2.5.1).
    pub async fn key_protection(&self, operation: &str, document: Vec<u8>) -> Result<(u16, Vec<u8>), ClientError> {
        let base = self
            .args
            .key_protection_url
            .as_deref()
            .ok_or(ClientError::NotConfigured("key protection service"))?;
        let url = format!("{}/{operation}", base.trim_end_matches('/'));
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

    /// What the last attestation said; expiry is judged now.
    pub async fn outcome(&self) -> Outcome {
        let state = self.state.lock().await;
        match (&state.outcome, &state.health) {
            (Some(outcome), Some(health)) if !health.is_valid(self.clock.now()) => Outcome {
                status: AttestationStatus::Expired,
                detail: format!("the health certificate {} has expired", health.encryption.serial()),
                ..outcome.clone()
            },
            (Some(outcome), _) => outcome.clone(),
            (None, _) => self.not_attested(),
        }
    }

    async fn attest_at(&self, url: &str) -> Result<Health, AttestError> {
        let attester = Attester {
            host: self,
            client: &self.client,
            url,
            protocol: self.args.protocol,
        };
        attester.attest(AttestationMode::Tpm).await
    }

    async fn attest_into(&self, state: &mut State) -> Outcome {
        let outcome = match &self.args.attestation_url {
            None => self.not_attested(),
            Some(url) => match self.attest_at(url).await {
                Ok(health) => {
                    let outcome = Outcome::passed(&health);
                    state.health = Some(health);
                    outcome
                }
                Err(error) => {
                    // An error reply is a verdict on this host and leaves it without a certificate;
                    // a service that is not reached has said nothing (MS-HGSA 3.2.5).
                    if matches!(error, AttestError::Refused(..)) {
                        state.health = None;
                    }
                    Outcome::failed(&error)
                }
            },
        };
        tracing::info!(host = %self.args.name, status = ?outcome.status, "{}", outcome.detail);
        state.outcome = Some(outcome.clone());
        outcome
    }

    fn not_attested(&self) -> Outcome {
        let (status, detail) = match self.args.attestation_url {
            Some(_) => (AttestationStatus::Unknown, "this host has not attested yet"),
            None => (AttestationStatus::NotConfigured, "no attestation service is configured"),
        };
        Outcome {
            status,
            substatus: Substatus::default(),
            error: None,
            no_contact: false,
            detail: detail.to_owned(),
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
