//! The door through which one host reaches one HGS, or another host: it passes every message on, keeps a copy, and is where the
//! network's troubles are. A host knows it as `http://NAME.bastion.local`, as the product has it: attestation and
//! key protection behind one name.
//!
//! With HTTPS the door has the server's certificate and key, as a debugging proxy of the administrator's has, and
//! speaks HTTPS with the services in turn.

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::Path,
    sync::{Arc, OnceLock},
};

use anyhow::Context;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{self, HeaderMap, HeaderName},
    http::request::Parts,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

use super::{
    damage,
    journal::{Answered, Journal, Message, Party},
    model::step::ServiceName,
    weather::Weather,
};
use crate::fabric::service::{Tls, http_client};

/// Where the services of an HGS are, once they run.
#[derive(Debug, Default)]
pub struct Targets(OnceLock<[String; 2]>);

impl Targets {
    /// The services' base URLs: attestation, key protection.
    pub fn set(&self, attestation: String, key_protection: String) {
        let _ = self.0.set([attestation, key_protection]);
    }

    fn of(&self, service: ServiceName) -> Option<&str> {
        let [attestation, key_protection] = self.0.get()?;
        Some(match service {
            ServiceName::Attestation => attestation,
            ServiceName::KeyProtection => key_protection,
        })
    }
}

/// An open door; it closes with this value.
#[derive(Debug)]
pub struct Door {
    /// Where it is.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

/// Where a door leads.
#[derive(Clone, Debug)]
pub enum To {
    /// To an HGS.
    Hgs {
        /// Its name.
        name: String,
        /// Its services.
        targets: Arc<Targets>,
    },
    /// To another host's agent.
    Host {
        /// Its name.
        name: String,
        /// Base URL of its agent.
        url: String,
    },
}

impl To {
    /// Who is asked by a message of this path.
    fn party(&self, path: &str) -> Option<Party> {
        Some(match self {
            To::Hgs { name, .. } => Party::Service {
                hgs: name.clone(),
                service: service_of(path)?,
            },
            To::Host { name, .. } => Party::Host(name.clone()),
        })
    }

    fn url(&self, path: &str) -> Option<&str> {
        match self {
            To::Hgs { targets, .. } => targets.of(service_of(path)?),
            To::Host { url, .. } => Some(url),
        }
    }

    /// Between whom the network has its troubles: hosts reach each other always.
    fn place<'a>(&'a self, from: &'a str, path: &str) -> Option<(&'a str, &'a str, ServiceName)> {
        match self {
            To::Hgs { name, .. } => Some((from, name, service_of(path)?)),
            To::Host { .. } => None,
        }
    }
}

/// Whose door it is and where it leads.
#[derive(Clone)]
pub struct Between {
    /// The host that goes through it.
    pub from: String,
    /// Where it leads.
    pub to: To,
    /// Where messages are kept.
    pub journal: Journal,
    /// The network.
    pub weather: Weather,
}

impl Door {
    /// Opens a door; with `tls` it speaks HTTPS.
    pub async fn open(between: Between, tls: Option<&Tls>) -> anyhow::Result<Door> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("a door to the HGS")?;
        let address = listener.local_addr()?;
        let acceptor = tls.map(acceptor).transpose()?;
        let keeper = Arc::new(Keeper {
            http: http_client(LONGEST_ANSWER, tls.map(|tls| tls.root.as_path()))?,
            between,
        });
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (keeper, acceptor) = (keeper.clone(), acceptor.clone());
                tokio::spawn(async move {
                    match acceptor {
                        None => keeper.serve(stream).await,
                        Some(acceptor) => {
                            // A client that does not trust the certificate ends here.
                            if let Ok(stream) = acceptor.accept(stream).await {
                                keeper.serve(stream).await;
                            }
                        }
                    }
                });
            }
        });
        Ok(Door { address, task })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Keeper {
    between: Between,
    http: reqwest::Client,
}

/// The connection ends without an answer, as when nobody listens.
#[derive(Debug, thiserror::Error)]
#[error("the connection is cut")]
struct Hung;

impl Keeper {
    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(self: Arc<Keeper>, stream: S) {
        let service = service_fn(|request| self.clone().pass(request));
        let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        // It ends when the client hangs up, or when a message was not to arrive.
        let _ = connection.await;
    }

