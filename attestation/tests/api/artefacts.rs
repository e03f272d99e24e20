//! Artefacts as an administrator registers them, and who may.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use guarded_host_sim::machine::dials::Dials;
use hgs_protocol::wire::{hgsa::Reply, vsm::encode_rsa1};
use serde_json::{Value, json};

use crate::fixture::{Host, Service, V1, V2, missing_tools};

fn passed(reply: &Reply) -> bool {
    matches!(reply, Reply::HealthCertificate { .. })
}

fn file(name: &str, content: &[u8], version: &str) -> Value {
    json!({ "name": name, "content": BASE64_STANDARD.encode(content), "policy_version": version })
}

/// A host passes with a key, a baseline and a policy of one version; both versions live side by side.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_passes_with_artefacts_of_one_version_only() {
    if missing_tools("policy versions") {
        return;
    }
    let service = Service::start().await;
    let mut host = Host::boot(&Dials::default());
    service.register_forced(&host, "host01").await;
    let policy = Dials::default().ci_policy.unwrap();
    let add = async |path: &str, body: &Value| {
        let (status, answer) = service.admin_post(path, body).await;
        assert_eq!(status, 201, "{path}: {answer}");
    };
    assert!(
        !passed(&host.attest(&service, V1).await),
        "nothing but the host is registered"
    );
    add("tpm-baselines", &file("class-v2", &host.log, "v2")).await;
    add("ci-policies", &file("ci-v2", &policy, "v2")).await;
    assert!(!passed(&host.attest(&service, V1).await), "a v1 host, artefacts of v2");
    add("tpm-baselines", &file("class-v1", &host.log, "v1")).await;
    assert!(!passed(&host.attest(&service, V1).await), "baseline v1, policy v2");
    add("ci-policies", &file("ci-v1", &policy, "v1")).await;
    assert!(passed(&host.attest(&service, V1).await));
    let row = service.admin_get("attestations").await[0]["body"].clone();
    assert_eq!((&row["policy_version"], &row["unproven"]), (&json!("v1"), &json!(true)));

    // The same host by certificate, as v2: tried first.
    service.trust_maker(&host, "maker").await;
    let body = json!({ "name": "host01-v2", "ek_certificate": BASE64_STANDARD.encode(&host.certificate) });
    add("tpm-hosts", &body).await;
    assert!(passed(&host.attest(&service, V2).await));
    let row = service.admin_get("attestations").await[0]["body"].clone();
    assert_eq!(
        (&row["policy_version"], &row["host"]),
        (&json!("v2"), &json!("host01-v2"))
    );
    assert_eq!(service.admin_delete("ci-policies/ci-v2").await, 204);
    assert!(passed(&host.attest(&service, V2).await), "v2 fails, then v1 passes");
    let row = service.admin_get("attestations").await[0]["body"].clone();
    assert_eq!((&row["policy_version"], &row["host"]), (&json!("v1"), &json!("host01")));
    assert_eq!(service.admin_delete("tpm-trust/maker-0").await, 204);
    assert_eq!(service.admin_delete("tpm-trust/maker-0").await, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_staged_judges_nobody_until_it_is_put_in_force() {
    if missing_tools("staging") {
        return;
    }
    let service = Service::start().await;
    let mut host = Host::boot(&Dials::default());
    service.register(&host, "host01").await;
    assert_eq!(service.admin_delete("ci-policies/host01").await, 204);
    let mut body = file("staged", &Dials::default().ci_policy.unwrap(), "v2");
    body["stage"] = json!(true);
    assert_eq!(service.admin_post("ci-policies", &body).await.0, 201);
    assert!(!passed(&host.attest(&service, V2).await));
    assert_eq!(service.admin_get("ci-policies").await[0]["staged"], true);
    let (status, answer) = service.admin_post("ci-policies/staged/put-in-force", &json!({})).await;
    assert_eq!((status, &answer["staged"]), (200, &json!(false)));
    assert!(passed(&host.attest(&service, V2).await));
    let missing = service.admin_post("ci-policies/none/put-in-force", &json!({})).await;
    assert_eq!(missing.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_registered_from_its_platform_identifier() {
    if missing_tools("a platform identifier") {
        return;
    }
    let service = Service::start().await;
    let mut host = Host::boot(&Dials::default());
    service.register(&host, "host01").await;
    assert_eq!(service.admin_delete("tpm-hosts/host01").await, 204);
    let xml = |certificate: &str| {
        let key = BASE64_STANDARD.encode(encode_rsa1(&host.ek));
        let text = format!(
            "\u{feff}<?xml version=\"1.0\" encoding=\"utf-8\"?>\r\n<PlatformIdentifier><Name>host01</Name>\
             <EKpub>{key}</EKpub><EKcert>{certificate}</EKcert></PlatformIdentifier>"
        );
        BASE64_STANDARD.encode(text)
    };
    let bare = json!({ "name": "host01", "platform_identifier": xml("Error: no certificate was found.") });
    let (status, answer) = service.admin_post("tpm-hosts", &bare).await;
    assert_eq!(status, 400);
    assert!(
        answer["error"]
            .as_str()
            .unwrap()
            .contains("no endorsement key certificate"),
        "{answer}"
    );
    let whole = json!({ "name": "host01", "platform_identifier": xml(&BASE64_STANDARD.encode(&host.certificate)) });
    let (status, answer) = service.admin_post("tpm-hosts", &whole).await;
    assert_eq!((status, &answer["unproven"]), (201, &json!(false)), "{answer}");
    assert!(passed(&host.attest(&service, V2).await));
    let nonsense = json!({ "name": "x", "platform_identifier": BASE64_STANDARD.encode("<a/>") });
    assert_eq!(service.admin_post("tpm-hosts", &nonsense).await.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn dump_keys_come_from_a_hash_and_policies_from_compiled_files_only() {
    let service = Service::start().await;
    let hash = "ab".repeat(32);
    let key = json!({ "name": "dumps", "publicKeyHash": hash });
    assert_eq!(service.admin_post("dump-keys", &key).await.0, 201);
    assert_eq!(service.admin_post("dump-keys", &key).await.0, 200);
    assert_eq!(service.admin_get("dump-keys").await[0]["sha256"], hash);
    let other = json!({ "name": "dumps", "sha256": "cd".repeat(32) });
    assert_eq!(service.admin_post("dump-keys", &other).await.0, 409);
    for bad in [
        json!({ "name": "x" }),
        json!({ "name": "x", "sha256": "12" }),
        json!({ "name": "x", "content": "AAAA" }),
    ] {
        assert_eq!(service.admin_post("dump-keys", &bad).await.0, 400, "{bad}");
    }
    assert_eq!(service.admin_delete("dump-keys/dumps").await, 204);

    let (status, answer) = service
        .admin_post("ci-policies", &file("xml", b"<?xml version=\"1.0\"?><SiPolicy/>", "v2"))
        .await;
    assert_eq!(status, 400);
    assert!(
        answer["error"].as_str().unwrap().contains("ConvertFrom-CIPolicy"),
        "{answer}"
    );
    let corpus = std::env::var("LAB_CORPUS").unwrap_or_else(|_| "../../shared/corpus".to_owned());
    let Ok(policy) = std::fs::read(format!("{corpus}/cipolicy/wdac-test-policy.bin")) else {
        println!("skipped: no corpus with cipolicy/wdac-test-policy.bin");
        return;
    };
    let (status, answer) = service.admin_post("ci-policies", &file("real", &policy, "v2")).await;
    let expected = hex::encode(hgs_protocol::crypto::sha256(&policy));
    assert_eq!((status, &answer["sha256"]), (201, &json!(expected)));
}

#[tokio::test(flavor = "multi_thread")]
async fn listings_come_in_pages_and_reviewers_only_read() {
    let service = Service::start().await;
    for number in 0..5 {
        let key = json!({ "name": format!("key {number}"), "sha256": format!("{number:02}").repeat(32) });
        assert_eq!(service.admin_post("dump-keys", &key).await.0, 201);
    }
    let mut names = Vec::new();
    let mut after = String::new();
    let mut pages = 0;
    loop {
        let url = format!("{}/admin/v1/dump-keys?limit=2&after={after}", service.admin);
        let request = service.client.get(url).bearer_auth(&service.reviewer);
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        let next = response.headers().get("next-after").cloned();
        let rows: Vec<Value> = response.json().await.unwrap();
        names.extend(rows.iter().map(|row| row["name"].as_str().unwrap().to_owned()));
        pages += 1;
        match next {
            Some(next) => after = next.to_str().unwrap().to_owned(),
            None => break,
        }
    }
    assert_eq!(pages, 3);
    assert_eq!(names, ["key 0", "key 1", "key 2", "key 3", "key 4"]);

    let document = service.admin_get("openapi.json").await;
    let mut asked = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        let path = path.replace("{name}", "none").replace("{sha256}", "none");
        for method in item.as_object().unwrap().keys() {
            let method: reqwest::Method = method.to_uppercase().parse().unwrap();
            let url = format!("{}/admin/v1{path}", service.admin);
            let bare = service.client.request(method.clone(), &url).send().await.unwrap();
            assert_eq!(bare.status(), 401, "{method} {path} without a token");
            let request = service.client.request(method.clone(), &url);
            let reviewed = request.bearer_auth(&service.reviewer).send().await.unwrap();
            let status = reviewed.status().as_u16();
            match method == reqwest::Method::GET {
                // What is missing, or a parameter, is another matter than a right.
                true => assert!(
                    matches!(status, 200 | 400 | 404),
                    "{method} {path} by a reviewer: {status}"
                ),
                false => assert_eq!(status, 403, "{method} {path} by a reviewer"),
            }
            asked += 1;
        }
    }
    assert!(asked >= 40, "{asked}");
}
