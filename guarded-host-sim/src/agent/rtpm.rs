//! The host's side of the RTPM exchange (protocol: MS-HGSA 2.2.2.25 to 2.2.2.27): runs the server's
//! commands and answers its requests, blob by blob, and nothing beyond what attestation needs.
//! The host must not become a TPM oracle for its server.

use hgs_protocol::{
    tpm::{
        EK_HANDLE, RH_NULL, TpmError,
        command::{CommandCode, CommandHeader, flush_context},
        response::Response,
    },
    wire::rtpm::{Blob, Context, ContextError, DeviceInfo},
};

use crate::tpm_channel::{ChannelError, TpmChannel};

/// Why the host does not answer a context.
#[derive(Debug, thiserror::Error)]
pub enum RtpmError {
    /// The context does not parse.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// A command is malformed.
    #[error("the server's TPM command is malformed: {0}")]
    Command(#[source] TpmError),
    /// A command outside attestation's list.
    #[error("the server asks for TPM command 0x{0:03x}, which this host does not run for a server")]
    Code(u32),
    /// A handle outside the ranges that attestation needs.
    #[error("the server's TPM command uses handle 0x{0:08x}, which this host does not allow")]
    Handle(u32),
    /// An answer where a request should be.
    #[error("the server sent an answer where a request should be")]
    Direction,
    /// The TPM.
    #[error(transparent)]
    Tpm(#[from] ChannelError),
}

/// One attempt's exchange; remembers the sessions it opened.
pub(super) struct Exchange {
    tpm: TpmChannel,
    boot_log: Vec<u8>,
    sessions: Vec<u32>,
}

impl Exchange {
    pub(super) fn new(tpm: TpmChannel, boot_log: Vec<u8>) -> Exchange {
        Exchange {
            tpm,
            boot_log,
            sessions: Vec::new(),
        }
    }

    /// Answers the server's context: header, EncContext and EncryptedBuffer come back unchanged,
    /// every blob is replaced by its answer in the same place.
    pub(super) fn answer(&mut self, context: &[u8]) -> Result<Vec<u8>, RtpmError> {
        let mut context = Context::parse(context)?;
        for blob in &mut context.blobs {
            *blob = match blob {
                Blob::BootLogWanted => Blob::BootLog(self.boot_log.clone()),
                Blob::DeviceInfoWanted => Blob::DeviceInfo(DEVICE),
                Blob::Tpm(command) => Blob::Tpm(self.run(command)?),
                Blob::BootLog(_) | Blob::DeviceInfo(_) => return Err(RtpmError::Direction),
            };
        }
        Ok(context.encode())
    }

    fn run(&mut self, command: &[u8]) -> Result<Vec<u8>, RtpmError> {
        let header = CommandHeader::parse(command).map_err(RtpmError::Command)?;
        check(&header)?;
        let answer = self.tpm.transact(command)?;
        if header.code == CommandCode::START_AUTH_SESSION
            && let Ok(Some(handle)) = Response::parse_with_handle(&answer).map(|r| r.handle)
        {
            self.sessions.push(handle);
        }
        // The handle of a session that has ended may be somebody else's next one: the store's, say.
        let kept = Response::parse(&answer).and_then(|response| response.sessions_kept());
        for (session, kept) in header.sessions.iter().zip(kept.unwrap_or_default()) {
            self.sessions.retain(|open| kept || open != session);
        }
        Ok(answer)
    }
}

impl Drop for Exchange {
    /// A session that the server did not end would occupy one of the TPM's few places.
    fn drop(&mut self) {
        for session in &self.sessions {
            let _ = self.tpm.call(&flush_context(*session));
        }
    }
}

/// CreatePrimary and Create are on the specification's list too, but our server does not use them.
fn check(header: &CommandHeader) -> Result<(), RtpmError> {
    let started = header.code == CommandCode::START_AUTH_SESSION;
    match header.code {
        CommandCode::READ_PUBLIC | CommandCode::START_AUTH_SESSION | CommandCode::PCR_READ => {}
        other => return Err(RtpmError::Code(other.0)),
    }
    for handle in &header.handles {
        let allowed = *handle >> 24 == 0x80 || *handle == EK_HANDLE || (started && *handle == RH_NULL);
        if !allowed {
            return Err(RtpmError::Handle(*handle));
        }
    }
    match header.sessions.iter().find(|s| **s >> 24 != 0x02) {
        Some(other) => Err(RtpmError::Handle(*other)),
        None => Ok(()),
    }
}

/// TPM 2.0, an emulator.
const DEVICE: DeviceInfo = DeviceInfo {
    tpm_version: 2,
    interface_type: 4,
    implementation_version: 0,
};

#[cfg(test)]
mod tests {
    use hgs_protocol::tpm::{PcrSelection, command};

    use super::*;

    fn verdict(command: &[u8]) -> Result<(), RtpmError> {
        check(&CommandHeader::parse(command).unwrap())
    }

    #[test]
    fn only_what_attestation_needs_is_run() {
        assert!(verdict(&command::read_public(EK_HANDLE).encode()).is_ok());
        assert!(verdict(&command::pcr_read(PcrSelection::of(&[7]).unwrap()).encode()).is_ok());
        let start = command::start_auth_session(command::SessionKind::Audit, EK_HANDLE, &[0; 32], &[1; 256]);
        assert!(verdict(&start.encode()).is_ok());
        for (refused, code) in [
            (command::unseal(0x8000_0000, &[]).encode_with_password(&[]), 0x15E),
            (command::pcr_extend(7, &[0; 32]).encode_with_password(&[]), 0x182),
            (command::create_primary_storage_key().encode_with_password(&[]), 0x131),
            (command::flush_context(0x0200_0000).encode(), 0x165),
        ] {
            assert!(matches!(verdict(&refused), Err(RtpmError::Code(c)) if c == code));
        }
        let other_key = command::read_public(0x8100_0001).encode();
        assert!(matches!(verdict(&other_key), Err(RtpmError::Handle(0x8100_0001))));
        let password = command::pcr_read(PcrSelection::of(&[7]).unwrap()).encode_with_password(&[]);
        assert!(matches!(verdict(&password), Err(RtpmError::Handle(0x4000_0009))));
    }
}
