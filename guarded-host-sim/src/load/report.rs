//! What a run came to, for people and for pipelines.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
    time::Duration,
};

use serde::Serialize;

/// The whole summary.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Hosts asked for.
    pub hosts: usize,
    /// `tpm` or `hostkey`.
    pub mode: &'static str,
    /// Cores of the machine.
    pub cores: usize,
    /// Attestations under way at a time.
    pub concurrency: usize,
    /// Making what the pool lacked: TPMs, or keys in host-key mode.
    pub made: Made,
    /// Switching the hosts on: boot, measurements, VBS store.
    pub power_on: Phase,
    /// Registration over the administrators' interface.
    pub registration: Phase,
    /// Every round in which the hosts attested.
    pub rounds: Vec<Round>,
    /// What the machine has lost to the hosts.
    pub memory: Memory,
    /// Hosts whose certificate was valid at the end: the signer's key verifies it, it is for the host's own VSM key,
    /// of this mode, and within its time.
    pub valid_certificates: usize,
    /// Why hosts ended without one, and how many.
    pub failures: BTreeMap<String, usize>,
}

/// What the pool was given.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Made {
    /// Taken from the pool as they were.
    pub kept: usize,
    /// Made in this run.
    pub made: usize,
    /// Wall time of making them.
    pub seconds: f64,
    /// Wall time of one on its worker: several are made at once.
    pub seconds_each: f64,
}

/// A phase of the run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Phase {
    /// Hosts that got through it.
    pub hosts: usize,
    /// Wall time.
    pub seconds: f64,
}

/// One round of attestations.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    /// What made the hosts attest.
    pub cause: Cause,
    /// Attestations that brought a certificate.
    pub attested: usize,
    /// Wall time from the first start to the last certificate.
    pub seconds: f64,
    /// Attestations a second.
    pub per_second: f64,
    /// Of whole attestations, retries included, without the wait for a place.
    pub latency: Latency,
    /// Attempts that failed and were made again, by reason.
    pub retries: BTreeMap<String, u64>,
    /// How long the services were away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub services_away_seconds: Option<f64>,
}

/// What made hosts attest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// They had just booted.
    Boot,
    /// They were told to attest anew, at once.
    Told,
    /// Both services were killed and started again meanwhile; every host attested anew.
    ServicesRestarted,
    /// Two thirds of their certificates' lives were over by the lab's clock.
    Renewal,
    /// They held their certificates, each by its own timer.
    Held,
}

/// Percentiles in milliseconds, by nearest rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    /// Half took no longer.
    pub p50_ms: f64,
    /// Nine of ten.
    pub p90_ms: f64,
    /// Ninety-nine of a hundred.
    pub p99_ms: f64,
    /// The slowest.
    pub max_ms: f64,
}

impl Latency {
    /// Of these durations, in any order; zero of none.
    pub fn of(mut all: Vec<Duration>) -> Latency {
        all.sort_unstable();
        let rank = |percent: usize| {
            let at = (all.len() * percent).div_ceil(100).saturating_sub(1);
            all.get(at).map_or(0.0, |d| round(d.as_secs_f64() * 1000.0))
        };
        Latency {
            p50_ms: rank(50),
            p90_ms: rank(90),
            p99_ms: rank(99),
            max_ms: rank(100),
        }
    }
}

/// Memory at the end of the rounds, all certificates held. PSS throughout.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Memory {
    /// This process, which is all hosts but their TPMs; none where it cannot be seen.
    pub process_kib: Option<u64>,
    /// Largest resident size that this process had (RSS).
    pub process_peak_rss_kib: Option<u64>,
    /// TPMs that run; the others sleep on disk.
    pub tpms_running: usize,
    /// All of them together; none where one cannot be seen.
    pub tpms_kib: Option<u64>,
    /// Process and TPMs, divided by the hosts.
    pub per_host_kib: Option<f64>,
    /// The services, where they are this run's own.
    pub services: Vec<ServiceMemory>,
}

