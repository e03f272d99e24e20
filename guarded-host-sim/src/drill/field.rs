//! A real fabric for a drill: one HGS, two hosts, one shielded VM on their volume. It can strike each of their
//! processes, starts again what has ended, and knows when nothing of a host ran any more.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant as Monotonic},
};

use anyhow::{Context, ensure};
use hgs_protocol::env::{Clock, OsRandom, Random};

use super::{
    plan::{Side, Victim},
    prey,
};
use crate::{
    fabric::{
        Fabric,
        hgs::Hgs,
        host::{AgentLink, SimHost},
    },
    ledger::{self, Instant, LedgerError, check::Account},
    owner::{OwnedVm, Owner},
    vm::{
        VmName,
        volume::{Current, VmFolder, Volume},
    },
};

/// Everything of a drill. Fields are dropped in this order.
pub struct Field {
    first: Member,
    second: Member,
    hgs: Hgs,
    fabric: Fabric,
    volume: Volume,
    volume_path: PathBuf,
    vm: OwnedVm,
}

/// One of the two hosts, wherever the VM is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seat {
    /// `host01`, which owns the VM at first.
    First,
    /// `host02`.
    Second,
}

/// What can end by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Who {
    /// A host.
    Host(Seat),
    /// The attestation service.
    Attestation,
    /// The key protection service.
    Kps,
}

struct Member {
    host: SimHost,
    deaths: Vec<Instant>,
}

impl Field {
    /// Sets the field below `folder` (absolute, new).
    pub async fn set(folder: &Path) -> anyhow::Result<Field> {
        let mut fabric = Fabric::new(folder, false)?;
        // Hosts attest after every kill, more often than any that is well.
        fabric
            .environment
            .push(("HGS_REQUESTS_PER_MINUTE_PER_KEY".to_owned(), "100000".to_owned()));
        let hgs = fabric.start_hgs("hgs")?;
        hgs.trust_signer().await?;
        let (volume, volume_path) = fabric.volume("volume")?;
        let mut started = fabric.start_hosts(&SEATS.map(|seat| (seat.name(), &hgs, volume_path.as_path())))?;
        let mut member = |seat: Seat| {
            let host = started.remove(seat.name());
            let host = host.with_context(|| format!("{} did not start", seat.name()))?;
            anyhow::Ok(Member {
                host,
                deaths: Vec::new(),
            })
        };
        let (first, second) = (member(Seat::First)?, member(Seat::Second)?);
        hgs.trust_tpm_makers(&fabric.tpm_maker_certificates()?).await?;
        for Member { host, .. } in [&first, &second] {
            hgs.register_host(&host.name, &host.artefact("ek.cer").await?).await?;
        }
        let boot_log = first.host.artefact("boot.log").await?;
        let policy = first.host.artefact("SIPolicy.p7b").await?;
        hgs.register_model("GuardedHost", &boot_log, &policy).await?;

        let rng: &mut dyn Random = &mut OsRandom;
        let owner = Owner::new("owner", &folder.join("owner"), Clock::system().now(), rng)?;
        let guardian = Owner::import_guardian(&hgs.metadata().await?, "HGS")?.guardian;
        let name = VmName::parse(VM).map_err(anyhow::Error::msg)?;
        let secret = hex::encode(rng.bytes::<24>());
        let vm = owner.shield(&name, secret.as_bytes(), &guardian, &volume, Seat::First.name(), rng)?;
        Ok(Field {
            first,
            second,
            hgs,
            fabric,
            volume,
            volume_path,
            vm,
        })
    }

    /// The VM.
    pub fn vm(&self) -> &OwnedVm {
        &self.vm
    }

    /// The VM's files.
    pub fn files(&self) -> anyhow::Result<VmFolder> {
        Ok(self.volume.vm(&self.vm.name)?)
    }

    /// What counts on the volume.
    pub fn current(&self) -> anyhow::Result<Current> {
        Ok(self.files()?.current()?)
    }

    /// The host that owns the VM now.
    pub fn owner(&self) -> anyhow::Result<Seat> {
        let owner = self.current()?.owner_host;
        let found = SEATS.into_iter().find(|seat| seat.name() == owner);
        found.with_context(|| format!("the VM belongs to {owner}, which nobody knows"))
    }

    /// A host's agent.
    pub fn agent(&self, seat: Seat) -> AgentLink {
        self.member(seat).host.agent()
    }

    /// Where a host's agent listens.
    pub fn address(&self, seat: Seat) -> anyhow::Result<SocketAddr> {
        let url = self.url(seat);
        Ok(url.strip_prefix("http://").unwrap_or(&url).parse()?)
    }

    /// The same as a URL.
    pub fn url(&self, seat: Seat) -> String {
        self.member(seat).host.agent_url.clone()
    }

    /// What a host's ledger says, and when it was seen dead.
    pub fn accounts(&self) -> Result<Vec<Account>, LedgerError> {
        let account = |member: &Member| {
            Ok(Account {
                host: member.host.name.clone(),
                entries: ledger::read(&ledger_of(&member.host))?,
                deaths: member.deaths.clone(),
            })
        };
        [&self.first, &self.second].into_iter().map(account).collect()
    }

