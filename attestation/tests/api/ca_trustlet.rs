//! The switch for certificates of CA trustlets, and what a host brings for one.

use hgs_protocol::{
    crypto::{RsaPrivateKey, sha256},
    wire::{
        hgsa::ProvidedKind,
        vbs_report::{VbsReport, VbsReportPackage},
    },
};
use serde_json::{Value, json};

use crate::fixture::Service;

/// Items 1, 5, 6 and 7 for the key in `blob`, vouched for by `signing`.
pub(crate) fn items(blob: &[u8], signing: &RsaPrivateKey) -> Vec<(ProvidedKind, Vec<u8>)> {
    let hash = sha256(blob);
    let mut enclave_data = [0; 64];
    enclave_data[..32].copy_from_slice(&hash);
    let report = VbsReport {
        enclave_data,
        owner_id: [1; 32],
        unique_id: [2; 32],
        author_id: [3; 32],
        family_id: [4; 16],
        image_id: [5; 16],
        enclave_svn: 0,
        secure_kernel_svn: 0,
        platform_svn: 1,
        flags: 0,
        signing_level: 0,
        enclave_type: 0x10,
        blocks: Vec::new(),
    };
    let statement = report.encode();
    let signature = signing.sign_pss_sha256(&statement).unwrap();
    let package = VbsReportPackage { statement, signature }.encode();
    let signature = signing.sign_pss_sha256(&package).unwrap();
    vec![
        (ProvidedKind::VsmIdentityKey, blob.to_vec()),
        (ProvidedKind::CaTrustletUserData, hash.to_vec()),
        (ProvidedKind::CaTrustletVsmReport, package),
        (ProvidedKind::CaTrustletReportSignature, signature),
    ]
}

pub(crate) async fn switch(service: &Service, enabled: bool) {
    let (status, answer) = service
        .admin_put("ca-certificates", &json!({ "enabled": enabled }))
        .await;
    assert_eq!((status, &answer["enabled"]), (200, &json!(enabled)), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_switch_is_off_at_first_kept_recorded_and_an_administrators() {
    let service = Service::start().await;
    assert_eq!(service.admin_get("ca-certificates").await, json!({ "enabled": false }));
    let by_reviewer = service
        .client
        .put(format!("{}/admin/v1/ca-certificates", service.admin))
        .bearer_auth(&service.reviewer)
        .json(&json!({ "enabled": true }));
    assert_eq!(by_reviewer.send().await.unwrap().status().as_u16(), 403);
    for bad in [
        json!({}),
        json!({ "enabled": "on" }),
        json!({ "enabled": true, "more": 1 }),
    ] {
        assert_eq!(service.admin_put("ca-certificates", &bad).await.0, 400, "{bad}");
    }
    assert_eq!(service.admin_get("ca-certificates").await, json!({ "enabled": false }));
    for enabled in [true, false, true] {
        switch(&service, enabled).await;
        assert_eq!(
            service.admin_get("ca-certificates").await,
            json!({ "enabled": enabled })
        );
        let rows = service.admin_get("audit").await;
        let row = rows.as_array().unwrap().iter().find(|row| row["kind"] == "setting");
        let body = &row.unwrap()["body"];
        assert_eq!(
            (&body["setting"], &body["enabled"]),
            (&json!("ca-certificates"), &json!(enabled))
        );
        assert!(body["by"].as_str().unwrap().starts_with("administrator "), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_replica_follows_the_switch_within_seconds() {
    let service = Service::start().await;
    let (_, replica) = service.replica_urls().await;
    let shown = async || {
        let request = service.client.get(format!("{replica}/admin/v1/ca-certificates"));
        let answer = request.bearer_auth(&service.token).send().await.unwrap();
        answer.json::<Value>().await.unwrap()["enabled"].clone()
    };
    assert_eq!(shown().await, json!(false));
    for enabled in [true, false] {
        switch(&service, enabled).await;
        let begun = std::time::Instant::now();
        while shown().await != json!(enabled) {
            assert!(begun.elapsed().as_secs() < 5, "the replica does not follow");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
}
