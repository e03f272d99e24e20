//! What the dials change in the boot log of another machine, and where what it never measured is added.

use hgs_protocol::{
    crypto::sha256,
    wire::{
        boot_log::EventType,
        sipa::{SiPolicy, Tag, id, transfer, unlock},
        uefi::{IMAGE_SECURITY_DATABASE, UefiVariable},
    },
};

use super::{
    super::{
        boot::{material, secure_boot_variables, utf16, variable},
        dials::Dials,
    },
    Record, edit_tags, insert, stage,
};

/// The dials as changes of a log.
pub(super) struct Edits<'a> {
    pub(super) dials: &'a Dials,
    /// Apply every dial, not only those that differ from a healthy host's.
    pub(super) all: bool,
}

impl Edits<'_> {
    pub(super) fn apply(&self, records: &mut Vec<Record>) {
        self.firmware(records);
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

    /// Another version of the machine's own firmware: all of it that was measured is otherwise.
    fn firmware(&self, records: &mut [Record]) {
        let version = &self.dials.firmware;
        if *version == Dials::default().firmware {
            return;
        }
        let of_firmware = [
            EventType::POST_CODE,
            EventType::S_CRTM_CONTENTS,
            EventType::EFI_PLATFORM_FIRMWARE_BLOB,
            EventType::EFI_PLATFORM_FIRMWARE_BLOB2,
            EventType::EFI_HANDOFF_TABLES,
            EventType::EFI_HANDOFF_TABLES2,
        ];
        for record in records.iter_mut().filter(|record| record.pcr <= 1) {
            match record.event_type {
                EventType::S_CRTM_VERSION => record.set_data(utf16(version)),
                kind if of_firmware.contains(&kind) => {
                    let before = record.digest.unwrap_or_else(|| sha256(&record.data));
                    record.digest = Some(sha256(&[before.as_slice(), version.as_bytes()].concat()));
                }
                _ => {}
            }
        }
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
        if dials.dbx != Dials::default().dbx {
            let is_dbx = |v: UefiVariable| v.guid == IMAGE_SECURITY_DATABASE && v.name == "dbx";
            let held = |r: &&mut Record| r.event_type == config && UefiVariable::parse(&r.data).is_some_and(is_dbx);
            if let Some(record) = records.iter_mut().find(held) {
                let data = material(&format!("dbx of {}", dials.dbx));
                record.set_data(variable(IMAGE_SECURITY_DATABASE, "dbx", &data));
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

/// File name of the driver block list that Windows brings.
const BLOCK_LIST: &str = "DriverSiPolicy.p7b";
