//! What each kind of VM lets its host's administrator do.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::Stdio,
};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_lets_its_administrators_in_as_far_as_it_says() {
    let (stage, mut hosts) = Stage::set(&["host01"]).await;
    let host = hosts.remove(0);
    let books = ledger(&stage).await;
    for name in ["payroll", "ledger"] {
        start(&host, name);
    }
    let look = |name: &str, channel: &str| {
        let shown = vm(&host, &format!("look {name} {channel}"))?;
        Ok::<_, String>(STANDARD.decode(shown["content"].as_str().unwrap()).unwrap())
    };

    // A fabric that is trusted sees everything, the memory with the owner's secret included.
    for channel in ["console", "serial", "powershell-direct", "data-exchange"] {
        assert!(!look("ledger", channel).unwrap().is_empty(), "{channel}");
    }
    assert!(contains(&look("ledger", "debugger").unwrap(), SECRET));
    // One that is not sees the screen.
    assert!(contains(&look("payroll", "console").unwrap(), "login"));
    for (channel, reason) in [
        ("serial", "COM ports are disabled"),
        ("debugger", "protected process"),
        ("powershell-direct", "PowerShell Direct is blocked"),
        ("data-exchange", "data exchange is blocked"),
    ] {
        let error = look("payroll", channel).unwrap_err();
        assert!(
            error.contains("the VM is shielded") && error.contains(reason),
            "{channel}: {error}"
        );
    }

    // Hardware is changed while a VM is off.
    refused(&host, "security ledger --off serial", &["in use"]);
    for name in ["payroll", "ledger"] {
        good(&host, &format!("stop {name}"));
    }
    for switch in ["serial", "powershell-direct", "data-exchange"] {
        good(&host, &format!("security ledger --off {switch}"));
        refused(
            &host,
            &format!("security payroll --on {switch}"),
            &["blocks", "cannot be turned on"],
        );
    }
    for switch in ["secure-boot", "vtpm", "encrypt-state-and-migration"] {
        refused(
            &host,
            &format!("security payroll --off {switch}"),
            &["enforces", "cannot be turned off"],
        );
    }
    let security = view(&host, "ledger").security.unwrap();
    assert_eq!(
        (security.kind, security.switches["serial"]),
        (Kind::EncryptionSupported, false)
    );
    start(&host, "ledger");
    for channel in ["serial", "powershell-direct", "data-exchange"] {
        let error = look("ledger", channel).unwrap_err();
        assert!(error.contains("turned off"), "{channel}: {error}");
    }
    prove(&host, &books).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_needs_the_firmware_that_its_volume_is_sealed_to() {
    let (stage, mut hosts) = Stage::set(&["host01"]).await;
    let host = hosts.remove(0);
    let books = ledger(&stage).await;
    for (switch, reason) in [
        ("secure-boot", "does not unseal the volume key"),
        ("vtpm", "no virtual TPM"),
    ] {
        good(&host, &format!("security ledger --off {switch}"));
        refused(&host, "start ledger", &[reason]);
        assert_eq!(state(&host, "ledger"), VmState::Off);
        good(&host, &format!("security ledger --on {switch}"));
        start(&host, "ledger");
        prove(&host, &books).await;
        good(&host, "stop ledger");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fabric_shields_a_vm_and_its_owner_alone_takes_that_back() {
    let (stage, mut hosts) = Stage::set(&["host01"]).await;
    let host = hosts.remove(0);
    let desk = stage.folder.0.join("desk");
    fs::create_dir(&desk).unwrap();
    let books = owned_by_files(&stage, &desk).await;
    let open = files(&stage, "ledger");
    good(&host, "security ledger --kind shielded");
    assert_eq!(view(&host, "ledger").security.unwrap().kind, Kind::Shielded);
    start(&host, "ledger");
    prove(&host, &books).await;
    refused(&host, "look ledger debugger", &["protected process"]);
    good(&host, "stop ledger");
    refused(
        &host,
        "security ledger --kind encryption-supported",
        &["only its owner does"],
    );

    // Whoever edits the file has a VM that does not open. The kind stands behind magic, id and age.
    let sealed = files(&stage, "ledger").guest_state;
    for (kind, switches) in [(1, sealed[37]), (1, 63), (2, 63)] {
        let mut edited = sealed.clone();
        (edited[36], edited[37]) = (kind, switches);
        put(&stage, "ledger", "guest-state.bin", &edited);
        refused(&host, "start ledger", &["guest state"]);
    }
    put(&stage, "ledger", "guest-state.bin", &sealed);

    // What it was before it was shielded is an older generation, from the change on.
    let shielded = files(&stage, "ledger");
    put_all(&stage, "ledger", &open);
    refused(&host, "start ledger", &["is too old"]);
    put_all(&stage, "ledger", &shielded);

    let (volume, desk) = (stage.volume_path.display(), desk.display());
    let hgs = Owner::import_guardian(&stage.hgs.metadata().await.unwrap(), "HGS").unwrap();
    program(&format!(
        "vm rekey ledger --volume {volume} --owner-signing {desk}/signing.pem --owner-encryption {desk}/encryption.pem \
         --guardian {desk}/hgs.xml --thumbprint {} --kind encryption-supported",
        hgs.encryption_thumbprint
    ))
    .unwrap();
    start(&host, "ledger");
    prove(&host, &books).await;
    let memory = good(&host, "look ledger debugger");
    assert!(contains(
        &STANDARD.decode(memory["content"].as_str().unwrap()).unwrap(),
        SECRET
    ));
}

/// Started by its option, as a person starts it; relative paths included.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_of_before_1803_has_no_console_for_a_shielded_vm() {
    let folder = support::Folder::new();
    fs::create_dir(folder.0.join("data")).unwrap();
    guarded_host_sim::machine::user::let_others_pass(&folder.0.join("data")).unwrap();
    let words = "host --before-1803 --name host01 --dir data/host01 --maker data/maker --volume data/volume";
    let mut process = Command::new(env!("CARGO_BIN_EXE_guarded-host-sim"))
        .args(words.split(' '))
        .current_dir(&folder.0)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let url = line.trim().split("agent=").nth(1).unwrap_or_else(|| panic!("{line:?}"));
    let host = SimHost::attach("host01", &folder.0.join("data/host01"), url).unwrap();
    let secret = folder.0.join("secret");
    fs::write(&secret, SECRET).unwrap();
    for (name, kind) in [("payroll", "shielded"), ("ledger", "encryption-supported")] {
        good(
            &host,
            &format!("create {name} --kind {kind} --secret-file {}", secret.display()),
        );
        start(&host, name);
    }
    refused(&host, "look payroll console", &["before version 1803"]);
    good(&host, "look ledger console");
    // A damaged VM is left out of the list, and says why when asked.
    fs::write(folder.0.join("data/volume/ledger/current.json"), "{").unwrap();
    let listed: Vec<VmView> = serde_json::from_value(good(&host, "list")).unwrap();
    assert_eq!(listed.len(), 1);
    refused(&host, "show ledger", &["is damaged"]);
    process.kill().unwrap();
    process.wait().unwrap();
}

/// As [`ledger`], of an owner whose keys are PEM files in `desk`.
async fn owned_by_files(stage: &Stage, desk: &std::path::Path) -> OwnedVm {
    use hgs_protocol::{
        env::Clock,
        protector::{GuardianKeys, KeyPair, KeyPurpose, suite::Suite},
    };
    let now = Clock::system().now();
    let [signing, encryption] =
        [(KeyPurpose::Signing, "signing"), (KeyPurpose::Encryption, "encryption")].map(|(purpose, name)| {
            let pair = KeyPair::generate(Suite::Rsa, purpose, "Owner", now, &mut OsRandom).unwrap();
            fs::write(desk.join(format!("{name}.pem")), support::pem(&pair)).unwrap();
            pair
        });
    let metadata = stage.hgs.metadata().await.unwrap();
    fs::write(desk.join("hgs.xml"), &metadata).unwrap();
    let guardian = Owner::import_guardian(&metadata, "HGS").unwrap().guardian;
    let owner = Owner::with_keys(GuardianKeys::from_pairs("Owner", signing, encryption), desk).unwrap();
    owner
        .make_vm(
            &VmName::parse("ledger").unwrap(),
            Kind::EncryptionSupported,
            SECRET.as_bytes(),
            &[guardian],
            (&stage.volume, "host01"),
            &mut OsRandom,
        )
        .unwrap()
}
