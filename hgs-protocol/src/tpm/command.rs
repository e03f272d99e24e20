//! Commands (TPM Library part 3): what a simulated machine, its VBS store and a server ask of a TPM.
//!
//! A function here gives a [`Call`]; how it is authorised is chosen by whoever encodes it: not at
//! all, by a password, or by a [`super::session::SaltedSession`].

use std::fmt;

use zeroize::Zeroizing;

use super::{
    ALG_AES, ALG_CFB, ALG_NULL, ALG_SHA256, MAX_MESSAGE, PcrSelection, RH_ENDORSEMENT, RH_NULL, RH_OWNER, RH_PLATFORM,
    Reader, Sized16, TAG_NO_SESSIONS, TAG_SESSIONS, TpmError, public,
};

/// TPM_CC: the number of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CommandCode(pub u32);

impl CommandCode {
    /// TPM2_EvictControl.
    pub const EVICT_CONTROL: CommandCode = CommandCode(0x120);
    /// TPM2_HierarchyControl.
    pub const HIERARCHY_CONTROL: CommandCode = CommandCode(0x121);
    /// TPM2_Clear.
    pub const CLEAR: CommandCode = CommandCode(0x126);
    /// TPM2_NV_UndefineSpace.
    pub const NV_UNDEFINE_SPACE: CommandCode = CommandCode(0x122);
    /// TPM2_NV_DefineSpace.
    pub const NV_DEFINE_SPACE: CommandCode = CommandCode(0x12A);
    /// TPM2_CreatePrimary.
    pub const CREATE_PRIMARY: CommandCode = CommandCode(0x131);
    /// TPM2_NV_Increment.
    pub const NV_INCREMENT: CommandCode = CommandCode(0x134);
    /// TPM2_SelfTest.
    pub const SELF_TEST: CommandCode = CommandCode(0x143);
    /// TPM2_Startup.
    pub const STARTUP: CommandCode = CommandCode(0x144);
    /// TPM2_Shutdown.
    pub const SHUTDOWN: CommandCode = CommandCode(0x145);
    /// TPM2_NV_Read.
    pub const NV_READ: CommandCode = CommandCode(0x14E);
    /// TPM2_Create.
    pub const CREATE: CommandCode = CommandCode(0x153);
    /// TPM2_Load.
    pub const LOAD: CommandCode = CommandCode(0x157);
    /// TPM2_Unseal.
    pub const UNSEAL: CommandCode = CommandCode(0x15E);
    /// TPM2_FlushContext.
    pub const FLUSH_CONTEXT: CommandCode = CommandCode(0x165);
    /// TPM2_NV_ReadPublic.
    pub const NV_READ_PUBLIC: CommandCode = CommandCode(0x169);
    /// TPM2_PolicyAuthValue.
    pub const POLICY_AUTH_VALUE: CommandCode = CommandCode(0x16B);
    /// TPM2_ReadPublic.
    pub const READ_PUBLIC: CommandCode = CommandCode(0x173);
    /// TPM2_StartAuthSession.
    pub const START_AUTH_SESSION: CommandCode = CommandCode(0x176);
    /// TPM2_GetRandom.
    pub const GET_RANDOM: CommandCode = CommandCode(0x17B);
    /// TPM2_PCR_Read.
    pub const PCR_READ: CommandCode = CommandCode(0x17E);
    /// TPM2_PolicyPCR.
    pub const POLICY_PCR: CommandCode = CommandCode(0x17F);
    /// TPM2_PCR_Extend.
    pub const PCR_EXTEND: CommandCode = CommandCode(0x182);

    /// How many handles follow the header; `None` for a command that is not known here.
    pub fn handles(self) -> Option<usize> {
        match self {
            Self::STARTUP | Self::SHUTDOWN | Self::SELF_TEST | Self::GET_RANDOM | Self::PCR_READ => Some(0),
            // The handle of FlushContext is a parameter on the wire, though never authorised.
            Self::FLUSH_CONTEXT => Some(0),
            Self::HIERARCHY_CONTROL
            | Self::CLEAR
            | Self::NV_DEFINE_SPACE
            | Self::CREATE_PRIMARY
            | Self::CREATE
            | Self::LOAD
            | Self::UNSEAL
            | Self::NV_READ_PUBLIC
            | Self::POLICY_AUTH_VALUE
            | Self::READ_PUBLIC
            | Self::POLICY_PCR
            | Self::PCR_EXTEND => Some(1),
            Self::EVICT_CONTROL
            | Self::NV_UNDEFINE_SPACE
            | Self::NV_INCREMENT
            | Self::NV_READ
            | Self::START_AUTH_SESSION => Some(2),
            _ => None,
        }
    }
}

