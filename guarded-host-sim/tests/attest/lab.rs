//! The attestation service in this process, behind a relay that keeps its last answer, and hosts in
//! processes of their own.

use std::{
    fs,
    io::{BufRead, BufReader},
    ops::Deref,
    path::{Path, PathBuf},
    process::ChildStdout,
    sync::{Arc, Mutex},
};

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use base64::{Engine, prelude::BASE64_STANDARD};
use clap::Parser;
use guarded_host_sim::{
    child::{Child, Output, Plan},
    client::{LabClient, NameTable},
    machine::{
        control::{Control, ControlReply, ask},
        dials::Dials,
        user::let_others_pass,
    },
    swtpm::short_private_dir,
};
use hgs_protocol::{
    env::{Clock, OsRandom},
    wire::hgsa::Reply,
};
use hgs_service::{
    settings::ServiceArgs,
    tokens::{Role, new_token},
};
use serde_json::{Value, json};

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    service: ServiceArgs,
    #[command(flatten)]
    options: attestation::Options,
}

/// The service and an administrator.
pub(crate) struct Service {
    pub(crate) dir: PathBuf,
    /// Where hosts reach the service: a relay that keeps its answers.
    address: String,
    admin: String,
    token: String,
    http: reqwest::Client,
    last: Last,
}

/// Body of the last answer.
type Last = Arc<Mutex<Vec<u8>>>;

