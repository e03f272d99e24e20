//! Payload blobs (MS-KPS 2.2.3.10): the transport keys, in a wrapping (one) or in a response (two).
//!
//! All integers little-endian: u32 DataSize (the whole blob), u32 Version, u32 NumberOfKeys, then
//! per key u32 KeyLength and KeyValue. Version 2 adds u32 NumberOfPolicies, then per policy u32
//! PolicyId (1), u32 PolicyType (6), u32 PolicyDataSize and PolicyData.

use crate::secret::{Secret32, TransportKey};
use zeroize::Zeroizing;

/// Which of the two layouts a payload has. By the URL's version in a response, V1 in wrappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadVersion {
    /// Keys only.
    V1,
    /// Keys and policies.
    V2,
}

/// Why a payload blob was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// Shorter or longer than its counts say, or DataSize is not its length.
    #[error("the payload's length does not fit its contents")]
    Length,
    /// Version is neither 1 nor 2.
    #[error("payload version {0} is unknown")]
    Version(u32),
    /// NumberOfKeys outside 1..=16 or NumberOfPolicies over 8.
    #[error("the payload holds too many or too few entries")]
    Count,
    /// KeyLength outside 16..=64.
    #[error("a key of the payload has a length outside 16 to 64 bytes")]
    KeyLength,
    /// A policy other than MaxOfflineUnwraps (id 1, type 6, one u32), or that one twice.
    #[error("the payload holds a policy that is not MaxOfflineUnwraps")]
    Policy,
}

/// A payload's contents.
pub struct Payload {
    /// KeyValue of each key, in order.
    pub keys: Vec<Zeroizing<Vec<u8>>>,
    /// MaxOfflineUnwraps of the one policy there is; 0 when absent.
    pub max_offline_unwraps: u32,
}

impl Payload {
    /// A payload of these keys.
    pub fn new(keys: &[&TransportKey], max_offline_unwraps: u32) -> Payload {
        Payload {
            keys: keys
                .iter()
                .map(|k| Zeroizing::new(k.expose_transport_key().expose().to_vec()))
                .collect(),
            max_offline_unwraps,
        }
    }

    /// The key in place `index` if it is a transport key of 32 bytes.
    pub fn transport_key(&self, index: usize) -> Option<TransportKey> {
        Secret32::from_slice(self.keys.get(index)?).map(TransportKey::new)
    }

    /// The blob. V1 cannot carry the policy and drops it.
    pub fn encode(&self, version: PayloadVersion) -> Zeroizing<Vec<u8>> {
        let keys: usize = self.keys.iter().map(|k| 4 + k.len()).sum();
        let has_policy = self.max_offline_unwraps != 0;
        let length = 12
            + keys
            + match version {
                PayloadVersion::V1 => 0,
                PayloadVersion::V2 => 4 + if has_policy { 16 } else { 0 },
            };
        // Sized once, so that no copy of a key is left behind by growing.
        let mut out = Zeroizing::new(Vec::with_capacity(length));
        let number =
            |out: &mut Vec<u8>, n: usize| out.extend_from_slice(&u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes());
        number(&mut out, length);
        number(&mut out, if version == PayloadVersion::V1 { 1 } else { 2 });
        number(&mut out, self.keys.len());
        for key in &self.keys {
            number(&mut out, key.len());
            out.extend_from_slice(key);
        }
        if version == PayloadVersion::V2 {
            number(&mut out, usize::from(has_policy));
            if has_policy {
                for n in [OFFLINE_POLICY_ID, OFFLINE_POLICY_TYPE, 4, self.max_offline_unwraps] {
                    out.extend_from_slice(&n.to_le_bytes());
                }
            }
        }
        out
    }

    /// Reads a blob; trailing bytes are refused.
    pub fn parse(bytes: &[u8]) -> Result<Payload, PayloadError> {
        let mut rest = bytes;
        if usize::try_from(take_u32(&mut rest)?) != Ok(bytes.len()) {
            return Err(PayloadError::Length);
        }
        let version = match take_u32(&mut rest)? {
            1 => PayloadVersion::V1,
            2 => PayloadVersion::V2,
            other => return Err(PayloadError::Version(other)),
        };
        let count = take_u32(&mut rest)?;
        if !(1..=16).contains(&count) {
            return Err(PayloadError::Count);
        }
        let mut keys = Vec::new();
        for _ in 0..count {
            let length = take_u32(&mut rest)?;
            if !(16..=64).contains(&length) {
                return Err(PayloadError::KeyLength);
            }
            keys.push(Zeroizing::new(take(&mut rest, length)?.to_vec()));
        }
        let mut max_offline_unwraps = 0;
        if version == PayloadVersion::V2 {
            let policies = take_u32(&mut rest)?;
            if policies > 8 {
                return Err(PayloadError::Count);
            }
            for n in 0..policies {
                let (id, kind) = (take_u32(&mut rest)?, take_u32(&mut rest)?);
                let length = take_u32(&mut rest)?;
                let mut data = take(&mut rest, length)?;
                let value = take_u32(&mut data).map_err(|_| PayloadError::Policy)?;
                if (id, kind) != (OFFLINE_POLICY_ID, OFFLINE_POLICY_TYPE) || !data.is_empty() || n > 0 {
                    return Err(PayloadError::Policy);
                }
                max_offline_unwraps = value;
            }
        }
        if !rest.is_empty() {
            return Err(PayloadError::Length);
        }
        Ok(Payload {
            keys,
            max_offline_unwraps,
        })
    }
}

