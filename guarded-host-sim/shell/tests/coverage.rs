//! Holds the coverage table against the module reference: no documented cmdlet or parameter is missing.

use std::collections::BTreeSet;

use hgs_shell::{cmdlets::Registry, coverage::coverage, table::Table};

#[test]
fn no_documented_cmdlet_or_parameter_is_missing() {
    let table = coverage(Table::builtin().unwrap(), &Registry::builtin());
    let documented = include_str!("data/reference.txt")
        .lines()
        .filter(|line| !line.starts_with('#'));
    let mut seen = BTreeSet::new();
    for line in documented {
        let mut words = line.split(' ');
        let (module, cmdlet) = (words.next().unwrap(), words.next().unwrap());
        let row = table.cmdlets.iter().find(|row| row.cmdlet == cmdlet);
        let row = row.unwrap_or_else(|| panic!("{cmdlet} is missing"));
        assert_eq!(row.module, module, "{cmdlet}");
        assert!(!row.beyond_reference, "{cmdlet}");
        let listed = |cell: &&hgs_shell::coverage::Cell| !cell.beyond_reference;
        let own: BTreeSet<&str> = row
            .parameters
            .iter()
            .filter(listed)
            .map(|c| c.parameter.as_str())
            .collect();
        assert_eq!(own, words.collect(), "the parameters of {cmdlet}");
        seen.insert(cmdlet);
    }
    assert!(seen.len() >= 65, "{} cmdlets", seen.len());
    let modules: BTreeSet<&str> = [
        "HgsServer",
        "HgsAttestation",
        "HgsKeyProtection",
        "HgsClient",
        "HgsDiagnostics",
    ]
    .into();
    for row in table.cmdlets.iter().filter(|row| modules.contains(row.module.as_str())) {
        assert!(
            seen.contains(row.cmdlet.as_str()) != row.beyond_reference,
            "{} is either in the reference or marked as beyond it",
            row.cmdlet
        );
    }
}

#[test]
fn implementations_name_cmdlets_and_parameters_that_there_are() {
    let table = Table::builtin().unwrap();
    for own in Registry::builtin().all() {
        let cmdlet = table
            .find(own.cmdlet)
            .unwrap_or_else(|| panic!("{} is in no module", own.cmdlet));
        let reasons = own.without_effect.iter().chain(own.rejected);
        let names = own.implemented.iter().chain(reasons.clone().map(|(name, _)| name));
        let mut once = BTreeSet::new();
        for name in names {
            let parameter = cmdlet.parameters.iter().find(|parameter| parameter.name == *name);
            assert!(parameter.is_some_and(|p| !p.common), "{} -{name}", own.cmdlet);
            assert!(once.insert(*name), "{} -{name} has two states", own.cmdlet);
        }
        for (name, reason) in reasons {
            assert!(reason.len() > 10, "{} -{name}: why?", own.cmdlet);
        }
    }
}
