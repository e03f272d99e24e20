use std::process::{Command, Stdio};

use proptest::prelude::*;

use rcgen::{CertificateParams, CustomExtension, Issuer, SerialNumber};

use x509_cert::der::Encode as _;

use super::{
    issue::{SIGNER_NAME, common_name, extension, set_validity},
    *,
};
use crate::{
    certify::{CertificateSigner, SubjectKey},
    crypto::RsaPrivateKey,
    env::SeededRandom,
    protector::suite::{PrivateKey, Suite},
};

const NOW: UnixTime = UnixTime(1_770_000_000);

fn signer() -> AttestationSigner {
    AttestationSigner::generate(NOW, &mut SeededRandom::new(1)).unwrap()
}

fn request() -> HealthCertificateRequest {
    HealthCertificateRequest {
        key: RsaPrivateKey::generate_2048().unwrap().public().clone().into(),
        kind: CertificateKind::Encryption,
        mode: AttestationMode::Tpm,
        policies: vec![PolicyVerdict {
            id: Uuid::from_u128(0x6a460ee1_62ea_416f_ae6c_04e29634506d),
            passed: true,
        }],
        issued_at: NOW,
        lifetime: DEFAULT_LIFETIME,
    }
}

fn issue(signer: &AttestationSigner, ask: &HealthCertificateRequest) -> HealthCertificate {
    let der = signer.issue(ask, &mut SeededRandom::new(2)).unwrap();
    HealthCertificate::parse(&der).unwrap()
}

fn trust(signer: &AttestationSigner) -> Vec<TrustedSigner> {
    vec![TrustedSigner::from_certificate(signer.certificate_der()).unwrap()]
}

fn verdict(change: impl FnOnce(&mut HealthCertificateRequest), now: UnixTime) -> Result<(), HealthCertificateError> {
    let signer = signer();
    let mut ask = request();
    change(&mut ask);
    let certificate = issue(&signer, &ask);
    certificate
        .accept(&trust(&signer), now, &AcceptanceRules::default())
        .map(|_| ())
}

fn p256() -> PublicKey {
    PrivateKey::generate(Suite::P256, &mut SeededRandom::new(7))
        .unwrap()
        .public()
}

/// Signs `params` over the signer's own key, whatever they say.
fn forge(signer: &AttestationSigner, change: impl FnOnce(&mut CertificateParams)) -> HealthCertificate {
    forge_for(signer, &signer.public(), change)
}

fn forge_for(
    signer: &AttestationSigner,
    key: &PublicKey,
    change: impl FnOnce(&mut CertificateParams),
) -> HealthCertificate {
    let mut params = CertificateParams::default();
    set_validity(&mut params, NOW, NOW.plus_seconds(3600)).unwrap();
    params.serial_number = Some(SerialNumber::from_slice(&[1]));
    change(&mut params);
    let mut names = CertificateParams::default();
    names.distinguished_name = common_name(SIGNER_NAME);
    let issuer = Issuer::new(names, CertificateSigner::new(&signer.key));
    HealthCertificate::parse(params.signed_by(&SubjectKey::new(key), &issuer).unwrap().der()).unwrap()
}

fn usage(kind: CertificateKind) -> CustomExtension {
    usage_of(kind, &request().key)
}

/// What a certificate for a key like `key` would say.
fn usage_of(kind: CertificateKind, key: &PublicKey) -> CustomExtension {
    extension(oid::KEY_USAGE, true, KeyUsage(kind.usage(key)).to_der().unwrap())
}

fn purpose(kind: CertificateKind) -> CustomExtension {
    let purposes = ExtendedKeyUsage(vec![kind.purpose()]).to_der().unwrap();
    extension(oid::EXTENDED_KEY_USAGE, false, purposes)
}

fn forged(change: impl FnOnce(&mut CertificateParams)) -> HealthCertificateError {
    let signer = signer();
    forge(&signer, change)
        .accept(&trust(&signer), NOW, &AcceptanceRules::default())
        .unwrap_err()
}

