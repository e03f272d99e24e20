//! Which refusal is answered by a new attestation, and which by nothing.

use std::cell::RefCell;

use super::*;

/// A KPS that refuses in order with these codes, then answers.
#[derive(Default)]
struct Script {
    codes: RefCell<Vec<&'static str>>,
    /// Every certificate asked for, and whether it had to be a fresh one.
    asked: RefCell<Vec<bool>>,
}

impl Host for Script {
    fn name(&self) -> &str {
        "host01"
    }
    async fn health_certificate(&self, fresh: bool) -> Result<Vec<u8>, VmError> {
        self.asked.borrow_mut().push(fresh);
        Ok(Vec::new())
    }
    async fn roll(&self, _: Vec<u8>) -> Result<Vec<u8>, VmError> {
        match self.codes.borrow_mut().pop() {
            None => Ok(b"answer".to_vec()),
            Some("no contact") => Err(VmError::NoContact("connection refused".to_owned())),
            Some(code) => Err(VmError::Kps {
                code: code.to_owned(),
                message: String::new(),
            }),
        }
    }
    async fn roll_locally(&self, _: &[u8]) -> Result<Option<Vec<u8>>, VmError> {
        Ok(None)
    }
    async fn store(&self, _: VmRequest) -> Result<VmReply, VmError> {
        Err(unexpected())
    }
    async fn offer(&self, _: &Target, _: &MigrationOffer) -> Result<GuestReport, VmError> {
        Err(unexpected())
    }
}

/// A refused certificate is renewed once; a refused protector stays refused.
#[tokio::test]
async fn a_refused_certificate_is_renewed_once() {
    let certificate = "HealthCertificateException";
    for (codes, certificates, good) in [
        (vec![certificate], vec![false, true], true),
        (vec![certificate; 2], vec![false, true], false),
        (vec!["InvalidProtectorException"], vec![false], false),
        (vec!["InvalidWrappingException"], vec![false], false),
    ] {
        let host = Script::default();
        host.codes.replace(codes);
        assert_eq!(roll(&host, b"").await.is_ok(), good);
        assert_eq!(*host.asked.borrow(), certificates);
    }
}

/// Whoever has refused is not asked again by way of an outage.
#[tokio::test]
async fn a_refusal_before_an_outage_stays_a_refusal() {
    let host = Script::default();
    host.codes.replace(vec!["no contact"]);
    assert!(matches!(roll(&host, b"").await, Err(VmError::NoContact(_))));
    host.codes.replace(vec!["no contact", "HealthCertificateException"]);
    let refused = roll(&host, b"").await.unwrap_err();
    assert!(matches!(&refused, VmError::Kps { code, .. } if code == "HealthCertificateException"));
    assert!(refused.to_string().contains("connection refused"), "{refused}");
}
