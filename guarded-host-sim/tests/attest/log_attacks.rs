//! Attacks by way of the boot log: one row each, with the reply the attacker gets and the cause that
//! the service records.

use guarded_host_sim::{
    machine::{boot::STARTUP_LOCALITY, dials::Dials},
    swtpm::TpmMaker,
};
use hgs_protocol::{
    crypto::RsaPrivateKey,
    wire::{
        boot_log::{Bank, Event, EventType, WBCL_SEPARATOR},
        hgsa::Reply,
        sipa::{self, Tag, id},
        uefi::IMAGE_SECURITY_DATABASE,
    },
};

use crate::{
    forgery::{Forgery, Rogue, edited, idk, policy, record, secure_boot, set, stage, truth, variable},
    lab::Service,
};

struct Attack {
    name: &'static str,
    forge: fn(&mut Forgery),
    /// What the attacker is told.
    reply: &'static str,
    /// A part of the cause that the service records.
    cause: &'static str,
}

const ATTACKS: &[Attack] = &[
    // Log and TPM told different things.
    attack(
        "an event measured after the boot, left out of the log",
        |f| {
            f.booted_only(12, EventType::EVENT_TAG, truth(id::OSKERNELDEBUG, false));
        },
        TCG_LOG,
        "the log does not replay to PCR 12",
    ),
    attack(
        "an event appended to the log alone",
        |f| {
            let end = f.log.len();
            f.shown_edit(|log| log.insert(end, record(12, EventType::EVENT_TAG, truth(id::OSKERNELDEBUG, false))));
        },
        TCG_LOG,
        "the log does not replay to PCR 12",
    ),
    attack(
        "the record of a debugger cut out of the log",
        |f| {
            f.set(id::OSKERNELDEBUG, &[1]);
            let at = f.stage(id::OSKERNELDEBUG);
            f.shown_edit(|log| drop(log.remove(at)));
        },
        TCG_LOG,
        "the log does not replay to PCR 12",
    ),
    attack(
        "a debugger shown as off, under the digest of the truth",
        |f| {
            f.set(id::OSKERNELDEBUG, &[1]);
            let at = f.stage(id::OSKERNELDEBUG);
            f.shown_edit(|log| log[at].data = edited(&log[at], |tags| set(tags, id::OSKERNELDEBUG, &[0])));
        },
        TCG_LOG,
        "(PCR 12) is not the hash of its data, so the data proves nothing",
    ),
    attack(
        "a debugger shown as off, with a digest to match",
        |f| {
            f.set(id::OSKERNELDEBUG, &[1]);
            let at = f.stage(id::OSKERNELDEBUG);
            f.shown_edit(|log| {
                log[at] = record(
                    12,
                    EventType::EVENT_TAG,
                    edited(&log[at], |tags| set(tags, id::OSKERNELDEBUG, &[0])),
                )
            });
        },
        TCG_LOG,
        "the log does not replay to PCR 12",
    ),
    attack(
        "the record of a debugger relabelled as not measured",
        |f| {
            f.set(id::OSKERNELDEBUG, &[1]);
            let at = f.stage(id::OSKERNELDEBUG);
            f.shown_edit(|log| log[at].event_type = EventType::NO_ACTION);
        },
        TCG_LOG,
        "the log does not replay to PCR 12",
    ),
    attack(
        "two records of one PCR in another order",
        |f| {
            let at = f.stage(id::OSKERNELDEBUG);
            let other = f.stage(id::BOOTCOUNTER);
            f.shown_edit(|log| log.swap(at, other));
        },
        TCG_LOG,
        "does not replay to PCR 12",
    ),
    attack(
        "a record doubled in the log alone",
        |f| {
            let at = f.stage(id::OSKERNELDEBUG);
            f.shown_edit(|log| log.insert(at, log[at].clone()));
        },
        TCG_LOG,
        "the log does not replay to PCR 12",
    ),
    attack(
        "a record moved to another PCR in the log alone",
        |f| {
            let at = f.stage(id::SI_POLICY);
            f.shown_edit(|log| log[at].pcr = 12);
        },
        TCG_LOG,
        "the log does not replay to PCR 12",
    ),
    attack(
        "another startup locality claimed",
        |f| f.locality = 0,
        TCG_LOG,
        "the log does not replay to PCR 0",
    ),
    attack(
        "the log of another boot",
        |f| {
            let at = f.stage(id::BOOTCOUNTER);
            f.shown_edit(|log| {
                log[at] = record(
                    12,
                    EventType::EVENT_TAG,
                    edited(&log[at], |tags| set(tags, id::BOOTCOUNTER, &[7; 8])),
                )
            });
        },
        TCG_LOG,
        "the log does not replay to PCR 12",
    ),
    attack(
        "a PCR extended between the two reads",
        |f| f.meanwhile = Some(14),
        RTPM,
        "a PCR changed between the two reads; start a new exchange",
    ),
    // Log and TPM agree: software measures after the boot.
    attack(
        "an event measured after the cap and logged",
        |f| {
            f.append(12, EventType::EVENT_TAG, truth(id::OSKERNELDEBUG, false));
        },
        TCG_LOG,
        "stands after the cap of PCR 12",
    ),
    attack(
        "a policy measured after the cap of PCR 13 and logged",
        |f| {
            f.append(13, EventType::EVENT_TAG, policy("SIPolicy.p7b", b"another policy"));
        },
        TCG_LOG,
        "stands after the cap of PCR 13",
    ),
    attack(
        "a VSM key measured after the cap and logged",
        |f| {
            f.drop_tag(id::VSM_IDK_INFO);
            let key = stage(&[Tag::new(id::VSM_IDK_INFO, idk(&f.other))]);
            f.append(12, EventType::EVENT_TAG, key);
        },
        TCG_LOG,
        "stands after the cap of PCR 12",
    ),
    attack(
        "a record after the cap relabelled as a separator",
        |f| {
            f.append(12, EventType::SEPARATOR, truth(id::OSKERNELDEBUG, false));
        },
        TCG_LOG,
        "stands after the cap of PCR 12",
    ),
    attack(
        "the cap relabelled as a tagged event, and more measured after it",
        |f| {
            let cap = f.cap(12);
            f.log[cap].event_type = EventType::EVENT_TAG;
            f.append(12, EventType::EVENT_TAG, truth(id::OSKERNELDEBUG, false));
        },
        TCG_LOG,
        "stands after the cap of PCR 12",
    ),
    attack(
        "the boot's end capped twice",
        |f| f.append(12, EventType::SEPARATOR, WBCL_SEPARATOR.to_vec()),
        TCG_LOG,
        "stands after the cap of PCR 12",
    ),
    attack(
        "PCR 12 never capped",
        |f| f.remove_cap(12),
        TCG_LOG,
        "PCR 12 is not capped by a WBCL separator, so software may have extended it after the boot",
    ),
    attack(
        "PCR 13 never capped",
        |f| f.remove_cap(13),
        TCG_LOG,
        "PCR 13 is not capped by a WBCL separator, so software may have extended it after the boot",
    ),
    attack(
        "PCR 14 never capped",
        |f| f.remove_cap(14),
        TCG_LOG,
        "PCR 14 is not capped by a WBCL separator, so software may have extended it after the boot",
    ),
    attack(
        "PCR 12 capped with the separator of the firmware",
        |f| {
            let cap = f.cap(12);
            f.log[cap] = record(12, EventType::SEPARATOR, vec![0; 4]);
        },
        TCG_LOG,
        "(PCR 12) is EV_SEPARATOR; only tagged events belong there",
    ),
    // Log and TPM agree: a boot loader of the attacker's own.
    attack(
        "a tagged event relabelled so that nobody reads it",
        |f| {
            f.set(id::OSKERNELDEBUG, &[1]);
            let at = f.stage(id::OSKERNELDEBUG);
            f.log[at].event_type = EventType::ACTION;
        },
        TCG_LOG,
        "(PCR 12) is EV_ACTION; only tagged events belong there",
    ),
    attack(
        "a record with the digest of something else",
        |f| {
            let at = f.stage(id::OSKERNELDEBUG);
            f.log[at].digests = vec![(Bank::Sha256, vec![7; 32])];
        },
        TCG_LOG,
        "(PCR 12) is not the hash of its data, so the data proves nothing",
    ),
    attack(
        "a debugger on at one stage and off at a second",
        |f| {
            let at = f.stage(id::OSKERNELDEBUG);
            f.log
                .insert(at, record(12, EventType::EVENT_TAG, truth(id::OSKERNELDEBUG, true)));
        },
        POLICY,
        "fails: DebugModeUefi",
    ),
    attack(
        "a truth value that is neither",
        |f| f.set(id::OSKERNELDEBUG, &[2]),
        POLICY,
        "fails: DebugModeUefi",
    ),
    attack(
        "a truth value of two bytes",
        |f| f.set(id::DUMPS_DISABLED, &[1, 1]),
        POLICY,
        "fails: NoDumps, DumpEncryption, DumpEncryptionKey",
    ),
    attack(
        "the loader's stage measured into PCR 13",
        |f| {
            let at = f.stage(id::OSKERNELDEBUG);
            f.log[at].pcr = 13;
        },
        POLICY,
        "fails: DebugModeUefi, VsmRunning, IommuEnabled, PagefileEncryptionEnabled, HypervisorEnforcedCiPolicy, NoHibernation, NoDumps, DumpEncryption, DumpEncryptionKey",
    ),
    attack(
        "the code-integrity policy measured into PCR 12",
        |f| {
            let at = f.stage(id::SI_POLICY);
            f.log[at].pcr = 12;
        },
        POLICY,
        "fails: SystemIntegrityCiKnownGood",
    ),
    attack(
        "a second code-integrity policy, unregistered",
        |f| {
            let at = f.stage(id::SI_POLICY);
            f.log
                .insert(at, record(13, EventType::EVENT_TAG, policy("Own.p7b", b"own")));
        },
        POLICY,
        "fails: SystemIntegrityCiKnownGood",
    ),
    attack(
        "an unregistered policy under the driver block list's name",
        |f| {
            let at = f.stage(id::SI_POLICY);
            f.log.insert(
                at,
                record(13, EventType::EVENT_TAG, policy("DriverSiPolicy.p7b", b"own")),
            );
        },
        POLICY,
        "fails: SystemIntegrityCiKnownGood",
    ),
    attack(
        "the registered policy inside an unmeasured container",
        |f| {
            let at = f.stage(id::SI_POLICY);
            f.hide(at, id::SI_POLICY);
        },
        POLICY,
        "fails: SystemIntegrityCiKnownGood",
    ),
    attack(
        "tags that run past their container",
        |f| {
            let at = f.stage(id::OSKERNELDEBUG);
            let mut data = f.log[at].data.clone();
            data.truncate(data.len() - 1);
            f.log[at] = record(12, EventType::EVENT_TAG, data);
        },
        TCG_LOG,
        "(PCR 12) are malformed: a tagged event is cut off",
    ),
    attack(
        "containers nested a thousand deep",
        |f| {
            let mut data = truth(id::OSKERNELDEBUG, false);
            for _ in 0..1000 {
                data = sipa::encode_tags(&[Tag::new(id::TRUSTBOUNDARY, data)]);
            }
            let at = f.stage(id::OSKERNELDEBUG);
            f.log.insert(at, record(12, EventType::EVENT_TAG, data));
        },
        TCG_LOG,
        "(PCR 12) are malformed: tagged events nest deeper than 8 levels",
    ),
    // VSM keys.
    attack(
        "the VSM key only inside an unmeasured container",
        |f| {
            let at = f.stage(id::VSM_IDK_INFO);
            f.hide(at, id::VSM_IDK_INFO);
        },
        POLICY,
        "fails: VsmIdkPresent",
    ),
    attack(
        "the VSM key only in a record that is not measured",
        |f| {
            let key = f.drop_tag(id::VSM_IDK_INFO);
            let at = f.cap(12);
            f.log.insert(at, record(12, EventType::NO_ACTION, stage(&[key])));
        },
        POLICY,
        "fails: VsmIdkPresent",
    ),
    attack(
        "the VSM key in PCR 13",
        |f| {
            let key = f.drop_tag(id::VSM_IDK_INFO);
            let at = f.cap(13);
            f.log.insert(at, record(13, EventType::EVENT_TAG, stage(&[key])));
        },
        POLICY,
        "fails: VsmIdkPresent",
    ),
    attack(
        "the VSM key in PCR 11",
        |f| {
            let key = f.drop_tag(id::VSM_IDK_INFO);
            f.append(11, EventType::EVENT_TAG, stage(&[key]));
        },
        POLICY,
        "fails: VsmIdkPresent",
    ),
    attack(
        "a second VSM key beside the host's",
        |f| {
            let key = Tag::new(id::VSM_IDK_INFO, idk(&f.other));
            let at = f.cap(12);
            f.log.insert(at, record(12, EventType::EVENT_TAG, stage(&[key])));
        },
        VSM,
        "the log holds two different VSM identity keys of one kind",
    ),
    attack(
        "a second VSM signing key",
        |f| {
            let key = Tag::new(id::VSM_IDKS_INFO, idk(&f.other));
            let at = f.cap(12);
            f.log.insert(at, record(12, EventType::EVENT_TAG, stage(&[key])));
        },
        VSM,
        "the log holds two different VSM identity keys of one kind",
    ),
    attack(
        "no VSM signing key",
        |f| drop(f.drop_tag(id::VSM_IDKS_INFO)),
        VSM,
        "the log holds no VSM identity key of this kind; enable virtualization-based security",
    ),
    attack(
        "a VSM key with a byte too many",
        |f| {
            let data = [idk(&f.other), vec![0]].concat();
            f.set(id::VSM_IDK_INFO, &data);
        },
        VSM,
        "the VSM key blob is malformed",
    ),
    attack(
        "a VSM key of 512 bits",
        |f| {
            let head = [1u32, 512, 3, 64].map(u32::to_le_bytes).concat();
            f.set(id::VSM_IDK_INFO, &[head, vec![1, 0, 1], vec![0xFF; 64]].concat());
        },
        VSM,
        "not an RSA key of 2048 to 4096 bits with an odd exponent of at least 65537",
    ),
    attack(
        "a VSM key with exponent 1",
        |f| {
            let head = [1u32, 2048, 1, 256].map(u32::to_le_bytes).concat();
            f.set(id::VSM_IDK_INFO, &[head, vec![1], vec![0xFF; 256]].concat());
        },
        VSM,
        "not an RSA key of 2048 to 4096 bits with an odd exponent of at least 65537",
    ),
    // Secure Boot.
    attack(
        "a second SecureBoot variable, on after off",
        |f| {
            let at = f.variable("SecureBoot");
            f.log
                .insert(at, record(7, EventType::EFI_VARIABLE_DRIVER_CONFIG, secure_boot(&[0])));
        },
        TCG_LOG,
        "PCR 7 has a second record of the variable SecureBoot",
    ),
    attack(
        "the SecureBoot variable only after the separator",
        |f| {
            let at = f.variable("SecureBoot");
            let variable = f.log.remove(at);
            let end = f.separator(7) + 1;
            f.log.insert(end, variable);
        },
        POLICY,
        "fails: SecureBootEnabled, SecureBootSettings",
    ),
    attack(
        "the SecureBoot variable relabelled as a boot variable",
        |f| {
            let at = f.variable("SecureBoot");
            f.log[at].event_type = EventType::EFI_VARIABLE_BOOT;
        },
        POLICY,
        "fails: SecureBootEnabled, SecureBootSettings",
    ),
    attack(
        "a SecureBoot variable of two bytes",
        |f| {
            let at = f.variable("SecureBoot");
            f.log[at] = record(7, EventType::EFI_VARIABLE_DRIVER_CONFIG, secure_boot(&[1, 0]));
        },
        POLICY,
        "fails: SecureBootEnabled, SecureBootSettings",
    ),
    attack(
        "a SecureBoot variable with bytes after it",
        |f| {
            let at = f.variable("SecureBoot");
            let data = [secure_boot(&[1]), vec![0]].concat();
            f.log[at] = record(7, EventType::EFI_VARIABLE_DRIVER_CONFIG, data);
        },
        TCG_LOG,
        "of PCR 7 is malformed",
    ),
    attack(
        "a SecureBoot variable of another namespace",
        |f| {
            let at = f.variable("SecureBoot");
            let variable = variable(IMAGE_SECURITY_DATABASE, "SecureBoot", &[1]);
            f.log[at] = record(7, EventType::EFI_VARIABLE_DRIVER_CONFIG, variable);
        },
        POLICY,
        "fails: SecureBootEnabled, SecureBootSettings",
    ),
    attack(
        "a boot manager of another authority",
        |f| {
            let authority = variable(IMAGE_SECURITY_DATABASE, "db", b"certificate of the attacker");
            f.append(7, EventType::EFI_VARIABLE_AUTHORITY, authority);
        },
        POLICY,
        "fails: SecureBootSettings, DebugModeUefi",
    ),
    attack(
        "an authority relabelled as a variable",
        |f| {
            let is_authority = |event: &Event| event.event_type == EventType::EFI_VARIABLE_AUTHORITY;
            let at = f.log.iter().position(is_authority).unwrap();
            f.log[at].event_type = EventType::EFI_VARIABLE_DRIVER_CONFIG;
        },
        TCG_LOG,
        "PCR 7 has a second record of the variable db",
    ),
    attack(
        "PCR 7 without a separator",
        |f| {
            let at = f.separator(7);
            f.log.remove(at);
        },
        TCG_LOG,
        "PCR 7 has no separator, so nothing in it is known to come from the firmware",
    ),
    // Bytes that are no log.
    attack("no log", |f| f.bytes = Some(Vec::new()), TCG_LOG, "the log is empty"),
    attack(
        "a log cut off",
        |f| {
            let bytes = f.encoded();
            f.bytes = Some(bytes[..bytes.len() / 2].to_vec());
        },
        TCG_LOG,
        "the log is cut off in the record",
    ),
    attack(
        "a log with bytes after its last record",
        |f| f.bytes = Some([f.encoded(), vec![1, 2, 3]].concat()),
        TCG_LOG,
        "the log is cut off in the record",
    ),
    attack(
        "a record that announces four gigabytes",
        |f| {
            let tail = [12u32, 6, 0, u32::MAX].map(u32::to_le_bytes).concat();
            f.bytes = Some([f.encoded(), tail].concat());
        },
        TCG_LOG,
        "the log is cut off in the record",
    ),
    attack(
        "a record that announces four billion digests",
        |f| {
            let tail = [12u32, 6, u32::MAX].map(u32::to_le_bytes).concat();
            f.bytes = Some([f.encoded(), tail].concat());
        },
        TCG_LOG,
        "has more digests than the log has banks",
    ),
    attack(
        "a record of PCR 24",
        |f| {
            let tail = [24u32, 6, 0, 0].map(u32::to_le_bytes).concat();
            f.bytes = Some([f.encoded(), tail].concat());
        },
        TCG_LOG,
        "is measured into PCR 24, which does not exist",
    ),
    attack(
        "a log of SHA-1 records",
        |f| {
            let data = truth(id::OSKERNELDEBUG, false);
            let head = [12u32, 6].map(u32::to_le_bytes).concat();
            let size = u32::try_from(data.len()).unwrap().to_le_bytes().to_vec();
            f.bytes = Some([head, Bank::Sha1.digest(&[&data]).unwrap(), size, data].concat());
        },
        TCG_LOG,
        "the log has no SHA-256 bank; enable it in the TPM's firmware settings",
    ),
    attack(
        "a log over half a megabyte",
        |f| {
            f.log.insert(1, record(0, EventType::NO_ACTION, vec![0; 600 * 1024]));
        },
        RTPM,
        "the RTPM context is longer than allowed",
    ),
];

