//! The one place that starts processes.
//!
//! A child dies with this process, however this process ends: it is started with
//! `setpriv --pdeathsig KILL` from a thread that lives as long as the process, because the signal
//! follows the parent's thread. Standard streams are null, files or pipes, never this terminal's,
//! and of the environment only what a program needs to run is passed on.

use std::{
    ffi::OsString,
    fs::{self, OpenOptions},
    io::{self, Write},
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    sync::{OnceLock, mpsc},
    thread,
};

use command_fds::{CommandFdExt, FdMapping};
use rustix::{
    io::Errno,
    process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid},
};
use zeroize::Zeroizing;

/// Why a child could not be started or watched.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// The system refused to start it.
    #[error("cannot start {program} (is it installed, and setpriv of util-linux?)")]
    Start {
        /// The program.
        program: String,
        /// The system's reason.
        #[source]
        cause: io::Error,
    },
    /// Its log file cannot be opened.
    #[error("cannot open the log file {}", path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        cause: io::Error,
    },
    /// The system lost track of it.
    #[error("cannot wait for {program}")]
    Wait {
        /// The program.
        program: String,
        /// The system's reason.
        #[source]
        cause: io::Error,
    },
}

/// What a process said last in its log: its error with the causes, if it ended with one (a backtrace may follow), or
/// else its last line.
pub fn last_words(log: &Path) -> String {
    let log = format!("\n{}", fs::read_to_string(log).unwrap_or_default());
    match log.rsplit_once("\nError: ") {
        Some((_, error)) => {
            let error = error.split("Stack backtrace:").next().unwrap_or_default();
            let lines = error
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty() && *line != "Caused by:");
            // Of several causes each line begins with its number.
            let parts = lines.map(|line| match line.split_once(": ") {
                Some((number, cause)) if number.bytes().all(|byte| byte.is_ascii_digit()) => cause.trim_start(),
                _ => line,
            });
            parts.collect::<Vec<_>>().join(": ")
        }
        None => {
            let last = log.lines().rev().find(|line| !line.trim().is_empty());
            last.unwrap_or("it left no message").to_owned()
        }
    }
}

/// What a child reads on standard input.
pub enum Input {
    /// Nothing.
    Null,
    /// These bytes, then the end of file. For secrets: they reach no argument list and no file.
    Bytes(Zeroizing<Vec<u8>>),
    /// A pipe that the caller writes to; a child may take its end of file as the end of its parent.
    Pipe,
}

/// Where a child's standard output or error goes.
pub enum Output {
    /// Nowhere.
    Null,
    /// To the end of this file.
    File(PathBuf),
    /// To a pipe that the caller reads. Only for standard output.
    Pipe,
}

/// What to start.
pub struct Plan {
    program: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    directory: PathBuf,
    input: Input,
    output: Output,
    errors: Output,
    descriptors: Vec<FdMapping>,
    user: Option<u32>,
}

impl Plan {
    /// `program`, looked up in PATH unless it is a path, run in `directory` with null streams.
    pub fn new(program: impl Into<OsString>, directory: &Path) -> Plan {
        Plan {
            program: program.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            directory: directory.to_path_buf(),
            input: Input::Null,
            output: Output::Null,
            errors: Output::Null,
            descriptors: Vec::new(),
            user: None,
        }
    }

    /// This program again (`guarded-host-sim` starts its own parts so).
    pub fn this_program(directory: &Path) -> io::Result<Plan> {
        Ok(Plan::new(std::env::current_exe()?, directory))
    }

    /// Appends an argument.
    pub fn arg(mut self, argument: impl Into<OsString>) -> Plan {
        self.arguments.push(argument.into());
        self
    }

