//! Pipelines: each object goes through all parts before the next one begins.

use std::rc::Rc;

use super::sink::{Onward, Sink};
use crate::{
    bind::Binding,
    call::{Call, complete},
    cmdlets::{Run, Staged},
    error::{ErrorRecord, Outcome, Stop},
    session::Session,
    syntax::{
        Span,
        ast::{Element, ExprKind, Pipeline},
    },
    value::{Block, Value},
};

/// One command of a pipeline, ready to take objects.
pub(crate) enum Stage {
    /// A cmdlet.
    Cmdlet(Box<CmdletStage>),
    /// A script block or a function.
    Block(Box<BlockStage>),
}

/// A cmdlet with its parameters.
pub(crate) struct CmdletStage {
    pub(crate) binding: Binding<'static>,
    pub(crate) body: Body,
    pub(crate) span: Span,
    pub(crate) common: Common,
}

/// What carries a cmdlet out, with what it keeps between objects.
pub(crate) enum Body {
    Each(fn(&mut Call<'_>) -> Outcome),
    All(fn(&mut Call<'_>, Vec<Value>) -> Outcome, Vec<Value>),
    Staged(Box<dyn Staged>),
}

/// A block with its arguments.
pub(crate) struct BlockStage {
    pub(crate) block: Rc<Block>,
    pub(crate) arguments: Vec<Value>,
    pub(crate) named: Vec<(String, Option<Value>)>,
    pub(crate) input: Vec<Value>,
    /// `.`: no scope of its own.
    pub(crate) dot: bool,
    /// What errors about its parameters name.
    pub(crate) name: String,
    /// Where it is called.
    pub(crate) span: Span,
}

/// What the parameters that all cmdlets have say.
#[derive(Default)]
pub(crate) struct Common {
    pub(crate) error_action: Option<Preference>,
    pub(crate) warning_action: Option<Preference>,
    pub(crate) verbose: Option<bool>,
    pub(crate) what_if: Option<bool>,
    pub(crate) confirm: Option<bool>,
    pub(crate) yes_to_all: bool,
    pub(crate) error_variable: Option<String>,
    pub(crate) errors: Vec<Value>,
    pub(crate) warning_variable: Option<String>,
    pub(crate) warnings: Vec<Value>,
    pub(crate) out_variable: Option<String>,
    pub(crate) kept: Vec<Value>,
    pub(crate) failed: bool,
    /// The pipeline that it is in.
    pub(crate) pipeline: usize,
    /// Whether it has enough of what the pipeline brings.
    pub(crate) enough: bool,
    /// `2>&1`.
    pub(crate) errors_to_output: bool,
}

/// What is done about an error or a warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preference {
    /// It is kept, not shown.
    Silently,
    /// It ends the script.
    Stop,
    /// It is shown.
    Continue,
    /// It is as if it had not been.
    Ignore,
}

impl Preference {
    /// By PowerShell's names.
    pub fn parse(text: &str) -> Option<Preference> {
        match text.to_ascii_lowercase().as_str() {
            "silentlycontinue" => Some(Preference::Silently),
            "stop" => Some(Preference::Stop),
            "continue" | "inquire" | "suspend" => Some(Preference::Continue),
            "ignore" => Some(Preference::Ignore),
            _ => None,
        }
    }
}

/// What follows a part of a pipeline.
pub(crate) struct Flow<'a> {
    pub(crate) rest: &'a mut [Stage],
    pub(crate) sink: &'a mut dyn Sink,
}

impl Flow<'_> {
    /// The same, for as long as it is lent.
    pub(crate) fn again(&mut self) -> Flow<'_> {
        Flow {
            rest: self.rest,
            sink: self.sink,
        }
    }

    /// Hands an object on.
    pub(crate) fn feed(&mut self, session: &mut Session, value: Value) -> Outcome {
        match self.rest.split_first_mut() {
            None => self.sink.take(session, value),
            Some((next, rest)) => {
                let flow = Flow { rest, sink: self.sink };
                next.process(session, Some(value), flow)
                    .map_err(|stop| next.complete(session, stop))
            }
        }
    }
}

