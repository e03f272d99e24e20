//! The client configuration of a host: what Get, Set and Test of it do, over the agent's API and on the command line.

use std::{fs, process::Command};

use guarded_host_sim::machine::dials::Dials;
use serde_json::{Value, json};

use crate::lab::Lab;

const ATTESTATION: &str = "http://hgs.bastion.local/Attestation";
const NO_KEYS: &str = "http://localhost";

fn urls() -> Value {
    json!({ "AttestationServerUrl": ATTESTATION, "KeyProtectionServerUrl": NO_KEYS })
}

#[actix_web::test]
async fn a_set_configuration_outlives_the_host_and_a_refused_one_changes_nothing() {
    let Some(lab) = Lab::new("a_set_configuration_outlives_the_host", "v2.0").await else {
        return;
    };
    lab.register().await;
    let (code, view) = lab.get_configuration().await;
    assert_eq!((code, &view["IsHostGuarded"]), (200, &json!(true)), "{view}");
    let shown = json!([
        view["Mode"],
        view["ModeCode"],
        view["AttestationServerUrl"],
        view["KeyProtectionServerUrl"],
        view["AttestationOperationMode"],
        view["AttestationOperationModeCode"],
        view["AttestationStatusCode"],
        view["AttestationSubstatus"],
        view["FallbackAttestationServerUrl"],
        view["IsFallbackInUse"],
        view["LastAttestationServerUrl"],
    ]);
    let expected = json!([
        "HostGuardianService",
        2,
        ATTESTATION,
        NO_KEYS,
        "Tpm",
        1,
        100,
        "NoInformation",
        null,
        false,
        ATTESTATION
    ]);
    assert_eq!(shown, expected);

    for (change, words) in [
        (json!({}), "give both"),
        (json!({ "AttestationServerUrl": "hgs" }), "give both"),
        (
            json!({ "AttestationServerUrl": "hgs.bastion.local", "KeyProtectionServerUrl": NO_KEYS }),
            "as in http://hgs.bastion.local/Attestation",
        ),
        (
            json!({ "EnableLocalMode": true, "AttestationServerUrl": ATTESTATION }),
            "clears all URLs",
        ),
        (json!({ "AttestationUrl": ATTESTATION }), "AttestationUrl"),
    ] {
        let (code, told) = lab.set_configuration(&change).await;
        assert_eq!(code, 400, "{change}: {told}");
        assert!(told["error"].as_str().unwrap().contains(words), "{change}: {told}");
    }
    assert_eq!(lab.get_configuration().await.1["AttestationStatus"], "Passed");

    // Local mode clears the URLs, in whatever the command line says, until other ones are set.
    let (_, local) = lab.set_configuration(&json!({ "EnableLocalMode": true })).await;
    assert_eq!(local["Mode"], "Local", "{local}");
    assert_eq!(local["AttestationStatus"], "NotConfigured");
    for url in [
        "AttestationServerUrl",
        "KeyProtectionServerUrl",
        "LastAttestationServerUrl",
        "certificate",
    ] {
        assert_eq!(local[url], Value::Null, "{url}");
    }
    lab.reboot(&Dials::default());
    assert_eq!(lab.get_configuration().await.1["Mode"], "Local");
    assert_eq!(
        lab.test_configuration("primary").await.1["AttestationStatus"],
        "NotConfigured"
    );
    let (_, again) = lab.set_configuration(&urls()).await;
    assert_eq!(again["IsHostGuarded"], true, "{again}");
    lab.reboot(&Dials::default());
    let (_, view) = lab.get_configuration().await;
    assert_eq!(
        (&view["Mode"], &view["IsHostGuarded"]),
        (&json!("HostGuardianService"), &json!(true))
    );

    // A host does not come up on a file that it cannot read, and says what to do.
    fs::write(lab.file("agent/client-configuration.json"), b"{").unwrap();
    let reply = lab.try_reboot(&Dials::default());
    let message = &reply.message;
    assert!(
        !reply.ok && message.contains("remove the file and set the client configuration again"),
        "{message}"
    );
}

#[actix_web::test]
async fn a_test_asks_again_and_a_get_does_not() {
    let Some(lab) = Lab::new("a_test_asks_again_and_a_get_does_not", "v2.0").await else {
        return;
    };
    lab.register().await;
    let serial = |view: &Value| view["certificate"]["serial"].as_str().map(str::to_owned);
    let first = serial(&lab.get_configuration().await.1);
    assert!(first.is_some());
    assert_eq!(
        serial(&lab.get_configuration().await.1),
        first,
        "the certificate at hand serves"
    );
    let second = serial(&lab.test_configuration("either").await.1);
    assert_ne!(second, first);
    let third = serial(&lab.test_configuration("primary").await.1);
    assert_ne!(third, second);
    let (code, told) = lab.test_configuration("fallback").await;
    assert_eq!(code, 409);
    assert!(
        told["error"].as_str().unwrap().contains("no fallback is configured"),
        "{told}"
    );
    assert_eq!(serial(&lab.get_configuration().await.1), third);

    // Nobody is there: the host says so, and its certificate still serves.
    let nowhere =
        json!({ "AttestationServerUrl": "http://127.0.0.1:9/Attestation", "KeyProtectionServerUrl": NO_KEYS });
    let (_, view) = lab.set_configuration(&nowhere).await;
    assert_eq!(view["AttestationStatus"], "TransientError", "{view}");
    assert_eq!(
        (&view["IsHostGuarded"], &view["certificate"]),
        (&json!(false), &Value::Null),
        "{view}"
    );
    assert_eq!(view["AttestationOperationMode"], "Unknown");
    let (code, told) = lab.test_configuration("primary").await;
    assert_eq!(code, 502);
    assert!(
        told["error"]
            .as_str()
            .unwrap()
            .contains("primary attestation service does not answer"),
        "{told}"
    );
}

#[actix_web::test]
async fn the_command_line_shows_sets_and_tests() {
    let Some(lab) = Lab::new("the_command_line_shows_sets_and_tests", "v2.0").await else {
        return;
    };
    // Parts of the service run on this thread, which must not wait for the command.
    let client = async |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_guarded-host-sim"));
        command.arg("client").args(arguments).env("HGS_AGENT", lab.agent_url());
        let output = actix_web::rt::task::spawn_blocking(move || command.output()).await;
        let output = output.unwrap().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    let (code, text) = client(&["test"]).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("AttestationStatus              : UnauthorizedHost"),
        "{text}"
    );
    assert!(text.contains("What helps: Register the host"), "{text}");

    lab.register().await;
    let (code, text) = client(&["test", "--use-primary"]).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("IsHostGuarded                  : True"), "{text}");
    let (code, text) = client(&["get", "--json"]).await;
    assert_eq!(code, Some(0), "{text}");
    let view: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&view["AttestationStatus"], &view["remedy"]),
        (&json!("Passed"), &json!(""))
    );

    let (code, text) = client(&["set", "--enable-local-mode"]).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("Mode                           : Local\n"), "{text}");
    assert!(text.contains("AttestationServerUrl           :\n"), "{text}");
    let (code, text) = client(&["set", "--attestation-url", "hgs", "--key-protection-url", NO_KEYS]).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("write scheme, name and path"), "{text}");
    let (code, text) = client(&["set", "--attestation-url", ATTESTATION]).await;
    assert_eq!(code, Some(2), "{text}");
    let (code, text) = client(&["set", "--attestation-url", ATTESTATION, "--key-protection-url", NO_KEYS]).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("AttestationOperationMode       : Tpm"), "{text}");
}
