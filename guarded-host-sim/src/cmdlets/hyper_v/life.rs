//! A VM's life: made, started, stopped, saved, moved; its checkpoints.

use hgs_shell::{
    call::Call,
    error::{Category, ErrorRecord, Outcome},
    value::Value,
    wildcard::Wildcard,
};
use reqwest::Method;
use serde_json::{Value as Json, json};

use super::{OnHost, Vm, checked, missing, names, on, time, vm_name};
use crate::{
    cmdlets::part_of,
    lab::PlannedVm,
    vm::{
        request::Blob,
        security::Kind,
        view::{VmState, VmView},
        volume::CheckpointEntry,
    },
};

pub(super) fn new(call: &mut Call<'_>) -> Outcome {
    let here = on(call)?;
    let name = call.text("Name").unwrap_or_else(|| "New Virtual Machine".to_owned());
    checked(call, &name.to_ascii_lowercase())?;
    let taken = here
        .views(call)?
        .iter()
        .any(|view| view.name.as_str().eq_ignore_ascii_case(&name));
    let planned = here
        .lab
        .host(&here.host)
        .is_some_and(|host| host.planned.contains_key(&name.to_ascii_lowercase()));
    if taken || planned {
        return Err(call.fail(
            ErrorRecord::new(
                Category::ResourceExists,
                "ObjectExists",
                format!("A virtual machine named '{name}' is on {} already.", here.host),
            )
            .exception("VirtualizationException")
            .about(Value::text(name)),
        ));
    }
    if !call.should_process(&name, "New-VM will create a new virtual machine")? {
        return Ok(());
    }
    let disk = match call.text("VHDPath") {
        Some(path) => Some(call.file(&path)?),
        None => None,
    };
    let plan = PlannedVm {
        name: name.clone(),
        generation: call.integer("Generation").unwrap_or(1),
        memory: call.integer("MemoryStartupBytes").unwrap_or(1 << 30),
        protector: None,
        disk,
        tpm: false,
        kind: Kind::EncryptionSupported,
    };
    if let Some(mut host) = here.lab.host(&here.host) {
        host.planned.insert(name.to_ascii_lowercase(), plan);
    }
    let vm = here.find(call, &name)?;
    let shown = here.show(&vm);
    call.write(shown)
}

pub(super) fn get(call: &mut Call<'_>) -> Outcome {
    let here = on(call)?;
    let id = call.text("Id");
    let wanted = match names(call, "Name") {
        names if names.is_empty() => vec!["*".to_owned()],
        names => names,
    };
    let mut all: Vec<Vm> = here
        .views(call)?
        .into_iter()
        .map(|view| Vm::Made(Box::new(view)))
        .collect();
    if let Some(host) = here.lab.host(&here.host) {
        all.extend(host.planned.values().cloned().map(Vm::Planned));
    }
    for name in wanted {
        let pattern = Wildcard::new(&name);
        let found: Vec<Value> = all
            .iter()
            .filter(|vm| match vm {
                Vm::Planned(planned) => id.is_none() && pattern.matches(&planned.name),
                Vm::Made(view) => {
                    let this = id
                        .as_ref()
                        .is_none_or(|id| view.id.to_string().eq_ignore_ascii_case(id));
                    this && pattern.matches(view.name.as_str())
                }
            })
            .map(|vm| here.show(vm))
            .collect();
        if found.is_empty() && !hgs_shell::wildcard::is_pattern(&name) {
            let hgs_shell::error::Stop::Error(record) = missing(call, &here.host, &name) else {
                continue;
            };
            call.error(record)?;
        }
        call.write_all(found)?;
    }
    Ok(())
}

pub(super) fn start(call: &mut Call<'_>) -> Outcome {
    let here = on(call)?;
    for name in names(call, "Name") {
        if !call.should_process(&name, "Start-VM")? {
            continue;
        }
        let vm = here.find(call, &name)?;
        if let Vm::Planned(planned) = &vm {
            make(call, &here, planned)?;
        }
        if matches!(&vm, Vm::Made(view) if view.state == VmState::Running) {
            call.warning(&format!("The virtual machine {name} is running already."))?;
        } else {
            let started: Json = here.ask(call, Method::POST, &own_name(&vm), "power-on", &json!({}))?;
            if super::super::flag_of(&started, "offline") {
                call.verbose("The Host Guardian Service was not reached; the key kept from the last start served.");
            }
        }
        here.pass_through(call, &name)?;
    }
    Ok(())
}

