//! Module HgsClient: guardians and key protectors. Guardians are kept on each machine; private keys of its own guardians lie
//! there sealed under a password that stands for the machine's protection of its certificate store.

use std::{path::PathBuf, rc::Rc};

use hgs_protocol::{
    env::{OsRandom, Random},
    protector::{Guardian, GuardianKeys, KeyPair, KeyProtector},
};
use hgs_service::pair_files;
use hgs_shell::{
    call::Call,
    cmdlets::{Implementation, Run},
    error::{Category, ErrorRecord, Outcome, Stop},
    value::{Value, convert},
};
use zeroize::Zeroizing;

use super::{failed, lab, objects, part_of};
use crate::{
    lab::Lab,
    owner::{
        certificate::CertificateView,
        store::{GuardianName, GuardianStore, StoreError, StoredGuardian, write_new},
        trust::{Distrusted, TrustRules},
    },
};

pub(super) const ALL: &[Implementation] = &[
    Implementation {
        cmdlet: "New-HgsGuardian",
        implemented: &[
            "Name",
            "GenerateCertificates",
            "SigningCertificate",
            "SigningCertificatePassword",
            "EncryptionCertificate",
            "EncryptionCertificatePassword",
            "SigningCertificateThumbprint",
            "EncryptionCertificateThumbprint",
            "AllowExpired",
            "AllowUntrustedRoot",
        ],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(new_guardian),
    },
    Implementation {
        cmdlet: "Get-HgsGuardian",
        implemented: &["Name"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(get_guardians),
    },
    Implementation {
        cmdlet: "Import-HgsGuardian",
        implemented: &["Path", "Name", "AllowExpired", "AllowUntrustedRoot"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(import_guardian),
    },
    Implementation {
        cmdlet: "Export-HgsGuardian",
        implemented: &["InputObject", "Path"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(export_guardian),
    },
    Implementation {
        cmdlet: "Remove-HgsGuardian",
        implemented: &["Name", "InputObject"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(remove_guardian),
    },
    Implementation {
        cmdlet: "New-HgsKeyProtector",
        implemented: &["Owner", "Guardian", "AllowExpired", "AllowUntrustedRoot"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(new_protector),
    },
    Implementation {
        cmdlet: "ConvertTo-HgsKeyProtector",
        implemented: &["Bytes"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(convert_to_protector),
    },
    Implementation {
        cmdlet: "Grant-HgsKeyProtectorAccess",
        implemented: &[
            "KeyProtector",
            "Guardian",
            "GuardianFriendlyName",
            "AllowExpired",
            "AllowUntrustedRoot",
        ],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(grant),
    },
    Implementation {
        cmdlet: "Revoke-HgsKeyProtectorAccess",
        implemented: &["KeyProtector", "Guardian", "GuardianFriendlyName"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(revoke),
    },
];

/// The guardians of the machine.
pub(super) struct Guardians {
    store: GuardianStore,
    folder: PathBuf,
}

impl Guardians {
    /// Those of the machine where the call is made.
    pub(super) fn here(call: &Call<'_>, lab: &Lab) -> Guardians {
        let folder = lab.folder().join("guardians").join(&call.machine().name);
        Guardians {
            store: GuardianStore::new(&folder),
            folder,
        }
    }

    /// By name.
    pub(super) fn find(&self, call: &mut Call<'_>, name: &str) -> Outcome<StoredGuardian> {
        let found = GuardianName::parse(name).and_then(|name| self.store.find(&name));
        found.map_err(|error| unusable(call, error, name))
    }

    /// The private keys of one of this machine's own.
    pub(super) fn unlock(&self, call: &mut Call<'_>, guardian: &StoredGuardian) -> Outcome<GuardianKeys> {
        if !guardian.has_private_keys() {
            return Err(call.fail(ErrorRecord::new(
                Category::SecurityError,
                "PrivateKeyNotFound",
                format!(
                    "The private keys of the guardian '{}' are not on this computer: only where its certificates with their \
                     private keys are can it own a key protector, or change one that it owns.",
                    guardian.name()
                ),
            )));
        }
        let keys = self.password().and_then(|password| Ok(guardian.unlock(&password)?));
        keys.map_err(|error| failed(call, "GuardianNotOpened", error))
    }

    fn password(&self) -> anyhow::Result<Zeroizing<String>> {
        let path = self.folder.join("password");
        if !path.exists() {
            std::fs::create_dir_all(&self.folder)?;
            let fresh: [u8; 32] = (&mut OsRandom as &mut dyn Random).bytes();
            write_new(&path, Zeroizing::new(hex::encode(fresh)).as_bytes(), 0o600)?;
        }
        Ok(Zeroizing::new(std::fs::read_to_string(&path)?))
    }

    fn add_own(&self, keys: &GuardianKeys) -> anyhow::Result<StoredGuardian> {
        let password = self.password()?;
        Ok(self.store.add_own(keys, &password, &mut OsRandom)?)
    }
}

fn unusable(call: &mut Call<'_>, error: StoreError, name: &str) -> Stop {
    let record = match &error {
        StoreError::Unknown { .. } => ErrorRecord::new(
            Category::ObjectNotFound,
            "GuardianNotFound",
            format!("There is no guardian named '{name}' on this computer: Get-HgsGuardian lists those that are."),
        ),
        StoreError::Exists(_) => ErrorRecord::new(
            Category::ResourceExists,
            "GuardianExists",
            format!("There is a guardian named '{name}' already: choose another name, or Remove-HgsGuardian it first."),
        ),
        other => ErrorRecord::new(
            Category::InvalidData,
            "GuardianNotUsable",
            super::sentence(&other.to_string()),
        ),
    };
    call.fail(record.about(Value::text(name)))
}

/// A guardian as the product's CIM class has it.
fn shown(name: &str, guardian: &Guardian, own: bool) -> Value {
    let subject = CertificateView::of(guardian.signing()).subject;
    let object = objects::typed(
        &["MSFT_HgsGuardian", "Guardian"],
        [
            ("Name", Value::text(name)),
            ("HasPrivateSigningKey", Value::Bool(own)),
            ("SigningCertificateSubject", Value::text(subject)),
            ("SigningCertificate", Value::Bytes(guardian.signing().der().into())),
            (
                "EncryptionCertificate",
                Value::Bytes(guardian.encryption().der().into()),
            ),
        ],
    );
    Value::Object(Rc::new(object))
}

fn stored(guardian: &StoredGuardian) -> Value {
    shown(
        guardian.name().as_str(),
        guardian.guardian(),
        guardian.has_private_keys(),
    )
}

/// The name of a guardian that was given as an object or by name.
pub(super) fn name_of(value: &Value) -> String {
    part_of(value, "Name").map_or_else(|| convert::to_text(value), |name| convert::to_text(&name))
}

/// The guardian's certificates may be used, as the two switches say.
fn check(call: &mut Call<'_>, lab: &Lab, guardian: &Guardian) -> Outcome {
    let machine = call.machine().name.clone();
    let roots: Vec<Vec<u8>> = {
        let state = lab.state(&machine);
        state.certificates.list("Root").map(|kept| kept.der.clone()).collect()
    };
    let rules = TrustRules::new(roots, call.switch("AllowUntrustedRoot"), call.switch("AllowExpired"));
    let Err(distrusted) = rules.check(guardian, lab.time()) else {
        return Ok(());
    };
    let (id, text) = match distrusted {
        Distrusted::Validity {
            certificate,
            not_before,
            not_after,
            ..
        } => (
            "CertificateExpired",
            format!(
                "{certificate} is valid from {not_before} until {not_after} only: ask for a newer one, or repeat with \
                 -AllowExpired."
            ),
        ),
        Distrusted::SelfSigned { certificate } => (
            "UntrustedRoot",
            format!(
                "{certificate} is self-signed, so that only its thumbprint tells whose it is. Compare it with what the guardian's \
                 administrator says; then repeat with -AllowUntrustedRoot, or import it into Cert:\\LocalMachine\\Root."
            ),
        ),
        Distrusted::UnknownRoot {
            certificate, issuer, ..
        } => (
            "UntrustedRoot",
            format!(
                "{certificate} is under no trusted root: its issuer is {issuer}. Import that into Cert:\\LocalMachine\\Root, or \
                 repeat with -AllowUntrustedRoot."
            ),
        ),
    };
    Err(call.fail(ErrorRecord::new(Category::SecurityError, id, super::sentence(&text))))
}

fn new_guardian(call: &mut Call<'_>) -> Outcome {
    let lab = lab(call)?;
    let guardians = Guardians::here(call, &lab);
    let name = call.text("Name").unwrap_or_default();
    if !call.should_process(&name, "Make a guardian")? {
        return Ok(());
    }
    let keys = match call.switch("GenerateCertificates") {
        true => {
            let machine = call.machine().name.clone();
            GuardianKeys::generate(&format!("{name} ({machine})"), lab.time(), &mut OsRandom)
                .map_err(|error| failed(call, "GuardianNotMade", error))
                .map(|keys| renamed(&name, keys))?
        }
        false => {
            let signing = pair(call, &lab, "Signing")?;
            let encryption = pair(call, &lab, "Encryption")?;
            let keys = GuardianKeys::from_pairs(&name, signing, encryption);
            let guardian = keys
                .guardian()
                .map_err(|error| failed(call, "GuardianNotMade", error))?;
            check(call, &lab, &guardian)?;
            keys
        }
    };
    match guardians.add_own(&keys) {
        Ok(guardian) => call.write(stored(&guardian)),
        Err(error) => match error.downcast::<StoreError>() {
            Ok(error) => Err(unusable(call, error, &name)),
            Err(error) => Err(failed(call, "GuardianNotMade", error)),
        },
    }
}

/// The same keys under the guardian's own name: its certificates name the computer too, as the product's do.
fn renamed(name: &str, keys: GuardianKeys) -> GuardianKeys {
    let copy = |pairs: &[KeyPair]| {
        let parts = pairs
            .iter()
            .filter_map(|pair| KeyPair::from_parts(pair.expose_pkcs8()?, pair.certificate().der()).ok());
        parts.collect::<Vec<_>>()
    };
    GuardianKeys::from_lists(name, copy(keys.signing()), copy(keys.encryption()))
}

/// `-SigningCertificate` with its password, or `-SigningCertificateThumbprint`.
fn pair(call: &mut Call<'_>, lab: &Lab, role: &str) -> Outcome<KeyPair> {
    if let Some(file) = call.text(&format!("{role}Certificate")) {
        let bytes = call.read_file(&file)?;
        let password = call.secret(&format!("{role}CertificatePassword"));
        let pair = pair_files::from_pfx(&bytes, password.as_ref().map_or("", |secret| secret.expose()));
        return pair.map_err(|error| failed(call, "CertificateNotUsable", format!("{file}: {error:#}")));
    }
    let thumbprint = call.text(&format!("{role}CertificateThumbprint")).unwrap_or_default();
    let machine = call.machine().name.clone();
    let kept = lab
        .state(&machine)
        .certificates
        .anywhere(&thumbprint)
        .and_then(|kept| kept.pair.clone());
    let copy = kept.and_then(|pair| KeyPair::from_parts(pair.expose_pkcs8()?, pair.certificate().der()).ok());
    copy.ok_or_else(|| {
        call.fail(
            ErrorRecord::new(
                Category::ObjectNotFound,
                "CertificateNotFound",
                format!("{machine} has no certificate {thumbprint} with its private key."),
            )
            .about(Value::text(thumbprint)),
        )
    })
}

fn get_guardians(call: &mut Call<'_>) -> Outcome {
    let lab = lab(call)?;
    let guardians = Guardians::here(call, &lab);
    let names = call.texts("Name");
    if names.is_empty() {
        let all = guardians.store.list().map_err(|error| unusable(call, error, ""))?;
        let all: Vec<Value> = all.iter().flatten().map(stored).collect();
        return call.write_all(all);
    }
    for name in names {
        let found = GuardianName::parse(&name).and_then(|name| guardians.store.find(&name));
        match found {
            Ok(guardian) => call.write(stored(&guardian))?,
            Err(error) => {
                let Stop::Error(record) = unusable(call, error, &name) else {
                    continue;
                };
                call.error(record)?;
            }
        }
    }
    Ok(())
}

fn import_guardian(call: &mut Call<'_>) -> Outcome {
    let lab = lab(call)?;
    let guardians = Guardians::here(call, &lab);
    let (path, name) = (
        call.text("Path").unwrap_or_default(),
        call.text("Name").unwrap_or_default(),
    );
    let document = call.read_file(&path)?;
    let parsed = hgs_protocol::protector::Metadata::import(&document, &name);
    let parsed = parsed.map_err(|error| failed(call, "InvalidGuardianMetadata", format!("{path}: {error}")))?;
    check(call, &lab, parsed.guardian())?;
    if !call.should_process(&name, "Import a guardian")? {
        return Ok(());
    }
    let added = GuardianName::parse(&name).and_then(|name| guardians.store.add_imported(&name, &document));
    match added {
        Ok(guardian) => call.write(stored(&guardian)),
        Err(error) => Err(unusable(call, error, &name)),
    }
}

fn export_guardian(call: &mut Call<'_>) -> Outcome {
    let lab = lab(call)?;
    let guardians = Guardians::here(call, &lab);
    let name = name_of(&call.get("InputObject").unwrap_or(Value::Null));
    let path = call.text("Path").unwrap_or_default();
    let guardian = guardians.find(call, &name)?;
    call.write_file(&path, guardian.document())
}

fn remove_guardian(call: &mut Call<'_>) -> Outcome {
    let lab = lab(call)?;
    let guardians = Guardians::here(call, &lab);
    let name = match call.get("InputObject") {
        Some(given) => name_of(&given),
        None => call.text("Name").unwrap_or_default(),
    };
    if !call.should_process(&name, "Remove a guardian")? {
        return Ok(());
    }
    let removed = GuardianName::parse(&name).and_then(|name| guardians.store.remove(&name));
    removed.map_err(|error| unusable(call, error, &name))
}

/// A key protector as the product's CIM class has it.
fn protector(call: &mut Call<'_>, lab: &Lab, protector: &KeyProtector) -> Outcome<Value> {
    let guardians = Guardians::here(call, lab);
    let known: Vec<StoredGuardian> = match guardians.store.list() {
        Ok(list) => list.into_iter().flatten().collect(),
        Err(_) => Vec::new(),
    };
    let owner_certificate = protector
        .clone()
        .verify()
        .ok()
        .and_then(|chained| chained.owner().cloned());
    let owner = known
        .iter()
        .find(|guardian| Some(guardian.guardian().signing()) == owner_certificate.as_ref());
    let others = known.iter().filter(|guardian| {
        protector.wrapping_of(guardian.guardian()).is_some()
            && owner.is_none_or(|owner| owner.name() != guardian.name())
    });
    let object = objects::typed(
        &["MSFT_HgsKeyProtector"],
        [
            ("Owner", owner.map_or(Value::Null, stored)),
            ("Guardians", Value::list(others.map(stored).collect())),
            ("RawData", Value::Bytes(protector.to_xml().into())),
        ],
    );
    Ok(Value::Object(Rc::new(object)))
}

fn new_protector(call: &mut Call<'_>) -> Outcome {
    let lab = lab(call)?;
    let store = Guardians::here(call, &lab);
    let owner_name = name_of(&call.get("Owner").unwrap_or(Value::Null));
    let owner = store.find(call, &owner_name)?;
    let mut guardians = Vec::new();
    for given in call.get("Guardian").map(|given| given.each()).unwrap_or_default() {
        guardians.push(store.find(call, &name_of(&given))?.guardian().clone());
    }
    let all: Vec<Guardian> = [owner.guardian().clone()]
        .into_iter()
        .chain(guardians.iter().cloned())
        .collect();
    for guardian in &all {
        check(call, &lab, guardian)?;
    }
    let keys = store.unlock(call, &owner)?;
    let made = KeyProtector::create(&keys, &guardians, &mut OsRandom);
    let (made, _) = made.map_err(|error| failed(call, "KeyProtectorNotMade", error))?;
    let shown = protector(call, &lab, &made)?;
    call.write(shown)
}

/// Bytes of a key protector that was given.
fn parsed(call: &mut Call<'_>, value: &Value) -> Outcome<KeyProtector> {
    let bytes = match value {
        Value::Bytes(bytes) => Some(bytes.clone()),
        other => match part_of(other, "RawData") {
            Some(Value::Bytes(bytes)) => Some(bytes),
            _ => None,
        },
    };
    let parsed = KeyProtector::parse(&bytes.unwrap_or_else(|| [].into()));
    parsed.map_err(|error| {
        failed(
            call,
            "InvalidKeyProtector",
            format!("the key protector is not readable: {error}"),
        )
    })
}

fn convert_to_protector(call: &mut Call<'_>) -> Outcome {
    let lab = lab(call)?;
    let given = call.get("Bytes").unwrap_or(Value::Null);
    let read = parsed(call, &given)?;
    let shown = protector(call, &lab, &read)?;
    call.write(shown)
}

/// The guardian that `-Guardian` or `-GuardianFriendlyName` names.
fn named(call: &mut Call<'_>, store: &Guardians) -> Outcome<StoredGuardian> {
    let name = match call.get("Guardian") {
        Some(given) => name_of(&given),
        None => call.text("GuardianFriendlyName").unwrap_or_default(),
    };
    store.find(call, &name)
}

/// The keys of the protector's owner, which must be here.
fn owner_of(call: &mut Call<'_>, store: &Guardians, of: &KeyProtector) -> Outcome<GuardianKeys> {
    let chained = of.clone().verify();
    let chained = chained.map_err(|error| failed(call, "InvalidKeyProtector", error))?;
    let known = store.store.list().map_err(|error| unusable(call, error, ""))?;
    let mut known = known.into_iter().flatten();
    let owner =
        known.find(|guardian| chained.owner() == Some(guardian.guardian().signing()) && guardian.has_private_keys());
    match owner {
        Some(owner) => store.unlock(call, &owner),
        None => Err(call.fail(ErrorRecord::new(
            Category::SecurityError,
            "OwnerNotFound",
            "The private signing key of the key protector's owner is not on this computer, and only its owner can change who \
             has access.",
        ))),
    }
}

fn grant(call: &mut Call<'_>) -> Outcome {
    let lab = lab(call)?;
    let store = Guardians::here(call, &lab);
    let guardian = named(call, &store)?;
    check(call, &lab, guardian.guardian())?;
    let given = call.get("KeyProtector").unwrap_or(Value::Null);
    let present = parsed(call, &given)?;
    let owner = owner_of(call, &store, &present)?;
    let opened = present
        .verify()
        .map_err(anyhow::Error::from)
        .and_then(|chained| Ok(chained.open(&owner, &mut OsRandom)?));
    let opened = opened.map_err(|error| failed(call, "KeyProtectorNotOpened", error))?;
    let granted = opened.grant(&owner, guardian.guardian(), &mut OsRandom);
    let granted = granted.map_err(|error| failed(call, "AccessNotGranted", error))?;
    let shown = protector(call, &lab, &granted)?;
    call.write(shown)
}

fn revoke(call: &mut Call<'_>) -> Outcome {
    let lab = lab(call)?;
    let store = Guardians::here(call, &lab);
    let guardian = named(call, &store)?;
    let given = call.get("KeyProtector").unwrap_or(Value::Null);
    let present = parsed(call, &given)?;
    let Some(wrapping) = present.wrapping_of(guardian.guardian()) else {
        return Err(call.fail(ErrorRecord::new(
            Category::ObjectNotFound,
            "AccessNotFound",
            format!(
                "The guardian '{}' has no access that could be revoked.",
                guardian.name()
            ),
        )));
    };
    let owner = owner_of(call, &store, &present)?;
    let opened = present
        .verify()
        .map_err(anyhow::Error::from)
        .and_then(|chained| Ok(chained.open(&owner, &mut OsRandom)?));
    let opened = opened.map_err(|error| failed(call, "KeyProtectorNotOpened", error))?;
    let revoked = opened
        .revoke(&owner, wrapping)
        .map_err(|error| failed(call, "AccessNotRevoked", error))?;
    call.warning(
        "The transport key is as it was: copies of the old key protector open it still, until the VM was started once with \
         the new one.",
    )?;
    let shown = protector(call, &lab, &revoked.protector)?;
    call.write(shown)
}
