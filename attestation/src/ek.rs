//! Endorsement keys: the forms in which they come (MS-HGSA 2.2.2.12) and whether a trusted TPM vendor
//! vouches for one. Only a certificate chain proves that a key is a TPM's; a bare key proves nothing.

use hgs_protocol::{
    crypto::RsaPublicKey,
    env::UnixTime,
    health::{signed_by, subject_key},
    oid,
    tpm::public::Public,
    wire::vsm::parse_rsa1,
};
use x509_cert::{
    Certificate,
    der::Decode,
    ext::pkix::{BasicConstraints, KeyUsage, KeyUsages},
};

/// An RSA endorsement key's public half. Its registry key is the SHA-256 of its SubjectPublicKeyInfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndorsementKey(RsaPublicKey);

/// Why an endorsement key or its certificate is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndorsementKeyError {
    /// None of the three forms, or not RSA.
    #[error(
        "not an RSA endorsement key as SubjectPublicKeyInfo, RSA1 blob or TPM2B_PUBLIC; keys of other algorithms cannot attest"
    )]
    Form,
    /// A TPM2B_PUBLIC without an endorsement key's attributes.
    #[error("the TPM2B_PUBLIC is not that of a restricted decryption key that never leaves its TPM")]
    Attributes,
    /// The certificate does not parse or its key is not RSA.
    #[error("not an X.509 certificate of an RSA key")]
    Certificate,
    /// The certificate is for another key than the one given beside it.
    #[error("the endorsement key certificate is for another key")]
    OtherKey,
    /// The certificate does not say that it is an endorsement key's.
    #[error("the certificate is not an endorsement key certificate (2.23.133.8.1), or it names a CA")]
    Purpose,
    /// It is not within its dates.
    #[error("the endorsement key certificate, or one above it, is not within its dates")]
    Dates,
    /// No trusted vendor certificate leads to it.
    #[error("no trusted TPM vendor certificate leads to it: add the vendor's root and intermediates first")]
    Untrusted,
}

impl EndorsementKey {
    /// From SubjectPublicKeyInfo DER, an RSA1 blob or a TPM2B_PUBLIC.
    pub fn parse(bytes: &[u8]) -> Result<EndorsementKey, EndorsementKeyError> {
        if let Ok(key) = RsaPublicKey::from_spki_der(bytes) {
            return Ok(EndorsementKey(key));
        }
        if let Ok(key) = parse_rsa1(bytes) {
            return Ok(EndorsementKey(key));
        }
        let public = Public::parse_sized(bytes).map_err(|_| EndorsementKeyError::Form)?;
        let key = public.rsa_key().ok_or(EndorsementKeyError::Form)?;
        if !public.looks_like_ek() {
            return Err(EndorsementKeyError::Attributes);
        }
        Ok(EndorsementKey(key.clone()))
    }

    /// The key that a certificate names. Nothing is said about who signed it.
    pub fn from_certificate(der: &[u8]) -> Result<EndorsementKey, EndorsementKeyError> {
        let certificate = Certificate::from_der(der).map_err(|_| EndorsementKeyError::Certificate)?;
        subject_key(&certificate)
            .map(EndorsementKey)
            .ok_or(EndorsementKeyError::Certificate)
    }

    /// The RSA key.
    pub fn key(&self) -> &RsaPublicKey {
        &self.0
    }

    /// Registry key.
    pub fn sha256(&self) -> [u8; 32] {
        self.0.spki_sha256()
    }
}

/// A trusted certificate of a TPM vendor: a root, or an intermediate on the way to one.
#[derive(Clone)]
pub struct VendorCertificate {
    certificate: Certificate,
    der: Vec<u8>,
    is_root: bool,
}

impl VendorCertificate {
    /// From DER. A certificate that signs itself is a root.
    pub fn parse(der: &[u8]) -> Result<VendorCertificate, EndorsementKeyError> {
        let certificate = Certificate::from_der(der).map_err(|_| EndorsementKeyError::Certificate)?;
        let key = subject_key(&certificate).ok_or(EndorsementKeyError::Certificate)?;
        let tbs = &certificate.tbs_certificate;
        let is_root = tbs.subject == tbs.issuer && signed_by(&certificate, der, &key);
        Ok(VendorCertificate {
            certificate,
            der: der.to_vec(),
            is_root,
        })
    }

