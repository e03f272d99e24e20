//! What there is: commands, modules, help, history.

use std::{collections::BTreeSet, fmt::Write as _};

use crate::{
    call::Call,
    cmdlets::{Implementation, Run, State},
    error::{Category, ErrorRecord, Outcome},
    format::drawn,
    table::{Cmdlet, Kind},
    value::Value,
    wildcard::{Wildcard, is_pattern},
};

pub(super) const ALL: &[Implementation] = &[
    Implementation {
        cmdlet: "Get-Help",
        implemented: &["Name", "Full", "Detailed", "Examples", "Parameter"],
        without_effect: &[
            ("Path", "help comes with the shell"),
            ("Category", "all help is about cmdlets"),
        ],
        rejected: &[
            ("Component", "help here is about cmdlets by their names"),
            ("Functionality", "help here is about cmdlets by their names"),
            ("Role", "help here is about cmdlets by their names"),
            ("Online", "this shell opens no browser"),
            ("ShowWindow", "this shell opens no window"),
        ],
        run: Run::Each(get_help),
    },
    Implementation {
        cmdlet: "Get-Command",
        implemented: &[
            "Name",
            "Verb",
            "Noun",
            "Module",
            "TotalCount",
            "Syntax",
            "ParameterName",
            "CommandType",
        ],
        without_effect: &[
            ("All", "no two commands have one name"),
            ("ListImported", "all modules are imported"),
        ],
        rejected: &[
            ("ArgumentList", "no cmdlet here changes its parameters by its arguments"),
            ("FullyQualifiedModule", "give the name of the module: -Module"),
            ("ShowCommandInfo", "there is no window for it"),
            ("ParameterType", "give the name of the parameter: -ParameterName"),
        ],
        run: Run::Each(get_command),
    },
    Implementation {
        cmdlet: "Import-Module",
        implemented: &["Name", "PassThru"],
        without_effect: &[
            ("Force", "all modules are imported"),
            ("Global", "all modules are imported everywhere"),
            ("Scope", "all modules are imported everywhere"),
            ("DisableNameChecking", "no names are questioned"),
            ("NoClobber", "no command hides another"),
            ("MinimumVersion", "each module has one version here"),
            ("MaximumVersion", "each module has one version here"),
            ("RequiredVersion", "each module has one version here"),
        ],
        rejected: &[
            ("Prefix", "commands keep their own names"),
            ("Function", "all of a module is imported"),
            ("Cmdlet", "all of a module is imported"),
            ("Variable", "all of a module is imported"),
            ("Alias", "all of a module is imported"),
            ("AsCustomObject", "modules are no objects here"),
            ("ArgumentList", "modules take no arguments here"),
            ("PSSession", "each machine has its modules"),
            ("CimSession", "each machine has its modules"),
            ("CimResourceUri", "each machine has its modules"),
            ("CimNamespace", "each machine has its modules"),
            ("FullyQualifiedName", "give the name of the module: -Name"),
            ("Assembly", "there are no assemblies"),
            ("ModuleInfo", "give the name of the module: -Name"),
        ],
        run: Run::Each(import_module),
    },
    Implementation {
        cmdlet: "Get-Module",
        implemented: &["Name", "ListAvailable"],
        without_effect: &[
            ("All", "modules here have no parts"),
            ("Refresh", "modules come with the shell"),
            ("PSEdition", "there is one edition"),
        ],
        rejected: &[
            ("FullyQualifiedName", "give the name of the module: -Name"),
            ("PSSession", "each machine has its modules"),
            ("CimSession", "each machine has its modules"),
            ("CimResourceUri", "each machine has its modules"),
            ("CimNamespace", "each machine has its modules"),
        ],
        run: Run::Each(get_module),
    },
    Implementation {
        cmdlet: "Get-History",
        implemented: &["Id", "Count"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(get_history),
    },
    Implementation {
        cmdlet: "Clear-History",
        implemented: &[],
        without_effect: &[],
        rejected: &[
            ("Id", "the whole history is cleared"),
            ("Count", "the whole history is cleared"),
            ("Newest", "the whole history is cleared"),
            ("CommandLine", "the whole history is cleared"),
        ],
        run: Run::Each(|call| {
            call.session.history.clear();
            Ok(())
        }),
    },
    Implementation {
        cmdlet: "Get-Member",
        implemented: &["Name", "InputObject", "MemberType"],
        without_effect: &[("Force", "nothing is held back"), ("View", "objects have one view")],
        rejected: &[(
            "Static",
            "static members are those that the documentation of a type names",
        )],
        run: Run::All(get_member),
    },
];

fn get_help(call: &mut Call<'_>) -> Outcome {
    let name = call.text("Name").unwrap_or_default();
    if name.is_empty() {
        return call.write(drawn(OVERVIEW.to_owned()));
    }
    let table = call.session.table;
    let found: Vec<&'static Cmdlet> = match (is_pattern(&name), table.find(&name)) {
        (false, Some(cmdlet)) => vec![cmdlet],
        (pattern, _) => {
            let wanted = Wildcard::new(&if pattern { name.clone() } else { format!("*{name}*") });
            table
                .cmdlets()
                .iter()
                .filter(|cmdlet| wanted.matches(&cmdlet.name))
                .collect()
        }
    };
    match found.as_slice() {
        [] => {
            let text =
                format!("Get-Help could not find {name} in the help of this shell. Get-Command lists what there is.");
            call.error(ErrorRecord::new(Category::ObjectNotFound, "HelpNotFound", text).about(Value::text(name)))
        }
        [cmdlet] => {
            let text = help_of(call, cmdlet);
            call.write(drawn(text))
        }
        several => {
            let several = several.iter().map(|cmdlet| {
                Value::object(
                    "HelpInfo",
                    [
                        ("Name", Value::text(&cmdlet.name)),
                        ("Category", Value::text("Cmdlet")),
                        ("Module", Value::text(&cmdlet.module)),
                        (
                            "Synopsis",
                            Value::text(crate::help::synopsis(&cmdlet.name).unwrap_or_default()),
                        ),
                    ],
                )
            });
            call.write_all(several.collect::<Vec<_>>())
        }
    }
}

