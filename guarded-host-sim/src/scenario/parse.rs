//! From a file to a scenario, or to everything that is wrong with it: each fault with file, line, column,
//! field, and what is allowed there.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use toml::de::{DeTable, DeValue};

use super::{
    check,
    model::{Scenario, Span},
};

/// A scenario and where it was read.
#[derive(Clone, Debug)]
pub struct ScenarioFile {
    /// The file.
    pub path: PathBuf,
    /// The file's name without its ending.
    pub name: String,
    /// What it says.
    pub scenario: Scenario,
    text: String,
}

impl ScenarioFile {
    /// The line, from 1, on which `span` begins; none for an empty one.
    pub fn line(&self, span: &Span) -> Option<usize> {
        (!span.is_empty()).then(|| place(&self.text, span).0)
    }
}

/// Something wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file.
    pub path: PathBuf,
    /// Line and column, from 1; none when the file could not be read.
    pub place: Option<(usize, usize)>,
    /// The field as `step[2].expect.status`, if it is a field's fault.
    pub field: String,
    /// What is wrong, and what is allowed.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some((line, column)) = self.place {
            write!(f, ":{line}:{column}")?;
        }
        match self.field.is_empty() {
            true => write!(f, ": {}", self.message),
            false => write!(f, ": {}: {}", self.field, self.message),
        }
    }
}

/// Reads a file.
pub fn read(path: &Path) -> Result<ScenarioFile, Vec<Fault>> {
    let text = fs::read_to_string(path).map_err(|error| {
        vec![Fault {
            path: path.to_path_buf(),
            place: None,
            field: String::new(),
            message: format!("the file cannot be read: {error}"),
        }]
    })?;
    parse(path, &text)
}

/// Reads a file's text; `path` is for messages.
pub fn parse(path: &Path, text: &str) -> Result<ScenarioFile, Vec<Fault>> {
    let tree = match DeTable::parse(text) {
        Ok(tree) => tree,
        Err(error) => {
            let span = error.span().unwrap_or(0..0);
            let message = format!("this is no TOML: {}", error.message());
            return Err(vec![fault(path, text, None, &span, message)]);
        }
    };
    let fault = |span: &Span, message: String| fault(path, text, Some(tree.get_ref()), span, message);
    let scenario: Scenario = match toml::from_str(text) {
        Ok(scenario) => scenario,
        Err(error) => {
            let span = error.span().unwrap_or(0..0);
            return Err(vec![refine(&tree, &span, error.message(), &fault)]);
        }
    };
    let faults = check::check(&scenario);
    if !faults.is_empty() {
        return Err(faults
            .into_iter()
            .map(|found| fault(&found.span, found.message))
            .collect());
    }
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(ScenarioFile {
        path: path.to_path_buf(),
        name,
        scenario,
        text: text.to_owned(),
    })
}

/// A fault at the key that caused it: the reader places those of a step at the step's begin.
fn refine(
    tree: &toml::Spanned<DeTable<'_>>,
    span: &Span,
    message: &str,
    fault: &impl Fn(&Span, String) -> Fault,
) -> Fault {
    if let Some(named) = message
        .strip_prefix("unknown variant `")
        .and_then(|rest| rest.split('`').next())
        && let Some(key) = key_called(tree.get_ref(), named, span)
    {
        let message = message.replacen("unknown variant", "unknown action or field", 1);
        let message = message.replacen("expected one of", "allowed are `name`, `expect` and one action of", 1);
        return fault(&key, message);
    }
    let message = message.replacen("unknown field", "this field is unknown:", 1);
    let message = message
        .replacen(", expected one of", "; allowed are", 1)
        .replacen(", expected", "; allowed is", 1);
    fault(span, message)
}

/// The first key `name` at or after the begin of `span`.
fn key_called(table: &DeTable<'_>, name: &str, span: &Span) -> Option<Span> {
    fn below(value: &DeValue<'_>, name: &str, span: &Span) -> Option<Span> {
        match value {
            DeValue::Table(table) => key_called(table, name, span),
            DeValue::Array(array) => first(array.iter().filter_map(|item| below(item.get_ref(), name, span))),
            _ => None,
        }
    }
    fn first(places: impl Iterator<Item = Span>) -> Option<Span> {
        places.min_by_key(|place| place.start)
    }
    first(table.iter().filter_map(|(key, value)| {
        let here = key.get_ref() == name && key.span().start >= span.start;
        match here {
            true => Some(key.span()),
            false => below(value.get_ref(), name, span),
        }
    }))
}

fn fault(path: &Path, text: &str, tree: Option<&DeTable<'_>>, span: &Span, message: String) -> Fault {
    Fault {
        path: path.to_path_buf(),
        place: Some(place(text, span)),
        field: tree.map(|tree| field_at(tree, span.start)).unwrap_or_default(),
        message,
    }
}

