//! What is done to a VM as the host agent does it: read, relay, write, commit. Here power-on and live
//! migration; the rest of a VM's life is in `life`, changes of a VM that is off in `change`, its files in `files`.
//!
//! The agent sees sealed blobs only. Every operation has one commit point, the replacement of
//! `current.json`; a process that ends at any other instant leaves the VM as it was before or as it
//! is after, and in either case one host can start it.

mod change;
mod create;
mod files;
mod life;
mod provision;

use hgs_protocol::{env::Random, wire::kps::RollTransportKeyRequest};

pub use self::{
    change::{apply_checkpoint, change_security, delete_checkpoint, take_checkpoint},
    create::{CreatedVm, NewVmOf, create},
    files::{discard_saved, export, import, new_local_protector, restore_protector, set_protector, take_over},
    life::{power_off, reset, save, tally, turn_off},
    provision::{NewShieldedVm, ProvisionedVm, provision},
};
use super::{
    VmName,
    guest::GuestReport,
    package::{LARGEST_PACKAGE, MigrationId, PackageError, PackageHeader},
    request::{Blob, Typed, VmReply, VmRequest},
    volume::{Current, Generation, VmFolder, Volume, VolumeError},
};
use crate::{agent::configuration::Server, commit_point::commit_point};

/// What an operation needs of its host.
pub trait Host {
    /// The host's name, as it stands in `current.json`.
    fn name(&self) -> &str;
    /// Whether there is a second HGS for the time in which the first does not answer.
    fn has_fallback(&self) -> bool {
        false
    }
    /// A health certificate of that HGS, DER: the one at hand, or one from a new attestation when `fresh` or
    /// when there is none that is still valid.
    fn health_certificate(&self, server: Server, fresh: bool) -> impl Future<Output = Result<Vec<u8>, VmError>>;
    /// Sends a RollTransportKeyRequest to the KPS of that HGS; gives the answer's document.
    fn roll(&self, server: Server, request: Vec<u8>) -> impl Future<Output = Result<Vec<u8>, VmError>>;
    /// Rolls a protector with the keys of this host's own guardians; nothing where the host is not in local mode.
    fn roll_locally(&self, protector: &[u8]) -> impl Future<Output = Result<Option<Vec<u8>>, VmError>>;
    /// Asks the VBS store.
    fn store(&self, request: VmRequest) -> impl Future<Output = Result<VmReply, VmError>>;
    /// Offers a suspended VM to the agent of `target` and waits for its decision.
    fn offer(&self, target: &Target, offer: &MigrationOffer) -> impl Future<Output = Result<GuestReport, VmError>>;
}

/// Where a VM is to go.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// The host's name.
    pub target: String,
    /// Base URL of its agent.
    pub address: String,
}

/// What a source sends to the target of a migration.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrationOffer {
    /// The VM.
    pub vm: VmName,
    /// The attempt.
    pub migration: MigrationId,
    /// What counts on the volume when the offer is made; the target commits over this and nothing else.
    pub expected: Current,
    /// Guest memory and vTPM, encrypted.
    pub package: Blob,
}

/// A VM that was started.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct PoweredOn {
    /// What the guest tells of itself.
    #[serde(flatten)]
    pub guest: GuestReport,
    /// True when neither attestation nor key protection was reached and the key kept from the last roll served.
    pub offline: bool,
    /// How often this host may start the VM offline from now on, until the next start with contact.
    pub offline_starts_left: u32,
}

/// How a migration ended.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Migrated {
    /// The host that runs the VM now.
    pub owner_host: String,
    /// The guest there, if the target's answer arrived.
    pub guest: Option<GuestReport>,
    /// Whether the source held keys and has dropped them.
    pub source_forgot: bool,
}

