//! VMs: what they do and where, what is done with them, and what there is in a key protector.

use actix_web::web::Path;
use askama::Template;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;

use super::{
    Frame, Shown, Trouble, fields,
    fields::FieldRow,
    html, in_url, see,
    standing::{Tone, takes_shielded_vms},
};
use crate::{
    api::Agent,
    lab::VmAction,
    live::VmView,
    session::{Posted, Visitor},
};

struct VmRow {
    vm: VmView,
    href: String,
    host_href: String,
    kind: String,
    class: &'static str,
}

#[derive(Template)]
#[template(path = "vms.html")]
struct ListPage {
    frame: Frame,
    vms: Vec<VmRow>,
}

fn row(vm: &VmView) -> VmRow {
    VmRow {
        href: format!("/vms/{}", in_url(&vm.name)),
        host_href: format!("/hosts/{}", in_url(&vm.owner_host)),
        kind: vm.security.as_ref().map(|s| s.kind.clone()).unwrap_or_default(),
        class: match vm.state.as_str() {
            "Running" => Tone::Good,
            "Changing" => Tone::Fair,
            _ => Tone::Quiet,
        }
        .class(),
        vm: vm.clone(),
    }
}

/// Every VM.
pub(super) async fn list(visitor: Visitor) -> Shown {
    let picture = visitor.console.live.picture();
    html(&ListPage {
        frame: Frame::new(&visitor, "vms", "VMs"),
        vms: picture.vms.values().map(row).collect(),
    })
}

struct Place {
    name: String,
    /// Why the VM is not placed there; empty where it may be.
    not: String,
}

#[derive(Template)]
#[template(path = "vm.html")]
struct VmPage {
    frame: Frame,
    row: VmRow,
    switches: Vec<(String, bool)>,
    targets: Vec<Place>,
    start_error: String,
    protector: Result<Vec<FieldRow>, String>,
}

/// One VM.
pub(super) async fn show(visitor: Visitor, name: Path<String>) -> Shown {
    let picture = visitor.console.live.picture();
    let vm = find(&visitor, &name)?;
    let settings = visitor.console.settings.now();
    let shielded = is_shielded(&vm);
    let may = |host: &str| match shielded {
        true => takes_shielded_vms(&settings, host, picture.hosts.get(host)),
        false => Ok(()),
    };
    let targets = picture
        .hosts
        .keys()
        .filter(|host| **host != vm.owner_host)
        .map(|host| Place {
            not: may(host).err().unwrap_or_default(),
            name: host.clone(),
        });
    html(&VmPage {
        frame: Frame::new(&visitor, "vms", vm.name.clone()),
        targets: targets.collect(),
        start_error: may(&vm.owner_host).err().unwrap_or_default(),
        switches: vm.security.iter().flat_map(|s| s.switches.clone()).collect(),
        protector: protector(&visitor, &vm).await,
        row: row(&vm),
    })
}

fn find(visitor: &Visitor, name: &str) -> Result<VmView, Trouble> {
    let picture = visitor.console.live.picture();
    let found = picture.vms.get(name).cloned();
    found.ok_or_else(|| Trouble::Missing(format!("no host that is on shows a VM {name}")))
}

fn is_shielded(vm: &VmView) -> bool {
    vm.security.as_ref().is_none_or(|security| security.kind == "Shielded")
}

async fn protector(visitor: &Visitor, vm: &VmView) -> Result<Vec<FieldRow>, String> {
    #[derive(Deserialize)]
    struct Protector {
        protector: String,
    }
    let picture = visitor.console.live.picture();
    let url = picture
        .hosts
        .get(&vm.owner_host)
        .and_then(|host| host.place.agent.as_deref());
    let url = url.ok_or_else(|| format!("{} is off", vm.owner_host))?;
    let http = visitor.console.lab.http();
    let path = format!("vms/{}/protector", in_url(&vm.name));
    let found: Protector = Agent { url, http }
        .get(&path)
        .await
        .map_err(|error| error.to_string())?;
    let bytes = STANDARD.decode(&found.protector).map_err(|error| error.to_string())?;
    Ok(fields::of_json(&visitor.console.lab.inspect_protector(&bytes)?))
}

/// Start, shut down, turn off, save, migrate. A shielded VM goes only where shielded VMs may be placed.
pub(super) async fn act(posted: Posted, name: Path<String>) -> Shown {
    let visitor = &posted.visitor;
    let vm = find(visitor, &name)?;
    let to = posted.text("to");
    let (action, host, done) = match posted.text("do").as_str() {
        "start" => (VmAction::Start, Some(vm.owner_host.clone()), "runs".to_owned()),
        "shut-down" => (VmAction::ShutDown, None, "is shut down".to_owned()),
        "turn-off" => (VmAction::TurnOff, None, "is turned off".to_owned()),
        "save" => (VmAction::Save, None, "is saved".to_owned()),
        "migrate" => {
            let done = format!("moved from {} to {to}", vm.owner_host);
            (VmAction::Migrate(to.clone()), Some(to), done)
        }
        other => return Err(Trouble::Invalid(format!("nothing called {other} is done with a VM"))),
    };
    let picture = visitor.console.live.picture();
    let settings = visitor.console.settings.now();
    let placed = match host.filter(|_| is_shielded(&vm)) {
        Some(host) => takes_shielded_vms(&settings, &host, picture.hosts.get(&host)),
        None => Ok(()),
    };
    let came = match placed {
        Ok(()) => visitor.console.lab.vm(&name, action).await,
        Err(reason) => Err(format!("not placed: {reason}")),
    };
    match came {
        Ok(()) => visitor.tell(true, format!("{name} {done}.")),
        Err(error) => visitor.tell(false, format!("{name}: {error}")),
    }
    visitor.console.see_now().await;
    Ok(see(&format!("/vms/{}", in_url(&name))))
}
