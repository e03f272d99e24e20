//! What is done to VMs on a host, as events of its log.

use hgs_service::events::{Event, Level, Provider};

use super::super::notice::{CLIENT, OWN};
use crate::{
    remedy::remedy,
    vm::{
        VmName,
        operation::{PoweredOn, VmError},
    },
};

/// Something that an administrator has asked for. With what came of it where that is not always the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::agent) enum Deed {
    Start(Option<Started>),
    ShutDown,
    TurnOff,
    Save,
    DiscardSaved,
    Reset,
    MigrateAway { target: String },
    Receive,
    TakeOver,
    Make,
    Provision,
    Create,
    ChangeSecurity,
    TakeCheckpoint,
    ApplyCheckpoint,
    DeleteCheckpoint,
    SetProtector,
    Export,
    Tally,
    Look { channel: String },
}

/// How a VM was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::agent) struct Started {
    pub(in crate::agent) offline: bool,
    pub(in crate::agent) offline_starts_left: u32,
}

impl Deed {
    /// A start, as it ended.
    pub(in crate::agent) fn started(done: &Result<PoweredOn, VmError>) -> Deed {
        Deed::Start(done.as_ref().ok().map(|done| Started {
            offline: done.offline,
            offline_starts_left: done.offline_starts_left,
        }))
    }

    /// The operation, as the host's API names it.
    pub(in crate::agent) fn verb(&self) -> &'static str {
        self.row().0
    }

    /// Verb, id of its event, and what is then true of the VM.
    fn row(&self) -> (&'static str, u32, &'static str) {
        match self {
            Deed::Start(_) => ("power-on", 50_101, "runs"),
            Deed::ShutDown => ("power-off", 50_102, "was shut down"),
            Deed::TurnOff => ("turn-off", 50_103, "was turned off"),
            Deed::Save => ("save", 50_104, "is saved"),
            Deed::DiscardSaved => ("discard-saved", 50_105, "has its saved memory no more"),
            Deed::Reset => ("reset", 50_106, "was reset and runs"),
            Deed::MigrateAway { .. } => ("migrate", 50_107, "was live-migrated away"),
            Deed::Receive => ("receive", 50_108, "was live-migrated to this host and runs"),
            Deed::TakeOver => ("take-over", 50_109, "belongs to this host from now on"),
            Deed::Make => (
                "make",
                50_110,
                "was made, with a key protector of this host's own guardian",
            ),
            Deed::Provision => ("provision", 50_111, "was made of a template disk and shielding data"),
            Deed::Create => ("create", 50_120, "was made, with its owner's key protector"),
            Deed::ChangeSecurity => ("security", 50_112, "has other security settings"),
            Deed::TakeCheckpoint => ("checkpoint", 50_113, "has a new checkpoint"),
            Deed::ApplyCheckpoint => ("apply-checkpoint", 50_114, "is back at a checkpoint"),
            Deed::DeleteCheckpoint => ("delete-checkpoint", 50_115, "has a checkpoint less"),
            Deed::SetProtector => ("protector", 50_116, "has another key protector"),
            Deed::Export => ("export", 50_117, "was exported"),
            Deed::Tally => ("tally", 50_119, "has counted"),
            Deed::Look { .. } => ("look", 50_118, "was looked into"),
        }
    }
}

