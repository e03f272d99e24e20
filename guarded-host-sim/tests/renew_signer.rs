//! `renew-signer` against both real services: a signer's renewal from due to signing, over the lab's clock, and
//! the command killed at each of its steps.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use guarded_host_sim::{
    fabric::{hgs::Hgs, service::Extras},
    swtpm::short_private_dir,
};
use hgs_protocol::{
    crypto::RsaPrivateKey,
    env::{Clock, OsRandom, Random},
    health::{AcceptanceRules, CertificateKind, HealthCertificate, TrustedSigner},
    protector::{Guardian, GuardianKeys, KeyProtector},
    wire::{
        hgsa::{ProvidedKind, Reply, Request, SessionId},
        kps::RollTransportKeyRequest,
        vsm::encode_rsa1,
    },
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    process::Command,
    sync::Notify,
};

const DAY: u64 = 86_400;

/// Both services, with a host of host-key mode.
struct Stage {
    hgs: Hgs,
    host: RsaPrivateKey,
    vsm: RsaPrivateKey,
    protector: Vec<u8>,
    folder: PathBuf,
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Stage {
    async fn set() -> Stage {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = short_private_dir().unwrap();
        let hgs = Hgs::start(&folder, &Extras::default(), None).unwrap();
        hgs.trust_signer().await.unwrap();
        let (host, vsm) = (
            RsaPrivateKey::generate_2048().unwrap(),
            RsaPrivateKey::generate_2048().unwrap(),
        );
        let mode = json!({ "mode": "HostKey" });
        hgs.attestation.admin_put("operation-mode", &mode).await.unwrap();
        let key = json!({ "name": "host01", "content": BASE64_STANDARD.encode(host.public().spki_der()) });
        hgs.attestation.admin_post("host-keys", &key).await.unwrap();
        let guardian = Guardian::from_metadata(&hgs.metadata().await.unwrap(), "HGS").unwrap();
        let owner = GuardianKeys::generate("Owner", Clock::system().now(), &mut OsRandom).unwrap();
        let (protector, _) = KeyProtector::create(&owner, &[guardian], &mut OsRandom).unwrap();
        for (name, service) in [("attestation", &hgs.attestation), ("kps", &hgs.kps)] {
            std::fs::write(folder.join(format!("{name}.token")), service.administrator().1).unwrap();
        }
        Stage {
            protector: protector.to_xml(),
            hgs,
            host,
            vsm,
            folder,
        }
    }

    async fn advance(&self, seconds: u64) {
        self.hgs.attestation.advance_clock(seconds).await.unwrap();
        self.hgs.kps.advance_clock(seconds).await.unwrap();
    }

    /// A health certificate for the host, from the service.
    async fn certify(&self) -> Vec<u8> {
        let (host, vsm) = (encode_rsa1(self.host.public()), encode_rsa1(self.vsm.public()));
        let signature = self
            .host
            .sign_pkcs1_sha256(&[host.clone(), vsm.clone()].concat())
            .unwrap();
        let request = Request::Attestation {
            session: SessionId(uuid::Uuid::from_bytes((&mut OsRandom as &mut dyn Random).bytes())),
            requested: vec![CertificateKind::Encryption],
            provided: vec![
                (ProvidedKind::VsmIdentityKey, vsm),
                (ProvidedKind::HostKeyPublicKey, host),
                (ProvidedKind::HostKeySignature, signature),
            ],
        };
        let url = format!("{}/Attestation/v2.0/hostkeyattest", self.hgs.attestation.url);
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = client.post(url).body(request.encode()).send().await.unwrap();
        match Reply::parse(&answer.bytes().await.unwrap()).unwrap() {
            Reply::HealthCertificate { mut content } => content.remove(0).1,
            other => panic!("{other:?}"),
        }
    }

    /// Key protection gives the host its keys for this certificate.
    async fn is_served(&self, certificate: &[u8]) -> bool {
        let ask = RollTransportKeyRequest::new(self.protector.clone(), certificate.to_vec());
        self.hgs.roll(&ask).await.unwrap().is_ok()
    }

    async fn signers(&self) -> Vec<Value> {
        self.hgs.attestation.admin_get("attestation-signers").await.unwrap()
    }

    async fn in_state(&self, state: &str) -> Option<Value> {
        self.signers().await.into_iter().find(|signer| signer["state"] == state)
    }

    async fn trusted(&self) -> Vec<Value> {
        let rows: Vec<Value> = self.hgs.kps.admin_get("attestation-signers").await.unwrap();
        rows.into_iter().map(|row| row["thumbprint"].clone()).collect()
    }

    fn command(&self, attestation: &str, kps: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_guarded-host-sim"));
        command
            .args([
                "renew-signer",
                "--json",
                "--attestation-admin",
                attestation,
                "--kps-admin",
                kps,
            ])
            .arg("--attestation-token-file")
            .arg(self.folder.join("attestation.token"))
            .arg("--kps-token-file")
            .arg(self.folder.join("kps.token"))
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs it to its end: exit code, and what it said.
    async fn run(&self, more: &[&str]) -> (i32, Value, String) {
        let (attestation, kps) = (self.hgs.attestation.administrator().0, self.hgs.kps.administrator().0);
        let output = self.command(attestation, kps, more).output().await.unwrap();
        let answer = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code().unwrap(), answer, errors)
    }

    /// Runs it well; the state it came to.
    async fn state(&self, more: &[&str]) -> String {
        let (code, answer, errors) = self.run(more).await;
        assert_eq!(code, 0, "{errors}");
        answer["outcome"]["state"].as_str().unwrap().to_owned()
    }
}

fn by(signer: &Value, certificate: &[u8], now: hgs_protocol::env::UnixTime) -> bool {
    let der = BASE64_STANDARD.decode(signer["certificate"].as_str().unwrap()).unwrap();
    let trusted = [TrustedSigner::from_certificate(&der).unwrap()];
    let certificate = HealthCertificate::parse(certificate).unwrap();
    certificate.accept(&trusted, now, &AcceptanceRules::default()).is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signer_is_made_published_registered_and_signs_and_no_host_is_refused_meanwhile() {
    let mut stage = Stage::set().await;
    let first = stage.in_state("active").await.unwrap();
    assert_eq!(stage.state(&[]).await, "nothing-to-do");
    assert_eq!(
        stage.state(&["--now"]).await,
        "nothing-to-do",
        "the active signer is new"
    );

    // Two months before its end the service makes the next one.
    let mut passed = (5 * 365 - 59) * DAY;
    stage.advance(passed).await;
    let begun = Instant::now();
    let pending = loop {
        match stage.in_state("pending").await {
            Some(pending) => break pending,
            None => assert!(begun.elapsed() < Duration::from_secs(15), "no pending signer"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    // One service away: it says which, and changes nothing.
    stage.hgs.kps.kill().unwrap();
    let (code, _, errors) = stage.run(&[]).await;
    assert!(
        code == 1 && errors.contains("key protection service does not answer"),
        "{errors}"
    );
    stage.hgs.kps.restart().unwrap();
    // Its clock is the system's again.
    stage.hgs.kps.advance_clock(passed).await.unwrap();
    assert_eq!(stage.trusted().await, [first["sha256"].clone()]);

    for _ in 0..2 {
        assert_eq!(stage.state(&[]).await, "waiting");
        assert_eq!(stage.trusted().await.len(), 2);
        assert_eq!(
            stage.hgs.signing_certificates().await.unwrap().len(),
            2,
            "published already"
        );
    }
    let now = |passed: u64| Clock::system().now().plus_seconds(i64::try_from(passed).unwrap());
    let old = stage.certify().await;
    assert!(by(&first, &old, now(passed)) && stage.is_served(&old).await);

    stage.advance(9 * 3600).await;
    passed += 9 * 3600;
    assert_eq!(stage.state(&[]).await, "renewed");
    assert_eq!(stage.state(&[]).await, "nothing-to-do");
    let begun = Instant::now();
    let new = loop {
        let new = stage.certify().await;
        if by(&pending, &new, now(passed)) {
            break new;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(15),
            "the new signer does not sign"
        );
    };
    assert!(stage.is_served(&new).await);
    let before = stage.in_state("old").await.unwrap();
    assert_eq!(
        (&before["sha256"], &before["published"]),
        (&first["sha256"], &json!(true))
    );

    // A wrong token is told as such.
    std::fs::write(stage.folder.join("kps.token"), "nobody").unwrap();
    stage.advance(2 * DAY).await;
    let (code, _, errors) = stage.run(&["--now"]).await;
    assert!(code == 1 && errors.contains("401"), "{errors}");
}

/// Passes requests on to `to`. The request with the number `stop` among all that `seen` counts is the last: it is
/// not passed on, or its answer is not. Then `stopped` is told.
struct Proxy {
    to: SocketAddr,
    seen: Arc<AtomicUsize>,
    stop: usize,
    passes: bool,
    stopped: Arc<Notify>,
}

impl Proxy {
    async fn start(self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let proxy = Arc::new(self);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(proxy.clone().serve(client));
            }
        });
        url
    }

    async fn serve(self: Arc<Proxy>, mut client: TcpStream) {
        let mut server = TcpStream::connect(self.to).await.unwrap();
        let (mut asked, mut answered) = (vec![0; 65_536], vec![0; 65_536]);
        let mut last = false;
        loop {
            tokio::select! {
                read = client.read(&mut asked) => {
                    let Ok(length @ 1..) = read else { return };
                    let asked = &asked[..length];
                    if asked.starts_with(b"GET ") || asked.starts_with(b"POST ") {
                        last = self.seen.fetch_add(1, Ordering::SeqCst) + 1 == self.stop;
                    }
                    if last && !self.passes {
                        return self.hang().await;
                    }
                    server.write_all(asked).await.unwrap();
                }
                read = server.read(&mut answered) => {
                    let Ok(length @ 1..) = read else { return };
                    if last {
                        return self.hang().await;
                    }
                    client.write_all(&answered[..length]).await.unwrap();
                }
            }
        }
    }

    async fn hang(&self) {
        self.stopped.notify_one();
        std::future::pending::<()>().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_killed_at_any_step_is_run_again_and_makes_one_signer() {
    let stage = Stage::set().await;
    let address = |url: &str| -> SocketAddr { url.rsplit('/').next().unwrap().parse().unwrap() };
    let targets = [&stage.hgs.attestation, &stage.hgs.kps].map(|service| address(service.administrator().0));
    let mut expected = stage.signers().await.len();
    // List, make, register, activate; each before the service has heard of it, and after.
    for stop in 1..=4 {
        for passes in [false, true] {
            stage.advance(2 * DAY).await;
            let (seen, stopped) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
            let proxies = targets.map(|to| Proxy {
                to,
                seen: seen.clone(),
                stop,
                passes,
                stopped: stopped.clone(),
            });
            let [attestation, kps] = proxies;
            let (attestation, kps) = (attestation.start().await, kps.start().await);
            let again = ["--now", "--at-once"];
            let mut child = stage.command(&attestation, &kps, &again).spawn().unwrap();
            stopped.notified().await;
            child.kill().await.unwrap();

            let at = format!(
                "killed at step {stop}, {}",
                if passes { "after it" } else { "before it" }
            );
            let done = stage.state(&again).await;
            let expected_state = if stop == 4 && passes {
                "nothing-to-do"
            } else {
                "renewed"
            };
            assert_eq!(done, expected_state, "{at}");
            expected += 1;
            let signers = stage.signers().await;
            assert_eq!(signers.len(), expected, "{at}: one new signer");
            assert!(signers.iter().all(|signer| signer["state"] != "pending"), "{at}");
            let active = stage.in_state("active").await.unwrap();
            assert!(stage.trusted().await.contains(&active["sha256"]), "{at}");
            assert!(stage.is_served(&stage.certify().await).await, "{at}");
        }
    }
}
