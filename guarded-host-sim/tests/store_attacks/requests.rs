//! Requests to the VBS store: the agent lets a VM live a whole life and records every byte, then says it all again.

use std::path::{Path, PathBuf};

use guarded_host_sim::{
    store::protocol::StoreRequest,
    vm::{
        VmId, VmName,
        checkpoint::CheckpointId,
        package::{MigrationId, PackageHeader},
        request::{Blob, VmReply, VmRequest},
        security::{Change, Channel, Kind},
        state::{Age, GuestState, StateHeader},
    },
};
use hgs_protocol::{env::OsRandom, wire::kps::RollTransportKeyRequest};

use crate::{
    hands::{Hands, frame},
    mixups::too_old,
    owner,
    report::{Report, kind, told},
    support::Stage,
};

/// A VM as the agent has it: its files, and what it has learned of the way to start it.
pub(crate) struct Files {
    pub(crate) id: VmId,
    pub(crate) name: VmName,
    pub(crate) disk: PathBuf,
    pub(crate) protector: Vec<u8>,
    pub(crate) guest_state: Vec<u8>,
    pub(crate) memory: Option<Vec<u8>>,
}

/// Everything that was ever said to a store about one VM, byte by byte.
#[derive(Default)]
pub(crate) struct Recording(pub(crate) Vec<(String, Vec<u8>)>);

impl Files {
    /// What counts on the volume.
    pub(crate) fn of(stage: &Stage, name: &VmName) -> Files {
        let folder = stage.volume.vm(name).unwrap();
        let current = folder.current().unwrap();
        let generation = folder.read_generation(&current.generation).unwrap();
        Files {
            id: current.vm_id,
            name: name.clone(),
            disk: folder.disk_path(&current),
            protector: generation.protector,
            guest_state: generation.guest_state,
            memory: generation.memory,
        }
    }

