//! The protector document: reading in schema order, writing, and the bytes that signatures cover
//! (MS-KPS 2.2.2.3, 2.2.2.7, 2.2.2.8, 6.1). Checks form only; `chain` decides who signed it.

use std::fmt;

use super::{
    MAX_PROTECTOR, MAX_WRAPPINGS, NS_PROTECTOR,
    guardian::Guardian,
    suite::{CONCAT_KDF, HMAC_SHA256, KeyTransport, MGF1_SHA256, SHA256, SignatureAlgorithm},
};
use crate::{
    crypto::{hmac_sha256, sha256},
    secret::{Secret32, TransportKey},
    xml::{Children, NS_DSIG, NS_XENC11, Node, Xml, XmlError, base64_text, escape_attribute},
};

/// Why a protector as a whole was refused (InvalidProtectorException of the protocol).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtectorError {
    /// The bytes are not a document of the schema.
    #[error("the key protector is not a valid document: {0}")]
    Document(#[from] XmlError),
    /// More than [`MAX_WRAPPINGS`].
    #[error("the key protector has more than {MAX_WRAPPINGS} wrappings")]
    TooManyWrappings,
    /// An algorithm identifier that no suite has, or parameters that differ from the suite's.
    #[error("the key protector uses an unknown algorithm or unknown parameters: {0}")]
    Algorithm(String),
    /// GuardianSignature names a wrapping that is not there.
    #[error("the guardian signature names wrapping {0}, which is not in the key protector")]
    UnknownSigner(WrappingId),
    /// The guardian signature does not verify.
    #[error("the guardian signature over the wrappings is not valid")]
    GuardianSignature,
    /// No transport key under which the TransportKeySignature holds came out. Says no more, so
    /// that the answer does not tell which step failed.
    #[error("the transport key does not confirm the key protector")]
    TransportKey,
    /// The cryptographic library refused to sign or encrypt.
    #[error("the key protector could not be signed or encrypted")]
    Refused,
}

/// Id of a wrapping within its protector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WrappingId(pub u32);

impl fmt::Display for WrappingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A p:Signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Signature {
    pub(super) algorithm: SignatureAlgorithm,
    pub(super) value: Vec<u8>,
}

/// One wrapping: a guardian's certificates, who vouches for them, and the transport key for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrapping {
    pub(super) id: WrappingId,
    pub(super) parent: WrappingId,
    pub(super) signing_certificate: Vec<u8>,
    pub(super) signing_signature: Signature,
    pub(super) encryption_certificate: Vec<u8>,
    pub(super) encryption_signature: Signature,
    pub(super) transport: KeyTransport,
    pub(super) transport_key: Vec<u8>,
}

impl Wrapping {
    pub(super) fn view(&self) -> WrappingView<'_> {
        WrappingView {
            id: self.id,
            parent: self.parent,
            signing_certificate: &self.signing_certificate,
            encryption_certificate: &self.encryption_certificate,
            transport: self.transport,
        }
    }
}

/// What a person or a log may be told about a wrapping.
#[derive(Clone, Copy, Debug)]
pub struct WrappingView<'p> {
    /// Its Id.
    pub id: WrappingId,
    /// The wrapping whose guardian vouches for it; itself for the owner.
    pub parent: WrappingId,
    /// DER of its signing certificate, unchecked.
    pub signing_certificate: &'p [u8],
    /// DER of its encryption certificate, unchecked.
    pub encryption_certificate: &'p [u8],
    /// How the transport key's content key was encrypted to it.
    pub transport: KeyTransport,
}

/// A key protector as its document says: read, nothing in it verified.
#[derive(Clone, Debug)]
pub struct KeyProtector {
    pub(super) max_offline_unwraps: u32,
    pub(super) wrappings: Vec<Wrapping>,
    pub(super) transport_key_mac: Vec<u8>,
    pub(super) signer: WrappingId,
    pub(super) guardian_signature: Signature,
    /// Exclusive canonical form of the Wrappings element as it stood in the document.
    pub(super) signed: Vec<u8>,
}

