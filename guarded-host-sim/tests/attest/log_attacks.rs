//! Attacks by way of the boot log. The attacker owns the machine: it extends what it likes into a
//! genuine TPM and shows whatever log it likes. Each row is one attack with the reply it gets.

use guarded_host_sim::{
    machine::boot::{Boot, STARTUP_LOCALITY},
    machine::dials::Dials,
    swtpm::{Swtpm, TpmMaker},
};
use hgs_protocol::{
    crypto::{RsaPrivateKey, RsaPublicKey, sha256},
    env::{OsRandom, Random},
    health::CertificateKind,
    tpm::command,
    wire::{
        boot_log::{Bank, BootLog, BootLogBuilder, Event, EventType, PCR11_CAP, PcrIndex, WBCL_SEPARATOR},
        hgsa::{ProvidedKind, Reply, Request, SessionId},
        rtpm::{Blob, Context, DeviceInfo},
        sipa::{self, SiPolicy, Tag, id},
        uefi::{GLOBAL_VARIABLE, IMAGE_SECURITY_DATABASE, UefiVariable},
        vsm,
    },
};

use crate::lab::Service;

struct Attack {
    name: &'static str,
    forge: fn(&mut Forgery),
    reply: &'static str,
}

const ATTACKS: &[Attack] = &[
    // Log and TPM told different things.
    attack(
        "an event measured after the boot, left out of the log",
        |f| {
            f.booted_only(12, EventType::EVENT_TAG, truth(id::OSKERNELDEBUG, false));
        },
        TCG_LOG,
    ),
    attack(
        "an event appended to the log alone",
        |f| {
            let end = f.log.len();
            f.shown_edit(|log| log.insert(end, record(12, EventType::EVENT_TAG, truth(id::OSKERNELDEBUG, false))));
        },
        TCG_LOG,
    ),
    attack(
        "the record of a debugger cut out of the log",
        |f| {
            f.set(id::OSKERNELDEBUG, &[1]);
            let at = f.stage(id::OSKERNELDEBUG);
            f.shown_edit(|log| drop(log.remove(at)));
        },
        TCG_LOG,
    ),
    attack(
        "a debugger shown as off, under the digest of the truth",
        |f| {
            f.set(id::OSKERNELDEBUG, &[1]);
            let at = f.stage(id::OSKERNELDEBUG);
            f.shown_edit(|log| log[at].data = edited(&log[at], |tags| set(tags, id::OSKERNELDEBUG, &[0])));
        },
        TCG_LOG,
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
    ),
    attack(
        "the record of a debugger relabelled as not measured",
        |f| {
            f.set(id::OSKERNELDEBUG, &[1]);
            let at = f.stage(id::OSKERNELDEBUG);
            f.shown_edit(|log| log[at].event_type = EventType::NO_ACTION);
        },
        TCG_LOG,
    ),
    attack(
        "two records of one PCR in another order",
        |f| {
            let at = f.stage(id::OSKERNELDEBUG);
            f.shown_edit(|log| log.swap(at, 0));
        },
        TCG_LOG,
    ),
    attack(
        "a record doubled in the log alone",
        |f| {
            let at = f.stage(id::OSKERNELDEBUG);
            f.shown_edit(|log| log.insert(at, log[at].clone()));
        },
        TCG_LOG,
    ),
    attack(
        "a record moved to another PCR in the log alone",
        |f| {
            let at = f.stage(id::SI_POLICY);
            f.shown_edit(|log| log[at].pcr = 12);
        },
        TCG_LOG,
    ),
    attack("another startup locality claimed", |f| f.locality = 0, TCG_LOG),
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
    ),
    attack("a PCR extended between the two reads", |f| f.meanwhile = Some(14), RTPM),
    // Log and TPM agree: software measures after the boot.
    attack(
        "an event measured after the cap and logged",
        |f| {
            f.append(12, EventType::EVENT_TAG, truth(id::OSKERNELDEBUG, false));
        },
        TCG_LOG,
    ),
    attack(
        "a policy measured after the cap of PCR 13 and logged",
        |f| {
            f.append(13, EventType::EVENT_TAG, policy("SIPolicy.p7b", b"another policy"));
        },
        TCG_LOG,
    ),
    attack(
        "a VSM key measured after the cap and logged",
        |f| {
            f.drop_tag(id::VSM_IDK_INFO);
            let key = stage(&[Tag::new(id::VSM_IDK_INFO, idk(&f.other))]);
            f.append(12, EventType::EVENT_TAG, key);
        },
        TCG_LOG,
    ),
    attack(
        "a record after the cap relabelled as a separator",
        |f| {
            f.append(12, EventType::SEPARATOR, truth(id::OSKERNELDEBUG, false));
        },
        TCG_LOG,
    ),
    attack(
        "the cap relabelled as a tagged event, and more measured after it",
        |f| {
            let cap = f.cap(12);
            f.log[cap].event_type = EventType::EVENT_TAG;
            f.append(12, EventType::EVENT_TAG, truth(id::OSKERNELDEBUG, false));
        },
        TCG_LOG,
    ),
    attack(
        "the boot's end capped twice",
        |f| f.append(12, EventType::SEPARATOR, WBCL_SEPARATOR.to_vec()),
        TCG_LOG,
    ),
    attack("PCR 12 never capped", |f| f.remove_cap(12), TCG_LOG),
    attack("PCR 13 never capped", |f| f.remove_cap(13), TCG_LOG),
    attack("PCR 14 never capped", |f| f.remove_cap(14), TCG_LOG),
    attack(
        "PCR 12 capped with the separator of the firmware",
        |f| {
            let cap = f.cap(12);
            f.log[cap] = record(12, EventType::SEPARATOR, vec![0; 4]);
        },
        TCG_LOG,
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
    ),
    attack(
        "a record with the digest of something else",
        |f| {
            let at = f.stage(id::OSKERNELDEBUG);
            f.log[at].digests = vec![(Bank::Sha256, vec![7; 32])];
        },
        TCG_LOG,
    ),
    attack(
        "a debugger on at one stage and off at a second",
        |f| {
            let at = f.stage(id::OSKERNELDEBUG);
            f.log
                .insert(at, record(12, EventType::EVENT_TAG, truth(id::OSKERNELDEBUG, true)));
        },
        POLICY,
    ),
    attack(
        "a truth value that is neither",
        |f| f.set(id::OSKERNELDEBUG, &[2]),
        POLICY,
    ),
    attack(
        "a truth value of two bytes",
        |f| f.set(id::DUMPS_DISABLED, &[1, 1]),
        POLICY,
    ),
    attack(
        "the loader's stage measured into PCR 13",
        |f| {
            let at = f.stage(id::OSKERNELDEBUG);
            f.log[at].pcr = 13;
        },
        POLICY,
    ),
    attack(
        "the code-integrity policy measured into PCR 12",
        |f| {
            let at = f.stage(id::SI_POLICY);
            f.log[at].pcr = 12;
        },
        POLICY,
    ),
    attack(
        "a second code-integrity policy, unregistered",
        |f| {
            let at = f.stage(id::SI_POLICY);
            f.log
                .insert(at, record(13, EventType::EVENT_TAG, policy("Own.p7b", b"own")));
        },
        POLICY,
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
    ),
    attack(
        "the registered policy inside an unmeasured container",
        |f| {
            let at = f.stage(id::SI_POLICY);
            f.hide(at, id::SI_POLICY);
        },
        POLICY,
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
    ),
    // VSM keys.
    attack(
        "the VSM key only inside an unmeasured container",
        |f| {
            let at = f.stage(id::VSM_IDK_INFO);
            f.hide(at, id::VSM_IDK_INFO);
        },
        POLICY,
    ),
    attack(
        "the VSM key only in a record that is not measured",
        |f| {
            let key = f.drop_tag(id::VSM_IDK_INFO);
            let at = f.cap(12);
            f.log.insert(at, record(12, EventType::NO_ACTION, stage(&[key])));
        },
        POLICY,
    ),
    attack(
        "the VSM key in PCR 13",
        |f| {
            let key = f.drop_tag(id::VSM_IDK_INFO);
            let at = f.cap(13);
            f.log.insert(at, record(13, EventType::EVENT_TAG, stage(&[key])));
        },
        POLICY,
    ),
    attack(
        "the VSM key in PCR 11",
        |f| {
            let key = f.drop_tag(id::VSM_IDK_INFO);
            f.append(11, EventType::EVENT_TAG, stage(&[key]));
        },
        POLICY,
    ),
    attack(
        "a second VSM key beside the host's",
        |f| {
            let key = Tag::new(id::VSM_IDK_INFO, idk(&f.other));
            let at = f.cap(12);
            f.log.insert(at, record(12, EventType::EVENT_TAG, stage(&[key])));
        },
        VSM,
    ),
    attack(
        "a second VSM signing key",
        |f| {
            let key = Tag::new(id::VSM_IDKS_INFO, idk(&f.other));
            let at = f.cap(12);
            f.log.insert(at, record(12, EventType::EVENT_TAG, stage(&[key])));
        },
        VSM,
    ),
    attack("no VSM signing key", |f| drop(f.drop_tag(id::VSM_IDKS_INFO)), VSM),
    attack(
        "a VSM key with a byte too many",
        |f| {
            let data = [idk(&f.other), vec![0]].concat();
            f.set(id::VSM_IDK_INFO, &data);
        },
        VSM,
    ),
    attack(
        "a VSM key of 512 bits",
        |f| {
            let head = [1u32, 512, 3, 64].map(u32::to_le_bytes).concat();
            f.set(id::VSM_IDK_INFO, &[head, vec![1, 0, 1], vec![0xFF; 64]].concat());
        },
        VSM,
    ),
    attack(
        "a VSM key with exponent 1",
        |f| {
            let head = [1u32, 2048, 1, 256].map(u32::to_le_bytes).concat();
            f.set(id::VSM_IDK_INFO, &[head, vec![1], vec![0xFF; 256]].concat());
        },
        VSM,
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
    ),
    attack(
        "the SecureBoot variable relabelled as a boot variable",
        |f| {
            let at = f.variable("SecureBoot");
            f.log[at].event_type = EventType::EFI_VARIABLE_BOOT;
        },
        POLICY,
    ),
    attack(
        "a SecureBoot variable of two bytes",
        |f| {
            let at = f.variable("SecureBoot");
            f.log[at] = record(7, EventType::EFI_VARIABLE_DRIVER_CONFIG, secure_boot(&[1, 0]));
        },
        POLICY,
    ),
    attack(
        "a SecureBoot variable with bytes after it",
        |f| {
            let at = f.variable("SecureBoot");
            let data = [secure_boot(&[1]), vec![0]].concat();
            f.log[at] = record(7, EventType::EFI_VARIABLE_DRIVER_CONFIG, data);
        },
        TCG_LOG,
    ),
    attack(
        "a SecureBoot variable of another namespace",
        |f| {
            let at = f.variable("SecureBoot");
            let variable = variable(IMAGE_SECURITY_DATABASE, "SecureBoot", &[1]);
            f.log[at] = record(7, EventType::EFI_VARIABLE_DRIVER_CONFIG, variable);
        },
        POLICY,
    ),
    attack(
        "a boot manager of another authority",
        |f| {
            let authority = variable(IMAGE_SECURITY_DATABASE, "db", b"certificate of the attacker");
            f.append(7, EventType::EFI_VARIABLE_AUTHORITY, authority);
        },
        POLICY,
    ),
    attack(
        "an authority relabelled as a variable",
        |f| {
            let is_authority = |event: &Event| event.event_type == EventType::EFI_VARIABLE_AUTHORITY;
            let at = f.log.iter().position(is_authority).unwrap();
            f.log[at].event_type = EventType::EFI_VARIABLE_DRIVER_CONFIG;
        },
        TCG_LOG,
    ),
    attack(
        "PCR 7 without a separator",
        |f| {
            let at = f.separator(7);
            f.log.remove(at);
        },
        TCG_LOG,
    ),
    // Bytes that are no log.
    attack("no log", |f| f.bytes = Some(Vec::new()), TCG_LOG),
    attack(
        "a log cut off",
        |f| {
            let bytes = f.encoded();
            f.bytes = Some(bytes[..bytes.len() / 2].to_vec());
        },
        TCG_LOG,
    ),
    attack(
        "a log with bytes after its last record",
        |f| f.bytes = Some([f.encoded(), vec![1, 2, 3]].concat()),
        TCG_LOG,
    ),
    attack(
        "a record that announces four gigabytes",
        |f| {
            let tail = [12u32, 6, 0, u32::MAX].map(u32::to_le_bytes).concat();
            f.bytes = Some([f.encoded(), tail].concat());
        },
        TCG_LOG,
    ),
    attack(
        "a record that announces four billion digests",
        |f| {
            let tail = [12u32, 6, u32::MAX].map(u32::to_le_bytes).concat();
            f.bytes = Some([f.encoded(), tail].concat());
        },
        TCG_LOG,
    ),
    attack(
        "a record of PCR 24",
        |f| {
            let tail = [24u32, 6, 0, 0].map(u32::to_le_bytes).concat();
            f.bytes = Some([f.encoded(), tail].concat());
        },
        TCG_LOG,
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
    ),
    attack(
        "a log over half a megabyte",
        |f| {
            f.log.insert(1, record(0, EventType::NO_ACTION, vec![0; 600 * 1024]));
        },
        RTPM,
    ),
];

