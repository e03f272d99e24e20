//! Holds the picture of ARCHITECTURE.md against the manifests: arrows point only downwards.

use std::{collections::BTreeSet, fs, path::Path};

/// Crate, its manifest, and the crates of this workspace that it may use.
const MAY_USE: [(&str, &str, &[&str]); 7] = [
    ("hgs-protocol", "hgs-protocol/Cargo.toml", &[]),
    ("hgs-service", "hgs-protocol/service/Cargo.toml", &["hgs-protocol"]),
    (
        "attestation",
        "attestation/Cargo.toml",
        &["hgs-protocol", "hgs-service"],
    ),
    ("kps", "kps/Cargo.toml", &["hgs-protocol", "hgs-service"]),
    (
        "guarded-host-sim",
        "guarded-host-sim/Cargo.toml",
        // The services are started by one file of it; the test below holds that.
        &[
            "hgs-protocol",
            "hgs-service",
            "hgs-shell",
            "hgs-console",
            "attestation",
            "kps",
        ],
    ),
    ("hgs-shell", "guarded-host-sim/shell/Cargo.toml", &["hgs-protocol"]),
    ("hgs-console", "guarded-host-sim/console/Cargo.toml", &["hgs-protocol"]),
];

/// What the sans-io core must do without.
const NOT_IN_THE_CORE: [&str; 5] = ["tokio", "actix-web", "sqlx", "reqwest", "hyper"];

fn dependencies(manifest: &str) -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(manifest);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut inside = false;
    let mut found = BTreeSet::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            // Development dependencies may point anywhere: tests join what the product keeps apart.
            inside = line == "[dependencies]";
            continue;
        }
        let name = line.split(['=', '.', ' ']).next().unwrap_or_default();
        if inside && !name.is_empty() && !name.starts_with('#') {
            found.insert(name.to_owned());
        }
    }
    found
}

#[test]
fn crates_use_only_what_lies_below_them() {
    let ours: Vec<&str> = MAY_USE.iter().map(|(name, ..)| *name).collect();
    for (name, manifest, allowed) in MAY_USE {
        let used = dependencies(manifest);
        assert!(
            !used.is_empty(),
            "{manifest} lists no dependencies: is it read rightly?"
        );
        for other in used.iter().filter(|d| ours.contains(&d.as_str())) {
            assert!(allowed.contains(&other.as_str()), "{name} must not use {other}");
        }
    }
}

#[test]
fn the_core_has_no_runtime_socket_or_database() {
    let used = dependencies("hgs-protocol/Cargo.toml");
    for name in NOT_IN_THE_CORE {
        assert!(!used.contains(name), "hgs-protocol must not use {name}");
    }
}

/// The simulator may start the services inside its own process, and does it in one place; everything else of it
/// speaks HTTP with them, so that what it shows holds for services anywhere.
#[test]
fn the_simulator_reaches_the_services_as_libraries_in_one_place() {
    let mut naming = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../guarded-host-sim/src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if names_a_service(&fs::read_to_string(&path).unwrap()) {
                naming.push(path);
            }
        }
    }
    assert_eq!(naming.len(), 1, "{naming:?}");
    assert!(naming[0].ends_with("fabric/here.rs"), "{naming:?}");
}

fn names_a_service(source: &str) -> bool {
    let is_service = |path: &str| ["attestation", "kps"].iter().any(|name| begins_with(path, name));
    source.split(';').any(|statement| match statement.rsplit_once("use ") {
        // An import names its crate first; what follows in braces is of that crate.
        Some((before, path)) if before.trim_end().is_empty() || before.ends_with(['\n', ' ', '(']) => is_service(path),
        _ => statement.match_indices("::").any(|(at, _)| {
            let before = &statement[..at];
            let path = before.trim_end_matches(|c: char| c.is_alphanumeric() || c == '_');
            !path.ends_with(':') && is_service(&before[path.len()..])
        }),
    })
}

/// Whether `path` begins with exactly this name.
fn begins_with(path: &str, name: &str) -> bool {
    let rest = path.strip_prefix(name);
    rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
}

#[test]
fn a_use_of_a_service_is_seen() {
    assert!(names_a_service("let bound = kps::start(&settings);"));
    assert!(names_a_service("use attestation as judge;"));
    assert!(names_a_service("use std::fs;\nuse kps::{Options, start};\n"));
    assert!(names_a_service("#[test]\nfn x() { kps::start(&settings) }"));
    assert!(!names_a_service(
        "hgs_protocol::wire::kps::ErrorMessage; self.attestation.url"
    ));
    assert!(!names_a_service("use hgs_protocol::wire::{hgsa, kps::ErrorMessage};"));
}
