//! Other boots, other hosts, older and foreign files of the store's, and what an agent can do to harm its host and
//! nobody's keys.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use guarded_host_sim::{
    fabric::host::SimHost,
    machine::{
        boot::{Boot, STARTUP_LOCALITY},
        control::{Control, ControlReply, ask},
        dials::Dials,
        relay::{Gate, SharedTpm, offer},
        user::give_tree,
    },
    store::{Store, protocol::StoreRequest},
    swtpm::{Swtpm, short_private_dir},
    tpm_channel::TpmChannel,
    vm::request::{VmReply, VmRequest},
};
use hgs_protocol::env::OsRandom;
use serde_json::{Value, json};

use crate::{
    hands::{Hands, PROGRAM, frame},
    report::{Report, told},
    requests::{Files, Recording, When, roll},
    support::{Stage, kill, processes_of, wait_until},
    tpm,
};

fn control(host: &SimHost, order: &Control) -> ControlReply {
    ask(&host.folder().join("machine.sock"), order).unwrap()
}

fn stop(host: SimHost) -> PathBuf {
    let folder = host.folder().to_path_buf();
    assert!(control(&host, &Control::Stop).ok);
    wait_until(20, "the host has ended", || processes_of(&folder).is_empty());
    folder
}

/// The public VSM keys, as the store tells them.
fn vsm_keys(hands: &mut Hands) -> Value {
    serde_json::to_value(hands.replay(&frame(&StoreRequest::Describe))).unwrap()["reply"]["encryption_key"].clone()
}

fn yes(holds: bool, what: &str) -> String {
    if holds { what.to_owned() } else { format!("not: {what}") }
}

/// A restart in the same configuration, prepared by the agent as well as it can.
pub(crate) fn restarts(
    host: &mut SimHost,
    recording: &Recording,
    files: &Files,
    hands: &mut Hands,
    report: &mut Report,
) {
    const OF: &str = "TPM commands over a restart";
    let (keys, vsm) = (tpm::keys(hands), vsm_keys(hands));
    let saved = tpm::save_a_session(hands);
    tpm::replace_keys(hands);
    tpm::keep_the_state(hands);
    host.reboot(Dials::default()).unwrap();
    hands.take();
    let restored = "the TPM's own keys are at their handles again, the VSM keys are the same";
    let holds = tpm::keys(hands) == keys && vsm_keys(hands) == vsm;
    report.row(
        OF,
        "a storage key of the agent's own, which it can take along, at the TPM's handle, and no EK",
        restored,
        yes(holds, restored),
        hands.take(),
    );
    tpm::load_the_session(saved, host.folder(), hands, report);
    recording.replay(When::NewBoot, files, hands, report);
}

/// Opens the store as the machine lets it open, and tells the report what nobody may have seen.
pub(crate) fn learn_the_vsm_keys(stage: &Stage, host: SimHost, report: &mut Report) -> SimHost {
    let folder = stop(host);
    let swtpm = Swtpm::start("host01", &folder.join("tpm"), None).unwrap();
    let (tpm, gate, sockets) = (SharedTpm::new(swtpm), Gate::default(), short_private_dir().unwrap());
    offer(&sockets.join("tpm"), tpm.clone(), gate.clone()).unwrap();
    {
        let mut tpm = tpm.lock();
        tpm.reset(STARTUP_LOCALITY).unwrap();
        Boot::begin(tpm.channel())
            .measure_configuration(&Dials::default())
            .unwrap();
    }
    gate.open();
    let mut channel = TpmChannel::connect(&sockets.join("tpm"), "host01").unwrap();
    let root = tpm::unseal_in_time(&mut channel, &folder.join("store"));
    report.secret("the store's root key", &root);
    drop(channel);
    let channel = TpmChannel::connect(&sockets.join("tpm"), "host01").unwrap();
    let opened = Store::open(&folder.join("store"), channel, &mut OsRandom).unwrap();
    assert!(!opened.new_keys, "they are the keys of the attacked boots");
    let secrets = opened.store.secrets();
    for (what, key) in [("encryption", &secrets.encryption), ("signing", &secrets.signing)] {
        // The public modulus stands in front of the private numbers.
        for (number, piece) in key.expose_pkcs8()[320..].chunks_exact(32).enumerate() {
            report.secret(format!("piece {number} of the VSM {what} key"), piece);
        }
    }
    drop(opened);
    // The relay's threads hold the TPM as long as this process lives.
    kill(tpm.lock().process_id());
    wait_until(10, "the TPM has ended", || !tpm.lock().is_running());
    fs::remove_dir_all(&sockets).unwrap();
    stage.restart("host01", None)
}

