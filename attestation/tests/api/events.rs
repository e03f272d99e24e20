//! Events over the administrators' interface, of real hosts.

use std::time::Duration;

use guarded_host_sim::machine::dials::Dials;
use hgs_protocol::wire::hgsa::Reply;
use serde_json::{Value, json};

use crate::fixture::{Host, Service, V2, missing_tools};

/// Ids, as a reviewer reads them.
async fn ids(service: &Service, query: &str) -> Vec<u64> {
    let (events, _) = read(service, query).await;
    events.iter().map(|event| event["Id"].as_u64().unwrap()).collect()
}

/// Events, as a reviewer reads them, and where the next page begins.
async fn read(service: &Service, query: &str) -> (Vec<Value>, Option<String>) {
    let url = format!("{}/admin/v1/events?{query}", service.admin);
    let answer = service
        .client
        .get(url)
        .bearer_auth(&service.reviewer)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200, "{query}");
    let next = answer
        .headers()
        .get("next-before")
        .map(|next| next.to_str().unwrap().to_owned());
    (answer.json().await.unwrap(), next)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attestation_gives_the_products_events_under_one_activity() {
    if missing_tools("events of attestations") {
        return;
    }
    let service = Service::start().await;
    let mut unknown = Host::boot(&Dials::default());
    assert!(matches!(unknown.attest(&service, V2).await, Reply::Error { .. }));
    let mut healthy = Host::boot(&Dials::default());
    service.register(&healthy, "host01").await;
    assert!(matches!(
        healthy.attest(&service, V2).await,
        Reply::HealthCertificate { .. }
    ));
    let mut failing = Host::boot(&Dials {
        iommu: false,
        hibernation_disabled: false,
        ..Dials::default()
    });
    service.register(&failing, "host02").await;
    assert!(matches!(failing.attest(&service, V2).await, Reply::Error { .. }));

    let product = "1203,1500,1508,1510,1513,1519,1523,1524,1533,1534,1535,1536,1537,1538,1539,1540,1541,1542";
    let query = format!("id={product}");
    assert_eq!(ids(&service, &query).await, [1539, 1533, 1203, 1523, 1203, 1500]);
    let (events, next) = read(&service, &query).await;
    assert_eq!(next, None);
    for event in &events {
        assert_eq!(
            event["ProviderName"],
            "Microsoft-Windows-HostGuardianService-Attestation"
        );
        assert_eq!(
            event["Data"]["EndorsementKeyHash"].as_str().unwrap().len(),
            64,
            "{event}"
        );
    }
    let activity = |event: &Value| event["ActivityId"].as_str().unwrap().to_owned();
    assert!(events[..3].iter().all(|event| activity(event) == activity(&events[0])));
    assert_ne!(activity(&events[2]), activity(&events[3]));
    let iommu = &events[1];
    assert_eq!(
        (&iommu["Level"], &iommu["LogName"]),
        (
            &json!("Error"),
            &json!("Microsoft-Windows-HostGuardianService-Attestation/Admin")
        )
    );
    assert_eq!(
        (&iommu["Data"]["HostName"], &iommu["Data"]["AttestationSubstatus"]),
        (&json!("host02"), &json!("Iommu"))
    );
    let message = iommu["Message"].as_str().unwrap();
    assert!(
        message.contains("IommuEnabled: expected") && message.contains("DMA protection"),
        "{message}"
    );
    assert_eq!(events[3]["Data"]["AttestationStatus"], "Passed");

    // Page by page, also through the events of one row, it is the same.
    let (mut paged, mut before) = (Vec::new(), String::new());
    loop {
        let (page, next) = read(&service, &format!("{query}&newest=2{before}")).await;
        paged.extend(page);
        match next {
            Some(next) => before = format!("&before={next}"),
            None => break,
        }
    }
    assert_eq!(paged, events);
    assert_eq!(ids(&service, &format!("{query}&level=error")).await, [1539, 1533, 1500]);
    assert!(ids(&service, "since=2100-01-01T00:00:00Z").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn administrators_changes_signers_and_a_moved_clock_are_events() {
    let service = Service::start().await;
    let (status, _) = service
        .admin_post("policies/hgs_iommuenabled/disable", &json!({}))
        .await;
    assert_eq!(status, 200);
    let (_, made) = service.admin_post("attestation-signers", &json!({})).await;
    let activate = format!("attestation-signers/{}/activate", made["sha256"].as_str().unwrap());
    let body = json!({ "registered_with_key_protection": true, "at_once": true });
    assert_eq!(service.admin_post(&activate, &body).await.0, 200);
    service.set_mode("HostKey").await;
    // What was refused has changed nothing.
    assert_eq!(
        service.admin_post("policies/Hgs_CiPolicy/disable", &json!({})).await.0,
        409
    );

    assert_eq!(
        ids(&service, "id=51020,51021,51010,51011").await,
        [51021, 51011, 51010, 51020]
    );
    let (events, _) = read(&service, "id=51020").await;
    assert_eq!(events[0]["Data"]["Policy"], "Hgs_IommuEnabled");
    assert_eq!(events[0]["ProviderName"], "GuardedFabricLab-Attestation");
    assert!(events[0]["Data"]["By"].as_str().unwrap().starts_with("administrator "));
    let (calls, _) = read(&service, "id=53001&newest=1").await;
    assert_eq!(calls[0]["Data"]["Path"], "/admin/v1/policies/Hgs_CiPolicy/disable");

    service.clock.advance(Duration::from_secs(3600));
    crate::signers::eventually("the moved clock is told", async || {
        ids(&service, "id=53003").await.len() == 1
    })
    .await;
    let (moved, _) = read(&service, "id=53003").await;
    let seconds = moved[0]["Data"]["Seconds"].as_i64().unwrap();
    assert!((3590..=3610).contains(&seconds), "{moved:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_query_is_refused_with_what_to_write_and_nobody_reads_without_a_token() {
    let service = Service::start().await;
    for (query, words) in [
        ("level=bad", "choose Critical"),
        ("id=1500;1508", "separated by commas"),
        ("since=yesterday", "2026-01-31T12:00:00Z"),
        ("newest=0", "1 to 1000"),
        ("before=7", "RecordId"),
        (
            "lvl=Error",
            "unknown field `lvl`, expected one of `id`, `level`, `since`, `newest`, `before`",
        ),
        ("id=1&id=2", "duplicate field `id`"),
    ] {
        let url = format!("{}/admin/v1/events?{query}", service.admin);
        let answer = service
            .client
            .get(&url)
            .bearer_auth(&service.reviewer)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 400, "{query}");
        let body: Value = answer.json().await.unwrap();
        assert!(body["error"].as_str().unwrap().contains(words), "{query}: {body}");
        assert_eq!(service.client.get(&url).send().await.unwrap().status(), 401);
    }
}
