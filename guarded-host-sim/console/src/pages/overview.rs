//! The fabric at a glance: the HGS, its hosts, their VMs, and what soon needs a hand.

use std::collections::BTreeMap;

use askama::Template;
use serde::Deserialize;

use super::{
    Frame, Shown, html, in_url,
    standing::{Tone, takes_shielded_vms},
};
use crate::{api::ApiError, session::Visitor};

#[derive(Template)]
#[template(path = "overview.html")]
struct Page {
    frame: Frame,
    mode: Result<String, String>,
    findings: Vec<Finding>,
    signer: Option<SignerShown>,
    certificates: Result<Vec<CertificateShown>, String>,
    counts: Vec<Count>,
    hosts: Vec<HostCard>,
    hidden: usize,
    registered: usize,
    vms: usize,
}

#[derive(Deserialize)]
struct Mode {
    mode: String,
}

#[derive(Deserialize)]
struct Finding {
    severity: String,
    text: String,
    remedy: String,
}

#[derive(Deserialize)]
struct SignerShown {
    sha256: String,
    not_after: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CertificateShown {
    thumbprint: String,
    certificate_type: String,
    is_primary: bool,
    is_enabled: bool,
}

struct Count {
    status: String,
    class: &'static str,
    hosts: usize,
}

struct HostCard {
    name: String,
    href: String,
    status: String,
    class: &'static str,
    substatus: String,
    takes_shielded: bool,
    vms: Vec<VmCard>,
}

struct VmCard {
    name: String,
    state: String,
    kind: String,
}

pub(super) async fn show(visitor: Visitor) -> Shown {
    let (attestation, key_protection) = (visitor.attestation(), visitor.key_protection());
    let (mode, findings, signer, certificates, registered) = tokio::join!(
        attestation.get::<Mode>("operation-mode"),
        attestation.get::<Vec<Finding>>("diagnosis"),
        attestation.get::<SignerShown>("attestation-signer"),
        key_protection.get::<Vec<CertificateShown>>("certificates"),
        super::hosts::registered(&visitor),
    );
    if let Err(error @ ApiError::Refused { .. }) = mode {
        return Err(error.into());
    }
    let registered = registered.unwrap_or_default();
    let picture = visitor.console.live.picture();
    let settings = visitor.console.settings.now();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for host in picture.hosts.values() {
        *counts.entry(host.status().to_owned()).or_default() += 1;
    }
    let unseen = registered
        .keys()
        .filter(|name| !picture.hosts.contains_key(*name))
        .count();
    if unseen > 0 {
        counts.insert("Registered, not run by this lab".to_owned(), unseen);
    }
    let mut hosts: Vec<HostCard> = picture
        .hosts
        .iter()
        .map(|(name, host)| HostCard {
            href: format!("/hosts/{}", in_url(name)),
            name: name.clone(),
            status: host.status().to_owned(),
            class: Tone::of_status(host.status()).class(),
            substatus: match &host.view {
                Ok(view) if view.attestation_substatus != "NoInformation" => view.attestation_substatus.clone(),
                _ => String::new(),
            },
            takes_shielded: takes_shielded_vms(&settings, name, Some(host)).is_ok(),
            vms: picture
                .vms
                .values()
                .filter(|vm| vm.owner_host == *name)
                .map(|vm| VmCard {
                    name: vm.name.clone(),
                    state: vm.state.clone(),
                    kind: vm.security.as_ref().map(|s| s.kind.clone()).unwrap_or_default(),
                })
                .collect(),
        })
        .collect();
    // Those that need a hand come first.
    hosts.sort_by_key(|host| host.class != Tone::Bad.class());
    let hidden = hosts.len().saturating_sub(MOST_CARDS);
    hosts.truncate(MOST_CARDS);
    html(&Page {
        frame: Frame::new(&visitor, "fabric", "Fabric"),
        mode: mode.map(|mode| mode.mode).map_err(|error| error.to_string()),
        findings: findings.unwrap_or_default(),
        signer: signer.ok(),
        certificates: certificates.map_err(|error| error.to_string()),
        counts: counts
            .into_iter()
            .map(|(status, hosts)| Count {
                class: Tone::of_status(&status).class(),
                status,
                hosts,
            })
            .collect(),
        hosts,
        hidden,
        registered: registered.len(),
        vms: picture.vms.len(),
    })
}

/// More would be no overview.
const MOST_CARDS: usize = 60;
