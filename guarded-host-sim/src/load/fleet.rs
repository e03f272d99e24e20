//! All light hosts of a run: how they attest, come back after a failure, and renew.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use hgs_protocol::{
    env::{Clock, OsRandom, Random},
    health::{AttestationMode, TrustedSigner},
};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
};

use super::{
    host::{LightHost, Tally},
    report::{Cause, Latency, Round, round},
};
use crate::{
    agent::{
        ProtocolVersion,
        attest::{ATTEMPTS, AttestError, Attester, blocking},
    },
    client::LabClient,
    fabric::attestation::signing_certificates,
};

/// The hosts, and what they have in common.
pub(super) struct Fleet {
    /// Those that could be switched on.
    pub(super) hosts: Vec<Arc<LightHost>>,
    /// Shared by all of them.
    pub(super) client: LabClient,
    /// Base URL of attestation.
    pub(super) url: String,
    /// The mode in which they attest.
    pub(super) mode: AttestationMode,
    /// The lab's.
    pub(super) clock: Clock,
    /// Attestations that may be under way, unless all hosts come at once.
    pub(super) places: Semaphore,
    /// TPMs sleep between attestations.
    pub(super) sleeps: bool,
    /// How long a host goes on trying.
    pub(super) patience: Duration,
    /// What the hosts met.
    pub(super) tally: Arc<Tally>,
}

/// How the hosts of a round come.
pub(super) enum Come {
    /// As many at a time as there are places.
    ByPlaces,
    /// All at once, each in a place of its own; but the second half only when this turns true, or its sender is gone.
    HalfAfter(watch::Receiver<bool>),
}

/// How long hosts hold their certificates.
#[derive(Clone, Copy, Debug)]
pub(super) enum Hold {
    /// For so long, in real time.
    For(Duration),
    /// Until each has renewed once.
    UntilRenewal,
}

impl Fleet {
    /// Lets every host attest, or, at a renewal, every host whose certificate is due.
    pub(super) async fn round(self: &Arc<Fleet>, cause: Cause, come: Come) -> Round {
        let begin = Instant::now();
        self.tally.begin();
        let mut tasks = JoinSet::new();
        let half = self.hosts.len() / 2;
        for (number, host) in self.hosts.iter().enumerate() {
            if cause == Cause::Renewal && host.due_at().is_some_and(|due| due > self.clock.now()) {
                continue;
            }
            let (fleet, host) = (self.clone(), host.clone());
            let (all_at_once, mut wait) = match &come {
                Come::ByPlaces => (false, None),
                Come::HalfAfter(signal) => (true, (number >= half).then(|| signal.clone())),
            };
            tasks.spawn(async move {
                if let Some(wait) = &mut wait {
                    let _ = wait.wait_for(|now| *now).await;
                }
                fleet.attest_patiently(&host, all_at_once).await
            });
        }
        let mut latencies = Vec::new();
        while let Some(course) = tasks.join_next().await {
            if let Ok(Some(latency)) = course {
                latencies.push(latency);
                self.tally.attested.send_modify(|n| *n += 1);
            }
        }
        self.report(cause, begin, latencies)
    }

    /// Lets every host keep its certificate: each renews by its own timer when two thirds of the life are over.
    pub(super) async fn hold(self: &Arc<Fleet>, hold: Hold) -> Round {
        let begin = Instant::now();
        self.tally.begin();
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for host in &self.hosts {
            let (fleet, host, stopped) = (self.clone(), host.clone(), stopped.clone());
            tasks.spawn(async move { fleet.keep(&host, hold, stopped).await });
        }
        if let Hold::For(time) = hold {
            tokio::time::sleep(time).await;
            stop.send_replace(true);
        }
        let mut latencies = Vec::new();
        while let Some(renewals) = tasks.join_next().await {
            latencies.extend(renewals.unwrap_or_default());
        }
        self.report(Cause::Held, begin, latencies)
    }