/// Why an operation ended without its effect.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// Another host owns the VM.
    #[error(
        "the VM {vm} belongs to {owner}; start it there, migrate it to {host}, or take it over if that host is lost"
    )]
    NotOwner {
        /// The VM.
        vm: VmName,
        /// Its owner host.
        owner: String,
        /// This host.
        host: String,
    },
    /// The attestation service gave no health certificate. The text begins with the protocol's error.
    #[error("{0}")]
    Attestation(String),
    /// The KPS refused: the code of MS-KPS 2.2.2.5 and its message.
    #[error("{code}: {message}")]
    Kps {
        /// `HealthCertificateException`, say.
        code: String,
        /// The message.
        message: String,
    },
    /// Attestation or key protection does not answer, or cannot at the moment (5xx): nobody has refused.
    #[error("no contact with the Host Guardian Service: {0}")]
    NoContact(String),
    /// Nobody has refused, and the store does not start the VM offline.
    #[error("no contact with the Host Guardian Service: {contact}; {store}")]
    NotOffline {
        /// Why there is no contact.
        contact: String,
        /// Why the store starts nothing.
        store: String,
    },
    /// The VBS store refused.
    #[error("the VBS store refuses: {0}")]
    Store(String),
    /// The package is malformed or of another VM, migration or generation than the offer says.
    #[error("the offer of the migration: {0}")]
    Offer(String),
    /// A protector, or the host's own guardians.
    #[error("{0}")]
    Protector(String),
    /// The VM runs, or somebody works on it.
    #[error("the VM {0} is in use: stop or save it first")]
    InUse(VmName),
    /// The VM has a saved memory.
    #[error("the VM {0} is saved: resume it and shut it down, or discard its saved state first")]
    Saved(VmName),
    /// There is nothing that the request is about.
    #[error("{0}")]
    Nothing(String),
    /// Another process does not answer.
    #[error("{0}")]
    Unreachable(String),
    /// The target refused the offer; the VM goes on at the source.
    #[error("{target} does not take the VM: {reason}")]
    TargetRefused {
        /// The target.
        target: String,
        /// Its reason.
        reason: String,
    },
}

/// Starts a VM that this host owns. Whoever refuses, attestation or KPS, is obeyed; when neither is
/// reached, the store is asked for a start with the key of the last roll.
pub async fn power_on(
    host: &impl Host,
    volume: &Volume,
    name: &VmName,
    rng: &mut dyn Random,
) -> Result<PoweredOn, VmError> {
    power_on_typing(host, volume, name, None, rng).await
}

/// As [`power_on`]; `typed` is typed where the guest asks for the recovery password of its volume.
pub async fn power_on_typing(
    host: &impl Host,
    volume: &Volume,
    name: &VmName,
    typed: Option<Typed>,
    rng: &mut dyn Random,
) -> Result<PoweredOn, VmError> {
    let (folder, current) = own(host, volume, name)?;
    let (offline, prepared) = open(host, &folder, &current).await?;
    let written = folder.write_generation(prepared.generation, &prepared.files, rng);
    let committed = written.and_then(|written| {
        commit_point("power-on:written");
        let wanted = Current {
            generation: written,
            migration: None,
            // The protector has served: it is the known good one now.
            known_good: None,
            ..current.clone()
        };
        folder.commit_change(&current, wanted)
    });
    let current = or_forget(host, &current, committed).await?;
    commit_point("power-on:committed");
    let guest = match prepared.saved {
        true => resume(host, &folder, &current, rng).await?,
        false => start_typing(host, &folder, &current, typed).await?,
    };
    Ok(PoweredOn {
        guest,
        offline,
        offline_starts_left: prepared.offline_starts_left,
    })
}

/// Opens a VM that is off or saved: its keys are in the store then, and its state is sealed anew. Says
/// whether that was without contact.
async fn open(host: &impl Host, folder: &VmFolder, current: &Current) -> Result<(bool, ForStart), VmError> {
    let ingress = folder.read_generation(&current.generation)?;
    let saved = ingress.memory.is_some();
    let (offline, request) = match roll(host, &ingress.protector).await {
        Ok(answer) => {
            commit_point("power-on:rolled");
            let request = VmRequest::PreparePowerOn {
                ingress_protector: Blob(ingress.protector),
                answer: Blob(answer),
                guest_state: Blob(ingress.guest_state),
                memory: ingress.memory.map(Blob),
            };
            (None, request)
        }
        Err(VmError::NoContact(contact)) => {
            let request = VmRequest::PrepareOffline {
                protector: Blob(ingress.protector),
                guest_state: Blob(ingress.guest_state),
                memory: ingress.memory.map(Blob),
            };
            (Some(contact), request)
        }
        Err(refused) => return Err(refused),
    };
    match (prepare(host, request).await, offline) {
        (Ok(prepared), offline) => Ok((offline.is_some(), ForStart { saved, ..prepared })),
        (Err(VmError::Store(store)), Some(contact)) => Err(VmError::NotOffline { contact, store }),
        (Err(other), _) => Err(other),
    }
}

