//! `attestation audit verify` beside a running service.

use std::process::{Command, Output};

use serde_json::json;

use crate::{
    fixture::Service,
    host_keys::{Keys, register_host_key},
};

fn verify(service: &Service, more: &[&str]) -> Output {
    let dir = service.dir();
    Command::new(env!("CARGO_BIN_EXE_attestation"))
        .args(["audit", "verify", "--data-dir"])
        .arg(dir.join("data"))
        .arg("--key-encryption-key-file")
        .arg(dir.join("kek"))
        .args(more)
        .output()
        .unwrap()
}

async fn on_database(service: &Service, text: &'static str) {
    let url = format!("sqlite://{}", service.dir().join("data/attestation.db").display());
    let pool = sqlx::SqlitePool::connect(&url).await.unwrap();
    assert_eq!(sqlx::query(text).execute(&pool).await.unwrap().rows_affected(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_finds_an_edit_and_with_a_kept_head_a_cut_tail() {
    let service = Service::start().await;
    service.set_mode("HostKey").await;
    let keys = Keys::new();
    register_host_key(&service, "host01", &keys.host.public().spki_der()).await;
    for _ in 0..3 {
        service.ask_host_key(&keys.request()).await;
    }
    let good = verify(&service, &["--json"]);
    assert!(good.status.success(), "{good:?}");
    let heads = service.dir().join("heads.json");
    std::fs::write(&heads, &good.stdout).unwrap();
    let heads = heads.to_str().unwrap();

    on_database(
        &service,
        "DELETE FROM audit WHERE sequence = (SELECT MAX(sequence) FROM audit)",
    )
    .await;
    assert!(
        verify(&service, &[]).status.success(),
        "nothing shows it without a head"
    );
    let cut = verify(&service, &["--head", heads]);
    let text = String::from_utf8(cut.stdout).unwrap();
    assert!(!cut.status.success() && text.contains("FAULT"), "{text}");

    on_database(&service, "UPDATE audit SET body = '{}' WHERE sequence = 1").await;
    let edited = verify(&service, &[]);
    let text = String::from_utf8(edited.stdout).unwrap();
    assert!(!edited.status.success() && text.contains("row 1 was changed"), "{text}");
    let (status, found) = service.admin_post("audit/verify", &json!([])).await;
    assert_eq!(status, 200);
    assert!(!found["faults"].as_array().unwrap().is_empty(), "{found}");
}
