//! No key material in logs or errors: the whole story in one process, at TRACE, with every secret
//! known to the test because its own generator drew it or its own key opens it.
//!
//! The test starts itself as a child whose whole output is then searched. Only swtpm is another
//! process; it gets no secret of the story in clear but a vTPM's own state key.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    env, fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use aho_corasick::AhoCorasick;
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use clap::Parser;
use guarded_host_sim::{
    agent::{self, AgentArgs},
    ledger::{self, Ledger},
    machine::{
        boot::{Boot, STARTUP_LOCALITY},
        dials::Dials,
        relay::{self, Gate, SharedTpm},
    },
    owner::Owner,
    shielding::{
        data_file::{Contents, FileName, NamedFile, NewDataFile},
        qualifier::{Qualifier, VersionRule},
        template,
    },
    store::{self, Store},
    swtpm::{Swtpm, TpmMaker, short_private_dir},
    tpm_channel::TpmChannel,
    vm::{VmName, security::Kind, shielded::ShieldedVms, volume::Volume},
};
use hgs_protocol::{
    env::{Clock, Env, OsRandom, Random},
    protector::{Guardian, GuardianKeys, KeyPair, KeyProtector},
};
use hgs_service::{
    settings::ServiceArgs,
    telemetry,
    tokens::{Role, new_token},
};
use serde_json::{Value, json};

const STORY: &str = "LAB_SECRETS_STORY";
const CANARY: [u8; 32] = *b"a canary, put there to be found.";

/// Draws from the system and keeps what it drew.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<Vec<u8>>>>);

impl Random for Recorder {
    fn fill(&mut self, out: &mut [u8]) {
        OsRandom.fill(out);
        self.0.lock().unwrap().push(out.to_vec());
    }
}

impl Recorder {
    fn env(&self) -> Env {
        let again = self.clone();
        Env::with_random(Clock::system(), move || Box::new(again.clone()))
    }

    /// Keys, salts and session keys are drawn as 32 bytes; nonces, serials and names, which may be told, are shorter.
    fn secrets(&self) -> Vec<Vec<u8>> {
        self.0
            .lock()
            .unwrap()
            .iter()
            .filter(|drawn| drawn.len() == 32)
            .cloned()
            .collect()
    }

    /// A private key's DER, in pieces, so that a part of it is found as well as the whole.
    fn keep_private_key(&self, pkcs8: &[u8]) {
        // The public modulus stands in front of the private numbers.
        self.0
            .lock()
            .unwrap()
            .extend(pkcs8[320..].chunks_exact(32).map(<[u8]>::to_vec));
    }
}

#[derive(Parser)]
struct AttestationOptions {
    #[command(flatten)]
    options: attestation::Options,
}