/// Moves a running VM from this host to `target`.
///
/// The VM runs on exactly one host afterwards: on `target` when `target` has committed, here in
/// every other case. When the answer is lost, `current.json` tells; and if it still names this host,
/// a commit of this host's own makes sure that the target comes too late.
pub async fn migrate(
    host: &impl Host,
    volume: &Volume,
    name: &VmName,
    target: &Target,
    rng: &mut dyn Random,
) -> Result<Migrated, VmError> {
    let (folder, current) = own(host, volume, name)?;
    if target.target == host.name() {
        return Err(VmError::Offer(format!("the VM {name} is on {} already", target.target)));
    }
    let migration = MigrationId::random(rng);
    let vm = current.vm_id;
    let package = match host.store(VmRequest::Save { vm, migration }).await {
        Ok(VmReply::Saved { package }) => package,
        Ok(_) => return Err(unexpected()),
        Err(failed) => {
            // A guest that is suspended and cannot be packed goes on here.
            let _ = start(host, &folder, &current).await;
            return Err(failed);
        }
    };
    let offer = MigrationOffer {
        vm: name.clone(),
        migration,
        expected: current.clone(),
        package,
    };
    let outcome = host.offer(target, &offer).await;
    let committed = match folder.current()? {
        now if now == current => folder
            .commit(&current, current.generation.clone(), host.name(), None)
            .or_else(|e| match e {
                // The target was faster after all.
                VolumeError::Overtaken { .. } => folder.current(),
                other => Err(other),
            })?,
        now => now,
    };
    if committed.owner_host == host.name() {
        start(host, &folder, &current).await?;
        return Err(match outcome {
            Err(refused @ VmError::TargetRefused { .. }) => refused,
            Err(other) => VmError::TargetRefused {
                target: target.target.clone(),
                reason: other.to_string(),
            },
            Ok(_) => VmError::TargetRefused {
                target: target.target.clone(),
                reason: "it answered without having committed".to_owned(),
            },
        });
    }
    let VmReply::Forgotten { was_here } = host.store(VmRequest::Forget { vm }).await? else {
        return Err(unexpected());
    };
    Ok(Migrated {
        owner_host: committed.owner_host,
        guest: outcome.ok(),
        source_forgot: was_here,
    })
}

/// Takes a VM over: attests, obtains the keys itself, commits itself as owner, resumes the guest.
pub async fn receive(
    host: &impl Host,
    volume: &Volume,
    offer: MigrationOffer,
    rng: &mut dyn Random,
) -> Result<GuestReport, VmError> {
    let folder = volume.vm(&offer.vm)?;
    let current = folder.current()?;
    let unfit = |e: PackageError| VmError::Offer(e.to_string());
    if offer.package.0.len() > LARGEST_PACKAGE {
        return Err(unfit(PackageError::TooLarge));
    }
    let header = PackageHeader::read(&offer.package.0).map_err(unfit)?;
    let fits = current == offer.expected
        && header.vm == current.vm_id
        && header.migration == offer.migration
        && header.generation == current.generation.number();
    if !fits {
        return Err(VmError::Offer(
            "the package is not of the generation that counts on the volume now".to_owned(),
        ));
    }
    commit_point("migration:received");
    let ingress = folder.read_generation(&current.generation)?;
    let answer = roll(host, &ingress.protector).await?;
    let request = VmRequest::PrepareResume {
        ingress_protector: Blob(ingress.protector),
        answer: Blob(answer),
        package: offer.package,
    };
    let prepared = prepare(host, request).await?;
    let written = folder.write_generation(prepared.generation, &prepared.files, rng);
    let committed = written.and_then(|written| {
        commit_point("migration:written");
        folder.commit(&current, written, host.name(), Some(offer.migration))
    });
    let current = or_forget(host, &current, committed).await?;
    commit_point("migration:committed");
    start(host, &folder, &current).await
}

/// Rolls the transport key: by this host's own guardian in local mode, else at the primary HGS, else, if nothing of
/// that answers, at the fallback. A refusal of either is obeyed.
async fn roll(host: &impl Host, ingress_protector: &[u8]) -> Result<Vec<u8>, VmError> {
    if let Some(answer) = host.roll_locally(ingress_protector).await? {
        return Ok(answer);
    }
    let silent = match roll_at(host, Server::Primary, ingress_protector).await {
        Err(VmError::NoContact(reason)) if host.has_fallback() => reason,
        other => return other,
    };
    let told = |reason: String| format!("{reason} (said by the fallback; the primary does not answer: {silent})");
    match roll_at(host, Server::Fallback, ingress_protector).await {
        Err(VmError::NoContact(reason)) => Err(VmError::NoContact(format!("{silent}; nor the fallback: {reason}"))),
        Err(VmError::Kps { code, message }) => Err(VmError::Kps {
            code,
            message: told(message),
        }),
        Err(VmError::Attestation(reason)) => Err(VmError::Attestation(told(reason))),
        other => other,
    }
}

