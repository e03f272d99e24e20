//! An HGS of a scenario as its administrator sees it: started, stopped, set up, asked what it decided.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Context;
use base64::{Engine, engine::general_purpose::STANDARD};
use hgs_protocol::protector::Guardian;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{Mutex, RwLock};

use super::{Attached, HostHere, Starting, Way, attached, blocking};
use crate::{
    fabric::{
        hgs::Hgs,
        service::{Choices, Extras, Service},
    },
    owner::Owner,
    scenario::model::{
        HgsPlan, Mode,
        step::{PolicyVersion, ServiceName},
    },
};

/// A running HGS.
pub struct HgsHere {
    pub(super) plan: HgsPlan,
    pub(super) folder: PathBuf,
    pub(super) hgs: Arc<RwLock<Hgs>>,
    /// Seconds by which the lab has moved each service's clock: attestation, key protection.
    ahead: [AtomicU64; 2],
    mode: Mutex<Mode>,
    /// Whether it was up before and has other users.
    pub(super) shared: bool,
    seen: Mutex<BTreeSet<(ServiceName, String, i64)>>,
    pub(super) seen_events: Mutex<BTreeSet<(ServiceName, String)>>,
}

/// A row of a service's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Recorded {
    /// The HGS.
    pub hgs: String,
    /// Whose record.
    pub service: ServiceName,
    /// `attestation`, `key-release`, `administration`, …
    pub kind: String,
    /// The decision, in a word.
    pub outcome: String,
    /// Why.
    pub reason: String,
    /// The whole row.
    pub body: Value,
}

/// A row as a service gives it out.
#[derive(Deserialize)]
struct Row {
    writer: String,
    sequence: i64,
    kind: String,
    body: Value,
}

impl HgsHere {
    /// Starts both services below `folder`.
    pub(super) async fn start(plan: &HgsPlan, folder: PathBuf, starting: &Starting<'_>) -> anyhow::Result<HgsHere> {
        let place = folder.clone();
        let choices = Choices {
            health_certificate_minutes: plan.health_certificate_minutes,
            requests_per_minute_per_key: plan.requests_per_minute_per_key,
            signer_suite: plan.signer_suite.map(|suite| suite.name()),
            max_offline_unwraps: plan.max_offline_unwraps,
        };
        let here = match starting.way {
            Way::InProcess => Some(tokio::runtime::Handle::current()),
            Way::Processes | Way::Attached(_) => None,
        };
        let mut extras = Extras::new(here, starting.tls.cloned(), choices);
        extras.admin_tokens = starting.admin_tokens.to_vec();
        let hgs = blocking(move || Hgs::start(&folder, &extras, None)).await;
        let hgs = hgs.with_context(|| format!("the HGS {} does not start", plan.name))?;
        Ok(HgsHere::of(plan, place, hgs, false))
    }

    /// The one that is up.
    pub(super) fn attach(plan: &HgsPlan, folder: PathBuf, to: &Attached, https: bool) -> anyhow::Result<HgsHere> {
        crate::swtpm::make_private_dir(&folder)?;
        let hgs = if https { to.hgs_with_https()? } else { to.hgs()? };
        Ok(HgsHere::of(plan, folder, hgs, true))
    }

    fn of(plan: &HgsPlan, folder: PathBuf, hgs: Hgs, shared: bool) -> HgsHere {
        HgsHere {
            plan: plan.clone(),
            folder,
            hgs: Arc::new(RwLock::new(hgs)),
            ahead: Default::default(),
            mode: Mutex::new(Mode::Tpm),
            shared,
            seen: Mutex::default(),
            seen_events: Mutex::default(),
        }
    }

    /// Its name.
    pub(in crate::scenario) fn name(&self) -> &str {
        &self.plan.name
    }

    /// The name under which something of the scenario's is registered: one of its own where others register too.
    pub(in crate::scenario) fn registered_as(&self, name: &str) -> String {
        match self.shared {
            true => attached::own_name(name),
            false => name.to_owned(),
        }
    }

    /// Base URLs of the services: attestation, key protection.
    pub(super) async fn addresses(&self) -> [String; 2] {
        let hgs = self.hgs.read().await;
        let url = |service: &Service| service.tls_url.clone().unwrap_or_else(|| service.url.clone());
        [url(&hgs.attestation), url(&hgs.kps)]
    }

