//! Health certificates with P-256 keys and by P-256 signers, and those that must not get keys.

use hgs_protocol::{
    crypto::{PublicKey, RsaPrivateKey},
    env::OsRandom,
    health::{
        AttestationMode, AttestationSigner, AttestationStatement, CertificateKind, DEFAULT_LIFETIME,
        HealthCertificateRequest,
    },
    oid,
    protector::{
        check_roll, open_release,
        suite::{KeyTransport, PrivateKey, Suite},
    },
    wire::kps::{ErrorMessage, RollTransportKeyRequest, RollTransportKeyResponse, ServiceVersion},
};
use rcgen::{CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, Issuer, KeyUsagePurpose};

use crate::fabric::Fabric;

fn certify(fabric: &Fabric, signer: &AttestationSigner, key: PublicKey, kind: CertificateKind) -> Vec<u8> {
    let ask = HealthCertificateRequest {
        key,
        kind,
        mode: AttestationMode::HostKey,
        policies: vec![],
        issued_at: fabric.clock.now(),
        lifetime: DEFAULT_LIFETIME,
    };
    signer.issue(&ask, &mut OsRandom).unwrap()
}

/// A roll that asks for the transfer key by that algorithm; the refusal as status and code.
async fn roll(
    fabric: &Fabric,
    version: ServiceVersion,
    protector: &[u8],
    certificate: &[u8],
    transfer: KeyTransport,
) -> Result<RollTransportKeyResponse, (u16, String)> {
    let mut ask = RollTransportKeyRequest::new(protector.to_vec(), certificate.to_vec());
    ask.transfer_key_encryption_algorithm = transfer.uri().to_owned();
    let reply = fabric.post(version.roll_path(), ask.encode()).await;
    let status = reply.status().as_u16();
    let body = reply.bytes().await.unwrap();
    match status {
        200 => Ok(RollTransportKeyResponse::parse(&body).unwrap()),
        _ => Err((status, ErrorMessage::parse(&body).unwrap().code)),
    }
}

fn refused(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

#[actix_web::test]
async fn keys_are_sealed_to_a_certified_p256_key_and_under_a_p256_signer() {
    let fabric = Fabric::start(2).await;
    let ec_signer = AttestationSigner::generate_of(Suite::P256, fabric.clock.now(), &mut OsRandom).unwrap();
    let host = PrivateKey::generate(Suite::P256, &mut OsRandom).unwrap();
    let other = PrivateKey::generate(Suite::P256, &mut OsRandom).unwrap();
    let protector = fabric.protector().0.with_max_offline_unwraps(2).to_xml();

    let by_ec = certify(&fabric, &ec_signer, host.public(), CertificateKind::Encryption);
    let unknown = roll(&fabric, ServiceVersion::V2, &protector, &by_ec, KeyTransport::EcdhEs).await;
    assert_eq!(unknown.unwrap_err(), refused(403, "HealthCertificateException"));
    assert_eq!(fabric.trust(ec_signer.certificate_der()).await, 201);

    let mut ingress = protector;
    for (signer, version, offline) in [
        (&fabric.signer, ServiceVersion::V1, 0),
        (&fabric.signer, ServiceVersion::V2, 2),
        (&ec_signer, ServiceVersion::V2, 2),
    ] {
        let certificate = certify(&fabric, signer, host.public(), CertificateKind::Encryption);
        let answer = roll(&fabric, version, &ingress, &certificate, KeyTransport::EcdhEs)
            .await
            .unwrap();
        assert_eq!(answer.encrypted_transfer_key.len(), 105, "a point and a wrapped key");
        let keys = open_release(&answer, &host).unwrap();
        assert_eq!(keys.max_offline_unwraps, offline);
        check_roll(&ingress, &answer.egress_protector, &keys.egress).unwrap();
        assert!(open_release(&answer, &other).is_err());
        ingress = answer.egress_protector;
    }
    // An RSA key under the P-256 signer.
    let rsa = fabric.host.public().clone().into();
    let certificate = certify(&fabric, &ec_signer, rsa, CertificateKind::Encryption);
    let answer = fabric.roll(ServiceVersion::V2, &ingress, &certificate).await.unwrap();
    assert!(open_release(&answer, &fabric.host).is_ok());
    fabric.stop().await;
}

#[actix_web::test]
async fn an_algorithm_of_the_other_suite_is_refused_after_the_certificate_and_before_the_protector() {
    let fabric = Fabric::start(0).await;
    let host = PrivateKey::generate(Suite::P256, &mut OsRandom).unwrap();
    let ec = certify(&fabric, &fabric.signer, host.public(), CertificateKind::Encryption);
    let rsa = fabric.healthy();
    let protector = fabric.protector().0.to_xml();
    let unsupported = refused(400, "UnsupportedAlgorithmException");
    for (certificate, transfer) in [
        (&ec, KeyTransport::RsaOaep),
        (&ec, KeyTransport::RsaOaepSha1),
        (&rsa, KeyTransport::EcdhEs),
    ] {
        for protector in [protector.as_slice(), b"no protector"] {
            let answer = roll(&fabric, ServiceVersion::V2, protector, certificate, transfer).await;
            assert_eq!(answer.unwrap_err(), unsupported, "{transfer:?}");
        }
    }
    let mut changed = ec;
    *changed.last_mut().unwrap() ^= 1;
    let answer = roll(&fabric, ServiceVersion::V2, &protector, &changed, KeyTransport::RsaOaep).await;
    assert_eq!(answer.unwrap_err(), refused(403, "HealthCertificateException"));
    fabric.stop().await;
}

/// A certificate by the trusted signer in which all is good but, perhaps, key and usage.
fn forged(fabric: &Fabric, key: &rcgen::KeyPair, usages: &[KeyUsagePurpose]) -> Vec<u8> {
    let arcs = |id: x509_cert::der::asn1::ObjectIdentifier| id.arcs().map(u64::from).collect::<Vec<u64>>();
    let now = fabric.clock.now();
    let statement = AttestationStatement {
        mode: AttestationMode::HostKey,
        issued_at: now,
        policies: vec![],
        reset_hint: None,
    };
    let mut params = CertificateParams::default();
    let since = |seconds: i64| std::time::Duration::from_secs(u64::try_from(now.plus_seconds(seconds).0).unwrap());
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + since(0);
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + since(3600);
    params.key_usages = usages.to_vec();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(arcs(oid::HEALTH_ENCRYPTION))];
    params.custom_extensions = vec![CustomExtension::from_oid_content(
        &arcs(oid::ATTESTATION),
        statement.encode().unwrap(),
    )];
    let mut names = CertificateParams::default();
    names.distinguished_name.push(DnType::CommonName, "any");
    let signer = fabric.signer.expose_pkcs8();
    let signer = rustls::pki_types::PrivatePkcs8KeyDer::from(signer.to_vec()).into();
    let signer = rcgen::KeyPair::from_der_and_sign_algo(&signer, &rcgen::PKCS_RSA_SHA256).unwrap();
    params
        .signed_by(key, &Issuer::new(names, signer))
        .unwrap()
        .der()
        .to_vec()
}

