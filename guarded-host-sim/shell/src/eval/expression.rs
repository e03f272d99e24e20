//! Expressions.

use std::rc::Rc;

use super::{cast::cast, operator};
use crate::{
    error::{Category, ErrorRecord, Outcome},
    session::Session,
    syntax::ast::{BinaryOp, Expr, ExprKind, Part, Script, UnaryOp},
    value::{Entries, Object, Value, convert},
};

impl Session {
    /// Computes an expression.
    pub(crate) fn expression(&mut self, expr: &Expr) -> Outcome<Value> {
        match &expr.kind {
            ExprKind::Integer(value, _) => Ok(Value::Int(*value)),
            ExprKind::Real(value, _) => Ok(Value::Real(*value)),
            ExprKind::Text(text) => Ok(Value::text(text)),
            ExprKind::Expandable(parts) => self.expand(parts, expr),
            ExprKind::Variable(variable) => self.read(variable),
            ExprKind::List(items) => {
                let items: Outcome<Vec<Value>> = items.iter().map(|item| self.expression(item)).collect();
                Ok(Value::list(items?))
            }
            ExprKind::Sub(script) => Ok(Value::from_output(self.output_of(script)?)),
            ExprKind::Array(script) => self.array(script),
            ExprKind::Hashtable(entries) => {
                let mut table = Entries::default();
                for (key, value) in entries {
                    let key = convert::to_text(&self.expression(key)?);
                    let value = self.value_of(value)?;
                    table.set(&key, value);
                }
                Ok(Value::table(table))
            }
            ExprKind::Block(script) => Ok(self.block(script)),
            ExprKind::Paren(statement) => self.value_of(statement),
            ExprKind::Member {
                object,
                name,
                is_static,
            } => self.member(object, name, *is_static, expr),
            ExprKind::Call {
                object,
                name,
                arguments,
                is_static,
            } => self.method_call(object, name, arguments, *is_static, expr),
            ExprKind::Index { object, index } => {
                let (object, index) = (self.expression(object)?, self.expression(index)?);
                self.index(&object, &index)
                    .map_err(|record| self.wrong(expr.span, record))
            }
            ExprKind::Unary(op, operand) => self.unary(*op, operand, expr),
            ExprKind::Step { target, by, before } => self.step(target, *by, *before),
            ExprKind::Binary { op, case, left, right } => self.binary(*op, *case, left, right, expr),
            ExprKind::Cast(name, operand) => self.cast_expression(name, operand, expr),
            ExprKind::Type(name) => match super::cast::known(name) {
                true => Ok(Value::Type(name.as_str().into())),
                false => Err(self.wrong(expr.span, super::cast::unknown(name))),
            },
            ExprKind::Placeholder(text) => Err(self.wrong(
                expr.span,
                ErrorRecord::new(
                    Category::InvalidArgument,
                    "PlaceholderNotFilledIn",
                    format!("<{text}> stands for something that must be filled in before this runs."),
                ),
            )),
        }
    }

    /// Text with what its variables and subexpressions give.
    fn expand(&mut self, parts: &[Part], expr: &Expr) -> Outcome<Value> {
        let mut text = String::new();
        for part in parts {
            match part {
                Part::Text(own) => text.push_str(own),
                Part::Variable(variable) => text.push_str(&convert::to_text(&self.read(variable)?)),
                Part::Sub(script) => text.push_str(&convert::to_text(&Value::from_output(self.output_of(script)?))),
                Part::Placeholder(name) => {
                    let record = ErrorRecord::new(
                        Category::InvalidArgument,
                        "PlaceholderNotFilledIn",
                        format!("<{name}> stands for something that must be filled in before this runs."),
                    );
                    return Err(self.wrong(expr.span, record));
                }
            }
        }
        Ok(Value::text(text))
    }

    /// `@(…)`: a lone expression that is a list already stays it.
    fn array(&mut self, script: &Script) -> Outcome<Value> {
        let mut items = Vec::new();
        for statement in &script.statements {
            match self.value_of(statement)? {
                Value::Null if matches!(statement.kind, crate::syntax::ast::StatementKind::Assign { .. }) => {}
                Value::Null if !is_expression(statement) => {}
                Value::List(list) => items.extend(list.borrow().iter().cloned()),
                other => items.push(other),
            }
        }
        Ok(Value::list(items))
    }

