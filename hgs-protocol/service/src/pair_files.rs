//! Certificates with their private keys as other tools keep them: PEM texts and PFX files.

use anyhow::{Context, bail};
use hgs_protocol::protector::KeyPair;
use p12_keystore::{KeyStore, KeyStoreEntry, Pkcs12Archive, PrivateKeyChain};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject as _};

/// The first certificate and the first private key of a PEM text.
pub fn from_pem(text: &str) -> anyhow::Result<KeyPair> {
    let certificate = CertificateDer::from_pem_slice(text.as_bytes())
        .map_err(|_| anyhow::anyhow!("the PEM text holds no CERTIFICATE"))?;
    let key = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes()).map_err(|_| {
        anyhow::anyhow!(
            "the PEM text holds no PRIVATE KEY in PKCS#8 form, unencrypted: `openssl pkcs8 -topk8 -nocrypt` makes one"
        )
    })?;
    Ok(KeyPair::from_parts(key.secret_pkcs8_der(), &certificate)?)
}

/// The one certificate with a private key in a PFX.
pub fn from_pfx(bytes: &[u8], password: &str) -> anyhow::Result<KeyPair> {
    let archive = Pkcs12Archive::from_pkcs12(bytes, password)
        .map_err(|_| anyhow::anyhow!("the PFX does not open: it is damaged, or the password is another"))?;
    let [bag] = archive.keys.as_slice() else {
        bail!(
            "the PFX holds {} private keys, and exactly one is needed",
            archive.keys.len()
        );
    };
    // Which certificate belongs to the key, the key itself tells; a chain may come along.
    archive
        .certs
        .iter()
        .find_map(|certificate| KeyPair::from_parts(bag.key.as_der(), certificate.cert.as_der()).ok())
        .context("the PFX holds no certificate of its private key (RSA of 2048 to 4096 bits, or P-256)")
}

/// A PFX of one certificate with its private key under `password` (PBES2, AES-256). Refused for a key in a token.
pub fn to_pfx(pair: &KeyPair, friendly_name: &str, password: &str) -> anyhow::Result<Vec<u8>> {
    let key = pair
        .expose_pkcs8()
        .context("the private key is in a token, which does not give it away")?;
    let key = p12_keystore::PrivateKey::from_der(key)?;
    let certificate = p12_keystore::Certificate::from_der(pair.certificate().der())?;
    // The id ties key and certificate together for readers that do not compare keys.
    let id = pair.certificate().sha256().to_vec();
    let mut archive = KeyStore::new();
    let chain = PrivateKeyChain::new(id, key, [certificate]);
    archive.add_entry(friendly_name, KeyStoreEntry::PrivateKeyChain(chain));
    Ok(archive.writer(password).write()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hgs_protocol::{
        env::{OsRandom, UnixTime},
        protector::{KeyPurpose, suite::Suite},
    };

    #[test]
    fn a_pfx_gives_back_the_pair_under_its_password_alone() {
        for suite in [Suite::Rsa, Suite::P256] {
            let now = UnixTime(1_800_000_000);
            let pair = KeyPair::generate(suite, KeyPurpose::Signing, "Owner", now, &mut OsRandom).unwrap();
            let bytes = to_pfx(&pair, "Owner Signing", "correct horse").unwrap();
            let again = from_pfx(&bytes, "correct horse").unwrap();
            assert_eq!(again.certificate(), pair.certificate());
            assert_eq!(again.expose_pkcs8(), pair.expose_pkcs8());
            assert!(from_pfx(&bytes, "another horse").is_err());
            assert!(from_pfx(&bytes[..bytes.len() / 2], "correct horse").is_err());
        }
    }
}