    /// Subject, for people.
    pub fn subject(&self) -> String {
        self.certificate.tbs_certificate.subject.to_string()
    }

    /// True for a self-signed certificate.
    pub fn is_root(&self) -> bool {
        self.is_root
    }

    fn issued(&self, certificate: &Certificate, der: &[u8]) -> bool {
        let named = certificate.tbs_certificate.issuer == self.certificate.tbs_certificate.subject;
        named
            && is_authority(&self.certificate)
            && subject_key(&self.certificate).is_some_and(|key| signed_by(certificate, der, &key))
    }
}

/// Walks from an endorsement key certificate up to a trusted root: signature, issuer name, CA flag and
/// dates at each step. Answers the key and the root's subject.
pub fn prove(
    der: &[u8],
    trusted: &[VendorCertificate],
    now: UnixTime,
) -> Result<(EndorsementKey, String), EndorsementKeyError> {
    let key = EndorsementKey::from_certificate(der)?;
    let leaf = Certificate::from_der(der).map_err(|_| EndorsementKeyError::Certificate)?;
    let purposes = extension::<x509_cert::ext::pkix::ExtendedKeyUsage>(&leaf, oid::EXTENDED_KEY_USAGE);
    let is_ek = match purposes {
        None => true, // optional in the credential profile
        Some(Ok(purposes)) => purposes.0.contains(&oid::EK_CERTIFICATE),
        Some(Err(())) => false,
    };
    if !is_ek || is_authority(&leaf) {
        return Err(EndorsementKeyError::Purpose);
    }
    if !within_dates(&leaf, now) {
        return Err(EndorsementKeyError::Dates);
    }
    let (mut certificate, mut bytes) = (&leaf, der);
    for _ in 0..MOST_STEPS {
        let issuer = trusted
            .iter()
            .find(|issuer| issuer.issued(certificate, bytes))
            .ok_or(EndorsementKeyError::Untrusted)?;
        if !within_dates(&issuer.certificate, now) {
            return Err(EndorsementKeyError::Dates);
        }
        if issuer.is_root {
            return Ok((key, issuer.subject()));
        }
        (certificate, bytes) = (&issuer.certificate, &issuer.der);
    }
    Err(EndorsementKeyError::Untrusted)
}

fn is_authority(certificate: &Certificate) -> bool {
    let constraints = extension::<BasicConstraints>(certificate, oid::BASIC_CONSTRAINTS);
    let may_sign = match extension::<KeyUsage>(certificate, oid::KEY_USAGE) {
        None => true,
        Some(Ok(usage)) => usage.0.contains(KeyUsages::KeyCertSign),
        Some(Err(())) => false,
    };
    matches!(constraints, Some(Ok(constraints)) if constraints.ca) && may_sign
}

fn extension<'a, T: Decode<'a>>(
    certificate: &'a Certificate,
    id: x509_cert::der::asn1::ObjectIdentifier,
) -> Option<Result<T, ()>> {
    let extensions = certificate.tbs_certificate.extensions.as_deref()?;
    let found = extensions.iter().find(|extension| extension.extn_id == id)?;
    Some(T::from_der(found.extn_value.as_bytes()).map_err(|_| ()))
}

fn within_dates(certificate: &Certificate, now: UnixTime) -> bool {
    let validity = &certificate.tbs_certificate.validity;
    let seconds = |time: x509_cert::time::Time| i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX);
    (seconds(validity.not_before)..=seconds(validity.not_after)).contains(&now.0)
}

/// More certificates than any vendor's chain has.
const MOST_STEPS: usize = 6;

#[cfg(test)]
mod tests {
    use hgs_protocol::{crypto::RsaPrivateKey, wire::vsm::encode_rsa1};
    use rcgen::{
        BasicConstraints as Constraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
        PKCS_RSA_SHA256,
    };

    use super::*;

    const NOW: UnixTime = UnixTime(1_770_000_000);

    fn key() -> KeyPair {
        let key = RsaPrivateKey::generate_2048().unwrap();
        let der = rustls::pki_types::PrivatePkcs8KeyDer::from(key.expose_pkcs8()).into();
        KeyPair::from_der_and_sign_algo(&der, &PKCS_RSA_SHA256).unwrap()
    }

