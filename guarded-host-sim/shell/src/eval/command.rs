//! From a command as it is written to what carries it out: a function, a cmdlet, a script block, a script's file.

use std::rc::Rc;

use super::pipeline::{BlockStage, CmdletStage, Common, Preference, Stage};
use crate::{
    bind::{self, BindError, Binding, Circumstances, Given, Supplied, What},
    call::complete,
    cmdlets::{Implementation, State},
    console::Stream,
    error::{Category, ErrorRecord, Outcome, Stop},
    path::{self, Location},
    session::Session,
    syntax::{
        self, Span,
        ast::{Argument, Command, Expr, ExprKind, Invocation, Redirection},
    },
    table::{Cmdlet, Kind},
    value::{Block, Secret, Value, convert},
};

impl Session {
    /// Makes a command ready to run.
    pub(crate) fn stage(&mut self, command: &Command, fed: bool, pipeline: usize) -> Outcome<Stage> {
        let dot = command.invocation == Some(Invocation::Dot);
        let name = match &command.name.kind {
            ExprKind::Text(text) => Value::text(text),
            _ => self.expression(&command.name)?,
        };
        let called = match &name {
            Value::Block(_) => String::new(),
            other => convert::to_text(other),
        };
        let block = match name {
            Value::Block(block) => block,
            other => {
                let name = convert::to_text(&other);
                match self.function(&name) {
                    Some(Value::Block(block)) => block,
                    _ => match self.table.find(&name) {
                        Some(cmdlet) => return self.cmdlet_stage(cmdlet, command, fed, pipeline),
                        None => self.script_file(&name, command.name.span)?,
                    },
                }
            }
        };
        let given = self.arguments(command)?;
        let mut own = BlockStage {
            block,
            arguments: Vec::new(),
            named: Vec::new(),
            input: Vec::new(),
            dot,
            name: called,
            span: command.span,
        };
        let mut given = given.into_iter().peekable();
        while let Some(Given { what, .. }) = given.next() {
            match what {
                What::Value(Supplied::Known(value, _)) => own.arguments.push(value),
                What::Value(Supplied::Unknown) => {}
                What::Named(name, value) => {
                    let value = match value {
                        Some(Supplied::Known(value, _)) => Some(value),
                        _ if takes_value(&own.block, &name) => match given.peek() {
                            Some(Given {
                                what: What::Value(Supplied::Known(value, _)),
                                ..
                            }) => {
                                let value = value.clone();
                                given.next();
                                Some(value)
                            }
                            _ => None,
                        },
                        _ => None,
                    };
                    own.named.push((name, value));
                }
            }
        }
        Ok(Stage::Block(Box::new(own)))
    }

    /// A script's file that is called by its name.
    fn script_file(&mut self, name: &str, span: Span) -> Outcome<Rc<Block>> {
        let is_script = name.to_ascii_lowercase().ends_with(".ps1") && name.contains(['\\', '/', ':']);
        if !is_script {
            return Err(self.wrong(span, not_found(name, self.table.nearest(name).map(|c| c.name.as_str()))));
        }
        let file = match path::locate(self, name) {
            Ok(Location::File(file)) => file,
            Ok(_) => return Err(self.wrong(span, not_found(name, None))),
            Err(record) => return Err(self.wrong(span, record)),
        };
        if !file.real.is_file() {
            return Err(self.wrong(span, not_found(name, None)));
        }
        let text = self
            .script_text(&file.real, name)
            .map_err(|record| self.wrong(span, record))?;
        let source: Rc<str> = text.into();
        let shown: Rc<str> = file.windows.as_str().into();
        match syntax::parse(&source) {
            Ok(script) => Ok(Rc::new(Block {
                script,
                source,
                file: Some(shown),
            })),
            Err(error) => Err(ErrorRecord::syntax(&error, source, Some(shown)).stop()),
        }
    }

    fn cmdlet_stage(
        &mut self,
        cmdlet: &'static Cmdlet,
        command: &Command,
        fed: bool,
        pipeline: usize,
    ) -> Outcome<Stage> {
        let given = self.arguments(command)?;
        let Some(own) = self.registry.find(&cmdlet.name) else {
            let record = ErrorRecord::new(
                Category::NotImplemented,
                "CmdletNotBuilt",
                format!(
                    "{} of the module {} is known to this shell, but not carried out. 'shell --coverage' lists what is.",
                    cmdlet.name, cmdlet.module
                ),
            );
            return Err(self.of_cmdlet(cmdlet, command.span, record));
        };
        let circumstances = Circumstances { fed, open: false };
        let binding = match bind::bind(cmdlet, given.clone(), circumstances) {
            Ok(binding) => Ok(binding),
            Err(error) if !error.missing.is_empty() && self.is_interactive() => {
                let more = self.ask_missing(cmdlet, &error, command.span)?;
                bind::bind(cmdlet, given.into_iter().chain(more).collect(), circumstances)
            }
            Err(error) => Err(error),
        };
        let binding = binding.map_err(|error| {
            let span = error.span.unwrap_or(command.span);
            self.of_cmdlet(cmdlet, span, ErrorRecord::binding(&error))
        })?;
        let common = Common::of(&binding, pipeline);
        self.refused(cmdlet, own, &binding, &common, command.span)?;
        Ok(Stage::Cmdlet(Box::new(CmdletStage {
            binding,
            body: Session::body(own.run),
            span: command.span,
            common,
        })))
    }

