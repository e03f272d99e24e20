//! Length-prefixed fields: the one framing of every binary blob of a VM.
//!
//! A field is a u32 length (little-endian) and that many bytes. Readers take hostile bytes.

/// Appends one field. Fields here are far below 4 GiB; a longer one is cut by no caller.
pub fn put(out: &mut Vec<u8>, field: &[u8]) {
    let length = u32::try_from(field.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(field);
}

/// Takes the next field off the front of `rest`; `None` when it is cut short.
pub fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(take_u32(rest)?).ok()?;
    let (field, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(field)
}

/// Takes `N` bytes off the front.
pub fn take_array<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (bytes, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*bytes)
}

/// Takes a u32, little-endian.
pub fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    take_array(rest).map(u32::from_le_bytes)
}

/// Takes a u64, little-endian.
pub fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    take_array(rest).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_cut_anywhere_is_refused() {
        let mut out = Vec::new();
        put(&mut out, b"abc");
        let mut rest = out.as_slice();
        assert_eq!(take(&mut rest), Some(b"abc".as_slice()));
        assert!(rest.is_empty());
        for cut in 0..out.len() {
            assert_eq!(take(&mut out.get(..cut).unwrap()), None);
        }
        assert_eq!(take(&mut [0xff; 8].as_slice()), None);
    }
}