/// Files of a store, put back later or elsewhere.
pub(crate) struct Copies(BTreeMap<&'static str, Vec<u8>>);

impl Copies {
    pub(crate) fn of(host: &Path) -> Copies {
        let read = |name: &'static str| (name, fs::read(host.join("store").join(name)).unwrap());
        Copies(["root.sealed", "state.sealed"].map(read).into())
    }

    fn put(&self, host: &Path, names: &[&str]) {
        for name in names {
            fs::write(host.join("store").join(name), &self.0[name]).unwrap();
        }
    }
}

/// What the host says that does not start.
fn refusal(stage: &Stage, name: &str) -> String {
    let started = stage.fabric.restart_host(name, &stage.hgs, &stage.volume_path, None);
    let folder = stage.folder.0.join("hosts").join(name);
    wait_until(20, "nothing of the host runs", || processes_of(&folder).is_empty());
    let error = format!("{:#}", started.err().unwrap());
    error.rsplit_once("host.log: ").unwrap().1.trim().to_owned()
}

const FILES: &str = "The store's own files, put back or exchanged (no agent's user can; its machine's operator can)";

/// The state of yesterday, after something was used up today.
pub(crate) async fn older_files(
    stage: &Stage,
    host: SimHost,
    certificate: &[u8],
    files: &mut Files,
    report: &mut Report,
) -> SimHost {
    let yesterday = Copies::of(host.folder());
    let mut hands = Hands::new(host.folder());
    let answer = roll(stage, certificate, &files.protector, report).await;
    let opened = hands.ask(&files.open_by(answer));
    files.take(opened);
    crate::requests::learn(stage, files, report);
    assert!(matches!(hands.ask(&files.start()), VmReply::Started { .. }));
    let off = hands.ask(&VmRequest::TurnOff { vm: files.id });
    files.take(off);
    report.row(
        "What was used before",
        "everything so far, once more",
        "off",
        "off",
        hands.take(),
    );
    drop(hands);
    let folder = stop(host);
    let today = Copies::of(&folder);
    yesterday.put(&folder, &["state.sealed"]);
    let said = refusal(stage, "host01");
    let wanted = format!(
        "the VBS store of host01 does not open: the sealed state in {} is not the newest one (somebody put an older \
         copy back); remove that directory to start with new VSM keys",
        folder.join("store").display()
    );
    report.row(
        FILES,
        "the state of before the VM's last start",
        wanted,
        said,
        Vec::new(),
    );
    today.put(&folder, &["root.sealed", "state.sealed"]);
    stage.restart("host01", None)
}

/// Another configuration, and back again.
pub(crate) async fn another_configuration(
    host: &mut SimHost,
    recording: &Recording,
    files: &Files,
    hands: &mut Hands,
    report: &mut Report,
) {
    const OF: &str = "Restarts in another configuration";
    let mut seen = vec![vsm_keys(hands)];
    let other = Dials {
        test_signing: true,
        ..Dials::default()
    };
    for (attempt, dials) in [("test signing on", other), ("and off again", Dials::default())] {
        host.reboot(dials).unwrap();
        hands.take();
        let key = vsm_keys(hands);
        let remark = "the measured configuration has changed: new VSM keys, the old state is discarded";
        let fresh = !seen.contains(&key) && control(host, &Control::Status).remarks.iter().any(|r| r == remark);
        report.row(OF, attempt, remark, yes(fresh, remark), hands.take());
        seen.push(key);
        let outcome: Value = host.post("attest", &json!({})).await.unwrap().unwrap();
        let wanted = match attempt {
            "test signing on" => "InsecureHostConfiguration: DebugMode",
            _ => "Passed: ",
        };
        let said = format!(
            "{}: {}",
            outcome["AttestationStatus"].as_str().unwrap(),
            outcome["AttestationSubstatus"]
                .as_str()
                .unwrap()
                .replace("NoInformation", "")
        );
        report.row(
            OF,
            format!("{attempt}: attestation"),
            wanted,
            said,
            outcome.to_string().into_bytes(),
        );
        if seen.len() == 2 {
            recording.replay(When::NewKeys, files, hands, report);
        }
    }
}

/// The store's files on a host with another TPM.
pub(crate) fn on_another_host(stage: &Stage, host: SimHost, copies: &Copies, report: &mut Report) -> SimHost {
    let folder = stop(host);
    let own = Copies::of(&folder);
    let foreign = "the VBS store of host02 does not open: the sealed root key is damaged or of another TPM";
    copies.put(&folder, &["root.sealed", "state.sealed"]);
    report.row(
        FILES,
        "both files of another host",
        foreign,
        refusal(stage, "host02"),
        Vec::new(),
    );
    own.put(&folder, &["root.sealed"]);
    let wanted = format!(
        "the VBS store of host02 does not open: the sealed state in {} is not the newest one (somebody put an older \
         copy back); remove that directory to start with new VSM keys",
        folder.join("store").display()
    );
    report.row(
        FILES,
        "the sealed state of another host",
        wanted,
        refusal(stage, "host02"),
        Vec::new(),
    );
    copies.put(&folder, &["root.sealed"]);
    own.put(&folder, &["state.sealed"]);
    report.row(
        FILES,
        "the sealed root key of another host",
        foreign,
        refusal(stage, "host02"),
        Vec::new(),
    );
    own.put(&folder, &["root.sealed", "state.sealed"]);
    stage.restart("host02", None)
}

/// What an administrator of a host can do to its TPM costs the host its keys, and gives nobody any.
pub(crate) fn what_only_harms(
    stage: &Stage,
    host: &mut SimHost,
    files: &Files,
    hands: &mut Hands,
    report: &mut Report,
) {
    const OF: &str = "What harms the host and brings no key";
    let folder = host.folder().to_path_buf();
    let before = vsm_keys(hands);
    hands.take();
    assert_eq!(tpm::clear(hands), "done");
    host.reboot(Dials::default()).unwrap();
    let remark = "the TPM was cleared: new VSM keys, the old state is discarded";
    let fresh = vsm_keys(hands) != before && control(host, &Control::Status).remarks.iter().any(|r| r == remark);
    report.row(
        OF,
        "Clear by the lockout authority, and a restart",
        remark,
        yes(fresh, remark),
        hands.take(),
    );

    // A store of the agent's own: copies of the sealed files, its own TPM channel, after the boot.
    let measured = vsm_keys(hands);
    let own = folder.join("agent/own-store");
    fs::create_dir(&own).unwrap();
    for name in ["root.sealed", "state.sealed"] {
        fs::copy(folder.join("store").join(name), own.join(name)).unwrap();
    }
    if rustix::process::geteuid().is_root() {
        give_tree(&own, fs::metadata(folder.join("agent")).unwrap().uid()).unwrap();
    }
    let arguments = [
        ["store", "--name", "host01", "--dir"].map(PathBuf::from).as_slice(),
        &[
            own.clone(),
            "--tpm".into(),
            folder.join("run/tpm-agent"),
            "--socket".into(),
            own.join("socket"),
        ],
    ]
    .concat();
    hands.take();
    let line = hands
        .get("run", json!({ "fd": PROGRAM, "folder": own, "arguments": arguments }))
        .unwrap();
    let text = String::from_utf8_lossy(&line).into_owned();
    let other = serde_json::from_slice::<Value>(&line).unwrap_or_else(|_| panic!("{text}"));
    let remark = "the measured configuration has changed: new VSM keys, the old state is discarded";
    let keys_of_its_own =
        other["encryption_key"] != measured && other["remarks"].as_array().unwrap().iter().any(|r| r == remark);
    report.row(
        OF,
        "a VBS store started by the agent on copies of the sealed files",
        "keys of its own, which no boot has measured",
        yes(keys_of_its_own, "keys of its own, which no boot has measured"),
        hands.take(),
    );
    // It has taken the counter over: the host's store changes nothing any more, and does not open again.
    let refused = host.reboot(Dials::default()).unwrap_err().to_string();
    let wanted = format!(
        "host01 did not come up again: the VBS store of host01 does not open: the TPM's counter for the sealed state is gone (somebody removed it); remove {} to start with new VSM keys",
        folder.join("store").display()
    );
    report.row(
        OF,
        "the counter undefined and defined anew, and a restart",
        wanted,
        refused,
        Vec::new(),
    );
    wait_until(20, "the host has ended", || processes_of(&folder).is_empty());
    fs::remove_dir_all(folder.join("store")).unwrap();
    *host = stage.restart("host01", None);
    let again = told(&hands.replay(&frame(&StoreRequest::Vm(files.start()))));
    let wanted = format!("this host holds no key of the VM {}; power it on first", files.id);
    report.row(OF, "a start on the store made anew", wanted, again, hands.take());
}
