//! What the record of this service says, as events. Ids of the product's provider are those that its tools and documents
//! tell; the rest stand under this lab's own provider. As in the product, an attestation in TPM mode whose boot log was read
//! gives the event that names the endorsement key and one for each substatus, under one ActivityId.

use hgs_service::{
    audit::AuditRow,
    events::{Event, Level, Provider, recorded::common},
};
use serde_json::Value;

use crate::policy::POLICIES;

/// The events in one row, in the order in which they happened.
pub fn of_row(row: &AuditRow) -> Vec<Event> {
    match row.kind.as_str() {
        "attestation" => attestation(&row.body),
        "attestation-signer" => vec![signer(&row.body)],
        "setting" => vec![setting(&row.body)],
        _ => common(OWN, row),
    }
}

fn text<'b>(body: &'b Value, name: &str) -> &'b str {
    body.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn attestation(body: &Value) -> Vec<Event> {
    let (reply, mode) = (text(body, "reply"), text(body, "mode"));
    let status = body.pointer("/host_status/status").and_then(Value::as_str);
    let substatus = body.pointer("/host_status/substatus").and_then(Value::as_str);
    let substatus = substatus.filter(|names| *names != "NoInformation").unwrap_or_default();
    let names: Vec<&str> = substatus.split(", ").filter(|name| !name.is_empty()).collect();
    let mut events = Vec::new();
    let log_was_read = [
        "HealthCertificateReply",
        "PolicyEvaluationErrorReply",
        "TcgLogValidationErrorReply",
        "VirtualSecureModeErrorReply",
        "VsmReportValidationErrorReply",
    ];
    if mode == "Tpm" && log_was_read.contains(&reply) {
        let message = "The boot log of a host is verified against the values of its PCRs.";
        events.push(PRODUCT.event(LOG_VERIFICATION, Level::Information, message));
    }
    match names.is_empty() {
        true => events.push(outcome(body, reply, mode)),
        false => events.extend(names.iter().map(|name| failed(body, name))),
    }
    let with_data = |event: Event| {
        let mut event = event
            .with("HostName", body["host"].clone())
            .with("EndorsementKeyHash", body["ek_sha256"].clone())
            .with("HostKeyHash", body["host_key_sha256"].clone())
            .with("AttestationOperationMode", mode);
        if event.id != LOG_VERIFICATION {
            event = event
                .with("AttestationStatus", status)
                .with("Reply", reply)
                .with("Reason", body["reason"].clone());
        }
        event.activity_id = body["session"].as_str().map(str::to_owned);
        event
    };
    events.into_iter().map(with_data).collect()
}

fn host(body: &Value) -> &str {
    match text(body, "host") {
        "" => "A host that is not registered",
        name => name,
    }
}

