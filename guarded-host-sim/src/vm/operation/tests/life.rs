//! Saving, checkpoints and changes where something goes wrong on the way, or an agent tries what it should not.

use super::*;
use crate::vm::{
    checkpoint::CheckpointId,
    security::{Change, Channel, Kind, Switch},
};

fn boot_id(host: &TestHost<'_>, folder: &VmFolder) -> String {
    let vm = folder.current().unwrap().vm_id;
    host.store.borrow().prove(vm, b"c").unwrap().1.boot_id
}

fn is_saved(folder: &VmFolder) -> bool {
    folder.is_saved(&folder.current().unwrap().generation)
}

/// One VM and one vTPM for all of it, because making one takes a second.
#[tokio::test]
async fn a_guest_goes_on_or_stays_saved_whatever_fails() {
    if !crate::swtpm::available("a_guest_goes_on_or_stays_saved_whatever_fails") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let rng: &mut dyn Random = &mut OsRandom;
    let now = UnixTime(1_764_000_000);
    let kps = GuardianKeys::generate("HGS", now, rng).unwrap();
    let volume = Volume::open(&dir.path().join("volume")).unwrap();
    let owner = Owner::new("owner", dir.path(), now, rng).unwrap();
    let name = VmName::parse("vm1").unwrap();
    let guardian = kps.guardian().unwrap();
    let vm = owner
        .shield(&name, b"the secret", &guardian, &volume, "host01", rng)
        .unwrap();
    let folder = volume.vm(&name).unwrap();
    let host = &*TestHost::new("host01", dir.path(), &kps, &volume);
    let booted = power_on(host, &volume, &name, rng).await.unwrap().guest;

    // The volume is full: a VM that cannot be saved, or not be checkpointed, goes on.
    let before = folder.current().unwrap();
    no_space(&folder, true);
    let failed = save(host, &volume, &name, rng).await.unwrap_err();
    assert!(matches!(failed, VmError::Volume(_)), "{failed}");
    let label = || ("x".to_owned(), 0);
    let failed = take_checkpoint(host, &volume, &name, label(), rng).await.unwrap_err();
    assert!(matches!(failed, VmError::Volume(_)), "{failed}");
    no_space(&folder, false);
    assert_eq!(folder.current().unwrap(), before);
    assert_eq!(host.phases(), [VmPhase::Running]);
    assert_eq!(boot_id(host, &folder), booted.boot_id);

    // What a running guest's store refuses its agent.
    let checkpoint = take_checkpoint(host, &volume, &name, label(), rng).await.unwrap();
    let image = Blob(folder.read_checkpoint(checkpoint.id).unwrap());
    let change = Change::Switch {
        switch: Switch::Serial,
        on: false,
    };
    for request in [
        VmRequest::ApplyCheckpoint {
            vm: vm.id,
            checkpoint: checkpoint.id,
            image: image.clone(),
        },
        VmRequest::Change { vm: vm.id, change },
        VmRequest::Settle { vm: vm.id },
        VmRequest::Forget { vm: vm.id },
    ] {
        let refused = host.store(request).await.unwrap_err();
        assert!(refused.to_string().contains("is Running on this host"), "{refused}");
    }
    assert_eq!(boot_id(host, &folder), booted.boot_id);

    // Saved, and its disk is gone for a while: it stays saved, under a newer key, and goes on later.
    save(host, &volume, &name, rng).await.unwrap();
    assert!(host.phases().is_empty() && is_saved(&folder));
    let first_save = folder.read_generation(&folder.current().unwrap().generation).unwrap();
    let disk = folder.disk_path(&folder.current().unwrap());
    let aside = folder.path().join("disk.aside");
    std::fs::rename(&disk, &aside).unwrap();
    let failed = power_on(host, &volume, &name, rng).await.unwrap_err();
    assert!(failed.to_string().contains("disk"), "{failed}");
    assert!(host.phases().is_empty() && is_saved(&folder));
    std::fs::rename(&aside, &disk).unwrap();
    let second_save = folder.read_generation(&folder.current().unwrap().generation).unwrap();
    assert_ne!(second_save.protector, first_save.protector);
    let resumed = power_on(host, &volume, &name, rng).await.unwrap().guest;
    assert_eq!((&resumed.boot_id, resumed.boots), (&booted.boot_id, 1));
    let (proof, _) = host.store.borrow().prove(vm.id, b"d").unwrap();
    assert_eq!(proof, vm.expected_proof(b"d"));

    // Neither memory resumes again, with a new answer or with the kept one.
    power_off(host, &volume, &name, rng).await.unwrap();
    let answer = roll(host, &first_save.protector).await.unwrap();
    let mut kept: Vec<VmRequest> = host.kept.borrow().iter().filter(is_prepare).cloned().collect();
    kept.retain(|request| matches!(request, VmRequest::PreparePowerOn { memory: Some(_), .. }));
    kept.push(VmRequest::PreparePowerOn {
        ingress_protector: Blob(first_save.protector),
        answer: Blob(answer),
        guest_state: Blob(first_save.guest_state),
        memory: first_save.memory.map(Blob),
    });
    assert_eq!(kept.len(), 3);
    for request in kept {
        let refused = host.store(request).await.unwrap_err();
        assert!(refused.to_string().contains("is too old"), "{refused}");
    }

    // A change that comes too late for the volume leaves no key and no change.
    host.meanwhile.set(Meanwhile::Commit);
    let id = checkpoint.id;
    let late = apply_checkpoint(host, &volume, &name, id, rng).await.unwrap_err();
    assert!(matches!(late, VmError::Volume(VolumeError::Overtaken { .. })), "{late}");
    assert!(host.phases().is_empty() && !is_saved(&folder));
    host.meanwhile.set(Meanwhile::Nothing);
    // A checkpoint that nobody took.
    let unknown = CheckpointId::random(rng);
    let refused = apply_checkpoint(host, &volume, &name, unknown, rng).await.unwrap_err();
    assert!(refused.to_string().contains("has no checkpoint"), "{refused}");
    apply_checkpoint(host, &volume, &name, id, rng).await.unwrap();
    assert!(host.phases().is_empty() && is_saved(&folder));
    let back = power_on(host, &volume, &name, rng).await.unwrap().guest;
    assert_eq!(back.boot_id, booted.boot_id);
    turn_off(host, &volume, &name, rng).await.unwrap();
    assert!(host.phases().is_empty());

    // Taken over between commit and start: it does not go on here, and starts after it was given back.
    host.meanwhile.set(Meanwhile::TakenOver);
    let late = power_on(host, &volume, &name, rng).await.unwrap_err();
    assert!(
        matches!(&late, VmError::NotOwner { owner, .. } if owner == "host09"),
        "{late}"
    );
    assert!(host.phases().is_empty());
    host.meanwhile.set(Meanwhile::Nothing);
    assert!(power_on(host, &volume, &name, rng).await.is_err());
    take_over(host, &volume, &name).unwrap();
    power_on(host, &volume, &name, rng).await.unwrap();
    let running = take_over(host, &volume, &name).unwrap_err();
    assert!(matches!(running, VmError::Nothing(_)), "{running}");
}

