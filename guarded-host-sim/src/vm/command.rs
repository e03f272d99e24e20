//! `guarded-host-sim vm`: what a host's administrator does to a VM, as a client of the host's control API
//! (in `client`), and what an owner does to it on the hosts' volume.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use hgs_protocol::{
    env::Env,
    protector::{GuardianKeys, KeyPair},
};
use hgs_service::pair_files;

use super::{
    VmName,
    client::{self, HostVerb},
    rekey::{Wishes, rekey},
    security::Kind,
    volume::Volume,
};
use crate::{
    owner::Owner,
    shielding::recovery_command::{self, RebuildArgs, RecoverArgs, RecoveryKeyArgs},
};

/// VMs: as a host's administrator runs them, and as their owner changes them.
#[derive(Debug, clap::Args)]
pub struct VmArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Give a VM that is off a new protector with a new transport key.
    ///
    /// The old protector counts until the new one and the state sealed under its key are on the disk. Whoever could open
    /// the old one still opens older copies of the VM.
    Rekey(RekeyArgs),
    /// Show the recovery password of a VM's disk to its owner, who has the shielding data that the VM was made with
    RecoveryKey(RecoveryKeyArgs),
    /// Write what is on a VM's disk to a folder, as its owner: when the fabric is lost, or only the disk is left
    Recover(RecoverArgs),
    /// Give a VM whose state is lost a new vTPM and a new protector, as its owner, by the recovery password of its disk
    Rebuild(Box<RebuildArgs>),
    #[command(flatten)]
    OfHost(HostVerb),
}

#[derive(Debug, clap::Args)]
struct RekeyArgs {
    /// The VM
    name: VmName,
    /// The hosts' shared volume
    #[arg(long, value_name = "DIR")]
    volume: PathBuf,
    /// The owner's signing certificate and private key (PKCS#8), PEM
    #[arg(long, value_name = "FILE")]
    owner_signing: PathBuf,
    /// The owner's encryption certificate and private key (PKCS#8), PEM
    #[arg(long, value_name = "FILE")]
    owner_encryption: PathBuf,
    /// Metadata document of a guardian that may open the protector; may be repeated
    #[arg(long = "guardian", value_name = "FILE", required = true)]
    guardians: Vec<PathBuf>,
    /// Thumbprint of a guardian's encryption certificate, as its administrator tells it; one for each guardian
    #[arg(long = "thumbprint", value_name = "SHA1")]
    thumbprints: Vec<String>,
    /// How often a host may start the VM without contact, if the KPS allows as much; not signed. Without it, as before
    #[arg(long, value_name = "N")]
    max_offline_unwraps: Option<u32>,
    /// Make the VM one of this kind. Without it, as before; a shielded VM is made anything else in this way alone
    #[arg(long, value_enum)]
    kind: Option<Kind>,
}

/// Runs one verb.
pub fn run(args: &VmArgs) -> anyhow::Result<()> {
    match &args.verb {
        Verb::Rekey(args) => run_rekey(args, &Env::system()),
        Verb::RecoveryKey(args) => recovery_command::show_recovery_key(args, &Env::system()),
        Verb::Recover(args) => recovery_command::recover(args, &Env::system()),
        Verb::Rebuild(args) => recovery_command::run_rebuild(args, &Env::system()),
        Verb::OfHost(verb) => client::run(verb),
    }
}

fn run_rekey(args: &RekeyArgs, env: &Env) -> anyhow::Result<()> {
    ensure!(args.volume.is_dir(), "there is no volume {}", args.volume.display());
    let mut guardians = Vec::new();
    for path in &args.guardians {
        let document = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let imported = Owner::import_guardian(&document, "guardian").with_context(|| path.display().to_string())?;
        let found = &imported.encryption_thumbprint;
        ensure!(
            args.thumbprints.iter().any(|given| given.eq_ignore_ascii_case(found)),
            "the encryption certificate in {} has the thumbprint {found}: compare it with the one that the guardian's \
             administrator tells you, then give it by --thumbprint",
            path.display()
        );
        guardians.push(imported.guardian);
    }
    let owner = GuardianKeys::from_pairs(
        "owner",
        read_pair(&args.owner_signing)?,
        read_pair(&args.owner_encryption)?,
    );
    let volume = Volume::open(&args.volume)?;
    let wishes = Wishes {
        max_offline_unwraps: args.max_offline_unwraps,
        kind: args.kind,
    };
    let generation = rekey(&owner, &volume, &args.name, &guardians, wishes, &mut env.rng())?;
    println!(
        "{} has a new protector, and its state is sealed under a new key (generation {generation}); backups from before \
         open as before, for whoever has the keys of that time",
        args.name
    );
    Ok(())
}

fn read_pair(path: &Path) -> anyhow::Result<KeyPair> {
    let text = fs::read_to_string(path).map(zeroize::Zeroizing::new);
    let text = text.with_context(|| format!("cannot read {}", path.display()))?;
    pair_files::from_pem(&text).with_context(|| format!("cannot use {}", path.display()))
}