#[test]
fn no_output_of_the_whole_story_holds_key_material() {
    if let Some(folder) = env::var_os(STORY) {
        let system = actix_web::rt::System::new();
        system.block_on(tell(Path::new(&folder)));
        // The services run on; the process has nothing more to do.
        std::process::exit(0);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    if !env::split_paths(&path).any(|folder| folder.join("swtpm_setup").exists()) {
        eprintln!("SKIPPED: swtpm is not installed");
        return;
    }
    let folder = short_private_dir().unwrap();
    let story = Command::new(env::current_exe().unwrap())
        .args([
            "--exact",
            "no_output_of_the_whole_story_holds_key_material",
            "--nocapture",
        ])
        .env(STORY, &folder)
        .env("HGS_LOG", "trace")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let mut output = story.stdout;
    output.extend_from_slice(&story.stderr);
    let text = String::from_utf8_lossy(&output);
    let tail = || {
        text.chars()
            .rev()
            .take(3000)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .collect::<String>()
    };
    assert!(story.status.success(), "{}", tail());
    assert!(
        text.contains("TRACE") && text.contains("the story is told"),
        "{}",
        tail()
    );

    let secrets: Vec<Vec<u8>> = serde_json::from_slice(&fs::read(folder.join("secrets")).unwrap()).unwrap();
    assert!(secrets.len() > 100, "only {} secrets were recorded", secrets.len());
    let canaries = found(&output, &[CANARY.to_vec()]);
    assert_eq!(canaries.len(), FORMS, "the search misses a form: {canaries:?}");
    let leaked = found(&output, &secrets);
    assert!(leaked.is_empty(), "{leaked:?}");
    fs::remove_dir_all(&folder).unwrap();
}

/// Raw, hex (two cases), base64 and URL-safe base64, and a list of decimal numbers, as `Debug` prints bytes.
const FORMS: usize = 6;

/// In which forms the secrets occur, wherever they begin within a base64 text.
fn found(output: &[u8], secrets: &[Vec<u8>]) -> Vec<String> {
    let mut patterns = Vec::new();
    let mut names = Vec::new();
    for (at, secret) in secrets.iter().enumerate() {
        let decimal = secret.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
        let mut add = |form: &str, pattern: Vec<u8>| {
            names.push(format!("secret {at} {form}"));
            patterns.push(pattern);
        };
        add("raw", secret.clone());
        add("hex", hex::encode(secret).into_bytes());
        add("HEX", hex::encode_upper(secret).into_bytes());
        add("decimal", decimal.into_bytes());
        for lead in 0..3 {
            // The first and the last characters also depend on the neighbours.
            let shifted: Vec<u8> = vec![0; lead].into_iter().chain(secret.iter().copied()).collect();
            let first = [0, 2, 3][lead];
            let whole = shifted.len() / 3 * 4;
            for (form, text) in [
                ("base64", STANDARD.encode(&shifted)),
                ("base64url", URL_SAFE_NO_PAD.encode(&shifted)),
            ] {
                add(form, text.as_bytes()[first..whole].to_vec());
            }
        }
    }
    let search = AhoCorasick::new(&patterns).unwrap();
    let mut found: Vec<String> = search
        .find_overlapping_iter(output)
        .map(|hit| names[hit.pattern().as_usize()].clone())
        .collect();
    found.sort();
    found.dedup();
    found
}

/// Registration, attestation, power-on, migration, refusals; what it drew goes to the file `secrets`.
async fn tell(folder: &Path) {
    telemetry::init(telemetry::LogFormat::Text);
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let drawn = Recorder::default();
    let rng: &mut dyn Random = &mut drawn.clone();
    // A connection for each request: a service closes one that idles while a slow machine makes TPMs.
    let http = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();

    let attestation = service("attestation", folder, rng);
    let kps = service("kps", folder, rng);
    let options = AttestationOptions::parse_from(["attestation"]).options;
    let bound = attestation::start(&attestation.settings(), &options, drawn.env())
        .await
        .unwrap();
    let attestation_url = bound.service_url.clone();
    let attestation_admin = Admin::new(&bound.admin_url, &attestation.token, &http);
    actix_web::rt::spawn(bound.run());
    let bound = kps::start(&kps.settings(), &kps::Options::default(), drawn.env())
        .await
        .unwrap();
    let kps_url = bound.service_url.clone();
    let kps_admin = Admin::new(&bound.admin_url, &kps.token, &http);
    actix_web::rt::spawn(bound.run());

    let signer = attestation_admin.get("attestation-signer").await;
    kps_admin
        .post("attestation-signers", json!({ "certificate": signer["certificate"] }))
        .await;
    let metadata = http
        .get(format!("{kps_url}/KeyProtection/service/metadata/2014-07/metadata.xml"))
        .send()
        .await
        .unwrap()
        .bytes()
        .await
        .unwrap();
    let guardian = Owner::import_guardian(&metadata, "HGS").unwrap().guardian;

    let maker = TpmMaker::open(&folder.join("maker")).unwrap();
    let volume_path = folder.join("volume");
    let volume = Volume::open(&volume_path).unwrap();
    let mut agents = Vec::new();
    for name in ["host01", "host02"] {
        agents.push(host(
            name,
            folder,
            &maker,
            &volume_path,
            (&attestation_url, &kps_url),
            &drawn,
        ));
    }
    for (name, file) in [
        ("root", maker.root_certificate()),
        ("intermediate", maker.intermediate_certificate()),
    ] {
        let (_, der) = x509_cert::der::Document::from_pem(&fs::read_to_string(file).unwrap()).unwrap();
        let certificate = STANDARD.encode(der.as_bytes());
        attestation_admin
            .post("tpm-trust", json!({ "name": name, "certificate": certificate }))
            .await;
    }
    for name in ["host01", "host02"] {
        let ek = STANDARD.encode(fs::read(folder.join(name).join("agent/ek.cer")).unwrap());
        attestation_admin
            .post("tpm-hosts", json!({ "name": name, "ek_certificate": ek }))
            .await;
    }
    let log = fs::read(folder.join("host01/agent/boot.log")).unwrap();
    attestation_admin
        .post(
            "tpm-baselines",
            json!({ "name": "model", "content": STANDARD.encode(log) }),
        )
        .await;
    let policy = Dials::default().ci_policy.unwrap();
    attestation_admin
        .post(
            "ci-policies",
            json!({ "name": "policy", "content": STANDARD.encode(policy) }),
        )
        .await;

    let now = drawn.env().now();
    let [signing, encryption] = [
        KeyPair::generate_signing("owner", now, rng).unwrap(),
        KeyPair::generate_encryption("owner", now, rng).unwrap(),
    ];
    for pair in [&signing, &encryption] {
        drawn.keep_private_key(pair.expose_pkcs8().unwrap());
    }
    let again = |pair: &KeyPair| KeyPair::from_parts(pair.expose_pkcs8().unwrap(), pair.certificate().der()).unwrap();
    let keys = GuardianKeys::from_pairs("owner", again(&signing), again(&encryption));
    let data = shielding_data(&keys, &guardian, folder, &volume_path, rng);
    let keys = GuardianKeys::from_pairs("owner", signing, encryption);
    let owner = Owner::with_keys(keys, &folder.join("owner")).unwrap();
    let vm = VmName::parse("payroll").unwrap();
    let secret: [u8; 32] = rng.bytes();
    owner.shield(&vm, &secret, &guardian, &volume, "host01", rng).unwrap();

    let [first, second] = agents.as_slice() else {
        unreachable!()
    };
    let call = async |agent: &str, path: &str, body: Value| {
        let answer = http
            .post(format!("{agent}/v1/{path}"))
            .json(&body)
            .send()
            .await
            .unwrap();
        (answer.status().is_success(), answer.text().await.unwrap())
    };
    for agent in [first, second] {
        let (good, told) = call(agent, "attest", json!({})).await;
        assert!(good && told.contains("serial"), "{told}");
    }
    for (good, told) in [
        call(first, "vms/payroll/power-on", json!({})).await,
        call(
            first,
            "vms/payroll/migrate",
            json!({ "target": "host02", "address": second }),
        )
        .await,
        call(second, "vms/payroll/power-off", json!({})).await,
        call(second, "vms/payroll/power-on", json!({})).await,
        // A VM of a template: the answer file is a secret, and the store draws the VM's keys.
        call(
            first,
            "vms/web/provision",
            json!({ "shielding_data": STANDARD.encode(&data), "template": "server.img" }),
        )
        .await,
        call(first, "vms/web/power-on", json!({})).await,
        call(first, "vms/web/power-off", json!({})).await,
    ] {
        assert!(good, "{told}");
        println!("{told}");
    }
    // Refusals speak too: the wrong host, a protector that was tampered with, a request that is none.
    println!("{:?}", call(first, "vms/payroll/power-on", json!({})).await);
    let path = volume_path.join("payroll/generations");
    for generation in fs::read_dir(path).unwrap() {
        let file = generation.unwrap().path().join("protector.xml");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replacen("<CipherValue>", "<CipherValue>AAAA", 1)).unwrap();
    }
    call(second, "vms/payroll/power-off", json!({})).await;
    let (good, told) = call(second, "vms/payroll/power-on", json!({})).await;
    assert!(!good, "{told}");
    println!("{told}");
    let url = format!("{kps_url}/KeyProtection/service/v2.0/rolltransportkey");
    println!(
        "{}",
        http.post(url)
            .body("<none/>")
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap()
    );

    // The keys that the cryptographic library drew, opened again with the test's own key.
    let database = hgs_service::database::Database::open(
        &kps.settings().database_url,
        &sqlx::migrate!("../migrations/kps/sqlite"),
        &sqlx::migrate!("../migrations/kps/postgres"),
    )
    .await
    .unwrap();
    let store = kps::store::Store::new(database);
    let vault = kps::guardian::Vault {
        kek: kps.settings().kek.clone(),
        token: None,
    };
    for row in store.certificates().await.unwrap() {
        drawn.keep_private_key(vault.open(&row).unwrap().expose_pkcs8().unwrap());
    }
    for (name, sealed) in attestation.sealed_keys().await {
        let opened = attestation.settings().kek.open(&name, &sealed).unwrap();
        match name.starts_with("attestation-signer-") {
            true => drawn.keep_private_key(&opened),
            false => assert!(
                drawn.secrets().iter().any(|drawn| drawn[..] == opened[..]),
                "{name} was not recorded"
            ),
        }
    }
    let mut secrets = drawn.secrets();
    for service in [&attestation, &kps] {
        secrets.push(service.token.clone().into_bytes());
        secrets.push(hex::decode(fs::read_to_string(&service.kek).unwrap()).unwrap());
    }
    fs::write(folder.join("secrets"), serde_json::to_vec(&secrets).unwrap()).unwrap();
    let forms = [
        CANARY.to_vec(),
        hex::encode(CANARY).into_bytes(),
        hex::encode_upper(CANARY).into_bytes(),
        STANDARD.encode(CANARY).into_bytes(),
        URL_SAFE_NO_PAD
            .encode([[0xff].as_slice(), &CANARY].concat())
            .into_bytes(),
        format!("{CANARY:?}").into_bytes(),
    ];
    for form in forms {
        println!("{}", String::from_utf8(form).unwrap());
    }
    println!("the story is told");
}

