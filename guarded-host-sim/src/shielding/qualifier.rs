//! Which templates the owner of a VM trusts: a volume-id qualifier names a template by its signer and its name, and
//! its version by a rule (New-VolumeIDQualifier of the product).
//!
//! `Equals` means that very template: another content under the same name and version, signed anew, is another
//! template. The other rules trust the signer with whatever he publishes under a higher version.

use std::fmt;

use hgs_protocol::protector::Certificate;
use serde::{Deserialize, Serialize};

use super::catalogue::{SignedCatalogue, TemplateName, Version};
use crate::vm::fields;

/// Most qualifiers of one shielding data file.
pub const MAX_QUALIFIERS: usize = 32;

/// Which versions a qualifier takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum VersionRule {
    /// The version named, with the content that it had.
    Equals,
    /// Later ones.
    GreaterThan,
    /// The version named and later ones.
    #[value(alias = "greaterorequal")]
    GreaterThanOrEquals,
}

/// A template that an owner trusts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Qualifier {
    /// Its name.
    pub name: TemplateName,
    /// The version that the rule compares with.
    pub version: Version,
    /// The rule.
    pub rule: VersionRule,
    /// What stands for the content of that version ([`super::catalogue::Identity::root`]).
    pub root: [u8; 32],
    /// Whose signature counts.
    pub signer: Certificate,
}

/// Why no qualifier takes a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unqualified {
    /// Nobody whom the owner trusts signed it.
    #[error(
        "the template {name} is signed by a certificate that the shielding data does not trust (thumbprint \
         {thumbprint}): use a template of a signer that its owner named"
    )]
    Signer {
        /// The template.
        name: TemplateName,
        /// Of the certificate that signed it.
        thumbprint: String,
    },
    /// The signer is trusted with other templates.
    #[error("the shielding data does not trust the template {name}, but others of its signer")]
    Name {
        /// The template.
        name: TemplateName,
    },
    /// No rule takes the version.
    #[error("version {found} of the template {name} is refused: the shielding data takes {wanted}")]
    Version {
        /// The template.
        name: TemplateName,
        /// Its version.
        found: Version,
        /// What would be taken.
        wanted: String,
    },
    /// The right version with another content.
    #[error(
        "the template {name} was signed anew with another content under the same version {version}, and the shielding \
         data takes only the content that its owner saw"
    )]
    Content {
        /// The template.
        name: TemplateName,
        /// Its version.
        version: Version,
    },
}

impl Qualifier {
    /// Names a template by its catalogue.
    pub fn of(catalogue: &SignedCatalogue, rule: VersionRule) -> Qualifier {
        let identity = catalogue.identity();
        Qualifier {
            name: identity.name.clone(),
            version: identity.version,
            rule,
            root: identity.root,
            signer: catalogue.signer().clone(),
        }
    }

    /// Field name, version, rule (1 to 3), root, field certificate.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        fields::put(out, self.name.as_str().as_bytes());
        self.version.write(out);
        out.push(match self.rule {
            VersionRule::Equals => 1,
            VersionRule::GreaterThan => 2,
            VersionRule::GreaterThanOrEquals => 3,
        });
        out.extend_from_slice(&self.root);
        fields::put(out, self.signer.der());
    }

    pub(super) fn take(rest: &mut &[u8]) -> Option<Qualifier> {
        let name = std::str::from_utf8(fields::take(rest)?).ok()?;
        Some(Qualifier {
            name: TemplateName::try_from(name.to_owned()).ok()?,
            version: Version::take(rest)?,
            rule: match fields::take_array(rest)? {
                [1] => VersionRule::Equals,
                [2] => VersionRule::GreaterThan,
                [3] => VersionRule::GreaterThanOrEquals,
                _ => return None,
            },
            root: fields::take_array(rest)?,
            signer: Certificate::parse(fields::take(rest)?).ok()?,
        })
    }

    fn takes(&self, version: Version) -> bool {
        match self.rule {
            VersionRule::Equals => version == self.version,
            VersionRule::GreaterThan => version > self.version,
            VersionRule::GreaterThanOrEquals => version >= self.version,
        }
    }
}

