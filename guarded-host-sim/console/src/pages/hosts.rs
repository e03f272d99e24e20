//! Hosts: the list, and one of them with its verdicts, its dials and its power button.

use std::collections::BTreeMap;

use actix_web::web::{Path, Query};
use askama::Template;
use futures_util::future::join_all;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Frame, Shown, Trouble,
    fields::plain,
    html, in_url, see,
    standing::{Tone, UrlMatch, takes_shielded_vms, urls_of},
};
use crate::{
    api::{Agent, ApiError},
    lab::HostPower,
    live::{ClientView, HostNow},
    session::{Posted, Visitor},
    settings::Urls,
};

/// What is known of a registered host.
#[derive(Clone, Debug)]
pub(super) struct Registration {
    /// `TPM` or `host key`.
    pub(super) by: &'static str,
    /// Version, vendor or algorithm.
    pub(super) detail: String,
}

#[derive(Deserialize)]
struct TpmHost {
    name: String,
    policy_version: String,
    unproven: bool,
}

#[derive(Deserialize)]
struct HostKey {
    name: String,
    algorithm: String,
}

/// All registered hosts by name.
pub(super) async fn registered(visitor: &Visitor) -> Result<BTreeMap<String, Registration>, ApiError> {
    let attestation = visitor.attestation();
    let (tpm, keys) = tokio::join!(
        attestation.all::<TpmHost>("tpm-hosts"),
        attestation.all::<HostKey>("host-keys")
    );
    let mut found = BTreeMap::new();
    for key in keys? {
        let detail = key.algorithm;
        found.insert(key.name, Registration { by: "host key", detail });
    }
    for host in tpm? {
        let proof = if host.unproven { ", unproven" } else { "" };
        let detail = format!("{}{proof}", host.policy_version);
        found.insert(host.name, Registration { by: TPM, detail });
    }
    Ok(found)
}

/// A decision of attestation about a host, from the record.
#[derive(Clone, Debug, Deserialize)]
struct Past {
    at: i64,
    decision: Decision,
}

#[derive(Clone, Debug, Deserialize)]
struct Decision {
    reply: String,
    reason: Option<String>,
    host_status: Value,
    #[serde(default)]
    verdicts: Vec<Verdict>,
}

#[derive(Clone, Debug, Deserialize)]
struct Verdict {
    policy: String,
    enabled: bool,
    verdict: String,
    decided_by: Value,
    expected: Value,
    seen: Value,
    remedy: Value,
}

impl Decision {
    fn status(&self) -> String {
        let of = |value: &Value| value.get("status").map(plain);
        match &self.host_status {
            Value::Object(_) => of(&self.host_status).unwrap_or_default(),
            other => plain(other),
        }
    }
}

/// Which part of the list.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    q: String,
    status: String,
    page: usize,
}

struct Row {
    name: String,
    href: String,
    registered: String,
    status: String,
    class: &'static str,
    substatus: String,
    urls: &'static str,
    urls_class: &'static str,
    certificate_until: String,
}

#[derive(Template)]
#[template(path = "hosts.html")]
struct ListPage {
    frame: Frame,
    asked: Asked,
    statuses: Vec<String>,
    rows: Vec<Row>,
    found: usize,
    all: usize,
    first: usize,
    last: usize,
    previous: Option<String>,
    next: Option<String>,
}

