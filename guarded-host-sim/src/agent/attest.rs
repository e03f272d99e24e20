//! Attestation as the host's client does it (MS-HGSA 3.2.5): one attempt is one exchange in one
//! mode; between attempts come the change of mode and the retries. Nothing is decided about health
//! here: the host passes on what its TPM says.

use std::{fs, future::Future, io, io::Write, path::Path, sync::Arc, time::Duration};

use hgs_protocol::{
    crypto::{RsaPrivateKey, RsaPublicKey},
    env::{OsRandom, Random, UnixTime},
    health::{AttestationMode, CertificateKind, HealthCertificate},
    status::{AttestationStatus, Substatus},
    tpm::EK_HANDLE,
    wire::{
        hgsa::{ErrorKind, ProvidedKind, Reply, Request, SessionId},
        vsm,
    },
};
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;
use zeroize::Zeroizing;

use super::{
    Agent,
    rtpm::{Exchange, RtpmError},
};
use crate::{
    client::{ClientError, LabClient},
    tpm_channel::{ChannelError, TpmChannel},
};

/// Which version of the protocol the host speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ProtocolVersion {
    /// TpmRequestInitial and TpmRequestContinue.
    #[value(name = "v1.0")]
    V1,
    /// AttestationRequest.
    #[default]
    #[value(name = "v2.0")]
    V2,
}

/// Why one attempt brought no certificate.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// The service refused.
    #[error("{}", .0.name())]
    Refused(ErrorKind, bool),
    /// The service does not answer or answers nonsense.
    #[error("{0}")]
    Service(String),
    /// The transport.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The server's RTPM context.
    #[error(transparent)]
    Rtpm(#[from] RtpmError),
    /// The TPM.
    #[error(transparent)]
    Tpm(#[from] ChannelError),
    /// This host cannot attest in the mode that the service is in.
    #[error("{0}")]
    Mode(&'static str),
    /// Something of the host is missing.
    #[error("{0}")]
    Host(String),
}

/// The outcome of an attestation, for its users.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// AttestationStatus.
    pub status: AttestationStatus,
    /// AttestationSubstatus.
    pub substatus: Substatus,
    /// Name of the protocol's error reply, if one came.
    pub error: Option<String>,
    /// The service was not reached or could not answer: it has said nothing about this host.
    #[serde(default)]
    pub no_contact: bool,
    /// For people.
    pub detail: String,
    /// The mode of the last attempt, if a service said anything in it.
    #[serde(default)]
    pub mode: Option<AttestationMode>,
}

/// The certificates of a passed attestation.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    /// For the VSM encryption key.
    pub(crate) encryption: HealthCertificate,
    /// For the VSM signing key; absent in host-key mode.
    pub(crate) signing: Option<Vec<u8>>,
}

impl Health {
    pub(crate) fn is_valid(&self, now: UnixTime) -> bool {
        let (from, to) = self.encryption.validity();
        from <= now && now <= to
    }

    /// True from two thirds of the life on.
    pub(crate) fn is_due(&self, now: UnixTime) -> bool {
        self.due_at() <= now
    }

    /// The moment from which on the certificate is to be renewed.
    pub(crate) fn due_at(&self) -> UnixTime {
        let (from, to) = self.encryption.validity();
        from.plus_seconds(to.seconds_since(from) / 3 * 2 + 1)
    }
}

impl Outcome {
    pub(crate) fn passed(health: &Health) -> Outcome {
        let (_, to) = health.encryption.validity();
        Outcome {
            status: AttestationStatus::Passed,
            substatus: Substatus::default(),
            error: None,
            no_contact: false,
            detail: format!("health certificate {} is valid until {to}", health.encryption.serial()),
            mode: None,
        }
    }

    /// A certificate at hand that is not valid at `now`. It was issued once, so the host has passed.
    pub(crate) fn expired(health: &Health, now: UnixTime) -> Outcome {
        let (from, to) = health.encryption.validity();
        let serial = health.encryption.serial();
        let detail = match now < from {
            true => format!(
                "the health certificate {serial} is not valid yet: it is valid from {from} to {to}, and this host's \
                 clock says {now}, which is {} seconds too early",
                from.seconds_since(now)
            ),
            false => format!(
                "the health certificate {serial} is valid from {from} to {to}, and this host's clock says {now}"
            ),
        };
        Outcome {
            status: AttestationStatus::Expired,
            detail,
            ..Outcome::passed(health)
        }
    }

