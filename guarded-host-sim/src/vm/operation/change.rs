//! Changes of a VM that is off or saved: its security, its checkpoints. The state is opened as for a start (the
//! transport key rolls), sealed anew with the change, committed, and forgotten.

use hgs_protocol::env::Random;

use super::{ForStart, Host, VmError, open, own, try_start, unexpected};
use crate::{
    commit_point::commit_point,
    vm::{
        VmName,
        checkpoint::CheckpointId,
        request::{Blob, VmReply, VmRequest},
        security::Change,
        shielded::VmPhase,
        volume::{CheckpointEntry, Current, Generation, VmFolder, Volume},
    },
};

/// Changes kind or switches of a VM that is off. What its kind forbids, the store refuses.
pub async fn change_security(
    host: &impl Host,
    volume: &Volume,
    name: &VmName,
    change: Change,
    rng: &mut dyn Random,
) -> Result<(), VmError> {
    let (folder, current) = own(host, volume, name)?;
    if folder.is_saved(&current.generation) {
        return Err(VmError::Saved(name.clone()));
    }
    let request = VmRequest::Change {
        vm: current.vm_id,
        change,
    };
    rewrite(host, &folder, &current, request, rng, |_, wanted| Ok(wanted)).await
}

/// Takes a checkpoint of a VM: running, saved or off. A running one pauses while its disk is copied.
pub async fn take_checkpoint(
    host: &impl Host,
    volume: &Volume,
    name: &VmName,
    (called, taken): (String, i64),
    rng: &mut dyn Random,
) -> Result<CheckpointEntry, VmError> {
    let (folder, current) = own(host, volume, name)?;
    let runs = runs(host, &current).await?;
    let entry = CheckpointEntry {
        id: CheckpointId::random(rng),
        name: called,
        taken,
        memory: runs || folder.is_saved(&current.generation),
    };
    let request = VmRequest::TakeCheckpoint {
        vm: current.vm_id,
        checkpoint: entry.id,
    };
    let add = |image: Option<Blob>, mut wanted: Current| {
        let image = image.ok_or_else(unexpected)?;
        folder.write_checkpoint(&current, entry.id, &image.0)?;
        wanted.checkpoints.push(entry.clone());
        Ok(wanted)
    };
    match runs {
        false => rewrite(host, &folder, &current, request, rng, add).await?,
        true => {
            let written = write_running(host, &folder, &current, request, rng, add).await;
            if written.is_err() {
                let forget = VmRequest::ForgetCheckpoint {
                    vm: current.vm_id,
                    checkpoint: entry.id,
                };
                let _ = host.store(forget).await;
            }
            // It goes on, whatever became of the checkpoint.
            let goes_on = try_start(host, &folder, &current).await;
            written?;
            goes_on?;
        }
    }
    Ok(entry)
}

async fn write_running(
    host: &impl Host,
    folder: &VmFolder,
    current: &Current,
    request: VmRequest,
    rng: &mut dyn Random,
    add: impl FnOnce(Option<Blob>, Current) -> Result<Current, VmError>,
) -> Result<(), VmError> {
    let protector = folder.read_generation(&current.generation)?.protector;
    let (files, image) = resealed(host.store(request).await?, protector)?;
    let wanted = Current {
        generation: folder.write_generation(current.generation.number(), &files, rng)?,
        migration: None,
        ..current.clone()
    };
    let wanted = add(image, wanted)?;
    commit_point("checkpoint:written");
    folder.commit_change(current, wanted)?;
    commit_point("checkpoint:committed");
    Ok(())
}

/// Puts a VM that is off or saved back to one of its checkpoints: its disk, its vTPM and its memory if the checkpoint
/// has it. What it was before is gone; its security and its checkpoints stay.
pub async fn apply_checkpoint(
    host: &impl Host,
    volume: &Volume,
    name: &VmName,
    checkpoint: CheckpointId,
    rng: &mut dyn Random,
) -> Result<(), VmError> {
    let (folder, current) = own(host, volume, name)?;
    named(&current, checkpoint)?;
    let request = VmRequest::ApplyCheckpoint {
        vm: current.vm_id,
        checkpoint,
        image: Blob(folder.read_checkpoint(checkpoint)?),
    };
    let disk = folder.stage_disk(checkpoint, rng)?;
    rewrite(host, &folder, &current, request, rng, |_, wanted| {
        Ok(Current {
            disk: Some(disk),
            ..wanted
        })
    })
    .await
}

