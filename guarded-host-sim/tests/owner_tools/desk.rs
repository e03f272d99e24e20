//! An owner's desk: the program, its folder of guardians, and the tools of others that judge it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

/// One owner's desk: a folder, its guardians, a password file.
pub(crate) struct Desk {
    pub(crate) folder: tempfile::TempDir,
}

/// What a run of the program came to.
pub(crate) struct Outcome {
    pub(crate) good: bool,
    pub(crate) out: String,
    pub(crate) error: String,
}

impl Desk {
    pub(crate) fn new() -> Desk {
        let desk = Desk {
            folder: tempfile::tempdir().unwrap(),
        };
        fs::write(desk.path("password"), "correct horse\n").unwrap();
        desk
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn command(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_guarded-host-sim"));
        command.args(words.split(' ')).current_dir(self.folder.path());
        for name in [
            "HGS_GUARDIANS",
            "HGS_GUARDIAN_PASSWORD",
            "HGS_GUARDIAN_PASSWORD_FILE",
            "RUST_BACKTRACE",
        ] {
            command.env_remove(name);
        }
        command
    }

    pub(crate) fn run(&self, words: &str) -> Outcome {
        let mut command = self.command(words);
        outcome(command.env("HGS_GUARDIAN_PASSWORD_FILE", "password"))
    }

    pub(crate) fn good(&self, words: &str) -> String {
        let outcome = self.run(words);
        assert!(outcome.good, "{words}: {}{}", outcome.out, outcome.error);
        outcome.out
    }

    pub(crate) fn json(&self, words: &str) -> Value {
        serde_json::from_str(&self.good(words)).unwrap()
    }

    /// The refusal, which must say all of `reasons`.
    pub(crate) fn refused(&self, words: &str, reasons: &[&str]) -> String {
        let outcome = self.run(words);
        assert!(!outcome.good, "{words}: {}", outcome.out);
        assert!(!outcome.error.contains("panicked"), "{}", outcome.error);
        for reason in reasons {
            assert!(outcome.error.contains(reason), "{words}: {reason}? {}", outcome.error);
        }
        outcome.error
    }
}

pub(crate) fn outcome(command: &mut Command) -> Outcome {
    let done = command.stdin(Stdio::null()).output().unwrap();
    Outcome {
        good: done.status.success(),
        out: String::from_utf8(done.stdout).unwrap(),
        error: String::from_utf8(done.stderr).unwrap(),
    }
}

/// Whether `program` is there; says loudly when not.
pub(crate) fn is_installed(program: &str) -> bool {
    let there = Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok();
    if !there {
        eprintln!("skipped: {program} is not installed");
    }
    there
}

pub(crate) fn assert_valid(schema: &str, document: &Path) {
    if !is_installed("xmllint") {
        return;
    }
    let schemas = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hgs-protocol/schemas");
    let mut command = Command::new("xmllint");
    let done = outcome(
        command
            .args(["--noout", "--nonet", "--schema"])
            .args([&schemas.join(schema), document]),
    );
    assert!(done.good, "{}", done.error);
}

pub(crate) fn openssl(folder: &Path, words: &str) {
    let done = outcome(Command::new("openssl").args(words.split(' ')).current_dir(folder));
    assert!(done.good, "openssl {words}: {}", done.error);
}
