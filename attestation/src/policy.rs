//! The fifteen policies of MS-HGSA 2.2.2.13, each one row and one function over proven facts.
//!
//! A check that could not run is a failure with its own reason. No fact of PCR 11-14 counts for a
//! host whose PCR 7 authorities match no registered baseline, whatever is disabled: another boot
//! manager could have written them. [`Evaluation::into_healthy`] is the only door to [`HealthyHost`].

use std::fmt;

use hgs_protocol::crypto::RsaPublicKey;
use uuid::{Uuid, uuid};

use crate::{
    baseline::{Baselines, Switches},
    facts::{BootFacts, Fact, VsmIdentityError},
};

/// Identity of a policy: the GUID of MS-HGSA 2.2.2.13.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyId(pub Uuid);

impl PolicyId {
    /// The 16 bytes in memory layout, as `EvaluationLog.Reason` carries them.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_bytes_le()
    }
}

/// One policy.
#[derive(Debug)]
pub struct Policy {
    /// Its GUID.
    pub id: PolicyId,
    /// Its name in the specification.
    pub name: &'static str,
    /// The administrator's switch that governs it.
    pub switch: &'static str,
    /// The host's `AttestationSubstatus` when it fails.
    pub substatus: &'static str,
    /// Whether it reads PCR 11-14, which count only under registered authorities.
    pub reads_loader_pcrs: bool,
    /// The check.
    pub check: fn(&BootFacts, &Baselines) -> Verdict,
}

/// An administrator's switch.
#[derive(Debug)]
pub struct Switch {
    /// `Hgs_*`.
    pub name: &'static str,
    /// `PolicyType` of the cmdlets.
    pub policy_type: &'static str,
    /// State of a fresh installation.
    pub enabled_at_first: bool,
    /// True when it cannot be disabled.
    pub locked: bool,
}

/// What a policy found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The host complies.
    Pass(Reason),
    /// It does not.
    Fail(Reason),
    /// The log does not say, which is a failure.
    NotMeasured(Reason),
}

/// Why, in an operator's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The PCR and event that decided.
    pub decided_by: String,
    /// What would pass.
    pub expected: String,
    /// What was there.
    pub seen: String,
    /// What to do about it.
    pub remedy: &'static str,
}

impl Verdict {
    /// True only for a pass.
    pub fn passed(&self) -> bool {
        matches!(self, Verdict::Pass(_))
    }

    /// The reason, whatever the verdict.
    pub fn reason(&self) -> &Reason {
        match self {
            Verdict::Pass(reason) | Verdict::Fail(reason) | Verdict::NotMeasured(reason) => reason,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = self.reason();
        let Reason {
            decided_by,
            expected,
            seen,
            remedy,
        } = reason;
        match self {
            Verdict::Pass(_) => write!(f, "passed: {decided_by}: {seen}"),
            Verdict::Fail(_) => write!(f, "failed: {decided_by}: expected {expected}, seen {seen}. {remedy}"),
            Verdict::NotMeasured(_) => {
                write!(
                    f,
                    "not measured: {decided_by}: expected {expected}, seen {seen}. {remedy}"
                )
            }
        }
    }
}

/// All verdicts of one attestation.
#[derive(Clone, Debug)]
pub struct Evaluation {
    verdicts: Vec<Evaluated>,
    authority: Option<String>,
    facts: BootFacts,
}

/// One policy with its verdict.
#[derive(Clone, Debug)]
pub struct Evaluated {
    /// The policy.
    pub policy: &'static Policy,
    /// Whether its verdict counts.
    pub enabled: bool,
    /// What it found; kept also where it does not count.
    pub verdict: Verdict,
}

/// A host that passed: the keys that may be certified, and what was evaluated. Made only by [`Evaluation::into_healthy`].
#[derive(Clone, Debug)]
pub struct HealthyHost {
    evaluation: Evaluation,
}

/// Runs all fifteen policies and keeps every verdict.
pub fn evaluate(facts: BootFacts, baselines: &Baselines, switches: &Switches) -> Evaluation {
    let authority = baselines
        .matching_authorities(&facts)
        .map(|baseline| baseline.name.clone());
    let verdicts = POLICIES.iter().map(|policy| Evaluated {
        policy,
        enabled: is_enabled(policy, switches),
        verdict: match policy.reads_loader_pcrs && authority.is_none() {
            true => unknown_authority(&facts),
            false => (policy.check)(&facts, baselines),
        },
    });
    Evaluation {
        verdicts: verdicts.collect(),
        authority,
        facts,
    }
}

impl Evaluation {
    /// Every policy with its verdict, in the order of the specification.
    pub fn verdicts(&self) -> &[Evaluated] {
        &self.verdicts
    }