/// The list, a page of it.
pub(super) async fn list(visitor: Visitor, asked: Query<Asked>) -> Shown {
    let asked = asked.into_inner();
    let registered = registered(&visitor).await?;
    let picture = visitor.console.live.picture();
    let settings = visitor.console.settings.now();
    let mut names: Vec<&String> = registered.keys().chain(picture.hosts.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let all = names.len();
    let wanted = asked.q.trim().to_lowercase();
    let status_of = |name: &str| picture.hosts.get(name).map_or(ELSEWHERE, HostNow::status);
    let matches = |name: &&String| {
        (wanted.is_empty() || name.to_lowercase().contains(&wanted))
            && (asked.status.is_empty() || status_of(name) == asked.status)
    };
    let found: Vec<&String> = names.into_iter().filter(matches).collect();
    let pages = found.len().div_ceil(ROWS).max(1);
    let page = asked.page.clamp(1, pages);
    let from = (page - 1) * ROWS;
    let here: Vec<&String> = found.iter().skip(from).take(ROWS).copied().collect();
    let rows = join_all(here.iter().map(|name| async {
        let now = picture.hosts.get(*name);
        let urls = UrlMatch::of(&settings, name, now);
        let mut row = Row {
            href: format!("/hosts/{}", in_url(name)),
            registered: registered
                .get(*name)
                .map_or("no".to_owned(), |r| format!("{}, {}", r.by, r.detail)),
            status: status_of(name).to_owned(),
            class: Tone::of_status(status_of(name)).class(),
            substatus: String::new(),
            urls: urls.words(),
            urls_class: urls.tone().class(),
            certificate_until: String::new(),
            name: (*name).clone(),
        };
        match now.map(|now| &now.view) {
            Some(Ok(view)) => {
                row.substatus = substatus(view);
                row.certificate_until = view
                    .certificate
                    .as_ref()
                    .map(|c| c.not_after.clone())
                    .unwrap_or_default();
            }
            Some(Err(_)) => {}
            // The record knows how it fared last.
            None => {
                if let Some(last) = past(&visitor, name, 1).await.ok().and_then(|mut rows| rows.pop()) {
                    row.status = last.decision.status();
                    row.class = Tone::of_status(&row.status).class();
                }
            }
        }
        row
    }))
    .await;
    let link = |page: usize| {
        format!(
            "/hosts?q={}&status={}&page={page}",
            in_url(&asked.q),
            in_url(&asked.status)
        )
    };
    let mut statuses: Vec<String> = picture.hosts.values().map(|host| host.status().to_owned()).collect();
    if registered.keys().any(|name| !picture.hosts.contains_key(name)) {
        statuses.push(ELSEWHERE.to_owned());
    }
    statuses.sort_unstable();
    statuses.dedup();
    html(&ListPage {
        frame: Frame::new(&visitor, "hosts", "Hosts"),
        statuses,
        first: from + usize::from(!rows.is_empty()),
        last: from + rows.len(),
        found: found.len(),
        all,
        previous: (page > 1).then(|| link(page - 1)),
        next: (page < pages).then(|| link(page + 1)),
        rows,
        asked,
    })
}

fn substatus(view: &ClientView) -> String {
    match view.attestation_substatus.as_str() {
        "NoInformation" => String::new(),
        other => other.to_owned(),
    }
}

async fn past(visitor: &Visitor, host: &str, most: usize) -> Result<Vec<Past>, ApiError> {
    let path = format!("tpm-hosts/{}/attestations?limit={most}", in_url(host));
    visitor.attestation().get(&path).await
}

struct HistoryRow {
    at: String,
    reply: String,
    status: String,
    class: &'static str,
    reason: String,
}

struct VerdictRow {
    policy: String,
    enabled: bool,
    verdict: String,
    class: &'static str,
    decided_by: String,
    expected: String,
    seen: String,
    remedy: String,
}

struct DialRow {
    name: String,
    words: String,
    on: bool,
}

#[derive(Template)]
#[template(path = "host.html")]
struct HostPage {
    frame: Frame,
    href: String,
    registered: Option<Registration>,
    is_registered_by_tpm: bool,
    is_run_here: bool,
    is_on: bool,
    status: String,
    class: &'static str,
    silent: Option<String>,
    view: Option<ClientView>,
    urls: Urls,
    matching: UrlMatch,
    shielded: Result<(), String>,
    verdicts: Vec<VerdictRow>,
    verdicts_at: String,
    history: Vec<HistoryRow>,
    dials: Vec<DialRow>,
}

/// One host.
pub(super) async fn show(visitor: Visitor, name: Path<String>) -> Shown {
    let name = name.into_inner();
    let picture = visitor.console.live.picture();
    let settings = visitor.console.settings.now();
    let now = picture.hosts.get(&name);
    let (registered, history, dials) = tokio::join!(registered(&visitor), past(&visitor, &name, SHOWN_PAST), async {
        match now {
            Some(_) => visitor.console.lab.dials(&name).await.unwrap_or_default(),
            None => Value::Null,
        }
    });
    let registered = registered?.remove(&name);
    if registered.is_none() && now.is_none() {
        return Err(Trouble::Missing(format!(
            "there is no host {name}: it is neither registered nor run here"
        )));
    }
    let history = history.unwrap_or_default();
    let judged = history.iter().find(|past| !past.decision.verdicts.is_empty());
    let view = now.and_then(|now| now.view.clone().ok());
    let recorded = || {
        history
            .first()
            .map_or(ELSEWHERE.to_owned(), |past| past.decision.status())
    };
    let status = now.map_or_else(recorded, |now| now.status().to_owned());
    html(&HostPage {
        frame: Frame::new(&visitor, "hosts", name.clone()),
        href: format!("/hosts/{}", in_url(&name)),
        is_run_here: now.is_some(),
        is_on: now.is_some_and(|now| now.place.agent.is_some()),
        class: Tone::of_status(&status).class(),
        status,
        silent: now.and_then(|now| now.view.clone().err()),
        urls: view.as_ref().map(urls_of).unwrap_or_default(),
        matching: UrlMatch::of(&settings, &name, now),
        shielded: takes_shielded_vms(&settings, &name, now),
        verdicts: judged.map(verdict_rows).unwrap_or_default(),
        verdicts_at: judged.map(|past| time(past.at)).unwrap_or_default(),
        history: history.iter().map(history_row).collect(),
        dials: dial_rows(&dials),
        is_registered_by_tpm: registered.as_ref().is_some_and(|r| r.by == TPM),
        registered,
        view,
    })
}

fn verdict_rows(past: &Past) -> Vec<VerdictRow> {
    let rows = past.decision.verdicts.iter().map(|verdict| VerdictRow {
        policy: verdict.policy.clone(),
        enabled: verdict.enabled,
        class: match (verdict.verdict.as_str(), verdict.enabled) {
            ("pass", _) => Tone::Good.class(),
            (_, true) => Tone::Bad.class(),
            (_, false) => Tone::Quiet.class(),
        },
        verdict: verdict.verdict.clone(),
        decided_by: plain(&verdict.decided_by),
        expected: plain(&verdict.expected),
        seen: plain(&verdict.seen),
        // What passes needs no help.
        remedy: match verdict.verdict.as_str() {
            "pass" => String::new(),
            _ => plain(&verdict.remedy),
        },
    });
    let mut rows: Vec<VerdictRow> = rows.collect();
    // What failed is what somebody came for.
    rows.sort_by_key(|row| row.class != Tone::Bad.class());
    rows
}

fn history_row(past: &Past) -> HistoryRow {
    let status = past.decision.status();
    HistoryRow {
        at: time(past.at),
        reply: past.decision.reply.clone(),
        class: Tone::of_status(&status).class(),
        status,
        reason: past.decision.reason.clone().unwrap_or_default(),
    }
}

fn time(seconds: i64) -> String {
    hgs_protocol::env::UnixTime(seconds).to_string()
}

fn dial_rows(dials: &Value) -> Vec<DialRow> {
    let named = |name: &str| DIALS.iter().find(|(key, _)| *key == name).map(|(_, words)| *words);
    let Some(dials) = dials.as_object() else {
        return Vec::new();
    };
    let rows = dials.iter().filter_map(|(name, value)| {
        Some(DialRow {
            name: name.clone(),
            words: named(name)?.to_owned(),
            on: value.as_bool()?,
        })
    });
    rows.collect()
}

/// The host attests now, whatever certificate it has.
pub(super) async fn attest(posted: Posted, name: Path<String>) -> Shown {
    let visitor = &posted.visitor;
    let picture = visitor.console.live.picture();
    let url = picture.hosts.get(&*name).and_then(|host| host.place.agent.as_deref());
    let http = visitor.console.lab.http();
    match url {
        None => visitor.tell(false, format!("{name} is not on, or not run here.")),
        Some(url) => match (Agent { url, http })
            .send::<ClientView>(Method::POST, "attest", &json!({}))
            .await
        {
            Ok(view) => visitor.tell(view.is_host_guarded, format!("{name}: {}", view.detail)),
            Err(error) => visitor.tell(false, format!("{name}: {error}")),
        },
    }
    visitor.console.see_now().await;
    Ok(see(&format!("/hosts/{}", in_url(&name))))
}

/// Its power button.
pub(super) async fn power(posted: Posted, name: Path<String>) -> Shown {
    let (power, done) = match posted.text("power").as_str() {
        "on" => (HostPower::On, "is on"),
        "off" => (HostPower::Off, "is off"),
        "restart" => (HostPower::Restart(json!({})), "was restarted"),
        other => return Err(Trouble::Invalid(format!("there is no power button {other}"))),
    };
    press(&posted.visitor, &name, power, done).await
}

/// Sets dials and restarts the host, because they count from the boot on.
pub(super) async fn dials(posted: Posted, name: Path<String>) -> Shown {
    let set = DIALS
        .iter()
        .map(|(dial, _)| ((*dial).to_owned(), Value::Bool(posted.ticked(dial))));
    let power = HostPower::Restart(Value::Object(set.collect()));
    press(&posted.visitor, &name, power, "was restarted with these dials").await
}

async fn press(visitor: &Visitor, name: &str, power: HostPower, done: &str) -> Shown {
    match visitor.console.lab.power(name, power).await {
        Ok(()) => visitor.tell(true, format!("{name} {done}.")),
        Err(error) => visitor.tell(false, format!("{name}: {error}")),
    }
    visitor.console.see_now().await;
    Ok(see(&format!("/hosts/{}", in_url(name))))
}

const TPM: &str = "TPM";
const ROWS: usize = 50;
const SHOWN_PAST: usize = 20;
/// Of a registered host that this lab does not run and that never attested.
const ELSEWHERE: &str = "NotSeen";

/// The dials that are on or off: name, and what it says when on.
const DIALS: [(&str, &str); 14] = [
    ("secure_boot", "UEFI Secure Boot"),
    ("vsm", "Virtual secure mode"),
    ("hvci", "Hypervisor enforces code integrity"),
    ("iommu", "VBS requires DMA protection (IOMMU)"),
    ("bitlocker", "BitLocker on the system volume"),
    ("pagefile_encryption", "Page file encrypted"),
    ("hibernation_disabled", "Hibernation off"),
    ("dumps_disabled", "Memory dumps off"),
    ("dump_encryption", "Memory dumps encrypted"),
    ("full_boot", "Full start, no resume from hibernation"),
    ("uefi_debug", "Kernel debugging"),
    ("boot_debugging", "Boot debugging"),
    ("hypervisor_debug", "Hypervisor debugging"),
    ("test_signing", "Test-signed code accepted"),
];
