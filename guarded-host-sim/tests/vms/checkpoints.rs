//! Checkpoints: what one brings back, and that nothing else of the past comes back with it.

use std::fs;

use super::*;
use guarded_host_sim::vm::volume::CheckpointEntry;

fn take(host: &SimHost, name: &str) -> CheckpointEntry {
    serde_json::from_value(good(host, &format!("checkpoint {name} --label before-the-change"))).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_brings_back_memory_and_disk_and_no_older_generation_comes_with_it() {
    let (stage, mut hosts) = Stage::set(&["host01", "host02"]).await;
    let (two, one) = (hosts.remove(1), hosts.remove(0));
    let first = start(&one, "payroll");
    let checkpoint = take(&one, "payroll");
    assert!(checkpoint.memory);
    // The guest goes on, and the files of its checkpoint tell nothing.
    assert_eq!(prove(&one, &stage.vm).await.boot_id, first.boot_id);
    let image = stage
        .volume_path
        .join(format!("payroll/checkpoints/{}/image.bin", checkpoint.id));
    assert!(!contains(&fs::read(&image).unwrap(), &stage.secret));
    let of_then = files(&stage, "payroll");
    for _ in 0..2 {
        good(&one, "stop payroll");
        start(&one, "payroll");
    }
    let apply = format!("apply-checkpoint payroll {}", checkpoint.id);
    refused(&one, &apply, &["in use"]);
    good(&one, "stop payroll");

    // Back: the same boot goes on, from the disk of that time.
    good(&one, &apply);
    assert_eq!(state(&one, "payroll"), VmState::Saved);
    let back = start(&one, "payroll");
    assert_eq!((&back.boot_id, back.boots), (&first.boot_id, 1));
    prove(&one, &stage.vm).await;
    good(&one, "stop payroll");
    assert_eq!(start(&one, "payroll").boots, 2);
    assert_eq!(view(&one, "payroll").checkpoints, std::slice::from_ref(&checkpoint));

    // The generation of that time is refused as ever.
    good(&one, "stop payroll");
    let newest = files(&stage, "payroll");
    put_all(&stage, "payroll", &of_then);
    refused(&one, "start payroll", &["is too old"]);
    put_all(&stage, "payroll", &newest);

    // The checkpoint goes where the VM goes.
    start(&one, "payroll");
    good(
        &one,
        &format!("migrate payroll --target host02 --address {}", two.agent_url),
    );
    good(&two, "stop payroll");
    good(&two, &apply);
    assert_eq!(start(&two, "payroll").boot_id, first.boot_id);
    prove(&two, &stage.vm).await;

    // Deleted while the guest runs: its files go now, its key with the next sealing.
    let kept = fs::read(&image).unwrap();
    good(&two, &format!("delete-checkpoint payroll {}", checkpoint.id));
    assert!(!image.exists());
    good(&two, "stop payroll");
    refused(&two, &apply, &["has no checkpoint"]);
    // Who kept the files and puts the name back has a checkpoint without a key.
    fs::create_dir_all(image.parent().unwrap()).unwrap();
    fs::write(&image, kept).unwrap();
    fs::copy(
        stage.volume_path.join("payroll").join(disk(&stage)),
        image.with_file_name("disk.bin"),
    )
    .unwrap();
    let current = stage.volume_path.join("payroll/current.json");
    let mut text: Value = serde_json::from_slice(&fs::read(&current).unwrap()).unwrap();
    text["checkpoints"] = json!([checkpoint]);
    fs::write(&current, text.to_string()).unwrap();
    refused(&two, &apply, &["newest state of the VM has no checkpoint"]);
    start(&two, "payroll");
    prove(&two, &stage.vm).await;
}

fn disk(stage: &Stage) -> String {
    let folder = folder(stage, "payroll");
    let path = folder.disk_path(&folder.current().unwrap());
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_of_a_stopped_vm_boots_and_takes_no_protection_away() {
    let (stage, mut hosts) = Stage::set(&["host01"]).await;
    let host = hosts.remove(0);
    let books = ledger(&stage).await;
    start(&host, "ledger");
    good(&host, "stop ledger");
    let off = take(&host, "ledger");
    assert!(!off.memory);
    start(&host, "ledger");
    good(&host, "save ledger");
    let saved = take(&host, "ledger");
    assert!(saved.memory);
    assert_eq!(state(&host, "ledger"), VmState::Saved);
    assert_eq!(start(&host, "ledger").boots, 2);
    good(&host, "stop ledger");

    // From before it was shielded: what comes back is shielded.
    good(&host, "security ledger --kind shielded");
    good(&host, &format!("apply-checkpoint ledger {}", off.id));
    assert_eq!(state(&host, "ledger"), VmState::Off);
    let booted = start(&host, "ledger");
    assert_eq!(
        (booted.boots, booted.after_shutdown),
        (2, true),
        "the disk from after one boot"
    );
    prove(&host, &books).await;
    refused(&host, "look ledger debugger", &["is shielded"]);
    good(&host, "stop ledger");

    // A changed image, and one checkpoint's image in the place of another's.
    let image = |entry: &CheckpointEntry| {
        stage
            .volume_path
            .join(format!("ledger/checkpoints/{}/image.bin", entry.id))
    };
    let kept = fs::read(image(&off)).unwrap();
    let mut changed = kept.clone();
    *changed.last_mut().unwrap() ^= 1;
    for wrong in [changed, fs::read(image(&saved)).unwrap()] {
        fs::write(image(&off), wrong).unwrap();
        refused(
            &host,
            &format!("apply-checkpoint ledger {}", off.id),
            &["does not open under its key"],
        );
    }
    assert_eq!(start(&host, "ledger").boots, 3, "a refused checkpoint changes nothing");
    good(&host, "stop ledger");
    good(&host, &format!("delete-checkpoint ledger {}", off.id));
    good(&host, &format!("apply-checkpoint ledger {}", saved.id));
    assert_eq!(start(&host, "ledger").boots, 2);
    prove(&host, &books).await;
}
