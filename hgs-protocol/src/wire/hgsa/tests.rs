use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Result<Request, JsonError> {
    Request::parse(text.as_bytes())
}

fn text(reply: &Reply) -> String {
    String::from_utf8(reply.encode()).unwrap()
}

const SESSION: SessionId = SessionId(Uuid::from_bytes_le([
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,
]));

#[test]
fn the_examples_of_the_reference_are_read() {
    let initial = parse(
        r#"{"__type":"TpmRequestInitial:#Microsoft.Windows.RemoteAttestation.Core","SessionId":"AAECAwQFBgcICQoLDA0ODw==","RequestedContent":[1,2],"RtpmPublicEndorsementKey":"UlNBMQ=="}"#,
    );
    assert_eq!(
        initial,
        Ok(Request::TpmInitial {
            session: SESSION,
            requested: vec![CertificateKind::Encryption, CertificateKind::Signing],
            endorsement_key: b"RSA1".to_vec(),
        })
    );
    let second = parse(
        r#"{"SessionId":"AAECAwQFBgcICQoLDA0ODw==","RequestedContent":[1],"ProvidedContent":[{"m_Item1":1,"m_Item2":"UlNBMQ=="},{"m_Item1":8,"m_Item2":"AA=="}]}"#,
    );
    assert_eq!(
        second,
        Ok(Request::Attestation {
            session: SESSION,
            requested: vec![CertificateKind::Encryption],
            provided: vec![
                (ProvidedKind::VsmIdentityKey, b"RSA1".to_vec()),
                (ProvidedKind::HostKeyPublicKey, vec![0]),
            ],
        })
    );
}

#[test]
fn replies_are_written_in_the_order_of_the_product() {
    let info = Reply::ServiceInfo {
        functional_level: 2,
        operation_mode: Some(AttestationMode::Tpm),
        supported_functional_levels: vec![1, 2],
    };
    assert_eq!(
        text(&info),
        r#"{"__type":"ServiceInfoReply:#Microsoft.Windows.RemoteAttestation.Core","FunctionalLevel":2,"OperationMode":1,"SupportedFunctionalLevels":[1,2]}"#
    );
    let secure_boot = EvaluationLog {
        reason: Uuid::from_u128(0x6a460ee1_62ea_416f_ae6c_04e29634506d),
        result: false,
    };
    let failed = Reply::Error {
        kind: ErrorKind::PolicyEvaluation(vec![secure_boot]),
        retryable: false,
    };
    assert_eq!(
        text(&failed),
        r#"{"__type":"PolicyEvaluationErrorReply:#Microsoft.Windows.RemoteAttestation.Core","Retryable":false,"Reasons":[{"Reason":"4Q5Gaupib0GubATiljRQbQ==","Result":false}]}"#
    );
}

#[test]
fn type_must_come_first() {
    let late = r#"{"SessionId":"AAECAwQFBgcICQoLDA0ODw==","__type":"AttestationRequest:#Microsoft.Windows.RemoteAttestation.Core","RequestedContent":[1],"ProvidedContent":[]}"#;
    assert_eq!(parse(late), Err(JsonError::Type));
    let foreign = r#"{"__type":"AttestationRequest:#Other","SessionId":"AAECAwQFBgcICQoLDA0ODw==","RequestedContent":[1],"ProvidedContent":[]}"#;
    assert_eq!(parse(foreign), Err(JsonError::Type));
    let unknown = foreign.replace("AttestationRequest:#Other", &format!("Another{NAMESPACE}"));
    assert_eq!(parse(&unknown), Err(JsonError::UnknownType));
}

#[test]
fn a_member_twice_is_refused_at_any_depth() {
    let outer = r#"{"SessionId":"AAECAwQFBgcICQoLDA0ODw==","SessionId":"AAECAwQFBgcICQoLDA0ODw==","RequestedContent":[1],"ProvidedContent":[]}"#;
    assert_eq!(parse(outer), Err(JsonError::NotJson));
    let inner = r#"{"SessionId":"AAECAwQFBgcICQoLDA0ODw==","RequestedContent":[1],"ProvidedContent":[{"m_Item1":1,"m_Item1":2,"m_Item2":""}]}"#;
    assert_eq!(parse(inner), Err(JsonError::NotJson));
}

