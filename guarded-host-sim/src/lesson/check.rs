//! What must hold of the fabric at the end of a lesson. Each is read from services and hosts.

use reqwest::Method;
use serde::Deserialize;
use serde_json::Value as Json;

use crate::{
    agent::view::ClientView,
    lab::{Lab, ServiceName},
    vm::view::VmView,
};

/// One thing that must hold.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// For people.
    pub text: String,
    /// What.
    pub holds: Holds,
}

/// A fact about the fabric.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "fact", rename_all = "snake_case", deny_unknown_fields)]
pub enum Holds {
    /// The attestation mode.
    Mode {
        /// `Tpm` or `HostKey`.
        is: String,
    },
    /// The guardian metadata is served at its URL.
    Metadata,
    /// Nodes of the HGS, and how many of them are up.
    Nodes {
        /// How many.
        count: usize,
        /// Of them up; all unless said.
        up: Option<usize>,
    },
    /// A host's attestation, tried now.
    Host {
        /// Which.
        host: String,
        /// `Passed`, say.
        status: String,
        /// Part of its substatus.
        substatus: Option<String>,
    },
    /// A host's configuration.
    Urls {
        /// Which.
        host: String,
        /// Base URL of attestation.
        attestation: String,
        /// Base URL of key protection.
        key_protection: String,
    },
    /// Virtual Machine Manager has the same URLs for all hosts.
    VmmUrls {
        /// Base URL of attestation.
        attestation: String,
        /// Base URL of key protection.
        key_protection: String,
    },
    /// A built-in policy.
    Policy {
        /// `Hgs_…`.
        name: String,
        /// Whether it is enabled.
        enabled: bool,
    },
    /// What is registered of a kind: `tpm-hosts`, `host-keys`, `tpm-baselines`, `ci-policies`.
    Registered {
        /// The kind.
        kind: String,
        /// How many.
        count: Option<usize>,
        /// At least this many.
        least: Option<usize>,
    },
    /// No host was registered by force.
    NoneByForce,
    /// A VM.
    Vm {
        /// Its name.
        vm: String,
        /// On which host.
        host: String,
        /// `Running`, say.
        state: String,
        /// `Shielded` or `EncryptionSupported`.
        kind: Option<String>,
    },
    /// Enabled certificates of key protection.
    Certificates {
        /// `Signing` or `Encryption`.
        role: String,
        /// How many are enabled.
        enabled: usize,
    },
    /// Key protection trusts the attestation signer that signs now.
    SignerTrusted,
    /// Hosts may keep key material for starts without contact.
    Caching,
}

impl Check {
    /// Whether it holds now.
    pub fn is_met(&self, lab: &Lab) -> bool {
        self.holds.ask(lab).unwrap_or_default()
    }
}

fn text(json: &Json, key: &str) -> String {
    json.get(key).and_then(Json::as_str).unwrap_or_default().to_owned()
}

fn rows(lab: &Lab, service: ServiceName, path: &str) -> Option<Vec<Json>> {
    get(lab, service, path)?.as_array().cloned()
}

fn get(lab: &Lab, service: ServiceName, path: &str) -> Option<Json> {
    let cluster = lab.cluster()?;
    lab.wait(cluster.ask(service, Method::GET, path, None)).ok()
}

