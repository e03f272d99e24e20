//! A shell: where it is, what its variables hold, and what it does with a script.

use std::{
    collections::HashMap,
    fs,
    path::PathBuf,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    cmdlets::Registry,
    console::{Console, Stream},
    error::{Category, ErrorRecord, Outcome, Place, Stop},
    eval::{pipeline::Preference, sink::Host},
    format::{CORE_VIEWS, Formatter, View},
    path::HOME,
    syntax::{self, Span, ast::Script},
    table::Table,
    value::{Date, Value, convert},
    world::{Machine, World},
};

/// A shell.
pub struct Session {
    pub(crate) table: &'static Table,
    pub(crate) registry: Rc<Registry>,
    world: Rc<dyn World>,
    console: Box<dyn Console>,
    pub(crate) formatter: Formatter,
    /// Where the shell is: the last one counts. The first is the machine where it began.
    pub(crate) runspaces: Vec<Runspace>,
    /// The text that is carried out, for places.
    pub(crate) source: Source,
    /// How many pipelines have begun, as numbers for them.
    pub(crate) pipelines: usize,
    /// How many `try` blocks are around.
    pub(crate) tries: usize,
    /// How deep blocks call each other.
    pub(crate) depth: usize,
    /// What the `catch` blocks around have caught.
    pub(crate) caught: Vec<ErrorRecord>,
    /// Sessions on other machines.
    pub(crate) remotes: Vec<Remote>,
    opened: i64,
    /// Set by whoever wants to stop what runs: Ctrl+C.
    pub(crate) interrupted: Arc<AtomicBool>,
    /// Lines as they were typed.
    pub history: Vec<String>,
}

/// A text with its file's name.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) text: Rc<str>,
    pub(crate) file: Option<Rc<str>>,
}

/// The state of a shell on one machine.
pub(crate) struct Runspace {
    pub(crate) machine: Machine,
    pub(crate) location: String,
    pub(crate) environment: HashMap<String, (String, String)>,
    pub(crate) scopes: Vec<Scope>,
    pub(crate) errors: Vec<Value>,
    pub(crate) succeeded: bool,
    /// Whether `Enter-PSSession` led here.
    pub(crate) entered: bool,
}

/// A session on another machine, with the state that it has there.
pub(crate) struct Remote {
    pub(crate) id: i64,
    pub(crate) name: String,
    pub(crate) computer: String,
    /// Taken while something runs in it.
    pub(crate) runspace: Option<Runspace>,
}

impl Remote {
    pub(crate) fn to_value(&self) -> Value {
        Value::object(
            "PSSession",
            [
                ("Id", Value::Int(self.id)),
                ("Name", Value::text(&self.name)),
                ("ComputerName", Value::text(&self.computer)),
                ("State", Value::text("Opened")),
                ("ConfigurationName", Value::text("Microsoft.PowerShell")),
                ("Availability", Value::text("Available")),
            ],
        )
    }
}

/// Variables and functions of one scope, by names in small letters.
#[derive(Default)]
pub(crate) struct Scope {
    pub(crate) variables: HashMap<String, Value>,
    pub(crate) functions: HashMap<String, Value>,
}

/// What became of a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It came to its end; whether its last command succeeded.
    Whole(bool),
    /// An error ended it.
    Failed,
    /// It ended itself with this code.
    Exit(i32),
}

impl Session {
    /// A shell on the first of the world's machines.
    ///
    /// # Errors
    /// There is no machine, or its folder cannot be made.
    pub fn new(world: Rc<dyn World>, registry: Registry, console: Box<dyn Console>) -> anyhow::Result<Session> {
        let table = Table::builtin().map_err(|error| anyhow::anyhow!("{error}"))?;
        let machine = world.machines().into_iter().next();
        let machine = machine.ok_or_else(|| anyhow::anyhow!("there is no machine for a shell to be on"))?;
        Ok(Session {
            table,
            registry: Rc::new(registry),
            world,
            console,
            formatter: Formatter::with_views(CORE_VIEWS),
            runspaces: vec![Runspace::on(machine)?],
            source: Source {
                text: "".into(),
                file: None,
            },
            pipelines: 0,
            tries: 0,
            depth: 0,
            caught: Vec::new(),
            remotes: Vec::new(),
            opened: 0,
            interrupted: Arc::default(),
            history: Vec::new(),
        })
    }

