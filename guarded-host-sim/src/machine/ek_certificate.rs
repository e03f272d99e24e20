//! The EK certificate that a host shows: the one its TPM's maker issued, or one that a registration
//! must refuse. Every variant is over the EK that is really in the TPM.

use std::{fs, path::Path};

use anyhow::Context;
use hgs_protocol::{crypto::RsaPrivateKey, oid};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_RSA_SHA256, SubjectPublicKeyInfo, date_time_ymd,
};
use serde::{Deserialize, Serialize};
use x509_cert::{
    Certificate,
    der::{Decode, Encode},
};

/// Which EK certificate a host shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EkCertificate {
    /// The one that the TPM's maker issued.
    #[default]
    Issued,
    /// One of the same maker that ended in 2020.
    Expired,
    /// One of a maker that no administrator has heard of; its root lies beside it as `ek-vendor.cer`.
    UnknownVendor,
    /// None, as with a TPM whose maker wrote none.
    Missing,
}

impl EkCertificate {
    /// An error where the certificate cannot be made without the TPM's maker.
    pub(super) fn needs(self, maker: Option<&Path>) -> anyhow::Result<()> {
        match (self, maker) {
            (EkCertificate::Expired, None) => {
                anyhow::bail!("an expired EK certificate needs --maker, whose key signs it")
            }
            _ => Ok(()),
        }
    }

    /// Puts the certificate into the agent's directory as `ek.cer`, or takes it away. `maker` is the
    /// directory of the lab's TPM maker, `kept` the machine's own directory for what it issued itself.
    pub(super) fn show(self, issued: &Path, maker: Option<&Path>, kept: &Path, agent: &Path) -> anyhow::Result<()> {
        for file in [agent.join("ek.cer"), agent.join("ek-vendor.cer")] {
            if file.exists() {
                fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
            }
        }
        let issued = fs::read(issued).context("the EK certificate")?;
        let put = |name: &str, der: Vec<u8>| {
            let path = agent.join(name);
            super::user::place(&path, &der)
        };
        match self {
            EkCertificate::Issued => put("ek.cer", issued),
            EkCertificate::Missing => Ok(()),
            EkCertificate::Expired => {
                let Some(maker) = maker else {
                    return self.needs(maker);
                };
                put(
                    "ek.cer",
                    keep(&kept.join("ek-expired.cer"), || expired(&issued, maker))?,
                )
            }
            EkCertificate::UnknownVendor => {
                let (root, leaf) = (kept.join("ek-vendor.cer"), kept.join("ek-unknown.cer"));
                if !leaf.exists() {
                    let (vendor, certificate) = unknown_vendor(&issued)?;
                    fs::write(&root, vendor)?;
                    fs::write(&leaf, certificate)?;
                }
                put("ek-vendor.cer", fs::read(&root)?)?;
                put("ek.cer", fs::read(&leaf)?)
            }
        }
    }
}

/// What was issued once is shown again at every boot.
fn keep(path: &Path, issue: impl FnOnce() -> anyhow::Result<Vec<u8>>) -> anyhow::Result<Vec<u8>> {
    if !path.exists() {
        fs::write(path, issue()?).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(fs::read(path)?)
}

fn expired(issued: &[u8], maker: &Path) -> anyhow::Result<Vec<u8>> {
    let read = |name: &str| fs::read_to_string(maker.join(name)).with_context(|| format!("the TPM maker's {name}"));
    let key = KeyPair::from_pem_and_sign_algo(&read("signkey.pem")?, &PKCS_RSA_SHA256)
        .context("the TPM maker's signing key")?;
    let issuer = Issuer::from_ca_cert_pem(&read("issuercert.pem")?, key).context("the TPM maker's certificate")?;
    let mut params = leaf();
    params.not_before = date_time_ymd(2015, 1, 1);
    params.not_after = date_time_ymd(2020, 1, 1);
    Ok(params.signed_by(&public_key(issued)?, &issuer)?.der().to_vec())
}

/// A maker of its own: its root, and its certificate for the EK.
fn unknown_vendor(issued: &[u8]) -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "Fabrikam TPM Manufacturing Root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = RsaPrivateKey::generate_2048()?;
    let der = rustls::pki_types::PrivatePkcs8KeyDer::from(key.expose_pkcs8()).into();
    let key = KeyPair::from_der_and_sign_algo(&der, &PKCS_RSA_SHA256)?;
    let root = params.self_signed(&key)?.der().to_vec();
    let issuer = Issuer::new(params, key);
    let leaf = leaf().signed_by(&public_key(issued)?, &issuer)?.der().to_vec();
    Ok((root, leaf))
}

fn leaf() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "unknown");
    let purpose = oid::EK_CERTIFICATE.arcs().map(u64::from).collect();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(purpose)];
    params.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
    params.use_authority_key_identifier_extension = true;
    params
}

fn public_key(issued: &[u8]) -> anyhow::Result<SubjectPublicKeyInfo> {
    let certificate = Certificate::from_der(issued).context("the EK certificate")?;
    let key = certificate.tbs_certificate.subject_public_key_info.to_der()?;
    Ok(SubjectPublicKeyInfo::from_der(&key)?)
}
