//! Every message of a scenario, in order, as it went over the network.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::model::step::ServiceName;

/// The record of one scenario. Clones share it.
#[derive(Clone, Debug)]
pub struct Journal(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    begun: Instant,
    step: AtomicUsize,
    messages: Mutex<Kept>,
    /// How many messages are kept at most.
    most: usize,
}

/// The newest messages, and how many older ones are forgotten.
#[derive(Debug, Default)]
struct Kept {
    forgotten: usize,
    messages: VecDeque<Message>,
}

/// A request and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The step during which it was sent, from 0; none while the fabric was set up.
    pub step: Option<usize>,
    /// When, since the scenario began.
    pub at: Duration,
    /// How long the answer took.
    pub took: Duration,
    /// Who asked: a host, or `lab`.
    pub from: String,
    /// Who was asked.
    pub to: Party,
    /// HTTP method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The body of the request, as it arrived.
    pub request: Vec<u8>,
    /// The answer; none when there was none.
    pub answer: Option<Answered>,
    /// What the lab did to it.
    pub remark: Option<String>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// HTTP status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

/// Who is asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    /// A service of an HGS.
    Service {
        /// The HGS.
        hgs: String,
        /// The service.
        service: ServiceName,
    },
    /// A host's agent.
    Host(String),
}

impl std::fmt::Display for Party {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Party::Service { hgs, service } => write!(f, "{service} of {hgs}"),
            Party::Host(name) => f.write_str(name),
        }
    }
}

/// A message of which the answer is not there yet.
#[derive(Debug)]
pub struct Open {
    begun: Instant,
    step: Option<usize>,
    at: Duration,
}

impl Journal {
    /// An empty record that begins now and keeps everything.
    pub fn begin() -> Journal {
        Journal::begin_with(usize::MAX)
    }

    /// An empty record that begins now and forgets the oldest messages when there are more than `most`.
    pub fn begin_with(most: usize) -> Journal {
        Journal(Arc::new(Inner {
            begun: Instant::now(),
            step: AtomicUsize::new(0),
            messages: Mutex::default(),
            most,
        }))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on messages belong to the step of this number, from 0.
    pub fn step(&self, number: usize) {
        self.0.step.store(number + 1, Ordering::SeqCst);
    }

    /// The time since the scenario began.
    pub fn elapsed(&self) -> Duration {
        self.0.begun.elapsed()
    }

    /// A message is on its way.
    pub fn open(&self) -> Open {
        Open {
            begun: Instant::now(),
            step: self.0.step.load(Ordering::SeqCst).checked_sub(1),
            at: self.elapsed(),
        }
    }

    /// The message is answered, or will never be. Its times are taken from `open`.
    pub fn close(&self, open: &Open, message: Message) {
        let message = Message {
            step: open.step,
            at: open.at,
            took: open.begun.elapsed(),
            ..message
        };
        let mut kept = self.kept();
        kept.messages.push_back(message);
        while kept.messages.len() > self.0.most {
            kept.messages.pop_front();
            kept.forgotten += 1;
        }
    }

    /// The bodies of what `host` sent to this service so far, oldest first.
    pub fn requests(&self, host: &str, hgs: &str, service: ServiceName) -> Vec<Vec<u8>> {
        let kept = self.kept();
        let party = Party::Service {
            hgs: hgs.to_owned(),
            service,
        };
        let mine = kept
            .messages
            .iter()
            .filter(|message| message.from == host && message.to == party);
        mine.map(|message| message.request.clone()).collect()
    }

    /// Everything so far, by the time of the request.
    pub fn messages(&self) -> Vec<Message> {
        let mut messages: Vec<Message> = self.kept().messages.iter().cloned().collect();
        messages.sort_by_key(|message| message.at);
        messages
    }

    /// The newest messages that are `wanted`, at most so many, in the order in which they ended, with their numbers.
    pub fn newest(&self, most: usize, wanted: impl Fn(&Message) -> bool) -> Vec<(usize, Message)> {
        let kept = self.kept();
        let numbered = kept.messages.iter().enumerate().rev();
        let found = numbered.filter(|(_, message)| wanted(message)).take(most);
        let mut found: Vec<_> = found
            .map(|(at, message)| (kept.forgotten + at, message.clone()))
            .collect();
        found.reverse();
        found
    }

    /// The message of this number, unless it is forgotten.
    pub fn message(&self, number: usize) -> Option<Message> {
        let kept = self.kept();
        kept.messages.get(number.checked_sub(kept.forgotten)?).cloned()
    }
}
