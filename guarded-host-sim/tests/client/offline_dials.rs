//! Neither HGS answers: the VM starts with the key that the host keeps of its last start, if nothing about the host has
//! changed, and not after any dial was turned.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use futures_util::future::join_all;
use guarded_host_sim::{
    fabric::host::{HostPlan, SimHost},
    machine::dials::{AppliedDials, Dials, TemplateDial},
};
use serde_json::json;

use crate::{allow, get, look, off, start, support::Stage, with_fallback};

/// One dial, by its name in a file of dials, and a turn of it.
type Turn = (&'static str, fn(&mut Dials));

/// Every dial that ends in something measured; `template` comes on top, which needs a log.
const TURNS: &[Turn] = &[
    ("firmware", |d| d.firmware = "2.0".to_owned()),
    ("dbx", |d| d.dbx = "another".to_owned()),
    ("secure_boot", |d| d.secure_boot = false),
    ("boot_authority", |d| d.boot_authority = "Mallory".to_owned()),
    ("uefi_debug", |d| d.uefi_debug = true),
    ("boot_debugging", |d| d.boot_debugging = true),
    ("hypervisor_debug", |d| d.hypervisor_debug = true),
    ("test_signing", |d| d.test_signing = true),
    ("vsm", |d| d.vsm = false),
    ("hvci", |d| d.hvci = false),
    ("ci_policy", |d| d.ci_policy = Some(b"another policy".to_vec())),
    ("iommu", |d| d.iommu = false),
    ("bitlocker", |d| d.bitlocker = false),
    ("pagefile_encryption", |d| d.pagefile_encryption = false),
    ("hibernation_disabled", |d| d.hibernation_disabled = false),
    ("dumps_disabled", |d| d.dumps_disabled = false),
    ("dump_encryption", |d| d.dump_encryption = true),
    ("dump_encryption_key", |d| d.dump_encryption_key = Some(vec![7; 32])),
    ("full_boot", |d| d.full_boot = false),
    ("omit", |d| d.omit = BTreeSet::from(["OSKERNELDEBUG".to_owned()])),
];

/// They change what the host shows to attestation and by which time it goes, not what it measures.
const NOT_MEASURED: &[&str] = &["ek_certificate", "clock_skew"];

#[test]
fn every_dial_is_in_the_table() {
    let dials = Dials {
        omit: BTreeSet::from(["dbx".to_owned()]),
        template: Some(template(Path::new("log"))),
        ..Dials::default()
    };
    let dials = serde_json::to_value(dials).unwrap();
    let all: BTreeSet<&str> = dials.as_object().unwrap().keys().map(String::as_str).collect();
    let turned = TURNS.iter().map(|(name, _)| *name).chain(["template"]);
    let known: BTreeSet<&str> = turned.chain(NOT_MEASURED.iter().copied()).collect();
    assert_eq!(all, known);
    for (name, turn) in TURNS {
        let mut dials = Dials::default();
        turn(&mut dials);
        let (before, after) = [Dials::default(), dials]
            .map(|d| serde_json::to_value(d).unwrap())
            .into();
        let changed = all.iter().filter(|key| before.get(**key) != after.get(**key));
        assert_eq!(changed.copied().collect::<Vec<_>>(), [*name]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_key_starts_the_vm_if_nothing_changed_and_not_after_any_dial_was_turned() {
    let (mut stage, mut hosts) = Stage::set(&["host01"]).await;
    let mut host = hosts.remove(0);
    let mut other = with_fallback(&mut stage, &host).await;
    for hgs in [&stage.hgs, &other] {
        allow(hgs, 5).await;
    }
    stage.wish_offline_starts(5);
    let started = start(&stage, &host).await.unwrap();
    assert_eq!((started.offline, started.offline_starts_left), (false, 5));
    off(&stage, &host).await;
    for hgs in [&mut stage.hgs, &mut other] {
        hgs.attestation.kill().unwrap();
        hgs.kps.kill().unwrap();
    }

    // Nothing has changed but that the host was restarted.
    host.reboot(Dials::default()).unwrap();
    let started = start(&stage, &host).await.unwrap();
    assert_eq!((started.offline, started.offline_starts_left), (true, 4));
    stage.prove(&host).await;
    off(&stage, &host).await;
    let view = get(&host).await;
    assert_eq!(view.attestation_status_code, 300, "{view:?}");
    assert!(!view.is_fallback_in_use, "{view:?}");

    // From here on each dial is turned on a copy of the host as it is now.
    let agent = agent_arguments(&look(&host).await, host.folder());
    let log = stage.folder.0.join("own.log");
    fs::write(&log, host.artefact("boot.log").await.unwrap()).unwrap();
    let original = host.folder().to_path_buf();
    host.kill().unwrap();
    let folder = original.clone();
    crate::support::wait_until(10, "nothing of the host runs", || {
        crate::support::processes_of(&folder).is_empty()
    });
    let copies = Copies {
        stage: &stage,
        original,
        agent,
    };
    let of_template = |dials: &mut Dials| dials.template = Some(template(&log));
    let mut turns: Vec<(&str, Dials)> = Vec::new();
    for (name, turn) in TURNS {
        let mut dials = Dials::default();
        turn(&mut dials);
        turns.push((name, dials));
    }
    let mut dials = Dials::default();
    of_template(&mut dials);
    turns.push(("template", dials));
    for some in turns.chunks(AT_ONCE) {
        let refused = some.iter().map(|(name, dials)| copies.start_with(name, dials.clone()));
        for (name, refused) in join_all(refused).await {
            let refused = refused.unwrap_err();
            // Without a VBS store nobody is asked in the first place.
            let reasons: &[&str] = match name {
                "vsm" => &["virtual secure mode does not run"],
                _ => &["no contact with the Host Guardian Service", "since it got its VSM keys"],
            };
            for reason in reasons {
                assert!(refused.contains(reason), "{name}: {refused}");
            }
        }
    }

    // It was the dials, not the copying.
    let (_, started) = copies.start_with("none", Dials::default()).await;
    assert_eq!(started.unwrap(), 3);
    for name in NOT_MEASURED {
        let (_, started) = copies.start_with(name, not_measured(name)).await;
        assert_eq!(started.unwrap(), 3, "{name}: what is not measured changes nothing");
    }
}

/// Copies of a host that is down.
struct Copies<'a> {
    stage: &'a Stage,
    original: PathBuf,
    agent: Vec<String>,
}

impl Copies<'_> {
    /// Boots a copy with the dials and starts the VM there: how many starts are left, or the refusal.
    async fn start_with<'n>(&self, name: &'n str, dials: Dials) -> (&'n str, Result<u32, String>) {
        let folder = self.stage.folder.0.join("copies").join(name);
        fs::create_dir_all(folder.parent().unwrap()).unwrap();
        guarded_host_sim::machine::user::let_others_pass(folder.parent().unwrap()).unwrap();
        let copied = Command::new("cp")
            .arg("-a")
            .arg(&self.original)
            .arg(&folder)
            .status()
            .unwrap();
        assert!(copied.success());
        let _ = fs::remove_dir_all(folder.join("run"));
        let file = folder.join("dials.json");
        fs::write(&file, serde_json::to_vec(&dials).unwrap()).unwrap();
        let host = self.boot(&folder, &file);
        let refused = start(self.stage, &host).await;
        if refused.is_ok() {
            off(self.stage, &host).await;
        }
        (
            name,
            refused.map(|started| {
                assert!(started.offline, "{name}");
                started.offline_starts_left
            }),
        )
    }

    fn boot(&self, folder: &Path, dials: &Path) -> SimHost {
        let plan = HostPlan {
            name: "host01",
            folder,
            maker: &self.stage.fabric.folder().join("tpm-maker"),
            volume: &self.stage.volume_path,
            host: &["--dials".to_owned(), dials.display().to_string()],
            agent: &self.agent,
            environment: &Vec::new(),
        };
        SimHost::start(&plan).unwrap()
    }
}

/// What the agent of the host was told, for a copy elsewhere.
fn agent_arguments(view: &guarded_host_sim::agent::view::ClientView, folder: &Path) -> Vec<String> {
    let url = |url: &Option<String>| url.clone().unwrap();
    vec![
        "--attestation-url".to_owned(),
        url(&view.attestation_server_url),
        "--key-protection-url".to_owned(),
        url(&view.key_protection_server_url),
        "--names".to_owned(),
        folder.join("names.json").display().to_string(),
    ]
}

fn template(log: &Path) -> TemplateDial {
    TemplateDial {
        file: log.to_path_buf(),
        dials: AppliedDials::Changed,
    }
}

fn not_measured(name: &str) -> Dials {
    let dials = match name {
        "ek_certificate" => json!({ "ek_certificate": "missing" }),
        _ => json!({ "clock_skew": "-2d" }),
    };
    serde_json::from_value(dials).unwrap()
}

/// Copies of the host that run at a time.
const AT_ONCE: usize = 5;
