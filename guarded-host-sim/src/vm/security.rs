//! What a VM's kind and its switches let a fabric administrator do to it.
//!
//! The two bytes of a [`Security`] stand in the authenticated header of every sealed form of a VM, so
//! whoever edits them has a VM that does not open. A fabric administrator may shield a VM and may turn
//! the switches of one that is not shielded; making a shielded VM weaker takes its owner's keys
//! ([`super::rekey`]).

use std::fmt;

use serde::{Deserialize, Serialize};

/// The kind of a VM with a key protector.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
pub enum Kind {
    /// Encrypted at rest and on the way; the fabric's administrators are trusted.
    EncryptionSupported,
    /// No administrator of the fabric is trusted.
    Shielded,
}

/// What can be on or off of a VM that is not shielded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Switch {
    /// Secure Boot of the guest's firmware.
    SecureBoot,
    /// The virtual TPM.
    Vtpm,
    /// Encryption of the saved memory, of checkpoints' memory and of migration traffic.
    EncryptStateAndMigration,
    /// Data exchange between host and guest (key-value pairs).
    DataExchange,
    /// PowerShell Direct.
    PowershellDirect,
    /// COM ports.
    Serial,
}

/// A way from the host into the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Channel {
    /// What the guest shows on its screen, and its keyboard.
    Console,
    /// A COM port.
    Serial,
    /// A debugger on the VM's worker process, which sees the guest's memory.
    Debugger,
    /// A session in the guest by PowerShell Direct.
    PowershellDirect,
    /// The guest's key-value pairs.
    DataExchange,
}

/// What a fabric administrator wants otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Change {
    /// Another kind.
    Kind {
        /// Which.
        kind: Kind,
    },
    /// A switch on or off.
    Switch {
        /// Which.
        switch: Switch,
        /// On or off.
        on: bool,
    },
}

/// The kind of a VM and how its switches stand. Those of a shielded VM stand as its kind says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Security {
    kind: Kind,
    on: u8,
}

/// Why something is not done to a VM of this kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SecurityError {
    /// Enforced.
    #[error("the VM is shielded, which enforces {0}: it cannot be turned off")]
    Enforced(Switch),
    /// Blocked.
    #[error("the VM is shielded, which blocks {0}: it cannot be turned on")]
    Blocked(Switch),
    /// Only upwards.
    #[error(
        "the VM is shielded, and no administrator of the fabric makes it anything else: only its owner does, by a \
         new key protector (vm rekey --kind)"
    )]
    StaysShielded,
    /// A channel that the kind does not have.
    #[error("the VM is shielded: {0}")]
    Shielded(&'static str),
    /// A channel that is switched off.
    #[error("{0} of the VM is turned off")]
    Off(Switch),
}

impl Security {
    /// Bytes of the encoding.
    pub const LENGTH: usize = 2;

    /// As a VM of `kind` begins: a shielded one as enforced, the other with everything on.
    pub fn of(kind: Kind) -> Security {
        let on = |switch: &&Switch| kind == Kind::EncryptionSupported || SHIELDED_ON.contains(switch);
        Security {
            kind,
            on: Switch::ALL
                .iter()
                .filter(on)
                .fold(0, |bits, switch| bits | switch.bit()),
        }
    }

    /// The kind.
    pub fn kind(self) -> Kind {
        self.kind
    }

    /// How a switch stands.
    pub fn is_on(self, switch: Switch) -> bool {
        self.on & switch.bit() != 0
    }

    /// Every switch and how it stands.
    pub fn switches(self) -> impl Iterator<Item = (Switch, bool)> {
        Switch::ALL.into_iter().map(move |switch| (switch, self.is_on(switch)))
    }

    /// As a fabric administrator changes it.
    pub fn change(self, change: Change) -> Result<Security, SecurityError> {
        match (self.kind, change) {
            (
                Kind::Shielded,
                Change::Kind {
                    kind: Kind::EncryptionSupported,
                },
            ) => Err(SecurityError::StaysShielded),
            (_, Change::Kind { kind }) if kind == self.kind => Ok(self),
            (_, Change::Kind { kind }) => Ok(Security::of(kind)),
            (Kind::Shielded, Change::Switch { switch, on }) => match (self.is_on(switch), on) {
                (true, false) => Err(SecurityError::Enforced(switch)),
                (false, true) => Err(SecurityError::Blocked(switch)),
                _ => Ok(self),
            },
            (Kind::EncryptionSupported, Change::Switch { switch, on }) => Ok(Security {
                kind: self.kind,
                on: if on {
                    self.on | switch.bit()
                } else {
                    self.on & !switch.bit()
                },
            }),
        }
    }

    /// Whether the host's administrator gets into the guest by `channel`. Hosts have had a console for
    /// shielded VMs since Windows version 1803; `shielded_console` says whether this is one of them.
    pub fn allows(self, channel: Channel, shielded_console: bool) -> Result<(), SecurityError> {
        let shielded = self.kind == Kind::Shielded;
        let switch = match channel {
            Channel::Console if shielded && !shielded_console => {
                return Err(SecurityError::Shielded(
                    "a host of before version 1803 has no console for it",
                ));
            }
            Channel::Debugger if shielded => {
                return Err(SecurityError::Shielded(
                    "its worker process is a protected process, to which no debugger attaches",
                ));
            }
            Channel::Console | Channel::Debugger => return Ok(()),
            Channel::Serial if shielded => {
                return Err(SecurityError::Shielded(
                    "its COM ports are disabled and cannot be enabled",
                ));
            }
            Channel::PowershellDirect if shielded => {
                return Err(SecurityError::Shielded("PowerShell Direct is blocked"));
            }
            Channel::DataExchange if shielded => return Err(SecurityError::Shielded("data exchange is blocked")),
            Channel::Serial => Switch::Serial,
            Channel::PowershellDirect => Switch::PowershellDirect,
            Channel::DataExchange => Switch::DataExchange,
        };
        match self.is_on(switch) {
            true => Ok(()),
            false => Err(SecurityError::Off(switch)),
        }
    }

