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
        sipa::{self, SiPolicy, Tag, id, transfer, unlock},
        uefi::{IMAGE_SECURITY_DATABASE, UefiVariable},
        vsm,
    },
};

use super::{
    boot::{material, secure_boot_variables, variable},
    dials::{AppliedDials, Dials},
};

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

/// The dials as changes of a log.
struct Edits<'a> {
    dials: &'a Dials,
    /// Apply every dial, not only those that differ from a healthy host's.
    all: bool,
}

impl Edits<'_> {
    fn apply(&self, records: &mut Vec<Record>) {
        self.secure_boot(records);
        self.tags(records);
        self.ci_policy(records);
        records.retain(|record| !self.omits(record));
    }

    fn changed<T: PartialEq>(&self, dial: impl Fn(&Dials) -> T) -> bool {
        self.all || dial(self.dials) != dial(&Dials::default())
    }

    fn omits(&self, record: &Record) -> bool {
        let named = |v: UefiVariable| self.dials.omit.contains(&v.name);
        record.event_type == EventType::EFI_VARIABLE_DRIVER_CONFIG
            && UefiVariable::parse(&record.data).is_some_and(named)
    }

    fn secure_boot(&self, records: &mut Vec<Record>) {
        let (dials, config) = (self.dials, EventType::EFI_VARIABLE_DRIVER_CONFIG);
        if self.changed(|d| d.secure_boot) {
            // Missing variables come in before the separator, SecureBoot changes where it stands.
            for (guid, name, data) in secure_boot_variables(dials) {
                let is_it = |record: &&mut Record| {
                    let same = |v: UefiVariable| v.guid == guid && v.name == name;
                    record.event_type == config && UefiVariable::parse(&record.data).is_some_and(same)
                };
                let wanted = variable(guid, name, &data);
                match records.iter_mut().find(is_it) {
                    Some(there) if name == "SecureBoot" => there.set_data(wanted),
                    Some(_) => {}
                    None => {
                        let separator = |r: &Record| r.pcr == 7 && r.event_type == EventType::SEPARATOR;
                        let at = records.iter().position(separator).unwrap_or(0);
                        records.insert(at, Record::of_data(7, config, wanted));
                    }
                }
            }
        }
        let is_authority = |r: &Record| r.pcr == 7 && r.event_type == EventType::EFI_VARIABLE_AUTHORITY;
        let missing = self.all && dials.secure_boot && !records.iter().any(is_authority);
        if missing || dials.boot_authority != Dials::default().boot_authority {
            let data = material(&format!("certificate of {}", dials.boot_authority));
            let authority = variable(IMAGE_SECURITY_DATABASE, "db", &data);
            let at = records.iter().rposition(|r| r.pcr == 7).map_or(0, |last| last + 1);
            records.insert(at, Record::of_data(7, EventType::EFI_VARIABLE_AUTHORITY, authority));
        }
    }

    fn tags(&self, records: &mut Vec<Record>) {
        let dials = self.dials;
        let byte = |value: bool| vec![u8::from(value)];
        let word = |value: bool| u64::from(value).to_le_bytes().to_vec();
        let unlocked = if dials.bitlocker { unlock::TPM } else { 0 };
        let unlocked = u32::try_from(unlocked).unwrap_or_default().to_le_bytes().to_vec();
        let mut wanted = vec![
            (
                self.changed(|d| d.boot_debugging),
                id::BOOTDEBUGGING,
                byte(dials.boot_debugging),
            ),
            (
                self.changed(|d| d.uefi_debug),
                id::OSKERNELDEBUG,
                byte(dials.uefi_debug),
            ),
            (
                self.changed(|d| d.test_signing),
                id::TESTSIGNING,
                byte(dials.test_signing),
            ),
            (
                self.changed(|d| d.hypervisor_debug),
                id::HYPERVISOR_DEBUG,
                byte(dials.hypervisor_debug),
            ),
            (self.changed(|d| d.vsm), id::HYPERVISOR_LAUNCH_TYPE, word(dials.vsm)),
            (self.changed(|d| d.vsm), id::VSM_LAUNCH_TYPE, word(dials.vsm)),
            (self.changed(|d| d.bitlocker), id::BITLOCKER_UNLOCK, unlocked),
            (
                self.changed(|d| d.pagefile_encryption),
                id::PAGEFILE_ENCRYPTION_ENABLED,
                byte(dials.pagefile_encryption),
            ),
            (
                self.changed(|d| d.hibernation_disabled),
                id::HIBERNATION_DISABLED,
                byte(dials.hibernation_disabled),
            ),
            (
                self.changed(|d| d.dumps_disabled),
                id::DUMPS_DISABLED,
                byte(dials.dumps_disabled),
            ),
            (
                self.changed(|d| d.dump_encryption),
                id::DUMP_ENCRYPTION_ENABLED,
                byte(dials.dump_encryption),
            ),
        ];
        if let Some(key) = &dials.dump_encryption_key {
            wanted.push((true, id::DUMP_ENCRYPTION_KEY_DIGEST, sha256(key).to_vec()));
        }
        if dials.vsm {
            wanted.push((self.changed(|d| d.iommu), id::VBS_IOMMU_REQUIRED, byte(dials.iommu)));
            wanted.push((self.changed(|d| d.hvci), id::VBS_HVCI_POLICY, word(dials.hvci)));
        } else {
            let of_vbs = [id::VBS_IOMMU_REQUIRED, id::VBS_HVCI_POLICY];
            edit_tags(records, |_, tag| !of_vbs.contains(&tag.id));
        }
        let mut missing = Vec::new();
        for (_, id, data) in wanted.into_iter().filter(|(changed, _, _)| *changed) {
            // The loader's flags stand in PCR 12 and again in PCR 13; only the former decide.
            let mut found = false;
            edit_tags(records, |pcr, tag| {
                if tag.id == id {
                    tag.data.clone_from(&data);
                    found |= pcr == 12;
                }
                true
            });
            if !found {
                missing.push(Tag::new(id, data));
            }
        }
        if self.changed(|d| d.full_boot) {
            let (from, to) = match dials.full_boot {
                true => (transfer::RESUME, transfer::OS_LOADER),
                false => (transfer::OS_LOADER, transfer::RESUME),
            };
            edit_tags(records, |_, tag| {
                if tag.id == id::TRANSFER_CONTROL && tag.integer() == Some(from) {
                    *tag = Tag::u32(tag.id, u32::try_from(to).unwrap_or_default());
                }
                true
            });
        }
        if !missing.is_empty() {
            insert(records, stage(12, &missing));
        }
    }

    fn ci_policy(&self, records: &mut Vec<Record>) {
        if !self.changed(|d| d.ci_policy.clone()) {
            return;
        }
        // Windows brings its driver block list beside any policy of the administrator.
        let of_administrator = |tag: &Tag| {
            let block_list = |p: SiPolicy| p.name.eq_ignore_ascii_case(BLOCK_LIST);
            tag.id == id::SI_POLICY && !SiPolicy::parse(&tag.data).is_some_and(block_list)
        };
        let Some(policy) = &self.dials.ci_policy else {
            return edit_tags(records, |_, tag| !of_administrator(tag));
        };
        let wanted = SiPolicy {
            version: 1 << 48,
            name: "SIPolicy.p7b".to_owned(),
            algorithm: 0x000B,
            digest: sha256(policy).to_vec(),
        };
        let mut found = false;
        edit_tags(records, |pcr, tag| {
            if of_administrator(tag) {
                tag.data = wanted.encode();
                found |= pcr == 13;
            }
            true
        });
        if !found {
            insert(records, stage(13, &[Tag::new(id::SI_POLICY, wanted.encode())]));
        }
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
/// File name of the driver block list that Windows brings.
const BLOCK_LIST: &str = "DriverSiPolicy.p7b";

#[cfg(test)]
mod tests {
    use hgs_protocol::wire::uefi::GLOBAL_VARIABLE;
    use proptest::prelude::*;

    use super::*;

    /// A record of TCG 1.2.
    fn sha1_record(pcr: u32, event_type: EventType, measured: &[u8], data: &[u8]) -> Vec<u8> {
        let length = u32::try_from(data.len()).unwrap();
        let digest = Bank::Sha1.digest(&[measured]).unwrap();
        let head = [pcr, event_type.0].map(u32::to_le_bytes).concat();
        [head, digest, length.to_le_bytes().to_vec(), data.to_vec()].concat()
    }

    #[test]
    fn an_old_log_gets_the_digests_that_can_be_had() {
        let secure_boot = variable(GLOBAL_VARIABLE, "SecureBoot", &[1]);
        let log = [
            sha1_record(0, EventType::S_CRTM_VERSION, b"1.0", b"1.0"),
            sha1_record(1, EventType::EFI_VARIABLE_BOOT, &[1], &secure_boot),
            sha1_record(4, EventType::EFI_BOOT_SERVICES_APPLICATION, b"an image", b"its path"),
            sha1_record(17, EventType::ACTION, b"late", b"late"),
            sha1_record(0, EventType::NO_ACTION, b"", b"a remark"),
        ];
        let template = Template::read(&log.concat()).unwrap();
        let image = Bank::Sha1.digest(&[b"an image"]).unwrap();
        let digests: Vec<_> = template.records.iter().map(|record| record.digest).collect();
        assert_eq!(digests, [None, Some(sha256(&[1])), Some(sha256(&image))]);
        assert_eq!(
            template.remarks,
            [
                "records of the template: 3 without a SHA-256 digest in the template",
                "records of the template: 1 of them without what was measured: their digest here is the SHA-256 of the template's digest",
                "records of the template: 1 left out, of PCRs that no static boot extends",
                "records of the template: 1 left out, since a TPM measures none of their kind",
            ]
        );
    }

    /// A log as Windows writes it: flags in PCR 12 and again in PCR 13, keys, caps.
    fn windows() -> Vec<u8> {
        let mut builder = BootLogBuilder::new(3);
        let pcr = |pcr| PcrIndex::new(pcr).unwrap();
        builder.separator(pcr(7));
        let hidden = Tag::container(id::TRUSTPOINT_AGGREGATION, &[Tag::boolean(id::OSKERNELDEBUG, false)]);
        let flags = [
            Tag::boolean(id::OSKERNELDEBUG, false),
            Tag::u64(id::VSM_LAUNCH_TYPE, 1),
            Tag::u64(id::BOOTCOUNTER, 77),
            hidden,
        ];
        builder.tagged(pcr(12), [Tag::container(id::TRUSTBOUNDARY, &flags)]);
        builder.tagged(pcr(13), [Tag::boolean(id::OSKERNELDEBUG, false)]);
        builder.tagged(
            pcr(12),
            [Tag::new(id::VSM_IDK_INFO, [1]), Tag::new(id::VSM_IDKS_INFO, [2])],
        );
        for cap in [11, 12, 13, 14] {
            builder.separator(pcr(cap));
        }
        builder.finish()
    }

    fn values(records: &[Record], pcr: u8, id: u32) -> Vec<Option<u64>> {
        let of_pcr = records.iter().filter(|record| record.pcr == pcr && record.is_tagged());
        let tags = of_pcr.flat_map(|record| sipa::measured_leaves(&record.data).unwrap());
        tags.filter(|tag| tag.id == id).map(|tag| tag.integer()).collect()
    }

    #[test]
    fn only_what_identifies_a_host_changes_unless_a_dial_says_so() {
        let template = Template::read(&windows()).unwrap();
        let script = template.script(&Dials::default(), AppliedDials::Changed, 5, "host01");
        assert_eq!((script.locality, script.vsm), (3, true));
        let measured = [script.before.clone(), script.after(None)].concat();
        assert_eq!(measured.len(), template.records.len());
        let changed = measured.iter().zip(&template.records).filter(|(now, then)| now != then);
        assert_eq!(changed.count(), 1, "the record with the counter");
        assert_eq!(values(&measured, 12, id::BOOTCOUNTER), [Some(5)]);
        assert!(
            holds(&script.after[0], &[id::VSM_IDK_INFO]),
            "the store opens before its keys"
        );

        let dials = Dials {
            uefi_debug: true,
            omit: ["VSM_IDK_INFO".to_owned()].into(),
            ..Dials::default()
        };
        let script = template.script(&dials, AppliedDials::Changed, 5, "host01");
        let measured = [script.before.clone(), script.after(None)].concat();
        assert_eq!(
            values(&measured, 12, id::OSKERNELDEBUG),
            [Some(1)],
            "what is unmeasured stays"
        );
        assert_eq!(values(&measured, 13, id::OSKERNELDEBUG), [Some(1)]);
        assert!(!has_tag(&measured, id::VSM_IDK_INFO, |_| true));
        assert_eq!(
            values(&measured, 12, id::DUMPS_DISABLED),
            [],
            "only what differs is applied"
        );

        let script = template.script(&dials, AppliedDials::All, 5, "host01");
        let measured = [script.before.clone(), script.after(None)].concat();
        assert_eq!(values(&measured, 12, id::DUMPS_DISABLED), [Some(1)]);
        assert!(holds(&script.after[0], &[id::VSM_IDKS_INFO]));

        let dials = Dials {
            vsm: false,
            ..Dials::default()
        };
        let script = template.script(&dials, AppliedDials::Changed, 5, "host01");
        assert!(!script.vsm && !has_tag(&script.after, id::VSM_IDKS_INFO, |_| true));
        assert_eq!(values(&script.before, 12, id::VSM_LAUNCH_TYPE), [Some(0)]);
    }

    proptest! {
        #[test]
        fn hostile_templates_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at: proptest::sample::Index, with: u8) {
            let mut changed = windows();
            let at = at.index(changed.len());
            changed[at] = with;
            for log in [bytes, changed] {
                if let Ok(template) = Template::read(&log) {
                    for applied in [AppliedDials::Changed, AppliedDials::All] {
                        let script = template.script(&Dials::default(), applied, 1, "host01");
                        prop_assert!(script.before.len() + script.after(None).len() >= template.records.len());
                    }
                }
            }
        }
    }
}
