//! Module PKI: certificates in a machine's stores, and in files.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use hgs_protocol::protector::KeyPair;
use hgs_service::pair_files;
use hgs_shell::{
    call::Call,
    error::{Category, ErrorRecord, Outcome},
    value::{Value, convert},
};
use reqwest::Method;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::json;

use crate::{
    cmdlets::{ask, failed, lab, objects, part_of},
    lab::{
        Kept, Lab, ServiceName,
        certificates::{NewCertificate, make, thumbprint},
    },
};

/// `My` of `Cert:\LocalMachine\My`, which is where a certificate goes if nothing is said.
fn store(call: &Call<'_>) -> String {
    let given = call.text("CertStoreLocation").unwrap_or_default();
    let last = given.trim_end_matches('\\').rsplit('\\').next().unwrap_or_default();
    match last.is_empty() || last.ends_with(':') {
        true => "My".to_owned(),
        false => last.to_owned(),
    }
}

pub(super) fn new(call: &mut Call<'_>) -> Outcome {
    let lab = lab(call)?;
    let dns_names = call.texts("DnsName");
    let subject = call
        .text("Subject")
        .or_else(|| dns_names.first().map(|name| format!("CN={name}")));
    let Some(subject) = subject else {
        return Err(call.fail(ErrorRecord::new(
            Category::InvalidArgument,
            "SubjectMissing",
            "Give -Subject or -DnsName: the certificate must name somebody.",
        )));
    };
    let now = lab.time();
    let date = |name: &str| match call.get(name) {
        Some(Value::Date(date)) => Some(hgs_protocol::env::UnixTime(date.0)),
        _ => None,
    };
    let (not_before, not_after) = (date("NotBefore"), date("NotAfter"));
    if !call.should_process(&subject, "Create a self-signed certificate")? {
        return Ok(());
    }
    let pair = make(&NewCertificate {
        subject: &subject,
        dns_names: &dns_names,
        not_before: not_before.unwrap_or(now),
        not_after: not_after.unwrap_or(now.plus_seconds(365 * 86_400)),
    });
    let pair = pair.map_err(|error| failed(call, "CertificateNotMade", error))?;
    let store = store(call);
    let shown = objects::certificate(pair.certificate().der(), true, Some(&store));
    keep(call, &lab, &store, pair);
    call.write(shown)
}

fn keep(call: &Call<'_>, lab: &Lab, store: &str, pair: KeyPair) {
    let thumbprint = pair.certificate().thumbprint();
    let kept = Kept {
        der: pair.certificate().der().to_vec(),
        pair: Some(Arc::new(pair)),
    };
    lab.state(&call.machine().name)
        .certificates
        .add(store, &thumbprint, kept);
}

/// The certificate that an object or a path in the drive `Cert:` names, as it is in this machine's stores.
fn given(call: &mut Call<'_>, lab: &Lab) -> Outcome<Kept> {
    let value = call.get("Cert").unwrap_or(Value::Null);
    let wanted = part_of(&value, "Thumbprint").map_or_else(|| convert::to_text(&value), |text| convert::to_text(&text));
    let wanted = wanted
        .trim_end_matches('\\')
        .rsplit('\\')
        .next()
        .unwrap_or_default()
        .to_owned();
    let machine = call.machine().name.clone();
    let kept = lab.state(&machine).certificates.anywhere(&wanted).cloned();
    let der = match part_of(&value, "RawData") {
        Some(Value::Bytes(der)) => Some(der.to_vec()),
        _ => None,
    };
    kept.or_else(|| der.map(|der| Kept { der, pair: None })).ok_or_else(|| {
        call.fail(
            ErrorRecord::new(
                Category::ObjectNotFound,
                "CertificateNotFound",
                format!("{machine} has no certificate {wanted} in its stores."),
            )
            .about(Value::text(wanted)),
        )
    })
}

/// Refuses to replace a file where that was said.
fn check_target(call: &mut Call<'_>, path: &str) -> Outcome {
    if call.switch("NoClobber") && call.file(path)?.exists() {
        return Err(call.fail(ErrorRecord::new(
            Category::ResourceExists,
            "FileExists",
            format!("The file '{path}' exists already, and -NoClobber keeps it."),
        )));
    }
    Ok(())
}

fn wrote(call: &mut Call<'_>, path: &str, bytes: &[u8]) -> Outcome {
    call.write_file(path, bytes)?;
    let name = path.rsplit('\\').next().unwrap_or(path);
    call.write(Value::object(
        "FileInfo",
        [
            ("Name", Value::text(name)),
            ("FullName", Value::text(path)),
            ("Length", Value::Int(i64::try_from(bytes.len()).unwrap_or(i64::MAX))),
        ],
    ))
}

