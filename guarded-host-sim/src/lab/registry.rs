//! What of a host's machine its registry sets, at the next start: where Windows keeps these settings.

use anyhow::anyhow;
use hgs_shell::{
    registry::{Entry, create, value},
    world::Machine,
};

use crate::machine::dials::Dials;

const CONTROL: &str = r"HKLM\SYSTEM\CurrentControlSet\Control";
const DEVICE_GUARD: &str = "DeviceGuard";
const HVCI: &str = r"DeviceGuard\Scenarios\HypervisorEnforcedCodeIntegrity";
const CRASH_CONTROL: &str = "CrashControl";
const POWER: &str = "Power";
const FILE_SYSTEM: &str = "FileSystem";

/// Makes the keys, so that their values can be set.
pub(super) fn prepare(machine: &Machine) -> anyhow::Result<()> {
    for key in [DEVICE_GUARD, HVCI, CRASH_CONTROL, POWER, FILE_SYSTEM] {
        create(machine, &format!(r"{CONTROL}\{key}")).map_err(|error| anyhow!(error.message.clone()))?;
    }
    Ok(())
}

/// Sets what has been written there; everything else stays.
pub(super) fn apply(machine: &Machine, dials: &mut Dials) -> anyhow::Result<()> {
    let number = |key: &str, name: &str| -> anyhow::Result<Option<i64>> {
        let found =
            value(machine, &format!(r"{CONTROL}\{key}"), name).map_err(|error| anyhow!(error.message.clone()))?;
        Ok(match found {
            Some(Entry::Number(number)) => Some(number),
            Some(Entry::Text(text)) => text.trim().parse().ok(),
            _ => None,
        })
    };
    if let Some(number) = number(DEVICE_GUARD, "EnableVirtualizationBasedSecurity")? {
        dials.vsm = number != 0;
    }
    // 1 asks for Secure Boot, 3 for DMA protection too.
    if let Some(number) = number(DEVICE_GUARD, "RequirePlatformSecurityFeatures")? {
        dials.iommu = number == 3;
    }
    if let Some(number) = number(HVCI, "Enabled")? {
        dials.hvci = number != 0;
    }
    if let Some(number) = number(CRASH_CONTROL, "CrashDumpEnabled")? {
        dials.dumps_disabled = number == 0;
    }
    if let Some(number) = number(POWER, "HibernateEnabled")? {
        dials.hibernation_disabled = number == 0;
    }
    if let Some(number) = number(FILE_SYSTEM, "NtfsEncryptPagingFile")? {
        dials.pagefile_encryption = number != 0;
    }
    Ok(())
}
