//! The metadata document of a key protection service (MS-KPS 6.4, 2.2.1.2): its guardian's public
//! certificates, signed. Built by the service, imported by an owner.
//!
//! The signature is an enveloped XML signature of one exact shape; anything else is refused. It
//! proves that the document is whole, not whose it is: trust comes from thumbprints that a person
//! compares or from a pinned certificate, never from KeyInfo.

use super::{
    NS_PROTECTOR,
    document::{DECLARATION, ProtectorError, Signature, read_signature, write_signature_named},
    guardian::{Certificate, Guardian, GuardianError, GuardianKeys, KeyPair},
    suite::{SHA256, SignatureAlgorithm},
};
use crate::{
    crypto::{same, sha256},
    xml::{EXCLUSIVE_C14N, NS_DSIG, Node, Xml, XmlError, base64_text, escape_attribute},
};

/// Why a metadata document was not made or not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// The service has no primary encryption certificate.
    #[error("Primary Encryption Certificate not found")]
    NoEncryptionCertificate,
    /// The service has no primary signing certificate.
    #[error("Primary Signing Certificate not found")]
    NoSigningCertificate,
    /// The bytes are not a document of the schema.
    #[error("the metadata is not a valid document: {0}")]
    Document(#[from] XmlError),
    /// One of the signatures inside GuardianInformation is not of a known form.
    #[error("the metadata holds an unreadable signature: {0}")]
    Signature(#[source] ProtectorError),
    /// A certificate does not parse, or the two do not belong together.
    #[error("the metadata's guardian: {0}")]
    Guardian(#[from] GuardianError),
    /// The signing certificate did not sign itself.
    #[error("the signing certificate's signature of itself is not valid")]
    SelfSignature,
    /// The enveloped signature has another shape than the one allowed, or does not cover the whole.
    #[error("the metadata's signature does not have the one allowed form: {0}")]
    EnvelopedForm(&'static str),
    /// Digest or signature value is wrong: the document was changed.
    #[error("the metadata's signature is not valid: the document was changed")]
    EnvelopedSignature,
    /// The document is signed by another certificate than the one that was pinned.
    #[error("the metadata is signed by another certificate than the expected one")]
    Signer,
    /// The library refused to sign.
    #[error("the metadata could not be signed")]
    Refused,
}

/// A metadata document that is whole. Whose it is, a person decides by the thumbprints.
#[derive(Clone, Debug)]
pub struct Metadata {
    guardian: Guardian,
    other_signing: Vec<Certificate>,
    signer: Certificate,
}

impl Metadata {
    /// The document that `keys` serve, signed by `communications` or else by the primary signing
    /// certificate.
    pub fn build(keys: &GuardianKeys, communications: Option<&KeyPair>) -> Result<Vec<u8>, MetadataError> {
        let encryption = keys
            .encryption()
            .first()
            .ok_or(MetadataError::NoEncryptionCertificate)?;
        let (signing, others) = keys
            .signing()
            .split_first()
            .ok_or(MetadataError::NoSigningCertificate)?;
        let body = guardian_information(signing, encryption, others)?;
        let unsigned = format!("{}{body}</Metadata>", opening());
        // Written in canonical form, so the digest is that of the text. Parsed back and
        // canonicalised all the same: the reader will.
        let digest = sha256(&Xml::parse(unsigned.as_bytes(), MAX_METADATA)?.root().canonical()?);
        let signer = communications.unwrap_or(signing);
        let signed_info = signed_info(signer.signature_algorithm(), &digest);
        let value = signer
            .sign(signed_info.as_bytes())
            .map_err(|_| MetadataError::Refused)?;
        // Within ds:Signature the namespace is declared once, above SignedInfo.
        let signed_info = signed_info.replacen(&format!(" xmlns:ds=\"{NS_DSIG}\""), "", 1);
        Ok(format!(
            "{DECLARATION}{}{body}<ds:Signature xmlns:ds=\"{NS_DSIG}\">{signed_info}\
             <ds:SignatureValue>{}</ds:SignatureValue><ds:KeyInfo><ds:X509Data><ds:X509Certificate>{}\
             </ds:X509Certificate></ds:X509Data></ds:KeyInfo></ds:Signature></Metadata>",
            opening(),
            base64_text(&value),
            base64_text(signer.certificate().der()),
        )
        .into_bytes())
    }

    /// Reads and checks a document: the enveloped signature by the certificate in it, the guardian's
    /// two certificates and their signatures. `name` is what the guardian is called here.
    pub fn import(bytes: &[u8], name: &str) -> Result<Metadata, MetadataError> {
        let xml = Xml::parse(bytes, MAX_METADATA)?;
        let root = xml.root().expect(NS_PROTECTOR, "Metadata")?;
        root.u32_attribute("Version")?
            .ok_or(MetadataError::EnvelopedForm("no Version"))?;
        let mut children = root.children()?;
        let information = children.required(NS_PROTECTOR, "GuardianInformation")?;
        let signature = children.required(NS_DSIG, "Signature")?;
        // Further children are any; they are signed with the rest.
        let signer = check_enveloped(root, signature)?;
        let (guardian, other_signing) = read_guardian_information(information, name)?;
        Ok(Metadata {
            guardian,
            other_signing,
            signer,
        })
    }

    /// As [`Metadata::import`], from the one signer that the caller trusts already.
    pub fn import_pinned(bytes: &[u8], name: &str, signer: &Certificate) -> Result<Metadata, MetadataError> {
        let metadata = Metadata::import(bytes, name)?;
        if metadata.signer != *signer {
            return Err(MetadataError::Signer);
        }
        Ok(metadata)
    }

    /// The guardian that an owner may authorise.
    pub fn guardian(&self) -> &Guardian {
        &self.guardian
    }

    /// Signing certificates that are not primary but may still sign egress protectors.
    pub fn other_signing(&self) -> &[Certificate] {
        &self.other_signing
    }

    /// The certificate that signed the document.
    pub fn signer(&self) -> &Certificate {
        &self.signer
    }
}

impl Guardian {
    /// The guardian of a metadata document. Compare `signing().thumbprint()` and
    /// `encryption().thumbprint()` with what the service's administrator says before using it.
    pub fn from_metadata(bytes: &[u8], name: &str) -> Result<Guardian, MetadataError> {
        Ok(Metadata::import(bytes, name)?.guardian)
    }
}

fn opening() -> String {
    format!("<Metadata xmlns=\"{NS_PROTECTOR}\" ID=\"{ID}\" Version=\"2\">")
}

fn guardian_information(signing: &KeyPair, encryption: &KeyPair, others: &[KeyPair]) -> Result<String, MetadataError> {
    let mut out = format!(
        "<GuardianInformation><Version>2</Version><EncryptionCertificate>{}</EncryptionCertificate>\
         <SigningCertificate>{}</SigningCertificate>",
        base64_text(encryption.certificate().der()),
        base64_text(signing.certificate().der()),
    );
    for (name, certificate) in [
        ("EncryptionCertificateSignature", encryption.certificate()),
        ("SigningCertificateSelfSignature", signing.certificate()),
    ] {
        let signature = Signature {
            algorithm: signing.signature_algorithm(),
            value: signing.sign(certificate.der()).map_err(|_| MetadataError::Refused)?,
        };
        // The element is the signature itself (MS-KPS 6.4), unlike those of a wrapping, which hold one.
        write_signature_named(&mut out, name, &signature);
    }
    if !others.is_empty() {
        out.push_str("<OtherSigningCertificates>");
        for pair in others {
            let text = base64_text(pair.certificate().der());
            out.push_str(&format!("<Certificate>{text}</Certificate>"));
        }
        out.push_str("</OtherSigningCertificates>");
    }
    out.push_str("</GuardianInformation>");
    Ok(out)
}

fn read_guardian_information(node: Node<'_>, name: &str) -> Result<(Guardian, Vec<Certificate>), MetadataError> {
    node.only_attributes(&[])?;
    let mut children = node.children()?;
    children.required(NS_PROTECTOR, "Version")?.u32()?;
    let encryption = Certificate::parse(&children.required(NS_PROTECTOR, "EncryptionCertificate")?.base64()?)?;
    let signing = Certificate::parse(&children.required(NS_PROTECTOR, "SigningCertificate")?.base64()?)?;
    let mut signature = |name| -> Result<Signature, MetadataError> {
        let node = children.required(NS_PROTECTOR, name)?;
        read_signature(node).map_err(MetadataError::Signature)
    };
    let over_encryption = signature("EncryptionCertificateSignature")?;
    let own = signature("SigningCertificateSelfSignature")?;
    let mut others = Vec::new();
    if let Some(list) = children.optional(NS_PROTECTOR, "OtherSigningCertificates") {
        list.only_attributes(&[])?;
        for node in list.children()? {
            if others.len() == MAX_OTHER {
                return Err(MetadataError::EnvelopedForm("too many other signing certificates"));
            }
            others.push(Certificate::parse(
                &node.expect(NS_PROTECTOR, "Certificate")?.base64()?,
            )?);
        }
    }
    children.end()?;
    if !signing.public_key().verify(own.algorithm, signing.der(), &own.value) {
        return Err(MetadataError::SelfSignature);
    }
    let guardian = Guardian::new(
        name,
        signing,
        encryption,
        over_encryption.algorithm,
        over_encryption.value,
    )?;
    Ok((guardian, others))
}

/// SignedInfo in canonical form, as it is signed.
fn signed_info(algorithm: SignatureAlgorithm, digest: &[u8; 32]) -> String {
    format!(
        "<ds:SignedInfo xmlns:ds=\"{NS_DSIG}\">\
         <ds:CanonicalizationMethod Algorithm=\"{EXCLUSIVE_C14N}\"></ds:CanonicalizationMethod>\
         <ds:SignatureMethod Algorithm=\"{}\"></ds:SignatureMethod><ds:Reference URI=\"#{ID}\"><ds:Transforms>\
         <ds:Transform Algorithm=\"{ENVELOPED}\"></ds:Transform>\
         <ds:Transform Algorithm=\"{EXCLUSIVE_C14N}\"></ds:Transform></ds:Transforms>\
         <ds:DigestMethod Algorithm=\"{SHA256}\"></ds:DigestMethod><ds:DigestValue>{}</ds:DigestValue></ds:Reference>\
         </ds:SignedInfo>",
        escape_attribute(algorithm.uri()),
        base64_text(digest),
    )
}

/// Checks the one allowed form, digest and value; gives the certificate of KeyInfo.
fn check_enveloped(root: Node<'_>, signature: Node<'_>) -> Result<Certificate, MetadataError> {
    let form = MetadataError::EnvelopedForm;
    let mut children = signature.children()?;
    let info = children.required(NS_DSIG, "SignedInfo")?;
    let value = children.required(NS_DSIG, "SignatureValue")?.base64()?;
    let mut holder = children.required(NS_DSIG, "KeyInfo")?.children()?;
    let mut data = holder.required(NS_DSIG, "X509Data")?.children()?;
    let certificate = data.required(NS_DSIG, "X509Certificate")?.base64()?;
    data.end()?;
    holder.end()?;
    children.end()?;

    let mut parts = info.children()?;
    algorithm(parts.required(NS_DSIG, "CanonicalizationMethod")?, EXCLUSIVE_C14N)?;
    let method = parts.required(NS_DSIG, "SignatureMethod")?;
    let method = SignatureAlgorithm::from_uri(method.required_attribute("Algorithm")?)
        .ok_or(form("unknown signature algorithm"))?;
    let reference = parts.required(NS_DSIG, "Reference")?;
    parts.end().map_err(|_| form("more than one reference"))?;
    reference.only_attributes(&["URI"])?;
    // The reference must be to the document element, by an ID that nothing else can bear: `ID`
    // attributes deeper down are refused by the schema, except below `any`.
    let whole = match (reference.attribute("URI"), root.attribute("ID")) {
        (Some(""), _) => true,
        (Some(uri), Some(id)) => uri.strip_prefix('#') == Some(id) && root.count_attribute("ID", id) == 1,
        _ => false,
    };
    if !whole {
        return Err(form("it does not cover the whole document"));
    }
    let mut parts = reference.children()?;
    let mut transforms = parts.required(NS_DSIG, "Transforms")?.children()?;
    algorithm(transforms.required(NS_DSIG, "Transform")?, ENVELOPED)?;
    algorithm(transforms.required(NS_DSIG, "Transform")?, EXCLUSIVE_C14N)?;
    transforms.end().map_err(|_| form("more than two transforms"))?;
    algorithm(parts.required(NS_DSIG, "DigestMethod")?, SHA256)?;
    let digest = parts.required(NS_DSIG, "DigestValue")?.base64()?;
    parts.end()?;

    if !same(&sha256(&root.canonical_without(signature)?), &digest) {
        return Err(MetadataError::EnvelopedSignature);
    }
    let signer = Certificate::parse(&certificate)?;
    if !signer.public_key().verify(method, &info.canonical()?, &value) {
        return Err(MetadataError::EnvelopedSignature);
    }
    Ok(signer)
}

/// An element whose only content is that Algorithm.
fn algorithm(node: Node<'_>, expected: &str) -> Result<(), MetadataError> {
    node.only_attributes(&["Algorithm"])?;
    node.children()?.end()?;
    if node.required_attribute("Algorithm")? == expected {
        Ok(())
    } else {
        Err(MetadataError::EnvelopedForm("another algorithm than the one allowed"))
    }
}

const ENVELOPED: &str = "http://www.w3.org/2000/09/xmldsig#enveloped-signature";
const ID: &str = "metadata";
const MAX_METADATA: usize = 1 << 20;
const MAX_OTHER: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::{SeededRandom, UnixTime};

    fn keys(seed: u64) -> GuardianKeys {
        GuardianKeys::generate("HGS", UnixTime(1_800_000_000), &mut SeededRandom::new(seed)).unwrap()
    }

    #[test]
    fn an_owner_imports_what_the_service_built() {
        let mut service = keys(1);
        let old = KeyPair::generate_signing("old", UnixTime(0), &mut SeededRandom::new(9)).unwrap();
        let old_certificate = old.certificate().clone();
        service.add_signing(old);
        let xml = Metadata::build(&service, None).unwrap();
        let metadata = Metadata::import(&xml, "HGS").unwrap();
        assert_eq!(metadata.guardian(), &service.guardian().unwrap());
        assert_eq!(metadata.other_signing(), [old_certificate]);
        assert_eq!(metadata.signer(), metadata.guardian().signing());
    }

    #[test]
    fn a_communications_certificate_signs_when_there_is_one_and_can_be_pinned() {
        let (service, other) = (keys(1), keys(2));
        let communications = KeyPair::generate_signing("c", UnixTime(0), &mut SeededRandom::new(3)).unwrap();
        let xml = Metadata::build(&service, Some(&communications)).unwrap();
        assert!(Metadata::import_pinned(&xml, "HGS", communications.certificate()).is_ok());
        assert_eq!(
            Metadata::import_pinned(&xml, "HGS", other.guardian().unwrap().signing()).err(),
            Some(MetadataError::Signer)
        );
    }

    #[test]
    fn a_changed_or_reshaped_document_is_refused() {
        let text = String::from_utf8(Metadata::build(&keys(1), None).unwrap()).unwrap();
        let stranger = String::from_utf8(Metadata::build(&keys(2), None).unwrap()).unwrap();
        let cut = |t: &str, from: &str, to: &str| -> String {
            let start = t.find(from).unwrap();
            t[start..t.find(to).unwrap()].to_owned()
        };
        let information = cut(&text, "<GuardianInformation>", "<ds:Signature ");
        let swapped = text.replace(&information, &cut(&stranger, "<GuardianInformation>", "<ds:Signature "));
        assert_eq!(
            Metadata::import(swapped.as_bytes(), "x").err(),
            Some(MetadataError::EnvelopedSignature)
        );
        let reference = cut(&text, "<ds:Reference", "</ds:SignedInfo>");
        for (from, to) in [
            ("<Version>2</Version>", "<Version>3</Version>".to_owned()),
            ("URI=\"#metadata\"", "URI=\"#other\"".to_owned()),
            (" ID=\"metadata\"", String::new()),
            (reference.as_str(), format!("{reference}{reference}")),
            ("xmlenc#sha256", "xmlenc#sha512".to_owned()),
            (
                "xmldsig-more#rsa-sha256\"></ds",
                "xmldsig-more#rsa-sha1\"></ds".to_owned(),
            ),
            ("#enveloped-signature", "#other".to_owned()),
        ] {
            let bad = text.replacen(from, &to, 1);
            assert_ne!(bad, text);
            assert!(Metadata::import(bad.as_bytes(), "x").is_err(), "{from}");
        }
    }
}