impl KeyProtector {
    /// Reads a protector document of at most [`MAX_PROTECTOR`] bytes. OAEP with SHA-1 counts as an unknown algorithm.
    pub fn parse(bytes: &[u8]) -> Result<KeyProtector, ProtectorError> {
        let protector = KeyProtector::parse_allowing_sha1(bytes)?;
        match protector
            .wrappings
            .iter()
            .find(|w| w.transport == KeyTransport::RsaOaepSha1)
        {
            None => Ok(protector),
            Some(old) => Err(unknown(old.transport.uri())),
        }
    }

    /// As [`KeyProtector::parse`], for a service whose administrator allows OAEP with SHA-1.
    pub fn parse_allowing_sha1(bytes: &[u8]) -> Result<KeyProtector, ProtectorError> {
        let xml = Xml::parse(bytes, MAX_PROTECTOR)?;
        let root = xml.root().expect(NS_PROTECTOR, "Protector")?;
        root.only_attributes(&["MaxOfflineUnwraps"])?;
        let max_offline_unwraps = root.u32_attribute("MaxOfflineUnwraps")?.unwrap_or(0);
        let mut children = root.children()?;

        let list = children.required(NS_PROTECTOR, "Wrappings")?;
        list.only_attributes(&[])?;
        let mut wrappings = Vec::new();
        for node in list.children()? {
            if wrappings.len() == MAX_WRAPPINGS {
                return Err(ProtectorError::TooManyWrappings);
            }
            wrappings.push(read_wrapping(node.expect(NS_PROTECTOR, "Wrapping")?)?);
        }
        if wrappings.is_empty() {
            list.children()?.required(NS_PROTECTOR, "Wrapping")?;
        }

        let transport_key_signature = children.required(NS_PROTECTOR, "TransportKeySignature")?;
        let transport_key_mac = read_transport_key_signature(transport_key_signature)?;

        let guardian = children.required(NS_PROTECTOR, "GuardianSignature")?;
        guardian.only_attributes(&["WrappingId"])?;
        guardian.required_attribute("WrappingId")?;
        let signer = WrappingId(guardian.u32_attribute("WrappingId")?.unwrap_or_default());
        let guardian_signature = read_only_signature(guardian)?;
        children.end()?;

        Ok(KeyProtector {
            max_offline_unwraps,
            wrappings,
            transport_key_mac,
            signer,
            guardian_signature,
            signed: list.canonical()?,
        })
    }

    /// The protector as a whole document, declaration included. The signed bytes stand in it as they
    /// were read, so every signature still holds.
    pub fn to_xml(&self) -> Vec<u8> {
        let mut out = format!(
            "{DECLARATION}<Protector xmlns=\"{NS_PROTECTOR}\" MaxOfflineUnwraps=\"{}\">",
            self.max_offline_unwraps
        )
        .into_bytes();
        // A canonical apex declares its namespace; ours need not say it twice.
        match self.signed.strip_prefix(APEX.as_bytes()) {
            Some(rest) => {
                out.extend_from_slice(b"<Wrappings>");
                out.extend_from_slice(rest);
            }
            None => out.extend_from_slice(&self.signed),
        }
        let mut rest = String::new();
        self.write_signatures(&mut rest);
        out.extend_from_slice(rest.as_bytes());
        out
    }

    fn write_signatures(&self, out: &mut String) {
        out.push_str(&format!(
            "<TransportKeySignature><KeyDerivationMethod Algorithm=\"{CONCAT_KDF}\"><Parameters>\
             <xenc11:ConcatKDFParams xmlns:xenc11=\"{NS_XENC11}\" AlgorithmID=\"{}\">\
             <ds:DigestMethod xmlns:ds=\"{NS_DSIG}\" Algorithm=\"{SHA256}\"></ds:DigestMethod>\
             </xenc11:ConcatKDFParams></Parameters></KeyDerivationMethod>\
             <Signature Algorithm=\"{HMAC_SHA256}\"><SignatureValue>{}</SignatureValue></Signature></TransportKeySignature>",
            algorithm_id(),
            base64_text(&self.transport_key_mac),
        ));
        out.push_str(&format!("<GuardianSignature WrappingId=\"{}\">", self.signer));
        write_signature(out, &self.guardian_signature);
        out.push_str("</GuardianSignature></Protector>");
    }

