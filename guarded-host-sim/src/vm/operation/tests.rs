//! Operations over two hosts whose stores and KPS are in this process.

mod life;
mod offline;
mod provision;
mod rolls;

use std::{
    cell::{Cell, RefCell},
    path::Path,
    rc::Rc,
};

use hgs_protocol::{
    crypto::RsaPrivateKey,
    env::{OsRandom, UnixTime},
    health::{
        AcceptanceRules, AttestationMode, AttestationSigner, CertificateKind, CertifiedHost, DEFAULT_LIFETIME,
        HealthCertificate, HealthCertificateRequest, TrustedSigner,
    },
    protector::{GuardianKeys, KeyProtector, PayloadVersion, seal_release},
};

use super::*;
use crate::{
    ledger::Ledger,
    owner::Owner,
    vm::{
        shielded::{ShieldedVms, VmPhase},
        started::MemoryVault,
    },
};

/// The host as the KPS sees it once its health certificate is accepted.
fn certified(key: &RsaPrivateKey) -> CertifiedHost {
    let (rng, now) = (&mut OsRandom, UnixTime(1_800_000_000));
    let signer = AttestationSigner::generate(now, rng).unwrap();
    let ask = HealthCertificateRequest {
        key: key.public().clone().into(),
        kind: CertificateKind::Encryption,
        mode: AttestationMode::Tpm,
        policies: vec![],
        issued_at: now,
        lifetime: DEFAULT_LIFETIME,
    };
    let certificate = HealthCertificate::parse(&signer.issue(&ask, rng).unwrap()).unwrap();
    let trusted = [TrustedSigner::from_certificate(signer.certificate_der()).unwrap()];
    certificate.accept(&trusted, now, &AcceptanceRules::default()).unwrap()
}

/// A host whose store and KPS are in this process; only the vTPM is one of its own.
struct TestHost<'a> {
    name: &'static str,
    store: RefCell<ShieldedVms>,
    vault: RefCell<MemoryVault>,
    /// Every request to the store, as an agent could keep it.
    kept: RefCell<Vec<VmRequest>>,
    /// Every reply.
    told: RefCell<Vec<VmReply>>,
    /// Happens while the KPS is asked.
    meanwhile: Cell<Meanwhile>,
    /// How many offline starts the KPS allows.
    limit: Cell<u32>,
    kps: &'a GuardianKeys,
    volume: &'a Volume,
    target: RefCell<Option<Rc<TestHost<'a>>>>,
    /// What becomes of an offer.
    wire: Cell<Wire>,
}

/// Lets the folder take no new generation, and lets it again.
fn no_space(folder: &VmFolder, full: bool) {
    let (usual, aside) = (folder.path().join("generations"), folder.path().join("aside"));
    if full {
        std::fs::rename(&usual, &aside).unwrap();
        std::fs::write(&usual, b"").unwrap();
    } else {
        std::fs::remove_file(&usual).unwrap();
        std::fs::rename(&aside, &usual).unwrap();
    }
}

