//! A real key protection service on what the owner's tools wrote.

use std::fs;

use base64::{Engine, engine::general_purpose::STANDARD};
use guarded_host_sim::fabric::Fabric;
use hgs_protocol::{
    crypto::{PublicKey, RsaPrivateKey},
    env::{Clock, OsRandom},
    health::{AttestationMode, AttestationSigner, CertificateKind, DEFAULT_LIFETIME, HealthCertificateRequest},
    protector::{KeyProtector, open_release},
    wire::kps::RollTransportKeyRequest,
};
use serde_json::json;

use crate::desk::Desk;

#[tokio::test(flavor = "multi_thread")]
async fn a_service_opens_what_its_owner_made_and_not_what_was_revoked() {
    let desk = Desk::new();
    let place = tempfile::tempdir().unwrap();
    let fabric = Fabric::new(place.path(), false).unwrap();
    let hgs = fabric.start_hgs("hgs").unwrap();
    let clock = Clock::system();
    let signer = AttestationSigner::generate(clock.now(), &mut OsRandom).unwrap();
    let body = json!({ "certificate": STANDARD.encode(signer.certificate_der()) });
    hgs.kps.admin_post("attestation-signers", &body).await.unwrap();
    let host = RsaPrivateKey::generate_2048().unwrap();
    let health = HealthCertificateRequest {
        key: PublicKey::Rsa(host.public().clone()),
        kind: CertificateKind::Encryption,
        mode: AttestationMode::HostKey,
        policies: vec![],
        issued_at: clock.now(),
        lifetime: DEFAULT_LIFETIME,
    };
    let health = signer.issue(&health, &mut OsRandom).unwrap();
    let roll = async |file: &str| {
        let ask = RollTransportKeyRequest::new(fs::read(desk.path(file)).unwrap(), health.clone());
        hgs.roll(&ask).await.unwrap()
    };

    fs::write(desk.path("hgs.xml"), hgs.metadata().await.unwrap()).unwrap();
    let trust = "--allow-untrusted-root";
    desk.good(&format!("guardian import hgs.xml --name HGS {trust}"));
    for (owner, suite) in [("Rsa", ""), ("Ec", " --p256")] {
        desk.good(&format!("guardian create {owner}{suite}"));
        let file = format!("{owner}.xml");
        desk.good(&format!(
            "protector create {trust} --owner {owner} --guardian HGS --out {file}"
        ));
        let response = roll(&file).await.unwrap();
        let keys = open_release(&response, &host).unwrap();
        // The owner finds the same keys in its file and in what the service made of it.
        fs::write(desk.path("egress.xml"), &response.egress_protector).unwrap();
        assert_eq!(
            desk.json("protector inspect egress.xml --json")["guardianSignature"]["wrapping"],
            2
        );
        desk.good(&format!("protector inspect egress.xml --open-with {owner}"));
        assert!(keys.ingress.expose_transport_key().expose() != keys.egress.expose_transport_key().expose());

        fs::copy(desk.path(&file), desk.path("old.xml")).unwrap();
        desk.good(&format!("protector revoke {file} --guardian HGS"));
        let refusal = roll(&file).await.unwrap_err();
        assert_eq!(refusal.code, "KeyProtectionAccessDeniedException");
        // What the tool says of older copies is so, and a grant gives the same key back.
        let old = open_release(&roll("old.xml").await.unwrap(), &host).unwrap();
        desk.good(&format!("protector grant {file} {trust} --guardian HGS"));
        let again = open_release(&roll(&file).await.unwrap(), &host).unwrap();
        let bytes = |key: &hgs_protocol::secret::TransportKey| *key.expose_transport_key().expose();
        assert_eq!(bytes(&old.ingress), bytes(&keys.ingress));
        assert_eq!(bytes(&again.ingress), bytes(&keys.ingress));
        // A protector that the service has signed is the owner's to change, too.
        desk.good("protector revoke egress.xml --guardian HGS");
        assert!(roll("egress.xml").await.is_err());
        KeyProtector::parse(&fs::read(desk.path("egress.xml")).unwrap())
            .unwrap()
            .verify()
            .unwrap();
        fs::remove_file(desk.path("egress.xml")).unwrap();
        fs::remove_file(desk.path("old.xml")).unwrap();
    }
}