const TCG_LOG: &str = "TcgLogValidationErrorReply";
const POLICY: &str = "PolicyEvaluationErrorReply";
const VSM: &str = "VirtualSecureModeErrorReply";
const RTPM: &str = "RtpmErrorReply";

const fn attack(name: &'static str, forge: fn(&mut Forgery), reply: &'static str) -> Attack {
    Attack { name, forge, reply }
}

/// What the attacker boots and what it shows.
struct Forgery {
    /// Every record that is extended, and shown unless the next fields say otherwise.
    log: Vec<Event>,
    /// Extended after the boot and not shown.
    secret: Vec<Event>,
    /// Shown in place of `log`.
    shown: Option<Vec<Event>>,
    /// Shown in place of any records.
    bytes: Option<Vec<u8>>,
    /// The startup locality that the log claims.
    locality: u8,
    /// A PCR extended between the two reads.
    meanwhile: Option<u8>,
    /// A key that the host's VBS store does not have.
    other: RsaPublicKey,
}

impl Forgery {
    fn shown_edit(&mut self, edit: impl FnOnce(&mut Vec<Event>)) {
        let mut shown = self.log.clone();
        edit(&mut shown);
        self.shown = Some(shown);
    }

    fn booted_only(&mut self, pcr: u32, kind: EventType, data: Vec<u8>) {
        self.secret.push(record(pcr, kind, data));
    }

