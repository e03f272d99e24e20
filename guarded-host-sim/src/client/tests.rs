//! Where requests go, and what becomes of them when an address does not answer.

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
        .get("http://hgs.bastion.local/Attestation/Getinfo", 4096)
        .await
        .unwrap();
    let head = String::from_utf8(answer.body).unwrap();
    assert!(head.starts_with("GET /Attestation/Getinfo "));
    assert!(
        head.to_ascii_lowercase().contains("host: hgs.bastion.local\r\n"),
        "{head}"
    );
    let answer = client.get("http://HGS.bastion.local:8080/x", 4096).await.unwrap();
    let head = String::from_utf8(answer.body).unwrap().to_ascii_lowercase();
    assert!(head.contains("host: hgs.bastion.local:8080\r\n"), "{head}");
    assert_eq!(head.matches("host:").count(), 1);
}

/// Answers one request after the other with the next of `answers`, then not at all; counts them.
fn scripted(answers: Vec<Vec<u8>>) -> (SocketAddr, Arc<Mutex<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(Mutex::new(0));
    let seen = count.clone();
    thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            *seen.lock().unwrap() += 1;
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\nquestion") && stream.read(&mut byte).unwrap_or(0) == 1 {
                request.extend(byte);
            }
            // A client that has read enough hangs up.
            let _ = stream.write_all(&answer);
        }
    });
    (address, count)
}

fn told(status: &str, more: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\n{more}content-length: 2\r\nconnection: close\r\n\r\nok").into_bytes()
}

fn of(addresses: Vec<SocketAddr>) -> LabClient {
    let table = BTreeMap::from([("kps.bastion.local:80".to_owned(), addresses)]);
    LabClient::new(NameTable(table), None, Clock::system()).unwrap()
}

async fn ask(client: &LabClient) -> Result<Answer, ClientError> {
    let url = "http://kps.bastion.local/KeyProtection";
    client
        .post_with_retries(url, "text/xml", b"question".to_vec(), 100)
        .await
}

#[tokio::test]
async fn the_next_address_is_asked_when_one_is_dead_or_in_trouble() {
    let dead = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let (good, count) = scripted(vec![told("200 OK", ""); 2]);
    assert_eq!(ask(&of(vec![dead, good])).await.unwrap().status, 200);
    let (troubled, asked) = scripted(vec![told("500 Internal Server Error", "")]);
    assert_eq!(ask(&of(vec![troubled, good])).await.unwrap().status, 200);
    assert_eq!((*asked.lock().unwrap(), *count.lock().unwrap()), (1, 2));
    assert!(matches!(
        ask(&of(vec![dead])).await,
        Err(ClientError::Unreachable { .. })
    ));
}

/// Each address once: an attestation has retries of its own, with a new session each.
#[tokio::test]
async fn addresses_are_asked_in_turn_and_the_one_that_answered_first_next_time() {
    let in_turn = async |client: &LabClient| {
        let url = "http://kps.bastion.local/KeyProtection";
        client.post_in_turn(url, "text/xml", b"question".to_vec(), 100).await
    };
    let dead = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let (busy, asked) = scripted(vec![told("503 Service Unavailable", ""); 3]);
    let (good, count) = scripted(vec![told("200 OK", ""), told("404 Not Found", "")]);
    let client = of(vec![dead, busy, good, good]);
    assert_eq!(in_turn(&client).await.unwrap().status, 200);
    assert_eq!(
        in_turn(&client).await.unwrap().status,
        404,
        "a verdict is taken where it is given"
    );
    let asked_now = || (*asked.lock().unwrap(), *count.lock().unwrap());
    assert_eq!(
        asked_now(),
        (1, 2),
        "the second question went to the good address at once"
    );
    // The good one has ended. An answer counts for more than silence, and nobody is asked twice.
    assert_eq!(in_turn(&client).await.unwrap().status, 503);
    assert_eq!(asked_now(), (2, 2));
    let silent = in_turn(&of(vec![dead])).await;
    assert!(matches!(silent, Err(ClientError::Unreachable { .. })));
}

#[tokio::test]
async fn a_busy_service_is_asked_again_after_its_time_and_not_for_ever() {
    let busy = |seconds: u32| told("503 Service Unavailable", &format!("retry-after: {seconds}\r\n"));
    let (address, count) = scripted(vec![busy(1), told("200 OK", "")]);
    let begin = std::time::Instant::now();
    let answer = ask(&of(vec![address, address])).await.unwrap();
    assert_eq!((answer.status, answer.attempts), (200, 2));
    assert!(begin.elapsed() >= Duration::from_secs(1));
    assert_eq!(*count.lock().unwrap(), 2);
    // One address, so one retry.
    let (address, count) = scripted(vec![busy(0); 3]);
    assert_eq!(ask(&of(vec![address])).await.unwrap().status, 503);
    assert_eq!(*count.lock().unwrap(), 2);
    let (address, count) = scripted(vec![busy(3600); 2]);
    assert_eq!(ask(&of(vec![address])).await.unwrap().status, 503);
    assert_eq!(*count.lock().unwrap(), 1);
    // A verdict is no trouble.
    let (address, count) = scripted(vec![told("403 Forbidden", ""); 2]);
    assert_eq!(ask(&of(vec![address])).await.unwrap().status, 403);
    assert_eq!(*count.lock().unwrap(), 1);
}

#[tokio::test]
async fn an_answer_without_end_is_not_read_to_its_end() {
    let endless = [b"HTTP/1.1 200 OK\r\n\r\n".as_slice(), &[b'x'; 1 << 20]].concat();
    let (address, _) = scripted(vec![endless; 2]);
    let client = of(vec![address]);
    let url = "http://kps.bastion.local/KeyProtection";
    let error = client
        .post(url, "text/xml", b"question".to_vec(), 1000)
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::TooLong { limit: 1000, .. }), "{error}");
}

#[tokio::test]
async fn a_name_outside_the_table_is_never_looked_up() {
    let client = LabClient::new(NameTable::default(), None, Clock::system()).unwrap();
    let error = client.get("http://localhost:1/", 4096).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the name localhost:1 is not in the fabric's name table"
    );
    assert!(matches!(
        client.get("file:///etc/passwd", 4096).await,
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
    assert_eq!(
        client.get(url, 4096).await.unwrap().status,
        404,
        "the server has no page"
    );
    let stranger = LabClient::new(names, None, clock.clone()).unwrap();
    let error = stranger.get(url, 4096).await.unwrap_err().to_string();
    assert!(error.contains("UnknownIssuer"), "{error}");
    clock.advance(Duration::from_secs(20 * 366 * 86_400));
    let error = client.get(url, 4096).await.unwrap_err().to_string();
    assert!(error.contains("xpired"), "{error}");
}
