//! What a hostile host tries in the exchange; each ends in the one reply that tells nothing.

use guarded_host_sim::machine::dials::Dials;
use hgs_protocol::{
    tpm::command,
    wire::{
        hgsa::{ErrorKind, Reply, Request},
        rtpm::{Blob, Context},
        vsm::encode_rsa1,
    },
};

use crate::fixture::{Host, Service, V1, missing_tools};

const REFUSED: Reply = Reply::Error {
    kind: ErrorKind::Rtpm,
    retryable: true,
};

#[tokio::test(flavor = "multi_thread")]
async fn contexts_that_were_replayed_moved_or_changed_are_refused() {
    if missing_tools("attacks on the context") {
        return;
    }
    let service = Service::start().await;
    let mut host = Host::boot(&Dials::default());
    service.register(&host, "host01").await;

    // A final context sent a second time.
    let session = Host::new_session();
    let asked = host.context_after(&service, session, 2).await;
    let last = host.answer(asked);
    let request = host.request(V1, session, Some(&last));
    assert!(matches!(
        service.ask(V1, &request).await,
        Reply::HealthCertificate { .. }
    ));
    assert_eq!(service.ask(V1, &request).await, REFUSED);

    // The state of another session.
    let other = Host::new_session();
    assert_eq!(service.ask(V1, &host.request(V1, other, Some(&last))).await, REFUSED);

    // A step answered with the blobs of another step.
    let mut wrong = last.clone();
    wrong.blobs.reverse();
    assert_eq!(service.ask(V1, &host.request(V1, session, Some(&wrong))).await, REFUSED);

    // One bit of the sealed state.
    let mut wrong = last.clone();
    wrong.encrypted_buffer[40] ^= 1;
    assert_eq!(service.ask(V1, &host.request(V1, session, Some(&wrong))).await, REFUSED);

    // A changed digest in the response of PCR_Read.
    let session = Host::new_session();
    let asked = host.context_after(&service, session, 1).await;
    let mut answer = host.answer(asked);
    let Blob::Tpm(response) = &mut answer.blobs[0] else {
        panic!("{answer:?}")
    };
    response[60] ^= 1;
    assert_eq!(
        service.ask(V1, &host.request(V1, session, Some(&answer))).await,
        REFUSED
    );

    // Lengths that overflow.
    for at in [0, 8, 16, 48] {
        let mut bytes = last.encode();
        bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        let Request::TpmContinue {
            session,
            requested,
            endorsement_key,
            ..
        } = host.request(V1, session, Some(&last))
        else {
            unreachable!("a continuing request of v1.0")
        };
        let request = Request::TpmContinue {
            session,
            requested,
            endorsement_key,
            context: bytes,
        };
        assert_eq!(service.ask(V1, &request).await, REFUSED, "at {at}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_cannot_be_finished_under_another_registered_key() {
    if missing_tools("a swapped endorsement key") {
        return;
    }
    let service = Service::start().await;
    let mut host = Host::boot(&Dials::default());
    service.register(&host, "host01").await;
    let other = Host::boot(&Dials::default());
    service.register_forced(&other, "host02").await;
    let session = Host::new_session();
    let asked = host.context_after(&service, session, 2).await;
    let last = host.answer(asked);
    let Request::TpmContinue { requested, context, .. } = host.request(V1, session, Some(&last)) else {
        unreachable!("a continuing request of v1.0")
    };
    let swapped = Request::TpmContinue {
        session,
        requested,
        context,
        endorsement_key: encode_rsa1(&other.ek),
    };
    assert_eq!(service.ask(V1, &swapped).await, REFUSED);
    assert!(matches!(
        service.ask(V1, &host.request(V1, session, Some(&last))).await,
        Reply::HealthCertificate { .. }
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pcr_extended_between_the_reads_and_a_log_that_does_not_replay_are_refused() {
    if missing_tools("a PCR extended between the reads") {
        return;
    }
    let service = Service::start().await;
    let mut host = Host::boot(&Dials::default());
    service.register(&host, "host01").await;

    // Between the reads.
    let session = Host::new_session();
    let asked: Context = host.context_after(&service, session, 2).await;
    let extend = command::pcr_extend(14, &[1; 32]).encode_with_password(&[]);
    host.tpm.channel().transact(&extend).unwrap();
    let last = host.answer(asked);
    assert_eq!(service.ask(V1, &host.request(V1, session, Some(&last))).await, REFUSED);

    // After boot: the TPM no longer holds what the log says.
    let reply = host.attest(&service, V1).await;
    assert!(
        matches!(
            reply,
            Reply::Error {
                kind: ErrorKind::TcgLogValidation,
                retryable: true
            }
        ),
        "{reply:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_starts_at_most_twenty_exchanges_a_minute() {
    if missing_tools("the rate limit") {
        return;
    }
    let service = Service::start().await;
    let host = Host::boot(&Dials::default());
    service.register(&host, "host01").await;
    for _ in 0..20 {
        let reply = service.ask(V1, &host.request(V1, Host::new_session(), None)).await;
        assert!(matches!(reply, Reply::TpmContinue { .. }), "{reply:?}");
    }
    let reply = service.ask(V1, &host.request(V1, Host::new_session(), None)).await;
    assert_eq!(
        reply,
        Reply::Error {
            kind: ErrorKind::Unavailable,
            retryable: true
        }
    );
}