impl Common {
    /// Of a call before the pipeline has brought anything.
    pub(crate) fn of(binding: &Binding<'static>, pipeline: usize) -> Common {
        let bound = binding.so_far();
        let preference = |name: &str| bound.text(name).and_then(|text| Preference::parse(&text));
        let flag = |name: &str| bound.get(name).map(Value::is_true);
        Common {
            error_action: preference("ErrorAction"),
            warning_action: preference("WarningAction"),
            verbose: flag("Verbose"),
            what_if: flag("WhatIf"),
            confirm: flag("Confirm"),
            error_variable: bound.text("ErrorVariable"),
            warning_variable: bound.text("WarningVariable"),
            out_variable: bound.text("OutVariable"),
            pipeline,
            ..Common::default()
        }
    }
}

impl Stage {
    fn begin<'a>(&'a mut self, session: &'a mut Session, flow: Flow<'a>) -> Outcome {
        let Stage::Cmdlet(own) = self else { return Ok(()) };
        let CmdletStage {
            binding,
            body: Body::Staged(staged),
            span,
            common,
        } = &mut **own
        else {
            return Ok(());
        };
        let mut call = Call {
            bound: binding.so_far(),
            input: None,
            place: session.place(*span),
            session,
            common,
            flow,
        };
        staged.begin(&mut call)
    }

    /// Takes an object; none, when it stands first in its pipeline.
    fn process<'a>(&'a mut self, session: &'a mut Session, input: Option<Value>, flow: Flow<'a>) -> Outcome {
        let own = match self {
            Stage::Cmdlet(own) => own,
            Stage::Block(own) => {
                own.input.extend(input);
                return Ok(());
            }
        };
        let place = session.place(own.span);
        if let Body::All(_, kept) = &mut own.body {
            match input {
                Some(value) => kept.push(value),
                None => kept.extend(
                    own.binding
                        .so_far()
                        .get("InputObject")
                        .map(Value::each)
                        .unwrap_or_default(),
                ),
            }
            return Ok(());
        }
        let bound = match &input {
            None => own.binding.clone().finish(),
            Some(_) if !own.binding.takes_input() && matches!(own.body, Body::Staged(_)) => Ok(own.binding.so_far()),
            Some(value) => own.binding.with_input(value),
        };
        let cmdlet = own.binding.cmdlet();
        let bound = match bound {
            Ok(bound) => bound,
            Err(error) => {
                let mut record = ErrorRecord::binding(&error);
                complete(&mut record, &cmdlet.name, &cmdlet.module);
                record.target = input;
                record.place = Some(place);
                return session.report(record, own.common.error_action);
            }
        };
        let mut call = Call {
            bound,
            input,
            place,
            session,
            common: &mut own.common,
            flow,
        };
        match &mut own.body {
            Body::Each(run) => run(&mut call),
            Body::Staged(staged) => staged.process(&mut call),
            Body::All(..) => Ok(()),
        }
    }

    fn end<'a>(&'a mut self, session: &'a mut Session, flow: Flow<'a>) -> Outcome {
        match self {
            Stage::Cmdlet(own) => {
                let CmdletStage {
                    binding,
                    body,
                    span,
                    common,
                } = &mut **own;
                let mut call = Call {
                    bound: binding.so_far(),
                    input: None,
                    place: session.place(*span),
                    session,
                    common,
                    flow,
                };
                match body {
                    Body::Each(_) => Ok(()),
                    Body::All(run, kept) => run(&mut call, std::mem::take(kept)),
                    Body::Staged(staged) => staged.end(&mut call),
                }
            }
            Stage::Block(own) => {
                let mut sink = Onward(flow);
                session.run_block(own, &mut sink)
            }
        }
    }

    /// Gives an error that ends the pipeline its place and its cmdlet.
    fn complete(&self, session: &Session, stop: Stop) -> Stop {
        match (self, stop) {
            (Stage::Cmdlet(own), Stop::Error(mut record)) if record.place.is_none() => {
                let cmdlet = own.binding.cmdlet();
                complete(&mut record, &cmdlet.name, &cmdlet.module);
                record.place = Some(session.place(own.span));
                Stop::Error(record)
            }
            (_, other) => other,
        }
    }
}

