//! What-if over thousands of hosts: in pages, few at a time, and never in an attestation's way.

use std::collections::BTreeSet;

use guarded_host_sim::machine::dials::Dials;
use hgs_protocol::wire::hgsa::Reply;
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _};

use crate::fixture::{Host, Service, V2, missing_tools};

const HOSTS: usize = 2000;
const PAGE: usize = 250;

/// So many more hosts with the boot log of `host01`, as if each had attested.
async fn multiply(service: &Service, hosts: usize) {
    let file = service.dir().join("data/attestation.db");
    let mut database = sqlx::SqliteConnection::connect(&format!("sqlite://{}", file.display()))
        .await
        .unwrap();
    let numbers = format!("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {hosts})");
    let name = "'many-' || substr('00000' || i, -5)";
    for rows in [
        format!(
            "{numbers} INSERT INTO tpm_host (name, ek_sha256, version, unproven, vendor, added_at) \
             SELECT {name}, CAST(substr('{zeros}' || i, -32) AS BLOB), version, unproven, vendor, added_at \
             FROM tpm_host, n WHERE tpm_host.name = 'host01'",
            zeros = "0".repeat(32)
        ),
        format!(
            "{numbers} INSERT INTO evidence (subject, name, sha256, place, at, readout, log) \
             SELECT subject, {name}, sha256, place, at, readout, log FROM evidence, n \
             WHERE evidence.name = 'host01' AND evidence.subject = 'host'"
        ),
    ] {
        let done = database.execute(sqlx::AssertSqlSafe(rows)).await.unwrap();
        assert_eq!(done.rows_affected(), hosts as u64);
    }
}

/// One page, after `after`, asked again while the service says that it is busy; how often it said so.
async fn page(service: &Service, after: &str, change: &Value) -> (Value, usize) {
    let path = format!("what-if?limit={PAGE}&after={after}");
    for busy in 0.. {
        let (status, answer) = service.admin_post(&path, change).await;
        match status {
            200 => return (answer, busy),
            503 => assert!(answer["error"].as_str().unwrap().contains("ask again"), "{answer}"),
            _ => panic!("{status}: {answer}"),
        }
        // As a client would that was told to ask again.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    unreachable!("the loop returns")
}

/// All pages: every host once, all with one answer. How many pages, and how often the service was busy.
async fn whole(service: &Service, change: &Value, healthy: bool) -> (usize, usize) {
    let (mut after, mut seen, mut pages, mut busy) = (String::new(), BTreeSet::new(), 0, 0);
    loop {
        let (answer, said) = page(service, &after, change).await;
        pages += 1;
        busy += said;
        for host in answer["hosts"].as_array().unwrap() {
            assert_eq!(
                (&host["passes_now"], &host["would_pass"]),
                (&json!(true), &json!(healthy)),
                "{host}"
            );
            assert!(seen.insert(host["host"].as_str().unwrap().to_owned()), "{host} twice");
        }
        match answer["next_after"].as_str() {
            Some(next) => after = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(seen.len(), HOSTS + 1);
    (pages, busy)
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_hosts_come_in_pages_and_attestations_go_on() {
    if missing_tools("what-if over thousands of hosts") {
        return;
    }
    let service = Service::start().await;
    let mut host = Host::boot(&Dials::default());
    service.register(&host, "host01").await;
    assert!(matches!(
        host.attest(&service, V2).await,
        Reply::HealthCertificate { .. }
    ));
    multiply(&service, HOSTS).await;

    // As many administrators at once as there are cores, and one more: each is answered in the end.
    let cores = std::thread::available_parallelism().unwrap().get();
    let service = std::sync::Arc::new(service);
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..cores + 1 {
        let service = service.clone();
        asking.spawn(async move { whole(&service, &json!({ "remove": ["host01"] }), false).await });
    }
    // Meanwhile the host attests, as often as its limit allows.
    let (mut attested, mut answers) = (0, Vec::new());
    while answers.len() < cores + 1 {
        tokio::select! {
            biased;
            Some(answer) = asking.join_next() => answers.push(answer.unwrap()),
            reply = host.attest(&service, V2), if attested < 15 => {
                assert!(matches!(reply, Reply::HealthCertificate { .. }), "{reply:?}");
                attested += 1;
            }
        }
    }
    assert!(attested > 5, "only {attested} attestations while policies were tried");
    assert!(
        answers.iter().all(|(pages, _)| *pages == HOSTS / PAGE + 1),
        "{answers:?}"
    );
    assert!(
        answers.iter().any(|(_, busy)| *busy > 0),
        "no bound was met: {answers:?}"
    );
}
