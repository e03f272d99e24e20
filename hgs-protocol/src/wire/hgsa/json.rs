//! The dialect of DataContractJsonSerializer, as far as the messages need it: objects whose first
//! member may be `__type`, without duplicate members, with binary as base64 or number arrays.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{NAMESPACE, SessionId};
use crate::health::CertificateKind;

/// Why a body is not one of the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Not UTF-8 JSON, no object at its top, or a member twice.
    #[error("the body is not a JSON object, or it has a member twice")]
    NotJson,
    /// `__type` is not the first member, or not in the expected namespace.
    #[error("__type must be the first member and lie in the attestation namespace")]
    Type,
    /// `__type` names no message that is read here.
    #[error("__type names no message that is expected here")]
    UnknownType,
    /// A member is missing or its value does not fit.
    #[error("the member {0} is missing or malformed")]
    Member(&'static str),
}

/// The members of one message, in the order in which they came.
pub(super) struct Members {
    members: Vec<(String, Value)>,
}

impl Members {
    pub(super) fn parse(body: &[u8]) -> Result<Members, JsonError> {
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        let Strict(members) = serde_json::from_slice(body).map_err(|_| JsonError::NotJson)?;
        Ok(Members { members })
    }

    /// The name before the namespace, when there is a `__type`.
    pub(super) fn type_name(&self) -> Result<Option<&str>, JsonError> {
        match self.members.iter().position(|(name, _)| name == "__type") {
            None => Ok(None),
            Some(0) => {
                let value = self.member("__type").and_then(Value::as_str);
                value
                    .and_then(|name| name.strip_suffix(NAMESPACE))
                    .map(Some)
                    .ok_or(JsonError::Type)
            }
            Some(_) => Err(JsonError::Type),
        }
    }

    fn member(&self, name: &str) -> Option<&Value> {
        self.members
            .iter()
            .find(|(other, _)| other == name)
            .map(|(_, value)| value)
    }

    pub(super) fn session(&self) -> Result<SessionId, JsonError> {
        let malformed = JsonError::Member("SessionId");
        let value = self.member("SessionId").ok_or(malformed)?;
        // Only the text form has 36 characters: 16 bytes in base64 have 24.
        if let Some(text) = value.as_str().filter(|text| text.len() == 36) {
            return Uuid::try_parse(text).map(SessionId).map_err(|_| malformed);
        }
        let bytes: [u8; 16] = bytes(value).and_then(|bytes| bytes.try_into().ok()).ok_or(malformed)?;
        Ok(SessionId(Uuid::from_bytes_le(bytes)))
    }

    pub(super) fn bytes(&self, name: &'static str) -> Result<Vec<u8>, JsonError> {
        self.member(name).and_then(bytes).ok_or(JsonError::Member(name))
    }

    pub(super) fn number(&self, name: &'static str) -> Result<u64, JsonError> {
        self.member(name).and_then(Value::as_u64).ok_or(JsonError::Member(name))
    }

    pub(super) fn boolean(&self, name: &'static str) -> Result<bool, JsonError> {
        self.member(name)
            .and_then(Value::as_bool)
            .ok_or(JsonError::Member(name))
    }

    pub(super) fn array(&self, name: &'static str) -> Result<&[Value], JsonError> {
        let array = self.member(name).and_then(Value::as_array);
        array.map(Vec::as_slice).ok_or(JsonError::Member(name))
    }

    /// RequestedContent as integers.
    pub(super) fn kinds(&self) -> Result<Vec<CertificateKind>, JsonError> {
        let name = "RequestedContent";
        let kinds = self
            .array(name)?
            .iter()
            .map(|value| value.as_u64().and_then(CertificateKind::from_code))
            .collect::<Option<Vec<_>>>()
            .ok_or(JsonError::Member(name))?;
        super::distinct(kinds.iter().copied())?;
        Ok(kinds)
    }

    pub(super) fn tuples<K>(
        &self,
        name: &'static str,
        kind: impl Fn(u64) -> Option<K>,
    ) -> Result<Vec<(K, Vec<u8>)>, JsonError> {
        self.array(name)?
            .iter()
            .map(|tuple| {
                let first = kind(tuple.get("m_Item1")?.as_u64()?)?;
                Some((first, bytes(tuple.get("m_Item2")?)?))
            })
            .collect::<Option<Vec<_>>>()
            .ok_or(JsonError::Member(name))
    }
}