/// Its name on the hosts' volume, where there are small letters only.
fn own_name(vm: &Vm) -> String {
    match vm {
        Vm::Planned(planned) => planned.name.to_ascii_lowercase(),
        Vm::Made(view) => view.name.as_str().to_owned(),
    }
}

/// Makes what was planned so far.
fn make(call: &mut Call<'_>, here: &OnHost, planned: &PlannedVm) -> Outcome {
    let wrong = |what: &str| {
        ErrorRecord::new(
            Category::InvalidOperation,
            "VirtualMachineNotProtected",
            format!("'{}' failed to start. {what}", planned.name),
        )
        .exception("VirtualizationException")
    };
    if planned.generation != 2 {
        return Err(call.fail(wrong(
            "This lab runs VMs with a virtual TPM only, which takes generation 2: make the VM with New-VM -Generation 2.",
        )));
    }
    if !planned.tpm {
        return Err(call.fail(wrong(
            "This lab runs VMs with a virtual TPM only: set a key protector with Set-VMKeyProtector, then Enable-VMTPM.",
        )));
    }
    let name = planned.name.to_ascii_lowercase();
    let answer = match planned.protector.as_deref() {
        None => {
            return Err(call.fail(wrong(
                "A virtual TPM needs a key protector: Set-VMKeyProtector sets one.",
            )));
        }
        Some([]) => {
            let body = json!({ "name": name, "kind": planned.kind, "secret": "" });
            here.lab.wait(here.agent.post::<Json>("vms", &body))
        }
        Some(protector) => {
            let body = json!({ "protector": Blob(protector.to_vec()), "kind": planned.kind });
            here.lab
                .wait(here.agent.post::<Json>(&format!("vms/{name}/create"), &body))
        }
    };
    super::told(call, "VirtualMachineNotStarted", answer)?;
    if let Some(mut host) = here.lab.host(&here.host) {
        host.planned.remove(&planned.name.to_ascii_lowercase());
    }
    Ok(())
}

pub(super) fn stop(call: &mut Call<'_>) -> Outcome {
    let verb = match (call.switch("TurnOff"), call.switch("Save")) {
        (true, _) => "turn-off",
        (_, true) => "save",
        _ => "power-off",
    };
    each_made(call, "Name", "Stop-VM", verb, |view| match view.state {
        VmState::Off | VmState::Saved => Some("is not running"),
        _ => None,
    })
}

pub(super) fn save(call: &mut Call<'_>) -> Outcome {
    each_made(call, "Name", "Save-VM", "save", |view| match view.state {
        VmState::Saved => Some("is saved already"),
        _ => None,
    })
}

pub(super) fn restart(call: &mut Call<'_>) -> Outcome {
    let query = "The guest is reset: it does not shut down in an orderly way.";
    if !call.should_continue("Restart-VM", query)? {
        return Ok(());
    }
    each_made(call, "Name", "Restart-VM", "reset", |_| None)
}

pub(super) fn remove_saved_state(call: &mut Call<'_>) -> Outcome {
    each_made(call, "VMName", "Remove-VMSavedState", "discard-saved", |_| None)
}

/// One verb for each VM that is there and that needs it.
fn each_made(
    call: &mut Call<'_>,
    parameter: &str,
    action: &str,
    verb: &str,
    needless: impl Fn(&VmView) -> Option<&'static str>,
) -> Outcome {
    let here = on(call)?;
    for name in names(call, parameter) {
        let view = match here.find(call, &name)? {
            Vm::Made(view) => view,
            Vm::Planned(_) => {
                call.warning(&format!("The virtual machine {name} has never been started."))?;
                continue;
            }
        };
        if let Some(reason) = needless(&view) {
            call.warning(&format!("The virtual machine {name} {reason}."))?;
            continue;
        }
        if call.should_process(&name, action)? {
            here.post(call, view.name.as_str(), verb)?;
            here.pass_through(call, &name)?;
        }
    }
    Ok(())
}

