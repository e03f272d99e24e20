//! Module ConfigCI: code-integrity policies. The XML has the product's elements; the compiled file is this lab's own, which no Windows
//! loads: a version number and the policy without its blanks, so that equal policies have equal files.

use std::{fs, path::Path};

use hgs_protocol::crypto::sha256;
use hgs_shell::{
    call::Call,
    error::{Category, ErrorRecord, Outcome},
    value::Value,
};

use crate::cmdlets::failed;

/// Options by their numbers, as the product counts them.
const OPTIONS: [&str; 21] = [
    "Enabled:UMCI",
    "Enabled:Boot Menu Protection",
    "Required:WHQL",
    "Enabled:Audit Mode",
    "Disabled:Flight Signing",
    "Enabled:Inherit Default Policy",
    "Enabled:Unsigned System Integrity Policy",
    "Allowed:Debug Policy Augmented",
    "Required:EV Signers",
    "Enabled:Advanced Boot Options Menu",
    "Enabled:Boot Audit On Failure",
    "Disabled:Script Enforcement",
    "Required:Enforce Store Applications",
    "Enabled:Managed Installer",
    "Enabled:Intelligent Security Graph Authorization",
    "Enabled:Invalidate EAs on Reboot",
    "Enabled:Update Policy No Reboot",
    "Enabled:Allow Supplemental Policies",
    "Disabled:Runtime FilePath Rule Protection",
    "Enabled:Dynamic Code Security",
    "Enabled:Revoked Expired As Unsigned",
];

pub(super) fn new(call: &mut Call<'_>) -> Outcome {
    let path = call.text("FilePath").unwrap_or_default();
    let level = call.text("Level").unwrap_or_else(|| "None".to_owned());
    let fallback = call.texts("Fallback").join(", ");
    let scanned = call.text("ScanPath").unwrap_or_else(|| r"C:\".to_owned());
    let folder = call.file(&scanned)?;
    // Audit mode, as New-CIPolicy always gives; user-mode code integrity where user-mode files were scanned.
    let mut options = vec![OPTIONS[3], OPTIONS[5], OPTIONS[6]];
    if call.switch("UserPEs") {
        options.insert(0, OPTIONS[0]);
    }
    let mut rules = String::new();
    for (number, (name, hash)) in hashes(&folder).into_iter().enumerate() {
        rules.push_str(&format!(
            "    <Allow ID=\"ID_ALLOW_A_{number:X}\" FriendlyName=\"{} Hash Sha256\" Hash=\"{hash}\" />\n",
            escaped(&name)
        ));
    }
    let verdict = if call.switch("Deny") { "Deny" } else { "Allow" };
    let rules = rules.replace("<Allow ", &format!("<{verdict} "));
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<SiPolicy xmlns=\"urn:schemas-microsoft-com:sipolicy\">\n  \
         <VersionEx>10.0.0.0</VersionEx>\n  <PolicyTypeID>{{A244370E-44C9-4C06-B551-F6016E563076}}</PolicyTypeID>\n  \
         <!-- Level {}, fallback {} -->\n  <Rules>\n{}  </Rules>\n  <FileRules>\n{rules}  </FileRules>\n</SiPolicy>\n",
        escaped(&level),
        escaped(&fallback),
        options.iter().map(|option| rule(option)).collect::<String>(),
    );
    call.write_file(&path, text.as_bytes())
}

fn rule(option: &str) -> String {
    format!("    <Rule><Option>{option}</Option></Rule>\n")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('"', "&quot;")
        .replace("--", "- -")
}

/// Programs below a folder with their hashes, in the order of their names.
fn hashes(folder: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let kind = entry.file_type();
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                continue;
            };
            match kind {
                Ok(kind) if kind.is_dir() => open.push(path),
                Ok(kind) if kind.is_file() && PROGRAMS.iter().any(|end| name.to_ascii_lowercase().ends_with(end)) => {
                    if let Ok(bytes) = fs::read(&path) {
                        found.push((name, hex::encode_upper(sha256(&bytes))));
                    }
                }
                _ => {}
            }
        }
    }
    found.sort();
    found
}

