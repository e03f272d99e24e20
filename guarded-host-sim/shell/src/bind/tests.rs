//! Calls as they are typed, and what becomes of them.

use super::*;
use crate::{check, table::Table};

fn table() -> &'static Table {
    Table::builtin().unwrap()
}

/// Set and parameters of the last call in a line, or the first error.
fn outline(line: &str) -> Result<(String, Vec<String>), String> {
    let checked = check::script(line, table());
    match checked.remarks.into_iter().find(|remark| remark.error) {
        Some(remark) => Err(remark.text),
        None => checked
            .calls
            .into_iter()
            .next_back()
            .map(|call| (call.set, call.parameters))
            .ok_or_else(String::new),
    }
}

fn parameters(line: &str) -> Vec<String> {
    outline(line).unwrap_or_else(|e| panic!("{line}: {e}")).1
}

fn set(line: &str) -> String {
    outline(line).unwrap_or_else(|e| panic!("{line}: {e}")).0
}

fn error(line: &str) -> String {
    outline(line).expect_err(line)
}

#[test]
fn names_are_taken_in_any_case_abbreviated_and_by_alias() {
    assert_eq!(
        parameters("add-hgsattestationcipolicy -NAME a -filepath b"),
        ["Name", "Path"]
    );
    assert_eq!(parameters("Set-HgsServer -httpp 81 -http"), ["HttpPort", "Http"]);
    assert_eq!(parameters("Start-VM -VMName a -pass"), ["Name", "Passthru"]);
    assert_eq!(parameters("Get-HgsServer -ea Stop"), ["ErrorAction"]);
    assert!(error("Set-HgsServer -HttpsCert x").contains("ambiguous"));
    assert_eq!(
        error("New-HgsKeyProtector -Owner $o -Guardians $g"),
        "A parameter cannot be found that matches parameter name 'Guardians'."
    );
    assert!(error("Set-HgsServer -Http -http").contains("more than once"));
    assert!(error("Set-HgsServer -Http -HttpPort").starts_with("Missing an argument for parameter 'HttpPort'"));
    assert!(error("Set-HgsServer -HttpPort -Http").starts_with("Missing an argument"));
}

#[test]
fn values_without_a_name_go_by_place_and_type() {
    assert_eq!(parameters("Disable-HgsAttestationPolicy Hgs_IommuEnabled"), ["Name"]);
    assert_eq!(
        parameters("New-HgsKeyProtector $owner $guardians -AllowExpired"),
        ["AllowExpired", "Owner", "Guardian"]
    );
    assert_eq!(
        parameters("New-ShieldingDataFile -Policy Shielded x.pdk $o $viq u.xml"),
        [
            "Policy",
            "ShieldingDataFilePath",
            "Owner",
            "VolumeIDQualifier",
            "AnswerFile"
        ]
    );
    assert_eq!(
        set("Where-Object { $_.A }"),
        "ScriptBlockSet",
        "a block is no property name"
    );
    assert_eq!(set("Where-Object Name -EQ x"), "EqualSet");
    assert_eq!(set("Where-Object Name -like x*"), "LikeSet");
    assert!(error("Get-HgsServer now").ends_with("accepts argument 'now'."));
    assert_eq!(parameters("Write-Host a b 3"), ["Object"]);
}

#[test]
fn a_set_is_chosen_and_mixtures_are_refused() {
    assert_eq!(set("Set-HgsServer -Http -HttpPort 81"), "http");
    assert_eq!(
        set("Set-HgsServer -Http -Https -HttpsCertificateThumbprint aa"),
        "httpAndHttpsThumbprint"
    );
    assert_eq!(set("Set-HgsServer -TrustHostKey"), "TrustHostKey");
    assert!(error("Set-HgsServer -TrustTpm -Http").starts_with("Parameter set cannot be resolved"));
    assert!(error("Set-HgsServer").starts_with("Parameter set cannot be resolved"));
    assert_eq!(set("Set-HgsClientConfiguration -EnableLocalMode"), "ChangeToLocalMode");
    assert_eq!(
        set("Get-HgsKeyProtectionCertificate -CertificateType Signing"),
        "GetMultipleCerts"
    );
    assert_eq!(
        set("Get-HgsKeyProtectionCertificate -CertificateType Signing -Thumbprint a"),
        "GetOneCert"
    );
    assert_eq!(
        set("Initialize-HgsServer -HgsServerIPAddress 10.0.0.1"),
        "AdditionalServer"
    );
    assert_eq!(set("Get-HgsTrace -RunDiagnostics -Detailed"), "Diagnose");
    assert_eq!(set("Test-HgsClientConfiguration"), "Primary");
}

