//! TPMs in software: manufacture (swtpm_setup with a lab's own certificate authority) and operation
//! (one swtpm process per host or VM, with its control channel).
//!
//! Who owns a [`Swtpm`] owns the machine's power button: only the control channel can reset a TPM.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::{fs::DirBuilderExt, net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use hgs_protocol::{
    env::{OsRandom, Random},
    secret::Secret32,
    tpm::command::{self, Call},
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use zeroize::Zeroizing;

use crate::{
    child::{Child, ChildError, Input, Output, Plan},
    tpm_channel::{ChannelError, TpmChannel},
};

/// Why a TPM could not be made, started or controlled.
#[derive(Debug, thiserror::Error)]
pub enum SwtpmError {
    /// A directory or file of the TPM cannot be used.
    #[error("cannot use {}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        #[source]
        cause: io::Error,
    },
    /// A process could not be started.
    #[error(transparent)]
    Child(#[from] ChildError),
    /// swtpm_setup failed.
    #[error("swtpm_setup could not make the TPM of {owner}; see {}", log.display())]
    Manufacture {
        /// Whose TPM.
        owner: String,
        /// Its log.
        log: PathBuf,
    },
    /// swtpm ended right away or does not answer. A wrong state key shows itself so.
    #[error("the TPM of {owner} does not start; see {}", log.display())]
    Start {
        /// Whose TPM.
        owner: String,
        /// Its log.
        log: PathBuf,
    },
    /// The control channel refused a command.
    #[error("the TPM of {owner} cannot be {action} (control channel answered 0x{code:x})")]
    Control {
        /// Whose TPM.
        owner: String,
        /// What was asked.
        action: &'static str,
        /// swtpm's result.
        code: u32,
    },
    /// The TPM does not answer.
    #[error(transparent)]
    Channel(#[from] ChannelError),
}

/// The certificate authority of a lab's TPM maker, in a directory of its own.
#[derive(Clone, Debug)]
pub struct TpmMaker {
    directory: PathBuf,
}

impl TpmMaker {
    /// Opens or founds the maker in `directory` (absolute). Its keys are made at the first TPM.
    pub fn open(directory: &Path) -> Result<TpmMaker, SwtpmError> {
        make_private_dir(directory)?;
        let maker = TpmMaker {
            directory: directory.to_path_buf(),
        };
        let d = directory.display();
        maker.write(
            "setup.conf",
            &format!(
                "create_certs_tool = swtpm_localca\ncreate_certs_tool_config = {d}/localca.conf\n\
                 create_certs_tool_options = {d}/localca.options\nactive_pcr_banks = sha256\n"
            ),
        )?;
        maker.write(
            "localca.conf",
            &format!(
                "statedir = {d}\nsigningkey = {d}/signkey.pem\nissuercert = {d}/issuercert.pem\n\
                 certserial = {d}/certserial\n"
            ),
        )?;
        maker.write(
            "localca.options",
            "--platform-manufacturer Contoso\n--platform-version 1.0\n--platform-model GuardedHost\n",
        )?;
        Ok(maker)
    }

    /// The maker's root certificate, PEM; there once a TPM was made.
    pub fn root_certificate(&self) -> PathBuf {
        self.directory.join("swtpm-localca-rootca-cert.pem")
    }

    /// The certificate that signs EK certificates, PEM; there once a TPM was made.
    pub fn intermediate_certificate(&self) -> PathBuf {
        self.directory.join("issuercert.pem")
    }

    /// Root and intermediate certificate, DER; there once a TPM was made.
    pub fn certificates(&self) -> Result<Vec<Vec<u8>>, SwtpmError> {
        let read = |path: PathBuf| {
            let pem = CertificateDer::from_pem_file(&path);
            pem.map(|der| der.to_vec())
                .map_err(|e| at(&path, io::Error::other(e.to_string())))
        };
        [self.root_certificate(), self.intermediate_certificate()]
            .into_iter()
            .map(read)
            .collect()
    }

    /// Makes a TPM in `state` (absolute, emptied first): RSA EK at 0x81010001 with its certificate,
    /// storage root key at 0x81000001, SHA-256 bank only. With `key` its state is encrypted.
    /// Returns the EK certificate, DER.
    pub fn manufacture(&self, owner: &str, state: &Path, key: Option<&Secret32>) -> Result<Vec<u8>, SwtpmError> {
        if state.exists() {
            fs::remove_dir_all(state).map_err(|cause| at(state, cause))?;
        }
        make_private_dir(state)?;
        let log = state.join("setup.log");
        // swtpm_setup gives its own children another standard input, so the key moves to
        // descriptor 3; it goes through a pipe and is in no argument list and no file.
        let redirect = "exec swtpm_setup \"$@\" 3<&0 </dev/null";
        let mut plan = Plan::new("sh", state)
            .args([
                "-c",
                redirect,
                "swtpm_setup",
                "--tpm2",
                "--create-ek-cert",
                "--create-spk",
            ])
            .args(["--pcr-banks", "sha256", "--vmid", owner])
            .arg("--tpmstate")
            .arg(state)
            .arg("--write-ek-cert-files")
            .arg(state)
            .arg("--config")
            .arg(self.directory.join("setup.conf"))
            .arg("--logfile")
            .arg(&log)
            // Certificates pass through it, and the usual one may be another user's.
            .env("TMPDIR", state)
            // The console output holds no more than the log does.
            .output(Output::Null);
        if rustix::process::getuid().is_root() {
            // Run by root it would change to another user unless told to stay; other users may not change at all.
            plan = plan.args(["--runas", "root"]);
        }
        if let Some(key) = key {
            let hex = Zeroizing::new(hex::encode(key.expose()).into_bytes());
            plan = plan
                .args(["--cipher", "aes-256-cbc", "--keyfile-fd", "3"])
                .input(Input::Bytes(hex));
        }
        let status = plan.run()?;
        let certificate = state.join("ek-rsa2048.crt");
        match (status.success(), fs::read(&certificate)) {
            (true, Ok(der)) => Ok(der),
            _ => Err(SwtpmError::Manufacture {
                owner: owner.to_owned(),
                log,
            }),
        }
    }

    /// Another host's TPM may be under way and its tools about to read the file: it is there whole or not at all.
    fn write(&self, name: &str, text: &str) -> Result<(), SwtpmError> {
        let path = self.directory.join(name);
        if fs::read(&path).is_ok_and(|there| there == text.as_bytes()) {
            return Ok(());
        }
        let write = || {
            let mut new = tempfile::NamedTempFile::new_in(&self.directory)?;
            new.write_all(text.as_bytes())?;
            new.persist(&path)?;
            Ok(())
        };
        write().map_err(|cause| at(&path, cause))
    }
}

/// The EK certificate that [`TpmMaker::manufacture`] left beside the TPM's state, DER.
pub fn ek_certificate(state: &Path) -> Result<Vec<u8>, SwtpmError> {
    let path = state.join("ek-rsa2048.crt");
    fs::read(&path).map_err(|cause| at(&path, cause))
}

/// A running swtpm: killed when dropped.
///
/// Both its channels are connected pairs that only this process and swtpm hold: there is no socket
/// in the file system, so no other process can reach the control channel, which gives out a TPM's
/// state in the clear to whoever asks.
#[derive(Debug)]
pub struct Swtpm {
    owner: String,
    state: PathBuf,
    child: Child,
    control: UnixStream,
    channel: TpmChannel,
}

impl Swtpm {
    /// Starts swtpm on the state of a manufactured TPM. It has power but has not been reset yet:
    /// [`Swtpm::reset`] comes next. `key` is the key its state was made with; it reaches swtpm
    /// through a pipe.
    pub fn start(owner: &str, state: &Path, key: Option<&Secret32>) -> Result<Swtpm, SwtpmError> {
        let log = state.join("swtpm.log");
        let pair = || UnixStream::pair().map_err(|cause| at(state, cause));
        let ((control, its_control), (commands, its_commands)) = (pair()?, pair()?);
        control
            .set_read_timeout(Some(START_TIMEOUT))
            .map_err(|cause| at(state, cause))?;
        let mut plan = Plan::new("swtpm", state)
            .args(["socket", "--tpm2", "--ctrl", "type=unixio,clientfd=3", "--fd", "4"])
            .args(["--tpmstate", &format!("dir={},mode=0600", state.display())])
            .args(["--log", &format!("file={}", log.display())])
            .descriptor(its_control, 3)
            .descriptor(its_commands, 4)
            .errors(Output::File(log.clone()));
        if let Some(key) = key {
            plan = plan
                .args(["--key", "fd=0,mode=aes-256-cbc,format=binary"])
                .input(Input::Bytes(Zeroizing::new(key.expose().to_vec())));
        }
        let mut tpm = Swtpm {
            owner: owner.to_owned(),
            state: state.to_path_buf(),
            child: plan.spawn()?,
            control,
            channel: TpmChannel::over(commands, owner)?,
        };
        // Any answer shows that it is up; the capabilities are a u64 without a result code.
        let mut capabilities = [0; 8];
        match tpm
            .control
            .write_all(&CMD_GET_CAPABILITY.to_be_bytes())
            .and_then(|()| tpm.control.read_exact(&mut capabilities))
        {
            Ok(()) => Ok(tpm),
            Err(_) => Err(SwtpmError::Start {
                owner: owner.to_owned(),
                log,
            }),
        }
    }

    /// Power cycle: PCRs return to their reset values, sessions and transient objects are gone.
    /// TPM2_Startup is given from `locality` (3 lets PCR 0 start from 3, as with an H-CRTM).
    pub fn reset(&mut self, locality: u8) -> Result<(), SwtpmError> {
        self.start_up(locality, &command::startup_clear())
    }

    /// Power after [`Swtpm::suspend`]: TPM2_Startup(STATE), so PCRs and sessions are as they were saved. `locality` is
    /// that of the [`Swtpm::reset`] before; a TPM resumes from no other.
    pub fn resume(&mut self, locality: u8) -> Result<(), SwtpmError> {
        self.start_up(locality, &command::startup_state())
    }

    /// Saves what [`Swtpm::resume`] takes up: TPM2_Shutdown(STATE), then the process ends.
    pub fn suspend(self) -> Result<(), SwtpmError> {
        self.end(&command::shutdown_state())
    }

    /// Orderly end: TPM2_Shutdown, then the process ends.
    pub fn shut_down(self) -> Result<(), SwtpmError> {
        self.end(&command::shutdown_clear())
    }

    fn end(mut self, shutdown: &Call) -> Result<(), SwtpmError> {
        self.channel.call(shutdown)?;
        self.control("shut down", &CMD_SHUTDOWN.to_be_bytes())?;
        self.child.wait()?;
        Ok(())
    }

    /// The command channel.
    pub fn channel(&mut self) -> &mut TpmChannel {
        &mut self.channel
    }

    /// The certificate of its endorsement key, as its maker left it beside the state, DER.
    pub fn ek_certificate(&self) -> Result<Vec<u8>, SwtpmError> {
        ek_certificate(&self.state)
    }

    /// Another handle of the command channel. Whoever holds both uses them in turn: an answer goes to
    /// whoever reads first.
    pub fn another_channel(&self) -> Result<TpmChannel, SwtpmError> {
        Ok(self.channel.another()?)
    }

    /// True while the process runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.ended(), Ok(None))
    }

    /// Ends the process at once: a TPM that fails.
    pub fn kill(&mut self) -> Result<(), SwtpmError> {
        self.child.kill()?;
        Ok(())
    }

    /// The process id, for tests that kill it.
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    fn start_up(&mut self, locality: u8, startup: &Call) -> Result<(), SwtpmError> {
        self.control("stopped", &CMD_STOP.to_be_bytes())?;
        self.control("reset", &[CMD_INIT.to_be_bytes(), [0; 4]].concat())?;
        self.set_locality(locality)?;
        self.channel.call(startup)?;
        self.set_locality(0)
    }

    fn set_locality(&mut self, locality: u8) -> Result<(), SwtpmError> {
        let mut command = CMD_SET_LOCALITY.to_be_bytes().to_vec();
        command.push(locality);
        self.control("set to a locality", &command)
    }

    /// Sends one command of swtpm's control protocol (big-endian command, then arguments) and
    /// reads its u32 result.
    fn control(&mut self, action: &'static str, command: &[u8]) -> Result<(), SwtpmError> {
        let mut answer = || -> io::Result<u32> {
            self.control.write_all(command)?;
            let mut result = [0; 4];
            self.control.read_exact(&mut result)?;
            Ok(u32::from_be_bytes(result))
        };
        match answer() {
            Ok(0) => Ok(()),
            Ok(code) => Err(SwtpmError::Control {
                owner: self.owner.clone(),
                action,
                code,
            }),
            Err(cause) => Err(ChannelError::Silent {
                owner: self.owner.clone(),
                cause,
            }
            .into()),
        }
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

/// A directory for sockets that only this user enters: `run` below `home`, made anew, or, where
/// that path is too long for a socket's 108 bytes, a fresh one among the temporary files.
pub fn socket_dir(home: &Path) -> Result<PathBuf, SwtpmError> {
    let near = home.join("run");
    if near.as_os_str().len() > LONGEST_SOCKET_DIR {
        return short_private_dir();
    }
    match fs::remove_dir_all(&near) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(at(&near, cause)),
        _ => {}
    }
    make_private_dir(&near)?;
    Ok(near)
}

/// A fresh directory among the temporary files that only this user enters, with a short path.
pub fn short_private_dir() -> Result<PathBuf, SwtpmError> {
    let name: [u8; 6] = (&mut OsRandom as &mut dyn Random).bytes();
    let mut path = std::env::temp_dir();
    if path.as_os_str().len() > LONGEST_SOCKET_DIR - 20 {
        path = PathBuf::from("/tmp");
    }
    path.push(format!("hgs-{}", hex::encode(name)));
    make_private_dir(&path)?;
    Ok(path)
}

/// Makes `path` and its parents, for this user only.
pub(crate) fn make_private_dir(path: &Path) -> Result<(), SwtpmError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|cause| at(path, cause))
}

