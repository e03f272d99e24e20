//! The HTTP client of every simulated machine: names resolve by the fabric's name table alone, no
//! proxy, no redirects, and certificates are judged at the lab's time.

use std::{
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
    header::HOST,
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
}

/// An answer, whatever its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
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
    tls: ClientConfig,
    clients: Mutex<HashMap<String, Client>>,
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
            tls,
            clients: Mutex::new(HashMap::new()),
        })
    }

    /// GET.
    pub async fn get(&self, url: &str) -> Result<Answer, ClientError> {
        self.send(url, |client, url| client.get(url)).await
    }

    /// POST of a body with its content type.
    pub async fn post(&self, url: &str, content_type: &str, body: Vec<u8>) -> Result<Answer, ClientError> {
        self.send(url, |client, url| {
            client.post(url).header("content-type", content_type).body(body)
        })
        .await
    }

    async fn send(
        &self,
        text: &str,
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
        let addresses = match is_name {
            true => Some(
                self.names
                    .addresses(&host, port)
                    .ok_or_else(|| ClientError::UnknownName(format!("{host}:{port}")))?,
            ),
            false => None,
        };
        let client = self.client(&format!("{host}:{port}"), addresses).map_err(unreachable)?;
        // A port in the URL would win over the resolver's, so it moves to the Host header.
        let explicit = url.port();
        if is_name {
            url.set_port(None).map_err(|()| wrong())?;
        }
        let mut request = request(&client, url);
        if let (true, Some(port)) = (is_name, explicit) {
            request = request.header(HOST, format!("{host}:{port}"));
        }
        let answer = request.send().await.map_err(unreachable)?;
        let status = answer.status().as_u16();
        let body = answer.bytes().await.map_err(unreachable)?.to_vec();
        Ok(Answer { status, body })
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
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpListener,
        thread,
    };

    use super::*;

    /// Answers one request with the request's own head.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
                head.extend(byte);
            }
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", head.len());
            stream.write_all(answer.as_bytes()).unwrap();
            stream.write_all(&head).unwrap();
        });
        address
    }

    #[tokio::test]
    async fn a_name_with_or_without_port_goes_where_the_table_says() {
        let table = BTreeMap::from([
            ("hgs.bastion.local:80".to_owned(), vec![echo()]),
            ("hgs.bastion.local:8080".to_owned(), vec![echo()]),
        ]);
        let client = LabClient::new(NameTable(table), None, Clock::system()).unwrap();
        let answer = client
            .get("http://hgs.bastion.local/Attestation/Getinfo")
            .await
            .unwrap();
        let head = String::from_utf8(answer.body).unwrap();
        assert!(head.starts_with("GET /Attestation/Getinfo "));
        assert!(
            head.to_ascii_lowercase().contains("host: hgs.bastion.local\r\n"),
            "{head}"
        );
        let answer = client.get("http://HGS.bastion.local:8080/x").await.unwrap();
        let head = String::from_utf8(answer.body).unwrap().to_ascii_lowercase();
        assert!(head.contains("host: hgs.bastion.local:8080\r\n"), "{head}");
        assert_eq!(head.matches("host:").count(), 1);
    }

    #[tokio::test]
    async fn a_name_outside_the_table_is_never_looked_up() {
        let client = LabClient::new(NameTable::default(), None, Clock::system()).unwrap();
        let error = client.get("http://localhost:1/").await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "the name localhost:1 is not in the fabric's name table"
        );
        assert!(matches!(
            client.get("file:///etc/passwd").await,
            Err(ClientError::Url(_))
        ));
    }

    /// A server certificate for hgs.bastion.local that ends in 2040, its root as PEM, and where it serves.
    fn https(dir: &Path) -> (PathBuf, SocketAddr) {
        use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
        let root_key = KeyPair::generate().unwrap();
        let mut root = CertificateParams::default();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let path = dir.join("root.pem");
        fs::write(&path, root.self_signed(&root_key).unwrap().pem()).unwrap();
        let issuer = Issuer::new(root, root_key);
        let key = KeyPair::generate().unwrap();
        let mut server = CertificateParams::new(vec!["hgs.bastion.local".to_owned()]).unwrap();
        server.not_after = date_time_ymd(2040, 1, 1);
        let certificate = server.signed_by(&key, &issuer).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let server = actix_web::HttpServer::new(actix_web::App::new)
            .workers(1)
            .bind_rustls_0_23("127.0.0.1:0", config)
            .unwrap();
        let address = server.addrs()[0];
        actix_web::rt::spawn(server.run());
        (path, address)
    }

    #[actix_web::test]
    async fn https_trusts_the_given_root_alone_and_judges_at_the_labs_time() {
        let dir = tempfile::tempdir().unwrap();
        let (root, address) = https(dir.path());
        let url = "https://hgs.bastion.local/Attestation/Getinfo";
        let names = NameTable(BTreeMap::from([("hgs.bastion.local:443".to_owned(), vec![address])]));
        let clock = Clock::system();
        let client = LabClient::new(names.clone(), Some(&root), clock.clone()).unwrap();
        assert_eq!(client.get(url).await.unwrap().status, 404, "the server has no page");
        let stranger = LabClient::new(names, None, clock.clone()).unwrap();
        let error = stranger.get(url).await.unwrap_err().to_string();
        assert!(error.contains("UnknownIssuer"), "{error}");
        clock.advance(Duration::from_secs(20 * 366 * 86_400));
        let error = client.get(url).await.unwrap_err().to_string();
        assert!(error.contains("xpired"), "{error}");
    }
}
