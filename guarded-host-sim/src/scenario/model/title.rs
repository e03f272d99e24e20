//! What an action does, in a line for readers.

use serde::Serialize;

use super::{
    step::{Action, Damage},
    value::At,
};

impl Action {
    /// What happens.
    pub fn title(&self) -> String {
        match self {
            Action::Attest(of) => format!("{} attests", of.host),
            Action::Status(of) => format!("{} is asked for its status", of.host),
            Action::KeepAttesting(of) => format!("{} attest {} times each", list(&of.hosts), of.times),
            Action::Reboot(reboot) if reboot.dials.is_empty() => format!("{} is rebooted", reboot.host),
            Action::Reboot(reboot) => format!("{} is rebooted with {}", reboot.host, inline(&reboot.dials)),
            Action::Hibernate(of) => format!("{} hibernates and resumes", of.host),
            Action::ClearTpm(of) => format!("the TPM of {} is cleared", of.host),
            Action::KillHost(of) => format!("the power of {} is cut", of.host),
            Action::StartHost(of) => match &of.crash_at {
                Some(point) => format!("{} boots again, and will lose its power at {point}", of.host),
                None => format!("{} boots again", of.host),
            },
            Action::StartVm(of) => format!("{} is started{}", of.vm, on(&of.host)),
            Action::StopVm(of) => format!("{} is shut down{}", of.vm, on(&of.host)),
            Action::TurnOffVm(of) => format!("{} is turned off{}", of.vm, on(&of.host)),
            Action::SaveVm(of) => format!("{} is saved{}", of.vm, on(&of.host)),
            Action::DiscardSaved(of) => format!("the saved memory of {} is thrown away", of.vm),
            Action::ResetVm(of) => format!("{} is reset{}", of.vm, on(&of.host)),
            Action::Migrate(of) => format!("{} is migrated to {}", of.vm, of.to),
            Action::Prove(of) => format!("the guest of {} answers its owner's challenge", of.vm),
            Action::ShowVm(of) => format!("{} is looked at{}", of.vm, on(&of.host)),
            Action::TakeOver(of) => format!("{} is taken over{}", of.vm, on(&of.host)),
            Action::Checkpoint(of) => format!("a checkpoint {:?} of {} is taken", of.name, of.vm),
            Action::ApplyCheckpoint(of) => format!("{} goes back to the checkpoint {:?}", of.vm, of.name),
            Action::Look(of) => format!("somebody looks into {} by its {}", of.vm, word(&of.channel)),
            Action::ChangeSecurity(of) => match (of.kind, of.on, of.off) {
                (Some(kind), ..) => format!("{} is to be {}", of.vm, word(&kind)),
                (_, Some(switch), _) => format!("{} of {} is turned on", word(&switch), of.vm),
                (_, _, Some(switch)) => format!("{} of {} is turned off", word(&switch), of.vm),
                _ => format!("the security of {} is changed", of.vm),
            },
            Action::ExportTo(of) => format!("{} is exported and imported on {}", of.vm, of.to),
            Action::Steal(of) => format!("a thief takes {} to {}", of.vm, of.to),
            Action::BackUp(of) => format!("{} is backed up as {:?}", of.vm, of.name),
            Action::PutBack(of) => format!("{} is put back from the backup {:?}", of.vm, of.name),
            Action::KeepProtector(of) => format!("the key protector of {} is copied as {:?}", of.vm, of.name),
            Action::SetProtector(of) => format!("{} gets the key protector {:?}", of.vm, of.name),
            Action::RestoreProtector(of) => format!("{} gets the key protector of its last start again", of.vm),
            Action::Rekey(of) => format!("the owner gives {} a new key protector", of.vm),
            Action::Wait(wait) => format!("{} pass", *wait.time),
            Action::AdvanceClock(clock) => format!("the clock of {} runs {} ahead", list(&clock.of), clock.by),
            _ => self.title_of_hgs(),
        }
    }

