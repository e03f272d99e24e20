//! Reads the table. Its notation is that of PowerShell's own help, one cmdlet after the other:
//!
//! ```text
//! module HgsAttestation
//!
//! Add-HgsAttestationCIPolicy [confirm] -> AttestationPolicyInfo
//!   File*: [-Path] <String> [-Name <String>] -Required <Int32> [-Switch]
//!   aliases Path=FilePath,PSPath; Name=N
//!   pipeline Path=value+property
//!   values PolicyVersion=None, v1, v2
//! ```
//!
//! In brackets after the name: `cim` and `confirm` bring the parameters that such cmdlets have in common,
//! `beyond` says that the module reference does not name the cmdlet. Then, after an arrow, what it gives.
//! Each set has a name (`-` where there is but one, `*` behind the one that counts in doubt) and its
//! parameters: `[-X] <T>` may stand without its name, in the order of writing; a whole in brackets is
//! optional. `beyond` lists parameters that the reference does not name, `rest` those that take all
//! values that are left. A line that begins with six blanks goes on with the one above. `aliases` at the
//! beginning of a line names short forms of cmdlets.

use std::collections::HashMap;

use super::{Cmdlet, Kind, Member, Parameter, Set, Table};

/// The table's text is not in its notation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the table of cmdlets, at {line:?}: {reason}")]
pub struct TableError {
    line: String,
    reason: &'static str,
}

pub(super) fn builtin() -> Result<Table, TableError> {
    read(&[
        include_str!("data/hgs.txt"),
        include_str!("data/hyper-v.txt"),
        include_str!("data/windows.txt"),
        include_str!("data/core.txt"),
    ])
}

fn read(texts: &[&str]) -> Result<Table, TableError> {
    let mut cmdlets: Vec<Cmdlet> = Vec::new();
    let mut aliases = HashMap::new();
    for text in texts {
        let mut module = "";
        for line in joined(text) {
            let wrong = |reason| TableError {
                line: line.clone(),
                reason,
            };
            if let Some(name) = line.strip_prefix("module ") {
                // Lives as long as the text, unlike the line.
                module = text
                    .lines()
                    .find_map(|l| l.strip_prefix("module ").filter(|m| *m == name))
                    .unwrap_or("");
            } else if let Some(list) = line.strip_prefix("aliases ") {
                for pair in list.split(',') {
                    let (alias, target) = pair
                        .trim()
                        .split_once('=')
                        .ok_or_else(|| wrong("an alias without target"))?;
                    aliases.insert(alias.to_ascii_lowercase(), target.to_ascii_lowercase());
                }
            } else if let Some(line) = line.strip_prefix("  ") {
                let cmdlet = cmdlets.last_mut().ok_or_else(|| wrong("no cmdlet before it"))?;
                detail(cmdlet, line).map_err(wrong)?;
            } else {
                cmdlets.push(head(&line, module).map_err(wrong)?);
            }
        }
    }
    for cmdlet in &mut cmdlets {
        add_common(cmdlet);
        for parameter in &mut cmdlet.parameters {
            settle(parameter);
        }
    }
    let mut by_name = HashMap::new();
    for (index, cmdlet) in cmdlets.iter().enumerate() {
        if by_name.insert(cmdlet.name.to_ascii_lowercase(), index).is_some() {
            return Err(TableError {
                line: cmdlet.name.clone(),
                reason: "it stands there twice",
            });
        }
    }
    Ok(Table {
        cmdlets,
        by_name,
        aliases,
    })
}

/// Lines without comments and empty ones, each with what continues it.
fn joined(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for line in text
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
    {
        let continues = line.starts_with("      ")
            || (line.starts_with("    ") && lines.last().is_some_and(|l| l.starts_with("aliases")));
        match lines.last_mut() {
            Some(last) if continues => {
                last.push(' ');
                last.push_str(line.trim());
            }
            _ => lines.push(line.trim_end().to_owned()),
        }
    }
    lines
}

