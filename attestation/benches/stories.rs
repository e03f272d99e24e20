//! Each attestation story in process, from the request's bytes to the reply's, beside its own cryptographic
//! primitives in the same run.
//!
//! `ratio` is the primitives' processor time over the story's: 1.00 would be a story that costs nothing but
//! cryptography. The primitives are the library's own calls on keys parsed beforehand; what is not named among
//! them (parsing of keys, HMACs and AES-GCM of the sealed states, policies) counts against the story. Needs
//! swtpm: an exchange with a real TPM is recorded once and its requests are then decided again and again,
//! since the server keeps no state of its own between them.

#![expect(clippy::unwrap_used, reason = "a measurement stops at the first surprise")]

use std::{
    collections::{BTreeMap, HashSet},
    hint::black_box,
    time::Duration,
};

use attestation::{
    attest::{Ask, Issuing, Knowledge, attest_tpm},
    baseline::{Baselines, CiPolicy, Switches, TpmBaseline},
    ek::EndorsementKey,
    host_key::{HostKey, HostKeyAsk, attest_host_key},
    rtpm::StateKeys,
    store::{KnownHost, KnownHostKey, PolicyVersion, Store},
};
use aws_lc_rs::{
    rand::SystemRandom,
    rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey},
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, ParsedPublicKey,
        RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair,
    },
};
use criterion::Criterion;
use guarded_host_sim::{
    machine::{
        boot::{Boot, STARTUP_LOCALITY},
        dials::Dials,
    },
    swtpm::{Swtpm, TpmMaker},
};
use hgs_protocol::{
    crypto::{EcPublicKey, RsaPrivateKey, sha256},
    env::{OsRandom, Random, UnixTime},
    health::{AttestationMode, AttestationSigner, CertificateKind},
    secret::Secret32,
    tpm::EK_HANDLE,
    wire::{
        boot_log::BootLog,
        hgsa::{ProvidedKind, Reply, Request, SessionId},
        rtpm::{Blob, Context, DeviceInfo},
        vsm::{encode_ecs1, encode_rsa1},
    },
};
use hgs_service::database::Database;
use rustix::time::{ClockId, clock_gettime};

// As in the service.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const NOW: UnixTime = UnixTime(1_790_000_000);
const ROUNDS: usize = 300;

struct Fixture {
    signer: AttestationSigner,
    /// An RSA-2048 key as the signer's, whose signature is the primitive.
    like_signer: RsaKeyPair,
    denied: HashSet<[u8; 32]>,
}

impl Fixture {
    /// The signature of a certificate, of about its size.
    fn sign_certificate(&self) {
        let mut signature = vec![0; self.like_signer.public_modulus_len()];
        self.like_signer
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), &[7; 1200], &mut signature)
            .unwrap();
        black_box(signature);
    }

    fn issuing(&self, mode: AttestationMode) -> Issuing<'_> {
        Issuing {
            signer: &self.signer,
            lifetime: Duration::from_secs(28_800),
            now: NOW,
            mode,
            denied: &self.denied,
        }
    }
}

/// A whole exchange of one host, ready to be decided again.
struct Recorded {
    bodies: Vec<Vec<u8>>,
    hosts: Vec<KnownHost>,
    baselines: BTreeMap<PolicyVersion, Baselines>,
    switches: Switches,
    state_keys: StateKeys,
    ek: OaepPublicEncryptingKey,
    log: Vec<u8>,
    records: Vec<Vec<u8>>,
}

