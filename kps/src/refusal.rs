//! The one table of refusals: variant, Code, HTTP status and text (MS-KPS 2.2.2.5, 3.1.5.1.1.3).
//!
//! A variant carries its cause for the log and the audit row; the peer gets the text alone, which
//! for a key protector never tells which cryptographic check failed.

use hgs_protocol::{
    health::HealthCertificateError,
    protector::{MetadataError, OpenError, ProtectorError, VerifyError, WrappingError},
    wire::kps::ErrorMessage,
    xml::XmlError,
};

/// Why a request was refused, in the order of the checks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The path's version segment is neither v1.0 nor v2.0.
    #[error("the path names an unknown protocol version")]
    Version,
    /// The body is not a request of the schema.
    #[error("the request is not valid: {0}")]
    InvalidRequest(#[from] XmlError),
    /// The request asks for an algorithm that no suite has.
    #[error("the algorithm asked for the {0} is not supported")]
    UnsupportedAlgorithm(&'static str),
    /// The health certificate is not accepted.
    #[error(transparent)]
    HealthCertificate(#[from] HealthCertificateError),
    /// The protector as a whole.
    #[error(transparent)]
    InvalidProtector(#[from] ProtectorError),
    /// One of its wrappings.
    #[error(transparent)]
    InvalidWrapping(#[from] WrappingError),
    /// No wrapping is for this service.
    #[error("no wrapping of the key protector is for this service")]
    AccessDenied,
    /// The metadata cannot be made.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// Too much to do, shutting down, or the database does not answer.
    #[error("the service is busy or its database does not answer")]
    Unavailable,
    /// The cryptographic library refused.
    #[error("an operation that cannot fail did")]
    Internal,
}

impl Refusal {
    /// Code, HTTP status and text.
    pub fn reply(&self) -> (&'static str, u16, String) {
        let valid = |what: &str| format!("The {what} is not valid.");
        match self {
            // Ours (the protocol reference, 9 row 30): MS-KPS names no code for these.
            Refusal::Version => (
                "InvalidRequestException",
                400,
                "The protocol version in the path is unknown.".to_owned(),
            ),
            Refusal::InvalidRequest(_) => ("InvalidRequestException", 400, valid("request")),
            Refusal::UnsupportedAlgorithm(what) => (
                "UnsupportedAlgorithmException",
                400,
                format!("The encryption algorithm asked for the {what} is not supported."),
            ),
            // MS-KPS 3.1.5.1.1.3. Nothing in a certificate is secret, so a host is told the reason.
            Refusal::HealthCertificate(cause) => ("HealthCertificateException", 403, sentence(&cause.to_string())),
            // One text for every check, so that an answer is no oracle.
            Refusal::InvalidProtector(_) => ("InvalidProtectorException", 400, valid("key protector")),
            Refusal::InvalidWrapping(cause) => (
                "InvalidWrappingException",
                400,
                valid(&format!("wrapping with Id {}", cause.id)),
            ),
            // Ours from here on.
            Refusal::AccessDenied => (
                "KeyProtectionAccessDeniedException",
                403,
                // Whoever has the protector reads the same in it, so this gives nothing away.
                "No wrapping of the key protector is for a certificate that this key protection service has and has \
                 enabled. The VM's owner can give it a new protector; a backup of this service may have the certificate."
                    .to_owned(),
            ),
            Refusal::Metadata(cause) => ("MetadataException", 500, cause.to_string()),
            Refusal::Unavailable => (
                "UnavailableException",
                503,
                "The service is not available at the moment. Try again.".to_owned(),
            ),
            Refusal::Internal => (
                "InternalException",
                500,
                "The request could not be carried out.".to_owned(),
            ),
        }
    }

    /// The Error document.
    pub fn document(&self) -> Vec<u8> {
        let (code, _, message) = self.reply();
        ErrorMessage {
            code: code.to_owned(),
            message,
        }
        .encode()
    }
}

impl From<VerifyError> for Refusal {
    fn from(error: VerifyError) -> Refusal {
        match error {
            VerifyError::Protector(cause) => Refusal::InvalidProtector(cause),
            VerifyError::Wrapping(cause) => Refusal::InvalidWrapping(cause),
        }
    }
}

impl From<OpenError> for Refusal {
    fn from(error: OpenError) -> Refusal {
        match error {
            OpenError::NoWrapping => Refusal::AccessDenied,
            OpenError::Protector(cause) => Refusal::InvalidProtector(cause),
        }
    }
}

/// A cause as a sentence: capital, full stop.
fn sentence(cause: &str) -> String {
    let mut chars = cause.chars();
    let first = chars.next().map(|c| c.to_ascii_uppercase());
    first.into_iter().chain(chars).chain(['.']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hgs_protocol::protector::{WrappingFault, WrappingId};

    /// One example of each row; the compiler asks for a new one here through `reply`.
    fn table() -> Vec<Refusal> {
        vec![
            Refusal::Version,
            Refusal::InvalidRequest(XmlError::Encoding),
            Refusal::UnsupportedAlgorithm("transfer key"),
            Refusal::HealthCertificate(HealthCertificateError::UntrustedSigner),
            Refusal::InvalidProtector(ProtectorError::GuardianSignature),
            Refusal::InvalidProtector(ProtectorError::TransportKey),
            Refusal::InvalidWrapping(WrappingError {
                id: WrappingId(2),
                fault: WrappingFault::Cycle,
            }),
            Refusal::AccessDenied,
            Refusal::Metadata(MetadataError::NoEncryptionCertificate),
            Refusal::Metadata(MetadataError::NoSigningCertificate),
            Refusal::Unavailable,
            Refusal::Internal,
        ]
    }

    #[test]
    fn the_table_is_as_printed() {
        let printed: String = table()
            .iter()
            .map(|refusal| {
                let (code, status, text) = refusal.reply();
                format!("{code} {status} {text}\n")
            })
            .collect();
        print!("{printed}");
        assert_eq!(
            printed,
            "InvalidRequestException 400 The protocol version in the path is unknown.\n\
             InvalidRequestException 400 The request is not valid.\n\
             UnsupportedAlgorithmException 400 The encryption algorithm asked for the transfer key is not supported.\n\
             HealthCertificateException 403 No trusted attestation signer signed the health certificate.\n\
             InvalidProtectorException 400 The key protector is not valid.\n\
             InvalidProtectorException 400 The key protector is not valid.\n\
             InvalidWrappingException 400 The wrapping with Id 2 is not valid.\n\
             KeyProtectionAccessDeniedException 403 No wrapping of the key protector is for a certificate that this key \
             protection service has and has enabled. The VM's owner can give it a new protector; a backup of this service \
             may have the certificate.\n\
             MetadataException 500 Primary Encryption Certificate not found\n\
             MetadataException 500 Primary Signing Certificate not found\n\
             UnavailableException 503 The service is not available at the moment. Try again.\n\
             InternalException 500 The request could not be carried out.\n"
        );
    }
}
