//! A VM's key protector, virtual TPM, kind and switches.

use hgs_shell::{
    call::Call,
    error::{Category, ErrorRecord, Outcome},
    value::Value,
};
use reqwest::Method;
use serde_json::{Value as Json, json};

use super::{OnHost, Vm, kind_name, names, on};
use crate::{
    cmdlets::bytes_of,
    vm::{request::Blob, security::Kind, view::VmView},
};

pub(super) fn get_protector(call: &mut Call<'_>) -> Outcome {
    let here = on(call)?;
    for name in names(call, "VMName") {
        let bytes = match here.find(call, &name)? {
            // As the product gives for a VM without one.
            Vm::Planned(planned) => planned
                .protector
                .filter(|bytes| !bytes.is_empty())
                .unwrap_or_else(|| vec![0, 0, 0, 4]),
            Vm::Made(view) => {
                let answer: Json = here.ask(call, Method::GET, view.name.as_str(), "protector", &Json::Null)?;
                bytes_of(&answer, "protector")
            }
        };
        call.write(Value::Bytes(bytes.into()))?;
    }
    Ok(())
}

pub(super) fn set_protector(call: &mut Call<'_>) -> Outcome {
    let here = on(call)?;
    let given = match call.get("KeyProtector") {
        Some(Value::Bytes(bytes)) => Some(bytes.to_vec()),
        _ => None,
    };
    let (local, restore) = (
        call.switch("NewLocalKeyProtector"),
        call.switch("RestoreLastKnownGoodKeyProtector"),
    );
    if [given.is_some(), local, restore].iter().filter(|one| **one).count() != 1 {
        return Err(call.fail(ErrorRecord::new(
            Category::InvalidArgument,
            "InvalidParameter",
            "Give one of -KeyProtector, -NewLocalKeyProtector and -RestoreLastKnownGoodKeyProtector.",
        )));
    }
    for name in names(call, "VMName") {
        if !call.should_process(&name, "Set-VMKeyProtector")? {
            continue;
        }
        match here.find(call, &name)? {
            Vm::Planned(_) if restore => {
                return Err(call.fail(ErrorRecord::new(
                    Category::InvalidOperation,
                    "NoKnownGoodKeyProtector",
                    format!("'{name}' has never been started with a key protector that could be restored."),
                )));
            }
            // Empty: the host makes one of its own when the VM is first started.
            Vm::Planned(_) => here.replan(&name, |planned| {
                planned.protector = Some(given.clone().unwrap_or_default())
            }),
            Vm::Made(view) => {
                let vm = view.name.as_str();
                match &given {
                    Some(bytes) => {
                        let body = json!({ "protector": Blob(bytes.clone()) });
                        here.ask::<Json>(call, Method::PUT, vm, "protector", &body)?;
                    }
                    None if local => here.post(call, vm, "protector/new-local")?,
                    None => here.post(call, vm, "protector/restore")?,
                }
            }
        }
        here.pass_through(call, &name)?;
    }
    Ok(())
}

pub(super) fn enable_tpm(call: &mut Call<'_>) -> Outcome {
    let here = on(call)?;
    for name in names(call, "VMName") {
        if !call.should_process(&name, "Enable-VMTPM")? {
            continue;
        }
        match here.find(call, &name)? {
            Vm::Planned(planned) => {
                let wrong = match (planned.generation, &planned.protector) {
                    (2, Some(_)) => None,
                    (2, None) => Some(format!(
                        "Cannot modify the TPM of '{name}': it has no key protector. Set one with Set-VMKeyProtector first."
                    )),
                    _ => Some(format!(
                        "Cannot modify the TPM of '{name}': only a VM of generation 2 can have one."
                    )),
                };
                if let Some(text) = wrong {
                    return Err(call.fail(
                        ErrorRecord::new(Category::InvalidOperation, "InvalidState", text)
                            .exception("VirtualizationException")
                            .about(Value::text(name)),
                    ));
                }
                here.replan(&name, |planned| planned.tpm = true);
            }
            Vm::Made(view) => switch(call, &here, &view, "vtpm", true)?,
        }
        here.pass_through(call, &name)?;
    }
    Ok(())
}

pub(super) fn disable_tpm(call: &mut Call<'_>) -> Outcome {
    let here = on(call)?;
    for name in names(call, "VMName") {
        if call.should_process(&name, "Disable-VMTPM")? {
            match here.find(call, &name)? {
                Vm::Planned(_) => here.replan(&name, |planned| planned.tpm = false),
                Vm::Made(view) => switch(call, &here, &view, "vtpm", false)?,
            }
            here.pass_through(call, &name)?;
        }
    }
    Ok(())
}