/// A command before it is authorised: code, handles with the names that a session's HMAC covers,
/// and parameters. The parameters may hold a secret: they are wiped, and `Debug` leaves them out.
#[derive(Clone, PartialEq, Eq)]
pub struct Call {
    pub(super) code: CommandCode,
    pub(super) handles: Vec<(u32, Vec<u8>)>,
    pub(super) parameters: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("code", &self.code)
            .field("handles", &self.handles)
            .finish_non_exhaustive()
    }
}

impl Call {
    /// The command's code.
    pub fn code(&self) -> CommandCode {
        self.code
    }

    /// The whole command, without authorisation.
    pub fn encode(&self) -> Vec<u8> {
        self.encode_with(TAG_NO_SESSIONS, &[], &self.parameters)
    }

    /// The whole command, its first handle authorised by `password` (empty for an empty
    /// authorisation value).
    pub fn encode_with_password(&self, password: &[u8]) -> Vec<u8> {
        const RS_PW: u32 = 0x4000_0009;
        let mut area = RS_PW.to_be_bytes().to_vec();
        area.push_sized(&[]);
        area.push(1); // continueSession, the only attribute a password may have
        area.push_sized(password);
        self.encode_with(TAG_SESSIONS, &area, &self.parameters)
    }

    pub(super) fn encode_with(&self, tag: u16, area: &[u8], parameters: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        for (handle, _) in &self.handles {
            body.extend(handle.to_be_bytes());
        }
        if tag == TAG_SESSIONS {
            body.extend(length32(area.len()).to_be_bytes());
            body.extend_from_slice(area);
        }
        body.extend_from_slice(parameters);
        let mut out = tag.to_be_bytes().to_vec();
        out.extend(length32(body.len() + 10).to_be_bytes());
        out.extend(self.code.0.to_be_bytes());
        out.extend(body);
        out
    }
}

/// What a command asks, as far as a relay must know before it passes it on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandHeader {
    /// The command.
    pub code: CommandCode,
    /// The handles after the header; for a command not known here, empty.
    pub handles: Vec<u32>,
    /// Handles of the sessions in the authorisation area.
    pub sessions: Vec<u32>,
}

impl CommandHeader {
    /// Reads header, handles and sessions of a whole command of at most [`MAX_MESSAGE`] bytes.
    /// The parameters are left to the TPM.
    pub fn parse(command: &[u8]) -> Result<CommandHeader, TpmError> {
        let mut reader = Reader(command);
        let tag = reader.u16()?;
        let size = reader.u32()?;
        let code = CommandCode(reader.u32()?);
        let fits = usize::try_from(size) == Ok(command.len()) && command.len() <= MAX_MESSAGE;
        if !fits || (tag != TAG_SESSIONS && tag != TAG_NO_SESSIONS) {
            return Err(TpmError::Header);
        }
        let Some(count) = code.handles() else {
            return Ok(CommandHeader {
                code,
                handles: Vec::new(),
                sessions: Vec::new(),
            });
        };
        let handles = (0..count).map(|_| reader.u32()).collect::<Result<_, _>>()?;
        let mut sessions = Vec::new();
        if tag == TAG_SESSIONS {
            let length = usize::try_from(reader.u32()?).map_err(|_| TpmError::Truncated)?;
            let mut area = Reader(reader.take(length)?);
            while !area.0.is_empty() {
                sessions.push(area.u32()?);
                area.sized()?;
                area.u8()?;
                area.sized()?;
            }
            if sessions.is_empty() || sessions.len() > 3 {
                return Err(TpmError::Value("a count of sessions"));
            }
        }
        Ok(CommandHeader {
            code,
            handles,
            sessions,
        })
    }
}

