//! A VM made of a template and shielding data: what the store takes, what it refuses, and what the agent sees of it.

use std::{collections::BTreeMap, fs, path::PathBuf};

use super::*;
use crate::{
    shielding::{
        data_file::{Contents, DataFile, FileName, NamedFile, NewDataFile, ShieldingData},
        qualifier::{Qualifier, VersionRule},
        template::{TemplateDisk, tests::template},
    },
    vm::{
        request::ProvisionRequest,
        security::{Channel, Kind},
    },
};
use base64::{Engine, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

const PASSWORD: &str = "the administrator's own password";
const OTHER: &[u8] = b"the private key of the remote desktop";

struct Scene {
    dir: tempfile::TempDir,
    volume: Volume,
    owner: GuardianKeys,
    kps: GuardianKeys,
    template: PathBuf,
}

impl Scene {
    fn new() -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let (rng, now) = (&mut OsRandom, UnixTime(1_764_000_000));
        let volume = Volume::open(&dir.path().join("volume")).unwrap();
        // More than one block, and no whole number of them.
        let content: Vec<u8> = (0..150_001_u32).map(|at| (at % 239) as u8).collect();
        let (template, _) = template(volume.root(), &content, "server", [1, 2, 0, 0]);
        Scene {
            owner: GuardianKeys::generate_p256("owner", now, rng).unwrap(),
            kps: GuardianKeys::generate("HGS", now, rng).unwrap(),
            dir,
            volume,
            template,
        }
    }

    /// Shielding data that trusts the template `named` by `rule`.
    fn data(&self, policy: Kind, named: &Path, rule: VersionRule) -> Vec<u8> {
        let rng: &mut dyn Random = &mut OsRandom;
        let guardians = [self.kps.guardian().unwrap()];
        let (protector, key) = KeyProtector::create(&self.owner, &guardians, rng).unwrap();
        let answer = format!("<ComputerName>@ComputerName@</ComputerName><Password>{PASSWORD}</Password>");
        let other = NamedFile {
            name: FileName::parse("rdp.pfx").unwrap(),
            content: Zeroizing::new(OTHER.to_vec()),
        };
        let contents = Contents::new(Zeroizing::new(answer.into_bytes()), vec![other], rng).unwrap();
        let trusted = TemplateDisk::open(named).unwrap();
        let new = NewDataFile {
            protector: (&protector, &key),
            policy,
            qualifiers: &[Qualifier::of(trusted.catalogue(), rule)],
            contents: &contents,
        };
        new.seal(&self.owner, rng).unwrap()
    }

    fn order(&self, data: &[u8]) -> NewShieldedVm {
        NewShieldedVm {
            shielding_data: Blob(data.to_vec()),
            template: PathBuf::from(self.template.file_name().unwrap()),
            values: BTreeMap::from([("ComputerName".to_owned(), "web-01".to_owned())]),
            kind: None,
        }
    }

    fn open(&self, data: &[u8]) -> ShieldingData {
        let signed = DataFile::parse(data).unwrap().verify().unwrap();
        let opened = signed.chained().clone().open(&self.owner, &mut OsRandom).unwrap();
        signed.open(opened.transport_key()).unwrap()
    }

    /// What is on the volume.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.volume.root()).unwrap().flatten();
        let mut names: Vec<String> = entries.map(|e| e.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// In which forms `secret` is in `bytes`.
fn forms(bytes: &[u8], secret: &[u8]) -> Vec<&'static str> {
    let has = |pattern: &[u8]| bytes.windows(pattern.len()).any(|window| window == pattern);
    let mut found = Vec::new();
    for (form, pattern) in [
        ("raw", secret.to_vec()),
        ("hex", hex::encode(secret).into_bytes()),
        ("HEX", hex::encode_upper(secret).into_bytes()),
    ] {
        if has(&pattern) {
            found.push(form);
        }
    }
    for lead in 0..3 {
        // The first and the last characters also depend on the neighbours.
        let shifted = [vec![0; lead], secret.to_vec()].concat();
        let text = STANDARD.encode(&shifted);
        if has(text.as_bytes()[[0, 2, 3][lead]..shifted.len() / 3 * 4].as_ref()) {
            found.push("base64");
        }
    }
    found
}

#[test]
fn the_search_finds_each_form() {
    let secret = b"a canary";
    for lead in 0..3 {
        let text = STANDARD.encode([vec![7; lead], secret.to_vec(), vec![8; 5]].concat());
        assert_eq!(forms(text.as_bytes(), secret), ["base64"], "{lead}");
    }
    assert_eq!(forms(b"has a canary in it", secret), ["raw"]);
    assert_eq!(forms(hex::encode(secret).as_bytes(), secret), ["hex"]);
    assert!(forms(b"nothing here", secret).is_empty());
}

#[tokio::test]
async fn a_vm_of_a_template_knows_what_its_owner_sealed_and_its_agent_does_not() {
    if !crate::swtpm::available("a_vm_of_a_template_knows_what_its_owner_sealed_and_its_agent_does_not") {
        return;
    }
    let scene = Scene::new();
    let rng: &mut dyn Random = &mut OsRandom;
    let host = TestHost::new("host01", scene.dir.path(), &scene.kps, &scene.volume);
    let data = scene.data(Kind::EncryptionSupported, &scene.template, VersionRule::Equals);
    let name = VmName::parse("web").unwrap();
    let made = provision(&*host, &scene.volume, &name, scene.order(&data), rng)
        .await
        .unwrap();
    assert_eq!(
        (made.kind, made.version.to_string()),
        (Kind::EncryptionSupported, "1.2.0.0".to_owned())
    );
    assert_eq!(scene.names(), ["plain", "server.img", "web"]);
    assert!(host.phases().is_empty(), "no key is left in the store");
    let again = provision(&*host, &scene.volume, &name, scene.order(&data), rng).await;
    assert!(matches!(again, Err(VmError::Volume(VolumeError::Exists(_)))));

    // Its owner is the owner of the shielding data.
    let folder = scene.volume.vm(&name).unwrap();
    let first = folder.read_generation(&folder.current().unwrap().generation).unwrap();
    let chained = KeyProtector::parse(&first.protector).unwrap().verify().unwrap();
    assert_eq!(chained.owner(), Some(scene.owner.guardian().unwrap().signing()));
    assert!(chained.open(&scene.owner, rng).is_ok());

    power_on(&*host, &scene.volume, &name, rng).await.unwrap();
    let opened = scene.open(&data);
    let (proof, report) = host.store.borrow().prove(made.vm, b"challenge").unwrap();
    assert_eq!(proof, crate::vm::guest::proof(&opened.proof_key(made.vm), b"challenge"));
    assert_eq!((report.boots, report.after_shutdown), (1, true));
    // Of this kind a debugger sees the memory: the answer file, filled in.
    let memory = host.store.borrow().look(made.vm, Channel::Debugger).unwrap();
    let filled = format!("<ComputerName>web-01</ComputerName><Password>{PASSWORD}</Password>");
    assert!(memory.windows(filled.len()).any(|window| window == filled.as_bytes()));
    let shown = host.store.borrow().look(made.vm, Channel::DataExchange).unwrap();
    assert!(shown.starts_with(b"ComputerName=web-01\n"));
    power_off(&*host, &scene.volume, &name, rng).await.unwrap();

    // All that passed between agent and store, and all that lies on the volume.
    let (kept, told) = (host.kept.borrow(), host.told.borrow());
    let mut seen = vec![serde_json::to_vec(&*kept).unwrap(), serde_json::to_vec(&*told).unwrap()];
    for request in kept.iter() {
        if let VmRequest::Provision(request) = request {
            seen.extend([request.shielding_data.0.clone(), request.answer.0.clone()]);
        }
    }
    seen.extend(files_below(scene.volume.root()));
    let ingress = DataFile::parse(&data).unwrap().verify().unwrap();
    let ingress = ingress.chained().clone().open(&scene.owner, rng).unwrap();
    let egress = KeyProtector::parse(&first.protector)
        .unwrap()
        .verify()
        .unwrap()
        .open(&scene.owner, rng);
    let (ingress, egress) = (ingress.transport_key().clone(), egress.unwrap().transport_key().clone());
    let proof_key = opened.proof_key(made.vm);
    for (what, secret) in [
        ("answer file", PASSWORD.as_bytes()),
        ("other file", OTHER),
        ("ingress key", ingress.expose_transport_key().expose()),
        ("egress key", egress.expose_transport_key().expose()),
        ("proof key", proof_key.expose()),
    ] {
        for bytes in &seen {
            assert!(forms(bytes, secret).is_empty(), "{what}: {:?}", forms(bytes, secret));
        }
    }
}

fn files_below(folder: &Path) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        match entry.path().is_dir() {
            true => found.extend(files_below(&entry.path())),
            false => found.push(fs::read(entry.path()).unwrap()),
        }
    }
    found
}

