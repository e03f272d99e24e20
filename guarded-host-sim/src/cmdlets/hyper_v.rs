//! Module Hyper-V, as far as it takes part in a guarded fabric. Every VM of this lab has a virtual TPM under a key protector: what
//! New-VM makes is a plan, which becomes a VM on the hosts' shared volume when it is first started with both.

mod channels;
mod files;
mod life;
mod security;
mod tables;

use std::rc::Rc;

use hgs_shell::{
    call::Call,
    error::{Category, ErrorRecord, Outcome},
    value::{Date, Object, Value, convert},
};
use reqwest::Method;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::{client::told, lab, objects, part_of};
use crate::{
    fabric::host::AgentLink,
    lab::{Lab, PlannedVm},
    vm::{
        VmName,
        security::Kind,
        view::{VmState, VmView},
    },
};

pub(super) use self::tables::ALL;

/// A host of Hyper-V, and which.
struct OnHost {
    lab: Lab,
    host: String,
    agent: AgentLink,
}

/// The host where the call is made, or the one that `-ComputerName` names.
fn on(call: &mut Call<'_>) -> Outcome<OnHost> {
    let lab = lab(call)?;
    let named = call.texts("ComputerName").into_iter().next();
    let machine = named.clone().unwrap_or_else(|| call.machine().name.clone());
    let machine = match machine.as_str() {
        "." | "localhost" => call.machine().name.clone(),
        other => other.to_owned(),
    };
    let agent = lab.host(&machine).map(|host| (host.name().to_owned(), host.agent()));
    let installed = agent
        .as_ref()
        .is_some_and(|(name, _)| lab.state(name).features.contains("hyper-v"));
    match agent.filter(|_| installed) {
        Some((host, agent)) => Ok(OnHost { lab, host, agent }),
        None => Err(call.fail(
            ErrorRecord::new(
                Category::ObjectNotFound,
                "HyperVNotInstalled",
                format!(
                    "Hyper-V encountered an error trying to access an object on computer '{machine}' because the object was not \
                     found: the role is not installed there. Install-WindowsFeature Hyper-V, HostGuardian \
                     -IncludeManagementTools -Restart."
                ),
            )
            .exception("VirtualizationException"),
        )),
    }
}

/// Names of the VMs that a call is about: from `-VM`, or from the parameter of this name.
fn names(call: &Call<'_>, parameter: &str) -> Vec<String> {
    match call.get("VM") {
        Some(given) => given.each().iter().map(vm_name).collect(),
        None => call.texts(parameter),
    }
}

fn vm_name(value: &Value) -> String {
    part_of(value, "VMName")
        .or_else(|| part_of(value, "Name"))
        .map_or_else(|| convert::to_text(value), |name| convert::to_text(&name))
}

/// What a call is about.
enum Vm {
    /// Only planned so far.
    Planned(PlannedVm),
    /// On the volume.
    Made(Box<VmView>),
}

impl OnHost {
    /// A VM of this host.
    fn find(&self, call: &mut Call<'_>, name: &str) -> Outcome<Vm> {
        let planned = self
            .lab
            .host(&self.host)
            .and_then(|host| host.planned.get(&name.to_ascii_lowercase()).cloned());
        if let Some(planned) = planned {
            return Ok(Vm::Planned(planned));
        }
        let own = self
            .views(call)?
            .into_iter()
            .find(|view| view.name.as_str().eq_ignore_ascii_case(name));
        match own {
            Some(view) => Ok(Vm::Made(Box::new(view))),
            None => Err(missing(call, &self.host, name)),
        }
    }

    /// The VMs on the volume that belong to this host.
    fn views(&self, call: &mut Call<'_>) -> Outcome<Vec<VmView>> {
        let answer = self.lab.wait(self.agent.get::<Vec<VmView>>("volume/vms"));
        let views = told(call, "HyperVUnavailable", answer)?;
        Ok(views
            .into_iter()
            .filter(|view| view.owner_host.eq_ignore_ascii_case(&self.host))
            .collect())
    }