/// TPM2_Startup(CLEAR): PCRs start from their reset values.
pub fn startup_clear() -> Call {
    call(CommandCode::STARTUP, &[], &[0, 0])
}

/// TPM2_Shutdown(CLEAR): the TPM is about to lose power.
pub fn shutdown_clear() -> Call {
    call(CommandCode::SHUTDOWN, &[], &[0, 0])
}

/// TPM2_Startup(STATE): PCRs go on from what TPM2_Shutdown(STATE) saved.
pub fn startup_state() -> Call {
    call(CommandCode::STARTUP, &[], &[0, 1])
}

/// TPM2_Shutdown(STATE): saves what TPM2_Startup(STATE) restores.
pub fn shutdown_state() -> Call {
    call(CommandCode::SHUTDOWN, &[], &[0, 1])
}

/// TPM2_GetRandom.
pub fn get_random(count: u16) -> Call {
    call(CommandCode::GET_RANDOM, &[], &count.to_be_bytes())
}

/// TPM2_PCR_Extend with a digest of the SHA-256 bank. Authorised by an empty password.
pub fn pcr_extend(pcr: u8, digest: &[u8; 32]) -> Call {
    let mut parameters = 1u32.to_be_bytes().to_vec();
    parameters.extend(ALG_SHA256.to_be_bytes());
    parameters.extend_from_slice(digest);
    call(CommandCode::PCR_EXTEND, &[u32::from(pcr)], &parameters)
}

/// TPM2_PCR_Read. A TPM answers at most eight PCRs at once.
pub fn pcr_read(selection: PcrSelection) -> Call {
    call(CommandCode::PCR_READ, &[], &selection.encode())
}

/// TPM2_ReadPublic.
pub fn read_public(object: u32) -> Call {
    call(CommandCode::READ_PUBLIC, &[object], &[])
}

/// TPM2_CreatePrimary of a storage key under the owner hierarchy. Authorised by an empty password.
pub fn create_primary_storage_key() -> Call {
    create_primary(RH_OWNER, &public::storage_key_template())
}

/// TPM2_CreatePrimary of the RSA endorsement key: a TPM always makes the same one. Authorised by an empty password.
pub fn create_primary_endorsement_key() -> Call {
    create_primary(RH_ENDORSEMENT, &public::endorsement_key_template())
}

/// TPM2_CreatePrimary under `hierarchy` of an object without authorisation value. `template` is a TPM2B_PUBLIC.
pub fn create_primary(hierarchy: u32, template: &[u8]) -> Call {
    let mut parameters = Vec::new();
    parameters.push_sized(&[0, 0, 0, 0]); // no authorisation value, no data
    parameters.extend_from_slice(template);
    parameters.push_sized(&[]); // outside information
    parameters.extend(0u32.to_be_bytes()); // creation PCRs
    call(CommandCode::CREATE_PRIMARY, &[hierarchy], &parameters)
}

/// TPM2_Clear by `hierarchy` (lockout or platform): what the owner has made is gone for good, the endorsement key
/// can be made again. Authorised by an empty password.
pub fn clear(hierarchy: u32) -> Call {
    call(CommandCode::CLEAR, &[hierarchy], &[])
}

/// TPM2_HierarchyControl: the platform hierarchy is off until the next TPM2_Startup(CLEAR), as firmware leaves it to an
/// operating system. Authorised by an empty password.
pub fn disable_platform_hierarchy() -> Call {
    let parameters = [RH_PLATFORM.to_be_bytes().as_slice(), &[0]].concat();
    call(CommandCode::HIERARCHY_CONTROL, &[RH_PLATFORM], &parameters)
}

/// TPM2_Create of sealed `data` under `parent`, to be opened by `policy` only. The data is the
/// first parameter: send it under a session that encrypts.
pub fn create_sealed(parent: u32, parent_name: &[u8], data: &[u8], policy: &[u8; 32]) -> Call {
    // Room for all of it at once: a vector that grows leaves copies behind.
    let mut sensitive = Zeroizing::new(Vec::with_capacity(data.len() + 4));
    sensitive.push_sized(&[]);
    sensitive.push_sized(data);
    let mut parameters = Zeroizing::new(Vec::with_capacity(sensitive.len() + 256));
    parameters.push_sized(&sensitive);
    parameters.extend(public::sealed_data_template(policy));
    parameters.push_sized(&[]);
    parameters.extend(0u32.to_be_bytes());
    Call {
        code: CommandCode::CREATE,
        handles: vec![(parent, parent_name.to_vec())],
        parameters,
    }
}

