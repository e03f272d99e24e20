//! A guarded fabric for tests of one's own: the parts of a scenario without its file.
//!
//! [`FabricBuilder`] says what there is, [`TestFabric`] runs it, with the services in the test's process and hosts and
//! TPMs as processes that end with the value. Everything that a scenario's step can do, [`TestFabric::act`] does, and
//! [`TestFabric::step`] takes a step as a file has it, expectation included. This example is one of the project's own
//! tests, so it is compiled and run:
//!
//! ```text
#![doc = include_str!("../../tests/fabric_for_tests.rs")]
//! ```
//!
//! The program `guarded-host-sim` (`cargo build --workspace --bins`) must be beside the test's own, as it is inside this
//! workspace, or in the folder that `LAB_PROGRAMS` names; swtpm must be installed.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{anyhow, bail};

use super::{
    act::{Acted, act},
    came::Came,
    check,
    journal::{Journal, Message},
    judge::judge,
    model::{
        Action, At, HgsPlan, HostPlan, Mode, Scenario, Step, VmPlan,
        step::{Migrate, OfHost, OfVm, ServiceName, Wait},
        value::Length,
    },
    pool::TpmPool,
    world::{Way, World, address_of},
};
use crate::{client::NameTable, fabric::host::AgentLink, machine::dials::Dials, swtpm::short_private_dir};

/// What a fabric consists of.
#[derive(Clone, Debug)]
pub struct FabricBuilder {
    scenario: Scenario,
    way: Way,
    pool: Option<Arc<TpmPool>>,
    admin_tokens: Vec<String>,
    most_messages: usize,
}

impl Default for FabricBuilder {
    fn default() -> FabricBuilder {
        FabricBuilder::new()
    }
}

impl FabricBuilder {
    /// One HGS in TPM mode, no hosts, no VMs.
    pub fn new() -> FabricBuilder {
        FabricBuilder {
            scenario: Scenario {
                title: "a test".to_owned(),
                teaches: At::from([
                    "It is a test of somebody's own.".to_owned(),
                    "It teaches nothing else.".to_owned(),
                ]),
                tags: Vec::new(),
                fabric: Default::default(),
                hgs: Vec::new(),
                host: Vec::new(),
                vm: Vec::new(),
                step: Vec::new(),
            },
            way: Way::InProcess,
            pool: None,
            admin_tokens: Vec::new(),
            most_messages: usize::MAX,
        }
    }

    /// What a scenario's text names; its steps are left to the caller.
    ///
    /// Fails with everything that is wrong with the text, line by line.
    pub fn from_scenario(text: &str) -> anyhow::Result<FabricBuilder> {
        let read = super::parse::parse(Path::new("scenario"), text).map_err(|faults| {
            let told: Vec<String> = faults.iter().map(ToString::to_string).collect();
            anyhow!(told.join("\n"))
        })?;
        Ok(FabricBuilder {
            scenario: read.scenario,
            ..FabricBuilder::new()
        })
    }

    /// One more HGS. The first that is named takes the place of the one that there is without.
    pub fn hgs(mut self, plan: HgsPlan) -> FabricBuilder {
        self.scenario.hgs.push(plan);
        self
    }

    /// An HGS of this mode in the place of the one in TPM mode.
    pub fn mode(self, mode: Mode) -> FabricBuilder {
        let plan = HgsPlan {
            mode,
            ..HgsPlan::called(super::model::FIRST_HGS)
        };
        self.hgs(plan)
    }

    /// One more healthy host, registered with the first HGS.
    pub fn host(self, name: &str) -> FabricBuilder {
        self.host_as(HostPlan::called(name))
    }

    /// One more host.
    pub fn host_as(mut self, plan: HostPlan) -> FabricBuilder {
        self.scenario.host.push(plan);
        self
    }

    /// One more shielded VM, which belongs to `host` and is off.
    pub fn vm(self, name: &str, host: &str) -> FabricBuilder {
        self.vm_as(VmPlan::called(name, host))
    }

