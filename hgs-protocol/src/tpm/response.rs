//! Responses (TPM Library part 3), as their parameters: strict in length, never trusted for more
//! than the session that carried them proves.

use zeroize::Zeroizing;

use super::{
    MAX_MESSAGE, PcrSelection, Reader, ResponseCode, Sized16, TAG_NO_SESSIONS, TAG_SESSIONS, TpmError, public::Public,
    session::CONTINUE_SESSION,
};
use crate::crypto::sha256;

/// A response whose header fits and whose code is success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response<'a> {
    /// The returned handle, for commands that return one.
    pub handle: Option<u32>,
    /// The parameters.
    pub parameters: &'a [u8],
    /// The authorisation area; empty without sessions.
    pub(super) authorization: &'a [u8],
}

/// PCR values with the counter that tells whether any PCR changed in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PcrRead {
    /// pcrUpdateCounter.
    pub update_counter: u32,
    /// Index and value, ascending.
    pub values: Vec<(u8, [u8; 32])>,
}

/// The two halves of an object that TPM2_Create made, each a whole TPM2B.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    /// TPM2B_PRIVATE: encrypted under the parent.
    pub private: Vec<u8>,
    /// TPM2B_PUBLIC.
    pub public: Vec<u8>,
}

/// The response code of a response of any kind; the size must be that of the message.
pub fn code(response: &[u8]) -> Result<ResponseCode, TpmError> {
    Ok(split(response)?.1)
}

