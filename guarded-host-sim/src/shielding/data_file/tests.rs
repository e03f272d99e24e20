use std::sync::OnceLock;

use super::*;
use crate::shielding::{
    catalogue::{SignedCatalogue, Version},
    qualifier::VersionRule,
};
use hgs_protocol::{
    env::{SeededRandom, UnixTime},
    protector::{KeyPair, KeyPurpose, suite::Suite},
};
use proptest::prelude::*;

const PASSWORD: &[u8] = b"<Password>swordfish</Password>";

fn keys(name: &str, seed: u64) -> GuardianKeys {
    GuardianKeys::generate_p256(name, UnixTime(1_800_000_000), &mut SeededRandom::new(seed)).unwrap()
}

fn qualifier() -> Qualifier {
    let (now, rng) = (UnixTime(1_800_000_000), &mut SeededRandom::new(9));
    let signer = KeyPair::generate(Suite::P256, KeyPurpose::Signing, "maker", now, rng).unwrap();
    let catalogue = SignedCatalogue::sign("t".parse().unwrap(), Version([1; 4]), 1, vec![[1; 32]], &signer);
    Qualifier::of(&catalogue.unwrap(), VersionRule::GreaterThanOrEquals)
}

fn contents() -> Contents {
    let file = NamedFile {
        name: FileName::parse("rdp.pfx").unwrap(),
        content: Zeroizing::new(b"a certificate".to_vec()),
    };
    Contents::new(Zeroizing::new(PASSWORD.to_vec()), vec![file], &mut SeededRandom::new(3)).unwrap()
}

/// A file of `owner` for `guardian`, and its transport key.
fn made(owner: &GuardianKeys, guardian: &GuardianKeys, policy: Kind) -> (Vec<u8>, TransportKey) {
    let rng = &mut SeededRandom::new(4);
    let (protector, key) = KeyProtector::create(owner, &[guardian.guardian().unwrap()], rng).unwrap();
    let new = NewDataFile {
        protector: (&protector, &key),
        policy,
        qualifiers: &[qualifier(), qualifier()],
        contents: &contents(),
    };
    (new.seal(owner, rng).unwrap(), key)
}

/// One file for the tests that change bytes of it.
fn one() -> &'static (Vec<u8>, TransportKey) {
    static ONE: OnceLock<(Vec<u8>, TransportKey)> = OnceLock::new();
    ONE.get_or_init(|| made(&keys("owner", 1), &keys("guardian", 2), Kind::Shielded))
}

#[test]
fn what_an_owner_seals_its_guardians_open() {
    let (owner, guardian) = (keys("owner", 1), keys("guardian", 2));
    for policy in [Kind::Shielded, Kind::EncryptionSupported] {
        let (bytes, _) = made(&owner, &guardian, policy);
        assert!(!bytes.windows(PASSWORD.len()).any(|window| window == PASSWORD));
        for by in [&owner, &guardian] {
            let signed = DataFile::parse(&bytes).unwrap().verify().unwrap();
            assert_eq!(signed.owner(), Some(owner.guardian().unwrap().signing()));
            let opened = signed.chained().clone().open(by, &mut SeededRandom::new(5)).unwrap();
            let data = signed.open(opened.transport_key()).unwrap();
            assert_eq!(
                (data.policy(), data.qualifiers()),
                (policy, [qualifier(), qualifier()].as_slice())
            );
            assert_eq!(data.contents().answer_file(), PASSWORD);
            let [other] = data.contents().other_files() else {
                panic!("one other file")
            };
            assert_eq!(
                (other.name.as_str(), other.content.as_slice()),
                ("rdp.pfx", b"a certificate".as_slice())
            );
        }
    }
}

#[test]
fn a_changed_byte_is_noticed() {
    let (bytes, key) = one();
    // Each byte of the head and of the end; of the protector, whose own tests change every one, some.
    let end = bytes.len() - 1200;
    for at in (0..40).chain((40..end).step_by(29)).chain(end..bytes.len()) {
        let mut bad = bytes.clone();
        bad[at] ^= 1;
        let read = DataFile::parse(&bad).and_then(DataFile::verify);
        assert!(read.is_err(), "byte {at}");
        assert!(DataFile::parse(&bytes[..at]).is_err(), "cut at {at}");
    }
    assert!(DataFile::parse(&[bytes.as_slice(), &[0]].concat()).is_err());
    let signed = DataFile::parse(bytes).unwrap().verify().unwrap();
    let other = TransportKey::random(&mut SeededRandom::new(6));
    assert!(matches!(signed.open(&other), Err(DataFileError::Sealed)));
    assert!(DataFile::parse(bytes).unwrap().verify().unwrap().open(key).is_ok());
}

