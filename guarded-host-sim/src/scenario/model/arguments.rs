//! What the actions of a scenario are given: one struct for each shape, with the fields' meaning.

use std::{collections::BTreeMap, fmt};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Mode,
    dials::DialChanges,
    value::{At, Length},
};

/// Writes structs whose unknown fields are refused.
macro_rules! arguments {
    ($($(#[$about:meta])* $name:ident { $($(#[$field_about:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name { $($(#[$field_about])* pub $field: $type,)* }
    )*};
}

arguments! {
    /// Nothing to say.
    Nothing {}

    /// A host.
    OfHost {
        /// The host.
        host: At<String>,
    }

    /// A boot after a power cut.
    StartHost {
        /// The host.
        host: At<String>,
        /// The commit point of an operation on a VM at which the host's power is cut again: `migration:committed`.
        #[serde(skip_serializing_if = "Option::is_none")]
        crash_at: Option<At<String>>,
    }

    /// A power cycle.
    Reboot {
        /// The host.
        host: At<String>,
        /// What of its configuration is otherwise from now on.
        #[serde(default)]
        dials: DialChanges,
    }

    /// Hosts attest again and again, all at once, while other things happen.
    KeepAttesting {
        /// The hosts.
        hosts: Vec<At<String>>,
        /// How often each.
        times: u32,
    }

    /// A VM, on the host that owns it.
    OfVm {
        /// The VM.
        vm: At<String>,
        /// The host that is asked; the VM's owner when absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        host: Option<At<String>>,
    }

    /// A live migration.
    Migrate {
        /// The VM.
        vm: At<String>,
        /// The host that is asked; the VM's owner when absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        from: Option<At<String>>,
        /// The host that is to run it.
        to: At<String>,
    }

    /// A checkpoint of a VM.
    Checkpoint {
        /// The VM.
        vm: At<String>,
        /// What the checkpoint is called.
        name: String,
    }

    /// A way into a guest.
    Look {
        /// The VM.
        vm: At<String>,
        /// The way.
        channel: Channel,
    }

    /// The kind of a VM, or one of its switches.
    ChangeSecurity {
        /// The VM.
        vm: At<String>,
        /// The kind that it is to have.
        #[serde(skip_serializing_if = "Option::is_none")]
        kind: Option<super::VmKind>,
        /// The switch that is to be turned on.
        #[serde(skip_serializing_if = "Option::is_none")]
        on: Option<Switch>,
        /// The switch that is to be turned off.
        #[serde(skip_serializing_if = "Option::is_none")]
        off: Option<Switch>,
    }

    /// A VM's files go to another host's volume.
    Carry {
        /// The VM.
        vm: At<String>,
        /// The host.
        to: At<String>,
    }

    /// A copy of a VM's key protector, or of all its files, under a name.
    Keep {
        /// The VM.
        vm: At<String>,
        /// The copy's name.
        name: String,
    }

    /// A new key protector from the VM's owner.
    Rekey {
        /// The VM, which is off.
        vm: At<String>,
        /// The HGSs whose guardians may open it from now on; the first when empty.
        #[serde(default)]
        guardians: Vec<At<String>>,
    }

    /// Time passes.
    Wait {
        /// For how long.
        time: At<Length>,
    }

    /// A clock runs ahead.
    AdvanceClock {
        /// Whose: a host, or a service as `attestation` or `key-protection`, of another HGS than the first
        /// `NAME/attestation`.
        of: Vec<At<String>>,
        /// By how much.
        by: Length,
    }

    /// A host's identity is registered.
    RegisterHost {
        /// The host.
        host: At<String>,
        /// The HGS; the host's own when absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        hgs: Option<At<String>>,
        /// The version of attestation policies; v2 when absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        policy_version: Option<PolicyVersion>,
        /// Takes an endorsement key that no certificate proves; counts in v1 alone.
        #[serde(default)]
        force: bool,
    }

    /// Something of a host is registered.
    Register {
        /// The host that it is taken from.
        host: At<String>,
        /// The HGS; the host's own when absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        hgs: Option<At<String>>,
        /// What it is called.
        name: String,
        /// The version of attestation policies; v2 when absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        policy_version: Option<PolicyVersion>,
    }

    /// A registered artefact.
    Named {
        /// The HGS; the first when absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        hgs: Option<At<String>>,
        /// What it is called.
        name: String,
    }

    /// A dump key is registered.
    RegisterDumpKey {
        /// The HGS; the first when absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        hgs: Option<At<String>>,
        /// What it is called.
        name: String,
        /// Text that stands for the key, as in the dial `dump_encryption_key`.
        key: String,
    }

    /// A policy is turned on or off.
    SetPolicy {
        /// The HGS; the first when absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        hgs: Option<At<String>>,
        /// The policy: `Hgs_…`.
        policy: String,
        /// On or off.
        enabled: bool,
    }

    /// The mode of attestation.
    SetMode {
        /// The HGS; the first when absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        hgs: Option<At<String>>,
        /// The mode.
        mode: Mode,
    }

    /// An HGS.
    OfHgs {
        /// The HGS; the first when absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        hgs: Option<At<String>>,
    }

    /// The attestation signer is renewed.
    RenewSigner {
        /// The HGS; the first when absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        hgs: Option<At<String>>,
        /// Before it is due.
        #[serde(default)]
        now: bool,
        /// Without waiting until clients have seen the new one published.
        #[serde(default)]
        at_once: bool,
    }

    /// How many starts without contact a released key may carry.
    AllowOffline {
        /// The HGS; the first when absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        hgs: Option<At<String>>,
        /// At most so many.
        starts: u32,
    }

    /// A primary certificate is lost.
    LosePrimary {
        /// The HGS; the first when absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        hgs: Option<At<String>>,
        /// Which.
        certificate: CertificateType,
    }

    /// A call to the administrators' interface of a service.
    Administer {
        /// The HGS; the first when absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        hgs: Option<At<String>>,
        /// The service.
        service: ServiceName,
        /// `GET`, `POST`, `PUT`, `PATCH` or `DELETE`.
        method: String,
        /// The path below `/admin/v1/`.
        path: String,
        /// The body, which is sent as JSON.
        #[serde(skip_serializing_if = "Option::is_none")]
        body: Option<serde_json::Value>,
    }

    /// A service of an HGS.
    OfService {
        /// The HGS; the first when absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        hgs: Option<At<String>>,
        /// Which of its services.
        service: ServiceName,
    }

    /// Hosts do not reach services.
    Partition {
        /// Which hosts; all when empty.
        #[serde(default)]
        hosts: Vec<At<String>>,
        /// The HGS; the first when absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        hgs: Option<At<String>>,
        /// Which of its services; both when empty.
        #[serde(default)]
        services: Vec<ServiceName>,
    }

    /// Messages come late.
    Delay {
        /// Which hosts'; all when empty.
        #[serde(default)]
        hosts: Vec<At<String>>,
        /// The HGS; the first when absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        hgs: Option<At<String>>,
        /// To which of its services; both when empty.
        #[serde(default)]
        services: Vec<ServiceName>,
        /// By how much: at most ten seconds, by the wall clock.
        by: At<Length>,
    }

    /// Messages are changed on their way, as by whoever sits between a host and its HGS.
    Corrupt {
        /// Which hosts'; all when empty.
        #[serde(default)]
        hosts: Vec<At<String>>,
        /// The HGS; the first when absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        hgs: Option<At<String>>,
        /// What is changed, and so in which messages.
        what: Damage,
        /// In so many messages; in all until `heal` when absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        times: Option<u32>,
    }

    /// A request of the lab's own.
    SendRequest {
        /// The HGS; the first when absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        hgs: Option<At<String>>,
        /// The service.
        service: ServiceName,
        /// `GET`, `POST` or another; `GET` without a body, `POST` with one, when absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        method: Option<String>,
        /// The path.
        path: String,
        /// The body, as it is.
        #[serde(skip_serializing_if = "Option::is_none")]
        body: Option<String>,
        /// Headers beside the usual ones.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        headers: BTreeMap<String, String>,
    }

    /// A host's message is sent once more by somebody else.
    Replay {
        /// The host.
        host: At<String>,
        /// The HGS; the host's own when absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        hgs: Option<At<String>>,
        /// Which message: the newest of this kind.
        what: Replayed,
    }

    /// A RollTransportKeyRequest of the lab's own.
    Present {
        /// The HGS; the first when absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        hgs: Option<At<String>>,
        /// The VM whose key protector is shown.
        vm: At<String>,
        /// The host whose health certificate is shown; the VM's owner when absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        host: Option<At<String>>,
        /// What is shown as the health certificate.
        #[serde(default)]
        certificate: ShownCertificate,
        /// What is shown as the key protector.
        #[serde(default)]
        protector: ShownProtector,
        /// The URI of the algorithm asked for the transfer key; that of suite A when absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        transfer_algorithm: Option<String>,
        /// The protocol's version.
        #[serde(default)]
        version: super::Protocol,
    }
}

/// One of the two services of an HGS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceName {
    /// Attestation (MS-HGSA).
    Attestation,
    /// Key protection (MS-KPS).
    KeyProtection,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ServiceName::Attestation => "attestation",
            ServiceName::KeyProtection => "key-protection",
        })
    }
}

