//! A host's CA trustlet asks for a certificate: on a genuine TPM, with a report as it should be and with each
//! thing wrong that the service looks at.

use guarded_host_sim::{
    machine::{boot::STARTUP_LOCALITY, dials::Dials},
    swtpm::TpmMaker,
};
use hgs_protocol::{
    crypto::{PublicKey, RsaPrivateKey, sha256},
    env::{Clock, OsRandom},
    health::{AcceptanceRules, CertificateKind, HealthCertificate, HealthCertificateError, TrustedSigner},
    protector::suite::{PrivateKey, Suite},
    wire::{
        boot_log::{Bank, BootLogBuilder, Event},
        hgsa::{ProvidedKind, Reply},
        vbs_report::{VbsReport, VbsReportBlock, VbsReportPackage},
        vsm::{encode_eck1, encode_rsa1},
    },
};

use crate::{
    forgery::{Rogue, exchange_for},
    lab::Service,
};

/// What the host brings, from which its four items are made.
struct Claim {
    /// The key of the trustlet, a blob.
    key: Vec<u8>,
    /// Item 5, when it is not the hash of the key.
    user_data: Option<Vec<u8>>,
    report: VbsReport,
    /// Signs the statement.
    statement_by: Signer,
    /// Changes the bytes of item 6 before they are signed.
    package: fn(&mut Vec<u8>),
    /// Signs item 6.
    package_by: Signer,
    /// Changes the items.
    items: fn(&mut Vec<(ProvidedKind, Vec<u8>)>),
}

/// Who signs, and how.
#[derive(Clone, Copy)]
enum Signer {
    /// The measured VSM signing key, by RSA-PSS.
    Vsm,
    /// The same, by PKCS#1 v1.5.
    VsmPkcs1,
    /// The measured VSM encryption key.
    Encryption,
    /// A key that no log holds.
    Other,
    /// Nobody.
    None,
}

struct Keys {
    encryption: RsaPrivateKey,
    signing: RsaPrivateKey,
    other: RsaPrivateKey,
}

impl Keys {
    fn sign(&self, by: Signer, message: &[u8]) -> Vec<u8> {
        match by {
            Signer::Vsm => self.signing.sign_pss_sha256(message).unwrap(),
            Signer::VsmPkcs1 => self.signing.sign_pkcs1_sha256(message).unwrap(),
            Signer::Encryption => self.encryption.sign_pss_sha256(message).unwrap(),
            Signer::Other => self.other.sign_pss_sha256(message).unwrap(),
            Signer::None => Vec::new(),
        }
    }
}

impl Claim {
    /// As it should be.
    fn honest(key: Vec<u8>) -> Claim {
        let mut report = VbsReport {
            enclave_data: [0; 64],
            owner_id: [1; 32],
            unique_id: [2; 32],
            author_id: [3; 32],
            family_id: [4; 16],
            image_id: [5; 16],
            enclave_svn: 0,
            secure_kernel_svn: 0,
            platform_svn: 1,
            flags: 0,
            signing_level: 0,
            enclave_type: 0x10,
            blocks: Vec::new(),
        };
        report.enclave_data[..32].copy_from_slice(&sha256(&key));
        Claim {
            key,
            user_data: None,
            report,
            statement_by: Signer::Vsm,
            package: |_| (),
            package_by: Signer::Vsm,
            items: |_| (),
        }
    }

    fn items(&self, keys: &Keys) -> Vec<(ProvidedKind, Vec<u8>)> {
        let statement = self.report.encode();
        let signature = keys.sign(self.statement_by, &statement);
        let mut package = VbsReportPackage { statement, signature }.encode();
        (self.package)(&mut package);
        let signature = keys.sign(self.package_by, &package);
        let user_data = self.user_data.clone().unwrap_or_else(|| sha256(&self.key).to_vec());
        let mut items = vec![
            (ProvidedKind::VsmIdentityKey, self.key.clone()),
            (ProvidedKind::CaTrustletUserData, user_data),
            (ProvidedKind::CaTrustletVsmReport, package),
            (ProvidedKind::CaTrustletReportSignature, signature),
        ];
        (self.items)(&mut items);
        items
    }
}