pub(super) fn remove(call: &mut Call<'_>) -> Outcome {
    let here = on(call)?;
    for name in names(call, "Name") {
        match here.find(call, &name)? {
            Vm::Planned(planned) => {
                if call.should_process(&name, "Remove-VM")?
                    && let Some(mut host) = here.lab.host(&here.host)
                {
                    host.planned.remove(&planned.name.to_ascii_lowercase());
                }
            }
            Vm::Made(_) => {
                return Err(call.fail(ErrorRecord::new(
                    Category::NotImplemented,
                    "NotInThisLab",
                    format!(
                        "The files of '{name}' on the hosts' volume are its owner's, and no request of a host's administrator \
                         removes them in this lab."
                    ),
                )));
            }
        }
    }
    Ok(())
}

pub(super) fn rename(call: &mut Call<'_>) -> Outcome {
    let here = on(call)?;
    let new = call.text("NewName").unwrap_or_default();
    checked(call, &new.to_ascii_lowercase())?;
    for name in names(call, "Name") {
        match here.find(call, &name)? {
            Vm::Planned(planned) if call.should_process(&name, "Rename-VM")? => {
                if let Some(mut host) = here.lab.host(&here.host) {
                    host.planned.remove(&planned.name.to_ascii_lowercase());
                    host.planned.insert(
                        new.to_ascii_lowercase(),
                        PlannedVm {
                            name: new.clone(),
                            ..planned
                        },
                    );
                }
            }
            Vm::Planned(_) => {}
            Vm::Made(_) => {
                return super::outside(
                    call,
                    "a VM's name is that of its folder on the hosts' volume, which stays",
                );
            }
        }
    }
    Ok(())
}

pub(super) fn set(call: &mut Call<'_>) -> Outcome {
    let here = on(call)?;
    let memory = call.integer("MemoryStartupBytes");
    let renamed = call.text("NewVMName");
    for name in names(call, "Name") {
        let vm = here.find(call, &name)?;
        if !call.should_process(&name, "Set-VM")? {
            continue;
        }
        if let (Some(memory), Vm::Planned(_)) = (memory, &vm) {
            here.replan(&name, |planned| planned.memory = memory);
        }
        if renamed.is_some() {
            return super::outside(
                call,
                "Rename-VM renames a VM before its first start; afterwards its name stays",
            );
        }
        here.pass_through(call, &name)?;
    }
    Ok(())
}

pub(super) fn move_vm(call: &mut Call<'_>) -> Outcome {
    let here = on(call)?;
    let target = call.text("DestinationHost").unwrap_or_default();
    let address = here
        .lab
        .host(&target)
        .map(|host| (host.name().to_owned(), host.address().to_owned()));
    let Some((target, address)) = address else {
        return Err(call.fail(
            ErrorRecord::new(
                Category::ObjectNotFound,
                "InvalidParameter",
                format!("Hyper-V was unable to find the destination host '{target}'."),
            )
            .exception("VirtualizationException")
            .about(Value::text(target)),
        ));
    };
    for name in names(call, "Name") {
        let Vm::Made(view) = here.find(call, &name)? else {
            return Err(call.fail(
                ErrorRecord::new(
                    Category::InvalidOperation,
                    "VirtualMachineNotStarted",
                    format!(
                        "'{name}' has never been started, and there is nothing of it to move yet: make it on {target}."
                    ),
                )
                .exception("VirtualizationException"),
            ));
        };
        if call.should_process(&name, &format!("Move-VM to {target}"))? {
            let body = json!({ "target": target, "address": address });
            here.ask::<Json>(call, Method::POST, view.name.as_str(), "migrate", &body)?;
        }
    }
    Ok(())
}