    fn unary(&mut self, op: UnaryOp, operand: &Expr, expr: &Expr) -> Outcome<Value> {
        let value = self.expression(operand)?;
        match op {
            UnaryOp::Not => Ok(Value::Bool(!value.is_true())),
            UnaryOp::Plus | UnaryOp::Minus => {
                let number = operator::number(&value).map_err(|record| self.wrong(expr.span, record))?;
                match (op, number) {
                    (UnaryOp::Plus, number) => Ok(number),
                    (_, Value::Int(number)) => Ok(number.checked_neg().map_or(Value::Null, Value::Int)),
                    (_, Value::Real(number)) => Ok(Value::Real(-number)),
                    (_, other) => Ok(other),
                }
            }
            UnaryOp::BitNot => match operator::number(&value) {
                Ok(Value::Int(number)) => Ok(Value::Int(!number)),
                Ok(_) => Err(self.wrong(expr.span, ErrorRecord::outside("-bnot of this"))),
                Err(record) => Err(self.wrong(expr.span, record)),
            },
            UnaryOp::Comma => Ok(Value::list(vec![value])),
            UnaryOp::Join => Ok(operator::join(&value, "")),
            UnaryOp::Split => {
                let words = value.each();
                let words = words.iter().flat_map(|v| {
                    let text = convert::to_text(v);
                    text.split_whitespace().map(Value::text).collect::<Vec<_>>()
                });
                Ok(Value::list(words.collect()))
            }
        }
    }

    fn binary(&mut self, op: BinaryOp, case: bool, left: &Expr, right: &Expr, expr: &Expr) -> Outcome<Value> {
        let left = self.expression(left)?;
        // The right side is left alone where the left one decides.
        match (op, left.is_true()) {
            (BinaryOp::And, false) => return Ok(Value::Bool(false)),
            (BinaryOp::Or, true) => return Ok(Value::Bool(true)),
            _ => {}
        }
        if matches!(op, BinaryOp::Is | BinaryOp::IsNot | BinaryOp::As) {
            let name = match &right.kind {
                ExprKind::Type(name) => name.clone(),
                _ => convert::to_text(&self.expression(right)?),
            };
            return Ok(match op {
                BinaryOp::Is => Value::Bool(super::cast::is(&left, &name)),
                BinaryOp::IsNot => Value::Bool(!super::cast::is(&left, &name)),
                _ => cast(&left, &name).unwrap_or(Value::Null),
            });
        }
        let right = self.expression(right)?;
        if matches!(op, BinaryOp::Replace) && matches!(right.each().get(1), Some(Value::Block(_))) {
            return Err(self.wrong(expr.span, ErrorRecord::outside("-replace by a script block")));
        }
        let (value, matches) =
            operator::apply(op, case, &left, &right).map_err(|record| self.wrong(expr.span, record))?;
        if let Some(matches) = matches {
            self.set_variable("Matches", matches);
        }
        Ok(value)
    }

    fn cast_expression(&mut self, name: &str, operand: &Expr, expr: &Expr) -> Outcome<Value> {
        // The entries of a literal in their order, which a hashtable here keeps anyway.
        let value = self.expression(operand)?;
        match (name.to_ascii_lowercase().as_str(), &value) {
            ("ordered", Value::Table(_)) => return Ok(value),
            ("pscustomobject", Value::Table(entries)) => {
                let properties: Vec<(String, Value)> = entries
                    .borrow()
                    .iter()
                    .map(|(n, v)| (n.to_owned(), v.clone()))
                    .collect();
                return Ok(Value::Object(Rc::new(Object::new("PSCustomObject", properties))));
            }
            _ => {}
        }
        cast(&value, name).map_err(|record| self.wrong(expr.span, record))
    }
}

fn is_expression(statement: &crate::syntax::ast::Statement) -> bool {
    use crate::syntax::ast::{Element, StatementKind};
    matches!(&statement.kind, StatementKind::Pipeline(pipeline)
        if matches!(pipeline.elements.as_slice(), [Element::Expression { .. }]))
}
