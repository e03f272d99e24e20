//! The story of an attestation in TPM mode (MS-HGSA 3.1.5.1.1.3): known endorsement key, the exchange
//! with its TPM, the boot log, the facts, the policies, the keys, the certificates.
//!
//! Decides everything and touches nothing: rows, time and randomness come in as values.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use hgs_protocol::{
    crypto::PublicKey,
    env::{Random, UnixTime},
    health::{
        AttestationMode, AttestationSigner, CertificateKind, HealthCertificate, HealthCertificateRequest, PolicyVerdict,
    },
    wire::{
        boot_log::BootLog,
        hgsa::{ProvidedKind, Reply, Request, SessionId},
    },
};

use crate::{
    baseline::{Baselines, Switches},
    ca_trustlet::AuthorityClaim,
    ek::EndorsementKey,
    evidence::Evidence,
    facts::BootFacts,
    policy::{Evaluation, HealthyHost, evaluate},
    refusal::Refusal,
    replay::{ReplayedLog, TcgLogError},
    rtpm::{self, Party, StateKeys, Turn},
    store::{KnownHost, PolicyVersion},
};

/// A request in TPM mode, of either version.
#[derive(Debug)]
pub struct Ask {
    /// The attempt.
    pub session: SessionId,
    /// Certificates asked for, in order.
    pub requested: Vec<CertificateKind>,
    /// The endorsement key, repeated in every request.
    pub ek: EndorsementKey,
    /// None at the start; the host's context after it, possibly empty.
    pub context: Option<Vec<u8>>,
    /// What speaks for the key of a CA trustlet; there whenever its certificate is asked for.
    pub authority: Option<AuthorityClaim>,
}

impl Ask {
    /// From a request at a v1.0 or v2.0 URL. Types of the other version, and other modes', are refused.
    pub fn from_request(request: Request, v2: bool) -> Result<Ask, Refusal> {
        let payload = |text: &str| Refusal::Payload(text.to_owned());
        let ek = |bytes: &[u8]| EndorsementKey::parse(bytes).map_err(|error| Refusal::Payload(error.to_string()));
        let ask = match (request, v2) {
            (
                Request::TpmInitial {
                    session,
                    requested,
                    endorsement_key,
                },
                false,
            ) => Ask {
                session,
                requested,
                ek: ek(&endorsement_key)?,
                context: None,
                authority: None,
            },
            (
                Request::TpmContinue {
                    session,
                    requested,
                    endorsement_key,
                    context,
                },
                false,
            ) => Ask {
                session,
                requested,
                ek: ek(&endorsement_key)?,
                context: Some(context),
                authority: None,
            },
            (
                Request::Attestation {
                    session,
                    requested,
                    provided,
                },
                true,
            ) => {
                let item = |wanted: ProvidedKind| item(&provided, wanted);
                let certificate = item(ProvidedKind::EndorsementKeyCertificate)?;
                let ek = match (certificate, item(ProvidedKind::VsmIdentityKey)?) {
                    (Some(der), _) => {
                        EndorsementKey::from_certificate(der).map_err(|error| Refusal::Payload(error.to_string()))?
                    }
                    (None, Some(bytes)) => ek(bytes)?,
                    (None, None) => return Err(payload("ProvidedContent has no endorsement key")),
                };
                // At v2.0 an empty context starts an exchange; at v1.0 it is answered with an empty one.
                let context = item(ProvidedKind::RtpmContext)?.filter(|context| !context.is_empty());
                Ask {
                    session,
                    requested,
                    ek,
                    context: context.map(<[u8]>::to_vec),
                    // Without a certificate of its key, item 1 is the endorsement key and no other.
                    authority: match certificate {
                        Some(_) => AuthorityClaim::from_items(&provided)?,
                        None => None,
                    },
                }
            }
            _ => return Err(payload("the request's type does not fit the URL")),
        };
        if ask.wants_authority() && ask.authority.is_none() {
            return Err(payload(
                "a certificate of result type 3 needs, at v2.0, the items 1, 4, 5, 6 and 7",
            ));
        }
        Ok(ask)
    }

