use std::collections::{BTreeMap, BTreeSet};

use hgs_protocol::{
    crypto::RsaPublicKey,
    wire::{
        boot_log::{Bank, BootLog, BootLogBuilder, EventType, PcrIndex},
        sipa::{SiPolicy, Tag, id},
        uefi::{self, UefiVariable},
        vsm,
    },
};
use proptest::prelude::*;

use super::*;
use crate::{
    baseline::{CiPolicy, DumpKey, SwitchError, TpmBaseline},
    replay::{ATTESTED_PCRS, PcrReadout, ReplayedLog, TcgLogError},
};

/// What a machine measures; the tests turn one thing at a time.
#[derive(Clone)]
struct Boot {
    variables: Vec<UefiVariable>,
    authority: Vec<u8>,
    events: Vec<Tag>,
    policies: Vec<Tag>,
}

const POLICY: [u8; 32] = [0xC1; 32];
const DUMP_KEY: [u8; 32] = [0xD1; 32];

fn key(seed: u8) -> RsaPublicKey {
    let mut modulus = [seed | 0x80; 256];
    modulus[255] |= 1;
    RsaPublicKey::from_components(&modulus, &[1, 0, 1]).unwrap()
}

fn si_policy(name: &str, digest: [u8; 32]) -> Tag {
    let policy = SiPolicy {
        version: 10 << 48,
        name: name.to_owned(),
        algorithm: 0x000B,
        digest: digest.to_vec(),
    };
    Tag::new(id::SI_POLICY, policy.encode())
}

impl Boot {
    fn healthy() -> Boot {
        let variable = |guid, name: &str, data: &[u8]| UefiVariable {
            guid,
            name: name.to_owned(),
            data: data.to_vec(),
        };
        Boot {
            variables: vec![
                variable(uefi::GLOBAL_VARIABLE, "SecureBoot", &[1]),
                variable(uefi::GLOBAL_VARIABLE, "PK", b"platform"),
                variable(uefi::IMAGE_SECURITY_DATABASE, "db", b"allowed"),
            ],
            authority: b"boot manager's authority".to_vec(),
            events: vec![
                Tag::boolean(id::BOOTDEBUGGING, false),
                Tag::boolean(id::TESTSIGNING, false),
                Tag::u32(id::TRANSFER_CONTROL, 1),
                Tag::u32(id::BITLOCKER_UNLOCK, 4),
                Tag::boolean(id::OSKERNELDEBUG, false),
                Tag::boolean(id::HYPERVISOR_DEBUG, false),
                Tag::u64(id::HYPERVISOR_LAUNCH_TYPE, 1),
                Tag::u64(id::VSM_LAUNCH_TYPE, 1),
                Tag::boolean(id::VBS_IOMMU_REQUIRED, true),
                Tag::u64(id::VBS_HVCI_POLICY, 1),
                Tag::boolean(id::HIBERNATION_DISABLED, true),
                Tag::boolean(id::DUMPS_DISABLED, true),
                Tag::boolean(id::DUMP_ENCRYPTION_ENABLED, false),
                Tag::boolean(id::PAGEFILE_ENCRYPTION_ENABLED, true),
                Tag::new(id::VSM_IDK_INFO, vsm::encode_idk_info(&key(1))),
                Tag::new(id::VSM_IDKS_INFO, vsm::encode_idk_info(&key(2))),
            ],
            policies: vec![si_policy("SiPolicy.p7b", POLICY)],
        }
    }

    fn set(&mut self, tag: Tag) -> &mut Boot {
        self.drop(tag.id).events.push(tag);
        self
    }

    fn drop(&mut self, id: u32) -> &mut Boot {
        self.events.retain(|tag| tag.id != id);
        self
    }

    fn variable(&mut self, index: usize, data: &[u8]) -> &mut Boot {
        self.variables[index].data = data.to_vec();
        self
    }

    fn without_variables(&mut self, first: usize) -> &mut Boot {
        self.variables.drain(..first);
        self
    }

    fn policies(&mut self, policies: &[Tag]) -> &mut Boot {
        self.policies = policies.to_vec();
        self
    }

