//! Modules HgsDiagnostics and GuardedFabricTools: what is amiss with an HGS or a host, and who has attested.

use std::rc::Rc;

use hgs_shell::{
    call::Call,
    cmdlets::{Implementation, Run},
    error::Outcome,
    value::{Date, Object, Value, convert},
    world::Role,
};
use reqwest::Method;
use serde_json::Value as Json;

use super::{flag_of, lab, on_hgs, part_of, rows_of, text_of, try_ask};
use crate::{
    agent::view::ClientView,
    lab::{Lab, ServiceName},
};

pub(super) const ALL: &[Implementation] = &[
    Implementation {
        cmdlet: "Get-HgsTrace",
        implemented: &["RunDiagnostics", "Target", "Path", "Detailed", "Diagnostic"],
        without_effect: &[
            ("WriteManifest", "a collection is one file, which needs no list"),
            ("Compact", "passing results are left out unless -Detailed asks for them"),
        ],
        rejected: &[("Collector", "collectors are chosen by the targets' roles")],
        run: Run::All(trace),
    },
    Implementation {
        cmdlet: "Get-HgsTraceFileData",
        implemented: &["File", "StartByte", "Length"],
        without_effect: &[("Manifest", "a collection is one file, which needs no list")],
        rejected: &[],
        run: Run::Each(file_data),
    },
    Implementation {
        cmdlet: "New-HgsTraceTarget",
        implemented: &["HostName", "NoAccess", "Local", "Role"],
        without_effect: &[
            (
                "Credential",
                "every machine of the lab takes the shell's own administrator",
            ),
            ("PSSessionConfigurationName", "there is one way to a machine of the lab"),
        ],
        rejected: &[],
        run: Run::Each(new_target),
    },
    Implementation {
        cmdlet: "Test-HgsTraceTarget",
        implemented: &["Target"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(test_target),
    },
    Implementation {
        cmdlet: "Get-HgsAttestationReport",
        implemented: &["StartTime", "EndTime", "AD", "Tpm"],
        without_effect: &[
            ("ComputerName", "the nodes of this lab share one record"),
            (
                "Credential",
                "every machine of the lab takes the shell's own administrator",
            ),
            ("EndpointName", "there is one way to a machine of the lab"),
        ],
        rejected: &[],
        run: Run::Each(report),
    },
];

/// One check and how it came out.
struct Diagnostic {
    set: &'static str,
    name: &'static str,
    result: Verdict,
    remedy: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Pass,
    Fail,
    NotApplicable,
}

impl Verdict {
    fn of(good: bool) -> Verdict {
        if good { Verdict::Pass } else { Verdict::Fail }
    }

    fn text(self) -> &'static str {
        match self {
            Verdict::Pass => "Pass",
            Verdict::Fail => "Fail",
            Verdict::NotApplicable => "NotApplicable",
        }
    }
}

fn check(set: &'static str, name: &'static str, result: Verdict, remedy: impl Into<String>) -> Diagnostic {
    Diagnostic {
        set,
        name,
        result,
        remedy: match result {
            Verdict::Fail => remedy.into(),
            _ => String::new(),
        },
    }
}

/// A machine that is looked at.
struct Target {
    name: String,
    roles: Vec<String>,
}

