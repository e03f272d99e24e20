//! Salted sessions (TPM Library part 1, 19 and 21; annex B.10): the proof that a response comes
//! from the TPM that holds a certain key, and the encryption of a first parameter.
//!
//! The salt is encrypted to a restricted decryption key, so nobody between the caller and the TPM
//! learns the session key. A response counts only after [`SaltedSession::accept`] or
//! [`SaltedSession::pcr_read_response`] has checked its HMAC.

use aws_lc_rs::{
    cipher::{AES_128, DecryptingKey, DecryptionContext, EncryptingKey, EncryptionContext, UnboundCipherKey},
    iv::FixedLength,
};
use zeroize::Zeroizing;

pub use super::response::PcrRead;
use super::{
    EK_HANDLE, PcrSelection, Reader, Sized16, TAG_SESSIONS, TpmError,
    command::{self, Call, SessionKind},
    response::{self, Response},
};
use crate::{
    crypto::{RsaPublicKey, hmac_sha256, same, sha256},
    env::Random,
    secret::Secret32,
};

/// The session stays open after the command.
pub const CONTINUE_SESSION: u8 = 0x01;
/// The first parameter of the command is encrypted.
pub const DECRYPT: u8 = 0x20;
/// The first parameter of the response is encrypted.
pub const ENCRYPT: u8 = 0x40;
/// The session audits the command.
pub const AUDIT: u8 = 0x80;

/// A session that was asked for and not yet answered.
pub struct PendingSession {
    salt: Secret32,
    nonce_caller: [u8; 32],
}

impl PendingSession {
    /// Takes up a session from what was kept of it: salt and first nonceCaller.
    pub fn from_parts(salt: Secret32, nonce_caller: [u8; 32]) -> PendingSession {
        PendingSession { salt, nonce_caller }
    }

    /// The salt, to be kept sealed.
    pub fn salt(&self) -> &Secret32 {
        &self.salt
    }

    /// The nonce that was sent.
    pub fn nonce_caller(&self) -> [u8; 32] {
        self.nonce_caller
    }

    /// Reads the response of TPM2_StartAuthSession and derives the session key. Nothing is proved
    /// yet: whoever does not know the salt fails at the first response under the session.
    pub fn started(&self, response: &[u8]) -> Result<SaltedSession, TpmError> {
        let response = Response::parse_with_handle(response)?;
        let handle = response.returned_handle()?;
        if !matches!(handle >> 24, 0x02 | 0x03) {
            return Err(TpmError::Handle(handle));
        }
        let mut reader = Reader(response.parameters);
        let nonce_tpm: [u8; 32] = reader
            .sized()?
            .try_into()
            .map_err(|_| TpmError::Value("a nonce of another length"))?;
        reader.finish()?;
        Ok(SaltedSession {
            handle,
            key: kdfa_32(self.salt.expose(), b"ATH", &nonce_tpm, &self.nonce_caller),
            nonce_caller: self.nonce_caller,
            nonce_tpm,
        })
    }
}

/// A salted session: handle, session key and the last nonces of both sides.
pub struct SaltedSession {
    handle: u32,
    key: Secret32,
    nonce_caller: [u8; 32],
    nonce_tpm: [u8; 32],
}

impl SaltedSession {
    /// Asks for an HMAC session salted to the EK at [`EK_HANDLE`]: the command and what must be
    /// kept until its answer.
    pub fn start(ek: &RsaPublicKey, rng: &mut dyn Random) -> Result<(Vec<u8>, PendingSession), TpmError> {
        SaltedSession::start_as(SessionKind::Audit, EK_HANDLE, ek, rng)
    }

