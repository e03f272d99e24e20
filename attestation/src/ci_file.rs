//! Code-integrity policy files: the compiled binary (`.bin`, `.cip`, or `.p7b` with a binary inside the
//! name only) and the signed form, a PKCS#7 around that binary. What the loader measures is the binary
//! alone, so the digest of a signed file is that of its content. Judges neither signature nor rules.

use cms::{content_info::ContentInfo, signed_data::SignedData};
use hgs_protocol::{crypto::sha256, oid};
use x509_cert::der::{Decode as _, Tag, Tagged as _};

/// What a policy file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CiPolicyFile {
    /// SHA-256 as SI_POLICY events measure it.
    pub sha256: [u8; 32],
    /// True for a PKCS#7.
    pub signed: bool,
}

/// Bytes that are no code-integrity policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CiPolicyFileError {
    /// Empty, or the source XML in place of the compiled file.
    #[error("not a compiled code-integrity policy: compile the XML with ConvertFrom-CIPolicy first")]
    NotCompiled,
    /// A PKCS#7 without a policy in it.
    #[error("the PKCS#7 holds no policy")]
    EmptyPkcs7,
}

impl CiPolicyFile {
    /// Reads a file, signed or not.
    pub fn parse(bytes: &[u8]) -> Result<CiPolicyFile, CiPolicyFileError> {
        let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        if bytes.is_empty() || text.trim_ascii_start().starts_with(b"<") {
            return Err(CiPolicyFileError::NotCompiled);
        }
        // The binary begins with a small version number, a PKCS#7 with a DER sequence.
        let Some(signed) = signed_data(bytes) else {
            return Ok(CiPolicyFile {
                sha256: sha256(bytes),
                signed: false,
            });
        };
        let content = signed
            .encap_content_info
            .econtent
            .ok_or(CiPolicyFileError::EmptyPkcs7)?;
        // An OCTET STRING as a rule; other content types wrap their value themselves.
        let inner = content.value();
        match (content.tag(), inner) {
            (_, []) => Err(CiPolicyFileError::EmptyPkcs7),
            (Tag::OctetString, policy) => Ok(CiPolicyFile {
                sha256: sha256(policy),
                signed: true,
            }),
            _ => Err(CiPolicyFileError::EmptyPkcs7),
        }
    }
}

fn signed_data(bytes: &[u8]) -> Option<SignedData> {
    let info = ContentInfo::from_der(bytes).ok()?;
    (info.content_type == oid::PKCS7_SIGNED_DATA).then_some(())?;
    info.content.decode_as().ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const POLICY: &[u8] = b"\x07\0\0\0a compiled policy";

    #[test]
    fn a_binary_is_measured_as_it_is() {
        let file = CiPolicyFile::parse(POLICY).unwrap();
        assert_eq!((file.sha256, file.signed), (sha256(POLICY), false));
        for bad in [
            &b""[..],
            b"<?xml version=\"1.0\"?><SiPolicy/>",
            b"\xef\xbb\xbf <SiPolicy/>",
        ] {
            assert_eq!(CiPolicyFile::parse(bad), Err(CiPolicyFileError::NotCompiled));
        }
    }

    /// Signed by another implementation, attached and detached.
    #[test]
    fn a_signed_file_is_measured_as_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let openssl = |arguments: &[&str]| {
            let run = Command::new("openssl").args(arguments).current_dir(dir.path()).output();
            run.is_ok_and(|output| output.status.success())
        };
        if !openssl(&["version"]) {
            println!("skipped: no openssl command");
            return;
        }
        std::fs::write(dir.path().join("policy.bin"), POLICY).unwrap();
        assert!(openssl(&[
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "k.pem", "-out", "c.pem", "-subj", "/CN=CI",
        ]));
        for (detached, name) in [(false, "signed.p7b"), (true, "detached.p7b")] {
            let mut arguments = vec![
                "cms",
                "-sign",
                "-binary",
                "-in",
                "policy.bin",
                "-signer",
                "c.pem",
                "-inkey",
                "k.pem",
                "-outform",
                "DER",
                "-out",
                name,
                "-econtent_type",
                "1.3.6.1.4.1.311.79.1",
            ];
            if !detached {
                arguments.push("-nodetach");
            }
            assert!(openssl(&arguments));
            let found = CiPolicyFile::parse(&std::fs::read(dir.path().join(name)).unwrap());
            match detached {
                true => assert_eq!(found, Err(CiPolicyFileError::EmptyPkcs7)),
                false => {
                    let found = found.unwrap();
                    assert_eq!((found.sha256, found.signed), (sha256(POLICY), true));
                }
            }
        }
    }
}
