//! Many light hosts in one process, before services of their own and before somebody's.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use guarded_host_sim::fabric::{hgs::Hgs, service::Extras};
use serde_json::{Value, json};
use support::Folder;

/// Runs `load` in `folder`; answers its end and its summary, or its errors when there was none.
fn load(folder: &Path, arguments: &[&str]) -> (Output, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_guarded-host-sim"))
        .args(["load", "--json", "--pool"])
        .arg(folder.join("pool"))
        .args(arguments)
        .output()
        .unwrap();
    let summary = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        Value::String(errors)
    });
    (output, summary)
}

/// As [`load`], of a run that ends well.
fn good(folder: &Path, hosts: u64, arguments: &[&str]) -> Value {
    let (output, summary) = load(folder, &[&["--hosts", &hosts.to_string()], arguments].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{summary:#} {errors}");
    assert_eq!(summary["hosts"], hosts, "{summary:#}");
    assert_eq!(summary["valid_certificates"], hosts, "{summary:#}");
    assert_eq!(summary["failures"], json!({}), "{summary:#}");
    for round in summary["rounds"].as_array().unwrap() {
        assert_eq!(round["attested"], hosts, "{summary:#}");
        assert!(round["latency"]["p50_ms"].as_f64().unwrap() > 0.0, "{summary:#}");
    }
    summary
}

fn causes(summary: &Value) -> Vec<&str> {
    let rounds = summary["rounds"].as_array().unwrap();
    rounds.iter().map(|round| round["cause"].as_str().unwrap()).collect()
}

#[test]
fn hosts_with_tpms_attest_renew_and_come_back_after_a_restart() {
    let folder = Folder::new();
    let arguments = ["--rounds", "2", "--restart-services", "--hold-until-renewal"];
    let first = good(&folder.0, 20, &arguments);
    assert_eq!(causes(&first), ["boot", "services-restarted", "renewal", "held"]);
    let restart = &first["rounds"][1];
    assert!(restart["services_away_seconds"].as_f64().unwrap() > 0.0, "{restart:#}");
    assert_ne!(restart["retries"], json!({}), "no host noticed: {restart:#}");
    let memory = &first["memory"];
    assert_eq!(memory["tpms_running"], 20, "{memory:#}");
    assert!(memory["per_host_kib"].as_f64().unwrap() > 100.0, "{memory:#}");
    assert_eq!(memory["services"].as_array().unwrap().len(), 2, "{memory:#}");
    assert_eq!(first["made"]["made"], 20);

    // The same TPMs again, asleep but for three.
    let again = good(&folder.0, 20, &["--tpms", "3", "--rounds", "2"]);
    assert_eq!(
        (&again["made"]["made"], &again["made"]["kept"]),
        (&json!(0), &json!(20))
    );
    assert_eq!(again["memory"]["tpms_running"], 0, "{again:#}");

    // A TPM that has lost its state is another one, without an EK.
    let hosts = folder.0.join("pool/hosts");
    fs::remove_file(hosts.join("00003/tpm/tpm2-00.permall")).unwrap();
    let (output, summary) = load(&folder.0, &["--hosts", "4"]);
    assert_eq!(output.status.code(), Some(1), "{summary:#}");
    assert_eq!(summary["valid_certificates"], 3, "{summary:#}");
    let failures = summary["failures"].as_object().unwrap();
    assert_eq!(failures.values().collect::<Vec<_>>(), [&json!(1)], "{summary:#}");

    fs::remove_dir_all(hosts.join("00002")).unwrap();
    let mut copy = Command::new("cp");
    copy.arg("-r").args([hosts.join("00001"), hosts.join("00002")]);
    assert!(copy.status().unwrap().success());
    let (output, errors) = load(&folder.0, &["--hosts", "2"]);
    let errors = errors.as_str().unwrap_or_else(|| panic!("{errors:#}"));
    assert!(
        !output.status.success() && errors.contains("a TPM's state was copied"),
        "{errors}"
    );
}

#[test]
fn hosts_with_host_keys_attest_and_renew() {
    let folder = Folder::new();
    let arguments = [
        "--mode",
        "hostkey",
        "--rounds",
        "3",
        "--restart-services",
        "--hold",
        "1",
    ];
    let summary = good_but_held(&folder.0, 20, &arguments);
    assert_eq!(
        causes(&summary),
        ["boot", "services-restarted", "renewal", "renewal", "held"]
    );
    assert_eq!(summary["memory"]["tpms_running"], 0);
    let again = good(&folder.0, 20, &["--mode", "hostkey"]);
    assert_eq!(again["made"]["kept"], 20);
}

/// As [`good`], where nothing is due while the certificates are held.
fn good_but_held(folder: &Path, hosts: u64, arguments: &[&str]) -> Value {
    let (output, summary) = load(folder, &[&["--hosts", &hosts.to_string()], arguments].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{summary:#} {errors}");
    assert_eq!(summary["valid_certificates"], hosts, "{summary:#}");
    let rounds = summary["rounds"].as_array().unwrap();
    let (held, rounds) = rounds.split_last().unwrap();
    assert_eq!(held["attested"], 0, "{summary:#}");
    assert!(rounds.iter().all(|round| round["attested"] == hosts), "{summary:#}");
    summary
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_attest_before_a_service_that_runs_already() {
    let folder = Folder::new();
    let hgs = Hgs::start(&folder.0.join("hgs"), &Extras::default(), None).unwrap();
    let (admin, token) = hgs.attestation.administrator();
    let file = folder.0.join("token");
    fs::write(&file, token).unwrap();
    let url = format!("{}/Attestation", hgs.attestation.url);
    let file = file.display().to_string();
    let there = [
        "--attestation",
        &url,
        "--attestation-admin",
        admin,
        "--token-file",
        &file,
    ];

    let summary = good(&folder.0, 3, &[&there[..], &["--rounds", "2"]].concat());
    assert_eq!(causes(&summary), ["boot", "told"]);
    let clock = folder.0.join("hgs/attestation/clock").display().to_string();
    let summary = good(
        &folder.0,
        3,
        &[&there[..], &["--rounds", "2", "--lab-clock", &clock]].concat(),
    );
    assert_eq!(causes(&summary), ["boot", "renewal"]);
    assert_eq!(summary["memory"]["services"], json!([]));

    // The administrators' verdict on one host is counted as what it is.
    let keys: Vec<Value> = hgs.attestation.admin_get("vsm-keys").await.unwrap();
    let denied = json!({ "sha256": keys[0]["spki_sha256"], "reason": "test" });
    hgs.attestation.admin_post("denied-keys", &denied).await.unwrap();
    let (output, summary) = load(
        &folder.0,
        &[&there[..], &["--hosts", "3", "--lab-clock", &clock]].concat(),
    );
    assert_eq!(output.status.code(), Some(1), "{summary:#}");
    assert_eq!(summary["valid_certificates"], 2, "{summary:#}");
    assert_eq!(summary["failures"].as_object().unwrap().len(), 1, "{summary:#}");

    // The mode is the administrators' to choose.
    let (output, errors) = load(
        &folder.0,
        &[&["--hosts", "3", "--mode", "hostkey"], &there[..]].concat(),
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(errors.as_str().unwrap().contains("is in mode Tpm"), "{errors}");
    // Nor does a token travel in clear.
    let outside = [
        "--attestation",
        &url,
        "--attestation-admin",
        "http://192.0.2.1:1",
        "--token-file",
        &file,
    ];
    let (output, errors) = load(&folder.0, &outside);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors.as_str().unwrap().contains("must not travel"), "{errors}");
}