    /// The policies that keep the host from passing. Where the authorities are unknown,
    /// SecureBootSettings is among them even if it is disabled.
    pub fn failures(&self) -> impl Iterator<Item = &Evaluated> {
        let unknown = self.authority.is_none();
        self.verdicts.iter().filter(move |evaluated| {
            let settings = unknown && evaluated.policy.name == SECURE_BOOT_SETTINGS;
            (evaluated.enabled && !evaluated.verdict.passed()) || settings
        })
    }

    /// Name of the registered baseline whose authorities the host has.
    pub fn authority(&self) -> Option<&str> {
        self.authority.as_deref()
    }

    /// The facts that were judged.
    pub fn facts(&self) -> &BootFacts {
        &self.facts
    }

    /// The healthy host, or the evaluation back when any enabled policy did not pass.
    #[expect(
        clippy::result_large_err,
        reason = "the evaluation is the error: it lists every reason"
    )]
    pub fn into_healthy(self) -> Result<HealthyHost, Evaluation> {
        match self.authority.is_some() && self.failures().next().is_none() {
            true => Ok(HealthyHost { evaluation: self }),
            false => Err(self),
        }
    }
}

impl HealthyHost {
    /// The VSM identity key for encryption, from VSM_IDK_INFO (result type 1).
    pub fn encryption_key(&self) -> Result<RsaPublicKey, VsmIdentityError> {
        self.evaluation.facts.encryption_key()
    }

    /// The VSM identity key for signing, from VSM_IDKS_INFO (result type 2).
    pub fn signing_key(&self) -> Result<RsaPublicKey, VsmIdentityError> {
        self.evaluation.facts.signing_key()
    }

    /// Every policy with its verdict, disabled ones included.
    pub fn verdicts(&self) -> &[Evaluated] {
        self.evaluation.verdicts()
    }

    /// The evaluation behind it, for the record.
    pub fn evaluation(&self) -> &Evaluation {
        &self.evaluation
    }
}

/// The fifteen policies in the order of MS-HGSA 2.2.2.13.
pub const POLICIES: &[Policy] = &[
    row(
        uuid!("6a460ee1-62ea-416f-ae6c-04e29634506d"),
        "SecureBootEnabled",
        "Hgs_SecureBootEnabled",
        "SecureBoot",
        secure_boot_enabled,
    ),
    row(
        uuid!("756dc455-9528-479a-a86a-c646417316c9"),
        SECURE_BOOT_SETTINGS,
        "Hgs_SecureBootSettings",
        "SecureBootSettings",
        secure_boot_settings,
    ),
    loader_row(
        uuid!("20188fda-d40b-460d-b078-2e7898a42ae9"),
        "DebugModeUefi",
        "Hgs_UefiDebugDisabled",
        "DebugMode",
        debug_mode_uefi,
    ),
    loader_row(
        uuid!("81f110ba-53c5-4064-9d64-51029fa24f49"),
        "SystemIntegrityCiKnownGood",
        "Hgs_CiPolicy",
        "CodeIntegrityPolicy",
        ci_policy_known,
    ),
    loader_row(
        uuid!("75ad09c9-7254-4d00-96f3-3b09d0aaac54"),
        "FullBoot",
        "Hgs_FullBoot",
        "FullBoot",
        full_boot,
    ),
    loader_row(
        uuid!("75d595de-12f5-41e9-a61e-469d3205ecca"),
        "VsmIdkPresent",
        "Hgs_VsmIdkPresent",
        "VirtualSecureMode",
        vsm_idk_present,
    ),
    loader_row(
        uuid!("6c0a6d29-5bcb-4f28-bafb-f71eb60fdae0"),
        "VsmRunning",
        "Hgs_VsmIdkPresent",
        "VirtualSecureMode",
        vsm_running,
    ),
    loader_row(
        uuid!("da0776e5-6570-44b3-9a17-7e95b4fc7779"),
        "IommuEnabled",
        "Hgs_IommuEnabled",
        "Iommu",
        iommu_enabled,
    ),
    loader_row(
        uuid!("347da547-d266-4939-bf3d-9ec73a90bdbc"),
        "BitLockerEnabled",
        "Hgs_BitLockerEnabled",
        "BitLocker",
        bitlocker_enabled,
    ),
    loader_row(
        uuid!("12df0ee9-b38e-4086-90f8-703d9e7cb878"),
        "PagefileEncryptionEnabled",
        "Hgs_PageFileEncryptionEnabled",
        "PagefileEncryption",
        pagefile_encryption_enabled,
    ),
    loader_row(
        uuid!("5408bd30-3250-4ac1-a150-c410af756699"),
        "HypervisorEnforcedCiPolicy",
        "Hgs_HypervisorEnforcedCiPolicy",
        "HypervisorEnforcedCodeIntegrityPolicy",
        hypervisor_enforced_ci_policy,
    ),
    loader_row(
        uuid!("a32022c6-dccd-4bf5-be76-3b5ca1542559"),
        "NoHibernation",
        "Hgs_NoHibernation",
        "HibernationEnabled",
        no_hibernation,
    ),
    loader_row(
        uuid!("2a796e36-e918-454f-b610-60f086e8d334"),
        "NoDumps",
        "Hgs_NoDumps",
        "DumpsEnabled",
        no_dumps,
    ),
    loader_row(
        uuid!("6f390a71-753c-43aa-a326-74e30aedcd9d"),
        "DumpEncryption",
        DUMP_ENCRYPTION,
        "DumpEncryption",
        dump_encryption,
    ),
    loader_row(
        uuid!("85dac0a4-8ba9-4a7f-a342-211862ce0be8"),
        "DumpEncryptionKey",
        DUMP_ENCRYPTION_KEY,
        "DumpEncryptionKey",
        dump_encryption_key,
    ),
];

