//! Features, restarts, services, TPM and firmware of a machine.

use hgs_shell::{
    call::Call,
    error::{Category, ErrorRecord, Outcome},
    value::Value,
    wildcard::Wildcard,
    world::Role,
};
use reqwest::Method;
use serde_json::json;

use super::outside;
use crate::{
    cmdlets::{ask, failed, lab, on_hgs, text_of},
    lab::{Lab, ServiceName},
};

/// Windows features that a guarded fabric knows: name, display name, where they belong.
const FEATURES: [(&str, &str, Option<Role>); 8] = [
    ("HostGuardianServiceRole", "Host Guardian Service", Some(Role::HgsNode)),
    ("Hyper-V", "Hyper-V", Some(Role::Host)),
    ("HostGuardian", "Host Guardian Hyper-V Support", Some(Role::Host)),
    ("FabricShieldedTools", "VM Shielding Tools for Fabric Management", None),
    ("RSAT-Shielded-VM-Tools", "Shielded VM Tools", None),
    ("RSAT-Hyper-V-Tools", "Hyper-V Management Tools", None),
    ("Hyper-V-PowerShell", "Hyper-V Module for Windows PowerShell", None),
    ("Web-Server", "Web Server (IIS)", None),
];

fn computer(call: &Call<'_>) -> String {
    let named = call.texts("ComputerName").into_iter().next();
    match named.as_deref() {
        None | Some("." | "localhost") => call.machine().name.clone(),
        Some(other) => other.to_owned(),
    }
}

fn known(call: &mut Call<'_>, lab: &Lab, name: &str) -> Outcome<hgs_shell::world::Machine> {
    lab.machine(name).cloned().ok_or_else(|| {
        call.fail(
            ErrorRecord::new(
                Category::ObjectNotFound,
                "ComputerNotFound",
                format!("There is no computer '{name}' in this lab."),
            )
            .about(Value::text(name)),
        )
    })
}

fn feature(call: &mut Call<'_>, name: &str) -> Outcome<(&'static str, &'static str, Option<Role>)> {
    let found = FEATURES
        .iter()
        .find(|(own, ..)| own.eq_ignore_ascii_case(name))
        .copied();
    found.ok_or_else(|| {
        call.fail(
            ErrorRecord::new(
                Category::InvalidArgument,
                "NameDoesNotExist",
                format!(
                    "ArgumentNotValid: The role, role service, or feature name is not valid: '{name}'. The name was not found."
                ),
            )
            .about(Value::text(name)),
        )
    })
}

pub(super) fn install(call: &mut Call<'_>) -> Outcome {
    let lab = lab(call)?;
    let name = computer(call);
    let machine = known(call, &lab, &name)?;
    let mut done = Vec::new();
    for wanted in call.texts("Name") {
        let (name, display, place) = feature(call, &wanted)?;
        if place.is_some_and(|place| place != machine.role) {
            let which = match machine.role {
                Role::HgsNode => "an HGS node",
                Role::Host => "a host",
                Role::Workstation => "a workstation",
                Role::Vmm => "the server of Virtual Machine Manager",
            };
            return outside(
                call,
                &format!(
                    "{} is {which}, and {display} belongs elsewhere in this lab",
                    machine.name
                ),
            );
        }
        if call.should_process(&machine.name, &format!("Install the feature {display}"))?
            && lab.state(&machine.name).features.insert(name.to_ascii_lowercase())
        {
            done.push(Value::text(display));
        }
        if name == "HostGuardianServiceRole" {
            lab.hand_out_tpm_makers()
                .map_err(|error| failed(call, "FeatureNotInstalled", error))?;
        }
    }
    let changed = !done.is_empty();
    call.write(result(changed, done))
}

fn result(changed: bool, done: Vec<Value>) -> Value {
    Value::object(
        "FeatureOperationResult",
        [
            ("Success", Value::Bool(true)),
            ("RestartNeeded", Value::text("No")),
            (
                "ExitCode",
                Value::text(if changed { "Success" } else { "NoChangeNeeded" }),
            ),
            ("FeatureResult", Value::list(done)),
        ],
    )
}

pub(super) fn uninstall(call: &mut Call<'_>) -> Outcome {
    let lab = lab(call)?;
    let name = computer(call);
    let machine = known(call, &lab, &name)?;
    let mut done = Vec::new();
    for wanted in call.texts("Name") {
        let (name, display, _) = feature(call, &wanted)?;
        if call.should_process(&machine.name, &format!("Remove the feature {display}"))?
            && lab.state(&machine.name).features.remove(&name.to_ascii_lowercase())
        {
            done.push(Value::text(display));
        }
    }
    let changed = !done.is_empty();
    call.write(result(changed, done))
}

pub(super) fn get_features(call: &mut Call<'_>) -> Outcome {
    let lab = lab(call)?;
    let name = computer(call);
    let machine = known(call, &lab, &name)?;
    let wanted = call.texts("Name");
    for (own, display, _) in FEATURES {
        if wanted.is_empty() || wanted.iter().any(|name| Wildcard::new(name).matches(own)) {
            let installed = lab.state(&machine.name).features.contains(&own.to_ascii_lowercase());
            call.write(Value::object(
                "Feature",
                [
                    ("DisplayName", Value::text(display)),
                    ("Name", Value::text(own)),
                    (
                        "InstallState",
                        Value::text(if installed { "Installed" } else { "Available" }),
                    ),
                    ("Installed", Value::Bool(installed)),
                ],
            ))?;
        }
    }
    Ok(())
}