    /// Kind (1: EncryptionSupported, 2: Shielded), then a bit for each switch.
    pub(super) fn encode(self) -> [u8; Security::LENGTH] {
        let kind = match self.kind {
            Kind::EncryptionSupported => 1,
            Kind::Shielded => 2,
        };
        [kind, self.on]
    }

    /// Nothing for a kind or a switch that does not exist, and for switches that the kind does not allow.
    pub(super) fn parse([kind, on]: [u8; Security::LENGTH]) -> Option<Security> {
        let kind = match kind {
            1 => Kind::EncryptionSupported,
            2 => Kind::Shielded,
            _ => return None,
        };
        let all = Security::of(kind);
        let fits = match kind {
            Kind::EncryptionSupported => on & !all.on == 0,
            Kind::Shielded => on == all.on,
        };
        fits.then_some(Security { kind, on })
    }
}

impl Switch {
    /// All, in the order of their bits.
    pub const ALL: [Switch; 6] = [
        Switch::SecureBoot,
        Switch::Vtpm,
        Switch::EncryptStateAndMigration,
        Switch::DataExchange,
        Switch::PowershellDirect,
        Switch::Serial,
    ];

    const fn bit(self) -> u8 {
        match self {
            Switch::SecureBoot => 1,
            Switch::Vtpm => 2,
            Switch::EncryptStateAndMigration => 4,
            Switch::DataExchange => 8,
            Switch::PowershellDirect => 16,
            Switch::Serial => 32,
        }
    }
}

impl fmt::Display for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Switch::SecureBoot => "Secure Boot",
            Switch::Vtpm => "the virtual TPM",
            Switch::EncryptStateAndMigration => "encryption of state and migration traffic",
            Switch::DataExchange => "data exchange",
            Switch::PowershellDirect => "PowerShell Direct",
            Switch::Serial => "serial (COM) access",
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What is on, and enforced, with a shielded VM. The others are off, and blocked.
const SHIELDED_ON: [Switch; 3] = [Switch::SecureBoot, Switch::Vtpm, Switch::EncryptStateAndMigration];

#[cfg(test)]
mod tests {
    use super::*;

    const CHANNELS: [Channel; 5] = [
        Channel::Console,
        Channel::Serial,
        Channel::Debugger,
        Channel::PowershellDirect,
        Channel::DataExchange,
    ];

    #[test]
    fn each_kind_has_its_channels() {
        let open = |kind, since_1803| CHANNELS.map(|channel| Security::of(kind).allows(channel, since_1803).is_ok());
        assert_eq!(open(Kind::EncryptionSupported, true), [true; 5]);
        assert_eq!(open(Kind::EncryptionSupported, false), [true; 5]);
        assert_eq!(open(Kind::Shielded, true), [true, false, false, false, false]);
        assert_eq!(open(Kind::Shielded, false), [false; 5]);
    }

    #[test]
    fn a_shielded_vm_is_changed_by_nobody_of_the_fabric() {
        let shielded = Security::of(Kind::Shielded);
        for switch in Switch::ALL {
            let wanted = !shielded.is_on(switch);
            let refused = shielded.change(Change::Switch { switch, on: wanted }).unwrap_err();
            assert!(refused.to_string().contains("is shielded"), "{refused}");
            let as_is = Change::Switch { switch, on: !wanted };
            assert_eq!(shielded.change(as_is), Ok(shielded));
        }
        let weaker = Change::Kind {
            kind: Kind::EncryptionSupported,
        };
        assert_eq!(shielded.change(weaker), Err(SecurityError::StaysShielded));
    }

    #[test]
    fn the_other_kind_is_switched_and_shielded_at_will() {
        let mut security = Security::of(Kind::EncryptionSupported);
        for switch in Switch::ALL {
            assert!(security.is_on(switch));
            security = security.change(Change::Switch { switch, on: false }).unwrap();
            assert!(!security.is_on(switch));
        }
        for (channel, switch) in [
            (Channel::Serial, Switch::Serial),
            (Channel::PowershellDirect, Switch::PowershellDirect),
            (Channel::DataExchange, Switch::DataExchange),
        ] {
            assert_eq!(security.allows(channel, true), Err(SecurityError::Off(switch)));
        }
        assert!(security.allows(Channel::Console, true).is_ok());
        // Shielding enforces whatever was off before.
        let shield = Change::Kind { kind: Kind::Shielded };
        assert_eq!(security.change(shield), Ok(Security::of(Kind::Shielded)));
    }

    #[test]
    fn only_what_a_vm_can_be_is_read() {
        let readable: Vec<[u8; 2]> = (0..=u16::MAX)
            .map(u16::to_be_bytes)
            .filter(|bytes| Security::parse(*bytes).is_some())
            .collect();
        // 64 ways for six switches, and one shielded.
        assert_eq!(readable.len(), 65);
        for bytes in readable {
            assert_eq!(Security::parse(bytes).unwrap().encode(), bytes);
        }
    }
}