/// A template on the volume, and shielding data for it whose files are secrets that were drawn.
fn shielding_data(
    owner: &GuardianKeys,
    guardian: &Guardian,
    folder: &Path,
    volume: &Path,
    rng: &mut dyn Random,
) -> Vec<u8> {
    let now = Clock::system().now();
    let signer = KeyPair::generate_signing("maker", now, rng).unwrap();
    let plain = folder.join("server.plain");
    fs::write(&plain, vec![5; 100_000]).unwrap();
    let (mut from, mut to) = (
        fs::File::open(&plain).unwrap(),
        fs::File::create(volume.join("server.img")).unwrap(),
    );
    let version = "1.0".parse().unwrap();
    let catalogue = template::protect(&mut from, &mut to, "server".parse().unwrap(), version, &signer).unwrap();
    let (protector, key) = KeyProtector::create(owner, std::slice::from_ref(guardian), rng).unwrap();
    let (answer, other) = (rng.bytes::<32>().to_vec(), rng.bytes::<32>().to_vec());
    let other = NamedFile {
        name: FileName::parse("rdp.pfx").unwrap(),
        content: other.into(),
    };
    let contents = Contents::new(answer.into(), vec![other], rng).unwrap();
    let new = NewDataFile {
        protector: (&protector, &key),
        policy: Kind::Shielded,
        qualifiers: &[Qualifier::of(&catalogue, VersionRule::Equals)],
        contents: &contents,
    };
    new.seal(owner, rng).unwrap()
}

