//! How long undisturbed operations take here. Instants of a plan are parts of it.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use super::plan::Phase;

/// The last few durations of each operation, with and without attestation.
#[derive(Clone, Debug, Default)]
pub struct Pace(BTreeMap<(Phase, bool), VecDeque<Duration>>);

impl Pace {
    /// Takes note of an undisturbed operation.
    pub fn learn(&mut self, phase: Phase, cold: bool, took: Duration) {
        let kept = self.0.entry((phase, cold)).or_default();
        kept.push_front(took);
        kept.truncate(KEPT);
    }

    /// The median of the last few; a second when there is none.
    pub fn of(&self, phase: Phase, cold: bool) -> Duration {
        let mut kept: Vec<Duration> = self.0.get(&(phase, cold)).into_iter().flatten().copied().collect();
        kept.sort_unstable();
        kept.get(kept.len() / 2).copied().unwrap_or(Duration::from_secs(1))
    }

    /// Each operation, whether with attestation, and its duration in milliseconds.
    pub fn all(&self) -> Vec<(Phase, bool, u128)> {
        let all = self.0.keys().copied();
        all.map(|(phase, cold)| (phase, cold, self.of(phase, cold).as_millis()))
            .collect()
    }
}

const KEPT: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_the_last_five_counts() {
        let mut pace = Pace::default();
        assert_eq!(pace.of(Phase::Roll, true), Duration::from_secs(1));
        for took in [900, 1, 2, 3, 4, 500] {
            pace.learn(Phase::Roll, true, Duration::from_millis(took));
        }
        assert_eq!(pace.of(Phase::Roll, true), Duration::from_millis(3));
        assert_eq!(pace.all(), [(Phase::Roll, true, 3)]);
    }
}