fn head(line: &str, module: &str) -> Result<Cmdlet, &'static str> {
    let (line, outputs) = line.split_once(" -> ").unwrap_or((line, ""));
    let (name, flags) = line.split_once(" [").unwrap_or((line, "]"));
    let flags = flags.strip_suffix(']').ok_or("flags without a closing bracket")?;
    let mut cmdlet = Cmdlet {
        name: name.to_owned(),
        module: module.to_owned(),
        cim: false,
        confirm: false,
        beyond: false,
        outputs: words(outputs),
        parameters: Vec::new(),
        sets: Vec::new(),
        default_set: None,
    };
    for flag in words(flags) {
        match flag.as_str() {
            "cim" => cmdlet.cim = true,
            "confirm" => cmdlet.confirm = true,
            "beyond" => cmdlet.beyond = true,
            _ => return Err("an unknown flag"),
        }
    }
    if module.is_empty() || !name.contains('-') || name.contains(' ') {
        return Err("neither a module, a cmdlet nor one of its lines");
    }
    Ok(cmdlet)
}

fn detail(cmdlet: &mut Cmdlet, line: &str) -> Result<(), &'static str> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    let find = |cmdlet: &mut Cmdlet, name: &str| {
        let found = cmdlet.parameters.iter().position(|p| p.name == name.trim());
        found.ok_or("a parameter that no set has")
    };
    match word {
        "aliases" => {
            for entry in rest.split(';') {
                let (name, aliases) = entry.split_once('=').ok_or("an alias without parameter")?;
                let index = find(cmdlet, name)?;
                cmdlet.parameters[index].aliases = words(aliases);
            }
        }
        "pipeline" => {
            for entry in rest.split(';') {
                let (name, ways) = entry.split_once('=').ok_or("pipeline input without parameter")?;
                let index = find(cmdlet, name)?;
                for way in ways.split('+') {
                    match way.trim() {
                        "value" => cmdlet.parameters[index].by_value = true,
                        "property" => cmdlet.parameters[index].by_property = true,
                        _ => return Err("pipeline input is by value or by property"),
                    }
                }
            }
        }
        "values" => {
            let (name, values) = rest.split_once('=').ok_or("values without parameter")?;
            let index = find(cmdlet, name)?;
            cmdlet.parameters[index].values = words(values);
        }
        "beyond" | "rest" => {
            for name in words(rest) {
                let index = find(cmdlet, &name)?;
                match word {
                    "rest" => cmdlet.parameters[index].rest = true,
                    _ => cmdlet.parameters[index].beyond = true,
                }
            }
        }
        _ => {
            let name = word.strip_suffix(':').ok_or("a set's name ends with a colon")?;
            let (name, is_default) = match name.strip_suffix('*') {
                Some(name) => (name, true),
                None => (name, false),
            };
            if is_default {
                cmdlet.default_set = Some(cmdlet.sets.len());
            }
            let members = members(cmdlet, rest)?;
            cmdlet.sets.push(Set {
                name: if name == "-" { String::new() } else { name.to_owned() },
                members,
            });
        }
    }
    Ok(())
}

/// `[-X] <T>`, `[[-X] <T>]`, `-X <T>`, `[-X <T>]`, `-X`, `[-X]`.
fn members(cmdlet: &mut Cmdlet, text: &str) -> Result<Vec<Member>, &'static str> {
    let mut members = Vec::new();
    let mut position = 0;
    let mut rest = text.trim();
    while !rest.is_empty() {
        let end = item_end(rest).ok_or("brackets that do not close")?;
        let (item, after) = rest.split_at(end);
        rest = after.trim_start();
        // A type that follows in the next item: `[-X] <T>` is one whole.
        let (item, is_positional, mandatory) = match rest.strip_prefix('<') {
            Some(_) if !item.contains('<') => {
                let end = rest.find('>').ok_or("a type that does not close")? + 1;
                let (type_text, after) = rest.split_at(end);
                rest = after.trim_start();
                let bracketed = item.starts_with('[');
                (
                    format!("{} {type_text}", item.trim_matches(['[', ']'])),
                    bracketed,
                    true,
                )
            }
            _ => match item.strip_prefix("[[").and_then(|inner| inner.strip_suffix(']')) {
                Some(inner) => (inner.replacen(']', "", 1), true, false),
                None => match item.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')) {
                    Some(inner) => (inner.to_owned(), false, false),
                    None => (item.to_owned(), false, true),
                },
            },
        };
        let (name, type_text) = item.split_once(' ').unwrap_or((&item, ""));
        let name = name.strip_prefix('-').ok_or("a parameter begins with a dash")?;
        let type_text = match type_text {
            "" => "",
            text => text
                .strip_prefix('<')
                .and_then(|t| t.strip_suffix('>'))
                .ok_or("a type stands between < and >")?,
        };
        let (kind, many) = kind(type_text);
        let parameter = match cmdlet.parameters.iter().position(|p| p.name == name) {
            Some(index) => index,
            None => {
                cmdlet.parameters.push(parameter(name, kind, many));
                cmdlet.parameters.len() - 1
            }
        };
        members.push(Member {
            parameter,
            mandatory,
            position: is_positional.then(|| {
                position += 1;
                position - 1
            }),
        });
    }
    Ok(members)
}

