//! Carries scripts out: statements, scopes, script blocks. What is outside of the subset is an error with its place.

mod assign;
mod cast;
mod command;
mod expression;
mod member;
mod method;
mod operator;
pub mod pipeline;
pub(crate) mod scope;
pub(crate) mod sink;
mod statics;
mod xml;

use std::rc::Rc;

use self::{pipeline::BlockStage, sink::Sink};
use crate::{
    error::{Category, ErrorRecord, Outcome, Stop},
    eval::pipeline::Preference,
    session::{Session, Source},
    syntax::{
        Span,
        ast::{Catch, Element, Script, Statement, StatementKind},
    },
    value::{Block, Value, convert},
};

pub use cast::{cast, credential, uri};
pub(crate) use cast::{full_name, is};
pub(crate) use member::{own_property, property as property_of};
pub(crate) use method::date_in;
pub(crate) use operator::{apply, equal, order};
pub use statics::time_span;
pub use xml::document;

impl Session {
    /// Carries out statements one after the other. An error that ends a statement does not end those that follow,
    /// unless a `try` is around.
    pub(crate) fn statements(&mut self, statements: &[Statement], sink: &mut dyn Sink) -> Outcome {
        for statement in statements {
            self.go_on()?;
            match self.statement(statement, sink) {
                Err(Stop::Error(record)) if self.tries == 0 && !record.ends_script => {
                    self.runspace_mut().succeeded = false;
                    match self.preference("ErrorActionPreference") {
                        Preference::Stop => {
                            let mut record = record;
                            record.ends_script = true;
                            return Err(Stop::Error(record));
                        }
                        Preference::Continue => {
                            self.remember(&record);
                            self.show_error(&record);
                        }
                        Preference::Silently | Preference::Ignore => self.remember(&record),
                    }
                }
                other => other?,
            }
        }
        Ok(())
    }

    fn statement(&mut self, statement: &Statement, sink: &mut dyn Sink) -> Outcome {
        match &statement.kind {
            StatementKind::Pipeline(pipeline) => self.pipeline(pipeline, sink),
            StatementKind::Assign {
                target,
                operator,
                value,
            } => self.assignment(target, *operator, value, statement.span).map(drop),
            StatementKind::If { clauses, otherwise } => {
                for (condition, body) in clauses {
                    if self.value_of(condition)?.is_true() {
                        return self.statements(&body.statements, sink);
                    }
                }
                match otherwise {
                    Some(body) => self.statements(&body.statements, sink),
                    None => Ok(()),
                }
            }
            StatementKind::Foreach { variable, items, body } => {
                for item in self.value_of(items)?.each() {
                    self.set_variable(variable, item);
                    if self.round(body, sink)? {
                        break;
                    }
                }
                Ok(())
            }
            StatementKind::While {
                condition,
                body,
                body_first,
                until,
            } => {
                let mut first = *body_first;
                while first || self.value_of(condition)?.is_true() != *until {
                    first = false;
                    if self.round(body, sink)? {
                        break;
                    }
                }
                Ok(())
            }
            StatementKind::For {
                start,
                condition,
                step,
                body,
            } => {
                if let Some(start) = start {
                    self.statement(start, &mut Vec::new())?;
                }
                loop {
                    if let Some(condition) = condition
                        && !self.value_of(condition)?.is_true()
                    {
                        return Ok(());
                    }
                    if self.round(body, sink)? {
                        return Ok(());
                    }
                    if let Some(step) = step {
                        self.statement(step, &mut Vec::new())?;
                    }
                }
            }
            StatementKind::Try { body, catches, finally } => self.try_statement(body, catches, finally.as_ref(), sink),
            StatementKind::Return(value) => {
                if let Some(value) = value {
                    self.statement(value, sink)?;
                }
                Err(Stop::Return)
            }
            StatementKind::Throw(value) => {
                let value = value.as_ref().map(|value| self.value_of(value)).transpose()?;
                Err(self.thrown(value, statement.span))
            }
            StatementKind::Exit(code) => {
                let code = match code {
                    Some(code) => convert::to_text(&self.value_of(code)?).trim().parse().unwrap_or(0),
                    None => 0,
                };
                Err(Stop::Exit(code))
            }
            StatementKind::Break => Err(Stop::Break),
            StatementKind::Continue => Err(Stop::Continue),
            StatementKind::Function { name, body } => {
                let block = self.block(body);
                self.set_function(name, block);
                Ok(())
            }
            StatementKind::Outside(construct) => {
                Err(self.wrong(statement.span, ErrorRecord::outside(format!("'{construct}'"))))
            }
        }
    }

    /// One round of a loop; whether it was the last.
    fn round(&mut self, body: &Script, sink: &mut dyn Sink) -> Outcome<bool> {
        match self.statements(&body.statements, sink) {
            Ok(()) | Err(Stop::Continue) => Ok(false),
            Err(Stop::Break) => Ok(true),
            Err(other) => Err(other),
        }
    }

