//! Attacks on the exchange with the TPM and on host-key requests, one row each, with the reply it gets.
//! The attacker owns the host: it answers the server with whatever it likes.

use attestation::Options;
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use guarded_host_sim::machine::dials::Dials;
use hgs_protocol::{
    crypto::EcPublicKey,
    health::CertificateKind,
    tpm::{EK_HANDLE, command},
    wire::{
        hgsa::{ProvidedKind, Reply, Request, SessionId},
        rtpm::{Blob, Context, DeviceInfo},
        vsm::{encode_ecs1, encode_rsa1},
    },
};
use serde_json::json;

use crate::{
    fixture::{Host, Service, V1, V2, missing_tools},
    host_keys::{Keys, host_key_request, p256_key, register_host_key},
};

/// One attack on the exchange. The attacker has answered honestly so far and forges its next answer.
struct Attack {
    name: &'static str,
    /// Which of the three answers is forged, from 0.
    step: usize,
    forge: fn(&mut Forgery),
    reply: &'static str,
}

/// What the attacker has in hand.
struct Forgery {
    /// The answer about to be sent; honest as it comes.
    context: Context,
    /// Sent in place of `context` when set.
    raw: Option<Vec<u8>>,
    session: SessionId,
    requested: Vec<CertificateKind>,
    /// Its own honest answers of this exchange.
    own: Vec<Context>,
    /// Those of a second exchange, under the same session id.
    second: Vec<Context>,
    /// Those of an exchange under another session id.
    elsewhere: Vec<Context>,
    /// Another registered host's answers, under the same session id.
    neighbour: Vec<Context>,
    neighbour_log: Vec<u8>,
    as_neighbour: bool,
    as_stranger: bool,
    as_other_type: bool,
    /// Send the honest answer first, then the forged one.
    twice: bool,
}

const RTPM: &str = "RtpmErrorReply";
const TCG_LOG: &str = "TcgLogValidationErrorReply";
const PAYLOAD: &str = "PayloadErrorReply";
const UNAUTHORIZED: &str = "UnauthorizedErrorReply";
const VSM: &str = "VirtualSecureModeErrorReply";

