//! Operation modes, and host-key mode with keys of every form.

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use hgs_protocol::{
    crypto::{EcPublicKey, RsaPrivateKey},
    health::{AcceptanceRules, AttestationMode, CertificateKind, HealthCertificate, TrustedSigner},
    wire::{
        hgsa::{ErrorKind, ProvidedKind, Reply, Request},
        vsm::{encode_ecs1, encode_rsa1},
    },
};
use serde_json::json;

use crate::fixture::{Host, Service};

/// A host's two keys: the one that is registered, and the VSM key to be certified.
pub(crate) struct Keys {
    pub(crate) host: RsaPrivateKey,
    pub(crate) vsm: RsaPrivateKey,
}

impl Keys {
    pub(crate) fn new() -> Keys {
        Keys {
            host: RsaPrivateKey::generate_2048().unwrap(),
            vsm: RsaPrivateKey::generate_2048().unwrap(),
        }
    }

    pub(crate) fn signed(&self) -> Vec<u8> {
        [encode_rsa1(self.host.public()), encode_rsa1(self.vsm.public())].concat()
    }

    /// An honest request.
    pub(crate) fn request(&self) -> Request {
        let signature = self.host.sign_pkcs1_sha256(&self.signed()).unwrap();
        host_key_request(
            encode_rsa1(self.host.public()),
            encode_rsa1(self.vsm.public()),
            signature,
        )
    }
}

pub(crate) fn host_key_request(host_key: Vec<u8>, vsm_key: Vec<u8>, signature: Vec<u8>) -> Request {
    Request::Attestation {
        session: Host::new_session(),
        requested: vec![CertificateKind::Encryption, CertificateKind::Signing],
        provided: vec![
            (ProvidedKind::VsmIdentityKey, vsm_key),
            (ProvidedKind::HostKeyPublicKey, host_key),
            (ProvidedKind::HostKeySignature, signature),
        ],
    }
}

pub(crate) fn p256_key() -> (EcdsaKeyPair, EcPublicKey) {
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref()).unwrap();
    let point: [u8; 65] = pair.public_key().as_ref().try_into().unwrap();
    let (x, y) = (point[1..33].try_into().unwrap(), point[33..].try_into().unwrap());
    let public = EcPublicKey::from_coordinates(&x, &y).unwrap();
    (pair, public)
}

pub(crate) async fn register_host_key(service: &Service, name: &str, content: &[u8]) {
    let body = json!({ "name": name, "content": BASE64_STANDARD.encode(content) });
    let (status, answer) = service.admin_post("host-keys", &body).await;
    assert_eq!(status, 201, "{answer}");
}

