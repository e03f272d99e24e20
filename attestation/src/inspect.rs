//! Explains a boot log to a person or a script: header, banks, replayed PCRs, boot facts, what was not measured.
//!
//! Nothing here is proven: no TPM is asked. A damaged log is explained as far as it can be read.

use std::{collections::BTreeMap, fmt::Write as _, io::Write as _, path::Path, process::ExitCode};

use anyhow::Context as _;
use hgs_protocol::wire::boot_log::{Bank, BootLog, Event, EventType, Format, Reading};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    baseline::{Baselines, CiPolicy, Switches, TpmBaseline},
    evidence::Evidence,
    facts::{Fact, Facts},
    replay::MeasuredLog,
};

/// Prints the explanation of the log in `path`. Answers failure when the log could not be read to its end.
pub fn run(path: &Path, as_json: bool) -> anyhow::Result<ExitCode> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let explained = Explanation::of(&bytes);
    let text = match as_json {
        true => serde_json::to_string_pretty(&explained)? + "\n",
        false => explained.text(&path.display().to_string()),
    };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(match explained.complete {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// All that can be said about a log.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// True when the whole log could be read.
    pub complete: bool,
    /// `tcg2` (crypto-agile) or `tcg1.2` (SHA-1 records).
    pub format: &'static str,
    /// Records, the header included.
    pub event_count: usize,
    /// Length of the file.
    pub bytes: usize,
    /// Filler after the last record.
    pub padding_bytes: usize,
    /// Bytes after the last readable record that are not filler.
    pub trailing_bytes: usize,
    /// The Spec ID header, where there is one.
    pub spec_id: Option<Value>,
    /// The locality that PCR 0 starts from.
    pub startup_locality: Option<u8>,
    /// Per bank and PCR, the value that the log replays to, hex.
    pub banks: BTreeMap<String, BTreeMap<u8, String>>,
    /// The bank in which records were checked.
    pub facts_bank: String,
    /// The SecureBoot variable: exactly 01 is true, none where the log has none.
    pub secure_boot: Option<bool>,
    /// Boot facts by name.
    pub facts: BTreeMap<&'static str, Value>,
    /// Names of facts that no record decides.
    pub not_measured: Vec<&'static str>,
    /// Where a value comes from, by fact.
    pub sources: BTreeMap<&'static str, String>,
    /// Policies that a host with this log would fail; none where the log has no SHA-256 bank.
    pub judged: Option<Judged>,
    /// What a service would object to without the log being wrong in itself.
    pub warnings: Vec<String>,
    /// What is wrong with the log.
    pub errors: Vec<String>,
}

/// A log as a service would judge it, had a TPM vouched for it: held against itself as baseline, with the
/// code-integrity policies and the dump key that it measured registered, every policy in its first state.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Judged {
    /// Why no policy is looked at.
    pub error: Option<String>,
    /// Policies that count and fail, or were not measured, in the specification's order.
    pub fails: Vec<&'static str>,
}

impl Judged {
    fn of(log: &BootLog, facts: &Facts) -> Option<Judged> {
        if !log.banks().contains(&Bank::Sha256) {
            return None;
        }
        let evidence = Evidence::as_if_vouched_for(log);
        let baseline = TpmBaseline::from_log("itself", evidence.log());
        let policies = facts.ci_policies.iter().filter_map(|policy| {
            let (name, sha256) = (policy.name.clone(), policy.sha256?);
            Some(CiPolicy { name, sha256 })
        });
        let judged = baseline.and_then(|baseline| {
            let baselines = Baselines {
                tpm: vec![baseline],
                ci_policies: policies.collect(),
                dump_keys: Vec::new(),
            };
            evidence.judge(&baselines, &Switches::default())
        });
        Some(match judged {
            Ok(evaluation) => Judged {
                error: None,
                fails: evaluation.failures().map(|failed| failed.policy.name).collect(),
            },
            Err(error) => Judged {
                error: Some(error.to_string()),
                fails: Vec::new(),
            },
        })
    }
}

