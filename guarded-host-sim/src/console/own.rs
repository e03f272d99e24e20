//! The console's own fabric: services in this process, hosts as processes, the network between them recorded.

use futures_util::future::{BoxFuture, join_all};
use hgs_console::{Decoded, Exchange, Field, HostPlace, HostPower, Lab, ServicePlace, Told, UrlOf, VmAction};
use hgs_protocol::protector::KeyProtector;
use reqwest::Method;
use serde_json::Value;

use super::urls;
use crate::{
    agent::configuration::Change,
    client::NameTable,
    fabric::service::http_client,
    owner::inspect::{Inspection, Opening},
    scenario::{
        decode,
        journal::Message,
        model::{
            At, DialChanges,
            step::{Action, Migrate, OfHost, OfVm, Reboot, ServiceName, StartHost},
        },
        testing::TestFabric,
    },
};

/// The fabric in the console's hands.
pub struct OwnFabric {
    fabric: TestFabric,
    attestation: ServicePlace,
    key_protection: ServicePlace,
    /// Where each service is: a door in front of both, as hosts have one, would record what the console asks.
    attestation_names: NameTable,
    key_protection_names: NameTable,
    http: reqwest::Client,
}

impl OwnFabric {
    /// Takes it.
    pub(super) async fn new(fabric: TestFabric) -> anyhow::Result<OwnFabric> {
        let [attestation, key_protection] = fabric.admin_urls().await?;
        let http = http_client(60, None)?;
        let place = |admin_url| ServicePlace {
            admin_url,
            http: http.clone(),
        };
        Ok(OwnFabric {
            attestation: place(attestation),
            key_protection: place(key_protection),
            attestation_names: fabric.names(ServiceName::Attestation).await?,
            key_protection_names: fabric.names(ServiceName::KeyProtection).await?,
            http: http_client(120, None)?,
            fabric,
        })
    }

    /// Every host in local mode, as before an administrator came.
    pub(super) async fn clear_hosts(&self) -> anyhow::Result<()> {
        let local = Change {
            enable_local_mode: true,
            ..Change::default()
        };
        for name in self.fabric.host_names() {
            self.configure(&name, &local).await?;
        }
        Ok(())
    }

    /// Sets a host's URLs on the host itself, past the console.
    pub async fn set_host_urls(&self, host: &str, attestation: &str, key_protection: &str) -> anyhow::Result<()> {
        let change = Change {
            attestation_server_url: Some(attestation.to_owned()),
            key_protection_server_url: Some(key_protection.to_owned()),
            ..Change::default()
        };
        self.configure(host, &change).await
    }

    async fn configure(&self, host: &str, change: &Change) -> anyhow::Result<()> {
        let agent = self.fabric.agent(host).await?;
        let told: Result<Value, String> = agent.send(Method::PUT, "client-configuration", change).await?;
        told.map(|_| ()).map_err(anyhow::Error::msg)
    }

    /// Every host attests; what comes of it the pages show.
    pub(super) async fn attest_all(&self) {
        let names = self.fabric.host_names();
        join_all(names.iter().map(|name| self.attest(name))).await;
    }

    /// As a host does at each boot. The outcome is the host's status.
    async fn attest(&self, host: &str) {
        if let Err(error) = self.fabric.attest(host).await {
            tracing::warn!("{host} does not attest: {error:#}");
        }
    }

    async fn act(&self, action: Action) -> Told<()> {
        match self.fabric.act(action).await {
            Ok(came) if came.done => Ok(()),
            Ok(came) => Err(came.text),
            Err(error) => Err(format!("{error:#}")),
        }
    }
}

impl Lab for OwnFabric {
    fn attestation(&self) -> &ServicePlace {
        &self.attestation
    }

    fn key_protection(&self) -> &ServicePlace {
        &self.key_protection
    }

    fn http(&self) -> &reqwest::Client {
        &self.http
    }

