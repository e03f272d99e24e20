//! The simulated host against a real TPM in software: what the boot log proves, and who can open
//! the VBS store.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use guarded_host_sim::{
    machine::{
        boot::{Boot, STARTUP_LOCALITY},
        dials::Dials,
        provision,
        relay::{Gate, SharedTpm, offer},
    },
    store::{Opened, SEALING_PCRS, StateError, Store},
    swtpm::{Swtpm, SwtpmError, TpmMaker},
    tpm_channel::TpmChannel,
    vm::{
        VmId,
        started::{Opening, StartedError, note_opened, note_started},
        state::Age,
    },
};
use hgs_protocol::{
    crypto::RsaPublicKey,
    env::OsRandom,
    protector::OpenedRelease,
    secret::TransportKey,
    tpm::{
        EK_HANDLE, PcrSelection, RH_LOCKOUT, RH_OWNER, RH_PLATFORM, ResponseCode, SRK_HANDLE, command,
        command::{CommandCode, SessionKind},
        public::{ObjectAttributes, storage_template},
        response::{self, Response},
        session::{CONTINUE_SESSION, SaltedSession},
    },
    wire::{
        boot_log::{Bank, BootLog},
        sipa::{id, measured_leaves},
        vsm,
    },
};

/// A machine without its processes: TPM, relay, and what a boot does.
struct Host {
    dir: tempfile::TempDir,
    tpm: SharedTpm,
    gate: Gate,
}

