//! What a host is told when more is asked at once than the service takes on.

use hgs_protocol::wire::kps::{ErrorMessage, METADATA_PATH, RollTransportKeyRequest, ServiceVersion};
use sqlx::Connection as _;

use crate::fabric::Fabric;

#[actix_web::test]
async fn beyond_its_capacity_the_service_says_at_once_that_it_is_busy_and_loses_nothing() {
    let fabric = Fabric::start(0).await;
    let body = RollTransportKeyRequest::new(fabric.protector().0.to_xml(), fabric.healthy()).encode();
    let roll = || {
        let request = fabric
            .client
            .post(format!("{}{}", fabric.url, ServiceVersion::V2.roll_path()));
        request.body(body.clone()).send()
    };
    // While somebody else writes to the database no decision becomes durable, so nothing is answered that was
    // taken on: each request keeps its place.
    let file = fabric.directory.path().join("data/kps.db");
    let url = format!("sqlite://{}", file.display());
    let mut elsewhere = sqlx::SqliteConnection::connect(&url).await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut elsewhere).await.unwrap();

    let too_many = kps::capacity() + 20;
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..too_many {
        running.spawn(roll());
    }
    for _ in 0..too_many - kps::capacity() {
        let reply = running.join_next().await.unwrap().unwrap().unwrap();
        assert_eq!(reply.status().as_u16(), 503);
        assert_eq!(reply.headers()["retry-after"], "1");
        let error = ErrorMessage::parse(&reply.bytes().await.unwrap()).unwrap();
        assert_eq!(error.code, "UnavailableException");
    }
    // What needs no database does not wait for those that do.
    let metadata = || fabric.client.get(format!("{}{METADATA_PATH}", fabric.url)).send();
    assert_eq!(metadata().await.unwrap().status().as_u16(), 200);

    sqlx::query("ROLLBACK").execute(&mut elsewhere).await.unwrap();
    while let Some(reply) = running.join_next().await {
        assert_eq!(reply.unwrap().unwrap().status().as_u16(), 200);
    }
    assert_eq!(metadata().await.unwrap().status().as_u16(), 200);
    assert_eq!(roll().await.unwrap().status().as_u16(), 200);
    let rows = fabric.get_admin("audit?limit=1000").await;
    let released = rows
        .as_array()
        .unwrap()
        .iter()
        .filter(|row| row["body"]["outcome"] == "Released");
    assert_eq!(
        released.count(),
        kps::capacity() + 1,
        "a row for each that was taken on, and for no other"
    );
    fabric.stop().await;
}
