//! Starts without contact.

use super::*;

/// What an agent may try with offline starts: older files, kept requests, a VM that has gone.
#[tokio::test]
async fn an_offline_start_takes_the_newest_state_where_the_vm_has_stayed() {
    if !crate::swtpm::available("an_offline_start_takes_the_newest_state_where_the_vm_has_stayed") {
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
    let one = TestHost::new("host01", dir.path(), &kps, &volume);
    let two = TestHost::new("host02", dir.path(), &kps, &volume);
    one.target.replace(Some(two.clone()));
    two.target.replace(Some(one.clone()));
    let files = || folder.read_generation(&folder.current().unwrap().generation).unwrap();
    let offline = |files: &Generation| VmRequest::PrepareOffline {
        protector: Blob(files.protector.clone()),
        guest_state: Blob(files.guest_state.clone()),
        memory: None,
    };

    one.limit.set(3);
    let started = power_on(&*one, &volume, &name, rng).await.unwrap();
    assert_eq!((started.offline, started.offline_starts_left), (false, 3));
    power_off(&*one, &volume, &name, rng).await.unwrap();
    let rolled = files();
    one.meanwhile.set(Meanwhile::Outage);
    let started = power_on(&*one, &volume, &name, rng).await.unwrap();
    assert_eq!((started.offline, started.offline_starts_left), (true, 2));
    // Not while it runs.
    let running = power_on(&*one, &volume, &name, rng).await.unwrap_err();
    assert!(running.to_string().contains("is Running"), "{running}");
    power_off(&*one, &volume, &name, rng).await.unwrap();
    // The key is the same, the state is newer: the owner's own key opens both.
    assert_eq!(files().protector, rolled.protector);
    assert!(owner.opens(&rolled.protector, &files().guest_state, rng).unwrap());
    // The state from before that start, and a foreign one under the right protector.
    let refused = one.store(offline(&rolled)).await.unwrap_err();
    assert!(refused.to_string().contains("has had generation 2.1"), "{refused}");
    // A changed state costs a start (the count comes first) and starts nothing.
    let mut changed = files();
    changed.guest_state[100] ^= 1;
    let refused = one.store(offline(&changed)).await.unwrap_err();
    assert!(refused.to_string().contains("does not open"), "{refused}");
    assert!(one.phases().is_empty());
    // The record outlives the process.
    one.store.replace(store(dir.path(), "host01", one.volume));
    let started = power_on(&*one, &volume, &name, rng).await.unwrap();
    assert_eq!((started.offline, started.offline_starts_left), (true, 0));
    assert_eq!(started.guest.boots, 3);

    // The VM moves; what its first host kept is gone, whatever its agent has kept.
    let left = files();
    two.limit.set(2);
    migrate(&*one, &volume, &name, &to("host02"), rng).await.unwrap();
    for kept in [&rolled, &left] {
        let refused = one.store(offline(kept)).await.unwrap_err();
        assert!(matches!(refused, VmError::Store(_)), "{refused}");
        assert!(one.phases().is_empty());
    }
    let refused = one.store(offline(&left)).await.unwrap_err();
    assert!(refused.to_string().contains("packed for a migration"), "{refused}");
    // A VM that was packed and stayed after all starts with contact only, until the next roll.
    two.wire.set(Wire::Cut);
    migrate(&*two, &volume, &name, &to("host01"), rng).await.unwrap_err();
    power_off(&*two, &volume, &name, rng).await.unwrap();
    two.meanwhile.set(Meanwhile::Outage);
    let refused = power_on(&*two, &volume, &name, rng).await.unwrap_err();
    assert!(matches!(refused, VmError::NotOffline { .. }), "{refused}");
    two.meanwhile.set(Meanwhile::Nothing);
    let started = power_on(&*two, &volume, &name, rng).await.unwrap();
    assert_eq!((started.offline, started.offline_starts_left), (false, 2));
    let (proof, _) = two.store.borrow().prove(vm.id, b"c").unwrap();
    assert_eq!(proof, vm.expected_proof(b"c"));
    one.target.replace(None);
    two.target.replace(None);
}
