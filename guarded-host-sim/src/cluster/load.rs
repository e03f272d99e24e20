//! What clients do all the while: hosts attest by their TPMs, VMs start on them, and a VM owner's protectors
//! are rolled with the hosts' health certificates. Requests are begun at a steady rate, however long the
//! answers take; every one is waited for and counted.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, ensure};
use hgs_protocol::{
    crypto::sha256,
    env::{Clock, OsRandom},
    protector::{Guardian, GuardianKeys, KeyProtector},
    wire::kps::{
        CONTENT_TYPE, ErrorMessage, MAX_RESPONSE, METADATA_PATH, RollTransportKeyRequest, RollTransportKeyResponse,
        ServiceVersion,
    },
};
use tokio::{sync::watch, task::JoinSet, time::Instant};

use super::{
    agent::{Agent, Answer},
    counts::{End, Traffic},
    front_door::{FrontDoor, Passed},
};
use crate::{
    client::{ClientError, LabClient, NameTable},
    owner::Owner,
    vm::guest::Tally,
};

/// Everyone who asks the HGS.
pub(super) struct World {
    client: LabClient,
    owner: GuardianKeys,
    guardian: Guardian,
    /// Protectors of the owner's that no request has at the moment.
    protectors: Mutex<VecDeque<Vec<u8>>>,
    pub(super) hosts: Vec<Host>,
    seen: Mutex<Seen>,
}

/// A host, and the VM that it starts.
pub(super) struct Host {
    pub(super) agent: Agent,
    pub(super) vm: String,
    health: Mutex<Vec<u8>>,
    /// What the guest counted last.
    tally: Mutex<Option<Tally>>,
}

/// What clients have in hand, and so must be in the audit.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// SHA-256 of every egress protector, hex.
    pub(super) releases: Vec<String>,
    /// Serial of every health certificate.
    pub(super) serials: Vec<String>,
}

impl World {
    /// Lets each host attest, and makes the owner's first protectors. `hosts` are agents with the names of their VMs.
    pub(super) async fn prepare(hgs: SocketAddr, hosts: Vec<(Agent, String)>) -> anyhow::Result<World> {
        let names = NameTable([(format!("{HGS}:80"), vec![hgs])].into());
        let client = LabClient::new(names, None, Clock::system())?;
        let metadata = client
            .get(&format!("http://{HGS}{METADATA_PATH}"), MAX_RESPONSE)
            .await?;
        ensure!(
            metadata.status == 200,
            "the metadata was answered HTTP {}",
            metadata.status
        );
        let world = World {
            client,
            owner: GuardianKeys::generate("Cluster drill", Clock::system().now(), &mut OsRandom)?,
            guardian: Owner::import_guardian(&metadata.body, "HGS")?.guardian,
            protectors: Mutex::default(),
            hosts: hosts
                .into_iter()
                .map(|(agent, vm)| Host {
                    agent,
                    vm,
                    health: Mutex::default(),
                    tally: Mutex::default(),
                })
                .collect(),
            seen: Mutex::default(),
        };
        for host in &world.hosts {
            let end = world.attest(host).await;
            ensure!(
                matches!(end, End::Done { .. }),
                "{} does not attest: {end:?}",
                host.agent.host
            );
        }
        Ok(world)
    }

    pub(super) fn seen(&self) -> Seen {
        lock(&self.seen).clone()
    }

    /// GET at the front door; the status.
    pub(super) async fn get(&self, path: &str) -> Result<u16, ClientError> {
        let answer = self.client.get(&format!("http://{HGS}{path}"), MAX_RESPONSE).await?;
        Ok(answer.status)
    }

    /// One attestation by the host's TPM.
    pub(super) async fn attest(&self, host: &Host) -> End {
        let answer = match host.agent.post("attest").await {
            Ok(answer) => answer,
            Err(error) => return End::Refused(format!("{error:#}")),
        };
        let end = answer.attested();
        if let End::Done { .. } = end {
            let Some(serial) = answer.serial() else {
                return End::Refused("passed without a certificate".to_owned());
            };
            lock(&self.seen).serials.push(serial);
            match host.agent.artefact("health.cer").await {
                Ok(certificate) => *lock(&host.health) = certificate,
                Err(error) => return End::Refused(format!("{error:#}")),
            }
        }
        end
    }