/// What one service takes.
#[derive(Clone, Debug, Serialize)]
pub struct ServiceMemory {
    /// `attestation` or `kps`.
    pub service: &'static str,
    /// PSS.
    pub pss_kib: u64,
}

impl Summary {
    /// True when every host held a valid certificate at the end.
    pub fn is_good(&self) -> bool {
        self.valid_certificates == self.hosts
    }
}

impl Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { made, memory, .. } = self;
        writeln!(
            f,
            "{} light hosts, mode {}; {} cores, {} attestations at a time",
            self.hosts, self.mode, self.cores, self.concurrency
        )?;
        let what = if self.mode == "tpm" { "TPMs" } else { "keys" };
        writeln!(
            f,
            "{what:<12} {} made in {:.1} s ({:.2} s each on its worker), {} from the pool",
            made.made, made.seconds, made.seconds_each, made.kept
        )?;
        for (name, phase) in [("power on", &self.power_on), ("registered", &self.registration)] {
            writeln!(f, "{name:<12} {} in {:.1} s", phase.hosts, phase.seconds)?;
        }
        for (number, round) in (1..).zip(&self.rounds) {
            writeln!(f, "{:<12} {round}", format!("round {number}"))?;
        }
        let kib = |value: Option<u64>| value.map_or("not visible".to_owned(), mib);
        writeln!(
            f,
            "{:<12} {} this process, {} TPMs {}; {} a host",
            "memory (PSS)",
            kib(memory.process_kib),
            memory.tpms_running,
            kib(memory.tpms_kib),
            memory
                .per_host_kib
                .map_or("not visible".to_owned(), |k| format!("{k:.0} KiB")),
        )?;
        for service in &memory.services {
            writeln!(f, "{:<12} {} {}", "", service.service, mib(service.pss_kib))?;
        }
        for (reason, hosts) in &self.failures {
            writeln!(f, "{:<12} {hosts} hosts: {reason}", "without")?;
        }
        write!(
            f,
            "{:<12} {} of {} hosts hold a certificate that the signer's key verifies",
            "valid", self.valid_certificates, self.hosts
        )
    }
}

impl Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cause = match self.cause {
            Cause::Boot => "after the boot",
            Cause::Told => "anew",
            Cause::ServicesRestarted => "while both services were killed and started again",
            Cause::Renewal => "at two thirds of the certificates' lives",
            Cause::Held => "each by its own timer",
        };
        let Latency {
            p50_ms,
            p90_ms,
            p99_ms,
            max_ms,
        } = self.latency;
        write!(
            f,
            "{} attested {cause} in {:.1} s: {:.1} a second; ms p50 {p50_ms:.0}, p90 {p90_ms:.0}, p99 {p99_ms:.0}, max \
             {max_ms:.0}",
            self.attested, self.seconds, self.per_second
        )?;
        if let Some(away) = self.services_away_seconds {
            write!(f, "; services away for {away:.1} s")?;
        }
        for (reason, times) in &self.retries {
            write!(f, "\n{:<12} {times} tries again: {reason}", "")?;
        }
        Ok(())
    }
}

fn mib(kib: u64) -> String {
    let mib = kib as f64 / 1024.0;
    format!("{mib:.1} MiB")
}

/// Three decimals are enough for a report.
pub(super) fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_nearest_rank() {
        let all = (1..=200).rev().map(Duration::from_millis).collect();
        let expected = Latency {
            p50_ms: 100.0,
            p90_ms: 180.0,
            p99_ms: 198.0,
            max_ms: 200.0,
        };
        assert_eq!(Latency::of(all), expected);
        assert_eq!(Latency::of(Vec::new()), Latency::default());
        let one = Latency::of(vec![Duration::from_millis(7)]);
        assert_eq!((one.p50_ms, one.max_ms), (7.0, 7.0));
    }
}