    /// Asks for a session of any kind, salted to the key `key` that the TPM has at `tpm_key`.
    pub fn start_as(
        kind: SessionKind,
        tpm_key: u32,
        key: &RsaPublicKey,
        rng: &mut dyn Random,
    ) -> Result<(Vec<u8>, PendingSession), TpmError> {
        let pending = PendingSession {
            salt: Secret32::random(rng),
            nonce_caller: rng.bytes(),
        };
        let encrypted = key
            .encrypt_oaep_sha256(pending.salt.expose(), b"SECRET\0")
            .map_err(|_| TpmError::Key)?;
        let command = command::start_auth_session(kind, tpm_key, &pending.nonce_caller, &encrypted).encode();
        Ok((command, pending))
    }

    /// Takes up a session from what was kept of it. The key is the *session key*, not the salt:
    /// the nonces it was derived from are gone after the first command.
    pub fn from_parts(handle: u32, key: Secret32, nonce_caller: [u8; 32], nonce_tpm: [u8; 32]) -> SaltedSession {
        SaltedSession {
            handle,
            key,
            nonce_caller,
            nonce_tpm,
        }
    }

    /// The session's handle: 0x02xxxxxx for HMAC, 0x03xxxxxx for policy.
    pub fn handle(&self) -> u32 {
        self.handle
    }

    /// The session key, to be kept sealed.
    pub fn key(&self) -> &Secret32 {
        &self.key
    }

    /// The last nonce of the caller.
    pub fn nonce_caller(&self) -> [u8; 32] {
        self.nonce_caller
    }

    /// The last nonce of the TPM.
    pub fn nonce_tpm(&self) -> [u8; 32] {
        self.nonce_tpm
    }

    /// TPM2_PCR_Read audited by this session; `keep_open` says whether the session stays.
    /// At most eight PCRs are answered at once.
    pub fn pcr_read(&mut self, selection: PcrSelection, keep_open: bool, rng: &mut dyn Random) -> Vec<u8> {
        let attributes = if keep_open { AUDIT | CONTINUE_SESSION } else { AUDIT };
        let call = command::pcr_read(selection);
        // Without encryption nothing here can fail; the parameters are sent as they are.
        self.sign(&call, &call.parameters, &[], attributes, rng.bytes())
    }

    /// Checks the response to [`SaltedSession::pcr_read`]: HMAC first, then that exactly the PCRs
    /// of `wanted` came back.
    pub fn pcr_read_response(&mut self, response: &[u8], wanted: PcrSelection) -> Result<PcrRead, TpmError> {
        let parameters = self.accept(&command::pcr_read(wanted), &[], response)?;
        response::pcr_read(&parameters, wanted)
    }

    /// Encodes `call` under this session, which authorises its first handle when it has one with
    /// an authorisation value `auth` (empty for an empty one, and for a policy session).
    /// With [`DECRYPT`] in `attributes` the first parameter, which must be a TPM2B, is encrypted.
    pub fn command(
        &mut self,
        call: &Call,
        auth: &[u8],
        attributes: u8,
        rng: &mut dyn Random,
    ) -> Result<Vec<u8>, TpmError> {
        let nonce: [u8; 32] = rng.bytes();
        let mut parameters = call.parameters.clone();
        if attributes & DECRYPT != 0 {
            let (key, iv) = self.parameter_key(auth, &nonce, &self.nonce_tpm);
            let first = first_parameter(&mut parameters)?;
            encrypt_cfb(&key, iv, first)?;
        }
        Ok(self.sign(call, &parameters, auth, attributes, nonce))
    }

    /// Checks a response to `call` without returned handle and gives its parameters, the first
    /// one decrypted if the TPM encrypted it.
    pub fn accept(&mut self, call: &Call, auth: &[u8], response: &[u8]) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let response = Response::parse(response)?;
        let mut reader = Reader(response.authorization);
        let nonce_tpm: [u8; 32] = reader.sized()?.try_into().map_err(|_| TpmError::Hmac)?;
        let attributes = reader.u8()?;
        let given = reader.sized()?;
        reader.finish()?;

        let code = call.code.0.to_be_bytes();
        let rp_hash = sha256(&[&[0; 4], code.as_slice(), response.parameters].concat());
        let expected = self.hmac(auth, &[&rp_hash, &nonce_tpm, &self.nonce_caller, &[attributes]]);
        if !same(&expected, given) {
            return Err(TpmError::Hmac);
        }
        self.nonce_tpm = nonce_tpm;

