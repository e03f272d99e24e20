//! What the agent may ask the VBS store: u32 length (big-endian), then JSON, both ways.
//!
//! The agent is an adversary. No reply carries a key in the clear, no request configures the
//! store, and every request is answered in full before the next one is read.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
};

use hgs_protocol::{protector::MAX_PROTECTOR, wire::kps::MAX_RESPONSE};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::vm::{
    package::LARGEST_PACKAGE,
    request::{VmReply, VmRequest, in_base64},
};

/// A question to the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", content = "about", rename_all = "snake_case", deny_unknown_fields)]
pub enum StoreRequest {
    /// The public VSM keys and the store's remarks.
    Describe,
    /// Something about a VM.
    Vm(VmRequest),
}

/// The store's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "reply", rename_all = "snake_case")]
pub enum StoreReply {
    /// To [`StoreRequest::Describe`].
    Description {
        /// Public VSM encryption key, `RSA1` blob, hex.
        encryption_key: String,
        /// Public VSM signing key, `RSA1` blob, hex.
        signing_key: String,
        /// What an operator should know.
        remarks: Vec<String>,
    },
    /// To [`StoreRequest::Vm`].
    Vm(VmReply),
    /// The request was refused; the text is for people and holds no secret.
    Refused {
        /// Why.
        reason: String,
    },
}

/// The agent's end of the socket.
#[derive(Debug)]
pub struct StoreClient(UnixStream);

impl StoreClient {
    /// Connects to the store's socket.
    pub fn connect(path: &Path) -> io::Result<StoreClient> {
        UnixStream::connect(path).map(StoreClient)
    }

    /// One question, one answer.
    pub fn ask(&mut self, request: &StoreRequest) -> io::Result<StoreReply> {
        write_frame(&mut self.0, request)?;
        read_frame(&mut self.0)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

/// Writes one message.
pub(super) fn write_frame<T: Serialize>(stream: &mut UnixStream, message: &T) -> io::Result<()> {
    let json = serde_json::to_vec(message)?;
    if json.len() > MAX_FRAME {
        return Err(too_long(json.len()));
    }
    let length = u32::try_from(json.len()).map_err(|_| too_long(json.len()))?;
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(&json)
}

/// Reads one message; `None` when the peer has closed the connection between two.
pub(super) fn read_frame<T: DeserializeOwned>(stream: &mut UnixStream) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    if stream.read(&mut length[..1])? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut length[1..])?;
    let length = u32::from_be_bytes(length);
    let bytes = usize::try_from(length).unwrap_or(usize::MAX);
    if bytes > MAX_FRAME {
        return Err(too_long(bytes));
    }
    let mut json = Vec::new();
    let read = stream.take(u64::from(length)).read_to_end(&mut json)?;
    if read != bytes {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(serde_json::from_slice(&json)?))
}

fn too_long(bytes: usize) -> io::Error {
    let text = format!("a message of {bytes} bytes is longer than the {MAX_FRAME} that a VBS store takes");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Room for the largest request, in base64: protector, answer and package.
const MAX_FRAME: usize = in_base64(MAX_PROTECTOR) + in_base64(MAX_RESPONSE) + in_base64(LARGEST_PACKAGE) + (64 << 10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::request::Blob;

    #[test]
    fn messages_arrive_as_they_were_sent() {
        let (mut one, mut two) = UnixStream::pair().unwrap();
        let description = StoreReply::Description {
            encryption_key: "00".to_owned(),
            signing_key: "01".to_owned(),
            remarks: vec!["new".to_owned()],
        };
        let package = Blob(vec![1, 2]);
        for reply in [description, StoreReply::Vm(VmReply::Saved { package })] {
            write_frame(&mut one, &reply).unwrap();
            assert_eq!(read_frame::<StoreReply>(&mut two).unwrap(), Some(reply));
        }
        for request in [StoreRequest::Describe, StoreRequest::Vm(VmRequest::List)] {
            write_frame(&mut one, &request).unwrap();
            assert_eq!(read_frame::<StoreRequest>(&mut two).unwrap(), Some(request));
        }
        one.write_all(&[0xFF; 4]).unwrap();
        let refused = read_frame::<StoreRequest>(&mut two).unwrap_err();
        assert!(refused.to_string().contains("longer than the"), "{refused}");
        drop(one);
    }
}