/// Whether one of `qualifiers` takes the template of `catalogue`; if not, what comes nearest to the reason.
pub fn qualify(qualifiers: &[Qualifier], catalogue: &SignedCatalogue) -> Result<(), Unqualified> {
    let identity = catalogue.identity();
    let name = identity.name.clone();
    let of_signer: Vec<_> = qualifiers.iter().filter(|q| q.signer == *catalogue.signer()).collect();
    if of_signer.is_empty() {
        let thumbprint = catalogue.signer().thumbprint();
        return Err(Unqualified::Signer { name, thumbprint });
    }
    let of_name: Vec<_> = of_signer.into_iter().filter(|q| q.name == name).collect();
    if of_name.is_empty() {
        return Err(Unqualified::Name { name });
    }
    let found = identity.version;
    let mut fitting = of_name.iter().filter(|q| q.takes(found)).peekable();
    if fitting.peek().is_none() {
        let wanted: Vec<String> = of_name.iter().map(ToString::to_string).collect();
        let wanted = wanted.join(" or ");
        return Err(Unqualified::Version { name, found, wanted });
    }
    let same = |q: &&Qualifier| q.rule != VersionRule::Equals || q.root == identity.root;
    match fitting.any(same) {
        true => Ok(()),
        false => Err(Unqualified::Content { name, version: found }),
    }
}

/// The rule with its version.
impl fmt::Display for Qualifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = self.version;
        match self.rule {
            VersionRule::Equals => write!(f, "version {version} alone"),
            VersionRule::GreaterThan => write!(f, "versions after {version}"),
            VersionRule::GreaterThanOrEquals => write!(f, "version {version} and later"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hgs_protocol::{
        crypto::sha256,
        env::{SeededRandom, UnixTime},
        protector::{KeyPair, KeyPurpose, suite::Suite},
    };

    fn pair(seed: u64) -> KeyPair {
        let (now, rng) = (UnixTime(1_800_000_000), &mut SeededRandom::new(seed));
        KeyPair::generate(Suite::P256, KeyPurpose::Signing, "maker", now, rng).unwrap()
    }

    fn template(signer: &KeyPair, name: &str, version: &str, content: &[u8]) -> SignedCatalogue {
        let (name, version) = (name.parse().unwrap(), version.parse().unwrap());
        SignedCatalogue::sign(name, version, content.len() as u64, vec![sha256(content)], signer).unwrap()
    }

    #[test]
    fn each_rule_takes_what_it_says() {
        let (maker, other) = (pair(1), pair(2));
        let named = template(&maker, "Server", "1.2", b"content");
        let judge = |rule, signer: &KeyPair, name: &str, version: &str, content: &[u8]| {
            qualify(
                &[Qualifier::of(&named, rule)],
                &template(signer, name, version, content),
            )
            .map_err(|error| error.to_string())
        };
        use VersionRule::{Equals, GreaterThan, GreaterThanOrEquals};
        for (rule, earlier, same, later) in [
            (Equals, false, true, false),
            (GreaterThan, false, false, true),
            (GreaterThanOrEquals, false, true, true),
        ] {
            for (version, taken) in [("1.1.9", earlier), ("1.2", same), ("1.10", later)] {
                let judged = judge(rule, &maker, "Server", version, b"content");
                assert_eq!(judged.is_ok(), taken, "{rule:?} {version}: {judged:?}");
            }
            let stranger = judge(rule, &other, "Server", "1.2", b"content").unwrap_err();
            assert!(stranger.contains("does not trust (thumbprint"), "{stranger}");
            let renamed = judge(rule, &maker, "Client", "1.2", b"content").unwrap_err();
            assert!(renamed.contains("others of its signer"), "{renamed}");
        }
        let low = judge(GreaterThanOrEquals, &maker, "Server", "1.1", b"content").unwrap_err();
        assert!(
            low.contains("1.1.0.0") && low.contains("version 1.2.0.0 and later"),
            "{low}"
        );
        let changed = judge(Equals, &maker, "Server", "1.2", b"other content").unwrap_err();
        assert!(changed.contains("another content"), "{changed}");
        judge(GreaterThanOrEquals, &maker, "Server", "1.2", b"other content").unwrap();
        assert!(qualify(&[], &named).is_err());
    }

    #[test]
    fn one_qualifier_of_several_is_enough() {
        let maker = pair(1);
        let [one, two] = ["1.0", "2.0"].map(|version| template(&maker, "Server", version, version.as_bytes()));
        let both = [&one, &two].map(|catalogue| Qualifier::of(catalogue, VersionRule::Equals));
        assert!(qualify(&both, &one).is_ok() && qualify(&both, &two).is_ok());
        let between = template(&maker, "Server", "1.5", b"x");
        let error = qualify(&both, &between).unwrap_err().to_string();
        assert!(
            error.contains("version 1.0.0.0 alone or version 2.0.0.0 alone"),
            "{error}"
        );
    }
}
