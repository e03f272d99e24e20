//! Boot logs of real machines, explained and compared with what was found for each independently.
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use attestation::inspect::Explanation;
use serde_json::Value;

/// The samples, or nothing with a note on what is skipped.
struct Corpus {
    root: PathBuf,
    expectations: serde_json::Map<String, Value>,
}

impl Corpus {
    fn open(what: &str) -> Option<Corpus> {
        let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/corpus");
        let root = std::env::var_os("LAB_CORPUS").map_or_else(|| PathBuf::from(beside), PathBuf::from);
        match fs::read(root.join("expectations.json")) {
            Ok(bytes) => Some(Corpus {
                root,
                expectations: serde_json::from_slice(&bytes).expect("expectations.json is JSON"),
            }),
            Err(error) => {
                println!("SKIPPED: {what}: no corpus of real logs (set LAB_CORPUS): {error}");
                None
            }
        }
    }

    /// Explained logs below `folder` with their expectations.
    fn logs(&self, folder: &str) -> BTreeMap<&str, (Explanation, &Value)> {
        let is_log = |expected: &Value| expected.get("replayedPcrs").is_some();
        let mut logs = BTreeMap::new();
        for (path, expected) in &self.expectations {
            if path.starts_with(folder) && is_log(expected) {
                let bytes = fs::read(self.root.join(path)).expect("a listed log can be read");
                logs.insert(path.as_str(), (Explanation::of(&bytes), expected));
            }
        }
        assert!(!logs.is_empty(), "the corpus lists logs below {folder}");
        println!("{folder}: {} logs", logs.len());
        logs
    }
}

fn check_pcrs(path: &str, explained: &Explanation, expected: &Value, differences: &mut Vec<String>) {
    let banks = expected["replayedPcrs"].as_object().expect("banks");
    let names: BTreeSet<&String> = banks.keys().collect();
    if explained.banks.keys().collect::<BTreeSet<_>>() != names {
        differences.push(format!(
            "{path}: banks {:?}, expected {names:?}",
            explained.banks.keys()
        ));
    }
    for (bank, pcrs) in banks {
        let expected: BTreeMap<u8, &str> = pcrs
            .as_object()
            .expect("PCRs")
            .iter()
            .map(|(pcr, value)| (pcr.parse().expect("a PCR"), value.as_str().expect("hex")))
            .collect();
        let seen = explained.banks.get(bank).into_iter().flatten();
        let seen: BTreeMap<u8, &str> = seen.map(|(pcr, value)| (*pcr, value.as_str())).collect();
        if seen != expected {
            differences.push(format!("{path}: bank {bank}: {seen:?}, expected {expected:?}"));
        }
    }
    let records = expected["eventCount"].as_u64();
    if records != u64::try_from(explained.event_count).ok() {
        differences.push(format!(
            "{path}: {} records, expected {records:?}",
            explained.event_count
        ));
    }
    // Registers of a confidential-computing log are no PCRs: it has no PCR 7 to read.
    if !path.contains("ccel") && expected["secureBoot"] != serde_json::json!(explained.secure_boot) {
        let (seen, wanted) = (explained.secure_boot, &expected["secureBoot"]);
        differences.push(format!("{path}: Secure Boot {seen:?}, expected {wanted}"));
    }
}

fn none(differences: &[String]) {
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn windows_logs_read_as_expected() {
    let Some(corpus) = Corpus::open("facts and PCRs of Windows logs") else {
        return;
    };
    let mut differences = Vec::new();
    for (path, (explained, expected)) in corpus.logs("windows/") {
        check_pcrs(path, &explained, expected, &mut differences);
        let reading = expected["windows"]["policyReading"].as_object().expect("a reading");
        for (name, wanted) in reading.iter().filter(|(name, _)| *name != "basis") {
            let seen = explained.facts.get(name.as_str()).unwrap_or(&Value::Null);
            if seen != wanted {
                differences.push(format!("{path}: {name} reads {seen}, expected {wanted}"));
            }
        }
        for error in &explained.errors {
            differences.push(format!("{path}: {error}"));
        }
    }
    none(&differences);
}

#[test]
fn other_logs_replay_as_expected() {
    let Some(corpus) = Corpus::open("PCRs of other UEFI logs") else {
        return;
    };
    let mut differences = Vec::new();
    for (path, (explained, expected)) in corpus.logs("uefi/") {
        check_pcrs(path, &explained, expected, &mut differences);
        if expected["trailingBytes"].as_u64() != u64::try_from(explained.trailing_bytes).ok() {
            differences.push(format!("{path}: {} trailing bytes", explained.trailing_bytes));
        }
        println!(
            "{path}: errors {:?}; warnings {:?}",
            explained.errors, explained.warnings
        );
    }
    none(&differences);
}

/// Every log cut short, and with bytes changed in many places, is still explained.
#[test]
fn damaged_logs_are_explained_without_a_panic() {
    let Some(corpus) = Corpus::open("damage to real logs") else {
        return;
    };
    for path in corpus.logs("windows/").keys().chain(corpus.logs("uefi/").keys()) {
        let bytes = fs::read(corpus.root.join(path)).expect("a listed log can be read");
        for part in 0..40 {
            let at = bytes.len() * part / 40;
            let cut = Explanation::of(&bytes[..at]);
            assert!(cut.event_count <= Explanation::of(&bytes).event_count);
            let mut changed = bytes.clone();
            changed[at] ^= 0x80;
            assert!(!Explanation::of(&changed).text(path).is_empty());
        }
    }
}