    fn builder(&self) -> BootLogBuilder {
        let pcr = |index| PcrIndex::new(index).unwrap();
        let mut log = BootLogBuilder::new(0);
        for variable in &self.variables {
            log.measure(pcr(7), EventType::EFI_VARIABLE_DRIVER_CONFIG, variable.encode());
        }
        for index in 0..=7 {
            log.separator(pcr(index));
        }
        log.measure(pcr(7), EventType::EFI_VARIABLE_AUTHORITY, self.authority.clone());
        log.tagged(pcr(12), [Tag::container(id::TRUSTBOUNDARY, &self.events)]);
        log.tagged(pcr(13), [Tag::container(id::TRUSTBOUNDARY, &self.policies)]);
        log.tagged(pcr(14), [Tag::new(id::AUTHORITYPUBKEY, *b"authority")]);
        for index in 11..=14 {
            log.separator(pcr(index));
        }
        log
    }

    fn facts(&self) -> BootFacts {
        BootFacts::read(&replay(&self.builder().finish()).unwrap())
    }
}

/// Replays a log to the PCRs of a machine that extended exactly its digests.
fn replay(log: &[u8]) -> Result<ReplayedLog, TcgLogError> {
    let log = BootLog::parse(log).unwrap();
    ReplayedLog::replay(&log, &readout(&log))
}

fn readout(log: &BootLog) -> PcrReadout {
    let replayed = log.replay(Bank::Sha256);
    let value = |pcr: u8| match replayed.get(&PcrIndex::new(pcr).unwrap()) {
        Some(value) => value.as_slice().try_into().unwrap(),
        None => [0; 32],
    };
    let values: BTreeMap<u8, [u8; 32]> = ATTESTED_PCRS.into_iter().map(|pcr| (pcr, value(pcr))).collect();
    PcrReadout::authenticated(values).unwrap()
}

fn baselines() -> Baselines {
    Baselines {
        tpm: vec![TpmBaseline::from_log("rack", &Boot::healthy().builder().finish()).unwrap()],
        ci_policies: vec![CiPolicy {
            name: "allowed".to_owned(),
            sha256: POLICY,
        }],
        dump_keys: vec![DumpKey {
            name: "dumps".to_owned(),
            sha256: DUMP_KEY,
        }],
    }
}

fn judge(boot: &Boot) -> Evaluation {
    evaluate(boot.facts(), &baselines(), &Switches::default())
}

fn verdict_of(boot: &Boot, name: &str) -> Verdict {
    let evaluation = judge(boot);
    let found = evaluation
        .verdicts()
        .iter()
        .find(|evaluated| evaluated.policy.name == name);
    found.unwrap().verdict.clone()
}

type Turn = fn(&mut Boot) -> &mut Boot;

/// Per policy: what makes it fail, and what leaves it unmeasured.
const CASES: [(&str, Turn, Turn); 15] = [
    ("SecureBootEnabled", |b| b.variable(0, &[0]), |b| b.without_variables(1)),
    (
        "SecureBootSettings",
        |b| b.variable(2, b"other"),
        |b| b.without_variables(3),
    ),
    (
        "DebugModeUefi",
        |b| b.set(Tag::boolean(id::HYPERVISOR_DEBUG, true)),
        |b| b.drop(id::OSKERNELDEBUG),
    ),
    (
        "SystemIntegrityCiKnownGood",
        |b| b.policies(&[si_policy("SiPolicy.p7b", [9; 32])]),
        |b| b.policies(&[]),
    ),
    (
        "FullBoot",
        |b| b.set(Tag::u32(id::TRANSFER_CONTROL, 2)),
        |b| b.drop(id::TRANSFER_CONTROL),
    ),
    (
        "VsmIdkPresent",
        |b| b.drop(id::VSM_IDK_INFO).set(Tag::u64(id::VSM_LAUNCH_TYPE, 0)),
        |b| b.drop(id::VSM_IDK_INFO),
    ),
    (
        "VsmRunning",
        |b| b.set(Tag::u64(id::VSM_LAUNCH_TYPE, 0)),
        |b| b.drop(id::VSM_LAUNCH_TYPE),
    ),
    (
        "IommuEnabled",
        |b| b.set(Tag::boolean(id::VBS_IOMMU_REQUIRED, false)),
        |b| b.drop(id::VBS_IOMMU_REQUIRED),
    ),
    (
        "BitLockerEnabled",
        |b| b.set(Tag::u32(id::BITLOCKER_UNLOCK, 0x40)),
        |b| b.drop(id::BITLOCKER_UNLOCK),
    ),
    (
        "PagefileEncryptionEnabled",
        |b| b.set(Tag::boolean(id::PAGEFILE_ENCRYPTION_ENABLED, false)),
        |b| b.drop(id::PAGEFILE_ENCRYPTION_ENABLED),
    ),
    (
        "HypervisorEnforcedCiPolicy",
        |b| b.set(Tag::u64(id::VBS_HVCI_POLICY, 0)),
        |b| b.drop(id::VBS_HVCI_POLICY),
    ),
    (
        "NoHibernation",
        |b| b.set(Tag::boolean(id::HIBERNATION_DISABLED, false)),
        |b| b.drop(id::HIBERNATION_DISABLED),
    ),
    (
        "NoDumps",
        |b| b.set(Tag::boolean(id::DUMPS_DISABLED, false)),
        |b| b.drop(id::DUMPS_DISABLED),
    ),
    (
        "DumpEncryption",
        |b| b.set(Tag::boolean(id::DUMPS_DISABLED, false)),
        |b| b.drop(id::DUMPS_DISABLED),
    ),
    (
        "DumpEncryptionKey",
        |b| b.set(Tag::boolean(id::DUMPS_DISABLED, false)),
        |b| b.drop(id::DUMPS_DISABLED).drop(id::DUMP_ENCRYPTION_ENABLED),
    ),
];

