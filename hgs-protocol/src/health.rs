//! Health certificates: what attestation issues to a healthy host and key protection accepts.
//!
//! [`AttestationSigner::issue`] writes the profile, [`HealthCertificate::accept`] decides whether
//! one is good enough to seal keys to. Attestation's verdict itself is made elsewhere; this module
//! never looks at a boot log.

use std::time::Duration;

use aws_lc_rs::signature::{self, UnparsedPublicKey};
use md5::{Digest as _, Md5};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, DnType, DnValue, IsCa, Issuer, SerialNumber};
use uuid::Uuid;
use x509_cert::{
    Certificate, Version,
    der::{
        Any, DateTime, Decode, Encode, Tag, Tagged,
        asn1::{GeneralizedTime, ObjectIdentifier, OctetString},
        flagset::FlagSet,
    },
    ext::{
        Extension,
        pkix::{
            AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectKeyIdentifier,
            name::GeneralName,
        },
    },
};

use crate::{
    crypto::{CryptoError, RsaPrivateKey, RsaPublicKey, sha256},
    env::{Random, UnixTime},
    oid,
};

/// How a host proves itself (AttestationOperationMode, MS-HGSA 2.2.1.1). The wire's 0, unknown, is no mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
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

    fn purpose(self) -> ObjectIdentifier {
        match self {
            CertificateKind::Encryption => oid::HEALTH_ENCRYPTION,
            CertificateKind::Signing => oid::HEALTH_SIGNING,
            CertificateKind::Authority => oid::HEALTH_AUTHORITY,
        }
    }

    fn usage(self) -> FlagSet<KeyUsages> {
        match self {
            CertificateKind::Encryption => KeyUsages::KeyEncipherment | KeyUsages::DataEncipherment,
            CertificateKind::Signing => KeyUsages::DigitalSignature.into(),
            CertificateKind::Authority => KeyUsages::KeyCertSign.into(),
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

/// Why a signer or a certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The signer's certificate has expired; make a new signer and let key protection trust it.
    #[error("the attestation signer expired at {not_after}; rotate it")]
    SignerExpired {
        /// The signer's notAfter.
        not_after: UnixTime,
    },
    /// The private key is not the one that the certificate names.
    #[error("the private key does not belong to the attestation signer's certificate")]
    KeyMismatch,
    /// The signer's certificate does not parse, or lacks what issuing needs.
    #[error("not usable as an attestation signer's certificate")]
    SignerCertificate,
    /// A time lies outside what X.509 can express.
    #[error("the time cannot be written into a certificate")]
    Time,
    /// The key could not be made or used.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
    /// A structure would not encode.
    #[error("the certificate does not encode: {0}")]
    Encoding(#[from] x509_cert::der::Error),
    /// The certificate builder refused.
    #[error("the certificate could not be built: {0}")]
    Builder(#[from] rcgen::Error),
}

/// What goes into one health certificate.
#[derive(Clone, Debug)]
pub struct HealthCertificateRequest {
    /// Exactly the key that was measured or proved.
    pub key: RsaPublicKey,
    /// What the certificate is for.
    pub kind: CertificateKind,
    /// The mode in which the host was attested.
    pub mode: AttestationMode,
    /// Every policy evaluated; empty outside TPM mode.
    pub policies: Vec<PolicyVerdict>,
    /// Now.
    pub issued_at: UnixTime,
    /// How long it lives; cut at the signer's own end. See [`DEFAULT_LIFETIME`].
    pub lifetime: Duration,
}

/// The key that signs health certificates, with its self-signed certificate.
pub struct AttestationSigner {
    key: RsaPrivateKey,
    certificate: Certificate,
    der: Vec<u8>,
}

impl AttestationSigner {
    /// A new RSA-2048 signer, self-signed, valid for [`SIGNER_LIFETIME`].
    ///
    /// It starts an hour back: enclave clients refuse a whole list of signers in which one is not
    /// yet valid by their clock.
    pub fn generate(now: UnixTime, rng: &mut dyn Random) -> Result<AttestationSigner, IssueError> {
        let key = RsaPrivateKey::generate_2048()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(SIGNER_NAME);
        params.serial_number = Some(serial(rng));
        let end = now.plus_seconds(seconds(SIGNER_LIFETIME));
        set_validity(&mut params, now.plus_seconds(-3600), end)?;
        params.is_ca = IsCa::NoCa; // the extensions below say it, in our order
        let identifier = OctetString::new(sha1_identifier(key.public()))?;
        let constraints = BasicConstraints {
            ca: true,
            path_len_constraint: None,
        };
        params.custom_extensions = vec![
            extension(oid::BASIC_CONSTRAINTS, true, constraints.to_der()?),
            extension(oid::KEY_USAGE, true, KeyUsage(KeyUsages::KeyCertSign.into()).to_der()?),
            extension(
                oid::SUBJECT_KEY_IDENTIFIER,
                false,
                SubjectKeyIdentifier(identifier).to_der()?,
            ),
        ];
        let der = params.self_signed(&Signing::new(&key))?.der().to_vec();
        AttestationSigner::from_key(key, &der)
    }

    /// From the sealed PKCS#8 key and its certificate; the two must belong together.
    pub fn from_parts(pkcs8: &[u8], certificate_der: &[u8]) -> Result<AttestationSigner, IssueError> {
        AttestationSigner::from_key(RsaPrivateKey::from_pkcs8(pkcs8)?, certificate_der)
    }

    fn from_key(key: RsaPrivateKey, der: &[u8]) -> Result<AttestationSigner, IssueError> {
        let certificate = Certificate::from_der(der).map_err(|_| IssueError::SignerCertificate)?;
        let public = subject_key(&certificate).ok_or(IssueError::SignerCertificate)?;
        if &public != key.public() {
            return Err(IssueError::KeyMismatch);
        }
        subject_key_identifier(&certificate).ok_or(IssueError::SignerCertificate)?;
        Ok(AttestationSigner {
            key,
            certificate,
            der: der.to_vec(),
        })
    }

    /// The self-signed certificate, DER.
    pub fn certificate_der(&self) -> &[u8] {
        &self.der
    }

    /// The private key, PKCS#8 DER, for sealing at rest and nothing else.
    pub fn expose_pkcs8(&self) -> &[u8] {
        self.key.expose_pkcs8()
    }

    /// When the signer's certificate ends.
    pub fn not_after(&self) -> UnixTime {
        unix(self.certificate.tbs_certificate.validity.not_after)
    }

    /// A health certificate in the profile that key protection and enclave clients accept, DER.
    pub fn issue(&self, ask: &HealthCertificateRequest, rng: &mut dyn Random) -> Result<Vec<u8>, IssueError> {
        let signer = &self.certificate.tbs_certificate;
        let signer_end = self.not_after();
        if ask.issued_at >= signer_end {
            return Err(IssueError::SignerExpired { not_after: signer_end });
        }
        let end = ask.issued_at.plus_seconds(seconds(ask.lifetime)).min(signer_end);
        let spki = ask.key.spki_der();
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(&hex::encode_upper(sha256(&spki)));
        params.serial_number = Some(serial(rng));
        set_validity(&mut params, ask.issued_at.plus_seconds(-seconds(BACKDATE)), end)?;
        params.is_ca = IsCa::NoCa;

        let statement = AttestationStatement {
            mode: ask.mode,
            issued_at: ask.issued_at,
            policies: ask.policies.clone(),
            reset_hint: None,
        };
        let authority = AuthorityKeyIdentifier {
            key_identifier: subject_key_identifier(&self.certificate),
            authority_cert_issuer: Some(vec![GeneralName::DirectoryName(signer.issuer.clone())]),
            authority_cert_serial_number: Some(signer.serial_number.clone()),
        };
        let md5: [u8; 16] = Md5::digest(&spki).into();
        let policy = Any::from_der(&vec![oid::HEALTH_POLICY].to_der()?)?;
        params.custom_extensions = vec![
            extension(oid::KEY_USAGE, true, KeyUsage(ask.kind.usage()).to_der()?),
            extension(oid::APPLICATION_POLICIES, false, vec![policy].to_der()?),
            extension(
                oid::SUBJECT_KEY_IDENTIFIER,
                false,
                SubjectKeyIdentifier(OctetString::new(md5)?).to_der()?,
            ),
            extension(oid::AUTHORITY_KEY_IDENTIFIER, false, authority.to_der()?),
            extension(
                oid::EXTENDED_KEY_USAGE,
                false,
                ExtendedKeyUsage(vec![ask.kind.purpose()]).to_der()?,
            ),
            extension(oid::ATTESTATION, false, statement.encode()?),
        ];
        if ask.kind == CertificateKind::Authority {
            let constraints = BasicConstraints {
                ca: true,
                path_len_constraint: Some(0),
            };
            params
                .custom_extensions
                .push(extension(oid::BASIC_CONSTRAINTS, true, constraints.to_der()?));
        }

        let mut names = CertificateParams::default();
        names.distinguished_name = common_name(SIGNER_NAME);
        let issuer = Issuer::new(names, Signing::new(&self.key));
        let der = params.signed_by(&Subject(ask.key.pkcs1_der()), &issuer)?.der().to_vec();
        // The builder writes the issuer from a name of its own; it must be the signer's, byte for byte.
        let written = Certificate::from_der(&der)?;
        if written.tbs_certificate.issuer != signer.subject {
            return Err(IssueError::SignerCertificate);
        }
        Ok(der)
    }
}

/// A signer that key protection trusts: its key, and the moment before which nothing counts.
#[derive(Clone, Debug)]
pub struct TrustedSigner {
    key: RsaPublicKey,
    sha256: [u8; 32],
    /// Health certificates issued before this are refused
    /// (the documented setting DenyHealthCertificatesIssuedBefore).
    pub deny_issued_before: Option<UnixTime>,
}

impl TrustedSigner {
    /// From the signer's certificate. Only its key matters: names and dates are not compared.
    pub fn from_certificate(der: &[u8]) -> Result<TrustedSigner, HealthCertificateError> {
        let certificate = Certificate::from_der(der).map_err(|_| HealthCertificateError::NotX509)?;
        Ok(TrustedSigner {
            key: subject_key(&certificate).ok_or(HealthCertificateError::Key)?,
            sha256: sha256(der),
            deny_issued_before: None,
        })
    }

    /// SHA-256 of the certificate: the thumbprint shown to an administrator.
    pub fn thumbprint(&self) -> [u8; 32] {
        self.sha256
    }
}

/// The part of acceptance that an administrator may choose.
#[derive(Clone, Debug)]
pub struct AcceptanceRules {
    /// Modes whose certificates are accepted; all by default.
    pub modes: Vec<AttestationMode>,
}

impl Default for AcceptanceRules {
    fn default() -> AcceptanceRules {
        AcceptanceRules {
            modes: AttestationMode::ALL.to_vec(),
        }
    }
}

/// Why a health certificate was not accepted. The order is that of the checks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HealthCertificateError {
    /// Over [`MAX_CERTIFICATE`] bytes.
    #[error("the health certificate is longer than 16 KiB")]
    TooLong,
    /// Not one DER certificate of version 3.
    #[error("the health certificate is not an X.509 version 3 certificate")]
    NotX509,
    /// Signed by an algorithm weaker than, or other than, SHA-256 with RSA.
    #[error("the health certificate is signed with {0}, not with sha256WithRSA or stronger")]
    SignatureAlgorithm(ObjectIdentifier),
    /// No trusted attestation signer's key made the signature.
    #[error("no trusted attestation signer signed the health certificate")]
    UntrustedSigner,
    /// Its time has not come.
    #[error("the health certificate is not valid before {0}")]
    NotYetValid(UnixTime),
    /// Its time is over: attest again.
    #[error("the health certificate expired at {0}; attest again")]
    Expired(UnixTime),
    /// It lives longer than a day, or ends before it begins.
    #[error("the health certificate's lifetime of {0} seconds is not within 24 hours")]
    Lifetime(i64),
    /// Issued before the administrator's cut.
    #[error("the health certificate was issued at {issued_at}, and those from before {denied_before} are denied")]
    Denied {
        /// When it was issued.
        issued_at: UnixTime,
        /// The setting.
        denied_before: UnixTime,
    },
    /// An authority's certificate.
    #[error("a certificate authority's certificate is no health certificate")]
    Authority,
    /// A critical extension that we do not know.
    #[error("the health certificate has the unknown critical extension {0}")]
    UnknownCriticalExtension(ObjectIdentifier),
    /// One extension twice, or one that does not parse.
    #[error("the health certificate's extension {0} is malformed or repeated")]
    Extension(ObjectIdentifier),
    /// The two places that name the signature algorithm differ.
    #[error("the health certificate names two different signature algorithms")]
    AlgorithmMismatch,
    /// Its key may not receive keys.
    #[error("the health certificate's key usage does not allow keyEncipherment")]
    KeyUsage,
    /// It is not for encryption (a signing certificate, say).
    #[error("the health certificate is not one for encryption")]
    Purpose,
    /// The attestation extension is absent.
    #[error("the health certificate does not say how the host was attested")]
    StatementMissing,
    /// The attestation extension does not parse.
    #[error("the health certificate's attestation extension is malformed")]
    StatementMalformed,
    /// Attested in a mode that is not allowed here.
    #[error("health certificates of mode {0:?} are not accepted here")]
    Mode(AttestationMode),
    /// A policy in it failed.
    #[error("the health certificate records the policy {0} as failed")]
    PolicyFailed(Uuid),
    /// The key is not RSA of 2048 to 4096 bits.
    #[error("the certificate's key is not RSA of 2048 to 4096 bits")]
    Key,
}

/// A certificate that parses as a health certificate; nothing is believed yet.
#[derive(Clone, Debug)]
pub struct HealthCertificate {
    certificate: Certificate,
    der: Vec<u8>,
}

impl HealthCertificate {
    /// Reads one DER certificate: X.509 version 3, within [`MAX_CERTIFICATE`], signed with RSA and SHA-256 or stronger.
    pub fn parse(der: &[u8]) -> Result<HealthCertificate, HealthCertificateError> {
        if der.len() > MAX_CERTIFICATE {
            return Err(HealthCertificateError::TooLong);
        }
        let certificate = Certificate::from_der(der).map_err(|_| HealthCertificateError::NotX509)?;
        if certificate.tbs_certificate.version != Version::V3 {
            return Err(HealthCertificateError::NotX509);
        }
        let algorithm = certificate.signature_algorithm.oid;
        if verification(algorithm).is_none() {
            return Err(HealthCertificateError::SignatureAlgorithm(algorithm));
        }
        Ok(HealthCertificate {
            certificate,
            der: der.to_vec(),
        })
    }

    /// The certificate as it came.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The serial number in hex, for rows and logs.
    pub fn serial(&self) -> String {
        hex::encode(self.certificate.tbs_certificate.serial_number.as_bytes())
    }

    /// Start and end of validity.
    pub fn validity(&self) -> (UnixTime, UnixTime) {
        let validity = self.certificate.tbs_certificate.validity;
        (unix(validity.not_before), unix(validity.not_after))
    }

    /// The attestation extension. What it says counts only once the certificate is accepted.
    pub fn statement(&self) -> Result<AttestationStatement, HealthCertificateError> {
        let extension = self
            .extension(oid::ATTESTATION)?
            .ok_or(HealthCertificateError::StatementMissing)?;
        AttestationStatement::parse(extension.extn_value.as_bytes())
    }

    /// Decides whether keys may be sealed to this certificate's key, in the order in which
    /// key protection is to check it.
    pub fn accept(
        &self,
        signers: &[TrustedSigner],
        now: UnixTime,
        rules: &AcceptanceRules,
    ) -> Result<CertifiedHost, HealthCertificateError> {
        use HealthCertificateError as Refused;
        let signer = signers
            .iter()
            .find(|signer| signed_by(&self.certificate, &self.der, &signer.key))
            .ok_or(Refused::UntrustedSigner)?;

        let (begin, end) = self.validity();
        if now < begin.plus_seconds(-seconds(BACKDATE)) {
            return Err(Refused::NotYetValid(begin));
        }
        if now > end {
            return Err(Refused::Expired(end));
        }
        // The start is set back for clients with slow clocks; that does not count as life.
        let lifetime = end.seconds_since(begin.plus_seconds(seconds(BACKDATE)));
        if !(0..=seconds(MAX_LIFETIME)).contains(&lifetime) {
            return Err(Refused::Lifetime(lifetime));
        }
        if let Some(denied_before) = signer.deny_issued_before {
            let issued_at = self.statement()?.issued_at;
            if issued_at < denied_before {
                return Err(Refused::Denied {
                    issued_at,
                    denied_before,
                });
            }
        }

        if let Some(constraints) = self.read::<BasicConstraints>(oid::BASIC_CONSTRAINTS)?
            && constraints.ca
        {
            return Err(Refused::Authority);
        }
        for extension in self.extensions() {
            if extension.critical && !KNOWN.contains(&extension.extn_id) {
                return Err(Refused::UnknownCriticalExtension(extension.extn_id));
            }
        }
        if self.certificate.signature_algorithm != self.certificate.tbs_certificate.signature {
            return Err(Refused::AlgorithmMismatch);
        }
        let usage = self.read::<KeyUsage>(oid::KEY_USAGE)?.ok_or(Refused::KeyUsage)?;
        if !usage.0.contains(KeyUsages::KeyEncipherment) {
            return Err(Refused::KeyUsage);
        }
        let purposes = self
            .read::<ExtendedKeyUsage>(oid::EXTENDED_KEY_USAGE)?
            .ok_or(Refused::Purpose)?;
        if !purposes.0.contains(&oid::HEALTH_ENCRYPTION) {
            return Err(Refused::Purpose);
        }
        let statement = self.statement()?;
        if !rules.modes.contains(&statement.mode) {
            return Err(Refused::Mode(statement.mode));
        }
        if let Some(failed) = statement.policies.iter().find(|verdict| !verdict.passed) {
            return Err(Refused::PolicyFailed(failed.id));
        }
        Ok(CertifiedHost {
            key: subject_key(&self.certificate).ok_or(Refused::Key)?,
            serial: self.serial(),
            not_after: end,
            statement,
            signer: signer.sha256,
        })
    }

    fn extensions(&self) -> &[Extension] {
        self.certificate
            .tbs_certificate
            .extensions
            .as_deref()
            .unwrap_or_default()
    }

    fn extension(&self, id: ObjectIdentifier) -> Result<Option<&Extension>, HealthCertificateError> {
        let mut found = self.extensions().iter().filter(|extension| extension.extn_id == id);
        match (found.next(), found.next()) {
            (_, Some(_)) => Err(HealthCertificateError::Extension(id)),
            (found, None) => Ok(found),
        }
    }

    fn read<'a, T: Decode<'a>>(&'a self, id: ObjectIdentifier) -> Result<Option<T>, HealthCertificateError> {
        self.extension(id)?
            .map(|extension| T::from_der(extension.extn_value.as_bytes()))
            .transpose()
            .map_err(|_| HealthCertificateError::Extension(id))
    }
}

/// A host whose health certificate was accepted: keys may be sealed to it.
#[derive(Clone, Debug)]
pub struct CertifiedHost {
    key: RsaPublicKey,
    serial: String,
    not_after: UnixTime,
    statement: AttestationStatement,
    signer: [u8; 32],
}

impl CertifiedHost {
    /// The VSM key that alone may open what is sealed to this host.
    pub fn encryption_key(&self) -> &RsaPublicKey {
        &self.key
    }

    /// The certificate's serial number in hex.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// The certificate's end.
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }

    /// How, when and with which verdicts the host was attested.
    pub fn statement(&self) -> &AttestationStatement {
        &self.statement
    }

    /// Thumbprint (SHA-256) of the signer that vouches for it.
    pub fn signer_thumbprint(&self) -> [u8; 32] {
        self.signer
    }
}

/// True when `certificate` (whose bytes are `der`) carries a signature by `key`: RSA PKCS#1 v1.5
/// with SHA-256, SHA-384 or SHA-512. Names, dates and extensions are not looked at.
pub fn signed_by(certificate: &Certificate, der: &[u8], key: &RsaPublicKey) -> bool {
    let Some(algorithm) = verification(certificate.signature_algorithm.oid) else {
        return false;
    };
    let (Some(tbs), Some(signature)) = (tbs_bytes(der), certificate.signature.as_bytes()) else {
        return false;
    };
    UnparsedPublicKey::new(algorithm, key.pkcs1_der())
        .verify(tbs, signature)
        .is_ok()
}

/// The certificate's key when it is an RSA key that we take.
pub fn subject_key(certificate: &Certificate) -> Option<RsaPublicKey> {
    let spki = certificate.tbs_certificate.subject_public_key_info.to_der().ok()?;
    RsaPublicKey::from_spki_der(&spki).ok()
}

/// The bytes that a certificate's signature covers, as they stand in `der`.
///
/// They are taken from the input and never encoded anew: some authorities' encodings are not DER.
pub fn tbs_bytes(der: &[u8]) -> Option<&[u8]> {
    use x509_cert::der::{Reader, SliceReader};
    let mut reader = SliceReader::new(der).ok()?;
    reader
        .sequence(|certificate| {
            let tbs = certificate.tlv_bytes()?;
            while !certificate.is_finished() {
                certificate.tlv_bytes()?;
            }
            Ok(tbs)
        })
        .ok()
}

/// A certificates-only PKCS#7 SignedData (RFC 5652, version 1), DER: no content, no digests, no
/// signers. The order is DER's, not the argument's.
pub fn certificates_only(certificates: &[&[u8]]) -> Result<Vec<u8>, IssueError> {
    use cms::{
        cert::CertificateChoices,
        content_info::{CmsVersion, ContentInfo},
        signed_data::{CertificateSet, EncapsulatedContentInfo, SignedData, SignerInfos},
    };
    let mut set = CertificateSet(Default::default());
    for der in certificates {
        let certificate = Certificate::from_der(der).map_err(|_| IssueError::SignerCertificate)?;
        set.0.insert(CertificateChoices::Certificate(certificate))?;
    }
    let signed = SignedData {
        version: CmsVersion::V1,
        digest_algorithms: Default::default(),
        encap_content_info: EncapsulatedContentInfo {
            econtent_type: oid::PKCS7_DATA,
            econtent: None,
        },
        certificates: Some(set),
        crls: None,
        signer_infos: SignerInfos(Default::default()),
    };
    let info = ContentInfo {
        content_type: oid::PKCS7_SIGNED_DATA,
        content: Any::from_der(&signed.to_der()?)?,
    };
    Ok(info.to_der()?)
}

fn verification(algorithm: ObjectIdentifier) -> Option<&'static signature::RsaParameters> {
    match algorithm {
        oid::SHA256_WITH_RSA => Some(&signature::RSA_PKCS1_2048_8192_SHA256),
        oid::SHA384_WITH_RSA => Some(&signature::RSA_PKCS1_2048_8192_SHA384),
        oid::SHA512_WITH_RSA => Some(&signature::RSA_PKCS1_2048_8192_SHA512),
        _ => None,
    }
}

