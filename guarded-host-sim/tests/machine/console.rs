//! `guarded-host-sim machine`, against a running host and in the folder of one that is off.

use std::{fs, path::Path, process::Command};

use guarded_host_sim::machine::{control::Control, known::DIALS, settings::Settings};
use serde_json::Value;

use crate::{
    Host,
    support::{refused_for, said},
};

fn machine(dir: &Path, words: &[&str]) -> Result<Value, String> {
    let (verb, rest) = words.split_first().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_guarded-host-sim"));
    said(command.args(["machine", verb, "--dir"]).arg(dir).args(rest))
}

fn text(dir: &Path, words: &[&str]) -> String {
    machine(dir, words).unwrap().as_str().unwrap().to_owned()
}

#[test]
fn an_administrator_turns_dials_of_a_running_host_and_of_one_that_is_off() {
    let Some(mut host) = Host::start("an_administrator_turns_dials_of_a_running_host_and_of_one_that_is_off") else {
        return;
    };
    let dir = host.dir();
    let shown = machine(&dir, &["show", "--json"]).unwrap();
    assert_eq!(
        (&shown["on"], &shown["boots"], &shown["dials"]["iommu"]),
        (&true.into(), &1.into(), &true.into())
    );
    assert!(shown["agent"].as_str().unwrap().starts_with("http://127.0.0.1:"));

    // A change waits, and is told as such, until somebody reboots.
    let set = text(&dir, &["set", "iommu=off", "dump-encryption=on", "clock_skew=-9h"]);
    assert!(set.contains("it takes effect at the next boot"), "{set}");
    let row = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).map(str::to_owned);
        line.unwrap_or_else(|| panic!("{name} is not in {text}"))
            .split_whitespace()
            .skip(1)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(row(&set, "iommu"), ["on", "off"]);
    assert_eq!(row(&set, "clock_skew"), ["0s", "-9h"]);
    assert_eq!(row(&set, "secure_boot"), ["on"], "what is not turned does not wait");
    // One that is turned back waits no more.
    assert_eq!(
        row(&text(&dir, &["set", "dump_encryption=off"]), "dump_encryption "),
        ["off"]
    );
    let rebooted = text(&dir, &["reboot"]);
    assert_eq!(row(&rebooted, "iommu"), ["off"]);
    assert!(rebooted.contains("boots so far: 2"), "{rebooted}");
    let policy = host.folder.0.join("policy.p7b");
    fs::write(&policy, b"policy of a file").unwrap();
    let at_once = machine(
        &dir,
        &["set", &format!("ci-policy={}", policy.display()), "--reboot", "--json"],
    )
    .unwrap();
    assert_eq!(
        (&at_once["boots"], &at_once["waiting"]),
        (&3.into(), &serde_json::json!({}))
    );
    assert_eq!(fs::read(dir.join("agent/SIPolicy.p7b")).unwrap(), b"policy of a file");

    for (words, reasons) in [
        (vec!["set", "iomu=off"], ["there is no dial iomu", "machine dials"]),
        (vec!["set", "iommu=maybe"], ["on or off", "maybe"]),
        (vec!["set", "clock_skew=9"], ["clock_skew", "-15m"]),
        (vec!["set", "ek_certificate=none"], ["ek_certificate", "unknown_vendor"]),
        (vec!["set", "iommu"], ["NAME=VALUE", "iommu=off"]),
        (vec!["hibernate"], ["hibernation is off", "hibernation_disabled"]),
        (vec!["set", "template=/nowhere"], ["/nowhere", "No such file"]),
    ] {
        refused_for(machine(&dir, &words), &format!("{words:?}"), &reasons);
    }
    let nowhere = host.folder.0.join("host02");
    refused_for(machine(&nowhere, &["show"]), "show", &["no folder", "host02"]);

    // What is ordered of a host that is off waits for it, and outlasts its power.
    host.power_off();
    refused_for(machine(&dir, &["reboot"]), "reboot", &["is off", "start the host"]);
    refused_for(
        machine(&dir, &["set", "iommu=on", "--reboot"]),
        "set",
        &["is off", "--reboot"],
    );
    let set = text(&dir, &["update-firmware", "HGS-SIM-2.0"]);
    assert!(set.starts_with("The machine is off, boots so far: 3"), "{set}");
    assert_eq!(row(&set, "firmware"), ["HGS-SIM-1.0", "HGS-SIM-2.0"]);
    let cleared = text(&dir, &["clear-tpm"]);
    assert!(cleared.contains("the TPM is cleared at the next boot"), "{cleared}");
    let keys = fs::read(dir.join("store/root.sealed")).unwrap();
    host.power_on(&[]);
    let shown = machine(&dir, &["show", "--json"]).unwrap();
    assert_eq!(
        (&shown["dials"]["firmware"], &shown["dials"]["iommu"]),
        (&"HGS-SIM-2.0".into(), &false.into())
    );
    assert_eq!(shown["waiting"], serde_json::json!({}), "{shown}");
    assert!(
        shown["remarks"]
            .to_string()
            .contains("the TPM was cleared: new VSM keys"),
        "{shown}"
    );
    assert_ne!(fs::read(dir.join("store/root.sealed")).unwrap(), keys);

    // A lab that names dials starts the host with those.
    host.power_off();
    let dials = host.folder.0.join("dials.json");
    fs::write(&dials, r#"{"iommu":true,"firmware":"HGS-SIM-3.0"}"#).unwrap();
    host.power_on(&["--dials", dials.to_str().unwrap()]);
    let dials = host.ask(&Control::Status).dials.unwrap();
    assert_eq!((dials.iommu, dials.firmware.as_str()), (true, "HGS-SIM-3.0"));
    assert_eq!(Settings::load(&dir).unwrap().unwrap().dials, *dials);
}

#[test]
fn the_list_of_dials_tells_what_each_changes() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_guarded-host-sim"));
    let list = said(command.args(["machine", "dials"])).unwrap();
    let list = list.as_str().unwrap();
    for dial in DIALS {
        assert!(
            list.contains(&format!("{}: {}", dial.name, dial.about)),
            "{}",
            dial.name
        );
    }
    assert!(list.contains("PCR  7  SecureBoot\n"), "{list}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_guarded-host-sim"));
    let json = said(command.args(["machine", "dials", "--json"])).unwrap();
    assert_eq!(json.as_array().unwrap().len(), DIALS.len());
}
