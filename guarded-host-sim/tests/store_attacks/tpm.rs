//! TPM commands of the agent's own: it may send any, and it is even given the file with the sealed root key, which its
//! user cannot read.

use std::{fs, path::Path};

use guarded_host_sim::{store::SEALING_PCRS, tpm_channel::TpmChannel};
use hgs_protocol::{
    crypto::sha256,
    env::OsRandom,
    tpm::{
        EK_HANDLE, RH_LOCKOUT, RH_NULL, RH_OWNER, RH_PLATFORM, ResponseCode, SRK_HANDLE,
        command::{self, SessionKind},
        public::Public,
        response::{self, Response},
        session::{CONTINUE_SESSION, SaltedSession},
    },
    wire::{
        boot_log::{Bank, BootLog, Event},
        sipa::{id, measured_leaves},
    },
};

use crate::{hands::Hands, report::Report};

const COUNTER: u32 = 0x0150_0001;

/// A whole command: code, handles, an empty password for the first of them if `authorised`, parameters.
fn raw(code: u32, handles: &[u32], authorised: bool, parameters: &[u8]) -> Vec<u8> {
    let mut body: Vec<u8> = handles.iter().flat_map(|handle| handle.to_be_bytes()).collect();
    if authorised {
        body.extend(9u32.to_be_bytes());
        body.extend([0x40, 0, 0, 9, 0, 0, 1, 0, 0]);
    }
    body.extend_from_slice(parameters);
    let mut command = (if authorised { 0x8002u16 } else { 0x8001 }).to_be_bytes().to_vec();
    command.extend(u32::try_from(body.len() + 10).unwrap().to_be_bytes());
    command.extend(code.to_be_bytes());
    command.extend(body);
    command
}

fn said(result: &Result<Vec<u8>, ResponseCode>) -> String {
    match result {
        Ok(_) => "done".to_owned(),
        Err(code) => format!("TPM_RC_{}", code.name()),
    }
}

/// The sealed root key of a store, loaded by the agent.
struct Root {
    object: u32,
    name: Vec<u8>,
}

/// Private and public part of the sealed root key in a store's folder, each as TPM2B.
pub(crate) fn sealed_root(store: &Path) -> (Vec<u8>, Vec<u8>) {
    let sealed = fs::read(store.join("root.sealed")).unwrap();
    let end = |at: usize| at + 2 + usize::from(u16::from_be_bytes([sealed[at], sealed[at + 1]]));
    (sealed[..end(0)].to_vec(), sealed[end(0)..end(end(0))].to_vec())
}

fn load(hands: &mut Hands, (private, public): &(Vec<u8>, Vec<u8>)) -> Result<Root, ResponseCode> {
    let answer = hands.command(command::load(SRK_HANDLE, private, public).encode_with_password(&[]))?;
    let loaded = Response::parse_with_handle(&answer).unwrap();
    Ok(Root {
        object: loaded.returned_handle().unwrap(),
        name: response::load(loaded.parameters).unwrap(),
    })
}

/// A policy session of the agent's, salted to the EK as the store's own.
fn policy_session(hands: &mut Hands) -> SaltedSession {
    let answer = hands.command(command::read_public(EK_HANDLE).encode()).unwrap();
    let ek: Public = response::read_public(Response::parse(&answer).unwrap().parameters).unwrap();
    let rng = &mut OsRandom;
    let (start, pending) = SaltedSession::start_as(SessionKind::Policy, EK_HANDLE, ek.rsa_key().unwrap(), rng).unwrap();
    pending.started(&hands.command(start).unwrap()).unwrap()
}

fn unseal_in(hands: &mut Hands, root: &Root, session: &mut SaltedSession) -> Result<Vec<u8>, ResponseCode> {
    let call = command::unseal(root.object, &root.name);
    let command = session.command(&call, &[], CONTINUE_SESSION, &mut OsRandom).unwrap();
    hands.command(command)
}

