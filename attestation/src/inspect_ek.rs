//! Explains an endorsement key certificate to a person or a script: its chain and why it is or is not
//! trusted. Decides by [`crate::ek_chain`], as the service does.

use std::{fmt::Write as _, fs, io::Write as _, path::Path, process::ExitCode};

use anyhow::Context as _;
use hgs_protocol::env::Clock;

use crate::ek_chain::{Anchor, Judgement, ParsedCertificate, judge};

/// Trusted authorities from a folder.
#[derive(Debug, Default)]
pub struct Roots {
    /// Those that were read.
    pub anchors: Vec<Anchor>,
    /// Files that hold none, each with its reason.
    pub skipped: Vec<String>,
}

/// Judges the certificate in `path` and prints the answer. Answers success only for a trusted one.
pub fn run(path: &Path, roots: Option<&Path>, as_json: bool) -> anyhow::Result<ExitCode> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut certificates = ders(&bytes)?.into_iter();
    let leaf = certificates.next().context("the file holds no certificate")?;
    let leaf = ParsedCertificate::parse(&leaf).with_context(|| format!("cannot use {}", path.display()))?;
    let sent = certificates.map(|der| ParsedCertificate::parse(&der));
    let sent: Vec<_> = sent
        .collect::<Result<_, _>>()
        .context("a further certificate of the file")?;
    let roots = roots.map(read_roots).transpose()?.unwrap_or_default();
    let judgement = judge(&leaf, &sent, &roots.anchors, Clock::system().now());
    for skipped in &roots.skipped {
        eprintln!("not used as a root: {skipped}");
    }
    let text = match as_json {
        true => serde_json::to_string_pretty(&judgement)? + "\n",
        false => text(&path.display().to_string(), &judgement)?,
    };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(match judgement.trusted {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// The authorities in the files of `path`, a folder or one file, DER or PEM.
pub fn read_roots(path: &Path) -> anyhow::Result<Roots> {
    let mut files = Vec::new();
    if path.is_dir() {
        for entry in fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))? {
            let file = entry?.path();
            if file.is_file() {
                files.push(file);
            }
        }
        files.sort();
    } else {
        files.push(path.to_owned());
    }
    let mut roots = Roots::default();
    for file in files {
        let bytes = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let found = ders(&bytes).and_then(|ders| {
            let anchors = ders.iter().map(|der| Anchor::parse(der));
            Ok(anchors.collect::<Result<Vec<_>, _>>()?)
        });
        match found {
            Ok(anchors) if anchors.is_empty() => roots.skipped.push(format!("{}: no certificate", file.display())),
            Ok(anchors) => roots.anchors.extend(anchors),
            Err(error) => roots.skipped.push(format!("{}: {error}", file.display())),
        }
    }
    Ok(roots)
}

/// The certificates of a DER or PEM file.
fn ders(bytes: &[u8]) -> anyhow::Result<Vec<Vec<u8>>> {
    if !bytes.windows(PEM.len()).any(|window| window == PEM) {
        return Ok(vec![bytes.to_vec()]);
    }
    let blocks = x509_parser::pem::Pem::iter_from_buffer(bytes);
    let blocks = blocks.map(|block| block.map(|block| (block.label, block.contents)));
    let blocks: Vec<_> = blocks.collect::<Result<_, _>>().context("the PEM is malformed")?;
    let certificates = blocks.into_iter().filter(|(label, _)| label.ends_with("CERTIFICATE"));
    Ok(certificates.map(|(_, der)| der).collect())
}

fn text(title: &str, judgement: &Judgement) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    let verdict = if judgement.trusted { "trusted" } else { "NOT trusted" };
    writeln!(out, "{title}: {verdict}\n\nChain")?;
    for (step, link) in judgement.chain.iter().enumerate() {
        let mark = if link.trusted { " [trusted]" } else { "" };
        writeln!(out, "  {step}  {}{mark}", link.subject)?;
        writeln!(out, "     {}, {} until {}", link.key, link.not_before, link.not_after)?;
        writeln!(out, "     issued by {} ({})", link.issuer, link.signature)?;
    }
    writeln!(out, "\nReasons")?;
    for reason in &judgement.reasons {
        writeln!(out, "  {reason}")?;
    }
    Ok(out)
}

const PEM: &[u8] = b"-----BEGIN ";