/// TPM2_Load of a pair that TPM2_Create returned, both as TPM2B.
pub fn load(parent: u32, private: &[u8], public: &[u8]) -> Call {
    call(CommandCode::LOAD, &[parent], &[private, public].concat())
}

/// TPM2_Unseal. `name` is the loaded object's.
pub fn unseal(object: u32, name: &[u8]) -> Call {
    Call {
        code: CommandCode::UNSEAL,
        handles: vec![(object, name.to_vec())],
        parameters: Zeroizing::default(),
    }
}

/// TPM2_FlushContext of a session or transient object.
pub fn flush_context(handle: u32) -> Call {
    call(CommandCode::FLUSH_CONTEXT, &[], &handle.to_be_bytes())
}

/// TPM2_PolicyPCR: the policy session now demands the PCRs' present values.
pub fn policy_pcr(session: u32, selection: PcrSelection) -> Call {
    let mut parameters = Vec::new();
    parameters.push_sized(&[]);
    parameters.extend(selection.encode());
    call(CommandCode::POLICY_PCR, &[session], &parameters)
}

/// TPM2_EvictControl: makes the transient `object` persistent at `persistent`, or removes it when
/// both are the same. Authorised by the owner's empty password.
pub fn evict_control(object: u32, persistent: u32) -> Call {
    call(
        CommandCode::EVICT_CONTROL,
        &[RH_OWNER, object],
        &persistent.to_be_bytes(),
    )
}

/// TPM2_NV_DefineSpace of a counter that only `auth` may read and increment. The authorisation
/// value is the first parameter: send it under a session that encrypts.
pub fn nv_define_counter(index: u32, auth: &[u8]) -> Call {
    let mut parameters = Zeroizing::new(Vec::with_capacity(auth.len() + 256));
    parameters.push_sized(auth);
    parameters.push_sized(&counter_public(index, false));
    Call {
        code: CommandCode::NV_DEFINE_SPACE,
        handles: vec![(RH_OWNER, RH_OWNER.to_be_bytes().to_vec())],
        parameters,
    }
}

/// TPM2_NV_UndefineSpace. Authorised by the owner's empty password.
pub fn nv_undefine(index: u32) -> Call {
    call(CommandCode::NV_UNDEFINE_SPACE, &[RH_OWNER, index], &[])
}

/// TPM2_NV_Increment of a counter of [`nv_define_counter`]; `written` says whether it was
/// incremented before, which is part of its name.
pub fn nv_increment(index: u32, written: bool) -> Call {
    let name = public::name_of(&counter_public(index, written));
    Call {
        code: CommandCode::NV_INCREMENT,
        handles: vec![(index, name.clone()), (index, name)],
        parameters: Zeroizing::default(),
    }
}

/// TPM2_NV_Read of the 8 bytes of a counter of [`nv_define_counter`].
pub fn nv_read_counter(index: u32) -> Call {
    let name = public::name_of(&counter_public(index, true));
    Call {
        code: CommandCode::NV_READ,
        handles: vec![(index, name.clone()), (index, name)],
        parameters: vec![0, 8, 0, 0].into(),
    }
}

/// Which kind of session TPM2_StartAuthSession opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionKind {
    /// HMAC session that authenticates, without encryption of parameters.
    Audit,
    /// HMAC session that can also encrypt the first parameter (AES-128-CFB).
    Encrypting,
    /// Policy session that can also encrypt the first parameter (AES-128-CFB).
    Policy,
}

