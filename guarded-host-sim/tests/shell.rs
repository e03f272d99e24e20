//! The administrators' shell as a program.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

fn shell(arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_guarded-host-sim");
    Command::new(program).arg("shell").args(arguments).output().unwrap()
}

fn check(file: &Path) -> (Option<i32>, Vec<Value>) {
    let output = shell(&["--check", file.to_str().unwrap(), "--json"]);
    let lines = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code(), lines)
}

fn corpus_file() -> PathBuf {
    let folder = std::env::var_os("LAB_CORPUS").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/corpus")),
        PathBuf::from,
    );
    folder.join("cmdlet-lines.txt")
}

#[test]
fn of_the_lines_of_guides_and_scripts_at_least_95_in_100_bind() {
    let file = corpus_file();
    if !file.exists() {
        println!("skipped: {} is not there", file.display());
        return;
    }
    let (code, lines) = check(&file);
    assert_eq!(code, Some(1), "some lines are no calls that the product takes");
    let good = |line: &&Value| line["parsed"] == true && line["known"] == true && line["bound"] == true;
    let (bound, all) = (lines.iter().filter(good).count(), lines.len());
    assert!(all >= 150, "{all} lines");
    assert!(bound * 100 >= all * 95, "{bound} of {all}");
    for line in lines.iter().filter(|line| !good(line)) {
        let remarks = line["remarks"].as_array().unwrap();
        assert!(
            remarks.iter().any(|r| r["error"] == true),
            "{line} is refused without a reason"
        );
        println!("{}: {}", line["text"], remarks[0]["text"]);
    }
}

#[test]
fn each_line_is_judged_with_reason_and_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lines.txt");
    let text = "# a comment\n\
                add-hgsattestationcipolicy -name 'a' -PATH b.p7b\n\
                Set-HgsClientConfiguration -AttestationServerUrl http://hgs/Attestation\n\
                Get-HgsSever\n\
                Get-HgsServer | )\n\
                Add-HgsAttestationTpmHost -Path <Path> -Name <HostName>\n";
    fs::write(&file, text).unwrap();
    let (code, lines) = check(&file);
    assert_eq!(code, Some(1));
    let state = |line: &Value| {
        let flag = |name: &str| line[name].as_bool().unwrap();
        (
            line["line"].as_u64().unwrap(),
            flag("parsed"),
            flag("known"),
            flag("bound"),
        )
    };
    let states: Vec<_> = lines.iter().map(state).collect();
    assert_eq!(
        states,
        [
            (2, true, true, true),
            (3, true, true, false),
            (4, true, false, false),
            (5, false, false, false),
            (6, true, true, true),
        ]
    );
    assert_eq!(lines[0]["calls"][0]["cmdlet"], "Add-HgsAttestationCIPolicy");
    assert_eq!(lines[0]["calls"][0]["set"], "File");
    let remark = |line: usize| lines[line]["remarks"][0].clone();
    assert!(
        remark(1)["text"]
            .as_str()
            .unwrap()
            .ends_with("parameters: KeyProtectionServerUrl.")
    );
    assert!(
        remark(2)["text"]
            .as_str()
            .unwrap()
            .ends_with("Did you mean Get-HgsServer?")
    );
    assert_eq!(remark(3)["at"]["column"], 17);
    assert_eq!(remark(4)["error"], false, "what must be filled in is told");
    let output = shell(&["--check", file.to_str().unwrap()]);
    let report = String::from_utf8(output.stdout).unwrap();
    assert!(
        report.ends_with("5 lines: 4 parsed, 3 with known cmdlets only, 2 bound (40.0 %)\n"),
        "{report}"
    );
}

