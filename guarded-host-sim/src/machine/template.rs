//! Machines in the shape of a real one: every event of its boot log is measured into this host's TPM,
//! in its order, with this host's VSM keys and counters in place of the template's.
//!
//! Changes only what identifies a host and what a dial says. Which SHA-256 digest an event gets where
//! the template has none is decided here, and said.

use hgs_protocol::{
    crypto::{RsaPublicKey, sha256},
    wire::{
        boot_log::{
            Bank, BootLog, BootLogBuilder, BootLogError, Event, EventType, PCR11_CAP, PcrIndex, WBCL_SEPARATOR,
        },
        sipa::{self, Tag, id},
        uefi::{GLOBAL_VARIABLE, UefiVariable},
        vsm,
    },
};
use x509_cert::{
    Certificate,
    der::{Decode as _, SliceReader},
};

use self::edits::Edits;
use super::dials::{AppliedDials, Dials};

mod edits;

/// The boot log of a machine, ready to be measured again.
#[derive(Clone, Debug)]
pub struct Template {
    records: Vec<Record>,
    locality: u8,
    remarks: Vec<String>,
}

/// One event to measure, or to note when it is none that a TPM extends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The PCR.
    pub pcr: u8,
    /// The type.
    pub event_type: EventType,
    /// What is extended; none for the SHA-256 of the data.
    pub digest: Option<[u8; 32]>,
    /// The data.
    pub data: Vec<u8>,
}

/// A boot in two parts, between which the store opens.
#[derive(Clone, Debug)]
pub struct Script {
    /// The locality of TPM2_Startup: 0 or 3.
    pub locality: u8,
    /// Measured before the store opens: everything up to the VSM keys or the caps.
    pub before: Vec<Record>,
    /// True when VSM runs, so that a store opens.
    pub vsm: bool,
    /// What an operator should know.
    pub remarks: Vec<String>,
    after: Vec<Record>,
}

impl Template {
    /// Reads the boot log of a machine, in any bank.
    pub fn read(bytes: &[u8]) -> Result<Template, BootLogError> {
        let log = BootLog::parse(bytes)?;
        let mut template = Template {
            records: Vec::new(),
            locality: match log.startup_locality() {
                Some(3) => 3,
                _ => 0,
            },
            remarks: Vec::new(),
        };
        let (mut recomputed, mut derived, mut elsewhere, mut notes) = (0, 0, 0, 0);
        for event in log.events() {
            let pcr = event.pcr_index().map(|pcr| pcr.get());
            let Some(pcr) = pcr.filter(|pcr| event.is_measured() && *pcr <= LAST_STATIC_PCR) else {
                match event.is_measured() {
                    true => elsewhere += 1,
                    false => notes += 1,
                }
                continue;
            };
            if event.digest(Bank::Sha256).is_none() {
                recomputed += 1;
            }
            let digest = match Source::of(event) {
                Source::Sha256(digest) => Some(digest),
                Source::Data => None,
                Source::Derived(digest) => {
                    derived += 1;
                    Some(digest)
                }
            };
            template.records.push(Record {
                pcr,
                event_type: event.event_type,
                digest,
                data: event.data.clone(),
            });
        }
        let mut remark = |count: usize, text: &str| {
            if count > 0 {
                template
                    .remarks
                    .push(format!("records of the template: {count} {text}"));
            }
        };
        remark(recomputed, "without a SHA-256 digest in the template");
        remark(
            derived,
            "of them without what was measured: their digest here is the SHA-256 of the template's digest",
        );
        remark(elsewhere, "left out, of PCRs that no static boot extends");
        remark(notes, "left out, since a TPM measures none of their kind");
        Ok(template)
    }