    fn append(&mut self, pcr: u32, kind: EventType, data: Vec<u8>) {
        self.log.push(record(pcr, kind, data));
    }

    /// The last record that holds a tag.
    fn stage(&self, id: u32) -> usize {
        let holds = |event: &Event| {
            event.event_type == EventType::EVENT_TAG
                && sipa::measured_leaves(&event.data).is_ok_and(|tags| tags.iter().any(|tag| tag.id == id))
        };
        self.log.iter().rposition(holds).unwrap()
    }

    fn cap(&self, pcr: u32) -> usize {
        let is_cap = |event: &Event| event.pcr == pcr && event.data == WBCL_SEPARATOR;
        self.log.iter().position(is_cap).unwrap()
    }

    fn remove_cap(&mut self, pcr: u32) {
        let at = self.cap(pcr);
        self.log.remove(at);
    }

    fn separator(&self, pcr: u32) -> usize {
        let is_separator = |event: &Event| event.pcr == pcr && event.event_type == EventType::SEPARATOR;
        self.log.iter().position(is_separator).unwrap()
    }

    fn variable(&self, name: &str) -> usize {
        let is_it = |event: &Event| event.pcr == 7 && UefiVariable::parse(&event.data).is_some_and(|v| v.name == name);
        self.log.iter().position(is_it).unwrap()
    }

