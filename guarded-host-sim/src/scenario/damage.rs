//! What somebody between a host and its HGS can change in a message, each change in the one kind of message that it is for.

use base64::{Engine, engine::general_purpose::STANDARD};
use hgs_protocol::{
    health::CertificateKind,
    wire::{
        hgsa::{ProvidedKind, Reply, Request, SessionId},
        kps::{RollTransportKeyRequest, RollTransportKeyResponse},
        rtpm::{Blob, Context},
    },
};
use uuid::Uuid;

use super::model::step::Damage;

/// The body of a request as it arrives; nothing when it is none of the messages that `damage` is for. `seen` is what
/// the same host sent before, oldest first.
pub fn of_request(damage: Damage, body: &[u8], seen: impl FnOnce() -> Vec<Vec<u8>>) -> Option<Vec<u8>> {
    match damage {
        Damage::BootLog => in_context(body, |context| {
            context.blobs.iter_mut().find_map(|blob| match blob {
                // Behind the header, inside the digests and data of the events.
                Blob::BootLog(log) => flip(log, 3, 4),
                _ => None,
            })
        }),
        Damage::TpmAnswer => in_context(body, |context| {
            let answers = context.blobs.iter_mut().rev();
            answers
                .filter_map(|blob| match blob {
                    Blob::Tpm(answer) if answer.starts_with(&SESSIONS) => answer.last_mut(),
                    _ => None,
                })
                .next()
                .map(|byte| *byte ^= 1)
        }),
        Damage::SealedState => in_context(body, |context| flip(&mut context.encrypted_buffer, 1, 2)),
        Damage::StaleState => stale(body, &seen()),
        Damage::SessionId => session(body),
        Damage::CaTrustletReport => trustlet(body),
        Damage::AttestationRequestCut => Request::parse(body).ok().map(|_| half(body)),
        Damage::GuardianSignature => in_roll(body, |text| flip_digit(text, "<GuardianSignature", "<SignatureValue>")),
        Damage::WrappedKey => in_roll(body, |text| flip_digit(text, "<TransportKey>", "<CipherValue>")),
        Damage::TransferAlgorithm => {
            let mut roll = RollTransportKeyRequest::parse(body).ok()?;
            roll.transfer_key_encryption_algorithm = UNKNOWN_ALGORITHM.to_owned();
            Some(roll.encode())
        }
        Damage::RollRequestCut => RollTransportKeyRequest::parse(body).ok().map(|_| half(body)),
        Damage::IssuedCertificate | Damage::EgressProtector | Damage::TransportKeys => None,
    }
}

/// The body of an answer as it arrives; nothing when it is none of the messages that `damage` is for.
pub fn of_answer(damage: Damage, body: &[u8]) -> Option<Vec<u8>> {
    match damage {
        Damage::IssuedCertificate => match Reply::parse(body).ok()? {
            Reply::HealthCertificate { mut content } => {
                let (_, der) = content.first_mut()?;
                // The signature stands at the end.
                *der.last_mut()? ^= 1;
                Some(Reply::HealthCertificate { content }.encode())
            }
            _ => None,
        },
        Damage::EgressProtector => {
            let mut response = RollTransportKeyResponse::parse(body).ok()?;
            let text = String::from_utf8(response.egress_protector).ok()?;
            response.egress_protector = flip_digit(&text, "<TransportKey>", "<CipherValue>")?.into_bytes();
            Some(response.encode())
        }
        Damage::TransportKeys => {
            let mut response = RollTransportKeyResponse::parse(body).ok()?;
            *response.encrypted_transport_keys.last_mut()? ^= 1;
            Some(response.encode())
        }
        _ => None,
    }
}

/// The RTPM context of a request that has one.
fn context_of(request: &Request) -> Option<&[u8]> {
    match request {
        Request::TpmContinue { context, .. } => Some(context),
        Request::Attestation { provided, .. } => {
            let found = provided.iter().find(|(kind, _)| *kind == ProvidedKind::RtpmContext);
            found.map(|(_, context)| context.as_slice())
        }
        _ => None,
    }
}

