//! What an administrator and a reviewer do, and what stays on disk.

use hgs_protocol::wire::kps::ServiceVersion;

use crate::fabric::Fabric;

#[actix_web::test]
async fn a_signer_is_listed_removed_and_then_no_longer_believed() {
    let fabric = Fabric::start(0).await;
    let signers = fabric.get_admin("attestation-signers").await;
    let thumbprint = signers[0]["thumbprint"].as_str().unwrap().to_owned();
    assert_eq!(
        thumbprint,
        hex::encode(hgs_protocol::crypto::sha256(fabric.signer.certificate_der()))
    );
    let protector = fabric.protector().0.to_xml();
    let certificate = fabric.healthy();
    assert!(fabric.roll(ServiceVersion::V2, &protector, &certificate).await.is_ok());

    let url = format!("{}/admin/v1/attestation-signers/{thumbprint}", fabric.admin);
    let status = |token: String| {
        let request = fabric.client.delete(&url).bearer_auth(token);
        async move { request.send().await.unwrap().status().as_u16() }
    };
    assert_eq!(status(fabric.reviewer.clone()).await, 403);
    assert_eq!(status("0".repeat(64)).await, 401);
    assert_eq!(status(fabric.administrator.clone()).await, 204);
    assert_eq!(status(fabric.administrator.clone()).await, 404);
    assert_eq!(
        fabric.refusal(&protector, &certificate).await,
        (403, "HealthCertificateException".to_owned())
    );
    assert_eq!(fabric.trust(b"no certificate").await, 400);
    fabric.stop().await;
}

#[actix_web::test]
async fn health_certificates_from_before_a_date_can_be_denied() {
    let fabric = Fabric::start(0).await;
    let protector = fabric.protector().0.to_xml();
    let certificate = fabric.healthy();
    let thumbprint = hex::encode(hgs_protocol::crypto::sha256(fabric.signer.certificate_der()));
    let path = format!("attestation-signers/{thumbprint}/policy");
    let soon = fabric.clock.now().plus_seconds(60);
    let deny = serde_json::json!({ "denyIssuedBefore": soon });
    assert_eq!(
        fabric
            .call("PUT", "attestation-signers/00/policy", deny.clone())
            .await
            .0,
        404
    );
    assert_eq!(fabric.call("PUT", &path, deny).await.0, 204);
    // Trusting the signer again does not lift it.
    assert_eq!(fabric.trust(fabric.signer.certificate_der()).await, 200);
    assert_eq!(
        fabric.get_admin("attestation-signers").await[0]["denyIssuedBefore"],
        serde_json::json!(soon)
    );
    assert_eq!(
        fabric.refusal(&protector, &certificate).await,
        (403, "HealthCertificateException".to_owned())
    );
    fabric.clock.advance(std::time::Duration::from_secs(120));
    let fresh = fabric.healthy();
    assert!(fabric.roll(ServiceVersion::V2, &protector, &fresh).await.is_ok());
    // All signers at once, and all of it lifted.
    let far = serde_json::json!({ "denyIssuedBefore": soon.plus_seconds(9999) });
    assert_eq!(fabric.call("PUT", "attestation-signers/policy", far).await.0, 204);
    assert_eq!(fabric.refusal(&protector, &fresh).await.0, 403);
    let none = serde_json::json!({ "denyIssuedBefore": null });
    assert_eq!(fabric.call("PUT", "attestation-signers/policy", none).await.0, 204);
    assert!(fabric.roll(ServiceVersion::V2, &protector, &fresh).await.is_ok());
    fabric.stop().await;
}

#[actix_web::test]
async fn certificates_and_the_audit_chain_are_shown() {
    let fabric = Fabric::start(0).await;
    let certificates = fabric.get_admin("certificates").await;
    assert_eq!(certificates.as_array().unwrap().len(), 2);
    assert_eq!(certificates[0]["thumbprint"], fabric.hgs.signing().thumbprint());
    assert_eq!(certificates[1]["thumbprint"], fabric.hgs.encryption().thumbprint());
    assert_eq!(certificates[1]["isPrimary"], true);

    let protector = fabric.protector().0.to_xml();
    let _ = fabric
        .roll(ServiceVersion::V2, &protector, &fabric.healthy())
        .await
        .unwrap();
    let _ = fabric.refusal(&protector, b"x").await;
    let rows = fabric.get_admin("audit").await;
    let outcomes: Vec<&str> = rows
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|row| row["body"]["outcome"].as_str())
        .collect();
    assert_eq!(outcomes, ["HealthCertificateException", "Released"]);
    let verified = fabric.get_admin("audit/verify").await;
    assert_eq!(verified["faults"], serde_json::json!([]));
    assert_eq!(verified["rows"], rows.as_array().unwrap().len());
    fabric.stop().await;
}

#[actix_web::test]
async fn a_restart_keeps_the_certificates_and_nothing_on_disk_is_a_plain_key() {
    let fabric = Fabric::start(0).await;
    let directory = fabric.directory.path();
    let mut files = vec![];
    for entry in std::fs::read_dir(directory.join("data")).unwrap() {
        files.extend(std::fs::read(entry.unwrap().path()).unwrap());
    }
    // PKCS#8 of an RSA key holds this prefix: version, rsaEncryption, NULL, OCTET STRING.
    let pkcs8 = hex::decode("020100300d06092a864886f70d0101010500").unwrap();
    assert!(!files.windows(pkcs8.len()).any(|window| window == pkcs8));

    let settings = hgs_service::settings::ServiceArgs {
        data_dir: Some(directory.join("data")),
        key_encryption_key_file: Some(directory.join("kek")),
        ..Default::default()
    };
    let bound = kps::start(
        &settings.clone().resolve("kps").unwrap(),
        &kps::Options::default(),
        fabric.clock.clone(),
    )
    .await
    .unwrap();
    let url = bound.service_url.clone();
    let handles = bound.handles();
    tokio::spawn(bound.run());
    let path = hgs_protocol::wire::kps::METADATA_PATH;
    let document = fabric.client.get(format!("{url}{path}")).send().await.unwrap();
    let again = hgs_protocol::protector::Guardian::from_metadata(&document.bytes().await.unwrap(), "HGS").unwrap();
    assert_eq!(again, fabric.hgs);
    for handle in handles {
        handle.stop(true).await;
    }

    std::fs::write(directory.join("kek"), "00".repeat(32)).unwrap();
    let refused = kps::start(
        &settings.resolve("kps").unwrap(),
        &kps::Options::default(),
        fabric.clock.clone(),
    )
    .await
    .err()
    .unwrap();
    assert!(
        format!("{refused:#}").contains("another key-encryption key"),
        "{refused:#}"
    );
    fabric.stop().await;
}