/// The administrator's switches. The product does not publish which are locked; these are the ones
/// whose disabling it documents no effect of.
pub const SWITCHES: &[Switch] = &[
    locked("Hgs_SecureBootEnabled", "SecureBootEnabled"),
    locked("Hgs_UefiDebugDisabled", "UefiDebugDisabled"),
    locked("Hgs_SecureBootSettings", "SecureBootSettings"),
    locked("Hgs_CiPolicy", "CiPolicy"),
    movable("Hgs_HypervisorEnforcedCiPolicy", "HypervisorEnforcedCiPolicy"),
    locked("Hgs_FullBoot", "FullBoot"),
    locked("Hgs_VsmIdkPresent", "VsmIdkPresent"),
    movable("Hgs_PageFileEncryptionEnabled", "PagefileEncryptionEnabled"),
    Switch {
        enabled_at_first: false,
        ..movable("Hgs_BitLockerEnabled", "BitLockerEnabled")
    },
    movable("Hgs_IommuEnabled", "IommuEnabled"),
    movable("Hgs_NoHibernation", "NoHibernation"),
    movable("Hgs_NoDumps", "NoDumps"),
    movable(DUMP_ENCRYPTION, "DumpEncryption"),
    movable(DUMP_ENCRYPTION_KEY, "DumpEncryptionKey"),
];

fn secure_boot_enabled(facts: &BootFacts, _: &Baselines) -> Verdict {
    single(&facts.secure_boot, "Turn Secure Boot on in the firmware and restart.")
}

fn secure_boot_settings(facts: &BootFacts, baselines: &Baselines) -> Verdict {
    let reason = |seen: String| Reason {
        decided_by: "PCR 7, all records".to_owned(),
        expected: "the ordered records of a registered TPM baseline".to_owned(),
        seen,
        remedy: "Compare with Get-HgsAttestationBaselinePolicy of a trusted host of this class, and register the new baseline if the change is wanted.",
    };
    if facts.secure_boot_variables == 0 {
        return Verdict::NotMeasured(reason("no Secure Boot variable measured".to_owned()));
    }
    match baselines.matching_pcr7(facts) {
        Some(baseline) => Verdict::Pass(reason(format!("baseline {}", baseline.name))),
        None => Verdict::Fail(reason(format!(
            "{} records that equal none of {} registered baselines",
            facts.pcr7_sequence.len(),
            baselines.tpm.len()
        ))),
    }
}

fn debug_mode_uefi(facts: &BootFacts, _: &Baselines) -> Verdict {
    let remedy = "Turn debugging and test signing off (bcdedit) and restart; the firmware's debug mode as well.";
    let reason = |fact: &Fact| Reason::of(fact, remedy);
    if let Some(on) = facts.debug_facts().into_iter().find(|fact| fact.value() == Some(false)) {
        return Verdict::Fail(reason(on));
    }
    // Without a hypervisor there is no hypervisor debugger to report on.
    let running = |fact: &Fact| fact.value() == Some(true);
    let hypervisor = running(&facts.hypervisor_launched) || running(&facts.vsm_launched);
    let needed = facts.debug_facts().into_iter().take(if hypervisor { 4 } else { 3 });
    match needed.into_iter().find(|fact| fact.value().is_none()) {
        Some(missing) => Verdict::NotMeasured(reason(missing)),
        None => Verdict::Pass(reason(&facts.boot_debugging_off)),
    }
}

