//! What a guarded fabric refuses, each with the protocol's own error and the reason a person needs.
//!
//! KPS messages stay generic on the wire; the reason then comes from the service's audit.

use anyhow::Context;
use hgs_protocol::{env::OsRandom, wire::kps::RollTransportKeyRequest};
use serde_json::{Value, json};

use super::{
    narrator::{
        Expected::{Done, Refused},
        Narrator, Outcome,
    },
    story::{Hosts, STRANGER, Scene, accepted, attested, blocking, named, outcome, register_model, step},
};
use crate::{
    fabric::{attestation::untrusted_certificate, hgs::Hgs, host::SimHost},
    machine::dials::Dials,
    vm::{guest::GuestReport, volume::Volume},
};

/// Hosts, certificates, protectors and fabrics that get nothing.
pub(super) async fn tell(n: &mut Narrator, scene: &Scene<'_>, hosts: &mut Hosts) -> anyhow::Result<()> {
    let fabric = scene.fabric;
    step(n, fabric, "host03 attests while it is healthy", Done, async {
        attested(named(hosts, "host03")?).await
    })
    .await;
    let name = "host03 boots with Secure Boot off and attests";
    let expected = Refused(&["PolicyEvaluationErrorReply", "SecureBootEnabled"]);
    step(n, fabric, name, expected, async {
        let host = hosts.get_mut("host03").context("there is no host03")?;
        let dials = Dials {
            secure_boot: false,
            ..Dials::default()
        };
        blocking(|| host.reboot(dials))?;
        attested(host).await
    })
    .await;
    let expected = Refused(&["UnauthorizedErrorReply"]);
    step(n, fabric, "An unregistered host attests", expected, async {
        attested(named(hosts, STRANGER)?).await
    })
    .await;

    let files = scene.files()?;
    let name = "A health certificate of an untrusted signer is presented";
    step(n, fabric, name, Refused(&["HealthCertificateException"]), async {
        roll(scene.hgs, &files.protector, &untrusted_certificate()?).await
    })
    .await;
    let name = "host02 presents a protector with one bit changed";
    step(n, fabric, name, Refused(&["InvalidProtectorException"]), async {
        let certificate = named(hosts, "host02")?.artefact("health.cer").await?;
        roll(scene.hgs, &one_bit_changed(&files.protector)?, &certificate).await
    })
    .await;
    let name = "The VM is copied to a foreign fabric and started there: no wrapping for that KPS";
    step(
        n,
        fabric,
        name,
        Refused(&["KeyProtectionAccessDeniedException"]),
        async {
            let stranger = hosts.remove(STRANGER).context("there is no other host")?;
            let (hgs, thief) = elsewhere(scene, stranger).await?;
            let answer = scene.vm_call::<GuestReport>(&thief, "power-on", &json!({})).await?;
            with_reason(&hgs, outcome(answer)).await
        },
    )
    .await;
    Ok(())
}

/// The lab's clock moves on: a certificate expires, and the host recovers by attesting again.
pub(super) async fn expiry(n: &mut Narrator, scene: &Scene<'_>, hosts: &Hosts) {
    const NINE_HOURS: u64 = 9 * 3600;
    let fabric = scene.fabric;
    let name = "Nine hours pass at the KPS: host02's health certificate has expired";
    step(n, fabric, name, Refused(&["HealthCertificateException"]), async {
        let host = named(hosts, "host02")?;
        accepted(scene.vm_call::<Value>(host, "power-off", &json!({})).await?)?;
        scene.hgs.kps.advance_clock(NINE_HOURS).await?;
        let answer = scene.vm_call::<GuestReport>(host, "power-on", &json!({})).await?;
        with_reason(scene.hgs, outcome(answer)).await
    })
    .await;
    let name = "Nine hours pass at the attestation service and the host too: host02 attests again and starts the VM";
    step(n, fabric, name, Done, async {
        scene.hgs.attestation.advance_clock(NINE_HOURS).await?;
        let host = named(hosts, "host02")?;
        host.advance_clock(NINE_HOURS).await?;
        let answer = scene.vm_call::<GuestReport>(host, "power-on", &json!({})).await?;
        if answer.is_ok() {
            scene.prove(host).await?;
        }
        Ok(outcome(answer))
    })
    .await;
}