    /// Of a certificate that has come just now, which has passed or else shows that two clocks differ.
    pub(crate) fn issued_now(mut self) -> Outcome {
        if self.status == AttestationStatus::Expired {
            self.detail += ". It was issued just now: the clocks of this host and of the attestation service differ";
        }
        self
    }

    pub(crate) fn failed(error: &AttestError) -> Outcome {
        let (status, substatus, name) = match error {
            AttestError::Refused(kind, _) => (
                AttestationStatus::of_error(kind),
                Substatus::of_error(kind),
                Some(kind.name().to_owned()),
            ),
            AttestError::Tpm(_) | AttestError::Rtpm(_) => (AttestationStatus::TpmError, Substatus::default(), None),
            AttestError::Service(_) | AttestError::Client(_) | AttestError::Mode(_) | AttestError::Host(_) => {
                (AttestationStatus::TransientError, Substatus::default(), None)
            }
        };
        let policies = match substatus.failed_policies.as_slice() {
            [] => String::new(),
            failed => format!(": {}", failed.join(", ")),
        };
        let no_contact = match error {
            AttestError::Client(error) => error.is_no_contact(),
            AttestError::Refused(kind, _) => matches!(kind, ErrorKind::Unavailable),
            _ => false,
        };
        Outcome {
            no_contact,
            detail: format!("{error}{policies}"),
            status,
            substatus,
            error: name,
            mode: None,
        }
    }
}

impl AttestError {
    /// Whether it leaves the host without a certificate: an error reply does (MS-HGSA 3.2.5), and so does a TPM
    /// that fails. A service that was not reached, or that is not the right one, has said nothing about the host.
    pub(crate) fn is_verdict(&self) -> bool {
        matches!(self, AttestError::Refused(..) | AttestError::Tpm(_))
    }
}

/// What of a host takes part in its attestation. Every part is asked for anew in each attempt.
pub(crate) trait HostSide: Sync {
    /// The host's name, for logs.
    fn name(&self) -> &str;
    /// The boot log of the present boot.
    fn boot_log(&self) -> Result<Vec<u8>, AttestError>;
    /// The EK certificate that the host shows, DER, if it has one.
    fn ek_certificate(&self) -> Result<Option<Vec<u8>>, AttestError>;
    /// A connection to the TPM; called on a thread that may block.
    fn tpm(&self) -> impl FnOnce() -> Result<TpmChannel, AttestError> + Send + 'static;
    /// The host key.
    fn host_key(&self) -> Result<Arc<RsaPrivateKey>, AttestError>;
    /// The public VSM encryption key, an `RSA1` blob.
    fn vsm_encryption_key(&self) -> impl Future<Output = Result<Vec<u8>, AttestError>> + Send;
    /// The `number`-th attempt (from 1) has failed and is made again.
    fn tries_again(&self, number: u32, error: &AttestError) {
        tracing::warn!(host = %self.name(), number, "attestation failed and is tried again: {error}");
    }
}

/// A host before its attestation service.
pub(crate) struct Attester<'a, H> {
    /// The host.
    pub(crate) host: &'a H,
    /// Its way into the network.
    pub(crate) client: &'a LabClient,
    /// Base URL of the service.
    pub(crate) url: &'a str,
    /// Version of the protocol.
    pub(crate) protocol: ProtocolVersion,
}

