//! Shows, event by event, what changed between two boot logs: a registered baseline's and a host's, or two
//! files. Proves nothing about either; it explains why a host no longer matches.

use std::{collections::BTreeMap, fmt::Write as _, fs, io::Write as _, path::Path, process::ExitCode};

use anyhow::Context as _;
use hgs_protocol::wire::{
    boot_log::{Bank, BootLog, Event, EventType, PcrIndex},
    sipa::{self, SiPolicy, Tag},
    uefi::UefiVariable,
};
use serde::{Deserialize, Serialize};

use crate::replay::ATTESTED_PCRS;

/// One measured record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Measured {
    /// Its PCR.
    pub pcr: u8,
    /// Its type by the TCG's name.
    pub event_type: String,
    /// Its digest in the bank that is compared, hex.
    pub digest: String,
    /// What it is about, which stays when its content changes: a variable's name, a tag's names.
    pub about: String,
    /// Its content, as far as it is readable.
    pub content: String,
}

/// What happened to a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// The PCR.
    pub pcr: u8,
    /// `added`, `removed` or `changed`.
    pub change: &'static str,
    /// The record as it was, and its place in its PCR, from 0.
    pub before: Option<(usize, Measured)>,
    /// The record as it is, and its place in its PCR, from 0.
    pub after: Option<(usize, Measured)>,
}

/// How two logs differ.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    /// True when no attested PCR differs.
    pub same: bool,
    /// The bank compared.
    pub bank: String,
    /// Attested PCRs whose records differ.
    pub differing_pcrs: Vec<u8>,
    /// What the differences mean for an administrator.
    pub notes: Vec<String>,
    /// Every difference, by PCR and place.
    pub changes: Vec<Change>,
}

/// Compares two logs in the best bank that both have, over the PCRs that an attestation reads.
pub fn compare(before: &BootLog, after: &BootLog) -> Comparison {
    let order = [Bank::Sha256, Bank::Sha384, Bank::Sha512, Bank::Sha1];
    let (one, two) = (before.banks(), after.banks());
    let bank = order.into_iter().find(|bank| one.contains(bank) && two.contains(bank));
    let bank = bank.unwrap_or(Bank::Sha256);
    let (before, after) = (by_pcr(before, bank), by_pcr(after, bank));
    let mut changes = Vec::new();
    for pcr in ATTESTED_PCRS {
        let empty = Vec::new();
        let one = before.get(&pcr).unwrap_or(&empty);
        let two = after.get(&pcr).unwrap_or(&empty);
        changes.extend(differences(pcr, one, two));
    }
    let mut differing_pcrs: Vec<u8> = changes.iter().map(|change| change.pcr).collect();
    differing_pcrs.dedup();
    Comparison {
        same: changes.is_empty(),
        bank: bank.to_string(),
        notes: notes(&differing_pcrs, &changes),
        differing_pcrs,
        changes,
    }
}

