//! Platform identifier files: the XML in which a host hands over its endorsement key and certificate.
//!
//! The product publishes no schema of what Get-PlatformIdentifier writes. So names of elements are not
//! looked at: an element or attribute whose value is, in base64 or hex, an endorsement key is the key, and
//! one that is a certificate is the certificate. An error text in the certificate's place is neither.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hgs_protocol::xml::{Node, Xml, XmlError, base64_text};
use x509_cert::{Certificate, der::Decode as _};

use crate::ek::EndorsementKey;

/// What a platform identifier file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlatformIdentifier {
    /// The endorsement key.
    pub key: Option<EndorsementKey>,
    /// Its certificate, DER.
    pub certificate: Option<Vec<u8>>,
}

/// Why a file is no platform identifier.
#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    /// It is not XML.
    #[error("the platform identifier is not readable: {0}")]
    Xml(#[from] XmlError),
    /// Neither UTF-8 nor UTF-16 with a byte order mark.
    #[error("the platform identifier is neither UTF-8 nor UTF-16 with a byte order mark")]
    Encoding,
    /// No element holds a key or a certificate.
    #[error(
        "the platform identifier holds neither an RSA endorsement key nor a certificate of one; make it with Get-PlatformIdentifier in an elevated session"
    )]
    Empty,
    /// Two different ones.
    #[error("the platform identifier holds two different {0}")]
    Two(&'static str),
}

impl PlatformIdentifier {
    /// Reads a file as PowerShell writes it: UTF-8 or UTF-16, with or without a byte order mark.
    pub fn parse(bytes: &[u8]) -> Result<PlatformIdentifier, PlatformError> {
        let utf16 = |convert: fn([u8; 2]) -> u16| {
            let (units, rest) = bytes.as_chunks::<2>();
            let text =
                char::decode_utf16(units.iter().skip(1).map(|unit| convert(*unit))).collect::<Result<String, _>>();
            match (text, rest) {
                (Ok(text), []) => Ok(text.replacen("encoding=\"utf-16\"", "", 1)),
                _ => Err(PlatformError::Encoding),
            }
        };
        let text = match bytes {
            [0xff, 0xfe, ..] => utf16(u16::from_le_bytes)?,
            [0xfe, 0xff, ..] => utf16(u16::from_be_bytes)?,
            _ => String::from_utf8(bytes.to_vec()).map_err(|_| PlatformError::Encoding)?,
        };
        let xml = Xml::parse(text.as_bytes(), LONGEST)?;
        let mut found = PlatformIdentifier::default();
        found.search(xml.root())?;
        match found {
            PlatformIdentifier {
                key: None,
                certificate: None,
            } => Err(PlatformError::Empty),
            found => Ok(found),
        }
    }

    fn search(&mut self, node: Node<'_>) -> Result<(), PlatformError> {
        for value in node.attribute_values() {
            self.take(value)?;
        }
        match node.text() {
            Ok(text) => self.take(&text),
            Err(_) => {
                for child in node.elements() {
                    self.search(child)?;
                }
                Ok(())
            }
        }
    }

    fn take(&mut self, text: &str) -> Result<(), PlatformError> {
        let text: String = text.chars().filter(|letter| !letter.is_whitespace()).collect();
        let forms = [hex::decode(&text).ok(), STANDARD.decode(&text).ok()];
        for bytes in forms.into_iter().flatten() {
            if Certificate::from_der(&bytes).is_ok() {
                match &self.certificate {
                    Some(other) if *other != bytes => return Err(PlatformError::Two("certificates")),
                    _ => self.certificate = Some(bytes),
                }
            } else if let Ok(key) = EndorsementKey::parse(&bytes) {
                match &self.key {
                    Some(other) if *other != key => return Err(PlatformError::Two("keys")),
                    _ => self.key = Some(key),
                }
            }
        }
        Ok(())
    }

    /// A file in the shape that [`PlatformIdentifier::parse`] reads, for hosts of the lab.
    pub fn to_xml(&self) -> String {
        let key = self.key.as_ref().map(|key| base64_text(&key.key().spki_der()));
        let certificate = match &self.certificate {
            Some(der) => base64_text(der),
            None => "No endorsement key certificate was found.".to_owned(),
        };
        format!(
            "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<PlatformIdentifier><EndorsementKey>{}</EndorsementKey>\
             <EndorsementKeyCertificate>{certificate}</EndorsementKeyCertificate></PlatformIdentifier>\n",
            key.unwrap_or_default()
        )
    }
}

const LONGEST: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use hgs_protocol::{crypto::RsaPrivateKey, wire::vsm::encode_rsa1};
    use proptest::prelude::*;

    use super::*;

    fn identifier() -> PlatformIdentifier {
        let key = RsaPrivateKey::generate_2048().unwrap();
        let certificate = rcgen::generate_simple_self_signed(vec!["tpm".to_owned()]).unwrap();
        PlatformIdentifier {
            key: Some(EndorsementKey::parse(&key.public().spki_der()).unwrap()),
            certificate: Some(certificate.cert.der().to_vec()),
        }
    }

    #[test]
    fn our_own_shape_survives() {
        let whole = identifier();
        assert_eq!(PlatformIdentifier::parse(whole.to_xml().as_bytes()).unwrap(), whole);
        let bare = PlatformIdentifier {
            certificate: None,
            ..whole
        };
        assert_eq!(PlatformIdentifier::parse(bare.to_xml().as_bytes()).unwrap(), bare);
    }

    #[test]
    fn other_names_encodings_and_forms_are_read() {
        let whole = identifier();
        let blob = hex::encode(encode_rsa1(whole.key.as_ref().unwrap().key()));
        let certificate = base64_text(whole.certificate.as_ref().unwrap());
        let text = format!(
            "<?xml version=\"1.0\" encoding=\"utf-16\"?>\r\n<p:Any xmlns:p=\"urn:x\"><Name>host</Name>text \
             <Tpm EkPub=\"{blob}\"><Cert>\r\n  {certificate}\r\n</Cert></Tpm></p:Any>"
        );
        let units: Vec<u8> = "\u{feff}"
            .encode_utf16()
            .chain(text.encode_utf16())
            .flat_map(u16::to_le_bytes)
            .collect();
        assert_eq!(PlatformIdentifier::parse(&units).unwrap(), whole);
        let utf8 = format!("\u{feff}{}", text.replace("utf-16", "utf-8"));
        assert_eq!(PlatformIdentifier::parse(utf8.as_bytes()).unwrap(), whole);
    }

    #[test]
    fn what_holds_nothing_or_too_much_is_named() {
        let refused = |text: &str| PlatformIdentifier::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(refused("<a><b>No certificate was found.</b></a>").contains("Get-PlatformIdentifier"));
        assert!(refused("not XML").contains("not readable"));
        let (one, two) = (identifier(), identifier());
        let both = format!("<a>{}{}</a>", body(&one), body(&two));
        assert!(refused(&both).contains("two different"));
        assert!(matches!(
            PlatformIdentifier::parse(&[0xff, 0xfe, 0]),
            Err(PlatformError::Encoding)
        ));
    }

    fn body(identifier: &PlatformIdentifier) -> String {
        let xml = identifier.to_xml();
        xml.split_once('\n').unwrap().1.to_owned()
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = PlatformIdentifier::parse(&bytes);
        }
    }
}
