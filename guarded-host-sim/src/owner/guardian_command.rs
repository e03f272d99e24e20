//! `guarded-host-sim guardian`: the owner's guardians (New-, Get-, Remove-, Import- and
//! Export-HgsGuardian of the product).

use std::{
    fmt::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::{Args, Subcommand};
use hgs_protocol::{
    env::{Env, UnixTime},
    protector::{GuardianKeys, KeyPair, Metadata},
};
use hgs_service::pair_files;
use serde::Serialize;

use super::{
    certificate::CertificateView,
    command::{
        PasswordArgs, StoreArgs, harmless, pair_from_pem, pair_from_pfx, print, read_file, read_password, say,
        write_out,
    },
    store::{GuardianName, StoreError, StoredGuardian},
    trust::TrustArgs,
};

/// The owner's guardians: those of one's own, with private keys, and those to authorise.
#[derive(Args, Debug)]
pub struct GuardianArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Make a guardian of your own: self-signed, or from certificates with their private keys
    Create(Box<CreateArgs>),
    /// Take another's guardian, an HGS's say, from its metadata document
    Import(ImportArgs),
    /// Write a guardian's metadata document, or your own guardian's private keys, to files
    Export(ExportArgs),
    /// List the guardians
    List {
        /// Print one JSON document
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Show one guardian's certificates
    Show {
        /// The guardian
        name: String,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Forget a guardian; protectors that were made for it stay as they are
    Remove {
        /// The guardian
        name: String,
        /// Needed for a guardian of your own: without its private keys no protector that it owns can be changed again
        #[arg(long)]
        destroy_private_keys: bool,
        #[command(flatten)]
        store: StoreArgs,
    },
}

#[derive(Args, Debug)]
struct CreateArgs {
    /// The guardian's name
    name: String,
    /// P-256 keys (suite B) instead of RSA-2048 (suite A)
    #[arg(long, conflicts_with_all = ["signing_pfx", "signing_cert"])]
    p256: bool,
    /// PFX with the signing certificate and its private key
    #[arg(long, value_name = "FILE", requires_all = ["signing_pfx_password_file", "encryption_pfx"])]
    signing_pfx: Option<PathBuf>,
    /// File with the password of that PFX
    #[arg(long, value_name = "FILE", requires = "signing_pfx")]
    signing_pfx_password_file: Option<PathBuf>,
    /// PFX with the encryption certificate and its private key
    #[arg(long, value_name = "FILE", requires_all = ["encryption_pfx_password_file", "signing_pfx"])]
    encryption_pfx: Option<PathBuf>,
    /// File with the password of that PFX
    #[arg(long, value_name = "FILE", requires = "encryption_pfx")]
    encryption_pfx_password_file: Option<PathBuf>,
    /// PEM with the signing certificate, and its private key (PKCS#8) if that is not in a file of its own
    #[arg(
        long,
        value_name = "FILE",
        requires = "encryption_cert",
        conflicts_with = "signing_pfx"
    )]
    signing_cert: Option<PathBuf>,
    /// PEM with the private key of the signing certificate
    #[arg(long, value_name = "FILE", requires = "signing_cert")]
    signing_key: Option<PathBuf>,
    /// PEM with the encryption certificate, and its private key (PKCS#8) if that is not in a file of its own
    #[arg(long, value_name = "FILE", requires = "signing_cert")]
    encryption_cert: Option<PathBuf>,
    /// PEM with the private key of the encryption certificate
    #[arg(long, value_name = "FILE", requires = "encryption_cert")]
    encryption_key: Option<PathBuf>,
    #[command(flatten)]
    trust: TrustArgs,
    #[command(flatten)]
    password: PasswordArgs,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Args, Debug)]
struct ImportArgs {
    /// The metadata document: of a KPS, from /keyprotection/service/metadata/2014-07/metadata.xml
    file: PathBuf,
    /// What to call the guardian here
    #[arg(long)]
    name: String,
    #[command(flatten)]
    trust: TrustArgs,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Args, Debug)]