impl<'a> Response<'a> {
    /// Checks the header and splits a successful response without returned handle.
    /// A refusal of the TPM is [`TpmError::Refused`].
    pub fn parse(response: &'a [u8]) -> Result<Response<'a>, TpmError> {
        Response::split_body(response, false)
    }

    /// As [`Response::parse`], for commands that return a handle (CreatePrimary, Load,
    /// StartAuthSession).
    pub fn parse_with_handle(response: &'a [u8]) -> Result<Response<'a>, TpmError> {
        Response::split_body(response, true)
    }

    fn split_body(response: &'a [u8], has_handle: bool) -> Result<Response<'a>, TpmError> {
        let (tag, code, mut reader) = split(response)?;
        if code != ResponseCode::SUCCESS {
            return Err(TpmError::Refused(code));
        }
        let handle = if has_handle { Some(reader.u32()?) } else { None };
        let (parameters, authorization): (&[u8], &[u8]) = if tag == TAG_SESSIONS {
            let length = usize::try_from(reader.u32()?).map_err(|_| TpmError::Truncated)?;
            (reader.take(length)?, reader.0)
        } else {
            (reader.0, &[])
        };
        Ok(Response {
            handle,
            parameters,
            authorization,
        })
    }

    /// For each session of the command, in its order, whether the TPM keeps it (continueSession); none without sessions.
    pub fn sessions_kept(&self) -> Result<Vec<bool>, TpmError> {
        let mut area = Reader(self.authorization);
        let mut kept = Vec::new();
        while !area.0.is_empty() {
            area.sized()?; // nonceTPM
            kept.push(area.u8()? & CONTINUE_SESSION != 0);
            area.sized()?; // acknowledgment
        }
        Ok(kept)
    }

    /// The returned handle.
    pub fn returned_handle(&self) -> Result<u32, TpmError> {
        self.handle.ok_or(TpmError::Truncated)
    }
}

/// Parameters of TPM2_PCR_Read; the PCRs must be exactly `wanted`.
pub fn pcr_read(parameters: &[u8], wanted: PcrSelection) -> Result<PcrRead, TpmError> {
    let mut reader = Reader(parameters);
    let update_counter = reader.u32()?;
    if PcrSelection::read(&mut reader)? != wanted {
        return Err(TpmError::Selection);
    }
    if usize::try_from(reader.u32()?) != Ok(wanted.len()) {
        return Err(TpmError::Selection);
    }
    let mut values = Vec::with_capacity(wanted.len());
    for index in wanted.indices() {
        let value = reader.sized()?.try_into().map_err(|_| TpmError::Selection)?;
        values.push((index, value));
    }
    reader.finish()?;
    Ok(PcrRead { update_counter, values })
}

/// Parameters of TPM2_ReadPublic: the public area; name and qualified name are recomputed or
/// dropped.
pub fn read_public(parameters: &[u8]) -> Result<Public, TpmError> {
    let mut reader = Reader(parameters);
    let public = Public::parse(reader.sized()?)?;
    let name = reader.sized()?;
    reader.sized()?;
    reader.finish()?;
    if public.name()? != name {
        return Err(TpmError::Value("a name that is not the public area's"));
    }
    Ok(public)
}

/// Parameters of TPM2_Create.
pub fn create(parameters: &[u8]) -> Result<Created, TpmError> {
    let mut reader = Reader(parameters);
    let mut created = Created {
        private: Vec::new(),
        public: Vec::new(),
    };
    created.private.push_sized(reader.sized()?);
    created.public.push_sized(reader.sized()?);
    reader.sized()?; // creation data
    reader.sized()?; // creation hash
    reader.take(6)?; // ticket: tag, hierarchy
    reader.sized()?; // ticket: digest
    reader.finish()?;
    Ok(created)
}

/// Parameters of TPM2_Load: the object's name.
pub fn load(parameters: &[u8]) -> Result<Vec<u8>, TpmError> {
    one_sized(parameters).map(<[u8]>::to_vec)
}

/// Parameters of TPM2_Unseal: the data.
pub fn unseal(parameters: &[u8]) -> Result<Zeroizing<Vec<u8>>, TpmError> {
    one_sized(parameters).map(|data| Zeroizing::new(data.to_vec()))
}

/// Parameters of TPM2_GetRandom.
pub fn get_random(parameters: &[u8]) -> Result<Vec<u8>, TpmError> {
    one_sized(parameters).map(<[u8]>::to_vec)
}

/// Parameters of TPM2_NV_Read of a counter.
pub fn nv_read_counter(parameters: &[u8]) -> Result<u64, TpmError> {
    let data = one_sized(parameters)?;
    let bytes = data
        .try_into()
        .map_err(|_| TpmError::Value("a counter of another size"))?;
    Ok(u64::from_be_bytes(bytes))
}

/// The policy digest after TPM2_PolicyPCR in a fresh policy session, when the PCRs of `selection`
/// have `values` (ascending): what an object's policy is made of.
pub fn policy_pcr_digest(selection: PcrSelection, values: &[[u8; 32]]) -> [u8; 32] {
    let mut input = vec![0; 32];
    input.extend(super::command::CommandCode::POLICY_PCR.0.to_be_bytes());
    input.extend(selection.encode());
    input.extend(sha256(&values.concat()));
    sha256(&input)
}

fn one_sized(parameters: &[u8]) -> Result<&[u8], TpmError> {
    let mut reader = Reader(parameters);
    let data = reader.sized()?;
    reader.finish()?;
    Ok(data)
}

fn split(response: &[u8]) -> Result<(u16, ResponseCode, Reader<'_>), TpmError> {
    let mut reader = Reader(response);
    let tag = reader.u16()?;
    let size = reader.u32()?;
    let code = ResponseCode(reader.u32()?);
    let fits = usize::try_from(size) == Ok(response.len()) && response.len() <= MAX_MESSAGE;
    // A refusal has no body and no sessions.
    let tagged = match code {
        ResponseCode::SUCCESS => tag == TAG_SESSIONS || tag == TAG_NO_SESSIONS,
        _ => tag == TAG_NO_SESSIONS && reader.0.is_empty(),
    };
    if !fits || !tagged {
        return Err(TpmError::Header);
    }
    Ok((tag, code, reader))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_keeps_its_code() {
        let bytes = hex::decode("80010000000a00000922").unwrap();
        assert_eq!(code(&bytes), Ok(ResponseCode::RETRY));
        assert_eq!(Response::parse(&bytes), Err(TpmError::Refused(ResponseCode::RETRY)));
        assert_eq!(Response::parse(&bytes[..9]), Err(TpmError::Truncated));
    }

    #[test]
    fn a_session_is_kept_if_its_answer_says_so() {
        // No parameters; two sessions without nonce and acknowledgment, the second of which has ended.
        let mut bytes = hex::decode("80020000001800000000").unwrap();
        bytes.extend([0, 0, 0, 0]);
        bytes.extend([0, 0, 0x81, 0, 0]);
        bytes.extend([0, 0, 0x80, 0, 0]);
        let response = Response::parse(&bytes).unwrap();
        assert_eq!(response.sessions_kept(), Ok(vec![true, false]));
        let plain = hex::decode("80010000000a00000000").unwrap();
        assert_eq!(Response::parse(&plain).unwrap().sessions_kept(), Ok(Vec::new()));
    }

    #[test]
    fn other_pcrs_than_asked_for_are_refused() {
        let wanted = PcrSelection::of(&[0, 7]).unwrap();
        let mut parameters = 5u32.to_be_bytes().to_vec();
        parameters.extend(wanted.encode());
        parameters.extend(2u32.to_be_bytes());
        parameters.push_sized(&[1; 32]);
        parameters.push_sized(&[2; 32]);
        let read = pcr_read(&parameters, wanted).unwrap();
        assert_eq!(read.values, [(0, [1; 32]), (7, [2; 32])]);
        assert_eq!(
            pcr_read(&parameters, PcrSelection::of(&[0, 4]).unwrap()),
            Err(TpmError::Selection)
        );
        for length in 0..parameters.len() {
            assert!(pcr_read(&parameters[..length], wanted).is_err());
        }
    }

    proptest::proptest! {
        #[test]
        fn hostile_responses_are_refused_without_harm(bytes: Vec<u8>, mask: u32) {
            let _ = Response::parse(&bytes).and_then(|response| response.sessions_kept());
            let _ = Response::parse_with_handle(&bytes);
            let _ = pcr_read(&bytes, PcrSelection::from_mask(mask));
            let _ = read_public(&bytes);
            let _ = create(&bytes);
            let _ = unseal(&bytes);
            let _ = Public::parse_sized(&bytes);
        }
    }
}