#[test]
fn binary_and_session_come_in_both_forms() {
    let forms = [
        r#""AAECAwQFBgcICQoLDA0ODw==""#,
        r#""03020100-0504-0706-0809-0a0b0c0d0e0f""#,
        "[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15]",
    ];
    for form in forms {
        let body =
            format!(r#"{{"SessionId":{form},"RequestedContent":[1],"ProvidedContent":[],"Unknown":{{"a":1.5}}}}"#);
        let Ok(Request::Attestation { session, .. }) = parse(&body) else {
            panic!("{body}")
        };
        assert_eq!(session, SESSION);
        let with_mark = ["\u{feff}", &body].concat();
        assert!(parse(&with_mark).is_ok());
    }
    for bad in [
        r#""AAEC""#,
        "[0,1]",
        "[256]",
        "7",
        "null",
        r#""03020100-0504-0706-0809-0a0b0c0d0e0z""#,
    ] {
        let body = format!(r#"{{"SessionId":{bad},"RequestedContent":[1],"ProvidedContent":[]}}"#);
        assert_eq!(parse(&body), Err(JsonError::Member("SessionId")));
    }
}

#[test]
fn requested_content_names_known_kinds_once() {
    for bad in [
        "[]",
        "[4]",
        "[0]",
        "[1,1]",
        "1",
        r#"["1"]"#,
        r#"[{"m_Item1":1,"m_Item2":""}]"#,
    ] {
        let body =
            format!(r#"{{"SessionId":"AAECAwQFBgcICQoLDA0ODw==","RequestedContent":{bad},"ProvidedContent":[]}}"#);
        assert_eq!(parse(&body), Err(JsonError::Member("RequestedContent")), "{bad}");
    }
    let integers =
        format!(r#"{{"__type":"ADRequest{NAMESPACE}","SessionId":"AAECAwQFBgcICQoLDA0ODw==","RequestedContent":[1]}}"#);
    assert_eq!(parse(&integers), Err(JsonError::Member("RequestedContent")));
}

#[test]
fn what_is_no_object_is_no_message() {
    for bad in ["", "[]", "7", "{", "null", "{\"a\":1}x", "\u{0}"] {
        assert_eq!(parse(bad), Err(JsonError::NotJson), "{bad}");
    }
    assert_eq!(Request::parse(&[0xff, 0xfe]), Err(JsonError::NotJson));
    let deep = "[".repeat(100_000);
    assert_eq!(parse(&format!("{{\"a\":{deep}")), Err(JsonError::NotJson));
}

fn kinds() -> impl Strategy<Value = Vec<CertificateKind>> {
    proptest::sample::subsequence(CertificateKind::ALL.to_vec(), 1..=3)
}

fn blob() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..80)
}

fn request() -> impl Strategy<Value = Request> {
    let session = any::<u128>().prop_map(|id| SessionId(Uuid::from_u128(id)));
    let provided = (0usize..9).prop_map(|kind| ProvidedKind::ALL[kind]);
    let provided = proptest::collection::vec((provided, blob()), 0..6);
    (session, kinds(), blob(), blob(), provided, 0..4).prop_map(
        |(session, requested, endorsement_key, context, provided, which)| match which {
            0 => Request::TpmInitial {
                session,
                requested,
                endorsement_key,
            },
            1 => Request::TpmContinue {
                session,
                requested,
                endorsement_key,
                context,
            },
            2 => Request::Domain {
                session,
                requested: requested.into_iter().map(|kind| (kind, context.clone())).collect(),
            },
            _ => Request::Attestation {
                session,
                requested,
                provided,
            },
        },
    )
}

fn reply() -> impl Strategy<Value = Reply> {
    let mode = (0usize..3).prop_map(|mode| Some(AttestationMode::ALL[mode]));
    let reasons = proptest::collection::vec((any::<u128>(), any::<bool>()), 0..5).prop_map(|reasons| {
        let log = |(reason, result)| EvaluationLog {
            reason: Uuid::from_u128(reason),
            result,
        };
        ErrorKind::PolicyEvaluation(reasons.into_iter().map(log).collect())
    });
    let kind = prop_oneof![
        Just(ErrorKind::Other),
        mode.clone().prop_map(ErrorKind::OperationMode),
        Just(ErrorKind::Payload),
        reasons,
        Just(ErrorKind::Rtpm),
        Just(ErrorKind::TcgLogValidation),
        Just(ErrorKind::Unauthorized),
        Just(ErrorKind::Unavailable),
        Just(ErrorKind::VirtualSecureMode),
        Just(ErrorKind::VsmReportValidation),
    ];
    prop_oneof![
        blob().prop_map(|context| Reply::TpmContinue { context }),
        (kinds(), blob()).prop_map(|(kinds, der)| Reply::HealthCertificate {
            content: kinds.into_iter().map(|kind| (kind, der.clone())).collect(),
        }),
        (any::<u32>(), mode, any::<Vec<u32>>()).prop_map(|(level, operation_mode, levels)| Reply::ServiceInfo {
            functional_level: level,
            operation_mode,
            supported_functional_levels: levels,
        }),
        (kind, any::<bool>()).prop_map(|(kind, retryable)| Reply::Error { kind, retryable }),
    ]
}

proptest! {
    #[test]
    fn a_request_survives_its_encoding(request in request()) {
        let encoded = request.encode();
        let type_first = encoded.starts_with(b"{\"__type\":\"");
        prop_assert!(type_first);
        prop_assert_eq!(Request::parse(&encoded), Ok(request));
    }

    #[test]
    fn a_reply_survives_its_encoding(reply in reply()) {
        prop_assert_eq!(Reply::parse(&reply.encode()), Ok(reply));
    }

    #[test]
    fn changed_bytes_never_panic(request in request(), at in any::<prop::sample::Index>(), value in any::<u8>()) {
        let mut bytes = request.encode();
        let at = at.index(bytes.len());
        bytes[at] = value;
        fuzz(&bytes);
    }
}
