//! What the agent asks of the VBS store about VMs, and what comes back.
//!
//! Everything in a request or reply may be seen and changed by the agent: blobs are sealed, and no
//! reply holds a key, but for the memory of a VM whose kind lets a debugger see it.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use base64::{Engine, engine::general_purpose::STANDARD};
use hgs_protocol::env::Random;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use zeroize::Zeroizing;

use super::{
    VmId, VmName,
    checkpoint::CheckpointId,
    guest::GuestReport,
    package::MigrationId,
    security::{Change, Channel, Kind},
    shielded::{AtRest, Created, NewVm, Prepared, Provisioned, Resealed, ShieldedError, ShieldedVms, VmPhase},
    started::Vault,
};
use crate::shielding::{
    catalogue::{TemplateName, Version},
    provision::{Order, ProvisionError},
    values::Values,
};

/// The length of `bytes` bytes in base64.
pub const fn in_base64(bytes: usize) -> usize {
    bytes.div_ceil(3) * 4
}

/// Bytes that travel as base64.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Blob(pub Vec<u8>);

/// A secret that a person typed. It shows itself to nobody.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Typed(pub Zeroizing<String>);

impl fmt::Debug for Typed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("typed")
    }
}

/// A request of the agent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
pub enum VmRequest {
    /// [`ShieldedVms::prepare_power_on`].
    PreparePowerOn {
        /// The protector that was sent to the KPS.
        ingress_protector: Blob,
        /// The KPS's answer, whole.
        answer: Blob,
        /// The sealed state that belongs to the ingress protector.
        guest_state: Blob,
        /// The sealed memory beside it, if the VM is saved.
        #[serde(default)]
        memory: Option<Blob>,
    },
    /// [`ShieldedVms::prepare_offline`].
    PrepareOffline {
        /// The protector on the volume.
        protector: Blob,
        /// The sealed state that belongs to it.
        guest_state: Blob,
        /// The sealed memory beside it, if the VM is saved.
        #[serde(default)]
        memory: Option<Blob>,
    },
    /// [`ShieldedVms::prepare_resume`].
    PrepareResume {
        /// The protector that was sent to the KPS.
        ingress_protector: Blob,
        /// The KPS's answer, whole.
        answer: Blob,
        /// The package of the migration.
        package: Blob,
    },
    /// [`ShieldedVms::provision`].
    Provision(Box<ProvisionRequest>),
    /// [`ShieldedVms::create`].
    Create(Box<CreateRequest>),
    /// [`ShieldedVms::start`].
    Start {
        /// The VM.
        vm: VmId,
        /// Its name, for messages.
        name: VmName,
        /// Its disk.
        disk: PathBuf,
        /// What somebody types where the guest asks for its recovery password.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        recovery_password: Option<Typed>,
    },
    /// [`ShieldedVms::save`].
    Save {
        /// The VM.
        vm: VmId,
        /// The attempt to move it.
        migration: MigrationId,
    },
    /// [`ShieldedVms::power_off`].
    PowerOff {
        /// The VM.
        vm: VmId,
    },
    /// [`ShieldedVms::turn_off`].
    TurnOff {
        /// The VM.
        vm: VmId,
    },
    /// [`ShieldedVms::tally`].
    Tally {
        /// The VM.
        vm: VmId,
    },
    /// [`ShieldedVms::suspend`].
    Suspend {
        /// The VM.
        vm: VmId,
    },
    /// [`ShieldedVms::reset`].
    Reset {
        /// The VM.
        vm: VmId,
        /// Its disk.
        disk: PathBuf,
    },
    /// [`ShieldedVms::change`].
    Change {
        /// The VM.
        vm: VmId,
        /// What is to be otherwise.
        change: Change,
    },
    /// [`ShieldedVms::take_checkpoint`].
    TakeCheckpoint {
        /// The VM.
        vm: VmId,
        /// The new checkpoint.
        checkpoint: CheckpointId,
    },
    /// [`ShieldedVms::apply_checkpoint`].
    ApplyCheckpoint {
        /// The VM.
        vm: VmId,
        /// The checkpoint.
        checkpoint: CheckpointId,
        /// Its sealed image.
        image: Blob,
    },
    /// [`ShieldedVms::forget_checkpoint`].
    ForgetCheckpoint {
        /// The VM.
        vm: VmId,
        /// The checkpoint.
        checkpoint: CheckpointId,
    },
    /// [`ShieldedVms::settle`].
    Settle {
        /// The VM.
        vm: VmId,
    },
    /// [`ShieldedVms::look`].
    Look {
        /// The VM.
        vm: VmId,
        /// The channel.
        channel: Channel,
    },
    /// [`ShieldedVms::forget`].
    Forget {
        /// The VM.
        vm: VmId,
    },
    /// [`ShieldedVms::prove`].
    Prove {
        /// The VM.
        vm: VmId,
        /// The owner's challenge.
        challenge: Blob,
    },
    /// [`ShieldedVms::list`].
    List,
}

