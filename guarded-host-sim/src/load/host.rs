//! A light host: a host without processes of its own. Its TPM is a real one, its boot is measured, its VBS
//! store opens as a host's does, and it attests by the host's own code; but machine, store and agent are
//! this process, nothing is kept from anybody, and it runs no VM.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Context;
use hgs_protocol::{
    crypto::{RsaPrivateKey, RsaPublicKey, sha256},
    env::{OsRandom, UnixTime},
    health::{AcceptanceRules, AttestationMode, TrustedSigner},
    tpm::EK_HANDLE,
    wire::vsm,
};

use tokio::sync::watch;

use super::pool::{KEY, Place, TPM, VSM_KEY};
use crate::{
    agent::{
        Outcome,
        attest::{AttestError, Health, HostSide, host_key},
    },
    machine::{boot, dials::Dials, relay::SharedTpm},
    store::{Store, StoreReport},
    swtpm::{Swtpm, SwtpmError, ek_certificate},
    tpm_channel::TpmChannel,
};

/// A light host that has been switched on.
pub(super) struct LightHost {
    name: String,
    part: Part,
    /// The public VSM encryption key: its certificate is what the host is after.
    vsm_key: RsaPublicKey,
    held: Mutex<Held>,
    tally: Arc<Tally>,
}

/// What the last attestation left.
#[derive(Default)]
struct Held {
    health: Option<Health>,
    /// Why the host gave up, if it did so since.
    gave_up: Option<String>,
}

/// What hosts met, over all of them.
#[derive(Debug, Default)]
pub(super) struct Tally {
    retries: Mutex<BTreeMap<String, u64>>,
    /// Hosts that got a certificate in this round.
    pub(super) attested: watch::Sender<usize>,
    /// Attempts of this round that got no answer.
    pub(super) unanswered: watch::Sender<usize>,
}

impl Tally {
    /// A round begins.
    pub(super) fn begin(&self) {
        self.take();
        self.attested.send_replace(0);
        self.unanswered.send_replace(0);
    }

