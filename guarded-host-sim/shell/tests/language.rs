//! Scripts and what they print, as Windows PowerShell prints it. Each file in `language/` is a table: a script after `>>> `
//! (more lines after `... `), then what comes out, errors included, until the next one.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::Path, rc::Rc};

use hgs_shell::{
    cmdlets::Registry,
    console::{Recorder, Stream},
    session::{Ended, Session},
    world::Alone,
};

/// A shell on a machine without a fabric, what it writes, and the folder with its files.
fn shell(answers: &[&str]) -> (Session, Recorder, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let recorder = Recorder::with_answers(answers);
    let world = Rc::new(Alone::new("WS01", folder.path().to_path_buf()));
    let session = Session::new(world, Registry::builtin(), Box::new(recorder.clone())).unwrap();
    (session, recorder, folder)
}

fn output(script: &str) -> String {
    let (mut session, recorder, _folder) = shell(&[]);
    session.run(script);
    recorder.all()
}

struct Case {
    line: usize,
    script: String,
    expected: String,
}

fn cases(text: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.starts_with('#') && cases.is_empty() {
            continue;
        }
        match (line.strip_prefix(">>> "), line.strip_prefix("... "), cases.last_mut()) {
            (Some(script), _, _) => cases.push(Case {
                line: index + 1,
                script: script.to_owned(),
                expected: String::new(),
            }),
            (None, Some(more), Some(case)) if case.expected.is_empty() => {
                case.script.push('\n');
                case.script.push_str(more);
            }
            (None, _, Some(case)) => {
                case.expected.push_str(line);
                case.expected.push('\n');
            }
            (None, _, None) => {}
        }
    }
    cases
}

/// Without the blank lines at both ends, which the tables leave out.
fn trimmed(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    let from = lines.iter().position(|line| !line.is_empty()).unwrap_or(lines.len());
    let to = lines
        .iter()
        .rposition(|line| !line.is_empty())
        .map_or(from, |at| at + 1);
    lines[from..to].join("\n")
}

