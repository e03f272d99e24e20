//! `guarded-host-sim template`: template disks as their maker signs them (Protect-TemplateDisk, Save-VolumeSignatureCatalog
//! of the product).

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use hgs_protocol::{
    env::{Env, UnixTime},
    protector::{KeyPair, KeyPurpose, suite::Suite},
};
use hgs_service::pair_files;
use serde::Serialize;

use super::{
    catalogue::{Catalogue, LARGEST_CATALOGUE, SignedCatalogue, TemplateName, Version},
    template::{TemplateDisk, TemplateError, protect},
};
use crate::owner::{
    certificate::CertificateView,
    command::{harmless, pair_from_pem, pair_from_pfx, print, read_file, read_password, say, write_out},
};

/// Template disks: volumes that their maker has signed, for shielded VMs to be made of.
#[derive(Args, Debug)]
pub struct TemplateArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Sign a disk: its hashes go behind the volume, and it is a template from then on
    Protect(ProtectArgs),
    /// Write a template's volume signature catalogue to a file (.vsc), for owners of VMs to name it
    Catalogue(CatalogueArgs),
    /// Show what a template disk or a catalogue says; every hash of a disk is compared
    Inspect(InspectArgs),
    /// Make a self-signed certificate to sign templates with
    Certificate(CertificateArgs),
}

#[derive(Args, Debug)]
struct ProtectArgs {
    /// The disk: any image of a volume
    disk: PathBuf,
    /// What the template is called
    #[arg(long)]
    name: TemplateName,
    /// Its version: two to four numbers
    #[arg(long)]
    version: Version,
    /// File for the template; without it, the disk itself becomes one
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    signer: SignerArgs,
}

#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("signer").required(true))]
struct SignerArgs {
    /// PEM with the signing certificate, and its private key (PKCS#8) if that is not in a file of its own
    #[arg(long, value_name = "FILE", group = "signer")]
    certificate: Option<PathBuf>,
    /// PEM with the private key of the certificate
    #[arg(long, value_name = "FILE", requires = "certificate")]
    certificate_key: Option<PathBuf>,
    /// PFX with the signing certificate and its private key, instead
    #[arg(long, value_name = "FILE", group = "signer", requires = "pfx_password_file")]
    pfx: Option<PathBuf>,
    /// File with the password of that PFX
    #[arg(long, value_name = "FILE", requires = "pfx")]
    pfx_password_file: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct CatalogueArgs {
    /// The template disk
    disk: PathBuf,
    /// File for the catalogue
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Args, Debug)]
struct InspectArgs {
    /// The template disk or the catalogue
    file: PathBuf,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct CertificateArgs {
    /// Common name of the certificate
    #[arg(long)]
    name: String,
    /// File for the PFX with certificate and private key
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// File with the password that the PFX gets, of 10 characters at least
    #[arg(long, value_name = "FILE")]
    password_file: PathBuf,
    /// A P-256 key instead of RSA-2048
    #[arg(long)]
    p256: bool,
}

/// A catalogue as a person or a script sees it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CatalogueView {
    name: TemplateName,
    version: Version,
    /// Bytes of the volume.
    volume_length: u64,
    blocks: usize,
    /// Stands for all hashes, hex.
    root: String,
    signer: CertificateView,
    /// Whether every block of the disk is as it was signed; null of a catalogue by itself.
    blocks_match: Option<bool>,
}

/// Runs one verb.
pub fn run(args: &TemplateArgs) -> anyhow::Result<()> {
    let env = Env::system();
    match &args.verb {
        Verb::Protect(args) => sign(args, env.now()),
        Verb::Catalogue(args) => {
            let what = || format!("cannot use {}", args.disk.display());
            let disk = TemplateDisk::open(&args.disk).with_context(what)?;
            write_out(&args.out, &disk.catalogue().encode(), 0o644)?;
            let view = CatalogueView::of(disk.catalogue(), None);
            say(&format!("wrote {}\n{}", args.out.display(), view.text(env.now())?))
        }
        Verb::Inspect(args) => inspect(args, env.now()),
        Verb::Certificate(args) => certificate(args, &env),
    }
}

