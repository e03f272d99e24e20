//! What a scenario file says. The types are the schema: `guarded-host-sim run --schema` prints what
//! they accept, and a test holds `scenarios/schema.json` against it. Nothing is carried out here.

pub mod arguments;
pub mod dials;
mod entry;
pub mod expect;
pub mod step;
mod title;
pub mod value;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::vm::security::Kind;

pub use self::{
    dials::DialChanges,
    expect::Expect,
    step::{Action, Step},
    value::{At, Span},
};

/// One scenario: a fabric, and what happens on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Scenario of a guarded fabric")]
pub struct Scenario {
    /// What happens, in a line.
    pub title: String,
    /// What the scenario teaches: two sentences.
    pub teaches: At<[String; 2]>,
    /// Words to filter by: `D03` for a drill, `rotation`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// What the parts of the fabric have in common.
    #[serde(default)]
    pub fabric: FabricPlan,
    /// The Host Guardian Services; one called `hgs` when none is named.
    #[serde(default)]
    pub hgs: Vec<HgsPlan>,
    /// The hosts.
    #[serde(default)]
    pub host: Vec<HostPlan>,
    /// The VMs, which exist, powered off, before the first step.
    #[serde(default)]
    pub vm: Vec<VmPlan>,
    /// What happens, in order.
    pub step: Vec<Step>,
}

/// What the parts of the fabric have in common.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FabricPlan {
    /// Hosts speak HTTPS with their HGS.
    pub https: bool,
    /// The name in the HGS's HTTPS certificate, where it is not the HGS's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub https_certificate_name: Option<String>,
    /// Hosts were given another root certificate than that of the HGS.
    pub https_root_missing: bool,
}

/// A Host Guardian Service: attestation and key protection behind one name, `http://NAME.bastion.local`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HgsPlan {
    /// Its name.
    pub name: At<String>,
    /// How hosts prove themselves.
    #[serde(default)]
    pub mode: Mode,
    /// Policies that differ from a fresh installation: `Hgs_BitLockerEnabled = true`.
    #[serde(default)]
    pub policies: BTreeMap<String, bool>,
    /// How many minutes a health certificate lives; the service's own default when absent.
    pub health_certificate_minutes: Option<u64>,
    /// Most exchanges of one host in a minute; the service's own default when absent.
    pub requests_per_minute_per_key: Option<u32>,
    /// Key of the attestation signer.
    pub signer_suite: Option<Suite>,
    /// Most starts without contact that a released key may carry; none when absent.
    pub max_offline_unwraps: Option<u32>,
    /// Whether certificates for CA trustlets are issued.
    #[serde(default)]
    pub ca_certificates: bool,
}

/// How hosts prove themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// By TPM and boot log.
    #[default]
    Tpm,
    /// By a registered host key.
    HostKey,
}

impl Mode {
    /// As the administrators' interface calls it.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Tpm => "Tpm",
            Mode::HostKey => "HostKey",
        }
    }
}

/// Kind of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Suite {
    /// RSA.
    Rsa,
    /// The elliptic curve P-256.
    P256,
}

impl Suite {
    /// As a service's command line calls it.
    pub fn name(self) -> &'static str {
        match self {
            Suite::Rsa => "rsa",
            Suite::P256 => "p256",
        }
    }
}

/// A host. The first registered host of an HGS is the reference: its boot log and its code-integrity policy are
/// what the HGS holds all hosts against.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HostPlan {
    /// Its name.
    pub name: At<String>,
    /// Its HGS; the first when absent. `none` for a host in local mode.
    pub hgs: Option<At<String>>,
    /// Whether its HGS knows it before the first step.
    #[serde(default = "yes")]
    pub registered: bool,
    /// The version of the attestation protocol that it speaks.
    #[serde(default)]
    pub protocol: Protocol,
    /// The volume with its VMs' files; hosts that name the same one share it.
    #[serde(default = "first_volume")]
    pub volume: String,
    /// It is of before Windows version 1803: no console of shielded VMs.
    #[serde(default)]
    pub before_1803: bool,
    /// What of its configuration is not as a healthy host's.
    #[serde(default)]
    pub dials: DialChanges,
}

/// Version of the attestation protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Protocol {
    /// TpmRequestInitial and TpmRequestContinue.
    #[serde(rename = "v1.0")]
    V1,
    /// AttestationRequest.
    #[default]
    #[serde(rename = "v2.0")]
    V2,
}

impl Protocol {
    /// As the host's command line calls it.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::V1 => "v1.0",
            Protocol::V2 => "v2.0",
        }
    }
}

/// A virtual machine with a key protector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmPlan {
    /// Its name: a-z, 0-9 and `-`.
    pub name: At<String>,
    /// The host that owns it at first. On a host in local mode the VM is that host's own.
    pub host: At<String>,
    /// Its kind.
    #[serde(default)]
    pub kind: VmKind,
    /// The HGS whose guardian may open it; that of its host when absent.
    #[serde(default)]
    pub guardians: Vec<At<String>>,
    /// MaxOfflineUnwraps of its key protector, which the HGS may lower.
    #[serde(default)]
    pub max_offline_unwraps: u32,
}

/// Kind of a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VmKind {
    /// No administrator of the fabric is trusted.
    #[default]
    Shielded,
    /// Encrypted at rest and on the way; the fabric's administrators are trusted.
    EncryptionSupported,
}

impl VmKind {
    /// As a VM's sealed state has it.
    pub fn as_security(self) -> Kind {
        match self {
            VmKind::Shielded => Kind::Shielded,
            VmKind::EncryptionSupported => Kind::EncryptionSupported,
        }
    }
}

impl Scenario {
    /// The Host Guardian Services, at least one.
    pub fn services(&self) -> Vec<HgsPlan> {
        match self.hgs.is_empty() {
            true => vec![HgsPlan::called(FIRST_HGS)],
            false => self.hgs.clone(),
        }
    }
}

impl HgsPlan {
    /// A fresh installation.
    pub fn called(name: &str) -> HgsPlan {
        HgsPlan {
            name: At::from(name.to_owned()),
            mode: Mode::Tpm,
            policies: BTreeMap::new(),
            health_certificate_minutes: None,
            requests_per_minute_per_key: None,
            signer_suite: None,
            max_offline_unwraps: None,
            ca_certificates: false,
        }
    }
}

impl HostPlan {
    /// A healthy host, registered with the first HGS.
    pub fn called(name: &str) -> HostPlan {
        HostPlan {
            name: At::from(name),
            hgs: None,
            registered: true,
            protocol: Protocol::default(),
            volume: first_volume(),
            before_1803: false,
            dials: DialChanges::default(),
        }
    }
}

impl VmPlan {
    /// A shielded VM that belongs to `host`, for the guardian of that host's HGS.
    pub fn called(name: &str, host: &str) -> VmPlan {
        VmPlan {
            name: At::from(name),
            host: At::from(host),
            kind: VmKind::Shielded,
            guardians: Vec::new(),
            max_offline_unwraps: 0,
        }
    }
}

fn first_volume() -> String {
    "volume".to_owned()
}

fn yes() -> bool {
    true
}

/// The HGS of a scenario that names none.
pub const FIRST_HGS: &str = "hgs";
/// In the place of an HGS: the host is in local mode.
pub const NO_HGS: &str = "none";