const PROGRAMS: [&str; 4] = [".exe", ".dll", ".sys", ".msi"];

/// The text of a policy.
fn read(call: &mut Call<'_>, path: &str) -> Outcome<String> {
    let bytes = call.read_file(path)?;
    let text = String::from_utf8_lossy(&bytes)
        .trim_start_matches('\u{feff}')
        .to_owned();
    match text.contains("<SiPolicy") {
        true => Ok(text),
        false => Err(call.fail(
            ErrorRecord::new(
                Category::InvalidData,
                "InvalidCIPolicy",
                format!("'{path}' is no code-integrity policy in XML, as New-CIPolicy writes it."),
            )
            .about(Value::text(path)),
        )),
    }
}

pub(super) fn set_option(call: &mut Call<'_>) -> Outcome {
    if call.switch("Help") {
        let lines = OPTIONS
            .iter()
            .enumerate()
            .map(|(number, option)| Value::text(format!("{number:2} {option}")));
        let lines: Vec<Value> = lines.collect();
        return call.write_all(lines);
    }
    let path = call.text("FilePath").unwrap_or_default();
    let number = call.integer("Option").unwrap_or_default();
    let option = usize::try_from(number)
        .ok()
        .and_then(|number| OPTIONS.get(number).copied());
    let Some(option) = option else {
        return Err(call.fail(ErrorRecord::new(
            Category::InvalidArgument,
            "InvalidOption",
            format!("{number} is no rule option: Set-RuleOption -Help lists them."),
        )));
    };
    let text = read(call, &path)?;
    let marker = format!("<Option>{option}</Option>");
    let (present, delete) = (text.contains(&marker), call.switch("Delete"));
    let changed = match (present, delete) {
        (true, true) => text
            .lines()
            .filter(|line| !line.contains(&marker))
            .map(|line| format!("{line}\n"))
            .collect(),
        (false, false) => text.replacen("  <Rules>\n", &format!("  <Rules>\n{}", rule(option)), 1),
        _ => text,
    };
    call.write_file(&path, changed.as_bytes())
}

pub(super) fn merge(call: &mut Call<'_>) -> Outcome {
    let output = call.text("OutputFilePath").unwrap_or_default();
    let mut paths = call.texts("PolicyPaths").into_iter();
    let Some(first) = paths.next() else { return Ok(()) };
    let mut merged = read(call, &first)?;
    for path in paths {
        let other = read(call, &path)?;
        let rules = between(&other, "<FileRules>\n", "  </FileRules>").unwrap_or_default();
        let new: String = rules
            .lines()
            .filter(|line| !merged.contains(*line))
            .map(|line| format!("{line}\n"))
            .collect();
        merged = merged.replacen("  </FileRules>", &format!("{new}  </FileRules>"), 1);
    }
    call.write_file(&output, merged.as_bytes())
}

fn between<'a>(text: &'a str, begin: &str, end: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(begin)?;
    rest.split_once(end).map(|(inner, _)| inner)
}

pub(super) fn compile(call: &mut Call<'_>) -> Outcome {
    let (source, target) = (
        call.text("XmlFilePath").unwrap_or_default(),
        call.text("BinaryFilePath").unwrap_or_default(),
    );
    let text = read(call, &source)?;
    call.write_file(&target, &compiled(&text))?;
    call.write(Value::text(target))
}

/// Equal policies, equal bytes: neither comments nor blanks count.
fn compiled(text: &str) -> Vec<u8> {
    let mut out = 7u32.to_le_bytes().to_vec();
    for line in text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("<!--"))
    {
        out.extend_from_slice(line.as_bytes());
    }
    out
}

/// PS_UpdateAndCompareCIPolicy: the file is the policy from the next start on.
pub(super) fn apply(call: &mut Call<'_>, path: &str) -> Outcome {
    let bytes = call.read_file(path)?;
    let folder = call.file(r"C:\Windows\System32\CodeIntegrity")?;
    fs::create_dir_all(&folder).map_err(|error| failed(call, "CIPolicyNotApplied", error))?;
    call.write_file(r"C:\Windows\System32\CodeIntegrity\SIPolicy.p7b", &bytes)
}