fn sign(args: &ProtectArgs, now: UnixTime) -> anyhow::Result<()> {
    let what = || format!("cannot sign {}", args.disk.display());
    let signer = args.signer.read()?;
    // Through a link to the disk itself, which the link goes on naming.
    let disk = fs::canonicalize(&args.disk).with_context(what)?;
    let mut from = File::open(&disk).with_context(what)?;
    let target = args.out.as_deref().unwrap_or(&disk);
    let folder = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut to = tempfile::Builder::new().tempfile_in(folder).with_context(what)?;
    let catalogue =
        protect(&mut from, to.as_file_mut(), args.name.clone(), args.version, &signer).with_context(what)?;
    to.as_file().set_permissions(from.metadata()?.permissions())?;
    to.as_file().sync_all()?;
    // All or nothing, and in place of nothing but the disk itself.
    match &args.out {
        Some(out) => drop(
            to.persist_noclobber(out)
                .map_err(|error| error.error)
                .with_context(|| format!("cannot write {}", out.display()))?,
        ),
        None => drop(to.persist(&disk).map_err(|error| error.error).with_context(what)?),
    }
    File::open(folder)?.sync_all()?;
    let view = CatalogueView::of(&catalogue, Some(true));
    say(&format!("{} is a template\n{}", target.display(), view.text(now)?))
}

fn inspect(args: &InspectArgs, now: UnixTime) -> anyhow::Result<()> {
    let what = || args.file.display().to_string();
    let view = match read(&args.file)? {
        Found::Catalogue(catalogue) => CatalogueView::of(&catalogue, None),
        Found::Disk(disk) => {
            disk.check().with_context(what)?;
            CatalogueView::of(disk.catalogue(), Some(true))
        }
    };
    print(
        args.json,
        &view,
        &format!("{}\n{}", args.file.display(), view.text(now)?),
    )
}

fn certificate(args: &CertificateArgs, env: &Env) -> anyhow::Result<()> {
    let password = read_password(&args.password_file)?;
    if password.chars().count() < 10 {
        bail!("the password must have at least 10 characters: it is all that guards the private key in the file");
    }
    let suite = if args.p256 { Suite::P256 } else { Suite::Rsa };
    let now = env.now();
    let pair = KeyPair::generate(suite, KeyPurpose::Signing, &args.name, now, &mut env.rng())?;
    write_out(&args.out, &pair_files::to_pfx(&pair, &args.name, &password)?, 0o600)?;
    let view = CertificateView::of(pair.certificate());
    say(&format!("wrote {}\n{}", args.out.display(), view.text(2, now)))
}

impl SignerArgs {
    fn read(&self) -> anyhow::Result<KeyPair> {
        match (&self.certificate, &self.pfx, &self.pfx_password_file) {
            (Some(certificate), ..) => pair_from_pem(certificate, self.certificate_key.as_deref()),
            (None, Some(pfx), Some(password)) => pair_from_pfx(pfx, password),
            _ => bail!("name the certificate to sign with"),
        }
    }
}

impl CatalogueView {
    pub(super) fn of(catalogue: &SignedCatalogue, blocks_match: Option<bool>) -> CatalogueView {
        let identity = catalogue.identity();
        CatalogueView {
            name: identity.name.clone(),
            version: identity.version,
            volume_length: identity.length,
            blocks: catalogue.blocks(),
            root: hex::encode(identity.root),
            signer: CertificateView::of(catalogue.signer()),
            blocks_match,
        }
    }

    pub(super) fn text(&self, now: UnixTime) -> anyhow::Result<String> {
        let mut out = String::new();
        let name = crate::owner::certificate::printable(self.name.as_str());
        writeln!(out, "  template {name}, version {}", self.version)?;
        let compared = match self.blocks_match {
            Some(_) => ", each as it was signed",
            None => "",
        };
        writeln!(
            out,
            "  volume of {} bytes in {} blocks{compared}",
            self.volume_length, self.blocks
        )?;
        writeln!(out, "  hash of the blocks {}", self.root)?;
        writeln!(out, "  signed by (its signature holds)")?;
        write!(out, "{}", self.signer.text(4, now))?;
        Ok(out)
    }
}

/// The catalogue in a file, or of a template disk.
pub(crate) fn catalogue_of(path: &Path) -> anyhow::Result<SignedCatalogue> {
    Ok(match read(path)? {
        Found::Catalogue(catalogue) => catalogue,
        Found::Disk(disk) => disk.catalogue().clone(),
    })
}

enum Found {
    Catalogue(SignedCatalogue),
    Disk(TemplateDisk),
}

/// A template bears its mark at the end; what does not may be a catalogue.
fn read(path: &Path) -> anyhow::Result<Found> {
    let what = || format!("cannot use {}", path.display());
    match TemplateDisk::open(path) {
        Ok(disk) => Ok(Found::Disk(disk)),
        Err(TemplateError::NotSigned) if Catalogue::begins(&read_start(path).with_context(what)?) => {
            let bytes = read_file(path, LARGEST_CATALOGUE)?;
            let catalogue = Catalogue::parse(&bytes).and_then(Catalogue::verify);
            Ok(Found::Catalogue(catalogue.map_err(harmless).with_context(what)?))
        }
        Err(error) => Err(error).with_context(what),
    }
}

fn read_start(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut start = Vec::new();
    File::open(path)?.take(8).read_to_end(&mut start)?;
    Ok(start)
}