    fn try_statement(
        &mut self,
        body: &Script,
        catches: &[Catch],
        finally: Option<&Script>,
        sink: &mut dyn Sink,
    ) -> Outcome {
        self.tries += 1;
        let result = self.statements(&body.statements, sink);
        self.tries -= 1;
        let result = match result {
            Err(Stop::Error(record)) => match catches.iter().find(|catch| catches_it(catch, &record)) {
                Some(catch) => {
                    self.remember(&record);
                    let value = record.to_value();
                    let outer = self.variable("_");
                    self.set_variable("_", value);
                    self.caught.push(record);
                    let result = self.statements(&catch.body.statements, sink);
                    self.caught.pop();
                    self.set_variable("_", outer.unwrap_or(Value::Null));
                    result
                }
                None => Err(Stop::Error(record)),
            },
            other => other,
        };
        match finally {
            Some(finally) => self.statements(&finally.statements, sink).and(result),
            None => result,
        }
    }

    /// The error that `throw` makes of a value; without one inside `catch`, what was caught.
    fn thrown(&mut self, value: Option<Value>, span: Span) -> Stop {
        let mut record = match (&value, self.caught.last()) {
            (None, Some(caught)) => caught.clone(),
            (Some(Value::Object(object)), _) if object.is("ErrorRecord") => {
                let mut record = ErrorRecord::new(Category::OperationStopped, "", "");
                let text = |name: &str| {
                    object
                        .hidden
                        .borrow()
                        .get(name)
                        .map(convert::to_text)
                        .unwrap_or_default()
                };
                record.message = text("ToString");
                record.id = object
                    .get("FullyQualifiedErrorId")
                    .as_ref()
                    .map(convert::to_text)
                    .unwrap_or_default();
                record.exception = text("Exception");
                record
            }
            (value, _) => {
                let message = match value {
                    Some(Value::Object(object)) if object.get("Message").is_some() => {
                        object.get("Message").as_ref().map(convert::to_text).unwrap_or_default()
                    }
                    Some(value) => convert::to_text(value),
                    None => "ScriptHalted".to_owned(),
                };
                let mut record = ErrorRecord::new(Category::OperationStopped, &message, message.clone());
                record.exception = "RuntimeException".to_owned();
                if let Some(Value::Object(object)) = value {
                    record.exception = object.kind().to_owned();
                }
                record
            }
        };
        record.thrown = value.clone();
        record.target = value.or(record.target.take());
        record.ends_script = true;
        self.wrong(span, record)
    }

    /// What a statement gives as a value. A lone expression keeps a list of one or none.
    pub(crate) fn value_of(&mut self, statement: &Statement) -> Outcome<Value> {
        if let StatementKind::Pipeline(pipeline) = &statement.kind
            && let [Element::Expression { expr, redirections }] = pipeline.elements.as_slice()
            && redirections.is_empty()
        {
            let value = self.expression(expr)?;
            self.runspace_mut().succeeded = true;
            return Ok(value);
        }
        if let StatementKind::Assign {
            target,
            operator,
            value,
        } = &statement.kind
        {
            return self.assignment(target, *operator, value, statement.span);
        }
        let mut output = Vec::new();
        self.statement(statement, &mut output)?;
        Ok(Value::from_output(output))
    }

    /// What a script in `$(…)` or `@(…)` gives.
    pub(crate) fn output_of(&mut self, script: &Script) -> Outcome<Vec<Value>> {
        let mut output = Vec::new();
        self.statements(&script.statements, &mut output)?;
        Ok(output)
    }

    /// A script block as a value.
    pub(crate) fn block(&self, script: &Script) -> Value {
        Value::Block(Rc::new(Block {
            script: script.clone(),
            source: Rc::clone(&self.source.text),
            file: self.source.file.clone(),
        }))
    }

    /// Runs a block in a scope of its own and gives its output.
    pub(crate) fn call_block(
        &mut self,
        block: &Block,
        arguments: Vec<Value>,
        input: Vec<Value>,
    ) -> Outcome<Vec<Value>> {
        let mut stage = BlockStage {
            block: Rc::new(Block {
                script: block.script.clone(),
                source: Rc::clone(&block.source),
                file: block.file.clone(),
            }),
            arguments,
            named: Vec::new(),
            input,
            dot: false,
            name: String::new(),
            span: block.script.span,
        };
        let mut output = Vec::new();
        self.run_block(&mut stage, &mut output)?;
        Ok(output)
    }

    /// Runs a block in the scope of its caller, with an object as `$_`.
    pub(crate) fn run_here(&mut self, block: &Block, item: Value, sink: &mut dyn Sink) -> Outcome {
        let outer = self.variable("_");
        self.set_variable("_", item);
        let result = self.inside(block, |session| session.statements(&block.script.statements, sink));
        self.set_variable("_", outer.unwrap_or(Value::Null));
        match result {
            Err(Stop::Return) => Ok(()),
            other => other,
        }
    }