#[test]
fn an_issued_certificate_is_accepted_and_certifies_exactly_its_key() {
    let signer = signer();
    let ask = request();
    let certificate = issue(&signer, &ask);
    let host = certificate
        .accept(&trust(&signer), NOW, &AcceptanceRules::default())
        .unwrap();
    assert_eq!(host.encryption_key(), &ask.key);
    assert_eq!(host.statement().policies, ask.policies);
    assert_eq!(host.statement().issued_at, NOW);
    assert_eq!(host.serial().len(), 32);
    assert_eq!(
        certificate.validity(),
        (NOW.plus_seconds(-300), NOW.plus_seconds(8 * 3600))
    );
    let subject = certificate.certificate.tbs_certificate.subject.to_string();
    assert_eq!(subject, format!("CN={}", hex::encode_upper(ask.key.spki_sha256())));
}

#[test]
fn a_p256_key_is_certified_for_agreement_and_by_a_p256_signer_too() {
    let ec_signer = AttestationSigner::generate_of(Suite::P256, NOW, &mut SeededRandom::new(4)).unwrap();
    let again = AttestationSigner::from_parts(ec_signer.expose_pkcs8(), ec_signer.certificate_der()).unwrap();
    for signer in [signer(), ec_signer, again] {
        for key in [request().key, p256()] {
            let ask = HealthCertificateRequest {
                key: key.clone(),
                ..request()
            };
            let certificate = issue(&signer, &ask);
            let host = certificate
                .accept(&trust(&signer), NOW, &AcceptanceRules::default())
                .unwrap();
            assert_eq!(host.encryption_key(), &key);
            let usage = certificate.read::<KeyUsage>(oid::KEY_USAGE).unwrap().unwrap();
            assert_eq!(usage.key_agreement(), matches!(key, PublicKey::P256(_)));
            assert_eq!(usage.key_encipherment(), matches!(key, PublicKey::Rsa(_)));
            let signing = HealthCertificateRequest {
                kind: CertificateKind::Signing,
                ..ask
            };
            let signing = issue(&signer, &signing);
            let usage = signing.read::<KeyUsage>(oid::KEY_USAGE).unwrap().unwrap();
            assert!(usage.digital_signature() && !usage.key_agreement() && !usage.key_encipherment());
            let stranger = AttestationSigner::generate_of(Suite::P256, NOW, &mut SeededRandom::new(5)).unwrap();
            let refused = certificate.accept(&trust(&stranger), NOW, &AcceptanceRules::default());
            assert_eq!(refused.unwrap_err(), HealthCertificateError::UntrustedSigner);
        }
    }
}

#[test]
fn the_usage_of_the_other_suite_does_not_do() {
    let signer = signer();
    let kind = CertificateKind::Encryption;
    let (rsa, ec) = (request().key, p256());
    for (key, other) in [(&rsa, &ec), (&ec, &rsa)] {
        let bare = forge_for(&signer, key, |params| {
            params.custom_extensions = vec![usage_of(kind, other), purpose(kind)];
        });
        let refused = bare.accept(&trust(&signer), NOW, &AcceptanceRules::default());
        assert_eq!(refused.unwrap_err(), HealthCertificateError::KeyUsage);
    }
}

#[test]
fn a_key_of_another_curve_is_refused() {
    let signer = signer();
    let mut params = CertificateParams::default();
    set_validity(&mut params, NOW, NOW.plus_seconds(3600)).unwrap();
    let kind = CertificateKind::Encryption;
    params.custom_extensions = vec![usage_of(kind, &p256()), purpose(kind)];
    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let issuer = Issuer::new(CertificateParams::default(), CertificateSigner::new(&signer.key));
    let der = params.signed_by(&p384, &issuer).unwrap().der().to_vec();
    let refused = HealthCertificate::parse(&der)
        .unwrap()
        .accept(&trust(&signer), NOW, &AcceptanceRules::default());
    assert_eq!(refused.unwrap_err(), HealthCertificateError::Key);
    // Nor is one trusted as a signer.
    let own = CertificateParams::default().self_signed(&p384).unwrap();
    assert_eq!(
        TrustedSigner::from_certificate(own.der()).unwrap_err(),
        HealthCertificateError::Key
    );
}

