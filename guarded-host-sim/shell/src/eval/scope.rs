//! Variables and functions. A scope sees those around it and changes its own.

use crate::{
    error::{ErrorRecord, Outcome},
    path::HOME,
    session::{Scope, Session},
    syntax::ast::Variable,
    value::{Value, convert},
};

impl Session {
    pub(crate) fn push_scope(&mut self) {
        self.runspace_mut().scopes.push(Scope::default());
    }

    /// Ends the innermost scope of the machine that was the `here`-th one: the block may have left it for another.
    pub(crate) fn pop_scope(&mut self, here: usize) {
        if let Some(runspace) = here.checked_sub(1).and_then(|index| self.runspaces.get_mut(index)) {
            runspace.scopes.pop();
        }
    }

    /// A variable's value, if it has one.
    pub fn variable(&self, name: &str) -> Option<Value> {
        let name = name.to_ascii_lowercase();
        let runspace = self.runspace();
        if let Some(value) = runspace
            .scopes
            .iter()
            .rev()
            .find_map(|scope| scope.variables.get(&name))
        {
            return Some(value.clone());
        }
        Some(match name.as_str() {
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            "null" => Value::Null,
            "?" => Value::Bool(runspace.succeeded),
            "error" => Value::list(runspace.errors.clone()),
            "home" => Value::text(HOME),
            "pwd" => Value::text(&runspace.location),
            "pid" => Value::Int(i64::from(std::process::id())),
            "host" => Value::object(
                "InternalHost",
                [("Name", Value::text("ConsoleHost")), ("Version", Value::text("5.1"))],
            ),
            "psversiontable" => Value::table(
                [
                    ("PSVersion", Value::text("5.1")),
                    ("PSEdition", Value::text("Desktop")),
                    ("Platform", Value::text("guarded fabric lab: a subset of the language")),
                ]
                .into_iter()
                .collect(),
            ),
            "psscriptroot" | "pscommandpath" => {
                let file = self.source.file.as_deref().unwrap_or_default();
                let folder = file.rsplit_once('\\').map_or("", |(folder, _)| folder);
                Value::text(if name == "pscommandpath" { file } else { folder })
            }
            "erroractionpreference" | "warningpreference" => Value::text("Continue"),
            "verbosepreference" | "debugpreference" | "informationpreference" => Value::text("SilentlyContinue"),
            "progresspreference" => Value::text("Continue"),
            "confirmpreference" => Value::text("High"),
            "whatifpreference" => Value::Bool(false),
            "ofs" => Value::text(" "),
            _ => return None,
        })
    }

    /// Sets a variable of the innermost scope.
    pub fn set_variable(&mut self, name: &str, value: Value) {
        let name = name.to_ascii_lowercase();
        if let Some(scope) = self.runspace_mut().scopes.last_mut() {
            scope.variables.insert(name, value);
        }
    }

    /// All variables that scripts have set, by name.
    pub fn variables(&self) -> Vec<(String, Value)> {
        let mut all = std::collections::BTreeMap::new();
        for scope in &self.runspace().scopes {
            all.extend(
                scope
                    .variables
                    .iter()
                    .map(|(name, value)| (name.clone(), value.clone())),
            );
        }
        all.into_iter().collect()
    }

    /// Takes a variable away.
    pub fn remove_variable(&mut self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        let mut scopes = self.runspace_mut().scopes.iter_mut().rev();
        scopes.any(|scope| scope.variables.remove(&name).is_some())
    }

    /// What a variable in a script holds.
    pub(crate) fn read(&self, variable: &Variable) -> Outcome<Value> {
        let name = &variable.name;
        let outermost = || {
            let scope = self.runspace().scopes.first();
            scope.and_then(|scope| scope.variables.get(&name.to_ascii_lowercase()).cloned())
        };
        let value = match variable.scope.as_deref() {
            None | Some("local" | "private" | "variable") => self.variable(name),
            Some("env") => self.environment(name).map(Value::text),
            Some("global") => outermost().or_else(|| self.variable(name)),
            Some("script") => self.script_variable(name).or_else(|| self.variable(name)),
            Some("using") => return self.using(variable),
            Some("function") => self.function(name),
            Some(other) => {
                let record = ErrorRecord::outside(format!("The scope '{other}:' of a variable"));
                return Err(self.wrong(variable.span, record));
            }
        };
        Ok(value.unwrap_or(Value::Null))
    }

