//! Every MUST of MS-HGSA 3.1.5 (and those of 2.2.2.25 and 3.1.3 that a server shows), one row each, over HTTP.

use std::collections::BTreeSet;

use attestation::Options;
use guarded_host_sim::machine::dials::Dials;
use hgs_protocol::{
    health::{AttestationMode, CertificateKind, HealthCertificate},
    wire::{
        hgsa::{ErrorKind, ProvidedKind, Reply, Request},
        rtpm::{Blob, Context},
        vsm::encode_rsa1,
    },
};
use serde_json::json;

use crate::{
    ca_trustlet::{items as items_of_ca, switch},
    fixture::{Host, Service, V1, V2, missing_tools},
    host_keys::{Keys, register_host_key},
};

/// One demand.
struct Must {
    section: &'static str,
    says: &'static str,
    mode: &'static str,
    ask: Ask,
    answer: Answer,
}

/// What the client does.
enum Ask {
    Get(&'static str),
    Post(&'static str, Body),
    /// A whole exchange by an honest host, for these certificates.
    Exchange(&'static str, &'static [CertificateKind]),
    /// The same with its last answer changed.
    Changed(&'static str, fn(&mut Context)),
    /// The same, the last context changed as bytes.
    ChangedBytes(&'static str, fn(&mut [u8])),
    /// A whole exchange for a CA trustlet's certificate, its items changed, with the switch so.
    CaTrustlet(bool, fn(&mut Vec<(ProvidedKind, Vec<u8>)>)),
    /// A whole exchange after the administrator has removed the code-integrity policy.
    WithoutPolicy(&'static str),
    /// Chooses a mode by the admin API.
    Choose(&'static str),
    /// A request over the limit of a service that has one.
    TooOften,
}

enum Body {
    Text(&'static str),
    Initial { registered: bool },
    Continue { registered: bool },
    V2 { registered: bool },
    Domain,
    HostKey(fn(&Keys) -> Request),
}

enum Answer {
    Error(&'static str),
    OperationMode(AttestationMode),
    Certificates(&'static [CertificateKind]),
    /// TpmReplyContinue, with a context or an empty one.
    Continue {
        empty: bool,
    },
    ServiceInfo(AttestationMode),
    Signers,
    Status(u16),
}

use AttestationMode::{HostKey as HostKeyMode, Tpm};
use CertificateKind::{Authority, Encryption, Signing};

const ANY: &str = "{\"not\": \"looked at\"}";

const TABLE: &[Must] = &[
    // 3.1.3 Initialization, shown by 3.1.5.4.
    must(
        "3.1.3, 3.1.5.4.1.3",
        "Getinfo gives functional levels and the configured mode",
        "Tpm",
        Ask::Get("Getinfo"),
        Answer::ServiceInfo(Tpm),
    ),
    must(
        "3.1.3, 3.1.5.4.1.3",
        "Getinfo gives functional levels and the configured mode",
        "HostKey",
        Ask::Get("Getinfo"),
        Answer::ServiceInfo(HostKeyMode),
    ),
    // 3.1.5.1.1.3, first paragraph, for each URL and version.
    must(
        "3.1.5.1.1.3",
        "TPM mode, domainattest: OperationModeErrorReply",
        "Tpm",
        Ask::Post("v1.0/domainattest", Body::Domain),
        Answer::OperationMode(Tpm),
    ),
    must(
        "3.1.5.1.1.3",
        "TPM mode, domainattest, v2.0: OperationModeErrorReply",
        "Tpm",
        Ask::Post("v2.0/domainattest", Body::Text(ANY)),
        Answer::OperationMode(Tpm),
    ),
    must(
        "3.1.5.1.1.3",
        "TPM mode, hostkeyattest: OperationModeErrorReply",
        "Tpm",
        Ask::Post("v2.0/hostkeyattest", Body::HostKey(Keys::request)),
        Answer::OperationMode(Tpm),
    ),
    // Second paragraph: a request that is not valid for TPM mode.
    must(
        "3.1.5.1.1.3",
        "attest with no JSON: PayloadErrorReply",
        "Tpm",
        Ask::Post("v1.0/attest", Body::Text("no JSON")),
        Answer::Error("PayloadErrorReply"),
    ),
    must(
        "3.1.5.1.1.3",
        "attest with an empty object: PayloadErrorReply",
        "Tpm",
        Ask::Post("v1.0/attest", Body::Text("{}")),
        Answer::Error("PayloadErrorReply"),
    ),
    must(
        "3.1.5.1.1.3",
        "attest with ADRequest: PayloadErrorReply",
        "Tpm",
        Ask::Post("v1.0/attest", Body::Domain),
        Answer::Error("PayloadErrorReply"),
    ),
    must(
        "3.1.5.1.1.3",
        "attest v2.0 with ADRequest: PayloadErrorReply",
        "Tpm",
        Ask::Post("v2.0/attest", Body::Domain),
        Answer::Error("PayloadErrorReply"),
    ),
    must(
        "3.1.5.1.1.3",
        "attest v1.0 with AttestationRequest: PayloadErrorReply",
        "Tpm",
        Ask::Post("v1.0/attest", Body::V2 { registered: true }),
        Answer::Error("PayloadErrorReply"),
    ),
    must(
        "3.1.5.1.1.3",
        "attest v2.0 with TpmRequestInitial: PayloadErrorReply",
        "Tpm",
        Ask::Post("v2.0/attest", Body::Initial { registered: true }),
        Answer::Error("PayloadErrorReply"),
    ),
    // TpmRequestInitial.
    must(
        "3.1.5.1.1.3",
        "TpmRequestInitial, EKPub not registered: UnauthorizedErrorReply",
        "Tpm",
        Ask::Post("v1.0/attest", Body::Initial { registered: false }),
        Answer::Error("UnauthorizedErrorReply"),
    ),
    must(
        "3.1.5.1.1.3",
        "TpmRequestInitial, EKPub registered: TpmReplyContinue",
        "Tpm",
        Ask::Post("v1.0/attest", Body::Initial { registered: true }),
        Answer::Continue { empty: false },
    ),
    // TpmRequestContinue and AttestationRequest.
    must(
        "3.1.5.1.1.3",
        "TpmRequestContinue, EKPub not registered: UnauthorizedErrorReply",
        "Tpm",
        Ask::Post("v1.0/attest", Body::Continue { registered: false }),
        Answer::Error("UnauthorizedErrorReply"),
    ),
    must(
        "3.1.5.1.1.3",
        "AttestationRequest, EKPub not registered: UnauthorizedErrorReply",
        "Tpm",
        Ask::Post("v2.0/attest", Body::V2 { registered: false }),
        Answer::Error("UnauthorizedErrorReply"),
    ),
    must(
        "3.1.5.1.1.3",
        "TpmRequestContinue with an empty context: TpmReplyContinue with an empty context",
        "Tpm",
        Ask::Post("v1.0/attest", Body::Continue { registered: true }),
        Answer::Continue { empty: true },
    ),
    must(
        "3.1.5.1.1.3",
        "AttestationRequest without a context starts an exchange",
        "Tpm",
        Ask::Post("v2.0/attest", Body::V2 { registered: true }),
        Answer::Continue { empty: false },
    ),
    // Success, for each AttestationResultType and version.
    must(
        "3.1.5.1.1.3",
        "policies pass, type 1: certified VSM key for encryption",
        "Tpm",
        Ask::Exchange(V1, &[Encryption]),
        Answer::Certificates(&[Encryption]),
    ),
    must(
        "3.1.5.1.1.3",
        "policies pass, type 2: certified VSM key for signing",
        "Tpm",
        Ask::Exchange(V1, &[Signing]),
        Answer::Certificates(&[Signing]),
    ),
    must(
        "3.1.5.1.1.3",
        "both, in request order",
        "Tpm",
        Ask::Exchange(V1, &[Signing, Encryption]),
        Answer::Certificates(&[Signing, Encryption]),
    ),
    must(
        "3.1.5.1.1.3",
        "v2.0, type 1",
        "Tpm",
        Ask::Exchange(V2, &[Encryption]),
        Answer::Certificates(&[Encryption]),
    ),
    must(
        "3.1.5.1.1.3",
        "v2.0, type 2",
        "Tpm",
        Ask::Exchange(V2, &[Signing]),
        Answer::Certificates(&[Signing]),
    ),
    // Type 3 is off until an administrator turns it on.
    must(
        "3.1.5.1.1.3",
        "type 3 without its items: PayloadErrorReply",
        "Tpm",
        Ask::Exchange(V2, &[Authority]),
        Answer::Error("PayloadErrorReply"),
    ),
    must(
        "3.1.5.1.1.3",
        "type 3 while it is off: PayloadErrorReply",
        "Tpm",
        Ask::CaTrustlet(false, |_| ()),
        Answer::Error("PayloadErrorReply"),
    ),
    must(
        "3.1.5.1.1.3",
        "type 3 while it is on, one item missing: PayloadErrorReply",
        "Tpm",
        Ask::CaTrustlet(true, |items| drop(items.pop())),
        Answer::Error("PayloadErrorReply"),
    ),
    must(
        "3.1.5.1.1.3",
        "type 3 while it is on: certified key of the CA trustlet",
        "Tpm",
        Ask::CaTrustlet(true, |_| ()),
        Answer::Certificates(&[Authority]),
    ),
    must(
        "2.2.2.24",
        "a report that was not signed so: VsmReportValidationErrorReply",
        "Tpm",
        Ask::CaTrustlet(true, |items| items.last_mut().unwrap().1[0] ^= 1),
        Answer::Error("VsmReportValidationErrorReply"),
    ),
    // 2.2.2.25, the context.
    must(
        "2.2.2.25",
        "the context's version is 1: another is refused",
        "Tpm",
        Ask::ChangedBytes(V1, |bytes| bytes[4] = 2),
        Answer::Error("RtpmErrorReply"),
    ),
    must(
        "2.2.2.25",
        "the server ignores Reserved",
        "Tpm",
        Ask::ChangedBytes(V1, |bytes| bytes[12] = 7),
        Answer::Certificates(&[Encryption]),
    ),
    must(
        "2.2.2.19",
        "answers that are not the TPM's: RtpmErrorReply",
        "Tpm",
        Ask::Changed(V2, |context| context.blobs.truncate(1)),
        Answer::Error("RtpmErrorReply"),
    ),
    must(
        "2.2.2.20",
        "a log that does not replay: TcgLogValidationErrorReply",
        "Tpm",
        Ask::Changed(V2, |context| context.blobs[1] = Blob::BootLog(vec![0; 32])),
        Answer::Error("TcgLogValidationErrorReply"),
    ),
    // Policies fail; the last row of TPM mode.
    must(
        "3.1.5.1.1.3",
        "a policy fails: PolicyEvaluationErrorReply with EvaluationLog",
        "Tpm",
        Ask::WithoutPolicy(V1),
        Answer::Error("PolicyEvaluationErrorReply"),
    ),
    must(
        "3.1.5.1.1.3",
        "v2.0, a policy fails: PolicyEvaluationErrorReply",
        "Tpm",
        Ask::WithoutPolicy(V2),
        Answer::Error("PolicyEvaluationErrorReply"),
    ),
    // 3.1.5.2.1.3: the mode cannot be chosen here, so its URL is always that of another mode.
    must(
        "3.1.5.2.1.3",
        "AD mode is not built: it cannot be configured",
        "Tpm",
        Ask::Choose("AD"),
        Answer::Status(409),
    ),
    must(
        "3.1.5.2.1.3",
        "host-key mode, domainattest: OperationModeErrorReply",
        "HostKey",
        Ask::Post("v1.0/domainattest", Body::Domain),
        Answer::OperationMode(HostKeyMode),
    ),
    // 3.1.5.3.1.3.
    must(
        "3.1.5.3.1.3",
        "host-key mode, attest: OperationModeErrorReply",
        "HostKey",
        Ask::Post("v1.0/attest", Body::Initial { registered: true }),
        Answer::OperationMode(HostKeyMode),
    ),
    must(
        "3.1.5.3.1.3",
        "host-key mode, attest v2.0: OperationModeErrorReply",
        "HostKey",
        Ask::Post("v2.0/attest", Body::V2 { registered: true }),
        Answer::OperationMode(HostKeyMode),
    ),
    must(
        "3.1.5.3.1.3",
        "no VirtualSecureModeIdentityKey: PayloadErrorReply",
        "HostKey",
        Ask::Post(
            "v2.0/hostkeyattest",
            Body::HostKey(|keys| without(keys, ProvidedKind::VsmIdentityKey)),
        ),
        Answer::Error("PayloadErrorReply"),
    ),
    must(
        "3.1.5.3.1.3",
        "no HostKeyPublicKey: PayloadErrorReply",
        "HostKey",
        Ask::Post(
            "v2.0/hostkeyattest",
            Body::HostKey(|keys| without(keys, ProvidedKind::HostKeyPublicKey)),
        ),
        Answer::Error("PayloadErrorReply"),
    ),
    must(
        "3.1.5.3.1.3",
        "no HostKeySignature: PayloadErrorReply",
        "HostKey",
        Ask::Post(
            "v2.0/hostkeyattest",
            Body::HostKey(|keys| without(keys, ProvidedKind::HostKeySignature)),
        ),
        Answer::Error("PayloadErrorReply"),
    ),
    must(
        "3.1.5.3.1.3",
        "HostKeyPublicKey not authorized: UnauthorizedErrorReply",
        "HostKey",
        Ask::Post("v2.0/hostkeyattest", Body::HostKey(|_| Keys::new().request())),
        Answer::Error("UnauthorizedErrorReply"),
    ),
    must(
        "3.1.5.3.1.3",
        "HostKeySignature does not verify: UnauthorizedErrorReply",
        "HostKey",
        Ask::Post(
            "v2.0/hostkeyattest",
            Body::HostKey(|keys| with(keys, ProvidedKind::HostKeySignature, vec![1; 256])),
        ),
        Answer::Error("UnauthorizedErrorReply"),
    ),
    must(
        "3.1.5.3.1.3",
        "valid, type 1 and 2: HealthCertificateReply",
        "HostKey",
        Ask::Post("v2.0/hostkeyattest", Body::HostKey(Keys::request)),
        Answer::Certificates(&[Encryption, Signing]),
    ),
    must(
        "2.2.2.23",
        "a VSM key that cannot be used: VirtualSecureModeErrorReply",
        "HostKey",
        Ask::Post("v2.0/hostkeyattest", Body::HostKey(bad_vsm_key)),
        Answer::Error("VirtualSecureModeErrorReply"),
    ),
    must(
        "3.1.5.3.1",
        "hostkeyattest exists from v2.0 on",
        "HostKey",
        Ask::Post("v1.0/hostkeyattest", Body::HostKey(Keys::request)),
        Answer::Status(404),
    ),
    // 3.1.5.5.1.3.
    must(
        "3.1.5.5.1.3",
        "signingCertificates: a PKCS#7 with the signers",
        "Tpm",
        Ask::Get("v2.0/signingCertificates"),
        Answer::Signers,
    ),
    must(
        "3.1.5.5.1.3",
        "signingCertificates: a PKCS#7 with the signers",
        "HostKey",
        Ask::Get("v2.0/signingCertificates"),
        Answer::Signers,
    ),
    must(
        "3.1.5.5.1",
        "signingCertificates exists from v2.0 on",
        "Tpm",
        Ask::Get("v1.0/signingCertificates"),
        Answer::Status(404),
    ),
    must(
        "2.2.2.22",
        "not now: UnavailableErrorReply",
        "Tpm",
        Ask::TooOften,
        Answer::Error("UnavailableErrorReply"),
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_must_of_the_server_is_kept() {
    if missing_tools("the table of demands") {
        return;
    }
    let options = Options {
        requests_per_minute_per_key: 1000,
        ..Options::default()
    };
    let service = Service::start_with(options, |_, args| args).await;
    let limited = Options {
        requests_per_minute_per_address: 1,
        ..Options::default()
    };
    let limited = Service::start_with(limited, |_, args| args).await;
    let mut host = Host::boot(&Dials::default());
    service.register(&host, "host01").await;
    let keys = Keys::new();
    register_host_key(&service, "host02", &keys.host.public().spki_der()).await;

    let mut shown = BTreeSet::new();
    for row in TABLE {
        let name = format!("{} ({}): {}", row.section, row.mode, row.says);
        service.set_mode(row.mode).await;
        let (status, body) = row.ask.act(&service, &limited, &mut host, &keys).await;
        let reply = Reply::parse(&body).ok();
        shown.extend(reply.as_ref().map(Reply::name));
        row.answer.check(&name, status, &body, reply);
    }
    let expected = BTreeSet::from([
        "HealthCertificateReply",
        "OperationModeErrorReply",
        "PayloadErrorReply",
        "PolicyEvaluationErrorReply",
        "RtpmErrorReply",
        "ServiceInfoReply",
        "TcgLogValidationErrorReply",
        "TpmReplyContinue",
        "UnauthorizedErrorReply",
        "UnavailableErrorReply",
        "VirtualSecureModeErrorReply",
        "VsmReportValidationErrorReply",
    ]);
    // ErrorReply stands for faults of the service itself.
    assert_eq!(shown, expected);
}

impl Ask {
    async fn act(&self, service: &Service, limited: &Service, host: &mut Host, keys: &Keys) -> (u16, Vec<u8>) {
        match self {
            Ask::Get(path) => get(service, path).await,
            Ask::Post(path, body) => service.post(path, body.bytes(host, keys)).await,
            Ask::Exchange(version, kinds) => finish(service, host, version, kinds, &[], Context::encode).await,
            Ask::Changed(version, change) => {
                let change = |context: &Context| {
                    let mut context = context.clone();
                    change(&mut context);
                    context.encode()
                };
                finish(service, host, version, &[Encryption], &[], change).await
            }
            Ask::ChangedBytes(version, change) => {
                let change = |context: &Context| {
                    let mut bytes = context.encode();
                    change(&mut bytes);
                    bytes
                };
                finish(service, host, version, &[Encryption], &[], change).await
            }
            Ask::CaTrustlet(on, change) => {
                switch(service, *on).await;
                let mut items = items_of_ca(&encode_rsa1(keys.vsm.public()), &host.signing);
                change(&mut items);
                finish(service, host, V2, &[Authority], &items, Context::encode).await
            }
            Ask::WithoutPolicy(version) => {
                service.admin_delete("ci-policies/host01").await;
                finish(service, host, version, &[Encryption], &[], Context::encode).await
            }
            Ask::Choose(mode) => {
                let (status, _) = service.admin_put("operation-mode", &json!({ "mode": mode })).await;
                (status, Vec::new())
            }
            Ask::TooOften => {
                get(limited, "Getinfo").await;
                get(limited, "Getinfo").await
            }
        }
    }
}

async fn get(service: &Service, path: &str) -> (u16, Vec<u8>) {
    let request = service.client.get(format!("{}/Attestation/{path}", service.url));
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.bytes().await.unwrap().to_vec())
}

/// An exchange whose last context `last` may change.
async fn finish(
    service: &Service,
    host: &mut Host,
    version: &str,
    kinds: &[CertificateKind],
    more: &[(ProvidedKind, Vec<u8>)],
    last: impl Fn(&Context) -> Vec<u8>,
) -> (u16, Vec<u8>) {
    let session = Host::new_session();
    let answers = host.answers(service, version, session).await;
    let mut request = host.request(version, session, answers.last());
    let bytes = last(answers.last().unwrap());
    match &mut request {
        Request::TpmContinue { requested, context, .. } => {
            *requested = kinds.to_vec();
            *context = bytes;
        }
        Request::Attestation {
            requested, provided, ..
        } => {
            *requested = kinds.to_vec();
            provided.last_mut().unwrap().1 = bytes;
            provided.extend_from_slice(more);
        }
        other => panic!("{other:?}"),
    }
    service.post(&format!("{version}/attest"), request.encode()).await
}

impl Body {
    fn bytes(&self, host: &Host, keys: &Keys) -> Vec<u8> {
        let session = Host::new_session();
        let requested = vec![Encryption];
        let ek = |registered| match registered {
            true => encode_rsa1(&host.ek),
            false => encode_rsa1(keys.vsm.public()),
        };
        match self {
            Body::Text(text) => text.as_bytes().to_vec(),
            Body::Initial { registered } => Request::TpmInitial {
                session,
                requested,
                endorsement_key: ek(*registered),
            }
            .encode(),
            Body::Continue { registered } => Request::TpmContinue {
                session,
                requested,
                endorsement_key: ek(*registered),
                context: Vec::new(),
            }
            .encode(),
            Body::V2 { registered } => Request::Attestation {
                session,
                requested,
                provided: vec![(ProvidedKind::VsmIdentityKey, ek(*registered))],
            }
            .encode(),
            Body::Domain => Request::Domain {
                session,
                requested: vec![(Encryption, encode_rsa1(keys.vsm.public()))],
            }
            .encode(),
            Body::HostKey(make) => make(keys).encode(),
        }
    }
}

impl Answer {
    fn check(&self, name: &str, status: u16, body: &[u8], reply: Option<Reply>) {
        if let Answer::Status(expected) = self {
            return assert_eq!(status, *expected, "{name}");
        }
        if let Answer::Signers = self {
            let der: Vec<u8> = serde_json::from_slice(body).expect(name);
            let info: cms::content_info::ContentInfo = x509_cert::der::Decode::from_der(&der).expect(name);
            let signed: cms::signed_data::SignedData = info.content.decode_as().expect(name);
            return assert_eq!(signed.certificates.map(|set| set.0.len()), Some(1), "{name}");
        }
        let reply = reply.expect(name);
        let text = String::from_utf8_lossy(body);
        let type_first = format!(
            "{{\"__type\":\"{}:#Microsoft.Windows.RemoteAttestation.Core\"",
            reply.name()
        );
        assert!(text.starts_with(&type_first), "{name}: {text}");
        match (self, reply) {
            (Answer::Error(expected), reply @ Reply::Error { .. }) => {
                assert_eq!(reply.name(), *expected, "{name}");
                if let Reply::Error {
                    kind: ErrorKind::PolicyEvaluation(reasons),
                    ..
                } = reply
                {
                    assert!(!reasons.is_empty() && reasons.iter().all(|log| !log.result), "{name}");
                }
            }
            (
                Answer::OperationMode(expected),
                Reply::Error {
                    kind: ErrorKind::OperationMode(mode),
                    retryable,
                },
            ) => assert_eq!((mode, retryable), (Some(*expected), true), "{name}"),
            (Answer::Certificates(kinds), Reply::HealthCertificate { content }) => {
                let found: Vec<CertificateKind> = content.iter().map(|(kind, _)| *kind).collect();
                assert_eq!(found, *kinds, "{name}");
                for (_, der) in &content {
                    HealthCertificate::parse(der).expect(name);
                }
            }
            (Answer::Continue { empty }, Reply::TpmContinue { context }) => {
                assert_eq!(context.is_empty(), *empty, "{name}");
            }
            (
                Answer::ServiceInfo(mode),
                Reply::ServiceInfo {
                    functional_level,
                    operation_mode,
                    supported_functional_levels,
                },
            ) => {
                assert_eq!(operation_mode, Some(*mode), "{name}");
                assert_eq!(
                    (functional_level, supported_functional_levels),
                    (2, vec![1, 2]),
                    "{name}"
                );
            }
            (_, other) => panic!("{name}: {other:?}"),
        }
    }
}

fn items(request: &mut Request) -> &mut Vec<(ProvidedKind, Vec<u8>)> {
    match request {
        Request::Attestation { provided, .. } => provided,
        other => panic!("{other:?}"),
    }
}

fn without(keys: &Keys, kind: ProvidedKind) -> Request {
    let mut request = keys.request();
    items(&mut request).retain(|(other, _)| *other != kind);
    request
}

fn with(keys: &Keys, kind: ProvidedKind, bytes: Vec<u8>) -> Request {
    let mut request = keys.request();
    for (other, value) in items(&mut request) {
        if *other == kind {
            *value = bytes.clone();
        }
    }
    request
}

/// Too small, and signed as it stands.
fn bad_vsm_key(keys: &Keys) -> Request {
    let signed = [encode_rsa1(keys.host.public()), vec![1, 2, 3]].concat();
    let mut request = with(keys, ProvidedKind::VsmIdentityKey, vec![1, 2, 3]);
    let signature = keys.host.sign_pkcs1_sha256(&signed).unwrap();
    for (kind, value) in items(&mut request) {
        if *kind == ProvidedKind::HostKeySignature {
            *value = signature.clone();
        }
    }
    request
}

const fn must(section: &'static str, says: &'static str, mode: &'static str, ask: Ask, answer: Answer) -> Must {
    Must {
        section,
        says,
        mode,
        ask,
        answer,
    }
}
