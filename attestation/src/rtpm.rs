//! The RTPM exchange (MS-HGSA 2.2.2.25; the content is this project's): four requests that read a TPM's
//! PCRs under a session which only the holder of the endorsement key can answer.
//!
//! A pure machine: its state travels sealed inside the context. It believes nothing without an HMAC,
//! compares no policy and reads no boot log. TPM2_PCR_Read carries no signature, hence the session.

use std::collections::BTreeMap;

use hgs_protocol::{
    crypto::{gcm_open, gcm_seal},
    env::{Random, UnixTime},
    secret::Secret32,
    tpm::{
        EK_HANDLE, PcrSelection, TpmError, command,
        response::{self, Response},
        session::{PendingSession, SaltedSession},
    },
    wire::{
        hgsa::SessionId,
        rtpm::{Blob, Context, ContextError, EncContext},
    },
};
use zeroize::Zeroizing;

use crate::{ek::EndorsementKey, replay::PcrReadout};

/// The keys that seal states: this hour's, and the one before it while states under it may live.
pub struct StateKeys {
    /// Seals and opens.
    pub current: Secret32,
    /// Only open: the neighbouring hours', around the turn of the hour.
    pub others: Vec<Secret32>,
}

/// What a state is bound to: the request's session and endorsement key.
#[derive(Clone, Copy)]
pub struct Party<'a> {
    /// SessionId of the request.
    pub session: SessionId,
    /// Endorsement key of the request.
    pub ek: &'a EndorsementKey,
}

/// What follows a host's context.
pub enum Turn {
    /// Send this context and wait for the next request.
    Ask(Context),
    /// The exchange is over.
    Done(Finished),
}

/// The end of an exchange.
pub struct Finished {
    /// Its id, which may be decided once only.
    pub exchange: [u8; 16],
    /// Authenticated PCR values.
    pub readout: PcrReadout,
    /// The host's boot log, as it came; proved by nothing yet.
    pub log: Vec<u8>,
}

/// Why an exchange failed. The peer learns only that it did.
#[derive(Debug, thiserror::Error)]
pub enum RtpmError {
    /// The context does not parse.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// The state was not sealed by this service for this session and endorsement key, or it was changed.
    #[error("the state does not open for this session and endorsement key")]
    State,
    /// The state is older than two minutes.
    #[error("the state is {0} seconds old; start a new exchange")]
    Expired(i64),
    /// The blobs are not those that were asked for.
    #[error("the answers are not those that were asked for")]
    Blobs,
    /// The TPM refused, or its answer is not authentic.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// The EK is not where it must be.
    #[error("the TPM has no key at 0x81010001: make the endorsement key persistent there ({0})")]
    NotPersistent(TpmError),
    /// The key at the EK's handle is another.
    #[error("the key at 0x81010001 is not the endorsement key of the request")]
    OtherKey,
    /// A PCR was extended between the two reads.
    #[error("a PCR changed between the two reads; start a new exchange")]
    Changed,
}

/// Starts an exchange: asks for device information, the EK and a salted session.
pub fn begin(party: Party<'_>, keys: &StateKeys, now: UnixTime, rng: &mut dyn Random) -> Result<Context, RtpmError> {
    let (start, pending) = SaltedSession::start(party.ek.key(), rng)?;
    let state = State {
        step: STARTED,
        issued_at: now,
        exchange: rng.bytes(),
        handle: 0,
        key: pending.salt().clone(),
        nonce_caller: pending.nonce_caller(),
        nonce_tpm: [0; 32],
        update_counter: 0,
        values: BTreeMap::new(),
    };
    let read_public = command::read_public(EK_HANDLE).encode();
    let blobs = vec![Blob::DeviceInfoWanted, Blob::Tpm(read_public), Blob::Tpm(start)];
    Ok(state.seal(party, keys, blobs, rng))
}

