//! From what stands after a cmdlet's name to its parameters, by PowerShell's rules: names in any case
//! and abbreviated, aliases, places, sets, what must be given, what the pipeline brings.

mod sets;
#[cfg(test)]
mod tests;

use std::{cell::RefCell, collections::BTreeSet};

use crate::{
    syntax::Span,
    table::{Cmdlet, Kind, Parameter},
    value::{Value, convert},
};

/// One thing that stands after a cmdlet's name.
#[derive(Clone)]
pub struct Given {
    /// What it is.
    pub what: What,
    /// Where it stands.
    pub span: Span,
}

/// What can stand after a cmdlet's name.
#[derive(Clone)]
pub enum What {
    /// `-Name`, with the value behind a colon, if there is one.
    Named(String, Option<Supplied>),
    /// A value.
    Value(Supplied),
}

/// A value, as far as it is known.
#[derive(Clone)]
pub enum Supplied {
    /// Known; a number in a word also as it was written, because a text parameter takes that.
    Known(Value, Option<String>),
    /// Only running the script tells.
    Unknown,
}

/// What is known around the command.
#[derive(Clone, Copy, Debug, Default)]
pub struct Circumstances {
    /// Whether a pipeline feeds it.
    pub fed: bool,
    /// Whether more parameters come that are not known yet: those of a splatted variable.
    pub open: bool,
}

/// Why parameters are not bound.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BindError {
    /// PowerShell's identifier of the case: `MissingMandatoryParameter`, say.
    pub id: &'static str,
    /// In PowerShell's words.
    pub message: String,
    /// Where, if it is about one argument.
    pub span: Option<Span>,
    /// What must be given and is not: somebody who types is asked for it.
    pub missing: Vec<String>,
}

/// Parameters, before the pipeline has brought anything.
#[derive(Clone)]
pub struct Binding<'t> {
    cmdlet: &'t Cmdlet,
    values: Vec<(usize, Option<Value>)>,
    /// For each set, whether what was given fits it.
    valid: Vec<bool>,
    circumstances: Circumstances,
}

/// The parameters of one call.
pub struct Bound<'t> {
    cmdlet: &'t Cmdlet,
    set: usize,
    values: Vec<(usize, Option<Value>)>,
    looked_at: RefCell<BTreeSet<usize>>,
}

/// Binds what was given.
///
/// # Errors
/// What does not fit, in PowerShell's words.
pub fn bind(cmdlet: &Cmdlet, given: Vec<Given>, circumstances: Circumstances) -> Result<Binding<'_>, BindError> {
    let mut binding = Binding {
        cmdlet,
        values: Vec::new(),
        valid: vec![true; cmdlet.sets.len()],
        circumstances,
    };
    let left = binding.named(given)?;
    binding.by_place(left)?;
    binding.choose_set()?;
    Ok(binding)
}

/// The parameter that a name means: its own name, an alias, or the beginning of only one.
///
/// # Errors
/// The name means none, or more than one.
pub fn resolve<'t>(cmdlet: &'t Cmdlet, name: &str, span: Span) -> Result<(usize, &'t Parameter), BindError> {
    let all = || cmdlet.parameters.iter().enumerate();
    if let Some(exact) = all().find(|(_, parameter)| parameter.is_called(name)) {
        return Ok(exact);
    }
    let begins = |parameter: &Parameter| {
        let head = |own: &str| {
            own.get(..name.len())
                .is_some_and(|head| head.eq_ignore_ascii_case(name))
        };
        !name.is_empty() && parameter.names().any(head)
    };
    let candidates: Vec<_> = all().filter(|(_, parameter)| begins(parameter)).collect();
    match candidates.as_slice() {
        [one] => Ok(*one),
        [] => Err(BindError {
            id: "NamedParameterNotFound",
            message: format!("A parameter cannot be found that matches parameter name '{name}'."),
            span: Some(span),
            missing: Vec::new(),
        }),
        several => {
            let names: Vec<String> = several.iter().map(|(_, p)| format!("-{}", p.name)).collect();
            Err(BindError {
                id: "AmbiguousParameter",
                message: format!(
                    "Parameter cannot be processed because the parameter name '{name}' is ambiguous. Possible matches \
                     include: {}.",
                    names.join(" ")
                ),
                span: Some(span),
                missing: Vec::new(),
            })
        }
    }
}