#[test]
fn every_policy_passes_fails_and_goes_unmeasured() {
    for (name, fail, lose) in CASES {
        let healthy = verdict_of(&Boot::healthy(), name);
        assert!(healthy.passed(), "{name}: {healthy}");
        let mut boot = Boot::healthy();
        fail(&mut boot);
        let failed = verdict_of(&boot, name);
        assert!(matches!(failed, Verdict::Fail(_)), "{name}: {failed}");
        assert!(!failed.reason().remedy.is_empty() && !failed.reason().seen.is_empty());
        let mut boot = Boot::healthy();
        lose(&mut boot);
        let lost = verdict_of(&boot, name);
        assert!(matches!(lost, Verdict::NotMeasured(_)), "{name}: {lost}");
        // BitLocker is disabled at first and then keeps nobody out.
        assert_eq!(
            judge(&boot).into_healthy().is_ok(),
            name == "BitLockerEnabled",
            "{name}"
        );
    }
}

#[test]
fn policies_and_switches_are_complete_both_ways() {
    let specified = BTreeSet::from([
        "6a460ee1-62ea-416f-ae6c-04e29634506d",
        "756dc455-9528-479a-a86a-c646417316c9",
        "20188fda-d40b-460d-b078-2e7898a42ae9",
        "81f110ba-53c5-4064-9d64-51029fa24f49",
        "75ad09c9-7254-4d00-96f3-3b09d0aaac54",
        "75d595de-12f5-41e9-a61e-469d3205ecca",
        "6c0a6d29-5bcb-4f28-bafb-f71eb60fdae0",
        "da0776e5-6570-44b3-9a17-7e95b4fc7779",
        "347da547-d266-4939-bf3d-9ec73a90bdbc",
        "12df0ee9-b38e-4086-90f8-703d9e7cb878",
        "5408bd30-3250-4ac1-a150-c410af756699",
        "a32022c6-dccd-4bf5-be76-3b5ca1542559",
        "2a796e36-e918-454f-b610-60f086e8d334",
        "6f390a71-753c-43aa-a326-74e30aedcd9d",
        "85dac0a4-8ba9-4a7f-a342-211862ce0be8",
    ]);
    let ours: Vec<String> = POLICIES.iter().map(|policy| policy.id.0.to_string()).collect();
    assert_eq!(ours.len(), 15);
    assert_eq!(ours.iter().map(String::as_str).collect::<BTreeSet<_>>(), specified);
    let used: BTreeSet<&str> = POLICIES.iter().map(|policy| policy.switch).collect();
    let switches: BTreeSet<&str> = SWITCHES.iter().map(|switch| switch.name).collect();
    assert_eq!(used, switches);
    assert_eq!((SWITCHES.len(), switches.len()), (14, 14));
    let tested: BTreeSet<&str> = CASES.iter().map(|(name, _, _)| *name).collect();
    assert_eq!(tested, POLICIES.iter().map(|policy| policy.name).collect());
    assert_eq!(
        hex::encode(POLICIES[0].id.to_bytes()),
        "e10e466aea626f41ae6c04e29634506d"
    );
}

