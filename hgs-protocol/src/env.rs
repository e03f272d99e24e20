//! Time and randomness, the two things a story may not fetch for itself.
//!
//! Stories take [`UnixTime`] and `&mut dyn Random` as values; only a shell holds a [`Clock`].
//! This is the one file that may ask the operating system for either.

use std::{
    fmt,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime},
};

use sha2::{Digest, Sha256};

/// Seconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct UnixTime(pub i64);

impl UnixTime {
    /// This instant moved `seconds` later (earlier when negative); saturates.
    pub fn plus_seconds(self, seconds: i64) -> UnixTime {
        UnixTime(self.0.saturating_add(seconds))
    }

    /// Seconds from `earlier` to this instant; negative when `earlier` is in fact later.
    pub fn seconds_since(self, earlier: UnixTime) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for UnixTime {
    /// RFC 3339 in UTC, to the second.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = u64::try_from(self.0)
            .ok()
            .and_then(|s| x509_cert::der::DateTime::from_unix_duration(Duration::from_secs(s)).ok());
        match text {
            Some(date) => write!(f, "{date}"),
            None => write!(f, "@{}", self.0),
        }
    }
}

/// Not a time of RFC 3339 in UTC, to the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no time: write it as 2026-01-31T12:00:00Z")]
pub struct TimeError;

impl FromStr for UnixTime {
    type Err = TimeError;

    /// The inverse of its text from 1970 on.
    fn from_str(text: &str) -> Result<UnixTime, TimeError> {
        let date: x509_cert::der::DateTime = text.parse().map_err(|_| TimeError)?;
        let seconds = i64::try_from(date.unix_duration().as_secs()).map_err(|_| TimeError)?;
        Ok(UnixTime(seconds))
    }
}

/// The system's clock plus an offset that only moves forward from where it began, shared by all clones.
///
/// [`Clock::now`] governs certificates, policies, caches and rows. Timeouts and the age of RTPM
/// states use [`Clock::unshifted`], which a lab cannot move.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    offset_seconds: Arc<AtomicI64>,
}

impl Clock {
    /// The system's clock, not moved.
    pub fn system() -> Clock {
        Clock::default()
    }

    /// A clock that is wrong from the start: `seconds` ahead of the system's, or behind it when negative.
    pub fn skewed(seconds: i64) -> Clock {
        Clock {
            offset_seconds: Arc::new(AtomicI64::new(seconds)),
        }
    }

    /// The lab's time: the system's clock plus the offset.
    pub fn now(&self) -> UnixTime {
        self.unshifted()
            .plus_seconds(self.offset_seconds.load(Ordering::SeqCst))
    }

    /// The system's clock without the lab's offset.
    pub fn unshifted(&self) -> UnixTime {
        #[expect(clippy::disallowed_methods, reason = "the one place that reads the system's clock")]
        let elapsed = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        UnixTime(i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX))
    }

    /// Moves the offset forward by `step` and answers the new time.
    pub fn advance(&self, step: Duration) -> UnixTime {
        let seconds = i64::try_from(step.as_secs()).unwrap_or(i64::MAX);
        let _ = self
            .offset_seconds
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |offset| {
                Some(offset.saturating_add(seconds))
            });
        self.now()
    }
}

/// A source of unpredictable bytes.
pub trait Random: Send {
    /// Overwrites the whole of `out`.
    fn fill(&mut self, out: &mut [u8]);
}

impl dyn Random + '_ {
    /// `N` fresh bytes.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        self.fill(&mut out);
        out
    }
}

/// The operating system's generator, through the cryptographic library.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsRandom;

impl Random for OsRandom {
    fn fill(&mut self, out: &mut [u8]) {
        // The library blocks until the system's pool is ready and has no other way to fail;
        // going on without randomness would be worse than stopping.
        #[expect(
            clippy::expect_used,
            clippy::disallowed_methods,
            reason = "no randomness, no service"
        )]
        aws_lc_rs::rand::fill(out).expect("the operating system's random generator failed");
    }
}

impl Random for Box<dyn Random> {
    fn fill(&mut self, out: &mut [u8]) {
        (**self).fill(out);
    }
}

/// Where a process takes time and randomness from. Only a shell holds one; a story gets values.
#[derive(Clone)]
pub struct Env {
    /// The process's clock.
    pub clock: Clock,
    random: Arc<dyn Fn() -> Box<dyn Random> + Send + Sync>,
}

impl Env {
    /// The system's clock and generator.
    pub fn system() -> Env {
        Env::from(Clock::system())
    }

    /// `clock`, and generators that `random` makes: a test then knows every value that was drawn.
    pub fn with_random(clock: Clock, random: impl Fn() -> Box<dyn Random> + Send + Sync + 'static) -> Env {
        Env {
            clock,
            random: Arc::new(random),
        }
    }

    /// The lab's time.
    pub fn now(&self) -> UnixTime {
        self.clock.now()
    }

    /// A generator for one decision.
    pub fn rng(&self) -> Box<dyn Random> {
        (self.random)()
    }
}

impl From<Clock> for Env {
    fn from(clock: Clock) -> Env {
        Env::with_random(clock, || Box::new(OsRandom))
    }
}

/// A repeatable stream for tests: SHA-256 over seed and counter. Not for production.
#[derive(Clone, Debug)]
pub struct SeededRandom {
    seed: u64,
    counter: u64,
}

impl SeededRandom {
    /// The stream that belongs to `seed`.
    pub fn new(seed: u64) -> SeededRandom {
        SeededRandom { seed, counter: 0 }
    }
}

impl Random for SeededRandom {
    fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(32) {
            let block = Sha256::new()
                .chain_update(self.seed.to_le_bytes())
                .chain_update(self.counter.to_le_bytes())
                .finalize();
            self.counter += 1;
            chunk.copy_from_slice(block.get(..chunk.len()).unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advance_is_seen_by_every_clone_and_never_goes_back() {
        let clock = Clock::system();
        let twin = clock.clone();
        let before = twin.now();
        clock.advance(Duration::from_secs(3600));
        assert!(twin.now().seconds_since(before) >= 3600);
        assert!(twin.unshifted().seconds_since(before) < 3600);
    }

    #[test]
    fn time_is_printed_as_rfc_3339() {
        assert_eq!(UnixTime(0).to_string(), "1970-01-01T00:00:00Z");
        assert_eq!(UnixTime(1_764_032_962).to_string(), "2025-11-25T01:09:22Z");
    }

    #[test]
    fn a_seed_gives_the_same_bytes_again() {
        let (mut a, mut b) = (SeededRandom::new(7), SeededRandom::new(7));
        let (mut x, mut y) = ([0; 40], [0; 40]);
        a.fill(&mut x);
        b.fill(&mut y);
        assert_eq!(x, y);
        assert_ne!(x[..32], [0; 32]);
    }
}
