//! Saving and going on, the ways to stop, and the host that may do any of it.

use super::*;
use guarded_host_sim::vm::operation::PoweredOn;

#[tokio::test(flavor = "multi_thread")]
async fn a_saved_vm_goes_on_where_it_was_once() {
    let (stage, mut hosts) = Stage::set(&["host01"]).await;
    let mut host = hosts.remove(0);
    let before = start(&host, "payroll");
    good(&host, "save payroll");
    assert_eq!(state(&host, "payroll"), VmState::Saved);
    let saved = files(&stage, "payroll");
    assert!(!contains(saved.memory.as_ref().unwrap(), &stage.secret));
    refused(&host, "security payroll --on vtpm", &["is saved"]);
    refused(&host, "save payroll", &["holds no key"]);

    // Over a power cycle of the host. The memory is used up by the start.
    host.kill().unwrap();
    host = stage.restart("host01", None);
    let after = start(&host, "payroll");
    assert_eq!((&after.boot_id, after.boots), (&before.boot_id, before.boots));
    prove(&host, &stage.vm).await;
    assert!(files(&stage, "payroll").memory.is_none());
    good(&host, "stop payroll");
    put_all(&stage, "payroll", &saved);
    refused(&host, "start payroll", &["is too old"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saved_memory_is_bound_to_its_vm_and_may_be_thrown_away() {
    let (stage, mut hosts) = Stage::set(&["host01"]).await;
    let host = hosts.remove(0);
    let books = ledger(&stage).await;
    let first = start(&host, "payroll");
    good(&host, "save payroll");
    let saved = files(&stage, "payroll");

    // Changed, taken from another save of the same generation, and left out: the last is a boot.
    let mut changed = saved.memory.clone().unwrap();
    *changed.last_mut().unwrap() ^= 1;
    put(&stage, "payroll", "memory.bin", &changed);
    refused(&host, "start payroll", &["saved memory does not open"]);
    put_all(&stage, "payroll", &saved);
    start(&host, "payroll");
    good(&host, "save payroll");
    put(&stage, "payroll", "memory.bin", saved.memory.as_ref().unwrap());
    refused(&host, "start payroll", &["another state"]);
    good(&host, "discard-saved payroll");
    assert_eq!(state(&host, "payroll"), VmState::Off);
    refused(&host, "discard-saved payroll", &["is not saved"]);
    let booted = start(&host, "payroll");
    assert_ne!(booted.boot_id, first.boot_id);
    assert!(
        !booted.after_shutdown,
        "the memory that was thrown away was a running guest's"
    );

    // A VM whose encryption of state is off shows its memory to whoever reads the volume.
    good(&host, "security ledger --off encrypt-state-and-migration");
    start(&host, "ledger");
    good(&host, "save ledger");
    assert!(contains(files(&stage, "ledger").memory.as_ref().unwrap(), SECRET));
    start(&host, "ledger");
    prove(&host, &books).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_knows_how_it_was_ended() {
    let (stage, mut hosts) = Stage::set(&["host01"]).await;
    let mut host = hosts.remove(0);
    let told = |host: &SimHost, boots, after_shutdown| {
        let guest = start(host, "payroll");
        assert_eq!((guest.boots, guest.after_shutdown), (boots, after_shutdown));
    };
    told(&host, 1, true);
    good(&host, "stop payroll");
    told(&host, 2, true);
    good(&host, "stop payroll --turn-off");
    assert_eq!(state(&host, "payroll"), VmState::Off);
    told(&host, 3, false);
    host.kill().unwrap();
    host = stage.restart("host01", None);
    told(&host, 4, false);
    let reset: GuestReport = serde_json::from_value(good(&host, "reset payroll")).unwrap();
    assert_eq!((reset.boots, reset.after_shutdown), (5, false));
    prove(&host, &stage.vm).await;
    for words in [
        "stop payroll",
        "stop payroll --turn-off",
        "reset payroll",
        "save payroll",
    ] {
        if words != "stop payroll" {
            refused(&host, words, &["holds no key"]);
        } else {
            good(&host, words);
        }
    }
}

/// As the product's guide to offline mode says: fully stopped and started, not restarted.
#[tokio::test(flavor = "multi_thread")]
async fn a_reset_asks_nothing_of_the_kps_and_brings_nothing_from_it() {
    let (mut stage, mut hosts) = Stage::set(&["host01"]).await;
    let host = hosts.remove(0);
    stage.wish_offline_starts(2);
    start(&host, "payroll");
    let mut settings: Value = stage.hgs.kps.admin_get("settings").await.unwrap();
    settings["maxOfflineUnwraps"] = json!(2);
    stage.hgs.kps.admin_put("settings", &settings).await.unwrap();
    let before = folder(&stage, "payroll").current().unwrap();
    good(&host, "reset payroll");
    assert_eq!(folder(&stage, "payroll").current().unwrap(), before);
    good(&host, "stop payroll");
    stage.hgs.kps.kill().unwrap();
    refused(&host, "start payroll", &["no contact", "allowed none"]);
    stage.hgs.kps.restart().unwrap();
    let started: PoweredOn = serde_json::from_value(good(&host, "start payroll")).unwrap();
    assert_eq!(started.offline_starts_left, 2);
    stage.hgs.kps.kill().unwrap();
    good(&host, "reset payroll");
    prove(&host, &stage.vm).await;

    // A saved VM goes on without contact, too, and that is one start of those.
    good(&host, "save payroll");
    let resumed: PoweredOn = serde_json::from_value(good(&host, "resume payroll")).unwrap();
    assert!(resumed.offline);
    assert_eq!(resumed.offline_starts_left, 1);
    prove(&host, &stage.vm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_does_not_own_the_vm_does_nothing_with_it() {
    let (stage, mut hosts) = Stage::set(&["host01", "host02"]).await;
    let (two, one) = (hosts.remove(1), hosts.remove(0));
    start(&one, "payroll");
    assert_eq!(state(&two, "payroll"), VmState::OnAnotherHost);
    let to = stage.folder.0.join("out");
    for words in [
        "start payroll",
        "stop payroll",
        "stop payroll --turn-off",
        "save payroll",
        "reset payroll",
        "discard-saved payroll",
        "security payroll --on vtpm",
        "checkpoint payroll",
        "set-protector payroll --restore-last-known-good",
        &format!("export payroll --to {}", to.display()),
    ] {
        refused(&two, words, &["belongs to host01"]);
    }
    prove(&one, &stage.vm).await;
    refused(&one, "show nobody", &["there is no VM nobody"]);
    let listed: Vec<VmView> = serde_json::from_value(good(&one, "list")).unwrap();
    assert_eq!(listed, [view(&one, "payroll")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_whose_host_is_lost_goes_on_where_an_administrator_says() {
    let (stage, mut hosts) = Stage::set(&["host01", "host02"]).await;
    let (two, mut one) = (hosts.remove(1), hosts.remove(0));
    let first = start(&one, "payroll");
    refused(&one, "take-over payroll", &["belongs to this host already"]);
    refused(&two, "take-over payroll", &["in use"]);
    good(&one, "save payroll");
    one.kill().unwrap();
    refused(&two, "start payroll", &["belongs to host01", "take it over"]);
    good(&two, "take-over payroll");
    assert_eq!(start(&two, "payroll").boot_id, first.boot_id);
    prove(&two, &stage.vm).await;

    // The lost host is back, and takes nothing back.
    one = stage.restart("host01", None);
    refused(&one, "start payroll", &["belongs to host02"]);
    refused(&one, "take-over payroll", &["in use"]);
    good(&two, "stop payroll");
    good(&one, "take-over payroll");
    assert_eq!(start(&one, "payroll").boots, 2);
    prove(&one, &stage.vm).await;
}
