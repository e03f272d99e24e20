//! The machines of the shell's fabric, and how cmdlets reach what runs on them.

use std::{
    any::Any,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use hgs_protocol::env::Clock;
use hgs_shell::{
    value::Date,
    world::{Machine, Role, World},
};
use tokio::runtime::Runtime;

/// A fabric of machines, with nothing running on them at first.
pub struct Lab {
    folder: PathBuf,
    machines: Vec<Machine>,
    clock: Clock,
    runtime: Runtime,
}

impl Lab {
    /// Machines whose files are below `folder`.
    ///
    /// # Errors
    /// A folder cannot be made.
    pub fn new(folder: &Path) -> anyhow::Result<Lab> {
        let machines: Vec<Machine> = MACHINES
            .iter()
            .map(|(name, role)| Machine {
                name: (*name).to_owned(),
                role: *role,
                folder: folder.join("machines").join(name),
            })
            .collect();
        for machine in &machines {
            fs::create_dir_all(&machine.folder)?;
        }
        Ok(Lab {
            folder: folder.to_path_buf(),
            machines,
            clock: Clock::system(),
            runtime: Runtime::new()?,
        })
    }

    /// Everything of the fabric.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Waits for what goes on in the fabric. The shell's own thread is outside of the runtime, so it may wait.
    pub fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }
}

impl World for Lab {
    fn machines(&self) -> Vec<Machine> {
        self.machines.clone()
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

/// Who is there. The shell begins on the first.
const MACHINES: [(&str, Role); 5] = [
    ("WS01", Role::Workstation),
    ("HGS01", Role::HgsNode),
    ("HOST01", Role::Host),
    ("HOST02", Role::Host),
    ("VMM01", Role::Vmm),
];
