//! The primary HGS is gone and the fallback answers: attestation, keys, and what the host says of it.

use guarded_host_sim::fabric::host::SimHost;
use serde_json::{Value, json};

use crate::{get, look, off, serial, set, start, support::Stage, with_fallback};

async fn ask(host: &SimHost, path: &str, body: Value) -> Result<Value, String> {
    host.post(path, &body).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fallback_answers_while_the_primary_is_gone() {
    let (mut stage, hosts) = Stage::set(&["host01"]).await;
    let host = &hosts[0];
    let payroll = stage.vm.name.clone();
    let other = with_fallback(&mut stage, host).await;
    let configured = look(host).await;
    let fallback_attestation = configured.fallback_attestation_server_url.clone();
    assert!(fallback_attestation.is_some());

    // While the primary answers, nothing is asked of the fallback.
    assert!(!start(&stage, host).await.unwrap().offline);
    off(&stage, host).await;
    let with_primary = get(host).await;
    assert_eq!(
        with_primary.last_attestation_server_url,
        configured.attestation_server_url
    );
    assert_eq!(
        with_primary.last_key_protection_server_url,
        configured.key_protection_server_url
    );
    assert!(!with_primary.is_fallback_in_use);

    // A key protection service alone that is gone: the fallback's two services step in.
    stage.hgs.kps.kill().unwrap();
    assert!(!start(&stage, host).await.unwrap().offline, "the fallback is contact");
    stage.prove(host).await;
    off(&stage, host).await;
    let view = look(host).await;
    assert!(view.is_fallback_in_use && view.is_host_guarded, "{view:?}");
    assert_eq!(
        view.last_key_protection_server_url,
        configured.fallback_key_protection_server_url
    );
    assert_eq!(view.last_attestation_server_url, fallback_attestation);
    // Attestation of the primary still answers, which a look at the client configuration finds.
    assert!(!get(host).await.is_fallback_in_use);

    // All of it is gone, over a restart of the host.
    stage.hgs.attestation.kill().unwrap();
    drop(hosts);
    let host = &stage.restart("host01", None);
    let view = get(host).await;
    assert!(view.is_host_guarded && view.is_fallback_in_use, "{view:?}");
    assert_eq!(view.last_attestation_server_url, fallback_attestation);
    let by_fallback = serial(&view);
    assert_eq!(serial(&get(host).await), by_fallback, "the certificate at hand serves");
    assert!(!start(&stage, host).await.unwrap().offline);
    stage.prove(host).await;
    off(&stage, host).await;
    let refused = ask(host, "client-configuration/test", json!({ "use": "primary" }))
        .await
        .unwrap_err();
    assert!(
        refused.contains("the primary attestation service does not answer"),
        "{refused}"
    );

    // A VM that is not for the fallback's guardian is refused there, and that is said.
    let refused = ask(host, &format!("vms/{payroll}/power-on"), json!({}))
        .await
        .unwrap_err();
    assert!(refused.contains("said by the fallback"), "{refused}");

    // The primary is back.
    stage.hgs.attestation.restart().unwrap();
    stage.hgs.kps.restart().unwrap();
    let view = get(host).await;
    assert!(view.is_host_guarded && !view.is_fallback_in_use, "{view:?}");
    assert_ne!(serial(&view), by_fallback);
    assert!(!start(&stage, host).await.unwrap().offline);
    off(&stage, host).await;

    // Set without a fallback, it is removed: nobody steps in.
    let view = set(host, None).await;
    assert_eq!(view.fallback_attestation_server_url, None);
    assert_eq!(view.fallback_key_protection_server_url, None);
    stage.hgs.kps.kill().unwrap();
    let refused = start(&stage, host).await.unwrap_err();
    assert!(
        refused.contains("no contact") && !refused.contains("fallback"),
        "{refused}"
    );
    drop(other);
}

/// A host that the primary refuses is refused, whatever the fallback would say.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_the_primary_is_not_asked_again_of_the_fallback() {
    let (mut stage, hosts) = Stage::set(&["host01"]).await;
    let host = &hosts[0];
    let _other = with_fallback(&mut stage, host).await;
    stage.hgs.attestation.admin_delete("tpm-hosts/host01").await.unwrap();
    let view = crate::test(host).await;
    assert_eq!(view.attestation_substatus, "NoInformation");
    assert_eq!(view.attestation_status_code, 301, "{view:?}");
    assert!(!view.is_fallback_in_use && !view.is_host_guarded);
    let refused = start(&stage, host).await.unwrap_err();
    assert!(refused.contains("UnauthorizedErrorReply"), "{refused}");

    // The fallback itself, asked on purpose, has no objection.
    let view = ask(host, "client-configuration/test", json!({ "use": "fallback" }))
        .await
        .unwrap();
    assert_eq!(view["IsHostGuarded"], true, "{view}");
    assert_eq!(view["IsFallbackInUse"], true, "{view}");
    assert!(!get(host).await.is_host_guarded, "the primary comes first");
}