#[actix_web::test]
async fn key_usage_of_the_other_suite_and_another_curve_are_refused() {
    let fabric = Fabric::start(0).await;
    let protector = fabric.protector().0.to_xml();
    let p256 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let rsa = RsaPrivateKey::generate_2048().unwrap();
    let rsa = rustls::pki_types::PrivatePkcs8KeyDer::from(rsa.expose_pkcs8().to_vec()).into();
    let rsa = rcgen::KeyPair::from_der_and_sign_algo(&rsa, &rcgen::PKCS_RSA_SHA256).unwrap();
    let (agreement, encipherment) = ([KeyUsagePurpose::KeyAgreement], [KeyUsagePurpose::KeyEncipherment]);
    let certificate = refused(403, "HealthCertificateException");
    for (name, key, usage, transfer, expected) in [
        ("good", &p256, &agreement, KeyTransport::EcdhEs, None),
        ("good", &rsa, &encipherment, KeyTransport::RsaOaep, None),
        (
            "P-256 for keyEncipherment",
            &p256,
            &encipherment,
            KeyTransport::EcdhEs,
            Some(&certificate),
        ),
        (
            "RSA for keyAgreement",
            &rsa,
            &agreement,
            KeyTransport::RsaOaep,
            Some(&certificate),
        ),
        ("P-384", &p384, &agreement, KeyTransport::EcdhEs, Some(&certificate)),
    ] {
        let forged = forged(&fabric, key, usage);
        let answer = roll(&fabric, ServiceVersion::V2, &protector, &forged, transfer).await;
        assert_eq!(answer.err().as_ref(), expected, "{name}");
    }
    fabric.stop().await;
}

#[actix_web::test]
async fn certificates_of_other_kinds_get_no_keys_whatever_their_key() {
    let fabric = Fabric::start(0).await;
    let protector = fabric.protector().0.to_xml();
    let ec = PrivateKey::generate(Suite::P256, &mut OsRandom).unwrap();
    let rsa = fabric.host.public().clone();
    for kind in [CertificateKind::Authority, CertificateKind::Signing] {
        for (key, transfer) in [
            (ec.public(), KeyTransport::EcdhEs),
            (rsa.clone().into(), KeyTransport::RsaOaep),
        ] {
            let certificate = certify(&fabric, &fabric.signer, key, kind);
            let answer = roll(&fabric, ServiceVersion::V2, &protector, &certificate, transfer).await;
            assert_eq!(
                answer.unwrap_err(),
                refused(403, "HealthCertificateException"),
                "{kind:?}"
            );
        }
    }
    let reason = fabric.get_admin("audit?limit=1").await[0]["body"]["cause"].clone();
    assert_eq!(
        reason,
        "the health certificate's key usage allows neither keyEncipherment of an RSA key nor keyAgreement of a P-256 key"
    );
    fabric.stop().await;
}
