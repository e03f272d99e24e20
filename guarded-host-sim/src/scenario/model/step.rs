//! One enum of everything that can happen in a scenario, and the place of each in a file: a step is a
//! table with one action, what it must yield, and a name for readers.

use std::{collections::BTreeMap, fmt};

use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeSeed, EnumAccess, Error, IntoDeserializer, MapAccess, VariantAccess, Visitor},
    forward_to_deserialize_any,
};

use super::{
    dials::DialChanges,
    expect::{Expect, Yield},
    value::{At, Length},
};

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[schemars(extend("unevaluatedProperties" = false))]
pub struct Step {
    /// What happens, for readers; made from the action when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it must yield; that it succeeds, when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expect: Option<Expect>,
    /// What is done.
    #[serde(flatten)]
    pub action: Action,
}

/// What can be done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// The host attests, whatever certificate it has (Test-HgsClientConfiguration).
    Attest(OfHost),
    /// What the host says of its attestation, without a new attempt (Get-HgsClientConfiguration).
    Status(OfHost),
    /// The host is power-cycled, with these dials from now on.
    Reboot(Reboot),
    /// The host's power is cut.
    KillHost(OfHost),
    /// A host whose power was cut boots again.
    StartHost(OfHost),
    /// The VM is started (Start-VM).
    StartVm(OfVm),
    /// The VM is shut down (Stop-VM).
    StopVm(OfVm),
    /// The VM is live-migrated (Move-VM).
    Migrate(Migrate),
    /// The owner asks the running guest for proof that it has read the owner's secret.
    Prove(OfVm),
    /// Time passes for every machine of the fabric.
    Wait(Wait),
    /// The clock of a part of the fabric runs ahead.
    AdvanceClock(AdvanceClock),
    /// The administrator of an HGS registers a host by its identity.
    RegisterHost(OfHost),
    /// The administrator of an HGS removes a host's registration.
    RemoveHost(OfHost),
    /// The administrator registers the host's present boot log as a TPM baseline.
    RegisterBaseline(Register),
    /// The administrator registers the host's present code-integrity policy.
    RegisterCiPolicy(Register),
    /// The administrator turns a policy on or off, for all hosts.
    SetPolicy(SetPolicy),
    /// A service of an HGS is ended, as by a power cut.
    KillService(OfService),
    /// A service that was ended is started again over its own data.
    StartService(OfService),
    /// The network between hosts and services of an HGS is cut.
    Partition(Partition),
    /// The network is whole again, and nobody delays or changes messages.
    Heal(Heal),
    /// A request of the lab's own to a service, byte for byte.
    Send(SendRequest),
}

/// A host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OfHost {
    /// The host.
    pub host: At<String>,
}

/// A power cycle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Reboot {
    /// The host.
    pub host: At<String>,
    /// What of its configuration is otherwise from now on.
    #[serde(default)]
    pub dials: DialChanges,
}

/// A VM, on the host that owns it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OfVm {
    /// The VM.
    pub vm: At<String>,
    /// The host that is asked; the VM's owner when absent.
    pub host: Option<At<String>>,
}

/// A live migration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Migrate {
    /// The VM.
    pub vm: At<String>,
    /// The host that is asked; the VM's owner when absent.
    pub from: Option<At<String>>,
    /// The host that is to run it.
    pub to: At<String>,
}

/// Time passes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Wait {
    /// For how long.
    pub time: At<Length>,
}

/// A clock runs ahead.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AdvanceClock {
    /// Whose: a host, or a service as `attestation` or `key-protection`, of another HGS than the first
    /// `NAME/attestation`.
    pub of: Vec<At<String>>,
    /// By how much.
    pub by: Length,
}

/// Something of a host is registered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Register {
    /// The host that it is taken from.
    pub host: At<String>,
    /// What it is called.
    pub name: String,
}

/// A policy is turned on or off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetPolicy {
    /// The HGS; the first when absent.
    pub hgs: Option<At<String>>,
    /// The policy: `Hgs_…`.
    pub policy: String,
    /// On or off.
    pub enabled: bool,
}

/// A service of an HGS.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OfService {
    /// The HGS; the first when absent.
    pub hgs: Option<At<String>>,
    /// Which of its services.
    pub service: ServiceName,
}

/// One of the two services of an HGS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceName {
    /// Attestation (MS-HGSA).
    Attestation,
    /// Key protection (MS-KPS).
    KeyProtection,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ServiceName::Attestation => "attestation",
            ServiceName::KeyProtection => "key-protection",
        })
    }
}

/// Hosts do not reach services.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Partition {
    /// Which hosts; all when empty.
    #[serde(default)]
    pub hosts: Vec<At<String>>,
    /// The HGS; the first when absent.
    pub hgs: Option<At<String>>,
    /// Which of its services; both when empty.
    #[serde(default)]
    pub services: Vec<ServiceName>,
}

/// Nothing to say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Heal {}

/// A request of the lab's own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SendRequest {
    /// The HGS; the first when absent.
    pub hgs: Option<At<String>>,
    /// The service.
    pub service: ServiceName,
    /// `GET`, `POST` or another; `GET` without a body, `POST` with one, when absent.
    pub method: Option<String>,
    /// The path.
    pub path: String,
    /// The body, as it is.
    pub body: Option<String>,
    /// Headers beside the usual ones.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
}

