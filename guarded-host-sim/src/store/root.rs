//! The store's root key: 32 random bytes, sealed by the TPM under the PCRs of this configuration.
//!
//! It crosses to and from the TPM only encrypted, under sessions salted to the EK. Once the boot
//! has gone on to measure the VSM keys and the caps, nobody can unseal it until the next boot.

use std::path::Path;

use hgs_protocol::{
    crypto::{RsaPublicKey, hkdf_sha256},
    env::Random,
    secret::Secret32,
    tpm::{
        EK_HANDLE, PcrSelection, ResponseCode, SRK_HANDLE, TpmError,
        command::{self, Call, SessionKind},
        response::{self, Created, Response},
        session::{AUDIT, CONTINUE_SESSION, DECRYPT, ENCRYPT, SaltedSession},
    },
};
use zeroize::Zeroizing;

use crate::tpm_channel::{ChannelError, TpmChannel};

/// The PCRs that bind the root key: 0-4, 7, 11 and 12 of the SHA-256 bank.
pub const SEALING_PCRS: PcrSelection = PcrSelection::from_mask(0x189F);

/// NV index of the counter that ages the sealed state.
pub(super) const COUNTER_INDEX: u32 = 0x0150_0001;

/// Why the root key cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// The configuration is not the one that the key was sealed to.
    #[error("the host's measured configuration is not the one that the VBS store was sealed to")]
    OtherConfiguration,
    /// The file is not a sealed key of this TPM.
    #[error("the sealed root key is damaged or of another TPM")]
    Damaged,
    /// The TPM has been cleared since.
    #[error("the TPM was cleared, and with it the key under which the VBS store was sealed")]
    Cleared,
    /// The TPM.
    #[error(transparent)]
    Tpm(#[from] ChannelError),
}

/// A connection to the TPM with the key to which sessions are salted.
pub(super) struct StoreTpm {
    channel: TpmChannel,
    ek: RsaPublicKey,
    ek_name: Vec<u8>,
}

impl StoreTpm {
    pub(super) fn new(mut channel: TpmChannel) -> Result<StoreTpm, ChannelError> {
        let public = channel.read_public(EK_HANDLE)?;
        match public.rsa_key() {
            Some(key) if public.looks_like_ek() => Ok(StoreTpm {
                ek: key.clone(),
                ek_name: public.name()?,
                channel,
            }),
            _ => Err(TpmError::Value("a key at the EK's handle that is no EK").into()),
        }
    }

    /// Seals a new root key to the present values of [`SEALING_PCRS`].
    pub(super) fn seal_root(&mut self, root: &Secret32, rng: &mut dyn Random) -> Result<SealedRoot, ChannelError> {
        let parent = self.storage_key(None)?;
        let read = command::pcr_read(SEALING_PCRS);
        let parameters = self.under_session(&read, &[], AUDIT, rng)?;
        let values: Vec<[u8; 32]> = response::pcr_read(&parameters, SEALING_PCRS)?
            .values
            .into_iter()
            .map(|(_, value)| value)
            .collect();
        let policy = response::policy_pcr_digest(SEALING_PCRS, &values);
        let create = command::create_sealed(SRK_HANDLE, &parent, root.expose(), &policy);
        let parameters = self.under_session(&create, &[], DECRYPT, rng)?;
        Ok(SealedRoot {
            sealed: response::create(&parameters)?,
            storage_key: parent,
            ek: self.ek_name.clone(),
        })
    }

    /// Unseals the root key, if the PCRs allow it.
    pub(super) fn unseal_root(&mut self, root: &SealedRoot, rng: &mut dyn Random) -> Result<Secret32, RootError> {
        if root.ek != self.ek_name {
            return Err(RootError::Damaged);
        }
        if self.storage_key(Some(&root.storage_key))? != root.storage_key {
            return Err(RootError::Cleared);
        }
        let sealed = &root.sealed;
        let load = command::load(SRK_HANDLE, &sealed.private, &sealed.public);
        let loaded = match self.channel.call_with_empty_password(&load) {
            Err(e) if e.refusal() == Some(INTEGRITY) => return Err(RootError::Damaged),
            other => other?,
        };
        let loaded = Response::parse_with_handle(&loaded).map_err(ChannelError::from)?;
        let object = loaded.returned_handle().map_err(ChannelError::from)?;
        let name = response::load(loaded.parameters).map_err(ChannelError::from)?;
        let unsealed = self.unseal(object, &name, rng);
        self.channel.call(&command::flush_context(object))?;
        match unsealed {
            Ok(data) => Secret32::from_slice(&data).ok_or(RootError::Damaged),
            Err(e) if e.refusal() == Some(ResponseCode::POLICY_FAIL) => Err(RootError::OtherConfiguration),
            Err(e) => Err(e.into()),
        }
    }

