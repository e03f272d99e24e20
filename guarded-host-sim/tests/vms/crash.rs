//! A kill at each commit point of an operation on a VM: what counts afterwards is what was before or what is after, the
//! VM starts, and its guest knows the owner's secret.

use std::fs;

use super::*;
use guarded_host_sim::{commit_point::COMMIT_POINTS, vm::volume::CheckpointEntry};
use support::wait_until;

/// The points of an operation, in order.
fn points(operation: &str) -> Vec<&'static str> {
    let names = COMMIT_POINTS.iter().map(|(name, _)| *name);
    let found: Vec<_> = names
        .filter(|name| name.starts_with(&format!("{operation}:")))
        .collect();
    assert!(!found.is_empty(), "{operation}");
    found
}

/// One host that is started anew again and again.
struct Victim {
    stage: Stage,
    host: SimHost,
}

impl Victim {
    async fn new() -> Victim {
        // It attests after every kill, more often than any host that is well.
        let often = [("HGS_REQUESTS_PER_MINUTE_PER_KEY", "1000")];
        let (stage, mut hosts) = Stage::set_with(&["host01"], &often).await;
        let host = hosts.remove(0);
        Victim { stage, host }
    }

    /// From now on a process of the host ends at `point`.
    fn aim(&mut self, point: &str) {
        self.host.kill().unwrap();
        self.host = self.stage.restart("host01", Some(point));
    }

    /// Runs what passes the point, and starts the host anew.
    fn hit(&mut self, point: &str, words: &str) {
        let killed = vm(&self.host, words);
        assert!(
            killed.is_err(),
            "nothing was killed at {point} by vm {words}: {killed:?}"
        );
        let host = &mut self.host;
        let down = format!("the host is down after vm {words}: {killed:?}");
        wait_until(10, &down, || host.ended().is_some());
        self.host = self.stage.restart("host01", None);
    }

    fn good(&self, words: &str) -> Value {
        good(&self.host, words)
    }

