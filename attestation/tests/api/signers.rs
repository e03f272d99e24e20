//! The life of attestation signers over the lab's years, and limits.

use std::time::Duration;

use attestation::Options;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use cms::{cert::CertificateChoices, content_info::ContentInfo, signed_data::SignedData};
use hgs_protocol::{
    crypto::sha256,
    health::{AcceptanceRules, HealthCertificate, TrustedSigner},
    wire::hgsa::{ErrorKind, Reply},
};
use serde_json::{Value, json};
use x509_cert::der::{Decode as _, Encode as _};

use crate::{
    fixture::Service,
    host_keys::{Keys, register_host_key},
};

const DAY: u64 = 86_400;

pub(crate) async fn published(service: &Service) -> Vec<Vec<u8>> {
    let url = format!("{}/Attestation/v2.0/signingCertificates", service.url);
    let der: Vec<u8> = service.client.get(url).send().await.unwrap().json().await.unwrap();
    let info = ContentInfo::from_der(&der).unwrap();
    let signed: SignedData = info.content.decode_as().unwrap();
    let certificates = signed.certificates.unwrap();
    let der = |choice: &CertificateChoices| match choice {
        CertificateChoices::Certificate(certificate) => certificate.to_der().unwrap(),
        CertificateChoices::Other(other) => panic!("{other:?}"),
    };
    certificates.0.iter().map(der).collect()
}

pub(crate) async fn in_state(service: &Service, state: &str) -> Option<Value> {
    let rows = service.admin_get("attestation-signers").await;
    rows.as_array()
        .unwrap()
        .iter()
        .find(|row| row["state"] == state)
        .cloned()
}

pub(crate) fn der(signer: &Value) -> Vec<u8> {
    BASE64_STANDARD.decode(signer["certificate"].as_str().unwrap()).unwrap()
}

async fn renewal(service: &Service) -> Option<String> {
    let found = service.admin_get("diagnosis").await;
    let row = found
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["id"] == "signer-renewal");
    row.map(|row| row["severity"].as_str().unwrap().to_owned())
}

pub(crate) async fn certificate(service: &Service, keys: &Keys) -> HealthCertificate {
    let reply = service.ask_host_key(&keys.request()).await;
    let Reply::HealthCertificate { content } = reply else {
        panic!("{reply:?}")
    };
    HealthCertificate::parse(&content[0].1).unwrap()
}