fn trace(call: &mut Call<'_>, input: Vec<Value>) -> Outcome {
    let lab = lab(call)?;
    let mut given: Vec<Value> = call.get("Target").map(|given| given.each()).unwrap_or_default();
    given.extend(input);
    let targets = match given.is_empty() {
        true => vec![target(&lab, &call.machine().name.clone(), &[])],
        false => given.iter().map(|given| of_object(&lab, given)).collect(),
    };
    let sets = call.texts("Diagnostic");
    let mut results = Vec::new();
    for target in &targets {
        let mut found = look(&lab, target);
        let all = sets.is_empty()
            || sets
                .iter()
                .any(|set| matches!(set.to_ascii_lowercase().as_str(), "all" | "base"));
        found.retain(|one| all || sets.iter().any(|set| set.eq_ignore_ascii_case(one.set)));
        results.push((target, found));
    }
    let text = tree(&results, call.switch("Detailed"));
    if let Some(path) = call.text("Path") {
        let folder = call.file(&path)?;
        std::fs::create_dir_all(&folder).map_err(|error| call.fail(hgs_shell::path::io_error(&path, &error)))?;
        call.write_file(&format!(r"{}\trace.txt", path.trim_end_matches('\\')), text.as_bytes())?;
    }
    if !call.switch("RunDiagnostics") {
        let names = targets.iter().map(|target| Value::text(&target.name)).collect();
        return call.write(Value::object(
            "RemoteResultSet",
            [
                ("Targets", Value::list(names)),
                ("Path", super::objects::or_null(call.text("Path"))),
            ],
        ));
    }
    let overall = results
        .iter()
        .flat_map(|(_, found)| found)
        .all(|one| one.result != Verdict::Fail);
    let shown = results
        .iter()
        .flat_map(|(target, found)| found.iter().map(move |one| result(target, one)))
        .collect();
    let object = Object::new(
        "DiagnosticReport",
        [
            ("OverallResult", Value::text(Verdict::of(overall).text())),
            ("Results", Value::list(shown)),
        ],
    );
    object.hidden.borrow_mut().set("Drawn", Value::text(&text));
    object.hidden.borrow_mut().set("ToString", Value::text(&text));
    call.write(Value::Object(Rc::new(object)))
}

fn result(target: &Target, one: &Diagnostic) -> Value {
    Value::object(
        "DiagnosticResult",
        [
            ("Target", Value::text(&target.name)),
            ("DiagnosticSet", Value::text(one.set)),
            ("Name", Value::text(one.name)),
            ("Result", Value::text(one.result.text())),
            ("Remediation", Value::text(&one.remedy)),
        ],
    )
}

/// Target, set, check; what passes or does not apply only if asked for.
fn tree(results: &[(&Target, Vec<Diagnostic>)], detailed: bool) -> String {
    let failed = |found: &[Diagnostic]| found.iter().any(|one| one.result == Verdict::Fail);
    let overall = Verdict::of(!results.iter().any(|(_, found)| failed(found)));
    let mut text = format!("\nOverall Result: {}\n", overall.text());
    for (target, found) in results {
        let own = Verdict::of(!failed(found));
        text.push_str(&format!("    {}: {}\n", target.name, own.text()));
        let mut sets: Vec<&str> = found.iter().map(|one| one.set).collect();
        sets.dedup();
        for set in sets {
            let of_set: Vec<&Diagnostic> = found.iter().filter(|one| one.set == set).collect();
            let bad = of_set.iter().any(|one| one.result == Verdict::Fail);
            if !bad && !detailed {
                continue;
            }
            text.push_str(&format!("        {set}: {}\n", Verdict::of(!bad).text()));
            for one in of_set.into_iter().filter(|one| detailed || one.result == Verdict::Fail) {
                text.push_str(&format!("            {}: {}\n", one.name, one.result.text()));
                if !one.remedy.is_empty() {
                    text.push_str(&format!("            >>> {}\n", one.remedy));
                }
            }
        }
    }
    text
}

fn look(lab: &Lab, target: &Target) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for role in &target.roles {
        match role.to_ascii_lowercase().as_str() {
            "hostguardianservice" => look_at_node(lab, &target.name, &mut found),
            "guardedhost" => look_at_host(lab, &target.name, &mut found),
            _ => {}
        }
    }
    found
}

