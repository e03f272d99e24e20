//! What the console asks of whoever runs the fabric: where its parts are, and what no interface of theirs offers.

use futures_util::future::BoxFuture;
use serde_json::Value;

/// What came of it, or why not, for people.
pub type Told<T> = Result<T, String>;

/// A service as its administrators reach it.
#[derive(Clone, Debug)]
pub struct ServicePlace {
    /// Base URL of the administrators' listener, without `/admin/v1`.
    pub admin_url: String,
    /// A client that trusts the listener's certificate, where it has one.
    pub http: reqwest::Client,
}

/// A host that the lab runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPlace {
    /// Its name.
    pub name: String,
    /// Base URL of its control interface; none while its power is off.
    pub agent: Option<String>,
}

/// For which of the two services a URL is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UrlOf {
    /// Attestation.
    Attestation,
    /// Key protection.
    KeyProtection,
}

/// What is done with a host's power button.
#[derive(Clone, Debug, PartialEq)]
pub enum HostPower {
    /// Boots, if it is off.
    On,
    /// As when its plug is pulled.
    Off,
    /// A power cycle with these dials (a JSON object with those that change).
    Restart(Value),
}

/// What is done with a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmAction {
    /// Start-VM.
    Start,
    /// Stop-VM.
    ShutDown,
    /// Stop-VM -TurnOff.
    TurnOff,
    /// Save-VM.
    Save,
    /// Move-VM to this host.
    Migrate(String),
}

/// A request and its answer, as they went over the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Its place in the record.
    pub number: usize,
    /// When it began, in milliseconds since the record did.
    pub at: u128,
    /// How long the answer took, in milliseconds.
    pub took: u128,
    /// Who asked.
    pub from: String,
    /// Who was asked.
    pub to: String,
    /// HTTP method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// HTTP status of the answer, if there was one.
    pub status: Option<u16>,
    /// What the lab did to it.
    pub remark: Option<String>,
    /// The request.
    pub request: Decoded,
    /// The answer, if there was one.
    pub answer: Option<Decoded>,
}

/// A message in its specification's terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Its type.
    pub kind: String,
    /// Where it is specified; empty where it is not.
    pub section: String,
    /// Whether it refuses what was asked.
    pub refuses: bool,
    /// Length of its body in bytes.
    pub length: usize,
    /// Its fields.
    pub fields: Vec<Field>,
}

/// One field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name in the specification.
    pub name: String,
    /// Its value for people.
    pub value: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What it consists of.
    pub parts: Vec<Field>,
}

/// A fabric in the hands of a lab.
pub trait Lab: Send + Sync + 'static {
    /// The attestation service.
    fn attestation(&self) -> &ServicePlace;

    /// The key protection service.
    fn key_protection(&self) -> &ServicePlace;

    /// A client for the hosts' control interfaces.
    fn http(&self) -> &reqwest::Client;

    /// The hosts that it runs, by name.
    fn hosts(&self) -> BoxFuture<'_, Vec<HostPlace>>;

    /// Whether hosts of the fabric reach the service at this base URL.
    fn check_url(&self, of: UrlOf, url: &str) -> BoxFuture<'_, Told<()>>;

    /// The dials of a host, a JSON object.
    fn dials(&self, host: &str) -> BoxFuture<'_, Told<Value>>;

    /// Does something with a VM on the host that owns it.
    fn vm(&self, vm: &str, action: VmAction) -> BoxFuture<'_, Told<()>>;

    /// What there is in a key protector (XML), as JSON: its wrappings, whose they are, which signatures hold.
    fn inspect_protector(&self, protector: &[u8]) -> Told<Value>;

    /// The newest recorded exchanges, oldest first, at most so many; those of one party where it is named.
    fn exchanges(&self, most: usize, party: &str) -> Vec<Exchange>;

    /// A recorded exchange.
    fn exchange(&self, number: usize) -> Option<Exchange>;

    /// Gives a host the code-integrity policy in the file at `path` and restarts it.
    fn apply_ci_policy(&self, host: &str, path: &str) -> BoxFuture<'_, Told<()>>;

    /// Presses a host's power button and waits until that is done; a host that boots attests.
    fn power(&self, host: &str, power: HostPower) -> BoxFuture<'_, Told<()>>;
}
