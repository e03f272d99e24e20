//! How far the lab's clocks are ahead of the system's.

/// Seconds by which every clock of the lab was moved.
#[derive(Debug, Default)]
pub struct Ahead(i64);

impl Ahead {
    /// Moves on.
    pub fn add(&mut self, seconds: u64) {
        self.0 = self.0.saturating_add(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    /// So far.
    pub fn seconds(&self) -> i64 {
        self.0
    }
}