const ATTACKS: &[Attack] = &[
    // The sealed state.
    attack("a finished exchange sent again", 2, |f| f.twice = true, RTPM),
    attack(
        "a second step sent again, then the first answer to it",
        1,
        |f| f.twice = false_answer(f),
        RTPM,
    ),
    attack(
        "the state of another session",
        2,
        |f| f.context = f.elsewhere[2].clone(),
        RTPM,
    ),
    attack(
        "the state of another registered host",
        2,
        |f| f.context = f.neighbour[2].clone(),
        RTPM,
    ),
    attack(
        "the exchange finished under another registered key",
        2,
        |f| f.as_neighbour = true,
        RTPM,
    ),
    attack(
        "the exchange finished under an unregistered key",
        2,
        |f| f.as_stranger = true,
        UNAUTHORIZED,
    ),
    attack(
        "a state of one exchange with the answers of another",
        1,
        |f| f.context.blobs = f.second[1].blobs.clone(),
        RTPM,
    ),
    attack(
        "the last state with the answers of another exchange",
        2,
        |f| f.context.blobs = f.second[2].blobs.clone(),
        RTPM,
    ),
    attack(
        "a step skipped: the first state with the last answers",
        2,
        |f| set_state(f, 0),
        RTPM,
    ),
    attack(
        "a step skipped: the second state with the last answers",
        2,
        |f| set_state(f, 1),
        RTPM,
    ),
    attack(
        "a step repeated: the last state with the answers before",
        2,
        |f| f.context.blobs = f.own[1].blobs.clone(),
        RTPM,
    ),
    attack(
        "one bit of the sealed state",
        1,
        |f| f.context.encrypted_buffer[0] ^= 1,
        RTPM,
    ),
    attack(
        "one bit of the state's tag",
        1,
        |f| f.context.enc_context.tag[15] ^= 1,
        RTPM,
    ),
    attack(
        "one bit of the state's nonce",
        1,
        |f| f.context.enc_context.nonce[0] ^= 1,
        RTPM,
    ),
    attack(
        "the state cut short",
        1,
        |f| f.context.encrypted_buffer.truncate(40),
        RTPM,
    ),
    attack("no state at all", 1, |f| f.context.encrypted_buffer.clear(), RTPM),
    // The framing.
    attack("a context of a later version", 1, |f| raw(f, |b| b[4] = 2), RTPM),
    attack("a size beyond the bytes", 1, |f| raw(f, |b| b[..4].fill(0xff)), RTPM),
    attack(
        "a state longer than the context",
        1,
        |f| raw(f, |b| b[16..20].fill(0xff)),
        RTPM,
    ),
    attack("four billion blobs", 1, |f| raw(f, |b| b[8..12].fill(0xff)), RTPM),
    attack("one blob more than there are", 1, |f| raw(f, |b| b[8] += 1), RTPM),
    attack("bytes after the last blob", 1, |f| raw(f, |b| b.extend([0; 8])), RTPM),
    attack("a context cut in the middle", 1, |f| raw(f, |b| b.truncate(100)), RTPM),
    attack(
        "a blob of no known type",
        1,
        |f| {
            let at = 48 + f.context.encrypted_buffer.len();
            raw_at(f, at, 9);
        },
        RTPM,
    ),
    // The blobs.
    attack("answers in another order", 0, |f| f.context.blobs.reverse(), RTPM),
    attack("an answer left out", 0, |f| drop(f.context.blobs.pop()), RTPM),
    attack(
        "an answer doubled",
        1,
        |f| f.context.blobs.push(f.context.blobs[0].clone()),
        RTPM,
    ),
    attack(
        "device information in place of PCR values",
        1,
        |f| f.context.blobs[0] = info(),
        RTPM,
    ),
    attack(
        "the server's own commands sent back",
        0,
        |f| f.context.blobs[1] = Blob::Tpm(command::read_public(EK_HANDLE).encode()),
        RTPM,
    ),
    attack(
        "a boot log nobody asked for",
        1,
        |f| f.context.blobs.push(Blob::BootLog(vec![0; 64])),
        RTPM,
    ),
    // The TPM's answers.
    attack(
        "the TPM refuses to read its key",
        0,
        |f| f.context.blobs[1] = refused(0x18b),
        RTPM,
    ),
    attack(
        "another TPM's key at the handle",
        0,
        |f| f.context.blobs[1] = f.neighbour[0].blobs[1].clone(),
        RTPM,
    ),
    attack(
        "the TPM refuses the session",
        0,
        |f| f.context.blobs[2] = refused(0x903),
        RTPM,
    ),
    attack("a session of another kind", 0, |f| tpm(f, 2, |b| b[10] = 3), RTPM),
    attack(
        "a session's nonce cut short",
        0,
        |f| tpm(f, 2, |b| b.truncate(30)),
        RTPM,
    ),
    attack(
        "the TPM refuses to read PCRs",
        1,
        |f| f.context.blobs[0] = refused(0x101),
        RTPM,
    ),
    attack("a changed PCR value", 1, |f| tpm(f, 0, |b| b[60] ^= 1), RTPM),
    attack(
        "a changed counter of PCR updates",
        1,
        |f| tpm(f, 0, |b| b[17] ^= 1),
        RTPM,
    ),
    attack(
        "fewer PCRs than were asked for",
        1,
        |f| tpm(f, 0, |b| b[25] &= 0xfe),
        RTPM,
    ),
    attack("a changed nonce of the TPM", 1, |f| from_end(f, 67), RTPM),
    attack("changed attributes of the session", 1, |f| from_end(f, 35), RTPM),
    attack("a changed HMAC", 1, |f| from_end(f, 1), RTPM),
    attack(
        "PCR values without the session",
        1,
        |f| tpm(f, 0, without_session),
        RTPM,
    ),
    attack(
        "another TPM's PCR values",
        1,
        |f| f.context.blobs = f.neighbour[1].blobs.clone(),
        RTPM,
    ),
    attack(
        "the first PCR values given as the second",
        2,
        |f| f.context.blobs[0] = f.own[1].blobs[0].clone(),
        RTPM,
    ),
    attack("a response with a byte too many", 1, |f| tpm(f, 0, |b| b.push(0)), RTPM),
    attack("an empty response", 1, |f| tpm(f, 0, Vec::clear), RTPM),
    // The log.
    attack(
        "another host's boot log",
        2,
        |f| f.context.blobs[1] = Blob::BootLog(f.neighbour_log.clone()),
        TCG_LOG,
    ),
    attack(
        "an empty boot log",
        2,
        |f| f.context.blobs[1] = Blob::BootLog(Vec::new()),
        TCG_LOG,
    ),
    attack(
        "noise as a boot log",
        2,
        |f| f.context.blobs[1] = Blob::BootLog(vec![0xa5; 4096]),
        TCG_LOG,
    ),
    // The request around it.
    attack(
        "a certificate of an authority asked for",
        2,
        |f| f.requested = vec![CertificateKind::Authority],
        PAYLOAD,
    ),
    attack("the other version's request", 2, |f| f.as_other_type = true, PAYLOAD),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_attack_on_the_exchange_gets_its_reply_and_tells_nothing() {
    if missing_tools("the table of attacks on the exchange") {
        return;
    }
    let options = Options {
        requests_per_minute_per_key: 100_000,
        ..Options::default()
    };
    let service = Service::start_with(options, |_, args| args).await;
    let mut host = Host::boot(&Dials::default());
    let mut neighbour = Host::boot(&Dials::default());
    let stranger = Keys::new();
    service.register(&host, "host01").await;
    service.trust_maker(&neighbour, "neighbour").await;
    let certificate = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, &neighbour.certificate);
    let body = json!({ "name": "host02", "ek_certificate": certificate });
    assert_eq!(service.admin_post("tpm-hosts", &body).await.0, 201);

    for version in [V1, V2] {
        for attack in ATTACKS {
            let session = Host::new_session();
            let own = host.answers(&service, version, session).await;
            let mut forgery = Forgery {
                context: own[attack.step].clone(),
                raw: None,
                session,
                requested: vec![CertificateKind::Encryption],
                own,
                second: host.answers(&service, version, session).await,
                elsewhere: host.answers(&service, version, Host::new_session()).await,
                neighbour: neighbour.answers(&service, version, session).await,
                neighbour_log: neighbour.log.clone(),
                as_neighbour: false,
                as_stranger: false,
                as_other_type: false,
                twice: false,
            };
            (attack.forge)(&mut forgery);
            let request = forgery.request(version, &host, &neighbour, &stranger);
            if forgery.twice {
                let honest = service.ask(version, &request).await;
                assert!(
                    matches!(honest, Reply::HealthCertificate { .. }),
                    "{}: {honest:?}",
                    attack.name
                );
            }
            let (status, body) = service.post(&format!("{version}/attest"), request.encode()).await;
            let reply = Reply::parse(&body).unwrap();
            assert_eq!(
                (status, reply.name()),
                (200, attack.reply),
                "{version}, {}",
                attack.name
            );
            if attack.reply == RTPM {
                let text = String::from_utf8(body).unwrap();
                assert_eq!(text, ONE_TEXT, "{version}, {}: all look alike", attack.name);
            }
        }
        let reply = host.attest(&service, version).await;
        assert!(matches!(reply, Reply::HealthCertificate { .. }), "{version}: {reply:?}");
    }
    assert!(ATTACKS.len() >= 25, "{}", ATTACKS.len());
}

