//! `guarded-host-sim shielding-data`: shielding data files as their owner makes them (New-ShieldingDataFile,
//! Test-ShieldingDataApplicability, Get-KeyProtectorFromShieldingDataFile of the product).

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
};

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use hgs_protocol::{
    env::{Env, UnixTime},
    protector::KeyProtector,
};
use serde::Serialize;
use zeroize::Zeroizing;

use super::{
    data_file::{
        ANSWER_FILE, Contents, DataFile, DataFileId, FileName, LARGEST_CONTENTS, LARGEST_DATA_FILE, NamedFile,
        NewDataFile,
    },
    qualifier::{Qualifier, VersionRule, qualify},
    template_command::catalogue_of,
};
use crate::{
    owner::{
        certificate::{CertificateView, printable},
        command::{harmless, print, read_file, say, write_out},
        inspect::Inspection,
        protector_command::{AccessArgs, NewArgs},
    },
    vm::security::Kind,
};

/// Shielding data files.
#[derive(Args, Debug)]
pub struct DataArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Make a file: a new key protector, and sealed under its transport key the files for the VM
    Create(Box<CreateArgs>),
    /// Say what is in a file; without a key, what is public. The content of the files is never shown
    Inspect(InspectArgs),
    /// Say whether a file takes a template, and fail if it does not
    Test(TestArgs),
    /// Write the key protector of a file to another file
    Protector(ProtectorArgs),
}

#[derive(Args, Debug)]
struct CreateArgs {
    /// A template that may be used: RULE:FILE, RULE one of equals, greater-than, greater-than-or-equals, FILE its catalogue
    /// (.vsc) or disk; may be repeated
    #[arg(long = "volume-id-qualifier", value_name = "RULE:FILE", required = true)]
    qualifiers: Vec<RuleAndFile>,
    /// The answer file, with the administrator's password: unattend.xml in the guest
    #[arg(long, value_name = "FILE")]
    answer_file: PathBuf,
    /// Another file for the guest, under its own name; may be repeated
    #[arg(long = "other-file", value_name = "FILE")]
    other_files: Vec<PathBuf>,
    /// The kind of the VMs
    #[arg(long, value_enum, default_value = "shielded")]
    policy: Kind,
    /// File for the shielding data
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    new: NewArgs,
}

#[derive(Args, Debug)]
struct InspectArgs {
    /// The shielding data file
    file: PathBuf,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    /// Open it with the private keys of this guardian and list what is in it
    #[arg(long, value_name = "GUARDIAN")]
    open_with: Option<String>,
    #[command(flatten)]
    access: AccessArgs,
}

#[derive(Args, Debug)]
struct TestArgs {
    /// The shielding data file
    file: PathBuf,
    /// The template's catalogue (.vsc) or disk
    #[arg(long, value_name = "FILE")]
    template: PathBuf,
}

