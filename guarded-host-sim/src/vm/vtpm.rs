//! A vTPM: a swtpm of the VM's own, whose state files swtpm itself encrypts under K_v.
//!
//! K_v reaches swtpm through a pipe and is otherwise only in sealed state, so the folder a vTPM runs
//! in shows nothing to whoever reads it. Sealing and unsealing go through a salted session whose
//! first parameter is encrypted, so the socket shows nothing either.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use hgs_protocol::{
    env::Random,
    secret::Secret32,
    tpm::{
        PcrSelection, ResponseCode, SRK_HANDLE, TpmError,
        command::{self, Call, SessionKind},
        response::{self, Response},
        session::{CONTINUE_SESSION, DECRYPT, ENCRYPT, SaltedSession},
    },
};

use super::{
    disk::SealedVolumeKey,
    guest::{BOOT_PCR, UNLOCK_PCR, expected_boot_pcr},
    state::VtpmState,
};
use crate::{
    swtpm::{Swtpm, SwtpmError, TpmMaker},
    tpm_channel::ChannelError,
};

/// Why a vTPM does not serve.
#[derive(Debug, thiserror::Error)]
pub enum VtpmError {
    /// The process or its control channel.
    #[error(transparent)]
    Swtpm(#[from] SwtpmError),
    /// The command channel, or the TPM's own refusal.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// A response that is malformed or not authentic.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// Its folder.
    #[error("the vTPM's folder {}: {cause}", path.display())]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// The system's reason.
        cause: io::Error,
    },
}

impl VtpmError {
    /// Whether the vTPM itself refused: the measurements are others than its policy names, or the object is
    /// another vTPM's.
    pub fn is_refusal(&self) -> bool {
        matches!(self, VtpmError::Channel(error) if error.refusal().is_some())
    }
}

/// A running vTPM. Dropping it ends its process and removes its folder.
pub struct Vtpm {
    tpm: Swtpm,
    key: Secret32,
    folder: Folder,
}

impl Vtpm {
    /// Makes a new vTPM in `folder` (absolute, emptied) and takes its state.
    pub fn manufacture(
        maker: &TpmMaker,
        owner: &str,
        folder: &Path,
        rng: &mut dyn Random,
    ) -> Result<VtpmState, VtpmError> {
        let folder = Folder(folder.to_path_buf());
        let key = Secret32::random(rng);
        maker.manufacture(owner, &folder.0, Some(&key))?;
        let permanent = folder.read_state()?;
        Ok(VtpmState { key, permanent })
    }

    /// Powers the vTPM on: PCRs start from their reset values.
    pub fn power_on(owner: &str, state: &VtpmState, folder: &Path) -> Result<Vtpm, VtpmError> {
        let mut vtpm = Vtpm::start(owner, state, folder)?;
        vtpm.tpm.reset(0)?;
        Ok(vtpm)
    }

    /// Goes on from a state that [`Vtpm::suspend`] saved: PCRs are as they were.
    pub fn resume(owner: &str, state: &VtpmState, folder: &Path) -> Result<Vtpm, VtpmError> {
        let mut vtpm = Vtpm::start(owner, state, folder)?;
        vtpm.tpm.resume(0)?;
        Ok(vtpm)
    }

    fn start(owner: &str, state: &VtpmState, folder: &Path) -> Result<Vtpm, VtpmError> {
        let folder = Folder(folder.to_path_buf());
        folder.write_state(&state.permanent)?;
        let tpm = Swtpm::start(owner, &folder.0, Some(&state.key))?;
        Ok(Vtpm {
            tpm,
            key: state.key.clone(),
            folder,
        })
    }

    /// True while its process runs.
    pub fn is_running(&mut self) -> bool {
        self.tpm.is_running()
    }

    /// Extends a PCR of the SHA-256 bank.
    pub fn extend(&mut self, pcr: u8, digest: &[u8; 32]) -> Result<(), VtpmError> {
        self.tpm
            .channel()
            .call_with_empty_password(&command::pcr_extend(pcr, digest))?;
        Ok(())
    }

    /// The value of a PCR of the SHA-256 bank.
    pub fn pcr(&mut self, index: u8) -> Result<[u8; 32], VtpmError> {
        let selection = PcrSelection::of(&[index])?;
        let answer = self.tpm.channel().call(&command::pcr_read(selection))?;
        let read = response::pcr_read(Response::parse(&answer)?.parameters, selection)?;
        Ok(read
            .values
            .first()
            .map(|(_, value)| *value)
            .ok_or(TpmError::Selection)?)
    }

