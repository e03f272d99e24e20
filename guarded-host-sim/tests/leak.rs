//! No log, database or data directory of any process shows a secret that a client learned.
//!
//! The secrets searched for are those that a client comes by in the ordinary way: the owner knows
//! the guest's secret and opens the transport key of each generation with its own guardian keys; a
//! test client with a health certificate receives keys from the KPS as a host does. No production
//! path exports anything for this test.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use guarded_host_sim::vm::{operation::PoweredOn, volume::Generation};
use hgs_protocol::{
    crypto::RsaPrivateKey,
    env::{Clock, OsRandom},
    health::{AttestationMode, AttestationSigner, CertificateKind, HealthCertificateRequest},
    protector::open_release,
    wire::kps::RollTransportKeyRequest,
};
use serde_json::{Value, json};
use support::{Stage, needles::Needles};

#[tokio::test(flavor = "multi_thread")]
async fn no_file_of_any_process_shows_a_secret() {
    // Offline starts are allowed, so that the stores keep transport keys.
    let variables = [("HGS_LOG", "trace"), ("HGS_MAX_OFFLINE_UNWRAPS", "2")];
    let (stage, hosts) = Stage::set_with(&["host01", "host02"], &variables).await;
    stage.wish_offline_starts(2);
    let mut secrets = vec![("the guest's secret".to_owned(), stage.secret.clone().into_bytes())];
    let learn = |secrets: &mut Vec<(String, Vec<u8>)>| {
        let files = current_files(&stage);
        let key = stage.owner.open_protector(&files.protector, &mut OsRandom).unwrap();
        let name = format!("transport key {}", secrets.len());
        secrets.push((name, key.expose_transport_key().expose().to_vec()));
    };
    learn(&mut secrets);
    stage.power_on(&hosts[0]).await.unwrap();
    learn(&mut secrets);
    stage.migrate(&hosts[0], &hosts[1]).await.unwrap();
    learn(&mut secrets);
    stage.prove(&hosts[1]).await;
    stage.ask::<Value>(&hosts[1], "power-off", &json!({})).await.unwrap();
    let started: PoweredOn = stage.ask(&hosts[1], "power-on", &json!({})).await.unwrap();
    assert_eq!(started.offline_starts_left, 2);
    learn(&mut secrets);
    for (number, key) in as_a_host(&stage).await.into_iter().enumerate() {
        secrets.push((format!("key {number} released to the test client"), key));
    }
    // Refusals write more about what they refuse than releases do.
    let mut broken = current_files(&stage).protector;
    let place = broken.len() / 2;
    broken[place] ^= 1;
    let request = RollTransportKeyRequest::new(broken, hosts[0].artefact("health.cer").await.unwrap());
    assert!(stage.hgs.roll(&request).await.unwrap().is_err());

    let files = files_below(&stage.folder.0);
    let name = |file: &Path| file.strip_prefix(&stage.folder.0).unwrap().display().to_string();
    let names: Vec<String> = files.iter().map(|f| name(f)).collect();
    for expected in [
        "hgs/kps/log",
        "hgs/kps/data/kps.db",
        "hgs/attestation/log",
        "hgs/attestation/data/attestation.db",
        "hosts/host01/agent.log",
        "hosts/host02/store/store.log",
    ] {
        assert!(names.iter().any(|n| n == expected), "{expected} is not among {names:?}");
    }
    let log = fs::read_to_string(stage.folder.0.join("hgs/kps/log")).unwrap();
    assert!(
        log.contains("TRACE") || log.contains("DEBUG"),
        "the services log too little for this test"
    );
    // The search itself works: it finds each secret, in each form, where it was put.
    let needles = Needles::of(&secrets);
    for (what, secret) in &secrets {
        for form in [
            secret.clone(),
            hex::encode(secret).into_bytes(),
            STANDARD.encode(secret).into_bytes(),
        ] {
            let planted = [b"xy".as_slice(), &form, b"z"].concat();
            assert!(needles.found_in(&planted).is_some(), "the search misses {what}");
        }
    }
    for file in &files {
        let found = needles.found_in(&fs::read(file).unwrap_or_default());
        assert_eq!(found, None, "{} shows it", name(file));
    }
}

fn current_files(stage: &Stage) -> Generation {
    let folder = stage.volume.vm(&stage.vm.name).unwrap();
    folder.read_generation(&folder.current().unwrap().generation).unwrap()
}

/// Receives both keys of a roll as a host with a VSM key of its own does. The administrator of the
/// KPS trusts one more attestation signer for it.
async fn as_a_host(stage: &Stage) -> [Vec<u8>; 2] {
    let (now, rng) = (Clock::system().now(), &mut OsRandom);
    let signer = AttestationSigner::generate(now, rng).unwrap();
    let trusted = json!({ "certificate": STANDARD.encode(signer.certificate_der()) });
    stage.hgs.kps.admin_post("attestation-signers", &trusted).await.unwrap();
    let vsm_key = RsaPrivateKey::generate_2048().unwrap();
    let request = HealthCertificateRequest {
        key: vsm_key.public().clone().into(),
        kind: CertificateKind::Encryption,
        mode: AttestationMode::Tpm,
        policies: Vec::new(),
        issued_at: now,
        lifetime: Duration::from_secs(3600),
    };
    let certificate = signer.issue(&request, rng).unwrap();
    let request = RollTransportKeyRequest::new(current_files(stage).protector, certificate);
    let answer = stage.hgs.roll(&request).await.unwrap().unwrap();
    let release = open_release(&answer, &vsm_key).unwrap();
    [release.ingress, release.egress].map(|key| key.expose_transport_key().expose().to_vec())
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => found.extend(files_below(&entry.path())),
            kind if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}
