//! Commit points: the instants of an operation on a VM at which a test ends a process.
//!
//! Each is named where it stands in the code. With `LAB_CRASH_AT=<name>` in its environment a
//! process kills itself there, as a power cut would; without it a commit point does nothing.

/// Every commit point, in the order in which an operation passes them. A test holds this list
/// against the source and ends an operation at each.
pub const COMMIT_POINTS: [(&str, &str); 46] = [
    ("power-on:attested", "agent: the health certificate is at hand"),
    ("power-on:rolled", "agent: the KPS has answered, nothing is written"),
    (
        "power-on:opened",
        "store: the state opened under the ingress key and was resealed",
    ),
    (
        "power-on:written",
        "agent: the new generation is durable, not committed",
    ),
    (
        "power-on:committed",
        "agent: the new generation counts, the guest does not run",
    ),
    (
        "power-on:recorded",
        "store: no older generation starts here any more, the guest does not run",
    ),
    ("power-on:vtpm-started", "store: the vTPM runs, the guest does not"),
    ("power-on:booted", "store: the guest has read its secret"),
    (
        "offline:counted",
        "store: an offline start is counted, the state is not opened (then as a power-on)",
    ),
    (
        "migration:saved",
        "store of the source: the guest is suspended and packed",
    ),
    (
        "migration:received",
        "agent of the target: the package is at hand, no key yet",
    ),
    (
        "migration:written",
        "agent of the target: the new generation is durable, not committed",
    ),
    (
        "migration:committed",
        "agent of the target: the target owns the VM, the guest does not run",
    ),
    (
        "migration:resumed",
        "store of the target: the guest runs again, the source does not know",
    ),
    (
        "rekey:written",
        "owner: the new protector and state are durable, not committed",
    ),
    ("rekey:committed", "owner: the new protector counts"),
    (
        "power-off:stopped",
        "store: the guest has ended, its state is in memory",
    ),
    (
        "power-off:written",
        "agent: the state after the end is durable, not committed",
    ),
    ("power-off:committed", "agent: the VM is off"),
    (
        "tally:counted",
        "store: vTPM and volume have the new count, the state is in memory",
    ),
    ("tally:written", "agent: the vTPM's state is durable, not committed"),
    ("tally:committed", "agent: the vTPM's state counts"),
    ("save:suspended", "store: the guest is suspended and sealed"),
    ("save:written", "agent: state and memory are durable, not committed"),
    ("save:committed", "agent: the VM is saved, its keys are still here"),
    (
        "resume:resumed",
        "store: a saved guest runs again (before that as a power-on)",
    ),
    ("reset:cut", "store: the vTPM is reset, the guest does not run"),
    (
        "checkpoint:taken",
        "store: a checkpoint is sealed, and the guest, if it ran, suspended",
    ),
    (
        "checkpoint:written",
        "agent: a running VM's checkpoint and state are durable, not committed",
    ),
    (
        "checkpoint:committed",
        "agent: a running VM's checkpoint counts, the guest does not go on yet",
    ),
    (
        "change:written",
        "agent: what a change of a stopped VM makes is durable, not committed",
    ),
    (
        "change:committed",
        "agent: the change counts, the store has the VM's keys",
    ),
    (
        "files:written",
        "agent: another protector, or a state without memory, is durable, not committed",
    ),
    ("files:committed", "agent: it counts"),
    (
        "export:copied",
        "agent: the copy is durable under a name that nothing reads",
    ),
    ("export:committed", "agent: the exported VM is there"),
    (
        "import:copied",
        "agent: the copy is durable under a name that nothing reads",
    ),
    ("import:committed", "agent: the imported VM is on the volume"),
    (
        "provision:rolled",
        "agent: the KPS has answered for the shielding data, nothing is written",
    ),
    (
        "provision:sealed",
        "store: disk and state of the new VM are sealed, the disk is durable",
    ),
    (
        "provision:written",
        "agent: the new VM is durable under a name that nothing reads",
    ),
    ("provision:committed", "agent: the new VM is on the volume"),
    (
        "create:rolled",
        "agent: the KPS has answered for a new VM's protector, nothing is written",
    ),
    (
        "create:sealed",
        "store: disk and state of the new VM are sealed (then as a provisioned one)",
    ),
    (
        "rebuild:written",
        "owner: the new state and a disk sealed to its vTPM are durable, not committed",
    ),
    ("rebuild:committed", "owner: the VM has its new vTPM"),
];

/// Ends this process at once when the environment names this point.
pub fn commit_point(name: &'static str) {
    if std::env::var_os(VARIABLE).is_some_and(|wanted| wanted == name) {
        eprintln!("{VARIABLE}: ending this process at {name}");
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // The signal is not delivered synchronously on every kernel; nothing may happen meanwhile.
        std::process::abort();
    }
}

/// The environment variable that names the point to end at.
pub const VARIABLE: &str = "LAB_CRASH_AT";

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeSet, fs, path::Path};

    #[test]
    fn the_list_names_exactly_the_points_in_the_code() {
        let mut found = BTreeSet::new();
        collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
        let listed: BTreeSet<String> = COMMIT_POINTS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(found, listed);
    }

    fn collect(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("commit_point.rs") {
                let text = fs::read_to_string(&path).unwrap();
                let calls = text.split("commit_point(\"").skip(1);
                found.extend(calls.filter_map(|rest| rest.split('"').next()).map(str::to_owned));
            }
        }
    }
}
