//! How many writes a registry is asked for: a bucket of tokens that is full after a second.

use std::time::Instant;

/// Writes that a registry may be asked for now.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    left: f64,
    filled: Option<Instant>,
    is_short: bool,
}

impl Budget {
    pub(crate) fn fill(&mut self, per_second: u32, now: Instant) {
        let most = f64::from(per_second);
        let passed = self.filled.map(|at| now.saturating_duration_since(at));
        self.left = passed.map_or(most, |passed| {
            (self.left + passed.as_secs_f64() * most).min(most)
        });
        self.filled = Some(now);
        self.is_short = false;
    }

    /// Takes one; `false`: there is none.
    pub(crate) fn take(&mut self) -> bool {
        self.is_short |= self.left < 1.0;
        if self.left < 1.0 {
            return false;
        }
        self.left -= 1.0;
        true
    }

    /// Whether there was none since it was filled.
    pub(crate) fn is_short(&self) -> bool {
        self.is_short
    }
}
