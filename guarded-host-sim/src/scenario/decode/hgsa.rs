//! The JSON messages of attestation (MS-HGSA 2.2.2).

use base64::{Engine, engine::general_purpose::STANDARD};
use cms::{cert::CertificateChoices, content_info::ContentInfo, signed_data::SignedData};
use hgs_protocol::status::POLICIES;
use serde_json::Value;
use uuid::Uuid;
use x509_cert::der::{Decode, Encode};

use super::{Decoded, Field, certificate, parts_of, raw, rtpm};

/// A request or reply.
pub(super) fn message(body: &[u8]) -> Decoded {
    let Ok(Value::Object(members)) = serde_json::from_slice::<Value>(body) else {
        return raw(body);
    };
    let kind = members
        .get("__type")
        .and_then(Value::as_str)
        .unwrap_or("AttestationRequest");
    let kind = kind.split(':').next().unwrap_or_default().to_owned();
    // In the order of the wire, which matters: a reader wants `__type` first.
    let text = String::from_utf8_lossy(body);
    let mut members: Vec<_> = members.iter().collect();
    members.sort_by_key(|(name, _)| text.find(&format!("\"{name}\"")));
    Decoded {
        section: section(&kind),
        fields: members.iter().map(|(name, value)| member(name, value)).collect(),
        kind,
    }
}

/// The array of numbers that public clients read (MS-HGSA 3.1.5.5).
pub(super) fn signing_certificates(body: &[u8]) -> Decoded {
    let Ok(der) = serde_json::from_slice::<Vec<u8>>(body) else {
        return raw(body);
    };
    Decoded {
        kind: "signingCertificates".to_owned(),
        section: "MS-HGSA 3.1.5.5",
        fields: match certificates(&der) {
            Ok(fields) => vec![Field::of("SignedData", der, fields)],
            Err(error) => vec![Field::unread("SignedData", &der, error)],
        },
    }
}

fn certificates(der: &[u8]) -> Result<Vec<Field>, x509_cert::der::Error> {
    let signed: SignedData = ContentInfo::from_der(der)?.content.decode_as()?;
    let mut fields = Vec::new();
    for choice in signed.certificates.iter().flat_map(|set| set.0.iter()) {
        if let CertificateChoices::Certificate(found) = choice {
            fields.push(certificate::field("certificate", &found.to_der()?));
        }
    }
    Ok(fields)
}

fn member(name: &str, value: &Value) -> Field {
    let text = value.to_string();
    match (name, binary(value)) {
        ("__type", _) => Field::leaf(name, value.as_str().unwrap_or_default(), text),
        ("SessionId", Some(bytes)) => match <[u8; 16]>::try_from(bytes.as_slice()) {
            Ok(guid) => Field::leaf(name, Uuid::from_bytes_le(guid).to_string(), guid),
            Err(_) => Field::leaf(name, "", bytes),
        },
        ("RtpmActiveContext" | "RtpmNewContext", Some(bytes)) => rtpm::context(name, &bytes),
        ("RtpmPublicEndorsementKey", Some(bytes)) => key(name, &bytes),
        ("ProvidedContent", _) => tuples(name, value, provided),
        ("Content", _) => tuples(name, value, |code, bytes| {
            certificate::field(certificate::kind_name(code), bytes)
        }),
        ("RequestedContent", _) if value.as_array().is_some_and(|items| items.iter().any(Value::is_object)) => {
            tuples(name, value, |code, bytes| key(&certificate::kind_name(code), bytes))
        }
        ("RequestedContent", _) => {
            let codes = value.as_array().into_iter().flatten().filter_map(Value::as_u64);
            let names: Vec<String> = codes
                .map(|code| format!("{code} ({})", certificate::kind_name(code)))
                .collect();
            Field::leaf(name, names.join(", "), text)
        }
        ("OperationMode" | "ExpectedOperationMode", _) => {
            let mode = match value.as_u64() {
                Some(1) => "TPM",
                Some(2) => "AD",
                Some(3) => "HostKey",
                _ => "unknown",
            };
            Field::leaf(name, format!("{text} ({mode})"), text)
        }
        ("Reasons", _) => reasons(name, value),
        _ => Field::leaf(name, text.clone(), text),
    }
}

/// Base64, or an array of numbers, as the product's serialiser writes binary members.
fn binary(value: &Value) -> Option<Vec<u8>> {
    match value {
        Value::String(text) => STANDARD.decode(text).ok(),
        _ => None,
    }
}

