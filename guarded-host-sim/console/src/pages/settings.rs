//! Host Guardian Service Settings, as in Virtual Machine Manager's settings workspace, and each host's own tab. What is
//! saved is pushed to the hosts that are enabled for it, and they attest.

use actix_web::{HttpResponse, web::Path};
use askama::Template;
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Frame, HTML, Shown, Trouble, html, in_url, see,
    standing::{Tone, UrlMatch},
};
use crate::{
    Console,
    api::Agent,
    lab::UrlOf,
    live::{ClientView, Picture},
    session::{Posted, Visitor},
    settings::{CodeIntegrityPolicy, FabricSettings, HostSettings, Urls},
};

/// A URL field of a form, and what is wrong with it.
struct UrlField {
    name: &'static str,
    label: &'static str,
    value: String,
    error: String,
}

struct HostRow {
    name: String,
    href: String,
    enabled: bool,
    own: bool,
    matching: UrlMatch,
    status: String,
    class: &'static str,
}

#[derive(Template)]
#[template(path = "settings.html")]
struct SettingsPage {
    frame: Frame,
    error: String,
    urls: Vec<UrlField>,
    fallback: Vec<UrlField>,
    policies: Vec<CodeIntegrityPolicy>,
    helper_disk: String,
    hosts: Vec<HostRow>,
}

/// The four URLs of a form: field, label, for which service, whether of the fallback.
const FIELDS: [(&str, &str, UrlOf); 4] = [
    ("attestation", "Attestation server URL", UrlOf::Attestation),
    ("key_protection", "Key protection server URL", UrlOf::KeyProtection),
    (
        "fallback_attestation",
        "Fallback attestation server URL",
        UrlOf::Attestation,
    ),
    (
        "fallback_key_protection",
        "Fallback key protection server URL",
        UrlOf::KeyProtection,
    ),
];

fn values(urls: &Urls) -> [&str; 4] {
    [
        &urls.attestation,
        &urls.key_protection,
        &urls.fallback_attestation,
        &urls.fallback_key_protection,
    ]
}

fn posted_urls(posted: &Posted) -> Urls {
    Urls {
        attestation: posted.text("attestation"),
        key_protection: posted.text("key_protection"),
        fallback_attestation: posted.text("fallback_attestation"),
        fallback_key_protection: posted.text("fallback_key_protection"),
    }
}

fn fields(urls: &Urls, errors: [String; 4]) -> (Vec<UrlField>, Vec<UrlField>) {
    let all = FIELDS.into_iter().zip(values(urls)).zip(errors);
    let mut first: Vec<UrlField> = all
        .map(|(((name, label, _), value), error)| UrlField {
            name,
            label,
            value: value.to_owned(),
            error,
        })
        .collect();
    let fallback = first.split_off(2);
    (first, fallback)
}

/// What is wrong with URLs, field by field: form first, then whether the service answers. Empty texts when all is well.
async fn errors(console: &Console, urls: &Urls) -> [String; 4] {
    let mut wrong = <[String; 4]>::default();
    let [
        attestation,
        key_protection,
        fallback_attestation,
        fallback_key_protection,
    ] = &mut wrong;
    let pairs = [
        (
            attestation,
            key_protection,
            &urls.attestation,
            &urls.key_protection,
            "both URLs or neither",
        ),
        (
            fallback_attestation,
            fallback_key_protection,
            &urls.fallback_attestation,
            &urls.fallback_key_protection,
            "both fallback URLs or neither",
        ),
    ];
    for (attestation_error, key_error, attestation, keys, pair) in pairs {
        let missing = format!("This one is missing: give {pair}.");
        match (attestation.is_empty(), keys.is_empty()) {
            (true, true) => continue,
            (true, false) => *attestation_error = missing,
            (false, true) => *key_error = missing,
            (false, false) => {
                let lab = &console.lab;
                let (first, second) = tokio::join!(
                    lab.check_url(UrlOf::Attestation, attestation),
                    lab.check_url(UrlOf::KeyProtection, keys)
                );
                *attestation_error = first.err().unwrap_or_default();
                *key_error = second.err().unwrap_or_default();
            }
        }
    }
    if !urls.are_set() && !urls.fallback_attestation.is_empty() {
        wrong[0] = "A fallback needs a primary: give its URLs too.".to_owned();
    }
    wrong
}

fn host_rows(settings: &FabricSettings, picture: &Picture) -> Vec<HostRow> {
    let rows = picture.hosts.iter().map(|(name, now)| {
        let its = settings.hosts.get(name);
        HostRow {
            href: format!("/hosts/{}/guardian-service", in_url(name)),
            enabled: its.is_some_and(|its| its.enabled),
            own: its.is_some_and(|its| its.own.is_some()),
            matching: UrlMatch::of(settings, name, Some(now)),
            status: now.status().to_owned(),
            class: Tone::of_status(now.status()).class(),
            name: name.clone(),
        }
    });
    rows.collect()
}