    /// Keeps what a reply brought.
    pub(crate) fn take(&mut self, reply: VmReply) {
        match reply {
            VmReply::Prepared {
                protector, guest_state, ..
            } => (self.protector, self.guest_state, self.memory) = (protector.0, guest_state.0, None),
            VmReply::Off { guest_state } => (self.guest_state, self.memory) = (guest_state.0, None),
            VmReply::Resealed {
                guest_state, memory, ..
            } => (self.guest_state, self.memory) = (guest_state.0, memory.map(|memory| memory.0)),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn start(&self) -> VmRequest {
        VmRequest::Start {
            vm: self.id,
            name: self.name.clone(),
            disk: self.disk.clone(),
            recovery_password: None,
        }
    }

    /// A request to open the newest files by `answer`.
    pub(crate) fn open_by(&self, answer: Vec<u8>) -> VmRequest {
        VmRequest::PreparePowerOn {
            ingress_protector: Blob(self.protector.clone()),
            answer: Blob(answer),
            guest_state: Blob(self.guest_state.clone()),
            memory: self.memory.clone().map(Blob),
        }
    }
}

/// The KPS's answer to the protector: the agent holds a health certificate and asks as ever.
pub(crate) async fn roll(stage: &Stage, certificate: &[u8], protector: &[u8], report: &mut Report) -> Vec<u8> {
    let ask = RollTransportKeyRequest::new(protector.to_vec(), certificate.to_vec());
    let answer = stage.hgs.roll(&ask).await.unwrap().unwrap().encode();
    report.came("an answer of the KPS", &answer);
    answer
}

/// What must not come out of `files`: the transport key, which the owner can open, and all that it seals.
pub(crate) fn learn(stage: &Stage, files: &Files, report: &mut Report) {
    let key = stage.owner.open_protector(&files.protector, &mut OsRandom).unwrap();
    let state = GuestState::open(&files.guest_state, &key).unwrap();
    let what = format!("{} at {}", files.name, state.header.age);
    report.secret(format!("transport key of {what}"), key.expose_transport_key().expose());
    report.secret(format!("vTPM key of {what}"), state.vtpm.key.expose());
}

/// Lets the VM live: every kind of request, answered, the last leaving it running.
pub(crate) async fn record(
    stage: &Stage,
    hands: &mut Hands,
    certificate: &[u8],
    report: &mut Report,
) -> (Recording, Files) {
    let mut files = Files::of(stage, &stage.vm.name);
    let mut recording = Recording::default();
    let vm = files.id;
    learn(stage, &files, report);
    let describe = frame(&StoreRequest::Describe);
    assert_eq!(told(&hands.replay(&describe)), "answered: public keys");
    recording.0.push(("describe".to_owned(), describe));
    let mut say = |hands: &mut Hands, request: VmRequest| {
        let bytes = frame(&StoreRequest::Vm(request.clone()));
        recording.0.push((kind(&request), bytes));
        let reply = hands.ask(&request);
        assert!(!matches!(reply, VmReply::Refused { .. }), "{request:?}: {reply:?}");
        reply
    };
    let (disk, checkpoint) = (files.disk.clone(), CheckpointId::random(&mut OsRandom));
    macro_rules! say {
        ($request:expr) => {{
            let request = $request;
            say(hands, request)
        }};
    }
    macro_rules! open {
        () => {{
            let answer = roll(stage, certificate, &files.protector, report).await;
            files.take(say!(files.open_by(answer)));
            learn(stage, &files, report);
        }};
    }
    open!();
    say!(files.start());
    say!(VmRequest::List);
    let channel = Channel::Console;
    say!(VmRequest::Look { vm, channel });
    let challenge = Blob(vec![9; 32]);
    say!(VmRequest::Prove { vm, challenge });
    say!(VmRequest::Tally { vm });
    say!(VmRequest::Reset { vm, disk });
    let VmReply::Resealed { image: Some(image), .. } = say!(VmRequest::TakeCheckpoint { vm, checkpoint }) else {
        panic!("no image")
    };
    say!(files.start());
    files.take(say!(VmRequest::Suspend { vm }));
    say!(VmRequest::Forget { vm });
    open!();
    files.take(say!(VmRequest::ApplyCheckpoint { vm, checkpoint, image }));
    files.take(say!(VmRequest::ForgetCheckpoint { vm, checkpoint }));
    say!(VmRequest::Settle { vm });
    // Without its memory it boots, and its hardware may be changed.
    files.memory = None;
    open!();
    let change = Change::Kind { kind: Kind::Shielded };
    files.take(say!(VmRequest::Change { vm, change }));
    say!(files.start());
    files.take(say!(VmRequest::TurnOff { vm }));
    open!();
    say!(files.start());
    files.take(say!(VmRequest::PowerOff { vm }));
    files.take(say!(VmRequest::PrepareOffline {
        protector: Blob(files.protector.clone()),
        guest_state: Blob(files.guest_state.clone()),
        memory: None,
    }));
    say!(files.start());
    files.take(say!(VmRequest::TurnOff { vm }));
    open!();
    say!(files.start());
    let migration = MigrationId::random(&mut OsRandom);
    let VmReply::Saved { package } = say!(VmRequest::Save { vm, migration }) else {
        panic!("no package")
    };
    say!(VmRequest::Forget { vm });
    let answer = roll(stage, certificate, &files.protector, report).await;
    files.take(say!(VmRequest::PrepareResume {
        ingress_protector: Blob(files.protector.clone()),
        answer: Blob(answer),
        package,
    }));
    learn(stage, &files, report);
    say!(files.start());
    let order = owner::order(stage, certificate, report).await;
    let made = say!(order);
    owner::learn(stage, &made, report);
    let order = owner::order_empty(stage, certificate, report).await;
    let made = say!(order);
    owner::learn(stage, &made, report);
    for wanted in every_kind() {
        assert!(
            recording.0.iter().any(|(kind, _)| kind == wanted),
            "{wanted} is not recorded"
        );
    }
    (recording, files)
}

/// The names of all kinds of requests. A new one does not compile here: record it above, and say below what a replay
/// of it brings.
fn every_kind() -> Vec<&'static str> {
    let _ = |request: &VmRequest| match request {
        VmRequest::PreparePowerOn { .. }
        | VmRequest::PrepareOffline { .. }
        | VmRequest::PrepareResume { .. }
        | VmRequest::Provision(_)
        | VmRequest::Create(_)
        | VmRequest::Start { .. }
        | VmRequest::Save { .. }
        | VmRequest::PowerOff { .. }
        | VmRequest::TurnOff { .. }
        | VmRequest::Tally { .. }
        | VmRequest::Suspend { .. }
        | VmRequest::Reset { .. }
        | VmRequest::Change { .. }
        | VmRequest::TakeCheckpoint { .. }
        | VmRequest::ApplyCheckpoint { .. }
        | VmRequest::ForgetCheckpoint { .. }
        | VmRequest::Settle { .. }
        | VmRequest::Look { .. }
        | VmRequest::Forget { .. }
        | VmRequest::Prove { .. }
        | VmRequest::List => {}
    };
    vec![
        "describe",
        "prepare-power-on",
        "prepare-offline",
        "prepare-resume",
        "provision",
        "create",
        "start",
        "save",
        "power-off",
        "turn-off",
        "tally",
        "suspend",
        "reset",
        "change",
        "take-checkpoint",
        "apply-checkpoint",
        "forget-checkpoint",
        "settle",
        "look",
        "forget",
        "prove",
        "list",
    ]
}

/// When something is said again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// The VM runs, in the boot of the recording.
    Running,
    /// The same boot, the VM is off.
    Off,
    /// After a restart of the host in the same configuration.
    NewBoot,
    /// After a restart in another configuration: the VSM keys are others.
    NewKeys,
}

