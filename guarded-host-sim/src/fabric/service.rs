//! One service process of a fabric: attestation or key protection, started, awaited, administered.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::ChildStdout,
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use hgs_protocol::env::{Clock, OsRandom};
use hgs_service::{
    lab_clock,
    settings::ServiceArgs,
    tokens::{Role, new_token},
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use super::{here::Here, soft_token::SoftToken};
use crate::child::{Child, Output, Plan};

/// Certificate chain and key with which services of a fabric speak HTTPS, PEM files.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The root that clients trust.
    pub root: PathBuf,
    /// Server certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Variables for the processes of a fabric: the level of logs, say.
pub type Environment = Vec<(String, String)>;

/// What an administrator chooses at the start of a service; where nothing is chosen, the service's own default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choices {
    /// How many minutes a health certificate lives.
    pub health_certificate_minutes: Option<u64>,
    /// Most exchanges of one registered key in a minute.
    pub requests_per_minute_per_key: Option<u32>,
    /// Key of the attestation signers, `rsa` or `p256`.
    pub signer_suite: Option<&'static str>,
    /// Most offline unwraps that a released key may carry.
    pub max_offline_unwraps: Option<u32>,
}

impl Choices {
    /// As the service `name` takes them on its command line.
    pub(super) fn arguments(&self, name: &str) -> Vec<String> {
        let text = |number: Option<u64>| number.map(|number| number.to_string());
        let options = match name {
            "attestation" => vec![
                ("--health-certificate-minutes", text(self.health_certificate_minutes)),
                (
                    "--requests-per-minute-per-key",
                    text(self.requests_per_minute_per_key.map(u64::from)),
                ),
                ("--signer-suite", self.signer_suite.map(str::to_owned)),
            ],
            _ => vec![("--max-offline-unwraps", text(self.max_offline_unwraps.map(u64::from)))],
        };
        let given = options
            .into_iter()
            .filter_map(|(name, value)| Some([name.to_owned(), value?]));
        given.flatten().collect()
    }
}

/// How a service is started beyond what all have in common.
#[derive(Clone, Debug, Default)]
pub struct Extras {
    /// In this process, on this runtime; a process of its own without one.
    pub here: Option<tokio::runtime::Handle>,
    /// What its administrator chose.
    pub choices: Choices,
    /// With what it speaks HTTPS.
    pub tls: Option<Tls>,
    /// Variables for its process.
    pub environment: Environment,
    /// Lines of its token file beside the lab's own.
    pub admin_tokens: Vec<String>,
    /// Where it keeps its private keys; without one, sealed in its database.
    pub(super) token: Option<SoftToken>,
}

impl Extras {
    /// In this process or not, with HTTPS or without, and as its administrator chose.
    pub fn new(here: Option<tokio::runtime::Handle>, tls: Option<Tls>, choices: Choices) -> Extras {
        Extras {
            here,
            tls,
            choices,
            ..Extras::default()
        }
    }
}

/// A running service.
pub struct Service {
    /// `attestation` or `kps`.
    pub name: &'static str,
    /// `http://ADDRESS` of the service listener.
    pub url: String,
    /// `https://ADDRESS` of the service listener, if it speaks HTTPS.
    pub tls_url: Option<String>,
    admin_url: String,
    token: String,
    folder: PathBuf,
    clock: PathBuf,
    replica_clocks: Vec<PathBuf>,
    /// A folder of its own for the clock's socket, made because the service's has too long a path.
    clock_folder: Option<PathBuf>,
    extras: Extras,
    process: Process,
    http: reqwest::Client,
}

/// The process behind a part of the fabric.
pub(super) enum Process {
    /// Our child. Its output is held open, because it must be able to write there.
    Child(
        Box<Child>,
        #[expect(dead_code, reason = "held open")] BufReader<ChildStdout>,
    ),
    /// This process.
    Here(Here),
    /// Somebody else runs it: a container beside ours.
    Elsewhere,
}

