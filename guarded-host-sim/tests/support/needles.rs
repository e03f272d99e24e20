//! Finds known secrets in bytes, in whatever form they were written down.

use std::collections::HashMap;

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE},
};

/// What to search for, by the first eight bytes, so that a file is read through once.
pub(crate) struct Needles(HashMap<[u8; 8], Vec<(String, Vec<u8>)>>);

impl Needles {
    pub(crate) fn of(secrets: &[(String, Vec<u8>)]) -> Needles {
        let mut needles = Needles(HashMap::new());
        for (what, secret) in secrets {
            for form in forms(secret) {
                let start = *form.first_chunk().unwrap();
                needles.0.entry(start).or_default().push((what.clone(), form));
            }
        }
        needles
    }

    /// Which secret stands in `bytes`.
    pub(crate) fn found_in(&self, bytes: &[u8]) -> Option<&str> {
        (0..bytes.len()).find_map(|at| {
            let rest = &bytes[at..];
            let candidates = self.0.get(rest.first_chunk::<8>()?)?;
            let hit = candidates.iter().find(|(_, form)| rest.starts_with(form))?;
            Some(hit.0.as_str())
        })
    }
}

/// The secret raw, in hex of either case, as a list of numbers, and in base64 at any alignment.
fn forms(secret: &[u8]) -> Vec<Vec<u8>> {
    let hex = hex::encode(secret);
    let list = format!("{secret:?}");
    let mut forms = vec![
        secret.to_vec(),
        hex.to_uppercase().into_bytes(),
        hex.into_bytes(),
        list.trim_matches(['[', ']']).as_bytes().to_vec(),
    ];
    for before in 0..3 {
        // Only the digits that the neighbours do not touch.
        let padded = [vec![0; before], secret.to_vec()].concat();
        for text in [STANDARD.encode(&padded), URL_SAFE.encode(&padded)] {
            let whole = text.trim_end_matches('=');
            let from = before + usize::from(before > 0);
            forms.push(whole.as_bytes()[from..whole.len() - 1].to_vec());
        }
    }
    forms
}
