//! A valid request, changed in thousands of ways: none releases a key. The attacker is the host's agent,
//! who can change any byte, and where said the owner, who can also sign wrappings anew.

use std::sync::OnceLock;

use hgs_protocol::{
    crypto::RsaPrivateKey,
    env::{Clock, OsRandom, Random as _, SeededRandom, UnixTime},
    health::{
        AcceptanceRules, AttestationMode, AttestationSigner, CertificateKind, DEFAULT_LIFETIME,
        HealthCertificateRequest, TrustedSigner,
    },
    protector::{ChainCache, GuardianKeys, KeyPair, KeyProtector, open_release},
    wire::kps::{RollTransportKeyRequest, ServiceVersion},
};
use kps::{
    refusal::Refusal,
    roll::{Guardian, roll_transport_key},
};

use crate::fabric::rewrap;

const TIMES: usize = 500;
const LIMIT: u32 = 3;

struct Stage {
    now: UnixTime,
    kps: GuardianKeys,
    owner: GuardianKeys,
    host: RsaPrivateKey,
    signers: Vec<TrustedSigner>,
    chains: ChainCache,
    protector: KeyProtector,
    /// Another protector of the same owner for the same service.
    other: KeyProtector,
    certificate: Vec<u8>,
}

fn stage() -> &'static Stage {
    static STAGE: OnceLock<Stage> = OnceLock::new();
    STAGE.get_or_init(|| {
        let now = Clock::system().now();
        let generate = |name| GuardianKeys::generate(name, now, &mut OsRandom).unwrap();
        let (kps, owner) = (generate("HGS"), generate("Owner"));
        let host = RsaPrivateKey::generate_2048().unwrap();
        let signer = AttestationSigner::generate(now, &mut OsRandom).unwrap();
        let ask = HealthCertificateRequest {
            key: host.public().clone().into(),
            kind: CertificateKind::Encryption,
            mode: AttestationMode::HostKey,
            policies: vec![],
            issued_at: now,
            lifetime: DEFAULT_LIFETIME,
        };
        let guardians = [kps.guardian().unwrap()];
        let make = || KeyProtector::create(&owner, &guardians, &mut OsRandom).unwrap().0;
        let stage = Stage {
            now,
            signers: vec![TrustedSigner::from_certificate(signer.certificate_der()).unwrap()],
            chains: ChainCache::new(1 << 20),
            protector: make(),
            other: make(),
            certificate: signer.issue(&ask, &mut OsRandom).unwrap(),
            kps,
            owner,
            host,
        };
        // What follows proves something only because this works, also with a chain that is known.
        for _ in 0..2 {
            assert_eq!(stage.roll(&stage.protector.to_xml(), &stage.certificate), Ok(0));
        }
        assert_eq!(stage.chains.len(), 1);
        stage
    })
}

impl Stage {
    /// The offline limit of the released key, or the refusal's code.
    fn roll(&self, protector: &[u8], certificate: &[u8]) -> Result<u32, &'static str> {
        self.roll_with(&self.kps, protector, certificate)
    }

    fn roll_with(&self, keys: &GuardianKeys, protector: &[u8], certificate: &[u8]) -> Result<u32, &'static str> {
        let body = RollTransportKeyRequest::new(protector.to_vec(), certificate.to_vec()).encode();
        let guardian = Guardian {
            keys,
            signers: &self.signers,
            rules: &AcceptanceRules::default(),
            max_offline_unwraps: LIMIT,
            allow_sha1_oaep: false,
            chains: &self.chains,
        };
        let released = RollTransportKeyRequest::parse(&body)
            .map_err(Refusal::from)
            .and_then(|ask| roll_transport_key(&ask, ServiceVersion::V2, &guardian, self.now, &mut OsRandom));
        match released {
            Ok(release) => Ok(open_release(&release.response, &self.host).unwrap().max_offline_unwraps),
            Err(refusal) => Err(refusal.reply().0),
        }
    }

    fn text(&self) -> String {
        String::from_utf8(self.protector.to_xml()).unwrap()
    }
}

/// Below `n`.
fn draw(rng: &mut SeededRandom, n: usize) -> usize {
    let mut bytes = [0; 8];
    rng.fill(&mut bytes);
    usize::try_from(u64::from_le_bytes(bytes) % u64::try_from(n).unwrap()).unwrap()
}

/// Start and end of the text of the `nth` element of that name.
fn text_of(document: &str, name: &str, nth: usize) -> (usize, usize) {
    let open = format!("<{name}>");
    let (at, _) = document.match_indices(&open).nth(nth).unwrap();
    let start = at + open.len();
    (start, start + document[start..].find('<').unwrap())
}

