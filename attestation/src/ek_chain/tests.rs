use std::path::PathBuf;

use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512,
};
use serde_json::Value;

use super::*;

const NOW: UnixTime = UnixTime(1_770_000_000);

fn params(name: &str, is_ca: bool) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    if is_ca {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    } else {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(vec![2, 23, 133, 8, 1])];
        params.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
    }
    params
}

/// A root on P-521, an intermediate on P-384 and what they issue.
struct Vendor {
    root: Vec<u8>,
    middle: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

impl Vendor {
    fn new(change: impl FnOnce(&mut CertificateParams)) -> Vendor {
        let root_key = KeyPair::generate_for(&PKCS_ECDSA_P521_SHA512).unwrap();
        let middle_key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        let root = params("root", true).self_signed(&root_key).unwrap();
        let root_issuer = Issuer::new(params("root", true), root_key);
        let mut middle = params("middle", true);
        change(&mut middle);
        let middle = middle.signed_by(&middle_key, &root_issuer).unwrap();
        Vendor {
            root: root.der().to_vec(),
            middle: middle.der().to_vec(),
            issuer: Issuer::new(params("middle", true), middle_key),
        }
    }

    fn leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> ParsedCertificate {
        let mut leaf = params("tpm", false);
        change(&mut leaf);
        let key = KeyPair::generate().unwrap();
        ParsedCertificate::parse(leaf.signed_by(&key, &self.issuer).unwrap().der()).unwrap()
    }

    fn middle(&self) -> ParsedCertificate {
        ParsedCertificate::parse(&self.middle).unwrap()
    }
}

fn anchors(ders: &[&[u8]]) -> Vec<Anchor> {
    ders.iter().map(|der| Anchor::parse(der).unwrap()).collect()
}

fn says(judgement: &Judgement, words: &str) {
    let found = judgement.reasons.iter().any(|reason| reason.contains(words));
    assert!(found, "no reason says '{words}': {:#?}", judgement.reasons);
}

#[test]
fn every_trusted_authority_is_an_anchor() {
    let vendor = Vendor::new(|_| {});
    let leaf = vendor.leaf(|_| {});
    for (sent, trusted, length) in [
        (vec![], anchors(&[&vendor.middle, &vendor.root]), 3),
        (vec![], anchors(&[&vendor.middle]), 2),
        (vec![vendor.middle()], anchors(&[&vendor.root]), 3),
    ] {
        let judgement = judge(&leaf, &sent, &trusted, NOW);
        assert!(judgement.trusted, "{:#?}", judgement.reasons);
        assert_eq!(judgement.chain.len(), length);
        says(&judgement, "signed CN=tpm (ecdsa-with-sha384)");
    }
}

#[test]
fn each_broken_chain_has_its_reason() {
    let vendor = Vendor::new(|_| {});
    let trusted = anchors(&[&vendor.middle, &vendor.root]);
    let leaf = vendor.leaf(|_| {});
    let refused = |leaf: &ParsedCertificate, sent: &[ParsedCertificate], trusted: &[Anchor], words: &str| {
        let judgement = judge(leaf, sent, trusted, NOW);
        assert!(!judgement.trusted);
        says(&judgement, words);
    };
    refused(&leaf, &[], &[], "issuer CN=middle is not among the trusted");
    refused(
        &leaf,
        &[],
        &anchors(&[&vendor.root]),
        "issuer CN=middle is not among the trusted",
    );
    refused(
        &leaf,
        &[vendor.middle()],
        &[],
        "issuer CN=root is not among the trusted",
    );
    let root = ParsedCertificate::parse(&vendor.root).unwrap();
    refused(
        &leaf,
        &[vendor.middle(), root],
        &[],
        "ends at CN=root, which is not trusted",
    );
    let stranger = Vendor::new(|_| {});
    refused(&leaf, &[], &anchors(&[&stranger.middle]), "is not that of CN=middle");

    let expired = vendor.leaf(|leaf| leaf.not_after = rcgen::date_time_ymd(2020, 1, 1));
    refused(&expired, &[], &trusted, "expired at 2020-01-01");
    let early = vendor.leaf(|leaf| leaf.not_before = rcgen::date_time_ymd(2090, 1, 1));
    refused(&early, &[], &trusted, "not valid before 2090");
    let server = vendor.leaf(|leaf| leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    refused(&server, &[], &trusted, "its extended key usage is 1.3.6.1.5.5.7.3.1");
    let silent = vendor.leaf(|leaf| leaf.extended_key_usages.clear());
    refused(&silent, &[], &trusted, "no extended key usage");
    let nameless = vendor.leaf(|leaf| leaf.distinguished_name = rcgen::DistinguishedName::new());
    refused(&nameless, &[], &trusted, "names nothing");
    let authority = vendor.leaf(|leaf| leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    refused(
        &authority,
        &[],
        &trusted,
        "certificate authority's, not an endorsement key's",
    );
    let strange = vendor.leaf(|leaf| {
        let mut extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 32473, 9], vec![5, 0]);
        extension.set_criticality(true);
        leaf.custom_extensions.push(extension);
    });
    refused(&strange, &[], &trusted, "critical extension 1.3.6.1.4.1.32473.9");
    let signing = vendor.leaf(|leaf| leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature]);
    let judgement = judge(&signing, &[], &trusted, NOW);
    assert!(judgement.trusted && !judgement.can_decrypt);
    says(&judgement, "cannot take part in an attestation");
}

