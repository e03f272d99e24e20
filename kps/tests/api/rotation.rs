//! Rotation of the guardian's certificates and the settings, by an administrator's calls.

use std::process::Command;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hgs_protocol::{
    env::OsRandom,
    protector::{GuardianKeys, KeyProtector, Metadata, open_release},
    wire::kps::{METADATA_PATH, RollTransportKeyRequest, ServiceVersion},
};
use serde_json::{Value, json};

use crate::fabric::Fabric;

async fn add(fabric: &Fabric, body: Value) -> String {
    let (status, made) = fabric.call("POST", "certificates", body).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!((&made["isPrimary"], &made["isEnabled"]), (&json!(false), &json!(true)));
    made["sha256"].as_str().unwrap().to_owned()
}

async fn primary_of(fabric: &Fabric, kind: &str) -> String {
    let list = fabric.get_admin("certificates").await;
    let found = list
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["certificateType"] == kind && c["isPrimary"] == true);
    found.unwrap()["thumbprint"].as_str().unwrap().to_owned()
}

#[actix_web::test]
async fn a_guardian_is_rotated_while_old_protectors_still_open_until_the_old_pair_is_disabled() {
    let fabric = Fabric::start(0).await;
    // Another replica of the same service, which nobody tells of any change.
    let replica = kps::start(
        &fabric.settings.clone().resolve("kps").unwrap(),
        &kps::Options::default(),
        fabric.clock.clone(),
    )
    .await
    .unwrap();
    let (replica_url, handles) = (replica.service_url.clone(), replica.handles());
    tokio::spawn(replica.run());
    let old = fabric.protector().0.to_xml();
    let certificate = fabric.healthy();
    let opens = async |protector: &[u8]| match fabric.roll(ServiceVersion::V2, protector, &certificate).await {
        Ok(answer) => {
            assert!(open_release(&answer, &fabric.host).is_ok());
            Ok(answer.egress_protector)
        }
        Err((status, error)) => Err((status, error.code)),
    };

    let mut new = Vec::new();
    let mut former = Vec::new();
    for kind in ["Signing", "Encryption"] {
        former.push((kind, primary_of(&fabric, kind).await));
        let ask = json!({ "certificateType": kind, "generate": { "commonName": format!("HGS {kind} 2") }, "requestId": kind });
        let made = add(&fabric, ask.clone()).await;
        let (status, again) = fabric.call("POST", "certificates", ask).await;
        assert_eq!(
            (status, again["sha256"].as_str()),
            (200, Some(made.as_str())),
            "a repeated request makes no second"
        );
        new.push((kind, made));
    }
    // Only the primary pair is in the metadata, and nothing that would leave none is done.
    assert_eq!(fabric.guardian().await, fabric.hgs);
    for (kind, thumbprint) in &former {
        let path = format!("certificates/{kind}/{thumbprint}");
        for change in [json!({ "isEnabled": false }), json!({ "isPrimary": false })] {
            let (status, refused) = fabric.call("PATCH", &path, change).await;
            assert_eq!(status, 409);
            assert!(refused["error"].as_str().unwrap().contains("another one"), "{refused}");
        }
        assert_eq!(fabric.call("DELETE", &path, Value::Null).await.0, 409);
    }
    for (kind, thumbprint) in &new {
        let path = format!("certificates/{kind}/{thumbprint}");
        for _ in 0..2 {
            let (status, changed) = fabric.call("PATCH", &path, json!({ "isPrimary": true })).await;
            assert_eq!((status, &changed["isPrimary"]), (200, &json!(true)));
        }
    }
    let guardian = fabric.guardian().await;
    assert_eq!(hex::encode(guardian.signing().sha256()), new[0].1);
    assert_eq!(hex::encode(guardian.encryption().sha256()), new[1].1);
    let document = fabric
        .client
        .get(format!("{}{METADATA_PATH}", fabric.url))
        .send()
        .await
        .unwrap();
    let metadata = Metadata::import(&document.bytes().await.unwrap(), "HGS").unwrap();
    assert_eq!(metadata.other_signing(), [fabric.hgs.signing().clone()]);

    // Old protectors still open, signed by the old certificate; new ones are made for the new pair.
    let rolled = opens(&old).await.unwrap();
    let signer = KeyProtector::parse(&rolled).unwrap();
    let named = signer.wrappings().find(|w| w.id == signer.signer()).unwrap();
    assert_eq!(named.signing_certificate, fabric.hgs.signing().der());
    let (fresh, _) = KeyProtector::create(&fabric.owner, std::slice::from_ref(&guardian), &mut OsRandom).unwrap();
    let fresh = fresh.to_xml();
    assert!(opens(&fresh).await.is_ok());
    // The replica sees it within seconds.
    let ask = RollTransportKeyRequest::new(fresh.clone(), certificate.clone()).encode();
    let at_replica = async |body: &[u8]| {
        let url = format!("{replica_url}{}", ServiceVersion::V2.roll_path());
        let reply = fabric.client.post(url).body(body.to_vec()).send().await.unwrap();
        reply.status().as_u16()
    };
    let soon = async |body: &[u8], wanted: u16| {
        let start = std::time::Instant::now();
        while at_replica(body).await != wanted {
            assert!(start.elapsed().as_secs() < 10, "the replica did not see the change");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    soon(&ask, 200).await;

    let denied = Err((403, "KeyProtectionAccessDeniedException".to_owned()));
    for (kind, thumbprint) in &former {
        let path = format!("certificates/{kind}/{thumbprint}");
        assert_eq!(fabric.call("DELETE", &path, Value::Null).await.0, 409, "in use");
        assert_eq!(fabric.call("PATCH", &path, json!({ "isEnabled": false })).await.0, 200);
        assert_eq!(
            fabric.call("PATCH", &path, json!({ "isPrimary": true })).await.0,
            409,
            "disabled"
        );
        // One of a pair is as good as both.
        assert_eq!(opens(&old).await, denied);
        assert_eq!(opens(&rolled).await, denied);
        if *kind == "Signing" {
            assert_eq!(fabric.call("PATCH", &path, json!({ "isEnabled": true })).await.0, 200);
            assert!(opens(&old).await.is_ok());
            assert_eq!(fabric.call("PATCH", &path, json!({ "isEnabled": false })).await.0, 200);
        }
    }
    soon(
        &RollTransportKeyRequest::new(old.clone(), certificate.clone()).encode(),
        403,
    )
    .await;
    for (kind, thumbprint) in &former {
        let path = format!("certificates/{kind}/{thumbprint}");
        assert_eq!(fabric.call("DELETE", &path, Value::Null).await.0, 204);
        assert_eq!(fabric.call("DELETE", &path, Value::Null).await.0, 404);
    }
    assert_eq!(opens(&old).await, denied);
    assert!(opens(&fresh).await.is_ok());
    assert_eq!(fabric.get_admin("audit/verify").await["faults"], json!([]));
    for handle in handles {
        handle.stop(true).await;
    }
    fabric.stop().await;
}

#[actix_web::test]
async fn certificates_come_as_pfx_pem_or_generated_in_either_suite_and_a_communications_one_signs_the_metadata() {
    let fabric = Fabric::start(0).await;
    let place = |name: &str| fabric.directory.path().join(name);
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=HGS from a file",
            "-days",
            "30",
        ])
        .args([
            "-keyout".as_ref(),
            place("key.pem").as_os_str(),
            "-out".as_ref(),
            place("cert.pem").as_os_str(),
        ])
        .output();
    if made.is_err() {
        eprintln!("skipped: openssl is not installed");
        return;
    }
    let key = std::fs::read_to_string(place("key.pem")).unwrap();
    let certificate = std::fs::read_to_string(place("cert.pem")).unwrap();
    let pem = json!({ "certificateType": "Signing", "pem": format!("{certificate}{key}") });
    let thumbprint = add(&fabric, pem.clone()).await;
    assert_eq!(fabric.call("POST", "certificates", pem).await.0, 200, "there already");
    for (legacy, algorithm) in [(false, "AES-256-CBC"), (true, "PBE-SHA1-3DES")] {
        let done = Command::new("openssl")
            .args([
                "pkcs12",
                "-export",
                "-passout",
                "pass:p\u{e4}ss",
                "-keypbe",
                algorithm,
                "-certpbe",
                algorithm,
            ])
            .args(if legacy {
                ["-macalg", "sha1"]
            } else {
                ["-macalg", "sha256"]
            })
            .args([
                "-inkey".as_ref(),
                place("key.pem").as_os_str(),
                "-in".as_ref(),
                place("cert.pem").as_os_str(),
            ])
            .args(["-out".as_ref(), place("both.pfx").as_os_str()])
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let data = STANDARD.encode(std::fs::read(place("both.pfx")).unwrap());
        let pfx =
            |password: &str| json!({ "certificateType": "Encryption", "pfx": { "data": data, "password": password } });
        let (status, refused) = fabric.call("POST", "certificates", pfx("wrong")).await;
        assert_eq!(status, 400);
        assert!(refused["error"].as_str().unwrap().contains("password"), "{refused}");
        let (status, same) = fabric.call("POST", "certificates", pfx("p\u{e4}ss")).await;
        // One certificate may serve both purposes.
        assert_eq!(
            (status, same["sha256"].as_str()),
            (if legacy { 200 } else { 201 }, Some(thumbprint.as_str())),
            "{same}"
        );
    }
    let path = |kind: &str, thumbprint: &str| format!("certificates/{kind}/{thumbprint}");
    for kind in ["signing", "encryption"] {
        let (status, _) = fabric
            .call("PATCH", &path(kind, &thumbprint), json!({ "isPrimary": true }))
            .await;
        assert_eq!(status, 200);
    }
    assert_eq!(hex::encode(fabric.guardian().await.encryption().sha256()), thumbprint);

    // Suite B, and a signer of its own for the metadata.
    let mut made = Vec::new();
    for kind in ["Signing", "Encryption", "Communications"] {
        let ask = json!({ "certificateType": kind, "generate": { "commonName": kind, "suite": "p256" } });
        let thumbprint = add(&fabric, ask).await;
        let (status, _) = fabric
            .call("PATCH", &path(kind, &thumbprint), json!({ "isPrimary": true }))
            .await;
        assert_eq!(status, 200);
        made.push(thumbprint);
    }
    let document = fabric
        .client
        .get(format!("{}{METADATA_PATH}", fabric.url))
        .send()
        .await
        .unwrap();
    let metadata = Metadata::import(&document.bytes().await.unwrap(), "HGS").unwrap();
    assert_eq!(hex::encode(metadata.signer().sha256()), made[2]);
    assert_eq!(hex::encode(metadata.guardian().signing().sha256()), made[0]);
    for owner in [
        GuardianKeys::generate("A", fabric.clock.now(), &mut OsRandom).unwrap(),
        GuardianKeys::generate_p256("B", fabric.clock.now(), &mut OsRandom).unwrap(),
    ] {
        let (protector, _) = KeyProtector::create(&owner, &[metadata.guardian().clone()], &mut OsRandom).unwrap();
        let answer = fabric
            .roll(ServiceVersion::V1, &protector.to_xml(), &fabric.healthy())
            .await
            .unwrap();
        assert!(open_release(&answer, &fabric.host).is_ok());
    }

    for bad in [
        json!({ "certificateType": "Signing" }),
        json!({ "certificateType": "Signing", "pem": certificate }),
        json!({ "certificateType": "Signing", "pem": "x", "generate": { "commonName": "x" } }),
        json!({ "certificateType": "Signing", "generate": { "commonName": "" } }),
        json!({ "certificateType": "Signing", "token": { "keyId": "00", "certificate": "AAAA" } }),
        json!({ "certificateType": "Other", "generate": { "commonName": "x" } }),
        json!({ "certificateType": "Signing", "generat": { "commonName": "x" } }),
    ] {
        let (status, refused) = fabric.call("POST", "certificates", bad.clone()).await;
        assert_eq!(status, 400, "{bad}");
        assert!(refused["error"].is_string(), "{bad} {refused}");
    }
    fabric.stop().await;
}

