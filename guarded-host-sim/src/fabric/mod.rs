//! A guarded fabric on loopback: real service and host processes, and the ways to reach them.
//!
//! Every process is a child of this one and ends with it, however it ends. Nothing reaches into a
//! database: registration goes through the administrators' API, everything else through the
//! protocols.

pub mod attestation;
pub mod enrol;
mod here;
pub mod hgs;
pub mod host;
pub mod prepare;
pub mod service;
pub mod soft_token;
pub mod tls;
pub mod watch;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context, anyhow};
use serde::{Deserialize, Serialize};

use self::{
    hgs::Hgs,
    host::{HostPlan, SimHost},
    service::{Attachment, Environment, Extras, Tls},
    soft_token::SoftTokens,
    watch::Watch,
};
use crate::{client::NameTable, swtpm::TpmMaker, vm::volume::Volume};

/// Where a fabric is and what it shares.
pub struct Fabric {
    folder: PathBuf,
    tls: Option<Tls>,
    elsewhere: Option<Elsewhere>,
    /// Variables for every process that is started from now on.
    pub environment: Environment,
    /// Makes the tokens in which key protection services that are started from now on keep their private keys.
    pub tokens: Option<SoftTokens>,
    /// Watches every process that was started through the fabric.
    pub watch: Watch,
}

impl Fabric {
    /// A fabric below `folder` (absolute), whose services speak HTTPS to the hosts if asked.
    pub fn new(folder: &Path, https: bool) -> anyhow::Result<Fabric> {
        fs::create_dir_all(folder)?;
        // Agents run under a user of their own and have their folders and the volume below.
        crate::machine::user::let_others_pass(folder)?;
        let tls = match https {
            true => Some(tls::issue(&folder.join("tls"), &[ATTESTATION, KEY_PROTECTION])?),
            false => None,
        };
        Ok(Fabric {
            folder: folder.to_path_buf(),
            tls,
            elsewhere: None,
            environment: Environment::new(),
            tokens: None,
            watch: Watch::default(),
        })
    }

    /// A fabric whose first HGS, volume and some hosts run elsewhere, as `attachment` (written by
    /// `prepare`) says. What else it needs it starts below `folder`.
    pub fn attach(folder: &Path, attachment: &Path) -> anyhow::Result<Fabric> {
        let mut fabric = Fabric::new(folder, false)?;
        fabric.elsewhere = Some(Elsewhere::read(attachment)?);
        Ok(fabric)
    }

    /// The fabric's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether a part of it runs elsewhere, and may have been in use before.
    pub fn is_attached(&self) -> bool {
        self.elsewhere.is_some()
    }

    /// Starts an HGS whose files are in `folder/name`.
    pub fn start_hgs(&self, name: &str) -> anyhow::Result<Hgs> {
        if let (Some(elsewhere), FIRST_HGS) = (&self.elsewhere, name) {
            return Hgs::attach(&elsewhere.attestation, &elsewhere.kps);
        }
        let extras = Extras {
            tls: self.tls.clone(),
            environment: self.environment.clone(),
            ..Extras::default()
        };
        let hgs = Hgs::start(&self.folder.join(name), &extras, self.tokens.as_ref())?;
        for service in [&hgs.attestation, &hgs.kps] {
            self.watch.add(
                &format!("{} of {name}", service.name),
                service.process_id(),
                &service.folder().join("log"),
            );
        }
        Ok(hgs)
    }

    /// A shared volume in `folder/name`.
    pub fn volume(&self, name: &str) -> anyhow::Result<(Volume, PathBuf)> {
        let path = match (&self.elsewhere, name) {
            (Some(elsewhere), FIRST_VOLUME) => elsewhere.volume.clone(),
            _ => self.folder.join(name),
        };
        Ok((Volume::open(&path)?, path))
    }

