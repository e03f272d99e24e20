//! The attestation signer: makes itself, and issues health certificates in the one profile
//! (subject, key usage, application policy, key identifiers, our extension). Decides no host's health.

use std::time::Duration;

use md5::{Digest as _, Md5};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, DnType, DnValue, IsCa, Issuer, SerialNumber};
use x509_cert::{
    Certificate,
    der::{
        Any, AnyRef, DateTime, Decode, Encode, SliceReader,
        asn1::{ObjectIdentifier, OctetString},
    },
    ext::pkix::{
        AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectKeyIdentifier,
        name::GeneralName,
    },
};

use super::{
    AttestationMode, AttestationStatement, BACKDATE, CertificateKind, PolicyVerdict, SIGNER_LIFETIME, seconds, unix,
};
use crate::{
    certify::{CertificateSigner, SubjectKey},
    crypto::{CryptoError, PublicKey, sha256},
    env::{Random, UnixTime},
    oid,
    protector::suite::{PrivateKey, Suite},
};

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
    pub key: PublicKey,
    /// What the certificate is for.
    pub kind: CertificateKind,
    /// The mode in which the host was attested.
    pub mode: AttestationMode,
    /// Every policy evaluated; empty outside TPM mode.
    pub policies: Vec<PolicyVerdict>,
    /// Now.
    pub issued_at: UnixTime,
    /// How long it lives; cut at the signer's own end. See [`super::DEFAULT_LIFETIME`].
    pub lifetime: Duration,
}

/// The key that signs health certificates, with its self-signed certificate.
pub struct AttestationSigner {
    pub(super) key: PrivateKey,
    certificate: Certificate,
    /// Its subject, which stands as issuer in what it signs.
    subject: Vec<u8>,
    der: Vec<u8>,
}

impl AttestationSigner {
    /// A new RSA-2048 signer: [`AttestationSigner::generate_of`] suite A.
    pub fn generate(now: UnixTime, rng: &mut dyn Random) -> Result<AttestationSigner, IssueError> {
        AttestationSigner::generate_of(Suite::Rsa, now, rng)
    }

    /// A new signer with a key of that suite, self-signed, valid for [`SIGNER_LIFETIME`].
    ///
    /// It starts an hour back: enclave clients refuse a whole list of signers in which one is not
    /// yet valid by their clock.
    pub fn generate_of(suite: Suite, now: UnixTime, rng: &mut dyn Random) -> Result<AttestationSigner, IssueError> {
        let key = PrivateKey::generate(suite, rng)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(SIGNER_NAME);
        params.serial_number = Some(serial(rng));
        let end = now.plus_seconds(seconds(SIGNER_LIFETIME));
        set_validity(&mut params, now.plus_seconds(-3600), end)?;
        params.is_ca = IsCa::NoCa; // the extensions below say it, in our order
        let identifier = OctetString::new(sha1_identifier(&key.public()))?;
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
        let der = params.self_signed(&CertificateSigner::new(&key))?.der().to_vec();
        AttestationSigner::from_key(key, &der)
    }

    /// From the sealed PKCS#8 key and its certificate; the two must belong together.
    pub fn from_parts(pkcs8: &[u8], certificate_der: &[u8]) -> Result<AttestationSigner, IssueError> {
        AttestationSigner::from_key(PrivateKey::from_pkcs8(pkcs8)?, certificate_der)
    }

    fn from_key(key: PrivateKey, der: &[u8]) -> Result<AttestationSigner, IssueError> {
        let certificate = Certificate::from_der(der).map_err(|_| IssueError::SignerCertificate)?;
        let public = PublicKey::of_certificate(&certificate).ok_or(IssueError::SignerCertificate)?;
        if public != key.public() {
            return Err(IssueError::KeyMismatch);
        }
        subject_key_identifier(&certificate).ok_or(IssueError::SignerCertificate)?;
        Ok(AttestationSigner {
            key,
            subject: certificate.tbs_certificate.subject.to_der()?,
            certificate,
            der: der.to_vec(),
        })
    }

    /// The self-signed certificate, DER.
    pub fn certificate_der(&self) -> &[u8] {
        &self.der
    }

    /// The private key, PKCS#8 DER, for sealing at rest and nothing else.
    #[expect(clippy::expect_used, reason = "no constructor takes a key that is in a token")]
    pub fn expose_pkcs8(&self) -> &[u8] {
        self.key.expose_pkcs8().expect("a signer's key is not in a token")
    }

    /// The key that its signatures verify under.
    pub fn public(&self) -> PublicKey {
        self.key.public()
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
            extension(oid::KEY_USAGE, true, KeyUsage(ask.kind.usage(&ask.key)).to_der()?),
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
        let issuer = Issuer::new(names, CertificateSigner::new(&self.key));
        let der = params.signed_by(&SubjectKey::new(&ask.key), &issuer)?.der().to_vec();
        // The builder writes the issuer from a name of its own; it must be the signer's, byte for byte.
        if issuer_name(&der)? != self.subject {
            return Err(IssueError::SignerCertificate);
        }
        Ok(der)
    }
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

/// The issuer's Name of a certificate as it stands there (RFC 5280 4.1): behind version, serial number and
/// signature algorithm. The whole is not parsed, for this is read in each certificate issued.
fn issuer_name(certificate: &[u8]) -> Result<Vec<u8>, IssueError> {
    let whole = AnyRef::from_der(certificate)?;
    let mut reader = SliceReader::new(whole.value())?;
    let signed = AnyRef::decode(&mut reader)?;
    let mut reader = SliceReader::new(signed.value())?;
    for _ in 0..3 {
        AnyRef::decode(&mut reader)?;
    }
    Ok(AnyRef::decode(&mut reader)?.to_der()?)
}

fn subject_key_identifier(certificate: &Certificate) -> Option<OctetString> {
    let extensions = certificate.tbs_certificate.extensions.as_deref()?;
    let found = extensions
        .iter()
        .find(|extension| extension.extn_id == oid::SUBJECT_KEY_IDENTIFIER)?;
    OctetString::from_der(found.extn_value.as_bytes()).ok()
}

fn sha1_identifier(key: &PublicKey) -> [u8; 20] {
    sha1::Sha1::digest(key.key_bits()).into()
}

pub(super) fn extension(id: ObjectIdentifier, critical: bool, value: Vec<u8>) -> CustomExtension {
    let arcs: Vec<u64> = id.arcs().map(u64::from).collect();
    let mut extension = CustomExtension::from_oid_content(&arcs, value);
    extension.set_criticality(critical);
    extension
}

pub(super) fn common_name(text: &str) -> DistinguishedName {
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
pub(super) fn set_validity(params: &mut CertificateParams, begin: UnixTime, end: UnixTime) -> Result<(), IssueError> {
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

pub(super) const SIGNER_NAME: &str = "Guarded Fabric Attestation Signer";
