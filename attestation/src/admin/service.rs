//! The service itself: operation mode, built-in policies, signers, diagnosis, decisions.

use actix_web::{
    HttpRequest, HttpResponse,
    web::{Data, Json, Path, ReqData},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hgs_protocol::health::AttestationMode;
use hgs_service::{audit, events::recorded as recorded_events, tokens::Holder};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Answer, App, Problem, Refused};
use crate::{
    baseline::SwitchError,
    events::of_row,
    policy::{POLICIES, SWITCHES},
    signers::{self, Renewal},
    standing::{CA_CERTIFICATES, OPERATION_MODE, Standing},
    store::{Kind, Page, PolicyVersion, Registered, SignerRow, Slot},
};

/// The operation mode; one is in force at a time.
#[derive(Deserialize, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Mode {
    /// `Tpm` or `HostKey`. `AD` is known and refused
    mode: String,
}

/// The operation mode in force
#[utoipa::path(get, path = "/operation-mode", responses((status = 200, body = Mode)))]
pub(super) async fn mode(app: Data<App>) -> Answer {
    let mode = match app.standing().await?.mode {
        AttestationMode::HostKey => "HostKey",
        AttestationMode::ActiveDirectory => "AD",
        AttestationMode::Tpm => "Tpm",
    };
    Ok(HttpResponse::Ok().json(Mode { mode: mode.to_owned() }))
}

/// Choose the operation mode; artefacts of all modes stay
#[utoipa::path(put, path = "/operation-mode", request_body = Mode, responses(
    (status = 200, body = Mode), (status = 400, body = Refused),
    (status = 409, description = "Active Directory is not built", body = Refused)))]
pub(super) async fn set_mode(app: Data<App>, by: ReqData<Holder>, new: Json<Mode>) -> Answer {
    let known = ["Tpm", "HostKey", "AD", "ActiveDirectory"];
    let mode = known
        .into_iter()
        .find(|mode| mode.eq_ignore_ascii_case(new.mode.trim()));
    let mode = match mode {
        Some(mode @ ("Tpm" | "HostKey")) => mode,
        Some(_) => return Err(Problem::Conflict(AD_REFUSED.to_owned())),
        None => {
            return Err(Problem::Invalid(format!(
                "{} is no operation mode: choose Tpm or HostKey",
                new.mode
            )));
        }
    };
    app.record_change(json!({ "setting": OPERATION_MODE, "value": mode, "by": by.to_string() }))
        .await?;
    app.store
        .replace(Kind::Setting, &Registered::plain(OPERATION_MODE, mode))
        .await?;
    app.changed();
    tracing::info!(mode, "the operation mode was chosen");
    Ok(HttpResponse::Ok().json(Mode { mode: mode.to_owned() }))
}

/// Whether keys of CA trustlets are certified as intermediate authorities (result type 3).
#[derive(Deserialize, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CaCertificates {
    /// False until it is set
    enabled: bool,
}

/// Whether certificates of result type 3 are issued
#[utoipa::path(get, path = "/ca-certificates", responses((status = 200, body = CaCertificates)))]
pub(super) async fn ca_certificates(app: Data<App>) -> Answer {
    let enabled = app.standing().await?.ca_certificates;
    Ok(HttpResponse::Ok().json(CaCertificates { enabled }))
}

/// Turn certificates of result type 3 on or off. Certificates issued before stay valid until they expire
#[utoipa::path(put, path = "/ca-certificates", request_body = CaCertificates, responses(
    (status = 200, body = CaCertificates), (status = 400, body = Refused)))]
pub(super) async fn set_ca_certificates(app: Data<App>, by: ReqData<Holder>, new: Json<CaCertificates>) -> Answer {
    let enabled = new.enabled;
    app.record_change(json!({ "setting": CA_CERTIFICATES, "enabled": enabled, "by": by.to_string() }))
        .await?;
    let body = if enabled { "on" } else { "off" };
    app.store
        .replace(Kind::Setting, &Registered::plain(CA_CERTIFICATES, body))
        .await?;
    app.changed();
    tracing::info!(enabled, "certificates of CA trustlets were switched");
    Ok(HttpResponse::Ok().json(CaCertificates { enabled }))
}

