//! The story of an attestation in host-key mode (MS-HGSA 3.1.5.3.1.3): a registered key signs the VSM key
//! to be certified. Proves who the host is and nothing about its health.
//!
//! The signed bytes hold no nonce, so a recorded request can be sent again for as long as the host key is
//! registered. Hence every VSM key is recorded when first seen, and an administrator can deny one.

use hgs_protocol::{
    crypto::{EcPublicKey, RsaPublicKey},
    env::Random,
    health::CertificateKind,
    wire::{
        hgsa::{ProvidedKind, Reply, Request, SessionId},
        vsm::{parse_ec_blob, parse_rsa1, parse_vsm_key},
    },
};
use x509_cert::{
    Certificate,
    der::{Decode, Encode},
};

use crate::{
    attest::{Decision, Issuing, item},
    facts::VsmIdentityError,
    refusal::Refusal,
    store::KnownHostKey,
};

/// The public half of a host key. Its registry key is the SHA-256 of its SubjectPublicKeyInfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostKey {
    /// RSA, 2048 to 4096 bits.
    Rsa(RsaPublicKey),
    /// P-256.
    P256(EcPublicKey),
}

/// Bytes that are no host key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a host key: give an RSA key of 2048 to 4096 bits or a P-256 key, as a certificate, a SubjectPublicKeyInfo, or an RSA1 or ECS1 blob, with nothing after it"
)]
pub struct HostKeyError;

impl HostKey {
    /// From an `RSA1`, `ECS1` or `ECK1` blob or a SubjectPublicKeyInfo, without a byte left over: the
    /// signature covers two keys joined, which must not be readable in two ways.
    pub fn parse(bytes: &[u8]) -> Result<HostKey, HostKeyError> {
        let rsa = parse_rsa1(bytes)
            .ok()
            .or_else(|| RsaPublicKey::from_spki_der(bytes).ok());
        let p256 = || {
            parse_ec_blob(bytes)
                .ok()
                .or_else(|| EcPublicKey::from_spki_der(bytes).ok())
        };
        rsa.map(HostKey::Rsa)
            .or_else(|| p256().map(HostKey::P256))
            .ok_or(HostKeyError)
    }

    /// From what an administrator registers: a key in any form, or a certificate (DER or PEM), of which only
    /// the key counts. Neither its chain nor its dates are looked at.
    pub fn from_registration(bytes: &[u8]) -> Result<HostKey, HostKeyError> {
        if let Ok(key) = HostKey::parse(bytes) {
            return Ok(key);
        }
        let certificate = match x509_cert::der::pem::decode_vec(bytes) {
            Ok((_, der)) => Certificate::from_der(&der),
            Err(_) => Certificate::from_der(bytes),
        };
        let certificate = certificate.map_err(|_| HostKeyError)?;
        let spki = certificate.tbs_certificate.subject_public_key_info.to_der();
        HostKey::parse(&spki.map_err(|_| HostKeyError)?)
    }

    /// Registry key.
    pub fn sha256(&self) -> [u8; 32] {
        match self {
            HostKey::Rsa(key) => key.spki_sha256(),
            HostKey::P256(key) => key.spki_sha256(),
        }
    }

    /// `RSA` or `P-256`.
    pub fn algorithm(&self) -> &'static str {
        match self {
            HostKey::Rsa(_) => "RSA",
            HostKey::P256(_) => "P-256",
        }
    }

    /// PKCS#1 v1.5 or PSS (salt of 32 bytes) with SHA-256; ECDSA with SHA-256 as r then s.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            HostKey::Rsa(key) => {
                key.verify_pkcs1_sha256(message, signature) || key.verify_pss_sha256(message, signature)
            }
            HostKey::P256(key) => key.verify_sha256(message, signature),
        }
    }
}

/// A request in host-key mode.
#[derive(Clone, Debug)]
pub struct HostKeyAsk {
    /// The attempt.
    pub session: SessionId,
    /// Certificates asked for, in order.
    pub requested: Vec<CertificateKind>,
    /// The host key; none when its bytes are no key, which then is not registered either.
    pub host_key: Option<HostKey>,
    host_key_bytes: Vec<u8>,
    vsm_key_bytes: Vec<u8>,
    signature: Vec<u8>,
}

