//! A roll beside its own cryptographic primitives, in the same run: in process for both suites, and over
//! HTTP with durable audit beside a server that does the primitives and nothing else.
//!
//! The primitives of a roll of two wrappings whose chain is known: the health certificate's signature and
//! the guardian signature verified, the transport key decrypted, the egress transport key encrypted to two
//! certificates and signed for, the transfer key encrypted to the host (always RSA, as health certificates
//! are). Symmetric operations and hashes are not counted. RSA primitives are the library's own calls on keys
//! parsed beforehand; in process both sides are measured in processor time, over HTTP in requests a second.
#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on stops")]

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use actix_web::{App, HttpResponse, HttpServer, web};
use aws_lc_rs::{
    rand::SystemRandom,
    rsa::{
        OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey, PrivateDecryptingKey,
        PublicEncryptingKey,
    },
    signature::{ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair},
};
use criterion::{Criterion, criterion_group, criterion_main};
use hgs_protocol::{
    crypto::RsaPrivateKey,
    env::{Clock, OsRandom, UnixTime},
    health::{
        AcceptanceRules, AttestationMode, AttestationSigner, CertificateKind, DEFAULT_LIFETIME,
        HealthCertificateRequest, TrustedSigner,
    },
    protector::{
        ChainCache, Guardian, GuardianKeys, KeyProtector,
        suite::{PrivateKey, PublicKey, Suite},
    },
    secret::Secret32,
    wire::kps::{RollTransportKeyRequest, ServiceVersion},
};
use hgs_service::{
    settings::ServiceArgs,
    tokens::{Role, new_token},
};
use kps::roll::{self, roll_transport_key};
use rustix::time::{ClockId, clock_gettime};

// As in the service.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// As long as the canonical wrappings of a protector with two of them, and as a certificate's signed part.
const WRAPPINGS: [u8; 7000] = [7; 7000];
const CERTIFICATE: [u8; 800] = [7; 800];

const PRIMITIVES: &str = "2 verifications (health certificate RSA, guardian signature), 1 decryption, \
                          2 encryptions to wrappings, 1 signature, 1 RSA encryption to the host";

struct Stage {
    keys: GuardianKeys,
    owner: GuardianKeys,
    signer: AttestationSigner,
    now: UnixTime,
    certificate: Vec<u8>,
    protector: Vec<u8>,
    health: Rsa,
    like_keys: Primitives,
}

/// An RSA key in each of the library's forms, and what its operations work on.
struct Rsa {
    verifying: ParsedPublicKey,
    signing: RsaKeyPair,
    encrypting: OaepPublicEncryptingKey,
    decrypting: OaepPrivateDecryptingKey,
    signature: Vec<u8>,
    encrypted: Vec<u8>,
}

impl Rsa {
    fn new(message: &[u8]) -> Rsa {
        let key = RsaPrivateKey::generate_2048().unwrap();
        let (pkcs8, public) = (key.expose_pkcs8(), key.public());
        Rsa {
            verifying: ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public.pkcs1_der()).unwrap(),
            signing: RsaKeyPair::from_pkcs8(pkcs8).unwrap(),
            encrypting: OaepPublicEncryptingKey::new(PublicEncryptingKey::from_der(&public.spki_der()).unwrap())
                .unwrap(),
            decrypting: OaepPrivateDecryptingKey::new(PrivateDecryptingKey::from_pkcs8(pkcs8).unwrap()).unwrap(),
            signature: key.sign_pkcs1_sha256(message).unwrap(),
            encrypted: public.encrypt_oaep_sha256(&[1; 32], b"").unwrap(),
        }
    }

    fn verify(&self, message: &[u8]) {
        self.verifying.verify_sig(message, &self.signature).unwrap();
    }

    fn sign(&self, message: &[u8]) {
        let mut signature = [0; 256];
        self.signing
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature)
            .unwrap();
        black_box(signature);
    }

    fn encrypt(&self) {
        let mut out = [0; 256];
        self.encrypting
            .encrypt(&OAEP_SHA256_MGF1SHA256, &[9; 32], &mut out, None)
            .unwrap();
        black_box(out);
    }

    fn decrypt(&self) {
        let mut out = [0; 256];
        self.decrypting
            .decrypt(&OAEP_SHA256_MGF1SHA256, &self.encrypted, &mut out, None)
            .unwrap();
        black_box(out);
    }
}