/// Binary: base64 text, or an array of numbers 0 to 255.
pub(super) fn bytes(value: &Value) -> Option<Vec<u8>> {
    match value {
        Value::String(text) => STANDARD.decode(text).ok(),
        Value::Array(numbers) => numbers
            .iter()
            .map(|number| number.as_u64().and_then(|number| u8::try_from(number).ok()))
            .collect(),
        _ => None,
    }
}

pub(super) fn level(number: u64) -> Result<u32, JsonError> {
    u32::try_from(number).map_err(|_| JsonError::Member("FunctionalLevel"))
}

/// Writes one object, members in the order of the calls. A JSON library's map would sort them,
/// and `__type` must stay first.
pub(super) struct Writer {
    text: String,
}

impl Writer {
    pub(super) fn new(name: &str) -> Writer {
        Writer {
            text: format!("{{\"__type\":\"{name}{NAMESPACE}\""),
        }
    }

    pub(super) fn member(mut self, name: &str, value: impl Into<Value>) -> Writer {
        self.text.push_str(&format!(",\"{name}\":{}", value.into()));
        self
    }

    pub(super) fn bytes(mut self, name: &str, bytes: &[u8]) -> Writer {
        self.text.push_str(&format!(",\"{name}\":"));
        self.base64(bytes);
        self
    }

    pub(super) fn tuples<K: Copy>(mut self, name: &str, items: &[(K, Vec<u8>)], code: impl Fn(K) -> u64) -> Writer {
        self.text.push_str(&format!(",\"{name}\":["));
        for (index, (kind, bytes)) in items.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            self.text
                .push_str(&format!("{comma}{{\"m_Item1\":{},\"m_Item2\":", code(*kind)));
            self.base64(bytes);
            self.text.push('}');
        }
        self.text.push(']');
        self
    }

    /// Base64 needs no escapes, so it goes past the JSON library: boot logs are long.
    fn base64(&mut self, bytes: &[u8]) {
        self.text.push('"');
        STANDARD.encode_string(bytes, &mut self.text);
        self.text.push('"');
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.text.push('}');
        self.text.into_bytes()
    }
}

/// An object's members in order; inner objects too are refused when they have a member twice.
struct Strict(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Strict, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Strict;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Strict, A::Error> {
                let mut members: Vec<(String, Value)> = Vec::new();
                while let Some((name, Inner(value))) = map.next_entry::<String, Inner>()? {
                    if members.len() == MAX_MEMBERS || members.iter().any(|(other, _)| *other == name) {
                        return Err(A::Error::custom("a member twice, or too many members"));
                    }
                    members.push((name, value));
                }
                Ok(Strict(members))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

struct Inner(Value);

impl<'de> Deserialize<'de> for Inner {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Inner, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Inner;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<Inner, E> {
                Ok(Inner(Value::Null))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Inner, E> {
                Ok(Inner(value.into()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Inner, E> {
                Ok(Inner(value.into()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Inner, E> {
                Ok(Inner(value.into()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Inner, E> {
                Ok(Inner(value.into()))
            }

            fn visit_str<E>(self, value: &str) -> Result<Inner, E> {
                Ok(Inner(value.into()))
            }

            fn visit_string<E>(self, value: String) -> Result<Inner, E> {
                Ok(Inner(value.into()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Inner, A::Error> {
                let mut values = Vec::new();
                while let Some(Inner(value)) = sequence.next_element()? {
                    values.push(value);
                }
                Ok(Inner(Value::Array(values)))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Inner, A::Error> {
                let mut members = Map::new();
                while let Some((name, Inner(value))) = map.next_entry::<String, Inner>()? {
                    if members.insert(name, value).is_some() {
                        return Err(A::Error::custom("a member twice"));
                    }
                }
                Ok(Inner(Value::Object(members)))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// More top-level members than any message has; bounds the search for doubles.
const MAX_MEMBERS: usize = 64;