/// One service's own secrets and files.
struct Files {
    name: &'static str,
    folder: PathBuf,
    kek: PathBuf,
    token: String,
}

fn service(name: &'static str, folder: &Path, rng: &mut dyn Random) -> Files {
    let folder = folder.join(name);
    fs::create_dir_all(&folder).unwrap();
    let (token, line) = new_token(Role::Administrator, rng);
    fs::write(folder.join("tokens"), line).unwrap();
    let kek = folder.join("kek");
    fs::write(&kek, hex::encode(rng.bytes::<32>())).unwrap();
    Files {
        name,
        folder,
        kek,
        token,
    }
}

impl Files {
    fn settings(&self) -> hgs_service::settings::Settings {
        ServiceArgs {
            data_dir: Some(self.folder.join("data")),
            key_encryption_key_file: Some(self.kek.clone()),
            admin_tokens: Some(self.folder.join("tokens")),
            ..ServiceArgs::default()
        }
        .resolve(self.name)
        .unwrap()
    }
}

impl Files {
    /// What the attestation service keeps sealed: its signers, and the hours' RTPM state keys. Name, value.
    async fn sealed_keys(&self) -> Vec<(String, Vec<u8>)> {
        let database = sqlx::SqlitePool::connect(&self.settings().database_url).await.unwrap();
        let rows: Vec<(String, Vec<u8>)> = sqlx::query_as(
            "SELECT 'attestation-signer-' || id, sealed FROM signer UNION ALL SELECT name, sealed FROM sealed_key",
        )
        .fetch_all(&database)
        .await
        .unwrap();
        for kind in ["attestation-signer-", "rtpm-state-"] {
            assert!(
                rows.iter().any(|(name, _)| name.starts_with(kind)),
                "nothing sealed as {kind} was found"
            );
        }
        rows
    }
}

