//! The answers as `curl` and `openssl` read them: programs that share no code with this service.

use std::{
    path::Path,
    process::{Command, Output},
};

use guarded_host_sim::machine::dials::Dials;
use hgs_protocol::wire::hgsa::Reply;

use crate::fixture::{Host, Service, V1, V2, missing_tools};

const SPELLINGS: [&str; 7] = [
    "/Attestation/v2.0/signingCertificates",
    "/Attestation/v2.0/signingCertificates/",
    "/Attestation//v2.0/signingCertificates",
    "/attestation/V2.0/SIGNINGCERTIFICATES",
    "/Attestation/AttestationService.svc/v2.0/signingCertificates/",
    "/Attestation//attestationservice.svc/v2.0/signingCertificates/",
    "/attestation/ATTESTATIONSERVICE.svc/signingcertificates",
];

fn run(program: &str, arguments: &[&str]) -> Output {
    let done = Command::new(program).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{program} {arguments:?}: {error}");
    done
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_reads_every_spelling_and_verifies_a_health_certificate_against_it() {
    let there = |program: &str| Command::new(program).arg("--help").output().is_ok();
    if missing_tools("openssl and curl") || !there("curl") || !there("openssl") {
        eprintln!("SKIPPED openssl and curl: a program is missing");
        return;
    }
    let service = Service::start().await;
    let mut host = Host::boot(&Dials::default());
    service.register(&host, "host01").await;
    let dir = tempfile::tempdir().unwrap();
    let mut printed = Vec::new();
    for spelling in SPELLINGS {
        let url = format!("{}{spelling}", service.url);
        let fetched = tokio::task::spawn_blocking(move || run("curl", &["-sS", "--fail", &url]));
        let body = fetched.await.unwrap().stdout;
        let der: Vec<u8> = serde_json::from_slice(&body).unwrap();
        let pkcs7 = dir.path().join("signers.p7b");
        std::fs::write(&pkcs7, der).unwrap();
        let certificates = run(
            "openssl",
            &["pkcs7", "-inform", "DER", "-print_certs", "-in", text(&pkcs7)],
        )
        .stdout;
        let pem = String::from_utf8(certificates).unwrap();
        assert!(pem.contains("BEGIN CERTIFICATE"), "{spelling}: {pem}");
        printed.push(pem);
    }
    assert!(printed.windows(2).all(|pair| pair[0] == pair[1]));
    let signers = dir.path().join("signers.pem");
    std::fs::write(&signers, &printed[0]).unwrap();
    for version in [V1, V2] {
        let Reply::HealthCertificate { content } = host.attest(&service, version).await else {
            panic!("the host does not attest over {version}")
        };
        for (kind, der) in content {
            let (raw, pem) = (dir.path().join("health.cer"), dir.path().join("health.pem"));
            std::fs::write(&raw, der).unwrap();
            run(
                "openssl",
                &["x509", "-inform", "DER", "-in", text(&raw), "-out", text(&pem)],
            );
            let verified = run(
                "openssl",
                &["verify", "-partial_chain", "-CAfile", text(&signers), text(&pem)],
            );
            assert!(
                String::from_utf8_lossy(&verified.stdout).contains("OK"),
                "{version} {kind:?}"
            );
        }
    }
}
