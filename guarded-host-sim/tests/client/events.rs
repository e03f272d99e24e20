//! The host's event log: what happens to a host and its VMs gives these events and no others, in this order; they outlast
//! the host, and are read from it while it runs and from its folder when it does not.

use std::{fs, process::Command, time::Duration};

use guarded_host_sim::{
    fabric::host::SimHost,
    machine::{
        control::{Control, ask},
        dials::Dials,
    },
};
use hgs_service::events::{Event, Level};
use serde_json::{Value, json};

use crate::{
    allow, off, start,
    support::{Stage, refused_for, said},
    test, with_fallback,
};

/// What is new in a host's log.
#[derive(Default)]
struct News {
    seen: u64,
}

impl News {
    /// The events since the last call, oldest first, once one with the id `last` is among them.
    async fn up_to(&mut self, host: &SimHost, last: u32) -> Vec<Event> {
        for _ in 0..300 {
            let events = self.since(host).await;
            if events.iter().any(|event| event.id == last) {
                self.seen = number(events.last().unwrap());
                return events;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("no event {last}: {:#?}", self.since(host).await);
    }

    async fn since(&self, host: &SimHost) -> Vec<Event> {
        let all: Result<Vec<Event>, String> = host.get("events?newest=1000").await.unwrap();
        let mut new = all.unwrap();
        new.retain(|event| number(event) > self.seen);
        new.reverse();
        new
    }
}

fn number(event: &Event) -> u64 {
    event.record_id.parse().unwrap()
}

fn ids(events: &[Event]) -> Vec<u32> {
    events.iter().map(|event| event.id).collect()
}

fn text<'e>(event: &'e Event, name: &str) -> &'e str {
    event.data.get(name).and_then(Value::as_str).unwrap_or_default()
}

const BOOTED: u32 = 50_001;
const STATUS: u32 = 50_011;
const OTHER: u32 = 50_021;

