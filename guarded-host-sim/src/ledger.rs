//! The ledger of a VBS store: when which VM began and ceased to run on this host, for whoever wants to
//! know that no VM ran on two hosts at once ([`check`]).
//!
//! One JSON object a line, appended and flushed before what it says takes effect: a start stands there
//! before the guest runs; an end, once nothing of the guest runs any more but while its disk is still
//! locked. It holds no secret. Instants are of `CLOCK_BOOTTIME`, which all processes of a machine share
//! and nobody sets; entries of different boots of the machine cannot be compared, and say so.

pub mod check;
pub mod command;

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::vm::{VmId, package::MigrationId, state::Age};

/// Nanoseconds since the machine (not a simulated host) was booted, its sleep included.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Instant(pub u64);

impl Instant {
    /// This instant.
    pub fn now() -> Instant {
        let time = clock_gettime(ClockId::Boottime);
        let part = |n: i64| u64::try_from(n).unwrap_or(0);
        Instant(part(time.tv_sec).saturating_mul(1_000_000_000) + part(time.tv_nsec))
    }
}

/// One line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// When.
    pub at: Instant,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A store opened: its predecessor is gone, and whatever ran under it.
    Opened {
        /// Names the boot of the machine whose clock counts, as the kernel does.
        boot: String,
    },
    /// A VM begins to run, by a boot or from a memory image. Its disk is locked.
    Started(Of),
    /// A VM has stopped running: it was shut down, cut off, reset, saved or held for a checkpoint, or did not come up.
    Stopped(Of),
    /// A VM has stopped running and is packed for another host. It may go on here all the same.
    Sent {
        /// Which VM.
        #[serde(flatten)]
        of: Of,
        /// The attempt.
        migration: MigrationId,
    },
    /// The package of a VM from another host has opened.
    Received {
        /// Which VM; the generation is the one in the package.
        #[serde(flatten)]
        of: Of,
        /// The attempt.
        migration: MigrationId,
    },
}

/// Which VM, and how new its state is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Of {
    /// The VM.
    pub vm: VmId,
    /// Rolls of its transport key.
    pub generation: u64,
    /// Offline starts since.
    pub start: u32,
}

impl Of {
    /// The VM at an age.
    pub fn new(vm: VmId, age: Age) -> Of {
        Of {
            vm,
            generation: age.generation,
            start: age.start,
        }
    }
}

/// Why a ledger cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Another store has it.
    #[error("{} is in use: a VBS store of this host runs already", .0.display())]
    InUse(PathBuf),
    /// The file system refused.
    #[error("the ledger {}: {cause}; nothing starts or stops unrecorded", path.display())]
    Io {
        /// The ledger.
        path: PathBuf,
        /// The system's reason.
        cause: io::Error,
    },
    /// A line that no store wrote.
    #[error("line {line} of {} is no entry of a VBS store's ledger", path.display())]
    Damaged {
        /// The ledger.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
    },
}

/// The ledger of a store that runs. No other store opens it as long as this lives.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    file: File,
}

impl Ledger {
    /// Opens the ledger at `path`, or begins it, and notes [`Event::Opened`].
    pub fn open(path: &Path) -> Result<Ledger, LedgerError> {
        let io = io_error(path);
        let mut options = OpenOptions::new();
        options.create(true).read(true).append(true).mode(0o600);
        let mut file = options.open(path).map_err(&io)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => LedgerError::InUse(path.to_path_buf()),
            TryLockError::Error(error) => io(error),
        })?;
        cut_torn_line(path, &mut file).map_err(&io)?;
        let boot = fs::read_to_string(BOOT_ID).map_err(&io)?;
        let mut ledger = Ledger {
            path: path.to_path_buf(),
            file,
        };
        ledger.note(Event::Opened {
            boot: boot.trim().to_owned(),
        })?;
        Ok(ledger)
    }

    /// Appends an entry of this instant; it is durable when this returns.
    pub fn note(&mut self, event: Event) -> Result<(), LedgerError> {
        let entry = Entry {
            at: Instant::now(),
            event,
        };
        let mut write = || {
            // One call, so that a process that is killed leaves the whole line or none.
            let line = serde_json::to_string(&entry)? + "\n";
            self.file.write_all(line.as_bytes())?;
            self.file.sync_data()
        };
        write().map_err(io_error(&self.path))
    }
}

/// Reads a ledger, whether its store runs or not. A line that was cut short by a power cut is left out.
pub fn read(path: &Path) -> Result<Vec<Entry>, LedgerError> {
    let text = fs::read(path).map_err(io_error(path))?;
    let end = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let lines = text.get(..end).unwrap_or_default();
    lines
        .split_inclusive(|byte| *byte == b'\n')
        .enumerate()
        .map(|(number, line)| {
            serde_json::from_slice(line).map_err(|_| LedgerError::Damaged {
                path: path.to_path_buf(),
                line: number + 1,
            })
        })
        .collect()
}

/// A power cut may leave the beginning of a line; nothing that it would have said took effect.
fn cut_torn_line(path: &Path, file: &mut File) -> io::Result<()> {
    let text = fs::read(path)?;
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    if whole < text.len() {
        file.set_len(u64::try_from(whole).unwrap_or(u64::MAX))?;
        file.seek(SeekFrom::End(0))?;
    }
    Ok(())
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> LedgerError {
    let path = path.to_path_buf();
    move |cause| LedgerError::Io {
        path: path.clone(),
        cause,
    }
}

/// Name of a store's ledger in its directory.
pub const FILE: &str = "ledger.jsonl";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

#[cfg(test)]
mod tests {
    use super::*;
    use hgs_protocol::env::SeededRandom;

    fn of(seed: u64) -> Of {
        let age = Age {
            generation: 7,
            start: 1,
        };
        Of::new(VmId::random(&mut SeededRandom::new(seed)), age)
    }

    #[test]
    fn entries_are_appended_in_order_and_a_torn_line_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let mut ledger = Ledger::open(&path).unwrap();
        assert!(matches!(Ledger::open(&path), Err(LedgerError::InUse(_))));
        let migration = MigrationId::random(&mut SeededRandom::new(3));
        let events = [
            Event::Started(of(1)),
            Event::Stopped(of(1)),
            Event::Sent { of: of(1), migration },
            Event::Received { of: of(2), migration },
        ];
        for event in &events {
            ledger.note(event.clone()).unwrap();
        }
        drop(ledger);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, [whole.as_slice(), b"{\"at\":12,\"event\":\"star"].concat()).unwrap();
        assert_eq!(read(&path).unwrap().len(), 5);
        drop(Ledger::open(&path).unwrap());
        let entries = read(&path).unwrap();
        let said: Vec<&Event> = entries.iter().map(|entry| &entry.event).collect();
        assert!(matches!(said[0], Event::Opened { .. }) && matches!(said[5], Event::Opened { .. }));
        assert_eq!(said[1..5], events.iter().collect::<Vec<_>>());
        assert!(entries.is_sorted_by_key(|entry| entry.at));
        fs::write(&path, [b"{}\n".as_slice(), &whole].concat()).unwrap();
        assert!(matches!(read(&path), Err(LedgerError::Damaged { line: 1, .. })));
    }
}