    /// As [`HgsHere::addresses`], in clear.
    pub(in crate::scenario) async fn plain_addresses(&self) -> [String; 2] {
        let hgs = self.hgs.read().await;
        [hgs.attestation.url.clone(), hgs.kps.url.clone()]
    }

    /// Base URLs of the administrators' listeners: attestation, key protection.
    pub(in crate::scenario) async fn admin_addresses(&self) -> [String; 2] {
        let hgs = self.hgs.read().await;
        [&hgs.attestation, &hgs.kps].map(|service| service.administrator().0.to_owned())
    }

    /// What its installation consists of: trust between the services, makers of TPMs, mode, policies.
    pub(super) async fn install(&self, authorities: &[Vec<u8>]) -> anyhow::Result<()> {
        let hgs = self.hgs.read().await;
        hgs.trust_signer().await?;
        for (number, certificate) in authorities.iter().enumerate() {
            let name = self.registered_as(&format!("tpm-maker-{number}"));
            hgs.attestation.trust_tpm_maker(&name, certificate).await?;
        }
        drop(hgs);
        if self.plan.mode != Mode::Tpm {
            self.set_mode(self.plan.mode).await?;
        }
        for (policy, enabled) in &self.plan.policies {
            self.set_policy(policy, *enabled).await?;
        }
        // One that was up before was started without knowing of it.
        if let (true, Some(starts)) = (self.shared, self.plan.max_offline_unwraps) {
            self.allow_offline(starts).await?;
        }
        if self.plan.ca_certificates {
            let hgs = self.hgs.read().await;
            let on = json!({ "enabled": true });
            hgs.attestation.admin_put("ca-certificates", &on).await?;
        }
        Ok(())
    }

    /// Set-HgsServer -TrustTpm or -TrustHostKey.
    pub(in crate::scenario) async fn set_mode(&self, mode: Mode) -> anyhow::Result<()> {
        let body = json!({ "mode": mode.name() });
        self.hgs
            .read()
            .await
            .attestation
            .admin_put("operation-mode", &body)
            .await?;
        *self.mode.lock().await = mode;
        Ok(())
    }

    /// Enable- or Disable-HgsAttestationPolicy.
    pub(in crate::scenario) async fn set_policy(&self, policy: &str, enabled: bool) -> anyhow::Result<()> {
        let verb = if enabled { "enable" } else { "disable" };
        let path = format!("policies/{policy}/{verb}");
        let hgs = self.hgs.read().await;
        hgs.attestation.admin_post(&path, &json!({})).await.map(|_| ())
    }

    /// Add-HgsAttestationTpmHost or -HostKey, as the mode in force asks. A host that shows no certificate is
    /// registered by its bare endorsement key.
    pub(in crate::scenario) async fn register_host(
        &self,
        host: &HostHere,
        version: Option<PolicyVersion>,
        force: bool,
    ) -> anyhow::Result<()> {
        let mode = *self.mode.lock().await;
        let hgs = self.hgs.read().await;
        let agent = host.agent().await?;
        match mode {
            Mode::Tpm => {
                let (field, key) = match agent.artefact("ek.cer").await {
                    Ok(certificate) => ("ek_certificate", certificate),
                    Err(_) => ("ek_public", host.endorsement_key()?),
                };
                let mut body =
                    json!({ "name": self.registered_as(host.name()), "force": force, field: STANDARD.encode(key) });
                with_version(&mut body, version);
                hgs.attestation.admin_post("tpm-hosts", &body).await.map(|_| ())
            }
            Mode::HostKey => {
                let key = STANDARD.encode(agent.artefact("host-key.pub").await?);
                let body = json!({ "name": self.registered_as(host.name()), "content": key });
                hgs.attestation.admin_post("host-keys", &body).await.map(|_| ())
            }
        }
    }

    /// Remove-HgsAttestationTpmHost or -HostKey.
    pub(in crate::scenario) async fn remove_host(&self, name: &str) -> anyhow::Result<()> {
        let kind = match *self.mode.lock().await {
            Mode::Tpm => "tpm-hosts",
            Mode::HostKey => "host-keys",
        };
        let hgs = self.hgs.read().await;
        let name = self.registered_as(name);
        hgs.attestation.admin_delete(&format!("{kind}/{name}")).await
    }

