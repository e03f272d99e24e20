//! A way to a TPM over a unix socket: to swtpm itself, or to the relay that a machine offers its
//! store and its agent. Sends whole commands, resends when the TPM asks for it, and knows nothing
//! about what they mean.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::Duration,
};

use hgs_protocol::tpm::{
    MAX_MESSAGE, ResponseCode, TpmError,
    command::Call,
    public::Public,
    response::{self, Response},
};

/// Why a TPM gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The TPM's process has died, hangs or closed the connection.
    #[error("the TPM of {owner} does not answer")]
    Silent {
        /// Whose TPM.
        owner: String,
        /// The system's reason.
        #[source]
        cause: io::Error,
    },
    /// The TPM kept asking to send the command again.
    #[error("the TPM of {owner} is busy and stays so")]
    Busy {
        /// Whose TPM.
        owner: String,
    },
    /// The TPM refused, or its answer is malformed or not authentic.
    #[error(transparent)]
    Tpm(#[from] TpmError),
}

impl ChannelError {
    /// The TPM's own refusal, without the number of what it complains about.
    pub fn refusal(&self) -> Option<ResponseCode> {
        match self {
            ChannelError::Tpm(TpmError::Refused(code)) => Some(code.base()),
            _ => None,
        }
    }
}

/// A connection to a TPM. One command at a time.
#[derive(Debug)]
pub struct TpmChannel {
    owner: String,
    stream: UnixStream,
}

impl TpmChannel {
    /// Connects to the socket at `path`. `owner` names the host or VM in errors.
    pub fn connect(path: &Path, owner: &str) -> Result<TpmChannel, ChannelError> {
        let silent = |cause| ChannelError::Silent {
            owner: owner.to_owned(),
            cause,
        };
        TpmChannel::over(UnixStream::connect(path).map_err(silent)?, owner)
    }

    /// Speaks over a connection that is there already.
    pub fn over(stream: UnixStream, owner: &str) -> Result<TpmChannel, ChannelError> {
        let silent = |cause| ChannelError::Silent {
            owner: owner.to_owned(),
            cause,
        };
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(silent)?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT)).map_err(silent)?;
        Ok(TpmChannel {
            owner: owner.to_owned(),
            stream,
        })
    }

    /// The same connection once more; see [`crate::swtpm::Swtpm::another_channel`].
    pub(crate) fn another(&self) -> Result<TpmChannel, ChannelError> {
        let stream = self.stream.try_clone().map_err(|cause| ChannelError::Silent {
            owner: self.owner.clone(),
            cause,
        })?;
        TpmChannel::over(stream, &self.owner)
    }

    /// Sends a whole command and returns the whole response, whatever its code. While the TPM
    /// answers TPM_RC_RETRY the command is sent again.
    pub fn transact(&mut self, command: &[u8]) -> Result<Vec<u8>, ChannelError> {
        let mut pause = Duration::from_millis(1);
        for _ in 0..RETRIES {
            let answer = self.exchange(command).map_err(|cause| ChannelError::Silent {
                owner: self.owner.clone(),
                cause,
            })?;
            if response::code(&answer)? != ResponseCode::RETRY {
                return Ok(answer);
            }
            thread::sleep(pause);
            pause *= 2;
        }
        Err(ChannelError::Busy {
            owner: self.owner.clone(),
        })
    }

    /// Sends `call` without authorisation and returns the successful response.
    pub fn call(&mut self, call: &Call) -> Result<Vec<u8>, ChannelError> {
        self.expect_success(&call.encode())
    }

    /// Sends `call` under an empty password and returns the successful response.
    pub fn call_with_empty_password(&mut self, call: &Call) -> Result<Vec<u8>, ChannelError> {
        self.expect_success(&call.encode_with_password(&[]))
    }

    /// Sends a whole command; a refusal is an error.
    pub fn expect_success(&mut self, command: &[u8]) -> Result<Vec<u8>, ChannelError> {
        let answer = self.transact(command)?;
        match response::code(&answer)? {
            ResponseCode::SUCCESS => Ok(answer),
            refused => Err(TpmError::Refused(refused).into()),
        }
    }

    /// The public area of the object at `handle`.
    pub fn read_public(&mut self, handle: u32) -> Result<Public, ChannelError> {
        let answer = self.call(&hgs_protocol::tpm::command::read_public(handle))?;
        Ok(response::read_public(Response::parse(&answer)?.parameters)?)
    }

    fn exchange(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        self.stream.write_all(command)?;
        read_message(&mut self.stream)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

/// Reads one command or response: ten bytes of header that say how long it is. `None` at the end
/// of the stream.
pub(crate) fn read_message(stream: &mut UnixStream) -> io::Result<Option<Vec<u8>>> {
    let mut header = [0; 10];
    if stream.read(&mut header[..1])? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut header[1..])?;
    let [_, _, a, b, c, d, ..] = header;
    let size = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    if !(header.len()..=MAX_MESSAGE).contains(&size) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; size];
    message[..10].copy_from_slice(&header);
    stream.read_exact(&mut message[10..])?;
    Ok(Some(message))
}

/// Making a key takes a software TPM seconds on a busy machine.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
const RETRIES: usize = 12;
