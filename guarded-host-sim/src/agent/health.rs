//! What the host holds of its HGS, and when it asks again: health certificates of the primary and of the fallback,
//! each with what its service said last; the order in which the two are asked; the next attempt that is due.
//!
//! A certificate is used until it ends, or until its service takes it away by an error reply (MS-HGSA 3.2.5). It is
//! renewed from two thirds of its life on. While the primary does not answer, the fallback does.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use hgs_protocol::{
    env::UnixTime,
    health::AttestationMode,
    status::{AttestationStatus, Substatus},
};

use super::{
    Agent, Outcome,
    attest::{ATTEMPTS, Attester, Health},
    configuration::{Change, ClientConfiguration, ConfigurationError, Server, Servers},
    notice::Notice,
};

/// Held while attesting, so that one attempt is under way at a time. Who only looks sees what was published last.
#[derive(Clone, Default)]
pub(super) struct State {
    primary: Slot,
    fallback: Slot,
    /// Which HGS answered last.
    in_use: InUse,
    /// The status that was noticed last.
    noticed: Option<AttestationStatus>,
    /// When the host attests again by itself; none in local mode.
    next: Option<UnixTime>,
    /// Attempts in a row that reached no service.
    silent: u32,
}

/// One HGS as the host knows it.
#[derive(Clone, Default)]
struct Slot {
    health: Option<Health>,
    /// What the last attempt said that counts: an attempt that reached no service leaves a valid certificate, and
    /// what was said with it, alone.
    outcome: Option<Outcome>,
    /// Why the certificate at hand could not be renewed.
    trouble: Option<String>,
}

/// Which HGS answered last, in all and by service.
#[derive(Clone, Copy, Default)]
pub(super) struct InUse {
    pub(super) fallback: bool,
    pub(super) attestation: Option<Server>,
    pub(super) key_protection: Option<Server>,
}

/// Which HGS Test-HgsClientConfiguration is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// The primary, and the fallback if the primary does not answer.
    #[default]
    Either,
    /// The primary alone.
    Primary,
    /// The fallback alone.
    Fallback,
}

/// Why a test says nothing about the host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TestError {
    /// There is no fallback.
    #[error(
        "no fallback is configured: set FallbackAttestationServerUrl and FallbackKeyProtectionServerUrl together with \
         the other two URLs"
    )]
    NoFallback,
    /// The one that was asked for is not reached.
    #[error("the {} does not answer: {reason}. Check its URL, name resolution, route and service", name(*server))]
    Unreachable {
        /// Which.
        server: Server,
        /// Why.
        reason: String,
    },
}

/// The state of the host's client at one moment.
#[derive(Clone)]
pub(super) struct Snapshot {
    pub(super) configuration: Arc<ClientConfiguration>,
    pub(super) outcome: Outcome,
    /// The certificate of the HGS in use.
    pub(super) health: Option<Health>,
    pub(super) in_use: InUse,
}

impl Slot {
    fn valid(&self, now: UnixTime) -> Option<&Health> {
        self.health.as_ref().filter(|health| health.is_valid(now))
    }

    /// What counts about the host at this HGS at `now`.
    fn status(&self, now: UnixTime) -> Option<Outcome> {
        let outcome = self.outcome.as_ref()?;
        Some(match (&self.health, outcome.status) {
            (Some(health), AttestationStatus::Passed) if !health.is_valid(now) => Outcome {
                mode: outcome.mode,
                ..Outcome::expired(health, now)
            },
            (_, AttestationStatus::Passed) => match &self.trouble {
                None => outcome.clone(),
                Some(trouble) => Outcome {
                    detail: format!("{}; it could not be renewed: {trouble}", outcome.detail),
                    ..outcome.clone()
                },
            },
            _ => outcome.clone(),
        })
    }
}

impl State {
    fn slot(&self, server: Server) -> &Slot {
        match server {
            Server::Primary => &self.primary,
            Server::Fallback => &self.fallback,
        }
    }

    fn slot_mut(&mut self, server: Server) -> &mut Slot {
        match server {
            Server::Primary => &mut self.primary,
            Server::Fallback => &mut self.fallback,
        }
    }

    fn server_in_use(&self) -> Server {
        match self.in_use.fallback {
            false => Server::Primary,
            true => Server::Fallback,
        }
    }
}