impl Recording {
    /// Says everything again.
    pub(crate) fn replay(&self, when: When, files: &Files, hands: &mut Hands, report: &mut Report) {
        let of = match when {
            When::Running => "Replayed requests, in the same boot while the VM runs",
            When::Off => "Replayed requests, in the same boot after the VM was turned off",
            When::NewBoot => "Replayed requests, in a new boot of the same configuration",
            When::NewKeys => "Replayed requests, in a boot of another configuration",
        };
        let mut openings = 0;
        for (number, (kind, bytes)) in self.0.iter().enumerate() {
            if self.0[..number].iter().any(|(_, before)| before == bytes) {
                continue;
            }
            let mut name = kind.clone();
            if kind.starts_with("prepare") {
                openings += 1;
                name = format!("{kind} (opening {openings})");
            }
            let Some(wanted) = wanted(kind, bytes, when, files) else {
                continue;
            };
            hands.take();
            let said = told(&hands.replay(bytes));
            report.row(of, name, wanted, said, hands.take());
        }
    }
}

/// What a replay of `kind` must bring; nothing where the agent may do just that to a VM of its host.
fn wanted(kind: &str, bytes: &[u8], when: When, files: &Files) -> Option<String> {
    let vm = files.id;
    let answered = |what: &str| Some(format!("answered: {what}"));
    let running = |wanted: &str| Some(format!("the VM {vm} is Running on this host; {wanted} it first"));
    match (kind, when) {
        ("describe", _) => answered("public keys"),
        ("list", _) => answered("list"),
        ("look", When::Running) => answered("shown"),
        ("prove", When::Running) => answered("proof"),
        ("tally", When::Running) => answered("tallied"),
        ("forget", When::Running) => running("stop or migrate"),
        ("forget", _) => answered("forgotten"),
        ("forget-checkpoint", When::Running) => answered("checkpoint-forgotten"),
        ("prepare-power-on" | "prepare-offline" | "prepare-resume" | "start", When::Running) => running("stop"),
        ("apply-checkpoint" | "settle" | "change", When::Running) => running("stop"),
        ("provision" | "create", When::Running | When::Off | When::NewBoot) => {
            Some("this answer of the key protection service was used on this host before; ask for a new one".to_owned())
        }
        // Whoever administers a host may stop a VM: nothing of it comes out but sealed.
        (_, When::Running) => None,
        ("prepare-power-on" | "prepare-resume" | "provision" | "create", When::NewKeys) => {
            Some("the answer is not encrypted for this host's key, or was changed on the way".to_owned())
        }
        ("prepare-offline", When::NewKeys) => Some(format!(
            "the VBS store has not started the VM {vm} since it got its VSM keys (they are new when the measured \
             configuration of the host has changed): the first start needs the key protection service"
        )),
        ("prepare-power-on" | "prepare-offline" | "prepare-resume", When::Off | When::NewBoot) => {
            Some(too_old(files, offered(bytes)))
        }
        _ => Some(format!("this host holds no key of the VM {vm}; power it on first")),
    }
}