impl Process {
    pub(super) fn id(&self) -> Option<u32> {
        match self {
            Process::Child(child, _) => Some(child.id()),
            Process::Here(_) | Process::Elsewhere => None,
        }
    }

    /// The exit status in words, once it has ended; what runs elsewhere is not watched.
    pub(super) fn ended(&mut self) -> Result<Option<String>, crate::child::ChildError> {
        match self {
            Process::Child(child, _) => Ok(child.ended()?.map(|status| status.to_string())),
            Process::Here(here) => Ok(here.ended().then(|| "its listeners are closed".to_owned())),
            Process::Elsewhere => Ok(None),
        }
    }

    pub(super) fn kill(&mut self) -> anyhow::Result<()> {
        match self {
            Process::Child(child, _) => {
                child.kill()?;
                Ok(())
            }
            Process::Here(here) => {
                here.stop();
                Ok(())
            }
            Process::Elsewhere => bail!("it runs elsewhere and cannot be killed from here"),
        }
    }
}

/// Where a service that runs elsewhere is reached, as `prepare` writes it.
#[derive(Clone, Debug, Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    /// `http://ADDRESS` of the service listener.
    pub url: String,
    /// `https://ADDRESS` of the service listener, if it speaks HTTPS, and the root certificate for it, PEM.
    #[serde(default)]
    pub https: Option<(String, PathBuf)>,
    /// URL of the administrators' listener.
    pub admin_url: String,
    /// An administrator's token.
    pub token: String,
    /// The root certificate of the administrators' listener, PEM, where it speaks HTTPS.
    #[serde(default)]
    pub root: Option<PathBuf>,
    /// Socket of the lab's clock.
    pub clock: PathBuf,
    /// The same of further replicas; those that do not run have none.
    #[serde(default)]
    pub replica_clocks: Vec<PathBuf>,
}

impl Service {
    /// A service that runs elsewhere.
    pub fn attach(name: &'static str, to: &Attachment) -> anyhow::Result<Service> {
        Ok(Service {
            name,
            url: to.url.clone(),
            tls_url: None,
            admin_url: to.admin_url.clone(),
            token: to.token.clone(),
            folder: PathBuf::new(),
            clock: to.clock.clone(),
            replica_clocks: to.replica_clocks.clone(),
            clock_folder: None,
            extras: Extras::default(),
            process: Process::Elsewhere,
            http: http_client(60, to.root.as_deref())?,
        })
    }

    /// Starts `name` with everything of it below `folder` (absolute) and waits until it is ready.
    pub fn start(name: &'static str, folder: &Path, extras: &Extras) -> anyhow::Result<Service> {
        // The agents of this lab are other users and have no business here.
        crate::swtpm::make_private_dir(folder)?;
        let (token, line) = new_token(Role::Administrator, &mut OsRandom);
        let lines: String = [&line]
            .into_iter()
            .chain(&extras.admin_tokens)
            .map(|line| format!("{line}\n"))
            .collect();
        fs::write(folder.join("admin-tokens"), lines)?;
        let kek = folder.join("key-encryption-key");
        if !kek.exists() {
            let key = hgs_protocol::secret::Secret32::random(&mut OsRandom);
            write_private(&kek, &hex::encode(key.expose()))?;
        }
        // A socket's path has 108 bytes, and the folder may be deep.
        let clock_folder = match folder.as_os_str().len() {
            0..=96 => None,
            _ => Some(crate::swtpm::short_private_dir()?),
        };
        let clock = clock_folder.as_deref().unwrap_or(folder).join("clock");
        let any = "127.0.0.1:0";
        let (process, urls) = launch(name, folder, &clock, extras, [any, any, any])?;
        let [url, admin_url, tls_url] = urls;
        Ok(Service {
            name,
            url: url.with_context(|| format!("{name} does not say where it listens"))?,
            tls_url,
            admin_url: admin_url.with_context(|| format!("{name} does not say where administrators reach it"))?,
            token,
            folder: folder.to_path_buf(),
            clock,
            replica_clocks: Vec::new(),
            clock_folder,
            extras: extras.clone(),
            process,
            http: http_client(60, None)?,
        })
    }

