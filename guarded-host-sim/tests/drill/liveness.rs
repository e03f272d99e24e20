//! A migration that was cut short: the VM goes on by itself as soon as both sides can talk, or when an administrator
//! declares the other side lost; and what was sent once is not taken again.

use guarded_host_sim::{
    drill::Wire,
    fabric::host::SimHost,
    ledger::{self, check::Account, check::check},
    vm::{guest::GuestReport, operation::MigrationOffer},
};
use serde_json::{Value, json};

use crate::support::{Stage, kill, process, processes_of, wait_until};

/// Two hosts, the VM running on the first; its guest has counted.
struct Pair {
    stage: Stage,
    one: SimHost,
    two: SimHost,
    guest: GuestReport,
}

impl Pair {
    async fn new() -> Pair {
        let often = [("HGS_REQUESTS_PER_MINUTE_PER_KEY", "1000")];
        let (stage, mut hosts) = Stage::set_with(&["host01", "host02"], &often).await;
        let (two, one) = (hosts.remove(1), hosts.remove(0));
        stage.power_on(&one).await.unwrap();
        let guest = stage.ask(&one, "tally", &json!({})).await.unwrap();
        Pair { stage, one, two, guest }
    }

    async fn wire(&self) -> Wire {
        let address = self.two.agent_url.strip_prefix("http://").unwrap();
        Wire::to(address.parse().unwrap()).await.unwrap()
    }

    /// Begins a migration over `wire`, which goes on beside the test.
    fn migration(&self, wire: &Wire) -> tokio::task::JoinHandle<Result<Value, String>> {
        let (agent, ask) = (self.one.agent(), json!({ "target": "host02", "address": wire.url }));
        let path = format!("vms/{}/migrate", self.stage.vm.name);
        tokio::spawn(async move { agent.post(&path, &ask).await.map_err(|e| format!("{e:#}"))? })
    }

    /// The same boot goes on on `host`, with all that it had counted, and on no other.
    async fn goes_on(&self, host: &SimHost, other: &SimHost) {
        let guest = self.stage.prove(host).await;
        assert_eq!((&guest.boot_id, guest.tally), (&self.guest.boot_id, self.guest.tally));
        let refused = self.stage.power_on(other).await.unwrap_err();
        assert!(refused.contains(&format!("belongs to {}", host.name)), "{refused}");
        let held: Value = other.get("vms").await.unwrap().unwrap();
        assert_eq!(held["vms"], json!([]), "keys are left on {}", other.name);
        self.never_twice();
    }

    fn never_twice(&self) {
        let account = |host: &SimHost| Account {
            host: host.name.clone(),
            entries: ledger::read(&host.folder().join("store").join(ledger::FILE)).unwrap(),
            deaths: Vec::new(),
        };
        let findings = check(&[account(&self.one), account(&self.two)]).unwrap();
        assert_eq!(findings.overlaps, []);
    }

