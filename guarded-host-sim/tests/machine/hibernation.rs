//! A host that hibernates and resumes: what goes on, and what its log tells.

use guarded_host_sim::{
    machine::{control::Control, settings::Changes},
    store::protocol::{StoreClient, StoreReply, StoreRequest},
};
use serde_json::json;

use crate::{
    Host,
    measured::{Boot, OF_THE_HYPERVISOR},
    support::process,
};

fn key(host: &Host) -> String {
    let mut store = StoreClient::connect(&host.dir().join("run/store")).unwrap();
    match store.ask(&StoreRequest::Describe).unwrap() {
        StoreReply::Description { encryption_key, .. } => encryption_key,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_resumed_host_goes_on_and_its_log_tells_of_the_resume_alone() {
    let Some(host) = Host::start("a_resumed_host_goes_on_and_its_log_tells_of_the_resume_alone") else {
        return;
    };
    let dir = host.dir();
    let refused = host.ask(&Control::Hibernate);
    assert!(
        !refused.ok && refused.message.contains("hibernation is off"),
        "{refused:?}"
    );
    let dials = Changes::from_iter([("hibernation_disabled".to_owned(), json!(false))]);
    assert!(host.ask(&Control::Set { dials }).ok);
    assert!(!host.ask(&Control::Hibernate).ok, "it takes effect at the next boot");
    assert!(host.ask(&Control::Reboot { dials: None }).ok);

    let parts = || [" store ", " agent "].map(|part| process(&dir, &[part, "--name"]));
    let (before, processes, store) = (Boot::look(&dir), parts(), key(&host));
    // Something that waits goes on waiting: a resume is no boot.
    let dials = Changes::from_iter([("firmware".to_owned(), json!("2.0"))]);
    assert!(host.ask(&Control::Set { dials }).ok);
    for _ in 0..2 {
        let resumed = host.ask(&Control::Hibernate);
        assert!(resumed.ok, "{resumed:?}");
        assert_eq!((resumed.boots, resumed.waiting.dials.len()), (2, 1));
        let told = resumed
            .remarks
            .iter()
            .filter(|remark| remark.contains("resumed from hibernation"));
        assert_eq!(told.count(), 1, "{resumed:?}");
        assert_eq!(
            (parts(), key(&host)),
            (processes, store.clone()),
            "the same processes, the same keys"
        );
    }

    let after = Boot::look(&dir);
    for pcr in [0, 1, 2, 3, 4, 5, 6, 7, 11] {
        assert_eq!(
            after.pcrs[&pcr], before.pcrs[&pcr],
            "PCR {pcr}: firmware and boot manager are the same"
        );
    }
    for pcr in [12, 13] {
        assert_ne!(after.pcrs[&pcr], before.pcrs[&pcr], "PCR {pcr}");
    }
    assert!(after.keys.is_empty(), "no VSM key is measured");
    let value = |boot: &Boot, name: &str| boot.events.get(&(12, name.to_owned())).cloned().unwrap_or_default();
    assert_eq!(value(&after, "TRANSFER_CONTROL"), [[2, 0, 0, 0].to_vec()]);
    // As in real logs: what the boot manager and the resume loader say of themselves, and nothing of the system.
    let stages = |name: &str| value(&after, name).len();
    assert_eq!(["BOOTDEBUGGING", "TESTSIGNING", "BITLOCKER_UNLOCK"].map(stages), [2; 3]);
    let of_loaders = [
        "FILEPATH",
        "HASHALGORITHMID",
        "AUTHENTICODEHASH",
        "IMAGEVALIDATED",
        "TRANSFER_CONTROL",
        "BOOTDEBUGGING",
        "TESTSIGNING",
        "CODEINTEGRITY",
        "BITLOCKER_UNLOCK",
    ];
    let of_the_system = OF_THE_HYPERVISOR.iter().filter(|name| !of_loaders.contains(name));
    let of_the_loader = [
        "OSKERNELDEBUG",
        "VSM_LAUNCH_TYPE",
        "HIBERNATION_DISABLED",
        "DUMPS_DISABLED",
        "SAFEMODE",
    ];
    for name in of_the_system.chain(&of_the_loader) {
        assert_ne!(value(&before, name).len(), 0, "{name}");
        assert_eq!(value(&after, name).len(), 0, "{name}");
    }

    // A full start, and all is as before but for what waited.
    let rebooted = host.ask(&Control::Reboot { dials: None });
    assert_eq!(rebooted.dials.unwrap().firmware, "2.0");
    assert_eq!(
        value(&Boot::look(&dir), "TRANSFER_CONTROL"),
        value(&before, "TRANSFER_CONTROL")
    );
}
