//! UEFI_VARIABLE_DATA, the event of the EV_EFI_VARIABLE_* records (TCG PFP 10.2.6).
//!
//! Layout: GUID (16), u64 name length in characters, u64 data length in bytes, name (UTF-16LE), data.

use super::{cursor::Cursor, sipa::utf16};

/// A measured UEFI variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UefiVariable {
    /// Namespace, in memory layout.
    pub guid: [u8; 16],
    /// Name within it.
    pub name: String,
    /// Value at boot.
    pub data: Vec<u8>,
}

impl UefiVariable {
    /// The whole of `bytes`; nothing may be left over.
    pub fn parse(bytes: &[u8]) -> Option<UefiVariable> {
        let mut cursor = Cursor::new(bytes);
        let guid = cursor.take(16)?.try_into().ok()?;
        let characters = usize::try_from(cursor.u64()?).ok()?;
        let length = usize::try_from(cursor.u64()?).ok()?;
        let name = utf16(cursor.take(characters.checked_mul(2)?)?)?;
        let data = cursor.take(length)?.to_vec();
        cursor.is_empty().then_some(UefiVariable { guid, name, data })
    }

    /// The bytes.
    pub fn encode(&self) -> Vec<u8> {
        let name: Vec<u16> = self.name.encode_utf16().collect();
        let mut out = self.guid.to_vec();
        for length in [name.len(), self.data.len()] {
            out.extend_from_slice(&u64::try_from(length).unwrap_or(u64::MAX).to_le_bytes());
        }
        out.extend(name.into_iter().flat_map(u16::to_le_bytes));
        out.extend_from_slice(&self.data);
        out
    }
}

/// EFI_GLOBAL_VARIABLE, 8be4df61-93ca-11d2-aa0d-00e098032b8c: SecureBoot, PK, KEK.
pub const GLOBAL_VARIABLE: [u8; 16] = [
    0x61, 0xDF, 0xE4, 0x8B, 0xCA, 0x93, 0xD2, 0x11, 0xAA, 0x0D, 0x00, 0xE0, 0x98, 0x03, 0x2B, 0x8C,
];
/// EFI_IMAGE_SECURITY_DATABASE_GUID, d719b2cb-3d3a-4596-a3bc-dad00e67656f: db, dbx.
pub const IMAGE_SECURITY_DATABASE: [u8; 16] = [
    0xCB, 0xB2, 0x19, 0xD7, 0x3A, 0x3D, 0x96, 0x45, 0xA3, 0xBC, 0xDA, 0xD0, 0x0E, 0x67, 0x65, 0x6F,
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_variable_survives_its_encoding(guid: [u8; 16], name in "[a-zA-Z]{0,20}", data in proptest::collection::vec(any::<u8>(), 0..64)) {
            let variable = UefiVariable { guid, name, data };
            prop_assert_eq!(UefiVariable::parse(&variable.encode()).unwrap(), variable);
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = UefiVariable::parse(&bytes);
        }
    }

    #[test]
    fn lengths_that_overflow_are_refused() {
        let mut bytes = GLOBAL_VARIABLE.to_vec();
        bytes.extend_from_slice(&[0xFF; 16]);
        assert_eq!(UefiVariable::parse(&bytes), None);
    }
}