#[test]
fn a_healthy_host_has_its_measured_keys() {
    let host = judge(&Boot::healthy()).into_healthy().unwrap();
    assert_eq!(host.encryption_key().unwrap(), key(1));
    assert_eq!(host.signing_key().unwrap(), key(2));
    assert_eq!(host.verdicts().len(), 15);
    let mut boot = Boot::healthy();
    boot.events
        .push(Tag::new(id::VSM_IDK_INFO, vsm::encode_idk_info(&key(3))));
    let host = judge(&boot).into_healthy().unwrap();
    assert_eq!(host.encryption_key(), Err(VsmIdentityError::Two));
}

#[test]
fn a_flag_must_hold_at_every_stage() {
    let mut boot = Boot::healthy();
    boot.events.push(Tag::boolean(id::BOOTDEBUGGING, true));
    assert!(matches!(verdict_of(&boot, "DebugModeUefi"), Verdict::Fail(_)));
}

#[test]
fn a_key_in_another_pcr_or_unmeasured_proves_nothing() {
    let mut boot = Boot::healthy();
    let info = vsm::encode_idk_info(&key(1));
    boot.drop(id::VSM_IDK_INFO);
    boot.policies.push(Tag::new(id::VSM_IDK_INFO, info.clone()));
    boot.events.push(Tag::new(id::VSM_IDK_INFO | id::NON_MEASURED, info));
    assert!(!boot.facts().has_vsm_identity_key());
}

#[test]
fn unknown_authorities_void_the_loaders_pcrs_whatever_is_disabled() {
    let mut switches = Switches::default();
    for switch in SWITCHES.iter().filter(|switch| !switch.locked) {
        switches.set(switch.name, false).unwrap();
    }
    let mut boot = Boot::healthy();
    boot.authority = b"a shim's authority".to_vec();
    let evaluation = evaluate(boot.facts(), &baselines(), &switches);
    for evaluated in evaluation.verdicts().iter().filter(|e| e.policy.reads_loader_pcrs) {
        assert!(matches!(evaluated.verdict, Verdict::NotMeasured(_)));
    }
    assert!(evaluation.failures().any(|e| e.policy.name == "SecureBootSettings"));
    assert!(evaluation.into_healthy().is_err());
    let nothing_registered = evaluate(Boot::healthy().facts(), &Baselines::default(), &switches);
    assert!(nothing_registered.into_healthy().is_err());
}

#[test]
fn the_block_list_neither_stands_for_a_policy_nor_harms_one() {
    let list = si_policy("DriverSiPolicy.p7b", [7; 32]);
    let mut reference = Boot::healthy();
    reference.policies.push(list.clone());
    let mut known = baselines();
    known.tpm = vec![TpmBaseline::from_log("rack", &reference.builder().finish()).unwrap()];
    let check = |boot: &Boot, known: &Baselines| ci_policy_known(&boot.facts(), known);
    assert!(check(&reference, &known).passed());
    assert!(!check(&reference, &baselines()).passed());
    let mut alone = Boot::healthy();
    alone.policies = vec![list];
    assert!(!check(&alone, &known).passed());
    let mut disguised = Boot::healthy();
    disguised.policies.push(si_policy("DriverSiPolicy.p7b", [8; 32]));
    assert!(!check(&disguised, &known).passed());
}

#[test]
fn a_registered_dump_key_passes_once_dumps_are_encrypted() {
    let mut boot = Boot::healthy();
    boot.set(Tag::boolean(id::DUMPS_DISABLED, false));
    boot.set(Tag::boolean(id::DUMP_ENCRYPTION_ENABLED, true));
    boot.set(Tag::new(id::DUMP_ENCRYPTION_KEY_DIGEST, DUMP_KEY));
    assert!(verdict_of(&boot, "DumpEncryption").passed());
    assert!(verdict_of(&boot, "DumpEncryptionKey").passed());
    boot.set(Tag::new(id::DUMP_ENCRYPTION_KEY_DIGEST, [0; 32]));
    assert!(matches!(verdict_of(&boot, "DumpEncryptionKey"), Verdict::Fail(_)));
}

#[test]
fn locked_switches_stay_and_bitlocker_is_off_at_first() {
    let mut switches = Switches::default();
    assert_eq!(switches.disabled().collect::<Vec<_>>(), ["Hgs_BitLockerEnabled"]);
    assert_eq!(
        switches.set("hgs_securebootenabled", false),
        Err(SwitchError::Locked("Hgs_SecureBootEnabled"))
    );
    assert!(matches!(
        switches.set("Hgs_Nothing", false),
        Err(SwitchError::Unknown(_))
    ));
    switches.set("Hgs_BitLockerEnabled", true).unwrap();
    assert!(switches.is_enabled("Hgs_BitLockerEnabled"));
}