/// A policy with its switch.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct PolicyView {
    name: &'static str,
    /// GUID of the specification
    id: String,
    /// The administrators' name, `Hgs_…`
    switch: &'static str,
    enabled: bool,
    /// True when it cannot be disabled
    locked: bool,
    /// The host's AttestationSubstatus when it fails
    substatus: &'static str,
}

/// The fifteen policies
#[utoipa::path(get, path = "/policies", responses((status = 200, body = [PolicyView])))]
pub(super) async fn list_policies(app: Data<App>) -> Answer {
    let standing = app.standing().await?;
    let rows: Vec<_> = POLICIES
        .iter()
        .map(|policy| PolicyView {
            name: policy.name,
            id: policy.id.0.to_string(),
            switch: policy.switch,
            enabled: standing.switches.is_enabled(policy.switch),
            locked: SWITCHES
                .iter()
                .any(|switch| switch.name == policy.switch && switch.locked),
            substatus: policy.substatus,
        })
        .collect();
    Ok(HttpResponse::Ok().json(rows))
}

/// A switch after it was moved.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct SwitchView {
    switch: String,
    enabled: bool,
}

/// Enable a built-in policy for all hosts
#[utoipa::path(post, path = "/policies/{name}/enable", params(("name" = String, Path, description = "Hgs_…")), responses(
    (status = 200, body = SwitchView), (status = 404, body = Refused)))]
pub(super) async fn enable_policy(app: Data<App>, by: ReqData<Holder>, name: Path<String>) -> Answer {
    switch(&app, *by, &name, true).await
}

/// Disable a built-in policy for all hosts
#[utoipa::path(post, path = "/policies/{name}/disable", params(("name" = String, Path, description = "Hgs_…")), responses(
    (status = 200, body = SwitchView), (status = 404, body = Refused),
    (status = 409, description = "it is locked", body = Refused)))]
pub(super) async fn disable_policy(app: Data<App>, by: ReqData<Holder>, name: Path<String>) -> Answer {
    switch(&app, *by, &name, false).await
}

async fn switch(app: &App, by: Holder, name: &str, enabled: bool) -> Answer {
    let mut switches = app.store.switches().await?;
    switches.set(name, enabled).map_err(|error| match error {
        SwitchError::Unknown(name) => Problem::Missing(name),
        locked @ SwitchError::Locked(_) => Problem::Conflict(locked.to_string()),
    })?;
    let switch = SWITCHES.iter().find(|switch| switch.name.eq_ignore_ascii_case(name));
    let name = switch.map_or(name, |switch| switch.name);
    app.record_change(json!({ "setting": "policy", "policy": name, "enabled": enabled, "by": by.to_string() }))
        .await?;
    let body = if enabled { "true" } else { "false" };
    app.store.replace(Kind::Switch, &Registered::plain(name, body)).await?;
    app.changed();
    Ok(HttpResponse::Ok().json(SwitchView {
        switch: name.to_owned(),
        enabled,
    }))
}

/// An attestation signer.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct SignerView {
    /// `active`, `pending` or `old`
    state: &'static str,
    /// DER, base64
    certificate: String,
    /// Of the certificate, hex: what the KPS administrator compares
    sha256: String,
    not_after: String,
    /// Whether clients find it among the signing certificates
    published: bool,
    /// Of an old one, seconds since 1970
    published_until: Option<i64>,
    /// Seconds since it was made, by the service's clock
    age: i64,
    /// Of a pending one, seconds for which it must still be published before it may sign
    seconds_to_wait: Option<i64>,
}

