//! The demonstration as a user runs it: its outcome, its JSON, and what it leaves behind.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/private_keys.rs"]
mod private_keys;
mod support;

use std::{
    collections::BTreeSet,
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use guarded_host_sim::fabric::soft_token::{SoftTokens, TOKEN_STORE};
use hgs_protocol::{
    crypto::RsaPrivateKey,
    protector::{Certificate, KeyPair, suite::PublicKey},
};
use hgs_service::sealed::Kek;
use kps::{
    guardian::Vault,
    store::{KeyPlace, StoredCertificate},
};
use private_keys::private_keys_in;
use serde_json::Value;
use support::{Folder, kill, process, processes_of, wait_until};

fn start(folder: &Folder, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_guarded-host-sim"))
        .arg("demo")
        .arg("--dir")
        .arg(folder.0.join("demo"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn end(mut child: Child) -> (Option<i32>, String) {
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    (child.wait().unwrap().code(), text)
}

fn nothing_runs(folder: &Folder) {
    wait_until(10, "nothing keeps running", || processes_of(&folder.0).is_empty());
}

/// `--json` prints one document and nothing else, and every step passes.
fn every_step_passes(folder: &Folder, arguments: &[&str]) -> usize {
    let (code, text) = end(start(folder, arguments));
    let document: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let steps = document["steps"].as_array().unwrap();
    assert!(steps.iter().all(|s| s["passed"] == true), "{text}");
    assert!(steps.len() >= 12);
    assert_eq!(document["passed"], steps.len());
    assert_eq!(document["failed"], 0);
    assert_eq!(code, Some(0));
    let refused = |word: &str| {
        steps
            .iter()
            .any(|s| s["outcome"] == "refused" && s["detail"].as_str().unwrap().contains(word))
    };
    for word in [
        "SecureBootEnabled",
        "UnauthorizedErrorReply",
        "HealthCertificateException",
        "InvalidProtectorException",
        "KeyProtectionAccessDeniedException",
    ] {
        assert!(refused(word), "no step was refused with {word}: {text}");
    }
    nothing_runs(folder);
    steps.len()
}

#[test]
fn every_step_of_the_demonstration_passes_over_https() {
    every_step_passes(&Folder::new(), &["--json", "--https"]);
}

/// Without a token the keys of the KPS are sealed, so they are in no file in the clear either.
#[tokio::test(flavor = "multi_thread")]
async fn every_step_of_the_demonstration_passes_and_no_file_shows_a_key_of_the_kps() {
    let folder = Folder::new();
    every_step_passes(&folder, &["--json"]);
    let demo = folder.0.join("demo");
    no_file_shows_a_key_of(&demo, &guardian_keys(&demo).await);

    // The search is one that finds: the very key of the KPS, unsealed here, in every form.
    let rows = stored(&demo.join("hgs/kps")).await;
    let vault = Vault {
        kek: Kek::from_file(&demo.join("hgs/kps/key-encryption-key")).unwrap(),
        token: None,
    };
    let pair: KeyPair = vault.open(&rows[0]).unwrap();
    let pkcs8 = pair.expose_pkcs8().unwrap();
    let modulus = RsaPrivateKey::from_pkcs8(pkcs8).unwrap().public().modulus().to_vec();
    let base64 = STANDARD.encode(pkcs8);
    let lines: Vec<&str> = base64
        .as_bytes()
        .chunks(64)
        .map(|l| str::from_utf8(l).unwrap())
        .collect();
    // RSA's PKCS#8 is PKCS#1 behind 26 bytes of header.
    for (form, written) in [
        ("PKCS#8", pkcs8.to_vec()),
        ("PKCS#1", pkcs8[26..].to_vec()),
        (
            "PEM",
            format!(
                "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
                lines.join("\n")
            )
            .into_bytes(),
        ),
        ("JSON", format!("{{\"key\":\"{}\"}}", lines.join("\\n")).into_bytes()),
        ("base64 in a word", format!("key={base64}").into_bytes()),
        ("hex", format!("key:{}", hex::encode(pkcs8)).into_bytes()),
    ] {
        assert!(private_keys_in(&written).contains(&modulus), "the search misses {form}");
    }
    std::fs::write(demo.join("hosts/planted"), base64).unwrap();
    let found = private_keys_below(&demo);
    let with_it: Vec<_> = found.iter().filter(|(_, keys)| keys.contains(&modulus)).collect();
    assert!(
        matches!(with_it.as_slice(), [(file, _)] if file.ends_with("planted")),
        "{with_it:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_token_every_step_passes_and_the_keys_of_the_kps_are_in_its_store_alone() {
    if let Err(missing) = SoftTokens::find(None) {
        eprintln!("SKIPPED: the demonstration with a PKCS#11 token: {missing:#}");
        return;
    }
    let folder = Folder::new();
    let steps = every_step_passes(&folder, &["--json", "--pkcs11"]);
    assert!(steps >= 13, "the step about the token is among them");
    let demo = folder.0.join("demo");
    for hgs in ["hgs", "hgs-elsewhere"] {
        let kps = demo.join(hgs).join("kps");
        for row in stored(&kps).await {
            assert!(
                matches!(row.key, KeyPlace::Token(_)),
                "{hgs}: a key is sealed in the database"
            );
        }
        // Two pairs, each a private and a public object, and the token's own file.
        let token = std::fs::read_dir(kps.join("token").join(TOKEN_STORE))
            .unwrap()
            .next()
            .unwrap()
            .unwrap();
        let objects = std::fs::read_dir(token.path()).unwrap().flatten();
        let objects = objects
            .filter(|file| file.path().extension().is_some_and(|e| e == "object"))
            .count();
        assert!(objects >= 5, "{hgs}: {objects} objects in the token");
        for secret in ["pin", "so-pin"] {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = std::fs::metadata(kps.join("token").join(secret))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600, "{hgs}: {secret}");
        }
    }
    no_file_shows_a_key_of(&demo, &guardian_keys(&demo).await);
}

/// No file shows a private key of these moduli; that private keys are found at all, those of the TPM maker
/// show, which lie in the clear.
fn no_file_shows_a_key_of(demo: &Path, moduli: &BTreeSet<Vec<u8>>) {
    assert_eq!(moduli.len(), 4, "two pairs of two fabrics");
    let found = private_keys_below(demo);
    for (file, keys) in &found {
        assert!(
            keys.is_disjoint(moduli),
            "{} shows a private key of the KPS",
            file.display()
        );
    }
    let maker = found
        .iter()
        .any(|(file, keys)| file.starts_with(demo.join("tpm-maker")) && !keys.is_empty());
    assert!(maker, "the search found not even the TPM maker's key");
}

/// The moduli of every certificate of both fabrics' key protection services.
async fn guardian_keys(demo: &Path) -> BTreeSet<Vec<u8>> {
    let mut moduli = BTreeSet::new();
    for hgs in ["hgs", "hgs-elsewhere"] {
        for row in stored(&demo.join(hgs).join("kps")).await {
            let PublicKey::Rsa(key) = Certificate::parse(&row.certificate).unwrap().public_key().clone() else {
                panic!("an RSA key was expected")
            };
            moduli.insert(key.modulus().to_vec());
        }
    }
    moduli
}

/// What a service that has ended left in its database.
async fn stored(kps: &Path) -> Vec<StoredCertificate> {
    let url = format!("sqlite://{}", kps.join("data/kps.db").display());
    let database = hgs_service::database::Database::open(&url, &kps::SQLITE, &kps::POSTGRES)
        .await
        .unwrap();
    kps::store::Store::new(database).certificates().await.unwrap()
}

#[test]
fn a_tpm_killed_midway_ends_the_demonstration_with_a_clear_message() {
    let folder = Folder::new();
    let demo = start(&folder, &[]);
    let hosts = folder.0.join("demo/hosts/host02");
    // The agent is up, so the host has booted and its TPM is in use.
    wait_until(60, "host02 is up", || {
        processes_of(&hosts).iter().any(|(_, line)| line.contains(" agent "))
    });
    kill(process(&hosts, &["swtpm socket"]));
    let (code, text) = end(demo);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("the TPM of host02 does not answer"), "{text}");
    assert!(
        text.lines().last().unwrap().contains("failed") || text.contains(" failed"),
        "{text}"
    );
    nothing_runs(&folder);
}

#[test]
fn an_interrupted_demonstration_removes_its_temporary_directory() {
    let temporary = Folder::new();
    let mut demo = Command::new(env!("CARGO_BIN_EXE_guarded-host-sim"))
        .args(["demo", "--json"])
        .env("TMPDIR", &temporary.0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let used = || std::fs::read_dir(&temporary.0).unwrap().next().is_some();
    wait_until(60, "services are up", || {
        processes_of(&temporary.0)
            .iter()
            .any(|(_, line)| line.contains(" agent "))
    });
    assert!(used(), "it does not work in its temporary directory");
    let id = rustix::process::Pid::from_raw(i32::try_from(demo.id()).unwrap()).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
    assert_eq!(demo.wait().unwrap().code(), Some(130));
    nothing_runs(&temporary);
    assert!(!used(), "something is left of it");
}

#[test]
fn a_killed_demonstration_leaves_no_process_behind() {
    let folder = Folder::new();
    let mut demo = start(&folder, &["--json"]);
    let hosts = folder.0.join("demo/hosts");
    wait_until(60, "hosts are up", || {
        processes_of(&hosts)
            .iter()
            .filter(|(_, line)| line.contains(" agent "))
            .count()
            >= 2
    });
    demo.kill().unwrap();
    demo.wait().unwrap();
    nothing_runs(&folder);
}

/// Every file below `folder` with the moduli (without leading zeros) of the private keys in it.
fn private_keys_below(folder: &Path) -> Vec<(PathBuf, BTreeSet<Vec<u8>>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => found.extend(private_keys_below(&entry.path())),
            kind if kind.is_file() => {
                let keys = private_keys_in(&fs::read(entry.path()).unwrap());
                found.push((entry.path(), keys));
            }
            _ => {}
        }
    }
    found
}