    fn params(name: &str, is_ca: bool) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = match is_ca {
            true => IsCa::Ca(Constraints::Unconstrained),
            false => IsCa::NoCa,
        };
        if !is_ca {
            let purpose = oid::EK_CERTIFICATE.arcs().map(u64::from).collect();
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(purpose)];
        }
        params
    }

    struct Maker {
        root: Vec<u8>,
        middle: Vec<u8>,
        issuer: Issuer<'static, KeyPair>,
        leaf_key: KeyPair,
    }

    impl Maker {
        fn new(middle_is_ca: bool) -> Maker {
            let (root_key, middle_key) = (key(), key());
            let root = params("root", true).self_signed(&root_key).unwrap();
            let root_issuer = Issuer::new(params("root", true), root_key);
            let middle = params("middle", middle_is_ca)
                .signed_by(&middle_key, &root_issuer)
                .unwrap();
            Maker {
                root: root.der().to_vec(),
                middle: middle.der().to_vec(),
                issuer: Issuer::new(params("middle", true), middle_key),
                leaf_key: key(),
            }
        }

        fn leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
            let mut leaf = params("tpm", false);
            change(&mut leaf);
            leaf.signed_by(&self.leaf_key, &self.issuer).unwrap().der().to_vec()
        }

        fn trusted(&self) -> Vec<VendorCertificate> {
            [&self.middle, &self.root]
                .map(|der| VendorCertificate::parse(der).unwrap())
                .to_vec()
        }
    }

    #[test]
    fn a_chain_to_a_trusted_root_proves_the_key() {
        let maker = Maker::new(true);
        let leaf = maker.leaf(|_| {});
        let (key, vendor) = prove(&leaf, &maker.trusted(), NOW).unwrap();
        assert_eq!(key, EndorsementKey::from_certificate(&leaf).unwrap());
        assert_eq!(vendor, "CN=root");
    }

    #[test]
    fn each_broken_chain_has_its_reason() {
        let maker = Maker::new(true);
        let leaf = maker.leaf(|_| {});
        let trusted = maker.trusted();
        let refused = |der: &[u8], trusted: &[VendorCertificate]| prove(der, trusted, NOW).unwrap_err();
        assert_eq!(refused(&leaf, &[]), EndorsementKeyError::Untrusted);
        assert_eq!(refused(&leaf, &trusted[..1]), EndorsementKeyError::Untrusted, "no root");
        assert_eq!(
            refused(&leaf, &trusted[1..]),
            EndorsementKeyError::Untrusted,
            "no intermediate"
        );
        let stranger = Maker::new(true);
        assert_eq!(
            refused(&leaf, &stranger.trusted()),
            EndorsementKeyError::Untrusted,
            "equal names"
        );
        let not_ca = Maker::new(false);
        assert_eq!(
            refused(&not_ca.leaf(|_| {}), &not_ca.trusted()),
            EndorsementKeyError::Untrusted
        );

        let expired = maker.leaf(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
        assert_eq!(refused(&expired, &trusted), EndorsementKeyError::Dates);
        let authority = maker.leaf(|params| params.is_ca = IsCa::Ca(Constraints::Unconstrained));
        assert_eq!(refused(&authority, &trusted), EndorsementKeyError::Purpose);
        let server = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let server = maker.leaf(|params| params.extended_key_usages = server);
        assert_eq!(refused(&server, &trusted), EndorsementKeyError::Purpose);
        assert_eq!(refused(&[0x30, 0], &trusted), EndorsementKeyError::Certificate);
    }

    #[test]
    fn two_forms_of_one_key_are_one_key() {
        let key = RsaPrivateKey::generate_2048().unwrap();
        let spki = EndorsementKey::parse(&key.public().spki_der()).unwrap();
        let blob = EndorsementKey::parse(&encode_rsa1(key.public())).unwrap();
        assert_eq!(spki, blob);
        assert_eq!(spki.sha256(), key.public().spki_sha256());
        for bad in [&[][..], &[0x30], b"RSA1", &[0, 4, 0, 1, 0, 11]] {
            assert_eq!(EndorsementKey::parse(bad), Err(EndorsementKeyError::Form));
        }
    }
}