impl HostKeyAsk {
    /// From a request at the URL of the mode. Its three items must be there, each once.
    pub fn from_request(request: Request) -> Result<HostKeyAsk, Refusal> {
        let Request::Attestation {
            session,
            requested,
            provided,
        } = request
        else {
            return Err(Refusal::Payload("the request's type does not fit the URL".to_owned()));
        };
        let wanted = |kind| {
            let found = item(&provided, kind)?.map(<[u8]>::to_vec);
            found.ok_or_else(|| Refusal::Payload(format!("ProvidedContent has no {kind:?}")))
        };
        let vsm_key_bytes = wanted(ProvidedKind::VsmIdentityKey)?;
        let host_key_bytes = wanted(ProvidedKind::HostKeyPublicKey)?;
        let signature = wanted(ProvidedKind::HostKeySignature)?;
        if requested.contains(&CertificateKind::Authority) {
            return Err(Refusal::Payload(
                "certificates of result type 3 are issued in TPM mode only".to_owned(),
            ));
        }
        Ok(HostKeyAsk {
            session,
            requested,
            host_key: HostKey::parse(&host_key_bytes).ok(),
            host_key_bytes,
            vsm_key_bytes,
            signature,
        })
    }
}

/// Decides one request. `host` is the registration of the request's host key.
pub fn attest_host_key(
    ask: &HostKeyAsk,
    host: Option<&KnownHostKey>,
    issuing: &Issuing<'_>,
    rng: &mut dyn Random,
) -> Decision {
    let mut decision = Decision::of(Err(Refusal::Unauthorized));
    decision.outcome = conclude(ask, host, issuing, &mut decision, rng);
    decision
}

fn conclude(
    ask: &HostKeyAsk,
    host: Option<&KnownHostKey>,
    issuing: &Issuing<'_>,
    decision: &mut Decision,
    rng: &mut dyn Random,
) -> Result<Reply, Refusal> {
    let (Some(key), Some(host)) = (&ask.host_key, host) else {
        return Err(Refusal::UnknownHostKey);
    };
    // The story does not trust the shell to have looked up the right row.
    if key.sha256() != host.spki_sha256 {
        return Err(Refusal::UnknownHostKey);
    }
    let signed = [ask.host_key_bytes.as_slice(), &ask.vsm_key_bytes].concat();
    if !key.verifies(&signed, &ask.signature) {
        return Err(Refusal::HostKeySignature);
    }
    let vsm_key = parse_vsm_key(&ask.vsm_key_bytes).map_err(VsmIdentityError::from)?;
    let mut content = Vec::new();
    for kind in &ask.requested {
        content.push(issuing.certify(vsm_key.clone(), *kind, Vec::new(), decision, rng)?);
    }
    Ok(Reply::HealthCertificate { content })
}

#[cfg(test)]
mod tests {
    use hgs_protocol::{
        crypto::RsaPrivateKey,
        wire::vsm::{encode_ecs1, encode_rsa1},
    };

    use super::*;

    #[test]
    fn a_host_key_is_one_key_in_every_form() {
        let rsa = RsaPrivateKey::generate_2048().unwrap();
        let blob = HostKey::parse(&encode_rsa1(rsa.public())).unwrap();
        assert_eq!(blob, HostKey::parse(&rsa.public().spki_der()).unwrap());
        assert_eq!(blob.sha256(), rsa.public().spki_sha256());
        assert_eq!(blob.algorithm(), "RSA");

        let generated = rcgen::generate_simple_self_signed(vec!["host.example".to_owned()]).unwrap();
        let from_der = HostKey::from_registration(generated.cert.der()).unwrap();
        let from_pem = HostKey::from_registration(generated.cert.pem().as_bytes()).unwrap();
        assert_eq!(from_der, from_pem);
        let HostKey::P256(key) = &from_der else {
            panic!("{from_der:?}")
        };
        let blob = encode_ecs1(key);
        assert_eq!(HostKey::parse(&blob), Ok(from_der.clone()));
        let agreement = [b"ECK1", &blob[4..]].concat();
        assert_eq!(HostKey::parse(&agreement), Ok(from_der));
    }

    #[test]
    fn no_form_takes_a_byte_more_or_less() {
        let rsa = RsaPrivateKey::generate_2048().unwrap();
        let generated = rcgen::generate_simple_self_signed(vec!["host.example".to_owned()]).unwrap();
        let HostKey::P256(p256) = HostKey::from_registration(generated.cert.der()).unwrap() else {
            panic!("the generator makes P-256 keys")
        };
        for bytes in [
            encode_rsa1(rsa.public()),
            rsa.public().spki_der(),
            encode_ecs1(&p256),
            p256.spki_der(),
        ] {
            assert!(HostKey::parse(&bytes).is_ok());
            assert_eq!(HostKey::parse(&[bytes.as_slice(), &[0]].concat()), Err(HostKeyError));
            for end in 0..bytes.len() {
                assert_eq!(HostKey::parse(&bytes[..end]), Err(HostKeyError), "{end}");
            }
        }
        assert_eq!(HostKey::from_registration(b"-----BEGIN"), Err(HostKeyError));
    }
}
