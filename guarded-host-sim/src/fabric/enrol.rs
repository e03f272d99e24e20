//! `enrol`: what an administrator does before a fabric in containers is of use: key protection trusts the
//! attestation signer, attestation the TPMs' makers, hosts and their model are registered, and each host attests.
//! Repeating it changes nothing.

use std::path::PathBuf;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::{Elsewhere, hgs::Hgs, host::SimHost, maker_certificates};

/// Which fabric.
#[derive(Clone, Debug, clap::Args)]
pub struct EnrolArgs {
    /// The description that `prepare` wrote
    #[arg(long)]
    pub fabric: PathBuf,
}

/// Registers everything; fails when a host does not pass.
pub fn run(args: &EnrolArgs) -> anyhow::Result<()> {
    let elsewhere = Elsewhere::read(&args.fabric)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(enrol(&elsewhere))
}

async fn enrol(elsewhere: &Elsewhere) -> anyhow::Result<()> {
    let hgs = Hgs::attach(&elsewhere.attestation, &elsewhere.kps)?;
    let signers = hgs.trust_signer().await?;
    let makers = maker_certificates(&elsewhere.tpm_maker)?;
    hgs.trust_tpm_makers(&makers).await?;
    println!(
        "trusted: {signers} attestation signer, {} certificates of TPM makers",
        makers.len()
    );
    let mut hosts = Vec::new();
    for (name, host) in &elsewhere.hosts {
        let host = SimHost::attach(name, &host.folder, &host.agent_url)?;
        hgs.register_host(name, &host.artefact("ek.cer").await?).await?;
        hosts.push(host);
    }
    let model = hosts.first().context("the fabric has no hosts")?;
    let known: Vec<Value> = hgs.attestation.admin_get("tpm-baselines").await?;
    let has_model = known.iter().any(|baseline| baseline.get("name") == Some(&json!(MODEL)));
    // A host that was started again has another boot log, and the baseline stays the first one's.
    if !has_model {
        let (log, policy) = (model.artefact("boot.log").await?, model.artefact("SIPolicy.p7b").await?);
        hgs.register_model(MODEL, &log, &policy).await?;
    }
    println!(
        "registered: {} hosts, the baseline and the CI policy of {}",
        hosts.len(),
        model.name
    );
    let mut failed = Vec::new();
    for host in &hosts {
        let told: Value = host.post("attest", &json!({})).await?.map_err(anyhow::Error::msg)?;
        let detail = told.get("detail").and_then(Value::as_str).unwrap_or("no detail");
        println!("{}: {detail}", host.name);
        if told.get("certificate").is_none_or(Value::is_null) {
            failed.push(host.name.as_str());
        }
    }
    if !failed.is_empty() {
        bail!("not attested: {}", failed.join(", "));
    }
    Ok(())
}

/// The name under which what healthy hosts have in common is registered; stories use the same.
const MODEL: &str = "GuardedHost";
