//! Which health certificates are accepted (protocol reference 5.6), rule by rule. Each row differs from a good
//! certificate in one thing, is signed again, and must be refused for exactly that.

use std::time::Duration;

use hgs_protocol::{
    crypto::RsaPrivateKey,
    env::OsRandom,
    health::{
        AttestationMode, AttestationSigner, CertificateKind, HealthCertificateRequest, MAX_CERTIFICATE, MAX_LIFETIME,
        PolicyVerdict,
    },
    oid,
    protector::GuardianKeys,
    wire::kps::ServiceVersion,
};
use serde_json::json;
use x509_cert::{
    Certificate, Version,
    der::{
        Decode, Encode,
        asn1::{BitString, ObjectIdentifier, OctetString},
    },
    ext::{
        Extension,
        pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages},
    },
    name::Name,
};

use crate::fabric::Fabric;

const SHA1_WITH_RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.5");

/// A good certificate of the fabric's signer with `change` made, signed again by `signer`.
fn forged(fabric: &Fabric, signer: &AttestationSigner, change: impl FnOnce(&mut Certificate)) -> Vec<u8> {
    let mut certificate = Certificate::from_der(&fabric.healthy()).unwrap();
    change(&mut certificate);
    let key = RsaPrivateKey::from_pkcs8(signer.expose_pkcs8()).unwrap();
    let signed = certificate.tbs_certificate.to_der().unwrap();
    certificate.signature = BitString::from_bytes(&key.sign_pkcs1_sha256(&signed).unwrap()).unwrap();
    certificate.to_der().unwrap()
}

/// A certificate as the fabric's signer issues it, but for `change`.
fn issued(fabric: &Fabric, change: impl FnOnce(&mut HealthCertificateRequest)) -> Vec<u8> {
    let mut ask = HealthCertificateRequest {
        key: fabric.host.public().clone().into(),
        kind: CertificateKind::Encryption,
        mode: AttestationMode::Tpm,
        policies: vec![],
        issued_at: fabric.clock.now(),
        lifetime: Duration::from_secs(3600),
    };
    change(&mut ask);
    fabric.signer.issue(&ask, &mut OsRandom).unwrap()
}

fn extensions(certificate: &mut Certificate) -> &mut Vec<Extension> {
    certificate.tbs_certificate.extensions.as_mut().unwrap()
}

fn without(id: ObjectIdentifier) -> impl Fn(&mut Certificate) {
    move |certificate| extensions(certificate).retain(|extension| extension.extn_id != id)
}

fn with(id: ObjectIdentifier, critical: bool, value: Vec<u8>) -> impl Fn(&mut Certificate) {
    move |certificate| {
        without(id)(certificate);
        extensions(certificate).push(Extension {
            extn_id: id,
            critical,
            extn_value: OctetString::new(value.clone()).unwrap(),
        });
    }
}

/// SubjectPublicKeyInfo of an RSA key of 1024 bits, a size that no library here makes any more.
fn rsa_1024() -> Vec<u8> {
    let mut modulus = [0xc3; 129];
    modulus[0] = 0;
    let key = [&[0x30, 0x81, 0x89, 0x02, 0x81, 0x81][..], &modulus, &[0x02, 3, 1, 0, 1]].concat();
    let algorithm = hex::decode("300d06092a864886f70d0101010500").unwrap();
    let bits = [&[0x03, 0x81, 0x8d, 0][..], &key].concat();
    [&[0x30, 0x81, 0x9f][..], &algorithm, &bits].concat()
}

