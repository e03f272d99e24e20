//! Private keys that never leave a token (PKCS#11). The token signs and does the bare RSA operation;
//! the OAEP-SHA256 padding is taken off here, in constant time, since common tokens know OAEP with
//! SHA-1 only. Never falls back to another padding.

use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq as _};
use zeroize::Zeroizing;

use crate::{
    crypto::{CryptoError, RsaPublicKey, sha256},
    secret::Secret32,
};

/// An RSA key in a token.
pub trait TokenKey: Send + Sync {
    /// The public half.
    fn public(&self) -> &RsaPublicKey;
    /// RSASSA-PKCS1-v1_5 with SHA-256 over `message`, made in the token.
    fn sign_pkcs1_sha256(&self, message: &[u8]) -> Result<Vec<u8>, CryptoError>;
    /// The bare private RSA operation on one block of the modulus's length; the answer has that length too.
    fn decrypt_raw(&self, block: &[u8]) -> Result<Zeroizing<Vec<u8>>, CryptoError>;
}

/// Opens RSAES-OAEP (SHA-256 digest and MGF1, no label) over a 32-byte key with a key in a token.
pub(super) fn decrypt_key(key: &dyn TokenKey, encrypted: &[u8]) -> Result<Secret32, CryptoError> {
    if encrypted.len() != key.public().modulus().len() {
        return Err(CryptoError::Open);
    }
    let (opened, secret) = unpad(&key.decrypt_raw(encrypted)?);
    if opened.into() {
        Ok(secret)
    } else {
        Err(CryptoError::Open)
    }
}

/// Takes EME-OAEP (RFC 8017, 7.1.2) off a block that is to hold 32 bytes. Since the length is fixed, the
/// separator's place is too, and every step is the same whatever the block says.
fn unpad(block: &[u8]) -> (Choice, Secret32) {
    let mut block = Zeroizing::new(block.to_vec());
    let Some((first, rest)) = block.split_first_mut() else {
        return (Choice::from(0), Secret32::new([0; 32]));
    };
    let Some((seed, data)) = rest.split_at_mut_checked(HASH) else {
        return (Choice::from(0), Secret32::new([0; 32]));
    };
    // The seed was masked last, by the masked data.
    mask(seed, data);
    mask(data, seed);
    let Some((head, message)) = data.split_last_chunk::<32>() else {
        return (Choice::from(0), Secret32::new([0; 32]));
    };
    let Some((hash, padding)) = head.split_at_checked(HASH) else {
        return (Choice::from(0), Secret32::new([0; 32]));
    };
    let mut good = first.ct_eq(&0) & hash.ct_eq(&sha256(b""));
    if let Some((separator, zeros)) = padding.split_last() {
        good &= separator.ct_eq(&1);
        for byte in zeros {
            good &= byte.ct_eq(&0);
        }
    } else {
        good = Choice::from(0);
    }
    (good, Secret32::new(*message))
}

/// XORs MGF1 with SHA-256 of `seed` into `out`.
fn mask(out: &mut [u8], seed: &[u8]) {
    for (counter, chunk) in (0u32..).zip(out.chunks_mut(HASH)) {
        let block = Zeroizing::new(<[u8; HASH]>::from(
            Sha256::new()
                .chain_update(seed)
                .chain_update(counter.to_be_bytes())
                .finalize(),
        ));
        for (byte, by) in chunk.iter_mut().zip(block.iter()) {
            *byte ^= by;
        }
    }
}

const HASH: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::{Random as _, SeededRandom};

    fn pad(message: &[u8], length: usize) -> Vec<u8> {
        let mut data = sha256(b"").to_vec();
        data.resize(length - HASH - 2 - message.len(), 0);
        data.push(1);
        data.extend_from_slice(message);
        let mut seed = [0; HASH];
        SeededRandom::new(3).fill(&mut seed);
        mask(&mut data, &seed);
        mask(&mut seed, &data);
        [&[0][..], &seed, &data].concat()
    }

    #[test]
    fn a_padded_key_comes_out_and_every_changed_bit_of_the_block_is_refused() {
        let block = pad(&[7; 32], 256);
        let (good, key) = unpad(&block);
        assert!(bool::from(good));
        assert_eq!(key.expose(), &[7; 32]);
        for at in 0..256 {
            let mut changed = block.clone();
            changed[at] ^= 0x10;
            // A change in the last block of data may hit the message alone, which OAEP does not protect;
            // GCM does, one step later.
            let (good, key) = unpad(&changed);
            assert!(!bool::from(good) || key.expose() != &[7; 32], "{at}");
        }
        assert!(!bool::from(unpad(&pad(&[7; 31], 256)).0));
        assert!(!bool::from(unpad(&pad(&[7; 33], 256)).0));
        for length in [0, 1, 32, 33, 64, 65, 97] {
            assert!(!bool::from(unpad(&vec![0; length]).0), "{length}");
        }
    }
}