#[derive(Args, Debug)]
struct ProtectorArgs {
    /// The shielding data file
    file: PathBuf,
    /// File for the protector
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// `equals:server.vsc`.
#[derive(Clone, Debug)]
struct RuleAndFile(VersionRule, PathBuf);

impl FromStr for RuleAndFile {
    type Err = String;
    fn from_str(text: &str) -> Result<RuleAndFile, String> {
        let wanted = "give RULE:FILE, RULE one of equals, greater-than, greater-than-or-equals";
        let (rule, file) = text.split_once(':').ok_or(wanted)?;
        let rule = VersionRule::from_str(rule, true).map_err(|_| wanted)?;
        Ok(RuleAndFile(rule, PathBuf::from(file)))
    }
}

/// A shielding data file as a person or a script sees it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DataFileView {
    id: DataFileId,
    policy: Kind,
    /// Whether the owner signed the file as it is.
    signature_holds: bool,
    /// If not, why.
    reason: Option<String>,
    templates: Vec<QualifierView>,
    /// Bytes of the sealed files.
    sealed_length: usize,
    /// What is sealed; null unless it was opened.
    contents: Option<Vec<FileView>>,
    /// If it was to be opened and was not, why.
    closed: Option<String>,
    protector: Inspection,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct QualifierView {
    name: String,
    rule: VersionRule,
    version: String,
    root: String,
    signer: CertificateView,
}

#[derive(Serialize)]
struct FileView {
    name: String,
    length: usize,
}

/// Runs one verb.
pub fn run(args: DataArgs) -> anyhow::Result<ExitCode> {
    let env = Env::system();
    match args.verb {
        Verb::Create(args) => create(&args, &env)?,
        Verb::Inspect(args) => return inspect(&args, &env),
        Verb::Test(args) => test(&args)?,
        Verb::Protector(args) => {
            write_out(&args.out, read(&args.file)?.protector(), 0o644)?;
            say(&format!("wrote {}\n", args.out.display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn create(args: &CreateArgs, env: &Env) -> anyhow::Result<()> {
    let mut qualifiers = Vec::new();
    for RuleAndFile(rule, file) in &args.qualifiers {
        qualifiers.push(Qualifier::of(&catalogue_of(file)?, *rule));
    }
    let secret = |path: &Path| read_file(path, LARGEST_CONTENTS).map(Zeroizing::new);
    let mut others = Vec::new();
    for path in &args.other_files {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.with_context(|| format!("{} names no file", path.display()))?;
        others.push(NamedFile {
            name: FileName::parse(name)?,
            content: secret(path)?,
        });
    }
    let contents = Contents::new(secret(&args.answer_file)?, others, &mut env.rng())?;
    let made = args.new.make(env)?;
    let new = NewDataFile {
        protector: (&made.protector, &made.key),
        policy: args.policy,
        qualifiers: &qualifiers,
        contents: &contents,
    };
    let bytes = new.seal(&made.owner, &mut env.rng())?;
    write_out(&args.out, &bytes, 0o644)?;
    let mut text = format!(
        "wrote {}: for {} VMs of {}\n",
        args.out.display(),
        args.policy,
        made.whom
    );
    writeln!(
        text,
        "trusted templates; compare the signers' thumbprints with what their makers say"
    )?;
    for qualifier in &qualifiers {
        text.push_str(&QualifierView::of(qualifier).text(env.now())?);
    }
    say(&text)
}

fn inspect(args: &InspectArgs, env: &Env) -> anyhow::Result<ExitCode> {
    let file = read(&args.file)?;
    let what = || format!("the key protector in {}", args.file.display());
    let protector = KeyProtector::parse(file.protector())
        .map_err(harmless)
        .with_context(what)?;
    let (protector, opened) = args.access.inspect(&protector, args.open_with.as_deref(), env)?;
    let mut view = DataFileView {
        id: file.id(),
        policy: file.policy(),
        signature_holds: false,
        reason: None,
        templates: file.qualifiers().iter().map(QualifierView::of).collect(),
        sealed_length: file.sealed_length(),
        contents: None,
        closed: None,
        protector,
    };
    match (file.verify(), opened) {
        (Err(error), _) => view.reason = Some(printable(&error.to_string())),
        (Ok(_), None) => view.signature_holds = true,
        (Ok(signed), Some(opened)) => {
            view.signature_holds = true;
            match signed.open(opened.transport_key()) {
                Ok(data) => view.contents = Some(list(data.contents())),
                Err(error) => view.closed = Some(error.to_string()),
            }
        }
    }
    let good = view.signature_holds && view.protector.signatures_hold && view.closed.is_none();
    let text = view.text(&args.file.display().to_string(), env.now())?;
    print(args.json, &view, &text)?;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn test(args: &TestArgs) -> anyhow::Result<()> {
    let what = || args.file.display().to_string();
    let signed = read(&args.file)?.verify().map_err(harmless).with_context(what)?;
    let catalogue = catalogue_of(&args.template)?;
    match qualify(signed.file().qualifiers(), &catalogue) {
        Ok(()) => say("the shielding data takes this template\n"),
        Err(error) => bail!(harmless(error)),
    }
}

fn read(path: &Path) -> anyhow::Result<DataFile> {
    let bytes = read_file(path, LARGEST_DATA_FILE)?;
    DataFile::parse(&bytes)
        .map_err(harmless)
        .with_context(|| path.display().to_string())
}

fn list(contents: &Contents) -> Vec<FileView> {
    let answer = (ANSWER_FILE, contents.answer_file().len());
    let others = contents.other_files().iter();
    let others = others.map(|file| (file.name.as_str(), file.content.len()));
    let view = |(name, length): (&str, usize)| FileView {
        name: name.to_owned(),
        length,
    };
    std::iter::once(answer).chain(others).map(view).collect()
}

impl DataFileView {
    fn text(&self, title: &str, now: UnixTime) -> anyhow::Result<String> {
        let mut out = format!("{title}: shielding data {} for {} VMs\n", self.id, self.policy);
        match &self.reason {
            None => writeln!(out, "  signed by its owner as it is")?,
            Some(reason) => writeln!(out, "  NOT to be relied on: {reason}")?,
        }
        writeln!(out, "trusted templates")?;
        for template in &self.templates {
            out.push_str(&template.text(now)?);
        }
        match (&self.contents, &self.closed) {
            (None, None) => writeln!(
                out,
                "sealed files: {} bytes; --open-with lists them",
                self.sealed_length
            )?,
            (None, Some(reason)) => writeln!(out, "sealed files: NOT opened: {reason}")?,
            (Some(files), _) => {
                writeln!(out, "sealed files")?;
                for file in files {
                    writeln!(out, "  {} ({} bytes)", printable(&file.name), file.length)?;
                }
            }
        }
        out.push('\n');
        out.push_str(&self.protector.text(title, now)?);
        Ok(out)
    }
}

impl QualifierView {
    fn of(qualifier: &Qualifier) -> QualifierView {
        QualifierView {
            name: printable(qualifier.name.as_str()),
            rule: qualifier.rule,
            version: qualifier.version.to_string(),
            root: hex::encode(qualifier.root),
            signer: CertificateView::of(&qualifier.signer),
        }
    }

    fn text(&self, now: UnixTime) -> anyhow::Result<String> {
        let rule = match self.rule {
            VersionRule::Equals => format!("version {} with the content {}", self.version, self.root),
            VersionRule::GreaterThan => format!("versions after {}", self.version),
            VersionRule::GreaterThanOrEquals => format!("version {} and later", self.version),
        };
        Ok(format!(
            "  {}: {rule}, signed by\n{}",
            self.name,
            self.signer.text(4, now)
        ))
    }
}
