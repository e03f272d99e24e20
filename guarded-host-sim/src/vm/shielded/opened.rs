//! What a store has in hands before a VM starts: its files at rest, an answer of the KPS, and both opened.

use hgs_protocol::{
    crypto::RsaPrivateKey,
    protector::{OpenedRelease, check_roll, open_release},
    secret::TransportKey,
    wire::kps::RollTransportKeyResponse,
};

use super::{ShieldedError, Start};
use crate::vm::{
    VmId,
    checkpoint::Checkpoints,
    memory::open_memory,
    package::MigrationId,
    security::Security,
    started::Opening,
    state::{Age, GuestState, VtpmState},
};

/// The files of a VM that does not run, as they lie on the volume.
#[derive(Clone, Copy)]
pub struct AtRest<'a> {
    /// The sealed state.
    pub guest_state: &'a [u8],
    /// The sealed memory, if the VM is saved.
    pub memory: Option<&'a [u8]>,
}

/// A VM whose state or package has opened.
pub(super) struct OpenedVm {
    pub(super) vm: VmId,
    pub(super) age: Age,
    pub(super) security: Security,
    pub(super) checkpoints: Checkpoints,
    pub(super) vtpm: VtpmState,
    pub(super) start: Start,
}

impl AtRest<'_> {
    pub(super) fn open(&self, key: &TransportKey) -> Result<OpenedVm, ShieldedError> {
        let state = GuestState::open(self.guest_state, key)?;
        let memory = self
            .memory
            .map(|memory| open_memory(memory, key, &state.header, self.guest_state));
        Ok(OpenedVm {
            vm: state.header.vm,
            age: state.header.age,
            security: state.header.security,
            checkpoints: state.checkpoints,
            vtpm: state.vtpm,
            start: memory.transpose()?.map_or(Start::Boot, Start::Resume),
        })
    }
}

/// What a VM is sealed with for a start.
pub(super) struct Next {
    pub(super) age: Age,
    pub(super) key: TransportKey,
    pub(super) protector: Vec<u8>,
    pub(super) offline_starts_left: u32,
}

/// An answer of the KPS that was opened, and whose egress protector follows from the ingress protector.
pub(super) struct Released {
    pub(super) release: OpenedRelease,
    pub(super) protector: Vec<u8>,
    digest: [u8; 32],
}

impl Released {
    pub(super) fn open(
        vsm_key: &RsaPrivateKey,
        ingress_protector: &[u8],
        answer: &[u8],
    ) -> Result<Released, ShieldedError> {
        let answer = RollTransportKeyResponse::parse(answer)?;
        let release = open_release(&answer, vsm_key)?;
        let egress = check_roll(ingress_protector, &answer.egress_protector, &release.egress)?;
        Ok(Released {
            release,
            protector: answer.egress_protector,
            digest: egress.digest(),
        })
    }

    pub(super) fn opening(&self, package: Option<MigrationId>) -> Opening<'_> {
        Opening {
            release: &self.release,
            egress_protector: self.digest,
            package,
        }
    }

    /// After the state of `age`.
    pub(super) fn next(self, age: Age) -> Next {
        Next {
            age: Age::rolled(age.generation.saturating_add(1)),
            offline_starts_left: self.release.max_offline_unwraps,
            key: self.release.egress,
            protector: self.protector,
        }
    }
}
