//! Requests that no host sends: the lab's own, a host's once more, and more than a service takes on.

use std::time::Duration;

use anyhow::{Context, anyhow};
use hgs_protocol::wire::kps::{RollTransportKeyRequest, ServiceVersion};
use reqwest::Method;
use tokio::task::JoinSet;

use super::{Came, World, name};
use crate::{
    fabric::{attestation::untrusted_certificate, service::http_client},
    scenario::{
        damage::{flip_digit, resigned},
        journal::{Answered, Message, Party},
        model::{
            Action, Protocol,
            step::{OfVm, Present, Replay, Replayed, SendRequest, ServiceName, ShownCertificate, ShownProtector},
        },
        world::{HgsHere, blocking},
    },
};

/// Carries `action` out; it must be one of these.
pub(super) async fn carry_out(world: &World, action: &Action) -> anyhow::Result<Came> {
    match action {
        Action::Send(send) => send_own(world, send).await,
        Action::Replay(of) => replay(world, of).await,
        Action::Present(of) => present(world, of).await,
        Action::Overload(of) => overload(world, of).await,
        other => Err(anyhow!("nobody carries out {}", other.name())),
    }
}

/// A request to be sent.
struct Ask {
    service: ServiceName,
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

async fn send_own(world: &World, send: &SendRequest) -> anyhow::Result<Came> {
    let body = send.body.clone().unwrap_or_default().into_bytes();
    let method = match (&send.method, body.is_empty()) {
        (Some(method), _) => method.clone(),
        (None, true) => "GET".to_owned(),
        (None, false) => "POST".to_owned(),
    };
    let ask = Ask {
        service: send.service,
        method,
        path: send.path.clone(),
        headers: send.headers.clone().into_iter().collect(),
        body,
    };
    deliver(world, world.hgs(name(&send.hgs))?, ask).await
}

/// Sends and keeps both ways in the journal, like a host's.
async fn deliver(world: &World, hgs: &HgsHere, ask: Ask) -> anyhow::Result<Came> {
    let open = world.journal.open();
    let mut message = Message {
        step: None,
        at: Duration::ZERO,
        took: Duration::ZERO,
        from: LAB.to_owned(),
        to: Party::Service {
            hgs: hgs.name().to_owned(),
            service: ask.service,
        },
        method: ask.method.clone(),
        path: ask.path.clone(),
        request: ask.body.clone(),
        answer: None,
        remark: None,
    };
    let service = ask.service;
    let came = match request(hgs, ask).await?.send().await {
        Ok(answer) => {
            let status = answer.status().as_u16();
            let body = answer.bytes().await?.to_vec();
            let came = as_answered(status, &body);
            message.answer = Some(Answered { status, body });
            came
        }
        Err(error) => {
            message.remark = Some("the service did not answer".to_owned());
            Came::refused(format!("{service} does not answer: {error}"))
        }
    };
    world.journal.close(&open, message);
    Ok(came)
}

async fn request(hgs: &HgsHere, ask: Ask) -> anyhow::Result<reqwest::RequestBuilder> {
    let [attestation, key_protection] = hgs.plain_addresses().await;
    let base = match ask.service {
        ServiceName::Attestation => attestation,
        ServiceName::KeyProtection => key_protection,
    };
    let verb = Method::from_bytes(ask.method.as_bytes()).context("this is no HTTP method")?;
    let url = format!("{base}{}", ask.path);
    let mut request = http_client(60, None)?.request(verb, url).body(ask.body);
    for (name, value) in &ask.headers {
        request = request.header(name, value);
    }
    Ok(request)
}

/// An answer to the lab.
pub(super) fn as_answered(status: u16, body: &[u8]) -> Came {
    Came::of_answer(status, body)
}

/// The newest message of a host of this kind, byte for byte.
async fn replay(world: &World, of: &Replay) -> anyhow::Result<Came> {
    let host = world.host(&of.host)?;
    let hgs = world.hgs(name(&of.hgs).or(host.hgs.as_deref()))?;
    let messages = world.journal.messages();
    let found = messages.iter().rev().find(|message| {
        let Party::Service { hgs: to, service } = &message.to else {
            return false;
        };
        let answer = message
            .answer
            .as_ref()
            .map(|answer| Came::of_answer(answer.status, &answer.body));
        let kind = match of.what {
            Replayed::Attestation => {
                let reply = answer.and_then(|answer| answer.reply);
                *service == ServiceName::Attestation && reply.as_deref() == Some("HealthCertificateReply")
            }
            Replayed::Roll => {
                *service == ServiceName::KeyProtection && RollTransportKeyRequest::parse(&message.request).is_ok()
            }
        };
        kind && message.from == *of.host && to == hgs.name()
    });
    let Some(found) = found else {
        return Ok(Came::refused(format!("{} has sent no such message", of.host)));
    };
    let Party::Service { service, .. } = found.to else {
        return Ok(Came::refused("the message went to no service"));
    };
    let ask = Ask {
        service,
        method: found.method.clone(),
        path: found.path.clone(),
        headers: content_type(service),
        body: found.request.clone(),
    };
    deliver(world, hgs, ask).await
}

/// A RollTransportKeyRequest of the lab's own.
async fn present(world: &World, of: &Present) -> anyhow::Result<Came> {
    let hgs = world.hgs(name(&of.hgs))?;
    let body = match request_of(world, hgs, of).await? {
        Ok(body) => body,
        Err(missing) => return Ok(Came::refused(missing)),
    };
    let version = match of.version {
        Protocol::V1 => ServiceVersion::V1,
        Protocol::V2 => ServiceVersion::V2,
    };
    deliver(world, hgs, roll(version, body)).await
}

fn roll(version: ServiceVersion, body: Vec<u8>) -> Ask {
    Ask {
        service: ServiceName::KeyProtection,
        method: "POST".to_owned(),
        path: version.roll_path().to_owned(),
        headers: content_type(ServiceName::KeyProtection),
        body,
    }
}

/// The request's document, or what is missing for it.
async fn request_of(world: &World, hgs: &HgsHere, of: &Present) -> anyhow::Result<Result<Vec<u8>, String>> {
    let vm = world.vm(&of.vm)?;
    let owner = vm.current()?.owner_host;
    let host = world.host(of.host.as_ref().map_or(owner.as_str(), |host| host.as_str()))?;
    let artefact = |name: &'static str| async move {
        let found = host.agent().await?.artefact(name).await;
        Ok::<_, anyhow::Error>(found.map_err(|_| format!("{} has no {name}: let it attest first", host.name())))
    };
    let certificate = match of.certificate {
        ShownCertificate::OfHost => artefact("health.cer").await?,
        ShownCertificate::OfSigningKey => artefact("health-signing.cer").await?,
        ShownCertificate::WrongIssuer => blocking(untrusted_certificate).await.map(Ok)?,
        ShownCertificate::Signer => {
            let signers = hgs.signing_certificates().await?;
            signers
                .into_iter()
                .next()
                .ok_or_else(|| "there is no signer".to_owned())
        }
        ShownCertificate::Garbage => Ok(b"no certificate".to_vec()),
    };
    let certificate = match certificate {
        Ok(certificate) => certificate,
        Err(missing) => return Ok(Err(missing)),
    };
    let text = String::from_utf8(vm.files()?.protector).context("the key protector is no text")?;
    let flip = |marker: &str, value: &str| flip_digit(&text, marker, value).map(String::into_bytes);
    let signed = |change: &dyn Fn(&str) -> Option<String>| resigned(&text, |bytes| vm.sign(bytes), change);
    let protector = match of.protector {
        ShownProtector::OfVm => Some(text.clone().into_bytes()),
        ShownProtector::OneBit => flip("<GuardianSignature", "<SignatureValue>"),
        ShownProtector::Garbage => Some(b"no document".to_vec()),
        ShownProtector::MissingParent => signed(&|wrappings| {
            let at = wrappings.rfind("ParentWrappingId=\"1\"")?;
            let tail = wrappings.get(at..)?.replacen("\"1\"", "\"9\"", 1);
            Some(format!("{}{tail}", wrappings.get(..at)?))
        }),
        ShownProtector::DuplicateId => signed(&|wrappings| Some(wrappings.replacen("<Id>2</Id>", "<Id>1</Id>", 1))),
        ShownProtector::BadWrappingSignature => {
            signed(&|wrappings| flip_digit(wrappings, "<EncryptionCertificateSignature", "<SignatureValue>"))
        }
    };
    let protector = protector.context("the key protector has not the parts that were to be changed")?;
    let mut request = RollTransportKeyRequest::new(protector, certificate);
    if let Some(algorithm) = &of.transfer_algorithm {
        request.transfer_key_encryption_algorithm.clone_from(algorithm);
    }
    Ok(Ok(request.encode()))
}