/// A guardian knows the transport key, and could seal contents of its own under it.
#[test]
fn a_guardian_puts_nothing_in_place_of_what_the_owner_sealed() {
    let (owner, guardian) = (keys("owner", 1), keys("guardian", 2));
    let (bytes, key) = made(&owner, &guardian, Kind::Shielded);
    let protector = KeyProtector::parse(DataFile::parse(&bytes).unwrap().protector()).unwrap();
    let forged = NewDataFile {
        protector: (&protector, &key),
        policy: Kind::EncryptionSupported,
        qualifiers: &[qualifier()],
        contents: &contents(),
    };
    let forged = forged.seal(&guardian, &mut SeededRandom::new(7)).unwrap();
    let read = DataFile::parse(&forged).unwrap().verify();
    assert!(matches!(read, Err(DataFileError::Signature)));
}

#[test]
fn proof_keys_are_each_vms_own() {
    let (bytes, key) = one();
    let data = DataFile::parse(bytes).unwrap().verify().unwrap().open(key).unwrap();
    let rng: &mut dyn Random = &mut SeededRandom::new(8);
    let [one, two] = [VmId::random(rng), VmId::random(rng)].map(|vm| data.proof_key(vm));
    assert_ne!(one.expose(), two.expose());
    assert_ne!(one.expose(), data.contents.seed.expose());
}

#[test]
fn files_have_names_and_limits() {
    for bad in [
        "",
        ".",
        "..",
        "a/b",
        "a\\b",
        "c:x",
        "a\0",
        "Unattend.XML",
        &"x".repeat(256),
    ] {
        assert!(FileName::parse(bad).is_err(), "{bad:?}");
    }
    let file = |name: &str, length: usize| NamedFile {
        name: FileName::parse(name).unwrap(),
        content: Zeroizing::new(vec![0; length]),
    };
    let new = |answer: usize, files: Vec<NamedFile>| {
        let answer = Zeroizing::new(vec![1; answer]);
        Contents::new(answer, files, &mut SeededRandom::new(1)).err()
    };
    assert!(new(1, vec![file("a", 1), file("b", 0)]).is_none());
    assert!(matches!(new(0, Vec::new()), Some(DataFileError::Files)));
    assert!(matches!(
        new(LARGEST_CONTENTS, vec![file("a", 1)]),
        Some(DataFileError::Files)
    ));
    let many = (0..=MAX_FILES).map(|n| file(&n.to_string(), 1)).collect();
    assert!(matches!(new(1, many), Some(DataFileError::Files)));
    let twice = new(1, vec![file("a.txt", 1), file("A.TXT", 1)]);
    assert!(matches!(twice, Some(DataFileError::Name(_))));
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(bytes: Vec<u8>, keep in 0_usize..3000) {
        let (good, _) = one();
        let _ = DataFile::parse(&bytes).and_then(DataFile::verify);
        let start = &good[..keep.min(good.len())];
        let spliced = [start, &bytes].concat();
        if let Ok(read) = DataFile::parse(&spliced) {
            prop_assert!(read.verify().is_err() || spliced == *good);
        }
        let _ = Contents::parse(&bytes);
        let _ = parse_qualifiers(&bytes);
    }

    #[test]
    fn contents_survive_their_encoding(answer in proptest::collection::vec(any::<u8>(), 1..500), other: Vec<u8>) {
        let file = NamedFile { name: FileName::parse("x").unwrap(), content: Zeroizing::new(other.clone()) };
        let before = Contents::new(Zeroizing::new(answer.clone()), vec![file], &mut SeededRandom::new(1)).unwrap();
        let after = Contents::parse(&before.encode()).unwrap();
        prop_assert_eq!(after.answer_file(), answer.as_slice());
        prop_assert_eq!(after.other_files()[0].content.as_slice(), other.as_slice());
        prop_assert_eq!(after.seed.expose(), before.seed.expose());
    }
}