    /// Starts the service again at the same addresses, over its own data; if it runs, it is killed. Its clock
    /// is the system's again.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        let address = |url: &str| url.rsplit('/').next().unwrap_or_default().to_owned();
        let (public, admin) = (address(&self.url), address(&self.admin_url));
        let tls = self.tls_url.as_deref().map(address).unwrap_or_default();
        let listen = [public.as_str(), &admin, &tls];
        let (process, _) = launch(self.name, &self.folder, &self.clock, &self.extras, listen)?;
        self.process = process;
        Ok(())
    }

    /// URL of the administrators' listener, and an administrator's token.
    pub fn administrator(&self) -> (&str, &str) {
        (&self.admin_url, &self.token)
    }

    /// Where the service keeps everything, its log included.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its process id, if it is a child of ours.
    pub fn process_id(&self) -> Option<u32> {
        self.process.id()
    }

    /// Says how it ended, if it has.
    pub fn ended(&mut self) -> Option<String> {
        match self.process.ended() {
            Ok(None) => None,
            Ok(Some(status)) => Some(format!(
                "{} ended ({status}); see {}",
                self.name,
                self.folder.join("log").display()
            )),
            Err(e) => Some(e.to_string()),
        }
    }

    /// Kills the process, as a power cut would.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        Ok(())
    }

    /// Moves the service's clock forward, that of every replica.
    pub async fn advance_clock(&self, seconds: u64) -> anyhow::Result<i64> {
        for replica in self.replica_clocks.iter().filter(|clock| clock.exists()) {
            lab_clock::advance(replica, seconds).await?;
        }
        lab_clock::advance(&self.clock, seconds).await
    }

    /// GET below `/admin/v1`.
    pub async fn admin_get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let request = self.http.get(self.admin_path(path)).bearer_auth(&self.token);
        Ok(serde_json::from_slice(&self.answer("GET", path, request).await?)?)
    }

    /// POST of a JSON body below `/admin/v1`; gives the answer's bytes.
    pub async fn admin_post(&self, path: &str, body: &impl Serialize) -> anyhow::Result<Vec<u8>> {
        let request = self
            .http
            .post(self.admin_path(path))
            .bearer_auth(&self.token)
            .json(body);
        self.answer("POST", path, request).await
    }

    /// PUT of a JSON body below `/admin/v1`; gives the answer's bytes.
    pub async fn admin_put(&self, path: &str, body: &impl Serialize) -> anyhow::Result<Vec<u8>> {
        let request = self.http.put(self.admin_path(path)).bearer_auth(&self.token).json(body);
        self.answer("PUT", path, request).await
    }

    /// PATCH of a JSON body below `/admin/v1`; gives the answer's bytes.
    pub async fn admin_patch(&self, path: &str, body: &impl Serialize) -> anyhow::Result<Vec<u8>> {
        let request = self
            .http
            .patch(self.admin_path(path))
            .bearer_auth(&self.token)
            .json(body);
        self.answer("PATCH", path, request).await
    }

    /// Any request below `/admin/v1`, with a JSON body or none; gives HTTP status and body, whatever they are.
    pub async fn admin_any(
        &self,
        method: reqwest::Method,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> anyhow::Result<(u16, Vec<u8>)> {
        let mut request = self
            .http
            .request(method, self.admin_path(path))
            .bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await;
        let answer =
            answer.with_context(|| format!("the administrators' listener of {} does not answer", self.name))?;
        Ok((answer.status().as_u16(), answer.bytes().await?.to_vec()))
    }

    /// DELETE below `/admin/v1`.
    pub async fn admin_delete(&self, path: &str) -> anyhow::Result<()> {
        let request = self.http.delete(self.admin_path(path)).bearer_auth(&self.token);
        self.answer("DELETE", path, request).await.map(|_| ())
    }

    /// GET of the service's own listener.
    pub(super) async fn public_get(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        let request = self.http.get(format!("{}/{path}", self.url));
        Ok(request.send().await?.error_for_status()?.bytes().await?.to_vec())
    }

    async fn answer(&self, verb: &str, path: &str, request: reqwest::RequestBuilder) -> anyhow::Result<Vec<u8>> {
        let answer = request
            .send()
            .await
            .with_context(|| format!("the administrators' listener of {} does not answer", self.name))?;
        let status = answer.status();
        let bytes = answer.bytes().await?.to_vec();
        ensure!(
            status.is_success(),
            "{}: {verb} {path} was answered {status}: {}",
            self.name,
            String::from_utf8_lossy(&bytes)
        );
        Ok(bytes)
    }

    fn admin_path(&self, path: &str) -> String {
        format!("{}/admin/v1/{path}", self.admin_url)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(folder) = &self.clock_folder {
            let _ = fs::remove_dir_all(folder);
        }
    }
}