    fn wants_authority(&self) -> bool {
        self.requested.contains(&CertificateKind::Authority)
    }
}

/// The one item of a kind in ProvidedContent. Two of one kind are refused: which counts must not be a guess.
pub(crate) fn item(provided: &[(ProvidedKind, Vec<u8>)], wanted: ProvidedKind) -> Result<Option<&[u8]>, Refusal> {
    let mut found = provided.iter().filter(|(kind, _)| *kind == wanted);
    match (found.next(), found.next()) {
        (_, Some(_)) => Err(Refusal::Payload("ProvidedContent holds one kind twice".to_owned())),
        (found, None) => Ok(found.map(|(_, bytes)| bytes.as_slice())),
    }
}

/// What the service knows when it decides.
pub struct Knowledge<'a> {
    /// The registrations of the request's endorsement key, the policy version to be tried first at the front.
    pub hosts: &'a [KnownHost],
    /// What hosts are held against, by policy version.
    pub baselines: &'a BTreeMap<PolicyVersion, Baselines>,
    /// Which policies are off.
    pub switches: &'a Switches,
    /// Whether keys of CA trustlets are certified.
    pub ca_certificates: bool,
    /// Keys of the sealed states.
    pub state_keys: &'a StateKeys,
    /// Makes certificates.
    pub issuing: &'a Issuing<'a>,
    /// The clock for the age of states, which no lab moves.
    pub unshifted: UnixTime,
}

/// What certificates are made with, in every mode.
pub struct Issuing<'a> {
    /// Signs health certificates.
    pub signer: &'a AttestationSigner,
    /// How long they live.
    pub lifetime: Duration,
    /// The lab's time.
    pub now: UnixTime,
    /// The mode in force.
    pub mode: AttestationMode,
    /// SPKI hashes of VSM keys that an administrator denies.
    pub denied: &'a HashSet<[u8; 32]>,
}

impl Issuing<'_> {
    /// A certificate of `kind` for exactly `key`, noted in `decision`.
    pub(crate) fn certify(
        &self,
        key: PublicKey,
        kind: CertificateKind,
        policies: Vec<PolicyVerdict>,
        decision: &mut Decision,
        rng: &mut dyn Random,
    ) -> Result<(CertificateKind, Vec<u8>), Refusal> {
        let sha256 = key.spki_sha256();
        if self.denied.contains(&sha256) {
            return Err(Refusal::DeniedKey(hex::encode(sha256)));
        }
        let request = HealthCertificateRequest {
            key,
            kind,
            mode: self.mode,
            policies,
            issued_at: self.now,
            lifetime: self.lifetime,
        };
        let other = |text: String| Refusal::Other(text);
        let der = self
            .signer
            .issue(&request, rng)
            .map_err(|error| other(error.to_string()))?;
        let issued = HealthCertificate::parse(&der).map_err(|error| other(error.to_string()))?;
        decision.serials.push(issued.serial());
        decision.certified.push(sha256);
        Ok((kind, der))
    }
}

/// What was decided, and what is to be recorded of it.
pub struct Decision {
    /// The reply, or the refusal.
    pub outcome: Result<Reply, Refusal>,
    /// Set when an exchange came to its end: it may be decided once only.
    pub exchange: Option<[u8; 16]>,
    /// All verdicts, when it came to policies.
    pub evaluation: Option<Evaluation>,
    /// The registration that decided, in TPM mode.
    pub version: Option<PolicyVersion>,
    /// Serial numbers of the certificates issued, hex.
    pub serials: Vec<String>,
    /// SPKI hashes of the VSM keys certified.
    pub certified: Vec<[u8; 32]>,
    /// What the exchange brought, when it came to its end.
    pub evidence: Option<Evidence>,
}

impl Decision {
    pub(crate) fn of(outcome: Result<Reply, Refusal>) -> Decision {
        Decision {
            outcome,
            exchange: None,
            evaluation: None,
            version: None,
            serials: Vec::new(),
            certified: Vec::new(),
            evidence: None,
        }
    }

    /// True for a step of an exchange that goes on: nothing was decided.
    pub fn goes_on(&self) -> bool {
        matches!(self.outcome, Ok(Reply::TpmContinue { .. }))
    }
}

