//! The HGS of a lab once it is set up: its pair of services, its name, and the nodes through which it is reached.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, sync::Arc};

use anyhow::Context;
use base64::{Engine, engine::general_purpose::STANDARD};
use hgs_protocol::protector::KeyPair;
use hgs_service::pair_files;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::{
    fabric::{
        hgs::Hgs,
        service::{Extras, Service},
    },
    scenario::{
        door::{Between, Door, Targets, To},
        journal::Journal,
        weather::Weather,
    },
};

/// How hosts are attested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By their TPMs.
    Tpm,
    /// By their host keys.
    HostKey,
}

impl Mode {
    /// As the product prints it.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Tpm => "Tpm",
            Mode::HostKey => "HostKey",
        }
    }
}

/// A service of the HGS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceName {
    /// Attestation.
    Attestation,
    /// Key protection.
    KeyProtection,
}

/// What an administrators' interface refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refused {
    /// HTTP status; 0 where there was no answer.
    pub status: u16,
    /// Why, and what to do.
    pub text: String,
}

/// What a new HGS is set up with.
pub struct NewCluster {
    /// `hgs`.
    pub service: String,
    /// `bastion.local`.
    pub domain: String,
    /// How hosts are attested.
    pub mode: Mode,
    /// The first signing certificate with its key.
    pub signing: Arc<KeyPair>,
    /// The first encryption certificate with its key.
    pub encryption: Arc<KeyPair>,
    /// Certificates of TPM makers that were trusted before.
    pub tpm_makers: Vec<Vec<u8>>,
    /// Where HTTP is spoken.
    pub http_port: u16,
}

/// A running HGS.
pub struct Cluster {
    service: String,
    domain: String,
    hgs: Hgs,
    targets: Arc<Targets>,
    weather: Weather,
    journal: Journal,
    nodes: BTreeMap<String, Option<Door>>,
    /// Where HTTP is spoken; hosts' URLs have it unless it is 80.
    pub http_port: u16,
}

impl Cluster {
    pub(super) fn start(folder: &Path, node: &str, new: &NewCluster, runtime: &Runtime) -> anyhow::Result<Cluster> {
        let hgs = Hgs::start(folder, &Extras::default(), None)?;
        let targets = Arc::new(Targets::default());
        targets.set(hgs.attestation.url.clone(), hgs.kps.url.clone());
        let mut cluster = Cluster {
            service: new.service.clone(),
            domain: new.domain.clone(),
            hgs,
            targets,
            weather: Weather::default(),
            journal: Journal::begin(),
            nodes: BTreeMap::new(),
            http_port: new.http_port,
        };
        cluster.add_node(node, runtime)?;
        runtime.block_on(cluster.install(new))?;
        Ok(cluster)
    }

    async fn install(&self, new: &NewCluster) -> anyhow::Result<()> {
        self.hgs.trust_signer().await?;
        self.hgs.trust_tpm_makers(&new.tpm_makers).await?;
        let mode = json!({ "mode": new.mode.name() });
        self.hgs.attestation.admin_put("operation-mode", &mode).await?;
        let made: Vec<Value> = self.hgs.kps.admin_get("certificates").await?;
        for (role, pair) in [("signing", &new.signing), ("encryption", &new.encryption)] {
            let thumbprint = pair.certificate().thumbprint();
            self.add_certificate(role, pair).await?;
            let path = format!("certificates/{role}/{thumbprint}");
            self.hgs.kps.admin_patch(&path, &json!({ "isPrimary": true })).await?;
        }
        // Those that the service made for itself at its first start are nobody's.
        for old in &made {
            let text = |key| old.get(key).and_then(Value::as_str).unwrap_or_default();
            let role = text("certificateType").to_ascii_lowercase();
            if role == "communications" {
                continue;
            }
            let path = format!("certificates/{role}/{}", text("thumbprint"));
            self.hgs.kps.admin_patch(&path, &json!({ "isEnabled": false })).await?;
            self.hgs.kps.admin_delete(&path).await?;
        }
        Ok(())
    }

