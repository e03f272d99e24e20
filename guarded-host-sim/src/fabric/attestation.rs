//! What an administrator does with an attestation service, and its signers as anybody reads them.

use std::time::Duration;

use anyhow::{Context, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use cms::{cert::CertificateChoices, content_info::ContentInfo, signed_data::SignedData};
use hgs_protocol::{
    crypto::RsaPrivateKey,
    env::{Clock, OsRandom},
    health::{AttestationMode, AttestationSigner, CertificateKind, HealthCertificateRequest},
};
use serde_json::{Value, json};
use x509_cert::der::{Decode, Encode};

use super::service::Service;

impl Service {
    /// Trusts the makers of TPMs: DER certificates of their authorities.
    pub async fn trust_tpm_makers(&self, certificates: &[Vec<u8>]) -> anyhow::Result<()> {
        for (number, der) in certificates.iter().enumerate() {
            self.trust_tpm_maker(&format!("tpm-maker-{number}"), der).await?;
        }
        Ok(())
    }

    /// Trusts one authority of a TPM maker, under `name`.
    pub async fn trust_tpm_maker(&self, name: &str, certificate: &[u8]) -> anyhow::Result<()> {
        let body = json!({ "name": name, "certificate": STANDARD.encode(certificate) });
        self.admin_post("tpm-trust", &body).await.map(|_| ())
    }

    /// Registers a host by its EK certificate.
    pub async fn register_host(&self, name: &str, ek: &[u8]) -> anyhow::Result<()> {
        let body = json!({ "name": name, "ek_certificate": STANDARD.encode(ek) });
        self.admin_post("tpm-hosts", &body).await.map(|_| ())
    }

    /// Registers a host by its host key, a SubjectPublicKeyInfo say.
    pub async fn register_host_key(&self, name: &str, key: &[u8]) -> anyhow::Result<()> {
        let body = json!({ "name": name, "content": STANDARD.encode(key) });
        self.admin_post("host-keys", &body).await.map(|_| ())
    }

    /// Registers what healthy hosts of one model have in common: TPM baseline and CI policy.
    pub async fn register_model(&self, model: &str, boot_log: &[u8], ci_policy: &[u8]) -> anyhow::Result<()> {
        let file = |content: &[u8]| json!({ "name": model, "content": STANDARD.encode(content) });
        self.admin_post("tpm-baselines", &file(boot_log)).await?;
        self.admin_post("ci-policies", &file(ci_policy)).await.map(|_| ())
    }

    /// The operation mode: `Tpm` or `HostKey`.
    pub async fn operation_mode(&self) -> anyhow::Result<String> {
        let answer: Value = self.admin_get("operation-mode").await?;
        let mode = answer.get("mode").and_then(Value::as_str);
        Ok(mode.context("attestation does not say its operation mode")?.to_owned())
    }

    /// The attestation service's signer certificates, DER, from its public endpoint.
    pub async fn signing_certificates(&self) -> anyhow::Result<Vec<Vec<u8>>> {
        signing_certificates(&self.public_get("Attestation/v2.0/signingCertificates").await?)
    }
}

/// The signer certificates, DER, in an answer to `signingCertificates`.
pub fn signing_certificates(answer: &[u8]) -> anyhow::Result<Vec<Vec<u8>>> {
    let der: Vec<u8> = serde_json::from_slice(answer).context("signingCertificates is no array of bytes")?;
    let content = ContentInfo::from_der(&der)?.content;
    let signed: SignedData = content.decode_as()?;
    let certificates = signed.certificates.context("signingCertificates holds none")?;
    let certificates = certificates.0.iter().map(|choice| match choice {
        CertificateChoices::Certificate(certificate) => Ok(certificate.to_der()?),
        CertificateChoices::Other(_) => bail!("signingCertificates holds something else"),
    });
    certificates.collect()
}

/// A health certificate that would be good, had the KPS any reason to trust who signed it.
pub(crate) fn untrusted_certificate() -> anyhow::Result<Vec<u8>> {
    let (now, rng) = (Clock::system().now(), &mut OsRandom);
    let signer = AttestationSigner::generate(now, rng)?;
    let request = HealthCertificateRequest {
        key: RsaPrivateKey::generate_2048()?.public().clone().into(),
        kind: CertificateKind::Encryption,
        mode: AttestationMode::Tpm,
        policies: Vec::new(),
        issued_at: now,
        lifetime: Duration::from_secs(8 * 3600),
    };
    Ok(signer.issue(&request, rng)?)
}