    /// Runs a block or a function as a command.
    pub(crate) fn run_block(&mut self, stage: &mut BlockStage, sink: &mut dyn Sink) -> Outcome {
        let block = Rc::clone(&stage.block);
        let (arguments, named) = (std::mem::take(&mut stage.arguments), std::mem::take(&mut stage.named));
        let input = std::mem::take(&mut stage.input);
        let here = self.runspaces.len();
        let place = self.place(stage.span);
        let of_call = |stop: Stop| match stop {
            Stop::Error(mut record) => {
                record.place.get_or_insert(place);
                if !stage.name.is_empty() && record.activity.is_empty() {
                    record.activity.clone_from(&stage.name);
                    record.source.clone_from(&stage.name);
                }
                Stop::Error(record)
            }
            other => other,
        };
        if !stage.dot {
            self.push_scope();
        }
        let result = self.inside(&block, |session| {
            session.set_variable("input", Value::list(input));
            session
                .bind_parameters(&block.script, arguments, &named)
                .map_err(of_call)?;
            session.statements(&block.script.statements, sink)
        });
        if !stage.dot {
            self.pop_scope(here);
        }
        match result {
            Err(Stop::Return) => Ok(()),
            other => other,
        }
    }

    /// Does something with a block's text as the source, and not without end.
    fn inside(&mut self, block: &Block, act: impl FnOnce(&mut Session) -> Outcome) -> Outcome {
        if self.depth >= DEEPEST {
            let record = ErrorRecord::new(
                Category::InvalidOperation,
                "CallDepthOverflow",
                "The script failed due to call depth overflow.",
            );
            return Err(record.stop());
        }
        let own = Source {
            text: Rc::clone(&block.source),
            file: block.file.clone(),
        };
        let outer = std::mem::replace(&mut self.source, own);
        self.depth += 1;
        let result = act(self);
        self.depth -= 1;
        self.source = outer;
        result
    }

    /// Gives the variables of a `param` block their values; what is left is `$args`.
    pub(crate) fn bind_parameters(
        &mut self,
        script: &Script,
        arguments: Vec<Value>,
        named: &[(String, Option<Value>)],
    ) -> Outcome {
        let mut values: Vec<Option<Value>> = vec![None; script.parameters.len()];
        let mut left = Vec::new();
        for (name, value) in named {
            let begins = |own: &str| {
                own.get(..name.len())
                    .is_some_and(|head| head.eq_ignore_ascii_case(name))
            };
            let mut all = script.parameters.iter();
            let exact = all.position(|parameter| parameter.name.eq_ignore_ascii_case(name));
            let found = exact.or_else(|| script.parameters.iter().position(|parameter| begins(&parameter.name)));
            match found.and_then(|index| values.get_mut(index)) {
                Some(slot) => *slot = Some(value.clone().unwrap_or(Value::Bool(true))),
                None if script.parameters.is_empty() => {
                    left.push(Value::text(format!("-{name}")));
                    left.extend(value.clone());
                }
                None => {
                    let record = ErrorRecord::new(
                        Category::InvalidArgument,
                        "NamedParameterNotFound",
                        format!("A parameter cannot be found that matches parameter name '{name}'."),
                    );
                    return Err(record.exception("ParameterBindingException").stop());
                }
            }
        }
        let switch = |name: &Option<String>| name.as_deref().is_some_and(|name| name.eq_ignore_ascii_case("switch"));
        let mut arguments = arguments.into_iter();
        for (slot, parameter) in values.iter_mut().zip(&script.parameters) {
            if slot.is_none() && !switch(&parameter.type_name) {
                *slot = arguments.next();
            }
        }
        left.extend(arguments);
        for (value, parameter) in values.into_iter().zip(&script.parameters) {
            let value = match (value, &parameter.default) {
                (Some(value), _) => value,
                (None, Some(default)) => self.expression(default)?,
                (None, None) if parameter.mandatory => self.ask_parameter(&parameter.name)?,
                (None, None) if switch(&parameter.type_name) => Value::Bool(false),
                (None, None) => Value::Null,
            };
            let value = match &parameter.type_name {
                Some(name) if !switch(&parameter.type_name) && !matches!(value, Value::Null) => {
                    cast(&value, name).map_err(|record| self.wrong(parameter.span, record))?
                }
                _ => value,
            };
            self.set_variable(&parameter.name, value);
        }
        self.set_variable("args", Value::list(left));
        Ok(())
    }

    fn ask_parameter(&mut self, name: &str) -> Outcome<Value> {
        let answer = match self.is_interactive() {
            true => self.ask(&format!("{name}: ")),
            false => None,
        };
        answer.map(Value::text).ok_or_else(|| {
            let record = ErrorRecord::new(
                Category::InvalidArgument,
                "MissingMandatoryParameter",
                format!("Cannot process command because of one or more missing mandatory parameters: {name}."),
            );
            record.exception("ParameterBindingException").stop()
        })
    }
}

/// Whether a `catch` takes an error.
fn catches_it(catch: &Catch, record: &ErrorRecord) -> bool {
    let is = |name: &String| {
        let last = name.rsplit('.').next().unwrap_or(name);
        matches!(last.to_ascii_lowercase().as_str(), "exception" | "systemexception")
            || last.eq_ignore_ascii_case(&record.exception)
    };
    catch.types.is_empty() || catch.types.iter().any(is)
}

/// How deep blocks may call each other.
const DEEPEST: usize = 100;