    /// How often the owner lets a host unwrap without contact. Unsigned: an upper wish only.
    pub fn max_offline_unwraps(&self) -> u32 {
        self.max_offline_unwraps
    }

    /// The same protector with another MaxOfflineUnwraps; no signature covers the value.
    pub fn with_max_offline_unwraps(mut self, max_offline_unwraps: u32) -> KeyProtector {
        self.max_offline_unwraps = max_offline_unwraps;
        self
    }

    /// The wrapping that GuardianSignature names.
    pub fn signer(&self) -> WrappingId {
        self.signer
    }

    /// The wrappings in document order, for display.
    pub fn wrappings(&self) -> impl Iterator<Item = WrappingView<'_>> {
        self.wrappings.iter().map(Wrapping::view)
    }

    /// The wrapping with both certificates of `guardian`.
    pub fn wrapping_of(&self, guardian: &Guardian) -> Option<WrappingId> {
        let same_certificates = |w: &&Wrapping| {
            w.signing_certificate == guardian.signing().der() && w.encryption_certificate == guardian.encryption().der()
        };
        self.wrappings.iter().find(same_certificates).map(|w| w.id)
    }

    /// SHA-256 of the signed bytes: names this very set of wrappings in logs and audit rows.
    pub fn digest(&self) -> [u8; 32] {
        sha256(&self.signed)
    }

    pub(super) fn wrapping(&self, id: WrappingId) -> Option<&Wrapping> {
        self.wrappings.iter().find(|w| w.id == id)
    }
}

/// The HMAC of a TransportKeySignature over `signed`.
pub(super) fn transport_key_mac(key: &TransportKey, signed: &[u8]) -> [u8; 32] {
    hmac_sha256(mac_key(key).expose(), &[signed])
}

/// One block of ConcatKDF with SHA-256 over the transport key (protocol reference 5.4).
fn mac_key(key: &TransportKey) -> Secret32 {
    let mut input = zeroize::Zeroizing::new(Vec::with_capacity(45));
    input.extend_from_slice(&[0, 0, 0, 1]);
    input.extend_from_slice(key.expose_transport_key().expose());
    input.extend_from_slice(MAC_KEY_INFO);
    Secret32::new(sha256(&input))
}

/// `Wrappings` as it is signed: written in canonical form, the default namespace declared at the
/// apex.
pub(super) fn signed_form(wrappings: &[Wrapping]) -> Vec<u8> {
    let mut text = String::from(APEX);
    let out = &mut text;
    for wrapping in wrappings {
        out.push_str(&format!(
            "<Wrapping><Id>{}</Id><SigningCertificate>{}</SigningCertificate>\
             <SigningCertificateSignature ParentWrappingId=\"{}\">",
            wrapping.id,
            base64_text(&wrapping.signing_certificate),
            wrapping.parent
        ));
        write_signature(out, &wrapping.signing_signature);
        out.push_str(&format!(
            "</SigningCertificateSignature><EncryptionCertificate>{}</EncryptionCertificate>\
             <EncryptionCertificateSignature>",
            base64_text(&wrapping.encryption_certificate)
        ));
        write_signature(out, &wrapping.encryption_signature);
        out.push_str(&format!(
            "</EncryptionCertificateSignature><TransportKey><EncryptedData Algorithm=\"{}\">{}\
             <CipherValue>{}</CipherValue></EncryptedData></TransportKey></Wrapping>",
            escape_attribute(wrapping.transport.uri()),
            wrapping.transport.parameters(),
            base64_text(&wrapping.transport_key)
        ));
    }
    out.push_str("</Wrappings>");
    text.into_bytes()
}

fn write_signature(out: &mut String, signature: &Signature) {
    write_signature_named(out, "Signature", signature);
}

