//! What the agent does with each answer of an attestation service: change of mode, retries, and
//! which certificate it keeps. The service here only reads out a script.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixListener,
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use clap::Parser;
use guarded_host_sim::{
    agent::{Agent, AgentArgs, AttestationStatus, configuration::Server},
    machine::relay::{Gate, SharedTpm, offer},
    store::protocol::StoreReply,
    swtpm::{Swtpm, TpmMaker, short_private_dir},
};
use hgs_protocol::{
    crypto::RsaPrivateKey,
    env::{Clock, OsRandom},
    health::{AttestationMode, AttestationSigner, CertificateKind, HealthCertificateRequest},
    wire::{
        hgsa::{ErrorKind, Reply, Request, SessionId},
        vsm,
    },
};

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    agent: AgentArgs,
}

type Asked = Arc<Mutex<Vec<(String, Request)>>>;

/// An agent with a real TPM, and a service that answers from a script and then not at all.
struct Stage {
    dir: PathBuf,
    agent: Agent,
    clock: Clock,
    asked: Asked,
}

impl Stage {
    fn set(test: &str, script: impl FnOnce(&Clock, &RsaPrivateKey) -> Vec<Reply>) -> Option<Stage> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = |name: &str| std::env::split_paths(&path).any(|d| d.join(name).exists());
        if !found("swtpm") || !found("swtpm_setup") || !found("setpriv") {
            eprintln!("SKIPPED {test}: swtpm, swtpm_setup or setpriv is not installed");
            return None;
        }
        let dir = short_private_dir().unwrap();
        let maker = TpmMaker::open(&dir.join("maker")).unwrap();
        let certificate = maker.manufacture("host01", &dir.join("tpm"), None).unwrap();
        let mut tpm = Swtpm::start("host01", &dir.join("tpm"), None).unwrap();
        tpm.reset(0).unwrap();
        let gate = Gate::default();
        gate.open();
        offer(&dir.join("tpm.sock"), SharedTpm::new(tpm), gate).unwrap();
        fs::write(dir.join("ek.cer"), certificate).unwrap();
        fs::write(dir.join("boot.log"), b"not looked at").unwrap();
        let key = RsaPrivateKey::generate_2048().unwrap();
        stand_in_store(&dir.join("store.sock"), &key);

        let clock = Clock::system();
        let asked = Asked::default();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let replies = script(&clock, &key);
        let record = asked.clone();
        thread::spawn(move || {
            // The listener ends with the script; later connections are refused.
            for reply in replies {
                let (stream, _) = listener.accept().unwrap();
                answer(stream, &reply, &record);
            }
        });
        let file = |name: &str| dir.join(name).display().to_string();
        let arguments = Arguments::parse_from([
            "agent",
            "--name=host01",
            &format!("--dir={}", file("")),
            &format!("--tpm={}", file("tpm.sock")),
            &format!("--store={}", file("store.sock")),
            &format!("--attestation-url=http://{address}/Attestation/"),
        ]);
        Some(Stage {
            agent: Agent::new(arguments.agent, clock.clone()).unwrap(),
            dir,
            clock,
            asked,
        })
    }

    fn paths(&self) -> Vec<String> {
        self.asked
            .lock()
            .unwrap()
            .iter()
            .map(|(path, _)| path.clone())
            .collect()
    }

    fn sessions(&self) -> Vec<SessionId> {
        let session = |(_, request): &(String, Request)| match request {
            Request::Attestation { session, .. } => *session,
            other => panic!("not of v2.0: {other:?}"),
        };
        self.asked.lock().unwrap().iter().map(session).collect()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn answer(mut stream: TcpStream, reply: &Reply, asked: &Asked) {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let length = head.split("content-length: ").nth(1).unwrap();
    let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    let path = head.split(' ').nth(1).unwrap().to_owned();
    asked.lock().unwrap().push((path, Request::parse(&body).unwrap()));
    let body = reply.encode();
    write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()).unwrap();
    stream.write_all(&body).unwrap();
}

/// Answers every question with a description that holds `key`.
fn stand_in_store(path: &std::path::Path, key: &RsaPrivateKey) {
    let listener = UnixListener::bind(path).unwrap();
    let blob = hex::encode(vsm::encode_rsa1(key.public()));
    let reply = StoreReply::Description {
        encryption_key: blob.clone(),
        signing_key: blob,
        remarks: Vec::new(),
    };
    let reply = serde_json::to_vec(&reply).unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut length = [0; 4];
            stream.read_exact(&mut length).unwrap();
            let mut question = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
            stream.read_exact(&mut question).unwrap();
            let length = u32::try_from(reply.len()).unwrap();
            stream.write_all(&length.to_be_bytes()).unwrap();
            stream.write_all(&reply).unwrap();
        }
    });
}

fn error(kind: ErrorKind, retryable: bool) -> Reply {
    Reply::Error { kind, retryable }
}