fn ci_policy_known(facts: &BootFacts, baselines: &Baselines) -> Verdict {
    let reason = |seen: String| Reason {
        decided_by: "PCR 13, SI_POLICY".to_owned(),
        expected: "a registered code-integrity policy and none that is unknown".to_owned(),
        seen,
        remedy: "Apply the registered policy on the host and restart, or register this one with Add-HgsAttestationCIPolicy.",
    };
    let registered = |sha256: &[u8; 32]| baselines.ci_policies.iter().find(|policy| policy.sha256 == *sha256);
    if facts.ci_policies.is_empty() {
        return Verdict::NotMeasured(reason("no policy measured".to_owned()));
    }
    // A policy beside the registered one could allow what that one forbids, so each must be known.
    let known = |sha256: &[u8; 32]| registered(sha256).is_some() || baselines.is_block_list(sha256);
    if let Some(unknown) = facts
        .ci_policies
        .iter()
        .find(|policy| !policy.sha256.as_ref().is_some_and(known))
    {
        return Verdict::Fail(reason(format!("unregistered {unknown}")));
    }
    match facts
        .ci_policies
        .iter()
        .find_map(|policy| registered(policy.sha256.as_ref()?))
    {
        Some(policy) => Verdict::Pass(reason(format!("registered policy {}", policy.name))),
        None => Verdict::Fail(reason("only the driver block list".to_owned())),
    }
}

fn full_boot(facts: &BootFacts, _: &Baselines) -> Verdict {
    single(
        &facts.full_boot,
        "Restart the host; turn hibernation and fast startup off.",
    )
}

fn vsm_idk_present(facts: &BootFacts, _: &Baselines) -> Verdict {
    let reason = |seen: String| Reason {
        decided_by: "PCR 12, VSM_IDK_INFO".to_owned(),
        expected: "a VSM identity key".to_owned(),
        seen,
        remedy: VSM_REMEDY,
    };
    match (facts.has_vsm_identity_key(), facts.vsm_launched.value()) {
        (true, _) => Verdict::Pass(reason("present".to_owned())),
        (false, Some(false)) => Verdict::Fail(reason("none, since VSM was not launched".to_owned())),
        (false, _) => Verdict::NotMeasured(reason("none measured".to_owned())),
    }
}

fn vsm_running(facts: &BootFacts, _: &Baselines) -> Verdict {
    single(&facts.vsm_launched, VSM_REMEDY)
}

fn iommu_enabled(facts: &BootFacts, _: &Baselines) -> Verdict {
    single(
        &facts.iommu_required,
        "Require Secure Boot and DMA protection for virtualization-based security, or disable Hgs_IommuEnabled.",
    )
}

fn bitlocker_enabled(facts: &BootFacts, _: &Baselines) -> Verdict {
    single(
        &facts.unlocked_by_tpm,
        "Turn BitLocker on for the OS volume with a TPM protector, or disable Hgs_BitLockerEnabled.",
    )
}

fn pagefile_encryption_enabled(facts: &BootFacts, _: &Baselines) -> Verdict {
    single(
        &facts.page_file_encrypted,
        "Run fsutil behavior set encryptpagingfile 1 and restart.",
    )
}

fn hypervisor_enforced_ci_policy(facts: &BootFacts, _: &Baselines) -> Verdict {
    single(
        &facts.hypervisor_enforced_ci,
        "Enable hypervisor-enforced code integrity and restart.",
    )
}

fn no_hibernation(facts: &BootFacts, _: &Baselines) -> Verdict {
    single(&facts.hibernation_disabled, "Run powercfg /h off and restart.")
}

fn no_dumps(facts: &BootFacts, _: &Baselines) -> Verdict {
    single(
        &facts.dumps_disabled,
        "Disable memory dumps, or disable Hgs_NoDumps and encrypt them.",
    )
}

fn dump_encryption(facts: &BootFacts, _: &Baselines) -> Verdict {
    let remedy = "Disable memory dumps or configure dump encryption, then restart.";
    let (disabled, encrypted) = (&facts.dumps_disabled, &facts.dumps_encrypted);
    match (disabled.value(), encrypted.value()) {
        (Some(true), _) => Verdict::Pass(Reason::of(disabled, remedy)),
        (_, Some(true)) => Verdict::Pass(Reason::of(encrypted, remedy)),
        (None, _) => Verdict::NotMeasured(Reason::of(disabled, remedy)),
        (_, None) => Verdict::NotMeasured(Reason::of(encrypted, remedy)),
        (Some(false), Some(false)) => Verdict::Fail(Reason::of(encrypted, remedy)),
    }
}

