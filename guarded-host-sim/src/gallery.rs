//! `gallery`: the boot logs of real machines whose shape a host can take, and what each shows: firmware,
//! TPM, Secure Boot, VSM, and which policies a host of that shape fails, as the machine was and put in order.
//!
//! Hosts are judged by the `attestation` program beside this one (`inspect-log`), on the log that such a host
//! would write; no TPM is needed. What a log shows is nobody's claim about the machine it came from.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};
use hgs_protocol::crypto::{RsaPrivateKey, RsaPublicKey};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    fabric::service::beside_this_program,
    machine::{
        dials::{AppliedDials, Dials, TemplateDial},
        template::Template,
    },
    swtpm::short_private_dir,
};

/// Where the logs are.
#[derive(Clone, Debug, clap::Args)]
pub struct GalleryArgs {
    /// Folder of boot logs (TCG or WBCL), or one log; folders below it are looked through too
    #[arg(long, env = "LAB_CORPUS", default_value = DEFAULT_DIR)]
    pub dir: PathBuf,
    /// Print one JSON document: per log what it shows and what to pass as a host's `template`
    #[arg(long)]
    pub json: bool,
}

/// One log.
#[derive(Clone, Debug, Serialize)]
pub struct Exhibit {
    /// The log.
    pub file: PathBuf,
    /// Who holds the platform key: the machine's maker as a rule; none where no certificate of it was measured.
    pub maker: Option<String>,
    /// What the firmware says of itself, where that is text.
    pub firmware: Option<String>,
    /// `TPM 2.0, banks sha256, …` or `TPM 1.2`.
    pub tpm: String,
    /// False for a log without Windows' tagged events: no host with it can attest.
    pub windows: bool,
    /// What the log shows, by fact; null where no record decides.
    pub facts: Value,
    /// A host of this shape with nothing changed.
    pub as_it_was: Variant,
    /// The same host with every dial applied.
    pub in_order: Variant,
    /// What is lost or added when the log is a template.
    pub remarks: Vec<String>,
}

/// A way to take the log as a host's shape.
#[derive(Clone, Debug, Serialize)]
pub struct Variant {
    /// The host's `template`.
    pub template: TemplateDial,
    /// Passes every policy, held against itself as baseline.
    pub healthy: bool,
    /// Policies that fail.
    pub fails: Vec<String>,
    /// Why it is refused before any policy.
    pub refused: Option<String>,
}

/// As much as is needed of `inspect-log --json`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Explanation {
    format: String,
    banks: std::collections::BTreeMap<String, Value>,
    facts: Value,
    judged: Option<Judged>,
}

#[derive(Deserialize)]
struct Judged {
    error: Option<String>,
    fails: Vec<String>,
}

/// Prints the gallery. Fails, and says what to do, where there is no folder or no log in it.
pub fn run(args: &GalleryArgs) -> anyhow::Result<()> {
    let exhibits = exhibits(&args.dir)?;
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&exhibits)?),
        false => {
            exhibits.iter().for_each(|exhibit| print!("{}", text(exhibit)));
            println!(
                "A host takes such a log by its dials: {{\"template\":{{\"file\":\"LOG\",\"dials\":\"changed\"}}}}, or \"all\"."
            );
        }
    }
    Ok(())
}

/// Every log below `dir` that can be a template, by path.
pub fn exhibits(dir: &Path) -> anyhow::Result<Vec<Exhibit>> {
    ensure!(
        dir.exists(),
        "there is no gallery: {} is not there. The lab brings no logs of other people's machines: give a folder of boot \
         logs with --dir or LAB_CORPUS. On Windows they are in C:\\Windows\\Logs\\MeasuredBoot, on Linux \
         /sys/kernel/security/tpm0/binary_bios_measurements is one. Hosts without a template need none",
        dir.display()
    );
    let mut files = Vec::new();
    find(dir, &mut files)?;
    files.sort();
    let keys = [RsaPrivateKey::generate_2048()?, RsaPrivateKey::generate_2048()?];
    let judge = Judge {
        program: beside_this_program("attestation")?,
        folder: short_private_dir()?,
        keys: (keys[0].public(), keys[1].public()),
    };
    let logs = files.into_iter().filter_map(|file| {
        let bytes = fs::read(&file).ok()?;
        // Other files lie among the logs.
        let template = Template::read(&bytes)
            .ok()
            .filter(|template| template.firmware_phase())?;
        Some((file, template))
    });
    let exhibits = logs.map(|(file, template)| judge.exhibit(file, &template));
    let exhibits: Vec<Exhibit> = exhibits.collect::<anyhow::Result<_>>()?;
    ensure!(
        !exhibits.is_empty(),
        "{} holds no boot log (TCG or WBCL): give another folder with --dir or LAB_CORPUS",
        dir.display()
    );
    Ok(exhibits)
}

