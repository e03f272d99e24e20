//! `shell --check`: reads and binds the lines of a file without carrying anything out.

use std::fmt::Write as _;

use serde::Serialize;

use crate::{
    bind::{self, Circumstances, Given, Supplied, What},
    syntax::{
        self, Position, Span,
        ast::{Argument, Command, Element, Expr, ExprKind, Part, Pipeline, Script, Statement, StatementKind, Variable},
    },
    table::Table,
    value::{Block, Value},
};

/// What is known of one line, or of one file taken as a script.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    /// Its number in the file, from 1.
    pub line: usize,
    /// The line.
    pub text: String,
    /// Whether it is PowerShell.
    pub parsed: bool,
    /// Whether every cmdlet in it is known.
    pub known: bool,
    /// Whether the parameters of every cmdlet in it are bound.
    pub bound: bool,
    /// The cmdlets with what was bound.
    pub calls: Vec<Call>,
    /// What is wrong or noteworthy.
    pub remarks: Vec<Remark>,
}

/// A cmdlet with its parameters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Call {
    /// The cmdlet's own name.
    pub cmdlet: String,
    /// The parameter set, where there are several.
    pub set: String,
    /// The parameters that were given.
    pub parameters: Vec<String>,
}

/// Something to say about a place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Remark {
    /// Where.
    pub at: Position,
    /// Whether it keeps the line from being carried out.
    pub error: bool,
    /// What.
    pub text: String,
}

impl Line {
    /// Whether nothing is wrong with it.
    pub fn is_good(&self) -> bool {
        self.parsed && self.known && self.bound
    }
}

/// Checks every line of a text by itself; empty ones and comments are left out.
pub fn lines(text: &str, table: &Table) -> Vec<Line> {
    let numbered = text.lines().enumerate();
    let full = numbered.filter(|(_, line)| !line.trim().is_empty() && !line.trim_start().starts_with('#'));
    full.map(|(index, line)| check(line, index + 1, table)).collect()
}

/// Checks a text as one script.
pub fn script(text: &str, table: &Table) -> Line {
    check(text, 1, table)
}

/// How many lines are good, of how many, in a sentence; then each line that is not, with the reason.
pub fn report(lines: &[Line]) -> String {
    let good = lines.iter().filter(|line| line.is_good()).count();
    let mut text = String::new();
    for line in lines.iter().filter(|line| !line.is_good()) {
        let state = match (line.parsed, line.known) {
            (false, _) => "not parsed",
            (true, false) => "cmdlet not known",
            (true, true) => "not bound",
        };
        let _ = writeln!(text, "{:>4}  {state}: {}", line.line, line.text.trim());
        for remark in line.remarks.iter().filter(|remark| remark.error) {
            let _ = writeln!(text, "      character {}: {}", remark.at.column, remark.text);
        }
    }
    let count = |what: fn(&Line) -> bool| lines.iter().filter(|line| what(line)).count();
    let _ = writeln!(
        text,
        "{} lines: {} parsed, {} with known cmdlets only, {good} bound ({:.1} %)",
        lines.len(),
        count(|line| line.parsed),
        count(|line| line.parsed && line.known),
        share(good, lines.len()),
    );
    text
}

/// A share in percent.
#[expect(clippy::cast_precision_loss, reason = "numbers of lines")]
pub fn share(part: usize, whole: usize) -> f64 {
    match whole {
        0 => 100.0,
        _ => 100.0 * part as f64 / whole as f64,
    }
}

fn check(text: &str, line: usize, table: &Table) -> Line {
    let mut checker = Checker {
        source: text,
        table,
        result: Line {
            line,
            text: text.to_owned(),
            parsed: true,
            known: true,
            bound: true,
            calls: Vec::new(),
            remarks: Vec::new(),
        },
    };
    match syntax::parse(text) {
        Ok(script) => checker.script(&script),
        Err(error) => {
            checker.result.parsed = false;
            checker.result.known = false;
            checker.result.bound = false;
            checker.remark(error.span, true, error.message);
        }
    }
    checker.result
}

struct Checker<'a> {
    source: &'a str,
    table: &'a Table,
    result: Line,
}