/// Tuples of a type and bytes (MS-HGSA 2.2.2.8, 2.2.2.9).
fn tuples(name: &str, value: &Value, read: impl Fn(u64, &[u8]) -> Field) -> Field {
    let items = value.as_array().into_iter().flatten();
    let parts = items.map(|item| {
        let code = item.get("m_Item1").and_then(Value::as_u64).unwrap_or_default();
        let bytes = item.get("m_Item2").and_then(binary).unwrap_or_default();
        let mut field = read(code, &bytes);
        field.name = format!("m_Item1 {code}: {}", field.name);
        field
    });
    Field::of(name, [], parts.collect())
}

/// AttestationProvidedContentType (MS-HGSA 2.2.1.2).
fn provided(code: u64, bytes: &[u8]) -> Field {
    match code {
        1 => key("VirtualSecureModeIdentityKey", bytes),
        2 => rtpm::context("RtpmContext", bytes),
        3 => certificate::field("HealthCertificate", bytes),
        4 => certificate::field("EndorsementKeyCertificate", bytes),
        5 => Field::leaf("CaTrustletUserData", "", bytes),
        6 => Field::leaf("CaTrustletVsmReport", "", bytes),
        7 => Field::leaf("CaTrustletReportSignature", "", bytes),
        8 => key("HostKeyPublicKey", bytes),
        9 => Field::leaf("HostKeySignature", "", bytes),
        _ => Field::leaf(format!("unknown content type {code}"), "", bytes),
    }
}

/// An RSA public key blob (BCRYPT_RSAKEY_BLOB); another key is shown as bytes.
fn key(name: &str, bytes: &[u8]) -> Field {
    if !bytes.starts_with(b"RSA1") {
        return Field::leaf(name, "", bytes);
    }
    parts_of(name, bytes, |reader, parts| {
        reader.bytes("Magic", 4, parts)?;
        reader.little("BitLength", 4, parts)?;
        let exponent = reader.little("cbPublicExp", 4, parts)?;
        let modulus = reader.little("cbModulus", 4, parts)?;
        reader.little("cbPrime1", 4, parts)?;
        reader.little("cbPrime2", 4, parts)?;
        reader.bytes("PublicExponent", exponent, parts)?;
        reader.bytes("Modulus", modulus, parts)?;
        Ok(())
    })
}

/// EvaluationLogs (MS-HGSA 2.2.2.13).
fn reasons(name: &str, value: &Value) -> Field {
    let items = value.as_array().into_iter().flatten();
    let parts = items.map(|item| {
        let bytes = item.get("Reason").and_then(binary).unwrap_or_default();
        let id = <[u8; 16]>::try_from(bytes.as_slice()).map(Uuid::from_bytes_le).ok();
        let policy = POLICIES.iter().find(|policy| Some(policy.id) == id);
        let named = policy.map_or("a policy of no known name", |policy| policy.name);
        let result = item.get("Result").map(ToString::to_string).unwrap_or_default();
        let id = id.map(|id| id.to_string()).unwrap_or_default();
        Field::leaf("EvaluationLog", format!("Result {result}, Reason {named} {id}"), bytes)
    });
    Field::of(name, [], parts.collect())
}

fn section(kind: &str) -> &'static str {
    match kind {
        "AttestationRequest" => "MS-HGSA 2.2.2.1",
        "TpmRequestInitial" => "MS-HGSA 2.2.2.3",
        "TpmRequestContinue" => "MS-HGSA 2.2.2.4",
        "ADRequest" => "MS-HGSA 2.2.2.5",
        "TpmReplyContinue" => "MS-HGSA 2.2.2.6",
        "HealthCertificateReply" => "MS-HGSA 2.2.2.7",
        "ServiceInfoReply" => "MS-HGSA 2.2.2.10",
        "ErrorReply" => "MS-HGSA 2.2.2.11",
        "OperationModeErrorReply" => "MS-HGSA 2.2.2.14",
        "PayloadErrorReply" => "MS-HGSA 2.2.2.15",
        "PolicyEvaluationErrorReply" => "MS-HGSA 2.2.2.16",
        "RtpmErrorReply" => "MS-HGSA 2.2.2.19",
        "TcgLogValidationErrorReply" => "MS-HGSA 2.2.2.20",
        "UnauthorizedErrorReply" => "MS-HGSA 2.2.2.21",
        "UnavailableErrorReply" => "MS-HGSA 2.2.2.22",
        "VirtualSecureModeErrorReply" => "MS-HGSA 2.2.2.23",
        "VsmReportValidationErrorReply" => "MS-HGSA 2.2.2.24",
        _ => "",
    }
}