fn issued(clock: &Clock, key: &RsaPrivateKey, mode: AttestationMode, kinds: &[CertificateKind]) -> Reply {
    let signer = AttestationSigner::generate(clock.now(), &mut OsRandom).unwrap();
    let issue = |kind: &CertificateKind| {
        let ask = HealthCertificateRequest {
            key: key.public().clone().into(),
            kind: *kind,
            mode,
            policies: Vec::new(),
            issued_at: clock.now(),
            lifetime: Duration::from_secs(8 * 3600),
        };
        (*kind, signer.issue(&ask, &mut OsRandom).unwrap())
    };
    Reply::HealthCertificate {
        content: kinds.iter().map(issue).collect(),
    }
}

const BOTH: [CertificateKind; 2] = [CertificateKind::Encryption, CertificateKind::Signing];

#[tokio::test]
async fn an_unauthorized_host_does_not_try_again() {
    let script = |_: &Clock, _: &RsaPrivateKey| vec![error(ErrorKind::Unauthorized, true); 2];
    let Some(stage) = Stage::set("an_unauthorized_host_does_not_try_again", script) else {
        return;
    };
    let outcome = stage.agent.attest().await;
    assert_eq!(outcome.status, AttestationStatus::UnauthorizedHost);
    assert_eq!(stage.paths(), ["/attestation/v2.0/attest"]);
}

#[tokio::test]
async fn a_retryable_error_is_retried_with_a_new_session() {
    let Some(stage) = Stage::set("a_retryable_error_is_retried_with_a_new_session", |clock, key| {
        vec![
            error(ErrorKind::Unavailable, true),
            issued(clock, key, AttestationMode::Tpm, &BOTH),
        ]
    }) else {
        return;
    };
    let outcome = stage.agent.attest().await;
    assert_eq!(outcome.status, AttestationStatus::Passed, "{}", outcome.detail);
    let sessions = stage.sessions();
    assert_eq!(sessions.len(), 2);
    assert_ne!(sessions[0], sessions[1]);
}

#[tokio::test]
async fn the_mode_is_changed_once() {
    let to = |mode| error(ErrorKind::OperationMode(Some(mode)), true);
    let Some(stage) = Stage::set("the_mode_is_changed_once", |clock, key| {
        vec![
            to(AttestationMode::HostKey),
            issued(clock, key, AttestationMode::HostKey, &BOTH[..1]),
            to(AttestationMode::HostKey),
            to(AttestationMode::Tpm),
            to(AttestationMode::HostKey),
        ]
    }) else {
        return;
    };
    assert_eq!(stage.agent.attest().await.status, AttestationStatus::Passed);
    let paths = ["/attestation/v2.0/attest", "/attestation/v2.0/hostkeyattest"];
    assert_eq!(stage.paths(), paths);
    let outcome = stage.agent.attest().await;
    assert_eq!(outcome.error.as_deref(), Some("OperationModeErrorReply"));
    assert_eq!(stage.paths(), [paths, paths].concat(), "a second change is not made");
}

#[tokio::test]
async fn a_certificate_is_kept_renewed_and_dropped_as_the_service_says() {
    let Some(stage) = Stage::set("a_certificate_is_kept_renewed_and_dropped", |clock, key| {
        vec![
            issued(clock, key, AttestationMode::Tpm, &BOTH),
            error(ErrorKind::TcgLogValidation, false),
            issued(clock, key, AttestationMode::Tpm, &BOTH),
        ]
    }) else {
        return;
    };
    let first = stage.agent.health_certificate(Server::Primary, false).await.unwrap();
    assert_eq!(
        stage.agent.health_certificate(Server::Primary, false).await.unwrap(),
        first
    );
    assert_eq!(stage.paths().len(), 1, "the certificate at hand is used");

    // From two thirds of its life on it is renewed; an error reply takes it away.
    stage.clock.advance(Duration::from_secs(6 * 3600));
    let refused = stage
        .agent
        .health_certificate(Server::Primary, false)
        .await
        .unwrap_err();
    assert_eq!(refused.error.as_deref(), Some("TcgLogValidationErrorReply"));
    assert_eq!(refused.substatus.text(), "TcgLogVerification");
    assert_eq!(stage.paths().len(), 2);

    let second = stage.agent.health_certificate(Server::Primary, false).await.unwrap();
    assert_ne!(second, first);

    // The service is gone: nothing was said about this host, so the certificate serves its time.
    assert!(
        stage.agent.health_certificate(Server::Primary, true).await.is_err(),
        "a fresh one cannot be had"
    );
    assert_eq!(
        stage.agent.health_certificate(Server::Primary, false).await.unwrap(),
        second
    );
    stage.clock.advance(Duration::from_secs(3 * 3600));
    assert_eq!(stage.agent.outcome().status, AttestationStatus::Expired);
    assert!(stage.agent.health_certificate(Server::Primary, false).await.is_err());
}