/// An administrator's client.
struct Admin {
    base: String,
    token: String,
    http: reqwest::Client,
}

impl Admin {
    fn new(url: &str, token: &str, http: &reqwest::Client) -> Admin {
        Admin {
            base: format!("{url}/admin/v1"),
            token: token.to_owned(),
            http: http.clone(),
        }
    }

    async fn get(&self, path: &str) -> Value {
        let request = self.http.get(format!("{}/{path}", self.base)).bearer_auth(&self.token);
        request.send().await.unwrap().json().await.unwrap()
    }

    async fn post(&self, path: &str, body: Value) {
        let request = self
            .http
            .post(format!("{}/{path}", self.base))
            .bearer_auth(&self.token)
            .json(&body);
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{path}: {status}: {text}");
    }
}

/// A host in this process: its boot, its store and its agent on threads of their own. Gives the agent's URL.
fn host(
    name: &'static str,
    folder: &Path,
    maker: &TpmMaker,
    volume: &Path,
    (attestation, kps): (&str, &str),
    drawn: &Recorder,
) -> String {
    let dir = folder.join(name);
    for part in ["tpm", "store", "agent"] {
        fs::create_dir_all(dir.join(part)).unwrap();
    }
    maker.manufacture(name, &dir.join("tpm"), None).unwrap();
    fs::copy(dir.join("tpm/ek-rsa2048.crt"), dir.join("agent/ek.cer")).unwrap();
    let tpm = SharedTpm::new(Swtpm::start(name, &dir.join("tpm"), None).unwrap());
    let (for_store, for_agent) = (dir.join("tpm-store"), dir.join("tpm-agent"));
    let gate = Gate::default();
    gate.open();
    relay::offer(&for_store, tpm.clone(), gate.clone()).unwrap();
    relay::offer(&for_agent, tpm.clone(), gate).unwrap();

    let log = {
        let mut tpm = tpm.lock();
        tpm.reset(STARTUP_LOCALITY).unwrap();
        let mut boot = Boot::begin(tpm.channel());
        boot.measure_configuration(&Dials::default()).unwrap();
        boot.pause()
    };
    let (sender, receiver) = mpsc::channel();
    let socket = dir.join("store.sock");
    let (env, keep, at) = (drawn.env(), drawn.clone(), socket.clone());
    let store_dir = dir.join("store");
    let of_store = volume.to_path_buf();
    thread::spawn(move || {
        let channel = TpmChannel::connect(&for_store, name).unwrap();
        let opened = Store::open(&store_dir, channel, &mut env.rng()).unwrap();
        for key in [&opened.store.secrets().encryption, &opened.store.secrets().signing] {
            keep.keep_private_key(key.expose_pkcs8());
        }
        let ledger = Ledger::open(&store_dir.join(ledger::FILE)).unwrap();
        let vms = ShieldedVms::new(&store_dir, Some(&of_store), ledger);
        store::serve(opened, &at, vms, &env, |report| Ok(sender.send(report.keys()?)?)).unwrap();
    });
    let (encryption, signing) = receiver.recv_timeout(Duration::from_secs(30)).unwrap();
    let log = Boot::resume(log, tpm.lock().channel())
        .finish(1, Some((&encryption, &signing)))
        .unwrap();
    fs::write(dir.join("agent/boot.log"), log).unwrap();

    let listen: SocketAddr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let args = AgentArgs {
        name: name.to_owned(),
        dir: dir.join("agent"),
        tpm: for_agent,
        store: Some(socket),
        listen,
        attestation_url: Some(format!("{attestation}/Attestation")),
        key_protection_url: Some(format!("{kps}/KeyProtection")),
        protocol: agent::ProtocolVersion::default(),
        attest_when_asked: false,
        names: None,
        root_certificate: None,
        allow_remote: false,
        volume: Some(volume.to_path_buf()),
        clock_skew: 0,
        lab_clock: None,
    };
    thread::spawn(move || {
        // The TPM ends with its last owner.
        let _tpm = tpm;
        agent::run(args).unwrap();
    });
    for _ in 0..200 {
        if std::net::TcpStream::connect(listen).is_ok() {
            break;
        }
        thread::sleep(Duration::from_millis(25));
    }
    format!("http://{listen}")
}