impl Forgery {
    fn request(&self, version: &str, host: &Host, neighbour: &Host, stranger: &Keys) -> Request {
        let context = self.raw.clone().unwrap_or_else(|| self.context.encode());
        let v2 = (version == V2) != self.as_other_type;
        let owner = if self.as_neighbour { neighbour } else { host };
        if v2 {
            let ek = match self.as_stranger {
                true => (ProvidedKind::VsmIdentityKey, encode_rsa1(stranger.host.public())),
                false => (ProvidedKind::EndorsementKeyCertificate, owner.certificate.clone()),
            };
            return Request::Attestation {
                session: self.session,
                requested: self.requested.clone(),
                provided: vec![ek, (ProvidedKind::RtpmContext, context)],
            };
        }
        Request::TpmContinue {
            session: self.session,
            requested: self.requested.clone(),
            endorsement_key: match self.as_stranger {
                true => encode_rsa1(stranger.host.public()),
                false => encode_rsa1(&owner.ek),
            },
            context,
        }
    }
}

const fn attack(name: &'static str, step: usize, forge: fn(&mut Forgery), reply: &'static str) -> Attack {
    Attack {
        name,
        step,
        forge,
        reply,
    }
}

/// The second state under the first answer's blobs; nothing is sent twice.
fn false_answer(forgery: &mut Forgery) -> bool {
    forgery.context.blobs = forgery.own[0].blobs.clone();
    false
}

