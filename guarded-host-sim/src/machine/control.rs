//! The machine's control socket: the lab's hand on power button and dials. JSON lines.
//!
//! Only the machine's user may connect (mode 0600). Where the agent has a user of its own, that keeps
//! it out; under one user it is a separation by convention only: the agent is not told the path.

use std::{
    fs::{self, Permissions},
    io::{self, BufRead, BufReader, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::mpsc,
    thread,
};

use serde::{Deserialize, Serialize};

use super::{
    dials::Dials,
    settings::{Changes, NextBoot},
};

/// What the lab may ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Control {
    /// How the machine is.
    Status,
    /// These dials are otherwise from the next boot on, whoever causes it; those not named stay.
    Set {
        /// By name, as in a file of dials.
        dials: Changes,
    },
    /// Firmware clears the TPM at the next boot, as an administrator confirms to it. BitLocker is taken to be suspended.
    ClearTpm,
    /// Power cycle. What waits for the next boot happens.
    Reboot {
        /// The dials from now on, whatever waited; absent keeps them.
        #[serde(default)]
        dials: Option<Box<Dials>>,
    },
    /// The host hibernates and resumes: its machine is off meanwhile, its memory is as before. No boot: what waits for
    /// the next one goes on waiting.
    Hibernate,
    /// The TPM fails and answers nothing until the next power cycle. The host goes on without it, as a real one does,
    /// while one whose TPM process ends in any other way ends with it.
    FailTpm,
    /// Orderly end of the host.
    Stop,
}

/// The machine's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlReply {
    /// False when the request could not be fulfilled.
    pub ok: bool,
    /// For people.
    pub message: String,
    /// Where the agent answers, while the host is up.
    pub agent: Option<String>,
    /// Boots so far.
    pub boots: u64,
    /// The dials in force.
    pub dials: Option<Box<Dials>>,
    /// What waits for the next boot.
    #[serde(default, skip_serializing_if = "NextBoot::is_empty")]
    pub waiting: NextBoot,
    /// What the last boot had to say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
}

/// A request with the place for its answer.
pub(super) type Order = (Control, Place);

/// Where an answer goes. The machine writes it itself, so that it is out before the machine ends.
pub(super) struct Place(UnixStream);

impl Place {
    /// Answers; a peer that has gone does not matter.
    pub(super) fn answer(mut self, reply: &ControlReply) {
        let text = serde_json::to_string(reply).unwrap_or_default();
        let _ = writeln!(self.0, "{text}");
    }
}

/// Listens on `path` and hands each request to `orders`.
pub(super) fn listen(path: &Path, orders: mpsc::Sender<Order>) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let orders = orders.clone();
            thread::spawn(move || converse(stream, &orders));
        }
    });
    Ok(())
}

/// Asks the machine behind the control socket at `path`.
pub fn ask(path: &Path, control: &Control) -> io::Result<ControlReply> {
    let mut stream = UnixStream::connect(path)?;
    let mut line = serde_json::to_string(control)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&answer)?)
}

fn converse(stream: UnixStream, orders: &mpsc::Sender<Order>) {
    let Ok(writer) = stream.try_clone() else { return };
    for line in BufReader::new(stream).lines() {
        let (Ok(line), Ok(place)) = (line, writer.try_clone().map(Place)) else {
            return;
        };
        match serde_json::from_str(&line) {
            Ok(control) => {
                if orders.send((control, place)).is_err() {
                    return;
                }
            }
            Err(error) => place.answer(&ControlReply {
                ok: false,
                message: format!("not a control request: {error}"),
                agent: None,
                boots: 0,
                dials: None,
                waiting: NextBoot::default(),
                remarks: Vec::new(),
            }),
        }
    }
}
