//! The implementations of cmdlets.

use std::fmt;

use serde::Serialize;

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
}

/// All implementations.
pub struct Registry(Vec<&'static Implementation>);

impl Registry {
    /// Those that come with the shell.
    pub fn builtin() -> Registry {
        Registry(Vec::new())
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
    pub fn shared(&self, _parameter: &str) -> State {
        State::NotBuilt
    }
}