/// The events of what was done.
pub(in crate::agent) fn done(deed: &Deed, name: &VmName) -> Vec<Event> {
    let (_, id, now) = deed.row();
    let own = |message: String| OWN.event(id, Level::Information, message);
    let started = |offline: bool, left: u32| {
        let event = own(format!("The VM {name} runs.")).with("Offline", offline);
        event.with("OfflineStartsLeft", left)
    };
    match deed {
        Deed::Start(Some(Started {
            offline: true,
            offline_starts_left: left,
        })) => {
            let message = format!(
                "No HGS answers, and the key kept from the last start of the VM {name} was accepted; {left} more starts without \
                 contact are allowed. Look after the way to the HGS."
            );
            vec![
                VMSP.event(CACHED_ACCEPTED, Level::Information, message),
                started(true, *left),
            ]
        }
        Deed::Start(Some(with)) => vec![started(false, with.offline_starts_left)],
        Deed::MigrateAway { target } => {
            vec![own(format!("The VM {name} was live-migrated to {target}.")).with("Target", target.as_str())]
        }
        Deed::Look { channel } => {
            vec![
                own(format!("Somebody has looked into the VM {name} by its {channel}."))
                    .with("Channel", channel.as_str()),
            ]
        }
        // A guest may do so many times in a second.
        Deed::Tally => Vec::new(),
        _ => vec![own(format!("The VM {name} {now}."))],
    }
}

/// The events of what was not done.
pub(in crate::agent) fn refused(deed: &Deed, name: &VmName, error: &VmError) -> Vec<Event> {
    let verb = deed.verb();
    let unwrap = |code: Option<&str>, reason: &str, help: &str| {
        let message = format!("The key protector of the VM {name} was not unwrapped ({verb}): {reason}. {help}");
        let event = CLIENT.event(UNWRAP_FAILED, Level::Error, message.trim_end());
        event.with("ErrorCode", code).with("Reason", reason)
    };
    match error {
        VmError::Kps { code, message } => {
            let reason = format!("key protection refuses, {code}: {message}");
            vec![unwrap(
                Some(code),
                reason.trim_end_matches('.'),
                remedy(code).unwrap_or_default(),
            )]
        }
        VmError::Attestation(reason) => {
            let code = reason.split([':', ' ', ',']).next().unwrap_or_default();
            let help = remedy(code).unwrap_or("Let the host attest, and look at what the events before this one say.");
            let code = remedy(code).is_some().then_some(code);
            vec![unwrap(
                code,
                &format!("this host has no health certificate, {reason}"),
                help,
            )]
        }
        VmError::NoContact(reason) => vec![unwrap(None, reason, NO_CONTACT)],
        VmError::NotOffline { contact, store } => {
            let kept = format!("The VM {name} is not started without contact: {store}.");
            let kept = VMSP.event(CACHED_REJECTED, Level::Warning, kept);
            vec![kept.with("Reason", store.as_str()), unwrap(None, contact, NO_CONTACT)]
        }
        VmError::Protector(reason) => {
            let help = "Put back the key protector with which the VM last started (Set-VMKeyProtector \
                        -RestoreLastKnownGoodKeyProtector), or let its owner make a new one.";
            vec![unwrap(None, reason, help)]
        }
        VmError::Store(reason) => {
            let message = format!("The VBS store refuses to {verb} the VM {name}: {reason}.");
            vec![
                OWN.event(STORE_REFUSED, Level::Error, message)
                    .with("Reason", reason.as_str()),
            ]
        }
        other => {
            let reason = other.to_string();
            let message = format!("The VM {name}: {verb} was not done: {reason}.");
            let event = OWN.event(NOT_DONE, Level::Warning, message).with("Reason", reason);
            vec![match other {
                VmError::TargetRefused { target, .. } => event.with("Target", target.as_str()),
                _ => event,
            }]
        }
    }
}

/// The product's provider of what concerns keys of VMs.
const VMSP: Provider = Provider("Microsoft-Windows-Hyper-V-VMSP");

/// Of [`CLIENT`].
const UNWRAP_FAILED: u32 = 2014;
/// Of [`VMSP`].
const CACHED_ACCEPTED: u32 = 4;
/// Of [`VMSP`].
const CACHED_REJECTED: u32 = 5;
const STORE_REFUSED: u32 = 50_150;
const NOT_DONE: u32 = 50_151;

const NO_CONTACT: &str = "Check name resolution, the route to the HGS, and its services.";
