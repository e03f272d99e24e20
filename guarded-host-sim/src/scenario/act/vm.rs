//! Steps of a VM's life: each is a request to a host's agent, but for what the VM's owner or a thief does with files.

use base64::{Engine, engine::general_purpose::STANDARD};
use hgs_protocol::env::{OsRandom, Random};
use reqwest::Method;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Came, World, off, told};
use crate::{
    fabric::host::Answer,
    scenario::model::{
        Action, At,
        step::{Carry, ChangeSecurity, Checkpoint, Look, Migrate, OfVm},
    },
    vm::{
        operation::{Migrated, PoweredOn},
        request::{Blob, VmReply},
        view::VmView,
        volume::CheckpointEntry,
    },
};

/// Carries `action` out, if it is one of these.
pub(super) async fn carry_out(world: &World, action: &Action) -> anyhow::Result<Option<Came>> {
    let came = match action {
        Action::StartVm(of) => {
            let answer = ask::<PoweredOn>(world, of, "power-on", &json!({})).await?;
            told(answer, |started| Came {
                offline: Some(started.offline),
                offline_starts_left: Some(started.offline_starts_left),
                ..Came::done(format!("the guest runs, boot {} of its disk", started.guest.boots))
            })
        }
        Action::StopVm(of) => plain(world, of, "power-off", "it is off").await?,
        Action::TurnOffVm(of) => plain(world, of, "turn-off", "its power was cut").await?,
        Action::SaveVm(of) => plain(world, of, "save", "it is saved").await?,
        Action::DiscardSaved(of) => plain(world, of, "discard-saved", "its saved memory is gone").await?,
        Action::ResetVm(of) => plain(world, of, "reset", "it was reset").await?,
        Action::TakeOver(of) => plain(world, of, "take-over", "it belongs to the host").await?,
        Action::RestoreProtector(of) => plain(world, of, "protector/restore", "it has the protector of before").await?,
        Action::Migrate(of) => migrate(world, of).await?,
        Action::Prove(of) => prove(world, of).await?,
        Action::ShowVm(of) => show(world, of).await?,
        Action::Checkpoint(of) => {
            let body = json!({ "name": of.name });
            let answer = ask::<CheckpointEntry>(world, &owner(&of.vm), "checkpoints", &body).await?;
            told(answer, |taken| Came::done(format!("the checkpoint {}", taken.id)))
        }
        Action::ApplyCheckpoint(of) => apply(world, of).await?,
        Action::Look(of) => look(world, of).await?,
        Action::ChangeSecurity(of) => change(world, of).await?,
        Action::ExportTo(of) => export(world, of).await?,
        Action::Steal(of) => {
            let vm = world.vm(&of.vm)?;
            vm.steal(world.host(&of.to)?).await?;
            Came::done(format!("{} has a copy of its files", of.to))
        }
        Action::BackUp(of) => {
            world.vm(&of.vm)?.back_up(&of.name)?;
            Came::done("its files are copied")
        }
        Action::PutBack(of) => {
            world.vm(&of.vm)?.put_back(&of.name)?;
            Came::done("its files are those of the backup")
        }
        Action::KeepProtector(of) => {
            world.vm(&of.vm)?.keep_protector(&of.name)?;
            Came::done("its key protector is copied")
        }
        Action::SetProtector(of) => {
            let body = json!({ "protector": STANDARD.encode(world.vm(&of.vm)?.kept_protector(&of.name)?) });
            let answer = send::<Value>(world, &owner(&of.vm), Method::PUT, "protector", &body).await?;
            told(answer, |_| Came::done("it has that key protector"))
        }
        Action::Rekey(of) => {
            let named: Vec<&str> = match of.guardians.is_empty() {
                true => vec![world.first.as_str()],
                false => of.guardians.iter().map(|name| name.as_str()).collect(),
            };
            let mut guardians = Vec::new();
            for name in named {
                guardians.push(world.hgs(Some(name))?.guardian().await?);
            }
            match world.vm(&of.vm)?.rekey(guardians).await? {
                Ok(generation) => Came::done(format!("generation {generation} is under a new key")),
                Err(refusal) => Came::refused(refusal),
            }
        }
        _ => return Ok(None),
    };
    Ok(Some(came))
}

/// The VM at whichever host owns it.
fn owner(vm: &At<String>) -> OfVm {
    OfVm {
        vm: vm.clone(),
        host: None,
    }
}

async fn plain(world: &World, of: &OfVm, verb: &str, text: &str) -> anyhow::Result<Came> {
    let answer = ask::<Value>(world, of, verb, &json!({})).await?;
    Ok(told(answer, |_| Came::done(text)))
}

/// A POST about a VM to the host that is named or owns it.
async fn ask<T: DeserializeOwned>(world: &World, of: &OfVm, verb: &str, body: &Value) -> anyhow::Result<Answer<T>> {
    send(world, of, Method::POST, verb, body).await
}

