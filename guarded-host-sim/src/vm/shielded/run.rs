//! How a VM comes to run: its vTPM first, then its guest, from the disk or from a memory image.

use std::path::Path;

use hgs_protocol::env::Random;

use super::{LockedDisk, Phase, ShieldedError, Start, Vm, phase_error};
use crate::{
    commit_point::commit_point,
    vm::{
        VmId, VmName,
        guest::{Boot, Guest},
        recovery::RecoveryPassword,
        security::{Security, Switch},
        vtpm::Vtpm,
    },
};

/// A vTPM and its guest, which has the disk locked.
pub(super) struct Run {
    pub(super) vtpm: Vtpm,
    pub(super) guest: Guest,
}

impl Run {
    /// Starts a VM that is prepared or suspended.
    pub(super) fn begin(
        id: VmId,
        name: &VmName,
        vm: &Vm,
        folder: &Path,
        disk: LockedDisk,
        recovery: Option<&RecoveryPassword>,
        rng: &mut dyn Random,
    ) -> Result<Run, ShieldedError> {
        let (vtpm, memory, resumed) = match &vm.phase {
            Phase::Prepared {
                vtpm,
                start: Start::Boot,
            } => {
                let vtpm = Vtpm::power_on(name.as_str(), vtpm, folder)?;
                commit_point("power-on:vtpm-started");
                let run = Run::boot(vm.seal.security, id, vtpm, disk, recovery, rng)?;
                commit_point("power-on:booted");
                return Ok(run);
            }
            Phase::Prepared {
                vtpm,
                start: Start::Resume(memory),
            } => (vtpm, memory, Resumed::Saved),
            Phase::Prepared {
                vtpm,
                start: Start::Arrive(memory),
            }
            | Phase::Suspended { vtpm, memory } => (vtpm, memory, Resumed::Packed),
            Phase::Running(_) => return Err(phase_error(id, vm, "stop")),
        };
        let mut vtpm = Vtpm::resume(name.as_str(), vtpm, folder)?;
        let guest = Guest::resume(id, &mut vtpm, memory, disk)?;
        match resumed {
            Resumed::Saved => commit_point("resume:resumed"),
            Resumed::Packed => commit_point("migration:resumed"),
        }
        Ok(Run { vtpm, guest })
    }

    /// Boots the guest on a vTPM that has just been reset.
    pub(super) fn boot(
        security: Security,
        id: VmId,
        mut vtpm: Vtpm,
        disk: LockedDisk,
        recovery: Option<&RecoveryPassword>,
        rng: &mut dyn Random,
    ) -> Result<Run, ShieldedError> {
        let secure = security.is_on(Switch::SecureBoot);
        let guest = Guest::boot_as(Boot { secure, recovery }, id, &mut vtpm, disk, rng)?;
        Ok(Run { vtpm, guest })
    }
}

/// What the memory image was of.
enum Resumed {
    Saved,
    Packed,
}
