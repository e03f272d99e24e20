//! The story, part by part. What is expected of each step stands beside it.

use std::{collections::BTreeMap, future::Future, path::Path};

use anyhow::{Context, anyhow, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use hgs_protocol::{
    crypto::RsaPrivateKey,
    env::{Clock, OsRandom, Random},
    health::{AttestationMode, AttestationSigner, CertificateKind, HealthCertificateRequest},
    protector::Guardian,
    wire::kps::RollTransportKeyRequest,
};
use serde_json::{Value, json};

use super::narrator::{
    Expected::{Done, Refused},
    Narrator, Outcome,
};
use crate::{
    fabric::{Fabric, hgs::Hgs, host::SimHost},
    machine::dials::Dials,
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
pub(super) async fn tell(narrator: &mut Narrator, dir: &Path, https: bool) {
    if let Err(error) = try_tell(narrator, dir, https).await {
        narrator.stop(format!("{error:#}"));
    }
}

/// An error here means that the story cannot go on; the failed step is recorded already.
async fn try_tell(n: &mut Narrator, dir: &Path, https: bool) -> anyhow::Result<()> {
    let fabric = Fabric::new(dir, https)?;
    n.part("1. The fabric is set up");
    let (hgs, guardian) = set_up(n, &fabric).await?;
    n.part("2. Hosts are manufactured, booted and registered");
    let thief_hgs = elsewhere(&fabric).await?;
    let volume = fabric.volume("volume")?;
    let stolen = fabric.volume("stolen-volume")?;
    let mut hosts = hosts(n, &fabric, &hgs, &thief_hgs, &volume.1, &stolen.1).await?;
    n.part("3. A host attests");
    attest(n, &fabric, &hosts).await;
    n.part("4. The owner shields a VM");
    let (owner, vm) = shield(n, &fabric, &guardian, &volume.0).await?;
    n.part("5. The VM is powered on");
    let scene = Scene {
        fabric: &fabric,
        hgs: &hgs,
        owner: &owner,
        vm: &vm,
        volume: &volume.0,
    };
    let booted = power_on(n, &scene, &hosts).await?;
    n.part("6. The VM is live-migrated");
    migrate(n, &scene, &hosts, &booted).await?;
    n.part("7. What is refused");
    refusals(n, &scene, &mut hosts, &stolen.0).await?;
    n.part("8. Time passes");
    expiry(n, &scene, &hosts).await;
    Ok(())
}

/// What most of the story needs.
struct Scene<'a> {
    fabric: &'a Fabric,
    hgs: &'a Hgs,
    owner: &'a Owner,
    vm: &'a OwnedVm,
    volume: &'a Volume,
}

type Hosts = BTreeMap<String, SimHost>;

async fn set_up(n: &mut Narrator, fabric: &Fabric) -> anyhow::Result<(Hgs, Guardian)> {
    let mut started = None;
    step(
        n,
        fabric,
        "HGS is initialised: attestation and key protection services",
        Done,
        async {
            let hgs = blocking(|| fabric.start_hgs("hgs"))?;
            let told = format!(
                "attestation at {}, key protection at {}",
                hgs.attestation.url, hgs.kps.url
            );
            started = Some(hgs);
            Ok(Outcome::Done(told))
        },
    )
    .await;
    let hgs = started.context("there is no HGS")?;
    step(
        n,
        fabric,
        "The key protection service trusts the attestation signer",
        Done,
        async {
            let count = hgs.trust_signer().await?;
            Ok(Outcome::Done(format!(
                "{count} signer certificate from signingCertificates registered"
            )))
        },
    )
    .await;
    let mut imported = None;
    step(
        n,
        fabric,
        "The VM owner downloads the guardian metadata and compares thumbprints",
        Done,
        async {
            let guardian = Owner::import_guardian(&hgs.metadata().await?, "HGS")?;
            let own: Vec<Value> = hgs.kps.admin_get("certificates").await?;
            let known = |thumbprint: &str| {
                own.iter()
                    .any(|c| c.get("thumbprint").and_then(Value::as_str) == Some(thumbprint))
            };
            let (signing, encryption) = (&guardian.signing_thumbprint, &guardian.encryption_thumbprint);
            ensure!(
                known(signing) && known(encryption),
                "the thumbprints {signing} and {encryption} are not those that the HGS administrator sees"
            );
            let told = format!("signing {signing}, encryption {encryption}");
            imported = Some(guardian.guardian);
            Ok(Outcome::Done(told))
        },
    )
    .await;
    Ok((hgs, imported.context("there is no guardian to protect a VM with")?))
}

/// The HGS of somebody else, where a thief's host is in good standing.
async fn elsewhere(fabric: &Fabric) -> anyhow::Result<Hgs> {
    let hgs = blocking(|| fabric.start_hgs("hgs-elsewhere"))?;
    hgs.trust_signer().await?;
    Ok(hgs)
}

async fn hosts(
    n: &mut Narrator,
    fabric: &Fabric,
    hgs: &Hgs,
    thief_hgs: &Hgs,
    volume: &Path,
    stolen: &Path,
) -> anyhow::Result<Hosts> {
    let mut started = None;
    let name = "host01, host02 and host03 are manufactured (TPM, EK certificate) and booted (boot log measured)";
    step(n, fabric, name, Done, async {
        let hosts = blocking(|| {
            fabric.start_hosts(&[
                ("host01", hgs, volume),
                ("host02", hgs, volume),
                ("host03", hgs, volume),
                (THIEF, thief_hgs, stolen),
            ])
        })?;
        let told = hosts
            .values()
            .filter(|h| h.name != THIEF)
            .map(|h| {
                Ok(format!(
                    "{} measured {} bytes of boot log",
                    h.name,
                    h.registration()?[1].len()
                ))
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        started = Some(hosts);
        Ok(Outcome::Done(told.join(", ")))
    })
    .await;
    let hosts = started.context("there are no hosts")?;
    step(
        n,
        fabric,
        "The hosts are registered: EK, TPM baseline, CI policy",
        Done,
        async {
            for name in ["host01", "host02", "host03"] {
                register(hgs, named(&hosts, name)?).await?;
            }
            register(thief_hgs, named(&hosts, THIEF)?).await?;
            Ok(Outcome::Done("host01, host02, host03".to_owned()))
        },
    )
    .await;
    Ok(hosts)
}

async fn register(hgs: &Hgs, host: &SimHost) -> anyhow::Result<()> {
    let [ek, boot_log, ci_policy] = host.registration()?;
    hgs.register_host(&host.name, &ek, &boot_log, &ci_policy)
        .await
        .with_context(|| format!("registering {}", host.name))
}

async fn attest(n: &mut Narrator, fabric: &Fabric, hosts: &Hosts) {
    step(
        n,
        fabric,
        "host01 attests over the RTPM exchange and receives its health certificate",
        Done,
        async { attested(named(hosts, "host01")?).await },
    )
    .await;
}

/// One attestation as the host's administrator sees it.
async fn attested(host: &SimHost) -> anyhow::Result<Outcome> {
    match host.post::<Value>("attest", &json!({})).await? {
        Ok(told) => {
            let text = |key: &str| told.get(key).map(plain).unwrap_or_default();
            Ok(Outcome::Done(format!(
                "serial {}, valid from {} to {}",
                text("serial"),
                text("not_before"),
                text("not_after")
            )))
        }
        Err(refusal) => Ok(Outcome::Refused(refusal)),
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
            let owner = Owner::new(
                "Contoso payroll",
                &fabric.folder().join("owner"),
                Clock::system().now(),
                rng,
            )?;
            let secret = hex::encode(rng.bytes::<24>());
            let name = VmName::parse("payroll")?;
            let vm = owner.shield(&name, secret.as_bytes(), guardian, volume, "host01", rng)?;
            anyhow::Ok((owner, vm))
        })?;
        let told = format!(
            "VM {}: vTPM sealed under the transport key, disk under a key in the vTPM",
            vm.id
        );
        made = Some((owner, vm));
        Ok(Outcome::Done(told))
    })
    .await;
    made.context("there is no VM")
}