fn with_context(mut request: Request, new: Vec<u8>) -> Vec<u8> {
    match &mut request {
        Request::TpmContinue { context, .. } => *context = new,
        Request::Attestation { provided, .. } => {
            for (kind, content) in provided.iter_mut() {
                if *kind == ProvidedKind::RtpmContext {
                    content.clone_from(&new);
                }
            }
        }
        _ => {}
    }
    request.encode()
}

fn in_context(body: &[u8], change: impl FnOnce(&mut Context) -> Option<()>) -> Option<Vec<u8>> {
    let request = Request::parse(body).ok()?;
    let mut context = Context::parse(context_of(&request)?).ok()?;
    change(&mut context)?;
    Some(with_context(request, context.encode()))
}

/// The last context of the exchange before: of the newest request seen that has the same blobs and another session.
fn stale(body: &[u8], seen: &[Vec<u8>]) -> Option<Vec<u8>> {
    let request = Request::parse(body).ok()?;
    let present = Context::parse(context_of(&request)?).ok()?;
    let of = |old: &Vec<u8>| {
        let old = Request::parse(old).ok()?;
        let context = Context::parse(context_of(&old)?).ok()?;
        let alike = context.blobs.len() == present.blobs.len() && session_of(&old) != session_of(&request);
        alike.then(|| context.encode())
    };
    let earlier = seen.iter().rev().find_map(of)?;
    Some(with_context(request, earlier))
}

fn session_of(request: &Request) -> SessionId {
    match request {
        Request::TpmInitial { session, .. }
        | Request::TpmContinue { session, .. }
        | Request::Domain { session, .. }
        | Request::Attestation { session, .. } => *session,
    }
}

/// Only of a request that continues: the first one may have any.
fn session(body: &[u8]) -> Option<Vec<u8>> {
    let mut request = Request::parse(body).ok()?;
    context_of(&request).filter(|context| !context.is_empty())?;
    match &mut request {
        Request::TpmInitial { session, .. }
        | Request::TpmContinue { session, .. }
        | Request::Domain { session, .. }
        | Request::Attestation { session, .. } => session.0 = Uuid::from_u128(!session.0.as_u128()),
    }
    Some(request.encode())
}

fn trustlet(body: &[u8]) -> Option<Vec<u8>> {
    let Request::Attestation {
        session,
        mut requested,
        mut provided,
    } = Request::parse(body).ok()?
    else {
        return None;
    };
    if !requested.contains(&CertificateKind::Authority) {
        requested.push(CertificateKind::Authority);
    }
    let key = hgs_protocol::crypto::RsaPrivateKey::generate_2048().ok()?;
    let key = hgs_protocol::wire::vsm::encode_rsa1(key.public());
    provided.extend([
        (ProvidedKind::VsmIdentityKey, key),
        (ProvidedKind::CaTrustletUserData, vec![7; 32]),
        (ProvidedKind::CaTrustletVsmReport, vec![7; 400]),
        (ProvidedKind::CaTrustletReportSignature, vec![7; 256]),
    ]);
    Some(
        Request::Attestation {
            session,
            requested,
            provided,
        }
        .encode(),
    )
}

fn in_roll(body: &[u8], change: impl FnOnce(&str) -> Option<String>) -> Option<Vec<u8>> {
    let mut roll = RollTransportKeyRequest::parse(body).ok()?;
    let text = String::from_utf8(roll.ingress_protector).ok()?;
    roll.ingress_protector = change(&text)?.into_bytes();
    Some(roll.encode())
}

/// Changes one digit of the first base64 `value` after the last `marker`.
pub fn flip_digit(text: &str, marker: &str, value: &str) -> Option<String> {
    let at = text.rfind(marker)?;
    let at = at + text.get(at..)?.find(value)? + value.len();
    let digit = if text.get(at..=at)? == "A" { "B" } else { "A" };
    Some(format!("{}{digit}{}", text.get(..at)?, text.get(at + 1..)?))
}

/// Flips a bit at `of`/`parts` of the bytes.
fn flip(bytes: &mut [u8], of: usize, parts: usize) -> Option<()> {
    let at = bytes.len().saturating_mul(of) / parts;
    *bytes.get_mut(at)? ^= 1;
    Some(())
}

fn half(body: &[u8]) -> Vec<u8> {
    body.get(..body.len() / 2).unwrap_or_default().to_vec()
}

