//! The service over real HTTP, asked by a host with a real TPM in software, and by attackers.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test stops at the first surprise"
)]

mod artefacts;
mod attack_table;
mod attacks;
mod audit;
mod backup;
mod ca_trustlet;
mod elliptic;
mod events;
mod fixture;
mod host_keys;
mod must;
mod postgres;
mod review;
mod signers;
mod tools;
mod urls;
mod what_if;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use fixture::{Host, Service, V1, V2, missing_tools};
use guarded_host_sim::machine::dials::Dials;
use hgs_protocol::{
    env::Clock,
    health::{AcceptanceRules, HealthCertificate, TrustedSigner},
    wire::hgsa::{ErrorKind, Reply},
};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_host_attests_over_both_versions_and_its_certificate_is_accepted() {
    if missing_tools("a healthy host") {
        return;
    }
    let service = Service::start().await;
    let mut host = Host::boot(&Dials::default());
    service.register(&host, "host01").await;
    let signer = service.admin_get("attestation-signer").await;
    let signer = BASE64_STANDARD.decode(signer["certificate"].as_str().unwrap()).unwrap();
    let trusted = [TrustedSigner::from_certificate(&signer).unwrap()];
    for version in [V1, V2] {
        let reply = host.attest(&service, version).await;
        let Reply::HealthCertificate { content } = reply else {
            panic!("{version}: {reply:?}")
        };
        assert_eq!(content.len(), 2, "encryption and signing, in request order");
        let certificate = HealthCertificate::parse(&content[0].1).unwrap();
        let accepted = certificate
            .accept(&trusted, Clock::system().now(), &AcceptanceRules::default())
            .unwrap();
        assert_eq!(accepted.encryption_key(), &host.encryption.public().clone().into());
        let rows = service.admin_get("attestations").await;
        let row = &rows[0]["body"];
        assert_eq!(row["host"], "host01");
        assert_eq!(row["unproven"], false);
        assert_eq!(row["reply"], "HealthCertificateReply");
        assert_eq!(row["verdicts"].as_array().unwrap().len(), 15);
        assert_eq!(row["serials"][0], json!(certificate.serial()));
    }
    let found = service.admin_post("audit/verify", &json!([])).await;
    assert_eq!(found.1["faults"], json!([]));
    assert_eq!(service.admin_get("attestations").await.as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_secure_boot_is_refused_with_the_policy_named() {
    if missing_tools("Secure Boot off") {
        return;
    }
    let service = Service::start().await;
    let good = Host::boot(&Dials::default());
    service.register(&good, "host01").await;
    let mut bad = Host::boot(&Dials {
        secure_boot: false,
        ..Dials::default()
    });
    let body = json!({ "name": "host03", "ek_certificate": BASE64_STANDARD.encode(&bad.certificate),
        "policy_version": "v1", "force": true });
    assert_eq!(service.admin_post("tpm-hosts", &body).await.0, 201);
    let reply = bad.attest(&service, V1).await;
    let Reply::Error {
        kind: ErrorKind::PolicyEvaluation(reasons),
        retryable: false,
    } = reply
    else {
        panic!("{reply:?}")
    };
    let secure_boot = attestation::policy::POLICIES
        .iter()
        .find(|policy| policy.name == "SecureBootEnabled")
        .unwrap();
    assert!(reasons.iter().any(|log| log.reason == secure_boot.id.0 && !log.result));
    let rows = service.admin_get("attestations").await;
    assert_eq!(rows[0]["body"]["unproven"], true);
    let verdicts = rows[0]["body"]["verdicts"].as_array().unwrap();
    let named = verdicts
        .iter()
        .find(|verdict| verdict["policy"] == "SecureBootEnabled")
        .unwrap();
    assert_eq!(named["verdict"], "fail");
    assert!(!named["remedy"].as_str().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unregistered_host_is_unauthorized_and_a_removed_one_again() {
    if missing_tools("an unregistered host") {
        return;
    }
    let service = Service::start().await;
    let mut host = Host::boot(&Dials::default());
    let unauthorized = Reply::Error {
        kind: ErrorKind::Unauthorized,
        retryable: false,
    };
    assert_eq!(host.attest(&service, V1).await, unauthorized);
    service.register(&host, "host01").await;
    assert!(matches!(
        host.attest(&service, V2).await,
        Reply::HealthCertificate { .. }
    ));
    assert_eq!(service.admin_delete("tpm-hosts/host01").await, 204);
    assert_eq!(host.attest(&service, V2).await, unauthorized);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_without_a_vendor_is_taken_by_force_only() {
    if missing_tools("a key without a vendor") {
        return;
    }
    let service = Service::start().await;
    let host = Host::boot(&Dials::default());
    let bare = |force: bool| json!({ "name": "bare", "ek_public": BASE64_STANDARD.encode(host.ek.spki_der()), "policy_version": "v1", "force": force });
    let (status, answer) = service.admin_post("tpm-hosts", &bare(false)).await;
    assert_eq!(status, 400, "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("force"), "{answer}");
    let certified = json!({ "name": "bare", "ek_certificate": BASE64_STANDARD.encode(&host.certificate) });
    assert_eq!(
        service.admin_post("tpm-hosts", &certified).await.0,
        400,
        "no vendor is trusted yet"
    );
    let (status, answer) = service.admin_post("tpm-hosts", &bare(true)).await;
    assert_eq!((status, &answer["unproven"]), (201, &json!(true)));
    assert_eq!(
        service.admin_post("tpm-hosts", &bare(true)).await.0,
        200,
        "the same again"
    );
    let mut renamed = bare(true);
    renamed["name"] = json!("other");
    assert_eq!(service.admin_post("tpm-hosts", &renamed).await.0, 409);
    let mut newer = bare(true);
    newer["policy_version"] = json!("v2");
    let (status, answer) = service.admin_post("tpm-hosts", &newer).await;
    assert_eq!(status, 400, "version v2 takes no force: {answer}");
    let nonsense = json!({ "name": "x", "ek_public": BASE64_STANDARD.encode([1, 2, 3]), "force": true });
    assert_eq!(service.admin_post("tpm-hosts", &nonsense).await.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_are_listed_and_a_locked_one_stays() {
    let service = Service::start().await;
    let policies = service.admin_get("policies").await;
    let policies = policies.as_array().unwrap();
    assert_eq!(policies.len(), 15);
    let pick = |locked: bool| policies.iter().find(|policy| policy["locked"] == locked);
    let open = pick(false).unwrap()["switch"].as_str().unwrap();
    assert_eq!(
        service
            .admin_post(&format!("policies/{open}/disable"), &json!({}))
            .await
            .0,
        200
    );
    let after = service.admin_get("policies").await;
    let found = after
        .as_array()
        .unwrap()
        .iter()
        .find(|policy| policy["switch"] == open)
        .unwrap();
    assert_eq!(found["enabled"], false);
    assert_eq!(
        service
            .admin_post(&format!("policies/{open}/enable"), &json!({}))
            .await
            .0,
        200
    );
    let locked = pick(true).unwrap()["switch"].as_str().unwrap();
    assert_eq!(
        service
            .admin_post(&format!("policies/{locked}/disable"), &json!({}))
            .await
            .0,
        409
    );
    assert_eq!(
        service.admin_post("policies/Hgs_Nothing/disable", &json!({})).await.0,
        404
    );
}
