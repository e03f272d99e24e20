//! Whether a key is that of the host's CA trustlet, so that it may be certified as an intermediate authority
//! (result type 3). A chain from the log: the measured VSM signing key signs a report, the report holds a hash,
//! the hash is that of the key. Says nothing of the host's health.

use hgs_protocol::{
    crypto::{PublicKey, RsaPublicKey, same, sha256},
    wire::{
        hgsa::ProvidedKind,
        vbs_report::{VbsReport, VbsReportError, VbsReportPackage},
        vsm::{VsmKeyError, parse_vsm_key},
    },
};

use crate::{attest::item, refusal::Refusal};

/// What a request brings for the key of a CA trustlet. Nothing in it is believed yet.
#[derive(Clone, Debug)]
pub struct AuthorityClaim {
    /// Item 1: the key, an `RSA1`, `ECS1` or `ECK1` blob.
    key: Vec<u8>,
    /// Item 5.
    user_data: Vec<u8>,
    /// Item 6.
    report: Vec<u8>,
    /// Item 7.
    signature: Vec<u8>,
}

/// Why the key is not certified (VsmReportValidationErrorReply, MS-HGSA 2.2.2.24), in the order of the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VsmReportError {
    /// Item 7 is not by the measured VSM signing key over item 6.
    #[error("the host's VSM signing key did not sign the CA trustlet's report")]
    Signature,
    /// Item 6 does not parse.
    #[error(transparent)]
    Report(#[from] VbsReportError),
    /// The package's own signature.
    #[error("the host's VSM signing key did not sign the statement in the CA trustlet's report")]
    Statement,
    /// Its keys could be read.
    #[error("the CA trustlet can be debugged, so its key is no secret")]
    Debuggable,
    /// EnclaveData does not begin with item 5.
    #[error("the CA trustlet's report holds another hash than CaTrustletUserData")]
    UserData,
    /// Item 5 is not the SHA-256 of item 1.
    #[error("CaTrustletUserData is not the SHA-256 of the key in item 1")]
    Hash,
    /// Item 1 is no key.
    #[error("the CA trustlet's key: {0}")]
    Key(#[from] VsmKeyError),
}

impl AuthorityClaim {
    /// From a request's items; none unless 1, 5, 6 and 7 are all there.
    pub(crate) fn from_items(provided: &[(ProvidedKind, Vec<u8>)]) -> Result<Option<AuthorityClaim>, Refusal> {
        let item = |kind| item(provided, kind);
        let claim = (
            item(ProvidedKind::VsmIdentityKey)?,
            item(ProvidedKind::CaTrustletUserData)?,
            item(ProvidedKind::CaTrustletVsmReport)?,
            item(ProvidedKind::CaTrustletReportSignature)?,
        );
        let (Some(key), Some(user_data), Some(report), Some(signature)) = claim else {
            return Ok(None);
        };
        Ok(Some(AuthorityClaim {
            key: key.to_vec(),
            user_data: user_data.to_vec(),
            report: report.to_vec(),
            signature: signature.to_vec(),
        }))
    }

    /// The key to be certified, when the VSM signing key found in the measured log vouches for it.
    ///
    /// The package carries a signature of its own over the statement, and that must hold too. Otherwise the report
    /// of an ordinary enclave, which chooses 64 bytes of it, could be offered as a whole package: its statement in
    /// place of item 6 and its signature in place of item 7.
    pub(crate) fn check(&self, signing_key: &RsaPublicKey) -> Result<PublicKey, VsmReportError> {
        if !signing_key.verify_pss_sha256(&self.report, &self.signature) {
            return Err(VsmReportError::Signature);
        }
        let package = VbsReportPackage::parse(&self.report)?;
        let report = VbsReport::parse(&package.statement)?;
        if !signing_key.verify_pss_sha256(&package.statement, &package.signature) {
            return Err(VsmReportError::Statement);
        }
        if report.is_debuggable() {
            return Err(VsmReportError::Debuggable);
        }
        let [hash, _] = report.enclave_data.as_chunks::<32>().0 else {
            return Err(VsmReportError::UserData);
        };
        if !same(hash, &self.user_data) {
            return Err(VsmReportError::UserData);
        }
        if !same(&sha256(&self.key), &self.user_data) {
            return Err(VsmReportError::Hash);
        }
        Ok(parse_vsm_key(&self.key)?)
    }
}
