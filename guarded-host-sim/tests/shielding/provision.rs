//! VMs that real hosts make of templates and shielding data.

use std::{
    fs,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use guarded_host_sim::{
    fabric::host::SimHost,
    owner::store::{GuardianName, GuardianStore},
    shielding::data_file::{DataFile, ShieldingData},
    vm::{
        VmId, VmName, guest,
        request::{Blob, VmReply},
        security::Kind,
        view::{VmState, VmView},
    },
};
use hgs_protocol::{env::OsRandom, protector::GuardianKeys};
use serde_json::json;

use super::{
    support::{Stage, wait_until},
    *,
};

pub(crate) const PASSWORD: &str = "Pa55word-of-the-administrator-0815";
const OTHER: &str = "the-key-of-the-remote-desktop-4711";

/// A fabric with a host and a template on its volume, and an owner's desk.
pub(crate) struct Scene {
    pub(crate) stage: Stage,
    pub(crate) host: SimHost,
    pub(crate) desk: PathBuf,
}

impl Scene {
    pub(crate) async fn set(environment: &[(&str, &str)]) -> Scene {
        let (stage, mut hosts) = Stage::set_with(&["host01"], environment).await;
        let desk = stage.folder.0.join("desk");
        fs::create_dir(&desk).unwrap();
        let scene = Scene {
            host: hosts.remove(0),
            stage,
            desk,
        };
        let desk = scene.desk.as_path();
        good(desk, "guardian create Owner --p256");
        fs::write(desk.join("hgs.xml"), scene.stage.hgs.metadata().await.unwrap()).unwrap();
        good(desk, "guardian import hgs.xml --name HGS --allow-untrusted-root");
        fs::write(desk.join("password"), "only for templates").unwrap();
        good(
            desk,
            "template certificate --name Contoso --out maker.pfx --password-file password --p256",
        );
        let volume: Vec<u8> = (0..300_000_u32).map(|at| (at % 233) as u8).collect();
        fs::write(desk.join("server.img"), volume).unwrap();
        good(
            desk,
            "template protect server.img --name Server --version 1.2 --pfx maker.pfx --pfx-password-file password",
        );
        scene.put("server.img");
        let answer = format!("<ComputerName>@ComputerName@</ComputerName><Password>{PASSWORD}</Password>");
        fs::write(desk.join("unattend.xml"), answer).unwrap();
        fs::write(desk.join("rdp.pfx"), OTHER).unwrap();
        scene
    }

    /// Copies a file of the desk to the library on the volume.
    fn put(&self, file: &str) {
        let library = self.stage.volume_path.join("library");
        fs::create_dir_all(&library).unwrap();
        fs::copy(self.desk.join(file), library.join(file)).unwrap();
    }

    /// Makes shielding data that `guardian` may open.
    pub(crate) fn data(&self, file: &str, guardian: &str, policy: &str) {
        good(
            &self.desk,
            &format!(
                "shielding-data create --owner Owner --guardian {guardian} --allow-untrusted-root --policy {policy} --out \
                 {file} --volume-id-qualifier equals:server.img --answer-file unattend.xml --other-file rdp.pfx"
            ),
        );
    }

    pub(crate) fn vm(&self, words: &str) -> Result<Value, String> {
        vm_on(&self.host, &self.desk, words)
    }

    pub(crate) fn good_vm(&self, words: &str) -> Value {
        self.vm(words).unwrap_or_else(|error| panic!("vm {words}: {error}"))
    }

    pub(crate) fn refused_vm(&self, words: &str, reasons: &[&str]) {
        let words = format!("vm {words} --agent {}", self.host.agent_url);
        refused(&self.desk, &words, reasons);
    }

    pub(crate) fn owner(&self) -> GuardianKeys {
        let store = GuardianStore::new(&self.desk.join("guardians"));
        let owner = store.find(&GuardianName::parse("Owner").unwrap()).unwrap();
        owner.unlock("correct horse battery").unwrap()
    }

    fn open(&self, file: &str) -> ShieldingData {
        let bytes = fs::read(self.desk.join(file)).unwrap();
        let signed = DataFile::parse(&bytes).unwrap().verify().unwrap();
        let opened = signed.chained().clone().open(&self.owner(), &mut OsRandom).unwrap();
        signed.open(opened.transport_key()).unwrap()
    }

    /// Panics unless the guest of `name` has read its proof key from its volume.
    pub(crate) async fn prove(&self, name: &str, vm: VmId, file: &str) {
        let challenge = [9; 32];
        let ask = json!({ "challenge": STANDARD.encode(challenge) });
        let path = format!("vms/{name}/prove");
        match self.host.post(&path, &ask).await.unwrap().unwrap() {
            VmReply::Proof { proof, .. } => {
                let expected = guest::proof(&self.open(file).proof_key(vm), &challenge);
                assert_eq!(proof, Blob(expected.to_vec()));
            }
            other => panic!("{other:?}"),
        }
    }
}

fn vm_on(host: &SimHost, folder: &Path, words: &str) -> Result<Value, String> {
    program(folder, &format!("vm {words} --agent {} --json", host.agent_url))
}

pub(crate) fn id(made: &Value) -> VmId {
    serde_json::from_value(made["vm"].clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shielded_vm_is_made_on_a_fabric_that_never_sees_its_secrets() {
    let scene = Scene::set(&[("HGS_LOG", "trace")]).await;
    scene.data("x.pdk", "HGS", "shielded");
    let made = scene.good_vm(
        "provision web --shielding-data x.pdk --template library/server.img --kind shielded --value ComputerName=web-01",
    );
    assert_eq!(
        (&made["template"], &made["version"]),
        (&json!("Server"), &json!("1.2.0.0"))
    );
    let view: VmView = serde_json::from_value(scene.good_vm("show web")).unwrap();
    assert_eq!(
        (view.state, view.security.unwrap().kind),
        (VmState::Off, Kind::Shielded)
    );
    let protector = view.protector.unwrap();
    let owner = scene.owner().guardian().unwrap().signing().thumbprint();
    assert_eq!((protector.owner, protector.guardians), (Some(owner), 2));

    assert_eq!(scene.good_vm("start web")["boots"], 1);
    scene.prove("web", id(&made), "x.pdk").await;
    scene.refused_vm("look web debugger", &["protected process"]);
    // It lives as any other: its disk has another layout and another length.
    scene.good_vm("checkpoint web");
    scene.good_vm("save web");
    scene.good_vm("resume web");
    scene.prove("web", id(&made), "x.pdk").await;
    scene.good_vm("stop web");
    // The same file makes another VM, with keys of its own.
    let second = scene.good_vm("provision web2 --shielding-data x.pdk --template library/server.img");
    scene.good_vm("start web2");
    scene.prove("web2", id(&second), "x.pdk").await;
    scene.refused_vm(
        "provision web --shielding-data x.pdk --template library/server.img",
        &["is on the volume already"],
    );

    // All files of the fabric: agents', stores', logs at their most talkative, the volume.
    let (mut seen, mut talkative) = (0, false);
    let needles = [PASSWORD, OTHER].map(forms).concat();
    every_file(&scene.stage.folder.0, &mut |path, bytes| {
        if path.starts_with(&scene.desk) {
            return;
        }
        seen += 1;
        talkative |= path.starts_with(scene.host.folder()) && bytes.windows(7).any(|window| window == b" TRACE ");
        for needle in &needles {
            let found = bytes.windows(needle.len()).any(|window| window == needle.as_slice());
            assert!(!found, "{}", path.display());
        }
    });
    assert!(seen > 30, "{seen} files were searched");
    assert!(talkative, "the host's logs were not at their most talkative");
}

/// Raw, hex, and base64 wherever it begins.
fn forms(secret: &str) -> Vec<Vec<u8>> {
    let mut forms = vec![secret.into(), hex::encode(secret).into_bytes()];
    for lead in 0..3 {
        let shifted = [vec![0; lead], secret.as_bytes().to_vec()].concat();
        let text = STANDARD.encode(&shifted);
        forms.push(text.as_bytes()[[0, 2, 3][lead]..shifted.len() / 3 * 4].to_vec());
    }
    forms
}

pub(crate) fn every_file(folder: &Path, look: &mut impl FnMut(&Path, &[u8])) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            every_file(&path, look);
        } else if kind.is_file()
            && let Ok(bytes) = fs::read(&path)
        {
            look(&path, &bytes);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_kind_shows_what_was_filled_in() {
    let scene = Scene::set(&[]).await;
    scene.data("x.pdk", "HGS", "encryption-supported");
    let provision = "provision web --shielding-data x.pdk --template library/server.img";
    scene.refused_vm(
        &format!("{provision} --kind shielded"),
        &["makes EncryptionSupported VMs", "only its owner decides"],
    );
    scene.refused_vm(&format!("{provision} --value Password=x"), &["no placeholder"]);
    scene.good_vm(&format!("{provision} --value ComputerName=web-01"));
    scene.good_vm("start web");
    let shown = scene.good_vm("look web data-exchange");
    let shown = STANDARD.decode(shown["content"].as_str().unwrap()).unwrap();
    assert!(shown.starts_with(b"ComputerName=web-01\n"));
    let memory = scene.good_vm("look web debugger");
    let memory = STANDARD.decode(memory["content"].as_str().unwrap()).unwrap();
    let filled = format!("<ComputerName>web-01</ComputerName><Password>{PASSWORD}</Password>");
    assert!(memory.windows(filled.len()).any(|window| window == filled.as_bytes()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wrong_host_the_wrong_fabric_and_the_wrong_template_make_no_vm() {
    let scene = Scene::set(&[]).await;
    let desk = scene.desk.as_path();
    scene.data("x.pdk", "HGS", "shielded");

    // Shielding data for another fabric's guardian.
    good(desk, "guardian create Elsewhere --p256 --dir elsewhere");
    good(desk, "guardian export Elsewhere --out elsewhere.xml --dir elsewhere");
    good(
        desk,
        "guardian import elsewhere.xml --name Elsewhere --allow-untrusted-root",
    );
    scene.data("elsewhere.pdk", "Elsewhere", "shielded");
    let provision = "--template library/server.img";
    scene.refused_vm(
        &format!("provision web --shielding-data elsewhere.pdk {provision}"),
        &[
            "KeyProtectionAccessDenied",
            "not authorised the guardian of this fabric",
        ],
    );
    // Shielding data that somebody made weaker on its way.
    let mut weaker = fs::read(desk.join("x.pdk")).unwrap();
    weaker[24] = 1;
    fs::write(desk.join("weaker.pdk"), weaker).unwrap();
    scene.refused_vm(
        &format!("provision web --shielding-data weaker.pdk {provision}"),
        &["not as its owner signed it"],
    );

    // Templates: changed, of a lower version, of a stranger, none.
    let mut changed = fs::read(desk.join("server.img")).unwrap();
    changed[200_000] ^= 1;
    fs::write(desk.join("changed.img"), changed).unwrap();
    fs::write(desk.join("lower.img"), "volume").unwrap();
    fs::write(desk.join("foreign.img"), "volume").unwrap();
    good(
        desk,
        "template certificate --name Mallory --out mallory.pfx --password-file password --p256",
    );
    for (file, version, signer) in [("lower.img", "1.1", "maker"), ("foreign.img", "1.2", "mallory")] {
        good(
            desk,
            &format!(
                "template protect {file} --name Server --version {version} --pfx {signer}.pfx --pfx-password-file password"
            ),
        );
    }
    for (file, reason) in [
        ("changed.img", "changed after it was signed: block 3"),
        ("lower.img", "version 1.1.0.0 of the template Server is refused"),
        ("foreign.img", "does not trust (thumbprint"),
        ("unattend.xml", "is no template"),
    ] {
        scene.put(file);
        scene.refused_vm(
            &format!("provision web --shielding-data x.pdk --template library/{file}"),
            &[reason],
        );
    }
    let outside = desk.join("server.img");
    scene.refused_vm(
        &format!("provision web --shielding-data x.pdk --template {}", outside.display()),
        &["no file on this host's volume"],
    );

    // A host that nobody registered.
    let wanted = [("stranger", &scene.stage.hgs, scene.stage.volume_path.as_path())];
    let stranger = scene
        .stage
        .fabric
        .start_hosts(&wanted)
        .unwrap()
        .remove("stranger")
        .unwrap();
    let refusal = vm_on(
        &stranger,
        desk,
        &format!("provision web --shielding-data x.pdk {provision}"),
    );
    let refusal = refusal.unwrap_err();
    assert!(refusal.contains("Unauthorized"), "{refusal}");
    let names: Vec<_> = fs::read_dir(&scene.stage.volume_path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("web"))
        .collect();
    assert!(names.is_empty(), "{names:?}");
    scene.good_vm(&format!("provision web --shielding-data x.pdk {provision}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_there_whole_or_not_at_all_when_a_process_ends() {
    let mut scene = Scene::set(&[("HGS_REQUESTS_PER_MINUTE_PER_KEY", "1000")]).await;
    scene.data("x.pdk", "HGS", "shielded");
    let provision = "provision web --shielding-data x.pdk --template library/server.img";
    let points = guarded_host_sim::commit_point::COMMIT_POINTS
        .iter()
        .map(|(name, _)| *name);
    let points: Vec<_> = points.filter(|name| name.starts_with("provision:")).collect();
    assert_eq!(points.len(), 4);
    for point in points {
        scene.host.kill().unwrap();
        scene.host = scene.stage.restart("host01", Some(point));
        let killed = scene.vm(provision);
        assert!(killed.is_err(), "nothing was killed at {point}: {killed:?}");
        let host = &mut scene.host;
        wait_until(10, "the host is down", || host.ended().is_some());
        scene.host = scene.stage.restart("host01", None);

        let committed = point == "provision:committed";
        let name = VmName::parse("web").unwrap();
        assert_eq!(scene.stage.volume.vm(&name).is_ok(), committed, "{point}");
        if !committed {
            // What was left of the first attempt is not in the way of the second.
            scene.good_vm(provision);
        }
        let current = scene.stage.volume.vm(&name).unwrap().current().unwrap();
        assert_eq!(scene.good_vm("start web")["boots"], 1, "{point}");
        scene.prove("web", current.vm_id, "x.pdk").await;
        scene.good_vm("stop web");
        fs::remove_dir_all(scene.stage.volume_path.join("web")).unwrap();
    }
    let left = fs::read_dir(&scene.stage.volume_path).unwrap();
    let left: Vec<_> = left
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(!left.iter().any(|name| name.starts_with(".provision")), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_vm_is_there_whole_or_not_at_all_when_a_process_ends() {
    let mut scene = Scene::set(&[("HGS_REQUESTS_PER_MINUTE_PER_KEY", "1000")]).await;
    good(
        &scene.desk,
        "protector create --owner Owner --guardian HGS --allow-untrusted-root --out empty.xml",
    );
    let protector = Blob(fs::read(scene.desk.join("empty.xml")).unwrap());
    let new = json!({ "protector": protector, "kind": "Shielded" });
    let points = guarded_host_sim::commit_point::COMMIT_POINTS
        .iter()
        .map(|(name, _)| *name);
    // The last two steps are those of every new VM.
    let points: Vec<_> = points
        .filter(|name| name.starts_with("create:") || ["provision:written", "provision:committed"].contains(name))
        .collect();
    assert_eq!(points.len(), 4);
    let name = VmName::parse("web").unwrap();
    for point in points {
        scene.host.kill().unwrap();
        scene.host = scene.stage.restart("host01", Some(point));
        let killed = scene.host.post::<serde_json::Value>("vms/web/create", &new).await;
        // Where the store ends, its host's agent may still say so.
        assert!(
            !matches!(killed, Ok(Ok(_))),
            "nothing was killed at {point}: {killed:?}"
        );
        let host = &mut scene.host;
        wait_until(10, "the host is down", || host.ended().is_some());
        scene.host = scene.stage.restart("host01", None);

        let committed = point == "provision:committed";
        assert_eq!(scene.stage.volume.vm(&name).is_ok(), committed, "{point}");
        if !committed {
            let made = scene.host.post::<serde_json::Value>("vms/web/create", &new).await;
            made.unwrap().unwrap();
        }
        assert_eq!(scene.good_vm("start web")["boots"], 1, "{point}");
        scene.good_vm("stop web");
        fs::remove_dir_all(scene.stage.volume_path.join("web")).unwrap();
    }
}