const TCG_LOG: &str = "TcgLogValidationErrorReply";
const POLICY: &str = "PolicyEvaluationErrorReply";
const VSM: &str = "VirtualSecureModeErrorReply";
const RTPM: &str = "RtpmErrorReply";

const fn attack(name: &'static str, forge: fn(&mut Forgery), reply: &'static str, cause: &'static str) -> Attack {
    Attack {
        name,
        forge,
        reply,
        cause,
    }
}

#[actix_web::test]
async fn every_attack_on_the_log_gets_its_refusal() {
    let Some(service) = Service::start("every_attack_on_the_log_gets_its_refusal").await else {
        return;
    };
    let maker = TpmMaker::open(&service.dir.join("maker")).unwrap();
    let [encryption, signing, other] = [(); 3].map(|()| RsaPrivateKey::generate_2048().unwrap());
    // One TPM may start only so many exchanges a minute, so the attacks take turns on several.
    let mut rogues: Vec<Rogue> = ["rogue1", "rogue2", "rogue3", "rogue4"]
        .map(|name| Rogue::make(&service, &maker, name))
        .into();
    service.trust_tpm_maker().await;
    let mut honest = Vec::new();
    for (number, rogue) in rogues.iter_mut().enumerate() {
        service.register_ek(&format!("rogue{number}"), &rogue.certificate).await;
        honest = rogue.honest_boot([encryption.public(), signing.public()]);
    }
    let forgery = || Forgery {
        log: honest.clone(),
        secret: Vec::new(),
        shown: None,
        bytes: None,
        locality: STARTUP_LOCALITY,
        meanwhile: None,
        other: other.public().clone(),
    };
    service.register("tpm-baselines", "model", &forgery().encoded()).await;
    let policy = Dials::default().ci_policy.unwrap();
    service.register("ci-policies", "model", &policy).await;
    let passes = |reply: &Reply| matches!(reply, Reply::HealthCertificate { content } if content.len() == 2);
    let reply = rogues[0].attest(&forgery()).await;
    assert!(passes(&reply), "without an attack: {reply:?}");

    let mut wrong = Vec::new();
    for (turn, attack) in ATTACKS.iter().enumerate() {
        let mut forged = forgery();
        (attack.forge)(&mut forged);
        let turn = turn % rogues.len();
        let got = rogues[turn].attest(&forged).await;
        let record = service.last_record().await;
        let cause = record["reason"].as_str().unwrap_or_default();
        if got.name() != attack.reply || !cause.contains(attack.cause) {
            wrong.push(format!("{}: {}: {cause}", attack.name, got.name()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let reply = rogues[0].attest(&forgery()).await;
    assert!(passes(&reply), "after all attacks: {reply:?}");
}
