//! The XML documents of key protection (MS-KPS 2.2.2, 6.1, 6.4): the element names are the specification's own.

use base64::{Engine, engine::general_purpose::STANDARD};
use hgs_protocol::xml::{Node, Xml};

use super::{Decoded, Field, certificate, raw};

/// A request, response, error or metadata document.
pub(super) fn message(body: &[u8]) -> Decoded {
    match Xml::parse(body, LARGEST) {
        Ok(xml) => Decoded {
            kind: xml.root().name().to_owned(),
            section: section(xml.root().name()),
            fields: children(xml.root()),
        },
        Err(_) => raw(body),
    }
}

fn children(node: Node<'_>) -> Vec<Field> {
    node.children()
        .map(|children| children.map(element).collect())
        .unwrap_or_default()
}

fn element(node: Node<'_>) -> Field {
    let name = named(node);
    let below = children(node);
    if !below.is_empty() {
        return Field::of(name, [], below);
    }
    let text = node.text().unwrap_or_default();
    let compact: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    match (node.name(), STANDARD.decode(&compact)) {
        ("IngressProtector" | "EgressProtector", Ok(document)) => protector(name, &document),
        ("HealthCertificate" | "SigningCertificate" | "EncryptionCertificate" | "X509Certificate", Ok(der)) => {
            certificate::field(name, &der)
        }
        (
            "EncryptedTransferKey"
            | "EncryptedWrappingKey"
            | "EncryptedTransportKeys"
            | "CipherValue"
            | "SignatureValue"
            | "DigestValue",
            Ok(bytes),
        ) => Field::leaf(name, "", bytes),
        _ => Field::leaf(name, text.clone(), text),
    }
}

/// A protector is a whole document of its own.
fn protector(name: String, document: &[u8]) -> Field {
    match Xml::parse(document, LARGEST) {
        Ok(xml) => {
            let mut field = Field::of(name, document, vec![element(xml.root())]);
            field.value = "a key protector, a document of its own".to_owned();
            field
        }
        Err(error) => Field::unread(name, document, error),
    }
}

/// The element's name with its attributes.
fn named(node: Node<'_>) -> String {
    let attributes = ATTRIBUTES
        .iter()
        .filter_map(|name| Some(format!(" {name}=\"{}\"", node.attribute(name)?)));
    format!("{}{}", node.name(), attributes.collect::<String>())
}

fn section(name: &str) -> &'static str {
    match name {
        "RollTransportKeyRequest" => "MS-KPS 2.2.2.1",
        "RollTransportKeyResponse" => "MS-KPS 2.2.2.2",
        "Protector" => "MS-KPS 2.2.2.3",
        "Error" => "MS-KPS 2.2.2.5",
        "Metadata" => "MS-KPS 6.4",
        _ => "",
    }
}

const ATTRIBUTES: [&str; 8] = [
    "MaxOfflineUnwraps",
    "ParentWrappingId",
    "WrappingId",
    "Algorithm",
    "Version",
    "ID",
    "Id",
    "URI",
];
const LARGEST: usize = 16 << 20;