/// Compares the logs in two files and prints the answer. Answers success only when they are the same.
pub fn run(before: &Path, after: &Path, as_json: bool) -> anyhow::Result<ExitCode> {
    let read = |path: &Path| -> anyhow::Result<BootLog> {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        BootLog::parse(&bytes).with_context(|| format!("{} is not a boot log", path.display()))
    };
    let comparison = compare(&read(before)?, &read(after)?);
    let text = match as_json {
        true => serde_json::to_string_pretty(&comparison)? + "\n",
        false => comparison.text()?,
    };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(match comparison.same {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

impl Comparison {
    /// For a person, one line a change.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut out = String::new();
        if self.same {
            writeln!(
                out,
                "No measured record of PCR 0-7 and 11-14 differs (bank {}).",
                self.bank
            )?;
        }
        for change in &self.changes {
            writeln!(out, "PCR {:>2} {}", change.pcr, change.change)?;
            for (sign, side) in [('-', &change.before), ('+', &change.after)] {
                if let Some((place, record)) = side {
                    let Measured {
                        event_type,
                        about,
                        content,
                        digest,
                        ..
                    } = record;
                    let digest = digest.get(..16).unwrap_or(digest);
                    writeln!(out, "  {sign} #{place} {event_type} {about} {content} [{digest}…]")?;
                }
            }
        }
        for note in &self.notes {
            writeln!(out, "{note}")?;
        }
        Ok(out)
    }
}

fn by_pcr(log: &BootLog, bank: Bank) -> BTreeMap<u8, Vec<Measured>> {
    let mut out: BTreeMap<u8, Vec<Measured>> = BTreeMap::new();
    for event in log.events().iter().filter(|event| event.is_measured()) {
        if let Some(pcr) = event.pcr_index().map(PcrIndex::get) {
            out.entry(pcr).or_default().push(describe(pcr, event, bank));
        }
    }
    out
}

fn describe(pcr: u8, event: &Event, bank: Bank) -> Measured {
    let (about, content) = subject(event);
    Measured {
        pcr,
        event_type: event.event_type.to_string(),
        digest: event.digest(bank).map(hex::encode).unwrap_or_default(),
        about,
        content,
    }
}

/// What a record is about, and what it says.
fn subject(event: &Event) -> (String, String) {
    match event.event_type {
        EventType::EFI_VARIABLE_DRIVER_CONFIG
        | EventType::EFI_VARIABLE_BOOT
        | EventType::EFI_VARIABLE_BOOT2
        | EventType::EFI_VARIABLE_AUTHORITY => match UefiVariable::parse(&event.data) {
            Some(variable) => (variable.name.clone(), bytes_text(&variable.data)),
            None => (String::new(), bytes_text(&event.data)),
        },
        EventType::EVENT_TAG => match sipa::measured_leaves(&event.data) {
            Ok(tags) => {
                let names: Vec<String> = tags.iter().map(tag_name).collect();
                let contents: Vec<String> = tags.iter().map(tag_text).collect();
                (names.join("+"), contents.join(", "))
            }
            Err(error) => (String::new(), format!("malformed: {error}")),
        },
        _ => (String::new(), bytes_text(&event.data)),
    }
}

fn tag_name(tag: &Tag) -> String {
    let name = sipa::id::name(tag.id);
    name.map_or_else(|| format!("{:#010x}", tag.id), str::to_owned)
}

fn tag_text(tag: &Tag) -> String {
    let value = match (tag.integer(), SiPolicy::parse(&tag.data)) {
        (Some(value), _) => value.to_string(),
        (None, Some(policy)) => format!("{} {}", policy.name, policy.version_text()),
        (None, None) => bytes_text(&tag.data),
    };
    format!("{}={value}", tag_name(tag))
}

/// Text where it is text (ASCII or UTF-16), otherwise its length and first bytes.
fn bytes_text(bytes: &[u8]) -> String {
    let plain = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic() || c == ' ');
    let trimmed = String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
    if plain(&trimmed) && trimmed.len() > 3 {
        return trimmed.chars().take(LONGEST_TEXT).collect();
    }
    let units = bytes
        .chunks_exact(2)
        .filter_map(|pair| Some(u16::from_le_bytes(pair.try_into().ok()?)));
    let wide = String::from_utf16_lossy(&units.collect::<Vec<_>>())
        .trim_end_matches('\0')
        .to_owned();
    if bytes.len().is_multiple_of(2) && plain(&wide) && wide.len() > 3 {
        return wide.chars().take(LONGEST_TEXT).collect();
    }
    let head = bytes.get(..16).unwrap_or(bytes);
    match bytes.len() > head.len() {
        true => format!("{} bytes {}…", bytes.len(), hex::encode(head)),
        false => hex::encode(head),
    }
}

/// The longest common subsequence stays; what is left is added or removed, and a removed record followed
/// by an added one about the same thing has changed.
fn differences(pcr: u8, before: &[Measured], after: &[Measured]) -> Vec<Change> {
    let same_head = before
        .iter()
        .zip(after)
        .take_while(|(one, two)| one.digest == two.digest)
        .count();
    let rest = |list: &[Measured]| {
        list.iter()
            .skip(same_head)
            .rev()
            .map(|record| record.digest.clone())
            .collect::<Vec<_>>()
    };
    let same_tail = rest(before)
        .iter()
        .zip(rest(after))
        .take_while(|(one, two)| *one == two)
        .count();
    let middle = |list: &'_ [Measured]| -> Vec<(usize, Measured)> {
        let end = list.len().saturating_sub(same_tail);
        list.iter().cloned().enumerate().take(end).skip(same_head).collect()
    };
    let (one, two) = (middle(before), middle(after));
    let (removed, added) = match one.len().saturating_mul(two.len()) <= LARGEST_TABLE {
        true => unmatched(&one, &two),
        // A hostile log must not cost a table of its own size: then everything between head and tail has changed.
        false => (one, two),
    };
    pair(pcr, removed, added)
}

