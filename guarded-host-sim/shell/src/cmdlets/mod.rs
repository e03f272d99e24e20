//! The implementations of cmdlets.
//!
//! A cmdlet is an [`Implementation`]: its name in the table, what becomes of each of its parameters, and a
//! function that carries it out on a [`Call`]. Each module of PowerShell or of the product has a list of them, and
//! [`Registry`] joins the lists; coverage, help and the shell itself read nothing else.

mod core;

use std::fmt;

use serde::Serialize;

use crate::{call::Call, error::Outcome, value::Value};

/// What becomes of a cmdlet or a parameter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "camelCase")]
pub enum State {
    /// An implementation is bound to it.
    Implemented,
    /// It is taken and changes nothing.
    WithoutEffect {
        /// Why that is right here.
        reason: String,
    },
    /// It is refused.
    Rejected {
        /// Why.
        reason: String,
    },
    /// Nothing is bound to it: the shell says so when it is called.
    NotBuilt,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            State::Implemented => f.write_str("implemented"),
            State::WithoutEffect { reason } => write!(f, "accepted without effect: {reason}"),
            State::Rejected { reason } => write!(f, "rejected: {reason}"),
            State::NotBuilt => f.write_str("not built yet"),
        }
    }
}

/// One cmdlet's implementation.
pub struct Implementation {
    /// The cmdlet's name as in the table.
    pub cmdlet: &'static str,
    /// Parameters that it acts on.
    pub implemented: &'static [&'static str],
    /// Parameters that change nothing, with the reason.
    pub without_effect: &'static [(&'static str, &'static str)],
    /// Parameters that are refused, with the reason.
    pub rejected: &'static [(&'static str, &'static str)],
    /// What carries it out.
    pub run: Run,
}

/// What carries a cmdlet out. Parameters are bound before it, those that are refused are refused, and
/// errors without a place get the call's.
#[derive(Clone, Copy)]
pub enum Run {
    /// Once, or, behind a pipeline, once for each object with what is bound of it.
    Each(fn(&mut Call<'_>) -> Outcome),
    /// Once, when the pipeline has ended, with all of its objects.
    All(fn(&mut Call<'_>, Vec<Value>) -> Outcome),
    /// With a state of its own from the first object to the last.
    Staged(fn() -> Box<dyn Staged>),
}

/// A cmdlet that keeps something between objects of the pipeline.
pub trait Staged {
    /// Before the first object.
    ///
    /// # Errors
    /// Whatever ends the pipeline.
    fn begin(&mut self, _call: &mut Call<'_>) -> Outcome {
        Ok(())
    }

    /// For each object: [`Call::input`].
    ///
    /// # Errors
    /// Whatever ends the pipeline.
    fn process(&mut self, call: &mut Call<'_>) -> Outcome;

    /// After the last object.
    ///
    /// # Errors
    /// Whatever ends the pipeline.
    fn end(&mut self, _call: &mut Call<'_>) -> Outcome {
        Ok(())
    }
}

/// All implementations.
#[derive(Clone)]
pub struct Registry(Vec<&'static Implementation>);

impl Registry {
    /// Those that come with the shell: the language's own cmdlets.
    pub fn builtin() -> Registry {
        let modules = core::ALL.into_iter();
        Registry(modules.flatten().collect())
    }

    /// With those of further modules.
    #[must_use]
    pub fn with(mut self, more: &'static [Implementation]) -> Registry {
        self.0.extend(more);
        self
    }

    /// All, in no particular order.
    pub fn all(&self) -> impl Iterator<Item = &'static Implementation> {
        self.0.iter().copied()
    }

    /// The implementation of a cmdlet.
    pub fn find(&self, cmdlet: &str) -> Option<&'static Implementation> {
        self.0
            .iter()
            .find(|one| one.cmdlet.eq_ignore_ascii_case(cmdlet))
            .copied()
    }

    /// Whether a cmdlet is built.
    pub fn cmdlet(&self, cmdlet: &str) -> State {
        match self.find(cmdlet) {
            Some(_) => State::Implemented,
            None => State::NotBuilt,
        }
    }

    /// What becomes of a cmdlet's own parameter.
    pub fn parameter(&self, cmdlet: &str, parameter: &str) -> State {
        let Some(own) = self.find(cmdlet) else {
            return State::NotBuilt;
        };
        let reason = |list: &[(&str, &str)]| {
            let found = list.iter().find(|(name, _)| name.eq_ignore_ascii_case(parameter));
            found.map(|(_, reason)| (*reason).to_owned())
        };
        if own.implemented.iter().any(|name| name.eq_ignore_ascii_case(parameter)) {
            return State::Implemented;
        }
        match (reason(own.without_effect), reason(own.rejected)) {
            (Some(reason), _) => State::WithoutEffect { reason },
            (None, Some(reason)) => State::Rejected { reason },
            (None, None) => State::NotBuilt,
        }
    }

    /// What becomes of a parameter that all cmdlets of a kind share.
    pub fn shared(&self, parameter: &str) -> State {
        let reason = |list: &[(&str, &str)]| {
            let found = list.iter().find(|(name, _)| name.eq_ignore_ascii_case(parameter));
            found.map(|(_, reason)| (*reason).to_owned())
        };
        match (reason(SHARED_WITHOUT_EFFECT), reason(SHARED_REJECTED)) {
            (Some(reason), _) => State::WithoutEffect { reason },
            (None, Some(reason)) => State::Rejected { reason },
            (None, None) => State::Implemented,
        }
    }
}

/// Shared parameters that change nothing.
const SHARED_WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("ThrottleLimit", "one call runs at a time"),
    ("OutBuffer", "objects are handed on one by one"),
    ("Debug", "no cmdlet here writes debug messages"),
];

/// Shared parameters that are refused.
const SHARED_REJECTED: &[(&str, &str)] = &[
    (
        "CimSession",
        "there are no CIM sessions; Invoke-Command -ComputerName runs a cmdlet elsewhere",
    ),
    ("AsJob", "there are no background jobs"),
    ("PipelineVariable", "only the pipeline's own variable $_ is kept"),
    (
        "InformationAction",
        "there is no information stream of its own; Write-Host writes to the console",
    ),
    (
        "InformationVariable",
        "there is no information stream of its own; Write-Host writes to the console",
    ),
];
