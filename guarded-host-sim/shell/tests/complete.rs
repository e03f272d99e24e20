//! What Tab offers.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::rc::Rc;

use hgs_shell::{cmdlets::Registry, complete::complete, console::Recorder, session::Session, world::Alone};

fn offered(line: &str) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let world = Rc::new(Alone::new("WS01", folder.path().to_path_buf()));
    let mut session = Session::new(world, Registry::builtin(), Box::new(Recorder::default())).unwrap();
    session.run(r"$guardian = [pscustomobject]@{ Name = 'a'; Number = 1 }; $all = @{ Key = 1 }");
    session.run(r"Set-Content C:\temp\hostkey.cer x; New-Item C:\temp\more -ItemType Directory");
    let result = complete(&session, line, line.len());
    let kept = line.get(..result.start).unwrap();
    result.items.into_iter().map(|item| format!("{kept}{item}")).collect()
}

#[test]
fn commands_parameters_and_values_are_offered() {
    assert_eq!(offered("get-hgsse"), ["Get-HgsServer"]);
    assert_eq!(offered("Get-HgsServer | Conv").len(), 6);
    assert_eq!(
        offered("Set-HgsClientConfiguration -Att"),
        ["Set-HgsClientConfiguration -AttestationServerUrl"]
    );
    let given = offered("Set-HgsClientConfiguration -AttestationServerUrl x -");
    assert!(
        !given.iter().any(|item| item.ends_with("-AttestationServerUrl")),
        "{given:?}"
    );
    assert_eq!(given.last().unwrap().rsplit(' ').next().unwrap(), "-OutBuffer");
    assert_eq!(
        offered("Add-HgsKeyProtectionCertificate -CertificateType "),
        [
            "Add-HgsKeyProtectionCertificate -CertificateType Signing",
            "Add-HgsKeyProtectionCertificate -CertificateType Encryption"
        ]
    );
    assert_eq!(
        offered("Get-HgsAttestationPolicy -State l"),
        ["Get-HgsAttestationPolicy -State Locked"]
    );
    assert_eq!(offered("Enter-PSSession w"), ["Enter-PSSession WS01"]);
    assert_eq!(offered("x; Get-Help Get-HgsSer"), ["x; Get-Help Get-HgsServer"]);
    assert_eq!(
        offered("Set-HgsKeyProtectionCertificate -IsEnabled $t"),
        ["Set-HgsKeyProtectionCertificate -IsEnabled $true"]
    );
}

#[test]
fn variables_properties_and_paths_are_offered() {
    assert_eq!(offered("$gua"), ["$guardian"]);
    assert_eq!(offered("$guardian.N"), ["$guardian.Name", "$guardian.Number"]);
    assert_eq!(offered("$all."), ["$all.Key"]);
    assert_eq!(offered("\"$env:COMP"), Vec::<String>::new(), "inside of a string");
    assert_eq!(offered("$env:comp"), ["$env:COMPUTERNAME"]);
    assert_eq!(
        offered(r"Add-HgsAttestationHostKey -Name a -Path C:\temp\h"),
        [r"Add-HgsAttestationHostKey -Name a -Path C:\temp\hostkey.cer"]
    );
    assert_eq!(offered(r"cd C:\temp\m"), [r"cd C:\temp\more\"]);
    assert_eq!(offered(""), Vec::<String>::new());
}