#[test]
fn a_certificate_never_outlives_its_signer() {
    let signer = signer();
    let mut ask = request();
    ask.issued_at = signer.not_after().plus_seconds(-60);
    let certificate = issue(&signer, &ask);
    assert_eq!(certificate.validity().1, signer.not_after());
    ask.issued_at = signer.not_after();
    let refused = signer.issue(&ask, &mut SeededRandom::new(3));
    assert!(matches!(refused, Err(IssueError::SignerExpired { .. })));
}

#[test]
fn a_signer_comes_back_from_its_parts_and_only_from_its_own() {
    let (one, two) = (signer(), signer());
    let again = AttestationSigner::from_parts(one.expose_pkcs8(), one.certificate_der()).unwrap();
    issue(&again, &request())
        .accept(&trust(&one), NOW, &AcceptanceRules::default())
        .unwrap();
    let mixed = AttestationSigner::from_parts(one.expose_pkcs8(), two.certificate_der());
    assert!(matches!(mixed, Err(IssueError::KeyMismatch)));
}

#[test]
fn the_signer_of_another_fabric_is_not_trusted_though_its_name_is_equal() {
    let certificate = issue(&signer(), &request());
    let refused = certificate.accept(&trust(&signer()), NOW, &AcceptanceRules::default());
    assert_eq!(refused.unwrap_err(), HealthCertificateError::UntrustedSigner);
}

#[test]
fn any_changed_bit_is_refused() {
    let signer = signer();
    let der = signer.issue(&request(), &mut SeededRandom::new(2)).unwrap();
    for place in (0..der.len()).step_by(7) {
        let mut bad = der.clone();
        bad[place] ^= 0x10;
        let accepted = HealthCertificate::parse(&bad)
            .and_then(|certificate| certificate.accept(&trust(&signer), NOW, &AcceptanceRules::default()));
        assert!(accepted.is_err(), "byte {place}");
    }
}

#[test]
fn parsing_refuses_what_is_no_certificate() {
    let der = signer().issue(&request(), &mut SeededRandom::new(2)).unwrap();
    let refused = |der: &[u8]| HealthCertificate::parse(der).unwrap_err();
    assert_eq!(
        refused(&vec![0x30; MAX_CERTIFICATE + 1]),
        HealthCertificateError::TooLong
    );
    assert_eq!(refused(&[]), HealthCertificateError::NotX509);
    assert_eq!(refused(&der[..der.len() - 1]), HealthCertificateError::NotX509);
    assert_eq!(
        refused(&[der.as_slice(), &[0]].concat()),
        HealthCertificateError::NotX509
    );
    // sha1WithRSAEncryption differs from sha256WithRSAEncryption in the last byte alone.
    let oid = oid::SHA256_WITH_RSA.as_bytes();
    let weak: Vec<usize> = (0..der.len()).filter(|at| der[*at..].starts_with(oid)).collect();
    let mut bad = der.clone();
    for at in weak {
        bad[at + oid.len() - 1] = 5;
    }
    assert!(matches!(refused(&bad), HealthCertificateError::SignatureAlgorithm(_)));
}

#[test]
fn the_dates_are_kept_to_the_second() {
    let none = |_: &mut HealthCertificateRequest| {};
    assert_eq!(verdict(none, NOW.plus_seconds(-600)), Ok(()));
    assert_eq!(
        verdict(none, NOW.plus_seconds(-601)),
        Err(HealthCertificateError::NotYetValid(NOW.plus_seconds(-300)))
    );
    let end = NOW.plus_seconds(8 * 3600);
    assert_eq!(verdict(none, end), Ok(()));
    assert_eq!(
        verdict(none, end.plus_seconds(1)),
        Err(HealthCertificateError::Expired(end))
    );
    assert_eq!(verdict(|ask| ask.lifetime = MAX_LIFETIME, NOW), Ok(()));
    assert_eq!(
        verdict(|ask| ask.lifetime = MAX_LIFETIME + Duration::from_secs(1), NOW),
        Err(HealthCertificateError::Lifetime(86_401))
    );
}

