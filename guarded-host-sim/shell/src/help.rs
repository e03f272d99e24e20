//! Help: how cmdlets are called, from the table, and our own words and examples.

use std::{collections::BTreeMap, sync::LazyLock};

use crate::table::{Cmdlet, Kind, Member};

/// One line for each way of calling a cmdlet, in the notation of PowerShell's help.
pub fn syntax(cmdlet: &Cmdlet) -> Vec<String> {
    let item = |member: &Member| -> Option<String> {
        let parameter = cmdlet
            .parameters
            .get(member.parameter)
            .filter(|parameter| !parameter.common)?;
        let name = match member.position {
            Some(_) => format!("[-{}]", parameter.name),
            None => format!("-{}", parameter.name),
        };
        let with_type = match (&parameter.kind, parameter.values.is_empty()) {
            (Kind::Switch, _) => format!("-{}", parameter.name),
            (_, false) => format!("{name} {{{}}}", parameter.values.join(" | ")),
            (_, true) => format!("{name} <{}>", parameter.type_name()),
        };
        Some(match member.mandatory {
            true => with_type,
            false => format!("[{with_type}]"),
        })
    };
    let line = |set: &crate::table::Set| {
        let mut parts = vec![cmdlet.name.clone()];
        parts.extend(set.members.iter().filter_map(item));
        if cmdlet.confirm {
            parts.push("[-WhatIf] [-Confirm]".to_owned());
        }
        parts.push("[<CommonParameters>]".to_owned());
        parts.join(" ")
    };
    cmdlet.sets.iter().map(line).collect()
}

/// What a cmdlet does, in a sentence.
pub fn synopsis(cmdlet: &str) -> Option<&'static str> {
    Some(TEXTS.get(cmdlet.to_ascii_lowercase().as_str())?.synopsis)
}

/// Examples, each with what it does.
pub fn examples(cmdlet: &str) -> &'static [(&'static str, &'static str)] {
    TEXTS
        .get(cmdlet.to_ascii_lowercase().as_str())
        .map_or(&[], |texts| &texts.examples)
}

struct Texts {
    synopsis: &'static str,
    examples: Vec<(&'static str, &'static str)>,
}

/// `Cmdlet: what it does`, then `  example | what it does`.
static TEXTS: LazyLock<BTreeMap<String, Texts>> = LazyLock::new(|| {
    let mut all: BTreeMap<String, Texts> = BTreeMap::new();
    let mut last = String::new();
    for line in include_str!("help.txt").lines().filter(|line| !line.starts_with('#')) {
        match (line.strip_prefix("  "), line.split_once(": ")) {
            (Some(example), _) => {
                let (text, what) = example.rsplit_once(" | ").unwrap_or((example, ""));
                if let Some(texts) = all.get_mut(&last) {
                    texts.examples.push((text.trim(), what.trim()));
                }
            }
            (None, Some((name, synopsis))) => {
                last = name.to_ascii_lowercase();
                let texts = Texts {
                    synopsis,
                    examples: Vec::new(),
                };
                all.insert(last.clone(), texts);
            }
            (None, None) => {}
        }
    }
    all
});