    /// Sends a stream to a host as the source's agent would.
    async fn send(host: &SimHost, stream: &Value) -> String {
        let answer: Result<Value, String> = host.post("migrations", stream).await.unwrap();
        answer.unwrap_err()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_goes_on_by_itself_once_the_hosts_hear_each_other_again() {
    let pair = Pair::new().await;
    // The target never hears of it.
    let wire = pair.wire().await;
    wire.cut();
    let migration = pair.migration(&wire);
    wait_until(20, "the stream is under way", || wire.request().is_some());
    wire.mend();
    let refused = migration.await.unwrap().unwrap_err();
    assert!(refused.contains("host02 does not take the VM"), "{refused}");
    pair.goes_on(&pair.one, &pair.two).await;

    // The target has it, and the source does not hear of that.
    let wire = pair.wire().await;
    let migration = pair.migration(&wire);
    wait_until(20, "the stream has passed", || wire.request().is_some());
    wait_until(20, "the target owns the VM", || {
        wire.cut();
        pair.stage.current().owner_host == "host02"
    });
    wire.mend();
    let moved = migration.await.unwrap().unwrap();
    assert_eq!(
        (&moved["owner_host"], &moved["source_forgot"]),
        (&json!("host02"), &json!(true))
    );
    pair.goes_on(&pair.two, &pair.one).await;

    // What was sent is not taken again, neither by the host that has the VM nor by the one that sent it.
    let stream = wire.request().unwrap();
    for host in [&pair.two, &pair.one] {
        let refused = Pair::send(host, &stream).await;
        assert!(refused.contains("not of the generation that counts"), "{refused}");
    }
    pair.goes_on(&pair.two, &pair.one).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_goes_on_by_itself_when_the_target_has_died_and_moves_once_it_is_back() {
    let mut pair = Pair::new().await;
    pair.two.kill().unwrap();
    // It has opened the package by then.
    pair.two = pair.stage.restart("host02", Some("migration:written"));
    let wire = pair.wire().await;
    pair.migration(&wire).await.unwrap().unwrap_err();
    wait_until(10, "the target is down", || pair.two.ended().is_some());
    pair.two = pair.stage.restart("host02", None);
    pair.goes_on(&pair.one, &pair.two).await;

    // Neither is the stream taken when whoever sends it says that it is of now.
    let mut offer: MigrationOffer = serde_json::from_value(wire.request().unwrap()).unwrap();
    let refused = Pair::send(&pair.two, &json!(offer)).await;
    assert!(refused.contains("not of the generation that counts"), "{refused}");
    offer.expected = pair.stage.current();
    let refused = Pair::send(&pair.two, &json!(offer)).await;
    assert!(refused.contains("was used on this host before"), "{refused}");
    pair.goes_on(&pair.one, &pair.two).await;

    pair.stage.migrate(&pair.one, &pair.two).await.unwrap();
    pair.goes_on(&pair.two, &pair.one).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_goes_on_by_itself_when_the_source_has_died_and_the_target_had_it() {
    let mut pair = Pair::new().await;
    let wire = pair.wire().await;
    let migration = pair.migration(&wire);
    wait_until(20, "the target owns the VM", || {
        pair.stage.current().owner_host == "host02"
    });
    kill(process(pair.one.folder(), &[" agent --name "]));
    // Whether its caller still heard of it does not matter.
    let _ = migration.await.unwrap();
    wait_until(10, "the source is down", || pair.one.ended().is_some());
    pair.one = pair.stage.restart("host01", None);
    // The target answers when it is done with the VM.
    let runs = pair.stage.power_on(&pair.two).await.unwrap_err();
    assert!(runs.contains("is Running on this host"), "{runs}");
    pair.goes_on(&pair.two, &pair.one).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_takes_a_vm_over_whose_host_is_lost() {
    let mut pair = Pair::new().await;
    let refused = pair
        .stage
        .ask::<Value>(&pair.two, "take-over", &json!({}))
        .await
        .unwrap_err();
    assert!(refused.contains("is in use"), "it runs: {refused}");

    // The source ends with the VM packed and nobody told, and stays away.
    pair.one.kill().unwrap();
    pair.one = pair.stage.restart("host01", Some("migration:saved"));
    pair.stage.power_on(&pair.one).await.unwrap();
    pair.stage.migrate(&pair.one, &pair.two).await.unwrap_err();
    wait_until(10, "nothing of the source runs", || {
        pair.one.ended().is_some() && processes_of(pair.one.folder()).is_empty()
    });
    let refused = pair.stage.power_on(&pair.two).await.unwrap_err();
    assert!(refused.contains("take it over if that host is lost"), "{refused}");
    pair.stage
        .ask::<Value>(&pair.two, "take-over", &json!({}))
        .await
        .unwrap();
    pair.guest = pair.stage.power_on(&pair.two).await.unwrap();
    let counted = pair.guest.tally;
    assert!(counted.volume == 1 && counted.vtpm > 0, "{counted:?}");

    // When it comes back, it finds that the VM is not its own any more.
    pair.one = pair.stage.restart("host01", None);
    pair.goes_on(&pair.two, &pair.one).await;
}
