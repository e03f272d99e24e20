//! The TPM command channel that a machine offers its store and its agent: a unix socket for each,
//! whole commands in turn, no control channel.
//!
//! A gate is shut while the machine boots, and a connection does not outlive a power cycle: what
//! ran before a reboot cannot act after it.

use std::{
    fs::{self, Permissions},
    io::{self, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use crate::{swtpm::Swtpm, tpm_channel::read_message};

/// A machine's TPM, shared by the machine and the sockets it offers.
#[derive(Clone, Debug)]
pub struct SharedTpm(Arc<Mutex<Swtpm>>);

impl SharedTpm {
    /// Takes the TPM over.
    pub fn new(tpm: Swtpm) -> SharedTpm {
        SharedTpm(Arc::new(Mutex::new(tpm)))
    }

    /// The TPM itself, if nobody else shares it.
    pub fn unshare(self) -> Option<Swtpm> {
        let tpm = Arc::into_inner(self.0)?;
        Some(tpm.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts another TPM process in the place of one that has ended.
    pub fn replace(&self, tpm: Swtpm) {
        *self.lock() = tpm;
    }

    /// The TPM, for one command or a whole power cycle.
    pub fn lock(&self) -> MutexGuard<'_, Swtpm> {
        // A panic elsewhere leaves the TPM as usable as before: commands are whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens and shuts a socket to the TPM. Even numbers are shut, odd ones open; each opening has its
/// own number, so that a connection knows whether it is of this opening.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<AtomicU64>);

impl Gate {
    /// Lets new connections through.
    pub fn open(&self) {
        self.0.fetch_or(1, Ordering::SeqCst);
    }

    /// Shuts, for good for every connection there is.
    pub fn shut(&self) {
        let next = |n: u64| Some((n | 1) + 1);
        let _ = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next);
    }

    fn number(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Serves the TPM on a socket at `path` for as long as the process lives, while `gate` is open.
pub fn offer(path: &Path, tpm: SharedTpm, gate: Gate) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (tpm, gate) = (tpm.clone(), gate.clone());
            thread::spawn(move || relay(stream, &tpm, &gate));
        }
    });
    Ok(())
}

/// Any end of the conversation closes the connection; the other end then reports a TPM that does
/// not answer.
fn relay(mut stream: UnixStream, tpm: &SharedTpm, gate: &Gate) {
    let opening = gate.number();
    while let Ok(Some(command)) = read_message(&mut stream) {
        let answer = {
            // The gate is looked at under the lock, which a power cycle holds after it shut the gate.
            let mut tpm = tpm.lock();
            if gate.number() != opening || opening & 1 == 0 {
                return;
            }
            tpm.channel().transact(&command)
        };
        let Ok(answer) = answer else { return };
        if stream.write_all(&answer).is_err() {
            return;
        }
    }
}
