//! Module HgsServer: an HGS's life.

use std::sync::Arc;

use hgs_protocol::protector::KeyPair;
use hgs_service::pair_files;
use hgs_shell::{
    call::Call,
    cmdlets::{Implementation, Run},
    error::{Category, ErrorRecord, Outcome},
    value::{Entries, Value},
};
use reqwest::Method;
use serde_json::json;

use super::{ask, failed, lab, objects, on_hgs, on_node, text_of};
use crate::lab::{Lab, Mode, NewCluster, ServiceName};

pub(super) const ALL: &[Implementation] = &[
    Implementation {
        cmdlet: "Install-HgsServer",
        implemented: &["HgsDomainName", "Restart"],
        without_effect: &[
            ("SafeModeAdministratorPassword", NO_DIRECTORY),
            ("HgsDomainCredential", NO_DIRECTORY),
            ("LogDirectory", NO_DIRECTORY),
            ("DatabasePath", NO_DIRECTORY),
        ],
        rejected: &[],
        run: Run::Each(install),
    },
    Implementation {
        cmdlet: "Initialize-HgsServer",
        implemented: &[
            "HgsServiceName",
            "HgsServerIPAddress",
            "UseHgsDomain",
            "UseExistingDomain",
            "Http",
            "HttpPort",
            "TrustTpm",
            "TrustHostKey",
            "TrustActiveDirectory",
            "SigningCertificatePath",
            "SigningCertificatePassword",
            "SigningCertificateThumbprint",
            "EncryptionCertificatePath",
            "EncryptionCertificatePassword",
            "EncryptionCertificateThumbprint",
        ],
        without_effect: &[
            ("Force", "nothing is asked before it"),
            ("LogDirectory", "each service keeps its log in its own folder"),
            ("HgsDomainCredential", NO_DIRECTORY),
            (
                "HgsVersion",
                "this service keeps artefacts of both versions and tries v2 first",
            ),
            (
                "ClusterName",
                "there is no failover cluster: nodes share one pair of services",
            ),
            ("JeaAdministratorsGroup", NO_JEA),
            ("JeaReviewersGroup", NO_JEA),
            ("ServiceAccount", "services run without a managed service account"),
        ],
        rejected: &[
            ("Https", NO_HTTPS),
            ("HttpsPort", NO_HTTPS),
            ("HttpsCertificatePath", NO_HTTPS),
            ("HttpsCertificatePassword", NO_HTTPS),
            ("HttpsCertificateThumbprint", NO_HTTPS),
        ],
        run: Run::Each(initialize),
    },
    Implementation {
        cmdlet: "Initialize-HgsAttestation",
        implemented: &["HgsServiceName", "TrustHostKey", "TrustTpm", "TrustActiveDirectory"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(initialize_attestation),
    },
    Implementation {
        cmdlet: "Get-HgsServer",
        implemented: &[],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(get),
    },
    Implementation {
        cmdlet: "Set-HgsServer",
        implemented: &["Http", "HttpPort", "TrustTpm", "TrustHostKey", "TrustActiveDirectory"],
        without_effect: &[(
            "UpdateMemoryLimit",
            "the services have no memory limit of an application pool",
        )],
        rejected: &[
            ("Https", NO_HTTPS),
            ("HttpsPort", NO_HTTPS),
            ("HttpsCertificatePath", NO_HTTPS),
            ("HttpsCertificatePassword", NO_HTTPS),
            ("HttpsCertificateThumbprint", NO_HTTPS),
        ],
        run: Run::Each(set),
    },
    Implementation {
        cmdlet: "Set-HgsServerVersion",
        implemented: &[],
        without_effect: &[(
            "Version",
            "this service keeps artefacts of both versions and tries v2 first",
        )],
        rejected: &[],
        run: Run::Each(set_version),
    },
    Implementation {
        cmdlet: "Test-HgsServer",
        implemented: &["HgsDomainName"],
        without_effect: &[
            ("SafeModeAdministratorPassword", NO_DIRECTORY),
            ("HgsDomainCredential", NO_DIRECTORY),
            ("HgsServerIPAddress", NO_DIRECTORY),
            ("LogDirectory", NO_DIRECTORY),
            ("DatabasePath", NO_DIRECTORY),
        ],
        rejected: &[],
        run: Run::Each(test),
    },
    Implementation {
        cmdlet: "Export-HgsServerState",
        implemented: &[],
        without_effect: &[],
        rejected: &[("Path", NO_STATE), ("Password", NO_STATE), ("Force", NO_STATE)],
        run: Run::Each(no_state),
    },
    Implementation {
        cmdlet: "Import-HgsServerState",
        implemented: &[],
        without_effect: &[],
        rejected: &[
            ("Path", NO_STATE),
            ("XML", NO_STATE),
            ("Password", NO_STATE),
            ("ImportTpmModeState", NO_STATE),
            ("ImportActiveDirectoryModeState", NO_STATE),
        ],
        run: Run::Each(no_state),
    },
    Implementation {
        cmdlet: "Clear-HgsServer",
        implemented: &["Force"],
        without_effect: &[(
            "ClusterName",
            "there is no failover cluster: nodes share one pair of services",
        )],
        rejected: &[],
        run: Run::Each(clear),
    },
    Implementation {
        cmdlet: "Uninstall-HgsServer",
        implemented: &["Force", "Restart"],
        without_effect: &[
            ("LocalAdministratorPassword", NO_DIRECTORY),
            ("HgsDomainCredential", NO_DIRECTORY),
        ],
        rejected: &[],
        run: Run::Each(uninstall),
    },
];

pub(super) const NO_STATE: &str =
    "artefacts and keys are exported and imported by the services' own commands, attestation backup and kps backup";
const NO_DIRECTORY: &str = "no Active Directory is built: a domain is a name here";
const NO_JEA: &str =
    "there are no groups of Active Directory; each service has tokens for administrators and reviewers";
const NO_HTTPS: &str =
    "the nodes of this lab speak HTTP only; key material is encrypted within the messages either way";

/// For both modules.
pub(super) fn no_state(call: &mut Call<'_>) -> Outcome {
    let name = call.name();
    Err(call.fail(ErrorRecord::new(
        Category::NotImplemented,
        "NotInThisLab",
        format!("{name} is not carried out in this lab: {NO_STATE}."),
    )))
}

fn install(call: &mut Call<'_>) -> Outcome {
    let lab = on_node(call)?;
    let node = call.machine().name.clone();
    let domain = call.text("HgsDomainName").unwrap_or_default().to_ascii_lowercase();
    if !is_domain(&domain) {
        return Err(call.fail(ErrorRecord::new(
            Category::InvalidArgument,
            "InvalidDomainName",
            format!("'{domain}' cannot be the name of a domain: give at least two labels, as in bastion.local."),
        )));
    }
    let present = lab.state(&node).domain.clone();
    if let Some(present) = present {
        return Err(call.fail(ErrorRecord::new(
            Category::InvalidOperation,
            "HgsServerAlreadyInstalled",
            format!("{node} is in the domain {present} already: Uninstall-HgsServer takes it out."),
        )));
    }
    if call.should_process(
        &node,
        &format!("Install the Host Guardian Service and join the domain {domain}"),
    )? {
        lab.state(&node).domain = Some(domain);
        if !call.switch("Restart") {
            call.warning("The computer must be restarted to complete the installation of the domain.")?;
        }
    }
    Ok(())
}

fn is_domain(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty() && label.len() <= 63 && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    text.contains('.') && text.split('.').all(label)
}

fn initialize(call: &mut Call<'_>) -> Outcome {
    let lab = on_node(call)?;
    let node = call.machine().name.clone();
    let domain = domain(call, &lab, &node)?;
    if lab.cluster().is_some_and(|cluster| cluster.has_node(&node)) {
        return Err(call.fail(ErrorRecord::new(
            Category::InvalidOperation,
            "HgsServerAlreadyInitialized",
            format!("The Host Guardian Service is initialized on {node} already: Clear-HgsServer undoes that."),
        )));
    }
    if let Some(first) = call.text("HgsServerIPAddress") {
        return join(call, &lab, &node, &first);
    }
    let mode = mode(call)?;
    let signing = certificate(call, &lab, "Signing")?;
    let encryption = certificate(call, &lab, "Encryption")?;
    let service = call.text("HgsServiceName").unwrap_or_default().to_ascii_lowercase();
    let stores = ["TrustedTPM_RootCA", "TrustedTPM_IntermediateCA"];
    let tpm_makers: Vec<Vec<u8>> = {
        let state = lab.state(&node);
        stores
            .iter()
            .flat_map(|store| state.certificates.list(store))
            .map(|kept| kept.der.clone())
            .collect()
    };
    if !call.should_process(
        &node,
        &format!("Initialize the Host Guardian Service {service}.{domain}"),
    )? {
        return Ok(());
    }
    let new = NewCluster {
        service,
        domain,
        mode,
        signing,
        encryption,
        tpm_makers,
        http_port: port(call)?,
    };
    lab.set_up(&node, &new)
        .map_err(|error| failed(call, "HgsServerInitializationFailed", error))
}

/// Initialize-HgsServer on a further node.
fn join(call: &mut Call<'_>, lab: &Lab, node: &str, first: &str) -> Outcome {
    if !call.should_process(node, &format!("Join the Host Guardian Service of {first}"))? {
        return Ok(());
    }
    lab.join(node)
        .map_err(|error| failed(call, "HgsServerInitializationFailed", error))
}

/// What the SQL Server guides name for attestation alone; here the services come as a pair.
fn initialize_attestation(call: &mut Call<'_>) -> Outcome {
    let lab = on_node(call)?;
    let node = call.machine().name.clone();
    let domain = domain(call, &lab, &node)?;
    let mode = mode(call)?;
    let service = call.text("HgsServiceName").unwrap_or_default().to_ascii_lowercase();
    let rng = &mut hgs_protocol::env::OsRandom;
    let now = lab.time();
    let pairs = KeyPair::generate_signing("HGS Signing Certificate", now, rng).and_then(|signing| {
        Ok((
            signing,
            KeyPair::generate_encryption("HGS Encryption Certificate", now, rng)?,
        ))
    });
    let (signing, encryption) = pairs.map_err(|error| failed(call, "HgsServerInitializationFailed", error))?;
    if !call.should_process(&node, &format!("Initialize attestation of {service}.{domain}"))? {
        return Ok(());
    }
    let new = NewCluster {
        service,
        domain,
        mode,
        signing: Arc::new(signing),
        encryption: Arc::new(encryption),
        tpm_makers: Vec::new(),
        http_port: 80,
    };
    lab.set_up(&node, &new)
        .map_err(|error| failed(call, "HgsServerInitializationFailed", error))
}

fn domain(call: &mut Call<'_>, lab: &Lab, node: &str) -> Outcome<String> {
    let domain = lab.state(node).domain.clone();
    match domain {
        Some(domain) => Ok(domain),
        None if call.switch("UseExistingDomain") => Ok("bastion.local".to_owned()),
        None => Err(call.fail(ErrorRecord::new(
            Category::InvalidOperation,
            "HgsServerNotInstalled",
            format!("{node} is in no HGS domain: run Install-HgsServer first, or give -UseExistingDomain."),
        ))),
    }
}

fn mode(call: &mut Call<'_>) -> Outcome<Mode> {
    let chosen = ["TrustTpm", "TrustHostKey", "TrustActiveDirectory"].map(|name| call.switch(name));
    match chosen {
        [true, false, false] => Ok(Mode::Tpm),
        [false, true, false] => Ok(Mode::HostKey),
        [false, false, true] => Err(call.fail(ErrorRecord::new(
            Category::NotImplemented,
            "ActiveDirectoryNotBuilt",
            "Attestation by Active Directory is not built here (the product deprecates it): choose -TrustTpm or -TrustHostKey.",
        ))),
        [false, false, false] => Err(call.fail(ErrorRecord::new(
            Category::InvalidArgument,
            "AttestationModeMissing",
            "Choose how hosts are attested: -TrustTpm or -TrustHostKey. (The product's default, -TrustActiveDirectory, is \
             not built here.)",
        ))),
        _ => Err(call.fail(ErrorRecord::new(
            Category::InvalidArgument,
            "AmbiguousAttestationMode",
            "Give one of -TrustTpm, -TrustHostKey and -TrustActiveDirectory.",
        ))),
    }
}

fn port(call: &mut Call<'_>) -> Outcome<u16> {
    let given = call.integer("HttpPort").unwrap_or(80);
    match u16::try_from(given) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(call.fail(ErrorRecord::new(
            Category::InvalidArgument,
            "InvalidPort",
            format!("{given} is no port."),
        ))),
    }
}