#[test]
fn certificates_from_before_the_cut_are_denied() {
    let signer = signer();
    let certificate = issue(&signer, &request());
    let mut signers = trust(&signer);
    signers[0].deny_issued_before = Some(NOW);
    certificate.accept(&signers, NOW, &AcceptanceRules::default()).unwrap();
    signers[0].deny_issued_before = Some(NOW.plus_seconds(1));
    let refused = certificate.accept(&signers, NOW, &AcceptanceRules::default());
    assert!(matches!(refused, Err(HealthCertificateError::Denied { .. })));
    // Another certificate of the same key, trusted without a date, does not lift the cut.
    signers.insert(0, trust(&signer).remove(0));
    let refused = certificate.accept(&signers, NOW, &AcceptanceRules::default());
    assert!(matches!(refused, Err(HealthCertificateError::Denied { .. })));
}

#[test]
fn other_kinds_of_certificate_are_refused() {
    let signing = verdict(|ask| ask.kind = CertificateKind::Signing, NOW);
    assert_eq!(signing, Err(HealthCertificateError::KeyUsage));
    let authority = verdict(|ask| ask.kind = CertificateKind::Authority, NOW);
    assert_eq!(authority, Err(HealthCertificateError::Authority));
    let signer = signer();
    let own = HealthCertificate::parse(signer.certificate_der()).unwrap();
    let refused = own
        .accept(&trust(&signer), NOW, &AcceptanceRules::default())
        .unwrap_err();
    // It is refused for its length of life already; the authority flag is the next check.
    assert!(matches!(refused, HealthCertificateError::Lifetime(_)));
}

#[test]
fn a_failed_policy_and_a_foreign_mode_are_refused() {
    let failed = verdict(|ask| ask.policies[0].passed = false, NOW);
    assert!(matches!(failed, Err(HealthCertificateError::PolicyFailed(_))));
    let signer = signer();
    let mut ask = request();
    ask.mode = AttestationMode::HostKey;
    ask.policies.clear();
    let rules = AcceptanceRules {
        modes: vec![AttestationMode::Tpm],
    };
    let refused = issue(&signer, &ask).accept(&trust(&signer), NOW, &rules);
    assert_eq!(
        refused.unwrap_err(),
        HealthCertificateError::Mode(AttestationMode::HostKey)
    );
}

#[test]
fn each_missing_or_odd_extension_has_its_own_refusal() {
    use HealthCertificateError as Refused;
    let kind = CertificateKind::Encryption;
    assert_eq!(forged(|_| {}), Refused::KeyUsage);
    assert_eq!(forged(|p| p.custom_extensions = vec![usage(kind)]), Refused::Purpose);
    let other = purpose(CertificateKind::Signing);
    assert_eq!(
        forged(|p| p.custom_extensions = vec![usage(kind), other]),
        Refused::Purpose
    );
    let bare = vec![usage(kind), purpose(kind)];
    assert_eq!(
        forged(|p| p.custom_extensions = bare.clone()),
        Refused::StatementMissing
    );
    let odd = extension(oid::ATTESTATION, false, vec![0x30, 0]);
    let extensions = vec![usage(kind), purpose(kind), odd];
    assert_eq!(
        forged(|p| p.custom_extensions = extensions),
        Refused::StatementMalformed
    );
    let twice = vec![usage(kind), usage(kind)];
    assert_eq!(
        forged(|p| p.custom_extensions = twice),
        Refused::Extension(oid::KEY_USAGE)
    );
    let unknown = extension(oid::HEALTH_POLICY, true, vec![5, 0]);
    assert_eq!(
        forged(|p| p.custom_extensions = vec![unknown]),
        Refused::UnknownCriticalExtension(oid::HEALTH_POLICY)
    );
}

