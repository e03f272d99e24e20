//! Events over the administrators' interface.

use std::time::{Duration, Instant};

use hgs_protocol::wire::kps::ServiceVersion;
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _};

use crate::{fabric::Fabric, postgres::own_database};

fn ids(events: &Value) -> Vec<u64> {
    let events = events.as_array().unwrap().iter();
    events.map(|event| event["Id"].as_u64().unwrap()).collect()
}

#[actix_web::test]
async fn a_release_a_refusal_and_every_change_are_events_with_nothing_secret() {
    let fabric = Fabric::start(0).await;
    let (protector, key) = fabric.protector();
    let protector = protector.to_xml();
    let healthy = fabric.healthy();
    fabric.roll(ServiceVersion::V2, &protector, &healthy).await.unwrap();
    let (status, code) = fabric.refusal(&protector, b"no certificate").await;
    assert_eq!((status, code.as_str()), (403, "HealthCertificateException"));
    let make = json!({ "certificateType": "Signing", "generate": { "commonName": "HGS 2" } });
    let (_, made) = fabric.call("POST", "certificates", make).await;
    let path = format!("certificates/signing/{}", made["sha256"].as_str().unwrap());
    assert_eq!(fabric.call("PATCH", &path, json!({ "isPrimary": true })).await.0, 200);
    let deny = json!({ "denyIssuedBefore": 1_700_000_000 });
    assert_eq!(fabric.call("PUT", "attestation-signers/policy", deny).await.0, 204);

    let events = fabric.get_admin("events?id=52001,52002,52010,52012,52020,52021").await;
    assert_eq!(ids(&events), [52012, 52021, 52020, 52002, 52001, 52010]);
    for event in events.as_array().unwrap() {
        assert_eq!(
            event["ProviderName"], "GuardedFabricLab-KeyProtection",
            "no id of the product's is known"
        );
    }
    let refused = fabric.get_admin("events?level=Error").await;
    assert_eq!(ids(&refused), [52002]);
    assert_eq!(refused[0]["Data"]["ErrorCode"], "HealthCertificateException");
    assert!(
        refused[0]["Message"].as_str().unwrap().contains("Compare the clocks"),
        "{refused}"
    );
    let released = fabric.get_admin("events?id=52001&newest=1").await;
    assert_eq!(released[0]["Level"], "Information");
    assert!(released[0]["Data"]["HealthCertificate"].is_string(), "{released}");
    let all = fabric.get_admin("events").await.to_string();
    let key = hex::encode(key.expose_transport_key().expose());
    assert!(!all.contains(&key) && !all.contains(&fabric.administrator), "{all}");

    let (status, answer) = fabric.call("GET", "events?level=worst", json!(null)).await;
    assert_eq!(status, 400);
    assert!(
        answer["error"].as_str().unwrap().contains("choose Critical, Error"),
        "{answer}"
    );
    fabric.stop().await;
}

#[actix_web::test]
async fn a_database_that_was_away_is_an_event_once_it_is_back() {
    let Some(url) = own_database("an event about PostgreSQL that was away").await else {
        return;
    };
    let fabric = Fabric::start_over(kps::Options::default(), Some(url.clone())).await;
    let protector = fabric.protector().0.to_xml();
    let certificate = fabric.healthy();
    // What an administrator of PostgreSQL does for maintenance: nobody is let in, and who is there is sent away.
    let (place, _) = url.split_once('?').unwrap_or((&url, ""));
    let (_, name) = place.rsplit_once('/').unwrap();
    let server = std::env::var("TEST_POSTGRES_URL").unwrap();
    let mut database = sqlx::PgConnection::connect(&server).await.unwrap();
    let run = |text: String| sqlx::AssertSqlSafe(text);
    database
        .execute(run(format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false")))
        .await
        .unwrap();
    let away = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'");
    database.execute(run(away)).await.unwrap();
    let (status, code) = fabric.refusal(&protector, &certificate).await;
    assert_eq!((status, code.as_str()), (503, "UnavailableException"));
    let (status, answer) = fabric.call("GET", "events", json!(null)).await;
    assert_eq!(status, 503, "{answer}");
    database
        .execute(run(format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true")))
        .await
        .unwrap();

    let begun = Instant::now();
    let told = loop {
        let (status, events) = fabric.call("GET", "events?id=53002", json!(null)).await;
        if status == 200 && events != json!([]) {
            break events;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "nothing is told: {status} {events}"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    assert_eq!(told[0]["Level"], "Error");
    assert!(told[0]["Data"]["RowsNotWritten"].as_u64().unwrap() >= 1, "{told}");
    assert!(
        told[0]["Message"].as_str().unwrap().contains("database's log"),
        "{told}"
    );
    fabric.stop().await;
}