fn window(visitor: &Visitor, settings: &FabricSettings, errors: [String; 4], error: &str) -> SettingsPage {
    let (urls, fallback) = fields(&settings.urls, errors);
    let mut policies = settings.code_integrity_policies.clone();
    // Lines to write in.
    let empty = CodeIntegrityPolicy {
        name: String::new(),
        path: String::new(),
    };
    policies.extend([empty.clone(), empty]);
    SettingsPage {
        frame: Frame::new(visitor, "settings", "Host Guardian Service Settings"),
        error: error.to_owned(),
        urls,
        fallback,
        policies,
        helper_disk: settings.shielding_helper_disk.clone(),
        hosts: host_rows(settings, &visitor.console.live.picture()),
    }
}

/// The window.
pub(super) async fn show(visitor: Visitor) -> Shown {
    let settings = visitor.console.settings.now();
    html(&window(&visitor, &settings, <[String; 4]>::default(), ""))
}

/// Finish: what is right is saved, and every enabled host takes it over and attests.
pub(super) async fn finish(posted: Posted) -> Shown {
    let console = posted.visitor.console.clone();
    let urls = posted_urls(&posted);
    let names = posted.all("policy_name");
    let paths = posted.all("policy_path");
    let policies: Vec<CodeIntegrityPolicy> = names
        .into_iter()
        .zip(paths)
        .filter(|(name, path)| !name.is_empty() || !path.is_empty())
        .map(|(name, path)| CodeIntegrityPolicy { name, path })
        .collect();
    let enabled: Vec<String> = posted.all("enabled");
    let mut wanted = FabricSettings {
        urls,
        code_integrity_policies: policies,
        shielding_helper_disk: posted.text("helper_disk"),
        hosts: console.settings.now().hosts.clone(),
    };
    for name in console.live.picture().hosts.keys() {
        wanted.hosts.entry(name.clone()).or_default().enabled = enabled.contains(name);
    }
    let errors = errors(&console, &wanted.urls).await;
    let policy_error = policy_error(&wanted.code_integrity_policies);
    if errors.iter().any(|error| !error.is_empty()) || policy_error.is_some() {
        let error = policy_error.unwrap_or_else(|| "Nothing is saved: correct what is marked.".to_owned());
        let page = window(&posted.visitor, &wanted, errors, &error);
        let text = page.render().map_err(|error| Trouble::Failed(error.to_string()))?;
        return Ok(HttpResponse::UnprocessableEntity().content_type(HTML).body(text));
    }
    let settings = console.settings.change(|kept| *kept = wanted)?;
    posted.visitor.tell(true, "The settings are saved.");
    let names: Vec<String> = console.live.picture().hosts.keys().cloned().collect();
    let told = join_all(names.iter().map(|name| push(&console, &settings, name))).await;
    for (good, line) in told.into_iter().flatten() {
        posted.visitor.tell(good, line);
    }
    console.see_now().await;
    Ok(see("/settings"))
}

fn policy_error(policies: &[CodeIntegrityPolicy]) -> Option<String> {
    let half = policies
        .iter()
        .any(|policy| policy.name.is_empty() || policy.path.is_empty());
    let mut names: Vec<&str> = policies.iter().map(|policy| policy.name.as_str()).collect();
    names.sort_unstable();
    match half {
        true => Some("A code-integrity policy needs a friendly name and a path.".to_owned()),
        false if names.windows(2).any(|pair| pair.first() == pair.last()) => {
            Some("Two code-integrity policies have the same friendly name.".to_owned())
        }
        false => None,
    }
}

/// Gives a host what the settings say, and says what came of it; nothing for a host that is not enabled.
async fn push(console: &Console, settings: &FabricSettings, host: &str) -> Option<(bool, String)> {
    let urls = settings.urls_of(host)?;
    let picture = console.live.picture();
    let Some(url) = picture.hosts.get(host).and_then(|now| now.place.agent.as_deref()) else {
        return Some((
            false,
            format!("{host} is off and has taken nothing over: apply the settings again once it runs."),
        ));
    };
    let http = console.lab.http();
    let agent = Agent { url, http };
    let told = agent
        .send::<ClientView>(Method::PUT, "client-configuration", &change(urls))
        .await;
    Some(match told {
        Ok(view) if view.is_host_guarded => (true, format!("{host} took the settings over and is guarded.")),
        Ok(view) => (
            false,
            format!(
                "{host} took the settings over and is not guarded: {} ({}). {}",
                view.attestation_status, view.attestation_substatus, view.remedy
            ),
        ),
        Err(error) => (false, format!("{host} did not take the settings over: {error}")),
    })
}

/// The parameters of Set-HgsClientConfiguration.
fn change(urls: &Urls) -> Value {
    let mut change = json!({
        "AttestationServerUrl": urls.attestation,
        "KeyProtectionServerUrl": urls.key_protection,
    });
    if let (Some(fields), false) = (change.as_object_mut(), urls.fallback_attestation.is_empty()) {
        fields.insert(
            "FallbackAttestationServerUrl".to_owned(),
            json!(urls.fallback_attestation),
        );
        fields.insert(
            "FallbackKeyProtectionServerUrl".to_owned(),
            json!(urls.fallback_key_protection),
        );
    }
    change
}