/// Until `holds`, which the service comes to within a second or two of its own.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < Duration::from_secs(15), "{what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signer_is_followed_in_good_time_and_stays_until_its_last_certificate_has_expired() {
    let service = Service::start().await;
    service.set_mode("HostKey").await;
    let keys = Keys::new();
    register_host_key(&service, "host01", &keys.host.public().spki_der()).await;
    let first = in_state(&service, "active").await.unwrap();
    assert_eq!(in_state(&service, "pending").await, None);
    assert_eq!(renewal(&service).await, None);
    assert_eq!(published(&service).await, [der(&first)]);

    // Two months before its end the next one is made, and waits.
    let step = |days: u64| service.clock.advance(Duration::from_secs(days * DAY));
    step(5 * 365 - 59);
    eventually("a pending signer", async || {
        in_state(&service, "pending").await.is_some()
    })
    .await;
    let pending = in_state(&service, "pending").await.unwrap();
    assert_eq!(pending["published"], true);
    eventually("the pending signer is published", async || {
        published(&service).await.len() == 2
    })
    .await;
    let signed_by = |certificate: &HealthCertificate, signer: &Value| {
        let trusted = [TrustedSigner::from_certificate(&der(signer)).unwrap()];
        let now = service.clock.now();
        certificate.accept(&trusted, now, &AcceptanceRules::default()).is_ok()
    };
    assert!(
        signed_by(&certificate(&service, &keys).await, &first),
        "it does not sign yet"
    );
    // Nor may it before clients that keep the list for hours have it.
    let activate = format!("attestation-signers/{}/activate", pending["sha256"].as_str().unwrap());
    let done = json!({ "registered_with_key_protection": true });
    assert!(
        in_state(&service, "pending").await.unwrap()["seconds_to_wait"]
            .as_i64()
            .unwrap()
            > 8 * 3600
    );
    let (status, answer) = service.admin_post(&activate, &done).await;
    assert!(
        status == 409 && answer["error"].as_str().unwrap().contains("have not seen"),
        "{answer}"
    );
    eventually("a warning", async || {
        renewal(&service).await.as_deref() == Some("warning")
    })
    .await;
    step(46);
    eventually("an error", async || renewal(&service).await.as_deref() == Some("error")).await;
    eventually("metrics", async || {
        let metrics = service
            .client
            .get(format!("{}/metrics", service.admin))
            .send()
            .await
            .unwrap();
        let metrics = metrics.text().await.unwrap();
        metrics.contains("hgs_attestation_signer_seconds_left ")
            && metrics.contains("hgs_attestation_signer_late 1")
            && metrics.contains("hgs_attestation_signer_pending 1")
    })
    .await;
    let told = async |member: &str, value: &str| {
        let rows = service.admin_get("audit").await;
        let mut rows = rows.as_array().unwrap().iter();
        rows.any(|row| row["kind"] == "attestation-signer" && row["body"][member] == value)
    };
    assert!(told("event", "made").await);
    eventually("an event", async || told("state", "late").await).await;

    // An administrator has registered it with key protection.
    assert_eq!(in_state(&service, "pending").await.unwrap()["seconds_to_wait"], 0);
    let not_yet = json!({ "registered_with_key_protection": false });
    assert_eq!(service.admin_post(&activate, &not_yet).await.0, 409);
    let before = certificate(&service, &keys).await;
    let (status, answer) = service.admin_post(&activate, &done).await;
    assert_eq!((status, &answer["state"]), (200, &json!("active")), "{answer}");
    assert_eq!(service.admin_post(&activate, &done).await.0, 200, "the same again");
    let after = certificate(&service, &keys).await;
    assert!(signed_by(&before, &first) && signed_by(&after, &pending) && !signed_by(&after, &first));
    assert_eq!(published(&service).await.len(), 2, "both are published");
    assert_eq!(renewal(&service).await, None);
    let withdraw = format!("attestation-signers/{}", pending["sha256"].as_str().unwrap());
    assert_eq!(service.admin_delete(&withdraw).await, 409, "the active one stays");

    // Eight hours later the last certificate of the old signer has expired.
    service.clock.advance(Duration::from_secs(8 * 3600 - 60));
    service.set_mode("HostKey").await; // a write makes the service look anew
    assert_eq!(published(&service).await.len(), 2);
    service.clock.advance(Duration::from_secs(180));
    eventually("the old signer gone", async || {
        published(&service).await == [der(&pending)]
    })
    .await;
    let old = in_state(&service, "old").await.unwrap();
    assert_eq!((&old["sha256"], &old["published"]), (&first["sha256"], &json!(false)));
    let back = format!("attestation-signers/{}/activate", first["sha256"].as_str().unwrap());
    assert_eq!(
        service.admin_post(&back, &done).await.0,
        409,
        "an old signer does not come back"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signer_made_by_hand_waits_alone_and_can_be_dropped() {
    let service = Service::start().await;
    let (status, made) = service.admin_post("attestation-signers", &json!({})).await;
    assert_eq!((status, &made["state"]), (200, &json!("pending")));
    let (_, again) = service.admin_post("attestation-signers", &json!({})).await;
    assert_eq!(made["sha256"], again["sha256"], "one at a time");
    let path = format!("attestation-signers/{}", made["sha256"].as_str().unwrap());
    assert_eq!(service.admin_delete(&path).await, 204);
    assert_eq!(service.admin_delete(&path).await, 404);
    assert_eq!(in_state(&service, "pending").await, None);
    // The record names who did it: by the token's line in the service's token file, of which it holds the beginning.
    let by = format!("administrator {}", hex::encode(&sha256(service.token.as_bytes())[..8]));
    let rows = service.admin_get("audit").await;
    let rows = rows.as_array().unwrap();
    let dropped = rows.iter().find(|row| row["body"]["event"] == "dropped").unwrap();
    assert_eq!(dropped["body"]["by"], by.as_str());
    let mut changes = rows.iter().filter(|row| row["kind"] == "administration").peekable();
    assert!(changes.peek().is_some());
    assert!(changes.all(|row| row["body"]["by"] == by.as_str()), "{rows:?}");

    // In an emergency nobody waits; and no more are published than clients can read.
    for _ in 0..4 {
        let (_, made) = service.admin_post("attestation-signers", &json!({})).await;
        let activate = format!("attestation-signers/{}/activate", made["sha256"].as_str().unwrap());
        let body = json!({ "registered_with_key_protection": true, "at_once": true });
        let (status, answer) = service.admin_post(&activate, &body).await;
        assert_eq!((status, &answer["sha256"]), (200, &made["sha256"]), "{answer}");
    }
    let (status, answer) = service.admin_post("attestation-signers", &json!({})).await;
    assert_eq!(status, 409, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_asks_too_often_is_turned_away_and_others_are_not() {
    let options = Options {
        requests_per_minute_per_address: 3,
        trusted_proxies: vec![[127, 0, 0, 1].into()],
        ..Options::default()
    };
    let service = Service::start_with(options, |_, args| args).await;
    let ask = async |from: &str| {
        let request = service.client.get(format!("{}/Attestation/getinfo", service.url));
        let response = request.header("x-forwarded-for", from).send().await.unwrap();
        let status = response.status().as_u16();
        let retry = response.headers().contains_key("retry-after");
        let reply = Reply::parse(&response.bytes().await.unwrap()).unwrap();
        (status, retry, reply)
    };
    for _ in 0..3 {
        assert_eq!(ask("192.0.2.1").await.0, 200);
    }
    let unavailable = Reply::Error {
        kind: ErrorKind::Unavailable,
        retryable: true,
    };
    assert_eq!(ask("192.0.2.1").await, (503, true, unavailable));
    assert_eq!(ask("192.0.2.1, 192.0.2.2").await.0, 200, "the last address counts");
}