/// A client that trusts `root` (PEM), if given, and nothing else, and asks no proxy.
pub(crate) fn http_client(seconds: u64, root: Option<&Path>) -> anyhow::Result<reqwest::Client> {
    let mut roots = rustls::RootCertStore::empty();
    if let Some(path) = root {
        let certificate = CertificateDer::from_pem_file(path);
        roots.add(certificate.with_context(|| format!("cannot read {}", path.display()))?)?;
    }
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(reqwest::Client::builder()
        .no_proxy()
        .tls_backend_preconfigured(tls)
        .timeout(Duration::from_secs(seconds))
        // A service closes connections that were idle; a request must not meet one just then.
        .pool_max_idle_per_host(0)
        .build()?)
}

/// An administrator's token from its file, for the interface at `url` of the service called `name`; an
/// error where it would travel in clear.
pub(crate) fn administrator_token(name: &str, url: &str, file: &Path) -> anyhow::Result<Zeroizing<String>> {
    let text = fs::read_to_string(file)
        .with_context(|| format!("the token of {name} cannot be read from {}", file.display()))?;
    let text = Zeroizing::new(text);
    ensure!(
        url.starts_with("https://") || is_loopback(url),
        "{url} is reached in clear, where a token must not travel: give an https:// address of {name}"
    );
    Ok(Zeroizing::new(text.trim().to_owned()))
}

fn is_loopback(url: &str) -> bool {
    let host = reqwest::Url::parse(url).ok().and_then(|url| {
        let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
        Some(host)
    });
    host.is_some_and(|host| {
        host == "localhost"
            || host
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    })
}

/// What runs, and where it listens: service, administrators, TLS.
type Launched = (Process, [Option<String>; 3]);

/// Starts the service, in this process or in one of its own.
fn launch(
    name: &'static str,
    folder: &Path,
    clock: &Path,
    extras: &Extras,
    [listen, admin, tls_listen]: [&str; 3],
) -> anyhow::Result<Launched> {
    if let Some(runtime) = &extras.here {
        ensure!(
            extras.token.is_none(),
            "a service in this process keeps no keys in a token: the token's library reads this process's environment"
        );
        let files = |of: fn(&Tls) -> &PathBuf| extras.tls.as_ref().map(|tls| of(tls).clone());
        let settings = ServiceArgs {
            listen: Some(listen.parse()?),
            admin_listen: Some(admin.parse()?),
            tls_listen: extras.tls.as_ref().map(|_| tls_listen.parse()).transpose()?,
            tls_certificate: files(|tls| &tls.certificate),
            tls_key: files(|tls| &tls.key),
            data_dir: Some(folder.join("data")),
            admin_tokens: Some(folder.join("admin-tokens")),
            key_encryption_key_file: Some(folder.join("key-encryption-key")),
            ..ServiceArgs::default()
        };
        let time = Clock::system();
        let (here, urls) = Here::start(name, runtime, settings, &extras.choices.arguments(name), (&time, clock))?;
        return Ok((Process::Here(here), urls));
    }
    let log = folder.join("log");
    let mut plan = Plan::new(beside_this_program(name)?, folder)
        .args(["serve", "--listen", listen, "--admin-listen", admin])
        .arg("--data-dir")
        .arg(folder.join("data"))
        .arg("--admin-tokens")
        .arg(folder.join("admin-tokens"))
        .arg("--key-encryption-key-file")
        .arg(folder.join("key-encryption-key"))
        .arg("--lab-clock")
        .arg(clock)
        .args(extras.choices.arguments(name))
        .output(Output::Pipe)
        .errors(Output::File(log.clone()));
    for (name, value) in &extras.environment {
        plan = plan.env(name, value);
    }
    if let Some(token) = &extras.token {
        plan = token.attach(plan);
    }
    if let Some(tls) = &extras.tls {
        plan = plan
            .args(["--tls-listen", tls_listen, "--tls-certificate"])
            .arg(&tls.certificate)
            .arg("--tls-key")
            .arg(&tls.key);
    }
    let mut child = plan.spawn()?;
    let output = child.take_output().context("a service without standard output")?;
    let (line, output) = first_line(name, output, &log)?;
    let value = |key: &str| {
        line.split(' ')
            .find_map(|word| word.strip_prefix(key))
            .map(str::to_owned)
    };
    let urls = [value("service="), value("admin="), value("tls=")];
    Ok((Process::Child(Box::new(child), output), urls))
}