    fn edit(&mut self, at: usize, edit: impl FnOnce(&mut Vec<Tag>)) {
        let event = &self.log[at];
        self.log[at] = record(event.pcr, event.event_type, edited(event, edit));
    }

    fn set(&mut self, id: u32, data: &[u8]) {
        self.edit(self.stage(id), |tags| set(tags, id, data));
    }

    fn drop_tag(&mut self, id: u32) -> Tag {
        let mut dropped = None;
        self.edit(self.stage(id), |tags| {
            let at = tags.iter().position(|tag| tag.id == id).unwrap();
            dropped = Some(tags.remove(at));
        });
        dropped.unwrap()
    }

    /// Puts a tag into an unmeasured container.
    fn hide(&mut self, at: usize, id: u32) {
        self.edit(at, |tags| {
            for tag in tags.iter_mut().filter(|tag| tag.id == id) {
                *tag = Tag::container(id::TRUSTPOINT_AGGREGATION, std::slice::from_ref(tag));
            }
        });
    }

    fn encoded(&self) -> Vec<u8> {
        if let Some(bytes) = &self.bytes {
            return bytes.clone();
        }
        let mut builder = BootLogBuilder::new(self.locality);
        for event in self.shown.as_ref().unwrap_or(&self.log) {
            let pcr = event.pcr_index().unwrap();
            match event.is_measured() {
                true => {
                    let digest = event.digest(Bank::Sha256).unwrap().try_into().unwrap();
                    builder.measure_digest(pcr, event.event_type, digest, event.data.clone());
                }
                false => builder.note(pcr, event.data.clone()),
            }
        }
        builder.finish()
    }
}

