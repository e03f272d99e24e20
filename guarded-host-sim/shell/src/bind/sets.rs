//! Which parameter set a call is of, and what is missing for it.

use super::{BindError, Binding};
use crate::{
    syntax::Span,
    table::{Cmdlet, Member},
};

impl<'t> Binding<'t> {
    /// The members of the sets that are still possible.
    pub(super) fn members(&self) -> impl Iterator<Item = (usize, &'t Member)> {
        let cmdlet: &'t Cmdlet = self.cmdlet;
        let possible = cmdlet.sets.iter().enumerate().filter(|(set, _)| self.valid[*set]);
        possible.flat_map(|(index, set)| set.members.iter().map(move |member| (index, member)))
    }

    /// The set that the call is of: of those that fit, one for which nothing is missing, else the one
    /// for which least is missing. In doubt the default set.
    pub(super) fn choose_set(&self) -> Result<usize, BindError> {
        let possible: Vec<(usize, Vec<&str>)> = (0..self.cmdlet.sets.len())
            .filter(|set| self.valid[*set])
            .map(|set| (set, self.missing(set)))
            .collect();
        let least = possible.iter().map(|(_, missing)| missing.len()).min();
        let mut best = possible.iter().filter(|(_, missing)| Some(missing.len()) == least);
        let default = best.clone().find(|(set, _)| Some(*set) == self.cmdlet.default_set);
        let (first, several) = (best.next(), best.next().is_some());
        let (set, missing) = match (default, first) {
            (Some(default), _) => default,
            (None, Some(_)) if several && !self.is_undecided() => return Err(ambiguous(None)),
            (None, Some(first)) => first,
            (None, None) => return Err(ambiguous(None)),
        };
        if missing.is_empty() || self.circumstances.open {
            return Ok(*set);
        }
        Err(BindError {
            id: "MissingMandatoryParameter",
            message: format!(
                "Cannot process command because of one or more missing mandatory parameters: {}.",
                missing.join(" ")
            ),
            span: None,
            missing: missing.iter().map(|name| (*name).to_owned()).collect(),
        })
    }

    /// Whether what comes may still decide.
    fn is_undecided(&self) -> bool {
        self.circumstances.open || (self.circumstances.fed && self.takes_input())
    }

    /// What must be given for this set, is not, and cannot come by the pipeline.
    fn missing(&self, set: usize) -> Vec<&'t str> {
        let cmdlet: &'t Cmdlet = self.cmdlet;
        let members = cmdlet.sets[set].members.iter();
        let unbound = members.filter(|member| member.mandatory && !self.is_bound(member.parameter));
        let parameters = unbound.map(|member| &cmdlet.parameters[member.parameter]);
        let needed = parameters.filter(|p| !(self.circumstances.fed && (p.by_value || p.by_property)));
        needed.map(|parameter| parameter.name.as_str()).collect()
    }
}

pub(super) fn ambiguous(span: Option<Span>) -> BindError {
    BindError {
        id: "AmbiguousParameterSet",
        message: "Parameter set cannot be resolved using the specified named parameters.".to_owned(),
        span,
        missing: Vec::new(),
    }
}