    /// A request about a VM to the host.
    fn ask<T: DeserializeOwned>(
        &self,
        call: &mut Call<'_>,
        method: Method,
        name: &str,
        verb: &str,
        body: &serde_json::Value,
    ) -> Outcome<T> {
        let path = format!("vms/{name}/{verb}");
        let path = path.trim_end_matches('/');
        let answer = match method {
            Method::GET => self.lab.wait(self.agent.get::<T>(path)),
            Method::DELETE => self.lab.wait(self.agent.delete::<T>(path)),
            other => self.lab.wait(self.agent.send::<T>(other, path, body)),
        };
        told(call, "VirtualMachineOperationFailed", answer)
    }

    fn post(&self, call: &mut Call<'_>, name: &str, verb: &str) -> Outcome {
        self.ask::<serde_json::Value>(call, Method::POST, name, verb, &json!({}))
            .map(drop)
    }

    /// Changes a VM that is only planned.
    fn replan(&self, name: &str, change: impl FnOnce(&mut PlannedVm)) {
        if let Some(mut host) = self.lab.host(&self.host)
            && let Some(planned) = host.planned.get_mut(&name.to_ascii_lowercase())
        {
            change(planned);
        }
    }

    /// Writes the VM, if `-Passthru` asks for it.
    fn pass_through(&self, call: &mut Call<'_>, name: &str) -> Outcome {
        if call.switch("Passthru") {
            let vm = self.find(call, name)?;
            let shown = self.show(&vm);
            call.write(shown)?;
        }
        Ok(())
    }

    /// The object that Get-VM gives.
    fn show(&self, vm: &Vm) -> Value {
        match vm {
            Vm::Planned(planned) => machine(
                &planned.name,
                "",
                "Off",
                &self.host,
                planned.generation,
                "No virtual TPM yet: not on the hosts' volume",
            ),
            Vm::Made(view) => {
                let state = match view.state {
                    VmState::Changing => "Changing",
                    VmState::OnAnotherHost => "Off",
                    VmState::Off => "Off",
                    VmState::Saved => "Saved",
                    VmState::Running => "Running",
                };
                machine(
                    view.name.as_str(),
                    &view.id.to_string(),
                    state,
                    &view.owner_host,
                    2,
                    "Operating normally",
                )
            }
        }
    }
}

fn machine(name: &str, id: &str, state: &str, host: &str, generation: i64, status: &str) -> Value {
    let object = Object::new(
        "VirtualMachine",
        [
            ("Name", Value::text(name)),
            ("VMName", Value::text(name)),
            ("State", Value::text(state)),
            ("Generation", Value::Int(generation)),
            ("OwnerHost", Value::text(host)),
            ("ComputerName", Value::text(host)),
            ("Status", Value::text(status)),
            ("Id", objects::or_null(Some(id.to_owned()).filter(|id| !id.is_empty()))),
        ],
    );
    object
        .hidden
        .borrow_mut()
        .set("ToString", Value::text(format!("VirtualMachine (Name = '{name}')")));
    Value::Object(Rc::new(object))
}

fn missing(call: &mut Call<'_>, host: &str, name: &str) -> hgs_shell::error::Stop {
    call.fail(
        ErrorRecord::new(
            Category::InvalidArgument,
            "InvalidParameter",
            format!("Hyper-V was unable to find a virtual machine with name \"{name}\" on {host}."),
        )
        .exception("VirtualizationException")
        .about(Value::text(name)),
    )
}

/// Something that this lab's Hyper-V does not do.
fn outside(call: &mut Call<'_>, why: &str) -> Outcome {
    let name = call.name();
    Err(call.fail(ErrorRecord::new(
        Category::NotImplemented,
        "NotInThisLab",
        format!("{name} is not carried out in this lab: {why}."),
    )))
}

/// A name that a VM can have here.
fn checked(call: &mut Call<'_>, name: &str) -> Outcome<VmName> {
    VmName::parse(name).map_err(|error| super::failed(call, "InvalidVMName", error))
}

fn time(seconds: i64) -> Value {
    Value::Date(Date(seconds))
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Shielded => "Shielded",
        Kind::EncryptionSupported => "EncryptionSupported",
    }
}
