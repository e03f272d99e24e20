//! Every document that this project writes, held against the schemas by another implementation.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::{path::Path, process::Command};

use hgs_protocol::{
    env::{OsRandom, UnixTime},
    protector::{GuardianKeys, KeyPair, KeyProtector, Metadata},
    wire::kps::{ErrorMessage, RollTransportKeyRequest, RollTransportKeyResponse},
};

fn valid(schema: &str, document: &[u8]) -> Option<bool> {
    static NUMBER: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let file = std::env::temp_dir().join(format!("schema-{}-{number}.xml", std::process::id()));
    std::fs::write(&file, document).unwrap();
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas").join(schema);
    let done = Command::new("xmllint")
        .args(["--noout", "--nonet", "--schema"])
        .args([&schema, &file])
        .output();
    std::fs::remove_file(&file).unwrap();
    match done {
        Ok(done) => {
            let errors = String::from_utf8_lossy(&done.stderr);
            // 3: not valid. Anything else is a schema that does not compile.
            assert!(matches!(done.status.code(), Some(0 | 3)), "{errors}");
            if !done.status.success() {
                println!("{errors}");
            }
            Some(done.status.success())
        }
        Err(_) => {
            eprintln!("skipped: xmllint is not installed");
            None
        }
    }
}

#[test]
fn what_is_written_is_valid_and_what_is_bent_is_not() {
    let now = UnixTime(1_800_000_000);
    let rng = &mut OsRandom;
    let mut service = GuardianKeys::generate("HGS", now, rng).unwrap();
    service.add_signing(KeyPair::generate_signing("old", now, rng).unwrap());
    let second = GuardianKeys::generate_p256("HGS 2", now, rng).unwrap();
    let guardians = [service.guardian().unwrap(), second.guardian().unwrap()];
    let mut documents = Vec::new();
    for owner in [
        GuardianKeys::generate("A", now, rng).unwrap(),
        GuardianKeys::generate_p256("B", now, rng).unwrap(),
    ] {
        let (protector, _) = KeyProtector::create(&owner, &guardians, rng).unwrap();
        let xml = protector.to_xml();
        let opened = KeyProtector::parse(&xml)
            .unwrap()
            .verify()
            .unwrap()
            .open(&service, rng)
            .unwrap();
        let rolled = opened.roll(&service, rng).unwrap();
        documents.push(("protector.xsd", xml));
        documents.push(("protector.xsd", rolled.egress().to_xml()));
    }
    documents.push(("metadata.xsd", Metadata::build(&service, None).unwrap()));
    documents.push((
        "metadata.xsd",
        Metadata::build(&second, service.signing().first()).unwrap(),
    ));
    let request = RollTransportKeyRequest::new(vec![1; 100], vec![2; 100]);
    documents.push(("service.xsd", request.encode()));
    let response = RollTransportKeyResponse {
        egress_protector: vec![1],
        encrypted_transfer_key: vec![2],
        encrypted_wrapping_key: vec![3],
        encrypted_transport_keys: vec![4],
    };
    documents.push(("service.xsd", response.encode()));
    let error = ErrorMessage {
        code: "InvalidProtectorException".to_owned(),
        message: "<&>".to_owned(),
    };
    documents.push(("service.xsd", error.encode()));
    for (schema, document) in &documents {
        let text = String::from_utf8(document.clone()).unwrap();
        let Some(good) = valid(schema, document) else { return };
        assert!(good, "{schema}: {text}");
        // The first child gone, and twice.
        let root = text.find("?><").map_or(0, |at| at + 2);
        let start = root + text[root..].find('>').unwrap() + 1;
        let name = &text[start + 1..start + text[start..].find('>').unwrap()];
        let close = format!("</{name}>");
        let end = start + text[start..].find(&close).unwrap() + close.len();
        for bent in [
            format!("{}{}", &text[..start], &text[end..]),
            format!("{}{}", &text[..end], &text[start..]),
            text.replacen("2014/07", "2014/08", 1),
        ] {
            assert_eq!(valid(schema, bent.as_bytes()), Some(false), "{schema}: {bent}");
        }
    }
}