fn subject_key_identifier(certificate: &Certificate) -> Option<OctetString> {
    let extensions = certificate.tbs_certificate.extensions.as_deref()?;
    let found = extensions
        .iter()
        .find(|extension| extension.extn_id == oid::SUBJECT_KEY_IDENTIFIER)?;
    OctetString::from_der(found.extn_value.as_bytes()).ok()
}

fn sha1_identifier(key: &RsaPublicKey) -> [u8; 20] {
    sha1::Sha1::digest(key.pkcs1_der()).into()
}

fn extension(id: ObjectIdentifier, critical: bool, value: Vec<u8>) -> CustomExtension {
    let arcs: Vec<u64> = id.arcs().map(u64::from).collect();
    let mut extension = CustomExtension::from_oid_content(&arcs, value);
    extension.set_criticality(critical);
    extension
}

fn common_name(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, DnValue::Utf8String(text.to_owned()));
    name
}

/// 16 random bytes that stay 16 bytes as a positive DER INTEGER.
fn serial(rng: &mut dyn Random) -> SerialNumber {
    let mut bytes: [u8; 16] = rng.bytes();
    let [first, ..] = &mut bytes;
    *first = (*first & 0x3f) | 0x40;
    SerialNumber::from_slice(&bytes)
}

/// The builder's own time type is not in its interface by name, hence a function that sets both.
fn set_validity(params: &mut CertificateParams, begin: UnixTime, end: UnixTime) -> Result<(), IssueError> {
    let since_epoch = |time: UnixTime| {
        let seconds = u64::try_from(time.0).map_err(|_| IssueError::Time)?;
        let duration = Duration::from_secs(seconds);
        // Refuses years past 9999, which the builder would not.
        DateTime::from_unix_duration(duration).map_err(|_| IssueError::Time)?;
        Ok::<_, IssueError>(duration)
    };
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + since_epoch(begin)?;
    params.not_after = epoch + since_epoch(end)?;
    Ok(())
}

