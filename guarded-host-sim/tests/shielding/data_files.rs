//! The command `shielding-data`.

use std::fs;

use super::*;

const PASSWORD: &str = "Pa55word-of-the-administrator";
const OTHER: &str = "for the remote desktop";
const WORDS: &str =
    "--owner Owner --guardian HGS --answer-file unattend.xml --other-file rdp.cer --allow-untrusted-root";

/// A folder with guardians, a template and its catalogue, an answer file and another file.
fn desk() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let desk = folder.path();
    good(desk, "guardian create Owner --p256");
    good(desk, "guardian create Other --p256");
    good(desk, "guardian create HGS --p256 --dir fabric");
    good(desk, "guardian export HGS --out hgs.xml --dir fabric");
    good(desk, "guardian import hgs.xml --name HGS --allow-untrusted-root");
    fs::write(desk.join("password"), "only for templates").unwrap();
    for maker in ["Contoso", "Fabrikam"] {
        good(
            desk,
            &format!("template certificate --name {maker} --out {maker}.pfx --password-file password --p256"),
        );
    }
    template(desk, "server", "Contoso", "1.2", "volume");
    fs::write(desk.join("unattend.xml"), format!("<unattend>{PASSWORD}</unattend>")).unwrap();
    fs::write(desk.join("rdp.cer"), OTHER).unwrap();
    folder
}

fn template(desk: &Path, file: &str, maker: &str, version: &str, content: &str) {
    fs::write(desk.join(file), content).unwrap();
    good(
        desk,
        &format!(
            "template protect {file} --name Server --version {version} --pfx {maker}.pfx --pfx-password-file password"
        ),
    );
    good(desk, &format!("template catalogue {file} --out {file}.vsc"));
}

#[test]
fn shielding_data_shows_what_is_public_and_its_owner_what_is_in_it() {
    let folder = desk();
    let desk = folder.path();
    let create =
        format!("shielding-data create {WORDS} --volume-id-qualifier greater-than-or-equals:server.vsc --out x.pdk");
    let said = good(desk, &create);
    assert!(
        said.as_str()
            .unwrap()
            .contains("for Shielded VMs of its owner Owner, and for HGS"),
        "{said}"
    );
    refused(desk, &create, &["x.pdk exists"]);

    let seen = good(desk, "shielding-data inspect x.pdk --json");
    assert_eq!(seen["policy"], "Shielded");
    assert_eq!(seen["signatureHolds"], true);
    assert_eq!(seen["contents"], Value::Null);
    assert_eq!(seen["templates"][0]["version"], "1.2.0.0");
    assert_eq!(seen["templates"][0]["signer"]["subject"], "CN=Contoso");
    assert_eq!(seen["protector"]["wrappings"][1]["guardians"][0]["name"], "HGS");
    let opened = good(desk, "shielding-data inspect x.pdk --json --open-with Owner");
    assert_eq!(opened["contents"][0]["name"], "unattend.xml");
    assert_eq!(opened["contents"][1]["length"], OTHER.len());
    for words in ["", "--json", "--open-with Owner", "--open-with Owner --json"] {
        let shown = good(desk, &format!("shielding-data inspect x.pdk {words}")).to_string();
        assert!(!shown.contains(PASSWORD) && !shown.contains(OTHER), "{shown}");
    }
    let file = fs::read(desk.join("x.pdk")).unwrap();
    assert!(!file.windows(PASSWORD.len()).any(|window| window == PASSWORD.as_bytes()));
    assert!(program(desk, "shielding-data inspect x.pdk --open-with Other").is_err());

    // The protector inside is one like any other.
    good(desk, "shielding-data protector x.pdk --out vm.xml");
    let protector = good(desk, "protector inspect vm.xml --open-with Owner --json");
    assert_eq!(protector["signaturesHold"], true);

    // Whoever changes what is public is found out without a key. The policy stands behind magic and id.
    let mut weaker = file;
    assert_eq!(weaker[24], 2);
    weaker[24] = 1;
    fs::write(desk.join("weaker.pdk"), weaker).unwrap();
    let said = program(desk, "shielding-data inspect weaker.pdk --json");
    assert!(said.is_err());
    refused(
        desk,
        "shielding-data test weaker.pdk --template server.vsc",
        &["not as its owner signed it"],
    );
}

#[test]
fn shielding_data_takes_the_templates_that_its_owner_named() {
    let folder = desk();
    let desk = folder.path();
    template(desk, "earlier", "Contoso", "1.1", "volume");
    template(desk, "later", "Contoso", "2.0", "another volume");
    template(desk, "changed", "Contoso", "1.2", "another volume");
    template(desk, "foreign", "Fabrikam", "1.2", "volume");
    for (rule, file) in [
        ("equals", "server.vsc"),
        ("greater-than", "server"),
        ("greater-than-or-equals", "server"),
    ] {
        good(
            desk,
            &format!("shielding-data create {WORDS} --volume-id-qualifier {rule}:{file} --out {rule}.pdk"),
        );
    }
    let low = "version 1.1.0.0 of the template Server is refused";
    let foreign = "does not trust (thumbprint";
    for (rule, template, refusal) in [
        ("equals", "server", None),
        ("equals", "earlier", Some(low)),
        ("equals", "later", Some("version 1.2.0.0 alone")),
        ("equals", "changed", Some("signed anew with another content")),
        ("equals", "foreign", Some(foreign)),
        ("greater-than", "server.vsc", Some("versions after 1.2.0.0")),
        ("greater-than", "later.vsc", None),
        ("greater-than-or-equals", "server", None),
        ("greater-than-or-equals", "changed", None),
        ("greater-than-or-equals", "later", None),
        ("greater-than-or-equals", "earlier", Some(low)),
        ("greater-than-or-equals", "foreign", Some(foreign)),
    ] {
        let test = format!("shielding-data test {rule}.pdk --template {template}");
        match refusal {
            None => drop(good(desk, &test)),
            Some(reason) => refused(desk, &test, &[reason]),
        }
    }
}

#[test]
fn what_makes_no_shielding_data_is_said() {
    let folder = desk();
    let desk = folder.path();
    let rule = "--volume-id-qualifier equals:server.vsc";
    fs::write(desk.join("empty"), "").unwrap();
    for (words, reason) in [
        (WORDS.to_owned(), "--volume-id-qualifier"),
        (format!("{WORDS} --volume-id-qualifier newest:server.vsc"), "RULE:FILE"),
        (
            format!("{WORDS} --volume-id-qualifier equals:unattend.xml"),
            "is no template",
        ),
        (
            format!("--owner HGS --answer-file unattend.xml {rule} --allow-untrusted-root"),
            "are not here",
        ),
        (
            format!("--owner Owner --answer-file unattend.xml {rule}"),
            "is self-signed",
        ),
        (
            format!("--owner Owner --answer-file empty {rule} --allow-untrusted-root"),
            "must not be empty",
        ),
        (
            format!("{WORDS} --other-file unattend.xml {rule}"),
            "cannot be the name",
        ),
        (format!("{WORDS} --other-file rdp.cer {rule}"), "cannot be the name"),
    ] {
        refused(desk, &format!("shielding-data create {words} --out x.pdk"), &[reason]);
    }
    assert!(!desk.join("x.pdk").exists());
    refused(desk, "shielding-data inspect server.vsc", &["no shielding data file"]);
}