type Placed = (usize, Measured);

fn unmatched(one: &[Placed], two: &[Placed]) -> (Vec<Placed>, Vec<Placed>) {
    // lengths[i][j]: the longest common subsequence of one[i..] and two[j..].
    let mut lengths = vec![vec![0u32; two.len() + 1]; one.len() + 1];
    let at =
        |lengths: &Vec<Vec<u32>>, i: usize, j: usize| lengths.get(i).and_then(|row| row.get(j)).copied().unwrap_or(0);
    for (i, (_, left)) in one.iter().enumerate().rev() {
        for (j, (_, right)) in two.iter().enumerate().rev() {
            let best = match left.digest == right.digest {
                true => at(&lengths, i + 1, j + 1) + 1,
                false => at(&lengths, i + 1, j).max(at(&lengths, i, j + 1)),
            };
            if let Some(cell) = lengths.get_mut(i).and_then(|row| row.get_mut(j)) {
                *cell = best;
            }
        }
    }
    let (mut removed, mut added, mut i, mut j) = (Vec::new(), Vec::new(), 0, 0);
    loop {
        match (one.get(i), two.get(j)) {
            (Some((_, left)), Some((_, right))) if left.digest == right.digest => (i, j) = (i + 1, j + 1),
            (Some(left), right) if right.is_none() || at(&lengths, i + 1, j) >= at(&lengths, i, j + 1) => {
                removed.push(left.clone());
                i += 1;
            }
            (_, Some(right)) => {
                added.push(right.clone());
                j += 1;
            }
            _ => return (removed, added),
        }
    }
}

fn pair(pcr: u8, removed: Vec<Placed>, mut added: Vec<Placed>) -> Vec<Change> {
    let mut changes = Vec::new();
    for old in removed {
        let same = |(_, new): &Placed| new.event_type == old.1.event_type && new.about == old.1.about;
        // Without a name only a record at the same place is its successor.
        let successor = added
            .iter()
            .position(|new| same(new) && (!old.1.about.is_empty() || new.0 == old.0));
        changes.push(match successor {
            Some(place) => Change {
                pcr,
                change: "changed",
                after: Some(added.remove(place)),
                before: Some(old),
            },
            None => Change {
                pcr,
                change: "removed",
                before: Some(old),
                after: None,
            },
        });
    }
    changes.extend(added.into_iter().map(|new| Change {
        pcr,
        change: "added",
        before: None,
        after: Some(new),
    }));
    let place = |change: &Change| {
        let side = change.after.as_ref().or(change.before.as_ref());
        side.map_or(0, |(place, _)| *place)
    };
    changes.sort_by_key(place);
    changes
}

