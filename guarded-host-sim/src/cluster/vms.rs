//! The VMs of drills, made where the volumes are: in a container beside the hosts.

use std::path::PathBuf;

use anyhow::Context;
use hgs_protocol::env::{Clock, OsRandom, Random};

use crate::{
    fabric::{Elsewhere, hgs::Hgs},
    owner::Owner,
    vm::{VmName, volume::Volume},
};

/// Shields VMs for the hosts of a fabric in containers; their owner's keys are forgotten.
#[derive(Clone, Debug, clap::Args)]
pub struct ShieldArgs {
    /// The description that `prepare` wrote
    #[arg(long)]
    fabric: PathBuf,
    /// A VM and its host, `web@host01`; may be repeated
    #[arg(long = "vm", required = true, value_parser = vm_of_host)]
    vms: Vec<(VmName, String)>,
}

pub(super) async fn shield(args: &ShieldArgs) -> anyhow::Result<()> {
    let elsewhere = Elsewhere::read(&args.fabric)?;
    let hgs = Hgs::attach(&elsewhere.attestation, &elsewhere.kps)?;
    let guardian = Owner::import_guardian(&hgs.metadata().await?, "HGS")?.guardian;
    let folder = tempfile::tempdir()?;
    let rng: &mut dyn Random = &mut OsRandom;
    let owner = Owner::new("Cluster drill", folder.path(), Clock::system().now(), rng)?;
    for (name, host) in &args.vms {
        let place = elsewhere
            .hosts
            .get(host)
            .with_context(|| format!("the fabric has no {host}"))?;
        let volume = Volume::open(&place.volume)?;
        let secret = hex::encode(rng.bytes::<24>());
        owner.shield(name, secret.as_bytes(), &guardian, &volume, host, rng)?;
    }
    Ok(())
}

fn vm_of_host(text: &str) -> Result<(VmName, String), String> {
    let (vm, host) = text.split_once('@').ok_or("say VM@HOST")?;
    let vm = VmName::parse(vm).map_err(|error| error.to_string())?;
    Ok((vm, host.to_owned()))
}