    async fn pass(self: Arc<Keeper>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Hung> {
        let Between { from, to, journal, .. } = &self.between;
        let path = request
            .uri()
            .path_and_query()
            .map_or("/", |path| path.as_str())
            .to_owned();
        let Some(party) = to.party(&path) else {
            return Ok(plain(StatusCode::NOT_FOUND));
        };
        let open = journal.open();
        let (head, body) = request.into_parts();
        let body = Limited::new(body, LARGEST_BODY)
            .collect()
            .await
            .map_err(|_| Hung)?
            .to_bytes();
        let mut message = Message {
            step: None,
            at: Default::default(),
            took: Default::default(),
            from: from.clone(),
            to: party,
            method: head.method.to_string(),
            path: path.clone(),
            request: body.to_vec(),
            answer: None,
            remark: None,
        };
        let answer = self.deliver(head, &path, body, &mut message).await;
        if let Some((status, _, body)) = &answer {
            message.answer = Some(Answered {
                status: status.as_u16(),
                body: body.to_vec(),
            });
        }
        journal.close(&open, message);
        let (status, headers, body) = answer.ok_or(Hung)?;
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }

    /// Takes the message through the network's weather to its target and the answer back; nothing when there is none.
    async fn deliver(
        &self,
        head: Parts,
        path: &str,
        mut body: Bytes,
        message: &mut Message,
    ) -> Option<(StatusCode, HeaderMap, Bytes)> {
        let Between {
            from,
            to,
            journal,
            weather,
            ..
        } = &self.between;
        let place = to.place(from, path);
        if let Some((host, hgs, service)) = place {
            if weather.is_cut(host, hgs, service) {
                message.remark = Some("the network is cut: it did not arrive".to_owned());
                return None;
            }
            tokio::time::sleep(weather.delay(host, hgs, service)).await;
            let seen = || journal.requests(host, hgs, service);
            let done = weather.damage((host, hgs, service), |damage| {
                changed(&mut body, |body| damage::of_request(damage, body, seen))
            });
            if !done.is_empty() {
                message.remark = Some(format!("changed on its way: {done:?}"));
                message.request = body.to_vec();
            }
        }
        let request = self.http.request(head.method, format!("{}{path}", to.url(path)?));
        let answer = request.headers(end_to_end(&head.headers)).body(body).send().await;
        let answer = match answer {
            Ok(answer) => {
                let (status, headers) = (answer.status(), end_to_end(answer.headers()));
                answer.bytes().await.map(|body| (status, headers, body))
            }
            Err(error) => Err(error),
        };
        let (status, headers, mut body) = match answer {
            Ok(answer) => answer,
            Err(error) => {
                message.remark = Some(format!("no answer came: {:#}", anyhow::Error::from(error)));
                return None;
            }
        };
        if let Some(place) = place {
            let done = weather.damage(place, |damage| {
                changed(&mut body, |body| damage::of_answer(damage, body))
            });
            if !done.is_empty() {
                message.remark = Some(format!("the answer was changed on its way: {done:?}"));
            }
        }
        Some((status, headers, body))
    }
}

/// Puts what `change` makes of the body in its place; false when it makes nothing.
fn changed(body: &mut Bytes, change: impl FnOnce(&[u8]) -> Option<Vec<u8>>) -> bool {
    match change(body) {
        Some(new) => {
            *body = new.into();
            true
        }
        None => false,
    }
}

fn service_of(path: &str) -> Option<ServiceName> {
    match path
        .trim_start_matches('/')
        .split('/')
        .next()?
        .to_ascii_lowercase()
        .as_str()
    {
        "attestation" => Some(ServiceName::Attestation),
        "keyprotection" => Some(ServiceName::KeyProtection),
        _ => None,
    }
}

/// Headers without those that are between two neighbours (RFC 9110, 7.6.1) or that each side writes itself.
fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let mut kept = headers.clone();
    let between: [HeaderName; 6] = [
        header::CONNECTION,
        header::HOST,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::DATE,
    ];
    for name in between {
        kept.remove(name);
    }
    kept
}

fn plain(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

fn acceptor(tls: &Tls) -> anyhow::Result<TlsAcceptor> {
    let read = |path: &Path| format!("cannot read {}", path.display());
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&tls.certificate)
        .with_context(|| read(&tls.certificate))?
        .collect();
    let key = PrivateKeyDer::from_pem_file(&tls.key).with_context(|| read(&tls.key))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain?, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

impl From<Infallible> for Hung {
    fn from(never: Infallible) -> Hung {
        match never {}
    }
}

/// Seconds; longer than any client waits.
const LONGEST_ANSWER: u64 = 90;
/// Above the services' own limits, which are to be met.
const LARGEST_BODY: usize = 16 << 20;