fn at(path: &Path, cause: io::Error) -> SwtpmError {
    SwtpmError::File {
        path: path.to_path_buf(),
        cause,
    }
}

const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Leaves room for a socket's name within 108 bytes.
const LONGEST_SOCKET_DIR: usize = 90;
const CMD_GET_CAPABILITY: u32 = 1;
const CMD_INIT: u32 = 2;
const CMD_SHUTDOWN: u32 = 3;
const CMD_SET_LOCALITY: u32 = 5;
const CMD_STOP: u32 = 14;

/// True when swtpm can run here; otherwise says on standard error what is skipped.
#[cfg(test)]
pub(crate) fn available(test: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |name: &str| std::env::split_paths(&path).any(|d| d.join(name).exists());
    let there = found("swtpm") && found("swtpm_setup") && found("setpriv");
    if !there {
        eprintln!("SKIPPED {test}: swtpm, swtpm_setup or setpriv is not installed");
    }
    there
}

#[cfg(test)]
mod tests {
    use hgs_protocol::tpm::{
        EK_HANDLE, PcrSelection, ResponseCode, SRK_HANDLE,
        response::{self, Response},
        session::SaltedSession,
    };

    use super::*;

    fn pcr(channel: &mut TpmChannel, index: u8) -> [u8; 32] {
        let selection = PcrSelection::of(&[index]).unwrap();
        let answer = channel.call(&command::pcr_read(selection)).unwrap();
        response::pcr_read(Response::parse(&answer).unwrap().parameters, selection)
            .unwrap()
            .values[0]
            .1
    }