#[derive(Template)]
#[template(path = "guardian_service.html")]
struct TabPage {
    frame: Frame,
    error: String,
    host: String,
    href: String,
    enabled: bool,
    own: bool,
    urls: Vec<UrlField>,
    fallback: Vec<UrlField>,
    fabric: Urls,
    policies: Vec<String>,
    policy: String,
    status: String,
    class: &'static str,
    matching: UrlMatch,
}

fn tab(visitor: &Visitor, host: &str, its: &HostSettings, errors: [String; 4], error: &str) -> TabPage {
    let settings = visitor.console.settings.now();
    let picture = visitor.console.live.picture();
    let now = picture.hosts.get(host);
    let status = now.map_or("NotSeen", |now| now.status()).to_owned();
    let (urls, fallback) = fields(its.own.as_ref().unwrap_or(&settings.urls), errors);
    TabPage {
        frame: Frame::new(visitor, "hosts", format!("{host}: Host Guardian Service")),
        error: error.to_owned(),
        host: host.to_owned(),
        href: format!("/hosts/{}", in_url(host)),
        enabled: its.enabled,
        own: its.own.is_some(),
        urls,
        fallback,
        fabric: settings.urls.clone(),
        policies: settings
            .code_integrity_policies
            .iter()
            .map(|policy| policy.name.clone())
            .collect(),
        policy: its.code_integrity_policy.clone().unwrap_or_default(),
        class: Tone::of_status(&status).class(),
        status,
        matching: UrlMatch::of(&settings, host, now),
    }
}

fn known(visitor: &Visitor, host: &str) -> Result<HostSettings, Trouble> {
    let settings = visitor.console.settings.now();
    let run_here = visitor.console.live.picture().hosts.contains_key(host);
    match (settings.hosts.get(host), run_here) {
        (Some(its), _) => Ok(its.clone()),
        (None, true) => Ok(HostSettings::default()),
        (None, false) => Err(Trouble::Missing(format!("this lab runs no host {host}"))),
    }
}

/// A host's tab.
pub(super) async fn show_tab(visitor: Visitor, host: Path<String>) -> Shown {
    let its = known(&visitor, &host)?;
    html(&tab(&visitor, &host, &its, <[String; 4]>::default(), ""))
}

/// OK: what is right is saved and applied to the host, again if it was before.
pub(super) async fn save_tab(posted: Posted, host: Path<String>) -> Shown {
    let (visitor, host) = (&posted.visitor, host.into_inner());
    let console = visitor.console.clone();
    let before = known(visitor, &host)?;
    let its = HostSettings {
        enabled: posted.ticked("enabled"),
        own: posted.ticked("own").then(|| posted_urls(&posted)),
        code_integrity_policy: Some(posted.text("policy")).filter(|name| !name.is_empty()),
    };
    let errors = match &its.own {
        Some(urls) => errors(&console, urls).await,
        None => <[String; 4]>::default(),
    };
    let nothing = its.own.as_ref().is_some_and(|urls| !urls.are_set());
    if nothing || errors.iter().any(|error| !error.is_empty()) {
        let page = tab(
            visitor,
            &host,
            &its,
            errors,
            "Nothing is saved: a host with URLs of its own needs both, and right ones.",
        );
        let text = page.render().map_err(|error| Trouble::Failed(error.to_string()))?;
        return Ok(HttpResponse::UnprocessableEntity().content_type(HTML).body(text));
    }
    let policy = its.code_integrity_policy.clone();
    let settings = console.settings.change(|kept| {
        kept.hosts.insert(host.clone(), its);
    })?;
    visitor.tell(true, format!("The settings of {host} are saved."));
    if let Some(name) =
        policy.filter(|name| before.code_integrity_policy.as_ref() != Some(name) || posted.ticked("latest"))
    {
        apply_policy(visitor, &host, &name).await;
    }
    match push(&console, &settings, &host).await {
        Some((good, line)) => visitor.tell(good, line),
        None => visitor.tell(
            true,
            format!("{host} keeps the URLs that it has, and takes no shielded VM."),
        ),
    }
    console.see_now().await;
    Ok(see(&format!("/hosts/{}/guardian-service", in_url(&host))))
}

/// Lets the host restart with a code-integrity policy of the list.
async fn apply_policy(visitor: &Visitor, host: &str, name: &str) {
    let settings = visitor.console.settings.now();
    let Some(policy) = settings
        .code_integrity_policies
        .iter()
        .find(|policy| policy.name == name)
    else {
        return visitor.tell(false, format!("the list has no code-integrity policy {name}"));
    };
    let done = visitor.console.lab.apply_ci_policy(host, &policy.path).await;
    // Its agent answers elsewhere after the restart.
    visitor.console.see_now().await;
    match done {
        Ok(()) => visitor.tell(true, format!("{host} was restarted with the policy {name}.")),
        Err(error) => visitor.tell(false, format!("The policy {name} is not applied to {host}: {error}")),
    }
}