impl<H: HostSide> Attester<'_, H> {
    /// A whole attestation, beginning in `mode`: change of mode once if the service asks for it, at
    /// most `most` attempts ([`ATTEMPTS`], usually), each with a new session id. Leaves in `mode` which one was
    /// attempted last.
    pub(crate) async fn attest(&self, mode: &mut AttestationMode, most: u32) -> Result<Health, AttestError> {
        let mut switched = false;
        let mut attempts = 1;
        loop {
            let error = match self.attempt(*mode).await {
                Ok(health) => return Ok(health),
                Err(error) => error,
            };
            let retry = match &error {
                AttestError::Refused(ErrorKind::OperationMode(Some(expected)), true)
                    if !switched && *expected != *mode =>
                {
                    (*mode, switched) = (*expected, true);
                    continue;
                }
                AttestError::Refused(ErrorKind::Unauthorized | ErrorKind::OperationMode(_), _) => false,
                AttestError::Refused(_, retryable) => *retryable,
                AttestError::Client(ClientError::Unreachable { .. }) => true,
                _ => false,
            };
            if !retry || attempts >= most {
                return Err(error);
            }
            self.host.tries_again(attempts, &error);
            let jitter: [u8; 1] = (&mut OsRandom as &mut dyn Random).bytes();
            let pause = Duration::from_secs(1 << (attempts - 1)) + Duration::from_millis(u64::from(jitter[0]));
            tokio::time::sleep(pause).await;
            attempts += 1;
        }
    }

    async fn attempt(&self, mode: AttestationMode) -> Result<Health, AttestError> {
        let session =
            SessionId(uuid::Builder::from_random_bytes((&mut OsRandom as &mut dyn Random).bytes()).into_uuid());
        match mode {
            AttestationMode::Tpm => self.attempt_tpm(session).await,
            AttestationMode::HostKey => self.attempt_host_key(session).await,
            AttestationMode::ActiveDirectory => Err(AttestError::Mode(
                "the service is in Active Directory mode, which is not available here",
            )),
        }
    }

    async fn attempt_tpm(&self, session: SessionId) -> Result<Health, AttestError> {
        let requested = vec![CertificateKind::Encryption, CertificateKind::Signing];
        let boot_log = self.host.boot_log()?;
        let certificate = self.host.ek_certificate()?;
        // At v2.0 an endorsement key is shown by its certificate; a host without one speaks v1.0.
        let version = match &certificate {
            Some(_) => self.protocol,
            None => ProtocolVersion::V1,
        };
        let connect = self.host.tpm();
        let (channel, ek) = blocking(move || {
            let mut channel = connect()?;
            let ek = channel.read_public(EK_HANDLE)?.rsa_key().cloned();
            Ok::<_, AttestError>((channel, ek))
        })
        .await??;
        let ek = ek.ok_or_else(|| AttestError::Host("the EK of this TPM is no RSA key".to_owned()))?;
        let mut exchange = Some(Exchange::new(channel, boot_log));
        let request = |context| tpm_request(session, &requested, &ek, certificate.as_deref(), (version, context));
        let result = self.converse(&mut exchange, version, request).await;
        // Ending an exchange speaks to the TPM, which may block.
        blocking(move || drop(exchange)).await?;
        health(result?, &requested)
    }

    /// The trips of one exchange.
    async fn converse(
        &self,
        exchange: &mut Option<Exchange>,
        version: ProtocolVersion,
        request: impl Fn(Option<Vec<u8>>) -> Request,
    ) -> Result<Vec<(CertificateKind, Vec<u8>)>, AttestError> {
        let mut context = None;
        for _ in 0..TRIPS {
            let answer = match self.ask("attest", version, &request(context)).await? {
                Reply::TpmContinue { context } => context,
                Reply::HealthCertificate { content } => return Ok(content),
                Reply::Error { kind, retryable } => return Err(AttestError::Refused(kind, retryable)),
                Reply::ServiceInfo { .. } => return Err(AttestError::Service("an answer of another kind".to_owned())),
            };
            let mut running = exchange.take();
            let (running, next) = blocking(move || {
                let next = running.as_mut().map(|exchange| exchange.answer(&answer));
                (running, next)
            })
            .await?;
            *exchange = running;
            context = next.transpose()?;
        }
        Err(AttestError::Service(
            "the service never ends the RTPM exchange".to_owned(),
        ))
    }

    async fn attempt_host_key(&self, session: SessionId) -> Result<Health, AttestError> {
        let key = self.host.host_key()?;
        let (host_key, vsm_key) = (vsm::encode_rsa1(key.public()), self.host.vsm_encryption_key().await?);
        let signature = key
            .sign_pkcs1_sha256(&[host_key.as_slice(), &vsm_key].concat())
            .map_err(|e| AttestError::Host(e.to_string()))?;
        let requested = vec![CertificateKind::Encryption];
        let request = Request::Attestation {
            session,
            requested: requested.clone(),
            provided: vec![
                (ProvidedKind::VsmIdentityKey, vsm_key),
                (ProvidedKind::HostKeyPublicKey, host_key),
                (ProvidedKind::HostKeySignature, signature),
            ],
        };
        match self.ask("hostkeyattest", ProtocolVersion::V2, &request).await? {
            Reply::HealthCertificate { content } => health(content, &requested),
            Reply::Error { kind, retryable } => Err(AttestError::Refused(kind, retryable)),
            _ => Err(AttestError::Service("an answer of another kind".to_owned())),
        }
    }

    async fn ask(&self, operation: &str, version: ProtocolVersion, request: &Request) -> Result<Reply, AttestError> {
        let version = match version {
            ProtocolVersion::V2 => "v2.0",
            ProtocolVersion::V1 => "v1.0",
        };
        let url = format!("{}/{version}/{operation}", self.url.trim_end_matches('/'));
        let answer = self
            .client
            .post_in_turn(&url, "application/json", request.encode(), LARGEST_REPLY)
            .await?;
        Reply::parse(&answer.body).map_err(|e| {
            let reason = format!("HTTP {} and no protocol reply: {e}", answer.status);
            match answer.status {
                // Something before the service, or the service on its way down.
                500.. => ClientError::Unreachable { url, reason }.into(),
                404 => AttestError::Service(format!(
                    "{url} answered {reason}; is the configured URL that of an attestation service? It usually ends in \
                     /Attestation"
                )),
                _ => AttestError::Service(format!("{url} answered {reason}")),
            }
        })
    }
}

