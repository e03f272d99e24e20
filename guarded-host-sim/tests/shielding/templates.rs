//! The command `template`.

use std::fs;

use super::*;

#[test]
fn a_template_is_signed_inspected_and_named_by_its_catalogue() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let volume: Vec<u8> = (0..200_000_u32).map(|at| (at % 241) as u8).collect();
    fs::write(folder.join("server.img"), &volume).unwrap();
    fs::write(folder.join("password"), "only for templates\n").unwrap();
    good(
        folder,
        "template certificate --name Contoso --out signer.pfx --password-file password --p256",
    );
    let signer = "--pfx signer.pfx --pfx-password-file password";
    refused(
        folder,
        "template inspect server.img",
        &["is no template", "template protect"],
    );
    refused(
        folder,
        "template protect server.img --name Server --version 1.0",
        &["--certificate"],
    );

    // To another file, which takes the place of none; then in its own place.
    let to = format!("template protect server.img --name Server --version 1.0 --out signed.img {signer}");
    good(folder, &to);
    refused(folder, &to, &["cannot write signed.img"]);
    assert_eq!(fs::read(folder.join("server.img")).unwrap(), volume);
    good(
        folder,
        &format!("template protect server.img --name Server --version 1.0 {signer}"),
    );
    refused(
        folder,
        &format!("template protect server.img --name Server --version 2.0 {signer}"),
        &["a template already"],
    );

    let seen = good(folder, "template inspect server.img --json");
    assert_eq!(seen["version"], "1.0.0.0");
    assert_eq!(seen["blocks"], 4);
    assert_eq!(seen["blocksMatch"], true);
    assert_eq!(seen["signer"]["subject"], "CN=Contoso");
    good(folder, "template catalogue server.img --out server.vsc");
    let mut catalogue = good(folder, "template inspect server.vsc --json");
    assert!(catalogue["blocksMatch"].is_null());
    catalogue["blocksMatch"] = true.into();
    assert_eq!(catalogue, seen);
    assert_eq!(good(folder, "template inspect signed.img --json")["root"], seen["root"]);

    // One byte of the volume, of the catalogue, of its file.
    let mut bytes = fs::read(folder.join("server.img")).unwrap();
    bytes[70_000] ^= 1;
    fs::write(folder.join("changed.img"), &bytes).unwrap();
    refused(
        folder,
        "template inspect changed.img",
        &["changed after it was signed", "block 1 (from byte 65536)"],
    );
    bytes[70_000] ^= 1;
    bytes[200_020] ^= 1;
    fs::write(folder.join("changed.img"), &bytes).unwrap();
    refused(folder, "template inspect changed.img", &["changed.img"]);
    let mut bytes = fs::read(folder.join("server.vsc")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(folder.join("changed.vsc"), &bytes).unwrap();
    refused(folder, "template inspect changed.vsc", &["it was changed"]);
}

#[test]
fn a_certificate_of_openssl_signs_too() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("server.img"), "volume").unwrap();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=Fabrikam"])
        .args(["-keyout", "key.pem", "-out", "certificate.pem", "-days", "2"])
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(made.status.success());
    let protect = "template protect server.img --name Server --version 1.0 --certificate certificate.pem";
    refused(folder, protect, &["no PRIVATE KEY"]);
    good(folder, &format!("{protect} --certificate-key key.pem"));
    let seen = good(folder, "template inspect server.img --json");
    assert_eq!(seen["signer"]["subject"], "CN=Fabrikam");
}
