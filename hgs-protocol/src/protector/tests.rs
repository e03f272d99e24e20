//! The life of a protector, and every way of breaking one.

use std::sync::OnceLock;

use proptest::prelude::*;

use super::{
    chain::{VerifyError, WrappingFault},
    document::{KeyProtector, ProtectorError, Signature, Wrapping, WrappingId},
    suite::{KeyTransport, PrivateKey, Suite},
    *,
};
use crate::{
    crypto::{CryptoError, PublicKey},
    env::{SeededRandom, UnixTime},
    health::{
        AcceptanceRules, AttestationMode, AttestationSigner, CertificateKind, CertifiedHost, DEFAULT_LIFETIME,
        HealthCertificate, HealthCertificateRequest, TrustedSigner,
    },
    secret::TransportKey,
};

fn keys(which: usize) -> &'static GuardianKeys {
    static KEYS: OnceLock<Vec<GuardianKeys>> = OnceLock::new();
    let all = KEYS.get_or_init(|| {
        (0..4)
            .map(|n| {
                let name = format!("guardian {n}");
                GuardianKeys::generate(&name, UnixTime(1_800_000_000), &mut SeededRandom::new(n)).unwrap()
            })
            .collect()
    });
    &all[which]
}

fn owner() -> &'static GuardianKeys {
    keys(0)
}

fn service() -> &'static GuardianKeys {
    keys(1)
}

fn fresh() -> (KeyProtector, TransportKey) {
    KeyProtector::create(owner(), &[service().guardian().unwrap()], &mut SeededRandom::new(7)).unwrap()
}

/// A host whose health certificate was issued and accepted.
fn certified(host: PublicKey) -> CertifiedHost {
    let rng = &mut SeededRandom::new(11);
    let now = UnixTime(1_800_000_000);
    let signer = AttestationSigner::generate(now, rng).unwrap();
    let ask = HealthCertificateRequest {
        key: host,
        kind: CertificateKind::Encryption,
        mode: AttestationMode::HostKey,
        policies: vec![],
        issued_at: now,
        lifetime: DEFAULT_LIFETIME,
    };
    let trusted = [TrustedSigner::from_certificate(signer.certificate_der()).unwrap()];
    HealthCertificate::parse(&signer.issue(&ask, rng).unwrap())
        .unwrap()
        .accept(&trusted, now, &AcceptanceRules::default())
        .unwrap()
}

fn bytes(key: &TransportKey) -> &[u8; 32] {
    key.expose_transport_key().expose()
}

fn open(xml: &[u8], by: &GuardianKeys) -> Result<OpenedProtector, String> {
    let rng = &mut SeededRandom::new(8);
    KeyProtector::parse(xml)
        .map_err(|e| e.to_string())?
        .verify()
        .map_err(|e| e.to_string())?
        .open(by, rng)
        .map_err(|e| e.to_string())
}

/// Signs changed wrappings anew, as an owner would who wanted them so.
fn resign(mut change: impl FnMut(&mut Vec<Wrapping>), signer: u32) -> KeyProtector {
    let (protector, key) = fresh();
    let mut wrappings = protector.wrappings;
    change(&mut wrappings);
    let pair = &keys(usize::try_from(signer).unwrap() - 1).signing()[0];
    create::seal(wrappings, &key, WrappingId(signer), pair, 0).unwrap()
}

fn sign(by: &GuardianKeys, message: &[u8]) -> Signature {
    Signature {
        algorithm: by.signing()[0].signature_algorithm(),
        value: by.signing()[0].sign(message).unwrap(),
    }
}

