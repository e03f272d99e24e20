//! `guarded-host-sim protector`: key protectors as their owner makes, changes and examines them
//! (New-HgsKeyProtector, Grant- and Revoke-HgsKeyProtectorAccess, ConvertTo-HgsKeyProtector of the
//! product).

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use hgs_protocol::{
    env::Env,
    protector::{ChainedProtector, GuardianKeys, KeyProtector, MAX_PROTECTOR, OpenedProtector, WrappingId},
    secret::TransportKey,
};

use super::{
    command::{PasswordArgs, StoreArgs, harmless, print, read_file, say, write_out},
    inspect::{Inspection, Opening},
    store::{GuardianName, GuardianStore, StoredGuardian, replace},
    trust::TrustArgs,
};

/// Key protectors: the document that holds a VM's transport key for its owner and for each guardian it authorises.
#[derive(Args, Debug)]
pub struct ProtectorArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Make a protector with a new transport key
    Create(CreateArgs),
    /// Let one more guardian open a protector; needs the owner's private keys
    Grant(GrantArgs),
    /// Take a guardian out of a protector; needs the owner's private keys.
    ///
    /// The transport key stays, since the VM's state is sealed under it. So the guardian still opens older copies of
    /// the protector, and with them every state that was sealed under this key. That ends for the state that follows
    /// when the VM next starts on a guarded host: the service then brings a new key, for the others alone.
    Revoke(RevokeArgs),
    /// Say what is in a protector, which signatures hold and who can open it; fails if a signature does not hold
    Inspect(InspectArgs),
}

#[derive(Args, Debug)]
struct CreateArgs {
    /// File for the protector
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    new: NewArgs,
}

/// Who is to open a new protector.
#[derive(Args, Debug)]
pub(crate) struct NewArgs {
    /// The owner: a guardian with private keys here
    #[arg(long)]
    owner: String,
    /// A guardian that may open the protector; may be repeated
    #[arg(long = "guardian", value_name = "GUARDIAN")]
    guardians: Vec<String>,
    /// How often a host may start the VM without contact, if the service allows as much; not signed
    #[arg(long, value_name = "N", default_value_t = 0)]
    max_offline_unwraps: u32,
    #[command(flatten)]
    trust: TrustArgs,
    #[command(flatten)]
    access: AccessArgs,
}

/// A new protector with what went into it.
pub(crate) struct NewProtector {
    pub(crate) owner: GuardianKeys,
    pub(crate) protector: KeyProtector,
    pub(crate) key: TransportKey,
    /// For whom it is, for a person.
    pub(crate) whom: String,
}

#[derive(Args, Debug)]
struct GrantArgs {
    /// The protector
    file: PathBuf,
    /// The guardian
    #[arg(long)]
    guardian: String,
    #[command(flatten)]
    trust: TrustArgs,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Args, Debug)]
struct RevokeArgs {
    /// The protector
    file: PathBuf,
    /// The guardian
    #[arg(long, required_unless_present = "wrapping", conflicts_with = "wrapping")]
    guardian: Option<String>,
    /// The wrapping instead, by its Id, when its guardian is not in the store
    #[arg(long, value_name = "ID")]
    wrapping: Option<u32>,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Args, Debug)]
struct InspectArgs {
    /// The protector
    file: PathBuf,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    /// Open it with the private keys of this guardian too, which alone shows whether the transport key is the one meant
    #[arg(long, value_name = "GUARDIAN")]
    open_with: Option<String>,
    #[command(flatten)]
    access: AccessArgs,
}

#[derive(Args, Debug)]
struct ChangeArgs {
    /// The owner; without it, the guardian in the store that owns the protector
    #[arg(long)]
    owner: Option<String>,
    /// File for the changed protector; without it, the protector itself is replaced
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    access: AccessArgs,
}

/// The owner's guardians and the password over their keys.
#[derive(Args, Debug)]
pub(crate) struct AccessArgs {
    #[command(flatten)]
    password: PasswordArgs,
    #[command(flatten)]
    store: StoreArgs,
}

