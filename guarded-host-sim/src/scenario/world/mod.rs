//! A running fabric of one scenario: its HGSs, hosts, VMs, the network between them, and their clocks.
//! Starts and administers; what a step means is `act`'s.

mod administer;
pub mod attached;
mod hgs;
mod host;
mod standing;
mod told;
mod vm;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, anyhow};
use hgs_protocol::{
    env::{Clock, OsRandom, Random},
    protector::{Guardian, GuardianKeys},
};

pub use self::{
    attached::Attached,
    hgs::{HgsHere, Recorded},
    host::HostHere,
    told::{Logged, News},
    vm::VmHere,
};
use super::{
    door::{Between, Door, Targets, To},
    journal::Journal,
    model::{HgsPlan, NO_HGS, Scenario},
    pool::TpmPool,
    weather::Weather,
};
use crate::{
    fabric::{service::Tls, tls},
    machine::user::{AGENT_USER, AgentUser, let_others_pass},
    owner::Owner,
    swtpm::short_private_dir,
    vm::volume::Volume,
};

/// How the parts of a fabric run.
#[derive(Clone, Debug, Default, clap::ValueEnum)]
pub enum Way {
    /// Services in this process, on loopback; hosts and TPMs as processes.
    #[default]
    InProcess,
    /// Every service and host as a process of its own, on loopback.
    Processes,
    /// The first HGS of each scenario is one that is up and has other users; hosts, and what else there is, as processes.
    #[value(skip)]
    Attached(Arc<Attached>),
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Way::InProcess => "in this process",
            Way::Processes => "as processes",
            Way::Attached(to) => return write!(f, "on the HGS that is up at {}", to.url()),
        })
    }
}

/// A running fabric. Everything of it ends with this value.
pub struct World {
    pub(super) hosts: BTreeMap<String, HostHere>,
    pub(super) hgs: BTreeMap<String, HgsHere>,
    pub(super) vms: BTreeMap<String, VmHere>,
    pub(super) journal: Journal,
    pub(super) weather: Weather,
    /// The HGS that is meant when none is named.
    pub(super) first: String,
    root: PathBuf,
    /// Last, so that everything in it has ended.
    _folder: Folder,
}

