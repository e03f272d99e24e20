//! VSM identity keys as bytes: the `RSA1`, `ECS1` and `ECK1` blobs (BCRYPT_RSAKEY_BLOB, BCRYPT_ECCKEY_BLOB, public)
//! that requests carry, and VSM_IDK_INFO / VSM_IDKS_INFO that the boot log carries, RSA only.

use super::cursor::{Cursor, length32};
use crate::crypto::{EcPublicKey, PublicKey, RsaPublicKey};

/// Why bytes are not a VSM key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VsmKeyError {
    /// Magic, algorithm or lengths are not those of the layout, or bytes are left over.
    #[error("the VSM key blob is malformed")]
    Layout,
    /// The key itself: 2048 to 4096 bits, odd exponent of at least 65537.
    #[error(
        "the key is not an RSA key of 2048 to 4096 bits with an odd exponent of at least 65537, nor a point on P-256"
    )]
    Key,
}

/// The key of an `RSA1`, `ECS1` or `ECK1` blob, without a byte left over. A magic of another curve (`ECS3`, say) is
/// refused. Which of `ECS1` and `ECK1` it is says nothing: one RSA key is certified for both uses too.
pub fn parse_vsm_key(bytes: &[u8]) -> Result<PublicKey, VsmKeyError> {
    match bytes.first_chunk::<4>().map(<[u8; 4]>::as_slice) {
        Some(RSA1) => parse_rsa1(bytes).map(PublicKey::Rsa),
        Some(ECS1 | ECK1) => parse_ec_blob(bytes).map(PublicKey::P256),
        _ => Err(VsmKeyError::Layout),
    }
}

/// `RSA1`, u32 bits, u32 exponent bytes, u32 modulus bytes, two u32 zeros, exponent, modulus; numbers big-endian.
pub fn encode_rsa1(key: &RsaPublicKey) -> Vec<u8> {
    let mut out = RSA1.to_vec();
    put_lengths(&mut out, key);
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(key.exponent());
    out.extend_from_slice(key.modulus());
    out
}

/// The key of an `RSA1` blob. No byte may be left over: a signature over two blobs joined must not
/// be readable in two ways (MS-HGSA 3.1.5.3.1.3).
pub fn parse_rsa1(bytes: &[u8]) -> Result<RsaPublicKey, VsmKeyError> {
    let mut cursor = Cursor::new(bytes);
    let magic = cursor.take(4);
    let lengths = Lengths::read(&mut cursor).ok_or(VsmKeyError::Layout)?;
    if magic != Some(RSA1) || cursor.take(8) != Some(&[0; 8]) {
        return Err(VsmKeyError::Layout);
    }
    lengths.key(cursor)
}

/// `ECS1`, u32 32, X, Y; coordinates big-endian, 72 bytes (BCRYPT_ECCKEY_BLOB, public, P-256, for signing).
pub fn encode_ecs1(key: &EcPublicKey) -> Vec<u8> {
    let (x, y) = key.coordinates();
    [ECS1, &32u32.to_le_bytes(), &x, &y].concat()
}

/// As [`encode_ecs1`], with the magic `ECK1`: for key agreement.
pub fn encode_eck1(key: &EcPublicKey) -> Vec<u8> {
    let (x, y) = key.coordinates();
    [ECK1, &32u32.to_le_bytes(), &x, &y].concat()
}

/// The key of an `ECS1` or `ECK1` blob (P-256, for signing or for agreement). No byte may be left over.
pub fn parse_ec_blob(bytes: &[u8]) -> Result<EcPublicKey, VsmKeyError> {
    let mut cursor = Cursor::new(bytes);
    let known = matches!(cursor.take(4), Some(ECS1 | ECK1));
    if !known || cursor.u32() != Some(32) {
        return Err(VsmKeyError::Layout);
    }
    let mut coordinate = || cursor.take(32).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    let (x, y) = coordinate()
        .and_then(|x| Some((x, coordinate()?)))
        .ok_or(VsmKeyError::Layout)?;
    if !cursor.is_empty() {
        return Err(VsmKeyError::Layout);
    }
    EcPublicKey::from_coordinates(&x, &y).map_err(|_| VsmKeyError::Key)
}

/// u32 algorithm (1, RSA), u32 bits, u32 exponent bytes, u32 modulus bytes, exponent, modulus; numbers big-endian.
pub fn encode_idk_info(key: &RsaPublicKey) -> Vec<u8> {
    let mut out = KEY_ALGORITHM_RSA.to_le_bytes().to_vec();
    put_lengths(&mut out, key);
    out.extend_from_slice(key.exponent());
    out.extend_from_slice(key.modulus());
    out
}

/// The key of a VSM_IDK_INFO or VSM_IDKS_INFO event. No byte may be left over.
pub fn parse_idk_info(bytes: &[u8]) -> Result<RsaPublicKey, VsmKeyError> {
    let mut cursor = Cursor::new(bytes);
    let algorithm = cursor.u32();
    let lengths = Lengths::read(&mut cursor).ok_or(VsmKeyError::Layout)?;
    if algorithm != Some(KEY_ALGORITHM_RSA) {
        return Err(VsmKeyError::Layout);
    }
    lengths.key(cursor)
}

struct Lengths {
    bits: u32,
    exponent: u32,
    modulus: u32,
}

impl Lengths {
    fn read(cursor: &mut Cursor<'_>) -> Option<Lengths> {
        Some(Lengths {
            bits: cursor.u32()?,
            exponent: cursor.u32()?,
            modulus: cursor.u32()?,
        })
    }