    fn unseal(&mut self, object: u32, name: &[u8], rng: &mut dyn Random) -> Result<Zeroizing<Vec<u8>>, ChannelError> {
        let mut session = self.start(SessionKind::Policy, rng)?;
        let policy = command::policy_pcr(session.handle(), SEALING_PCRS);
        let unseal = command::unseal(object, name);
        let run = |channel: &mut TpmChannel, session: &mut SaltedSession, rng: &mut dyn Random| {
            channel.call(&policy)?;
            let command = session.command(&unseal, &[], CONTINUE_SESSION | ENCRYPT, rng)?;
            let answer = channel.expect_success(&command)?;
            let parameters = session.accept(&unseal, &[], &answer)?;
            Ok(response::unseal(&parameters)?)
        };
        let result = run(&mut self.channel, &mut session, rng);
        self.channel.call(&command::flush_context(session.handle()))?;
        result
    }

    /// Defines the counter anew under an authorisation value of `root`, and increments it once.
    pub(super) fn found_counter(&mut self, root: &Secret32, rng: &mut dyn Random) -> Result<u64, ChannelError> {
        match self
            .channel
            .call_with_empty_password(&command::nv_undefine(COUNTER_INDEX))
        {
            Err(e) if e.refusal() != Some(ResponseCode::HANDLE) => return Err(e),
            _ => {}
        }
        let auth = counter_auth(root);
        let define = command::nv_define_counter(COUNTER_INDEX, auth.as_ref());
        self.under_session(&define, &[], DECRYPT, rng)?;
        let increment = command::nv_increment(COUNTER_INDEX, false);
        // The first increment changes the index's name, so its response is checked by what follows.
        let mut session = self.start(SessionKind::Encrypting, rng)?;
        let command = session.command(&increment, auth.as_ref(), 0, rng)?;
        self.channel.expect_success(&command)?;
        self.counter(root, rng)
    }

    /// The counter's value, authenticated by the TPM.
    pub(super) fn counter(&mut self, root: &Secret32, rng: &mut dyn Random) -> Result<u64, ChannelError> {
        let read = command::nv_read_counter(COUNTER_INDEX);
        let parameters = self.under_session(&read, counter_auth(root).as_ref(), 0, rng)?;
        Ok(response::nv_read_counter(&parameters)?)
    }

    /// Increments the counter.
    pub(super) fn increment(&mut self, root: &Secret32, rng: &mut dyn Random) -> Result<(), ChannelError> {
        let increment = command::nv_increment(COUNTER_INDEX, true);
        self.under_session(&increment, counter_auth(root).as_ref(), 0, rng)?;
        Ok(())
    }

    /// One command under a session of its own, which ends with it. A hibernation that came in between has ended the
    /// session too, and then nothing was done yet: there is a new one.
    fn under_session(
        &mut self,
        call: &Call,
        auth: &[u8],
        attributes: u8,
        rng: &mut dyn Random,
    ) -> Result<Zeroizing<Vec<u8>>, ChannelError> {
        match self.once_under_session(call, auth, attributes, rng) {
            Err(error) if error.refusal() == Some(NO_SUCH_SESSION) => {
                self.once_under_session(call, auth, attributes, rng)
            }
            other => other,
        }
    }

    fn once_under_session(
        &mut self,
        call: &Call,
        auth: &[u8],
        attributes: u8,
        rng: &mut dyn Random,
    ) -> Result<Zeroizing<Vec<u8>>, ChannelError> {
        let mut session = self.start(SessionKind::Encrypting, rng)?;
        let command = session.command(call, auth, attributes, rng)?;
        match self.channel.expect_success(&command) {
            Ok(answer) => Ok(session.accept(call, auth, &answer)?),
            Err(error) => {
                // A refused command leaves its session open.
                let _ = self.channel.call(&command::flush_context(session.handle()));
                Err(error)
            }
        }
    }

