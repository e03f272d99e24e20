//! `guarded-host-sim console`: the fabric console, over a small fabric of its own. What the pages show and how, the crate
//! `hgs-console` says; here the fabric is started, and what only a lab can do to it is done.

mod own;
mod urls;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, ensure};
use hgs_console::{
    Bound, Plan,
    settings::{HostSettings, SettingsFile, Urls},
};
use hgs_protocol::env::OsRandom;
use hgs_service::tokens::{Role, new_token};
use zeroize::Zeroizing;

pub use self::own::OwnFabric;
use crate::{
    scenario::{testing::FabricBuilder, world::address_of},
    swtpm::short_private_dir,
};

/// What the console is to show, and where.
#[derive(Clone, Debug, clap::Args)]
pub struct ConsoleArgs {
    /// Where it listens
    #[arg(long, default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Listen on another address than loopback too: tokens and pages then travel in clear
    #[arg(long)]
    pub allow_remote: bool,
    /// A host name, beside localhost, under which browsers reach it; may be repeated
    #[arg(long = "name")]
    pub names: Vec<String>,
    /// Begin with hosts in local mode and no settings: everything is to be set in the settings window
    #[arg(long)]
    pub blank: bool,
    /// How many hosts the fabric has, 1 to 16
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub hosts: u8,
    /// Where the fabric settings are kept [default: with the fabric, which goes when the console ends]
    #[arg(long)]
    pub settings: Option<PathBuf>,
}

/// A console that listens, with its fabric, and the tokens with which to sign in.
pub struct Running {
    /// The listener.
    pub bound: Bound,
    /// An administrator's token, for both services.
    pub administrator: Zeroizing<String>,
    /// A reviewer's token, for both services.
    pub reviewer: Zeroizing<String>,
    /// The fabric.
    pub fabric: Arc<OwnFabric>,
    folder: Folder,
}

/// Removed with everything in it.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Serves until it is interrupted.
pub fn run(args: &ConsoleArgs) -> anyhow::Result<()> {
    hgs_service::telemetry::init(hgs_service::telemetry::LogFormat::Text);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        println!("starting HGS, {} hosts and two VMs", args.hosts);
        let running = start(args).await?;
        for address in &running.bound.addresses {
            println!("the console is at http://localhost:{}", address.port());
        }
        println!("administrator's token: {}", *running.administrator);
        println!("reviewer's token:      {}", *running.reviewer);
        running.serve().await
    })
}

impl Running {
    /// Serves until it is stopped, then ends the fabric.
    pub async fn serve(self) -> anyhow::Result<()> {
        let Running {
            bound, fabric, folder, ..
        } = self;
        let served = bound.server.await;
        // Its processes are waited for.
        tokio::task::spawn_blocking(move || drop((fabric, folder))).await?;
        Ok(served?)
    }
}

/// Starts the fabric and the console over it.
pub async fn start(args: &ConsoleArgs) -> anyhow::Result<Running> {
    ensure!(
        args.allow_remote || args.listen.ip().is_loopback(),
        "{} is not loopback, and the console speaks plain HTTP: --allow-remote permits it",
        args.listen
    );
    let folder = Folder(short_private_dir()?);
    let rng = &mut OsRandom;
    let (administrator, first) = new_token(Role::Administrator, rng);
    let (reviewer, second) = new_token(Role::Reviewer, rng);
    let mut builder = FabricBuilder::new()
        .admin_tokens(vec![first, second])
        .most_messages(MOST_MESSAGES);
    let names: Vec<String> = (1..=args.hosts).map(|number| format!("host{number:02}")).collect();
    for name in &names {
        builder = builder.host(name);
    }
    // The first two hosts have a VM each; with one host, that has both.
    for (vm, host) in ["books", "payroll"].into_iter().zip(names.iter().cycle()) {
        builder = builder.vm(vm, host);
    }
    let fabric = OwnFabric::new(builder.start().await?).await?;
    let settings = args.settings.clone().unwrap_or_else(|| folder.0.join("settings.json"));
    match args.blank {
        true => fabric.clear_hosts().await?,
        false => furnish(&settings, &names)?,
    }
    let fabric = Arc::new(fabric);
    if !args.blank {
        fabric.attest_all().await;
    }
    let bound = hgs_console::bind(Plan {
        lab: fabric.clone(),
        settings,
        listen: args.listen,
        names: args.names.clone(),
    })
    .with_context(|| format!("on {}", args.listen))?;
    Ok(Running {
        bound,
        administrator: Zeroizing::new(administrator),
        reviewer: Zeroizing::new(reviewer),
        fabric,
        folder,
    })
}

/// The settings that the hosts were started by, unless there are settings already.
fn furnish(path: &Path, hosts: &[String]) -> anyhow::Result<()> {
    let file = SettingsFile::open(path)?;
    if file.now().urls.are_set() {
        return Ok(());
    }
    let hgs = address_of(crate::scenario::model::FIRST_HGS);
    file.change(|settings| {
        settings.urls = Urls {
            attestation: format!("http://{hgs}/Attestation"),
            key_protection: format!("http://{hgs}/KeyProtection"),
            ..Urls::default()
        };
        for host in hosts {
            let its = HostSettings {
                enabled: true,
                ..HostSettings::default()
            };
            settings.hosts.insert(host.clone(), its);
        }
    })?;
    Ok(())
}

/// An attestation is about six messages of 50 kB together.
const MOST_MESSAGES: usize = 2000;
