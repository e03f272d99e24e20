//! The simulated firmware and boot loader: what a Windows host measures, in its order, into the
//! boot log and the TPM alike.
//!
//! First comes everything that a dial changes ([`Boot::measure_configuration`]); then the store
//! unseals; then counter, VSM keys and caps ([`Boot::finish`]), after which nobody can unseal.

use std::{collections::BTreeSet, fs, io, path::Path};

use hgs_protocol::{
    crypto::{RsaPublicKey, sha256},
    tpm::command,
    wire::{
        boot_log::{BootLogBuilder, EventType, PcrIndex},
        sipa::{SiPolicy, Tag, id, transfer, unlock},
        uefi::{GLOBAL_VARIABLE, IMAGE_SECURITY_DATABASE, UefiVariable},
        vsm,
    },
};

use super::{dials::Dials, provision::provision, relay::SharedTpm, template::Record};
use crate::{
    store::StoreReport,
    tpm_channel::{ChannelError, TpmChannel},
};

/// The locality from which the simulated firmware starts the TPM.
pub const STARTUP_LOCALITY: u8 = 3;

/// How often the machine whose folder is `dir` has booted.
pub fn count(dir: &Path) -> u64 {
    let text = fs::read_to_string(dir.join(BOOTS)).ok();
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Counts one more boot of the machine whose folder is `dir`; answers its number.
pub fn count_one_more(dir: &Path) -> io::Result<u64> {
    let boots = count(dir).saturating_add(1);
    fs::write(dir.join(BOOTS), boots.to_string())?;
    Ok(boots)
}

/// The simulated machine's own boot, the `boots`-th: reset, configuration, the store (where VSM runs),
/// counter, VSM keys and caps. Answers the boot log and what `open_store` gave; while that runs, the TPM is its.
pub fn simulate<S>(
    tpm: &SharedTpm,
    dials: &Dials,
    boots: u64,
    open_store: impl FnOnce() -> anyhow::Result<(S, StoreReport)>,
) -> anyhow::Result<(Vec<u8>, Option<S>)> {
    let log = {
        let mut tpm = tpm.lock();
        tpm.reset(STARTUP_LOCALITY)?;
        provision(&mut tpm)?;
        let mut boot = Boot::begin(tpm.channel()).omitting(&dials.omit);
        boot.measure_configuration(dials)?;
        boot.pause()
    };
    let store = match dials.vsm {
        true => Some(open_store()?),
        false => None,
    };
    let keys = store.as_ref().map(|(_, report)| report.keys()).transpose()?;
    let mut tpm = tpm.lock();
    let boot = Boot::resume(log, tpm.channel()).omitting(&dials.omit);
    let log = boot.finish(boots, keys.as_ref().map(|(e, s)| (e, s)))?;
    Ok((log, store.map(|(store, _)| store)))
}

/// The resume of a hibernated system whose machine has booted `boots` times: the TPM loses its power, and firmware,
/// boot manager and resume loader are measured. Of the system itself nothing is: no loader, no hypervisor and no VSM
/// key. Answers the log; the TPM is nobody else's meanwhile.
pub fn resume(tpm: &SharedTpm, dials: &Dials, boots: u64) -> anyhow::Result<Vec<u8>> {
    let mut tpm = tpm.lock();
    tpm.channel().call(&command::shutdown_clear())?;
    tpm.reset(STARTUP_LOCALITY)?;
    provision(&mut tpm)?;
    let mut boot = Boot::begin(tpm.channel()).omitting(&dials.omit);
    boot.measure_resume(dials)?;
    Ok(boot.finish(boots, None)?)
}

/// A boot in progress: every event goes into the log and, at once, into the TPM.
pub struct Boot<'a> {
    log: BootLogBuilder,
    tpm: &'a mut TpmChannel,
    omit: BTreeSet<String>,
}

