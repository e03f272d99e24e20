//! One Host Guardian Service: its attestation and key protection processes, and what an
//! administrator and a client do with them over HTTP.

use std::{path::Path, thread};

use anyhow::{Context, anyhow};
use base64::{Engine, engine::general_purpose::STANDARD};
use hgs_protocol::wire::kps::{ErrorMessage, RollTransportKeyRequest, RollTransportKeyResponse, ServiceVersion};
use serde_json::{Value, json};

use super::{
    service::{Attachment, Extras, Service, http_client},
    soft_token::SoftTokens,
};
use crate::swtpm::make_private_dir;

/// A running HGS.
pub struct Hgs {
    /// The attestation service.
    pub attestation: Service,
    /// The key protection service.
    pub kps: Service,
    http: reqwest::Client,
}

/// The KPS's own error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KpsRefusal {
    /// `HealthCertificateException`, say.
    pub code: String,
    /// The message, which stays generic.
    pub message: String,
}

impl Hgs {
    /// Starts both services with everything below `folder` and waits until they are ready. With `tokens`,
    /// key protection keeps its private keys in a token.
    pub fn start(folder: &Path, extras: &Extras, tokens: Option<&SoftTokens>) -> anyhow::Result<Hgs> {
        let (attestation, kps) = thread::scope(|scope| {
            let kps = scope.spawn(|| {
                let folder = folder.join("kps");
                let mut extras = extras.clone();
                if let Some(tokens) = tokens {
                    make_private_dir(&folder)?;
                    extras.token = Some(tokens.make(&folder.join("token"))?);
                }
                Service::start("kps", &folder, &extras)
            });
            let attestation = Service::start("attestation", &folder.join("attestation"), extras);
            (attestation, kps.join())
        });
        Ok(Hgs {
            attestation: attestation?,
            kps: kps.map_err(|_| anyhow!("the thread that starts the KPS panicked"))??,
            http: http_client(60, None)?,
        })
    }

    /// An HGS whose services run elsewhere.
    pub fn attach(attestation: &Attachment, kps: &Attachment) -> anyhow::Result<Hgs> {
        Ok(Hgs {
            attestation: Service::attach("attestation", attestation)?,
            kps: Service::attach("kps", kps)?,
            http: http_client(60, None)?,
        })
    }

    /// Lets the KPS trust the attestation signer, as `Install`ation of HGS does. Gives the number
    /// of signer certificates that were registered.
    pub async fn trust_signer(&self) -> anyhow::Result<usize> {
        let signers = self.signing_certificates().await?;
        for der in &signers {
            let body = json!({ "certificate": STANDARD.encode(der) });
            self.kps.admin_post("attestation-signers", &body).await?;
        }
        Ok(signers.len())
    }

    /// [`Service::trust_tpm_makers`] of the attestation service.
    pub async fn trust_tpm_makers(&self, certificates: &[Vec<u8>]) -> anyhow::Result<()> {
        self.attestation.trust_tpm_makers(certificates).await
    }

    /// [`Service::register_host`] of the attestation service.
    pub async fn register_host(&self, name: &str, ek: &[u8]) -> anyhow::Result<()> {
        self.attestation.register_host(name, ek).await
    }

    /// Removes a host, if it is registered.
    pub async fn forget_host(&self, name: &str) -> anyhow::Result<()> {
        let known: Vec<Value> = self.attestation.admin_get("tpm-hosts").await?;
        if known.iter().any(|host| host.get("name") == Some(&json!(name))) {
            self.attestation.admin_delete(&format!("tpm-hosts/{name}")).await?;
        }
        Ok(())
    }

    /// [`Service::register_model`] of the attestation service.
    pub async fn register_model(&self, model: &str, boot_log: &[u8], ci_policy: &[u8]) -> anyhow::Result<()> {
        self.attestation.register_model(model, boot_log, ci_policy).await
    }

    /// [`Service::signing_certificates`] of the attestation service.
    pub async fn signing_certificates(&self) -> anyhow::Result<Vec<Vec<u8>>> {
        self.attestation.signing_certificates().await
    }

    /// The guardian metadata document of the KPS.
    pub async fn metadata(&self) -> anyhow::Result<Vec<u8>> {
        let path = "keyprotection/service/metadata/2014-07/metadata.xml";
        let url = format!("{}/{path}", self.kps.url);
        let answer = self.http.get(url).send().await?.error_for_status()?;
        Ok(answer.bytes().await?.to_vec())
    }

    /// Sends a RollTransportKeyRequest of the demonstration's own.
    pub async fn roll(
        &self,
        request: &RollTransportKeyRequest,
    ) -> anyhow::Result<Result<RollTransportKeyResponse, KpsRefusal>> {
        let url = format!("{}{}", self.kps.url, ServiceVersion::V2.roll_path());
        let request = self
            .http
            .post(url)
            .header("content-type", "application/xml; charset=utf-8")
            .body(request.encode());
        let answer = request.send().await?;
        let status = answer.status();
        let body = answer.bytes().await?;
        if status.is_success() {
            return Ok(Ok(RollTransportKeyResponse::parse(&body)?));
        }
        let error =
            ErrorMessage::parse(&body).with_context(|| format!("the KPS answered {status} without an Error"))?;
        Ok(Err(KpsRefusal {
            code: error.code,
            message: error.message,
        }))
    }

    /// Why the KPS refused last, from its audit: the message on the wire stays generic.
    pub async fn last_kps_reason(&self) -> anyhow::Result<String> {
        let rows: Vec<Value> = self.kps.admin_get("audit?limit=10").await?;
        Ok(rows
            .iter()
            .find_map(reason)
            .unwrap_or_else(|| "no reason recorded".to_owned()))
    }

    /// Says which process has ended, if one has.
    pub fn ended(&mut self) -> Option<String> {
        self.attestation.ended().or_else(|| self.kps.ended())
    }
}

/// The reason in an audit row, wherever its body has it.
fn reason(row: &Value) -> Option<String> {
    let body = match row.get("body") {
        // Bodies are JSON text in the database and may arrive as such.
        Some(Value::String(text)) => serde_json::from_str(text).ok()?,
        Some(other) => other.clone(),
        None => row.clone(),
    };
    ["reason", "cause"]
        .iter()
        .find_map(|key| body.get(key)?.as_str().map(str::to_owned))
}