    /// The boot of a host that has this shape: `dials` applied, `boots` and `name` in the counters.
    pub fn script(&self, dials: &Dials, applied: AppliedDials, boots: u64, name: &str) -> Script {
        let mut script = Script {
            locality: self.locality,
            before: self.records.clone(),
            vsm: false,
            remarks: self.remarks.clone(),
            after: Vec::new(),
        };
        let all = applied == AppliedDials::All;
        Edits { dials, all }.apply(&mut script.before);
        let counter = |tag: &mut Tag| match tag.id {
            id::BOOTCOUNTER | id::EVENTCOUNTER => tag.data = boots.to_le_bytes().to_vec(),
            id::COUNTERID => tag.data = sha256(name.as_bytes()).iter().take(8).copied().collect(),
            _ => {}
        };
        edit_tags(&mut script.before, |_, tag| {
            counter(tag);
            true
        });
        script.vsm = has_tag(&script.before, id::VSM_LAUNCH_TYPE, |tag| tag.integer() != Some(0));
        let keys = [id::VSM_IDK_INFO, id::VSM_IDKS_INFO];
        match script.vsm {
            true if !has_tag(&script.before, id::VSM_IDK_INFO, |_| true) => {
                let tags = keys.map(|key| Tag::new(key, Vec::new()));
                insert(&mut script.before, stage(12, &tags));
                script
                    .remarks
                    .push("the template launches VSM and measures no VSM key: they are added".to_owned());
            }
            true => {}
            false => {
                edit_tags(&mut script.before, |_, tag| !keys.contains(&tag.id));
                script
                    .remarks
                    .push("no VSM runs: the host has no VBS store and no VSM keys".to_owned());
            }
        }
        let omitted = |tag: &Tag| id::name(tag.id).is_some_and(|name| dials.omit.contains(name));
        let split = script
            .before
            .iter()
            .position(|record| holds(record, &keys) || (record.pcr == 12 && record.data == WBCL_SEPARATOR))
            .unwrap_or(script.before.len());
        edit_tags(&mut script.before, |_, tag| !omitted(tag));
        script.after = script.before.split_off(split);
        script
    }
}

impl Script {
    /// What is measured once the store is open: the VSM keys in their place, and the rest.
    pub fn after(&self, keys: Option<(&RsaPublicKey, &RsaPublicKey)>) -> Vec<Record> {
        let mut records = self.after.clone();
        if let Some((encryption, signing)) = keys {
            edit_tags(&mut records, |_, tag| {
                match tag.id {
                    id::VSM_IDK_INFO => tag.data = vsm::encode_idk_info(encryption),
                    id::VSM_IDKS_INFO => tag.data = vsm::encode_idk_info(signing),
                    _ => {}
                }
                true
            });
        }
        records
    }
}

impl Template {
    /// True when the firmware measured the end of its phase, as every machine's does: other files may parse too.
    pub fn firmware_phase(&self) -> bool {
        self.records
            .iter()
            .any(|record| record.event_type == EventType::SEPARATOR)
    }

    /// Subject of the platform key's certificate, which is the maker's as a rule.
    pub fn platform_key_owner(&self) -> Option<String> {
        let variables = self
            .records
            .iter()
            .filter_map(|record| UefiVariable::parse(&record.data));
        let key = variables
            .into_iter()
            .find(|variable| variable.guid == GLOBAL_VARIABLE && variable.name == "PK")?;
        // EFI_SIGNATURE_LIST: type, sizes, then the owner's GUID and the certificate.
        let mut reader = SliceReader::new(key.data.get(44..)?).ok()?;
        let certificate = Certificate::decode(&mut reader).ok()?;
        Some(certificate.tbs_certificate.subject.to_string())
    }

    /// What firmware says of itself in PCR 0 (EV_S_CRTM_VERSION), as far as it is text.
    pub fn firmware(&self) -> Option<String> {
        let version = self
            .records
            .iter()
            .find(|record| record.event_type == EventType::S_CRTM_VERSION)?;
        let wide = version
            .data
            .chunks_exact(2)
            .filter_map(|two| two.try_into().ok().map(u16::from_le_bytes));
        let wide = String::from_utf16(&wide.collect::<Vec<u16>>()).ok();
        let narrow = String::from_utf8(version.data.clone()).ok();
        let plain = |text: String| {
            let text = text.trim_matches(['\0', ' ']).to_owned();
            (!text.is_empty() && text.chars().all(|c| c.is_ascii_graphic() || c == ' ')).then_some(text)
        };
        wide.and_then(plain).or_else(|| narrow.and_then(plain))
    }
}

impl Script {
    /// The log that a host of this script writes, with these VSM keys; no TPM is asked.
    pub fn log(&self, keys: Option<(&RsaPublicKey, &RsaPublicKey)>) -> Vec<u8> {
        let mut log = BootLogBuilder::new(self.locality);
        for record in self.before.iter().cloned().chain(self.after(keys)) {
            let Some(pcr) = PcrIndex::new(record.pcr) else {
                continue;
            };
            match record.digest {
                Some(digest) => log.measure_digest(pcr, record.event_type, digest, record.data),
                None => log.measure(pcr, record.event_type, record.data),
            };
        }
        log.finish()
    }
}