impl<'t> Binding<'t> {
    /// Takes what has a name; gives back what has none.
    fn named(&mut self, given: Vec<Given>) -> Result<Vec<(Supplied, Span)>, BindError> {
        let mut left = Vec::new();
        let mut given = given.into_iter().peekable();
        while let Some(Given { what, span }) = given.next() {
            let (name, with_colon) = match what {
                What::Value(value) => {
                    left.push((value, span));
                    continue;
                }
                What::Named(name, value) => (name, value),
            };
            let (index, parameter) = resolve(self.cmdlet, &name, span)?;
            let (value, at) = match (with_colon, &parameter.kind) {
                (Some(value), _) => (value, span),
                (None, Kind::Switch) => (Supplied::Known(Value::Bool(true), None), span),
                (None, _) => match given.peek() {
                    Some(Given {
                        what: What::Value(value),
                        span: at,
                    }) => {
                        let value = (value.clone(), *at);
                        given.next();
                        value
                    }
                    _ => {
                        return Err(BindError {
                            id: "MissingArgument",
                            message: format!(
                                "Missing an argument for parameter '{}'. Specify a parameter of type '{}' and try again.",
                                parameter.name,
                                parameter.type_name()
                            ),
                            span: Some(span),
                            missing: Vec::new(),
                        });
                    }
                },
            };
            if self.is_bound(index) {
                return Err(BindError {
                    id: "ParameterAlreadyBound",
                    message: format!(
                        "Cannot bind parameter because parameter '{}' is specified more than once.",
                        parameter.name
                    ),
                    span: Some(span),
                    missing: Vec::new(),
                });
            }
            let value = converted(parameter, &value, at)?;
            self.take(index, value, span)?;
        }
        Ok(left)
    }

    /// Takes values without a name, each for the first free place.
    fn by_place(&mut self, mut left: Vec<(Supplied, Span)>) -> Result<(), BindError> {
        let mut place = 0;
        while !left.is_empty() {
            let Some(next) = self.next_place(place) else {
                let (value, span) = left.remove(0);
                let text = match &value {
                    Supplied::Known(value, written) => written.clone().unwrap_or_else(|| convert::to_text(value)),
                    Supplied::Unknown => String::new(),
                };
                return Err(BindError {
                    id: "PositionalParameterNotFound",
                    message: format!("A positional parameter cannot be found that accepts argument '{text}'."),
                    span: Some(span),
                    missing: Vec::new(),
                });
            };
            place = next + 1;
            let candidates = self.candidates(next);
            let rest = candidates.iter().copied().find(|index| self.parameter(*index).rest);
            if let Some(index) = rest {
                let items: Option<Vec<Value>> = left.iter().map(|(value, _)| known(value)).collect();
                let (_, span) = left.remove(0);
                left.clear();
                let value = match items {
                    Some(mut items) if items.len() == 1 => Some(items.remove(0)),
                    items => items.map(Value::list),
                };
                return self.take(index, value, span);
            }
            let (value, span) = left.remove(0);
            let as_it_is = candidates.iter().copied().find(|index| match &value {
                Supplied::Known(value, _) => convert::fits(value, self.parameter(*index)),
                Supplied::Unknown => true,
            });
            let after_conversion = || {
                let fits = |index: &usize| converted(self.parameter(*index), &value, span).is_ok();
                candidates.iter().copied().find(fits)
            };
            let index = as_it_is.or_else(after_conversion).or(candidates.first().copied());
            let Some(index) = index else { continue };
            let value = converted(self.parameter(index), &value, span)?;
            self.take(index, value, span)?;
        }
        Ok(())
    }

    /// The first place from `least` on that is still free in some set.
    fn next_place(&self, least: usize) -> Option<usize> {
        self.members()
            .filter_map(|(_, member)| member.position.filter(|_| !self.is_bound(member.parameter)))
            .filter(|position| *position >= least)
            .min()
    }