    fn title_of_hgs(&self) -> String {
        match self {
            Action::RegisterHost(of) => format!("{} is registered", of.host),
            Action::RemoveHost(of) => format!("the registration of {} is removed", of.host),
            Action::RegisterBaseline(of) => format!(
                "the boot log of {} is registered as the baseline {:?}",
                of.host, of.name
            ),
            Action::RemoveBaseline(of) => format!("the baseline {:?} is removed", of.name),
            Action::RegisterCiPolicy(of) => {
                format!(
                    "the code-integrity policy of {} is registered as {:?}",
                    of.host, of.name
                )
            }
            Action::RemoveCiPolicy(of) => format!("the code-integrity policy {:?} is removed", of.name),
            Action::RegisterDumpKey(of) => format!("the dump key {:?} is registered", of.name),
            Action::SetPolicy(set) => format!("{} is turned {}", set.policy, if set.enabled { "on" } else { "off" }),
            Action::SetMode(set) => format!("the mode of attestation becomes {}", set.mode.name()),
            Action::RenewSigner(_) => "the attestation signer's renewal runs".to_owned(),
            Action::RotateCertificates(_) => "key protection gets new primary certificates".to_owned(),
            Action::DisableOldCertificates(_) => "key protection's old certificates are disabled".to_owned(),
            Action::EnableOldCertificates(_) => "key protection's old certificates are enabled again".to_owned(),
            Action::RemoveOldCertificates(_) => "key protection's old certificates are removed".to_owned(),
            Action::UntrustSigners(_) => "key protection forgets the attestation signers".to_owned(),
            Action::TrustSigners(_) => "key protection trusts the attestation signers".to_owned(),
            Action::DenyCertificates(_) => "key protection refuses health certificates issued before now".to_owned(),
            Action::AllowOffline(of) => format!("key protection allows {} starts without contact", of.starts),
            Action::VerifyRecord(of) => format!("the record of {} is verified", of.service),
            Action::Administer(of) => format!("the administrator of {} sends {} {}", of.service, of.method, of.path),
            Action::KillService(of) => format!("{} is ended", of.service),
            Action::StartService(of) => format!("{} is started again", of.service),
            Action::RestartService(of) => format!("{} is restarted", of.service),
            Action::LosePrimary(of) => {
                format!("key protection loses its primary {} certificate", word(&of.certificate))
            }
            Action::Overload(_) => "more is asked of key protection at once than it takes on".to_owned(),
            _ => self.title_of_network(),
        }
    }

    fn title_of_network(&self) -> String {
        let between = |hosts: &[At<String>], services: &[super::step::ServiceName]| {
            let hosts = if hosts.is_empty() {
                "all hosts".to_owned()
            } else {
                list(hosts)
            };
            let names: Vec<String> = services.iter().map(ToString::to_string).collect();
            let services = if names.is_empty() {
                "the HGS".to_owned()
            } else {
                names.join(" and ")
            };
            format!("between {hosts} and {services}")
        };
        match self {
            Action::Partition(cut) => format!("the network {} is cut", between(&cut.hosts, &cut.services)),
            Action::Delay(of) => format!("messages {} come {} late", between(&of.hosts, &of.services), *of.by),
            Action::Corrupt(of) => format!(
                "somebody {} and the HGS changes {}",
                between_hosts(&of.hosts),
                what(of.what)
            ),
            Action::Heal(_) => "the network is whole again".to_owned(),
            Action::Send(send) => format!("the lab sends its own request to {}{}", send.service, send.path),
            Action::Replay(of) => format!("somebody sends a request of {} once more", of.host),
            Action::Present(of) => format!("the lab itself asks for the keys of {}", of.vm),
            Action::Together(steps) => {
                let titles: Vec<String> = steps.iter().map(super::step::Step::title).collect();
                format!("at once: {}", titles.join("; "))
            }
            other => other.name(),
        }
    }
}

fn between_hosts(hosts: &[At<String>]) -> String {
    match hosts.is_empty() {
        true => "between all hosts".to_owned(),
        false => format!("between {}", list(hosts)),
    }
}

fn what(damage: Damage) -> &'static str {
    match damage {
        Damage::BootLog => "a bit of the boot log",
        Damage::TpmAnswer => "a bit of the TPM's answer",
        Damage::SealedState => "a bit of the service's sealed state",
        Damage::SessionId => "the SessionId",
        Damage::StaleState => "the state for that of an earlier exchange",
        Damage::CaTrustletReport => "the request: it asks for a CA trustlet too",
        Damage::AttestationRequestCut => "the request: its end is missing",
        Damage::IssuedCertificate => "a bit of the health certificate",
        Damage::GuardianSignature => "a bit of the guardian's signature",
        Damage::WrappedKey => "a bit of a wrapped key",
        Damage::TransferAlgorithm => "the algorithm asked for",
        Damage::RollRequestCut => "the request for keys: its end is missing",
        Damage::EgressProtector => "a bit of the new key protector",
        Damage::TransportKeys => "a bit of the transport keys",
    }
}

fn list(names: &[At<String>]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn on(host: &Option<At<String>>) -> String {
    host.as_ref().map_or_else(String::new, |host| format!(" on {host}"))
}

/// A choice as the file writes it.
fn word(choice: &impl Serialize) -> String {
    match serde_json::to_value(choice) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

/// Fields in a line: `secure_boot = false, iommu = false`.
fn inline(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::Object(map)) => {
            let fields = map.iter().map(|(key, value)| format!("{key} = {value}"));
            fields.collect::<Vec<_>>().join(", ")
        }
        _ => String::new(),
    }
}