    /// Gives key protection a certificate with its private key.
    pub async fn add_certificate(&self, role: &str, pair: &KeyPair) -> anyhow::Result<Vec<u8>> {
        // Only on its way to the service; nothing keeps it.
        let password = hex::encode(pair.certificate().sha256());
        let pfx = STANDARD.encode(pair_files::to_pfx(pair, role, &password)?);
        let kind = match role {
            "signing" => "Signing",
            "encryption" => "Encryption",
            _ => "Communications",
        };
        let body = json!({ "certificateType": kind, "pfx": { "data": pfx, "password": password } });
        self.hgs.kps.admin_post("certificates", &body).await
    }

    /// The pair of services.
    pub fn services(&self) -> &Hgs {
        &self.hgs
    }

    /// `hgs.bastion.local`.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.service, self.domain)
    }

    /// The service's name alone.
    pub fn service_name(&self) -> &str {
        &self.service
    }

    /// Base URL of a service, as hosts are given it.
    pub fn url(&self, service: ServiceName) -> String {
        let port = match self.http_port {
            80 => String::new(),
            port => format!(":{port}"),
        };
        let path = match service {
            ServiceName::Attestation => "Attestation",
            ServiceName::KeyProtection => "KeyProtection",
        };
        format!("http://{}{port}/{path}", self.full_name())
    }

    /// Its nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(String::as_str)
    }

    /// Whether `node` is one of them.
    pub fn has_node(&self, node: &str) -> bool {
        self.nodes.contains_key(&node.to_ascii_uppercase())
    }

    /// Whether a node is reached.
    pub fn is_up(&self, node: &str) -> bool {
        self.nodes.get(&node.to_ascii_uppercase()).is_some_and(Option::is_some)
    }

    /// The network's troubles between hosts and this HGS.
    pub fn weather(&self) -> &Weather {
        &self.weather
    }

    pub(super) fn add_node(&mut self, node: &str, runtime: &Runtime) -> anyhow::Result<()> {
        self.nodes.entry(node.to_ascii_uppercase()).or_default();
        self.open(node, runtime)
    }

    pub(super) fn remove_node(&mut self, node: &str) -> bool {
        self.nodes.remove(&node.to_ascii_uppercase()).is_some()
    }

    pub(super) fn open(&mut self, node: &str, runtime: &Runtime) -> anyhow::Result<()> {
        let place = self.nodes.get_mut(&node.to_ascii_uppercase());
        let place = place.with_context(|| format!("{node} is no node of the HGS"))?;
        if place.is_none() {
            let between = Between {
                from: "host".to_owned(),
                to: To::Hgs {
                    name: self.service.clone(),
                    targets: self.targets.clone(),
                },
                journal: self.journal.clone(),
                weather: self.weather.clone(),
            };
            *place = Some(runtime.block_on(Door::open(between, None))?);
        }
        Ok(())
    }

    pub(super) fn close(&mut self, node: &str) {
        if let Some(place) = self.nodes.get_mut(&node.to_ascii_uppercase()) {
            *place = None;
        }
    }

    /// Its names with the addresses of the nodes that are up.
    pub(super) fn names(&self) -> BTreeMap<String, Vec<SocketAddr>> {
        let doors = self.nodes.values().flatten();
        let addresses: Vec<SocketAddr> = doors.map(|door| door.address).collect();
        let key = format!("{}:{}", self.full_name().to_ascii_lowercase(), self.http_port);
        BTreeMap::from([(key, addresses)])
    }

    pub(super) async fn advance(&self, seconds: u64) -> anyhow::Result<()> {
        self.hgs.attestation.advance_clock(seconds).await?;
        self.hgs.kps.advance_clock(seconds).await?;
        Ok(())
    }

    fn service(&self, name: ServiceName) -> &Service {
        match name {
            ServiceName::Attestation => &self.hgs.attestation,
            ServiceName::KeyProtection => &self.hgs.kps,
        }
    }

    /// A request of an administrator; null where there is no body in the answer.
    pub async fn ask(
        &self,
        service: ServiceName,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Refused> {
        let answered = self.service(service).admin_any(method, path, body).await;
        let (status, bytes) = answered.map_err(|error| Refused {
            status: 0,
            text: format!("{error:#}"),
        })?;
        let answer: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        if (200..300).contains(&status) {
            return Ok(answer);
        }
        let text = answer.get("error").and_then(Value::as_str).map(str::to_owned);
        Err(Refused {
            status,
            text: text.unwrap_or_else(|| format!("the service answered HTTP {status}")),
        })
    }
}
