//! Each failure of the protocol's order with its code and status. Health certificates have a table of their own
//! (`health.rs`), and so has what wins when two failures meet (`precedence.rs`).

use hgs_protocol::{
    env::OsRandom,
    protector::{GuardianKeys, KeyProtector},
    wire::kps::{ErrorMessage, RollTransportKeyRequest, ServiceVersion},
};

use crate::fabric::{Fabric, flip_digit, rewrap};

const PROTECTOR: &str = "InvalidProtectorException";
const WRAPPING: &str = "InvalidWrappingException";
const REQUEST: &str = "InvalidRequestException";

fn refused(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

#[actix_web::test]
async fn row_0_a_request_that_is_not_of_the_schema() {
    let fabric = Fabric::start(0).await;
    let good = RollTransportKeyRequest::new(fabric.protector().0.to_xml(), fabric.healthy());
    let text = String::from_utf8(good.encode()).unwrap();
    let doctype = text.replace(
        "<RollTransportKeyRequest",
        "<!DOCTYPE a [<!ENTITY e 'x'>]><RollTransportKeyRequest",
    );
    for body in [
        String::new(),
        "not xml".to_owned(),
        doctype,
        text.replace("kps/2014/07/service", "kps/2014/07"),
        text.replace("TransferKeyEncryptionAlgorithm", "TransferAlgorithm"),
        text.replace("</RollTransportKeyRequest>", "<More/></RollTransportKeyRequest>"),
        text.replacen("<HealthCertificate>", "<HealthCertificate>!", 1),
    ] {
        let reply = fabric.post(ServiceVersion::V1.roll_path(), body.into_bytes()).await;
        assert_eq!(reply.status().as_u16(), 400);
        let error = ErrorMessage::parse(&reply.bytes().await.unwrap()).unwrap();
        assert_eq!(error.code, REQUEST);
    }
    let reply = fabric
        .post("/KeyProtection/service/v9.9/rolltransportkey", good.encode())
        .await;
    let error = ErrorMessage::parse(&reply.bytes().await.unwrap()).unwrap();
    assert_eq!(error.code, REQUEST);

    for change in 0..3 {
        let mut ask = good.clone();
        let field = match change {
            0 => &mut ask.transfer_key_encryption_algorithm,
            1 => &mut ask.wrapping_key_encryption_algorithm,
            _ => &mut ask.transport_keys_encryption_algorithm,
        };
        *field = "http://www.w3.org/2001/04/xmlenc#tripledes-cbc".to_owned();
        let reply = fabric.post(ServiceVersion::V1.roll_path(), ask.encode()).await;
        assert_eq!(reply.status().as_u16(), 400);
        let error = ErrorMessage::parse(&reply.bytes().await.unwrap()).unwrap();
        assert_eq!(error.code, "UnsupportedAlgorithmException");
    }
    fabric.stop().await;
}

#[actix_web::test]
async fn the_shell_answers_with_plain_http_statuses() {
    let fabric = Fabric::start(0).await;
    let path = ServiceVersion::V2.roll_path();
    let get = fabric.client.get(format!("{}{path}", fabric.url)).send().await.unwrap();
    assert_eq!(get.status().as_u16(), 405);
    assert_eq!(get.headers()["allow"], "POST");
    let long = fabric.post(path, vec![b' '; (4 << 20) + 1]).await;
    assert_eq!(long.status().as_u16(), 413);
    assert_eq!(fabric.post("/nowhere", vec![]).await.status().as_u16(), 404);
    fabric.stop().await;
}

#[actix_web::test]
async fn rows_2_to_4_a_protector_that_does_not_read_or_is_not_signed() {
    let fabric = Fabric::start(0).await;
    let (protector, _) = fabric.protector();
    let text = String::from_utf8(protector.to_xml()).unwrap();
    let edit = |from: &str, to: &str| {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from}");
        changed.into_bytes()
    };
    let mut bit = protector.to_xml();
    let middle = bit.len() / 2;
    bit[middle] ^= 1;
    for (name, xml) in [
        ("not XML", b"protector".to_vec()),
        ("another root", edit("<Protector ", "<Protector2 ")),
        ("a DTD", edit("<Protector ", "<!DOCTYPE Protector><Protector ")),
        (
            "no wrapping of that Id",
            edit(
                "<GuardianSignature WrappingId=\"1\"",
                "<GuardianSignature WrappingId=\"7\"",
            ),
        ),
        (
            "another wrapping's Id",
            edit(
                "<GuardianSignature WrappingId=\"1\"",
                "<GuardianSignature WrappingId=\"2\"",
            ),
        ),
        ("wrappings changed", edit("<Id>2</Id>", "<Id>3</Id>")),
        ("an unknown algorithm", edit("xmlenc11#ConcatKDF", "xmlenc11#pbkdf2")),
        ("one bit changed", bit),
    ] {
        let (status, error) = fabric
            .roll(ServiceVersion::V2, &xml, &fabric.healthy())
            .await
            .unwrap_err();
        assert_eq!((status, error.code.as_str()), (400, PROTECTOR), "{name}");
        assert_eq!(error.message, "The key protector is not valid.", "{name}");
    }
    fabric.stop().await;
}

