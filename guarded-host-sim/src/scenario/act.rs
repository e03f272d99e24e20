//! Carries a step out on a running fabric. An error is trouble of the lab's: something that must be there does
//! not answer. Whatever a service or a host refuses is what came of the step.

use std::time::{Duration, Instant};

use anyhow::Context;
use base64::{Engine, engine::general_purpose::STANDARD};
use hgs_protocol::env::{OsRandom, Random};
use reqwest::Method;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    came::Came,
    journal::{Answered, Message, Party},
    model::{
        Action, At,
        step::{AdvanceClock, Migrate, OfHost, OfVm, Partition, SendRequest, ServiceName},
    },
    weather::Cut,
    world::{HostHere, World},
};
use crate::{
    fabric::{host::Answer, service::http_client},
    vm::{
        operation::{Migrated, PoweredOn},
        request::{Blob, VmReply},
    },
};

/// What carrying a step out comes to.
#[derive(Debug)]
pub(super) enum Acted {
    /// Something came of it.
    Came(Box<Came>),
    /// This way of running cannot do it.
    Skipped(String),
}

impl From<Came> for Acted {
    fn from(came: Came) -> Acted {
        Acted::Came(Box::new(came))
    }
}

/// Carries `action` out. Time that must pass is passed by the clocks when it is `virtual_time`.
pub(super) async fn act(world: &World, action: &Action, virtual_time: bool) -> anyhow::Result<Acted> {
    let begun = Instant::now();
    let acted = match action {
        Action::Wait(wait) => wait_for(world, wait.time.0, virtual_time).await?,
        other => carry_out(world, other).await?.into(),
    };
    Ok(match acted {
        Acted::Came(came) => Acted::Came(Box::new(Came {
            took: begun.elapsed(),
            ..*came
        })),
        skipped => skipped,
    })
}

async fn carry_out(world: &World, action: &Action) -> anyhow::Result<Came> {
    match action {
        Action::Attest(of) => configuration(world, of, true).await,
        Action::Status(of) => configuration(world, of, false).await,
        Action::Reboot(reboot) => {
            let host = world.host(&reboot.host)?;
            match host.is_on().await {
                true => done(host.reboot(&reboot.dials).await, "it has booted"),
                false => Ok(off(host)),
            }
        }
        Action::KillHost(of) => done(world.host(&of.host)?.kill().await, "its power is off"),
        Action::StartHost(of) => done(world.host(&of.host)?.power_on().await, "it has booted"),
        Action::StartVm(of) => {
            let answer = ask::<PoweredOn>(world, of, "power-on", &json!({})).await?;
            Ok(told(answer, |started| Came {
                offline: Some(started.offline),
                offline_starts_left: Some(started.offline_starts_left),
                ..Came::done(format!("the guest runs, boot {} of its disk", started.guest.boots))
            }))
        }
        Action::StopVm(of) => {
            let answer = ask::<Value>(world, of, "power-off", &json!({})).await?;
            Ok(told(answer, |_| Came::done("it is off")))
        }
        Action::Migrate(of) => migrate(world, of).await,
        Action::Prove(of) => prove(world, of).await,
        Action::Wait(_) => Ok(Came::default()),
        Action::AdvanceClock(clock) => advance(world, clock).await,
        Action::RegisterHost(of) => {
            let host = world.host(&of.host)?;
            administered(world.hgs(host.hgs.as_deref())?.register_host(host).await)
        }
        Action::RemoveHost(of) => {
            let host = world.host(&of.host)?;
            administered(world.hgs(host.hgs.as_deref())?.remove_host(&of.host).await)
        }
        Action::RegisterBaseline(of) => {
            let host = world.host(&of.host)?;
            administered(world.hgs(host.hgs.as_deref())?.register_baseline(host, &of.name).await)
        }
        Action::RegisterCiPolicy(of) => {
            let host = world.host(&of.host)?;
            administered(world.hgs(host.hgs.as_deref())?.register_ci_policy(host, &of.name).await)
        }
        Action::SetPolicy(set) => {
            let hgs = world.hgs(name(&set.hgs))?;
            administered(hgs.set_policy(&set.policy, set.enabled).await)
        }
        Action::KillService(of) => done(world.hgs(name(&of.hgs))?.kill(of.service).await, "it has ended"),
        Action::StartService(of) => done(world.hgs(name(&of.hgs))?.start_again(of.service).await, "it is ready"),
        Action::Partition(cut) => Ok(partition(world, cut)),
        Action::Heal(_) => {
            world.weather.heal();
            Ok(Came::done("the network is whole"))
        }
        Action::Send(send) => send_own(world, send).await,
    }
}