const UNAUTHORIZED: Reply = Reply::Error {
    kind: ErrorKind::Unauthorized,
    retryable: false,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_registered_host_key_of_every_form_gets_certificates_that_are_accepted() {
    let service = Service::start().await;
    let keys = Keys::new();
    let body = json!({ "name": "host01", "content": BASE64_STANDARD.encode(keys.host.public().spki_der()) });
    let (_, answer) = service.admin_post("host-keys", &body).await;
    assert!(answer["warning"].as_str().unwrap().contains("no effect"), "{answer}");
    service.set_mode("HostKey").await;
    let (status, answer) = service.admin_post("host-keys", &body).await;
    assert_eq!((status, &answer["warning"]), (200, &json!(null)), "the same again");

    let signer = service.admin_get("attestation-signer").await;
    let signer = BASE64_STANDARD.decode(signer["certificate"].as_str().unwrap()).unwrap();
    let trusted = [TrustedSigner::from_certificate(&signer).unwrap()];
    let vsm = encode_rsa1(keys.vsm.public());
    let (blob, spki) = (encode_rsa1(keys.host.public()), keys.host.public().spki_der());
    let join = |host: &[u8]| [host, &vsm].concat();
    let (pair, p256) = p256_key();
    register_host_key(&service, "host02", &encode_ecs1(&p256)).await;
    let ecdsa = |host: &[u8]| pair.sign(&SystemRandom::new(), &join(host)).unwrap().as_ref().to_vec();
    let agreement = [b"ECK1", &encode_ecs1(&p256)[4..]].concat();
    for (host_key, signature) in [
        (blob.clone(), keys.host.sign_pkcs1_sha256(&join(&blob)).unwrap()),
        (blob.clone(), keys.host.sign_pss_sha256(&join(&blob)).unwrap()),
        (spki.clone(), keys.host.sign_pkcs1_sha256(&join(&spki)).unwrap()),
        (spki.clone(), keys.host.sign_pss_sha256(&join(&spki)).unwrap()),
        (encode_ecs1(&p256), ecdsa(&encode_ecs1(&p256))),
        (agreement.clone(), ecdsa(&agreement)),
        (p256.spki_der(), ecdsa(&p256.spki_der())),
    ] {
        let reply = service
            .ask_host_key(&host_key_request(host_key, vsm.clone(), signature))
            .await;
        let Reply::HealthCertificate { content } = reply else {
            panic!("{reply:?}")
        };
        assert_eq!(content.len(), 2);
        let certificate = HealthCertificate::parse(&content[0].1).unwrap();
        let accepted = certificate.accept(&trusted, service.clock.now(), &AcceptanceRules::default());
        let accepted = accepted.unwrap();
        assert_eq!(accepted.encryption_key(), &keys.vsm.public().clone().into());
        assert_eq!(accepted.statement().mode, AttestationMode::HostKey);
        assert!(accepted.statement().policies.is_empty());
    }
    let row = &service.admin_get("attestations").await[0]["body"];
    assert_eq!((&row["host"], &row["mode"]), (&json!("host02"), &json!("HostKey")));
    assert_eq!(row["host_key_sha256"], json!(hex::encode(p256.spki_sha256())));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_certificate_only_the_key_counts_and_a_key_has_one_name() {
    let service = Service::start().await;
    service.set_mode("HostKey").await;
    let mut params = rcgen::CertificateParams::new(vec!["host.example".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    params.not_before = rcgen::date_time_ymd(2000, 1, 1);
    let expired = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
    register_host_key(&service, "host01", expired.pem().as_bytes()).await;
    let again = |name: &str, content: &[u8]| json!({ "name": name, "content": BASE64_STANDARD.encode(content) });
    let (status, _) = service.admin_post("host-keys", &again("host01", expired.der())).await;
    assert_eq!(status, 200);
    let (status, _) = service.admin_post("host-keys", &again("host02", expired.der())).await;
    assert_eq!(status, 409, "one key, one host");
    let other = Keys::new().host.public().spki_der();
    assert_eq!(service.admin_post("host-keys", &again("host01", &other)).await.0, 409);
    assert_eq!(
        service.admin_post("host-keys", &again("host03", b"nonsense")).await.0,
        400
    );
    assert_eq!(service.admin_delete("host-keys/host01").await, 204);
    assert_eq!(service.admin_delete("host-keys/host01").await, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vsm_key_is_shown_when_first_seen_and_can_be_denied() {
    let service = Service::start().await;
    service.set_mode("HostKey").await;
    let keys = Keys::new();
    register_host_key(&service, "host01", &keys.host.public().spki_der()).await;
    for _ in 0..2 {
        let reply = service.ask_host_key(&keys.request()).await;
        assert!(matches!(reply, Reply::HealthCertificate { .. }), "{reply:?}");
    }
    let seen = service.admin_get("vsm-keys").await;
    assert_eq!(seen.as_array().unwrap().len(), 1, "{seen}");
    assert_eq!(
        (&seen[0]["host"], &seen[0]["mode"]),
        (&json!("host01"), &json!("HostKey"))
    );
    let sha256 = seen[0]["spki_sha256"].as_str().unwrap().to_owned();
    assert_eq!(sha256, hex::encode(keys.vsm.public().spki_sha256()));

    let denial = json!({ "sha256": sha256.to_uppercase(), "reason": "leaked" });
    assert_eq!(service.admin_post("denied-keys", &denial).await.0, 201);
    assert_eq!(service.admin_post("denied-keys", &denial).await.0, 200);
    assert_eq!(service.ask_host_key(&keys.request()).await, UNAUTHORIZED);
    let reason = service.admin_get("attestations").await[0]["body"]["reason"].clone();
    assert!(reason.as_str().unwrap().contains("denies"), "{reason}");
    assert_eq!(service.admin_delete(&format!("denied-keys/{sha256}")).await, 204);
    let reply = service.ask_host_key(&keys.request()).await;
    assert!(matches!(reply, Reply::HealthCertificate { .. }), "{reply:?}");
    assert_eq!(
        service.admin_post("denied-keys", &json!({ "sha256": "00" })).await.0,
        400
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_replica_follows_a_change_of_mode_within_seconds() {
    let service = Service::start().await;
    let replica = service.replica().await;
    let mode = async |url: &str| {
        let request = service.client.get(format!("{url}/Attestation/getinfo"));
        let body = request.send().await.unwrap().bytes().await.unwrap();
        let Reply::ServiceInfo { operation_mode, .. } = Reply::parse(&body).unwrap() else {
            panic!("no service info")
        };
        operation_mode.unwrap()
    };
    assert_eq!(mode(&replica).await, AttestationMode::Tpm);
    service.set_mode("HostKey").await;
    assert_eq!(
        mode(&service.url).await,
        AttestationMode::HostKey,
        "at once where it was chosen"
    );
    let begun = std::time::Instant::now();
    while mode(&replica).await != AttestationMode::HostKey {
        assert!(begun.elapsed().as_secs() < 5, "the replica does not follow");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(service.admin_get("operation-mode").await["mode"], "HostKey");
}

#[tokio::test(flavor = "multi_thread")]
async fn active_directory_is_refused_with_the_reason_and_its_groups_are_kept() {
    let service = Service::start().await;
    for name in ["AD", "ActiveDirectory", "activedirectory"] {
        let (status, answer) = service.admin_put("operation-mode", &json!({ "mode": name })).await;
        assert_eq!(status, 409);
        assert!(answer["error"].as_str().unwrap().contains("no directory"), "{answer}");
    }
    assert_eq!(
        service.admin_put("operation-mode", &json!({ "mode": "Sgx" })).await.0,
        400
    );
    let group = json!({ "name": "hosts", "identifier": "S-1-5-21-1-2-3-1105" });
    assert_eq!(service.admin_post("host-groups", &group).await.0, 201);
    assert_eq!(service.admin_post("host-groups", &group).await.0, 200);
    assert_eq!(
        service.admin_get("host-groups").await[0]["identifier"],
        "S-1-5-21-1-2-3-1105"
    );
    let bad = json!({ "name": "other", "identifier": "Domain Computers" });
    assert_eq!(service.admin_post("host-groups", &bad).await.0, 400);
    assert_eq!(service.admin_delete("host-groups/hosts").await, 204);
}
