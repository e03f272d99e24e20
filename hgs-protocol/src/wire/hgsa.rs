//! The JSON messages of the attestation service (MS-HGSA 2.2.2), both directions.
//!
//! Reads and writes what the product's serialiser does: `__type` first, binary as base64, tuples
//! with `m_Item1` and `m_Item2`. Whether a request is allowed where it arrived is decided elsewhere.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;
use uuid::Uuid;

use crate::health::{AttestationMode, CertificateKind};

mod json;

pub use json::JsonError;
use json::{Members, Writer};

/// Names one attempt of a host; drawn by the host, a GUID (MS-HGSA 2.2.2.18).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionId(pub Uuid);

impl SessionId {
    /// The GUID in memory layout: first three fields little-endian.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_bytes_le()
    }
}

/// What kind of bytes a host provides (AttestationProvidedContentType, MS-HGSA 2.2.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProvidedKind {
    /// 1: VSM identity key, `RSA1` blob.
    VsmIdentityKey,
    /// 2: RTPM context.
    RtpmContext,
    /// 3: a health certificate issued earlier.
    HealthCertificate,
    /// 4: endorsement key certificate, DER.
    EndorsementKeyCertificate,
    /// 5: hash of the CA trustlet's public key.
    CaTrustletUserData,
    /// 6: VSM report of the CA trustlet.
    CaTrustletVsmReport,
    /// 7: signature of the report.
    CaTrustletReportSignature,
    /// 8: host key.
    HostKeyPublicKey,
    /// 9: signature by the host key.
    HostKeySignature,
}

impl ProvidedKind {
    /// Every kind, in the order of the wire.
    pub const ALL: [ProvidedKind; 9] = [
        ProvidedKind::VsmIdentityKey,
        ProvidedKind::RtpmContext,
        ProvidedKind::HealthCertificate,
        ProvidedKind::EndorsementKeyCertificate,
        ProvidedKind::CaTrustletUserData,
        ProvidedKind::CaTrustletVsmReport,
        ProvidedKind::CaTrustletReportSignature,
        ProvidedKind::HostKeyPublicKey,
        ProvidedKind::HostKeySignature,
    ];

    fn code(self) -> u64 {
        match self {
            ProvidedKind::VsmIdentityKey => 1,
            ProvidedKind::RtpmContext => 2,
            ProvidedKind::HealthCertificate => 3,
            ProvidedKind::EndorsementKeyCertificate => 4,
            ProvidedKind::CaTrustletUserData => 5,
            ProvidedKind::CaTrustletVsmReport => 6,
            ProvidedKind::CaTrustletReportSignature => 7,
            ProvidedKind::HostKeyPublicKey => 8,
            ProvidedKind::HostKeySignature => 9,
        }
    }
}

/// A request of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The first request of an exchange, v1.0 (MS-HGSA 2.2.2.3).
    TpmInitial {
        /// The attempt.
        session: SessionId,
        /// Certificates asked for, in order.
        requested: Vec<CertificateKind>,
        /// RtpmPublicEndorsementKey, as sent.
        endorsement_key: Vec<u8>,
    },
    /// A further request of an exchange, v1.0 (MS-HGSA 2.2.2.4).
    TpmContinue {
        /// The attempt.
        session: SessionId,
        /// Certificates asked for, in order.
        requested: Vec<CertificateKind>,
        /// RtpmPublicEndorsementKey, as sent.
        endorsement_key: Vec<u8>,
        /// RtpmNewContext; may be empty.
        context: Vec<u8>,
    },
    /// Active Directory mode (MS-HGSA 2.2.2.5): each certificate with the key to be certified.
    Domain {
        /// The attempt.
        session: SessionId,
        /// Certificates asked for, each with its VSM key.
        requested: Vec<(CertificateKind, Vec<u8>)>,
    },
    /// v2.0, TPM and host-key modes (MS-HGSA 2.2.2.1).
    Attestation {
        /// The attempt.
        session: SessionId,
        /// Certificates asked for, in order.
        requested: Vec<CertificateKind>,
        /// What the host provides, in order.
        provided: Vec<(ProvidedKind, Vec<u8>)>,
    },
}

