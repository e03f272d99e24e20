//! The deployments of the public guides, as scripts of the administrators' shell on a real fabric.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../support/mod.rs"]
mod support;

use std::{process::Command, rc::Rc, thread};

use guarded_host_sim::{
    agent::view::ClientView,
    cmdlets,
    lab::{Lab, Plan, ServiceName},
    vm::view::{VmState, VmView},
};
use hgs_shell::{
    cmdlets::State,
    console::{Recorder, Stream},
    coverage::{Row, coverage},
    session::{Ended, Session},
    table::Table,
};
use reqwest::Method;
use serde_json::Value;
use support::Folder;

/// Blocks that call each other need room.
const STACK: usize = 64 << 20;

/// Runs `test` with a lab, on a thread with room enough; says SKIPPED where there is no software TPM.
fn with_lab(name: &str, test: impl FnOnce(&Lab) + Send + 'static) {
    if Command::new("swtpm").arg("--version").output().is_err() {
        println!("SKIPPED {name}: swtpm is not installed");
        return;
    }
    let thread = thread::Builder::new().stack_size(STACK).spawn(move || {
        let folder = Folder::new();
        let lab = Lab::start(&folder.0, &Plan::default()).unwrap();
        test(&lab);
        drop(lab);
        drop(folder);
    });
    thread.unwrap().join().unwrap();
}

/// Runs a script; gives how it ended and what was shown.
fn run(lab: &Lab, name: &str, text: &str) -> (Ended, Recorder) {
    let recorder = Recorder::default();
    let mut session = Session::new(Rc::new(lab.clone()), cmdlets::registry(), Box::new(recorder.clone())).unwrap();
    session.set_views(cmdlets::VIEWS);
    let ended = session.run_file(name, text, &[]);
    (ended, recorder)
}

fn deployed(lab: &Lab, name: &str, text: &str) -> String {
    let (ended, recorder) = run(lab, name, text);
    assert_eq!(ended, Ended::Whole(true), "{}", recorder.all());
    assert_eq!(recorder.text(Stream::Error), "", "{}", recorder.all());
    recorder.text(Stream::Output)
}

fn configuration(lab: &Lab, host: &str) -> ClientView {
    let agent = lab.host(host).unwrap().agent();
    lab.wait(agent.get::<ClientView>("status")).unwrap().unwrap()
}

fn vms(lab: &Lab, host: &str) -> Vec<VmView> {
    let agent = lab.host(host).unwrap().agent();
    lab.wait(agent.get::<Vec<VmView>>("volume/vms")).unwrap().unwrap()
}

fn listed(lab: &Lab, path: &str) -> Vec<Value> {
    let cluster = lab.cluster().unwrap();
    let answer = lab
        .wait(cluster.ask(ServiceName::Attestation, Method::GET, path, None))
        .unwrap();
    answer.as_array().unwrap().clone()
}

/// Whatever the script printed, the fabric itself says the VM runs on the second host alone, and is shielded.
fn assert_moved(lab: &Lab, output: &str) {
    for host in ["host01", "host02"] {
        let view = configuration(lab, host);
        assert!(view.is_host_guarded, "{host}: {}", view.detail);
        assert_eq!(
            view.attestation_server_url.as_deref(),
            Some("http://hgs.bastion.local/Attestation")
        );
    }
    let views = vms(lab, "host02");
    let [view] = views.as_slice() else { panic!("{views:?}") };
    assert_eq!(
        (view.state, view.owner_host.as_str()),
        (VmState::Running, "host02"),
        "{output}"
    );
    assert_eq!(format!("{:?}", view.security.as_ref().unwrap().kind), "Shielded");
    assert_eq!(vms(lab, "host01")[0].state, VmState::OnAnotherHost);
}

#[test]
fn the_guides_deployment_in_tpm_mode() {
    with_lab("TPM mode", |lab| {
        let output = deployed(lab, "tpm-mode.ps1", include_str!("tpm-mode.ps1"));
        assert_moved(lab, &output);
        for shown in [
            "AttestationOperationMode       Tpm",
            "http://hgs.bastion.local/Attestation",
            "IsHostGuarded                  : True",
            "AttestationStatus              : Passed",
            "Overall Result: Pass",
        ] {
            assert!(output.contains(shown), "{shown}:\n{output}");
        }
        assert_eq!(listed(lab, "tpm-hosts").len(), 2);
        assert_eq!(listed(lab, "tpm-baselines").len(), 1);
        assert_eq!(listed(lab, "ci-policies").len(), 1);
        // Nothing was turned off to get there.
        let off = listed(lab, "policies")
            .iter()
            .filter(|policy| policy["enabled"] == false)
            .count();
        assert_eq!(off, 1, "BitLocker alone is off, as it is at first");

        // A host whose measurements are no longer those registered is told why, in the field's terms.
        lab.host("host01").unwrap().dials.secure_boot = false;
        let told = deployed(
            lab,
            "changed.ps1",
            "Invoke-Command -ComputerName host01 { Restart-Computer -Force; Test-HgsClientConfiguration }",
        );
        assert!(told.contains("InsecureHostConfiguration"), "{told}");
        assert!(told.contains("SecureBoot"), "{told}");
        let (_, recorder) = run(
            lab,
            "back.ps1",
            "Invoke-Command -ComputerName host02 { Move-VM -Name Shielded01 -DestinationHost host01 }",
        );
        let told = recorder.text(Stream::Error);
        assert!(told.contains("SecureBootEnabled"), "{told}");
        assert_eq!(vms(lab, "host02")[0].state, VmState::Running);
    });
}