/// Where the first item ends: at a blank outside of brackets.
fn item_end(text: &str) -> Option<usize> {
    let mut level = 0_i32;
    for (at, c) in text.char_indices() {
        match c {
            '[' | '<' => level += 1,
            ']' | '>' => level -= 1,
            ' ' if level == 0 => return Some(at),
            _ => {}
        }
    }
    (level == 0).then_some(text.len())
}

fn parameter(name: &str, kind: Kind, many: bool) -> Parameter {
    Parameter {
        name: name.to_owned(),
        aliases: Vec::new(),
        kind,
        many,
        values: Vec::new(),
        by_value: false,
        by_property: false,
        rest: false,
        beyond: false,
        common: false,
    }
}

fn kind(text: &str) -> (Kind, bool) {
    let (name, many) = match text.strip_suffix("[]") {
        Some(name) => (name, true),
        None => (text, false),
    };
    let integer = |name, lowest, greatest| Kind::Integer { name, lowest, greatest };
    let kind = match name {
        "" => Kind::Switch,
        "String" | "Char" => Kind::Text,
        "Boolean" => Kind::Boolean,
        "Int16" => integer("Int16", i16::MIN.into(), i16::MAX.into()),
        "UInt16" => integer("UInt16", 0, u16::MAX.into()),
        "Int32" => integer("Int32", i32::MIN.into(), i32::MAX.into()),
        "UInt32" => integer("UInt32", 0, u32::MAX.into()),
        "Int64" => integer("Int64", i64::MIN, i64::MAX),
        "UInt64" => integer("UInt64", 0, i64::MAX),
        "Double" | "Single" => Kind::Real,
        "DateTime" => Kind::Date,
        "Byte" if many => return (Kind::Bytes, false),
        "SecureString" => Kind::SecureString,
        "PSCredential" => Kind::Credential,
        "ScriptBlock" => Kind::Block,
        "Hashtable" | "IDictionary" => Kind::Hashtable,
        "XmlDocument" => Kind::Xml,
        "Object" | "PSObject" => Kind::Any,
        other => Kind::Object {
            name: other.to_owned(),
            from_text: FROM_TEXT.contains(&other),
        },
    };
    (kind, many)
}

/// A type with named values is an enumeration, or text or a number of which only these are allowed.
fn settle(parameter: &mut Parameter) {
    if let (Kind::Object { name, .. }, false) = (&parameter.kind, parameter.values.is_empty()) {
        parameter.kind = Kind::Enumeration(name.clone());
    }
}

