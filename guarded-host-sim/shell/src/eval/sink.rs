//! Where objects go that nothing more in a pipeline takes.

use super::pipeline::Flow;
use crate::{error::Outcome, session::Session, value::Value};

/// Takes what a pipeline gives.
pub(crate) trait Sink {
    /// Takes one object.
    ///
    /// # Errors
    /// Whatever ends the pipeline.
    fn take(&mut self, session: &mut Session, value: Value) -> Outcome;
}

/// The console: objects are formatted and shown.
pub(crate) struct Host;

impl Sink for Host {
    fn take(&mut self, session: &mut Session, value: Value) -> Outcome {
        session.show(&value);
        Ok(())
    }
}

/// A variable, an argument, a condition.
impl Sink for Vec<Value> {
    fn take(&mut self, _session: &mut Session, value: Value) -> Outcome {
        self.push(value);
        Ok(())
    }
}

/// The rest of a pipeline.
pub(crate) struct Onward<'a>(pub(crate) Flow<'a>);

impl Sink for Onward<'_> {
    fn take(&mut self, session: &mut Session, value: Value) -> Outcome {
        self.0.feed(session, value)
    }
}