impl Agent {
    /// The configuration in force.
    pub(super) fn configuration(&self) -> Arc<ClientConfiguration> {
        let lock = self.configuration.read();
        lock.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Set-HgsClientConfiguration: keeps the configuration, then attests by it. What was held of other servers is
    /// given up.
    pub async fn configure(&self, change: &Change) -> Result<Outcome, ConfigurationError> {
        let new = change.accept()?;
        let mut state = self.state.lock().await;
        new.save(&self.args.dir)?;
        let old = self.configuration();
        {
            let lock = self.configuration.write();
            *lock.unwrap_or_else(PoisonError::into_inner) = Arc::new(new.clone());
        }
        let mut kept = State::default();
        for server in [Server::Primary, Server::Fallback] {
            if old.servers(server) == new.servers(server) {
                std::mem::swap(kept.slot_mut(server), state.slot_mut(server));
            }
        }
        kept.noticed = state.noticed;
        *state = kept;
        self.publish(&state);
        self.notice(&Notice::Configured { configuration: &new });
        Ok(self.attest_with(&mut state, true).await)
    }

    /// Attests, ignoring the certificate at hand: the primary, then the fallback.
    pub async fn attest(&self) -> Outcome {
        let mut state = self.state.lock().await;
        self.attest_with(&mut state, true).await
    }

    /// Test-HgsClientConfiguration: attests, ignoring the certificate at hand.
    pub async fn test(&self, choice: Choice) -> Result<Outcome, TestError> {
        let mut state = self.state.lock().await;
        let configuration = self.configuration();
        let server = match choice {
            _ if *configuration == ClientConfiguration::Local => Server::Primary,
            Choice::Either => return Ok(self.attest_with(&mut state, true).await),
            Choice::Primary => Server::Primary,
            Choice::Fallback => Server::Fallback,
        };
        let Some(servers) = configuration.servers(server) else {
            return match *configuration {
                ClientConfiguration::Local => Ok(self.not_attested()),
                ClientConfiguration::HostGuardianService { .. } => Err(TestError::NoFallback),
            };
        };
        let (outcome, _) = self.ask_for_health(&mut state, (server, servers), true, ATTEMPTS).await;
        self.settle(&mut state, &outcome);
        match outcome.no_contact {
            true => Err(TestError::Unreachable {
                server,
                reason: outcome.detail,
            }),
            false => Ok(outcome),
        }
    }

    /// Get-HgsClientConfiguration: attests unless there is a certificate that is not due yet; what then counts.
    pub async fn attempt(&self) -> Outcome {
        let mut state = self.state.lock().await;
        self.attest_with(&mut state, false).await
    }

    /// A health certificate of one HGS, DER: the one at hand, or one of a new attestation when `fresh`, when
    /// there is none valid, or when two thirds of its life are over. In the last case an attempt
    /// that reaches no service leaves the old one in use.
    pub async fn health_certificate(&self, server: Server, fresh: bool) -> Result<Vec<u8>, Outcome> {
        let mut state = self.state.lock().await;
        let configuration = self.configuration();
        let Some(servers) = configuration.servers(server) else {
            return Err(self.not_attested());
        };
        let (outcome, attempted) = self
            .ask_for_health(&mut state, (server, servers), fresh, ATTEMPTS)
            .await;
        if attempted && state.server_in_use() == server {
            self.settle(&mut state, &outcome);
        }
        match state.slot(server).valid(self.clock.now()) {
            Some(health) if outcome.status == AttestationStatus::Passed => Ok(health.encryption.der().to_vec()),
            _ => Err(outcome),
        }
    }

    /// The certificate for the VSM signing key, if the last attestation brought one.
    pub fn signing_certificate(&self) -> Option<Vec<u8>> {
        self.snapshot().health?.signing
    }

    /// What counts about this host now. Neither attempts anything nor waits for an attempt.
    pub fn outcome(&self) -> Outcome {
        self.snapshot().outcome
    }

    /// What counts about this host now, and what it rests on. Does not wait for an attempt either.
    pub(super) fn snapshot(&self) -> Snapshot {
        let state = self.shown.read().unwrap_or_else(PoisonError::into_inner).clone();
        let slot = state.slot(state.server_in_use());
        Snapshot {
            configuration: self.configuration(),
            outcome: slot.status(self.clock.now()).unwrap_or_else(|| self.not_attested()),
            health: slot.health.clone(),
            in_use: state.in_use,
        }
    }

    /// The key protection service of `server` has answered.
    pub(super) async fn key_protection_answered(&self, server: Server) {
        let mut state = self.state.lock().await;
        state.in_use.key_protection = Some(server);
        self.use_server(&mut state, server);
        self.publish(&state);
    }

    /// Does what is due by the clock: the first attempt, a renewal, a retry.
    pub async fn keep_up(&self) {
        let mut state = self.state.lock().await;
        let none_yet = state.primary.outcome.is_none() && state.fallback.outcome.is_none();
        let first = none_yet && !self.args.attest_when_asked;
        let due = state.next.is_some_and(|next| next <= self.clock.now());
        if due || (first && *self.configuration() != ClientConfiguration::Local) {
            self.attest_with(&mut state, false).await;
        }
    }

    /// Attests by itself for as long as it is awaited: at once, and whenever it is due.
    pub(super) async fn keep_up_forever(&self) {
        loop {
            self.keep_up().await;
            let next = self.state.lock().await.next;
            let left = next.map(|next| next.seconds_since(self.clock.now()).max(0).unsigned_abs());
            // The system's clock may be set meanwhile, so it is looked at again some time.
            let pause = left.map_or(LONGEST_PAUSE, Duration::from_secs).min(LONGEST_PAUSE);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.changed.notified() => {}
            }
        }
    }

