//! X.509 certificates, with the attestation extension of a health certificate.

use hgs_protocol::{
    health::{CertificateKind, HealthCertificate},
    status::POLICIES,
};
use x509_cert::{
    Certificate,
    der::{Decode, Encode},
};

use super::Field;

/// A certificate as a field.
pub(super) fn field(name: impl Into<String>, der: &[u8]) -> Field {
    let name = name.into();
    match Certificate::from_der(der) {
        Ok(certificate) => {
            let mut field = Field::of(name, der, parts(&certificate, der));
            field.value = format!("X.509 certificate of {}", certificate.tbs_certificate.subject);
            field
        }
        Err(error) => Field::unread(name, der, error),
    }
}

fn parts(certificate: &Certificate, der: &[u8]) -> Vec<Field> {
    let of = &certificate.tbs_certificate;
    let bytes = |value: Result<Vec<u8>, x509_cert::der::Error>| value.unwrap_or_default();
    let mut parts = vec![
        Field::leaf(
            "serialNumber",
            hex::encode(of.serial_number.as_bytes()),
            bytes(of.serial_number.to_der()),
        ),
        Field::leaf("issuer", of.issuer.to_string(), bytes(of.issuer.to_der())),
        Field::leaf(
            "validity",
            format!("{} to {}", of.validity.not_before, of.validity.not_after),
            bytes(of.validity.to_der()),
        ),
        Field::leaf("subject", of.subject.to_string(), bytes(of.subject.to_der())),
        Field::leaf(
            "subjectPublicKeyInfo",
            of.subject_public_key_info.algorithm.oid.to_string(),
            bytes(of.subject_public_key_info.to_der()),
        ),
    ];
    for extension in of.extensions.iter().flatten() {
        let critical = if extension.critical { ", critical" } else { "" };
        parts.push(Field::leaf(
            "extension",
            format!("{}{critical}", extension.extn_id),
            extension.extn_value.as_bytes(),
        ));
    }
    parts.push(Field::leaf(
        "signatureAlgorithm",
        certificate.signature_algorithm.oid.to_string(),
        bytes(certificate.signature_algorithm.to_der()),
    ));
    parts.push(Field::leaf("signature", "", certificate.signature.raw_bytes()));
    parts.extend(statement(der));
    parts
}

/// What a health certificate says about its host; nothing for another certificate.
fn statement(der: &[u8]) -> Option<Field> {
    let statement = HealthCertificate::parse(der).ok()?.statement().ok()?;
    let mut parts = vec![
        Field::leaf("mode", format!("{:?}", statement.mode), []),
        Field::leaf("issuedAt", statement.issued_at.to_string(), []),
    ];
    for verdict in &statement.policies {
        let policy = POLICIES.iter().find(|policy| policy.id == verdict.id);
        let name = policy.map_or_else(|| verdict.id.to_string(), |policy| policy.name.to_owned());
        let value = if verdict.passed { "passed" } else { "failed" };
        parts.push(Field::leaf(name, value, verdict.id.to_bytes_le()));
    }
    let mut field = Field::of("attestation extension", [], parts);
    field.value = "what the host was attested for".to_owned();
    Some(field)
}

/// What a certificate of a result type is for.
pub(super) fn kind_name(code: u64) -> String {
    match CertificateKind::from_code(code) {
        Some(CertificateKind::Encryption) => "VSM identity encryption key certificate".to_owned(),
        Some(CertificateKind::Signing) => "VSM identity signing key certificate".to_owned(),
        Some(CertificateKind::Authority) => "VSM CA intermediate certificate".to_owned(),
        None => format!("unknown result type {code}"),
    }
}