    /// The parameters at this place, that of the default set first.
    fn candidates(&self, place: usize) -> Vec<usize> {
        let mut found = Vec::new();
        for (set, member) in self.members() {
            let free = member.position == Some(place) && !self.is_bound(member.parameter);
            if free && !found.contains(&member.parameter) {
                match Some(set) == self.cmdlet.default_set {
                    true => found.insert(0, member.parameter),
                    false => found.push(member.parameter),
                }
            }
        }
        found
    }

    /// Binds a value; only the sets with this parameter remain.
    fn take(&mut self, index: usize, value: Option<Value>, span: Span) -> Result<(), BindError> {
        self.values.push((index, value));
        for (valid, set) in self.valid.iter_mut().zip(&self.cmdlet.sets) {
            *valid &= set.members.iter().any(|member| member.parameter == index);
        }
        match self.valid.contains(&true) {
            true => Ok(()),
            false => Err(sets::ambiguous(Some(span))),
        }
    }

    fn is_bound(&self, index: usize) -> bool {
        self.values.iter().any(|(bound, _)| *bound == index)
    }

    fn parameter(&self, index: usize) -> &'t Parameter {
        &self.cmdlet.parameters[index]
    }

    /// The call's parameters when the pipeline brings nothing.
    ///
    /// # Errors
    /// Something must be given that is not.
    pub fn finish(mut self) -> Result<Bound<'t>, BindError> {
        self.circumstances.fed = false;
        let set = self.choose_set()?;
        Ok(self.bound(set))
    }

    /// The call's parameters with an object that the pipeline brings.
    ///
    /// # Errors
    /// Nothing takes the object, or something is missing still.
    pub fn with_input(&self, input: &Value) -> Result<Bound<'t>, BindError> {
        let mut binding = self.clone();
        let mut taken = false;
        let span = Span::default();
        // Whole objects as they are, then properties, then whole objects converted.
        for (convert_first, by_value) in [(false, true), (true, false), (true, true)] {
            if taken && by_value {
                break;
            }
            for index in binding.fed_parameters(by_value) {
                let parameter = binding.parameter(index);
                let value = match by_value {
                    true => Some(input.clone()),
                    false => parameter.names().find_map(|name| property(input, name)),
                };
                let Some(value) = value else { continue };
                if !convert_first && !convert::fits(&value, parameter) {
                    continue;
                }
                let Ok(value) = convert::for_parameter(&value, parameter) else {
                    continue;
                };
                let mut tried = binding.clone();
                if tried.take(index, Some(value), span).is_ok() {
                    binding = tried;
                    taken = true;
                }
            }
        }
        if !taken {
            return Err(BindError {
                id: "InputObjectNotBound",
                message:
                    "The input object cannot be bound to any parameters for the command either because the command \
                          does not take pipeline input or the input and its properties do not match any of the \
                          parameters that take pipeline input."
                        .to_owned(),
                span: None,
                missing: Vec::new(),
            });
        }
        binding.finish()
    }

    /// Free parameters that take pipeline input, that of the default set first.
    fn fed_parameters(&self, by_value: bool) -> Vec<usize> {
        let mut found = Vec::new();
        for (set, member) in self.members() {
            let parameter = self.parameter(member.parameter);
            let takes = if by_value {
                parameter.by_value
            } else {
                parameter.by_property
            };
            if takes && !self.is_bound(member.parameter) && !found.contains(&member.parameter) {
                match Some(set) == self.cmdlet.default_set {
                    true => found.insert(0, member.parameter),
                    false => found.push(member.parameter),
                }
            }
        }
        found
    }

    /// The name of the set, as far as it is decided, and the names of the parameters that were given.
    pub fn outline(&self) -> (String, Vec<String>) {
        let set = self.choose_set().ok().map(|set| self.cmdlet.sets[set].name.clone());
        let names = self.values.iter().map(|(index, _)| self.parameter(*index).name.clone());
        (set.unwrap_or_default(), names.collect())
    }

    /// Whether anything of the pipeline could be taken.
    pub fn takes_input(&self) -> bool {
        !self.fed_parameters(true).is_empty() || !self.fed_parameters(false).is_empty()
    }

    /// What is called.
    pub fn cmdlet(&self) -> &'t Cmdlet {
        self.cmdlet
    }

    /// The call's parameters as far as they are given without the pipeline.
    pub fn so_far(&self) -> Bound<'t> {
        let first = self.valid.iter().position(|valid| *valid);
        let doubtful = self.cmdlet.default_set.or(first).unwrap_or_default();
        let set = self.choose_set().unwrap_or(doubtful);
        self.clone().bound(set)
    }

    fn bound(self, set: usize) -> Bound<'t> {
        Bound {
            cmdlet: self.cmdlet,
            set,
            values: self.values,
            looked_at: RefCell::default(),
        }
    }
}

