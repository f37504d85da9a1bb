//! How long to wait before a registry is tried again: exponential, with jitter, so that a thousand clients of one registry
//! do not come back in one moment.

use std::time::Duration;

/// The waits of one client.
#[derive(Clone, Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// Waits from about `min` to about `max`.
    pub fn new(min: Duration, max: Duration) -> Backoff {
        Backoff {
            min,
            max,
            next: min,
        }
    }

    /// What adapters use: 100 ms to 10 s.
    pub fn for_registry() -> Backoff {
        Backoff::new(Duration::from_millis(100), Duration::from_secs(10))
    }

    /// How long to wait now: half of it fixed, half of it drawn. Twice as long the next time.
    #[allow(
        clippy::should_implement_trait,
        reason = "endless, and nobody iterates over it"
    )]
    pub fn next(&mut self) -> Duration {
        let wait = self.next;
        self.next = (self.next * 2).min(self.max);
        wait.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// It worked: the next failure waits little again.
    pub fn reset(&mut self) {
        self.next = self.min;
    }
}