    /// One more VM.
    pub fn vm_as(mut self, plan: VmPlan) -> FabricBuilder {
        self.scenario.vm.push(plan);
        self
    }

    /// How the services run; in the test's process unless said otherwise.
    pub fn way(mut self, way: Way) -> FabricBuilder {
        self.way = way;
        self
    }

    /// Where the hosts' TPMs come from. Making one takes a second, so several tests may share a pool.
    pub fn tpms(mut self, pool: Arc<TpmPool>) -> FabricBuilder {
        self.pool = Some(pool);
        self
    }

    /// Lines of the services' token files beside the lab's own: who else may administer them.
    pub fn admin_tokens(mut self, lines: Vec<String>) -> FabricBuilder {
        self.admin_tokens = lines;
        self
    }

    /// How many messages are kept at most, for a fabric that runs for long.
    pub fn most_messages(mut self, most: usize) -> FabricBuilder {
        self.most_messages = most;
        self
    }

    /// Starts everything, registers the hosts, makes the VMs.
    ///
    /// Fails with what does not start, or with what is wrong with the names.
    pub async fn start(self) -> anyhow::Result<TestFabric> {
        let mut scenario = self.scenario;
        scenario.step.clear();
        if let Way::Attached(_) = self.way {
            bail!("a test has a fabric of its own: choose another way");
        }
        wrong(check::parts(&scenario))?;
        let (pool, own) = match self.pool {
            Some(pool) => (pool, None),
            None => {
                let folder = short_private_dir()?;
                (Arc::new(TpmPool::new(&folder)?), Some(Folder(folder)))
            }
        };
        let journal = Journal::begin_with(self.most_messages);
        let world = World::start(&scenario, self.way, pool, journal, &self.admin_tokens).await?;
        Ok(TestFabric {
            world,
            scenario,
            _pool: own,
        })
    }
}

/// A fabric that runs; it ends with this value.
pub struct TestFabric {
    world: World,
    scenario: Scenario,
    _pool: Option<Folder>,
}

