//! Every refusal of the service in one table: reply type, whether trying again can help, HTTP status.
//! The cause goes to the log and the record, the peer gets the reply alone.

use hgs_protocol::{
    health::AttestationMode,
    wire::hgsa::{ErrorKind, EvaluationLog, JsonError, Reply},
};

use crate::{
    ca_trustlet::VsmReportError, facts::VsmIdentityError, policy::Evaluation, replay::TcgLogError, rtpm::RtpmError,
};

/// Why no certificate was issued; one variant per error reply of MS-HGSA 2.2.2.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The URL of a mode that is not in force.
    #[error("the service is in mode {expected:?}")]
    OperationMode {
        /// The mode in force.
        expected: AttestationMode,
    },
    /// The body is no JSON object.
    #[error(transparent)]
    NotJson(JsonError),
    /// The body does not fit the URL, or lacks something.
    #[error("{0}")]
    Payload(String),
    /// A policy failed.
    #[error("the host fails: {}", failures(.0))]
    PolicyEvaluation(Box<Evaluation>),
    /// The exchange with the TPM failed.
    #[error(transparent)]
    Rtpm(#[from] RtpmError),
    /// The exchange was decided before.
    #[error("this exchange has been decided before")]
    Replayed,
    /// The boot log proves nothing.
    #[error(transparent)]
    TcgLog(#[from] TcgLogError),
    /// The endorsement key is not registered.
    #[error("the endorsement key is not registered: add the host first")]
    Unauthorized,
    /// The host key is not registered.
    #[error("the host key is not registered, or its bytes are no key: add the host key first")]
    UnknownHostKey,
    /// The host key did not sign these bytes.
    #[error("the host key's signature does not cover the host key followed by the VSM key")]
    HostKeySignature,
    /// An administrator denies the VSM key.
    #[error("an administrator denies the VSM key {0}: restart the host with a new one, or lift the denial")]
    DeniedKey(String),
    /// Not now.
    #[error("the service is not available: {0}")]
    Unavailable(&'static str),
    /// No VSM key can be certified.
    #[error(transparent)]
    VirtualSecureMode(#[from] VsmIdentityError),
    /// The key of a CA trustlet is not certified.
    #[error(transparent)]
    VsmReport(#[from] VsmReportError),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl Refusal {
    /// Reply and HTTP status.
    pub fn reply(&self) -> (Reply, u16) {
        let (kind, retryable, status) = match self {
            // The client's switch of mode needs Retryable (MS-HGSA 3.2.5.4).
            Refusal::OperationMode { expected } => (ErrorKind::OperationMode(Some(*expected)), true, 200),
            Refusal::NotJson(_) => (ErrorKind::Payload, false, 400),
            Refusal::Payload(_) => (ErrorKind::Payload, false, 200),
            Refusal::PolicyEvaluation(evaluation) => (ErrorKind::PolicyEvaluation(reasons(evaluation)), false, 200),
            Refusal::Rtpm(_) | Refusal::Replayed => (ErrorKind::Rtpm, true, 200),
            Refusal::TcgLog(error) => (ErrorKind::TcgLogValidation, error.is_retryable(), 200),
            Refusal::Unauthorized | Refusal::UnknownHostKey | Refusal::HostKeySignature | Refusal::DeniedKey(_) => {
                (ErrorKind::Unauthorized, false, 200)
            }
            Refusal::Unavailable(_) => (ErrorKind::Unavailable, true, 503),
            Refusal::VirtualSecureMode(_) => (ErrorKind::VirtualSecureMode, false, 200),
            Refusal::VsmReport(_) => (ErrorKind::VsmReportValidation, false, 200),
            Refusal::Other(_) => (ErrorKind::Other, false, 200),
        };
        (Reply::Error { kind, retryable }, status)
    }
}

/// The failed policies alone (MS-HGSA 2.2.2.16 leaves open whether passed ones are listed).
fn reasons(evaluation: &Evaluation) -> Vec<EvaluationLog> {
    let log = |failed: &crate::policy::Evaluated| EvaluationLog {
        reason: failed.policy.id.0,
        result: false,
    };
    evaluation.failures().map(log).collect()
}

fn failures(evaluation: &Evaluation) -> String {
    let names: Vec<&str> = evaluation.failures().map(|failed| failed.policy.name).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_refusals() {
        let refusals = [
            Refusal::OperationMode {
                expected: AttestationMode::Tpm,
            },
            Refusal::NotJson(JsonError::NotJson),
            Refusal::Payload(String::new()),
            Refusal::Rtpm(RtpmError::State),
            Refusal::Replayed,
            Refusal::TcgLog(TcgLogError::NoSha256Bank),
            Refusal::Unauthorized,
            Refusal::UnknownHostKey,
            Refusal::HostKeySignature,
            Refusal::DeniedKey(String::new()),
            Refusal::Unavailable("test"),
            Refusal::VirtualSecureMode(VsmIdentityError::Absent),
            Refusal::VsmReport(VsmReportError::Signature),
            Refusal::Other(String::new()),
        ];
        let table: Vec<String> = refusals
            .iter()
            .map(|refusal| match refusal.reply() {
                (Reply::Error { kind, retryable }, status) => format!("{} {retryable} {status}", kind.name()),
                (other, _) => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            table,
            [
                "OperationModeErrorReply true 200",
                "PayloadErrorReply false 400",
                "PayloadErrorReply false 200",
                "RtpmErrorReply true 200",
                "RtpmErrorReply true 200",
                "TcgLogValidationErrorReply true 200",
                "UnauthorizedErrorReply false 200",
                "UnauthorizedErrorReply false 200",
                "UnauthorizedErrorReply false 200",
                "UnauthorizedErrorReply false 200",
                "UnavailableErrorReply true 503",
                "VirtualSecureModeErrorReply false 200",
                "VsmReportValidationErrorReply false 200",
                "ErrorReply false 200",
            ]
        );
    }
}
