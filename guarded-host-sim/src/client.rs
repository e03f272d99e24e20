//! The HTTP client of every simulated machine: names resolve by the fabric's name table alone, no
//! proxy, no redirects, and certificates are judged at the lab's time.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    fmt, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hgs_protocol::env::Clock;
use reqwest::{
    Client, Url,
    dns::{Addrs, Name, Resolve, Resolving},
    header::{HOST, RETRY_AFTER},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, UnixTime, pem::PemObject},
    time_provider::TimeProvider,
};
use serde::{Deserialize, Serialize};

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Not a URL of http or https with a host.
    #[error("{0} is not an http or https URL")]
    Url(String),
    /// No URL was given.
    #[error("no {0} is configured")]
    NotConfigured(&'static str),
    /// The fabric does not know the name.
    #[error("the name {0} is not in the fabric's name table")]
    UnknownName(String),
    /// The name table or the root certificate cannot be read.
    #[error("cannot read {}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// The request failed on its way.
    #[error("{url} does not answer: {reason}")]
    Unreachable {
        /// What was asked.
        url: String,
        /// Why, down to the cause.
        reason: String,
    },
    /// The answer does not end within the limit.
    #[error("{url} answers with more than {limit} bytes; the rest was not read")]
    TooLong {
        /// What was asked.
        url: String,
        /// What the caller takes, in bytes.
        limit: usize,
    },
}

impl ClientError {
    /// Whether nothing was heard of the service, as in an outage.
    pub fn is_no_contact(&self) -> bool {
        matches!(self, ClientError::UnknownName(_) | ClientError::Unreachable { .. })
    }
}

/// An answer, whatever its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
    /// What Retry-After says, when it says seconds.
    pub retry_after: Option<Duration>,
    /// How often was asked until this was the answer.
    pub attempts: usize,
}

/// `name:port` to the addresses where the fabric really serves it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NameTable(pub BTreeMap<String, Vec<SocketAddr>>);

impl NameTable {
    /// Reads a JSON file: `{"hgs.bastion.local:80": ["127.0.0.1:18080"]}`.
    pub fn read(path: &Path) -> Result<NameTable, ClientError> {
        let failed = |reason: String| ClientError::File {
            path: path.to_path_buf(),
            reason,
        };
        let text = fs::read(path).map_err(|e| failed(e.to_string()))?;
        serde_json::from_slice(&text).map_err(|e| failed(e.to_string()))
    }

    /// The addresses of `name` (any case) at `port`.
    fn addresses(&self, name: &str, port: u16) -> Option<&[SocketAddr]> {
        let key = format!("{}:{port}", name.to_ascii_lowercase());
        self.0.get(&key).map(Vec::as_slice).filter(|a| !a.is_empty())
    }
}

/// The client of one machine.
#[derive(Debug)]
pub struct LabClient {
    names: NameTable,
    /// Read again for each request: names come and go while the machine runs.
    table: Option<PathBuf>,
    tls: ClientConfig,
    clients: Mutex<HashMap<String, Client>>,
    /// By `name:port`, the address that answered last.
    answered: Mutex<HashMap<String, SocketAddr>>,
}

