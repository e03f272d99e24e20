//! A service is lost and restored on an empty machine, with another key-encryption key.

use std::process::{Command, Output};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use hgs_protocol::{
    health::{AcceptanceRules, HealthCertificate, TrustedSigner},
    wire::boot_log::{BootLogBuilder, EventType, PcrIndex},
    wire::uefi::{GLOBAL_VARIABLE, UefiVariable},
};
use serde_json::{Value, json};

use crate::{
    fixture::Service,
    host_keys::{Keys, register_host_key},
    signers::{certificate, published},
};

/// Everything that an administrator sees and that a backup is to bring back.
const SHOWN: [&str; 11] = [
    "operation-mode",
    "tpm-hosts",
    "tpm-trust",
    "host-keys",
    "vsm-keys",
    "denied-keys",
    "host-groups",
    "tpm-baselines",
    "ci-policies",
    "dump-keys",
    "policies",
];

/// A log that can be a baseline: Secure Boot on, phases ended, PCR 11-14 capped.
pub(crate) fn baseline_log() -> Vec<u8> {
    let mut log = BootLogBuilder::new(3);
    let index = |pcr| PcrIndex::new(pcr).unwrap();
    let secure_boot = UefiVariable {
        guid: GLOBAL_VARIABLE,
        name: "SecureBoot".to_owned(),
        data: vec![1],
    };
    log.measure(index(7), EventType::EFI_VARIABLE_DRIVER_CONFIG, secure_boot.encode());
    for pcr in [0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 14] {
        log.separator(index(pcr));
    }
    log.finish()
}

async fn shown(service: &Service) -> Vec<Value> {
    let mut all = Vec::new();
    for what in SHOWN {
        all.push(service.admin_get(what).await);
    }
    // Only the ages differ between two looks.
    let signers = service.admin_get("attestation-signers").await;
    let signers = signers.as_array().unwrap().iter();
    all.push(
        signers
            .map(|row| json!([row["state"], row["sha256"], row["published_until"]]))
            .collect(),
    );
    all
}

