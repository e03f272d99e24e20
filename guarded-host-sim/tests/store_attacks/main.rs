//! A host agent has full rights over its own files and sockets, may send the TPM any command and the VBS store any
//! bytes, and obtains no key. One table, a row for each attempt: what was tried, and what was said to it; at the end
//! everything that came to the agent is searched for every key of the VMs and for the VSM keys.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod hands;
mod mixups;
mod owner;
#[path = "../support/private_keys.rs"]
mod private_keys;
mod processes;
mod report;
mod requests;
mod states;
#[path = "../support/mod.rs"]
mod support;
mod tpm;

use guarded_host_sim::{
    machine::user::{AGENT_USER, give_tree},
    owner::Owner,
    vm::{VmName, request::VmRequest},
};
use hgs_protocol::{env::OsRandom, protector::KeyProtector};

use self::{
    hands::Hands,
    mixups::Attacker,
    report::Report,
    requests::{Files, When, learn, malformed, record},
    support::Stage,
};

/// Why the rows about another user's files and processes are missing.
const ONE_USER: &str = "files, sockets and processes of the host: this test does not run as root, so the host is one user, \
                        and any process of that user can take the keys (README says so)";

#[tokio::test(flavor = "multi_thread")]
async fn a_host_agent_obtains_no_vm_key() {
    let root = rustix::process::geteuid().is_root();
    let (stage, mut hosts) = Stage::set_with(&["host01", "host02"], &[("HGS_MAX_OFFLINE_UNWRAPS", "2")]).await;
    let (mut two, mut one) = (hosts.remove(1), hosts.remove(0));
    stage.wish_offline_starts(2);
    let mut report = Report::default();
    report.secret("the guest's secret", stage.secret.as_bytes());
    // A second VM of the same owner, on the same host.
    let books = VmName::parse("books").unwrap();
    let guardian = Owner::import_guardian(&stage.hgs.metadata().await.unwrap(), "HGS").unwrap();
    let (secret, volume) = (hex::encode([0x5C; 24]), &stage.volume);
    report.secret("the other guest's secret", secret.as_bytes());
    stage
        .owner
        .shield(
            &books,
            secret.as_bytes(),
            &guardian.guardian,
            volume,
            "host01",
            &mut OsRandom,
        )
        .unwrap();
    if root {
        give_tree(&stage.volume_path.join("books"), AGENT_USER).unwrap();
    }
    let host = one.folder().to_path_buf();
    let mut certificates = Vec::new();
    for host in [&one, &two] {
        host.post::<serde_json::Value>("attest", &serde_json::json!({}))
            .await
            .unwrap()
            .unwrap();
        certificates.push(host.artefact("health.cer").await.unwrap());
    }
    let mut hands = Hands::new(&host);

    // The boot in which the VM lives.
    let first = Files::of(&stage, &stage.vm.name);
    let mut other = Files::of(&stage, &books);
    other.protector = KeyProtector::parse(&other.protector)
        .unwrap()
        .with_max_offline_unwraps(2)
        .to_xml();
    learn(&stage, &other, &mut report);
    let (recording, mut newest) = record(&stage, &mut hands, &certificates[0], &mut report).await;
    recording.replay(When::Running, &newest, &mut hands, &mut report);
    if root {
        processes::look(&host, one.process_id().unwrap(), &mut hands, &mut report);
    }
    let off = hands.ask(&VmRequest::TurnOff { vm: newest.id });
    newest.take(off);
    recording.replay(When::Off, &newest, &mut hands, &mut report);
    malformed(newest.id, &mut hands, &mut report);
    Attacker {
        stage: &stage,
        hands: &mut hands,
        report: &mut report,
        certificate: &certificates[0],
    }
    .mix_up(&first, &newest, &mut other, &certificates[1])
    .await;
    tpm::after_the_boot(&host, &mut hands, &mut report);

    // Restarts: in the same configuration, of older files, in another configuration, on another host.
    states::restarts(&mut one, &recording, &newest, &mut hands, &mut report);
    one = states::learn_the_vsm_keys(&stage, one, &mut report);
    one = states::older_files(&stage, one, &certificates[0], &mut newest, &mut report).await;
    let copies = states::Copies::of(&host);
    two = states::on_another_host(&stage, two, &copies, &mut report);
    states::another_configuration(&mut one, &recording, &newest, &mut hands, &mut report).await;
    states::what_only_harms(&stage, &mut one, &newest, &mut hands, &mut report);
    match root {
        true => processes::crash(two.folder(), two.process_id().unwrap(), &mut report),
        false => report.skip(ONE_USER),
    }
    report.came("answers to the agent", &hands.everything());
    for folder in [
        host.join("agent"),
        two.folder().join("agent"),
        stage.volume_path.clone(),
    ] {
        report.lies_below(&folder);
    }
    report.judge();
}