impl Explanation {
    /// Reads `bytes` as far as they are a log.
    pub fn of(bytes: &[u8]) -> Explanation {
        let Reading { log, error, unread } = BootLog::read(bytes);
        let bank = bank_to_read(&log);
        let measured = MeasuredLog::read(&log, bank);
        let facts = Facts::read(&measured);
        let mut errors: Vec<String> = error.iter().map(ToString::to_string).collect();
        if unread > 0 {
            errors.push(format!("{unread} bytes at the end are neither records nor padding"));
        }
        let mut warnings = warnings(&log, bank);
        // The rules are for hosts that attest; other systems use these PCRs in their own way.
        let is_windows = has_windows_events(&log);
        let violations = measured.violations.iter().map(ToString::to_string);
        match is_windows {
            true => errors.extend(violations),
            false => {
                warnings.extend(violations);
                warnings
                    .push("no tagged events of Windows in PCR 12-14: a host with this log cannot attest".to_owned());
            }
        }
        let named = named_facts(&facts);
        let no_key = (!facts.has_vsm_identity_key()).then_some("VsmIdkPresent");
        let undecided = named
            .iter()
            .filter(|(_, fact)| fact.value().is_none())
            .map(|(name, _)| *name);
        Explanation {
            complete: error.is_none(),
            format: match log.format() {
                Format::Sha1 => "tcg1.2",
                Format::CryptoAgile(_) => "tcg2",
            },
            event_count: log.events().len() + usize::from(matches!(log.format(), Format::CryptoAgile(_))),
            bytes: bytes.len(),
            padding_bytes: log.padding().map_or(0, |padding| padding.length),
            trailing_bytes: unread,
            spec_id: spec_id(&log),
            startup_locality: log.startup_locality(),
            banks: log
                .banks()
                .into_iter()
                .map(|bank| (bank.to_string(), replayed(&log, bank)))
                .collect(),
            facts_bank: bank.to_string(),
            secure_boot: facts.secure_boot.value(),
            not_measured: undecided.chain(no_key).collect(),
            sources: named
                .iter()
                .map(|(name, fact)| (*name, format!("PCR {} {}: {}", fact.pcr, fact.event, fact.seen_text())))
                .collect(),
            judged: Judged::of(&log, &facts),
            facts: readings(&facts),
            warnings,
            errors,
        }
    }

    /// The same for a person, many lines.
    pub fn text(&self, title: &str) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.write_text(&mut out, title);
        out
    }

    fn write_text(&self, out: &mut String, title: &str) -> std::fmt::Result {
        let form = match self.format {
            "tcg2" => "crypto-agile (TCG 2)",
            _ => "SHA-1 records (TCG 1.2)",
        };
        writeln!(
            out,
            "{title}: {form}, {} records, {} bytes",
            self.event_count, self.bytes
        )?;
        if let Some(spec) = &self.spec_id {
            writeln!(out, "Header: {spec}")?;
        }
        if let Some(locality) = self.startup_locality {
            writeln!(out, "Startup locality: {locality}")?;
        }
        if self.padding_bytes > 0 {
            writeln!(out, "Padding: {} bytes", self.padding_bytes)?;
        }
        for (bank, pcrs) in &self.banks {
            writeln!(out, "\nPCRs of bank {bank} after this log")?;
            for (pcr, value) in pcrs {
                writeln!(out, "  {pcr:>2}  {value}")?;
            }
        }
        writeln!(
            out,
            "\nFacts, read in bank {}, not proven against a TPM",
            self.facts_bank
        )?;
        for (name, value) in &self.facts {
            let value = match value {
                Value::Null => "not measured".to_owned(),
                other => other.to_string(),
            };
            match self.sources.get(name) {
                Some(source) => writeln!(out, "  {name:<24} {value:<14} {source}")?,
                None => writeln!(out, "  {name:<24} {value}")?,
            }
        }
        match &self.judged {
            Some(Judged { error: Some(error), .. }) => writeln!(out, "\nA host with this log is refused: {error}")?,
            Some(judged) if judged.fails.is_empty() => {
                writeln!(out, "\nA host with this log passes every policy, held against itself")?;
            }
            Some(judged) => writeln!(
                out,
                "\nA host with this log, held against itself, fails: {}",
                judged.fails.join(", ")
            )?,
            None => {}
        }
        for (heading, lines) in [("Warnings", &self.warnings), ("Errors", &self.errors)] {
            if !lines.is_empty() {
                writeln!(out, "\n{heading}")?;
                for line in lines {
                    writeln!(out, "  {line}")?;
                }
            }
        }
        if !self.not_measured.is_empty() {
            writeln!(out, "\nNot measured: {}", self.not_measured.join(", "))?;
        }
        Ok(())
    }
}