/// While somebody else holds the database, no decision becomes durable, so every request that was taken on keeps its
/// place; more are asked until one is turned away. Then the database is let go.
async fn overload(world: &World, of: &OfVm) -> anyhow::Result<Came> {
    let hgs = world.hgs(None)?;
    let asked = Present {
        hgs: None,
        vm: of.vm.clone(),
        host: of.host.clone(),
        certificate: ShownCertificate::OfHost,
        protector: ShownProtector::OfVm,
        transfer_algorithm: None,
        version: Protocol::V2,
    };
    let body = match request_of(world, hgs, &asked).await? {
        Ok(body) => body,
        Err(missing) => return Ok(Came::refused(missing)),
    };
    let held = hgs.hold_database(ServiceName::KeyProtection).await?;
    let mut running: JoinSet<anyhow::Result<(u16, Vec<u8>)>> = JoinSet::new();
    let (mut count, mut turned_away) = (0, None);
    while turned_away.is_none() && count < MOST_AT_ONCE {
        for _ in 0..BURST {
            let request = request(hgs, roll(ServiceVersion::V2, body.clone())).await?;
            running.spawn(async move {
                let answer = request.send().await?;
                Ok((answer.status().as_u16(), answer.bytes().await?.to_vec()))
            });
        }
        count += BURST;
        // Those that are taken on do not answer before the database is let go; one that is turned away does at once.
        if let Ok(Some(answer)) = tokio::time::timeout(Duration::from_millis(20), running.join_next()).await {
            turned_away = Some(answer??);
        }
    }
    held.let_go().await?;
    let (mut released, mut away) = (0, u32::from(turned_away.is_some()));
    while let Some(answer) = running.join_next().await {
        let (status, _) = answer??;
        released += u32::from(status == 200);
        away += u32::from(status == 503);
    }
    let Some((status, body)) = turned_away else {
        return Ok(Came::refused(format!(
            "{count} requests at once, and none was turned away"
        )));
    };
    let open = world.journal.open();
    world.journal.close(
        &open,
        Message {
            step: None,
            at: Duration::ZERO,
            took: Duration::ZERO,
            from: LAB.to_owned(),
            to: Party::Service {
                hgs: hgs.name().to_owned(),
                service: ServiceName::KeyProtection,
            },
            method: "POST".to_owned(),
            path: ServiceVersion::V2.roll_path().to_owned(),
            request: Vec::new(),
            answer: Some(Answered {
                status,
                body: body.clone(),
            }),
            remark: Some(format!("one of {count} requests at once")),
        },
    );
    let refusal = Came::of_answer(status, &body);
    let text = format!(
        "{count} at once: {released} released, {away} turned away at once with {}",
        refusal.text
    );
    let good = refusal.error.as_deref() == Some("UnavailableException") && released + away == count;
    Ok(match good {
        true => Came::done(text),
        false => Came::refused(text),
    })
}

fn content_type(service: ServiceName) -> Vec<(String, String)> {
    let kind = match service {
        ServiceName::Attestation => "application/json",
        ServiceName::KeyProtection => "application/xml; charset=utf-8",
    };
    vec![("content-type".to_owned(), kind.to_owned())]
}

/// Who sends requests of the lab's own.
pub(in crate::scenario) const LAB: &str = "lab";
const MOST_AT_ONCE: u32 = 8000;
const BURST: u32 = 16;
