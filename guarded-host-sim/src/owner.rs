//! The VM owner's workstation: guardian keys, the HGS guardian from its metadata, and new shielded VMs.
//!
//! The owner is one of the guardians of every protector made here and may open it at any time;
//! nothing of this runs on a host.

pub mod certificate;
pub(crate) mod command;
pub mod guardian_command;
pub mod inspect;
pub mod protector_command;
pub mod store;
pub mod trust;

use std::path::{Path, PathBuf};

use hgs_protocol::{
    env::{Random, UnixTime},
    protector::{Guardian, GuardianKeys, KeyProtector, Metadata, MetadataError, ProtectorError, VerifyError},
    secret::{Secret32, TransportKey},
};

use crate::{
    swtpm::{SwtpmError, TpmMaker},
    vm::{
        VmId, VmName,
        checkpoint::Checkpoints,
        disk::{DiskError, Locks},
        guest::{self, GuestError},
        recovery::{RecoveryPassword, RecoverySlot},
        rekey::{RekeyError, Wishes, rekey},
        security::{Kind, Security},
        state::{Age, GuestState, StateError, StateHeader},
        volume::{Generation, Volume, VolumeError},
        vtpm::{Vtpm, VtpmError},
    },
};

/// The owner's keys and tools.
pub struct Owner {
    keys: GuardianKeys,
    maker: TpmMaker,
    folder: PathBuf,
}

/// A guardian taken from metadata, with the thumbprints to compare with the HGS administrator's.
pub struct ImportedGuardian {
    /// The guardian.
    pub guardian: Guardian,
    /// Thumbprint of its signing certificate.
    pub signing_thumbprint: String,
    /// Thumbprint of its encryption certificate.
    pub encryption_thumbprint: String,
}

/// What the owner keeps of a VM.
pub struct OwnedVm {
    /// Name and folder of the VM.
    pub name: VmName,
    /// The VM's GUID.
    pub id: VmId,
    proof_key: Secret32,
    recovery: RecoveryPassword,
}