    /// The primary, then the fallback if the primary does not answer. Once the fallback is in use, a certificate at
    /// hand is no sign of the primary: it is asked again, once.
    async fn attest_with(&self, state: &mut State, fresh: bool) -> Outcome {
        let configuration = self.configuration();
        let ClientConfiguration::HostGuardianService { primary, fallback } = &*configuration else {
            let outcome = self.not_attested();
            self.settle(state, &outcome);
            return outcome;
        };
        let (again, most) = match state.in_use.fallback {
            true => (true, 1),
            false => (fresh, ATTEMPTS),
        };
        let primary = (Server::Primary, primary);
        let (mut outcome, mut attempted) = self.ask_for_health(state, primary, again, most).await;
        if let (true, Some(fallback)) = (outcome.no_contact, fallback) {
            let fallback = (Server::Fallback, fallback);
            let (second, _) = self.ask_for_health(state, fallback, fresh, ATTEMPTS).await;
            attempted = true;
            outcome = match second.no_contact {
                false => second,
                true => Outcome {
                    detail: format!("{}; nor does the fallback: {}", outcome.detail, second.detail),
                    ..outcome
                },
            };
        }
        if attempted {
            self.settle(state, &outcome);
        }
        outcome
    }

    /// A certificate of one HGS, from the cache or by an attestation. Says how it stands now, and whether anything
    /// was attempted.
    async fn ask_for_health(
        &self,
        state: &mut State,
        (server, servers): (Server, &Servers),
        fresh: bool,
        most: u32,
    ) -> (Outcome, bool) {
        let now = self.clock.now();
        let slot = state.slot(server);
        if let (false, Some(health), Some(status)) = (fresh, slot.valid(now), slot.status(now))
            && !health.is_due(now)
            && status.status == AttestationStatus::Passed
        {
            return (status, false);
        }
        let attester = Attester {
            host: self,
            client: &self.client,
            url: servers.attestation.as_str(),
            protocol: self.args.protocol,
        };
        let mut mode = AttestationMode::Tpm;
        let result = attester.attest(&mut mode, most).await;
        let now = self.clock.now();
        let silent = result.as_ref().is_err_and(|error| Outcome::failed(error).no_contact);
        if !silent {
            state.in_use.attestation = Some(server);
            self.use_server(state, server);
        }
        let slot = state.slot_mut(server);
        let outcome = match result {
            Ok(health) => {
                let outcome = Outcome {
                    mode: Some(mode),
                    ..Outcome::passed(&health)
                };
                self.notice(&Notice::Attested {
                    server,
                    url: servers.attestation.as_str(),
                    health: &health,
                    mode,
                });
                slot.trouble = None;
                slot.health = Some(health);
                slot.outcome = Some(outcome.clone());
                slot.status(now).unwrap_or(outcome).issued_now()
            }
            Err(error) => {
                let mut outcome = Outcome::failed(&error);
                outcome.mode = (!outcome.no_contact).then_some(mode);
                if error.is_verdict() {
                    slot.health = None;
                }
                match slot.valid(now) {
                    Some(_) => slot.trouble = Some(outcome.detail.clone()),
                    None => {
                        slot.trouble = None;
                        slot.outcome = Some(outcome.clone());
                    }
                }
                self.notice(&Notice::AttestationFailed {
                    server,
                    url: servers.attestation.as_str(),
                    error: &error,
                    outcome: &outcome,
                });
                // Who does not insist goes on with the certificate at hand.
                match slot.status(now) {
                    Some(kept) if !fresh && kept.status == AttestationStatus::Passed => kept,
                    _ => outcome,
                }
            }
        };
        tracing::info!(host = %self.args.name, ?server, status = ?outcome.status, "{}", outcome.detail);
        self.publish(state);
        (outcome, true)
    }

