//! An attacker that owns its machine: it extends what it likes into a genuine TPM and shows whatever
//! log it likes.

use guarded_host_sim::{
    machine::{
        boot::{Boot, STARTUP_LOCALITY},
        dials::Dials,
    },
    swtpm::{Swtpm, TpmMaker},
    tpm_channel::TpmChannel,
};
use hgs_protocol::{
    crypto::{RsaPublicKey, sha256},
    env::{OsRandom, Random},
    health::CertificateKind,
    tpm::command,
    wire::{
        boot_log::{Bank, BootLog, BootLogBuilder, Event, EventType, PCR11_CAP, PcrIndex, WBCL_SEPARATOR},
        hgsa::{ProvidedKind, Reply, Request, SessionId},
        rtpm::{Blob, Context, DeviceInfo},
        sipa::{self, SiPolicy, Tag, id},
        uefi::{GLOBAL_VARIABLE, UefiVariable},
        vsm,
    },
};

use crate::lab::Service;

/// What the attacker boots and what it shows.
pub(crate) struct Forgery {
    /// Every record that is extended, and shown unless the next fields say otherwise.
    pub(crate) log: Vec<Event>,
    /// Extended after the boot and not shown.
    pub(crate) secret: Vec<Event>,
    /// Shown in place of `log`.
    pub(crate) shown: Option<Vec<Event>>,
    /// Shown in place of any records.
    pub(crate) bytes: Option<Vec<u8>>,
    /// The startup locality that the log claims.
    pub(crate) locality: u8,
    /// A PCR extended between the two reads.
    pub(crate) meanwhile: Option<u8>,
    /// A key that the host's VBS store does not have.
    pub(crate) other: RsaPublicKey,
}

impl Forgery {
    pub(crate) fn shown_edit(&mut self, edit: impl FnOnce(&mut Vec<Event>)) {
        let mut shown = self.log.clone();
        edit(&mut shown);
        self.shown = Some(shown);
    }

    pub(crate) fn booted_only(&mut self, pcr: u32, kind: EventType, data: Vec<u8>) {
        self.secret.push(record(pcr, kind, data));
    }

    pub(crate) fn append(&mut self, pcr: u32, kind: EventType, data: Vec<u8>) {
        self.log.push(record(pcr, kind, data));
    }

    /// The last record that holds a tag.
    pub(crate) fn stage(&self, id: u32) -> usize {
        let holds = |event: &Event| {
            event.event_type == EventType::EVENT_TAG
                && sipa::measured_leaves(&event.data).is_ok_and(|tags| tags.iter().any(|tag| tag.id == id))
        };
        self.log.iter().rposition(holds).unwrap()
    }

    pub(crate) fn cap(&self, pcr: u32) -> usize {
        let is_cap = |event: &Event| event.pcr == pcr && event.data == WBCL_SEPARATOR;
        self.log.iter().position(is_cap).unwrap()
    }

    pub(crate) fn remove_cap(&mut self, pcr: u32) {
        let at = self.cap(pcr);
        self.log.remove(at);
    }

    pub(crate) fn separator(&self, pcr: u32) -> usize {
        let is_separator = |event: &Event| event.pcr == pcr && event.event_type == EventType::SEPARATOR;
        self.log.iter().position(is_separator).unwrap()
    }

    pub(crate) fn variable(&self, name: &str) -> usize {
        let is_it = |event: &Event| event.pcr == 7 && UefiVariable::parse(&event.data).is_some_and(|v| v.name == name);
        self.log.iter().position(is_it).unwrap()
    }

    pub(crate) fn edit(&mut self, at: usize, edit: impl FnOnce(&mut Vec<Tag>)) {
        let event = &self.log[at];
        self.log[at] = record(event.pcr, event.event_type, edited(event, edit));
    }

    pub(crate) fn set(&mut self, id: u32, data: &[u8]) {
        self.edit(self.stage(id), |tags| set(tags, id, data));
    }

    pub(crate) fn drop_tag(&mut self, id: u32) -> Tag {
        let mut dropped = None;
        self.edit(self.stage(id), |tags| {
            let at = tags.iter().position(|tag| tag.id == id).unwrap();
            dropped = Some(tags.remove(at));
        });
        dropped.unwrap()
    }

    /// Puts a tag into an unmeasured container.
    pub(crate) fn hide(&mut self, at: usize, id: u32) {
        self.edit(at, |tags| {
            for tag in tags.iter_mut().filter(|tag| tag.id == id) {
                *tag = Tag::container(id::TRUSTPOINT_AGGREGATION, std::slice::from_ref(tag));
            }
        });
    }

