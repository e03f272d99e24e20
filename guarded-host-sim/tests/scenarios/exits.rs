//! Exit codes tell apart what failed, what is no scenario and what is the lab's own trouble; the messages say what
//! to do.

use std::fs;

use super::{TPM_TOOLS, missing_tools, run, said};

/// A scenario of one host that attests; `more` follows.
fn scenario(more: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tried.toml");
    let head = "title = \"A host attests\"\nteaches = [\"This is a test.\", \"It teaches nothing else.\"]\n\
                [[host]]\nname = \"host01\"\n";
    fs::write(&path, format!("{head}{more}")).unwrap();
    let path = path.display().to_string();
    (folder, path)
}

#[test]
fn a_wrong_expectation_ends_with_1_and_tells_what_came_instead() {
    if missing_tools("a_wrong_expectation_ends_with_1", &TPM_TOOLS) {
        return;
    }
    let step = "[[step]]\nreboot = { host = \"host01\", dials = { iommu = false } }\n[[step]]\nattest = { host = \
                \"host01\" }\nexpect = { status = \"Passed\", events = [{ host = \"host01\", id = 1003 }] }\n[[step]]\nstatus = { host = \"host01\" }\n";
    let (folder, path) = scenario(step);
    let json = folder.path().join("report.json").display().to_string();
    let output = run(&[&path, "--json", &json]);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for words in [
        "FAIL",
        "tried.toml:9: step 2 expects status Passed",
        "what came: InsecureHostConfiguration",
        "expects events host01: event 1003",
        "host01: event 50021",
        "an administrator would: IommuEnabled",
        "0 passed, 1 failed",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let report: serde_json::Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    let steps = &report["scenarios"][0]["steps"];
    let verdicts: Vec<_> = steps
        .as_array()
        .unwrap()
        .iter()
        .map(|step| step["verdict"].as_str().unwrap())
        .collect();
    assert_eq!(
        verdicts,
        ["passed", "failed", "skipped"],
        "nothing after a failure counts"
    );
    let failed = steps[1]["policies"].as_array().unwrap();
    assert!(
        failed
            .iter()
            .any(|row| row["policy"] == "IommuEnabled" && row["verdict"] != "pass"),
        "{failed:?}"
    );
}

#[test]
fn an_unknown_field_ends_with_2_and_points_at_it() {
    let (_folder, path) = scenario("[[step]]\natest = { host = \"host01\" }\n");
    let output = run(&[&path]);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains(&format!("{path}:6:1: step[1].atest: ")), "{said}");
    assert!(said.contains("`attest`") && said.contains("nothing was run"), "{said}");
    let nothing = run(&["/nowhere.toml"]);
    assert_eq!(nothing.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("/nowhere.toml: the file cannot be read"));
    assert_eq!(run(&[&path, "--jobs", "0"]).status.code(), Some(2), "wrong options");
}

#[test]
fn an_unreachable_service_ends_with_3_and_says_that_it_is_the_labs_trouble() {
    if missing_tools("an_unreachable_service_ends_with_3", &TPM_TOOLS) {
        return;
    }
    let step =
        "[[step]]\nkill_service = { service = \"attestation\" }\n[[step]]\nregister_host = { host = \"host01\" }\n";
    let (_folder, path) = scenario(step);
    let output = run(&[&path]);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    for words in [
        "TROUBLE",
        "attestation does not answer",
        "no verdict on the scenario",
        "1 with trouble",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
}

#[test]
fn a_report_that_cannot_be_written_ends_with_3_before_anything_is_run() {
    let (_folder, path) = scenario("[[step]]\nattest = { host = \"host01\" }\n");
    let output = run(&[&path, "--junit", "/proc/nowhere/junit.xml"]);
    assert_eq!(output.status.code(), Some(3));
    let said = said(&output);
    assert!(said.contains("trouble: cannot create /proc/nowhere"), "{said}");
    assert!(!said.contains("1 scenarios"), "{said}");
}

#[test]
fn time_that_would_have_to_pass_is_a_skip_and_not_a_pass() {
    if missing_tools("time_that_would_have_to_pass_is_a_skip", &TPM_TOOLS) {
        return;
    }
    let (_folder, path) = scenario("[[step]]\nwait = { time = \"9h\" }\n[[step]]\nattest = { host = \"host01\" }\n");
    let output = run(&[&path]);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(
        said.contains("skip") && said.contains("run with --virtual-time"),
        "{said}"
    );
    assert!(said.contains("0 passed, 0 failed, 1 skipped"), "{said}");
}