fn notes(pcrs: &[u8], changes: &[Change]) -> Vec<String> {
    let mut notes = Vec::new();
    if pcrs.contains(&7) {
        notes.push(
            "PCR 7 differs: Hgs_SecureBootSettings fails until a baseline with these records is registered. Register it only if the change is expected."
                .to_owned(),
        );
    }
    if pcrs.iter().any(|pcr| *pcr < 7) {
        notes
            .push("PCR 0-6 differ: firmware, boot manager or their settings changed. No policy reads them.".to_owned());
    }
    let about_policies = |change: &Change| {
        let sides = [&change.before, &change.after];
        sides
            .into_iter()
            .flatten()
            .any(|(_, record)| record.about.contains("SI_POLICY"))
    };
    if changes.iter().any(about_policies) {
        notes.push("A code-integrity policy changed: Hgs_CiPolicy passes only when it is registered.".to_owned());
    }
    if pcrs.contains(&12) {
        notes.push("PCR 12 holds counters and keys that are new at every boot; compare its other records.".to_owned());
    }
    notes
}

const LONGEST_TEXT: usize = 120;
/// Cells of the table of common subsequences.
const LARGEST_TABLE: usize = 4_000_000;

#[cfg(test)]
mod tests {
    use hgs_protocol::wire::boot_log::BootLogBuilder;
    use proptest::prelude::*;

    use super::*;

    fn log(secure_boot: u8, extra: bool) -> BootLog {
        let pcr = |index| PcrIndex::new(index).unwrap();
        let variable = |name: &str, data: &[u8]| {
            UefiVariable {
                guid: [7; 16],
                name: name.to_owned(),
                data: data.to_vec(),
            }
            .encode()
        };
        let mut builder = BootLogBuilder::new(3);
        builder.measure(
            pcr(7),
            EventType::EFI_VARIABLE_DRIVER_CONFIG,
            variable("SecureBoot", &[secure_boot]),
        );
        builder.measure(pcr(7), EventType::EFI_VARIABLE_DRIVER_CONFIG, variable("PK", b"owner"));
        if extra {
            builder.measure(
                pcr(7),
                EventType::EFI_VARIABLE_AUTHORITY,
                variable("db", b"new authority"),
            );
        }
        builder.separator(pcr(7));
        BootLog::parse(&builder.finish()).unwrap()
    }

    #[test]
    fn equal_logs_have_no_changes() {
        let comparison = compare(&log(1, true), &log(1, true));
        assert!(comparison.same && comparison.changes.is_empty());
    }

    #[test]
    fn a_changed_and_an_added_record_are_told_apart() {
        let comparison = compare(&log(1, false), &log(0, true));
        assert_eq!(comparison.differing_pcrs, [7]);
        let told: Vec<_> = comparison
            .changes
            .iter()
            .map(|change| (change.change, change.after.as_ref().unwrap().1.about.as_str()))
            .collect();
        assert_eq!(told, [("changed", "SecureBoot"), ("added", "db")]);
        let back = compare(&log(0, true), &log(1, false));
        let told: Vec<_> = back.changes.iter().map(|change| change.change).collect();
        assert_eq!(told, ["changed", "removed"]);
    }

    proptest! {
        /// Whatever changes, applying the differences to the first list gives the second.
        #[test]
        fn differences_are_complete(one in prop::collection::vec(0u8..4, 0..12), two in prop::collection::vec(0u8..4, 0..12)) {
            let records = |list: &[u8]| -> Vec<Measured> {
                list.iter()
                    .map(|value| Measured {
                        pcr: 7,
                        event_type: "EV".to_owned(),
                        digest: format!("{value:02x}"),
                        about: String::new(),
                        content: String::new(),
                    })
                    .collect()
            };
            let (before, after) = (records(&one), records(&two));
            let changes = differences(7, &before, &after);
            let gone: Vec<usize> = changes.iter().filter_map(|change| Some(change.before.as_ref()?.0)).collect();
            let mut result: Vec<Measured> = before
                .iter()
                .enumerate()
                .filter(|(place, _)| !gone.contains(place))
                .map(|(_, record)| record.clone())
                .collect();
            let mut new: Vec<Placed> = changes.into_iter().filter_map(|change| change.after).collect();
            new.sort_by_key(|(place, _)| *place);
            for (place, record) in new {
                result.insert(place, record);
            }
            prop_assert_eq!(result, after);
        }
    }
}
