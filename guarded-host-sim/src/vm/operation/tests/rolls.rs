//! Which refusal is answered by a new attestation, and which by nothing.

use std::cell::RefCell;

use super::*;

/// A KPS that refuses in order with these codes, then answers.
#[derive(Default)]
struct Script {
    codes: RefCell<Vec<&'static str>>,
    /// Every certificate asked for, and whether it had to be a fresh one.
    asked: RefCell<Vec<bool>>,
    /// Whom the requests went to.
    servers: RefCell<Vec<Server>>,
    fallback: bool,
}

impl Host for Script {
    fn name(&self) -> &str {
        "host01"
    }
    fn has_fallback(&self) -> bool {
        self.fallback
    }
    async fn health_certificate(&self, _: Server, fresh: bool) -> Result<Vec<u8>, VmError> {
        self.asked.borrow_mut().push(fresh);
        Ok(Vec::new())
    }
    async fn roll(&self, server: Server, _: Vec<u8>) -> Result<Vec<u8>, VmError> {
        self.servers.borrow_mut().push(server);
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

/// The fallback is asked when the primary says nothing, and obeyed as the primary is.
#[tokio::test]
async fn the_fallback_is_asked_after_silence_alone() {
    use Server::{Fallback, Primary};
    let (silence, refusal) = ("no contact", "InvalidProtectorException");
    for (mut codes, servers, words) in [
        (vec![], vec![Primary], ""),
        (vec![refusal], vec![Primary], refusal),
        (vec![silence], vec![Primary, Fallback], ""),
        (
            vec![silence, refusal],
            vec![Primary, Fallback],
            "said by the fallback; the primary does not answer: connection refused",
        ),
        (vec![silence; 2], vec![Primary, Fallback], "nor the fallback"),
        (
            vec![silence, "HealthCertificateException"],
            vec![Primary, Fallback, Fallback],
            "",
        ),
    ] {
        codes.reverse();
        let host = Script {
            codes: RefCell::new(codes.clone()),
            fallback: true,
            ..Script::default()
        };
        let outcome = roll(&host, b"").await;
        assert_eq!(*host.servers.borrow(), servers, "{codes:?}");
        match outcome {
            Ok(_) => assert_eq!(words, "", "{codes:?}"),
            Err(error) => {
                assert!(
                    error.to_string().contains(words) && !words.is_empty(),
                    "{codes:?}: {error}"
                );
                let silent = matches!(error, VmError::NoContact(_));
                assert_eq!(
                    silent,
                    codes == [silence, silence],
                    "an offline start needs silence from both"
                );
            }
        }
    }
}
