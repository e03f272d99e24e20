//! Messages of the key protection service (MS-KPS 2.2.2): request, response, error, and the paths.
//!
//! XML in the service namespace, children in schema order. The protector and the certificate inside
//! a request stay bytes here; `protector` and `health` read them.

use crate::xml::{Node, Xml, XmlError, base64_text, escape_text};

/// Namespace of request, response and error.
pub const NS_SERVICE: &str = "http://schemas.microsoft.com/kps/2014/07/service";
/// Path of GetMetaData below the server's root, lower case.
pub const METADATA_PATH: &str = "/keyprotection/service/metadata/2014-07/metadata.xml";
/// Content type of every body of this service.
pub const CONTENT_TYPE: &str = "application/xml; charset=utf-8";
/// Longest request body in bytes.
pub const MAX_REQUEST: usize = 4 << 20;
/// Longest response that a client reads.
pub const MAX_RESPONSE: usize = 8 << 20;

/// Version segment of the RollTransportKey path; decides the payload's layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceVersion {
    /// `v1.0`: Payload_V1.
    V1,
    /// `v2.0`: Payload_V2.
    V2,
}

impl ServiceVersion {
    /// From a path segment, in any case.
    pub fn from_segment(segment: &str) -> Option<ServiceVersion> {
        match segment.to_ascii_lowercase().as_str() {
            "v1.0" => Some(ServiceVersion::V1),
            "v2.0" => Some(ServiceVersion::V2),
            _ => None,
        }
    }

    /// The path of RollTransportKey below the server's root.
    pub fn roll_path(self) -> &'static str {
        match self {
            ServiceVersion::V1 => "/KeyProtection/service/v1.0/rolltransportkey",
            ServiceVersion::V2 => "/KeyProtection/service/v2.0/rolltransportkey",
        }
    }
}

/// RollTransportKeyRequest (MS-KPS 2.2.2.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RollTransportKeyRequest {
    /// The key protector document.
    pub ingress_protector: Vec<u8>,
    /// The health certificate, DER.
    pub health_certificate: Vec<u8>,
    /// How the host wants the transfer key encrypted.
    pub transfer_key_encryption_algorithm: String,
    /// How the host wants the wrapping key wrapped.
    pub wrapping_key_encryption_algorithm: String,
    /// How the host wants the transport keys encrypted.
    pub transport_keys_encryption_algorithm: String,
}

impl RollTransportKeyRequest {
    /// A request for the algorithms of suite A.
    pub fn new(ingress_protector: Vec<u8>, health_certificate: Vec<u8>) -> RollTransportKeyRequest {
        use crate::protector::suite::{AES256_GCM, KW_AES256, KeyTransport};
        RollTransportKeyRequest {
            ingress_protector,
            health_certificate,
            transfer_key_encryption_algorithm: KeyTransport::RsaOaep.uri().to_owned(),
            wrapping_key_encryption_algorithm: KW_AES256.to_owned(),
            transport_keys_encryption_algorithm: AES256_GCM.to_owned(),
        }
    }

    /// The whole document.
    pub fn encode(&self) -> Vec<u8> {
        document(
            "RollTransportKeyRequest",
            &[
                ("IngressProtector", base64_text(&self.ingress_protector)),
                ("HealthCertificate", base64_text(&self.health_certificate)),
                (
                    "TransferKeyEncryptionAlgorithm",
                    escape_text(&self.transfer_key_encryption_algorithm),
                ),
                (
                    "WrappingKeyEncryptionAlgorithm",
                    escape_text(&self.wrapping_key_encryption_algorithm),
                ),
                (
                    "TransportKeysEncryptionAlgorithm",
                    escape_text(&self.transport_keys_encryption_algorithm),
                ),
            ],
        )
    }

    /// Reads a request of at most [`MAX_REQUEST`] bytes.
    pub fn parse(bytes: &[u8]) -> Result<RollTransportKeyRequest, XmlError> {
        let xml = Xml::parse(bytes, MAX_REQUEST)?;
        let [protector, certificate, transfer, wrapping, transport] = children(
            xml.root(),
            "RollTransportKeyRequest",
            [
                "IngressProtector",
                "HealthCertificate",
                "TransferKeyEncryptionAlgorithm",
                "WrappingKeyEncryptionAlgorithm",
                "TransportKeysEncryptionAlgorithm",
            ],
        )?;
        Ok(RollTransportKeyRequest {
            ingress_protector: protector.base64()?,
            health_certificate: certificate.base64()?,
            transfer_key_encryption_algorithm: transfer.uri()?,
            wrapping_key_encryption_algorithm: wrapping.uri()?,
            transport_keys_encryption_algorithm: transport.uri()?,
        })
    }
}

/// RollTransportKeyResponse (MS-KPS 2.2.2.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RollTransportKeyResponse {
    /// The egress protector, a whole document.
    pub egress_protector: Vec<u8>,
    /// The transfer key, encrypted to the health certificate's key.
    pub encrypted_transfer_key: Vec<u8>,
    /// The wrapping key, wrapped by the transfer key.
    pub encrypted_wrapping_key: Vec<u8>,
    /// The payload with both transport keys, encrypted by the wrapping key.
    pub encrypted_transport_keys: Vec<u8>,
}

impl RollTransportKeyResponse {
    /// The whole document.
    pub fn encode(&self) -> Vec<u8> {
        document(
            "RollTransportKeyResponse",
            &[
                ("EgressProtector", base64_text(&self.egress_protector)),
                ("EncryptedTransferKey", base64_text(&self.encrypted_transfer_key)),
                ("EncryptedWrappingKey", base64_text(&self.encrypted_wrapping_key)),
                ("EncryptedTransportKeys", base64_text(&self.encrypted_transport_keys)),
            ],
        )
    }

