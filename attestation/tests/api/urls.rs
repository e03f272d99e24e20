//! Paths, verbs, sizes and bodies as clients and fools send them.

use hgs_protocol::wire::hgsa::{ErrorKind, Reply};
use reqwest::Method;

use crate::fixture::Service;

async fn status(service: &Service, method: Method, path: &str, body: &str) -> u16 {
    let request = service.client.request(method, format!("{}{path}", service.url));
    request.body(body.to_owned()).send().await.unwrap().status().as_u16()
}

async fn post(service: &Service, path: &str, body: &str) -> (u16, Reply) {
    let request = service
        .client
        .post(format!("{}{path}", service.url))
        .body(body.to_owned());
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    (status, Reply::parse(&response.bytes().await.unwrap()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_spelling_gives_the_signing_certificates_as_bare_numbers() {
    let service = Service::start().await;
    let mut bodies = Vec::new();
    for path in [
        "/Attestation/v2.0/signingCertificates",
        "/Attestation/v2.0/signingCertificates/",
        "/Attestation//attestationservice.svc/v2.0/signingCertificates/",
        "/attestation/ATTESTATIONSERVICE.svc/signingcertificates",
    ] {
        let response = service
            .client
            .get(format!("{}{path}", service.url))
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 200, "{path}");
        let length = response.headers()["content-length"].to_str().unwrap().to_owned();
        let body = response.bytes().await.unwrap();
        assert_eq!(length, body.len().to_string());
        bodies.push(body);
    }
    assert!(bodies.windows(2).all(|pair| pair[0] == pair[1]));
    let text = std::str::from_utf8(&bodies[0]).unwrap();
    assert!(
        text.bytes().all(|byte| byte.is_ascii_digit() || b"[,]".contains(&byte)),
        "{text}"
    );
    let der: Vec<u8> = serde_json::from_str::<Vec<u8>>(text).unwrap();
    let info: cms::content_info::ContentInfo = x509_cert::der::Decode::from_der(&der).unwrap();
    let signed: cms::signed_data::SignedData = info.content.decode_as().unwrap();
    assert_eq!(signed.certificates.unwrap().0.len(), 1);
    assert!(text.len() + 400 < 16_384, "one TLS record holds head and body");
}

/// One public client reads what is there when the head has come, once, and never again.
#[tokio::test(flavor = "multi_thread")]
async fn head_and_body_of_the_signing_certificates_leave_in_one_write() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let service = Service::start().await;
    let address = service.url.strip_prefix("http://").unwrap();
    for _ in 0..20 {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET /Attestation/v2.0/signingCertificates HTTP/1.1\r\nHost: {address}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = vec![0; 65_536];
        let first = stream.read(&mut answer).await.unwrap();
        let answer = std::str::from_utf8(&answer[..first]).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .unwrap();
        assert_eq!(length, body.len().to_string(), "{head}");
    }
}

/// The same over TLS: one record, or that client finds no body.
#[tokio::test(flavor = "multi_thread")]
async fn head_and_body_of_the_signing_certificates_leave_in_one_tls_record() {
    let (service, certificate) = Service::start_tls().await;
    let address = service
        .tls_url
        .as_deref()
        .unwrap()
        .strip_prefix("https://")
        .unwrap()
        .to_owned();
    let first_records = move || {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate.into()).unwrap();
        // Version 1.2, because in 1.3 session tickets come as records of the same type.
        let config = rustls::ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS12])
            .with_root_certificates(roots)
            .with_no_client_auth();
        let config = std::sync::Arc::new(config);
        (0..20)
            .map(|_| first_record(&address, config.clone()))
            .collect::<Vec<_>>()
    };
    for answer in tokio::task::spawn_blocking(first_records).await.unwrap() {
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .unwrap();
        assert_eq!(length, body.len().to_string(), "{head}");
    }
}

/// Asks over a new connection and decrypts the first record of the answer alone.
fn first_record(address: &str, config: std::sync::Arc<rustls::ClientConfig>) -> String {
    use std::io::{Read as _, Write as _};
    let mut socket = std::net::TcpStream::connect(address).unwrap();
    let name = "localhost".try_into().unwrap();
    let mut connection = rustls::ClientConnection::new(config, name).unwrap();
    while connection.is_handshaking() {
        connection.complete_io(&mut socket).unwrap();
    }
    let request = b"GET /Attestation/v2.0/signingCertificates HTTP/1.1\r\nHost: localhost\r\n\r\n";
    connection.writer().write_all(request).unwrap();
    while connection.wants_write() {
        connection.write_tls(&mut socket).unwrap();
    }
    let mut record = vec![0; 5];
    socket.read_exact(&mut record).unwrap();
    assert_eq!(record[0], 23, "application data");
    let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
    record.resize(5 + length, 0);
    socket.read_exact(&mut record[5..]).unwrap();
    let mut record = record.as_slice();
    while !record.is_empty() {
        connection.read_tls(&mut record).unwrap();
    }
    let state = connection.process_new_packets().unwrap();
    let mut plain = vec![0; state.plaintext_bytes_to_read()];
    connection.reader().read_exact(&mut plain).unwrap();
    String::from_utf8(plain).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn service_info_verbs_paths_and_sizes() {
    let service = Service::start().await;
    let text = service.client.get(format!("{}/Attestation/Getinfo", service.url));
    let response = text.send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/json; charset=utf-8");
    assert_eq!(
        response.text().await.unwrap(),
        r#"{"__type":"ServiceInfoReply:#Microsoft.Windows.RemoteAttestation.Core","FunctionalLevel":2,"OperationMode":1,"SupportedFunctionalLevels":[1,2]}"#
    );
    assert_eq!(status(&service, Method::GET, "/Attestation/v3.0/attest", "").await, 404);
    assert_eq!(status(&service, Method::GET, "/Attestation/v1.0/attest", "").await, 405);
    assert_eq!(status(&service, Method::POST, "/Attestation/Getinfo", "").await, 405);
    let long = "x".repeat(1024 * 1024 + 1);
    assert_eq!(
        status(&service, Method::POST, "/Attestation/v1.0/attest", &long).await,
        413
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mode_is_answered_before_the_body_is_looked_at() {
    let service = Service::start().await;
    for path in [
        "v2.0/hostkeyattest",
        "v1.0/domainattest",
        "attestationservice.svc/v2.0/HostKeyAttest/",
    ] {
        let (status, reply) = post(&service, &format!("/Attestation/{path}"), "no JSON at all").await;
        assert_eq!(status, 200);
        let expected = Reply::Error {
            kind: ErrorKind::OperationMode(Some(hgs_protocol::health::AttestationMode::Tpm)),
            retryable: true,
        };
        assert_eq!(reply, expected, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_fit_is_a_payload_error() {
    let service = Service::start().await;
    let payload = Reply::Error {
        kind: ErrorKind::Payload,
        retryable: false,
    };
    assert_eq!(
        post(&service, "/Attestation/v1.0/attest", "no JSON").await,
        (400, payload.clone())
    );
    assert_eq!(
        post(&service, "/Attestation/v1.0/attest", "{}").await,
        (200, payload.clone())
    );
    let second = r#"{"SessionId":"AAECAwQFBgcICQoLDA0ODw==","RequestedContent":[1],"ProvidedContent":[]}"#;
    assert_eq!(
        post(&service, "/Attestation/v1.0/attest", second).await,
        (200, payload.clone())
    );
    assert_eq!(post(&service, "/Attestation/v2.0/attest", second).await, (200, payload));
}
