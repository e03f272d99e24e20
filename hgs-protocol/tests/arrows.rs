//! Holds the picture of ARCHITECTURE.md against the manifests: arrows point only downwards.

use std::{collections::BTreeSet, fs, path::Path};

/// Crate, its manifest, and the crates of this workspace that it may use.
const MAY_USE: [(&str, &str, &[&str]); 6] = [
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
        &["hgs-protocol", "hgs-service", "hgs-shell"],
    ),
    ("hgs-shell", "guarded-host-sim/shell/Cargo.toml", &["hgs-protocol"]),
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