#[test]
fn two_different_algorithm_fields_are_refused() {
    let signer = signer();
    let mut certificate = issue(&signer, &request());
    certificate.certificate.tbs_certificate.signature.oid = oid::SHA384_WITH_RSA;
    let refused = certificate.accept(&trust(&signer), NOW, &AcceptanceRules::default());
    assert_eq!(refused.unwrap_err(), HealthCertificateError::AlgorithmMismatch);
}

#[test]
fn openssl_reads_and_verifies_an_issued_certificate() {
    let version = Command::new("openssl").arg("version").stdout(Stdio::null()).status();
    if !version.is_ok_and(|status| status.success()) {
        println!("skipped: no openssl command");
        return;
    }
    let ec_signer = AttestationSigner::generate_of(Suite::P256, NOW, &mut SeededRandom::new(4)).unwrap();
    let rsa = ["Key Encipherment, Data Encipherment", "Public-Key: (2048 bit)"];
    let ec = ["Key Agreement", "ASN1 OID: prime256v1"];
    check_by_openssl(&signer(), request().key, "sha256WithRSAEncryption", &rsa);
    check_by_openssl(&signer(), p256(), "sha256WithRSAEncryption", &ec);
    check_by_openssl(&ec_signer, request().key, "ecdsa-with-SHA256", &rsa);
    check_by_openssl(&ec_signer, p256(), "ecdsa-with-SHA256", &ec);
}

fn check_by_openssl(signer: &AttestationSigner, key: PublicKey, algorithm: &str, more: &[&str]) {
    let folder = std::env::temp_dir().join(format!("health-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("signer.der"), signer.certificate_der()).unwrap();
    let ask = HealthCertificateRequest { key, ..request() };
    let der = signer.issue(&ask, &mut SeededRandom::new(2)).unwrap();
    std::fs::write(folder.join("health.der"), &der).unwrap();
    let run = |arguments: &[&str]| {
        let out = Command::new("openssl")
            .args(arguments)
            .current_dir(&folder)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "{text}{}", String::from_utf8_lossy(&out.stderr));
        text
    };
    run(&["x509", "-inform", "DER", "-in", "signer.der", "-out", "signer.pem"]);
    run(&["x509", "-inform", "DER", "-in", "health.der", "-out", "health.pem"]);
    let at = NOW.0.to_string();
    let verified = run(&[
        "verify",
        "-x509_strict",
        "-attime",
        &at,
        "-CAfile",
        "signer.pem",
        "health.pem",
    ]);
    let text = run(&["x509", "-in", "health.pem", "-noout", "-text"]);
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(verified.contains("health.pem: OK"), "{verified}");
    let signature = format!("Signature Algorithm: {algorithm}");
    let common = [
        signature.as_str(),
        "X509v3 Key Usage: critical",
        "1.3.6.1.4.1.311.21.10",
        "X509v3 Authority Key Identifier",
        "DirName:",
        "1.3.6.1.4.1.32473.1.1",
        "1.3.6.1.4.1.32473.1.4",
    ];
    for expected in common.iter().chain(more) {
        let spaceless = |text: &str| text.replace(' ', "");
        assert!(spaceless(&text).contains(&spaceless(expected)), "{expected}: {text}");
    }
}

proptest! {
    #[test]
    fn a_statement_survives_its_encoding(
        mode in 0usize..3,
        issued_at in 0i64..4_000_000_000,
        policies in proptest::collection::vec((any::<u128>(), any::<bool>()), 0..20),
        reset_hint in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)),
    ) {
        let statement = AttestationStatement {
            mode: AttestationMode::ALL[mode],
            issued_at: UnixTime(issued_at),
            policies: policies
                .into_iter()
                .map(|(id, passed)| PolicyVerdict { id: Uuid::from_u128(id), passed })
                .collect(),
            reset_hint,
        };
        prop_assert_eq!(AttestationStatement::parse(&statement.encode().unwrap()), Ok(statement));
    }

    #[test]
    fn hostile_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = AttestationStatement::parse(&bytes);
        let _ = HealthCertificate::parse(&bytes);
    }
}
