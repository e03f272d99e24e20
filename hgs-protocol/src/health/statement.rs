//! What a health certificate says about its host: mode, kind, verdicts, and the DER extension that
//! carries them. Judges nothing.

use std::time::Duration;

use uuid::Uuid;
use x509_cert::{
    der::{
        Any, Decode, Encode, Tag, Tagged,
        asn1::{GeneralizedTime, ObjectIdentifier},
        flagset::FlagSet,
    },
    ext::pkix::KeyUsages,
};

use super::{HealthCertificateError, IssueError};
use crate::{crypto::PublicKey, env::UnixTime, oid};

/// How a host proves itself (AttestationOperationMode, MS-HGSA 2.2.1.1). The wire's 0, unknown, is no mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum AttestationMode {
    /// Boot log and TPM.
    Tpm,
    /// Membership of an Active Directory group.
    ActiveDirectory,
    /// Possession of a registered host key.
    HostKey,
}

impl AttestationMode {
    /// Every mode, in the order of the wire.
    pub const ALL: [AttestationMode; 3] = [
        AttestationMode::Tpm,
        AttestationMode::ActiveDirectory,
        AttestationMode::HostKey,
    ];

    /// The number on the wire and in the attestation extension: 1, 2 or 3.
    pub fn code(self) -> u8 {
        match self {
            AttestationMode::Tpm => 1,
            AttestationMode::ActiveDirectory => 2,
            AttestationMode::HostKey => 3,
        }
    }

    /// The mode of a wire number; none for 0 and unknown ones.
    pub fn from_code(code: u64) -> Option<AttestationMode> {
        AttestationMode::ALL
            .into_iter()
            .find(|mode| u64::from(mode.code()) == code)
    }
}

/// What a certificate is for (AttestationResultType, MS-HGSA 2.2.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CertificateKind {
    /// 1: the VSM identity encryption key, to which key protection seals.
    Encryption,
    /// 2: the VSM identity signing key, which signs enclave reports.
    Signing,
    /// 3: the VSM's intermediate authority.
    Authority,
}

impl CertificateKind {
    /// Every kind, in the order of the wire.
    pub const ALL: [CertificateKind; 3] = [
        CertificateKind::Encryption,
        CertificateKind::Signing,
        CertificateKind::Authority,
    ];

    /// The number on the wire: 1, 2 or 3.
    pub fn code(self) -> u8 {
        match self {
            CertificateKind::Encryption => 1,
            CertificateKind::Signing => 2,
            CertificateKind::Authority => 3,
        }
    }

    /// The kind of a wire number.
    pub fn from_code(code: u64) -> Option<CertificateKind> {
        CertificateKind::ALL
            .into_iter()
            .find(|kind| u64::from(kind.code()) == code)
    }

    pub(super) fn purpose(self) -> ObjectIdentifier {
        match self {
            CertificateKind::Encryption => oid::HEALTH_ENCRYPTION,
            CertificateKind::Signing => oid::HEALTH_SIGNING,
            CertificateKind::Authority => oid::HEALTH_AUTHORITY,
        }
    }

    /// What a key of this kind may be used for; keys are not encrypted by a P-256 key but agreed on with it.
    pub(super) fn usage(self, key: &PublicKey) -> FlagSet<KeyUsages> {
        match (self, key) {
            (CertificateKind::Encryption, PublicKey::Rsa(_)) => {
                KeyUsages::KeyEncipherment | KeyUsages::DataEncipherment
            }
            (CertificateKind::Encryption, PublicKey::P256(_)) => KeyUsages::KeyAgreement.into(),
            (CertificateKind::Signing, _) => KeyUsages::DigitalSignature.into(),
            (CertificateKind::Authority, _) => KeyUsages::KeyCertSign.into(),
        }
    }
}

/// One evaluated policy, as the attestation extension records it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyVerdict {
    /// The policy's GUID (MS-HGSA 2.2.2.13).
    pub id: Uuid,
    /// True when the host met it.
    pub passed: bool,
}