/// A new VM of a template and shielding data.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProvisionRequest {
    /// The shielding data file.
    pub shielding_data: Blob,
    /// The KPS's answer for the protector in it, whole.
    pub answer: Blob,
    /// The VM's name.
    pub name: VmName,
    /// The template disk.
    pub template: PathBuf,
    /// An empty file for the VM's disk.
    pub disk: PathBuf,
    /// What is to be filled into the answer file.
    pub values: BTreeMap<String, String>,
    /// The kind that the VM is expected to be.
    pub kind: Option<Kind>,
}

/// A new VM with an empty disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateRequest {
    /// The protector that its owner made and that was sent to the KPS.
    pub protector: Blob,
    /// The KPS's answer, whole.
    pub answer: Blob,
    /// The VM's name.
    pub name: VmName,
    /// An empty file for the VM's disk.
    pub disk: PathBuf,
    /// The VM's kind.
    pub kind: Kind,
}

/// The store's reply.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case", deny_unknown_fields)]
pub enum VmReply {
    /// Write this, commit it, then ask for the start.
    Prepared {
        /// The VM.
        vm: VmId,
        /// Its generation.
        generation: u64,
        /// The protector with the key of the state.
        protector: Blob,
        /// The state, sealed anew.
        guest_state: Blob,
        /// How often this host may start the VM offline after this start.
        offline_starts_left: u32,
    },
    /// The VM is made and its disk durable; write this and commit it.
    Provisioned {
        /// The VM.
        vm: VmId,
        /// Its kind.
        kind: Kind,
        /// The template.
        template: TemplateName,
        /// The template's version.
        version: Version,
        /// The VM's protector.
        protector: Blob,
        /// Its state, sealed under the key in that protector.
        guest_state: Blob,
    },
    /// The VM is made and its disk durable; write this and commit it.
    Created {
        /// The VM.
        vm: VmId,
        /// The VM's protector.
        protector: Blob,
        /// Its state, sealed under the key in that protector.
        guest_state: Blob,
    },
    /// The guest runs.
    Started {
        /// What it tells of itself.
        guest: GuestReport,
    },
    /// The VM is suspended; this is its package.
    Saved {
        /// Encrypted under a key derived from the VM's transport key.
        package: Blob,
    },
    /// The VM is off; this is its state.
    Off {
        /// Sealed under the VM's current transport key.
        guest_state: Blob,
    },
    /// The guest has counted; write its state and commit it.
    Tallied {
        /// What the guest tells of itself.
        guest: GuestReport,
        /// The state as the vTPM has written it, sealed under the VM's current transport key.
        guest_state: Blob,
    },
    /// The VM is sealed anew; write this and commit it.
    Resealed {
        /// Its state.
        guest_state: Blob,
        /// Its memory, if it is saved.
        memory: Option<Blob>,
        /// The image of the checkpoint that was taken.
        image: Option<Blob>,
    },
    /// The keys of the change that counts now are gone from memory.
    Settled,
    /// A checkpoint is forgotten; the VM runs, and is sealed without it when it stops.
    CheckpointForgotten,
    /// What came out of the guest.
    Shown {
        /// As the guest gave it.
        content: Blob,
    },
    /// No key of the VM is here any more.
    Forgotten {
        /// Whether there was one.
        was_here: bool,
    },
    /// The guest's answer to its owner.
    Proof {
        /// What the guest computed from its secret.
        proof: Blob,
        /// What it tells of itself.
        guest: GuestReport,
    },
    /// The VMs whose keys are here.
    List {
        /// Each with where it stands.
        vms: Vec<(VmId, VmPhase)>,
    },
    /// Refused.
    Refused {
        /// Why, for a person.
        reason: String,
    },
}