impl SignerView {
    fn of(row: &SignerRow, all: &[SignerRow], app: &App) -> SignerView {
        let now = app.env.now();
        SignerView {
            state: match row.slot {
                Some(Slot::Active) => "active",
                Some(Slot::Pending) => "pending",
                None => "old",
            },
            certificate: STANDARD.encode(&row.certificate),
            sha256: row.id.clone(),
            not_after: signers::not_after(row).to_string(),
            published: row.is_published(now),
            published_until: row.published_until.map(|until| until.0),
            age: now.seconds_since(row.made_at),
            seconds_to_wait: (row.slot == Some(Slot::Pending)).then(|| to_wait(row, all, app)),
        }
    }
}

fn to_wait(pending: &SignerRow, all: &[SignerRow], app: &App) -> i64 {
    let active = all.iter().find(|row| row.slot == Some(Slot::Active));
    signers::seconds_to_wait(pending, active, app.env.now(), app.publish_first)
}

/// The signer that signs now
#[utoipa::path(get, path = "/attestation-signer", responses((status = 200, body = SignerView)))]
pub(super) async fn signer(app: Data<App>) -> Answer {
    let standing = app.standing().await?;
    let rows = &standing.signers;
    let active = rows.iter().find(|row| row.slot == Some(Slot::Active));
    let active = active.ok_or_else(|| Problem::Missing("an active attestation signer".to_owned()))?;
    Ok(HttpResponse::Ok().json(SignerView::of(active, rows, &app)))
}

/// All signers, newest first
#[utoipa::path(get, path = "/attestation-signers", responses((status = 200, body = [SignerView])))]
pub(super) async fn signers(app: Data<App>) -> Answer {
    let rows = app.store.signers().await?;
    let rows: Vec<_> = rows.iter().map(|row| SignerView::of(row, &rows, &app)).collect();
    Ok(HttpResponse::Ok().json(rows))
}

/// Make the next signer now; it is published, and waits until it is activated
#[utoipa::path(post, path = "/attestation-signers", responses(
    (status = 200, description = "the pending signer, new or not", body = SignerView),
    (status = 409, description = "as many are published already as clients can read", body = Refused)))]
pub(super) async fn make_signer(app: Data<App>) -> Answer {
    let rows = app.store.signers().await?;
    let published = rows.iter().filter(|row| row.is_published(app.env.now())).count();
    if published >= signers::MOST_PUBLISHED && !rows.iter().any(|row| row.slot == Some(Slot::Pending)) {
        return Err(Problem::Conflict(format!(
            "{published} signers are published, and clients read no more at a time: wait until an old one's last \
             certificate has expired"
        )));
    }
    app.make_pending_signer().await?;
    let rows = app.store.signers().await?;
    let pending = rows.iter().find(|row| row.slot == Some(Slot::Pending));
    match pending {
        Some(row) => Ok(HttpResponse::Ok().json(SignerView::of(row, &rows, &app))),
        None => Err(Problem::Conflict(
            "another administrator activated it meanwhile; ask again".to_owned(),
        )),
    }
}

#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Activation {
    /// Says that every KPS trusts this signer already; hosts get no keys otherwise
    registered_with_key_protection: bool,
    /// Let it sign though clients may not have seen it published: some will refuse its certificates for hours
    #[serde(default)]
    at_once: bool,
}

/// Let the pending signer sign, once key protection trusts it
#[utoipa::path(post, path = "/attestation-signers/{sha256}/activate", params(("sha256" = String, Path)),
    request_body = Activation, responses(
    (status = 200, description = "active, now or before", body = SignerView), (status = 404, body = Refused),
    (status = 409, body = Refused)))]