impl<'a> Boot<'a> {
    /// The machine has just been reset and TPM2_Startup came from [`STARTUP_LOCALITY`].
    pub fn begin(tpm: &'a mut TpmChannel) -> Boot<'a> {
        Boot::begin_at(STARTUP_LOCALITY, tpm)
    }

    /// The machine has just been reset and TPM2_Startup came from `locality`.
    pub fn begin_at(locality: u8, tpm: &'a mut TpmChannel) -> Boot<'a> {
        Boot::resume(BootLogBuilder::new(locality), tpm)
    }

    /// Goes on with a boot whose TPM was in the store's use in between.
    pub fn resume(log: BootLogBuilder, tpm: &'a mut TpmChannel) -> Boot<'a> {
        Boot {
            log,
            tpm,
            omit: BTreeSet::new(),
        }
    }

    /// From here on neither logs nor measures what `names` name ([`Dials::omit`]).
    pub fn omitting(mut self, names: &BTreeSet<String>) -> Boot<'a> {
        self.omit = names.clone();
        self
    }

    /// The log so far, to be resumed later.
    pub fn pause(self) -> BootLogBuilder {
        self.log
    }

    /// Firmware, Secure Boot, boot manager, hypervisor and loader, up to and including everything
    /// that `dials` change.
    pub fn measure_configuration(&mut self, dials: &Dials) -> Result<(), ChannelError> {
        let next = match dials.full_boot {
            true => transfer::OS_LOADER,
            false => transfer::RESUME,
        };
        self.firmware(dials)?;
        self.secure_boot(dials)?;
        self.boot_manager(dials, next)?;
        if dials.vsm {
            self.hypervisor_loader(dials)?;
        }
        self.loader(dials)
    }

    /// Firmware, Secure Boot, boot manager and resume loader, in the shape of real machines' logs.
    fn measure_resume(&mut self, dials: &Dials) -> Result<(), ChannelError> {
        self.firmware(dials)?;
        self.secure_boot(dials)?;
        self.boot_manager(dials, transfer::RESUME)?;
        // The boot manager has unlocked the volume, and hands its key on.
        let unlocked = if dials.bitlocker { unlock::CACHED } else { 0 };
        let loader = module("\\Windows\\System32\\winresume.efi");
        let mut tags = vec![loader.clone()];
        tags.extend(code_integrity(dials, unlocked));
        self.stage(12, &tags)?;
        self.stage(13, &[loader])?;
        self.authorities(dials)
    }

    /// Records of another machine's log, as they stand.
    pub fn repeat(&mut self, records: &[Record]) -> Result<(), ChannelError> {
        for record in records {
            let (pcr, kind, data) = (record.pcr, record.event_type, record.data.clone());
            let digest = match record.digest {
                Some(digest) => self.log.measure_digest(index(pcr), kind, digest, data),
                None => self.log.measure(index(pcr), kind, data),
            };
            self.extend(pcr, &digest)?;
        }
        Ok(())
    }

    /// Boot counter, VSM keys (none when no VSM runs), and the caps. Returns the log.
    pub fn finish(
        mut self,
        boot_count: u64,
        keys: Option<(&RsaPublicKey, &RsaPublicKey)>,
    ) -> Result<Vec<u8>, ChannelError> {
        let mut tags = vec![Tag::u64(id::BOOTCOUNTER, boot_count)];
        if let Some((encryption, signing)) = keys {
            tags.push(Tag::new(id::VSM_IDK_INFO, vsm::encode_idk_info(encryption)));
            tags.push(Tag::new(id::VSM_IDKS_INFO, vsm::encode_idk_info(signing)));
        }
        self.stage(12, &tags)?;
        for pcr in [11, 12, 13, 14] {
            self.separator(pcr)?;
        }
        Ok(self.log.finish())
    }

    fn firmware(&mut self, dials: &Dials) -> Result<(), ChannelError> {
        let version = &dials.firmware;
        self.event(0, EventType::S_CRTM_VERSION, utf16(version))?;
        for (name, base) in [("SEC", 0xFF00_0000_u64), ("PEI", 0xFF10_0000), ("DXE", 0xFF20_0000)] {
            let volume = [base, 0x10_0000].map(u64::to_le_bytes).concat();
            let name = format!("{name} of {version}");
            self.image(0, EventType::EFI_PLATFORM_FIRMWARE_BLOB, &name, volume)?;
        }
        let boot_order = variable(GLOBAL_VARIABLE, "BootOrder", &[0, 0]);
        self.event(1, EventType::EFI_VARIABLE_BOOT, boot_order)?;
        // SMBIOS tells the firmware's version too.
        let tables = format!("SMBIOS of {version}");
        self.image(1, EventType::EFI_HANDOFF_TABLES, &tables, 1u64.to_le_bytes().to_vec())
    }

    fn secure_boot(&mut self, dials: &Dials) -> Result<(), ChannelError> {
        for (guid, name, data) in secure_boot_variables(dials) {
            if self.omit.contains(name) {
                continue;
            }
            let data = variable(guid, name, &data);
            self.event(7, EventType::EFI_VARIABLE_DRIVER_CONFIG, data)?;
        }
        for pcr in [7, 0, 1, 2, 3, 4, 5, 6] {
            self.separator(pcr)?;
        }
        let partitions = [b"EFI PART".as_slice(), &material("partition table")].concat();
        self.event(5, EventType::EFI_GPT_EVENT, partitions)?;
        let authority = material(&format!("certificate of {}", dials.boot_authority));
        let authority = variable(IMAGE_SECURITY_DATABASE, "db", &authority);
        self.event(7, EventType::EFI_VARIABLE_AUTHORITY, authority)?;
        let image = [0x1000_0000_u64, 0x1E_0000].map(u64::to_le_bytes).concat();
        let name = format!("bootmgfw.efi of {}", dials.boot_authority);
        self.image(4, EventType::EFI_BOOT_SERVICES_APPLICATION, &name, image)?;
        // BitLocker's access control, as the boot manager begins it.
        self.event(11, EventType::COMPACT_HASH, 0x10u32.to_le_bytes().to_vec())
    }

    fn boot_manager(&mut self, dials: &Dials, next: u64) -> Result<(), ChannelError> {
        // PCR 13 is not among the PCRs that the store is sealed to, so the policy's digest also
        // stands here: another policy is another configuration.
        let policy = dials.ci_policy.as_deref().map(sha256).unwrap_or_default();
        let mut tags = vec![
            module("\\EFI\\Microsoft\\Boot\\bootmgfw.efi"),
            Tag::new(id::INFORMATION, policy),
            Tag::u32(id::TRANSFER_CONTROL, narrow(next)),
        ];
        tags.extend(code_integrity(dials, unlocked_by_tpm(dials)));
        self.stage(12, &tags)?;
        self.authorities(dials)
    }

    fn hypervisor_loader(&mut self, dials: &Dials) -> Result<(), ChannelError> {
        let mut tags = vec![
            module("\\Windows\\System32\\hvloader.dll"),
            Tag::boolean(id::HYPERVISOR_DEBUG, dials.hypervisor_debug),
            Tag::u64(id::HYPERVISOR_IOMMU_POLICY, u64::from(dials.iommu)),
            Tag::u64(id::HYPERVISOR_MMIO_NX_POLICY, 1),
            Tag::u64(id::HYPERVISOR_MSR_FILTER_POLICY, 1),
            Tag::boolean(id::HYPERVISOR_BOOT_DMA_PROTECTION, dials.iommu),
            Tag::u32(id::TRANSFER_CONTROL, narrow(transfer::HYPERVISOR)),
        ];
        tags.extend(code_integrity(dials, unlocked_by_tpm(dials)));
        self.stage(12, &tags)
    }

    fn loader(&mut self, dials: &Dials) -> Result<(), ChannelError> {
        let mut tags = vec![
            module("\\Windows\\System32\\winload.efi"),
            Tag::boolean(id::OSKERNELDEBUG, dials.uefi_debug),
            Tag::u64(id::DATAEXECUTIONPREVENTION, 1),
            Tag::boolean(id::SAFEMODE, false),
            Tag::boolean(id::WINPE, false),
            Tag::u64(id::HYPERVISOR_LAUNCH_TYPE, u64::from(dials.vsm)),
            Tag::u64(id::VSM_LAUNCH_TYPE, u64::from(dials.vsm)),
            Tag::boolean(id::PAGEFILE_ENCRYPTION_ENABLED, dials.pagefile_encryption),
            Tag::boolean(id::HIBERNATION_DISABLED, dials.hibernation_disabled),
            Tag::boolean(id::DUMPS_DISABLED, dials.dumps_disabled),
            Tag::boolean(id::DUMP_ENCRYPTION_ENABLED, dials.dump_encryption),
        ];
        if let Some(key) = &dials.dump_encryption_key {
            tags.push(Tag::new(id::DUMP_ENCRYPTION_KEY_DIGEST, sha256(key)));
        }
        if dials.vsm {
            tags.extend([
                Tag::boolean(id::VBS_VSM_REQUIRED, true),
                Tag::boolean(id::VBS_SECUREBOOT_REQUIRED, dials.secure_boot),
                Tag::boolean(id::VBS_IOMMU_REQUIRED, dials.iommu),
                Tag::u64(id::VBS_HVCI_POLICY, u64::from(dials.hvci)),
                Tag::boolean(id::VBS_MICROSOFT_BOOT_CHAIN_REQUIRED, true),
            ]);
        }
        tags.extend(code_integrity(dials, unlocked_by_tpm(dials)));
        self.stage(12, &tags)?;
        let mut tags = vec![module("\\Windows\\System32\\ntoskrnl.exe")];
        if let Some(policy) = &dials.ci_policy {
            let policy = SiPolicy {
                version: 1 << 48,
                name: "SIPolicy.p7b".to_owned(),
                algorithm: 0x000B,
                digest: sha256(policy).to_vec(),
            };
            tags.push(Tag::new(id::SI_POLICY, policy.encode()));
        }
        self.stage(13, &tags)?;
        self.authorities(dials)
    }

    fn authorities(&mut self, dials: &Dials) -> Result<(), ChannelError> {
        let key = material(&format!("public key of {}", dials.boot_authority));
        self.stage(14, &[Tag::new(id::AUTHORITYPUBKEY, key)])
    }

    /// One EV_EVENT_TAG with a trust boundary around `tags`, as Windows writes them.
    fn stage(&mut self, pcr: u8, tags: &[Tag]) -> Result<(), ChannelError> {
        let omitted = |tag: &&Tag| id::name(tag.id).is_some_and(|name| self.omit.contains(name));
        let tags: Vec<Tag> = tags.iter().filter(|tag| !omitted(tag)).cloned().collect();
        let digest = self.log.tagged(index(pcr), [Tag::container(id::TRUSTBOUNDARY, &tags)]);
        self.extend(pcr, &digest)
    }

    fn separator(&mut self, pcr: u8) -> Result<(), ChannelError> {
        let digest = self.log.separator(index(pcr));
        self.extend(pcr, &digest)
    }

    /// An event whose digest is of its data.
    fn event(&mut self, pcr: u8, kind: EventType, data: Vec<u8>) -> Result<(), ChannelError> {
        let digest = self.log.measure(index(pcr), kind, data);
        self.extend(pcr, &digest)
    }

    /// An event whose digest is of code that is not in the log: here, of its name.
    fn image(&mut self, pcr: u8, kind: EventType, name: &str, data: Vec<u8>) -> Result<(), ChannelError> {
        let digest = sha256(&material(name));
        self.log.measure_digest(index(pcr), kind, digest, data);
        self.extend(pcr, &digest)
    }

    fn extend(&mut self, pcr: u8, digest: &[u8; 32]) -> Result<(), ChannelError> {
        let command = command::pcr_extend(pcr, digest);
        self.tpm.call_with_empty_password(&command).map(|_| ())
    }
}

/// The variables that Secure Boot measures, in their order: namespace, name, value.
pub(super) fn secure_boot_variables(dials: &Dials) -> [([u8; 16], &'static str, Vec<u8>); 5] {
    [
        (GLOBAL_VARIABLE, "SecureBoot", vec![u8::from(dials.secure_boot)]),
        (GLOBAL_VARIABLE, "PK", material("PK of the machine's maker")),
        (GLOBAL_VARIABLE, "KEK", material("KEK of Microsoft and the maker")),
        (IMAGE_SECURITY_DATABASE, "db", material("db of Microsoft")),
        (
            IMAGE_SECURITY_DATABASE,
            "dbx",
            material(&format!("dbx of {}", dials.dbx)),
        ),
    ]
}

fn unlocked_by_tpm(dials: &Dials) -> u64 {
    if dials.bitlocker { unlock::TPM } else { 0 }
}

/// What each stage measures of code integrity and of the volume it was loaded from, which was `unlocked` so.
fn code_integrity(dials: &Dials, unlocked: u64) -> [Tag; 4] {
    [
        Tag::boolean(id::BOOTDEBUGGING, dials.boot_debugging),
        Tag::boolean(id::TESTSIGNING, dials.test_signing),
        Tag::boolean(id::CODEINTEGRITY, true),
        Tag::u32(id::BITLOCKER_UNLOCK, narrow(unlocked)),
    ]
}

fn module(path: &str) -> Tag {
    let tags = [
        Tag::new(id::FILEPATH, utf16(path)),
        Tag::u32(id::HASHALGORITHMID, 0x800C), // CALG_SHA_256
        Tag::new(id::AUTHENTICODEHASH, sha256(path.as_bytes())),
        Tag::boolean(id::IMAGEVALIDATED, true),
    ];
    Tag::container(id::LOADEDMODULE_AGGREGATION, &tags)
}

pub(super) fn variable(guid: [u8; 16], name: &str, data: &[u8]) -> Vec<u8> {
    UefiVariable {
        guid,
        name: name.to_owned(),
        data: data.to_vec(),
    }
    .encode()
}

/// Bytes that stand for a certificate or an image: the same for the same name.
pub(super) fn material(name: &str) -> Vec<u8> {
    [sha256(name.as_bytes()).as_slice(), name.as_bytes()].concat()
}

pub(super) fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
}

fn narrow(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[expect(
    clippy::expect_used,
    reason = "only literals up to 14 and a template's static PCRs are passed"
)]
fn index(pcr: u8) -> PcrIndex {
    PcrIndex::new(pcr).expect("a PCR number")
}

const BOOTS: &str = "boots";