    /// Refuses parameters that are not carried out, and tells of those that change nothing.
    fn refused(
        &mut self,
        cmdlet: &'static Cmdlet,
        own: &Implementation,
        binding: &Binding<'static>,
        common: &Common,
        span: Span,
    ) -> Outcome {
        let bound = binding.so_far();
        for (parameter, value) in bound.given() {
            let state = match parameter.common {
                true => self.registry.shared(&parameter.name),
                false => self.registry.parameter(own.cmdlet, &parameter.name),
            };
            // A switch that is given as `$false` asks for nothing.
            let off = parameter.kind == Kind::Switch && value.is_some_and(|value| !value.is_true());
            let reason = match state {
                State::Implemented => continue,
                State::WithoutEffect { reason } => {
                    if common.verbose == Some(true) {
                        let text = format!("VERBOSE: -{} changes nothing: {reason}.", parameter.name);
                        self.say(Stream::Verbose, &text);
                    }
                    continue;
                }
                _ if off => continue,
                State::Rejected { reason } => reason,
                State::NotBuilt => "this shell does not carry it out".to_owned(),
            };
            let record = ErrorRecord::new(
                Category::NotImplemented,
                "ParameterRefused",
                format!("The parameter '{}' is refused: {reason}.", parameter.name),
            );
            return Err(self.of_cmdlet(cmdlet, span, record));
        }
        Ok(())
    }

    fn of_cmdlet(&self, cmdlet: &Cmdlet, span: Span, mut record: ErrorRecord) -> Stop {
        complete(&mut record, &cmdlet.name, &cmdlet.module);
        self.wrong(span, record)
    }

    /// Asks for what must be given and is not, as an interactive shell does.
    fn ask_missing(&mut self, cmdlet: &'static Cmdlet, error: &BindError, span: Span) -> Outcome<Vec<Given>> {
        let head = format!(
            "\ncmdlet {} at command pipeline position 1\nSupply values for the following parameters:",
            cmdlet.name
        );
        self.say(Stream::Output, &head);
        let mut given = Vec::new();
        for name in &error.missing {
            let parameter = cmdlet.parameter(name);
            let secret = parameter.is_some_and(|parameter| parameter.kind == Kind::SecureString);
            let many = parameter.is_some_and(|parameter| parameter.many);
            let mut values = Vec::new();
            loop {
                let prompt = match many {
                    true => format!("{name}[{}]: ", values.len()),
                    false => format!("{name}: "),
                };
                let answer = match secret {
                    true => self
                        .ask_secret(&prompt)
                        .map(|text| Value::Secret(Rc::new(Secret::new(text)))),
                    false => self.ask(&prompt).map(Value::text),
                };
                match answer {
                    None => return Err(self.of_cmdlet(cmdlet, span, ErrorRecord::binding(error))),
                    Some(Value::Text(text)) if many && text.is_empty() => break,
                    Some(value) => values.push(value),
                }
                if !many {
                    break;
                }
            }
            let value = match many {
                true => Value::list(values),
                false => Value::from_output(values),
            };
            given.push(Given {
                what: What::Named(name.clone(), Some(Supplied::Known(value, None))),
                span,
            });
        }
        Ok(given)
    }

    /// What stands after a command's name, computed.
    pub(crate) fn arguments(&mut self, command: &Command) -> Outcome<Vec<Given>> {
        let mut given = Vec::new();
        for argument in &command.arguments {
            match argument {
                Argument::Parameter { name, value, span } => {
                    let value = value.as_ref().map(|value| self.supplied(value)).transpose()?;
                    given.push(Given {
                        what: What::Named(name.clone(), value),
                        span: *span,
                    });
                }
                Argument::Value(expr) => {
                    let what = What::Value(self.supplied(expr)?);
                    given.push(Given { what, span: expr.span });
                }
                Argument::Splat { variable, span } => self.splat(variable, *span, &mut given),
            }
        }
        Ok(given)
    }

