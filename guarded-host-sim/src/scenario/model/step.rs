//! One enum of everything that can happen in a scenario. A step in a file is a table with one action, what it must
//! yield, and a name for readers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use super::arguments::*;
use super::expect::{Expect, Yield};

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[schemars(extend("unevaluatedProperties" = false))]
pub struct Step {
    /// What happens, for readers; made from the action when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it must yield; that it succeeds, when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expect: Option<Expect>,
    /// What is done.
    #[serde(flatten)]
    pub action: Action,
}

/// What can be done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// The host attests, whatever certificate it has (Test-HgsClientConfiguration).
    Attest(OfHost),
    /// What the host says of its attestation, without a new attempt (Get-HgsClientConfiguration).
    Status(OfHost),
    /// Hosts attest again and again at once. Succeeds when none is refused and the last attempt of each passes.
    KeepAttesting(KeepAttesting),
    /// The host is power-cycled, with these dials from now on.
    Reboot(Reboot),
    /// The host hibernates and resumes.
    Hibernate(OfHost),
    /// Firmware clears the host's TPM, as its administrator wishes, and the host is power-cycled (Clear-Tpm).
    ClearTpm(OfHost),
    /// The host's power is cut.
    KillHost(OfHost),
    /// A host whose power was cut boots again.
    StartHost(StartHost),

    /// The VM is started, or goes on from its saved state (Start-VM).
    StartVm(OfVm),
    /// The VM is shut down (Stop-VM).
    StopVm(OfVm),
    /// The VM's power is cut (Stop-VM -TurnOff).
    TurnOffVm(OfVm),
    /// The VM's memory goes to the volume, and it stops (Save-VM).
    SaveVm(OfVm),
    /// The VM's saved memory is thrown away (Remove-VMSavedState).
    DiscardSaved(OfVm),
    /// The VM is reset (Restart-VM -Force).
    ResetVm(OfVm),
    /// The VM is live-migrated (Move-VM).
    Migrate(Migrate),
    /// The owner asks the running guest for proof that it has read the owner's secret.
    Prove(OfVm),
    /// What the VM is doing, as its host shows it (Get-VM).
    ShowVm(OfVm),
    /// A host takes the VM over whose owner is lost.
    TakeOver(OfVm),
    /// A checkpoint is taken (Checkpoint-VM).
    Checkpoint(Checkpoint),
    /// The VM goes back to a checkpoint (Restore-VMCheckpoint).
    ApplyCheckpoint(Checkpoint),
    /// A way into the guest is tried.
    Look(Look),
    /// The fabric's administrator changes the VM's kind or a switch (Set-VMSecurity, Set-VMSecurityPolicy).
    ChangeSecurity(ChangeSecurity),
    /// The VM is exported, and imported on a host (Export-VM, Import-VM -Copy).
    ExportTo(Carry),
    /// Whoever can read the volume takes the VM's files to a host of another fabric.
    Steal(Carry),
    /// The VM's files are copied, as a backup (the VM is off).
    BackUp(Keep),
    /// The VM's files are put back from such a copy.
    PutBack(Keep),
    /// The VM's key protector is copied (Get-VMKeyProtector).
    KeepProtector(Keep),
    /// The VM gets the copied key protector (Set-VMKeyProtector).
    SetProtector(Keep),
    /// The VM gets the key protector of its last start again.
    RestoreProtector(OfVm),
    /// The VM's owner makes a new key protector with a new transport key.
    Rekey(Rekey),

    /// Time passes for every machine of the fabric.
    Wait(Wait),
    /// The clock of a part of the fabric runs ahead.
    AdvanceClock(AdvanceClock),

    /// The administrator of an HGS registers a host by its identity.
    RegisterHost(RegisterHost),
    /// The administrator of an HGS removes a host's registration.
    RemoveHost(OfHost),
    /// The administrator registers the host's present boot log as a TPM baseline.
    RegisterBaseline(Register),
    /// The administrator removes a TPM baseline.
    RemoveBaseline(Named),
    /// The administrator registers the host's present code-integrity policy.
    RegisterCiPolicy(Register),
    /// The administrator removes a code-integrity policy.
    RemoveCiPolicy(Named),
    /// The administrator registers a key to which dumps may be encrypted.
    RegisterDumpKey(RegisterDumpKey),
    /// The administrator turns a policy on or off, for all hosts.
    SetPolicy(SetPolicy),
    /// The administrator changes the mode of attestation (Set-HgsServer).
    SetMode(SetMode),
    /// What a timer does: the pending attestation signer is registered with key protection, and signs once it may.
    RenewSigner(RenewSigner),
    /// Key protection gets new signing and encryption certificates, which become primary.
    RotateCertificates(OfHgs),
    /// Key protection's certificates that are not primary are disabled.
    DisableOldCertificates(OfHgs),
    /// Key protection's certificates that are not primary are enabled again.
    EnableOldCertificates(OfHgs),
    /// Key protection's certificates that are not primary, and disabled, are removed.
    RemoveOldCertificates(OfHgs),
    /// Key protection forgets all attestation signers.
    UntrustSigners(OfHgs),
    /// Key protection trusts the present attestation signers.
    TrustSigners(OfHgs),
    /// Key protection refuses health certificates issued before now.
    DenyCertificates(OfHgs),
    /// Key protection's limit of starts without contact.
    AllowOffline(AllowOffline),
    /// The record of a service is verified; it must be whole.
    VerifyRecord(OfService),
    /// A call to the administrators' interface of a service.
    Administer(Administer),

    /// A service of an HGS is ended, as by a power cut.
    KillService(OfService),
    /// A service that was ended is started again over its own data.
    StartService(OfService),
    /// A service of an HGS is ended and started again.
    RestartService(OfService),
    /// A primary certificate of key protection is lost, as from a database that was restored in part.
    LosePrimary(LosePrimary),
    /// More is asked of key protection at once than it takes on, while its database is held by somebody else. Succeeds when it
    /// turns some away at once and loses none that it took on.
    Overload(OfVm),

    /// The network between hosts and services of an HGS is cut.
    Partition(Partition),
    /// Messages between hosts and services come late.
    Delay(Delay),
    /// Messages between hosts and services are changed on their way.
    Corrupt(Corrupt),
    /// The network is whole again, and nobody delays or changes messages.
    Heal(Nothing),
    /// A request of the lab's own to a service, byte for byte.
    Send(SendRequest),
    /// A message of a host is sent once more by somebody else.
    Replay(Replay),
    /// A RollTransportKeyRequest of the lab's own.
    Present(Present),

    /// Several steps at once; each must yield what it is expected to.
    Together(Vec<Step>),
}

