//! History, drift and what-if, over the admin interface with a real host.

use guarded_host_sim::machine::dials::Dials;
use hgs_protocol::wire::hgsa::Reply;
use serde_json::json;

use crate::fixture::{Host, Service, V1, V2, missing_tools};

#[tokio::test(flavor = "multi_thread")]
async fn a_hosts_history_names_status_policy_and_remedy() {
    if missing_tools("history") {
        return;
    }
    let service = Service::start().await;
    let mut host = Host::boot(&Dials {
        secure_boot: false,
        ..Dials::default()
    });
    service.register(&host, "host01").await;
    for version in [V1, V2, V1] {
        let refused = host.attest(&service, version).await;
        assert!(matches!(refused, Reply::Error { .. }), "{refused:?}");
    }
    let rows = service.admin_get("tpm-hosts/host01/attestations?limit=2").await;
    assert_eq!(rows.as_array().unwrap().len(), 2);
    let decision = &rows[0]["decision"];
    assert_eq!(decision["reply"], "PolicyEvaluationErrorReply");
    let status = &decision["host_status"];
    assert_eq!(
        (&status["status"], &status["code"]),
        (&json!("InsecureHostConfiguration"), &json!(303))
    );
    assert!(
        status["substatus"].as_str().unwrap().starts_with("SecureBoot"),
        "{status}"
    );
    assert_eq!(status["documented_bits"], 1, "{status}");
    let verdicts = decision["verdicts"].as_array().unwrap();
    let secure_boot = verdicts
        .iter()
        .find(|row| row["policy"] == "SecureBootEnabled")
        .unwrap();
    for column in ["decided_by", "expected", "seen", "remedy"] {
        assert!(!secure_boot[column].as_str().unwrap().is_empty(), "{column}");
    }
    let cursor = rows[1]["cursor"].as_str().unwrap();
    let next = service
        .admin_get(&format!("tpm-hosts/host01/attestations?before={cursor}"))
        .await;
    assert_eq!(next.as_array().unwrap().len(), 1);
    assert_eq!(service.admin_get("tpm-hosts/host02/attestations").await, json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_is_shown_adopted_and_tried_before() {
    if missing_tools("drift") {
        return;
    }
    let service = Service::start().await;
    let old = Host::boot(&Dials::default());
    service.register(&old, "class-a").await;
    let mut host = Host::boot(&Dials {
        secure_boot: false,
        ..Dials::default()
    });
    service.register(&host, "host01").await;
    assert_eq!(service.admin_delete("tpm-baselines/host01").await, 204);
    assert!(matches!(host.attest(&service, V2).await, Reply::Error { .. }));

    let answer = service.admin_get("tpm-hosts/host01/compare?baseline=class-a").await;
    let changes = answer["comparison"]["changes"].as_array().unwrap();
    let secure_boot = changes
        .iter()
        .find(|change| change["after"][1]["about"] == "SecureBoot")
        .unwrap();
    assert_eq!(
        (&secure_boot["pcr"], &secure_boot["change"]),
        (&json!(7), &json!("changed"))
    );
    assert_eq!(
        (
            &secure_boot["before"][1]["content"],
            &secure_boot["after"][1]["content"]
        ),
        (&json!("01"), &json!("00"))
    );

    // What would the new baseline do? Settings would pass; Secure Boot itself is still off.
    let log = service.admin_get("tpm-hosts/host01/log").await["log"].clone();
    let change = json!({ "add_baselines": [{ "name": "class-b", "content": log }], "disable": ["Hgs_IommuEnabled"] });
    let (status, answer) = service.admin_post("what-if", &change).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["without_a_log"], json!(["class-a"]));
    let failing: Vec<&str> = answer["hosts"][0]["failures"]
        .as_array()
        .unwrap()
        .iter()
        .map(|failure| failure["policy"].as_str().unwrap())
        .collect();
    assert_eq!(failing, ["SecureBootEnabled"], "{answer}");
    // Trying changed nothing.
    assert_eq!(service.admin_get("tpm-baselines").await.as_array().unwrap().len(), 1);
    let (status, answer) = service
        .admin_post("what-if", &json!({ "disable": ["Hgs_CiPolicy"] }))
        .await;
    assert_eq!(status, 400, "{answer}");

    let (status, answer) = service
        .admin_post("tpm-hosts/host01/baseline", &json!({ "name": "class-b" }))
        .await;
    assert_eq!(status, 201, "{answer}");
    let again = service
        .admin_post("tpm-hosts/host01/baseline", &json!({ "name": "class-b" }))
        .await;
    assert_eq!(again.0, 200, "the same thing twice is no error");
    let after = service.admin_get("tpm-hosts/host01/compare?baseline=class-b").await;
    assert_eq!(after["comparison"]["same"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_host_is_newly_failing_when_its_baseline_would_go() {
    if missing_tools("what-if") {
        return;
    }
    let service = Service::start().await;
    let mut host = Host::boot(&Dials::default());
    service.register(&host, "host01").await;
    assert!(matches!(
        host.attest(&service, V2).await,
        Reply::HealthCertificate { .. }
    ));
    let (_, same) = service.admin_post("what-if", &json!({})).await;
    assert_eq!(
        (&same["would_pass"], &same["newly_failing"]),
        (&json!(1), &json!([])),
        "{same}"
    );
    let (_, gone) = service.admin_post("what-if", &json!({ "remove": ["host01"] })).await;
    assert_eq!(
        (&gone["would_fail"], &gone["newly_failing"]),
        (&json!(1), &json!(["host01"])),
        "{gone}"
    );
    // What was kept of a host goes with it.
    let kept = async || {
        let url = format!("{}/admin/v1/tpm-hosts/host01/log", service.admin);
        let request = service.client.get(url).bearer_auth(&service.token);
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(kept().await, 200);
    assert_eq!(service.admin_delete("tpm-hosts/host01").await, 204);
    assert_eq!(kept().await, 404);
}