/// An element of the type p:Signature under that name.
pub(super) fn write_signature_named(out: &mut String, name: &str, signature: &Signature) {
    out.push_str(&format!(
        "<{name} Algorithm=\"{}\"><SignatureValue>{}</SignatureValue></{name}>",
        escape_attribute(signature.algorithm.uri()),
        base64_text(&signature.value)
    ));
}

fn read_wrapping(node: Node<'_>) -> Result<Wrapping, ProtectorError> {
    node.only_attributes(&[])?;
    let mut children = node.children()?;
    let id = WrappingId(children.required(NS_PROTECTOR, "Id")?.u32()?);
    let signing_certificate = children.required(NS_PROTECTOR, "SigningCertificate")?.base64()?;
    let signature = children.required(NS_PROTECTOR, "SigningCertificateSignature")?;
    signature.only_attributes(&["ParentWrappingId"])?;
    signature.required_attribute("ParentWrappingId")?;
    let parent = WrappingId(signature.u32_attribute("ParentWrappingId")?.unwrap_or_default());
    let signing_signature = read_only_signature(signature)?;
    let encryption_certificate = children.required(NS_PROTECTOR, "EncryptionCertificate")?.base64()?;
    let signature = children.required(NS_PROTECTOR, "EncryptionCertificateSignature")?;
    signature.only_attributes(&[])?;
    let encryption_signature = read_only_signature(signature)?;
    let holder = children.required(NS_PROTECTOR, "TransportKey")?;
    holder.only_attributes(&[])?;
    let mut inner = holder.children()?;
    let (transport, transport_key) = read_encrypted_data(inner.required(NS_PROTECTOR, "EncryptedData")?)?;
    inner.end()?;
    children.end()?;
    Ok(Wrapping {
        id,
        parent,
        signing_certificate,
        signing_signature,
        encryption_certificate,
        encryption_signature,
        transport,
        transport_key,
    })
}

/// The one p:Signature child of `node`.
pub(super) fn read_only_signature(node: Node<'_>) -> Result<Signature, ProtectorError> {
    let mut children = node.children()?;
    let signature = read_signature(children.required(NS_PROTECTOR, "Signature")?)?;
    children.end()?;
    Ok(signature)
}

/// An element of the type p:Signature, whatever its name.
pub(super) fn read_signature(node: Node<'_>) -> Result<Signature, ProtectorError> {
    let uri = node.required_attribute("Algorithm")?;
    let algorithm = SignatureAlgorithm::from_uri(uri).ok_or_else(|| unknown(uri))?;
    let value = read_signature_value(node)?;
    Ok(Signature { algorithm, value })
}

/// SignatureValue of a p:Signature whose algorithm takes no parameters.
fn read_signature_value(signature: Node<'_>) -> Result<Vec<u8>, ProtectorError> {
    signature.only_attributes(&["Algorithm"])?;
    let mut children = signature.children()?;
    if let Some(mut parameters) = read_parameters(&mut children)?
        && let Some(other) = parameters.next()
    {
        return Err(unknown(other.name()));
    }
    let value = children.required(NS_PROTECTOR, "SignatureValue")?.base64()?;
    children.end()?;
    Ok(value)
}

fn read_encrypted_data(node: Node<'_>) -> Result<(KeyTransport, Vec<u8>), ProtectorError> {
    node.only_attributes(&["Algorithm"])?;
    let uri = node.required_attribute("Algorithm")?;
    let transport = KeyTransport::from_uri(uri).ok_or_else(|| unknown(uri))?;
    let mut children = node.children()?;
    if let Some(mut parameters) = read_parameters(&mut children)? {
        // Each may be left out, and then means what the suite says.
        let known: &[(&str, &str, &str)] = match transport {
            KeyTransport::RsaOaep => &[(NS_DSIG, "DigestMethod", SHA256), (NS_XENC11, "MGF", MGF1_SHA256)],
            KeyTransport::RsaOaepSha1 => &[(NS_DSIG, "DigestMethod", SHA1)],
            KeyTransport::EcdhEs => &[],
        };
        for (namespace, name, algorithm) in known {
            if let Some(method) = parameters.optional(namespace, name) {
                expect_only_algorithm(method, algorithm)?;
            }
        }
        if let Some(other) = parameters.next() {
            return Err(unknown(other.name()));
        }
    }
    let value = children.required(NS_PROTECTOR, "CipherValue")?.base64()?;
    children.end()?;
    Ok((transport, value))
}