#[test]
fn an_intermediate_that_came_along_must_be_an_authority_in_time() {
    let judged = |vendor: Vendor| {
        let root = anchors(&[&vendor.root]);
        judge(&vendor.leaf(|_| {}), &[vendor.middle()], &root, NOW)
    };
    let expired = judged(Vendor::new(|middle| {
        middle.not_after = rcgen::date_time_ymd(2020, 1, 1)
    }));
    assert!(!expired.trusted);
    says(&expired, "the issuer CN=middle expired");
    let plain = judged(Vendor::new(|middle| middle.is_ca = IsCa::NoCa));
    assert!(!plain.trusted);
    says(&plain, "CN=middle is not a certificate authority");
    assert!(matches!(
        Anchor::parse(&Vendor::new(|middle| middle.is_ca = IsCa::NoCa).middle),
        Err(AnchorError::NotAuthority { .. })
    ));
}

#[test]
fn a_path_length_is_kept() {
    let root_key = KeyPair::generate().unwrap();
    let mut root = params("root", true);
    root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let root_der = root.self_signed(&root_key).unwrap().der().to_vec();
    let middle_key = KeyPair::generate().unwrap();
    let middle = params("middle", true);
    let middle_der = middle
        .signed_by(&middle_key, &Issuer::new(root, root_key))
        .unwrap()
        .der()
        .to_vec();
    let leaf_key = KeyPair::generate().unwrap();
    let leaf = params("tpm", false)
        .signed_by(&leaf_key, &Issuer::new(middle, middle_key))
        .unwrap();
    let leaf = ParsedCertificate::parse(leaf.der()).unwrap();
    let sent = [ParsedCertificate::parse(&middle_der).unwrap()];
    let judgement = judge(&leaf, &sent, &anchors(&[&root_der]), NOW);
    assert!(!judgement.trusted);
    says(&judgement, "forbids so many authorities");
}

#[test]
fn filler_is_taken_and_other_bytes_are_not() {
    let vendor = Vendor::new(|_| {});
    for (filler, taken) in [([0; 7], true), ([0xFF; 7], true), ([0, 0, 0, 1, 0, 0, 0], false)] {
        let padded = [vendor.middle.as_slice(), &filler].concat();
        let parsed = ParsedCertificate::parse(&padded);
        assert_eq!(parsed.is_ok(), taken);
        if let Ok(parsed) = parsed {
            assert_eq!(parsed.der(), vendor.middle);
        }
    }
}

proptest! {
    #[test]
    fn damaged_certificates_end_in_an_answer(at in 0usize..2000, byte: u8, cut in 0usize..2000) {
        let vendor = Vendor::new(|_| {});
        let mut der = vendor.middle.clone();
        let at = at % der.len();
        if let Some(place) = der.get_mut(at) {
            *place ^= byte;
        }
        let trusted = anchors(&[&vendor.root]);
        if let Ok(parsed) = ParsedCertificate::parse(&der) {
            judge(&parsed, &[], &trusted, NOW);
        }
        der.truncate(cut);
        let _ = ParsedCertificate::parse(&der);
    }
}

fn corpus() -> Option<PathBuf> {
    let root = match std::env::var_os("LAB_CORPUS") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus"),
    };
    if !root.is_dir() {
        println!("skipped: no corpus of certificates at {}", root.display());
        return None;
    }
    Some(root)
}

#[test]
fn certificates_of_real_tpms_are_judged_as_expected() {
    let Some(root) = corpus() else { return };
    let expectations: Value = serde_json::from_slice(&std::fs::read(root.join("expectations.json")).unwrap()).unwrap();
    let roots = crate::inspect_ek::read_roots(&root.join("ekcerts/ca")).unwrap();
    assert_eq!(roots.skipped, Vec::<String>::new());
    let mut judged = 0;
    for (path, expected) in expectations.as_object().unwrap() {
        if !path.starts_with("ekcerts/") || path.starts_with("ekcerts/ca/") {
            continue;
        }
        let bytes = std::fs::read(root.join(path)).unwrap();
        let leaf = ParsedCertificate::parse(&bytes).unwrap();
        let judgement = judge(&leaf, &[], &roots.anchors, NOW);
        let issuers = expected["directIssuerInStore"].as_array().unwrap();
        let is_ek = expected["isEkCertificate"].as_bool().unwrap();
        assert_eq!(
            judgement.trusted,
            is_ek && !issuers.is_empty(),
            "{path}: {:#?}",
            judgement.reasons
        );
        assert_eq!(judgement.chain.len() > 1, !issuers.is_empty(), "{path}");
        if let Some(spki) = expected["spkiSha256"].as_str() {
            assert_eq!(
                hex::encode(ParsedCertificate::rsa_key_of(&bytes).unwrap().spki_sha256()),
                spki,
                "{path}"
            );
        }
        judged += 1;
    }
    assert!(judged > 0);
}

#[test]
fn every_vendor_authority_of_the_corpus_vouches_for_what_it_signed() {
    let Some(root) = corpus() else { return };
    let roots = crate::inspect_ek::read_roots(&root.join("ekcerts/ca")).unwrap();
    let mut signed = 0;
    for child in &roots.anchors {
        for issuer in &roots.anchors {
            if child.certificate().issuer == issuer.certificate().subject {
                assert!(
                    child.certificate().signed_by(issuer.certificate()),
                    "{} by {}",
                    child.certificate().name(),
                    issuer.certificate().name()
                );
                signed += 1;
            }
        }
    }
    assert!(signed > 0);
}
