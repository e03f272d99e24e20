//! One X.509 certificate as TPM vendors really write them: RDN sets out of order, the year 9999, keys
//! named RSAES-OAEP, an empty subject, filler behind the certificate. Reads and verifies one signature;
//! trusts nothing.

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use hgs_protocol::{crypto::RsaPublicKey, env::UnixTime};
use x509_parser::{
    asn1_rs::{Any, Class},
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
    public_key::PublicKey,
    x509::SubjectPublicKeyInfo,
};

/// What the walk needs of a certificate, out of the bytes.
#[derive(Clone, Debug)]
pub struct ParsedCertificate {
    pub(super) der: Vec<u8>,
    pub(super) subject: String,
    pub(super) issuer: String,
    pub(super) serial: String,
    pub(super) not_before: UnixTime,
    pub(super) not_after: UnixTime,
    /// basicConstraints' cA; none without the extension.
    pub(super) authority: Option<bool>,
    pub(super) path_length: Option<u32>,
    pub(super) extended_usages: Option<Vec<String>>,
    pub(super) directory_name: Option<String>,
    /// A critical extension that nothing here enforces.
    pub(super) unknown_critical: Option<String>,
    usage: Option<Usage>,
    key: Key,
    key_bytes: Vec<u8>,
    signed: Vec<u8>,
    algorithm: String,
    signature: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Usage {
    signs_certificates: bool,
    decrypts: bool,
}

#[derive(Clone, Debug)]
enum Key {
    Rsa(usize),
    /// Its curve's object identifier.
    Ec(String),
    Other(String),
}

/// Why a certificate is not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not X.509.
    #[error("not an X.509 certificate in DER")]
    Form,
    /// Something follows it that is not filler.
    #[error("{0} bytes follow the certificate")]
    Trailing(usize),
    /// An extension that the walk reads is malformed or stands twice.
    #[error("the extension {0} is malformed or stands twice")]
    Extension(String),
}

impl ParsedCertificate {
    /// The RSA key that a certificate names, and nothing else of it: each trip of an exchange repeats the
    /// certificate, and only the key decides who speaks. None where [`ParsedCertificate::parse`] finds no key.
    pub fn rsa_key_of(bytes: &[u8]) -> Option<RsaPublicKey> {
        let (rest, certificate) = Any::from_der(bytes).ok()?;
        only_filler(rest).ok()?;
        let (_, signed) = Any::from_der(certificate.data).ok()?;
        // Version (not in version 1), serial number, signature algorithm, issuer, validity, subject: RFC 5280
        // section 4.1.
        let (mut rest, first) = Any::from_der(signed.data).ok()?;
        let before_key = if first.class() == Class::ContextSpecific { 5 } else { 4 };
        for _ in 0..before_key {
            (rest, _) = Any::from_der(rest).ok()?;
        }
        let (_, spki) = SubjectPublicKeyInfo::from_der(rest).ok()?;
        RSA_KEYS
            .contains(&spki.algorithm.algorithm.to_id_string().as_str())
            .then(|| components(spki.subject_public_key.as_ref()))?
    }

    /// From DER, possibly with the filler (00 or FF) behind it that a TPM's memory leaves.
    pub fn parse(bytes: &[u8]) -> Result<ParsedCertificate, CertificateError> {
        let (rest, certificate) = X509Certificate::from_der(bytes).map_err(|_| CertificateError::Form)?;
        only_filler(rest)?;
        let validity = certificate.validity();
        let spki = certificate.public_key();
        let curve = || {
            let parameters = spki.algorithm.parameters.as_ref()?;
            parameters.as_oid().ok().map(|oid| oid.to_id_string())
        };
        let key = match spki.parsed() {
            Ok(PublicKey::RSA(rsa)) => Key::Rsa(rsa.key_size()),
            Ok(PublicKey::EC(_)) => Key::Ec(curve().unwrap_or_default()),
            // RSAES-OAEP and RSASSA-PSS keys have RSA's form under another name.
            _ if RSA_KEYS.contains(&spki.algorithm.algorithm.to_id_string().as_str()) => {
                Key::Rsa(components(spki.subject_public_key.as_ref()).map_or(0, |key| key.bits()))
            }
            _ => Key::Other(spki.algorithm.algorithm.to_id_string()),
        };
        let mut parsed = ParsedCertificate {
            der: bytes.get(..bytes.len() - rest.len()).unwrap_or(bytes).to_vec(),
            subject: certificate.subject().to_string(),
            issuer: certificate.issuer().to_string(),
            serial: hex::encode(certificate.tbs_certificate.raw_serial()),
            not_before: UnixTime(validity.not_before.timestamp()),
            not_after: UnixTime(validity.not_after.timestamp()),
            authority: None,
            path_length: None,
            extended_usages: None,
            directory_name: None,
            unknown_critical: None,
            usage: None,
            key,
            key_bytes: spki.subject_public_key.as_ref().to_vec(),
            signed: certificate.tbs_certificate.as_ref().to_vec(),
            algorithm: certificate.signature_algorithm.algorithm.to_id_string(),
            signature: certificate.signature_value.as_ref().to_vec(),
        };
        // The name outside the signature must be the name inside it (RFC 5280 section 4.1.1.2).
        if certificate.tbs_certificate.signature != certificate.signature_algorithm {
            return Err(CertificateError::Form);
        }
        parsed.read_extensions(&certificate)?;
        Ok(parsed)
    }

