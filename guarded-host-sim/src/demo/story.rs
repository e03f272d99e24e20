//! The story, part by part. What is expected of each step stands beside it.

use std::{collections::BTreeMap, future::Future, path::Path, time::Duration};

use anyhow::{Context, anyhow, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use hgs_protocol::{
    env::{Clock, OsRandom, Random},
    protector::Guardian,
};
use serde_json::{Value, json};

use super::{
    DemoArgs,
    narrator::{
        Expected::{self, Done, Refused},
        Narrator, Outcome,
    },
    refusals,
};
use crate::{
    fabric::{Fabric, hgs::Hgs, host::SimHost, soft_token::SoftTokens},
    owner::{OwnedVm, Owner},
    vm::{
        VmName,
        guest::GuestReport,
        operation::Migrated,
        request::{Blob, VmReply},
        volume::{Generation, Volume},
    },
};

/// Tells the whole story below `dir`. What went wrong is in the narrator.
pub(super) async fn tell(narrator: &mut Narrator, dir: &Path, args: &DemoArgs) {
    if let Err(error) = try_tell(narrator, dir, args).await {
        narrator.stop(format!("{error:#}"));
    }
}

/// An error here means that the story cannot go on; the failed step is recorded already.
async fn try_tell(n: &mut Narrator, dir: &Path, args: &DemoArgs) -> anyhow::Result<()> {
    let mut fabric = match &args.attach {
        Some(attachment) => Fabric::attach(dir, attachment)?,
        None => Fabric::new(dir, args.https)?,
    };
    if args.pkcs11 {
        fabric.tokens = Some(SoftTokens::find(args.pkcs11_module.as_deref())?);
    }
    n.part("1. The fabric is set up");
    let (hgs, guardian) = set_up(n, &fabric).await?;
    n.part("2. Hosts are manufactured, booted and registered");
    let volume = fabric.volume("volume")?;
    let mut hosts = hosts(n, &fabric, &hgs, &volume.1).await?;
    n.part("3. A host attests");
    let name = "host01 attests over the RTPM exchange and receives its health certificate";
    step(n, &fabric, name, Done, async {
        attested(named(&hosts, "host01")?).await
    })
    .await;
    n.part("4. The owner shields a VM");
    let (owner, vm) = shield(n, &fabric, &guardian, &volume.0).await?;
    let scene = Scene {
        fabric: &fabric,
        hgs: &hgs,
        owner: &owner,
        vm: &vm,
        volume: &volume.0,
    };
    n.part("5. The VM is powered on");
    let booted = power_on(n, &scene, &hosts).await?;
    n.part("6. The VM is live-migrated");
    migrate(n, &scene, &hosts, &booted).await?;
    n.part("7. What is refused");
    refusals::tell(n, &scene, &mut hosts).await?;
    if fabric.is_attached() {
        n.part("8. Time passes: not told here, since the clocks of a lab that stays cannot be set back");
        return Ok(());
    }
    n.part("8. Time passes");
    refusals::expiry(n, &scene, &hosts).await;
    Ok(())
}

/// What most of the story needs.
pub(super) struct Scene<'a> {
    pub(super) fabric: &'a Fabric,
    pub(super) hgs: &'a Hgs,
    pub(super) owner: &'a Owner,
    pub(super) vm: &'a OwnedVm,
    pub(super) volume: &'a Volume,
}

pub(super) type Hosts = BTreeMap<String, SimHost>;

/// A host that the HGS does not know.
pub(super) const STRANGER: &str = "host99";

