//! The two services as their administrators set them: attestation's mode, policies, artefacts and signers, key
//! protection's certificates, trusted signers and settings. Each form is one request to the administrators' interface.

use actix_web::web::Path;
use askama::Template;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Frame, Shown, Trouble, html, in_url, see};
use crate::{
    api::{Admin, ApiError},
    session::{Posted, Visitor},
};

#[derive(Deserialize)]
struct Mode {
    mode: String,
}

#[derive(Deserialize)]
struct Policy {
    name: String,
    id: String,
    switch: String,
    enabled: bool,
    locked: bool,
    substatus: String,
}

#[derive(Deserialize)]
struct Artefact {
    name: String,
    digest: Option<String>,
    sha256: Option<String>,
    policy_version: Option<String>,
    staged: bool,
}

impl Artefact {
    fn hash(&self) -> &str {
        self.digest.as_deref().or(self.sha256.as_deref()).unwrap_or_default()
    }
}

/// Artefacts of a kind: name of the listing, heading, rows.
struct Artefacts {
    kind: &'static str,
    title: &'static str,
    rows: Vec<Artefact>,
}

#[derive(Deserialize)]
struct Signer {
    state: String,
    sha256: String,
    not_after: String,
    published: bool,
    seconds_to_wait: Option<i64>,
}

#[derive(Deserialize)]
struct Trust {
    name: String,
    subject: Option<String>,
    root: bool,
}

#[derive(Template)]
#[template(path = "attestation.html")]
struct AttestationPage {
    frame: Frame,
    mode: String,
    policies: Vec<Policy>,
    artefacts: Vec<Artefacts>,
    signers: Vec<Signer>,
    trust: Vec<Trust>,
}