/// The answer of the service (MS-HGSA 2.2.2.6 to 2.2.2.24).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The exchange goes on.
    TpmContinue {
        /// RtpmActiveContext.
        context: Vec<u8>,
    },
    /// Success.
    HealthCertificate {
        /// One DER certificate for each requested kind, in request order.
        content: Vec<(CertificateKind, Vec<u8>)>,
    },
    /// What the service can do.
    ServiceInfo {
        /// The highest level: 1 for v1.0, 2 for v2.0.
        functional_level: u32,
        /// The mode in force; none when the service says 0, unknown.
        operation_mode: Option<AttestationMode>,
        /// All levels.
        supported_functional_levels: Vec<u32>,
    },
    /// Refusal.
    Error {
        /// Which one.
        kind: ErrorKind,
        /// Whether trying again may help.
        retryable: bool,
    },
}

/// The error replies, in specification order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// ErrorReply (2.2.2.11).
    Other,
    /// OperationModeErrorReply (2.2.2.14): ask at the URL of this mode.
    OperationMode(Option<AttestationMode>),
    /// PayloadErrorReply (2.2.2.15).
    Payload,
    /// PolicyEvaluationErrorReply (2.2.2.16) with its Reasons.
    PolicyEvaluation(Vec<EvaluationLog>),
    /// RtpmErrorReply (2.2.2.19).
    Rtpm,
    /// TcgLogValidationErrorReply (2.2.2.20).
    TcgLogValidation,
    /// UnauthorizedErrorReply (2.2.2.21).
    Unauthorized,
    /// UnavailableErrorReply (2.2.2.22).
    Unavailable,
    /// VirtualSecureModeErrorReply (2.2.2.23).
    VirtualSecureMode,
    /// VsmReportValidationErrorReply (2.2.2.24). Its schema repeats the type name of 2.2.2.23; we write its own.
    VsmReportValidation,
}

impl ErrorKind {
    /// The name in `__type`.
    pub fn name(&self) -> &'static str {
        match self {
            ErrorKind::Other => "ErrorReply",
            ErrorKind::OperationMode(_) => "OperationModeErrorReply",
            ErrorKind::Payload => "PayloadErrorReply",
            ErrorKind::PolicyEvaluation(_) => "PolicyEvaluationErrorReply",
            ErrorKind::Rtpm => "RtpmErrorReply",
            ErrorKind::TcgLogValidation => "TcgLogValidationErrorReply",
            ErrorKind::Unauthorized => "UnauthorizedErrorReply",
            ErrorKind::Unavailable => "UnavailableErrorReply",
            ErrorKind::VirtualSecureMode => "VirtualSecureModeErrorReply",
            ErrorKind::VsmReportValidation => "VsmReportValidationErrorReply",
        }
    }
}

/// One policy's result (MS-HGSA 2.2.2.13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvaluationLog {
    /// The policy's GUID; on the wire its 16 bytes in memory layout, base64.
    pub reason: Uuid,
    /// Whether it passed.
    pub result: bool,
}

impl Request {
    /// Reads a request. The type is told by `__type`, or without one by ProvidedContent.
    pub fn parse(body: &[u8]) -> Result<Request, JsonError> {
        let members = Members::parse(body)?;
        let session = members.session()?;
        match members.type_name()? {
            Some("TpmRequestInitial") => Ok(Request::TpmInitial {
                session,
                requested: members.kinds()?,
                endorsement_key: members.bytes("RtpmPublicEndorsementKey")?,
            }),
            Some("TpmRequestContinue") => Ok(Request::TpmContinue {
                session,
                requested: members.kinds()?,
                endorsement_key: members.bytes("RtpmPublicEndorsementKey")?,
                context: members.bytes("RtpmNewContext")?,
            }),
            Some("ADRequest") => {
                let requested = members.tuples("RequestedContent", certificate_kind)?;
                distinct(requested.iter().map(|(kind, _)| *kind))?;
                Ok(Request::Domain { session, requested })
            }
            Some("AttestationRequest") | None => Ok(Request::Attestation {
                session,
                requested: members.kinds()?,
                provided: members.tuples("ProvidedContent", |code| {
                    ProvidedKind::ALL.into_iter().find(|kind| kind.code() == code)
                })?,
            }),
            Some(_) => Err(JsonError::UnknownType),
        }
    }