/// Writes enumerations in kebab case.
macro_rules! choices {
    ($($(#[$about:meta])* $name:ident { $($(#[$variant_about:meta])* $variant:ident,)* })*) => {$(
        $(#[$about])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "kebab-case")]
        pub enum $name { $($(#[$variant_about])* $variant,)* }
    )*};
}

choices! {
    /// A way from the host into a guest.
    Channel {
        /// Screen and keyboard.
        #[default]
        Console,
        /// A COM port.
        Serial,
        /// A debugger on the VM's worker process.
        Debugger,
        /// PowerShell Direct.
        PowershellDirect,
        /// Key-value pairs.
        DataExchange,
    }

    /// What of a VM that is not shielded can be on or off.
    Switch {
        /// Secure Boot of the guest's firmware.
        #[default]
        SecureBoot,
        /// The virtual TPM.
        Vtpm,
        /// Encryption of saved memory, checkpoints and migration.
        EncryptStateAndMigration,
        /// Key-value pairs.
        DataExchange,
        /// PowerShell Direct.
        PowershellDirect,
        /// COM ports.
        Serial,
    }

    /// Version of attestation policies.
    PolicyVersion {
        /// Of 2016.
        V1,
        /// Of 2019.
        #[default]
        V2,
    }

    /// A kind of certificate of key protection.
    CertificateType {
        /// It signs.
        #[default]
        Signing,
        /// Keys are encrypted to it.
        Encryption,
    }

    /// What is changed in a message on its way.
    Damage {
        /// One bit of the boot log that the host sends.
        #[default]
        BootLog,
        /// One bit of the TPM's last answer that the host sends.
        TpmAnswer,
        /// One bit of the service's own sealed state, as the host returns it.
        SealedState,
        /// The SessionId of an exchange that is under way.
        SessionId,
        /// The state of an exchange is replaced by that of an earlier one (a stale nonce).
        StaleState,
        /// A certificate for a CA trustlet is asked for too, with a report that nobody made.
        CaTrustletReport,
        /// The end of the request to attestation is cut off.
        AttestationRequestCut,
        /// One bit of the health certificate in the reply.
        IssuedCertificate,
        /// One bit of the guardian's signature of the key protector that the host sends.
        GuardianSignature,
        /// One bit of a transport key's ciphertext in the key protector that the host sends.
        WrappedKey,
        /// The algorithm that the host asks for.
        TransferAlgorithm,
        /// The end of the request to key protection is cut off.
        RollRequestCut,
        /// The key protector in key protection's answer: one bit of a transport key's ciphertext.
        EgressProtector,
        /// One bit of the encrypted transport keys in key protection's answer.
        TransportKeys,
    }

    /// A kind of message that can be sent once more.
    Replayed {
        /// The last request of an exchange that ended with a health certificate.
        #[default]
        Attestation,
        /// A RollTransportKeyRequest.
        Roll,
    }

    /// What is shown as a health certificate.
    ShownCertificate {
        /// The host's own.
        #[default]
        OfHost,
        /// The host's certificate for its signing key.
        OfSigningKey,
        /// A good one, but of a signer that nobody trusts.
        WrongIssuer,
        /// The attestation signer's own.
        Signer,
        /// Bytes that are no certificate.
        Garbage,
    }

    /// What is shown as a key protector.
    ShownProtector {
        /// The VM's.
        #[default]
        OfVm,
        /// The VM's with one bit of the guardian's signature changed.
        OneBit,
        /// Bytes that are no document.
        Garbage,
        /// The owner has signed a wrapping whose parent does not exist.
        MissingParent,
        /// The owner has signed two wrappings with one Id.
        DuplicateId,
        /// The owner has signed over a wrapping whose own signature is wrong.
        BadWrappingSignature,
    }
}
