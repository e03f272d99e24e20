//! Guardians: made, imported under the owner's rules of trust, exported, kept.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use hgs_protocol::{
    env::{OsRandom, UnixTime},
    protector::{GuardianKeys, Metadata},
};

use crate::desk::{Desk, assert_valid, is_installed, openssl, outcome};

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