    fn key(&self, mut cursor: Cursor<'_>) -> Result<RsaPublicKey, VsmKeyError> {
        let mut part = |length: u32| cursor.take(usize::try_from(length).ok()?);
        let (exponent, modulus) = part(self.exponent)
            .and_then(|exponent| Some((exponent, part(self.modulus)?)))
            .ok_or(VsmKeyError::Layout)?;
        // One key has one encoding: no leading zeros, every length as large as it must be and no larger.
        let exact = cursor.is_empty() && exponent.first() != Some(&0) && self.modulus.checked_mul(8) == Some(self.bits);
        if !exact {
            return Err(VsmKeyError::Layout);
        }
        let key = RsaPublicKey::from_components(modulus, exponent).map_err(|_| VsmKeyError::Key)?;
        match usize::try_from(self.bits) == Ok(key.bits()) {
            true => Ok(key),
            false => Err(VsmKeyError::Key),
        }
    }
}

fn put_lengths(out: &mut Vec<u8>, key: &RsaPublicKey) {
    out.extend_from_slice(&length32(key.bits()));
    out.extend_from_slice(&length32(key.exponent().len()));
    out.extend_from_slice(&length32(key.modulus().len()));
}

const RSA1: &[u8] = b"RSA1";
const ECS1: &[u8] = b"ECS1";
const ECK1: &[u8] = b"ECK1";
const KEY_ALGORITHM_RSA: u32 = 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        env::SeededRandom,
        protector::suite::{PrivateKey, Suite},
    };

    prop_compose! {
        fn key()(bytes in proptest::sample::select(vec![256usize, 384, 512]), seed: u8, exponent in 65_537u32..) -> RsaPublicKey {
            let mut modulus = vec![seed; bytes];
            modulus[0] |= 0x80;
            modulus[bytes - 1] |= 1;
            RsaPublicKey::from_components(&modulus, &(exponent | 1).to_be_bytes()).unwrap()
        }
    }

    proptest! {
        #[test]
        fn a_key_survives_both_encodings(key in key()) {
            prop_assert_eq!(parse_rsa1(&encode_rsa1(&key)).unwrap(), key.clone());
            prop_assert_eq!(parse_idk_info(&encode_idk_info(&key)).unwrap(), key);
        }

        #[test]
        fn one_key_has_one_encoding(key in key(), at in any::<prop::sample::Index>(), value: u8) {
            let mut blob = encode_rsa1(&key);
            let at = at.index(blob.len());
            blob[at] = value;
            if let Ok(key) = parse_rsa1(&blob) {
                prop_assert_eq!(encode_rsa1(&key), blob);
            }
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), magic in 0usize..4) {
            let magic: &[u8] = [RSA1, ECS1, ECK1, &[]][magic];
            let _ = (parse_rsa1(&bytes), parse_idk_info(&bytes), parse_vsm_key(&[magic, &bytes].concat()));
        }

        #[test]
        fn a_p256_key_survives_both_blobs_and_has_one_encoding(seed: u64, at in any::<prop::sample::Index>(), value: u8) {
            let key = PrivateKey::generate(Suite::P256, &mut SeededRandom::new(seed)).unwrap().public();
            let PublicKey::P256(point) = &key else { panic!("{key:?}") };
            for blob in [encode_ecs1(point), encode_eck1(point)] {
                prop_assert_eq!(parse_vsm_key(&blob).unwrap(), key.clone());
                let mut changed = blob.clone();
                let at = at.index(blob.len());
                changed[at] = value;
                if let Ok(PublicKey::P256(other)) = parse_vsm_key(&changed) {
                    prop_assert!(encode_ecs1(&other) == changed || encode_eck1(&other) == changed);
                }
                prop_assert!(parse_vsm_key(&blob[..at]).is_err());
                prop_assert!(parse_vsm_key(&[blob.as_slice(), &[value]].concat()).is_err());
            }
        }
    }

    #[test]
    fn the_documented_headers_come_out() {
        let mut modulus = [0xAB; 256];
        modulus[255] = 1;
        let key = RsaPublicKey::from_components(&modulus, &[1, 0, 1]).unwrap();
        let blob = encode_rsa1(&key);
        assert_eq!(blob.len(), 283);
        assert_eq!(
            hex::encode(&blob[..27]),
            "525341310008000003000000000100000000000000000000010001"
        );
        let info = encode_idk_info(&key);
        assert_eq!(info.len(), 275);
        assert_eq!(hex::encode(&info[..19]), "01000000000800000300000000010000010001");
        for mut longer in [blob, info] {
            longer.push(0);
            assert!(parse_rsa1(&longer).is_err() && parse_idk_info(&longer).is_err());
        }
    }

    #[test]
    fn another_curve_and_a_point_beside_the_curve_are_refused() {
        let coordinates = [0x11; 96];
        let p384 = [b"ECS3".as_slice(), &48u32.to_le_bytes(), &coordinates].concat();
        assert_eq!(parse_vsm_key(&p384), Err(VsmKeyError::Layout));
        let relabelled = [b"ECS1".as_slice(), &48u32.to_le_bytes(), &coordinates].concat();
        assert_eq!(parse_vsm_key(&relabelled), Err(VsmKeyError::Layout));
        let beside = [b"ECK1".as_slice(), &32u32.to_le_bytes(), &coordinates[..64]].concat();
        assert_eq!(parse_vsm_key(&beside), Err(VsmKeyError::Key));
    }

    #[test]
    fn a_small_key_is_refused_as_a_key() {
        let mut info = vec![1, 0, 0, 0, 0, 4, 0, 0, 3, 0, 0, 0, 128, 0, 0, 0, 1, 0, 1];
        info.extend_from_slice(&[0xAB; 128]);
        assert_eq!(parse_idk_info(&info), Err(VsmKeyError::Key));
    }
}