/// Runs one verb.
pub fn run(args: ProtectorArgs) -> anyhow::Result<ExitCode> {
    let env = Env::system();
    match args.verb {
        Verb::Create(args) => create(&args, &env)?,
        Verb::Grant(args) => grant(&args, &env)?,
        Verb::Revoke(args) => revoke(&args, &env)?,
        Verb::Inspect(args) => return inspect(&args, &env),
    }
    Ok(ExitCode::SUCCESS)
}

fn create(args: &CreateArgs, env: &Env) -> anyhow::Result<()> {
    let made = args.new.make(env)?;
    write_out(&args.out, &made.protector.to_xml(), 0o644)?;
    say(&format!(
        "wrote {}: a new transport key for {}\n",
        args.out.display(),
        made.whom
    ))
}

impl NewArgs {
    /// Checks the certificates and makes the protector.
    pub(crate) fn make(&self, env: &Env) -> anyhow::Result<NewProtector> {
        let (store, rules) = (self.access.store.store(), self.trust.rules()?);
        let owner = find(&store, &self.owner)?;
        let mut guardians = Vec::new();
        for name in &self.guardians {
            let guardian = find(&store, name)?.guardian().clone();
            if [owner.guardian()]
                .into_iter()
                .chain(&guardians)
                .any(|known| known.signing() == guardian.signing() && known.encryption() == guardian.encryption())
            {
                bail!(
                    "{name} is named twice, by this name or another: each guardian, the owner among them, opens it once"
                );
            }
            guardians.push(guardian);
        }
        for guardian in [owner.guardian()].into_iter().chain(&guardians) {
            rules.check(guardian, env.now())?;
        }
        let keys = self.access.unlock(&owner)?;
        let (protector, key) = KeyProtector::create(&keys, &guardians, &mut env.rng())?;
        let others = match guardians.as_slice() {
            [] => "for nobody else".to_owned(),
            some => {
                let names: Vec<_> = some.iter().map(|guardian| guardian.name()).collect();
                format!("and for {}", names.join(", "))
            }
        };
        Ok(NewProtector {
            protector: protector.with_max_offline_unwraps(self.max_offline_unwraps),
            key,
            whom: format!("its owner {}, {others}", owner.name()),
            owner: keys,
        })
    }
}

fn grant(args: &GrantArgs, env: &Env) -> anyhow::Result<()> {
    let store = args.change.access.store.store();
    let guardian = find(&store, &args.guardian)?;
    args.trust.rules()?.check(guardian.guardian(), env.now())?;
    let (opened, owner) = args.change.open(&args.file, env)?;
    let granted = opened.grant(&owner, guardian.guardian(), &mut env.rng())?;
    args.change.write(&args.file, &granted)?;
    say(&format!(
        "{} may open the protector now; the transport key and the other wrappings are as they were\n",
        guardian.name()
    ))
}

fn revoke(args: &RevokeArgs, env: &Env) -> anyhow::Result<()> {
    let (opened, owner) = args.change.open(&args.file, env)?;
    let wrapping = match (&args.guardian, args.wrapping) {
        (Some(name), _) => {
            let guardian = find(&args.change.access.store.store(), name)?;
            let protector = opened.chained().protector();
            protector.wrapping_of(guardian.guardian()).with_context(|| {
                format!(
                    "no wrapping has the certificates of {name}: `protector inspect` shows whose they are, and \
                     --wrapping takes one by its Id"
                )
            })?
        }
        (None, Some(id)) => WrappingId(id),
        (None, None) => bail!("name the guardian or the wrapping"),
    };
    let revoked = opened.revoke(&owner, wrapping)?;
    args.change.write(&args.file, &revoked.protector)?;
    let mut text = format!("removed wrapping {wrapping}");
    for other in revoked.removed.iter().skip(1) {
        text.push_str(&format!(", and wrapping {other}, for which only it vouched"));
    }
    say(&(text
        + "\nThe transport key is as it was: whoever was revoked still opens older copies of this protector, and with\n\
           them every state of the VM sealed under this key. Give the VM this protector and start it once on a guarded\n\
           host: what it writes from then on is under a new key.\n"))
}

