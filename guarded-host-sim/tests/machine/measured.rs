//! One table of every dial: which events of the log, and which PCRs of a real TPM, are otherwise at the next boot, and
//! that nothing else is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use guarded_host_sim::{
    machine::{
        control::Control,
        known::{DIALS, Known},
        settings::{Changes, as_map},
    },
    store::SEALING_PCRS,
    tpm_channel::TpmChannel,
};
use hgs_protocol::{
    tpm::{PcrSelection, command, response},
    wire::{
        boot_log::{Bank, BootLog, Event, EventType},
        sipa::{id, measured_leaves},
        uefi::UefiVariable,
    },
};
use serde_json::{Value, json};

use crate::Host;

/// Every dial away from a healthy host's. `template` is turned apart, since its value is a log.
fn turns() -> Vec<(&'static str, Value)> {
    vec![
        ("firmware", json!("HGS-SIM-2.0")),
        ("secure_boot", json!(false)),
        ("dbx", json!("the year after")),
        ("boot_authority", json!("Contoso")),
        ("uefi_debug", json!(true)),
        ("boot_debugging", json!(true)),
        ("hypervisor_debug", json!(true)),
        ("test_signing", json!(true)),
        ("vsm", json!(false)),
        ("hvci", json!(false)),
        ("ci_policy", json!("AAAA")),
        ("iommu", json!(false)),
        ("bitlocker", json!(false)),
        ("pagefile_encryption", json!(false)),
        ("hibernation_disabled", json!(false)),
        ("dumps_disabled", json!(false)),
        ("dump_encryption", json!(true)),
        ("dump_encryption_key", json!("AAAA")),
        ("full_boot", json!(false)),
        ("ek_certificate", json!("missing")),
        ("clock_skew", json!("-9h")),
        ("omit", json!(["dbx", "SAFEMODE"])),
    ]
}

/// Events whose value is new at each boot, or with each new store; what a dial does is told by all others.
const OF_THE_BOOT: &[&str] = &["BOOTCOUNTER", "VSM_IDK_INFO", "VSM_IDKS_INFO"];
/// What only a hypervisor measures of itself, and is not there without it.
pub(crate) const OF_THE_HYPERVISOR: &[&str] = &[
    "FILEPATH",
    "HASHALGORITHMID",
    "AUTHENTICODEHASH",
    "IMAGEVALIDATED",
    "HYPERVISOR_DEBUG",
    "HYPERVISOR_IOMMU_POLICY",
    "HYPERVISOR_MMIO_NX_POLICY",
    "HYPERVISOR_MSR_FILTER_POLICY",
    "HYPERVISOR_BOOT_DMA_PROTECTION",
    "TRANSFER_CONTROL",
    "BOOTDEBUGGING",
    "TESTSIGNING",
    "CODEINTEGRITY",
    "BITLOCKER_UNLOCK",
    "VBS_VSM_REQUIRED",
    "VBS_SECUREBOOT_REQUIRED",
    "VBS_IOMMU_REQUIRED",
    "VBS_HVCI_POLICY",
    "VBS_MICROSOFT_BOOT_CHAIN_REQUIRED",
];

type Names = BTreeSet<(u8, String)>;

/// What a boot left behind.
pub(crate) struct Boot {
    /// By PCR and name, the values in their order.
    pub(crate) events: BTreeMap<(u8, String), Vec<Vec<u8>>>,
    /// The TPM's own.
    pub(crate) pcrs: BTreeMap<u8, [u8; 32]>,
    /// The VSM keys, when there are any.
    pub(crate) keys: Vec<Vec<u8>>,
    policy: Option<Vec<u8>>,
    ek_certificate: Option<Vec<u8>>,
}

