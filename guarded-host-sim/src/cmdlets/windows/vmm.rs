//! Virtual Machine Manager: the HGS that all its hosts are to use, and what each uses.

use hgs_shell::{
    call::Call,
    error::{Category, ErrorRecord, Outcome},
    value::{Value, convert},
    world::Role,
};
use reqwest::Method;
use serde_json::json;

use super::outside;
use crate::{
    agent::view::ClientView,
    cmdlets::{client::told, lab, objects, part_of},
    lab::Lab,
};

const URLS: [&str; 2] = ["AttestationServerUrl", "KeyProtectionServerUrl"];

fn on_vmm(call: &mut Call<'_>) -> Outcome<Lab> {
    let lab = lab(call)?;
    match call.machine().role {
        Role::Vmm => Ok(lab),
        _ => Err(call.fail(ErrorRecord::new(
            Category::ObjectNotFound,
            "CommandNotFoundException",
            "The console of Virtual Machine Manager is on the computer VMM01: Enter-PSSession VMM01.",
        ))),
    }
}

fn server(lab: &Lab) -> Value {
    let notes = lab.state("VMM01").notes.clone();
    Value::object(
        "ServerConnection",
        [
            ("Name", Value::text("VMM01")),
            (
                "AttestationServerUrl",
                objects::or_null(notes.get("AttestationServerUrl").cloned()),
            ),
            (
                "KeyProtectionServerUrl",
                objects::or_null(notes.get("KeyProtectionServerUrl").cloned()),
            ),
        ],
    )
}

pub(super) fn get_server(call: &mut Call<'_>) -> Outcome {
    let lab = on_vmm(call)?;
    let shown = server(&lab);
    call.write(shown)
}

pub(super) fn set_server(call: &mut Call<'_>) -> Outcome {
    let lab = on_vmm(call)?;
    for name in URLS {
        if let Some(url) = call.text(name) {
            lab.state("VMM01").notes.insert(name.to_owned(), url);
        }
    }
    let shown = server(&lab);
    call.write(shown)
}

/// A host as Virtual Machine Manager sees it after a refresh.
fn shown(call: &mut Call<'_>, lab: &Lab, name: &str) -> Outcome<Value> {
    let agent = lab.host(name).map(|host| host.agent());
    let Some(agent) = agent else { return Ok(Value::Null) };
    let answer = lab.wait(agent.get::<ClientView>("status"));
    let view = told(call, "HostUnreachable", answer)?;
    let notes = lab.state("VMM01").notes.clone();
    let fits = URLS.iter().all(|url| {
        let own = match *url {
            "AttestationServerUrl" => &view.attestation_server_url,
            _ => &view.key_protection_server_url,
        };
        notes.get(*url).is_some_and(|global| Some(global) == own.as_ref())
    });
    let overall = match (view.is_host_guarded, fits) {
        (true, true) => "OK",
        (true, false) => "Error: the host's URLs are not those of Virtual Machine Manager",
        _ => "Error: the host has not passed attestation",
    };
    Ok(Value::object(
        "Host",
        [
            ("Name", Value::text(name)),
            (
                "AttestationServerUrl",
                objects::or_null(view.attestation_server_url.clone()),
            ),
            (
                "KeyProtectionServerUrl",
                objects::or_null(view.key_protection_server_url.clone()),
            ),
            ("IsHostGuarded", Value::Bool(view.is_host_guarded)),
            ("HgsClientOverall", Value::text(overall)),
            ("AcceptsShieldedVMs", Value::Bool(overall == "OK")),
        ],
    ))
}

pub(super) fn get_hosts(call: &mut Call<'_>) -> Outcome {
    let lab = on_vmm(call)?;
    let wanted = call.text("ComputerName");
    let names = match &wanted {
        Some(name) => vec![name.split('.').next().unwrap_or(name).to_ascii_lowercase()],
        None => lab.host_names(),
    };
    for name in names {
        if lab.host(&name).is_none() {
            return Err(call.fail(
                ErrorRecord::new(
                    Category::ObjectNotFound,
                    "HostNotFound",
                    format!("Virtual Machine Manager manages no host '{name}'."),
                )
                .about(Value::text(name)),
            ));
        }
        let host = shown(call, &lab, &name)?;
        call.write(host)?;
    }
    Ok(())
}

pub(super) fn set_host(call: &mut Call<'_>) -> Outcome {
    let lab = on_vmm(call)?;
    let given = call.get("VMHost").unwrap_or(Value::Null);
    let name = part_of(&given, "Name").map_or_else(|| convert::to_text(&given), |name| convert::to_text(&name));
    let agent = lab.host(&name).map(|host| host.agent());
    let Some(agent) = agent else {
        return outside(call, &format!("there is no host '{name}'"));
    };
    let notes = lab.state("VMM01").notes.clone();
    let mut body = json!({});
    for (own, parameter) in [
        ("AttestationServerUrl", "AttestationServerUrl"),
        ("KeyProtectionServerUrl", "KeyProtectionServerUrl"),
        ("FallbackAttestationServerUrl", "AttestationFallbackServerUrl"),
        ("FallbackKeyProtectionServerUrl", "KeyProtectionFallbackServerUrl"),
    ] {
        // What is not said is as for all hosts.
        if let Some(url) = call.text(parameter).or_else(|| notes.get(parameter).cloned()) {
            body[own] = json!(url);
        }
    }
    // The box that enables Host Guardian support installs it where it is missing.
    for feature in ["hyper-v", "hostguardian"] {
        lab.state(&name).features.insert(feature.to_owned());
    }
    let answer = lab.wait(agent.send::<ClientView>(Method::PUT, "client-configuration", &body));
    told(call, "HostNotChanged", answer)?;
    let host = shown(call, &lab, &name)?;
    call.write(host)
}