impl Host {
    fn new(test: &str) -> Option<Host> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = |name: &str| std::env::split_paths(&path).any(|d| d.join(name).exists());
        if !found("swtpm") || !found("swtpm_setup") || !found("setpriv") {
            eprintln!("SKIPPED {test}: swtpm, swtpm_setup or setpriv is not installed");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let maker = TpmMaker::open(&dir.path().join("maker")).unwrap();
        let state = dir.path().join("tpm");
        maker.manufacture("host01", &state, None).unwrap();
        let tpm = SharedTpm::new(Swtpm::start("host01", &state, None).unwrap());
        let gate = Gate::default();
        offer(&dir.path().join("tpm.sock"), tpm.clone(), gate.clone()).unwrap();
        Some(Host { dir, tpm, gate })
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn channel(&self) -> TpmChannel {
        TpmChannel::connect(&self.dir.path().join("tpm.sock"), "host01").unwrap()
    }

    /// Power cycle, the configuration, the store, and the end of the boot.
    fn boot(&self, dials: &Dials) -> Result<(Opened, Vec<u8>), StateError> {
        self.boot_clearing(false, dials)
    }

    /// As [`Host::boot`], with a TPM that firmware clears first if so told.
    fn boot_clearing(&self, clear: bool, dials: &Dials) -> Result<(Opened, Vec<u8>), StateError> {
        self.gate.shut();
        let log = {
            let mut tpm = self.tpm.lock();
            tpm.reset(STARTUP_LOCALITY).unwrap();
            if clear {
                provision::clear(&mut tpm).unwrap();
            }
            provision::provision(&mut tpm).unwrap();
            let mut boot = Boot::begin(tpm.channel());
            boot.measure_configuration(dials).unwrap();
            boot.pause()
        };
        self.gate.open();
        let opened = Store::open(&self.store(), self.channel(), &mut OsRandom)?;
        let secrets = opened.store.secrets();
        let keys = (secrets.encryption.public(), secrets.signing.public());
        let mut tpm = self.tpm.lock();
        let log = Boot::resume(log, tpm.channel()).finish(1, Some(keys)).unwrap();
        drop(tpm);
        Ok((opened, log))
    }
}

fn key_of(opened: &Opened) -> RsaPublicKey {
    opened.store.secrets().encryption.public().clone()
}

fn read_pcrs(channel: &mut TpmChannel, indices: &[u8]) -> Vec<(u8, [u8; 32])> {
    let selection = PcrSelection::of(indices).unwrap();
    let answer = channel.call(&command::pcr_read(selection)).unwrap();
    response::pcr_read(Response::parse(&answer).unwrap().parameters, selection)
        .unwrap()
        .values
}

#[test]
fn the_boot_log_replays_to_the_pcrs_of_the_tpm() {
    let Some(host) = Host::new("the_boot_log_replays_to_the_pcrs_of_the_tpm") else {
        return;
    };
    let (opened, log) = host.boot(&Dials::default()).unwrap();
    let log = BootLog::parse(&log).unwrap();
    let replayed = log.replay(Bank::Sha256);
    let mut channel = host.channel();
    let mut read = read_pcrs(&mut channel, &[0, 1, 2, 3, 4, 5, 6, 7]);
    read.extend(read_pcrs(&mut channel, &[11, 12, 13, 14]));
    for (index, value) in read {
        let of_log = replayed.iter().find(|(i, _)| i.get() == index).unwrap().1;
        assert_eq!(of_log, &value.to_vec(), "PCR {index}");
    }
    let leaves: Vec<_> = log
        .events()
        .iter()
        .filter(|e| e.pcr == 12)
        .flat_map(|e| measured_leaves(&e.data).unwrap_or_default())
        .collect();
    let key = leaves.iter().find(|t| t.id == id::VSM_IDK_INFO).unwrap();
    assert_eq!(vsm::parse_idk_info(&key.data).unwrap(), key_of(&opened));
    let unlocked = leaves.iter().position(|t| t.id == id::VBS_HVCI_POLICY).unwrap();
    let measured = leaves.iter().position(|t| t.id == id::VSM_IDK_INFO).unwrap();
    assert!(unlocked < measured, "the configuration comes before the keys");
}

#[test]
fn the_same_configuration_keeps_the_vsm_keys_and_another_gets_new_ones() {
    let Some(host) = Host::new("the_same_configuration_keeps_the_vsm_keys_and_another_gets_new_ones") else {
        return;
    };
    let healthy = Dials::default();
    let (mut first, _) = host.boot(&healthy).unwrap();
    assert!(first.new_keys);
    let record = zeroize::Zeroizing::new(b"kept".to_vec());
    first
        .store
        .change(
            |records| drop(records.insert("vm".to_owned(), record.clone())),
            &mut OsRandom,
        )
        .unwrap();
    let (second, _) = host.boot(&healthy).unwrap();
    assert!(!second.new_keys);
    assert_eq!(key_of(&second), key_of(&first));
    assert_eq!(second.store.secrets().records.get("vm"), Some(&record));

    let changes: [fn(&mut Dials); 4] = [
        |d| d.secure_boot = false,
        |d| d.hvci = false,
        |d| d.ci_policy = Some(b"another policy".to_vec()),
        |d| d.boot_authority = "Mallory".to_owned(),
    ];
    let mut seen = vec![key_of(&first)];
    for change in changes {
        let mut dials = healthy.clone();
        change(&mut dials);
        let (other, _) = host.boot(&dials).unwrap();
        assert!(other.new_keys && other.remarks.iter().any(|r| r.contains("configuration has changed")));
        assert!(other.store.secrets().records.is_empty());
        assert!(!seen.contains(&key_of(&other)));
        seen.push(key_of(&other));
    }
}

/// The agent, who has the store's files and any TPM command, tries to unseal by itself.
fn agent_unseals(store: &Path, channel: &mut TpmChannel) -> Result<Vec<u8>, ResponseCode> {
    let sealed = fs::read(store.join("root.sealed")).unwrap();
    let end = |at: usize| at + 2 + usize::from(u16::from_be_bytes([sealed[at], sealed[at + 1]]));
    let (private, public) = (end(0), end(end(0)));
    let load = command::load(SRK_HANDLE, &sealed[..private], &sealed[private..public]);
    let loaded = channel.call_with_empty_password(&load).unwrap();
    let loaded = Response::parse_with_handle(&loaded).unwrap();
    let (object, name) = (
        loaded.returned_handle().unwrap(),
        response::load(loaded.parameters).unwrap(),
    );
    let ek = channel.read_public(EK_HANDLE).unwrap();
    let rng = &mut OsRandom;
    let (start, pending) = SaltedSession::start_as(SessionKind::Policy, EK_HANDLE, ek.rsa_key().unwrap(), rng).unwrap();
    let answer = channel.expect_success(&start).unwrap();
    let mut session = pending.started(&answer).unwrap();
    channel
        .call(&command::policy_pcr(session.handle(), SEALING_PCRS))
        .unwrap();
    let call = command::unseal(object, &name);
    let command = session.command(&call, &[], CONTINUE_SESSION, rng).unwrap();
    let result = match channel.expect_success(&command) {
        Ok(answer) => Ok(response::unseal(&session.accept(&call, &[], &answer).unwrap())
            .unwrap()
            .to_vec()),
        Err(error) => Err(error.refusal().unwrap()),
    };
    channel.call(&command::flush_context(session.handle())).unwrap();
    channel.call(&command::flush_context(object)).unwrap();
    result
}

#[test]
fn the_agent_cannot_unseal_after_the_boot() {
    let Some(host) = Host::new("the_agent_cannot_unseal_after_the_boot") else {
        return;
    };
    host.boot(&Dials::default()).unwrap();
    let refused = agent_unseals(&host.store(), &mut host.channel());
    assert_eq!(refused, Err(ResponseCode::POLICY_FAIL));

    // The same steps do unseal where the machine lets the store do so; only the time differs.
    {
        let mut tpm = host.tpm.lock();
        tpm.reset(STARTUP_LOCALITY).unwrap();
        Boot::begin(tpm.channel())
            .measure_configuration(&Dials::default())
            .unwrap();
    }
    assert_eq!(agent_unseals(&host.store(), &mut host.channel()).unwrap().len(), 32);
}

#[test]
fn a_storage_key_that_somebody_else_can_take_along_is_replaced() {
    let Some(host) = Host::new("a_storage_key_that_somebody_else_can_take_along_is_replaced") else {
        return;
    };
    let (opened, _) = host.boot(&Dials::default()).unwrap();
    let own = host.channel().read_public(SRK_HANDLE).unwrap();
    // A key that may be duplicated: its maker can take it out of the TPM, and with it whatever is sealed under it.
    let replace = || {
        let mut channel = host.channel();
        let attributes = ObjectAttributes::SENSITIVE_DATA_ORIGIN
            | ObjectAttributes::USER_WITH_AUTH
            | ObjectAttributes::RESTRICTED
            | ObjectAttributes::DECRYPT;
        let create = command::create_primary(RH_OWNER, &storage_template(attributes, &[], &[]));
        let made = channel.call_with_empty_password(&create).unwrap();
        let object = Response::parse_with_handle(&made).unwrap().returned_handle().unwrap();
        for call in [
            command::evict_control(SRK_HANDLE, SRK_HANDLE),
            command::evict_control(object, SRK_HANDLE),
        ] {
            channel.call_with_empty_password(&call).unwrap();
        }
        channel.call(&command::flush_context(object)).unwrap();
        assert!(!channel.read_public(SRK_HANDLE).unwrap().is_fixed_storage_key());
    };
    replace();
    // What was sealed before opens under the TPM's own key, which is at its place again.
    let (again, _) = host.boot(&Dials::default()).unwrap();
    assert_eq!((again.new_keys, key_of(&again)), (false, key_of(&opened)));
    assert_eq!(host.channel().read_public(SRK_HANDLE).unwrap(), own);
    // And nothing new is sealed under the other one.
    replace();
    let other = Dials {
        test_signing: true,
        ..Dials::default()
    };
    assert!(host.boot(&other).unwrap().0.new_keys);
    assert_eq!(host.channel().read_public(SRK_HANDLE).unwrap(), own);
}

#[test]
fn a_cleared_tpm_keeps_its_identity_and_loses_the_store() {
    let Some(host) = Host::new("a_cleared_tpm_keeps_its_identity_and_loses_the_store") else {
        return;
    };
    let dials = Dials::default();
    let (first, _) = host.boot(&dials).unwrap();
    let (ek, srk) = (
        host.channel().read_public(EK_HANDLE).unwrap(),
        host.channel().read_public(SRK_HANDLE).unwrap(),
    );
    let mut known = vec![key_of(&first)];
    let by_the_agent = |_: &Host| {
        let clear = command::clear(RH_LOCKOUT);
        host.channel().call_with_empty_password(&clear).unwrap();
        let gone = host.channel().read_public(EK_HANDLE).unwrap_err();
        assert_eq!(gone.refusal(), Some(ResponseCode::HANDLE));
    };
    for firmware in [true, false] {
        if !firmware {
            by_the_agent(&host);
        }
        let (opened, _) = host.boot_clearing(firmware, &dials).unwrap();
        let remark = "the TPM was cleared: new VSM keys, the old state is discarded";
        assert_eq!(opened.remarks, [remark]);
        assert!(opened.new_keys && !known.contains(&key_of(&opened)));
        assert_eq!(host.channel().read_public(EK_HANDLE).unwrap(), ek);
        assert_ne!(host.channel().read_public(SRK_HANDLE).unwrap(), srk);
        let (kept, _) = host.boot(&dials).unwrap();
        assert_eq!(key_of(&kept), key_of(&opened), "and the new ones stay");
        known.push(key_of(&opened));
    }
}

#[test]
fn the_platform_hierarchy_is_off_once_a_host_has_booted() {
    let Some(host) = Host::new("the_platform_hierarchy_is_off_once_a_host_has_booted") else {
        return;
    };
    host.boot(&Dials::default()).unwrap();
    for call in [command::clear(RH_PLATFORM), command::disable_platform_hierarchy()] {
        let refused = host.channel().call_with_empty_password(&call).unwrap_err();
        assert_eq!(refused.refusal(), Some(ResponseCode(0x085)), "{refused}");
    }
}

#[test]
fn an_older_copy_of_the_state_is_refused_and_a_pending_one_taken_up() {
    let Some(host) = Host::new("an_older_copy_of_the_state_is_refused_and_a_pending_one_taken_up") else {
        return;
    };
    let dials = Dials::default();
    let state = host.store().join("state.sealed");
    let (mut opened, _) = host.boot(&dials).unwrap();
    let older = fs::read(&state).unwrap();
    let value = zeroize::Zeroizing::new(vec![1]);
    opened
        .store
        .change(
            |records| drop(records.insert("a".to_owned(), value.clone())),
            &mut OsRandom,
        )
        .unwrap();
    let newest = fs::read(&state).unwrap();
    drop(opened);

    fs::write(&state, &older).unwrap();
    let refused = host.boot(&dials).err().unwrap();
    assert!(matches!(refused, StateError::OlderCopy { .. }), "{refused}");

    // Stopped between increment and rename: the pending file is the newest.
    fs::write(host.store().join("state.next"), &newest).unwrap();
    let (opened, _) = host.boot(&dials).unwrap();
    assert_eq!(opened.store.secrets().records.get("a"), Some(&value));
    assert!(!host.store().join("state.next").exists());
    drop(opened);

    // Stopped before the increment: the pending file does not count.
    fs::write(host.store().join("state.next"), b"half a file").unwrap();
    let (opened, _) = host.boot(&dials).unwrap();
    assert_eq!(opened.store.secrets().records.get("a"), Some(&value));
    drop(opened);

    // Somebody removed the counter: nothing proves the state's age.
    host.channel()
        .call_with_empty_password(&command::nv_undefine(0x0150_0001))
        .unwrap();
    let refused = host.boot(&dials).err().unwrap();
    assert!(matches!(refused, StateError::NoCounter { .. }), "{refused}");
}

#[test]
fn what_a_vm_used_up_stays_used_up_over_a_reboot() {
    let Some(host) = Host::new("what_a_vm_used_up_stays_used_up_over_a_reboot") else {
        return;
    };
    let rng = &mut OsRandom;
    let dials = Dials::default();
    let vm = VmId::random(rng);
    let release = || OpenedRelease {
        ingress: TransportKey::random(&mut OsRandom),
        egress: TransportKey::random(&mut OsRandom),
        max_offline_unwraps: 0,
    };
    let (used, fresh) = (release(), release());
    let open = |store: &mut Store, generation, release| {
        let opening = Opening {
            release,
            egress_protector: [0; 32],
            package: None,
        };
        note_opened(store, vm, Age::rolled(generation), &opening, &mut OsRandom)
    };
    let (mut opened, _) = host.boot(&dials).unwrap();
    open(&mut opened.store, 4, &used).unwrap();

    let (mut opened, _) = host.boot(&dials).unwrap();
    assert_eq!(open(&mut opened.store, 4, &used), Err(StartedError::AnswerUsed));
    note_started(&mut opened.store, vm, Age::rolled(5), &used.egress, rng).unwrap();

    let (mut opened, _) = host.boot(&dials).unwrap();
    let older = open(&mut opened.store, 4, &fresh).unwrap_err();
    assert!(older.to_string().contains("has had generation 5"), "{older}");
    open(&mut opened.store, 5, &fresh).unwrap();
}

#[test]
fn a_change_that_fails_half_way_stops_further_changes_until_a_restart() {
    let Some(host) = Host::new("a_change_that_fails_half_way_stops_further_changes_until_a_restart") else {
        return;
    };
    let (mut opened, _) = host.boot(&Dials::default()).unwrap();
    // The store's connection ends under it, as with a TPM that dies.
    host.gate.shut();
    host.gate.open();
    let error = opened.store.change(|_| {}, &mut OsRandom).unwrap_err();
    assert_eq!(error.to_string(), "the TPM of host01 does not answer");
    let error = opened.store.change(|_| {}, &mut OsRandom).unwrap_err();
    assert!(matches!(error, StateError::Uncertain), "{error}");
    let (again, _) = host.boot(&Dials::default()).unwrap();
    assert!(!again.new_keys);
    assert_eq!(key_of(&again), key_of(&opened));
}

#[test]
fn a_connection_does_not_outlive_a_power_cycle() {
    let Some(host) = Host::new("a_connection_does_not_outlive_a_power_cycle") else {
        return;
    };
    host.boot(&Dials::default()).unwrap();
    let mut before = host.channel();
    before.call(&command::get_random(8)).unwrap();
    host.boot(&Dials::default()).unwrap();
    let error = before.call(&command::get_random(8)).unwrap_err();
    assert_eq!(error.to_string(), "the TPM of host01 does not answer");
    host.channel().call(&command::get_random(8)).unwrap();
}

#[test]
fn a_foreign_tpm_does_not_open_a_copied_store() {
    let (Some(one), Some(two)) = (Host::new("a_foreign_tpm_does_not_open_a_copied_store"), Host::new("")) else {
        return;
    };
    one.boot(&Dials::default()).unwrap();
    two.boot(&Dials::default()).unwrap();
    for name in ["root.sealed", "state.sealed"] {
        fs::copy(one.store().join(name), two.store().join(name)).unwrap();
    }
    let error = two.boot(&Dials::default()).err().unwrap();
    assert!(error.to_string().contains("damaged or of another TPM"), "{error}");
}

#[test]
fn a_host_whose_tpm_was_killed_says_so() {
    let Some(host) = Host::new("a_host_whose_tpm_was_killed_says_so") else {
        return;
    };
    host.boot(&Dials::default()).unwrap();
    let id = host.tpm.lock().process_id();
    let pid = rustix::process::Pid::from_raw(i32::try_from(id).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let error = host.channel().call(&command::get_random(8)).unwrap_err();
    assert_eq!(error.to_string(), "the TPM of host01 does not answer");
    let error: SwtpmError = host.tpm.lock().reset(0).unwrap_err();
    assert_eq!(error.to_string(), "the TPM of host01 does not answer");
}

/// Passes on what the store says to the TPM, which loses its power once, right after `code` was answered.
fn lose_power_after(host: &Host, code: u32, armed: &Arc<AtomicBool>) -> TpmChannel {
    let (mut ours, stores) = UnixStream::pair().unwrap();
    let (tpm, armed) = (host.tpm.clone(), armed.clone());
    std::thread::spawn(move || {
        let mut command = vec![0; 4096];
        while let Ok(length @ 1..) = ours.read(&mut command) {
            let mut tpm = tpm.lock();
            let answer = tpm.channel().transact(&command[..length]).unwrap();
            if command[6..10] == code.to_be_bytes() && armed.swap(false, Ordering::SeqCst) {
                tpm.reset(STARTUP_LOCALITY).unwrap();
            }
            ours.write_all(&answer).unwrap();
        }
    });
    TpmChannel::over(stores, "host01").unwrap()
}

/// As when a host hibernates at that very instant.
#[test]
fn a_store_outlives_the_loss_of_a_session_under_way() {
    let Some(host) = Host::new("a_store_outlives_the_loss_of_a_session_under_way") else {
        return;
    };
    let healthy = Dials::default();
    drop(host.boot(&healthy).unwrap());
    host.gate.shut();
    {
        let mut tpm = host.tpm.lock();
        tpm.reset(STARTUP_LOCALITY).unwrap();
        provision::provision(&mut tpm).unwrap();
        let mut boot = Boot::begin(tpm.channel());
        boot.measure_configuration(&healthy).unwrap();
    }
    let armed = Arc::new(AtomicBool::new(false));
    let channel = lose_power_after(&host, CommandCode::START_AUTH_SESSION.0, &armed);
    let mut opened = Store::open(&host.store(), channel, &mut OsRandom).unwrap();
    assert!(!opened.new_keys);
    let record = zeroize::Zeroizing::new(b"of that instant".to_vec());
    armed.store(true, Ordering::SeqCst);
    let keep = |records: &mut BTreeMap<_, _>| drop(records.insert("vm".to_owned(), record.clone()));
    opened.store.change(keep, &mut OsRandom).unwrap();
    assert!(!armed.load(Ordering::SeqCst), "the power was lost");
    drop(opened);
    let (again, _) = host.boot(&healthy).unwrap();
    assert_eq!(again.store.secrets().records.get("vm"), Some(&record));
}
