//! `kps audit verify` beside a running service, and who is named in the record.

use std::process::{Command, Output};

use hgs_protocol::{crypto::sha256, wire::kps::ServiceVersion};
use serde_json::json;

use crate::fabric::Fabric;

fn verify(fabric: &Fabric, more: &[&str]) -> Output {
    let dir = fabric.directory.path();
    Command::new(env!("CARGO_BIN_EXE_kps"))
        .args(["audit", "verify", "--data-dir"])
        .arg(dir.join("data"))
        .arg("--key-encryption-key-file")
        .arg(dir.join("kek"))
        .args(more)
        .output()
        .unwrap()
}

async fn on_database(fabric: &Fabric, text: &'static str) {
    let url = format!("sqlite://{}", fabric.directory.path().join("data/kps.db").display());
    let pool = sqlx::SqlitePool::connect(&url).await.unwrap();
    assert_eq!(sqlx::query(text).execute(&pool).await.unwrap().rows_affected(), 1);
}

#[actix_web::test]
async fn the_command_finds_an_edit_and_with_a_kept_head_a_cut_tail() {
    let fabric = Fabric::start(0).await;
    let protector = fabric.protector().0.to_xml();
    for _ in 0..3 {
        let certificate = fabric.healthy();
        assert!(fabric.roll(ServiceVersion::V2, &protector, &certificate).await.is_ok());
    }
    let good = verify(&fabric, &["--json"]);
    assert!(good.status.success(), "{good:?}");
    let heads = fabric.directory.path().join("heads.json");
    std::fs::write(&heads, &good.stdout).unwrap();
    let heads = heads.to_str().unwrap();
    assert!(verify(&fabric, &["--head", heads]).status.success());

    let last = "DELETE FROM audit WHERE sequence = (SELECT MAX(sequence) FROM audit)";
    on_database(&fabric, last).await;
    assert!(verify(&fabric, &[]).status.success(), "nothing shows it without a head");
    let cut = verify(&fabric, &["--head", heads]);
    let text = String::from_utf8(cut.stdout).unwrap();
    assert!(!cut.status.success() && text.contains("FAULT"), "{text}");

    on_database(&fabric, "UPDATE audit SET body = '{}' WHERE sequence = 1").await;
    let edited = verify(&fabric, &[]);
    let text = String::from_utf8(edited.stdout).unwrap();
    assert!(!edited.status.success() && text.contains("row 1 was changed"), "{text}");
    fabric.stop().await;
}

#[actix_web::test]
async fn every_change_names_the_administrator_who_made_it() {
    let fabric = Fabric::start(0).await;
    let by = format!(
        "administrator {}",
        hex::encode(&sha256(fabric.administrator.as_bytes())[..8])
    );
    let make = json!({ "certificateType": "Signing", "generate": { "commonName": "HGS 2" } });
    let (status, made) = fabric.call("POST", "certificates", make).await;
    assert_eq!(status, 201);
    let path = format!("certificates/signing/{}", made["sha256"].as_str().unwrap());
    for (method, path, body) in [
        ("PATCH", path.as_str(), json!({ "isEnabled": false })),
        ("DELETE", &path, json!(null)),
        ("PUT", "settings", fabric.get_admin("settings").await),
        ("PUT", "attestation-signers/policy", json!({ "denyIssuedBefore": null })),
    ] {
        assert!(fabric.call(method, path, body).await.0 < 300, "{method} {path}");
    }
    let signers = fabric.get_admin("attestation-signers").await;
    let path = format!("attestation-signers/{}", signers[0]["thumbprint"].as_str().unwrap());
    assert_eq!(fabric.call("DELETE", &path, json!(null)).await.0, 204);

    let rows = fabric.get_admin("audit").await;
    let named = |kind: &str| {
        let of_kind: Vec<_> = rows
            .as_array()
            .unwrap()
            .iter()
            .filter(|row| row["kind"] == kind)
            .collect();
        assert!(!of_kind.is_empty(), "{kind}: {rows}");
        of_kind.iter().all(|row| row["body"]["by"] == by.as_str())
    };
    for kind in [
        "administration",
        "attestation-signer-trusted",
        "attestation-signer-policy",
        "attestation-signer-removed",
        "certificate-added",
        "certificate-disabled",
        "certificate-removed",
        "settings-changed",
    ] {
        assert!(named(kind), "{kind}: {rows}");
    }
    assert!(
        !rows.to_string().contains(&fabric.administrator),
        "a token in the record"
    );
    fabric.stop().await;
}
