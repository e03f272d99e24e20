//! The machines that an administrators' shell is on, as one fabric on loopback: HGS nodes that are set up by cmdlets, hosts with
//! their TPMs, the workstation of VMs' owner, Virtual Machine Manager. Everything is done through the services' administrators'
//! interfaces, the hosts' control interfaces and their power buttons.
//!
//! Several nodes are several ways to one pair of services: what a node is asked for, the pair does.

pub mod certificates;
mod clock;
mod hgs;
mod host;
mod network;
mod registry;

use std::{
    any::Any,
    cell::{Ref, RefCell, RefMut},
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use anyhow::{Context, bail};
use hgs_protocol::env::{Clock, UnixTime};
use hgs_shell::{
    error::ErrorRecord,
    value::{Date, Value},
    world::{Drive, Machine, Role, World},
};
use tokio::runtime::Runtime;

use self::network::Network;
pub use self::{
    certificates::{Kept, Stores},
    clock::Ahead,
    hgs::{Cluster, Mode, NewCluster, Refused, ServiceName},
    host::{LabHost, PlannedVm},
};
use crate::{
    cmdlets::objects,
    fabric::found_tpm_maker,
    machine::{dials::Dials, user::let_others_pass},
    swtpm::TpmMaker,
};

/// What a lab is to have.
#[derive(Clone, Debug)]
pub struct Plan {
    /// HGS nodes, none of them set up: `HGS01` and so on.
    pub nodes: usize,
    /// Hosts with their machines' settings.
    pub hosts: Vec<(String, Dials)>,
}

impl Default for Plan {
    fn default() -> Plan {
        // As a server is when it was just installed: nobody has given it a code-integrity policy yet.
        let fresh = || Dials {
            ci_policy: None,
            ..Dials::default()
        };
        Plan {
            nodes: 1,
            hosts: ["host01", "host02"].map(|name| (name.to_owned(), fresh())).to_vec(),
        }
    }
}

/// The lab. Clones are the same one.
#[derive(Clone)]
pub struct Lab(Rc<Inner>);

struct Inner {
    folder: PathBuf,
    machines: Vec<Machine>,
    states: RefCell<BTreeMap<String, MachineState>>,
    cluster: RefCell<Option<Cluster>>,
    plan: Plan,
    /// Started when one is first asked for: many scripts need none.
    hosts: RefCell<Option<BTreeMap<String, LabHost>>>,
    network: RefCell<Network>,
    ahead: RefCell<Ahead>,
    clock: Clock,
    // Last: what runs on it ends before it.
    runtime: Runtime,
}

/// What is set up on one machine, beyond its files.
#[derive(Default)]
pub struct MachineState {
    /// Windows features that are installed, in small letters.
    pub features: BTreeSet<String>,
    /// Its certificate stores.
    pub certificates: Stores,
    /// The domain of an HGS node, after Install-HgsServer.
    pub domain: Option<String>,
    /// What cmdlets keep between calls, by names of their own.
    pub notes: BTreeMap<String, String>,
}

impl Lab {
    /// Starts a lab below `folder` (absolute).
    pub fn start(folder: &Path, plan: &Plan) -> anyhow::Result<Lab> {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        // Agents run under a user of their own and have their folders and the volume below.
        let_others_pass(folder)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let mut machines = Vec::new();
        let mut add = |name: &str, role, folders: &[&str]| {
            let files = folder.join("machines").join(name);
            for made in folders {
                fs::create_dir_all(files.join(made))?;
            }
            machines.push(Machine {
                name: name.to_owned(),
                role,
                folder: files,
            });
            anyhow::Ok(())
        };
        add("WS01", Role::Workstation, &["C"])?;
        for number in 1..=plan.nodes {
            add(&format!("HGS{number:02}"), Role::HgsNode, &["C"])?;
        }
        for (name, _) in &plan.hosts {
            add(name, Role::Host, &["C/Windows/System32/CodeIntegrity"])?;
        }
        add("VMM01", Role::Vmm, &["C"])?;
        for machine in machines.iter().filter(|machine| machine.role == Role::Host) {
            registry::prepare(machine)?;
        }
        let network = Network::new(folder)?;
        Ok(Lab(Rc::new(Inner {
            folder: folder.to_path_buf(),
            machines,
            states: RefCell::default(),
            cluster: RefCell::new(None),
            plan: plan.clone(),
            hosts: RefCell::new(None),
            network: RefCell::new(network),
            ahead: RefCell::default(),
            clock: Clock::system(),
            runtime,
        })))
    }

    /// Who makes the lab's TPMs.
    fn tpm_maker(&self) -> anyhow::Result<PathBuf> {
        let maker = self.0.folder.join("tpm-maker");
        found_tpm_maker(&maker, &self.0.folder.join("first-tpm"))?;
        Ok(maker)
    }

    /// Starts the hosts, if they do not run yet.
    ///
    /// # Errors
    /// One does not start.
    pub fn start_hosts(&self) -> anyhow::Result<()> {
        if self.0.hosts.borrow().is_none() {
            let maker = self.tpm_maker()?;
            let table = self.0.network.borrow().table().to_path_buf();
            let hosts = host::start_all(&self.0.folder, &maker, &table, &self.0.plan.hosts)?;
            let ahead = u64::try_from(self.0.ahead.borrow().seconds()).unwrap_or_default();
            for host in hosts.values().filter(|_| ahead > 0) {
                self.wait(host.advance(ahead))?;
            }
            *self.0.hosts.borrow_mut() = Some(hosts);
        }
        Ok(())
    }

    /// Lays the certificates of the TPMs' makers on each HGS node, as an administrator downloads a vendor's.
    ///
    /// # Errors
    /// They cannot be made or written.
    pub fn hand_out_tpm_makers(&self) -> anyhow::Result<()> {
        let certificates = TpmMaker::open(&self.tpm_maker()?)?.certificates()?;
        for machine in self.0.machines.iter().filter(|m| m.role == Role::HgsNode) {
            let folder = machine.folder.join("C/TrustedTpm");
            fs::create_dir_all(&folder)?;
            for (number, der) in certificates.iter().enumerate() {
                let name = if number == 0 {
                    "RootCA.cer".to_owned()
                } else {
                    format!("IntermediateCA{number}.cer")
                };
                fs::write(folder.join(name), der)?;
            }
        }
        Ok(())
    }

    /// The machine's state.
    pub fn state(&self, machine: &str) -> RefMut<'_, MachineState> {
        RefMut::map(self.0.states.borrow_mut(), |states| {
            states.entry(machine.to_ascii_lowercase()).or_default()
        })
    }

    /// A machine by name, in any case, with or without its domain.
    pub fn machine(&self, name: &str) -> Option<&Machine> {
        let plain = name.split('.').next().unwrap_or(name);
        self.0
            .machines
            .iter()
            .find(|machine| machine.name.eq_ignore_ascii_case(plain))
    }

    /// The HGS, if one is set up.
    pub fn cluster(&self) -> Option<Ref<'_, Cluster>> {
        Ref::filter_map(self.0.cluster.borrow(), Option::as_ref).ok()
    }

    /// The HGS, to be changed.
    pub fn cluster_mut(&self) -> Option<RefMut<'_, Cluster>> {
        RefMut::filter_map(self.0.cluster.borrow_mut(), Option::as_mut).ok()
    }

    /// A host by name.
    pub fn host(&self, name: &str) -> Option<RefMut<'_, LabHost>> {
        let plain = name.split('.').next().unwrap_or(name).to_ascii_lowercase();
        if !self
            .0
            .plan
            .hosts
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case(&plain))
        {
            return None;
        }
        if let Err(error) = self.start_hosts() {
            tracing::error!("the hosts do not start: {error:#}");
            return None;
        }
        RefMut::filter_map(self.0.hosts.borrow_mut(), |hosts| hosts.as_mut()?.get_mut(&plain)).ok()
    }

    /// Names of the hosts.
    pub fn host_names(&self) -> Vec<String> {
        self.0
            .plan
            .hosts
            .iter()
            .map(|(name, _)| name.to_ascii_lowercase())
            .collect()
    }

    /// Where everything is.
    pub fn folder(&self) -> &Path {
        &self.0.folder
    }

    /// The hosts' shared volume.
    pub fn volume(&self) -> PathBuf {
        self.0.folder.join("volume")
    }

    /// Waits for something of the network.
    pub fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.0.runtime.block_on(work)
    }

    /// The lab's time.
    pub fn time(&self) -> UnixTime {
        self.0.clock.now().plus_seconds(self.0.ahead.borrow().seconds())
    }

    /// Sets an HGS up on `node`.
    pub fn set_up(&self, node: &str, new: &NewCluster) -> anyhow::Result<()> {
        if self.0.cluster.borrow().is_some() {
            bail!("this lab has an HGS already; further nodes join it with Initialize-HgsServer -HgsServerIPAddress");
        }
        let folder = self.0.folder.join("hgs");
        let cluster = Cluster::start(&folder, node, new, &self.0.runtime).inspect_err(|_| {
            // Nothing of an attempt that failed is to be there for the next one.
            let _ = fs::remove_dir_all(&folder);
        })?;
        self.0.network.borrow_mut().publish(&cluster)?;
        *self.0.cluster.borrow_mut() = Some(cluster);
        Ok(())
    }

    /// Takes a further node into the HGS.
    pub fn join(&self, node: &str) -> anyhow::Result<()> {
        let mut cluster = self
            .cluster_mut()
            .context("no HGS is set up yet: initialise its first node")?;
        cluster.add_node(node, &self.0.runtime)?;
        self.0.network.borrow_mut().publish(&cluster)
    }

    /// Takes a node out; with the last one the HGS ends for good.
    pub fn leave(&self, node: &str) -> anyhow::Result<()> {
        let mut cluster = self.cluster_mut().context("no HGS is set up here")?;
        if !cluster.remove_node(node) {
            bail!("{node} is no node of the HGS");
        }
        if cluster.nodes().next().is_some() {
            return self.0.network.borrow_mut().publish(&cluster);
        }
        drop(cluster);
        self.0.network.borrow_mut().withdraw()?;
        self.0.cluster.borrow_mut().take();
        let folder = self.0.folder.join("hgs");
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))
    }

    /// A power failure of a node, or its end. The HGS is reached through the others.
    pub fn power_node(&self, node: &str, on: bool) -> anyhow::Result<()> {
        let mut cluster = self.cluster_mut().context("no HGS is set up")?;
        match on {
            true => cluster.open(node, &self.0.runtime)?,
            false => cluster.close(node),
        }
        self.0.network.borrow_mut().publish(&cluster)
    }

    /// Publishes what a change of the HGS's names or ports made.
    pub fn publish(&self) -> anyhow::Result<()> {
        let cluster = self.cluster().context("no HGS is set up")?;
        self.0.network.borrow_mut().publish(&cluster)
    }

    /// Takes a name out of the fabric's names, or puts it back: a conditional forwarder that is missing, say.
    pub fn hide_names(&self, hidden: bool) -> anyhow::Result<()> {
        self.0.network.borrow_mut().hide(hidden)
    }

    /// What a name and a port lead to, as hosts resolve it.
    pub fn resolve(&self, name: &str, port: u16) -> Vec<std::net::SocketAddr> {
        self.0.network.borrow().resolve(name, port)
    }

    /// GET of a URL as a machine of the lab asks it.
    pub fn get(&self, url: &str, limit: usize) -> anyhow::Result<crate::client::Answer> {
        let client = crate::client::LabClient::following(self.0.network.borrow().table(), None, self.0.clock.clone())?;
        Ok(self.wait(client.get(url, limit))?)
    }

    /// Lets time pass on every machine.
    pub fn advance(&self, seconds: u64) -> anyhow::Result<()> {
        self.0.ahead.borrow_mut().add(seconds);
        if let Some(cluster) = self.cluster() {
            self.wait(cluster.advance(seconds))?;
        }
        for host in self.0.hosts.borrow().iter().flat_map(BTreeMap::values) {
            self.wait(host.advance(seconds))?;
        }
        Ok(())
    }

    /// A power cycle of a host: it takes the code-integrity policy that lies in its files.
    pub fn restart_host(&self, name: &str) -> anyhow::Result<()> {
        let machine = self
            .machine(name)
            .with_context(|| format!("there is no machine {name}"))?;
        let ahead = self.0.ahead.borrow().seconds();
        let mut host = self.host(name).with_context(|| format!("{name} is no host"))?;
        registry::apply(machine, &mut host.dials)?;
        host.restart(&machine.folder)?;
        if ahead > 0 {
            let seconds = u64::try_from(ahead).unwrap_or_default();
            self.wait(host.advance(seconds))?;
        }
        Ok(())
    }
}