/// TPM2_PolicyPCR over the present values, then TPM2_Unseal.
fn unseal(hands: &mut Hands, root: &Root) -> Result<Vec<u8>, ResponseCode> {
    let mut session = policy_session(hands);
    let policy = command::policy_pcr(session.handle(), SEALING_PCRS);
    let result = hands
        .command(policy.encode())
        .and_then(|_| unseal_in(hands, root, &mut session));
    hands
        .command(command::flush_context(session.handle()).encode())
        .unwrap();
    result
}

/// What the sealing PCRs were when the store unsealed: before the event with the boot counter.
fn values_at_unsealing(log: &BootLog) -> Vec<[u8; 32]> {
    let counted = |event: &&Event| {
        let leaves = measured_leaves(&event.data).unwrap_or_default();
        event.pcr == 12 && leaves.iter().any(|tag| tag.id == id::BOOTCOUNTER)
    };
    let mut values = [[0; 32]; 24];
    values[0][31] = log.startup_locality().unwrap();
    for event in log
        .events()
        .iter()
        .take_while(|event| !counted(event))
        .filter(|event| event.is_measured())
    {
        let value = &mut values[usize::try_from(event.pcr).unwrap()];
        *value = sha256(&[value.as_slice(), event.digest(Bank::Sha256).unwrap()].concat());
    }
    SEALING_PCRS.indices().map(|pcr| values[usize::from(pcr)]).collect()
}

fn flush(hands: &mut Hands, root: &Root) {
    hands.command(command::flush_context(root.object).encode()).unwrap();
}

/// Attempts of one kind, each a row.
struct Tries<'a> {
    hands: &'a mut Hands,
    report: &'a mut Report,
}

impl Tries<'_> {
    fn row(&mut self, attempt: &str, wanted: &str, result: &Result<Vec<u8>, ResponseCode>) {
        self.report.row(OF, attempt, wanted, said(result), self.hands.take());
    }

    fn command(&mut self, attempt: &str, wanted: &str, command: Vec<u8>) {
        let result = self.hands.command(command);
        self.row(attempt, wanted, &result);
    }

    fn unseal(&mut self, attempt: &str, root: &Root) {
        let result = unseal(self.hands, root);
        self.row(attempt, "TPM_RC_POLICY_FAIL", &result);
    }
}

const OF: &str = "TPM commands of the agent's own (it is given the sealed root key)";

