//! What the shell stands in: machines with their files, and time. What runs on them only cmdlets know.

use std::{any::Any, path::PathBuf, time::Duration};

use crate::{
    error::ErrorRecord,
    value::{Date, Value},
};

/// The simulated machines that a shell can be on.
///
/// The shell itself needs no more than this of a fabric. Cmdlets of the product's modules get at the fabric that they
/// were written for by [`World::as_any`].
pub trait World: Any {
    /// The machines. The first is where a shell begins.
    fn machines(&self) -> Vec<Machine>;

    /// The time on a machine.
    fn now(&self, machine: &str) -> Date;

    /// Lets time pass for `Start-Sleep`.
    fn pause(&self, time: Duration);

    /// A drive besides those of files, `cert` say; by its name in small letters.
    fn drive(&self, _name: &str) -> Option<&dyn Drive> {
        None
    }

    /// Values that a cmdlet's parameter could take on a machine, the names of its VMs say: what Tab offers.
    fn suggestions(&self, _machine: &Machine, _cmdlet: &str, _parameter: &str) -> Vec<String> {
        Vec::new()
    }

    /// Itself, for cmdlets that know what fabric this is.
    fn as_any(&self) -> &dyn Any;
}

/// A drive that is none of files. Paths are what follows its colon: `LocalMachine\My`.
pub trait Drive {
    /// What a path names.
    ///
    /// # Errors
    /// The drive cannot be read.
    fn item(&self, machine: &Machine, path: &str) -> Result<Option<Value>, ErrorRecord>;

    /// What is below a path, at every depth if asked.
    ///
    /// # Errors
    /// There is no such path, or the drive cannot be read.
    fn children(&self, machine: &Machine, path: &str, recurse: bool) -> Result<Vec<Value>, ErrorRecord>;

    /// Takes away what a path names; whether there was anything. `with_key` is `-DeleteKey`.
    ///
    /// # Errors
    /// It cannot be taken away.
    fn remove(&self, machine: &Machine, path: &str, with_key: bool) -> Result<bool, ErrorRecord>;
}

/// A simulated machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Its computer name: `HGS01`.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// The folder with its drives: `C:\temp` is `C/temp` below it.
    pub folder: PathBuf,
}

/// What a machine is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A node of a Host Guardian Service.
    HgsNode,
    /// A Hyper-V host.
    Host,
    /// The workstation of VMs' owner.
    Workstation,
    /// Virtual Machine Manager.
    Vmm,
}

/// A single machine without any fabric: for scripts that need none, and for the language's own tests.
pub struct Alone {
    machine: Machine,
    clock: hgs_protocol::env::Clock,
}

impl Alone {
    /// A machine whose drives are in `folder`.
    pub fn new(name: &str, folder: PathBuf) -> Alone {
        Alone {
            machine: Machine {
                name: name.to_owned(),
                role: Role::Workstation,
                folder,
            },
            clock: hgs_protocol::env::Clock::system(),
        }
    }
}

impl World for Alone {
    fn machines(&self) -> Vec<Machine> {
        vec![self.machine.clone()]
    }

    fn now(&self, _machine: &str) -> Date {
        Date(self.clock.now().0)
    }

    fn pause(&self, time: Duration) {
        std::thread::sleep(time);
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
