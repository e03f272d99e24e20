//! Modules HgsClient (but for guardians and key protectors) and PlatformIdentifier: what a host's administrator does.

use base64::{Engine, engine::general_purpose::STANDARD};
use hgs_shell::{
    call::Call,
    cmdlets::{Implementation, Run},
    error::{Category, ErrorRecord, Outcome},
    value::{Object, Value},
};
use reqwest::Method;
use serde_json::json;
use x509_cert::der::{Decode, Encode};

use super::{failed, objects, on_host, sentence};
use crate::{
    agent::view::ClientView,
    fabric::host::{AgentLink, Answer},
    lab::Lab,
    swtpm,
};

pub(super) const ALL: &[Implementation] = &[
    Implementation {
        cmdlet: "Get-HgsClientConfiguration",
        implemented: &[],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(get),
    },
    Implementation {
        cmdlet: "Set-HgsClientConfiguration",
        implemented: &[
            "EnableLocalMode",
            "KeyProtectionServerUrl",
            "AttestationServerUrl",
            "FallbackKeyProtectionServerUrl",
            "FallbackAttestationServerUrl",
        ],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(set),
    },
    Implementation {
        cmdlet: "Test-HgsClientConfiguration",
        implemented: &["UsePrimary", "UseFallback"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(test),
    },
    Implementation {
        cmdlet: "Get-HgsAttestationBaselinePolicy",
        implemented: &["Path", "Force", "SkipValidation", "Console"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(baseline),
    },
    Implementation {
        cmdlet: "Get-PlatformIdentifier",
        implemented: &[],
        without_effect: &[("Name", "the product keeps the name nowhere in the file either")],
        rejected: &[],
        run: Run::Each(platform_identifier),
    },
    Implementation {
        cmdlet: "Set-HgsClientHostKey",
        implemented: &["Thumbprint"],
        without_effect: &[("Force", "nothing is asked before it")],
        rejected: &[],
        run: Run::Each(set_host_key),
    },
    Implementation {
        cmdlet: "Get-HgsClientHostKey",
        implemented: &["Path"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(get_host_key),
    },
    Implementation {
        cmdlet: "Remove-HgsClientHostKey",
        implemented: &[],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(remove_host_key),
    },
];

/// The object that all three client configuration cmdlets print.
pub(super) fn configuration(view: &ClientView) -> Value {
    let text = |text: &Option<String>| objects::or_null(text.clone());
    let object = Object::new(
        "MSFT_HgsClientConfiguration",
        [
            ("IsHostGuarded", Value::Bool(view.is_host_guarded)),
            ("Mode", Value::text(&view.mode)),
            ("KeyProtectionServerUrl", text(&view.key_protection_server_url)),
            ("AttestationServerUrl", text(&view.attestation_server_url)),
            (
                "AttestationOperationMode",
                Value::text(&view.attestation_operation_mode),
            ),
            (
                "AttestationStatus",
                Value::text(format!("{:?}", view.attestation_status)),
            ),
            ("AttestationSubstatus", Value::text(&view.attestation_substatus)),
            (
                "FallbackKeyProtectionServerUrl",
                text(&view.fallback_key_protection_server_url),
            ),
            (
                "FallbackAttestationServerUrl",
                text(&view.fallback_attestation_server_url),
            ),
            ("IsFallbackInUse", Value::Bool(view.is_fallback_in_use)),
        ],
    );
    object
        .hidden
        .borrow_mut()
        .set("ToString", Value::text("MSFT_HgsClientConfiguration"));
    Value::Object(std::rc::Rc::new(object))
}

/// What a host answered, or the error of this call.
pub(super) fn told<T>(call: &mut Call<'_>, id: &str, answer: anyhow::Result<Answer<T>>) -> Outcome<T> {
    match answer {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(refusal)) => Err(call.fail(ErrorRecord::new(Category::InvalidOperation, id, sentence(&refusal)))),
        Err(error) => Err(call.fail(ErrorRecord::new(
            Category::ConnectionError,
            "HostUnreachable",
            sentence(&format!("{error:#}")),
        ))),
    }
}

fn get(call: &mut Call<'_>) -> Outcome {
    let (lab, agent) = on_host(call)?;
    let answer = lab.wait(agent.get::<ClientView>("client-configuration"));
    let view = told(call, "HgsClientConfiguration", answer)?;
    tell(call, &view);
    call.write(configuration(&view))
}

fn set(call: &mut Call<'_>) -> Outcome {
    let (lab, agent) = on_host(call)?;
    let mut body = json!({});
    if call.switch("EnableLocalMode") {
        body["EnableLocalMode"] = json!(true);
    }
    for name in [
        "KeyProtectionServerUrl",
        "AttestationServerUrl",
        "FallbackKeyProtectionServerUrl",
        "FallbackAttestationServerUrl",
    ] {
        if let Some(url) = call.text(name) {
            body[name] = json!(url);
        }
    }
    let host = call.machine().name.clone();
    if !call.should_process(&host, "Set the client configuration of the Host Guardian Service")? {
        return Ok(());
    }
    let answer = lab.wait(agent.send::<ClientView>(Method::PUT, "client-configuration", &body));
    let view = told(call, "InvalidHgsClientConfiguration", answer)?;
    tell(call, &view);
    call.write(configuration(&view))
}

fn test(call: &mut Call<'_>) -> Outcome {
    let (lab, agent) = on_host(call)?;
    let choice = match (call.switch("UsePrimary"), call.switch("UseFallback")) {
        (true, _) => json!({ "use": "primary" }),
        (_, true) => json!({ "use": "fallback" }),
        _ => json!({}),
    };
    let answer = lab.wait(agent.post::<ClientView>("client-configuration/test", &choice));
    let view = told(call, "HgsClientConfigurationNotTested", answer)?;
    tell(call, &view);
    call.write(configuration(&view))
}

/// What happened, for `-Verbose`.
fn tell(call: &mut Call<'_>, view: &ClientView) {
    for text in [&view.detail, &view.remedy] {
        if !text.is_empty() {
            call.verbose(text);
        }
    }
}

fn artefact(call: &mut Call<'_>, lab: &Lab, agent: &AgentLink, name: &str) -> Outcome<Vec<u8>> {
    lab.wait(agent.artefact(name))
        .map_err(|error| failed(call, "HostArtefact", error))
}

fn baseline(call: &mut Call<'_>) -> Outcome {
    let (lab, agent) = on_host(call)?;
    validate(call, &lab)?;
    let log = artefact(call, &lab, &agent, "boot.log")?;
    if call.switch("Console") {
        return call.write(Value::Bytes(log.into()));
    }
    let path = call.text("Path").unwrap_or_default();
    if call.file(&path)?.exists() && !call.switch("Force") {
        return Err(call.fail(
            ErrorRecord::new(
                Category::ResourceExists,
                "FileExists",
                format!("The file '{path}' exists already: -Force replaces it."),
            )
            .about(Value::text(path)),
        ));
    }
    call.write_file(&path, &log)
}

/// Refuses what could never pass with this baseline. The file would be the same.
fn validate(call: &mut Call<'_>, lab: &Lab) -> Outcome {
    if call.switch("SkipValidation") {
        return Ok(());
    }
    let name = call.machine().name.clone();
    let status = lab.host(&name).map(|host| host.status());
    let Some(Ok((dials, _))) = status else {
        return Err(failed(
            call,
            "HostUnreachable",
            format!("the machine of {name} does not answer"),
        ));
    };
    let checks = [
        (dials.secure_boot, "Secure Boot is off"),
        (dials.iommu, "no IOMMU is required by virtualization-based security"),
        (dials.vsm, "virtualization-based security does not run"),
        (dials.ci_policy.is_some(), "no code-integrity policy is applied"),
    ];
    let failing: Vec<&str> = checks.iter().filter(|(good, _)| !good).map(|(_, text)| *text).collect();
    match failing.is_empty() {
        true => Ok(()),
        false => Err(call.fail(ErrorRecord::new(
            Category::InvalidResult,
            "BaselineValidationFailed",
            format!(
                "{name} would not attest with this baseline: {}. Mend that and restart, or take the file as it is with \
                 -SkipValidation.",
                failing.join("; ")
            ),
        ))),
    }
}

fn platform_identifier(call: &mut Call<'_>) -> Outcome {
    let (lab, agent) = on_host(call)?;
    let name = call.machine().name.clone();
    let shown = lab.wait(agent.artefact("ek.cer")).ok();
    // A TPM without a certificate has its key all the same.
    let folder = lab.host(&name).map(|host| host.folder().join("tpm"));
    let own = match (&shown, folder) {
        (Some(der), _) => Some(der.clone()),
        (None, Some(folder)) => swtpm::ek_certificate(&folder).ok(),
        _ => None,
    };
    let key = own
        .and_then(|der| x509_cert::Certificate::from_der(&der).ok())
        .and_then(|certificate| certificate.tbs_certificate.subject_public_key_info.to_der().ok());
    let Some(key) = key else {
        return Err(failed(
            call,
            "PlatformIdentifier",
            format!("the TPM of {name} does not show its endorsement key"),
        ));
    };
    let certificate = match &shown {
        Some(der) => STANDARD.encode(der),
        None => "No endorsement key certificate was found in the TPM.".to_owned(),
    };
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<PlatformIdentifier><EndorsementKey>{}</EndorsementKey>\
         <EndorsementKeyCertificate>{certificate}</EndorsementKeyCertificate></PlatformIdentifier>\n",
        STANDARD.encode(key)
    );
    call.write(objects::xml("PlatformIdentifier", &text))
}

const HOST_KEY: &str = "host-key";

fn set_host_key(call: &mut Call<'_>) -> Outcome {
    let (lab, agent) = on_host(call)?;
    let name = call.machine().name.clone();
    let mut body = json!({});
    if let Some(thumbprint) = call.text("Thumbprint") {
        let pair = lab
            .state(&name)
            .certificates
            .anywhere(&thumbprint)
            .and_then(|kept| kept.pair.clone());
        let Some(key) = pair.as_ref().and_then(|pair| pair.expose_pkcs8()) else {
            return Err(call.fail(
                ErrorRecord::new(
                    Category::ObjectNotFound,
                    "CertificateNotFound",
                    format!("{name} has no certificate {thumbprint} with its private key."),
                )
                .about(Value::text(thumbprint)),
            ));
        };
        body["private_key"] = json!(STANDARD.encode(key));
    }
    let present = lab.state(&name).notes.contains_key(HOST_KEY);
    if present && call.text("Thumbprint").is_none() && !call.switch("Force") {
        return Err(call.fail(ErrorRecord::new(
            Category::ResourceExists,
            "HostKeyExists",
            format!("{name} has a host key already: Remove-HgsClientHostKey takes it away first."),
        )));
    }
    if !call.should_process(&name, "Set the host key")? {
        return Ok(());
    }
    let answer = lab.wait(agent.send::<serde_json::Value>(Method::PUT, "host-key", &body));
    told(call, "HostKeyNotSet", answer)?;
    lab.state(&name).notes.insert(HOST_KEY.to_owned(), "set".to_owned());
    Ok(())
}

fn get_host_key(call: &mut Call<'_>) -> Outcome {
    let (lab, agent) = on_host(call)?;
    let name = call.machine().name.clone();
    if !lab.state(&name).notes.contains_key(HOST_KEY) {
        return Err(call.fail(ErrorRecord::new(
            Category::ObjectNotFound,
            "HostKeyNotFound",
            format!("{name} has no host key: Set-HgsClientHostKey makes one."),
        )));
    }
    let key = artefact(call, &lab, &agent, "host-key.pub")?;
    match call.text("Path") {
        // The service keeps the public key and nothing else of a certificate; the file holds just that.
        Some(path) => call.write_file(&path, &key),
        None => {
            let hash = hex::encode_upper(hgs_protocol::crypto::sha256(&key));
            call.write(Value::object(
                "HgsClientHostKey",
                [
                    ("Identifier", Value::text(hash)),
                    ("PublicKey", Value::Bytes(key.into())),
                ],
            ))
        }
    }
}

fn remove_host_key(call: &mut Call<'_>) -> Outcome {
    let (lab, agent) = on_host(call)?;
    let name = call.machine().name.clone();
    if !call.should_process(&name, "Remove the host key")? {
        return Ok(());
    }
    let answer = lab.wait(agent.delete::<serde_json::Value>("host-key"));
    told(call, "HostKeyNotRemoved", answer)?;
    lab.state(&name).notes.remove(HOST_KEY);
    Ok(())
}