impl Boot {
    pub(crate) fn look(dir: &Path) -> Boot {
        let log = BootLog::parse(&fs::read(dir.join("agent/boot.log")).unwrap()).unwrap();
        let mut boot = Boot {
            events: BTreeMap::new(),
            pcrs: pcrs(dir),
            keys: Vec::new(),
            policy: fs::read(dir.join("agent/SIPolicy.p7b")).ok(),
            ek_certificate: fs::read(dir.join("agent/ek.cer")).ok(),
        };
        for event in log.events().iter().filter(|event| event.is_measured()) {
            boot.take(event);
        }
        let replayed = log.replay(Bank::Sha256);
        for (pcr, value) in &boot.pcrs {
            let logged = replayed.iter().find(|(index, _)| index.get() == *pcr);
            assert_eq!(logged.unwrap().1, value, "the log replays to PCR {pcr}");
        }
        boot
    }

    fn take(&mut self, event: &Event) {
        let pcr = event.pcr_index().unwrap().get();
        let mut note = |name: String, value: Vec<u8>| self.events.entry((pcr, name)).or_default().push(value);
        match event.event_type {
            EventType::EVENT_TAG => {
                for tag in measured_leaves(&event.data).unwrap() {
                    match tag.id {
                        id::VSM_IDK_INFO | id::VSM_IDKS_INFO => self.keys.push(tag.data.clone()),
                        _ => {}
                    }
                    let name = id::name(tag.id).unwrap();
                    if !OF_THE_BOOT.contains(&name) {
                        note(name.to_owned(), tag.data);
                    }
                }
            }
            EventType::EFI_VARIABLE_DRIVER_CONFIG => {
                let variable = UefiVariable::parse(&event.data).unwrap();
                note(variable.name, variable.data);
            }
            // Of an image its digest counts; the data say where it was loaded.
            kind => note(
                kind.to_string(),
                [event.digest(Bank::Sha256).unwrap(), &event.data].concat(),
            ),
        }
    }

    /// What is otherwise than in `other`.
    fn against(&self, other: &Boot) -> Names {
        let all: BTreeSet<_> = self.events.keys().chain(other.events.keys()).collect();
        let differs = |key: &&&(u8, String)| self.events.get(**key) != other.events.get(**key);
        all.iter().filter(differs).map(|key| (*key).clone()).collect()
    }
}

fn pcrs(dir: &Path) -> BTreeMap<u8, [u8; 32]> {
    let mut tpm = TpmChannel::connect(&dir.join("run/tpm-agent"), "host01").unwrap();
    let halves = [[0, 1, 2, 3, 4, 5].as_slice(), [6, 7, 11, 12, 13, 14].as_slice()];
    let read = halves.map(|indices| {
        let selection = PcrSelection::of(indices).unwrap();
        let answer = tpm.call(&command::pcr_read(selection)).unwrap();
        let answer = response::Response::parse(&answer).unwrap();
        response::pcr_read(answer.parameters, selection).unwrap().values
    });
    read.into_iter().flatten().collect()
}

fn named(known: &Known) -> Names {
    let mut names: Names = known
        .measured
        .iter()
        .map(|(pcr, name)| (*pcr, (*name).to_owned()))
        .collect();
    let more: &[(u8, &str)] = match known.name {
        "omit" => &[(7, "dbx"), (12, "SAFEMODE")],
        _ => &[],
    };
    names.extend(more.iter().map(|(pcr, name)| (*pcr, (*name).to_owned())));
    if known.name == "vsm" {
        names.extend(OF_THE_HYPERVISOR.iter().map(|name| (12, (*name).to_owned())));
    }
    names
}