/// Keys like the guardian's and what their operations work on.
enum Primitives {
    A(Rsa),
    /// `p256` has no form of a key that is faster than the one the story uses.
    B {
        key: PrivateKey,
        public: PublicKey,
        signature: Vec<u8>,
        encrypted: Vec<u8>,
    },
}

impl Stage {
    fn new(suite_b: bool) -> Stage {
        let (now, rng) = (Clock::system().now(), &mut OsRandom);
        let mut generate = |name| match suite_b {
            true => GuardianKeys::generate_p256(name, now, rng).unwrap(),
            false => GuardianKeys::generate(name, now, rng).unwrap(),
        };
        let (keys, owner) = (generate("HGS"), generate("Owner"));
        let host = RsaPrivateKey::generate_2048().unwrap();
        let signer = AttestationSigner::generate(now, rng).unwrap();
        let certificate = certify(&signer, &host, now);
        let (protector, _) = KeyProtector::create(&owner, &[keys.guardian().unwrap()], rng).unwrap();
        let like_keys = match suite_b {
            false => Primitives::A(Rsa::new(&WRAPPINGS)),
            true => {
                let key = PrivateKey::generate(Suite::P256, rng).unwrap();
                Primitives::B {
                    public: key.public(),
                    signature: key.sign(&WRAPPINGS).unwrap(),
                    encrypted: key.public().encrypt_key(&Secret32::new([1; 32]), rng).unwrap(),
                    key,
                }
            }
        };
        Stage {
            protector: protector.to_xml(),
            health: Rsa::new(&CERTIFICATE),
            like_keys,
            keys,
            owner,
            signer,
            now,
            certificate,
        }
    }

    /// The primitives of one roll.
    fn primitives(&self) {
        self.health.verify(&CERTIFICATE);
        self.health.encrypt();
        match &self.like_keys {
            Primitives::A(rsa) => {
                rsa.verify(&WRAPPINGS);
                rsa.decrypt();
                rsa.encrypt();
                rsa.encrypt();
                rsa.sign(&WRAPPINGS);
            }
            Primitives::B {
                key,
                public,
                signature,
                encrypted,
            } => {
                assert!(public.verify(key.signature_algorithm(), &WRAPPINGS, signature));
                black_box(key.decrypt_key(encrypted).unwrap());
                for _ in 0..2 {
                    black_box(public.encrypt_key(&Secret32::new([9; 32]), &mut OsRandom).unwrap());
                }
                black_box(key.sign(&WRAPPINGS).unwrap());
            }
        }
    }

    fn roll(&self, signers: &[TrustedSigner], rules: &AcceptanceRules, chains: &ChainCache, body: &[u8]) {
        let ask = RollTransportKeyRequest::parse(body).unwrap();
        let guardian = roll::Guardian {
            keys: &self.keys,
            signers,
            rules,
            max_offline_unwraps: 0,
            allow_sha1_oaep: false,
            chains,
        };
        let release = roll_transport_key(&ask, ServiceVersion::V2, &guardian, self.now, &mut OsRandom).unwrap();
        assert!(release.response.encode().len() > 1000);
    }
}

fn certify(signer: &AttestationSigner, host: &RsaPrivateKey, now: UnixTime) -> Vec<u8> {
    let ask = HealthCertificateRequest {
        key: host.public().clone().into(),
        kind: CertificateKind::Encryption,
        mode: AttestationMode::HostKey,
        policies: vec![],
        issued_at: now,
        lifetime: DEFAULT_LIFETIME,
    };
    signer.issue(&ask, &mut OsRandom).unwrap()
}