impl Recorded {
    /// None without swtpm.
    fn new(fixture: &Fixture) -> Option<Recorded> {
        let dir = tempfile::tempdir().unwrap();
        let maker = TpmMaker::open(&dir.path().join("maker")).ok()?;
        let state = dir.path().join("tpm");
        let certificate = maker.manufacture("host", &state, None).ok()?;
        let mut tpm = Swtpm::start("host", &state, None).unwrap();
        tpm.reset(STARTUP_LOCALITY).unwrap();
        let ek = tpm.channel().read_public(EK_HANDLE).unwrap().rsa_key().unwrap().clone();
        let (encryption, signing) = (
            RsaPrivateKey::generate_2048().unwrap(),
            RsaPrivateKey::generate_2048().unwrap(),
        );
        let mut boot = Boot::begin(tpm.channel());
        boot.measure_configuration(&Dials::default()).unwrap();
        let log = boot.finish(1, Some((encryption.public(), signing.public()))).unwrap();
        let policy = Dials::default().ci_policy.unwrap();
        let baselines = Baselines {
            tpm: vec![TpmBaseline::from_log("class", &log).unwrap()],
            ci_policies: vec![CiPolicy::from_file("policy", &policy)],
            dump_keys: Vec::new(),
        };
        let mut recorded = Recorded {
            bodies: Vec::new(),
            hosts: vec![KnownHost {
                name: "host01".to_owned(),
                ek_sha256: EndorsementKey::parse(&ek.spki_der()).unwrap().sha256(),
                version: PolicyVersion::V2,
                unproven: false,
                vendor: None,
                added_at: NOW,
            }],
            baselines: BTreeMap::from([(PolicyVersion::V2, baselines)]),
            switches: Switches::default(),
            state_keys: StateKeys {
                current: Secret32::random(&mut OsRandom),
                others: Vec::new(),
            },
            ek: OaepPublicEncryptingKey::new(PublicEncryptingKey::from_der(&ek.spki_der()).unwrap()).unwrap(),
            records: BootLog::parse(&log)
                .unwrap()
                .events()
                .iter()
                .map(|event| event.data.clone())
                .collect(),
            log,
        };
        let session = SessionId(uuid::Uuid::from_bytes((&mut OsRandom as &mut dyn Random).bytes()));
        let mut context: Option<Context> = None;
        loop {
            let mut provided = vec![(ProvidedKind::EndorsementKeyCertificate, certificate.clone())];
            provided.extend(
                context
                    .take()
                    .map(|context| (ProvidedKind::RtpmContext, context.encode())),
            );
            let request = Request::Attestation {
                session,
                requested: vec![CertificateKind::Encryption],
                provided,
            };
            recorded.bodies.push(request.encode());
            match recorded.decide(recorded.bodies.last().unwrap(), fixture) {
                Reply::TpmContinue { context: next } => {
                    let mut next = Context::parse(&next).unwrap();
                    for blob in &mut next.blobs {
                        *blob = match blob {
                            Blob::BootLogWanted => Blob::BootLog(recorded.log.clone()),
                            Blob::DeviceInfoWanted => Blob::DeviceInfo(DeviceInfo {
                                tpm_version: 2,
                                interface_type: 4,
                                implementation_version: 0,
                            }),
                            Blob::Tpm(command) => Blob::Tpm(tpm.channel().transact(command).unwrap()),
                            other => panic!("the server sent {other:?}"),
                        };
                    }
                    context = Some(next);
                }
                Reply::HealthCertificate { .. } => return Some(recorded),
                other => panic!("{other:?}"),
            }
        }
    }

    fn decide(&self, body: &[u8], fixture: &Fixture) -> Reply {
        let ask = Ask::from_request(Request::parse(body).unwrap(), true).unwrap();
        let issuing = fixture.issuing(AttestationMode::Tpm);
        let known = Knowledge {
            hosts: &self.hosts,
            baselines: &self.baselines,
            switches: &self.switches,
            ca_certificates: false,
            state_keys: &self.state_keys,
            issuing: &issuing,
            unshifted: NOW,
        };
        attest_tpm(&ask, &known, &mut OsRandom).outcome.unwrap()
    }

    fn story(&self, fixture: &Fixture) {
        for body in &self.bodies {
            black_box(self.decide(body, fixture).encode());
        }
    }

