//! Help tells of cmdlets that there are, with examples that bind.

use hgs_shell::{check, help, table::Table};

#[test]
fn help_names_cmdlets_that_there_are_and_its_examples_bind() {
    let table = Table::builtin().unwrap();
    let text = include_str!("../src/help.txt");
    let mut count = 0;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if line.starts_with("  ") {
            continue;
        }
        let (name, synopsis) = line.split_once(": ").unwrap();
        let cmdlet = table.find(name).unwrap_or_else(|| panic!("{name} is in no module"));
        assert_eq!(cmdlet.name, name);
        assert_eq!(help::synopsis(&name.to_lowercase()), Some(synopsis));
        assert!(synopsis.ends_with('.') && synopsis.len() < 110, "{synopsis}");
        for (example, what) in help::examples(name) {
            let lines = check::lines(example, table);
            assert!(
                lines.iter().all(check::Line::is_good),
                "{example}\n{}",
                check::report(&lines)
            );
            assert!(
                example.to_lowercase().contains(&name.to_lowercase()),
                "{example} is no example of {name}"
            );
            assert!(what.ends_with('.'), "{example}: {what}");
        }
        count += 1;
    }
    assert!(count > 60, "{count} cmdlets");
}

#[test]
fn the_syntax_is_that_of_the_table() {
    let table = Table::builtin().unwrap();
    let syntax = help::syntax(table.find("Set-HgsClientConfiguration").unwrap());
    assert!(
        syntax.contains(
            &"Set-HgsClientConfiguration -KeyProtectionServerUrl <String> -AttestationServerUrl <String> [-WhatIf] [-Confirm] \
              [<CommonParameters>]"
                .to_owned()
        ),
        "{syntax:?}"
    );
    let syntax = help::syntax(table.find("Get-HgsAttestationPolicy").unwrap());
    assert!(
        syntax[0].starts_with("Get-HgsAttestationPolicy [[-Name] <String>] [-State {Disabled | Enabled | Locked}]")
    );
}
