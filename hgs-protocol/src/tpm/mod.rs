//! TPM 2.0 commands and responses (TCG TPM Library, parts 2 and 3), as far as a guarded host,
//! its VBS store and an attestation server need them, and the salted sessions of part 1.
//!
//! Bytes in, bytes out: nothing here talks to a TPM. Everything is big-endian. A response is
//! bytes that a host could have invented, unless a [`session::SaltedSession`] has checked them.

mod code;
pub mod command;
pub mod public;
mod read;
pub mod response;
pub mod session;

pub use code::ResponseCode;
use read::Reader;
pub(crate) use read::Sized16;

/// Handle of the RSA endorsement key, where every lab TPM keeps it (TCG EK Credential Profile).
pub const EK_HANDLE: u32 = 0x8101_0001;
/// Handle of the storage root key.
pub const SRK_HANDLE: u32 = 0x8100_0001;
/// The owner hierarchy.
pub const RH_OWNER: u32 = 0x4000_0001;
/// The lockout authority, which may clear the TPM.
pub const RH_LOCKOUT: u32 = 0x4000_000A;
/// The endorsement hierarchy.
pub const RH_ENDORSEMENT: u32 = 0x4000_000B;
/// The platform hierarchy, firmware's own.
pub const RH_PLATFORM: u32 = 0x4000_000C;
/// No object; the place of a key or entity that is not there.
pub const RH_NULL: u32 = 0x4000_0007;
/// Longest command or response taken, in bytes.
pub const MAX_MESSAGE: usize = 4096;

pub(crate) const TAG_NO_SESSIONS: u16 = 0x8001;
pub(crate) const TAG_SESSIONS: u16 = 0x8002;
pub(crate) const ALG_RSA: u16 = 0x0001;
pub(crate) const ALG_AES: u16 = 0x0006;
pub(crate) const ALG_KEYEDHASH: u16 = 0x0008;
pub(crate) const ALG_SHA256: u16 = 0x000B;
pub(crate) const ALG_NULL: u16 = 0x0010;
pub(crate) const ALG_CFB: u16 = 0x0043;

/// What is wrong with a TPM's bytes, or what the TPM answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TpmError {
    /// A field reaches past the end of the message.
    #[error("the TPM message ends in the middle of a field")]
    Truncated,
    /// Bytes follow where the message should end.
    #[error("bytes follow the end of the TPM message")]
    Trailing,
    /// The header's tag or size contradicts the message.
    #[error("the TPM message's header does not fit the message")]
    Header,
    /// The TPM refused the command.
    #[error("the TPM answered {0}")]
    Refused(ResponseCode),
    /// A value outside what the structure allows.
    #[error("the TPM message holds {0}, which is out of range")]
    Value(&'static str),
    /// An algorithm that is not used here (TPM_ALG_ID).
    #[error("algorithm 0x{0:04x} is not supported here")]
    Algorithm(u16),
    /// A handle outside the range that the command allows.
    #[error("handle 0x{0:08x} is outside the range allowed here")]
    Handle(u32),
    /// The session's HMAC is wrong: somebody other than the TPM made or changed the response.
    #[error("the TPM's response does not carry the HMAC of this session")]
    Hmac,
    /// The TPM returned other PCRs than those asked for.
    #[error("the TPM returned other PCRs than those asked for (is its SHA-256 bank on?)")]
    Selection,
    /// The key cannot be encrypted to.
    #[error("the salt cannot be encrypted to this key")]
    Key,
}

/// A set of PCRs of the SHA-256 bank, 0..=23: bit n is PCR n.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PcrSelection(u32);

impl PcrSelection {
    /// The PCRs in `indices`; numbers above 23 are refused.
    pub fn of(indices: &[u8]) -> Result<PcrSelection, TpmError> {
        indices.iter().try_fold(PcrSelection(0), |set, i| match i {
            0..=23 => Ok(PcrSelection(set.0 | 1 << i)),
            _ => Err(TpmError::Value("a PCR number")),
        })
    }

    /// From a mask with bit n for PCR n; bits above 23 are dropped.
    pub const fn from_mask(mask: u32) -> PcrSelection {
        PcrSelection(mask & 0x00FF_FFFF)
    }

    /// Bit n for PCR n.
    pub fn mask(self) -> u32 {
        self.0
    }

    /// The PCR numbers in ascending order, the order in which a TPM returns values.
    pub fn indices(self) -> impl Iterator<Item = u8> {
        (0..24).filter(move |i| self.0 & 1 << i != 0)
    }

    /// How many PCRs are in the set.
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// True when the set has no PCR.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The PCRs of `self` that are not in `other`.
    pub fn without(self, other: PcrSelection) -> PcrSelection {
        PcrSelection(self.0 & !other.0)
    }

    /// TPML_PCR_SELECTION with one selection of the SHA-256 bank.
    pub fn encode(self) -> Vec<u8> {
        let [a, b, c, _] = self.0.to_le_bytes();
        let mut out = vec![0, 0, 0, 1];
        out.extend(ALG_SHA256.to_be_bytes());
        out.extend([3, a, b, c]);
        out
    }

    fn read(from: &mut Reader<'_>) -> Result<PcrSelection, TpmError> {
        let mut set = PcrSelection(0);
        let count = from.u32()?;
        if count > 16 {
            return Err(TpmError::Value("a count of PCR selections"));
        }
        for _ in 0..count {
            let bank = from.u16()?;
            let size = usize::from(from.u8()?);
            let map = from.take(size)?;
            if map.iter().all(|b| *b == 0) {
                continue;
            }
            let [a, b, c] = map.try_into().map_err(|_| TpmError::Value("a PCR bitmap"))?;
            if bank != ALG_SHA256 || !set.is_empty() {
                return Err(TpmError::Selection);
            }
            set = PcrSelection::from_mask(u32::from_le_bytes([a, b, c, 0]));
        }
        Ok(set)
    }
}

/// Reads `bytes` as everything that is parsed here; a parsed public area must encode to itself.
/// For the fuzz target.
pub fn fuzz(bytes: &[u8]) {
    let _ = command::CommandHeader::parse(bytes);
    let _ = response::Response::parse(bytes);
    let _ = response::Response::parse_with_handle(bytes);
    let _ = response::read_public(bytes);
    let _ = response::create(bytes);
    let _ = response::pcr_read(bytes, PcrSelection::from_mask(0x389F));
    if let Ok(public) = public::Public::parse_sized(bytes) {
        assert!(
            public.encode_sized() == bytes,
            "a public area changed in its round trip"
        );
    }
    let mut session =
        session::SaltedSession::from_parts(0x0200_0000, crate::secret::Secret32::new([0; 32]), [0; 32], [0; 32]);
    let forged = session.pcr_read_response(bytes, PcrSelection::from_mask(0x389F));
    assert!(forged.is_err(), "a response without the session's key was accepted");
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn selections_survive_their_encoding(mask in 1u32..0x0100_0000) {
            let selection = PcrSelection::from_mask(mask);
            let mut reader_bytes = selection.encode();
            let mut reader = Reader(&reader_bytes);
            assert_eq!(PcrSelection::read(&mut reader), Ok(selection));
            assert!(reader.finish().is_ok());
            let indices: Vec<u8> = selection.indices().collect();
            assert_eq!(PcrSelection::of(&indices), Ok(selection));
            reader_bytes.truncate(reader_bytes.len() - 1);
            assert!(PcrSelection::read(&mut Reader(&reader_bytes)).is_err());
        }

        #[test]
        fn hostile_bytes_do_no_harm(bytes: Vec<u8>) {
            fuzz(&bytes);
        }
    }
}