pub(super) fn checkpoint(call: &mut Call<'_>) -> Outcome {
    let here = on(call)?;
    for name in names(call, "Name") {
        let Vm::Made(view) = here.find(call, &name)? else {
            return super::outside(call, "the VM has never been started, so that there is nothing to keep");
        };
        let called = call.text("SnapshotName");
        let called = called.unwrap_or_else(|| format!("{} - ({})", view.name.as_str(), call.now().iso()));
        if call.should_process(&name, "Checkpoint-VM")? {
            let body = json!({ "name": called });
            let taken: CheckpointEntry = here.ask(call, Method::POST, view.name.as_str(), "checkpoints", &body)?;
            if call.switch("Passthru") {
                call.write(snapshot(&view, &taken))?;
            }
        }
    }
    Ok(())
}

fn snapshot(view: &VmView, entry: &CheckpointEntry) -> Value {
    Value::object(
        "VMSnapshot",
        [
            ("VMName", Value::text(view.name.as_str())),
            ("Name", Value::text(&entry.name)),
            ("SnapshotType", Value::text("Standard")),
            ("CreationTime", time(entry.taken)),
            ("Id", Value::text(entry.id.to_string())),
            ("HasMemory", Value::Bool(entry.memory)),
        ],
    )
}

/// The VM and the checkpoints that a call is about.
fn snapshots(call: &mut Call<'_>, here: &OnHost) -> Outcome<Vec<(VmView, CheckpointEntry)>> {
    let (vms, wanted) = match call.get("VMSnapshot") {
        Some(given) => {
            let given = given.each();
            let vms: Vec<String> = given.iter().map(vm_name).collect();
            let names = given.iter().filter_map(|one| part_of(one, "Name"));
            (
                vms,
                names.map(|name| hgs_shell::value::convert::to_text(&name)).collect(),
            )
        }
        None => (names(call, "VMName"), call.texts("Name")),
    };
    let mut found = Vec::new();
    for vm in vms {
        if let Vm::Made(view) = here.find(call, &vm)? {
            let fits = |entry: &&CheckpointEntry| {
                wanted.is_empty()
                    || wanted
                        .iter()
                        .any(|name: &String| Wildcard::new(name).matches(&entry.name))
            };
            let own: Vec<CheckpointEntry> = view.checkpoints.iter().filter(fits).cloned().collect();
            if own.is_empty() && !wanted.is_empty() {
                return Err(call.fail(
                    ErrorRecord::new(
                        Category::ObjectNotFound,
                        "InvalidParameter",
                        format!(
                            "Hyper-V was unable to find a checkpoint '{}' of '{vm}'.",
                            wanted.join("', '")
                        ),
                    )
                    .exception("VirtualizationException"),
                ));
            }
            found.extend(own.into_iter().map(|entry| ((*view).clone(), entry)));
        }
    }
    Ok(found)
}

pub(super) fn get_snapshots(call: &mut Call<'_>) -> Outcome {
    let here = on(call)?;
    let id = call.text("Id");
    let found = snapshots(call, &here)?;
    let found = found.iter().filter(|(_, entry)| {
        id.as_ref()
            .is_none_or(|id| entry.id.to_string().eq_ignore_ascii_case(id))
    });
    let found: Vec<Value> = found.map(|(view, entry)| snapshot(view, entry)).collect();
    call.write_all(found)
}

pub(super) fn restore_snapshot(call: &mut Call<'_>) -> Outcome {
    let here = on(call)?;
    for (view, entry) in snapshots(call, &here)? {
        if call.should_process(&entry.name, "Restore-VMSnapshot")? {
            here.post(call, view.name.as_str(), &format!("checkpoints/{}/apply", entry.id))?;
            if call.switch("Passthru") {
                call.write(snapshot(&view, &entry))?;
            }
        }
    }
    Ok(())
}

pub(super) fn remove_snapshot(call: &mut Call<'_>) -> Outcome {
    let here = on(call)?;
    for (view, entry) in snapshots(call, &here)? {
        if call.should_process(&entry.name, "Remove-VMSnapshot")? {
            let path = format!("checkpoints/{}", entry.id);
            here.ask::<Json>(call, Method::DELETE, view.name.as_str(), &path, &json!({}))?;
            here.pass_through(call, view.name.as_str())?;
        }
    }
    Ok(())
}