pub(super) async fn activate_signer(
    app: Data<App>,
    by: ReqData<Holder>,
    id: Path<String>,
    activation: Json<Activation>,
) -> Answer {
    let id = id.to_ascii_lowercase();
    if !activation.registered_with_key_protection {
        return Err(Problem::Conflict(
            "register the signer with key protection first, then say so with registered_with_key_protection".to_owned(),
        ));
    }
    let now = app.env.now();
    let rows = app.store.signers().await?;
    let row = rows.iter().find(|row| row.id == id);
    let row = row.ok_or_else(|| Problem::Missing(id.clone()))?;
    match row.slot {
        Some(Slot::Active) => return Ok(HttpResponse::Ok().json(SignerView::of(row, &rows, &app))),
        None => return Err(Problem::Conflict("an old signer does not come back".to_owned())),
        Some(Slot::Pending) => {}
    }
    if !signers::is_usable(row, now) {
        return Err(Problem::Conflict(
            "the pending signer is not within its dates: drop it and make another".to_owned(),
        ));
    }
    let wait = to_wait(row, &rows, &app);
    if wait > 0 && !activation.at_once {
        return Err(Problem::Conflict(format!(
            "clients that keep the list of signers have not seen this one yet: it may sign in {wait} s, or now with \
             at_once"
        )));
    }
    let stays = signers::publish_after_retirement(&app.store, app.lifetime).await?;
    let until = now.plus_seconds(i64::try_from(stays.as_secs()).unwrap_or(i64::MAX));
    if !app.store.activate_signer(&id, until).await? {
        return Err(Problem::Conflict(
            "the signer is no longer pending; ask again".to_owned(),
        ));
    }
    app.changed();
    tracing::info!(id, "the attestation signer was renewed");
    let event = json!({ "event": "activated", "by": by.to_string(), "sha256": id, "old_published_until": until.0 });
    app.tell(event).await;
    let rows = app.store.signers().await?;
    let row = rows.iter().find(|row| row.id == id);
    let row = row.ok_or_else(|| Problem::Missing(id.clone()))?;
    Ok(HttpResponse::Ok().json(SignerView::of(row, &rows, &app)))
}

/// Drop a pending signer, or withdraw an old one before its time
#[utoipa::path(delete, path = "/attestation-signers/{sha256}", params(("sha256" = String, Path)), responses(
    (status = 204), (status = 404, body = Refused), (status = 409, description = "it is the active one", body = Refused)))]
pub(super) async fn drop_signer(app: Data<App>, by: ReqData<Holder>, id: Path<String>) -> Answer {
    let id = id.to_ascii_lowercase();
    if app.store.drop_signer(&id).await? {
        app.changed();
        app.tell(json!({ "event": "dropped", "by": by.to_string(), "sha256": id }))
            .await;
        return Ok(HttpResponse::NoContent().finish());
    }
    match app.store.signers().await?.iter().any(|row| row.id == id) {
        true => Err(Problem::Conflict(
            "the active signer cannot be dropped: activate another first".to_owned(),
        )),
        false => Err(Problem::Missing(id)),
    }
}

/// Something that an administrator should know.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct Finding {
    id: &'static str,
    /// `warning` or `error`
    severity: &'static str,
    text: String,
    remedy: &'static str,
}

/// What is amiss, or soon will be; empty when nothing is
#[utoipa::path(get, path = "/diagnosis", responses((status = 200, body = [Finding])))]
pub(super) async fn diagnosis(app: Data<App>) -> Answer {
    let standing = app.standing().await?;
    let mut found = Vec::new();
    found.extend(signer_finding(&app, &standing));
    let one = Page {
        after: String::new(),
        limit: 1,
    };
    match standing.mode {
        AttestationMode::HostKey if app.store.host_keys(&one).await?.is_empty() => found.push(Finding {
            id: "no-host-key",
            severity: "error",
            text: "no host key is registered, so no host can attest".to_owned(),
            remedy: "Register the hosts' keys with Add-HgsAttestationHostKey.",
        }),
        AttestationMode::Tpm => {
            let whole = |version| {
                let baselines = standing.baselines(version);
                baselines.is_some_and(|b| !b.tpm.is_empty() && !b.ci_policies.is_empty())
            };
            if app.store.hosts(&one).await?.is_empty() {
                found.push(Finding {
                    id: "no-tpm-host",
                    severity: "error",
                    text: "no host is registered, so none can attest".to_owned(),
                    remedy: "Register the hosts with Add-HgsAttestationTpmHost.",
                });
            }
            if !PolicyVersion::TRIED.into_iter().any(whole) {
                found.push(Finding {
                    id: "incomplete-artefacts",
                    severity: "error",
                    text: "no policy version has both a TPM baseline and a code-integrity policy in force".to_owned(),
                    remedy: "Register a baseline and a code-integrity policy of one version, or put staged ones in force.",
                });
            }
        }
        _ => {}
    }
    Ok(HttpResponse::Ok().json(found))
}

