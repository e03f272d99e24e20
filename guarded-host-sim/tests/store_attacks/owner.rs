//! An owner's desk: shielding data for a VM that the agent's host is to make of a template.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use guarded_host_sim::{
    owner::store::{GuardianName, GuardianStore},
    shielding::data_file::DataFile,
    vm::{
        VmName,
        request::{Blob, CreateRequest, ProvisionRequest, VmReply, VmRequest},
        security::Kind,
        state::GuestState,
    },
};
use hgs_protocol::{env::OsRandom, protector::KeyProtector};

use crate::{report::Report, requests::roll, support::Stage};

const PASSWORD: &str = "Pa55word-of-the-administrator-0815";

/// Runs `guarded-host-sim WORDS` in the desk's folder.
fn run(desk: &Path, words: &str) {
    let done = Command::new(env!("CARGO_BIN_EXE_guarded-host-sim"))
        .args(words.split_whitespace())
        .current_dir(desk)
        .env("HGS_GUARDIAN_PASSWORD", "correct horse battery")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(done.status.success(), "{words}: {done:?}");
}

/// The request by which the agent makes a VM of a template and the owner's shielding data.
pub(crate) async fn order(stage: &Stage, certificate: &[u8], report: &mut Report) -> VmRequest {
    let desk = stage.folder.0.join("desk");
    fs::create_dir(&desk).unwrap();
    fs::write(desk.join("hgs.xml"), stage.hgs.metadata().await.unwrap()).unwrap();
    fs::write(desk.join("password"), "only for templates").unwrap();
    fs::write(desk.join("server.img"), vec![0x42; 100_000]).unwrap();
    fs::write(desk.join("unattend.xml"), format!("<Password>{PASSWORD}</Password>")).unwrap();
    report.secret(
        "the administrator's password in the shielding data",
        PASSWORD.as_bytes(),
    );
    for words in [
        "guardian create Owner --p256",
        "guardian import hgs.xml --name HGS --allow-untrusted-root",
        "template certificate --name Contoso --out maker.pfx --password-file password --p256",
        "template protect server.img --name Server --version 1.2 --pfx maker.pfx --pfx-password-file password",
        "shielding-data create --owner Owner --guardian HGS --allow-untrusted-root --policy shielded --out vm.pdk \
         --volume-id-qualifier equals:server.img --answer-file unattend.xml",
    ] {
        run(&desk, words);
    }
    let template = stage.volume_path.join("server.img");
    fs::copy(desk.join("server.img"), &template).unwrap();
    let shielding_data = fs::read(desk.join("vm.pdk")).unwrap();
    let file = DataFile::parse(&shielding_data).unwrap();
    let disk = stage.volume_path.join("new-disk");
    fs::write(&disk, b"").unwrap();
    VmRequest::Provision(Box::new(ProvisionRequest {
        answer: Blob(roll(stage, certificate, file.protector(), report).await),
        shielding_data: Blob(shielding_data),
        name: VmName::parse("web").unwrap(),
        template,
        disk,
        values: BTreeMap::new(),
        kind: None,
    }))
}

/// The request by which the agent makes a VM with an empty disk under a key protector of the owner's. The desk is there.
pub(crate) async fn order_empty(stage: &Stage, certificate: &[u8], report: &mut Report) -> VmRequest {
    let desk = stage.folder.0.join("desk");
    run(
        &desk,
        "protector create --owner Owner --guardian HGS --allow-untrusted-root --out empty.xml",
    );
    let protector = fs::read(desk.join("empty.xml")).unwrap();
    let disk = stage.volume_path.join("empty-disk");
    fs::write(&disk, b"").unwrap();
    VmRequest::Create(Box::new(CreateRequest {
        answer: Blob(roll(stage, certificate, &protector, report).await),
        protector: Blob(protector),
        name: VmName::parse("empty").unwrap(),
        disk,
        kind: Kind::Shielded,
    }))
}

/// What must not come out of the VM that was made.
pub(crate) fn learn(stage: &Stage, reply: &VmReply, report: &mut Report) {
    let (VmReply::Provisioned {
        protector, guest_state, ..
    }
    | VmReply::Created {
        protector, guest_state, ..
    }) = reply
    else {
        panic!("{reply:?}")
    };
    let guardians = GuardianStore::new(&stage.folder.0.join("desk/guardians"));
    let owner = guardians.find(&GuardianName::parse("Owner").unwrap()).unwrap();
    let keys = owner.unlock("correct horse battery").unwrap();
    let chained = KeyProtector::parse(&protector.0).unwrap().verify().unwrap();
    let opened = chained.open(&keys, &mut OsRandom).unwrap();
    let key = opened.transport_key();
    report.secret(
        "transport key of the VM that was made",
        key.expose_transport_key().expose(),
    );
    let state = GuestState::open(&guest_state.0, key).unwrap();
    report.secret("vTPM key of the VM that was made", state.vtpm.key.expose());
}
