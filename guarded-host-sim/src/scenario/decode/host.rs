//! Messages between hosts' agents: this project's own JSON, since the product publishes none.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;

use super::{Decoded, Field, raw};

/// An offer of a migration, or its answer.
pub(super) fn message(body: &[u8]) -> Decoded {
    let Ok(Value::Object(members)) = serde_json::from_slice::<Value>(body) else {
        return raw(body);
    };
    let kind = match (members.contains_key("package"), members.contains_key("error")) {
        (true, _) => "MigrationOffer",
        (_, true) => "refusal",
        _ => "GuestReport",
    };
    Decoded {
        kind: kind.to_owned(),
        section: "this project",
        fields: members.iter().map(|(name, value)| field(name, value)).collect(),
    }
}

fn field(name: &str, value: &Value) -> Field {
    match value {
        Value::Object(members) => Field::of(
            name,
            [],
            members.iter().map(|(name, value)| field(name, value)).collect(),
        ),
        Value::String(text) => match (name, STANDARD.decode(text)) {
            ("package", Ok(bytes)) => Field::leaf(name, "the guest's memory and vTPM, encrypted", bytes),
            _ => Field::leaf(name, text.clone(), text.clone()),
        },
        other => Field::leaf(name, other.to_string(), other.to_string()),
    }
}