impl Action {
    /// What an expectation may say of it.
    pub fn yields(&self) -> &'static [Yield] {
        use Yield::*;
        match self {
            Action::Attest(_) | Action::Status(_) => &[
                Outcome,
                Status,
                Substatus,
                FailedPolicies,
                Error,
                Says,
                CertificateLeft,
                Takes,
                Events,
            ],
            Action::StartVm(_) => &[Outcome, Error, Says, Offline, OfflineStartsLeft, Takes, Events],
            Action::Send(_) => &[Outcome, Http, Error, Reply, Says, Takes, Events],
            Action::Wait(_) | Action::AdvanceClock(_) | Action::Partition(_) | Action::Heal(_) => &[],
            _ => &[Outcome, Error, Says, Takes, Events],
        }
    }

    /// Its name in a file.
    pub fn name(&self) -> String {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::Object(map)) => map.keys().next().cloned().unwrap_or_default(),
            _ => String::new(),
        }
    }

    /// What happens, in a line.
    pub fn title(&self) -> String {
        match self {
            Action::Attest(of) => format!("{} attests", of.host),
            Action::Status(of) => format!("{} is asked for its status", of.host),
            Action::Reboot(reboot) if reboot.dials.is_empty() => format!("{} is rebooted", reboot.host),
            Action::Reboot(reboot) => format!("{} is rebooted with {}", reboot.host, inline(&reboot.dials)),
            Action::KillHost(of) => format!("the power of {} is cut", of.host),
            Action::StartHost(of) => format!("{} boots again", of.host),
            Action::StartVm(of) => format!("{} is started{}", of.vm, on(&of.host)),
            Action::StopVm(of) => format!("{} is shut down{}", of.vm, on(&of.host)),
            Action::Migrate(of) => format!("{} is migrated to {}", of.vm, of.to),
            Action::Prove(of) => format!("the guest of {} answers its owner's challenge", of.vm),
            Action::Wait(wait) => format!("{} pass", *wait.time),
            Action::AdvanceClock(clock) => {
                let names: Vec<String> = clock.of.iter().map(ToString::to_string).collect();
                format!("the clock of {} runs {} ahead", names.join(", "), clock.by)
            }
            Action::RegisterHost(of) => format!("{} is registered", of.host),
            Action::RemoveHost(of) => format!("the registration of {} is removed", of.host),
            Action::RegisterBaseline(of) => format!("the boot log of {} is registered as a baseline", of.host),
            Action::RegisterCiPolicy(of) => format!("the code-integrity policy of {} is registered", of.host),
            Action::SetPolicy(set) => {
                format!("{} is turned {}", set.policy, if set.enabled { "on" } else { "off" })
            }
            Action::KillService(of) => format!("{} is ended", of.service),
            Action::StartService(of) => format!("{} is started again", of.service),
            Action::Partition(cut) => {
                let hosts: Vec<String> = cut.hosts.iter().map(ToString::to_string).collect();
                let hosts = if hosts.is_empty() {
                    "all hosts".to_owned()
                } else {
                    hosts.join(", ")
                };
                let services: Vec<String> = cut.services.iter().map(ToString::to_string).collect();
                let services = if services.is_empty() {
                    "the HGS".to_owned()
                } else {
                    services.join(", ")
                };
                format!("the network between {hosts} and {services} is cut")
            }
            Action::Heal(_) => "the network is whole again".to_owned(),
            Action::Send(send) => format!("the lab sends its own request to {}{}", send.service, send.path),
        }
    }
}

fn on(host: &Option<At<String>>) -> String {
    host.as_ref().map_or_else(String::new, |host| format!(" on {host}"))
}

/// Fields in a line: `secure_boot = false, iommu = false`.
fn inline(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::Object(map)) => {
            let fields = map.iter().map(|(key, value)| format!("{key} = {value}"));
            fields.collect::<Vec<_>>().join(", ")
        }
        _ => String::new(),
    }
}

impl<'de> Deserialize<'de> for Step {
    /// By hand, because serde's flattening would lose the places in the file.
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Step, D::Error> {
        from.deserialize_map(Fields)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Step;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a step: a table with one action")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Step, A::Error> {
        let (mut name, mut expect, mut action) = (None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "name" => name = Some(map.next_value()?),
                "expect" => expect = Some(map.next_value()?),
                _ if action.is_some() => {
                    return Err(A::Error::custom(format!(
                        "a step has one action, and {key} is a second one"
                    )));
                }
                _ => action = Some(Action::deserialize(Entry(key, &mut map))?),
            }
        }
        let action = action.ok_or_else(|| A::Error::custom("a step needs an action: attest, start_vm, wait, …"))?;
        Ok(Step { name, expect, action })
    }
}

/// One entry of a map as an enum: its key names the variant, its value is the content.
struct Entry<'a, A>(String, &'a mut A);

impl<'de, A: MapAccess<'de>> Deserializer<'de> for Entry<'_, A> {
    type Error = A::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, A::Error> {
        visitor.visit_enum(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de, 'a, A: MapAccess<'de>> EnumAccess<'de> for Entry<'a, A> {
    type Error = A::Error;
    type Variant = Content<'a, A>;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Content<'a, A>), A::Error> {
        Ok((seed.deserialize(self.0.into_deserializer())?, Content(self.1)))
    }
}

struct Content<'a, A>(&'a mut A);

impl<'de, A: MapAccess<'de>> VariantAccess<'de> for Content<'_, A> {
    type Error = A::Error;

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, A::Error> {
        self.0.next_value_seed(seed)
    }

    fn unit_variant(self) -> Result<(), A::Error> {
        Err(A::Error::custom("an action has a table of fields"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, A::Error> {
        self.newtype_variant_seed(std::marker::PhantomData::<()>)
            .and(visitor.visit_none())
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], visitor: V) -> Result<V::Value, A::Error> {
        self.newtype_variant_seed(std::marker::PhantomData::<()>)
            .and(visitor.visit_none())
    }
}
