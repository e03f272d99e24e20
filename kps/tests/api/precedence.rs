//! Which refusal wins when two steps of the protocol's order fail at once (protocol reference 5.5): always the
//! earlier one. Several steps share a code, so the reason that the audit keeps is compared too.

use hgs_protocol::{
    env::OsRandom,
    protector::{GuardianKeys, KeyProtector},
    wire::kps::{ErrorMessage, RollTransportKeyRequest, ServiceVersion},
};

use crate::fabric::{Fabric, flip_digit, rewrap};

const PROTECTOR: (u16, &str) = (400, "InvalidProtectorException");
const WRAPPING: (u16, &str) = (400, "InvalidWrappingException");

/// Name, protector, health certificate, status and code, and words of the recorded reason.
type Row<'a> = (&'a str, Vec<u8>, &'a [u8], (u16, &'a str), &'a str);

/// The text from the last `marker` on, and what stands before.
fn split_at_last<'t>(text: &'t str, marker: &str) -> (&'t str, &'t str) {
    text.split_at(text.rfind(marker).unwrap())
}

/// Changes the first signature value after the last `marker`.
fn spoil(text: &str, marker: &str) -> String {
    flip_digit(text, marker, "<SignatureValue>")
}

/// Gives the last wrapping another parent.
fn parent(text: &str, id: u32) -> String {
    let (before, after) = split_at_last(text, "ParentWrappingId=\"1\"");
    format!("{before}{}", after.replacen("\"1\"", &format!("\"{id}\""), 1))
}

/// Makes the last wrapping's signing certificate unreadable.
fn cut(text: &str) -> String {
    let (before, after) = split_at_last(text, "<SigningCertificate>");
    let end = after.find("</SigningCertificate>").unwrap();
    format!("{before}<SigningCertificate>AAAA{}", &after[end..])
}

/// Adds the last wrapping a second time.
fn twice(text: &str) -> String {
    let (_, last) = split_at_last(text, "<Wrapping>");
    text.replace("</Wrappings>", last)
}

#[actix_web::test]
async fn of_two_neighbouring_steps_that_fail_the_earlier_one_is_told() {
    let fabric = Fabric::start(0).await;
    let (own, _) = fabric.protector();
    let elsewhere = GuardianKeys::generate("other HGS", fabric.clock.now(), &mut OsRandom).unwrap();
    let elsewhere = [elsewhere.guardian().unwrap()];
    let (foreign, _) = KeyProtector::create(&fabric.owner, &elsewhere, &mut OsRandom).unwrap();
    let text = |protector: &KeyProtector| String::from_utf8(protector.to_xml()).unwrap();
    let (healthy, bad) = (fabric.healthy(), b"x".to_vec());
    // What a malicious owner signs is valid up to step 4.
    let signed = |change: &dyn Fn(&str) -> String| rewrap(&own, &fabric.owner, change);
    let guardian_signature = |text: &str| spoil(text, "<GuardianSignature");
    let signer_7 = |text: &str| {
        text.replace(
            "<GuardianSignature WrappingId=\"1\"",
            "<GuardianSignature WrappingId=\"7\"",
        )
    };
    let no_schema = |text: &str| text.replace("</Protector>", "<More/></Protector>");

    let rows: Vec<Row<'_>> = vec![
        (
            "1 before 2",
            b"not XML".to_vec(),
            &bad,
            (403, "HealthCertificateException"),
            "not an X.509 version 3",
        ),
        (
            "2 before 3",
            no_schema(&signer_7(&text(&own))).into_bytes(),
            &healthy,
            PROTECTOR,
            "not a valid document",
        ),
        (
            "3 before 4",
            guardian_signature(&signer_7(&text(&own))).into_bytes(),
            &healthy,
            PROTECTOR,
            "names wrapping 7",
        ),
        (
            "4 before 5a",
            cut(&text(&own)).into_bytes(),
            &healthy,
            PROTECTOR,
            "guardian signature over the wrappings",
        ),
        (
            "5a before 5b",
            signed(&|w| cut(&parent(w, 9))),
            &healthy,
            WRAPPING,
            "signing certificate does not parse",
        ),
        (
            "5b before 5c",
            signed(&|w| twice(&parent(w, 9))),
            &healthy,
            WRAPPING,
            "its parent is not in the key protector",
        ),
        (
            "5c before 5d",
            signed(&|w| spoil(&parent(w, 2), "<SigningCertificateSignature")),
            &healthy,
            WRAPPING,
            "it is a second owner",
        ),
        (
            "5d before 5e",
            signed(&|w| {
                spoil(
                    &spoil(w, "<SigningCertificateSignature"),
                    "<EncryptionCertificateSignature",
                )
            }),
            &healthy,
            WRAPPING,
            "not signed by its parent",
        ),
        (
            "5e before 6",
            rewrap(&foreign, &fabric.owner, |w| spoil(w, "<EncryptionCertificateSignature")),
            &healthy,
            WRAPPING,
            "not signed by its signing certificate's key",
        ),
        (
            "6 before 7",
            spoil(&text(&foreign), "<TransportKeySignature").into_bytes(),
            &healthy,
            (403, "KeyProtectionAccessDeniedException"),
            "no wrapping of the key protector is for this service",
        ),
    ];
    for (name, protector, certificate, expected, reason) in rows {
        let (status, code) = fabric.refusal(&protector, certificate).await;
        assert_eq!((status, code.as_str()), expected, "{name}");
        let row = &fabric.get_admin("audit?limit=1").await[0]["body"];
        let cause = row["cause"].as_str().unwrap();
        assert!(cause.contains(reason), "{name}: {cause}");
    }
    fabric.stop().await;
}

#[actix_web::test]
async fn a_request_that_is_not_valid_is_told_before_its_health_certificate() {
    let fabric = Fabric::start(0).await;
    let ask = RollTransportKeyRequest::new(b"not XML".to_vec(), b"x".to_vec());
    let more = String::from_utf8(ask.encode()).unwrap();
    let more = more.replace("</RollTransportKeyRequest>", "<More/></RollTransportKeyRequest>");
    let mut other = ask.clone();
    other.transfer_key_encryption_algorithm = "http://www.w3.org/2001/04/xmlenc#rsa-1_5".to_owned();
    let path = ServiceVersion::V2.roll_path();
    for (path, body, code) in [
        (path, more.into_bytes(), "InvalidRequestException"),
        (
            "/KeyProtection/service/v9.9/rolltransportkey",
            ask.encode(),
            "InvalidRequestException",
        ),
        (path, other.encode(), "UnsupportedAlgorithmException"),
        // And the request itself is one that is read.
        (path, ask.encode(), "HealthCertificateException"),
    ] {
        let reply = fabric.post(path, body).await;
        let error = ErrorMessage::parse(&reply.bytes().await.unwrap()).unwrap();
        assert_eq!(error.code, code);
    }
    fabric.stop().await;
}