impl LabClient {
    /// A client that trusts `root` (a PEM file of one or more certificates) for https, and nothing
    /// else.
    pub fn new(names: NameTable, root: Option<&Path>, clock: Clock) -> Result<LabClient, ClientError> {
        let mut roots = RootCertStore::empty();
        if let Some(path) = root {
            let failed = |reason: String| ClientError::File {
                path: path.to_path_buf(),
                reason,
            };
            for certificate in CertificateDer::pem_file_iter(path).map_err(|e| failed(e.to_string()))? {
                let certificate = certificate.map_err(|e| failed(e.to_string()))?;
                roots.add(certificate).map_err(|e| failed(e.to_string()))?;
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_details(provider, Arc::new(LabTime(clock)))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(LabClient {
            names,
            table: None,
            tls,
            clients: Mutex::default(),
            answered: Mutex::default(),
        })
    }

    /// As [`LabClient::new`], with the name table in the file `table`, in which names come and go.
    pub fn following(table: &Path, root: Option<&Path>, clock: Clock) -> Result<LabClient, ClientError> {
        Ok(LabClient {
            table: Some(table.to_path_buf()),
            ..LabClient::new(NameTable::read(table)?, root, clock)?
        })
    }

    /// The names of now; a table that cannot be read at the moment is as it was at first.
    fn names(&self) -> Cow<'_, NameTable> {
        let table = self.table.as_deref().and_then(|path| NameTable::read(path).ok());
        table.map_or(Cow::Borrowed(&self.names), Cow::Owned)
    }

    /// GET. Of the answer's body at most `limit` bytes are taken; a longer one is an error.
    pub async fn get(&self, url: &str, limit: usize) -> Result<Answer, ClientError> {
        self.send(url, None, limit, |client, url| client.get(url)).await
    }

    /// POST of a body with its content type; `limit` as for [`LabClient::get`].
    pub async fn post(
        &self,
        url: &str,
        content_type: &str,
        body: Vec<u8>,
        limit: usize,
    ) -> Result<Answer, ClientError> {
        self.post_at(url, None, content_type, body, limit).await
    }

    /// POST with the retries of MS-KPS 3.2.5.1: as many as the name has distinct addresses, each at
    /// the next one, after no answer and after a status of 500 and above. A second visit to an
    /// address waits for its Retry-After, if that is short; a longer one is left to the caller.
    pub async fn post_with_retries(
        &self,
        url: &str,
        content_type: &str,
        body: Vec<u8>,
        limit: usize,
    ) -> Result<Answer, ClientError> {
        let addresses = self.addresses(url)?;
        let places = addresses.len().max(1);
        let mut attempt = 0;
        loop {
            let at = addresses.get(attempt % places).copied();
            let mut outcome = self.post_at(url, at, content_type, body.clone(), limit).await;
            if let Ok(answer) = &mut outcome {
                answer.attempts = attempt + 1;
            }
            let wait = match &outcome {
                Ok(answer) if answer.status < 500 => return outcome,
                Ok(answer) => answer.retry_after.unwrap_or_default(),
                Err(ClientError::Unreachable { .. } | ClientError::TooLong { .. }) => Duration::ZERO,
                Err(_) => return outcome,
            };
            attempt += 1;
            let again = attempt >= places;
            if attempt > places || (again && wait > LONGEST_WAIT) {
                return outcome;
            }
            if again {
                tokio::time::sleep(wait).await;
            }
        }
    }

    /// POST at the distinct addresses of the name in turn, each once, until one answers with a status below 500. The
    /// one that answered last time is the first. What counts otherwise is the first answer, or the last failure.
    pub async fn post_in_turn(
        &self,
        url: &str,
        content_type: &str,
        body: Vec<u8>,
        limit: usize,
    ) -> Result<Answer, ClientError> {
        let mut addresses = self.addresses(url)?;
        let authority = Url::parse(url).map_or_else(|_| String::new(), |url| url.origin().ascii_serialization());
        let known = |map: &Mutex<HashMap<String, SocketAddr>>| {
            let map = map.lock().unwrap_or_else(PoisonError::into_inner);
            map.get(&authority).copied()
        };
        if let Some(first) = known(&self.answered) {
            addresses.sort_by_key(|address| *address != first);
        }
        let mut unable = None;
        let mut failed = None;
        let places: Vec<Option<SocketAddr>> = match addresses.is_empty() {
            true => vec![None],
            false => addresses.into_iter().map(Some).collect(),
        };
        for at in places {
            match self.post_at(url, at, content_type, body.clone(), limit).await {
                Ok(answer) if answer.status < 500 => {
                    if let Some(at) = at {
                        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
                        answered.insert(authority, at);
                    }
                    return Ok(answer);
                }
                Ok(answer) => unable = unable.or(Some(answer)),
                Err(error @ (ClientError::Unreachable { .. } | ClientError::TooLong { .. })) => failed = Some(error),
                Err(error) => return Err(error),
            }
        }
        match (unable, failed) {
            (Some(answer), _) => Ok(answer),
            (None, Some(error)) => Err(error),
            (None, None) => Err(ClientError::Url(url.to_owned())),
        }
    }

    /// The distinct addresses of the URL's name; none when its host is an address itself.
    fn addresses(&self, text: &str) -> Result<Vec<SocketAddr>, ClientError> {
        let url = Url::parse(text).map_err(|_| ClientError::Url(text.to_owned()))?;
        let (Some(name), Some(port)) = (url.domain(), url.port_or_known_default()) else {
            return Ok(Vec::new());
        };
        let names = self.names();
        let known = names.addresses(name, port);
        let known = known.ok_or_else(|| ClientError::UnknownName(format!("{name}:{port}")))?;
        let mut distinct = Vec::new();
        for address in known {
            if !distinct.contains(address) {
                distinct.push(*address);
            }
        }
        Ok(distinct)
    }

    async fn post_at(
        &self,
        url: &str,
        at: Option<SocketAddr>,
        content_type: &str,
        body: Vec<u8>,
        limit: usize,
    ) -> Result<Answer, ClientError> {
        self.send(url, at, limit, |client, url| {
            client.post(url).header("content-type", content_type).body(body)
        })
        .await
    }

    /// Sends to the one address `at` of the name, or to whichever of its addresses answers.
    async fn send(
        &self,
        text: &str,
        at: Option<SocketAddr>,
        limit: usize,
        request: impl FnOnce(&Client, Url) -> reqwest::RequestBuilder,
    ) -> Result<Answer, ClientError> {
        let wrong = || ClientError::Url(text.to_owned());
        let unreachable = |error: reqwest::Error| ClientError::Unreachable {
            url: text.to_owned(),
            reason: causes(&error),
        };
        let mut url = Url::parse(text).map_err(|_| wrong())?;
        let port = url.port_or_known_default().ok_or_else(wrong)?;
        let host = url.host_str().ok_or_else(wrong)?.to_owned();
        let is_name = url.domain().is_some();
        let names = self.names();
        let addresses = match is_name {
            true => Some(
                names
                    .addresses(&host, port)
                    .ok_or_else(|| ClientError::UnknownName(format!("{host}:{port}")))?,
            ),
            false => None,
        };
        let client = match &at {
            Some(address) => self.client(
                &format!("{host}:{port} at {address}"),
                Some(std::slice::from_ref(address)),
            ),
            None => self.client(&format!("{host}:{port} at {addresses:?}"), addresses),
        };
        let client = client.map_err(unreachable)?;
        // A port in the URL would win over the resolver's, so it moves to the Host header.
        let explicit = url.port();
        if is_name {
            url.set_port(None).map_err(|()| wrong())?;
        }
        let mut request = request(&client, url);
        if let (true, Some(port)) = (is_name, explicit) {
            request = request.header(HOST, format!("{host}:{port}"));
        }
        let mut answer = request.send().await.map_err(unreachable)?;
        let status = answer.status().as_u16();
        let retry_after = answer
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(unreachable)? {
            if chunk.len() > limit.saturating_sub(body.len()) {
                return Err(ClientError::TooLong {
                    url: text.to_owned(),
                    limit,
                });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer {
            status,
            body,
            retry_after,
            attempts: 1,
        })
    }

    fn client(&self, authority: &str, addresses: Option<&[SocketAddr]>) -> Result<Client, reqwest::Error> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(authority) {
            return Ok(client.clone());
        }
        let fixed = Fixed(addresses.unwrap_or_default().to_vec());
        let client = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(5))
            .timeout(Duration::from_secs(60))
            // A service that was restarted must not be met on its old connection.
            .pool_max_idle_per_host(0)
            .dns_resolver(Arc::new(fixed))
            .tls_backend_preconfigured(self.tls.clone())
            .build()?;
        clients.insert(authority.to_owned(), client.clone());
        Ok(client)
    }
}

