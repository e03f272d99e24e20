//! Host-key mode with P-256 VSM keys, and attestation signers with P-256 keys.

use std::process::{Command, Stdio};

use attestation::{Options, SignerSuite};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use hgs_protocol::{
    crypto::{EcPublicKey, PublicKey},
    health::{AcceptanceRules, CertificateKind, HealthCertificate, TrustedSigner},
    wire::{
        hgsa::{ErrorKind, Reply},
        vsm::{encode_eck1, encode_ecs1, encode_rsa1},
    },
};
use serde_json::json;

use crate::{
    fixture::Service,
    host_keys::{Keys, host_key_request, p256_key, register_host_key},
};

/// The reply to an honest request for `vsm`, whatever it is.
async fn ask(service: &Service, keys: &Keys, vsm: Vec<u8>) -> Reply {
    let host = encode_rsa1(keys.host.public());
    let signed = [host.as_slice(), &vsm].concat();
    let signature = keys.host.sign_pkcs1_sha256(&signed).unwrap();
    service.ask_host_key(&host_key_request(host, vsm, signature)).await
}

async fn signer(service: &Service) -> Vec<u8> {
    let signer = service.admin_get("attestation-signer").await;
    BASE64_STANDARD.decode(signer["certificate"].as_str().unwrap()).unwrap()
}

fn accepted(service: &Service, signer: &[u8], der: &[u8]) -> PublicKey {
    let trusted = [TrustedSigner::from_certificate(signer).unwrap()];
    let certificate = HealthCertificate::parse(der).unwrap();
    let host = certificate.accept(&trusted, service.clock.now(), &AcceptanceRules::default());
    host.unwrap().encryption_key().clone()
}

async fn check(service: &Service, algorithm: &str) {
    service.set_mode("HostKey").await;
    let keys = Keys::new();
    register_host_key(service, "host01", &keys.host.public().spki_der()).await;
    let signer = signer(service).await;
    let (_, p256) = p256_key();
    for (blob, key) in [
        (encode_eck1(&p256), PublicKey::P256(p256)),
        (encode_ecs1(&p256), PublicKey::P256(p256)),
        (encode_rsa1(keys.vsm.public()), keys.vsm.public().clone().into()),
    ] {
        let Reply::HealthCertificate { content } = ask(service, &keys, blob).await else {
            panic!("no certificates")
        };
        let kinds: Vec<CertificateKind> = content.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [CertificateKind::Encryption, CertificateKind::Signing]);
        assert_eq!(accepted(service, &signer, &content[0].1), key);
        let (encryption, size) = match key {
            PublicKey::Rsa(_) => ("Key Encipherment, Data Encipherment", "(2048 bit)"),
            PublicKey::P256(_) => ("Key Agreement", "NIST CURVE: P-256"),
        };
        for ((_, der), usage) in content.iter().zip([encryption, "Digital Signature"]) {
            openssl_verifies(&signer, der, algorithm, usage, size);
        }
    }
    let seen = service.admin_get("vsm-keys").await;
    let seen: Vec<&str> = seen
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["spki_sha256"].as_str().unwrap())
        .collect();
    assert!(seen.contains(&hex::encode(p256.spki_sha256()).as_str()), "{seen:?}");
    denied(service, &keys, &p256).await;
}

async fn denied(service: &Service, keys: &Keys, key: &EcPublicKey) {
    let denial = json!({ "sha256": hex::encode(key.spki_sha256()) });
    assert_eq!(service.admin_post("denied-keys", &denial).await.0, 201);
    let unauthorized = Reply::Error {
        kind: ErrorKind::Unauthorized,
        retryable: false,
    };
    assert_eq!(ask(service, keys, encode_eck1(key)).await, unauthorized);
}

fn openssl_verifies(signer: &[u8], der: &[u8], algorithm: &str, usage: &str, size: &str) {
    let version = Command::new("openssl").arg("version").stdout(Stdio::null()).status();
    if !version.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED the check of a health certificate by openssl: there is no openssl command");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new("openssl");
        let out = command.args(arguments).current_dir(dir.path()).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "{text}{}", String::from_utf8_lossy(&out.stderr));
        text
    };
    for (name, bytes) in [("signer", signer), ("health", der)] {
        std::fs::write(dir.path().join(name), bytes).unwrap();
        run(&["x509", "-inform", "DER", "-in", name, "-out", &format!("{name}.pem")]);
    }
    let verified = run(&["verify", "-x509_strict", "-CAfile", "signer.pem", "health.pem"]);
    assert!(verified.contains("health.pem: OK"), "{verified}");
    let text = run(&["x509", "-in", "health.pem", "-noout", "-text"]);
    for expected in [algorithm, usage, size] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_p256_vsm_key_is_certified_and_openssl_agrees() {
    check(&Service::start().await, "sha256WithRSAEncryption").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_p256_signer_signs_when_it_was_asked_for_and_so_does_its_successor() {
    let options = Options {
        signer_suite: SignerSuite::P256,
        ..Options::default()
    };
    let service = Service::start_with(options, |_, args| args).await;
    check(&service, "ecdsa-with-SHA256").await;
    let before = signer(&service).await;
    let (_, made) = service.admin_post("attestation-signers", &json!({})).await;
    let path = format!("attestation-signers/{}/activate", made["sha256"].as_str().unwrap());
    let done = json!({ "registered_with_key_protection": true, "at_once": true });
    assert_eq!(service.admin_post(&path, &done).await.0, 200);
    let after = signer(&service).await;
    assert_ne!(before, after);
    let keys = Keys::new();
    register_host_key(&service, "host02", &keys.host.public().spki_der()).await;
    let Reply::HealthCertificate { content } = ask(&service, &keys, encode_eck1(&p256_key().1)).await else {
        panic!("no certificates")
    };
    accepted(&service, &after, &content[0].1);
    openssl_verifies(&after, &content[0].1, "ecdsa-with-SHA256", "Key Agreement", "P-256");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vsm_key_of_another_curve_or_with_a_byte_more_is_refused() {
    let service = Service::start().await;
    service.set_mode("HostKey").await;
    let keys = Keys::new();
    register_host_key(&service, "host01", &keys.host.public().spki_der()).await;
    let good = encode_eck1(&p256_key().1);
    let p384 = [b"ECK3".as_slice(), &48u32.to_le_bytes(), &[0x11; 96]].concat();
    let p384_named_p256 = [b"ECK1".as_slice(), &48u32.to_le_bytes(), &[0x11; 96]].concat();
    let beside_the_curve = [&good[..71], &[good[71] ^ 1]].concat();
    let private = [b"ECK2".as_slice(), &good[4..], &[7; 32]].concat();
    let spki = p256_key().1.spki_der();
    for (name, blob) in [
        ("P-384", p384),
        ("P-384 under the magic of P-256", p384_named_p256),
        ("beside the curve", beside_the_curve),
        ("a private key", private),
        ("a byte more", [good.as_slice(), &[0]].concat()),
        ("a byte less", good[..71].to_vec()),
        ("another form", spki),
        ("nothing", Vec::new()),
    ] {
        let refused = Reply::Error {
            kind: ErrorKind::VirtualSecureMode,
            retryable: false,
        };
        assert_eq!(ask(&service, &keys, blob).await, refused, "{name}");
    }
}