/// `-SigningCertificatePath` with its password, or `-SigningCertificateThumbprint`; the same of encryption.
fn certificate(call: &mut Call<'_>, lab: &Lab, role: &str) -> Outcome<Arc<KeyPair>> {
    let path = call.text(&format!("{role}CertificatePath"));
    let thumbprint = call.text(&format!("{role}CertificateThumbprint"));
    match (path, thumbprint) {
        (Some(path), None) => {
            let bytes = call.read_file(&path)?;
            let password = call.secret(&format!("{role}CertificatePassword"));
            let password = password.as_ref().map_or("", |secret| secret.expose());
            let pair = pair_files::from_pfx(&bytes, password);
            pair.map(Arc::new)
                .map_err(|error| failed(call, "CertificateNotUsable", format!("{path}: {error:#}")))
        }
        (None, Some(thumbprint)) => {
            let node = call.machine().name.clone();
            let pair = lab
                .state(&node)
                .certificates
                .anywhere(&thumbprint)
                .and_then(|kept| kept.pair.clone());
            pair.ok_or_else(|| {
                call.fail(ErrorRecord::new(
                    Category::ObjectNotFound,
                    "CertificateNotFound",
                    format!(
                        "{node} has no certificate {thumbprint} with its private key: Import-PfxCertificate brings one."
                    ),
                ))
            })
        }
        _ => Err(call.fail(ErrorRecord::new(
            Category::InvalidArgument,
            "CertificateMissing",
            format!("Give one of -{role}CertificatePath and -{role}CertificateThumbprint."),
        ))),
    }
}