    fn hosts(&self) -> BoxFuture<'_, Vec<HostPlace>> {
        Box::pin(async {
            let mut places = Vec::new();
            for name in self.fabric.host_names() {
                let agent = self.fabric.agent_url(&name).await;
                places.push(HostPlace { name, agent });
            }
            places
        })
    }

    fn check_url(&self, of: UrlOf, url: &str) -> BoxFuture<'_, Told<()>> {
        let url = url.to_owned();
        let names = match of {
            UrlOf::Attestation => &self.attestation_names,
            UrlOf::KeyProtection => &self.key_protection_names,
        };
        Box::pin(async move { urls::check(names.clone(), of, &url).await })
    }

    fn dials(&self, host: &str) -> BoxFuture<'_, Told<Value>> {
        let host = host.to_owned();
        Box::pin(async move {
            let dials = self.fabric.dials(&host).await.map_err(|error| format!("{error:#}"))?;
            serde_json::to_value(dials).map_err(|error| error.to_string())
        })
    }

    fn vm(&self, vm: &str, action: VmAction) -> BoxFuture<'_, Told<()>> {
        let vm = At::from(vm);
        let of = |vm| OfVm { vm, host: None };
        let action = match action {
            VmAction::Start => Action::StartVm(of(vm)),
            VmAction::ShutDown => Action::StopVm(of(vm)),
            VmAction::TurnOff => Action::TurnOffVm(of(vm)),
            VmAction::Save => Action::SaveVm(of(vm)),
            VmAction::Migrate(to) => Action::Migrate(Migrate {
                vm,
                from: None,
                to: At::from(to),
            }),
        };
        Box::pin(self.act(action))
    }

    fn inspect_protector(&self, protector: &[u8]) -> Told<Value> {
        let document = KeyProtector::parse(protector).map_err(|error| error.to_string())?;
        let inspection = Inspection::of(&document, &[], &Opening::NotTried);
        serde_json::to_value(inspection).map_err(|error| error.to_string())
    }

    fn exchanges(&self, most: usize, party: &str) -> Vec<Exchange> {
        let found = self.fabric.journal().newest(most, |message| {
            party.is_empty() || message.from == party || message.to.to_string() == party
        });
        found
            .into_iter()
            .map(|(number, message)| exchange(number, &message))
            .collect()
    }

    fn exchange(&self, number: usize) -> Option<Exchange> {
        let message = self.fabric.journal().message(number)?;
        Some(exchange(number, &message))
    }

    fn apply_ci_policy(&self, host: &str, path: &str) -> BoxFuture<'_, Told<()>> {
        let (host, path) = (host.to_owned(), path.to_owned());
        Box::pin(async move {
            let policy = tokio::fs::read(&path).await;
            let policy = policy.map_err(|error| format!("{path} cannot be read: {error}"))?;
            let done = self.fabric.reboot_with_ci_policy(&host, policy).await;
            done.map_err(|error| format!("{error:#}"))?;
            self.attest(&host).await;
            Ok(())
        })
    }

    fn power(&self, host: &str, power: HostPower) -> BoxFuture<'_, Told<()>> {
        let name = host.to_owned();
        Box::pin(async move {
            let host = At::from(name.as_str());
            let action = match power {
                HostPower::Off => return self.act(Action::KillHost(OfHost { host })).await,
                HostPower::On => Action::StartHost(StartHost { host, crash_at: None }),
                HostPower::Restart(dials) => {
                    let dials: DialChanges = serde_json::from_value(dials).map_err(|error| error.to_string())?;
                    Action::Reboot(Reboot { host, dials })
                }
            };
            self.act(action).await?;
            self.attest(&name).await;
            Ok(())
        })
    }
}

fn exchange(number: usize, message: &Message) -> Exchange {
    let status = message.answer.as_ref().map(|answer| answer.status);
    let answered = message.answer.as_ref().map_or(0, |answer| answer.body.len());
    Exchange {
        number,
        at: message.at.as_millis(),
        took: message.took.as_millis(),
        from: message.from.clone(),
        to: message.to.to_string(),
        method: message.method.clone(),
        path: message.path.clone(),
        status,
        remark: message.remark.clone(),
        request: decoded(decode::request(message), message.request.len(), false),
        answer: decode::answer(message).map(|told| {
            let refuses = status.is_some_and(|status| status >= 400) || told.kind.ends_with("ErrorReply");
            decoded(told, answered, refuses)
        }),
    }
}

fn decoded(told: decode::Decoded, length: usize, refuses: bool) -> Decoded {
    Decoded {
        kind: told.kind,
        section: told.section.to_owned(),
        refuses,
        length,
        fields: told.fields.into_iter().map(decoded_field).collect(),
    }
}

fn decoded_field(field: decode::Field) -> Field {
    Field {
        name: field.name,
        value: field.value,
        bytes: field.bytes,
        parts: field.parts.into_iter().map(decoded_field).collect(),
    }
}