fn help_of(call: &Call<'_>, cmdlet: &Cmdlet) -> String {
    let registry = &call.session.registry;
    let mut text = format!("\nNAME\n    {}\n", cmdlet.name);
    if let Some(parameter) = call.text("Parameter") {
        let wanted = Wildcard::new(&parameter);
        let mut found = String::new();
        for own in cmdlet.parameters.iter().filter(|own| wanted.matches(&own.name)) {
            found.push_str(&parameter_help(call, cmdlet, own));
        }
        return found;
    }
    if let Some(synopsis) = crate::help::synopsis(&cmdlet.name) {
        let _ = write!(text, "\nSYNOPSIS\n    {synopsis}\n");
    }
    if !call.switch("Examples") {
        text.push_str("\nSYNTAX\n");
        for line in crate::help::syntax(cmdlet) {
            let _ = writeln!(text, "    {line}\n");
        }
    }
    if call.switch("Full") || call.switch("Detailed") {
        text.push_str("PARAMETERS\n");
        for own in cmdlet.parameters.iter().filter(|own| !own.common) {
            text.push_str(&parameter_help(call, cmdlet, own));
        }
    }
    if let State::NotBuilt = registry.cmdlet(&cmdlet.name) {
        text.push_str("REMARKS\n    This shell knows the cmdlet, but does not carry it out.\n\n");
    }
    let examples = crate::help::examples(&cmdlet.name);
    let shown = call.switch("Examples") || call.switch("Full") || call.switch("Detailed");
    if shown && !examples.is_empty() {
        text.push_str("EXAMPLES\n");
        for (example, what) in examples {
            let _ = writeln!(text, "    PS> {example}\n        {what}\n");
        }
    } else if !examples.is_empty() {
        let _ = writeln!(
            text,
            "REMARKS\n    To see the examples, type: \"Get-Help {} -Examples\".\n",
            cmdlet.name
        );
    }
    text
}

fn parameter_help(call: &Call<'_>, cmdlet: &Cmdlet, own: &crate::table::Parameter) -> String {
    let mut text = match own.kind {
        Kind::Switch => format!("    -{}\n", own.name),
        _ => format!("    -{} <{}>\n", own.name, own.type_name()),
    };
    let state = match own.common {
        true => call.session.registry.shared(&own.name),
        false => call.session.registry.parameter(&cmdlet.name, &own.name),
    };
    let mandatory = cmdlet.sets.iter().flat_map(|set| &set.members).any(|m| {
        m.mandatory
            && cmdlet
                .parameters
                .get(m.parameter)
                .is_some_and(|parameter| parameter.name == own.name)
    });
    let _ = writeln!(text, "        Required?                    {mandatory}");
    let _ = writeln!(
        text,
        "        Accept pipeline input?       {}",
        own.by_value || own.by_property
    );
    if !own.aliases.is_empty() {
        let _ = writeln!(text, "        Aliases                      {}", own.aliases.join(", "));
    }
    if !own.values.is_empty() {
        let _ = writeln!(text, "        Values                       {}", own.values.join(", "));
    }
    let _ = writeln!(text, "        In this shell                {state}\n");
    text
}

