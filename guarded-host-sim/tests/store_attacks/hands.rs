//! The agent's hands: a process of the agent's own user (where the host has one for it) that speaks on the agent's
//! sockets and tries what such a user can try. Everything that it gets is kept, for the search at the end.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{ChildStdin, ChildStdout, Command, Stdio},
};

use command_fds::{CommandFdExt, FdMapping};
use guarded_host_sim::{
    machine::user::AGENT_USER,
    store::protocol::{StoreReply, StoreRequest},
    vm::request::{VmReply, VmRequest},
};
use hgs_protocol::tpm::{
    ResponseCode,
    response::{self, Response},
};
use serde_json::{Value, json};

pub(crate) struct Hands {
    process: std::process::Child,
    ask: ChildStdin,
    replies: BufReader<ChildStdout>,
    tpm: PathBuf,
    store: PathBuf,
    /// What came since it was last taken.
    got: Vec<u8>,
    /// Everything that ever came.
    all: Vec<u8>,
}

/// What the system said: a result, or the name of an error.
pub(crate) type Deed = Result<Value, String>;

impl Hands {
    /// Hands at the sockets of the host whose folder is `host`.
    pub(crate) fn new(host: &Path) -> Hands {
        // One in a home folder, first in root's path, is not the agent's to execute.
        let python = ["/usr/bin/python3", "/usr/local/bin/python3"]
            .into_iter()
            .find(|path| Path::new(path).exists());
        let python = python.unwrap_or("python3");
        let mut command = match rustix::process::geteuid().is_root() {
            true => {
                let user = AGENT_USER.to_string();
                let mut command = Command::new("setpriv");
                command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "--no-new-privs"]);
                command.args(["--inh-caps", "-all", "--pdeathsig", "KILL", python]);
                command
            }
            false => Command::new(python),
        };
        // The program may lie where that user cannot go, so it is inherited open.
        let program = File::open(env!("CARGO_BIN_EXE_guarded-host-sim")).unwrap();
        let mut process = command
            .args(["-c", include_str!("hands.py")])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .fd_mappings(vec![FdMapping {
                parent_fd: program.into(),
                child_fd: PROGRAM,
            }])
            .unwrap()
            .spawn()
            .unwrap();
        Hands {
            ask: process.stdin.take().unwrap(),
            replies: BufReader::new(process.stdout.take().unwrap()),
            process,
            tpm: host.join("run/tpm-agent"),
            store: host.join("run/store"),
            got: Vec::new(),
            all: Vec::new(),
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// What came since this was last called.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        self.all.extend_from_slice(&self.got);
        std::mem::take(&mut self.got)
    }

    /// Everything that ever came.
    pub(crate) fn everything(mut self) -> Vec<u8> {
        self.take();
        std::mem::take(&mut self.all)
    }

    /// Tries something.
    pub(crate) fn try_to(&mut self, what: &str, about: Value) -> Deed {
        let deed = self.exchange(what, about);
        self.got.extend_from_slice(format!("{deed:?}").as_bytes());
        deed
    }

    fn exchange(&mut self, what: &str, about: Value) -> Deed {
        let mut ask = about;
        ask["do"] = json!(what);
        writeln!(self.ask, "{ask}").unwrap();
        let mut line = String::new();
        self.replies.read_line(&mut line).unwrap();
        let reply: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{what}: {e}"));
        match reply["error"].as_str() {
            Some(error) => Err(error.to_owned()),
            None => Ok(reply["done"].clone()),
        }
    }

    /// The same, where bytes come back.
    pub(crate) fn get(&mut self, what: &str, about: Value) -> Result<Vec<u8>, String> {
        let bytes = of_hex(&self.exchange(what, about)?);
        self.got.extend_from_slice(&bytes);
        Ok(bytes)
    }

    /// Sends whole TPM commands over one connection and gives the answers.
    pub(crate) fn tpm(&mut self, commands: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let commands: Vec<String> = commands.iter().map(hex::encode).collect();
        let path = self.tpm.clone();
        let done = self
            .exchange("tpm", json!({ "path": path, "commands": commands }))
            .unwrap();
        let answers: Vec<Vec<u8>> = done.as_array().unwrap().iter().map(of_hex).collect();
        answers.iter().for_each(|answer| self.got.extend_from_slice(answer));
        assert_eq!(answers.len(), commands.len(), "the TPM hung up");
        answers
    }

    /// One TPM command: the answer, or the code of the refusal.
    pub(crate) fn command(&mut self, command: Vec<u8>) -> Result<Vec<u8>, ResponseCode> {
        let answer = self.tpm(&[command]).remove(0);
        match response::code(&answer).unwrap() {
            ResponseCode::SUCCESS => Ok(answer),
            refused => Err(refused),
        }
    }

    /// A TPM command that makes an object or a session: its handle.
    pub(crate) fn handle(&mut self, command: Vec<u8>) -> u32 {
        let answer = self.command(command).unwrap();
        Response::parse_with_handle(&answer).unwrap().returned_handle().unwrap()
    }

    /// Sends any bytes to the store and gives all that it answers.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<Vec<u8>, String> {
        let path = self.store.clone();
        self.get("store", json!({ "path": path, "bytes": hex::encode(bytes) }))
    }

    /// Sends recorded bytes of one request and reads the reply.
    pub(crate) fn replay(&mut self, bytes: &[u8]) -> StoreReply {
        let answer = self.send(bytes).unwrap();
        assert!(answer.len() > 4, "the store hung up");
        serde_json::from_slice(&answer[4..]).unwrap()
    }

    pub(crate) fn ask(&mut self, request: &VmRequest) -> VmReply {
        match self.replay(&frame(&StoreRequest::Vm(request.clone()))) {
            StoreReply::Vm(reply) => reply,
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Hands {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A request as it stands on the wire: u32 length (big-endian), JSON.
pub(crate) fn frame(request: &StoreRequest) -> Vec<u8> {
    let json = serde_json::to_vec(request).unwrap();
    [u32::try_from(json.len()).unwrap().to_be_bytes().as_slice(), &json].concat()
}

fn of_hex(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

/// Where this program stands open for the hands.
pub(crate) const PROGRAM: i32 = 9;