/// The first bank, best hash first, in which every measured record has a digest; otherwise the best there is.
fn bank_to_read(log: &BootLog) -> Bank {
    let order = [Bank::Sha256, Bank::Sha384, Bank::Sha512, Bank::Sha1];
    let banks = log.banks();
    let present = || order.into_iter().filter(|bank| banks.contains(bank));
    let complete = present().find(|bank| log.without_digest(*bank) == 0);
    complete.or_else(|| present().next()).unwrap_or(Bank::Sha256)
}

fn replayed(log: &BootLog, bank: Bank) -> BTreeMap<u8, String> {
    let values = log.replay(bank).into_iter();
    values.map(|(pcr, value)| (pcr.get(), hex::encode(value))).collect()
}

fn warnings(log: &BootLog, read: Bank) -> Vec<String> {
    let mut warnings = Vec::new();
    for bank in log.banks() {
        match (bank.digest_size(), log.without_digest(bank)) {
            (None, _) => warnings.push(format!("bank {bank} has an algorithm that is not replayed")),
            (Some(_), 0) => {}
            (Some(_), count) => warnings.push(format!(
                "bank {bank} is incomplete: {count} measured records carry no digest of it, so its PCRs here need not be the TPM's"
            )),
        }
    }
    if read != Bank::Sha256 {
        warnings.push(format!("read in bank {read}; attestation reads the SHA-256 bank only"));
    }
    warnings
}

fn has_windows_events(log: &BootLog) -> bool {
    let in_loader_pcrs = |event: &Event| (12..=14).contains(&event.pcr) && event.event_type == EventType::EVENT_TAG;
    log.events().iter().any(in_loader_pcrs)
}

fn spec_id(log: &BootLog) -> Option<Value> {
    match log.format() {
        Format::Sha1 => None,
        Format::CryptoAgile(spec) => {
            let [minor, major, errata] = spec.version;
            Some(json!({
                "platformClass": spec.platform_class,
                "major": major,
                "minor": minor,
                "errata": errata,
                "uintnSize": spec.uintn_size,
                "algorithms": spec.algorithms.iter().map(|(bank, _)| bank.to_string()).collect::<Vec<_>>(),
            }))
        }
    }
}

/// Facts that one event decides, by the names of the readings.
fn named_facts(facts: &Facts) -> Vec<(&'static str, &Fact)> {
    vec![
        ("SecureBootEnabled", &facts.secure_boot),
        ("BootDebuggingOff", &facts.boot_debugging_off),
        ("KernelDebuggingOff", &facts.kernel_debugging_off),
        ("TestSigningOff", &facts.test_signing_off),
        ("HypervisorDebuggingOff", &facts.hypervisor_debugging_off),
        ("HypervisorLaunched", &facts.hypervisor_launched),
        ("FullBoot", &facts.full_boot),
        ("VsmRunning", &facts.vsm_launched),
        ("IommuRequired", &facts.iommu_required),
        ("HypervisorEnforcedCi", &facts.hypervisor_enforced_ci),
        ("NoHibernation", &facts.hibernation_disabled),
        ("NoDumps", &facts.dumps_disabled),
        ("DumpEncryption", &facts.dumps_encrypted),
        ("PageFileEncryption", &facts.page_file_encrypted),
        ("BitLockerByTpm", &facts.unlocked_by_tpm),
    ]
}

/// The plain reading. Where an event exists only when a feature is on (a VSM key, the HVCI policy), its
/// absence from a Windows log reads as false; so does an absent SecureBoot variable, which must never
/// count as on. Policies are stricter: to them all three are "not measured".
fn readings(facts: &Facts) -> BTreeMap<&'static str, Value> {
    let by_presence = |value: Option<bool>| match facts.is_windows {
        true => json!(value.unwrap_or(false)),
        false => json!(value),
    };
    let mut readings: BTreeMap<_, _> = named_facts(facts)
        .into_iter()
        .map(|(name, fact)| (name, json!(fact.value())))
        .collect();
    let names: Vec<&str> = facts.ci_policies.iter().map(|policy| policy.name.as_str()).collect();
    readings.extend([
        ("SecureBootEnabled", by_presence(facts.secure_boot.value())),
        (
            "HypervisorEnforcedCi",
            by_presence(facts.hypervisor_enforced_ci.value()),
        ),
        (
            "VsmIdkPresent",
            by_presence(facts.has_vsm_identity_key().then_some(true)),
        ),
        ("DebugDisabled", json!(facts.debugging_off())),
        ("CiPolicyMeasured", json!(names)),
    ]);
    readings
}