    /// Seals a volume key so that only this vTPM opens it, and only while the guest boots as
    /// [`expected_boot_pcr`] says and has not unlocked its volume yet.
    pub fn seal_volume_key(&mut self, key: &Secret32, rng: &mut dyn Random) -> Result<SealedVolumeKey, VtpmError> {
        self.seal_volume_key_to(&expected_boot_pcr(), key, rng)
    }

    /// As [`Vtpm::seal_volume_key`], for a guest whose boot leaves `boot_pcr` in [`BOOT_PCR`].
    pub fn seal_volume_key_to(
        &mut self,
        boot_pcr: &[u8; 32],
        key: &Secret32,
        rng: &mut dyn Random,
    ) -> Result<SealedVolumeKey, VtpmError> {
        let policy = response::policy_pcr_digest(policy_pcrs()?, &[*boot_pcr, [0; 32]]);
        let parent = self.tpm.channel().read_public(SRK_HANDLE)?;
        let call = command::create_sealed(SRK_HANDLE, &parent.name()?, key.expose(), &policy);
        let mut session = self.session(SessionKind::Encrypting, rng)?;
        let created = self.under(&mut session, &call, DECRYPT, rng)?;
        let created = response::create(&created)?;
        Ok(SealedVolumeKey {
            public: created.public,
            private: created.private,
        })
    }

    /// Unseals a volume key. Refused by the vTPM unless the policy of
    /// [`Vtpm::seal_volume_key`] holds now.
    pub fn unseal_volume_key(&mut self, sealed: &SealedVolumeKey, rng: &mut dyn Random) -> Result<Secret32, VtpmError> {
        let load = command::load(SRK_HANDLE, &sealed.private, &sealed.public);
        let answer = self.tpm.channel().call_with_empty_password(&load)?;
        let loaded = Response::parse_with_handle(&answer)?;
        let object = loaded.returned_handle()?;
        let name = response::load(loaded.parameters)?;
        let unsealed = self.unseal_loaded(object, &name, rng);
        self.tpm.channel().call(&command::flush_context(object))?;
        unsealed
    }

    fn unseal_loaded(&mut self, object: u32, name: &[u8], rng: &mut dyn Random) -> Result<Secret32, VtpmError> {
        let mut session = self.session(SessionKind::Policy, rng)?;
        let policy = command::policy_pcr(session.handle(), policy_pcrs()?);
        self.tpm.channel().call(&policy)?;
        let result = self.under(&mut session, &command::unseal(object, name), ENCRYPT, rng);
        if result.is_err() {
            // A refused session stays open; a used one is gone.
            let _ = self.tpm.channel().call(&command::flush_context(session.handle()));
        }
        let data = response::unseal(&result?)?;
        Ok(Secret32::from_slice(&data).ok_or(TpmError::Value("a volume key of another length"))?)
    }

    /// How far the guest's counter in the vTPM has come; 0 before the guest's first [`Vtpm::count`].
    pub fn counted(&mut self) -> Result<u64, VtpmError> {
        let read = command::nv_read_counter(COUNTER_INDEX);
        match self.tpm.channel().call_with_empty_password(&read) {
            Ok(answer) => Ok(response::nv_read_counter(Response::parse(&answer)?.parameters)?),
            // Not defined, or defined and never incremented.
            Err(e) if [Some(ResponseCode::HANDLE), Some(NV_UNINITIALIZED)].contains(&e.refusal()) => Ok(0),
            Err(e) => Err(e.into()),
        }
    }

    /// Increments the guest's counter, which the vTPM lets no one set back; gives its new value.
    pub fn count(&mut self) -> Result<u64, VtpmError> {
        let written = self.counted()? > 0;
        let channel = self.tpm.channel();
        if !written {
            let define = command::nv_define_counter(COUNTER_INDEX, &[]);
            match channel.call_with_empty_password(&define) {
                Err(e) if e.refusal() != Some(NV_DEFINED) => return Err(e.into()),
                _ => {}
            }
        }
        channel.call_with_empty_password(&command::nv_increment(COUNTER_INDEX, written))?;
        self.counted()
    }

    /// What the vTPM has written so far. It goes on running.
    pub fn written(&self) -> Result<VtpmState, VtpmError> {
        Ok(VtpmState {
            permanent: self.folder.read_state()?,
            key: self.key.clone(),
        })
    }

    /// Saves the vTPM so that it can go on elsewhere, and ends it.
    pub fn suspend(self) -> Result<VtpmState, VtpmError> {
        self.tpm.suspend()?;
        Ok(VtpmState {
            permanent: self.folder.read_state()?,
            key: self.key,
        })
    }

    /// Ends the vTPM in an orderly way and takes its state.
    pub fn power_off(self) -> Result<VtpmState, VtpmError> {
        self.tpm.shut_down()?;
        Ok(VtpmState {
            permanent: self.folder.read_state()?,
            key: self.key,
        })
    }