    /// Starts hosts, all at once, because making a TPM takes a second. Each is attached to an HGS
    /// and to a volume.
    pub fn start_hosts(&self, wanted: &[(&str, &Hgs, &Path)]) -> anyhow::Result<BTreeMap<String, SimHost>> {
        let maker = self.tpm_maker();
        found_tpm_maker(&maker, &self.folder.join("first-tpm"))?;
        let started: Vec<anyhow::Result<SimHost>> = thread::scope(|scope| {
            let threads: Vec<_> = wanted
                .iter()
                .map(|(name, hgs, volume)| {
                    let maker = maker.as_path();
                    let elsewhere = self.elsewhere.as_ref().and_then(|e| e.hosts.get(*name));
                    scope.spawn(move || match elsewhere {
                        Some(host) => SimHost::attach(name, &host.folder, &host.agent_url),
                        None => self.start_host(name, hgs, volume, maker, None),
                    })
                })
                .collect();
            let join = |t: thread::ScopedJoinHandle<'_, _>| {
                t.join()
                    .unwrap_or_else(|_| Err(anyhow!("the thread that starts a host panicked")))
            };
            threads.into_iter().map(join).collect()
        });
        let mut hosts = BTreeMap::new();
        for host in started {
            let host = host?;
            hosts.insert(host.name.clone(), host);
        }
        Ok(hosts)
    }

    /// Starts one host (again). `crash_at` names the commit point at which its processes end.
    pub fn restart_host(
        &self,
        name: &str,
        hgs: &Hgs,
        volume: &Path,
        crash_at: Option<&str>,
    ) -> anyhow::Result<SimHost> {
        self.start_host(name, hgs, volume, &self.tpm_maker(), crash_at)
    }

    /// Certificates of the authorities that vouch for the fabric's TPMs, DER.
    pub fn tpm_maker_certificates(&self) -> anyhow::Result<Vec<Vec<u8>>> {
        maker_certificates(&self.tpm_maker())
    }

    fn tpm_maker(&self) -> PathBuf {
        match &self.elsewhere {
            Some(elsewhere) => elsewhere.tpm_maker.clone(),
            None => self.folder.join("tpm-maker"),
        }
    }

    fn start_host(
        &self,
        name: &str,
        hgs: &Hgs,
        volume: &Path,
        maker: &Path,
        crash_at: Option<&str>,
    ) -> anyhow::Result<SimHost> {
        let folder = self.folder.join("hosts").join(name);
        let agent = agent_arguments(hgs, &folder, self.tls.as_ref())?;
        let mut environment = self.environment.clone();
        environment.extend(crash_at.map(|point| (crate::commit_point::VARIABLE.to_owned(), point.to_owned())));
        let mut host = SimHost::start(&HostPlan {
            name,
            folder: &folder,
            maker,
            volume,
            host: &[],
            agent: &agent,
            environment: &environment,
        })
        .with_context(|| format!("the host {name}"))?;
        host.watch_by(&self.watch);
        Ok(host)
    }
}

/// What of a fabric runs elsewhere, in containers say; paths as this process sees them.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Elsewhere {
    /// The attestation service.
    pub attestation: Attachment,
    /// The key protection service.
    pub kps: Attachment,
    /// Hosts by name.
    pub hosts: BTreeMap<String, HostElsewhere>,
    /// The hosts' shared volume.
    pub volume: PathBuf,
    /// Directory of the TPM maker.
    pub tpm_maker: PathBuf,
}

impl Elsewhere {
    /// Reads what `prepare` wrote.
    pub fn read(path: &Path) -> anyhow::Result<Elsewhere> {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} does not describe a fabric", path.display()))
    }
}

/// A host that runs elsewhere.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostElsewhere {
    /// Its folder, with the machine's control socket.
    pub folder: PathBuf,
    /// Base URL of its agent.
    pub agent_url: String,
    /// The fabric it stands in.
    pub fabric: String,
    /// The volume of that fabric.
    pub volume: PathBuf,
}

fn maker_certificates(maker: &Path) -> anyhow::Result<Vec<Vec<u8>>> {
    Ok(TpmMaker::open(maker)?.certificates()?)
}

/// Founds the TPM maker in `maker` if need be: its own keys are made at its first TPM, which must
/// therefore be the only one under way. That TPM is made in `first` and thrown away.
pub(crate) fn found_tpm_maker(maker: &Path, first: &Path) -> anyhow::Result<()> {
    if !maker.join("issuercert.pem").exists() {
        TpmMaker::open(maker)?.manufacture("maker", first, None)?;
        fs::remove_dir_all(first)?;
    }
    Ok(())
}

/// What an agent is told: its HGS, as its administrator would configure it. Names
/// resolve by the fabric's own table, which is written beside the host.
fn agent_arguments(hgs: &Hgs, folder: &Path, tls: Option<&Tls>) -> anyhow::Result<Vec<String>> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let port = if tls.is_some() { 443 } else { 80 };
    let mut names = NameTable::default();
    for (name, service) in [(ATTESTATION, &hgs.attestation), (KEY_PROTECTION, &hgs.kps)] {
        let url = service.tls_url.as_ref().unwrap_or(&service.url);
        let address = url.rsplit('/').next().unwrap_or_default();
        names.0.insert(format!("{name}:{port}"), vec![address.parse()?]);
    }
    let table = folder.join("names.json");
    fs::create_dir_all(folder)?;
    fs::write(&table, serde_json::to_vec_pretty(&names)?)?;
    let mut arguments = vec![
        "--attestation-url".to_owned(),
        format!("{scheme}://{ATTESTATION}/Attestation"),
        "--key-protection-url".to_owned(),
        format!("{scheme}://{KEY_PROTECTION}/KeyProtection"),
        "--names".to_owned(),
        table.display().to_string(),
        "--lab-clock".to_owned(),
        host::clock(folder).display().to_string(),
    ];
    if let Some(tls) = tls {
        arguments.extend(["--root-certificate".to_owned(), tls.root.display().to_string()]);
    }
    Ok(arguments)
}

/// The HGS that the story begins with, and its hosts' volume.
const FIRST_HGS: &str = "hgs";
const FIRST_VOLUME: &str = "volume";
const ATTESTATION: &str = "attestation.bastion.local";
const KEY_PROTECTION: &str = "keyprotection.bastion.local";