fn words(text: &str) -> Vec<String> {
    text.split(',')
        .map(str::trim)
        .filter(|w| !w.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Parameters that cmdlets have without saying so.
fn add_common(cmdlet: &mut Cmdlet) {
    let mut add = |name: &str, alias: &str, type_text: &str, values: &[&str]| {
        if cmdlet.parameters.iter().any(|p| p.is_called(name)) {
            return;
        }
        let (kind, many) = kind(type_text);
        let mut new = parameter(name, kind, many);
        new.aliases = words(alias);
        new.values = values.iter().map(|v| (*v).to_owned()).collect();
        new.common = true;
        let index = cmdlet.parameters.len();
        cmdlet.parameters.push(new);
        for set in &mut cmdlet.sets {
            set.members.push(Member {
                parameter: index,
                mandatory: false,
                position: None,
            });
        }
    };
    if cmdlet.cim {
        add("CimSession", "Session", "CimSession[]", &[]);
        add("ThrottleLimit", "", "Int32", &[]);
        add("AsJob", "", "", &[]);
    }
    if cmdlet.confirm {
        add("WhatIf", "wi", "", &[]);
        add("Confirm", "cf", "", &[]);
    }
    add("Verbose", "vb", "", &[]);
    add("Debug", "db", "", &[]);
    add("ErrorAction", "ea", "ActionPreference", &PREFERENCES);
    add("WarningAction", "wa", "ActionPreference", &PREFERENCES);
    add("InformationAction", "infa", "ActionPreference", &PREFERENCES);
    for (name, alias) in [
        ("ErrorVariable", "ev"),
        ("WarningVariable", "wv"),
        ("InformationVariable", "iv"),
        ("OutVariable", "ov"),
        ("PipelineVariable", "pv"),
    ] {
        add(name, alias, "String", &[]);
    }
    add("OutBuffer", "ob", "Int32", &[]);
}

const PREFERENCES: [&str; 6] = ["SilentlyContinue", "Stop", "Continue", "Inquire", "Ignore", "Suspend"];

/// Types whose objects PowerShell makes from text: names, paths, versions.
const FROM_TEXT: [&str; 22] = [
    "ADGroup",
    "ADServiceAccount",
    "CultureInfo",
    "FileAttributes",
    "FileNameLevel",
    "FlagsExpression[FileAttributes]",
    "Feature",
    "Guid",
    "IPAddress",
    "NamedFileContent",
    "CodeIntegrityPolicy",
    "TimeSpan",
    "Type",
    "Uri",
    "Version",
    "X509Certificate2",
    "Certificate",
    "Encoding",
    "WebRequestMethod",
    "CimSession",
    "InputTarget",
    "RuleLevel",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_its_notation() {
        let table = builtin().unwrap();
        assert!(table.cmdlets().len() > 150, "{}", table.cmdlets().len());
        for cmdlet in table.cmdlets() {
            assert!(!cmdlet.sets.is_empty(), "{} has no set", cmdlet.name);
            assert!(
                cmdlet.sets.len() == 1 || cmdlet.sets.iter().all(|set| !set.name.is_empty()),
                "{}",
                cmdlet.name
            );
        }
        for (alias, target) in table.aliases() {
            assert!(table.find(target).is_some(), "{alias} stands for {target}");
            assert!(table.find(alias).is_some(), "{alias}");
        }
    }

    #[test]
    fn the_notation_means_what_it_says() {
        let text = "module M\n\nGet-It [cim, confirm] -> Thing, Other\n  \
                    One*: [-Path] <String> [[-Next] <Int32[]>] -Must <Level> [-May <String>]\n      [-Switch]\n  \
                    Two: -Force [-Path] <String>\n  aliases Path=FilePath,P\n  pipeline Path=value+property\n  \
                    values Must=A, B\n  rest Next\n  beyond May\n";
        let table = read(&[text]).unwrap();
        let cmdlet = table.find("m\\GET-it").unwrap();
        assert_eq!(cmdlet.outputs, ["Thing", "Other"]);
        assert_eq!(cmdlet.default_set, Some(0));
        let [one, two] = cmdlet.sets.as_slice() else { panic!() };
        let shape = |set: &Set| -> Vec<(String, bool, Option<usize>)> {
            let own = set.members.iter().filter(|m| !cmdlet.parameters[m.parameter].common);
            own.map(|m| (cmdlet.parameters[m.parameter].name.clone(), m.mandatory, m.position))
                .collect()
        };
        let row = |name: &str, mandatory, position| (name.to_owned(), mandatory, position);
        assert_eq!(
            shape(one),
            [
                row("Path", true, Some(0)),
                row("Next", false, Some(1)),
                row("Must", true, None),
                row("May", false, None),
                row("Switch", false, None)
            ]
        );
        assert_eq!(shape(two), [row("Force", true, None), row("Path", true, Some(0))]);
        let path = cmdlet.parameter("filepath").unwrap();
        assert!(path.by_value && path.by_property);
        let next = cmdlet.parameter("next").unwrap();
        assert!(next.many && next.rest);
        assert_eq!(
            cmdlet.parameter("Must").unwrap().kind,
            Kind::Enumeration("Level".to_owned())
        );
        assert!(cmdlet.parameter("May").unwrap().beyond);
        for common in ["WhatIf", "cf", "ThrottleLimit", "ea", "Verbose"] {
            assert!(cmdlet.parameter(common).unwrap().common, "{common}");
        }
    }

    #[test]
    fn what_is_not_in_the_notation_is_refused() {
        for text in [
            "Get-It\n",
            "module M\nGet-It [fast]\n",
            "module M\nGet-It\n  -: Path\n",
            "module M\nGet-It\n  -: [-Path <String>\n",
            "module M\nGet-It\n  -: [-Path]\n  aliases Other=X\n",
            "module M\nGet-It\n  -:\nget-it\n  -:\n",
        ] {
            assert!(read(&[text]).is_err(), "{text}");
        }
    }
}
