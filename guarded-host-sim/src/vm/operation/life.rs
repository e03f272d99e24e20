//! Ends and pauses of a VM that runs: shut down, turn off, save, reset. All but the reset end in one commit.

use hgs_protocol::env::Random;

use super::{Host, VmError, own, start, unexpected};
use crate::{
    commit_point::commit_point,
    vm::{
        VmId, VmName,
        guest::GuestReport,
        request::{Blob, VmReply, VmRequest},
        volume::{Current, Generation, GenerationName, VmFolder, Volume},
    },
};

/// Shuts a VM down and writes its vTPM's state back.
pub async fn power_off(host: &impl Host, volume: &Volume, name: &VmName, rng: &mut dyn Random) -> Result<(), VmError> {
    stop(host, volume, name, |vm| VmRequest::PowerOff { vm }, rng).await
}

/// Cuts a VM's power, and keeps what its vTPM had written.
pub async fn turn_off(host: &impl Host, volume: &Volume, name: &VmName, rng: &mut dyn Random) -> Result<(), VmError> {
    stop(host, volume, name, |vm| VmRequest::TurnOff { vm }, rng).await
}

async fn stop(
    host: &impl Host,
    volume: &Volume,
    name: &VmName,
    request: impl FnOnce(VmId) -> VmRequest,
    rng: &mut dyn Random,
) -> Result<(), VmError> {
    let (folder, current) = own(host, volume, name)?;
    let VmReply::Off { guest_state } = host.store(request(current.vm_id)).await? else {
        return Err(unexpected());
    };
    let written = write_state(&folder, &current, guest_state, rng)?;
    commit_point("power-off:written");
    folder.commit(&current, written, host.name(), None)?;
    commit_point("power-off:committed");
    Ok(())
}

/// Lets a running VM's guest count one more in its vTPM and on its volume. What this answers outlasts every crash: the
/// vTPM's state counts on the volume by then.
pub async fn tally(
    host: &impl Host,
    volume: &Volume,
    name: &VmName,
    rng: &mut dyn Random,
) -> Result<GuestReport, VmError> {
    let (folder, current) = own(host, volume, name)?;
    let VmReply::Tallied { guest, guest_state } = host.store(VmRequest::Tally { vm: current.vm_id }).await? else {
        return Err(unexpected());
    };
    let written = write_state(&folder, &current, guest_state, rng)?;
    commit_point("tally:written");
    folder.commit(&current, written, host.name(), None)?;
    commit_point("tally:committed");
    Ok(guest)
}

/// Writes a state that is sealed under the key that counts now.
fn write_state(
    folder: &VmFolder,
    current: &Current,
    guest_state: Blob,
    rng: &mut dyn Random,
) -> Result<GenerationName, VmError> {
    let files = Generation {
        protector: folder.read_generation(&current.generation)?.protector,
        guest_state: guest_state.0,
        memory: None,
    };
    Ok(folder.write_generation(current.generation.number(), &files, rng)?)
}

/// Saves a running VM: its memory and its vTPM, sealed under the key that it has. Its next start goes on from there.
/// A VM that cannot be saved goes on.
pub async fn save(host: &impl Host, volume: &Volume, name: &VmName, rng: &mut dyn Random) -> Result<(), VmError> {
    let (folder, current) = own(host, volume, name)?;
    match write_saved(host, &folder, &current, rng).await {
        Ok(()) => Ok(()),
        Err(failed) => {
            // Nothing was committed, or the next line is refused.
            let _ = start(host, &folder, &current).await;
            Err(failed)
        }
    }
}

/// Seals, writes and commits a VM that runs or is to be resumed, and lets the store forget it.
pub(super) async fn write_saved(
    host: &impl Host,
    folder: &VmFolder,
    current: &Current,
    rng: &mut dyn Random,
) -> Result<(), VmError> {
    let vm = current.vm_id;
    let VmReply::Resealed {
        guest_state, memory, ..
    } = host.store(VmRequest::Suspend { vm }).await?
    else {
        return Err(unexpected());
    };
    let files = Generation {
        protector: folder.read_generation(&current.generation)?.protector,
        guest_state: guest_state.0,
        memory: memory.map(|memory| memory.0),
    };
    let written = folder.write_generation(current.generation.number(), &files, rng)?;
    commit_point("save:written");
    folder.commit(current, written, host.name(), None)?;
    commit_point("save:committed");
    host.store(VmRequest::Forget { vm }).await?;
    Ok(())
}

/// Resets a running VM: it boots anew with the keys that it has. Nothing is asked of the KPS, and nothing is written.
pub async fn reset(host: &impl Host, volume: &Volume, name: &VmName) -> Result<GuestReport, VmError> {
    let (folder, current) = own(host, volume, name)?;
    let request = VmRequest::Reset {
        vm: current.vm_id,
        disk: folder.disk_path(&current),
    };
    match host.store(request).await? {
        VmReply::Started { guest } => Ok(guest),
        _ => Err(unexpected()),
    }
}