fn get(call: &mut Call<'_>) -> Outcome {
    let lab = on_hgs(call)?;
    let mode = ask(
        call,
        &lab,
        ServiceName::Attestation,
        Method::GET,
        "operation-mode",
        None,
    )?;
    let urls = lab
        .cluster()
        .map(|cluster| [ServiceName::Attestation, ServiceName::KeyProtection].map(|service| cluster.url(service)));
    let [attestation, key_protection] = urls.unwrap_or_default();
    let entries: Entries = [
        ("AttestationOperationMode", Value::text(text_of(&mode, "mode"))),
        ("AttestationUrl", Value::list(vec![objects::uri(&attestation)])),
        ("KeyProtectionUrl", Value::list(vec![objects::uri(&key_protection)])),
    ]
    .into_iter()
    .collect();
    call.write(Value::table(entries))
}

fn set(call: &mut Call<'_>) -> Outcome {
    let lab = on_hgs(call)?;
    let modes = [
        ("TrustTpm", "Tpm"),
        ("TrustHostKey", "HostKey"),
        ("TrustActiveDirectory", "AD"),
    ];
    let chosen = modes.into_iter().find(|(parameter, _)| call.switch(parameter));
    if let Some((_, mode)) = chosen {
        if call.should_process(
            "Host Guardian Service",
            &format!("Change the attestation mode to {mode}"),
        )? {
            let body = json!({ "mode": mode });
            ask(
                call,
                &lab,
                ServiceName::Attestation,
                Method::PUT,
                "operation-mode",
                Some(body),
            )?;
        }
        return Ok(());
    }
    if call.switch("Http") {
        let port = port(call)?;
        if call.should_process("Host Guardian Service", &format!("Listen at port {port}"))? {
            if let Some(mut cluster) = lab.cluster_mut() {
                cluster.http_port = port;
            }
            lab.publish()
                .map_err(|error| failed(call, "HgsServerNotChanged", error))?;
        }
    }
    Ok(())
}