#[test]
fn every_dial_changes_its_own_events_and_pcrs_and_nothing_else() {
    let Some(host) = Host::start("every_dial_changes_its_own_events_and_pcrs_and_nothing_else") else {
        return;
    };
    let dir = host.dir();
    let healthy = host.ask(&Control::Status).dials.unwrap();
    let all: BTreeSet<String> = as_map(&healthy).keys().cloned().collect();
    let turns = turns();
    let known: BTreeSet<&str> = DIALS.iter().map(|known| known.name).collect();
    let turned: BTreeSet<&str> = turns.iter().map(|(name, _)| *name).chain(["template"]).collect();
    assert_eq!(
        known, turned,
        "each dial that an administrator is told of has its row, and no other"
    );
    assert!(all.iter().all(|name| known.contains(name.as_str())), "{all:?}");

    let mut before = Boot::look(&dir);
    for (name, value) in turns {
        let known = DIALS.iter().find(|known| known.name == name).unwrap();
        let back = as_map(&healthy).get(name).cloned().unwrap_or_else(|| json!([]));

        // Set, it waits: the machine as it runs is as before.
        let set = host.ask(&Control::Set {
            dials: Changes::from_iter([(name.to_owned(), value.clone())]),
        });
        assert!(set.ok && set.message.contains("at the next boot"), "{name}: {set:?}");
        assert_eq!(
            (set.dials, set.waiting.dials.get(name)),
            (Some(healthy.clone()), Some(&value))
        );
        assert_eq!(
            Boot::look(&dir).pcrs,
            before.pcrs,
            "{name}: nothing happens before the boot"
        );

        let rebooted = host.ask(&Control::Reboot { dials: None });
        assert!(rebooted.ok && rebooted.waiting.is_empty(), "{name}: {rebooted:?}");
        let after = Boot::look(&dir);
        let expected = named(known);
        assert_eq!(after.against(&before), expected, "{name}: events");
        // PCR 12 holds the boot's number, so it is another at each boot.
        let with_counter: BTreeSet<u8> = expected.iter().map(|(pcr, _)| *pcr).chain([12]).collect();
        let otherwise = |pcr: &&u8| before.pcrs.get(*pcr) != after.pcrs.get(*pcr);
        let changed: BTreeSet<u8> = before.pcrs.keys().filter(otherwise).copied().collect();
        assert_eq!(changed, with_counter, "{name}: PCRs");
        // The store begins anew if, and only if, something that it is sealed to is otherwise.
        let sealed = |(pcr, _): &(u8, String)| SEALING_PCRS.indices().any(|sealing| sealing == *pcr);
        let others = expected.iter().any(sealed);
        assert_eq!(after.keys != before.keys, others, "{name}: VSM keys");
        assert_eq!(after.keys.is_empty(), name == "vsm", "{name}");
        assert_eq!(
            after.policy != before.policy,
            name == "ci_policy",
            "{name}: the policy's file"
        );
        assert_eq!(
            after.ek_certificate != before.ek_certificate,
            name == "ek_certificate",
            "{name}: the EK certificate that is shown"
        );

        // Turned back, it is the healthy host again.
        assert!(
            host.ask(&Control::Set {
                dials: Changes::from_iter([(name.to_owned(), back)])
            })
            .ok
        );
        assert!(host.ask(&Control::Reboot { dials: None }).ok);
        let again = Boot::look(&dir);
        assert_eq!(again.against(&before), Names::new(), "{name}: back");
        before = again;
    }
}

/// A boot with the same dials differs by its number alone, so what differs above is the dial's doing.
#[test]
fn without_a_turn_only_the_boots_number_changes() {
    let Some(host) = Host::start("without_a_turn_only_the_boots_number_changes") else {
        return;
    };
    let before = Boot::look(&host.dir());
    assert!(host.ask(&Control::Reboot { dials: None }).ok);
    let after = Boot::look(&host.dir());
    assert_eq!(after.against(&before), Names::new());
    assert_eq!(after.keys, before.keys);
    let otherwise = |pcr: &&u8| before.pcrs.get(*pcr) != after.pcrs.get(*pcr);
    assert_eq!(before.pcrs.keys().filter(otherwise).collect::<Vec<_>>(), [&12]);
    // In the shape of its own log it measures the same; its store is not sealed to such a boot.
    let log = host.folder.0.join("own.log");
    fs::copy(host.dir().join("agent/boot.log"), &log).unwrap();
    let template = ("template".to_owned(), json!({ "file": log }));
    assert!(
        host.ask(&Control::Set {
            dials: Changes::from_iter([template])
        })
        .ok
    );
    assert!(host.ask(&Control::Reboot { dials: None }).ok);
    let shaped = Boot::look(&host.dir());
    assert_eq!(shaped.against(&after), Names::new());
    assert_ne!(shaped.keys, after.keys);
}
