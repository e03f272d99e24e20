//! Export and import: what starts where, and what does not.

use std::fs;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_exported_vm_starts_where_its_fabric_lets_it_and_nothing_older_than_there() {
    let (mut stage, mut hosts) = Stage::set(&["host01"]).await;
    let one = hosts.remove(0);
    let first = start(&one, "payroll");
    let checkpoint = good(&one, "checkpoint payroll")["id"].as_str().unwrap().to_owned();
    // The agents have a user of their own.
    let out = stage.volume_path.join(".exports");
    let export = format!("export payroll --to {}", out.display());
    refused(&one, &export, &["in use"]);
    good(&one, "save payroll");
    good(&one, &export);
    refused(&one, &export, &["exists"]);
    let exported = out.join("payroll");
    refused(
        &one,
        &format!("import {}", exported.display()),
        &["on the volume already"],
    );
    refused(
        &one,
        &format!("import {} --name copy", exported.display()),
        &["on the volume already, as payroll", "one identity"],
    );
    refused(&one, &format!("import {}", out.display()), &["no exported VM"]);

    // Another host of the fabric, over a volume of its own: the saved guest goes on, under another name.
    let two = host_of_its_own(&stage, "host02").await;
    let elsewhere = other_place(&stage, "host02");
    copy(&exported, &elsewhere.join(".handed-over/payroll"));
    good(
        &two,
        &format!(
            "import {} --name wages",
            elsewhere.join(".handed-over/payroll").display()
        ),
    );
    let moved = view(&two, "wages");
    assert_eq!(
        (moved.state, moved.owner_host.as_str(), moved.checkpoints.len()),
        (VmState::Saved, "host02", 1)
    );
    assert_eq!(start(&two, "wages").boot_id, first.boot_id);
    stage.vm.name = VmName::parse("wages").unwrap();
    prove(&two, &stage.vm).await;
    good(&two, "stop wages");
    good(&two, &format!("apply-checkpoint wages {checkpoint}"));
    assert_eq!(start(&two, "wages").boot_id, first.boot_id);

    // On its first host the VM has gone on since; the export is an older one there.
    start(&one, "payroll");
    good(&one, "stop payroll");
    fs::remove_dir_all(stage.volume_path.join("payroll")).unwrap();
    good(&one, &format!("import {}", exported.display()));
    refused(&one, "start payroll", &["is too old"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exported_vm_does_not_start_in_another_fabric() {
    let (mut stage, mut hosts) = Stage::set(&["host01"]).await;
    let one = hosts.remove(0);
    start(&one, "payroll");
    good(&one, "stop payroll");
    let out = stage.volume_path.join(".exports");
    good(&one, &format!("export payroll --to {}", out.display()));

    let foreign = stage.fabric.start_hgs("foreign").unwrap();
    foreign.trust_signer().await.unwrap();
    foreign
        .trust_tpm_makers(&stage.fabric.tpm_maker_certificates().unwrap())
        .await
        .unwrap();
    let boot_log = one.artefact("boot.log").await.unwrap();
    let policy = one.artefact("SIPolicy.p7b").await.unwrap();
    foreign.register_model("GuardedHost", &boot_log, &policy).await.unwrap();
    stage.hgs = foreign;
    let thief = host_of_its_own(&stage, "thief").await;
    let handed = other_place(&stage, "thief").join(".handed-over/payroll");
    copy(&out.join("payroll"), &handed);
    good(&thief, &format!("import {}", handed.display()));
    refused(&thief, "start payroll", &["KeyProtectionAccessDeniedException"]);
    assert_eq!(state(&thief, "payroll"), VmState::Off);
}

/// A host of the stage's HGS over a volume of its own.
async fn host_of_its_own(stage: &Stage, name: &str) -> SimHost {
    let volume = other_place(stage, name);
    let mut hosts = stage.fabric.start_hosts(&[(name, &stage.hgs, &volume)]).unwrap();
    let host = hosts.remove(name).unwrap();
    stage
        .hgs
        .register_host(name, &host.artefact("ek.cer").await.unwrap())
        .await
        .unwrap();
    host
}

fn other_place(stage: &Stage, name: &str) -> PathBuf {
    stage.fabric.volume(&format!("volume-of-{name}")).unwrap().1
}

/// As whoever carries an exported VM to another site; the copy is for any user to read.
pub(crate) fn copy(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let copied = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &copied),
            false => drop(fs::copy(path, copied).unwrap()),
        }
    }
}