    /// The JSON that [`Request::parse`] reads; `__type` is always written.
    pub fn encode(&self) -> Vec<u8> {
        let session_of = |session: &SessionId| Value::from(STANDARD.encode(session.to_bytes()));
        let kinds = |kinds: &[CertificateKind]| kinds.iter().map(|kind| kind.code()).collect::<Vec<_>>();
        match self {
            Request::TpmInitial {
                session,
                requested,
                endorsement_key,
            } => Writer::new("TpmRequestInitial")
                .member("RequestedContent", kinds(requested))
                .bytes("RtpmPublicEndorsementKey", endorsement_key)
                .member("SessionId", session_of(session))
                .finish(),
            Request::TpmContinue {
                session,
                requested,
                endorsement_key,
                context,
            } => Writer::new("TpmRequestContinue")
                .member("RequestedContent", kinds(requested))
                .bytes("RtpmNewContext", context)
                .bytes("RtpmPublicEndorsementKey", endorsement_key)
                .member("SessionId", session_of(session))
                .finish(),
            Request::Domain { session, requested } => Writer::new("ADRequest")
                .tuples("RequestedContent", requested, |kind| kind.code().into())
                .member("SessionId", session_of(session))
                .finish(),
            Request::Attestation {
                session,
                requested,
                provided,
            } => Writer::new("AttestationRequest")
                .tuples("ProvidedContent", provided, |kind| kind.code())
                .member("RequestedContent", kinds(requested))
                .member("SessionId", session_of(session))
                .finish(),
        }
    }
}

impl Reply {
    /// The name in `__type`, for logs and counters.
    pub fn name(&self) -> &'static str {
        match self {
            Reply::TpmContinue { .. } => "TpmReplyContinue",
            Reply::HealthCertificate { .. } => "HealthCertificateReply",
            Reply::ServiceInfo { .. } => "ServiceInfoReply",
            Reply::Error { kind, .. } => kind.name(),
        }
    }

    /// The JSON: `__type`, base-class members, own members in ordinal order.
    pub fn encode(&self) -> Vec<u8> {
        let writer = Writer::new(self.name());
        match self {
            Reply::TpmContinue { context } => writer.bytes("RtpmActiveContext", context).finish(),
            Reply::HealthCertificate { content } => {
                writer.tuples("Content", content, |kind| kind.code().into()).finish()
            }
            Reply::ServiceInfo {
                functional_level,
                operation_mode,
                supported_functional_levels,
            } => writer
                .member("FunctionalLevel", *functional_level)
                .member("OperationMode", operation_mode.map_or(0, AttestationMode::code))
                .member("SupportedFunctionalLevels", supported_functional_levels.clone())
                .finish(),
            Reply::Error { kind, retryable } => {
                let writer = writer.member("Retryable", *retryable);
                match kind {
                    ErrorKind::OperationMode(mode) => writer
                        .member("ExpectedOperationMode", mode.map_or(0, AttestationMode::code))
                        .finish(),
                    ErrorKind::PolicyEvaluation(reasons) => writer.member("Reasons", encode_reasons(reasons)).finish(),
                    _ => writer.finish(),
                }
            }
        }
    }

    /// Reads a reply, as a host does. `__type` must be there.
    pub fn parse(body: &[u8]) -> Result<Reply, JsonError> {
        let members = Members::parse(body)?;
        let kind = match members.type_name()?.ok_or(JsonError::UnknownType)? {
            "TpmReplyContinue" => {
                return Ok(Reply::TpmContinue {
                    context: members.bytes("RtpmActiveContext")?,
                });
            }
            "HealthCertificateReply" => {
                return Ok(Reply::HealthCertificate {
                    content: members.tuples("Content", certificate_kind)?,
                });
            }
            "ServiceInfoReply" => {
                let levels = members.array("SupportedFunctionalLevels")?.iter();
                return Ok(Reply::ServiceInfo {
                    functional_level: members.number("FunctionalLevel").and_then(json::level)?,
                    operation_mode: AttestationMode::from_code(members.number("OperationMode")?),
                    supported_functional_levels: levels
                        .map(|level| level.as_u64().ok_or(JsonError::Member("SupportedFunctionalLevels")))
                        .map(|level| level.and_then(json::level))
                        .collect::<Result<_, _>>()?,
                });
            }
            "ErrorReply" => ErrorKind::Other,
            "OperationModeErrorReply" => {
                ErrorKind::OperationMode(AttestationMode::from_code(members.number("ExpectedOperationMode")?))
            }
            "PayloadErrorReply" => ErrorKind::Payload,
            "PolicyEvaluationErrorReply" => ErrorKind::PolicyEvaluation(parse_reasons(members.array("Reasons")?)?),
            "RtpmErrorReply" => ErrorKind::Rtpm,
            "TcgLogValidationErrorReply" => ErrorKind::TcgLogValidation,
            "UnauthorizedErrorReply" => ErrorKind::Unauthorized,
            "UnavailableErrorReply" => ErrorKind::Unavailable,
            "VirtualSecureModeErrorReply" => ErrorKind::VirtualSecureMode,
            "VsmReportValidationErrorReply" => ErrorKind::VsmReportValidation,
            _ => return Err(JsonError::UnknownType),
        };
        Ok(Reply::Error {
            kind,
            retryable: members.boolean("Retryable")?,
        })
    }
}

