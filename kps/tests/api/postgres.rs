//! The whole service on PostgreSQL: two replicas over one database.

use std::time::{Duration, Instant};

use hgs_protocol::{
    env::{OsRandom, Random},
    protector::open_release,
    wire::kps::ServiceVersion,
};
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _};

use crate::fabric::Fabric;

/// A database of the test's own; none, and says so, where there is no PostgreSQL.
pub(crate) async fn own_database(test: &str) -> Option<String> {
    let Ok(url) = std::env::var("TEST_POSTGRES_URL") else {
        eprintln!("SKIPPED {test}: TEST_POSTGRES_URL is not set (./lab test sets it)");
        return None;
    };
    let name: [u8; 8] = (&mut OsRandom as &mut dyn Random).bytes();
    let name = format!("api_{}", hex::encode(name));
    let mut server = sqlx::PgConnection::connect(&url).await.unwrap();
    let create = format!("CREATE DATABASE {name}");
    server.execute(sqlx::AssertSqlSafe(create)).await.unwrap();
    let (base, query) = url.split_once('?').unwrap_or((url.as_str(), ""));
    let (server, _) = base.rsplit_once('/').unwrap();
    Some(format!("{server}/{name}?{query}"))
}

#[actix_web::test]
async fn two_replicas_over_one_postgresql_are_one_service() {
    let Some(url) = own_database("two replicas of the KPS over PostgreSQL").await else {
        return;
    };
    let mut fabric = Fabric::start_over(kps::Options::default(), Some(url.clone())).await;
    let settings = fabric.settings.clone().resolve("kps").unwrap();
    let replica = kps::start(&settings, &kps::Options::default(), fabric.clock.clone())
        .await
        .unwrap();
    let handles = replica.handles();
    let addresses = [
        (fabric.url.clone(), fabric.admin.clone()),
        (replica.service_url.clone(), replica.admin_url.clone()),
    ];
    tokio::spawn(replica.run());

    // One guardian: a protector made for it opens at both, and what one gave out the other takes.
    let mut protector = fabric.protector().0.to_xml();
    let certificate = fabric.healthy();
    for (url, admin) in addresses.iter().chain(&addresses) {
        (fabric.url, fabric.admin) = (url.clone(), admin.clone());
        assert_eq!(fabric.guardian().await, fabric.hgs);
        let answer = fabric.roll(ServiceVersion::V2, &protector, &certificate).await.unwrap();
        assert!(open_release(&answer, &fabric.host).is_ok());
        protector = answer.egress_protector;
    }

    // Settings of one reach the other within seconds.
    let settings = json!({ "acceptedModes": ["Tpm"], "maxOfflineUnwraps": 0, "allowSha1Oaep": false });
    let (status, answer) = fabric.call("PUT", "settings", settings).await;
    assert_eq!(status, 200, "{answer}");
    (fabric.url, fabric.admin) = addresses[0].clone();
    let begun = Instant::now();
    while fabric.roll(ServiceVersion::V2, &protector, &certificate).await.is_ok() {
        assert!(
            begun.elapsed() < Duration::from_secs(15),
            "the first replica does not follow"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    // Each writes a chain of its own, and either verifies both.
    let mut kept = Value::Null;
    for (_, admin) in &addresses {
        fabric.admin.clone_from(admin);
        let (status, found) = fabric.call("POST", "audit/verify", json!({ "heads": [] })).await;
        assert_eq!((status, &found["faults"]), (200, &json!([])), "{found}");
        assert_eq!(found["heads"].as_array().unwrap().len(), 2, "{found}");
        kept = found["heads"].clone();
    }
    let mut database = sqlx::PgConnection::connect(&url).await.unwrap();
    let cut = database.execute("DELETE FROM audit WHERE sequence = 1").await.unwrap();
    assert_eq!(cut.rows_affected(), 2);
    let (_, found) = fabric.call("POST", "audit/verify", json!({ "heads": kept })).await;
    assert!(found["faults"].as_array().unwrap().len() >= 2, "{found}");
    for handle in handles {
        handle.stop(true).await;
    }
    fabric.stop().await;
}
