//! The certificates with which the services of a fabric speak HTTPS: one root, one server certificate.

use std::{fs, path::Path};

use anyhow::Context;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use super::service::Tls;

/// Makes a root and a server certificate for `names` and `127.0.0.1` in `folder`.
pub fn issue(folder: &Path, names: &[&str]) -> anyhow::Result<Tls> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let root_key = KeyPair::generate()?;
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    // Who trusts several roots finds the right one by its name and its key's identifier.
    let first = names.first().copied().unwrap_or("hgs");
    root.distinguished_name
        .push(DnType::CommonName, format!("Guarded fabric TLS root of {first}"));
    let root_certificate = root.self_signed(&root_key)?;
    let issuer = Issuer::new(root, root_key);

    let key = KeyPair::generate()?;
    let all: Vec<String> = names.iter().chain(&["127.0.0.1"]).map(|n| (*n).to_owned()).collect();
    let mut server = CertificateParams::new(all)?;
    server.use_authority_key_identifier_extension = true;
    server.distinguished_name.push(DnType::CommonName, first);
    let certificate = server.signed_by(&key, &issuer)?;

    let tls = Tls {
        root: folder.join("root.pem"),
        certificate: folder.join("server.pem"),
        key: folder.join("server-key.pem"),
    };
    fs::write(&tls.root, root_certificate.pem())?;
    fs::write(&tls.certificate, certificate.pem())?;
    super::service::write_private(&tls.key, &key.serialize_pem())?;
    Ok(tls)
}