    /// Carries out a text: a line that was typed, or a command line's `-Command`.
    pub fn run(&mut self, text: &str) -> Ended {
        self.run_source(text, None, &[])
    }

    /// Carries out a script from a file of this name, with arguments for its `param` block.
    pub fn run_file(&mut self, name: &str, text: &str, arguments: &[Value]) -> Ended {
        self.run_source(text, Some(name.into()), arguments)
    }

    /// Stops what runs when it is set, before the next statement. The shell takes it back.
    pub fn interrupter(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.interrupted)
    }

    /// Whether what runs is to stop.
    ///
    /// # Errors
    /// It is.
    pub(crate) fn go_on(&self) -> Outcome {
        if !self.interrupted.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut record = ErrorRecord::new(
            Category::OperationStopped,
            "PipelineStopped",
            "The pipeline has been stopped.",
        );
        record.ends_script = true;
        Err(record.exception("PipelineStoppedException").stop())
    }

    /// Whether a text could be a script's beginning that needs more lines.
    pub fn is_unfinished(text: &str) -> bool {
        syntax::parse(text).is_err_and(|error| error.incomplete)
    }

    /// Carries out a script with arguments as a command line has them: `-Name value`, or a value.
    pub fn run_script(&mut self, name: &str, text: &str, arguments: &[String]) -> Ended {
        let mut quoted = String::new();
        for argument in arguments {
            let plain = argument.strip_prefix('-').is_some_and(|rest| {
                rest.starts_with(|c: char| c.is_alphabetic()) && rest.chars().all(|c| c.is_alphanumeric() || c == '_')
            });
            quoted.push(' ');
            match plain {
                true => quoted.push_str(argument),
                false => quoted.push_str(&format!("'{}'", argument.replace('\'', "''"))),
            }
        }
        let text: Rc<str> = text.into();
        let file: Rc<str> = name.into();
        let script = match syntax::parse(&text) {
            Ok(script) => script,
            Err(_) => return self.run_file(name, &text, &[]),
        };
        let block = Value::Block(Rc::new(crate::value::Block {
            script,
            source: text,
            file: Some(file),
        }));
        self.set_function("script:called", block);
        self.run(&format!(". called{quoted}"))
    }

    /// Draws objects of further types by these.
    pub fn set_views(&mut self, views: &'static [View]) {
        self.formatter.views.extend(views);
    }

    /// Keeps what commands give, for JSON, instead of showing it.
    pub fn keep_output(&mut self) {
        self.formatter.keep = Some(Vec::new());
    }

    /// What was kept.
    pub fn kept_output(&mut self) -> Option<Vec<Value>> {
        self.formatter.keep.take()
    }

    fn run_source(&mut self, text: &str, file: Option<Rc<str>>, arguments: &[Value]) -> Ended {
        let text: Rc<str> = text.into();
        let script = match syntax::parse(&text) {
            Ok(script) => script,
            Err(error) => {
                let record = ErrorRecord::syntax(&error, text, file);
                self.remember(&record);
                self.show_error(&record);
                return Ended::Failed;
            }
        };
        let outer = std::mem::replace(&mut self.source, Source { text, file });
        self.interrupted.store(false, Ordering::Relaxed);
        self.runspace_mut().succeeded = true;
        let result = self.top(&script, arguments);
        self.flush();
        self.source = outer;
        match result {
            Ok(()) | Err(Stop::Return | Stop::Break | Stop::Continue | Stop::Enough(_)) => {
                Ended::Whole(self.runspace().succeeded)
            }
            Err(Stop::Exit(code)) => Ended::Exit(code),
            Err(Stop::Error(record)) => {
                self.remember(&record);
                self.show_error(&record);
                self.runspace_mut().succeeded = false;
                Ended::Failed
            }
        }
    }

    fn top(&mut self, script: &Script, arguments: &[Value]) -> Outcome {
        self.bind_parameters(script, arguments.to_vec(), &[])?;
        self.statements(&script.statements, &mut Host)
    }

    /// The machine where the shell is.
    pub fn machine(&self) -> &Machine {
        &self.runspace().machine
    }

    /// A machine by its name, in any case and with or without its domain.
    pub fn find_machine(&self, name: &str) -> Option<Machine> {
        let plain = name.split('.').next().unwrap_or(name);
        if matches!(plain.to_ascii_lowercase().as_str(), "localhost" | "") {
            return Some(self.machine().clone());
        }
        let machines = self.world.machines().into_iter();
        machines
            .into_iter()
            .find(|machine| machine.name.eq_ignore_ascii_case(plain))
    }

    /// What the machines stand in.
    pub fn world(&self) -> Rc<dyn World> {
        Rc::clone(&self.world)
    }

    /// The time on this machine.
    pub fn now(&self) -> Date {
        self.world.now(&self.machine().name)
    }

    /// Where relative paths begin.
    pub fn location(&self) -> &str {
        &self.runspace().location
    }

    /// Goes to another place.
    pub fn set_location(&mut self, location: String) {
        self.runspace_mut().location = location;
    }

    /// The prompt: where one is.
    pub fn prompt(&self) -> String {
        match self.runspaces.len() {
            1 => format!("PS {} {}> ", self.machine().name, self.location()),
            _ => format!("[{}]: PS {}> ", self.machine().name, self.location()),
        }
    }

    /// Moves to another machine until [`Session::leave`].
    ///
    /// # Errors
    /// Its folder cannot be made.
    pub fn enter(&mut self, machine: Machine) -> anyhow::Result<()> {
        let mut runspace = Runspace::on(machine)?;
        runspace.entered = true;
        self.runspaces.push(runspace);
        Ok(())
    }

    /// Moves back; false on the machine where the shell began.
    pub fn leave(&mut self) -> bool {
        let away = self.runspaces.len() > 1 && self.runspace().entered;
        if away {
            self.runspaces.pop();
        }
        away
    }

    /// Opens a session with this state.
    pub(crate) fn open(&mut self, runspace: Runspace, name: Option<String>) -> Value {
        self.opened += 1;
        let remote = Remote {
            id: self.opened,
            name: name.unwrap_or_else(|| format!("WinRM{}", self.opened)),
            computer: runspace.machine.name.clone(),
            runspace: Some(runspace),
        };
        let value = remote.to_value();
        self.remotes.push(remote);
        value
    }

    #[expect(clippy::expect_used, reason = "the first runspace stays as long as the shell")]
    pub(crate) fn runspace(&self) -> &Runspace {
        self.runspaces.last().expect("a shell is somewhere")
    }

    #[expect(clippy::expect_used, reason = "the first runspace stays as long as the shell")]
    pub(crate) fn runspace_mut(&mut self) -> &mut Runspace {
        self.runspaces.last_mut().expect("a shell is somewhere")
    }

    /// Whether somebody can be asked.
    pub fn is_interactive(&self) -> bool {
        self.console.is_interactive()
    }

    /// Asks for a line.
    pub fn ask(&mut self, prompt: &str) -> Option<String> {
        self.flush();
        self.console.ask(prompt)
    }

    /// Asks for text that is not shown.
    pub fn ask_secret(&mut self, prompt: &str) -> Option<String> {
        self.flush();
        self.console.ask_secret(prompt)
    }

    /// Characters in a line of the console.
    pub fn width(&self) -> usize {
        self.console.width()
    }

    /// Writes a line.
    pub fn say(&mut self, stream: Stream, text: &str) {
        self.flush();
        self.console.write(stream, &format!("{text}\n"));
    }

    /// Writes text as it is.
    pub fn put(&mut self, text: &str) {
        self.flush();
        self.console.write(Stream::Output, text);
    }

    /// Shows an object as the end of a pipeline does.
    pub(crate) fn show(&mut self, value: &Value) {
        let width = self.width();
        let text = self.formatter.take(value, width);
        self.write_output(&text);
    }

    /// Shows what waits for more of its kind.
    pub(crate) fn flush(&mut self) {
        let width = self.width();
        let text = self.formatter.finish(width);
        self.write_output(&text);
    }

    fn write_output(&mut self, text: &str) {
        if !text.is_empty() {
            self.console.write(Stream::Output, text);
        }
    }

    /// Where in the text something stands.
    pub(crate) fn place(&self, span: Span) -> Place {
        Place {
            text: Rc::clone(&self.source.text),
            span,
            file: self.source.file.clone(),
        }
    }

    /// An error at a place.
    pub(crate) fn wrong(&self, span: Span, record: ErrorRecord) -> Stop {
        let mut record = record;
        record.place.get_or_insert_with(|| self.place(span));
        record.stop()
    }

    /// What `$ErrorActionPreference` and its kin say.
    pub(crate) fn preference(&self, variable: &str) -> Preference {
        let given = self.variable(variable).map(|value| convert::to_text(&value));
        given
            .and_then(|text| Preference::parse(&text))
            .unwrap_or(Preference::Continue)
    }

    /// Whether a variable is there and true.
    pub(crate) fn variable_is_true(&self, name: &str) -> bool {
        self.variable(name).is_some_and(|value| value.is_true())
    }

    /// Deals with an error that need not end the statement.
    pub(crate) fn report(&mut self, record: ErrorRecord, action: Option<Preference>) -> Outcome {
        let action = action.unwrap_or_else(|| self.preference("ErrorActionPreference"));
        self.runspace_mut().succeeded = false;
        match action {
            Preference::Ignore => Ok(()),
            Preference::Silently => {
                self.remember(&record);
                Ok(())
            }
            Preference::Continue => {
                self.remember(&record);
                self.show_error(&record);
                Ok(())
            }
            Preference::Stop => {
                let mut record = record;
                record.ends_script = true;
                Err(record.stop())
            }
        }
    }

    /// Puts an error first in `$Error`.
    pub(crate) fn remember(&mut self, record: &ErrorRecord) {
        let errors = &mut self.runspace_mut().errors;
        errors.insert(0, record.to_value());
        errors.truncate(MOST_ERRORS);
    }

    pub(crate) fn show_error(&mut self, record: &ErrorRecord) {
        self.flush();
        let text = record.display();
        self.console.write(Stream::Error, &format!("{text}\n"));
    }

    /// Sets what `-ErrorVariable` and its kin fill.
    pub(crate) fn set_kept(&mut self, name: &str, values: &[Value]) {
        self.set_variable(name.trim_start_matches('+'), Value::list(values.to_vec()));
    }

    /// Reads a script's text from a machine's file.
    pub(crate) fn script_text(&self, path: &std::path::Path, shown: &str) -> Result<String, ErrorRecord> {
        let bytes = fs::read(path).map_err(|error| crate::path::io_error(shown, &error))?;
        String::from_utf8(bytes).map_err(|_| {
            ErrorRecord::new(
                Category::InvalidData,
                "ScriptNotText",
                format!("{shown} is no text in UTF-8."),
            )
        })
    }
}