struct Wrong {
    name: &'static str,
    change: fn(&mut Claim),
    reply: &'static str,
    /// A part of the cause that the service records.
    cause: &'static str,
}

const WRONG: &[Wrong] = &[
    // Item 7.
    wrong(
        "a signature by a key that was not measured",
        |c| c.package_by = Signer::Other,
        REPORT,
        SIGNATURE,
    ),
    wrong(
        "a signature by the measured encryption key",
        |c| c.package_by = Signer::Encryption,
        REPORT,
        SIGNATURE,
    ),
    wrong(
        "a signature by PKCS#1 v1.5",
        |c| c.package_by = Signer::VsmPkcs1,
        REPORT,
        SIGNATURE,
    ),
    wrong("no signature", |c| c.package_by = Signer::None, REPORT, SIGNATURE),
    wrong(
        "a report changed after it was signed",
        |c| c.items = |items| items[2].1[100] ^= 1,
        REPORT,
        SIGNATURE,
    ),
    // Item 6.
    wrong("no report", |c| c.package = Vec::clear, REPORT, "cut off"),
    wrong(
        "a report cut off",
        |c| c.package = |p| p.truncate(200),
        REPORT,
        "cut off",
    ),
    wrong(
        "a report with a byte more",
        |c| c.package = |p| p.push(0),
        REPORT,
        "do not add up",
    ),
    wrong(
        "a package of version 2",
        |c| c.package = |p| p[4] = 2,
        REPORT,
        "of an unknown version",
    ),
    wrong(
        "a package of another scheme",
        |c| c.package = |p| p[8] = 2,
        REPORT,
        "the unknown scheme 2",
    ),
    wrong(
        "a statement of version 2",
        |c| c.package = |p| p[28] = 2,
        REPORT,
        "of an unknown version",
    ),
    wrong(
        "a statement that claims four gigabytes",
        |c| c.package = |p| p[12..16].fill(0xFF),
        REPORT,
        "cut off",
    ),
    wrong(
        "a report of 300 kilobytes",
        |c| c.package = |p| p.resize(300_000, 0),
        REPORT,
        "longer than 64 KiB",
    ),
    wrong(
        "a statement signed by nobody",
        |c| c.statement_by = Signer::None,
        REPORT,
        STATEMENT,
    ),
    wrong(
        "a statement signed by another key",
        |c| c.statement_by = Signer::Other,
        REPORT,
        STATEMENT,
    ),
    wrong(
        "an ordinary enclave's report in place of a package",
        as_a_package,
        REPORT,
        STATEMENT,
    ),
    wrong(
        "a trustlet under a debugger",
        |c| c.report.flags = 1,
        REPORT,
        "can be debugged",
    ),
    wrong(
        "a trustlet that can be debugged later",
        |c| c.report.flags = 2,
        REPORT,
        "can be debugged",
    ),
    // Item 5 and item 1.
    wrong(
        "a report about another key",
        |c| c.report.enclave_data[0] ^= 1,
        REPORT,
        "another hash",
    ),
    wrong(
        "the hash only behind other bytes",
        |c| c.report.enclave_data.rotate_right(32),
        REPORT,
        "another hash",
    ),
    wrong(
        "half of the hash",
        |c| c.items = |items| items[1].1.truncate(16),
        REPORT,
        "another hash",
    ),
    wrong(
        "no hash",
        |c| c.items = |items| items[1].1.clear(),
        REPORT,
        "another hash",
    ),
    wrong(
        "the key of somebody else",
        |c| c.items = |items| items[0].1 = encode_rsa1(RsaPrivateKey::generate_2048().unwrap().public()),
        REPORT,
        "is not the SHA-256 of the key",
    ),
    wrong(
        "a hash of nothing that is there",
        |c| {
            c.user_data = Some(vec![9; 32]);
            c.report.enclave_data[..32].fill(9);
        },
        REPORT,
        "is not the SHA-256 of the key",
    ),
    wrong(
        "bytes that are no key",
        |c| *c = Claim::honest(b"no key".to_vec()),
        REPORT,
        "the CA trustlet's key: ",
    ),
    wrong(
        "a key with a byte more",
        |c| *c = Claim::honest([c.key.as_slice(), &[0]].concat()),
        REPORT,
        "the CA trustlet's key: ",
    ),
    // Without an item, and with one twice.
    wrong(
        "item 1 left out",
        |c| c.items = |items| drop(items.remove(0)),
        PAYLOAD,
        NONE,
    ),
    wrong(
        "item 5 left out",
        |c| c.items = |items| drop(items.remove(1)),
        PAYLOAD,
        NONE,
    ),
    wrong(
        "item 6 left out",
        |c| c.items = |items| drop(items.remove(2)),
        PAYLOAD,
        NONE,
    ),
    wrong(
        "item 7 left out",
        |c| c.items = |items| drop(items.remove(3)),
        PAYLOAD,
        NONE,
    ),
    wrong(
        "item 6 twice",
        |c| c.items = |items| items.push(items[2].clone()),
        PAYLOAD,
        NONE,
    ),
];