fn get_command(call: &mut Call<'_>) -> Outcome {
    let names: Vec<Wildcard> = call.texts("Name").iter().map(|name| Wildcard::new(name)).collect();
    let some = |given: Vec<String>| -> Vec<Wildcard> { given.iter().map(|one| Wildcard::new(one)).collect() };
    let (verbs, nouns, modules) = (
        some(call.texts("Verb")),
        some(call.texts("Noun")),
        some(call.texts("Module")),
    );
    let with = call.texts("ParameterName");
    let only_cmdlets = call
        .text("CommandType")
        .is_none_or(|kind| ["cmdlet", "all", "function"].contains(&kind.to_ascii_lowercase().as_str()));
    let any = |wanted: &[Wildcard], own: &str| wanted.is_empty() || wanted.iter().any(|one| one.matches(own));
    let table = call.session.table;
    let exact: Vec<String> = call
        .texts("Name")
        .iter()
        .filter_map(|name| table.find(name))
        .map(|c| c.name.clone())
        .collect();
    let mut found: Vec<&'static Cmdlet> = table
        .cmdlets()
        .iter()
        .filter(|cmdlet| {
            let (verb, noun) = cmdlet.name.split_once('-').unwrap_or((&cmdlet.name, ""));
            only_cmdlets
                && (any(&names, &cmdlet.name) || exact.contains(&cmdlet.name))
                && any(&verbs, verb)
                && any(&nouns, noun)
                && any(&modules, &cmdlet.module)
                && with.iter().all(|name| cmdlet.parameter(name).is_some())
        })
        .collect();
    found.sort_by_key(|cmdlet| cmdlet.name.to_lowercase());
    if let Some(most) = call.integer("TotalCount").and_then(|most| usize::try_from(most).ok()) {
        found.truncate(most);
    }
    for name in call.texts("Name").iter().filter(|name| !is_pattern(name)) {
        if table.find(name).is_none() && call.session.function(name).is_none() {
            let text = format!(
                "The term '{name}' is not recognized as the name of a cmdlet, function, script file, or operable program."
            );
            let record = ErrorRecord::new(Category::ObjectNotFound, "CommandNotFoundException", text);
            call.error(record.about(Value::text(name)).exception("CommandNotFoundException"))?;
        }
    }
    let syntax = call.switch("Syntax");
    for cmdlet in found {
        let value = match syntax {
            true => Value::text(crate::help::syntax(cmdlet).join("\n\n") + "\n"),
            false => Value::object(
                "CmdletInfo",
                [
                    ("CommandType", Value::text("Cmdlet")),
                    ("Name", Value::text(&cmdlet.name)),
                    ("Version", Value::text("2.0.0.0")),
                    ("Source", Value::text(&cmdlet.module)),
                ],
            ),
        };
        call.write(value)?;
    }
    Ok(())
}