    /// One key release: a protector at rest, with the health certificate of `host`. What comes back is opened by the
    /// owner and is what the next release begins with.
    async fn roll(&self, host: &Host) -> End {
        let taken = lock(&self.protectors).pop_front();
        let ingress = match taken {
            Some(ingress) => ingress,
            None => match KeyProtector::create(&self.owner, std::slice::from_ref(&self.guardian), &mut OsRandom) {
                Ok((protector, _)) => protector.to_xml(),
                Err(error) => return End::Refused(format!("no protector was made: {error}")),
            },
        };
        let certificate = lock(&host.health).clone();
        let request = RollTransportKeyRequest::new(ingress.clone(), certificate).encode();
        let url = format!("http://{HGS}{}", ServiceVersion::V2.roll_path());
        let answer = self
            .client
            .post_with_retries(&url, CONTENT_TYPE, request, MAX_RESPONSE)
            .await;
        let (end, protector) = match answer {
            Ok(answer) if answer.status == 200 => match self.opened(&ingress, &answer.body) {
                Ok(egress) => (
                    End::Done {
                        again: Some(answer.attempts > 1),
                    },
                    egress,
                ),
                Err(error) => (End::Refused(format!("the answer does not hold: {error:#}")), ingress),
            },
            Ok(answer) => {
                let code = ErrorMessage::parse(&answer.body).map_or_else(|_| "no Error".to_owned(), |e| e.code);
                let told = format!("HTTP {}, {code}", answer.status);
                match answer.status {
                    500.. => (End::Later(told), ingress),
                    _ => (End::Refused(told), ingress),
                }
            }
            Err(ClientError::Unreachable { .. }) => (End::Later("no answer".to_owned()), ingress),
            Err(error) => (End::Refused(error.to_string()), ingress),
        };
        lock(&self.protectors).push_back(protector);
        end
    }

    /// The egress protector of an answer, once the owner has opened it and found a new key.
    fn opened(&self, ingress: &[u8], answer: &[u8]) -> anyhow::Result<Vec<u8>> {
        let egress = RollTransportKeyResponse::parse(answer)?.egress_protector;
        // It is the client's from here on.
        lock(&self.seen).releases.push(hex::encode(sha256(&egress)));
        ensure!(egress != ingress, "the egress protector is the ingress protector");
        KeyProtector::parse(&egress)?
            .verify()?
            .open(&self.owner, &mut OsRandom)?;
        Ok(egress)
    }

    /// A VM's day: it starts, its guest counts one more, it stops.
    async fn run_vm(&self, host: &Host) -> (End, Duration) {
        let begun = Instant::now();
        let refused = |what: &str, why: &str| End::Refused(format!("{what}: {why}"));
        let started = match host.agent.post(&format!("vms/{}/power-on", host.vm)).await {
            Ok(answer) => answer.done(),
            Err(error) => refused("power-on", &format!("{error:#}")),
        };
        let took = begun.elapsed();
        if !matches!(started, End::Done { .. }) {
            return (started, took);
        }
        match self.after_start(host).await {
            Ok(()) => (started, took),
            Err(error) => (refused("after the start", &format!("{error:#}")), took),
        }
    }

    async fn after_start(&self, host: &Host) -> anyhow::Result<()> {
        let protector = host.agent.get(&format!("vms/{}/protector", host.vm)).await?;
        let protector = protector.body.get("protector").context("the VM has no protector")?;
        let protector: crate::vm::request::Blob = serde_json::from_value(protector.clone())?;
        lock(&self.seen).releases.push(hex::encode(sha256(&protector.0)));
        let counted = host.agent.post(&format!("vms/{}/tally", host.vm)).await;
        let counted = counted.and_then(|answer| host.counts_on(&answer));
        let stopped = host.agent.post(&format!("vms/{}/power-off", host.vm)).await?;
        counted?;
        ensure!(stopped.status == 200, "power-off: {}", stopped.reason());
        Ok(())
    }
}

impl Host {
    /// Whether the guest has counted exactly one more than it had when it was asked last; both of its counters.
    pub(super) fn counts_on(&self, answer: &Answer) -> anyhow::Result<()> {
        let tally = answer.body.get("tally").cloned();
        let tally = tally.with_context(|| format!("the guest does not count: {}", answer.reason()))?;
        let now: Tally = serde_json::from_value(tally)?;
        if let Some(before) = lock(&self.tally).replace(now) {
            let one_more = now.volume == before.volume + 1 && now.vtpm == before.vtpm + 1;
            ensure!(
                one_more,
                "the guest counts {now:?} after {before:?}: something was lost"
            );
        }
        Ok(())
    }
}