/// Removed with everything in it.
struct Folder(std::path::PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl TestFabric {
    /// Does what a step can do, and gives what came of it. Time passes by the clocks.
    ///
    /// An error is trouble of the fabric itself: a part that must be there does not answer. A refusal is what came.
    pub async fn act(&self, action: Action) -> anyhow::Result<Came> {
        let step = Step {
            name: None,
            expect: None,
            action,
        };
        wrong(check::step(&self.scenario, &step))?;
        match act(&self.world, &step.action, true).await? {
            Acted::Came(mut came) => {
                let news = self.world.news().await;
                (came.events, came.logged) = (news.recorded, news.logged);
                Ok(*came)
            }
            Acted::Skipped(reason) => bail!("this way of running cannot do it: {reason}"),
        }
    }

    /// Does a step as a scenario's file has it, and holds what came against its expectation.
    ///
    /// Fails where a field is not as expected, as [`TestFabric::act`], and where the text is no step.
    pub async fn step(&self, text: &str) -> anyhow::Result<Came> {
        let step: Step = toml::from_str(text)?;
        wrong(check::step(&self.scenario, &step))?;
        let came = self.act(step.action.clone()).await?;
        let mismatches = judge(step.expect.as_ref(), &came);
        if mismatches.is_empty() {
            return Ok(came);
        }
        let told = mismatches
            .iter()
            .map(|one| format!("{}: expected {}, came {}", one.field, one.expected, one.came));
        bail!("{}: {}", step.title(), told.collect::<Vec<_>>().join("; "))
    }

    /// The host attests.
    pub async fn attest(&self, host: &str) -> anyhow::Result<Came> {
        let of = OfHost { host: At::from(host) };
        self.act(Action::Attest(of)).await
    }

    /// The VM is started on its host.
    pub async fn start_vm(&self, vm: &str) -> anyhow::Result<Came> {
        self.act(Action::StartVm(of(vm))).await
    }

    /// The VM is shut down.
    pub async fn stop_vm(&self, vm: &str) -> anyhow::Result<Came> {
        self.act(Action::StopVm(of(vm))).await
    }

    /// The VM is live-migrated.
    pub async fn migrate(&self, vm: &str, to: &str) -> anyhow::Result<Came> {
        let of = Migrate {
            vm: At::from(vm),
            from: None,
            to: At::from(to),
        };
        self.act(Action::Migrate(of)).await
    }

    /// The running guest answers its owner's challenge.
    pub async fn prove(&self, vm: &str) -> anyhow::Result<Came> {
        self.act(Action::Prove(of(vm))).await
    }

    /// Time passes for every machine of the fabric, by its clock.
    pub async fn wait(&self, time: Duration) -> anyhow::Result<Came> {
        let wait = Wait {
            time: At::from(Length(time)),
        };
        self.act(Action::Wait(wait)).await
    }

    /// Every message between hosts and services so far.
    pub fn messages(&self) -> Vec<Message> {
        self.world.journal.messages()
    }

    /// The record of every message between hosts and services.
    pub fn journal(&self) -> &Journal {
        &self.world.journal
    }

    /// The agent of a host, for what no step does.
    pub async fn agent(&self, host: &str) -> anyhow::Result<AgentLink> {
        self.world.host(host)?.agent().await
    }

    /// The hosts' names.
    pub fn host_names(&self) -> Vec<String> {
        self.world.hosts.keys().cloned().collect()
    }

    /// Base URL of a host's agent; none while its power is off.
    pub async fn agent_url(&self, host: &str) -> Option<String> {
        let host = self.world.hosts.get(host)?;
        match host.is_on().await {
            true => host.address().await,
            false => None,
        }
    }

    /// The dials with which a host booted.
    pub async fn dials(&self, host: &str) -> anyhow::Result<Dials> {
        Ok(self.world.host(host)?.dials().await)
    }

    /// A power cycle of a host, from which on this code-integrity policy is in force.
    pub async fn reboot_with_ci_policy(&self, host: &str, policy: Vec<u8>) -> anyhow::Result<()> {
        let change = |dials| Dials {
            ci_policy: Some(policy),
            ..dials
        };
        self.world.host(host)?.reboot_with(change).await
    }

    /// Base URLs of the first HGS's administrators' listeners: attestation, key protection.
    pub async fn admin_urls(&self) -> anyhow::Result<[String; 2]> {
        Ok(self.world.hgs(None)?.admin_addresses().await)
    }

    /// Under which names the services of this kind are reached, in clear and without a door between.
    pub async fn names(&self, service: ServiceName) -> anyhow::Result<NameTable> {
        let mut names = NameTable::default();
        for (name, hgs) in &self.world.hgs {
            let [attestation, key_protection] = hgs.plain_addresses().await;
            let url = match service {
                ServiceName::Attestation => attestation,
                ServiceName::KeyProtection => key_protection,
            };
            let address = url.trim_start_matches("http://").parse()?;
            names.0.insert(format!("{}:80", address_of(name)), vec![address]);
        }
        Ok(names)
    }

    /// Base URLs of the services of an HGS, or of the first: attestation, key protection.
    pub async fn service_urls(&self, hgs: Option<&str>) -> anyhow::Result<[String; 2]> {
        Ok(self.world.hgs(hgs)?.plain_addresses().await)
    }
}

fn of(vm: &str) -> OfVm {
    OfVm {
        vm: At::from(vm),
        host: None,
    }
}

fn wrong(found: Vec<check::Found>) -> anyhow::Result<()> {
    match found.is_empty() {
        true => Ok(()),
        false => bail!(found.into_iter().map(|one| one.message).collect::<Vec<_>>().join("; ")),
    }
}