/// Entry for a fuzzer: whatever parses must encode and parse to the same again.
pub fn fuzz(bytes: &[u8]) {
    if let Ok(request) = Request::parse(bytes) {
        assert!(
            Request::parse(&request.encode()) == Ok(request),
            "a request changed in its round trip"
        );
    }
    if let Ok(reply) = Reply::parse(bytes) {
        assert!(
            Reply::parse(&reply.encode()) == Ok(reply),
            "a reply changed in its round trip"
        );
    }
}

fn certificate_kind(code: u64) -> Option<CertificateKind> {
    CertificateKind::from_code(code)
}

/// A list of kinds must name something, and nothing twice.
fn distinct(kinds: impl Iterator<Item = CertificateKind>) -> Result<(), JsonError> {
    let mut seen: Vec<CertificateKind> = Vec::new();
    for kind in kinds {
        if seen.contains(&kind) {
            return Err(JsonError::Member("RequestedContent"));
        }
        seen.push(kind);
    }
    if seen.is_empty() {
        return Err(JsonError::Member("RequestedContent"));
    }
    Ok(())
}

fn encode_reasons(reasons: &[EvaluationLog]) -> Vec<Value> {
    reasons
        .iter()
        .map(|log| {
            let reason = STANDARD.encode(log.reason.to_bytes_le());
            serde_json::json!({ "Reason": reason, "Result": log.result })
        })
        .collect()
}

fn parse_reasons(reasons: &[Value]) -> Result<Vec<EvaluationLog>, JsonError> {
    let malformed = || JsonError::Member("Reasons");
    reasons
        .iter()
        .map(|log| {
            let reason = json::bytes(log.get("Reason").ok_or_else(malformed)?).ok_or_else(malformed)?;
            let reason: [u8; 16] = reason.try_into().map_err(|_| malformed())?;
            Ok(EvaluationLog {
                reason: Uuid::from_bytes_le(reason),
                result: log.get("Result").and_then(Value::as_bool).ok_or_else(malformed)?,
            })
        })
        .collect()
}

/// What follows a type's name in `__type`.
pub const NAMESPACE: &str = ":#Microsoft.Windows.RemoteAttestation.Core";

#[cfg(test)]
mod tests;
