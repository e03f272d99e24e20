//! Requests that are well made, of things that do not belong together: another VM's, another host's, older ones.

use std::path::Path;

use guarded_host_sim::{
    store::protocol::StoreReply,
    vm::{
        checkpoint::CheckpointId,
        package::MigrationId,
        request::{Blob, VmReply, VmRequest},
        security::{Change, Channel, Kind, Switch},
        state::{Age, StateHeader},
    },
};
use hgs_protocol::{env::OsRandom, protector::KeyProtector, wire::kps::RollTransportKeyResponse};
use serde_json::json;

use crate::{
    hands::Hands,
    report::{Report, told},
    requests::{Files, elsewhere, learn, roll},
    support::Stage,
};

/// A part of an answer of the KPS.
type Part = fn(&mut RollTransportKeyResponse) -> &mut Vec<u8>;

/// The attacker: hands, and a fabric that answers it as it answers any agent.
pub(crate) struct Attacker<'a> {
    pub(crate) stage: &'a Stage,
    pub(crate) hands: &'a mut Hands,
    pub(crate) report: &'a mut Report,
    pub(crate) certificate: &'a [u8],
}

impl Attacker<'_> {
    fn try_this(&mut self, of: &'static str, attempt: &str, request: &VmRequest, wanted: &str) -> VmReply {
        self.hands.take();
        let reply = self.hands.ask(request);
        let said = told(&StoreReply::Vm(reply.clone()));
        self.report.row(of, attempt, wanted, said, self.hands.take());
        reply
    }

    async fn answer(&mut self, files: &Files) -> Vec<u8> {
        roll(self.stage, self.certificate, &files.protector, self.report).await
    }

    /// Opens the newest files, as an agent does that starts a VM.
    async fn open(&mut self, files: &mut Files) {
        let request = files.open_by(self.answer(files).await);
        match self.hands.ask(&request) {
            VmReply::Prepared {
                protector, guest_state, ..
            } => (files.protector, files.guest_state, files.memory) = (protector.0, guest_state.0, None),
            other => panic!("{other:?}"),
        }
        learn(self.stage, files, self.report);
    }

    fn forget(&mut self, files: &Files) {
        let forgotten = self.hands.ask(&VmRequest::Forget { vm: files.id });
        assert_eq!(forgotten, VmReply::Forgotten { was_here: true });
    }

    /// `first` was just turned off; `files` is its first generation, `newest` its newest, and the other VM is off.
    pub(crate) async fn mix_up(&mut self, first: &Files, newest: &Files, other: &mut Files, foreign: &[u8]) {
        const OF: &str = "Things of another VM, another host or another time";
        let (vm, id) = (newest.id, other.id);
        let sealed = "the guest state does not open under this transport key: key and state are of different generations or \
                      VMs, or the state was changed";
        let not_ours = "the answer is not encrypted for this host's key, or was changed on the way";

        let answer = self.answer(other).await;
        let request = VmRequest::PreparePowerOn {
            ingress_protector: Blob(other.protector.clone()),
            answer: Blob(answer.clone()),
            guest_state: Blob(newest.guest_state.clone()),
            memory: None,
        };
        self.try_this(OF, "one VM's answer, another VM's state", &request, sealed);
        let request = newest.open_by(answer.clone());
        self.try_this(
            OF,
            "one VM's answer, another VM's protector and state",
            &request,
            sealed,
        );
        let mut bent = RollTransportKeyResponse::parse(&answer).unwrap();
        bent.egress_protector.clone_from(&newest.protector);
        let request = other.open_by(bent.encode());
        self.try_this(
            OF,
            "an answer whose protector was exchanged for another VM's",
            &request,
            "the egress transport key does not confirm the egress protector",
        );
        let mut bent = RollTransportKeyResponse::parse(&answer).unwrap();
        bent.egress_protector.clone_from(&other.protector);
        let request = other.open_by(bent.encode());
        self.try_this(
            OF,
            "an answer whose new protector was exchanged for the old one",
            &request,
            "the egress transport key does not confirm the egress protector",
        );
        let mut state = other.guest_state.clone();
        // Kind and switches in the state's header: magic (8), VM (16), age (12), then these two.
        state[36..38].copy_from_slice(&[1, 0x3F]);
        assert_eq!(
            StateHeader::read(&state).unwrap().security.kind(),
            Kind::EncryptionSupported
        );
        let request = VmRequest::PreparePowerOn {
            ingress_protector: Blob(other.protector.clone()),
            answer: Blob(answer.clone()),
            guest_state: Blob(state),
            memory: None,
        };
        self.try_this(
            OF,
            "a state whose header calls the VM encryption-supported",
            &request,
            sealed,
        );
        let parts: [(&str, Part); 3] = [
            ("transfer key", |answer| &mut answer.encrypted_transfer_key),
            ("wrapping key", |answer| &mut answer.encrypted_wrapping_key),
            ("transport keys", |answer| &mut answer.encrypted_transport_keys),
        ];
        for (name, part) in parts {
            let mut bent = RollTransportKeyResponse::parse(&answer).unwrap();
            part(&mut bent)[20] ^= 1;
            let request = other.open_by(bent.encode());
            self.try_this(
                OF,
                &format!("an answer with one bit of its {name} changed"),
                &request,
                not_ours,
            );
        }
        let request = other.open_by(roll(self.stage, foreign, &other.protector, self.report).await);
        self.try_this(OF, "an answer that another guarded host was given", &request, not_ours);
        let request = first.open_by(self.answer(first).await);
        self.try_this(
            OF,
            "the VM's first protector and state, with a new answer of the KPS",
            &request,
            &too_old(newest, Age::rolled(1)),
        );

        self.open(other).await;
        self.try_this(
            OF,
            "a start with another VM's disk",
            &elsewhere(other, &newest.disk),
            &format!("the disk belongs to the VM {vm}, not to {id}"),
        );
        self.disks(OF, other);
        let checkpoint = CheckpointId::random(&mut OsRandom);
        let request = VmRequest::ApplyCheckpoint {
            vm: id,
            checkpoint,
            image: Blob(newest.guest_state.clone()),
        };
        let wanted =
            format!("the newest state of the VM has no checkpoint {checkpoint}: it was deleted, or is another VM's");
        self.try_this(OF, "another VM's checkpoint", &request, &wanted);
        self.forget(other);
        self.uses(other).await;
    }

    /// Disks that a store of root's must not open for a user that is not root.
    fn disks(&mut self, of: &'static str, files: &Files) {
        let wanted = "the disk is not a file on this host's volume";
        let folder = files.disk.parent().unwrap();
        let link = folder.join("link");
        let store = self.stage.folder.0.join("hosts/host01/store/root.sealed");
        self.hands
            .try_to("symlink", json!({ "path": store, "new": link }))
            .unwrap();
        let up = folder.join("../../../hosts/host01/store/root.sealed");
        for (attempt, disk) in [
            ("a start from a file outside the volume", Path::new("/etc/shadow")),
            ("a start from a link to the store's own file", &link),
            ("a start from a path that leads out of the volume", &up),
            ("a start from a device", Path::new("/dev/mem")),
        ] {
            self.try_this(of, attempt, &elsewhere(files, disk), wanted);
        }
    }

    /// What is good once is not good twice.
    async fn uses(&mut self, other: &mut Files) {
        const OF: &str = "What was used before";
        let id = other.id;
        let used = "this answer of the key protection service was used on this host before; ask for a new one";
        let request = other.open_by(self.answer(other).await);
        assert!(matches!(self.hands.ask(&request), VmReply::Prepared { .. }));
        self.forget(other);
        self.try_this(OF, "an answer that was opened and never led to a start", &request, used);

        self.open(other).await;
        self.kinds(other);
        self.hands.ask(&other.start());
        self.channels(other);
        let migration = MigrationId::random(&mut OsRandom);
        let VmReply::Saved { package } = self.hands.ask(&VmRequest::Save { vm: id, migration }) else {
            panic!("no package")
        };
        self.forget(other);
        let resume = |answer: Vec<u8>, package: &Blob| VmRequest::PrepareResume {
            ingress_protector: Blob(other.protector.clone()),
            answer: Blob(answer),
            package: package.clone(),
        };
        let request = resume(self.answer(other).await, &package);
        assert!(matches!(self.hands.ask(&request), VmReply::Prepared { .. }));
        self.forget(other);
        self.try_this(
            OF,
            "the same answer and the same package of a migration",
            &request,
            used,
        );
        let request = resume(self.answer(other).await, &package);
        let wanted = format!("the package of the migration {migration} was used on this host before; migrate again");
        self.try_this(
            OF,
            "a new answer and the same package of a migration",
            &request,
            &wanted,
        );
        let mut renamed = package.clone();
        let at = renamed.0.windows(16).position(|w| w == migration.0.as_bytes()).unwrap();
        renamed.0[at] ^= 1;
        let request = resume(self.answer(other).await, &renamed);
        let wanted = "the migration package does not open under this VM's transport key";
        self.try_this(
            OF,
            "a new answer and the package under another migration's name",
            &request,
            wanted,
        );

        // Starts without contact are counted, whatever the protector says of itself.
        self.open(other).await;
        self.hands.ask(&other.start());
        let VmReply::Off { guest_state } = self.hands.ask(&VmRequest::TurnOff { vm: id }) else {
            panic!("it does not stop")
        };
        other.guest_state = guest_state.0;
        let raised = KeyProtector::parse(&other.protector)
            .unwrap()
            .with_max_offline_unwraps(1000)
            .to_xml();
        let offline = |state: &[u8]| VmRequest::PrepareOffline {
            protector: Blob(raised.clone()),
            guest_state: Blob(state.to_vec()),
            memory: None,
        };
        let request = offline(&other.guest_state);
        for _ in 0..2 {
            assert!(matches!(self.hands.ask(&request), VmReply::Prepared { .. }));
            self.forget(other);
        }
        let wanted = format!(
            "all 2 offline starts of the VM {id} that the key protection service allowed are used up; the next start needs \
             the key protection service"
        );
        self.try_this(
            OF,
            "a third start without contact, by a protector that says 1000",
            &request,
            &wanted,
        );
    }

    /// A prepared shielded VM stays what it is.
    fn kinds(&mut self, files: &Files) {
        const OF: &str = "Kind and channels of a shielded VM";
        let vm = files.id;
        let stays = "the VM is shielded, and no administrator of the fabric makes it anything else: only its owner does, by a \
                     new key protector (vm rekey --kind)";
        let change = |change| VmRequest::Change { vm, change };
        let kind = Kind::EncryptionSupported;
        self.try_this(
            OF,
            "make it encryption-supported",
            &change(Change::Kind { kind }),
            stays,
        );
        for (attempt, switch, on, wanted) in [
            (
                "turn a COM port on",
                Switch::Serial,
                true,
                "the VM is shielded, which blocks serial (COM) access: it cannot be turned on",
            ),
            (
                "turn the encryption of its memory off",
                Switch::EncryptStateAndMigration,
                false,
                "the VM is shielded, which enforces encryption of state and migration traffic: it cannot be turned off",
            ),
        ] {
            self.try_this(OF, attempt, &change(Change::Switch { switch, on }), wanted);
        }
    }

    fn channels(&mut self, files: &Files) {
        const OF: &str = "Kind and channels of a shielded VM";
        for (channel, why) in [
            (
                Channel::Debugger,
                "its worker process is a protected process, to which no debugger attaches",
            ),
            (Channel::Serial, "its COM ports are disabled and cannot be enabled"),
            (Channel::PowershellDirect, "PowerShell Direct is blocked"),
            (Channel::DataExchange, "data exchange is blocked"),
        ] {
            let request = VmRequest::Look { vm: files.id, channel };
            let (attempt, wanted) = (
                format!("look into the guest by {channel:?}"),
                format!("the VM is shielded: {why}"),
            );
            self.try_this(OF, &attempt, &request, &wanted);
        }
    }
}

/// The refusal of a generation older than the newest of `files`.
pub(crate) fn too_old(files: &Files, offered: Age) -> String {
    let newest = StateHeader::read(&files.guest_state).unwrap().age;
    format!(
        "generation {offered} of the VM {} is too old: this host has had generation {newest}; start it from the newest \
         generation on the volume",
        files.id
    )
}