fn inspect(args: &InspectArgs, env: &Env) -> anyhow::Result<ExitCode> {
    // Nobody's key is used on a protector that services refuse, so SHA-1 is only looked at.
    let bytes = read_file(&args.file, MAX_PROTECTOR)?;
    let what = || format!("cannot read {}", args.file.display());
    let protector = KeyProtector::parse_allowing_sha1(&bytes)
        .map_err(harmless)
        .with_context(what)?;
    let (inspection, _) = args.access.inspect(&protector, args.open_with.as_deref(), env)?;
    let text = inspection.text(&args.file.display().to_string(), env.now())?;
    print(args.json, &inspection, &text)?;
    Ok(match inspection.signatures_hold {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

impl AccessArgs {
    /// What can be told about a protector with the guardians that are here, and the protector opened if a guardian's
    /// keys were named and do it.
    pub(crate) fn inspect(
        &self,
        protector: &KeyProtector,
        open_with: Option<&str>,
        env: &Env,
    ) -> anyhow::Result<(Inspection, Option<OpenedProtector>)> {
        let store = self.store.store();
        let mut guardians = Vec::new();
        for entry in store.list()? {
            match entry {
                Ok(stored) => guardians.push(stored),
                Err(error) => eprintln!("not compared with: {error}"),
            }
        }
        let (opening, opened) = match open_with {
            None => (Opening::NotTried, None),
            Some(name) => {
                let keys = self.unlock(&find(&store, name)?)?;
                match open(&protector.to_xml(), &keys, env) {
                    Ok(opened) => (Opening::Tried(name.to_owned(), Ok(opened.wrapping().0)), Some(opened)),
                    Err(error) => (Opening::Tried(name.to_owned(), Err(error.to_string())), None),
                }
            }
        };
        Ok((Inspection::of(protector, &guardians, &opening), opened))
    }

    /// A guardian's keys.
    pub(crate) fn keys(&self, name: &str) -> anyhow::Result<GuardianKeys> {
        self.unlock(&find(&self.store.store(), name)?)
    }

    fn unlock(&self, guardian: &StoredGuardian) -> anyhow::Result<GuardianKeys> {
        // Before the password is asked for, which would not help.
        if !guardian.has_private_keys() {
            bail!(super::store::StoreError::NoPrivateKeys(guardian.name().clone()));
        }
        Ok(guardian.unlock(&self.password.password()?)?)
    }
}

impl ChangeArgs {
    /// The protector, opened by its owner, and the owner's keys.
    fn open(&self, file: &Path, env: &Env) -> anyhow::Result<(OpenedProtector, GuardianKeys)> {
        let what = || format!("cannot change {}", file.display());
        let bytes = read_file(file, MAX_PROTECTOR)?;
        let chained = verify(&bytes).with_context(what)?;
        let store = self.access.store.store();
        let owner = match &self.owner {
            Some(name) => find(&store, name)?,
            None => {
                let known = store.list()?.into_iter().flatten();
                let mut owners = known.filter(|stored| chained.owner() == Some(stored.guardian().signing()));
                let owner = owners.find(StoredGuardian::has_private_keys);
                owner.context("no guardian in the store with private keys owns this protector, and only its owner can change it: name the store with --dir, or its owner with --owner")?
            }
        };
        let keys = self.access.unlock(&owner)?;
        let opened = chained.open(&keys, &mut env.rng()).with_context(what)?;
        Ok((opened, keys))
    }

    fn write(&self, file: &Path, protector: &KeyProtector) -> anyhow::Result<()> {
        match &self.out {
            Some(out) => write_out(out, &protector.to_xml(), 0o644),
            None => {
                let written = replace(file, &protector.to_xml());
                written.with_context(|| format!("cannot write {}, which is as it was", file.display()))
            }
        }
    }
}

fn open(bytes: &[u8], keys: &GuardianKeys, env: &Env) -> anyhow::Result<OpenedProtector> {
    Ok(verify(bytes)?.open(keys, &mut env.rng())?)
}

fn verify(bytes: &[u8]) -> anyhow::Result<ChainedProtector> {
    let protector = KeyProtector::parse(bytes).map_err(harmless)?;
    protector.verify().map_err(harmless)
}

fn find(store: &GuardianStore, name: &str) -> anyhow::Result<StoredGuardian> {
    Ok(store.find(&GuardianName::parse(name)?)?)
}