/// Deletes a checkpoint, with its key.
pub async fn delete_checkpoint(
    host: &impl Host,
    volume: &Volume,
    name: &VmName,
    checkpoint: CheckpointId,
    rng: &mut dyn Random,
) -> Result<(), VmError> {
    let (folder, current) = own(host, volume, name)?;
    named(&current, checkpoint)?;
    let request = VmRequest::ForgetCheckpoint {
        vm: current.vm_id,
        checkpoint,
    };
    let without = |mut wanted: Current| {
        wanted.checkpoints.retain(|entry| entry.id != checkpoint);
        wanted
    };
    if !runs(host, &current).await? {
        return rewrite(host, &folder, &current, request, rng, |_, wanted| Ok(without(wanted))).await;
    }
    // The files go now; the key goes when the VM's state is next sealed.
    folder.commit_change(&current, without(current.clone()))?;
    match host.store(request).await? {
        VmReply::CheckpointForgotten => Ok(()),
        _ => Err(unexpected()),
    }
}

/// Opens a VM that does not run, lets the store seal it anew by `request`, and makes it count with what `also`
/// changes beside.
async fn rewrite(
    host: &impl Host,
    folder: &VmFolder,
    current: &Current,
    request: VmRequest,
    rng: &mut dyn Random,
    also: impl FnOnce(Option<Blob>, Current) -> Result<Current, VmError>,
) -> Result<(), VmError> {
    if runs(host, current).await? {
        return Err(VmError::InUse(folder.name().clone()));
    }
    let (_, opened) = open(host, folder, current).await?;
    let vm = current.vm_id;
    if let Err(failed) = write_opened(host, folder, current, opened, request, rng, also).await {
        host.store(VmRequest::Forget { vm }).await?;
        return Err(failed);
    }
    commit_point("change:committed");
    match host.store(VmRequest::Settle { vm }).await? {
        VmReply::Settled => Ok(()),
        _ => Err(unexpected()),
    }
}

async fn write_opened(
    host: &impl Host,
    folder: &VmFolder,
    current: &Current,
    opened: ForStart,
    request: VmRequest,
    rng: &mut dyn Random,
    also: impl FnOnce(Option<Blob>, Current) -> Result<Current, VmError>,
) -> Result<(), VmError> {
    let (files, image) = resealed(host.store(request).await?, opened.files.protector)?;
    let wanted = Current {
        generation: folder.write_generation(opened.generation, &files, rng)?,
        migration: None,
        known_good: None,
        ..current.clone()
    };
    let wanted = also(image, wanted)?;
    commit_point("change:written");
    folder.commit_change(current, wanted)?;
    Ok(())
}

fn resealed(reply: VmReply, protector: Vec<u8>) -> Result<(Generation, Option<Blob>), VmError> {
    match reply {
        VmReply::Resealed {
            guest_state,
            memory,
            image,
        } => {
            let files = Generation {
                protector,
                guest_state: guest_state.0,
                memory: memory.map(|memory| memory.0),
            };
            Ok((files, image))
        }
        _ => Err(unexpected()),
    }
}

async fn runs(host: &impl Host, current: &Current) -> Result<bool, VmError> {
    match host.store(VmRequest::List).await? {
        VmReply::List { vms } => Ok(vms.contains(&(current.vm_id, VmPhase::Running))),
        _ => Err(unexpected()),
    }
}

fn named(current: &Current, checkpoint: CheckpointId) -> Result<(), VmError> {
    match current.checkpoints.iter().any(|entry| entry.id == checkpoint) {
        true => Ok(()),
        false => Err(VmError::Nothing(format!("the VM has no checkpoint {checkpoint}"))),
    }
}