/// Clients at work.
pub(super) struct Load {
    stop: watch::Sender<bool>,
    loops: JoinSet<()>,
    traffic: Arc<Mutex<Traffic>>,
    begun: Instant,
    door: FrontDoor,
    before: Passed,
}

impl Load {
    /// Begins, with `rate` requests a second at the front door and VM starts besides; without the host `idle`.
    pub(super) async fn start(
        world: &Arc<World>,
        door: &FrontDoor,
        rate: u32,
        idle: Option<&str>,
    ) -> anyhow::Result<Load> {
        let hosts = world.hosts.iter().enumerate();
        let busy: Vec<usize> = hosts
            .filter(|(_, host)| Some(host.agent.host.as_str()) != idle)
            .map(|(number, _)| number)
            .collect();
        ensure!(!busy.is_empty(), "no host is left for the load");
        let (stop, stopped) = watch::channel(false);
        let mut load = Load {
            stop,
            loops: JoinSet::new(),
            traffic: Arc::default(),
            begun: Instant::now(),
            door: door.clone(),
            before: door.passed().await?,
        };
        // A fifth of the requests are those of attestations, four trips each.
        let attestations = Duration::from_secs(20) / rate;
        let rolls = Duration::from_secs(5) / (rate * 4);
        for (kind, every) in [(Kind::Attest, attestations), (Kind::Roll, rolls)] {
            let steady = Steady {
                world: world.clone(),
                traffic: load.traffic.clone(),
                stopped: stopped.clone(),
                busy: busy.clone(),
            };
            load.loops.spawn(steady.run(kind, every));
        }
        for number in busy {
            load.loops
                .spawn(vm_days(world.clone(), load.traffic.clone(), stopped.clone(), number));
        }
        Ok(load)
    }

    /// Begins no more, waits for what is under way, and tells what came of it all.
    pub(super) async fn stop(mut self) -> anyhow::Result<Traffic> {
        let seconds = self.begun.elapsed().as_secs_f64();
        let _ = self.stop.send(true);
        while let Some(ended) = self.loops.join_next().await {
            ended.context("a client panicked")?;
        }
        let after = self.door.passed().await?;
        let mut traffic = std::mem::take(&mut *lock(&self.traffic));
        traffic.seconds = seconds;
        traffic.requests = after.requests.saturating_sub(self.before.requests);
        let repeated = |passed: Passed| passed.retried + passed.redispatched;
        traffic.repeated_by_front_door = repeated(after).saturating_sub(repeated(self.before));
        for counts in [&mut traffic.releases, &mut traffic.attestations, &mut traffic.vm_starts] {
            counts.close();
        }
        Ok(traffic)
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Attest,
    Roll,
}

/// Requests at a steady rate, by one host after the other.
struct Steady {
    world: Arc<World>,
    traffic: Arc<Mutex<Traffic>>,
    stopped: watch::Receiver<bool>,
    busy: Vec<usize>,
}

impl Steady {
    async fn run(mut self, kind: Kind, every: Duration) {
        let mut next = tokio::time::interval(every);
        let mut under_way = JoinSet::new();
        let turn = AtomicUsize::new(0);
        loop {
            tokio::select! {
                _ = next.tick() => {}
                _ = self.stopped.changed() => break,
            }
            let turn = turn.fetch_add(1, Ordering::Relaxed);
            let Some(number) = self.busy.get(turn % self.busy.len().max(1)).copied() else {
                break;
            };
            let (world, traffic) = (self.world.clone(), self.traffic.clone());
            under_way.spawn(async move {
                let Some(host) = world.hosts.get(number) else { return };
                let begun = Instant::now();
                let end = match kind {
                    Kind::Attest => world.attest(host).await,
                    Kind::Roll => world.roll(host).await,
                };
                let took = begun.elapsed();
                let mut traffic = lock(&traffic);
                match kind {
                    Kind::Attest => traffic.attestations.add(end, took),
                    Kind::Roll => traffic.releases.add(end, took),
                }
            });
            while under_way.try_join_next().is_some() {}
        }
        under_way.join_all().await;
    }
}

/// One VM's days on its host, with a rest after each.
async fn vm_days(world: Arc<World>, traffic: Arc<Mutex<Traffic>>, mut stopped: watch::Receiver<bool>, number: usize) {
    let Some(host) = world.hosts.get(number) else { return };
    while !*stopped.borrow() {
        let (end, took) = world.run_vm(host).await;
        lock(&traffic).vm_starts.add(end, took);
        let _ = tokio::time::timeout(REST, stopped.changed()).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const HGS: &str = "hgs.bastion.local";
const REST: Duration = Duration::from_secs(2);