    /// Cuts the vTPM's power and takes what it has written so far.
    pub fn turn_off(self) -> Result<VtpmState, VtpmError> {
        drop(self.tpm);
        Ok(VtpmState {
            permanent: self.folder.read_state()?,
            key: self.key,
        })
    }

    /// A power cycle: PCRs start from their reset values.
    pub fn reset(&mut self) -> Result<(), VtpmError> {
        Ok(self.tpm.reset(0)?)
    }

    fn session(&mut self, kind: SessionKind, rng: &mut dyn Random) -> Result<SaltedSession, VtpmError> {
        let storage_key = self.tpm.channel().read_public(SRK_HANDLE)?;
        let key = storage_key.rsa_key().ok_or(TpmError::Key)?;
        let (start, pending) = SaltedSession::start_as(kind, SRK_HANDLE, key, rng)?;
        let answer = self.tpm.channel().expect_success(&start)?;
        Ok(pending.started(&answer)?)
    }

    /// Sends one command under a session that ends with it.
    fn under(
        &mut self,
        session: &mut SaltedSession,
        call: &Call,
        attributes: u8,
        rng: &mut dyn Random,
    ) -> Result<zeroize::Zeroizing<Vec<u8>>, VtpmError> {
        let command = session.command(call, &[], attributes & !CONTINUE_SESSION, rng)?;
        let answer = self.tpm.channel().expect_success(&command)?;
        Ok(session.accept(call, &[], &answer)?)
    }
}

fn policy_pcrs() -> Result<PcrSelection, TpmError> {
    PcrSelection::of(&[BOOT_PCR, UNLOCK_PCR])
}

/// The folder of a vTPM that runs; its contents are encrypted, and still it does not stay behind.
struct Folder(PathBuf);

impl Folder {
    fn write_state(&self, permanent: &[u8]) -> Result<(), VtpmError> {
        let failed = |cause| VtpmError::Folder {
            path: self.0.clone(),
            cause,
        };
        if self.0.exists() {
            fs::remove_dir_all(&self.0).map_err(failed)?;
        }
        crate::swtpm::make_private_dir(&self.0)?;
        fs::write(self.0.join(PERMANENT), permanent).map_err(failed)
    }