/// Test- or Get-HgsClientConfiguration.
async fn configuration(world: &World, of: &OfHost, attempt: bool) -> anyhow::Result<Came> {
    let host = world.host(&of.host)?;
    if !host.is_on().await {
        return Ok(off(host));
    }
    let agent = host.agent().await?;
    let answer: Answer<Value> = match attempt {
        true => agent.post("attest", &json!({})).await?,
        false => agent.get("status").await?,
    };
    Ok(told(answer, |told| Came::of_configuration(&told)))
}

/// A request about a VM to the host that is named or owns it.
async fn ask<T: DeserializeOwned>(world: &World, of: &OfVm, verb: &str, body: &Value) -> anyhow::Result<Answer<T>> {
    let owner = world.vm(&of.vm)?.current()?.owner_host;
    let host = world.host(of.host.as_ref().map_or(owner.as_str(), |host| host.as_str()))?;
    if !host.is_on().await {
        return Ok(Err(off(host).text));
    }
    host.agent().await?.post(&format!("vms/{}/{verb}", of.vm), body).await
}

async fn migrate(world: &World, of: &Migrate) -> anyhow::Result<Came> {
    let target = world.host(&of.to)?;
    let Some(address) = target.address().await else {
        return Ok(off(target));
    };
    let asked = OfVm {
        vm: of.vm.clone(),
        host: of.from.clone(),
    };
    let body = json!({ "target": of.to, "address": address });
    let answer = ask::<Migrated>(world, &asked, "migrate", &body).await?;
    Ok(told(answer, |moved| {
        Came::done(format!("the VM belongs to {}", moved.owner_host))
    }))
}

/// The owner's challenge: only a guest that has read the secret on its disk can answer.
async fn prove(world: &World, of: &OfVm) -> anyhow::Result<Came> {
    let challenge: [u8; 32] = (&mut OsRandom as &mut dyn Random).bytes();
    let body = json!({ "challenge": STANDARD.encode(challenge) });
    let expected = Blob(world.vm(&of.vm)?.expected_proof(&challenge));
    Ok(match ask::<VmReply>(world, of, "prove", &body).await? {
        Ok(VmReply::Proof { proof, guest }) if proof == expected => {
            Came::done(format!("it knows the secret, up for {} ms", guest.uptime_ms))
        }
        Ok(_) => Came::refused("the guest does not know its owner's secret"),
        Err(refusal) => Came::refused(refusal),
    })
}

/// Lets time pass for every machine.
async fn wait_for(world: &World, time: Duration, virtual_time: bool) -> anyhow::Result<Acted> {
    if !virtual_time {
        if time > LONGEST_WAIT {
            return Ok(Acted::Skipped(format!(
                "{} s would have to pass: run with --virtual-time",
                time.as_secs()
            )));
        }
        tokio::time::sleep(time).await;
        return Ok(Came::done("they have passed").into());
    }
    for hgs in world.hgs.values() {
        for service in [ServiceName::Attestation, ServiceName::KeyProtection] {
            hgs.advance(service, time.as_secs()).await?;
        }
    }
    for host in world.hosts.values() {
        host.advance(time.as_secs()).await?;
    }
    Ok(Came::done("they have passed, in virtual time").into())
}