pub(super) fn export_pfx(call: &mut Call<'_>) -> Outcome {
    let lab = lab(call)?;
    let kept = given(call, &lab)?;
    let path = call.text("FilePath").unwrap_or_default();
    check_target(call, &path)?;
    let Some(pair) = kept.pair else {
        return Err(call.fail(ErrorRecord::new(
            Category::InvalidOperation,
            "NoPrivateKey",
            "Cannot export a PFX: the private key of the certificate is not on this computer.",
        )));
    };
    let Some(password) = call.secret("Password") else {
        return Err(call.fail(ErrorRecord::new(
            Category::InvalidArgument,
            "PasswordMissing",
            "Give -Password: it is what protects the private key in the file.",
        )));
    };
    if !call.should_process(&path, "Export a certificate with its private key")? {
        return Ok(());
    }
    let pfx = pair_files::to_pfx(&pair, "certificate", password.expose());
    let pfx = pfx.map_err(|error| failed(call, "CertificateNotExported", error))?;
    wrote(call, &path, &pfx)
}

pub(super) fn import_pfx(call: &mut Call<'_>) -> Outcome {
    let lab = lab(call)?;
    let path = call.text("FilePath").unwrap_or_default();
    let bytes = call.read_file(&path)?;
    let password = call.secret("Password");
    if !call.should_process(&path, "Import a certificate with its private key")? {
        return Ok(());
    }
    let pair = pair_files::from_pfx(&bytes, password.as_ref().map_or("", |secret| secret.expose()));
    let pair = pair.map_err(|error| failed(call, "CertificateNotUsable", format!("{path}: {error:#}")))?;
    let store = store(call);
    let shown = objects::certificate(pair.certificate().der(), true, Some(&store));
    keep(call, &lab, &store, pair);
    call.write(shown)
}

pub(super) fn export(call: &mut Call<'_>) -> Outcome {
    let lab = lab(call)?;
    let kept = given(call, &lab)?;
    let path = call.text("FilePath").unwrap_or_default();
    check_target(call, &path)?;
    if call.should_process(&path, "Export a certificate")? {
        wrote(call, &path, &kept.der)?;
    }
    Ok(())
}

pub(super) fn import(call: &mut Call<'_>) -> Outcome {
    let lab = lab(call)?;
    let path = call.text("FilePath").unwrap_or_default();
    let bytes = call.read_file(&path)?;
    let pem = CertificateDer::from_pem_slice(&bytes).ok().map(|der| der.to_vec());
    let der = pem.unwrap_or(bytes);
    let Ok(print) = sha1_of(&der) else {
        return Err(call.fail(
            ErrorRecord::new(
                Category::InvalidData,
                "CertificateNotUsable",
                format!("'{path}' is no certificate, DER or PEM."),
            )
            .about(Value::text(path)),
        ));
    };
    let store = store(call);
    if !call.should_process(&path, &format!("Import a certificate into {store}"))? {
        return Ok(());
    }
    let machine = call.machine().name.clone();
    let kept = Kept {
        der: der.clone(),
        pair: None,
    };
    lab.state(&machine).certificates.add(&store, &print, kept);
    let of_hgs = lab.cluster().is_some_and(|cluster| cluster.has_node(&machine));
    // What these stores hold is what the service trusts; before it is set up they are only kept.
    if of_hgs && TPM_STORES.iter().any(|name| name.eq_ignore_ascii_case(&store)) {
        let body = json!({ "name": print, "certificate": STANDARD.encode(&der) });
        ask(
            call,
            &lab,
            ServiceName::Attestation,
            Method::POST,
            "tpm-trust",
            Some(body),
        )?;
    }
    let shown = objects::certificate(&der, false, Some(&store));
    call.write(shown)
}

/// Vendors' certificates may have keys that guardians' may not.
fn sha1_of(der: &[u8]) -> Result<String, x509_cert::der::Error> {
    use x509_cert::der::Decode;
    x509_cert::Certificate::from_der(der)?;
    Ok(thumbprint(der).unwrap_or_else(|| hex::encode_upper(hgs_protocol::crypto::sha256(der))))
}

const TPM_STORES: [&str; 3] = ["TrustedTPM_RootCA", "TrustedTPM_IntermediateCA", "TrustedHgs_RootCA"];