#[test]
fn what_breaks_a_rule_is_named() {
    let pcr = |index| PcrIndex::new(index).unwrap();
    let refused = |turn: fn(&mut BootLogBuilder) -> [u8; 32]| {
        let mut log = Boot::healthy().builder();
        turn(&mut log);
        replay(&log.finish()).unwrap_err()
    };
    let late = refused(|log| log.tagged(PcrIndex::new(12).unwrap(), [Tag::boolean(id::TESTSIGNING, false)]));
    assert!(matches!(late, TcgLogError::AfterCap { pcr: 12, .. }));
    let twice = refused(|log| log.separator(PcrIndex::new(13).unwrap()));
    assert!(matches!(twice, TcgLogError::AfterCap { pcr: 13, .. }));
    // Relabelled as a tagged event, the cap is still the cap.
    let relabelled = refused(|log| log.measure(PcrIndex::new(14).unwrap(), EventType::EVENT_TAG, *b"WBCL"));
    assert!(matches!(relabelled, TcgLogError::AfterCap { pcr: 14, .. }));
    let second = refused(|log| {
        let variable = &Boot::healthy().variables[0];
        log.measure(
            PcrIndex::new(7).unwrap(),
            EventType::EFI_VARIABLE_DRIVER_CONFIG,
            variable.encode(),
        )
    });
    assert!(matches!(second, TcgLogError::VariableTwice { .. }));
    let mut uncapped = BootLogBuilder::new(0);
    uncapped.separator(pcr(7));
    assert!(matches!(
        replay(&uncapped.finish()),
        Err(TcgLogError::CapMissing { pcr: 12 })
    ));
    let mut foreign = uncapped.clone();
    foreign.measure(pcr(12), EventType::IPL, *b"x");
    assert!(matches!(
        replay(&foreign.finish()),
        Err(TcgLogError::ForeignType { pcr: 12, .. })
    ));
    let mut forged = uncapped.clone();
    forged.measure_digest(pcr(12), EventType::EVENT_TAG, [1; 32], [0; 0]);
    assert!(matches!(
        replay(&forged.finish()),
        Err(TcgLogError::DigestNotOfData { pcr: 12, .. })
    ));
    assert!(matches!(
        replay(&BootLogBuilder::new(0).finish()),
        Err(TcgLogError::SeparatorMissing)
    ));
}

#[test]
fn a_variable_after_the_separator_is_no_fact() {
    let mut boot = Boot::healthy();
    let late = boot.variables.remove(0);
    let mut log = boot.builder();
    log.measure(
        PcrIndex::new(7).unwrap(),
        EventType::EFI_VARIABLE_DRIVER_CONFIG,
        late.encode(),
    );
    let facts = BootFacts::read(&replay(&log.finish()).unwrap());
    assert_eq!(facts.secure_boot.value(), None);
}

proptest! {
    #[test]
    fn one_changed_byte_never_yields_better_facts(at in any::<prop::sample::Index>(), value: u8) {
        let bytes = Boot::healthy().builder().finish();
        let honest = BootLog::parse(&bytes).unwrap();
        let pcrs = readout(&honest);
        let facts = BootFacts::read(&ReplayedLog::replay(&honest, &pcrs).unwrap());
        let mut forged = bytes;
        let at = at.index(forged.len());
        forged[at] = value;
        if let Ok(replayed) = BootLog::parse(&forged).map_err(TcgLogError::from).and_then(|log| ReplayedLog::replay(&log, &pcrs)) {
            let read = BootFacts::read(&replayed);
            // A relabelled variable record is lost, and then moves to the authorities, which no longer match.
            let same = read.secure_boot == facts.secure_boot && read.pcr7_authorities == facts.pcr7_authorities;
            let lost = read.pcr7_authorities.len() > facts.pcr7_authorities.len();
            prop_assert!(same || lost);
            prop_assert_eq!(read.pcr7_sequence.clone(), facts.pcr7_sequence.clone());
            prop_assert_eq!(read.encryption_key(), facts.encryption_key());
            prop_assert_eq!(read.debugging_off(), facts.debugging_off());
            prop_assert_eq!(read.ci_policies.clone(), facts.ci_policies.clone());
        }
    }
}
