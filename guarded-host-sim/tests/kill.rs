//! Killing any process during a power-on or a migration leaves a VM that starts, on exactly one host.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use guarded_host_sim::{commit_point::COMMIT_POINTS, fabric::host::SimHost};
use hgs_protocol::env::{Random, SeededRandom};
use support::{Stage, kill, process, processes_of, wait_until};

/// The host is started anew if it has ended; then the VM must start, with its secret.
async fn must_start(stage: &Stage, host: &mut SimHost, when: &str) {
    // A host is down as soon as one of its processes has ended, but not at the same instant.
    if host.ended().is_some() {
        *host = stage.restart(&host.name, None);
    }
    let started = stage.power_on(host).await;
    assert!(started.is_ok(), "after a kill {when}: {started:?}");
    stage.prove(host).await;
}

fn wait_for_end(host: &mut SimHost) {
    wait_until(10, &format!("{} is down", host.name), || host.ended().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_starts_after_a_kill_at_every_commit_point_of_a_power_on() {
    let (stage, mut hosts) = Stage::set(&["host01"]).await;
    let mut host = hosts.remove(0);
    for (point, _) in COMMIT_POINTS.iter().filter(|(name, _)| name.starts_with("power-on:")) {
        host.kill().unwrap();
        host = stage.restart("host01", Some(point));
        let before = stage.current();
        let killed = stage.power_on(&host).await;
        assert!(killed.is_err(), "nothing was killed at {point}: {killed:?}");
        wait_for_end(&mut host);
        let committed = stage.current() != before;
        let after_commit = [
            "power-on:committed",
            "power-on:recorded",
            "power-on:vtpm-started",
            "power-on:booted",
        ]
        .contains(point);
        assert_eq!(
            committed, after_commit,
            "what counts on the volume after a kill at {point}"
        );
        must_start(&stage, &mut host, &format!("at {point}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_starts_after_a_kill_of_any_process_at_any_instant_of_a_power_on() {
    let (mut stage, mut hosts) = Stage::set(&["host01"]).await;
    let mut host = hosts.remove(0);
    let mut rng = SeededRandom::new(3);
    // How long an undisturbed power-on takes here, attestation included.
    let begin = std::time::Instant::now();
    stage.power_on(&host).await.unwrap();
    let whole = begin.elapsed();
    for round in 0..20 {
        host.kill().unwrap();
        host = stage.restart("host01", None);
        let part = u32::from_le_bytes((&mut rng as &mut dyn Random).bytes()) % 1000;
        let instant = whole * part / 1000;
        let victim = ["agent", "store", "machine", "TPM", "vTPM", "kps", "attestation"][round % 7];
        let folder = host.folder().to_path_buf();
        let id = match victim {
            "agent" => Some(process(&folder, &[" agent --name "])),
            "store" => Some(process(&folder, &[" store --name "])),
            "machine" => host.process_id(),
            "TPM" => Some(process(&folder, &["swtpm socket", "/tpm"])),
            "vTPM" => None,
            "kps" => stage.hgs.kps.process_id(),
            _ => stage.hgs.attestation.process_id(),
        };
        let killer = std::thread::spawn(move || {
            std::thread::sleep(instant);
            match id {
                Some(id) => kill(id),
                // It does not run at every instant.
                None => processes_of(&folder)
                    .into_iter()
                    .filter(|(_, line)| line.contains("swtpm socket") && line.contains("/store/vtpm-"))
                    .for_each(|(id, _)| kill(id)),
            }
        });
        // Either it was in time or it was not; both are fine.
        let _ = stage.power_on(&host).await;
        killer.join().unwrap();
        let when = format!("of {victim} {instant:?} into power-on number {round}");
        match victim {
            "kps" => stage.hgs.kps.restart().unwrap(),
            "attestation" => stage.hgs.attestation.restart().unwrap(),
            "vTPM" => {}
            _ => wait_for_end(&mut host),
        }
        if host.ended().is_none() {
            // The VM may run already; a host that goes down takes it with it.
            host.kill().unwrap();
        }
        must_start(&stage, &mut host, &when).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_on_exactly_one_host_after_a_kill_during_a_migration() {
    let (stage, mut hosts) = Stage::set(&["host01", "host02"]).await;
    let mut two = hosts.remove(1);
    let mut one = hosts.remove(0);
    for (point, _) in COMMIT_POINTS.iter().filter(|(name, _)| name.starts_with("migration:")) {
        // The VM runs on the first host; the process named by the point ends itself there.
        let of_source = *point == "migration:saved";
        one.kill().unwrap();
        two.kill().unwrap();
        one = stage.restart("host01", of_source.then_some(*point));
        two = stage.restart("host02", (!of_source).then_some(*point));
        stage.power_on(&one).await.unwrap();
        let booted = stage.prove(&one).await;
        let outcome = stage.migrate(&one, &two).await;
        let dead = if of_source { &mut one } else { &mut two };
        wait_for_end(dead);
        let owner = stage.current().owner_host;
        match owner.as_str() {
            "host02" => {
                // The target had committed before it died; the source knows it from the volume.
                assert!(outcome.is_ok(), "{point}: {outcome:?}");
                assert!(stage.power_on(&one).await.unwrap_err().contains("belongs to host02"));
                must_start(&stage, &mut two, &format!("at {point}")).await;
                // Back to the first host for the next round.
                one.kill().unwrap();
                one = stage.restart("host01", None);
                stage.migrate(&two, &one).await.unwrap();
                assert_eq!(stage.current().owner_host, "host01");
            }
            _ if of_source => {
                assert!(outcome.is_err(), "{point}: {outcome:?}");
                must_start(&stage, &mut one, &format!("at {point}")).await;
            }
            _ => {
                // The target died without a commit: the guest goes on where it was, same boot.
                assert!(outcome.is_err(), "{point}: {outcome:?}");
                assert_eq!(stage.prove(&one).await.boot_id, booted.boot_id, "{point}");
            }
        }
    }
}

/// Whoever asks for a power-on may hang up: the operation ends all the same, and the VM runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_power_on_goes_on_when_its_caller_has_hung_up() {
    let (stage, mut hosts) = Stage::set(&["host01"]).await;
    let host = hosts.remove(0);
    let before = stage.current();
    let hung_up = tokio::time::timeout(Duration::from_millis(30), stage.power_on(&host)).await;
    assert!(hung_up.is_err(), "the power-on was faster than its caller: {hung_up:?}");
    wait_until(30, "the new generation counts", || stage.current() != before);
    // Nothing is half done: the VM runs soon, and a second power-on says so.
    for _ in 0..100 {
        if let Err(refused) = stage.power_on(&host).await
            && refused.contains("is Running on this host")
        {
            stage.prove(&host).await;
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the VM does not run");
}