#[test]
fn scripts_print_what_powershell_prints() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/language");
    let mut wrong = Vec::new();
    let mut count = 0;
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for case in cases(&text) {
            count += 1;
            let came = trimmed(&output(&case.script));
            let expected = trimmed(&case.expected);
            if came != expected {
                let name = file.file_name().unwrap().to_string_lossy().into_owned();
                wrong.push(format!(
                    "{name}:{}\n{}\n--- expected\n{expected}\n--- came\n{came}\n",
                    case.line, case.script
                ));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {count} are wrong\n\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(count > 150, "{count} scripts");
}

#[test]
fn a_missing_parameter_is_asked_for_by_an_interactive_shell_and_fails_a_script() {
    let (mut session, recorder, _folder) = shell(&["C:\\temp", "", "a.txt"]);
    assert_eq!(session.run("Join-Path"), Ended::Whole(true));
    let asked = "\ncmdlet Join-Path at command pipeline position 1\nSupply values for the following parameters:\n";
    let all = recorder.all();
    assert!(all.starts_with(asked), "{all}");
    assert!(all.ends_with("C:\\temp\\a.txt\n"), "{all}");

    let (mut session, recorder, _folder) = shell(&[]);
    assert_eq!(session.run("Join-Path"), Ended::Whole(false));
    let error = recorder.text(Stream::Error);
    assert!(
        error.starts_with(
            "Join-Path : Cannot process command because of one or more missing mandatory parameters: Path ChildPath."
        ),
        "{error}"
    );
    assert!(
        error.contains("FullyQualifiedErrorId : MissingMandatoryParameter,"),
        "{error}"
    );
}

#[test]
fn secrets_are_never_shown() {
    for script in [
        "ConvertTo-SecureString ('hunt' + 'er2') -AsPlainText -Force",
        "$p = ConvertTo-SecureString ('hunt' + 'er2') -AsPlainText -Force; \"$p\"; $p | Format-List *; $p | Out-String; $p | ConvertTo-Json",
        "$p = ConvertTo-SecureString ('hunt' + 'er2') -AsPlainText -Force; New-Object PSCredential 'me', $p | Format-List",
        "$p = ConvertTo-SecureString ('hunt' + 'er2') -AsPlainText -Force; [int]$p",
        "$p = ConvertTo-SecureString ('hunt' + 'er2') -AsPlainText -Force; Get-Content -Path $p",
    ] {
        let all = output(script);
        assert!(!all.is_empty(), "{script}");
        assert!(!all.contains("hunter2"), "{script}\n{all}");
    }
}

#[test]
fn paths_stay_below_the_machine() {
    let (mut session, _recorder, folder) = shell(&[]);
    let outside = folder.path().parent().unwrap().join("escaped.txt");
    for path in [
        r"C:\..\..\escaped.txt",
        r"..\..\..\..\..\..\escaped.txt",
        r"C:/../../escaped.txt",
        r"\\WS01\C$\..\..\..\escaped.txt",
        r"C:\temp\..\..\..\escaped.txt",
    ] {
        session.run(&format!("Set-Content -Path '{path}' -Value 'x' -Encoding UTF8"));
        assert!(!outside.exists(), "{path}");
    }
    std::os::unix::fs::symlink("/etc", folder.path().join("C/temp/link")).unwrap();
    let (mut session, recorder, _keep) = {
        let recorder = Recorder::default();
        let world = Rc::new(Alone::new("WS01", folder.path().to_path_buf()));
        let session = Session::new(world, Registry::builtin(), Box::new(recorder.clone())).unwrap();
        (session, recorder, ())
    };
    session.run(r"Get-Content C:\temp\link\hostname");
    assert!(
        recorder.text(Stream::Error).contains("Access to the path"),
        "{}",
        recorder.all()
    );
    assert_eq!(recorder.text(Stream::Output), "");
}

#[test]
fn files_are_real_and_found_in_any_case() {
    let (mut session, recorder, folder) = shell(&[]);
    session.run(r"'one','two' | Out-File C:\Temp\A.txt -Encoding ascii; Get-Content c:\TEMP\a.TXT");
    assert_eq!(recorder.all(), "one\ntwo\n");
    let bytes = fs::read(folder.path().join("C/temp/A.txt")).unwrap();
    assert_eq!(bytes, b"one\r\ntwo\r\n");
    session.run(r"'é' | Out-File C:\temp\wide.txt; Get-Content C:\temp\wide.txt");
    assert_eq!(
        fs::read(folder.path().join("C/temp/wide.txt")).unwrap()[..4],
        [0xFF, 0xFE, 0xE9, 0x00]
    );
    assert!(recorder.all().ends_with("é\n"));
}

#[test]
fn exit_codes_are_the_scripts_own() {
    let ended = |script: &str| {
        let (mut session, _recorder, _folder) = shell(&[]);
        session.run(script)
    };
    assert_eq!(ended("exit 7"), Ended::Exit(7));
    assert_eq!(ended("function f { exit 3 }; f; 'never'"), Ended::Exit(3));
    assert_eq!(ended("throw 'no'"), Ended::Failed);
    assert_eq!(ended("Get-Item C:\\nowhere"), Ended::Whole(false));
    assert_eq!(ended("Get-Item C:\\nowhere -ErrorAction Stop; 'never'"), Ended::Failed);
    assert_eq!(ended("Get-Item C:\\nowhere; 'fine'"), Ended::Whole(true));
    assert_eq!(ended("1 +"), Ended::Failed);
}

#[test]
fn what_is_outside_of_the_subset_says_so_with_its_place() {
    for (script, what, place) in [
        ("'x'\nswitch (1) { 1 { 'one' } }", "'switch'", "At line:2 char:1"),
        ("class Host { }", "'class'", "At line:1 char:1"),
        (
            "$x = [System.Net.WebClient]::new()",
            "System.Net.WebClient",
            "At line:1 char:6",
        ),
        ("Get-Date -UFormat '%Y'", "refused", "At line:1 char:1"),
        ("'a' -replace 'a', { 'b' }", "script block", "At line:1 char:1"),
        ("Start-ShieldedThing", "not recognized", "At line:1 char:1"),
        (
            "Add-HgsAttestationTpmHost -Path <Path>",
            "must be filled in",
            "At line:1 char:33",
        ),
    ] {
        let all = output(script);
        assert!(all.contains(what), "{script}\n{all}");
        assert!(all.contains(place), "{script}\n{all}");
    }
}