/// One character of the region becomes another of base64's.
fn spoil(document: &str, (start, end): (usize, usize), rng: &mut SeededRandom) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = document.as_bytes().to_vec();
    loop {
        let at = start + draw(rng, end - start);
        let new = ALPHABET[draw(rng, 64)];
        if bytes[at] != new && bytes[at] != b'=' {
            bytes[at] = new;
            return String::from_utf8(bytes).unwrap();
        }
    }
}

#[test]
fn a_changed_health_certificate() {
    let (stage, rng) = (stage(), &mut SeededRandom::new(1));
    let protector = stage.protector.to_xml();
    for _ in 0..2 * TIMES {
        let mut changed = stage.certificate.clone();
        let at = draw(rng, changed.len());
        changed[at] ^= 1 << draw(rng, 8);
        let outcome = stage.roll(&protector, &changed);
        assert_eq!(outcome, Err("HealthCertificateException"), "byte {at}");
    }
}

#[test]
fn changed_certificates_signatures_and_ciphertexts_of_each_wrapping() {
    let (stage, rng) = (stage(), &mut SeededRandom::new(2));
    let text = stage.text();
    for wrapping in 0..2 {
        for (name, nth) in [
            ("SigningCertificate", wrapping),
            ("EncryptionCertificate", wrapping),
            ("CipherValue", wrapping),
            // Two signatures in each wrapping.
            ("SignatureValue", 2 * wrapping),
            ("SignatureValue", 2 * wrapping + 1),
        ] {
            for round in 0..TIMES {
                let outcome = if round % 2 == 0 {
                    // By the agent: the guardian signature no longer holds.
                    stage.roll(
                        spoil(&text, text_of(&text, name, nth), rng).as_bytes(),
                        &stage.certificate,
                    )
                } else {
                    // By the owner, who signs anew what was changed.
                    let changed = std::cell::RefCell::new(rng.clone());
                    let xml = rewrap(&stage.protector, &stage.owner, |wrappings| {
                        spoil(wrappings, text_of(wrappings, name, nth), &mut changed.borrow_mut())
                    });
                    *rng = changed.into_inner();
                    stage.roll(&xml, &stage.certificate)
                };
                assert!(outcome.is_err(), "{name} {nth}, round {round}");
            }
        }
    }
}

#[test]
fn changed_signatures_of_the_whole() {
    let (stage, rng) = (stage(), &mut SeededRandom::new(3));
    let text = stage.text();
    for nth in [4, 5] {
        for _ in 0..TIMES {
            let changed = spoil(&text, text_of(&text, "SignatureValue", nth), rng);
            assert_eq!(
                stage.roll(changed.as_bytes(), &stage.certificate),
                Err("InvalidProtectorException")
            );
        }
    }
}

#[test]
fn any_byte_of_the_document() {
    let (stage, rng) = (stage(), &mut SeededRandom::new(4));
    let xml = stage.protector.to_xml();
    let text = stage.text();
    // Without meaning by the rules of XML or the schema: the declaration, a hexBinary letter's case, and the
    // offline limit, which has a test of its own.
    let free = |name: &str, length: usize| {
        let at = text.find(name).unwrap();
        at..at + name.len() + length
    };
    let free = [
        0..text.find("<Protector").unwrap(),
        free("AlgorithmID=\"", 20),
        free("MaxOfflineUnwraps=\"", 1),
    ];
    let mut done = 0;
    while done < 4 * TIMES {
        let at = draw(rng, xml.len());
        let new = u8::try_from(draw(rng, 256)).unwrap();
        // White space in a tag is not significant.
        let same = new == xml[at] || new.is_ascii_whitespace() || xml[at].is_ascii_whitespace();
        if same || free.iter().any(|range| range.contains(&at)) {
            continue;
        }
        let mut changed = xml.clone();
        changed[at] = new;
        assert!(stage.roll(&changed, &stage.certificate).is_err(), "byte {at} to {new}");
        done += 1;
    }
}