/// Line and column of the begin of `span`, from 1.
fn place(text: &str, span: &Span) -> (usize, usize) {
    let before = text.get(..span.start.min(text.len())).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    (line, before.rsplit('\n').next().unwrap_or_default().chars().count() + 1)
}

/// The field whose key or value holds the byte `at`, as `step[2].expect.status`; steps count from 1.
fn field_at(table: &DeTable<'_>, at: usize) -> String {
    for (key, value) in table.iter() {
        if key.span().contains(&at) {
            return key.get_ref().to_string();
        }
        if let Some(below) = inside(value, at) {
            return format!("{}{below}", key.get_ref());
        }
    }
    String::new()
}

fn inside(value: &toml::Spanned<DeValue<'_>>, at: usize) -> Option<String> {
    match value.get_ref() {
        DeValue::Array(array) => {
            let item = array.iter().enumerate().find_map(|(number, item)| {
                let below = inside(item, at)?;
                Some(format!("[{}]{below}", number + 1))
            });
            // Else the array as a whole is meant.
            item.or_else(|| value.span().contains(&at).then(String::new))
        }
        DeValue::Table(table) => {
            let below = field_at(table, at);
            match below.is_empty() {
                // The header of a table stands outside of its values.
                true => value.span().contains(&at).then(String::new),
                false => Some(format!(".{below}")),
            }
        }
        _ => value.span().contains(&at).then(String::new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"title = "A host attests"
teaches = ["One sentence.", "And another."]

[[host]]
name = "host01"

[[step]]
attest = { host = "host01" }
expect = { status = "Passed" }
"#;

    fn told(text: &str) -> String {
        let faults = parse(Path::new("x.toml"), text).unwrap_err();
        faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_good_file_is_read() {
        let read = parse(Path::new("scenarios/good.toml"), GOOD).unwrap();
        assert_eq!(read.name, "good");
        assert_eq!(read.scenario.step[0].action.title(), "host01 attests");
    }

    #[test]
    fn faults_name_line_column_field_and_what_is_allowed() {
        for (from, to, place, words) in [
            ("attest =", "atest =", "x.toml:8:1: step[1].atest: ", "`atest`"),
            ("attest =", "atest =", "x.toml:8:1", "`start_vm`"),
            ("expect =", "expct =", "x.toml:9:1: step[1].expct: ", "`expct`"),
            (
                "status =",
                "stats =",
                "x.toml:9:12: step[1].expect.stats: ",
                "`substatus`",
            ),
            (
                "\"Passed\"",
                "\"Pased\"",
                "x.toml:9:21: step[1].expect.status: ",
                "`Passed`",
            ),
            ("\"Passed\"", "5", "x.toml:9:21: step[1].expect.status: ", "string"),
            (
                "name = \"host01\"",
                "nam = \"host01\"",
                "x.toml:5:1: host[1].nam: ",
                "`name`",
            ),
            (
                "host = \"host01\"",
                "host = \"host02\"",
                "x.toml:8:19: step[1].attest.host: ",
                "host01",
            ),
            (
                "status = \"Passed\"",
                "http = 200",
                "x.toml:9:19: step[1].expect.http: ",
                "status",
            ),
            (
                "status = \"Passed\"",
                "events = [{ id = 1003 }]",
                "x.toml:9:21: step[1].expect.events: ",
                "told by a `host` or by a `service`",
            ),
            (
                "status = \"Passed\"",
                "events = [{ host = \"host01\", outcome = \"Released\" }]",
                "x.toml:9:21: step[1].expect.events: ",
                "give the `id`",
            ),
            (
                "status = \"Passed\"",
                "events = [{ service = \"attestation\" }]",
                "x.toml:9:21: step[1].expect.events: ",
                "or the `id` of an event in a log",
            ),
            (
                "status = \"Passed\"",
                "events = [{ host = \"host02\", id = 1003 }]",
                "x.toml:9:31: step[1].expect.events",
                "there is host01",
            ),
            ("title =", "titel =", "x.toml:1:1: titel: ", "`title`"),
            ("\"And another.\"", "\"And\"", "x.toml:2:11: teaches: ", "sentence"),
            ("[[step]]", "[[step", "x.toml:7:", "TOML"),
            (
                "attest = { host",
                "attest = { hots",
                "x.toml:8:12: step[1].attest.hots: ",
                "`host`",
            ),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let told = told(&GOOD.replacen(from, to, 1));
            assert!(told.starts_with(place) && told.contains(words), "{to}: {told}");
        }
    }

    #[test]
    fn a_step_has_one_action() {
        let none = told(&GOOD.replacen("attest = { host = \"host01\" }", "name = \"x\"", 1));
        assert!(none.contains("needs an action"), "{none}");
        let two = told(&GOOD.replacen("expect =", "heal = {}\nexpect =", 1));
        assert!(two.contains("second one"), "{two}");
    }
}
