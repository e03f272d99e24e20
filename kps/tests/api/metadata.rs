//! GetMetaData over HTTP, and its signature as another implementation sees it.

use std::process::Command;

use hgs_protocol::{protector::Metadata, wire::kps::METADATA_PATH};

use crate::fabric::Fabric;

#[actix_web::test]
async fn metadata_is_served_to_get_head_and_an_empty_post() {
    let fabric = Fabric::start(0).await;
    let url = format!("{}{METADATA_PATH}", fabric.url);
    let get = fabric.client.get(&url).send().await.unwrap();
    assert_eq!(get.status().as_u16(), 200);
    assert_eq!(get.headers()["content-type"], "application/xml; charset=utf-8");
    assert_eq!(get.headers()["cache-control"], "no-cache");
    let tag = get.headers()["etag"].clone();
    let document = get.bytes().await.unwrap();
    let metadata = Metadata::import(&document, "HGS").unwrap();
    assert_eq!(metadata.guardian(), &fabric.hgs);

    let head = fabric.client.head(&url).send().await.unwrap();
    assert_eq!(head.status().as_u16(), 200);
    assert_eq!(head.headers()["etag"], tag);
    assert!(head.bytes().await.unwrap().is_empty());
    let post = fabric.client.post(&url).send().await.unwrap();
    assert_eq!(post.bytes().await.unwrap(), document);
    let again = fabric
        .client
        .get(&url)
        .header("if-none-match", tag)
        .send()
        .await
        .unwrap();
    assert_eq!(again.status().as_u16(), 304);
    let put = fabric.client.put(&url).send().await.unwrap();
    assert_eq!(put.status().as_u16(), 405);
    assert_eq!(put.headers()["allow"], "GET, HEAD, POST");
    let full = fabric.client.post(&url).body("x").send().await.unwrap();
    assert_eq!(full.status().as_u16(), 400);
    let upper = format!("{}{}/", fabric.url, METADATA_PATH.to_ascii_uppercase());
    assert_eq!(fabric.client.get(upper).send().await.unwrap().status().as_u16(), 200);
    fabric.stop().await;
}

#[actix_web::test]
async fn another_implementation_verifies_the_signature_and_sees_a_change() {
    let fabric = Fabric::start(0).await;
    let url = format!("{}{METADATA_PATH}", fabric.url);
    let document = fabric.client.get(&url).send().await.unwrap().text().await.unwrap();
    let place = |name: &str| fabric.directory.path().join(name);
    std::fs::write(place("signer.der"), fabric.hgs.signing().der()).unwrap();
    let verify = |text: &str| -> Option<bool> {
        std::fs::write(place("metadata.xml"), text).unwrap();
        let done = Command::new("xmlsec1")
            .args(["--verify", "--id-attr:ID", "Metadata", "--trusted-der"])
            .args([place("signer.der"), place("metadata.xml")])
            .output()
            .ok()?;
        Some(done.status.success())
    };
    match verify(&document) {
        None => eprintln!("skipped: xmlsec1 is not installed"),
        Some(good) => {
            assert!(good, "xmlsec1 refuses our signature");
            let changed = document.replacen("<Version>2</Version>", "<Version>3</Version>", 1);
            assert_eq!(verify(&changed), Some(false));
        }
    }
    fabric.stop().await;
}