    fn splat(&mut self, variable: &str, span: Span, given: &mut Vec<Given>) {
        match self.variable(variable) {
            Some(Value::Table(entries)) => {
                for (name, value) in entries.borrow().iter() {
                    let value = Supplied::Known(value.clone(), None);
                    given.push(Given {
                        what: What::Named(name.to_owned(), Some(value)),
                        span,
                    });
                }
            }
            Some(other) => {
                for value in other.each() {
                    let what = What::Value(Supplied::Known(value, None));
                    given.push(Given { what, span });
                }
            }
            None => {}
        }
    }

    fn supplied(&mut self, expr: &Expr) -> Outcome<Supplied> {
        let written = match &expr.kind {
            ExprKind::Integer(_, text) | ExprKind::Real(_, text) => Some(text.clone()),
            _ => None,
        };
        Ok(Supplied::Known(self.expression(expr)?, written))
    }

    /// Sends streams elsewhere: to a file, to `$null`, into the output.
    pub(crate) fn redirect(
        &mut self,
        redirections: &[Redirection],
        of: Option<usize>,
        stages: &mut Vec<Stage>,
        pipeline: usize,
    ) -> Outcome {
        for redirection in redirections {
            let target = redirection
                .target
                .as_ref()
                .map(|expr| self.expression(expr))
                .transpose()?;
            let nowhere = matches!(target, Some(Value::Null));
            let errors = matches!(redirection.stream, None | Some(2));
            let own = of.and_then(|index| stages.get_mut(index));
            if let Some(Stage::Cmdlet(own)) = own {
                match (redirection.stream, &target) {
                    (Some(2) | None, None) => own.common.errors_to_output = true,
                    (Some(2) | None, Some(Value::Null)) => own.common.error_action = Some(Preference::Silently),
                    (Some(3), Some(Value::Null)) => own.common.warning_action = Some(Preference::Silently),
                    (None, Some(_)) => own.common.errors_to_output = true,
                    _ => {}
                }
            } else if errors && redirection.stream == Some(2) {
                return Err(self.wrong(redirection.span, ErrorRecord::outside("Redirecting the errors of this")));
            }
            match (redirection.stream, target) {
                (Some(1) | None, Some(_)) if nowhere => self.append_cmdlet("Out-Null", &[], stages, pipeline)?,
                (Some(1) | None, Some(file)) => {
                    let append = Value::Bool(redirection.append);
                    let given = [("FilePath", file), ("Append", append)];
                    self.append_cmdlet("Out-File", &given, stages, pipeline)?;
                }
                (Some(2 | 3), None | Some(Value::Null)) | (None, None) => {}
                _ => return Err(self.wrong(redirection.span, ErrorRecord::outside("This redirection"))),
            }
        }
        Ok(())
    }

    fn append_cmdlet(
        &mut self,
        name: &str,
        given: &[(&str, Value)],
        stages: &mut Vec<Stage>,
        pipeline: usize,
    ) -> Outcome {
        let given = given.iter().map(|(name, value)| Given {
            what: What::Named((*name).to_owned(), Some(Supplied::Known(value.clone(), None))),
            span: Span::default(),
        });
        let table = self.table;
        let (Some(cmdlet), Some(own)) = (table.find(name), self.registry.find(name)) else {
            return Ok(());
        };
        let binding = bind::bind(cmdlet, given.collect(), Circumstances { fed: true, open: false });
        let binding = binding.map_err(|error| ErrorRecord::binding(&error).stop())?;
        stages.push(Stage::Cmdlet(Box::new(CmdletStage {
            common: Common::of(&binding, pipeline),
            binding,
            body: Session::body(own.run),
            span: Span::default(),
        })));
        Ok(())
    }
}

/// Whether a block's parameter takes a value, as opposed to a switch.
fn takes_value(block: &Block, name: &str) -> bool {
    let begins = |own: &str| {
        own.get(..name.len())
            .is_some_and(|head| head.eq_ignore_ascii_case(name))
    };
    let parameter = block.script.parameters.iter().find(|parameter| begins(&parameter.name));
    let switch = parameter
        .and_then(|p| p.type_name.as_deref())
        .is_some_and(|name| name.eq_ignore_ascii_case("switch"));
    !switch
}

fn not_found(name: &str, near: Option<&str>) -> ErrorRecord {
    let hint = match near {
        Some(near) => format!(" Did you mean {near}?"),
        None => String::new(),
    };
    let mut record = ErrorRecord::new(
        Category::ObjectNotFound,
        "CommandNotFoundException",
        format!(
            "The term '{name}' is not recognized as the name of a cmdlet, function, script file, or operable program. \
             Check the spelling of the name, or if a path was included, verify that the path is correct and try \
             again.{hint}"
        ),
    );
    record.activity = String::new();
    record.exception("CommandNotFoundException").about(Value::text(name))
}
