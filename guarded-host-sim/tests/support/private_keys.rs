//! Finds RSA private keys in bytes, however they were written down.

use std::collections::BTreeSet;

use base64::{Engine, alphabet, engine::GeneralPurpose, engine::general_purpose::NO_PAD};

/// The moduli of the private keys in `bytes`: DER of PKCS#1, by itself or inside PKCS#8, as it stands, in
/// base64 (so PEM, JSON and XML too) or in hex.
pub(crate) fn private_keys_in(bytes: &[u8]) -> BTreeSet<Vec<u8>> {
    let mut found: BTreeSet<Vec<u8>> = (0..bytes.len())
        .filter_map(|at| rsa_private_key(&bytes[at..]))
        .collect();
    for run in runs_of_digits(bytes) {
        for decoded in from_base64(&run).into_iter().chain(from_hex(&run)) {
            found.extend((0..decoded.len()).filter_map(|at| rsa_private_key(&decoded[at..])));
        }
    }
    found
}

/// The modulus, if an RSAPrivateKey (RFC 8017, A.1.2) begins here: a SEQUENCE of version 0 and eight INTEGERs.
fn rsa_private_key(bytes: &[u8]) -> Option<Vec<u8>> {
    let (0x30, body, _) = element(bytes)? else { return None };
    let (0x02, [0], mut rest) = element(body)? else {
        return None;
    };
    let mut numbers = Vec::new();
    while !rest.is_empty() {
        let (0x02, number, after) = element(rest)? else {
            return None;
        };
        numbers.push(number);
        rest = after;
    }
    let modulus: Vec<u8> = numbers.first()?.iter().copied().skip_while(|byte| *byte == 0).collect();
    (numbers.len() == 8 && modulus.len() >= 64).then_some(modulus)
}

/// Tag, content and what follows of a DER element.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = bytes.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        0x81..=0x83 => {
            let (length, rest) = rest.split_at_checked(usize::from(first & 3))?;
            (length.iter().fold(0, |n, byte| n << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, after) = rest.split_at_checked(length)?;
    Some((*tag, content, after))
}

/// Runs of at least 64 base64 or hex digits; line ends, also escaped ones as in JSON, do not end a run.
fn runs_of_digits(bytes: &[u8]) -> Vec<Vec<u8>> {
    let (mut runs, mut run, mut rest) = (Vec::new(), Vec::new(), bytes);
    while let [byte, after @ ..] = rest {
        rest = after;
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/' => run.push(*byte),
            b'-' if run.len() >= 64 && after.first() != Some(&b'-') => run.push(b'+'),
            b'_' => run.push(b'/'),
            b'\r' | b'\n' => {}
            b'\\' if matches!(after, [b'n' | b'r', ..]) => rest = &after[1..],
            _ => runs.push(std::mem::take(&mut run)),
        }
    }
    runs.push(run);
    runs.retain(|run| run.len() >= 64);
    runs
}

/// A run may begin before the text itself does, so it is read from each place within a group of four.
fn from_base64(run: &[u8]) -> Vec<Vec<u8>> {
    let lenient = NO_PAD.with_decode_allow_trailing_bits(true);
    let engine = GeneralPurpose::new(&alphabet::STANDARD, lenient);
    let whole = |digits: &[u8]| digits.len() - usize::from(digits.len() % 4 == 1);
    let from = |at: usize| engine.decode(&run[at..][..whole(&run[at..])]).ok();
    (0..4).filter_map(from).collect()
}

fn from_hex(run: &[u8]) -> Vec<Vec<u8>> {
    let hex: Vec<&[u8]> = run
        .split(|digit| !digit.is_ascii_hexdigit())
        .filter(|part| part.len() >= 64)
        .collect();
    let decode = |digits: &[u8]| hex::decode(&digits[..digits.len() & !1]).ok();
    hex.iter()
        .flat_map(|part| [decode(part), decode(&part[1..])])
        .flatten()
        .collect()
}
