//! A VM's files between hosts, disks, and the hosts themselves.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use hgs_shell::{
    call::Call,
    error::{Category, ErrorRecord, Outcome},
    value::Value,
};
use reqwest::Method;
use serde_json::{Value as Json, json};

use super::{OnHost, Vm, names, on};
use crate::{
    cmdlets::{failed, text_of},
    machine::user::{AGENT_USER, AgentUser},
};

/// A folder in which the agents, users of their own, may read and write.
fn exchange(here: &OnHost) -> anyhow::Result<PathBuf> {
    let folder = here.lab.folder().join("exchange");
    fs::create_dir_all(&folder)?;
    AgentUser::choose(AGENT_USER).give(&folder)?;
    Ok(folder)
}

fn copy(from: &Path, to: &Path, user: AgentUser) -> io::Result<()> {
    fs::create_dir_all(to)?;
    let give = |path: &Path| user.give(path).map_err(io::Error::other);
    give(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (own, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy(&own, &target, user)?;
        } else if kind.is_file() {
            fs::copy(&own, &target)?;
            give(&target)?;
        }
    }
    Ok(())
}

pub(super) fn export(call: &mut Call<'_>) -> Outcome {
    let here = on(call)?;
    let path = call.text("Path").unwrap_or_default();
    let target = call.file(&path)?;
    for name in names(call, "Name") {
        let Vm::Made(view) = here.find(call, &name)? else {
            return super::outside(call, "the VM has never been started, so that it has no files yet");
        };
        if !call.should_process(&name, "Export-VM")? {
            continue;
        }
        let to = target.join(view.name.as_str());
        if to.exists() {
            return Err(call.fail(ErrorRecord::new(
                Category::ResourceExists,
                "ObjectExists",
                format!("Failed to export '{name}': the folder exists already in {path}."),
            )));
        }
        let exchange = exchange(&here).map_err(|error| failed(call, "ExportFailed", error))?;
        let body = json!({ "destination": exchange });
        here.ask::<Json>(call, Method::POST, view.name.as_str(), "export", &body)?;
        let exported = exchange.join(view.name.as_str());
        let moved = copy(&exported, &to, AgentUser::choose(0)).and_then(|()| fs::remove_dir_all(&exported));
        moved.map_err(|error| failed(call, "ExportFailed", error))?;
        here.pass_through(call, &name)?;
    }
    Ok(())
}

pub(super) fn import(call: &mut Call<'_>) -> Outcome {
    let here = on(call)?;
    let path = call.text("Path").unwrap_or_default();
    if !call.switch("Copy") {
        return super::outside(
            call,
            "a VM is imported with -Copy only: its files are then on the hosts' shared volume",
        );
    }
    let source = call.file(&path)?;
    let Some(name) = source
        .file_name()
        .and_then(|name| name.to_str())
        .map(str::to_owned)
        .filter(|_| source.is_dir())
    else {
        return Err(call.fail(ErrorRecord::new(
            Category::ObjectNotFound,
            "PathNotFound",
            format!("Cannot find the exported virtual machine '{path}': name the folder that Export-VM made."),
        )));
    };
    if !call.should_process(&name, "Import-VM")? {
        return Ok(());
    }
    let exchange = exchange(&here).map_err(|error| failed(call, "ImportFailed", error))?;
    let staged = exchange.join(&name);
    let copied = copy(&source, &staged, AgentUser::choose(AGENT_USER));
    copied.map_err(|error| failed(call, "ImportFailed", error))?;
    let answer = here
        .lab
        .wait(here.agent.post::<Json>("imports", &json!({ "source": staged })));
    let cleared = fs::remove_dir_all(&staged);
    let imported = super::told(call, "ImportFailed", answer)?;
    cleared.map_err(|error| failed(call, "ImportFailed", error))?;
    let vm = here.find(call, &text_of(&imported, "name"))?;
    let shown = here.show(&vm);
    call.write(shown)
}

pub(super) fn get_host(call: &mut Call<'_>) -> Outcome {
    let here = on(call)?;
    call.write(Value::object(
        "VMHost",
        [
            ("Name", Value::text(&here.host)),
            ("VirtualMachinePath", Value::text(r"C:\ClusterStorage\Volume1")),
            ("VirtualHardDiskPath", Value::text(r"C:\ClusterStorage\Volume1")),
            ("VirtualMachineMigrationEnabled", Value::Bool(true)),
        ],
    ))
}

/// Hosts of this lab migrate VMs always.
pub(super) fn enable_migration(call: &mut Call<'_>) -> Outcome {
    on(call).map(drop)
}

pub(super) fn new_vhd(call: &mut Call<'_>) -> Outcome {
    let size = call.integer("SizeBytes").unwrap_or_default();
    for path in call.texts("Path") {
        if !call.should_process(&path, "New-VHD")? {
            continue;
        }
        let real = call.file(&path)?;
        if real.exists() {
            return Err(call.fail(ErrorRecord::new(
                Category::ResourceExists,
                "FileExists",
                format!("Failed to create the virtual hard disk: the file '{path}' exists."),
            )));
        }
        // An image of a volume, empty: of a disk nothing else is told here.
        let made = fs::File::create_new(&real).and_then(|file| file.set_len(u64::try_from(size).unwrap_or_default()));
        made.map_err(|error| failed(call, "VHDNotCreated", error))?;
        call.write(vhd(&path, size))?;
    }
    Ok(())
}

fn vhd(path: &str, size: i64) -> Value {
    Value::object(
        "VirtualHardDisk",
        [
            ("Path", Value::text(path)),
            (
                "VhdFormat",
                Value::text(if path.to_ascii_lowercase().ends_with("x") {
                    "VHDX"
                } else {
                    "VHD"
                }),
            ),
            ("VhdType", Value::text("Dynamic")),
            ("Size", Value::Int(size)),
        ],
    )
}

pub(super) fn get_vhd(call: &mut Call<'_>) -> Outcome {
    for path in call.texts("Path") {
        let real = call.file(&path)?;
        let data = fs::metadata(&real).map_err(|error| call.fail(hgs_shell::path::io_error(&path, &error)))?;
        call.write(vhd(&path, i64::try_from(data.len()).unwrap_or(i64::MAX)))?;
    }
    Ok(())
}