#[test]
fn the_guides_deployment_in_host_key_mode() {
    with_lab("host-key mode", |lab| {
        let output = deployed(lab, "host-key-mode.ps1", include_str!("host-key-mode.ps1"));
        assert_moved(lab, &output);
        for shown in [
            "AttestationOperationMode       HostKey",
            "AttestationOperationMode       : HostKey",
        ] {
            assert!(output.contains(shown), "{shown}:\n{output}");
        }
        assert_eq!(listed(lab, "host-keys").len(), 2);

        // A host whose key is taken away is a stranger from its next attestation on.
        let told = deployed(
            lab,
            "removed.ps1",
            "Invoke-Command -ComputerName HGS01 { Remove-HgsAttestationHostKey -Name HOST01 }\n\
             Invoke-Command -ComputerName host01 { Test-HgsClientConfiguration }",
        );
        assert!(told.contains("UnauthorizedHost"), "{told}");
    });
}

#[test]
fn cmdlets_refuse_in_the_fields_terms_and_say_what_to_do() {
    with_lab("refusals", |lab| {
        let refused = |text: &str| {
            // What a remote block reports does not end the script around it.
            let (_, recorder) = run(lab, "refused.ps1", text);
            assert_ne!(recorder.text(Stream::Error), "", "{text}: {}", recorder.all());
            recorder.text(Stream::Error)
        };
        for (text, words) in [
            ("Get-HgsServer", "Install-WindowsFeature HostGuardianServiceRole"),
            (
                "Invoke-Command HGS01 { Get-HgsServer }",
                "Install-WindowsFeature HostGuardianServiceRole",
            ),
            ("Get-HgsClientConfiguration", "Host Guardian Hyper-V Support"),
            (
                "Invoke-Command HGS01 { Install-WindowsFeature Hyper-V }",
                "belongs elsewhere",
            ),
            (
                "Invoke-Command HGS01 { Install-WindowsFeature NoSuchRole }",
                "not valid",
            ),
            ("Get-HgsGuardian -Name Nobody", "no guardian named 'Nobody'"),
            ("Invoke-Command host01 { Get-VM }", "role is not installed"),
        ] {
            let told = refused(text);
            assert!(told.contains(words), "{text}: {told}");
        }
        let told = refused(
            "Invoke-Command HGS01 { Install-WindowsFeature HostGuardianServiceRole | Out-Null; Initialize-HgsServer -HgsServiceName \
             hgs -TrustTpm -SigningCertificateThumbprint 00 -EncryptionCertificateThumbprint 00 }",
        );
        assert!(told.contains("run Install-HgsServer first"), "{told}");
        let told = refused(
            "Invoke-Command HGS01 { $p = ConvertTo-SecureString -AsPlainText 'x' -Force; Install-HgsServer -HgsDomainName \
             bastion.local -SafeModeAdministratorPassword $p -Restart; Initialize-HgsServer -HgsServiceName hgs \
             -TrustActiveDirectory -SigningCertificateThumbprint 00 -EncryptionCertificateThumbprint 00 }",
        );
        assert!(told.contains("not built"), "{told}");
        let told = refused(
            "Invoke-Command host01 { Install-WindowsFeature Hyper-V, HostGuardian | Out-Null; New-VM -Name A -Generation 2 -NoVHD \
             | Out-Null; Enable-VMTPM -VMName A }",
        );
        assert!(told.contains("Set-VMKeyProtector"), "{told}");
        let told = refused("Invoke-Command host01 { Start-VM -Name A }");
        assert!(told.contains("virtual TPM"), "{told}");
        // Validation tells what the file would not show.
        let told = refused(r"Invoke-Command host01 { Get-HgsAttestationBaselinePolicy -Path C:\temp\b.tcglog }");
        assert!(told.contains("no code-integrity policy"), "{told}");
        let (ended, recorder) = run(
            lab,
            "skipped.ps1",
            r"Invoke-Command host01 { Get-HgsAttestationBaselinePolicy -Path C:\temp\b.tcglog -SkipValidation; (Get-Item C:\temp\b.tcglog).Length }",
        );
        assert_eq!(ended, Ended::Whole(true), "{}", recorder.all());
    });
}

#[test]
fn nothing_documented_of_the_products_modules_is_left_out() {
    let coverage = coverage(Table::builtin().unwrap(), &cmdlets::registry());
    let of_the_product = |row: &&Row| !row.module.starts_with("Microsoft.PowerShell");
    let rows: Vec<&Row> = coverage.cmdlets.iter().filter(of_the_product).collect();
    assert!(rows.len() > 100, "{} cmdlets", rows.len());
    for row in rows {
        assert_ne!(row.state, State::NotBuilt, "{}", row.cmdlet);
        for cell in &row.parameters {
            assert_ne!(cell.state, State::NotBuilt, "{} -{}", row.cmdlet, cell.parameter);
        }
    }
}
