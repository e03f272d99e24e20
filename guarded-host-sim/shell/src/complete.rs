//! What Tab offers: cmdlets, parameters, values, variables, properties, paths.

use crate::{
    bind,
    eval::own_property,
    format::property_names,
    path::{Location, locate},
    session::Session,
    syntax::Span,
    table::{Cmdlet, Kind, Parameter},
    value::Value,
};

/// What could stand in the place of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completions {
    /// The byte at which the word begins.
    pub start: usize,
    /// What could stand there, the likeliest first.
    pub items: Vec<String>,
}

/// Completes the word that ends at `at`, a byte of `line`.
pub fn complete(session: &Session, line: &str, at: usize) -> Completions {
    let before = line.get(..at).unwrap_or(line);
    let (words, start) = words(before);
    let word = before.get(start..).unwrap_or_default();
    let items = match (word.strip_prefix('$'), words.split_first()) {
        (Some(name), _) => variables(session, name),
        (None, None) => commands(session, word),
        (None, Some((command, arguments))) => match session.table.find(command) {
            Some(cmdlet) if word.starts_with('-') => parameters(cmdlet, arguments, word),
            Some(cmdlet) => values(session, cmdlet, arguments, word),
            None => paths(session, word),
        },
    };
    Completions { start, items }
}

/// The whole words of the command that the text ends in, and where its last word begins.
fn words(text: &str) -> (Vec<String>, usize) {
    let mut words = Vec::new();
    let mut start = 0;
    let mut quote = None;
    for (at, c) in text.char_indices() {
        let next = at + c.len_utf8();
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '|' | ';' | '(' | '{' | '}' | ')' | '=' | '\n' | '&') => {
                words.clear();
                start = next;
            }
            (None, c) if c.is_whitespace() => {
                let word = text.get(start..at).unwrap_or_default();
                if !word.is_empty() {
                    words.push(word.to_owned());
                }
                start = next;
            }
            (None, ',') => start = next,
            _ => {}
        }
    }
    (words, start)
}

fn begins(own: &str, prefix: &str) -> bool {
    own.get(..prefix.len())
        .is_some_and(|head| head.eq_ignore_ascii_case(prefix))
}

fn commands(session: &Session, word: &str) -> Vec<String> {
    if word.contains(['\\', '/']) || word.starts_with('.') {
        return paths(session, word);
    }
    if word.is_empty() {
        return Vec::new();
    }
    let functions = session.functions();
    let cmdlets = session.table.cmdlets().iter().map(|cmdlet| cmdlet.name.clone());
    let mut found: Vec<String> = functions
        .into_iter()
        .chain(cmdlets)
        .filter(|name| begins(name, word))
        .collect();
    found.sort_by_key(|name| name.to_lowercase());
    found
}

/// Names of parameters that are not given yet, the cmdlet's own before those that all have.
fn parameters(cmdlet: &Cmdlet, arguments: &[String], word: &str) -> Vec<String> {
    let prefix = word.trim_start_matches('-');
    let given: Vec<usize> = arguments
        .iter()
        .filter_map(|argument| argument.strip_prefix('-'))
        .filter_map(|name| bind::resolve(cmdlet, name.trim_end_matches(':'), Span::default()).ok())
        .map(|(index, _)| index)
        .collect();
    let free = cmdlet
        .parameters
        .iter()
        .enumerate()
        .filter(|(index, _)| !given.contains(index));
    let fitting: Vec<&Parameter> = free
        .map(|(_, own)| own)
        .filter(|own| begins(&own.name, prefix))
        .collect();
    let (common, own): (Vec<&Parameter>, Vec<&Parameter>) = fitting.into_iter().partition(|own| own.common);
    own.into_iter()
        .chain(common)
        .map(|own| format!("-{}", own.name))
        .collect()
}

fn values(session: &Session, cmdlet: &Cmdlet, arguments: &[String], word: &str) -> Vec<String> {
    let Some(parameter) = wanted(cmdlet, arguments) else {
        return paths(session, word);
    };
    let plain = word.trim_start_matches(['\'', '"']);
    let fitting =
        |names: Vec<String>| -> Vec<String> { names.into_iter().filter(|name| begins(name, plain)).collect() };
    let known = match (parameter.name.as_str(), &parameter.kind) {
        _ if !parameter.values.is_empty() => fitting(parameter.values.clone()),
        (_, Kind::Boolean) => ["$true", "$false"]
            .iter()
            .filter(|v| begins(v, plain))
            .map(|v| (*v).to_owned())
            .collect(),
        ("ComputerName" | "HostName" | "DestinationHost", _) => fitting(
            session
                .world()
                .machines()
                .into_iter()
                .map(|machine| machine.name)
                .collect(),
        ),
        ("Name", _) if matches!(cmdlet.name.as_str(), "Get-Help" | "Get-Command") => commands(session, plain),
        ("Name" | "Module", _) if cmdlet.name.ends_with("-Module") || parameter.name == "Module" => {
            let mut modules: Vec<String> = session.table.cmdlets().iter().map(|c| c.module.clone()).collect();
            modules.dedup();
            fitting(modules)
        }
        (name, _) => fitting(session.world().suggestions(session.machine(), &cmdlet.name, name)),
    };
    match known.is_empty() {
        true if parameter.kind == Kind::Text || matches!(parameter.kind, Kind::Object { .. } | Kind::Any) => {
            paths(session, word)
        }
        _ => known.into_iter().map(|value| quoted(&value)).collect(),
    }
}

