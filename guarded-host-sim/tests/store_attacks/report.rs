//! The report: what was tried, what was said, and a search of everything that came for known keys.

use std::{fmt::Write as _, fs, path::Path};

use guarded_host_sim::{
    store::protocol::StoreReply,
    vm::request::{VmReply, VmRequest},
};
use serde_json::Value;

use crate::{private_keys::private_keys_in, support::needles::Needles};

#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
    ordinary: Vec<(String, Vec<u8>)>,
    skipped: Vec<String>,
    /// Keys that the agent must not have seen by now, in what form soever.
    secrets: Vec<(String, Vec<u8>)>,
}

struct Row {
    /// Which part of the host it is about.
    of: &'static str,
    attempt: String,
    wanted: String,
    said: String,
    got: Vec<u8>,
}

impl Report {
    /// An attempt with what should have been said and what was said, and everything that the agent got by it.
    pub(crate) fn row(
        &mut self,
        of: &'static str,
        attempt: impl Into<String>,
        wanted: impl Into<String>,
        said: impl Into<String>,
        got: Vec<u8>,
    ) {
        self.rows.push(Row {
            of,
            attempt: attempt.into(),
            wanted: wanted.into(),
            said: said.into(),
            got,
        });
    }

    /// What came to the agent, or lies in its folders, in the ordinary way.
    pub(crate) fn came(&mut self, what: impl Into<String>, bytes: &[u8]) {
        self.ordinary.push((what.into(), bytes.to_vec()));
    }

    /// Everything below a folder of the agent's.
    pub(crate) fn lies_below(&mut self, folder: &Path) {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            match entry.file_type().unwrap() {
                kind if kind.is_dir() => self.lies_below(&entry.path()),
                kind if kind.is_file() => {
                    self.came(entry.path().display().to_string(), &fs::read(entry.path()).unwrap())
                }
                _ => {}
            }
        }
    }

    /// Rows that do not hold here, and why.
    pub(crate) fn skip(&mut self, why: &str) {
        self.skipped.push(why.to_owned());
    }

    /// Something that must be in nothing that the agent gets.
    pub(crate) fn secret(&mut self, what: impl Into<String>, secret: &[u8]) {
        assert!(secret.len() >= 16, "too short to be found for sure");
        self.secrets.push((what.into(), secret.to_vec()));
    }

    /// Prints the table, row by row, and panics where a row was answered in another way than it should, or where a key
    /// came out.
    pub(crate) fn judge(self) {
        let needles = Needles::of(&self.secrets);
        for (what, secret) in &self.secrets {
            let planted = [b"before".as_slice(), hex::encode(secret).as_bytes(), b"after"].concat();
            assert!(needles.found_in(&planted).is_some(), "the search does not find {what}");
        }
        let (mut table, mut bad, mut searched) = (String::new(), 0, 0);
        let mut before = "";
        for row in &self.rows {
            if row.of != before {
                let _ = writeln!(table, "\n{}", row.of);
                before = row.of;
            }
            let leak = needles.found_in(&row.got).map(str::to_owned);
            let leak =
                leak.or_else(|| (!private_keys_in(&row.got).is_empty()).then(|| "an RSA private key".to_owned()));
            searched += row.got.len();
            let (mark, more) = match (&leak, row.said == row.wanted) {
                (Some(what), _) => ("KEY", format!("\n        CAME OUT: {what}")),
                (None, false) => ("BAD", format!("\n        wanted: {}", row.wanted)),
                (None, true) => ("ok ", String::new()),
            };
            bad += usize::from(mark != "ok ");
            let _ = writeln!(table, "  {mark} {}\n      -> {}{more}", row.attempt, row.said);
        }
        for (what, bytes) in &self.ordinary {
            searched += bytes.len();
            if let Some(leak) = needles.found_in(bytes) {
                bad += 1;
                let _ = writeln!(table, "  KEY {what}\n        CAME OUT: {leak}");
            }
        }
        for why in &self.skipped {
            let _ = writeln!(table, "\nSKIPPED: {why}");
        }
        println!(
            "{table}\n{} attempts, {bad} not refused as they should be; {searched} bytes came to the agent, searched for {} secrets",
            self.rows.len(),
            self.secrets.len()
        );
        assert!(!self.rows.is_empty() && searched > 0 && !self.secrets.is_empty());
        assert_eq!(bad, 0, "see the table");
    }
}

/// What a store's reply says: its refusal, or what kind of answer it is.
pub(crate) fn told(reply: &StoreReply) -> String {
    match reply {
        StoreReply::Refused { reason } | StoreReply::Vm(VmReply::Refused { reason }) => reason.clone(),
        StoreReply::Description { .. } => "answered: public keys".to_owned(),
        StoreReply::Vm(reply) => {
            let text = serde_json::to_value(reply).unwrap();
            format!("answered: {}", text["reply"].as_str().unwrap())
        }
    }
}

/// What the system said to a deed.
pub(crate) fn said(deed: &Result<impl Sized, String>) -> String {
    match deed {
        Ok(_) => "done".to_owned(),
        Err(error) => error.clone(),
    }
}

/// The name of a request's kind, as it stands on the wire.
pub(crate) fn kind(request: &VmRequest) -> String {
    let value: Value = serde_json::to_value(request).unwrap();
    value["ask"].as_str().unwrap().to_owned()
}
