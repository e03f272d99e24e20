//! What a cmdlet is given to be carried out: its parameters, the object from the pipeline, its streams, the machine it
//! runs on.

use std::{path::PathBuf, rc::Rc};

use crate::{
    bind::Bound,
    console::Stream,
    error::{Category, ErrorRecord, Outcome, Place, Stop},
    eval::pipeline::{Common, Flow, Preference},
    path::{self, Location},
    session::Session,
    value::{Block, Date, Secret, Value, convert},
    world::{Machine, World},
};

/// One call of a cmdlet.
pub struct Call<'a> {
    /// The shell that it runs in.
    pub session: &'a mut Session,
    pub(crate) bound: Bound<'static>,
    pub(crate) input: Option<Value>,
    pub(crate) place: Place,
    pub(crate) common: &'a mut Common,
    pub(crate) flow: Flow<'a>,
}

impl Call<'_> {
    /// The parameters as they are bound.
    pub fn bound(&self) -> &Bound<'static> {
        &self.bound
    }

    /// The cmdlet's own name.
    pub fn name(&self) -> &'static str {
        &self.bound.cmdlet().name
    }

    /// The value of a parameter, if it was given; already of the parameter's type.
    pub fn get(&self, parameter: &str) -> Option<Value> {
        self.bound.get(parameter).cloned()
    }

    /// The text of a parameter, if it was given.
    pub fn text(&self, parameter: &str) -> Option<String> {
        self.bound.text(parameter)
    }

    /// The texts of a parameter that takes several; empty if it was not given.
    pub fn texts(&self, parameter: &str) -> Vec<String> {
        let given = self.bound.get(parameter).map(Value::each).unwrap_or_default();
        given.iter().map(convert::to_text).collect()
    }

    /// Whether a switch was given.
    pub fn switch(&self, parameter: &str) -> bool {
        self.bound.switch(parameter)
    }

    /// A whole number, if it was given.
    pub fn integer(&self, parameter: &str) -> Option<i64> {
        match self.bound.get(parameter) {
            Some(Value::Int(number)) => Some(*number),
            _ => None,
        }
    }

    /// A secure string, if it was given.
    pub fn secret(&self, parameter: &str) -> Option<Rc<Secret>> {
        match self.bound.get(parameter) {
            Some(Value::Secret(secret)) => Some(Rc::clone(secret)),
            _ => None,
        }
    }

    /// The object that the pipeline brings, behind one.
    pub fn input(&self) -> Option<&Value> {
        self.input.as_ref()
    }

    /// Hands an object on: down the pipeline, into a variable, or to be shown.
    ///
    /// # Errors
    /// What a later part of the pipeline ends it with.
    pub fn write(&mut self, value: Value) -> Outcome {
        if let Some(name) = &self.common.out_variable {
            self.common.kept.push(value.clone());
            self.session.set_kept(name, &self.common.kept);
        }
        self.flow.feed(self.session, value)
    }

    /// Hands several on.
    ///
    /// # Errors
    /// As [`Call::write`].
    pub fn write_all(&mut self, values: impl IntoIterator<Item = Value>) -> Outcome {
        values.into_iter().try_for_each(|value| self.write(value))
    }

    /// Writes an error and goes on, unless `-ErrorAction Stop` or its preference says otherwise.
    ///
    /// # Errors
    /// The error itself, when it is to end the script.
    pub fn error(&mut self, record: ErrorRecord) -> Outcome {
        let record = self.placed(record);
        self.common.failed = true;
        if let Some(name) = &self.common.error_variable {
            self.common.errors.push(record.to_value());
            self.session.set_kept(name, &self.common.errors);
        }
        if self.common.errors_to_output {
            self.session.remember(&record);
            return self.write(record.to_value());
        }
        self.session.report(record, self.common.error_action)
    }

    /// The error that ends this call: `return Err(call.fail(…))`.
    pub fn fail(&mut self, record: ErrorRecord) -> Stop {
        self.placed(record).stop()
    }

    fn placed(&self, mut record: ErrorRecord) -> ErrorRecord {
        complete(&mut record, self.name(), &self.bound.cmdlet().module);
        record.place.get_or_insert_with(|| self.place.clone());
        record
    }

    /// Writes a warning.
    ///
    /// # Errors
    /// `-WarningAction Stop`.
    pub fn warning(&mut self, text: &str) -> Outcome {
        if let Some(name) = &self.common.warning_variable {
            self.common.warnings.push(Value::text(text));
            self.session.set_kept(name, &self.common.warnings);
        }
        let action = self.common.warning_action;
        match action.unwrap_or_else(|| self.session.preference("WarningPreference")) {
            Preference::Silently | Preference::Ignore => Ok(()),
            Preference::Stop => Err(self.fail(ErrorRecord::new(
                Category::OperationStopped,
                "ActionPreferenceStop",
                format!("The running command stopped because the preference variable \"WarningPreference\" or common parameter is set to Stop: {text}"),
            ))),
            Preference::Continue => {
                self.session.say(Stream::Warning, &format!("WARNING: {text}"));
                Ok(())
            }
        }
    }

    /// Writes what `-Verbose` shows.
    pub fn verbose(&mut self, text: &str) {
        let shown = match self.common.verbose {
            Some(given) => given,
            None => self.session.preference("VerbosePreference") == Preference::Continue,
        };
        if shown {
            self.session.say(Stream::Verbose, &format!("VERBOSE: {text}"));
        }
    }

    /// Whether to change something: `-WhatIf` only tells, `-Confirm` asks.
    ///
    /// # Errors
    /// Nobody can be asked.
    pub fn should_process(&mut self, target: &str, action: &str) -> Outcome<bool> {
        let what_if = match self.common.what_if {
            Some(given) => given,
            None => self.session.variable_is_true("WhatIfPreference"),
        };
        if what_if {
            let text = format!("What if: Performing the operation \"{action}\" on target \"{target}\".");
            self.session.say(Stream::Output, &text);
            return Ok(false);
        }
        self.verbose(&format!(
            "Performing the operation \"{action}\" on target \"{target}\"."
        ));
        if self.common.confirm != Some(true) || self.common.yes_to_all {
            return Ok(true);
        }
        let question = format!("Performing the operation \"{action}\" on target \"{target}\".");
        self.question("Confirm\nAre you sure you want to perform this action?", &question)
    }

    /// Asks before something that cannot be taken back, unless `-Force` or `-Confirm:$false` was given. Where nobody
    /// can be asked it is done, as in a script that runs without anybody.
    ///
    /// # Errors
    /// Nobody can be asked, and `-Confirm` was given.
    pub fn should_continue(&mut self, caption: &str, query: &str) -> Outcome<bool> {
        let forced = self.bound.get("Force").is_some_and(Value::is_true);
        if forced || self.common.confirm == Some(false) || self.common.yes_to_all || !self.session.is_interactive() {
            return Ok(true);
        }
        self.question(caption, query)
    }

    fn question(&mut self, caption: &str, query: &str) -> Outcome<bool> {
        self.session.say(Stream::Output, &format!("\n{caption}\n{query}"));
        loop {
            let prompt = "[Y] Yes  [A] Yes to All  [N] No  [L] No to All  [?] Help (default is \"Y\"): ";
            let Some(answer) = self.session.ask(prompt) else {
                return Err(self.fail(ErrorRecord::new(
                    Category::InvalidOperation,
                    "NonInteractive",
                    "PowerShell is in NonInteractive mode. Read and Prompt functionality is not available. \
                     Leave -Confirm out, or run this in an interactive shell.",
                )));
            };
            match answer.trim().to_ascii_lowercase().as_str() {
                "" | "y" | "yes" => return Ok(true),
                "a" => {
                    self.common.yes_to_all = true;
                    return Ok(true);
                }
                "n" | "no" | "l" => return Ok(false),
                _ => {}
            }
        }
    }

    /// The machine that the cmdlet runs on.
    pub fn machine(&self) -> &Machine {
        self.session.machine()
    }

    /// What the machine stands in.
    pub fn world(&self) -> Rc<dyn World> {
        self.session.world()
    }

    /// The time on the machine.
    pub fn now(&self) -> Date {
        self.session.now()
    }

    /// The real file that stands for a path on the machine, `C:\temp\a.xml` or `.\a.xml`.
    ///
    /// # Errors
    /// The path is none on a drive with files.
    pub fn file(&mut self, path: &str) -> Outcome<PathBuf> {
        let located = path::locate(self.session, path);
        match located {
            Ok(Location::File(file)) => Ok(file.real),
            Ok(_) => Err(self.fail(ErrorRecord::new(
                Category::InvalidArgument,
                "PathNotFileSystem",
                format!("The path '{path}' is not one of a file: give one that begins with a drive letter, such as C:\\temp."),
            ))),
            Err(record) => Err(self.fail(record)),
        }
    }

    /// What a file has in it.
    ///
    /// # Errors
    /// There is no such file, or it cannot be read.
    pub fn read_file(&mut self, path: &str) -> Outcome<Vec<u8>> {
        let real = self.file(path)?;
        std::fs::read(&real).map_err(|error| self.fail(path::io_error(path, &error)))
    }

    /// Writes a file, in the place of one that is there.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_file(&mut self, path: &str, bytes: &[u8]) -> Outcome {
        let real = self.file(path)?;
        std::fs::write(&real, bytes).map_err(|error| self.fail(path::io_error(path, &error)))
    }

    /// Runs a script block with arguments, in a scope of its own, and gives its output.
    ///
    /// # Errors
    /// Whatever ends the block.
    pub fn invoke(&mut self, block: &Block, arguments: Vec<Value>) -> Outcome<Vec<Value>> {
        self.session.call_block(block, arguments, Vec::new())
    }
}

/// Fills in who reports an error.
pub(crate) fn complete(record: &mut ErrorRecord, cmdlet: &str, module: &str) {
    if record.activity.is_empty() {
        record.activity = cmdlet.to_owned();
    }
    if record.source.is_empty() {
        record.source = match module.starts_with("Microsoft.PowerShell") {
            true => format!("Microsoft.PowerShell.Commands.{}Command", cmdlet.replace('-', "")),
            false => cmdlet.to_owned(),
        };
    }
}
