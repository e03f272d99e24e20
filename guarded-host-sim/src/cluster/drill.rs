//! The drills: what is done to the cluster while its clients go on, and what must come of it.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use tokio::time::Instant;

use super::{
    counts::{End, Traffic},
    engine::Engine,
    evidence::{Auditors, Heads},
    front_door::FrontDoor,
    load::{Load, World},
    report::{Check, Drill},
};

/// Which drill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Which {
    /// Every replica is stopped in an orderly way and started again, one after the other
    RollingRestart,
    /// Every replica is killed and started again, one after the other
    Loss,
    /// PostgreSQL is stopped for twenty seconds
    Database,
    /// A host is cut off from its fabric and from the HGS
    Partition,
}

impl Which {
    pub(super) const ALL: [Which; 4] = [Which::RollingRestart, Which::Loss, Which::Database, Which::Partition];

    fn name(self) -> &'static str {
        match self {
            Which::RollingRestart => "rolling restart of every replica",
            Which::Loss => "loss of every replica in turn",
            Which::Database => "PostgreSQL stopped for 20 s",
            Which::Partition => "a host cut off",
        }
    }
}

/// What every drill needs.
pub(super) struct Stage {
    pub(super) engine: Engine,
    pub(super) door: FrontDoor,
    pub(super) world: Arc<World>,
    pub(super) auditors: Auditors,
    pub(super) rate: u32,
    /// The chains' ends before the first drill.
    pub(super) heads: Heads,
}

/// A drill under way.
struct Diary {
    begun: Instant,
    drill: Drill,
}

impl Diary {
    fn open(which: Which) -> Diary {
        eprintln!("{}", which.name());
        let drill = Drill {
            name: which.name(),
            done: Vec::new(),
            traffic: Vec::new(),
            checks: Vec::new(),
        };
        Diary {
            begun: Instant::now(),
            drill,
        }
    }

    fn note(&mut self, what: impl Into<String>) {
        let line = format!("{:5.1} s  {}", self.begun.elapsed().as_secs_f64(), what.into());
        eprintln!("  {line}");
        self.drill.done.push(line);
    }

    fn expect(&mut self, expected: impl Into<String>, held: bool, found: impl Into<String>) {
        self.drill.checks.push(Check::new(expected, held, found));
    }

    /// Nothing at all failed, and clients asked as often as was meant.
    fn expect_untouched(&mut self, part: &'static str, traffic: Traffic, rate: u32) {
        for (kind, counts) in traffic.kinds() {
            let found = format!("{} of {} failed", counts.failed(), counts.asked);
            self.expect(
                format!("{part}: no failed {kind}"),
                counts.failed() == 0 && counts.asked > 0,
                found,
            );
        }
        let asked = traffic.requests_per_second();
        let found = format!("{asked:.1}");
        self.expect(
            format!("{part}: {rate} requests a second"),
            asked >= f64::from(rate) * 0.95,
            found,
        );
        self.drill.traffic.push((part, traffic));
    }

    fn close(self) -> Drill {
        self.drill
    }
}

impl Stage {
    pub(super) async fn run(&self, which: Which) -> anyhow::Result<Drill> {
        let drill = match which {
            Which::RollingRestart => self.rolling_restart().await,
            Which::Loss => self.loss().await,
            Which::Database => self.database().await,
            Which::Partition => self.partition().await,
        };
        drill.with_context(|| format!("the drill could not be carried out: {}", which.name()))
    }

    async fn load(&self, idle: Option<&str>) -> anyhow::Result<Load> {
        Load::start(&self.world, &self.door, self.rate, idle).await
    }

    async fn rolling_restart(&self) -> anyhow::Result<Drill> {
        let mut diary = Diary::open(Which::RollingRestart);
        let load = self.load(None).await?;
        for replica in REPLICAS {
            self.engine.stop(replica, GRACE).await?;
            diary.note(format!("{replica} has stopped"));
            self.back(replica, &mut diary).await?;
        }
        diary.expect_untouched("all the while", load.stop().await?, self.rate);
        Ok(diary.close())
    }

    async fn loss(&self) -> anyhow::Result<Drill> {
        let mut diary = Diary::open(Which::Loss);
        let load = self.load(None).await?;
        for replica in REPLICAS {
            self.engine.kill(replica).await?;
            diary.note(format!("{replica} was killed"));
            self.back(replica, &mut diary).await?;
        }
        diary.expect_untouched("all the while", load.stop().await?, self.rate);
        Ok(diary.close())
    }

    /// Waits until the front door has noticed the loss, starts the replica and waits until it is in use again.
    async fn back(&self, replica: &'static str, diary: &mut Diary) -> anyhow::Result<()> {
        self.door.until_all(&[replica], false, PATIENCE).await?;
        self.engine.start(replica).await?;
        self.door.until_all(&[replica], true, PATIENCE).await?;
        diary.note(format!("{replica} is in use again"));
        Ok(())
    }