    /// The path of a host's ledger.
    pub fn ledger(&self, seat: Seat) -> PathBuf {
        ledger_of(&self.member(seat).host)
    }

    /// The processes to strike; of the VM's vTPM, which does not run at every instant, the store that starts it.
    pub fn prey(&self, victim: Victim, source: Seat) -> Vec<u32> {
        let host = |side| &self.member(source.at(side)).host;
        let part = |side, words: &[&str]| prey::process_of(host(side).folder(), words);
        let found = match victim {
            Victim::Agent(side) => part(side, &[" agent --name "]),
            Victim::Store(side) | Victim::Vtpm(side) => part(side, &[" store --name "]),
            Victim::Tpm(side) => part(side, &["swtpm socket", "/tpm,"]),
            Victim::Host(side) => host(side).process_id(),
            Victim::BothHosts => {
                let both = [&self.first, &self.second].into_iter();
                return both.filter_map(|member| member.host.process_id()).collect();
            }
            Victim::Kps => self.hgs.kps.process_id(),
            Victim::Attestation => self.hgs.attestation.process_id(),
        };
        found.into_iter().collect()
    }

    /// Waits until what was struck is down: a host ends with any of its parts, but not at the same instant.
    pub async fn await_end(&mut self, who: Who) -> anyhow::Result<()> {
        let limit = Monotonic::now() + LONGEST_END;
        while self.ended(who).is_none() {
            ensure!(Monotonic::now() < limit, "{} does not end", who.name());
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// Starts again whatever has ended; says what that was. With `crash` one host ends itself at a commit point later.
    pub async fn raise(&mut self, crash: Option<(Seat, &str)>) -> anyhow::Result<Vec<(Who, String)>> {
        let mut ended = Vec::new();
        for seat in SEATS {
            let Some(how) = self.ended(Who::Host(seat)) else {
                continue;
            };
            ended.push((Who::Host(seat), how));
            self.bury(seat).await?;
            let point = crash.and_then(|(of, point)| (of == seat).then_some(point));
            let (hgs, volume) = (&self.hgs, self.volume_path.as_path());
            let again = self.fabric.restart_host(seat.name(), hgs, volume, point)?;
            self.member_mut(seat).host = again;
        }
        for who in [Who::Attestation, Who::Kps] {
            let Some(how) = self.ended(who) else { continue };
            ended.push((who, how));
            let service = match who {
                Who::Kps => &mut self.hgs.kps,
                _ => &mut self.hgs.attestation,
            };
            // While nobody listens there, the system may lend the port to somebody's outgoing connection.
            service.restart().or_else(|_| service.restart())?;
        }
        Ok(ended)
    }

    /// A power cut of one host, which boots again.
    pub async fn cut_power(&mut self, seat: Seat, crash_at: Option<&str>) -> anyhow::Result<()> {
        self.member_mut(seat).host.kill()?;
        self.raise(crash_at.map(|point| (seat, point))).await?;
        Ok(())
    }

    /// Waits until nothing of a host runs, and notes the instant.
    async fn bury(&mut self, seat: Seat) -> anyhow::Result<()> {
        let folder = self.member(seat).host.folder().to_path_buf();
        let limit = Monotonic::now() + LONGEST_END;
        loop {
            let left = prey::processes_of(&folder);
            if left.is_empty() {
                break;
            }
            ensure!(Monotonic::now() < limit, "of {} there still run {left:?}", seat.name());
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        self.member_mut(seat).deaths.push(Instant::now());
        Ok(())
    }

    fn ended(&mut self, who: Who) -> Option<String> {
        match who {
            Who::Host(seat) => self.member_mut(seat).host.ended(),
            Who::Attestation => self.hgs.attestation.ended(),
            Who::Kps => self.hgs.kps.ended(),
        }
    }

    fn member(&self, seat: Seat) -> &Member {
        match seat {
            Seat::First => &self.first,
            Seat::Second => &self.second,
        }
    }

    fn member_mut(&mut self, seat: Seat) -> &mut Member {
        match seat {
            Seat::First => &mut self.first,
            Seat::Second => &mut self.second,
        }
    }
}

impl Who {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Who::Host(seat) => seat.name(),
            Who::Attestation => "attestation",
            Who::Kps => "kps",
        }
    }
}

impl Seat {
    /// The host's name.
    pub fn name(self) -> &'static str {
        match self {
            Seat::First => "host01",
            Seat::Second => "host02",
        }
    }

    /// The other host.
    pub fn other(self) -> Seat {
        match self {
            Seat::First => Seat::Second,
            Seat::Second => Seat::First,
        }
    }

    /// Of the VM's owner: the owner itself or the other.
    pub fn at(self, side: Side) -> Seat {
        match side {
            Side::Source => self,
            Side::Target => self.other(),
        }
    }
}

fn ledger_of(host: &SimHost) -> PathBuf {
    host.folder().join("store").join(ledger::FILE)
}

/// Both hosts.
pub const SEATS: [Seat; 2] = [Seat::First, Seat::Second];
/// The VM's name.
pub(super) const VM: &str = "payroll";
const LONGEST_END: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
