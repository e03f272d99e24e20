//! The VBS store: the one process of a host that holds VSM keys and, later, a VM's transport keys.
//!
//! It stands for what a real host keeps behind the hypervisor; here the wall is a process: not
//! dumpable, memory locked where the system allows it, started by the machine alone, spoken to
//! over one narrow socket ([`protocol`]). An administrator of the machine under the simulation can
//! still look into it; that is what a simulation of VBS by a process means.

mod harden;
pub mod protocol;
mod records;
mod root;
mod serve;
mod state;

use std::path::{Path, PathBuf};

use anyhow::Context;
use hgs_protocol::{crypto::RsaPublicKey, env::Env, wire::vsm};
pub use root::{RootError, SEALING_PCRS};
use serde::{Deserialize, Serialize};
pub use state::{Opened, Secrets, StateError, Store};

use crate::{
    ledger::{self, Ledger},
    tpm_channel::TpmChannel,
    vm::shielded::ShieldedVms,
};

/// How the machine starts a store.
#[derive(Clone, Debug, clap::Args)]
pub struct StoreArgs {
    /// The host's name.
    #[arg(long)]
    pub name: String,
    /// The store's own directory.
    #[arg(long)]
    pub dir: PathBuf,
    /// The machine's TPM socket for the store.
    #[arg(long)]
    pub tpm: PathBuf,
    /// The socket on which the agent may ask.
    #[arg(long)]
    pub socket: PathBuf,
    /// Makes new keys whatever was sealed before.
    #[arg(long)]
    pub anew: bool,
    /// The volume with the VMs' disks; the store opens no disk elsewhere.
    #[arg(long)]
    pub volume: Option<PathBuf>,
    /// The host is of before Windows version 1803: no console of shielded VMs.
    #[arg(long)]
    pub before_1803: bool,
}

/// What the store tells the machine when it is open: the public keys to measure, and remarks for
/// the host's log. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreReport {
    /// Public VSM encryption key, `RSA1` blob, hex.
    pub encryption_key: String,
    /// Public VSM signing key, `RSA1` blob, hex.
    pub signing_key: String,
    /// True when the keys were made in this boot.
    pub new_keys: bool,
    /// What an operator should know.
    pub remarks: Vec<String>,
}

impl StoreReport {
    /// What an open store tells.
    pub fn of(opened: &Opened) -> StoreReport {
        let secrets = opened.store.secrets();
        StoreReport {
            encryption_key: hex::encode(vsm::encode_rsa1(secrets.encryption.public())),
            signing_key: hex::encode(vsm::encode_rsa1(secrets.signing.public())),
            new_keys: opened.new_keys,
            remarks: opened.remarks.clone(),
        }
    }

    /// The encryption and the signing key.
    pub fn keys(&self) -> anyhow::Result<(RsaPublicKey, RsaPublicKey)> {
        let parse = |text: &str| anyhow::Ok(vsm::parse_rsa1(&hex::decode(text)?)?);
        Ok((parse(&self.encryption_key)?, parse(&self.signing_key)?))
    }
}

/// The store's process: opens or founds the state, reports to the machine on standard output,
/// then answers the agent until it is killed.
pub fn run(args: &StoreArgs) -> anyhow::Result<()> {
    let env = Env::system();
    let mut remarks = harden::harden();
    // First, because two stores over one state would harm it.
    let ledger = Ledger::open(&args.dir.join(ledger::FILE))?;
    let channel = TpmChannel::connect(&args.tpm, &args.name)?;
    let open = if args.anew { Store::open_anew } else { Store::open };
    let mut opened = open(&args.dir, channel, &mut env.rng())
        .with_context(|| format!("the VBS store of {} does not open", args.name))?;
    remarks.append(&mut opened.remarks);
    opened.remarks = remarks;
    let mut vms = ShieldedVms::new(&args.dir, args.volume.as_deref(), ledger);
    if args.before_1803 {
        vms = vms.before_1803();
    }
    serve(opened, &args.socket, vms, &env, |report| {
        println!("{}", serde_json::to_string(report)?);
        Ok(())
    })
}

/// Answers the agent on `socket` for good, `vms` being the host's; `ready` gets the report once the socket takes connections.
pub fn serve(
    opened: Opened,
    socket: &Path,
    vms: ShieldedVms,
    env: &Env,
    ready: impl FnOnce(&StoreReport) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let report = StoreReport::of(&opened);
    let store = opened.store;
    // The socket exists before the report, so that whoever has read it can connect.
    let listener = serve::listen(socket)?;
    ready(&report)?;
    serve::serve(&listener, store, vms, &report.remarks, env)
}