/// Removed with everything in it. Short, because sockets lie below it.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl World {
    /// Starts everything that `scenario` names, registers what it says is registered, and makes its VMs.
    ///
    /// On an HGS that is up and shared it first notes how that is; whoever runs a scenario there has it put back.
    /// `admin_tokens` are further lines of the services' token files.
    pub async fn start(
        scenario: &Scenario,
        way: Way,
        pool: Arc<TpmPool>,
        journal: Journal,
        admin_tokens: &[String],
    ) -> anyhow::Result<World> {
        if let Way::Attached(to) = &way {
            to.note().await?;
        }
        let folder = Folder(short_private_dir()?);
        let root = folder.0.clone();
        // Agents have a user of their own, who must get to their folders.
        let_others_pass(&root)?;
        let weather = Weather::default();
        let plans = scenario.services();
        let first = plans.first().map(|plan| plan.name.to_string()).unwrap_or_default();
        let names: Vec<String> = plans.iter().map(|plan| address_of(&plan.name)).collect();
        let tls = match scenario.fabric.https {
            true => Some(tls::issue(
                &root.join("tls"),
                &match &scenario.fabric.https_certificate_name {
                    Some(name) => vec![name.as_str()],
                    None => names.iter().map(String::as_str).collect::<Vec<_>>(),
                },
            )?),
            false => None,
        };
        // The root that hosts are given; with a missing one they have somebody else's.
        let host_root = match (&tls, scenario.fabric.https_root_missing) {
            (Some(_), true) => Some(tls::issue(&root.join("other-tls"), &["elsewhere"])?.root),
            (tls, _) => tls.as_ref().map(|tls| tls.root.clone()),
        };

        let targets: BTreeMap<String, Arc<Targets>> = plans
            .iter()
            .map(|plan| (plan.name.to_string(), Arc::default()))
            .collect();
        let mut doors: BTreeMap<String, BTreeMap<String, Door>> = BTreeMap::new();
        for host in &scenario.host {
            let open = doors.entry(host.name.to_string()).or_default();
            if host.hgs.as_ref().is_some_and(|hgs| **hgs == NO_HGS) {
                continue;
            }
            for (hgs, targets) in &targets {
                let between = Between {
                    from: host.name.to_string(),
                    to: To::Hgs {
                        name: hgs.clone(),
                        targets: targets.clone(),
                    },
                    journal: journal.clone(),
                    weather: weather.clone(),
                };
                let tls = match &way {
                    Way::Attached(to) if *hgs == first => tls.as_ref().map(|tls| to.door(tls)).transpose()?,
                    _ => tls.clone(),
                };
                open.insert(hgs.clone(), Door::open(between, tls.as_ref()).await?);
            }
        }

        for host in &scenario.host {
            fs::create_dir_all(root.join("volumes").join(&host.volume))?;
        }
        let starting = Starting {
            root: &root,
            way: &way,
            tls: tls.as_ref(),
            pool: &pool,
            host_root,
            first: &first,
            admin_tokens,
        };
        let keys = tokio::task::spawn_blocking(|| {
            GuardianKeys::generate("Owner", Clock::system().now(), &mut OsRandom as &mut dyn Random)
        });
        let (hgs, hosts) = tokio::join!(
            start_services(&plans, &starting, &targets),
            start_hosts(scenario, doors, &starting)
        );
        let (hgs, hosts) = (hgs?, hosts?);
        let world = World {
            hosts,
            hgs,
            vms: BTreeMap::new(),
            journal,
            weather,
            first,
            root: root.clone(),
            _folder: folder,
        };
        world.register(scenario, &pool).await?;
        world.furnish(scenario, &root, &pool, keys.await??).await
    }

    /// What the administrators of each HGS do before the first host attests.
    async fn register(&self, scenario: &Scenario, pool: &Arc<TpmPool>) -> anyhow::Result<()> {
        let from = pool.clone();
        let authorities = blocking(move || from.authorities()).await?;
        for hgs in self.hgs.values() {
            hgs.install(&authorities).await?;
            let mut reference = false;
            for plan in scenario.host.iter().filter(|plan| plan.registered) {
                let host = self.host(&plan.name)?;
                if host.hgs.as_deref() != Some(hgs.name()) {
                    continue;
                }
                hgs.register_host(host, None, false).await?;
                if !reference {
                    hgs.register_file(host, "boot.log", "tpm-baselines", MODEL, None)
                        .await?;
                    hgs.register_file(host, "SIPolicy.p7b", "ci-policies", MODEL, None)
                        .await?;
                    reference = true;
                }
            }
        }
        Ok(())
    }

    /// Makes the VMs.
    async fn furnish(
        mut self,
        scenario: &Scenario,
        root: &Path,
        pool: &Arc<TpmPool>,
        keys: GuardianKeys,
    ) -> anyhow::Result<World> {
        if scenario.vm.is_empty() {
            return Ok(self);
        }
        let mut guardians: BTreeMap<String, Guardian> = BTreeMap::new();
        for hgs in self.hgs.values() {
            guardians.insert(hgs.name().to_owned(), hgs.guardian().await?);
        }
        let (folder, pool) = (root.join("owner"), pool.clone());
        let owner = blocking(move || {
            pool.put_maker(&folder.join("vtpm-maker"))?;
            Ok(Owner::with_keys(keys, &folder)?)
        })
        .await?;
        let owner = Arc::new(owner);
        let backups = root.join("backups");
        for plan in &scenario.vm {
            let host = self.host(&plan.host)?;
            if host.hgs.is_none() {
                let vm = VmHere::make_local(plan, host, backups.clone()).await?;
                self.vms.insert(plan.name.to_string(), vm);
                continue;
            }
            let volume = Volume::open(host.volume())?;
            let named: Vec<String> = match plan.guardians.is_empty() {
                true => vec![self.host(&plan.host)?.hgs.clone().unwrap_or_else(|| self.first.clone())],
                false => plan.guardians.iter().map(ToString::to_string).collect(),
            };
            let trusted = named.iter().filter_map(|name| guardians.get(name).cloned()).collect();
            let vm = VmHere::make(plan.clone(), owner.clone(), trusted, volume, backups.clone()).await?;
            self.vms.insert(plan.name.to_string(), vm);
        }
        Ok(self)
    }

    /// A folder through which hosts exchange files: each of their agents reads and writes there.
    pub(super) fn exchange(&self) -> anyhow::Result<PathBuf> {
        let folder = self.root.join("exchange");
        fs::create_dir_all(&folder)?;
        AgentUser::choose(AGENT_USER).give(&folder)?;
        Ok(folder)
    }

    /// A door from one host to the agent of another, for as long as the value lives; nothing when that one is off.
    pub(super) async fn door(&self, from: &str, to: &HostHere) -> anyhow::Result<Option<Door>> {
        let Some(url) = to.address().await else { return Ok(None) };
        let between = Between {
            from: from.to_owned(),
            to: To::Host {
                name: to.name().to_owned(),
                url,
            },
            journal: self.journal.clone(),
            weather: self.weather.clone(),
        };
        Door::open(between, None).await.map(Some)
    }

    /// The host `name`.
    pub(super) fn host(&self, name: &str) -> anyhow::Result<&HostHere> {
        self.hosts.get(name).with_context(|| format!("there is no host {name}"))
    }

    /// The HGS `name`, or the first.
    pub(super) fn hgs(&self, name: Option<&str>) -> anyhow::Result<&HgsHere> {
        let name = name.unwrap_or(&self.first);
        self.hgs.get(name).with_context(|| format!("there is no HGS {name}"))
    }

    /// The VM `name`.
    pub(super) fn vm(&self, name: &str) -> anyhow::Result<&VmHere> {
        self.vms.get(name).with_context(|| format!("there is no VM {name}"))
    }
}