        let mut parameters = Zeroizing::new(response.parameters.to_vec());
        if attributes & ENCRYPT != 0 {
            let (key, iv) = self.parameter_key(auth, &self.nonce_tpm, &self.nonce_caller);
            let first = first_parameter(&mut parameters)?;
            decrypt_cfb(&key, iv, first)?;
        }
        Ok(parameters)
    }

    fn sign(&mut self, call: &Call, parameters: &[u8], auth: &[u8], attributes: u8, nonce: [u8; 32]) -> Vec<u8> {
        let mut hashed = call.code.0.to_be_bytes().to_vec();
        for (_, name) in &call.handles {
            hashed.extend_from_slice(name);
        }
        hashed.extend_from_slice(parameters);
        let cp_hash = sha256(&hashed);
        self.nonce_caller = nonce;
        let hmac = self.hmac(auth, &[&cp_hash, &nonce, &self.nonce_tpm, &[attributes]]);
        let mut area = self.handle.to_be_bytes().to_vec();
        area.push_sized(&nonce);
        area.push(attributes);
        area.push_sized(&hmac);
        call.encode_with(TAG_SESSIONS, &area, parameters)
    }

    fn hmac(&self, auth: &[u8], parts: &[&[u8]]) -> [u8; 32] {
        let key = Zeroizing::new([self.key.expose().as_slice(), auth].concat());
        hmac_sha256(&key, parts)
    }

    /// KDFa(sessionKey || auth, "CFB", newer, older, 256): AES-128 key, then IV.
    fn parameter_key(&self, auth: &[u8], newer: &[u8; 32], older: &[u8; 32]) -> (Zeroizing<[u8; 16]>, [u8; 16]) {
        let secret = Zeroizing::new([self.key.expose().as_slice(), auth].concat());
        let derived = kdfa_32(&secret, b"CFB", newer, older);
        let (mut key, mut iv) = (Zeroizing::new([0; 16]), [0; 16]);
        for (i, byte) in derived.expose().iter().enumerate() {
            match (key.get_mut(i), iv.get_mut(i.wrapping_sub(16))) {
                (Some(place), _) | (None, Some(place)) => *place = *byte,
                (None, None) => {}
            }
        }
        (key, iv)
    }
}

/// KDFa of part 1, 11.4.10.2 with SHA-256 and 256 bits: one block of the counter mode.
fn kdfa_32(key: &[u8], label: &[u8], context_u: &[u8], context_v: &[u8]) -> Secret32 {
    let (counter, bits) = (1u32.to_be_bytes(), 256u32.to_be_bytes());
    Secret32::new(hmac_sha256(key, &[&counter, label, &[0], context_u, context_v, &bits]))
}

/// The contents of the TPM2B at the front.
fn first_parameter(parameters: &mut [u8]) -> Result<&mut [u8], TpmError> {
    let (length, rest) = parameters.split_first_chunk_mut().ok_or(TpmError::Truncated)?;
    rest.get_mut(..usize::from(u16::from_be_bytes(*length)))
        .ok_or(TpmError::Truncated)
}

fn encrypt_cfb(key: &[u8; 16], iv: [u8; 16], data: &mut [u8]) -> Result<(), TpmError> {
    let context = EncryptionContext::Iv128(FixedLength::from(iv));
    UnboundCipherKey::new(&AES_128, key)
        .and_then(EncryptingKey::cfb128)
        .and_then(|k| k.less_safe_encrypt(data, context))
        .map(|_| ())
        .map_err(|_| TpmError::Key)
}