fn set_state(forgery: &mut Forgery, step: usize) {
    let from = &forgery.own[step];
    forgery.context.enc_context = from.enc_context;
    forgery.context.encrypted_buffer = from.encrypted_buffer.clone();
}

fn raw(forgery: &mut Forgery, change: fn(&mut Vec<u8>)) {
    let mut bytes = forgery.context.encode();
    change(&mut bytes);
    forgery.raw = Some(bytes);
}

fn raw_at(forgery: &mut Forgery, at: usize, value: u8) {
    let mut bytes = forgery.context.encode();
    bytes[at] = value;
    forgery.raw = Some(bytes);
}

fn tpm(forgery: &mut Forgery, blob: usize, change: fn(&mut Vec<u8>)) {
    let Blob::Tpm(bytes) = &mut forgery.context.blobs[blob] else {
        panic!("no response there")
    };
    change(bytes);
}

fn from_end(forgery: &mut Forgery, distance: usize) {
    let Blob::Tpm(bytes) = &mut forgery.context.blobs[0] else {
        panic!("no response there")
    };
    let at = bytes.len() - distance;
    bytes[at] ^= 0x20;
}

/// The response as the TPM gives it to anybody: no parameter size, no authorisation.
fn without_session(bytes: &mut Vec<u8>) {
    bytes.truncate(bytes.len() - 69);
    bytes.drain(10..14);
    bytes[..2].copy_from_slice(&[0x80, 0x01]);
    let size = u32::try_from(bytes.len()).unwrap();
    bytes[2..6].copy_from_slice(&size.to_be_bytes());
}

fn refused(code: u32) -> Blob {
    Blob::Tpm([&[0x80, 0x01, 0, 0, 0, 10][..], &code.to_be_bytes()].concat())
}

fn info() -> Blob {
    Blob::DeviceInfo(DeviceInfo {
        tpm_version: 2,
        interface_type: 4,
        implementation_version: 0,
    })
}

const ONE_TEXT: &str = r#"{"__type":"RtpmErrorReply:#Microsoft.Windows.RemoteAttestation.Core","Retryable":true}"#;

type Items = Vec<(ProvidedKind, Vec<u8>)>;

/// What a host-key request carries; signed anew after the change unless the row says otherwise.
struct Claim {
    host_key: Vec<u8>,
    vsm_key: Vec<u8>,
    /// Bytes that the signer signs; none for host key then VSM key, as they are sent.
    signed: Option<Vec<u8>>,
    signature: Option<Vec<u8>>,
    signer: Signer,
    provided: Option<fn(&mut Items)>,
    requested: Option<Vec<CertificateKind>>,
}

#[derive(Clone, Copy)]
enum Signer {
    Own,
    Stranger,
    Ec,
    EcAsn1,
}

struct HostKeyAttack {
    name: &'static str,
    forge: fn(&mut Claim, &Party),
    reply: &'static str,
}

struct Party {
    keys: Keys,
    stranger: Keys,
    certificate: Vec<u8>,
    denied: Vec<u8>,
    ec: EcPublicKey,
    ec_asn1: EcPublicKey,
}