const REPORT: &str = "VsmReportValidationErrorReply";
const PAYLOAD: &str = "PayloadErrorReply";
/// What is no request of the protocol leaves no record.
const NONE: &str = "";
const SIGNATURE: &str = "did not sign the CA trustlet's report";
const STATEMENT: &str = "did not sign the statement";

const fn wrong(name: &'static str, change: fn(&mut Claim), reply: &'static str, cause: &'static str) -> Wrong {
    Wrong {
        name,
        change,
        reply,
        cause,
    }
}

/// An enclave chooses the first 64 bytes of its report: enough for a package's header and the hash of a key.
/// Its statement, signed by the VSM key as every enclave's is, is offered as the package.
fn as_a_package(claim: &mut Claim) {
    let statement = claim.report.encode();
    let (inner, rest) = (224u32, 0u32);
    let mut data = [0; 64];
    // From offset 8 of the statement, which is offset 8 of the header: scheme, sizes, reserved.
    for (place, number) in [1, inner, rest, 0, inner, 1].into_iter().enumerate() {
        data[place * 4..][..4].copy_from_slice(&u32::to_le_bytes(number));
    }
    data[24..56].copy_from_slice(&sha256(&claim.key));
    claim.report.enclave_data = data;
    claim.report.blocks = vec![VbsReportBlock {
        data_type: 1,
        data: vec![0; 24 + 224 - statement.len() - 8],
    }];
    claim.package = |package| {
        let statement = VbsReportPackage::parse(package).unwrap().statement;
        *package = statement;
    };
}

/// The log as it was measured.
fn encoded(log: &[Event]) -> Vec<u8> {
    let mut builder = BootLogBuilder::new(STARTUP_LOCALITY);
    for event in log {
        let pcr = event.pcr_index().unwrap();
        match event.is_measured() {
            true => {
                let digest = event.digest(Bank::Sha256).unwrap().try_into().unwrap();
                builder.measure_digest(pcr, event.event_type, digest, event.data.clone());
            }
            false => builder.note(pcr, event.data.clone()),
        }
    }
    builder.finish()
}