/// A switch of a VM that is there; nothing is asked where it stands so already.
pub(super) fn switch(call: &mut Call<'_>, here: &OnHost, view: &VmView, name: &str, on: bool) -> Outcome {
    let stands = view
        .security
        .as_ref()
        .and_then(|security| security.switches.get(name).copied());
    if stands == Some(on) {
        return Ok(());
    }
    let body = json!({ "change": "switch", "switch": name, "on": on });
    here.ask::<Json>(call, Method::POST, view.name.as_str(), "security", &body)
        .map(drop)
}

pub(super) fn get_security(call: &mut Call<'_>) -> Outcome {
    let here = on(call)?;
    for name in names(call, "VMName") {
        let vm = here.find(call, &name)?;
        let (tpm, shielded, encrypted, kind) = match &vm {
            Vm::Planned(planned) => (planned.tpm, planned.kind == Kind::Shielded, planned.tpm, planned.kind),
            Vm::Made(view) => {
                let security = view.security.as_ref();
                let on = |name| security.is_some_and(|s| s.switches.get(name).copied().unwrap_or_default());
                let kind = security.map_or(Kind::EncryptionSupported, |security| security.kind);
                (
                    on("vtpm"),
                    kind == Kind::Shielded,
                    on("encrypt-state-and-migration"),
                    kind,
                )
            }
        };
        call.write(Value::object(
            "VMSecurity",
            [
                ("VMName", Value::text(&name)),
                ("TpmEnabled", Value::Bool(tpm)),
                ("KsdEnabled", Value::Bool(false)),
                ("Shielded", Value::Bool(shielded)),
                ("EncryptStateAndVmMigrationTraffic", Value::Bool(encrypted)),
                ("VirtualizationBasedSecurityOptOut", Value::Bool(false)),
                ("BindToHostTpm", Value::Bool(false)),
                ("Kind", Value::text(kind_name(kind))),
            ],
        ))?;
    }
    Ok(())
}

pub(super) fn set_security(call: &mut Call<'_>) -> Outcome {
    let here = on(call)?;
    let encrypted = call
        .get("EncryptStateAndVmMigrationTraffic")
        .map(|value| value.is_true());
    for name in names(call, "VMName") {
        if !call.should_process(&name, "Set-VMSecurity")? {
            continue;
        }
        match here.find(call, &name)? {
            Vm::Planned(_) => {
                call.warning("The state of a VM with a key protector is encrypted from its first start on.")?
            }
            Vm::Made(view) => {
                if let Some(on) = encrypted {
                    switch(call, &here, &view, "encrypt-state-and-migration", on)?;
                }
            }
        }
        here.pass_through(call, &name)?;
    }
    Ok(())
}

pub(super) fn set_policy(call: &mut Call<'_>) -> Outcome {
    let here = on(call)?;
    let Some(shielded) = call.get("Shielded").map(|value| value.is_true()) else {
        return Ok(());
    };
    let kind = if shielded {
        Kind::Shielded
    } else {
        Kind::EncryptionSupported
    };
    for name in names(call, "VMName") {
        if !call.should_process(&name, "Set-VMSecurityPolicy")? {
            continue;
        }
        match here.find(call, &name)? {
            Vm::Planned(_) => here.replan(&name, |planned| planned.kind = kind),
            Vm::Made(view) => {
                let body = json!({ "change": "kind", "kind": kind });
                here.ask::<Json>(call, Method::POST, view.name.as_str(), "security", &body)?;
            }
        }
        here.pass_through(call, &name)?;
    }
    Ok(())
}

pub(super) fn get_firmware(call: &mut Call<'_>) -> Outcome {
    let here = on(call)?;
    for name in names(call, "VMName") {
        let on = match here.find(call, &name)? {
            Vm::Planned(_) => true,
            Vm::Made(view) => {
                let security = view.security.as_ref();
                security.is_none_or(|security| security.switches.get("secure-boot").copied().unwrap_or(true))
            }
        };
        call.write(Value::object(
            "VMFirmware",
            [
                ("VMName", Value::text(&name)),
                ("SecureBoot", Value::text(if on { "On" } else { "Off" })),
                ("SecureBootTemplate", Value::text("MicrosoftWindows")),
            ],
        ))?;
    }
    Ok(())
}

pub(super) fn set_firmware(call: &mut Call<'_>) -> Outcome {
    let here = on(call)?;
    let Some(wanted) = call.text("EnableSecureBoot") else {
        return Ok(());
    };
    let on = wanted.eq_ignore_ascii_case("On");
    for name in names(call, "VMName") {
        if call.should_process(&name, "Set-VMFirmware")? {
            match here.find(call, &name)? {
                Vm::Made(view) => switch(call, &here, &view, "secure-boot", on)?,
                Vm::Planned(_) if !on => {
                    return super::outside(
                        call,
                        "a VM with a virtual TPM is made with Secure Boot; start it once before",
                    );
                }
                Vm::Planned(_) => {}
            }
            here.pass_through(call, &name)?;
        }
    }
    Ok(())
}
