//! Key protectors: made, explained, changed by their owner alone.

use std::fs;

use serde_json::{Value, json};

use crate::desk::{Desk, assert_valid};

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
