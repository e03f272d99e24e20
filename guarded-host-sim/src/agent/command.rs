//! `guarded-host-sim client`: the client configuration of a host, as its administrator sees and sets it with
//! Get-, Set- and Test-HgsClientConfiguration. Each verb is one request to the host's agent.

use std::{fmt::Write as _, process::ExitCode};

use reqwest::Method;
use serde_json::json;

use super::{AttestationStatus, Choice, configuration::Change, view::ClientView};
use crate::{owner::certificate::printable, vm::client::Host};

/// The client configuration of a host.
#[derive(Debug, clap::Args)]
pub struct ClientArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Show the configuration and how the host stands; attests unless a certificate is at hand that is not due yet
    Get(Host),
    /// Set the URLs of the HGS, or go to local mode; then attest
    Set(SetArgs),
    /// Attest now, whatever certificate is at hand; the exit code is 0 only if the host passes
    Test(TestArgs),
}

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true))]
struct SetArgs {
    #[command(flatten)]
    host: Host,
    /// Go to local mode, which clears all URLs
    #[arg(long, group = "what")]
    enable_local_mode: bool,
    /// Base URL of attestation, http://hgs.bastion.local/Attestation say
    #[arg(long, value_name = "URL", group = "what", requires = "key_protection_url")]
    attestation_url: Option<String>,
    /// Base URL of key protection; http://localhost where no VM needs keys
    #[arg(long, value_name = "URL", requires = "attestation_url")]
    key_protection_url: Option<String>,
    /// Base URL of the fallback's attestation. Without a fallback, the present one is removed
    #[arg(
        long,
        value_name = "URL",
        requires = "fallback_key_protection_url",
        requires = "attestation_url"
    )]
    fallback_attestation_url: Option<String>,
    /// Base URL of the fallback's key protection
    #[arg(long, value_name = "URL", requires = "fallback_attestation_url")]
    fallback_key_protection_url: Option<String>,
}

#[derive(Debug, clap::Args)]
struct TestArgs {
    #[command(flatten)]
    host: Host,
    /// The primary alone; fails if it does not answer
    #[arg(long, conflicts_with = "use_fallback")]
    use_primary: bool,
    /// The fallback alone
    #[arg(long)]
    use_fallback: bool,
}

/// Asks the host and shows what it answers.
pub fn run(args: &ClientArgs) -> anyhow::Result<ExitCode> {
    const PATH: &str = "client-configuration";
    match &args.verb {
        Verb::Get(host) => {
            show(host, &host.ask(Method::GET, PATH, None)?)?;
        }
        Verb::Set(set) => {
            let change = Change {
                enable_local_mode: set.enable_local_mode,
                attestation_server_url: set.attestation_url.clone(),
                key_protection_server_url: set.key_protection_url.clone(),
                fallback_attestation_server_url: set.fallback_attestation_url.clone(),
                fallback_key_protection_server_url: set.fallback_key_protection_url.clone(),
            };
            let body = serde_json::to_value(change)?;
            show(&set.host, &set.host.ask(Method::PUT, PATH, Some(body))?)?;
        }
        Verb::Test(test) => {
            let choice = match (test.use_primary, test.use_fallback) {
                (true, _) => Choice::Primary,
                (_, true) => Choice::Fallback,
                _ => Choice::Either,
            };
            let body = json!({ "use": choice });
            let view: ClientView = test.host.ask(Method::POST, &format!("{PATH}/test"), Some(body))?;
            show(&test.host, &view)?;
            if view.attestation_status != AttestationStatus::Passed {
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show(host: &Host, view: &ClientView) -> anyhow::Result<()> {
    host.show(view, &text(view)?)
}

/// As the product prints the object, and below it what it does not show.
fn text(view: &ClientView) -> anyhow::Result<String> {
    let flag = |value: bool| if value { "True" } else { "False" }.to_owned();
    let url = |url: &Option<String>| url.clone().unwrap_or_default();
    let rows = [
        ("IsHostGuarded", flag(view.is_host_guarded)),
        ("Mode", view.mode.clone()),
        ("KeyProtectionServerUrl", url(&view.key_protection_server_url)),
        ("AttestationServerUrl", url(&view.attestation_server_url)),
        ("AttestationOperationMode", view.attestation_operation_mode.clone()),
        ("AttestationStatus", format!("{:?}", view.attestation_status)),
        ("AttestationSubstatus", view.attestation_substatus.clone()),
        (
            "FallbackKeyProtectionServerUrl",
            url(&view.fallback_key_protection_server_url),
        ),
        (
            "FallbackAttestationServerUrl",
            url(&view.fallback_attestation_server_url),
        ),
        ("IsFallbackInUse", flag(view.is_fallback_in_use)),
    ];
    let mut text = String::new();
    for (name, value) in rows {
        writeln!(text, "{}", format!("{name:<30} : {}", printable(&value)).trim_end())?;
    }
    writeln!(text, "\n{}", printable(&view.detail))?;
    if !view.remedy.is_empty() {
        writeln!(text, "What helps: {}", printable(&view.remedy))?;
    }
    Ok(text)
}