async fn advance(world: &World, clock: &AdvanceClock) -> anyhow::Result<Came> {
    let seconds = clock.by.0.as_secs();
    for part in &clock.of {
        let (hgs, service) = match part.split_once('/') {
            Some((hgs, service)) => (Some(hgs), service),
            None => (None, part.as_str()),
        };
        match service {
            "attestation" => world.hgs(hgs)?.advance(ServiceName::Attestation, seconds).await?,
            "key-protection" => world.hgs(hgs)?.advance(ServiceName::KeyProtection, seconds).await?,
            host => world.host(host)?.advance(seconds).await?,
        }
    }
    Ok(Came::done("its clock has moved"))
}

fn partition(world: &World, cut: &Partition) -> Came {
    world.weather.cut(Cut {
        hosts: cut.hosts.iter().map(ToString::to_string).collect(),
        hgs: name(&cut.hgs).unwrap_or(&world.first).to_owned(),
        services: cut.services.clone(),
    });
    Came::done("the network is cut")
}

/// A request of the lab's own, kept in the journal like a host's.
async fn send_own(world: &World, send: &SendRequest) -> anyhow::Result<Came> {
    let hgs = world.hgs(name(&send.hgs))?;
    let body = send.body.clone().unwrap_or_default().into_bytes();
    let method = match (&send.method, body.is_empty()) {
        (Some(method), _) => method.clone(),
        (None, true) => "GET".to_owned(),
        (None, false) => "POST".to_owned(),
    };
    let [attestation, key_protection] = hgs.plain_addresses().await;
    let base = match send.service {
        ServiceName::Attestation => attestation,
        ServiceName::KeyProtection => key_protection,
    };
    let open = world.journal.open();
    let mut message = Message {
        step: None,
        at: Duration::ZERO,
        took: Duration::ZERO,
        from: LAB.to_owned(),
        to: Party::Service {
            hgs: hgs.name().to_owned(),
            service: send.service,
        },
        method: method.clone(),
        path: send.path.clone(),
        request: body.clone(),
        answer: None,
        remark: None,
    };
    let verb = Method::from_bytes(method.as_bytes()).context("this is no HTTP method")?;
    let mut request = http_client(60, None)?
        .request(verb, format!("{base}{}", send.path))
        .body(body);
    for (name, value) in &send.headers {
        request = request.header(name, value);
    }
    let answer = request.send().await;
    let came = match answer {
        Ok(answer) => {
            let status = answer.status().as_u16();
            let body = answer.bytes().await?.to_vec();
            let came = Came::of_answer(status, &body);
            message.answer = Some(Answered { status, body });
            came
        }
        Err(error) => {
            message.remark = Some("the service did not answer".to_owned());
            Came::refused(format!("{} does not answer: {error}", send.service))
        }
    };
    world.journal.close(&open, message);
    Ok(came)
}

fn told<T>(answer: Answer<T>, tell: impl FnOnce(T) -> Came) -> Came {
    match answer {
        Ok(value) => tell(value),
        Err(refusal) => Came::refused(refusal),
    }
}

fn done(result: anyhow::Result<()>, text: &str) -> anyhow::Result<Came> {
    result.map(|()| Came::done(text))
}

/// An administrators' listener that refuses is an outcome, as any refusal is.
fn administered(result: anyhow::Result<()>) -> anyhow::Result<Came> {
    match result {
        Ok(()) => Ok(Came::done("done")),
        Err(error) if error.to_string().contains(" was answered ") => Ok(Came::refused(error.to_string())),
        Err(error) => Err(error),
    }
}

fn off(host: &HostHere) -> Came {
    Came::refused(format!("the power of {} is off", host.name()))
}

fn name(hgs: &Option<At<String>>) -> Option<&str> {
    hgs.as_ref().map(|name| name.as_str())
}

/// Who sends requests of the lab's own.
pub(super) const LAB: &str = "lab";
/// What is waited for by the wall clock.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