/// The longest Retry-After that is waited for.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// The addresses that the name table gave; the system is never asked.
struct Fixed(Vec<SocketAddr>);

impl Resolve for Fixed {
    fn resolve(&self, _: Name) -> Resolving {
        let addresses: Addrs = Box::new(self.0.clone().into_iter());
        Box::pin(async move { Ok(addresses) })
    }
}

/// Certificates are judged at the lab's time.
struct LabTime(Clock);

impl fmt::Debug for LabTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LabTime")
    }
}

impl TimeProvider for LabTime {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.now().0).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

/// An error with all its causes; the outermost alone says little.
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut clock = is_about_time(error);
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        clock |= is_about_time(cause);
        next = cause.source();
    }
    if clock {
        text += ". Compare the clocks of this machine and of the service, and the dates of its TLS certificate";
    }
    text
}

/// True of a refusal to accept the peer's certificate at this machine's time.
fn is_about_time(error: &(dyn std::error::Error + 'static)) -> bool {
    use rustls::CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    // An I/O error passes for its inner error in a chain of causes.
    if let Some(wrapper) = error.downcast_ref::<std::io::Error>() {
        return wrapper.get_ref().is_some_and(|inner| is_about_time(inner));
    }
    matches!(
        error.downcast_ref(),
        Some(rustls::Error::InvalidCertificate(
            Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. }
        ))
    )
}

#[cfg(test)]
mod tests;