/// A protector whose wrappings `change` has changed and its owner has signed anew, as a dishonest owner can.
pub fn resigned(
    protector: &str,
    sign: impl FnOnce(&[u8]) -> Option<Vec<u8>>,
    change: impl FnOnce(&str) -> Option<String>,
) -> Option<Vec<u8>> {
    let (open, close) = ("<Wrappings>", "</Wrappings>");
    let start = protector.find(open)?;
    let end = protector.find(close)? + close.len();
    let wrappings = change(protector.get(start..end)?)?;
    // Canonical form gives the apex its namespace.
    let apex = format!("<Wrappings xmlns=\"{}\">", hgs_protocol::protector::NS_PROTECTOR);
    let signature = STANDARD.encode(sign(wrappings.replacen(open, &apex, 1).as_bytes())?);
    let tail = protector.get(end..)?;
    let value = tail.rfind("<SignatureValue>")? + "<SignatureValue>".len();
    let rest = tail.rfind("</SignatureValue>")?;
    let parts = [
        protector.get(..start)?,
        &wrappings,
        tail.get(..value)?,
        &signature,
        tail.get(rest..)?,
    ];
    Some(parts.concat().into_bytes())
}

/// TPM_ST_SESSIONS, with which the answers begin that a session authenticates.
const SESSIONS: [u8; 2] = [0x80, 0x02];
const UNKNOWN_ALGORITHM: &str = "http://www.w3.org/2001/04/xmlenc#tripledes-cbc";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Damage; 14] = [
        Damage::BootLog,
        Damage::TpmAnswer,
        Damage::SealedState,
        Damage::SessionId,
        Damage::StaleState,
        Damage::CaTrustletReport,
        Damage::AttestationRequestCut,
        Damage::IssuedCertificate,
        Damage::GuardianSignature,
        Damage::WrappedKey,
        Damage::TransferAlgorithm,
        Damage::RollRequestCut,
        Damage::EgressProtector,
        Damage::TransportKeys,
    ];

    #[test]
    fn a_damage_is_for_one_kind_of_message() {
        let context = Context {
            enc_context: hgs_protocol::wire::rtpm::EncContext {
                nonce: [1; 12],
                tag: [2; 16],
            },
            encrypted_buffer: vec![3; 40],
            blobs: vec![Blob::Tpm(vec![0x80, 2, 0, 0]), Blob::BootLog(vec![4; 100])],
        };
        let request = |session: u128, context: &Context| {
            Request::Attestation {
                session: SessionId(Uuid::from_u128(session)),
                requested: vec![CertificateKind::Encryption],
                provided: vec![(ProvidedKind::RtpmContext, context.encode())],
            }
            .encode()
        };
        let now = request(1, &context);
        let earlier = request(
            2,
            &Context {
                encrypted_buffer: vec![9; 40],
                ..context.clone()
            },
        );
        let touched: Vec<bool> = ALL
            .iter()
            .map(|damage| match of_request(*damage, &now, || vec![earlier.clone()]) {
                Some(changed) => {
                    assert_ne!(changed, now, "{damage:?} changes nothing");
                    true
                }
                None => false,
            })
            .collect();
        assert_eq!(touched.iter().filter(|touched| **touched).count(), 7, "{touched:?}");
        assert_eq!(
            of_request(Damage::StaleState, &now, Vec::new),
            None,
            "there was no exchange before"
        );
        let roll = RollTransportKeyRequest::new(
            b"<p><TransportKey><CipherValue>AAAA</CipherValue></TransportKey><GuardianSignature><SignatureValue>AAAA<"
                .to_vec(),
            vec![1],
        )
        .encode();
        let touched = ALL
            .iter()
            .filter(|damage| of_request(**damage, &roll, Vec::new).is_some())
            .count();
        assert_eq!(touched, 4);
    }

    proptest! {
        #[test]
        fn no_message_makes_it_panic(body in proptest::collection::vec(any::<u8>(), 0..200), text in ".*") {
            for damage in ALL {
                let _ = (of_request(damage, &body, Vec::new), of_answer(damage, &body));
                let _ = of_request(damage, text.as_bytes(), Vec::new);
            }
            let _ = flip_digit(&text, "<a", "<b>");
        }
    }
}