impl World for Lab {
    fn machines(&self) -> Vec<Machine> {
        self.0.machines.clone()
    }

    fn now(&self, _machine: &str) -> Date {
        Date(self.time().0)
    }

    /// Time passes on all clocks of the lab at once; nobody waits for it.
    fn pause(&self, time: Duration) {
        if let Err(error) = self.advance(time.as_secs()) {
            tracing::warn!("the lab's clocks did not all move: {error:#}");
        }
    }

    fn drive(&self, name: &str) -> Option<&dyn Drive> {
        (name == "cert").then_some(self as &dyn Drive)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The drive `cert`, of the machine's own stores.
impl Drive for Lab {
    fn item(&self, machine: &Machine, path: &str) -> Result<Option<Value>, ErrorRecord> {
        let (store, thumbprint) = store_and_thumbprint(path);
        let state = self.state(&machine.name);
        let kept = thumbprint.and_then(|thumbprint| state.certificates.find(store, thumbprint));
        Ok(kept.map(|kept| objects::certificate(&kept.der, kept.pair.is_some(), Some(store))))
    }

    fn children(&self, machine: &Machine, path: &str, _recurse: bool) -> Result<Vec<Value>, ErrorRecord> {
        let (store, _) = store_and_thumbprint(path);
        let state = self.state(&machine.name);
        let shown = state.certificates.list(store);
        Ok(shown
            .map(|kept| objects::certificate(&kept.der, kept.pair.is_some(), Some(store)))
            .collect())
    }

    fn remove(&self, machine: &Machine, path: &str, _with_key: bool) -> Result<bool, ErrorRecord> {
        let (store, thumbprint) = store_and_thumbprint(path);
        let mut state = self.state(&machine.name);
        Ok(thumbprint.is_some_and(|thumbprint| state.certificates.remove(store, thumbprint).is_some()))
    }
}

/// `My` and the thumbprint of `LocalMachine\My\…`.
fn store_and_thumbprint(path: &str) -> (&str, Option<&str>) {
    let mut parts = path.split('\\').filter(|part| !part.is_empty());
    let first = parts.next().unwrap_or_default();
    let store = match first.to_ascii_lowercase().as_str() {
        "localmachine" | "currentuser" => parts.next().unwrap_or_default(),
        _ => first,
    };
    (store, parts.next())
}