async fn send<T: DeserializeOwned>(
    world: &World,
    of: &OfVm,
    method: Method,
    verb: &str,
    body: &Value,
) -> anyhow::Result<Answer<T>> {
    let host = match &of.host {
        Some(name) => world.host(name)?,
        None => world.host(&world.vm(&of.vm)?.current()?.owner_host)?,
    };
    if !host.is_on().await {
        return Ok(Err(off(host).text));
    }
    let path = format!("vms/{}/{verb}", of.vm);
    let answer = host.agent().await?.send(method, path.trim_end_matches('/'), body).await;
    match answer {
        Ok(answer) => Ok(answer),
        // Its power was cut meanwhile, at a commit point say.
        Err(_) if !host.is_on().await => Ok(Err(format!("{} lost its power before it answered", host.name()))),
        Err(error) => Err(error),
    }
}

async fn migrate(world: &World, of: &Migrate) -> anyhow::Result<Came> {
    let target = world.host(&of.to)?;
    let source = match &of.from {
        Some(from) => from.to_string(),
        None => world.vm(&of.vm)?.current()?.owner_host,
    };
    let Some(door) = world.door(&source, target).await? else {
        return Ok(off(target));
    };
    let asked = OfVm {
        vm: of.vm.clone(),
        host: of.from.clone(),
    };
    let body = json!({ "target": of.to, "address": format!("http://{}", door.address) });
    let answer = ask::<Migrated>(world, &asked, "migrate", &body).await?;
    Ok(told(answer, |moved| {
        Came::done(format!("the VM belongs to {}", moved.owner_host))
    }))
}

/// The owner's challenge: only a guest that has read the secret on its disk can answer.
async fn prove(world: &World, of: &OfVm) -> anyhow::Result<Came> {
    let challenge: [u8; 32] = (&mut OsRandom as &mut dyn Random).bytes();
    let body = json!({ "challenge": STANDARD.encode(challenge) });
    let Some(expected) = world.vm(&of.vm)?.expected_proof(&challenge).map(Blob) else {
        return Ok(Came::refused(
            "the VM was made by its host: nobody else knows its secret",
        ));
    };
    Ok(match ask::<VmReply>(world, of, "prove", &body).await? {
        Ok(VmReply::Proof { proof, guest }) if proof == expected => {
            Came::done(format!("it knows the secret, up for {} ms", guest.uptime_ms))
        }
        Ok(_) => Came::refused("the guest does not know its owner's secret"),
        Err(refusal) => Came::refused(refusal),
    })
}

async fn show(world: &World, of: &OfVm) -> anyhow::Result<Came> {
    let answer = send::<VmView>(world, of, Method::GET, "", &json!({})).await?;
    Ok(told(answer, |view| Came {
        vm_state: Some(format!("{:?}", view.state)),
        owner: Some(view.owner_host.clone()),
        ..Came::done(format!(
            "{:?} on {}, generation {}",
            view.state, view.owner_host, view.generation
        ))
    }))
}

async fn apply(world: &World, of: &Checkpoint) -> anyhow::Result<Came> {
    let asked = owner(&of.vm);
    let view = send::<VmView>(world, &asked, Method::GET, "", &json!({})).await?;
    let found = match &view {
        Ok(view) => view.checkpoints.iter().find(|entry| entry.name == of.name),
        Err(refusal) => return Ok(Came::refused(refusal.clone())),
    };
    match found {
        Some(entry) => {
            plain(
                world,
                &asked,
                &format!("checkpoints/{}/apply", entry.id),
                "it is back at the checkpoint",
            )
            .await
        }
        None => Ok(Came::refused(format!("there is no checkpoint {:?}", of.name))),
    }
}

async fn look(world: &World, of: &Look) -> anyhow::Result<Came> {
    let channel = serde_json::to_value(of.channel)?;
    let path = format!("channels/{}", channel.as_str().unwrap_or_default());
    let answer = send::<Value>(world, &owner(&of.vm), Method::GET, &path, &json!({})).await?;
    Ok(told(answer, |_| Came::done("it gives what the guest shows")))
}

async fn change(world: &World, of: &ChangeSecurity) -> anyhow::Result<Came> {
    let body = match (of.kind, of.on, of.off) {
        (Some(kind), ..) => json!({ "change": "kind", "kind": kind.as_security() }),
        (_, Some(switch), _) => json!({ "change": "switch", "switch": switch, "on": true }),
        (_, _, off) => json!({ "change": "switch", "switch": off, "on": false }),
    };
    let answer = ask::<Value>(world, &owner(&of.vm), "security", &body).await?;
    Ok(told(answer, |_| Came::done("it is changed")))
}

/// Export-VM on the owner, Import-VM -Copy on the other host.
async fn export(world: &World, of: &Carry) -> anyhow::Result<Came> {
    let target = world.host(&of.to)?;
    let folder = world.exchange()?;
    let body = json!({ "destination": folder });
    if let Err(refusal) = ask::<Value>(world, &owner(&of.vm), "export", &body).await? {
        return Ok(Came::refused(refusal));
    }
    if !target.is_on().await {
        return Ok(off(target));
    }
    let body = json!({ "source": folder.join(of.vm.as_str()) });
    let answer: Answer<Value> = target.agent().await?.post("imports", &body).await?;
    Ok(told(answer, |_| Came::done(format!("{} has imported it", of.to))))
}