fn decrypt_cfb(key: &[u8; 16], iv: [u8; 16], data: &mut [u8]) -> Result<(), TpmError> {
    let context = DecryptionContext::Iv128(FixedLength::from(iv));
    UnboundCipherKey::new(&AES_128, key)
        .and_then(DecryptingKey::cfb128)
        .and_then(|k| k.decrypt(data, context).map(|_| ()))
        .map_err(|_| TpmError::Key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{crypto::RsaPrivateKey, env::SeededRandom};

    const SELECTION: PcrSelection = PcrSelection::from_mask(0x00_788F);

    /// A TPM's side of the session, as far as the tests need it.
    struct Tpm {
        key: Secret32,
        nonce: [u8; 32],
    }

    impl Tpm {
        fn start(ek: &RsaPrivateKey, command: &[u8]) -> (Tpm, Vec<u8>) {
            let nonce_caller: [u8; 32] = command[20..52].try_into().unwrap();
            let salt = ek.decrypt_oaep_sha256(&command[54..310], b"SECRET\0").unwrap();
            let nonce = [0xA5; 32];
            let key = kdfa_32(&salt, b"ATH", &nonce, &nonce_caller);
            let mut response = hex::decode("8001000000300000000002000000").unwrap();
            response.push_sized(&nonce);
            (Tpm { key, nonce }, response)
        }

        fn answer(&mut self, command: &[u8], parameters: &[u8], attributes: u8) -> Vec<u8> {
            let nonce_caller: [u8; 32] = command[20..52].try_into().unwrap();
            self.nonce = [self.nonce[0] + 1; 32];
            let rp_hash = sha256(&[&[0; 4], &command[6..10], parameters].concat());
            let parts: [&[u8]; 4] = [&rp_hash, &self.nonce, &nonce_caller, &[attributes]];
            let hmac = hmac_sha256(self.key.expose(), &parts);
            let mut body = u32::try_from(parameters.len()).unwrap().to_be_bytes().to_vec();
            body.extend(parameters);
            body.push_sized(&self.nonce);
            body.push(attributes);
            body.push_sized(&hmac);
            let mut out = TAG_SESSIONS.to_be_bytes().to_vec();
            out.extend(u32::try_from(body.len() + 10).unwrap().to_be_bytes());
            out.extend([0; 4]);
            out.extend(body);
            out
        }
    }

    fn pcr_parameters(counter: u32, selection: PcrSelection) -> Vec<u8> {
        let mut out = counter.to_be_bytes().to_vec();
        out.extend(selection.encode());
        out.extend(u32::try_from(selection.len()).unwrap().to_be_bytes());
        for index in selection.indices() {
            out.push_sized(&[index; 32]);
        }
        out
    }

    fn open() -> (Tpm, SaltedSession, SeededRandom) {
        let ek = RsaPrivateKey::generate_2048().unwrap();
        let mut rng = SeededRandom::new(1);
        let (command, pending) = SaltedSession::start(ek.public(), &mut rng).unwrap();
        let (tpm, response) = Tpm::start(&ek, &command);
        let session = pending.started(&response).unwrap();
        (tpm, session, rng)
    }

    #[test]
    fn pcr_read_has_the_shape_of_the_worked_example() {
        // The nonces and key of the captured run are not all known, so nonceCaller and HMAC are
        // cut out of the comparison; every other byte is the example's.
        let captured = concat!(
            "80020000006100",
            "00017e000000490200000000",
            "20d76f6fc2ad4f066ee4dded7623bdbea58e2ad0fa0ed113f143251600a3f2cfbc",
            "81",
            "002066ed0c45c5def4a1791ec3e3d35d5b665a19383981b962bf5bfa2b5051c867e9",
            "00000001000b038f7800"
        );
        let captured = hex::decode(captured).unwrap();
        let mut session = SaltedSession::from_parts(0x0200_0000, Secret32::new([1; 32]), [0; 32], [2; 32]);
        let command = session.pcr_read(SELECTION, true, &mut SeededRandom::new(1));
        assert_eq!(command.len(), 97);
        assert_eq!(command[..20], captured[..20]);
        assert_eq!(command[52..55], captured[52..55]);
        assert_eq!(command[87..], captured[87..]);
    }

    #[test]
    fn the_command_hmac_covers_code_parameters_nonces_and_attributes() {
        let mut session = SaltedSession::from_parts(0x0200_0000, Secret32::new([1; 32]), [0; 32], [2; 32]);
        let command = session.pcr_read(SELECTION, true, &mut SeededRandom::new(1));
        let covered = hex::decode("0000017e00000001000b038f7800").unwrap();
        let parts: [&[u8]; 4] = [&sha256(&covered), &command[20..52], &[2; 32], &[0x81]];
        assert_eq!(command[55..87], hmac_sha256(&[1; 32], &parts));
    }

    #[test]
    fn two_reads_are_accepted_and_keep_their_nonces_in_step() {
        let (mut tpm, mut session, mut rng) = open();
        let first = PcrSelection::from_mask(0x00_388F);
        let command = session.pcr_read(first, true, &mut rng);
        let answer = tpm.answer(&command, &pcr_parameters(9, first), 0x83);
        // The server forgets everything but the parts between two trips.
        let mut session = SaltedSession::from_parts(
            session.handle(),
            session.key().clone(),
            session.nonce_caller(),
            session.nonce_tpm(),
        );
        let read = session.pcr_read_response(&answer, first).unwrap();
        assert_eq!((read.update_counter, read.values.len()), (9, 8));
        let rest = PcrSelection::of(&[4, 5, 6, 14]).unwrap();
        let command = session.pcr_read(rest, false, &mut rng);
        let answer = tpm.answer(&command, &pcr_parameters(9, rest), 0x82);
        let read = session.pcr_read_response(&answer, rest).unwrap();
        assert_eq!(read.values.last(), Some(&(14, [14; 32])));
        // The same answer again is stale.
        assert_eq!(session.pcr_read_response(&answer, rest).map(|r| r.values.len()), Ok(4));
        let _ = session.pcr_read(rest, false, &mut rng);
        assert_eq!(session.pcr_read_response(&answer, rest), Err(TpmError::Hmac));
    }

    #[test]
    fn any_changed_bit_of_a_response_is_refused() {
        let (mut tpm, mut session, mut rng) = open();
        let selection = PcrSelection::of(&[7]).unwrap();
        let command = session.pcr_read(selection, true, &mut rng);
        let answer = tpm.answer(&command, &pcr_parameters(9, selection), 0x83);
        for bit in 0..answer.len() * 8 {
            let mut changed = answer.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(session.pcr_read_response(&changed, selection).is_err(), "bit {bit}");
        }
        assert!(session.pcr_read_response(&answer, selection).is_ok());
    }

    #[test]
    fn a_session_handle_outside_its_range_is_refused() {
        let pending = PendingSession::from_parts(Secret32::new([0; 32]), [0; 32]);
        let mut response = hex::decode("8001000000300000000081010001").unwrap();
        response.push_sized(&[1; 32]);
        assert!(matches!(pending.started(&response), Err(TpmError::Handle(0x8101_0001))));
    }

    #[test]
    fn the_first_parameter_is_encrypted_and_decrypted() {
        let key = [3; 16];
        let mut data = *b"a root key of thirty-two bytes !";
        encrypt_cfb(&key, [4; 16], &mut data).unwrap();
        assert_ne!(&data, b"a root key of thirty-two bytes !");
        decrypt_cfb(&key, [4; 16], &mut data).unwrap();
        assert_eq!(&data, b"a root key of thirty-two bytes !");
        // NIST SP 800-38A F.3.13, CFB128-AES128, first block.
        let hex16 = |t: &str| -> [u8; 16] { hex::decode(t).unwrap().try_into().unwrap() };
        let mut block = hex16("6bc1bee22e409f96e93d7e117393172a");
        let iv = hex16("000102030405060708090a0b0c0d0e0f");
        encrypt_cfb(&hex16("2b7e151628aed2a6abf7158809cf4f3c"), iv, &mut block).unwrap();
        assert_eq!(block, hex16("3b3fd92eb72dad20333449f8e83cfb4a"));
    }
}