#[tokio::test]
async fn what_the_owner_did_not_sign_makes_no_vm() {
    let scene = Scene::new();
    let rng: &mut dyn Random = &mut OsRandom;
    let root = scene.volume.root().to_path_buf();
    let host = TestHost::new("host01", scene.dir.path(), &scene.kps, &scene.volume);
    let name = VmName::parse("web").unwrap();
    let (later, _) = template(&root, b"another volume", "later", [2, 0, 0, 0]);
    // The maker's certificate is made anew for each file, but for the same key and name; this one is a stranger's.
    let stranger = root.join("stranger.img");
    let mut to = fs::File::create(&stranger).unwrap();
    let signer = hgs_protocol::protector::KeyPair::generate_signing("stranger", UnixTime(1_764_000_000), rng).unwrap();
    let version = "1.2".parse().unwrap();
    let plain = &mut fs::File::open(root.join("plain")).unwrap();
    crate::shielding::template::protect(plain, &mut to, "server".parse().unwrap(), version, &signer).unwrap();
    let changed = root.join("changed.img");
    let mut bytes = fs::read(&scene.template).unwrap();
    bytes[70_000] ^= 1;
    fs::write(&changed, bytes).unwrap();
    let outside = scene.dir.path().join("outside.img");
    fs::copy(&scene.template, &outside).unwrap();
    let before = scene.names();

    let equals = scene.data(Kind::Shielded, &scene.template, VersionRule::Equals);
    let after = scene.data(Kind::Shielded, &scene.template, VersionRule::GreaterThan);
    let order = |data: &[u8], template: &Path| NewShieldedVm {
        template: template.to_path_buf(),
        ..scene.order(data)
    };
    let mut bent = equals.clone();
    bent[24] = 1;
    let weaker = NewShieldedVm {
        kind: Some(Kind::EncryptionSupported),
        ..scene.order(&equals)
    };
    let guessing = NewShieldedVm {
        values: BTreeMap::from([("@administrator's own@".to_owned(), String::new())]),
        ..scene.order(&equals)
    };
    let makes_a_tpm = crate::swtpm::available("a template whose blocks were changed");
    for (order, reason, needs_tpm) in [
        (
            order(&after, &scene.template),
            "version 1.2.0.0 of the template server is refused",
            false,
        ),
        (order(&equals, &later), "does not trust the template later", false),
        (order(&equals, &stranger), "does not trust (thumbprint", false),
        (order(&equals, &root.join("plain")), "is no template", false),
        (order(&equals, &outside), "no file on this host's volume", false),
        (
            order(&equals, Path::new("../outside.img")),
            "no file on this host's volume",
            false,
        ),
        (order(&equals, &changed), "changed after it was signed: block 1", true),
        (order(&bent, &scene.template), "not as its owner signed it", false),
        (weaker, "makes Shielded VMs", false),
        (guessing, "no placeholder", false),
    ] {
        if needs_tpm && !makes_a_tpm {
            continue;
        }
        let refused = provision(&*host, &scene.volume, &name, order, rng).await.unwrap_err();
        assert!(refused.to_string().contains(reason), "{reason:?}: {refused}");
        assert!(matches!(refused, VmError::Store(_)));
        assert_eq!(scene.names(), before, "nothing of it is left");
    }
    // Another fabric's guardian has no wrapping.
    let other = GuardianKeys::generate("other", UnixTime(1_764_000_000), rng).unwrap();
    let elsewhere = TestHost::new("host02", scene.dir.path(), &other, &scene.volume);
    let refused = provision(&*elsewhere, &scene.volume, &name, scene.order(&equals), rng).await;
    assert!(matches!(refused, Err(VmError::Kps { .. })));
    assert_eq!(scene.names(), before);
}

