//! A roll beside its own cryptographic primitives, in the same run: in process for both suites, and over
//! HTTP with durable audit beside a server that does the primitives and nothing else.
//!
//! The primitives of a roll of two wrappings whose chain is known: the health certificate's signature and
//! the guardian signature verified, the transport key decrypted, the egress transport key encrypted to two
//! certificates and signed for, the transfer key encrypted to the host (always RSA, as health certificates
//! are). Symmetric operations and hashes are not counted.
#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on stops")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use actix_web::{App, HttpResponse, HttpServer, web};
use criterion::{Criterion, criterion_group, criterion_main};
use hgs_protocol::{
    crypto::RsaPrivateKey,
    env::{Clock, OsRandom, UnixTime},
    health::{
        AcceptanceRules, AttestationMode, AttestationSigner, CertificateKind, DEFAULT_LIFETIME,
        HealthCertificateRequest, TrustedSigner,
    },
    protector::{ChainCache, Guardian, GuardianKeys, KeyProtector, suite::PublicKey},
    secret::Secret32,
    wire::kps::{RollTransportKeyRequest, ServiceVersion},
};
use hgs_service::{
    settings::ServiceArgs,
    tokens::{Role, new_token},
};
use kps::roll::{self, roll_transport_key};

const PRIMITIVES: &str = "2 verifications (health certificate RSA, guardian signature), 1 decryption, \
                          2 encryptions to wrappings, 1 signature, 1 RSA encryption to the host";

struct Stage {
    keys: GuardianKeys,
    owner: GuardianKeys,
    host: RsaPrivateKey,
    signer: AttestationSigner,
    signer_key: PublicKey,
    now: UnixTime,
    certificate: Vec<u8>,
    protector: Vec<u8>,
    // What the primitives work on.
    message: Vec<u8>,
    signature: Vec<u8>,
    health_signature: Vec<u8>,
    encrypted: Vec<u8>,
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
        let stand_in = GuardianKeys::generate("stand-in", now, rng).unwrap();
        let message = vec![7; 7000];
        Stage {
            signature: owner.signing()[0].sign(&message).unwrap(),
            health_signature: stand_in.signing()[0].sign(&message[..800]).unwrap(),
            signer_key: stand_in.signing()[0].certificate().public_key().clone(),
            encrypted: keys.encryption()[0]
                .certificate()
                .public_key()
                .encrypt_key(&Secret32::new([1; 32]), rng)
                .unwrap(),
            protector: protector.to_xml(),
            keys,
            owner,
            host,
            signer,
            now,
            certificate,
            message,
        }
    }

    /// The primitives of one roll.
    fn primitives(&self) {
        let rng = &mut OsRandom;
        let key = Secret32::new([9; 32]);
        let (signing, encryption) = (&self.keys.signing()[0], &self.keys.encryption()[0]);
        let algorithm = self.keys.signing()[0].signature_algorithm();
        let rsa = hgs_protocol::protector::suite::SignatureAlgorithm::RsaSha256;
        assert!(
            self.signer_key
                .verify(rsa, &self.message[..800], &self.health_signature)
        );
        let owner = self.owner.signing()[0].certificate().public_key();
        assert!(owner.verify(algorithm, &self.message, &self.signature));
        assert!(encryption.decrypt_key(&self.encrypted).is_ok());
        for to in [&self.owner, &self.keys] {
            to.encryption()[0]
                .certificate()
                .public_key()
                .encrypt_key(&key, rng)
                .unwrap();
        }
        signing.sign(&self.message).unwrap();
        PublicKey::Rsa(self.host.public().clone())
            .encrypt_key(&key, rng)
            .unwrap();
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
                let start = Instant::now();
                work();
                start.elapsed()
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
                    let _permit = permits.acquire().await.unwrap();
                    web::block(move || stage.primitives()).await.unwrap();
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