impl Holds {
    /// Nothing, where it cannot be asked: then it does not hold.
    fn ask(&self, lab: &Lab) -> Option<bool> {
        use ServiceName::{Attestation, KeyProtection};
        Some(match self {
            Holds::Mode { is } => text(&get(lab, Attestation, "operation-mode")?, "mode") == *is,
            Holds::Metadata => {
                let base = lab.cluster()?.url(KeyProtection);
                let url = format!("{base}/service/metadata/2014-07/metadata.xml");
                lab.get(&url, 1 << 20).is_ok_and(|answer| answer.status == 200)
            }
            Holds::Nodes { count, up } => {
                let cluster = lab.cluster()?;
                let nodes: Vec<&str> = cluster.nodes().collect();
                let running = nodes.iter().filter(|node| cluster.is_up(node)).count();
                nodes.len() == *count && running == up.unwrap_or(*count)
            }
            Holds::Host {
                host,
                status,
                substatus,
            } => {
                let view = attested(lab, host)?;
                let fits = substatus
                    .as_ref()
                    .is_none_or(|wanted| view.attestation_substatus.contains(wanted));
                format!("{:?}", view.attestation_status) == *status && fits
            }
            Holds::Urls {
                host,
                attestation,
                key_protection,
            } => {
                let agent = lab.host(host)?.agent();
                let view = lab.wait(agent.get::<ClientView>("status")).ok()?.ok()?;
                same(view.attestation_server_url.as_deref(), attestation)
                    && same(view.key_protection_server_url.as_deref(), key_protection)
            }
            Holds::VmmUrls {
                attestation,
                key_protection,
            } => {
                let notes = lab.state("VMM01").notes.clone();
                same(notes.get("AttestationServerUrl").map(String::as_str), attestation)
                    && same(notes.get("KeyProtectionServerUrl").map(String::as_str), key_protection)
            }
            Holds::Policy { name, enabled } => {
                let policies = rows(lab, Attestation, "policies")?;
                policies
                    .iter()
                    .filter(|policy| text(policy, "switch").eq_ignore_ascii_case(name))
                    .all(|policy| policy.get("enabled").and_then(Json::as_bool) == Some(*enabled))
            }
            Holds::Registered { kind, count, least } => {
                let number = rows(lab, Attestation, kind)?.len();
                count.is_none_or(|count| number == count) && least.is_none_or(|least| number >= least)
            }
            Holds::NoneByForce => {
                let hosts = rows(lab, Attestation, "tpm-hosts")?;
                hosts
                    .iter()
                    .all(|host| host.get("unproven").and_then(Json::as_bool) == Some(false))
            }
            Holds::Vm { vm, host, state, kind } => {
                let agent = lab.host(host)?.agent();
                let view = lab
                    .wait(agent.get::<VmView>(&format!("vms/{}", vm.to_ascii_lowercase())))
                    .ok()?
                    .ok()?;
                let own = view.security.as_ref().map(|security| format!("{:?}", security.kind));
                view.owner_host.eq_ignore_ascii_case(host)
                    && format!("{:?}", view.state) == *state
                    && (kind.is_none() || *kind == own)
            }
            Holds::Certificates { role, enabled } => {
                let certificates = rows(lab, KeyProtection, "certificates")?;
                let of_role = certificates
                    .iter()
                    .filter(|row| text(row, "certificateType").eq_ignore_ascii_case(role));
                of_role
                    .filter(|row| row.get("isEnabled").and_then(Json::as_bool) == Some(true))
                    .count()
                    == *enabled
            }
            Holds::SignerTrusted => {
                let own = text(&get(lab, Attestation, "attestation-signer")?, "certificate");
                rows(lab, KeyProtection, "attestation-signers")?
                    .iter()
                    .any(|row| text(row, "certificate") == own)
            }
            Holds::Caching => {
                let settings = get(lab, KeyProtection, "settings")?;
                settings
                    .get("maxOfflineUnwraps")
                    .and_then(Json::as_u64)
                    .unwrap_or_default()
                    > 0
            }
        })
    }
}

/// A new attempt: what was true of the host before may not be so any more.
fn attested(lab: &Lab, host: &str) -> Option<ClientView> {
    let agent = lab.host(host)?.agent();
    lab.wait(agent.post::<ClientView>("attest", &serde_json::json!({})))
        .ok()?
        .ok()
}

/// A slash at the end says nothing.
fn same(own: Option<&str>, wanted: &str) -> bool {
    own.is_some_and(|own| {
        own.trim_end_matches('/')
            .eq_ignore_ascii_case(wanted.trim_end_matches('/'))
    })
}