fn record(pcr: u32, event_type: EventType, data: Vec<u8>) -> Event {
    Event {
        pcr,
        event_type,
        digests: vec![(Bank::Sha256, sha256(&data).to_vec())],
        data,
        offset: 0,
    }
}

/// The data of a stage with its tags changed.
fn edited(event: &Event, edit: impl FnOnce(&mut Vec<Tag>)) -> Vec<u8> {
    let mut tags = sipa::parse_tags(&event.data).unwrap().remove(0).nested().unwrap();
    edit(&mut tags);
    stage(&tags)
}

fn set(tags: &mut [Tag], id: u32, data: &[u8]) {
    for tag in tags.iter_mut().filter(|tag| tag.id == id) {
        tag.data = data.to_vec();
    }
}

fn stage(tags: &[Tag]) -> Vec<u8> {
    sipa::encode_tags(&[Tag::container(id::TRUSTBOUNDARY, tags)])
}

fn truth(id: u32, value: bool) -> Vec<u8> {
    stage(&[Tag::boolean(id, value)])
}

fn policy(name: &str, policy: &[u8]) -> Vec<u8> {
    let policy = SiPolicy {
        version: 1,
        name: name.to_owned(),
        algorithm: 0x000B,
        digest: sha256(policy).to_vec(),
    };
    stage(&[Tag::new(id::SI_POLICY, policy.encode())])
}

fn idk(key: &RsaPublicKey) -> Vec<u8> {
    vsm::encode_idk_info(key)
}

fn variable(guid: [u8; 16], name: &str, data: &[u8]) -> Vec<u8> {
    UefiVariable {
        guid,
        name: name.to_owned(),
        data: data.to_vec(),
    }
    .encode()
}

fn secure_boot(data: &[u8]) -> Vec<u8> {
    variable(GLOBAL_VARIABLE, "SecureBoot", data)
}

