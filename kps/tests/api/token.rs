//! The service's keys in a real software token.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use hgs_protocol::{
    env::OsRandom,
    protector::{KeyProtector, open_release},
    wire::kps::ServiceVersion,
};
use kps::token::TokenOptions;
use serde_json::{Value, json};

use crate::fabric::{Fabric, flip_digit};

/// A fresh token of SoftHSM, or none where it is not installed.
fn soft_token(directory: &Path) -> Option<TokenOptions> {
    let module = [
        "/usr/lib/softhsm/libsofthsm2.so",
        "/usr/lib64/softhsm/libsofthsm2.so",
        "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
        "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    ];
    let module = module.into_iter().map(PathBuf::from).find(|path| path.exists());
    let store = directory.join("token-store");
    std::fs::create_dir_all(&store).unwrap();
    let configuration = directory.join("softhsm2.conf");
    let text = format!(
        "directories.tokendir = {}\nobjectstore.backend = file\n",
        store.display()
    );
    std::fs::write(&configuration, text).unwrap();
    let made = Command::new("softhsm2-util")
        .env("SOFTHSM2_CONF", &configuration)
        .args([
            "--init-token",
            "--free",
            "--label",
            "kps",
            "--so-pin",
            "12345678",
            "--pin",
            "987654",
        ])
        .output();
    let (Some(module), Ok(made)) = (module, made) else {
        eprintln!("skipped: softhsm2 is not installed");
        return None;
    };
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::write(directory.join("pin"), "987654\n").unwrap();
    Some(TokenOptions {
        pkcs11_module: Some(module),
        pkcs11_pin_file: Some(directory.join("pin")),
        pkcs11_token_label: Some("kps".to_owned()),
    })
}

/// The service as a process of its own, since a token's configuration is taken from the environment.
struct Service {
    child: std::process::Child,
    fabric: Fabric,
}

impl Service {
    async fn start(mut fabric: Fabric, directory: &Path, token: &TokenOptions) -> Service {
        use std::io::BufRead as _;
        let mut child = Command::new(env!("CARGO_BIN_EXE_kps"))
            .env("SOFTHSM2_CONF", directory.join("softhsm2.conf"))
            .arg("serve")
            .arg("--data-dir")
            .arg(directory.join("data"))
            .arg("--key-encryption-key-file")
            .arg(fabric.directory.path().join("kek"))
            .arg("--admin-tokens")
            .arg(fabric.directory.path().join("tokens"))
            .arg("--pkcs11-module")
            .arg(token.pkcs11_module.as_ref().unwrap())
            .arg("--pkcs11-pin-file")
            .arg(token.pkcs11_pin_file.as_ref().unwrap())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let url = |name: &str| {
            let (_, rest) = line
                .split_once(&format!("{name}="))
                .unwrap_or_else(|| panic!("not ready: {line}"));
            rest.split_whitespace().next().unwrap().to_owned()
        };
        (fabric.url, fabric.admin) = (url("service"), url("admin"));
        let status = fabric.trust(fabric.signer.certificate_der()).await;
        assert!(matches!(status, 200 | 201));
        fabric.hgs = fabric.guardian().await;
        Service { child, fabric }
    }

    async fn stop(mut self) -> Fabric {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.fabric
    }
}

#[actix_web::test]
async fn keys_in_a_token_release_rotate_and_are_in_no_file() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let Some(token) = soft_token(directory) else { return };
    let service = Service::start(Fabric::start(0).await, directory, &token).await;
    let fabric = &service.fabric;
    let certificates = fabric.get_admin("certificates").await;
    assert!(
        certificates
            .as_array()
            .unwrap()
            .iter()
            .all(|c| c["tokenKeyId"].is_string()),
        "{certificates}"
    );
    let (protector, key) = fabric.protector();
    let protector = protector.to_xml();
    let answer = fabric
        .roll(ServiceVersion::V2, &protector, &fabric.healthy())
        .await
        .unwrap();
    let keys = open_release(&answer, &fabric.host).unwrap();
    assert_eq!(
        keys.ingress.expose_transport_key().expose(),
        key.expose_transport_key().expose()
    );
    // A ciphertext that was changed is refused as without a token.
    let spoiled = crate::fabric::rewrap(&KeyProtector::parse(&protector).unwrap(), &fabric.owner, |w| {
        flip_digit(w, "<CipherValue>", "<CipherValue>")
    });
    let (status, code) = fabric.refusal(&spoiled, &fabric.healthy()).await;
    assert_eq!((status, code.as_str()), (400, "InvalidProtectorException"));

    // A rotation makes its key in the token; a key from outside and P-256 are refused.
    let ask = |generate: Value| json!({ "certificateType": "Encryption", "generate": generate });
    let (status, made) = fabric
        .call("POST", "certificates", ask(json!({ "commonName": "HGS 2" })))
        .await;
    assert_eq!((status, made["tokenKeyId"].is_string()), (201, true), "{made}");
    let path = format!("certificates/encryption/{}", made["sha256"].as_str().unwrap());
    assert_eq!(fabric.call("PATCH", &path, json!({ "isPrimary": true })).await.0, 200);
    let p256 = ask(json!({ "commonName": "HGS 3", "suite": "p256" }));
    assert_eq!(fabric.call("POST", "certificates", p256).await.0, 400);
    let guardian = fabric.guardian().await;
    let (fresh, _) = KeyProtector::create(&fabric.owner, &[guardian], &mut OsRandom).unwrap();
    for xml in [fresh.to_xml(), protector.clone()] {
        assert!(fabric.roll(ServiceVersion::V1, &xml, &fabric.healthy()).await.is_ok());
    }

    // A restart finds the keys again; without the token it does not start, and says why.
    let fabric = service.stop().await;
    let service = Service::start(fabric, directory, &token).await;
    let fabric = &service.fabric;
    assert!(
        fabric
            .roll(ServiceVersion::V2, &protector, &fabric.healthy())
            .await
            .is_ok()
    );
    let fabric = service.stop().await;
    let refused = Command::new(env!("CARGO_BIN_EXE_kps"))
        .arg("serve")
        .arg("--data-dir")
        .arg(directory.join("data"))
        .arg("--key-encryption-key-file")
        .arg(fabric.directory.path().join("kek"))
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && errors.contains("--pkcs11-module"),
        "{errors}"
    );

    // No file of the service holds a private key, sealed or not.
    let pkcs8 = hex::decode("020100300d06092a864886f70d0101010500").unwrap();
    for entry in std::fs::read_dir(directory.join("data")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        for secret in [pkcs8.as_slice(), b"HGSEAL1\0"] {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret));
        }
    }
    fabric.stop().await;
}