fn look_at_node(lab: &Lab, name: &str, found: &mut Vec<Diagnostic>) {
    const SET: &str = "HostGuardianService";
    let ready = lab.cluster().is_some_and(|cluster| cluster.has_node(name));
    found.push(check(
        SET,
        "Host Guardian Service Initialized",
        Verdict::of(ready),
        "The node belongs to no HGS: Initialize-HgsServer sets it up, or joins it with -HgsServerIPAddress.",
    ));
    if !ready {
        return;
    }
    let up = lab.cluster().is_some_and(|cluster| cluster.is_up(name));
    found.push(check(
        SET,
        "Node Available",
        Verdict::of(up),
        "The node does not answer: look at its power and its network.",
    ));
    let get = |service, path: &str| try_ask(lab, service, Method::GET, path, None);
    let attestation = get(ServiceName::Attestation, "operation-mode");
    found.push(check(
        SET,
        "Attestation Service Available",
        Verdict::of(attestation.is_ok()),
        "The attestation service does not answer on its administrators' interface: look at its log.",
    ));
    let certificates = get(ServiceName::KeyProtection, "certificates");
    found.push(check(
        SET,
        "Key Protection Service Available",
        Verdict::of(certificates.is_ok()),
        "The key protection service does not answer on its administrators' interface: look at its log.",
    ));
    for role in ["Signing", "Encryption"] {
        let primary = certificates.as_ref().is_ok_and(|rows| {
            rows_of(rows).iter().any(|row| {
                text_of(row, "certificateType").eq_ignore_ascii_case(role)
                    && flag_of(row, "isPrimary")
                    && flag_of(row, "isEnabled")
            })
        });
        let name = if role == "Signing" {
            "Primary Signing Certificate"
        } else {
            "Primary Encryption Certificate"
        };
        let remedy = format!(
            "No enabled {} certificate is primary: Set-HgsKeyProtectionCertificate -IsPrimary makes one so.",
            role.to_ascii_lowercase()
        );
        found.push(check(SET, name, Verdict::of(primary), remedy));
    }
    found.push(signer(lab));
    // What the service itself finds: no host is registered, a signer that ends soon.
    let told = get(ServiceName::Attestation, "diagnosis").unwrap_or(Json::Null);
    let findings = rows_of(&told);
    let texts: Vec<String> = findings
        .iter()
        .filter(|finding| text_of(finding, "severity") == "error")
        .map(|finding| {
            format!(
                "{} {}",
                super::sentence(&text_of(finding, "text")),
                text_of(finding, "remedy")
            )
        })
        .collect();
    found.push(check(
        "GuardedFabricTpmMode",
        "Attestation Can Succeed",
        Verdict::of(texts.is_empty()),
        texts.join(" "),
    ));
    let warnings: Vec<String> = findings
        .iter()
        .map(|finding| super::sentence(&text_of(finding, "text")))
        .collect();
    found.push(check(
        "BestPractices",
        "Nothing Ends Soon",
        Verdict::Pass,
        warnings.join(" "),
    ));
    let cut = lab.cluster().map(|cluster| (cluster.full_name(), cluster.http_port));
    let resolved = cut.is_some_and(|(name, port)| !lab.resolve(&name, port).is_empty());
    found.push(check(
        "Networking",
        "Resolve Service Hostname",
        Verdict::of(resolved),
        "The fabric's machines do not find the service's name: add a conditional forwarder for the HGS domain to the fabric's DNS \
         servers.",
    ));
    found.push(check("Https", "HTTPS Configured", Verdict::NotApplicable, ""));
}

/// Key protection trusts the signer that signs now.
fn signer(lab: &Lab) -> Diagnostic {
    let own = try_ask(lab, ServiceName::Attestation, Method::GET, "attestation-signer", None);
    let trusted = try_ask(
        lab,
        ServiceName::KeyProtection,
        Method::GET,
        "attestation-signers",
        None,
    );
    let good = match (&own, &trusted) {
        (Ok(own), Ok(trusted)) => {
            let certificate = text_of(own, "certificate");
            rows_of(trusted)
                .iter()
                .any(|row| text_of(row, "certificate") == certificate)
        }
        _ => false,
    };
    check(
        "HostGuardianService",
        "Attestation Signer Trusted by Key Protection",
        Verdict::of(good),
        "Key protection takes no health certificate of this attestation service: Get-HgsAttestationSignerCertificate, then \
         Add-HgsKeyProtectionAttestationSignerCertificate -Certificate.",
    )
}

