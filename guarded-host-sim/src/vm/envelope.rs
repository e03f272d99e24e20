//! The one form of what is sealed together with a memory image: `header | u32 length (LE) | clear | AES-256-GCM(body)`,
//! where everything before the last is authenticated too.
//!
//! A memory image lies in the body; it lies in the clear part when its VM's encryption of state and
//! migration traffic is off, and is then still bound to the key.

use hgs_protocol::{
    crypto::{gcm_open, gcm_seal},
    env::Random,
    secret::Secret32,
};
use zeroize::Zeroizing;

use super::{
    fields,
    security::{Security, Switch},
};

/// Why an envelope does not open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum EnvelopeError {
    /// Cut short.
    Format,
    /// Another key, or a byte was changed.
    Sealed,
}

/// Where a memory image goes: into the clear, or into the body.
pub(super) fn place(memory: &[u8], security: Security) -> (&[u8], &[u8]) {
    match security.is_on(Switch::EncryptStateAndMigration) {
        true => (&[], memory),
        false => (memory, &[]),
    }
}

/// The memory image from where [`place`] put it; nothing if it is elsewhere.
pub(super) fn displace(clear: &[u8], hidden: &[u8], security: Security) -> Option<Zeroizing<Vec<u8>>> {
    let (memory, other) = match security.is_on(Switch::EncryptStateAndMigration) {
        true => (hidden, clear),
        false => (clear, hidden),
    };
    other.is_empty().then(|| Zeroizing::new(memory.to_vec()))
}

pub(super) fn seal(key: &Secret32, header: &[u8], clear: &[u8], body: &[u8], rng: &mut dyn Random) -> Vec<u8> {
    let mut out = header.to_vec();
    fields::put(&mut out, clear);
    let sealed = gcm_seal(key, &out, body, rng);
    out.extend_from_slice(&sealed);
    out
}

/// Gives the clear part and the body of what [`seal`] made of a header of `header` bytes.
pub(super) fn open<'a>(
    key: &Secret32,
    header: usize,
    sealed: &'a [u8],
) -> Result<(&'a [u8], Zeroizing<Vec<u8>>), EnvelopeError> {
    let mut rest = sealed.get(header..).ok_or(EnvelopeError::Format)?;
    let clear = fields::take(&mut rest).ok_or(EnvelopeError::Format)?;
    let (authenticated, body) = sealed
        .split_at_checked(sealed.len().saturating_sub(rest.len()))
        .ok_or(EnvelopeError::Format)?;
    let body = gcm_open(key, authenticated, body).map_err(|_| EnvelopeError::Sealed)?;
    Ok((clear, body))
}
