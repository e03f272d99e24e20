//! Ways from a host into a guest: console, integration components, COM ports, debugger.

use hgs_shell::{call::Call, error::Outcome, value::Value};
use reqwest::Method;
use serde_json::{Value as Json, json};

use super::{Vm, names, on, security::switch};

/// Integration components that the lab's VMs have, with their switches.
const COMPONENTS: [(&str, &str); 2] = [
    ("Key-Value Pair Exchange", "data-exchange"),
    ("Guest Service Interface", "powershell-direct"),
];

pub(super) fn get_components(call: &mut Call<'_>) -> Outcome {
    let here = on(call)?;
    let wanted = call.texts("Name");
    for name in names(call, "VMName") {
        let Vm::Made(view) = here.find(call, &name)? else {
            continue;
        };
        for (component, own) in COMPONENTS {
            if !wanted.is_empty() && !wanted.iter().any(|name| name.eq_ignore_ascii_case(component)) {
                continue;
            }
            let security = view.security.as_ref();
            let on = security.is_some_and(|security| security.switches.get(own).copied().unwrap_or_default());
            call.write(Value::object(
                "VMIntegrationComponent",
                [
                    ("VMName", Value::text(&name)),
                    ("Name", Value::text(component)),
                    ("Enabled", Value::Bool(on)),
                ],
            ))?;
        }
    }
    Ok(())
}

pub(super) fn enable_component(call: &mut Call<'_>) -> Outcome {
    set_components(call, true)
}

pub(super) fn disable_component(call: &mut Call<'_>) -> Outcome {
    set_components(call, false)
}

fn set_components(call: &mut Call<'_>, wanted: bool) -> Outcome {
    let here = on(call)?;
    let given = match call.get("VMIntegrationService") {
        Some(given) => {
            let text =
                |value: &Value, name| super::part_of(value, name).map(|v| hgs_shell::value::convert::to_text(&v));
            given
                .each()
                .iter()
                .filter_map(|one| Some((text(one, "VMName")?, text(one, "Name")?)))
                .collect()
        }
        None => {
            let components = call.texts("Name");
            let pair = |vm: String| {
                components
                    .iter()
                    .map(move |name| (vm.clone(), name.clone()))
                    .collect::<Vec<_>>()
            };
            names(call, "VMName").into_iter().flat_map(pair).collect::<Vec<_>>()
        }
    };
    for (vm, component) in given {
        let own = COMPONENTS
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(&component));
        let Some((_, own)) = own else {
            let known: Vec<&str> = COMPONENTS.iter().map(|(name, _)| *name).collect();
            let why = format!(
                "the VMs of this lab have no integration service '{component}', but {}",
                known.join(" and ")
            );
            return super::outside(call, &why);
        };
        if let Vm::Made(view) = here.find(call, &vm)?
            && call.should_process(&vm, &format!("Switch the integration service {component}"))?
        {
            switch(call, &here, &view, own, wanted)?;
            here.pass_through(call, &vm)?;
        }
    }
    Ok(())
}

pub(super) fn get_com_ports(call: &mut Call<'_>) -> Outcome {
    let here = on(call)?;
    for name in names(call, "VMName") {
        let Vm::Made(view) = here.find(call, &name)? else {
            continue;
        };
        let security = view.security.as_ref();
        let on = security.is_some_and(|security| security.switches.get("serial").copied().unwrap_or_default());
        call.write(Value::object(
            "VMComPort",
            [
                ("VMName", Value::text(&name)),
                ("Name", Value::text("COM 1")),
                ("Number", Value::Int(1)),
                ("Path", Value::text(if on { r"\\.\pipe\com1" } else { "" })),
            ],
        ))?;
    }
    Ok(())
}

pub(super) fn set_com_port(call: &mut Call<'_>) -> Outcome {
    let here = on(call)?;
    let wanted = call.text("Path").is_some_and(|path| !path.is_empty());
    let vms = match call.get("VMComPort") {
        Some(given) => given.each().iter().map(super::vm_name).collect(),
        None => names(call, "VMName"),
    };
    for name in vms {
        if let Vm::Made(view) = here.find(call, &name)?
            && call.should_process(&name, "Set-VMComPort")?
        {
            switch(call, &here, &view, "serial", wanted)?;
            here.pass_through(call, &name)?;
        }
    }
    Ok(())
}

pub(super) fn debug(call: &mut Call<'_>) -> Outcome {
    let here = on(call)?;
    for name in names(call, "Name") {
        let Vm::Made(view) = here.find(call, &name)? else {
            return super::outside(call, "the VM has never been started");
        };
        if call.should_process(&name, "Debug-VM")? {
            // What a debugger on the worker process would see; the store decides whether there may be one.
            here.ask::<Json>(call, Method::GET, view.name.as_str(), "channels/debugger", &json!({}))?;
            here.pass_through(call, &name)?;
        }
    }
    Ok(())
}