    fn start(&mut self, kind: SessionKind, rng: &mut dyn Random) -> Result<SaltedSession, ChannelError> {
        let (command, pending) = SaltedSession::start_as(kind, EK_HANDLE, &self.ek, rng)?;
        let answer = self.channel.expect_success(&command)?;
        Ok(pending.started(&answer)?)
    }

    /// Sees to it that the storage key is at its handle, and gives its name. A key of somebody else's there (the fabric
    /// administrator may put any) is replaced by the TPM's own, which is the same as long as the TPM is not cleared.
    /// `wanted` is the name of the one under which the root key was sealed.
    fn storage_key(&mut self, wanted: Option<&[u8]>) -> Result<Vec<u8>, ChannelError> {
        match self.channel.read_public(SRK_HANDLE) {
            Ok(public) => match public.name() {
                Ok(name) if wanted.map_or(public.is_fixed_storage_key(), |wanted| wanted == name) => return Ok(name),
                _ => self.evict()?,
            },
            Err(e) if e.refusal() == Some(ResponseCode::HANDLE) => {}
            // A public area that is not even read here.
            Err(ChannelError::Tpm(_)) => self.evict()?,
            Err(other) => return Err(other),
        }
        let answer = self
            .channel
            .call_with_empty_password(&command::create_primary_storage_key())?;
        let object = Response::parse_with_handle(&answer)?.returned_handle()?;
        self.channel
            .call_with_empty_password(&command::evict_control(object, SRK_HANDLE))?;
        self.channel.call(&command::flush_context(object))?;
        Ok(self.channel.read_public(SRK_HANDLE)?.name()?)
    }

    fn evict(&mut self) -> Result<(), ChannelError> {
        self.channel
            .call_with_empty_password(&command::evict_control(SRK_HANDLE, SRK_HANDLE))
            .map(drop)
    }
}

/// The root key as it lies on the disk: sealed by the TPM, with the names of the keys that tell whether this is still
/// the TPM that sealed it.
pub(super) struct SealedRoot {
    sealed: Created,
    storage_key: Vec<u8>,
    ek: Vec<u8>,
}

impl SealedRoot {
    /// Reads a file of [`SealedRoot::encode`].
    pub(super) fn read(path: &Path) -> Result<SealedRoot, RootError> {
        let bytes = std::fs::read(path).map_err(|_| RootError::Damaged)?;
        let mut rest = bytes.as_slice();
        let mut field = || -> Option<&[u8]> {
            let length = usize::from(u16::from_be_bytes(*rest.first_chunk()?)) + 2;
            let (field, after) = rest.split_at_checked(length)?;
            rest = after;
            Some(field)
        };
        let mut split = || {
            Some(SealedRoot {
                sealed: Created {
                    private: field()?.to_vec(),
                    public: field()?.to_vec(),
                },
                storage_key: field()?[2..].to_vec(),
                ek: field()?[2..].to_vec(),
            })
        };
        split().filter(|_| rest.is_empty()).ok_or(RootError::Damaged)
    }

    /// TPM2B_PRIVATE, TPM2B_PUBLIC, and as TPM2B_NAME the storage key and the endorsement key.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = [self.sealed.private.as_slice(), self.sealed.public.as_slice()].concat();
        for name in [&self.storage_key, &self.ek] {
            out.extend(u16::try_from(name.len()).unwrap_or(u16::MAX).to_be_bytes());
            out.extend_from_slice(name);
        }
        out
    }
}

/// The counter's authorisation value. A TPM drops trailing zeros, so the last byte is never zero.
fn counter_auth(root: &Secret32) -> Zeroizing<[u8; 32]> {
    let mut auth = Zeroizing::new(*hkdf_sha256(root, "HGS-STORE-COUNTER", &[]).expose());
    if let Some(last) = auth.last_mut() {
        *last |= 1;
    }
    auth
}

const INTEGRITY: ResponseCode = ResponseCode(0x09F);
/// TPM_RC_REFERENCE_S0: the command's first session does not exist.
const NO_SUCH_SESSION: ResponseCode = ResponseCode(0x918);
