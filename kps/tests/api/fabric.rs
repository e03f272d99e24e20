//! One running service with a host, an owner and an attestation signer around it.

use hgs_protocol::{
    crypto::RsaPrivateKey,
    env::{Clock, OsRandom, UnixTime},
    health::{AttestationMode, AttestationSigner, CertificateKind, DEFAULT_LIFETIME, HealthCertificateRequest},
    protector::{Guardian, GuardianKeys, KeyProtector},
    secret::TransportKey,
    wire::kps::{ErrorMessage, METADATA_PATH, RollTransportKeyRequest, RollTransportKeyResponse, ServiceVersion},
};
use hgs_service::{
    settings::ServiceArgs,
    tokens::{Role, new_token},
};

pub(crate) struct Fabric {
    pub(crate) url: String,
    pub(crate) admin: String,
    pub(crate) administrator: String,
    pub(crate) reviewer: String,
    pub(crate) client: reqwest::Client,
    pub(crate) clock: Clock,
    pub(crate) signer: AttestationSigner,
    pub(crate) host: RsaPrivateKey,
    pub(crate) owner: GuardianKeys,
    pub(crate) hgs: Guardian,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) settings: ServiceArgs,
    handles: [actix_web::dev::ServerHandle; 2],
}

impl Fabric {
    pub(crate) async fn start(max_offline_unwraps: u32) -> Fabric {
        let options = kps::Options {
            max_offline_unwraps,
            ..kps::Options::default()
        };
        Fabric::start_with(options).await
    }

    pub(crate) async fn start_with(options: kps::Options) -> Fabric {
        Fabric::start_over(options, None).await
    }

    /// Over this database; in the data directory where there is none.
    pub(crate) async fn start_over(options: kps::Options, database_url: Option<String>) -> Fabric {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("kek"), "5a".repeat(32)).unwrap();
        let (administrator, first) = new_token(Role::Administrator, &mut OsRandom);
        let (reviewer, second) = new_token(Role::Reviewer, &mut OsRandom);
        std::fs::write(path("tokens"), format!("{first}\n{second}\n")).unwrap();
        let settings = ServiceArgs {
            data_dir: Some(path("data")),
            key_encryption_key_file: Some(path("kek")),
            admin_tokens: Some(path("tokens")),
            database_url,
            ..ServiceArgs::default()
        };
        let clock = Clock::system();
        let resolved = settings.clone().resolve("kps").unwrap();
        let bound = kps::start(&resolved, &options, clock.clone()).await.unwrap();
        let (url, admin, handles) = (bound.service_url.clone(), bound.admin_url.clone(), bound.handles());
        tokio::spawn(bound.run());
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let metadata = client.get(format!("{url}{METADATA_PATH}")).send().await.unwrap();
        let metadata = metadata.bytes().await.unwrap();
        let signer = AttestationSigner::generate(clock.now(), &mut OsRandom).unwrap();
        let fabric = Fabric {
            url,
            admin,
            administrator,
            reviewer,
            client,
            host: RsaPrivateKey::generate_2048().unwrap(),
            owner: GuardianKeys::generate("Owner", clock.now(), &mut OsRandom).unwrap(),
            hgs: Guardian::from_metadata(&metadata, "HGS").unwrap(),
            clock,
            signer,
            directory,
            settings,
            handles,
        };
        let status = fabric.trust(fabric.signer.certificate_der()).await;
        assert_eq!(status, 201);
        fabric
    }

    pub(crate) async fn stop(self) {
        for handle in self.handles {
            handle.stop(true).await;
        }
    }

    /// Makes the service trust an attestation signer; the status of the answer.
    pub(crate) async fn trust(&self, certificate: &[u8]) -> u16 {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        let reply = self
            .client
            .post(format!("{}/admin/v1/attestation-signers", self.admin))
            .bearer_auth(&self.administrator)
            .json(&serde_json::json!({ "certificate": STANDARD.encode(certificate) }))
            .send()
            .await
            .unwrap();
        reply.status().as_u16()
    }

    /// A certificate for this host's key by `signer`.
    pub(crate) fn certify(&self, signer: &AttestationSigner, kind: CertificateKind, issued_at: UnixTime) -> Vec<u8> {
        let ask = HealthCertificateRequest {
            key: self.host.public().clone().into(),
            kind,
            mode: AttestationMode::HostKey,
            policies: vec![],
            issued_at,
            lifetime: DEFAULT_LIFETIME,
        };
        signer.issue(&ask, &mut OsRandom).unwrap()
    }

    pub(crate) fn healthy(&self) -> Vec<u8> {
        self.certify(&self.signer, CertificateKind::Encryption, self.clock.now())
    }

    pub(crate) fn protector(&self) -> (KeyProtector, TransportKey) {
        KeyProtector::create(&self.owner, std::slice::from_ref(&self.hgs), &mut OsRandom).unwrap()
    }

    pub(crate) async fn post(&self, path: &str, body: Vec<u8>) -> reqwest::Response {
        let url = format!("{}{path}", self.url);
        self.client
            .post(url)
            .header("content-type", "application/xml; charset=utf-8")
            .body(body)
            .send()
            .await
            .unwrap()
    }

    pub(crate) async fn roll(
        &self,
        version: ServiceVersion,
        protector: &[u8],
        certificate: &[u8],
    ) -> Result<RollTransportKeyResponse, (u16, ErrorMessage)> {
        let ask = RollTransportKeyRequest::new(protector.to_vec(), certificate.to_vec());
        let reply = self.post(version.roll_path(), ask.encode()).await;
        let status = reply.status().as_u16();
        assert_eq!(reply.headers()["content-type"], "application/xml; charset=utf-8");
        let body = reply.bytes().await.unwrap();
        match status {
            200 => Ok(RollTransportKeyResponse::parse(&body).unwrap()),
            _ => Err((status, ErrorMessage::parse(&body).unwrap())),
        }
    }

    /// Status and code of a roll that is refused.
    pub(crate) async fn refusal(&self, protector: &[u8], certificate: &[u8]) -> (u16, String) {
        let (status, error) = self
            .roll(ServiceVersion::V2, protector, certificate)
            .await
            .expect_err("refused");
        (status, error.code)
    }

    /// The guardian of the present metadata.
    pub(crate) async fn guardian(&self) -> Guardian {
        let document = self
            .client
            .get(format!("{}{METADATA_PATH}", self.url))
            .send()
            .await
            .unwrap();
        Guardian::from_metadata(&document.bytes().await.unwrap(), "HGS").unwrap()
    }

    /// An administrator's call; status and body.
    pub(crate) async fn call(&self, method: &str, path: &str, body: serde_json::Value) -> (u16, serde_json::Value) {
        let url = format!("{}/admin/v1/{path}", self.admin);
        let mut request = self
            .client
            .request(method.parse().unwrap(), url)
            .bearer_auth(&self.administrator);
        if !body.is_null() {
            request = request.json(&body);
        }
        let reply = request.send().await.unwrap();
        let status = reply.status().as_u16();
        let text = reply.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or_default())
    }

    pub(crate) async fn get_admin(&self, path: &str) -> serde_json::Value {
        let reply = self
            .client
            .get(format!("{}/admin/v1/{path}", self.admin))
            .bearer_auth(&self.reviewer)
            .send()
            .await
            .unwrap();
        assert_eq!(reply.status().as_u16(), 200);
        reply.json().await.unwrap()
    }
}