fn unix(time: x509_cert::time::Time) -> UnixTime {
    UnixTime(i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX))
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

struct Signing<'a> {
    key: &'a RsaPrivateKey,
    public: Vec<u8>,
}

impl Signing<'_> {
    fn new(key: &RsaPrivateKey) -> Signing<'_> {
        Signing {
            key,
            public: key.public().pkcs1_der(),
        }
    }
}

impl rcgen::PublicKeyData for Signing<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_RSA_SHA256
    }
}

impl rcgen::SigningKey for Signing<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.key
            .sign_pkcs1_sha256(message)
            .map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

struct Subject(Vec<u8>);

impl rcgen::PublicKeyData for Subject {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_RSA_SHA256
    }
}

/// How long a health certificate lives unless configured otherwise.
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(8 * 3600);
/// The longest life that key protection accepts.
pub const MAX_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How long a new signer lives.
pub const SIGNER_LIFETIME: Duration = Duration::from_secs(5 * 365 * 86_400);
/// The largest health certificate read, in bytes.
pub const MAX_CERTIFICATE: usize = 16 * 1024;
/// How far notBefore lies before the moment of issue, and the skew that acceptance allows.
pub const BACKDATE: Duration = Duration::from_secs(300);

const SIGNER_NAME: &str = "Guarded Fabric Attestation Signer";
const KNOWN: [ObjectIdentifier; 7] = [
    oid::KEY_USAGE,
    oid::APPLICATION_POLICIES,
    oid::SUBJECT_KEY_IDENTIFIER,
    oid::AUTHORITY_KEY_IDENTIFIER,
    oid::EXTENDED_KEY_USAGE,
    oid::BASIC_CONSTRAINTS,
    oid::ATTESTATION,
];

#[cfg(test)]
mod tests;