/// An agent that keeps answers, and one that mixes them up.
#[tokio::test]
async fn an_answer_makes_one_vm_of_its_own_shielding_data() {
    if !crate::swtpm::available("an_answer_makes_one_vm_of_its_own_shielding_data") {
        return;
    }
    let scene = Scene::new();
    let rng: &mut dyn Random = &mut OsRandom;
    let host = TestHost::new("host01", scene.dir.path(), &scene.kps, &scene.volume);
    let [one, two] = [(); 2].map(|()| scene.data(Kind::Shielded, &scene.template, VersionRule::Equals));
    let name = VmName::parse("web").unwrap();
    provision(&*host, &scene.volume, &name, scene.order(&one), rng)
        .await
        .unwrap();
    let kept = host.kept.borrow().last().cloned().unwrap();
    let VmRequest::Provision(kept) = kept else {
        panic!("{kept:?}")
    };
    let ask = async |change: &dyn Fn(&mut ProvisionRequest)| {
        let mut request = (*kept).clone();
        change(&mut request);
        let disk = scene.volume.root().join("disk-of-the-agent");
        fs::write(&disk, b"").unwrap();
        request.disk = disk;
        host.store(VmRequest::Provision(Box::new(request)))
            .await
            .unwrap_err()
            .to_string()
    };
    let again = ask(&|_| {}).await;
    assert!(again.contains("was used on this host before"), "{again}");
    let mixed = ask(&|request| request.shielding_data = Blob(two.clone())).await;
    assert!(mixed.contains("do not open under its transport key"), "{mixed}");
    let bent = ask(&|request| request.answer.0.truncate(100)).await;
    assert!(bent.contains("answer of the key protection service"), "{bent}");

    // A new answer, and a disk that is another VM's.
    let roll = RollTransportKeyRequest::new(DataFile::parse(&two).unwrap().protector().to_vec(), b"c".to_vec());
    let answer = host.roll(Server::Primary, roll.encode()).await.unwrap();
    let folder = scene.volume.vm(&name).unwrap();
    let victim = folder.disk_path(&folder.current().unwrap());
    let before = fs::read(&victim).unwrap();
    let request = ProvisionRequest {
        shielding_data: Blob(two.clone()),
        answer: Blob(answer),
        disk: victim.clone(),
        ..(*kept).clone()
    };
    let refused = host.store(VmRequest::Provision(Box::new(request))).await.unwrap_err();
    assert!(refused.to_string().contains("is not empty"), "{refused}");
    assert_eq!(fs::read(&victim).unwrap(), before);
    power_on(&*host, &scene.volume, &name, rng).await.unwrap();
}