    fn primitives(&self, fixture: &Fixture) {
        let mut salt = vec![0; self.ek.ciphertext_size()];
        self.ek
            .encrypt(&OAEP_SHA256_MGF1SHA256, &[7; 32], &mut salt, Some(b"SECRET\0"))
            .unwrap();
        black_box(salt);
        // Each record's data and the extension of its PCR.
        for data in &self.records {
            black_box(sha256(data));
            black_box(sha256(&[7; 64]));
        }
        fixture.sign_certificate();
    }
}

/// A host-key request and what its signature is checked with.
struct KeyStory {
    body: Vec<u8>,
    host: KnownHostKey,
    message: Vec<u8>,
    signature: Vec<u8>,
    key: ParsedPublicKey,
}

impl KeyStory {
    fn new(key_bytes: Vec<u8>, parsed: ParsedPublicKey, sign: impl Fn(&[u8]) -> Vec<u8>) -> KeyStory {
        let vsm = encode_rsa1(RsaPrivateKey::generate_2048().unwrap().public());
        let message = [key_bytes.as_slice(), &vsm].concat();
        let signature = sign(&message);
        let request = Request::Attestation {
            session: SessionId(uuid::Uuid::nil()),
            requested: vec![CertificateKind::Encryption],
            provided: vec![
                (ProvidedKind::VsmIdentityKey, vsm),
                (ProvidedKind::HostKeyPublicKey, key_bytes.clone()),
                (ProvidedKind::HostKeySignature, signature.clone()),
            ],
        };
        let key = HostKey::parse(&key_bytes).unwrap();
        KeyStory {
            body: request.encode(),
            host: KnownHostKey {
                name: "host01".to_owned(),
                spki_sha256: key.sha256(),
                algorithm: key.algorithm().to_owned(),
                added_at: NOW,
            },
            message,
            signature,
            key: parsed,
        }
    }

    fn story(&self, fixture: &Fixture) {
        let issuing = fixture.issuing(AttestationMode::HostKey);
        let ask = HostKeyAsk::from_request(Request::parse(&self.body).unwrap()).unwrap();
        let decision = attest_host_key(&ask, Some(&self.host), &issuing, &mut OsRandom);
        black_box(decision.outcome.unwrap().encode());
    }

    fn primitives(&self, fixture: &Fixture) {
        self.key.verify_sig(&self.message, &self.signature).unwrap();
        fixture.sign_certificate();
    }
}

/// Processor time of this process, which other processes' load does not lengthen.
fn processor_time() -> Duration {
    clock_gettime(ClockId::ProcessCPUTime).try_into().unwrap()
}

