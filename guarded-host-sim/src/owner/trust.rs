//! Whether a guardian's certificates may be used: within their validity and under a root that the
//! owner trusts, as New-HgsGuardian, Import-HgsGuardian, New-HgsKeyProtector and
//! Grant-HgsKeyProtectorAccess ask, each with the same two ways to pass over it.
//!
//! Revocation of certificates is not looked up.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use clap::Args;
use hgs_protocol::{
    env::UnixTime,
    protector::{Certificate, Guardian},
};
use rustls::pki_types::{self, CertificateDer, pem::PemObject};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, anchor_from_trusted_cert};
use x509_cert::{der::Decode, ext::pkix::BasicConstraints};

use super::certificate::{CertificateView, printable};

/// What to take as trusted.
#[derive(Args, Clone, Debug, Default)]
pub struct TrustArgs {
    /// Folder of trusted certificates, DER or PEM: authorities, or guardians' self-signed ones
    #[arg(long, value_name = "DIR")]
    roots: Option<PathBuf>,
    /// Take certificates that are self-signed or under no trusted root: you have compared the thumbprints
    #[arg(long)]
    allow_untrusted_root: bool,
    /// Take certificates outside their validity
    #[arg(long)]
    allow_expired: bool,
}

/// The owner's rules, roots read.
#[derive(Clone, Debug, Default)]
pub struct TrustRules {
    roots: Vec<CertificateDer<'static>>,
    allow_untrusted_root: bool,
    allow_expired: bool,
}

/// A certificate that the rules do not take: which one, why, and what would take it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Distrusted {
    /// Its last moment has passed, or its first has not come.
    #[error(
        "{certificate} is valid from {not_before} until {not_after}, and it is {now}: ask for a newer one, or repeat \
         with --allow-expired, which takes certificates outside their validity"
    )]
    Validity {
        /// Which.
        certificate: String,
        /// First moment of validity.
        not_before: UnixTime,
        /// Last moment of validity.
        not_after: UnixTime,
        /// The owner's time.
        now: UnixTime,
    },
    /// It vouches for itself.
    #[error(
        "{certificate} is self-signed: nothing but its thumbprint tells whose it is. Compare the thumbprint with the \
         one that the guardian's administrator reads to you; then repeat with --allow-untrusted-root, or put the \
         certificate into a folder and name that with --roots"
    )]
    SelfSigned {
        /// Which.
        certificate: String,
    },
    /// No trusted root leads to it.
    #[error(
        "{certificate} is under no trusted root: its issuer is {issuer} ({reason}). Name a folder with its \
         authorities with --roots; or compare the thumbprint with the one that the guardian's administrator reads to \
         you and repeat with --allow-untrusted-root"
    )]
    UnknownRoot {
        /// Which.
        certificate: String,
        /// Its issuer.
        issuer: String,
        /// What the walk came to.
        reason: String,
    },
}

impl TrustArgs {
    /// Reads the roots; says on standard error which files of the folder hold none.
    pub fn rules(&self) -> anyhow::Result<TrustRules> {
        let (roots, skipped) = self.roots.as_deref().map(read_roots).transpose()?.unwrap_or_default();
        for file in skipped {
            eprintln!("not used as a root: {} is no certificate, DER or PEM", file.display());
        }
        Ok(TrustRules {
            roots,
            allow_untrusted_root: self.allow_untrusted_root,
            allow_expired: self.allow_expired,
        })
    }
}

impl TrustRules {
    /// Rules with these roots, DER.
    pub fn new(roots: Vec<Vec<u8>>, allow_untrusted_root: bool, allow_expired: bool) -> TrustRules {
        TrustRules {
            roots: roots.into_iter().map(CertificateDer::from).collect(),
            allow_untrusted_root,
            allow_expired,
        }
    }

    /// Checks both certificates of `guardian`.
    pub fn check(&self, guardian: &Guardian, now: UnixTime) -> Result<(), Distrusted> {
        self.check_one("signing", guardian.name(), guardian.signing(), now)?;
        self.check_one("encryption", guardian.name(), guardian.encryption(), now)
    }

    fn check_one(&self, kind: &str, name: &str, certificate: &Certificate, now: UnixTime) -> Result<(), Distrusted> {
        let view = CertificateView::of(certificate);
        let which = || {
            let (subject, thumbprint) = (&view.subject, &view.thumbprint);
            format!("the {kind} certificate of {name} ({subject}, thumbprint {thumbprint})")
        };
        if !self.allow_expired && !view.is_valid_at(now) {
            return Err(Distrusted::Validity {
                certificate: which(),
                not_before: view.validity.0,
                not_after: view.validity.1,
                now,
            });
        }
        if self.allow_untrusted_root || self.roots.iter().any(|root| root.as_ref() == certificate.der()) {
            return Ok(());
        }
        if view.self_signed {
            return Err(Distrusted::SelfSigned { certificate: which() });
        }
        // What may be expired is judged as it was when it was issued.
        let at = if self.allow_expired { view.validity.0 } else { now };
        self.walk(certificate.der(), at)
            .map_err(|error| Distrusted::UnknownRoot {
                certificate: which(),
                issuer: view.issuer.clone(),
                reason: printable(&error.to_string()),
            })
    }

    fn walk(&self, leaf: &[u8], at: UnixTime) -> Result<(), webpki::Error> {
        // A root that is no authority is trusted for itself alone.
        let anchors: Vec<_> = self
            .roots
            .iter()
            .filter(|root| is_authority(root))
            .filter_map(|root| anchor_from_trusted_cert(root).ok())
            .collect();
        let leaf = CertificateDer::from(leaf);
        let seconds = Duration::from_secs(u64::try_from(at.0).unwrap_or_default());
        let leaf = EndEntityCert::try_from(&leaf)?;
        leaf.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &[],
            pki_types::UnixTime::since_unix_epoch(seconds),
            AnyUsage,
            None,
            None,
        )
        .map(drop)
    }
}

/// The specification gives guardians' certificates no extended key usage.
struct AnyUsage;

impl ExtendedKeyUsageValidator for AnyUsage {
    fn validate(&self, _: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

fn is_authority(der: &[u8]) -> bool {
    x509_cert::Certificate::from_der(der)
        .ok()
        .and_then(|certificate| certificate.tbs_certificate.get::<BasicConstraints>().ok().flatten())
        .is_some_and(|(_, constraints)| constraints.ca)
}

/// Every certificate in the files of `folder`, and the files without one, which a folder of openssl's has too.
fn read_roots(folder: &Path) -> anyhow::Result<(Vec<CertificateDer<'static>>, Vec<PathBuf>)> {
    let (mut roots, mut skipped) = (Vec::new(), Vec::new());
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read the folder {}", folder.display()))?;
    for entry in entries {
        let file = entry?.path();
        if !file.is_file() {
            continue;
        }
        let bytes = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        if x509_cert::Certificate::from_der(&bytes).is_ok() {
            roots.push(CertificateDer::from(bytes));
            continue;
        }
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
        match found {
            Ok(found) if !found.is_empty() => roots.extend(found),
            _ => skipped.push(file),
        }
    }
    Ok((roots, skipped))
}
