//! Finds the processes of a host among all of the machine, and sends them signals.

use std::{fs, path::Path};

use rustix::process::{Pid, Signal, kill_process};

/// A process: its id and command line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Process {
    /// The id.
    pub(super) id: u32,
    /// Program and arguments, with spaces between.
    pub(super) line: String,
}

/// The processes whose command line names something below `folder` or that work there. One that has ended and was
/// not waited for yet has no command line any more and is not among them.
pub(super) fn processes_of(folder: &Path) -> Vec<Process> {
    let needle = format!("{}/", folder.display());
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let directory = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        if id != std::process::id() && (format!("{line}/").contains(&needle) || directory.starts_with(folder)) {
            found.push(Process { id, line });
        }
    }
    found
}

/// The first process of `folder` whose command line has all of `words`.
pub(super) fn process_of(folder: &Path, words: &[&str]) -> Option<u32> {
    let mut all = processes_of(folder).into_iter();
    all.find(|process| words.iter().all(|word| process.line.contains(word)))
        .map(|process| process.id)
}

/// The processes that a process has started and that have not ended.
pub(super) fn children_of(id: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
    let children = tasks.map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
    let lines: Vec<String> = children.collect();
    let ids = lines.iter().flat_map(|line| line.split_whitespace());
    ids.filter_map(|id| id.parse().ok()).collect()
}

/// Kills a process; false when there is none of this id.
pub(super) fn kill(id: u32) -> bool {
    signal(id, Signal::KILL)
}

/// A process that does not run until this is dropped.
pub(super) struct Stopped(u32);

impl Stopped {
    /// Stops the process; nothing when there is none of this id.
    pub(super) fn new(id: u32) -> Option<Stopped> {
        signal(id, Signal::STOP).then_some(Stopped(id))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        signal(self.0, Signal::CONT);
    }
}

fn signal(id: u32, signal: Signal) -> bool {
    let id = i32::try_from(id).ok().and_then(Pid::from_raw);
    id.is_some_and(|id| kill_process(id, signal).is_ok())
}