/// TPM2_StartAuthSession, salted to `tpm_key`, unbound, SHA-256.
pub fn start_auth_session(kind: SessionKind, tpm_key: u32, nonce_caller: &[u8; 32], encrypted_salt: &[u8]) -> Call {
    let mut parameters = Vec::new();
    parameters.push_sized(nonce_caller);
    parameters.push_sized(encrypted_salt);
    parameters.push(match kind {
        SessionKind::Audit | SessionKind::Encrypting => 0,
        SessionKind::Policy => 1,
    });
    match kind {
        SessionKind::Audit => parameters.extend(ALG_NULL.to_be_bytes()),
        SessionKind::Encrypting | SessionKind::Policy => {
            for field in [ALG_AES, 128, ALG_CFB] {
                parameters.extend(field.to_be_bytes());
            }
        }
    }
    parameters.extend(ALG_SHA256.to_be_bytes());
    call(CommandCode::START_AUTH_SESSION, &[tpm_key, RH_NULL], &parameters)
}

/// TPMS_NV_PUBLIC of a store's counter.
fn counter_public(index: u32, written: bool) -> Vec<u8> {
    const AUTHWRITE: u32 = 1 << 2;
    const COUNTER: u32 = 1 << 4;
    const AUTHREAD: u32 = 1 << 18;
    const NO_DA: u32 = 1 << 25;
    const WRITTEN: u32 = 1 << 29;
    let mut attributes = AUTHWRITE | COUNTER | AUTHREAD | NO_DA;
    if written {
        attributes |= WRITTEN;
    }
    let mut out = index.to_be_bytes().to_vec();
    out.extend(ALG_SHA256.to_be_bytes());
    out.extend(attributes.to_be_bytes());
    out.push_sized(&[]);
    out.extend(8u16.to_be_bytes());
    out
}

/// A call whose handles are named by themselves (PCRs, sessions, hierarchies) or never covered by
/// an HMAC here.
fn call(code: CommandCode, handles: &[u32], parameters: &[u8]) -> Call {
    Call {
        code,
        handles: handles.iter().map(|h| (*h, h.to_be_bytes().to_vec())).collect(),
        parameters: parameters.to_vec().into(),
    }
}

fn length32(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_public_has_the_bytes_of_the_worked_example() {
        assert_eq!(
            hex::encode(read_public(super::super::EK_HANDLE).encode()),
            "80010000000e0000017381010001"
        );
    }

    #[test]
    fn a_relay_reads_code_handles_and_sessions() {
        let header = CommandHeader::parse(&pcr_extend(4, &[1; 32]).encode_with_password(&[])).unwrap();
        assert_eq!(header.code, CommandCode::PCR_EXTEND);
        assert_eq!((header.handles, header.sessions), (vec![4], vec![0x4000_0009]));
        let header = CommandHeader::parse(&evict_control(0x8000_0000, 0x8100_0001).encode()).unwrap();
        assert_eq!(header.handles, [RH_OWNER, 0x8000_0000]);
    }

    #[test]
    fn a_command_of_another_size_than_announced_is_refused() {
        let good = pcr_extend(4, &[1; 32]).encode_with_password(&[]);
        for length in 0..good.len() {
            assert!(CommandHeader::parse(&good[..length]).is_err());
        }
        let mut longer = good;
        longer.push(0);
        assert_eq!(CommandHeader::parse(&longer), Err(TpmError::Header));
    }

    proptest::proptest! {
        #[test]
        fn a_relay_reads_back_what_was_written(handle: u32, name: Vec<u8>, data in proptest::collection::vec(0u8.., 0..128)) {
            let sealed = create_sealed(handle, &name, &data, &[0; 32]);
            let plain = CommandHeader::parse(&sealed.encode()).unwrap();
            assert_eq!(plain.handles, [handle]);
            assert!(plain.sessions.is_empty());
            let header = CommandHeader::parse(&sealed.encode_with_password(&data)).unwrap();
            assert_eq!((header.code, header.handles), (CommandCode::CREATE, vec![handle]));
            assert_eq!(header.sessions, [0x4000_0009]);
        }

        #[test]
        fn hostile_commands_are_refused_without_harm(bytes: Vec<u8>, area: u32, code in 0x11F_u32..0x190) {
            let _ = CommandHeader::parse(&bytes);
            let mut framed = TAG_SESSIONS.to_be_bytes().to_vec();
            framed.extend(length32(bytes.len() + 14).to_be_bytes());
            framed.extend(code.to_be_bytes());
            framed.extend(area.to_be_bytes());
            framed.extend(&bytes);
            let _ = CommandHeader::parse(&framed);
        }
    }
}