fn accepted(certificate: &HealthCertificate, signers: &[Vec<u8>], service: &Service) -> bool {
    let trusted: Vec<_> = signers
        .iter()
        .map(|der| TrustedSigner::from_certificate(der).unwrap())
        .collect();
    certificate
        .accept(&trusted, service.clock.now(), &AcceptanceRules::default())
        .is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_service_has_its_artefacts_and_certifies_as_the_lost_one_did() {
    let mut service = Service::start().await;
    let keys = Keys::new();
    service.set_mode("HostKey").await;
    register_host_key(&service, "host01", &keys.host.public().spki_der()).await;
    // A bit of everything.
    let ek = BASE64_STANDARD.encode(Keys::new().host.public().spki_der());
    let host = json!({ "name": "old", "ek_public": ek, "policy_version": "v1", "force": true });
    let file = |name: &str, content: &[u8]| json!({ "name": name, "content": BASE64_STANDARD.encode(content) });
    let mut staged = file("next", b"a policy to come");
    staged["stage"] = json!(true);
    for (path, body) in [
        ("tpm-hosts", host),
        ("tpm-baselines", file("model", &baseline_log())),
        ("ci-policies", file("model", b"a policy")),
        ("ci-policies", staged),
        ("denied-keys", json!({ "sha256": "ab".repeat(32) })),
    ] {
        let (status, answer) = service.admin_post(path, &body).await;
        assert_eq!(status, 201, "{path}: {answer}");
    }
    let (status, answer) = service
        .admin_post("policies/Hgs_IommuEnabled/disable", &json!({}))
        .await;
    assert_eq!(status, 200, "{answer}");
    // An old signer, an active one and a pending one.
    let oldest = certificate(&service, &keys).await;
    let (_, made) = service.admin_post("attestation-signers", &json!({})).await;
    let activate = format!("attestation-signers/{}/activate", made["sha256"].as_str().unwrap());
    let body = json!({ "registered_with_key_protection": true, "at_once": true });
    assert_eq!(service.admin_post(&activate, &body).await.0, 200);
    let before = certificate(&service, &keys).await;
    assert_eq!(service.admin_post("attestation-signers", &json!({})).await.0, 200);
    let expected = shown(&service).await;

    let place = |name: &str| service.dir().join(name);
    std::fs::write(place("password"), "correct horse battery\n").unwrap();
    std::fs::write(place("wrong"), "correct horse batterx\n").unwrap();
    std::fs::write(place("kek2"), "a5".repeat(32)).unwrap();
    let run = |verb: [&str; 3], password: &str, data: &str, kek: &str| {
        Command::new(env!("CARGO_BIN_EXE_attestation"))
            .args(&verb[..2])
            .arg(place(verb[2]))
            .arg("--password-file")
            .arg(place(password))
            .arg("--data-dir")
            .arg(place(data))
            .arg("--key-encryption-key-file")
            .arg(place(kek))
            .output()
            .unwrap()
    };
    let done = |output: Output| assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let refused = |output: Output, text: &str| {
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && errors.contains(text), "{errors}");
    };
    done(run(["backup", "--out", "state"], "password", "data", "kek"));
    refused(
        run(["backup", "--out", "state"], "password", "data", "kek"),
        "never overwritten",
    );
    refused(
        run(["backup", "--out", "none"], "password", "elsewhere", "kek"),
        "no database",
    );
    refused(
        run(["backup", "--out", "none"], "password", "data", "kek2"),
        "attestation signer",
    );
    let sealed = std::fs::read(place("state")).unwrap();
    for (name, damaged) in [("cut", &sealed[..30]), ("short", &sealed[..sealed.len() - 1])] {
        std::fs::write(place(name), damaged).unwrap();
    }
    let mut flipped = sealed.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    std::fs::write(place("flipped"), flipped).unwrap();
    let restore = |file: &str, password: &str, data: &str| run(["restore", "--from", file], password, data, "kek2");
    refused(restore("state", "wrong", "data2"), "password");
    refused(restore("cut", "password", "data2"), "cut short");
    refused(restore("short", "password", "data2"), "changed");
    refused(restore("flipped", "password", "data2"), "changed");
    refused(restore("state", "password", "data"), "not empty");
    done(restore("state", "password", "data2"));
    refused(restore("state", "password", "data2"), "not empty");

    // From here on everybody speaks to the restored service, which holds another key-encryption key.
    let mut args = service.args();
    args.data_dir = Some(place("data2"));
    args.key_encryption_key_file = Some(place("kek2"));
    service = service.at(service.started_as(args).await);
    assert_eq!(shown(&service).await, expected);
    let signers = published(&service).await;
    assert_eq!(signers.len(), 3);
    assert!(accepted(&oldest, &signers, &service) && accepted(&before, &signers, &service));
    let after = certificate(&service, &keys).await;
    assert!(accepted(&after, &signers, &service));
    // By the same signer, and the pending one can follow it.
    let active = crate::signers::in_state(&service, "active").await.unwrap();
    let active = [crate::signers::der(&active)];
    assert!(accepted(&before, &active, &service) && accepted(&after, &active, &service));
    let pending = crate::signers::in_state(&service, "pending").await.unwrap();
    let activate = format!("attestation-signers/{}/activate", pending["sha256"].as_str().unwrap());
    assert_eq!(service.admin_post(&activate, &body).await.0, 200);
    assert!(accepted(
        &certificate(&service, &keys).await,
        &[crate::signers::der(&pending)],
        &service
    ));
    // A baseline's log came along; the record of decisions begins anew.
    let url = format!("{}/admin/v1/tpm-hosts/old/compare?baseline=model", service.admin);
    let answer = service
        .client
        .get(url)
        .bearer_auth(&service.token)
        .send()
        .await
        .unwrap();
    let answer: Value = answer.json().await.unwrap();
    assert!(answer["error"].as_str().unwrap().contains("old"), "{answer}");
    assert_eq!(service.admin_get("attestations").await.as_array().unwrap().len(), 2);
}
