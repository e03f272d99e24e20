//! The shell that somebody types into: lines with history and completion, questions, Ctrl+C.

use std::{
    borrow::Cow,
    cell::RefCell,
    io::{self, IsTerminal, Write},
    path::Path,
    process::ExitCode,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use hgs_shell::{
    complete::complete,
    console::{Console, Stream, coloured},
    session::{Ended, Session},
    world::World,
};
use rustyline::{
    CompletionType, Config, Context, Editor, Helper,
    completion::Completer,
    error::ReadlineError,
    highlight::{CmdKind, Highlighter},
    hint::Hinter,
    history::DefaultHistory,
    validate::Validator,
};

use crate::cmdlets;

/// Asks for lines and carries them out until `exit` or the end of the input.
///
/// # Errors
/// The terminal cannot be used.
pub(super) fn run(world: Rc<dyn World>, folder: &Path) -> anyhow::Result<ExitCode> {
    let config = Config::builder()
        .completion_type(CompletionType::List)
        .auto_add_history(false)
        .max_history_size(HISTORY)?
        .build();
    let mut session = Session::new(world, cmdlets::registry(), Box::new(Terminal::new()?))?;
    session.set_views(cmdlets::VIEWS);
    interrupt_by_signal(session.interrupter());
    let session = Rc::new(RefCell::new(session));
    let mut editor: Editor<Assistant, DefaultHistory> = Editor::with_config(config)?;
    editor.set_helper(Some(Assistant(Rc::clone(&session))));
    let history = folder.join("history");
    // There is none the first time.
    let _ = editor.load_history(&history);
    if io::stdin().is_terminal() {
        session.borrow_mut().put(BANNER);
    }
    let code = lines(&session, &mut editor)?;
    // A history that cannot be kept is no reason to fail.
    let _ = editor.save_history(&history);
    Ok(code)
}

fn lines(session: &Rc<RefCell<Session>>, editor: &mut Editor<Assistant, DefaultHistory>) -> anyhow::Result<ExitCode> {
    let mut text = String::new();
    loop {
        let prompt = match text.is_empty() {
            true => session.borrow().prompt(),
            false => ">> ".to_owned(),
        };
        match editor.readline(prompt.as_str()) {
            Ok(line) => {
                text.push_str(&line);
                // An empty line ends what nothing can finish.
                if Session::is_unfinished(&text) && !line.is_empty() {
                    text.push('\n');
                    continue;
                }
            }
            Err(ReadlineError::Interrupted) => {
                text.clear();
                continue;
            }
            Err(ReadlineError::Eof) => return Ok(ExitCode::SUCCESS),
            Err(error) => return Err(error.into()),
        }
        let whole = std::mem::take(&mut text);
        if whole.trim().is_empty() {
            continue;
        }
        editor.add_history_entry(whole.as_str())?;
        let mut session = session.borrow_mut();
        session.history.push(whole.clone());
        if let Ended::Exit(code) = session.run(&whole) {
            // `exit` on another machine comes back from it.
            if !session.leave() {
                return Ok(ExitCode::from(u8::try_from(code.rem_euclid(256)).unwrap_or(1)));
            }
        }
    }
}

/// Lets Ctrl+C stop what runs rather than the shell.
fn interrupt_by_signal(interrupter: Arc<AtomicBool>) {
    let waiting = move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
            return;
        };
        runtime.block_on(async {
            while tokio::signal::ctrl_c().await.is_ok() {
                interrupter.store(true, Ordering::Relaxed);
            }
        });
    };
    // Without the thread Ctrl+C ends the shell, as it does every program.
    let _ = thread::Builder::new().name("interrupt".to_owned()).spawn(waiting);
}

/// Completes a line.
struct Assistant(Rc<RefCell<Session>>);

impl Completer for Assistant {
    type Candidate = String;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let found = complete(&self.0.borrow(), line, at);
        Ok((found.start, found.items))
    }
}

impl Hinter for Assistant {
    type Hint = String;
}

impl Highlighter for Assistant {}
impl Validator for Assistant {}
impl Helper for Assistant {}

/// The terminal as a console.
struct Terminal {
    /// Asked for its size too, for which it wants to be changeable.
    questions: RefCell<Editor<(), DefaultHistory>>,
    secrets: Editor<Hidden, DefaultHistory>,
}

impl Terminal {
    fn new() -> anyhow::Result<Terminal> {
        let mut secrets = Editor::new()?;
        secrets.set_helper(Some(Hidden));
        Ok(Terminal {
            questions: RefCell::new(Editor::new()?),
            secrets,
        })
    }
}

impl Console for Terminal {
    fn write(&mut self, stream: Stream, text: &str) {
        // A terminal that has gone away is noticed at the next line.
        let _ = match stream {
            Stream::Output => io::stdout().write_all(text.as_bytes()),
            _ => io::stderr().write_all(coloured(stream, text, io::stderr().is_terminal()).as_bytes()),
        };
        let _ = io::stdout().flush();
    }

    fn ask(&mut self, prompt: &str) -> Option<String> {
        self.questions.get_mut().readline(prompt).ok()
    }

    fn ask_secret(&mut self, prompt: &str) -> Option<String> {
        self.secrets.readline(prompt).ok()
    }

    fn width(&self) -> usize {
        let size = self.questions.borrow_mut().dimensions();
        size.map_or(120, |(columns, _)| usize::from(columns).max(40))
    }

    fn is_interactive(&self) -> bool {
        true
    }
}

/// Shows stars for what is typed.
struct Hidden;

impl Highlighter for Hidden {
    fn highlight<'l>(&self, line: &'l str, _at: usize) -> Cow<'l, str> {
        Cow::Owned("*".repeat(line.chars().count()))
    }

    fn highlight_char(&self, _line: &str, _at: usize, _kind: CmdKind) -> bool {
        true
    }
}

impl Completer for Hidden {
    type Candidate = String;
}

impl Hinter for Hidden {
    type Hint = String;
}

impl Validator for Hidden {}
impl Helper for Hidden {}

const BANNER: &str = "Guarded fabric lab: the administrators' shell. Get-Help tells what there is; exit ends it.\n\n";
const HISTORY: usize = 1000;
