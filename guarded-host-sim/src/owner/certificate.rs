//! A guardian's certificate as people and scripts are shown it.

use std::fmt::Write as _;

use hgs_protocol::{
    env::UnixTime,
    protector::{Certificate, suite::PublicKey},
};
use serde::Serialize;
use x509_cert::{
    der::{Decode, Encode},
    time::Time,
};

/// What a certificate says, made harmless for a terminal. Nothing of it is verified here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateView {
    /// Subject (RFC 4514).
    pub subject: String,
    /// Issuer (RFC 4514).
    pub issuer: String,
    /// Whether it names itself as its issuer.
    pub self_signed: bool,
    /// SHA-1 of the DER in upper-case hex, as the product shows it.
    pub thumbprint: String,
    /// SHA-256 of the DER, hex.
    pub sha256: String,
    /// First moment of validity.
    pub not_before: String,
    /// Last moment of validity.
    pub not_after: String,
    /// `A` (RSA) or `B` (P-256).
    pub suite: &'static str,
    /// Algorithm and size of the key.
    pub key: String,
    /// The moments of validity as times.
    #[serde(skip)]
    pub validity: (UnixTime, UnixTime),
}

impl CertificateView {
    /// What `certificate` says.
    pub fn of(certificate: &Certificate) -> CertificateView {
        let (suite, key) = match certificate.public_key() {
            PublicKey::Rsa(key) => ("A", format!("RSA-{}", key.bits())),
            PublicKey::P256(_) => ("B", "P-256".to_owned()),
        };
        // A `Certificate` has been decoded once already, so that the names and dates below are there.
        let decoded = x509_cert::Certificate::from_der(certificate.der()).ok();
        let body = decoded.as_ref().map(|decoded| &decoded.tbs_certificate);
        let name = |name: Option<&x509_cert::name::Name>| printable(&name.map(ToString::to_string).unwrap_or_default());
        let self_signed = body.is_some_and(|body| match (body.subject.to_der(), body.issuer.to_der()) {
            (Ok(subject), Ok(issuer)) => subject == issuer,
            _ => false,
        });
        let time = |time: Option<Time>| {
            let seconds = time.map_or(0, |time| time.to_unix_duration().as_secs());
            UnixTime(i64::try_from(seconds).unwrap_or(i64::MAX))
        };
        let validity = body.map(|body| body.validity);
        let validity = (
            time(validity.map(|v| v.not_before)),
            time(validity.map(|v| v.not_after)),
        );
        CertificateView {
            subject: name(body.map(|body| &body.subject)),
            issuer: name(body.map(|body| &body.issuer)),
            self_signed,
            thumbprint: certificate.thumbprint(),
            sha256: hex::encode(certificate.sha256()),
            not_before: validity.0.to_string(),
            not_after: validity.1.to_string(),
            suite,
            key,
            validity,
        }
    }

    /// Whether `now` lies within its validity.
    pub fn is_valid_at(&self, now: UnixTime) -> bool {
        (self.validity.0..=self.validity.1).contains(&now)
    }

    /// Three lines for a person, each indented by `indent` spaces.
    pub fn text(&self, indent: usize, now: UnixTime) -> String {
        let pad = " ".repeat(indent);
        let issuer = match self.self_signed {
            true => "self-signed".to_owned(),
            false => format!("issued by {}", self.issuer),
        };
        let outside = if self.is_valid_at(now) { "" } else { ": NOT valid now" };
        format!(
            "{pad}{}, {issuer}\n{pad}thumbprint {}, {} (suite {})\n{pad}{} until {}{outside}\n",
            self.subject, self.thumbprint, self.key, self.suite, self.not_before, self.not_after
        )
    }
}

/// `text` with everything escaped that could move a terminal's cursor or turn its direction round.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let hidden =
            matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
        if c.is_control() || hidden {
            // Writing to a string does not fail.
            let _ = write!(out, "{}", c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use hgs_protocol::{env::OsRandom, protector::KeyPair};

    #[test]
    fn a_hostile_name_does_not_reach_the_terminal() {
        let now = UnixTime(1_800_000_000);
        let pair = KeyPair::generate_signing("a\u{1b}[2Jb\u{202e}", now, &mut OsRandom).unwrap();
        let view = CertificateView::of(pair.certificate());
        assert_eq!(view.subject, "CN=a\\1b[2Jb\\u{202e}");
        assert_eq!(printable("\u{1b}[2J\u{9b}"), "\\u{1b}[2J\\u{9b}");
        assert!(view.self_signed && view.is_valid_at(now));
        assert!(!view.is_valid_at(UnixTime(1_000_000_000)));
        assert_eq!((view.suite, view.key.as_str()), ("A", "RSA-2048"));
    }
}