/// Changes the text of a protector's wrappings and signs it anew as `by` (wrapping 1): what a
/// malicious owner can do. The TransportKeySignature is left as it was.
pub(crate) fn rewrap(protector: &KeyProtector, by: &GuardianKeys, change: impl Fn(&str) -> String) -> Vec<u8> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let text = String::from_utf8(protector.to_xml()).unwrap();
    let start = text.find("<Wrappings>").unwrap();
    let end = text.find("</Wrappings>").unwrap() + "</Wrappings>".len();
    let wrappings = change(&text[start..end]);
    let signed = wrappings.replacen(
        "<Wrappings>",
        "<Wrappings xmlns=\"http://schemas.microsoft.com/kps/2014/07\">",
        1,
    );
    let signature = STANDARD.encode(by.signing()[0].sign(signed.as_bytes()).unwrap());
    let tail = &text[end..];
    let value = tail.rfind("<SignatureValue>").unwrap() + "<SignatureValue>".len();
    let rest = tail.rfind("</SignatureValue>").unwrap();
    format!(
        "{}{wrappings}{}{signature}{}",
        &text[..start],
        &tail[..value],
        &tail[rest..]
    )
    .into_bytes()
}

/// Changes the first base64 digit of the first `value` element at or after the last `marker`.
pub(crate) fn flip_digit(text: &str, marker: &str, value: &str) -> String {
    let at = text.rfind(marker).unwrap();
    let at = at + text[at..].find(value).unwrap() + value.len();
    let flipped = if &text[at..=at] == "A" { "B" } else { "A" };
    format!("{}{flipped}{}", &text[..at], &text[at + 1..])
}