impl HostSide for Agent {
    fn name(&self) -> &str {
        Agent::name(self)
    }

    fn boot_log(&self) -> Result<Vec<u8>, AttestError> {
        read(&self.args.dir.join("boot.log"))
    }

    fn ek_certificate(&self) -> Result<Option<Vec<u8>>, AttestError> {
        let path = self.args.dir.join("ek.cer");
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            _ => read(&path).map(Some),
        }
    }

    fn tpm(&self) -> impl FnOnce() -> Result<TpmChannel, AttestError> + Send + 'static {
        let (socket, name) = (self.args.tpm.clone(), self.args.name.clone());
        move || Ok(TpmChannel::connect(&socket, &name)?)
    }

    fn host_key(&self) -> Result<Arc<RsaPrivateKey>, AttestError> {
        host_key(&self.args.dir).map(Arc::new)
    }

    async fn vsm_encryption_key(&self) -> Result<Vec<u8>, AttestError> {
        let (encryption, _) = self.store_keys().await.map_err(AttestError::Host)?;
        Ok(encryption)
    }
}

fn tpm_request(
    session: SessionId,
    requested: &[CertificateKind],
    ek: &RsaPublicKey,
    certificate: Option<&[u8]>,
    (version, context): (ProtocolVersion, Option<Vec<u8>>),
) -> Request {
    let requested = requested.to_vec();
    let endorsement_key = vsm::encode_rsa1(ek);
    match (version, context) {
        (ProtocolVersion::V1, None) => Request::TpmInitial {
            session,
            requested,
            endorsement_key,
        },
        (ProtocolVersion::V1, Some(context)) => Request::TpmContinue {
            session,
            requested,
            endorsement_key,
            context,
        },
        (ProtocolVersion::V2, context) => {
            let mut provided = Vec::new();
            provided.extend(certificate.map(|der| (ProvidedKind::EndorsementKeyCertificate, der.to_vec())));
            provided.extend(context.map(|c| (ProvidedKind::RtpmContext, c)));
            Request::Attestation {
                session,
                requested,
                provided,
            }
        }
    }
}

/// Far above any reply of the protocol: session contexts and two certificates.
const LARGEST_REPLY: usize = 4 << 20;