/// The binary `name` in the folder that the variable `LAB_PROGRAMS` names, or beside the running program (for a test
/// binary, one folder above).
pub fn beside_this_program(name: &str) -> anyhow::Result<PathBuf> {
    if let Some(folder) = std::env::var_os("LAB_PROGRAMS") {
        let path = PathBuf::from(folder).join(name);
        ensure!(
            path.is_file(),
            "there is no program {}, where LAB_PROGRAMS says",
            path.display()
        );
        return Ok(path);
    }
    let here = std::env::current_exe().context("this program does not know where it is")?;
    let found = here
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file());
    match found {
        Some(path) => Ok(path),
        None => bail!(
            "the program {name} is not beside {}: build the whole workspace first (`cargo build --workspace`)",
            here.display()
        ),
    }
}

/// Waits for the first line of a child's output; a child that ends without one is an error.
pub(crate) fn first_line(
    name: &str,
    output: ChildStdout,
    log: &Path,
) -> anyhow::Result<(String, BufReader<ChildStdout>)> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(output);
        let mut line = String::new();
        let read = reader.read_line(&mut line);
        let _ = sender.send((read.map(|_| line), reader));
    });
    match receiver.recv_timeout(READY_TIMEOUT) {
        Ok((Ok(line), reader)) if !line.trim().is_empty() => Ok((line.trim().to_owned(), reader)),
        Ok(_) => bail!(
            "{name} ended before it was ready; see {}: {}",
            log.display(),
            crate::child::last_words(log)
        ),
        Err(_) => bail!(
            "{name} is not ready after {} s; see {}",
            READY_TIMEOUT.as_secs(),
            log.display()
        ),
    }
}

pub(crate) fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let mut file = fs::OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot create {}", path.display()))?;
    Ok(file.write_all(text.as_bytes())?)
}

const READY_TIMEOUT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leaves_a_service_elsewhere_leaves_it_its_clock() {
        let folder = tempfile::tempdir().unwrap();
        let root = super::super::tls::issue(&folder.path().join("tls"), &["kps"])
            .unwrap()
            .root;
        let attachment = Attachment {
            url: "http://127.0.0.1:1".to_owned(),
            https: None,
            admin_url: "https://127.0.0.1:2".to_owned(),
            token: "token".to_owned(),
            root: Some(root),
            clock: folder.path().join("clocks/kps"),
            replica_clocks: Vec::new(),
        };
        fs::create_dir_all(folder.path().join("clocks")).unwrap();
        fs::write(&attachment.clock, b"").unwrap();
        drop(Service::attach("kps", &attachment).unwrap());
        assert!(attachment.clock.exists());
    }
}