impl Checker<'_> {
    fn remark(&mut self, span: Span, error: bool, text: impl Into<String>) {
        self.result.remarks.push(Remark {
            at: span.position(self.source),
            error,
            text: text.into(),
        });
    }

    fn script(&mut self, script: &Script) {
        for parameter in &script.parameters {
            if let Some(default) = &parameter.default {
                self.expr(default);
            }
        }
        for statement in &script.statements {
            self.statement(statement);
        }
    }

    fn statement(&mut self, statement: &Statement) {
        match &statement.kind {
            StatementKind::Pipeline(pipeline) => self.pipeline(pipeline),
            StatementKind::Assign { target, value, .. } => {
                self.expr(target);
                self.statement(value);
            }
            StatementKind::If { clauses, otherwise } => {
                for (condition, body) in clauses {
                    self.statement(condition);
                    self.script(body);
                }
                if let Some(body) = otherwise {
                    self.script(body);
                }
            }
            StatementKind::Foreach { items, body, .. } => {
                self.statement(items);
                self.script(body);
            }
            StatementKind::While { condition, body, .. } => {
                self.statement(condition);
                self.script(body);
            }
            StatementKind::For {
                start,
                condition,
                step,
                body,
            } => {
                for part in [start, condition, step].into_iter().flatten() {
                    self.statement(part);
                }
                self.script(body);
            }
            StatementKind::Try { body, catches, finally } => {
                self.script(body);
                for catch in catches {
                    self.script(&catch.body);
                }
                if let Some(body) = finally {
                    self.script(body);
                }
            }
            StatementKind::Return(value) | StatementKind::Throw(value) | StatementKind::Exit(value) => {
                if let Some(value) = value {
                    self.statement(value);
                }
            }
            StatementKind::Function { body, .. } => self.script(body),
            StatementKind::Break | StatementKind::Continue => {}
            StatementKind::Outside(construct) => {
                self.result.bound = false;
                let text = format!("'{construct}' is PowerShell, but outside of what this shell carries out.");
                self.remark(statement.span, true, text);
            }
        }
    }

    fn pipeline(&mut self, pipeline: &Pipeline) {
        for (index, element) in pipeline.elements.iter().enumerate() {
            match element {
                Element::Expression { expr, .. } => self.expr(expr),
                Element::Command(command) => self.command(command, index > 0),
            }
        }
    }

    fn command(&mut self, command: &Command, fed: bool) {
        let mut given = Vec::new();
        let mut open = false;
        for argument in &command.arguments {
            match argument {
                Argument::Parameter { name, value, span } => {
                    let value = value.as_ref().map(|value| self.supplied(value));
                    given.push(Given {
                        what: What::Named(name.clone(), value),
                        span: *span,
                    });
                }
                Argument::Value(value) => {
                    let what = What::Value(self.supplied(value));
                    given.push(Given { what, span: value.span });
                }
                Argument::Splat { .. } => open = true,
            }
        }
        let ExprKind::Text(name) = &command.name.kind else {
            self.expr(&command.name);
            self.remark(
                command.name.span,
                false,
                "What is called here only running the script tells.",
            );
            return;
        };
        let Some(cmdlet) = self.table.find(name) else {
            self.result.known = false;
            self.result.bound = false;
            let hint = match self.table.nearest(name) {
                Some(near) => format!(" Did you mean {}?", near.name),
                None => String::new(),
            };
            let text = format!("The term '{name}' is not recognized as the name of a cmdlet.{hint}");
            self.remark(command.name.span, true, text);
            return;
        };
        let circumstances = Circumstances { fed, open };
        let outcome = bind::bind(cmdlet, given, circumstances).map(|binding| binding.outline());
        match outcome {
            Ok((set, parameters)) => self.result.calls.push(Call {
                cmdlet: cmdlet.name.clone(),
                set,
                parameters,
            }),
            Err(error) => {
                self.result.bound = false;
                self.remark(error.span.unwrap_or(command.name.span), true, error.message);
            }
        }
    }

    /// An argument's value, as far as it can be told without running anything.
    fn supplied(&mut self, expr: &Expr) -> Supplied {
        self.expr(expr);
        match constant(expr, self.source) {
            Some(value) => {
                let written = match &expr.kind {
                    ExprKind::Integer(_, text) | ExprKind::Real(_, text) => Some(text.clone()),
                    _ => None,
                };
                Supplied::Known(value, written)
            }
            None => Supplied::Unknown,
        }
    }

    fn expr(&mut self, expr: &Expr) {
        match &expr.kind {
            ExprKind::Integer(..)
            | ExprKind::Real(..)
            | ExprKind::Text(_)
            | ExprKind::Variable(_)
            | ExprKind::Type(_) => {}
            ExprKind::Expandable(parts) => {
                for part in parts {
                    match part {
                        Part::Sub(script) => self.script(script),
                        Part::Placeholder(text) => self.placeholder(expr.span, text),
                        Part::Text(_) | Part::Variable(_) => {}
                    }
                }
            }
            ExprKind::Placeholder(text) => self.placeholder(expr.span, text),
            ExprKind::List(items) => items.iter().for_each(|item| self.expr(item)),
            ExprKind::Sub(script) | ExprKind::Array(script) => self.script(script),
            ExprKind::Block(script) => self.script(script),
            ExprKind::Hashtable(entries) => {
                for (key, value) in entries {
                    self.expr(key);
                    self.statement(value);
                }
            }
            ExprKind::Paren(statement) => self.statement(statement),
            ExprKind::Member { object, name, .. } => {
                self.expr(object);
                self.expr(name);
            }
            ExprKind::Call {
                object,
                name,
                arguments,
                ..
            } => {
                self.expr(object);
                self.expr(name);
                arguments.iter().for_each(|argument| self.expr(argument));
            }
            ExprKind::Index { object, index } => {
                self.expr(object);
                self.expr(index);
            }
            ExprKind::Unary(_, operand) | ExprKind::Cast(_, operand) | ExprKind::Step { target: operand, .. } => {
                self.expr(operand);
            }
            ExprKind::Binary { left, right, .. } => {
                self.expr(left);
                self.expr(right);
            }
        }
    }

    fn placeholder(&mut self, span: Span, text: &str) {
        self.remark(span, false, format!("<{text}> must be filled in before this runs."));
    }
}

/// The value of an expression that is the same whenever it is computed.
fn constant(expr: &Expr, source: &str) -> Option<Value> {
    match &expr.kind {
        ExprKind::Integer(value, _) => Some(Value::Int(*value)),
        ExprKind::Real(value, _) => Some(Value::Real(*value)),
        ExprKind::Text(text) => Some(Value::text(text)),
        ExprKind::Variable(Variable { scope: None, name, .. }) => match name.to_ascii_lowercase().as_str() {
            "true" => Some(Value::Bool(true)),
            "false" => Some(Value::Bool(false)),
            "null" => Some(Value::Null),
            _ => None,
        },
        ExprKind::List(items) => {
            let each: Option<Vec<Value>> = items.iter().map(|item| constant(item, source)).collect();
            each.map(Value::list)
        }
        ExprKind::Block(script) => Some(Value::Block(std::rc::Rc::new(Block {
            script: (**script).clone(),
            source: source.into(),
            file: None,
        }))),
        _ => None,
    }
}