/// The attestation extension: who attested how, when, and with which verdicts.
///
/// DER: `SEQUENCE { version INTEGER 1, mode ENUMERATED, issuedAt GeneralizedTime,
/// policies SEQUENCE OF SEQUENCE { id OCTET STRING(16), passed BOOLEAN }, resetHint OCTET STRING OPTIONAL }`.
/// A policy's id is its GUID in memory layout (first three fields little-endian).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttestationStatement {
    /// The mode in which the host was attested.
    pub mode: AttestationMode,
    /// When the decision was made.
    pub issued_at: UnixTime,
    /// Every policy evaluated; empty outside TPM mode.
    pub policies: Vec<PolicyVerdict>,
    /// Opaque bytes that change when the host restarts, if the issuer wrote any.
    pub reset_hint: Option<Vec<u8>>,
}

impl AttestationStatement {
    /// The extension's value, DER.
    pub fn encode(&self) -> Result<Vec<u8>, IssueError> {
        let policies = self
            .policies
            .iter()
            .map(|verdict| {
                let id = Any::new(Tag::OctetString, verdict.id.to_bytes_le())?;
                let passed = Any::new(Tag::Boolean, [if verdict.passed { 0xff } else { 0 }])?;
                Any::from_der(&vec![id, passed].to_der()?)
            })
            .collect::<Result<Vec<Any>, _>>()?;
        let seconds = u64::try_from(self.issued_at.0).map_err(|_| IssueError::Time)?;
        let issued_at = GeneralizedTime::from_unix_duration(Duration::from_secs(seconds))?;
        let mut fields = vec![
            Any::new(Tag::Integer, [1])?,
            Any::new(Tag::Enumerated, [self.mode.code()])?,
            Any::from_der(&issued_at.to_der()?)?,
            Any::from_der(&policies.to_der()?)?,
        ];
        if let Some(hint) = &self.reset_hint {
            fields.push(Any::new(Tag::OctetString, hint.as_slice())?);
        }
        Ok(fields.to_der()?)
    }

    /// Reads what [`AttestationStatement::encode`] wrote; trailing bytes, other versions and
    /// anything else out of the layout are refused.
    pub fn parse(der: &[u8]) -> Result<AttestationStatement, HealthCertificateError> {
        AttestationStatement::read(der).ok_or(HealthCertificateError::StatementMalformed)
    }

    fn read(der: &[u8]) -> Option<AttestationStatement> {
        let fields = Vec::<Any>::from_der(der).ok()?;
        let (version, mode, issued_at, policies, hint) = match fields.as_slice() {
            [version, mode, issued_at, policies] => (version, mode, issued_at, policies, None),
            [version, mode, issued_at, policies, hint] => (version, mode, issued_at, policies, Some(hint)),
            _ => return None,
        };
        let byte = |value: &Any, tag: Tag| match (value.tag() == tag, value.value()) {
            (true, [byte]) => Some(*byte),
            _ => None,
        };
        if byte(version, Tag::Integer)? != 1 {
            return None;
        }
        let issued_at = issued_at.decode_as::<GeneralizedTime>().ok()?.to_unix_duration();
        let policies = Vec::<Any>::from_der(&policies.to_der().ok()?).ok()?;
        let policies = policies.iter().map(|policy| {
            let pair = Vec::<Any>::from_der(&policy.to_der().ok()?).ok()?;
            let [id, passed] = pair.as_slice() else { return None };
            let id: [u8; 16] = (id.tag() == Tag::OctetString).then(|| id.value())?.try_into().ok()?;
            Some(PolicyVerdict {
                id: Uuid::from_bytes_le(id),
                passed: passed.decode_as::<bool>().ok()?,
            })
        });
        Some(AttestationStatement {
            mode: AttestationMode::from_code(byte(mode, Tag::Enumerated)?.into())?,
            issued_at: UnixTime(i64::try_from(issued_at.as_secs()).ok()?),
            policies: policies.collect::<Option<Vec<_>>>()?,
            reset_hint: match hint {
                Some(hint) if hint.tag() == Tag::OctetString => Some(hint.value().to_vec()),
                Some(_) => return None,
                None => None,
            },
        })
    }
}