    /// Appends arguments.
    pub fn args<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Plan {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets a variable in the child's environment.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Plan {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Chooses standard input.
    pub fn input(mut self, input: Input) -> Plan {
        self.input = input;
        self
    }

    /// Chooses standard output.
    pub fn output(mut self, output: Output) -> Plan {
        self.output = output;
        self
    }

    /// Chooses standard error.
    pub fn errors(mut self, errors: Output) -> Plan {
        self.errors = errors;
        self
    }

    /// Gives the child the open `descriptor` as its number `number` (3 or more); this process keeps
    /// none of it.
    pub fn descriptor(mut self, descriptor: impl Into<OwnedFd>, number: i32) -> Plan {
        self.descriptors.push(FdMapping {
            parent_fd: descriptor.into(),
            child_fd: number,
        });
        self
    }

    /// Runs the child as this user and group, with no others and no way back; needs root.
    pub fn user(mut self, user: Option<u32>) -> Plan {
        self.user = user;
        self
    }

    /// Starts the child. It is killed and reaped when the returned value is dropped.
    pub fn spawn(self) -> Result<Child, ChildError> {
        let program = self.program.to_string_lossy().into_owned();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if let Some(user) = self.user {
            let user = user.to_string();
            command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "--no-new-privs"]);
        }
        command.arg("--");
        command.arg(&self.program).args(&self.arguments);
        command.current_dir(&self.directory).env_clear().process_group(0);
        for name in PASSED_ON {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.envs(self.environment);
        command.stdin(match self.input {
            Input::Null => Stdio::null(),
            Input::Bytes(_) | Input::Pipe => Stdio::piped(),
        });
        command.stdout(stdio(&self.output)?);
        command.stderr(stdio(&self.errors)?);
        let failed = |cause| ChildError::Start {
            program: program.clone(),
            cause,
        };
        command
            .fd_mappings(self.descriptors)
            .map_err(|e| failed(io::Error::other(e)))?;
        let mut inner = spawn_from_lasting_thread(command).map_err(failed)?;
        if let Input::Bytes(bytes) = &self.input
            && let Some(mut stdin) = inner.stdin.take()
        {
            // A child that ends before it reads says so by its exit status.
            let _ = stdin.write_all(bytes);
        }
        Ok(Child { inner, program })
    }

    /// Starts the child and waits for its end.
    pub fn run(self) -> Result<ExitStatus, ChildError> {
        let mut child = self.spawn()?;
        child.wait()
    }
}

/// A running child; killed and reaped on drop.
#[derive(Debug)]
pub struct Child {
    inner: std::process::Child,
    program: String,
}

impl Child {
    /// The process id.
    pub fn id(&self) -> u32 {
        self.inner.id()
    }

    /// The pipe to its standard input, once, when the plan asked for one.
    pub fn take_input(&mut self) -> Option<ChildStdin> {
        self.inner.stdin.take()
    }

    /// The pipe from its standard output, once, when the plan asked for one.
    pub fn take_output(&mut self) -> Option<ChildStdout> {
        self.inner.stdout.take()
    }

    /// Its exit status if it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, ChildError> {
        self.inner.try_wait().map_err(|cause| self.lost(cause))
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> Result<ExitStatus, ChildError> {
        self.inner.wait().map_err(|cause| self.lost(cause))
    }

    /// Kills it and waits for its end.
    pub fn kill(&mut self) -> Result<ExitStatus, ChildError> {
        // Failing to signal means that it has ended already.
        let _ = self.inner.kill();
        self.wait()
    }

    /// Stops it where it is, with its memory as it is; answers when it stands still, or has ended.
    pub fn pause(&self) -> Result<(), ChildError> {
        let wait = || {
            let id = self.signal(Signal::STOP)?;
            let states = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            waitid(WaitId::Pid(id), states)
        };
        wait().map(drop).map_err(|cause| self.lost(cause.into()))
    }

    /// Lets it go on after [`Child::pause`].
    pub fn go_on(&self) -> Result<(), ChildError> {
        self.signal(Signal::CONT)
            .map(drop)
            .map_err(|cause| self.lost(cause.into()))
    }

