//! Module HgsKeyProtection: the certificates of the key protection service, and whose health certificates it takes.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use hgs_protocol::protector::KeyPair;
use hgs_service::pair_files;
use hgs_shell::{
    call::Call,
    cmdlets::{Implementation, Run},
    error::{Category, ErrorRecord, Outcome},
    value::{Date, Value},
};
use reqwest::Method;
use serde_json::{Value as Json, json};

use super::server::{NO_STATE, no_state};
use super::{ask, bytes_of, failed, flag_of, objects, on_hgs, part_of, rows_of, text_of};
use crate::lab::{Lab, ServiceName::KeyProtection};

pub(super) const ALL: &[Implementation] = &[
    Implementation {
        cmdlet: "Add-HgsKeyProtectionCertificate",
        implemented: &[
            "CertificateType",
            "Thumbprint",
            "CertificatePath",
            "CertificatePassword",
        ],
        without_effect: &[
            ("Force", "nothing is asked before it"),
            (
                "NoCertificateReplication",
                "the nodes of this lab share one pair of services",
            ),
        ],
        rejected: &[],
        run: Run::Each(add_certificate),
    },
    Implementation {
        cmdlet: "Get-HgsKeyProtectionCertificate",
        implemented: &["CertificateType", "IsEnabled", "IsPrimary", "Thumbprint"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(get_certificates),
    },
    Implementation {
        cmdlet: "Set-HgsKeyProtectionCertificate",
        implemented: &["CertificateType", "Thumbprint", "IsEnabled", "IsPrimary"],
        without_effect: &[("Force", "nothing is asked before it")],
        rejected: &[],
        run: Run::Each(set_certificate),
    },
    Implementation {
        cmdlet: "Remove-HgsKeyProtectionCertificate",
        implemented: &["CertificateType", "Thumbprint", "Force"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(remove_certificate),
    },
    Implementation {
        cmdlet: "Add-HgsKeyProtectionAttestationSignerCertificate",
        implemented: &["Certificate"],
        without_effect: &[("Force", "nothing is asked before it")],
        rejected: &[],
        run: Run::Each(add_signer),
    },
    Implementation {
        cmdlet: "Get-HgsKeyProtectionAttestationSignerCertificate",
        implemented: &["Thumbprint"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(get_signers),
    },
    Implementation {
        cmdlet: "Remove-HgsKeyProtectionAttestationSignerCertificate",
        implemented: &["Thumbprint", "Force"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(remove_signer),
    },
    Implementation {
        cmdlet: "Set-HgsKeyProtectionAttestationSignerCertificatePolicy",
        implemented: &["DenyHealthCertificatesIssuedBefore", "Thumbprint"],
        without_effect: &[("Force", "nothing is asked before it")],
        rejected: &[],
        run: Run::Each(deny),
    },
    Implementation {
        cmdlet: "Export-HgsKeyProtectionState",
        implemented: &[],
        without_effect: &[],
        rejected: &[("Path", NO_STATE), ("Password", NO_STATE), ("Force", NO_STATE)],
        run: Run::Each(no_state),
    },
    Implementation {
        cmdlet: "Import-HgsKeyProtectionState",
        implemented: &[],
        without_effect: &[],
        rejected: &[
            ("Path", NO_STATE),
            ("Xml", NO_STATE),
            ("Password", NO_STATE),
            ("Force", NO_STATE),
            ("IgnoreImportFailures", NO_STATE),
        ],
        run: Run::Each(no_state),
    },
    Implementation {
        cmdlet: "Get-HgsKeyProtectionConfiguration",
        implemented: &[],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(get_configuration),
    },
    Implementation {
        cmdlet: "Set-HgsKeyProtectionConfiguration",
        implemented: &[
            "AllowKeyMaterialCaching",
            "CommunicationsCertificatePath",
            "CommunicationsCertificatePassword",
            "CommunicationsCertificateThumbprint",
        ],
        without_effect: &[
            ("Force", "nothing is asked before it"),
            (
                "NoCommunicationsCertificateReplication",
                "the nodes of this lab share one pair of services",
            ),
        ],
        rejected: &[],
        run: Run::Each(set_configuration),
    },
];

fn role(call: &Call<'_>) -> String {
    call.text("CertificateType").unwrap_or_default().to_ascii_lowercase()
}

/// A certificate with its private key, from a PFX or from this node's own stores.
fn pair(call: &mut Call<'_>, lab: &Lab, path: &str, password: &str, thumbprint: &str) -> Outcome<Arc<KeyPair>> {
    if let Some(file) = call.text(path) {
        let bytes = call.read_file(&file)?;
        let secret = call.secret(password);
        let pair = pair_files::from_pfx(&bytes, secret.as_ref().map_or("", |secret| secret.expose()));
        return pair
            .map(Arc::new)
            .map_err(|error| failed(call, "CertificateNotUsable", format!("{file}: {error:#}")));
    }
    let wanted = call.text(thumbprint).unwrap_or_default();
    let node = call.machine().name.clone();
    let pair = lab
        .state(&node)
        .certificates
        .anywhere(&wanted)
        .and_then(|kept| kept.pair.clone());
    pair.ok_or_else(|| {
        call.fail(
            ErrorRecord::new(
                Category::ObjectNotFound,
                "CertificateNotFound",
                format!("{node} has no certificate {wanted} with its private key: Import-PfxCertificate brings one."),
            )
            .about(Value::text(wanted)),
        )
    })
}

fn add_certificate(call: &mut Call<'_>) -> Outcome {
    let lab = on_hgs(call)?;
    let role = role(call);
    let pair = pair(call, &lab, "CertificatePath", "CertificatePassword", "Thumbprint")?;
    if !call.should_process(
        &pair.certificate().thumbprint(),
        &format!("Add a certificate of type {role}"),
    )? {
        return Ok(());
    }
    give(call, &lab, &role, &pair)
}

fn give(call: &mut Call<'_>, lab: &Lab, role: &str, pair: &KeyPair) -> Outcome {
    let added = match lab.cluster() {
        Some(cluster) => lab.wait(cluster.add_certificate(role, pair)).map(|_| ()),
        None => Ok(()),
    };
    added.map_err(|error| failed(call, "CertificateNotAdded", error))
}

fn certificates(call: &mut Call<'_>, lab: &Lab) -> Outcome<Vec<Json>> {
    let rows = ask(call, lab, KeyProtection, Method::GET, "certificates", None)?;
    Ok(rows_of(&rows).to_vec())
}

fn show(row: &Json) -> Value {
    let certificate = objects::certificate(&bytes_of(row, "certificate"), true, None);
    Value::object(
        "KeyCertificate",
        [
            ("CertificateType", Value::text(text_of(row, "certificateType"))),
            ("Thumbprint", Value::text(text_of(row, "thumbprint"))),
            ("IsPrimary", Value::Bool(flag_of(row, "isPrimary"))),
            ("IsEnabled", Value::Bool(flag_of(row, "isEnabled"))),
            (
                "CertificateData",
                Value::object("CertificateData", [("Certificate", certificate)]),
            ),
        ],
    )
}

fn is_thumbprint(row: &Json, wanted: &str) -> bool {
    let wanted = wanted.replace(' ', "");
    text_of(row, "thumbprint").eq_ignore_ascii_case(&wanted) || text_of(row, "sha256").eq_ignore_ascii_case(&wanted)
}

fn get_certificates(call: &mut Call<'_>) -> Outcome {
    let lab = on_hgs(call)?;
    let (role, thumbprint) = (role(call), call.text("Thumbprint"));
    let wanted = |name: &str| call.get(name).map(|value| value.is_true());
    let (enabled, primary) = (wanted("IsEnabled"), wanted("IsPrimary"));
    let found: Vec<Value> = certificates(call, &lab)?
        .iter()
        .filter(|row| !text_of(row, "certificateType").eq_ignore_ascii_case("communications"))
        .filter(|row| role.is_empty() || text_of(row, "certificateType").eq_ignore_ascii_case(&role))
        .filter(|row| enabled.is_none_or(|enabled| flag_of(row, "isEnabled") == enabled))
        .filter(|row| primary.is_none_or(|primary| flag_of(row, "isPrimary") == primary))
        .filter(|row| {
            thumbprint
                .as_deref()
                .is_none_or(|thumbprint| is_thumbprint(row, thumbprint))
        })
        .map(show)
        .collect();
    match (found.is_empty(), thumbprint) {
        (true, Some(thumbprint)) => Err(call.fail(
            ErrorRecord::new(
                Category::ObjectNotFound,
                "CertificateNotFound",
                format!(
                    "The key protection service has no certificate of type {role} with the thumbprint {thumbprint}."
                ),
            )
            .about(Value::text(thumbprint)),
        )),
        _ => call.write_all(found),
    }
}

fn set_certificate(call: &mut Call<'_>) -> Outcome {
    let lab = on_hgs(call)?;
    let (role, thumbprint) = (role(call), call.text("Thumbprint").unwrap_or_default());
    let mut body = json!({});
    if let Some(enabled) = call.get("IsEnabled") {
        body["isEnabled"] = json!(enabled.is_true());
    }
    if call.switch("IsPrimary") {
        body["isPrimary"] = json!(true);
    }
    if call.should_process(&thumbprint, &format!("Change a certificate of type {role}"))? {
        let path = format!("certificates/{role}/{thumbprint}");
        ask(call, &lab, KeyProtection, Method::PATCH, &path, Some(body))?;
    }
    Ok(())
}

fn remove_certificate(call: &mut Call<'_>) -> Outcome {
    let lab = on_hgs(call)?;
    let (role, thumbprint) = (role(call), call.text("Thumbprint").unwrap_or_default());
    let query = "VMs whose key protectors name this certificate alone do not start any more.";
    if call.should_process(&thumbprint, &format!("Remove a certificate of type {role}"))?
        && call.should_continue("Remove-HgsKeyProtectionCertificate", query)?
    {
        ask(
            call,
            &lab,
            KeyProtection,
            Method::DELETE,
            &format!("certificates/{role}/{thumbprint}"),
            None,
        )?;
    }
    Ok(())
}

fn add_signer(call: &mut Call<'_>) -> Outcome {
    let lab = on_hgs(call)?;
    let given = call.get("Certificate").unwrap_or(Value::Null);
    let Some(Value::Bytes(der)) = part_of(&given, "RawData") else {
        return Err(call.fail(ErrorRecord::new(
            Category::InvalidArgument,
            "CertificateMissing",
            "-Certificate takes a certificate, from Get-HgsAttestationSignerCertificate or Import-Certificate.",
        )));
    };
    if call.should_process("Key protection service", "Trust an attestation signer certificate")? {
        let body = json!({ "certificate": STANDARD.encode(&der) });
        ask(
            call,
            &lab,
            KeyProtection,
            Method::POST,
            "attestation-signers",
            Some(body),
        )?;
    }
    Ok(())
}

/// The service knows a signer by SHA-256, the product shows SHA-1: either is taken.
fn signers(call: &mut Call<'_>, lab: &Lab, wanted: Option<&str>) -> Outcome<Vec<(Json, String)>> {
    let rows = ask(call, lab, KeyProtection, Method::GET, "attestation-signers", None)?;
    let mut found = Vec::new();
    for row in rows_of(&rows) {
        let shown = crate::lab::certificates::thumbprint(&bytes_of(row, "certificate")).unwrap_or_default();
        let own = text_of(row, "thumbprint");
        if wanted.is_none_or(|wanted| wanted.eq_ignore_ascii_case(&shown) || wanted.eq_ignore_ascii_case(&own)) {
            found.push((row.clone(), shown));
        }
    }
    match (found.is_empty(), wanted) {
        (true, Some(wanted)) => Err(call.fail(
            ErrorRecord::new(
                Category::ObjectNotFound,
                "CertificateNotFound",
                format!("The key protection service trusts no attestation signer with the thumbprint {wanted}."),
            )
            .about(Value::text(wanted)),
        )),
        _ => Ok(found),
    }
}

fn get_signers(call: &mut Call<'_>) -> Outcome {
    let lab = on_hgs(call)?;
    let wanted = call.text("Thumbprint");
    let found = signers(call, &lab, wanted.as_deref())?;
    let shown = found.iter().map(|(row, thumbprint)| {
        let before = row.get("denyIssuedBefore").and_then(Json::as_i64);
        Value::object(
            "AttestationCertificate",
            [
                ("Thumbprint", Value::text(thumbprint)),
                (
                    "DenyHealthCertificatesIssuedBefore",
                    before.map_or(Value::Null, |time| Value::Date(Date(time))),
                ),
                (
                    "Certificate",
                    objects::certificate(&bytes_of(row, "certificate"), false, None),
                ),
            ],
        )
    });
    let shown: Vec<Value> = shown.collect();
    call.write_all(shown)
}

fn remove_signer(call: &mut Call<'_>) -> Outcome {
    let lab = on_hgs(call)?;
    let wanted = call.text("Thumbprint").unwrap_or_default();
    let query = "Hosts whose health certificates it signed get no keys any more.";
    for (row, _) in signers(call, &lab, Some(&wanted))? {
        if call.should_process(&wanted, "Trust an attestation signer certificate no more")?
            && call.should_continue("Remove-HgsKeyProtectionAttestationSignerCertificate", query)?
        {
            let path = format!("attestation-signers/{}", text_of(&row, "thumbprint"));
            ask(call, &lab, KeyProtection, Method::DELETE, &path, None)?;
        }
    }
    Ok(())
}

fn deny(call: &mut Call<'_>) -> Outcome {
    let lab = on_hgs(call)?;
    let Some(Value::Date(date)) = call.get("DenyHealthCertificatesIssuedBefore") else {
        return Ok(());
    };
    if date.0 > call.now().0 {
        call.warning("The time lies in the future: until then every health certificate is refused, new ones too.")?;
    }
    let body = json!({ "denyIssuedBefore": date.0 });
    let Some(wanted) = call.text("Thumbprint") else {
        if call.should_process(
            "All attestation signers",
            "Refuse health certificates issued before a time",
        )? {
            ask(
                call,
                &lab,
                KeyProtection,
                Method::PUT,
                "attestation-signers/policy",
                Some(body),
            )?;
        }
        return Ok(());
    };
    for (row, _) in signers(call, &lab, Some(&wanted))? {
        if call.should_process(&wanted, "Refuse health certificates issued before a time")? {
            let path = format!("attestation-signers/{}/policy", text_of(&row, "thumbprint"));
            ask(call, &lab, KeyProtection, Method::PUT, &path, Some(body.clone()))?;
        }
    }
    Ok(())
}

fn get_configuration(call: &mut Call<'_>) -> Outcome {
    let lab = on_hgs(call)?;
    let settings = ask(call, &lab, KeyProtection, Method::GET, "settings", None)?;
    let all = certificates(call, &lab)?;
    let communications = all.iter().find(|row| {
        text_of(row, "certificateType").eq_ignore_ascii_case("communications") && flag_of(row, "isPrimary")
    });
    let caching = settings
        .get("maxOfflineUnwraps")
        .and_then(Json::as_u64)
        .unwrap_or_default()
        > 0;
    call.write(Value::object(
        "ServiceConfiguration",
        [
            (
                "CommunicationsCertificateThumbprint",
                objects::or_null(communications.map(|row| text_of(row, "thumbprint"))),
            ),
            ("AllowKeyMaterialCaching", Value::Bool(caching)),
            (
                "AcceptedAttestationModes",
                Value::list(
                    settings
                        .get("acceptedModes")
                        .map(rows_of)
                        .unwrap_or_default()
                        .iter()
                        .filter_map(|mode| mode.as_str().map(Value::text))
                        .collect(),
                ),
            ),
        ],
    ))
}

fn set_configuration(call: &mut Call<'_>) -> Outcome {
    let lab = on_hgs(call)?;
    if let Some(caching) = call.get("AllowKeyMaterialCaching") {
        if !call.should_process("Key protection service", "Change whether hosts may keep key material")? {
            return Ok(());
        }
        let mut settings = ask(call, &lab, KeyProtection, Method::GET, "settings", None)?;
        settings["maxOfflineUnwraps"] = json!(if caching.is_true() { OFFLINE_STARTS } else { 0 });
        ask(call, &lab, KeyProtection, Method::PUT, "settings", Some(settings))?;
        return Ok(());
    }
    let pair = pair(
        call,
        &lab,
        "CommunicationsCertificatePath",
        "CommunicationsCertificatePassword",
        "CommunicationsCertificateThumbprint",
    )?;
    let thumbprint = pair.certificate().thumbprint();
    if call.should_process(&thumbprint, "Set the communications certificate")? {
        give(call, &lab, "communications", &pair)?;
        let path = format!("certificates/communications/{thumbprint}");
        ask(
            call,
            &lab,
            KeyProtection,
            Method::PATCH,
            &path,
            Some(json!({ "isPrimary": true })),
        )?;
    }
    Ok(())
}

/// How often a host may start a VM from what it keeps. The product's switch knows no number.
const OFFLINE_STARTS: u32 = 100;