    fn read_extensions(&mut self, certificate: &X509Certificate<'_>) -> Result<(), CertificateError> {
        let map = certificate.extensions_map();
        map.map_err(|_| CertificateError::Extension("list".to_owned()))?;
        for extension in certificate.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::BasicConstraints(constraints) => {
                    self.authority = Some(constraints.ca);
                    self.path_length = constraints.path_len_constraint;
                }
                ParsedExtension::KeyUsage(usage) => {
                    self.usage = Some(Usage {
                        signs_certificates: usage.key_cert_sign(),
                        decrypts: usage.key_encipherment() || usage.data_encipherment(),
                    });
                }
                ParsedExtension::ExtendedKeyUsage(usages) => {
                    let named = [
                        (usages.any, "2.5.29.37.0"),
                        (usages.server_auth, "1.3.6.1.5.5.7.3.1"),
                        (usages.client_auth, "1.3.6.1.5.5.7.3.2"),
                        (usages.code_signing, "1.3.6.1.5.5.7.3.3"),
                        (usages.email_protection, "1.3.6.1.5.5.7.3.4"),
                        (usages.time_stamping, "1.3.6.1.5.5.7.3.8"),
                        (usages.ocsp_signing, "1.3.6.1.5.5.7.3.9"),
                    ];
                    let named = named.iter().filter(|(on, _)| *on).map(|(_, id)| (*id).to_owned());
                    self.extended_usages =
                        Some(named.chain(usages.other.iter().map(|oid| oid.to_id_string())).collect());
                }
                ParsedExtension::SubjectAlternativeName(names) => {
                    self.directory_name = names.general_names.iter().find_map(|name| match name {
                        GeneralName::DirectoryName(name) => Some(tpm_name(&name.to_string())),
                        _ => None,
                    });
                }
                ParsedExtension::ParseError { .. } => {
                    return Err(CertificateError::Extension(extension.oid.to_id_string()));
                }
                // These restrict nothing that the walk decides, critical or not.
                ParsedExtension::AuthorityKeyIdentifier(_)
                | ParsedExtension::SubjectKeyIdentifier(_)
                | ParsedExtension::CertificatePolicies(_)
                | ParsedExtension::CRLDistributionPoints(_)
                | ParsedExtension::AuthorityInfoAccess(_)
                | ParsedExtension::IssuerAlternativeName(_) => {}
                _ if extension.critical => self.unknown_critical = Some(extension.oid.to_id_string()),
                _ => {}
            }
        }
        Ok(())
    }

    /// The certificate's own bytes, without filler.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Subject, or where it is empty the directory name of subjectAltName.
    pub fn name(&self) -> String {
        match (&self.directory_name, self.subject.is_empty()) {
            (Some(name), true) => name.clone(),
            _ => self.subject.clone(),
        }
    }

    /// True when it may sign certificates.
    pub fn is_authority(&self) -> bool {
        self.authority == Some(true) && self.usage.is_none_or(|usage| usage.signs_certificates)
    }

    /// True unless its key usage forbids encryption to the key.
    pub fn may_decrypt(&self) -> bool {
        self.usage.is_none_or(|usage| usage.decrypts)
    }

    /// Whether the signature is by the key of `issuer`. Names are not compared.
    pub(super) fn signed_by(&self, issuer: &ParsedCertificate) -> bool {
        algorithm(&self.algorithm, &issuer.key).is_some_and(|algorithm| {
            let key = UnparsedPublicKey::new(algorithm, &issuer.key_bytes);
            key.verify(&self.signed, &self.signature).is_ok()
        })
    }

    /// The key's algorithm and size.
    pub(super) fn key_name(&self) -> String {
        match &self.key {
            Key::Rsa(bits) => format!("RSA {bits}"),
            Key::Ec(curve) => match curve.as_str() {
                P256 => "EC P-256".to_owned(),
                P384 => "EC P-384".to_owned(),
                P521 => "EC P-521".to_owned(),
                other => format!("EC {other}"),
            },
            Key::Other(algorithm) => algorithm.clone(),
        }
    }

    /// The name of the signature's algorithm; its object identifier where it is none that is verified here.
    pub(super) fn signature_algorithm_name(&self) -> String {
        let known = SIGNATURES.iter().find(|(id, _)| *id == self.algorithm);
        known.map_or_else(|| self.algorithm.clone(), |(_, name)| (*name).to_owned())
    }
}