fn look_at_host(lab: &Lab, name: &str, found: &mut Vec<Diagnostic>) {
    let installed = lab.state(name).features.contains("hostguardian");
    found.push(check(
        "GuardedHost",
        "Host Guardian Support Installed",
        Verdict::of(installed),
        "Install-WindowsFeature HostGuardian -IncludeManagementTools -Restart.",
    ));
    let (agent, status) = match lab.host(name) {
        Some(host) => (Some(host.agent()), host.status().ok()),
        None => (None, None),
    };
    let view = agent
        .and_then(|agent| lab.wait(agent.get::<ClientView>("status")).ok())
        .and_then(Result::ok);
    let Some(view) = view else {
        found.push(check(
            "GuardedHost",
            "Host Available",
            Verdict::Fail,
            "The host does not answer.",
        ));
        return;
    };
    let configured = view.mode == "HostGuardianService";
    found.push(check(
        "GuardedHost",
        "HGS Client Configured",
        Verdict::of(configured),
        "The host is in local mode: Set-HgsClientConfiguration gives it the URLs of attestation and key protection.",
    ));
    if configured {
        let status = format!("{:?}", view.attestation_status);
        let remedy = format!(
            "Attestation status {status}, {}. {} {}",
            view.attestation_substatus, view.detail, view.remedy
        );
        found.push(check(
            "GuardedHost",
            "Host Attests",
            Verdict::of(view.is_host_guarded),
            remedy,
        ));
    }
    for (set, key) in [
        ("Networking", &view.attestation_server_url),
        ("Networking", &view.key_protection_server_url),
    ] {
        let Some(url) = key.as_ref().and_then(|url| reqwest::Url::parse(url).ok()) else {
            continue;
        };
        let (host, port) = (
            url.host_str().unwrap_or_default().to_owned(),
            url.port_or_known_default().unwrap_or(80),
        );
        let reached = host == "localhost" || !lab.resolve(&host, port).is_empty();
        let remedy =
            format!("{host} is not found: is a conditional forwarder for the HGS domain on the fabric's DNS servers?");
        found.push(check(set, "Resolve Service Hostname", Verdict::of(reached), remedy));
    }
    if let Some((dials, _)) = status {
        let hardware: [(&'static str, bool, &str); 4] = [
            (
                "Secure Boot Enabled",
                dials.secure_boot,
                "Turn Secure Boot on in the firmware and restart.",
            ),
            (
                "Virtualization-Based Security Running",
                dials.vsm,
                "Enable virtualization-based security and restart.",
            ),
            (
                "IOMMU Required",
                dials.iommu,
                "Enable the IOMMU, and let virtualization-based security require it.",
            ),
            (
                "Code Integrity Policy Active",
                dials.ci_policy.is_some(),
                "Copy a code-integrity policy to C:\\Windows\\System32\\CodeIntegrity\\SIPolicy.p7b and restart.",
            ),
        ];
        let needed = view.attestation_operation_mode != "HostKey";
        for (name, good, remedy) in hardware {
            let result = if needed {
                Verdict::of(good)
            } else {
                Verdict::NotApplicable
            };
            found.push(check("Hardware", name, result, remedy));
        }
    }
}

/// A machine with the roles that are said, or that it has.
fn target(lab: &Lab, name: &str, roles: &[String]) -> Target {
    let machine = lab.machine(name);
    let own = match machine.map(|machine| machine.role) {
        Some(Role::HgsNode) => vec!["HostGuardianService".to_owned()],
        Some(Role::Host) => vec!["GuardedHost".to_owned()],
        _ => Vec::new(),
    };
    Target {
        name: machine.map_or_else(|| name.to_owned(), |machine| machine.name.clone()),
        roles: if roles.is_empty() { own } else { roles.to_vec() },
    }
}

fn of_object(lab: &Lab, given: &Value) -> Target {
    let name = part_of(given, "HostName")
        .map(|name| convert::to_text(&name))
        .unwrap_or_default();
    let roles: Vec<String> = part_of(given, "Role")
        .map(|roles| roles.each())
        .unwrap_or_default()
        .iter()
        .map(convert::to_text)
        .collect();
    target(lab, &name, &roles)
}

fn new_target(call: &mut Call<'_>) -> Outcome {
    let lab = lab(call)?;
    let local = call.switch("Local");
    let name = match call.text("HostName") {
        Some(name) if !local => name,
        _ => call.machine().name.clone(),
    };
    let target = target(&lab, &name, &call.texts("Role"));
    let roles = target.roles.iter().map(Value::text).collect();
    call.write(Value::object(
        "InputTarget",
        [
            ("HostName", Value::text(&target.name)),
            ("Role", Value::list(roles)),
            ("Local", Value::Bool(local)),
            ("NoAccess", Value::Bool(call.switch("NoAccess"))),
        ],
    ))
}

fn test_target(call: &mut Call<'_>) -> Outcome {
    let lab = lab(call)?;
    let given = call.get("Target").unwrap_or(Value::Null);
    let target = of_object(&lab, &given);
    let access = !part_of(&given, "NoAccess").is_some_and(|value| value.is_true());
    let known = match lab.machine(&target.name).map(|machine| machine.role) {
        Some(Role::HgsNode) => lab
            .cluster()
            .is_none_or(|cluster| !cluster.has_node(&target.name) || cluster.is_up(&target.name)),
        Some(_) => true,
        None => false,
    };
    call.write(Value::Bool(access && known))
}

fn file_data(call: &mut Call<'_>) -> Outcome {
    let path = call.text("File").unwrap_or_default();
    let bytes = call.read_file(&path)?;
    if call.switch("Length") {
        return call.write(Value::Int(i64::try_from(bytes.len()).unwrap_or(i64::MAX)));
    }
    let start = call
        .integer("StartByte")
        .and_then(|start| usize::try_from(start).ok())
        .unwrap_or_default();
    call.write(Value::Bytes(bytes.get(start..).unwrap_or_default().into()))
}

fn report(call: &mut Call<'_>) -> Outcome {
    let lab = on_hgs(call)?;
    let date = |name: &str| match call.get(name) {
        Some(Value::Date(date)) => Some(date.0),
        _ => None,
    };
    let (from, until) = (date("StartTime"), date("EndTime"));
    let (ad, tpm) = (call.switch("AD"), call.switch("Tpm"));
    let answer = super::ask(call, &lab, ServiceName::Attestation, Method::GET, "attestations", None)?;
    if lab.cluster().is_some_and(|cluster| cluster.nodes().count() > 1) {
        call.warning("The cluster has further nodes; their attestations are in the same record here.")?;
    }
    let mut found = Vec::new();
    for row in rows_of(&answer) {
        let Some(entry) = attestation(row) else { continue };
        let (time, mode, value) = entry;
        let of_mode = (!ad && !tpm) || (tpm && mode == "Tpm") || (ad && mode == "ActiveDirectory");
        if of_mode && from.is_none_or(|from| time >= from) && until.is_none_or(|until| time <= until) {
            found.push(value);
        }
    }
    if ad && found.is_empty() {
        call.verbose("Attestation by Active Directory is not built here.");
    }
    call.write_all(found)
}

/// Time, mode, and the object of an attestation.
fn attestation(row: &Json) -> Option<(i64, String, Value)> {
    let body = row.get("body")?;
    let time = ["at", "time", "recorded_at"]
        .iter()
        .find_map(|key| row.get(*key)?.as_i64())
        .unwrap_or_default();
    let mode = text_of(body, "mode");
    let status = body.get("host_status").cloned().unwrap_or(Json::Null);
    let passed = text_of(body, "reply").contains("Result") || text_of(body, "reason").is_empty();
    let failing: Vec<String> = body
        .get("verdicts")
        .map(rows_of)
        .unwrap_or_default()
        .iter()
        .filter(|verdict| flag_of(verdict, "enabled") && text_of(verdict, "verdict") != "pass")
        .map(|verdict| text_of(verdict, "policy"))
        .collect();
    let text = |key: &str, otherwise: &str| match status.get(key).and_then(Json::as_str) {
        Some(text) => text.to_owned(),
        None => otherwise.to_owned(),
    };
    let substatus = if failing.is_empty() {
        "NoInformation".to_owned()
    } else {
        failing.join(", ")
    };
    let key = ["ek_sha256", "endorsement_key", "host_key"]
        .iter()
        .map(|key| text_of(body, key))
        .find(|text| !text.is_empty());
    let value = Value::object(
        "HgsAttestationReport",
        [
            ("Time", Value::Date(Date(time))),
            ("HostName", Value::text(text_of(body, "host"))),
            ("AttestationOperationMode", Value::text(&mode)),
            (
                "AttestationStatus",
                Value::text(text("status", if passed { "Passed" } else { "Failed" })),
            ),
            ("AttestationSubStatus", Value::text(text("substatus", &substatus))),
            ("AuthorizedHostGroup", Value::text("NotApplicable")),
            (
                "EndorsementKeyHash",
                Value::text(key.unwrap_or_else(|| "NotApplicable".to_owned())),
            ),
        ],
    );
    Some((time, mode, value))
}
