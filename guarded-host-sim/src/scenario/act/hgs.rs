//! Steps of an HGS's administrator, and what befalls its services.

use anyhow::Context;
use serde_json::{Value, json};

use super::{Came, World, done, name};
use crate::scenario::{
    act::lab::as_answered,
    model::{
        Action,
        step::{Administer, CertificateType, LosePrimary, ServiceName},
    },
    world::HgsHere,
};

/// Carries `action` out, if it is one of these.
pub(super) async fn carry_out(world: &World, action: &Action) -> anyhow::Result<Option<Came>> {
    let came = match action {
        Action::RegisterHost(of) => {
            let host = world.host(&of.host)?;
            let hgs = world.hgs(name(&of.hgs).or(host.hgs.as_deref()))?;
            administered(hgs.register_host(host, of.policy_version, of.force).await)
        }
        Action::RemoveHost(of) => {
            let host = world.host(&of.host)?;
            administered(world.hgs(host.hgs.as_deref())?.remove_host(&of.host).await)
        }
        Action::RegisterBaseline(of) | Action::RegisterCiPolicy(of) => {
            let host = world.host(&of.host)?;
            let hgs = world.hgs(name(&of.hgs).or(host.hgs.as_deref()))?;
            let (file, to) = match action {
                Action::RegisterBaseline(_) => ("boot.log", "tpm-baselines"),
                _ => ("SIPolicy.p7b", "ci-policies"),
            };
            administered(hgs.register_file(host, file, to, &of.name, of.policy_version).await)
        }
        Action::RemoveBaseline(of) => {
            let hgs = world.hgs(name(&of.hgs))?;
            let name = hgs.registered_as(&of.name);
            administered(hgs.remove(&format!("tpm-baselines/{name}")).await)
        }
        Action::RemoveCiPolicy(of) => {
            let hgs = world.hgs(name(&of.hgs))?;
            let name = hgs.registered_as(&of.name);
            administered(hgs.remove(&format!("ci-policies/{name}")).await)
        }
        Action::RegisterDumpKey(of) => {
            let sha256 = hex::encode(hgs_protocol::crypto::sha256(of.key.as_bytes()));
            let hgs = world.hgs(name(&of.hgs))?;
            let body = json!({ "name": hgs.registered_as(&of.name), "sha256": sha256 });
            administered(hgs.post(ServiceName::Attestation, "dump-keys", &body).await)
        }
        Action::SetPolicy(set) => {
            let hgs = world.hgs(name(&set.hgs))?;
            administered(hgs.set_policy(&set.policy, set.enabled).await)
        }
        Action::SetMode(set) => administered(world.hgs(name(&set.hgs))?.set_mode(set.mode).await),
        Action::RenewSigner(of) => {
            let told = world.hgs(name(&of.hgs))?.renew_signer(of.now, of.at_once).await;
            told.map(Came::done)
        }
        Action::RotateCertificates(of) => administered(world.hgs(name(&of.hgs))?.rotate_certificates().await),
        Action::DisableOldCertificates(of) => {
            let hgs = world.hgs(name(&of.hgs))?;
            administered(hgs.for_old_certificates(Old::Disable).await)
        }
        Action::EnableOldCertificates(of) => {
            let hgs = world.hgs(name(&of.hgs))?;
            administered(hgs.for_old_certificates(Old::Enable).await)
        }
        Action::RemoveOldCertificates(of) => {
            let hgs = world.hgs(name(&of.hgs))?;
            administered(hgs.for_old_certificates(Old::Remove).await)
        }
        Action::UntrustSigners(of) => administered(world.hgs(name(&of.hgs))?.untrust_signers().await),
        Action::TrustSigners(of) => administered(world.hgs(name(&of.hgs))?.trust_signers().await),
        Action::DenyCertificates(of) => {
            let hgs = world.hgs(name(&of.hgs))?;
            let body = json!({ "denyIssuedBefore": hgs.now(ServiceName::KeyProtection).plus_seconds(1) });
            let put = hgs.put(ServiceName::KeyProtection, "attestation-signers/policy", &body);
            administered(put.await)
        }
        Action::AllowOffline(of) => administered(world.hgs(name(&of.hgs))?.allow_offline(of.starts).await),
        Action::VerifyRecord(of) => verify(world.hgs(name(&of.hgs))?, of.service).await,
        Action::Administer(of) => administer(world, of).await,
        Action::LosePrimary(of) => lose_primary(world, of).await,
        Action::KillService(of) => done(world.hgs(name(&of.hgs))?.kill(of.service).await, "it has ended"),
        Action::StartService(of) => done(world.hgs(name(&of.hgs))?.start_again(of.service).await, "it is ready"),
        Action::RestartService(of) => {
            let hgs = world.hgs(name(&of.hgs))?;
            hgs.kill(of.service).await?;
            done(hgs.start_again(of.service).await, "it is ready again")
        }
        _ => return Ok(None),
    };
    came.map(Some)
}

/// What is done to certificates that are not primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::scenario) enum Old {
    Disable,
    Enable,
    Remove,
}

/// Recomputes a service's record; every fault in it is told.
async fn verify(hgs: &HgsHere, service: ServiceName) -> anyhow::Result<Came> {
    let body = match service {
        ServiceName::Attestation => json!([]),
        ServiceName::KeyProtection => json!({ "heads": [] }),
    };
    let told: Value = serde_json::from_slice(&hgs.post_for(service, "audit/verify", &body).await?)?;
    let rows = told.get("rows").map(ToString::to_string).unwrap_or_default();
    let faults = told
        .get("faults")
        .and_then(Value::as_array)
        .context("the verification tells of no faults")?;
    Ok(match faults.as_slice() {
        [] => Came::done(format!("{rows} rows, no fault")),
        faults => Came::refused(format!("{rows} rows, {} faults: {}", faults.len(), json!(faults))),
    })
}

async fn administer(world: &World, of: &Administer) -> anyhow::Result<Came> {
    let hgs = world.hgs(name(&of.hgs))?;
    let mut body = of.body.clone();
    if let Some(Value::String(name)) = body.as_mut().and_then(|body| body.get_mut("name")) {
        *name = hgs.registered_as(name);
    }
    let (status, body) = hgs.administer(of.service, &of.method, &of.path, body.as_ref()).await?;
    Ok(as_answered(status, &body))
}

/// The database of key protection is left without a primary certificate, as after a restore by hand.
async fn lose_primary(world: &World, of: &LosePrimary) -> anyhow::Result<Came> {
    let hgs = world.hgs(name(&of.hgs))?;
    let role = match of.certificate {
        CertificateType::Signing => "signing",
        CertificateType::Encryption => "encryption",
    };
    hgs.lose_primary(role).await?;
    Ok(Came::done("it is not primary any more"))
}

/// An administrators' listener that refuses is an outcome, as any refusal is.
fn administered(result: anyhow::Result<()>) -> anyhow::Result<Came> {
    match result {
        Ok(()) => Ok(Came::done("done")),
        Err(error) if error.to_string().contains(" was answered ") => Ok(Came::refused(error.to_string())),
        Err(error) => Err(error),
    }
}