impl Service {
    /// None, with a word on what is skipped, where no TPM can run.
    pub(crate) async fn start(test: &str) -> Option<Service> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = |name: &str| std::env::split_paths(&path).any(|d| d.join(name).exists());
        if !found("swtpm") || !found("swtpm_setup") || !found("setpriv") {
            eprintln!("SKIPPED {test}: swtpm, swtpm_setup or setpriv is not installed");
            return None;
        }
        let dir = short_private_dir().unwrap();
        // The agents have a user of their own, who must get to their folders.
        let_others_pass(&dir).unwrap();
        let (token, line) = new_token(Role::Administrator, &mut OsRandom);
        fs::write(dir.join("tokens"), line).unwrap();
        fs::write(dir.join("kek"), hex::encode([7; 32])).unwrap();
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(dir.join("kek"), permissions).unwrap();
        let file = |name: &str| dir.join(name).display().to_string();
        let arguments = Arguments::parse_from([
            "attestation",
            "--listen=127.0.0.1:0",
            "--admin-listen=127.0.0.1:0",
            // A host of these tests boots, and attests, as often as it can.
            "--requests-per-minute-per-key=10000",
            &format!("--data-dir={}", file("attestation")),
            &format!("--admin-tokens={}", file("tokens")),
            &format!("--key-encryption-key-file={}", file("kek")),
        ]);
        let settings = arguments.service.resolve("attestation").unwrap();
        let bound = attestation::start(&settings, &arguments.options, Clock::system())
            .await
            .unwrap();
        let ready = bound.ready_line("attestation");
        let value = |key: &str| {
            let word = ready.split(' ').find_map(|word| word.strip_prefix(key));
            word.unwrap().to_owned()
        };
        let (service, admin) = (value("service="), value("admin="));
        actix_web::rt::spawn(bound.run());
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let http = reqwest::Client::new();
        let last = Last::default();
        let address = relay(service, http.clone(), last.clone());
        let names = json!({ "hgs.bastion.local:80": [address] });
        fs::write(dir.join("names"), names.to_string()).unwrap();
        Some(Service {
            dir,
            address,
            admin,
            token,
            http,
            last,
        })
    }

    pub(crate) fn attest_url(&self) -> String {
        format!("http://{}/Attestation/v2.0/attest", self.address)
    }

    /// The protocol reply that the last request of a host got.
    pub(crate) fn last_reply(&self) -> Reply {
        Reply::parse(&self.last.lock().unwrap()).unwrap()
    }

    pub(crate) async fn try_admin(&self, path: &str, body: Value) -> (u16, String) {
        let url = format!("{}/admin/v1/{path}", self.admin);
        let request = self.http.post(url).bearer_auth(&self.token).json(&body);
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    pub(crate) async fn admin(&self, path: &str, body: Value) {
        let (status, text) = self.try_admin(path, body).await;
        assert!((200..300).contains(&status), "{path}: {status} {text}");
    }

    /// Turns certificates of CA trustlets on or off.
    pub(crate) async fn switch_ca_certificates(&self, enabled: bool) {
        let url = format!("{}/admin/v1/ca-certificates", self.admin);
        let request = self.http.put(url).bearer_auth(&self.token);
        let answer = request.json(&json!({ "enabled": enabled })).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200);
    }

    /// The certificate of the attestation signer, DER.
    pub(crate) async fn signer(&self) -> Vec<u8> {
        let url = format!("{}/admin/v1/attestation-signer", self.admin);
        let answer = self.http.get(url).bearer_auth(&self.token).send().await.unwrap();
        let signer: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        BASE64_STANDARD.decode(signer["certificate"].as_str().unwrap()).unwrap()
    }

    /// What the service recorded of the last decision.
    pub(crate) async fn last_record(&self) -> Value {
        let url = format!("{}/admin/v1/attestations", self.admin);
        let answer = self.http.get(url).bearer_auth(&self.token).send().await.unwrap();
        let rows: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        rows[0]["body"].clone()
    }

    /// The lab's TPM maker is trusted as a vendor is: root and intermediate.
    pub(crate) async fn trust_tpm_maker(&self) {
        for (name, file) in [
            ("root", "swtpm-localca-rootca-cert.pem"),
            ("intermediate", "issuercert.pem"),
        ] {
            self.trust(name, &pem(&self.dir.join("maker").join(file))).await;
        }
    }

    pub(crate) async fn trust(&self, name: &str, certificate: &[u8]) {
        let body = json!({ "name": name, "certificate": BASE64_STANDARD.encode(certificate) });
        self.admin("tpm-trust", body).await;
    }

    pub(crate) async fn register_ek(&self, name: &str, certificate: &[u8]) {
        let (status, text) = self.try_register_ek(name, certificate).await;
        assert_eq!(status, 201, "{name}: {text}");
    }

    pub(crate) async fn try_register_ek(&self, name: &str, certificate: &[u8]) -> (u16, String) {
        let certificate = BASE64_STANDARD.encode(certificate);
        self.try_admin("tpm-hosts", json!({ "name": name, "ek_certificate": certificate }))
            .await
    }

    pub(crate) async fn register(&self, kind: &str, name: &str, content: &[u8]) {
        let content = BASE64_STANDARD.encode(content);
        self.admin(kind, json!({ "name": name, "content": content })).await;
    }

    /// Starts a host; `arguments` go to its machine.
    pub(crate) fn host(&self, name: &str, protocol: &str, arguments: &[&str]) -> Host {
        let mut child = Plan::new(env!("CARGO_BIN_EXE_guarded-host-sim"), &self.dir)
            .args(["host", "--name", name, "--dir", name, "--maker", "maker"])
            .args(arguments)
            .args(["--", "--attestation-url", "http://hgs.bastion.local/Attestation"])
            .args(["--protocol", protocol, "--names"])
            .arg(self.dir.join("names"))
            .output(Output::Pipe)
            .errors(Output::File(self.dir.join(format!("{name}.log"))))
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.take_output().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let agent = line.trim().split("agent=").nth(1);
        Host {
            agent: agent.unwrap_or_else(|| panic!("not ready: {line:?}")).to_owned(),
            client: LabClient::new(NameTable::default(), None, Clock::system()).unwrap(),
            dir: self.dir.join(name),
            _machine: (child, output),
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Passes everything on to `service` and keeps the last answer. Answers where it listens.
fn relay(service: String, http: reqwest::Client, last: Last) -> String {
    let pass = move |request: HttpRequest, body: web::Bytes| {
        let sent = http
            .request(
                request.method().as_str().parse().unwrap(),
                format!("{service}{}", request.uri()),
            )
            .header("Content-Type", "application/json")
            .body(body.to_vec())
            .send();
        let last = last.clone();
        async move {
            let answer = sent.await.unwrap();
            let status = actix_web::http::StatusCode::from_u16(answer.status().as_u16()).unwrap();
            let bytes = answer.bytes().await.unwrap();
            *last.lock().unwrap() = bytes.to_vec();
            HttpResponse::build(status).content_type("application/json").body(bytes)
        }
    };
    let app = move || {
        App::new()
            .app_data(web::PayloadConfig::new(16 << 20))
            .default_service(web::to(pass.clone()))
    };
    let server = HttpServer::new(app).workers(1).bind("127.0.0.1:0").unwrap();
    let address = server.addrs()[0].to_string();
    actix_web::rt::spawn(server.run());
    address
}

/// One host.
pub(crate) struct Host {
    dir: PathBuf,
    agent: String,
    client: LabClient,
    _machine: (Child, BufReader<ChildStdout>),
}

impl Host {
    pub(crate) fn file(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    pub(crate) fn read(&self, file: &str) -> Vec<u8> {
        fs::read(self.file(file)).unwrap()
    }

    pub(crate) fn reboot(&self, dials: &Dials) -> ControlReply {
        let reply = self.try_reboot(dials);
        assert!(reply.ok, "{}", reply.message);
        reply
    }

    pub(crate) fn try_reboot(&self, dials: &Dials) -> ControlReply {
        let order = Control::Reboot {
            dials: Some(Box::new(dials.clone())),
        };
        ask(&self.file("machine.sock"), &order).unwrap()
    }

    pub(crate) async fn attest(&self) -> Value {
        let url = format!("{}/v1/attest", self.agent);
        let answer = self
            .client
            .post(&url, "application/json", Vec::new(), 1 << 20)
            .await
            .unwrap();
        serde_json::from_slice(&answer.body).unwrap()
    }

    /// Where its agent answers.
    pub(crate) fn agent_url(&self) -> &str {
        &self.agent
    }

    /// Get-HgsClientConfiguration: HTTP status and object.
    pub(crate) async fn get_configuration(&self) -> (u16, Value) {
        self.ask_agent(reqwest::Method::GET, "", None).await
    }

    /// Set-HgsClientConfiguration.
    pub(crate) async fn set_configuration(&self, change: &Value) -> (u16, Value) {
        self.ask_agent(reqwest::Method::PUT, "", Some(change)).await
    }

    /// Test-HgsClientConfiguration with `either`, `primary` or `fallback`.
    pub(crate) async fn test_configuration(&self, choice: &str) -> (u16, Value) {
        let body = json!({ "use": choice });
        self.ask_agent(reqwest::Method::POST, "/test", Some(&body)).await
    }

    async fn ask_agent(&self, method: reqwest::Method, path: &str, body: Option<&Value>) -> (u16, Value) {
        let url = format!("{}/v1/client-configuration{path}", self.agent);
        let mut request = reqwest::Client::new().request(method, url);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.json().await.unwrap())
    }
}

/// A service with one host, `host01`.
pub(crate) struct Lab {
    pub(crate) host: Host,
    pub(crate) service: Service,
}

impl Lab {
    pub(crate) async fn new(test: &str, protocol: &str) -> Option<Lab> {
        let service = Service::start(test).await?;
        let host = service.host("host01", protocol, &[]);
        Some(Lab { host, service })
    }

    pub(crate) async fn register(&self) {
        self.service.trust_tpm_maker().await;
        self.service.register_ek("host01", &self.read("agent/ek.cer")).await;
        self.register_models().await;
    }

    /// What the host shows now is what hosts are held against.
    pub(crate) async fn register_models(&self) {
        self.service
            .register("tpm-baselines", "model", &self.read("agent/boot.log"))
            .await;
        self.service
            .register("ci-policies", "model", &self.read("agent/SIPolicy.p7b"))
            .await;
    }
}

impl Deref for Lab {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

/// The DER of a certificate's PEM file.
pub(crate) fn pem(path: &Path) -> Vec<u8> {
    let text = fs::read_to_string(path).unwrap();
    let body = text
        .split("-----BEGIN CERTIFICATE-----")
        .nth(1)
        .and_then(|t| t.split("-----END").next());
    BASE64_STANDARD
        .decode(body.unwrap().split_whitespace().collect::<String>())
        .unwrap()
}