fn signer_finding(app: &App, standing: &Standing) -> Option<Finding> {
    let renewal = signers::renewal(&standing.signers, app.env.now(), app.renewal_ahead);
    let end = standing.signer.not_after();
    let (severity, text) = match renewal {
        Renewal::NotDue | Renewal::Due => return None,
        Renewal::Pending => (
            "warning",
            format!("a new attestation signer waits; the active one ends at {end}"),
        ),
        Renewal::Late => (
            "error",
            format!("the renewal of the attestation signer is late: the active one ends at {end}"),
        ),
        Renewal::Expired => (
            "error",
            format!("the attestation signer ended at {end}; no host can attest"),
        ),
    };
    Some(Finding {
        id: "signer-renewal",
        severity,
        text,
        remedy: "Register the pending signer with key protection, then activate it here.",
    })
}

/// The newest decisions
#[utoipa::path(get, path = "/attestations", responses((status = 200, description = "rows of the record that decide an attestation, newest first")))]
pub(super) async fn attestations(app: Data<App>) -> Answer {
    let rows = audit::newest(app.store.database(), Some("attestation"), NEWEST).await?;
    Ok(HttpResponse::Ok().json(rows))
}

/// Events, newest first: attestations, signers, settings, administration, trouble. The header `Next-Before` names where the
/// next page begins
#[utoipa::path(get, path = "/events",
    params(("id" = Option<String>, Query, description = "Ids, separated by commas"),
        ("level" = Option<String>, Query, description = "Critical, Error, Warning, Information or Verbose; worse ones come with it"),
        ("since" = Option<String>, Query, description = "RFC 3339 in UTC, or seconds since 1970"),
        ("newest" = Option<u32>, Query, description = "At most so many, 1 to 1000; 100 unless given"),
        ("before" = Option<String>, Query, description = "Only those before this RecordId, as the header Next-Before gives it")),
    responses((status = 200, description = "events, newest first"), (status = 400, body = Refused)))]
pub(super) async fn events(app: Data<App>, request: HttpRequest) -> HttpResponse {
    recorded_events::answer(app.store.database(), request.query_string(), of_row).await
}

/// The newest rows of the record, of every kind: decisions, signers, administration
#[utoipa::path(get, path = "/audit", responses((status = 200, description = "rows of the record, newest first")))]
pub(super) async fn recorded(app: Data<App>) -> Answer {
    let rows = audit::newest(app.store.database(), None, NEWEST).await?;
    Ok(HttpResponse::Ok().json(rows))
}

/// Recompute the record's chains, against kept heads where given; an empty list checks the chains alone
#[utoipa::path(post, path = "/audit/verify", request_body(content = Vec<serde_json::Value>, description = "kept heads"),
    responses((status = 200, description = "rows, faults, heads")))]
pub(super) async fn verify_audit(app: Data<App>, kept: Json<Vec<audit::Head>>) -> Answer {
    Ok(HttpResponse::Ok().json(audit::verify(app.store.database(), &app.kek, &kept).await?))
}

const NEWEST: i64 = 200;
const AD_REFUSED: &str = "attestation by Active Directory cannot be chosen: this service has no directory to ask, and the \
                          product itself advises against that mode. Host groups can be kept; choose Tpm or HostKey";
