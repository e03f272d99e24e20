//! A running service in a directory of its own, and a host with its TPM.

use std::sync::Arc;

use attestation::Options;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use guarded_host_sim::{
    machine::{
        boot::{Boot, STARTUP_LOCALITY},
        dials::Dials,
    },
    swtpm::{Swtpm, TpmMaker},
};
use hgs_protocol::{
    crypto::{RsaPrivateKey, RsaPublicKey},
    env::{Clock, OsRandom, Random},
    health::CertificateKind,
    tpm::EK_HANDLE,
    wire::{
        hgsa::{ProvidedKind, Reply, Request, SessionId},
        rtpm::{Blob, Context, DeviceInfo},
        vsm::encode_rsa1,
    },
};
use hgs_service::{
    settings::ServiceArgs,
    tokens::{Role, new_token},
};
use serde_json::{Value, json};

pub(crate) const V1: &str = "v1.0";
pub(crate) const V2: &str = "v2.0";

/// True, and says so, when a test cannot run here.
pub(crate) fn missing_tools(test: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |name: &str| std::env::split_paths(&path).any(|dir| dir.join(name).exists());
    let missing = !["swtpm", "swtpm_setup", "setpriv"].iter().all(|name| found(name));
    if missing {
        eprintln!("SKIPPED {test}: swtpm, swtpm_setup or setpriv is not installed");
    }
    missing
}

pub(crate) struct Service {
    pub(crate) url: String,
    pub(crate) tls_url: Option<String>,
    pub(crate) admin: String,
    pub(crate) token: String,
    pub(crate) reviewer: String,
    pub(crate) clock: Clock,
    pub(crate) client: reqwest::Client,
    args: ServiceArgs,
    _dir: Arc<tempfile::TempDir>,
}

impl Service {
    pub(crate) async fn start() -> Service {
        Service::start_with(Options::default(), |_, args| args).await
    }

    /// With an HTTPS listener too; answers the certificate that it shows, DER.
    pub(crate) async fn start_tls() -> (Service, Vec<u8>) {
        let shown = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let service = Service::start_with(Options::default(), |dir, mut args| {
            let (certificate, key) = (dir.join("tls.pem"), dir.join("tls.key"));
            std::fs::write(&certificate, shown.cert.pem()).unwrap();
            std::fs::write(&key, shown.signing_key.serialize_pem()).unwrap();
            args.tls_listen = Some(([127, 0, 0, 1], 0).into());
            (args.tls_certificate, args.tls_key) = (Some(certificate), Some(key));
            args
        });
        (service.await, shown.cert.der().to_vec())
    }

    pub(crate) async fn start_with(
        options: Options,
        change: impl FnOnce(&std::path::Path, ServiceArgs) -> ServiceArgs,
    ) -> Service {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let kek = dir.path().join("kek");
        std::fs::write(&kek, "5a".repeat(32)).unwrap();
        let (token, line) = new_token(Role::Administrator, &mut OsRandom);
        let (reviewer, second) = new_token(Role::Reviewer, &mut OsRandom);
        let tokens = dir.path().join("tokens");
        std::fs::write(&tokens, format!("{line}\n{second}\n")).unwrap();
        let args = ServiceArgs {
            data_dir: Some(dir.path().join("data")),
            key_encryption_key_file: Some(kek),
            admin_tokens: Some(tokens),
            ..ServiceArgs::default()
        };
        let args = change(dir.path(), args);
        let settings = args.clone().resolve("attestation").unwrap();
        let clock = Clock::system();
        let bound = attestation::start(&settings, &options, clock.clone()).await.unwrap();
        let (url, admin) = (bound.service_url.clone(), bound.admin_url.clone());
        let tls_url = bound.tls_url.clone();
        tokio::spawn(bound.run());
        Service {
            url,
            tls_url,
            admin,
            token,
            reviewer,
            clock,
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
            args,
            _dir: Arc::new(dir),
        }
    }

    pub(crate) async fn ask(&self, version: &str, request: &Request) -> Reply {
        let (_, body) = self.post(&format!("{version}/attest"), request.encode()).await;
        Reply::parse(&body).unwrap()
    }

    /// Posts below `/Attestation`; status and body.
    pub(crate) async fn post(&self, path: &str, body: Vec<u8>) -> (u16, Vec<u8>) {
        let url = format!("{}/Attestation/{path}", self.url);
        let request = self.client.post(url).timeout(std::time::Duration::from_secs(20));
        let response = request.body(body).send().await.unwrap();
        (response.status().as_u16(), response.bytes().await.unwrap().to_vec())
    }

    pub(crate) async fn ask_host_key(&self, request: &Request) -> Reply {
        let (status, body) = self.post("v2.0/hostkeyattest", request.encode()).await;
        assert_eq!(status, 200);
        Reply::parse(&body).unwrap()
    }