async fn set_up(n: &mut Narrator, fabric: &Fabric) -> anyhow::Result<(Hgs, Guardian)> {
    let mut started = None;
    let name = "HGS is initialised: attestation signer, signing and encryption certificates";
    step(n, fabric, name, Done, async {
        let hgs = blocking(|| fabric.start_hgs("hgs"))?;
        let told = format!(
            "attestation at {}, key protection at {}",
            hgs.attestation.url, hgs.kps.url
        );
        started = Some(hgs);
        Ok(Outcome::Done(told))
    })
    .await;
    let hgs = started.context("there is no HGS")?;
    if fabric.tokens.is_some() {
        let name = "The key protection service's private keys were made in a PKCS#11 token";
        step(n, fabric, name, Done, async {
            let own: Vec<Value> = hgs.kps.admin_get("certificates").await?;
            let in_token = |certificate: &&Value| certificate.get("tokenKeyId").is_some_and(Value::is_string);
            let count = own.iter().filter(in_token).count();
            ensure!(
                count > 0 && count == own.len(),
                "{count} of {} private keys are in the token",
                own.len()
            );
            Ok(Outcome::Done(format!("{count} keys, which the token never gives out")))
        })
        .await;
    }
    let name = "The key protection service trusts the attestation signer";
    step(n, fabric, name, Done, async {
        let count = hgs.trust_signer().await?;
        ensure!(count > 0, "signingCertificates is empty");
        Ok(Outcome::Done(format!("{count} certificate from signingCertificates")))
    })
    .await;
    let mut imported = None;
    let name = "The VM owner downloads the guardian metadata and compares thumbprints";
    step(n, fabric, name, Done, async {
        let guardian = Owner::import_guardian(&hgs.metadata().await?, "HGS")?;
        let own: Vec<Value> = hgs.kps.admin_get("certificates").await?;
        let known = |thumbprint: &str| own.iter().any(|c| c.get("thumbprint") == Some(&json!(thumbprint)));
        let (signing, encryption) = (&guardian.signing_thumbprint, &guardian.encryption_thumbprint);
        ensure!(
            known(signing) && known(encryption),
            "the thumbprints {signing} and {encryption} are not those that the HGS administrator sees"
        );
        let told = format!("signing {signing}, encryption {encryption}");
        imported = Some(guardian.guardian);
        Ok(Outcome::Done(told))
    })
    .await;
    Ok((hgs, imported.context("there is no guardian to protect a VM with")?))
}

async fn hosts(n: &mut Narrator, fabric: &Fabric, hgs: &Hgs, volume: &Path) -> anyhow::Result<Hosts> {
    let mut started = None;
    let name = "host01, host02 and host03 are manufactured (TPM, EK certificate) and booted (log measured)";
    step(n, fabric, name, Done, async {
        let wanted = ["host01", "host02", "host03", STRANGER].map(|name| (name, hgs, volume));
        let hosts = started.insert(blocking(|| fabric.start_hosts(&wanted))?);
        let mut told = Vec::new();
        for host in hosts.values().filter(|h| h.name != STRANGER) {
            let log = host.artefact("boot.log").await?;
            told.push(format!("{} ({} bytes of boot log)", host.name, log.len()));
        }
        Ok(Outcome::Done(told.join(", ")))
    })
    .await;
    let hosts = started.context("there are no hosts")?;
    let name = "The hosts are registered: EK, TPM baseline, CI policy";
    step(n, fabric, name, Done, async {
        hgs.trust_tpm_makers(&fabric.tpm_maker_certificates()?).await?;
        if fabric.is_attached() {
            // An earlier story had a host03 of its own.
            hgs.forget_host("host03").await?;
        }
        for name in ["host01", "host02", "host03"] {
            let ek = named(&hosts, name)?.artefact("ek.cer").await?;
            hgs.register_host(name, &ek).await?;
        }
        register_model(hgs, named(&hosts, "host01")?).await?;
        Ok(Outcome::Done(
            "three EK certificates, one TPM baseline, one CI policy".to_owned(),
        ))
    })
    .await;
    Ok(hosts)
}

/// Baselines come from a reference host.
pub(super) async fn register_model(hgs: &Hgs, reference: &SimHost) -> anyhow::Result<()> {
    let boot_log = reference.artefact("boot.log").await?;
    let ci_policy = reference.artefact("SIPolicy.p7b").await?;
    hgs.register_model("GuardedHost", &boot_log, &ci_policy).await
}

/// One attestation as the host's administrator sees it.
pub(super) async fn attested(host: &SimHost) -> anyhow::Result<Outcome> {
    let told: Value = accepted(host.post("attest", &json!({})).await?)?;
    let detail = told
        .get("detail")
        .and_then(Value::as_str)
        .unwrap_or("the agent gave no detail");
    let has = |key: &str| told.get(key).filter(|value| !value.is_null());
    match (has("certificate"), has("error")) {
        (Some(certificate), _) => {
            let of = |key: &str| certificate.get(key).and_then(Value::as_str).unwrap_or("?");
            Ok(Outcome::Done(format!(
                "serial {}, valid from {} to {}",
                of("serial"),
                of("not_before"),
                of("not_after")
            )))
        }
        (None, Some(_)) => Ok(Outcome::Refused(detail.to_owned())),
        (None, None) => Err(anyhow!("{detail}")),
    }
}