/// Takes a host's context one step further. `now` is the unshifted clock.
pub fn resume(
    context: &[u8],
    party: Party<'_>,
    keys: &StateKeys,
    now: UnixTime,
    rng: &mut dyn Random,
) -> Result<Turn, RtpmError> {
    let context = Context::parse(context)?;
    let mut state = State::open(&context, party, keys)?;
    let age = now.seconds_since(state.issued_at);
    if !(-SKEW..=LONGEST_AGE).contains(&age) {
        return Err(RtpmError::Expired(age));
    }
    state.issued_at = now;
    match (state.step, context.blobs.as_slice()) {
        (STARTED, [Blob::DeviceInfo(_), Blob::Tpm(public), Blob::Tpm(started)]) => {
            let public = Response::parse(public).map_err(|error| match error {
                TpmError::Refused(_) => RtpmError::NotPersistent(error),
                other => RtpmError::Tpm(other),
            })?;
            let public = response::read_public(public.parameters)?;
            if public.rsa_key() != Some(party.ek.key()) {
                return Err(RtpmError::OtherKey);
            }
            let pending = PendingSession::from_parts(state.key.clone(), state.nonce_caller);
            let mut session = pending.started(started)?;
            if session.handle() >> 24 != HMAC_SESSIONS {
                return Err(TpmError::Handle(session.handle()).into());
            }
            let read = session.pcr_read(FIRST, true, rng);
            state.keep(&session, FIRST_READ);
            Ok(Turn::Ask(state.seal(party, keys, vec![Blob::Tpm(read)], rng)))
        }
        (FIRST_READ, [Blob::Tpm(response)]) => {
            let mut session = state.session();
            let read = session.pcr_read_response(response, FIRST)?;
            state.update_counter = read.update_counter;
            state.values.extend(read.values);
            let last = session.pcr_read(SECOND, false, rng);
            state.keep(&session, SECOND_READ);
            let blobs = vec![Blob::Tpm(last), Blob::BootLogWanted];
            Ok(Turn::Ask(state.seal(party, keys, blobs, rng)))
        }
        (SECOND_READ, [Blob::Tpm(response), Blob::BootLog(log)]) => {
            let read = state.session().pcr_read_response(response, SECOND)?;
            if read.update_counter != state.update_counter {
                return Err(RtpmError::Changed);
            }
            state.values.extend(read.values);
            let values = std::mem::take(&mut state.values);
            Ok(Turn::Done(Finished {
                exchange: state.exchange,
                readout: PcrReadout::authenticated(values).ok_or(RtpmError::Blobs)?,
                log: log.clone(),
            }))
        }
        _ => Err(RtpmError::Blobs),
    }
}

/// What the server must remember between two requests.
struct State {
    step: u8,
    issued_at: UnixTime,
    exchange: [u8; 16],
    handle: u32,
    /// The salt after the first step, then the session key.
    key: Secret32,
    nonce_caller: [u8; 32],
    nonce_tpm: [u8; 32],
    update_counter: u32,
    values: BTreeMap<u8, [u8; 32]>,
}

impl State {
    fn session(&self) -> SaltedSession {
        SaltedSession::from_parts(self.handle, self.key.clone(), self.nonce_caller, self.nonce_tpm)
    }

    fn keep(&mut self, session: &SaltedSession, step: u8) {
        self.step = step;
        self.handle = session.handle();
        self.key = session.key().clone();
        self.nonce_caller = session.nonce_caller();
        self.nonce_tpm = session.nonce_tpm();
    }

    /// u8 step, i64 time, 16 exchange, u32 handle, 32 key, 32 nonceCaller, 32 nonceTPM, u32 counter,
    /// u16 PCR mask, 32 bytes per PCR; little-endian.
    fn seal(&self, party: Party<'_>, keys: &StateKeys, blobs: Vec<Blob>, rng: &mut dyn Random) -> Context {
        let mut plain = Zeroizing::new(vec![self.step]);
        plain.extend_from_slice(&self.issued_at.0.to_le_bytes());
        plain.extend_from_slice(&self.exchange);
        plain.extend_from_slice(&self.handle.to_le_bytes());
        plain.extend_from_slice(self.key.expose());
        plain.extend_from_slice(&self.nonce_caller);
        plain.extend_from_slice(&self.nonce_tpm);
        plain.extend_from_slice(&self.update_counter.to_le_bytes());
        let mask = self.values.keys().fold(0u16, |mask, pcr| mask | (1u16 << (pcr & 15)));
        plain.extend_from_slice(&mask.to_le_bytes());
        for value in self.values.values() {
            plain.extend_from_slice(value);
        }
        let sealed = gcm_seal(&keys.current, &party.binding(), &plain, rng);
        let (nonce, rest) = sealed
            .split_first_chunk()
            .map_or(([0; 12], [].as_slice()), |(n, r)| (*n, r));
        let (body, tag) = rest
            .split_last_chunk()
            .map_or(([].as_slice(), [0; 16]), |(b, t)| (b, *t));
        Context {
            enc_context: EncContext { nonce, tag },
            encrypted_buffer: body.to_vec(),
            blobs,
        }
    }

