//! The cmdlets that the shell knows: names, parameters, parameter sets, types, values, outputs. One
//! table in `data/`, from which binding, help, completion and coverage are made.

mod read;

use std::{collections::HashMap, sync::LazyLock};

pub use read::TableError;

/// A cmdlet as it is documented.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cmdlet {
    /// `Get-HgsServer`.
    pub name: String,
    /// The module it comes with.
    pub module: String,
    /// Whether it takes the parameters of a CIM cmdlet.
    pub cim: bool,
    /// Whether it takes `-WhatIf` and `-Confirm`.
    pub confirm: bool,
    /// Whether only guides name it, not the module reference.
    pub beyond: bool,
    /// Types of what it gives.
    pub outputs: Vec<String>,
    /// In the order of first mention; those that all cmdlets share come last.
    pub parameters: Vec<Parameter>,
    /// At least one.
    pub sets: Vec<Set>,
    /// The set that counts in doubt.
    pub default_set: Option<usize>,
}

/// A parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Without the dash.
    pub name: String,
    /// Other names.
    pub aliases: Vec<String>,
    /// What it takes.
    pub kind: Kind,
    /// Whether it takes several values.
    pub many: bool,
    /// The values that are allowed, if they are named.
    pub values: Vec<String>,
    /// Whether it takes whole objects of the pipeline.
    pub by_value: bool,
    /// Whether it takes the property of its name from objects of the pipeline.
    pub by_property: bool,
    /// Whether it takes all values that are left.
    pub rest: bool,
    /// Whether only guides name it, not the module reference.
    pub beyond: bool,
    /// Whether every cmdlet has it.
    pub common: bool,
}

/// What a parameter takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing: it is given or not.
    Switch,
    /// Text.
    Text,
    /// True or false.
    Boolean,
    /// A whole number within bounds.
    Integer {
        /// `Int32`, say.
        name: &'static str,
        /// The smallest.
        lowest: i64,
        /// The greatest.
        greatest: i64,
    },
    /// Any number.
    Real,
    /// A point in time.
    Date,
    /// Bytes.
    Bytes,
    /// Text that is not shown.
    SecureString,
    /// A name with a secure string.
    Credential,
    /// A block of script.
    Block,
    /// Names with values.
    Hashtable,
    /// An XML document.
    Xml,
    /// Anything.
    Any,
    /// One of the parameter's values.
    Enumeration(String),
    /// An object of this type; with text, if the type can be made from text.
    Object {
        /// The last part of the type's name.
        name: String,
        /// Whether text is taken for it.
        from_text: bool,
    },
}

/// A way of calling a cmdlet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its name in the documentation; empty where there is only one.
    pub name: String,
    /// Its parameters.
    pub members: Vec<Member>,
}

/// A parameter within a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Index among the cmdlet's parameters.
    pub parameter: usize,
    /// Whether it must be given.
    pub mandatory: bool,
    /// Its place among values without a name, from 0.
    pub position: Option<usize>,
}

/// All cmdlets.
#[derive(Debug)]
pub struct Table {
    cmdlets: Vec<Cmdlet>,
    by_name: HashMap<String, usize>,
    aliases: HashMap<String, String>,
}

impl Table {
    /// The table that comes with the shell.
    ///
    /// # Errors
    /// The table's own text is not in its notation; a test keeps that from happening.
    pub fn builtin() -> Result<&'static Table, &'static TableError> {
        BUILTIN.as_ref()
    }

    /// The cmdlet of this name or alias, in any case.
    pub fn find(&self, name: &str) -> Option<&Cmdlet> {
        let name = name.to_ascii_lowercase();
        let name = self.aliases.get(&name).unwrap_or(&name);
        // `HgsServer\Get-HgsServer` names the module too.
        let (module, plain) = match name.split_once('\\') {
            Some((module, plain)) => (Some(module), plain),
            None => (None, name.as_str()),
        };
        let cmdlet = self.cmdlets.get(*self.by_name.get(plain)?)?;
        let fits = module.is_none_or(|module| cmdlet.module.eq_ignore_ascii_case(module));
        fits.then_some(cmdlet)
    }

    /// All, by module in the table's order.
    pub fn cmdlets(&self) -> &[Cmdlet] {
        &self.cmdlets
    }

    /// Short names with what they stand for, by name.
    pub fn aliases(&self) -> Vec<(&str, &str)> {
        let mut all: Vec<_> = self.aliases.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        all.sort_unstable();
        all
    }

    /// The cmdlet whose name differs least from this one, if it differs little.
    pub fn nearest(&self, name: &str) -> Option<&Cmdlet> {
        let name = name.to_ascii_lowercase();
        let distance = |cmdlet: &&Cmdlet| distance(&name, &cmdlet.name.to_ascii_lowercase());
        let nearest = self.cmdlets.iter().min_by_key(distance)?;
        (distance(&nearest) <= name.chars().count() / 4).then_some(nearest)
    }
}

impl Cmdlet {
    /// The parameter of this name or alias, in any case.
    pub fn parameter(&self, name: &str) -> Option<&Parameter> {
        self.parameters.iter().find(|parameter| parameter.is_called(name))
    }
}

impl Parameter {
    /// Whether this is its name or one of its aliases, in any case.
    pub fn is_called(&self, name: &str) -> bool {
        self.names().any(|own| own.eq_ignore_ascii_case(name))
    }

    /// Its name, then its aliases.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.name.as_str()).chain(self.aliases.iter().map(String::as_str))
    }

    /// Its type as the documentation prints it.
    pub fn type_name(&self) -> String {
        let name = match &self.kind {
            Kind::Switch => "SwitchParameter",
            Kind::Text => "String",
            Kind::Boolean => "Boolean",
            Kind::Integer { name, .. } => name,
            Kind::Real => "Double",
            Kind::Date => "DateTime",
            Kind::Bytes => return "Byte[]".to_owned(),
            Kind::SecureString => "SecureString",
            Kind::Credential => "PSCredential",
            Kind::Block => "ScriptBlock",
            Kind::Hashtable => "Hashtable",
            Kind::Xml => "XmlDocument",
            Kind::Any => "Object",
            Kind::Enumeration(name) | Kind::Object { name, .. } => name,
        };
        format!("{name}{}", if self.many { "[]" } else { "" })
    }
}

/// How many characters must be changed to make one word of the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
        for (j, y) in b.iter().enumerate() {
            let above = row.get(j + 1).copied().unwrap_or_default();
            let left = row.get(j).copied().unwrap_or_default();
            let best = (diagonal + usize::from(x != *y)).min(above + 1).min(left + 1);
            diagonal = above;
            if let Some(cell) = row.get_mut(j + 1) {
                *cell = best;
            }
        }
    }
    row.last().copied().unwrap_or_default()
}

static BUILTIN: LazyLock<Result<Table, TableError>> = LazyLock::new(read::builtin);