async fn power_on(n: &mut Narrator, scene: &Scene<'_>, hosts: &Hosts) -> anyhow::Result<GuestReport> {
    let before = scene.files()?;
    let host = named(hosts, "host01")?;
    let mut booted = None;
    step(
        n,
        scene.fabric,
        "host01 powers the VM on: RollTransportKey, keys opened in the VBS store",
        Done,
        async {
            match scene.vm_call::<GuestReport>(host, "power-on", &json!({})).await? {
                Ok(report) => {
                    let told = format!("boot {} of the disk, boot id {}", report.boots, report.boot_id);
                    booted = Some(report);
                    Ok(Outcome::Done(told))
                }
                Err(refusal) => Ok(Outcome::Refused(refusal)),
            }
        },
    )
    .await;
    step(
        n,
        scene.fabric,
        "The guest has unlocked its disk and read its secret",
        Done,
        async {
            scene.prove(host).await?;
            Ok(Outcome::Done("it answers the owner's challenge".to_owned()))
        },
    )
    .await;
    let name = "The protector on disk is the egress protector, and the old transport key opens nothing";
    step(n, scene.fabric, name, Done, async {
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
        Ok(Outcome::Done(
            "the vTPM's state is sealed under the egress key".to_owned(),
        ))
    })
    .await;
    booted.context("the VM does not run")
}