fn to(host: &str) -> Target {
    Target {
        target: host.to_owned(),
        address: String::new(),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Meanwhile {
    Nothing,
    /// The volume takes no new generation, as a full one.
    NoSpace,
    /// Somebody else commits.
    Commit,
    /// The KPS is not reached.
    Outage,
    /// Another host takes the VM over before its guest is started.
    TakenOver,
}

#[derive(Clone, Copy, PartialEq)]
enum Wire {
    Good,
    /// The target never gets the offer.
    Cut,
    /// The target acts and its answer is lost.
    AnswerLost,
}

/// A store that has just been started. The one before it may still be there, so each has a ledger of its own.
fn store(folder: &Path, name: &str, volume: &Volume) -> ShieldedVms {
    let ledger = format!(
        "{name}-{}.jsonl",
        hex::encode((&mut OsRandom as &mut dyn Random).bytes::<4>())
    );
    let ledger = Ledger::open(&folder.join(ledger)).unwrap();
    ShieldedVms::new(&folder.join(name), Some(volume.root()), ledger)
}

impl<'a> TestHost<'a> {
    fn new(name: &'static str, folder: &Path, kps: &'a GuardianKeys, volume: &'a Volume) -> Rc<TestHost<'a>> {
        Rc::new(TestHost {
            name,
            store: RefCell::new(store(folder, name, volume)),
            vault: RefCell::new(MemoryVault::new()),
            kept: RefCell::default(),
            told: RefCell::default(),
            meanwhile: Cell::new(Meanwhile::Nothing),
            limit: Cell::new(0),
            kps,
            volume,
            target: RefCell::new(None),
            wire: Cell::new(Wire::Good),
        })
    }

    fn phases(&self) -> Vec<VmPhase> {
        self.store.borrow().list().into_iter().map(|(_, phase)| phase).collect()
    }
}

impl Host for TestHost<'_> {
    fn name(&self) -> &str {
        self.name
    }

    async fn health_certificate(&self, _: Server, _fresh: bool) -> Result<Vec<u8>, VmError> {
        Ok(b"certificate".to_vec())
    }

    async fn roll(&self, _: Server, request: Vec<u8>) -> Result<Vec<u8>, VmError> {
        let refuse = |code: &str| VmError::Kps {
            code: code.to_owned(),
            message: String::new(),
        };
        let rng: &mut dyn Random = &mut OsRandom;
        let folder = || self.volume.vm(&VmName::parse("vm1").unwrap()).unwrap();
        match self.meanwhile.get() {
            Meanwhile::Nothing | Meanwhile::TakenOver => {}
            Meanwhile::NoSpace => no_space(&folder(), true),
            Meanwhile::Outage => return Err(VmError::NoContact("connection refused".to_owned())),
            Meanwhile::Commit => {
                let folder = folder();
                let now = folder.current().unwrap();
                folder
                    .commit(&now, now.generation.clone(), &now.owner_host, None)
                    .unwrap();
            }
        }
        let ask = RollTransportKeyRequest::parse(&request).map_err(|_| refuse("InvalidRequestException"))?;
        let opened = KeyProtector::parse(&ask.ingress_protector)
            .ok()
            .and_then(|p| p.verify().ok())
            .and_then(|p| p.open(self.kps, rng).ok())
            .ok_or_else(|| refuse("InvalidProtectorException"))?;
        let rolled = opened.roll(self.kps, rng).unwrap();
        let host = certified(&self.vault.borrow().key);
        let release = seal_release(&opened, &rolled, &host, PayloadVersion::V2, self.limit.get(), rng).unwrap();
        Ok(release.response.encode())
    }

    async fn roll_locally(&self, _: &[u8]) -> Result<Option<Vec<u8>>, VmError> {
        Ok(None)
    }

    async fn store(&self, request: VmRequest) -> Result<VmReply, VmError> {
        self.kept.borrow_mut().push(request.clone());
        if self.meanwhile.get() == Meanwhile::TakenOver
            && let VmRequest::Start { name, .. } = &request
        {
            let folder = self.volume.vm(name).unwrap();
            let now = folder.current().unwrap();
            folder.commit(&now, now.generation.clone(), "host09", None).unwrap();
        }
        let vault = &mut *self.vault.borrow_mut();
        let reply = self.store.borrow_mut().answer(request, vault, &mut OsRandom);
        self.told.borrow_mut().push(reply.clone());
        match reply {
            VmReply::Refused { reason } => Err(VmError::Store(reason)),
            reply => Ok(reply),
        }
    }

    async fn offer(&self, target: &Target, offer: &MigrationOffer) -> Result<GuestReport, VmError> {
        let lost = || VmError::Unreachable("connection reset".to_owned());
        let host = self.target.borrow().clone().ok_or_else(lost)?;
        if self.wire.get() == Wire::Cut {
            return Err(lost());
        }
        let taken = Box::pin(receive(&*host, host.volume, offer.clone(), &mut OsRandom)).await;
        match self.wire.get() {
            Wire::AnswerLost => Err(lost()),
            _ => taken.map_err(|e| VmError::TargetRefused {
                target: target.target.clone(),
                reason: e.to_string(),
            }),
        }
    }
}

/// The whole life of a VM over two hosts; one vTPM serves all of it, because making one takes
/// a second.
#[tokio::test]
async fn a_vm_lives_on_exactly_one_host() {
    if !crate::swtpm::available("a_vm_lives_on_exactly_one_host") {
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

    // Only the owner host may start it.
    let refused = power_on(&*two, &volume, &name, rng).await.unwrap_err();
    assert!(matches!(refused, VmError::NotOwner { .. }), "{refused}");

    // Power-on: generation 2 counts, and the first key does not open its state.
    let before = folder.read_generation(&folder.current().unwrap().generation).unwrap();
    let booted = power_on(&*one, &volume, &name, rng).await.unwrap();
    assert_eq!((booted.guest.boots, booted.offline), (1, false));
    let after = folder.read_generation(&folder.current().unwrap().generation).unwrap();
    assert!(owner.opens(&before.protector, &before.guest_state, rng).unwrap());
    assert!(owner.opens(&after.protector, &after.guest_state, rng).unwrap());
    assert!(!owner.opens(&before.protector, &after.guest_state, rng).unwrap());
    let (proof, _) = one.store.borrow().prove(vm.id, b"challenge").unwrap();
    assert_eq!(proof, vm.expected_proof(b"challenge"));

    // What the agent kept of this power-on, for later.
    let kept = one.kept.borrow().iter().find(is_prepare).cloned().unwrap();

    // A second power-on of a running VM changes nothing.
    let current = folder.current().unwrap();
    assert!(power_on(&*one, &volume, &name, rng).await.is_err());
    assert_eq!(folder.current().unwrap(), current);

    // The wire is cut before the target hears of it: the guest goes on here, same boot.
    one.wire.set(Wire::Cut);
    let failed = migrate(&*one, &volume, &name, &to("host02"), rng).await.unwrap_err();
    assert!(failed.to_string().contains("connection reset"), "{failed}");
    assert_eq!(one.phases(), [VmPhase::Running]);
    assert_eq!(
        one.store.borrow().prove(vm.id, b"c").unwrap().1.boot_id,
        booted.guest.boot_id
    );

    // The answer is lost: the volume tells the source that the VM has moved.
    one.wire.set(Wire::AnswerLost);
    let moved = migrate(&*one, &volume, &name, &to("host02"), rng).await.unwrap();
    assert_eq!((moved.owner_host.as_str(), moved.source_forgot), ("host02", true));
    assert!(one.phases().is_empty());
    let (proof, guest) = two.store.borrow().prove(vm.id, b"moved").unwrap();
    assert_eq!(proof, vm.expected_proof(b"moved"));
    assert_eq!(
        guest.boot_id, booted.guest.boot_id,
        "the same boot, so the memory arrived"
    );
    assert_eq!(folder.current().unwrap().owner_host, "host02");
    assert!(matches!(
        power_on(&*one, &volume, &name, rng).await,
        Err(VmError::NotOwner { .. })
    ));

    // The old answer does not start the VM here a second time, and neither does a new answer
    // for the old state; nor after a reboot, which leaves the store its records and keys.
    let old = |answer: Vec<u8>| VmRequest::PreparePowerOn {
        ingress_protector: Blob(before.protector.clone()),
        answer: Blob(answer),
        guest_state: Blob(before.guest_state.clone()),
        memory: None,
    };
    for reboot in [false, true] {
        if reboot {
            one.store.replace(store(dir.path(), "host01", one.volume));
        }
        let answer = roll(&*one, &before.protector).await.unwrap();
        for request in [kept.clone(), old(answer)] {
            let refused = one.store(request).await.unwrap_err();
            assert!(refused.to_string().contains("has had generation 2"), "{refused}");
            assert!(one.phases().is_empty());
        }
    }
    // On a host whose store was wiped the VSM key is another, so the kept answer is for nobody.
    one.vault.replace(MemoryVault::new());
    let refused = one.store(kept.clone()).await.unwrap_err();
    assert!(refused.to_string().contains("not encrypted for this host"), "{refused}");

    // And back, in good order.
    let moved = migrate(&*two, &volume, &name, &to("host01"), rng).await.unwrap();
    assert_eq!(moved.guest.unwrap().boot_id, booted.guest.boot_id);
    // The package that brought the VM to the second host opens there once.
    let package = two.kept.borrow().iter().find(is_prepare).cloned().unwrap();
    let refused = two.store(package).await.unwrap_err();
    assert!(refused.to_string().contains("has had generation 3"), "{refused}");
    let too_large = MigrationOffer {
        vm: name.clone(),
        migration: MigrationId::random(rng),
        expected: folder.current().unwrap(),
        package: Blob(vec![0; LARGEST_PACKAGE + 1]),
    };
    let refused = receive(&*two, &volume, too_large, rng).await.unwrap_err();
    assert!(refused.to_string().contains("is larger than"), "{refused}");
    let offer_again = MigrationOffer {
        vm: name.clone(),
        migration: MigrationId::random(rng),
        expected: folder.current().unwrap(),
        package: Blob(vec![0; 60]),
    };
    assert!(matches!(
        receive(&*two, &volume, offer_again, rng).await,
        Err(VmError::Offer(_))
    ));

    // Off and on again: a new boot of the same disk.
    power_off(&*one, &volume, &name, rng).await.unwrap();
    let again = power_on(&*one, &volume, &name, rng).await.unwrap();
    assert_eq!(again.guest.boots, 2);
    assert_ne!(again.guest.boot_id, booted.guest.boot_id);
    power_off(&*one, &volume, &name, rng).await.unwrap();

    // Swapped blobs of the volume are refused: the old state under the new protector, and a
    // state that was changed.
    let files = folder.read_generation(&folder.current().unwrap().generation).unwrap();
    let mut changed = files.guest_state.clone();
    changed[100] ^= 1;
    for (what, guest_state) in [("an old state", before.guest_state), ("a changed state", changed)] {
        let answer = roll(&*one, &files.protector).await.unwrap();
        let request = VmRequest::PreparePowerOn {
            ingress_protector: Blob(files.protector.clone()),
            answer: Blob(answer),
            guest_state: Blob(guest_state),
            memory: None,
        };
        let refused = one.store(request).await.unwrap_err();
        assert!(refused.to_string().contains("does not open"), "{what}: {refused}");
    }
    // An answer for another host's key.
    let foreign = TestHost::new("host03", dir.path(), &kps, &volume);
    let request = VmRequest::PreparePowerOn {
        ingress_protector: Blob(files.protector.clone()),
        answer: Blob(roll(&*foreign, &files.protector).await.unwrap()),
        guest_state: Blob(files.guest_state.clone()),
        memory: None,
    };
    let refused = one.store(request).await.unwrap_err();
    assert!(refused.to_string().contains("not encrypted for this host"), "{refused}");
    // An answer to another protector (of the same VM, one generation older).
    let request = VmRequest::PreparePowerOn {
        ingress_protector: Blob(before.protector.clone()),
        answer: Blob(roll(&*one, &files.protector).await.unwrap()),
        guest_state: Blob(files.guest_state),
        memory: None,
    };
    // Its wrappings are the same but for the keys, so the check of the roll holds; the state
    // opens under the key that the KPS released, which is what counts.
    assert!(one.store(request).await.is_ok());
    one.target.replace(None);
    two.target.replace(None);
}

fn is_prepare(request: &&VmRequest) -> bool {
    matches!(
        request,
        VmRequest::PreparePowerOn { .. } | VmRequest::PrepareResume { .. }
    )
}

/// No key stays on a host that did not get to start the VM, and what it used is used up.
#[tokio::test]
async fn a_failed_attempt_leaves_no_key_and_nothing_to_replay() {
    if !crate::swtpm::available("a_failed_attempt_leaves_no_key_and_nothing_to_replay") {
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
    owner
        .shield(&name, b"the secret", &guardian, &volume, "host01", rng)
        .unwrap();
    let folder = volume.vm(&name).unwrap();
    let one = TestHost::new("host01", dir.path(), &kps, &volume);
    let two = TestHost::new("host02", dir.path(), &kps, &volume);
    one.target.replace(Some(two.clone()));

    // Power-on: the volume is full, or somebody else commits.
    let before = folder.current().unwrap();
    one.meanwhile.set(Meanwhile::NoSpace);
    let failed = power_on(&*one, &volume, &name, rng).await.unwrap_err();
    assert!(matches!(failed, VmError::Volume(VolumeError::Io { .. })), "{failed}");
    no_space(&folder, false);
    assert!(one.phases().is_empty());
    assert_eq!(folder.current().unwrap(), before);
    one.meanwhile.set(Meanwhile::Commit);
    let failed = power_on(&*one, &volume, &name, rng).await.unwrap_err();
    assert!(
        matches!(failed, VmError::Volume(VolumeError::Overtaken { .. })),
        "{failed}"
    );
    assert!(one.phases().is_empty());
    // The answers of both attempts are used up, though the generation still counts.
    let kept: Vec<VmRequest> = one.kept.borrow().iter().filter(is_prepare).cloned().collect();
    assert_eq!(kept.len(), 2);
    for request in kept {
        let refused = one.store(request).await.unwrap_err();
        assert!(
            refused.to_string().contains("was used on this host before"),
            "{refused}"
        );
    }
    // The guest does not come up: its disk is gone for a while.
    one.meanwhile.set(Meanwhile::Nothing);
    let aside = folder.path().join("disk.aside");
    let disk = folder.disk_path(&folder.current().unwrap());
    std::fs::rename(&disk, &aside).unwrap();
    assert!(power_on(&*one, &volume, &name, rng).await.is_err());
    assert!(one.phases().is_empty());
    std::fs::rename(&aside, &disk).unwrap();
    // A record that cannot be written starts nothing.
    one.vault.borrow_mut().broken = true;
    let refused = power_on(&*one, &volume, &name, rng).await.unwrap_err();
    assert!(refused.to_string().contains("cannot write its record"), "{refused}");
    assert!(one.phases().is_empty());
    one.vault.borrow_mut().broken = false;
    let booted = power_on(&*one, &volume, &name, rng).await.unwrap();

    // Migration: the target's side of the volume fails, or the source takes its VM back first.
    for trouble in [Meanwhile::NoSpace, Meanwhile::Commit] {
        two.meanwhile.set(trouble);
        assert!(migrate(&*one, &volume, &name, &to("host02"), rng).await.is_err());
        if trouble == Meanwhile::NoSpace {
            no_space(&folder, false);
        }
        assert!(two.phases().is_empty());
        let vm = folder.current().unwrap().vm_id;
        if one.phases() == [VmPhase::Running] {
            assert_eq!(
                one.store.borrow().prove(vm, b"c").unwrap().1.boot_id,
                booted.guest.boot_id
            );
        }
    }
    // The package of a failed migration serves the target no second time, not even with a new answer.
    two.meanwhile.set(Meanwhile::Nothing);
    let kept: Vec<VmRequest> = two.kept.borrow().iter().filter(is_prepare).cloned().collect();
    assert_eq!(kept.len(), 2);
    let protector = folder
        .read_generation(&folder.current().unwrap().generation)
        .unwrap()
        .protector;
    for mut request in kept {
        if let VmRequest::PrepareResume { answer, .. } = &mut request {
            answer.0 = roll(&*two, &protector).await.unwrap();
        }
        let refused = two.store(request).await.unwrap_err();
        assert!(refused.to_string().contains("migrate again"), "{refused}");
    }
    one.target.replace(None);
}