/// The parameter that the next value is for.
fn wanted<'t>(cmdlet: &'t Cmdlet, arguments: &[String]) -> Option<&'t Parameter> {
    let named = |argument: &String| {
        let name = argument.strip_prefix('-')?;
        bind::resolve(cmdlet, name, Span::default()).ok()
    };
    if let Some((_, parameter)) = arguments.last().and_then(named)
        && parameter.kind != Kind::Switch
    {
        return Some(parameter);
    }
    let mut given = Vec::new();
    let mut by_place = 0;
    let mut arguments = arguments.iter().peekable();
    while let Some(argument) = arguments.next() {
        match named(argument) {
            Some((index, parameter)) => {
                given.push(index);
                if parameter.kind != Kind::Switch && arguments.peek().is_some_and(|next| !next.starts_with('-')) {
                    arguments.next();
                }
            }
            None => by_place += 1,
        }
    }
    let default = cmdlet.default_set.and_then(|index| cmdlet.sets.get(index));
    let sets = default.into_iter().chain(&cmdlet.sets);
    let fits = |set: &&crate::table::Set| {
        given
            .iter()
            .all(|index| set.members.iter().any(|m| m.parameter == *index))
    };
    let set = sets.clone().find(fits).or(default)?;
    let mut places: Vec<_> = set
        .members
        .iter()
        .filter(|m| m.position.is_some() && !given.contains(&m.parameter))
        .collect();
    places.sort_by_key(|member| member.position);
    cmdlet.parameters.get(places.get(by_place)?.parameter)
}

/// Variables, those of the environment, and properties of what a variable holds.
fn variables(session: &Session, name: &str) -> Vec<String> {
    if let Some((object, prefix)) = name.rsplit_once('.') {
        let mut parts = object.split('.');
        let first = parts.next().and_then(|variable| session.variable(variable));
        let value = parts.try_fold(first, |value, part| Some(own_property(&value?, part)));
        let names = match value.flatten() {
            Some(Value::Table(entries)) => entries.borrow().iter().map(|(name, _)| name.to_owned()).collect(),
            Some(Value::List(items)) => items.borrow().first().map(property_names).unwrap_or_default(),
            Some(other) => property_names(&other),
            None => Vec::new(),
        };
        return names
            .iter()
            .filter(|own| begins(own, prefix))
            .map(|own| format!("${object}.{own}"))
            .collect();
    }
    if begins(name, "env:") {
        let prefix = name.get(4..).unwrap_or_default();
        let mut names = session.environment_names();
        names.retain(|own| begins(own, prefix));
        return names.into_iter().map(|own| format!("$env:{own}")).collect();
    }
    let own = session.variables().into_iter().map(|(name, _)| name);
    let mut names: Vec<String> = own.chain(BUILTIN.iter().map(|name| (*name).to_owned())).collect();
    names.sort();
    names.dedup();
    names
        .into_iter()
        .filter(|own| begins(own, name))
        .map(|own| format!("${own}"))
        .collect()
}

/// Files and folders of the machine.
fn paths(session: &Session, word: &str) -> Vec<String> {
    let plain = word.trim_start_matches(['\'', '"']);
    let cut = plain.rfind(['\\', '/']).map_or(0, |at| at + 1);
    let (folder, prefix) = plain.split_at(cut);
    let Ok(Location::File(place)) = locate(session, if folder.is_empty() { "." } else { folder }) else {
        return Vec::new();
    };
    let entries = std::fs::read_dir(&place.real).into_iter().flatten().flatten();
    let mut found: Vec<String> = entries
        .filter_map(|entry| {
            let folder = entry.file_type().ok()?.is_dir();
            let name = entry.file_name().into_string().ok()?;
            Some(if folder { format!("{name}\\") } else { name })
        })
        .filter(|name| begins(name, prefix))
        .collect();
    found.sort_by_key(|name| name.to_lowercase());
    let lead = if folder.is_empty() { ".\\" } else { folder };
    found.into_iter().map(|name| quoted(&format!("{lead}{name}"))).collect()
}

/// In quotes, if a blank or another mark would end the word.
fn quoted(text: &str) -> String {
    match text.contains([' ', '(', ')', '{', '}', ';', '&', '\'', ',']) {
        true => format!("'{}'", text.replace('\'', "''")),
        false => text.to_owned(),
    }
}

const BUILTIN: [&str; 8] = [
    "true",
    "false",
    "null",
    "Error",
    "HOME",
    "ErrorActionPreference",
    "VerbosePreference",
    "PWD",
];
