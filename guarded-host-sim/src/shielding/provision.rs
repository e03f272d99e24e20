//! Makes a VM of a template and shielding data, as the VBS store does it for its host's agent, an adversary.
//!
//! Nothing is taken but what the owner of the shielding data signed: the file opens under the transport key that a roll
//! brought, the template is one that it trusts, and every block of it goes onto the new disk as it was hashed. The
//! new VM's key protector is the one that the roll brought, so its owner and its guardians are those of the shielding data.
//! Files of the owner, volume key and vTPM exist here and, sealed, on the volume.

use std::path::Path;

use hgs_protocol::{
    env::Random,
    secret::{Secret32, TransportKey},
};
use rustix::fs::OFlags;

use super::{
    catalogue::{TemplateName, Version},
    data_file::{ANSWER_FILE, DataFileError, ShieldingData},
    qualifier::{Unqualified, qualify},
    template::{TemplateDisk, TemplateError},
    values::{ValueError, Values},
};
use crate::{
    swtpm::{SwtpmError, TpmMaker},
    vm::{
        VmId, VmName,
        checkpoint::Checkpoints,
        disk::{DiskError, DiskWriter, Locks, open_below},
        guest,
        layout::{Map, encode_files},
        recovery::{Escrow, RecoveryPassword, RecoverySlot},
        security::{Kind, Security},
        state::{Age, GuestState, StateHeader},
        vtpm::{Vtpm, VtpmError},
    },
};

/// What the agent asks for.
pub struct Order<'a> {
    /// The VM's name.
    pub name: &'a VmName,
    /// The template disk.
    pub template: &'a Path,
    /// An empty file for the VM's disk.
    pub disk: &'a Path,
    /// What is to be filled into the answer file.
    pub values: &'a Values,
    /// The kind that the agent expects the VM to be.
    pub kind: Option<Kind>,
}

/// Where the store works.
pub struct Place<'a> {
    /// Template and disk are files below.
    pub volume: &'a Path,
    /// Where the maker of vTPMs keeps its keys.
    pub maker: &'a Path,
    /// Where the vTPM runs while it is made.
    pub vtpm: &'a Path,
}

/// A VM that was made; its disk is durable. Holds nothing secret.
pub struct Made {
    /// The VM.
    pub vm: VmId,
    /// Its first state, sealed.
    pub guest_state: Vec<u8>,
    /// Its kind.
    pub kind: Kind,
    /// The template's name.
    pub template: TemplateName,
    /// The template's version.
    pub version: Version,
}

/// Why no VM was made.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// The shielding data.
    #[error(transparent)]
    Data(#[from] DataFileError),
    /// The template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The owner does not trust the template.
    #[error(transparent)]
    Unqualified(#[from] Unqualified),
    /// The agent expects something else than the owner's policy says.
    #[error(
        "the policy of the shielding data makes {policy} VMs, and this one was to be {wanted}: only its owner decides that"
    )]
    Policy {
        /// What the shielding data says.
        policy: Kind,
        /// What was asked for.
        wanted: Kind,
    },
    /// A value for the answer file.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The maker of vTPMs.
    #[error(transparent)]
    Maker(#[from] SwtpmError),
    /// The vTPM.
    #[error(transparent)]
    Vtpm(#[from] VtpmError),
}

/// Makes the VM `vm`, whose first state is sealed under `key`.
pub fn provision(
    vm: VmId,
    data: &ShieldingData,
    key: &TransportKey,
    order: &Order<'_>,
    place: &Place<'_>,
    rng: &mut dyn Random,
) -> Result<Made, ProvisionError> {
    let policy = data.policy();
    if let Some(wanted) = order.kind.filter(|wanted| *wanted != policy) {
        return Err(ProvisionError::Policy { policy, wanted });
    }
    let template = TemplateDisk::open_below(place.volume, order.template)?;
    qualify(data.qualifiers(), template.catalogue())?;
    let answer_file = order.values.fill(data.contents().answer_file())?;
    let disk = open_below(place.volume, order.disk, OFlags::RDWR)?;

    let maker = TpmMaker::open(place.maker)?;
    let fresh = Vtpm::manufacture(&maker, order.name.as_str(), place.vtpm, rng)?;
    let mut vtpm = Vtpm::power_on(order.name.as_str(), &fresh, place.vtpm)?;
    let volume_key = Secret32::random(rng);
    let sealed_key = vtpm.seal_volume_key(&volume_key, rng)?;
    let vtpm = vtpm.power_off()?;

    let mut files = vec![(ANSWER_FILE, answer_file.as_slice())];
    let others = data.contents().other_files().iter();
    files.extend(others.map(|file| (file.name.as_str(), file.content.as_slice())));
    let files = encode_files(&files);
    let length = template.catalogue().identity().length;
    let map = Map::new(files.len() as u64, length).ok_or(DiskError::Format)?;
    let recovery_key = data.recovery_key(vm);
    let escrow = Escrow {
        file: data.id().0,
        key: &recovery_key,
    };
    let password = RecoveryPassword::random(rng);
    let slot = RecoverySlot::new(vm, &volume_key, &password, Some(&escrow), rng).map_err(DiskError::from)?;
    let locks = Locks {
        sealed_key,
        recovery: Some(slot),
    };
    let disk = DiskWriter::begin(disk, vm, map.chunks(), &locks, &volume_key)?;
    specialise(disk, vm, &map, data, &files, &template, rng)?;

    let state = GuestState {
        header: StateHeader {
            vm,
            age: Age::rolled(1),
            security: Security::of(policy),
        },
        checkpoints: Checkpoints::default(),
        vtpm,
    };
    let identity = template.catalogue().identity();
    Ok(Made {
        vm,
        guest_state: state.seal(key, rng),
        kind: policy,
        template: identity.name.clone(),
        version: identity.version,
    })
}

fn specialise(
    disk: DiskWriter<'_>,
    vm: VmId,
    map: &Map,
    data: &ShieldingData,
    files: &[u8],
    template: &TemplateDisk,
    rng: &mut dyn Random,
) -> Result<(), ProvisionError> {
    let volume = |disk: &mut DiskWriter<'_>, rng: &mut dyn Random| {
        template.read_volume(|block| Ok::<_, ProvisionError>(disk.append(block, rng)?))
    };
    guest::write_disk(disk, map, &data.proof_key(vm), files, volume, rng)
}