impl ShieldedVms {
    /// Answers one request.
    pub fn answer(&mut self, request: VmRequest, vault: &mut dyn Vault, rng: &mut dyn Random) -> VmReply {
        self.decide(request, vault, rng)
            .unwrap_or_else(|e| VmReply::Refused { reason: e.to_string() })
    }

    fn decide(
        &mut self,
        request: VmRequest,
        vault: &mut dyn Vault,
        rng: &mut dyn Random,
    ) -> Result<VmReply, ShieldedError> {
        self.bury_the_dead()?;
        Ok(match request {
            VmRequest::PreparePowerOn {
                ingress_protector,
                answer,
                guest_state,
                memory,
            } => {
                let at_rest = at_rest(&guest_state, memory.as_ref());
                prepared(self.prepare_power_on(vault, &ingress_protector.0, &answer.0, at_rest, rng)?)
            }
            VmRequest::PrepareOffline {
                protector,
                guest_state,
                memory,
            } => {
                let at_rest = at_rest(&guest_state, memory.as_ref());
                prepared(self.prepare_offline(vault, &protector.0, at_rest, rng)?)
            }
            VmRequest::PrepareResume {
                ingress_protector,
                answer,
                package,
            } => prepared(self.prepare_resume(vault, &ingress_protector.0, &answer.0, &package.0, rng)?),
            VmRequest::Provision(request) => self.provision_as_asked(vault, &request, rng)?,
            VmRequest::Create(request) => self.create_as_asked(vault, &request, rng)?,
            VmRequest::Start {
                vm,
                name,
                disk,
                recovery_password,
            } => {
                let typed = recovery_password.as_ref().map(|typed| typed.0.as_str());
                VmReply::Started {
                    guest: self.start(vault, vm, &name, &disk, typed, rng)?,
                }
            }
            VmRequest::Save { vm, migration } => VmReply::Saved {
                package: Blob(self.save(vault, vm, migration, rng)?),
            },
            VmRequest::PowerOff { vm } => VmReply::Off {
                guest_state: Blob(self.power_off(vm, rng)?),
            },
            VmRequest::TurnOff { vm } => VmReply::Off {
                guest_state: Blob(self.turn_off(vm, rng)?),
            },
            VmRequest::Tally { vm } => {
                let (guest, guest_state) = self.tally(vm, rng)?;
                VmReply::Tallied {
                    guest,
                    guest_state: Blob(guest_state),
                }
            }
            VmRequest::Suspend { vm } => resealed(self.suspend(vm, rng)?, None),
            VmRequest::Reset { vm, disk } => VmReply::Started {
                guest: self.reset(vm, &disk, rng)?,
            },
            VmRequest::Change { vm, change } => resealed(self.change(vm, change, rng)?, None),
            VmRequest::TakeCheckpoint { vm, checkpoint } => {
                let (image, sealed) = self.take_checkpoint(vm, checkpoint, rng)?;
                resealed(sealed, Some(image))
            }
            VmRequest::ApplyCheckpoint { vm, checkpoint, image } => {
                resealed(self.apply_checkpoint(vm, checkpoint, &image.0, rng)?, None)
            }
            VmRequest::ForgetCheckpoint { vm, checkpoint } => match self.forget_checkpoint(vm, checkpoint, rng)? {
                Some(sealed) => resealed(sealed, None),
                None => VmReply::CheckpointForgotten,
            },
            VmRequest::Settle { vm } => {
                self.settle(vault, vm, rng)?;
                VmReply::Settled
            }
            VmRequest::Look { vm, channel } => VmReply::Shown {
                content: Blob(self.look(vm, channel)?.to_vec()),
            },
            VmRequest::Forget { vm } => VmReply::Forgotten {
                was_here: self.forget(vm)?,
            },
            VmRequest::Prove { vm, challenge } => {
                let (proof, guest) = self.prove(vm, &challenge.0)?;
                VmReply::Proof {
                    proof: Blob(proof.to_vec()),
                    guest,
                }
            }
            VmRequest::List => VmReply::List { vms: self.list() },
        })
    }
}

