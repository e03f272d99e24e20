//! Where a shell's streams go, and where answers come from.

use std::{
    cell::RefCell,
    io::{self, IsTerminal, Write},
    rc::Rc,
};

/// The streams that a person tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// What a pipeline gives, formatted, and `Write-Host`.
    Output,
    /// Errors.
    Error,
    /// Warnings.
    Warning,
    /// What `-Verbose` shows.
    Verbose,
    /// What `-Debug` shows.
    Debug,
}

/// Where text goes and answers come from.
pub trait Console {
    /// Writes text, whose lines end with `\n`.
    fn write(&mut self, stream: Stream, text: &str);

    /// Asks for a line; nothing, if nobody can be asked.
    fn ask(&mut self, prompt: &str) -> Option<String>;

    /// Asks for text that is not shown.
    fn ask_secret(&mut self, prompt: &str) -> Option<String>;

    /// Characters in a line.
    fn width(&self) -> usize {
        120
    }

    /// Whether somebody can be asked.
    fn is_interactive(&self) -> bool {
        false
    }
}

/// Standard output and standard error; nobody is asked.
#[derive(Debug, Default)]
pub struct Standard;

impl Console for Standard {
    fn write(&mut self, stream: Stream, text: &str) {
        // Nobody is there to be told of a closed pipe.
        let _ = match stream {
            Stream::Output => io::stdout().write_all(text.as_bytes()),
            _ => io::stderr().write_all(coloured(stream, text, io::stderr().is_terminal()).as_bytes()),
        };
    }

    fn ask(&mut self, _prompt: &str) -> Option<String> {
        None
    }

    fn ask_secret(&mut self, _prompt: &str) -> Option<String> {
        None
    }
}

/// Text in the colour of its stream, on a terminal.
pub fn coloured(stream: Stream, text: &str, terminal: bool) -> String {
    let colour = match stream {
        Stream::Output => return text.to_owned(),
        Stream::Error => "31",
        Stream::Warning => "33",
        Stream::Verbose | Stream::Debug => "36",
    };
    match terminal {
        true => format!("\u{1b}[{colour}m{}\u{1b}[0m\n", text.trim_end_matches('\n')),
        false => text.to_owned(),
    }
}

/// Keeps everything, and answers from a list.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    inner: Rc<RefCell<Recorded>>,
}

#[derive(Debug, Default)]
struct Recorded {
    written: Vec<(Stream, String)>,
    answers: Vec<String>,
    width: Option<usize>,
}

impl Recorder {
    /// Answers what is asked, in this order; nobody can be asked after that.
    pub fn with_answers(answers: &[&str]) -> Recorder {
        let recorder = Recorder::default();
        recorder.inner.borrow_mut().answers = answers.iter().rev().map(|a| (*a).to_owned()).collect();
        recorder
    }

    /// What went into a stream.
    pub fn text(&self, stream: Stream) -> String {
        let inner = self.inner.borrow();
        let parts = inner.written.iter().filter(|(own, _)| *own == stream);
        parts.map(|(_, text)| text.as_str()).collect()
    }

    /// What went into all of them, as a terminal would show it.
    pub fn all(&self) -> String {
        self.inner
            .borrow()
            .written
            .iter()
            .map(|(_, text)| text.as_str())
            .collect()
    }
}

impl Console for Recorder {
    fn write(&mut self, stream: Stream, text: &str) {
        self.inner.borrow_mut().written.push((stream, text.to_owned()));
    }

    fn ask(&mut self, prompt: &str) -> Option<String> {
        let mut inner = self.inner.borrow_mut();
        let answer = inner.answers.pop()?;
        inner.written.push((Stream::Output, format!("{prompt}{answer}\n")));
        Some(answer)
    }

    fn ask_secret(&mut self, prompt: &str) -> Option<String> {
        let mut inner = self.inner.borrow_mut();
        let answer = inner.answers.pop()?;
        inner.written.push((Stream::Output, format!("{prompt}\n")));
        Some(answer)
    }

    fn width(&self) -> usize {
        self.inner.borrow().width.unwrap_or(120)
    }

    fn is_interactive(&self) -> bool {
        !self.inner.borrow().answers.is_empty()
    }
}