/// Everything that the agent tries after a boot, without lasting harm to its host.
pub(crate) fn after_the_boot(host: &Path, hands: &mut Hands, report: &mut Report) {
    let sealed = sealed_root(&host.join("store"));
    // The boot log says what the PCRs were when the store unsealed.
    let log = BootLog::parse(&fs::read(host.join("agent/boot.log")).unwrap()).unwrap();
    let values = values_at_unsealing(&log);
    let policy = response::policy_pcr_digest(SEALING_PCRS, &values);
    assert_eq!(
        Public::parse_sized(&sealed.1).unwrap().policy(),
        policy,
        "the very values"
    );
    let root = load(hands, &sealed).unwrap();
    hands.take();
    let tries = &mut Tries { hands, report };

    tries.unseal("PolicyPCR over the PCRs of now, Unseal", &root);
    let by_password = command::unseal(root.object, &root.name).encode_with_password(&[]);
    tries.command("Unseal by an empty password", "TPM_RC_AUTH_UNAVAILABLE", by_password);
    let mut session = policy_session(tries.hands);
    let mut parameters = 32u16.to_be_bytes().to_vec();
    parameters.extend(sha256(&values.concat()));
    parameters.extend(SEALING_PCRS.encode());
    let policy = raw(0x17F, &[session.handle()], false, &parameters);
    tries.command(
        "PolicyPCR with the values that the store unsealed at",
        "TPM_RC_VALUE",
        policy,
    );
    let result = unseal_in(tries.hands, &root, &mut session);
    tries.row("Unseal in a session without any policy", "TPM_RC_POLICY_FAIL", &result);
    let end = command::flush_context(session.handle()).encode();
    tries.hands.command(end).unwrap();
    for pcr in [0, 7, 11, 12] {
        let reset = raw(0x13D, &[pcr], true, &[]);
        tries.command(&format!("PCR_Reset of PCR {pcr}"), "TPM_RC_LOCALITY", reset);
    }
    for (attempt, call) in [
        ("Startup(CLEAR)", command::startup_clear()),
        ("Startup(STATE)", command::startup_state()),
    ] {
        tries.command(attempt, "TPM_RC_INITIALIZE", call.encode());
    }
    // TPM2_GetCapability of the loaded objects, the loaded and the saved sessions.
    let left: Vec<String> = [0x8000_0000u32, 0x0200_0000, 0x0300_0000]
        .into_iter()
        .flat_map(|first| {
            let asked = [[0, 0, 0, 1], first.to_be_bytes(), [0, 0, 0, 20]].concat();
            let answer = tries.hands.command(raw(0x17A, &[], false, &asked)).unwrap();
            // After header (10), more data (1), capability (4) and count (4).
            answer[19..].chunks_exact(4).map(hex::encode).collect::<Vec<_>>()
        })
        .collect();
    let own = format!("{:08x}", root.object);
    let got = tries.hands.take();
    tries.report.row(
        OF,
        "objects and sessions of the store's left in the TPM: only its own is there",
        own,
        left.join(" "),
        got,
    );
    store_objects(tries, &root);
    platform(tries);

    // Forty guesses: neither does one hit, nor do they lock anybody out.
    let guesses: Vec<Vec<u8>> = (0..40).map(|_| raw(0x134, &[COUNTER, COUNTER], true, &[])).collect();
    let answers = tries.hands.tpm(&guesses);
    let refused = answers
        .iter()
        .filter(|answer| response::code(answer).unwrap() != ResponseCode::SUCCESS);
    let (said, got) = (format!("{} refused", refused.count()), tries.hands.take());
    tries
        .report
        .row(OF, "forty guesses at the counter's password", "40 refused", said, got);

    // Every measured event again, in order, on top: PCRs only go forward.
    let sealing = |event: &&Event| SEALING_PCRS.mask() & 1 << event.pcr != 0;
    let extends = log.events().iter().filter(sealing).filter_map(|event| {
        let digest = event.digest(Bank::Sha256)?.try_into().ok()?;
        let extend = command::pcr_extend(u8::try_from(event.pcr).unwrap(), digest);
        Some(extend.encode_with_password(&[]))
    });
    let extends: Vec<Vec<u8>> = extends.collect();
    assert!(extends.len() > 20, "{}", extends.len());
    for answer in tries.hands.tpm(&extends) {
        assert_eq!(
            response::code(&answer).unwrap(),
            ResponseCode::SUCCESS,
            "the agent may extend"
        );
    }
    tries.unseal("PCR_Extend by every event of the boot again, Unseal", &root);
    flush(tries.hands, &root);
}