#[actix_web::test]
async fn modes_offline_limit_and_sha_1_are_settings() {
    let fabric = Fabric::start(0).await;
    let as_started = json!({ "acceptedModes": ["Tpm", "ActiveDirectory", "HostKey"], "maxOfflineUnwraps": null, "allowSha1Oaep": false });
    assert_eq!(fabric.get_admin("settings").await, as_started);
    let protector = fabric.protector().0.with_max_offline_unwraps(9).to_xml();
    let mut set = as_started.clone();
    set["acceptedModes"] = json!(["Tpm"]);
    assert_eq!(fabric.call("PUT", "settings", set.clone()).await, (200, set.clone()));
    let (status, error) = fabric
        .roll(ServiceVersion::V2, &protector, &fabric.healthy())
        .await
        .unwrap_err();
    assert_eq!((status, error.code.as_str()), (403, "HealthCertificateException"));
    assert!(error.message.contains("mode"), "{}", error.message);

    set["acceptedModes"] = json!(["HostKey"]);
    set["maxOfflineUnwraps"] = json!(4);
    assert_eq!(fabric.call("PUT", "settings", set.clone()).await.0, 200);
    let answer = fabric
        .roll(ServiceVersion::V2, &protector, &fabric.healthy())
        .await
        .unwrap();
    assert_eq!(open_release(&answer, &fabric.host).unwrap().max_offline_unwraps, 4);

    let mut ask = RollTransportKeyRequest::new(protector.clone(), fabric.healthy());
    ask.transfer_key_encryption_algorithm = "http://www.w3.org/2001/04/xmlenc#rsa-oaep-mgf1p".to_owned();
    let path = ServiceVersion::V1.roll_path();
    assert_eq!(fabric.post(path, ask.encode()).await.status().as_u16(), 400);
    set["allowSha1Oaep"] = json!(true);
    assert_eq!(fabric.call("PUT", "settings", set).await.0, 200);
    let reply = fabric.post(path, ask.encode()).await;
    assert_eq!(reply.status().as_u16(), 200);
    let answer = hgs_protocol::wire::kps::RollTransportKeyResponse::parse(&reply.bytes().await.unwrap()).unwrap();
    assert!(open_release(&answer, &fabric.host).is_err(), "not SHA-256");
    assert_eq!(
        fabric
            .host
            .decrypt_oaep_sha1(&answer.encrypted_transfer_key)
            .unwrap()
            .len(),
        32
    );

    for bad in [
        json!({}),
        json!({ "acceptedModes": ["x"], "maxOfflineUnwraps": 1, "allowSha1Oaep": true }),
        json!([]),
    ] {
        assert_eq!(fabric.call("PUT", "settings", bad).await.0, 400);
    }
    fabric.stop().await;
}

#[actix_web::test]
async fn the_openapi_document_names_every_route_and_a_reviewer_changes_nothing() {
    let fabric = Fabric::start(0).await;
    let document = fabric.get_admin("openapi.json").await;
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    let mut calls = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        let path = path.replace("{type}", "signing").replace("{thumbprint}", "00");
        for (method, operation) in operations.as_object().unwrap() {
            assert!(operation["summary"].is_string(), "{method} {path}");
            let url = format!("{}/admin/v1{path}", fabric.admin);
            let method: reqwest::Method = method.to_ascii_uppercase().parse().unwrap();
            let reads = method == reqwest::Method::GET;
            let ask = fabric
                .client
                .request(method.clone(), &url)
                .bearer_auth(&fabric.reviewer);
            let status = ask.json(&json!({})).send().await.unwrap().status().as_u16();
            assert_eq!(status, if reads { 200 } else { 403 }, "{method} {path}");
            let status = fabric
                .client
                .request(method, url)
                .send()
                .await
                .unwrap()
                .status()
                .as_u16();
            assert_eq!(status, 401);
            calls += 1;
        }
    }
    assert!(calls >= 14, "{calls}");
    fabric.stop().await;
}