impl ShieldedVms {
    fn provision_as_asked(
        &mut self,
        vault: &mut dyn Vault,
        request: &ProvisionRequest,
        rng: &mut dyn Random,
    ) -> Result<VmReply, ShieldedError> {
        let values = Values::new(&request.values).map_err(ProvisionError::from)?;
        let order = Order {
            name: &request.name,
            template: &request.template,
            disk: &request.disk,
            values: &values,
            kind: request.kind,
        };
        let (data, answer) = (&request.shielding_data.0, &request.answer.0);
        let Provisioned { made, protector } = self.provision(vault, data, answer, &order, rng)?;
        Ok(VmReply::Provisioned {
            vm: made.vm,
            kind: made.kind,
            template: made.template,
            version: made.version,
            protector: Blob(protector),
            guest_state: Blob(made.guest_state),
        })
    }
}

impl ShieldedVms {
    fn create_as_asked(
        &mut self,
        vault: &mut dyn Vault,
        request: &CreateRequest,
        rng: &mut dyn Random,
    ) -> Result<VmReply, ShieldedError> {
        let new = NewVm {
            name: &request.name,
            kind: request.kind,
            disk: &request.disk,
        };
        let Created {
            vm,
            protector,
            guest_state,
        } = self.create(vault, (&request.protector.0, &request.answer.0), &new, rng)?;
        Ok(VmReply::Created {
            vm,
            protector: Blob(protector),
            guest_state: Blob(guest_state),
        })
    }
}

fn at_rest<'a>(guest_state: &'a Blob, memory: Option<&'a Blob>) -> AtRest<'a> {
    AtRest {
        guest_state: &guest_state.0,
        memory: memory.map(|memory| memory.0.as_slice()),
    }
}

fn resealed(sealed: Resealed, image: Option<Vec<u8>>) -> VmReply {
    VmReply::Resealed {
        guest_state: Blob(sealed.guest_state),
        memory: sealed.memory.map(Blob),
        image: image.map(Blob),
    }
}

fn prepared(prepared: Prepared) -> VmReply {
    VmReply::Prepared {
        vm: prepared.vm,
        generation: prepared.generation,
        protector: Blob(prepared.protector),
        guest_state: Blob(prepared.guest_state),
        offline_starts_left: prepared.offline_starts_left,
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Blob, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Blob).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_their_encoding_and_unknown_ones_are_refused() {
        let request = VmRequest::PreparePowerOn {
            ingress_protector: Blob(vec![1]),
            answer: Blob(vec![2; 3]),
            guest_state: Blob(Vec::new()),
            memory: None,
        };
        let text = serde_json::to_string(&request).unwrap();
        assert!(text.starts_with("{\"ask\":\"prepare-power-on\""), "{text}");
        assert_eq!(serde_json::from_str::<VmRequest>(&text).unwrap(), request);
        assert!(serde_json::from_str::<VmRequest>("{\"ask\":\"export-keys\"}").is_err());
        assert!(!format!("{request:?}").contains("AgIC"));
    }
}