    /// Add-HgsAttestationTpmPolicy (`boot.log` to `tpm-baselines`), Add-HgsAttestationCIPolicy.
    pub(in crate::scenario) async fn register_file(
        &self,
        host: &HostHere,
        artefact: &str,
        to: &str,
        name: &str,
        version: Option<PolicyVersion>,
    ) -> anyhow::Result<()> {
        let content = host.agent().await?.artefact(artefact).await?;
        let mut body = json!({ "name": self.registered_as(name), "content": STANDARD.encode(content) });
        with_version(&mut body, version);
        self.post(ServiceName::Attestation, to, &body).await
    }

    /// The guardian in its metadata.
    pub(in crate::scenario) async fn guardian(&self) -> anyhow::Result<Guardian> {
        let metadata = self.hgs.read().await.metadata().await?;
        Ok(Owner::import_guardian(&metadata, self.name())?.guardian)
    }

    /// Ends a service.
    pub(in crate::scenario) async fn kill(&self, service: ServiceName) -> anyhow::Result<()> {
        let hgs = self.hgs.clone();
        // It is waited for, which a thread of the runtime must not do.
        blocking(move || one(&mut hgs.blocking_write(), service).kill()).await
    }

    /// Starts a service again over its own data, at its address and at the lab's time.
    pub(in crate::scenario) async fn start_again(&self, service: ServiceName) -> anyhow::Result<()> {
        let hgs = self.hgs.clone();
        blocking(move || one(&mut hgs.blocking_write(), service).restart()).await?;
        match self.ahead_of(service).load(Ordering::SeqCst) {
            0 => Ok(()),
            ahead => one(&mut *self.hgs.write().await, service)
                .advance_clock(ahead)
                .await
                .map(|_| ()),
        }
    }

    /// Moves a service's clock.
    pub(in crate::scenario) async fn advance(&self, service: ServiceName, seconds: u64) -> anyhow::Result<()> {
        self.ahead_of(service).fetch_add(seconds, Ordering::SeqCst);
        let mut hgs = self.hgs.write().await;
        let service = one(&mut hgs, service);
        // One that does not run gets it when it starts again.
        if service.ended().is_none() {
            service.advance_clock(seconds).await?;
        }
        Ok(())
    }

    pub(super) fn ahead_of(&self, service: ServiceName) -> &AtomicU64 {
        let [attestation, key_protection] = &self.ahead;
        match service {
            ServiceName::Attestation => attestation,
            ServiceName::KeyProtection => key_protection,
        }
    }

    /// What was recorded since the last call, oldest first. A service that does not answer has nothing to say.
    pub(in crate::scenario) async fn news(&self) -> Vec<Recorded> {
        let mut seen = self.seen.lock().await;
        let hgs = self.hgs.read().await;
        let mut news = Vec::new();
        for (service, name, path) in [
            (&hgs.attestation, ServiceName::Attestation, "audit"),
            (&hgs.kps, ServiceName::KeyProtection, "audit?limit=200"),
        ] {
            let Ok(rows) = service.admin_get::<Vec<Row>>(path).await else {
                continue;
            };
            for row in rows.into_iter().rev() {
                if seen.insert((name, row.writer.clone(), row.sequence)) {
                    news.push(Recorded::of(self.name(), name, row));
                }
            }
        }
        news
    }
}

impl Recorded {
    fn of(hgs: &str, service: ServiceName, row: Row) -> Recorded {
        let text = |keys: &[&str]| {
            let found = keys.iter().find_map(|key| row.body.get(key)?.as_str());
            found.unwrap_or_default().to_owned()
        };
        Recorded {
            hgs: hgs.to_owned(),
            service,
            outcome: text(&["reply", "outcome", "event", "path"]),
            reason: text(&["reason", "cause"]),
            kind: row.kind,
            body: row.body,
        }
    }

    /// Whether somebody asked for something and got an answer, rather than that an administrator changed something.
    pub fn is_decision(&self) -> bool {
        matches!(self.kind.as_str(), "attestation" | "key-release")
    }
}

fn with_version(body: &mut Value, version: Option<PolicyVersion>) {
    if let (Some(body), Some(version)) = (body.as_object_mut(), version) {
        body.insert("policy_version".to_owned(), json!(version));
    }
}

fn one(hgs: &mut Hgs, service: ServiceName) -> &mut Service {
    match service {
        ServiceName::Attestation => &mut hgs.attestation,
        ServiceName::KeyProtection => &mut hgs.kps,
    }
}