/// The event of an attestation whose status has no substatus.
fn outcome(body: &Value, reply: &str, mode: &str) -> Event {
    let (host, reason) = (host(body), text(body, "reason"));
    let known = !text(body, "host").is_empty();
    match (reply, mode) {
        ("HealthCertificateReply", _) => {
            let serials = body["serials"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let serials = serials.collect::<Vec<_>>().join(", ");
            let message = format!("{host} has passed; it got the health certificates {serials}.");
            let event = match mode {
                "Tpm" => PRODUCT.event(PASSED_TPM, Level::Information, message),
                _ => OWN.event(PASSED_HOST_KEY, Level::Information, message),
            };
            event.with("HealthCertificates", serials)
        }
        ("UnauthorizedErrorReply", "Tpm") if !known => PRODUCT.event(
            UNAUTHORIZED_TPM,
            Level::Error,
            "A host is not authorized: its endorsement key is not registered. If it belongs here, capture its identifier \
             with Get-PlatformIdentifier and register it with Add-HgsAttestationTpmHost.",
        ),
        ("UnauthorizedErrorReply", "HostKey") if !known => OWN.event(
            UNAUTHORIZED_HOST_KEY,
            Level::Error,
            "A host is not authorized: its host key is not registered. If it belongs here, capture the key with \
             Get-HgsClientHostKey and register it with Add-HgsAttestationHostKey.",
        ),
        ("UnauthorizedErrorReply", _) => {
            OWN.event(UNAUTHORIZED_OTHERWISE, Level::Error, format!("{host} is not authorized: {reason}."))
        }
        ("RtpmErrorReply", _) => {
            let message = format!(
                "The exchange with the TPM of {host} failed: {reason}. The host tries again; if it stays, look at its TPM and \
                 at what is between host and service."
            );
            OWN.event(TPM_ERROR, Level::Warning, message)
        }
        _ => {
            let message = format!("{host} got no health certificate: {reply}, {reason}.");
            OWN.event(FAILED_OTHERWISE, Level::Error, message)
        }
    }
}

/// The event of one substatus.
fn failed(body: &Value, substatus: &str) -> Event {
    let host = host(body);
    let rows = body["verdicts"].as_array().into_iter().flatten();
    let mut policies = Vec::new();
    let mut message = format!("{host} fails attestation: {substatus}.");
    for verdict in rows {
        let policy = text(verdict, "policy");
        let of_it = POLICIES
            .iter()
            .any(|row| row.name == policy && row.substatus == substatus);
        if of_it && verdict["enabled"] == true && verdict["verdict"] != "pass" {
            let (expected, seen, remedy) = (
                text(verdict, "expected"),
                text(verdict, "seen"),
                text(verdict, "remedy"),
            );
            message.push_str(&format!(" {policy}: expected {expected}, seen {seen}. {remedy}"));
            policies.push(policy.to_owned());
        }
    }
    if policies.is_empty() {
        message.push_str(&format!(" {}.", text(body, "reason")));
    }
    let event = match SUBSTATUS.iter().find(|(name, _)| *name == substatus) {
        Some((_, id)) => PRODUCT.event(*id, Level::Error, message),
        None => OWN.event(FAILED_POLICY, Level::Error, message),
    };
    event
        .with("AttestationSubstatus", substatus)
        .with("Policies", policies.join(", "))
}

fn signer(body: &Value) -> Event {
    let sha256 = text(body, "sha256");
    let (id, level, message) = match text(body, "event") {
        "made" => (
            SIGNER_MADE,
            Level::Warning,
            format!(
                "The next attestation signer was made: {sha256}. Register it with key protection, then activate it here \
                 (guarded-host-sim renew-signer does both)."
            ),
        ),
        "activated" => (
            SIGNER_ACTIVATED,
            Level::Information,
            format!("The attestation signer {sha256} signs from now on."),
        ),
        "dropped" => (
            SIGNER_DROPPED,
            Level::Information,
            format!("The pending attestation signer {sha256} was dropped."),
        ),
        _ => {
            let (state, left) = (text(body, "state"), body["seconds_left"].as_i64().unwrap_or_default());
            let message = format!(
                "The renewal of the attestation signer is {state}; the active one ends in {left} s. Register the pending \
                 one with key protection, then activate it here."
            );
            let level = match state.to_ascii_lowercase().as_str() {
                "pending" => Level::Warning,
                _ => Level::Error,
            };
            (SIGNER_RENEWAL, level, message)
        }
    };
    OWN.event(id, level, message)
        .with("SignerSha256", body["sha256"].clone())
        .with("State", body["state"].clone())
        .with("SecondsLeft", body["seconds_left"].clone())
        .with("By", body["by"].clone())
}

fn setting(body: &Value) -> Event {
    let (name, policy) = (text(body, "setting"), text(body, "policy"));
    let done = match body["enabled"].as_bool() {
        Some(true) => "enabled",
        Some(false) => "disabled",
        None => text(body, "value"),
    };
    let (id, message) = match policy {
        "" => (
            SETTING,
            format!("The setting {name} is {done} from now on. Certificates that were issued before stay valid."),
        ),
        policy => (
            POLICY,
            format!("The policy {policy} is {done} for all hosts from now on."),
        ),
    };
    OWN.event(id, Level::Information, message)
        .with("Setting", name)
        .with("Policy", body["policy"].clone())
        .with("Value", done)
        .with("By", body["by"].clone())
}

/// The product's provider.
const PRODUCT: Provider = Provider("Microsoft-Windows-HostGuardianService-Attestation");
/// This lab's own.
const OWN: Provider = Provider("GuardedFabricLab-Attestation");

const LOG_VERIFICATION: u32 = 1203;
const UNAUTHORIZED_TPM: u32 = 1500;
const PASSED_TPM: u32 = 1523;
/// The product's id for each substatus that has one. It has two for CodeIntegrityPolicy, 1513 and 1538, and nothing says
/// which is when.
const SUBSTATUS: [(&str, u32); 12] = [
    ("SecureBoot", 1508),
    ("DebugMode", 1510),
    ("CodeIntegrityPolicy", 1513),
    ("Iommu", 1533),
    ("VirtualSecureMode", 1534),
    ("PagefileEncryption", 1535),
    ("BitLocker", 1536),
    ("HypervisorEnforcedCodeIntegrityPolicy", 1537),
    ("HibernationEnabled", 1539),
    ("DumpsEnabled", 1540),
    ("DumpEncryption", 1541),
    ("DumpEncryptionKey", 1542),
];

const PASSED_HOST_KEY: u32 = 51_001;
const UNAUTHORIZED_HOST_KEY: u32 = 51_002;
const UNAUTHORIZED_OTHERWISE: u32 = 51_003;
const FAILED_POLICY: u32 = 51_004;
const TPM_ERROR: u32 = 51_005;
const FAILED_OTHERWISE: u32 = 51_006;
const SIGNER_MADE: u32 = 51_010;
const SIGNER_ACTIVATED: u32 = 51_011;
const SIGNER_DROPPED: u32 = 51_012;
const SIGNER_RENEWAL: u32 = 51_013;
const POLICY: u32 = 51_020;
const SETTING: u32 = 51_021;

#[cfg(test)]
mod tests {
    use hgs_protocol::{env::UnixTime, status::SubstatusFlag};
    use serde_json::json;

    use super::*;

    fn events(kind: &str, body: Value) -> Vec<Event> {
        of_row(&AuditRow {
            writer: String::new(),
            sequence: 1,
            at: UnixTime(0),
            kind: kind.to_owned(),
            body,
        })
    }

    #[test]
    fn every_substatus_has_its_event_and_only_known_ids_are_the_products() {
        for flag in SubstatusFlag::ALL {
            let body = json!({ "mode": "Tpm", "reply": "PolicyEvaluationErrorReply", "host": "host01",
                "host_status": { "status": "InsecureHostConfiguration", "substatus": flag.name() } });
            let found = events("attestation", body);
            assert_eq!(found.len(), 2, "{found:?}");
            assert_eq!((found[0].id, found[0].provider_name.as_str()), (1203, PRODUCT.0));
            let own = ["SecureBootSettings", "FullBoot", "TcgLogVerification"].contains(&flag.name());
            assert_eq!(found[1].id == FAILED_POLICY, own, "{flag:?}");
            assert_eq!(found[1].provider_name, if own { OWN.0 } else { PRODUCT.0 });
            assert_eq!(found[1].data["AttestationSubstatus"], flag.name());
        }
    }

    #[test]
    fn who_is_not_known_is_told_by_the_key() {
        let unknown = |mode: &str, host: Option<&str>| {
            let body = json!({ "mode": mode, "reply": "UnauthorizedErrorReply", "host": host, "ek_sha256": "ab",
                "host_status": { "status": "UnauthorizedHost", "substatus": "NoInformation" } });
            let found = events("attestation", body);
            assert_eq!(found.len(), 1, "{found:?}");
            (found[0].id, found[0].provider_name.clone())
        };
        assert_eq!(unknown("Tpm", None), (1500, PRODUCT.0.to_owned()));
        assert_eq!(unknown("HostKey", None), (UNAUTHORIZED_HOST_KEY, OWN.0.to_owned()));
        // A denied VSM key of a host that is known.
        assert_eq!(
            unknown("Tpm", Some("host01")),
            (UNAUTHORIZED_OTHERWISE, OWN.0.to_owned())
        );
    }
}