    fn open(context: &Context, party: Party<'_>, keys: &StateKeys) -> Result<State, RtpmError> {
        let EncContext { nonce, tag } = &context.enc_context;
        let sealed = [nonce.as_slice(), &context.encrypted_buffer, tag].concat();
        let binding = party.binding();
        let plain = std::iter::once(&keys.current)
            .chain(&keys.others)
            .find_map(|key| gcm_open(key, &binding, &sealed).ok());
        plain.and_then(|plain| State::read(&plain)).ok_or(RtpmError::State)
    }

    fn read(plain: &[u8]) -> Option<State> {
        fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
            let (taken, left) = rest.split_first_chunk::<N>()?;
            *rest = left;
            Some(*taken)
        }
        let mut rest = plain;
        let [step] = take(&mut rest)?;
        let mut state = State {
            step,
            issued_at: UnixTime(i64::from_le_bytes(take(&mut rest)?)),
            exchange: take(&mut rest)?,
            handle: u32::from_le_bytes(take(&mut rest)?),
            key: Secret32::new(take(&mut rest)?),
            nonce_caller: take(&mut rest)?,
            nonce_tpm: take(&mut rest)?,
            update_counter: u32::from_le_bytes(take(&mut rest)?),
            values: BTreeMap::new(),
        };
        let mask = u16::from_le_bytes(take(&mut rest)?);
        for pcr in (0u8..16).filter(|pcr| mask & (1u16 << pcr) != 0) {
            state.values.insert(pcr, take(&mut rest)?);
        }
        rest.is_empty().then_some(state)
    }
}

impl Party<'_> {
    /// Additional data of the sealed state.
    fn binding(&self) -> Vec<u8> {
        let mut out = b"HGS-RTPM-1".to_vec();
        out.extend_from_slice(&self.session.to_bytes());
        out.extend_from_slice(&self.ek.sha256());
        out
    }
}

/// PCRs 0-3, 7, 11-13: a TPM answers at most eight at once.
const FIRST: PcrSelection = PcrSelection::from_mask(0x388f);
/// PCRs 4-6, 14.
const SECOND: PcrSelection = PcrSelection::from_mask(0x4070);
const STARTED: u8 = 1;
const FIRST_READ: u8 = 2;
const SECOND_READ: u8 = 3;
const LONGEST_AGE: i64 = 120;
/// How far the clocks of two replicas may differ, in seconds: a state may come from one that is ahead.
pub const SKEW: i64 = 30;
const HMAC_SESSIONS: u32 = 0x02;

#[cfg(test)]
mod tests {
    use hgs_protocol::{crypto::RsaPrivateKey, env::SeededRandom};
    use uuid::Uuid;

    use super::*;

    const NOW: UnixTime = UnixTime(1_770_000_000);

    fn keys(current: u8, other: Option<u8>) -> StateKeys {
        StateKeys {
            current: Secret32::new([current; 32]),
            others: other.map(|byte| Secret32::new([byte; 32])).into_iter().collect(),
        }
    }

    fn ek() -> EndorsementKey {
        let key = RsaPrivateKey::generate_2048().unwrap();
        EndorsementKey::parse(&key.public().spki_der()).unwrap()
    }

