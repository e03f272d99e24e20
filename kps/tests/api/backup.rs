//! A service is lost and restored on an empty machine, with another key-encryption key.

use std::process::Command;

use hgs_protocol::{env::Clock, protector::open_release, wire::kps::ServiceVersion};
use serde_json::json;

use crate::fabric::Fabric;

#[actix_web::test]
async fn a_restored_service_opens_what_the_lost_one_protected() {
    let mut fabric = Fabric::start(0).await;
    // A rotated guardian, a disabled certificate, a denied past and other settings are all state.
    let old = fabric.protector().0.to_xml();
    let ask = json!({ "certificateType": "Signing", "generate": { "commonName": "HGS 2" } });
    let (_, made) = fabric.call("POST", "certificates", ask.clone()).await;
    let path = format!("certificates/signing/{}", made["sha256"].as_str().unwrap());
    assert_eq!(fabric.call("PATCH", &path, json!({ "isPrimary": true })).await.0, 200);
    let (_, made) = fabric.call("POST", "certificates", ask).await;
    let path = format!("certificates/signing/{}", made["sha256"].as_str().unwrap());
    assert_eq!(fabric.call("PATCH", &path, json!({ "isEnabled": false })).await.0, 200);
    let before = json!({ "denyIssuedBefore": fabric.clock.now().plus_seconds(-100) });
    assert_eq!(fabric.call("PUT", "attestation-signers/policy", before).await.0, 204);
    let settings = json!({ "acceptedModes": ["HostKey"], "maxOfflineUnwraps": 2, "allowSha1Oaep": false });
    assert_eq!(fabric.call("PUT", "settings", settings).await.0, 200);
    let shown = async |fabric: &Fabric| {
        let mut all = Vec::new();
        for what in ["certificates", "attestation-signers", "settings"] {
            all.push(fabric.get_admin(what).await);
        }
        all
    };
    let expected = shown(&fabric).await;

    let place = |name: &str| fabric.directory.path().join(name);
    std::fs::write(place("password"), "correct horse battery\n").unwrap();
    std::fs::write(place("wrong"), "correct horse batterx\n").unwrap();
    std::fs::write(place("kek2"), "a5".repeat(32)).unwrap();
    let kps = |verb: [&str; 3], password: &str, data: &str, kek: &str| {
        Command::new(env!("CARGO_BIN_EXE_kps"))
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
    let done = kps(["backup", "--to", "state"], "password", "data", "kek");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(
        !kps(["backup", "--to", "state"], "password", "data", "kek")
            .status
            .success(),
        "would overwrite"
    );
    let refused = |output: std::process::Output, text: &str| {
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && errors.contains(text), "{errors}");
    };
    refused(
        kps(["restore", "--from", "state"], "wrong", "data2", "kek2"),
        "password",
    );
    refused(kps(["restore", "--from", "state"], "password", "data", "kek"), "empty");
    let done = kps(["restore", "--from", "state"], "password", "data2", "kek2");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    refused(
        kps(["restore", "--from", "state"], "password", "data2", "kek2"),
        "empty",
    );

    let mut args = fabric.settings.clone();
    args.data_dir = Some(place("data2"));
    args.key_encryption_key_file = Some(place("kek2"));
    let restored = kps::start(&args.resolve("kps").unwrap(), &kps::Options::default(), Clock::system())
        .await
        .unwrap();
    // From here on the fabric speaks to the restored service.
    (fabric.url, fabric.admin) = (restored.service_url.clone(), restored.admin_url.clone());
    let handles = restored.handles();
    tokio::spawn(restored.run());
    assert_eq!(shown(&fabric).await, expected);
    let answer = fabric.roll(ServiceVersion::V2, &old, &fabric.healthy()).await.unwrap();
    assert!(open_release(&answer, &fabric.host).is_ok());
    for handle in handles {
        handle.stop(true).await;
    }
    fabric.stop().await;
}
