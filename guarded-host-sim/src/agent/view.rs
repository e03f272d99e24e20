//! The object that Get-HgsClientConfiguration prints, with its numbers and with what the product does not show.

use hgs_protocol::{
    health::AttestationMode,
    status::{AttestationStatus, SubstatusFlag},
};
use serde::{Deserialize, Serialize};

use super::{Agent, Outcome, configuration::Server};

/// The client configuration and how the host stands. Names and texts are the product's where it has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ClientView {
    /// Whether the host has passed and holds a valid certificate.
    pub is_host_guarded: bool,
    /// `Local` or `HostGuardianService`.
    pub mode: String,
    /// Base URL of key protection.
    pub key_protection_server_url: Option<String>,
    /// Base URL of attestation.
    pub attestation_server_url: Option<String>,
    /// `Tpm`, `HostKey` or `ActiveDirectory`, as the service asked; `Unknown` when it said nothing.
    pub attestation_operation_mode: String,
    /// How the last attestation ended, or whether its certificate has expired.
    pub attestation_status: AttestationStatus,
    /// What failed, joined by commas; `NoInformation` for nothing.
    pub attestation_substatus: String,
    /// Base URL of the fallback's key protection.
    pub fallback_key_protection_server_url: Option<String>,
    /// Base URL of the fallback's attestation.
    pub fallback_attestation_server_url: Option<String>,
    /// Whether the fallback answered last.
    pub is_fallback_in_use: bool,
    /// Where attestation answered last.
    pub last_attestation_server_url: Option<String>,
    /// Where key protection answered last.
    pub last_key_protection_server_url: Option<String>,
    /// 1 or 2; that Local is 1 is this project's choice.
    pub mode_code: u16,
    /// 0 unknown, 1 TPM, 2 Active Directory, 3 host key.
    pub attestation_operation_mode_code: u16,
    /// The status's number.
    pub attestation_status_code: u16,
    /// The substatus's bit field.
    pub attestation_substatus_bits: u64,
    /// Each substatus by itself.
    #[serde(rename = "substatus")]
    pub flags: Vec<FlagView>,
    /// The host's name.
    #[serde(rename = "host")]
    pub host: String,
    /// Name of the protocol's error reply, if one came.
    #[serde(rename = "error")]
    pub error: Option<String>,
    /// The policies that failed, under the specification's names.
    #[serde(rename = "failed_policies")]
    pub failed_policies: Vec<String>,
    /// What happened, for people.
    #[serde(rename = "detail")]
    pub detail: String,
    /// What helps, for people; empty when nothing is to be done.
    #[serde(rename = "remedy")]
    pub remedy: String,
    /// The health certificate of the HGS in use, if the host has one.
    #[serde(rename = "certificate")]
    pub certificate: Option<CertificateView>,
}

/// One substatus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlagView {
    /// The product's name.
    pub name: String,
    /// Its bit.
    pub number: u64,
    /// Whether the product documents the number. The others are this project's.
    pub documented: bool,
    /// What helps.
    pub remedy: String,
}

/// A health certificate in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateView {
    /// Its serial number.
    pub serial: String,
    /// Begin, RFC 3339.
    pub not_before: String,
    /// End, RFC 3339.
    pub not_after: String,
    /// Until its end by the host's clock; negative afterwards.
    pub seconds_left: i64,
}

impl Agent {
    /// The object, with `outcome` as status.
    pub(super) fn view(&self, outcome: Outcome) -> ClientView {
        let now = self.snapshot();
        let configuration = &now.configuration;
        let servers = |server| configuration.servers(server);
        let attestation_at = |server| servers(server).map(|s| s.attestation.as_str().to_owned());
        let key_protection_at = |server| servers(server).map(|s| s.key_protection.as_str().to_owned());
        let flags = outcome.substatus.flags.iter().map(|flag| FlagView {
            name: flag.name().to_owned(),
            number: flag.number(),
            documented: flag.is_number_documented(),
            remedy: flag.remedy().to_owned(),
        });
        let certificate = now.health.map(|health| {
            let (not_before, not_after) = health.encryption.validity();
            CertificateView {
                serial: health.encryption.serial(),
                not_before: not_before.to_string(),
                not_after: not_after.to_string(),
                seconds_left: not_after.seconds_since(self.clock.now()),
            }
        });
        ClientView {
            is_host_guarded: outcome.status == AttestationStatus::Passed,
            mode: configuration.mode().to_owned(),
            key_protection_server_url: key_protection_at(Server::Primary),
            attestation_server_url: attestation_at(Server::Primary),
            attestation_operation_mode: outcome.mode.map_or("Unknown", mode_name).to_owned(),
            attestation_status: outcome.status,
            attestation_substatus: outcome.substatus.text(),
            fallback_key_protection_server_url: key_protection_at(Server::Fallback),
            fallback_attestation_server_url: attestation_at(Server::Fallback),
            is_fallback_in_use: now.in_use.fallback,
            last_attestation_server_url: now.in_use.attestation.and_then(attestation_at),
            last_key_protection_server_url: now.in_use.key_protection.and_then(key_protection_at),
            mode_code: configuration.mode_code(),
            attestation_operation_mode_code: outcome.mode.map_or(0, |mode| u16::from(mode.code())),
            attestation_status_code: outcome.status.code(),
            attestation_substatus_bits: outcome.substatus.bits(),
            flags: flags.collect(),
            host: self.name().to_owned(),
            error: outcome.error.clone(),
            failed_policies: outcome.substatus.failed_policies.clone(),
            remedy: remedy(&outcome),
            detail: outcome.detail,
            certificate,
        }
    }
}

/// The client's spelling.
pub(super) fn mode_name(mode: AttestationMode) -> &'static str {
    match mode {
        AttestationMode::Tpm => "Tpm",
        AttestationMode::ActiveDirectory => "ActiveDirectory",
        AttestationMode::HostKey => "HostKey",
    }
}

/// The remedies of the substatus, or that of the status.
pub(super) fn remedy(outcome: &Outcome) -> String {
    let of_flags: Vec<&str> = outcome
        .substatus
        .flags
        .iter()
        .map(|flag: &SubstatusFlag| flag.remedy())
        .collect();
    match of_flags.is_empty() {
        true => outcome.status.remedy().to_owned(),
        false => of_flags.join(" "),
    }
}