/// A turn of dials, the events of the host's attestation, the substatus that they name, and the events of the service.
type Turn = (fn(&mut Dials), &'static [u32], &'static [&'static str], &'static [u64]);

const TURNS: &[Turn] = &[
    (
        |d| d.secure_boot = false,
        &[1008, 1008],
        &["SecureBoot", "SecureBootSettings"],
        &[1203, 1508, 51_004],
    ),
    (
        |d| d.ci_policy = Some(b"another policy".to_vec()),
        &[1009],
        &["CodeIntegrityPolicy"],
        &[1203, 1513],
    ),
    (|d| d.iommu = false, &[OTHER], &["Iommu"], &[1203, 1533]),
    (
        |d| (d.full_boot, d.pagefile_encryption) = (false, false),
        &[OTHER, OTHER],
        &["FullBoot", "PagefileEncryption"],
        &[1203, 51_004, 1535],
    ),
    (|_| (), &[1003], &[], &[1203, 1523]),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_turned_dial_gives_exactly_its_events_on_host_and_service() {
    let (stage, mut hosts) = Stage::set_with(&["host01"], &[("HGS_REQUESTS_PER_MINUTE_PER_KEY", "10000")]).await;
    let mut host = hosts.remove(0);
    let mut news = News::default();
    // The host had attested before it was registered.
    test(&host).await;
    let first = news.up_to(&host, 1003).await;
    assert_eq!(first[0].id, BOOTED);

    for (turn, expected, substatus, at_service) in TURNS {
        let mut dials = Dials::default();
        turn(&mut dials);
        host.reboot(dials).unwrap();
        let events = news.up_to(&host, STATUS).await;
        let expected = [&[BOOTED], *expected, &[STATUS]].concat();
        assert_eq!(ids(&events), expected, "{events:#?}");
        for event in &events[1..events.len() - 1] {
            let own = event.id >= 50_000;
            let product = event.provider_name == "Microsoft-Windows-HostGuardianService-Client";
            assert_eq!(own, !product, "{event:?}");
            assert_eq!(event.level == Level::Error, event.id != 1003, "{event:?}");
            assert_eq!(text(event, "Server"), "Primary");
        }
        let told = events.iter().map(|event| text(event, "AttestationSubstatus"));
        let told: Vec<&str> = told.filter(|text| !text.is_empty()).collect();
        let changed = *told.last().unwrap();
        assert_eq!(told[..told.len() - 1], **substatus);
        let joined = if substatus.is_empty() {
            "NoInformation".to_owned()
        } else {
            substatus.join(", ")
        };
        assert_eq!(changed, joined, "the change of the status names all");

        let query = format!(
            "events?id=1203,51004,1500,1508,1510,1513,1523,1533,1534,1535&newest={}",
            at_service.len()
        );
        let recorded: Vec<Value> = stage.hgs.attestation.admin_get(&query).await.unwrap();
        let recorded: Vec<u64> = recorded
            .iter()
            .rev()
            .map(|event| event["Id"].as_u64().unwrap())
            .collect();
        assert_eq!(recorded, *at_service);
    }

    // A host that nobody knows, one whose HGS is in another mode, and one whose TPM has failed.
    stage.hgs.attestation.admin_delete("tpm-hosts/host01").await.unwrap();
    test(&host).await;
    let events = news.up_to(&host, STATUS).await;
    assert_eq!(ids(&events), [1007, STATUS]);
    assert!(
        events[0].message.contains("Add-HgsAttestationTpmHost"),
        "{:?}",
        events[0]
    );
    assert_eq!(text(&events[0], "Error"), "UnauthorizedErrorReply");
    let reply = ask(&host.folder().join("machine.sock"), &Control::FailTpm).unwrap();
    assert!(reply.ok, "{reply:?}");
    test(&host).await;
    assert_eq!(ids(&news.up_to(&host, STATUS).await), [1012, STATUS]);

    // Another configuration, and none.
    let local = json!({ "EnableLocalMode": true });
    let _: Value = host.put("client-configuration", &local).await.unwrap().unwrap();
    let events = news.up_to(&host, STATUS).await;
    assert_eq!(ids(&events), [50_010, STATUS]);
    assert_eq!(
        (text(&events[0], "Mode"), text(&events[1], "AttestationStatus")),
        ("Local", "NotConfigured")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_to_vms_and_refused_gives_exactly_its_events() {
    let (mut stage, hosts) = Stage::set(&["host01", "host02"]).await;
    let (mut one, mut two) = (News::default(), News::default());
    for (host, news) in hosts.iter().zip([&mut one, &mut two]) {
        test(host).await;
        news.up_to(host, 1003).await;
    }
    allow(&stage.hgs, 1).await;
    stage.wish_offline_starts(1);
    let started = start(&stage, &hosts[0]).await.unwrap();
    assert!(!started.offline);
    let events = one.up_to(&hosts[0], 50_101).await;
    assert_eq!(ids(&events), [50_101]);
    let vm = stage.current().vm_id.to_string();
    assert_eq!(
        (text(&events[0], "VMName"), text(&events[0], "VMId")),
        ("payroll", vm.as_str())
    );
    assert_eq!(events[0].data["Offline"], false);

    // The store lets nobody debug a shielded VM.
    let debugger: Result<Value, String> = hosts[0].get("vms/payroll/channels/debugger").await.unwrap();
    assert!(debugger.is_err());
    let events = one.up_to(&hosts[0], 50_150).await;
    assert_eq!((ids(&events), events[0].level), (vec![50_150], Level::Error));

    stage.migrate(&hosts[0], &hosts[1]).await.unwrap();
    assert_eq!(ids(&one.up_to(&hosts[0], 50_107).await), [50_107]);
    assert_eq!(ids(&two.up_to(&hosts[1], 50_108).await), [50_108]);
    stage.ask::<Value>(&hosts[1], "save", &json!({})).await.unwrap();
    start(&stage, &hosts[1]).await.unwrap();
    off(&stage, &hosts[1]).await;
    let events = two.up_to(&hosts[1], 50_102).await;
    assert_eq!(ids(&events), [50_104, 50_101, 50_102]);
    // Not its owner any more.
    assert!(start(&stage, &hosts[0]).await.is_err());
    let events = one.up_to(&hosts[0], 50_151).await;
    assert!(events[0].message.contains("belongs to host02"), "{events:?}");

    // Key protection refuses the health certificate: the host attests once more, and is refused again.
    let signers: Vec<Value> = stage.hgs.kps.admin_get("attestation-signers").await.unwrap();
    let path = format!("attestation-signers/{}", signers[0]["thumbprint"].as_str().unwrap());
    stage.hgs.kps.admin_delete(&path).await.unwrap();
    assert!(start(&stage, &hosts[1]).await.is_err());
    let events = two.up_to(&hosts[1], 2014).await;
    assert_eq!(ids(&events), [1003, 2014]);
    let refused = &events[1];
    assert_eq!(
        (refused.log_name.as_str(), text(refused, "ErrorCode")),
        (
            "Microsoft-Windows-HostGuardianService-Client/Admin",
            "HealthCertificateException"
        )
    );
    assert!(
        refused.message.contains("registered with key protection"),
        "{refused:?}"
    );
    stage.hgs.trust_signer().await.unwrap();

    // Without contact: once, and not again.
    start(&stage, &hosts[1]).await.unwrap();
    off(&stage, &hosts[1]).await;
    stage.hgs.kps.kill().unwrap();
    two.up_to(&hosts[1], 50_102).await;
    assert!(start(&stage, &hosts[1]).await.unwrap().offline);
    off(&stage, &hosts[1]).await;
    let events = two.up_to(&hosts[1], 50_102).await;
    assert_eq!(ids(&events), [4, 50_101, 50_102]);
    assert_eq!(events[0].provider_name, "Microsoft-Windows-Hyper-V-VMSP");
    assert_eq!(events[1].data["Offline"], true);
    assert!(start(&stage, &hosts[1]).await.is_err());
    let events = two.up_to(&hosts[1], 2014).await;
    assert_eq!(ids(&events), [5, 2014]);
    assert!(text(&events[0], "Reason").contains("used up"), "{events:?}");

    // Nothing of the owner's is in either log.
    for host in &hosts {
        for name in ["events.jsonl", "events.1.jsonl"] {
            let log = fs::read_to_string(host.folder().join("agent").join(name)).unwrap_or_default();
            assert!(!log.contains(&stage.secret), "{}: {name}", host.name);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fallback_in_use_and_given_up_is_told_with_what_failed_before() {
    let (mut stage, hosts) = Stage::set(&["host01"]).await;
    let (host, mut news) = (&hosts[0], News::default());
    let _other = with_fallback(&mut stage, host).await;
    let events = news.up_to(host, 50_010).await;
    let configured = events.iter().find(|event| event.id == 50_010).unwrap();
    assert!(
        text(configured, "FallbackAttestationServerUrl").ends_with("/Attestation"),
        "{configured:?}"
    );
    test(host).await;
    news.up_to(host, 1003).await;

    stage.hgs.attestation.kill().unwrap();
    test(host).await;
    let events = news.up_to(host, 1003).await;
    assert_eq!(ids(&events), [1006, 50_012, 1003]);
    assert_eq!(
        (text(&events[0], "Server"), text(&events[2], "Server")),
        ("Primary", "Fallback")
    );
    assert_eq!(events[0].level, Level::Warning);
    stage.hgs.attestation.restart().unwrap();
    test(host).await;
    assert_eq!(ids(&news.up_to(host, 1003).await), [50_013, 1003]);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_outlast_the_host_and_are_read_with_the_same_filters_from_its_folder() {
    let (stage, mut hosts) = Stage::set(&["host01"]).await;
    let mut host = hosts.remove(0);
    test(&host).await;
    News::default().up_to(&host, 1003).await;
    let folder = host.folder().to_owned();
    let (running, stopped) = (["--agent", &host.agent_url], ["--dir", folder.to_str().unwrap()]);
    let read = |at: &[&str; 2], more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_guarded-host-sim"));
        said(command.env_remove("HGS_AGENT").arg("events").args(at).args(more))
    };
    let all = read(&running, &["--json"]).unwrap();
    assert!(all.as_array().unwrap().len() >= 3, "{all}");
    assert_eq!(read(&stopped, &["--json"]).unwrap(), all);
    let passed = read(&running, &["--json", "--id", "1003", "--newest", "1"]).unwrap();
    assert_eq!(passed[0]["Data"]["AttestationStatus"], "Passed");
    let shown = read(&running, &["--id", "1003"]).unwrap();
    let shown = shown.as_str().unwrap();
    assert!(
        shown.contains("Information   1003  Microsoft-Windows-HostGuardianService-Client"),
        "{shown}"
    );
    assert!(shown.contains("health certificate"), "{shown}");
    assert_eq!(
        read(&running, &["--since", "2100-01-01T00:00:00Z"]).unwrap(),
        "no events\n"
    );

    let wrong: [(&[&str], &str); 4] = [
        (&["--level", "bad"], "choose Critical, Error, Warning"),
        (&["--id", "x"], "separated by commas"),
        (&["--since", "yesterday"], "2026-01-31T12:00:00Z"),
        (&["--before", "x"], "RecordId"),
    ];
    for (more, words) in wrong {
        for at in [&running, &stopped] {
            refused_for(read(at, more), &format!("{more:?}"), &[words]);
        }
    }
    let asked: Result<Value, String> = host.get("events?levels=Error").await.unwrap();
    assert!(
        asked
            .unwrap_err()
            .contains("unknown field `levels`, expected one of `id`, `level`")
    );
    refused_for(
        read(&["--dir", "/nowhere"], &[]),
        "no host",
        &["no event log in /nowhere"],
    );

    // Its power is cut; the log is what it was, and goes on when the host is back.
    host.kill().unwrap();
    drop(host);
    assert_eq!(read(&stopped, &["--json"]).unwrap(), all);
    let host = stage.restart("host01", None);
    let events = News::default().up_to(&host, BOOTED).await;
    let newest: u64 = all[0]["RecordId"].as_str().unwrap().parse().unwrap();
    let booted = events.iter().rfind(|event| event.id == BOOTED).unwrap();
    assert_eq!(number(booted), newest + 1);
}