    async fn database(&self) -> anyhow::Result<Drill> {
        const OUTAGE: Duration = Duration::from_secs(20);
        let mut diary = Diary::open(Which::Database);
        let load = self.load(None).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        self.engine.stop("postgres", GRACE).await?;
        let down = Instant::now();
        diary.note("PostgreSQL has stopped");
        self.door.until_all(&REPLICAS, false, PATIENCE).await?;
        for path in [
            "/Attestation/v2.0/signingCertificates",
            "/KeyProtection/service/metadata/2014-07/metadata.xml",
        ] {
            let status = self.world.get(path).await;
            let told = status
                .as_ref()
                .map_or_else(|e| e.to_string(), |status| format!("HTTP {status}"));
            diary.expect(
                format!("{path} is answered without the database"),
                matches!(status, Ok(200)),
                told,
            );
        }
        tokio::time::sleep_until(down + OUTAGE).await;
        diary.note("PostgreSQL starts");
        self.engine.start("postgres").await?;
        self.engine.until_healthy("postgres", PATIENCE).await?;
        self.door.until_all(&REPLICAS, true, PATIENCE).await?;
        diary.note("every replica is in use again");
        let traffic = load.stop().await?;
        for (kind, counts) in traffic.kinds() {
            let found = format!(
                "{} failed for now, {} refused",
                counts.failed_now(),
                counts.failed_for_good()
            );
            diary.expect(
                format!("{kind}: what failed may be tried again"),
                counts.failed_for_good() == 0,
                found,
            );
        }
        let failed: u64 = traffic.kinds().iter().map(|(_, counts)| counts.failed_now()).sum();
        diary.expect(
            "the outage was felt",
            failed > 0,
            format!("{failed} requests failed for now"),
        );
        diary.drill.traffic.push(("the outage", traffic));
        let load = self.load(None).await?;
        tokio::time::sleep(AFTERWARDS).await;
        diary.expect_untouched("after its return", load.stop().await?, self.rate);
        diary.drill.checks.push(self.auditors.chains_hold(&self.heads).await?);
        Ok(diary.close())
    }

    async fn partition(&self) -> anyhow::Result<Drill> {
        const CUT_OFF: &str = "host02";
        const NEIGHBOUR: &str = "host01";
        const NETWORK: &str = "contoso";
        let mut diary = Diary::open(Which::Partition);
        let host = |name: &str| self.world.hosts.iter().find(|host| host.agent.host == name);
        let cut_off = host(CUT_OFF).context("the host to be cut off is not there")?;
        let neighbour = host(NEIGHBOUR).context("its neighbour is not there")?;
        let vm = &cut_off.vm;
        let started = cut_off.agent.post(&format!("vms/{vm}/power-on")).await?;
        anyhow::ensure!(started.status == 200, "{vm} does not start: {}", started.reason());
        diary.note(format!("{vm} runs on {CUT_OFF}"));

        let place = self.engine.cut_off(CUT_OFF, NETWORK).await?;
        diary.note(format!("{CUT_OFF} is cut off"));
        let load = self.load(Some(CUT_OFF)).await?;
        let inside = async |path: &str| cut_off.agent.post_inside(&self.engine, path).await;
        let attested = inside("attest").await?;
        let end = attested.attested();
        let found = format!("{end:?}");
        diary.expect(
            "its attestation finds nobody, which may be tried again",
            matches!(end, End::Later(_)),
            found,
        );
        let counted = inside(&format!("vms/{vm}/tally")).await?;
        let on = cut_off.counts_on(&counted);
        let told = on
            .as_ref()
            .map_or_else(|e| format!("{e:#}"), |()| "its guest counts one more".to_owned());
        diary.expect("its running VM goes on", on.is_ok(), told);
        let taken = neighbour.agent.post(&format!("vms/{vm}/take-over")).await?;
        let told = format!("HTTP {}: {}", taken.status, taken.reason());
        diary.expect(
            format!("{NEIGHBOUR} cannot take over the VM that runs there"),
            taken.status == 409,
            told,
        );
        let stopped = inside(&format!("vms/{vm}/power-off")).await?;
        diary.expect(
            "its VM stops in order",
            stopped.status == 200,
            format!("HTTP {}", stopped.status),
        );
        let started = inside(&format!("vms/{vm}/power-on")).await?;
        let end = started.done();
        let found = format!("{end:?}: {}", started.reason());
        diary.expect("and does not start without a key", matches!(end, End::Later(_)), found);
        diary.note("its VM was stopped, and does not start");
        diary.expect_untouched("the other hosts", load.stop().await?, self.rate);

        self.engine.put_back(CUT_OFF, &place).await?;
        let back = Instant::now();
        diary.note(format!("{CUT_OFF} is in its network again"));
        let end = self.world.attest(cut_off).await;
        let found = format!("{end:?} after {:.1} s", back.elapsed().as_secs_f64());
        diary.expect(
            "the host attests again by itself",
            matches!(end, End::Done { .. }),
            found,
        );
        let load = self.load(None).await?;
        tokio::time::sleep(AFTERWARDS).await;
        diary.expect_untouched("after its return", load.stop().await?, self.rate);
        Ok(diary.close())
    }
}

/// Services with replicas, in the order in which they are restarted.
pub(super) const REPLICAS: [&str; 6] = ["attestation", "attestation-2", "attestation-3", "kps", "kps-2", "kps-3"];
/// Longer than a request takes.
const GRACE: Duration = Duration::from_secs(25);
pub(super) const PATIENCE: Duration = Duration::from_secs(90);
const AFTERWARDS: Duration = Duration::from_secs(8);
