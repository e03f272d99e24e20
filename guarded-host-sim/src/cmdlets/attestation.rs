//! Module HgsAttestation: whose TPMs, boot logs, code-integrity policies and host keys are known, and which policies hold.

use base64::{Engine, engine::general_purpose::STANDARD};
use hgs_shell::{
    call::Call,
    cmdlets::{Implementation, Run},
    error::{Category, ErrorRecord, Outcome},
    value::Value,
    wildcard::Wildcard,
};
use reqwest::Method;
use serde_json::{Value as Json, json};

use super::{ask, bytes_of, escaped, flag_of, objects, on_hgs, part_of, record_of, rows_of, text_of, try_ask};
use crate::lab::{Lab, ServiceName::Attestation};

pub(super) const ALL: &[Implementation] = &[
    Implementation {
        cmdlet: "Add-HgsAttestationTpmHost",
        implemented: &["Name", "Path", "Xml", "Force", "PolicyVersion"],
        without_effect: &[("ForeignKey", "no other system keeps hosts by keys of its own here")],
        rejected: &[(
            "Stage",
            "hosts are registered at once; baselines and policies can be staged",
        )],
        run: Run::Each(add_tpm_host),
    },
    Implementation {
        cmdlet: "Get-HgsAttestationTpmHost",
        implemented: &["Name", "Path", "Xml", "PolicyVersion"],
        without_effect: &[("Stage", "no host is ever staged")],
        rejected: &[],
        run: Run::Each(get_tpm_hosts),
    },
    Implementation {
        cmdlet: "Remove-HgsAttestationTpmHost",
        implemented: &["Name", "PolicyVersion"],
        without_effect: &[("Stage", "no host is ever staged")],
        rejected: &[],
        run: Run::Each(remove_tpm_host),
    },
    Implementation {
        cmdlet: "Add-HgsAttestationTpmPolicy",
        implemented: &["InputObject", "Path", "Name", "PolicyVersion", "Stage"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(|call| add_file(call, "tpm-baselines", "SecureBootSettings")),
    },
    Implementation {
        cmdlet: "Add-HgsAttestationCIPolicy",
        implemented: &["InputObject", "Path", "Name", "PolicyVersion", "Stage"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(|call| add_file(call, "ci-policies", "CiPolicy")),
    },
    Implementation {
        cmdlet: "Add-HgsAttestationDumpPolicy",
        implemented: &["PublicKeyHash", "Path", "Name", "Stage"],
        without_effect: &[("PolicyVersion", "dump keys hold for both versions")],
        rejected: &[],
        run: Run::Each(add_dump_policy),
    },
    Implementation {
        cmdlet: "Get-HgsAttestationPolicy",
        implemented: &["Name", "State", "PolicyType", "PolicyVersion", "Stage"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(get_policies),
    },
    Implementation {
        cmdlet: "Get-HgsAttestationTpmPolicy",
        implemented: &["Name", "PolicyVersion", "Stage"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(get_tpm_policies),
    },
    Implementation {
        cmdlet: "Enable-HgsAttestationPolicy",
        implemented: &["Name"],
        without_effect: &[
            ("PolicyVersion", "a name is given once in both versions together"),
            ("Stage", "enabling a staged policy puts it in force"),
        ],
        rejected: &[],
        run: Run::Each(|call| switch(call, true)),
    },
    Implementation {
        cmdlet: "Disable-HgsAttestationPolicy",
        implemented: &["Name"],
        without_effect: &[
            ("PolicyVersion", "a name is given once in both versions together"),
            ("Stage", "a staged policy is without effect already"),
        ],
        rejected: &[],
        run: Run::Each(|call| switch(call, false)),
    },
    Implementation {
        cmdlet: "Remove-HgsAttestationPolicy",
        implemented: &["Name", "PolicyVersion", "Stage"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(remove_policy),
    },
    Implementation {
        cmdlet: "Add-HgsAttestationHostKey",
        implemented: &["Name", "Path"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(add_host_key),
    },
    Implementation {
        cmdlet: "Get-HgsAttestationHostKey",
        implemented: &["Name"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(get_host_keys),
    },
    Implementation {
        cmdlet: "Remove-HgsAttestationHostKey",
        implemented: &["Name"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(|call| remove_named(call, "host-keys")),
    },
    Implementation {
        cmdlet: "Add-HgsAttestationHostGroup",
        implemented: &["Name", "Identifier"],
        without_effect: &[],
        rejected: &[(
            "HostGroup",
            "no Active Directory is built that would know a group's SID: give -Identifier",
        )],
        run: Run::Each(add_host_group),
    },
    Implementation {
        cmdlet: "Get-HgsAttestationHostGroup",
        implemented: &["Name"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(get_host_groups),
    },
    Implementation {
        cmdlet: "Remove-HgsAttestationHostGroup",
        implemented: &["Name"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(|call| remove_named(call, "host-groups")),
    },
    Implementation {
        cmdlet: "Get-HgsAttestationSignerCertificate",
        implemented: &[],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(get_signer),
    },
];

/// `v1` or `v2`, by any of the spellings that guides and the reference use.
fn version(call: &Call<'_>) -> Option<&'static str> {
    let given = call.text("PolicyVersion")?.to_ascii_lowercase();
    Some(match given.as_str() {
        "v1" | "policyversion1503" => "v1",
        _ => "v2",
    })
}

/// The name given, or that of the file.
fn name_or_file(call: &mut Call<'_>) -> Outcome<String> {
    let named = call.text("Name").filter(|name| !name.is_empty());
    let of_file = call.text("Path").map(|path| {
        let file = path.rsplit(['\\', '/']).next().unwrap_or_default().to_owned();
        file.rsplit_once('.').map_or(file.clone(), |(stem, _)| stem.to_owned())
    });
    named.or(of_file).filter(|name| !name.is_empty()).ok_or_else(|| {
        call.fail(ErrorRecord::new(
            Category::InvalidArgument,
            "NameMissing",
            "Give -Name: nothing else tells what to call it.",
        ))
    })
}

fn add_tpm_host(call: &mut Call<'_>) -> Outcome {
    let lab = on_hgs(call)?;
    let identifier = identifier(call)?;
    let name = name_or_file(call)?;
    let version = version(call).unwrap_or("v2");
    if !call.should_process(&name, "Authorize the TPM of a host")? {
        return Ok(());
    }
    let body = json!({
        "name": name,
        "platform_identifier": STANDARD.encode(identifier),
        "policy_version": version,
        "force": call.switch("Force"),
    });
    match try_ask(&lab, Attestation, Method::POST, "tpm-hosts", Some(body)) {
        Ok(host) => call.write(tpm_host(&host)),
        Err(refused) => {
            let mut record = record_of(&refused);
            if refused.text.contains("not proven") {
                "TpmHostNotTrusted".clone_into(&mut record.id);
                record.category = Category::SecurityError;
                record.message.push_str(
                    " Trusted vendors' certificates are in the stores TrustedTPM_RootCA and TrustedTPM_IntermediateCA of each \
                     node (Import-Certificate -CertStoreLocation Cert:\\LocalMachine\\TrustedTPM_RootCA).",
                );
            }
            Err(call.fail(record.about(Value::text(name))))
        }
    }
}

/// The platform identifier that `-Path` or `-Xml` gives.
fn identifier(call: &mut Call<'_>) -> Outcome<Vec<u8>> {
    match (call.text("Path"), call.get("Xml")) {
        (Some(path), _) => call.read_file(&path),
        (None, Some(xml)) => {
            let text = part_of(&xml, "OuterXml").map(|text| hgs_shell::value::convert::to_text(&text));
            Ok(text.unwrap_or_default().into_bytes())
        }
        (None, None) => Ok(Vec::new()),
    }
}

fn tpm_host(host: &Json) -> Value {
    Value::object(
        "TpmHost",
        [
            ("Name", Value::text(text_of(host, "name"))),
            (
                "Identifier",
                Value::text(text_of(host, "ek_sha256").to_ascii_uppercase()),
            ),
            ("PolicyVersion", Value::text(text_of(host, "policy_version"))),
        ],
    )
}

/// Every row of a listing.
fn rows(call: &mut Call<'_>, lab: &Lab, path: &str) -> Outcome<Vec<Json>> {
    let answer = ask(call, lab, Attestation, Method::GET, &format!("{path}?limit=1000"), None)?;
    Ok(rows_of(&answer).to_vec())
}

fn is_named(row: &Json, name: Option<&str>) -> bool {
    name.is_none_or(|name| Wildcard::new(name).matches(&text_of(row, "name")))
}

fn missing(call: &mut Call<'_>, what: &str, name: &str) -> hgs_shell::error::Stop {
    call.fail(
        ErrorRecord::new(
            Category::ObjectNotFound,
            "HgsObjectNotFound",
            format!("There is no {what} '{name}'."),
        )
        .about(Value::text(name)),
    )
}

fn get_tpm_hosts(call: &mut Call<'_>) -> Outcome {
    let lab = on_hgs(call)?;
    let name = call.text("Name");
    let version = version(call);
    let key = identifier(call)?;
    let sought = match key.is_empty() {
        true => None,
        false => Some(ek_hash(&key)),
    };
    let found: Vec<Value> = rows(call, &lab, "tpm-hosts")?
        .iter()
        .filter(|row| is_named(row, name.as_deref()))
        .filter(|row| version.is_none_or(|version| text_of(row, "policy_version") == version))
        .filter(|row| {
            sought
                .as_ref()
                .is_none_or(|hash| *hash == Some(text_of(row, "ek_sha256")))
        })
        .map(tpm_host)
        .collect();
    match (found.is_empty(), name) {
        (true, Some(name)) if !name.contains('*') => Err(missing(call, "host", &name)),
        _ => call.write_all(found),
    }
}

/// SHA-256 of the endorsement key in a platform identifier of this lab's, in hex.
fn ek_hash(xml: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(xml).into_owned();
    let (_, rest) = text.split_once("<EndorsementKey>")?;
    let (key, _) = rest.split_once("</EndorsementKey>")?;
    let der = STANDARD.decode(key.split_whitespace().collect::<String>()).ok()?;
    Some(hex::encode(hgs_protocol::crypto::sha256(&der)))
}

fn remove_tpm_host(call: &mut Call<'_>) -> Outcome {
    if let Some(version) = version(call) {
        let lab = on_hgs(call)?;
        let name = call.text("Name").unwrap_or_default();
        let row = rows(call, &lab, "tpm-hosts")?
            .into_iter()
            .find(|row| is_named(row, Some(&name)));
        if row.is_some_and(|row| text_of(&row, "policy_version") != version) {
            return Err(missing(call, &format!("host of version {version}"), &name));
        }
    }
    remove_named(call, "tpm-hosts")
}

fn remove_named(call: &mut Call<'_>, path: &str) -> Outcome {
    let lab = on_hgs(call)?;
    let name = call.text("Name").unwrap_or_default();
    if call.should_process(&name, "Remove")? {
        ask(
            call,
            &lab,
            Attestation,
            Method::DELETE,
            &format!("{path}/{}", escaped(&name)),
            None,
        )?;
    }
    Ok(())
}

/// A baseline or a code-integrity policy.
fn add_file(call: &mut Call<'_>, path: &str, kind: &str) -> Outcome {
    let lab = on_hgs(call)?;
    let content = match (call.text("Path"), call.get("InputObject")) {
        (_, Some(Value::Bytes(bytes))) => bytes.to_vec(),
        (Some(file), _) => call.read_file(&file)?,
        _ => Vec::new(),
    };
    let name = name_or_file(call)?;
    if !call.should_process(&name, &format!("Add an attestation policy of type {kind}"))? {
        return Ok(());
    }
    let body = json!({
        "name": name,
        "content": STANDARD.encode(content),
        "policy_version": version(call).unwrap_or("v2"),
        "stage": call.switch("Stage"),
    });
    let added = ask(call, &lab, Attestation, Method::POST, path, Some(body))?;
    call.write(artefact(&added, kind))
}

fn add_dump_policy(call: &mut Call<'_>) -> Outcome {
    let lab = on_hgs(call)?;
    let name = name_or_file(call)?;
    let mut body = json!({ "name": name, "stage": call.switch("Stage") });
    match call.text("Path") {
        Some(file) => body["content"] = json!(STANDARD.encode(call.read_file(&file)?)),
        None => body["sha256"] = json!(call.text("PublicKeyHash").unwrap_or_default()),
    }
    if !call.should_process(&name, "Add an attestation policy of type DumpEncryptionKey")? {
        return Ok(());
    }
    let added = ask(call, &lab, Attestation, Method::POST, "dump-keys", Some(body))?;
    call.write(artefact(&added, "DumpEncryptionKey"))
}

fn artefact(row: &Json, kind: &str) -> Value {
    let staged = flag_of(row, "staged");
    policy_info(
        &text_of(row, "name"),
        kind,
        if staged { "Disabled" } else { "Enabled" },
        &text_of(row, "policy_version"),
        staged,
    )
}

fn policy_info(name: &str, kind: &str, state: &str, version: &str, staged: bool) -> Value {
    Value::object(
        "AttestationPolicyInfo",
        [
            ("Name", Value::text(name)),
            ("PolicyType", Value::text(kind)),
            ("State", Value::text(state)),
            (
                "PolicyVersion",
                objects::or_null(Some(version.to_owned()).filter(|text| !text.is_empty())),
            ),
            ("IsStaged", Value::Bool(staged)),
        ],
    )
}

/// Built-in policies and those that administrators have added.
fn all_policies(call: &mut Call<'_>, lab: &Lab) -> Outcome<Vec<Value>> {
    let built_in = ask(call, lab, Attestation, Method::GET, "policies", None)?;
    let mut found = Vec::new();
    let mut seen = Vec::new();
    for row in rows_of(&built_in) {
        let switch = text_of(row, "switch");
        if seen.contains(&switch) {
            continue;
        }
        let state = match (flag_of(row, "locked"), flag_of(row, "enabled")) {
            (true, _) => "Locked",
            (false, true) => "Enabled",
            (false, false) => "Disabled",
        };
        let kind = switch.trim_start_matches("Hgs_").replace("PageFile", "Pagefile");
        found.push(policy_info(&switch, &kind, state, "", false));
        seen.push(switch);
    }
    for (path, kind) in KINDS {
        found.extend(rows(call, lab, path)?.iter().map(|row| artefact(row, kind)));
    }
    Ok(found)
}

const KINDS: [(&str, &str); 3] = [
    ("tpm-baselines", "SecureBootSettings"),
    ("ci-policies", "CiPolicy"),
    ("dump-keys", "DumpEncryptionKey"),
];

fn has(policy: &Value, property: &str, wanted: &str) -> bool {
    let own = part_of(policy, property).map(|value| hgs_shell::value::convert::to_text(&value));
    own.is_some_and(|own| own.eq_ignore_ascii_case(wanted))
}

fn get_policies(call: &mut Call<'_>) -> Outcome {
    let lab = on_hgs(call)?;
    let (name, state, kinds, version) = (
        call.text("Name"),
        call.text("State"),
        call.texts("PolicyType"),
        version(call),
    );
    let staged = call.switch("Stage");
    let of_version = |policy: &Value| version.is_none_or(|wanted| has(policy, "PolicyVersion", wanted));
    let found: Vec<Value> = all_policies(call, &lab)?
        .into_iter()
        .filter(|policy| {
            let own = part_of(policy, "Name").map(|value| hgs_shell::value::convert::to_text(&value));
            name.as_deref()
                .is_none_or(|name| Wildcard::new(name).matches(&own.unwrap_or_default()))
        })
        .filter(|policy| state.as_deref().is_none_or(|state| has(policy, "State", state)))
        .filter(|policy| kinds.is_empty() || kinds.iter().any(|kind| has(policy, "PolicyType", kind)))
        .filter(of_version)
        .filter(|policy| !staged || has(policy, "IsStaged", "True"))
        .collect();
    match (found.is_empty(), name) {
        (true, Some(name)) if !name.contains('*') => Err(missing(call, "attestation policy", &name)),
        _ => call.write_all(found),
    }
}

fn get_tpm_policies(call: &mut Call<'_>) -> Outcome {
    let lab = on_hgs(call)?;
    let (name, version, staged) = (call.text("Name"), version(call), call.switch("Stage"));
    let found: Vec<Value> = rows(call, &lab, "tpm-baselines")?
        .iter()
        .filter(|row| is_named(row, name.as_deref()))
        .filter(|row| version.is_none_or(|version| text_of(row, "policy_version") == version))
        .filter(|row| !staged || flag_of(row, "staged"))
        .map(|row| artefact(row, "SecureBootSettings"))
        .collect();
    call.write_all(found)
}

fn switch(call: &mut Call<'_>, on: bool) -> Outcome {
    let lab = on_hgs(call)?;
    let name = call.text("Name").unwrap_or_default();
    let verb = if on { "Enable" } else { "Disable" };
    if !call.should_process(&name, &format!("{verb} an attestation policy"))? {
        return Ok(());
    }
    if name.to_ascii_lowercase().starts_with("hgs_") {
        let path = format!("policies/{}/{}", escaped(&name), verb.to_ascii_lowercase());
        ask(call, &lab, Attestation, Method::POST, &path, Some(json!({})))?;
    } else {
        switch_added(call, &lab, &name, on)?;
    }
    let all = all_policies(call, &lab)?;
    let found = all.into_iter().find(|policy| has(policy, "Name", &name));
    found.map_or(Ok(()), |policy| call.write(policy))
}

/// A policy that an administrator has added.
fn switch_added(call: &mut Call<'_>, lab: &Lab, name: &str, on: bool) -> Outcome {
    for (path, kind) in KINDS {
        let Some(row) = rows(call, lab, path)?
            .into_iter()
            .find(|row| text_of(row, "name").eq_ignore_ascii_case(name))
        else {
            continue;
        };
        match (on, flag_of(&row, "staged")) {
            (true, true) => {
                let path = format!("{path}/{}/put-in-force", escaped(&text_of(&row, "name")));
                ask(call, lab, Attestation, Method::POST, &path, Some(json!({})))?;
            }
            (false, false) => {
                return Err(call.fail(ErrorRecord::new(
                    Category::NotImplemented,
                    "PolicyCannotBeDisabled",
                    format!(
                        "'{name}' is a policy of type {kind} in force, and this service cannot set one aside: remove it with \
                         Remove-HgsAttestationPolicy, or add it with -Stage."
                    ),
                )));
            }
            _ => {}
        }
        return Ok(());
    }
    Err(missing(call, "attestation policy", name))
}

fn remove_policy(call: &mut Call<'_>) -> Outcome {
    let lab = on_hgs(call)?;
    let name = call.text("Name").unwrap_or_default();
    if name.to_ascii_lowercase().starts_with("hgs_") {
        return Err(call.fail(ErrorRecord::new(
            Category::PermissionDenied,
            "BuiltInPolicy",
            format!(
                "'{name}' is built in and cannot be removed: Disable-HgsAttestationPolicy turns it off for all hosts."
            ),
        )));
    }
    let (version, staged) = (version(call), call.switch("Stage"));
    for (path, _) in KINDS {
        let found = rows(call, &lab, path)?.into_iter().find(|row| {
            text_of(row, "name").eq_ignore_ascii_case(&name)
                && version.is_none_or(|version| text_of(row, "policy_version") == version)
                && (!staged || flag_of(row, "staged"))
        });
        if let Some(row) = found {
            if call.should_process(&name, "Remove an attestation policy")? {
                let path = format!("{path}/{}", escaped(&text_of(&row, "name")));
                ask(call, &lab, Attestation, Method::DELETE, &path, None)?;
            }
            return Ok(());
        }
    }
    Err(missing(call, "attestation policy", &name))
}

fn add_host_key(call: &mut Call<'_>) -> Outcome {
    let lab = on_hgs(call)?;
    let name = call.text("Name").unwrap_or_default();
    let path = call.text("Path").unwrap_or_default();
    let content = call.read_file(&path)?;
    if !call.should_process(&name, "Authorize a host key")? {
        return Ok(());
    }
    let body = json!({ "name": name, "content": STANDARD.encode(content) });
    let added = ask(call, &lab, Attestation, Method::POST, "host-keys", Some(body))?;
    if added.get("warning").is_some_and(|warning| !warning.is_null()) {
        call.warning(
            "Host keys are kept, but they are not effective yet: the attestation mode is another one. Set-HgsServer \
             -TrustHostKey changes it.",
        )?;
    }
    call.write(host_key(&added))
}

fn host_key(row: &Json) -> Value {
    Value::object(
        "HostKey",
        [
            ("Name", Value::text(text_of(row, "name"))),
            (
                "Identifier",
                Value::text(text_of(row, "spki_sha256").to_ascii_uppercase()),
            ),
            ("Algorithm", Value::text(text_of(row, "algorithm"))),
        ],
    )
}

fn get_host_keys(call: &mut Call<'_>) -> Outcome {
    let lab = on_hgs(call)?;
    let name = call.text("Name");
    let found = rows(call, &lab, "host-keys")?;
    let found: Vec<Value> = found
        .iter()
        .filter(|row| is_named(row, name.as_deref()))
        .map(host_key)
        .collect();
    call.write_all(found)
}

fn add_host_group(call: &mut Call<'_>) -> Outcome {
    let lab = on_hgs(call)?;
    let name = call.text("Name").unwrap_or_default();
    if !call.should_process(&name, "Keep a host group")? {
        return Ok(());
    }
    let body = json!({ "name": name, "identifier": call.text("Identifier").unwrap_or_default() });
    let added = ask(call, &lab, Attestation, Method::POST, "host-groups", Some(body))?;
    call.warning(
        "The host group is kept, but it is without effect: attestation by Active Directory is not built here.",
    )?;
    call.write(host_group(&added))
}

fn host_group(row: &Json) -> Value {
    Value::object(
        "HostGroup",
        [
            ("Name", Value::text(text_of(row, "name"))),
            ("Identifier", Value::text(text_of(row, "identifier"))),
        ],
    )
}

fn get_host_groups(call: &mut Call<'_>) -> Outcome {
    let lab = on_hgs(call)?;
    let name = call.text("Name");
    let found = rows(call, &lab, "host-groups")?;
    let found: Vec<Value> = found
        .iter()
        .filter(|row| is_named(row, name.as_deref()))
        .map(host_group)
        .collect();
    call.write_all(found)
}

fn get_signer(call: &mut Call<'_>) -> Outcome {
    let lab = on_hgs(call)?;
    let signer = ask(call, &lab, Attestation, Method::GET, "attestation-signer", None)?;
    call.write(objects::certificate(&bytes_of(&signer, "certificate"), true, None))
}