/// A machine of the attacker's: a TPM of a trusted maker, and everything around it at will.
struct Rogue {
    tpm: Swtpm,
    certificate: Vec<u8>,
    http: reqwest::Client,
    url: String,
}

impl Rogue {
    fn make(service: &Service, maker: &TpmMaker, name: &str) -> Rogue {
        let state = service.dir.join(name);
        let certificate = maker.manufacture(name, &state, None).unwrap();
        Rogue {
            tpm: Swtpm::start(name, &state, None).unwrap(),
            certificate,
            http: reqwest::Client::new(),
            url: format!("http://{}/Attestation/v2.0/attest", service.address),
        }
    }

    /// The records of an honest boot of the simulated machine, without the first, which claims the locality.
    fn honest_boot(&mut self, keys: [&RsaPublicKey; 2]) -> Vec<Event> {
        self.tpm.reset(STARTUP_LOCALITY).unwrap();
        let mut boot = Boot::begin(self.tpm.channel());
        boot.measure_configuration(&Dials::default()).unwrap();
        let bytes = boot.finish(1, Some((keys[0], keys[1]))).unwrap();
        BootLog::parse(&bytes).unwrap().events()[1..].to_vec()
    }

    fn extend(&mut self, event: &Event) {
        if event.is_measured() {
            let pcr = event.pcr_index().map(PcrIndex::get).unwrap();
            let digest = event.digest(Bank::Sha256).unwrap().try_into().unwrap();
            let command = command::pcr_extend(pcr, &digest);
            self.tpm.channel().call_with_empty_password(&command).unwrap();
        }
    }

    async fn attest(&mut self, forgery: &Forgery) -> Reply {
        self.tpm.reset(STARTUP_LOCALITY).unwrap();
        for event in forgery.log.iter().chain(&forgery.secret) {
            self.extend(event);
        }
        let shown = forgery.encoded();
        let session =
            SessionId(uuid::Builder::from_random_bytes((&mut OsRandom as &mut dyn Random).bytes()).into_uuid());
        let mut context = None;
        for trip in 0..5 {
            let mut provided = vec![(ProvidedKind::EndorsementKeyCertificate, self.certificate.clone())];
            provided.extend(context.map(|context: Context| (ProvidedKind::RtpmContext, context.encode())));
            let request = Request::Attestation {
                session,
                requested: vec![CertificateKind::Encryption, CertificateKind::Signing],
                provided,
            };
            let sent = self.http.post(&self.url).body(request.encode()).send().await.unwrap();
            let mut asked = match Reply::parse(&sent.bytes().await.unwrap()).unwrap() {
                Reply::TpmContinue { context } => Context::parse(&context).unwrap(),
                other => return other,
            };
            for blob in &mut asked.blobs {
                *blob = match blob {
                    Blob::BootLogWanted => Blob::BootLog(shown.clone()),
                    Blob::DeviceInfoWanted => Blob::DeviceInfo(DeviceInfo {
                        tpm_version: 2,
                        interface_type: 4,
                        implementation_version: 0,
                    }),
                    Blob::Tpm(command) => Blob::Tpm(self.tpm.channel().transact(command).unwrap()),
                    other => panic!("{other:?}"),
                };
            }
            if let (1, Some(pcr)) = (trip, forgery.meanwhile) {
                self.extend(&record(u32::from(pcr), EventType::COMPACT_HASH, PCR11_CAP.to_vec()));
            }
            context = Some(asked);
        }
        panic!("the exchange does not end");
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
        if got.name() != attack.reply {
            let record = service.last_record().await;
            let (reason, verdicts) = (&record["reason"], &record["verdicts"]);
            wrong.push(format!(
                "{}: {} instead of {} ({reason}; {verdicts})",
                attack.name,
                got.name(),
                attack.reply
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let reply = rogues[0].attest(&forgery()).await;
    assert!(passes(&reply), "after all attacks: {reply:?}");
}