fn set_version(call: &mut Call<'_>) -> Outcome {
    on_hgs(call)?;
    Ok(())
}

fn test(call: &mut Call<'_>) -> Outcome {
    let lab = lab(call)?;
    let node = call.machine().name.clone();
    let state = lab.state(&node);
    let role = state.features.contains("hostguardianservicerole");
    let free = state.domain.is_none();
    drop(state);
    let domain = call.text("HgsDomainName");
    let name = domain.as_deref().is_none_or(is_domain);
    let checks = [
        ("the role HostGuardianServiceRole is installed", role),
        ("the computer is in no HGS domain yet", free),
        ("the domain has a name of at least two labels", name),
    ];
    let failing: Vec<Value> = checks
        .iter()
        .filter(|(_, good)| !good)
        .map(|(text, _)| Value::text(text))
        .collect();
    call.write(Value::object(
        "TestReport",
        [
            ("Result", Value::text(if failing.is_empty() { "Pass" } else { "Fail" })),
            ("NotFulfilled", Value::list(failing)),
        ],
    ))
}

fn clear(call: &mut Call<'_>) -> Outcome {
    let lab = on_hgs(call)?;
    let node = call.machine().name.clone();
    let last = lab.cluster().is_some_and(|cluster| cluster.nodes().count() == 1);
    let query = match last {
        true => {
            "This is the last node: every artefact, policy and certificate of the Host Guardian Service is removed with it."
        }
        false => "The node leaves the Host Guardian Service.",
    };
    if !call.should_process(&node, "Clear the Host Guardian Service")?
        || !call.should_continue("Clear-HgsServer", query)?
    {
        return Ok(());
    }
    lab.leave(&node)
        .map_err(|error| failed(call, "HgsServerNotCleared", error))
}

fn uninstall(call: &mut Call<'_>) -> Outcome {
    let lab = on_node(call)?;
    let node = call.machine().name.clone();
    if !call.should_process(&node, "Uninstall the Host Guardian Service")?
        || !call.should_continue("Uninstall-HgsServer", "The computer leaves the HGS domain.")?
    {
        return Ok(());
    }
    if lab.cluster().is_some_and(|cluster| cluster.has_node(&node)) {
        lab.leave(&node)
            .map_err(|error| failed(call, "HgsServerNotCleared", error))?;
    }
    lab.state(&node).domain = None;
    if !call.switch("Restart") {
        call.warning("The computer must be restarted to complete leaving the domain.")?;
    }
    Ok(())
}