/// Where an event's SHA-256 digest comes from.
enum Source {
    Sha256([u8; 32]),
    Data,
    Derived([u8; 32]),
}

impl Source {
    fn of(event: &Event) -> Source {
        let of_data = event.digests.iter().any(|(bank, _)| event.digest_is_of_data(*bank));
        if of_data {
            return Source::Data;
        }
        if let Some(digest) = event.digest(Bank::Sha256).and_then(|digest| digest.try_into().ok()) {
            return Source::Sha256(digest);
        }
        // Older firmware measures the variable's value alone.
        if let Some(variable) = UefiVariable::parse(&event.data) {
            let value = |(bank, digest): &(Bank, Vec<u8>)| bank.digest(&[&variable.data]).as_ref() == Some(digest);
            if event.digests.iter().any(value) {
                return Source::Sha256(sha256(&variable.data));
            }
        }
        let longest = event.digests.iter().map(|(_, digest)| digest).max_by_key(|d| d.len());
        Source::Derived(sha256(longest.map_or(&[], Vec::as_slice)))
    }
}

impl Record {
    fn of_data(pcr: u8, event_type: EventType, data: Vec<u8>) -> Record {
        Record {
            pcr,
            event_type,
            digest: None,
            data,
        }
    }

    fn set_data(&mut self, data: Vec<u8>) {
        if self.data != data {
            self.data = data;
            self.digest = None;
        }
    }

    /// True for the records in which Windows keeps what a dial or a key can change.
    fn is_tagged(&self) -> bool {
        (12..=14).contains(&self.pcr) && self.event_type == EventType::EVENT_TAG
    }
}

/// One EV_EVENT_TAG with a trust boundary around `tags`.
fn stage(pcr: u8, tags: &[Tag]) -> Record {
    let data = sipa::encode_tags(&[Tag::container(id::TRUSTBOUNDARY, tags)]);
    Record::of_data(pcr, EventType::EVENT_TAG, data)
}

/// Puts a record where the loader would still have measured it: before the VSM keys and the caps.
fn insert(records: &mut Vec<Record>, record: Record) {
    let keys = [id::VSM_IDK_INFO, id::VSM_IDKS_INFO];
    let ends = |r: &Record| {
        holds(r, &keys)
            || (r.pcr == 11 && r.data == PCR11_CAP)
            || ((12..=14).contains(&r.pcr) && r.data == WBCL_SEPARATOR)
    };
    let at = records.iter().position(ends).unwrap_or(records.len());
    records.insert(at, record);
}

fn holds(record: &Record, ids: &[u32]) -> bool {
    record.is_tagged()
        && record.pcr == 12
        && sipa::measured_leaves(&record.data).is_ok_and(|tags| tags.iter().any(|tag| ids.contains(&tag.id)))
}

fn has_tag(records: &[Record], id: u32, which: impl Fn(&Tag) -> bool) -> bool {
    let leaves = |record: &Record| sipa::measured_leaves(&record.data).unwrap_or_default();
    let of_boot = records.iter().filter(|record| record.is_tagged() && record.pcr == 12);
    of_boot.flat_map(leaves).any(|tag| tag.id == id && which(&tag))
}

/// Shows `edit` every measured tag that is no container; a tag for which it answers false goes.
fn edit_tags(records: &mut [Record], mut edit: impl FnMut(u8, &mut Tag) -> bool) {
    for record in records.iter_mut().filter(|record| record.is_tagged()) {
        let pcr = record.pcr;
        // What does not parse stays as the machine measured it.
        if let Some(data) = edited(&record.data, 0, &mut |tag| edit(pcr, tag)) {
            record.set_data(data);
        }
    }
}

fn edited(data: &[u8], depth: usize, edit: &mut dyn FnMut(&mut Tag) -> bool) -> Option<Vec<u8>> {
    if depth > sipa::MAX_DEPTH {
        return None;
    }
    let mut kept = Vec::new();
    for mut tag in sipa::parse_tags(data).ok()? {
        let keep = match (tag.is_measured(), tag.is_container()) {
            (false, _) => true,
            (true, true) => {
                tag.data = edited(&tag.data, depth + 1, edit)?;
                true
            }
            (true, false) => edit(&mut tag),
        };
        if keep {
            kept.push(tag);
        }
    }
    Some(sipa::encode_tags(&kept))
}

/// PCR 17 to 22 belong to a dynamic launch; 16 and 23 are software's own.
const LAST_STATIC_PCR: u8 = 15;

#[cfg(test)]
mod tests;