impl Session {
    /// Runs a pipeline; what it gives goes to `sink`.
    pub(crate) fn pipeline(&mut self, pipeline: &Pipeline, sink: &mut dyn Sink) -> Outcome {
        if let [Element::Expression { expr, redirections }] = pipeline.elements.as_slice()
            && redirections.is_empty()
        {
            let value = self.expression(expr)?;
            self.runspace_mut().succeeded = true;
            // `$x++` alone shows nothing.
            let values = match expr.kind {
                ExprKind::Step { .. } => Vec::new(),
                _ => value.each(),
            };
            return values.into_iter().try_for_each(|value| sink.take(self, value));
        }
        self.runspace_mut().succeeded = true;
        self.pipelines += 1;
        let number = self.pipelines;
        let mut stages = Vec::new();
        let mut first = None;
        for (index, element) in pipeline.elements.iter().enumerate() {
            match element {
                Element::Expression { expr, redirections } => {
                    first = Some(expr);
                    self.redirect(redirections, None, &mut stages, number)?;
                }
                Element::Command(command) => {
                    let stage = self.stage(command, index > 0, number)?;
                    stages.push(stage);
                    let at = stages.len() - 1;
                    self.redirect(&command.redirections, Some(at), &mut stages, number)?;
                }
            }
        }
        let fed = match first {
            Some(expr) => Some(self.expression(expr)?),
            None => None,
        };
        if stages.is_empty() {
            let values = fed.map(|value| value.each()).unwrap_or_default();
            return values.into_iter().try_for_each(|value| sink.take(self, value));
        }
        let result = self.flow(&mut stages, fed, sink);
        match result {
            Err(Stop::Enough(own)) if own == number => self.end_after_enough(&mut stages, sink),
            other => other,
        }
    }

    fn flow(&mut self, stages: &mut [Stage], fed: Option<Value>, sink: &mut dyn Sink) -> Outcome {
        for index in 0..stages.len() {
            self.at(stages, index, sink, Stage::begin)?;
        }
        match fed {
            Some(value) => {
                for item in streamed(&value) {
                    self.go_on()?;
                    let mut flow = Flow { rest: stages, sink };
                    flow.feed(self, item)?;
                }
            }
            None => self.at(stages, 0, sink, |stage, session, flow| {
                stage.process(session, None, flow)
            })?,
        }
        (0..stages.len()).try_for_each(|index| self.at(stages, index, sink, Stage::end))
    }

    /// A later part has enough: only what follows it comes to its end.
    fn end_after_enough(&mut self, stages: &mut [Stage], sink: &mut dyn Sink) -> Outcome {
        let full = stages
            .iter()
            .position(|stage| matches!(stage, Stage::Cmdlet(own) if own.common.enough));
        let from = full.unwrap_or_default();
        (from..stages.len()).try_for_each(|index| self.at(stages, index, sink, Stage::end))
    }

    fn at(
        &mut self,
        stages: &mut [Stage],
        index: usize,
        sink: &mut dyn Sink,
        act: impl for<'a> FnOnce(&'a mut Stage, &'a mut Session, Flow<'a>) -> Outcome,
    ) -> Outcome {
        let Some((stage, rest)) = stages.get_mut(index..).and_then(<[Stage]>::split_first_mut) else {
            return Ok(());
        };
        let result = act(stage, self, Flow { rest, sink });
        result.map_err(|stop| stage.complete(self, stop))
    }

    /// What a stage that carries `run` out keeps.
    pub(crate) fn body(run: Run) -> Body {
        match run {
            Run::Each(run) => Body::Each(run),
            Run::All(run) => Body::All(run, Vec::new()),
            Run::Staged(make) => Body::Staged(make()),
        }
    }
}

/// What a pipeline is fed with: the items of a list, the numbers of bytes, else the value itself.
fn streamed(value: &Value) -> Vec<Value> {
    match value {
        Value::Bytes(bytes) => bytes.iter().map(|byte| Value::Int(i64::from(*byte))).collect(),
        Value::Null => vec![Value::Null],
        other => other.each(),
    }
}