    #[test]
    fn a_maker_opened_again_is_never_seen_half_written() {
        let dir = tempfile::tempdir().unwrap();
        TpmMaker::open(dir.path()).unwrap();
        let file = dir.path().join("localca.conf");
        let whole = fs::read(&file).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        TpmMaker::open(dir.path()).unwrap();
                    }
                });
            }
            for _ in 0..2000 {
                assert_eq!(fs::read(&file).unwrap(), whole);
            }
        });
    }

    #[test]
    fn a_tpm_is_made_started_reset_and_read_under_a_salted_session() {
        if !available("a_tpm_is_made_started_reset_and_read_under_a_salted_session") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let maker = TpmMaker::open(&dir.path().join("maker")).unwrap();
        let state = dir.path().join("tpm");
        let certificate = maker.manufacture("host01", &state, None).unwrap();
        assert!(maker.root_certificate().exists() && maker.intermediate_certificate().exists());
        assert_eq!(ek_certificate(&state).unwrap(), certificate);

        let mut tpm = Swtpm::start("host01", &state, None).unwrap();
        tpm.reset(3).unwrap();
        let mut three = [0; 32];
        three[31] = 3;
        assert_eq!(pcr(tpm.channel(), 0), three, "Startup came from locality 3");
        let ek = tpm.channel().read_public(EK_HANDLE).unwrap();
        assert!(ek.looks_like_ek());
        assert!(tpm.channel().read_public(SRK_HANDLE).unwrap().rsa_key().is_some());

        let extend = command::pcr_extend(7, &[9; 32]);
        tpm.channel().call_with_empty_password(&extend).unwrap();
        let unread = tpm.channel().read_public(0x8101_0002).unwrap_err();
        assert_eq!(unread.refusal(), Some(ResponseCode::HANDLE));

        let rng = &mut OsRandom;
        let (start, pending) = SaltedSession::start(ek.rsa_key().unwrap(), rng).unwrap();
        let answer = tpm.channel().transact(&start).unwrap();
        let mut session = pending.started(&answer).unwrap();
        let first = PcrSelection::of(&[0, 1, 2, 3, 7, 11, 12, 13]).unwrap();
        let read = session.pcr_read(first, true, rng);
        let answer = tpm.channel().transact(&read).unwrap();
        assert_eq!(answer.len(), 373);
        let one = session.pcr_read_response(&answer, first).unwrap();
        let rest = PcrSelection::of(&[4, 5, 6, 14]).unwrap();
        let read = session.pcr_read(rest, false, rng);
        let answer = tpm.channel().transact(&read).unwrap();
        let two = session.pcr_read_response(&answer, rest).unwrap();
        assert_eq!(one.update_counter, two.update_counter);
        assert_ne!(one.values[4], (7, [0; 32]));
        let gone = tpm.channel().transact(&session.pcr_read(rest, false, rng)).unwrap();
        assert_eq!(response::code(&gone).unwrap(), ResponseCode(0x918));

        tpm.reset(0).unwrap();
        assert_eq!(pcr(tpm.channel(), 7), [0; 32], "a reset clears PCR 7");
        assert_eq!(pcr(tpm.channel(), 0), [0; 32]);
        tpm.shut_down().unwrap();
    }

    #[test]
    fn encrypted_state_opens_only_with_its_key() {
        if !available("encrypted_state_opens_only_with_its_key") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let maker = TpmMaker::open(&dir.path().join("maker")).unwrap();
        let state = dir.path().join("vtpm");
        let key = Secret32::new([5; 32]);
        maker.manufacture("vm01", &state, Some(&key)).unwrap();
        let mut tpm = Swtpm::start("vm01", &state, Some(&key)).unwrap();
        tpm.reset(0).unwrap();
        assert!(tpm.channel().read_public(EK_HANDLE).unwrap().looks_like_ek());
        tpm.shut_down().unwrap();
        for wrong in [Some(Secret32::new([6; 32])), None] {
            let opened = Swtpm::start("vm01", &state, wrong.as_ref()).and_then(|mut t| t.reset(0));
            assert!(opened.is_err());
        }
        // The failures have not harmed the state.
        let mut tpm = Swtpm::start("vm01", &state, Some(&key)).unwrap();
        tpm.reset(0).unwrap();
    }

    #[test]
    fn a_killed_tpm_is_named_in_the_error() {
        if !available("a_killed_tpm_is_named_in_the_error") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let maker = TpmMaker::open(&dir.path().join("maker")).unwrap();
        let state = dir.path().join("tpm");
        maker.manufacture("host01", &state, None).unwrap();
        let mut tpm = Swtpm::start("host01", &state, None).unwrap();
        tpm.reset(0).unwrap();
        tpm.child.kill().unwrap();
        let error = tpm.channel().call(&command::get_random(8)).unwrap_err();
        assert_eq!(error.to_string(), "the TPM of host01 does not answer");
        assert!(!tpm.is_running());
        assert_eq!(
            tpm.reset(0).unwrap_err().to_string(),
            "the TPM of host01 does not answer"
        );
    }
}
