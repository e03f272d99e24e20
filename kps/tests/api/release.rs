//! Keys are released, rolled and released again.

use hgs_protocol::{
    protector::{KeyProtector, check_roll, open_release},
    wire::kps::{RollTransportKeyRequest, ServiceVersion},
};

use crate::fabric::Fabric;

#[actix_web::test]
async fn a_healthy_host_gets_both_keys_and_the_next_power_on_starts_from_the_egress_protector() {
    let fabric = Fabric::start(0).await;
    let (protector, key) = fabric.protector();
    let mut ingress = protector.to_xml();
    let mut expected = *key.expose_transport_key().expose();
    for version in [ServiceVersion::V1, ServiceVersion::V2] {
        let answer = fabric.roll(version, &ingress, &fabric.healthy()).await.unwrap();
        let keys = open_release(&answer, &fabric.host).unwrap();
        assert_eq!(keys.ingress.expose_transport_key().expose(), &expected);
        assert_ne!(keys.egress.expose_transport_key().expose(), &expected);
        check_roll(&ingress, &answer.egress_protector, &keys.egress).unwrap();
        expected = *keys.egress.expose_transport_key().expose();
        ingress = answer.egress_protector;
    }
    // The owner still opens what the service rolled.
    let opened = KeyProtector::parse(&ingress)
        .unwrap()
        .verify()
        .unwrap()
        .open(&fabric.owner, &mut hgs_protocol::env::OsRandom)
        .unwrap();
    assert_eq!(opened.transport_key().expose_transport_key().expose(), &expected);
    fabric.stop().await;
}

#[actix_web::test]
async fn offline_unwraps_are_the_least_of_wish_and_limit_and_travel_in_version_2_only() {
    let (none, three) = (Fabric::start(0).await, Fabric::start(3).await);
    for (fabric, wish, version, expected, length) in [
        (&none, 9, ServiceVersion::V2, 0, 12 + 84 + 4 + 16),
        (&three, 9, ServiceVersion::V2, 3, 12 + 104 + 16),
        (&three, 2, ServiceVersion::V2, 2, 12 + 104 + 16),
        (&three, 9, ServiceVersion::V1, 0, 12 + 84 + 16),
    ] {
        let protector = fabric.protector().0.with_max_offline_unwraps(wish).to_xml();
        let answer = fabric.roll(version, &protector, &fabric.healthy()).await.unwrap();
        assert_eq!(answer.encrypted_transport_keys.len(), length);
        assert_eq!(
            open_release(&answer, &fabric.host).unwrap().max_offline_unwraps,
            expected
        );
        let egress = KeyProtector::parse(&answer.egress_protector).unwrap();
        assert_eq!(egress.max_offline_unwraps(), wish);
    }
    none.stop().await;
    three.stop().await;
}

#[actix_web::test]
async fn the_path_may_have_any_case_and_one_slash_more() {
    let fabric = Fabric::start(0).await;
    let body = RollTransportKeyRequest::new(fabric.protector().0.to_xml(), fabric.healthy()).encode();
    for (path, status) in [
        ("/keyprotection/SERVICE/V1.0/RollTransportKey/", 200),
        ("/KEYPROTECTION/service/v2.0/rolltransportkey", 200),
        ("/KeyProtection/service/v1.0/rolltransportkey//", 404),
        ("/KeyProtection/service/rolltransportkey", 404),
        ("/KeyProtection/service/v3.0/rolltransportkey", 400),
        ("/Attestation/getinfo", 404),
    ] {
        assert_eq!(
            fabric.post(path, body.clone()).await.status().as_u16(),
            status,
            "{path}"
        );
    }
    fabric.stop().await;
}

#[actix_web::test]
async fn many_hosts_at_once_are_all_answered_or_told_to_come_back() {
    let fabric = Fabric::start(0).await;
    let body = RollTransportKeyRequest::new(fabric.protector().0.to_xml(), fabric.healthy()).encode();
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let (client, body) = (fabric.client.clone(), body.clone());
        let url = format!("{}{}", fabric.url, ServiceVersion::V2.roll_path());
        running.spawn(async move {
            let reply = client.post(url).body(body).send().await.unwrap();
            let retry = reply.headers().contains_key("retry-after");
            (reply.status().as_u16(), retry)
        });
    }
    let mut released = 0;
    while let Some(done) = running.join_next().await {
        match done.unwrap() {
            (200, _) => released += 1,
            (503, retry) => assert!(retry),
            other => panic!("{other:?}"),
        }
    }
    assert!(released > 0);
    let audited = fabric.get_admin("audit?limit=1000").await;
    let rows = audited.as_array().unwrap();
    let recorded = rows.iter().filter(|row| row["body"]["outcome"] == "Released").count();
    assert_eq!(recorded, released, "one row for each key that left");
    fabric.stop().await;
}