/// Attestation.
pub(super) async fn attestation(visitor: Visitor) -> Shown {
    let service = visitor.attestation();
    let (mode, policies, signers, trust, baselines, ci_policies, dump_keys) = tokio::try_join!(
        service.get::<Mode>("operation-mode"),
        service.get::<Vec<Policy>>("policies"),
        service.get::<Vec<Signer>>("attestation-signers"),
        service.all::<Trust>("tpm-trust"),
        service.all::<Artefact>("tpm-baselines"),
        service.all::<Artefact>("ci-policies"),
        service.all::<Artefact>("dump-keys"),
    )?;
    let of = |kind, title, rows| Artefacts { kind, title, rows };
    html(&AttestationPage {
        frame: Frame::new(&visitor, "attestation", "Attestation"),
        mode: mode.mode,
        policies,
        artefacts: vec![
            of("tpm-baselines", "TPM baselines", baselines),
            of("ci-policies", "Code-integrity policies", ci_policies),
            of("dump-keys", "Dump encryption keys", dump_keys),
        ],
        signers,
        trust,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Certificate {
    thumbprint: String,
    certificate_type: String,
    is_primary: bool,
    is_enabled: bool,
    token_key_id: Option<String>,
}

#[derive(Deserialize)]
struct TrustedSigner {
    thumbprint: String,
    deny_issued_before: Option<Value>,
}

#[derive(Template)]
#[template(path = "key_protection.html")]
struct KeyProtectionPage {
    frame: Frame,
    certificates: Vec<Certificate>,
    signers: Vec<TrustedSigner>,
    settings: Vec<super::fields::FieldRow>,
}

/// Key protection.
pub(super) async fn key_protection(visitor: Visitor) -> Shown {
    let service = visitor.key_protection();
    let (certificates, signers, settings) = tokio::try_join!(
        service.get::<Vec<Certificate>>("certificates"),
        service.get::<Vec<TrustedSigner>>("attestation-signers"),
        service.get::<Value>("settings"),
    )?;
    html(&KeyProtectionPage {
        frame: Frame::new(&visitor, "keys", "Key protection"),
        certificates,
        signers,
        settings: super::fields::of_json(&settings),
    })
}

/// Sends one change and says what came of it.
async fn change(
    visitor: &Visitor,
    service: Admin<'_>,
    method: Method,
    path: &str,
    body: Option<Value>,
    done: &str,
) -> Result<(), Trouble> {
    match service.send(method, path, body.as_ref()).await {
        Ok(_) => visitor.tell(true, done),
        Err(error @ (ApiError::Refused { .. } | ApiError::Silent { .. })) => visitor.tell(false, error.to_string()),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Set-HgsServer -TrustTpm or -TrustHostKey.
pub(super) async fn set_mode(posted: Posted) -> Shown {
    let (visitor, mode) = (&posted.visitor, posted.text("mode"));
    let done = format!("The mode of attestation is {mode}.");
    change(
        visitor,
        visitor.attestation(),
        Method::PUT,
        "operation-mode",
        Some(json!({ "mode": mode })),
        &done,
    )
    .await?;
    Ok(see("/attestation"))
}

/// Enable- or Disable-HgsAttestationPolicy.
pub(super) async fn set_policy(posted: Posted, switch: Path<String>) -> Shown {
    let visitor = &posted.visitor;
    let (verb, done) = match posted.ticked("enable") {
        true => ("enable", "enabled"),
        false => ("disable", "disabled"),
    };
    let path = format!("policies/{}/{verb}", in_url(&switch));
    let done = format!("{switch} is {done} for all hosts.");
    change(visitor, visitor.attestation(), Method::POST, &path, None, &done).await?;
    Ok(see("/attestation"))
}

/// Puts a staged artefact in force, or removes one.
pub(super) async fn artefact(posted: Posted, of: Path<(String, String)>) -> Shown {
    let (visitor, (kind, name)) = (&posted.visitor, of.into_inner());
    if !KINDS.contains(&kind.as_str()) {
        return Err(Trouble::Missing(format!("there are no artefacts called {kind}")));
    }
    let path = format!("{kind}/{}", in_url(&name));
    let service = visitor.attestation();
    match posted.text("do").as_str() {
        "put-in-force" => {
            let path = format!("{path}/put-in-force");
            change(
                visitor,
                service,
                Method::POST,
                &path,
                None,
                &format!("{name} is in force."),
            )
            .await?;
        }
        "remove" => {
            change(
                visitor,
                service,
                Method::DELETE,
                &path,
                None,
                &format!("{name} is removed."),
            )
            .await?
        }
        other => return Err(Trouble::Invalid(format!("nothing called {other} is done with it"))),
    }
    Ok(see("/attestation"))
}

/// A host's registration: removed, or its last boot log adopted as a baseline.
pub(super) async fn registration(posted: Posted, host: Path<String>) -> Shown {
    let visitor = &posted.visitor;
    let service = visitor.attestation();
    let path = format!("tpm-hosts/{}", in_url(&host));
    match posted.text("do").as_str() {
        "remove" => {
            let done = format!("{host} is no longer registered.");
            change(visitor, service, Method::DELETE, &path, None, &done).await?;
        }
        "adopt" => {
            let name = posted.text("name");
            let done = format!("The last boot log of {host} is registered as the baseline {name}.");
            let body = json!({ "name": name });
            change(
                visitor,
                service,
                Method::POST,
                &format!("{path}/baseline"),
                Some(body),
                &done,
            )
            .await?;
        }
        other => {
            return Err(Trouble::Invalid(format!(
                "nothing called {other} is done with a registration"
            )));
        }
    }
    visitor.console.see_now().await;
    Ok(see(&format!("/hosts/{}", in_url(&host))))
}

/// Makes a pending attestation signer, activates or drops one.
pub(super) async fn signer(posted: Posted) -> Shown {
    let visitor = &posted.visitor;
    let (service, sha256) = (visitor.attestation(), posted.text("sha256"));
    let path = format!("attestation-signers/{}", in_url(&sha256));
    match posted.text("do").as_str() {
        "make" => {
            let done = "A signer is pending and published. Let key protection trust it, then activate it.";
            change(visitor, service, Method::POST, "attestation-signers", None, done).await?;
        }
        "activate" => {
            let body = json!({
                "registered_with_key_protection": posted.ticked("registered"),
                "at_once": posted.ticked("at_once"),
            });
            let path = format!("{path}/activate");
            change(
                visitor,
                service,
                Method::POST,
                &path,
                Some(body),
                "The signer signs from now on.",
            )
            .await?;
        }
        "drop" => change(visitor, service, Method::DELETE, &path, None, "The signer is dropped.").await?,
        other => {
            return Err(Trouble::Invalid(format!(
                "nothing called {other} is done with a signer"
            )));
        }
    }
    Ok(see("/attestation"))
}

/// Makes a certificate of key protection, makes it primary, enables, disables or removes it.
pub(super) async fn certificate(posted: Posted) -> Shown {
    let visitor = &posted.visitor;
    let service = visitor.key_protection();
    let path = format!(
        "certificates/{}/{}",
        in_url(&posted.text("type")),
        in_url(&posted.text("thumbprint"))
    );
    let asked = posted.text("do");
    let patch = |body: Value, done: &'static str| change(visitor, service, Method::PATCH, &path, Some(body), done);
    match asked.as_str() {
        "make" => {
            let body = json!({
                "certificateType": posted.text("type"),
                "generate": { "commonName": posted.text("common_name"), "suite": posted.text("suite") },
            });
            let done = "The certificate is made and enabled. Make it primary when every owner may use it.";
            change(visitor, service, Method::POST, "certificates", Some(body), done).await?;
        }
        "primary" => {
            patch(
                json!({ "isPrimary": true }),
                "The certificate is primary: new protectors are made for it.",
            )
            .await?
        }
        "enable" => patch(json!({ "isEnabled": true }), "The certificate is enabled.").await?,
        "disable" => {
            patch(
                json!({ "isEnabled": false }),
                "The certificate is disabled: what it opened stays shut.",
            )
            .await?
        }
        "remove" => {
            change(
                visitor,
                service,
                Method::DELETE,
                &path,
                None,
                "The certificate and its key are gone.",
            )
            .await?
        }
        other => {
            return Err(Trouble::Invalid(format!(
                "nothing called {other} is done with a certificate"
            )));
        }
    }
    Ok(see("/key-protection"))
}

/// Trusts an attestation signer, or no more.
pub(super) async fn trusted_signer(posted: Posted) -> Shown {
    let visitor = &posted.visitor;
    let service = visitor.key_protection();
    match posted.text("do").as_str() {
        "trust" => {
            let certificate: String = posted.text("certificate").split_whitespace().collect();
            let body = json!({ "certificate": certificate });
            let done = "Key protection trusts the signer: health certificates that it issued open keys.";
            change(visitor, service, Method::POST, "attestation-signers", Some(body), done).await?;
        }
        "trust-attestation" => trust_all(visitor).await?,
        "remove" => {
            let path = format!("attestation-signers/{}", in_url(&posted.text("thumbprint")));
            change(
                visitor,
                service,
                Method::DELETE,
                &path,
                None,
                "Key protection trusts the signer no more.",
            )
            .await?;
        }
        other => {
            return Err(Trouble::Invalid(format!(
                "nothing called {other} is done with a signer"
            )));
        }
    }
    Ok(see("/key-protection"))
}

/// Lets key protection trust every signer that attestation publishes. The certificates go through the visitor's hands,
/// because the services never ask each other.
async fn trust_all(visitor: &Visitor) -> Result<(), Trouble> {
    #[derive(Deserialize)]
    struct Published {
        certificate: String,
        published: bool,
    }
    let signers: Vec<Published> = visitor.attestation().get("attestation-signers").await?;
    for signer in signers.into_iter().filter(|signer| signer.published) {
        let body = json!({ "certificate": signer.certificate });
        let done = "Key protection trusts a signer that attestation publishes.";
        change(
            visitor,
            visitor.key_protection(),
            Method::POST,
            "attestation-signers",
            Some(body),
            done,
        )
        .await?;
    }
    Ok(())
}

const KINDS: [&str; 3] = ["tpm-baselines", "ci-policies", "dump-keys"];
