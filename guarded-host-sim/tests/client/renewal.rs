//! Certificates over time, by the lab's clock: whoever moves it hears of it when all that became due is done.

use hgs_protocol::status::AttestationStatus;

use crate::{HOUR, get, look, off, serial, start, support::Stage};

/// Nothing of this test asks the host to attest: it looks only.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_at_two_thirds_of_its_life_and_outlives_an_outage() {
    let (mut stage, hosts) = Stage::set(&["host01"]).await;
    let host = &hosts[0];
    let first = serial(&get(host).await);
    let move_both = async |stage: &Stage, seconds| {
        stage.hgs.attestation.advance_clock(seconds).await.unwrap();
        host.advance_clock(seconds).await.unwrap();
    };
    move_both(&stage, 5 * HOUR).await;
    assert_eq!(
        serial(&look(host).await),
        first,
        "two thirds of eight hours are not over"
    );
    move_both(&stage, HOUR).await;
    let renewed = look(host).await;
    assert_ne!(serial(&renewed), first);
    assert!(renewed.is_host_guarded, "{renewed:?}");

    // Nobody answers when the renewal is due: the certificate serves on, and the host tries again.
    stage.hgs.attestation.kill().unwrap();
    host.advance_clock(6 * HOUR).await.unwrap();
    let kept = look(host).await;
    assert_eq!(serial(&kept), serial(&renewed));
    assert!(
        kept.is_host_guarded && kept.detail.contains("could not be renewed"),
        "{kept:?}"
    );
    stage.hgs.attestation.restart().unwrap();
    stage.hgs.attestation.advance_clock(12 * HOUR).await.unwrap();
    host.advance_clock(60).await.unwrap();
    let again = look(host).await;
    assert_ne!(serial(&again), serial(&renewed));
    assert!(
        again.is_host_guarded && !again.detail.contains("could not be renewed"),
        "{again:?}"
    );

    // Refused at a renewal, it has none, and asks again after eight hours.
    stage.hgs.attestation.admin_delete("tpm-hosts/host01").await.unwrap();
    move_both(&stage, 6 * HOUR).await;
    let refused = look(host).await;
    assert_eq!(refused.attestation_status, AttestationStatus::UnauthorizedHost);
    assert_eq!(refused.certificate, None);
    let ek = host.artefact("ek.cer").await.unwrap();
    stage.hgs.register_host("host01", &ek).await.unwrap();
    move_both(&stage, 7 * HOUR).await;
    assert_eq!(look(host).await.attestation_status, AttestationStatus::UnauthorizedHost);
    move_both(&stage, HOUR).await;
    assert_eq!(look(host).await.attestation_status, AttestationStatus::Passed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_start_attests_when_no_certificate_is_at_hand_or_it_has_expired() {
    let (mut stage, mut hosts) = Stage::set(&["host01"]).await;
    let host = hosts.remove(0);
    let first = serial(&get(&host).await);
    stage.hgs.attestation.kill().unwrap();
    host.advance_clock(9 * HOUR).await.unwrap();
    assert_eq!(look(&host).await.attestation_status, AttestationStatus::TransientError);
    let refused = start(&stage, &host).await.unwrap_err();
    assert!(refused.contains("no contact"), "{refused}");
    stage.hgs.attestation.restart().unwrap();
    for service in [&stage.hgs.attestation, &stage.hgs.kps] {
        service.advance_clock(9 * HOUR).await.unwrap();
    }
    assert!(!start(&stage, &host).await.unwrap().offline);
    stage.prove(&host).await;
    assert_ne!(serial(&look(&host).await), first);
    off(&stage, &host).await;

    // A host that starts while nobody answers has none.
    stage.hgs.attestation.kill().unwrap();
    drop(host);
    let host = stage.restart("host01", None);
    let without = get(&host).await;
    assert_eq!(without.attestation_status, AttestationStatus::TransientError);
    assert_eq!(without.certificate, None);
    stage.hgs.attestation.restart().unwrap();
    stage.hgs.kps.restart().unwrap();
    assert!(!start(&stage, &host).await.unwrap().offline);
    assert!(look(&host).await.is_host_guarded);
}