pub(super) fn restart(call: &mut Call<'_>) -> Outcome {
    let lab = lab(call)?;
    let names = match call.texts("ComputerName") {
        names if names.is_empty() => vec![call.machine().name.clone()],
        names => names,
    };
    for name in names {
        let machine = known(call, &lab, &name)?;
        if !call.should_process(&machine.name, "Restart the computer")? {
            continue;
        }
        let done = match machine.role {
            Role::Host => lab.restart_host(&machine.name),
            Role::HgsNode if lab.cluster().is_some_and(|cluster| cluster.has_node(&machine.name)) => lab
                .power_node(&machine.name, false)
                .and_then(|()| lab.power_node(&machine.name, true)),
            _ => Ok(()),
        };
        done.map_err(|error| failed(call, "RestartFailed", error))?;
    }
    Ok(())
}

pub(super) fn get_services(call: &mut Call<'_>) -> Outcome {
    let lab = lab(call)?;
    let machine = call.machine().clone();
    let features = lab.state(&machine.name).features.clone();
    let mut services = Vec::new();
    if features.contains("hostguardianservicerole") {
        services.push(("W3SVC", "World Wide Web Publishing Service"));
        services.push(("ClusSvc", "Cluster Service"));
    }
    if features.contains("hyper-v") {
        services.push(("vmms", "Hyper-V Virtual Machine Management"));
        services.push(("vmcompute", "Hyper-V Host Compute Service"));
    }
    if features.contains("hostguardian") {
        services.push(("HgClientService", "HG Client Service"));
    }
    let up = machine.role != Role::HgsNode || lab.cluster().is_none_or(|cluster| cluster.is_up(&machine.name));
    let wanted = call.texts("Name");
    for (name, display) in services {
        if wanted.is_empty() || wanted.iter().any(|pattern| Wildcard::new(pattern).matches(name)) {
            call.write(Value::object(
                "ServiceController",
                [
                    ("Status", Value::text(if up { "Running" } else { "Stopped" })),
                    ("Name", Value::text(name)),
                    ("DisplayName", Value::text(display)),
                ],
            ))?;
        }
    }
    Ok(())
}

pub(super) fn tpm(call: &mut Call<'_>) -> Outcome {
    let lab = lab(call)?;
    let name = call.machine().name.clone();
    let present = lab.host(&name).is_some();
    call.write(Value::object(
        "TpmObject",
        [
            ("TpmPresent", Value::Bool(present)),
            ("TpmReady", Value::Bool(present)),
            ("TpmEnabled", Value::Bool(present)),
            ("TpmActivated", Value::Bool(present)),
            ("TpmOwned", Value::Bool(present)),
            ("RestartPending", Value::Bool(false)),
            ("ManagedAuthLevel", Value::text("Full")),
        ],
    ))
}

pub(super) fn clear_tpm(call: &mut Call<'_>) -> Outcome {
    outside(
        call,
        "a TPM that is cleared would be another one, and its host's keys are gone with it",
    )
}

pub(super) fn secure_boot(call: &mut Call<'_>) -> Outcome {
    let lab = lab(call)?;
    let name = call.machine().name.clone();
    let status = lab.host(&name).map(|host| host.status());
    match status {
        Some(status) => {
            let (dials, _) = status.map_err(|error| failed(call, "FirmwareNotRead", error))?;
            call.write(Value::Bool(dials.secure_boot))
        }
        None => call.write(Value::Bool(true)),
    }
}

const RENEWAL: &str = "AttestationSignerCertRenewalTask";

pub(super) fn get_task(call: &mut Call<'_>) -> Outcome {
    on_hgs(call)?;
    let wanted = call.texts("TaskName");
    if wanted.is_empty() || wanted.iter().any(|name| Wildcard::new(name).matches(RENEWAL)) {
        call.write(Value::object(
            "MSFT_ScheduledTask",
            [
                ("TaskPath", Value::text(r"\Microsoft\Windows\HGSServer\")),
                ("TaskName", Value::text(RENEWAL)),
                ("State", Value::text("Ready")),
            ],
        ))?;
    }
    Ok(())
}

/// Renews the attestation signer: made, trusted by key protection, then put to work.
pub(super) fn start_task(call: &mut Call<'_>) -> Outcome {
    let lab = on_hgs(call)?;
    let task = match call.get("InputObject") {
        Some(given) => {
            crate::cmdlets::part_of(&given, "TaskName").map(|name| hgs_shell::value::convert::to_text(&name))
        }
        None => call.text("TaskName"),
    };
    let task = task.unwrap_or_default();
    let task = task.rsplit('\\').next().unwrap_or_default();
    if !task.eq_ignore_ascii_case(RENEWAL) {
        return outside(call, &format!("there is one task here, {RENEWAL}"));
    }
    let made = ask(
        call,
        &lab,
        ServiceName::Attestation,
        Method::POST,
        "attestation-signers",
        Some(json!({})),
    )?;
    let trust = json!({ "certificate": text_of(&made, "certificate") });
    ask(
        call,
        &lab,
        ServiceName::KeyProtection,
        Method::POST,
        "attestation-signers",
        Some(trust),
    )?;
    let path = format!("attestation-signers/{}/activate", text_of(&made, "sha256"));
    let body = json!({ "registered_with_key_protection": true, "at_once": true });
    ask(call, &lab, ServiceName::Attestation, Method::POST, &path, Some(body)).map(drop)
}