/// Of which age the VM is that a recorded request opens.
fn offered(bytes: &[u8]) -> Age {
    match serde_json::from_slice(&bytes[4..]).unwrap() {
        StoreRequest::Vm(
            VmRequest::PreparePowerOn { guest_state, .. } | VmRequest::PrepareOffline { guest_state, .. },
        ) => StateHeader::read(&guest_state.0).unwrap().age,
        StoreRequest::Vm(VmRequest::PrepareResume { package, .. }) => {
            Age::rolled(PackageHeader::read(&package.0).unwrap().generation)
        }
        other => panic!("{other:?}"),
    }
}

/// Requests that no agent of ours would make.
pub(crate) fn malformed(vm: VmId, hands: &mut Hands, report: &mut Report) {
    let framed = |json: &str| {
        [
            u32::try_from(json.len()).unwrap().to_be_bytes().as_slice(),
            json.as_bytes(),
        ]
        .concat()
    };
    let deep = format!("{}1{}", "[".repeat(50_000), "]".repeat(50_000));
    let long = format!(
        r#"{{"request":"vm","about":{{"ask":"forget","vm":"{}"}}}}"#,
        "0".repeat(1 << 20)
    );
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing at all", Vec::new()),
        ("half a length", vec![0, 0]),
        ("a length of 4 GiB", vec![0xFF; 4]),
        ("a length of zero", vec![0; 4]),
        (
            "a message that ends too early",
            [&[0, 0, 1, 0], b"{}".as_slice()].concat(),
        ),
        ("bytes that are no JSON", framed("\u{1}\u{2}")),
        ("bytes that are no UTF-8", vec![0, 0, 0, 4, 0xFF, 0xFE, 0xFD, 0xFC]),
        ("JSON nested 50,000 deep", framed(&deep)),
        ("an identifier of a megabyte", framed(&long)),
        (
            "a request for keys",
            framed(r#"{"request":"vm","about":{"ask":"export-keys"}}"#),
        ),
        ("a request of another protocol", framed(r#"{"request":"sealed_state"}"#)),
        (
            "a known request with a field too many",
            framed(&format!(
                r#"{{"request":"vm","about":{{"ask":"forget","vm":"{vm}","with":"keys"}}}}"#
            )),
        ),
        (
            "a description of keys",
            framed(r#"{"request":"describe","about":{"private":true}}"#),
        ),
        (
            "a state that is no base64",
            framed(r#"{"request":"vm","about":{"ask":"prepare-offline","protector":"*","guest_state":"*"}}"#),
        ),
    ];
    for (name, bytes) in cases {
        hands.take();
        let said = match hands.send(&bytes).unwrap().as_slice() {
            [] => "the store hangs up",
            _ => "an answer",
        };
        report.row("Malformed requests", name, "the store hangs up", said, hands.take());
    }
    let alive = told(&hands.replay(&frame(&StoreRequest::Describe)));
    report.row(
        "Malformed requests",
        "and then an ordinary one",
        "answered: public keys",
        alive,
        hands.take(),
    );
}

/// A disk's path for a request.
pub(crate) fn elsewhere(files: &Files, disk: &Path) -> VmRequest {
    VmRequest::Start {
        vm: files.id,
        name: files.name.clone(),
        disk: disk.to_path_buf(),
        recovery_password: None,
    }
}