    pub(crate) async fn admin_get(&self, path: &str) -> Value {
        let url = format!("{}/admin/v1/{path}", self.admin);
        let response = self.client.get(url).bearer_auth(&self.token).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        response.json().await.unwrap()
    }

    pub(crate) async fn admin_post(&self, path: &str, body: &Value) -> (u16, Value) {
        let url = format!("{}/admin/v1/{path}", self.admin);
        let request = self.client.post(url).bearer_auth(&self.token).json(body);
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        (status, response.json().await.unwrap_or(Value::Null))
    }

    pub(crate) async fn admin_put(&self, path: &str, body: &Value) -> (u16, Value) {
        let url = format!("{}/admin/v1/{path}", self.admin);
        let request = self.client.put(url).bearer_auth(&self.token).json(body);
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        (status, response.json().await.unwrap_or(Value::Null))
    }

    /// Chooses the operation mode.
    pub(crate) async fn set_mode(&self, mode: &str) {
        let (status, answer) = self.admin_put("operation-mode", &json!({ "mode": mode })).await;
        assert_eq!(status, 200, "{answer}");
    }

    pub(crate) async fn admin_delete(&self, path: &str) -> u16 {
        let url = format!("{}/admin/v1/{path}", self.admin);
        let request = self.client.delete(url).bearer_auth(&self.token);
        request.send().await.unwrap().status().as_u16()
    }

    /// The directory of the service, its key and its tokens.
    pub(crate) fn dir(&self) -> &std::path::Path {
        self._dir.path()
    }

    /// Another service over the same database and key, as behind a load balancer; its URL.
    pub(crate) async fn replica(&self) -> String {
        self.replica_urls().await.0
    }

    /// As [`Service::replica`]; its URL and that of its admin listener.
    pub(crate) async fn replica_urls(&self) -> (String, String) {
        self.started_as(self.args.clone()).await
    }

    /// Another process with the same tokens and clock; its URL and its administrators'.
    pub(crate) async fn started_as(&self, args: ServiceArgs) -> (String, String) {
        let settings = args.resolve("attestation").unwrap();
        let bound = attestation::start(&settings, &Options::default(), self.clock.clone())
            .await
            .unwrap();
        let urls = (bound.service_url.clone(), bound.admin_url.clone());
        tokio::spawn(bound.run());
        urls
    }

    /// The same, spoken to at a replica.
    pub(crate) fn at(&self, (url, admin): (String, String)) -> Service {
        Service {
            url,
            tls_url: None,
            admin,
            token: self.token.clone(),
            reviewer: self.reviewer.clone(),
            clock: self.clock.clone(),
            client: self.client.clone(),
            args: self.args.clone(),
            _dir: self._dir.clone(),
        }
    }

    /// What it was started with.
    pub(crate) fn args(&self) -> ServiceArgs {
        self.args.clone()
    }

    /// Trusts the host's TPM maker under `NAME-0` and `NAME-1`.
    pub(crate) async fn trust_maker(&self, host: &Host, name: &str) {
        for (place, pem) in host.maker_certificates.iter().enumerate() {
            let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
            let body = json!({ "name": format!("{name}-{place}"), "certificate": body });
            let (status, answer) = self.admin_post("tpm-trust", &body).await;
            assert_eq!(status, 201, "{answer}");
        }
    }

    /// Registers the bare endorsement key, by force.
    pub(crate) async fn register_forced(&self, host: &Host, name: &str) {
        let ek = BASE64_STANDARD.encode(host.ek.spki_der());
        let body = json!({ "name": name, "ek_public": ek, "force": true, "policy_version": "v1" });
        let (status, answer) = self.admin_post("tpm-hosts", &body).await;
        assert_eq!(status, 201, "{answer}");
    }

    /// Trusts the host's TPM maker, then registers host, baseline and policy as an administrator does.
    pub(crate) async fn register(&self, host: &Host, name: &str) {
        self.trust_maker(host, &format!("{name}-maker")).await;
        let policy = Dials::default().ci_policy.unwrap();
        for (path, body) in [
            (
                "tpm-hosts",
                json!({ "name": name, "ek_certificate": BASE64_STANDARD.encode(&host.certificate) }),
            ),
            (
                "tpm-baselines",
                json!({ "name": name, "content": BASE64_STANDARD.encode(&host.log) }),
            ),
            (
                "ci-policies",
                json!({ "name": name, "content": BASE64_STANDARD.encode(policy) }),
            ),
        ] {
            let (status, answer) = self.admin_post(path, &body).await;
            assert_eq!(status, 201, "{path}: {answer}");
        }
    }
}