    /// The VM must start; its guest must know the secret.
    async fn must_start(&self, vm: &OwnedVm) -> GuestReport {
        start(&self.host, vm.name.as_str());
        prove(&self.host, vm).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_is_stopped_or_reset_starts_after_a_kill_at_every_point() {
    let mut on = Victim::new().await;
    for point in points("power-off") {
        for words in ["stop payroll", "stop payroll --turn-off"] {
            on.aim(point);
            let boots = start(&on.host, "payroll").boots;
            let before = on.stage.current();
            on.hit(point, words);
            let committed = on.stage.current() != before;
            assert_eq!(committed, point == "power-off:committed", "{point}");
            assert_eq!(state(&on.host, "payroll"), VmState::Off, "{point}");
            assert_eq!(on.must_start(&on.stage.vm).await.boots, boots + 1, "{point}");
            on.good("stop payroll");
        }
    }
    on.aim("reset:cut");
    let boots = start(&on.host, "payroll").boots;
    on.hit("reset:cut", "reset payroll");
    assert_eq!(on.must_start(&on.stage.vm).await.boots, boots + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_saved_or_was_running_when_a_save_is_cut_short_and_goes_on_once() {
    let mut on = Victim::new().await;
    for point in points("save") {
        on.aim(point);
        let before = start(&on.host, "payroll");
        on.hit(point, "save payroll");
        let saved = state(&on.host, "payroll") == VmState::Saved;
        assert_eq!(saved, point == "save:committed", "{point}");
        let after = on.must_start(&on.stage.vm).await;
        assert_eq!(after.boot_id == before.boot_id, saved, "{point}");
        on.good("stop payroll");
    }
    // Its resumption: until the commit it is saved, afterwards it is one that ran.
    for point in points("power-on").into_iter().chain(points("resume")) {
        if ["power-on:vtpm-started", "power-on:booted"].contains(&point) {
            continue;
        }
        let before = start(&on.host, "payroll");
        on.good("save payroll");
        on.aim(point);
        on.hit(point, "resume payroll");
        let saved = state(&on.host, "payroll") == VmState::Saved;
        let until_commit = [
            "power-on:attested",
            "power-on:rolled",
            "power-on:opened",
            "power-on:written",
        ];
        assert_eq!(saved, until_commit.contains(&point), "{point}");
        let after = on.must_start(&on.stage.vm).await;
        assert_eq!(after.boot_id == before.boot_id, saved, "{point}");
        on.good("stop payroll");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_guest_has_counted_outlasts_a_kill_at_every_point() {
    let mut on = Victim::new().await;
    on.must_start(&on.stage.vm).await;
    for point in points("tally") {
        let counted: GuestReport = serde_json::from_value(on.good("tally payroll")).unwrap();
        // The host ends without a word, and its vTPM's process with it.
        on.aim(point);
        assert_eq!(start(&on.host, "payroll").tally, counted.tally, "{point}");
        on.hit(point, "tally payroll");
        let after = on.must_start(&on.stage.vm).await.tally;
        assert_eq!(after.volume, counted.tally.volume + 1, "{point}");
        let committed = u64::from(point == "tally:committed");
        assert_eq!(after.vtpm, counted.tally.vtpm + committed, "{point}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_counts_or_is_not_there_when_it_is_cut_short() {
    let mut on = Victim::new().await;
    let vm = &ledger(&on.stage).await;
    let listed = |host: &SimHost| view(host, "ledger").checkpoints;
    let mut then = String::new();
    for point in points("checkpoint") {
        on.aim(point);
        let before = start(&on.host, "ledger");
        on.hit(point, "checkpoint ledger");
        assert_eq!(!listed(&on.host).is_empty(), point == "checkpoint:committed", "{point}");
        assert_eq!(on.must_start(vm).await.boots, before.boots + 1, "{point}");
        on.good("stop ledger");
        if let [entry] = listed(&on.host).as_slice() {
            on.good(&format!("apply-checkpoint ledger {}", entry.id));
            assert_eq!(on.must_start(vm).await.boot_id, before.boot_id, "{point}");
            on.good("stop ledger");
            then = before.boot_id;
        }
    }
    // What was begun and never counted is gone.
    let folders = fs::read_dir(on.stage.volume_path.join("ledger/checkpoints")).unwrap();
    assert_eq!(folders.count(), 1);

    // Of a stopped VM, and what is done with one.
    for point in points("change") {
        let committed = point == "change:committed";
        on.aim(point);
        on.hit(point, "checkpoint ledger");
        assert_eq!(listed(&on.host).len(), if committed { 2 } else { 1 }, "{point}");
        on.must_start(vm).await;
        on.good("save ledger");
        let entry = &listed(&on.host)[0];

        on.aim(point);
        on.hit(point, &format!("apply-checkpoint ledger {}", entry.id));
        let applied = on.must_start(vm).await;
        assert_eq!(applied.boot_id == then, committed, "{point}");
        on.good("stop ledger");

        on.aim(point);
        on.hit(point, "security ledger --off serial");
        let switches = view(&on.host, "ledger").security.unwrap().switches;
        assert_eq!(switches["serial"], !committed, "{point}");
        on.must_start(vm).await;
        on.good("stop ledger");

        on.aim(point);
        on.hit(point, &format!("delete-checkpoint ledger {}", entry.id));
        let left: Vec<CheckpointEntry> = listed(&on.host);
        assert_eq!(left.iter().any(|other| other.id == entry.id), !committed, "{point}");
        on.must_start(vm).await;
        on.good("stop ledger");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_replaced_or_copied_count_whole_or_not_at_all() {
    let mut on = Victim::new().await;
    let protector = on.stage.folder.0.join("vm.xml");
    for point in points("files") {
        let committed = point == "files:committed";
        on.must_start(&on.stage.vm).await;
        on.good("save payroll");
        on.aim(point);
        on.hit(point, "discard-saved payroll");
        let there = if committed { VmState::Off } else { VmState::Saved };
        assert_eq!(state(&on.host, "payroll"), there, "{point}");
        on.must_start(&on.stage.vm).await;
        on.good("stop payroll");

        let _ = fs::remove_file(&protector);
        on.good(&format!("protector payroll --out {}", protector.display()));
        let can_restore = |host: &SimHost| view(host, "payroll").protector.unwrap().can_restore;
        on.aim(point);
        on.hit(point, &format!("set-protector payroll --file {}", protector.display()));
        assert_eq!(can_restore(&on.host), committed, "{point}");
        on.good(&format!("set-protector payroll --file {}", protector.display()));
        on.aim(point);
        on.hit(point, "set-protector payroll --restore-last-known-good");
        assert_eq!(can_restore(&on.host), !committed, "{point}");
        on.must_start(&on.stage.vm).await;
        on.good("stop payroll");
    }

    let out = on.stage.volume_path.join(".exports");
    let there = on.stage.volume_path.join("payroll");
    for point in points("export") {
        let export = format!("export payroll --to {}", out.display());
        on.aim(point);
        on.hit(point, &export);
        assert_eq!(out.join("payroll").exists(), point == "export:committed", "{point}");
        if point != "export:committed" {
            // What was left of the first copy is not in the way of the second.
            on.good(&export);
            fs::remove_dir_all(out.join("payroll")).unwrap();
        }
    }
    for point in points("import") {
        fs::remove_dir_all(&there).unwrap();
        let import = format!("import {}", out.join("payroll").display());
        on.aim(point);
        on.hit(point, &import);
        assert_eq!(there.exists(), point == "import:committed", "{point}");
        if point != "import:committed" {
            on.good(&import);
        }
    }
    on.must_start(&on.stage.vm).await;
}