#[actix_web::test]
async fn rows_5_wrappings_that_do_not_chain_to_one_owner() {
    let fabric = Fabric::start(0).await;
    let (protector, _) = fabric.protector();
    let second = |wrappings: &str| {
        let start = wrappings.rfind("<Wrapping>").unwrap();
        wrappings[start..wrappings.rfind("</Wrappings>").unwrap()].to_owned()
    };
    let parent = |of: u32, parent: u32| {
        move |w: &str| {
            let at = w.find(&format!("<Id>{of}</Id>")).unwrap();
            let rest = w[at..].replacen("ParentWrappingId=\"1\"", &format!("ParentWrappingId=\"{parent}\""), 1);
            format!("{}{rest}", &w[..at])
        }
    };
    let add = |change: fn(String) -> String| {
        move |w: &str| w.replace("</Wrappings>", &format!("{}</Wrappings>", change(second(w))))
    };
    // The first signature value after a wrapping's start is its signing certificate's.
    let spoil = |marker: &'static str| move |w: &str| flip_digit(w, marker, "<SignatureValue>");
    let cut = |name: &'static str| {
        move |w: &str| {
            let at = w.rfind(&format!("<{name}>")).unwrap() + name.len() + 2;
            let end = at + w[at..].find('<').unwrap();
            format!("{}AAAA{}", &w[..at], &w[end..])
        }
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        (
            "5a signing",
            rewrap(&protector, &fabric.owner, cut("SigningCertificate")),
        ),
        (
            "5a encryption",
            rewrap(&protector, &fabric.owner, cut("EncryptionCertificate")),
        ),
        ("5b no such parent", rewrap(&protector, &fabric.owner, parent(2, 9))),
        ("5c second owner", rewrap(&protector, &fabric.owner, parent(2, 2))),
        ("5c no owner", rewrap(&protector, &fabric.owner, parent(1, 2))),
        ("5c an Id twice", rewrap(&protector, &fabric.owner, add(|w| w))),
        (
            "5c a cycle",
            rewrap(&protector, &fabric.owner, |w| {
                let third = second(w)
                    .replace("<Id>2<", "<Id>3<")
                    .replace("ParentWrappingId=\"1\"", "ParentWrappingId=\"2\"");
                let w = parent(2, 3)(w);
                w.replace("</Wrappings>", &format!("{third}</Wrappings>"))
            }),
        ),
        (
            "5d",
            rewrap(&protector, &fabric.owner, spoil("<SigningCertificateSignature")),
        ),
        (
            "5e",
            rewrap(&protector, &fabric.owner, spoil("<EncryptionCertificateSignature")),
        ),
    ];
    for (name, xml) in cases {
        let (status, error) = fabric
            .roll(ServiceVersion::V2, &xml, &fabric.healthy())
            .await
            .unwrap_err();
        assert_eq!((status, error.code.as_str()), (400, WRAPPING), "{name}");
        assert!(error.message.starts_with("The wrapping with Id "), "{name}");
    }
    fabric.stop().await;
}

#[actix_web::test]
async fn row_6_a_protector_of_another_fabric() {
    let fabric = Fabric::start(0).await;
    let elsewhere = GuardianKeys::generate("other HGS", fabric.clock.now(), &mut OsRandom).unwrap();
    let foreign = [elsewhere.guardian().unwrap()];
    let (protector, _) = KeyProtector::create(&fabric.owner, &foreign, &mut OsRandom).unwrap();
    assert_eq!(
        fabric.refusal(&protector.to_xml(), &fabric.healthy()).await,
        refused(403, "KeyProtectionAccessDeniedException")
    );
    fabric.stop().await;
}

