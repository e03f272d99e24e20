//! A protector of an old guardian, whose transport key is wrapped by OAEP with SHA-1 (protocol reference 5.4).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hgs_protocol::{
    crypto::{gcm_seal, hmac_sha256, sha256},
    env::OsRandom,
    protector::{KeyProtector, Payload, PayloadVersion, check_roll, open_release, suite::PublicKey},
    secret::{Secret32, TransportKey},
    wire::kps::ServiceVersion,
};

use crate::fabric::{Fabric, rewrap};

const OAEP_SHA1: &str = "http://www.w3.org/2001/04/xmlenc#rsa-oaep-mgf1p";

/// The protector with the service's wrapping (the last) made by OAEP with SHA-1, signed and confirmed anew.
fn wrapped_with_sha1(fabric: &Fabric, protector: &KeyProtector, key: &TransportKey) -> Vec<u8> {
    let PublicKey::Rsa(rsa) = fabric.hgs.encryption().public_key() else {
        panic!("an RSA guardian was expected")
    };
    let content_key = Secret32::random(&mut OsRandom);
    let payload = Payload::new(&[key], 0).encode(PayloadVersion::V1);
    let mut value = rsa.encrypt_oaep_sha1(content_key.expose()).unwrap();
    value.extend(gcm_seal(&content_key, b"", &payload, &mut OsRandom));
    let data = format!(
        "<EncryptedData Algorithm=\"{OAEP_SHA1}\"><Parameters><ds:DigestMethod \
         xmlns:ds=\"http://www.w3.org/2000/09/xmldsig#\" \
         Algorithm=\"http://www.w3.org/2000/09/xmldsig#sha1\"></ds:DigestMethod></Parameters>\
         <CipherValue>{}</CipherValue></EncryptedData>",
        STANDARD.encode(value)
    );
    let xml = rewrap(protector, &fabric.owner, |wrappings| {
        let at = wrappings.rfind("<EncryptedData ").unwrap();
        let end = wrappings.rfind("</EncryptedData>").unwrap() + "</EncryptedData>".len();
        format!("{}{data}{}", &wrappings[..at], &wrappings[end..])
    });
    // The TransportKeySignature is the owner's too: it knows the key.
    let text = String::from_utf8(xml).unwrap();
    let from = text.find("<Wrappings>").unwrap();
    let end = text.find("</Wrappings>").unwrap() + "</Wrappings>".len();
    let apex = "<Wrappings xmlns=\"http://schemas.microsoft.com/kps/2014/07\">";
    let signed = text[from..end].replacen("<Wrappings>", apex, 1);
    let mac_key = sha256(
        &[
            &[0, 0, 0, 1],
            key.expose_transport_key().expose().as_slice(),
            b"HGS-TKSIG",
        ]
        .concat(),
    );
    let mac = STANDARD.encode(hmac_sha256(&mac_key, &[signed.as_bytes()]));
    let at = text.find("<TransportKeySignature>").unwrap();
    let at = at + text[at..].find("<SignatureValue>").unwrap() + "<SignatureValue>".len();
    let end = at + text[at..].find('<').unwrap();
    format!("{}{mac}{}", &text[..at], &text[end..]).into_bytes()
}

#[actix_web::test]
async fn a_wrapping_by_oaep_with_sha_1_opens_only_where_the_administrator_allows_it() {
    let fabric = Fabric::start(0).await;
    let (protector, key) = fabric.protector();
    let old = wrapped_with_sha1(&fabric, &protector, &key);
    assert_eq!(
        fabric.refusal(&old, &fabric.healthy()).await,
        (400, "InvalidProtectorException".to_owned())
    );
    let cause = fabric.get_admin("audit?limit=1").await[0]["body"]["cause"].clone();
    assert!(cause.as_str().unwrap().contains(OAEP_SHA1), "{cause}");

    let mut settings = fabric.get_admin("settings").await;
    settings["allowSha1Oaep"] = true.into();
    assert_eq!(fabric.call("PUT", "settings", settings.clone()).await.0, 200);
    let answer = fabric.roll(ServiceVersion::V2, &old, &fabric.healthy()).await.unwrap();
    let keys = open_release(&answer, &fabric.host).unwrap();
    assert_eq!(
        keys.ingress.expose_transport_key().expose(),
        key.expose_transport_key().expose()
    );
    // What the service makes is SHA-256 again, so this VM needs the setting once only.
    let egress = String::from_utf8(answer.egress_protector.clone()).unwrap();
    assert!(!egress.contains(OAEP_SHA1), "{egress}");
    let new = KeyProtector::parse(&answer.egress_protector).unwrap();
    assert_eq!(new.wrappings().count(), 2);
    check_roll(&old, &answer.egress_protector, &keys.egress).unwrap();
    settings["allowSha1Oaep"] = false.into();
    assert_eq!(fabric.call("PUT", "settings", settings).await.0, 200);
    assert!(
        fabric
            .roll(ServiceVersion::V2, &answer.egress_protector, &fabric.healthy())
            .await
            .is_ok()
    );
    fabric.stop().await;
}