impl Runspace {
    pub(crate) fn on(machine: Machine) -> anyhow::Result<Runspace> {
        let home: PathBuf = HOME.replace(":", "").split('\\').collect();
        for folder in [
            home.clone(),
            home.join("Desktop"),
            home.join(r"AppData/Local/Temp"),
            "C/temp".into(),
        ] {
            fs::create_dir_all(machine.folder.join(folder))?;
        }
        let variables = [
            ("COMPUTERNAME", machine.name.to_ascii_uppercase()),
            ("USERNAME", "Administrator".to_owned()),
            ("USERPROFILE", HOME.to_owned()),
            ("HOMEDRIVE", "C:".to_owned()),
            ("HOMEPATH", HOME.trim_start_matches("C:").to_owned()),
            ("SystemDrive", "C:".to_owned()),
            ("SystemRoot", r"C:\Windows".to_owned()),
            ("windir", r"C:\Windows".to_owned()),
            ("TEMP", format!(r"{HOME}\AppData\Local\Temp")),
            ("TMP", format!(r"{HOME}\AppData\Local\Temp")),
            ("ProgramData", r"C:\ProgramData".to_owned()),
            ("ProgramFiles", r"C:\Program Files".to_owned()),
        ];
        let environment = variables
            .into_iter()
            .map(|(name, value)| (name.to_ascii_lowercase(), (name.to_owned(), value)));
        Ok(Runspace {
            machine,
            location: HOME.to_owned(),
            environment: environment.collect(),
            scopes: vec![Scope::default()],
            errors: Vec::new(),
            succeeded: true,
            entered: false,
        })
    }
}

/// As `$MaximumErrorCount` has it.
const MOST_ERRORS: usize = 256;
