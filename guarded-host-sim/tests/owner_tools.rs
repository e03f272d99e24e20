//! The owner's tools as a person uses them: the real program on real files, certificates made by
//! openssl, documents judged by xmllint, protectors opened by a real key protection service.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use guarded_host_sim::{fabric::Fabric, swtpm::short_private_dir};
use hgs_protocol::{
    crypto::RsaPrivateKey,
    env::{Clock, OsRandom, UnixTime},
    health::{AttestationMode, AttestationSigner, CertificateKind, DEFAULT_LIFETIME, HealthCertificateRequest},
    protector::{GuardianKeys, KeyProtector, Metadata, open_release},
    wire::kps::RollTransportKeyRequest,
};
use serde_json::{Value, json};

/// One owner's desk: a folder, its guardians, a password file.
struct Desk {
    folder: tempfile::TempDir,
}

/// What a run of the program came to.
struct Outcome {
    good: bool,
    out: String,
    error: String,
}

impl Desk {
    fn new() -> Desk {
        let desk = Desk {
            folder: tempfile::tempdir().unwrap(),
        };
        fs::write(desk.path("password"), "correct horse\n").unwrap();
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, words: &str) -> Command {
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

    fn run(&self, words: &str) -> Outcome {
        let mut command = self.command(words);
        outcome(command.env("HGS_GUARDIAN_PASSWORD_FILE", "password"))
    }

    fn good(&self, words: &str) -> String {
        let outcome = self.run(words);
        assert!(outcome.good, "{words}: {}{}", outcome.out, outcome.error);
        outcome.out
    }

    fn json(&self, words: &str) -> Value {
        serde_json::from_str(&self.good(words)).unwrap()
    }

    /// The refusal, which must say all of `reasons`.
    fn refused(&self, words: &str, reasons: &[&str]) -> String {
        let outcome = self.run(words);
        assert!(!outcome.good, "{words}: {}", outcome.out);
        assert!(!outcome.error.contains("panicked"), "{}", outcome.error);
        for reason in reasons {
            assert!(outcome.error.contains(reason), "{words}: {reason}? {}", outcome.error);
        }
        outcome.error
    }
}

fn outcome(command: &mut Command) -> Outcome {
    let done = command.stdin(Stdio::null()).output().unwrap();
    Outcome {
        good: done.status.success(),
        out: String::from_utf8(done.stdout).unwrap(),
        error: String::from_utf8(done.stderr).unwrap(),
    }
}

/// Whether `program` is there; says loudly when not.
fn is_installed(program: &str) -> bool {
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

fn assert_valid(schema: &str, document: &Path) {
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

fn openssl(folder: &Path, words: &str) {
    let done = outcome(Command::new("openssl").args(words.split(' ')).current_dir(folder));
    assert!(done.good, "openssl {words}: {}", done.error);
}

#[test]
fn a_guardian_is_made_shown_exported_and_taken_by_another_owner() {
    let (desk, other) = (Desk::new(), Desk::new());
    assert!(desk.good("guardian list").contains("no guardians"));
    desk.good("guardian create Owner");
    desk.good("guardian create Elliptic --p256");
    desk.refused("guardian create Owner", &["there is a guardian Owner already"]);
    desk.refused("guardian create ../Owner", &["cannot be a guardian's name"]);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&desk.path("guardians/Owner.json")), 0o600);

    let list = desk.json("guardian list --json");
    let suites = [(0, "Elliptic", "B"), (1, "Owner", "A")];
    for (at, name, suite) in suites {
        assert_eq!(list[at]["name"], name);
        assert_eq!(list[at]["hasPrivateKeys"], true);
        assert_eq!(list[at]["signingCertificate"]["suite"], suite);
        assert_eq!(list[at]["encryptionCertificate"]["selfSigned"], true);
    }
    let thumbprint = list[1]["signingCertificate"]["thumbprint"].as_str().unwrap();
    let shown = desk.good("guardian show Owner");
    assert!(
        shown.contains(thumbprint) && shown.contains("private keys here"),
        "{shown}"
    );

    for name in ["Owner", "Elliptic"] {
        desk.good(&format!("guardian export {name} --out {name}.xml"));
        desk.refused(&format!("guardian export {name} --out {name}.xml"), &["exists"]);
        assert_valid("metadata.xsd", &desk.path(&format!("{name}.xml")));
        let file = desk.path(&format!("{name}.xml"));
        let import = format!("guardian import {} --name {name}", file.display());
        other.refused(&import, &["self-signed", "--allow-untrusted-root", "thumbprint"]);
        other.refused(&format!("guardian show {name}"), &["there is no guardian"]);
        let imported = other.good(&format!("{import} --allow-untrusted-root"));
        assert!(imported.contains("compare both thumbprints"), "{imported}");
    }
    let known = other.json("guardian show Owner --json");
    assert_eq!(known["hasPrivateKeys"], false);
    assert_eq!(known["signingCertificate"]["thumbprint"], thumbprint);
    // Their public halves can be handed on, their private ones are not there.
    other.good("guardian export Owner --out again.xml");
    assert_eq!(
        fs::read(other.path("again.xml")).unwrap(),
        fs::read(desk.path("Owner.xml")).unwrap()
    );
    let pfx = "--with-private-keys --signing-pfx s.pfx --encryption-pfx e.pfx --pfx-password-file password";
    other.refused(&format!("guardian export Owner {pfx}"), &["not here"]);

    // By way of PFX files a guardian moves to another store, same keys and all.
    desk.good(&format!("guardian export Owner {pfx}"));
    assert_eq!(mode(&desk.path("s.pfx")), 0o600);
    let [s, e] = ["s.pfx", "e.pfx"].map(|file| desk.path(file).display().to_string());
    let create = format!(
        "guardian create Moved --signing-pfx {s} --signing-pfx-password-file password --encryption-pfx {e} \
         --encryption-pfx-password-file password"
    );
    other.refused(&create, &["self-signed", "--allow-untrusted-root"]);
    other.good(&format!("{create} --allow-untrusted-root"));
    let moved = other.json("guardian show Moved --json");
    assert_eq!(moved["signingCertificate"]["thumbprint"], thumbprint);

    desk.refused("guardian remove Owner", &["--destroy-private-keys"]);
    desk.good("guardian remove Owner --destroy-private-keys");
    other.good("guardian remove Owner");
    desk.refused("guardian show Owner", &["there is no guardian Owner", "guardian list"]);
    fs::write(desk.path("guardians/Elliptic.json"), "{}").unwrap();
    desk.refused("guardian list", &["left out", "Elliptic.json"]);
}

#[test]
fn private_keys_open_by_their_password_alone() {
    let desk = Desk::new();
    let no_password = outcome(&mut desk.command("guardian create Owner"));
    assert!(!no_password.good);
    for hint in ["--password-file", "HGS_GUARDIAN_PASSWORD"] {
        assert!(no_password.error.contains(hint), "{}", no_password.error);
    }
    let short = outcome(
        desk.command("guardian create Owner")
            .env("HGS_GUARDIAN_PASSWORD", "short"),
    );
    assert!(
        !short.good && short.error.contains("at least 10 characters"),
        "{}",
        short.error
    );
    // The same password, once from the environment and once from a file.
    let by_variable = outcome(
        desk.command("guardian create Owner --p256")
            .env("HGS_GUARDIAN_PASSWORD", "correct horse"),
    );
    assert!(by_variable.good, "{}", by_variable.error);
    let create = "protector create --owner Owner --allow-untrusted-root --out";
    desk.good(&format!("{create} vm.xml"));
    fs::write(desk.path("wrong"), "another horse").unwrap();
    desk.refused(&format!("{create} other.xml --password-file wrong"), &["do not open"]);
    assert!(!desk.path("other.xml").exists());
}

#[test]
fn expired_certificates_are_refused_until_they_are_allowed() {
    let desk = Desk::new();
    let long_ago = UnixTime(946_684_800);
    let old = GuardianKeys::generate_p256("Old", long_ago, &mut OsRandom).unwrap();
    fs::write(desk.path("old.xml"), Metadata::build(&old, None).unwrap()).unwrap();
    let import = "guardian import old.xml --name Old --allow-untrusted-root";
    desk.refused(
        import,
        &["--allow-expired", "until 2009-12-", "signing certificate of Old"],
    );
    desk.refused(
        "guardian import old.xml --name Old --allow-expired",
        &["--allow-untrusted-root"],
    );
    desk.good(&format!("{import} --allow-expired"));
    desk.good("guardian create Owner --p256");
    // What was taken once is asked about again, as the product does.
    let create = "protector create --owner Owner --guardian Old --out vm.xml --allow-untrusted-root";
    desk.refused(create, &["--allow-expired"]);
    assert!(!desk.path("vm.xml").exists());
    desk.good("protector create --owner Owner --out vm.xml --allow-untrusted-root");
    let grant = "protector grant vm.xml --guardian Old --allow-untrusted-root";
    desk.refused(grant, &["--allow-expired"]);
    desk.good(&format!("{grant} --allow-expired"));
    assert!(desk.good("protector inspect vm.xml").contains("NOT valid now"));
    desk.good("protector revoke vm.xml --guardian Old");
}

#[test]
fn certificates_made_by_openssl_are_taken_under_their_root() {
    if !is_installed("openssl") {
        return;
    }
    let desk = Desk::new();
    let folder = desk.folder.path();
    for name in ["roots", "no-roots", "own-roots", "bad-roots"] {
        fs::create_dir(desk.path(name)).unwrap();
    }
    openssl(
        folder,
        "req -x509 -newkey rsa:2048 -nodes -keyout root.key -out roots/root.pem -days 30 -subj /CN=Root",
    );
    openssl(
        folder,
        "req -x509 -newkey rsa:2048 -nodes -keyout stranger.key -out no-roots/root.pem -days 30 -subj /CN=Root",
    );
    for (name, key) in [("signing", "rsa:2048"), ("encryption", "rsa:3072")] {
        openssl(
            folder,
            &format!("req -newkey {key} -nodes -keyout {name}.key -out {name}.csr -subj /CN=Owner-{name}"),
        );
        fs::write(desk.path("ext"), "basicConstraints=CA:FALSE\n").unwrap();
        openssl(
            folder,
            &format!(
                "x509 -req -in {name}.csr -CA roots/root.pem -CAkey root.key -CAcreateserial -days 20 -extfile ext \
                 -out {name}.pem"
            ),
        );
        openssl(
            folder,
            &format!(
                "pkcs12 -export -inkey {name}.key -in {name}.pem -certfile roots/root.pem -out {name}.pfx -passout \
                 pass:from-openssl"
            ),
        );
    }
    fs::write(desk.path("pfx-password"), "from-openssl\n").unwrap();
    let pem = "--signing-cert signing.pem --signing-key signing.key --encryption-cert encryption.pem --encryption-key \
               encryption.key";
    let pfx = "--signing-pfx signing.pfx --signing-pfx-password-file pfx-password --encryption-pfx encryption.pfx \
               --encryption-pfx-password-file pfx-password";
    desk.refused(
        &format!("guardian create Pem {pem}"),
        &["no trusted root", "CN=Root", "--roots", "--allow-untrusted-root"],
    );
    // A root of the same name with another key is another root.
    desk.refused(
        &format!("guardian create Pem {pem} --roots no-roots"),
        &["no trusted root"],
    );
    desk.good(&format!("guardian create Pem {pem} --roots roots"));
    desk.good(&format!("guardian create Pfx {pfx} --roots roots"));
    let [one, two] = ["Pem", "Pfx"].map(|name| desk.json(&format!("guardian show {name} --json")));
    assert_eq!(one["signingCertificate"], two["signingCertificate"]);
    assert_eq!(one["encryptionCertificate"]["key"], "RSA-3072");
    desk.refused(
        &format!(
            "guardian create X {}",
            pfx.replace("-file pfx-password", "-file password")
        ),
        &["the password is another"],
    );
    desk.refused(
        &format!(
            "guardian create X {}",
            pem.replace("--signing-key signing.key", "--signing-key root.key")
        ),
        &["does not belong"],
    );
    // Under its root a protector needs no override; it opens with the keys that openssl made.
    desk.good("protector create --owner Pem --out vm.xml --roots roots");
    let inspected = desk.json("protector inspect vm.xml --json --open-with Pfx");
    assert_eq!(inspected["transportKeySignature"]["holds"], true);

    // P-256 from openssl; its self-signed certificates are trusted when they themselves are roots.
    for name in ["ec-signing", "ec-encryption"] {
        openssl(
            folder,
            &format!(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {name}.key -out {name}.pem \
                 -days 30 -subj /CN={name}"
            ),
        );
        fs::copy(
            desk.path(&format!("{name}.pem")),
            desk.path(&format!("own-roots/{name}.pem")),
        )
        .unwrap();
        let both = [".pem", ".key"].map(|kind| fs::read(desk.path(&format!("{name}{kind}"))).unwrap());
        fs::write(desk.path(&format!("{name}.both")), both.concat()).unwrap();
    }
    let ec = "guardian create Ec --signing-cert ec-signing.both --encryption-cert ec-encryption.both";
    desk.refused(ec, &["self-signed"]);
    fs::write(desk.path("bad-roots/readme"), "no certificate").unwrap();
    desk.refused(
        &format!("{ec} --roots bad-roots"),
        &["not used as a root: bad-roots/readme"],
    );
    desk.good(&format!("{ec} --roots own-roots"));
    assert_eq!(desk.json("guardian show Ec --json")["signingCertificate"]["suite"], "B");
}

#[test]
fn a_protector_is_explained_and_a_bent_one_refused() {
    let desk = Desk::new();
    desk.good("guardian create Owner");
    desk.good("guardian create Elliptic --p256");
    desk.refused(
        "protector create --owner Owner --guardian Elliptic --out vm.xml",
        &["--allow-untrusted-root", "signing certificate of Owner"],
    );
    let create = "protector create --allow-untrusted-root --owner Owner";
    desk.refused(&format!("{create} --guardian Owner --out vm.xml"), &["twice"]);
    desk.good(&format!(
        "{create} --guardian Elliptic --max-offline-unwraps 3 --out vm.xml"
    ));
    desk.refused(&format!("{create} --out vm.xml"), &["vm.xml exists"]);
    assert_valid("protector.xsd", &desk.path("vm.xml"));
    desk.good("protector create --allow-untrusted-root --owner Elliptic --guardian Owner --out ec.xml");
    assert_valid("protector.xsd", &desk.path("ec.xml"));
    for (file, by) in [
        ("vm.xml", "Owner"),
        ("vm.xml", "Elliptic"),
        ("ec.xml", "Owner"),
        ("ec.xml", "Elliptic"),
    ] {
        let opened = desk.json(&format!("protector inspect {file} --json --open-with {by}"));
        assert_eq!(opened["transportKeySignature"]["holds"], true, "{file} {by}");
    }

    let seen = desk.json("protector inspect vm.xml --json");
    assert_eq!(seen["signaturesHold"], true);
    assert_eq!(seen["maxOfflineUnwraps"], 3);
    assert_eq!(seen["maxOfflineUnwrapsIsSigned"], false);
    assert_eq!(
        seen["guardianSignature"],
        json!({ "wrapping": 1, "holds": true, "reason": null })
    );
    assert_eq!(seen["transportKeySignature"]["holds"], Value::Null);
    let wrappings = seen["wrappings"].as_array().unwrap();
    assert_eq!(wrappings.len(), 2);
    for (wrapping, (name, is_owner, suite)) in wrappings.iter().zip([("Owner", true, "A"), ("Elliptic", false, "B")]) {
        assert_eq!(wrapping["parent"], 1);
        assert_eq!(wrapping["isOwner"], is_owner);
        assert_eq!(wrapping["guardians"], json!([{ "name": name, "hasPrivateKeys": true }]));
        assert_eq!(wrapping["signingCertificateSignatureHolds"], true);
        assert_eq!(wrapping["encryptionCertificateSignatureHolds"], true);
        assert_eq!(wrapping["signingCertificate"]["suite"], suite);
        assert_eq!(wrapping["faults"], json!([]));
    }
    let text = desk.good("protector inspect vm.xml");
    for part in [
        "2 wrappings",
        "Wrapping 1, the owner",
        "opened by: Elliptic (private keys here)",
        "Guardian signature: by wrapping 1, the owner, holds",
        "not checkable without a key",
        "Offline unwraps: 3. No signature covers this number",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // To a store that knows nobody, the same document names nobody.
    let strangers = desk.good("protector inspect vm.xml --dir elsewhere");
    assert!(strangers.contains("a guardian that is not in the store"), "{strangers}");

    let whole = fs::read_to_string(desk.path("vm.xml")).unwrap();
    let signature = whole.rfind("<SignatureValue>").unwrap() + "<SignatureValue>".len();
    let mut forged = whole.clone();
    let other = if &whole[signature..=signature] == "A" { "B" } else { "A" };
    forged.replace_range(signature..=signature, other);
    fs::write(desk.path("forged.xml"), &forged).unwrap();
    let outcome = desk.run("protector inspect forged.xml --json");
    let seen: Value = serde_json::from_str(&outcome.out).unwrap();
    assert!(!outcome.good && seen["guardianSignature"]["holds"] == false && seen["signaturesHold"] == false);
    let outcome = desk.run("protector inspect forged.xml");
    assert!(outcome.out.contains("does NOT hold") && outcome.out.contains("NOT to be relied on"));
    let orphan = whole.replacen("ParentWrappingId=\"1\"", "ParentWrappingId=\"7\"", 2);
    fs::write(desk.path("orphan.xml"), orphan).unwrap();
    let outcome = desk.run("protector inspect orphan.xml");
    assert!(
        !outcome.good
            && outcome
                .out
                .contains("NOT valid: its parent is not in the key protector")
    );
    desk.refused(
        "protector revoke forged.xml --guardian Elliptic",
        &["guardian signature"],
    );
    assert_eq!(
        fs::read_to_string(desk.path("forged.xml")).unwrap(),
        forged,
        "left as it was"
    );

    for (name, bytes) in [
        ("empty", Vec::new()),
        ("noise", vec![0xFF; 3000]),
        ("cut", whole.as_bytes()[..whole.len() / 2].to_vec()),
        (
            "dtd",
            whole
                .replacen("?>", "?><!DOCTYPE Protector [<!ENTITY a \"b\">]>", 1)
                .into_bytes(),
        ),
        (
            "terminal",
            whole
                .replacen("xmldsig-more#rsa-sha256", "\u{9b}2J\u{202e}", 1)
                .into_bytes(),
        ),
        (
            "other",
            b"<Metadata xmlns=\"http://schemas.microsoft.com/kps/2014/07\"/>".to_vec(),
        ),
        ("deep", "<a>".repeat(100_000).into_bytes()),
    ] {
        fs::write(desk.path(name), bytes).unwrap();
        let said = desk.refused(
            &format!("protector inspect {name}"),
            &["cannot read", "the key protector"],
        );
        assert!(!said.contains(['\u{9b}', '\u{202e}']), "{said}");
        desk.refused(
            &format!("protector grant {name} --guardian Elliptic --allow-untrusted-root"),
            &["cannot change"],
        );
        desk.refused(
            &format!("guardian import {name} --name X --allow-untrusted-root"),
            &["cannot import"],
        );
    }
    desk.refused("protector inspect /dev/zero", &["more than 4194304 bytes"]);
    desk.refused("protector inspect nowhere", &["cannot read nowhere"]);
}

#[test]
fn only_the_owner_grants_and_revokes() {
    let desk = Desk::new();
    for name in ["Owner", "One", "Two"] {
        desk.good(&format!("guardian create {name} --p256"));
    }
    let trust = "--allow-untrusted-root";
    desk.good(&format!(
        "protector create {trust} --owner Owner --guardian One --max-offline-unwraps 2 --out vm.xml"
    ));
    desk.refused(
        &format!("protector grant vm.xml {trust} --owner One --guardian Two"),
        &["only the owner"],
    );
    desk.refused(
        &format!("protector grant vm.xml {trust} --owner Two --guardian Two"),
        &["no wrapping of the key protector is for this guardian"],
    );
    desk.refused("protector grant vm.xml --guardian Two", &["self-signed"]);
    desk.good(&format!("protector grant vm.xml {trust} --guardian Two --out both.xml"));
    assert_valid("protector.xsd", &desk.path("both.xml"));
    let [vm, both] = ["vm.xml", "both.xml"].map(|file| desk.json(&format!("protector inspect {file} --json")));
    assert_eq!(
        [&vm, &both].map(|seen| seen["wrappings"].as_array().unwrap().len()),
        [2, 3]
    );
    assert_eq!(both["maxOfflineUnwraps"], 2);
    desk.refused(
        &format!("protector grant both.xml {trust} --guardian One"),
        &["access already, by wrapping 2"],
    );
    desk.refused(
        "protector revoke vm.xml --guardian Two",
        &["no wrapping has the certificates of Two"],
    );
    desk.refused("protector revoke both.xml --guardian Owner", &["cannot be revoked"]);
    desk.refused("protector revoke both.xml --wrapping 9", &["no wrapping 9"]);
    let said = desk.good("protector revoke both.xml --guardian One");
    assert!(said.contains("still opens older copies"), "{said}");
    desk.refused("protector inspect both.xml --open-with One", &[]);
    for by in ["Owner", "Two"] {
        desk.good(&format!("protector inspect both.xml --open-with {by}"));
    }
    desk.good("protector revoke both.xml --wrapping 3");
    assert_eq!(
        desk.json("protector inspect both.xml --json")["wrappings"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    desk.good("guardian remove Owner --destroy-private-keys");
    desk.refused(
        "protector revoke vm.xml --guardian One",
        &["only its owner can change it"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_opens_what_its_owner_made_and_not_what_was_revoked() {
    let desk = Desk::new();
    let place = short_private_dir().unwrap();
    let fabric = Fabric::new(&place, false).unwrap();
    let hgs = fabric.start_hgs("hgs").unwrap();
    let clock = Clock::system();
    let signer = AttestationSigner::generate(clock.now(), &mut OsRandom).unwrap();
    let body = json!({ "certificate": STANDARD.encode(signer.certificate_der()) });
    hgs.kps.admin_post("attestation-signers", &body).await.unwrap();
    let host = RsaPrivateKey::generate_2048().unwrap();
    let health = HealthCertificateRequest {
        key: host.public().clone(),
        kind: CertificateKind::Encryption,
        mode: AttestationMode::HostKey,
        policies: vec![],
        issued_at: clock.now(),
        lifetime: DEFAULT_LIFETIME,
    };
    let health = signer.issue(&health, &mut OsRandom).unwrap();
    let roll = async |file: &str| {
        let ask = RollTransportKeyRequest::new(fs::read(desk.path(file)).unwrap(), health.clone());
        hgs.roll(&ask).await.unwrap()
    };

    fs::write(desk.path("hgs.xml"), hgs.metadata().await.unwrap()).unwrap();
    let trust = "--allow-untrusted-root";
    desk.good(&format!("guardian import hgs.xml --name HGS {trust}"));
    for (owner, suite) in [("Rsa", ""), ("Ec", " --p256")] {
        desk.good(&format!("guardian create {owner}{suite}"));
        let file = format!("{owner}.xml");
        desk.good(&format!(
            "protector create {trust} --owner {owner} --guardian HGS --out {file}"
        ));
        let response = roll(&file).await.unwrap();
        let keys = open_release(&response, &host).unwrap();
        // The owner finds the same keys in its file and in what the service made of it.
        fs::write(desk.path("egress.xml"), &response.egress_protector).unwrap();
        assert_eq!(
            desk.json("protector inspect egress.xml --json")["guardianSignature"]["wrapping"],
            2
        );
        desk.good(&format!("protector inspect egress.xml --open-with {owner}"));
        assert!(keys.ingress.expose_transport_key().expose() != keys.egress.expose_transport_key().expose());

        fs::copy(desk.path(&file), desk.path("old.xml")).unwrap();
        desk.good(&format!("protector revoke {file} --guardian HGS"));
        let refusal = roll(&file).await.unwrap_err();
        assert_eq!(refusal.code, "KeyProtectionAccessDeniedException");
        // What the tool says of older copies is so, and a grant gives the same key back.
        let old = open_release(&roll("old.xml").await.unwrap(), &host).unwrap();
        desk.good(&format!("protector grant {file} {trust} --guardian HGS"));
        let again = open_release(&roll(&file).await.unwrap(), &host).unwrap();
        let bytes = |key: &hgs_protocol::secret::TransportKey| *key.expose_transport_key().expose();
        assert_eq!(bytes(&old.ingress), bytes(&keys.ingress));
        assert_eq!(bytes(&again.ingress), bytes(&keys.ingress));
        // A protector that the service has signed is the owner's to change, too.
        desk.good("protector revoke egress.xml --guardian HGS");
        assert!(roll("egress.xml").await.is_err());
        KeyProtector::parse(&fs::read(desk.path("egress.xml")).unwrap())
            .unwrap()
            .verify()
            .unwrap();
        fs::remove_file(desk.path("egress.xml")).unwrap();
        fs::remove_file(desk.path("old.xml")).unwrap();
    }
    drop(hgs);
    fs::remove_dir_all(&place).unwrap();
}