#[actix_web::test]
async fn a_ca_trustlet_is_certified_when_all_holds_and_not_otherwise() {
    let Some(service) = Service::start("a_ca_trustlet_is_certified_when_all_holds_and_not_otherwise").await else {
        return;
    };
    let maker = TpmMaker::open(&service.dir.join("maker")).unwrap();
    let [encryption, signing, other] = [(); 3].map(|()| RsaPrivateKey::generate_2048().unwrap());
    let keys = Keys {
        encryption,
        signing,
        other,
    };
    // One TPM may start only so many exchanges a minute.
    let mut rogues = Vec::new();
    for name in ["one", "two", "three"] {
        let mut rogue = Rogue::make(&service, &maker, name);
        let log = encoded(&rogue.honest_boot([keys.encryption.public(), keys.signing.public()]));
        rogues.push((rogue, log));
    }
    service.trust_tpm_maker().await;
    for (number, (rogue, _)) in rogues.iter().enumerate() {
        service.register_ek(&format!("rogue{number}"), &rogue.certificate).await;
    }
    service.register("tpm-baselines", "model", &rogues[0].1).await;
    let policy = Dials::default().ci_policy.unwrap();
    service.register("ci-policies", "model", &policy).await;
    let mut turn = 0;
    let mut attest = async |requested: &[CertificateKind], items: &[(ProvidedKind, Vec<u8>)]| {
        turn = (turn + 1) % rogues.len();
        let (rogue, log) = &mut rogues[turn];
        let (certificate, url) = (&rogue.certificate, &rogue.url);
        exchange_for(requested, items, url, certificate, rogue.tpm.channel(), log, None).await
    };

    let rsa = RsaPrivateKey::generate_2048().unwrap();
    let honest = || Claim::honest(encode_rsa1(rsa.public()));
    let off = attest(&[CertificateKind::Authority], &honest().items(&keys)).await;
    assert_eq!(off.name(), PAYLOAD);
    let cause = service.last_record().await["reason"].clone();
    assert!(cause.as_str().unwrap().contains("are off"), "{cause}");
    service.switch_ca_certificates(true).await;

    let trusted = [TrustedSigner::from_certificate(&service.signer().await).unwrap()];
    let p256 = PrivateKey::generate(Suite::P256, &mut OsRandom).unwrap().public();
    let PublicKey::P256(point) = &p256 else {
        panic!("{p256:?}")
    };
    for (claim, key) in [
        (honest(), rsa.public().clone().into()),
        (Claim::honest(encode_eck1(point)), p256.clone()),
    ] {
        let requested = [CertificateKind::Authority, CertificateKind::Encryption];
        let reply = attest(&requested, &claim.items(&keys)).await;
        let Reply::HealthCertificate { content } = reply else {
            panic!("{reply:?}: {}", service.last_record().await["reason"])
        };
        assert_eq!([content[0].0, content[1].0], requested, "in request order");
        is_an_authority(&content[0].1, &key);
        // Key protection looks at it as at any health certificate, and refuses it.
        let judged = |der: &[u8]| {
            let certificate = HealthCertificate::parse(der).unwrap();
            let accepted = certificate.accept(&trusted, Clock::system().now(), &AcceptanceRules::default());
            accepted.map(|_| ())
        };
        assert_eq!(judged(&content[0].1), Err(HealthCertificateError::Authority));
        assert_eq!(judged(&content[1].1), Ok(()));
    }

    let mut unlike = Vec::new();
    for row in WRONG {
        let mut claim = honest();
        (row.change)(&mut claim);
        let reply = attest(&[CertificateKind::Authority], &claim.items(&keys)).await;
        let record = service.last_record().await;
        let cause = record["reason"].as_str().unwrap_or_default();
        if reply.name() != row.reply || !cause.contains(row.cause) {
            unlike.push(format!("{}: {}: {cause}", row.name, reply.name()));
        }
    }
    assert!(unlike.is_empty(), "{}", unlike.join("\n"));

    service.switch_ca_certificates(false).await;
    let off = attest(&[CertificateKind::Authority], &honest().items(&keys)).await;
    assert_eq!(off.name(), PAYLOAD);
}

fn is_an_authority(der: &[u8], key: &PublicKey) {
    use x509_cert::{
        Certificate,
        der::{Decode as _, Encode as _},
        ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages},
    };
    let certificate = Certificate::from_der(der).unwrap().tbs_certificate;
    assert_eq!(certificate.subject_public_key_info.to_der().unwrap(), key.spki_der());
    let (critical, constraints) = certificate.get::<BasicConstraints>().unwrap().unwrap();
    assert!(critical && constraints.ca && constraints.path_len_constraint == Some(0));
    let (critical, usage) = certificate.get::<KeyUsage>().unwrap().unwrap();
    assert!(critical && usage.0 == KeyUsages::KeyCertSign);
    let (_, purposes) = certificate.get::<ExtendedKeyUsage>().unwrap().unwrap();
    assert_eq!(purposes.0, [hgs_protocol::oid::HEALTH_AUTHORITY]);
}