/// The store's counter, its sealed key and the storage key, by their commands.
fn store_objects(tries: &mut Tries<'_>, root: &Root) {
    let counter = |code, parameters: &[u8]| raw(code, &[COUNTER, COUNTER], true, parameters);
    let by_owner = |code, parameters: &[u8]| raw(code, &[RH_OWNER, COUNTER], true, parameters);
    let read = [0, 8, 0, 0];
    let write = [[0, 8].as_slice(), &[0xFF; 8], &[0, 0]].concat();
    let decrypt = [[1, 0].as_slice(), &[5; 256], &[0, 0x10, 0, 0]].concat();
    let cipher = [[1, 0, 0x43, 0, 16].as_slice(), &[0; 16], &[0, 16], &[0; 16]].concat();
    let out_of_the_tpm = [0, 0, 0, 0x10];
    for (attempt, wanted, command) in [
        (
            "NV_Read of the store's counter",
            "TPM_RC_BAD_AUTH",
            counter(0x14E, &read),
        ),
        ("NV_Increment of it", "TPM_RC_BAD_AUTH", counter(0x134, &[])),
        ("NV_Write of it", "TPM_RC_BAD_AUTH", counter(0x137, &write)),
        ("NV_Extend of it", "TPM_RC_BAD_AUTH", counter(0x136, &[0, 1, 1])),
        ("NV_SetBits of it", "TPM_RC_BAD_AUTH", counter(0x135, &[0xFF; 8])),
        (
            "NV_Read of it by the owner",
            "TPM_RC_NV_AUTHORIZATION",
            by_owner(0x14E, &read),
        ),
        (
            "NV_Increment of it by the owner",
            "TPM_RC_NV_AUTHORIZATION",
            by_owner(0x134, &[]),
        ),
        (
            "NV_Write of it by the owner",
            "TPM_RC_NV_AUTHORIZATION",
            by_owner(0x137, &write),
        ),
        (
            "NV_ChangeAuth of it",
            "TPM_RC_AUTH_TYPE",
            raw(0x13B, &[COUNTER], true, &[0, 0]),
        ),
        (
            "Duplicate of the sealed root key",
            "TPM_RC_AUTH_TYPE",
            raw(0x14B, &[root.object, RH_NULL], true, &out_of_the_tpm),
        ),
        (
            "Duplicate of the storage key",
            "TPM_RC_AUTH_TYPE",
            raw(0x14B, &[SRK_HANDLE, RH_NULL], true, &out_of_the_tpm),
        ),
        (
            "RSA_Decrypt by the storage key",
            "TPM_RC_ATTRIBUTES",
            raw(0x159, &[SRK_HANDLE], true, &decrypt),
        ),
        (
            "EncryptDecrypt by the storage key",
            "TPM_RC_KEY",
            raw(0x164, &[SRK_HANDLE], true, &cipher),
        ),
        (
            "ContextSave of a session of the store's",
            "TPM_RC_REFERENCE_H",
            raw(0x162, &[0x0200_0000], false, &[]),
        ),
        // It may be had, and changes nothing: the policy is the only way to the data.
        (
            "ObjectChangeAuth of the sealed root key",
            "done",
            raw(0x150, &[root.object, SRK_HANDLE], true, &[0, 0]),
        ),
    ] {
        tries.command(attempt, wanted, command);
    }
    tries.unseal("and Unseal after ObjectChangeAuth", root);
}

/// What only firmware may do.
fn platform(tries: &mut Tries<'_>) {
    let by_platform = |code, parameters: &[u8]| raw(code, &[RH_PLATFORM], true, parameters);
    let on = [RH_PLATFORM.to_be_bytes().as_slice(), &[1]].concat();
    for (attempt, command) in [
        ("Clear by the platform", by_platform(0x126, &[])),
        ("ChangePPS", by_platform(0x125, &[])),
        ("ChangeEPS", by_platform(0x124, &[])),
        ("HierarchyControl: the platform on again", by_platform(0x121, &on)),
        ("HierarchyChangeAuth of the platform", by_platform(0x129, &[0, 0])),
        (
            "PCR_Allocate without SHA-256",
            by_platform(0x12B, &[0, 0, 0, 1, 0, 0x0B, 3, 0, 0, 0]),
        ),
        (
            "NV_UndefineSpaceSpecial of the counter",
            raw(0x11F, &[COUNTER, RH_PLATFORM], true, &[]),
        ),
    ] {
        tries.command(attempt, "TPM_RC_HIERARCHY", command);
    }
}

/// The same steps in time, before the boot has gone on: what the machine lets its store alone do.
pub(crate) fn unseal_in_time(channel: &mut TpmChannel, store: &Path) -> Vec<u8> {
    let (private, public) = sealed_root(store);
    let answer = channel
        .call_with_empty_password(&command::load(SRK_HANDLE, &private, &public))
        .unwrap();
    let loaded = Response::parse_with_handle(&answer).unwrap();
    let (object, name) = (
        loaded.returned_handle().unwrap(),
        response::load(loaded.parameters).unwrap(),
    );
    let ek = channel.read_public(EK_HANDLE).unwrap();
    let rng = &mut OsRandom;
    let (start, pending) = SaltedSession::start_as(SessionKind::Policy, EK_HANDLE, ek.rsa_key().unwrap(), rng).unwrap();
    let mut session = pending.started(&channel.expect_success(&start).unwrap()).unwrap();
    channel
        .call(&command::policy_pcr(session.handle(), SEALING_PCRS))
        .unwrap();
    let call = command::unseal(object, &name);
    let command = session.command(&call, &[], CONTINUE_SESSION, rng).unwrap();
    let answer = channel.expect_success(&command).unwrap();
    let root = response::unseal(&session.accept(&call, &[], &answer).unwrap())
        .unwrap()
        .to_vec();
    for handle in [session.handle(), object] {
        channel.call(&command::flush_context(handle)).unwrap();
    }
    root
}

