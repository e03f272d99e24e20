//! Hosts in local mode: a VM with a local key protector starts where the private keys of its guardian are.

use std::{fs, path::Path};

use super::*;
use guarded_host_sim::{fabric::host::HostPlan, machine::user::let_others_pass};
use support::Folder;

/// A host without an HGS, over a volume of its own.
fn local_host(folder: &Folder, name: &str) -> SimHost {
    let hosts = folder.0.join("hosts");
    fs::create_dir_all(&hosts).unwrap();
    let_others_pass(&hosts).unwrap();
    SimHost::start(&HostPlan {
        name,
        folder: &hosts.join(name),
        maker: &folder.0.join("maker"),
        volume: &folder.0.join(format!("volume-of-{name}")),
        host: &[],
        agent: &[],
        environment: &Vec::new(),
    })
    .unwrap()
}

fn create(folder: &Folder, host: &SimHost, name: &str) {
    let secret = folder.0.join("secret");
    fs::write(&secret, SECRET).unwrap();
    good(
        host,
        &format!(
            "create {name} --kind encryption-supported --secret-file {}",
            secret.display()
        ),
    );
}

/// The words that name a host's own guardians to the command `guardian`.
fn guardians(host: &SimHost) -> String {
    let agent = host.folder().join("agent");
    let agent = agent.display();
    format!("--dir {agent}/local-guardians --password-file {agent}/local-guardians.password")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_vm_starts_once_the_certificates_of_its_old_host_have_moved_too() {
    let folder = Folder::new();
    let (one, two) = (local_host(&folder, "host01"), local_host(&folder, "host02"));
    create(&folder, &one, "ledger");
    let first = start(&one, "ledger");
    assert!(contains(&memory_of(&one), SECRET));
    assert_eq!(view(&one, "ledger").protector.unwrap().guardians, 1);
    good(&one, "stop ledger");
    assert_eq!(start(&one, "ledger").boots, first.boots + 1);
    good(&one, "save ledger");

    let out = folder.0.join("volume-of-host01/.exports");
    good(&one, &format!("export ledger --to {}", out.display()));
    transfer::copy(
        &out.join("ledger"),
        &folder.0.join("volume-of-host02/.handed-over/ledger"),
    );
    let handed = folder.0.join("volume-of-host02/.handed-over/ledger");
    good(&two, &format!("import {}", handed.display()));
    // The second host has a guardian of the same name, with other keys.
    create(&folder, &two, "other");
    start(&two, "other");
    let owner = view(&two, "ledger").protector.unwrap().owner.unwrap();
    refused(
        &two,
        "start ledger",
        &[
            "local mode",
            "no guardian here has the private keys",
            &owner,
            "import it here",
        ],
    );
    refused(&two, "set-protector ledger --new-local", &["is saved"]);
    good(&two, "discard-saved ledger");
    refused(
        &two,
        "set-protector ledger --new-local",
        &["no guardian of this host has the private keys"],
    );

    // Both certificates, as PFX, from the one host to the other.
    let password = folder.0.join("pfx.password");
    fs::write(&password, "carried by hand\n").unwrap();
    let (carried, password) = (folder.0.display(), password.display());
    program(&format!(
        "guardian export UntrustedGuardian {} --with-private-keys --signing-pfx {carried}/signing.pfx --encryption-pfx \
         {carried}/encryption.pfx --pfx-password-file {password}",
        guardians(&one)
    ))
    .unwrap();
    program(&format!(
        "guardian create host01 {} --signing-pfx {carried}/signing.pfx --signing-pfx-password-file {password} \
         --encryption-pfx {carried}/encryption.pfx --encryption-pfx-password-file {password} --allow-untrusted-root",
        guardians(&two)
    ))
    .unwrap();
    give_to_agent(&two);
    assert_eq!(start(&two, "ledger").boots, first.boots + 2);
    assert!(contains(&memory_of(&two), SECRET));

    // Now it may be made the second host's own, and needs the carried keys no more.
    good(&two, "stop ledger");
    good(&two, "set-protector ledger --new-local");
    assert_ne!(view(&two, "ledger").protector.unwrap().owner.unwrap(), owner);
    program(&format!(
        "guardian remove host01 --destroy-private-keys --dir {}/agent/local-guardians",
        two.folder().display()
    ))
    .unwrap();
    assert_eq!(start(&two, "ledger").boots, first.boots + 3);
    // A local host makes no offline starts; it needs none.
    assert!(!view(&two, "ledger").protector.unwrap().can_restore);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_protector_is_undone_until_the_vm_has_started() {
    let folder = Folder::new();
    let host = local_host(&folder, "host01");
    create(&folder, &host, "ledger");
    create(&folder, &host, "other");
    start(&host, "ledger");
    let [right, wrong, broken] = ["right.xml", "wrong.xml", "broken.xml"].map(|name| folder.0.join(name));
    let set = |path: &Path| format!("set-protector ledger --file {}", path.display());
    good(&host, &format!("protector ledger --out {}", right.display()));
    good(&host, &format!("protector other --out {}", wrong.display()));
    let mut text = fs::read(&right).unwrap();
    let at = text
        .windows(14)
        .position(|w| w == b"<TransportKey>")
        .unwrap_or(text.len() / 2)
        + 20;
    text[at] = if text[at] == b'A' { b'B' } else { b'A' };
    fs::write(&broken, text).unwrap();
    refused(&host, &set(&right), &["in use"]);
    good(&host, "stop ledger");
    refused(
        &host,
        "set-protector ledger --restore-last-known-good",
        &["no other key protector"],
    );
    refused(&host, &set(&broken), &["key protector"]);

    // Another VM's protector is taken (nobody can tell), and the VM does not start.
    good(&host, &set(&wrong));
    assert!(view(&host, "ledger").protector.unwrap().can_restore);
    refused(&host, "start ledger", &["does not open under this transport key"]);
    // A second wrong one leaves the known good one known.
    good(&host, &set(&wrong));
    good(&host, "set-protector ledger --restore-last-known-good");
    assert!(!view(&host, "ledger").protector.unwrap().can_restore);
    start(&host, "ledger");
    good(&host, "stop ledger");

    // A new local one can be undone as long as the VM has not started with it, and not after.
    let before = view(&host, "ledger");
    good(&host, "set-protector ledger --new-local");
    assert_ne!(view(&host, "ledger").generation, before.generation);
    good(&host, "set-protector ledger --restore-last-known-good");
    assert_eq!(view(&host, "ledger").generation, before.generation);
    start(&host, "ledger");
    good(&host, "stop ledger");
    good(&host, "set-protector ledger --new-local");
    start(&host, "ledger");
    good(&host, "stop ledger");
    refused(
        &host,
        "set-protector ledger --restore-last-known-good",
        &["no other key protector"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guarded_host_makes_and_opens_nothing_by_local_guardians() {
    let (stage, mut hosts) = Stage::set(&["host01"]).await;
    let host = hosts.remove(0);
    let secret = stage.folder.0.join("secret");
    fs::write(&secret, SECRET).unwrap();
    let create = format!("create ledger --secret-file {}", secret.display());
    refused(&host, &create, &["not in local mode"]);
    refused(&host, "set-protector payroll --new-local", &["not in local mode"]);
    start(&host, "payroll");
}

/// A grant adds a guardian and keeps the transport key, so the changed protector fits the state as it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_granted_protector_fits_and_moves_a_local_vm_to_a_guarded_host() {
    let (stage, mut hosts) = Stage::set(&["host01"]).await;
    let guarded = hosts.remove(0);
    let local = local_host(&stage.folder, "workstation");
    create(&stage.folder, &local, "ledger");
    start(&local, "ledger");
    good(&local, "stop ledger");
    let (protector, metadata) = (stage.folder.0.join("vm.xml"), stage.folder.0.join("hgs.xml"));
    fs::write(&metadata, stage.hgs.metadata().await.unwrap()).unwrap();
    good(&local, &format!("protector ledger --out {}", protector.display()));
    let store = guardians(&local);
    let dir = store.split(" --password-file").next().unwrap();
    program(&format!(
        "guardian import {} --name HGS {dir} --allow-untrusted-root",
        metadata.display()
    ))
    .unwrap();
    program(&format!(
        "protector grant {} --guardian HGS --owner UntrustedGuardian {store} --allow-untrusted-root",
        protector.display()
    ))
    .unwrap();
    give_to_agent(&local);
    good(&local, &format!("set-protector ledger --file {}", protector.display()));
    assert_eq!(view(&local, "ledger").protector.unwrap().guardians, 2);
    start(&local, "ledger");
    good(&local, "stop ledger");
    good(&local, "security ledger --kind shielded");

    let out = stage.folder.0.join("volume-of-workstation/.exports");
    good(&local, &format!("export ledger --to {}", out.display()));
    let handed = stage.volume_path.join(".handed-over/ledger");
    transfer::copy(&out.join("ledger"), &handed);
    good(&guarded, &format!("import {}", handed.display()));
    assert_eq!(start(&guarded, "ledger").boots, 3);
    refused(&guarded, "look ledger debugger", &["is shielded"]);
}

fn memory_of(host: &SimHost) -> Vec<u8> {
    let shown = good(host, "look ledger debugger");
    STANDARD.decode(shown["content"].as_str().unwrap()).unwrap()
}

/// What root has put into the agent's folder, the agent's user must be able to read.
fn give_to_agent(host: &SimHost) {
    use std::os::unix::fs::{MetadataExt, chown};
    let folder = host.folder().join("agent/local-guardians");
    let owner = fs::metadata(&folder).unwrap();
    for entry in fs::read_dir(&folder).unwrap() {
        chown(entry.unwrap().path(), Some(owner.uid()), Some(owner.gid())).unwrap();
    }
}