    fn publish(&self, state: &State) {
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = state.clone();
    }

    fn use_server(&self, state: &mut State, server: Server) {
        let fallback = server == Server::Fallback;
        if state.in_use.fallback != fallback {
            state.in_use.fallback = fallback;
            self.notice(&Notice::FallbackInUse { fallback });
        }
    }

    /// Notes what an attempt came to, and when the next one is due.
    fn settle(&self, state: &mut State, outcome: &Outcome) {
        let now = self.clock.now();
        let slot = state.slot(state.server_in_use());
        let counts = slot.status(now).map_or(outcome.status, |status| status.status);
        let valid = slot.valid(now).map(Health::due_at);
        let renewal_failed = slot.trouble.is_some();
        let silent = outcome.no_contact || renewal_failed;
        state.silent = if silent { state.silent.saturating_add(1) } else { 0 };
        let later = |seconds: i64| now.plus_seconds(seconds);
        state.next = match (outcome.status, valid) {
            (AttestationStatus::NotConfigured, _) => None,
            _ if silent => Some(later(pause_after(state.silent))),
            // The primary may be back long before the fallback's certificate is due.
            (_, Some(due)) if state.in_use.fallback => Some(due.min(later(LONGEST_RETRY))),
            (_, Some(due)) => Some(due),
            // A verdict, or a certificate that the clock does not accept.
            (_, None) => Some(later(AFTER_A_VERDICT)),
        };
        if state.noticed != Some(counts) {
            let before = state.noticed.replace(counts);
            self.notice(&Notice::StatusChanged {
                before,
                now: counts,
                outcome,
            });
        }
        self.changed.notify_one();
    }

    fn not_attested(&self) -> Outcome {
        let (status, detail) = match *self.configuration() {
            ClientConfiguration::HostGuardianService { .. } => {
                (AttestationStatus::Unknown, "this host has not attested yet")
            }
            ClientConfiguration::Local => (
                AttestationStatus::NotConfigured,
                "this host is in local mode: no attestation service is configured",
            ),
        };
        Outcome {
            status,
            substatus: Substatus::default(),
            error: None,
            no_contact: false,
            detail: detail.to_owned(),
            mode: None,
        }
    }
}

fn name(server: Server) -> &'static str {
    match server {
        Server::Primary => "primary attestation service",
        Server::Fallback => "fallback attestation service",
    }
}

/// Seconds until the next attempt after so many that reached nothing: a minute, then twice as long each time.
fn pause_after(silent: u32) -> i64 {
    let doubled = 60i64
        .checked_shl(silent.saturating_sub(1).min(16))
        .unwrap_or(LONGEST_RETRY);
    doubled.min(LONGEST_RETRY)
}

/// Seconds between attempts while a service does not answer, at most.
const LONGEST_RETRY: i64 = 15 * 60;
/// Seconds after which a host that was refused tries again by itself, as the product's hosts attest every 8 hours.
const AFTER_A_VERDICT: i64 = 8 * 3600;
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_a_quarter_of_an_hour() {
        let pauses: Vec<i64> = (1..8).map(pause_after).collect();
        assert_eq!(pauses, [60, 120, 240, 480, 900, 900, 900]);
        assert_eq!(pause_after(u32::MAX), LONGEST_RETRY);
    }
}