#[test]
fn a_script_is_checked_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("deploy.ps1");
    let script = "foreach ($name in 'host01', 'host02') {\n    \
                  Add-HgsAttestationTpmHost -Name $name `\n        -Path \"C:\\hosts\\$name.xml\"\n}\n\
                  switch (1) { 1 { Get-HgsServer } }\n";
    fs::write(&file, script).unwrap();
    let (code, lines) = check(&file);
    assert_eq!((code, lines.len()), (Some(1), 1));
    let remark = &lines[0]["remarks"][0];
    assert!(
        remark["text"]
            .as_str()
            .unwrap()
            .contains("'switch' is PowerShell, but outside"),
        "{remark}"
    );
    assert_eq!((&remark["at"]["line"], &remark["at"]["column"]), (&5.into(), &1.into()));
    fs::write(&file, script.split("switch").next().unwrap()).unwrap();
    assert_eq!(check(&file).0, Some(0));
}

#[test]
fn commands_and_scripts_run_and_their_exit_codes_are_theirs() {
    let output = shell(&["-NoProfile", "-Command", "1..3 | ForEach-Object { $_ * 2 }"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "2\n4\n6\n");
    assert_eq!(output.status.code(), Some(0));

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("double.ps1");
    let script = "param([Parameter(Mandatory)][int]$Number, [switch]$Loud)\n\
                  if ($Loud) { \"$($Number * 2)!\" } else { $Number * 2 }\nif ($Number -gt 10) { exit 4 }\n";
    fs::write(&file, script).unwrap();
    let file = file.to_str().unwrap();
    let output = shell(&["-File", file, "-Number", "4", "-Loud"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "8!\n");
    let output = shell(&["-File", file, "11"]);
    assert_eq!(
        (String::from_utf8_lossy(&output.stdout).as_ref(), output.status.code()),
        ("22\n", Some(4))
    );
    let output = shell(&["-File", file]);
    assert!(output.stdout.is_empty());
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(errors.contains("missing mandatory parameters: Number."), "{errors}");

    let output = shell(&["-Command", "Get-Item C:\\nowhere"]);
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(errors.contains("FullyQualifiedErrorId : PathNotFound,"), "{errors}");

    // As one published guide prints it: a script has nobody to ask.
    let line = "Set-HgsClientConfiguration -AttestationServerUrl http://hgs.bastion.local/Attestation; 'after'";
    let output = shell(&["-Command", line]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "after\n", "{errors}");
}

#[test]
fn objects_are_json_for_machines() {
    let output = shell(&[
        "-Json",
        "-Command",
        "[pscustomobject]@{ Name = 'HOST01'; Urls = @('a', 'b') }",
    ]);
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value, serde_json::json!({ "Name": "HOST01", "Urls": ["a", "b"] }));
}

#[test]
fn machines_keep_their_files_apart_and_between_shells() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().to_str().unwrap();
    let script = "Set-Content C:\\temp\\own.txt 'here'; Invoke-Command -ComputerName HOST01 { Test-Path C:\\temp\\own.txt; \
                  Set-Content C:\\temp\\there.txt $env:COMPUTERNAME }";
    let output = shell(&["--folder", kept, "-Command", script]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "False\n");
    let output = shell(&[
        "--folder",
        kept,
        "-Command",
        "Get-Content \\\\HOST01\\C$\\temp\\there.txt",
    ]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "HOST01\n");
}

#[test]
fn lines_are_read_from_somebody_until_exit() {
    use std::{io::Write, process::Stdio};
    let program = env!("CARGO_BIN_EXE_guarded-host-sim");
    let mut child = Command::new(program)
        .arg("shell")
        .env("TERM", "xterm") // a dumb terminal would be shown the prompt even through a pipe
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = "$x = 20\nforeach ($i in 1..2) {\n  $i + $x\n}\nEnter-PSSession HOST02\n$env:COMPUTERNAME\nexit\n\
                 \"$x on $env:COMPUTERNAME\"\nGet-Nothing\n(Get-History).Count\nexit 3\n'never'\n";
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let shown: Vec<&str> = text.lines().collect();
    assert_eq!(shown, ["21", "22", "HOST02", "20 on WS01", "8"]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(errors.contains("The term 'Get-Nothing' is not recognized"), "{errors}");
}
