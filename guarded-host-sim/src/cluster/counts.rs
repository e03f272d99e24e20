//! What came of requests while something was done to the cluster. A request fails only when its client has
//! no retry left, by the clients' own rules (MS-HGSA 3.2.5, MS-KPS 3.2.5.1), and each failure is one of two
//! kinds: the client may try again later, or it was told no.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

/// How one request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// As it should.
    Done {
        /// Whether its client had to ask more than once; none where the client does not tell.
        again: Option<bool>,
    },
    /// Nothing was said about the request itself: no answer, or one that may be asked for again.
    Later(String),
    /// A refusal, or an answer that does not hold.
    Refused(String),
}

/// Requests of one kind.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Counts {
    /// How many were begun.
    pub asked: u64,
    /// How many ended as they should.
    pub done: u64,
    /// How many of those needed a retry of the client's; none where the client does not tell.
    pub done_after_retry: Option<u64>,
    /// Failed, may be tried again later; by what was said.
    pub failed_for_now: BTreeMap<String, u64>,
    /// Failed for good; by what was said.
    pub refused: BTreeMap<String, u64>,
    /// Time of those that ended as they should, retries included, in milliseconds.
    pub milliseconds: Quantiles,
    #[serde(skip)]
    times: Vec<Duration>,
}

/// Times in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Quantiles {
    /// Half were no longer.
    pub median: u64,
    /// Of a hundred, 99 were no longer.
    pub p99: u64,
    /// The longest.
    pub most: u64,
}

impl Counts {
    pub(super) fn add(&mut self, end: End, took: Duration) {
        self.asked += 1;
        match end {
            End::Done { again } => {
                self.done += 1;
                if let Some(again) = again {
                    *self.done_after_retry.get_or_insert_default() += u64::from(again);
                }
                self.times.push(took);
            }
            End::Later(reason) => *self.failed_for_now.entry(reason).or_default() += 1,
            End::Refused(reason) => *self.refused.entry(reason).or_default() += 1,
        }
    }

    /// All that did not end as they should.
    pub fn failed(&self) -> u64 {
        self.failed_now() + self.failed_for_good()
    }

    pub(super) fn failed_now(&self) -> u64 {
        self.failed_for_now.values().sum()
    }

    pub(super) fn failed_for_good(&self) -> u64 {
        self.refused.values().sum()
    }

    /// Sorts the times out, when no more come.
    pub(super) fn close(&mut self) {
        self.times.sort_unstable();
        let at = |parts: usize, of: usize| {
            let place = (self.times.len() * parts).div_ceil(of).saturating_sub(1);
            let time = self.times.get(place).copied().unwrap_or_default();
            u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
        };
        self.milliseconds = Quantiles {
            median: at(1, 2),
            p99: at(99, 100),
            most: at(1, 1),
        };
    }
}

/// Everything that clients did during a drill.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Traffic {
    /// For how long, in seconds.
    pub seconds: f64,
    /// Requests that the front door got, each attempt and each trip of an attestation counted.
    pub requests: u64,
    /// How often the front door asked a replica again, or another one, without the client's knowledge.
    pub repeated_by_front_door: u64,
    /// RollTransportKey with a host's health certificate, the answer's protector opened by the VM's owner.
    pub releases: Counts,
    /// Attestations of hosts, by their TPMs.
    pub attestations: Counts,
    /// VMs started on hosts, keys released to their VBS stores.
    pub vm_starts: Counts,
}

impl Traffic {
    pub(super) fn kinds(&self) -> [(&'static str, &Counts); 3] {
        [
            ("key releases", &self.releases),
            ("attestations", &self.attestations),
            ("VM starts", &self.vm_starts),
        ]
    }

    pub(super) fn requests_per_second(&self) -> f64 {
        let requests = self.requests as f64;
        requests / self.seconds.max(0.001)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_apart_and_times_sorted() {
        let mut counts = Counts::default();
        for time in 1..=100 {
            counts.add(
                End::Done {
                    again: Some(time == 100),
                },
                Duration::from_millis(time),
            );
        }
        counts.add(End::Later("HTTP 503".to_owned()), Duration::from_secs(9));
        counts.add(End::Refused("HealthCertificateException".to_owned()), Duration::ZERO);
        counts.close();
        assert_eq!(
            (counts.asked, counts.done, counts.done_after_retry),
            (102, 100, Some(1))
        );
        assert_eq!(
            (counts.failed(), counts.failed_now(), counts.failed_for_good()),
            (2, 1, 1)
        );
        let Quantiles { median, p99, most } = counts.milliseconds;
        assert_eq!((median, p99, most), (50, 99, 100));
        Counts::default().close();
    }
}
