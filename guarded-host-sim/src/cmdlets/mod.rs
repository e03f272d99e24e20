//! The product's cmdlets, on the machines of a [`Lab`].
//!
//! Each module of the product has a file; what becomes of each documented parameter stands beside its cmdlet, and coverage and help
//! are made from that. A cmdlet reads its parameters, asks an administrators' interface or a host, and makes the object that
//! the product gives. It decides nothing that a service or a host decides.

mod attestation;
mod client;
mod diagnostics;
mod guardian;
mod hyper_v;
mod key_protection;
pub(crate) mod objects;
mod server;
mod shielding;
mod windows;

use base64::{Engine, engine::general_purpose::STANDARD};
use hgs_shell::{
    call::Call,
    cmdlets::{Implementation, Registry},
    error::{Category, ErrorRecord, Outcome, Stop},
    format::View,
    value::Value,
    world::Role,
};
use reqwest::Method;
use serde_json::Value as Json;

use crate::{
    fabric::host::AgentLink,
    lab::{Lab, Refused, ServiceName},
};

/// All of them, with the language's own.
pub fn registry() -> Registry {
    MODULES.into_iter().fold(Registry::builtin(), Registry::with)
}

/// The looks of their objects.
pub const VIEWS: &[View] = objects::VIEWS;

const MODULES: [&[Implementation]; 10] = [
    server::ALL,
    self::attestation::ALL,
    key_protection::ALL,
    client::ALL,
    guardian::ALL,
    diagnostics::ALL,
    shielding::ALL,
    hyper_v::ALL,
    windows::ALL,
    windows::CORE,
];

/// The lab that the shell is in.
fn lab(call: &mut Call<'_>) -> Outcome<Lab> {
    let world = call.world();
    match world.as_any().downcast_ref::<Lab>() {
        Some(lab) => Ok(lab.clone()),
        None => Err(call.fail(ErrorRecord::new(
            Category::ResourceUnavailable,
            "NoFabric",
            "There is no fabric here: start the shell with one.",
        ))),
    }
}

/// The lab, on an HGS node where the role is installed.
fn on_node(call: &mut Call<'_>) -> Outcome<Lab> {
    let lab = lab(call)?;
    let machine = call.machine().clone();
    let installed = lab.state(&machine.name).features.contains("hostguardianservicerole");
    match machine.role == Role::HgsNode && installed {
        true => Ok(lab),
        false => Err(not_here(
            call,
            "comes with the Host Guardian Service role, which is not installed on this computer. On an HGS node: \
             Install-WindowsFeature HostGuardianServiceRole -IncludeManagementTools -Restart.",
        )),
    }
}

/// The lab, on a node of an HGS that is set up.
fn on_hgs(call: &mut Call<'_>) -> Outcome<Lab> {
    let lab = on_node(call)?;
    let name = call.machine().name.clone();
    let ready = lab.cluster().is_some_and(|cluster| cluster.has_node(&name));
    match ready {
        true => Ok(lab),
        false => Err(call.fail(
            ErrorRecord::new(
                Category::InvalidOperation,
                "HgsServerNotInitialized",
                format!("The Host Guardian Service is not initialized on {name}: run Initialize-HgsServer first."),
            )
            .exception("InvalidOperationException"),
        )),
    }
}

/// The lab, on a host with guarded-host support, and the host's agent.
fn on_host(call: &mut Call<'_>) -> Outcome<(Lab, AgentLink)> {
    let lab = lab(call)?;
    let machine = call.machine().clone();
    let installed = lab.state(&machine.name).features.contains("hostguardian");
    let agent = lab.host(&machine.name).map(|host| host.agent());
    match agent.filter(|_| installed) {
        Some(agent) => Ok((lab, agent)),
        None => Err(not_here(
            call,
            "comes with Host Guardian Hyper-V Support, which is not installed on this computer. On a Hyper-V host: \
             Install-WindowsFeature Hyper-V, HostGuardian -IncludeManagementTools -Restart.",
        )),
    }
}

fn not_here(call: &mut Call<'_>, why: &str) -> Stop {
    let name = call.name();
    call.fail(
        ErrorRecord::new(
            Category::ObjectNotFound,
            "CommandNotFoundException",
            format!("The term '{name}' is not recognized as the name of a cmdlet: it {why}"),
        )
        .exception("CommandNotFoundException")
        .about(Value::text(name)),
    )
}

/// Asks a service of the HGS as its administrator.
fn ask(
    call: &mut Call<'_>,
    lab: &Lab,
    service: ServiceName,
    method: Method,
    path: &str,
    body: Option<Json>,
) -> Outcome<Json> {
    match try_ask(lab, service, method, path, body) {
        Ok(answer) => Ok(answer),
        Err(refused) => Err(call.fail(record_of(&refused))),
    }
}

fn try_ask(lab: &Lab, service: ServiceName, method: Method, path: &str, body: Option<Json>) -> Result<Json, Refused> {
    match lab.cluster() {
        Some(cluster) => lab.wait(cluster.ask(service, method, path, body.as_ref())),
        None => Err(Refused {
            status: 0,
            text: "no HGS is set up".to_owned(),
        }),
    }
}

fn record_of(refused: &Refused) -> ErrorRecord {
    let (category, id) = match refused.status {
        400 => (Category::InvalidArgument, "HgsInvalidArgument"),
        401 | 403 => (Category::PermissionDenied, "HgsAccessDenied"),
        404 => (Category::ObjectNotFound, "HgsObjectNotFound"),
        409 => (Category::InvalidOperation, "HgsConflict"),
        0 => (Category::ConnectionError, "HgsServiceUnreachable"),
        _ => (Category::ResourceUnavailable, "HgsServiceUnavailable"),
    };
    ErrorRecord::new(category, id, sentence(&refused.text))
}

/// What anything of the simulator has refused, as an error of this call.
fn failed(call: &mut Call<'_>, id: &str, error: impl std::fmt::Display) -> Stop {
    call.fail(ErrorRecord::new(
        Category::InvalidOperation,
        id,
        sentence(&format!("{error:#}")),
    ))
}

/// Begins with a capital letter and ends with a full stop.
fn sentence(text: &str) -> String {
    let text = text.trim();
    let mut letters = text.chars();
    let first: String = letters
        .next()
        .map(|first| first.to_uppercase().collect())
        .unwrap_or_default();
    let end = if text.ends_with(['.', '!', '?']) { "" } else { "." };
    format!("{first}{}{end}", letters.as_str())
}

/// A member of a JSON object as text.
fn text_of(json: &Json, key: &str) -> String {
    match json.get(key) {
        Some(Json::String(text)) => text.clone(),
        None | Some(Json::Null) => String::new(),
        Some(other) => other.to_string(),
    }
}

fn flag_of(json: &Json, key: &str) -> bool {
    json.get(key).and_then(Json::as_bool).unwrap_or_default()
}

fn rows_of(json: &Json) -> &[Json] {
    json.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn bytes_of(json: &Json, key: &str) -> Vec<u8> {
    STANDARD.decode(text_of(json, key)).unwrap_or_default()
}

/// Part of a URL's path.
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| match plain(byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}

/// A property of an object that was given, or of its hidden part.
fn part_of(value: &Value, name: &str) -> Option<Value> {
    let Value::Object(object) = value else { return None };
    let hidden = object.hidden.borrow().get(name).cloned();
    hidden.or_else(|| object.get(name))
}