async fn migrate(n: &mut Narrator, scene: &Scene<'_>, hosts: &Hosts, booted: &GuestReport) -> anyhow::Result<()> {
    let (source, target) = (named(hosts, "host01")?, named(hosts, "host02")?);
    let mut moved = None;
    let name = "The VM is live-migrated to host02, which attests and obtains the keys itself";
    step(n, scene.fabric, name, Done, async {
        let ask = json!({ "target": target.name, "address": target.agent_url });
        match scene.vm_call::<Migrated>(source, "migrate", &ask).await? {
            Ok(migrated) => {
                ensure!(
                    migrated.owner_host == "host02",
                    "the VM belongs to {}",
                    migrated.owner_host
                );
                let told = format!("the VM belongs to {}", migrated.owner_host);
                moved = Some(migrated);
                Ok(Outcome::Done(told))
            }
            Err(refusal) => Ok(Outcome::Refused(refusal)),
        }
    })
    .await;
    let moved = moved.context("the VM was not migrated")?;
    step(
        n,
        scene.fabric,
        "The guest's memory and secret have arrived",
        Done,
        async {
            let guest = scene.prove(target).await?;
            ensure!(guest.boot_id == booted.boot_id, "the guest on host02 is another boot");
            ensure!(guest.uptime_ms >= booted.uptime_ms, "the guest's uptime went back");
            Ok(Outcome::Done(format!(
                "the same boot, up for {} ms, answers the owner's challenge",
                guest.uptime_ms
            )))
        },
    )
    .await;
    step(n, scene.fabric, "host01 has forgotten its keys", Done, async {
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
    let expected = Refused(&["belongs to host02"]);
    step(
        n,
        scene.fabric,
        "host01 tries to start the VM it gave away",
        expected,
        async { outcome(scene.vm_call::<GuestReport>(source, "power-on", &json!({})).await?) },
    )
    .await;
    Ok(())
}

async fn refusals(n: &mut Narrator, scene: &Scene<'_>, hosts: &mut Hosts, stolen: &Volume) -> anyhow::Result<()> {
    let fabric = scene.fabric;
    step(n, fabric, "host03 attests while it is healthy", Done, async {
        attested(named(hosts, "host03")?).await
    })
    .await;
    let expected = Refused(&["PolicyEvaluationErrorReply", "SecureBootEnabled"]);
    step(
        n,
        fabric,
        "host03 boots with Secure Boot off and attests",
        expected,
        async {
            let host = hosts.get_mut("host03").context("there is no host03")?;
            let dials = Dials {
                secure_boot: false,
                ..Dials::default()
            };
            blocking(|| host.reboot(dials))?;
            attested(host).await
        },
    )
    .await;

    // The thief's host is a good host of another fabric; here nobody knows it.
    let thief = hosts.get(THIEF).context("there is no thief")?;
    let expected = Refused(&["UnauthorizedErrorReply"]);
    step(n, fabric, "An unregistered host attests", expected, async {
        let attestation = format!("{}/Attestation", scene.hgs.attestation.url);
        match thief
            .post::<Value>("attest", &json!({ "attestation_url": attestation }))
            .await?
        {
            Ok(_) => Ok(Outcome::Done("it received a health certificate".to_owned())),
            Err(refusal) => Ok(Outcome::Refused(refusal)),
        }
    })
    .await;

    let files = scene.files()?;
    let expected = Refused(&["HealthCertificateException"]);
    step(
        n,
        fabric,
        "A health certificate of an untrusted signer is presented",
        expected,
        async { roll(scene.hgs, &files.protector, &untrusted_certificate()?).await },
    )
    .await;

    let expected = Refused(&["InvalidProtectorException"]);
    step(
        n,
        fabric,
        "host02 presents a protector with one bit changed",
        expected,
        async {
            let host = named(hosts, "host02")?;
            let certificate = accepted(host.get::<Value>("health-certificate").await?)?;
            let certificate = certificate
                .get("certificate")
                .and_then(Value::as_str)
                .context("no certificate")?;
            roll(
                scene.hgs,
                &one_bit_changed(&files.protector)?,
                &STANDARD.decode(certificate)?,
            )
            .await
        },
    )
    .await;

    let expected = Refused(&["KeyProtectionAccessDeniedException"]);
    step(
        n,
        fabric,
        "The VM is copied to a foreign fabric and started there",
        expected,
        async {
            blocking(|| copy_vm(scene, stolen))?;
            outcome(scene.vm_call::<GuestReport>(thief, "power-on", &json!({})).await?)
        },
    )
    .await;
    Ok(())
}

async fn expiry(n: &mut Narrator, scene: &Scene<'_>, hosts: &Hosts) {
    const NINE_HOURS: u64 = 9 * 3600;
    let expected = Refused(&["HealthCertificateException"]);
    let name = "Nine hours pass at the KPS: host02's health certificate has expired";
    step(n, scene.fabric, name, expected, async {
        let host = named(hosts, "host02")?;
        accepted(scene.vm_call::<Value>(host, "power-off", &json!({})).await?)?;
        scene.hgs.kps.advance_clock(NINE_HOURS).await?;
        match scene.vm_call::<GuestReport>(host, "power-on", &json!({})).await? {
            Ok(_) => Ok(Outcome::Done("the VM was started".to_owned())),
            Err(refusal) => Ok(Outcome::Refused(format!(
                "{refusal} ({})",
                scene.hgs.last_kps_reason().await?
            ))),
        }
    })
    .await;
    step(
        n,
        scene.fabric,
        "The same at the attestation service: host02 attests again, the VM starts",
        Done,
        async {
            scene.hgs.attestation.advance_clock(NINE_HOURS).await?;
            let host = named(hosts, "host02")?;
            match scene.vm_call::<GuestReport>(host, "power-on", &json!({})).await? {
                Ok(report) => {
                    scene.prove(host).await?;
                    Ok(Outcome::Done(format!(
                        "boot {} of the disk; the guest has its secret",
                        report.boots
                    )))
                }
                Err(refusal) => Ok(Outcome::Refused(refusal)),
            }
        },
    )
    .await;
}

impl Scene<'_> {
    /// The generation that counts on the volume.
    fn files(&self) -> anyhow::Result<Generation> {
        let folder = self.volume.vm(&self.vm.name)?;
        Ok(folder.read_generation(&folder.current()?.generation)?)
    }

    /// A request about the VM to a host's agent.
    async fn vm_call<T: serde::de::DeserializeOwned>(
        &self,
        host: &SimHost,
        verb: &str,
        body: &Value,
    ) -> anyhow::Result<Result<T, String>> {
        host.post(&format!("vms/{}/{verb}", self.vm.name), body).await
    }

    /// The owner challenges the guest on `host`: only a guest that read the secret can answer.
    async fn prove(&self, host: &SimHost) -> anyhow::Result<GuestReport> {
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

/// Sends a request of the demonstration's own to the KPS; the reason of a refusal is in its audit.
async fn roll(hgs: &Hgs, protector: &[u8], certificate: &[u8]) -> anyhow::Result<Outcome> {
    let request = RollTransportKeyRequest::new(protector.to_vec(), certificate.to_vec());
    Ok(match hgs.roll(&request).await? {
        Ok(_) => Outcome::Done("the KPS released the keys".to_owned()),
        Err(refusal) => {
            let reason = hgs.last_kps_reason().await?;
            Outcome::Refused(format!("{}: {} ({reason})", refusal.code, refusal.message))
        }
    })
}

/// A health certificate that would be good, had the KPS any reason to trust who signed it.
fn untrusted_certificate() -> anyhow::Result<Vec<u8>> {
    let (now, rng) = (Clock::system().now(), &mut OsRandom);
    let signer = AttestationSigner::generate(now, rng)?;
    let request = HealthCertificateRequest {
        key: RsaPrivateKey::generate_2048()?.public().clone(),
        kind: CertificateKind::Encryption,
        mode: AttestationMode::Tpm,
        policies: Vec::new(),
        issued_at: now,
        lifetime: std::time::Duration::from_secs(8 * 3600),
    };
    Ok(signer.issue(&request, rng)?)
}

/// Changes one bit of the guardian's signature, in place and still valid base64.
fn one_bit_changed(protector: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut text = protector.to_vec();
    let place = b"<GuardianSignature";
    let start = text
        .windows(place.len())
        .position(|w| w == place)
        .context("no GuardianSignature")?;
    let tail = text.get(start..).unwrap_or_default();
    let value = b"<SignatureValue>";
    let offset = tail
        .windows(value.len())
        .position(|w| w == value)
        .context("no SignatureValue")?;
    let digit = text
        .get_mut(start + offset + value.len())
        .context("an empty SignatureValue")?;
    // Letters of the base64 alphabet pair up so that one bit lies between them.
    *digit = match *digit {
        b'A'..=b'Z' | b'a'..=b'z' if digit.to_ascii_uppercase() % 2 == 1 => *digit + 1,
        b'A'..=b'Z' | b'a'..=b'z' => *digit - 1,
        b'0'..=b'9' => *digit ^ 1,
        b'+' => b'/',
        _ => b'+',
    };
    Ok(text)
}

/// Takes the files of the VM to another volume, as a thief with access to the storage does.
fn copy_vm(scene: &Scene<'_>, to: &Volume) -> anyhow::Result<()> {
    let folder = scene.volume.vm(&scene.vm.name)?;
    let disk = std::fs::read(folder.disk_path())?;
    to.create_vm(
        &scene.vm.name,
        scene.vm.id,
        THIEF,
        &scene.files()?,
        &disk,
        &mut OsRandom,
    )?;
    Ok(())
}

/// Runs a step; a process of the fabric that ends meanwhile ends the step and the story.
async fn step<F>(n: &mut Narrator, fabric: &Fabric, name: &str, expected: super::narrator::Expected, run: F) -> bool
where
    F: Future<Output = anyhow::Result<Outcome>>,
{
    if let Some(reason) = fabric.watch.gone() {
        n.stop(reason);
    }
    let guarded = async {
        tokio::select! {
            result = run => result,
            reason = fabric.watch.until_gone() => Err(anyhow!(reason)),
        }
    };
    let passed = n.step(name, expected, guarded).await;
    if let Some(reason) = fabric.watch.gone() {
        n.stop(reason);
    }
    passed
}

fn named<'a>(hosts: &'a Hosts, name: &str) -> anyhow::Result<&'a SimHost> {
    hosts.get(name).with_context(|| format!("there is no {name}"))
}

fn outcome(answer: Result<GuestReport, String>) -> anyhow::Result<Outcome> {
    Ok(match answer {
        Ok(report) => Outcome::Done(format!("the guest runs, boot {}", report.boots)),
        Err(refusal) => Outcome::Refused(refusal),
    })
}

fn accepted<T>(answer: Result<T, String>) -> anyhow::Result<T> {
    answer.map_err(|refusal| anyhow!(refusal))
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Work that starts processes and waits for them; other tasks go on meanwhile.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

/// A host in good standing at the HGS of somebody else.
const THIEF: &str = "elsewhere01";