impl<'t> Bound<'t> {
    /// What is called.
    pub fn cmdlet(&self) -> &'t Cmdlet {
        self.cmdlet
    }

    /// The name of the parameter set.
    pub fn set(&self) -> &'t str {
        self.cmdlet.sets.get(self.set).map_or("", |set| set.name.as_str())
    }

    /// The value of a parameter, if it was given.
    pub fn get(&self, name: &str) -> Option<&Value> {
        let index = self
            .cmdlet
            .parameters
            .iter()
            .position(|p| p.name.eq_ignore_ascii_case(name))?;
        self.looked_at.borrow_mut().insert(index);
        self.values.iter().find(|(bound, _)| *bound == index)?.1.as_ref()
    }

    /// The text of a parameter, if it was given.
    pub fn text(&self, name: &str) -> Option<String> {
        self.get(name).map(convert::to_text)
    }

    /// Whether a switch was given, and not as `$false`.
    pub fn switch(&self, name: &str) -> bool {
        self.get(name).is_some_and(Value::is_true)
    }

    /// The parameters that were given, with their values as far as they are known.
    pub fn given(&self) -> impl Iterator<Item = (&'t Parameter, Option<&Value>)> {
        let parameter = |index: &usize| self.cmdlet.parameters.get(*index);
        self.values
            .iter()
            .filter_map(move |(index, value)| Some((parameter(index)?, value.as_ref())))
    }

    /// The given parameters that nobody has asked for yet: whoever carried the call out did nothing
    /// with them.
    pub fn not_looked_at(&self) -> Vec<&'t Parameter> {
        let looked_at = self.looked_at.borrow();
        let unseen = |(index, _): &&(usize, Option<Value>)| !looked_at.contains(index);
        let found = self
            .values
            .iter()
            .filter(unseen)
            .filter_map(|(index, _)| self.cmdlet.parameters.get(*index));
        found.collect()
    }
}

fn converted(parameter: &Parameter, value: &Supplied, span: Span) -> Result<Option<Value>, BindError> {
    let Supplied::Known(value, written) = value else {
        return Ok(None);
    };
    let value = match (written, &parameter.kind) {
        (Some(text), Kind::Text | Kind::Object { .. } | Kind::Enumeration(_)) => Value::text(text),
        _ => value.clone(),
    };
    match convert::for_parameter(&value, parameter) {
        Ok(value) => Ok(Some(value)),
        Err(error) => Err(BindError {
            id: match error.0.contains("ValidateSet") {
                true => "ParameterArgumentValidationError",
                false => "CannotConvertArgumentNoMessage",
            },
            message: format!("Cannot bind parameter '{}'. {error}", parameter.name),
            span: Some(span),
            missing: Vec::new(),
        }),
    }
}

fn known(value: &Supplied) -> Option<Value> {
    match value {
        Supplied::Known(value, _) => Some(value.clone()),
        Supplied::Unknown => None,
    }
}

/// A property of an object, for a parameter of its name.
fn property(input: &Value, name: &str) -> Option<Value> {
    match input {
        Value::Object(object) => object.get(name).filter(|value| !matches!(value, Value::Null)),
        _ => None,
    }
}