#[test]
fn tricks_of_canonicalisation_and_structure() {
    let stage = stage();
    let text = stage.text();
    let root = text.find("<Protector").unwrap();
    let mut tricks: Vec<(String, String)> = Vec::new();
    let mut trick = |name: String, changed: String| {
        assert_ne!(changed, text, "{name}");
        tricks.push((name, changed));
    };
    // At each tag inside the document element: comments, instructions, text, references, sections.
    for (at, _) in text.match_indices('<').filter(|(at, _)| *at > root) {
        for insert in [
            "<!---->",
            "<!-- x -->",
            "<?x y?>",
            "&amp;",
            "&#120;",
            "<![CDATA[x]]>",
            "<x/>",
            "<x xmlns=\"\"/>",
        ] {
            trick(
                format!("{insert} at {at}"),
                format!("{}{insert}{}", &text[..at], &text[at..]),
            );
        }
    }
    // At each start tag: another namespace, a foreign attribute, the element twice, gone, or inside another.
    for (at, _) in text.match_indices('<').filter(|(at, _)| *at >= root) {
        if text[at..].starts_with("</") {
            continue;
        }
        let end = at + text[at..].find(['>', ' ', '/']).unwrap();
        let name = &text[at + 1..end];
        for insert in [
            " xmlns=\"\"",
            " xmlns=\"urn:x\"",
            " x=\"1\"",
            " xmlns:x=\"urn:x\" x:y=\"1\"",
            " xml:lang=\"en\"",
        ] {
            // A default namespace that no name inside uses is no part of the exclusive canonical form.
            if name.contains(':') && insert.starts_with(" xmlns=") {
                continue;
            }
            trick(
                format!("{insert} on {name}"),
                format!("{}{insert}{}", &text[..end], &text[end..]),
            );
        }
        let close = format!("</{name}>");
        let whole = match text[at..].find(&close) {
            Some(found) => at..at + found + close.len(),
            None => continue,
        };
        let element = &text[whole.clone()];
        // The key derivation's parameters may be left out, and then mean the same.
        let optional = at > text.find("<TransportKeySignature>").unwrap()
            && ["Parameters", "xenc11:ConcatKDFParams", "ds:DigestMethod"].contains(&name);
        for (how, new) in [
            ("twice", format!("{element}{element}")),
            ("gone", String::new()),
            ("inside a twin", format!("<{name}>{element}{close}")),
            ("inside another", format!("<x>{element}</x>")),
            ("as a section", format!("<![CDATA[{element}]]>")),
            ("as a comment", format!("<!--{element}-->")),
        ] {
            if optional && how == "gone" {
                continue;
            }
            trick(
                format!("{name} {how}"),
                format!("{}{new}{}", &text[..whole.start], &text[whole.end..]),
            );
        }
    }
    // Document types and entities.
    for kind in [
        "<!DOCTYPE Protector>",
        "<!DOCTYPE Protector [<!ENTITY e \"1\">]>",
        "<!DOCTYPE Protector [<!ATTLIST Id x CDATA \"1\">]>",
        "<!DOCTYPE Protector SYSTEM \"file:///etc/passwd\">",
        "<!DOCTYPE Protector [<!ENTITY % p SYSTEM \"http://127.0.0.1/\"> %p;]>",
    ] {
        let typed = format!("{}{kind}{}", &text[..root], &text[root..]);
        trick(kind.to_owned(), typed.clone());
        trick(format!("{kind} used"), typed.replacen("<Id>1</Id>", "<Id>&e;</Id>", 1));
    }
    // The signed part stands elsewhere, and another takes its place.
    let signed = &text[text.find("<Wrappings>").unwrap()..text.find("<TransportKeySignature>").unwrap()];
    let forged = signed.replacen("<Id>2</Id>", "<Id>3</Id>", 1);
    for (name, new) in [
        ("forged, then signed", format!("{forged}{signed}")),
        ("signed, then forged", format!("{signed}{forged}")),
        (
            "signed in Parameters",
            forged.replacen("<Parameters>", &format!("<Parameters>{signed}"), 1),
        ),
        (
            "signed in forged",
            forged.replacen("</Wrappings>", &format!("{signed}</Wrappings>"), 1),
        ),
    ] {
        trick(name.to_owned(), text.replacen(signed, &new, 1));
    }
    assert!(tricks.len() >= TIMES, "{}", tricks.len());
    println!("{} tricks", tricks.len());
    let released: Vec<String> = tricks
        .into_iter()
        .filter(|(_, changed)| stage.roll(changed.as_bytes(), &stage.certificate).is_ok())
        .map(|(name, _)| name)
        .collect();
    assert_eq!(released, Vec::<String>::new());
}