    fn signal(&self, signal: Signal) -> Result<Pid, Errno> {
        // Not reaped yet, so nobody else has its id.
        let id = i32::try_from(self.id()).ok().and_then(Pid::from_raw);
        let id = id.ok_or(Errno::SRCH)?;
        kill_process(id, signal).map(|()| id)
    }

    fn lost(&self, cause: io::Error) -> ChildError {
        ChildError::Wait {
            program: self.program.clone(),
            cause,
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

fn stdio(output: &Output) -> Result<Stdio, ChildError> {
    match output {
        Output::Null => Ok(Stdio::null()),
        Output::Pipe => Ok(Stdio::piped()),
        Output::File(path) => OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map(Stdio::from)
            .map_err(|cause| ChildError::Log {
                path: path.clone(),
                cause,
            }),
    }
}

type Order = (Command, mpsc::Sender<io::Result<std::process::Child>>);

/// The death signal is sent when the *thread* that forked ends, so all children have one parent
/// thread, which never does.
fn spawn_from_lasting_thread(command: Command) -> io::Result<std::process::Child> {
    static SPAWNER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let gone = || io::Error::other("the thread that starts processes is gone");
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (mut command, reply) in inbox {
                let _ = reply.send(command.spawn());
            }
        });
        orders
    });
    let (reply, answer) = mpsc::channel();
    spawner.send((command, reply)).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

const PASSED_ON: [&str; 10] = [
    "PATH",
    "HOME",
    "LANG",
    "TMPDIR",
    "TERM",
    "RUST_LOG",
    "HGS_LOG",
    "RUST_BACKTRACE",
    "LD_LIBRARY_PATH",
    crate::commit_point::VARIABLE,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_gets_its_input_and_directory_and_little_environment() {
        let dir = tempfile::tempdir().unwrap();
        let script = "cat; pwd; echo token=$CARGO_PKG_NAME; echo given=$GIVEN";
        let out = dir.path().join("out");
        let status = Plan::new("sh", dir.path())
            .args(["-c", script])
            .env("GIVEN", "yes")
            .input(Input::Bytes(Zeroizing::new(b"secret\n".to_vec())))
            .output(Output::File(out.clone()))
            .run()
            .unwrap();
        assert!(status.success());
        let text = std::fs::read_to_string(out).unwrap();
        let here = dir.path().canonicalize().unwrap();
        assert_eq!(text, format!("secret\n{}\ntoken=\ngiven=yes\n", here.display()));
    }

    #[test]
    fn the_last_words_are_an_error_with_its_causes() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        for (text, words) in [
            ("", "it left no message"),
            ("one\ntwo\n\n", "two"),
            ("one\nError: broken\n", "broken"),
            (
                "Error: old\nError: it fails\n\nCaused by:\n    the disk is full\n",
                "it fails: the disk is full",
            ),
            (
                "x\nError: it fails\n\nCaused by:\n    0: no room\n    1: disk: full\n\nStack backtrace:\n   0: main\n",
                "it fails: no room: disk: full",
            ),
        ] {
            fs::write(&log, text).unwrap();
            assert_eq!(last_words(&log), words);
        }
    }

    #[test]
    fn a_dropped_child_is_dead_and_reaped() {
        let dir = tempfile::tempdir().unwrap();
        let child = Plan::new("sleep", dir.path()).arg("600").spawn().unwrap();
        let proc = PathBuf::from(format!("/proc/{}", child.id()));
        assert!(proc.exists());
        drop(child);
        assert!(!proc.exists());
    }

    #[test]
    fn a_child_outlives_the_thread_that_asked_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_path_buf();
        let mut child = thread::spawn(move || {
            Plan::new("sh", &path)
                .args(["-c", "read line; echo $line"])
                .input(Input::Pipe)
                .output(Output::Pipe)
                .spawn()
                .unwrap()
        })
        .join()
        .unwrap();
        child.take_input().unwrap().write_all(b"alive\n").unwrap();
        let text = io::read_to_string(child.take_output().unwrap()).unwrap();
        assert_eq!(text, "alive\n");
    }
}
