//! Messages in the specifications' own field names, each field beside its bytes, for people. Judges nothing: what
//! does not parse is shown as bytes, with the reason.

mod certificate;
mod hgsa;
mod host;
mod key_protection;
mod rtpm;

use super::{
    journal::{Message, Party},
    model::step::ServiceName,
};

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Its type: `AttestationRequest`, `RollTransportKeyResponse`.
    pub kind: String,
    /// Where it is specified.
    pub section: &'static str,
    /// Its fields.
    pub fields: Vec<Field>,
}

/// One field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name in the specification.
    pub name: String,
    /// Its value for people; empty where the parts or the bytes say it all.
    pub value: String,
    /// Its bytes: decoded from base64 where the field is binary, as they stand in the message elsewhere.
    pub bytes: Vec<u8>,
    /// What it consists of.
    pub parts: Vec<Field>,
}

impl Field {
    /// A field without parts.
    fn leaf(name: impl Into<String>, value: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Field {
        Field {
            name: name.into(),
            value: value.into(),
            bytes: bytes.into(),
            parts: Vec::new(),
        }
    }

    /// A field with parts.
    fn of(name: impl Into<String>, bytes: impl Into<Vec<u8>>, parts: Vec<Field>) -> Field {
        Field {
            name: name.into(),
            value: String::new(),
            bytes: bytes.into(),
            parts,
        }
    }

    /// A field that should have had parts.
    fn unread(name: impl Into<String>, bytes: &[u8], why: impl std::fmt::Display) -> Field {
        Field::leaf(name, format!("not read: {why}"), bytes)
    }
}

/// The request in a message.
pub fn request(message: &Message) -> Decoded {
    match service(message) {
        _ if message.request.is_empty() => Decoded {
            kind: format!("{} {}", message.method, last_segment(&message.path)),
            section: section_of_path(&message.path),
            fields: Vec::new(),
        },
        Some(ServiceName::Attestation) => hgsa::message(&message.request),
        Some(ServiceName::KeyProtection) => key_protection::message(&message.request),
        None => host::message(&message.request),
    }
}

/// The answer in a message, if there was one.
pub fn answer(message: &Message) -> Option<Decoded> {
    let answer = message.answer.as_ref()?;
    Some(match service(message) {
        _ if answer.body.is_empty() => Decoded {
            kind: format!("HTTP {}", answer.status),
            section: "",
            fields: Vec::new(),
        },
        Some(ServiceName::Attestation) if last_segment(&message.path).eq_ignore_ascii_case("signingCertificates") => {
            hgsa::signing_certificates(&answer.body)
        }
        Some(ServiceName::Attestation) => hgsa::message(&answer.body),
        Some(ServiceName::KeyProtection) => key_protection::message(&answer.body),
        None => host::message(&answer.body),
    })
}

fn service(message: &Message) -> Option<ServiceName> {
    match &message.to {
        Party::Service { service, .. } => Some(*service),
        Party::Host(_) => None,
    }
}

/// A message of no known type.
fn raw(body: &[u8]) -> Decoded {
    Decoded {
        kind: "a message of no known type".to_owned(),
        section: "",
        fields: vec![Field::leaf("body", format!("{} bytes", body.len()), body)],
    }
}

fn last_segment(path: &str) -> &str {
    let path = path.split('?').next().unwrap_or_default().trim_end_matches('/');
    path.rsplit('/').next().unwrap_or_default()
}

fn section_of_path(path: &str) -> &'static str {
    match last_segment(path).to_ascii_lowercase().as_str() {
        "getinfo" => "MS-HGSA 3.1.5.4",
        "signingcertificates" => "MS-HGSA 3.1.5.5",
        "metadata.xml" => "MS-KPS 3.1.5.1.2",
        _ => "",
    }
}

/// Takes fields off the front of bytes; every field that does not fit is an error, none is a panic.
struct Reader<'a>(&'a [u8]);

/// The bytes end inside a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bytes end inside {0}")]
struct Ends(&'static str);

impl<'a> Reader<'a> {
    fn take(&mut self, name: &'static str, count: usize) -> Result<&'a [u8], Ends> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Ends(name))?;
        self.0 = rest;
        Ok(taken)
    }

    /// A little-endian number of up to 8 bytes, as a field.
    fn little(&mut self, name: &'static str, count: usize, parts: &mut Vec<Field>) -> Result<usize, Ends> {
        let bytes = self.take(name, count)?;
        let value = bytes
            .iter()
            .rev()
            .fold(0u64, |value, byte| value.wrapping_shl(8) | u64::from(*byte));
        parts.push(Field::leaf(name, value.to_string(), bytes));
        usize::try_from(value).map_err(|_| Ends(name))
    }

    /// A big-endian number of up to 8 bytes, as a field in hex.
    fn big(&mut self, name: &'static str, count: usize, parts: &mut Vec<Field>) -> Result<u64, Ends> {
        let bytes = self.take(name, count)?;
        parts.push(Field::leaf(name, format!("0x{}", hex::encode(bytes)), bytes));
        Ok(bytes
            .iter()
            .fold(0u64, |value, byte| value.wrapping_shl(8) | u64::from(*byte)))
    }

    /// Bytes as a field.
    fn bytes(&mut self, name: &'static str, count: usize, parts: &mut Vec<Field>) -> Result<&'a [u8], Ends> {
        let bytes = self.take(name, count)?;
        parts.push(Field::leaf(name, "", bytes));
        Ok(bytes)
    }
}

/// A field of `bytes` whose parts `read` takes off; what does not fit is told in a last part.
fn parts_of(
    name: impl Into<String>,
    bytes: &[u8],
    read: impl FnOnce(&mut Reader<'_>, &mut Vec<Field>) -> Result<(), Ends>,
) -> Field {
    let (mut reader, mut parts) = (Reader(bytes), Vec::new());
    if let Err(error) = read(&mut reader, &mut parts) {
        parts.push(Field::unread("(the rest)", reader.0, error));
    } else if !reader.0.is_empty() {
        parts.push(Field::leaf("(what follows)", "", reader.0));
    }
    Field::of(name, bytes, parts)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::scenario::journal::Answered;

    fn message(service: ServiceName, path: &str, request: &[u8], body: &[u8]) -> Message {
        Message {
            step: None,
            at: Default::default(),
            took: Default::default(),
            from: "host01".to_owned(),
            to: Party::Service {
                hgs: "hgs".to_owned(),
                service,
            },
            method: "POST".to_owned(),
            path: path.to_owned(),
            request: request.to_vec(),
            answer: Some(Answered {
                status: 200,
                body: body.to_vec(),
            }),
            remark: None,
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(request in proptest::collection::vec(any::<u8>(), 0..200), body in ".*") {
            for service in [ServiceName::Attestation, ServiceName::KeyProtection] {
                for path in ["/Attestation/v2.0/attest", "/Attestation/v2.0/signingCertificates"] {
                    let message = message(service, path, &request, body.as_bytes());
                    let _ = super::request(&message);
                    prop_assert!(answer(&message).is_some());
                }
            }
        }
    }
}