async fn shield(
    n: &mut Narrator,
    fabric: &Fabric,
    guardian: &Guardian,
    volume: &Volume,
) -> anyhow::Result<(Owner, OwnedVm)> {
    let mut made = None;
    let name = "The owner makes a key protector (owner, HGS guardian) and shields the VM payroll";
    step(n, fabric, name, Done, async {
        let (owner, vm) = blocking(|| {
            let rng: &mut dyn Random = &mut OsRandom;
            let folder = fabric.folder().join("owner");
            let owner = Owner::new("Contoso payroll", &folder, Clock::system().now(), rng)?;
            let secret = hex::encode(rng.bytes::<24>());
            let name = unused_name(volume)?;
            let vm = owner.shield(&name, secret.as_bytes(), guardian, volume, "host01", rng)?;
            anyhow::Ok((owner, vm))
        })?;
        let told = "its vTPM is sealed under the transport key, its disk under a key that only the vTPM unseals";
        made = Some((owner, vm));
        Ok(Outcome::Done(told.to_owned()))
    })
    .await;
    made.context("there is no VM")
}

/// A volume that was there before the story may have a VM of an earlier one.
fn unused_name(volume: &Volume) -> anyhow::Result<VmName> {
    let taken: Vec<VmName> = volume.vms()?.iter().map(|vm| vm.name().clone()).collect();
    let mut number = 1;
    loop {
        let name = match number {
            1 => VmName::parse("payroll")?,
            number => VmName::parse(&format!("payroll-{number}"))?,
        };
        if !taken.contains(&name) {
            return Ok(name);
        }
        number += 1;
    }
}

async fn power_on(n: &mut Narrator, scene: &Scene<'_>, hosts: &Hosts) -> anyhow::Result<GuestReport> {
    let fabric = scene.fabric;
    let before = scene.files()?;
    let host = named(hosts, "host01")?;
    let mut booted = None;
    let name = "host01 powers the VM on: RollTransportKey, keys opened in the VBS store";
    step(n, fabric, name, Done, async {
        let answer = scene.vm_call::<GuestReport>(host, "power-on", &json!({})).await?;
        booted = answer.as_ref().ok().cloned();
        Ok(outcome(answer))
    })
    .await;
    let name = "The guest has unlocked its disk and read its secret";
    step(n, fabric, name, Done, async {
        scene.prove(host).await?;
        Ok(Outcome::Done("it answers the owner's challenge".to_owned()))
    })
    .await;
    let name = "The protector on disk is the egress protector; the old transport key no longer opens the state";
    step(n, fabric, name, Done, async {
        let after = scene.files()?;
        ensure!(
            before.protector != after.protector,
            "the protector on disk is still the ingress protector"
        );
        let opens =
            |key: &Generation, state: &Generation| scene.owner.opens(&key.protector, &state.guest_state, &mut OsRandom);
        ensure!(opens(&before, &before)?, "the old key did not even open the old state");
        ensure!(opens(&after, &after)?, "the new key does not open the new state");
        ensure!(!opens(&before, &after)?, "the old key opens the new state");
        Ok(Outcome::Done("the owner tried both keys on the new state".to_owned()))
    })
    .await;
    booted.context("the VM does not run")
}

