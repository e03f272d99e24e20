//! The client of a guarded host against real services: each status by a dial that is turned, renewal by the lab's clock,
//! the fallback, and starts while neither HGS answers.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod events;
mod fallback;
mod offline_dials;
mod renewal;
mod statuses;
#[path = "../support/mod.rs"]
mod support;

use guarded_host_sim::{
    agent::view::ClientView,
    fabric::{hgs::Hgs, host::SimHost},
    owner::Owner,
    vm::{VmName, operation::PoweredOn, security::Kind},
};
use hgs_protocol::env::OsRandom;
use serde_json::{Value, json};

use crate::support::Stage;

/// Get-HgsClientConfiguration.
async fn get(host: &SimHost) -> ClientView {
    host.get("client-configuration").await.unwrap().unwrap()
}

/// The same without its attempt.
async fn look(host: &SimHost) -> ClientView {
    host.get("status").await.unwrap().unwrap()
}

/// Test-HgsClientConfiguration.
async fn test(host: &SimHost) -> ClientView {
    let asked = host.post("client-configuration/test", &json!({})).await;
    asked.unwrap().unwrap()
}

/// Set-HgsClientConfiguration with the URLs that the host has, and with those of `fallback`.
async fn set(host: &SimHost, fallback: Option<&Hgs>) -> ClientView {
    let now = look(host).await;
    let mut change = json!({
        "AttestationServerUrl": now.attestation_server_url,
        "KeyProtectionServerUrl": now.key_protection_server_url,
    });
    if let Some(hgs) = fallback {
        change["FallbackAttestationServerUrl"] = json!(format!("{}/Attestation", hgs.attestation.url));
        change["FallbackKeyProtectionServerUrl"] = json!(format!("{}/KeyProtection", hgs.kps.url));
    }
    host.put("client-configuration", &change).await.unwrap().unwrap()
}

fn serial(view: &ClientView) -> String {
    view.certificate.as_ref().unwrap().serial.clone()
}

/// A second HGS that knows the host, in a configuration of the host, and the stage's VM made anew for both guardians.
async fn with_fallback(stage: &mut Stage, host: &SimHost) -> Hgs {
    let other = stage.fabric.start_hgs("other").unwrap();
    other.trust_signer().await.unwrap();
    let makers = stage.fabric.tpm_maker_certificates().unwrap();
    other.trust_tpm_makers(&makers).await.unwrap();
    let ek = host.artefact("ek.cer").await.unwrap();
    other.register_host(&host.name, &ek).await.unwrap();
    let boot_log = host.artefact("boot.log").await.unwrap();
    let ci_policy = host.artefact("SIPolicy.p7b").await.unwrap();
    other
        .register_model("GuardedHost", &boot_log, &ci_policy)
        .await
        .unwrap();

    let mut guardians = Vec::new();
    for (name, hgs) in [("HGS", &stage.hgs), ("other", &other)] {
        let metadata = hgs.metadata().await.unwrap();
        guardians.push(Owner::import_guardian(&metadata, name).unwrap().guardian);
    }
    let name = VmName::parse("ledger").unwrap();
    let place = (&stage.volume, host.name.as_str());
    let made = stage
        .owner
        .make_vm(&name, Kind::Shielded, b"the books", &guardians, place, &mut OsRandom);
    stage.vm = made.unwrap();
    let view = set(host, Some(&other)).await;
    assert!(view.is_host_guarded && !view.is_fallback_in_use, "{view:?}");
    other
}

async fn start(stage: &Stage, host: &SimHost) -> Result<PoweredOn, String> {
    stage.ask(host, "power-on", &json!({})).await
}

async fn off(stage: &Stage, host: &SimHost) {
    stage.ask::<Value>(host, "power-off", &json!({})).await.unwrap();
}

/// How many starts without contact the KPS allows.
async fn allow(hgs: &Hgs, limit: u32) {
    let mut settings: Value = hgs.kps.admin_get("settings").await.unwrap();
    settings["maxOfflineUnwraps"] = json!(limit);
    hgs.kps.admin_put("settings", &settings).await.unwrap();
}

const HOUR: u64 = 3600;