fn only_filler(rest: &[u8]) -> Result<(), CertificateError> {
    match rest.iter().all(|byte| *byte == 0) || rest.iter().all(|byte| *byte == 0xFF) {
        true => Ok(()),
        false => Err(CertificateError::Trailing(rest.len())),
    }
}

fn components(pkcs1: &[u8]) -> Option<RsaPublicKey> {
    let (_, key) = x509_parser::der_parser::parse_der(pkcs1).ok()?;
    match key.as_sequence().ok()?.as_slice() {
        [modulus, exponent] => {
            RsaPublicKey::from_components(modulus.content.as_slice().ok()?, exponent.content.as_slice().ok()?).ok()
        }
        _ => None,
    }
}

/// The three attributes that every such name has, by their names.
fn tpm_name(text: &str) -> String {
    text.replace("OID(2.23.133.2.1)=", "tpmManufacturer=")
        .replace("OID(2.23.133.2.2)=", "tpmModel=")
        .replace("OID(2.23.133.2.3)=", "tpmVersion=")
}

fn algorithm(signature: &str, key: &Key) -> Option<&'static dyn VerificationAlgorithm> {
    let curve = match key {
        Key::Ec(curve) => curve.as_str(),
        _ => "",
    };
    Some(match (signature, key, curve) {
        (RSA_SHA1, Key::Rsa(_), _) => &signature::RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY,
        (RSA_SHA256, Key::Rsa(_), _) => &signature::RSA_PKCS1_2048_8192_SHA256,
        (RSA_SHA384, Key::Rsa(_), _) => &signature::RSA_PKCS1_2048_8192_SHA384,
        (RSA_SHA512, Key::Rsa(_), _) => &signature::RSA_PKCS1_2048_8192_SHA512,
        (ECDSA_SHA256, _, P256) => &signature::ECDSA_P256_SHA256_ASN1,
        (ECDSA_SHA384, _, P256) => &signature::ECDSA_P256_SHA384_ASN1,
        (ECDSA_SHA256, _, P384) => &signature::ECDSA_P384_SHA256_ASN1,
        (ECDSA_SHA384, _, P384) => &signature::ECDSA_P384_SHA384_ASN1,
        (ECDSA_SHA256, _, P521) => &signature::ECDSA_P521_SHA256_ASN1,
        (ECDSA_SHA384, _, P521) => &signature::ECDSA_P521_SHA384_ASN1,
        (ECDSA_SHA512, _, P521) => &signature::ECDSA_P521_SHA512_ASN1,
        _ => return None,
    })
}

const RSA_SHA1: &str = "1.2.840.113549.1.1.5";
const RSA_SHA256: &str = "1.2.840.113549.1.1.11";
const RSA_SHA384: &str = "1.2.840.113549.1.1.12";
const RSA_SHA512: &str = "1.2.840.113549.1.1.13";
const ECDSA_SHA256: &str = "1.2.840.10045.4.3.2";
const ECDSA_SHA384: &str = "1.2.840.10045.4.3.3";
const ECDSA_SHA512: &str = "1.2.840.10045.4.3.4";
const P256: &str = "1.2.840.10045.3.1.7";
const P384: &str = "1.3.132.0.34";
const P521: &str = "1.3.132.0.35";
/// rsaEncryption, id-RSAES-OAEP, id-RSASSA-PSS.
const RSA_KEYS: [&str; 3] = ["1.2.840.113549.1.1.1", "1.2.840.113549.1.1.7", "1.2.840.113549.1.1.10"];
const SIGNATURES: [(&str, &str); 7] = [
    (RSA_SHA1, "sha1WithRSA"),
    (RSA_SHA256, "sha256WithRSA"),
    (RSA_SHA384, "sha384WithRSA"),
    (RSA_SHA512, "sha512WithRSA"),
    (ECDSA_SHA256, "ecdsa-with-sha256"),
    (ECDSA_SHA384, "ecdsa-with-sha384"),
    (ECDSA_SHA512, "ecdsa-with-sha512"),
];