    /// `$using:x`: the value from where `Invoke-Command` was called.
    fn using(&self, variable: &Variable) -> Outcome<Value> {
        let callers = self
            .runspaces
            .len()
            .checked_sub(2)
            .and_then(|index| self.runspaces.get(index));
        let Some(caller) = callers.filter(|_| !self.runspace().entered) else {
            let record = ErrorRecord::new(
                crate::error::Category::InvalidOperation,
                "UsingWithoutInvokeCommand",
                "A Using variable cannot be retrieved. A Using variable can be used only with Invoke-Command.",
            );
            return Err(self.wrong(variable.span, record.exception("RuntimeException")));
        };
        let name = variable.name.to_ascii_lowercase();
        let mut scopes = caller.scopes.iter().rev();
        Ok(scopes
            .find_map(|scope| scope.variables.get(&name).cloned())
            .unwrap_or(Value::Null))
    }

    fn script_variable(&self, name: &str) -> Option<Value> {
        let scope = self.runspace().scopes.first()?;
        scope.variables.get(&name.to_ascii_lowercase()).cloned()
    }

    /// Sets a variable as a script names it.
    pub(crate) fn write_variable(&mut self, variable: &Variable, value: Value) -> Outcome {
        match variable.scope.as_deref() {
            None | Some("local" | "private" | "variable") => {
                if matches!(
                    variable.name.to_ascii_lowercase().as_str(),
                    "true" | "false" | "null" | "?" | "home" | "pid"
                ) {
                    let record = ErrorRecord::new(
                        crate::error::Category::WriteError,
                        "VariableNotWritable",
                        format!(
                            "Cannot overwrite variable {} because it is read-only or constant.",
                            variable.name
                        ),
                    );
                    return Err(self.wrong(
                        variable.span,
                        record.exception("SessionStateUnauthorizedAccessException"),
                    ));
                }
                self.set_variable(&variable.name, value);
            }
            Some("global" | "script") => {
                if let Some(scope) = self.runspace_mut().scopes.first_mut() {
                    scope.variables.insert(variable.name.to_ascii_lowercase(), value);
                }
            }
            Some("env") => self.set_environment(&variable.name, &convert::to_text(&value)),
            Some(other) => {
                let record = ErrorRecord::outside(format!("Setting a variable of the scope '{other}:'"));
                return Err(self.wrong(variable.span, record));
            }
        }
        Ok(())
    }

    /// A variable of the machine's environment.
    pub fn environment(&self, name: &str) -> Option<String> {
        let found = self.runspace().environment.get(&name.to_ascii_lowercase());
        found.map(|(_, value)| value.clone())
    }

    /// The names of the environment's variables.
    pub fn environment_names(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .runspace()
            .environment
            .values()
            .map(|(name, _)| name.clone())
            .collect();
        names.sort();
        names
    }

    /// The names of the script's own functions.
    pub fn functions(&self) -> Vec<String> {
        let scopes = self.runspace().scopes.iter();
        scopes.flat_map(|scope| scope.functions.keys().cloned()).collect()
    }

    /// Sets a variable of the environment; empty text takes it away.
    pub fn set_environment(&mut self, name: &str, value: &str) {
        let environment = &mut self.runspace_mut().environment;
        match value.is_empty() {
            true => environment.remove(&name.to_ascii_lowercase()),
            false => environment.insert(name.to_ascii_lowercase(), (name.to_owned(), value.to_owned())),
        };
    }

    /// A function that the script has made.
    pub(crate) fn function(&self, name: &str) -> Option<Value> {
        let name = name.to_ascii_lowercase();
        let mut scopes = self.runspace().scopes.iter().rev();
        scopes.find_map(|scope| scope.functions.get(&name).cloned())
    }

    pub(crate) fn set_function(&mut self, name: &str, block: Value) {
        let name = name.rsplit(':').next().unwrap_or(name).to_ascii_lowercase();
        if let Some(scope) = self.runspace_mut().scopes.last_mut() {
            scope.functions.insert(name, block);
        }
    }
}
