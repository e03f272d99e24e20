//! Assignment: to variables, properties, elements, and several at once.

use super::{cast::cast, operator};
use crate::{
    error::{Category, ErrorRecord, Outcome},
    session::Session,
    syntax::{
        Span,
        ast::{BinaryOp, Expr, ExprKind, Statement},
    },
    value::{Value, convert},
};

impl Session {
    pub(crate) fn assignment(
        &mut self,
        target: &Expr,
        operator: Option<BinaryOp>,
        value: &Statement,
        span: Span,
    ) -> Outcome<Value> {
        let value = self.value_of(value)?;
        let value = match operator {
            None => value,
            Some(operator) => {
                let old = self.expression(target)?;
                let (value, _) =
                    operator::apply(operator, false, &old, &value).map_err(|record| self.wrong(span, record))?;
                value
            }
        };
        self.assign(target, value.clone())?;
        Ok(value)
    }

    /// `$x++` and its kin.
    pub(crate) fn step(&mut self, target: &Expr, by: i64, before: bool) -> Outcome<Value> {
        let old = operator::number(&self.expression(target)?).map_err(|record| self.wrong(target.span, record))?;
        let (new, _) = operator::apply(BinaryOp::Add, false, &old, &Value::Int(by))
            .map_err(|record| self.wrong(target.span, record))?;
        self.assign(target, new.clone())?;
        Ok(if before { new } else { old })
    }

    fn assign(&mut self, target: &Expr, value: Value) -> Outcome {
        match &target.kind {
            ExprKind::Variable(variable) => self.write_variable(variable, value),
            ExprKind::Cast(name, inner) => {
                let value = cast(&value, name).map_err(|record| self.wrong(target.span, record))?;
                self.assign(inner, value)
            }
            ExprKind::List(targets) => {
                let mut values = value.each().into_iter();
                for (index, one) in targets.iter().enumerate() {
                    let last = index + 1 == targets.len();
                    let value = match last {
                        // The last one takes what is left.
                        true => Value::from_output(values.by_ref().collect()),
                        false => values.next().unwrap_or(Value::Null),
                    };
                    self.assign(one, value)?;
                }
                Ok(())
            }
            ExprKind::Member { object, name, .. } => {
                let object = self.expression(object)?;
                let name = convert::to_text(&self.expression(name)?);
                self.set_member(&object, &name, value)
                    .map_err(|record| self.wrong(target.span, record))
            }
            ExprKind::Index { object, index } => {
                let (object, index) = (self.expression(object)?, self.expression(index)?);
                set_index(&object, &index, value).map_err(|record| self.wrong(target.span, record))
            }
            ExprKind::Paren(inner) => match &inner.kind {
                crate::syntax::ast::StatementKind::Pipeline(pipeline) => match pipeline.elements.as_slice() {
                    [crate::syntax::ast::Element::Expression { expr, .. }] => self.assign(expr, value),
                    _ => Err(self.wrong(target.span, ErrorRecord::outside("Assigning to this"))),
                },
                _ => Err(self.wrong(target.span, ErrorRecord::outside("Assigning to this"))),
            },
            _ => Err(self.wrong(target.span, ErrorRecord::outside("Assigning to this"))),
        }
    }
}

fn set_index(object: &Value, index: &Value, value: Value) -> Result<(), ErrorRecord> {
    match object {
        Value::Table(entries) => {
            entries.borrow_mut().set(&convert::to_text(index), value);
            Ok(())
        }
        Value::List(items) => {
            let Value::Int(at) = operator::number(index)? else {
                return Err(ErrorRecord::outside("Such an index"));
            };
            let mut items = items.borrow_mut();
            let length = i64::try_from(items.len()).unwrap_or(i64::MAX);
            let at = usize::try_from(if at < 0 { at + length } else { at }).ok();
            match at.and_then(|at| items.get_mut(at)) {
                Some(slot) => {
                    *slot = value;
                    Ok(())
                }
                None => Err(ErrorRecord::new(
                    Category::OperationStopped,
                    "IndexOutOfRangeException",
                    "Index was outside the bounds of the array.",
                )
                .exception("IndexOutOfRangeException")),
            }
        }
        Value::Null => Err(ErrorRecord::new(
            Category::InvalidOperation,
            "NullArray",
            "Cannot index into a null array.",
        )
        .exception("RuntimeException")),
        _ => Err(ErrorRecord::outside("Changing an element of this")),
    }
}