/// Why something at the owner's workstation failed.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// Guardian keys could not be made.
    #[error("guardian keys: {0}")]
    Keys(#[from] hgs_protocol::protector::GuardianError),
    /// The metadata is not a guardian's.
    #[error("the guardian metadata: {0}")]
    Metadata(#[from] MetadataError),
    /// The protector could not be made or read.
    #[error("the key protector: {0}")]
    Protector(#[from] ProtectorError),
    /// The protector's signatures do not hold.
    #[error("the key protector: {0}")]
    Chain(#[from] VerifyError),
    /// The owner's wrapping does not open.
    #[error("the key protector: {0}")]
    Open(#[from] hgs_protocol::protector::OpenError),
    /// The maker of vTPMs.
    #[error(transparent)]
    Maker(#[from] SwtpmError),
    /// The vTPM could not be made or used.
    #[error(transparent)]
    Vtpm(#[from] VtpmError),
    /// The disk could not be made.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The volume refused.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A VM got no new protector.
    #[error(transparent)]
    Rekey(#[from] RekeyError),
}

impl Owner {
    /// A new owner with keys of its own; `folder` (absolute) holds its tools.
    pub fn new(name: &str, folder: &Path, now: UnixTime, rng: &mut dyn Random) -> Result<Owner, OwnerError> {
        Owner::with_keys(GuardianKeys::generate(name, now, rng)?, folder)
    }

    /// An owner whose guardian keys exist already.
    pub fn with_keys(keys: GuardianKeys, folder: &Path) -> Result<Owner, OwnerError> {
        Ok(Owner {
            keys,
            maker: TpmMaker::open(&folder.join("vtpm-maker"))?,
            folder: folder.to_path_buf(),
        })
    }

    /// The owner's own guardian, with its private keys.
    pub fn keys(&self) -> &GuardianKeys {
        &self.keys
    }

    /// Takes a guardian from its metadata document. The document came over the network: compare
    /// the thumbprints before you trust it.
    pub fn import_guardian(metadata: &[u8], name: &str) -> Result<ImportedGuardian, OwnerError> {
        let guardian = Metadata::import(metadata, name)?.guardian().clone();
        Ok(ImportedGuardian {
            signing_thumbprint: guardian.signing().thumbprint(),
            encryption_thumbprint: guardian.encryption().thumbprint(),
            guardian,
        })
    }

    /// Shields a new VM: as [`Owner::make_vm`], for one guardian.
    pub fn shield(
        &self,
        name: &VmName,
        secret: &[u8],
        guardian: &Guardian,
        volume: &Volume,
        owner_host: &str,
        rng: &mut dyn Random,
    ) -> Result<OwnedVm, OwnerError> {
        let guardians = std::slice::from_ref(guardian);
        self.make_vm(name, Kind::Shielded, secret, guardians, (volume, owner_host), rng)
    }

    /// Makes a new VM of `kind`: makes its vTPM, seals a volume key in it, fills the disk with `secret`, seals the
    /// vTPM under a new transport key and wraps that key for owner and `guardians`. It is on the volume then and
    /// belongs to the host that is named.
    pub fn make_vm(
        &self,
        name: &VmName,
        kind: Kind,
        secret: &[u8],
        guardians: &[Guardian],
        (volume, owner_host): (&Volume, &str),
        rng: &mut dyn Random,
    ) -> Result<OwnedVm, OwnerError> {
        let id = VmId::random(rng);
        let run = self.folder.join(format!("vtpm-{id}"));
        let fresh = Vtpm::manufacture(&self.maker, name.as_str(), &run, rng)?;
        let mut vtpm = Vtpm::power_on(name.as_str(), &fresh, &run)?;
        let volume_key = Secret32::random(rng);
        let sealed_key = vtpm.seal_volume_key(&volume_key, rng)?;
        let vtpm = vtpm.power_off()?;
        let proof_key = Secret32::random(rng);
        let recovery = RecoveryPassword::random(rng);
        // Not kept on the disk: it is the owner's to write down.
        let slot = RecoverySlot::new(id, &volume_key, &recovery, None, rng).map_err(DiskError::from);
        let locks = Locks {
            sealed_key,
            recovery: Some(slot.map_err(GuestError::from)?),
        };
        let disk = guest::new_disk(id, secret, &proof_key, &locks, &volume_key, rng)?;

        let (protector, key) = KeyProtector::create(&self.keys, guardians, rng)?;
        let state = GuestState {
            header: StateHeader {
                vm: id,
                age: Age::rolled(1),
                security: Security::of(kind),
            },
            checkpoints: Checkpoints::default(),
            vtpm,
        };
        let first = Generation {
            protector: protector.to_xml(),
            guest_state: state.seal(&key, rng),
            memory: None,
        };
        volume.create_vm(name, id, owner_host, &first, &disk, rng)?;
        Ok(OwnedVm {
            name: name.clone(),
            id,
            proof_key,
            recovery,
        })
    }

    /// Gives a VM that is off a new protector for this owner and `guardians`, with a new transport key
    /// ([`rekey`]); gives the number of the new generation.
    pub fn rekey(
        &self,
        name: &VmName,
        guardians: &[Guardian],
        volume: &Volume,
        rng: &mut dyn Random,
    ) -> Result<u64, OwnerError> {
        Ok(rekey(&self.keys, volume, name, guardians, Wishes::default(), rng)?)
    }

    /// The transport key inside a protector of one of this owner's VMs, through the owner's own
    /// wrapping.
    pub fn open_protector(&self, protector: &[u8], rng: &mut dyn Random) -> Result<TransportKey, OwnerError> {
        let opened = KeyProtector::parse(protector)?.verify()?.open(&self.keys, rng)?;
        Ok(opened.transport_key().clone())
    }

    /// Whether the key in `protector` opens `guest_state`.
    pub fn opens(&self, protector: &[u8], guest_state: &[u8], rng: &mut dyn Random) -> Result<bool, OwnerError> {
        let key = self.open_protector(protector, rng)?;
        Ok(!matches!(
            GuestState::open(guest_state, &key),
            Err(StateError::Sealed | StateError::Format)
        ))
    }
}

impl OwnedVm {
    /// What unlocks the VM's volume when its vTPM does not. It is kept nowhere else.
    pub fn recovery_password(&self) -> &RecoveryPassword {
        &self.recovery
    }

    /// What a guest that unlocked its volume answers to `challenge`.
    pub fn expected_proof(&self, challenge: &[u8]) -> [u8; 32] {
        guest::proof(&self.proof_key, challenge)
    }
}
