//! The whole service on PostgreSQL: two replicas over one database.

use hgs_protocol::{
    env::{OsRandom, Random},
    health::{AcceptanceRules, HealthCertificate, TrustedSigner},
    wire::hgsa::{ErrorKind, Reply},
};
use hgs_service::settings::ServiceArgs;
use serde_json::json;
use sqlx::{Connection as _, Executor as _};

use attestation::Options;

use crate::{
    fixture::Service,
    host_keys::{Keys, register_host_key},
    signers::{certificate, eventually, published},
};

/// A database of the test's own; none, and says so, where there is no PostgreSQL.
async fn own_database(test: &str) -> Option<String> {
    let Ok(url) = std::env::var("TEST_POSTGRES_URL") else {
        eprintln!("SKIPPED {test}: TEST_POSTGRES_URL is not set (./lab test sets it)");
        return None;
    };
    let name: [u8; 8] = (&mut OsRandom as &mut dyn Random).bytes();
    let name = format!("api_{}", hex::encode(name));
    let mut server = sqlx::PgConnection::connect(&url).await.unwrap();
    let create = format!("CREATE DATABASE {name}");
    server.execute(sqlx::AssertSqlSafe(create)).await.unwrap();
    let (base, query) = url
        .split_once('?')
        .map_or((url.as_str(), ""), |(base, query)| (base, query));
    let (server, _) = base.rsplit_once('/').unwrap();
    Some(format!("{server}/{name}?{query}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_over_one_postgresql_are_one_service() {
    let Some(url) = own_database("two replicas over PostgreSQL").await else {
        return;
    };
    let on_postgres = |_: &std::path::Path, args: ServiceArgs| ServiceArgs {
        database_url: Some(url),
        ..args
    };
    let first = Service::start_with(Options::default(), on_postgres).await;
    let second = first.at(first.started_as(first.args()).await);

    // One registers, the other attests, with one signer between them.
    first.set_mode("HostKey").await;
    let keys = Keys::new();
    register_host_key(&first, "host01", &keys.host.public().spki_der()).await;
    eventually("the second replica follows the mode", async || {
        second.admin_get("operation-mode").await["mode"] == "HostKey"
    })
    .await;
    let by_second = certificate(&second, &keys).await;
    let by_first = certificate(&first, &keys).await;
    let signer = published(&first).await;
    assert_eq!(published(&second).await, signer);
    let by = |signer: &[u8], certificate: &HealthCertificate| {
        let trusted = [TrustedSigner::from_certificate(signer).unwrap()];
        certificate
            .accept(&trusted, first.clock.now(), &AcceptanceRules::default())
            .is_ok()
    };
    assert!(by(&signer[0], &by_first) && by(&signer[0], &by_second));

    // A new signer through one signs in the other.
    let (_, made) = second.admin_post("attestation-signers", &json!({})).await;
    let activate = format!("attestation-signers/{}/activate", made["sha256"].as_str().unwrap());
    let body = json!({ "registered_with_key_protection": true, "at_once": true });
    assert_eq!(first.admin_post(&activate, &body).await.0, 200);
    eventually("the second replica signs with the new signer", async || {
        second.admin_get("attestation-signer").await["sha256"] == made["sha256"]
    })
    .await;
    assert!(by(&crate::signers::der(&made), &certificate(&second, &keys).await));

    // A switch of the mode reaches the other replica within seconds; so does a removal, at once.
    second.set_mode("Tpm").await;
    let wrong_mode = |reply: &Reply| {
        matches!(
            reply,
            Reply::Error {
                kind: ErrorKind::OperationMode(_),
                ..
            }
        )
    };
    eventually("the first replica follows the mode", async || {
        wrong_mode(&first.ask_host_key(&keys.request()).await)
    })
    .await;
    first.set_mode("HostKey").await;
    assert_eq!(second.admin_delete("host-keys/host01").await, 204);
    let unauthorized = Reply::Error {
        kind: ErrorKind::Unauthorized,
        retryable: false,
    };
    assert_eq!(first.ask_host_key(&keys.request()).await, unauthorized);

    // Each writes a chain of its own, and either verifies both.
    for service in [&first, &second] {
        let (status, found) = service.admin_post("audit/verify", &json!([])).await;
        assert_eq!((status, &found["faults"]), (200, &json!([])), "{found}");
        assert_eq!(found["heads"].as_array().unwrap().len(), 2, "{found}");
    }
    let (_, kept) = first.admin_post("audit/verify", &json!([])).await;
    let edit = "UPDATE audit SET body = '{}' WHERE sequence = 1";
    let mut database = sqlx::PgConnection::connect(first.args().database_url.as_deref().unwrap())
        .await
        .unwrap();
    assert_eq!(database.execute(edit).await.unwrap().rows_affected(), 2);
    let (_, found) = second.admin_post("audit/verify", &kept["heads"]).await;
    assert!(found["faults"].as_array().unwrap().len() >= 2, "{found}");
}
