//! A VM as `Get-VM`, `Get-VMSecurity` and `Get-VMKeyProtector` show it: from its files and from what the store has in
//! memory. The security of a VM that does not run is read from its state without a key; it is authentic once the VM
//! has started.

use std::collections::BTreeMap;

use hgs_protocol::protector::KeyProtector;
use serde::{Deserialize, Serialize};

use super::{
    VmId, VmName,
    security::{Kind, Switch},
    shielded::VmPhase,
    state::StateHeader,
    volume::{CheckpointEntry, VmFolder, VolumeError},
};

/// What a VM is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum VmState {
    /// Nothing.
    Off,
    /// Its memory is on the volume.
    Saved,
    /// Its guest runs here.
    Running,
    /// An operation is under way, or was cut short.
    Changing,
    /// Another host owns it and knows.
    OnAnotherHost,
}

/// A VM.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VmView {
    /// Its name.
    pub name: VmName,
    /// Its GUID.
    pub id: VmId,
    /// What it is doing.
    pub state: VmState,
    /// The only host that may start it.
    pub owner_host: String,
    /// How often its transport key was rolled.
    pub generation: u64,
    /// What is enforced; nothing when the state on the volume is none.
    pub security: Option<SecurityView>,
    /// Who may open it; nothing when the protector on the volume is none.
    pub protector: Option<ProtectorView>,
    /// Its checkpoints, oldest first.
    pub checkpoints: Vec<CheckpointEntry>,
}

/// A VM's kind and switches.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SecurityView {
    /// The kind.
    pub kind: Kind,
    /// Each switch.
    pub switches: BTreeMap<String, bool>,
}

/// A VM's key protector.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProtectorView {
    /// Thumbprint of the owner's signing certificate; nothing when the signatures do not hold.
    pub owner: Option<String>,
    /// How many guardians may open it, the owner among them.
    pub guardians: usize,
    /// Whether another one, with which the VM last started, can be restored.
    pub can_restore: bool,
}

impl VmView {
    /// As the host `host` sees it, whose store holds keys of the VMs in `phases`.
    pub fn of(folder: &VmFolder, host: &str, phases: &[(VmId, VmPhase)]) -> Result<VmView, VolumeError> {
        let current = folder.current()?;
        let phase = phases
            .iter()
            .find(|(id, _)| *id == current.vm_id)
            .map(|(_, phase)| phase);
        let state = match phase {
            Some(VmPhase::Running) => VmState::Running,
            Some(VmPhase::Prepared | VmPhase::Suspended) => VmState::Changing,
            None if current.owner_host != host => VmState::OnAnotherHost,
            None if folder.is_saved(&current.generation) => VmState::Saved,
            None => VmState::Off,
        };
        let files = folder.read_generation(&current.generation)?;
        let protector = KeyProtector::parse(&files.protector).ok();
        Ok(VmView {
            name: folder.name().clone(),
            id: current.vm_id,
            state,
            generation: current.generation.number(),
            security: StateHeader::read(&files.guest_state).ok().map(|header| SecurityView {
                kind: header.security.kind(),
                switches: header
                    .security
                    .switches()
                    .map(|(switch, on)| (key(switch), on))
                    .collect(),
            }),
            protector: protector.map(|protector| ProtectorView {
                guardians: protector.wrappings().count(),
                can_restore: current.known_good.is_some(),
                owner: protector.verify().ok().and_then(|p| Some(p.owner()?.thumbprint())),
            }),
            owner_host: current.owner_host,
            checkpoints: current.checkpoints,
        })
    }
}

/// A switch's name in JSON.
fn key(switch: Switch) -> String {
    let value = clap::ValueEnum::to_possible_value(&switch);
    value.map_or_else(|| switch.to_string(), |value| value.get_name().to_owned())
}