impl Action {
    /// What an expectation may say of it.
    pub fn yields(&self) -> &'static [Yield] {
        use Yield::*;
        match self {
            Action::Attest(_) | Action::Status(_) => &[
                Outcome,
                Status,
                Substatus,
                FailedPolicies,
                Error,
                Says,
                CertificateLeft,
                Takes,
                Events,
            ],
            Action::StartVm(_) => &[Outcome, Error, Says, Offline, OfflineStartsLeft, Takes, Events],
            Action::ShowVm(_) => &[Outcome, VmState, Owner, Says],
            Action::Send(_) | Action::Replay(_) | Action::Present(_) | Action::Administer(_) => {
                &[Outcome, Http, Error, Reply, Says, Takes, Events]
            }
            // What becomes due meanwhile is told.
            Action::Wait(_) | Action::AdvanceClock(_) => &[Events],
            Action::Partition(_) | Action::Delay(_) | Action::Corrupt(_) | Action::Heal(_) => &[],
            Action::Together(_) => &[Takes, Events],
            _ => &[Outcome, Error, Says, Takes, Events],
        }
    }

    /// Its name in a file.
    pub fn name(&self) -> String {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::Object(map)) => map.keys().next().cloned().unwrap_or_default(),
            _ => String::new(),
        }
    }
}

impl Step {
    /// What happens, in a line.
    pub fn title(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.action.title())
    }
}
