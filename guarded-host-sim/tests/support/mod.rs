//! What the end-to-end tests share: a small fabric, a shielded VM on it, and a look at processes.
#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod needles;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use guarded_host_sim::{
    fabric::{Fabric, hgs::Hgs, host::SimHost},
    machine::user::let_others_pass,
    owner::{OwnedVm, Owner},
    swtpm::short_private_dir,
    vm::{
        VmName,
        guest::GuestReport,
        request::{Blob, VmReply},
        volume::{Current, Volume},
    },
};
use hgs_protocol::{
    env::{Clock, OsRandom, Random},
    protector::{KeyPair, KeyProtector},
};
use serde_json::{Value, json};

/// A folder that is removed with everything in it. Short, because sockets lie below it.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> Folder {
        let folder = short_private_dir().unwrap();
        // The agents have a user of their own, who must get to their folders.
        let_others_pass(&folder).unwrap();
        Folder(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// One HGS, a shielded VM, and what belongs to it. Fields are dropped in this order.
pub(crate) struct Stage {
    pub(crate) hgs: Hgs,
    pub(crate) fabric: Fabric,
    pub(crate) volume: Volume,
    pub(crate) volume_path: PathBuf,
    pub(crate) owner: Owner,
    pub(crate) vm: OwnedVm,
    pub(crate) secret: String,
    pub(crate) folder: Folder,
}

impl Stage {
    /// Sets the stage and starts and registers the hosts in `names`; the first owns the VM.
    pub(crate) async fn set(names: &[&str]) -> (Stage, Vec<SimHost>) {
        Stage::set_with(names, &[]).await
    }

    /// As [`Stage::set`], with variables for every process.
    pub(crate) async fn set_with(names: &[&str], environment: &[(&str, &str)]) -> (Stage, Vec<SimHost>) {
        let folder = Folder::new();
        let mut fabric = Fabric::new(&folder.0, false).unwrap();
        for (name, value) in environment {
            fabric.environment.push(((*name).to_owned(), (*value).to_owned()));
        }
        let hgs = fabric.start_hgs("hgs").unwrap();
        hgs.trust_signer().await.unwrap();
        let (volume, volume_path) = fabric.volume("volume").unwrap();
        let wanted: Vec<_> = names.iter().map(|name| (*name, &hgs, volume_path.as_path())).collect();
        let mut started = fabric.start_hosts(&wanted).unwrap();
        let hosts: Vec<SimHost> = names.iter().map(|name| started.remove(*name).unwrap()).collect();
        hgs.trust_tpm_makers(&fabric.tpm_maker_certificates().unwrap())
            .await
            .unwrap();
        for host in &hosts {
            hgs.register_host(&host.name, &host.artefact("ek.cer").await.unwrap())
                .await
                .unwrap();
        }
        let boot_log = hosts[0].artefact("boot.log").await.unwrap();
        let ci_policy = hosts[0].artefact("SIPolicy.p7b").await.unwrap();
        hgs.register_model("GuardedHost", &boot_log, &ci_policy).await.unwrap();
        let rng: &mut dyn Random = &mut OsRandom;
        let owner = Owner::new("owner", &folder.0.join("owner"), Clock::system().now(), rng).unwrap();
        let guardian = Owner::import_guardian(&hgs.metadata().await.unwrap(), "HGS")
            .unwrap()
            .guardian;
        let secret = hex::encode(rng.bytes::<24>());
        let name = VmName::parse("payroll").unwrap();
        let vm = owner
            .shield(&name, secret.as_bytes(), &guardian, &volume, names[0], rng)
            .unwrap();
        let stage = Stage {
            hgs,
            fabric,
            volume,
            volume_path,
            owner,
            vm,
            secret,
            folder,
        };
        (stage, hosts)
    }

    pub(crate) fn current(&self) -> Current {
        self.volume.vm(&self.vm.name).unwrap().current().unwrap()
    }

    /// Writes another MaxOfflineUnwraps into the VM's protector, as whoever holds the file may.
    pub(crate) fn wish_offline_starts(&self, starts: u32) {
        let (path, protector) = self.files().0;
        let protector = KeyProtector::parse(&protector).unwrap();
        fs::write(path, protector.with_max_offline_unwraps(starts).to_xml()).unwrap();
    }

    /// Protector and state that count, each with its path.
    pub(crate) fn files(&self) -> (File, File) {
        let folder = self.volume_path.join(self.vm.name.as_str()).join("generations");
        let folder = folder.join(String::from(self.current().generation));
        let read = |name: &str| {
            let path = folder.join(name);
            (path.clone(), fs::read(path).unwrap())
        };
        (read("protector.xml"), read("guest-state.bin"))
    }

    pub(crate) fn restart(&self, name: &str, crash_at: Option<&str>) -> SimHost {
        self.fabric
            .restart_host(name, &self.hgs, &self.volume_path, crash_at)
            .unwrap()
    }

    /// An error is a host that did not answer or refused; the caller knows what to expect.
    pub(crate) async fn power_on(&self, host: &SimHost) -> Result<GuestReport, String> {
        self.ask(host, "power-on", &json!({})).await
    }

    pub(crate) async fn migrate(&self, source: &SimHost, target: &SimHost) -> Result<Value, String> {
        let ask = json!({ "target": target.name, "address": target.agent_url });
        self.ask(source, "migrate", &ask).await
    }

    pub(crate) async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        host: &SimHost,
        verb: &str,
        body: &Value,
    ) -> Result<T, String> {
        host.post(&format!("vms/{}/{verb}", self.vm.name), body)
            .await
            .map_err(|e| format!("{e:#}"))?
    }

    /// Panics unless the guest on `host` knows the owner's secret.
    pub(crate) async fn prove(&self, host: &SimHost) -> GuestReport {
        let challenge = [7; 32];
        let ask = json!({ "challenge": STANDARD.encode(challenge) });
        match self.ask::<VmReply>(host, "prove", &ask).await.unwrap() {
            VmReply::Proof { proof, guest } => {
                assert_eq!(proof, Blob(self.vm.expected_proof(&challenge).to_vec()));
                guest
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Certificate and private key as PEM.
pub(crate) fn pem(pair: &KeyPair) -> String {
    let block = |label: &str, der: &[u8]| {
        let text = STANDARD.encode(der);
        let lines: Vec<&str> = (0..text.len())
            .step_by(64)
            .map(|at| &text[at..text.len().min(at + 64)])
            .collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
    };
    block("CERTIFICATE", pair.certificate().der()) + &block("PRIVATE KEY", pair.expose_pkcs8().unwrap())
}

/// A path and what stands there.
pub(crate) type File = (PathBuf, Vec<u8>);

/// The processes whose command line or working directory mentions `needle`: id and command line.
pub(crate) fn processes_of(needle: &Path) -> Vec<(u32, String)> {
    let needle = needle.to_str().unwrap();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        if id == std::process::id() {
            continue;
        }
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let directory = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        if line.contains(needle) || directory.to_string_lossy().starts_with(needle) {
            found.push((id, line));
        }
    }
    found
}

/// The one process of `folder` whose command line has all of `words`.
pub(crate) fn process(folder: &Path, words: &[&str]) -> u32 {
    let all = processes_of(folder);
    let found: Vec<&(u32, String)> = all
        .iter()
        .filter(|(_, line)| words.iter().all(|w| line.contains(w)))
        .collect();
    match found.as_slice() {
        [(id, _)] => *id,
        other => panic!("{words:?}: {other:?} of {all:?}"),
    }
}

pub(crate) fn kill(process: u32) {
    let id = rustix::process::Pid::from_raw(process.try_into().unwrap()).unwrap();
    let _ = rustix::process::kill_process(id, rustix::process::Signal::KILL);
}

/// Waits until `condition` holds, at most `seconds`.
pub(crate) fn wait_until(seconds: u64, what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(seconds);
    while !condition() {
        assert!(Instant::now() < end, "after {seconds} s still not: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a command of the program says: its JSON or text, or its refusal. A panic is neither.
pub(crate) fn said(command: &mut Command) -> Result<serde_json::Value, String> {
    command.env_remove("RUST_BACKTRACE").stdin(Stdio::null());
    let done = command.output().unwrap();
    let (out, error) = (
        String::from_utf8(done.stdout).unwrap(),
        String::from_utf8(done.stderr).unwrap(),
    );
    assert!(!error.contains("panicked"), "{error}");
    match done.status.success() {
        true => Ok(serde_json::from_str(&out).unwrap_or(serde_json::Value::String(out))),
        false => Err(error),
    }
}

/// Panics unless `words` were refused with all of `reasons`.
pub(crate) fn refused_for(said: Result<serde_json::Value, String>, words: &str, reasons: &[&str]) {
    match said {
        Ok(answer) => panic!("{words} was not refused: {answer}"),
        Err(error) => {
            for reason in reasons {
                assert!(error.contains(reason), "{words}: {reason:?} is not in: {error}");
            }
        }
    }
}