struct ExportArgs {
    /// The guardian
    name: String,
    /// File for the metadata document, which is public
    #[arg(long, value_name = "FILE", required_unless_present = "with_private_keys")]
    out: Option<PathBuf>,
    /// Write the private keys too, each with its certificate as a PFX
    #[arg(long, requires_all = ["signing_pfx", "encryption_pfx", "pfx_password_file"])]
    with_private_keys: bool,
    /// File for the PFX of the signing certificate
    #[arg(long, value_name = "FILE", requires = "with_private_keys")]
    signing_pfx: Option<PathBuf>,
    /// File for the PFX of the encryption certificate
    #[arg(long, value_name = "FILE", requires = "with_private_keys")]
    encryption_pfx: Option<PathBuf>,
    /// File with the password that the PFX files get
    #[arg(long, value_name = "FILE", requires = "with_private_keys")]
    pfx_password_file: Option<PathBuf>,
    #[command(flatten)]
    password: PasswordArgs,
    #[command(flatten)]
    store: StoreArgs,
}

/// A guardian as a script sees it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GuardianView {
    name: String,
    has_private_keys: bool,
    signing_certificate: CertificateView,
    encryption_certificate: CertificateView,
    /// Not primary; such a guardian may have signed protectors by them.
    other_signing_certificates: Vec<CertificateView>,
}

