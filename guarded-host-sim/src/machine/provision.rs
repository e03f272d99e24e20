//! What firmware and Windows see to at every start, before anything of the host's administrator runs: the platform
//! hierarchy is off, and the endorsement key is at its handle, though somebody removed or replaced it.

use anyhow::{Context, ensure};
use hgs_protocol::{
    crypto::RsaPublicKey,
    tpm::{EK_HANDLE, RH_PLATFORM, ResponseCode, command, response::Response},
};
use x509_cert::{
    Certificate,
    der::{Decode, Encode},
};

use crate::{
    swtpm::Swtpm,
    tpm_channel::{ChannelError, TpmChannel},
};

/// Provisions a TPM that has just been started.
pub fn provision(tpm: &mut Swtpm) -> anyhow::Result<()> {
    let certified = certified_key(&tpm.ek_certificate()?)?;
    let channel = tpm.channel();
    if key_at(channel, EK_HANDLE)?.as_ref() != Some(&certified) {
        make_endorsement_key(channel, &certified)
            .context("the TPM does not let its endorsement key be put back; clear the TPM")?;
    }
    channel
        .call_with_empty_password(&command::disable_platform_hierarchy())
        .context("the platform hierarchy cannot be disabled")?;
    Ok(())
}

/// TPM2_Clear as firmware does it (physical presence): storage hierarchy, counters and persistent keys are gone. What
/// [`provision`] puts back comes afterwards.
pub fn clear(tpm: &mut Swtpm) -> Result<(), ChannelError> {
    tpm.channel()
        .call_with_empty_password(&command::clear(RH_PLATFORM))
        .map(drop)
}

fn certified_key(certificate: &[u8]) -> anyhow::Result<RsaPublicKey> {
    let parsed = Certificate::from_der(certificate).context("the EK certificate")?;
    let key = parsed.tbs_certificate.subject_public_key_info.to_der()?;
    RsaPublicKey::from_spki_der(&key).context("the EK certificate's key")
}

/// The RSA key at `handle`; none when there is nothing or something else.
fn key_at(channel: &mut TpmChannel, handle: u32) -> Result<Option<RsaPublicKey>, ChannelError> {
    match channel.read_public(handle) {
        Ok(public) => Ok(public.rsa_key().filter(|_| public.looks_like_ek()).cloned()),
        Err(ChannelError::Tpm(_)) => Ok(None),
        Err(other) => Err(other),
    }
}

fn make_endorsement_key(channel: &mut TpmChannel, certified: &RsaPublicKey) -> anyhow::Result<()> {
    match channel.call_with_empty_password(&command::evict_control(EK_HANDLE, EK_HANDLE)) {
        Err(e) if e.refusal() != Some(ResponseCode::HANDLE) => return Err(e.into()),
        _ => {}
    }
    let answer = channel.call_with_empty_password(&command::create_primary_endorsement_key())?;
    let object = Response::parse_with_handle(&answer)?.returned_handle()?;
    channel.call_with_empty_password(&command::evict_control(object, EK_HANDLE))?;
    channel.call(&command::flush_context(object))?;
    let made = key_at(channel, EK_HANDLE)?;
    ensure!(
        made.as_ref() == Some(certified),
        "the TPM makes another key than the certificate is for"
    );
    Ok(())
}