/// Processor time of this process, which other processes' load does not lengthen.
fn processor_time() -> Duration {
    clock_gettime(ClockId::ProcessCPUTime).try_into().unwrap()
}

fn in_process(criterion: &mut Criterion) {
    for (suite, name, goal) in [(false, "suite A (RSA-2048)", 0.80), (true, "suite B (P-256)", 0.65)] {
        let stage = Stage::new(suite);
        let signers = [TrustedSigner::from_certificate(stage.signer.certificate_der()).unwrap()];
        let (rules, chains) = (AcceptanceRules::default(), ChainCache::new(1 << 20));
        let body = RollTransportKeyRequest::new(stage.protector.clone(), stage.certificate.clone()).encode();
        criterion.bench_function(&format!("{name}: roll"), |b| {
            b.iter(|| stage.roll(&signers, &rules, &chains, &body));
        });
        criterion.bench_function(&format!("{name}: its primitives"), |b| b.iter(|| stage.primitives()));
        // The ratio by turns, so that a machine that is busy for a moment harms both alike.
        let (mut rolls, mut limit) = (Duration::ZERO, Duration::ZERO);
        let mut uncached = Duration::ZERO;
        for _ in 0..300 {
            let time = |work: &dyn Fn()| {
                let start = processor_time();
                work();
                processor_time() - start
            };
            rolls += time(&|| stage.roll(&signers, &rules, &chains, &body));
            limit += time(&|| stage.primitives());
            uncached += time(&|| stage.roll(&signers, &rules, &ChainCache::new(0), &body));
        }
        println!("{name}: primitives counted: {PRIMITIVES}");
        println!(
            "{name}: roll {:?}, primitives {:?}: ratio {:.2} (goal {goal:.2}); with no chain known {:?}, ratio {:.2}",
            rolls / 300,
            limit / 300,
            limit.as_secs_f64() / rolls.as_secs_f64(),
            uncached / 300,
            limit.as_secs_f64() / uncached.as_secs_f64(),
        );
    }
}