const HOST_KEY_ATTACKS: &[HostKeyAttack] = &[
    on_key(
        "a host key that is not registered",
        |c, p| {
            c.host_key = encode_rsa1(p.stranger.host.public());
            c.signer = Signer::Stranger;
        },
        UNAUTHORIZED,
    ),
    on_key(
        "a registered key, another's signature",
        |c, _| c.signer = Signer::Stranger,
        UNAUTHORIZED,
    ),
    on_key(
        "the VSM key signed alone",
        |c, _| c.signed = Some(c.vsm_key.clone()),
        UNAUTHORIZED,
    ),
    on_key(
        "the host key signed alone",
        |c, _| c.signed = Some(c.host_key.clone()),
        UNAUTHORIZED,
    ),
    on_key(
        "the keys signed in the other order",
        |c, _| c.signed = Some([c.vsm_key.clone(), c.host_key.clone()].concat()),
        UNAUTHORIZED,
    ),
    on_key(
        "another VSM key under a recorded signature",
        |c, p| {
            c.signed = Some(p.keys.signed());
            c.vsm_key = encode_rsa1(p.stranger.vsm.public());
        },
        UNAUTHORIZED,
    ),
    on_key(
        "a byte moved from the VSM key to the host key",
        |c, p| {
            c.signed = Some(p.keys.signed());
            c.host_key.push(c.vsm_key.remove(0));
        },
        UNAUTHORIZED,
    ),
    on_key(
        "a byte moved from the host key to the VSM key",
        |c, p| {
            c.signed = Some(p.keys.signed());
            let last = c.host_key.pop().unwrap();
            c.vsm_key.insert(0, last);
        },
        UNAUTHORIZED,
    ),
    on_key(
        "a host key with a byte after it, signed",
        |c, _| c.host_key.push(0),
        UNAUTHORIZED,
    ),
    on_key(
        "the host key as a certificate",
        |c, p| c.host_key = p.certificate.clone(),
        UNAUTHORIZED,
    ),
    on_key("an empty host key", |c, _| c.host_key.clear(), UNAUTHORIZED),
    on_key(
        "a host key of a megabyte's claim",
        |c, _| c.host_key[12..16].copy_from_slice(&[0xff; 4]),
        UNAUTHORIZED,
    ),
    on_key(
        "an empty signature",
        |c, _| c.signature = Some(Vec::new()),
        UNAUTHORIZED,
    ),
    on_key(
        "a signature of zeros",
        |c, _| c.signature = Some(vec![0; 256]),
        UNAUTHORIZED,
    ),
    on_key(
        "a signature of the length of no key",
        |c, _| c.signature = Some(vec![1; 4096]),
        UNAUTHORIZED,
    ),
    on_key(
        "a P-256 signature of zeros",
        |c, p| {
            c.host_key = encode_ecs1(&p.ec);
            c.signature = Some(vec![0; 64]);
        },
        UNAUTHORIZED,
    ),
    on_key(
        "a P-256 signature by another key",
        |c, p| {
            c.host_key = encode_ecs1(&p.ec_asn1);
            c.signer = Signer::Ec;
        },
        UNAUTHORIZED,
    ),
    on_key(
        "a P-256 signature in the other encoding",
        |c, p| {
            c.host_key = encode_ecs1(&p.ec_asn1);
            c.signer = Signer::EcAsn1;
        },
        UNAUTHORIZED,
    ),
    on_key(
        "a point that is not on the curve",
        |c, p| {
            c.host_key = encode_ecs1(&p.ec);
            c.host_key[71] ^= 1;
        },
        UNAUTHORIZED,
    ),
    on_key(
        "a VSM key that an administrator denies",
        |c, p| c.vsm_key = p.denied.clone(),
        UNAUTHORIZED,
    ),
    on_key("a VSM key with a byte after it, signed", |c, _| c.vsm_key.push(0), VSM),
    on_key("no VSM key in its item", |c, _| c.vsm_key.clear(), VSM),
    on_key("a VSM key of 1024 bits", |c, _| c.vsm_key = small_key(), VSM),
    on_key("a VSM key with an even exponent", |c, _| c.vsm_key[26] = 0, VSM),
    on_key(
        "a VSM key on P-384",
        |c, _| c.vsm_key = [b"ECS3".as_slice(), &48u32.to_le_bytes(), &[0x11; 96]].concat(),
        VSM,
    ),
    on_key(
        "a VSM key beside P-256",
        |c, p| {
            c.vsm_key = encode_ecs1(&p.ec);
            c.vsm_key[71] ^= 1;
        },
        VSM,
    ),
    on_key(
        "the VSM key's item left out",
        |c, _| c.provided = Some(|items| drop(items.remove(0))),
        PAYLOAD,
    ),
    on_key(
        "the host key's item left out",
        |c, _| c.provided = Some(|items| drop(items.remove(1))),
        PAYLOAD,
    ),
    on_key(
        "the signature's item left out",
        |c, _| c.provided = Some(|items| drop(items.remove(2))),
        PAYLOAD,
    ),
    on_key(
        "two VSM keys",
        |c, _| c.provided = Some(|items| items.push(items[0].clone())),
        PAYLOAD,
    ),
    on_key(
        "two host keys",
        |c, _| c.provided = Some(|items| items.push(items[1].clone())),
        PAYLOAD,
    ),
    on_key(
        "two signatures",
        |c, _| c.provided = Some(|items| items.push(items[2].clone())),
        PAYLOAD,
    ),
    on_key(
        "a certificate of an authority asked for",
        |c, _| c.requested = Some(vec![CertificateKind::Authority]),
        PAYLOAD,
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_attack_on_host_key_requests_gets_its_reply() {
    let options = Options {
        requests_per_minute_per_key: 100_000,
        ..Options::default()
    };
    let service = Service::start_with(options, |_, args| args).await;
    service.set_mode("HostKey").await;
    let asn1 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new()).unwrap();
    let asn1 = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, asn1.as_ref()).unwrap();
    let point = asn1.public_key().as_ref();
    let ec_asn1 = EcPublicKey::from_coordinates(&point[1..33].try_into().unwrap(), &point[33..].try_into().unwrap());
    let (pair, ec) = p256_key();
    let keys = Keys::new();
    let party = Party {
        certificate: rcgen::generate_simple_self_signed(vec!["host".to_owned()])
            .unwrap()
            .cert
            .der()
            .to_vec(),
        denied: encode_rsa1(Keys::new().vsm.public()),
        stranger: Keys::new(),
        ec_asn1: ec_asn1.unwrap(),
        ec,
        keys,
    };
    register_host_key(&service, "rsa", &encode_rsa1(party.keys.host.public())).await;
    register_host_key(&service, "ec", &encode_ecs1(&party.ec)).await;
    register_host_key(&service, "ec-asn1", &encode_ecs1(&party.ec_asn1)).await;
    register_host_key(&service, "certificate", &party.certificate).await;
    let denied = hgs_protocol::wire::vsm::parse_rsa1(&party.denied)
        .unwrap()
        .spki_sha256();
    let denial = json!({ "sha256": hex::encode(denied) });
    assert_eq!(service.admin_post("denied-keys", &denial).await.0, 201);

    for attack in HOST_KEY_ATTACKS {
        let mut claim = Claim {
            host_key: encode_rsa1(party.keys.host.public()),
            vsm_key: encode_rsa1(party.keys.vsm.public()),
            signed: None,
            signature: None,
            signer: Signer::Own,
            provided: None,
            requested: None,
        };
        (attack.forge)(&mut claim, &party);
        let joined = [claim.host_key.as_slice(), &claim.vsm_key].concat();
        let signed = claim.signed.unwrap_or(joined);
        let signature = claim.signature.unwrap_or_else(|| match claim.signer {
            Signer::Own => party.keys.host.sign_pkcs1_sha256(&signed).unwrap(),
            Signer::Stranger => party.stranger.host.sign_pkcs1_sha256(&signed).unwrap(),
            Signer::Ec => pair.sign(&SystemRandom::new(), &signed).unwrap().as_ref().to_vec(),
            Signer::EcAsn1 => asn1.sign(&SystemRandom::new(), &signed).unwrap().as_ref().to_vec(),
        });
        let mut request = host_key_request(claim.host_key, claim.vsm_key, signature);
        let Request::Attestation {
            provided, requested, ..
        } = &mut request
        else {
            unreachable!("a host-key request")
        };
        if let Some(change) = claim.provided {
            change(provided);
        }
        if let Some(kinds) = claim.requested {
            *requested = kinds;
        }
        let reply = service.ask_host_key(&request).await;
        assert_eq!(reply.name(), attack.reply, "{}", attack.name);
    }
    let reply = service.ask_host_key(&party.keys.request()).await;
    assert!(matches!(reply, Reply::HealthCertificate { .. }), "{reply:?}");
    assert!(ATTACKS.len() + HOST_KEY_ATTACKS.len() >= 60);
}

const fn on_key(name: &'static str, forge: fn(&mut Claim, &Party), reply: &'static str) -> HostKeyAttack {
    HostKeyAttack { name, forge, reply }
}

fn small_key() -> Vec<u8> {
    let mut blob = b"RSA1\0\x04\0\0\x03\0\0\0\x80\0\0\0\0\0\0\0\0\0\0\0\x01\0\x01".to_vec();
    blob.extend_from_slice(&[0xab; 128]);
    blob
}