#[actix_web::test]
async fn each_rule_refuses_by_itself() {
    let fabric = Fabric::start(0).await;
    let (signer, now) = (&fabric.signer, fabric.clock.now());
    let stranger = AttestationSigner::generate(now, &mut OsRandom).unwrap();
    let forge = |change: &dyn Fn(&mut Certificate)| forged(&fabric, signer, change);
    let spki = |der: Vec<u8>| {
        forged(&fabric, signer, |c| {
            c.tbs_certificate.subject_public_key_info = Decode::from_der(&der).unwrap();
        })
    };
    let authority = BasicConstraints {
        ca: true,
        path_len_constraint: None,
    };
    let only_data = KeyUsage(KeyUsages::DataEncipherment.into()).to_der().unwrap();
    let for_signing = ExtendedKeyUsage(vec![oid::HEALTH_SIGNING]).to_der().unwrap();
    let mut bit = fabric.healthy();
    *bit.last_mut().unwrap() ^= 1;
    let trailing = [fabric.healthy(), vec![0]].concat();
    let p256 = GuardianKeys::generate_p256("p256", now, &mut OsRandom).unwrap();
    let p256 = Certificate::from_der(p256.encryption()[0].certificate().der()).unwrap();
    let p256 = p256.tbs_certificate.subject_public_key_info.to_der().unwrap();
    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let p384 = rcgen::PublicKeyData::subject_public_key_info(&p384);
    let kind = |kind| fabric.certify(signer, kind, now);
    let failed = PolicyVerdict {
        id: uuid::Uuid::from_u128(0x6a460ee1_62ea_416f_ae6c_04e29634506d),
        passed: false,
    };
    let before = |seconds: i64| issued(&fabric, |ask| ask.issued_at = now.plus_seconds(-seconds));

    let rows: Vec<(&str, Vec<u8>, &str)> = vec![
        // Rule 1.
        ("no certificate", b"x".to_vec(), "not an X.509 version 3"),
        ("a byte too many", trailing, "not an X.509 version 3"),
        (
            "version 1",
            forge(&|c| c.tbs_certificate.version = Version::V1),
            "not an X.509 version 3",
        ),
        (
            "over 16 KiB",
            forge(&with(oid::APPLICATION_POLICIES, false, vec![0; MAX_CERTIFICATE])),
            "longer than 16 KiB",
        ),
        (
            "a weak signature algorithm",
            forge(&|c| {
                c.signature_algorithm.oid = SHA1_WITH_RSA;
                c.tbs_certificate.signature.oid = SHA1_WITH_RSA;
            }),
            "is signed with 1.2.840.113549.1.1.5",
        ),
        // Rule 2.
        (
            "an unknown signer",
            forged(&fabric, &stranger, |c| c.tbs_certificate.issuer = Name::default()),
            "no trusted attestation signer",
        ),
        (
            "a signer of the same name with another key",
            fabric.certify(&stranger, CertificateKind::Encryption, now),
            "no trusted attestation signer",
        ),
        ("one bit changed", bit, "no trusted attestation signer"),
        // Rule 3.
        (
            "not yet valid",
            issued(&fabric, |ask| ask.issued_at = now.plus_seconds(3600)),
            "not valid before",
        ),
        ("expired", before(2 * 3600), "expired at"),
        (
            "a life of more than a day",
            issued(&fabric, |ask| ask.lifetime = MAX_LIFETIME + Duration::from_secs(1)),
            "lifetime of 86401 seconds",
        ),
        // That of a signer is one of years, so this rule meets it before the next but one does.
        ("the signer's own", signer.certificate_der().to_vec(), "lifetime of"),
        // Rule 5; rule 4 needs a setting and stands below.
        (
            "an authority's",
            forge(&with(oid::BASIC_CONSTRAINTS, true, authority.to_der().unwrap())),
            "certificate authority",
        ),
        (
            "a trustlet authority's (type 3)",
            kind(CertificateKind::Authority),
            "certificate authority",
        ),
        (
            "an unknown critical extension",
            forge(&with(oid::HEALTH_POLICY, true, vec![5, 0])),
            "unknown critical extension",
        ),
        (
            "two signature algorithms",
            forge(&|c| c.tbs_certificate.signature.oid = oid::SHA384_WITH_RSA),
            "two different signature algorithms",
        ),
        ("no key usage", forge(&without(oid::KEY_USAGE)), "key usage"),
        (
            "key usage without keyEncipherment",
            forge(&with(oid::KEY_USAGE, true, only_data)),
            "key usage",
        ),
        (
            "key usage twice",
            forge(&|c| {
                let usage = extensions(c).iter().find(|e| e.extn_id == oid::KEY_USAGE).cloned();
                extensions(c).extend(usage);
            }),
            "malformed or repeated",
        ),
        (
            "no extended key usage",
            forge(&without(oid::EXTENDED_KEY_USAGE)),
            "not one for encryption",
        ),
        (
            "the extended key usage of type 2",
            forge(&with(oid::EXTENDED_KEY_USAGE, false, for_signing)),
            "not one for encryption",
        ),
        ("for signing (type 2)", kind(CertificateKind::Signing), "key usage"),
        (
            "no attestation extension",
            forge(&without(oid::ATTESTATION)),
            "how the host was attested",
        ),
        (
            "a malformed attestation extension",
            forge(&with(oid::ATTESTATION, false, vec![0x30, 0])),
            "attestation extension is malformed",
        ),
        (
            "a failed policy",
            issued(&fabric, |ask| ask.policies = vec![failed]),
            "the policy 6a460ee1",
        ),
        ("keyEncipherment for a P-256 key", spki(p256), "key usage"),
        // Rule 6.
        ("RSA of 1024 bits", spki(rsa_1024()), "2048 to 4096 bits nor P-256"),
        ("a P-384 key", spki(p384), "2048 to 4096 bits nor P-256"),
    ];
    let protector = fabric.protector().0.to_xml();
    // The helpers by themselves break nothing.
    for good in [forge(&|_| {}), issued(&fabric, |_| {}), before(3590)] {
        assert!(fabric.roll(ServiceVersion::V2, &protector, &good).await.is_ok());
    }
    for (name, certificate, reason) in &rows {
        refused(&fabric, &protector, certificate, name, reason).await;
    }

    // Rule 4, and the modes of rule 5: what an administrator sets.
    let good = issued(&fabric, |_| {});
    let deny = json!({ "denyIssuedBefore": now.plus_seconds(60) });
    assert_eq!(fabric.call("PUT", "attestation-signers/policy", deny).await.0, 204);
    refused(&fabric, &protector, &good, "denied", "are denied").await;
    let none = json!({ "denyIssuedBefore": null });
    assert_eq!(fabric.call("PUT", "attestation-signers/policy", none).await.0, 204);
    let mut settings = fabric.get_admin("settings").await;
    settings["acceptedModes"] = json!(["HostKey"]);
    assert_eq!(fabric.call("PUT", "settings", settings).await.0, 200);
    refused(&fabric, &protector, &good, "mode", "mode Tpm").await;
    assert!(
        fabric
            .roll(ServiceVersion::V2, &protector, &fabric.healthy())
            .await
            .is_ok()
    );

    // Good until the clock moves past its end.
    let certificate = fabric.healthy();
    fabric.clock.advance(Duration::from_secs(9 * 3600));
    refused(&fabric, &protector, &certificate, "old", "expired at").await;
    fabric.stop().await;
}

async fn refused(fabric: &Fabric, protector: &[u8], certificate: &[u8], name: &str, reason: &str) {
    let (status, error) = fabric
        .roll(ServiceVersion::V2, protector, certificate)
        .await
        .err()
        .unwrap_or_else(|| panic!("{name}: keys were released"));
    assert_eq!(
        (status, error.code.as_str()),
        (403, "HealthCertificateException"),
        "{name}"
    );
    // A message begins with a capital.
    let message = error.message.to_lowercase();
    assert!(message.contains(&reason.to_lowercase()), "{name}: {message}");
}