#[test]
fn transplanted_added_removed_and_mixed_wrappings() {
    let stage = stage();
    let texts = [&stage.protector, &stage.other].map(|p| String::from_utf8(p.to_xml()).unwrap());
    // Wrapping 1, wrapping 2, TransportKeySignature, GuardianSignature of each of two protectors.
    let parts = texts.each_ref().map(|text| {
        let starts = [
            text.find("<Wrapping>").unwrap(),
            text.rfind("<Wrapping>").unwrap(),
            text.find("</Wrappings>").unwrap(),
            text.find("<TransportKeySignature>").unwrap(),
            text.find("<GuardianSignature").unwrap(),
            text.find("</Protector>").unwrap(),
        ];
        let part = |from: usize, to: usize| text[starts[from]..starts[to]].to_owned();
        [part(0, 1), part(1, 2), part(3, 4), part(4, 5)]
    });
    let head = &texts[0][..texts[0].find("<Wrapping>").unwrap()];
    let mut tried = 0;
    // Every choice of parts from either: only the two pure ones are protectors.
    for choice in 0..16usize {
        let pick = |part: usize| parts[choice >> part & 1][part].as_str();
        let mixed = format!(
            "{head}{}{}</Wrappings>{}{}</Protector>",
            pick(0),
            pick(1),
            pick(2),
            pick(3)
        );
        let outcome = stage.roll(mixed.as_bytes(), &stage.certificate);
        assert_eq!(outcome.is_ok(), choice == 0 || choice == 15, "{choice:04b}");
        tried += 1;
    }
    // Every list of one to three of the four wrappings, with new Ids, signed anew by the owner.
    let wrappings = [&parts[0][0], &parts[0][1], &parts[1][0], &parts[1][1]];
    let original = [0, 1];
    for length in 1..=3u32 {
        for code in 0..4usize.pow(length) {
            let list: Vec<usize> = (0..length).map(|place| code / 4usize.pow(place) % 4).collect();
            for renumber in [false, true] {
                let body: String = (1..)
                    .zip(&list)
                    .map(|(id, which)| {
                        let text = wrappings[*which];
                        let (start, end) = text_of(text, "Id", 0);
                        match renumber {
                            true => format!("{}{id}{}", &text[..start], &text[end..]),
                            false => text.clone(),
                        }
                    })
                    .collect();
                for base in [&stage.protector, &stage.other] {
                    let xml = rewrap(base, &stage.owner, |_| format!("<Wrappings>{body}</Wrappings>"));
                    let pure = list == original && std::ptr::eq(base, &stage.protector)
                        || list == [2, 3] && std::ptr::eq(base, &stage.other);
                    assert_eq!(
                        stage.roll(&xml, &stage.certificate).is_ok(),
                        pure,
                        "{list:?} {renumber}"
                    );
                    tried += 1;
                }
            }
        }
    }
    println!("{tried} mixtures");
}

#[test]
fn a_raised_offline_limit_raises_nothing() {
    let (stage, rng) = (stage(), &mut SeededRandom::new(6));
    for round in 0..TIMES {
        let wish = match round {
            0..8 => u32::try_from(round).unwrap(),
            8 => u32::MAX,
            _ => u32::try_from(draw(rng, 1 << 32)).unwrap(),
        };
        let xml = stage.protector.clone().with_max_offline_unwraps(wish).to_xml();
        assert_eq!(stage.roll(&xml, &stage.certificate), Ok(wish.min(LIMIT)));
    }
    let text = stage.text();
    for bad in ["-1", "4294967296", "1e3", "0x7", "", "1 1", "\u{661}"] {
        let changed = text.replacen("MaxOfflineUnwraps=\"0\"", &format!("MaxOfflineUnwraps=\"{bad}\""), 1);
        assert!(stage.roll(changed.as_bytes(), &stage.certificate).is_err(), "{bad}");
    }
}

#[test]
fn a_disabled_certificate_opens_nothing() {
    let stage = stage();
    let copy = |pair: &KeyPair| KeyPair::from_parts(pair.expose_pkcs8().unwrap(), pair.certificate().der()).unwrap();
    let spare = GuardianKeys::generate("new HGS", stage.now, &mut OsRandom).unwrap();
    let (signing, encryption) = (&stage.kps.signing()[0], &stage.kps.encryption()[0]);
    for (keys, opens) in [
        (
            vec![
                vec![&spare.signing()[0], signing],
                vec![&spare.encryption()[0], encryption],
            ],
            true,
        ),
        (
            vec![vec![&spare.signing()[0]], vec![&spare.encryption()[0], encryption]],
            false,
        ),
        (
            vec![vec![&spare.signing()[0], signing], vec![&spare.encryption()[0]]],
            false,
        ),
        (vec![vec![], vec![encryption]], false),
        (vec![vec![], vec![]], false),
    ] {
        let [signing, encryption] = [0, 1].map(|kind: usize| keys[kind].iter().map(|pair| copy(pair)).collect());
        let keys = GuardianKeys::from_lists("HGS", signing, encryption);
        let outcome = stage.roll_with(&keys, &stage.protector.to_xml(), &stage.certificate);
        let expected = if opens {
            Ok(0)
        } else {
            Err("KeyProtectionAccessDeniedException")
        };
        assert_eq!(outcome, expected);
    }
}