/// A store takes no word of its agent's for the kind of a VM; an older host has no console for a shielded one.
#[tokio::test]
async fn a_store_decides_by_what_is_sealed() {
    if !crate::swtpm::available("a_store_decides_by_what_is_sealed") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let rng: &mut dyn Random = &mut OsRandom;
    let now = UnixTime(1_764_000_000);
    let kps = GuardianKeys::generate("HGS", now, rng).unwrap();
    let volume = Volume::open(&dir.path().join("volume")).unwrap();
    let owner = Owner::new("owner", dir.path(), now, rng).unwrap();
    let name = VmName::parse("vm1").unwrap();
    let guardians = [kps.guardian().unwrap()];
    let (kind, place) = (Kind::EncryptionSupported, (&volume, "host01"));
    let vm = owner
        .make_vm(&name, kind, b"the secret", &guardians, place, rng)
        .unwrap();
    let folder = volume.vm(&name).unwrap();
    let one = TestHost::new("host01", dir.path(), &kps, &volume);
    let two = TestHost::new("host02", dir.path(), &kps, &volume);
    two.store.replace(store(dir.path(), "host02", &volume).before_1803());
    one.target.replace(Some(two.clone()));
    let looks = |host: &TestHost<'_>| {
        [Channel::Console, Channel::Debugger].map(|channel| host.store.borrow().look(vm.id, channel).is_ok())
    };

    // The memory of a VM whose encryption of migration traffic is off crosses the wire as it is.
    let off = Change::Switch {
        switch: Switch::EncryptStateAndMigration,
        on: false,
    };
    let crossed = |host: &TestHost<'_>| {
        let kept = host.kept.borrow();
        let package = kept.iter().rev().find_map(|request| match request {
            VmRequest::PrepareResume { package, .. } => Some(package.0.clone()),
            _ => None,
        });
        package.unwrap().windows(10).any(|window| window == b"the secret")
    };
    change_security(&*one, &volume, &name, off, rng).await.unwrap();
    power_on(&*one, &volume, &name, rng).await.unwrap();
    assert_eq!(looks(&one), [true, true]);
    migrate(&*one, &volume, &name, &to("host02"), rng).await.unwrap();
    assert!(crossed(&two));
    assert_eq!(looks(&two), [true, true]);
    power_off(&*two, &volume, &name, rng).await.unwrap();

    // Shielded on the second host, and back on the first by way of a migration.
    let shielded = Change::Kind { kind: Kind::Shielded };
    let open = folder.read_generation(&folder.current().unwrap().generation).unwrap();
    change_security(&*two, &volume, &name, shielded, rng).await.unwrap();
    power_on(&*two, &volume, &name, rng).await.unwrap();
    assert_eq!(looks(&two), [false, false]);
    two.target.replace(Some(one.clone()));
    migrate(&*two, &volume, &name, &to("host01"), rng).await.unwrap();
    assert!(!crossed(&one));
    assert_eq!(looks(&one), [true, false]);
    power_off(&*one, &volume, &name, rng).await.unwrap();
    let refused = change_security(&*one, &volume, &name, off, rng).await.unwrap_err();
    assert!(refused.to_string().contains("enforces"), "{refused}");
    assert!(one.phases().is_empty(), "a refused change leaves no key");

    // The state of before it was shielded, with a fresh answer: older than what this host has had since.
    let request = VmRequest::PreparePowerOn {
        answer: Blob(roll(&*one, &open.protector).await.unwrap()),
        ingress_protector: Blob(open.protector),
        guest_state: Blob(open.guest_state),
        memory: None,
    };
    let refused = one.store(request).await.unwrap_err();
    assert!(refused.to_string().contains("is too old"), "{refused}");
    one.target.replace(None);
    two.target.replace(None);
}