fn take<'a>(rest: &mut &'a [u8], length: u32) -> Result<&'a [u8], PayloadError> {
    let length = usize::try_from(length).map_err(|_| PayloadError::Length)?;
    let (head, tail) = rest.split_at_checked(length).ok_or(PayloadError::Length)?;
    *rest = tail;
    Ok(head)
}

fn take_u32(rest: &mut &[u8]) -> Result<u32, PayloadError> {
    let (head, tail) = rest.split_first_chunk::<4>().ok_or(PayloadError::Length)?;
    *rest = tail;
    Ok(u32::from_le_bytes(*head))
}

const OFFLINE_POLICY_ID: u32 = 1;
const OFFLINE_POLICY_TYPE: u32 = 6;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys() -> [TransportKey; 2] {
        let from = |start: u8| TransportKey::new(Secret32::new(std::array::from_fn(|i| start + i as u8)));
        [from(0), from(0x80)]
    }

    #[test]
    fn the_worked_examples_hold() {
        let [a, b] = keys();
        let k1 = "20000000000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
        let k2 = "20000000808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f";
        let hex = |p: &Payload, v| hex::encode(&*p.encode(v));
        assert_eq!(
            hex(&Payload::new(&[&a], 0), PayloadVersion::V1),
            format!("300000000100000001000000{k1}")
        );
        assert_eq!(
            hex(&Payload::new(&[&a, &b], 0), PayloadVersion::V1),
            format!("540000000100000002000000{k1}{k2}")
        );
        assert_eq!(
            hex(&Payload::new(&[&a, &b], 5), PayloadVersion::V2),
            format!("680000000200000002000000{k1}{k2}0100000001000000060000000400000005000000")
        );
    }

    #[test]
    fn counts_and_lengths_outside_their_bounds_are_refused() {
        let [a, _] = keys();
        let good = Payload::new(&[&a], 7).encode(PayloadVersion::V2).to_vec();
        assert_eq!(Payload::parse(&good).unwrap().max_offline_unwraps, 7);
        let put = |at: usize, n: u32| {
            let mut bad = good.clone();
            bad[at..at + 4].copy_from_slice(&n.to_le_bytes());
            Payload::parse(&bad).err()
        };
        assert_eq!(put(0, 1), Some(PayloadError::Length));
        assert_eq!(put(4, 3), Some(PayloadError::Version(3)));
        assert_eq!(put(8, 0), Some(PayloadError::Count));
        assert_eq!(put(8, 17), Some(PayloadError::Count));
        assert_eq!(put(12, 15), Some(PayloadError::KeyLength));
        assert_eq!(put(12, u32::MAX), Some(PayloadError::KeyLength));
        assert_eq!(put(48, 9), Some(PayloadError::Count));
        assert_eq!(put(48, 0), Some(PayloadError::Length));
        assert_eq!(put(52, 2), Some(PayloadError::Policy));
        assert_eq!(put(56, 5), Some(PayloadError::Policy));
        assert_eq!(put(60, 5), Some(PayloadError::Length));
        let mut longer = good.clone();
        longer.push(0);
        assert!(Payload::parse(&longer).is_err());
    }

    proptest! {
        #[test]
        fn a_payload_survives_its_encoding(
            keys in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 16..=64), 1..=16),
            limit: u32,
        ) {
            let payload = Payload { keys: keys.iter().cloned().map(Zeroizing::new).collect(), max_offline_unwraps: limit };
            let again = Payload::parse(&payload.encode(PayloadVersion::V2)).unwrap();
            prop_assert_eq!(again.max_offline_unwraps, limit);
            prop_assert_eq!(again.keys.iter().map(|k| k.to_vec()).collect::<Vec<_>>(), keys.clone());
            let again = Payload::parse(&payload.encode(PayloadVersion::V1)).unwrap();
            prop_assert_eq!(again.max_offline_unwraps, 0);
            prop_assert_eq!(again.keys.len(), keys.len());
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Payload::parse(&bytes);
        }
    }
}