async fn migrate(n: &mut Narrator, scene: &Scene<'_>, hosts: &Hosts, booted: &GuestReport) -> anyhow::Result<()> {
    let fabric = scene.fabric;
    let (source, target) = (named(hosts, "host01")?, named(hosts, "host02")?);
    let mut moved = None;
    let name = "The VM is live-migrated to host02, which attests and obtains the keys itself";
    step(n, fabric, name, Done, async {
        let ask = json!({ "target": target.name, "address": target.agent_url });
        match scene.vm_call::<Migrated>(source, "migrate", &ask).await? {
            Ok(migrated) => {
                ensure!(
                    migrated.owner_host == "host02",
                    "the VM belongs to {}",
                    migrated.owner_host
                );
                moved = Some(migrated);
                Ok(Outcome::Done("the VM belongs to host02".to_owned()))
            }
            Err(refusal) => Ok(Outcome::Refused(refusal)),
        }
    })
    .await;
    let moved = moved.context("the VM was not migrated")?;
    let name = "The guest's memory and secret have arrived";
    step(n, fabric, name, Done, async {
        let guest = scene.prove(target).await?;
        ensure!(guest.boot_id == booted.boot_id, "the guest on host02 is another boot");
        ensure!(guest.uptime_ms >= booted.uptime_ms, "the guest's uptime went back");
        Ok(Outcome::Done(format!(
            "the same boot, up for {} ms, answers the owner's challenge",
            guest.uptime_ms
        )))
    })
    .await;
    let name = "host01 has forgotten its keys";
    step(n, fabric, name, Done, async {
        let VmReply::List { vms } = accepted(source.get::<VmReply>("vms").await?)? else {
            return Err(anyhow!("host01 does not list its VMs"));
        };
        ensure!(
            moved.source_forgot && vms.is_empty(),
            "host01 still holds keys of {vms:?}"
        );
        Ok(Outcome::Done("its VBS store holds no key of any VM".to_owned()))
    })
    .await;
    let name = "host01 tries to start the VM that it gave away";
    step(n, fabric, name, Refused(&["belongs to host02"]), async {
        let answer = scene.vm_call::<GuestReport>(source, "power-on", &json!({})).await?;
        Ok(outcome(answer))
    })
    .await;
    Ok(())
}

impl Scene<'_> {
    /// The generation that counts on the volume.
    pub(super) fn files(&self) -> anyhow::Result<Generation> {
        let folder = self.volume.vm(&self.vm.name)?;
        Ok(folder.read_generation(&folder.current()?.generation)?)
    }

    /// A request about the VM to a host's agent.
    pub(super) async fn vm_call<T: serde::de::DeserializeOwned>(
        &self,
        host: &SimHost,
        verb: &str,
        body: &Value,
    ) -> anyhow::Result<Result<T, String>> {
        host.post(&format!("vms/{}/{verb}", self.vm.name), body).await
    }

    /// The owner challenges the guest on `host`: only a guest that read the secret can answer.
    pub(super) async fn prove(&self, host: &SimHost) -> anyhow::Result<GuestReport> {
        let challenge: [u8; 32] = (&mut OsRandom as &mut dyn Random).bytes();
        let ask = json!({ "challenge": STANDARD.encode(challenge) });
        let VmReply::Proof { proof, guest } = accepted(self.vm_call::<VmReply>(host, "prove", &ask).await?)? else {
            return Err(anyhow!("the guest gave no proof"));
        };
        ensure!(
            proof == Blob(self.vm.expected_proof(&challenge).to_vec()),
            "the guest on {} does not know the owner's secret",
            host.name
        );
        Ok(guest)
    }
}

/// Runs a step; a process of the fabric that ends meanwhile ends the step and the story.
pub(super) async fn step<F>(n: &mut Narrator, fabric: &Fabric, name: &str, expected: Expected, run: F) -> bool
where
    F: Future<Output = anyhow::Result<Outcome>>,
{
    if let Some(reason) = fabric.watch.gone() {
        n.stop(reason);
    }
    let guarded = async {
        let result = tokio::select! {
            result = run => result,
            reason = fabric.watch.until_gone() => Err(anyhow!(reason)),
        };
        if result.is_err() {
            // A refused connection may be the first sign of a process that ends; it has the reason.
            let sign = tokio::time::timeout(Duration::from_millis(500), fabric.watch.until_gone());
            if let Ok(reason) = sign.await {
                return Err(anyhow!(reason));
            }
        }
        result
    };
    let passed = n.step(name, expected, guarded).await;
    if let Some(reason) = fabric.watch.gone() {
        n.stop(reason);
    }
    passed
}

pub(super) fn named<'a>(hosts: &'a Hosts, name: &str) -> anyhow::Result<&'a SimHost> {
    hosts.get(name).with_context(|| format!("there is no {name}"))
}

pub(super) fn outcome(answer: Result<GuestReport, String>) -> Outcome {
    match answer {
        Ok(report) => Outcome::Done(format!("the guest runs, boot {} of its disk", report.boots)),
        Err(refusal) => Outcome::Refused(refusal),
    }
}

pub(super) fn accepted<T>(answer: Result<T, String>) -> anyhow::Result<T> {
    answer.map_err(|refusal| anyhow!(refusal))
}

/// Work that starts processes and waits for them; other tasks go on meanwhile.
pub(super) fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}
