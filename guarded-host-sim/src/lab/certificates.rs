//! The certificate stores of a machine, with private keys where they are the machine's own. They last as long as the lab's process.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context, bail};
use hgs_protocol::{
    crypto::RsaPrivateKey,
    env::UnixTime,
    protector::{Certificate, KeyPair},
};
use hgs_shell::value::Date;
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyUsagePurpose};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// A certificate in a store.
#[derive(Clone)]
pub struct Kept {
    /// DER.
    pub der: Vec<u8>,
    /// With its private key, where that is here.
    pub pair: Option<Arc<KeyPair>>,
}

/// Certificates by store and thumbprint.
#[derive(Default)]
pub struct Stores(BTreeMap<String, BTreeMap<String, Kept>>);

impl Stores {
    /// Puts a certificate into a store.
    pub fn add(&mut self, store: &str, thumbprint: &str, kept: Kept) {
        let store = self.0.entry(store.to_ascii_lowercase()).or_default();
        store.insert(thumbprint.to_ascii_uppercase(), kept);
    }

    /// A certificate of a store.
    pub fn find(&self, store: &str, thumbprint: &str) -> Option<&Kept> {
        let wanted = thumbprint.replace([' ', '\u{200e}'], "").to_ascii_uppercase();
        self.0.get(&store.to_ascii_lowercase())?.get(&wanted)
    }

    /// A certificate in whichever store it is.
    pub fn anywhere(&self, thumbprint: &str) -> Option<&Kept> {
        let wanted = thumbprint.replace([' ', '\u{200e}'], "").to_ascii_uppercase();
        self.0.values().find_map(|store| store.get(&wanted))
    }

    /// Takes a certificate out.
    pub fn remove(&mut self, store: &str, thumbprint: &str) -> Option<Kept> {
        self.0
            .get_mut(&store.to_ascii_lowercase())?
            .remove(&thumbprint.to_ascii_uppercase())
    }

    /// What is in a store.
    pub fn list(&self, store: &str) -> impl Iterator<Item = &Kept> {
        self.0
            .get(&store.to_ascii_lowercase())
            .into_iter()
            .flat_map(BTreeMap::values)
    }
}

/// What a self-signed certificate is made with.
pub struct NewCertificate<'a> {
    /// `CN=HGS Signing Certificate`; or a name alone.
    pub subject: &'a str,
    /// Names of servers.
    pub dns_names: &'a [String],
    /// First moment of validity.
    pub not_before: UnixTime,
    /// Last moment of validity.
    pub not_after: UnixTime,
}

/// A new RSA-2048 key with a self-signed certificate, with the key usages that New-SelfSignedCertificate gives and those
/// that HGS asks of signing and of encryption certificates.
pub fn make(new: &NewCertificate<'_>) -> anyhow::Result<KeyPair> {
    let key = RsaPrivateKey::generate_2048()?;
    let pkcs8 = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.expose_pkcs8()));
    let signer = rcgen::KeyPair::from_der_and_sign_algo(&pkcs8, &rcgen::PKCS_RSA_SHA256)?;
    let mut params = CertificateParams::new(new.dns_names.to_vec())?;
    params.distinguished_name = name(new.subject)?;
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
        KeyUsagePurpose::DataEncipherment,
    ];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    // To the day, which is as exactly as anything here counts a validity.
    let day = |time: UnixTime| -> anyhow::Result<_> {
        let (year, month, day) = Date(time.0).calendar();
        Ok(rcgen::date_time_ymd(
            year.try_into()?,
            month.try_into()?,
            day.try_into()?,
        ))
    };
    params.not_before = day(new.not_before)?;
    params.not_after = day(new.not_after)?;
    let certificate = params.self_signed(&signer)?;
    Ok(KeyPair::from_parts(key.expose_pkcs8(), certificate.der())?)
}

/// A distinguished name as Windows tools take it: `CN=…, O=…`, or a common name alone.
fn name(text: &str) -> anyhow::Result<DistinguishedName> {
    let mut name = DistinguishedName::new();
    if !text.contains('=') {
        name.push(DnType::CommonName, text.trim());
        return Ok(name);
    }
    for part in text.split(',') {
        let (key, value) = part
            .split_once('=')
            .with_context(|| format!("\"{part}\" is no part of a name"))?;
        let kind = match key.trim().to_ascii_uppercase().as_str() {
            "CN" => DnType::CommonName,
            "O" => DnType::OrganizationName,
            "OU" => DnType::OrganizationalUnitName,
            "C" => DnType::CountryName,
            "L" => DnType::LocalityName,
            "S" | "ST" => DnType::StateOrProvinceName,
            other => bail!("the part {other} of a subject's name is not taken here: use CN, OU, O, L, S and C"),
        };
        name.push(kind, value.trim().trim_matches('"'));
    }
    Ok(name)
}

/// SHA-1 of a certificate's DER, in upper-case hex.
pub fn thumbprint(der: &[u8]) -> Option<String> {
    Certificate::parse(der).ok().map(|certificate| certificate.thumbprint())
}
