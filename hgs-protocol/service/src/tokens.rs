//! Admin tokens: who may call `/admin/v1`. Stored as SHA-256 hashes of random tokens, compared in constant time.

use std::{fmt, path::Path};

use anyhow::{Context, bail};
use hgs_protocol::{
    crypto::{same, sha256},
    env::Random,
};

/// What a token's holder may do, as the product's two groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// HGS Administrators: every call.
    Administrator,
    /// HGS Reviewers: reading only.
    Reviewer,
}

impl Role {
    /// The word in a token file.
    pub fn word(self) -> &'static str {
        match self {
            Role::Administrator => "administrator",
            Role::Reviewer => "reviewer",
        }
    }
}

/// Whose token came with a request. Shown as the beginning of the token's line in the token file, which is how
/// the record names an administrator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// What the holder may do.
    pub role: Role,
    hash: [u8; 32],
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.role.word())?;
        self.hash.iter().take(8).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The tokens that a service accepts.
#[derive(Clone, Default)]
pub struct Tokens(Vec<(Role, [u8; 32])>);

impl Tokens {
    /// From a file of lines `administrator SHA256` and `reviewer SHA256`; `#` starts a comment.
    pub fn from_file(path: &Path) -> anyhow::Result<Tokens> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("the admin token file {} cannot be read", path.display()))?;
        Tokens::parse(&text).with_context(|| format!("in the admin token file {}", path.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Tokens> {
        let mut tokens = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let mut hash = [0; 32];
            match line.split_once(' ') {
                Some(("administrator", hex)) if hex::decode_to_slice(hex.trim(), &mut hash).is_ok() => {
                    tokens.push((Role::Administrator, hash));
                }
                Some(("reviewer", hex)) if hex::decode_to_slice(hex.trim(), &mut hash).is_ok() => {
                    tokens.push((Role::Reviewer, hash));
                }
                _ => bail!("line {} is not `administrator SHA256` or `reviewer SHA256`", number + 1),
            }
        }
        Ok(Tokens(tokens))
    }

    /// The holder of the token in an `Authorization: Bearer …` value, if it is one of ours.
    pub fn holder(&self, authorization: &str) -> Option<Holder> {
        let (scheme, token) = authorization.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let hash = sha256(token.trim().as_bytes());
        // Every entry is compared, so that time does not tell which one came near.
        self.0
            .iter()
            .fold(None, |found, (role, known)| match same(known, &hash) {
                true => Some(Holder { role: *role, hash }),
                false => found,
            })
    }
}

/// A new token (64 hex digits) and the line that lets a service accept it.
pub fn new_token(role: Role, rng: &mut dyn Random) -> (String, String) {
    let token = hex::encode(rng.bytes::<32>());
    let line = format!("{} {}", role.word(), hex::encode(sha256(token.as_bytes())));
    (token, line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hgs_protocol::env::OsRandom;

    #[test]
    fn a_token_is_known_by_its_hash_alone() {
        let (token, line) = new_token(Role::Reviewer, &mut OsRandom);
        assert!(!line.contains(&token));
        let tokens = Tokens::parse(&format!("# lab\n{line}\n")).unwrap();
        let holder = tokens.holder(&format!("Bearer {token}")).unwrap();
        assert_eq!(holder.role, Role::Reviewer);
        assert!(line.starts_with(&holder.to_string()), "{holder}");
        assert_eq!(holder.to_string().len(), "reviewer ".len() + 16);
        assert_eq!(tokens.holder(&format!("Basic {token}")), None);
        assert_eq!(tokens.holder("Bearer 00"), None);
    }

    #[test]
    fn a_bad_line_is_named() {
        let text = format!("{:#}", Tokens::parse("\nadmin 00\n").err().unwrap());
        assert!(text.contains("line 2"), "{text}");
    }
}