#[test]
fn what_must_be_given_is_named_when_it_is_missing() {
    let url = "http://hgs.bastion.local/Attestation";
    assert_eq!(
        error(&format!("Set-HgsClientConfiguration -AttestationServerUrl {url}")),
        "Cannot process command because of one or more missing mandatory parameters: KeyProtectionServerUrl."
    );
    assert!(error("Export-HgsServerState").ends_with("parameters: Password."));
    assert_eq!(
        parameters("Set-HgsClientConfiguration @urls"),
        [""; 0],
        "what a splatted variable brings is not known"
    );
    assert!(error("Export-HgsGuardian -Path x").ends_with("parameters: InputObject."));
    assert_eq!(parameters("Get-HgsGuardian a | Export-HgsGuardian -Path x"), ["Path"]);
}

#[test]
fn values_of_the_wrong_type_are_refused_where_they_stand() {
    let line = "Get-HgsAttestationPolicy -State Maybe";
    let checked = check::script(line, table());
    assert_eq!(checked.remarks[0].at.column, 33);
    assert!(
        checked.remarks[0].text.contains("Disabled, Enabled, Locked"),
        "{}",
        checked.remarks[0].text
    );
    assert!(
        error("Set-HgsKeyProtectionCertificate -CertificateType Signing -Thumbprint a -IsEnabled yes")
            .contains("Boolean")
    );
    assert!(error("Export-HgsServerState -Password secret").contains("SecureString"));
}

/// Binds with values, as at run time.
fn given(named: &[(&str, Value)]) -> Vec<Given> {
    let one = |(name, value): &(&str, Value)| Given {
        what: What::Named((*name).to_owned(), Some(Supplied::Known(value.clone(), None))),
        span: Span::default(),
    };
    named.iter().map(one).collect()
}

#[test]
fn the_pipeline_brings_objects_or_their_properties() {
    let fed = Circumstances { fed: true, open: false };
    let guardian = Value::object("MSFT_HgsGuardian", [("Name", Value::text("Owner"))]);
    let remove = table().find("Remove-HgsGuardian").unwrap();
    let binding = bind(remove, Vec::new(), fed).unwrap();
    let bound = binding.with_input(&guardian).unwrap();
    assert_eq!(bound.set(), "NameViaGuardian", "the object comes before its properties");
    let bound = binding.with_input(&Value::text("Other")).unwrap();
    assert_eq!(bound.text("Name").as_deref(), Some("Other"));
    let add = table().find("Add-HgsAttestationTpmPolicy").unwrap();
    let binding = bind(add, given(&[("Name", Value::text("b"))]), fed).unwrap();
    let file = Value::object("FileInfo", [("PSPath", Value::text("C:\\b.tcglog"))]);
    let bound = binding.with_input(&file).unwrap();
    assert_eq!(
        (bound.set(), bound.text("Path").as_deref()),
        ("File", Some("C:\\b.tcglog"))
    );
    let server = table().find("Get-HgsServer").unwrap();
    let error = bind(server, Vec::new(), fed)
        .unwrap()
        .with_input(&guardian)
        .err()
        .unwrap();
    assert_eq!(error.id, "InputObjectNotBound");
}

#[test]
fn a_parameter_that_nobody_looks_at_is_found() {
    let set = table().find("Set-HgsServer").unwrap();
    let one = given(&[("Http", Value::Bool(true)), ("HttpPort", Value::Int(81))]);
    let bound = bind(set, one, Circumstances::default()).unwrap().finish().unwrap();
    assert!(bound.switch("Http") && !bound.switch("Https"));
    let unseen: Vec<&str> = bound.not_looked_at().iter().map(|p| p.name.as_str()).collect();
    assert_eq!(unseen, ["HttpPort"]);
}