#[actix_web::test]
async fn row_7_a_key_that_does_not_open_and_one_that_does_not_confirm_look_alike() {
    let fabric = Fabric::start(0).await;
    let (protector, _) = fabric.protector();
    let text = String::from_utf8(protector.to_xml()).unwrap();
    let unconfirmed = flip_digit(&text, "<TransportKeySignature>", "<SignatureValue>");
    let spoil = |offset: usize| {
        rewrap(&protector, &fabric.owner, |w| {
            let at = w.rfind("<CipherValue>").unwrap() + "<CipherValue>".len() + offset;
            let flipped = if &w[at..=at] == "A" { "B" } else { "A" };
            format!("{}{flipped}{}", &w[..at], &w[at + 1..])
        })
    };
    let mut answers = Vec::new();
    for xml in [unconfirmed.into_bytes(), spoil(0), spoil(380), b"not XML".to_vec()] {
        let (status, error) = fabric
            .roll(ServiceVersion::V2, &xml, &fabric.healthy())
            .await
            .unwrap_err();
        answers.push((status, error));
    }
    assert_eq!((answers[0].0, answers[0].1.code.as_str()), (400, PROTECTOR));
    assert!(answers.iter().all(|answer| answer == &answers[0]), "{answers:?}");
    fabric.stop().await;
}

#[actix_web::test]
async fn metadata_without_a_primary_certificate_says_which_one_is_missing() {
    use sqlx::Connection as _;
    let fabric = Fabric::start(0).await;
    // No administrator's call leads here; a damaged or restored database might.
    let file = fabric.directory.path().join("data/kps.db");
    let mut database = sqlx::SqliteConnection::connect(&format!("sqlite://{}", file.display()))
        .await
        .unwrap();
    for (role, message) in [
        ("signing", "Primary Signing Certificate not found"),
        ("encryption", "Primary Encryption Certificate not found"),
    ] {
        sqlx::query("UPDATE guardian_certificate SET is_primary = FALSE WHERE role = $1")
            .bind(role)
            .execute(&mut database)
            .await
            .unwrap();
        // Any change of an administrator makes the service look.
        let same = fabric.get_admin("settings").await;
        assert_eq!(fabric.call("PUT", "settings", same).await.0, 200);
        let url = format!("{}{}", fabric.url, hgs_protocol::wire::kps::METADATA_PATH);
        let reply = fabric.client.get(url).send().await.unwrap();
        assert_eq!(reply.status().as_u16(), 500);
        let error = ErrorMessage::parse(&reply.bytes().await.unwrap()).unwrap();
        assert_eq!(
            (error.code.as_str(), error.message.as_str()),
            ("MetadataException", message)
        );
    }
    fabric.stop().await;
}

#[actix_web::test]
async fn without_a_durable_audit_row_no_key_leaves() {
    use sqlx::Connection as _;
    let fabric = Fabric::start(0).await;
    let (protector, certificate) = (fabric.protector().0.to_xml(), fabric.healthy());
    let file = fabric.directory.path().join("data/kps.db");
    let mut database = sqlx::SqliteConnection::connect(&format!("sqlite://{}", file.display()))
        .await
        .unwrap();
    let run = async |database: &mut sqlx::SqliteConnection, text: &'static str| {
        sqlx::query(text).execute(database).await.unwrap();
    };
    run(&mut database, "ALTER TABLE audit RENAME TO hidden").await;
    let ask = RollTransportKeyRequest::new(protector.clone(), certificate.clone());
    let reply = fabric.post(ServiceVersion::V2.roll_path(), ask.encode()).await;
    assert_eq!(reply.status().as_u16(), 503);
    assert!(reply.headers().contains_key("retry-after"));
    let error = ErrorMessage::parse(&reply.bytes().await.unwrap()).unwrap();
    assert_eq!(error.code, "UnavailableException");
    // Nor is anything changed without one.
    let certificate_count = fabric.get_admin("certificates").await.as_array().unwrap().len();
    let ask = serde_json::json!({ "certificateType": "Signing", "generate": { "commonName": "x" } });
    assert_eq!(fabric.call("POST", "certificates", ask).await.0, 503);
    assert_eq!(
        fabric.get_admin("certificates").await.as_array().unwrap().len(),
        certificate_count
    );
    run(&mut database, "ALTER TABLE hidden RENAME TO audit").await;
    assert!(fabric.roll(ServiceVersion::V2, &protector, &certificate).await.is_ok());
    fabric.stop().await;
}