    /// Attempts of this round that were made again, by reason; forgotten here.
    pub(super) fn take(&self) -> BTreeMap<String, u64> {
        std::mem::take(&mut *self.retries.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note(&self, reason: String, answered: bool) {
        *self
            .retries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(reason)
            .or_default() += 1;
        if !answered {
            self.unanswered.send_modify(|n| *n += 1);
        }
    }
}

/// What the host proves itself with.
enum Part {
    Tpm {
        tpm: Arc<TpmSlot>,
        boot_log: Vec<u8>,
        ek_certificate: Vec<u8>,
        ek_sha256: [u8; 32],
    },
    Key(Arc<RsaPrivateKey>),
}

/// Place of a TPM that sleeps between uses, or never.
struct TpmSlot {
    owner: String,
    state: PathBuf,
    running: Mutex<Option<Swtpm>>,
}

impl LightHost {
    /// Boots the host of `place` with its TPM. With `sleep` its TPM sleeps afterwards, PCRs saved on disk.
    pub(super) fn boot(place: &Place, sleep: bool, tally: &Arc<Tally>) -> anyhow::Result<LightHost> {
        let state = place.folder.join(TPM);
        let ek_certificate = ek_certificate(&state)?;
        let tpm = SharedTpm::new(Swtpm::start(&place.name, &state, None)?);
        let boots = boot::count_one_more(&place.folder).context("cannot count the boot")?;
        let store = place.folder.join("store");
        let (boot_log, vsm_key) = boot::simulate(&tpm, &Dials::default(), boots, || {
            let channel = tpm.lock().another_channel()?;
            // The private halves are wiped here: the host has nothing to open with them.
            let report = StoreReport::of(&Store::open(&store, channel, &mut OsRandom)?);
            Ok((report.keys()?.0, report))
        })?;
        let ek = tpm.lock().channel().read_public(EK_HANDLE)?;
        let ek = ek.rsa_key().context("the EK of this TPM is no RSA key")?;
        let slot = TpmSlot {
            owner: place.name.clone(),
            state,
            running: Mutex::new(Some(tpm.unshare().context("the TPM is still in use after the boot")?)),
        };
        if sleep {
            slot.sleep()?;
        }
        Ok(LightHost::new(
            place,
            vsm_key.context("a light host without VSM")?,
            Part::Tpm {
                tpm: Arc::new(slot),
                boot_log,
                ek_certificate,
                ek_sha256: sha256(&ek.spki_der()),
            },
            tally,
        ))
    }

    /// The host of `place` with its host key.
    pub(super) fn with_keys(place: &Place, tally: &Arc<Tally>) -> anyhow::Result<LightHost> {
        let folder = place.folder.join(KEY);
        let vsm_key = vsm::parse_rsa1(&fs::read(folder.join(VSM_KEY))?).context("its VSM key")?;
        let key = host_key(&folder)?;
        Ok(LightHost::new(place, vsm_key, Part::Key(Arc::new(key)), tally))
    }

    fn new(place: &Place, vsm_key: RsaPublicKey, part: Part, tally: &Arc<Tally>) -> LightHost {
        LightHost {
            name: place.name.clone(),
            part,
            vsm_key,
            held: Mutex::default(),
            tally: tally.clone(),
        }
    }

    /// What registers it: the EK certificate, or the host key's SubjectPublicKeyInfo.
    pub(super) fn registration(&self) -> Vec<u8> {
        match &self.part {
            Part::Tpm { ek_certificate, .. } => ek_certificate.clone(),
            Part::Key(key) => key.public().spki_der(),
        }
    }

    /// SHA-256 of the endorsement key that its TPM really has.
    pub(super) fn ek_sha256(&self) -> Option<[u8; 32]> {
        match &self.part {
            Part::Tpm { ek_sha256, .. } => Some(*ek_sha256),
            Part::Key(_) => None,
        }
    }

    /// Process of its TPM, while that runs.
    pub(super) fn tpm_process(&self) -> Option<u32> {
        match &self.part {
            Part::Tpm { tpm, .. } => tpm.running().as_ref().map(Swtpm::process_id),
            Part::Key(_) => None,
        }
    }

    /// Lets its TPM sleep until it is needed. Blocks.
    pub(super) fn sleep(&self) -> Result<(), SwtpmError> {
        match &self.part {
            Part::Tpm { tpm, .. } => tpm.sleep(),
            Part::Key(_) => Ok(()),
        }
    }

    /// It was attested.
    pub(super) fn holds(&self, health: Health) {
        *self.held() = Held {
            health: Some(health),
            gave_up: None,
        };
    }

    /// It gave up because of `error`. A refusal is a verdict and leaves it without a certificate; a service that
    /// was not reached has said nothing (MS-HGSA 3.2.5).
    pub(super) fn fails(&self, error: &AttestError) {
        let mut held = self.held();
        held.gave_up = Some(self.reason(error));
        if matches!(error, AttestError::Refused(..)) {
            held.health = None;
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From when on its certificate is to be renewed; none without one.
    pub(super) fn due_at(&self) -> Option<UnixTime> {
        self.held().health.as_ref().map(Health::due_at)
    }

    /// Judges its certificate as key protection would: signed by one of `signers`, valid now, of this mode, for
    /// this host's own VSM key. Answers its serial number.
    pub(super) fn verify(
        &self,
        signers: &[TrustedSigner],
        now: UnixTime,
        mode: AttestationMode,
    ) -> Result<String, String> {
        let held = self.held();
        let why = || held.gave_up.clone().unwrap_or_else(|| "it has not attested".to_owned());
        let health = held.health.as_ref().ok_or_else(why)?;
        let rules = AcceptanceRules { modes: vec![mode] };
        let accepted = health.encryption.accept(signers, now, &rules);
        let certified = accepted.map_err(|e| held.gave_up.clone().unwrap_or_else(|| e.to_string()))?;
        if *certified.encryption_key() != self.vsm_key.clone().into() {
            return Err("the certificate is for another key".to_owned());
        }
        Ok(certified.serial().to_owned())
    }

    /// Notes that an attempt is made again because of `error`.
    pub(super) fn note_retry(&self, error: &AttestError) {
        let unanswered = matches!(error, AttestError::Client(error) if error.is_no_contact());
        self.tally.note(self.reason(error), !unanswered);
    }

    /// Why an attestation failed, in words that are the same for every host it happens to.
    fn reason(&self, error: &AttestError) -> String {
        Outcome::failed(error).detail.replace(&self.name, "the host")
    }

    /// The boot log, for the baseline; none in host-key mode.
    pub(super) fn model(&self) -> Option<&[u8]> {
        match &self.part {
            Part::Tpm { boot_log, .. } => Some(boot_log),
            Part::Key(_) => None,
        }
    }
}

impl TpmSlot {
    fn running(&self) -> MutexGuard<'_, Option<Swtpm>> {
        // A panic elsewhere leaves the TPM as usable as before: commands are whole.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A handle of the command channel; wakes the TPM if it sleeps.
    fn channel(&self) -> Result<TpmChannel, SwtpmError> {
        let mut running = self.running();
        let tpm = match running.take() {
            Some(tpm) => tpm,
            None => {
                let mut tpm = Swtpm::start(&self.owner, &self.state, None)?;
                tpm.resume(boot::STARTUP_LOCALITY)?;
                tpm
            }
        };
        running.insert(tpm).another_channel()
    }

    fn sleep(&self) -> Result<(), SwtpmError> {
        match self.running().take() {
            Some(tpm) => tpm.suspend(),
            None => Ok(()),
        }
    }
}

impl HostSide for LightHost {
    fn name(&self) -> &str {
        &self.name
    }

    fn boot_log(&self) -> Result<Vec<u8>, AttestError> {
        match &self.part {
            Part::Tpm { boot_log, .. } => Ok(boot_log.clone()),
            Part::Key(_) => Err(NO_TPM),
        }
    }

    fn ek_certificate(&self) -> Result<Option<Vec<u8>>, AttestError> {
        match &self.part {
            Part::Tpm { ek_certificate, .. } => Ok(Some(ek_certificate.clone())),
            Part::Key(_) => Err(NO_TPM),
        }
    }

    fn tpm(&self) -> impl FnOnce() -> Result<TpmChannel, AttestError> + Send + 'static {
        let tpm = match &self.part {
            Part::Tpm { tpm, .. } => Some(tpm.clone()),
            Part::Key(_) => None,
        };
        move || {
            tpm.ok_or(NO_TPM)?.channel().map_err(|error| match error {
                SwtpmError::Channel(error) => AttestError::Tpm(error),
                other => AttestError::Host(other.to_string()),
            })
        }
    }

    fn host_key(&self) -> Result<Arc<RsaPrivateKey>, AttestError> {
        match &self.part {
            Part::Key(key) => Ok(key.clone()),
            Part::Tpm { .. } => Err(AttestError::Mode("this light host was made for TPM mode")),
        }
    }

    async fn vsm_encryption_key(&self) -> Result<Vec<u8>, AttestError> {
        Ok(vsm::encode_rsa1(&self.vsm_key))
    }

    fn tries_again(&self, _: u32, error: &AttestError) {
        self.note_retry(error);
    }
}

const NO_TPM: AttestError = AttestError::Mode("this light host was made for host-key mode and has no TPM");