fn dump_encryption_key(facts: &BootFacts, baselines: &Baselines) -> Verdict {
    let remedy = "Register the host's dump key with Add-HgsAttestationDumpPolicy, or disable memory dumps.";
    if facts.dumps_disabled.value() == Some(true) {
        return Verdict::Pass(Reason::of(&facts.dumps_disabled, remedy));
    }
    let reason = |seen: String| Reason {
        decided_by: "PCR 12, DUMP_ENCRYPTION_KEY_DIGEST".to_owned(),
        expected: "dumps disabled, or a registered dump key".to_owned(),
        seen,
        remedy,
    };
    let registered = |digest: &Vec<u8>| {
        baselines
            .dump_keys
            .iter()
            .find(|key| key.sha256.as_slice() == digest.as_slice())
    };
    match facts.dump_keys.iter().find(|digest| registered(digest).is_none()) {
        Some(unknown) => Verdict::Fail(reason(format!("unregistered key {}", hex::encode(unknown)))),
        None => match facts.dump_keys.first().and_then(registered) {
            Some(key) => Verdict::Pass(reason(format!("registered key {}", key.name))),
            None if facts.dumps_encrypted.value() == Some(false) => {
                Verdict::Fail(reason("dumps are enabled and not encrypted".to_owned()))
            }
            None => Verdict::NotMeasured(reason("no key measured".to_owned())),
        },
    }
}

/// The verdict of a policy that one fact decides.
fn single(fact: &Fact, remedy: &'static str) -> Verdict {
    let reason = Reason::of(fact, remedy);
    match fact.value() {
        Some(true) => Verdict::Pass(reason),
        Some(false) => Verdict::Fail(reason),
        None => Verdict::NotMeasured(reason),
    }
}

impl Reason {
    fn of(fact: &Fact, remedy: &'static str) -> Reason {
        Reason {
            decided_by: format!("PCR {}, {}", fact.pcr, fact.event),
            expected: fact.expected.to_owned(),
            seen: fact.seen_text(),
            remedy,
        }
    }
}

fn unknown_authority(facts: &BootFacts) -> Verdict {
    Verdict::NotMeasured(Reason {
        decided_by: "PCR 7, authorities".to_owned(),
        expected: "the authorities of a registered TPM baseline; without them PCR 11-14 prove nothing".to_owned(),
        seen: match facts.pcr7_authorities.len() {
            0 => "no authority measured".to_owned(),
            count => format!("{count} records that match no registered baseline"),
        },
        remedy: "Start the host with the registered boot manager, or register a baseline of this host class.",
    })
}

fn is_enabled(policy: &Policy, switches: &Switches) -> bool {
    // Without dump encryption there is no dump key to ask for.
    let applicable = policy.switch != DUMP_ENCRYPTION_KEY || switches.is_enabled(DUMP_ENCRYPTION);
    applicable && switches.is_enabled(policy.switch)
}

type Check = fn(&BootFacts, &Baselines) -> Verdict;

const fn row(id: Uuid, name: &'static str, switch: &'static str, substatus: &'static str, check: Check) -> Policy {
    Policy {
        id: PolicyId(id),
        name,
        switch,
        substatus,
        reads_loader_pcrs: false,
        check,
    }
}

const fn loader_row(
    id: Uuid,
    name: &'static str,
    switch: &'static str,
    substatus: &'static str,
    check: Check,
) -> Policy {
    Policy {
        reads_loader_pcrs: true,
        ..row(id, name, switch, substatus, check)
    }
}

const fn locked(name: &'static str, policy_type: &'static str) -> Switch {
    Switch {
        name,
        policy_type,
        enabled_at_first: true,
        locked: true,
    }
}

const fn movable(name: &'static str, policy_type: &'static str) -> Switch {
    Switch {
        locked: false,
        ..locked(name, policy_type)
    }
}

const SECURE_BOOT_SETTINGS: &str = "SecureBootSettings";
const DUMP_ENCRYPTION: &str = "Hgs_DumpEncryption";
const DUMP_ENCRYPTION_KEY: &str = "Hgs_DumpEncryptionKey";
const VSM_REMEDY: &str = "Enable virtualization-based security and restart; check that the processor supports it.";

#[cfg(test)]
mod tests;
