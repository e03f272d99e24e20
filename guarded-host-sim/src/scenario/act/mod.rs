//! Carries a step out on a running fabric. An error is trouble of the lab's: something that must be there does
//! not answer. Whatever a service or a host refuses is what came of the step.

pub(super) mod hgs;
mod lab;
mod network;
mod vm;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub(super) use self::lab::LAB;
use super::{
    came::{Came, Part},
    judge::judge,
    model::{
        Action, At, Step,
        step::{AdvanceClock, KeepAttesting, OfHost, ServiceName},
    },
    world::{HostHere, World},
};
use crate::fabric::host::Answer;

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
    if let Some(reason) = world.cannot(action).await? {
        return Ok(Acted::Skipped(reason));
    }
    let begun = Instant::now();
    let acted = match action {
        Action::Wait(wait) => wait_for(world, wait.time.0, virtual_time).await?,
        Action::Together(steps) => together(world, steps, virtual_time).await?,
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
        Action::KeepAttesting(of) => keep_attesting(world, of).await,
        Action::Reboot(reboot) => {
            let host = world.host(&reboot.host)?;
            match host.is_on().await {
                true => done(host.reboot(&reboot.dials).await, "it has booted"),
                false => Ok(off(host)),
            }
        }
        Action::Hibernate(of) => {
            let host = world.host(&of.host)?;
            match host.is_on().await {
                true => host.hibernate().await.map(|answer| told(answer, Came::done)),
                false => Ok(off(host)),
            }
        }
        Action::ClearTpm(of) => {
            let host = world.host(&of.host)?;
            match host.is_on().await {
                true => done(host.clear_tpm().await, "it has booted with a cleared TPM"),
                false => Ok(off(host)),
            }
        }
        Action::KillHost(of) => done(world.host(&of.host)?.kill().await, "its power is off"),
        Action::StartHost(of) => {
            let point = of.crash_at.as_ref().map(|point| point.as_str());
            done(world.host(&of.host)?.power_on(point).await, "it has booted")
        }
        Action::AdvanceClock(clock) => advance(world, clock).await,
        other => match vm::carry_out(world, other).await? {
            Some(came) => Ok(came),
            None => match hgs::carry_out(world, other).await? {
                Some(came) => Ok(came),
                None => match network::carry_out(world, other) {
                    Some(came) => Ok(came),
                    None => lab::carry_out(world, other).await,
                },
            },
        },
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

/// Every host attests `times` times, all hosts at once.
async fn keep_attesting(world: &World, of: &KeepAttesting) -> anyhow::Result<Came> {
    let one = async |name: &At<String>| {
        let asked = OfHost { host: name.clone() };
        let (mut passed, mut transient, mut last) = (0, 0, Came::default());
        for _ in 0..of.times {
            last = configuration(world, &asked, true).await?;
            match last.status.as_deref() {
                Some("Passed") => passed += 1,
                Some("TransientError") => transient += 1,
                _ => break,
            }
        }
        anyhow::Ok((name.clone(), passed, transient, last))
    };
    let all = futures_util::future::try_join_all(of.hosts.iter().map(one)).await?;
    let passed: u32 = all.iter().map(|(_, passed, ..)| passed).sum();
    let transient: u32 = all.iter().map(|(_, _, transient, _)| transient).sum();
    let text = format!("{passed} passed, {transient} were to be tried again");
    Ok(match all.iter().find(|(.., last)| !last.done) {
        None => Came::done(text),
        Some((name, .., last)) => Came {
            text: format!("{text}; the last attempt of {name}: {}", last.text),
            ..last.clone()
        },
    })
}

/// Steps at once, each held against its own expectation.
async fn together(world: &World, steps: &[Step], virtual_time: bool) -> anyhow::Result<Acted> {
    let run = |step: &Step| {
        let step = step.clone();
        // A step can hold steps, so its future is behind a pointer.
        Box::pin(async move { anyhow::Ok((act(world, &step.action, virtual_time).await?, step)) })
    };
    let mut parts = Vec::new();
    for (acted, step) in futures_util::future::try_join_all(steps.iter().map(run)).await? {
        match acted {
            Acted::Skipped(reason) => return Ok(Acted::Skipped(format!("{}: {reason}", step.title()))),
            Acted::Came(came) => parts.push(Part {
                title: step.title(),
                mismatches: judge(step.expect.as_ref(), &came),
                text: came.text.clone(),
            }),
        }
    }
    let wrong = parts.iter().filter(|part| !part.mismatches.is_empty()).count();
    let text = match wrong {
        0 => format!("all {} as expected", parts.len()),
        wrong => format!("{wrong} of {} not as expected", parts.len()),
    };
    Ok(Came {
        done: wrong == 0,
        parts,
        ..Came::done(text)
    }
    .into())
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

fn told<T>(answer: Answer<T>, tell: impl FnOnce(T) -> Came) -> Came {
    match answer {
        Ok(value) => tell(value),
        Err(refusal) => Came::refused(refusal),
    }
}

fn done(result: anyhow::Result<()>, text: &str) -> anyhow::Result<Came> {
    result.map(|()| Came::done(text))
}

fn off(host: &HostHere) -> Came {
    Came::refused(format!("the power of {} is off", host.name()))
}

fn name(hgs: &Option<At<String>>) -> Option<&str> {
    hgs.as_ref().map(|name| name.as_str())
}

/// What is waited for by the wall clock.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(60);