fn health(content: Vec<(CertificateKind, Vec<u8>)>, requested: &[CertificateKind]) -> Result<Health, AttestError> {
    let kinds: Vec<_> = content.iter().map(|(kind, _)| *kind).collect();
    if kinds != requested {
        return Err(AttestError::Service(
            "the service issued other certificates than those asked for".to_owned(),
        ));
    }
    let of = |kind| content.iter().find(|(k, _)| *k == kind).map(|(_, der)| der.clone());
    let encryption = of(CertificateKind::Encryption).unwrap_or_default();
    Ok(Health {
        encryption: HealthCertificate::parse(&encryption)
            .map_err(|e| AttestError::Service(format!("the health certificate: {e}")))?,
        signing: of(CertificateKind::Signing),
    })
}

/// The host key, made at its first use. It is not a secret of the VBS store: in host-key mode a
/// host proves only that it was registered.
pub(crate) fn host_key(dir: &Path) -> Result<RsaPrivateKey, AttestError> {
    let path = dir.join(HOST_KEY);
    let unusable = |reason: String| AttestError::Host(format!("the host key {} is unusable: {reason}", path.display()));
    if !path.exists() {
        let key = RsaPrivateKey::generate_2048().map_err(|e| unusable(e.to_string()))?;
        let mut file = NamedTempFile::new_in(dir).map_err(|e| unusable(e.to_string()))?;
        file.write_all(key.expose_pkcs8())
            .map_err(|e| unusable(e.to_string()))?;
        // Two may make it at once (an attestation, and an administrator who captures it): the first one counts.
        match file.persist_noclobber(&path) {
            Err(e) if e.error.kind() != io::ErrorKind::AlreadyExists => return Err(unusable(e.to_string())),
            _ => {}
        }
    }
    let bytes = Zeroizing::new(fs::read(&path).map_err(|e| unusable(e.to_string()))?);
    RsaPrivateKey::from_pkcs8(&bytes).map_err(|e| unusable(e.to_string()))
}

/// Puts another host key in the place of the present one: `pkcs8`, or a new one.
pub(crate) fn set_host_key(dir: &Path, pkcs8: Option<&[u8]>) -> Result<(), AttestError> {
    let unusable = |reason: String| AttestError::Host(format!("the new host key is unusable: {reason}"));
    let key = match pkcs8 {
        Some(bytes) => RsaPrivateKey::from_pkcs8(bytes).map_err(|e| unusable(e.to_string()))?,
        None => RsaPrivateKey::generate_2048().map_err(|e| unusable(e.to_string()))?,
    };
    let mut file = NamedTempFile::new_in(dir).map_err(|e| unusable(e.to_string()))?;
    file.write_all(key.expose_pkcs8())
        .map_err(|e| unusable(e.to_string()))?;
    file.persist(dir.join(HOST_KEY)).map_err(|e| unusable(e.to_string()))?;
    Ok(())
}

/// Removes the host key, if there is one.
pub(crate) fn forget_host_key(dir: &Path) -> Result<(), AttestError> {
    match fs::remove_file(dir.join(HOST_KEY)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(AttestError::Host(format!("the host key cannot be removed: {error}")))
        }
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, AttestError> {
    fs::read(path).map_err(|e| AttestError::Host(format!("cannot read {}: {e}", path.display())))
}

/// TPM and store are asked from threads that may block.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, AttestError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| AttestError::Host("the agent is ending".to_owned()))
}

const HOST_KEY: &str = "host-key.pk8";
/// How often an attestation is tried before it has failed.
pub(crate) const ATTEMPTS: u32 = 3;
/// Four requests are an exchange; one restart from the first PCR_Read makes two more.
const TRIPS: usize = 8;

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_host_has_one_host_key_however_many_ask_first() {
        let folder = tempfile::tempdir().unwrap();
        let keys: Vec<Vec<u8>> = thread::scope(|scope| {
            let asking: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| host_key(folder.path()).unwrap()))
                .collect();
            let made = asking.into_iter().map(|thread| thread.join().unwrap());
            made.map(|key| key.public().spki_der()).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    }
}