    async fn keep(&self, host: &Arc<LightHost>, hold: Hold, mut stopped: watch::Receiver<bool>) -> Vec<Duration> {
        let mut renewals = Vec::new();
        while let Some(due) = host.due_at() {
            let wait = due.seconds_since(self.clock.now()).max(0);
            let wait = Duration::from_secs(u64::try_from(wait).unwrap_or_default());
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = stopped.wait_for(|stopped| *stopped) => break,
            }
            renewals.extend(self.attest_patiently(host, false).await);
            if matches!(hold, Hold::UntilRenewal) {
                break;
            }
        }
        renewals
    }

    fn report(&self, cause: Cause, begin: Instant, latencies: Vec<Duration>) -> Round {
        let seconds = begin.elapsed().as_secs_f64();
        let attested = latencies.len();
        Round {
            cause,
            attested,
            seconds: round(seconds),
            per_second: round(attested as f64 / seconds),
            latency: Latency::of(latencies),
            retries: self.tally.take(),
            services_away_seconds: None,
        }
    }

    /// Attests until it succeeds, the service says no, or patience is over. Between attempts it waits, longer each
    /// time and by a random part of it, so that hosts which failed together do not come back together. Answers how
    /// long the attestation took that succeeded.
    async fn attest_patiently(&self, host: &Arc<LightHost>, all_at_once: bool) -> Option<Duration> {
        let begin = Instant::now();
        let mut most = FIRST_WAIT;
        loop {
            let error = match self.attest(host, all_at_once).await {
                Ok(latency) => return Some(latency),
                Err(error) => error,
            };
            let again = match &error {
                AttestError::Refused(_, retryable) => *retryable,
                AttestError::Client(error) => error.is_no_contact(),
                _ => false,
            };
            if !again || begin.elapsed() >= self.patience {
                host.fails(&error);
                return None;
            }
            host.note_retry(&error);
            tokio::time::sleep(random_part(most)).await;
            most = (most * 2).min(LONGEST_WAIT);
        }
    }

    /// One attestation by the rules of a host, in a place of its own or when one of the fleet's is free.
    async fn attest(&self, host: &Arc<LightHost>, all_at_once: bool) -> Result<Duration, AttestError> {
        // Where TPMs sleep, their number is the number of places.
        let _place = match all_at_once && !self.sleeps {
            true => None,
            false => self.places.acquire().await.ok(),
        };
        let begin = Instant::now();
        let attester = Attester {
            host: host.as_ref(),
            client: &self.client,
            url: &self.url,
            protocol: ProtocolVersion::V2,
        };
        let mut mode = self.mode;
        let outcome = attester.attest(&mut mode, ATTEMPTS).await;
        if self.sleeps {
            let host = host.clone();
            let slept = blocking(move || host.sleep()).await?;
            slept.map_err(|e| AttestError::Host(e.to_string()))?;
        }
        host.holds(outcome?);
        Ok(begin.elapsed())
    }

    /// Judges every certificate by the service's signers as they are published now. Answers how many are good, and
    /// why the others are not.
    pub(super) async fn verify(&self) -> anyhow::Result<(usize, BTreeMap<String, usize>)> {
        let url = format!("{}/v2.0/signingCertificates", self.url);
        let answer = self.client.get(&url, LARGEST_LIST).await?;
        ensure!(answer.status == 200, "{url} answered HTTP {}", answer.status);
        let signers = signing_certificates(&answer.body)?;
        let signers: Result<Vec<_>, _> = signers.iter().map(|der| TrustedSigner::from_certificate(der)).collect();
        let signers = signers.context("an attestation signer's certificate")?;
        let now = self.clock.now();
        let (mut serials, mut failures) = (BTreeSet::new(), BTreeMap::new());
        for host in &self.hosts {
            let verdict = host.verify(&signers, now, self.mode);
            let distinct = verdict.and_then(|serial| match serials.insert(serial) {
                true => Ok(()),
                false => Err("another host has a certificate with this serial number".to_owned()),
            });
            if let Err(why) = distinct {
                *failures.entry(why).or_insert(0) += 1;
            }
        }
        let failed: usize = failures.values().sum();
        Ok((self.hosts.len().saturating_sub(failed), failures))
    }
}

/// A random part of `most`, at least a tenth of it.
fn random_part(most: Duration) -> Duration {
    let [byte] = (&mut OsRandom as &mut dyn Random).bytes();
    most.mul_f64(0.1 + 0.9 * f64::from(byte) / 255.0)
}

const FIRST_WAIT: Duration = Duration::from_secs(2);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Far above a list of a few certificates.
const LARGEST_LIST: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_random_and_within_bounds() {
        let all: BTreeSet<Duration> = (0..200).map(|_| random_part(Duration::from_secs(10))).collect();
        assert!(all.len() > 50);
        assert!(all.first().unwrap() >= &Duration::from_millis(999));
        assert!(all.last().unwrap() <= &Duration::from_secs(10));
    }
}