/// Takes one request one step further.
pub fn attest_tpm(ask: &Ask, known: &Knowledge<'_>, rng: &mut dyn Random) -> Decision {
    if known.hosts.is_empty() {
        return Decision::of(Err(Refusal::Unauthorized));
    }
    if ask.wants_authority() && !known.ca_certificates {
        let off = "certificates of result type 3 are off: an administrator can turn ca-certificates on";
        return Decision::of(Err(Refusal::Payload(off.to_owned())));
    }
    let party = Party {
        session: ask.session,
        ek: &ask.ek,
    };
    let turn = match &ask.context {
        None => rtpm::begin(party, known.state_keys, known.unshifted, rng).map(Turn::Ask),
        Some(empty) if empty.is_empty() => {
            return Decision::of(Ok(Reply::TpmContinue { context: Vec::new() }));
        }
        Some(context) => rtpm::resume(context, party, known.state_keys, known.unshifted, rng),
    };
    let finished = match turn {
        Ok(Turn::Ask(context)) => {
            return Decision::of(Ok(Reply::TpmContinue {
                context: context.encode(),
            }));
        }
        Ok(Turn::Done(finished)) => finished,
        Err(error) => return Decision::of(Err(error.into())),
    };
    let mut decision = Decision::of(Err(Refusal::Replayed));
    decision.exchange = Some(finished.exchange);
    decision.outcome = conclude(ask, known, &finished, &mut decision, rng);
    decision.evidence = Some(Evidence::of_exchange(&finished.readout, finished.log));
    decision
}

/// From authenticated PCR values to certificates.
fn conclude(
    ask: &Ask,
    known: &Knowledge<'_>,
    finished: &rtpm::Finished,
    decision: &mut Decision,
    rng: &mut dyn Random,
) -> Result<Reply, Refusal> {
    let log = BootLog::parse(&finished.log).map_err(TcgLogError::from)?;
    let replayed = ReplayedLog::replay(&log, &finished.readout)?;
    let host = judge(&BootFacts::read(&replayed), known, decision)?;
    let mut content = Vec::new();
    for kind in &ask.requested {
        // A certificate for a key that was measured, or one that a measured key vouches for.
        let key = match (kind, &ask.authority) {
            (CertificateKind::Encryption, _) => host.encryption_key()?.into(),
            (CertificateKind::Signing, _) => host.signing_key()?.into(),
            (CertificateKind::Authority, Some(claim)) => claim.check(&host.signing_key()?)?,
            (CertificateKind::Authority, None) => {
                return Err(Refusal::Payload("nothing speaks for the CA trustlet's key".to_owned()));
            }
        };
        // A disabled policy was not asked for; listing it as failed would void the certificate.
        let asked = host.verdicts().iter().filter(|evaluated| evaluated.enabled);
        let policies = asked
            .map(|evaluated| PolicyVerdict {
                id: evaluated.policy.id.0,
                passed: evaluated.verdict.passed(),
            })
            .collect();
        content.push(known.issuing.certify(key, *kind, policies, decision, rng)?);
    }
    Ok(Reply::HealthCertificate { content })
}

/// Tries the host's registrations, each with the baselines of its own version only. When none passes, the
/// verdicts of the first are the answer.
fn judge(facts: &BootFacts, known: &Knowledge<'_>, decision: &mut Decision) -> Result<HealthyHost, Refusal> {
    let none = Baselines::default();
    for host in known.hosts {
        let baselines = known.baselines.get(&host.version).unwrap_or(&none);
        let evaluation = evaluate(facts.clone(), baselines, known.switches);
        let passes = evaluation.clone().into_healthy().ok();
        if passes.is_some() || decision.version.is_none() {
            decision.version = Some(host.version);
            decision.evaluation = Some(evaluation);
        }
        if let Some(healthy) = passes {
            return Ok(healthy);
        }
    }
    match decision.evaluation.clone() {
        Some(evaluation) => Err(Refusal::PolicyEvaluation(Box::new(evaluation))),
        None => Err(Refusal::Unauthorized),
    }
}