/// Runs one verb.
pub fn run(args: GuardianArgs) -> anyhow::Result<ExitCode> {
    let env = Env::system();
    match args.verb {
        Verb::Create(args) => create(&args, &env)?,
        Verb::Import(args) => import(&args, env.now())?,
        Verb::Export(args) => export(&args)?,
        Verb::List { json, store } => return list(json, &store, env.now()),
        Verb::Show { name, json, store } => {
            let view = GuardianView::of_stored(&store.store().find(&GuardianName::parse(&name)?)?);
            print(json, &view, &view.text(env.now())?)?;
        }
        Verb::Remove {
            name,
            destroy_private_keys,
            store,
        } => remove(&name, destroy_private_keys, &store)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn create(args: &CreateArgs, env: &Env) -> anyhow::Result<()> {
    let name = GuardianName::parse(&args.name)?;
    let password = args.password.password()?;
    let (now, rng) = (env.now(), &mut env.rng());
    let keys = match pairs(args)? {
        Some((signing, encryption)) => {
            let keys = GuardianKeys::from_pairs(name.as_str(), signing, encryption);
            args.trust.rules()?.check(&keys.guardian()?, now)?;
            keys
        }
        None if args.p256 => GuardianKeys::generate_p256(name.as_str(), now, rng)?,
        None => GuardianKeys::generate(name.as_str(), now, rng)?,
    };
    let stored = args.store.store().add_own(&keys, &password, rng)?;
    let text = GuardianView::of_stored(&stored).text(now)?;
    say(&format!("made a guardian\n{text}"))
}

/// The pairs to take over, if any were named.
fn pairs(args: &CreateArgs) -> anyhow::Result<Option<(KeyPair, KeyPair)>> {
    let pfx = |file: &Path, password: &Option<PathBuf>| {
        let password = password.as_deref().context("each PFX needs a file with its password")?;
        pair_from_pfx(file, password)
    };
    let pem = |certificate: &Path, key: &Option<PathBuf>| pair_from_pem(certificate, key.as_deref());
    if let (Some(signing), Some(encryption)) = (&args.signing_pfx, &args.encryption_pfx) {
        let signing = pfx(signing, &args.signing_pfx_password_file)?;
        return Ok(Some((signing, pfx(encryption, &args.encryption_pfx_password_file)?)));
    }
    if let (Some(signing), Some(encryption)) = (&args.signing_cert, &args.encryption_cert) {
        let signing = pem(signing, &args.signing_key)?;
        return Ok(Some((signing, pem(encryption, &args.encryption_key)?)));
    }
    Ok(None)
}

fn import(args: &ImportArgs, now: UnixTime) -> anyhow::Result<()> {
    let name = GuardianName::parse(&args.name)?;
    let document = read_file(&args.file, LONGEST_DOCUMENT)?;
    let what = || format!("cannot import {}", args.file.display());
    let metadata = Metadata::import(&document, name.as_str())
        .map_err(harmless)
        .with_context(what)?;
    let text = GuardianView::of(&name, &metadata, false).text(now)?;
    if let Err(distrusted) = args.trust.rules()?.check(metadata.guardian(), now) {
        // Whoever is to compare thumbprints needs both, also where the first is already refused.
        eprintln!("not imported:\n{text}");
        return Err(distrusted).with_context(what);
    }
    args.store.store().add_imported(&name, &document)?;
    say(&format!(
        "imported a guardian\n{text}\nBefore you authorise it, compare both thumbprints with those that the HGS \
             administrator reads to you\nfrom the service itself (Get-HgsKeyProtectionCertificate; here: GET \
             /admin/v1/certificates of the KPS):\nthe document came over a network, and its signature proves only that \
             it is whole.\n"
    ))
}

fn export(args: &ExportArgs) -> anyhow::Result<()> {
    let stored = args.store.store().find(&GuardianName::parse(&args.name)?)?;
    if let (Some(signing), Some(encryption), Some(password)) =
        (&args.signing_pfx, &args.encryption_pfx, &args.pfx_password_file)
    {
        let keys = stored.unlock(&args.password.password()?)?;
        let password = read_password(password)?;
        if password.chars().count() < 10 {
            return Err(StoreError::ShortPassword.into());
        }
        for (file, pairs, kind) in [
            (signing, keys.signing(), "Signing"),
            (encryption, keys.encryption(), "Encryption"),
        ] {
            let pair = pairs.first().context("a guardian has a pair of each kind")?;
            let pfx = pair_files::to_pfx(pair, &format!("{} {kind}", stored.name()), &password)?;
            write_out(file, &pfx, 0o600)?;
        }
        say("wrote both PFX files: guard them as you guard the protectors they open\n")?;
    }
    if let Some(out) = &args.out {
        write_out(out, stored.document(), 0o644)?;
        say(&format!(
            "wrote the metadata of {} to {}\n",
            stored.name(),
            out.display()
        ))?;
    }
    Ok(())
}

fn list(json: bool, store: &StoreArgs, now: UnixTime) -> anyhow::Result<ExitCode> {
    let (mut views, mut damaged) = (Vec::new(), false);
    for entry in store.store().list()? {
        match entry {
            Ok(stored) => views.push(GuardianView::of_stored(&stored)),
            Err(error) => {
                damaged = true;
                eprintln!("left out: {error}");
            }
        }
    }
    let mut text = String::new();
    for view in &views {
        text.push_str(&view.text(now)?);
    }
    if views.is_empty() {
        text.push_str("no guardians: `guardian create` makes one of your own, `guardian import` takes another's\n");
    }
    print(json, &views, &text)?;
    Ok(if damaged { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn remove(name: &str, destroy_private_keys: bool, store: &StoreArgs) -> anyhow::Result<()> {
    let (name, store) = (GuardianName::parse(name)?, store.store());
    match store.find(&name) {
        Ok(stored) if !stored.has_private_keys() => {}
        Err(error @ (StoreError::Unknown { .. } | StoreError::File { .. })) => return Err(error.into()),
        // A damaged file may have held keys, too.
        Ok(_) | Err(_) => anyhow::ensure!(
            destroy_private_keys,
            "{name} has private keys here, and without them no protector that it owns can be changed or opened by its \
             owner again: export them first, or repeat with --destroy-private-keys"
        ),
    }
    store.remove(&name)?;
    say(&format!("removed {name}\n"))
}

impl GuardianView {
    fn of_stored(stored: &StoredGuardian) -> GuardianView {
        GuardianView::of(stored.name(), stored.metadata(), stored.has_private_keys())
    }

    fn of(name: &GuardianName, metadata: &Metadata, has_private_keys: bool) -> GuardianView {
        let guardian = metadata.guardian();
        GuardianView {
            name: name.to_string(),
            has_private_keys,
            signing_certificate: CertificateView::of(guardian.signing()),
            encryption_certificate: CertificateView::of(guardian.encryption()),
            other_signing_certificates: metadata.other_signing().iter().map(CertificateView::of).collect(),
        }
    }

    fn text(&self, now: UnixTime) -> Result<String, fmt::Error> {
        let mut out = String::new();
        let keys = if self.has_private_keys {
            "private keys here"
        } else {
            "certificates only"
        };
        writeln!(out, "{} ({keys})", self.name)?;
        write!(out, "  signing certificate\n{}", self.signing_certificate.text(4, now))?;
        write!(
            out,
            "  encryption certificate\n{}",
            self.encryption_certificate.text(4, now)
        )?;
        for other in &self.other_signing_certificates {
            write!(out, "  other signing certificate\n{}", other.text(4, now))?;
        }
        Ok(out)
    }
}

const LONGEST_DOCUMENT: usize = 1 << 20;
