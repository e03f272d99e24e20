//! The suite itself, and the reports about it.

use std::{fs, path::Path, process::Command};

use quick_junit::TestCaseStatus;
use serde_json::Value;

use super::{TPM_TOOLS, missing_tools, pages, run, said, suite_folder};

#[test]
fn the_published_schema_is_that_of_the_types() {
    let printed = run(&["--schema"]);
    assert!(printed.status.success());
    let published = fs::read(suite_folder().join("schema.json")).unwrap();
    assert!(
        printed.stdout == published,
        "write it anew: guarded-host-sim run --schema > scenarios/schema.json"
    );
}

#[test]
fn every_failure_drill_has_a_scenario() {
    let mut missing: Vec<String> = (1..=20).map(|number| format!("D{number:02}")).collect();
    for entry in fs::read_dir(suite_folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "toml") {
            let text = fs::read_to_string(&path).unwrap();
            let scenario: toml::Table = toml::from_str(&text).unwrap();
            let tags = scenario
                .get("tags")
                .and_then(toml::Value::as_array)
                .cloned()
                .unwrap_or_default();
            missing.retain(|drill| !tags.iter().any(|tag| tag.as_str() == Some(drill)));
        }
    }
    // Virtual Machine Manager is not part of the lab.
    assert_eq!(missing, ["D16"]);
}

#[test]
fn what_ends_and_comes_back_does_so_as_processes_too() {
    if missing_tools("what_ends_and_comes_back_does_so_as_processes", &TPM_TOOLS) {
        return;
    }
    let file = |name: &str| suite_folder().join(format!("{name}.toml")).display().to_string();
    let files = ["happy-https", "hgs-restarts", "overload", "signer-renewal", "stolen-vm"].map(file);
    let mut arguments: Vec<&str> = files.iter().map(String::as_str).collect();
    arguments.extend(["--way", "processes", "--virtual-time"]);
    let output = run(&arguments);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("5 scenarios, as processes, in virtual time"), "{said}");
    assert!(said.contains("5 passed, 0 failed, 0 skipped, 0 with trouble"), "{said}");
}

#[test]
fn the_suite_passes_in_process_with_virtual_time() {
    if missing_tools("the_suite_passes_in_process", &TPM_TOOLS) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (junit, json) = (file("junit.xml"), file("report.json"));
    let suite = suite_folder().display().to_string();
    let html = file("pages");
    let output = run(&[
        &suite,
        "--virtual-time",
        "--junit",
        &junit,
        "--json",
        &json,
        "--html",
        &html,
    ]);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    print!("{said}");
    let report: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    assert_eq!(report["how"], "in this process, in virtual time");
    let scenarios = report["scenarios"].as_array().unwrap();
    let unsure: Vec<_> = scenarios
        .iter()
        .filter(|one| one["verdict"] != "passed")
        .map(|one| &one["name"])
        .collect();
    assert!(unsure.is_empty(), "{unsure:?}");
    assert!(scenarios.len() >= 40, "{} scenarios", scenarios.len());
    assert!(scenarios.iter().all(|one| !one["steps"].as_array().unwrap().is_empty()));
    reaches_everything(&report);
    let messages = scenarios.iter().map(|one| one["messages"].as_array().unwrap().len());
    assert!(
        messages.sum::<usize>() > scenarios.len(),
        "hosts speak through the door that keeps their messages"
    );
    is_junit(Path::new(&junit), scenarios);
    pages::are_good(Path::new(&html), &report);
}

/// Every reply of MS-HGSA, every error code of MS-KPS, every status and substatus; but for those that nothing can reach,
/// each with its reason.
fn reaches_everything(report: &Value) {
    let items = report["coverage"].as_array().unwrap().iter();
    let items = items.flat_map(|group| group["items"].as_array().unwrap());
    let (reached, not): (Vec<_>, Vec<_>) = items.partition(|item| item["count"].as_u64().unwrap() > 0);
    assert!(reached.len() > 60, "{}", reached.len());
    let not: Vec<_> = not
        .iter()
        .map(|item| (item["name"].as_str().unwrap(), item["excuse"].is_string()))
        .collect();
    assert_eq!(not, [("ADRequest", true), ("InternalException", true)]);
}

/// The document as a reader of JUnit understands it, and as its schema allows.
fn is_junit(path: &Path, scenarios: &[Value]) {
    let text = fs::read_to_string(path).unwrap();
    let read = quick_junit::Report::deserialize_from_str(&text).unwrap();
    let steps = |one: &Value| one["steps"].as_array().unwrap().len();
    assert_eq!(read.tests, scenarios.iter().map(steps).sum::<usize>());
    assert_eq!((read.failures, read.errors), (0, 0));
    assert_eq!(read.test_suites.len(), scenarios.len());
    for (suite, scenario) in read.test_suites.iter().zip(scenarios) {
        assert_eq!(suite.test_cases.len(), steps(scenario));
        assert!(suite.name.as_str().contains(scenario["title"].as_str().unwrap()));
        let passed = |status: &TestCaseStatus| matches!(status, TestCaseStatus::Success { .. });
        assert!(suite.test_cases.iter().all(|case| passed(&case.status)));
    }
    if missing_tools("the schema check of JUnit", &["xmllint"]) {
        return;
    }
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios/junit.xsd");
    let checked = Command::new("xmllint")
        .args(["--noout", "--schema"])
        .arg(schema)
        .arg(path)
        .output()
        .unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}