/// A fabric of somebody else: another HGS, where the thief's host is in good standing, and a copy
/// of the VM's files that names this host as the owner.
async fn elsewhere(scene: &Scene<'_>, mut stranger: SimHost) -> anyhow::Result<(Hgs, SimHost)> {
    let fabric = scene.fabric;
    let (volume, path) = fabric.volume("stolen-volume")?;
    fabric.watch.forget(stranger.process_id());
    let (hgs, thief) = blocking(|| {
        copy_vm(scene, &volume)?;
        stranger.kill()?;
        let hgs = fabric.start_hgs("hgs-elsewhere")?;
        let thief = fabric.restart_host(STRANGER, &hgs, &path, None)?;
        anyhow::Ok((hgs, thief))
    })?;
    // They end with this step.
    for process in [hgs.attestation.process_id(), hgs.kps.process_id(), thief.process_id()] {
        fabric.watch.forget(process);
    }
    hgs.trust_signer().await?;
    hgs.trust_tpm_makers(&fabric.tpm_maker_certificates()?).await?;
    hgs.register_host(STRANGER, &thief.artefact("ek.cer").await?).await?;
    register_model(&hgs, &thief).await?;
    Ok((hgs, thief))
}

/// Takes the files of the VM to another volume, as a thief with access to the storage does.
fn copy_vm(scene: &Scene<'_>, to: &Volume) -> anyhow::Result<()> {
    let folder = scene.volume.vm(&scene.vm.name)?;
    let disk = std::fs::read(folder.disk_path(&folder.current()?))?;
    to.create_vm(
        &scene.vm.name,
        scene.vm.id,
        STRANGER,
        &scene.files()?,
        &disk,
        &mut OsRandom,
    )?;
    Ok(())
}

/// Sends a request of the demonstration's own to the KPS.
async fn roll(hgs: &Hgs, protector: &[u8], certificate: &[u8]) -> anyhow::Result<Outcome> {
    let request = RollTransportKeyRequest::new(protector.to_vec(), certificate.to_vec());
    let outcome = match hgs.roll(&request).await? {
        Ok(_) => Outcome::Done("the KPS released the keys".to_owned()),
        Err(refusal) => Outcome::Refused(format!("{}: {}", refusal.code, refusal.message)),
    };
    with_reason(hgs, outcome).await
}

/// Adds the reason that the KPS recorded, unless the message tells it already.
async fn with_reason(hgs: &Hgs, outcome: Outcome) -> anyhow::Result<Outcome> {
    let Outcome::Refused(told) = outcome else {
        return Ok(outcome);
    };
    let reason = hgs.last_kps_reason().await?;
    if told.to_lowercase().contains(&reason.to_lowercase()) {
        return Ok(Outcome::Refused(told));
    }
    Ok(Outcome::Refused(format!("{told} [audit: {reason}]")))
}

/// Changes one bit of the guardian's signature; the document stays well-formed.
fn one_bit_changed(protector: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut text = protector.to_vec();
    let signature = after(&text, 0, b"<GuardianSignature").context("no GuardianSignature")?;
    let value = after(&text, signature, b"<SignatureValue>").context("no SignatureValue")?;
    let digit = text.get_mut(value).context("an empty SignatureValue")?;
    // Neighbours in the base64 alphabet whose values differ in the last bit.
    *digit = match *digit {
        b'+' => b'/',
        b'/' => b'+',
        digit @ b'0'..=b'9' => digit ^ 1,
        letter if letter.to_ascii_uppercase() % 2 == 1 => letter + 1,
        letter => letter - 1,
    };
    Ok(text)
}

/// The place behind the next `needle` at or after `from`.
fn after(text: &[u8], from: usize, needle: &[u8]) -> Option<usize> {
    let tail = text.get(from..)?;
    let at = tail.windows(needle.len()).position(|window| window == needle)?;
    Some(from + at + needle.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::{Engine, engine::general_purpose::STANDARD};

    #[test]
    fn exactly_one_bit_of_the_signature_changes() {
        for first in 0..=255_u8 {
            let value = STANDARD.encode([first, 7, 9]);
            let text = format!(
                "<SignatureValue>x</SignatureValue><GuardianSignature WrappingId=\"1\"><SignatureValue>{value}<"
            );
            let changed = String::from_utf8(one_bit_changed(text.as_bytes()).unwrap()).unwrap();
            let new = changed.rsplit('>').next().unwrap().trim_end_matches('<');
            let bytes = STANDARD.decode(new).unwrap();
            let bits: u32 = bytes.iter().zip([first, 7, 9]).map(|(a, b)| (a ^ b).count_ones()).sum();
            assert_eq!(bits, 1, "{value} became {new}");
        }
    }
}
