//! The reader under every parser here: takes fields off the front, never past the end.

use super::TpmError;

pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], TpmError> {
        let (head, tail) = self.0.split_at_checked(count).ok_or(TpmError::Truncated)?;
        self.0 = tail;
        Ok(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], TpmError> {
        let (head, tail) = self.0.split_first_chunk().ok_or(TpmError::Truncated)?;
        self.0 = tail;
        Ok(*head)
    }

    pub(super) fn u8(&mut self) -> Result<u8, TpmError> {
        self.array().map(u8::from_be_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, TpmError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, TpmError> {
        self.array().map(u32::from_be_bytes)
    }

    /// A TPM2B: u16 length, then that many bytes.
    pub(super) fn sized(&mut self) -> Result<&'a [u8], TpmError> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }

    pub(super) fn finish(self) -> Result<(), TpmError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(TpmError::Trailing)
        }
    }
}

/// Writes a TPM2B. Contents longer than a u16 can say are cut off together with the message's
/// meaning, so writers here only pass what fits [`super::MAX_MESSAGE`].
pub(crate) trait Sized16 {
    /// Appends u16 length and `bytes`.
    fn push_sized(&mut self, bytes: &[u8]);
}

impl Sized16 for Vec<u8> {
    fn push_sized(&mut self, bytes: &[u8]) {
        let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        self.extend(length.to_be_bytes());
        self.extend(bytes.iter().take(usize::from(length)));
    }
}
