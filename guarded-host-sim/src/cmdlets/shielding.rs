//! Modules ShieldedVMTemplate, ShieldedVMDataFile and ShieldedVMProvisioning: template disks, shielding data, and VMs made of both.

use std::{collections::BTreeMap, fs, path::Path, rc::Rc};

use hgs_protocol::{
    env::OsRandom,
    protector::{KeyPair, KeyProtector},
};
use hgs_shell::{
    call::Call,
    cmdlets::{Implementation, Run},
    error::{Category, ErrorRecord, Outcome},
    value::{Value, convert},
};
use serde_json::json;
use zeroize::Zeroizing;

use super::{client::told, failed, guardian, lab, objects, on_host, part_of};
use crate::{
    lab::Lab,
    shielding::{
        catalogue::{Catalogue, SignedCatalogue, TemplateName, Version},
        data_file::{Contents, DataFile, FileName, NamedFile, NewDataFile},
        qualifier::{Qualifier, VersionRule, qualify},
        template::{TemplateDisk, protect},
        template_command::catalogue_of,
    },
    vm::{operation::ProvisionedVm, request::Blob, security::Kind},
};

pub(super) const ALL: &[Implementation] = &[
    Implementation {
        cmdlet: "Protect-TemplateDisk",
        implemented: &["Path", "TemplateName", "Version", "Certificate", "PopulateFrom"],
        without_effect: &[(
            "ProtectedTemplateTargetDiskType",
            "a disk is any image of a volume here",
        )],
        rejected: &[(
            "DiskIsAlreadySpecialized",
            "disks of VMs are sealed by their virtual TPMs already",
        )],
        run: Run::Each(protect_disk),
    },
    Implementation {
        cmdlet: "Initialize-VMShieldingHelperVHD",
        implemented: &[],
        without_effect: &[],
        rejected: &[("Path", NO_HELPER)],
        run: Run::Each(|call| outside(call, NO_HELPER)),
    },
    Implementation {
        cmdlet: "Save-VolumeSignatureCatalog",
        implemented: &["TemplateDiskPath", "VolumeSignatureCatalogPath"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(save_catalogue),
    },
    Implementation {
        cmdlet: "New-VolumeIDQualifier",
        implemented: &["VolumeSignatureCatalogFilePath", "TemplateDiskFilePath", "VersionRule"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(new_qualifier),
    },
    Implementation {
        cmdlet: "New-ShieldingDataFile",
        implemented: &[
            "ShieldingDataFilePath",
            "Owner",
            "Guardian",
            "VolumeIDQualifier",
            "AnswerFile",
            "OtherFile",
            "Policy",
        ],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(new_data_file),
    },
    Implementation {
        cmdlet: "Import-ShieldingDataFile",
        implemented: &["ShieldingDataFilePath"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(import_data_file),
    },
    Implementation {
        cmdlet: "Get-KeyProtectorFromShieldingDataFile",
        implemented: &["ShieldingDataFilePath"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(protector_of_data_file),
    },
    Implementation {
        cmdlet: "Test-ShieldingDataApplicability",
        implemented: &["ShieldingDataFilePath", "VolumeSignatureCatalogPath"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(test_data_file),
    },
    Implementation {
        cmdlet: "New-ShieldedVMSpecializationDataFile",
        implemented: &["ShieldedVMSpecializationDataFilePath", "SpecializationDataPairs"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(new_values),
    },
    Implementation {
        cmdlet: "Initialize-ShieldedVM",
        implemented: &[
            "ShieldingDataFilePath",
            "ShieldedVMSpecializationDataFilePath",
            "VM",
            "VMName",
        ],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(initialize),
    },
    Implementation {
        cmdlet: "Get-ShieldedVMProvisioningStatus",
        implemented: &["VMName", "VM", "ProvisioningJob"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(status),
    },
    Implementation {
        cmdlet: "Save-ShieldedVMRecoveryKey",
        implemented: &[],
        without_effect: &[],
        rejected: &[
            ("VHDPath", NO_RECOVERY),
            ("DiskNumber", NO_RECOVERY),
            ("Path", NO_RECOVERY),
            ("Force", NO_RECOVERY),
        ],
        run: Run::Each(|call| outside(call, NO_RECOVERY)),
    },
    Implementation {
        cmdlet: "Unprotect-ShieldedVMRecoveryKey",
        implemented: &[],
        without_effect: &[],
        rejected: &[
            ("ShieldingDataFilePath", NO_RECOVERY),
            ("ShieldingDataFileSearchPath", NO_RECOVERY),
            ("Recurse", NO_RECOVERY),
            ("EncryptedBitLockerKeyPath", NO_RECOVERY),
            ("DecryptedBitLockerKeyPath", NO_RECOVERY),
        ],
        run: Run::Each(|call| outside(call, NO_RECOVERY)),
    },
];

const NO_HELPER: &str = "VMs of this lab are shielded by Set-VMSecurityPolicy, without a helper disk";
const NO_RECOVERY: &str =
    "disks of VMs lie on the hosts' volume; vm recovery-key of the command line saves and opens their recovery keys";

fn outside(call: &mut Call<'_>, why: &str) -> Outcome {
    let name = call.name();
    Err(call.fail(ErrorRecord::new(
        Category::NotImplemented,
        "NotInThisLab",
        format!("{name} is not carried out in this lab: {why}."),
    )))
}

/// The key pair of the certificate that was given, from the machine's own stores.
fn signer(call: &mut Call<'_>, lab: &Lab) -> Outcome<std::sync::Arc<KeyPair>> {
    let given = call.get("Certificate").unwrap_or(Value::Null);
    let thumbprint = part_of(&given, "Thumbprint")
        .map(|text| convert::to_text(&text))
        .unwrap_or_default();
    let machine = call.machine().name.clone();
    let pair = lab
        .state(&machine)
        .certificates
        .anywhere(&thumbprint)
        .and_then(|kept| kept.pair.clone());
    pair.ok_or_else(|| {
        call.fail(ErrorRecord::new(
            Category::ObjectNotFound,
            "NoPrivateKey",
            format!("{machine} has no private key of the certificate {thumbprint} to sign with."),
        ))
    })
}

fn protect_disk(call: &mut Call<'_>) -> Outcome {
    let lab = lab(call)?;
    let path = call.text("Path").unwrap_or_default();
    let disk = call.file(&path)?;
    let signer = signer(call, &lab)?;
    let populated = match call.text("PopulateFrom") {
        Some(from) => {
            let file = call.file(&from)?;
            let catalogue = catalogue_of(&file).map_err(|error| failed(call, "TemplateNotReadable", error))?;
            Some((catalogue.identity().name.clone(), catalogue.identity().version))
        }
        None => None,
    };
    let name = match (call.text("TemplateName"), &populated) {
        (Some(text), _) => text
            .parse::<TemplateName>()
            .map_err(|error| failed(call, "InvalidTemplateName", error))?,
        (None, Some((name, _))) => name.clone(),
        (None, None) => return outside(call, "a template needs -TemplateName"),
    };
    let version = match (call.get("Version").map(|value| convert::to_text(&value)), populated) {
        (Some(text), _) => text
            .parse::<Version>()
            .map_err(|error| failed(call, "InvalidVersion", error))?,
        (None, Some((_, version))) => version,
        (None, None) => return outside(call, "a template needs -Version"),
    };
    if !call.should_process(&path, "Protect a template disk")? {
        return Ok(());
    }
    let made = sign(&disk, name, version, &signer);
    made.map_err(|error| failed(call, "TemplateNotProtected", error))
}

/// All or nothing: the disk is a template, or as it was.
fn sign(disk: &Path, name: TemplateName, version: Version, signer: &KeyPair) -> anyhow::Result<()> {
    let mut from = fs::File::open(disk)?;
    let folder = disk.parent().unwrap_or(Path::new("."));
    let mut to = tempfile::Builder::new().tempfile_in(folder)?;
    protect(&mut from, to.as_file_mut(), name, version, signer)?;
    to.as_file().sync_all()?;
    to.persist(disk)?;
    Ok(())
}

fn save_catalogue(call: &mut Call<'_>) -> Outcome {
    let path = call.text("TemplateDiskPath").unwrap_or_default();
    let disk = call.file(&path)?;
    let template =
        TemplateDisk::open(&disk).map_err(|error| failed(call, "TemplateNotReadable", format!("{path}: {error}")))?;
    let to = call.text("VolumeSignatureCatalogPath").unwrap_or_default();
    call.write_file(&to, &template.catalogue().encode())
}

fn new_qualifier(call: &mut Call<'_>) -> Outcome {
    let path = call
        .text("VolumeSignatureCatalogFilePath")
        .or_else(|| call.text("TemplateDiskFilePath"))
        .unwrap_or_default();
    let file = call.file(&path)?;
    let catalogue = catalogue_of(&file).map_err(|error| failed(call, "CatalogNotReadable", error))?;
    let rule = call.text("VersionRule").unwrap_or_default();
    let identity = catalogue.identity();
    let object = hgs_shell::value::Object::new(
        "VolumeIDQualifier",
        [
            ("VolumeName", Value::text(identity.name.as_str())),
            ("VolumeVersion", Value::text(identity.version.to_string())),
            ("VersionRule", Value::text(rule)),
        ],
    );
    object
        .hidden
        .borrow_mut()
        .set("Catalogue", Value::Bytes(catalogue.encode().into()));
    call.write(Value::Object(Rc::new(object)))
}

fn qualifier(call: &mut Call<'_>, given: &Value) -> Outcome<Qualifier> {
    let bytes = match part_of(given, "Catalogue") {
        Some(Value::Bytes(bytes)) => bytes,
        _ => [].into(),
    };
    let catalogue: Result<SignedCatalogue, _> = Catalogue::parse(&bytes).and_then(Catalogue::verify);
    let catalogue = catalogue.map_err(|error| failed(call, "InvalidVolumeIDQualifier", error))?;
    let rule = part_of(given, "VersionRule")
        .map(|rule| convert::to_text(&rule))
        .unwrap_or_default();
    let rule = match rule.to_ascii_lowercase().as_str() {
        "greaterthan" => VersionRule::GreaterThan,
        "greaterthanorequals" => VersionRule::GreaterThanOrEquals,
        _ => VersionRule::Equals,
    };
    Ok(Qualifier::of(&catalogue, rule))
}

fn new_data_file(call: &mut Call<'_>) -> Outcome {
    let lab = lab(call)?;
    let given = call
        .get("VolumeIDQualifier")
        .map(|given| given.each())
        .unwrap_or_default();
    let answer = call.get("AnswerFile").map(|file| convert::to_text(&file));
    let (false, Some(answer)) = (given.is_empty(), answer) else {
        return outside(
            call,
            "shielding data is for new VMs of a template: give -VolumeIDQualifier and -AnswerFile",
        );
    };
    let mut qualifiers = Vec::new();
    for one in &given {
        qualifiers.push(qualifier(call, one)?);
    }
    let answer = Zeroizing::new(call.read_file(&answer)?);
    let mut others = Vec::new();
    for file in call.get("OtherFile").map(|given| given.each()).unwrap_or_default() {
        let path = convert::to_text(&file);
        let name = path.rsplit('\\').next().unwrap_or_default().to_owned();
        let content = Zeroizing::new(call.read_file(&path)?);
        let name = FileName::parse(&name).map_err(|error| failed(call, "InvalidFileName", error))?;
        others.push(NamedFile { name, content });
    }
    let store = guardian::Guardians::here(call, &lab);
    let owner_name = guardian::name_of(&call.get("Owner").unwrap_or(Value::Null));
    let owner = store.find(call, &owner_name)?;
    let mut guardians = Vec::new();
    for one in call.get("Guardian").map(|given| given.each()).unwrap_or_default() {
        guardians.push(store.find(call, &guardian::name_of(&one))?.guardian().clone());
    }
    let keys = store.unlock(call, &owner)?;
    let path = call.text("ShieldingDataFilePath").unwrap_or_default();
    let policy = match call.text("Policy") {
        Some(policy) if policy.eq_ignore_ascii_case("EncryptionSupported") => Kind::EncryptionSupported,
        _ => Kind::Shielded,
    };
    if !call.should_process(&path, "Create a shielding data file")? {
        return Ok(());
    }
    let made = || -> anyhow::Result<Vec<u8>> {
        let contents = Contents::new(answer, others, &mut OsRandom)?;
        let (protector, key) = KeyProtector::create(&keys, &guardians, &mut OsRandom)?;
        let new = NewDataFile {
            protector: (&protector, &key),
            policy,
            qualifiers: &qualifiers,
            contents: &contents,
        };
        Ok(new.seal(&keys, &mut OsRandom)?)
    };
    let bytes = made().map_err(|error| failed(call, "ShieldingDataNotMade", error))?;
    call.write_file(&path, &bytes)
}

fn data_file(call: &mut Call<'_>) -> Outcome<(Vec<u8>, DataFile)> {
    let path = call.text("ShieldingDataFilePath").unwrap_or_default();
    let bytes = call.read_file(&path)?;
    let file =
        DataFile::parse(&bytes).map_err(|error| failed(call, "InvalidShieldingData", format!("{path}: {error}")))?;
    Ok((bytes, file))
}

fn import_data_file(call: &mut Call<'_>) -> Outcome {
    let (_, file) = data_file(call)?;
    let qualifiers = file
        .qualifiers()
        .iter()
        .map(|qualifier| Value::text(qualifier.name.as_str()))
        .collect();
    call.write(Value::object(
        "ShieldingDataFile",
        [
            ("Id", Value::text(file.id().to_string())),
            ("Policy", Value::text(file.policy().to_string())),
            ("VolumeIDQualifiers", Value::list(qualifiers)),
            ("KeyProtector", Value::Bytes(file.protector().into())),
        ],
    ))
}

fn protector_of_data_file(call: &mut Call<'_>) -> Outcome {
    let (_, file) = data_file(call)?;
    call.write(Value::Bytes(file.protector().into()))
}

fn test_data_file(call: &mut Call<'_>) -> Outcome {
    let (_, file) = data_file(call)?;
    let path = call.text("VolumeSignatureCatalogPath").unwrap_or_default();
    let real = call.file(&path)?;
    let catalogue = catalogue_of(&real).map_err(|error| failed(call, "CatalogNotReadable", error))?;
    let signed = file
        .verify()
        .map_err(|error| failed(call, "InvalidShieldingData", error))?;
    let verdict = qualify(signed.file().qualifiers(), &catalogue);
    if let Err(error) = &verdict {
        call.verbose(&error.to_string());
    }
    call.write(Value::Bool(verdict.is_ok()))
}

fn new_values(call: &mut Call<'_>) -> Outcome {
    let path = call.text("ShieldedVMSpecializationDataFilePath").unwrap_or_default();
    let mut pairs = BTreeMap::new();
    if let Some(Value::Table(table)) = call.get("SpecializationDataPairs") {
        for (name, value) in table.borrow().iter() {
            pairs.insert(name.to_owned(), convert::to_text(value));
        }
    }
    let text = serde_json::to_vec_pretty(&pairs).map_err(|error| failed(call, "SpecializationData", error))?;
    call.write_file(&path, &text)
}

fn initialize(call: &mut Call<'_>) -> Outcome {
    let (lab, agent) = on_host(call)?;
    let host = call.machine().name.clone();
    let name = match call.get("VM") {
        Some(given) => guardian::name_of(&given),
        None => call.text("VMName").unwrap_or_default(),
    };
    let (shielding_data, _) = data_file(call)?;
    let planned = lab
        .host(&host)
        .and_then(|host| host.planned.get(&name.to_ascii_lowercase()).cloned());
    let Some(disk) = planned.as_ref().and_then(|planned| planned.disk.clone()) else {
        return Err(call.fail(
            ErrorRecord::new(
                Category::InvalidOperation,
                "VMNotReady",
                format!(
                    "'{name}' is no new virtual machine with a template disk on {host}: New-VM -Generation 2 -VHDPath with a copy \
                     of a protected template makes one."
                ),
            )
            .about(Value::text(name)),
        ));
    };
    let values: BTreeMap<String, String> = match call.text("ShieldedVMSpecializationDataFilePath") {
        Some(path) => {
            let bytes = call.read_file(&path)?;
            serde_json::from_slice(&bytes)
                .map_err(|error| failed(call, "SpecializationData", format!("{path}: {error}")))?
        }
        None => BTreeMap::new(),
    };
    // Names on the volume have small letters only.
    let name = name.to_ascii_lowercase();
    // The store opens templates on the hosts' volume only.
    let template = format!("{name}.template");
    let copied = fs::copy(&disk, lab.volume().join(&template));
    copied.map_err(|error| failed(call, "TemplateNotCopied", error))?;
    let body = json!({ "shielding_data": Blob(shielding_data), "template": template, "values": values });
    let answer = lab.wait(agent.post::<ProvisionedVm>(&format!("vms/{name}/provision"), &body));
    let cleared = fs::remove_file(lab.volume().join(&template));
    let made = told(call, "ProvisioningFailed", answer);
    let note = match &made {
        Ok(_) => "Completed".to_owned(),
        Err(hgs_shell::error::Stop::Error(record)) => format!("Failed: {}", record.message),
        Err(_) => "Failed".to_owned(),
    };
    lab.state(&host)
        .notes
        .insert(format!("provisioning {}", name.to_ascii_lowercase()), note);
    made?;
    cleared.map_err(|error| failed(call, "TemplateNotRemoved", error))?;
    if let Some(mut host) = lab.host(&host) {
        host.planned.remove(&name.to_ascii_lowercase());
    }
    let job = job(&lab, &host, &name);
    call.write(job)
}

fn job(lab: &Lab, host: &str, name: &str) -> Value {
    let note = lab
        .state(host)
        .notes
        .get(&format!("provisioning {}", name.to_ascii_lowercase()))
        .cloned();
    let note = note.unwrap_or_else(|| "None".to_owned());
    let (status, error) = note.split_once(": ").unwrap_or((&note, ""));
    let object = objects::typed(
        &["MSFT_ShieldedVMProvisioningJob"],
        [
            ("VMName", Value::text(name)),
            ("JobStatus", Value::text(status)),
            (
                "PercentComplete",
                Value::Int(if status == "Completed" { 100 } else { 0 }),
            ),
            ("ErrorDescription", Value::text(error)),
        ],
    );
    Value::Object(Rc::new(object))
}

fn status(call: &mut Call<'_>) -> Outcome {
    let (lab, _) = on_host(call)?;
    let host = call.machine().name.clone();
    let given = call.get("ProvisioningJob").or_else(|| call.get("VM"));
    let name = match given {
        Some(given) => {
            part_of(&given, "VMName").map_or_else(|| guardian::name_of(&given), |name| convert::to_text(&name))
        }
        None => call.text("VMName").unwrap_or_default(),
    };
    let job = job(&lab, &host, &name);
    call.write(job)
}