    fn party(ek: &EndorsementKey, session: u128) -> Party<'_> {
        Party {
            session: SessionId(Uuid::from_u128(session)),
            ek,
        }
    }

    /// Resumes with the server's own blobs, which are no answers: a state that opens fails at them.
    fn again(context: &Context, party: Party<'_>, keys: &StateKeys, now: UnixTime) -> RtpmError {
        let resumed = resume(&context.encode(), party, keys, now, &mut SeededRandom::new(2));
        resumed.err().unwrap()
    }

    #[test]
    fn a_state_opens_for_its_own_session_key_and_time_only() {
        let (mine, other) = (ek(), ek());
        let context = begin(party(&mine, 1), &keys(1, None), NOW, &mut SeededRandom::new(1)).unwrap();
        let mine_again = |keys: &StateKeys, now| again(&context, party(&mine, 1), keys, now);

        assert!(matches!(mine_again(&keys(1, None), NOW), RtpmError::Blobs));
        assert!(
            matches!(mine_again(&keys(2, Some(1)), NOW), RtpmError::Blobs),
            "the hour has turned"
        );
        assert!(matches!(mine_again(&keys(2, None), NOW), RtpmError::State));
        assert!(matches!(
            mine_again(&keys(1, None), NOW.plus_seconds(120)),
            RtpmError::Blobs
        ));
        assert!(matches!(
            mine_again(&keys(1, None), NOW.plus_seconds(121)),
            RtpmError::Expired(121)
        ));
        assert!(matches!(
            mine_again(&keys(1, None), NOW.plus_seconds(-60)),
            RtpmError::Expired(-60)
        ));
        let one = keys(1, None);
        assert!(matches!(again(&context, party(&mine, 2), &one, NOW), RtpmError::State));
        assert!(matches!(again(&context, party(&other, 1), &one, NOW), RtpmError::State));
    }

    #[test]
    fn any_changed_bit_of_the_state_is_refused() {
        let ek = ek();
        let context = begin(party(&ek, 1), &keys(1, None), NOW, &mut SeededRandom::new(1)).unwrap();
        for place in 0..context.encrypted_buffer.len() {
            let mut bad = context.clone();
            bad.encrypted_buffer[place] ^= 0x80;
            assert!(matches!(
                again(&bad, party(&ek, 1), &keys(1, None), NOW),
                RtpmError::State
            ));
        }
        let mut bad = context.clone();
        bad.enc_context.tag[0] ^= 1;
        assert!(matches!(
            again(&bad, party(&ek, 1), &keys(1, None), NOW),
            RtpmError::State
        ));
    }

    #[test]
    fn an_absent_or_foreign_key_at_the_handle_is_named() {
        let ek = ek();
        let context = begin(party(&ek, 1), &keys(1, None), NOW, &mut SeededRandom::new(1)).unwrap();
        let mut answer = context;
        let info = hgs_protocol::wire::rtpm::DeviceInfo {
            tpm_version: 2,
            interface_type: 4,
            implementation_version: 0,
        };
        let refused = hex::decode("80010000000a0000018b").unwrap();
        answer.blobs = vec![Blob::DeviceInfo(info), Blob::Tpm(refused.clone()), Blob::Tpm(refused)];
        let error = again(&answer, party(&ek, 1), &keys(1, None), NOW);
        assert!(matches!(error, RtpmError::NotPersistent(_)), "{error}");
    }

    #[test]
    fn a_state_survives_its_encoding_and_no_prefix_does() {
        let state = State {
            step: SECOND_READ,
            issued_at: NOW,
            exchange: [3; 16],
            handle: 0x0200_0000,
            key: Secret32::new([4; 32]),
            nonce_caller: [5; 32],
            nonce_tpm: [6; 32],
            update_counter: 7,
            values: [(0, [8; 32]), (14, [9; 32])].into(),
        };
        let (ek, keys) = (ek(), keys(1, None));
        let context = state.seal(party(&ek, 1), &keys, Vec::new(), &mut SeededRandom::new(1));
        let read = State::open(&context, party(&ek, 1), &keys).unwrap();
        assert_eq!((read.step, read.issued_at, read.exchange), (SECOND_READ, NOW, [3; 16]));
        assert_eq!((read.handle, read.update_counter), (0x0200_0000, 7));
        assert_eq!((read.nonce_caller, read.nonce_tpm), ([5; 32], [6; 32]));
        assert_eq!(read.key.expose(), &[4; 32]);
        assert_eq!(read.values, state.values);
        let empty = [0; 131];
        assert!(State::read(&empty).is_some());
        assert!((0..131).all(|length| State::read(&empty[..length]).is_none()));
        assert!(State::read(&[0; 132]).is_none());
    }
}