fn find(path: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    let entries = fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))?;
    for entry in entries {
        let entry = entry?;
        // A link could lead round in a circle.
        match entry.file_type()? {
            kind if kind.is_dir() => find(&entry.path(), files)?,
            kind if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
    Ok(())
}

/// The judging program, with a place for what it is to read.
struct Judge<'a> {
    program: PathBuf,
    folder: PathBuf,
    keys: (&'a RsaPublicKey, &'a RsaPublicKey),
}

impl Judge<'_> {
    fn exhibit(&self, file: PathBuf, template: &Template) -> anyhow::Result<Exhibit> {
        let shown = self.explain(&file)?;
        let as_it_was = self.variant(&file, template, AppliedDials::Changed)?;
        let in_order = self.variant(&file, template, AppliedDials::All)?;
        let banks: Vec<&str> = shown.banks.keys().map(String::as_str).collect();
        let remarks = template
            .script(&Dials::default(), AppliedDials::Changed, 1, "gallery")
            .remarks;
        Ok(Exhibit {
            maker: template.platform_key_owner(),
            firmware: template.firmware(),
            tpm: match shown.format.as_str() {
                "tcg2" => format!("TPM 2.0, banks {}", banks.join(" ")),
                _ => "TPM 1.2 or SHA-1 records".to_owned(),
            },
            windows: shown
                .facts
                .get("HypervisorEnforcedCi")
                .is_some_and(|value| !value.is_null()),
            facts: shown.facts,
            file,
            as_it_was,
            in_order,
            remarks,
        })
    }

    fn variant(&self, file: &Path, template: &Template, dials: AppliedDials) -> anyhow::Result<Variant> {
        let script = template.script(&Dials::default(), dials, 1, "gallery");
        let keys = script.vsm.then_some(self.keys);
        let log = self.folder.join("log");
        fs::write(&log, script.log(keys)).with_context(|| format!("cannot write {}", log.display()))?;
        let judged = self.explain(&log)?.judged.context("a host's log has a SHA-256 bank")?;
        Ok(Variant {
            template: TemplateDial {
                file: file.to_owned(),
                dials,
            },
            healthy: judged.error.is_none() && judged.fails.is_empty(),
            fails: judged.fails,
            refused: judged.error,
        })
    }

    fn explain(&self, log: &Path) -> anyhow::Result<Explanation> {
        let output = Command::new(&self.program)
            .arg("inspect-log")
            .arg("--json")
            .arg(log)
            .output();
        let output = output.with_context(|| format!("cannot start {}", self.program.display()))?;
        // A damaged end makes it fail, and yet it explains.
        serde_json::from_slice(&output.stdout).with_context(|| {
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            format!(
                "{} does not explain {}: {errors}",
                self.program.display(),
                log.display()
            )
        })
    }
}

impl Drop for Judge<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn text(exhibit: &Exhibit) -> String {
    let fact = |name: &str| match exhibit.facts.get(name) {
        Some(Value::Bool(true)) => "yes",
        Some(Value::Bool(false)) => "no",
        _ => "not measured",
    };
    let variant = |variant: &Variant| match (&variant.refused, variant.healthy) {
        (Some(why), _) => format!("refused: {why}"),
        (None, true) => "healthy".to_owned(),
        (None, false) => format!("fails {}", variant.fails.join(", ")),
    };
    let mut lines = vec![
        exhibit.file.display().to_string(),
        format!(
            "  platform key of {}; {}; firmware {}; {}",
            exhibit.maker.as_deref().unwrap_or("nobody that the log names"),
            exhibit.tpm,
            exhibit.firmware.as_deref().unwrap_or("without a version in text"),
            if exhibit.windows { "Windows" } else { "no Windows" }
        ),
        format!(
            "  Secure Boot {}; VSM {}; HVCI {}; full boot {}",
            fact("SecureBootEnabled"),
            fact("VsmRunning"),
            fact("HypervisorEnforcedCi"),
            fact("FullBoot")
        ),
        format!("  as it was: {}", variant(&exhibit.as_it_was)),
        format!("  in order (dials: all): {}", variant(&exhibit.in_order)),
    ];
    lines.extend(exhibit.remarks.iter().map(|remark| format!("  note: {remark}")));
    lines.push(String::new());
    lines.join("\n") + "\n"
}

const DEFAULT_DIR: &str = "../shared/corpus";
