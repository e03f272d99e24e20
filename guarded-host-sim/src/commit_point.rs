//! Commit points: the instants of a power-on, a migration and a re-key at which a test ends a process.
//!
//! Each is named where it stands in the code. With `LAB_CRASH_AT=<name>` in its environment a
//! process kills itself there, as a power cut would; without it a commit point does nothing.

/// Every commit point, in the order in which an operation passes them. A test holds this list
/// against the source and ends an operation at each.
pub const COMMIT_POINTS: [(&str, &str); 16] = [
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