fn read_transport_key_signature(node: Node<'_>) -> Result<Vec<u8>, ProtectorError> {
    node.only_attributes(&[])?;
    let mut children = node.children()?;
    let derivation = children.required(NS_PROTECTOR, "KeyDerivationMethod")?;
    expect_algorithm(derivation, CONCAT_KDF)?;
    let mut inner = derivation.children()?;
    if let Some(mut parameters) = read_parameters(&mut inner)? {
        if let Some(concat) = parameters.optional(NS_XENC11, "ConcatKDFParams") {
            concat.only_attributes(&["AlgorithmID"])?;
            let id = concat.required_attribute("AlgorithmID")?;
            if !id.eq_ignore_ascii_case(&algorithm_id()) {
                return Err(unknown(id));
            }
            let mut methods = concat.children()?;
            if let Some(method) = methods.optional(NS_DSIG, "DigestMethod") {
                expect_only_algorithm(method, SHA256)?;
            }
            methods.end()?;
        }
        if let Some(other) = parameters.next() {
            return Err(unknown(other.name()));
        }
    }
    inner.end()?;
    let signature = children.required(NS_PROTECTOR, "Signature")?;
    let uri = signature.required_attribute("Algorithm")?;
    if uri != HMAC_SHA256 {
        return Err(unknown(uri));
    }
    let value = read_signature_value(signature)?;
    if value.len() != 32 {
        return Err(ProtectorError::Document(XmlError::Value {
            element: "TransportKeySignature".to_owned(),
            expected: "32 bytes",
        }));
    }
    children.end()?;
    Ok(value)
}

fn read_parameters<'d>(children: &mut Children<'d>) -> Result<Option<Children<'d>>, ProtectorError> {
    match children.optional(NS_PROTECTOR, "Parameters") {
        None => Ok(None),
        Some(parameters) => {
            parameters.only_attributes(&[])?;
            Ok(Some(parameters.children()?))
        }
    }
}

fn expect_algorithm(node: Node<'_>, algorithm: &str) -> Result<(), ProtectorError> {
    node.only_attributes(&["Algorithm"])?;
    match node.required_attribute("Algorithm")? {
        uri if uri == algorithm => Ok(()),
        other => Err(unknown(other)),
    }
}

/// As [`expect_algorithm`], of an element without content.
fn expect_only_algorithm(node: Node<'_>, algorithm: &str) -> Result<(), ProtectorError> {
    expect_algorithm(node, algorithm)?;
    Ok(node.children()?.end()?)
}

fn unknown(what: &str) -> ProtectorError {
    ProtectorError::Algorithm(what.chars().take(80).collect())
}

/// AlgorithmID of ConcatKDFParams: no padding bits (the first octet), then the info bytes.
fn algorithm_id() -> String {
    format!("00{}", hex::encode_upper(MAC_KEY_INFO))
}

const SHA1: &str = "http://www.w3.org/2000/09/xmldsig#sha1";
const MAC_KEY_INFO: &[u8] = b"HGS-TKSIG";
/// How the canonical form of a Wrappings element of ours begins.
const APEX: &str = "<Wrappings xmlns=\"http://schemas.microsoft.com/kps/2014/07\">";
pub(super) const DECLARATION: &str = "<?xml version=\"1.0\" encoding=\"utf-8\"?>";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worked_example_of_the_key_derivation_holds() {
        let key = TransportKey::new(Secret32::new(std::array::from_fn(|i| i as u8)));
        assert_eq!(
            hex::encode(mac_key(&key).expose()),
            "4988379ff4e02c0be2844f983f524b8f0d87d9d9a8b5c99ba49ececb62e8b5ae"
        );
    }
}