/// Requests a second that `url` answers with 200 over 16 connections.
async fn load(client: &reqwest::Client, url: &str, body: &web::Bytes, seconds: f64) -> f64 {
    let answered = Arc::new(AtomicUsize::new(0));
    let start = Instant::now();
    let workers = (0..16).map(|_| {
        let (client, url, body, answered) = (client.clone(), url.to_owned(), body.clone(), answered.clone());
        tokio::spawn(async move {
            while start.elapsed().as_secs_f64() < seconds {
                let reply = client.post(&url).body(body.clone()).send().await.unwrap();
                assert_eq!(reply.status().as_u16(), 200);
                reply.bytes().await.unwrap();
                answered.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.unwrap();
    }
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let answered = answered.load(Ordering::Relaxed) as f64;
    answered / start.elapsed().as_secs_f64()
}

async fn over_http() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("kek"), "5a".repeat(32)).unwrap();
    let (token, line) = new_token(Role::Administrator, &mut OsRandom);
    std::fs::write(path("tokens"), line).unwrap();
    let settings = ServiceArgs {
        data_dir: Some(path("data")),
        key_encryption_key_file: Some(path("kek")),
        admin_tokens: Some(path("tokens")),
        ..ServiceArgs::default()
    };
    let settings = settings.resolve("kps").unwrap();
    let service = kps::start(&settings, &kps::Options::default(), Clock::system())
        .await
        .unwrap();
    let (url, admin) = (service.service_url.clone(), service.admin_url.clone());
    tokio::spawn(service.run());
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let metadata = client.get(format!("{url}{}", hgs_protocol::wire::kps::METADATA_PATH));
    let metadata = metadata.send().await.unwrap().bytes().await.unwrap();
    let stage = Arc::new(Stage::new(false));
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let trusted = client
        .post(format!("{admin}/admin/v1/attestation-signers"))
        .bearer_auth(token)
        .json(&serde_json::json!({ "certificate": STANDARD.encode(stage.signer.certificate_der()) }));
    assert_eq!(trusted.send().await.unwrap().status().as_u16(), 201);
    let guardian = Guardian::from_metadata(&metadata, "HGS").unwrap();
    let (protector, _) = KeyProtector::create(&stage.owner, &[guardian], &mut OsRandom).unwrap();
    let body = web::Bytes::from(RollTransportKeyRequest::new(protector.to_xml(), stage.certificate.clone()).encode());

    // The ceiling: the same server, body, answer size and threads, the primitives, and nothing else.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (permits, shared) = (Arc::new(tokio::sync::Semaphore::new(cores)), stage.clone());
    let server = HttpServer::new(move || {
        let (permits, stage) = (permits.clone(), shared.clone());
        App::new()
            .app_data(web::PayloadConfig::new(1 << 20))
            .default_service(web::to(move |body: web::Bytes| {
                let (permits, stage) = (permits.clone(), stage.clone());
                async move {
                    let permit = permits.acquire_owned().await.unwrap();
                    let work = move || {
                        stage.primitives();
                        drop(permit);
                    };
                    web::block(work).await.unwrap();
                    HttpResponse::Ok().body(body)
                }
            }))
    })
    .workers(cores)
    .bind("127.0.0.1:0")
    .unwrap();
    let ceiling_url = format!("http://{}/", server.addrs()[0]);
    tokio::spawn(server.run());

    let roll_url = format!("{url}{}", ServiceVersion::V2.roll_path());
    let (mut rolls, mut ceiling) = (0.0, 0.0);
    for _ in 0..4 {
        rolls += load(&client, &roll_url, &body, 2.0).await / 4.0;
        ceiling += load(&client, &ceiling_url, &body, 2.0).await / 4.0;
    }
    println!("over HTTP, 16 connections, primitives counted: {PRIMITIVES}");
    println!(
        "over HTTP: {rolls:.0} rolls/s with durable audit, ceiling of the primitives {ceiling:.0}/s: ratio {:.2} (goal 0.75)",
        rolls / ceiling
    );
    group_commit(directory.path()).await;
}

/// Durable audit rows a second, one after the other and 64 at a time.
async fn group_commit(directory: &std::path::Path) {
    let url = format!("sqlite://{}", directory.join("audit.db").display());
    let migrations = sqlx::migrate!("../migrations/kps/sqlite");
    let database = hgs_service::database::Database::open(&url, &migrations, &migrations)
        .await
        .unwrap();
    let kek = hgs_service::sealed::Kek::new(Secret32::new([1; 32]));
    let audit = hgs_service::audit::Audit::start(database, &kek, &hgs_protocol::env::Env::system());
    let mut rates = Vec::new();
    for at_once in [1u32, 64] {
        let start = Instant::now();
        let writers = (0..at_once).map(|_| {
            let audit = audit.clone();
            tokio::spawn(async move {
                for _ in 0..1024 / at_once {
                    let body = serde_json::json!({ "outcome": "Released", "ingressProtector": "00".repeat(32) });
                    let entry = hgs_service::audit::Entry {
                        kind: "key-release",
                        once: None,
                        body,
                    };
                    audit.record(entry).await.unwrap();
                }
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.unwrap();
        }
        rates.push(1024.0 / start.elapsed().as_secs_f64());
    }
    println!(
        "group commit: {:.0} durable audit rows/s one at a time, {:.0} rows/s with 64 waiting: {:.1} times",
        rates[0],
        rates[1],
        rates[1] / rates[0]
    );
}

fn http(_: &mut Criterion) {
    actix_web::rt::System::new().block_on(over_http());
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_secs(1));
    targets = in_process, http
}
criterion_main!(benches);