    /// Reads a response of at most [`MAX_RESPONSE`] bytes.
    pub fn parse(bytes: &[u8]) -> Result<RollTransportKeyResponse, XmlError> {
        let xml = Xml::parse(bytes, MAX_RESPONSE)?;
        let [egress, transfer, wrapping, transport] = children(
            xml.root(),
            "RollTransportKeyResponse",
            [
                "EgressProtector",
                "EncryptedTransferKey",
                "EncryptedWrappingKey",
                "EncryptedTransportKeys",
            ],
        )?;
        Ok(RollTransportKeyResponse {
            egress_protector: egress.base64()?,
            encrypted_transfer_key: transfer.base64()?,
            encrypted_wrapping_key: wrapping.base64()?,
            encrypted_transport_keys: transport.base64()?,
        })
    }
}

/// Error (MS-KPS 2.2.2.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorMessage {
    /// Name of the error, `InvalidProtectorException` say.
    pub code: String,
    /// For a person.
    pub message: String,
}

impl ErrorMessage {
    /// The whole document.
    pub fn encode(&self) -> Vec<u8> {
        document(
            "Error",
            &[
                ("Code", escape_text(&self.code)),
                ("Message", escape_text(&self.message)),
            ],
        )
    }

    /// Reads an error of at most 64 KiB.
    pub fn parse(bytes: &[u8]) -> Result<ErrorMessage, XmlError> {
        let xml = Xml::parse(bytes, 1 << 16)?;
        let [code, message] = children(xml.root(), "Error", ["Code", "Message"])?;
        Ok(ErrorMessage {
            code: code.text()?,
            message: message.text()?,
        })
    }
}

fn document(root: &str, children: &[(&str, String)]) -> Vec<u8> {
    let mut out = format!("<?xml version=\"1.0\" encoding=\"utf-8\"?><{root} xmlns=\"{NS_SERVICE}\">");
    for (name, text) in children {
        out.push_str(&format!("<{name}>{text}</{name}>"));
    }
    out.push_str(&format!("</{root}>"));
    out.into_bytes()
}

fn children<'d, const N: usize>(
    root: Node<'d>,
    name: &'static str,
    names: [&'static str; N],
) -> Result<[Node<'d>; N], XmlError> {
    let root = root.expect(NS_SERVICE, name)?;
    root.only_attributes(&[])?;
    let mut children = root.children()?;
    let mut found = [root; N];
    for (slot, name) in found.iter_mut().zip(names) {
        *slot = children.required(NS_SERVICE, name)?;
    }
    children.end()?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_error_has_the_form_of_the_worked_example() {
        let error = ErrorMessage {
            code: "InvalidWrappingException".to_owned(),
            message: "The wrapping with Id 2 is not valid.".to_owned(),
        };
        assert_eq!(
            String::from_utf8(error.encode()).unwrap(),
            "<?xml version=\"1.0\" encoding=\"utf-8\"?><Error xmlns=\"http://schemas.microsoft.com/kps/2014/07/service\">\
             <Code>InvalidWrappingException</Code><Message>The wrapping with Id 2 is not valid.</Message></Error>"
        );
    }

    #[test]
    fn a_request_with_prefixes_reads_the_same_and_one_out_of_order_does_not() {
        let request = RollTransportKeyRequest::new(vec![1], vec![2]);
        let text = String::from_utf8(request.encode()).unwrap();
        let prefixed = text
            .replace("xmlns=", "xmlns:s=")
            .replace("</", "</s:")
            .replace('<', "<s:")
            .replace("<s:/s:", "</s:")
            .replace("<s:?xml", "<?xml");
        assert_eq!(RollTransportKeyRequest::parse(prefixed.as_bytes()), Ok(request));
        let swapped = text
            .replace("IngressProtector", "X")
            .replace("HealthCertificate", "IngressProtector");
        assert!(RollTransportKeyRequest::parse(swapped.as_bytes()).is_err());
        let foreign = text.replace("2014/07", "2014/08");
        assert!(RollTransportKeyRequest::parse(foreign.as_bytes()).is_err());
        let empty = text.replace(">AQ==<", "><");
        assert!(RollTransportKeyRequest::parse(empty.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn messages_survive_their_encoding(
            a in proptest::collection::vec(any::<u8>(), 1..80),
            b in proptest::collection::vec(any::<u8>(), 1..80),
            text in "[ -~\u{e9}\u{4e2d}\r\n<>&\"']{0,60}",
        ) {
            let uri = text.trim_matches([' ', '\r', '\n']).to_owned();
            let request = RollTransportKeyRequest {
                transfer_key_encryption_algorithm: uri,
                ..RollTransportKeyRequest::new(a.clone(), b.clone())
            };
            prop_assert_eq!(RollTransportKeyRequest::parse(&request.encode()), Ok(request));
            let response = RollTransportKeyResponse {
                egress_protector: a.clone(),
                encrypted_transfer_key: b.clone(),
                encrypted_wrapping_key: a,
                encrypted_transport_keys: b,
            };
            prop_assert_eq!(RollTransportKeyResponse::parse(&response.encode()), Ok(response));
            let error = ErrorMessage { code: "C".to_owned(), message: text };
            prop_assert_eq!(ErrorMessage::parse(&error.encode()), Ok(error));
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0usize..600) {
            let _ = RollTransportKeyRequest::parse(&bytes);
            let mut near = RollTransportKeyRequest::new(vec![1; 20], vec![2; 20]).encode();
            for (slot, byte) in near.iter_mut().skip(at).zip(bytes) {
                *slot = byte;
            }
            let _ = RollTransportKeyRequest::parse(&near);
        }
    }
}