    fn read_state(&self) -> Result<Vec<u8>, VtpmError> {
        let path = self.0.join(PERMANENT);
        fs::read(&path).map_err(|cause| VtpmError::Folder { path, cause })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const PERMANENT: &str = "tpm2-00.permall";
/// NV index of the guest's counter.
const COUNTER_INDEX: u32 = 0x0150_0002;
/// TPM_RC_NV_UNINITIALIZED.
const NV_UNINITIALIZED: ResponseCode = ResponseCode(0x14A);
/// TPM_RC_NV_DEFINED.
const NV_DEFINED: ResponseCode = ResponseCode(0x14C);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::{
        VmId,
        disk::{LockedDisk, Locks},
        guest,
        recovery::{RecoveryPassword, RecoverySlot},
    };
    use hgs_protocol::env::OsRandom;

    /// One vTPM for all that a test of this module wants to know: making one takes a second.
    #[test]
    fn a_guest_boots_from_its_vtpm_alone_and_goes_on_after_a_move() {
        if !crate::swtpm::available("a_guest_boots_from_its_vtpm_alone_and_goes_on_after_a_move") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let rng: &mut dyn Random = &mut OsRandom;
        let maker = TpmMaker::open(&dir.path().join("maker")).unwrap();
        let run = dir.path().join("vtpm");
        let state = Vtpm::manufacture(&maker, "vm1", &run, rng).unwrap();
        assert!(!run.exists());
        let volume_key = Secret32::random(rng);
        let mut vtpm = Vtpm::power_on("vm1", &state, &run).unwrap();
        let sealed = vtpm.seal_volume_key(&volume_key, rng).unwrap();
        let state = vtpm.power_off().unwrap();
        let vm = VmId::random(rng);
        let disk = dir.path().join("disk.bin");
        let secret = b"the owner's secret";
        let proof_key = Secret32::random(rng);
        let password = RecoveryPassword::random(rng);
        let locks = Locks {
            sealed_key: sealed.clone(),
            recovery: Some(RecoverySlot::new(vm, &volume_key, &password, None, rng).unwrap()),
        };
        let bytes = guest::new_disk(vm, secret, &proof_key, &locks, &volume_key, rng).unwrap();
        fs::write(&disk, bytes).unwrap();

        // Another boot chain: the vTPM refuses.
        let mut vtpm = Vtpm::power_on("vm1", &state, &run).unwrap();
        vtpm.extend(BOOT_PCR, &[1; 32]).unwrap();
        let other = guest::Guest::boot(vm, &mut vtpm, LockedDisk::open(&disk).unwrap(), rng);
        assert!(matches!(other, Err(guest::GuestError::Recovery(e)) if e.is_refusal()));
        drop(vtpm);

        // The regular boot chain: the secret is read, and the key cannot be unsealed once more.
        let mut vtpm = Vtpm::power_on("vm1", &state, &run).unwrap();
        let running = guest::Guest::boot(vm, &mut vtpm, LockedDisk::open(&disk).unwrap(), rng).unwrap();
        assert_eq!(vtpm.pcr(BOOT_PCR).unwrap(), expected_boot_pcr());
        assert_eq!(running.prove(b"c"), guest::proof(&proof_key, b"c"));
        let of_secret = hgs_protocol::crypto::hmac_sha256(secret, &[b"HGS-GUEST-PROOF\0", b"c"]);
        assert_ne!(
            running.prove(b"c"),
            of_secret,
            "a challenge tells nothing of the secret"
        );
        let memory = running.expose_memory();
        assert!(memory.windows(secret.len()).any(|w| w == secret), "the secret was read");
        assert!(vtpm.unseal_volume_key(&sealed, rng).is_err());

        // Moved: same boot, same PCRs, same secret.
        let before = running.report();
        let memory = running.expose_memory();
        drop(running);
        let state = vtpm.suspend().unwrap();
        let mut vtpm = Vtpm::resume("vm1", &state, &run).unwrap();
        let mut moved = guest::Guest::resume(vm, &mut vtpm, &memory, LockedDisk::open(&disk).unwrap()).unwrap();
        assert_eq!(vtpm.pcr(BOOT_PCR).unwrap(), expected_boot_pcr());
        assert_eq!(moved.prove(b"d"), guest::proof(&proof_key, b"d"));
        assert_eq!((moved.report().boot_id, moved.report().boots), (before.boot_id, 1));

        // What it counts is in its vTPM and on its volume at once, without an orderly end.
        assert_eq!(moved.report().tally, guest::Tally::default());
        let one = moved.count(&mut vtpm, rng).unwrap().tally;
        let two = moved.count(&mut vtpm, rng).unwrap().tally;
        assert_eq!((one.volume, two.volume, two.vtpm), (1, 2, one.vtpm + 1));
        let state = vtpm.written().unwrap();
        drop((vtpm, moved));

        // A cold boot counts on.
        let mut vtpm = Vtpm::power_on("vm1", &state, &run).unwrap();
        let again = guest::Guest::boot(vm, &mut vtpm, LockedDisk::open(&disk).unwrap(), rng).unwrap();
        assert_eq!((again.report().boots, again.report().tally), (2, two));
        drop(again);

        // Another configuration: only with the recovery password, and from then on without it.
        let insecure = guest::Boot {
            secure: false,
            recovery: None,
        };
        let boot = |boot, rng: &mut dyn Random| {
            let mut vtpm = Vtpm::power_on("vm1", &state, &run).unwrap();
            let disk = LockedDisk::open(&disk).unwrap();
            guest::Guest::boot_as(boot, vm, &mut vtpm, disk, rng).map(|guest| guest.report().boots)
        };
        let wrong = guest::Boot {
            recovery: Some(&RecoveryPassword::random(rng)),
            ..insecure
        };
        let recovering = guest::Boot {
            recovery: Some(&password),
            ..insecure
        };
        assert!(matches!(boot(insecure, rng), Err(guest::GuestError::Recovery(_))));
        assert!(matches!(boot(wrong, rng), Err(guest::GuestError::Disk(_))));
        assert_eq!(boot(recovering, rng).unwrap(), 3);
        assert_eq!(boot(insecure, rng).unwrap(), 4);
        assert!(matches!(
            boot(guest::Boot::default(), rng),
            Err(guest::GuestError::Recovery(_))
        ));

        // Another vTPM does not load the sealed key, and another VM does not take the disk.
        let stranger = Vtpm::manufacture(&maker, "vm2", &dir.path().join("vtpm2"), rng).unwrap();
        let mut vtpm = Vtpm::power_on("vm2", &stranger, &dir.path().join("vtpm2")).unwrap();
        assert!(guest::Guest::boot(vm, &mut vtpm, LockedDisk::open(&disk).unwrap(), rng).is_err());
        let other_vm = VmId::random(rng);
        let foreign = guest::Guest::boot(other_vm, &mut vtpm, LockedDisk::open(&disk).unwrap(), rng);
        assert!(matches!(foreign, Err(guest::GuestError::ForeignDisk { .. })));
    }
}