/// Medians of interleaved rounds, so that what load there is weighs on both sides alike.
fn compare(name: &str, goal: f64, counted: &str, story: impl Fn(), primitives: impl Fn()) {
    let time = |work: &dyn Fn()| {
        let begun = processor_time();
        work();
        processor_time() - begun
    };
    let (mut stories, mut cores) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        stories.push(time(&story));
        cores.push(time(&primitives));
    }
    let (story, primitives) = (median(stories), median(cores));
    let ratio = primitives.as_secs_f64() / story.as_secs_f64();
    let met = if ratio >= goal { "met" } else { "MISSED" };
    println!("{name}: story {story:.1?}, primitives {primitives:.1?}, ratio {ratio:.2} (goal {goal:.2}: {met})");
    println!("    primitives counted: {counted}");
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// A request's share of the store and its story, with few and with many registered hosts.
fn registered_hosts(recorded: &Recorded, fixture: &Fixture) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = |count: u32| {
        let url = format!("sqlite://{}", dir.path().join(format!("{count}.db")).display());
        runtime.block_on(async {
            let database = Database::open(&url, &attestation::SQLITE, &attestation::POSTGRES)
                .await
                .unwrap();
            let Database::Sqlite { write, .. } = &database else {
                panic!("not SQLite")
            };
            let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1) \
                        INSERT INTO tpm_host (name, ek_sha256, version, unproven, vendor, added_at) \
                        SELECT 'host-' || i, randomblob(32), 2, 0, NULL, 0 FROM n";
            sqlx::query(fill).bind(count).execute(write).await.unwrap();
            let store = Store::new(database);
            store.add_host(&recorded.hosts[0]).await.unwrap();
            store
        })
    };
    let (few, many) = (store(10), store(100_000));
    let one = |store: &Store| {
        let begun = processor_time();
        for body in &recorded.bodies {
            let found = runtime
                .block_on(store.known_hosts(&recorded.hosts[0].ek_sha256))
                .unwrap();
            assert_eq!(found.len(), 1);
            black_box(recorded.decide(body, fixture).encode());
        }
        processor_time() - begun
    };
    let (mut with_few, mut with_many) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        with_few.push(one(&few));
        with_many.push(one(&many));
    }
    let (few, many) = (median(with_few), median(with_many));
    let ratio = many.as_secs_f64() / few.as_secs_f64();
    let met = if ratio <= 1.2 { "met" } else { "MISSED" };
    println!(
        "lookup and story, one exchange: 10 hosts {few:.1?}, 100,000 hosts {many:.1?}, ratio {ratio:.2} (goal at most 1.20: {met})"
    );
}

fn main() {
    let fixture = Fixture {
        signer: AttestationSigner::generate(NOW, &mut OsRandom).unwrap(),
        like_signer: RsaKeyPair::from_pkcs8(RsaPrivateKey::generate_2048().unwrap().expose_pkcs8()).unwrap(),
        denied: HashSet::new(),
    };
    let rsa = RsaPrivateKey::generate_2048().unwrap();
    let parsed = ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, rsa.public().pkcs1_der()).unwrap();
    let rsa = KeyStory::new(encode_rsa1(rsa.public()), parsed, |message| {
        rsa.sign_pkcs1_sha256(message).unwrap()
    });
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref()).unwrap();
    let point: &[u8; 65] = pair.public_key().as_ref().try_into().unwrap();
    let (x, y) = point[1..].split_at(32);
    let key = EcPublicKey::from_coordinates(x.try_into().unwrap(), y.try_into().unwrap()).unwrap();
    let parsed = ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).unwrap();
    let p256 = KeyStory::new(encode_ecs1(&key), parsed, |message| {
        pair.sign(&random, message).unwrap().as_ref().to_vec()
    });
    let recorded = Recorded::new(&fixture);

    let mut criterion = Criterion::default().configure_from_args().sample_size(50);
    criterion.bench_function("host key RSA/story", |b| b.iter(|| rsa.story(&fixture)));
    criterion.bench_function("host key P-256/story", |b| b.iter(|| p256.story(&fixture)));
    if let Some(recorded) = &recorded {
        criterion.bench_function("TPM/story", |b| b.iter(|| recorded.story(&fixture)));
    }
    criterion.final_summary();

    let counted = "RSA-2048 PKCS#1 signature of the certificate; verification of the host key's signature";
    compare(
        "host key RSA",
        0.75,
        counted,
        || rsa.story(&fixture),
        || rsa.primitives(&fixture),
    );
    compare(
        "host key P-256",
        0.50,
        counted,
        || p256.story(&fixture),
        || p256.primitives(&fixture),
    );
    match &recorded {
        Some(recorded) => {
            let counted = "RSA-2048 PKCS#1 signature of the certificate; RSA-2048 OAEP of the salt; \
                 SHA-256 of each record and each extension of the boot log";
            compare(
                "TPM, RSA certificate",
                0.75,
                counted,
                || recorded.story(&fixture),
                || recorded.primitives(&fixture),
            );
            registered_hosts(recorded, &fixture);
        }
        None => println!("SKIPPED TPM: swtpm is not installed"),
    }
}