/// What the agent does before a restart, so that it outlives the restart.
pub(crate) struct Saved {
    context: Vec<u8>,
    session: SaltedSession,
}

/// A policy session whose context is kept over the restart.
pub(crate) fn save_a_session(hands: &mut Hands) -> Saved {
    let session = policy_session(hands);
    hands
        .command(command::policy_pcr(session.handle(), SEALING_PCRS).encode())
        .unwrap();
    let context = hands.command(raw(0x162, &[session.handle()], false, &[])).unwrap();
    Saved {
        context: context[10..].to_vec(),
        session,
    }
}

/// The last command before a restart: the TPM is to go on from where it is.
pub(crate) fn keep_the_state(hands: &mut Hands) {
    hands.command(command::shutdown_state().encode()).unwrap();
}

pub(crate) fn load_the_session(mut saved: Saved, host: &Path, hands: &mut Hands, report: &mut Report) {
    const OF: &str = "TPM commands over a restart";
    let root = load(hands, &sealed_root(&host.join("store"))).unwrap();
    hands.take();
    // After Shutdown(STATE) even Startup(CLEAR) keeps saved sessions: it comes back, with the policy that it had.
    hands.command(raw(0x161, &[], false, &saved.context)).unwrap();
    let result = unseal_in(hands, &root, &mut saved.session);
    report.row(
        OF,
        "Shutdown(STATE), and Unseal in a policy session saved before the restart",
        "TPM_RC_PCR_CHANGED",
        said(&result),
        hands.take(),
    );
    let flush_session = command::flush_context(saved.session.handle()).encode();
    hands.command(flush_session).unwrap();
    let result = unseal(hands, &root);
    report.row(
        OF,
        "PolicyPCR and Unseal after it",
        "TPM_RC_POLICY_FAIL",
        said(&result),
        hands.take(),
    );
    flush(hands, &root);
}

/// Puts a key of the agent's own, which it may take out of the TPM, to the storage key's handle; removes the EK.
pub(crate) fn replace_keys(hands: &mut Hands) {
    use hgs_protocol::tpm::public::{ObjectAttributes, storage_template};
    let attributes = ObjectAttributes::SENSITIVE_DATA_ORIGIN
        | ObjectAttributes::USER_WITH_AUTH
        | ObjectAttributes::RESTRICTED
        | ObjectAttributes::DECRYPT;
    let create = command::create_primary(RH_OWNER, &storage_template(attributes, &[], &[]));
    let object = hands.handle(create.encode_with_password(&[]));
    for call in [
        command::evict_control(SRK_HANDLE, SRK_HANDLE),
        command::evict_control(object, SRK_HANDLE),
        command::evict_control(EK_HANDLE, EK_HANDLE),
    ] {
        hands.command(call.encode_with_password(&[])).unwrap();
    }
    hands.command(command::flush_context(object).encode()).unwrap();
}

/// Whether the TPM's own keys are at their handles: the names of both.
pub(crate) fn keys(hands: &mut Hands) -> [Vec<u8>; 2] {
    [EK_HANDLE, SRK_HANDLE].map(|handle| hands.command(command::read_public(handle).encode()).unwrap())
}

pub(crate) fn clear(hands: &mut Hands) -> String {
    said(&hands.command(command::clear(RH_LOCKOUT).encode_with_password(&[])))
}