/// What every part needs to start.
struct Starting<'a> {
    root: &'a Path,
    way: &'a Way,
    tls: Option<&'a Tls>,
    pool: &'a Arc<TpmPool>,
    host_root: Option<PathBuf>,
    first: &'a str,
    admin_tokens: &'a [String],
}

async fn start_services(
    plans: &[HgsPlan],
    starting: &Starting<'_>,
    targets: &BTreeMap<String, Arc<Targets>>,
) -> anyhow::Result<BTreeMap<String, HgsHere>> {
    let mut started = BTreeMap::new();
    for plan in plans {
        let folder = starting.root.join("hgs").join(plan.name.as_str());
        let hgs = match starting.way {
            Way::Attached(to) if *plan.name == *starting.first => {
                HgsHere::attach(plan, folder, to, starting.tls.is_some())?
            }
            _ => HgsHere::start(plan, folder, starting).await?,
        };
        if let Some(targets) = targets.get(plan.name.as_str()) {
            let [attestation, key_protection] = hgs.addresses().await;
            targets.set(attestation, key_protection);
        }
        started.insert(plan.name.to_string(), hgs);
    }
    Ok(started)
}

async fn start_hosts(
    scenario: &Scenario,
    mut doors: BTreeMap<String, BTreeMap<String, Door>>,
    starting: &Starting<'_>,
) -> anyhow::Result<BTreeMap<String, HostHere>> {
    let mut tasks = Vec::new();
    let first_tpm = match starting.way {
        Way::Attached(to) => to.tpms(scenario.host.len()),
        Way::InProcess | Way::Processes => 0,
    };
    for (number, plan) in (first_tpm..).zip(&scenario.host) {
        let doors = doors.remove(plan.name.as_str()).unwrap_or_default();
        let parts = host::Parts {
            folder: starting.root.join("hosts").join(plan.name.as_str()),
            pool: starting.pool.clone(),
            number,
            volume: starting.root.join("volumes").join(&plan.volume),
            first: starting.first.to_owned(),
            root_certificate: starting.host_root.clone(),
        };
        tasks.push(tokio::spawn(HostHere::start(plan.clone(), parts, doors)));
    }
    let mut hosts = BTreeMap::new();
    for task in tasks {
        let host = task.await??;
        hosts.insert(host.name().to_owned(), host);
    }
    Ok(hosts)
}

/// The name under which hosts know an HGS.
pub(crate) fn address_of(hgs: &str) -> String {
    format!("{hgs}.bastion.local")
}

/// Work that blocks: it starts processes or makes keys.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| anyhow!("a task of the lab ended early: {error}"))?
}

/// What healthy hosts of one kind have in common is registered under this name.
const MODEL: &str = "GuardedHost";