    pub(crate) fn encoded(&self) -> Vec<u8> {
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

pub(crate) fn record(pcr: u32, event_type: EventType, data: Vec<u8>) -> Event {
    Event {
        pcr,
        event_type,
        digests: vec![(Bank::Sha256, sha256(&data).to_vec())],
        data,
        offset: 0,
    }
}

/// The data of a stage with its tags changed.
pub(crate) fn edited(event: &Event, edit: impl FnOnce(&mut Vec<Tag>)) -> Vec<u8> {
    let mut tags = sipa::parse_tags(&event.data).unwrap().remove(0).nested().unwrap();
    edit(&mut tags);
    stage(&tags)
}

pub(crate) fn set(tags: &mut [Tag], id: u32, data: &[u8]) {
    for tag in tags.iter_mut().filter(|tag| tag.id == id) {
        tag.data = data.to_vec();
    }
}

pub(crate) fn stage(tags: &[Tag]) -> Vec<u8> {
    sipa::encode_tags(&[Tag::container(id::TRUSTBOUNDARY, tags)])
}

pub(crate) fn truth(id: u32, value: bool) -> Vec<u8> {
    stage(&[Tag::boolean(id, value)])
}

pub(crate) fn policy(name: &str, policy: &[u8]) -> Vec<u8> {
    let policy = SiPolicy {
        version: 1,
        name: name.to_owned(),
        algorithm: 0x000B,
        digest: sha256(policy).to_vec(),
    };
    stage(&[Tag::new(id::SI_POLICY, policy.encode())])
}

pub(crate) fn idk(key: &RsaPublicKey) -> Vec<u8> {
    vsm::encode_idk_info(key)
}

pub(crate) fn variable(guid: [u8; 16], name: &str, data: &[u8]) -> Vec<u8> {
    UefiVariable {
        guid,
        name: name.to_owned(),
        data: data.to_vec(),
    }
    .encode()
}

pub(crate) fn secure_boot(data: &[u8]) -> Vec<u8> {
    variable(GLOBAL_VARIABLE, "SecureBoot", data)
}

/// A machine of the attacker's: a TPM of a trusted maker, and everything around it at will.
pub(crate) struct Rogue {
    pub(crate) tpm: Swtpm,
    pub(crate) certificate: Vec<u8>,
    pub(crate) url: String,
}

impl Rogue {
    pub(crate) fn make(service: &Service, maker: &TpmMaker, name: &str) -> Rogue {
        let state = service.dir.join(name);
        let certificate = maker.manufacture(name, &state, None).unwrap();
        Rogue {
            tpm: Swtpm::start(name, &state, None).unwrap(),
            certificate,
            url: service.attest_url(),
        }
    }

    /// The records of an honest boot of the simulated machine, without the first, which claims the locality.
    pub(crate) fn honest_boot(&mut self, keys: [&RsaPublicKey; 2]) -> Vec<Event> {
        self.tpm.reset(STARTUP_LOCALITY).unwrap();
        let mut boot = Boot::begin(self.tpm.channel());
        boot.measure_configuration(&Dials::default()).unwrap();
        let bytes = boot.finish(1, Some((keys[0], keys[1]))).unwrap();
        BootLog::parse(&bytes).unwrap().events()[1..].to_vec()
    }

    pub(crate) async fn attest(&mut self, forgery: &Forgery) -> Reply {
        self.tpm.reset(STARTUP_LOCALITY).unwrap();
        for event in forgery.log.iter().chain(&forgery.secret) {
            extend(self.tpm.channel(), event);
        }
        let shown = forgery.encoded();
        let meanwhile = forgery
            .meanwhile
            .map(|pcr| record(u32::from(pcr), EventType::COMPACT_HASH, PCR11_CAP.to_vec()));
        exchange(
            &self.url,
            &self.certificate,
            self.tpm.channel(),
            &shown,
            meanwhile.as_ref(),
        )
        .await
    }
}

/// One attempt, never repeated, with the agent's means: `shown` goes as the log, and `meanwhile` is
/// measured between the two reads.
pub(crate) async fn exchange(
    url: &str,
    certificate: &[u8],
    tpm: &mut TpmChannel,
    shown: &[u8],
    meanwhile: Option<&Event>,
) -> Reply {
    let requested = [CertificateKind::Encryption, CertificateKind::Signing];
    exchange_for(&requested, &[], url, certificate, tpm, shown, meanwhile).await
}

/// As [`exchange`], for these certificates and with more items in each request.
pub(crate) async fn exchange_for(
    requested: &[CertificateKind],
    items: &[(ProvidedKind, Vec<u8>)],
    url: &str,
    certificate: &[u8],
    tpm: &mut TpmChannel,
    shown: &[u8],
    meanwhile: Option<&Event>,
) -> Reply {
    let http = reqwest::Client::new();
    let session = SessionId(uuid::Builder::from_random_bytes((&mut OsRandom as &mut dyn Random).bytes()).into_uuid());
    let mut context = None;
    for trip in 0..5 {
        let mut provided = vec![(ProvidedKind::EndorsementKeyCertificate, certificate.to_vec())];
        provided.extend(context.map(|context: Context| (ProvidedKind::RtpmContext, context.encode())));
        provided.extend_from_slice(items);
        let request = Request::Attestation {
            session,
            requested: requested.to_vec(),
            provided,
        };
        let sent = http.post(url).body(request.encode()).send().await.unwrap();
        let mut asked = match Reply::parse(&sent.bytes().await.unwrap()).unwrap() {
            Reply::TpmContinue { context } => Context::parse(&context).unwrap(),
            other => return other,
        };
        for blob in &mut asked.blobs {
            *blob = match blob {
                Blob::BootLogWanted => Blob::BootLog(shown.to_vec()),
                Blob::DeviceInfoWanted => Blob::DeviceInfo(DeviceInfo {
                    tpm_version: 2,
                    interface_type: 4,
                    implementation_version: 0,
                }),
                Blob::Tpm(command) => Blob::Tpm(tpm.transact(command).unwrap()),
                other => panic!("{other:?}"),
            };
        }
        if let (1, Some(event)) = (trip, meanwhile) {
            extend(tpm, event);
        }
        context = Some(asked);
    }
    panic!("the exchange does not end");
}

fn extend(tpm: &mut TpmChannel, event: &Event) {
    if event.is_measured() {
        let pcr = event.pcr_index().map(PcrIndex::get).unwrap();
        let digest = event.digest(Bank::Sha256).unwrap().try_into().unwrap();
        tpm.call_with_empty_password(&command::pcr_extend(pcr, &digest))
            .unwrap();
    }
}