/// The fault that verification stops at; examination names it too, of the same wrapping.
fn fault(protector: KeyProtector) -> (u32, WrappingFault) {
    let examined = protector.examine();
    let all: Vec<_> = examined
        .wrappings
        .iter()
        .flat_map(|w| w.faults.iter().map(|fault| (w.view.id, *fault)))
        .collect();
    match protector.clone().verify() {
        Err(VerifyError::Wrapping(error)) => {
            assert!(all.contains(&(error.id, error.fault)), "{error}: {all:?}");
            (error.id.0, error.fault)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_guardian_opens_and_each_roll_brings_a_new_key() {
    let (protector, key) = fresh();
    let xml = protector.to_xml();
    assert!(xml.starts_with(b"<?xml"));
    for by in [owner(), service()] {
        assert_eq!(bytes(open(&xml, by).unwrap().transport_key()), bytes(&key));
    }
    assert_eq!(open(&xml, keys(2)).err().unwrap(), OpenError::NoWrapping.to_string());

    let rng = &mut SeededRandom::new(9);
    let opened = open(&xml, service()).unwrap();
    let rolled = opened.roll(service(), rng).unwrap();
    assert_ne!(bytes(rolled.transport_key()), bytes(&key));
    assert_eq!(rolled.egress().signer(), WrappingId(2));
    let egress = rolled.egress().to_xml();
    check_roll(&xml, &egress, rolled.transport_key()).unwrap();
    for by in [owner(), service()] {
        assert_eq!(
            bytes(open(&egress, by).unwrap().transport_key()),
            bytes(rolled.transport_key())
        );
    }
    // And again from the egress protector, as a second power-on does.
    let again = open(&egress, service()).unwrap().roll(service(), rng).unwrap();
    check_roll(&egress, &again.egress().to_xml(), again.transport_key()).unwrap();
}

#[test]
fn owner_and_guardians_may_be_of_different_suites() {
    let (rng, now) = (&mut SeededRandom::new(5), UnixTime(1_800_000_000));
    let p256_owner = GuardianKeys::generate_p256("P-256 owner", now, rng).unwrap();
    let p256_service = GuardianKeys::generate_p256("P-256 service", now, rng).unwrap();
    for (owner, guardian, size) in [
        (&p256_owner, service(), 332),
        (owner(), &p256_service, 105 + 76),
        (&p256_owner, &p256_service, 105 + 76),
    ] {
        let public = guardian.guardian().unwrap();
        let (protector, key) = KeyProtector::create(owner, &[public], rng).unwrap();
        assert_eq!(protector.wrappings[1].transport_key.len(), size);
        let xml = protector.to_xml();
        for by in [owner, guardian] {
            assert_eq!(bytes(open(&xml, by).unwrap().transport_key()), bytes(&key));
        }
        let rolled = open(&xml, guardian).unwrap().roll(guardian, rng).unwrap();
        check_roll(&xml, &rolled.egress().to_xml(), rolled.transport_key()).unwrap();
        let mut changed = protector.clone();
        changed.guardian_signature.value[5] ^= 1;
        assert!(changed.verify().is_err());
        // A service of suite B is imported from its metadata like any other.
        let metadata = Metadata::build(guardian, None).unwrap();
        assert_eq!(
            Guardian::from_metadata(&metadata, guardian.name()),
            guardian.guardian().map_err(Into::into)
        );
    }
}

#[test]
fn a_cipher_value_has_the_size_of_the_worked_example() {
    let (protector, _) = fresh();
    assert!(protector.wrappings.iter().all(|w| w.transport_key.len() == 332));
}

#[test]
fn a_release_opens_only_for_its_host() {
    let rng = &mut SeededRandom::new(10);
    let (protector, key) = fresh();
    let opened = open(&protector.to_xml(), service()).unwrap();
    let rolled = opened.roll(service(), rng).unwrap();
    for (suite, transfer_key, foreign) in [
        (Suite::Rsa, 256, KeyTransport::EcdhEs),
        (Suite::P256, 105, KeyTransport::RsaOaep),
    ] {
        let [host, other] = [(); 2].map(|()| PrivateKey::generate(suite, rng).unwrap());
        let certified = certified(host.public());
        for (version, limit, length, read) in [
            (PayloadVersion::V1, 5, 112, 0),
            (PayloadVersion::V2, 5, 132, 5),
            (PayloadVersion::V2, 0, 116, 0),
        ] {
            let release = seal_release(&opened, &rolled, &certified, version, limit, rng).unwrap();
            let response = release.response;
            assert_eq!(response.encrypted_transfer_key.len(), transfer_key);
            assert_eq!(response.encrypted_wrapping_key.len(), 40);
            assert_eq!(response.encrypted_transport_keys.len(), length);
            let keys = open_release(&response, &host).unwrap();
            assert_eq!(bytes(&keys.ingress), bytes(&key));
            assert_eq!(bytes(&keys.egress), bytes(rolled.transport_key()));
            assert_eq!(keys.max_offline_unwraps, read);
            assert_eq!(open_release(&response, &other).err(), Some(ReleaseError::NotForThisKey));
            for part in 0..3 {
                let mut changed = response.clone();
                let field = match part {
                    0 => &mut changed.encrypted_transfer_key,
                    1 => &mut changed.encrypted_wrapping_key,
                    _ => &mut changed.encrypted_transport_keys,
                };
                *field.last_mut().unwrap() ^= 1;
                assert_eq!(open_release(&changed, &host).err(), Some(ReleaseError::NotForThisKey));
            }
        }
        let version = PayloadVersion::V2;
        let refused = seal_release_by(foreign, &opened, &rolled, &certified, version, 0, rng);
        assert_eq!(refused.err(), Some(CryptoError::Refused));
    }
}

#[test]
fn the_offline_limit_can_be_changed_without_any_signature_noticing() {
    let (protector, _) = fresh();
    let changed = protector.with_max_offline_unwraps(9).to_xml();
    let opened = open(&changed, service()).unwrap();
    assert_eq!(opened.chained().protector().max_offline_unwraps(), 9);
    let rolled = opened.roll(service(), &mut SeededRandom::new(1)).unwrap();
    assert_eq!(rolled.egress().max_offline_unwraps(), 9);
}

#[test]
fn a_document_with_prefixes_is_the_same_protector() {
    // Signed in the prefixed form, as a foreign writer would.
    let (protector, key) = fresh();
    let text = String::from_utf8(protector.to_xml()).unwrap();
    let prefixed = text
        .replace("<Protector xmlns=", "<k:Protector xmlns:k=")
        .replace("</Protector>", "</k:Protector>");
    let mut prefixed = prefixed;
    for name in [
        "Wrappings",
        "Wrapping",
        "Id",
        "SigningCertificate",
        "SigningCertificateSignature",
        "Signature",
        "SignatureValue",
        "EncryptionCertificate",
        "EncryptionCertificateSignature",
        "TransportKey",
        "EncryptedData",
        "CipherValue",
        "Parameters",
        "TransportKeySignature",
        "KeyDerivationMethod",
        "GuardianSignature",
    ] {
        for end in [">", " "] {
            prefixed = prefixed.replace(&format!("<{name}{end}"), &format!("<k:{name}{end}"));
        }
        prefixed = prefixed.replace(&format!("</{name}>"), &format!("</k:{name}>"));
    }
    let mut foreign = KeyProtector::parse(prefixed.as_bytes()).unwrap();
    assert!(foreign.signed.starts_with(b"<k:Wrappings xmlns:k="));
    assert_eq!(
        foreign.clone().verify().err(),
        Some(ProtectorError::GuardianSignature.into())
    );
    foreign.guardian_signature = sign(owner(), &foreign.signed);
    foreign.transport_key_mac = document::transport_key_mac(&key, &foreign.signed).to_vec();
    let xml = foreign.to_xml();
    let opened = open(&xml, service()).unwrap();
    let rolled = opened.roll(service(), &mut SeededRandom::new(1)).unwrap();
    check_roll(&xml, &rolled.egress().to_xml(), rolled.transport_key()).unwrap();
}

#[test]
fn a_chain_may_be_long_and_is_walked_without_recursion() {
    // 256 wrappings in a row, each vouched for by the one before, all of one guardian's making.
    let protector = resign(
        |wrappings| {
            let second = wrappings[1].clone();
            wrappings[1].signing_signature = sign(owner(), &second.signing_certificate);
            for id in 3..=256 {
                let mut next = second.clone();
                next.id = WrappingId(id);
                next.parent = WrappingId(id - 1);
                next.signing_signature = sign(service(), &next.signing_certificate);
                wrappings.push(next);
            }
        },
        1,
    );
    assert!(open(&protector.to_xml(), service()).is_ok());
    let mut one_more = protector;
    let mut last = one_more.wrappings[255].clone();
    last.id = WrappingId(257);
    one_more.wrappings.push(last);
    one_more.signed = document::signed_form(&one_more.wrappings);
    assert_eq!(
        KeyProtector::parse(&one_more.to_xml()).err(),
        Some(ProtectorError::TooManyWrappings)
    );
}

#[test]
fn each_fault_of_a_wrapping_is_named() {
    let third = |wrappings: &mut Vec<Wrapping>, id: u32, parent: u32| {
        let mut next = wrappings[1].clone();
        next.id = WrappingId(id);
        next.parent = WrappingId(parent);
        wrappings.push(next);
    };
    assert_eq!(
        fault(resign(|w| w[1].parent = WrappingId(9), 1)),
        (2, WrappingFault::UnknownParent)
    );
    assert_eq!(fault(resign(|w| third(w, 2, 1), 1)), (2, WrappingFault::DuplicateId));
    assert_eq!(fault(resign(|w| third(w, 3, 3), 1)), (3, WrappingFault::SecondOwner));
    let circle = |w: &mut Vec<Wrapping>| {
        third(w, 3, 2);
        w[1].parent = WrappingId(3);
    };
    assert_eq!(fault(resign(circle, 1)), (2, WrappingFault::Cycle));
    let no_owner = |w: &mut Vec<Wrapping>| w[0].parent = WrappingId(2);
    assert_eq!(fault(resign(no_owner, 1)), (1, WrappingFault::Cycle));
    assert_eq!(
        fault(resign(|w| w[1].signing_signature.value[0] ^= 1, 1)),
        (2, WrappingFault::SigningCertificateSignature)
    );
    assert_eq!(
        fault(resign(|w| w[1].encryption_signature.value[0] ^= 1, 1)),
        (2, WrappingFault::EncryptionCertificateSignature)
    );
    let stranger = |w: &mut Vec<Wrapping>| w[1].signing_signature = sign(keys(2), &w[1].signing_certificate);
    assert_eq!(
        fault(resign(stranger, 1)),
        (2, WrappingFault::SigningCertificateSignature)
    );
    assert_eq!(
        fault(resign(|w| w[1].signing_certificate.truncate(40), 1)),
        (2, WrappingFault::SigningCertificate)
    );
    assert_eq!(
        fault(resign(|w| w[1].encryption_certificate.truncate(40), 1)),
        (2, WrappingFault::EncryptionCertificate)
    );
}

#[test]
fn the_signer_must_be_there_and_must_have_signed() {
    let (protector, _) = fresh();
    let mut unknown = protector.clone();
    unknown.signer = WrappingId(9);
    assert_eq!(
        unknown.verify().err(),
        Some(ProtectorError::UnknownSigner(WrappingId(9)).into())
    );
    // Any wrapping of the chain may sign, so naming the other one is refused only by its signature.
    let mut other = protector.clone();
    other.signer = WrappingId(2);
    assert_eq!(other.verify().err(), Some(ProtectorError::GuardianSignature.into()));
    assert!(resign(|_| {}, 2).verify().is_ok());
    // The guardian signature is looked at before any wrapping.
    let mut both = resign(|w| w[1].parent = WrappingId(9), 1);
    both.guardian_signature.value[0] ^= 1;
    assert_eq!(both.verify().err(), Some(ProtectorError::GuardianSignature.into()));
}

#[test]
fn a_wrapping_with_our_encryption_certificate_under_a_strangers_signature_is_not_ours() {
    let protector = resign(
        |w| {
            let stranger = keys(2).signing()[0].certificate().der().to_vec();
            w[1].signing_signature = sign(owner(), &stranger);
            w[1].encryption_signature = sign(keys(2), &w[1].encryption_certificate);
            w[1].signing_certificate = stranger;
        },
        1,
    );
    let chained = protector.verify().unwrap();
    assert_eq!(
        chained.open(service(), &mut SeededRandom::new(1)).err(),
        Some(OpenError::NoWrapping)
    );
}

#[test]
fn a_ciphertext_that_does_not_open_and_a_wrong_confirmation_are_one_refusal() {
    let expected = OpenError::from(ProtectorError::TransportKey).to_string();
    for at in [0, 255, 256, 300, 331] {
        let spoiled = resign(|w| w[1].transport_key[at] ^= 1, 1);
        assert_eq!(open(&spoiled.to_xml(), service()).err().unwrap(), expected);
    }
    let short = resign(|w| w[1].transport_key.truncate(10), 1);
    assert_eq!(open(&short.to_xml(), service()).err().unwrap(), expected);
    let (mut protector, _) = fresh();
    protector.transport_key_mac[3] ^= 1;
    assert_eq!(open(&protector.to_xml(), service()).err().unwrap(), expected);
}

#[test]
fn a_host_refuses_an_egress_protector_that_is_not_its_own_rolled() {
    let (protector, key) = fresh();
    let xml = protector.to_xml();
    let opened = open(&xml, service()).unwrap();
    let rolled = opened.roll(service(), &mut SeededRandom::new(3)).unwrap();
    let egress = rolled.egress().to_xml();
    assert_eq!(check_roll(&xml, &egress, &key).map(drop), Err(RollError::TransportKey));
    let (foreign, foreign_key) =
        KeyProtector::create(keys(2), &[service().guardian().unwrap()], &mut SeededRandom::new(4)).unwrap();
    assert_eq!(
        check_roll(&xml, &foreign.to_xml(), &foreign_key).map(drop),
        Err(RollError::Wrappings)
    );
    let mut fewer = rolled.egress().wrappings.clone();
    fewer.pop();
    let fewer = create::seal(fewer, &key, WrappingId(1), &owner().signing()[0], 0).unwrap();
    assert_eq!(
        check_roll(&xml, &fewer.to_xml(), &key).map(drop),
        Err(RollError::Wrappings)
    );
    let mut unsigned = rolled.egress().clone();
    unsigned.guardian_signature.value[9] ^= 1;
    assert!(matches!(
        check_roll(&xml, &unsigned.to_xml(), rolled.transport_key()).map(drop),
        Err(RollError::Egress(ProtectorError::GuardianSignature))
    ));
}

#[test]
fn the_skeleton_without_parameters_reads_and_other_parameters_do_not() {
    let text = String::from_utf8(fresh().0.to_xml()).unwrap();
    let start = text.rfind("<Parameters>").unwrap();
    let end = text.rfind("</Parameters>").unwrap() + "</Parameters>".len();
    let bare = format!("{}{}", &text[..start], &text[end..]);
    assert!(open(bare.as_bytes(), service()).is_ok());
    for (from, to) in [
        ("xmlenc11#ConcatKDF\"", "xmlenc11#pbkdf2\""),
        ("AlgorithmID=\"0048", "AlgorithmID=\"0049"),
        ("xmlenc11#mgf1sha256", "xmlenc11#mgf1sha1"),
        ("xmlenc11#rsa-oaep\"", "xmlenc#rsa-1_5\""),
        ("xmldsig-more#hmac-sha256", "xmldsig#hmac-sha1"),
        ("xmldsig-more#rsa-sha256", "xmldsig#rsa-sha1"),
    ] {
        let bad = text.replacen(from, to, 1);
        assert_ne!(bad, text, "{from}");
        assert!(
            matches!(KeyProtector::parse(bad.as_bytes()), Err(ProtectorError::Algorithm(_))),
            "{from}"
        );
    }
    for (from, to) in [
        ("<Wrappings>", "<Wrappings><!-- c -->"),
        ("<Id>1</Id>", ""),
        ("<Id>1</Id>", "<Id>-1</Id>"),
        ("<Wrappings>", "<Wrappings a=\"1\">"),
        ("2014/07", "2014/08"),
        ("</Protector>", "<More/></Protector>"),
        ("<?xml version=\"1.0\" encoding=\"utf-8\"?>", "<!DOCTYPE Protector>"),
    ] {
        let bad = text.replacen(from, to, 1);
        assert_ne!(bad, text, "{from}");
        assert!(
            matches!(KeyProtector::parse(bad.as_bytes()), Err(ProtectorError::Document(_))),
            "{from}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// A flipped bit anywhere is refused, or changes nothing that matters (a letter's case in
    /// AlgorithmID, an unsigned MaxOfflineUnwraps, white space): never another key.
    #[test]
    fn a_flipped_bit_never_opens_to_another_key(at: prop::sample::Index, bit in 0u8..8) {
        static XML: OnceLock<(Vec<u8>, [u8; 32])> = OnceLock::new();
        let (xml, key) = XML.get_or_init(|| {
            let (protector, key) = fresh();
            (protector.to_xml(), *bytes(&key))
        });
        let mut changed = xml.clone();
        changed[at.index(xml.len())] ^= 1 << bit;
        if let Ok(opened) = open(&changed, service()) {
            prop_assert_eq!(bytes(opened.transport_key()), key);
        }
    }

    #[test]
    fn hostile_bytes_never_panic(junk in proptest::collection::vec(any::<u8>(), 0..40), at: prop::sample::Index) {
        static XML: OnceLock<Vec<u8>> = OnceLock::new();
        let xml = XML.get_or_init(|| fresh().0.to_xml());
        fuzz_protector(&junk);
        let at = at.index(xml.len());
        let mut changed = xml.clone();
        let end = (at + junk.len()).min(xml.len());
        changed.splice(at..end, junk);
        fuzz_protector(&changed);
    }
}