/// Rolls the transport key at one HGS; after a HealthCertificateException attests again once (protocol
/// reference 5.9). A refusal stays a refusal, whoever does not answer after it.
async fn roll_at(host: &impl Host, server: Server, ingress_protector: &[u8]) -> Result<Vec<u8>, VmError> {
    let certificate = host.health_certificate(server, false).await?;
    commit_point("power-on:attested");
    let request = |certificate| RollTransportKeyRequest::new(ingress_protector.to_vec(), certificate).encode();
    let (code, message) = match host.roll(server, request(certificate)).await {
        Err(VmError::Kps { code, message }) if code == "HealthCertificateException" => (code, message),
        answer => return answer,
    };
    let again = match host.health_certificate(server, true).await {
        Ok(certificate) => host.roll(server, request(certificate)).await,
        Err(failed) => Err(failed),
    };
    match again {
        Err(VmError::NoContact(reason)) => Err(VmError::Kps {
            code,
            message: format!("{message} A second attempt had no contact: {reason}"),
        }),
        again => again,
    }
}

/// What the store has sealed for the next start.
struct ForStart {
    generation: u64,
    files: Generation,
    /// Whether the store has a saved memory for the start.
    saved: bool,
    offline_starts_left: u32,
}

async fn prepare(host: &impl Host, request: VmRequest) -> Result<ForStart, VmError> {
    let VmReply::Prepared {
        generation,
        protector,
        guest_state,
        offline_starts_left,
        ..
    } = host.store(request).await?
    else {
        return Err(unexpected());
    };
    Ok(ForStart {
        generation,
        files: Generation {
            protector: protector.0,
            guest_state: guest_state.0,
            memory: None,
        },
        saved: false,
        offline_starts_left,
    })
}

/// A VM that was prepared and not committed (the volume failed, or somebody was faster: the source
/// of a migration may have taken its VM back) has no keys here afterwards.
async fn or_forget(
    host: &impl Host,
    current: &Current,
    committed: Result<Current, VolumeError>,
) -> Result<Current, VmError> {
    match committed {
        Ok(committed) => Ok(committed),
        Err(failed) => {
            host.store(VmRequest::Forget { vm: current.vm_id }).await?;
            Err(failed.into())
        }
    }
}

async fn start(host: &impl Host, folder: &VmFolder, current: &Current) -> Result<GuestReport, VmError> {
    start_typing(host, folder, current, None).await
}

async fn start_typing(
    host: &impl Host,
    folder: &VmFolder,
    current: &Current,
    typed: Option<Typed>,
) -> Result<GuestReport, VmError> {
    match try_start_typing(host, folder, current, typed).await {
        Ok(guest) => Ok(guest),
        Err(failed) => {
            // A new power-on brings new keys; the store refuses to forget a guest that runs.
            let _ = host.store(VmRequest::Forget { vm: current.vm_id }).await;
            Err(failed)
        }
    }
}

/// Starts a saved VM. Its memory is in the store alone by now, so if the guest does not come up it is saved
/// once more; a host that ends in this instant loses the memory, as a host that ends in the next one does.
async fn resume(
    host: &impl Host,
    folder: &VmFolder,
    current: &Current,
    rng: &mut dyn Random,
) -> Result<GuestReport, VmError> {
    match try_start(host, folder, current).await {
        Ok(guest) => Ok(guest),
        Err(failed) => {
            life::write_saved(host, folder, current, rng).await?;
            Err(failed)
        }
    }
}

async fn try_start(host: &impl Host, folder: &VmFolder, current: &Current) -> Result<GuestReport, VmError> {
    try_start_typing(host, folder, current, None).await
}

async fn try_start_typing(
    host: &impl Host,
    folder: &VmFolder,
    current: &Current,
    recovery_password: Option<Typed>,
) -> Result<GuestReport, VmError> {
    let request = VmRequest::Start {
        vm: current.vm_id,
        name: folder.name().clone(),
        disk: folder.disk_path(current),
        recovery_password,
    };
    let VmReply::Started { guest } = host.store(request).await? else {
        return Err(unexpected());
    };
    // Whoever took it over before the disk was locked owns it.
    if let Err(late) = must_own(host, folder.name(), &folder.current()?) {
        host.store(VmRequest::TurnOff { vm: current.vm_id }).await?;
        return Err(late);
    }
    Ok(guest)
}

/// The files of a VM that this host owns.
fn own(host: &impl Host, volume: &Volume, vm: &VmName) -> Result<(VmFolder, Current), VmError> {
    let folder = volume.vm(vm)?;
    let current = folder.current()?;
    must_own(host, vm, &current)?;
    Ok((folder, current))
}

fn must_own(host: &impl Host, vm: &VmName, current: &Current) -> Result<(), VmError> {
    if current.owner_host == host.name() {
        return Ok(());
    }
    Err(VmError::NotOwner {
        vm: vm.clone(),
        owner: current.owner_host.clone(),
        host: host.name().to_owned(),
    })
}

fn unexpected() -> VmError {
    VmError::Store("it answered something else than was asked".to_owned())
}

#[cfg(test)]
mod tests;