/// The modules that there are.
fn modules(call: &Call<'_>) -> BTreeSet<&'static str> {
    call.session
        .table
        .cmdlets()
        .iter()
        .map(|cmdlet| cmdlet.module.as_str())
        .collect()
}

fn module(call: &Call<'_>, name: &str) -> Value {
    let cmdlets = call
        .session
        .table
        .cmdlets()
        .iter()
        .filter(|cmdlet| cmdlet.module == name);
    Value::object(
        "PSModuleInfo",
        [
            ("ModuleType", Value::text("Manifest")),
            ("Version", Value::text("2.0.0.0")),
            ("Name", Value::text(name)),
            (
                "ExportedCommands",
                Value::list(cmdlets.map(|cmdlet| Value::text(&cmdlet.name)).collect()),
            ),
        ],
    )
}

fn import_module(call: &mut Call<'_>) -> Outcome {
    for name in call.texts("Name") {
        let plain = name.rsplit(['\\', '/']).next().unwrap_or(&name).to_owned();
        let known = modules(call).into_iter().find(|own| own.eq_ignore_ascii_case(&plain));
        match known {
            Some(own) if call.switch("PassThru") => {
                let module = module(call, own);
                call.write(module)?;
            }
            Some(_) => {}
            None => {
                let text = format!(
                    "The specified module '{name}' was not loaded because no valid module file was found in any module \
                     directory. Get-Module lists the modules of this shell."
                );
                let record = ErrorRecord::new(Category::ResourceUnavailable, "Modules_ModuleNotFound", text);
                call.error(record.about(Value::text(name)).exception("FileNotFoundException"))?;
            }
        }
    }
    Ok(())
}

fn get_module(call: &mut Call<'_>) -> Outcome {
    let wanted: Vec<Wildcard> = call.texts("Name").iter().map(|name| Wildcard::new(name)).collect();
    let _all = call.switch("ListAvailable");
    for name in modules(call) {
        if wanted.is_empty() || wanted.iter().any(|one| one.matches(name)) {
            let module = module(call, name);
            call.write(module)?;
        }
    }
    Ok(())
}

fn get_history(call: &mut Call<'_>) -> Outcome {
    let ids: Vec<String> = call.texts("Id");
    let count = call
        .integer("Count")
        .and_then(|count| usize::try_from(count).ok())
        .unwrap_or(usize::MAX);
    let lines: Vec<(usize, String)> = call
        .session
        .history
        .iter()
        .cloned()
        .enumerate()
        .map(|(i, l)| (i + 1, l))
        .collect();
    let from = lines.len().saturating_sub(count);
    for (id, line) in lines.into_iter().skip(from) {
        if ids.is_empty() || ids.contains(&id.to_string()) {
            call.write(Value::object(
                "HistoryInfo",
                [
                    ("Id", Value::Int(i64::try_from(id).unwrap_or(i64::MAX))),
                    ("CommandLine", Value::text(line)),
                ],
            ))?;
        }
    }
    Ok(())
}

fn get_member(call: &mut Call<'_>, items: Vec<Value>) -> Outcome {
    let names: Vec<Wildcard> = call.texts("Name").iter().map(|name| Wildcard::new(name)).collect();
    let kinds = call.texts("MemberType");
    if items.is_empty() {
        let text = "You must specify an object for the Get-Member cmdlet.";
        return call.error(ErrorRecord::new(Category::NotSpecified, "NoObjectInGetMember", text));
    }
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for item in items {
        let kind = crate::eval::full_name(&item);
        if !seen.insert(kind.clone()) {
            continue;
        }
        let custom = matches!(&item, Value::Object(object) if object.is("PSCustomObject"));
        let member_kind = if custom { "NoteProperty" } else { "Property" };
        let fits = kinds.is_empty()
            || kinds.iter().any(|k| {
                ["all", "properties", &member_kind.to_ascii_lowercase()].contains(&k.to_ascii_lowercase().as_str())
            });
        let mut members: Vec<(String, String)> = match &item {
            Value::Object(object) => {
                let properties = object.properties.borrow();
                let each = properties.iter().map(|(name, value)| {
                    let definition = format!("{} {name}={}", value.type_name(), crate::format::cell(value));
                    (
                        name.to_owned(),
                        if custom {
                            definition
                        } else {
                            format!("{} {name} {{get;}}", value.type_name())
                        },
                    )
                });
                each.collect()
            }
            Value::Text(_) => vec![("Length".to_owned(), "int Length {get;}".to_owned())],
            Value::Table(_) => vec![
                ("Count".to_owned(), "int Count {get;}".to_owned()),
                ("Keys".to_owned(), "ICollection Keys {get;}".to_owned()),
                ("Values".to_owned(), "ICollection Values {get;}".to_owned()),
            ],
            _ => Vec::new(),
        };
        members.sort();
        for (name, definition) in members.into_iter().filter(|_| fits) {
            if names.is_empty() || names.iter().any(|one| one.matches(&name)) {
                call.write(Value::object(
                    "MemberDefinition",
                    [
                        ("TypeName", Value::text(&kind)),
                        ("Name", Value::text(name)),
                        ("MemberType", Value::text(member_kind)),
                        ("Definition", Value::text(definition)),
                    ],
                ))?;
            }
        }
    }
    Ok(())
}

const OVERVIEW: &str = "
TOPIC
    The administrators' shell of the guarded fabric lab

    Get-Command            what there is; -Module HgsServer, -Noun HgsGuardian, -Name *Policy*
    Get-Help NAME          how a cmdlet is called; -Examples, -Detailed, -Full, -Parameter NAME
    Enter-PSSession NAME   go to another machine; Exit-PSSession comes back
    Tab                    completes cmdlets, parameters and values

";