pub(crate) struct Host {
    pub(crate) tpm: Swtpm,
    pub(crate) ek: RsaPublicKey,
    pub(crate) certificate: Vec<u8>,
    pub(crate) log: Vec<u8>,
    pub(crate) encryption: RsaPrivateKey,
    pub(crate) signing: RsaPrivateKey,
    maker_certificates: [String; 2],
    _dir: tempfile::TempDir,
}

impl Host {
    pub(crate) fn boot(dials: &Dials) -> Host {
        let dir = tempfile::tempdir().unwrap();
        let maker = TpmMaker::open(&dir.path().join("maker")).unwrap();
        let state = dir.path().join("tpm");
        let certificate = maker.manufacture("host", &state, None).unwrap();
        let mut tpm = Swtpm::start("host", &state, None).unwrap();
        tpm.reset(STARTUP_LOCALITY).unwrap();
        let ek = tpm.channel().read_public(EK_HANDLE).unwrap().rsa_key().unwrap().clone();
        let encryption = RsaPrivateKey::generate_2048().unwrap();
        let signing = RsaPrivateKey::generate_2048().unwrap();
        let mut boot = Boot::begin(tpm.channel());
        boot.measure_configuration(dials).unwrap();
        let log = boot.finish(1, Some((encryption.public(), signing.public()))).unwrap();
        let read = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap();
        Host {
            tpm,
            ek,
            certificate,
            log,
            encryption,
            signing,
            maker_certificates: [read(maker.root_certificate()), read(maker.intermediate_certificate())],
            _dir: dir,
        }
    }

    pub(crate) fn new_session() -> SessionId {
        let mut rng = OsRandom;
        SessionId(uuid::Uuid::from_bytes((&mut rng as &mut dyn Random).bytes()))
    }

    /// The request that starts (no context) or continues an exchange.
    pub(crate) fn request(&self, version: &str, session: SessionId, context: Option<&Context>) -> Request {
        let requested = vec![CertificateKind::Encryption, CertificateKind::Signing];
        let context = context.map(Context::encode);
        match (version, context) {
            (V2, context) => {
                let mut provided = vec![(ProvidedKind::EndorsementKeyCertificate, self.certificate.clone())];
                provided.extend(context.map(|context| (ProvidedKind::RtpmContext, context)));
                Request::Attestation {
                    session,
                    requested,
                    provided,
                }
            }
            (_, None) => Request::TpmInitial {
                session,
                requested,
                endorsement_key: encode_rsa1(&self.ek),
            },
            (_, Some(context)) => Request::TpmContinue {
                session,
                requested,
                endorsement_key: encode_rsa1(&self.ek),
                context,
            },
        }
    }

    /// Runs what the server asks for.
    pub(crate) fn answer(&mut self, mut context: Context) -> Context {
        for blob in &mut context.blobs {
            *blob = match blob {
                Blob::BootLogWanted => Blob::BootLog(self.log.clone()),
                Blob::DeviceInfoWanted => Blob::DeviceInfo(DeviceInfo {
                    tpm_version: 2,
                    interface_type: 4,
                    implementation_version: 0,
                }),
                Blob::Tpm(command) => Blob::Tpm(self.tpm.channel().transact(command).unwrap()),
                other => panic!("the server sent {other:?}"),
            };
        }
        context
    }

    /// One whole exchange.
    pub(crate) async fn attest(&mut self, service: &Service, version: &str) -> Reply {
        let session = Host::new_session();
        let mut reply = service.ask(version, &self.request(version, session, None)).await;
        for _ in 0..3 {
            let Reply::TpmContinue { context } = &reply else {
                return reply;
            };
            let answer = self.answer(Context::parse(context).unwrap());
            reply = service
                .ask(version, &self.request(version, session, Some(&answer)))
                .await;
        }
        reply
    }

    /// All honest answers of an exchange of either version, in order; nothing is finished.
    pub(crate) async fn answers(&mut self, service: &Service, version: &str, session: SessionId) -> Vec<Context> {
        let mut answers: Vec<Context> = Vec::new();
        for _ in 0..3 {
            let reply = service
                .ask(version, &self.request(version, session, answers.last()))
                .await;
            let Reply::TpmContinue { context } = &reply else {
                panic!("{reply:?}")
            };
            answers.push(self.answer(Context::parse(context).unwrap()));
        }
        answers
    }

    /// The server's context after `trips` answered ones, in an exchange of its own.
    pub(crate) async fn context_after(&mut self, service: &Service, session: SessionId, trips: usize) -> Context {
        let mut reply = service.ask(V1, &self.request(V1, session, None)).await;
        for trip in 0..=trips {
            let Reply::TpmContinue { context } = &reply else {
                panic!("{reply:?}")
            };
            let context = Context::parse(context).unwrap();
            if trip == trips {
                return context;
            }
            let answer = self.answer(context);
            reply = service.ask(V1, &self.request(V1, session, Some(&answer))).await;
        }
        unreachable!("the loop returns")
    }
}
