//! The verbs of `guarded-host-sim vm` with which the owner of a VM recovers it (Save- and Unprotect-ShieldedVMRecoveryKey of
//! the product, and what an owner does with the key).

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use hgs_protocol::env::Env;

use super::{
    data_file::{DataFile, LARGEST_DATA_FILE, ShieldingData},
    recovery::{Anew, WorkFolder, rebuild, recovery_password, unlock_by_owner, unlock_by_password, write_contents},
};
use crate::{
    owner::{
        certificate::printable,
        command::{harmless, read_file, read_password, say, write_out},
        protector_command::{AccessArgs, NewArgs},
    },
    vm::{VmName, recovery::RecoveryPassword, security::Kind, volume::Volume},
};

/// Whose disk, and where it is.
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("where").required(true))]
struct DiskArgs {
    /// The VM
    #[arg(requires = "volume")]
    name: Option<VmName>,
    /// The hosts' shared volume, or the folder of an exported VM's folder
    #[arg(long, value_name = "DIR", group = "where", requires = "name")]
    volume: Option<PathBuf>,
    /// A disk by itself, instead
    #[arg(long, value_name = "FILE", group = "where", conflicts_with = "name")]
    disk: Option<PathBuf>,
}

/// `vm recovery-key`.
#[derive(Args, Debug)]
pub(crate) struct RecoveryKeyArgs {
    #[command(flatten)]
    disk: DiskArgs,
    /// The shielding data file that the VM was made with
    #[arg(long, value_name = "FILE")]
    shielding_data: PathBuf,
    /// The owner: a guardian with private keys here
    #[arg(long, value_name = "GUARDIAN")]
    open_with: String,
    /// File for the recovery password, instead of the standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    access: AccessArgs,
}

/// `vm recover`.
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("how").required(true))]
pub(crate) struct RecoverArgs {
    #[command(flatten)]
    disk: DiskArgs,
    /// Open the VM's key protector and its state with the private keys of this guardian, its owner
    #[arg(long, value_name = "GUARDIAN", group = "how", requires = "volume")]
    open_with: Option<String>,
    /// File with the recovery password of the disk, instead
    #[arg(long, value_name = "FILE", group = "how")]
    recovery_password_file: Option<PathBuf>,
    /// A new folder for what is on the disk
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    access: AccessArgs,
}

/// `vm rebuild`.
#[derive(Args, Debug)]
pub(crate) struct RebuildArgs {
    /// The VM
    name: VmName,
    /// The hosts' shared volume
    #[arg(long, value_name = "DIR")]
    volume: PathBuf,
    /// File with the recovery password of its disk
    #[arg(long, value_name = "FILE")]
    recovery_password_file: PathBuf,
    /// The kind of the VM from now on
    #[arg(long, value_enum, default_value = "shielded")]
    kind: Kind,
    #[command(flatten)]
    new: NewArgs,
}

/// Shows the password, or writes it to a file.
pub(crate) fn show_recovery_key(args: &RecoveryKeyArgs, env: &Env) -> anyhow::Result<()> {
    let data = open_data(&args.shielding_data, &args.access, &args.open_with, env)?;
    let path = args.disk.path()?;
    let (vm, password) =
        recovery_password(&path, &data).with_context(|| format!("the recovery password on {}", path.display()))?;
    let text = password.expose_text();
    match &args.out {
        None => say(&format!("{}\n", *text)),
        Some(out) => {
            write_out(out, format!("{}\n", *text).as_bytes(), 0o600)?;
            say(&format!(
                "wrote the recovery password of the VM {vm} to {}\n",
                out.display()
            ))
        }
    }
}

/// Writes what is on the disk to a folder.
pub(crate) fn recover(args: &RecoverArgs, env: &Env) -> anyhow::Result<()> {
    let path = args.disk.path()?;
    let what = || format!("cannot unlock {}", path.display());
    let disk = match (&args.open_with, &args.recovery_password_file, args.disk.named()) {
        (Some(owner), _, Some((volume, name))) => {
            let keys = args.access.keys(owner)?;
            let work = WorkFolder::new()?;
            let run = work.path().join("vtpm");
            unlock_by_owner(&keys, &volume, name, &run, &mut env.rng()).with_context(what)?
        }
        (_, Some(file), _) => unlock_by_password(&path, &typed(file)?).with_context(what)?,
        _ => bail!("--open-with needs the VM's name and --volume"),
    };
    let written = write_contents(&disk, &args.out)?;
    let mut text = format!("wrote to {}\n", args.out.display());
    for name in written {
        text.push_str(&format!("  {}\n", printable(&name)));
    }
    say(&text)
}

/// Builds the VM anew around its disk.
pub(crate) fn run_rebuild(args: &RebuildArgs, env: &Env) -> anyhow::Result<()> {
    let volume = open_volume(&args.volume)?;
    let password = typed(&args.recovery_password_file)?;
    let new = args.new.make(env)?;
    let anew = Anew {
        owner: &new.owner,
        protector: (&new.protector, &new.key),
        password: &password,
        kind: args.kind,
    };
    let work = WorkFolder::new()?;
    let number = rebuild(&anew, &volume, &args.name, work.path(), &mut env.rng())?;
    say(&format!(
        "{} has a new vTPM and a new key protector for {} (generation {number}), and is {}; saved memory and checkpoints of \
         before are gone\n",
        args.name, new.whom, args.kind
    ))
}

impl DiskArgs {
    fn named(&self) -> Option<(Volume, &VmName)> {
        let volume = open_volume(self.volume.as_deref()?).ok()?;
        Some((volume, self.name.as_ref()?))
    }

    fn path(&self) -> anyhow::Result<PathBuf> {
        match (&self.disk, &self.volume, &self.name) {
            (Some(disk), ..) => Ok(disk.clone()),
            (None, Some(volume), Some(name)) => {
                let folder = open_volume(volume)?.vm(name)?;
                Ok(folder.disk_path(&folder.current()?))
            }
            _ => bail!("name the VM and its volume, or a disk"),
        }
    }
}

fn open_volume(path: &Path) -> anyhow::Result<Volume> {
    anyhow::ensure!(path.is_dir(), "there is no volume {}", path.display());
    Ok(Volume::open(path)?)
}

fn typed(file: &Path) -> anyhow::Result<RecoveryPassword> {
    let text = read_password(file)?;
    RecoveryPassword::parse(&text).with_context(|| format!("the recovery password in {}", file.display()))
}

fn open_data(path: &Path, access: &AccessArgs, owner: &str, env: &Env) -> anyhow::Result<ShieldingData> {
    let what = || format!("cannot open {}", path.display());
    let bytes = read_file(path, LARGEST_DATA_FILE)?;
    let signed = DataFile::parse(&bytes).and_then(DataFile::verify);
    let signed = signed.map_err(harmless).with_context(what)?;
    let keys = access.keys(owner)?;
    let opened = signed
        .chained()
        .clone()
        .open(&keys, &mut env.rng())
        .with_context(what)?;
    signed.open(opened.transport_key()).with_context(what)
}
